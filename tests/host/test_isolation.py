"""The isolation matrix: for every kind of segment and every switch, nothing forged, nothing of other networks passes.

One world per switch: an attacker, a neighbour on his network that would take anything, and a stranger on another
network with the same addresses. The attacker sends every frame he should not; capture on the victims' cards is the
proof. Honest frames of the same kinds are sent along and must arrive, so that silence means a filter and not a fault.
"""

from __future__ import annotations

from collections.abc import Iterator

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

from nubila.core.ports import FixedIp, NetworkSpec, PortSpec, RuleSpec, Segment, SubnetSpec
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
    """Two networks of a kind with their guests."""

    def __init__(self, host: Host, kind: str) -> None:
        self.host, self.specs = host, []
        mine, theirs = (self._network(segment) for segment in SEGMENTS[kind])
        self.attacker = self._guest(mine, 3)
        self.neighbour = self._guest(mine, 4, port_security=False, rules=())  # nothing but the attacker's filter helps
        self.stranger = self._guest(theirs, 4)
        self.mate = self._guest(theirs, 5)
        self.segment = SEGMENTS[kind]

    def _network(self, segment: Segment) -> NetworkSpec:
        net = network(dhcp=False)
        six = SubnetSpec(id=f"six-{net.id}", cidr=f"{V6}/64", ip_version=6, gateway_ip=f"{V6}1")
        net = replace(net, segment=segment, subnets=(*net.subnets, six))
        self.host.driver.ensure_network(net)
        self.specs.append(net)
        return net

    def _guest(self, net: NetworkSpec, number: int, **more: object) -> Guest:
        spec = port(replace(net, subnets=net.subnets[:1]), number, **{"rules": ANYTHING, **more})
        six = FixedIp(subnet_id=net.subnets[1].id, ip_address=f"{V6}{number}", prefixlen=64)
        return self.host.guest(replace(spec, fixed_ips=(*spec.fixed_ips, six)))

    def close(self) -> None:
        for guest in (self.attacker, self.neighbour, self.stranger, self.mate):
            self.host.driver.remove_port(guest.spec.id)
            self.host.guests.remove(guest)
            guest.close()
        for net in self.specs:
            self.host.driver.remove_network(net.id)


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
    scene = Scene(host, kind)
    try:
        attack(scene)
        host.driver.ensure_port(replace(scene.attacker.spec, stateful=False))
        # Each packet is judged by itself: a piece that says nothing passes, and is of no use without the first.
        attack(scene, useless="later fragment")
    finally:
        scene.close()


def attack(scene: Scene, useless: str = "none") -> None:
    """Send everything; nothing forged is heard, everything honest is."""
    ears = {name: Ear(guest) for name, guest in (("neighbour", scene.neighbour), ("stranger", scene.stranger))}
    try:
        me = scene.attacker.spec
        wrong = forged(me, scene.neighbour.spec.mac, tuple(s.segmentation_id or 0 for s in scene.segment))
        aside = honest(me, scene.stranger.spec.mac)  # honest, but to a card of another network
        right = honest(me, scene.neighbour.spec.mac)
        send(scene.attacker, [*wrong.values(), *aside, *right])
        for frame in right:
            assert ears["neighbour"].has(frame) or ears["neighbour"].listen(frame, 5.0), f"lost: {frame.hex()}"
        # The stranger's own network is alive: what comes after has come.
        last = honest(scene.mate.spec, scene.stranger.spec.mac)[2]
        send(scene.mate, [last])
        assert ears["stranger"].listen(last, 5.0)
        for ear in ears.values():
            ear.listen(None, 0.15)
        passed = [name for name, frame in wrong.items() if ears["neighbour"].has(frame)]
        assert [name for name in passed if not name.startswith(useless)] == []
        mine = bytes.fromhex(me.mac.replace(":", ""))
        strange = [f for f in ears["stranger"].heard if mine in f[:12] or any(f[: len(w)] == w for w in wrong.values())]
        assert strange == []
    finally:
        for ear in ears.values():
            ear.close()
