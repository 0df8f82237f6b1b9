"""Networking v2.0 through the whole edge: what users make, see and are refused."""

from __future__ import annotations

from typing import Any

import pytest
from networking import Net

Json = dict[str, Any]


@pytest.mark.req("C/OVS-20")
def test_a_network_gets_a_tunnel_an_mtu_and_dhcp_on_a_host(demo: Net, admin: Net) -> None:
    net, subnet = demo.network()
    shown = admin.ok("GET", f"networks/{net['id']}")["network"]
    assert shown["provider:network_type"] == "vxlan"
    assert 1 <= shown["provider:segmentation_id"] <= 65535
    assert (shown["mtu"], shown["subnets"]) == (1450, [subnet["id"]])
    assert "provider:network_type" not in demo.ok("GET", f"networks/{net['id']}")["network"]
    demo.cloud.settle()
    port = demo.ok("GET", "ports", device_owner="network:dhcp")["ports"][0]
    assert port["status"] == "ACTIVE"
    assert port["device_id"].endswith(net["id"])
    agents = admin.ok("GET", f"networks/{net['id']}/dhcp-agents")["agents"]
    assert [a["agent_type"] for a in agents] == ["DHCP agent"]
    assert demo.ok("GET", f"networks/{net['id']}")["network"]["availability_zones"] == ["nova"]


def test_nobody_sees_anothers_network_until_it_is_shared(demo: Net, admin: Net) -> None:
    net = admin.make("network", name="private")
    subnet = admin.make("subnet", network_id=net["id"], ip_version=4, cidr="10.9.0.0/24")
    port = admin.make("port", network_id=net["id"])
    for path in (f"networks/{net['id']}", f"subnets/{subnet['id']}", f"ports/{port['id']}"):
        assert demo.call("GET", path).status == 404
        assert demo.call("DELETE", path).status == 404
    assert demo.ok("GET", "networks", name="private")["networks"] == []
    assert demo.refused("POST", "ports", {"port": {"network_id": net["id"]}}) == (404, "NetworkNotFound")
    admin.ok("PUT", f"networks/{net['id']}", {"network": {"shared": True}})
    assert [s["id"] for s in demo.ok("GET", "subnets", network_id=net["id"])["subnets"]] == [subnet["id"]]
    mine = demo.make("port", network_id=net["id"])
    assert demo.refused("PUT", f"networks/{net['id']}", {"network": {"name": "x"}}) == (403, "PolicyNotAuthorized")
    wish = {"port": {"network_id": net["id"], "fixed_ips": [{"ip_address": "10.9.0.77"}]}}
    assert demo.refused("POST", "ports", wish) == (403, "PolicyNotAuthorized")
    unshare = {"network": {"shared": False}}
    assert admin.refused("PUT", f"networks/{net['id']}", unshare) == (409, "InvalidSharedSetting")
    demo.ok("DELETE", f"ports/{mine['id']}")
    admin.ok("PUT", f"networks/{net['id']}", unshare)
    assert demo.call("GET", f"subnets/{subnet['id']}").status == 404


SUBNET_REFUSALS = [
    ({"cidr": "10.0.0.0/24"}, 400, "InvalidInput"),
    ({"cidr": "10.0.0.128/25"}, 400, "InvalidInput"),
    ({"cidr": "10.1.0.0/24", "ip_version": 6}, 400, "InvalidInput"),
    ({"cidr": "10.1.0.0/24", "ip_version": 5}, 400, "HTTPBadRequest"),
    ({"cidr": "10.1.0.0/33"}, 400, ""),
    ({"cidr": "224.0.0.0/24"}, 400, "InvalidInput"),
    ({"cidr": "10.1.0.0/31"}, 400, "InvalidInput"),
    ({}, 400, "BadRequest"),
    ({"cidr": "10.1.0.0/24", "gateway_ip": "10.1.0.0"}, 400, "InvalidInput"),
    (
        {"cidr": "10.1.0.0/24", "allocation_pools": [{"start": "10.1.0.1", "end": "10.1.0.9"}]},
        409,
        "GatewayConflictWithAllocationPools",
    ),
    (
        {"cidr": "10.1.0.0/24", "allocation_pools": [{"start": "10.1.0.9", "end": "10.1.0.2"}]},
        400,
        "InvalidAllocationPool",
    ),
    (
        {"cidr": "10.1.0.0/24", "allocation_pools": [{"start": "10.1.0.9", "end": "10.1.1.2"}]},
        400,
        "OutOfBoundsAllocationPool",
    ),
    ({"cidr": "10.1.0.0/24", "dns_nameservers": ["word"]}, 400, "HTTPBadRequest"),
    ({"cidr": "10.1.0.0/24", "host_routes": [{"destination": "x", "nexthop": "10.1.0.3"}]}, 400, ""),
    ({"cidr": "10.1.0.0/24", "ipv6_ra_mode": "slaac"}, 400, "InvalidInput"),
    ({"cidr": "fd00::/64", "ip_version": 6, "ipv6_ra_mode": "slaac", "ipv6_address_mode": "dhcpv6-stateful"}, 400, ""),
    ({"cidr": "fd00::/80", "ip_version": 6, "ipv6_address_mode": "slaac"}, 400, "InvalidInput"),
    ({"cidr": "fd00::/64", "ip_version": 6, "ipv6_address_mode": "slaac", "enable_dhcp": False}, 400, "InvalidInput"),
]


@pytest.mark.parametrize(("values", "status", "kind"), SUBNET_REFUSALS)
def test_subnets_that_cannot_be(demo: Net, values: Json, status: int, kind: str) -> None:
    net, _ = demo.network()
    got = demo.refused("POST", "subnets", {"subnet": {"network_id": net["id"], "ip_version": 4, **values}})
    assert got[0] == status
    assert not kind or got[1] == kind
    assert len(demo.ok("GET", "subnets", network_id=net["id"])["subnets"]) == 1


def test_tempest_finds_the_words_it_looks_for(demo: Net) -> None:
    net, _ = demo.network()
    body = {"subnet": {"network_id": net["id"], "ip_version": 4, "cidr": "10.0.0.0/25"}}
    assert "overlaps with another subnet" in demo.call("POST", "subnets", body).json["NeutronError"]["message"]


def test_ports_get_addresses_once(demo: Net) -> None:
    net, subnet = demo.network("10.0.0.0/29", enable_dhcp=False)
    ports = [demo.make("port", network_id=net["id"]) for _ in range(5)]
    ips = {p["fixed_ips"][0]["ip_address"] for p in ports}
    assert ips == {f"10.0.0.{n}" for n in range(2, 7)}
    again = {"port": {"network_id": net["id"]}}
    assert demo.refused("POST", "ports", again) == (409, "IpAddressGenerationFailure")
    demo.ok("DELETE", f"ports/{ports[0]['id']}")
    assert demo.make("port", network_id=net["id"])["fixed_ips"] == ports[0]["fixed_ips"]
    availability = Net(demo.cloud, "admin").ok("GET", f"network-ip-availabilities/{net['id']}")
    found = availability["network_ip_availability"]
    assert found["used_ips"] == 5
    assert found["ip_availability_details"] == found["subnet_ip_availability"][0]["ip_availability_details"] == {
        "total_ips_in_subnet": 6, "total_ips_in_allocation_pool": 5, "used_ips_in_subnet": 5,
        "used_ips_in_allocation_pool": 5,
    }  # fmt: skip
    gateway = {"port": {"network_id": net["id"], "fixed_ips": [{"ip_address": "10.0.0.1"}]}}
    demo.ok("POST", "ports", gateway)
    again_found = Net(demo.cloud, "admin").ok("GET", f"network-ip-availabilities/{net['id']}")
    details = again_found["network_ip_availability"]["ip_availability_details"]
    assert (details["used_ips_in_subnet"], details["used_ips_in_allocation_pool"]) == (6, 5)
    assert subnet["allocation_pools"] == [{"start": "10.0.0.2", "end": "10.0.0.6"}]


PORT_REFUSALS = [
    ({"fixed_ips": [{"ip_address": "10.0.1.5"}]}, 400, "InvalidIpForNetwork"),
    ({"fixed_ips": [{"ip_address": "10.0.0.255"}]}, 400, "InvalidIpForNetwork"),
    ({"fixed_ips": [{"ip_address": "10.0.0.50"}]}, 409, "IpAddressAlreadyAllocated"),
    ({"fixed_ips": [{"ip_address": "10.0.0.9"}, {"ip_address": "10.0.0.9"}]}, 400, "InvalidInput"),
    ({"fixed_ips": [{"subnet_id": "11111111-1111-1111-1111-111111111111"}]}, 404, "SubnetNotFound"),
    ({"fixed_ips": [{}]}, 400, "InvalidInput"),
    ({"mac_address": "fa:16:3e:00:00:50"}, 409, "MacAddressInUse"),
    ({"mac_address": "not-a-mac"}, 400, ""),
    ({"security_groups": ["11111111-1111-1111-1111-111111111111"]}, 404, "SecurityGroupNotFound"),
    ({"port_security_enabled": False, "security_groups": ["own"]}, 400, "PortSecurityAndIPRequiredForSecurityGroups"),
    (
        {"port_security_enabled": False, "allowed_address_pairs": [{"ip_address": "10.0.0.7"}]},
        409,
        "AddressPairAndPortSecurityRequired",
    ),
    ({"allowed_address_pairs": [{"ip_address": "word"}]}, 400, "HTTPBadRequest"),
    ({"allowed_address_pairs": [{"ip_address": "10.0.0.7"}] * 2}, 400, "DuplicateAddressPairInRequest"),
    ({"extra_dhcp_opts": [{"opt_name": "x", "opt_value": " "}]}, 400, "InvalidInput"),
    ({"dns_name": "-bad-"}, 400, "InvalidInput"),
    ({"colour": "red"}, 400, "HTTPBadRequest"),
    ({"binding:host_id": "host1"}, 403, "PolicyNotAuthorized"),
    ({"network_id": "11111111-1111-1111-1111-111111111111"}, 404, "NetworkNotFound"),
]


@pytest.mark.parametrize(("values", "status", "kind"), PORT_REFUSALS)
def test_ports_that_cannot_be(demo: Net, values: Json, status: int, kind: str) -> None:
    net, _ = demo.network()
    taken = demo.make(
        "port", network_id=net["id"], mac_address="fa:16:3e:00:00:50", fixed_ips=[{"ip_address": "10.0.0.50"}]
    )
    values = dict(values)
    if values.get("security_groups") == ["own"]:
        values["security_groups"] = taken["security_groups"]
    before = demo.ok("GET", "ports")
    got = demo.refused("POST", "ports", {"port": {"network_id": net["id"], **values}})
    assert got[0] == status
    assert not kind or got[1] == kind
    assert demo.ok("GET", "ports") == before


def test_a_port_keeps_addresses_that_still_fit(demo: Net) -> None:
    net, subnet = demo.network()
    port = demo.make("port", network_id=net["id"])
    first = port["fixed_ips"][0]["ip_address"]
    more = {"fixed_ips": [{"ip_address": first}, {"subnet_id": subnet["id"], "ip_address": "10.0.0.200"}]}
    after = demo.ok("PUT", f"ports/{port['id']}", {"port": more})["port"]
    assert [i["ip_address"] for i in after["fixed_ips"]] == [first, "10.0.0.200"]
    after = demo.ok("PUT", f"ports/{port['id']}", {"port": {"fixed_ips": [{"subnet_id": subnet["id"]}]}})["port"]
    assert [i["ip_address"] for i in after["fixed_ips"]] == [first]
    assert demo.ok("PUT", f"ports/{port['id']}", {"port": {"fixed_ips": []}})["port"]["fixed_ips"] == []
    assert demo.ok("GET", "ports", fixed_ips=f"ip_address={first}")["ports"] == []


def test_addresses_that_follow_from_the_mac(demo: Net) -> None:
    net, _ = demo.network("10.0.0.0/24")
    early = demo.make("port", network_id=net["id"], mac_address="fa:16:3e:00:00:01")
    demo.make("subnet", network_id=net["id"], ip_version=6, cidr="fd00::/64", ipv6_address_mode="slaac",
              ipv6_ra_mode="slaac")  # fmt: skip
    port = demo.make("port", network_id=net["id"], mac_address="fa:16:3e:12:34:56")
    assert "fd00::f816:3eff:fe12:3456" in [i["ip_address"] for i in port["fixed_ips"]]
    shown = demo.ok("GET", f"ports/{early['id']}")["port"]
    assert "fd00::f816:3eff:fe00:1" in [i["ip_address"] for i in shown["fixed_ips"]]


@pytest.mark.req("C/SG-02")
def test_the_default_group_appears_once_with_its_four_rules(demo: Net) -> None:
    found = demo.ok("GET", "security-groups")["security_groups"]
    assert [g["name"] for g in found] == ["default"]
    rules = {
        (r["direction"], r["ethertype"], r["remote_group_id"] == found[0]["id"])
        for r in found[0]["security_group_rules"]
    }
    assert rules == {
        ("egress", "IPv4", False), ("egress", "IPv6", False), ("ingress", "IPv4", True), ("ingress", "IPv6", True),
    }  # fmt: skip
    demo.network()
    assert len(demo.ok("GET", "security-groups")["security_groups"]) == 1
    again = {"security_group": {"name": "default"}}
    assert demo.refused("POST", "security-groups", again) == (409, "SecurityGroupDefaultAlreadyExists")
    rename = {"security_group": {"name": "other"}}
    path = f"security-groups/{found[0]['id']}"
    assert demo.refused("PUT", path, rename) == (409, "SecurityGroupCannotUpdateDefault")
    assert demo.refused("DELETE", path) == (409, "SecurityGroupCannotRemoveDefault")


RULE_REFUSALS = [
    ({"protocol": "bad"}, 400, "SecurityGroupRuleInvalidProtocol"),
    ({"protocol": "300"}, 400, "SecurityGroupRuleInvalidProtocol"),
    ({"ethertype": "IPv5"}, 400, "SecurityGroupRuleInvalidEtherType"),
    ({"remote_ip_prefix": "10.0.0.0/33"}, 400, "InvalidCIDR"),
    ({"remote_ip_prefix": "fd00::/64"}, 400, "SecurityGroupRuleParameterConflict"),
    ({"remote_group_id": "nowhere"}, 404, "SecurityGroupNotFound"),
    ({"port_range_min": 1, "port_range_max": 2}, 400, "SecurityGroupProtocolRequiredWithPorts"),
    ({"protocol": "tcp", "port_range_min": 9, "port_range_max": 2}, 400, "SecurityGroupInvalidPortRange"),
    ({"protocol": "tcp", "port_range_min": 9, "port_range_max": 70000}, 400, "SecurityGroupInvalidPortValue"),
    ({"protocol": "icmp", "port_range_min": 256}, 400, "SecurityGroupInvalidIcmpValue"),
    ({"protocol": "icmp", "port_range_max": 6}, 400, "SecurityGroupMissingIcmpType"),
    ({"protocol": "gre", "port_range_min": 1, "port_range_max": 2}, 400, "SecurityGroupInvalidProtocolForPort"),
    ({"protocol": "icmpv6"}, 400, "SecurityGroupEthertypeConflictWithProtocol"),
    ({"direction": "up"}, 400, "HTTPBadRequest"),
    ({"protocol": "tcp", "port_range_min": 80, "port_range_max": 80}, 409, "SecurityGroupRuleExists"),
]


@pytest.mark.parametrize(("values", "status", "kind"), RULE_REFUSALS)
def test_rules_that_cannot_be(demo: Net, values: Json, status: int, kind: str) -> None:
    group = demo.make("security_group", "security-groups", name="web")
    rule = {"security_group_id": group["id"], "direction": "ingress"}
    same = {"protocol": "6" if "gre" in values else "tcp", "port_range_min": "80", "port_range_max": 80}
    demo.make("security_group_rule", "security-group-rules", **rule, **same, remote_ip_prefix="0.0.0.0/0")
    body = {"security_group_rule": {**rule, **values}}
    assert demo.refused("POST", "security-group-rules", body) == (status, kind)


def test_a_group_in_use_stays_and_its_rules_go_with_it(demo: Net) -> None:
    net, _ = demo.network()
    group = demo.make("security_group", "security-groups", name="web")
    other = demo.make("security_group", "security-groups", name="other")
    demo.make("security_group_rule", "security-group-rules", security_group_id=other["id"], direction="ingress",
              remote_group_id=group["id"])  # fmt: skip
    port = demo.make("port", network_id=net["id"], security_groups=[group["id"]])
    assert demo.refused("DELETE", f"security-groups/{group['id']}") == (409, "SecurityGroupInUse")
    demo.ok("DELETE", f"ports/{port['id']}")
    demo.ok("DELETE", f"security-groups/{group['id']}")
    assert len(demo.ok("GET", f"security-groups/{other['id']}")["security_group"]["security_group_rules"]) == 2


def test_a_router_takes_a_project_to_the_world(demo: Net, admin: Net) -> None:
    net, subnet = demo.network()
    public = demo.public()
    router = demo.make("router", name="r", external_gateway_info={"network_id": public["id"]})
    info = router["external_gateway_info"]
    assert info["enable_snat"] is True
    assert info["external_fixed_ips"][0]["ip_address"].startswith("172.24.4.")
    port = demo.make("port", network_id=net["id"])
    fip = {"floatingip": {"floating_network_id": public["id"], "port_id": port["id"]}}
    assert demo.refused("POST", "floatingips", fip) == (404, "ExternalGatewayForFloatingIPNotFound")
    interface = demo.ok("PUT", f"routers/{router['id']}/add_router_interface", {"subnet_id": subnet["id"]})
    assert demo.ok("GET", f"ports/{interface['port_id']}")["port"]["fixed_ips"][0]["ip_address"] == "10.0.0.1"
    made = demo.make("floatingip", floating_network_id=public["id"], port_id=port["id"])
    assert (made["router_id"], made["status"]) == (router["id"], "DOWN")
    demo.cloud.settle()
    assert demo.ok("GET", f"floatingips/{made['id']}")["floatingip"]["status"] == "ACTIVE"
    assert demo.ok("GET", f"ports/{interface['port_id']}")["port"]["status"] == "ACTIVE"
    assert demo.refused("POST", "floatingips", fip) == (409, "FloatingIPPortAlreadyAssociated")
    remove = f"routers/{router['id']}/remove_router_interface"
    subnet_body = {"subnet_id": subnet["id"]}
    assert demo.refused("PUT", remove, subnet_body) == (409, "RouterInterfaceInUseByFloatingIP")
    clear = {"router": {"external_gateway_info": None}}
    assert demo.refused("PUT", f"routers/{router['id']}", clear) == (409, "RouterExternalGatewayInUseByFloatingIp")
    assert demo.refused("DELETE", f"ports/{interface['port_id']}") == (409, "ServicePortInUse")
    demo.ok("PUT", f"floatingips/{made['id']}", {"floatingip": {"port_id": None}})
    demo.cloud.settle()
    assert demo.ok("GET", f"floatingips/{made['id']}")["floatingip"]["status"] == "DOWN"
    assert demo.ok("PUT", f"routers/{router['id']}", clear)["router"]["external_gateway_info"] is None
    assert demo.refused("DELETE", f"routers/{router['id']}") == (409, "RouterInUse")
    demo.ok("PUT", remove, subnet_body)
    demo.ok("DELETE", f"routers/{router['id']}")
    demo.ok("DELETE", f"floatingips/{made['id']}")
    assert [p["device_owner"] for p in admin.ok("GET", "ports", network_id=public["id"])["ports"]] == []


def test_interfaces_that_cannot_be(demo: Net) -> None:
    _, subnet = demo.network()
    _, same = demo.network("10.0.0.0/25")
    closed = demo.make("network")
    blind = demo.make("subnet", network_id=closed["id"], ip_version=4, cidr="10.5.0.0/24", gateway_ip=None)
    router, other = demo.make("router"), demo.make("router")
    add = f"routers/{router['id']}/add_router_interface"
    demo.ok("PUT", add, {"subnet_id": subnet["id"]})
    for body, answer in (
        ({"subnet_id": subnet["id"]}, (400, "BadRequest")),
        ({"subnet_id": same["id"]}, (400, "BadRequest")),
        ({"subnet_id": blind["id"]}, (400, "BadRequest")),
        ({}, (400, "BadRequest")),
        ({"subnet_id": "word"}, (400, "BadRequest")),
        ({"subnet_id": closed["id"]}, (404, "SubnetNotFound")),
        ({"port_id": closed["id"]}, (404, "PortNotFound")),
    ):
        assert demo.refused("PUT", add, body) == answer, body
    taken = f"routers/{other['id']}/add_router_interface"
    assert demo.refused("PUT", taken, {"subnet_id": subnet["id"]}) == (409, "IpAddressAlreadyAllocated")
    gone = f"routers/{other['id']}/remove_router_interface"
    assert demo.refused("PUT", gone, {"subnet_id": subnet["id"]}) == (404, "RouterInterfaceNotFoundForSubnet")
    assert demo.refused("PUT", gone, {"port_id": closed["id"]}) == (404, "RouterInterfaceNotFound")


def test_nobody_joins_anothers_router_by_naming_it(demo: Net, admin: Net) -> None:
    router = admin.make("router", name="admins")
    net, _ = demo.network()
    values = {"network_id": net["id"], "device_owner": "network:router_interface", "device_id": router["id"]}
    assert demo.call("POST", "ports", {"port": values}).status in (403, 409)
    port = demo.make("port", network_id=net["id"])
    values.pop("network_id")
    assert demo.call("PUT", f"ports/{port['id']}", {"port": values}).status in (403, 409)


@pytest.mark.req("C/L3-23")
def test_extra_routes_lead_to_neighbours(demo: Net) -> None:
    _, subnet = demo.network()
    router = demo.make("router")
    path = f"routers/{router['id']}"
    route = {"destination": "192.168.7.0/24", "nexthop": "10.0.0.9"}
    assert demo.refused("PUT", path, {"router": {"routes": [route]}}) == (400, "InvalidRoutes")
    demo.ok("PUT", f"{path}/add_router_interface", {"subnet_id": subnet["id"]})
    assert demo.ok("PUT", path, {"router": {"routes": [route]}})["router"]["routes"] == [route]
    own = {"destination": "192.168.8.0/24", "nexthop": "10.0.0.1"}
    assert demo.refused("PUT", f"{path}/add_extraroutes", {"router": {"routes": [own]}}) == (400, "InvalidRoutes")
    more = {"destination": "192.168.8.0/24", "nexthop": "10.0.0.8"}
    found = demo.ok("PUT", f"{path}/add_extraroutes", {"router": {"routes": [more]}})["router"]["routes"]
    assert found == [route, more]
    left = demo.ok("PUT", f"{path}/remove_extraroutes", {"router": {"routes": [route]}})["router"]["routes"]
    assert left == [more]
    body = {"subnet_id": subnet["id"]}
    assert demo.refused("PUT", f"{path}/remove_router_interface", body) == (409, "RouterInterfaceInUseByRoute")
    assert demo.ok("PUT", path, {"router": {"routes": None}})["router"]["routes"] == []


@pytest.mark.req("C/POL-15")
def test_only_administrators_decide_about_the_gateway(demo: Net, admin: Net) -> None:
    public = demo.public()
    wish = {"network_id": public["id"], "enable_snat": False}
    body = {"router": {"external_gateway_info": wish}}
    assert demo.refused("POST", "routers", body) == (403, "PolicyNotAuthorized")
    made = admin.make("router", external_gateway_info={**wish, "external_fixed_ips": [{"ip_address": "172.24.4.77"}]})
    assert made["external_gateway_info"]["enable_snat"] is False
    assert made["external_gateway_info"]["external_fixed_ips"][0]["ip_address"] == "172.24.4.77"
    net, _ = demo.network()
    inside = {"router": {"external_gateway_info": {"network_id": net["id"]}}}
    assert demo.refused("POST", "routers", inside) == (400, "BadRequest")


def test_lists_filter_sort_and_page(demo: Net) -> None:
    names = ["b", "a", "d", "c"]
    demo.ok("POST", "networks", {"networks": [{"name": n, "tags": [n, "all"]} for n in names]})

    def listed(**query: Any) -> list[str]:
        return [n["name"] for n in demo.ok("GET", "networks", **{"router:external": False}, **query)["networks"]]

    assert listed(sort_key="name", sort_dir="desc") == ["d", "c", "b", "a"]
    assert sorted(listed(name=["a", "c"])) == ["a", "c"]
    assert listed(tags="a,all") == ["a"]
    assert sorted(listed(**{"tags-any": "a,b"})) == ["a", "b"]
    assert sorted(listed(**{"not-tags": "a,all"})) == ["b", "c", "d"]
    assert listed(**{"not-tags-any": "all"}) == []
    page = demo.ok("GET", "networks", sort_key="name", sort_dir="asc", limit=2, **{"router:external": False})
    assert [n["name"] for n in page["networks"]] == ["a", "b"]
    after = page["networks"][-1]["id"]
    assert listed(sort_key="name", sort_dir="asc", limit=2, marker=after) == ["c", "d"]
    assert listed(sort_key="name", sort_dir="asc", limit=1, marker=after, page_reverse=True) == ["a"]
    assert any(link["rel"] == "next" for link in page["networks_links"])
    assert set(demo.ok("GET", "networks", fields=["id", "name"])["networks"][0]) == {"id", "name"}
    assert demo.refused("GET", "networks", colour="red")[0] == 400
    assert demo.refused("GET", "networks", admin_state_up="maybe")[0] == 400
    assert demo.refused("GET", "networks", limit=1, marker="nothing") == (404, "NetworkNotFound")
    assert demo.refused("GET", "networks", sort_key="name")[0] == 400


@pytest.mark.req("C/NET-41")
def test_bulk_create_is_all_or_nothing(demo: Net) -> None:
    net, _ = demo.network()
    before = demo.ok("GET", "ports")
    bad = [{"network_id": net["id"]}, {"network_id": net["id"], "fixed_ips": [{"ip_address": "10.9.9.9"}]}]
    assert demo.refused("POST", "ports", {"ports": bad}) == (400, "InvalidIpForNetwork")
    assert demo.ok("GET", "ports") == before
    made = demo.ok("POST", "ports", {"ports": [{"network_id": net["id"]}] * 3})["ports"]
    assert len({p["fixed_ips"][0]["ip_address"] for p in made}) == 3


def test_tags_and_revisions(demo: Net) -> None:
    net = demo.make("network", name="n")
    path = f"networks/{net['id']}"
    assert demo.call("PUT", f"{path}/tags/red").status == 201
    assert demo.call("GET", f"{path}/tags/red").status == 204
    assert demo.refused("GET", f"{path}/tags/blue") == (404, "TagNotFound")
    assert demo.ok("PUT", f"{path}/tags", {"tags": ["a", "b"]}) == {"tags": ["a", "b"]}
    assert demo.ok("GET", f"{path}/tags") == {"tags": ["a", "b"]}
    assert demo.call("DELETE", f"{path}/tags/a").status == 204
    assert demo.ok("GET", path)["network"]["tags"] == ["b"]
    revision = demo.ok("GET", path)["network"]["revision_number"]
    assert revision > net["revision_number"]
    token, url = demo.cloud.token("demo"), f"/network/v2.0/{path}"
    body = {"network": {"description": "x"}}
    for number, status in ((revision + 7, 412), (revision, 200)):
        headers = {"If-Match": f"revision_number={number}"}
        assert demo.cloud.request("PUT", url, body, token=token, headers=headers).status == status


def test_subnet_pools_cut_prefixes(demo: Net) -> None:
    pool = demo.make("subnetpool", prefixes=["10.8.0.0/23", "10.8.2.0/23"], default_prefixlen=24)
    assert pool["prefixes"] == ["10.8.0.0/22"]
    net = demo.make("network")
    first = demo.make("subnet", network_id=net["id"], subnetpool_id=pool["id"])
    second = demo.make("subnet", network_id=net["id"], subnetpool_id=pool["id"], prefixlen=25)
    assert (first["cidr"], second["cidr"], second["ip_version"]) == ("10.8.0.0/24", "10.8.1.0/25", 4)
    too_long = {"subnet": {"network_id": net["id"], "subnetpool_id": pool["id"], "prefixlen": 4}}
    assert demo.refused("POST", "subnets", too_long) == (400, "MinPrefixSubnetAllocationError")
    taken = {"subnet": {"network_id": net["id"], "subnetpool_id": pool["id"], "cidr": "10.8.0.0/24"}}
    assert demo.refused("POST", "subnets", taken) == (409, "SubnetAllocationError")
    assert demo.refused("DELETE", f"subnetpools/{pool['id']}") == (400, "SubnetPoolDeleteError")
    demo.ok("DELETE", f"networks/{net['id']}")
    demo.ok("DELETE", f"subnetpools/{pool['id']}")


def test_a_network_in_use_stays_and_takes_its_subnets_with_it(demo: Net, admin: Net) -> None:
    net, subnet = demo.network()
    port = demo.make("port", network_id=net["id"])
    assert demo.refused("DELETE", f"networks/{net['id']}") == (409, "NetworkInUse")
    assert demo.refused("DELETE", f"subnets/{subnet['id']}") == (409, "SubnetInUse")
    demo.ok("DELETE", f"ports/{port['id']}")
    demo.cloud.settle()
    demo.ok("DELETE", f"networks/{net['id']}")
    assert demo.call("GET", f"subnets/{subnet['id']}").status == 404
    demo.cloud.settle()
    assert [a.drivers.network.networks() for a in demo.cloud.agents] == [[admin.public()["id"]]]
    used = demo.ok("GET", f"quotas/{net['project_id']}/details.json")["quota"]
    assert [used[k]["used"] for k in ("network", "subnet", "port")] == [0, 0, 0]


@pytest.mark.req("C/AGT-01")
def test_agents_are_the_hosts_in_other_words(demo: Net, admin: Net) -> None:
    found = admin.ok("GET", "agents")["agents"]
    assert [a["binary"] for a in found] == [
        "neutron-openvswitch-agent", "neutron-dhcp-agent", "neutron-l3-agent", "neutron-metadata-agent",
    ]  # fmt: skip
    assert all(a["alive"] and a["host"] == "host1" for a in found)
    assert [a["agent_type"] for a in admin.ok("GET", "agents", agent_type="DHCP Agent")["agents"]] == ["DHCP agent"]
    assert demo.ok("GET", "agents")["agents"] == []
    dhcp = found[1]["id"]
    assert demo.refused("GET", f"agents/{dhcp}") == (404, "AgentNotFound")
    off = {"agent": {"admin_state_up": False}}
    assert admin.ok("PUT", f"agents/{dhcp}", off)["agent"]["admin_state_up"] is False
    net, _ = demo.network()
    assert admin.ok("GET", f"networks/{net['id']}/dhcp-agents")["agents"] == []
    demo.cloud.settle()
    admin.ok("PUT", f"agents/{dhcp}", {"agent": {"admin_state_up": True}})
    assert admin.call("POST", f"agents/{dhcp}/dhcp-networks", {"network_id": net["id"]}).status == 201
    again = {"network_id": net["id"]}
    assert admin.refused("POST", f"agents/{dhcp}/dhcp-networks", again) == (409, "NetworkHostedByDHCPAgent")
    assert [n["id"] for n in admin.ok("GET", f"agents/{dhcp}/dhcp-networks")["networks"]] == [net["id"]]
    assert admin.call("DELETE", f"agents/{dhcp}/dhcp-networks/{net['id']}").status == 204


@pytest.mark.req("C/ARCH-18")
def test_what_is_announced_is_there(demo: Net) -> None:
    found = demo.ok("GET", "extensions")["extensions"]
    for one in found:
        assert demo.ok("GET", f"extensions/{one['alias']}")["extension"] == one
    assert demo.call("GET", "extensions/quantum-leap").status == 404
    versions = demo.cloud.request("GET", "/network/", token="")
    assert (versions.status, versions.json["versions"][0]["id"]) == (200, "v2.0")
    names = {r["name"] for r in demo.ok("GET", "")["resources"]}
    assert {"network", "subnet", "port"} <= names
    assert demo.ok("GET", "availability_zones")["availability_zones"][0]["state"] == "available"
    providers = demo.ok("GET", "service-providers")["service_providers"]
    assert [p["service_type"] for p in providers][:1] == ["L3_ROUTER_NAT"]


@pytest.mark.req("C/L3A-14")
def test_a_router_taken_from_its_host_stays_nowhere_until_it_is_given_to_one(demo: Net, admin: Net) -> None:
    _, subnet = demo.network()
    router = demo.make("router", external_gateway_info={"network_id": demo.public()["id"]})
    demo.ok("PUT", f"routers/{router['id']}/add_router_interface", {"subnet_id": subnet["id"]})
    demo.cloud.settle()
    port = demo.make("port", network_id=subnet["network_id"])
    floating = demo.make("floatingip", floating_network_id=demo.public()["id"], port_id=port["id"])
    where = f"routers/{router['id']}/l3-agents"
    (agent,) = admin.ok("GET", where)["agents"]
    take = f"agents/{agent['id']}/l3-routers"
    here = demo.cloud.agents[0].drivers.network

    def ports() -> set[str]:
        leads = demo.ok("GET", f"floatingips/{floating['id']}")["floatingip"]
        return {p["status"] for p in [leads, *admin.ok("GET", "ports", device_id=router["id"])["ports"]]}

    def taken() -> None:
        admin.ok("DELETE", f"{take}/{router['id']}")
        demo.ok("PUT", f"routers/{router['id']}", {"router": {"admin_state_up": True, "name": "still"}})
        demo.cloud.settle()
        assert admin.ok("GET", where)["agents"] == []
        assert router["id"] not in here.routers()
        assert ports() == {"DOWN"}

    def runs() -> None:
        demo.cloud.settle()
        assert [a["id"] for a in admin.ok("GET", where)["agents"]] == [agent["id"]]
        assert router["id"] in here.routers()
        assert ports() == {"ACTIVE"}

    runs()
    taken()
    assert admin.refused("DELETE", f"{take}/{router['id']}") == (409, "RouterNotHostedByL3Agent")
    admin.ok("POST", take, {"router_id": router["id"]})
    runs()
    taken()
    _, other = demo.network("10.1.0.0/24")
    demo.ok("PUT", f"routers/{router['id']}/add_router_interface", {"subnet_id": other["id"]})
    runs()
    taken()
    for up in (False, True):
        admin.ok("PUT", f"agents/{agent['id']}", {"agent": {"admin_state_up": up}})
    runs()
