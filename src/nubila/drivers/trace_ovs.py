"""What Open vSwitch says a packet would meet (``ofproto/trace``), in words. Pure: from text to steps.

Nothing is sent: ovs-vswitchd runs the pipeline on paper, each time the packet comes back from connection tracking as
the first one of a new connection. Tables and registers: ovs_flows.py, ovs_security.py.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from msgspec import Struct

TABLES = {
    0: "which network does it belong to?", 10: "may the port use these addresses?", 11: "may it be sent?",
    12: "it may be sent", 13: "rules for sending", 30: "to whom?", 31: "where was the address seen?",
    32: "to what was seen, else everywhere", 40: "what is it?", 41: "may it be received?", 42: "it may be received",
    43: "rules for receiving", 60: "deliver",
}  # fmt: skip
STOPS = {
    0: "the switch takes nothing from this port: it is not wired, or administratively down",
    10: "the port may not use these addresses (port security): they are neither its own nor allowed pairs",
    11: "no security group rule of the sending port lets it out",
    12: "no security group rule of the sending port lets it out",
    13: "no security group rule of the sending port lets it out",
    30: "nobody on this network has the address it is sent to",
    32: "nobody on this network has the address it is sent to",
    40: "the receiving port takes no packets of this kind",
    41: "no security group rule of the receiving port lets it in",
    42: "no security group rule of the receiving port lets it in",
    43: "no security group rule of the receiving port lets it in",
    60: "there is no port to deliver it to",
}
_TABLE = re.compile(r"^(\s*)(\d+)\. (.*?)(?:, priority (\d+))?(?:, cookie (0x[0-9a-f]+))?$")
_OUTPUT = re.compile(r"output:(\d+)$|-> output port is (\d+)$|^\s+(LOCAL)$|output:(LOCAL)$")


class Passed(Struct, frozen=True, kw_only=True):
    """One table of one bridge that the packet went through."""

    bridge: str
    table: int
    match: str
    actions: tuple[str, ...]
    depth: int = 0

    @property
    def says(self) -> str:
        """In words."""
        meaning = TABLES.get(self.table, "") if self.bridge.startswith("br-int") else ""
        rule = self.match if self.match and not self.match.startswith("priority ") else "anything else"
        shown = [action for action in self.actions if not action.startswith("->")]
        if any(action.startswith("ct(") for action in shown):  # the copy goes on, what is dropped is the original
            shown = [action for action in shown if action != "drop"]
        acts = ", ".join(shown)
        return f"table {self.table}{f' ({meaning})' if meaning else ''}: {rule} -> {acts or 'nothing'}"


class Outcome(Struct, frozen=True, kw_only=True):
    """Where a packet went. ``outputs``: (bridge, OpenFlow port number or "LOCAL")."""

    passed: tuple[Passed, ...]
    outputs: tuple[tuple[str, str], ...]
    stop: str = ""
    floods: bool = False


def flow(in_port: str, packet: dict[str, str]) -> str:
    """The packet as ofproto/trace wants it. Keys: smac dmac src dst protocol sport dport vlan."""
    six = ":" in packet["src"]
    fields = [f"in_port={in_port}", f"dl_src={packet['smac']}", f"dl_dst={packet['dmac']}"]
    if packet.get("vlan"):
        fields.append(f"dl_vlan={packet['vlan']}")
    protocol = packet.get("protocol", "icmp")
    fields.append({"icmp": "icmp6" if six else "icmp"}.get(protocol, protocol + ("6" if six else "")))
    names = ("ipv6_src", "ipv6_dst") if six else ("nw_src", "nw_dst")
    fields += [f"{names[0]}={packet['src']}", f"{names[1]}={packet['dst']}", "nw_ttl=64"]
    if protocol == "icmp":
        fields += ["icmp_type=128" if six else "icmp_type=8", "icmp_code=0"]
    else:
        fields += [f"{protocol}_src={packet.get('sport') or 40000}", f"{protocol}_dst={packet.get('dport') or 80}"]
    return ",".join(fields)


def read(text: str) -> Outcome:
    """What ofproto/trace printed. A table that another one looks into is indented; that one's actions go on below."""
    bridge, floods = "", False
    outputs: list[tuple[str, str]] = []
    seen: list[tuple[str, int, str, list[str], int]] = []  # bridge, table, match, actions, depth
    open_: list[tuple[str, int, str, list[str], int]] = []
    for line in text.splitlines():
        named = re.match(r'bridge\("([^"]+)"\)', line)
        head = _TABLE.match(line)
        indent = len(line) - len(line.lstrip())
        if named or line.startswith(("Final flow", "Flow:", "=====")):
            open_.clear()
            bridge = named[1] if named else bridge
        elif head and (head[4] or head[3]):
            open_ = [one for one in open_ if one[4] < indent]
            open_.append((bridge, int(head[2]), head[3], [], len(head[1])))
            seen.append(open_[-1])
        elif open_ and line.strip():
            open_ = [one for one in open_ if one[4] == 0 or one[4] < indent]
            open_[-1][3].append(line.strip())
            out = _OUTPUT.search(line)
            if out:
                outputs.append((bridge, next(part for part in out.groups() if part)))
            floods = floods or "flooding" in line
    passed = tuple(Passed(bridge=b, table=t, match=m, actions=tuple(a), depth=d) for b, t, m, a, d in seen)
    found = tuple(dict.fromkeys(outputs))
    return Outcome(passed=passed, outputs=found, floods=floods, stop="" if found or floods else why(passed))


def why(passed: Sequence[Passed]) -> str:
    """Why the packet ended after these tables."""
    inside = [one for one in passed if one.bridge.startswith("br-int")]
    last = max((i for i, one in enumerate(inside) if one.depth == 0), default=None)
    if last is None:
        return "the switch dropped it"
    return STOPS.get(inside[last].table, f"table {inside[last].table} dropped it")
