"""Security groups and anti-spoofing on Linux bridges as nftables: pure functions from specs to scripts.

Two tables per cloud. The one of family ``bridge`` sees frames: it refuses what a guest must not claim (MAC, address,
ARP), and writes into the packet mark which guest's port a frame came from (upper half) and is going to (lower half).
The one of family ``inet`` sees the same packets through br_netfilter, where connections are tracked in a zone per
network: each guest has a chain ``neutron-linuxbri-o...`` for what it sends and ``...-i...`` for what it receives, and
the mark says which. Egress and ingress are two base chains, so that accepting in the first leaves the second to judge.

A connection between two guests of one host has one entry for both. Bit 1 of its mark says that the filter of whoever
opened it let it out, bit 2 that the filter of whoever it goes to let it in. Packets of the original direction are
judged by the rules every time; answers pass when the bit of their side is set. A rule that is taken away, or an
address that leaves a set, thus cuts the connections it let in with their next packet: the bit is cleared.

Names of chains are those of the original Linux bridge agent (its binary's first 16 characters, a letter, the port).
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Sequence

from msgspec import Struct

from nubila.core.ports import AddressSetSpec, PortSpec, QosSpec, Restricted, RuleSpec, SecurityGroupSpec
from nubila.drivers import bridge_log
from nubila.drivers.links import GROUP
from nubila.drivers.ovs_flows import link_local
from nubila.drivers.ovs_security import PROTOCOLS
from nubila.drivers.security_log import BURST, RATE

BINARY = "neutron-linuxbri"
LEFT, ENTERED = 0x1, 0x2  # connection mark: judged and let through by the opener's, by the receiver's filter
SENDER, RECEIVER = 0x7FFF0000, 0x7FFF  # packet mark: numbers of the guests' ports
OUTSIDE = 0x8000  # packet mark: came from outside this host
CLOSED = 0x80000000  # packet mark: a frame for the host itself, from a network it is not on
MAX_NUMBER = 0x7FFF
_PORTED = {6: "tcp", 17: "udp", 33: "dccp", 132: "sctp", 136: "udplite"}
_Network = ipaddress.IPv4Network | ipaddress.IPv6Network


class Part(Struct, frozen=True, kw_only=True):
    """What one thing adds to the tables, and how to take exactly that away again."""

    add: str
    remove: str


def chain(letter: str, id: str) -> str:
    """A chain's name: ``neutron-linuxbri-o89bce4c6-b0``."""
    return f"{BINARY}-{letter}{id[:11]}"


# --- what is there before any port --------------------------------------------------------------------------------


def skeleton(name: str) -> str:
    """Both tables, empty of ports, replacing whatever was there."""
    return f"""
table bridge {name}
delete table bridge {name}
table inet {name}
delete table inet {name}
table bridge {name} {{
  map senders {{ type ifname : mark; }}
  map sources {{ type ifname : verdict; }}
  map targets {{ type ifname : verdict; }}
  map restricted {{ type ifname : verdict; }}
  set ways {{ type ifname; }}
  set theirs {{ type ifname . ipv4_addr; }}
  chain prerouting {{
    type filter hook prerouting priority -300;
    meta mark set iifname map @senders
    iifname vmap @sources
  }}
  chain local-ips {{
    type filter hook prerouting priority -260
    arp operation request iifname . arp daddr ip @theirs drop
  }}
  chain pvlan {{ type filter hook forward priority -250; oifname vmap @restricted; }}
  chain forward {{ type filter hook forward priority -200; oifname vmap @targets; }}
  chain input {{ type filter hook input priority 0; iifgroup {GROUP} meta mark set {CLOSED:#x}; }}
  chain postrouting {{ type filter hook postrouting priority 300; oifname @ways meta mark set 0; }}
}}
table inet {name} {{
  map zones {{ typeof iifname : ct zone; }}
  set hosted {{ type ifname; }}
  map egress {{ type mark : verdict; }}
  map ingress {{ type mark : verdict; }}
  map sent {{ type mark : verdict; }}
  map received {{ type mark : verdict; }}
  map to_local_ips {{ type ifname : verdict; }}
  map from_bridge {{ type ifname : verdict; }}
  limit logged {{ rate {RATE}/second burst {BURST} packets; }}
  chain {BINARY}-PREROUTING {{
    type filter hook prerouting priority raw;
    ct zone set iifname map @zones
  }}
  chain local-ips {{ type filter hook prerouting priority raw + 1; iifname vmap @to_local_ips; }}
  chain local-ips-out {{ type filter hook postrouting priority srcnat; oifname vmap @from_bridge; }}
  chain {BINARY}-FORWARD {{
    type filter hook forward priority filter;
    iifname "brq*" meta mark {CLOSED:#x} drop
    iifname "brq*" meta mark & {SENDER:#x} vmap @egress
  }}
  chain {BINARY}-sent {{
    type filter hook forward priority filter + 1;
    iifname "brq*" meta mark & {SENDER:#x} vmap @sent
  }}
  chain {BINARY}-local {{
    type filter hook forward priority filter + 2;
    iifname "brq*" meta mark & {RECEIVER:#x} vmap @ingress
  }}
  chain {BINARY}-received {{
    type filter hook forward priority filter + 3;
    iifname "brq*" meta mark & {RECEIVER:#x} vmap @received
  }}
  chain {BINARY}-INPUT {{
    type filter hook input priority filter;
    iifname "brq*" meta mark {CLOSED:#x} drop
    iifname "brq*" meta mark & {SENDER:#x} vmap @egress
  }}
  chain {BINARY}-OUTPUT {{
    type filter hook output priority filter;
    oifname @hosted ct mark set ct mark | {ENTERED:#x}
  }}
}}
"""


def network_part(table: str, bridge: str, zone: int, hosted: bool, ways: Sequence[str]) -> Part:
    """A network: a zone for its connections (none when the host itself lives on it), and its devices to the outside."""
    add, remove = [], []
    if hosted:
        add.append(f'add element inet {table} hosted {{ "{bridge}" }}')
        remove.append(f'delete element inet {table} hosted {{ "{bridge}" }}')
    else:
        add.append(f'add element inet {table} zones {{ "{bridge}" : {zone} }}')
        remove.append(f'delete element inet {table} zones {{ "{bridge}" }}')
    for way in ways:
        outside = f'add element bridge {table} senders {{ "{way}" : {OUTSIDE:#x} }}'
        add += [f'add element bridge {table} ways {{ "{way}" }}', outside]
        remove += [f'delete element bridge {table} ways {{ "{way}" }}', _no_sender(table, way)]
    return join(add, remove)


def pvlan_part(table: str, network_id: str, restricted: Sequence[Restricted]) -> Part:
    """A private VLAN: who may send to the ports that do not reach everybody. Sets, so that each port costs a line."""
    frames, short = f"bridge {table}", network_id[:11]
    names = sorted({one.community for one in restricted} - {""})
    sets = {"": f"pv{short}", **{name: f"pv{short}-{number}" for number, name in enumerate(names)}}
    add, remove = [], []
    for name, set_name in sets.items():
        macs = {mac for one in restricted if name in ("", one.community) for mac in one.macs}
        add.append(f"add set {frames} {set_name} {{ type ether_addr; }}")
        add.append(f"add element {frames} {set_name} {{ {', '.join(sorted(macs))} }}")
    for one in restricted:
        own = f"{BINARY}-p{one.device}"
        add.append(f"add chain {frames} {own}")
        if one.community:
            add.append(f"add rule {frames} {own} ether saddr @{sets[one.community]} return")
        add.append(f"add rule {frames} {own} ether saddr @{sets['']} drop")
        add.append(f'add element {frames} restricted {{ "{one.device}" : jump {own} }}')
        remove.append(f'delete element {frames} restricted {{ "{one.device}" }}')
        remove.append(f"delete chain {frames} {own}")
    return join(add, [*remove, *(f"delete set {frames} {name}" for name in sets.values())])


def trusted_part(table: str, device: str) -> Part:
    """A router's or DHCP server's port, or a guest's without port security."""
    return join([_sender(table, device, 0)], [_no_sender(table, device)])


def _sender(table: str, device: str, number: int) -> str:
    return f'add element bridge {table} senders {{ "{device}" : {number << 16:#x} }}'


def _no_sender(table: str, device: str) -> str:
    return f'delete element bridge {table} senders {{ "{device}" }}'


def join(add: Iterable[str], remove: Iterable[str]) -> Part:
    """Lines that add something and lines that take it away."""
    return Part(add="".join(f"{line}\n" for line in add), remove="".join(f"{line}\n" for line in remove))


# --- one guest's port ---------------------------------------------------------------------------------------------


def port_part(table: str, spec: PortSpec, number: int, nflog: int = 0) -> Part:
    """Everything one guest's port may do; ``nflog``: the group that its log is read from."""
    if spec.admin_state_up and not spec.port_security:
        return _open_part(table, spec)
    spoof, into, out, enter, local = (chain(letter, spec.id) for letter in "sdoil")
    frames = f"bridge {table}"
    packets = f"inet {table}"
    elements = [
        (frames, "sources", f'"{spec.device}"', f"jump {spoof}"),
        (frames, "targets", f'"{spec.device}"', f"jump {into}"),
        (packets, "egress", f"{number << 16:#x}", f"jump {out}"),
        (packets, "ingress", f"{number:#x}", f"jump {enter}"),
    ]
    chains = [
        (frames, spoof, _claims(spec) if spec.admin_state_up else ["drop"]),
        (frames, into, _addressed(spec, number) if spec.admin_state_up else ["drop"]),
        (packets, local, _link_local(spec)),
        (packets, out, _egress(spec, local, nflog)),
        (packets, enter, _ingress(spec, nflog)),
    ]
    for letter, watched, map, key in (("o", "q", "sent", number << 16), ("i", "r", "received", number)):
        copies = bridge_log.accepted(spec, letter, nflog)
        if copies:
            chains.append((packets, chain(watched, spec.id), copies))
            elements.append((packets, map, f"{key:#x}", f"jump {chain(watched, spec.id)}"))
    add = [f"add chain {packets} {group_chain(id, way, spec.stateful)}" for id in spec.groups for way in "oi"]
    add += [line for rule in spec.rules for line in _named_sets(table, rule)]
    for where, name, rules in chains:
        add += [f"add chain {where} {name}", f"flush chain {where} {name}"]
        add += [f"add rule {where} {name} {rule}" for rule in rules]
    add.append(_sender(table, spec.device, number))
    add += [f"add element {where} {map} {{ {key} : {verdict} }}" for where, map, key, verdict in elements]
    remove = [_no_sender(table, spec.device)]
    remove += [f"delete element {where} {map} {{ {key} }}" for where, map, key, _ in elements]
    remove += [f"delete chain {where} {name}" for where, name, _ in reversed(chains)]
    return join(add, remove)


def _open_part(table: str, spec: PortSpec) -> Part:
    """A port without port security: nothing but its limits."""
    trusted = trusted_part(table, spec.device)
    if spec.qos is None:
        return trusted
    add, remove = [], []
    for map, letter, towards in (("sources", "s", False), ("targets", "d", True)):
        name = chain(letter, spec.id)
        add += [f"add chain bridge {table} {name}", f"flush chain bridge {table} {name}"]
        add += [f"add rule bridge {table} {name} {rule}" for rule in _limits(spec.qos, to_owner=towards)]
        add.append(f'add element bridge {table} {map} {{ "{spec.device}" : jump {name} }}')
        remove += [f'delete element bridge {table} {map} {{ "{spec.device}" }}', f"delete chain bridge {table} {name}"]
    more = join(add, remove)
    return Part(add=trusted.add + more.add, remove=trusted.remove + more.remove)


def _limits(qos: QosSpec | None, *, to_owner: bool) -> list[str]:
    """Limits drop what is too much (police). A frame before segmentation may be 64 KiB: no bucket is smaller."""
    if qos is None:
        return []
    kbps, kbit = (qos.ingress_kbps, qos.ingress_burst_kbit) if to_owner else (qos.egress_kbps, qos.egress_burst_kbit)
    pps, burst = (
        (qos.ingress_pps, qos.ingress_burst_packets) if to_owner else (qos.egress_pps, qos.egress_burst_packets)
    )
    rules = []
    if kbps:
        rules.append(f"limit rate over {kbps * 125} bytes/second burst {max(kbit * 125, 66_000)} bytes drop")
    if pps:
        rules.append(f"limit rate over {pps}/second burst {max(burst, 1)} packets drop")
    if qos.dscp is not None and not to_owner:
        rules += [f"{family} dscp set {qos.dscp}" for family in ("ip", "ip6")]
    return rules


def claims(spec: PortSpec) -> set[tuple[_Network, str]]:
    """(addresses, MAC) that the port may use as its own."""
    mac = spec.mac.lower()
    found: set[tuple[_Network, str]] = {(ipaddress.ip_network(ip.ip_address), mac) for ip in spec.fixed_ips}
    found |= {(ipaddress.ip_network(cidr, strict=False), (m or mac).lower()) for cidr, m in spec.allowed_pairs}
    macs = {m for _, m in found} | {mac}
    return found | {(ipaddress.ip_network(link_local(m)), m) for m in macs}


def macs(spec: PortSpec) -> list[str]:
    """The MAC addresses that may live behind the port."""
    return sorted({spec.mac.lower(), *(mac.lower() for _, mac in spec.allowed_pairs if mac)})


def _claims(spec: PortSpec) -> list[str]:
    """What the port may claim, frame by frame."""
    own = ", ".join(macs(spec))
    every = sorted(claims(spec), key=str)
    four = [(net, mac) for net, mac in every if net.version == 4]
    six = [(net, mac) for net, mac in every if net.version == 6]
    rules = ["ether type != { arp, ip, ip6 } drop", f"ether saddr != {{ {own} }} drop"]
    rules += _limits(spec.qos, to_owner=False)
    rules += [f"ether saddr {mac} arp saddr ether {mac} arp saddr ip {_plain(net)} accept" for net, mac in four]
    rules += [f"ether saddr {mac} arp saddr ether {mac} arp saddr ip 0.0.0.0 accept" for mac in macs(spec)]
    rules += ["ether type arp drop", "ip saddr 0.0.0.0 udp sport 68 udp dport 67 accept"]
    rules += [f"ether saddr {mac} ip saddr {_plain(net)} accept" for net, mac in four]
    rules += [f"ether saddr {mac} ip6 saddr {_plain(net)} accept" for net, mac in six]
    rules.append("ip6 saddr :: meta l4proto ipv6-icmp icmpv6 type { 131, 132, 135, 143 } accept")
    rules.append("ip6 saddr :: ip6 nexthdr 0 accept")  # listener reports have a hop-by-hop header; judged below
    return [*rules, "drop"]


def _addressed(spec: PortSpec, number: int) -> list[str]:
    """What may reach the port, frame by frame; the rest of the judgement follows the mark."""
    own = ", ".join(macs(spec))
    return [
        "ether type != { arp, ip, ip6 } drop",
        f"ether daddr & 01:00:00:00:00:00 == 00:00:00:00:00:00 ether daddr != {{ {own} }} drop",
        *_limits(spec.qos, to_owner=True),
        f"meta mark set meta mark & {SENDER | OUTSIDE:#x} | {number:#x}",
    ]


def _egress(spec: PortSpec, local: str, nflog: int) -> list[str]:
    """What the port may send."""
    rules = [
        # Fragments have been put together by now, but for a first one without its headers (RFC 8200 section 4.5).
        "meta nfproto ipv6 exthdr frag exists drop",
        f"meta l4proto {{ udp, ipv6-icmp }} jump {local}",
        "ip6 saddr :: drop",
    ]
    return rules + _judge(spec, "egress", LEFT, ENTERED, nflog)


def _link_local(spec: PortSpec) -> list[str]:
    """What is judged without groups: DHCP, neighbours, routers, multicast listeners.

    Guests are neither DHCP servers nor routers, whatever fragments they hide it in.
    """
    rules = [
        "meta nfproto ipv4 udp sport 67 udp dport 68 drop",
        "meta nfproto ipv6 udp sport 547 udp dport 546 drop",
        "icmpv6 type { 134, 137 } drop",
    ]
    for net, mac in sorted(claims(spec), key=str):
        if net.version == 6:
            rules += _neighbour_rules(net, mac)
    rules += [
        "icmpv6 type 135 ip6 saddr :: ip6 length 24 accept",
        "icmpv6 type 135 ip6 saddr :: ip6 length 32 @th,192,16 0x0e01 accept",  # with a nonce (RFC 7527)
        "icmpv6 type { 135, 136 } drop",
        "icmpv6 type { 131, 132, 133, 143 } accept",
        "meta nfproto ipv4 udp sport 68 udp dport 67 accept",
        "meta nfproto ipv6 udp sport 546 udp dport 547 accept",
    ]
    return rules


def _ingress(spec: PortSpec, nflog: int) -> list[str]:
    rules = [
        "icmpv6 type { 130, 134, 135, 136 } accept",
        "meta nfproto ipv4 udp sport 67 udp dport 68 accept",
        "meta nfproto ipv6 udp sport 547 udp dport 546 accept",
    ]
    return rules + _judge(spec, "ingress", ENTERED, LEFT, nflog)


def _neighbour_rules(net: _Network, mac: str) -> list[str]:
    """Solicitations and advertisements (RFC 4861) for addresses the port has, with its own link-layer address or none.

    Options begin 24 octets into the message; type and length are the first two octets of one.
    """
    source = f"ip6 saddr {_plain(net)}"
    target = ""
    if net.prefixlen:
        target = f" @th,64,{net.prefixlen} {int(net.network_address) >> (128 - net.prefixlen):#x}"
    number = f"0x{mac.replace(':', '')}"
    rules = []
    for kind, option, more in ((135, "0x0101", ""), (136, "0x0201", target)):
        rules.append(f"icmpv6 type {kind} {source}{more} ip6 length 24 accept")
        rules.append(f"icmpv6 type {kind} {source}{more} ip6 length 32 @th,192,16 {option} @th,208,48 {number} accept")
    return rules


def _judge(spec: PortSpec, direction: str, own: int, others: int, nflog: int) -> list[str]:
    """Rules for one direction; ``own`` is the bit this filter sets, ``others`` the one that lets answers pass."""
    letter = "o" if direction == "egress" else "i"
    allowed = rule_lines(spec.rules, direction, own if spec.stateful else 0)
    if allowed:
        allowed = [*bridge_log.asking(spec, letter, spec.id), *allowed]
    for id in spec.groups:
        allowed += [*bridge_log.asking(spec, letter, id), f"jump {group_chain(id, letter, spec.stateful)}"]
    refused = [*bridge_log.dropped(spec, letter, nflog), "drop"]
    if not spec.stateful:
        return [*allowed, *refused]
    return [
        "ct state invalid meta l4proto { tcp, udp, icmp, ipv6-icmp } drop",
        f"ct direction reply ct mark & {others:#x} == {others:#x} accept",
        "ct direction reply drop",
        f"ct state related ct mark & {own:#x} == {own:#x} accept",
        *allowed,
        f"ct mark set ct mark & {0xFFFFFFFF ^ own:#x}",
        *refused,
    ]


# --- groups and sets ----------------------------------------------------------------------------------------------


def group_chain(id: str, letter: str, stateful: bool) -> str:
    """The chain of one group for one direction, as stateful or stateless ports use it."""
    return f"g{letter}{'' if stateful else 'n'}-{id}"


def group_part(table: str, spec: SecurityGroupSpec) -> Part:
    """A group's rules, once for all its ports. Its chains stay while ports refer to them."""
    add, remove = [line for rule in spec.rules for line in _named_sets(table, rule)], []
    for letter, direction, bit in (("o", "egress", LEFT), ("i", "ingress", ENTERED)):
        for stateful in (True, False):
            name = group_chain(spec.id, letter, stateful)
            add += [f"add chain inet {table} {name}", f"flush chain inet {table} {name}"]
            lines = rule_lines(spec.rules, direction, bit if stateful else 0)
            add += [f"add rule inet {table} {name} {line}" for line in lines]
            remove.append(f"flush chain inet {table} {name}")
    return join(add, remove)


def group_chains(id: str) -> list[str]:
    """Every chain a group may have."""
    return [group_chain(id, letter, stateful) for letter in "oi" for stateful in (True, False)]


def set_names(id: str) -> tuple[str, str]:
    """The IPv4 and IPv6 set behind one id."""
    return f"a4-{id}", f"a6-{id}"


def set_part(table: str, spec: AddressSetSpec) -> Part:
    """Addresses that rules refer to, replaced in place."""
    add, remove = _declare_sets(table, spec.id), []
    networks = [ipaddress.ip_network(cidr, strict=False) for cidr in spec.addresses]
    for name, version in zip(set_names(spec.id), (4, 6), strict=True):
        members = _collapsed(networks, version)
        add.append(f"flush set inet {table} {name}")
        remove.append(f"flush set inet {table} {name}")
        if members:
            add.append(f"add element inet {table} {name} {{ {', '.join(members)} }}")
    return join(add, remove)


def _named_sets(table: str, rule: RuleSpec) -> list[str]:
    return _declare_sets(table, rule.remote_set) if rule.remote_set else []


def _declare_sets(table: str, id: str) -> list[str]:
    kinds = zip(set_names(id), ("ipv4_addr", "ipv6_addr"), strict=True)
    return [f"add set inet {table} {name} {{ type {kind}; flags interval; }}" for name, kind in kinds]


# --- rules --------------------------------------------------------------------------------------------------------


def rule_lines(rules: Iterable[RuleSpec], direction: str, bit: int) -> list[str]:
    """Rules of one direction as few nft rules: equal remotes share one, whatever their ports.

    A rule that cannot be expressed (ports of a protocol without them) matches nothing: refusing is the safe side.
    ``bit`` is set in the connection's mark when a rule matches; 0 leaves the connection alone.
    """
    verdict = f"ct mark set ct mark | {bit:#x} accept" if bit else "accept"
    side = "saddr" if direction == "ingress" else "daddr"
    by_match: dict[tuple[int, object], list[RuleSpec]] = {}
    for rule in rules:
        if rule.direction == direction:
            version = 4 if rule.ethertype == "IPv4" else 6
            match = _match(rule, version)
            if match is not None:
                by_match.setdefault((version, match), []).append(rule)
    lines: dict[tuple[int, str], list[object]] = {}
    for (version, match), same in by_match.items():
        for remote in _remotes(same, version, side):
            lines.setdefault((version, remote), []).append(match)
    out = []
    for (version, remote), matches in lines.items():
        family = f"meta nfproto ipv{version}"
        out += [" ".join(filter(None, (family, remote, match, verdict))) for match in _merged(matches)]
    return out


def _match(rule: RuleSpec, version: int) -> object:
    """The protocol part: None = impossible, a text = as it is, (protocol, low, high) = ports."""
    protocol = _protocol(rule.protocol, version)
    low, high = rule.port_min, rule.port_max
    if protocol in (1, 58) and (low is not None or high is not None):
        name = "icmp" if protocol == 1 else "icmpv6"
        kind = f"{name} type {low}" if low is not None else f"meta l4proto {protocol}"
        return kind + (f" {name} code {high}" if high is not None else "")
    if low is None and high is None:
        return "" if protocol is None else (protocol,)
    if protocol not in _PORTED:
        return None
    first = low if low is not None else 0
    return (protocol, first, high if high is not None else (first if low is not None else 65535))


def _protocol(name: str | None, version: int) -> int | None:
    if name is None or name.lower() == "any":
        return None
    number = int(name) if name.isdigit() else PROTOCOLS.get(name.lower(), 255)
    if number == 1 and version == 6:
        return 58
    return number or None


def _remotes(rules: Iterable[RuleSpec], version: int, side: str) -> list[str]:
    """The remote part of rules that are equal otherwise."""
    family = "ip" if version == 4 else "ip6"
    networks: list[_Network] = []
    parts: list[str] = []
    for rule in rules:
        if rule.remote_set is not None:
            parts.append(f"{family} {side} @{set_names(rule.remote_set)[version == 6]}")
        elif rule.remote is None:
            return [""]
        else:
            networks += [ipaddress.ip_network(cidr, strict=False) for cidr in rule.remote]
    members = _collapsed(networks, version)
    if any(member.endswith("/0") for member in members):
        return [""]
    if members:
        parts.append(f"{family} {side} {{ {', '.join(members)} }}")
    return list(dict.fromkeys(parts))


def _merged(matches: Sequence[object]) -> list[str]:
    """Protocol parts with the same remote: everything, whole protocols, ports, and the rest."""
    if "" in matches:
        return [""]
    out = [match for match in matches if isinstance(match, str)]
    whole = sorted({match[0] for match in matches if isinstance(match, tuple) and len(match) == 1})
    if whole:
        out.append(f"meta l4proto {{ {', '.join(map(str, whole))} }}")
    elements = []
    for protocol in sorted({m[0] for m in matches if isinstance(m, tuple) and len(m) == 3} - set(whole)):
        ranges = sorted((m[1], m[2]) for m in matches if isinstance(m, tuple) and len(m) == 3 and m[0] == protocol)
        elements += [
            f"{protocol} . {low}-{high}" if low != high else f"{protocol} . {low}" for low, high in _union(ranges)
        ]
    if elements:
        out.append(f"meta l4proto . th dport {{ {', '.join(elements)} }}")
    return out


def _union(ranges: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """Sorted ranges without overlaps."""
    out: list[tuple[int, int]] = []
    for low, high in ranges:
        if out and low <= out[-1][1] + 1:
            out[-1] = (out[-1][0], max(out[-1][1], high))
        else:
            out.append((low, high))
    return out


def _collapsed(networks: Iterable[_Network], version: int) -> list[str]:
    if version == 4:
        four = ipaddress.collapse_addresses(n for n in networks if isinstance(n, ipaddress.IPv4Network))
        return [_prefix(net) for net in four]
    return [
        _prefix(n) for n in ipaddress.collapse_addresses(n for n in networks if isinstance(n, ipaddress.IPv6Network))
    ]


def _prefix(net: _Network) -> str:
    """A network as an element of a set."""
    return str(net.network_address) if net.prefixlen == net.max_prefixlen else str(net)


def _plain(net: _Network) -> str:
    """A network as the right side of a match."""
    return _prefix(net)
