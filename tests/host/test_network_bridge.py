"""The Linux bridge as the switch of a host: the driver's contract, and what is particular to it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from contract_network import EGRESS, PING, WEB, Bench, NetworkContract, external, network, port, replace
from frames import Ear, ipv4, send, udp
from network_world import Host, ask_in, await_line, until
from test_network_security_packets import (  # noqa: F401  collected here with the host below
    Talk,
    test_a_local_ip_leads_to_a_port_of_this_host,
    test_a_local_ip_without_translation,
    test_what_is_let_through_and_what_is_dropped_is_logged,
)

from nubila.core.ports import (
    AddressSetSpec,
    LocalIp,
    LogSpec,
    NeedsOperator,
    NetworkSpec,
    QosSpec,
    RouterSpec,
    RuleSpec,
    SecurityGroupSpec,
    TrunkPlace,
)
from nubila.drivers import nft
from nubila.drivers.network import RealNetwork

pytestmark = pytest.mark.host


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Host]:
    host = Host(tmp_path, switch="linuxbridge")
    yield host
    host.close()


@pytest.fixture
def bench(host: Host) -> Bench:
    def ask(net: NetworkSpec | None, gate: RouterSpec | None, path: str) -> tuple[int, bytes]:
        if net is not None:
            return ask_in(host.driver.dhcp_namespace(net.id), "169.254.169.254", 80, path)
        assert gate is not None
        return ask_in(host.driver.router_namespace(gate.id), gate.interfaces[0].fixed_ips[0].ip_address, 9697, path)

    return Bench(host.driver, lambda: RealNetwork(host.place), ask)


class TestLinuxBridge(NetworkContract):
    """The contract."""


# --- security groups ----------------------------------------------------------------------------------------------


def loads(host: Host, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """From now on: every script that is given to nft."""
    seen: list[str] = []
    load = nft.load

    def counted(script: str, timeout_s: float = 10.0) -> None:
        seen.append(script)
        load(script, timeout_s)

    monkeypatch.setattr(nft, "load", counted)
    return seen


def test_groups_and_sets_change_in_place_by_one_load(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    net = network(dhcp=False)
    host.driver.ensure_network(net)
    friends = replace(PING, remote_set="friends")
    host.driver.ensure_security_group(SecurityGroupSpec(id="web", rules=(*EGRESS, friends)))
    web, other = (host.guest(port(net, n, rules=(), groups=("web",))).configure() for n in (3, 4))
    assert not other.pings(web.ip, 1), "a set that nobody told of is empty"
    seen = loads(host, monkeypatch)
    members = AddressSetSpec(id="friends", addresses=(f"{web.ip}/32", f"{other.ip}/32"))
    host.driver.ensure_address_set(members)
    host.driver.ensure_address_set(members)
    assert len(seen) == 1
    assert other.pings(web.ip)
    assert web.pings(other.ip)
    stream = other.spawn("ping", "-i", "0.05", "-O", web.ip)
    await_line(stream.stdout, "icmp_seq=1 ")
    host.driver.ensure_security_group(SecurityGroupSpec(id="web", rules=(*EGRESS, friends, WEB)))
    assert len(seen) == 2, "one load, however many ports"
    assert not [line for line in (stream.stdout.readline() for _ in range(8)) if "no answer" in line]  # type: ignore[union-attr]
    host.driver.ensure_address_set(replace(members, addresses=(f"{web.ip}/32",)))
    assert len(seen) == 3
    await_line(stream.stdout, "no answer")
    assert not other.pings(web.ip, 1), "and nothing that it let in goes on"
    assert web.pings(other.ip)
    assert host.driver.security_groups() == ["web"]
    assert host.driver.address_sets() == ["friends"]
    for guest in (web, other):
        host.driver.remove_port(guest.spec.id)
    host.driver.remove_security_group("web")
    host.driver.remove_address_set("friends")
    left = host.run("nft", "list", "table", "inet", "linuxbridge-nubila")
    assert "web" not in left
    assert "friends" not in left


def test_stateless_ports_are_judged_packet_by_packet(host: Host) -> None:
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


def test_an_open_port_cannot_forge_what_lets_answers_in(host: Host) -> None:
    """A connection's entry is shared by both guests: one made by others must not open a third one's filter."""
    net = network(dhcp=False)
    host.driver.ensure_network(net)
    victim = host.guest(port(net, 3)).configure()
    open_a, open_b = (host.guest(port(net, n, port_security=False, rules=())).configure() for n in (4, 5))
    question = ipv4(victim.spec.mac, open_b.spec.mac, victim.ip, open_b.ip, 17, udp(victim.ip, open_b.ip, (7, 8), b"?"))
    answer = ipv4(open_b.spec.mac, victim.spec.mac, open_b.ip, victim.ip, 17, udp(open_b.ip, victim.ip, (8, 7), b"!"))
    ear = Ear(victim)
    try:
        send(open_a, [question])
        send(open_b, [answer])
        ear.listen(None, 0.3)
        assert not ear.has(answer)
        victim.pings(open_b.ip)  # its address is learned at its own place again
        send(victim, [question])
        send(open_b, [answer])
        assert ear.listen(answer, 5.0), "what it asked itself is answered"
    finally:
        ear.close()


def test_an_address_that_changes_hands_brings_no_connections_along(host: Host) -> None:
    net = network(dhcp=False)
    host.driver.ensure_network(net)
    peer = host.guest(port(net, 3, RuleSpec(direction="ingress", protocol="udp"))).configure()
    first = host.guest(port(net, 4)).configure()
    send(first, [ipv4(first.spec.mac, peer.spec.mac, first.ip, peer.ip, 17, udp(first.ip, peer.ip, (7, 8), b"?"))])
    host.driver.remove_port(first.spec.id)
    first.close()
    host.guests.remove(first)
    heir = host.guest(port(net, 4)).configure()
    answer = ipv4(peer.spec.mac, heir.spec.mac, peer.ip, heir.ip, 17, udp(peer.ip, heir.ip, (8, 7), b"!"))
    ear = Ear(heir)
    try:
        send(peer, [answer])
        ear.listen(None, 0.3)
        assert not ear.has(answer)
    finally:
        ear.close()


def test_masquerading_leaves_bridged_packets_of_the_same_addresses_alone(host: Host) -> None:
    outside = external("172.24.4.0/24", masquerade=True)
    host.driver.ensure_network(outside)
    net = network("172.24.4.0/24", dhcp=False)
    host.driver.ensure_network(net)
    a, b = (host.guest(port(net, n, RuleSpec(direction="ingress", protocol="udp"))).configure() for n in (3, 4))
    frame = ipv4(a.spec.mac, b.spec.mac, a.ip, b.ip, 17, udp(a.ip, b.ip, (1000, 2000), b"as it is"))
    ear = Ear(b)
    try:
        send(a, [frame])
        assert ear.listen(frame, 5.0)
    finally:
        ear.close()


def test_limits_hold_and_what_is_missing_is_said(host: Host) -> None:
    net = network(dhcp=False)
    host.driver.ensure_network(net)
    a = host.guest(port(net, 3)).configure()
    b = host.guest(port(net, 4, PING)).configure()
    flood = ("ping", "-c", "40", "-i", "0.01", "-W", "1", "-q", b.ip)
    assert " 40 received" in a.run(*flood, check=False).stdout
    host.driver.ensure_port(replace(a.spec, qos=QosSpec(egress_pps=10, egress_burst_packets=5, dscp=26)))
    received = re.search(r"(\d+) received", a.run(*flood, check=False).stdout)
    assert received is not None
    assert 5 <= int(received[1]) <= 20
    rules = host.run("nft", "list", "chain", "bridge", "linuxbridge-nubila", f"neutron-linuxbri-s{a.spec.id[:11]}")
    assert "ip dscp set af31" in rules
    with pytest.raises(NeedsOperator, match="Trunks"):
        host.driver.ensure_port(replace(a.spec, trunk=TrunkPlace(trunk_id="t", vlan=5)))


# --- local IPs and logs, beyond what both switches are tested for -------------------------------------------------


def test_a_local_ip_remembers_who_spoke_to_it_and_fragments(host: Host) -> None:
    net = network(dhcp=False)
    host.driver.ensure_network(net)
    datagrams = RuleSpec(direction="ingress", protocol="udp")
    cache = host.guest(port(net, 3, WEB, PING, datagrams)).configure()
    client = host.guest(port(net, 4)).configure()
    local = LocalIp(address="10.0.0.50", port_id=cache.spec.id, mac=cache.spec.mac, fixed_ip=cache.ip)
    host.driver.ensure_network(replace(net, local_ips=(local,)))
    for address in ("10.0.0.50", cache.ip, "10.0.0.50"):
        assert client.pings(address), "echoes are told apart"
    assert client.run("ping", "-c", "1", "-W", "3", "-s", "4000", "10.0.0.50", check=False).returncode == 0
    talk = Talk(cache, client, 80, at="10.0.0.50")
    try:
        assert talk.say("one") == "one"
        other = replace(local, address="10.0.0.51")
        host.driver.ensure_network(replace(net, local_ips=(local, other)))
        assert talk.say("two") == "two", "another local IP disturbs nobody"
        assert client.pings("10.0.0.51")
    finally:
        talk.close()
    host.driver.ensure_network(net)
    rules = host.run("nft", "list", "ruleset")
    assert "10.0.0.50" not in rules
    assert "set lt" not in rules


def test_a_log_says_what_was_stateless_and_what_was_sent(host: Host) -> None:
    net = network(dhcp=False)
    host.driver.ensure_network(net)
    host.driver.ensure_security_group(
        SecurityGroupSpec(id="out", rules=(RuleSpec(direction="egress", protocol="icmp"),))
    )
    spec = port(net, 3, rules=(), groups=("out",), logs=(LogSpec(id="everything"),), project_id="p1")
    guest = host.guest(spec).configure()
    other = host.guest(port(net, 4, PING)).configure()
    file = host.place.root / "log" / "security-groups.log"

    def lines(*words: str) -> list[str]:
        said = file.read_text().splitlines() if file.is_file() else []
        return [line for line in said if all(word in line for word in words)]

    assert guest.pings(other.ip)
    until(lambda: bool(lines("action=ACCEPT", "direction=egress", "pkt=icmp", f"nw_dst={other.ip}")), "what was sent")
    assert guest.reads(other.ip, 80) == ""
    until(lambda: bool(lines("action=DROP", "direction=egress", "tp_dst=80", "tcp_flags=syn")), "what was not")
    assert not lines("direction=ingress", "action=ACCEPT"), "answers are no connections"
    host.driver.stop()
    again = RealNetwork(host.place)
    again.start()
    try:
        before = len(lines("action=ACCEPT"))
        assert guest.pings(other.ip)
        until(lambda: len(lines("action=ACCEPT")) > before, "it goes on after a restart")
        again.ensure_port(replace(spec, stateful=False))
        assert not guest.pings(other.ip), "stateless: the answer is not let in"
        until(lambda: bool(lines("action=DROP", "direction=ingress", "icmp_type=0")), "and that is said")
        again.remove_port(spec.id)
        assert list((host.place.root / "security-log").glob("*.json")) == []
    finally:
        again.stop()
