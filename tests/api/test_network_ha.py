"""Highly available routers in the API: the ha attribute, hidden networks, hosts, states, operators' moves."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from nubila.services.network import ha_lease
from nubila.services.network.ha_tables import HA_HOST
from nubila.testing.cloud import Response, TestCloud

RULE = "/network/v2.0"
HOSTS_OF = sa.select(HA_HOST.c.host).where(HA_HOST.c.router_id == sa.bindparam("router"))


class Play:
    """A cloud with four simulated hosts."""

    def __init__(self, cloud: TestCloud) -> None:
        self.test = cloud

    def call(self, method: str, path: str, body: Any = None, user: str = "admin", status: int | None = None) -> Any:
        got = self.test.request(method, f"{RULE}/{path}", body, token=self.test.token(user))
        assert got.status == (status or {"POST": 201, "DELETE": 204}.get(method, 200)), got.body
        self.test.settle()
        return got.json if got.body else None

    def router(self, user: str = "admin", **values: Any) -> dict[str, Any]:
        found: dict[str, Any] = self.call("POST", "routers", {"router": {"name": "r", **values}}, user)["router"]
        return found

    def project(self, name: str) -> str:
        return str(self.test.request("GET", f"/v3/projects?name={name}").json["projects"][0]["id"])

    def make(self, project: str) -> Response:
        """A highly available router of a project, nobody having had to do anything about it yet."""
        body = {"router": {"name": "r", "ha": True, "project_id": project}}
        return self.test.request("POST", f"{RULE}/routers", body)

    def states(self, router: str) -> dict[str, str]:
        return {a["host"]: a["ha_state"] for a in self.call("GET", f"routers/{router}/l3-agents")["agents"]}

    def ports(self, router: str) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self.call("GET", f"ports?device_id={router}")["ports"]
        return found

    def ha_networks(self, user: str = "admin") -> list[dict[str, Any]]:
        return [n for n in self.call("GET", "networks", user=user)["networks"] if n["name"].startswith("HA network")]

    def spec(self, router: str, host: str) -> Any:
        agent = next(a for a in self.test.agents if a.place.host == host)
        return agent.drivers.network.router(router)  # type: ignore[attr-defined]


@pytest.fixture
def play(tmp_path: Path) -> Iterator[Play]:
    cloud = TestCloud(tmp_path, hosts=4)
    yield Play(cloud)
    cloud.close()


@pytest.mark.req("C/L3HA-20", "C/L3HA-21", "C/L3HA-23", "C/L3HA-24", "C/L3HA-25", "C/L3HA-33")
def test_an_ha_router_has_a_hidden_network_and_a_port_per_host(play: Play) -> None:
    owner = play.test.request("GET", "/v3/projects?name=demo").json["projects"][0]["id"]
    first = play.router(ha=True, project_id=owner)
    assert first["ha"] is True
    (net,) = play.ha_networks()
    assert (net["name"], net["project_id"]) == (f"HA network tenant {owner}", "")
    assert play.ha_networks("demo") == []
    subnet = play.call("GET", f"subnets/{net['subnets'][0]}")["subnet"]
    assert (subnet["cidr"], subnet["enable_dhcp"], subnet["gateway_ip"]) == ("169.254.192.0/18", False, None)
    states = play.states(first["id"])
    assert sorted(states.values()) == ["active", "standby", "standby"]
    ports = play.ports(first["id"])
    assert {p["name"] for p in ports} == {f"HA port tenant {owner}"}
    assert {p["binding:host_id"] for p in ports} == set(states)
    addresses = sorted(p["fixed_ips"][0]["ip_address"] for p in ports)
    assert addresses == ["169.254.192.1", "169.254.192.2", "169.254.192.3"]
    assert {p["device_owner"] for p in ports} == {"network:router_ha_interface"}
    assert play.call("GET", f"ports?device_id={first['id']}", user="demo")["ports"] == []
    shown = play.call("GET", f"routers/{first['id']}", user="demo")["router"]
    assert "ha" not in shown
    second = play.router(ha=True, project_id=owner)
    assert len(play.ha_networks()) == 1
    vrids = {play.spec(r, h).ha.vrid for r in (first["id"], second["id"]) for h in play.states(r)}
    assert vrids == {1, 2}
    play.call("DELETE", f"routers/{first['id']}")
    assert [n["id"] for n in play.ha_networks()] == [net["id"]]
    play.call("DELETE", f"routers/{second['id']}")
    assert play.ha_networks() == []
    assert play.ports(first["id"]) == []


def test_every_host_gets_its_part(play: Play) -> None:
    net = play.call("POST", "networks", {"network": {}})["network"]["id"]
    body = {"network_id": net, "ip_version": 4, "cidr": "10.0.0.0/24"}
    subnet = play.call("POST", "subnets", {"subnet": body})["subnet"]["id"]
    outside = play.call("GET", "networks?router:external=true")["networks"][0]["id"]
    router = play.router(ha=True, external_gateway_info={"network_id": outside})["id"]
    play.call("PUT", f"routers/{router}/add_router_interface", {"subnet_id": subnet})
    states = play.states(router)
    specs = {host: play.spec(router, host) for host in states}
    assert len({spec.ha.port.port_id for spec in specs.values()}) == 3
    for host, spec in specs.items():
        assert {peer.host for peer in spec.ha.peers} == set(states) - {host}
        assert (len(spec.interfaces), spec.gateway is not None) == (1, True)
        assert spec.ha.vip == "169.254.0.1/24"
    active = next(host for host, state in states.items() if state == "active")
    bound = {p["binding:host_id"] for p in play.ports(router) if not p["name"].startswith("HA port")}
    assert bound == {active}
    assert {p["status"] for p in play.ports(router)} == {"ACTIVE"}


@pytest.mark.req("C/L3HA-20")
def test_only_administrators_choose(play: Play) -> None:
    body = {"router": {"name": "r", "ha": True}}
    play.call("POST", "routers", body, "demo", status=403)
    mine = play.router("demo")
    play.call("PUT", f"routers/{mine['id']}", {"router": {"ha": True}}, "demo", status=403)


def test_such_a_router_has_one_gateway(play: Play) -> None:
    outside = play.call("GET", "networks?router:external=true")["networks"][0]["id"]
    two = {"router": {"external_gateways": [{"network_id": outside}, {"network_id": outside}]}}
    router = play.router(ha=True)["id"]
    for action in ("add", "update"):
        refused = play.call("PUT", f"routers/{router}/{action}_external_gateways", two, status=400)
        assert "one external gateway" in refused["NeutronError"]["message"]
    one = {"router": {"external_gateways": [{"network_id": outside}]}}
    play.call("PUT", f"routers/{router}/add_external_gateways", one)
    play.call("PUT", f"routers/{router}/add_external_gateways", one, status=400)
    assert len(play.call("GET", f"routers/{router}")["router"]["external_gateways"]) == 1
    plain = play.router(ha=False, admin_state_up=False)["id"]
    play.call("PUT", f"routers/{plain}/add_external_gateways", two)
    play.call("PUT", f"routers/{plain}", {"router": {"ha": True}}, status=400)


def test_a_router_changes_kind_only_while_it_is_off(play: Play) -> None:
    router = play.router(ha=False)["id"]
    refused = play.call("PUT", f"routers/{router}", {"router": {"ha": True}}, status=400)
    assert "admin_state_up" in refused["NeutronError"]["message"]
    play.call("PUT", f"routers/{router}", {"router": {"admin_state_up": False}})
    assert play.call("PUT", f"routers/{router}", {"router": {"ha": True}})["router"]["ha"] is True
    assert len(play.states(router)) == 3
    play.call("PUT", f"routers/{router}", {"router": {"admin_state_up": True}})
    assert sorted(play.states(router).values()) == ["active", "standby", "standby"]
    play.call("PUT", f"routers/{router}", {"router": {"ha": False}}, status=400)
    play.call("PUT", f"routers/{router}", {"router": {"admin_state_up": False}})
    play.call("PUT", f"routers/{router}", {"router": {"ha": False, "admin_state_up": True}})
    assert play.ha_networks() == []


@pytest.mark.req("C/L3HA-05")
def test_a_router_is_not_distributed_as_well(play: Play) -> None:
    body = {"router": {"name": "r", "ha": True, "distributed": True}}
    refused = play.call("POST", "routers", body, status=400)
    assert "choose one" in refused["NeutronError"]["message"]


def test_operators_add_and_remove_hosts(play: Play) -> None:
    router = play.router(ha=True)["id"]
    agents = {a["host"]: a["id"] for a in play.call("GET", "agents?agent_type=L3 agent")["agents"]}
    states = play.states(router)
    free = next(host for host in agents if host not in states)
    refused = play.call("POST", f"agents/{agents[free]}/l3-routers", {"router_id": router}, status=409)
    assert "most a router may be on" in refused["NeutronError"]["message"]
    active = next(host for host, state in states.items() if state == "active")
    play.call("DELETE", f"agents/{agents[active]}/l3-routers/{router}")
    after = play.states(router)
    assert active not in after
    assert sorted(after.values()).count("active") == 1
    assert router not in {r["id"] for r in play.call("GET", f"agents/{agents[active]}/l3-routers")["routers"]}
    for host in after:
        assert router in {r["id"] for r in play.call("GET", f"agents/{agents[host]}/l3-routers")["routers"]}


def test_too_few_hosts_are_refused(tmp_path: Path) -> None:
    cloud = TestCloud(tmp_path, hosts=1, min_l3_agents_per_router=2, l3_ha=True)
    refused = Play(cloud).call("POST", "routers", {"router": {"name": "r"}}, status=409)
    assert refused["NeutronError"]["type"] == "HANotEnoughAvailableAgents"
    assert "available 1: start another network host" in refused["NeutronError"]["message"]
    cloud.close()


@pytest.mark.req("C/L3HA-11", "C/L3HA-44")
def test_configured_routers_are_ha_and_active_at_once(tmp_path: Path) -> None:
    cloud = TestCloud(tmp_path, hosts=3, l3_ha=True, max_l3_agents_per_router=2)
    play = Play(cloud)
    made = play.router("demo")
    assert (made["status"], made["admin_state_up"]) == ("ACTIVE", True)
    assert len(play.states(made["id"])) == 2
    assert "l3-ha" in {e["alias"] for e in play.call("GET", "extensions")["extensions"]}
    cloud.close()


@pytest.mark.req("C/L3HA-02")
def test_routers_are_spread_over_their_hosts(tmp_path: Path) -> None:
    cloud = TestCloud(tmp_path, hosts=3)
    play = Play(cloud)
    play.call("PUT", f"quotas/{play.project('admin')}", {"quota": {"router": -1}})
    routers = [play.router(ha=True)["id"] for _ in range(20)]
    states = [play.states(router) for router in routers]
    assert all(sorted(found.values()) == ["active", "standby", "standby"] for found in states)
    active = Counter(host for found in states for host, state in found.items() if state == "active")
    assert sorted(active.values()) == [6, 7, 7]
    cloud.close()


def test_a_project_has_as_many_as_there_are_vrrp_ids(tmp_path: Path) -> None:
    cloud = TestCloud(tmp_path, hosts=1)
    play = Play(cloud)
    owners = {name: play.project(name) for name in ("admin", "demo")}
    for owner in owners.values():
        play.call("PUT", f"quotas/{owner}", {"quota": {"router": -1, "port": -1}})
    made = [play.make(owners["demo"]) for _ in range(254)]
    assert {got.status for got in made} == {201}
    ids = [got.json["router"]["id"] for got in made]
    refused = play.make(owners["demo"])
    assert refused.status == 409
    assert refused.json["NeutronError"]["type"] == "NoVRIDAvailable"
    assert "at most 254" in refused.json["NeutronError"]["message"]
    listed = play.call("GET", f"routers?project_id={owners['demo']}&fields=id")["routers"]
    assert len(listed) == 254, "nothing is left of the one that was refused"
    cloud.settle()
    vips = {play.spec(id, "host1").ha.vip for id in ids}
    assert vips == {f"169.254.0.{n}/24" for n in range(1, 255)}, "each its own, and none a broadcast address"
    assert play.make(owners["admin"]).status == 201, "another project has a network of its own"
    number = play.spec(ids[7], "host1").ha.vrid
    play.call("DELETE", f"routers/{ids[7]}")
    again = play.make(owners["demo"])
    assert again.status == 201
    cloud.settle()
    assert play.spec(again.json["router"]["id"], "host1").ha.vrid == number
    cloud.close()


def test_a_host_counts_once_it_has_claimed(play: Play) -> None:
    """Until then its promise is not needed: it is not even built, and nobody could take over there."""
    project = play.project("demo")
    router, store = play.make(project).json["router"]["id"], play.test.cloud.store
    with store.read() as reader:
        first, second, *_ = sorted(host for (host,) in reader.rows(HOSTS_OF, {"router": router}))

    def claim(host: str, seq: int) -> dict[str, Any]:
        asked = {router: {"want": True, "fit": True, "seq": seq}}
        return store.transact(lambda tx: ha_lease.claims(play.test.cloud, tx, host, asked))[router]

    assert claim(first, 1)["members"] == (first,)
    assert claim(second, 1)["members"] == (first, second)
    assert claim(first, 2)["members"] == (first, second)
