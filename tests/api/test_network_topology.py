"""Pools changed in part, topologies made with one request, floating IP pools, quotas that are checked, MTUs."""

from __future__ import annotations

from typing import Any

from networking import Net

Json = dict[str, Any]


def test_prefixes_come_and_go_but_not_under_a_subnet(demo: Net, admin: Net) -> None:
    pool = demo.make("subnetpool", name="p", prefixes=["10.40.0.0/16"], min_prefixlen=24)
    assert pool["default_prefixlen"] == "24"
    path = f"subnetpools/{pool['id']}"
    more = demo.ok("PUT", f"{path}/add_prefixes", {"prefixes": ["10.41.0.0/16", "10.99.0.0/24"]})
    assert more == {"prefixes": ["10.40.0.0/15", "10.99.0.0/24"]}
    net = demo.make("network")
    subnet = demo.make("subnet", network_id=net["id"], ip_version=4, subnetpool_id=pool["id"], cidr="10.41.7.0/24")
    used = {"prefixes": ["10.41.0.0/20"]}
    assert demo.refused("PUT", f"{path}/remove_prefixes", used) == (400, "IllegalSubnetPoolPrefixUpdate")
    left = demo.ok("PUT", f"{path}/remove_prefixes", {"prefixes": ["10.40.0.0/16", "10.41.8.0/21", "192.0.2.0/24"]})
    assert left["prefixes"] == [
        "10.41.0.0/21", "10.41.16.0/20", "10.41.32.0/19", "10.41.64.0/18", "10.41.128.0/17", "10.99.0.0/24",
    ]  # fmt: skip
    for bad in ({}, {"prefixes": []}, {"prefixes": "10.0.0.0/8"}, {"prefixes": ["10.0.0.0/33"]}, [],
                {"prefixes": ["fd00::/48"]}, {"prefixes": [7]}):  # fmt: skip
        assert demo.call("PUT", f"{path}/add_prefixes", bad).status == 400
    stranger = admin.make("subnetpool", name="q", prefixes=["10.70.0.0/16"])
    add = {"prefixes": ["10.71.0.0/16"]}
    assert demo.refused("PUT", f"subnetpools/{stranger['id']}/add_prefixes", add) == (404, "SubnetPoolNotFound")
    other = {"network_id": net["id"], "ip_version": 4, "cidr": "10.9.9.0/24"}
    assert demo.refused("POST", "subnets", {"subnet": other}) == (400, "NetworkSubnetPoolAffinityError")
    demo.ok("DELETE", f"subnets/{subnet['id']}")
    demo.ok("DELETE", path)


def test_onboarding(demo: Net, admin: Net) -> None:
    net, subnet = demo.network("10.80.0.0/24")
    pool = demo.make("subnetpool", name="p", prefixes=["10.81.0.0/24"])
    path = f"subnetpools/{pool['id']}/onboard_network_subnets"
    taken = demo.ok("PUT", path, {"network_id": net["id"]})
    assert taken == [{"id": subnet["id"], "cidr": "10.80.0.0/24"}]
    assert demo.ok("GET", f"subnets/{subnet['id']}")["subnet"]["subnetpool_id"] == pool["id"]
    assert demo.ok("GET", f"subnetpools/{pool['id']}")["subnetpool"]["prefixes"] == ["10.80.0.0/24", "10.81.0.0/24"]
    assert demo.refused("PUT", path, {"network_id": net["id"]}) == (400, "IllegalSubnetPoolUpdate")
    lent = admin.make("network", shared=True)
    assert demo.refused("PUT", path, {"network_id": lent["id"]}) == (403, "NotAuthorized")
    hidden = admin.make("network")
    assert demo.refused("PUT", path, {"network_id": hidden["id"]}) == (404, "NetworkNotFound")
    assert demo.call("PUT", path, {}).status == 400


def test_a_topology_with_one_request_whole_or_not_at_all(demo: Net, admin: Net) -> None:
    project = demo.make("network", name="whose")["project_id"]
    path = f"auto-allocated-topology/{project}"
    assert demo.ok("GET", path, fields="dry-run")["auto_allocated_topology"]["id"] == "dry-run=pass"
    assert demo.ok("GET", "networks", name="auto_allocated_network")["networks"] == []
    admin.ok("PUT", f"quotas/{project}", {"quota": {"subnet": 1}})
    assert demo.refused("GET", path) == (409, "OverQuota")
    assert demo.ok("GET", "networks", name="auto_allocated_network")["networks"] == []
    admin.ok("PUT", f"quotas/{project}", {"quota": {"subnet": 10}})
    made = demo.ok("GET", path)["auto_allocated_topology"]
    assert demo.ok("GET", path)["auto_allocated_topology"] == made
    net = demo.ok("GET", f"networks/{made['id']}")["network"]
    assert len(net["subnets"]) == 2
    router = demo.ok("GET", "routers", name="auto_allocated_router")["routers"][0]
    assert router["external_gateway_info"]["network_id"] == demo.public()["id"]
    ports = demo.ok("GET", "ports", device_id=router["id"])["ports"]
    inside = {ip["subnet_id"] for p in ports if p["network_id"] == net["id"] for ip in p["fixed_ips"]}
    assert inside == set(net["subnets"])
    other = admin.make("network")["project_id"]
    assert demo.refused("GET", f"auto-allocated-topology/{other}") == (403, "NotAuthorized")
    port = demo.make("port", network_id=net["id"])
    assert demo.refused("DELETE", path)[0] == 409
    assert demo.ok("GET", f"routers/{router['id']}")["router"]["id"] == router["id"]  # nothing went
    demo.ok("DELETE", f"ports/{port['id']}")
    demo.ok("DELETE", path)
    assert demo.call("GET", f"networks/{made['id']}").status == 404
    assert demo.call("GET", f"routers/{router['id']}").status == 404
    admin.ok("PUT", f"networks/{admin.public()['id']}", {"network": {"is_default": False}})
    assert demo.refused("GET", path, fields="dry-run") == (409, "AutoAllocationFailure")
    assert demo.refused("GET", path) == (409, "AutoAllocationFailure")


def test_floating_ip_pools_are_the_external_subnets_one_may_use(demo: Net, admin: Net) -> None:
    pools = demo.ok("GET", "floatingip-pools")["floatingip_pools"]
    assert [p["network_id"] for p in pools] == [demo.public()["id"]]
    net = admin.make("network", **{"router:external": True})
    subnet = admin.make("subnet", network_id=net["id"], ip_version=4, cidr="198.51.100.0/24")
    assert [p["subnet_id"] for p in demo.ok("GET", "floatingip-pools", network_id=net["id"])["floatingip_pools"]] == [
        subnet["id"]
    ]
    assert demo.call("GET", "floatingip-pools", colour="red").status == 400


def test_a_limit_is_not_set_below_what_is_used_unless_forced(demo: Net, admin: Net) -> None:
    project = demo.make("network")["project_id"]
    used = admin.ok("GET", f"quotas/{project}/details.json")["quota"]["network"]["used"]
    lower = {"network": used - 1}
    assert admin.refused("PUT", f"quotas/{project}", {"quota": dict(lower)}) == (400, "HTTPBadRequest")
    assert admin.ok("PUT", f"quotas/{project}", {"quota": {**lower, "force": True}})["quota"]["network"] == used - 1
    assert admin.ok("PUT", f"quotas/{project}", {"quota": {"network": used}})["quota"]["network"] == used
    assert demo.ok("GET", "quotas/tenant") == {"tenant": {"tenant_id": project}}


def test_mtus_and_subnets_go_together(demo: Net) -> None:
    small = demo.make("network", mtu=67)
    wish = {"network_id": small["id"], "ip_version": 4, "cidr": "10.0.0.0/24"}
    assert demo.refused("POST", "subnets", {"subnet": wish}) == (409, "NetworkMTUSubnetConflict")
    net, _ = demo.network("fd00:1::/64")
    assert demo.refused("PUT", f"networks/{net['id']}", {"network": {"mtu": 1279}}) == (409, "NetworkMTUSubnetConflict")
    assert demo.ok("PUT", f"networks/{net['id']}", {"network": {"mtu": 1280}})["network"]["mtu"] == 1280


def test_an_update_says_what_is_wrong_with_its_body_before_whether_there_is_such_a_thing(demo: Net) -> None:
    unknown = "11111111-2222-3333-4444-555555555555"
    assert demo.refused("PUT", f"subnetpools/{unknown}", {"subnetpool": {"shared": True}})[0] == 400
    assert demo.refused("PUT", f"subnetpools/{unknown}", {"subnetpool": {"name": "x"}}) == (404, "SubnetPoolNotFound")


def test_collections_are_found_with_either_kind_of_dash(demo: Net) -> None:
    for one, other in (("security-groups", "security_groups"), ("availability_zones", "availability-zones")):
        assert demo.ok("GET", one) == demo.ok("GET", other)
    assert demo.call("GET", "security_group-s").status == 404


def test_things_made_together_may_be_wrapped_one_by_one(demo: Net) -> None:
    net = demo.make("network")
    wish = [{"port": {"network_id": net["id"], "name": "a", "tags": ["x"]}}, {"network_id": net["id"], "name": "b"}]
    made = demo.ok("POST", "ports", {"ports": wish})["ports"]
    assert [(p["name"], p["tags"]) for p in made] == [("a", ["x"]), ("b", [])]
