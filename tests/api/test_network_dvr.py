"""Distributed routers: who may make them, on which hosts they are, what each host is told, conversion."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from networking import Play

from nubila.core.ports import RouterSpec
from nubila.services.network import SERVICE
from nubila.testing.cloud import TestCloud

Json = dict[str, Any]


@pytest.fixture
def play(tmp_path: Path) -> Iterator[Play]:
    """host1 is a network host; host2 and host3 are compute hosts, host4 one without the external network."""
    cloud = TestCloud(tmp_path / "cloud", hosts=0)
    cloud.add_host("host1", roles=["network"])
    for name in ("host2", "host3", "host4"):
        cloud.add_host(name, roles=["compute"])
    host4 = cloud.agents[3]
    host4.place.bridges.clear()
    host4._greet()
    yield Play(cloud)
    cloud.close()


def where(play: Play, kind: str, id: str) -> set[str]:
    names = ("host1", "host2", "host3", "host4")
    return {name for name in names if play.spec(kind, id, name) is not None}


def distributed(play: Play, *subnets: str, gateway: bool = False) -> str:
    """A distributed router of the demo project."""
    project = play.project
    id: str = play.post("routers", "router", user="admin", distributed=True, project_id=project)["id"]
    if gateway:
        got = play.test.request("GET", "/network/v2.0/networks?router:external=true")
        info = {"external_gateway_info": {"network_id": got.json["networks"][0]["id"]}}
        play.put(f"routers/{id}", {"router": info}, user="admin")
    for subnet in subnets:
        play.put(f"routers/{id}/add_router_interface", {"subnet_id": subnet})
    return id


def sound(play: Play) -> None:
    play.test.settle()
    with play.cloud.store.read() as r:
        assert [one for check in SERVICE.invariants for one in check(play.cloud, r)] == []


def spec(play: Play, id: str, host: str) -> RouterSpec:
    found = play.spec("router", id, host)
    assert isinstance(found, RouterSpec)
    return found


def test_only_administrators_distribute_routers(play: Play) -> None:
    token = play.test.token("demo")
    got = play.test.request("POST", "/network/v2.0/routers", {"router": {"distributed": True}}, token=token)
    assert got.status == 403
    mine = play.post("routers", "router", name="r")
    assert "distributed" not in mine
    shown = play.test.request("GET", f"/network/v2.0/routers/{mine['id']}").json["router"]
    assert (shown["distributed"], shown["ha"]) == (False, False)
    both = play.test.request("POST", "/network/v2.0/routers", {"router": {"distributed": True, "ha": True}})
    assert (both.status, both.json["NeutronError"]["type"]) == (400, "BadRequest")
    watched = {"router": {"enable_default_route_bfd": True, "ha": True}}
    assert play.test.request("POST", "/network/v2.0/routers", watched).status == 400
    plain = play.post("routers", "router", user="admin", enable_default_route_bfd=True)
    assert (plain["enable_default_route_bfd"], plain["enable_default_route_ecmp"]) == (True, False)


def test_a_distributed_router_is_where_its_networks_are(play: Play) -> None:
    (a, a_sub), (b, b_sub) = play.network(), play.network("10.1.0.0/24")
    play.test.settle()  # DHCP is on host1
    id = distributed(play, a_sub, b_sub)
    sound(play)
    assert where(play, "router", id) == {"host1"}
    port = play.plug(a, "host2")
    assert {("router", id, "host2"), ("network", b, "host2"), ("network", b, "host1")} <= play.debts()
    assert where(play, "router", id) == where(play, "network", b) == {"host1", "host2"}
    sound(play)
    play.plug(b, "host3")
    sound(play)
    one, two = spec(play, id, "host2"), spec(play, id, "host3")
    assert [p.mac for p in one.interfaces] == [p.mac for p in two.interfaces], "the same everywhere"
    aliases = {p.alias_mac for s in (one, two) for p in s.interfaces}
    assert len(aliases) == 4, "and told apart outside"
    assert all(p.alias_mac[9:] == p.mac[9:] for p in one.interfaces)
    assert (one.central, one.way_out, one.gateway) == (None, (), None)
    assert len(play.spec("network", a, "host3").peers) == 2, "packets to the other network leave where they start"
    interface = play.test.request("GET", f"/network/v2.0/ports?device_id={id}").json["ports"][0]
    assert interface["device_owner"] == "network:router_interface_distributed"
    assert (interface["status"], interface["binding:host_id"]) == ("ACTIVE", "")
    listed = play.test.request("GET", f"/network/v2.0/routers/{id}/l3-agents").json["agents"]
    assert {a["host"] for a in listed} == {"host1", "host2", "host3"}
    play.delete(f"ports/{port['id']}", user="admin")
    assert ("router", id, "host2") in play.debts()
    assert where(play, "router", id) == where(play, "network", b) == {"host1", "host3"}
    play.put(f"routers/{id}/remove_router_interface", {"subnet_id": b_sub})
    assert where(play, "router", id) == {"host1"}
    sound(play)
    play.put(f"routers/{id}/remove_router_interface", {"subnet_id": a_sub})
    play.delete(f"routers/{id}", user="admin")
    sound(play)
    assert where(play, "router", id) == set()


def test_routers_that_share_a_network_share_their_hosts(play: Play) -> None:
    (a, a_sub), (b, b_sub), (c, c_sub) = play.network(), play.network("10.1.0.0/24"), play.network("10.2.0.0/24")
    first = distributed(play, a_sub, b_sub)
    second = distributed(play, c_sub)
    play.plug(c, "host3")
    play.plug(a, "host2")
    sound(play)
    assert where(play, "router", first) == {"host1", "host2"}
    assert where(play, "router", second) == {"host1", "host3"}
    joint = play.post("ports", "port", network_id=b)
    play.put(f"routers/{second}/add_router_interface", {"port_id": joint["id"]})
    sound(play)
    assert where(play, "router", first) == where(play, "router", second) == {"host1", "host2", "host3"}
    assert where(play, "network", c) == {"host1", "host2", "host3"}


def test_floating_ips_live_with_their_guests_where_they_can(play: Play) -> None:
    a, a_sub = play.network()
    id = distributed(play, a_sub, gateway=True)
    near, far = play.plug(a, "host2"), play.plug(a, "host4")
    public = spec_gateway(play, id)
    floats = [play.post("floatingips", "floatingip", floating_network_id=public, port_id=p["id"]) for p in (near, far)]
    sound(play)
    local, remote, central = spec(play, id, "host2"), spec(play, id, "host4"), spec(play, id, "host1")
    assert [f.floating_ip for f in local.floating_ips] == [floats[0]["floating_ip_address"]]
    assert local.gateway is not None
    assert (local.gateway.fixed_ips, local.gateway.near) == ((), ("172.24.4.0/24",))
    assert (remote.floating_ips, remote.gateway) == ((), None), "that host does not reach the external network"
    assert central.central is not None
    assert central.central.gateway is not None
    assert [f.floating_ip for f in central.central.floating_ips] == [floats[1]["floating_ip_address"]]
    inner = central.central.interfaces[0].fixed_ips[0].ip_address
    assert local.way_out == remote.way_out == (inner,)
    assert (local.central, remote.central) == (None, None)
    assert where(play, "network", public) == {"host1", "host2"}
    for one in floats:
        shown = play.test.request("GET", f"/network/v2.0/floatingips/{one['id']}").json["floatingip"]
        assert shown["status"] == "ACTIVE"
    ports = play.test.request("GET", f"/network/v2.0/ports?device_id={id}").json["ports"]
    snat = next(p for p in ports if p["device_owner"] == "network:router_centralized_snat")
    assert (snat["binding:host_id"], snat["status"]) == ("host1", "ACTIVE")
    got = play.test.request("DELETE", f"/network/v2.0/ports/{snat['id']}")
    assert got.status == 409
    play.put(f"ports/{near['id']}", {"port": {"binding:host_id": "host3"}}, user="admin")
    assert {("router", id, "host2"), ("router", id, "host3")} <= play.debts()
    sound(play)
    assert where(play, "router", id) == {"host1", "host3", "host4"}
    assert [f.floating_ip for f in spec(play, id, "host3").floating_ips] == [floats[0]["floating_ip_address"]]
    for one in floats:
        play.delete(f"floatingips/{one['id']}")
    play.put(f"routers/{id}", {"router": {"external_gateway_info": {}}})
    sound(play)
    assert spec(play, id, "host1").central is None
    assert not [p for p in play.test.request("GET", f"/network/v2.0/ports?device_id={id}").json["ports"]
                if p["device_owner"] == "network:router_centralized_snat"]  # fmt: skip


def spec_gateway(play: Play, id: str) -> str:
    router = play.test.request("GET", f"/network/v2.0/routers/{id}").json["router"]
    return str(router["external_gateway_info"]["network_id"])


def test_a_router_changes_its_kind_while_it_is_off(play: Play) -> None:
    a, a_sub = play.network()
    play.plug(a, "host2")
    got = play.test.request("GET", "/network/v2.0/networks?router:external=true")
    public = got.json["networks"][0]["id"]
    id = play.post("routers", "router", external_gateway_info={"network_id": public})["id"]
    play.put(f"routers/{id}/add_router_interface", {"subnet_id": a_sub})
    play.test.settle()
    wish = {"router": {"distributed": True}}
    assert play.test.request("PUT", f"/network/v2.0/routers/{id}", wish).status == 400
    play.put(f"routers/{id}", {"router": {"admin_state_up": False}})
    assert play.put(f"routers/{id}", wish, user="admin")["router"]["distributed"] is True
    play.put(f"routers/{id}", {"router": {"admin_state_up": True}})
    sound(play)
    assert where(play, "router", id) == {"host1", "host2"}
    assert spec(play, id, "host1").central is not None
    play.put(f"routers/{id}", {"router": {"admin_state_up": False}})
    play.put(f"routers/{id}", {"router": {"distributed": False}}, user="admin")
    play.put(f"routers/{id}", {"router": {"admin_state_up": True}})
    sound(play)
    assert where(play, "router", id) == {"host1"}
    plain = spec(play, id, "host1")
    assert (plain.central, plain.interfaces[0].alias_mac, len(plain.interfaces)) == (None, "", 1)
    owners = {p["device_owner"] for p in play.test.request("GET", f"/network/v2.0/ports?device_id={id}").json["ports"]}
    assert owners == {"network:router_interface", "network:router_gateway"}


def test_operators_move_the_central_part(play: Play) -> None:
    play.test.add_host("host5", roles=["network"])
    a, a_sub = play.network()
    guest = play.plug(a, "host2")
    id = distributed(play, a_sub, gateway=True)
    sound(play)
    agents = {x["host"]: x for x in play.test.request("GET", "/network/v2.0/agents?agent_type=L3 agent").json["agents"]}
    old = play.test.request("GET", f"/network/v2.0/ports?device_id={id}&device_owner=network:router_gateway")
    host = old.json["ports"][0]["binding:host_id"]
    other = {"host1": "host5", "host5": "host1"}[host]
    assert agents["host2"]["configurations"]["agent_mode"] == "dvr"
    assert agents[host]["configurations"]["agent_mode"] == "dvr_snat"
    away = f"/network/v2.0/agents/{agents[host]['id']}/l3-routers/{id}"
    assert play.test.request("DELETE", away).status == 204
    sound(play)
    assert spec(play, id, "host2").central is None
    assert "host2" in where(play, "router", id), "guests go on without it"
    here = f"/network/v2.0/agents/{agents[other]['id']}/l3-routers"
    assert play.test.request("POST", here, {"router_id": id}).status == 201
    sound(play)
    assert spec(play, id, other).central is not None
    fip = play.post("floatingips", "floatingip", floating_network_id=spec_gateway(play, id))
    lead = {"protocol": "tcp", "internal_port_id": guest["id"], "internal_port": 80, "external_port": 80}
    play.post(f"floatingips/{fip['id']}/port_forwardings", "port_forwarding", **lead)
    sound(play)
    central = spec(play, id, other).central
    assert central is not None
    assert [f.fixed_ip for f in central.forwardings] == [guest["fixed_ips"][0]["ip_address"]]
    assert spec(play, id, "host2").forwardings == ()
    mine = play.post("floatingips", "floatingip", floating_network_id=spec_gateway(play, id))
    body = {"floatingip": {"port_id": guest["id"]}}
    got = play.test.request("PUT", f"/network/v2.0/floatingips/{mine['id']}", body)
    assert (got.status, got.json["NeutronError"]["type"]) == (400, "PortHasPortForwarding")


PLAIN, HA, DISTRIBUTED = {"distributed": False, "ha": False}, {"ha": True}, {"distributed": True}
CHANGES = [(a, b) for a in (PLAIN, HA, DISTRIBUTED) for b in (PLAIN, HA, DISTRIBUTED) if a is not b]


@pytest.mark.parametrize(("before", "after"), CHANGES)
def test_a_switched_off_router_becomes_any_other_kind(tmp_path: Path, before: Json, after: Json) -> None:
    cloud = TestCloud(tmp_path / "cloud", hosts=1)
    play = Play(cloud)
    _, subnet = play.network()
    id = play.post("routers", "router", user="admin", project_id=play.project, **before)["id"]
    public = play.test.request("GET", "/network/v2.0/networks?router:external=true").json["networks"][0]["id"]
    play.put(f"routers/{id}", {"router": {"external_gateway_info": {"network_id": public}}}, user="admin")
    play.put(f"routers/{id}/add_router_interface", {"subnet_id": subnet})

    def seen() -> dict[str, tuple[str, str]]:
        sound(play)
        got = play.test.request("GET", f"/network/v2.0/ports?device_id={id}").json["ports"]
        owners = {p["device_owner"].removeprefix("network:"): (p["status"], p["binding:vif_type"]) for p in got}
        assert len(owners) == len(got)
        return owners

    def of(kind: Json) -> dict[str, tuple[str, str]]:
        here = ("ACTIVE", "ovs")
        if kind is HA:
            return {"router_gateway": here, "ha_router_replicated_interface": here, "router_ha_interface": here}
        if kind is DISTRIBUTED:
            everywhere = ("ACTIVE", "distributed")
            return {"router_gateway": here, "router_interface_distributed": everywhere, "router_centralized_snat": here}
        return {"router_gateway": here, "router_interface": here}

    assert seen() == of(before)
    play.put(f"routers/{id}", {"router": {"admin_state_up": False}}, user="admin")
    assert {status for status, _ in seen().values()} == {"DOWN"}
    play.put(f"routers/{id}", {"router": {**PLAIN, **after}}, user="admin")
    play.put(f"routers/{id}", {"router": {"admin_state_up": True}}, user="admin")
    assert seen() == of(after)
    play.put(f"routers/{id}/remove_router_interface", {"subnet_id": subnet})
    play.delete(f"routers/{id}", "admin")  # with its hidden network, when it is highly available
    sound(play)
    cloud.close()
