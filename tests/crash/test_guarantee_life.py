"""Die, interfere and stall at every point of a guaranteed port's life: nothing is leaked or counted twice.

The judge of every life asks all invariants: what servers hold in Placement is their flavor and what their ports say.
NUBILA_EVERY_POINT=1 takes every point; daily runs take a few, beginning elsewhere for each step.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from nubila.apps import doctor
from nubila.core.db import Tx
from nubila.edge import app as edge_app
from nubila.services.compute import verbs
from nubila.services.network import qos_guarantees
from nubila.testing.crashpoints import Theatre

sys.path.insert(0, str(Path(__file__).parent))
from lives import Ask, Life, Notes, World, survives, tell

pytest_plugins = ["nubila.testing.fixtures"]
EVERY_POINT = bool(os.environ.get("NUBILA_EVERY_POINT"))
NOVA, NEUTRON = "/compute/v2.1", "/network/v2.0"
BANDWIDTH, PACKETS = 1000, 50  # of which a host has twice as much


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who finds the database busy says so at once: whoever holds it waits in the same thread."""
    monkeypatch.setattr(edge_app, "BUSY_RETRIES", 1)
    monkeypatch.setattr(verbs, "BUSY_RETRIES", 1)


def prepare(ask: Ask, notes: Notes) -> None:
    """Two policies, a port with the first one and a second port."""
    for name, (kbps, kpps) in {"much": (BANDWIDTH, PACKETS), "less": (BANDWIDTH // 2, PACKETS // 2)}.items():
        path = f"{NEUTRON}/qos/policies"
        notes[name] = ask("POST", path, {"policy": {"name": name}}).json["policy"]["id"]
        rules = (("bandwidth", {"min_kbps": kbps}), ("packet_rate", {"min_kpps": kpps, "direction": "any"}))
        for kind, rule in rules:
            kind = f"minimum_{kind}_rule"
            made = ask("POST", f"{path}/{notes[name]}/{kind}s", {kind: rule}).json[kind]
            notes[f"{name} {kind}"] = made["id"]
    for name, policy in (("first", "much"), ("second", "less")):
        port = {"network_id": notes["network"], "qos_policy_id": notes[policy]}
        notes[name] = ask("POST", f"{NEUTRON}/ports", {"port": port}).json["port"]["id"]


def find(ask: Ask) -> str | None:
    found = ask("GET", f"{NOVA}/servers?name=life&all_tenants=1").json["servers"]
    return str(found[0]["id"]) if found else None


def create(ask: Ask, notes: Notes) -> None:
    server = {"name": "life", "imageRef": notes["image"], "flavorRef": notes["flavor"],
              "networks": [{"port": notes["first"]}]}  # fmt: skip
    tell(ask, notes, "create", "POST", f"{NOVA}/servers", {"server": server})


def attach(ask: Ask, notes: Notes) -> None:
    if id := find(ask):
        body = {"interfaceAttachment": {"port_id": notes["second"]}}
        tell(ask, notes, "attach", "POST", f"{NOVA}/servers/{id}/os-interface", body)


def detach(ask: Ask, notes: Notes) -> None:
    if id := find(ask):
        tell(ask, notes, "detach", "DELETE", f"{NOVA}/servers/{id}/os-interface/{notes['second']}")


def give(policy: str | None) -> Callable[[Ask, Notes], None]:
    """Another policy for the server's port."""

    def step(ask: Ask, notes: Notes) -> None:
        body = {"port": {"qos_policy_id": notes[policy] if policy else None}}
        tell(ask, notes, "give", "PUT", f"{NEUTRON}/ports/{notes['first']}", body)

    return step


def raise_rule(ask: Ask, notes: Notes) -> None:
    kind = "minimum_bandwidth_rule"
    path = f"{NEUTRON}/qos/policies/{notes['less']}/{kind}s/{notes[f'less {kind}']}"
    tell(ask, notes, "raise", "PUT", path, {kind: {"min_kbps": BANDWIDTH // 2 + 100}})


def delete(ask: Ask, notes: Notes) -> None:
    if id := find(ask):
        tell(ask, notes, "delete", "DELETE", f"{NOVA}/servers/{id}")


def judge(world: World, ask: Ask, notes: Notes) -> list[str]:
    """The invariants have compared Placement with the ports; here what users see of it."""
    servers = ask("GET", f"{NOVA}/servers/detail?all_tenants=1").json["servers"]
    bad = [f"the server is {s['status']}: {s.get('fault')}" for s in servers if s["status"] != "ACTIVE"]
    for name in ("first", "second"):
        port = ask("GET", f"{NEUTRON}/ports/{notes[name]}").json["port"]
        allocation = port["binding:profile"].get("allocation", {})
        if not servers and (allocation or port["device_id"]):
            bad.append(f"port {name} of no server has {allocation}, {port['device_id']}")
        if allocation and set(allocation) != set((port["resource_request"] or {}).get("same_subtree", ())):
            bad.append(f"port {name} asks for {port['resource_request']} and holds {allocation}")
    with world.cloud.store.read() as reader:
        held = qos_guarantees.held(reader)
    if not set(held) <= {s["id"] for s in servers}:
        bad.append(f"of no server: {held}")
    return bad


LIFE = Life(
    steps=(
        ("create", create),
        ("attach", attach),
        ("raise a rule", raise_rule),
        ("give less", give("less")),
        ("detach", detach),
        ("delete", delete),
    ),
    end=delete,
    intruders={"another deletes it": delete, "another gives none": give(None)},
    judge=judge,
    prepare=prepare,
    settings={
        "resource_provider_bandwidths": (f"rp_tunnelled:{BANDWIDTH * 2}:0",),
        "resource_provider_packet_processing_without_direction": (f":{PACKETS * 2}",),
    },
)


def test_guarantees_survive_every_accident(database_url: str, tmp_path: Path) -> None:
    if not EVERY_POINT and not database_url.startswith("sqlite"):  # daily: that the statements mean the same there
        world = World(database_url, tmp_path, LIFE)
        try:
            assert doctor.rows(world.cloud) == []
        finally:
            world.close()
        return
    lines = survives(LIFE, database_url, tmp_path, every=1 if EVERY_POINT else 97)
    print("\n".join(lines))
    assert len(lines) == len(LIFE.steps) * 4


def test_the_net_sees_a_port_that_gives_nothing_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def forget(tx: Tx, port_id: str) -> None:
        tx.execute(qos_guarantees._FORGET, {"b_port": port_id})

    url = f"sqlite:///{tmp_path / 'planted.db'}"
    world = World(url, tmp_path, LIFE)
    monkeypatch.setattr(qos_guarantees, "release", forget)
    theatre = Theatre(world.play([name for name, _ in LIFE.steps].index("detach")), url)
    try:
        with pytest.raises(AssertionError, match="without any accident"):
            theatre.perform("die", every=1000)
    finally:
        theatre.close()
        world.close()
