"""What packets meet on real engines: security groups, spoofing, isolation, DHCP."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from contract_network import PING, WEB, network, port, replace, with_hosts
from network_world import Guest, Host, ask_in, heard, listen, until

from nubila.core.ports import RuleSpec, SubnetSpec
from nubila.drivers import links, processes

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


@pytest.mark.req("C/SG-08", "C/SG-02")
def test_security_groups_are_closed_unless_opened(host: Host) -> None:
    net = network(dhcp=False)
    host.driver.ensure_network(net)
    web = host.guest(port(net, 3, PING, WEB)).configure()
    other = host.guest(port(net, 4)).configure()
    web.serve(80, "hello")
    web.serve(81, "secret")
    assert other.pings(web.ip)
    assert other.reads(web.ip, 80) == "hello"
    assert other.reads(web.ip, 81, 1) == ""
    assert not web.pings(other.ip, 1)


def test_remote_addresses_decide(host: Host) -> None:
    net = network(dhcp=False)
    host.driver.ensure_network(net)
    friend = host.guest(port(net, 4)).configure()
    stranger = host.guest(port(net, 5)).configure()
    rule = replace(PING, remote=(f"{friend.ip}/32",))
    web = host.guest(port(net, 3, rule)).configure()
    assert friend.pings(web.ip)
    assert not stranger.pings(web.ip, 1)


@pytest.mark.req("C/SG-12")
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
    assert not opened.pings("fd00:1::4", 1)


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


@pytest.mark.req("C/SG-10")
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


@pytest.mark.req("C/OVS-19")
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


@pytest.mark.req("C/AAP-01", "C/ML2-06")
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


@pytest.mark.req("C/NET-08", "C/OVS-17")
def test_networks_never_meet(host: Host) -> None:
    one, two = network(dhcp=False, vni=7), network(dhcp=False, vni=8)
    for net in (one, two):
        host.driver.ensure_network(net)
    a = host.guest(port(one, 3, PING)).configure()
    b = host.guest(port(two, 4, PING)).configure()
    listening = listen(b, "arp or ip")
    assert not a.pings(b.ip, 1)
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
    assert not guest.pings("192.0.2.1", 1)
    guest.run("ip", "neigh", "replace", "192.0.2.1", "lladdr", tap, "dev", "eth0")
    assert not guest.pings("192.0.2.1", 1)
    guest.run("ip", "neigh", "replace", "192.0.2.1", "lladdr", "ff:ff:ff:ff:ff:ff", "dev", "eth0")
    assert not guest.pings("192.0.2.1", 1)


@pytest.mark.req("C/NET-20")
def test_an_administratively_down_port_is_silent(host: Host) -> None:
    net = network(dhcp=False)
    host.driver.ensure_network(net)
    a = host.guest(port(net, 3, PING)).configure()
    b = host.guest(port(net, 4, PING)).configure()
    assert a.pings(b.ip)
    host.driver.ensure_port(replace(b.spec, admin_state_up=False))
    assert not a.pings(b.ip, 1)
    host.driver.ensure_port(b.spec)
    assert a.pings(b.ip)


# --- DHCP ---------------------------------------------------------------------------------------------------------


@pytest.mark.req("B/NET-44", "C/DHCP-01", "C/DHCP-10")
@pytest.mark.req("B/NET-26", "C/TUN-07", "C/DHCP-11")
def test_dhcp_gives_what_the_spec_says(host: Host) -> None:
    net = network(gateway="10.0.0.1", vni=7)
    net = replace(net, subnets=(replace(net.subnets[0], host_routes=(("192.168.9.0/24", "10.0.0.77"),)),))
    spec = port(net, 3)
    host.driver.ensure_network(with_hosts(net, spec))
    lease = host.guest(spec).lease()
    assert (lease["ip"], lease["mask"], lease["router"], lease["mtu"]) == ("10.0.0.3", "24", "10.0.0.1", "1450")
    assert (lease["dns"], lease["domain"], lease["hostname"]) == ("9.9.9.9", "openstack.test", "web-0")
    assert lease["staticroutes"] == "192.168.9.0/24 10.0.0.77 0.0.0.0/0 10.0.0.1"
    assert lease["lease"] == "86400", "as the agent's configurations say"


@pytest.mark.req("C/DHCP-08")
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


@pytest.mark.req("C/DHCP-02", "C/DHCP-22")
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
