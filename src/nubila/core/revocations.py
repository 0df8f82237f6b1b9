"""Tokens that are valid but no longer count: revocation events in one table, seen from memory.

An event names some properties of tokens (an audit id, a user, a user in a project ...) and a time: every token that
has all of them and was issued no later is revoked. Looking costs one dict access per combination of properties in use.
Each process compares a one-row revision at most every half second and reads only the events that came since.
"""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Callable, Sequence
from operator import attrgetter
from typing import Any

import sqlalchemy as sa

from nubila.core.db import Reader, Tx
from nubila.core.payload import Payload
from nubila.core.sql import upsert

REFRESH_EVERY_S = 0.5
_TIDY_EVERY_S = 600.0
FIELDS = (
    *("audit_id", "audit_chain_id", "user_id", "project_id", "domain_id", "trust_id", "app_cred_id"),
    "access_token_id",
)

_Key = tuple[str | None, ...]


def table(meta: sa.MetaData) -> sa.Table:
    """The table ``revocation`` (and its one-row companion ``revocation_revision``) in ``meta``.

    Times are microseconds since 1970. ``revision`` is the number under which an event became visible.
    """
    if "revocation" in meta.tables:
        return meta.tables["revocation"]
    sa.Table(
        "revocation_revision",
        meta,
        sa.Column("id", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("revision", sa.BigInteger, nullable=False),
    )
    return sa.Table(
        "revocation",
        meta,
        sa.Column("id", sa.String(32), primary_key=True),
        *[sa.Column(name, sa.String(64)) for name in FIELDS],
        sa.Column("issued_before", sa.BigInteger, nullable=False),
        sa.Column("revoked_at", sa.BigInteger, nullable=False),
        sa.Column("expires_at", sa.BigInteger, nullable=False, index=True),
        sa.Column("revision", sa.BigInteger, nullable=False, index=True),
    )


class Revocations:
    """The events in force as this process sees them. Thread-safe."""

    def __init__(
        self,
        events: sa.Table,
        *,
        keep_s: float = 90000.0,
        clock: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        """``events`` is what :func:`table` gave; ``keep_s`` must be longer than any token lives (default 25 hours)."""
        self._events = events
        self._revision = events.metadata.tables["revocation_revision"]
        self._keep_s, self._clock, self._monotonic = keep_s, clock, monotonic
        self._ask = sa.select(self._revision.c.revision)
        columns = [events.c[name] for name in FIELDS]
        self._fetch = (
            sa.select(*columns, events.c.issued_before, events.c.expires_at, events.c.revision)
            .where(events.c.revision > sa.bindparam("after"))
            .where(events.c.expires_at > sa.bindparam("now"))
        )
        self._lock = threading.Lock()
        self._patterns: dict[tuple[str, ...], tuple[Callable[[Payload], Any], dict[Any, tuple[int, int]]]] = {}
        self._at = 0  # the revision we have seen
        self._next = 0.0
        self._tidy = self._prune = 0.0

    # --- looking ---------------------------------------------------------------------------------------------------

    def revoked(self, token: Payload, domains: Sequence[str] = ()) -> bool:
        """Whether an event covers this token; ``domains`` are those of its user and project, when known."""
        for names, (key_of, events) in self._patterns.items():
            if names == ("domain_id",):
                keys = (token.domain_id, *domains)
            else:
                keys = (key_of(token),)
            for key in keys:
                found = events.get(key)
                if found is not None and token.issued_at <= found[0]:
                    return True
        return False

    def __len__(self) -> int:
        return sum(len(events) for _, events in self._patterns.values())

    def refresh(self, reader: Reader) -> bool:
        """See what others revoked; asks the database at most every half second. True when something came."""
        now = self._monotonic()
        if now < self._next:
            return False
        with self._lock:
            if now < self._next:
                return False
            self._next = now + REFRESH_EVERY_S
            revision = reader.scalar(self._ask) or 0
            if now >= self._tidy:
                self._tidy = now + _TIDY_EVERY_S
                self._forget()
            if revision == self._at:
                return False
            after = self._at if revision > self._at else 0  # a smaller one: the database was restored
            rows = reader.rows(self._fetch, {"after": after, "now": self._micros()})
            self._patterns = self._added(rows, self._patterns if after else {})
            self._at = max([revision, *(row[-1] for row in rows)])
            return True

    def soon(self) -> None:
        """Look at the database at the next :meth:`refresh`, whenever the last one was."""
        self._next = 0.0

    def _micros(self) -> int:
        return int(self._clock() * 1_000_000)

    @staticmethod
    def _added(rows: Sequence[tuple[Any, ...]], into: Any) -> Any:
        """New patterns, so that a thread that is looking meanwhile never sees a half-changed state."""
        out = {names: (key_of, dict(events)) for names, (key_of, events) in into.items()}
        for row in rows:
            values = dict(zip(FIELDS, row, strict=False))
            names = tuple(name for name in FIELDS if values[name] is not None)
            if not names:
                continue
            events = out.setdefault(names, (attrgetter(*names), {}))[1]
            key = values[names[0]] if len(names) == 1 else tuple(values[name] for name in names)
            before, expires = row[len(FIELDS)], row[len(FIELDS) + 1]
            known = events.get(key, (before, expires))
            events[key] = (max(before, known[0]), max(expires, known[1]))
        return out

    def _forget(self) -> None:
        now = self._micros()
        kept = {
            names: (key_of, {key: value for key, value in events.items() if value[1] > now})
            for names, (key_of, events) in self._patterns.items()
        }
        self._patterns = {names: pattern for names, pattern in kept.items() if pattern[1]}

    # --- revoking --------------------------------------------------------------------------------------------------

    def revoke(self, tx: Tx, issued_before: int | None = None, **names: str | None) -> None:
        """Revoke, with this transaction, the tokens that have all these properties (:data:`FIELDS`).

        Those issued after ``issued_before`` (microseconds, default now) stay good. Write the resource rows first: the
        revision row is locked until the transaction ends, which gives events the order in which they become visible.
        """
        given = {name: value for name, value in names.items() if value is not None}
        if not given or given.keys() - set(FIELDS):
            raise ValueError(f"revoke by one or more of {', '.join(FIELDS)}, not by {', '.join(names) or 'nothing'}")
        now = self._micros()
        one = {"id": 1, "revision": 1}
        tx.execute(upsert(tx.dialect, self._revision, one, {"revision": self._revision.c.revision + 1}))
        revision = tx.scalar(self._ask)
        row: dict[str, Any] = dict.fromkeys(FIELDS) | given
        before = now if issued_before is None else issued_before
        row |= {"issued_before": before, "revoked_at": now, "expires_at": now + int(self._keep_s * 1_000_000)}
        tx.insert(self._events, row | {"id": uuid.uuid4().hex, "revision": revision})
        if self._monotonic() >= self._prune:
            self._prune = self._monotonic() + _TIDY_EVERY_S
            self.prune(tx)
        tx.after_commit(self.soon)

    def prune(self, tx: Tx) -> int:
        """Delete events that no living token can match; return how many."""
        return tx.execute(sa.delete(self._events).where(self._events.c.expires_at <= self._micros()))
