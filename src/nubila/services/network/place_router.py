"""Which network hosts can carry a router, whatever its kind, and in words why others cannot.

A router's host has to have every network of the router: a switch that can carry it, a segment of it, and where the
router has addresses on a segment (routed networks), that one. It should have the physical network of one that has a
single segment, too: where no host has, the router is placed all the same, and its host says itself what it lacks.
Highly available routers have their hidden network besides, and addresses that wait for a host (``ip_allocation``
deferred) come from the segment that most of their hosts use.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from nubila.core import hosts
from nubila.core.db import Reader, Tx
from nubila.core.faults import conflict
from nubila.services.network import asks, bridged, dvr_hosts, fixed, l2pop, look, network_segments, ports
from nubila.services.network.asks import ROUTER_OWNERS
from nubila.services.network.ha_tables import HA_ROUTER
from nubila.services.network.kinds import Network, Subnet
from nubila.services.network.kinds_port import Port
from nubila.services.network.tables import IP_ALLOCATION

Row = dict[str, Any]
NEVER, LAME, WHOLE = 0, 1, 2
"""How well a host can carry a router: not at all, but for a physical network that it lacks, entirely."""
NAMED = 5
"""Hosts that a reason names."""
OTHER = "take a host with Open vSwitch"
_P, _A, _S = Port.table.c, IP_ALLOCATION.c, Subnet.table.c
_MINE = sa.and_(_P.device_id == sa.bindparam("router"), _P.device_owner.in_(ROUTER_OWNERS))
_NEEDS = (
    sa.select(_P.network_id, _S.segment_id)
    .select_from(
        Port.table.outerjoin(IP_ALLOCATION, _A.port_id == _P.id).outerjoin(Subnet.table, _S.id == _A.subnet_id)
    )
    .where(_MINE)
    .distinct()
)
_HA_NETWORK = sa.select(HA_ROUTER.c.network_id).where(HA_ROUTER.c.router_id == sa.bindparam("router"))
_WAITING = (
    sa.select(Port.table)
    .where(_MINE, _P.ip_allocation == network_segments.DEFERRED, ~sa.exists().where(_A.port_id == _P.id))
    .order_by(_P.created_at, _P.id)
)


@dataclass(frozen=True)
class Need:
    """A network that a router's host has to have, by the segment named when it has addresses there."""

    network: Mapping[str, Any]
    segment: str = ""


def needs(reader: Reader, row: Mapping[str, Any]) -> list[Need]:
    """What a host must have for a router; with ``_gateway``, what its creation asks for, that as well."""
    pairs = [(net, segment or "") for net, segment in reader.rows(_NEEDS, {"router": row["id"]})]
    hidden = reader.scalar(_HA_NETWORK, {"router": row["id"]}) if row["ha"] else None
    if hidden is not None:
        pairs.append((hidden, ""))
    wish = row.get("_gateway")
    if wish:
        named = {one.get("subnet_id") for one in wish["ips"] or ()}
        at = {s["segment_id"] or "" for s in look.subnets(reader, wish["network"]["id"]) if s["id"] in named}
        pairs += [(wish["network"]["id"], segment) for segment in at or {""}]
    return [Need(net, segment) for id, segment in sorted(set(pairs)) if (net := look.row(reader, Network, id))]


# --- one host -------------------------------------------------------------------------------------------------------


def lack(reader: Reader, row: Mapping[str, Any], host: Row, wanted: Sequence[Need]) -> tuple[int, str]:
    """How well the host can carry the router, and in words what it lacks; "" when nothing."""
    if row["distributed"] and l2pop.switch(host) == l2pop.LINUX_BRIDGE:
        return NEVER, f"Linux bridges have no distributed routers, {OTHER}"
    lame = ""
    for one in wanted:
        net = one.network
        switch = bridged.lacks(reader, host, net["id"])
        why = f"{switch}, {OTHER}" if switch else unreached(reader, host, one)
        if why:
            return NEVER, f"network {net['id']}: {why}"
        if not net["several"] and not dvr_hosts.reaches(host, net):
            lame = f"network {net['id']}: {_bridge([net['physical_network']])}"
    return (LAME if lame else WHOLE), lame


def unreached(reader: Reader, host: Row, one: Need) -> str:
    """What a host lacks to reach a network with several segments; "" for all others, and when it lacks nothing."""
    net = one.network
    if not net["several"]:
        return ""
    used = network_segments.by_host(reader, net["id"], [host]).get(host["name"])
    if used is None:
        wanted = [s for s in network_segments.of(reader, net["id"]) if one.segment in ("", s["id"])]
        names = {s["physical_network"] for s in wanted if s["physical_network"]}
        return _bridge(names) if names else "no segment, make one"
    return f"not on segment {one.segment}" if one.segment and used["id"] != one.segment else ""


def _bridge(names: Iterable[str]) -> str:
    return f"no bridge to {' or '.join(sorted(names))} (--physical)"


def rank(reader: Reader, row: Mapping[str, Any], host: str) -> int:
    """How well a host can carry the router."""
    found = hosts.get(reader, host)
    return lack(reader, row, found, needs(reader, row))[0] if found is not None else WHOLE


def better(reader: Reader, row: Mapping[str, Any], than: int, known: Iterable[Row]) -> bool:
    """Whether one of the hosts can carry the router better than so."""
    wanted = needs(reader, row)
    return any(lack(reader, row, host, wanted)[0] > than for host in known)


# --- several --------------------------------------------------------------------------------------------------------


def able(reader: Reader, row: Mapping[str, Any], known: Iterable[Row], *, least: int = 1) -> list[Row]:
    """Those of the hosts that can carry the router.

    Those without a physical network it needs are among them only when fewer than ``least`` have all.
    """
    wanted = needs(reader, row)
    ranked = [(lack(reader, row, host, wanted)[0], host) for host in known]
    best = [host for rank, host in ranked if rank == WHOLE]
    return best if len(best) >= least else [host for rank, host in ranked if rank > NEVER]


def whole(reader: Reader, row: Mapping[str, Any], known: Iterable[Row]) -> list[Row]:
    """Those of the hosts that lack nothing."""
    return able(reader, row, known, least=0)


def together(reader: Reader, row: Mapping[str, Any], known: list[Row], holder: str, most: int) -> list[Row]:
    """Those of the hosts that can have the router's addresses at the same time.

    All of them, unless addresses wait for a host: then those on the segments that most hosts use, up to ``most``; of
    as many, those of the router's ``holder``.
    """
    open_ = sorted({p["network_id"] for p in reader.all(_WAITING, {"router": row["id"]})})
    if not open_ or not known:
        return known
    used = [network_segments.by_host(reader, id, known) for id in open_]
    sets: dict[tuple[str, ...], list[Row]] = {}
    for host in known:
        sets.setdefault(tuple(by[host["name"]]["id"] for by in used), []).append(host)
    return max(sets.values(), key=lambda s: (min(len(s), most), any(h["name"] == holder for h in s), len(s)))


def reason(reader: Reader, row: Mapping[str, Any], known: Sequence[Row]) -> str:
    """Why none, or not more, of these network hosts carry the router, and what to do about it; "" when they can."""
    return shortage(reader, row, known, needs(reader, row), "L3")


def shortage(reader: Reader, row: Mapping[str, Any], known: Sequence[Row], wanted: Sequence[Need], agent: str) -> str:
    """What hosts lack of certain networks, those that lack the same together."""
    if not known:
        return f"no network host is up (openstack network agent list): start one, or enable its {agent} agent"
    found: dict[str, list[str]] = {}
    for host in known:
        if why := lack(reader, row, host, wanted)[1]:
            found.setdefault(why, []).append(host["name"])
    return "; ".join(f"{_names(names)}: {why}" for why, names in found.items())


def _names(names: list[str]) -> str:
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return ", ".join(names[:NAMED]) + more


def refuse_unfit(reader: Reader, row: Mapping[str, Any], host: str) -> None:
    """409 when an operator gives the router to a host that can never carry it."""
    found = hosts.get(reader, host)
    rank, why = lack(reader, row, found, needs(reader, row)) if found is not None else (WHOLE, "")
    if rank == NEVER:
        text = f"Failed scheduling router {row['id']} to the L3 agent of {host}: {why}; choose another agent."
        raise conflict(text, "RouterSchedulingFailed")


# --- addresses and bindings -----------------------------------------------------------------------------------------


def first_host(reader: Reader, row: Mapping[str, Any], network_id: str) -> str:
    """Where a new port of the router is bound before it is known whether the router stays there.

    Nowhere on a network whose segments differ by host: a user who adds it has not chosen the host.
    """
    return "" if network_segments.with_several(reader, [network_id]) else row["host"] or ""


def give_addresses(tx: Tx, row: Mapping[str, Any], host: str) -> None:
    """Ports whose addresses wait for a host get those of this host's segments."""
    for port in tx.all(_WAITING, {"router": row["id"]}):
        there = {**port, "host_id": host}
        fixed.claim(tx, there, fixed.wishes(tx, there, None))
        asks.dhcp(tx, port["network_id"])


def bind(tx: Tx, row: Mapping[str, Any], port: Row, host: str) -> Row:
    """Bind one of the router's ports; nowhere when its addresses mean nothing on the host, or would be of nowhere."""
    if port["bound_host"] == host:
        return port
    if host and network_segments.with_several(tx, [port["network_id"]]):
        used = network_segments.at(tx, port["network_id"], host)
        mine = {one.segment for one in needs(tx, row) if one.network["id"] == port["network_id"]} - {""}
        waits = port["ip_allocation"] == network_segments.DEFERRED and not look.addresses_of(tx, port["id"])
        if (used is None and waits) or (used is not None and mine - {used["id"]}):
            host = ""
    return ports.bind(tx, port, host) if port["bound_host"] != host else port
