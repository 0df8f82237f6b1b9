"""Rows of the requirements about single attributes, filters and refusals of Networking, one cloud for all."""

from __future__ import annotations

import ipaddress
import itertools
from collections.abc import Iterator
from typing import Any

import pytest
from networking import Net

from nubila.testing.cloud import TestCloud

Json = dict[str, Any]
NOBODY = "8a1b9f6e-0000-4000-8000-000000000000"


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestCloud]:
    cloud = TestCloud(tmp_path_factory.mktemp("rows"), hosts=2)
    roles = {r["name"]: r["id"] for r in cloud.request("GET", "/v3/roles").json["roles"]}
    project = cloud.request("POST", "/v3/projects", {"project": {"name": "alt"}}).json["project"]["id"]
    user = cloud.request("POST", "/v3/users", {"user": {"name": "alt", "password": "pw"}}).json["user"]["id"]
    cloud.request("PUT", f"/v3/projects/{project}/users/{user}/roles/{roles['member']}")
    cloud.passwords["alt"] = "pw"
    for name in ("admin", "demo", "alt"):
        quota = dict.fromkeys(("network", "subnet", "port", "router", "floatingip", "security_group"), -1)
        Net(cloud, "admin").ok("PUT", f"quotas/{project_of(cloud, name)}", {"quota": quota})
    yield cloud
    cloud.close()


def project_of(cloud: TestCloud, name: str) -> str:
    found = cloud.request("GET", "/v3/projects", query={"name": name}).json["projects"]
    return str(found[0]["id"])


@pytest.fixture
def demo(shared: TestCloud) -> Net:
    return Net(shared)


@pytest.fixture
def admin(shared: TestCloud) -> Net:
    return Net(shared, "admin")


@pytest.fixture
def alt(shared: TestCloud) -> Net:
    return Net(shared, "alt")


# --- networks -------------------------------------------------------------------------------------------------------


@pytest.mark.req("C/NET-01", "C/NET-02", "C/NET-03", "C/NET-05", "C/NET-06", "C/NET-07")
def test_attributes_of_a_network(demo: Net, admin: Net) -> None:
    net = demo.make("network", name="same")
    assert (net["admin_state_up"], net["shared"], net["status"], net["subnets"]) == (True, False, "ACTIVE", [])
    assert len(net["id"]) == 36
    assert demo.make("network", name="same")["id"] != net["id"]
    wrongs: list[Json] = [{"id": NOBODY}, {"status": "DOWN"}, {"subnets": []}, {"admin_state_up": "maybe"}, {"name": 5}]
    for wrong in wrongs:
        assert demo.refused("POST", "networks", {"network": wrong})[0] == 400, wrong
        assert demo.refused("PUT", f"networks/{net['id']}", {"network": wrong})[0] == 400, wrong
    one = demo.make("subnet", network_id=net["id"], ip_version=4, cidr="10.1.0.0/24")
    two = demo.make("subnet", network_id=net["id"], ip_version=6, cidr="2001:db8::/64")
    assert set(demo.ok("GET", f"networks/{net['id']}")["network"]["subnets"]) == {one["id"], two["id"]}
    other = project_of(demo.cloud, "alt")
    assert demo.refused("POST", "networks", {"network": {"tenant_id": other}})[0] in (400, 403)
    assert admin.make("network", tenant_id=other)["project_id"] == other


@pytest.mark.req("C/NET-04", "C/NET-27", "C/NET-33", "C/ARCH-14", "C/POL-05", "C/POL-08")
def test_only_administrators_share_and_then_everybody_plugs(demo: Net, admin: Net, alt: Net) -> None:
    assert demo.refused("POST", "networks", {"network": {"shared": True}}) == (403, "PolicyNotAuthorized")
    mine = demo.make("network", shared=False)  # the default, said aloud
    assert demo.refused("PUT", f"networks/{mine['id']}", {"network": {"shared": True}})[0] == 403
    assert mine["id"] not in {n["id"] for n in alt.ok("GET", "networks")["networks"]}
    public = admin.make("network", shared=True)
    assert public["id"] in {n["id"] for n in alt.ok("GET", "networks", shared=True)["networks"]}
    port = alt.make("port", network_id=public["id"])
    assert port["project_id"] == project_of(alt.cloud, "alt")
    assert demo.refused("GET", f"ports/{port['id']}") == (404, "PortNotFound")


@pytest.mark.req("C/NET-09", "C/SG-07", "C/NET-19")
def test_what_is_in_use_stays_and_says_by_whom(demo: Net) -> None:
    net, subnet = demo.network("10.2.0.0/24")
    group = demo.make("security_group", "security-groups", name="used")
    port = demo.make("port", network_id=net["id"], security_groups=[group["id"]])
    assert demo.refused("DELETE", f"networks/{net['id']}") == (409, "NetworkInUse")
    assert demo.refused("DELETE", f"subnets/{subnet['id']}") == (409, "SubnetInUse")
    assert demo.refused("DELETE", f"security-groups/{group['id']}") == (409, "SecurityGroupInUse")
    again = {"subnet": {"network_id": net["id"], "ip_version": 4, "cidr": "10.2.0.128/25"}}
    assert demo.refused("POST", "subnets", again) == (400, "InvalidInput")
    demo.ok("DELETE", f"ports/{port['id']}")
    demo.ok("DELETE", f"security-groups/{group['id']}")
    demo.ok("DELETE", f"networks/{net['id']}")  # its DHCP port goes with it


# --- subnets --------------------------------------------------------------------------------------------------------


@pytest.mark.req("C/NET-10", "C/NET-14", "C/NET-34", "C/NET-35", "C/NET-40", "C/L3HA-19")
@pytest.mark.parametrize(
    ("asked", "gateway", "pools"),
    [
        ({}, "10.0.0.1", [("10.0.0.2", "10.0.0.254")]),
        ({"gateway_ip": "10.0.0.254"}, "10.0.0.254", [("10.0.0.1", "10.0.0.253")]),
        ({"gateway_ip": "10.0.0.100"}, "10.0.0.100", [("10.0.0.1", "10.0.0.99"), ("10.0.0.101", "10.0.0.254")]),
        ({"gateway_ip": None}, None, [("10.0.0.1", "10.0.0.254")]),
        (
            {"allocation_pools": [{"start": "10.0.0.9", "end": "10.0.0.19"}]},
            "10.0.0.1",
            [("10.0.0.9", "10.0.0.19")],
        ),
    ],
)
def test_gateways_and_pools(demo: Net, asked: Json, gateway: str | None, pools: list[tuple[str, str]]) -> None:
    _, subnet = demo.network("10.0.0.0/24", **asked)
    assert subnet["gateway_ip"] == gateway
    assert [(p["start"], p["end"]) for p in subnet["allocation_pools"]] == pools


@pytest.mark.req("C/NET-12", "C/NET-13", "C/NET-15", "C/NET-36", "C/NET-37", "C/NET-38", "C/DHCP-07")
def test_what_guests_are_told(demo: Net) -> None:
    routes = [
        {"destination": "40.0.1.0/24", "nexthop": "10.3.0.2"},
        {"destination": "40.0.2.0/24", "nexthop": "10.3.0.3"},
    ]
    net, subnet = demo.network("10.3.0.0/24", dns_nameservers=["8.8.8.7", "8.8.8.8"], host_routes=routes)
    assert subnet["dns_nameservers"] == ["8.8.8.7", "8.8.8.8"]
    assert subnet["host_routes"] == routes
    assert subnet["enable_dhcp"] is True
    demo.cloud.settle()
    servers = demo.ok("GET", "ports", network_id=net["id"], device_owner="network:dhcp")["ports"]
    assert len(servers) >= 1
    demo.ok("PUT", f"subnets/{subnet['id']}", {"subnet": {"enable_dhcp": False}})
    demo.cloud.settle()
    assert demo.ok("GET", "ports", network_id=net["id"], device_owner="network:dhcp")["ports"] == []
    for wrong in (
        {"dns_nameservers": ["banana"]}, {"dns_nameservers": ["8.8.8.8", "8.8.8.8"]}, {"enable_dhcp": "perhaps"},
        {"host_routes": [{"destination": "banana", "nexthop": "10.3.0.2"}]}, {"host_routes": [{"nexthop": "10.3.0.2"}]},
    ):  # fmt: skip
        assert demo.refused("PUT", f"subnets/{subnet['id']}", {"subnet": wrong})[0] == 400, wrong


@pytest.mark.req("C/NET-11", "C/NET-16", "C/NET-17", "C/NET-18", "C/L3HA-17")
def test_attributes_of_subnets_of_both_families(demo: Net) -> None:
    net, four = demo.network("10.4.0.0/24", name="same")
    six = demo.make("subnet", network_id=net["id"], ip_version=6, cidr="2001:db8:4::/64", name="same")
    assert (four["ip_version"], four["ipv6_address_mode"], four["ipv6_ra_mode"]) == (4, None, None)
    assert six["ip_version"] == 6
    port = demo.make("port", network_id=net["id"])
    assert {ip["subnet_id"] for ip in port["fixed_ips"]} == {four["id"], six["id"]}
    base = {"network_id": net["id"], "ip_version": 4, "cidr": "10.5.0.0/24"}
    for wrong in (
        {"ip_version": 5}, {"ip_version": 6}, {"cidr": None}, {"cidr": "10.5.0.0/99"}, {"id": NOBODY},
        {"ipv6_ra_mode": "slaac"}, {"cidr": "banana"},
    ):  # fmt: skip
        assert demo.refused("POST", "subnets", {"subnet": {**base, **wrong}})[0] == 400, wrong
    loose = demo.make("subnet", network_id=net["id"], ip_version=4, cidr="10.5.0.77/24")
    assert loose["cidr"] == "10.5.0.0/24"


# --- ports ----------------------------------------------------------------------------------------------------------


@pytest.mark.req("C/NET-21", "C/NET-25", "C/NET-26", "C/NET-29", "C/NET-39", "C/NET-28")
def test_attributes_of_a_port(demo: Net, admin: Net, alt: Net) -> None:
    net, _ = demo.network("10.6.0.0/24")
    port = demo.make("port", network_id=net["id"], name="same", device_id="d-1", device_owner="my:thing")
    assert (port["device_id"], port["device_owner"], port["status"]) == ("d-1", "my:thing", "DOWN")
    assert port["mac_address"].startswith("fa:16:3e:")
    assert "binding:host_id" not in port
    assert admin.ok("GET", f"ports/{port['id']}")["port"]["binding:vif_type"] == "unbound"
    assert demo.refused("POST", "ports", {"port": {"network_id": net["id"], "binding:host_id": "host1"}})[0] == 403
    assert demo.refused("PUT", f"ports/{port['id']}", {"port": {"status": "ACTIVE"}})[0] == 400
    wanted = {"port": {"network_id": net["id"], "mac_address": port["mac_address"]}}
    assert demo.refused("POST", "ports", wanted) == (409, "MacAddressInUse")
    for query in ({"device_id": "d-1"}, {"device_owner": "my:thing"}, {"mac_address": port["mac_address"]}):
        assert [p["id"] for p in demo.ok("GET", "ports", network_id=net["id"], **query)["ports"]] == [port["id"]]
    public = admin.make("network", shared=True)
    theirs = {"port": {"network_id": public["id"], "mac_address": "fa:16:3e:01:02:03"}}
    assert alt.refused("POST", "ports", theirs) == (403, "PolicyNotAuthorized")


@pytest.mark.req("C/NET-23", "C/NET-24")
def test_addresses_of_a_port(demo: Net) -> None:
    pools = [{"start": "10.7.0.10", "end": "10.7.0.12"}]
    net, subnet = demo.network("10.7.0.0/24", allocation_pools=pools, enable_dhcp=False)
    base = {"network_id": net["id"]}
    ports = [demo.make("port", **base) for _ in range(3)]
    given = {p["fixed_ips"][0]["ip_address"] for p in ports}
    assert given == {"10.7.0.10", "10.7.0.11", "10.7.0.12"}
    assert demo.refused("POST", "ports", {"port": base}) == (409, "IpAddressGenerationFailure")
    demo.ok("DELETE", f"ports/{ports[1]['id']}")
    assert demo.make("port", **base)["fixed_ips"] == ports[1]["fixed_ips"]
    wish = {"subnet_id": subnet["id"], "ip_address": "10.7.0.77"}
    assert demo.make("port", fixed_ips=[wish], **base)["fixed_ips"] == [wish]
    assert demo.refused("POST", "ports", {"port": {**base, "fixed_ips": [wish]}}) == (409, "IpAddressAlreadyAllocated")
    outside = {"port": {**base, "fixed_ips": [{"ip_address": "10.8.0.7"}]}}
    assert demo.refused("POST", "ports", outside) == (400, "InvalidIpForNetwork")


@pytest.mark.req("C/AAP-02", "C/AAP-04")
def test_pairs_take_the_ports_mac_unless_told(demo: Net) -> None:
    net, _ = demo.network("10.9.0.0/24")
    pairs = [{"ip_address": "10.9.0.99"}, {"ip_address": "10.10.0.0/16", "mac_address": "fa:16:3e:00:00:07"}]
    port = demo.make("port", network_id=net["id"], allowed_address_pairs=pairs)
    assert port["allowed_address_pairs"] == [
        {"ip_address": "10.9.0.99", "mac_address": port["mac_address"]},
        {"ip_address": "10.10.0.0/16", "mac_address": "fa:16:3e:00:00:07"},
    ]
    assert "allowed-address-pairs" in {e["alias"] for e in demo.ok("GET", "extensions")["extensions"]}
    changed = demo.ok("PUT", f"ports/{port['id']}", {"port": {"allowed_address_pairs": []}})["port"]
    assert changed["allowed_address_pairs"] == []


# --- every resource -------------------------------------------------------------------------------------------------


@pytest.mark.req("C/NET-30", "C/NET-32", "C/NET-41")
def test_an_administrator_acts_for_a_project_and_lists_are_whole_or_nothing(demo: Net, admin: Net) -> None:
    theirs = project_of(demo.cloud, "demo")
    net = admin.make("network", tenant_id=theirs, name="made-for-demo")
    assert demo.ok("GET", "networks", name="made-for-demo")["networks"][0]["id"] == net["id"]
    before = len(demo.ok("GET", "networks")["networks"])
    bad = {"networks": [{"name": "one"}, {"name": "two", "admin_state_up": "maybe"}]}
    assert demo.refused("POST", "networks", bad)[0] == 400
    assert len(demo.ok("GET", "networks")["networks"]) == before
    made = demo.ok("POST", "networks", {"networks": [{"name": "one"}, {"name": "two"}]})["networks"]
    assert [n["name"] for n in made] == ["one", "two"]


@pytest.mark.req("C/PAG-01", "C/PAG-02", "C/PAG-03", "C/PAG-04", "C/ML2-08")
def test_pages_order_fields_and_filters(demo: Net) -> None:
    names = [f"page-{i}" for i in range(5)]
    for name in names:
        demo.make("network", name=name, description="paged")
    seen: list[str] = []
    marker: Json = {}
    for _ in range(4):
        got = demo.ok("GET", "networks", description="paged", limit=2, sort_key="name", sort_dir="asc", **marker)
        seen += [n["name"] for n in got["networks"]]
        if not any(link["rel"] == "next" for link in got["networks_links"]):
            break
        marker = {"marker": got["networks"][-1]["id"]}
    assert seen == names
    back = demo.ok("GET", "networks", description="paged", sort_key="name", sort_dir="desc", fields="name")["networks"]
    assert back == [{"name": n} for n in reversed(names)]
    two = demo.ok("GET", "networks", name=["page-1", "page-3"], description="paged", fields=["name", "id"])["networks"]
    assert sorted(n["name"] for n in two) == ["page-1", "page-3"]
    assert all(set(n) == {"name", "id"} for n in two)
    assert demo.ok("GET", "networks", name="page-1", description="other")["networks"] == []
    assert demo.refused("GET", "networks", sort_key="banana", sort_dir="asc")[0] == 400


@pytest.mark.req("C/QTA-01", "C/QTA-03", "C/QTA-04")
@pytest.mark.parametrize(
    ("item", "path", "body"),
    [
        ("network", "networks", {}),
        ("router", "routers", {}),
        ("security_group", "security-groups", {"name": "g"}),
        ("subnetpool", "subnetpools", {"prefixes": ["10.0.0.0/8"], "name": "p"}),
    ],
)
def test_more_than_the_quota_is_refused_also_to_administrators(admin: Net, item: str, path: str, body: Json) -> None:
    created = admin.cloud.request("POST", "/v3/projects", {"project": {"name": f"q-{item}"}}).json["project"]["id"]
    aliases = {e["alias"] for e in admin.ok("GET", "extensions")["extensions"]}
    assert {"quotas", "quota_details"} <= aliases
    extra = 1 if item == "security_group" else 0  # every project has a default one
    admin.ok("PUT", f"quotas/{created}", {"quota": {item: 1 + extra}})
    assert admin.ok("GET", f"quotas/{created}")["quota"][item] == 1 + extra
    admin.make(item, path, project_id=created, **body)
    again = {item: {"project_id": created, **body}}
    assert admin.refused("POST", path, again) == (409, "OverQuota")
    admin.ok("DELETE", f"quotas/{created}")
    assert admin.ok("GET", f"quotas/{created}")["quota"][item] != 1 + extra


# --- provider networks ----------------------------------------------------------------------------------------------


@pytest.mark.req("C/PROV-01", "C/PROV-02", "C/PROV-03", "C/PROV-06", "C/PROV-07", "C/PROV-08", "C/PROV-10")
def test_segments_that_can_and_cannot_be(admin: Net) -> None:
    def made(**asked: Any) -> Any:
        body = {"network": {f"provider:{k}": v for k, v in asked.items()}}
        got = admin.call("POST", "networks", body)
        return got.status

    assert made(network_type="local") == 201
    assert made(network_type="banana") == 400
    assert made(network_type="gre", segmentation_id=9) == 201
    assert made(network_type="gre", segmentation_id=9) == 409
    assert made(network_type="gre", segmentation_id=2**32 - 1) == 201
    assert made(network_type="gre", segmentation_id=2**32) == 400
    assert made(network_type="gre", segmentation_id=-1) == 400
    assert made(network_type="gre", physical_network="physnet1", segmentation_id=10) == 400
    assert made(network_type="vlan", physical_network="physnet1", segmentation_id=4094) == 201
    assert made(network_type="vlan", physical_network="physnet1", segmentation_id=4095) == 400
    assert made(network_type="vlan", physical_network="physnet1", segmentation_id=4094) == 409
    assert made(network_type="vlan", physical_network="banana", segmentation_id=5) == 400
    assert made(network_type="vlan", physical_network="physnet1", segmentation_id=0) == 400
    assert made(network_type="flat", physical_network="physnet1", segmentation_id=5) == 400
    assert made(network_type="flat") == 400
    asked = {"network": {"provider:network_type": "flat", "provider:physical_network": "banana"}}
    assert admin.refused("POST", "networks", asked) == (400, "InvalidInput")
    assert made(network_type="vxlan", segmentation_id=2**24) == 400


@pytest.mark.req("C/PROV-04", "C/PROV-05", "C/PROV-11", "C/POL-09", "C/L3HA-18")
def test_provider_attributes_are_the_administrators(demo: Net, admin: Net) -> None:
    net = admin.make("network", tenant_id=project_of(demo.cloud, "demo"), **{"provider:network_type": "vxlan"})
    assert {"provider:network_type", "provider:physical_network", "provider:segmentation_id"} <= set(net)
    seen = demo.ok("GET", f"networks/{net['id']}")["network"]
    assert not any(name.startswith("provider:") for name in seen)
    asked = {"network": {"provider:network_type": "vxlan"}}
    assert demo.refused("POST", "networks", asked) == (403, "PolicyNotAuthorized")
    assert demo.make("subnet", network_id=net["id"], ip_version=4, cidr="10.11.0.0/24")["network_id"] == net["id"]


# --- routers and floating addresses ---------------------------------------------------------------------------------


@pytest.mark.req("C/L3-01", "C/L3-02", "C/L3-11", "C/L3-12", "C/L3-13", "C/L3-14", "C/L3HA-22")
def test_attributes_of_a_router_and_its_one_gateway(demo: Net, admin: Net) -> None:
    router = demo.make("router", name="r")
    assert (router["admin_state_up"], router["status"], router["external_gateway_info"]) == (True, "ACTIVE", None)
    assert router["routes"] == []
    assert demo.refused("PUT", f"routers/{router['id']}", {"router": {"status": "DOWN"}})[0] == 400
    public = demo.public()
    assert [n["id"] for n in demo.ok("GET", "networks", **{"router:external": True})["networks"]] == [public["id"]]
    assert demo.refused("PUT", f"networks/{public['id']}", {"network": {"name": "mine"}})[0] in (403, 404)
    assert demo.refused("POST", "networks", {"network": {"router:external": True}})[0] == 403
    inside, _ = demo.network("10.12.0.0/24")
    wrong = {"router": {"external_gateway_info": {"network_id": inside["id"]}}}
    assert demo.refused("PUT", f"routers/{router['id']}", wrong)[0] == 400
    gateway = {"router": {"external_gateway_info": {"network_id": public["id"]}}}
    shown = demo.ok("PUT", f"routers/{router['id']}", gateway)["router"]
    assert shown["external_gateway_info"]["network_id"] == public["id"]
    ports = admin.ok("GET", "ports", device_id=router["id"])["ports"]
    assert [p["device_owner"] for p in ports] == ["network:router_gateway"]


@pytest.mark.req("C/L3-04", "C/L3-05", "C/L3-09", "C/L3-10", "C/NET-22")
def test_interfaces_of_a_router(demo: Net) -> None:
    router = demo.make("router")
    _, subnet = demo.network("10.13.0.0/24")
    path = f"routers/{router['id']}"
    made = demo.ok("PUT", f"{path}/add_router_interface", {"subnet_id": subnet["id"]})
    port = demo.ok("GET", f"ports/{made['port_id']}")["port"]
    assert port["fixed_ips"] == [{"subnet_id": subnet["id"], "ip_address": "10.13.0.1"}]
    assert port["device_owner"] == "network:router_interface"
    again, closed = demo.network("10.14.0.0/24", gateway_ip=None)
    assert demo.refused("PUT", f"{path}/add_router_interface", {"subnet_id": closed["id"]})[0] == 400
    _, same = demo.network("10.13.0.0/25")
    assert demo.refused("PUT", f"{path}/add_router_interface", {"subnet_id": same["id"]})[0] == 400
    own = demo.make("port", network_id=again["id"], fixed_ips=[{"ip_address": "10.14.0.9"}])
    assert demo.ok("PUT", f"{path}/add_router_interface", {"port_id": own["id"]})["port_id"] == own["id"]
    assert demo.refused("DELETE", path) == (409, "RouterInUse")
    for body in ({"subnet_id": subnet["id"]}, {"port_id": own["id"]}):
        demo.ok("PUT", f"{path}/remove_router_interface", body)
    demo.ok("DELETE", path)


@pytest.mark.req("C/L3-06", "C/L3-08", "C/L3-15", "C/L3-16", "C/L3-17", "C/L3-18")
def test_the_life_of_a_floating_address(demo: Net) -> None:
    public = demo.public()
    net, subnet = demo.network("10.15.0.0/24")
    wishes = [{"subnet_id": subnet["id"], "ip_address": f"10.15.0.{n}"} for n in (20, 21)]
    port = demo.make("port", network_id=net["id"], fixed_ips=wishes)
    floating = demo.make("floatingip", floating_network_id=public["id"])
    assert (floating["status"], floating["port_id"], floating["router_id"]) == ("DOWN", None, None)
    path = f"floatingips/{floating['id']}"
    body = {"floatingip": {"port_id": port["id"], "fixed_ip_address": "10.15.0.21"}}
    assert demo.refused("PUT", path, body) == (404, "ExternalGatewayForFloatingIPNotFound")
    router = demo.make("router", external_gateway_info={"network_id": public["id"]})
    demo.ok("PUT", f"routers/{router['id']}/add_router_interface", {"subnet_id": subnet["id"]})
    linked = demo.ok("PUT", path, body)["floatingip"]
    assert (linked["router_id"], linked["fixed_ip_address"]) == (router["id"], "10.15.0.21")
    demo.cloud.settle()
    assert demo.ok("GET", path)["floatingip"]["status"] == "ACTIVE"
    assert [f["id"] for f in demo.ok("GET", "floatingips", port_id=port["id"])["floatingips"]] == [floating["id"]]
    clear: Json = {"router": {"external_gateway_info": {}}}
    assert demo.refused("PUT", f"routers/{router['id']}", clear)[0] == 409
    gone = {"subnet_id": subnet["id"]}
    assert demo.refused("PUT", f"routers/{router['id']}/remove_router_interface", gone)[0] == 409
    assert demo.ok("PUT", path, {"floatingip": {"port_id": None}})["floatingip"]["router_id"] is None
    demo.ok("DELETE", path)
    assert demo.ok("PUT", f"routers/{router['id']}", clear)["router"]["external_gateway_info"] is None
    assert demo.refused("POST", "floatingips", {"floatingip": {}})[0] == 400
    assert demo.refused("POST", "floatingips", {"floatingip": {"floating_network_id": net["id"]}})[0] == 400


@pytest.mark.req("C/L3-23")
def test_extra_routes(demo: Net) -> None:
    _, subnet = demo.network("10.16.0.0/24")
    router = demo.make("router")
    demo.ok("PUT", f"routers/{router['id']}/add_router_interface", {"subnet_id": subnet["id"]})
    routes = [{"destination": "10.99.0.0/16", "nexthop": "10.16.0.9"}]
    assert demo.ok("PUT", f"routers/{router['id']}", {"router": {"routes": routes}})["router"]["routes"] == routes
    lost = [{"destination": "10.99.0.0/16", "nexthop": "192.0.2.1"}]
    assert demo.refused("PUT", f"routers/{router['id']}", {"router": {"routes": lost}})[0] == 400


@pytest.mark.req("C/L3-24")
def test_an_administrators_router_serves_a_projects_subnet(demo: Net, admin: Net) -> None:
    _, subnet = demo.network("10.17.0.0/24")
    router = admin.make("router", name="service")
    made = admin.ok("PUT", f"routers/{router['id']}/add_router_interface", {"subnet_id": subnet["id"]})
    assert made["subnet_id"] == subnet["id"]
    assert demo.refused("GET", f"routers/{router['id']}") == (404, "RouterNotFound")


# --- security groups ------------------------------------------------------------------------------------------------


@pytest.mark.req("C/SG-01", "C/SG-03", "C/SG-06")
def test_groups_of_projects_and_ports(demo: Net) -> None:
    net, _ = demo.network("10.18.0.0/24")
    default = demo.ok("GET", "security-groups", name="default")["security_groups"][0]
    port = demo.make("port", network_id=net["id"])
    assert port["security_groups"] == [default["id"]]
    assert demo.refused("POST", "security-groups", {"security_group": {"name": "default"}})[0] == 409
    assert demo.refused("DELETE", f"security-groups/{default['id']}")[0] == 409
    one, two = (demo.make("security_group", "security-groups", name="same")["id"] for _ in range(2))
    both = demo.make("port", network_id=net["id"], security_groups=[one, two])
    assert set(both["security_groups"]) == {one, two}
    none = demo.ok("PUT", f"ports/{both['id']}", {"port": {"security_groups": []}})["port"]
    assert none["security_groups"] == []


@pytest.mark.req("C/SG-04")
@pytest.mark.parametrize(
    ("wrong", "status"),
    [
        ({"direction": "up"}, 400),
        ({"direction": None}, 400),
        ({"protocol": "tcp", "port_range_min": 9, "port_range_max": 5}, 400),
        ({"port_range_min": 9, "port_range_max": 9}, 400),
        ({"protocol": "tcp", "port_range_min": 0, "port_range_max": 70000}, 400),
        ({"remote_ip_prefix": "10.0.0.0/8", "remote_group_id": "GROUP"}, 400),
        ({"remote_ip_prefix": "2001:db8::/32"}, 400),
        ({"remote_ip_prefix": "banana"}, 400),
        ({"protocol": "banana"}, 400),
        ({"protocol": "256"}, 400),
        ({"ethertype": "IPv5"}, 400),
        ({"remote_group_id": NOBODY}, 404),
        ({"protocol": "udp", "port_range_min": 53, "port_range_max": 53}, 409),
    ],
)
def test_rules_that_cannot_be(demo: Net, wrong: Json, status: int) -> None:
    found = demo.ok("GET", "security-groups", name="ruled")["security_groups"]
    group = found[0] if found else demo.make("security_group", "security-groups", name="ruled")
    rule = {"security_group_id": group["id"], "direction": "ingress"}
    if not found:
        dns = {"protocol": "udp", "port_range_min": 53, "port_range_max": 53}
        assert demo.make("security_group_rule", "security-group-rules", **rule, **dns)["ethertype"] == "IPv4"
    asked = {**rule, **{k: group["id"] if v == "GROUP" else v for k, v in wrong.items()}}
    assert demo.refused("POST", "security-group-rules", {"security_group_rule": asked})[0] == status


# --- agents ---------------------------------------------------------------------------------------------------------


@pytest.mark.req(
    "C/AGT-04", "C/AGT-05", "C/AGT-08", "C/AGT-09", "C/AGT-18", "C/META-05", "C/DHCP-18", "C/ARCH-05", "C/ARCH-23"
)
def test_agents_are_shown_to_administrators(demo: Net, admin: Net) -> None:
    rows = admin.ok("GET", "agents")["agents"]
    kinds = {"Open vSwitch agent", "DHCP agent", "L3 agent", "Metadata agent"}
    assert {(a["agent_type"], a["host"]) for a in rows} >= set(itertools.product(kinds, ("host1", "host2")))
    assert all(a["alive"] and a["admin_state_up"] and a["binary"].startswith("neutron-") for a in rows)
    assert demo.call("GET", "agents").status in (200, 403)
    assert demo.call("GET", "agents").status == 403 or demo.ok("GET", "agents")["agents"] == []
    net, subnet = demo.network("10.19.0.0/24")
    demo.cloud.settle()
    serving = admin.ok("GET", f"networks/{net['id']}/dhcp-agents")["agents"]
    assert serving
    assert all(a["agent_type"] == "DHCP agent" for a in serving)
    hosted = admin.ok("GET", f"agents/{serving[0]['id']}/dhcp-networks")["networks"]
    assert [n["subnets"] for n in hosted if n["id"] == net["id"]] == [[subnet["id"]]]
    for path in (f"networks/{net['id']}/dhcp-agents", f"agents/{serving[0]['id']}/dhcp-networks"):
        assert demo.call("GET", path).status == 403


@pytest.mark.req("C/AGT-15", "C/AGT-19", "C/L3A-14")
def test_nothing_new_is_put_on_an_agent_that_is_switched_off(demo: Net, admin: Net) -> None:
    agents = admin.ok("GET", "agents", agent_type="L3 agent")["agents"]
    first, second = sorted(agents, key=lambda a: str(a["host"]))
    admin.ok("PUT", f"agents/{first['id']}", {"agent": {"admin_state_up": False}})
    try:
        public = demo.public()["id"]
        for _ in range(3):
            router = demo.make("router", external_gateway_info={"network_id": public})
            demo.cloud.settle()
            hosting = admin.ok("GET", f"routers/{router['id']}/l3-agents")["agents"]
            assert [a["id"] for a in hosting] == [second["id"]]
        shown = admin.ok("GET", f"agents/{first['id']}")["agent"]
        assert (shown["admin_state_up"], shown["alive"]) == (False, True)
    finally:
        admin.ok("PUT", f"agents/{first['id']}", {"agent": {"admin_state_up": True}})


# --- who may --------------------------------------------------------------------------------------------------------


@pytest.mark.req("C/POL-01", "C/POL-12", "C/POL-14", "C/ARCH-08")
def test_tokens_and_things_of_others(demo: Net, alt: Net) -> None:
    for token in ("", "banana"):
        assert demo.cloud.request("GET", "/network/v2.0/networks", token=token).status == 401
    net, subnet = demo.network("10.20.0.0/24")
    port = demo.make("port", network_id=net["id"])
    for path in (f"networks/{net['id']}", f"subnets/{subnet['id']}", f"ports/{port['id']}"):
        assert alt.call("GET", path).status == 404
        assert alt.call("DELETE", path).status == 404
    assert alt.refused(
        "POST", "subnets", {"subnet": {"network_id": net["id"], "ip_version": 4, "cidr": "10.0.0.0/24"}}
    )[0] in (403, 404)


@pytest.mark.req("C/POL-13", "C/OPS-03")
def test_a_file_can_leave_projects_little(cloud: TestCloud) -> None:
    (cloud.state / "policy.json").write_text(
        '{"admin_only": [["rule:context_is_admin"]], "create_subnet": [["rule:admin_only"]], '
        '"create_port": [["rule:admin_only"]], "create_network": []}'
    )
    cloud.cloud.policy._next = 0.0  # as if the second between two looks had passed
    cloud.cloud.policy.reload_if_changed()
    demo, admin = Net(cloud), Net(cloud, "admin")
    net = demo.make("network", name="mine")
    subnet: Json = {"subnet": {"network_id": net["id"], "ip_version": 4, "cidr": "10.0.0.0/24"}}
    assert demo.refused("POST", "subnets", subnet) == (403, "PolicyNotAuthorized")
    made = admin.ok("POST", "subnets", {"subnet": {**subnet["subnet"], "project_id": net["project_id"]}})["subnet"]
    assert demo.ok("GET", f"subnets/{made['id']}")["subnet"]["cidr"] == "10.0.0.0/24"
    assert demo.refused("POST", "ports", {"port": {"network_id": net["id"]}}) == (403, "PolicyNotAuthorized")
    demo.ok("PUT", f"networks/{net['id']}", {"network": {"name": "still mine"}})


@pytest.mark.req("C/ARCH-15", "C/ARCH-19")
def test_projects_choose_the_same_addresses(demo: Net, alt: Net) -> None:
    mine, theirs = (user.network("10.21.0.0/24")[0] for user in (demo, alt))
    same = [{"ip_address": "10.21.0.50"}]
    for user, net in ((demo, mine), (alt, theirs)):
        port = user.make("port", network_id=net["id"], fixed_ips=same)
        assert ipaddress.ip_address(port["fixed_ips"][0]["ip_address"]) == ipaddress.ip_address("10.21.0.50")


@pytest.mark.req("C/ARCH-01", "C/ARCH-27")
def test_one_endpoint_for_everybody(demo: Net) -> None:
    root = demo.cloud.request("GET", "/network/", token="")
    assert root.status == 200
    assert root.json["versions"][0]["id"] == "v2.0"
    assert demo.call("GET", "networks").status == 200
