"""Routers on real engines: joining, translating, floating addresses, metadata, advertisements."""

from __future__ import annotations

import json
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from contract_network import PING, WEB, external, network, port, replace, router
from network_world import Guest, Host, ask_in, await_line, heard, listen, until

from nubila.core.ports import FixedIp, FloatingSpec, RouterSpec, SubnetSpec
from nubila.drivers import links
from nubila.drivers.ovs_flows import link_local

pytestmark = pytest.mark.host


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Host]:
    host = Host(tmp_path)
    yield host
    host.close()


def routed(host: Host) -> tuple[Guest, Guest, RouterSpec]:
    """Two networks behind a router with an external gateway, a guest in each."""
    one, two, outside = network(dhcp=False, vni=7), network("10.1.0.0/24", dhcp=False, vni=8), external()
    for net in (one, two, outside):
        host.driver.ensure_network(net)
    gate = router(one, two, outside=outside)
    host.driver.ensure_router(gate)
    a = host.guest(port(one, 3, PING, WEB)).configure("10.0.0.1")
    b = host.guest(port(two, 4, PING, WEB)).configure("10.1.0.1")
    return a, b, gate


@pytest.mark.req("C/L3-03", "C/L3-07", "C/L3A-07")
def test_a_router_joins_networks_and_translates(host: Host) -> None:
    a, b, _ = routed(host)
    assert a.pings(b.ip)
    assert b.pings(a.ip)
    b.serve(80, "from b")
    assert a.reads(b.ip, 80) == "from b"
    assert a.pings("172.24.4.1"), "source translation to the router's own address"
    with links.entered(host.place.namespace):
        listener = socket.create_server(("172.24.4.1", 8080))
    with listener:
        listener.settimeout(5)
        client = a.spawn("sh", "-c", "busybox nc -w 5 172.24.4.1 8080 | wc -c")
        connection, peer = listener.accept()
        with connection:
            connection.sendall(b"x" * 3_000_000)
        assert peer[0] == "172.24.4.10", "its source is the router"
        assert client.communicate(timeout=20)[0].strip() == "3000000"


@pytest.mark.req("C/L3-19")
def test_floating_addresses_in_out_and_round(host: Host) -> None:
    a, b, gate = routed(host)
    floats = (
        FloatingSpec(id="1", floating_ip="172.24.4.101", fixed_ip=a.ip),
        FloatingSpec(id="2", floating_ip="172.24.4.102", fixed_ip=b.ip),
    )
    assert not host.pings("172.24.4.101", 1)
    host.driver.ensure_router(replace(gate, floating_ips=floats))
    assert host.pings("172.24.4.101")
    a.serve(80, "I am a")
    with links.entered(host.place.namespace):
        said = subprocess.run(["busybox", "nc", "-w", "2", "172.24.4.101", "80"], capture_output=True, text=True)
    assert said.stdout.strip() == "I am a"
    assert b.reads("172.24.4.101", 80) == "I am a", "from a guest of the same router"
    assert a.reads("172.24.4.101", 80) == "I am a", "from itself"
    listening = listen(b, "icmp")
    assert a.pings("172.24.4.102")
    assert "172.24.4.101 >" in heard(listening), "its own floating address is the source"
    host.driver.ensure_router(replace(gate, floating_ips=floats[1:]))
    assert not host.pings("172.24.4.101", 1)
    assert host.pings("172.24.4.102")


def test_losing_a_floating_address_cuts_its_connections(host: Host) -> None:
    a, _, gate = routed(host)
    floats = (FloatingSpec(id="1", floating_ip="172.24.4.101", fixed_ip=a.ip),)
    host.driver.ensure_router(replace(gate, floating_ips=floats))
    with links.entered(host.place.namespace):
        pinging = subprocess.Popen(["ping", "-i", "0.1", "172.24.4.101"], stdout=subprocess.PIPE, text=True)
    try:
        await_line(pinging.stdout, "bytes from")
        host.driver.ensure_router(gate)
        table = host.inside(host.driver.router_namespace(gate.id), "conntrack", "-L")
        assert f"src={a.ip}" not in table, "no connection is translated any longer"
    finally:
        pinging.kill()
        pinging.communicate()


def test_extra_routes_and_a_removed_interface(host: Host) -> None:
    a, b, gate = routed(host)
    where = host.driver.router_namespace(gate.id)
    host.driver.ensure_router(replace(gate, routes=(("198.51.100.0/24", "10.0.0.3"),)))
    assert "198.51.100.0/24 via 10.0.0.3" in host.inside(where, "ip", "route")
    state = host.driver.ensure_router(replace(gate, routes=(("198.51.100.0/24", "203.0.113.9"),)))
    assert "198.51.100.0/24" in state.fault
    host.driver.ensure_router(replace(gate, interfaces=gate.interfaces[:1]))
    assert "198.51.100.0/24" not in host.inside(where, "ip", "route")
    assert not a.pings(b.ip, 1)
    assert a.pings("172.24.4.1")
    host.driver.ensure_router(replace(gate, admin_state_up=False))
    assert not a.pings("172.24.4.1", 1)


@pytest.mark.req("C/L3A-16", "C/META-01")
def test_metadata_through_a_router(host: Host) -> None:
    host.driver.serve_metadata(lambda **request: (200, "text/plain", json.dumps(request, default=str).encode()))
    a, _, gate = routed(host)
    status, body = ask_in(a.namespace, "169.254.169.254", 80, "/openstack/latest/meta_data.json")
    asked = json.loads(body)
    assert status == 200
    assert (asked["router_id"], asked["address"]) == (gate.id, a.ip)
    with pytest.raises(OSError, match=r"timed out|refused|unreach"):
        ask_in(host.place.namespace, "172.24.4.10", 9697, "/")


@pytest.mark.req("C/L3A-13")
def test_ipv6_addresses_by_router_advertisement(host: Host) -> None:
    net = network(dhcp=False)
    six = SubnetSpec(
        id="six",
        cidr="fd00:6::/64",
        ip_version=6,
        gateway_ip="fd00:6::1",
        ipv6_ra_mode="slaac",
        ipv6_address_mode="slaac",
    )
    net = replace(net, subnets=(six,))
    host.driver.ensure_network(net)
    gate = router(replace(net, subnets=network().subnets))
    inside = replace(gate.interfaces[0], fixed_ips=(FixedIp(subnet_id="six", ip_address="fd00:6::1", prefixlen=64),))
    host.driver.ensure_router(replace(gate, interfaces=(inside,)))
    spec = port(replace(net, subnets=network().subnets), 3)
    last = link_local(spec.mac).removeprefix("fe80::")
    spec = replace(spec, fixed_ips=(FixedIp(subnet_id="six", ip_address=f"fd00:6::{last}", prefixlen=64),))
    guest = host.guest(spec)
    until(lambda: f"fd00:6::{last}" in guest.run("ip", "-6", "addr").stdout, "an address by SLAAC")
    until(lambda: "default via fe80::" in guest.run("ip", "-6", "route").stdout, "a default route")
    until(lambda: guest.pings("fd00:6::1"), "the router answers")


def test_masquerade_lets_guests_out_by_the_host(host: Host, tmp_path: Path) -> None:
    far = f"{host.place.namespace}-far"
    links.ensure_namespace(far, "nubila test")
    try:
        with links.opened(host.place.namespace) as net:
            net.add_veth("uplink", far, "fa:16:3e:00:00:aa")
        host.run("ip", "addr", "add", "203.0.113.1/24", "dev", "uplink")
        host.run("ip", "link", "set", "uplink", "up")
        with links.opened(far) as net:
            device = net.must("uplink")
            net.change(device, up=True)
            net.set_addresses(device.index, ["203.0.113.2/24"])
        before = host.run("cat", "/proc/sys/net/ipv4/ip_forward").strip()
        inner, outside = network(dhcp=False), external(masquerade=True)
        for net_spec in (inner, outside):
            host.driver.ensure_network(net_spec)
        host.driver.ensure_router(router(inner, outside=outside))
        a = host.guest(port(inner, 3)).configure("10.0.0.1")
        assert a.pings("203.0.113.2")
        host.driver.destroy()
        with links.entered(host.place.namespace):
            assert links.sysctl("net/ipv4/ip_forward") == before
    finally:
        links.remove_namespace(far)
