"""Agents in the Networking API: several DHCP servers per network, schedulers both ways, hosts that fall silent."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from nubila.agent.loop import Agent
from nubila.core import hosts
from nubila.core.ports import NetworkSpec
from nubila.services.network import hosting
from nubila.testing.cloud import TestCloud

Json = dict[str, Any]


class Play:
    """A cloud with three network hosts, two of which serve each network."""

    def __init__(self, cloud: TestCloud) -> None:
        self.cloud = cloud

    def call(self, method: str, path: str, body: Any = None, user: str = "admin", **query: Any) -> Any:
        got = self.cloud.request(
            method, f"/network/v2.0/{path}", body, token=self.cloud.token(user), query=query or None
        )
        return got.status, got.json if got.body else None

    def ok(self, method: str, path: str, body: Any = None, **more: Any) -> Any:
        status, found = self.call(method, path, body, **more)
        assert status < 300, (status, found)
        return found

    def refused(self, method: str, path: str, body: Any = None, **more: Any) -> tuple[int, str]:
        status, found = self.call(method, path, body, **more)
        return status, found["NeutronError"]["type"]

    def network(self, **subnet: Any) -> str:
        net: str = self.ok("POST", "networks", {"network": {"name": "n"}}, user="demo")["network"]["id"]
        made = {"network_id": net, "ip_version": 4, "cidr": "10.0.0.0/24", **subnet}
        self.ok("POST", "subnets", {"subnet": made}, user="demo")
        self.cloud.settle()
        return net

    def agents(self, **query: Any) -> list[Json]:
        found: list[Json] = self.ok("GET", "agents", **query)["agents"]
        return found

    def dhcp_agent(self, host: str) -> str:
        return str(next(a["id"] for a in self.agents(binary="neutron-dhcp-agent") if a["host"] == host))

    def served_by(self, net: str) -> list[str]:
        return sorted(a["host"] for a in self.ok("GET", f"networks/{net}/dhcp-agents")["agents"])

    def really_served_by(self, net: str) -> list[str]:
        found = []
        for agent in self.cloud.agents:
            spec: NetworkSpec | None = agent.drivers.network.network(net)  # type: ignore[attr-defined]
            if spec is not None and spec.dhcp is not None:
                found.append(agent.place.host)
        return sorted(found)

    def dhcp_ports(self, net: str) -> list[Json]:
        found: list[Json] = self.ok("GET", "ports", network_id=net, device_owner="network:dhcp")["ports"]
        return sorted(found, key=lambda p: p["binding:host_id"])

    def spec(self, net: str, host: str) -> NetworkSpec:
        with self.cloud.cloud.store.read() as reader:
            spec = hosting.describe_network(self.cloud.cloud, reader, net, host)
        assert spec is not None
        return spec

    def silence(self, host: str, seconds: float) -> Agent:
        """The host reports no more."""
        agent = next(a for a in self.cloud.agents if a.place.host == host)
        self.cloud.agents.remove(agent)
        with self.cloud.cloud.store.write() as tx:
            tx.execute(sa.update(hosts.TABLE).where(hosts.TABLE.c.name == host).values(seen=time.time() - seconds))
        return agent

    def sound(self) -> None:
        for service in self.cloud.cloud.services:
            for check in service.invariants:
                with self.cloud.cloud.store.read() as reader:
                    assert check(self.cloud.cloud, reader) == []


@pytest.fixture
def play(tmp_path: Path) -> Iterator[Play]:
    cloud = TestCloud(tmp_path / "cloud", hosts=3, dhcp_agents_per_network=2)
    yield Play(cloud)
    cloud.close()


@pytest.mark.req("B/NET-44", "C/DHCP-17")
def test_two_servers_hand_out_the_same(play: Play) -> None:
    net = play.network()
    where = play.served_by(net)
    assert len(where) == 2
    assert play.really_served_by(net) == where
    own = play.dhcp_ports(net)
    assert [p["binding:host_id"] for p in own] == where
    assert [p["status"] for p in own] == ["ACTIVE", "ACTIVE"]
    assert len({p["fixed_ips"][0]["ip_address"] for p in own}) == 2
    play.ok("POST", "ports", {"port": {"network_id": net}}, user="demo")
    first, second = (play.spec(net, host).dhcp for host in where)
    assert first is not None
    assert second is not None
    assert first.hosts == second.hosts != ()
    assert first.port_id != second.port_id
    play.sound()


@pytest.mark.req("C/AGT-20")
def test_a_silent_host_gets_a_stand_in_that_leaves_when_it_is_back(play: Play) -> None:
    net = play.network()
    before = play.served_by(net)
    own = {p["binding:host_id"]: p["fixed_ips"] for p in play.dhcp_ports(net)}
    quiet = play.silence(before[0], 60)
    play.cloud.sweep()
    assert play.served_by(net) == before, "a minute of silence is no reason"
    with play.cloud.cloud.store.write() as tx:
        tx.execute(sa.update(hosts.TABLE).where(hosts.TABLE.c.name == before[0]).values(seen=time.time() - 200))
    play.cloud.sweep()
    assert play.served_by(net) == ["host1", "host2", "host3"]
    assert {p["binding:host_id"]: p["fixed_ips"] for p in play.dhcp_ports(net)}.items() >= own.items()
    play.sound()
    play.cloud.agents.append(quiet)
    play.cloud.sweep()
    play.cloud.sweep()
    assert play.served_by(net) == before
    assert play.really_served_by(net) == before
    assert len(play.dhcp_ports(net)) == 2
    play.sound()


@pytest.mark.req("C/AGT-16", "C/AGT-17", "C/AGT-02")
def test_an_agent_of_a_host_that_is_gone_can_be_deleted(play: Play) -> None:
    net = play.network()
    gone = play.served_by(net)[0]
    id = play.dhcp_agent(gone)
    assert play.refused("DELETE", f"agents/{id}") == (409, "AgentInUse")
    agent = play.silence(gone, 60)
    assert play.refused("DELETE", f"agents/{id}", user="demo") == (404, "AgentNotFound")
    play.ok("DELETE", f"agents/{id}")
    assert play.refused("GET", f"agents/{id}") == (404, "AgentNotFound")
    assert id not in [a["id"] for a in play.agents()]
    play.cloud.settle()
    assert play.served_by(net) == sorted({"host1", "host2", "host3"} - {gone})
    assert [p["binding:host_id"] for p in play.dhcp_ports(net)] == play.served_by(net)
    play.sound()
    play.cloud.agents.append(agent)
    play.cloud.sweep()
    assert play.ok("GET", f"agents/{id}")["agent"]["alive"] is True
    assert play.really_served_by(net) == play.served_by(net)


@pytest.mark.req("C/AGT-11")
def test_a_network_that_was_taken_from_an_agent_is_not_given_back_by_itself(play: Play) -> None:
    net = play.network()
    first, second = play.served_by(net)
    (third,) = {"host1", "host2", "host3"} - {first, second}
    play.ok("DELETE", f"agents/{play.dhcp_agent(first)}/dhcp-networks/{net}")
    assert play.refused("DELETE", f"agents/{play.dhcp_agent(first)}/dhcp-networks/{net}") == (
        409, "NetworkNotHostedByDhcpAgent",
    )  # fmt: skip
    play.cloud.sweep()
    assert play.served_by(net) == sorted([second, third])
    assert play.really_served_by(net) == sorted([second, third])
    play.ok("DELETE", f"agents/{play.dhcp_agent(third)}/dhcp-networks/{net}")
    play.ok("DELETE", f"agents/{play.dhcp_agent(second)}/dhcp-networks/{net}")
    play.cloud.sweep()
    assert play.served_by(net) == play.really_served_by(net) == []
    assert play.dhcp_ports(net) == []
    play.ok("POST", f"agents/{play.dhcp_agent(third)}/dhcp-networks", {"network_id": net})
    play.cloud.sweep()
    assert play.served_by(net) == [third]
    for up in (False, True):
        play.ok("PUT", f"agents/{play.dhcp_agent(first)}", {"agent": {"admin_state_up": up}})
    play.cloud.settle()
    assert play.served_by(net) == sorted([first, third])
    play.ok("DELETE", f"agents/{play.dhcp_agent(first)}/dhcp-networks/{net}")
    play.ok("DELETE", f"networks/{net}")  # what was taken from an agent does not keep it
    play.sound()


@pytest.mark.req("C/AGT-10", "C/AGT-12")
def test_more_servers_than_usual_stay(play: Play) -> None:
    net = play.network()
    (third,) = {"host1", "host2", "host3"} - set(play.served_by(net))
    play.ok("POST", f"agents/{play.dhcp_agent(third)}/dhcp-networks", {"network_id": net})
    play.cloud.sweep()
    assert play.served_by(net) == play.really_served_by(net) == ["host1", "host2", "host3"]
    found = play.ok("GET", f"agents/{play.dhcp_agent(third)}/dhcp-networks")["networks"]
    assert [n["id"] for n in found] == [net]


def test_what_schedulers_refuse(play: Play) -> None:
    net = play.network()
    dhcp = play.dhcp_agent("host1")
    l3 = next(a["id"] for a in play.agents(binary="neutron-l3-agent"))
    nothing = "11111111-2222-3333-4444-555555555555"
    assert play.refused("POST", f"agents/{l3}/dhcp-networks", {"network_id": net}) == (404, "InvalidDHCPAgent")
    assert play.refused("POST", f"agents/{dhcp}/dhcp-networks", {"network_id": nothing}) == (404, "NetworkNotFound")
    assert play.refused("POST", f"agents/{nothing}/dhcp-networks", {"network_id": net}) == (404, "AgentNotFound")
    assert play.call("POST", f"agents/{dhcp}/dhcp-networks", {"network": net})[0] == 400
    assert play.call("POST", f"agents/{dhcp}/dhcp-networks", {"network_id": net}, user="demo")[0] == 403
    assert play.call("GET", f"agents/{dhcp}/dhcp-networks", user="demo")[0] == 403
    assert play.call("GET", f"networks/{net}/dhcp-agents", user="demo")[0] == 403
    assert play.ok("GET", f"networks/{nothing}/dhcp-agents") == {"agents": []}
    play.ok("PUT", f"agents/{dhcp}", {"agent": {"admin_state_up": False}})
    assert play.refused("POST", f"agents/{dhcp}/dhcp-networks", {"network_id": play.network()})[0] in (404, 409)


def test_lists_of_agents_are_sorted_paged_and_filtered(play: Play) -> None:
    every = play.agents(sort_key="host", sort_dir="desc")
    assert [a["host"] for a in every] == ["host3"] * 4 + ["host2"] * 4 + ["host1"] * 4
    ids = [a["id"] for a in play.agents(sort_key="id", sort_dir="asc")]
    assert ids == sorted(ids)
    page = play.agents(sort_key="id", sort_dir="asc", limit=5)
    rest = play.agents(sort_key="id", sort_dir="asc", limit=50, marker=page[-1]["id"])
    assert [a["id"] for a in page + rest] == ids
    assert {a["host"] for a in play.agents(host="host2")} == {"host2"}
    assert play.call("GET", "agents", sort_key="mood", sort_dir="asc")[0] == 400
    assert play.call("GET", "agents", limit="many")[0] == 400
    assert play.refused("GET", "agents", limit=1, marker="nobody") == (404, "AgentNotFound")
    assert all(a["resources_synced"] is None for a in every)


def test_an_agent_says_that_its_bandwidth_is_in_placement(play: Play) -> None:
    id = next(p["uuid"] for p in play.cloud.request("GET", "/placement/resource_providers").json["resource_providers"]
              if p["name"] == "host2")  # fmt: skip
    path = f"/placement/resource_providers/{id}/inventories"
    have = play.cloud.request("GET", path).json
    have["inventories"]["NET_BW_EGR_KILOBIT_PER_SEC"] = {"total": 1000}
    assert play.cloud.request("PUT", path, have).status == 200
    said = {(a["host"], a["binary"]): a["resources_synced"] for a in play.agents()}
    assert {key for key, synced in said.items() if synced} == {("host2", "neutron-openvswitch-agent")}
    assert set(said.values()) == {True, None}


def test_zone_hints_choose_the_servers(play: Play) -> None:
    with play.cloud.cloud.store.write() as tx:
        tx.execute(sa.update(hosts.TABLE).where(hosts.TABLE.c.name == "host3").values(zone="far"))
    made = play.ok("POST", "networks", {"network": {"availability_zone_hints": ["far"]}}, user="demo")["network"]
    subnet = {"network_id": made["id"], "ip_version": 4, "cidr": "10.0.0.0/24"}
    play.ok("POST", "subnets", {"subnet": subnet}, user="demo")
    play.cloud.settle()
    assert play.served_by(made["id"]) == ["host3"]
    shown = play.ok("GET", f"networks/{made['id']}", user="demo")["network"]
    assert (shown["availability_zone_hints"], shown["availability_zones"]) == (["far"], ["far"])
    assert {z["name"] for z in play.ok("GET", "availability_zones", user="demo")["availability_zones"]} == {
        "far", "nova",
    }  # fmt: skip
    assert {a["availability_zone"] for a in play.agents(host="host3")} == {"far", None}


def test_agents_say_what_they_do_beyond_the_least(play: Play) -> None:
    said = {a["binary"]: a["configurations"].get("extensions") for a in play.agents(host="host1")}
    assert {"fip_qos", "port_forwarding", "conntrack_helper", "ndp_proxy"} <= set(said["neutron-l3-agent"])
    assert {"qos", "log", "local_ip"} <= set(said["neutron-openvswitch-agent"])
