"""Die, interfere and stall at every point of a port's life, on every database; and proof that the net catches bugs.

NUBILA_EVERY_POINT=1 takes every point everywhere; daily runs take every few, beginning elsewhere for each step.
"""

from __future__ import annotations

import dataclasses
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from nubila.core.cloud import Cloud
from nubila.core.db import Tx
from nubila.edge import app as edge_app
from nubila.services.network import SERVICE, asks, floating_links
from nubila.services.network.kinds_port import Port

sys.path.insert(0, str(Path(__file__).parent))
from lives import Ask, Life, Notes, World, failures_of, survives, tell
from plants import Plant, settle_without_comparing

pytest_plugins = ["nubila.testing.fixtures"]
EVERY, EVERY_FAR = (1, 1) if os.environ.get("NUBILA_EVERY_POINT") else (13, 60)
NEUTRON = "/network/v2.0"


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who finds the database busy says so at once: whoever holds it waits in the same thread."""
    monkeypatch.setattr(edge_app, "BUSY_RETRIES", 1)


# --- the life ---------------------------------------------------------------------------------------------------------


def prepare(ask: Ask, notes: Notes) -> None:
    """A security group with a rule of its own, and a floating IP that leads nowhere."""
    group = ask("POST", f"{NEUTRON}/security-groups", {"security_group": {"name": "g"}}).json["security_group"]["id"]
    rule = {"security_group_id": group, "direction": "ingress", "remote_group_id": group}
    ask("POST", f"{NEUTRON}/security-group-rules", {"security_group_rule": rule})
    floating = {"floatingip": {"floating_network_id": notes["external"]}}
    notes |= {"group": group, "floating": ask("POST", f"{NEUTRON}/floatingips", floating).json["floatingip"]["id"]}


def find(ask: Ask, notes: Notes) -> str | None:
    """The port's id; who got no answer to his create looks for its name."""
    if "id" not in notes:
        found = ask("GET", f"{NEUTRON}/ports?name=life").json["ports"]
        if not found:
            return None
        notes["id"] = found[0]["id"]
    return str(notes["id"])


def create(ask: Ask, notes: Notes) -> None:
    port = {"name": "life", "network_id": notes["network"], "tags": ["t"], "dns_name": "life"}
    got = tell(ask, notes, "create", "POST", f"{NEUTRON}/ports", {"port": port})
    notes["id"] = got.json["port"]["id"]


def change(*, rival: bool = False, **values: Any) -> Any:
    """An update; "group" stands for the life's own group. What was said last holds, unless a rival spoke too."""

    def step(ask: Ask, notes: Notes) -> None:
        id = find(ask, notes)
        given = {k.replace("host", "binding:host_id"): [notes["group"]] if v == "group" else v
                 for k, v in values.items()}  # fmt: skip
        for name in given:
            notes["rivals"] = [*notes.get("rivals", ()), *([name] if rival else [])]
            notes.pop(f"port {name}", None)
        if id and tell(ask, notes, "change", "PUT", f"{NEUTRON}/ports/{id}", {"port": given}).status == 200:
            notes |= {f"port {name}": value for name, value in given.items()}

    return step


def lead(somewhere: bool) -> Any:
    """Associate or disassociate the floating IP."""

    def step(ask: Ask, notes: Notes) -> None:
        id = find(ask, notes) if somewhere else None
        notes.pop("leads", None)
        url, body = f"{NEUTRON}/floatingips/{notes['floating']}", {"floatingip": {"port_id": id}}
        if (id or not somewhere) and tell(ask, notes, "lead", "PUT", url, body).status == 200:
            notes["leads"] = id or ""

    return step


def drop_floating(ask: Ask, notes: Notes) -> None:
    notes.pop("leads", None)
    tell(ask, notes, "delete floating", "DELETE", f"{NEUTRON}/floatingips/{notes['floating']}")


def delete(ask: Ask, notes: Notes) -> None:
    id = find(ask, notes)
    if id:
        tell(ask, notes, "delete", "DELETE", f"{NEUTRON}/ports/{id}")


def judge(world: World, ask: Ask, notes: Notes) -> list[str]:
    """What users see, against what they were told."""
    said, tried = notes["said"], notes["tried"]
    ports = ask("GET", f"{NEUTRON}/ports?name=life").json["ports"]
    bad = [f"{p['id']} is still there" for p in ports if said["delete"]]
    if not ports and said["create"] and not tried["delete"]:
        bad.append("the port is gone, and nobody deleted it")
    for p in ports:
        if p["status"] != ("ACTIVE" if p["binding:host_id"] else "DOWN") or len(p["fixed_ips"]) != 1:
            bad.append(f"the port is {p['status']} on {p['binding:host_id'] or 'no host'} with {p['fixed_ips']}")
        for name in ("binding:host_id", "security_groups"):
            wanted = notes.get(f"port {name}", p[name])
            if name not in notes.get("rivals", ()) and p[name] != wanted:
                bad.append(f"the port's {name} is {p[name]}, promised was {wanted}")
    floating = ask("GET", f"{NEUTRON}/floatingips").json["floatingips"]
    bad += ["the floating IP is still there" for f in floating if said["delete floating"]]
    if not floating and not tried["delete floating"]:
        bad.append("the floating IP is gone, and nobody deleted it")
    for f in floating:
        leads = f["port_id"] or ""
        if f["status"] != ("ACTIVE" if leads else "DOWN"):
            bad.append(f"the floating IP is {f['status']} and leads to {leads or 'nowhere'}")
        if leads and not ports:
            bad.append("the floating IP leads to a port that is gone")
        if ports and notes.get("leads", leads) != leads:
            bad.append(f"the floating IP leads to {leads or 'nowhere'}, promised was {notes['leads'] or 'nowhere'}")
    return bad


LIFE = Life(
    prepare=prepare,
    steps=(
        ("create", create),
        ("bind", change(host="host1")),
        ("move", change(host="host2")),
        ("change groups", change(security_groups="group")),
        ("associate", lead(True)),
        ("disassociate", lead(False)),
        ("delete", delete),
    ),
    end=delete,
    intruders={
        "another deletes it": delete,
        "another moves it": change(host="host1", rival=True),
        "another deletes the floating IP": drop_floating,
    },
    judge=judge,
)


def test_port_survives_every_accident(database_url: str, tmp_path: Path) -> None:
    lines = survives(LIFE, database_url, tmp_path, every=EVERY if database_url.startswith("sqlite") else EVERY_FAR)
    print("\n".join(lines))
    assert len(lines) == len(LIFE.steps) * 5


# --- planted bugs: each must turn the net red -------------------------------------------------------------------------


def tells_only_the_new_host(patch: pytest.MonkeyPatch) -> None:
    """A port that moves is left wired where it was."""
    real = asks.moved
    patch.setattr(asks, "moved", lambda tx, row, old, new: real(tx, row, "" if new else old, new))


def believes_any_host(patch: pytest.MonkeyPatch) -> None:
    """A port's status is what some host said of it last, wherever it is by now."""

    def observe(cloud: Cloud, tx: Tx, id: str, host: str, observed: Mapping[str, Any]) -> str:
        status = "ACTIVE" if observed.get("status") == "ACTIVE" else "DOWN"
        tx.execute(sa.update(Port.table).where(Port.table.c.id == id).values(status=status))
        return status

    items: Any = SERVICE.host_items
    patch.setitem(items, "port", dataclasses.replace(items["port"], observe=observe))


def forgets_floating_ips(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(floating_links, "port_gone", lambda tx, id: None)


@pytest.mark.parametrize(
    ("plant", "step", "accident"),
    [
        (settle_without_comparing, "move", "another moves it"),
        (believes_any_host, "move", "another moves it"),
    ],
)
def test_net_catches_a_planted_bug(
    plant: Plant, step: str, accident: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    failures = failures_of(LIFE, step, accident, lambda: plant(monkeypatch), tmp_path)
    print(failures[:3])
    assert failures


@pytest.mark.parametrize(("plant", "step"), [(tells_only_the_new_host, "move"), (forgets_floating_ips, "associate")])
def test_net_needs_no_accident_for_a_gross_bug(
    plant: Plant, step: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(AssertionError, match="without any accident"):
        failures_of(LIFE, step, "die", lambda: plant(monkeypatch), tmp_path)
