"""Port forwardings, conntrack helpers, NDP proxies, flavors and several gateways in the API."""

from __future__ import annotations

from typing import Any

from networking import Net

Json = dict[str, Any]


def world(net: Net, cidr: str = "10.0.0.0/24") -> tuple[Json, Json, Json, Json]:
    """A network, its subnet, the router that leads outside from there, and a floating IP."""
    network, subnet = net.network(cidr)
    router = net.make("router", name="r", external_gateway_info={"network_id": net.public()["id"]})
    net.ok("PUT", f"routers/{router['id']}/add_router_interface", {"subnet_id": subnet["id"]})
    return network, subnet, router, net.make("floatingip", floating_network_id=net.public()["id"])


def spec(net: Net, router: Json) -> Any:
    net.cloud.settle()
    found = [agent.drivers.network.router(router["id"]) for agent in net.cloud.agents]
    return next(s for s in found if s is not None)


def lead(port: Json, **more: Any) -> Json:
    return {"port_forwarding": {"protocol": "tcp", "internal_port_id": port["id"], **more}}


def test_port_forwardings_from_start_to_end(demo: Net) -> None:
    network, _, router, fip = world(demo)
    port = demo.make("port", network_id=network["id"])
    path = f"floatingips/{fip['id']}/port_forwardings"
    one = demo.ok("POST", path, lead(port, internal_port=80, external_port=8080, description="web"))["port_forwarding"]
    assert one["internal_ip_address"] == port["fixed_ips"][0]["ip_address"]
    assert (one["external_port"], one["external_port_range"], one["description"]) == (8080, "8080:8080", "web")
    many = demo.ok("POST", path, lead(port, internal_port_range="600:604", external_port_range="700:704"))
    assert "external_port" not in many["port_forwarding"]
    shown = demo.ok("GET", f"floatingips/{fip['id']}")["floatingip"]
    assert shown["router_id"] == router["id"]
    assert shown["port_id"] is None
    assert shown["port_forwardings"][0] == {
        "id": one["id"], "internal_port_id": port["id"], "internal_ip_address": one["internal_ip_address"],
        "protocol": "tcp", "internal_port": 80, "external_port": 8080,
    }  # fmt: skip
    told = spec(demo, router).forwardings
    assert {(f.outside, f.inside) for f in told} == {((8080, 8080), (80, 80)), ((700, 704), (600, 604))}
    assert demo.ok("GET", f"floatingips/{fip['id']}")["floatingip"]["status"] == "ACTIVE"
    assert [f["id"] for f in demo.ok("GET", path, external_port=8080)["port_forwardings"]] == [one["id"]]
    changed = demo.ok("PUT", f"{path}/{one['id']}", {"port_forwarding": {"internal_port": 81}})["port_forwarding"]
    assert (changed["internal_port"], changed["external_port"]) == (81, 8080)
    assert demo.refused("DELETE", f"floatingips/{fip['id']}") == (409, "FipInUseByPortForwarding")
    other = demo.make("port", network_id=network["id"])
    body = {"floatingip": {"port_id": other["id"]}}
    assert demo.refused("PUT", f"floatingips/{fip['id']}", body) == (409, "FipInUseByPortForwarding")
    demo.ok("DELETE", f"{path}/{one['id']}")
    demo.ok("DELETE", f"ports/{port['id']}")  # the rest goes with the port
    assert demo.ok("GET", path)["port_forwardings"] == []
    assert demo.ok("GET", f"floatingips/{fip['id']}")["floatingip"]["router_id"] is None
    demo.ok("DELETE", f"floatingips/{fip['id']}")


def test_port_forwardings_that_cannot_be(demo: Net, alt: Net) -> None:
    network, subnet, router, fip = world(demo)
    port, other = (demo.make("port", network_id=network["id"]) for _ in range(2))
    path = f"floatingips/{fip['id']}/port_forwardings"
    demo.ok("POST", path, lead(port, internal_port=80, external_port=8080))
    for body, status, kind in (
        (lead(other, internal_port=80, external_port=8080), 400, "BadRequest"),
        (lead(port, internal_port=80, external_port=8081), 400, "BadRequest"),
        (lead(other, internal_port_range="70:90", external_port_range="1:3"), 400, "BadRequest"),
        (lead(other, internal_port=70, external_port_range="8079:8081"), 400, "BadRequest"),
        (lead(other, internal_port=70000, external_port=1), 400, "HTTPBadRequest"),
        (lead(other, internal_port=1, external_port=1, protocol="icmp"), 400, "HTTPBadRequest"),
        (lead(other, internal_port=1), 400, "BadRequest"),
        (lead(other, internal_port=1, external_port=1, internal_ip_address="10.0.0.250"), 400, "BadRequest"),
        (lead({"id": network["id"]}, internal_port=1, external_port=1), 404, "PortNotFound"),
    ):
        assert demo.refused("POST", path, body) == (status, kind), body
    demo.ok("POST", path, lead(other, internal_port=80, external_port=8080, protocol="udp"))
    lonely, _ = demo.network("10.9.0.0/24")
    far = demo.make("port", network_id=lonely["id"])
    assert demo.refused("POST", path, lead(far, internal_port=1, external_port=1)) == (400, "BadRequest")
    taken = demo.make("floatingip", floating_network_id=demo.public()["id"])
    busy = demo.make("port", network_id=network["id"])
    demo.ok("PUT", f"floatingips/{taken['id']}", {"floatingip": {"port_id": busy["id"]}})
    assert demo.refused("POST", path, lead(busy, internal_port=1, external_port=1)) == (409, "PortHasBindingFloatingIP")
    mine = f"floatingips/{taken['id']}/port_forwardings"
    body = lead(other, internal_port=1, external_port=1)
    assert demo.refused("POST", mine, body) == (409, "FloatingIPPortAlreadyAssociated")
    gone = {"subnet_id": subnet["id"]}
    assert demo.refused("PUT", f"routers/{router['id']}/remove_router_interface", gone) == (
        409, "RouterInterfaceInUseByFloatingIP",
    )  # fmt: skip
    clear = {"router": {"external_gateway_info": {}}}
    assert demo.refused("PUT", f"routers/{router['id']}", clear) == (409, "RouterExternalGatewayInUseByFloatingIp")
    assert alt.refused("GET", path) == (404, "FloatingIPNotFound")
    assert alt.refused("POST", path, body) == (404, "FloatingIPNotFound")


def test_conntrack_helpers(demo: Net, alt: Net) -> None:
    _, _, router, _ = world(demo)
    path = f"routers/{router['id']}/conntrack_helpers"
    wish = {"conntrack_helper": {"helper": "tftp", "protocol": "udp", "port": 69}}
    one = demo.ok("POST", path, wish)["conntrack_helper"]
    assert demo.ok("GET", f"routers/{router['id']}")["router"]["conntrack_helpers"] == [wish["conntrack_helper"]]
    assert demo.refused("POST", path, wish) == (400, "BadRequest")
    for body, kind in (
        ({"helper": "gopher", "protocol": "tcp", "port": 70}, "ConntrackHelperNotAllowed"),
        ({"helper": "ftp", "protocol": "udp", "port": 21}, "InvalidProtocolForHelper"),
    ):
        assert demo.refused("POST", path, {"conntrack_helper": body}) == (400, kind)
    moved = demo.ok("PUT", f"{path}/{one['id']}", {"conntrack_helper": {"port": 6969}})["conntrack_helper"]
    assert moved == {**wish["conntrack_helper"], "port": 6969, "id": one["id"]}
    assert [(h.helper, h.port) for h in spec(demo, router).helpers] == [("tftp", 6969)]
    assert alt.refused("GET", f"{path}/{one['id']}") == (404, "RouterNotFound")
    demo.ok("DELETE", f"{path}/{one['id']}")
    assert demo.refused("GET", f"{path}/{one['id']}") == (404, "ConntrackHelperNotFound")
    demo.ok("POST", path, wish)
    assert spec(demo, router).helpers[0].port == 69


def test_ndp_proxies(demo: Net, admin: Net, alt: Net) -> None:
    scope = demo.make("address_scope", "address-scopes", name="s", ip_version=6)
    pool = demo.make("subnetpool", name="p", address_scope_id=scope["id"], default_prefixlen=112,
                     prefixes=["2001:abc::/96"])  # fmt: skip
    body: Json = {"name": "ext", "router:external": True, "project_id": pool["project_id"]}
    ext = admin.ok("POST", "networks", {"network": body})["network"]
    made: Json = {"ip_version": 6, "subnetpool_id": pool["id"]}
    demo.make("subnet", network_id=ext["id"], cidr="2001:abc::1:0/112", **made)
    net = demo.make("network")
    subnet = demo.make("subnet", network_id=net["id"], cidr="2001:abc::2:0/112", **made)
    port = demo.make("port", network_id=net["id"])
    router = demo.make("router")
    wish = {"router": {"enable_ndp_proxy": True}}
    assert demo.refused("PUT", f"routers/{router['id']}", wish) == (409, "RouterGatewayNotValid")
    proxy = {"ndp_proxy": {"router_id": router["id"], "port_id": port["id"]}}
    assert demo.refused("POST", "ndp_proxies", proxy) == (409, "PortUnreachableRouter")
    demo.ok("PUT", f"routers/{router['id']}/add_router_interface", {"subnet_id": subnet["id"]})
    assert demo.refused("POST", "ndp_proxies", proxy) == (409, "RouterNDPProxyNotEnable")
    gateway = {"external_gateway_info": {"network_id": ext["id"]}}
    demo.ok("PUT", f"routers/{router['id']}", {"router": {**gateway, "enable_ndp_proxy": True}})
    one = demo.ok("POST", "ndp_proxies", proxy)["ndp_proxy"]
    assert one["ip_address"] == port["fixed_ips"][0]["ip_address"]
    told = spec(demo, router)
    assert (told.ndp_proxy, told.proxies) == (True, (one["ip_address"],))
    clear = {"router": {"external_gateway_info": {}}}
    assert demo.refused("PUT", f"routers/{router['id']}", clear) == (409, "RouterGatewayInUseByNDPProxy")
    gone = {"subnet_id": subnet["id"]}
    assert demo.refused("PUT", f"routers/{router['id']}/remove_router_interface", gone) == (
        409, "RouterInterfaceInUseByNDPProxy",
    )  # fmt: skip
    assert alt.refused("GET", f"ndp_proxies/{one['id']}") == (404, "NDPProxyNotFound")
    assert alt.ok("GET", "ndp_proxies")["ndp_proxies"] == []
    assert alt.refused("POST", "ndp_proxies", proxy) == (404, "RouterNotFound")
    demo.ok("DELETE", f"ports/{port['id']}")
    assert demo.ok("GET", "ndp_proxies")["ndp_proxies"] == []
    demo.ok("PUT", f"routers/{router['id']}", clear)
    assert demo.ok("GET", f"routers/{router['id']}")["router"]["enable_ndp_proxy"] is False


def test_flavors_of_routers(demo: Net, admin: Net) -> None:
    driver = "neutron.services.l3_router.service_providers.single_node.SingleNodeDriver"
    profile = admin.make("service_profile", driver=driver)
    flavor = admin.make("flavor", name="plain", service_type="L3_ROUTER_NAT")
    bind = f"flavors/{flavor['id']}/service_profiles"
    assert demo.refused("POST", "routers", {"router": {"flavor_id": flavor["id"]}})[0] == 404
    admin.ok("POST", bind, {"service_profile": {"id": profile["id"]}})
    again = {"service_profile": {"id": profile["id"]}}
    assert admin.refused("POST", bind, again) == (409, "FlavorServiceProfileBindingExists")
    assert demo.ok("GET", f"flavors/{flavor['id']}")["flavor"]["service_profiles"] == [profile["id"]]
    assert demo.ok("GET", f"flavors/{flavor['id']}/next_providers")["next_providers"][0]["driver"] == driver
    router = demo.make("router", flavor_id=flavor["id"])
    assert router["flavor_id"] == flavor["id"]
    assert admin.refused("DELETE", f"flavors/{flavor['id']}") == (409, "FlavorInUse")
    assert admin.refused("DELETE", f"service_profiles/{profile['id']}") == (409, "ServiceProfileInUse")
    admin.ok("PUT", f"flavors/{flavor['id']}", {"flavor": {"enabled": False}})
    assert demo.refused("POST", "routers", {"router": {"flavor_id": flavor["id"]}}) == (503, "FlavorDisabled")
    wanted = {"flavor": {"service_type": "L3_ROUTER_NAT"}}
    assert demo.refused("POST", "flavors", wanted) == (403, "PolicyNotAuthorized")
    strange = {"service_profile": {"driver": "a.b.C"}}
    assert admin.refused("POST", "service_profiles", strange) == (404, "ServiceProfileDriverNotFound")
    assert admin.refused("POST", "service_profiles", {"service_profile": {}}) == (400, "ServiceProfileEmpty")
    demo.ok("DELETE", f"routers/{router['id']}")
    admin.ok("DELETE", f"{bind}/{profile['id']}")
    assert admin.refused("DELETE", f"{bind}/{profile['id']}") == (404, "FlavorServiceProfileBindingNotFound")
    admin.ok("DELETE", f"flavors/{flavor['id']}")


def test_several_gateways(demo: Net, admin: Net, alt: Net) -> None:
    public = demo.public()["id"]
    router = demo.make("router")
    _, subnet = demo.network()
    demo.ok("PUT", f"routers/{router['id']}/add_router_interface", {"subnet_id": subnet["id"]})

    def act(action: str, *infos: Json, by: Net = demo) -> Json:
        body = {"router": {"external_gateways": list(infos)}}
        found: Json = by.ok("PUT", f"routers/{router['id']}/{action}_external_gateways", body)["router"]
        return found

    assert router["external_gateways"] == []
    three = act("add", *[{"network_id": public}] * 3)
    assert len({g["external_fixed_ips"][0]["ip_address"] for g in three["external_gateways"]}) == 3
    assert three["external_gateway_info"] == three["external_gateways"][0]
    told = spec(demo, router)
    assert len(told.more_gateways) == 2
    assert told.more_gateways[0].hops == told.gateway_ips
    two = act("remove", three["external_gateways"][0])
    assert two["external_gateways"] == three["external_gateways"][1:], "the next one takes its place"
    one = act("update", two["external_gateways"][1], by=admin)
    assert one["external_gateways"] == two["external_gateways"][1:]
    body = {"router": {"external_gateways": [{"network_id": public}]}}
    path = f"routers/{router['id']}/add_external_gateways"
    assert alt.refused("PUT", path, body) == (404, "RouterNotFound")
    body["router"]["external_gateways"][0]["external_fixed_ips"] = [{"ip_address": "172.24.4.99"}]
    assert demo.refused("PUT", path, body) == (403, "PolicyNotAuthorized")
    chosen = act("add", body["router"]["external_gateways"][0], by=admin)
    assert chosen["external_gateways"][1]["external_fixed_ips"][0]["ip_address"] == "172.24.4.99"
    unclear = {"router": {"external_gateways": [{"network_id": public}]}}
    away = f"routers/{router['id']}/remove_external_gateways"
    assert demo.refused("PUT", away, unclear) == (400, "UnableToMatchGateways")
    fip = demo.make("floatingip", floating_network_id=public)
    port = demo.make("port", network_id=subnet["network_id"])
    demo.ok("PUT", f"floatingips/{fip['id']}", {"floatingip": {"port_id": port["id"]}})
    assert len(act("remove", chosen["external_gateways"][0])["external_gateways"]) == 1
    assert demo.refused("PUT", away, unclear) == (409, "RouterExternalGatewayInUseByFloatingIp")
    demo.ok("DELETE", f"floatingips/{fip['id']}")
    assert act("update", by=admin)["external_gateways"] == []
    assert demo.refused("PUT", away, unclear) == (400, "UnableToRemoveGateways")


def test_a_floating_ip_by_an_interface_on_an_external_network(demo: Net, admin: Net) -> None:
    owner = demo.make("network")["project_id"]
    body: Json = {"name": "ext", "router:external": True, "project_id": owner}
    ext = admin.ok("POST", "networks", {"network": body})["network"]
    outer = demo.make("subnet", network_id=ext["id"], ip_version=4, cidr="192.2.2.0/24")
    net, inner = demo.network("192.2.1.0/24")
    router = demo.make("router")
    for subnet in (inner, outer):
        demo.ok("PUT", f"routers/{router['id']}/add_router_interface", {"subnet_id": subnet["id"]})
    port = demo.make("port", network_id=net["id"])
    fip = demo.make("floatingip", floating_network_id=ext["id"], port_id=port["id"])
    assert fip["router_id"] == router["id"]
    told = spec(demo, router)
    assert told.floating_ips[0].port_id in [p.port_id for p in told.interfaces if p.network_id == ext["id"]]
    path = f"routers/{router['id']}/remove_router_interface"
    assert demo.refused("PUT", path, {"subnet_id": outer["id"]}) == (409, "RouterInterfaceInUseAsGatewayByFloatingIP")
    assert demo.refused("PUT", path, {"subnet_id": inner["id"]}) == (409, "RouterInterfaceInUseByFloatingIP")
    unused = demo.make("floatingip", floating_network_id=ext["id"])
    demo.ok("PUT", f"floatingips/{fip['id']}", {"floatingip": {"port_id": None}})
    admin.ok("PUT", f"networks/{ext['id']}", {"network": {"router:external": False}})
    assert demo.call("GET", f"floatingips/{unused['id']}").status == 404, "unused ones go with the network's role"


def test_a_floating_ip_has_a_name_and_its_domain(demo: Net) -> None:
    public = demo.public()["id"]
    named = demo.make("floatingip", floating_network_id=public, dns_name="www", dns_domain="example.org.")
    assert (named["dns_name"], named["dns_domain"]) == ("www", "example.org.")
    plain = demo.make("floatingip", floating_network_id=public)
    assert (plain["dns_name"], plain["dns_domain"]) == ("", "")
    for half in (
        {"dns_name": "www"},
        {"dns_domain": "example.org."},
        {"dns_name": "a b", "dns_domain": "example.org."},
    ):
        assert demo.call("POST", "floatingips", {"floatingip": {"floating_network_id": public, **half}}).status == 400


def test_administrators_lead_their_floating_ips_to_ports_of_others(demo: Net, alt: Net, admin: Net) -> None:
    """The owner of a network sees the ports that others have there, and still may not lead to them."""
    network, _, router, mine = world(demo)
    share = {"object_type": "network", "object_id": network["id"], "action": "access_as_shared", "target_tenant": "*"}
    admin.make("rbac_policy", "rbac-policies", **share)
    theirs = alt.make("port", network_id=network["id"])
    lend = {"floatingip": {"port_id": theirs["id"]}}
    assert demo.refused("PUT", f"floatingips/{mine['id']}", lend) == (400, "BadRequest")
    path = f"floatingips/{mine['id']}/port_forwardings"
    assert demo.refused("POST", path, lead(theirs, internal_port=80, external_port=80)) == (400, "BadRequest")
    wish = {"floating_network_id": demo.public()["id"], "port_id": theirs["id"]}
    made = admin.ok("POST", "floatingips", {"floatingip": wish})["floatingip"]
    assert (made["router_id"], made["port_id"]) == (router["id"], theirs["id"])
    admin.ok("DELETE", f"floatingips/{made['id']}")
    admin.ok("POST", path, lead(theirs, internal_port=80, external_port=80))
