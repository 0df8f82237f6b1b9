"""Acceptance 5: two API server processes, 64 clients, one pool: no duplicate, no leak, no spurious failure."""

from __future__ import annotations

import http.client
import json
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import yaml

from nubila.apps import lifecycle
from nubila.apps.client import Client
from nubila.testing.databases import Databases, Kind, available
from nubila.testing.started import free_port, nubila

CLIENTS = 64
TURNS = 3


@pytest.fixture(params=["sqlite", "postgresql"])
def state(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    """A cloud with two API server processes, on a database of each kind."""
    kind: Kind = request.param
    if not available(kind):
        pytest.skip(f"the programs of {kind} are not installed")
    servers, made = Databases(), tmp_path / "cloud"
    made.mkdir()
    (made / "nubila.toml").write_text("api_workers = 2\n")
    more = [] if kind == "sqlite" else ["--database", servers.fresh(kind)]
    at = ["--state", str(made)]
    try:
        up = nubila("up", "-d", *at, "--gear", "simulated", "--listen", f"127.0.0.1:{free_port()}", *more)
        assert up.returncode == 0, up.stdout + up.stderr
        lifecycle.wait(made, 60)
        yield made
    finally:
        nubila("destroy", "--yes", *at)
        servers.close()


class Connection:
    """One client: a connection that stays open, as programs that use an SDK have."""

    def __init__(self, admin: Client) -> None:
        self.where = urlsplit(admin.endpoints["network"])
        self.headers = {"X-Auth-Token": admin.token, "Content-Type": "application/json"}
        self.http = http.client.HTTPConnection(str(self.where.hostname), self.where.port, timeout=120)

    def call(self, method: str, path: str, body: Any = None) -> tuple[int, Any]:
        text = None if body is None else json.dumps(body)
        self.http.request(method, f"{self.where.path}/v2.0/{path}", text, self.headers)
        got = self.http.getresponse()
        data = got.read()
        return got.status, json.loads(data) if data else None


def crowd(admin: Client, work: Callable[[Connection, int], None]) -> list[BaseException]:
    """Let all clients do their work at once; what they raised."""
    raised: list[BaseException] = []
    start = threading.Barrier(CLIENTS)

    def run(i: int) -> None:
        try:
            mine = Connection(admin)
            start.wait(60)
            work(mine, i)
        except BaseException as e:
            raised.append(e)

    threads = [threading.Thread(target=run, args=(i,)) for i in range(CLIENTS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(300)
    return raised


def test_one_pool_and_many_clients(state: Path) -> None:
    auth = yaml.safe_load((state / "clouds.yaml").read_text())["clouds"]["nubila-admin"]["auth"]
    admin = Client(auth["auth_url"], auth["username"], auth["password"], auth["project_name"])
    one = Connection(admin)
    quota = dict.fromkeys(("port", "network", "subnet"), -1)
    assert one.call("PUT", f"quotas/{admin.project_id}", {"quota": quota})[0] == 200
    net = one.call("POST", "networks", {"network": {"name": "one"}})[1]["network"]["id"]
    wish = {"network_id": net, "ip_version": 4, "cidr": "10.7.0.0/25", "enable_dhcp": False}
    assert one.call("POST", "subnets", {"subnet": wish})[0] == 201
    room = 125  # 126 hosts less the gateway
    before = used(one, admin)

    def turns(mine: Connection, i: int) -> None:
        """Demand stays below the pool: nobody may be refused."""
        for _ in range(TURNS):
            status, made = mine.call("POST", "ports", {"port": {"network_id": net, "port_security_enabled": False}})
            assert status == 201, (status, made)
            seen.append(made["port"]["fixed_ips"][0]["ip_address"])
            assert mine.call("DELETE", f"ports/{made['port']['id']}")[0] == 204

    seen: list[str] = []
    assert crowd(admin, turns) == []
    assert len(seen) == CLIENTS * TURNS
    assert ports(one, net) == []
    assert used(one, admin) == before

    def grab(mine: Connection, i: int) -> None:
        """Demand is twice the pool: each address is given once, and the rest is refused in the right words."""
        for _ in range(4):
            status, made = mine.call("POST", "ports", {"port": {"network_id": net, "port_security_enabled": False}})
            answers[status if status != 409 else made["NeutronError"]["type"]] += 1

    answers: Counter[Any] = Counter()
    assert crowd(admin, grab) == []
    assert answers == {201: room, "IpAddressGenerationFailure": CLIENTS * 4 - room}
    found = ports(one, net)
    assert len({p["fixed_ips"][0]["ip_address"] for p in found}) == len(found) == room
    assert used(one, admin) == before + room
    doctor = nubila("doctor", "--state", str(state))
    assert doctor.returncode == 0, doctor.stdout + doctor.stderr


def ports(one: Connection, net: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = one.call("GET", f"ports?network_id={net}")[1]["ports"]
    return found


def used(one: Connection, admin: Client) -> int:
    return int(one.call("GET", f"quotas/{admin.project_id}/details.json")[1]["quota"]["port"]["used"])
