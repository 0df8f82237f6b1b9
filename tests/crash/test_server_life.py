"""Die, interfere and stall at every point of a real server's and its port's life, through API, controller and host."""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
import sqlalchemy as sa
from computing import Nova, image, network

from nubila.agent.apply import Drivers, apply
from nubila.apps.controller import reconcilers
from nubila.core import hosts, quota
from nubila.core.cloud import Cloud
from nubila.core.db import Store
from nubila.core.declare import METADATA
from nubila.core.ports import GuestSpec, HostPlace
from nubila.core.work import Item
from nubila.drivers.simulated_hypervisor import SimulatedHypervisor
from nubila.drivers.simulated_network import SimulatedNetwork
from nubila.edge.app import Edge
from nubila.services.compute import quotas, rows, views
from nubila.services.compute.kinds import ACTION, EVENT, SERVER, SERVER_TAG
from nubila.services.identity.auth import authenticate
from nubila.services.network import plug
from nubila.services.network.kinds_port import Port
from nubila.services.placement.kinds import ALLOCATION, CONSUMER
from nubila.testing.cloud import TestCloud, call_app
from nubila.testing.crashpoints import Cast, Play, Scene, Theatre

pytest_plugins = ["nubila.testing.fixtures"]
HOST = "host1"
VOLATILE = (SERVER, SERVER_TAG, ACTION, EVENT, ALLOCATION, CONSUMER)
EVERY = 1 if os.environ.get("NUBILA_EVERY_POINT") else 23
_PORTS = sa.select(Port.table).where(Port.table.c.device_owner.like("compute:%"))


class World:
    """What all performances share: a project with an image, a network and a host."""

    def __init__(self, state: Path, url: str) -> None:
        self.cloud = TestCloud(state, database=url)
        demo = Nova(self.cloud, "demo")
        self.token, self.image = demo.token, image(self.cloud)
        self.net, _ = network(self.cloud, demo.token)
        self.cloud.settle()

        with self.cloud.cloud.store.write() as tx:  # plays take longer than a host may be silent
            tx.execute(sa.update(hosts.TABLE).values(seen=time.time() + 1e6))

    def with_store(self, store: Store) -> Cloud:
        return dataclasses.replace(self.cloud.cloud, store=store)

    def call(self, store: Store, method: str, path: str, body: Any = None) -> int:
        """One request of the user; a death in it goes through."""
        edge = Edge(self.with_store(store), authenticate)
        headers = {
            "x-auth-token": self.token,
            "content-type": "application/json",
            "openstack-api-version": "compute 2.100",
        }
        data = b"" if body is None else msgspec.json.encode(body)
        status = call_app(edge, method, f"/compute/v2.1{path}", body=data, headers=headers).status
        assert status < 500, (method, path, status)
        return status


def servers(store: Store) -> list[dict[str, Any]]:
    with store.read() as reader:
        return reader.all(sa.select(SERVER).where(SERVER.c.deleted.is_(False)))


def drivers(scene: Scene) -> Drivers:
    root = scene.dir / HOST
    root.mkdir(exist_ok=True)
    place = HostPlace(cloud="test", host=HOST, root=root, bridges={"physnet1": "br-ex"})
    wires = SimulatedNetwork(place)
    wires.start()
    return Drivers(scene.watch(SimulatedHypervisor(place)), scene.watch(wires))


def start(world: World, scene: Scene, store: Store) -> Cast:
    """A controller and an agent, as they are after a start."""
    cloud = world.with_store(store)
    engines = drivers(scene)

    def waits_for(spec: GuestSpec) -> str:
        missing = {n.port_id for n in spec.nics} - set(engines.network.ports())
        return f"waiting for {min(missing)}" if missing and spec.power == "on" else ""

    def host_side(kind: str) -> Callable[[Store, Item], None]:
        item_kind = next(s.host_items[kind] for s in cloud.services if kind in s.host_items)

        def run(store: Store, item: Item) -> None:
            with store.read() as reader:
                spec = msgspec.to_builtins(item_kind.describe(cloud, reader, item.id, HOST))
            one = {"kind": kind, "id": item.id, "spec": spec, "tries": item.tries}
            outcome = apply(engines, one, waits_for)
            with store.write(item) as tx:
                note = str(outcome.get("note") or "")
                if outcome.get("observed") is not None:
                    note = item_kind.observe(cloud, tx, item.id, HOST, outcome["observed"]) or note
                if outcome.get("gone"):
                    tx.drop()
                else:
                    tx.settle(note, again=outcome.get("again_s"), failed=bool(outcome.get("failed")))

        return run

    kinds = [k for s in cloud.services for k in s.host_items if k != "query"]
    return {"": reconcilers(cloud), HOST: {k: host_side(k) for k in kinds}}


def judge(world: World, scene: Scene) -> list[str]:
    """Database, host, ports, claims and quota say the same."""
    complaints: list[str] = []
    store = scene.store
    here = drivers(Scene(store, scene.dir))
    assert here.hypervisor is not None
    guests = {g.id: g for g in here.hypervisor.list()}
    found = servers(store)
    with store.read() as reader:
        ports = {p["id"]: p for p in reader.all(_PORTS)}
        held = {c for (c,) in reader.rows(sa.select(ALLOCATION.c.consumer_id).distinct())}
        usage = quota.usage(reader, found[0]["project_id"]) if found else None
    for s in found:
        if views.task_state(s) is not None:
            complaints.append(f"{s['id']} is still {views.task_state(s)}")
        guest = guests.pop(s["id"], None)
        if guest is None:
            complaints.append(f"{s['id']} is {views.status(s)} and not on the host")
            continue
        if (guest.power == "on") is not (s["power_state"] == views.RUNNING) or guest.boots != s["boots"]:
            complaints.append(
                f"{s['id']}: host says {guest.power}/{guest.boots}, database {s['power_state']}/{s['boots']}"
            )
        mine = {i for i, p in ports.items() if p["device_id"] == s["id"]}
        if set(guest.nics) != mine or {n["port_id"] for n in s["nics"]} != mine:
            complaints.append(f"{s['id']} has ports {sorted(mine)}, its guest {sorted(guest.nics)}")
        held.discard(s["id"])
    complaints += [f"orphan guest {id}" for id in guests]
    ids = {s["id"] for s in found}
    complaints += [f"orphan port {i}" for i, p in ports.items() if p["device_id"] not in ids]
    complaints += [f"port {i} is {p['status']}" for i, p in ports.items() if p["status"] != "ACTIVE"]
    complaints += [f"orphan claim of {c}" for c in held]
    complaints += [f"orphan wire {p}" for p in here.network.ports() if p not in ports]
    if usage is not None and usage.get(quotas.PREFIX + "instances") != len(found):
        complaints.append(f"quota says {usage} for {len(found)} servers")
    with store.read() as reader:
        open_events = reader.scalar(sa.select(sa.func.count()).where(EVENT.c.finish_time.is_(None)))
    if open_events:
        complaints.append(f"{open_events} events have no end")
    return complaints


def change(store: Store, **values: Any) -> None:
    """Another user's wish, as the API writes it."""
    with store.write() as tx:
        for s in tx.all(sa.select(SERVER).where(SERVER.c.deleted.is_(False))):
            more = {"boots": s["boots"] + 1} if values.get("hard") else {}
            rows.change(tx, s, **values, **more)
            tx.ask("server", s["id"])
            if s["host"]:
                tx.ask("guest", s["id"], s["host"])


INTRUDERS: dict[str, Callable[[Store], None]] = {
    "deleter": lambda store: change(store, want="gone"),
    "rebooter": lambda store: change(store, hard=True, power="on"),
    "stopper": lambda store: change(store, power="off"),
}


def play(world: World) -> Play:
    """Create with a port, stop, start, reboot, plug another port, delete."""

    def create(scene: Scene) -> None:
        nics = [{"uuid": world.net}]
        body = {"name": "hero", "imageRef": world.image, "flavorRef": "42", "networks": nics}
        world.call(scene.store, "POST", "/servers", {"server": body})

    def act(action: dict[str, Any]) -> Callable[[Scene], None]:
        def step(scene: Scene) -> None:
            for s in servers(scene.store):
                world.call(scene.store, "POST", f"/servers/{s['id']}/action", action)

        return step

    def attach(scene: Scene) -> None:
        for s in servers(scene.store):
            body = {"interfaceAttachment": {"net_id": world.net}}
            world.call(scene.store, "POST", f"/servers/{s['id']}/os-interface", body)

    def delete(scene: Scene) -> None:
        for s in servers(scene.store):
            world.call(scene.store, "DELETE", f"/servers/{s['id']}")

    def setup(scene: Scene) -> None:
        """A play that ended early leaves its server's ports behind, which are in tables that are kept."""
        cloud = world.with_store(scene.store)
        with scene.store.write() as tx:
            for port in tx.all(_PORTS):
                plug.delete_port(cloud, tx, port["id"])

    keep = {t.name for t in METADATA.tables.values()} - {t.name for t in (*VOLATILE, *quota.TABLES)}
    return Play(
        tables=METADATA,
        start=lambda scene, store: start(world, scene, store),
        steps=(
            create, act({"os-stop": None}), act({"os-start": None}), act({"reboot": {"type": "HARD"}}), attach, delete,
        ),
        judge=lambda scene: judge(world, scene),
        intruders=INTRUDERS,
        stalls=lambda shard: shard == "",  # a host has one agent, by a lock
        setup=setup,
        keep=keep,
    )  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("accident", ["die", "deleter", "rebooter", "stopper", "stall"])
def test_a_server_survives(accident: str, database_url: str, tmp_path: Path) -> None:
    world = World(tmp_path / "cloud", database_url)
    theatre = Theatre(play(world), database_url)
    try:
        report = theatre.perform(accident, every=EVERY if database_url.startswith("sqlite") else EVERY * 7)
    finally:
        theatre.close()
        world.cloud.close()
    assert not report.failures, str(report)
    assert report.points > 200


def test_without_accident(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/db"
    world = World(tmp_path / "cloud", url)
    theatre = Theatre(play(world), url)
    points, complaints = theatre.rehearse()
    theatre.close()
    world.cloud.close()
    assert complaints == []
    for some in ("before SimulatedHypervisor.ensure", "after SimulatedNetwork.ensure_port"):
        assert some in points
