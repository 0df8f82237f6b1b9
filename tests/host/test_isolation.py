"""The isolation matrix: for every kind of segment and every switch, nothing forged, nothing of other networks passes.

The same between two hosts, for every kind of tunnel and pair of switches: the victims are on the other host then, and
the wire between the hosts is listened to as well, so that what is not even sent is known not to be.

One world per switch: an attacker, a neighbour on his network that would take anything, and a stranger on another
network with the same addresses. The attacker sends every frame he should not; capture on the victims' cards is the
proof. Honest frames of the same kinds are sent along and must arrive, so that silence means a filter and not a fault.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from contract_network import network, port, replace
from frames import (
    BROADCAST,
    Ear,
    arp,
    ether,
    fragments6,
    icmp6,
    ipv4,
    ipv6,
    neighbour,
    send,
    tagged,
    udp,
)
from network_world import Guest, Host
from test_network_hosts import join

from nubila.core.ports import FixedIp, NeedsOperator, NetworkSpec, PortSpec, RuleSpec, Segment, SubnetSpec
from nubila.drivers import links
from nubila.drivers.ovs import OpenVSwitch
from nubila.drivers.ovs_flows import link_local

pytestmark = pytest.mark.host

ANYTHING = (
    RuleSpec(direction="ingress"), RuleSpec(direction="ingress", ethertype="IPv6"),
    RuleSpec(direction="egress"), RuleSpec(direction="egress", ethertype="IPv6"),
)  # fmt: skip
SEGMENTS = {
    # kind: (the attacker's, the stranger's)
    "vxlan": (Segment(network_type="vxlan", segmentation_id=7), Segment(network_type="vxlan", segmentation_id=8)),
    "gre": (Segment(network_type="gre", segmentation_id=7), Segment(network_type="gre", segmentation_id=8)),
    "geneve": (Segment(network_type="geneve", segmentation_id=7), Segment(network_type="geneve", segmentation_id=8)),
    "local": (Segment(network_type="local"), Segment(network_type="local")),
    "vlan": (
        Segment(network_type="vlan", physical_network="physnet1", segmentation_id=100),
        Segment(network_type="vlan", physical_network="physnet1", segmentation_id=101),
    ),
    "flat": (
        Segment(network_type="flat", physical_network="physnet1"),
        Segment(network_type="vlan", physical_network="physnet1", segmentation_id=102),
    ),
}
BRIDGED = "flat beside vxlan"
SEGMENTS[BRIDGED] = (SEGMENTS["flat"][0], Segment(network_type="vxlan", segmentation_id=9))
SWITCHES = {
    "openvswitch": tuple(kind for kind in SEGMENTS if kind != BRIDGED),
    "linuxbridge": ("vxlan", "local", BRIDGED),  # VLANs need 802.1Q devices, which not every kernel has
}
"""Which kinds of segments each switch can make here."""
V6 = "2001:db8::"
GATEWAY, GATEWAY6, VICTIM_MAC, NOBODY = "10.0.0.1", "fe80::1", "fa:16:3e:aa:aa:aa", "fa:16:3e:bb:bb:bb"
ALL_NODES, ALL_NODES_MAC = "ff02::1", "33:33:00:00:00:01"


@pytest.fixture(params=SWITCHES, scope="module")
def host(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:
    made = Host(tmp_path_factory.mktemp("isolation") / "h", switch=request.param)
    yield made
    made.close()


class Scene:
    """Two networks of a kind with their guests: the attacker and the stranger's mate here, the victims there."""

    def __init__(self, here: Host, there: Host, kind: str) -> None:
        self.here, self.there, self.specs = here, there, []
        mine, theirs = (self._network(segment) for segment in SEGMENTS[kind])
        self.attacker = self._guest(here, mine, 3)
        # Nothing but the attacker's own filter helps this one.
        self.neighbour = self._guest(there, mine, 4, port_security=False, rules=())
        self.stranger = self._guest(there, theirs, 4)
        self.mate = self._guest(here, theirs, 5)
        self.segment = SEGMENTS[kind]

    def _network(self, segment: Segment) -> NetworkSpec:
        net = network(dhcp=False)
        six = SubnetSpec(id=f"six-{net.id}", cidr=f"{V6}/64", ip_version=6, gateway_ip=f"{V6}1")
        net = replace(net, segment=segment, subnets=(*net.subnets, six), mtu=1400)
        for host in {self.here, self.there}:
            other = self.there if host is self.here else self.here
            peers = (other.place.tunnel_ip,) if other is not host else ()
            host.driver.ensure_network(replace(net, peers=peers))
        self.specs.append(net)
        return net

    def _guest(self, host: Host, net: NetworkSpec, number: int, **more: object) -> Guest:
        spec = port(replace(net, subnets=net.subnets[:1]), number, **{"rules": ANYTHING, **more})
        six = FixedIp(subnet_id=net.subnets[1].id, ip_address=f"{V6}{number}", prefixlen=64)
        return host.guest(replace(spec, fixed_ips=(*spec.fixed_ips, six)))

    def close(self) -> None:
        for guest in (self.attacker, self.neighbour, self.stranger, self.mate):
            guest.host.driver.remove_port(guest.spec.id)
            guest.host.guests.remove(guest)
            guest.close()
        for host in {self.here, self.there}:
            for net in self.specs:
                host.driver.remove_network(net.id)


def honest(me: PortSpec, to: str) -> list[bytes]:
    """What a guest may send: with its own addresses only."""
    m, i, s, local = me.mac, me.fixed_ips[0].ip_address, me.fixed_ips[1].ip_address, link_local(me.mac)
    return [
        arp(m, m, i, "10.0.0.4"),
        arp(m, m, i, i),  # gratuitous, for its own address
        ipv4(m, to, i, "10.0.0.4", 17, udp(i, "10.0.0.4", (1000, 2000), b"honest")),
        ipv6(m, to, s, f"{V6}4", 17, udp(s, f"{V6}4", (1000, 2000), b"honest")),
        neighbour(m, s, f"{V6}4", 136, s, m, to),
        neighbour(m, local, ALL_NODES, 136, local, m, ALL_NODES_MAC),
    ]


def forged(me: PortSpec, to: str, vlans: tuple[int, ...]) -> dict[str, bytes]:
    """What a guest must not be able to send, by name; ``to``: the victim's card."""
    m, i, s, local = me.mac, me.fixed_ips[0].ip_address, me.fixed_ips[1].ip_address, link_local(me.mac)
    four, six = "10.0.0.4", f"{V6}4"
    hello = udp(i, four, (1000, 2000), b"forged")
    hello6 = udp(s, six, (1000, 2000), b"forged")
    frames = {
        "source MAC of nobody": ipv4(NOBODY, to, i, four, 17, hello),
        "source MAC of the victim": ipv4(to, to, i, four, 17, hello),
        "source MAC, IPv6": ipv6(NOBODY, to, s, six, 17, hello6),
        "multicast source MAC": ipv4("01:00:5e:00:00:01", to, i, four, 17, hello),
        "ARP from another MAC": arp(NOBODY, m, i, four),
        "ARP with another MAC inside": arp(m, NOBODY, i, four),
        "ARP claims the gateway": arp(m, m, GATEWAY, four),
        "ARP reply claims the gateway": arp(m, m, GATEWAY, four, reply=True, to=to),
        "ARP reply claims the victim": arp(m, m, four, i, reply=True),
        "gratuitous ARP for the gateway": arp(m, m, GATEWAY, GATEWAY),
        "gratuitous ARP reply for the victim": arp(m, m, four, four, reply=True),
        "own address at another MAC": arp(m, NOBODY, i, i, reply=True),
        "ND solicitation from another's address": neighbour(m, f"{V6}5", six, 135, six, m, to),
        "ND solicitation names another MAC": neighbour(m, s, six, 135, six, NOBODY, to),
        "ND advertisement of the gateway": neighbour(m, local, ALL_NODES, 136, GATEWAY6, m, ALL_NODES_MAC),
        "ND advertisement of the victim": neighbour(m, s, ALL_NODES, 136, six, m, ALL_NODES_MAC),
        "ND advertisement at another MAC": neighbour(m, s, ALL_NODES, 136, s, NOBODY, ALL_NODES_MAC),
        "ND advertisement without option for the gateway": neighbour(m, s, six, 136, f"{V6}1", None, to),
        "ND from another MAC": neighbour(NOBODY, s, six, 136, s, NOBODY, to),
        "IPv6 source of the victim": ipv6(m, to, six, six, 17, udp(six, six, (1, 2), b"forged")),
        "IPv6 source outside": ipv6(m, to, "2001:db8:9::9", six, 17, udp("2001:db8:9::9", six, (1, 2), b"forged")),
        "IPv6 link-local of another": ipv6(m, to, "fe80::bad", six, 17, udp("fe80::bad", six, (1, 2), b"forged")),
        "IPv6 from nowhere": ipv6(m, to, "::", six, 17, udp("::", six, (1, 2), b"forged")),
        "DHCP offer": ipv4(m, BROADCAST, i, "255.255.255.255", 17, udp(i, "255.255.255.255", (67, 68), b"\2" * 240)),
        "DHCP offer to one": ipv4(m, to, i, four, 17, udp(i, four, (67, 68), b"\2" * 240)),
        "DHCPv6 advertise": ipv6(m, to, local, six, 17, udp(local, six, (547, 546), b"\2" * 40)),
        "router advertisement": ipv6(
            m, ALL_NODES_MAC, local, ALL_NODES, 58, icmp6(local, ALL_NODES, 134, b"\x40" * 12)
        ),
        "router advertisement to one": ipv6(m, to, local, six, 58, icmp6(local, six, 134, b"\x40" * 12)),
        "redirect": ipv6(m, to, local, six, 58, icmp6(local, six, 137, b"\0" * 36)),
        "MPLS": ether(m, to, 0x8847, b"\0\1\x01\x40" + b"\x45" + b"\0" * 40),
        "IPX": ether(m, to, 0x8137, b"forged" * 10),
        "spanning tree": ether(m, "01:80:c2:00:00:00", 39, b"\x42\x42\3" + b"\0" * 36),
        "LLDP": ether(m, "01:80:c2:00:00:0e", 0x88CC, b"\2\7\4" + b"\0" * 40),
        "EAPOL": ether(m, "01:80:c2:00:00:03", 0x888E, b"\1\0\0\0" + b"\0" * 40),
    }
    for source in (four, GATEWAY, "0.0.0.0", "255.255.255.255", "127.0.0.1", "192.0.2.1"):
        frames[f"IPv4 source {source}"] = ipv4(m, to, source, four, 17, udp(source, four, (1000, 2000), b"forged"))
        frames[f"IPv4 source {source}, broadcast"] = ipv4(m, BROADCAST, source, four, 1, b"\x08\0\xf7\xff\0\0\0\0")
    whole = udp(GATEWAY, four, (1000, 2000), b"f" * 64)
    frames["first fragment, IPv4 source"] = ipv4(m, to, GATEWAY, four, 17, whole[:24], 0x2000)
    frames["later fragment, IPv4 source"] = ipv4(m, to, GATEWAY, four, 17, whole[24:], 3)
    alone = udp(i, four, (67, 68), b"\2" * 64)
    frames["first fragment, DHCP offer"] = ipv4(m, to, i, four, 17, alone[:24], 0x2000, 8)
    frames["later fragment, DHCP offer"] = ipv4(m, to, i, four, 17, alone[24:], 3, 8)
    frames["later fragment without a first"] = ipv4(m, to, i, four, 17, b"f" * 64, 0x0010, 9)
    advert = icmp6(local, ALL_NODES, 134, b"\x40" * 60)
    hiding = b"\x3a\x02" + b"\1\x14" + b"\0" * 20  # destination options before ICMPv6
    first, second = fragments6(m, ALL_NODES_MAC, local, ALL_NODES, 60, hiding + advert, 24)
    frames["first fragment, hidden router advertisement"], frames["later fragment of it"] = first, second
    first, second = fragments6(m, ALL_NODES_MAC, local, ALL_NODES, 58, advert, 16)
    frames["first fragment, router advertisement"], frames["later fragment, router advertisement"] = first, second
    claim = neighbour(m, local, ALL_NODES, 136, GATEWAY6, m, ALL_NODES_MAC)[54:]
    first, second = fragments6(m, ALL_NODES_MAC, local, ALL_NODES, 58, claim, 24)
    frames["first fragment, ND advertisement"], frames["later fragment, ND advertisement"] = first, second
    own = neighbour(m, local, ALL_NODES, 136, local, NOBODY, ALL_NODES_MAC)[54:]
    first, second = fragments6(m, ALL_NODES_MAC, local, ALL_NODES, 58, own, 24)
    frames["first fragment, ND of another MAC"], frames["later fragment, ND of another MAC"] = first, second
    options = ipv6(
        m, ALL_NODES_MAC, local, ALL_NODES, 60, b"\x3a\0\1\4\0\0\0\0" + icmp6(local, ALL_NODES, 134, b"\x40" * 12)
    )
    frames["router advertisement behind options"] = options
    plain = ipv4(m, to, i, four, 17, hello)
    for vlan in dict.fromkeys((0, 1, 2, 3, *vlans)):
        frames[f"tag {vlan}"] = tagged(plain, vlan)
        frames[f"outer tag {vlan}"] = tagged(plain, vlan, 0x88A8)
        frames[f"two tags, {vlan} outside"] = tagged(tagged(plain, 5), vlan)
    return frames


@pytest.mark.parametrize("kind", SEGMENTS)
def test_nothing_forged_and_nothing_of_other_networks_passes(host: Host, kind: str) -> None:
    if kind not in SWITCHES[host.place.switch]:
        pytest.skip(f"{host.place.switch} has no {kind} segments")
    scene = Scene(host, host, kind)
    try:
        attack(scene)
        host.driver.ensure_port(replace(scene.attacker.spec, stateful=False))
        # Each packet is judged by itself: a piece that says nothing passes, and is of no use without the first.
        attack(scene, useless="later fragment")
    finally:
        scene.close()


def attack(scene: Scene, useless: str = "none") -> None:
    """Send everything; nothing forged is heard, everything honest is."""
    assert leaks(scene, useless) == []


def leaks(scene: Scene, useless: str = "none", *, guarded: bool = True) -> list[str]:
    """Send everything; what was heard and should not have been. Everything honest must be heard while ``guarded``.

    (Without a filter the attacker takes the victim's place in the switches' tables, and may hear for him.)
    """
    ears = {name: Ear(guest) for name, guest in (("neighbour", scene.neighbour), ("stranger", scene.stranger))}
    if scene.here is not scene.there:
        ears["wire"] = Ear(scene.there.place.namespace, "underlay")
    try:
        me = scene.attacker.spec
        wrong = forged(me, scene.neighbour.spec.mac, tuple(s.segmentation_id or 0 for s in scene.segment))
        aside = honest(me, scene.stranger.spec.mac)  # honest, but to a card of another network
        right = honest(me, scene.neighbour.spec.mac)
        _warm(scene, ears["neighbour"])
        send(scene.attacker, [*wrong.values(), *aside, *right])
        for frame in right if guarded else ():
            assert ears["neighbour"].has(frame) or ears["neighbour"].listen(frame, 5.0), f"lost: {frame.hex()}"
        # The stranger's own network is alive: what comes after has come.
        last = honest(scene.mate.spec, scene.stranger.spec.mac)[2]
        send(scene.mate, [last])
        assert ears["stranger"].listen(last, 5.0)
        for ear in ears.values():
            ear.listen(None, 0.15)
        found = [f"{name}, at the neighbour" for name, frame in wrong.items() if ears["neighbour"].has(frame)]
        if "wire" in ears:
            heard = [ears["wire"].carried(frame) for frame in right]
            assert all(heard) or not guarded, "what is sent is seen on the wire"
            found += [f"{name}, on the wire" for name, frame in wrong.items() if ears["wire"].carried(frame)]
        found = [name for name in found if not name.startswith(useless)]
        mine = bytes.fromhex(me.mac.replace(":", ""))
        strange = [f for f in ears["stranger"].heard if mine in f[:12] or any(f[: len(w)] == w for w in wrong.values())]
        return found + [f"{frame.hex()}, at the stranger" for frame in strange]
    finally:
        for ear in ears.values():
            ear.close()


def _warm(scene: Scene, ear: Ear) -> None:
    """Tunnels of the userspace datapath lose what comes before they know their peer's MAC address."""
    if scene.here is not scene.there:
        hello = honest(scene.attacker.spec, scene.neighbour.spec.mac)[0]
        deadline = time.monotonic() + 20
        send(scene.attacker, [hello])
        while not ear.listen(hello, 0.3):
            assert time.monotonic() < deadline, "the tunnel carries nothing"
            send(scene.attacker, [hello])


# --- between hosts ------------------------------------------------------------------------------------------------

BETWEEN = {
    ("openvswitch", "openvswitch"): ("vxlan", "gre", "geneve"),
    ("openvswitch", "linuxbridge"): ("vxlan",),
    ("linuxbridge", "linuxbridge"): ("vxlan",),
}
"""Which tunnels each pair of switches has in common."""


@pytest.fixture(params=BETWEEN, ids="-".join, scope="module")
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Host, Host]]:
    hosts: list[Host] = []
    try:
        for number, switch in enumerate(request.param, 1):
            root = tmp_path_factory.mktemp("between") / "h"
            hosts.append(Host(root, tunnel_ip=f"198.18.0.{number}", switch=switch))
        join(*hosts)
        if {host.place.switch for host in hosts} == {"openvswitch"}:
            for host in hosts:
                bridged_underlay(host)
        yield hosts[0], hosts[1]
    finally:
        for host in hosts:
            host.close()


def bridged_underlay(host: Host) -> None:
    """The tunnel address on a bridge with the network card, as tunnels of the userspace datapath need it."""
    switch = host.driver.switch
    assert isinstance(switch, OpenVSwitch)
    switch.add_bridge("br-under")
    vsctl = ("ovs-vsctl", f"--db=unix:{switch.daemons.run_dir}/db.sock", "--timeout=10")
    host.run(*vsctl, "add-port", "br-under", "underlay")
    with links.opened(host.place.namespace) as net:
        net.set_addresses(net.must("underlay").index, [])
        bridge = net.must("br-under")
        net.change(bridge, up=True, mtu=1600)
        net.set_addresses(bridge.index, [f"{host.place.tunnel_ip}/24"])


def test_tunnels_that_would_not_get_out_say_so(tmp_path: Path) -> None:
    host = Host(tmp_path, tunnel_ip="198.18.0.1")
    try:
        host.run("ip", "link", "add", "eth9", "type", "veth", "peer", "name", "eth9-peer")
        host.run("ip", "addr", "add", "198.18.0.1/24", "dev", "eth9")
        spec = replace(network(dhcp=False), segment=SEGMENTS["gre"][0], peers=("198.18.0.2",))
        with pytest.raises(NeedsOperator, match="user space"):
            host.driver.ensure_network(spec)
        host.driver.ensure_network(replace(spec, peers=()))
    finally:
        host.close()


@pytest.mark.parametrize("kind", ["vxlan", "gre", "geneve"])
def test_nothing_forged_and_nothing_of_other_networks_leaves_its_host(pair: tuple[Host, Host], kind: str) -> None:
    switches = (pair[0].place.switch, pair[1].place.switch)
    if kind not in BETWEEN[switches]:
        pytest.skip(f"{' and '.join(switches)} have no {kind} tunnels in common")
    for here, there in (pair, pair[::-1]) if switches[0] != switches[1] else (pair,):
        scene = Scene(here, there, kind)
        try:
            attack(scene)
        finally:
            scene.close()


def test_a_planted_leak_is_seen_at_the_other_host(pair: tuple[Host, Host]) -> None:
    """The capture is worth something: without the attacker's filter it hears what he forges."""
    scene = Scene(*pair, "vxlan")
    try:
        open_port = replace(scene.attacker.spec, port_security=False, rules=())
        scene.here.driver.ensure_port(open_port)
        found = leaks(scene, guarded=False)
        planted = ("ARP claims the gateway", "DHCP offer", "router advertisement", "IPv4 source 192.0.2.1, broadcast")
        for name in planted:
            assert {f"{name}, at the neighbour", f"{name}, on the wire"} <= set(found)
        assert not any(name.endswith("at the stranger") for name in found), "other networks are another matter"
    finally:
        scene.close()
