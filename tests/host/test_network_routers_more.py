"""Routers on real engines: forwarded ports, conntrack helpers, NDP proxies, several gateways, IPv6, what was broken."""

from __future__ import annotations

import contextlib
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from contract_network import external, network, port, replace, router, router_port
from network_world import Guest, Host, await_line, heard, until

from nubila.core.ports import (
    FixedIp,
    FloatingSpec,
    ForwardSpec,
    HelperSpec,
    NetworkSpec,
    RouterSpec,
    RuleSpec,
    Segment,
    SubnetSpec,
)
from nubila.drivers import bfd, links
from nubila.drivers.files import write_json

pytestmark = pytest.mark.host
ANY = (RuleSpec(direction="ingress"), RuleSpec(direction="ingress", ethertype="IPv6"))
OUT = "172.24.4.101"


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Host]:
    host = Host(tmp_path)
    yield host
    host.close()


class Far:
    """A machine on an external network: a namespace on a veth whose other end is a port of the physical bridge."""

    def __init__(self, host: Host, bridge: str, *addresses: str, name: str = "far") -> None:
        self.namespace, self.device = f"{host.place.namespace}-{name}", f"v-{name}"
        links.ensure_namespace(self.namespace, "nubila test")
        with links.opened(host.place.namespace) as net:
            net.add_veth(self.device, self.namespace, "fa:16:3e:00:aa:" + f"{len(name):02x}")
            net.change(net.must(self.device), up=True)
        with links.entered(host.place.namespace):
            links.plain_frames(self.device)
        socket_ = host.driver.switch.daemons.run_dir / "db.sock"  # type: ignore[attr-defined]
        host.run("ovs-vsctl", f"--db=unix:{socket_}", "--no-wait", "add-port", bridge, self.device)
        self.run("ip", "link", "set", "lo", "up")
        self.run("ip", "link", "set", self.device, "up")
        with links.entered(self.namespace):
            links.plain_frames(self.device)
        for address in addresses:
            self.run("ip", "addr", "add", address, "dev", self.device, *(["nodad"] if ":" in address else []))

    def run(self, *argv: str, check: bool = True) -> str:
        with links.entered(self.namespace):
            done = subprocess.run(argv, capture_output=True, text=True, timeout=20)
        assert not check or done.returncode == 0, f"{argv}: {done.stdout}{done.stderr}"
        return done.stdout

    def spawn(self, *argv: str) -> subprocess.Popen[str]:
        with links.entered(self.namespace):
            return subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)

    def pings(self, address: str, patience_s: int = 3) -> bool:
        with links.entered(self.namespace):
            argv = ["busybox", "ping", "-c", "1", "-W", str(patience_s), address]
            return subprocess.run(argv, capture_output=True, timeout=10).returncode == 0

    def close(self) -> None:
        links.remove_namespace(self.namespace)


def outside(host: Host, address: str, number: int, patience_s: float = 2.0) -> str:
    """What a TCP server says to somebody on the external network; "" when there is no connection."""
    with links.entered(host.place.namespace):
        client = socket.socket()
    with client, contextlib.suppress(OSError):
        client.settimeout(patience_s)
        client.connect((address, number))
        return client.makefile().readline().strip()
    return ""


def one_router(host: Host, *, number: int = 3) -> tuple[Guest, RouterSpec]:
    """A guest that lets everything in, behind a router with a gateway."""
    net, ext = network(dhcp=False, vni=7), external()
    for spec in (net, ext):
        host.driver.ensure_network(spec)
    gate = router(net, outside=ext)
    host.driver.ensure_router(gate)
    return host.guest(port(net, number, *ANY)).configure("10.0.0.1"), gate


def lead(guest: Guest, protocol: str, low: int, high: int, first: int, last: int) -> ForwardSpec:
    return ForwardSpec(floating_ip=OUT, protocol=protocol, outside=(low, high), fixed_ip=guest.ip, inside=(first, last))


def test_ports_and_ranges_are_forwarded(host: Host) -> None:
    a, gate = one_router(host)
    leads = (
        lead(a, "tcp", 8080, 8080, 80, 80),
        lead(a, "tcp", 9000, 9004, 9000, 9004),
        lead(a, "tcp", 7000, 7003, 6000, 6003),
        lead(a, "tcp", 5000, 5009, 22, 22),
        lead(a, "udp", 5353, 5353, 53, 53),
    )
    host.driver.ensure_router(replace(gate, forwardings=leads))
    for number in (80, 9002, 6001, 22):
        a.serve(number, f"port {number}")
    assert outside(host, OUT, 8080) == "port 80"
    assert outside(host, OUT, 9002) == "port 9002"
    assert outside(host, OUT, 7001) == "port 6001", "of a range the same place in the other"
    assert outside(host, OUT, 5007) == outside(host, OUT, 5000) == "port 22", "many lead to one"
    assert outside(host, OUT, 80, 1) == "", "nothing else is forwarded"
    assert a.reads(OUT, 8080) == "port 80", "from inside as well"
    await_line(a.spawn("python3", "-c", ECHO).stdout, "ready")
    with links.entered(host.place.namespace):
        asking = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    with asking:
        asking.settimeout(3)
        asking.sendto(b"who?", (OUT, 5353))
        assert asking.recvfrom(99) == (b"who?", (OUT, 5353))


def test_a_forwarding_that_goes_cuts_its_connections(host: Host) -> None:
    a, gate = one_router(host)
    leads = (lead(a, "tcp", 8080, 8080, 80, 80), lead(a, "tcp", 8081, 8081, 80, 80))
    host.driver.ensure_router(replace(gate, forwardings=leads))
    a.spawn("busybox", "nc", "-ll", "-p", "80", "-e", "cat")
    until(lambda: ":80" in a.run("busybox", "netstat", "-ltn").stdout, "port 80")
    with links.entered(host.place.namespace):
        going, staying = (socket.create_connection((OUT, number), 3) for number in (8080, 8081))
    with going, staying:
        for one in (going, staying):
            one.settimeout(1)
            one.sendall(b"hello")
            assert one.recv(99) == b"hello"
        host.driver.ensure_router(replace(gate, forwardings=leads[1:]))
        staying.sendall(b"still")
        assert staying.recv(99) == b"still"
        going.sendall(b"still")
        with pytest.raises(OSError, match=r"timed out|reset|refused"):
            going.recv(99)


ECHO = """
import socket
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.bind(("0.0.0.0", 53))
print("ready", flush=True)
while True: s.sendto(*s.recvfrom(999))
"""
TFTP = """
import socket, struct
door = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); door.bind(("0.0.0.0", 69))
print("ready", flush=True)
while True:
    _, client = door.recvfrom(999)
    data = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); data.bind(("0.0.0.0", 0))
    data.sendto(struct.pack("!HH", 3, 1) + b"the file", client)
"""
GET = """
import socket, struct, sys
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.settimeout(1)
s.sendto(b"\\0\\1name\\0octet\\0", (sys.argv[1], 69))
try: print(s.recvfrom(999)[0][4:].decode())
except TimeoutError: print("nothing")
"""


def test_a_conntrack_helper_lets_further_connections_through(host: Host) -> None:
    """A TFTP server answers from another port: only the helper knows that this belongs to the request."""
    a, gate = one_router(host)
    with links.entered(host.place.namespace):
        server = subprocess.Popen(["python3", "-c", TFTP], stdout=subprocess.PIPE, text=True)
    try:
        await_line(server.stdout, "ready")
        assert a.run("python3", "-c", GET, "172.24.4.1").stdout.strip() == "nothing"
        helped = replace(gate, helpers=(HelperSpec(helper="tftp", protocol="udp", port=69),))
        assert host.driver.ensure_router(helped).fault == ""
        assert a.run("python3", "-c", GET, "172.24.4.1").stdout.strip() == "the file"
        strange = replace(gate, helpers=(HelperSpec(helper="gopher", protocol="tcp", port=70),))
        assert "no conntrack helper gopher" in host.driver.ensure_router(strange).fault
    finally:
        server.kill()
        server.communicate()


def six(net: NetworkSpec, cidr: str, gateway: str | None) -> NetworkSpec:
    """The network with an IPv6 subnet besides."""
    more = SubnetSpec(id=f"{net.id}-6", cidr=cidr, ip_version=6, gateway_ip=gateway)
    return replace(net, subnets=(*net.subnets, more))


def ip6(net: NetworkSpec, address: str) -> FixedIp:
    return FixedIp(subnet_id=f"{net.id}-6", ip_address=address, prefixlen=64)


def test_ipv6_is_routed_and_ndp_proxies_make_addresses_known(host: Host) -> None:
    net, ext = six(network(dhcp=False, vni=7), "fd00:1::/64", "fd00:1::1"), six(external(), "fd00:e::/64", "fd00:e::1")
    for spec in (net, ext):
        host.driver.ensure_network(spec)
    far = Far(host, "br-ex", "fd00:e::1/64", "172.24.4.9/24")
    try:
        gate = router(net, outside=ext)
        assert gate.gateway is not None
        inside = replace(gate.interfaces[0], fixed_ips=(*gate.interfaces[0].fixed_ips, ip6(net, "fd00:1::1")))
        gate = replace(
            gate, interfaces=(inside,), gateway=replace(gate.gateway, fixed_ips=(ip6(ext, "fd00:e::10"),)),
            gateway_ips=("fd00:e::1",),
        )  # fmt: skip
        guests = []
        for number in (3, 4):
            spec = port(net, number, *ANY)
            guest = host.guest(replace(spec, fixed_ips=(*spec.fixed_ips, ip6(net, f"fd00:1::{number}")))).configure()
            guest.run("ip", "-6", "route", "add", "default", "via", "fd00:1::1")
            guests.append(guest)
        host.driver.ensure_router(gate)
        assert not far.pings("fd00:1::3", 1), "nobody outside knows where that is"
        far.run("ip", "-6", "route", "add", "fd00:1::/64", "via", "fd00:e::10")
        until(lambda: far.pings("fd00:1::3"), "routed from outside")
        until(lambda: guests[0].pings("fd00:e::1"), "and back")
        far.run("ip", "-6", "route", "replace", "fd00:1::/64", "dev", far.device)
        assert not far.pings("fd00:1::3", 1), "nobody answers for it on the external network"
        capture = far.spawn("tcpdump", "-i", far.device, "-l", "-n", "--immediate-mode", "icmp6 and ip6[40] == 136")
        await_line(capture.stdout, "listening on")
        host.driver.ensure_router(replace(gate, ndp_proxy=True, proxies=("fd00:1::3",)))
        until(lambda: far.pings("fd00:1::3"), "the router answers for it")
        assert "tgt is fd00:1::3" in heard(capture), "and says so to its neighbours"
        assert not far.pings("fd00:1::4", 1)
        far.run("ip", "-6", "route", "replace", "fd00:1::/64", "via", "fd00:e::10")
        assert not far.pings("fd00:1::4", 1), "what has no proxy does not come in"
        assert guests[1].pings("fd00:e::1"), "but it gets out and its answers back"
        host.driver.ensure_router(gate)
        where = host.driver.router_namespace(gate.id)
        assert "fd00:1::3" not in host.inside(where, "ip", "-6", "neigh", "show", "proxy")
    finally:
        far.close()


def test_several_gateways_carry_answers_back_and_floating_addresses(tmp_path: Path) -> None:
    host = Host(tmp_path)
    host.driver.destroy()
    host.place.bridges["physnet2"] = "br-ex2"
    host.driver.start()
    fars: list[Far] = []
    try:
        net, ext = network(dhcp=False, vni=7), external()
        other = external("198.51.100.0/24")
        other = replace(other, segment=Segment(network_type="flat", physical_network="physnet2"))
        for spec in (net, ext, other):
            host.driver.ensure_network(replace(spec, host_address=None))
        fars.append(Far(host, "br-ex", "172.24.4.1/24", "203.0.113.1/32", name="one"))
        fars.append(Far(host, "br-ex2", "198.51.100.1/24", "203.0.113.2/32", name="second"))
        second = replace(router_port(other, 10), hops=("198.51.100.1",))
        gate = replace(router(net, outside=ext), more_gateways=(second,))
        a = host.guest(port(net, 3, *ANY)).configure("10.0.0.1")
        b = host.guest(port(net, 4, *ANY)).configure("10.0.0.1")
        leads = (ForwardSpec(floating_ip="198.51.100.50", protocol="tcp", outside=(80, 80), fixed_ip=a.ip,
                             inside=(80, 80), port_id=second.port_id),)  # fmt: skip
        floats = (FloatingSpec(id="1", floating_ip="198.51.100.60", fixed_ip=b.ip, port_id=second.port_id),)
        gate = replace(gate, forwardings=leads, floating_ips=floats)
        assert host.driver.ensure_router(gate).fault == ""
        assert a.pings("203.0.113.1"), "the first gateway is the default"
        assert not a.pings("203.0.113.2", 1)
        assert b.pings("203.0.113.2"), "a floating address leaves by its own gateway"
        assert a.pings("198.51.100.1")
        a.serve(80, "I am a")
        with links.entered(fars[1].namespace):
            client = socket.socket()
        with client:
            client.settimeout(3)
            client.bind(("203.0.113.2", 0))
            client.connect(("198.51.100.50", 80))
            assert client.makefile().readline().strip() == "I am a", "answers go back by the gateway they came in by"
        assert fars[1].pings("198.51.100.60")
        assert fars[1].pings("198.51.100.10"), "the router's own address answers by its own way"
        where = host.driver.router_namespace(gate.id)
        host.driver.ensure_router(replace(gate, ecmp=True))
        spread = host.inside(where, "ip", "route", "show", "default")
        assert "via 172.24.4.1" in spread
        assert "via 198.51.100.1" in spread
        host.driver.ensure_router(replace(gate, more_gateways=(), forwardings=(), floating_ips=()))
        assert "198.51.100" not in host.inside(where, "ip", "route", "show", "table", "all")
        assert "fwmark" not in host.inside(where, "ip", "rule")
        assert b.pings("203.0.113.1"), "everything leaves by the one that is left"
    finally:
        for far in fars:
            far.close()
        host.close()


def test_floating_addresses_by_an_interface(host: Host) -> None:
    """An external network that the router has an ordinary interface on (router-interface-fip)."""
    a, gate = one_router(host)
    ext = external("198.51.100.0/24")
    ext = replace(ext, segment=Segment(network_type="vxlan", segmentation_id=99), host_address=None)
    host.driver.ensure_network(ext)
    door = router_port(ext, 1)
    stranger = host.guest(port(ext, 9, *ANY)).configure("198.51.100.1")
    floats = (FloatingSpec(id="1", floating_ip="198.51.100.77", fixed_ip=a.ip, port_id=door.port_id),)
    host.driver.ensure_router(replace(gate, interfaces=(*gate.interfaces, door), floating_ips=floats))
    a.serve(80, "I am a")
    assert stranger.reads("198.51.100.77", 80) == "I am a"
    capture = stranger.spawn("tcpdump", "-i", "eth0", "-l", "-n", "--immediate-mode", "-Q", "in", "icmp")
    await_line(capture.stdout, "listening on")
    assert a.pings("198.51.100.9")
    assert "198.51.100.77 > 198.51.100.9" in heard(capture)
    assert stranger.pings("172.24.4.1"), "what comes from there leaves by the gateway like everything inside"


def test_what_somebody_deleted_by_hand_is_made_again(host: Host) -> None:
    a, gate = one_router(host)
    where = host.driver.router_namespace(gate.id)
    assert gate.gateway is not None
    floats = replace(gate, floating_ips=(FloatingSpec(id="1", floating_ip=OUT, fixed_ip=a.ip),))
    host.driver.ensure_router(floats)
    for damage in (
        ("ip", "link", "del", f"qr-{gate.interfaces[0].port_id[:11]}"),
        ("ip", "link", "del", f"qg-{gate.gateway.port_id[:11]}"),
        ("ip", "route", "del", "default"),
        ("nft", "flush", "ruleset"),
        ("ip", "addr", "flush", "dev", f"qr-{gate.interfaces[0].port_id[:11]}"),
    ):
        host.inside(where, *damage)
        host.driver.ensure_router(floats)
        until(lambda: a.pings("172.24.4.1"), f"out again after {damage}")
        assert host.pings(OUT), damage
    links.remove_namespace(where)
    until(lambda: not a.pings("172.24.4.1", 1), "the kernel has taken the namespace apart")
    host.driver.ensure_router(floats)
    until(lambda: a.pings("172.24.4.1"), "out again in a new namespace")
    assert host.pings(OUT)


def test_without_translation_and_with_several_addresses(host: Host) -> None:
    a, gate = one_router(host)
    assert gate.gateway is not None
    second = FixedIp(subnet_id=gate.gateway.fixed_ips[0].subnet_id, ip_address="172.24.4.11", prefixlen=24)
    plain = replace(gate, snat=False, gateway=replace(gate.gateway, fixed_ips=(*gate.gateway.fixed_ips, second)))
    host.driver.ensure_router(plain)
    assert not a.pings("172.24.4.1", 1), "nobody outside knows where 10.0.0.0/24 is"
    host.run("ip", "route", "add", "10.0.0.0/24", "via", "172.24.4.11")
    with links.entered(host.place.namespace):
        capture = subprocess.Popen(
            ["tcpdump", "-i", "br-ex", "-l", "-n", "--immediate-mode", "icmp"], stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip
    await_line(capture.stdout, "listening on")
    assert a.pings("172.24.4.1")
    assert f"{a.ip} > 172.24.4.1" in heard(capture), "with its own address"
    assert host.pings("172.24.4.10")
    assert host.pings("172.24.4.11")


def test_routes_with_several_next_hops_and_of_both_families(host: Host) -> None:
    a, gate = one_router(host)
    where = host.driver.router_namespace(gate.id)
    many = (("198.51.100.0/24", "10.0.0.3"), ("198.51.100.0/24", "10.0.0.4"), ("203.0.113.0/24", "10.0.0.3"))
    assert host.driver.ensure_router(replace(gate, routes=many)).fault == ""
    said = host.inside(where, "ip", "route", "show", "198.51.100.0/24")
    assert "via 10.0.0.3" in said
    assert "via 10.0.0.4" in said
    host.driver.ensure_router(replace(gate, routes=many[1:]))
    assert host.inside(where, "ip", "route", "show", "198.51.100.0/24").split()[:3] == [
        "198.51.100.0/24", "via", "10.0.0.4",
    ]  # fmt: skip
    host.driver.ensure_router(gate)
    assert "198.51.100" not in host.inside(where, "ip", "route")
    assert a.pings("172.24.4.1")


def test_packets_larger_than_the_next_network_takes_are_refused_with_its_mtu(host: Host) -> None:
    small, large = replace(network(dhcp=False, vni=7), mtu=1300), network("10.1.0.0/24", dhcp=False, vni=8)
    for net in (small, large):
        host.driver.ensure_network(net)
    host.driver.ensure_router(router(small, large))
    a = host.guest(port(large, 3, *ANY)).configure("10.1.0.1")
    b = host.guest(port(small, 3, *ANY)).configure("10.0.0.1")
    assert a.pings(b.ip)
    said = a.run("ping", "-c", "1", "-W", "2", "-M", "do", "-s", "1372", b.ip, check=False).stdout
    assert "mtu = 1300" in said or "mtu=1300" in said, said


def test_bfd_leaves_out_a_next_hop_that_went_away(tmp_path: Path) -> None:
    host = Host(tmp_path)
    fars: list[Far] = []
    peers: list[subprocess.Popen[str]] = []
    try:
        net = network(dhcp=False, vni=7)
        outer = [replace(external(), host_address=None), external("198.51.100.0/24")]
        outer[1] = replace(
            outer[1], segment=Segment(network_type="vlan", physical_network="physnet1", segmentation_id=5),
            host_address=None,
        )  # fmt: skip
        for spec in (net, *outer):
            host.driver.ensure_network(spec)
        far = Far(host, "br-ex", "172.24.4.1/24", "203.0.113.1/32")
        fars.append(far)
        far.run("ethtool", "-K", far.device, "txvlan", "off", "rxvlan", "off", check=False)
        second = replace(router_port(outer[1], 10), hops=("198.51.100.1",))
        gate = replace(router(net, outside=outer[0]), more_gateways=(second,), ecmp=True, bfd=True)
        assert host.driver.ensure_router(gate).fault == ""
        where = host.driver.router_namespace(gate.id)

        def spread() -> str:
            return host.inside(where, "ip", "route", "show", "default")

        assert "172.24.4.1" in spread(), "a neighbour that never spoke BFD is taken for there"
        config = tmp_path / "peer" / "bfd.json"
        config.parent.mkdir()
        watch = bfd.Watch(namespace="", sessions=(("172.24.4.1", "172.24.4.10"),), routes=(), ways=())
        write_json(config, watch)
        argv = [sys.executable, "-m", "nubila.drivers.bfd", str(config)]
        peers.append(far.spawn(*argv))
        log = host.place.root / "routers" / gate.id / "bfd.log"
        until(lambda: "172.24.4.1 UP" in log.read_text(), "a session")
        peers[0].kill()
        until(lambda: "172.24.4.1" not in spread(), f"left out: {log.read_text()}")
        assert "198.51.100.1" in spread()
        host.driver.ensure_router(gate)
        assert "172.24.4.1" not in spread(), "and it stays out when everything is ensured again"
        peers.append(far.spawn(*argv))
        until(lambda: "172.24.4.1" in spread(), "back")
        host.driver.ensure_router(replace(gate, bfd=False))
        assert not list((host.place.root / "routers").glob("*/bfd.json"))
    finally:
        for peer in peers:
            peer.kill()
            peer.communicate()
        for far in fars:
            far.close()
        host.close()
