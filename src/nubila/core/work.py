"""The work table: the only queue there is (DESIGN.md section 4).

One row per thing that must be kept true on one shard. ``gen`` counts how often somebody asked; ``done`` is the ``gen``
that was last made true; a row with ``gen != done`` is a debt. A row is due when ``due <= now``. Asking is an upsert in
the asker's own transaction, so a request is never half-made. Settling compares ``gen`` with the one that was worked on,
so an ask that arrives during the work is not lost. A taker holds a lease; ``token`` grows with every take, so a taker
that outlived its lease can not write any more.

Only this module touches the table. It must not know what any kind means.
"""

from __future__ import annotations

import functools
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from nubila.core.sql import core_meta, now, upsert

if TYPE_CHECKING:
    from nubila.core.db import Reader, Store, Tx

FAR = 1e12  # due "when asked": no clock reaches it
CALM_S = 0.05  # how long asks that are to be answered soon wait for more of the same, in a running cloud
MAX_LEASE_S = 3600.0  # nobody may ask for more; a longer one in the table is a defect
NOTE_MAX = 255

work = sa.Table(
    "work",
    core_meta,
    sa.Column("shard", sa.String(64), primary_key=True),  # "" = any controller, else a host's name = its agent
    sa.Column("kind", sa.String(64), primary_key=True),
    sa.Column("id", sa.String(96), primary_key=True),
    sa.Column("gen", sa.BigInteger, nullable=False),
    sa.Column("done", sa.BigInteger, nullable=False, server_default="0"),
    sa.Column("due", sa.Double, nullable=False),
    sa.Column("lease", sa.Double, nullable=False, server_default="0"),  # until when
    sa.Column("token", sa.BigInteger, nullable=False, server_default="0"),
    sa.Column("tries", sa.Integer, nullable=False, server_default="0"),
    sa.Column("note", sa.String(NOTE_MAX), nullable=False, server_default=""),  # one sentence: what it did or waits for
    sa.Index("work_due", "shard", "due"),
)
c = work.c


class LostLease(Exception):
    """Somebody else holds this row now (or it is gone): undo the transaction and forget the item."""


@dataclass(frozen=True)
class Item:
    """One leased row: what to look at, and the right to write about it."""

    kind: str
    id: str
    shard: str
    gen: int  # what was asked for when it was taken
    token: int  # fencing, larger with every take for ever: also the epoch that effects outside the database carry
    tries: int  # failures in a row before this turn
    ended: list[str] = field(default_factory=list, compare=False, repr=False)  # how the turn ended, once committed


def backoff_s(tries: int, *, first: float = 0.5, most: float = 60.0) -> float:
    """Seconds until the next attempt after `tries` failures: doubling, with +-25 % jitter so that crowds spread."""
    return min(first * 2.0 ** min(tries, 20), most) * random.uniform(0.75, 1.25)


# --- asking and ending, inside somebody's transaction ---------------------------------------------------------------


@functools.cache
def _ask_stmt(dialect: str) -> sa.Insert:
    values: dict[str, Any] = {
        "shard": sa.bindparam("b_shard"),
        "kind": sa.bindparam("b_kind"),
        "id": sa.bindparam("b_id"),
    }
    # Tokens of a row that was dropped and asked for again must not start over: an old holder's would be valid again,
    # and a host that keeps epochs would refuse the new ones. So they start at the clock's milliseconds.
    values |= {"gen": 1, "due": now(), "token": sa.cast(now() * 1000, sa.BigInteger)}
    return upsert(dialect, work, values, {"gen": c.gen + 1, "due": now(), "tries": 0})


@functools.cache
def _ask_soon_stmt(dialect: str) -> sa.Insert:
    soon: Any = now() + sa.bindparam("b_calm", type_=sa.Double)
    values: dict[str, Any] = {
        "shard": sa.bindparam("b_shard"),
        "kind": sa.bindparam("b_kind"),
        "id": sa.bindparam("b_id"),
        "gen": 1,
        "due": soon,
        "token": sa.cast(now() * 1000, sa.BigInteger),
    }
    # One that waits keeps its time, or a steady stream of asks would put it off for ever. One being worked on gets
    # a new time: what it is due for now is what it does already.
    due = sa.case((sa.and_(c.lease < now(), c.due < soon), c.due), else_=soon)
    return upsert(dialect, work, values, {"gen": c.gen + 1, "due": due, "tries": 0})


_MINE = sa.and_(
    c.shard == sa.bindparam("b_shard"),
    c.kind == sa.bindparam("b_kind"),
    c.id == sa.bindparam("b_id"),
    c.token == sa.bindparam("b_token"),
)
_SAME = c.gen == sa.bindparam("b_gen")
_HOLD = sa.select(c.gen).where(_MINE)
_KEEP = sa.update(work).where(_MINE).values(token=c.token)
_FINISH = (
    sa.update(work)
    .where(_MINE)
    .values(
        done=sa.bindparam("b_gen"),
        due=sa.case((_SAME, sa.literal(FAR, sa.Double)), else_=c.due),  # as asked meanwhile: now, or soon
        lease=0,
        tries=0,
        note=sa.bindparam("b_note"),
    )
)
_LATER = (
    sa.update(work)
    .where(_MINE)
    .values(
        due=sa.case((_SAME, now() + sa.bindparam("b_again", type_=sa.Double)), else_=now()),
        lease=0,
        tries=sa.case((sa.and_(_SAME, sa.bindparam("b_failed", type_=sa.Integer) == 1), c.tries), else_=0),
        note=sa.bindparam("b_note"),
    )
)
_DROP = sa.delete(work).where(_MINE, _SAME)


def _key(item: Item) -> dict[str, Any]:
    return {"b_shard": item.shard, "b_kind": item.kind, "b_id": item.id, "b_token": item.token}


def hold(tx: Tx, item: Item) -> None:
    """Make sure the item is still ours: the first statement of every transaction on its behalf. Takes no lock."""
    if tx.scalar(_HOLD, _key(item)) is None:
        raise LostLease(f"{item.kind} {item.id}")


def keep(tx: Tx, item: Item) -> None:
    """End a transaction that does not end the turn: lock the row and check the token once more."""
    if tx.execute(_KEEP, _key(item)) != 1:
        raise LostLease(f"{item.kind} {item.id}")


def ask(tx: Tx, kind: str, id: str, shard: str, calm_s: float = 0.0) -> None:
    """Say that this may no longer be as it should (called by ``Tx`` at the end of a transaction, in order).

    `calm_s`: it may wait so long for more of the same, which then costs one turn.
    """
    params: dict[str, Any] = {"b_shard": shard, "b_kind": kind, "b_id": id}
    if calm_s:
        tx.execute(_ask_soon_stmt(tx.dialect), {**params, "b_calm": calm_s})
    else:
        tx.execute(_ask_stmt(tx.dialect), params)


def settle(tx: Tx, item: Item, note: str, again: float | None, failed: bool) -> None:
    """End the turn; see ``Tx.settle``."""
    if failed and again is None:
        again = backoff_s(item.tries)
    values = {**_key(item), "b_gen": item.gen, "b_note": note[:NOTE_MAX]}
    if again is None:
        count = tx.execute(_FINISH, values)
    else:
        count = tx.execute(_LATER, {**values, "b_again": again, "b_failed": int(failed)})
    if count != 1:
        raise LostLease(f"{item.kind} {item.id}")


def drop(tx: Tx, item: Item) -> None:
    """End the turn and forget the row, unless somebody asked meanwhile: then it is due at once."""
    if tx.execute(_DROP, {**_key(item), "b_gen": item.gen}) != 1:
        settle(tx, item, "asked again while going away", None, False)


# --- taking ---------------------------------------------------------------------------------------------------------


@functools.cache
def _due_stmt(some_kinds: bool, lock: bool) -> sa.Select[Any]:
    stmt = (
        sa.select(c.kind, c.id, c.shard, c.gen, c.token, c.tries)
        .where(c.shard == sa.bindparam("b_shard"), c.due <= now(), c.lease < now())
        .order_by(c.due)
        .limit(sa.bindparam("b_n", type_=sa.Integer))
    )
    if some_kinds:
        stmt = stmt.where(c.kind.in_(sa.bindparam("b_kinds", expanding=True)))
    return stmt.with_for_update(skip_locked=True) if lock else stmt


_LEASE = (
    sa.update(work)
    .where(c.shard == sa.bindparam("b_shard"), c.kind == sa.bindparam("b_kind"), c.id == sa.bindparam("b_id"))
    .values(lease=now() + sa.bindparam("b_lease", type_=sa.Double), token=c.token + 1, tries=c.tries + 1)
)


def take(store: Store, shard: str, n: int, lease_s: float, kinds: Sequence[str] | None = None) -> list[Item]:
    """Lease up to `n` due rows of one shard for `lease_s` seconds, those due longest first.

    A row somebody else is taking at this moment is passed over. Raises ``Busy``.
    """
    if lease_s > MAX_LEASE_S:
        raise ValueError(f"a lease is at most {MAX_LEASE_S:.0f} s: a hung worker must be noticed")
    params: dict[str, Any] = {"b_shard": shard, "b_n": n}
    if kinds is not None:
        params["b_kinds"] = list(kinds)
    with store.read() as r:  # an idle poll must not take the write lock
        if r.one(_due_stmt(kinds is not None, False), params) is None:
            return []
    with store.write() as tx:
        found = tx.rows(_due_stmt(kinds is not None, not store.embedded), params)
        tx.execute(_LEASE, [{"b_shard": f[2], "b_kind": f[0], "b_id": f[1], "b_lease": lease_s} for f in found])
    return [Item(kind, id, mine, gen, token + 1, tries) for kind, id, mine, gen, token, tries in found]


_GIVE_BACK = sa.update(work).where(_MINE).values(lease=0, tries=sa.case((c.tries > 0, c.tries - 1), else_=0))
_RELEASE = sa.update(work).where(c.shard == sa.bindparam("b_shard"), c.lease > 0).values(lease=0, token=c.token + 1)


def give_back(store: Store, items: Iterable[Item]) -> None:
    """Return leased rows untouched (the process stops, or the batch took too long)."""
    keys = sorted((_key(i) for i in items), key=lambda k: (k["b_kind"], k["b_id"], k["b_shard"]))
    if keys:
        with store.write() as tx:
            tx.execute(_GIVE_BACK, keys)


def release_shard(store: Store, shard: str) -> None:
    """End every lease of a shard: an agent does so at its start, its own predecessor held them."""
    with store.write() as tx:
        tx.execute(_RELEASE, {"b_shard": shard})


_ON_LEASE = sa.select(c.kind, c.id, c.token).where(c.shard == sa.bindparam("b_shard"), c.due <= now(), c.lease > 0)
_END_LEASE = sa.update(work).where(_MINE).values(lease=0, token=c.token + 1)


def release_others(store: Store, shard: str, holding: Iterable[tuple[str, str, int]]) -> int:
    """End all leases of a shard but those its one worker says it holds, as (kind, id, token); return how many.

    The others were given in an answer that never arrived, or to a request of a worker that has died meanwhile.
    """
    with store.read() as r:
        found = set(r.rows(_ON_LEASE, {"b_shard": shard})) - set(holding)
    if found:
        with store.write() as tx:
            keys = ("b_kind", "b_id", "b_token")
            tx.execute(_END_LEASE, [{"b_shard": shard, **dict(zip(keys, one, strict=True))} for one in sorted(found)])
    return len(found)


# --- looking --------------------------------------------------------------------------------------------------------

_NEXT = sa.select(sa.func.min(sa.case((c.lease > c.due, c.lease), else_=c.due)) - now()).where(
    c.shard == sa.bindparam("b_shard"), c.due < FAR
)


def next_due(store: Store, shard: str) -> float | None:
    """Seconds until something of this shard can be taken (<= 0: now); None when everything is as asked."""
    with store.read() as r:
        value = r.scalar(_NEXT, {"b_shard": shard})
    return None if value is None else float(value)


_LOOK = sa.select(
    c.kind,
    c.id,
    c.shard,
    c.gen,
    c.done,
    c.token,
    c.tries,
    c.note,
    sa.case((c.due < FAR, c.due - now()), else_=None).label("due_in_s"),
    sa.case((c.lease > now(), c.lease - now()), else_=None).label("leased_for_s"),
).order_by(c.kind, c.id, c.shard)
_PENDING = _LOOK.where(c.gen != c.done)
_WHY = _LOOK.where(c.id == sa.bindparam("b_id"))


def pending(store: Store) -> list[dict[str, Any]]:
    """Return every debt: kind, id, shard, gen, done, token, tries, note, due_in_s, leased_for_s (None = not)."""
    with store.read() as r:
        return r.all(_PENDING)


_OWED = sa.select(c.kind, c.id, c.shard).where(sa.or_(c.gen != c.done, c.due < FAR))


def owed(reader: Reader) -> set[tuple[str, str, str]]:
    """(kind, id, shard) of everything that will be looked at again by itself."""
    return {(kind, id, shard) for kind, id, shard in reader.rows(_OWED)}


def why(store: Store, id: str) -> list[dict[str, Any]]:
    """Return all rows about one id, debts or not, in the form of ``pending``."""
    with store.read() as r:
        return r.all(_WHY, {"b_id": id})


def invariants(store: Store) -> list[str]:
    """Return one sentence for each broken promise of the queue; empty when all is well."""
    checks = (
        ("has a debt that is due never", sa.and_(c.gen != c.done, c.due >= FAR)),
        ("is done further than asked", c.done > c.gen),
        ("holds a lease beyond any limit", c.lease > now() + MAX_LEASE_S + 60),
    )
    out = []
    with store.read() as r:
        for what, where in checks:
            out += [
                f"work {row['kind']} {row['id']} on shard {row['shard']!r} {what}" for row in r.all(_LOOK.where(where))
            ]
    return out
