"""Security groups as OpenFlow: pure functions from specs to flow lines.

What is judged once for a packet is written once: a port's flow lists the groups it is in, a group's flows are its
rules, a set's flows its addresses. So the cost on a host is ports x groups + rules + addresses, never their product,
and a changed rule or member is a change of a few flows however many ports it concerns.

    11 / 41  what conntrack knows already: replies pass, what cannot be is dropped; then the port's flow, which
             looks into table 13 / 43 once for each group (number in reg8)
    13 / 43  rules of all groups: one that matches sets reg9
    12 / 42  the verdict: commit and go on, or drop; ports that are logged have verdicts of their own (security_log)

(first: sending, zone and port in reg6; second: receiving, reg7.) A rule with an address set is a conjunctive match
(ovs-actions(7)) of two dimensions: the rule's flow and the set's addresses. The set's number is the conjunction's id
and its priority; so no two sets ever have the same flow, and an address may be in many of them.

Rules are looked up for every packet of a connection's original direction, so a revoked rule cuts what it let in: the
connection is marked (ct_mark 1) and its replies stop as well. Replies and related errors of unmarked connections pass.
Protocols that the userspace conntrack cannot track arrive as ``+inv`` and are judged by their addresses and protocol
alone, as are all packets of stateless ports.

The userspace conntrack puts fragments together to judge them and then hands on the fragments, of which the later ones
show no ports (the kernel's hands on whole packets). Those of a new connection go along to be committed, where conntrack
waits until all of them are there: when the first was refused, they never leave. Those of a connection that was let
through pass with it. Stateless ports get later fragments only by rules for whole protocols.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping, Sequence

from nubila.core.ports import AddressSetSpec, LogSpec, PortSpec, RuleSpec, SecurityGroupSpec

_TRACKED = ("tcp", "udp", "icmp", "tcp6", "udp6", "icmp6")
_SENDING, _RECEIVING = (11, "reg6"), (41, "reg7")
_SETS = 1000  # priority of the set with number 0: above plain rules, below what conntrack knows
MAX_NUMBER = 60_000
"""Numbers of groups and sets go from 1 to here."""
SEND, RECEIVE = "resubmit(,30)", "resubmit(,60)"
"""Actions for packets that may be sent, that may be received."""
LOG_METER = 262_000
"""The meter of the log: above those of ports (ovs_qos), below the userspace datapath's 2^18."""
_COPY = f"controller(max_len=128,meter_id={LOG_METER})"  # to security_log
_OWN = 0x10000  # added to a port's number: the group of its own rules

# IANA protocol numbers behind the names that the Networking API takes for security group rules.
PROTOCOLS = {
    "ah": 51, "dccp": 33, "egp": 8, "esp": 50, "gre": 47, "icmp": 1, "icmpv6": 58, "ipv6-icmp": 58, "igmp": 2,
    "ipip": 4, "ipv6-encap": 41, "ipv6-frag": 44, "ipv6-nonxt": 59, "ipv6-opts": 60, "ipv6-route": 43, "ospf": 89,
    "pgm": 113, "rsvp": 46, "sctp": 132, "tcp": 6, "udp": 17, "udplite": 136, "vrrp": 112,
}  # fmt: skip
_PORTED = {6: "tcp", 17: "udp", 132: "sctp"}


# --- what every bridge has ----------------------------------------------------------------------------------------


def static_flows() -> list[str]:
    """The judgement itself."""
    # For ports that are logged: which group was the first to accept?
    flows = [
        "table=14,priority=0 actions=drop",
        "table=14,priority=10,reg9=1,reg10=0 actions=move:NXM_NX_REG8[]->NXM_NX_REG10[]",
    ]
    for (table, port), accept in ((_SENDING, SEND), (_RECEIVING, RECEIVE)):
        zone = f"zone=NXM_NX_{port.upper()}[0..15]"
        verdict = table + 1
        flows += [f"table={t},priority=0 actions=drop" for t in (table, verdict, table + 2)]
        flows += [f"table={table},priority=65100,ct_state=+trk+inv,{kind} actions=drop" for kind in _TRACKED]
        flows += [
            # Fragments that never became a packet.
            f"table={table},priority=65100,ct_state=+trk+inv,ip,nw_frag=yes actions=drop",
            f"table={table},priority=65100,ct_state=+trk+inv,ipv6,nw_frag=yes actions=drop",
            f"table={table},priority=65090,ct_state=+trk+est+rpl,ct_mark=0 actions={accept}",
            f"table={table},priority=65090,ct_state=+trk+rel,ct_mark=0 actions={accept}",
            f"table={table},priority=65080,ct_state=+trk+rpl actions=drop",
            f"table={verdict},priority=20,reg9=1 actions={accept}",
        ]
        flows += [
            f"table={table},priority=65070,ct_state=+trk+est,ct_mark=0,{family},nw_frag=later actions={accept}"
            for family in ("ip", "ipv6")
        ]
        flows += [
            f"table={table + 2},priority=45,ct_state=+trk-inv-rpl,{family},nw_frag=later actions=set_field:1->reg9"
            for family in ("ip", "ipv6")
        ]
        for family in ("ip", "ipv6"):
            flows += [
                f"table={verdict},priority=30,reg9=1,ct_state=+trk+new,{family} actions=ct(commit,{zone}),{accept}",
                f"table={verdict},priority=30,reg9=1,ct_state=+trk+est,ct_mark=1,{family} "
                f"actions=ct(commit,{zone},exec(set_field:0->ct_mark)),{accept}",
                f"table={verdict},priority=10,ct_state=+trk+est-rpl,ct_mark=0,{family} "
                f"actions=ct(commit,{zone},exec(set_field:1->ct_mark))",
            ]
    # Stateful ports, unless their own flow says otherwise.
    flows += [
        f"table=40,priority=40,{family} actions=ct(table=41,zone=NXM_NX_REG7[0..15])" for family in ("ip", "ipv6")
    ]
    return flows


# --- ports --------------------------------------------------------------------------------------------------------


def judged(spec: PortSpec, ofport: int) -> str:
    """The action that gives a packet of this port to the judgement of what it may send."""
    return f"ct(table=11,zone={ofport})" if spec.stateful else "resubmit(,11)"


def port_flows(spec: PortSpec, ofport: int, groups: Mapping[str, int]) -> list[str]:
    """The groups a port is in, with their numbers on this host."""
    flows = []
    numbers = sorted(groups[id] for id in spec.groups)
    if spec.rules:
        own = _OWN + ofport
        numbers.append(own)
        flows += group_flows(SecurityGroupSpec(id=spec.id, rules=spec.rules), own, {})
    if not spec.stateful:  # the sender's zone may have tracked it: that must not count here
        flows += [
            f"table=40,priority=45,reg7={ofport},{family} actions=ct_clear,resubmit(,41)" for family in ("ip", "ipv6")
        ]
    who = ",resubmit(,14)" if spec.logs else ""
    clear = "set_field:0->reg9," + ("set_field:0->reg10," if spec.logs else "")
    for table, port in (_SENDING, _RECEIVING):
        looks = "".join(f"set_field:{number}->reg8,resubmit(,{table + 2}){who}," for number in numbers)
        flows.append(f"table={table},priority=50,{port}={ofport} actions={clear}{looks}resubmit(,{table + 1})")
        if spec.logs:
            accept = SEND if table == 11 else RECEIVE
            flows += log_flows(table + 1, port, ofport, spec.logs, logged_groups(spec, ofport, groups), accept)
    return flows


def logged_groups(spec: PortSpec, ofport: int, groups: Mapping[str, int]) -> dict[str, int]:
    """The numbers that say in a log which group it was; the port's own rules have its id."""
    found = {id: groups[id] for id in spec.groups}
    return {**found, spec.id: _OWN + ofport} if spec.rules else found


def log_flows(
    table: int, port: str, ofport: int, logs: Sequence[LogSpec], groups: Mapping[str, int], accept: str
) -> list[str]:
    """A logged port's part of a verdict table: the same verdicts, with a copy to the log."""
    zone = f"zone=NXM_NX_{port.upper()}[0..15]"
    own = f"table={table},{{}},{port}={ofport}"
    out = []
    passing = [log for log in logs if log.event in ("ALL", "ACCEPT")]
    everything = any(log.group is None for log in passing)
    for id, number in sorted(groups.items()):
        if everything or any(log.group == id for log in passing):
            by = f"reg9=1,reg10={number}"
            match = own.format("priority=40")
            out += [
                f"{match},{by},ct_state=+trk+new,{family} actions={_COPY},ct(commit,{zone}),{accept}"
                for family in ("ip", "ipv6")
            ]
            out.append(f"{match},{by},ct_state=-trk actions={_COPY},{accept}")
    if any(log.event in ("ALL", "DROP") for log in logs):
        out += [
            f"{own.format('priority=16')},reg9=0,ct_state=+trk+est-rpl,ct_mark=0,{family} "
            f"actions={_COPY},ct(commit,{zone},exec(set_field:1->ct_mark))"
            for family in ("ip", "ipv6")
        ]
        out.append(f"{own.format('priority=15')},reg9=0 actions={_COPY}")
    return out


# --- groups and sets ----------------------------------------------------------------------------------------------


def group_flows(spec: SecurityGroupSpec, number: int, sets: Mapping[str, int]) -> list[str]:
    """A group's rules; ``sets``: the numbers of the address sets they name."""
    flows: dict[str, None] = {}
    for rule in spec.rules:
        table = 43 if rule.direction == "ingress" else 13
        if rule.remote_set is None:
            priority, action = 50, "set_field:1->reg9"
        else:
            member = sets[rule.remote_set]
            priority, action = _SETS + member, f"conjunction({member},2/2)"
        for match in rule_matches(rule):
            # Equal priority throughout: rules only ever allow, so their order cannot matter.
            flows[f"table={table},priority={priority},reg8={number},{match} actions={action}"] = None
    return list(flows)


def set_flows(spec: AddressSetSpec, number: int) -> list[str]:
    """The addresses of a set, where rules look for them."""
    flows = []
    for direction in spec.directions:
        table, end = (43, "src") if direction == "ingress" else (13, "dst")
        flows.append(f"table={table},priority=65000,conj_id={number} actions=set_field:1->reg9")
        for cidr in spec.addresses:
            where = _remote(ipaddress.ip_network(cidr, strict=False), end)
            flows.append(f"table={table},priority={_SETS + number},{where} actions=conjunction({number},1/2)")
    return list(dict.fromkeys(flows))


_Network = ipaddress.IPv4Network | ipaddress.IPv6Network


def _remote(network: _Network, end: str) -> str:
    family, field = ("ip", f"nw_{end}") if network.version == 4 else ("ipv6", f"ipv6_{end}")
    return f"{family},{field}={network}" if network.prefixlen else family


# --- rules --------------------------------------------------------------------------------------------------------


def rule_matches(rule: RuleSpec) -> list[str]:
    """One security group rule as OpenFlow matches: remote addresses times port masks.

    A rule that OpenFlow cannot express (ports of a protocol without them) matches nothing: refusing is the safe side.
    """
    version = 4 if rule.ethertype == "IPv4" else 6
    protocol = _protocol(rule.protocol, version)
    field = ("nw_" if version == 4 else "ipv6_") + ("src" if rule.direction == "ingress" else "dst")
    if rule.remote is None:
        remotes = [""]
    else:
        networks = [ipaddress.ip_network(cidr, strict=False) for cidr in rule.remote]
        kept = [network for network in networks if network.version == version]
        remotes = [f",{field}={network}" if network.prefixlen else "" for network in kept]
    family = "ip" if version == 4 else "ipv6"
    if protocol is not None:
        family += f",nw_proto={protocol}"
        if protocol in _PORTED:
            family = _PORTED[protocol] + ("6" if version == 6 else "")
        elif protocol in (1, 58):
            family = "icmp" if protocol == 1 else "icmp6"
    return [f"{family}{remote}{ports}" for remote in remotes for ports in _ports(rule, protocol)]


def _protocol(name: str | None, version: int) -> int | None:
    if name is None or name.lower() == "any":
        return None
    number = int(name) if name.isdigit() else PROTOCOLS.get(name.lower(), 255)
    if number == 1 and version == 6:
        return 58  # the API lets "icmp" mean ICMPv6 for IPv6 rules
    return number or None  # 0 means any, as in the API


def _ports(rule: RuleSpec, protocol: int | None) -> list[str]:
    low, high = rule.port_min, rule.port_max
    if low is None and high is None:
        return [""]
    if protocol in (1, 58):
        kind = f",icmp_type={low}" if low is not None else ""
        return [kind + (f",icmp_code={high}" if high is not None else "")]
    if protocol not in _PORTED:
        return []
    low = low if low is not None else 0
    high = high if high is not None else (low if rule.port_min is not None else 65535)
    return [f",tp_dst={mask}" if mask else "" for mask in port_masks(low, high)]


def port_masks(low: int, high: int) -> list[str]:
    """A range of ports as the fewest value/mask pairs; "" stands for all of them."""
    masks = []
    while low <= high:
        size = low & -low if low else 1 << 16
        while low + size - 1 > high:
            size >>= 1
        mask = 0xFFFF & ~(size - 1)
        masks.append("" if mask == 0 else str(low) if size == 1 else f"0x{low:x}/0x{mask:x}")
        low += size
    return masks
