"""What hosts are told: specs, placement, and that every change reaches exactly those it concerns."""

from __future__ import annotations

from pathlib import Path

import sqlalchemy as sa
from networking import Play

from nubila.core.ports import AddressSetSpec, NetworkSpec, PortSpec, RouterSpec, SecurityGroupSpec
from nubila.services.network import look, placing, plug
from nubila.services.network.kinds import Router
from nubila.services.network.place import choose
from nubila.testing.cloud import TestCloud


def dhcp_host(play: Play, net: str) -> str:
    with play.cloud.store.read() as r:
        return next(iter(placing.bindings(r, net)))


def test_a_port_is_told_to_its_host_and_to_dhcp(play: Play) -> None:
    net, _ = play.network()
    play.test.settle()
    serving = dhcp_host(play, net)
    other = next(h for h in ("host1", "host2", "host3") if h != serving)
    port = play.plug(net, other)
    group = port["security_groups"][0]
    assert play.debts() == {
        ("port", port["id"], other), ("network", net, other), ("network", net, serving), ("group_members", group, ""),
        ("security_group", group, other), ("address_set", group, other),
    }  # fmt: skip
    play.test.settle()
    assert play.status(port["id"]) == "ACTIVE"
    second = play.plug(net, other)
    assert play.debts() == {
        ("port", second["id"], other), ("network", net, serving), ("group_members", group, ""),
        ("security_group", group, other), ("address_set", group, other),
    }  # fmt: skip  # the network was there already: only DHCP has to learn of it


def test_peers_follow_the_hosts_of_a_network(play: Play) -> None:
    net, _ = play.network()
    play.test.settle()
    serving = dhcp_host(play, net)
    others = sorted({"host1", "host2", "host3"} - {serving})
    ports = [play.plug(net, h) for h in others]
    spec = play.spec("network", net, others[0])
    assert isinstance(spec, NetworkSpec)
    with play.cloud.store.read() as r:
        from nubila.core import hosts

        tunnels = {h["name"]: h["tunnel_ip"] for h in hosts.every(r)}
    assert set(spec.peers) == {tunnels[serving], tunnels[others[1]]}
    assert spec.dhcp is None
    assert play.spec("network", net, serving).dhcp is not None
    play.test.settle()
    with play.cloud.store.write() as tx:
        plug.delete_port(play.cloud, tx, ports[1]["id"])
    assert {("network", net, h) for h in ("host1", "host2", "host3")} <= play.debts()
    assert play.spec("network", net, others[1]) is None
    assert play.spec("port", ports[1]["id"], others[1]) is None
    play.test.settle()
    names = {a.host if hasattr(a, "host") else a.place.host: a.drivers.network.networks() for a in play.test.agents}
    assert net not in names[others[1]]


def test_rules_and_members_are_told_to_each_host_once(play: Play) -> None:
    net, _ = play.network()
    a = play.plug(net, "host1", fixed_ip="10.0.0.10")
    play.plug(net, "host2", fixed_ip="10.0.0.11")
    group = a["security_groups"][0]
    play.test.settle()
    spec = play.spec("port", a["id"], "host1")
    assert isinstance(spec, PortSpec)
    assert (spec.groups, spec.rules, spec.stateful) == ((group,), (), True)
    told = play.spec("security_group", group, "host1")
    assert isinstance(told, SecurityGroupSpec)
    assert {(r.direction, r.ethertype, r.remote, r.remote_set) for r in told.rules} == {
        ("egress", "IPv4", None, None), ("egress", "IPv6", None, None),
        ("ingress", "IPv4", None, group), ("ingress", "IPv6", None, group),
    }  # fmt: skip
    assert play.spec("security_group", group, "host3") is None
    assert play.spec("address_set", group, "host3") is None
    members = play.spec("address_set", group, "host1")
    assert members == AddressSetSpec(id=group, addresses=("10.0.0.10/31",), directions=("ingress",))
    drivers = {agent.place.host: agent.drivers.network for agent in play.test.agents}
    assert drivers["host1"].address_set(group) == members
    play.plug(net, "host3", fixed_ip="10.0.0.40")
    assert ("port", a["id"], "host1") not in play.debts()
    play.test.settle()
    for driver in drivers.values():
        assert driver.address_set(group).addresses == ("10.0.0.10/31", "10.0.0.40/32")


def test_a_new_rule_reaches_hosts_and_no_port(play: Play) -> None:
    net, _ = play.network()
    ports = [play.plug(net, f"host{i % 2 + 1}") for i in range(5)]
    play.test.settle()
    group = ports[0]["security_groups"][0]
    play.post("security-group-rules", "security_group_rule", security_group_id=group, direction="ingress",
              protocol="tcp", port_range_min=22, port_range_max=22)  # fmt: skip
    assert play.debts() == {("security_group", group, "")}
    play.test.settle()
    drivers = {agent.place.host: agent.drivers.network for agent in play.test.agents}
    for host in ("host1", "host2"):
        assert [r.port_min for r in drivers[host].security_group(group).rules if r.port_min] == [22]
    assert drivers["host3"].security_group(group) is None


def test_a_host_forgets_groups_and_sets_that_nothing_there_needs(play: Play) -> None:
    net, _ = play.network()
    mine = play.post("security-groups", "security_group", name="a")["id"]
    addresses = play.post("address-groups", "address_group", addresses=["10.9.0.0/16", "fd00::/64"])["id"]
    rule = play.post("security-group-rules", "security_group_rule", security_group_id=mine, direction="egress",
                     protocol="tcp", remote_address_group_id=addresses)["id"]  # fmt: skip
    port = play.plug(net, "host1", groups=[mine])
    play.test.settle()
    driver = {agent.place.host: agent.drivers.network for agent in play.test.agents}["host1"]
    assert driver.address_set(addresses) == AddressSetSpec(
        id=addresses, addresses=("10.9.0.0/16", "fd00::/64"), directions=("egress",)
    )
    play.put(f"address-groups/{addresses}/add_addresses", {"addresses": ["10.8.0.0/16"]})
    play.test.settle()
    assert driver.address_set(addresses).addresses == ("10.8.0.0/15", "fd00::/64")
    play.delete(f"security-group-rules/{rule}")
    play.test.settle()
    assert driver.address_sets() == []
    assert driver.security_groups() == [mine]
    with play.cloud.store.write() as tx:
        plug.delete_port(play.cloud, tx, port["id"])
    play.test.settle()
    assert driver.security_groups() == []


def test_a_port_that_changes_groups_takes_their_rules_along(play: Play) -> None:
    net, _ = play.network()
    port = play.plug(net, "host2")
    other = play.post("security-groups", "security_group", stateful=False)["id"]
    play.test.settle()
    play.put(f"ports/{port['id']}", {"port": {"security_groups": [other]}})
    play.test.settle()
    driver = {agent.place.host: agent.drivers.network for agent in play.test.agents}["host2"]
    assert driver.security_groups() == [other]
    assert (driver.port(port["id"]).groups, driver.port(port["id"]).stateful) == ((other,), False)


def test_dhcp_hands_out_what_ports_have(play: Play) -> None:
    net, subnet = play.network()
    made = play.post("ports", "port", network_id=net, mac_address="fa:16:3e:00:00:09", dns_name="web",
                     fixed_ips=[{"ip_address": "10.0.0.9"}],
                     extra_dhcp_opts=[{"opt_name": "bootfile-name", "opt_value": "x"}])  # fmt: skip
    dhcp = play.spec("network", net, dhcp_host(play, net)).dhcp
    host = next(h for h in dhcp.hosts if h.port_id == made["id"])
    assert (host.mac, host.hostname, host.options) == ("fa:16:3e:00:00:09", "web", (("bootfile-name", "x"),))
    assert [(i.ip_address, i.prefixlen, i.subnet_id) for i in host.fixed_ips] == [("10.0.0.9", 24, subnet)]
    play.put(f"subnets/{subnet}", {"subnet": {"enable_dhcp": False}})
    play.test.settle()
    got = play.test.request("GET", "/network/v2.0/ports", query={"network_id": net, "device_owner": "network:dhcp"})
    assert got.json["ports"] == []
    play.put(f"subnets/{subnet}", {"subnet": {"enable_dhcp": True}})
    assert play.spec("network", net, dhcp_host(play, net)).dhcp is not None


def test_a_router_spec_is_whole(play: Play) -> None:
    net, subnet = play.network()
    public = play.test.request("GET", "/network/v2.0/networks", query={"router:external": True}).json["networks"][0]
    router = play.post("routers", "router", external_gateway_info={"network_id": public["id"]})["id"]
    play.put(f"routers/{router}/add_router_interface", {"subnet_id": subnet})
    port = play.plug(net, "host3", fixed_ip="10.0.0.30")
    fip = play.post("floatingips", "floatingip", floating_network_id=public["id"], port_id=port["id"])
    route = {"destination": "192.168.0.0/24", "nexthop": "10.0.0.30"}
    play.put(f"routers/{router}", {"router": {"routes": [route]}})
    with play.cloud.store.read() as r:
        host = look.need(r, Router, router)["host"]
    spec = play.spec("router", router, host)
    assert isinstance(spec, RouterSpec)
    assert [i.ip_address for p in spec.interfaces for i in p.fixed_ips] == ["10.0.0.1"]
    assert spec.gateway is not None
    assert spec.gateway_ips == ("172.24.4.1",)
    assert [(f.floating_ip, f.fixed_ip) for f in spec.floating_ips] == [(fip["floating_ip_address"], "10.0.0.30")]
    assert spec.routes == (("192.168.0.0/24", "10.0.0.30"),)
    assert all(play.spec("router", router, h) is None for h in {"host1", "host2", "host3"} - {host})
    play.test.settle()
    play.put(f"floatingips/{fip['id']}", {"floatingip": {"port_id": None}})
    assert play.debts() == {("router", router, host)}


def test_the_external_network_is_on_every_network_host(play: Play) -> None:
    public = play.cloud.bootstrap_ids.get("external_network") or play.scalar(
        "select id from network where name = 'public'"
    )
    for host in ("host1", "host2", "host3"):
        spec = play.spec("network", public, host)
        assert (spec.host_address, spec.masquerade) == ("172.24.4.1/24", True)
        assert spec.segment.network_type == "flat"


def test_a_router_and_dhcp_leave_a_host_that_is_removed(play: Play) -> None:
    from nubila.core import hosts

    net, subnet = play.network()
    router = play.post("routers", "router")["id"]
    play.put(f"routers/{router}/add_router_interface", {"subnet_id": subnet})
    play.test.settle()
    old = dhcp_host(play, net)
    with play.cloud.store.write() as tx:
        row = look.need(tx, Router, router)
        for name in {old, row["host"]}:
            tx.execute(sa.update(hosts.TABLE).where(hosts.TABLE.c.name == name).values(state="draining"))
    play.test.sweep()
    assert dhcp_host(play, net) != old
    with play.cloud.store.read() as r:
        now = look.need(r, Router, router)
    assert now["host"] != row["host"]
    assert now["fence"] > row["fence"]
    left = next(a for a in play.test.agents if a.place.host == row["host"])
    assert router not in left.drivers.network.routers()


def test_without_a_network_host_things_wait_and_then_come(tmp_path: Path) -> None:
    cloud = TestCloud(tmp_path / "cloud", hosts=0)
    play = Play(cloud)
    net, subnet = play.network()
    router = play.post("routers", "router")["id"]
    made = play.put(f"routers/{router}/add_router_interface", {"subnet_id": subnet})
    waiting = {(k, i) for k, i, s in play.debts() if s == ""}
    assert waiting == {("dhcp", net), ("router_place", router)}
    assert play.status(made["port_id"]) == "DOWN"
    cloud.add_host("host1")
    cloud.sweep()
    assert play.status(made["port_id"]) == "ACTIVE"
    assert dhcp_host(play, net) == "host1"
    cloud.close()


def test_an_unknown_host_binds_nothing(play: Play) -> None:
    net, _ = play.network()
    port = play.post("ports", "port", user="admin", network_id=net, **{"binding:host_id": "nowhere"})
    assert (port["binding:host_id"], port["binding:vif_type"]) == ("nowhere", "binding_failed")
    assert not any(s == "nowhere" for _, _, s in play.debts())


def test_plug_detach_and_look_up(play: Play) -> None:
    net, _ = play.network()
    port = play.post("ports", "port", network_id=net, name="mine", fixed_ips=[{"ip_address": "10.0.0.44"}])
    with play.cloud.store.write() as tx:
        got = plug.attach_port(play.cloud, tx, port["id"], device_id="vm", device_owner="compute:nova", host="host2")
        assert got["fixed_ips"][0]["ip_address"] == "10.0.0.44"
    play.test.settle()
    with play.cloud.store.read() as r:
        assert plug.wired(r, [port["id"]], "host2")
        shown = plug.ports_of(r, ["vm", "none"])
        assert shown["none"] == []
        assert [(p["network_name"], p["fixed_ips"][0]["version"]) for p in shown["vm"]] == [("n", 4)]
        assert shown["vm"][0]["security_groups"] == ["default"]
        found = plug.port_at(r, network_id=net, router_id=None, address="10.0.0.44")
        assert found is not None
        assert found["device_id"] == "vm"
        assert [n["id"] for n in plug.networks_for(r, play.project)] == [net]
    with play.cloud.store.write() as tx:
        plug.detach_port(play.cloud, tx, port["id"])
    play.test.settle()
    assert play.status(port["id"]) == "DOWN"


def test_hosts_are_chosen_by_load_and_spread_over_zones() -> None:
    hosts = [{"name": n, "zone": z} for n, z in (("a", "x"), ("b", "x"), ("c", "y"))]
    assert choose(hosts, {"a": 3, "b": 1, "c": 2}, 1) == ["b"]
    assert choose(hosts, {"a": 0, "b": 0, "c": 9}, 2) == ["a", "c"]
    assert choose(hosts, {}, 2, zones=["y"]) == ["c"]
    assert choose(hosts, {}, 9, have=["a"]) == ["b", "c"]
    assert choose([], {}, 1) == []


def test_ports_are_told_of_their_logs(play: Play) -> None:
    net, _ = play.network()
    port = play.plug(net, "host1")
    group = port["security_groups"][0]
    log = play.post("log/logs", "log", user="admin", resource_type="security_group", resource_id=group, event="ACCEPT")
    everything = play.post(
        "log/logs", "log", user="admin", resource_type="security_group", project_id=play.project, event="DROP"
    )
    play.post("log/logs", "log", user="admin", resource_type="security_group")  # the administrators' own
    play.test.settle()
    driver = {agent.place.host: agent.drivers.network for agent in play.test.agents}["host1"]
    told = driver.port(port["id"])
    assert {(one.id, one.event, one.group) for one in told.logs} == {
        (log["id"], "ACCEPT", group), (everything["id"], "DROP", None),
    }  # fmt: skip
    assert told.project_id == play.project
    play.put(f"log/logs/{log['id']}", {"log": {"enabled": False}}, user="admin")
    play.delete(f"log/logs/{everything['id']}", user="admin")
    play.test.settle()
    assert driver.port(port["id"]).logs == ()


def test_hosts_are_told_which_of_their_ports_answer_for_a_local_ip(play: Play) -> None:
    net, _ = play.network()
    ports = [play.plug(net, host) for host in ("host1", "host2")]
    local = play.post("local_ips", "local_ip", network_id=net)
    path = f"local_ips/{local['id']}/port_associations"
    for port in ports:
        play.post(path, "port_association", fixed_port_id=port["id"])
    play.test.settle()
    drivers = {agent.place.host: agent.drivers.network for agent in play.test.agents}
    for port, host in zip(ports, ("host1", "host2"), strict=True):
        (one,) = drivers[host].network(net).local_ips
        assert (one.address, one.port_id, one.translate) == (local["local_ip_address"], port["id"], True)
        assert one.fixed_ip == port["fixed_ips"][0]["ip_address"]
    with play.cloud.store.write() as tx:
        plug.bind_port(play.cloud, tx, ports[0]["id"], "host3")
    play.delete(f"{path}/{ports[1]['id']}")
    play.test.settle()
    assert [one.port_id for one in drivers["host3"].network(net).local_ips] == [ports[0]["id"]]
    assert drivers["host2"].network(net).local_ips == ()
