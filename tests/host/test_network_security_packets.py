"""Security groups as hosts make them: shared rules, sets that change in place, stateless groups, fragments."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from contract_network import EGRESS, PING, WEB, network, port, replace
from frames import Ear, ipv4, send, udp
from network_world import Guest, Host, until

from nubila.core.ports import AddressSetSpec, FixedIp, LocalIp, LogSpec, RuleSpec, SecurityGroupSpec
from nubila.drivers import links, processes
from nubila.drivers.network import RealNetwork

pytestmark = pytest.mark.host


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Host]:
    host = Host(tmp_path)
    yield host
    host.close()


class Talk:
    """A TCP connection to an echo server, one line at a time."""

    def __init__(self, server: Guest, client: Guest, number: int, at: str = "") -> None:
        server.spawn("busybox", "nc", "-ll", "-p", str(number), "-e", "cat")
        until(lambda: f":{number}" in server.run("busybox", "netstat", "-ltn").stdout, f"port {number}")
        script = (
            "exec 3<>/dev/tcp/$0/$1; while read -r line; do "
            'echo "$line" >&3; read -t 1 -r back <&3 && echo "$back" || echo lost; done'
        )
        with links.entered(client.namespace):
            self._child = subprocess.Popen(
                ["bash", "-c", script, at or server.ip, str(number)],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1,
            )  # fmt: skip

    def say(self, word: str) -> str:
        assert self._child.stdin is not None
        assert self._child.stdout is not None
        self._child.stdin.write(word + "\n")
        self._child.stdin.flush()
        return self._child.stdout.readline().strip()

    def close(self) -> None:
        self._child.kill()
        self._child.communicate()


def counted(host: Host) -> list[int]:
    """From now on: how many lines each OpenFlow bundle has."""
    switch: Any = host.driver.switch
    sizes: list[int] = []
    bundle = switch._bundle

    def count(lines: list[str]) -> None:
        sizes.append(len(lines))
        bundle(lines)

    switch._bundle = count
    return sizes


@pytest.mark.req("C/SG-09", "C/ML2-15")
def test_members_of_a_set_change_in_place(host: Host) -> None:
    net = network(dhcp=False)
    host.driver.ensure_network(net)
    rule = replace(WEB, remote_set="friends")
    group = SecurityGroupSpec(id="web", rules=(*EGRESS, rule, replace(PING, remote_set="friends")))
    web = host.guest(port(net, 3, rules=(), groups=("web",))).configure()
    friend = host.guest(port(net, 4)).configure()
    other = host.guest(port(net, 5)).configure()
    assert not friend.pings(web.ip, 1), "a group that was not told yet lets nobody in"
    host.driver.ensure_security_group(group)
    assert not friend.pings(web.ip, 1), "nor does a set"
    host.driver.ensure_address_set(AddressSetSpec(id="friends", addresses=(f"{friend.ip}/32",)))
    assert friend.pings(web.ip)
    assert not other.pings(web.ip, 1)
    talk = Talk(web, friend, 80)
    try:
        assert talk.say("one") == "one"
        sizes = counted(host)
        host.driver.ensure_address_set(AddressSetSpec(id="friends", addresses=(f"{friend.ip}/32", f"{other.ip}/32")))
        assert sizes == [1], "one address more is one flow more"
        assert other.pings(web.ip)
        assert talk.say("two") == "two", "a new member disturbs nobody"
        host.driver.ensure_address_set(AddressSetSpec(id="friends", addresses=(f"{other.ip}/32",)))
        assert sizes == [1, 1]
        assert talk.say("three") == "lost", "who is no member any more loses his connections"
        assert other.pings(web.ip)
        assert not friend.pings(web.ip, 1)
        host.driver.ensure_address_set(AddressSetSpec(id="friends", addresses=(f"{other.ip}/32",)))
        assert len(sizes) == 2, "nothing changed, nothing is done"
    finally:
        talk.close()


def test_an_address_may_be_in_many_sets_and_prefixes(host: Host) -> None:
    net = network(dhcp=False)
    host.driver.ensure_network(net)
    sets = {"a": ("10.0.0.4/32",), "b": ("10.0.0.0/24", "fd00::/64"), "c": ("10.0.0.4/32", "10.0.0.5/32"),
            "d": ("0.0.0.0/0",)}  # fmt: skip
    for id, addresses in sets.items():
        host.driver.ensure_address_set(AddressSetSpec(id=id, addresses=addresses, directions=("egress", "ingress")))
    closed, opened = replace(WEB, port_min=81, port_max=81, remote_set="a"), replace(WEB, remote_set="c")
    host.driver.ensure_security_group(
        SecurityGroupSpec(id="one", rules=(*EGRESS, closed, replace(PING, remote_set="b")))
    )
    host.driver.ensure_security_group(SecurityGroupSpec(id="two", rules=(opened,)))
    toward = RuleSpec(direction="egress", protocol="icmp", remote_set="d")
    host.driver.ensure_security_group(SecurityGroupSpec(id="out", rules=(toward,)))
    web = host.guest(port(net, 3, rules=(), groups=("one", "two"))).configure()
    four, five = (host.guest(port(net, n)).configure() for n in (4, 5))
    for number in (80, 81):
        web.serve(number, f"at {number}")
    assert [four.reads(web.ip, n) for n in (80, 81)] == ["at 80", "at 81"]
    assert [five.reads(web.ip, n) for n in (80, 81)] == ["at 80", ""]
    assert five.pings(web.ip)
    mute = host.guest(port(net, 6, rules=(), groups=("out",))).configure()
    assert mute.pings(web.ip)
    assert mute.reads(web.ip, 80, 1) == ""


def test_a_thousand_rules_for_many_ports_are_one_bundle(host: Host) -> None:
    net = network("10.0.0.0/24", dhcp=False)
    host.driver.ensure_network(net)
    for number in range(20, 30):  # as many as you like: what is done does not depend on it (bench/security_groups.py)
        host.driver.ensure_port(port(net, number, rules=(), groups=("many",)))
    sizes = counted(host)
    rules = tuple(
        RuleSpec(direction="ingress", protocol="tcp", port_min=n, port_max=n, remote=(f"192.0.{n % 200}.0/24",))
        for n in range(1, 1001)
    )
    host.driver.ensure_security_group(SecurityGroupSpec(id="many", rules=rules))
    assert len(sizes) == 1
    assert sizes[0] == len(rules) + 1
    host.driver.ensure_security_group(SecurityGroupSpec(id="many", rules=rules[1:]))
    assert sizes[1:] == [1], "one rule less is one flow less"


def test_a_stateless_group_needs_rules_for_answers(host: Host) -> None:
    net = network(dhcp=False)
    host.driver.ensure_network(net)
    web = host.guest(port(net, 3, PING, WEB)).configure()
    web.serve(80, "hello")
    host.driver.ensure_security_group(SecurityGroupSpec(id="plain", rules=EGRESS))
    plain = host.guest(port(net, 4, rules=(), groups=("plain",), stateful=False)).configure()
    assert plain.reads(web.ip, 80, 1) == ""
    back = RuleSpec(direction="ingress", protocol="tcp", port_min=1024, port_max=65535, remote=(f"{web.ip}/32",))
    host.driver.ensure_security_group(SecurityGroupSpec(id="plain", rules=(*EGRESS, back)))
    assert plain.reads(web.ip, 80) == "hello"
    assert not plain.pings(web.ip, 1)
    zone = host.driver.switch.view().of("guest", plain.spec.id).ofport  # type: ignore[attr-defined]
    tracked = host.driver.switch.daemons.control("dpctl/dump-conntrack", f"zone={zone}")  # type: ignore[attr-defined]
    assert tracked == "", "nothing of it is tracked"


def test_large_packets_pass_in_fragments(host: Host) -> None:
    net = network(dhcp=False)
    host.driver.ensure_network(net)
    dns = RuleSpec(direction="ingress", protocol="udp", port_min=53, port_max=53)
    echo = RuleSpec(direction="ingress", protocol="icmp", port_min=8, port_max=0)
    echo6 = RuleSpec(direction="ingress", ethertype="IPv6", protocol="icmpv6", port_min=128)
    six = FixedIp(subnet_id="six", ip_address="fd00::3", prefixlen=64)
    a = port(net, 3, dns, echo, echo6)
    web = host.guest(replace(a, fixed_ips=(*a.fixed_ips, six))).configure()
    b = port(net, 4)
    client = host.guest(replace(b, fixed_ips=(*b.fixed_ips, replace(six, ip_address="fd00::4")))).configure()
    for argv in (["-4", web.ip], ["-6", "fd00::3"]):
        done = client.run("ping", "-c", "2", "-i", "0.1", "-W", "2", "-s", "4000", *argv, check=False)
        assert done.returncode == 0, done.stdout
    ear = Ear(web)
    try:
        for number in (54, 53):
            whole = udp(client.ip, web.ip, (1000, number), b"q" * 2000)
            pieces = [
                ipv4(client.spec.mac, web.spec.mac, client.ip, web.ip, 17, whole[:1200], 0x2000, number),
                ipv4(client.spec.mac, web.spec.mac, client.ip, web.ip, 17, whole[1200:], 150, number),
            ]
            send(client, pieces)
            ear.listen(pieces[1] if number == 53 else None, 3.0 if number == 53 else 0.3)
            assert [ear.has(piece) for piece in pieces] == [number == 53] * 2
    finally:
        ear.close()


def test_what_is_let_through_and_what_is_dropped_is_logged(host: Host) -> None:
    net = network(dhcp=False)
    host.driver.ensure_network(net)
    host.driver.ensure_security_group(SecurityGroupSpec(id="ping", rules=(*EGRESS, PING)))
    host.driver.ensure_security_group(SecurityGroupSpec(id="web", rules=(WEB,)))
    logs = (LogSpec(id="all-of-ping", group="ping"), LogSpec(id="drops", event="DROP"))
    spec = port(net, 3, rules=(), groups=("ping", "web"), logs=logs, project_id="p1")
    web = host.guest(spec).configure()
    other = host.guest(port(net, 4)).configure()
    web.serve(80, "hello")
    file = host.place.root / "log" / "security-groups.log"
    until(lambda: other.pings(web.ip) and file.is_file() and "action=ACCEPT" in file.read_text(), "the first line")
    assert other.reads(web.ip, 80) == "hello"
    assert other.reads(web.ip, 81, 1) == ""
    until(lambda: "tp_dst=81" in file.read_text(), "a line about what was dropped")
    lines = file.read_text().splitlines()
    accepted = [line for line in lines if "action=ACCEPT" in line]
    dropped = [line for line in lines if "action=DROP" in line]
    assert all("['all-of-ping']" in line and "pkt=icmp" in line for line in accepted if "direction=ingress" in line)
    assert not any("tp_dst=80" in line for line in lines), "the group that let it in is not logged"
    assert f"project_id=p1 log_resource_ids=['all-of-ping', 'drops'] vm_port={spec.id}" in dropped[0]
    assert any("tp_dst=81" in line for line in dropped)
    for _ in range(2):  # flood: the log takes some of it, the guest goes on
        flood = udp(other.ip, web.ip, (1000, 9), b"")
        send(other, [ipv4(other.spec.mac, web.spec.mac, other.ip, web.ip, 17, flood)] * 2000)
    assert other.pings(web.ip)
    assert file.read_text().count("tp_dst=9,") < 1000
    host.driver.ensure_port(replace(spec, logs=()))
    size = len([line for line in file.read_text().splitlines() if "tp_dst=82" in line])
    assert other.reads(web.ip, 82, 1) == ""
    assert len([line for line in file.read_text().splitlines() if "tp_dst=82" in line]) == size == 0


def test_groups_and_sets_survive_a_killed_switch(host: Host) -> None:
    net = network(dhcp=False)
    host.driver.ensure_network(net)
    host.driver.ensure_address_set(AddressSetSpec(id="friends", addresses=("10.0.0.4/32",)))
    host.driver.ensure_security_group(SecurityGroupSpec(id="web", rules=(*EGRESS, replace(PING, remote_set="friends"))))
    web = host.guest(port(net, 3, rules=(), groups=("web",))).configure()
    friend, other = (host.guest(port(net, n)).configure() for n in (4, 5))
    for name in ("ovs-vswitchd", "ovsdb-server"):
        processes.kill(name, host.driver.switch.daemons.run_dir)  # type: ignore[attr-defined]
    again = RealNetwork(host.place)
    again.start()
    assert friend.pings(web.ip)
    assert not other.pings(web.ip, 1)
    sizes = counted(host)
    again.ensure_security_group(SecurityGroupSpec(id="web", rules=(*EGRESS, replace(PING, remote_set="friends"))))
    assert sizes == []


def test_a_local_ip_leads_to_a_port_of_this_host(host: Host) -> None:
    net = network(dhcp=False)
    host.driver.ensure_network(net)
    from_client = replace(WEB, remote=("10.0.0.4/32",))
    cache = host.guest(port(net, 3, from_client)).configure()
    client = host.guest(port(net, 4)).configure()
    real = host.guest(port(net, 50, WEB, PING)).configure()  # whoever has the address
    cache.serve(80, "near")
    real.serve(80, "far")
    assert client.reads("10.0.0.50", 80) == "far"
    local = LocalIp(address="10.0.0.50", port_id=cache.spec.id, mac=cache.spec.mac, fixed_ip=cache.ip)
    host.driver.ensure_network(replace(net, local_ips=(local,)))
    client.run("ip", "neigh", "flush", "all")
    assert client.reads("10.0.0.50", 80) == "near"
    assert client.reads(cache.ip, 80) == "near", "its own address works as before"
    assert not client.pings("10.0.0.50", 1), "the group of the port behind it judges"
    peers = cache.run("busybox", "netstat", "-tn").stdout
    assert "10.0.0.50" not in peers, "the guest behind it sees its own address"
    stranger = host.guest(port(net, 5)).configure()
    assert stranger.reads("10.0.0.50", 80, 1) == ""
    host.driver.ensure_network(net)
    client.run("ip", "neigh", "flush", "all")
    assert client.reads("10.0.0.50", 80) == "far"


def test_a_local_ip_without_translation(host: Host) -> None:
    net = network(dhcp=False)
    pairs = (("10.0.0.60/32", ""),)
    spec = port(net, 3, WEB)
    spec = replace(spec, allowed_pairs=tuple((cidr, spec.mac) for cidr, _ in pairs))
    local = LocalIp(address="10.0.0.60", port_id=spec.id, mac=spec.mac, fixed_ip="10.0.0.3", translate=False)
    host.driver.ensure_network(replace(net, local_ips=(local,)))
    cache, client = host.guest(spec).configure(), host.guest(port(net, 4)).configure()
    cache.run("ip", "addr", "add", "10.0.0.60/32", "dev", "eth0")
    cache.serve(80, "near")
    assert client.reads("10.0.0.60", 80) == "near"
