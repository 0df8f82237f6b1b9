"""Trunks on real engines: tagged frames of a guest become frames of its subports, filtered as theirs, and back.

The kernel here may lack 802.1Q devices, so that frames are built by hand and read as they are.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path

import pytest
from contract_network import EGRESS, PING, network, port, replace
from network_world import Guest, Host, heard, listen
from test_network_packets import ip, mac, send_frame

from nubila.core.ports import NetworkSpec, PortSpec, TrunkPlace

pytestmark = pytest.mark.host
TRUNK = "11111111-2222-3333-4444-555555555555"


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Host]:
    host = Host(tmp_path)
    yield host
    host.close()


def _sum(data: bytes) -> bytes:
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    total = (total & 0xFFFF) + (total >> 16)
    return struct.pack("!H", ~(total + (total >> 16)) & 0xFFFF)


def echo(vlan: int | None, source: tuple[str, str], to: tuple[str, str]) -> bytes:
    """An echo request from (MAC, address) to (MAC, address), with or without a tag."""
    icmp = b"\x08\0\0\0\0\1\0\1nubila.."
    icmp = icmp[:2] + _sum(icmp) + icmp[4:]
    head = b"\x45\0" + struct.pack("!H", 20 + len(icmp)) + b"\0\1\0\0\x40\1\0\0" + ip(source[1]) + ip(to[1])
    head = head[:10] + _sum(head) + head[12:]
    tag = b"" if vlan is None else b"\x81\0" + struct.pack("!H", vlan)
    return mac(to[0]) + mac(source[0]) + tag + b"\x08\0" + head + icmp


def at(spec: PortSpec) -> tuple[str, str]:
    return spec.mac, spec.fixed_ips[0].ip_address


class Stage:
    """A parent with two subports, and a guest on each of their three networks."""

    def __init__(self, host: Host) -> None:
        self.host = host
        self.nets = [network(f"10.{i}.0.0/24", dhcp=False, vni=70 + i) for i in range(3)]
        for net in self.nets:
            host.driver.ensure_network(net)
        self.others = [self._other(net) for net in self.nets]
        plain = replace(port(self.nets[0], 3, PING), device="tapparent")
        self.plain = plain
        self.parent = replace(plain, trunk=TrunkPlace(trunk_id=TRUNK))
        self.subs = [
            replace(port(net, 3, PING), device="", trunk=TrunkPlace(trunk_id=TRUNK, vlan=tag))
            for net, tag in zip(self.nets[1:], (101, 102), strict=True)
        ]
        self.guest = Guest(host, plain).configure()
        host.guests.append(self.guest)

    def _other(self, net: NetworkSpec) -> Guest:
        return self.host.guest(port(net, 4, PING)).configure()

    def reaches(self, vlan: int | None, source: tuple[str, str], other: int) -> bool:
        """Whether a frame of the trunk's guest comes to the guest on a network, without a tag."""
        to = self.others[other]
        listening = listen(to, "icmp[icmptype] == icmp-echo")
        send_frame(self.guest, echo(vlan, source, at(to.spec)))
        seen = heard(listening)
        assert "vlan" not in seen
        return f"{source[1]} > {to.ip}" in seen

    def answered(self, sub: int) -> bool:
        """Whether a guest's answer comes back to the trunk's guest, with the subport's tag."""
        spec, to = self.subs[sub], self.others[sub + 1]
        assert spec.trunk is not None
        to.run("ip", "neigh", "replace", at(spec)[1], "lladdr", spec.mac, "dev", "eth0")
        listening = listen(self.guest, f"vlan {spec.trunk.vlan}")
        send_frame(self.guest, echo(spec.trunk.vlan, at(spec), at(to.spec)))
        return f"{to.ip} > {at(spec)[1]}: ICMP echo reply" in heard(listening)


def bridges(host: Host) -> list[str]:
    return [name for name in host.driver.switch.our_bridges() if name.startswith("tbr-")]


def test_tagged_frames_are_the_subports_and_filtered_as_theirs(host: Host) -> None:
    stage = Stage(host)
    for spec in (stage.parent, *stage.subs):
        assert host.driver.ensure_port(spec).status == "ACTIVE"
    assert stage.guest.pings(stage.others[0].ip), "untagged: the parent"
    assert stage.answered(0)
    assert stage.answered(1)
    first, second = (at(sub) for sub in stage.subs)
    assert stage.reaches(101, first, 1)
    listeners = [listen(other, "icmp[icmptype] == icmp-echo") for other in stage.others]
    for vlan, source, other in (
        (101, (first[0], "10.1.0.99"), 1),  # an address that is not the subport's
        (101, ("fa:16:3e:00:00:99", first[1]), 1),  # a MAC that is not the subport's
        (102, first, 1),  # another subport's tag
        (102, first, 2),  # another subport's addresses
        (103, first, 1),  # a tag that nobody has
        (103, at(stage.parent), 0),
        (101, at(stage.parent), 0),  # the parent's addresses with a tag
        (None, first, 1),  # a subport's addresses without a tag
        (None, second, 0),
    ):
        send_frame(stage.guest, echo(vlan, source, at(stage.others[other].spec)))
    assert [line for one in listeners for line in heard(one).splitlines() if "echo request" in line] == []
    # What the subport's own rules do not let in does not come, and the parent's rules do not matter for it.
    closed = replace(stage.subs[0], rules=EGRESS)
    host.driver.ensure_port(closed)
    request = echo(None, at(stage.others[1].spec), at(closed))
    listening = listen(stage.guest, "vlan 101")
    send_frame(stage.others[1], request)
    assert "echo request" not in heard(listening)
    host.driver.ensure_port(stage.subs[0])
    listening = listen(stage.guest, "vlan 101")
    send_frame(stage.others[1], request)
    assert "echo request" in heard(listening)


def test_trunks_come_and_go_in_any_order_under_a_running_guest(host: Host) -> None:
    stage = Stage(host)
    host.driver.ensure_port(stage.plain)
    assert stage.guest.pings(stage.others[0].ip), "before there is a trunk"
    host.driver.ensure_port(stage.subs[0])  # a subport before its parent
    host.driver.ensure_port(stage.parent)
    assert stage.guest.pings(stage.others[0].ip)
    assert stage.answered(0)
    assert len(bridges(host)) == 1
    host.driver.ensure_port(stage.parent)
    host.driver.start()  # again, as a restarted agent
    assert stage.answered(0)
    moved = replace(stage.subs[0], trunk=TrunkPlace(trunk_id=TRUNK, vlan=107))
    host.driver.ensure_port(moved)
    stage.subs[0] = moved
    assert stage.answered(0), "behind another tag"
    assert not stage.reaches(101, at(moved), 1)
    host.driver.ensure_port(stage.plain)  # the trunk is deleted, the parent hears of it first
    assert stage.guest.pings(stage.others[0].ip), "a plain port again"
    assert not stage.reaches(107, at(moved), 1)
    host.driver.remove_port(moved.id)
    assert bridges(host) == []
    host.driver.ensure_port(stage.parent)
    host.driver.ensure_port(stage.subs[1])
    assert stage.answered(1)
    host.driver.remove_port(stage.parent.id)
    host.driver.remove_port(stage.subs[1].id)
    assert bridges(host) == []
    assert set(host.driver.ports()) == {other.spec.id for other in stage.others}
    host.driver.prune([net.id for net in stage.nets], [], [])
    assert host.driver.ports() == []
