"""Extensions that add an attribute or a check: each does what its alias says."""

from __future__ import annotations

from typing import Any

from networking import Net

from nubila.testing.cloud import TestCloud

Json = dict[str, Any]


def test_monitoring_says_what_it_sees_of_a_port(demo: Net, admin: Net) -> None:
    net, _ = demo.network()
    port = demo.make("port", network_id=net["id"])
    assert port["data_plane_status"] is None
    path, down = f"ports/{port['id']}", {"port": {"data_plane_status": "DOWN"}}
    assert demo.refused("PUT", path, down) == (403, "PolicyNotAuthorized")
    assert admin.ok("PUT", path, down)["port"]["data_plane_status"] == "DOWN"
    assert demo.ok("GET", path)["port"]["data_plane_status"] == "DOWN"
    assert admin.ok("PUT", path, {"port": {"data_plane_status": None}})["port"]["data_plane_status"] is None
    assert admin.refused("PUT", path, {"port": {"data_plane_status": "SICK"}})[0] == 400
    wish = {"port": {"network_id": net["id"], "data_plane_status": "DOWN"}}
    assert admin.refused("POST", "ports", wish)[0] == 400


def test_hints_reach_the_host(demo: Net, admin: Net, cloud: TestCloud) -> None:
    net, _ = demo.network()
    hints = {"openvswitch": {"other_config": {"tx-steering": "hash"}}}
    port = admin.make("port", network_id=net["id"], hints=hints, **{"binding:host_id": cloud.agents[0].place.host})
    assert port["hints"] == hints
    cloud.settle()
    assert cloud.agents[0].drivers.network.port(port["id"]).tx_steering == "hash"
    path = f"ports/{port['id']}"
    assert admin.ok("PUT", path, {"port": {"hints": None}})["port"]["hints"] is None
    cloud.settle()
    assert cloud.agents[0].drivers.network.port(port["id"]).tx_steering == ""
    for bad in ({"openvswitch": {"other_config": {"tx-steering": "round"}}}, {"other": {}}, "hash", []):
        assert admin.refused("PUT", path, {"port": {"hints": bad}})[0] == 400
    mine = demo.make("port", network_id=net["id"])
    assert "hints" not in mine
    assert demo.refused("PUT", f"ports/{mine['id']}", {"port": {"hints": hints}}) == (403, "PolicyNotAuthorized")


def test_nobody_may_send_from_a_multicast_address(demo: Net) -> None:
    net, _ = demo.network()
    for bad in ("224.0.0.5", "239.1.0.0/16", "ff02::1"):
        wish = {"port": {"network_id": net["id"], "allowed_address_pairs": [{"ip_address": bad}]}}
        assert demo.refused("POST", "ports", wish)[0] == 400, bad


def test_names_of_security_groups_print(demo: Net) -> None:
    for bad in (" web", "web ", "we\tb", "w\u200beb"):
        assert demo.refused("POST", "security-groups", {"security_group": {"name": bad}})[0] == 400, repr(bad)
    group = demo.make("security_group", "security-groups", name="web servers")
    path = f"security-groups/{group['id']}"
    assert demo.refused("PUT", path, {"security_group": {"name": "web "}}) == (400, "HTTPBadRequest")
    assert demo.ok("PUT", path, {"security_group": {"name": "Wéb"}})["security_group"]["name"] == "Wéb"


def test_routers_show_whether_they_translate(demo: Net, admin: Net) -> None:
    router = admin.make("router", external_gateway_info={"network_id": demo.public()["id"], "enable_snat": False})
    other = admin.make("router")
    assert (router["enable_snat"], other["enable_snat"]) == (False, True)
    assert [r["id"] for r in admin.ok("GET", "routers", enable_snat=False)["routers"]] == [router["id"]]
    assert admin.refused("PUT", f"routers/{other['id']}", {"router": {"enable_snat": False}})[0] == 400


def test_extra_routes_may_share_a_destination(demo: Net, cloud: TestCloud) -> None:
    _, subnet = demo.network()
    router = demo.make("router")
    demo.ok("PUT", f"routers/{router['id']}/add_router_interface", {"subnet_id": subnet["id"]})
    routes = [{"destination": "198.51.100.0/24", "nexthop": f"10.0.0.{n}"} for n in (5, 6)]
    demo.ok("PUT", f"routers/{router['id']}", {"router": {"routes": routes}})
    cloud.settle()
    told = cloud.agents[0].drivers.network.router(router["id"]).routes
    assert sorted(told) == [("198.51.100.0/24", "10.0.0.5"), ("198.51.100.0/24", "10.0.0.6")]


def test_lists_are_sorted_by_what_they_have(demo: Net, admin: Net) -> None:
    for kind in ("networks", "ports", "subnets", "routers", "security-groups", "segments"):
        assert admin.refused("GET", kind, sort_key="banana", sort_dir="asc")[0] == 400
    found = admin.ok("GET", "agents", sort_key="agent_type", sort_dir="desc")["agents"]
    assert [a["agent_type"] for a in found] == sorted((a["agent_type"] for a in found), reverse=True)
    assert admin.refused("GET", "agents", sort_key="configurations", sort_dir="asc")[0] == 400
    zones = admin.ok("GET", "availability_zones", resource="router")["availability_zones"]
    assert [z["resource"] for z in zones] == ["router"]
    assert admin.ok("GET", "availability_zones", name="nowhere")["availability_zones"] == []
    public = demo.public()
    for one in admin.ok("GET", "subnets")["subnets"]:
        assert one["router:external"] is (one["network_id"] == public["id"])
    assert admin.ok("GET", "subnets", **{"router:external": True})["subnets"]


def test_several_tags_are_added_at_once(demo: Net) -> None:
    net = demo.make("network", tags=["a"])
    demo.ok("POST", f"networks/{net['id']}/tags", {"tags": ["b", "c"]})
    assert sorted(demo.ok("GET", f"networks/{net['id']}/tags")["tags"]) == ["a", "b", "c"]


def test_a_routers_ports_keep_their_addresses(demo: Net) -> None:
    _, subnet = demo.network()
    router = demo.make("router")
    added = demo.ok("PUT", f"routers/{router['id']}/add_router_interface", {"subnet_id": subnet["id"]})
    body = {"port": {"fixed_ips": [{"subnet_id": subnet["id"], "ip_address": "10.0.0.77"}]}}
    assert demo.refused("PUT", f"ports/{added['port_id']}", body) == (400, "BadRequest")
