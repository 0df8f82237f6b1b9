"""Rows of the requirements about what is on a host and which packets pass, each shown by real engines."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from contract_network import PING, external, network, port, replace, router, with_hosts
from network_world import Host, ask_in
from test_network_hosts import join

from nubila.apps import doctor_host
from nubila.core.ports import FloatingSpec, Impossible, NetworkSpec, RouterSpec, Segment
from nubila.drivers import links, processes
from nubila.drivers.ovs_bridges import bridge_name

pytestmark = pytest.mark.host


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Host]:
    host = Host(tmp_path)
    yield host
    host.close()


@pytest.mark.req("C/AGT-14")
def test_dnsmasq_starts_with_the_first_subnet_that_needs_it(host: Host) -> None:
    whole = network()
    bare = replace(whole, subnets=(), dhcp=None)
    run_dir = host.place.root / "dhcp" / whole.id
    host.driver.ensure_network(bare)
    host.driver.ensure_port(replace(port(whole, 3), fixed_ips=()))
    assert not processes.alive("dnsmasq", run_dir)
    host.driver.ensure_network(whole)
    assert processes.alive("dnsmasq", run_dir)
    host.driver.ensure_network(bare)
    assert not processes.alive("dnsmasq", run_dir)


@pytest.mark.req("C/OVS-16")
def test_a_network_with_the_hosts_own_addresses_disturbs_neither(host: Host) -> None:
    host.run("ip", "link", "add", "management", "type", "veth", "peer", "name", "cable")
    host.run("ip", "addr", "add", "10.0.0.3/24", "dev", "management")
    for end in ("management", "cable"):
        host.run("ip", "link", "set", end, "up")
    before = host.run("ip", "route", "get", "10.0.0.4")
    same, outside = network(gateway="10.0.0.1"), external()
    a, b = port(same, 3, PING), port(same, 4, PING)
    for spec in (with_hosts(same, a, b), outside):
        host.driver.ensure_network(spec)
    host.driver.ensure_router(router(same, outside=outside))
    one, two = host.guest(a), host.guest(b)
    assert (one.lease()["ip"], two.lease()["ip"]) == ("10.0.0.3", "10.0.0.4")
    assert two.pings("10.0.0.3"), "the guest"
    assert two.pings("172.24.4.1"), "and the world"
    assert host.run("ip", "route", "get", "10.0.0.4") == before
    assert "dev management" in before


@pytest.mark.req("C/PROV-12", "C/ARCH-13")
def test_local_networks_stay_on_their_host_and_tunnels_do_not(tmp_path: Path) -> None:
    hosts = [Host(tmp_path / f"h{i}", tunnel_ip=f"198.18.0.{i}") for i in (1, 2)]
    try:
        join(*hosts)
        for vni, kind in enumerate(("local", "vxlan"), 20):
            segment = Segment(network_type=kind, segmentation_id=None if kind == "local" else vni)
            net = replace(network(f"10.{vni}.0.0/24", dhcp=False), segment=segment, mtu=1400)
            a, b, far = (port(net, n, PING) for n in (3, 4, 5))
            for host, peer in zip(hosts, ("198.18.0.2", "198.18.0.1"), strict=True):
                host.driver.ensure_network(replace(net, peers=() if kind == "local" else (peer,)))
            one = hosts[0].guest(a).configure()
            hosts[0].guest(b).configure()
            hosts[1].guest(far).configure()
            assert one.pings(b.fixed_ips[0].ip_address), kind
            assert one.pings(far.fixed_ips[0].ip_address, 1 if kind == "local" else 3) is (kind != "local"), kind
    finally:
        for host in hosts:
            host.close()


def scenario(host: Host, *nets: NetworkSpec) -> RouterSpec:
    """Guests of two networks with DHCP reach each other by a router, and the world by its gateway."""
    outside = external("10.64.201.0/24")
    gate = router(*nets, outside=outside)
    specs = [port(net, 3, PING) for net in nets]
    for net, spec in zip(nets, specs, strict=True):
        host.driver.ensure_network(with_hosts(net, spec))
    host.driver.ensure_network(outside)
    host.driver.ensure_router(gate)
    here = {*(host.driver.dhcp_namespace(net.id) for net in nets), host.driver.router_namespace(gate.id)}
    assert len(here) == 3
    assert here <= set(links.namespaces())
    where = host.driver.router_namespace(gate.id)
    shown = host.inside(where, "ip", "-br", "addr")
    for net, inner in zip(nets, gate.interfaces, strict=True):
        assert re.search(rf"^qr-{inner.port_id[:11]}\S* .*{net.subnets[0].gateway_ip}/24", shown, re.MULTILINE), shown
    assert gate.gateway is not None
    assert re.search(rf"^qg-{gate.gateway.port_id[:11]}\S* .*10.64.201.10/24", shown, re.MULTILINE), shown
    one, two = (host.guest(spec) for spec in specs)
    for guest in (one, two):
        assert guest.lease()["ip"] == guest.ip
    assert one.pings(two.ip)
    assert two.pings("10.64.201.1"), "the world"
    return gate


@pytest.mark.req("C/OVS-03", "C/OVS-14", "C/DHCP-03", "C/DHCP-09")
def test_the_scenario_of_one_project_on_open_vswitch(host: Host) -> None:
    """Two VLAN networks with DHCP, a router between them and to the world: three namespaces, devices by their names."""
    nets = [
        replace(
            network(f"192.168.{vlan}.0/24", gateway=f"192.168.{vlan}.1"), mtu=1500,
            segment=Segment(network_type="vlan", physical_network="physnet1", segmentation_id=vlan),
        )
        for vlan in (101, 102)
    ]  # fmt: skip
    gate = scenario(host, *nets)
    at = f"--db=unix:/run/nubila/ovs.{host.place.namespace}/db.sock"
    bridge = bridge_name("br-int", host.place.cloud)
    ports = set(host.run("ovs-vsctl", at, "list-ports", bridge).split())
    assert gate.gateway is not None
    wanted = {f"qr-{inner.port_id[:11]}" for inner in gate.interfaces} | {f"qg-{gate.gateway.port_id[:11]}"}
    wanted |= {f"tap{net.dhcp.port_id[:11]}" for net in nets if net.dhcp is not None}
    assert wanted <= ports
    space = host.driver.dhcp_namespace(nets[0].id)
    assert re.search(r"^\d+: tap\S+ .*\n.*\n +veth ", host.inside(space, "ip", "-d", "link"), re.MULTILINE)
    assert "patch" in host.run("ovs-vsctl", at, "--columns=type", "find", "Interface", "type=patch"), "to br-ex"
    devices = re.findall(r"^[^\s@]+", host.run("ip", "-br", "link"), re.MULTILINE)
    assert [name for name in devices if name.startswith(("qbr", "qvo", "int-br", "phy-br"))] == []


@pytest.mark.req("C/LBR-06", "C/DHCP-03")
def test_the_scenario_of_one_project_on_linux_bridges(tmp_path: Path) -> None:
    """The same with tunnels: kernels without 802.1Q have no VLAN devices."""
    host = Host(tmp_path, switch="linuxbridge")
    try:
        nets = [network(f"192.168.{n}.0/24", gateway=f"192.168.{n}.1", vni=n) for n in (101, 102)]
        gate = scenario(host, *nets)
        for net, inner in zip(nets, gate.interfaces, strict=True):
            shown = host.run("ip", "-br", "link", "show", "master", f"brq{net.id[:11]}")
            assert f"tap{inner.port_id[:11]}@" in shown, "a pair of devices, one end in the bridge"
        with pytest.raises(Impossible, match="gre"):
            host.driver.ensure_network(replace(network(), segment=Segment(network_type="gre", segmentation_id=5)))
    finally:
        host.close()


@pytest.mark.req("C/LBR-07")
def test_the_scenario_of_two_projects_on_linux_bridges(tmp_path: Path) -> None:
    """A network with DHCP and a router each: four namespaces, and no way from one to the other."""
    host = Host(tmp_path, switch="linuxbridge")
    try:
        outside = external("10.64.201.0/24")
        host.driver.ensure_network(outside)
        guests, here = [], set()
        for number in (101, 102):
            net = network(f"192.168.{number}.0/24", gateway=f"192.168.{number}.1", vni=number)
            spec, gate = port(net, 3, PING), router(net, outside=outside, number=number)
            host.driver.ensure_network(with_hosts(net, spec))
            host.driver.ensure_router(gate)
            here |= {host.driver.dhcp_namespace(net.id), host.driver.router_namespace(gate.id)}
            guests.append(host.guest(spec))
        assert len(here & set(links.namespaces())) == 4
        for guest in guests:
            assert guest.lease()["ip"] == guest.ip
            assert guest.pings("10.64.201.1")
        one, two = guests
        assert not one.pings(two.ip, 1)
        assert not two.pings(one.ip, 1)
    finally:
        host.close()


@pytest.mark.req("C/L3-21")
def test_a_floating_address_leads_only_where_the_group_lets_in(host: Host) -> None:
    net, outside = network(gateway="10.0.0.1", dhcp=False), external()
    for spec in (net, outside):
        host.driver.ensure_network(spec)
    closed = port(net, 3)
    host.guest(closed).configure("10.0.0.1")
    floating = FloatingSpec(id="1", floating_ip="172.24.4.101", fixed_ip="10.0.0.3")
    host.driver.ensure_router(router(net, outside=outside, floating_ips=(floating,)))
    assert not host.pings("172.24.4.101", 1)
    host.driver.ensure_port(replace(closed, rules=(*closed.rules, PING)))
    assert host.pings("172.24.4.101")
    host.driver.ensure_port(closed)
    assert not host.pings("172.24.4.101", 1)


@pytest.mark.req("C/META-01")
def test_metadata_tells_networks_with_equal_addresses_apart(host: Host) -> None:
    asked: list[tuple[object, object]] = []

    def answer(**request: object) -> tuple[int, str, bytes]:
        asked.append((request["network_id"], request["address"]))
        return 200, "text/plain", b"you"

    host.driver.serve_metadata(answer)
    nets = [network(vni=n) for n in (7, 8)]
    for net in nets:
        spec = port(net, 3)
        host.driver.ensure_network(with_hosts(net, spec))
        guest = host.guest(spec)
        assert guest.lease()["ip"] == "10.0.0.3"
        assert ask_in(guest.namespace, "169.254.169.254", 80, "/") == (200, b"you")
    assert asked == [(net.id, "10.0.0.3") for net in nets]


@pytest.mark.req("C/OPS-04")
def test_the_doctor_tries_what_the_kernel_can_and_leaves_nothing() -> None:
    before = sorted(links.namespaces())
    checks = list(doctor_host.able())
    assert [c.line() for c in checks if not c.ok] == []
    assert {"network namespaces", "nftables", "Open vSwitch"} <= {c.name for c in checks}
    assert sorted(links.namespaces()) == before
