"""Die, interfere and stall at every point of a server's life, on every database; and proof that the net catches bugs.

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

from nubila.core.cloud import Cloud
from nubila.core.db import Reader, Tx
from nubila.edge import app as edge_app
from nubila.services import compute
from nubila.services.compute import hosting, quotas, rows, verbs

sys.path.insert(0, str(Path(__file__).parent))
from lives import Ask, Life, Notes, World, failures_of, survives, tell
from plants import Plant, ask_after_commit, settle_without_comparing

pytest_plugins = ["nubila.testing.fixtures"]
EVERY, EVERY_FAR = (1, 1) if os.environ.get("NUBILA_EVERY_POINT") else (13, 60)
NOVA, NEUTRON = "/compute/v2.1", "/network/v2.0"


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who finds the database busy says so at once: whoever holds it waits in the same thread."""
    monkeypatch.setattr(edge_app, "BUSY_RETRIES", 1)
    monkeypatch.setattr(verbs, "BUSY_RETRIES", 1)


# --- the life ---------------------------------------------------------------------------------------------------------


def find(ask: Ask, notes: Notes) -> str | None:
    """The server's id; who got no answer to his create looks for its name."""
    if "id" not in notes:
        found = ask("GET", f"{NOVA}/servers?name=life&all_tenants=1").json["servers"]
        if not found:
            return None
        notes["id"] = found[0]["id"]
    return str(notes["id"])


def create(ask: Ask, notes: Notes) -> None:
    server = {"name": "life", "imageRef": notes["image"], "flavorRef": notes["flavor"], "metadata": {"a": "b"},
              "networks": [{"uuid": notes["network"]}], "availability_zone": "nova:host2", "tags": ["t"]}  # fmt: skip
    notes["power"] = "on"
    got = tell(ask, notes, "create", "POST", f"{NOVA}/servers", {"server": server})
    notes["id"] = got.json["server"]["id"]


def act(what: str, body: Mapping[str, Any], power: str, *, rival: bool = False) -> Any:
    """An action; whoever acts while another does can not know who was the last."""

    def step(ask: Ask, notes: Notes) -> None:
        id = find(ask, notes)
        notes["power"] = None
        notes["rival"] = notes["rival"] or rival
        if id and tell(ask, notes, what, "POST", f"{NOVA}/servers/{id}/action", body).status == 202:
            notes["power"] = power

    return step


def attach(ask: Ask, notes: Notes) -> None:
    id = find(ask, notes)
    body = {"interfaceAttachment": {"net_id": notes["network"]}}
    if id:
        got = tell(ask, notes, "attach", "POST", f"{NOVA}/servers/{id}/os-interface", body)
        if got.status == 200:
            notes["second"] = got.json["interfaceAttachment"]["port_id"]


def detach(ask: Ask, notes: Notes) -> None:
    id = find(ask, notes)
    if id:
        tell(ask, notes, "detach", "DELETE", f"{NOVA}/servers/{id}/os-interface/{notes['second']}")


def delete(ask: Ask, notes: Notes) -> None:
    id = find(ask, notes)
    if id:
        tell(ask, notes, "delete", "DELETE", f"{NOVA}/servers/{id}")


def judge(world: World, ask: Ask, notes: Notes) -> list[str]:
    """What users see, against what they were told."""
    said, tried = notes["said"], notes["tried"]
    servers = ask("GET", f"{NOVA}/servers/detail?all_tenants=1").json["servers"]
    bad = [f"{s['id']} is still there" for s in servers if said["delete"]]
    if not servers and said["create"] and not tried["delete"]:
        bad.append("the server is gone, and nobody deleted it")
    for s in servers:
        if s["status"] not in ("ACTIVE", "SHUTOFF") or s["OS-EXT-STS:task_state"]:
            bad.append(f"the server is {s['status']} ({s['OS-EXT-STS:task_state']}): {s.get('fault')}")
        if notes["power"] and not notes["rival"] and s["status"] != {"on": "ACTIVE", "off": "SHUTOFF"}[notes["power"]]:
            bad.append(f"the server is {s['status']} and was to be {notes['power']}")
        ports = ask("GET", f"{NEUTRON}/ports?device_id={s['id']}").json["ports"]
        if {(p["status"], p["binding:host_id"], len(p["fixed_ips"])) for p in ports} != {("ACTIVE", "host2", 1)}:
            bad.append(f"the server's ports are {ports}")
        least = 1 + said["attach"] - tried["detach"]
        if not least <= len(ports) == len(s["addresses"].get("n", ())) <= 1 + tried["attach"] - said["detach"]:
            bad.append(f"the server's ports are {len(ports)}, its addresses {s['addresses']}")
        with world.cloud.store.read() as reader:
            boots = (rows.get(reader, s["id"]) or {})["boots"]
        if not said["reboot"] <= boots <= tried["reboot"]:
            bad.append(f"the server booted {boots} times more, {said['reboot']} were promised")
    return bad


SOFT, HARD = ({"reboot": {"type": kind}} for kind in ("SOFT", "HARD"))
LIFE = Life(
    steps=(
        ("create", create),
        ("reboot", act("reboot", SOFT, "on")),
        ("stop", act("stop", {"os-stop": None}, "off")),
        ("start", act("start", {"os-start": None}, "on")),
        ("attach a port", attach),
        ("detach it", detach),
        ("delete", delete),
    ),
    end=delete,
    intruders={
        "another deletes it": delete,
        "another stops it": act("stop", {"os-stop": None}, "off", rival=True),
        "another reboots it": act("reboot", HARD, "on", rival=True),
    },
    judge=judge,
)


def test_server_survives_every_accident(database_url: str, tmp_path: Path) -> None:
    lines = survives(LIFE, database_url, tmp_path, every=EVERY if database_url.startswith("sqlite") else EVERY_FAR)
    print("\n".join(lines))
    assert len(lines) == len(LIFE.steps) * 5


# --- planted bugs: each must turn the net red -------------------------------------------------------------------------


def keeps_what_is_gone(patch: pytest.MonkeyPatch) -> None:
    """The host is told to keep a guest that is to go."""

    def describe(cloud: Cloud, reader: Reader, id: str, host: str) -> Any:
        class Blind:
            def __getattr__(self, name: str) -> Any:
                return getattr(reader, name)

            def one(self, *how: Any) -> Any:
                row = reader.one(*how)
                return {**row, "want": "present"} if row and "want" in row else row

        return hosting.describe(cloud, Blind(), id, host)  # type: ignore[arg-type]

    items = {"guest": dataclasses.replace(hosting.ITEM, describe=describe)}
    patch.setitem(compute.SERVICE.__dict__, "host_items", items)


def forgets_quota_of_the_unborn(patch: pytest.MonkeyPatch) -> None:
    """What was deleted while it was built goes on counting."""
    real = quotas.release_server
    patch.setattr(quotas, "release_server", lambda tx, row: real(tx, row) if row["launched_at"] else None)


def settles_what_was_never_reported(patch: pytest.MonkeyPatch) -> None:
    """A report about a server that is to go is taken for one about the server that was."""

    def observe(cloud: Cloud, tx: Tx, id: str, host: str, seen: Mapping[str, Any]) -> str:
        row = rows.get(tx, id)
        if row is not None and row["want"] == "gone" and seen.get("power") is not None:
            rows.change(tx, row, want="present")
        return hosting.observe(cloud, tx, id, host, seen)

    patch.setitem(compute.SERVICE.__dict__, "host_items", {"guest": dataclasses.replace(hosting.ITEM, observe=observe)})


@pytest.mark.parametrize(
    ("plant", "step", "accident"),
    [
        (ask_after_commit, "create", "die"),
        (settle_without_comparing, "reboot", "another stops it"),
        (forgets_quota_of_the_unborn, "create", "another deletes it"),
        (settles_what_was_never_reported, "reboot", "another deletes it"),
    ],
)
def test_net_catches_a_planted_bug(
    plant: Plant, step: str, accident: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    failures = failures_of(LIFE, step, accident, lambda: plant(monkeypatch), tmp_path)
    print(failures[:3])
    assert failures


@pytest.mark.parametrize(("plant", "step"), [(keeps_what_is_gone, "delete")])
def test_net_needs_no_accident_for_a_gross_bug(
    plant: Plant, step: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(AssertionError, match=r"without any accident|never settles"):
        failures_of(LIFE, step, "die", lambda: plant(monkeypatch), tmp_path)
