"""What packets meet: security groups, spoofing, isolation, DHCP, routers, tunnels. Real engines, played hosts."""

from __future__ import annotations

import json
import re
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import pytest
from contract_network import PING, WEB, external, fixed, network, port, replace, router, with_hosts
from network_world import Guest, Host, ask_in, until

from nubila.core.ports import FixedIp, FloatingSpec, RouterSpec, RuleSpec, Segment, SubnetSpec
from nubila.drivers import links, processes
from nubila.drivers.network import RealNetwork
from nubila.drivers.ovs_flows import link_local

pytestmark = pytest.mark.host

SEND_FRAME = """
import socket, sys
sender = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
sender.bind(("eth0", 0))
for _ in range(3):
    sender.send(bytes.fromhex(sys.argv[1]))
"""


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Host]:
    host = Host(tmp_path)
    yield host
    host.close()


def listen(guest: Guest, condition: str) -> subprocess.Popen[str]:
    """Start to capture what reaches a guest."""
    child = guest.spawn("tcpdump", "-i", "eth0", "-l", "-n", "-e", "-Q", "in", "--immediate-mode", condition)
    await_line(child.stdout, "listening on")
    return child


def await_line(stream: IO[str] | None, text: str) -> None:
    """Read lines until one has a text."""
    assert stream is not None
    for line in stream:
        if text in line:
            return
    raise AssertionError(f"never said: {text}")


def heard(listening: subprocess.Popen[str]) -> str:
    """What was captured until now."""
    time.sleep(0.2)  # there is nothing to wait for when nothing should arrive
    listening.terminate()
    return listening.communicate(timeout=10)[0]


def send_frame(guest: Guest, frame: bytes) -> None:
    guest.run("python3", "-c", SEND_FRAME, frame.hex())


def mac(text: str) -> bytes:
    return bytes.fromhex(text.replace(":", ""))


def ip(text: str) -> bytes:
    return bytes(int(part) for part in text.split("."))


def udp_frame(source_mac: str, source: str, to_mac: str, to: str, ports: tuple[int, int] = (1000, 2000)) -> bytes:
    payload = b"spoof"
    udp = ports[0].to_bytes(2, "big") + ports[1].to_bytes(2, "big") + (8 + len(payload)).to_bytes(2, "big") + b"\0\0"
    head = b"\x45\0" + (28 + len(payload)).to_bytes(2, "big") + b"\0\1\0\0\x40\x11\0\0" + ip(source) + ip(to)
    total = sum(int.from_bytes(head[i : i + 2], "big") for i in range(0, 20, 2))
    total = (total & 0xFFFF) + (total >> 16)
    head = head[:10] + (~(total + (total >> 16)) & 0xFFFF).to_bytes(2, "big") + head[12:]
    return mac(to_mac) + mac(source_mac) + b"\x08\0" + head + udp + payload


def arp_frame(source_mac: str, claimed_mac: str, claimed_ip: str, to: str) -> bytes:
    body = b"\0\1\x08\0\6\4\0\1" + mac(claimed_mac) + ip(claimed_ip) + b"\0" * 6 + ip(to)
    return b"\xff" * 6 + mac(source_mac) + b"\x08\x06" + body


# --- security groups ----------------------------------------------------------------------------------------------


def test_security_groups_are_closed_unless_opened(host: Host) -> None:
    net = network(dhcp=False)
    host.driver.ensure_network(net)
    web = host.guest(port(net, 3, PING, WEB)).configure()
    other = host.guest(port(net, 4)).configure()
    web.serve(80, "hello")
    web.serve(81, "secret")
    assert other.pings(web.ip)
    assert other.reads(web.ip, 80) == "hello"
    assert other.reads(web.ip, 81) == ""
    assert not web.pings(other.ip)


def test_remote_addresses_decide(host: Host) -> None:
    net = network(dhcp=False)
    host.driver.ensure_network(net)
    friend = host.guest(port(net, 4)).configure()
    stranger = host.guest(port(net, 5)).configure()
    rule = replace(PING, remote=(f"{friend.ip}/32",))
    web = host.guest(port(net, 3, rule)).configure()
    assert friend.pings(web.ip)
    assert not stranger.pings(web.ip)


def test_rules_apply_while_the_guest_runs_and_cut_what_they_revoke(host: Host) -> None:
    net = network(dhcp=False)
    host.driver.ensure_network(net)
    web = host.guest(port(net, 3, PING, WEB)).configure()
    client = host.guest(port(net, 4)).configure()
    web.spawn("busybox", "nc", "-ll", "-p", "80", "-e", "cat")
    until(lambda: ":80" in web.run("busybox", "netstat", "-ltn").stdout, "port 80")
    talk = (
        "exec 3<>/dev/tcp/$0/80; while read -r line; do "
        'echo "$line" >&3; read -t 1 -r back <&3 && echo "$back" || echo lost; done'
    )
    with links.entered(client.namespace):
        session = subprocess.Popen(
            ["bash", "-c", talk, web.ip], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
        )

    def say(word: str) -> str:
        assert session.stdin is not None
        assert session.stdout is not None
        session.stdin.write(word + "\n")
        session.stdin.flush()
        return session.stdout.readline().strip()

    try:
        assert say("one") == "one"
        ssh = replace(WEB, port_min=22, port_max=22)
        host.driver.ensure_port(replace(web.spec, rules=(*web.spec.rules, ssh)))
        assert say("two") == "two", "an unrelated change must not disturb a connection"
        host.driver.ensure_port(port(net, 9))
        assert say("three") == "three"
        host.driver.ensure_port(replace(web.spec, rules=tuple(r for r in web.spec.rules if r != WEB)))
        assert say("four") == "lost", "a revoked rule must cut its connections"
        assert client.pings(web.ip)
        host.driver.ensure_port(web.spec)
        until(lambda: say("five") in ("four", "five"), "the connection goes on when the rule is back")
    finally:
        session.kill()
        session.communicate()


def test_ipv6_is_filtered_the_same_way(host: Host) -> None:
    net = network(dhcp=False)
    subnet = SubnetSpec(id="six", cidr="fd00:1::/64", ip_version=6)
    net = replace(net, subnets=(*net.subnets, subnet))
    host.driver.ensure_network(net)

    def six(number: int, *rules: RuleSpec) -> Guest:
        spec = port(net, number, *rules)
        address = replace(spec.fixed_ips[0], subnet_id="six", ip_address=f"fd00:1::{number}", prefixlen=64)
        return host.guest(replace(spec, fixed_ips=(*spec.fixed_ips, address))).configure()

    ping6 = RuleSpec(direction="ingress", ethertype="IPv6", protocol="icmp")
    opened, closed = six(3, ping6), six(4)
    until(lambda: closed.pings("fd00:1::3"), "IPv6 echo")
    assert not opened.pings("fd00:1::4")


def test_fragments_pass_with_their_first(host: Host) -> None:
    net = network(dhcp=False)
    host.driver.ensure_network(net)
    a = host.guest(port(net, 3, PING)).configure()
    b = host.guest(port(net, 4)).configure()
    assert b.run("ping", "-c", "1", "-W", "2", "-s", "4000", a.ip, check=False).returncode == 0


def test_a_device_that_was_deleted_is_made_and_plugged_again(host: Host) -> None:
    net = network(dhcp=False)
    host.driver.ensure_network(net)
    a = host.guest(port(net, 3, PING)).configure()
    lost = host.guest(port(net, 4, PING)).configure()
    assert a.pings(lost.ip)
    host.run("ip", "link", "del", lost.spec.device)
    again = host.guest(lost.spec).configure()
    assert a.pings(again.ip)
    spec = port(net, 5)
    host.driver.ensure_port(spec)
    made = json.loads(host.run("ip", "-j", "-d", "link", "show", spec.device))[0]
    assert made["linkinfo"]["info_data"]["persist"] is True


# --- spoofing and isolation ---------------------------------------------------------------------------------------


def test_spoofed_frames_do_not_leave(host: Host) -> None:
    net = network(dhcp=False)
    host.driver.ensure_network(net)
    udp = RuleSpec(direction="ingress", protocol="udp")
    victim = host.guest(port(net, 3, udp)).configure()
    liar = host.guest(port(net, 4)).configure()
    true = (liar.spec.mac, liar.ip)
    to = (victim.spec.mac, victim.ip)
    frames = {
        "honest": udp_frame(*true, *to, (1, 7001)),
        "address": udp_frame(true[0], "10.0.0.99", *to, (1, 7002)),
        "mac": udp_frame("fa:16:3e:ff:ff:ff", true[1], *to, (1, 7003)),
        "broadcast": udp_frame(true[0], "10.0.0.99", "ff:ff:ff:ff:ff:ff", "255.255.255.255", (1, 7004)),
        "dhcp server": udp_frame(*true, *to, (67, 68)),
        "tagged": udp_frame(*true, *to, (1, 7005))[:12] + b"\x81\0\0\5" + udp_frame(*true, *to, (1, 7005))[12:],
    }
    listening = listen(victim, "udp or vlan")
    for frame in frames.values():
        send_frame(liar, frame)
    said = heard(listening)
    assert ".7001:" in said
    for forbidden in (".7002:", ".7003:", ".7004:", ".7005:", ".68:", "10.0.0.99", "fa:16:3e:ff:ff:ff"):
        assert forbidden not in said, said


def test_spoofed_arp_does_not_leave(host: Host) -> None:
    net = network(dhcp=False)
    host.driver.ensure_network(net)
    victim = host.guest(port(net, 3)).configure()
    liar = host.guest(port(net, 4)).configure()
    listening = listen(victim, "arp")
    send_frame(liar, arp_frame(liar.spec.mac, liar.spec.mac, liar.ip, "10.0.0.50"))
    send_frame(liar, arp_frame(liar.spec.mac, liar.spec.mac, "10.0.0.1", "10.0.0.51"))
    send_frame(liar, arp_frame(liar.spec.mac, "fa:16:3e:ff:ff:ff", liar.ip, "10.0.0.52"))
    said = heard(listening)
    assert "who-has 10.0.0.50" in said
    assert "10.0.0.51" not in said
    assert "10.0.0.52" not in said


def test_allowed_address_pairs_and_open_ports(host: Host) -> None:
    net = network(dhcp=False)
    host.driver.ensure_network(net)
    plain = host.guest(port(net, 3, PING)).configure()
    shared = ("10.0.0.100/32", "00:00:5e:00:01:01")
    pair = host.guest(port(net, 4, PING, allowed_pairs=(("10.0.0.101/32", ""), shared))).configure()
    pair.run("ip", "addr", "add", "10.0.0.101/32", "dev", "eth0")
    assert plain.pings("10.0.0.101")
    opened = host.guest(port(net, 5, port_security=False, rules=())).configure()
    opened.run("ip", "addr", "add", "10.0.0.102/24", "dev", "eth0")
    assert plain.pings("10.0.0.102")
    assert opened.pings(plain.ip)
    opened.run("ip", "link", "add", "link", "eth0", "name", "other", "type", "macvlan", "mode", "bridge")
    opened.run("ip", "addr", "add", "10.0.0.103/24", "dev", "other")
    opened.run("ip", "link", "set", "other", "up")
    assert plain.pings("10.0.0.103"), "an address behind an open port is learned"


def test_networks_never_meet(host: Host) -> None:
    one, two = network(dhcp=False, vni=7), network(dhcp=False, vni=8)
    for net in (one, two):
        host.driver.ensure_network(net)
    a = host.guest(port(one, 3, PING)).configure()
    b = host.guest(port(two, 4, PING)).configure()
    listening = listen(b, "arp or ip")
    assert not a.pings(b.ip)
    send_frame(a, udp_frame(a.spec.mac, a.ip, b.spec.mac, b.ip))
    assert a.ip not in heard(listening)


def test_a_guest_cannot_reach_the_host_past_the_switch(host: Host) -> None:
    net = network(dhcp=False)
    host.driver.ensure_network(net)
    guest = host.guest(port(net, 3)).configure()
    host.run("ip", "addr", "add", "192.0.2.1/32", "dev", "lo")
    host.run("ip", "link", "set", "lo", "up")
    tap = json.loads(host.run("ip", "-j", "link", "show", guest.spec.device))[0]["address"]
    guest.run("ip", "route", "add", "192.0.2.1/32", "dev", "eth0")
    assert not guest.pings("192.0.2.1")
    guest.run("ip", "neigh", "replace", "192.0.2.1", "lladdr", tap, "dev", "eth0")
    assert not guest.pings("192.0.2.1")
    guest.run("ip", "neigh", "replace", "192.0.2.1", "lladdr", "ff:ff:ff:ff:ff:ff", "dev", "eth0")
    assert not guest.pings("192.0.2.1")


def test_an_administratively_down_port_is_silent(host: Host) -> None:
    net = network(dhcp=False)
    host.driver.ensure_network(net)
    a = host.guest(port(net, 3, PING)).configure()
    b = host.guest(port(net, 4, PING)).configure()
    assert a.pings(b.ip)
    host.driver.ensure_port(replace(b.spec, admin_state_up=False))
    assert not a.pings(b.ip)
    host.driver.ensure_port(b.spec)
    assert a.pings(b.ip)


# --- DHCP ---------------------------------------------------------------------------------------------------------


@pytest.mark.req("B/NET-44")
@pytest.mark.req("B/NET-26")
def test_dhcp_gives_what_the_spec_says(host: Host) -> None:
    net = network(gateway="10.0.0.1", vni=7)
    net = replace(net, subnets=(replace(net.subnets[0], host_routes=(("192.168.9.0/24", "10.0.0.77"),)),))
    spec = port(net, 3)
    host.driver.ensure_network(with_hosts(net, spec))
    lease = host.guest(spec).lease()
    assert (lease["ip"], lease["mask"], lease["router"], lease["mtu"]) == ("10.0.0.3", "24", "10.0.0.1", "1450")
    assert (lease["dns"], lease["domain"], lease["hostname"]) == ("9.9.9.9", "openstack.test", "web-0")
    assert lease["staticroutes"] == "192.168.9.0/24 10.0.0.77 0.0.0.0/0 10.0.0.1"


def test_a_subnet_without_gateway_has_a_route_to_metadata(host: Host) -> None:
    net = network()
    spec = port(net, 3)
    host.driver.ensure_network(with_hosts(net, spec))
    host.driver.serve_metadata(lambda **request: (200, "text/plain", json.dumps(request, default=str).encode()))
    guest = host.guest(spec)
    assert "router" not in guest.lease()
    status, body = ask_in(guest.namespace, "169.254.169.254", 80, "/latest?a=b")
    assert status == 200
    asked = json.loads(body)
    assert (asked["network_id"], asked["router_id"]) == (net.id, None)
    assert (asked["address"], asked["method"], asked["path"]) == ("10.0.0.3", "GET", "/latest?a=b")


def test_new_hosts_are_known_without_a_restart_and_addresses_change_hands(host: Host) -> None:
    net = network()
    first = port(net, 3)
    host.driver.ensure_network(with_hosts(net, first))
    run_dir = host.place.root / "dhcp" / net.id
    pid = processes.alive("dnsmasq", run_dir)
    assert host.guest(first).lease()["ip"] == "10.0.0.3"
    until(lambda: "10.0.0.3" in (run_dir / "leases").read_text(), "the lease is written")
    heir = port(net, 3)
    host.driver.remove_port(first.id)
    host.driver.ensure_network(with_hosts(net, heir, port(net, 4)))
    assert host.guest(heir).lease()["ip"] == "10.0.0.3", "the old lease must not stand in the way"
    assert processes.alive("dnsmasq", run_dir) == pid, "changing hosts must not restart dnsmasq"


def test_a_dead_dnsmasq_comes_back_with_its_leases(host: Host) -> None:
    net = network()
    spec = port(net, 3)
    host.driver.ensure_network(with_hosts(net, spec))
    guest = host.guest(spec)
    guest.lease()
    run_dir = host.place.root / "dhcp" / net.id
    until(lambda: "10.0.0.3" in (run_dir / "leases").read_text(), "the lease is written")
    processes.kill("dnsmasq", run_dir)
    host.driver.ensure_network(with_hosts(net, spec))
    assert "10.0.0.3" in (run_dir / "leases").read_text()
    assert guest.lease()["ip"] == "10.0.0.3"


def test_dhcp_of_a_stranger_gets_nothing(host: Host) -> None:
    net = network()
    host.driver.ensure_network(net)
    guest = host.guest(port(net, 3))
    with pytest.raises(AssertionError):
        guest.lease()


# --- routers ------------------------------------------------------------------------------------------------------


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


def test_floating_addresses_in_out_and_round(host: Host) -> None:
    a, b, gate = routed(host)
    floats = (
        FloatingSpec(id="1", floating_ip="172.24.4.101", fixed_ip=a.ip),
        FloatingSpec(id="2", floating_ip="172.24.4.102", fixed_ip=b.ip),
    )
    assert not host.pings("172.24.4.101")
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
    assert not host.pings("172.24.4.101")
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
    assert not a.pings(b.ip)
    assert a.pings("172.24.4.1")
    host.driver.ensure_router(replace(gate, admin_state_up=False))
    assert not a.pings("172.24.4.1")


def test_metadata_through_a_router(host: Host) -> None:
    host.driver.serve_metadata(lambda **request: (200, "text/plain", json.dumps(request, default=str).encode()))
    a, _, gate = routed(host)
    status, body = ask_in(a.namespace, "169.254.169.254", 80, "/openstack/latest/meta_data.json")
    asked = json.loads(body)
    assert status == 200
    assert (asked["router_id"], asked["address"]) == (gate.id, a.ip)
    with pytest.raises(OSError, match=r"timed out|refused|unreach"):
        ask_in(host.place.namespace, "172.24.4.10", 9697, "/")


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


# --- hosts --------------------------------------------------------------------------------------------------------


def join(one: Host, other: Host) -> None:
    """A wire between two hosts, with their tunnel addresses."""
    with links.opened(one.place.namespace) as net:
        net.add_veth("underlay", other.place.namespace, "fa:16:3e:00:00:bb")
    for host in (one, other):
        with links.opened(host.place.namespace) as net:
            device = net.must("underlay")
            net.change(device, up=True, mtu=1600)
            net.set_addresses(device.index, [f"{host.place.tunnel_ip}/24"])


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
        assert a.reads(b.ip, 80) == ""
        hosts[1].driver.ensure_port(replace(specs[1], rules=(*specs[1].rules, WEB)))
        assert a.reads(b.ip, 80) == "closed"
        alien = hosts[1].guest(port(other, 5, PING)).configure()
        assert not a.pings(alien.ip)
        hosts[0].driver.ensure_network(known)
        assert "vxlan-7" not in hosts[0].run("ip", "-br", "link")
        assert not a.pings(b.ip)
    finally:
        for host in hosts:
            host.close()


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
    assert not b.pings(a.ip)
    again = RealNetwork(host.place)
    again.start()
    assert b.pings(a.ip)
    assert not a.pings(b.ip), "the filters are back as well"


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
