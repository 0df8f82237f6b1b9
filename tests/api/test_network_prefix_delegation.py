"""Prefix delegation in the API: who may have it, what a delegated prefix does to subnets and ports, and back again."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from networking import Net

from nubila.services.network import addresses, prefix_delegation
from nubila.testing.cloud import TestCloud

Json = dict[str, Any]
PD = {"subnetpool_id": "prefix_delegation", "ip_version": 6, "ipv6_ra_mode": "slaac", "ipv6_address_mode": "slaac"}


@pytest.fixture
def three(tmp_path: Path) -> Iterator[TestCloud]:
    made = TestCloud(tmp_path / "cloud", hosts=3)
    yield made
    made.close()


def delegate(cloud: TestCloud, **prefixes: str) -> None:
    """What the DHCPv6 servers of all hosts delegate from now on, by subnet id (dashes as underscores)."""
    given = {"prefixes": {id.replace("_", "-"): prefix for id, prefix in prefixes.items()}}
    for agent in cloud.agents:
        (agent.place.root / "behaviours.json").write_text(json.dumps(given))
    cloud.settle()


def routed(net: Net, *, gateway: bool = True) -> tuple[Json, Json, Json, Json]:
    """Network, provisional subnet, router on it, a guest's port."""
    network = net.make("network")
    subnet = net.make("subnet", network_id=network["id"], **PD)
    info = {"external_gateway_info": {"network_id": net.public()["id"]}} if gateway else {}
    router = net.make("router", **info)
    net.ok("PUT", f"routers/{router['id']}/add_router_interface", {"subnet_id": subnet["id"]})
    port = net.make("port", network_id=network["id"])
    net.cloud.settle()
    return network, subnet, router, port


def show(net: Net, kind: str, one: Json) -> Json:
    found: Json = net.ok("GET", f"{kind}s/{one['id']}")[kind]
    return found


def interface(net: Net, router: Json) -> Json:
    owner = "network:router_interface"
    found: Json = net.ok("GET", "ports", device_id=router["id"], device_owner=owner)["ports"][0]
    return found


def test_a_new_subnet_is_provisional(demo: Net) -> None:
    network = demo.make("network")
    subnet = demo.make("subnet", network_id=network["id"], **PD)
    assert (subnet["cidr"], subnet["subnetpool_id"], subnet["gateway_ip"]) == ("::/64", "prefix_delegation", "::")
    assert subnet["allocation_pools"] == [{"start": "::1", "end": "::ffff:ffff:ffff:ffff"}]
    again = demo.make("subnet", network_id=network["id"], **PD)
    assert again["cidr"] == "::/64", "any number of them may wait"
    listed = demo.ok("GET", "subnets", subnetpool_id="prefix_delegation")["subnets"]
    assert {one["id"] for one in listed} == {subnet["id"], again["id"]}
    demo.cloud.settle()
    assert not demo.ok("GET", "ports", device_owner="network:dhcp", status="ERROR")["ports"]
    demo.ok("DELETE", f"subnets/{again['id']}")


def test_what_is_refused(demo: Net) -> None:
    network = demo.make("network")

    def refused(**more: Any) -> tuple[int, str]:
        return demo.refused("POST", "subnets", {"subnet": {"network_id": network["id"], **PD, **more}})

    bad = (400, "BadRequest")
    assert refused(ip_version=4, ipv6_ra_mode=None, ipv6_address_mode=None) == bad
    for mode in ("dhcpv6-stateful", None):
        assert refused(ipv6_ra_mode=mode, ipv6_address_mode=mode) == bad
        assert refused(ipv6_ra_mode=mode) == bad
        assert refused(ipv6_address_mode=mode) == bad
    assert refused(prefixlen=56) == bad
    assert refused(gateway_ip="::5") == bad
    assert refused(allocation_pools=[{"start": "::10", "end": "::20"}]) == bad
    assert refused(use_default_subnetpool=True) == bad
    assert refused(enable_dhcp=False)[0] == 400
    named = demo.make("subnet", network_id=demo.make("network")["id"], **PD, cidr="fd00:5::/64")
    assert (named["cidr"], named["subnetpool_id"]) == ("fd00:5::/64", None), "a CIDR of one's own is an ordinary one"
    demo.make("subnet", network_id=network["id"], ip_version=6, cidr="fd00:6::/64")
    assert refused() == (400, "NetworkSubnetPoolAffinityError")
    other = demo.make("network")
    subnet = demo.make("subnet", network_id=other["id"], **PD)
    plain = {"subnet": {"network_id": other["id"], "ip_version": 6, "cidr": "fd00:7::/64"}}
    assert demo.refused("POST", "subnets", plain) == (400, "NetworkSubnetPoolAffinityError")
    demo.make("subnet", network_id=other["id"], ip_version=4, cidr="10.0.0.0/24")
    for change in ({"gateway_ip": "::9"}, {"allocation_pools": [{"start": "::10", "end": "::20"}]}):
        assert demo.refused("PUT", f"subnets/{subnet['id']}", {"subnet": change}) == bad
    assert demo.ok("PUT", f"subnets/{subnet['id']}", {"subnet": {"name": "x"}})["subnet"]["name"] == "x"


def test_the_prefix_comes_changes_and_goes(demo: Net) -> None:
    network, subnet, router, port = routed(demo)
    mac = port["mac_address"]
    assert show(demo, "subnet", subnet)["cidr"] == "::/64"
    assert port["fixed_ips"] == [{"subnet_id": subnet["id"], "ip_address": addresses.eui64("::/64", mac)}]
    before = show(demo, "subnet", subnet)["revision_number"]
    for cidr in ("2001:db8:1::/64", "2001:db8:2:7::/64"):
        delegate(demo.cloud, **{subnet["id"]: cidr})
        now = show(demo, "subnet", subnet)
        first = cidr.removesuffix("/64")
        assert (now["cidr"], now["gateway_ip"]) == (cidr, f"{first}1")
        assert now["allocation_pools"] == addresses.default_pools(cidr, f"{first}1")
        assert now["revision_number"] > before
        before = now["revision_number"]
        assert [ip["ip_address"] for ip in show(demo, "port", port)["fixed_ips"]] == [addresses.eui64(cidr, mac)]
        assert [ip["ip_address"] for ip in interface(demo, router)["fixed_ips"]] == [f"{first}1"]
        late = demo.make("port", network_id=network["id"])
        assert late["fixed_ips"][0]["ip_address"] == addresses.eui64(cidr, late["mac_address"])
    delegate(demo.cloud)
    assert show(demo, "subnet", subnet)["cidr"] == "::/64", "the lease was lost"
    delegate(demo.cloud, **{subnet["id"]: "2001:db8:3::/64"})
    assert show(demo, "subnet", subnet)["cidr"] == "2001:db8:3::/64"
    demo.ok("PUT", f"routers/{router['id']}/remove_router_interface", {"subnet_id": subnet["id"]})
    assert show(demo, "subnet", subnet)["cidr"] == "::/64", "at once"
    assert [ip["ip_address"] for ip in show(demo, "port", port)["fixed_ips"]] == [addresses.eui64("::/64", mac)]
    demo.cloud.sweep()
    assert show(demo, "subnet", subnet)["cidr"] == "::/64", "and nobody brings it back"


def test_without_a_gateway_there_is_no_prefix(demo: Net) -> None:
    _, subnet, router, _ = routed(demo, gateway=False)
    delegate(demo.cloud, **{subnet["id"]: "2001:db8:1::/64"})
    assert show(demo, "subnet", subnet)["cidr"] == "::/64"
    info = {"router": {"external_gateway_info": {"network_id": demo.public()["id"]}}}
    demo.ok("PUT", f"routers/{router['id']}", info)
    demo.cloud.settle()
    assert show(demo, "subnet", subnet)["cidr"] == "2001:db8:1::/64"
    demo.ok("PUT", f"routers/{router['id']}", {"router": {"admin_state_up": False}})
    demo.cloud.settle()
    assert show(demo, "subnet", subnet)["cidr"] == "2001:db8:1::/64", "a router that is off keeps what it has"
    demo.ok("PUT", f"routers/{router['id']}", {"router": {"external_gateway_info": {}}})
    assert show(demo, "subnet", subnet)["cidr"] == "::/64"
    demo.cloud.sweep()
    assert show(demo, "subnet", subnet)["cidr"] == "::/64"


def test_hosts_know_nothing_of_a_subnet_without_prefix(demo: Net) -> None:
    network, subnet, router, _ = routed(demo)
    driver: Any = demo.cloud.agents[0].drivers.network
    spec = driver.router(router["id"])
    assert [one.subnet_id for one in spec.delegations] == [subnet["id"]]
    assert spec.interfaces[0].fixed_ips == ()
    assert spec.subnets == ()
    shown = driver.network(network["id"])
    assert shown is None or (shown.subnets, shown.dhcp) == ((), None)
    delegate(demo.cloud, **{subnet["id"]: "2001:db8:1::/64"})
    spec = driver.router(router["id"])
    assert [ip.ip_address for ip in spec.interfaces[0].fixed_ips] == ["2001:db8:1::1"]
    assert [one.cidr for one in spec.subnets] == ["2001:db8:1::/64"]
    assert spec.delegations[0].prefix == "2001:db8:1::/64"
    assert [one.cidr for one in driver.network(network["id"]).subnets] == ["2001:db8:1::/64"]


@pytest.mark.parametrize(
    ("prefix", "says"),
    [
        ("fe80::/64", "none that hosts can use"),
        ("2001:db8::/80", "none that hosts can use"),
        ("::/64", "none that hosts can use"),
        ("ff02::/64", "none that hosts can use"),
        ("nonsense", "no IPv6 prefix"),
        ("2001:db8:9::/64", "overlaps with subnet"),
    ],
)
def test_a_prefix_of_no_use_is_refused_and_said(demo: Net, prefix: str, says: str) -> None:
    _, subnet, router, _ = routed(demo)
    net = demo.make("network")
    inner = demo.make("subnet", network_id=net["id"], ip_version=6, cidr="2001:db8:9::/64", gateway_ip="2001:db8:9::1")
    demo.ok("PUT", f"routers/{router['id']}/add_router_interface", {"subnet_id": inner["id"]})
    delegate(demo.cloud, **{subnet["id"]: prefix})
    assert show(demo, "subnet", subnet)["cidr"] == "::/64"
    with demo.cloud.cloud.store.read() as r:
        notes = r.rows(sa.text("select note from work where kind = 'router' and id = :id"), {"id": router["id"]})
    assert any(says in str(note) for (note,) in notes), notes


def test_one_prefix_for_two_subnets_of_a_router(demo: Net) -> None:
    network, subnet, router, _ = routed(demo)
    second = demo.make("subnet", network_id=network["id"], **PD)
    demo.ok("PUT", f"routers/{router['id']}/add_router_interface", {"subnet_id": second["id"]})
    delegate(demo.cloud, **{subnet["id"]: "2001:db8:1::/64", second["id"]: "2001:db8:1::/64"})
    has = sorted(show(demo, "subnet", one)["cidr"] for one in (subnet, second))
    assert has == ["2001:db8:1::/64", "::/64"]
    delegate(demo.cloud, **{subnet["id"]: "2001:db8:1::/64", second["id"]: "2001:db8:2::/64"})
    assert [show(demo, "subnet", one)["cidr"] for one in (subnet, second)] == ["2001:db8:1::/64", "2001:db8:2::/64"]


def test_other_projects_neither_see_nor_use_it(demo: Net, admin: Net) -> None:
    network = admin.make("network")
    subnet = admin.make("subnet", network_id=network["id"], **PD)
    mine = demo.make("router", external_gateway_info={"network_id": demo.public()["id"]})
    assert demo.call("GET", f"subnets/{subnet['id']}").status == 404
    assert demo.ok("GET", "subnets", subnetpool_id="prefix_delegation")["subnets"] == []
    body = {"subnet_id": subnet["id"]}
    assert demo.call("PUT", f"routers/{mine['id']}/add_router_interface", body).status == 404
    assert demo.call("POST", "subnets", {"subnet": {"network_id": network["id"], **PD}}).status == 403
    assert demo.call("DELETE", f"subnets/{subnet['id']}").status == 404


def test_a_router_that_moves_takes_its_prefix_along(three: TestCloud) -> None:
    demo, admin = Net(three), Net(three, "admin")
    _, subnet, router, _ = routed(demo)
    delegate(three, **{subnet["id"]: "2001:db8:1::/64"})
    path = f"routers/{router['id']}/l3-agents"
    agents = admin.ok("GET", path)["agents"]
    others = [a for a in admin.ok("GET", "agents", agent_type="L3 agent")["agents"] if a["id"] != agents[0]["id"]]
    admin.ok("DELETE", f"agents/{agents[0]['id']}/l3-routers/{router['id']}")
    three.settle()
    assert show(demo, "subnet", subnet)["cidr"] == "2001:db8:1::/64"
    admin.ok("POST", f"agents/{others[0]['id']}/l3-routers", {"router_id": router["id"]})
    three.settle()
    assert show(demo, "subnet", subnet)["cidr"] == "2001:db8:1::/64"
    asking = [
        a.place.host
        for a in three.agents
        if (s := a.drivers.network.router(router["id"])) is not None and s.delegations
    ]
    assert asking == [others[0]["host"]]


def test_only_the_host_that_forwards_asks_for_a_highly_available_router(three: TestCloud) -> None:
    demo, admin = Net(three), Net(three, "admin")
    network = demo.make("network")
    subnet = demo.make("subnet", network_id=network["id"], **PD)
    router = admin.make(
        "router", ha=True, project_id=network["project_id"], external_gateway_info={"network_id": demo.public()["id"]}
    )
    demo.ok("PUT", f"routers/{router['id']}/add_router_interface", {"subnet_id": subnet["id"]})
    three.settle()
    delegate(three, **{subnet["id"]: "2001:db8:1::/64"})
    assert show(demo, "subnet", subnet)["cidr"] == "2001:db8:1::/64"
    wishes = [a.drivers.network.router(router["id"]) for a in three.agents]
    assert sorted(len(w.delegations or ()) for w in wishes if w is not None)[-1:] == [1]
    assert sum(bool(w.delegations) for w in wishes if w is not None) == 1


def test_the_operator_can_make_it_the_default(tmp_path: Path) -> None:
    cloud = TestCloud(tmp_path / "cloud", ipv6_pd_enabled=True)
    try:
        demo = Net(cloud)
        values = {k: v for k, v in PD.items() if k != "subnetpool_id"}
        first, second = demo.make("network"), demo.make("network")
        six = demo.make("subnet", network_id=first["id"], use_default_subnetpool=True, **values)
        assert (six["cidr"], six["subnetpool_id"]) == ("::/64", "prefix_delegation")
        four = demo.make("subnet", network_id=second["id"], use_default_subnetpool=True, ip_version=4)
        assert four["subnetpool_id"] not in (None, "prefix_delegation")
    finally:
        cloud.close()


def test_a_late_address_of_the_old_prefix_is_moved(demo: Net) -> None:
    """Two servers on a network database: a port made while the prefix changed has an address of the old one."""
    network, subnet, _, _ = routed(demo)
    delegate(demo.cloud, **{subnet["id"]: "2001:db8:1::/64"})
    late = demo.make("port", network_id=network["id"])
    with demo.cloud.cloud.store.write() as tx:
        for table, column in (("ip_allocation", "ip_address"), ("ip_allocation", "ip_key")):
            old, new = ("2001:db8:1:", "2001:db8:9:") if column == "ip_address" else ("20010db80001", "20010db80009")
            tx.execute(
                sa.text(f"update {table} set {column} = replace({column}, :old, :new) where port_id = :port"),
                {"old": old, "new": new, "port": late["id"]},
            )
    demo.cloud.sweep()
    want = addresses.eui64("2001:db8:1::/64", late["mac_address"])
    assert [ip["ip_address"] for ip in show(demo, "port", late)["fixed_ips"]] == [want]
    with demo.cloud.cloud.store.read() as r:
        assert prefix_delegation.unsound(demo.cloud.cloud, r) == []
