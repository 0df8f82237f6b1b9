"""Private VLANs as OpenFlow: who may reach a port that does not reach everybody.

Frames to such a port pass two tables before its own filter: 50 notes in reg12 which role the sender has (0: no role, it
is promiscuous), 51 lets pass promiscuous senders and those of the same community. Anti-spoofing makes the sender's MAC
as good as its name, on every host.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from nubila.core.ports import Restricted

_ISOLATED = 1


def static_flows() -> list[str]:
    """What holds in every network."""
    return ["table=50,priority=0 actions=resubmit(,40)", "table=51,priority=0 actions=drop"]


def roles(restricted: Iterable[Restricted]) -> dict[str, int]:
    """MAC -> role: 1 is isolated, each community has a number of its own."""
    restricted = list(restricted)
    names = sorted({one.community for one in restricted} - {""})
    numbers = {"": _ISOLATED, **{name: number for number, name in enumerate(names, _ISOLATED + 1)}}
    return {mac.lower(): numbers[one.community] for one in restricted for mac in one.macs}


def flows(vlan: int, known: Mapping[str, int], members: Iterable[tuple[int, Sequence[str]]]) -> list[str]:
    """One network's flows: ``known`` from :func:`roles`, ``members`` are (OpenFlow port, MACs) of its ports here."""
    if not known:
        return []
    found = [f"table=50,priority=5,reg5={vlan} actions=set_field:0->reg12,resubmit(,51)"]
    found.append(f"table=51,priority=10,reg5={vlan},reg12=0 actions=resubmit(,40)")
    for mac, role in sorted(known.items()):
        found.append(f"table=50,priority=10,reg5={vlan},dl_src={mac} actions=set_field:{role}->reg12,resubmit(,51)")
    for ofport, macs in members:
        role = role_of(known, macs)
        if role > _ISOLATED:
            found.append(f"table=51,priority=10,reg5={vlan},reg7={ofport},reg12={role} actions=resubmit(,40)")
    return found


def role_of(known: Mapping[str, int], macs: Iterable[str]) -> int:
    """The role of the port that has these MACs; 0 is promiscuous."""
    return max((known.get(mac.lower(), 0) for mac in macs), default=0)
