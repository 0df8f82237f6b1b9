"""Hosts with Linux bridges: mixed with Open vSwitch, with network cards, restarted, mended, removed."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from contract_network import PING, WEB, external, network, port, replace, router, with_hosts
from network_world import Host, await_line, until
from test_network_deaths import killed_anywhere
from test_network_hosts import (  # noqa: F401  one test is collected here with the host below
    join,
    test_nothing_is_disturbed_when_everything_is_ensured_again,
)

from nubila.core.ports import LocalIp, NeedsOperator, Neighbour, NetworkSpec, PortSpec, Segment
from nubila.drivers import links
from nubila.drivers.network import RealNetwork

pytestmark = pytest.mark.host


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Host]:
    host = Host(tmp_path, switch="linuxbridge")
    yield host
    host.close()


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[list[Host]]:
    """A host with Linux bridges (198.18.0.1) and one with Open vSwitch (198.18.0.2)."""
    hosts = [
        Host(tmp_path / f"h{i}", tunnel_ip=f"198.18.0.{i}", switch=switch)
        for i, switch in ((1, "linuxbridge"), (2, "openvswitch"))
    ]
    try:
        join(*hosts)
        yield hosts
    finally:
        for host in hosts:
            host.close()


def neighbour(spec: PortSpec, host: str) -> Neighbour:
    return Neighbour(mac=spec.mac, host=host, addresses=tuple(ip.ip_address for ip in spec.fixed_ips))


def capture(host: Host, device: str, condition: str) -> subprocess.Popen[str]:
    with links.entered(host.place.namespace):
        child = subprocess.Popen(
            ["tcpdump", "-i", device, "-l", "-n", "-e", "--immediate-mode", condition],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
    await_line(child.stderr, "listening on")
    return child


def captured(child: subprocess.Popen[str]) -> str:
    child.terminate()
    return child.communicate(timeout=10)[0]


@pytest.mark.req("C/LBR-08", "C/ML2-02", "C/TUN-06")
def test_a_network_spans_hosts_with_different_switches(pair: list[Host]) -> None:
    bridge, ovs = pair
    net, other = network(vni=7), network("10.0.0.0/24", vni=8)
    specs = [port(net, 3, PING), port(net, 4, PING)]
    known = with_hosts(net, *specs)
    bridge.driver.ensure_network(replace(known, dhcp=None, peers=("198.18.0.2",)))
    ovs.driver.ensure_network(replace(known, peers=("198.18.0.1",)))
    for host, peer in zip(pair, ("198.18.0.2", "198.18.0.1"), strict=True):
        host.driver.ensure_network(replace(other, dhcp=None, peers=(peer,)))
    a, b = (host.guest(spec) for host, spec in zip(pair, specs, strict=True))
    assert a.lease()["ip"] == "10.0.0.3", "DHCP by the other host"
    assert b.lease()["ip"] == "10.0.0.4"
    assert a.pings(b.ip)
    assert b.pings(a.ip)
    fits = ("ping", "-c", "1", "-W", "2", "-M", "do", "-s", "1422", b.ip)
    assert a.run(*fits, check=False).returncode == 0, "a whole packet of 1450 octets"
    more = ("ping", "-c", "1", "-W", "2", "-M", "do", "-s", "1423", b.ip)
    assert a.run(*more, check=False).returncode != 0, "and no larger one"
    for client, server, host in ((a, b, ovs), (b, a, bridge)):
        server.serve(80, "closed")
        assert client.reads(server.ip, 80, 1) == ""
        host.driver.ensure_port(replace(server.spec, rules=(*server.spec.rules, WEB)))
        assert client.reads(server.ip, 80) == "closed"
    alien = ovs.guest(port(other, 5, PING)).configure()
    assert not a.pings(alien.ip, 1), "networks do not meet"
    bridge.driver.ensure_network(replace(known, dhcp=None))
    assert "vxlan-7" not in bridge.run("ip", "-br", "link")
    assert not a.pings(b.ip, 1)


@pytest.mark.req("C/LBR-09", "C/ML2-09", "C/ML2-12", "C/ML2-13")
def test_who_is_known_is_neither_asked_for_nor_flooded(pair: list[Host]) -> None:
    bridge, ovs = pair
    net = network(vni=7, dhcp=False)
    here, there, unknown = port(net, 3, PING), port(net, 4, PING), port(net, 5, PING)
    told = replace(net, peers=("198.18.0.2",), neighbours=(neighbour(there, "198.18.0.2"),))
    bridge.driver.ensure_network(told)
    ovs.driver.ensure_network(replace(net, peers=("198.18.0.1",)))
    a = bridge.guest(here).configure()
    b, c = (ovs.guest(spec).configure() for spec in (there, unknown))
    listening = capture(bridge, "vxlan-7", "arp")
    assert a.pings(b.ip)
    assert a.pings(c.ip), "who is not known is asked for as ever"
    said = captured(listening)
    assert f"who-has {b.ip}" not in said
    assert f"who-has {c.ip}" in said
    entries = bridge.run("bridge", "fdb", "show", "dev", "vxlan-7")
    assert re.search(rf"{there.mac} dst 198.18.0.2 self permanent", entries), entries
    assert re.search(rf"{there.mac} master brq{net.id[:11]} static", entries), entries
    bridge.driver.ensure_network(replace(told, neighbours=()))
    entries = bridge.run("bridge", "fdb", "show", "dev", "vxlan-7")
    assert f"{there.mac} dst 198.18.0.2 self permanent" not in entries
    assert bridge.run("ip", "neigh", "show", "dev", f"brq{net.id[:11]}", "nud", "permanent") == ""
    assert a.pings(b.ip)


def test_who_moves_is_found_again(pair: list[Host]) -> None:
    bridge, ovs = pair
    net = network(vni=7, dhcp=False)
    here, there = port(net, 3, PING), port(net, 4, PING)
    told = replace(net, peers=("198.18.0.2",), neighbours=(neighbour(there, "198.18.0.2"),))
    bridge.driver.ensure_network(told)
    ovs.driver.ensure_network(replace(net, peers=("198.18.0.1",)))
    a, b = bridge.guest(here).configure(), ovs.guest(there).configure()
    assert a.pings(b.ip)
    b.close()
    ovs.guests.remove(b)
    ovs.driver.remove_port(there.id)
    bridge.driver.ensure_network(replace(told, neighbours=()))
    moved = bridge.guest(there).configure()
    assert a.pings(moved.ip)


def test_a_local_ip_is_only_for_its_own_host(pair: list[Host]) -> None:
    """The real owner of the address is elsewhere; a client there reaches him, a client here the port behind."""
    bridge, ovs = pair
    net = network(vni=7, dhcp=False)
    cache, near, far, real = port(net, 3, WEB), port(net, 4), port(net, 5), port(net, 50, WEB)
    local = LocalIp(address="10.0.0.50", port_id=cache.id, mac=cache.mac, fixed_ip="10.0.0.3")
    told = tuple(neighbour(spec, "198.18.0.2") for spec in (far, real))
    here = replace(net, peers=("198.18.0.2",), neighbours=told)
    bridge.driver.ensure_network(replace(here, local_ips=(local,)))
    ovs.driver.ensure_network(replace(net, peers=("198.18.0.1",)))
    a, b = (bridge.guest(spec).configure() for spec in (cache, near))
    c, d = (ovs.guest(spec).configure() for spec in (far, real))
    a.serve(80, "near")
    d.serve(80, "far")
    assert b.reads("10.0.0.50", 80) == "near"
    assert c.reads("10.0.0.50", 80) == "far"
    d.run("ip", "link", "set", "eth0", "down")
    c.run("ip", "neigh", "flush", "all")
    assert c.reads("10.0.0.50", 80) == "", "a local IP does not answer other hosts"
    assert b.reads("10.0.0.50", 80) == "near"
    d.run("ip", "link", "set", "eth0", "up")
    bridge.driver.ensure_network(here)
    b.run("ip", "neigh", "flush", "all")
    assert b.reads("10.0.0.50", 80, patience_s=3) == "far"


# --- physical networks --------------------------------------------------------------------------------------------


@pytest.mark.req("B/WALK-82")
def test_a_card_joins_the_bridge_of_its_network_and_comes_back(tmp_path: Path) -> None:
    host = Host(tmp_path, switch="linuxbridge")
    outside = f"nbo-{host.place.namespace[4:]}"
    try:
        links.ensure_namespace(outside, "nubila test outside")
        with links.opened(host.place.namespace) as kernel:
            kernel.add_veth("eth1", outside, "fa:16:3e:00:00:cc")
        for argv in (["addr", "add", "203.0.113.10/24", "dev", "eth1"], ["link", "set", "eth1", "up"],
                     ["route", "add", "198.51.100.0/24", "via", "203.0.113.1"]):  # fmt: skip
            host.run("ip", *argv)
        for argv in (["addr", "add", "203.0.113.1/24", "dev", "eth1"], ["link", "set", "eth1", "up"]):
            host.inside(outside, "ip", *argv)
        assert host.pings("203.0.113.1")
        host.driver = RealNetwork(replace(host.place, bridges={"physnet1": "eth1"}))
        flat = Segment(network_type="flat", physical_network="physnet1")
        net = replace(network("203.0.113.0/24", dhcp=False), segment=flat, mtu=1500)
        for _ in range(2):
            host.driver.ensure_network(net)
        brq = f"brq{net.id[:11]}"
        guest = host.guest(port(net, 20, PING)).configure()
        assert guest.pings("203.0.113.1"), "the world outside"
        assert guest.pings("203.0.113.10"), "the host itself, as before"
        assert host.pings("203.0.113.1")
        ports = re.findall(r"^\d+: ([^@:]+).* master (\S+) ", host.run("bridge", "link"), re.MULTILINE)
        assert sorted(ports) == sorted([("eth1", brq), (guest.spec.device, brq)])
        assert f"via 203.0.113.1 dev {brq}" in host.run("ip", "route", "show", "198.51.100.0/24")
        host.driver.remove_port(guest.spec.id)
        host.driver.remove_network(net.id)
        assert "203.0.113.10/24" in host.run("ip", "-br", "addr", "show", "eth1")
        assert "via 203.0.113.1 dev eth1" in host.run("ip", "route", "show", "198.51.100.0/24")
        assert host.pings("203.0.113.1")
    finally:
        host.close()
        links.remove_namespace(outside)


def test_a_vlan_network_says_what_the_kernel_lacks_or_tags(host: Host) -> None:
    host.run("ip", "link", "add", "eth1", "type", "veth", "peer", "name", "eth1-peer")
    host.driver = RealNetwork(replace(host.place, bridges={"physnet1": "eth1"}))
    segment = Segment(network_type="vlan", physical_network="physnet1", segmentation_id=123)
    net = replace(network(dhcp=False), segment=segment)
    host.run("ip", "link", "set", "eth1-peer", "up")
    host.run("ip", "link", "add", "link", "eth1", "name", "probe", "type", "vlan", "id", "9", check=False)
    if "probe" not in devices(host):
        with pytest.raises(NeedsOperator, match="CONFIG_VLAN_8021Q"):
            host.driver.ensure_network(net)
        return
    host.driver.ensure_network(net)
    a = host.guest(port(net, 3, PING)).configure()
    listening = capture(host, "eth1-peer", "vlan 123 and arp")
    a.pings("10.0.0.200")
    assert "vlan 123" in captured(listening)


# --- mending ------------------------------------------------------------------------------------------------------


def test_a_bridge_that_was_deleted_comes_back_with_its_ports(host: Host) -> None:
    net = network()
    specs = [port(net, 3, PING), port(net, 4, PING)]
    host.driver.ensure_network(with_hosts(net, *specs))
    a, b = (host.guest(spec) for spec in specs)
    a.lease()
    b.lease()
    assert a.pings(b.ip)
    host.run("ip", "link", "del", f"brq{net.id[:11]}")
    assert not a.pings(b.ip, 1)
    host.driver.ensure_network(with_hosts(net, *specs))
    assert a.pings(b.ip)
    a.run("ip", "addr", "flush", "dev", "eth0")
    assert a.lease()["ip"] == "10.0.0.3"


@pytest.mark.req("C/LBR-10")
def test_filters_that_were_flushed_come_back_whole(host: Host) -> None:
    net = network(dhcp=False)
    host.driver.ensure_network(net)
    a = host.guest(port(net, 3, PING)).configure()
    b = host.guest(port(net, 4)).configure()
    assert b.pings(a.ip)
    assert not a.pings(b.ip, 1)
    host.run("nft", "flush", "ruleset")
    assert a.pings(b.ip), "nothing is filtered now"
    host.driver.ensure_network(net)
    assert not a.pings(b.ip, 1)
    assert b.pings(a.ip)
    table = ("inet", "linuxbridge-nubila")
    before = host.run("nft", "list", "table", *table)
    host.run("nft", "flush", "chain", *table, f"neutron-linuxbri-i{b.spec.id[:11]}")
    RealNetwork(host.place).start()
    assert host.run("nft", "list", "table", *table) == before


@pytest.mark.req("B/NET-46")
def test_destroy_leaves_the_host_as_it_was(tmp_path: Path) -> None:
    host = Host(tmp_path, switch="linuxbridge")

    def world() -> dict[str, Any]:
        return {
            "namespaces": [name for name in links.namespaces() if name.endswith(f".{host.place.namespace}")],
            "links": sorted(re.findall(r"^\S+", host.run("ip", "-br", "link"), re.MULTILINE)),
            "rules": host.run("nft", "list", "ruleset"),
            "forward": host.run("cat", "/proc/sys/net/ipv4/ip_forward"),
        }

    try:
        host.driver.destroy()
        before = world()
        host.driver.start()
        net, outside = network(gateway="10.0.0.1"), external(masquerade=True)
        for spec in (net, replace(network(vni=9), peers=("198.18.0.9",)), outside):
            host.driver.ensure_network(spec)
        host.driver.ensure_port(port(net, 3))
        host.driver.ensure_router(router(net, outside=outside))
        assert world() != before
        host.driver.destroy()
        until(lambda: set(world()["links"]) == set(before["links"]), "veths are gone")
        assert world() == before
        assert [path.name for path in host.place.root.iterdir() if path.name != "sysctls.json"] == []
    finally:
        host.close()


def rules_of(host: Host) -> list[str]:
    """The filters' tables."""
    return [host.run("nft", "list", "table", family, "linuxbridge-nubila") for family in ("bridge", "inet")]


def devices(host: Host) -> dict[str, dict[str, Any]]:
    """The host's devices by name."""
    return {one["ifname"]: one for one in json.loads(host.run("ip", "-j", "-d", "link"))}


def test_filters_of_a_network_that_is_gone_go_with_the_next_start(host: Host) -> None:
    net = network(dhcp=False)
    rules = rules_of(host)
    host.driver.ensure_network(net)
    assert rules_of(host) != rules
    host.run("ip", "link", "del", f"brq{net.id[:11]}")  # where a driver that removed it died
    driver = RealNetwork(host.place)
    driver.start()
    assert rules_of(host) == rules


@pytest.mark.slow
def test_killed_anywhere_it_is_finished_by_the_next(tmp_path: Path) -> None:
    host = Host(tmp_path, switch="linuxbridge")
    try:
        killed_anywhere(host, tmp_path, lambda driver: (devices(host).keys(), rules_of(host)))
    finally:
        host.close()


@pytest.mark.req("C/LBR-04")
def test_a_bridge_goes_with_its_network(host: Host) -> None:
    net: NetworkSpec = network()
    host.driver.ensure_network(replace(net, peers=("198.18.0.9",)))
    brq = f"brq{net.id[:11]}"
    made = devices(host)
    assert made[brq]["linkinfo"]["info_kind"] == "bridge"
    assert (made["vxlan-7"]["master"], made["vxlan-7"]["mtu"]) == (brq, 1450)
    host.driver.remove_network(net.id)
    assert not {brq, "vxlan-7"} & devices(host).keys()
