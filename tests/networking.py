"""The Networking API in few words, and the fixtures that tests of it share (conftest.py has them for everybody)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from nubila.core import work
from nubila.services.network import SERVICE, plug
from nubila.testing.cloud import Response, TestCloud

Json = dict[str, Any]


class Net:
    """Short words for requests: one user of one cloud."""

    def __init__(self, cloud: TestCloud, user: str = "demo", token: str = "") -> None:
        self.cloud, self.user, self._token = cloud, user, token

    def call(self, method: str, path: str, body: Any = None, **query: Any) -> Response:
        return self.cloud.request(
            method, f"/network/v2.0/{path}", body, token=self._token or self.cloud.token(self.user), query=query or None
        )

    def ok(self, method: str, path: str, body: Any = None, **query: Any) -> Any:
        got = self.call(method, path, body, **query)
        assert got.status < 300, (got.status, got.body)
        return got.json if got.body else None

    def make(self, item: str, items: str = "", **values: Any) -> Json:
        found: Json = self.ok("POST", items or item + "s", {item: values})[item]
        return found

    def refused(self, method: str, path: str, body: Any = None, **query: Any) -> tuple[int, str]:
        got = self.call(method, path, body, **query)
        return got.status, got.json["NeutronError"]["type"]

    def network(self, cidr: str = "10.0.0.0/24", **values: Any) -> tuple[Json, Json]:
        net = self.make("network", name="n")
        return net, self.make("subnet", network_id=net["id"], ip_version=6 if ":" in cidr else 4, cidr=cidr, **values)

    def public(self) -> Json:
        found: Json = self.ok("GET", "networks", **{"router:external": True})["networks"][0]
        return found


class Play:
    """A cloud with three hosts, ports put on them as Compute does."""

    def __init__(self, cloud: TestCloud) -> None:
        self.test, self.cloud = cloud, cloud.cloud
        self.project = self.scalar("select id from project where name = 'demo'")

    def scalar(self, sql: str) -> Any:
        with self.cloud.store.read() as r:
            return r.scalar(sa.text(sql).columns(x=sa.String))

    def post(self, items: str, item: str, user: str = "demo", **values: Any) -> dict[str, Any]:
        got = self.test.request("POST", f"/network/v2.0/{items}", {item: values}, token=self.test.token(user))
        assert got.status == 201, got.body
        found: dict[str, Any] = got.json[item]
        return found

    def put(self, path: str, body: Any, user: str = "demo") -> Any:
        got = self.test.request("PUT", f"/network/v2.0/{path}", body, token=self.test.token(user))
        assert got.status == 200, got.body
        return got.json

    def delete(self, path: str, user: str = "demo") -> None:
        got = self.test.request("DELETE", f"/network/v2.0/{path}", token=self.test.token(user))
        assert got.status == 204, got.body

    def network(self, cidr: str = "10.0.0.0/24") -> tuple[str, str]:
        net = self.post("networks", "network", name="n")["id"]
        return net, self.post("subnets", "subnet", network_id=net, ip_version=4, cidr=cidr)["id"]

    def plug(self, net: str, host: str, **more: Any) -> dict[str, Any]:
        with self.cloud.store.write() as tx:
            return plug.create_port(
                self.cloud, tx, project_id=self.project, network_id=net, fixed_ip=more.get("fixed_ip"),
                security_group_ids=more.get("groups"), device_id=more.get("device", "guest"),
                device_owner="compute:nova", host=host,
            )  # fmt: skip

    def spec(self, kind: str, id: str, host: str) -> Any:
        with self.cloud.store.read() as r:
            return SERVICE.host_items[kind].describe(self.cloud, r, id, host)

    def debts(self) -> set[tuple[str, str, str]]:
        """(kind, id, shard) of everything that waits, network kinds only."""
        with self.cloud.store.read() as r:
            rows = r.rows(sa.select(work.work.c.kind, work.work.c.id, work.work.c.shard).where(
                work.work.c.gen != work.work.c.done))  # fmt: skip
        return {(k, i, s) for k, i, s in rows if k != "server"}

    def status(self, port: str) -> str:
        got = self.test.request("GET", f"/network/v2.0/ports/{port}")
        return str(got.json["port"]["status"])


def sign_in(cloud: TestCloud, user: str, project: str, role: str = "member") -> str:
    """A token of a new user with a role in a project, which is made when there is none."""

    def ask(method: str, path: str, body: Any = None) -> Any:
        got = cloud.request(method, f"/v3/{path}", body)
        assert got.status < 300, (got.status, got.body)
        return got.json if got.body else None

    roles = ask("GET", f"roles?name={role}")["roles"]
    found = ask("GET", f"projects?name={project}")["projects"]
    home = found[0] if found else ask("POST", "projects", {"project": {"name": project}})["project"]
    made = ask("POST", "users", {"user": {"name": user, "password": "pw", "domain_id": "default"}})["user"]
    ask("PUT", f"projects/{home['id']}/users/{made['id']}/roles/{roles[0]['id']}")
    return cloud.login(user, "pw", project)


@pytest.fixture
def demo(cloud: TestCloud) -> Net:
    """A member of the project demo."""
    return Net(cloud)


@pytest.fixture
def admin(cloud: TestCloud) -> Net:
    """The administrator."""
    return Net(cloud, "admin")


@pytest.fixture
def alt(cloud: TestCloud) -> Net:
    """A member of a project that the others have nothing to do with."""
    return Net(cloud, "alt", sign_in(cloud, "alt", "alt"))


@pytest.fixture
def play(tmp_path: Path) -> Iterator[Play]:
    """A cloud with three simulated hosts."""
    made = TestCloud(tmp_path / "cloud", hosts=3)
    yield Play(made)
    made.close()
