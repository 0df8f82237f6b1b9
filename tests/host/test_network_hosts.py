"""Hosts on real engines: tunnels, physical networks, restarts, two clouds, and leaving nothing behind."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from contract_network import PING, WEB, external, fixed, network, port, replace, router, with_hosts
from network_world import Host, await_line, until

from nubila.core.ports import FloatingSpec, Segment
from nubila.drivers import links, processes
from nubila.drivers.network import RealNetwork

pytestmark = pytest.mark.host


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Host]:
    host = Host(tmp_path)
    yield host
    host.close()


def join(one: Host, other: Host) -> None:
    """A wire between two hosts, with their tunnel addresses."""
    with links.opened(one.place.namespace) as net:
        net.add_veth("underlay", other.place.namespace, "fa:16:3e:00:00:bb")
    for host in (one, other):
        with links.opened(host.place.namespace) as net:
            device = net.must("underlay")
            net.change(device, up=True, mtu=1600)
            net.set_addresses(device.index, [f"{host.place.tunnel_ip}/24"])


@pytest.mark.req("C/TUN-01", "C/TUN-03")
def test_a_network_spans_hosts_by_vxlan(tmp_path: Path) -> None:
    hosts = [Host(tmp_path / f"h{i}", tunnel_ip=f"198.18.0.{i}") for i in (1, 2)]
    try:
        join(*hosts)
        net, other = network(vni=7), network("10.0.0.0/24", vni=8)
        specs = [port(net, 3, PING), port(net, 4, PING)]
        known = with_hosts(net, *specs)
        hosts[0].driver.ensure_network(replace(known, peers=("198.18.0.2",)))
        hosts[1].driver.ensure_network(replace(known, dhcp=None, peers=("198.18.0.1",)))
        for host, peer in zip(hosts, ("198.18.0.2", "198.18.0.1"), strict=True):
            host.driver.ensure_network(replace(other, dhcp=None, peers=(peer,)))
        a, b = (host.guest(spec) for host, spec in zip(hosts, specs, strict=True))
        assert a.lease()["ip"] == "10.0.0.3"
        assert b.lease()["ip"] == "10.0.0.4", "DHCP by the other host"
        assert a.pings(b.ip)
        assert b.pings(a.ip)
        b.serve(80, "closed")
        assert a.reads(b.ip, 80, 1) == ""
        hosts[1].driver.ensure_port(replace(specs[1], rules=(*specs[1].rules, WEB)))
        assert a.reads(b.ip, 80) == "closed"
        alien = hosts[1].guest(port(other, 5, PING)).configure()
        assert not a.pings(alien.ip, 1)
        hosts[0].driver.ensure_network(known)
        assert "vxlan-7" not in hosts[0].run("ip", "-br", "link")
        assert not a.pings(b.ip, 1)
    finally:
        for host in hosts:
            host.close()


@pytest.mark.req("C/OVS-09")
def test_a_vlan_network_reaches_the_physical_bridge_tagged(host: Host) -> None:
    segment = Segment(network_type="vlan", physical_network="physnet1", segmentation_id=123)
    net = replace(network(dhcp=False), segment=segment)
    host.driver.ensure_network(net)
    a = host.guest(port(net, 3, PING)).configure()
    with links.opened(host.place.namespace) as kernel:
        kernel.change(kernel.must("br-ex"), up=True)
    with links.entered(host.place.namespace):
        listening = subprocess.Popen(
            ["timeout", "3", "tcpdump", "-i", "br-ex", "-c", "1", "-n", "-e", "--immediate-mode", "vlan 123 and arp"],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
    await_line(listening.stderr, "listening on")
    a.pings("10.0.0.200")
    assert "vlan 123" in listening.communicate(timeout=10)[0]


def test_nothing_is_disturbed_when_everything_is_ensured_again(host: Host) -> None:
    net, outside = network(gateway="10.0.0.1"), external()
    a_spec, b_spec = port(net, 3, PING), port(net, 4, PING)
    known = with_hosts(net, a_spec, b_spec)
    gate = router(net, outside=outside)
    gate = replace(gate, floating_ips=(FloatingSpec(id="1", floating_ip="172.24.4.101", fixed_ip="10.0.0.3"),))

    def everything(driver: RealNetwork) -> None:
        driver.ensure_network(known)
        driver.ensure_network(outside)
        driver.ensure_port(a_spec)
        driver.ensure_port(b_spec)
        driver.ensure_router(gate)

    host.driver.ensure_network(known)
    host.driver.ensure_network(outside)
    a, b = host.guest(a_spec), host.guest(b_spec)
    host.driver.ensure_router(gate)
    a.lease()
    b.lease()
    with links.entered(host.place.namespace):
        outer = subprocess.Popen(
            ["ping", "-i", "0.05", "-c", "60", "-q", "172.24.4.101"], stdout=subprocess.PIPE, text=True
        )
    inner = b.spawn("ping", "-i", "0.05", "-c", "60", "-q", a.ip)
    rounds = 0
    while inner.poll() is None or outer.poll() is None:
        driver = RealNetwork(host.place)
        driver.start()
        everything(driver)
        assert driver.prune([known.id, outside.id], [a_spec.id, b_spec.id], [gate.id]) == []
        rounds += 1
    for child in (inner, outer):
        said = child.communicate()[0]
        lost = re.search(r"(\d+) packets transmitted, (\d+) received", said)
        assert lost is not None, said
        assert lost[1] == lost[2] == "60", said
    assert rounds >= 3


def test_a_killed_switch_comes_back_with_all_flows(host: Host) -> None:
    net = network(dhcp=False)
    host.driver.ensure_network(net)
    a = host.guest(port(net, 3, PING)).configure()
    b = host.guest(port(net, 4)).configure()
    assert b.pings(a.ip)
    for name in ("ovs-vswitchd", "ovsdb-server"):
        processes.kill(name, host.driver.switch.daemons.run_dir)
    assert not b.pings(a.ip, 1)
    again = RealNetwork(host.place)
    again.start()
    assert b.pings(a.ip)
    assert not a.pings(b.ip, 1), "the filters are back as well"


@pytest.mark.req("C/OPS-05")
def test_two_clouds_live_side_by_side(tmp_path: Path) -> None:
    host = Host(tmp_path, cloud="nubila")
    try:
        place = replace(host.place, cloud="second", root=tmp_path / "second", bridges={"physnet1": "br-ex-second"})
        second = RealNetwork(place)
        second.start()
        net = network(vni=7)
        for driver in (host.driver, second):
            driver.ensure_network(replace(net, dhcp=None))
        mine = host.guest(port(net, 3, PING)).configure()
        second.prune((), (), ())
        second.destroy()
        assert host.driver.networks() == [net.id]
        assert host.driver.ports() == [mine.spec.id]
        assert fixed(net, 3).ip_address == mine.ip
    finally:
        host.close()


@pytest.mark.req("B/NET-46")
def test_destroy_leaves_the_host_as_it_was(tmp_path: Path) -> None:
    host = Host(tmp_path)

    def _ours(command: str) -> bool:
        return str(tmp_path) in command or f"ovs.{host.place.namespace}/" in command

    def world() -> dict[str, Any]:
        ours = [p for p in Path("/proc").iterdir() if p.name.isdigit() and _ours(_command(p))]
        return {
            "namespaces": [name for name in links.namespaces() if name.endswith(f".{host.place.namespace}")],
            "links": sorted(re.findall(r"^\S+", host.run("ip", "-br", "link"), re.MULTILINE)),
            "rules": host.run("nft", "list", "ruleset"),
            "forward": host.run("cat", "/proc/sys/net/ipv4/ip_forward"),
            "processes": [_command(p) for p in ours],
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
        during = world()
        assert during != before
        assert len(during["processes"]) >= 4
        host.driver.destroy()
        until(lambda: set(world()["links"]) == set(before["links"]), "veths are gone")
        assert world() == before
        assert [path for path in host.place.root.iterdir() if path.name != "sysctls.json"] == []
    finally:
        host.close()


def _command(process: Path) -> str:
    try:
        return (process / "cmdline").read_bytes().replace(b"\0", b" ").decode()
    except OSError:
        return ""
