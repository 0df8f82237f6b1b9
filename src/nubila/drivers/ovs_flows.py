"""The integration bridge as OpenFlow: pure functions from specs to flow lines.

The bridge switches by these flows alone (no NORMAL), so that every frame to a guest, flooded ones too, passes that
guest's own filter. Registers: reg4 = 1 for frames from other hosts, reg5 = local VLAN of the network, reg6 = OpenFlow
port it came from (guests only), reg7 = OpenFlow port it goes to. A guest port's number is also its conntrack zone, so
a connection between two guests of one host is judged twice, once by each.

    0  which network?     10  may it claim these addresses?    11  may it send? (conntrack)    12  it may: commit
    30 to whom?           31  learned addresses: sets reg7     32  to what was learned, else everywhere
    35, 36 the same for frames that guests tagged, on networks that carry them (ovs_tags.py)
    40 what is it?        41  may it be received? (conntrack)  42  it may: commit     13, 43  security group rules
    50, 51 to a port of a private VLAN that does not reach everybody: from whom? (ovs_pvlan.py)
    60 deliver            (0, 1, 60 and 61 have the meters of ports with limits: ovs_qos.py)

Tables 11 to 13 and 41 to 43 are security groups: ovs_security.py. Registers there: reg8 = number of the group that is
looked at, reg9 = 1 once a rule matched. Source: OpenFlow as in ovs-fields(7) and ovs-actions(7).
"""

from __future__ import annotations

import hashlib
import ipaddress
from collections.abc import Iterable, Mapping, Sequence

import msgspec
from msgspec import Struct

from nubila.core.ports import PortSpec, Restricted
from nubila.drivers import ovs_local_ip, ovs_pvlan, ovs_security, ovs_shared, ovs_tags

_UNTAGGED = "vlan_tci=0x0000/0x1fff"


class Member(Struct, frozen=True, kw_only=True):
    """A local port of a network as the switch sees it."""

    ofport: int
    macs: tuple[str, ...]
    trusted: bool = False  # a router's or DHCP's: no filter
    open: bool = False  # port security off: any address may live behind it
    alias: str = ""  # an interface that is on other hosts as well (ovs_shared.py): its MAC out there
    addresses: tuple[str, ...] = ()  # of such an interface
    restricted: bool = False  # does not reach everybody: private VLAN
    tags: bool = False  # takes tagged frames of a network that carries them


class Uplink(Struct, frozen=True, kw_only=True):
    """A way to the network's part on other hosts."""

    ofport: int
    vlan: int | None = None  # 802.1Q tag out there
    tpid: int = ovs_tags.C_TAG  # the ethertype of that tag
    tunnel: bool = True  # what came in by a tunnel never leaves by one (full mesh)


def cookie(cloud: str, kind: str, id: str) -> int:
    """The flow cookie of one thing: 16 bits of the cloud, 48 bits of the thing."""
    mark = hashlib.sha256(cloud.encode()).digest()[:2]
    return int.from_bytes(mark + hashlib.sha256(f"{kind}/{id}".encode()).digest()[:6], "big")


def digest(flows: Iterable[str]) -> str:
    """A short fingerprint of a flow set, with its size in front for drift checks."""
    lines = sorted(flows)
    return f"{len(lines)}:{hashlib.sha256(chr(10).join(lines).encode()).hexdigest()[:16]}"


# --- flows every bridge has ---------------------------------------------------------------------------------------


def static_flows() -> list[str]:
    """The parts of the pipeline that belong to no port and no network."""
    flows = [f"table={table},priority=0 actions=drop" for table in (0, 10, 30, 31, 32, 40)]
    # Guests never act as DHCP servers or routers.
    for match in (
        "udp,tp_src=67,tp_dst=68",
        "udp6,tp_src=547,tp_dst=546",
        "icmp6,icmp_type=134",
        "icmp6,icmp_type=137",
    ):
        flows.append(f"table=10,priority=200,{match} actions=drop")
    # Neighbour discovery is never fragmented (RFC 6980), and the first fragment shows what it is part of (RFC 7112).
    hidden = [f"icmp6,nw_frag=first,icmp_type={kind}" for kind in range(133, 138)]
    hidden += ["icmp6,icmp_type=0", *(f"{kind},nw_frag=first,tp_src=0,tp_dst=0" for kind in ("tcp6", "udp6"))]
    flows += [f"table=10,priority=210,{match} actions=drop" for match in hidden]
    # What reaches a filtered guest without being tracked: address resolution, router discovery, DHCP answers.
    out = "resubmit(,60)"
    flows.append("table=60,priority=0 actions=output:NXM_NX_REG7[]")
    flows.append(f"table=40,priority=50,arp actions={out}")
    flows += [f"table=40,priority=50,icmp6,icmp_type={kind} actions={out}" for kind in (130, 134, 135, 136)]
    flows.append(f"table=40,priority=50,udp,tp_src=67,tp_dst=68 actions={out}")
    flows.append(f"table=40,priority=50,udp6,tp_src=547,tp_dst=546 actions={out}")
    return flows + ovs_pvlan.static_flows() + ovs_security.static_flows() + ovs_local_ip.static_flows()


# --- one port -----------------------------------------------------------------------------------------------------


def trusted_flows(ofport: int, vlan: int, *, roaming: str = "") -> list[str]:
    """A router's or DHCP server's port; ``roaming``: its MAC, when that may be behind another port at other times.

    What other hosts send to such a MAC is always for the port here, wherever we have last seen it: they have not
    learned yet, and the host that is left hands it on (ha_gate.Held).
    """
    remember = f"{_learn()}," if roaming else ""
    flows = [f"table=0,priority=100,in_port={ofport} actions=set_field:{vlan}->reg5,{remember}resubmit(,30)"]
    if roaming:
        flows.append(f"table=30,priority=100,reg4=1,reg5={vlan},dl_dst={roaming.lower()} actions=output:{ofport}")
    return flows


def port_flows(spec: PortSpec, ofport: int, vlan: int, groups: Mapping[str, int], *, tags: bool = False) -> list[str]:
    """Everything one guest port may do; nothing when it is administratively down.

    ``groups``: numbers of its groups. ``tags``: its network carries frames that guests tagged.
    """
    if not spec.admin_state_up:
        return []
    takes = (_UNTAGGED, ovs_tags.TAGGED) if tags and spec.trunk is None else (_UNTAGGED,)
    enter = [f"table=0,priority=100,in_port={ofport},{what} actions=set_field:{vlan}->reg5" for what in takes]
    if not spec.port_security:
        learn = _learn()
        return [
            *(f"{entry},{learn},resubmit(,30)" for entry in enter),
            f"table=40,priority=100,reg7={ofport} actions=resubmit(,60)",
        ]
    flows = [f"{entry},set_field:{ofport}->reg6,resubmit(,10)" for entry in enter]
    claims = _claims(spec)
    for mac in sorted({mac for _, mac in claims}):
        flows += _address_flows(ofport, mac)
    for network, mac in sorted(claims, key=str):
        flows += _claim_flows(ofport, network, mac, ovs_security.judged(spec, ofport))
    flows += ovs_security.port_flows(spec, ofport, groups)
    return list(dict.fromkeys(flows))


_Network = ipaddress.IPv4Network | ipaddress.IPv6Network


def _claims(spec: PortSpec) -> set[tuple[_Network, str]]:
    """(addresses, MAC) that the port may use as its own."""
    claims: set[tuple[_Network, str]] = {(ipaddress.ip_network(ip.ip_address), spec.mac) for ip in spec.fixed_ips}
    claims |= {(ipaddress.ip_network(cidr, strict=False), mac or spec.mac) for cidr, mac in spec.allowed_pairs}
    macs = {mac for _, mac in claims} | {spec.mac}
    return claims | {(ipaddress.ip_network(link_local(mac)), mac) for mac in macs}


def link_local(mac: str) -> str:
    """The IPv6 link-local address made from a MAC (modified EUI-64, RFC 4291 appendix A)."""
    octets = [int(part, 16) for part in mac.split(":")]
    interface = bytes([octets[0] ^ 2, *octets[1:3], 0xFF, 0xFE, *octets[3:]])
    return str(ipaddress.IPv6Address(b"\xfe\x80" + b"\0" * 6 + interface))


def _address_flows(ofport: int, mac: str) -> list[str]:
    """What a guest must be able to send before it has an address."""
    own = f"table=10,priority=100,in_port={ofport},dl_src={mac}"
    local = link_local(mac)
    go = "actions=resubmit(,30)"
    flows = [
        f"{own},udp,nw_src=0.0.0.0,tp_src=68,tp_dst=67 {go}",
        f"{own},udp6,ipv6_src={local},tp_src=546,tp_dst=547 {go}",
        f"{own},arp,arp_sha={mac},arp_spa=0.0.0.0 {go}",
        f"{own},icmp6,ipv6_src=::,icmp_type=135,nd_sll=00:00:00:00:00:00 {go}",
    ]
    for kind in (131, 132, 133, 143):  # multicast listener reports, router solicitation
        flows += [f"{own},icmp6,ipv6_src={source},icmp_type={kind} {go}" for source in (local, "::")]
    return flows


def _claim_flows(ofport: int, network: _Network, mac: str, judged: str) -> list[str]:
    """What a guest may send with addresses it owns; ``judged``: the action for what its groups decide about."""
    own = f"in_port={ofport},dl_src={mac}"
    go = "actions=resubmit(,30)"
    track = f"actions={judged}"
    if network.version == 4:
        return [
            f"table=10,priority=100,{own},arp,arp_sha={mac},arp_spa={network} {go}",
            f"table=10,priority=100,{own},udp,nw_src={network},tp_src=68,tp_dst=67 {go}",
            f"table=10,priority=50,{own},ip,nw_src={network} {track}",
        ]
    none = "00:00:00:00:00:00"  # the option is absent
    flows = []
    for option in (mac, none):
        flows += [
            f"table=10,priority=100,{own},icmp6,ipv6_src={network},icmp_type=135,nd_sll={option} {go}",
            f"table=10,priority=100,{own},icmp6,icmp_type=136,nd_target={network},nd_tll={option} {go}",
        ]
    # Solicitations and advertisements that claim more must not slip through as ordinary traffic.
    flows += [f"table=10,priority=90,in_port={ofport},icmp6,icmp_type={kind} actions=drop" for kind in (135, 136)]
    return [*flows, f"table=10,priority=50,{own},ipv6,ipv6_src={network} {track}"]


# --- one network --------------------------------------------------------------------------------------------------


def network_flows(
    vlan: int,
    members: Sequence[Member],
    uplinks: Sequence[Uplink],
    restricted: Sequence[Restricted] = (),
    *,
    tags: bool = False,
) -> list[str]:
    """Forwarding in one network: known addresses, floods, and the ways to other hosts. ``tags``: guests' tags as well.

    Addresses of local ports are known, not learned. Learning is only needed when some address may live in more than
    one place: behind an open port, or behind one of several tunnels.
    """
    roles = ovs_pvlan.roles(restricted)
    members = [
        msgspec.structs.replace(member, restricted=not member.trusted and ovs_pvlan.role_of(roles, member.macs) > 0)
        for member in sorted(members, key=lambda member: member.ofport)
    ]
    learns = any(member.open for member in members) or len(uplinks) > 1
    flows = ovs_pvlan.flows(vlan, roles, [(one.ofport, one.macs) for one in members if one.restricted])
    for uplink in uplinks:
        flows += _uplink_flows(vlan, uplink, learns, tags)
    if tags:
        flows += ovs_tags.flows(vlan, [(member, _deliver(member)) for member in members], uplinks, learns)
    places: dict[str, list[str]] = {}
    for member in members:
        for mac in member.macs:
            places.setdefault(mac.lower(), []).append(_deliver(member))
    for mac, deliveries in sorted(places.items()):
        flows.append(f"table=30,priority=100,reg5={vlan},dl_dst={mac} actions={','.join(deliveries)}")
    here = [_deliver(member) for member in members]
    away = [_leave(uplink) for uplink in uplinks]
    back = [_leave(uplink) for uplink in uplinks if not uplink.tunnel]
    for member in members:
        if member.alias:
            flows += ovs_shared.flows(
                vlan, ofport=member.ofport, mac=member.macs[0], alias=member.alias, addresses=member.addresses,
                others=[_deliver(one) for one in members if one is not member], away=away, back=back, learns=learns,
            )  # fmt: skip
    multicast = ovs_shared.MULTICAST
    flows.append(_flow(f"table=30,priority=90,reg4=0,reg5={vlan},{multicast}", here + away))
    flows.append(_flow(f"table=30,priority=90,reg4=1,reg5={vlan},{multicast}", here + back))
    if not learns:
        return [*flows, _flow(f"table=30,priority=10,reg4=0,reg5={vlan}", away)]
    flows.append(f"table=30,priority=10,reg5={vlan} actions=set_field:0->reg7,resubmit(,31),resubmit(,32)")
    strangers = [member for member in members if member.open]
    for member in strangers:
        flows.append(f"table=32,priority=10,reg5={vlan},reg7={member.ofport} actions=resubmit(,60)")
    anywhere = [_deliver(member) for member in strangers]
    flows.append(_flow(f"table=32,priority=5,reg4=0,reg5={vlan},reg7=0", anywhere + away))
    flows.append(_flow(f"table=32,priority=5,reg4=1,reg5={vlan},reg7=0", anywhere + back))
    return flows


def _uplink_flows(vlan: int, uplink: Uplink, learns: bool, tags: bool) -> list[str]:
    strip = "" if uplink.vlan is None else "strip_vlan,"
    learn = f"{_learn()}," if learns else ""
    if uplink.vlan is not None:
        takes = [f"dl_vlan={uplink.vlan}"]
    else:
        takes = [_UNTAGGED, *([ovs_tags.TAGGED] if tags and uplink.tunnel else [])]
    flows = [
        f"table=0,priority=100,in_port={uplink.ofport},{what} "
        f"actions={strip}set_field:{vlan}->reg5,set_field:1->reg4,{learn}resubmit(,30)"
        for what in takes
    ]
    if learns:
        unless_tunnelled = "reg4=0," if uplink.tunnel else ""
        match = f"table=32,priority=10,{unless_tunnelled}reg5={vlan},reg7={uplink.ofport}"
        flows.append(f"{match} actions={_leave(uplink)}")
    return flows


def _learn() -> str:
    """Remember for five minutes that the sender lives behind the port it came from."""
    return (
        "learn(table=31,idle_timeout=300,priority=10,NXM_NX_REG5[],NXM_OF_ETH_DST[]=NXM_OF_ETH_SRC[],"
        "load:NXM_OF_IN_PORT[]->NXM_NX_REG7[0..15])"
    )


def _deliver(member: Member) -> str:
    if member.trusted:
        return f"output:{member.ofport}"
    return f"set_field:{member.ofport}->reg7,resubmit(,{50 if member.restricted else 40})"


def _leave(uplink: Uplink) -> str:
    if uplink.vlan is None or uplink.tpid != ovs_tags.C_TAG:
        return ovs_tags.leave(uplink)
    return f"mod_vlan_vid:{uplink.vlan},output:{uplink.ofport},strip_vlan"


def _flow(match: str, actions: Sequence[str]) -> str:
    return f"{match} actions={','.join(actions) if actions else 'drop'}"
