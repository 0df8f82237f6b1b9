"""A whole cloud in one process, with simulated drivers and no sleeping: for tests.

``request`` goes through the whole edge; ``settle`` runs controller and agents until nothing is due. The database may
be any of the three; hosts are simulated ones unless drivers are given.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlencode, urlsplit

import msgspec

from nubila.agent.apply import Drivers, sequence
from nubila.agent.client import HostApi, Refused, Unreachable
from nubila.agent.loop import Agent
from nubila.apps import wiring
from nubila.apps.controller import reconcilers, sweep
from nubila.core import work
from nubila.core.cloud import Nap
from nubila.core.ports import HostPlace
from nubila.core.reconcile import run_until_quiet
from nubila.edge.app import Edge
from nubila.services.identity.auth import authenticate


@dataclass
class Response:
    """An answer of the edge."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        """The decoded body."""
        return msgspec.json.decode(self.body)


def call_app(
    app: Any,
    method: str,
    url: str,
    *,
    body: bytes = b"",
    headers: Mapping[str, str] | None = None,
    peer: str | None = None,
    client: str = "127.0.0.1",
    client_cert: bytes | None = None,
) -> Response:
    """One request through an ASGI application, without a network; ``client_cert`` is DER."""
    parts = urlsplit(url)
    all_headers = {"host": "127.0.0.1:5000", **{k.lower(): v for k, v in (headers or {}).items()}}
    if body or method in ("POST", "PUT", "PATCH"):
        all_headers.setdefault("content-length", str(len(body)))
    scope: dict[str, Any] = {
        "type": "http", "method": method, "path": parts.path, "raw_path": parts.path.encode(), "scheme": "http",
        "query_string": parts.query.encode(), "client": (client, 1), "http_version": "1.1",
        "headers": [(k.encode(), v.encode()) for k, v in all_headers.items()],
    }  # fmt: skip
    if peer is not None:
        scope["nubila.peer"] = peer
    if client_cert is not None:
        scope["nubila.client_cert"] = client_cert
    sent: list[dict[str, Any]] = []

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    asyncio.run(app(scope, receive, send))
    found = {k.decode().lower(): v.decode() for k, v in sent[0]["headers"]}
    return Response(sent[0]["status"], found, b"".join(m.get("body", b"") for m in sent[1:]))


class _NoWaiting:
    @contextlib.contextmanager
    def listening(self, shard: str) -> Iterator[Nap]:
        yield lambda timeout_s: asyncio.sleep(0)


class DirectApi(HostApi):
    """The host API without a network."""

    def __init__(self, edge: Edge, host: str) -> None:
        super().__init__("unix:/nowhere", host)
        self._edge = edge

    def call(self, method: str, path: str, body: Any = None) -> Any:
        data = b"" if body is None else msgspec.json.encode(body)
        got = call_app(self._edge, method, "/host" + path, body=data, headers={"x-nubila-host": self.host}, peer="unix")
        if got.status >= 500:
            raise Unreachable(f"HTTP {got.status}: {got.body[:500]!r}")
        if got.status >= 400:
            raise Refused(got.status, got.body.decode())
        return got.json if got.body else None

    def download(self, path: str, into: Path) -> None:
        got = call_app(self._edge, "GET", "/host" + path, headers={"x-nubila-host": self.host}, peer="unix")
        if got.status != 200:
            raise Refused(got.status, got.body.decode())
        into.write_bytes(got.body)


def simulated(place: HostPlace) -> Drivers:
    """The simulated gear's drivers."""
    from nubila.drivers.simulated_hypervisor import SimulatedHypervisor
    from nubila.drivers.simulated_network import SimulatedNetwork

    return Drivers(SimulatedHypervisor(place), SimulatedNetwork(place))


class TestCloud:
    """A cloud with ``hosts`` simulated hosts. ``tokens`` are made on demand and kept."""

    __test__ = False

    def __init__(
        self, state: Path, *, hosts: int = 1, database: str = "", make: Callable[[HostPlace], Drivers] = simulated,
        **settings: Any,
    ) -> None:  # fmt: skip
        found = replace(wiring.settings(state), bcrypt_rounds=4, **settings)
        if database:
            found = replace(found, database=database)
        self.state = state
        self.cloud = wiring.open_cloud(state, found)
        self.cloud.waiters = _NoWaiting()
        self.passwords = wiring.first_start(self.cloud) or {}
        self.edge = Edge(self.cloud, authenticate)
        self.reconcilers = reconcilers(self.cloud)
        self._tokens: dict[tuple[str, str | None], str] = {}
        self.agents: list[Agent] = []
        for i in range(1, hosts + 1):
            self.add_host(f"host{i}", make)
        self.settle()

    def add_host(
        self, name: str, make: Callable[[HostPlace], Drivers] = simulated, roles: list[str] | None = None, *,
        switch: Literal["openvswitch", "linuxbridge"] = "openvswitch", bridges: Mapping[str, str] | None = None,
    ) -> Agent:  # fmt: skip
        """Start one more agent."""
        root = self.state / "hosts" / name
        root.mkdir(parents=True, exist_ok=True)
        place = HostPlace(
            cloud=self.cloud.name, host=name, root=root,
            bridges={"physnet1": "br-ex"} if bridges is None else dict(bridges),
            tunnel_ip=f"127.0.1.{len(self.agents) + 1}", switch=switch,
        )  # fmt: skip
        agent = Agent(DirectApi(self.edge, name), place, make(place), roles=roles or ["compute", "network"])
        agent.drivers.network.start()
        agent._greet()
        self.agents.append(agent)
        return agent

    # --- users ----------------------------------------------------------------------------------------------------

    def token(self, user: str = "admin", password: str | None = None, project: str | None = None) -> str:
        """A project-scoped token of a user of the default domain (kept)."""
        key = (user, project)
        if key not in self._tokens:
            self._tokens[key] = self.login(user, password or self.passwords[user], project or user)
        return self._tokens[key]

    def login(self, user: str, password: str, project: str) -> str:
        """A fresh token."""
        body = {"auth": {
            "identity": {"methods": ["password"], "password": {
                "user": {"name": user, "domain": {"id": "default"}, "password": password}}},
            "scope": {"project": {"name": project, "domain": {"id": "default"}}},
        }}  # fmt: skip
        got = self.request("POST", "/v3/auth/tokens", body, token="")
        assert got.status == 201, got.body
        return got.headers["x-subject-token"]

    def request(
        self, method: str, url: str, json: Any = None, *, token: str | None = None,
        headers: Mapping[str, str] | None = None, body: bytes | None = None, query: Mapping[str, Any] | None = None,
        client: str = "127.0.0.1", client_cert: bytes | None = None,
    ) -> Response:  # fmt: skip
        """One request; admin's token unless another (or "") is given."""
        sent = dict(headers or {})
        token = self.token() if token is None else token
        if token:
            sent["X-Auth-Token"] = token
        data = body if body is not None else (b"" if json is None else msgspec.json.encode(json))
        if json is not None:
            sent.setdefault("Content-Type", "application/json")
        if query:
            url += "?" + urlencode(query, doseq=True)
        return call_app(self.edge, method, url, body=data, headers=sent, client=client, client_cert=client_cert)

    # --- time -----------------------------------------------------------------------------------------------------

    def step(self, agent: Agent) -> int:
        """One take of one agent, everything applied at once; returns how much there was."""
        items = agent.api.take(32, 0.0)
        for item in sequence(items):
            agent.api.settle([agent._do(item)])
        return len(items)

    def settle(self, rounds: int = 200) -> None:
        """Run controller and agents until nothing is due."""
        for _ in range(rounds):
            for agent in self.agents:
                agent.tend()
            busy = run_until_quiet(self.cloud.store, {"": self.reconcilers})
            for agent in self.agents:
                busy += self.step(agent)
            if not busy:
                return
        raise AssertionError(f"never settles: {work.pending(self.cloud.store)}")

    def sweep(self) -> None:
        """Ask for everything once, then settle."""
        sweep(self.cloud)
        for agent in self.agents:
            agent.api.sweep()
        self.settle()

    def close(self) -> None:
        """Close the database."""
        self.cloud.store.close()
