"""Security groups as OpenFlow against what they mean: random groups, sets and packets, two evaluators agree."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass

from hypothesis import given
from hypothesis import strategies as st

from nubila.core.ports import AddressSetSpec, RuleSpec, SecurityGroupSpec
from nubila.drivers import ovs_security
from nubila.drivers.ovs_security import PROTOCOLS

FOUR = [f"10.0.{a}.{b}" for a in (0, 1) for b in (1, 2, 130)]
SIX = [f"fd00::{a}:{b}" for a in (0, 1) for b in (1, 2)]
NETS = [f"{ip}/{n}" for ip in FOUR for n in (0, 24, 25, 32)] + [f"{ip}/{n}" for ip in SIX for n in (0, 64, 112, 128)]


@dataclass(frozen=True)
class Packet:
    """A whole packet as a rule sees it; for ICMP the ports are type and code."""

    direction: str
    remote: str
    protocol: int
    first: int = 0
    second: int = 0

    @property
    def version(self) -> int:
        return ipaddress.ip_address(self.remote).version


# --- what it means ----------------------------------------------------------------------------------------------------


def lets(rule: RuleSpec, packet: Packet, sets: dict[str, tuple[str, ...]]) -> bool:
    """A rule, read as the Networking API describes it."""
    if rule.direction != packet.direction or rule.ethertype != f"IPv{packet.version}":
        return False
    if rule.protocol is not None:
        number = int(rule.protocol) if rule.protocol.isdigit() else PROTOCOLS[rule.protocol]
        number = 58 if number == 1 and packet.version == 6 else number
        if number and number != packet.protocol:
            return False
        if number in (1, 58):
            if rule.port_min not in (None, packet.first) or rule.port_max not in (None, packet.second):
                return False
        elif None not in (rule.port_min, rule.port_max) and packet.second not in range(
            rule.port_min, rule.port_max + 1
        ):
            return False
    cidrs = sets[rule.remote_set] if rule.remote_set else rule.remote
    return cidrs is None or any(
        ipaddress.ip_address(packet.remote) in ipaddress.ip_network(cidr, strict=False) for cidr in cidrs
    )


# --- what Open vSwitch makes of the flows -----------------------------------------------------------------------------

_KINDS = {"ip": (4, None), "ipv6": (6, None), "tcp": (4, 6), "tcp6": (6, 6), "udp": (4, 17), "udp6": (6, 17),
          "icmp": (4, 1), "icmp6": (6, 58), "sctp": (4, 132), "sctp6": (6, 132)}  # fmt: skip


def matches(fields: list[str], packet: Packet, group: int, conjunction: int | None) -> bool:
    for field in fields:
        name, _, value = field.partition("=")
        if name in _KINDS:
            version, protocol = _KINDS[name]
            ok = version == packet.version and protocol in (None, packet.protocol)
        elif name == "reg8":
            ok = int(value) == group
        elif name == "conj_id":
            ok = int(value) == conjunction
        elif name == "nw_proto":
            ok = int(value) == packet.protocol
        elif name in ("nw_src", "ipv6_src", "nw_dst", "ipv6_dst"):
            ok = ipaddress.ip_address(packet.remote) in ipaddress.ip_network(value)
        elif name in ("icmp_type", "icmp_code"):
            ok = int(value) == (packet.first if name == "icmp_type" else packet.second)
        elif name == "tp_dst":
            number, _, mask = value.partition("/")
            ok = packet.second & (int(mask, 0) if mask else 0xFFFF) == int(number, 0)
        else:
            raise AssertionError(f"unknown field {field}")
        if not ok:
            return False
    return True


def judge(flows: list[str], packet: Packet, groups: list[int]) -> bool:
    """Tables 13 and 43 as ovs-actions(7) describes them, looked up once for each group; whether reg9 is set."""
    table = "table=43" if packet.direction == "ingress" else "table=13"
    parsed = []
    for flow in flows:
        match, _, action = flow.partition(" actions=")
        where, priority, *fields = match.split(",")
        if where == table:
            parsed.append((int(priority.partition("=")[2]), fields, action))
    assert len({(p, tuple(sorted(f))) for p, f, _ in parsed}) == len(parsed), "two flows with one match: one is lost"

    def look(group: int, conjunction: int | None) -> bool:
        found = [(p, a) for p, f, a in parsed if matches(f, packet, group, conjunction)]
        for level in sorted({p for p, _ in found}, reverse=True):
            actions = [a for p, a in found if p == level]
            if any(a == "set_field:1->reg9" for a in actions):
                return True
            dimensions: dict[str, set[str]] = {}
            for action in actions if conjunction is None else ():
                id, _, part = action.removeprefix("conjunction(").removesuffix(")").partition(",")
                dimensions.setdefault(id, set()).add(part)
            for id, parts in dimensions.items():
                if parts == {"1/2", "2/2"}:
                    return look(group, int(id))
        return False

    return any(look(group, None) for group in groups)


# --- agreement --------------------------------------------------------------------------------------------------------


@st.composite
def rules(draw: st.DrawFn) -> RuleSpec:
    protocol = draw(st.sampled_from([None, "tcp", "udp", "icmp", "icmpv6", "6", "17", "0", "vrrp", "sctp"]))
    low = high = None
    if protocol in ("tcp", "udp", "6", "17", "sctp") and draw(st.booleans()):
        low, high = sorted(draw(st.tuples(st.integers(0, 20), st.integers(0, 65535))))
    if protocol in ("icmp", "icmpv6") and draw(st.booleans()):
        low, high = draw(st.integers(0, 3)), draw(st.sampled_from([None, 0, 1]))
    name = draw(st.sampled_from([None, None, "a", "b", "c"]))
    prefix = draw(st.sampled_from(NETS)) if name is None and draw(st.booleans()) else None
    six = ":" in prefix if prefix else draw(st.booleans()) or protocol == "icmpv6"
    if protocol == "icmpv6" and not six:
        protocol = "icmp"
    return RuleSpec(
        direction=draw(st.sampled_from(["ingress", "egress"])), ethertype="IPv6" if six else "IPv4", protocol=protocol,
        port_min=low, port_max=high, remote=(prefix,) if prefix else None, remote_set=name,
    )  # fmt: skip


@st.composite
def packets(draw: st.DrawFn) -> Packet:
    remote = draw(st.sampled_from(FOUR + SIX))
    protocol = draw(st.sampled_from([6, 17, 1 if "." in remote else 58, 112, 132]))
    limit = 3 if protocol in (1, 58) else 65535
    near = st.integers(0, min(limit, 25)) | st.integers(0, limit)
    return Packet(draw(st.sampled_from(["ingress", "egress"])), remote, protocol, draw(near), draw(near))


@given(
    st.lists(st.lists(rules(), max_size=6), min_size=1, max_size=3),
    st.fixed_dictionaries({name: st.lists(st.sampled_from(NETS), max_size=4).map(tuple) for name in "abc"}),
    st.lists(packets(), min_size=1, max_size=20),
    st.data(),
)
def test_flows_let_through_what_the_rules_say(
    groups: list[list[RuleSpec]], sets: dict[str, tuple[str, ...]], sent: list[Packet], data: st.DataObject
) -> None:
    numbers = {"a": 1, "b": 2, "c": 60_000 - 1}
    flows = [
        flow
        for name, cidrs in sets.items()
        for flow in ovs_security.set_flows(
            AddressSetSpec(id=name, addresses=cidrs, directions=("egress", "ingress")), numbers[name]
        )
    ]
    for number, content in enumerate(groups, 1):
        flows += ovs_security.group_flows(SecurityGroupSpec(id=str(number), rules=tuple(content)), number, numbers)
    mine = data.draw(st.lists(st.integers(1, len(groups)), unique=True))
    for packet in sent:
        wanted = any(lets(rule, packet, sets) for number in mine for rule in groups[number - 1])
        assert judge(flows, packet, mine) == wanted, packet
