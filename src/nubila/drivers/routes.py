"""Routes and routing rules of a router's namespace, made exactly what a spec asks for.

Several next hops of one destination share its traffic (ECMP). Besides the main table there is one for each way out
that answers must go back by: a rule sends there what a mark or a source address says belongs to it, after the main
table was asked for everything but its default routes. Only rules with our priorities and our tables are touched.
"""

from __future__ import annotations

import errno
import ipaddress
import socket
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from msgspec import Struct
from pyroute2.netlink.exceptions import NetlinkError

from nubila.drivers import programs
from nubila.drivers.links import Device, Net

MAIN, FIRST_TABLE, LAST_TABLE = 254, 100, 199
MARK_MASK = 0xFF00  # of fwmark and of the connection mark: which way a connection came in by
_NEAR, _MARKED, _FROM = 1000, 1001, 1002  # our priorities
_ONLINK, _RTN_UNICAST, _NTF_PROXY, _LINK = 4, 1, 8, 253
_ANYWHERE = {4: "0.0.0.0/0", 6: "::/0"}
_FAMILIES = {socket.AF_INET: 4, socket.AF_INET6: 6}
_GONE = (errno.ESRCH, errno.ENOENT, errno.ENODEV, errno.EADDRNOTAVAIL)


class Way(Struct, frozen=True, kw_only=True):
    """One way out: a table with a default route, and what must take it."""

    hops: tuple[str, ...]
    device: str = ""  # named: the hop is reached by it though no subnet says so
    near: tuple[str, ...] = ()  # destinations that ``device`` reaches directly
    mark: int = 0  # connections that came in by this way; 0 = none are marked
    sources: tuple[str, ...] = ()  # addresses whose traffic leaves by it


def default(hop: str) -> tuple[str, str]:
    """The default route by a next hop."""
    return _ANYWHERE[6 if ":" in hop else 4], hop


def apply(net: Net, routes: Iterable[tuple[str, str]], ways: Sequence[Way] = ()) -> list[str]:
    """Make main table, ways and rules exactly these; returns one sentence per route that the kernel refused."""
    wanted: dict[tuple[int, str], tuple[tuple[str, ...], str]] = {}
    for to, hop in routes:
        key = (MAIN, str(ipaddress.ip_network(to, strict=False)))
        hops = wanted.get(key, ((), ""))[0]
        wanted[key] = (tuple(sorted({*hops, hop})), "")
    for number, way in enumerate(ways):
        for version in (4, 6):
            hops = tuple(sorted(h for h in way.hops if (":" in h) == (version == 6)))
            if hops:
                wanted[FIRST_TABLE + number, _ANYWHERE[version]] = (hops, way.device)
        for to in way.near:
            wanted[FIRST_TABLE + number, str(ipaddress.ip_network(to, strict=False))] = ((), way.device)
    refused = _routes(net, wanted)
    _rules(net, ways)
    return refused


def _routes(net: Net, wanted: Mapping[tuple[int, str], tuple[tuple[str, ...], str]]) -> list[str]:
    present = _present(net)
    for key in present.keys() - wanted.keys():
        table, to = key
        if not present[key]:
            _gone_is_fine(lambda to=to, table=table: net.route.route("del", dst=to, table=table))
        for hop in present[key]:  # IPv6 forgets the hops of one destination one by one
            _gone_is_fine(lambda to=to, hop=hop, table=table: net.route.route("del", dst=to, gateway=hop, table=table))
            if ":" not in hop and len(present[key]) > 1:
                _gone_is_fine(lambda to=to, table=table: net.route.route("del", dst=to, table=table))
                break
    refused = []
    for (table, to), (hops, device) in sorted(wanted.items()):
        if present.get((table, to)) == hops:
            continue
        more: dict[str, Any] = {"table": table}
        if not hops:
            net.route.route("replace", dst=to, oif=net.must(device).index, scope=_LINK, **more)
            continue
        if device:
            more.update(oif=net.must(device).index, flags=_ONLINK)
        try:
            if len(hops) == 1:
                net.route.route("replace", dst=to, gateway=hops[0], **more)
            else:
                net.route.route("replace", dst=to, multipath=[{"gateway": hop} for hop in hops], **more)
        except NetlinkError as refusal:
            refused.append(f"The route to {to} by {' and '.join(hops)} was refused: {refusal}.")
    return refused


def _present(net: Net) -> dict[tuple[int, str], tuple[str, ...]]:
    found: dict[tuple[int, str], set[str]] = {}
    for family, version in _FAMILIES.items():
        for message in net.route.get_routes(family=family):
            table = message.get_attr("RTA_TABLE") or message["table"]
            if message["type"] != _RTN_UNICAST or (table != MAIN and not FIRST_TABLE <= table <= LAST_TABLE):
                continue
            hops = {message.get_attr("RTA_GATEWAY")}
            hops |= {one.get_attr("RTA_GATEWAY") for one in message.get_attr("RTA_MULTIPATH") or ()}
            hops.discard(None)
            if hops or table != MAIN:
                to = message.get_attr("RTA_DST")
                to = f"{to}/{message['dst_len']}" if to else _ANYWHERE[version]
                found.setdefault((table, to), set()).update(hops)
    return {key: tuple(sorted(hops)) for key, hops in found.items()}


# --- rules --------------------------------------------------------------------------------------------------------

_Rule = tuple[int, int, int, int, str]
"""(family, priority, table, mark, source)"""


def _rules(net: Net, ways: Sequence[Way]) -> None:
    wanted: set[_Rule] = set()
    for number, way in enumerate(ways):
        table = FIRST_TABLE + number
        for family, version in _FAMILIES.items():
            if not any((":" in hop) == (version == 6) for hop in way.hops):
                continue
            wanted.add((family, _NEAR, MAIN, 0, ""))
            if way.mark:
                wanted.add((family, _MARKED, table, way.mark, ""))
            for source in way.sources:
                if (":" in source) == (version == 6):
                    wanted.add((family, _FROM, table, 0, source))
    present = set(_present_rules(net))
    for rule in present - wanted:
        _gone_is_fine(lambda rule=rule: net.route.rule("del", **_spelled(rule)))
    for rule in sorted(wanted - present):
        net.route.rule("add", **_spelled(rule))


def _present_rules(net: Net) -> Iterable[_Rule]:
    for family in _FAMILIES:
        for message in net.route.get_rules(family=family):
            priority = message.get_attr("FRA_PRIORITY") or 0
            if _NEAR <= priority <= _FROM:
                source = message.get_attr("FRA_SRC")
                mark = message.get_attr("FRA_FWMARK") or 0
                table = message.get_attr("FRA_TABLE") or message["table"]
                yield (int(family), priority, table, mark, f"{source}/{message['src_len']}" if source else "")


def _spelled(rule: _Rule) -> dict[str, Any]:
    family, priority, table, mark, source = rule
    more: dict[str, Any] = {"family": family, "priority": priority, "table": table}
    if priority == _NEAR:
        more["suppress_prefixlen"] = 0
    if mark:
        more.update(fwmark=mark, fwmask=MARK_MASK)
    if source:
        ip, _, length = source.partition("/")
        more.update(src=ip, src_len=int(length))
    return more


def _gone_is_fine(act: Any) -> None:
    try:
        act()
    except NetlinkError as refusal:
        if refusal.code not in _GONE:
            raise


def proxy(net: Net, device: Device, wanted: Iterable[str]) -> list[str]:
    """Make the IPv6 addresses that a device answers for (NDP proxy) exactly these; returns the new ones.

    To be called in the device's namespace: pyroute2 cannot ask for such entries, so ip(8) is.
    """
    target = {str(ipaddress.ip_address(address)) for address in wanted}
    argv = ["ip", "-6", "neigh", "show", "proxy", "dev", device.name]
    said = programs.run(argv, package="iproute2", timeout_s=5.0)
    present = {line.split()[0] for line in said.splitlines() if line.strip()}
    for gone in present - target:
        _gone_is_fine(lambda gone=gone: net.route.neigh("del", dst=gone, ifindex=device.index, flags=_NTF_PROXY))
    for new in sorted(target - present):
        net.route.neigh("add", dst=new, ifindex=device.index, flags=_NTF_PROXY)
    return sorted(target - present)
