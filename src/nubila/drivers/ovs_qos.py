"""QoS of guests' ports in Open vSwitch: OpenFlow meters, and marks set where packets enter.

Goal: what a :class:`QosSpec` says holds for every packet of a port, on the kernel's and on the userspace datapath (a
queueing discipline on the tap would not see what the userspace datapath reads). Model: a port has up to four meters,
numbered from its OpenFlow number; packets from the guest meet theirs in table 0 (a second one in table 1), packets to
it in table 60 (61), after every filter, so that what is refused costs it nothing. The database row of the interface
remembers which meters there are: a restarted ovs-vswitchd has forgotten them and gets them back before the flows that
name them. Changing a rate changes the meter and no flow.

Source: OpenFlow 1.3 section 5.7 (meters), ovs-ofctl(8) add-meter, RFC 2474 (DSCP).
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping, Sequence

from nubila.core.ports import QosSpec, TryAgain
from nubila.drivers.ovs_daemons import Daemons

METERS = "nubila-meters"
_OUT, _IN = 0, 2  # first meter of each direction: from the guest, to it
FRAMES_KBIT = 25  # two full frames: a bucket smaller than a frame lets nothing through


def meters(spec: QosSpec | None, ofport: int) -> dict[int, str]:
    """What each meter of a port says, by number."""
    if spec is None:
        return {}
    found: dict[int, str] = {}
    for first, kbps, burst_kbit, pps, burst_packets in (
        (_OUT, spec.egress_kbps, spec.egress_burst_kbit, spec.egress_pps, spec.egress_burst_packets),
        (_IN, spec.ingress_kbps, spec.ingress_burst_kbit, spec.ingress_pps, spec.ingress_burst_packets),
    ):
        if kbps:
            found[_number(ofport, first)] = _meter("kbps", kbps, max(burst_kbit, FRAMES_KBIT))
        if pps:
            found[_number(ofport, first + 1)] = _meter("pktps", pps, max(burst_packets, 1))
    return found


def _number(ofport: int, place: int) -> int:
    return ofport * 4 + place  # the userspace datapath has 2^18 meters, and port numbers end below 65280


def _meter(unit: str, rate: int, burst: int) -> str:
    return f"{unit},burst,stats,bands=type=drop,rate={rate},burst_size={burst}"


def shaped(flows: Sequence[str], spec: QosSpec | None, ofport: int) -> list[str]:
    """The flows of a port with its limits and mark put in: its flows of table 0 are where it enters."""
    if spec is None or not flows:
        return list(flows)
    known = meters(spec, ofport)
    mine = {first: [n for n in (_number(ofport, first), _number(ofport, first + 1)) if n in known]
            for first in (_OUT, _IN)}  # fmt: skip
    out: list[str] = []
    for flow in flows:
        out += _entry(flow, spec, mine[_OUT], ofport) if flow.startswith("table=0,") else [flow]
    where = f"priority=10,reg7={ofport}"
    if mine[_IN]:
        out += _chain(60, 61, where, where, mine[_IN], f"output:{ofport}")
    return list(dict.fromkeys(out))  # several ways in go on as one in table 1


def _entry(flow: str, spec: QosSpec, numbers: Sequence[int], ofport: int) -> list[str]:
    match, _, actions = flow.removeprefix("table=0,").partition(" actions=")
    last, table = match, 0
    out = []
    if len(numbers) == 2:  # an instruction list has room for one
        out.append(f"table=0,{match} actions=meter:{numbers[0]},resubmit(,1)")
        last, table, numbers = f"priority=100,in_port={ofport}", 1, numbers[1:]
    meter = f"meter:{numbers[0]}," if numbers else ""
    out.append(f"table={table},{last} actions={meter}{actions}")
    if spec.dscp is not None:
        for family in ("ip", "ipv6"):
            marked = last.replace("priority=100", f"priority=110,{family}")
            out.append(f"table={table},{marked} actions={meter}mod_nw_tos:{spec.dscp << 2},{actions}")
    return out


def _chain(table: int, following: int, match: str, again: str, numbers: Sequence[int], end: str) -> list[str]:
    if len(numbers) == 1:
        return [f"table={table},{match} actions=meter:{numbers[0]},{end}"]
    return [
        f"table={table},{match} actions=meter:{numbers[0]},resubmit(,{following})",
        f"table={following},{again} actions=meter:{numbers[1]},{end}",
    ]


# --- the switch's meters ----------------------------------------------------------------------------------------------


def remembered(ids: Mapping[str, str]) -> dict[int, str]:
    """The meters that an interface's external_ids say it has."""
    return {int(number): text for number, text in json.loads(ids.get(METERS) or "{}").items()}


def encode(known: Mapping[int, str]) -> str:
    """For external_ids."""
    return json.dumps({str(number): known[number] for number in sorted(known)}) if known else ""


def ensure(daemons: Daemons, bridge: str, wanted: Mapping[int, str], known: Mapping[int, str]) -> None:
    """Have these meters; ``known`` are believed to be there. Flows may name them afterwards."""
    for number, text in wanted.items():
        if known.get(number) == text:
            continue
        first, second = ("mod-meter", "add-meter") if number in known else ("add-meter", "mod-meter")
        try:
            daemons.openflow(first, bridge, f"meter={number},{text}")
        except TryAgain:  # it was there, or was not
            daemons.openflow(second, bridge, f"meter={number},{text}")


def drop(daemons: Daemons, bridge: str, numbers: Sequence[int]) -> None:
    """Forget meters, and with them every flow that names one; absent is success."""
    for number in numbers:
        with contextlib.suppress(TryAgain):
            daemons.openflow("del-meter", bridge, f"meter={number}")
