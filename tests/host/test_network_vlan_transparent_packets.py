"""Networks that carry tags of guests: a tagged frame is filtered as an untagged one, and only guests ever get it.

The kernel here may lack 802.1Q devices, so that frames are built by hand and heard as they are.
"""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest
from contract_network import EGRESS, network, port, replace
from frames import BROADCAST, Ear, arp, ipv4, send, tagged, udp
from network_world import Guest, Host
from test_isolation import ANYTHING, bridged_underlay, forged, honest
from test_network_hosts import join

from nubila.core.ports import FixedIp, NetworkSpec, PortSpec, QosSpec, RuleSpec, Segment, SubnetSpec, TrunkPlace
from nubila.drivers import links
from nubila.drivers.ovs import OpenVSwitch

pytestmark = pytest.mark.host
V6 = "2001:db8::"
TAG, OTHER_TAG = 7, 4094
S_TAG = 0x88A8
VLAN = {"network_type": "vlan", "physical_network": "physnet1"}
KINDS = {
    "vxlan": Segment(network_type="vxlan", segmentation_id=7),
    "gre": Segment(network_type="gre", segmentation_id=7),
    "geneve": Segment(network_type="geneve", segmentation_id=7),
    "local": Segment(network_type="local"),
    "vlan": Segment(**VLAN, segmentation_id=100),
    "qinq": Segment(**VLAN, segmentation_id=100),
}
STRANGE = {
    "local": Segment(network_type="local"),
    "vlan": Segment(**VLAN, segmentation_id=TAG),  # what the guest's own tag would be out there
    "qinq": Segment(**VLAN, segmentation_id=TAG),
}
"""Segments of the network that must hear nothing."""


class Scene:
    """A network that carries tags: an attacker here, a neighbour without filter there; and a stranger's network."""

    def __init__(self, here: Host, there: Host, kind: str) -> None:
        self.here, self.there, self.kind = here, there, kind
        self.nets: list[NetworkSpec] = []
        self.guests: list[Guest] = []
        other = STRANGE.get(kind, replace(KINDS[kind], segmentation_id=8))
        self.mine = self.network(KINDS[kind], guest_tags=True, vlan_ethertype=S_TAG if kind == "qinq" else 0x8100)
        self.theirs = self.network(other)
        self.attacker = self.guest(here, self.mine, 3)
        # Nothing but the attacker's own filter helps this one.
        self.neighbour = self.guest(there, self.mine, 4, port_security=False, rules=())
        self.stranger = self.guest(there, self.theirs, 4, port_security=False, rules=())

    def network(self, segment: Segment, **more: object) -> NetworkSpec:
        net = network(dhcp=False)
        six = SubnetSpec(id=f"six-{net.id}", cidr=f"{V6}/64", ip_version=6, gateway_ip=f"{V6}1")
        net = replace(net, segment=segment, subnets=(*net.subnets, six), mtu=1400, **more)
        for host in {self.here, self.there}:
            other = self.there if host is self.here else self.here
            tunnels = other is not host and segment.network_type not in ("vlan", "local")
            host.driver.ensure_network(replace(net, peers=(other.place.tunnel_ip,) if tunnels else ()))
        self.nets.append(net)
        return net

    def guest(self, host: Host, net: NetworkSpec, number: int, **more: object) -> Guest:
        spec = port(replace(net, subnets=net.subnets[:1]), number, **{"rules": ANYTHING, **more})
        six = FixedIp(subnet_id=net.subnets[1].id, ip_address=f"{V6}{number}", prefixlen=64)
        made = host.guest(replace(spec, fixed_ips=(*spec.fixed_ips, six)))
        self.guests.append(made)
        return made

    def close(self) -> None:
        for guest in self.guests:
            guest.host.driver.remove_port(guest.spec.id)
            guest.host.guests.remove(guest)
            guest.close()
        for host in {self.here, self.there}:
            for net in self.nets:
                host.driver.remove_network(net.id)


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:
    made = Host(tmp_path_factory.mktemp("tags") / "h")
    yield made
    made.close()


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Host, Host]]:
    hosts: list[Host] = []
    try:
        for number in (1, 2):
            hosts.append(Host(tmp_path_factory.mktemp("tags") / "h", tunnel_ip=f"198.18.0.{number}"))
        join(*hosts)
        for made in hosts:
            bridged_underlay(made)
        _cable(*hosts)
        yield hosts[0], hosts[1]
    finally:
        for made in hosts:
            made.close()


def _cable(one: Host, other: Host) -> None:
    """A wire between the hosts' bridges of the physical network."""
    with links.opened(one.place.namespace) as net:
        net.add_veth("card", other.place.namespace, "fa:16:3e:00:00:cc")
    for host in (one, other):
        switch = host.driver.switch
        assert isinstance(switch, OpenVSwitch)
        bridge = switch.physical_bridge("physnet1")
        with links.opened(host.place.namespace) as net:
            net.change(net.must("card"), up=True, mtu=1600)
        vsctl = ("ovs-vsctl", f"--db=unix:{switch.daemons.run_dir}/db.sock", "--timeout=10")
        host.run(*vsctl, "add-port", bridge, "card")


def sends_until(sender: Guest, frame: bytes, ear: Ear, patience_s: float = 20.0, expect: bytes = b"") -> bool:
    """Whether a frame comes, sent again while it does not: tunnels lose the first ones."""
    deadline = time.monotonic() + patience_s
    while time.monotonic() < deadline:
        send(sender, [frame])
        if ear.listen(expect or frame, 0.5):
            return True
    return False


def hello(source: PortSpec, to: PortSpec, ports: tuple[int, int] = (1000, 2000), text: bytes = b"hello") -> bytes:
    i, j = source.fixed_ips[0].ip_address, to.fixed_ips[0].ip_address
    return ipv4(source.mac, to.mac, i, j, 17, udp(i, j, ports, text))


def _attack(scene: Scene) -> None:
    me, to = scene.attacker.spec, scene.neighbour.spec
    wrong = {name: tagged(frame, TAG) for name, frame in forged(me, to.mac, ()).items() if "tag" not in name}
    plain = hello(me, to)
    wrong["tag 0"] = tagged(plain, 0)
    wrong["tag 0 with a priority"] = tagged(plain, 0x6000)
    wrong["tag 0 of the other kind"] = tagged(plain, 0, S_TAG)
    wrong["three tags, another's MAC"] = tagged(tagged(tagged(forged(me, to.mac, ())["source MAC of nobody"], 1), 2), 3)
    right = [tagged(frame, tag) for tag in (TAG, OTHER_TAG) for frame in honest(me, to.mac)]
    aside = [tagged(frame, TAG) for frame in honest(me, scene.stranger.spec.mac)]
    near, far = Ear(scene.neighbour), Ear(scene.stranger)
    wire = Ear(scene.there.place.namespace, "underlay") if scene.here is not scene.there else None
    try:
        assert sends_until(scene.attacker, plain, near), "untagged frames travel as ever"
        assert sends_until(scene.attacker, right[0], near), "the first tagged frame"
        near.heard.clear()
        send(scene.attacker, [*wrong.values(), *aside, *right])
        for frame in right:
            assert near.has(frame) or near.listen(frame, 5.0), f"lost: {frame.hex()}"
        for ear in (near, far, *([wire] if wire else [])):
            ear.listen(None, 0.2)
        assert [name for name, frame in wrong.items() if near.has(frame)] == []
        untagged = [name for name, frame in wrong.items() if near.has(frame[:12] + frame[16:])]
        assert untagged == [], "nor without its tag"
        mine = bytes.fromhex(me.mac.replace(":", ""))
        assert [frame for frame in far.heard if mine in frame[:12] or frame in wrong.values()] == []
        if wire:
            # With tag 0 nothing is filtered until it is known where it goes, and that is nowhere.
            assert [name for name, frame in wrong.items() if wire.carried(frame)] == []
    finally:
        for ear in (near, far, *([wire] if wire else [])):
            ear.close()


@pytest.mark.parametrize("kind", ["vxlan", "gre", "geneve", "local", "vlan", "qinq"])
def test_a_tag_changes_nothing_about_what_may_be_sent(host: Host, kind: str) -> None:
    scene = Scene(host, host, kind)
    try:
        _attack(scene)
    finally:
        scene.close()


@pytest.mark.parametrize("kind", ["vxlan", "gre", "geneve", "vlan", "qinq"])
def test_tags_travel_between_hosts_and_nothing_else_with_them(pair: tuple[Host, Host], kind: str) -> None:
    scene = Scene(*pair, kind)
    try:
        _attack(scene)
        # Back as well, from a port without a filter to one that has one.
        ear = Ear(scene.attacker)
        frame = tagged(hello(scene.neighbour.spec, scene.attacker.spec), TAG)
        assert sends_until(scene.neighbour, frame, ear)
        ear.close()
    finally:
        scene.close()


@pytest.mark.parametrize(("kind", "outer"), [("vlan", 0x8100), ("qinq", S_TAG)])
def test_a_physical_network_sees_the_networks_tag_around_the_guests(
    pair: tuple[Host, Host], kind: str, outer: int
) -> None:
    scene = Scene(*pair, kind)
    wire, near = Ear(pair[1].place.namespace, "card"), Ear(scene.neighbour)
    try:
        plain = hello(scene.attacker.spec, scene.neighbour.spec)
        assert sends_until(scene.attacker, tagged(plain, TAG), near)
        assert sends_until(scene.attacker, plain, near)
        wire.listen(None, 0.2)
        assert wire.has(tagged(tagged(plain, TAG), 100, outer))
        assert wire.has(tagged(plain, 100, outer))
        assert not wire.has(tagged(plain, TAG))
    finally:
        wire.close()
        near.close()
        scene.close()


def test_security_groups_judge_what_is_inside(host: Host) -> None:
    scene = Scene(host, host, "vxlan")
    rule = RuleSpec(direction="ingress", protocol="udp", port_min=53, port_max=53)
    server = scene.guest(host, scene.mine, 5, rules=(*EGRESS, rule))
    a, b = scene.attacker.spec, server.spec
    there, here = Ear(server), Ear(scene.attacker)
    try:
        quiet = replace(a, rules=EGRESS)  # it is let in what it asked for, and nothing else
        host.driver.ensure_port(quiet)
        asked = tagged(hello(a, b, (1000, 53)), TAG)
        answer, unasked = tagged(hello(b, a, (53, 1000)), TAG), tagged(hello(b, a, (53, 1001)), TAG)
        send(server, [unasked])
        send(scene.attacker, [tagged(hello(a, b, (1000, 54)), TAG), tagged(hello(a, b, (1000, 67), b"no"), TAG)])
        assert sends_until(scene.attacker, asked, there), "what a rule lets in"
        assert not there.has(tagged(hello(a, b, (1000, 54)), TAG)), "what none does"
        assert not here.listen(unasked, 0.2), "nobody had asked"
        assert sends_until(server, answer, here), "an answer"
        i, j = a.fixed_ips[0].ip_address, b.fixed_ips[0].ip_address
        whole, cut = udp(i, j, (1000, 53), b"long" * 400), 1280  # conntrack in user space takes no small ones
        parts = ((whole[:cut], 0x2000), (whole[cut:], cut // 8))
        pieces = [tagged(ipv4(a.mac, b.mac, i, j, 17, *part, 77), TAG) for part in parts]
        send(scene.attacker, pieces)
        for piece in pieces:
            assert there.has(piece) or there.listen(piece, 5.0), "fragments of what is let in"
        host.driver.ensure_port(replace(b, rules=EGRESS))
        again = tagged(hello(a, b, (1000, 53), b"again"), TAG)
        send(scene.attacker, [again])
        assert not there.listen(again, 0.3), "the rule is gone"
        host.driver.ensure_port(replace(quiet, rules=()))
        late = tagged(hello(a, scene.neighbour.spec, (1000, 99)), TAG)
        near = Ear(scene.neighbour)
        send(scene.attacker, [late])
        assert not near.listen(late, 0.3), "nothing may leave"
        near.close()
    finally:
        there.close()
        here.close()
        scene.close()


def test_further_addresses_are_allowed_inside_tags_by_pairs(host: Host) -> None:
    scene = Scene(host, host, "vxlan")
    m, to = scene.attacker.spec.mac, scene.neighbour.spec.mac
    ear = Ear(scene.neighbour)
    asked = tagged(arp(m, m, "192.7.7.10", "192.7.7.20"), TAG)
    said = tagged(ipv4(m, to, "192.7.7.10", "192.7.7.20", 17, udp("192.7.7.10", "192.7.7.20", (1, 2), b"x")), TAG)
    other = tagged(arp(m, m, "192.7.8.10", "192.7.7.20"), TAG)
    try:
        send(scene.attacker, [asked, said])
        assert not ear.listen(said, 0.3)
        host.driver.ensure_port(replace(scene.attacker.spec, allowed_pairs=(("192.7.7.10/24", m),)))
        assert sends_until(scene.attacker, asked, ear)
        assert sends_until(scene.attacker, said, ear)
        send(scene.attacker, [other])
        assert not ear.listen(other, 0.3)
    finally:
        ear.close()
        scene.close()


def test_tagged_frames_reach_no_server_of_the_cloud_and_no_trunk(host: Host) -> None:
    net = network("10.9.0.0/24", vni=29, guest_tags=True)
    plain = network("10.8.0.0/24", vni=28, dhcp=False)
    for one in (net, plain):
        host.driver.ensure_network(one)
    open_port = port(net, 3, port_security=False, rules=())
    trunk = TrunkPlace(trunk_id="99999999-2222-3333-4444-555555555555")
    specs = [open_port, port(net, 4, port_security=False, rules=())]
    sender, near = (host.guest(spec) for spec in specs)
    parent = port(net, 5, port_security=False, rules=())
    subport = replace(
        port(net, 6, port_security=False, rules=()), device="", trunk=replace(trunk, vlan=200)
    )  # a subport of it on the same network
    below = Guest(host, parent)
    host.guests.append(below)
    for spec in (replace(parent, trunk=trunk), subport):
        host.driver.ensure_port(spec)
    assert net.dhcp is not None
    ears = {
        "dhcp": Ear(host.driver.dhcp_namespace(net.id), f"tap{net.dhcp.port_id[:11]}"), "trunk": Ear(below),
    }  # fmt: skip
    good = Ear(near)
    m = open_port.mac
    try:
        discover = udp("0.0.0.0", "255.255.255.255", (68, 67), b"\1" * 240)
        tries = [ipv4(m, BROADCAST, "0.0.0.0", "255.255.255.255", 17, discover)]
        targets = (net.dhcp.mac, parent.mac, subport.mac, near.spec.mac)
        for to in targets:
            body = udp("10.9.0.3", "10.9.0.2", (1, 2), to.encode())
            tries.append(ipv4(m, to, "10.9.0.3", "10.9.0.2", 17, body))
        frames = [tagged(f, tag, kind) for f in tries for tag in (0, TAG, 200) for kind in (0x8100, S_TAG)]
        frames += [tagged(tagged(f, TAG), tag) for f in tries for tag in (0, TAG, 200)]
        assert sends_until(sender, tries[-1], good)
        send(sender, frames)
        last = tagged(tries[-1], 99)
        assert sends_until(sender, last, good)
        for name, ear in ears.items():
            ear.listen(None, 0.2)
            assert [f for f in frames if ear.has(f) or ear.carried(f[12:])] == [], name
        assert sends_until(sender, tries[1], ears["dhcp"]), "untagged frames do"
        # From inside a trunk no tag gets out but the subports', and those without.
        inside = ipv4(parent.mac, near.spec.mac, "10.9.0.5", "10.9.0.4", 17, udp("10.9.0.5", "10.9.0.4", (3, 4), b"t"))
        good.heard.clear()
        send(below, [tagged(inside, TAG), tagged(tagged(inside, TAG), 200), tagged(tagged(inside, 0), 200)])
        assert sends_until(below, inside, good)
        assert sends_until(below, tagged(inside, 200), good, expect=inside)
        assert [f for f in good.heard if f[12:14] in (b"\x81\0", b"\x88\xa8") and f[6:12] == inside[6:12]] == []
    finally:
        for ear in (*ears.values(), good):
            ear.close()
        host.driver.remove_port(subport.id)
        for guest in (sender, near, below):
            host.driver.remove_port(guest.spec.id)
            host.guests.remove(guest)
            guest.close()
        for one in (net, plain):
            host.driver.remove_network(one.id)


def test_limits_and_marks_hold_for_tagged_frames(host: Host) -> None:
    scene = Scene(host, host, "local")
    ear = Ear(scene.neighbour)
    try:
        qos = QosSpec(egress_kbps=80, egress_burst_kbit=80, egress_pps=1000, egress_burst_packets=1000, dscp=10)
        spec = replace(scene.attacker.spec, qos=qos)
        host.driver.ensure_port(spec)
        frames = [tagged(hello(spec, scene.neighbour.spec, text=bytes([n]) * 1300), TAG) for n in range(100)]
        send(scene.attacker, frames)  # 1 Mbit at once
        ear.listen(None, 0.5)
        mine = [f for f in ear.heard if f[6:12] == frames[0][6:12] and len(f) > 1300]
        assert 1 <= len(mine) < 60
        assert all(f[12:16] == frames[0][12:16] and f[19] == 10 << 2 for f in mine)
        assert host.driver.drift({"port": {spec.id}}, lambda kind, id: spec) == []
    finally:
        ear.close()
        scene.close()
