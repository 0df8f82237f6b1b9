"""Leases of highly available routers in the database: one batched call per host, five times a second.

What is decided is ha_grant.py (pure); here are the rows, the database's clock and what follows from a new holder.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Any

import sqlalchemy as sa

from nubila.core import clock
from nubila.core.cloud import Cloud
from nubila.core.db import Reader, Tx
from nubila.core.faults import bad_request
from nubila.core.sql import now
from nubila.services.network import ha_grant
from nubila.services.network.ha_grant import MARGIN_S, TTL_S, Claim, Lease, Scene
from nubila.services.network.ha_tables import HA_HOST, HA_ROUTER

Row = dict[str, Any]
SEEN_S = 3.0
"""How long a host that was able to forward counts as able."""
STEP_S = 0.005
"""A larger step forward of the database's clock makes leases look older than they are."""
_H, _R = HA_HOST.c, HA_ROUTER.c
_FIELDS = ("holder", "epoch", "until", "known", "freed", "freed_term", "seq", "to", "to_until", "ready")
_NOW = sa.select(now())
_MINE = (
    sa.select(HA_ROUTER).join(HA_HOST, _H.router_id == _R.router_id)
    .where(_H.host == sa.bindparam("host"), _R.router_id.in_(sa.bindparam("routers", expanding=True)))
    .order_by(_R.router_id).with_for_update(of=HA_ROUTER)
)  # fmt: skip
_ONE = sa.select(HA_ROUTER).where(_R.router_id == sa.bindparam("router"))
_LOCKED = _ONE.with_for_update()
_HOSTS = sa.select(HA_HOST).where(_H.router_id.in_(sa.bindparam("routers", expanding=True))).order_by(_H.host)
_RENEW = (
    sa.update(HA_ROUTER)
    .where(_R.router_id == sa.bindparam("b_router"))
    .values(until=sa.bindparam("b_until"), seq=sa.bindparam("b_seq"))
)
_CHANGE = (
    sa.update(HA_ROUTER)
    .where(_R.router_id == sa.bindparam("b_router"))
    .values({name: sa.bindparam(f"b_{name}") for name in _FIELDS})
)
_HELD = sa.select(_R.holder, sa.func.count()).where(_R.holder != "").group_by(_R.holder)
_COMING = sa.select(_R.to, sa.func.count()).where(_R.holder == "", _R.to != "").group_by(_R.to)
_SEEN = (
    sa.update(HA_HOST)
    .where(_H.router_id == sa.bindparam("b_router"), _H.host == sa.bindparam("b_host"))
    .values(able=sa.bindparam("b_able"), seen=sa.bindparam("b_seen"))
)


def lease_of(row: Mapping[str, Any]) -> Lease:
    """The lease in a row of ``router_ha``."""
    return Lease(**{**{name: row[name] for name in _FIELDS}, "known": tuple(row["known"])})


def of(reader: Reader, router_id: str) -> Lease | None:
    """A router's lease; None when it is not highly available."""
    row = reader.one(_ONE, {"router": router_id})
    return None if row is None else lease_of(row)


def blank(router_id: str, network_id: str, vrid: int) -> Row:
    """The row of a router that nobody holds yet."""
    values = {name: getattr(Lease(), name) for name in _FIELDS}
    return {"router_id": router_id, "network_id": network_id, "vrid": vrid, **values, "known": []}


def _write(tx: Tx, router_id: str, before: Lease, after: Lease) -> None:
    if after == before:
        return
    values = {f"b_{name}": getattr(after, name) for name in _FIELDS} | {"b_known": list(after.known)}
    tx.execute(_CHANGE, {"b_router": router_id, **values})
    if after.holder != before.holder:
        tx.ask("router_ha", router_id)


def claims(cloud: Cloud, tx: Tx, host: str, asked: Mapping[str, Any]) -> dict[str, Row]:
    """Take in what a host says of its routers and answer each; routers that it does not have are left out."""
    try:
        parsed = {id: ha_grant.parse(one) for id, one in asked.items() if isinstance(one, Mapping)}
    except ValueError as e:
        raise bad_request(f"routers: {e}.") from None
    if not parsed:
        return {}
    rows = tx.all(_MINE, {"host": host, "routers": sorted(parsed)})
    if not rows:
        return {}
    at = now_in(tx)
    settled = _clock_is_settled(cloud, at)
    beside: dict[str, list[Row]] = {}
    for one in tx.all(_HOSTS, {"routers": [r["router_id"] for r in rows]}):
        beside.setdefault(one["router_id"], []).append(one)
    out: dict[str, Row] = {}
    renewals: list[Row] = []
    for row in rows:
        id, before, claim = row["router_id"], lease_of(row), parsed[row["router_id"]]
        hosts = beside[id]
        mine = next(h for h in hosts if h["host"] == host)
        _note_seen(tx, mine, claim, at)
        if not settled and before.holder not in ("", host):
            claim = _patient(claim)
        scene = Scene(
            # Not those that have never claimed: they cannot be granted it before they do, and could promise nothing.
            members=[h["host"] for h in hosts if not h["leaving"] and h["seen"]],
            able=[h["host"] for h in hosts if h["able"] and not h["leaving"] and at - h["seen"] < SEEN_S],
        )
        after, answer = ha_grant.decide(before, claim, host, at, scene)
        if after != before and replace(after, until=before.until, seq=before.seq) == before:
            renewals.append({"b_router": id, "b_until": after.until, "b_seq": after.seq})
        else:
            _write(tx, id, before, after)
        out[id] = vars(answer)
    if renewals:
        tx.execute(_RENEW, renewals)
    return out


def _patient(claim: Claim) -> Claim:
    return Claim(**{**vars(claim), "want": False, "open": True})  # as one who does not ask for it, and says nothing


def _note_seen(tx: Tx, mine: Row, claim: Claim, at: float) -> None:
    able = claim.want and claim.fit
    if mine["able"] != able or at - mine["seen"] > 1.0:
        tx.execute(_SEEN, {"b_router": mine["router_id"], "b_host": mine["host"], "b_able": able, "b_seen": at})
        mine |= {"able": able, "seen": at}


def _clock_is_settled(cloud: Cloud, at: float) -> bool:
    """Whether nobody's lease can look older than it is: no step forward of the clock within a lease's time."""
    mono = clock.monotonic()
    known: Row = cloud.memory.setdefault("router lease clock", {})
    offset = at - mono  # never larger than the truth: the time of the query is in it
    most = known.get("offset")
    if most is None or offset > most + STEP_S:
        known["until"] = mono + TTL_S + MARGIN_S
    known["offset"] = offset if most is None else max(most, offset) if offset > most - 1.0 else offset
    return mono >= float(known["until"])


def now_in(reader: Reader) -> float:
    """The clock that leases go by."""
    return float(reader.scalar(_NOW))


# --- what operators and other services do with a lease ----------------------------------------------------------------


def move(tx: Tx, router_id: str, to: str) -> None:
    """Have the router moved to one of its hosts; the holder and that host do it without losing a packet."""
    row = tx.one(_LOCKED, {"router": router_id})
    if row is not None:
        before = lease_of(row)
        _write(tx, router_id, before, ha_grant.move(before, to, now_in(tx)))


def lead(tx: Tx, router_id: str, hosts: Collection[str]) -> None:
    """Have a new router begin on that of its hosts that forwards for the fewest; another one may when that is late."""
    row = tx.one(_LOCKED, {"router": router_id})
    if row is None or not hosts:
        return
    load = dict.fromkeys(hosts, 0)
    for rows in (tx.rows(_HELD), tx.rows(_COMING)):
        for host, n in rows:
            if host in load:
                load[host] += n
    first = min(sorted(load), key=lambda host: load[host])
    before = lease_of(row)
    _write(tx, router_id, before, ha_grant.lead(before, first, now_in(tx)))


def given_up(tx: Tx, router_id: str, host: str) -> None:
    """The host surely does not forward for the router any more: it took it away, or an operator says it is gone."""
    row = tx.one(_LOCKED, {"router": router_id})
    if row is not None and row["holder"] == host:
        before = lease_of(row)
        gone = Lease(**{**vars(before), "holder": "", "until": now_in(tx), "freed": "", "freed_term": 0})
        _write(tx, router_id, before, gone)
