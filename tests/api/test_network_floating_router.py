"""Floating IPs whose router is chosen: it stands between the external network and a router further inside."""

from __future__ import annotations

from typing import Any

from networking import Net
from test_network_floating import spec

from nubila.testing.cloud import TestCloud

Json = dict[str, Any]


def two_routers(net: Net, *, distributed: bool = False) -> tuple[Json, Json, Json]:
    """A guest's port behind an inner router, and the outer router with the gateway."""
    inside, subnet = net.network("10.61.0.0/24")
    transit, between = net.network("10.62.0.0/24")
    inner, outer = net.make("router", name="inner"), None
    net.ok("PUT", f"routers/{inner['id']}/add_router_interface", {"subnet_id": subnet["id"]})
    port = net.make("port", network_id=transit["id"])
    net.ok("PUT", f"routers/{inner['id']}/add_router_interface", {"port_id": port["id"]})
    more = {"distributed": True} if distributed else {}
    outer = net.make("router", name="outer", external_gateway_info={"network_id": net.public()["id"]}, **more)
    net.ok("PUT", f"routers/{outer['id']}/add_router_interface", {"subnet_id": between["id"]})
    hop = port["fixed_ips"][0]["ip_address"]
    net.ok("PUT", f"routers/{outer['id']}", {"router": {"routes": [{"destination": "10.61.0.0/24", "nexthop": hop}]}})
    return net.make("port", network_id=inside["id"]), inner, outer


def test_the_router_of_a_floating_ip_can_be_chosen(demo: Net) -> None:
    port, inner, outer = two_routers(demo)
    public = demo.public()["id"]
    wish = {"floatingip": {"floating_network_id": public, "port_id": port["id"]}}
    assert demo.refused("POST", "floatingips", wish) == (404, "ExternalGatewayForFloatingIPNotFound")
    wish["floatingip"]["router_id"] = inner["id"]
    assert demo.refused("POST", "floatingips", wish) == (409, "Conflict")
    fip = demo.make("floatingip", floating_network_id=public, port_id=port["id"], router_id=outer["id"])
    assert (fip["router_id"], fip["port_id"]) == (outer["id"], port["id"])
    fixed = port["fixed_ips"][0]["ip_address"]
    assert [(f.floating_ip, f.fixed_ip) for f in spec(demo, outer).floating_ips] == [
        (fip["floating_ip_address"], fixed)
    ]
    path = f"floatingips/{fip['id']}"
    again = demo.ok("PUT", path, {"floatingip": {"port_id": port["id"]}})["floatingip"]
    assert again["router_id"] == outer["id"]  # leading to the same port, it stays where it is
    assert demo.ok("PUT", path, {"floatingip": {"description": "d"}})["floatingip"]["router_id"] == outer["id"]
    assert demo.ok("GET", path)["floatingip"]["status"] == "ACTIVE"
    none = {"floatingip": {"router_id": None}}
    assert demo.refused("PUT", path, none) == (404, "ExternalGatewayForFloatingIPNotFound")
    loose = demo.ok("PUT", path, {"floatingip": {"port_id": None}})["floatingip"]
    assert (loose["router_id"], loose["port_id"]) == (None, None)
    assert spec(demo, outer).floating_ips == ()
    assert demo.ok("PUT", path, {"floatingip": {"router_id": outer["id"]}})["floatingip"]["router_id"] is None
    body = {"floatingip": {"port_id": port["id"], "router_id": outer["id"]}}
    assert demo.ok("PUT", path, body)["floatingip"]["router_id"] == outer["id"]


def test_only_a_router_one_may_see_can_be_chosen(demo: Net, alt: Net) -> None:
    port, _, outer = two_routers(demo)
    inside, _ = alt.network("10.63.0.0/24")
    mine = alt.make("port", network_id=inside["id"])
    wish = {"floating_network_id": demo.public()["id"], "port_id": mine["id"], "router_id": outer["id"]}
    assert alt.refused("POST", "floatingips", {"floatingip": wish}) == (404, "RouterNotFound")
    wish["router_id"] = "nothing"
    assert alt.refused("POST", "floatingips", {"floatingip": wish})[0] == 400
    assert demo.refused("POST", "floatingips", {"floatingip": {**wish, "router_id": outer["id"]}})[0] in (400, 404)
    assert port["id"]


def test_behind_a_distributed_router_the_central_part_translates(admin: Net, cloud: TestCloud) -> None:
    port, _, outer = two_routers(admin, distributed=True)
    host = cloud.agents[0].place.host
    admin.ok("PUT", f"ports/{port['id']}", {"port": {"binding:host_id": host, "device_owner": "compute:nova"}})
    fip = admin.make("floatingip", floating_network_id=admin.public()["id"], port_id=port["id"],
                     router_id=outer["id"])  # fmt: skip
    told = spec(admin, outer)
    assert told.floating_ips == ()
    assert [f.id for f in told.central.floating_ips] == [fip["id"]]
