"""What a security group rule, or a template of one, may say: pure checks, worded as Neutron words them."""

from __future__ import annotations

import ipaddress
from typing import Any

from nubila.core.faults import Fault, bad_request

Row = dict[str, Any]
PROTOCOLS = {
    "ah": 51, "dccp": 33, "egp": 8, "esp": 50, "gre": 47, "icmp": 1, "icmpv6": 58, "igmp": 2, "ipip": 4,
    "ipv6-encap": 41, "ipv6-frag": 44, "ipv6-icmp": 58, "ipv6-nonxt": 59, "ipv6-opts": 60, "ipv6-route": 43,
    "ospf": 89, "pgm": 113, "rsvp": 46, "sctp": 132, "tcp": 6, "udp": 17, "udplite": 136, "vrrp": 112, "any": 0,
}  # fmt: skip
"""Names the API takes, with their IANA numbers."""
PORTED = ("tcp", "udp", "sctp", "dccp", "udplite", "6", "17", "132", "33", "136")
ICMP = ("icmp", "icmpv6", "ipv6-icmp", "1", "58")
_NAMES_V6 = ("icmpv6", "ipv6-icmp", "ipv6-encap", "ipv6-frag", "ipv6-nonxt", "ipv6-opts", "ipv6-route")
ONLY_V6 = (*_NAMES_V6, *sorted({str(PROTOCOLS[name]) for name in _NAMES_V6}))
REMOTES = ("remote_ip_prefix", "remote_group_id", "remote_address_group_id")
_SAME = (
    "direction", "ethertype", "protocol", "port_range_min", "port_range_max", "normalized_cidr", "remote_group_id",
    "remote_address_group_id",
)  # fmt: skip


def refuse(text: str, type: str) -> Fault:
    """The 400 of a rule that cannot be."""
    return bad_request(text, type)


def check(values: Row) -> None:
    """Check a rule and bring it to stored form, with ``normalized_cidr``; whether its remotes exist is not seen."""
    _ethertype(values)
    _protocol(values)
    _ports(values)
    _remote(values)


def sameness(rule: Row) -> str:
    """What two rules of a group must not share."""
    everywhere = rule["normalized_cidr"] in ("0.0.0.0/0", "::/0")
    rule = {**rule, "normalized_cidr": None} if everywhere else rule
    return "/".join("" if rule.get(n) is None else str(rule[n]) for n in _SAME)


def _ethertype(values: Row) -> None:
    known = {"ipv4": "IPv4", "ipv6": "IPv6"}
    given = values.get("ethertype") or "IPv4"
    if given.lower() not in known:
        text = f"ethertype '{given}' is unknown: use IPv4 or IPv6."
        raise refuse(text, "SecurityGroupRuleInvalidEtherType")
    values["ethertype"] = known[given.lower()]


def _protocol(values: Row) -> None:
    given = values.get("protocol")
    if given is None:
        return
    name = str(given).strip().lower()
    if name in ("any", "0", ""):
        values["protocol"] = None
        return
    if not (name in PROTOCOLS or (name.isascii() and name.isdigit() and int(name) <= 255)):
        text = f"protocol '{given}' is unknown: use a number up to 255 or one of {', '.join(sorted(PROTOCOLS))}."
        raise refuse(text, "SecurityGroupRuleInvalidProtocol")
    if name in ONLY_V6 and values["ethertype"] == "IPv4":
        text = f"Invalid ethertype {values['ethertype']} for protocol {given}."
        raise refuse(text, "SecurityGroupEthertypeConflictWithProtocol")
    values["protocol"] = "ipv6-icmp" if name == "icmpv6" else str(int(name)) if name.isdigit() else name


def _ports(values: Row) -> None:
    low, high, protocol = values.get("port_range_min"), values.get("port_range_max"), values["protocol"]
    if low is None and high is None:
        return
    if protocol is None:
        raise refuse("protocol: ports need one beside them.", "SecurityGroupProtocolRequiredWithPorts")
    numbers: list[int | None] = []
    for text in (low, high):
        try:
            numbers.append(None if text is None else int(text))
        except ValueError:
            raise refuse(f"Invalid value for port {text}", "SecurityGroupInvalidPortValue") from None
    first, last = numbers
    if protocol in ICMP:
        _icmp(first, last)
    elif protocol in PORTED:
        for n in numbers:
            if n is not None and not 0 <= n <= 65535:
                raise refuse(f"Invalid value for port {n}", "SecurityGroupInvalidPortValue")
        if first is None or last is None or first > last:
            text = "port_range_min must be <= port_range_max"  # clients look for these words
            raise refuse(text, "SecurityGroupInvalidPortRange")
    else:
        text = f"port_range_min, port_range_max: {protocol} has no ports; they go with {', '.join(PORTED)}."
        raise refuse(text, "SecurityGroupInvalidProtocolForPort")
    values["port_range_min"], values["port_range_max"] = first, last


def _icmp(kind: int | None, code: int | None) -> None:
    for n, field, attr in ((kind, "type", "port-range-min"), (code, "code", "port-range-max")):
        if n is not None and not 0 <= n <= 255:
            text = f"Invalid value for ICMP {field} ({attr}) {n}. It must be 0 to 255."
            raise refuse(text, "SecurityGroupInvalidIcmpValue")
    if kind is None and code is not None:
        text = f"For code {code} an ICMP type (port-range-min) is missing"  # clients look for the last words
        raise refuse(text, "SecurityGroupMissingIcmpType")


def _remote(values: Row) -> None:
    for name in REMOTES:
        values[name] = values.get(name) or None
    prefix, values["normalized_cidr"] = values["remote_ip_prefix"], None
    if sum(values[name] is not None for name in REMOTES) > 1:
        text = f"A rule has one remote side: keep one of {', '.join(REMOTES)}."
        raise refuse(text, "SecurityGroupMultipleRemoteEntites")
    if not prefix:
        return
    try:
        net = ipaddress.ip_network(prefix, strict=False)
        if "/" not in prefix:
            values["remote_ip_prefix"] = str(net)
    except ValueError:
        text = f"remote_ip_prefix: '{prefix}' is neither an IP address nor a CIDR."
        raise refuse(text, "InvalidCIDR") from None
    if f"IPv{net.version}" != values["ethertype"]:
        text = f"Conflicting value ethertype {values['ethertype']} for CIDR {prefix}"
        raise refuse(text, "SecurityGroupRuleParameterConflict")
    values["normalized_cidr"] = str(net)
