"""Lives of real resources for the nets: the real services, edge and agents in one process, simulated drivers watched.

A ``World`` is a cloud on one database, prepared once; its life is a list of users' requests. The state before each of
them is kept (rows and hosts' directories), so that a play is one request and a last one that ends the life: accidents
are struck in the first, at every statement, commit and driver call, through API, controller, host API and agent.
"""

from __future__ import annotations

import asyncio
import contextlib
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import msgspec
import sqlalchemy as sa

from nubila.agent.apply import Drivers, sequence
from nubila.agent.loop import Agent
from nubila.apps import doctor
from nubila.apps.controller import reconcilers
from nubila.core import hosts
from nubila.core.cloud import Nap
from nubila.core.db import Store, core_meta
from nubila.core.declare import METADATA
from nubila.core.ports import HostPlace
from nubila.core.sql import Busy
from nubila.drivers.simulated_hypervisor import SimulatedHypervisor
from nubila.drivers.simulated_network import SimulatedNetwork
from nubila.edge.app import Edge
from nubila.services.identity.auth import authenticate
from nubila.testing.cloud import DirectApi, Response, TestCloud, call_app
from nubila.testing.crashpoints import Cast, Play, Scene, Theatre

HOSTS = ("host1", "host2")
FOR_EVER = 4e9  # hosts' last report: they stay alive however long the tests take
Ask = Callable[..., Response]
Notes = dict[str, Any]


@dataclass
class Life:
    """What happens to one thing. Each step gets ``ask(method, url, json)`` and the notes, where ids are kept.

    The notes begin with the ids of an image, a flavor, a network with a subnet behind a router, and the external
    network; `prepare` may add to them. `judge` looks at everything as a user and compares with the notes: "said" counts
    the requests that were answered with success, "tried" all of them, intruders' included.
    """

    steps: Sequence[tuple[str, Callable[[Ask, Notes], None]]]
    end: Callable[[Ask, Notes], None]
    intruders: Mapping[str, Callable[[Ask, Notes], None]]
    judge: Callable[[World, Ask, Notes], list[str]]
    prepare: Callable[[Ask, Notes], None] = lambda ask, notes: None
    settings: Mapping[str, Any] = field(default_factory=dict)


def tell(ask: Ask, notes: Notes, what: str, method: str, url: str, json: Any = None) -> Response:
    """One request that is to change something: counted as tried, and as said when the answer is a success."""
    notes["tried"][what] += 1
    got = ask(method, url, json)
    if got.status < 300:
        notes["said"][what] += 1
    return got


@dataclass
class _Moment:
    """Everything at rest before one step."""

    rows: dict[str, dict[Any, dict[str, Any]]]
    directory: Path
    notes: Notes


class World:
    """A prepared cloud and the moments of a life in it."""

    def __init__(self, url: str, directory: Path, life: Life) -> None:
        self.url, self.life = url, life
        self._dir = directory
        settings = {"token_ttl_s": 86400, "api_workers": 1, **life.settings}
        self._made = TestCloud(directory / "state", hosts=len(HOSTS), database=url, **settings)
        self.cloud = self._made.cloud
        self._edges: dict[int, Edge] = {}
        self._aside = ThreadPoolExecutor(1, thread_name_prefix="intruder")
        self._token = self._made.token()
        self._tables = list({t.name: t for m in (core_meta, METADATA) for t in m.sorted_tables}.values())
        self._all = {t.name: sa.select(t) for t in self._tables}
        self.moments: list[_Moment] = []
        with self.cloud.store.write() as tx:
            tx.execute(sa.update(hosts.TABLE).values(seen=FOR_EVER))
        notes: Notes = {"said": Counter(), "tried": Counter(), "rival": False, **self._basics()}
        life.prepare(self._ask_plainly, notes)
        for _, step in life.steps:
            self._keep(notes)
            step(self._ask_plainly, notes)

    def close(self) -> None:
        """Close every connection."""
        self._aside.shutdown()
        for edge in self._edges.values():
            edge.pool.shutdown(wait=False)
        self._made.close()

    def _ask_plainly(self, method: str, url: str, json: Any = None) -> Response:
        got = self._made.request(method, url, json, headers=HEADERS)
        assert got.status < 400, (method, url, got.status, got.body)
        if method != "GET":
            self._made.settle()
        return got

    def _basics(self) -> Notes:
        ask, neutron = self._ask_plainly, "/network/v2.0"
        image = {"name": "i", "disk_format": "raw", "container_format": "bare"}
        notes = {"image": ask("POST", "/image/v2/images", image).json["id"]}
        sent = {"Content-Type": "application/octet-stream"}
        url = f"/image/v2/images/{notes['image']}/file"
        assert self._made.request("PUT", url, headers=sent, body=bytes(4096)).status == 204
        flavors = ask("GET", "/compute/v2.1/flavors/detail").json["flavors"]
        notes["flavor"] = min(flavors, key=lambda f: (f["ram"], f["disk"]))["id"]
        notes["external"] = ask("GET", f"{neutron}/networks?router:external=true").json["networks"][0]["id"]
        net = notes["network"] = ask("POST", f"{neutron}/networks", {"network": {"name": "n"}}).json["network"]["id"]
        subnet = {"network_id": net, "cidr": "10.9.0.0/24", "ip_version": 4}
        notes["subnet"] = ask("POST", f"{neutron}/subnets", {"subnet": subnet}).json["subnet"]["id"]
        router = {"external_gateway_info": {"network_id": notes["external"]}}
        notes["router"] = ask("POST", f"{neutron}/routers", {"router": router}).json["router"]["id"]
        ask("PUT", f"{neutron}/routers/{notes['router']}/add_router_interface", {"subnet_id": notes["subnet"]})
        return notes

    def _keep(self, notes: Notes) -> None:
        self._made.settle()
        kept = self._dir / f"moment{len(self.moments)}"
        shutil.copytree(self._made.state / "hosts", kept)
        self.moments.append(_Moment(self._rows(self.cloud.store), kept, _copy(notes)))

    # --- rows -----------------------------------------------------------------------------------------------------

    def _rows(self, store: Store) -> dict[str, dict[Any, dict[str, Any]]]:
        with store.read() as r:
            return {
                t.name: {tuple(row[c.name] for c in t.primary_key): row for row in r.all(self._all[t.name])}
                for t in self._tables
            }

    def restore(self, store: Store, moment: _Moment) -> None:
        """Make all rows be what they were; only what differs is touched, children before parents."""
        now = self._rows(store)
        with store.write() as tx:
            for table in reversed(self._tables):
                for pk in now[table.name].keys() - moment.rows[table.name].keys():
                    tx.execute(sa.delete(table).where(_key(table)), _params(table, pk))
            for table in self._tables:
                have = now[table.name]
                for pk, row in moment.rows[table.name].items():
                    if pk not in have:
                        tx.insert(table, row)
                    elif have[pk] != row:
                        tx.execute(sa.update(table).where(_key(table)).values(**row), _params(table, pk))

    # --- processes ------------------------------------------------------------------------------------------------

    def edge(self, store: Store) -> Edge:
        """An API server on that store (without anything remembered from before)."""
        found = self._edges.get(id(store))
        if found is None or found.cloud.store is not store:
            cloud = replace(self.cloud, store=store, memory={}, waiters=_Nobody())
            found = self._edges[id(store)] = Edge(cloud, authenticate)
        return found

    def ask(self, store: Store) -> Ask:
        """Requests of the administrator through the edge on that store."""

        def ask(method: str, url: str, json: Any = None) -> Response:
            sent = {"X-Auth-Token": self._token, **HEADERS}
            data = b""
            if json is not None:
                sent["Content-Type"], data = "application/json", msgspec.json.encode(json)
            return call_app(self.edge(store), method, url, body=data, headers=sent)

        return ask

    def _agents(self, scene: Scene, *, greet: bool) -> list[Agent]:
        out = []
        for number, name in enumerate(HOSTS, 1):
            place = self.place(scene.dir, name, number)
            drivers = Drivers(scene.watch(SimulatedHypervisor(place)), scene.watch(SimulatedNetwork(place)))
            agent = Agent(DirectApi(self.edge(scene.store), name), place, drivers, roles=["compute", "network"])
            agent.drivers.network.start()
            agent._wired = set(agent.drivers.network.ports())
            if greet:
                agent._greet()
            out.append(agent)
        return out

    def place(self, root: Path, name: str, number: int) -> HostPlace:
        """Where a host of the world lives."""
        return HostPlace(
            cloud=self.cloud.name, host=name, root=root / name, bridges={"physnet1": "br-ex"},
            tunnel_ip=f"127.0.1.{number}",
        )  # fmt: skip

    def start(self, scene: Scene, store: Store) -> Cast:
        """Controllers, and unless it is the second process the agents; a new agent says hello."""
        cast: dict[str, Any] = {"": reconcilers(self.edge(store).cloud)}
        if store is scene.store:
            if "agents" not in scene.memory:
                scene.memory["agents"] = self._agents(scene, greet=True)
            for agent in scene.memory["agents"]:
                cast[agent.place.host] = lambda agent=agent: _turn(agent)
        else:
            cast |= {name: {} for name in HOSTS}
        return cast

    # --- plays ----------------------------------------------------------------------------------------------------

    def play(self, number: int) -> Play:
        """One step of the life, then its end."""
        moment = self.moments[number]
        _, step = self.life.steps[number]

        def setup(scene: Scene) -> None:
            self.restore(scene.store, moment)
            shutil.copytree(moment.directory, scene.dir, dirs_exist_ok=True)
            scene.notes.update(_copy(moment.notes))
            scene.memory["agents"] = self._agents(scene, greet=False)
            self._notes = scene.notes

        def request(what: Callable[[Ask, Notes], None]) -> Callable[[Scene], None]:
            return lambda scene: what(self.ask(scene.store), scene.notes)

        return Play(
            tables=METADATA,
            start=self.start,
            steps=(request(step), request(self.life.end)),
            judge=self.judge,
            intruders={name: self._intruder(act) for name, act in self.life.intruders.items()},
            stalls=lambda shard: shard == "",
            setup=setup,
            keep={t.name for t in self._tables},
            struck=1,
        )

    def _intruder(self, act: Callable[[Ask, Notes], None]) -> Callable[[Store], None]:
        """Another user, in a thread of its own: the first one may be in the middle of an event loop."""

        def go(store: Store) -> None:
            if store.embedded:
                with store.write():  # somebody writes: every request would wait for it
                    pass
            plain = self.ask(store)

            def ask(method: str, url: str, json: Any = None) -> Response:
                got = plain(method, url, json)
                if got.status == 503:
                    raise Busy("the database is busy")
                assert got.status < 500, (method, url, got.status, got.body)
                return got

            notes = _copy(self._notes)
            self._aside.submit(act, ask, notes).result(60)
            self._notes.update(notes)

        return go

    def judge(self, scene: Scene) -> list[str]:
        """Rows, hosts, and what users see."""
        bad = doctor.rows(self.cloud)
        for number, name in enumerate(HOSTS, 1):
            place = self.place(scene.dir, name, number)
            bad += doctor.host_agrees(self.cloud, name, Drivers(SimulatedHypervisor(place), SimulatedNetwork(place)))
        return bad + self.life.judge(self, self.ask(self.cloud.store), scene.notes)


HEADERS = {"OpenStack-API-Version": "compute 2.90"}


class _Nobody:
    @contextlib.contextmanager
    def listening(self, shard: str) -> Iterator[Nap]:
        yield lambda timeout_s: asyncio.sleep(0)


def _turn(agent: Agent) -> bool:
    """One take of an agent, as its loop does it: everything applied, in order, then reported."""
    items = agent.api.take(32, 0.0, [])
    if items:
        agent.api.settle([agent._do(item) for item in sequence(items)])
    return bool(items)


def _copy(notes: Notes) -> Notes:
    return {k: v.copy() if isinstance(v, Counter | dict | list) else v for k, v in notes.items()}


def _key(table: sa.Table) -> sa.ColumnElement[bool]:
    return sa.and_(*(c == sa.bindparam(f"k_{c.name}") for c in table.primary_key))


def _params(table: sa.Table, pk: Sequence[Any]) -> dict[str, Any]:
    return {f"k_{c.name}": value for c, value in zip(table.primary_key, pk, strict=True)}


def survives(life: Life, url: str, directory: Path, *, every: int) -> list[str]:
    """Every accident in every step, at each `every`-th point; returns a line for each step, raises with complaints."""
    world = World(url, directory, life)
    lines, wrong = [], []
    try:
        for number, (name, _) in enumerate(life.steps):
            theatre = Theatre(world.play(number), url)
            try:
                for turn, accident in enumerate(("die", *life.intruders, "stall")):
                    report = theatre.perform(accident, every=every, first=(number + turn) % every)
                    lines.append(f"{name}, {report}")
                    wrong += [lines[-1]] if report.failures else []
            finally:
                theatre.close()
    finally:
        world.close()
    assert not wrong, "\n".join(wrong)
    return lines


def failures_of(life: Life, step: str, accident: str, plant: Callable[[], None], directory: Path) -> list[Any]:
    """What the net finds in one step of a life in which a bug has been planted: nothing when it has a hole.

    Looks at every fifth point, from five beginnings, until something is found. Raises AssertionError for a bug so gross
    that it needs no accident.
    """
    url = f"sqlite:///{directory}/db"
    world = World(url, directory, life)
    theatre = Theatre(world.play([name for name, _ in life.steps].index(step)), url)
    try:
        plant()
        for first in range(5):
            found = theatre.perform(accident, every=5, first=first).failures
            if found:
                return list(found)
        return []
    finally:
        theatre.close()
        world.close()
