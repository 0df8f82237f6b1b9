"""Give out addresses, MACs and segments exactly once, on every database.

The rows' primary keys are the judge. A candidate is chosen by looking, then claimed with an insert that does nothing
when somebody was faster (and then waits for, and sees, that somebody); whose it is is read back. A loser picks again.
Nothing is locked, nothing fails for another client's sake, and the cost does not grow with the pool.
"""

from __future__ import annotations

import functools
import random
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import sqlalchemy as sa

from nubila.core.db import Reader, Tx
from nubila.core.declare import Resource
from nubila.core.faults import conflict
from nubila.core.sql import upsert
from nubila.services.network import addresses
from nubila.services.network.kinds_port import Port
from nubila.services.network.tables import IP_ALLOCATION, SEGMENT

_A, _S = IP_ALLOCATION.c, SEGMENT.c
_TAKEN = (
    sa.select(_A.ip_key)
    .where(_A.subnet_id == sa.bindparam("subnet"), _A.ip_key.between(sa.bindparam("lo"), sa.bindparam("hi")))
    .order_by(_A.ip_key)
    .limit(sa.bindparam("n", type_=sa.Integer))
)
_HOLDER = sa.select(_A.port_id).where(_A.subnet_id == sa.bindparam("subnet"), _A.ip_key == sa.bindparam("key"))
_FREE = sa.delete(IP_ALLOCATION).where(_A.port_id == sa.bindparam("b_port"))
_FREE_ONE = sa.delete(IP_ALLOCATION).where(
    _A.port_id == sa.bindparam("b_port"), _A.subnet_id == sa.bindparam("b_subnet"), _A.ip_key == sa.bindparam("b_key")
)
_MAC = sa.select(Port.table.c.id).where(
    Port.table.c.network_id == sa.bindparam("network"), Port.table.c.mac_address == sa.bindparam("mac")
)
_dice = random.SystemRandom()


@functools.cache
def _claim_stmt(dialect: str, table: sa.Table) -> sa.Insert:
    return upsert(dialect, table, {c.name: sa.bindparam(f"b_{c.name}") for c in table.columns}, {})


def take(tx: Tx, subnet: Mapping[str, Any], address: str, port_id: str, place: int) -> bool:
    """Claim one address of a subnet for a port; False when another port has it."""
    key = addresses.key(address)
    inserted = tx.execute(
        _claim_stmt(tx.dialect, IP_ALLOCATION),
        {
            "b_subnet_id": subnet["id"], "b_ip_key": key, "b_ip_address": address, "b_port_id": port_id,
            "b_network_id": subnet["network_id"], "b_place": place,
        },
    )  # fmt: skip
    if tx.dialect == "sqlite" and inserted:  # whose count can be relied on
        return True
    return bool(tx.scalar(_HOLDER, {"subnet": subnet["id"], "key": key}) == port_id)


def take_free(tx: Tx, subnet: Mapping[str, Any], port_id: str, place: int, *, lowest: bool = False) -> str | None:
    """Claim a free address of the subnet's pools (any, or the lowest) for a port; None when they are used up."""
    if not lowest:  # most pools are mostly free: claiming without looking costs a statement less
        found = addresses.guess(subnet["allocation_pools"], _dice)
        if found is None or take(tx, subnet, found, port_id, place):
            return found
    while True:
        found = addresses.free(subnet["allocation_pools"], reading(tx, subnet["id"]), _dice, lowest=lowest)
        if found is None or take(tx, subnet, found, port_id, place):
            return found


def reading(reader: Reader, subnet_id: str) -> addresses.Taken:
    """What :func:`addresses.free` asks about the subnet."""

    def taken(lo: str, hi: str, n: int) -> Sequence[str]:
        return [key for (key,) in reader.rows(_TAKEN, {"subnet": subnet_id, "lo": lo, "hi": hi, "n": n})]

    return taken


def release(tx: Tx, port_id: str) -> None:
    """Give back all addresses of a port."""
    tx.execute(_FREE, {"b_port": port_id})


def release_one(tx: Tx, port_id: str, subnet_id: str, address: str) -> None:
    """Give back one address."""
    tx.execute(_FREE_ONE, {"b_port": port_id, "b_subnet": subnet_id, "b_key": addresses.key(address)})


def mac(tx: Tx, network_id: str, wanted: str | None) -> str:
    """The wanted MAC, or a random one nobody has on the network; 409 when the wanted one is in use."""
    if wanted is not None:
        if tx.one(_MAC, {"network": network_id, "mac": wanted}) is not None:
            text = f"mac_address {wanted} belongs to another port of network {network_id}: choose a free one."
            raise conflict(text, "MacAddressInUse")
        return wanted
    while True:
        found = addresses.random_mac(_dice)
        if tx.one(_MAC, {"network": network_id, "mac": found}) is None:
            return found


# --- segments ------------------------------------------------------------------------------------------------------

_USED = (
    sa.select(_S.segmentation_id)
    .where(
        _S.network_type == sa.bindparam("type"),
        _S.physical_network == sa.bindparam("physnet"),
        _S.segmentation_id.between(sa.bindparam("lo"), sa.bindparam("hi")),
    )
    .order_by(_S.segmentation_id)
    .limit(sa.bindparam("n", type_=sa.Integer))
)
_SEGMENT_OF = sa.select(_S.network_id).where(
    _S.network_type == sa.bindparam("type"),
    _S.physical_network == sa.bindparam("physnet"),
    _S.segmentation_id == sa.bindparam("id"),
)
_DROP_SEGMENTS = sa.delete(SEGMENT).where(_S.network_id == sa.bindparam("b_network"))
_COUNTED = sa.select(sa.func.count()).where(
    _S.network_type == sa.bindparam("type"),
    _S.physical_network == sa.bindparam("physnet"),
    _S.segmentation_id.between(sa.bindparam("lo"), sa.bindparam("hi")),
)
_GLANCE, _WINDOW = 4, 256
"""How many used ids are read at a time, at first and when there is no gap among those."""


def take_segment(tx: Tx, network_id: str, type: str, physnet: str, id: int) -> bool:
    """Claim one segment for a network; False when another network has it."""
    tx.execute(
        _claim_stmt(tx.dialect, SEGMENT),
        {"b_network_type": type, "b_physical_network": physnet, "b_segmentation_id": id, "b_network_id": network_id},
    )
    return bool(tx.scalar(_SEGMENT_OF, {"type": type, "physnet": physnet, "id": id}) == network_id)


def take_free_segment(tx: Tx, network_id: str, type: str, physnet: str, lo: int, hi: int) -> int | None:
    """Claim any free id between ``lo`` and ``hi``; None when all are in use."""
    while True:
        found = free_segment(tx, type, physnet, lo, hi)
        if found is None or take_segment(tx, network_id, type, physnet, found):
            return found


def free_segment(reader: Reader, type: str, physnet: str, lo: int, hi: int) -> int | None:
    """Some id between ``lo`` and ``hi`` that no network has; None when all are in use."""
    start, window = _dice.randint(lo, hi), _GLANCE
    for first, last in ((start, hi), (lo, start - 1)):
        at = first
        while at <= last:
            used = reader.rows(_USED, {"type": type, "physnet": physnet, "lo": at, "hi": last, "n": window})
            for (id,) in used:
                if id != at:
                    return at
                at += 1
            if len(used) < window:
                if at <= last:
                    return at
                break
            if window == _GLANCE:  # rather full: perhaps entirely, and then that is all to be known
                window = _WINDOW
                if reader.scalar(_COUNTED, {"type": type, "physnet": physnet, "lo": lo, "hi": hi}) > hi - lo:
                    return None
    return None


def release_segments(tx: Tx, network_id: str) -> None:
    """Give back the network's segments."""
    tx.execute(_DROP_SEGMENTS, {"b_network": network_id})


_DROP_SEGMENT = sa.delete(SEGMENT).where(
    _S.network_type == sa.bindparam("b_type"), _S.physical_network == sa.bindparam("b_physnet"),
    _S.segmentation_id == sa.bindparam("b_id"), _S.network_id == sa.bindparam("b_network"),
)  # fmt: skip


def release_segment(tx: Tx, network_id: str, type: str, physnet: str, id: int) -> None:
    """Give back one of the network's segments."""
    tx.execute(_DROP_SEGMENT, {"b_network": network_id, "b_type": type, "b_physnet": physnet, "b_id": id})


# --- counting ------------------------------------------------------------------------------------------------------


def set_columns(tx: Tx, cls: type[Resource], id: str, values: Mapping[str, Any]) -> None:
    """Change columns of one row outside a user's update (observations, placements, follow-ups)."""
    if values:
        tx.execute(_update(cls.table, tuple(values)), {"b_id": id, **{f"b_{k}": v for k, v in values.items()}})


@functools.cache
def _update(table: sa.Table, names: tuple[str, ...]) -> sa.Update:
    return (
        sa.update(table)
        .where(table.c.id == sa.bindparam("b_id"))
        .values({name: sa.bindparam(f"b_{name}", type_=table.c[name].type) for name in names})
    )


def bump(tx: Tx, cls: type[Resource], ids: Iterable[str], now: str) -> None:
    """Raise the revision of rows whose parts changed."""
    for id in ids:
        tx.execute(_bump(cls.table), {"b_id": id, "b_now": now})


@functools.cache
def _bump(table: sa.Table) -> sa.Update:
    return (
        sa.update(table)
        .where(table.c.id == sa.bindparam("b_id"))
        .values(revision_number=table.c.revision_number + 1, updated_at=sa.bindparam("b_now"))
    )
