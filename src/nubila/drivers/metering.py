"""Counters of routers: packets and bytes of each metering label, under the inside addresses.

Model: one nft table in the router's namespace with a named counter per label. The table is changed in place, in one
transaction, and never emptied: a counter lives as long as its label is here, whatever rules come and go and however
often the table that translates is loaded. Packets are judged on their way through (the forward hook), after incoming
ones got their inside address and before outgoing ones lose it. A packet counts once for a label, at most.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence

from nubila.core.ports import LabelRule, LabelSpec, MeterCount
from nubila.drivers import nft

TABLE = "nubila-metering"


def ensure(labels: Sequence[LabelSpec], outside: Sequence[str]) -> None:
    """Have exactly these labels counted in the namespace this thread is in; ``outside`` are the gateways' devices."""
    if labels:
        nft.load(script(labels, outside, [one.label_id for one in counts()]))
    elif ("inet", TABLE) in nft.tables():
        nft.remove_table("inet", TABLE)


def script(labels: Sequence[LabelSpec], outside: Sequence[str], known: Iterable[str]) -> str:
    """What brings the table to these labels; ``known`` are those it has."""
    wanted = [label.id for label in labels]
    gone = [id for id in known if id not in wanted]
    lines = [
        f"add table inet {TABLE}",
        f"add chain inet {TABLE} forward {{ type filter hook forward priority 10; }}",
        f"flush chain inet {TABLE} forward",
    ]
    for id in gone:
        lines += [f"flush chain inet {TABLE} c-{id}", f"delete chain inet {TABLE} c-{id}"]
        lines.append(f"delete counter inet {TABLE} l-{id}")
    for label in labels:
        if label.id not in known:
            lines.append(f"add counter inet {TABLE} l-{label.id}")
        lines += [f"add chain inet {TABLE} c-{label.id}", f"flush chain inet {TABLE} c-{label.id}"]
        if outside:
            ordered = sorted(label.rules, key=lambda rule: not rule.excluded)
            lines += [f"add rule inet {TABLE} c-{label.id} {_rule(rule, label.id, outside)}" for rule in ordered]
        lines.append(f"add rule inet {TABLE} forward jump c-{label.id}")
    return "\n".join([*lines, ""])


def _rule(rule: LabelRule, label_id: str, outside: Sequence[str]) -> str:
    devices = ", ".join(f'"{device}"' for device in outside)
    parts = [f"{'iifname' if rule.direction == 'ingress' else 'oifname'} {{ {devices} }}"]
    for field, prefix in (("saddr", rule.source), ("daddr", rule.destination)):
        if prefix:
            family = "ip6" if ":" in prefix else "ip"
            everyone = prefix.endswith("/0")
            parts.append(f"meta nfproto {'ipv6' if family == 'ip6' else 'ipv4'}" if everyone
                         else f"{family} {field} {prefix}")  # fmt: skip
    return " ".join([*parts, *([] if rule.excluded else [f"counter name l-{label_id}"]), "return"])


def counts() -> tuple[MeterCount, ...]:
    """What has been counted in the namespace this thread is in."""
    if ("inet", TABLE) not in nft.tables():
        return ()
    found = json.loads(nft.listing(["counters", "table", "inet", TABLE]))["nftables"]
    return tuple(
        MeterCount(label_id=one["counter"]["name"].removeprefix("l-"), packets=one["counter"]["packets"],
                   bytes=one["counter"]["bytes"])
        for one in found if "counter" in one
    )  # fmt: skip
