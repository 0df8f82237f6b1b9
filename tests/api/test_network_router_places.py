"""On which hosts routers are placed: segments, physical networks and switches, for routers of every kind."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from computing import Nova, image
from networking import Net

from nubila.apps import info, net_topology
from nubila.core import work
from nubila.services.network import SERVICE
from nubila.testing.cloud import TestCloud

Json = dict[str, Any]
KINDS: dict[str, Json] = {"plain": {}, "ha": {"ha": True}, "distributed": {"distributed": True}}


@pytest.fixture
def racks(tmp_path: Path) -> Iterator[TestCloud]:
    """host1 and host5 are in no rack, host2 is in rack3, host3 and host4 in rack2; all are network hosts."""
    made = TestCloud(tmp_path / "cloud", hosts=0, physical_networks=("physnet1", "rack2", "rack3", "rack9"))
    for name, rack in (("host1", ""), ("host2", "rack3"), ("host3", "rack2"), ("host4", "rack2"), ("host5", "")):
        made.add_host(name, bridges={"physnet1": "br-ex", **({rack: "br-r"} if rack else {})})
    made.settle()
    yield made
    sound(made)
    made.close()


@pytest.fixture
def admin(racks: TestCloud) -> Net:
    return Net(racks, "admin")


@pytest.fixture
def bridges(tmp_path: Path) -> Iterator[TestCloud]:
    """host1 to host3 switch with Linux bridges, host4 and host5 with Open vSwitch."""
    made = TestCloud(tmp_path / "cloud", hosts=0, min_l3_agents_per_router=2)
    for name in ("host1", "host2", "host3"):
        made.add_host(name, switch="linuxbridge")
    for name in ("host4", "host5"):
        made.add_host(name)
    made.settle()
    yield made
    sound(made)
    made.close()


def sound(made: TestCloud) -> None:
    made.settle()
    with made.cloud.store.read() as reader:
        assert [one for check in SERVICE.invariants for one in check(made.cloud, reader)] == []


def vlan(physnet: str, id: int) -> Json:
    return {"provider:network_type": "vlan", "provider:physical_network": physnet, "provider:segmentation_id": id}


def routed(admin: Net, *, dhcp: bool = False, **values: Any) -> tuple[Json, dict[str, Json]]:
    """A network with a segment and a subnet for rack2 and rack3."""
    net = admin.make("network", segments=[vlan("rack2", 20), vlan("rack3", 30)], **values)
    segments = {s["physical_network"]: s["id"] for s in admin.ok("GET", "segments", network_id=net["id"])["segments"]}
    subnets = {
        rack: admin.make("subnet", network_id=net["id"], ip_version=4, cidr=f"10.{n}.0.0/24", enable_dhcp=dhcp,
                         segment_id=segments[rack])
        for rack, n in (("rack2", 2), ("rack3", 3))
    }  # fmt: skip
    return net, subnets


def places(admin: Net, router: str) -> set[str]:
    """Where the router is, once everybody has done what there is to do."""
    admin.cloud.settle()
    return {a["host"] for a in admin.ok("GET", f"routers/{router}/l3-agents")["agents"]}


def ports(admin: Net, router: str, owner: str = "") -> list[Json]:
    found: list[Json] = admin.ok("GET", "ports", device_id=router)["ports"]
    return [p for p in found if p["device_owner"].endswith(owner)]


def gateway(admin: Net, router: str) -> tuple[str, list[str], str]:
    """(host, subnets, status) of the router's gateway."""
    (port,) = ports(admin, router, "router_gateway")
    return port["binding:host_id"], [ip["subnet_id"] for ip in port["fixed_ips"]], port["status"]


def why(cloud: TestCloud, id: str, kind: str) -> str:
    """The sentence that is kept of the controllers' work on a router."""
    (found,) = [one["note"] for one in work.why(cloud.cloud.store, id) if (one["kind"], one["shard"]) == (kind, "")]
    return str(found)


def lan(admin: Net, cidr: str = "192.168.0.0/24", **values: Any) -> tuple[Json, Json]:
    net = admin.make("network", **values)
    return net, admin.make("subnet", network_id=net["id"], ip_version=4, cidr=cidr, enable_dhcp=False)


# --- segments -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["plain", "ha"])
@pytest.mark.parametrize("at_once", [True, False])
def test_a_gateway_on_a_routed_network_is_where_its_address_is(
    admin: Net, racks: TestCloud, kind: str, at_once: bool
) -> None:
    net, subnets = routed(admin, **{"router:external": True})
    info: Json = {"external_gateway_info": {"network_id": net["id"]}}
    if at_once:
        router = admin.make("router", **KINDS[kind], **info)["id"]
    else:  # it is on a host that reaches nothing of it by then
        _, subnet = lan(admin)
        router = admin.make("router", **KINDS[kind])["id"]
        admin.ok("PUT", f"routers/{router}/add_router_interface", {"subnet_id": subnet["id"]})
        assert "host1" in places(admin, router)
        admin.ok("PUT", f"routers/{router}", {"router": info})
    found = places(admin, router)
    host, mine, status = gateway(admin, router)
    rack = "rack3" if host == "host2" else "rack2"
    assert mine == [subnets[rack]["id"]]
    assert host in found
    assert status == "ACTIVE"
    if kind == "ha":  # the rack with most hosts
        assert found == {"host3", "host4"}


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_a_wanted_address_decides_where_a_router_is(admin: Net, racks: TestCloud, kind: str) -> None:
    net, subnets = routed(admin, **{"router:external": True})
    wish = {"network_id": net["id"], "external_fixed_ips": [{"subnet_id": subnets["rack3"]["id"]}]}
    router = admin.make("router", **KINDS[kind], external_gateway_info=wish)["id"]
    assert places(admin, router) == {"host2"}
    assert gateway(admin, router) == ("host2", [subnets["rack3"]["id"]], "ACTIVE")


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_a_router_follows_an_interface_to_its_segment(admin: Net, racks: TestCloud, kind: str) -> None:
    _, subnets = routed(admin)
    _, subnet = lan(admin)
    router = admin.make("router", **KINDS[kind], external_gateway_info={"network_id": admin.public()["id"]})["id"]
    admin.ok("PUT", f"routers/{router}/add_router_interface", {"subnet_id": subnet["id"]})
    assert "host1" in places(admin, router)
    admin.ok("PUT", f"routers/{router}/add_router_interface", {"subnet_id": subnets["rack2"]["id"]})
    found = places(admin, router)
    host, _, status = gateway(admin, router)
    assert (host in ("host3", "host4"), status) == (True, "ACTIVE")
    if kind == "ha":
        assert found == {"host3", "host4"}
    owner = "router_centralized_snat" if kind == "distributed" else "interface"
    inner = [p for p in ports(admin, router, owner) if not p["name"].startswith("HA port")]
    assert {(p["binding:host_id"], p["binding:vif_type"]) for p in inner} == {(host, "ovs")}
    assert {p["status"] for p in inner} == {"ACTIVE"}
    admin.ok("PUT", f"routers/{router}/remove_router_interface", {"subnet_id": subnets["rack2"]["id"]})
    assert host in places(admin, router)  # nothing moves without need


def test_a_ha_router_gets_the_hosts_back_that_can_carry_it_again(admin: Net, racks: TestCloud) -> None:
    _, subnets = routed(admin)
    router = admin.make("router", ha=True)["id"]
    admin.ok("PUT", f"routers/{router}/add_router_interface", {"subnet_id": subnets["rack3"]["id"]})
    assert places(admin, router) == {"host2"}
    host4 = racks.agents[3]
    host4.place.bridges.clear()
    host4.place.bridges["rack3"] = "br-r"
    host4._greet()
    assert places(admin, router) == {"host2", "host4"}


# --- physical networks ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_a_router_is_where_the_physical_network_is(admin: Net, kind: str) -> None:
    wish = {**vlan("rack3", 7), "router:external": True}
    net, _ = lan(admin, **wish)
    router = admin.make("router", **KINDS[kind], external_gateway_info={"network_id": net["id"]})["id"]
    assert places(admin, router) == {"host2"}


def test_dhcp_is_where_the_physical_network_is(admin: Net, racks: TestCloud) -> None:
    net = admin.make("network", **vlan("rack3", 7))["id"]
    admin.make("subnet", network_id=net, ip_version=4, cidr="10.8.0.0/24")
    racks.settle()
    assert [a["host"] for a in admin.ok("GET", f"networks/{net}/dhcp-agents")["agents"]] == ["host2"]


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_where_nobody_has_the_physical_network_the_reason_says_so(admin: Net, racks: TestCloud, kind: str) -> None:
    net, _ = lan(admin, **{**vlan("rack9", 7), "router:external": True})
    router = admin.make("router", **KINDS[kind], external_gateway_info={"network_id": net["id"]})["id"]
    assert places(admin, router)
    said = why(racks, router, "router_ha" if kind == "ha" else "router_place")
    assert f"network {net['id']}: no bridge to rack9 (--physical)" in said


# --- impossible -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_a_router_that_no_host_can_carry_waits_and_says_why(admin: Net, racks: TestCloud, kind: str) -> None:
    """Two networks whose segments are in different racks."""
    router = admin.make("router", **KINDS[kind], external_gateway_info={"network_id": admin.public()["id"]})["id"]
    _, subnets = routed(admin)
    admin.ok("PUT", f"routers/{router}/add_router_interface", {"subnet_id": subnets["rack2"]["id"]})
    before = places(admin, router)
    other = admin.make("network", segments=[vlan("rack3", 33), vlan("rack3", 34)])
    subnet = admin.make("subnet", network_id=other["id"], ip_version=4, cidr="10.9.0.0/24", enable_dhcp=False)
    admin.ok("PUT", f"routers/{router}/add_router_interface", {"subnet_id": subnet["id"]})
    assert places(admin, router) == before
    said = why(racks, router, "router_ha" if kind == "ha" else "router_place")
    assert f"network {other['id']}: no bridge to rack3 (--physical)" in said


def test_dhcp_that_no_host_can_serve_says_what_is_missing(admin: Net, racks: TestCloud) -> None:
    net = admin.make("network", segments=[vlan("rack3", 5), vlan("rack9", 5)])["id"]
    for n, one in enumerate(admin.ok("GET", "segments", network_id=net)["segments"]):
        cidr = f"10.5.{n}.0/24"
        admin.make("subnet", network_id=net, ip_version=4, cidr=cidr, segment_id=one["id"])
    racks.settle()
    hosts = [a["host"] for a in admin.ok("GET", f"networks/{net}/dhcp-agents")["agents"]]
    assert hosts == ["host2"]
    said = why(racks, net, "dhcp")
    assert said.startswith("waiting for a network host to serve DHCP: ")
    assert f"network {net}: no bridge to rack9 (--physical)" in said
    assert "rack3" not in said


def test_a_port_that_cannot_be_bound_says_why(admin: Net, racks: TestCloud) -> None:
    net, _ = lan(admin, segments=[vlan("rack2", 5), vlan("rack3", 6)])
    for host, reason in (
        ("host1", "not bound on host1: no bridge to rack2 or rack3 (--physical); choose another host"),
        ("moon", "not bound: there is no host moon (openstack hypervisor list); choose another"),
    ):
        port = admin.make("port", network_id=net["id"], **{"binding:host_id": host})
        assert port["binding:vif_type"] == "binding_failed"
        assert info.why(racks.state, port["id"])[0].startswith(reason)
    mine, _ = routed(admin)
    late = admin.make("port", network_id=mine["id"])["id"]
    assert info.why(racks.state, late)[0].startswith("it gets addresses with a host (binding:host_id)")


def test_a_server_is_where_the_physical_network_is_or_in_error_at_once(admin: Net, racks: TestCloud) -> None:
    nova, tiny = Nova(racks), image(racks)
    found = {}
    for rack in ("rack3", "rack9"):
        net, _ = lan(admin, **vlan(rack, 7))
        made = nova.boot(tiny, networks=[{"uuid": net["id"]}])
        racks.settle()
        found[rack] = nova.server(made["id"])
    assert (found["rack3"]["status"], found["rack3"]["OS-EXT-SRV-ATTR:host"]) == ("ACTIVE", "host2")
    assert found["rack9"]["status"] == "ERROR"
    assert "physical networks" in found["rack9"]["fault"]["details"]


def test_a_routers_port_says_whose_it_is(admin: Net, racks: TestCloud) -> None:
    net, _ = lan(admin, **{**vlan("rack9", 7), "router:external": True})
    router = admin.make("router", external_gateway_info={"network_id": net["id"]})["id"]
    racks.settle()
    (port,) = ports(admin, router)
    said = info.why(racks.state, port["id"])
    assert said[0] == f"it belongs to router {router}"
    assert any("no bridge to rack9 (--physical)" in line for line in said[1:])
    assert info.why(racks.state, "nothing")[0].startswith("nothing is recorded")


def test_too_few_hosts_for_a_ha_router_are_refused_with_the_reason(bridges: TestCloud) -> None:
    admin = Net(bridges, "admin")
    net, subnet = lan(admin, **{"provider:network_type": "gre"})
    off = admin.make("router", admin_state_up=False)["id"]
    admin.ok("PUT", f"routers/{off}/add_router_interface", {"subnet_id": subnet["id"]})
    agent = next(a for a in admin.ok("GET", "agents", host="host5")["agents"] if a["agent_type"] == "L3 agent")
    admin.ok("PUT", f"agents/{agent['id']}", {"agent": {"admin_state_up": False}})
    got = admin.call("PUT", f"routers/{off}", {"router": {"ha": True}})
    assert (got.status, got.json["NeutronError"]["type"]) == (409, "HANotEnoughAvailableAgents")
    said = got.json["NeutronError"]["message"]
    assert "Minimum required 2, available 1" in said
    assert f"available 1: host1, host2, host3: network {net['id']}: Linux bridges have no gre networks" in said
    assert admin.ok("GET", f"routers/{off}")["router"]["ha"] is False


def test_an_operator_is_told_why_a_host_cannot_have_a_router(admin: Net, racks: TestCloud) -> None:
    _, subnets = routed(admin)
    agents = {a["host"]: a["id"] for a in admin.ok("GET", "agents", agent_type="L3 agent")["agents"]}
    for kind in KINDS.values():
        router = admin.make("router", **kind, external_gateway_info={"network_id": admin.public()["id"]})["id"]
        admin.ok("PUT", f"routers/{router}/add_router_interface", {"subnet_id": subnets["rack2"]["id"]})
        found = places(admin, router)
        if not kind.get("ha"):
            for host in found:
                admin.ok("DELETE", f"agents/{agents[host]}/l3-routers/{router}")
        path, body = f"agents/{agents['host1']}/l3-routers", {"router_id": router}
        assert admin.refused("POST", path, body) == (409, "RouterSchedulingFailed")
        assert "host1" not in places(admin, router)
        admin.ok("PUT", f"routers/{router}/remove_router_interface", {"subnet_id": subnets["rack2"]["id"]})


def test_the_topology_says_where_routers_of_every_kind_are(admin: Net, racks: TestCloud) -> None:
    net, subnets = routed(admin, name="racks")
    info_ = {"external_gateway_info": {"network_id": admin.public()["id"]}}
    for kind, values in KINDS.items():
        router = admin.make("router", name=kind, **values, **info_)["id"]
        admin.ok("PUT", f"routers/{router}/add_router_interface", {"port_id": admin.make(
            "port", network_id=net["id"], fixed_ips=[{"subnet_id": subnets["rack2"]["id"]}])["id"]})  # fmt: skip
    racks.settle()
    lines = net_topology.tree(racks.cloud)
    assert any("network racks" in line and "[vlan 20 on rack2 or vlan 30 on rack3, mtu" in line for line in lines)
    mine = {
        kind: next(line for line in lines if f" router {kind} (" in line and "gateway" not in line) for kind in KINDS
    }
    assert mine["plain"].endswith((", on host3", ", on host4"))
    assert ", highly available, active on host" in mine["ha"]
    assert ", standby on host" in mine["ha"]
    assert ", distributed, on host" in mine["distributed"]
    assert ", central part on host" in mine["distributed"]
    assert not any("leads to HA network" in line for line in lines)


# --- Linux bridges --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["gre", "geneve"])
def test_ha_routers_keep_to_hosts_whose_switch_has_the_network(bridges: TestCloud, kind: str) -> None:
    admin = Net(bridges, "admin")
    _, subnet = lan(admin, **{"provider:network_type": kind})
    router = admin.make("router", ha=True)["id"]
    assert places(admin, router) == {"host1", "host2", "host3"}
    admin.ok("PUT", f"routers/{router}/add_router_interface", {"subnet_id": subnet["id"]})
    assert places(admin, router) == {"host4", "host5"}
    mine = ports(admin, router)
    assert {(p["binding:vif_type"], p["status"]) for p in mine} == {("ovs", "ACTIVE")}
    states = {a["host"]: a["ha_state"] for a in admin.ok("GET", f"routers/{router}/l3-agents")["agents"]}
    assert sorted(states.values()) == ["active", "standby"]


def test_the_hidden_network_of_ha_routers_counts_too(tmp_path: Path) -> None:
    cloud = TestCloud(tmp_path / "cloud", hosts=0, tenant_network_types=("geneve",))
    for name in ("host1", "host2"):
        cloud.add_host(name, switch="linuxbridge")
    admin = Net(cloud, "admin")
    assert admin.refused("POST", "routers", {"router": {"ha": True}}) == (409, "HANotEnoughAvailableAgents")
    assert [n for n in admin.ok("GET", "networks")["networks"] if n["name"].startswith("HA network")] == []
    cloud.add_host("host3")
    cloud.settle()
    assert places(admin, admin.make("router", ha=True)["id"]) == {"host3"}
    cloud.close()
