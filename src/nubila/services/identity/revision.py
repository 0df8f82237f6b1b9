"""What each process remembers about Identity, and when it must forget.

Anything that can change what a token means (roles, assignments, users, projects, domains, the catalogue, revocations)
adds one to a one-row table in the same transaction. A process compares the number at most every ``CHECK_S`` seconds
with one tiny query and then drops all it remembers; the process that made the change drops it at the commit.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec
import sqlalchemy as sa

from nubila.core import clock
from nubila.core.call import Reply
from nubila.core.db import Tx
from nubila.core.revocations import Revocations
from nubila.services.identity.kinds import REVISION, REVOCATION

if TYPE_CHECKING:
    from nubila.core.call import Call
    from nubila.core.cloud import Cloud
    from nubila.core.db import Reader

T = TypeVar("T")
CHECK_S = 0.25
"""How old the comparison may be: within this time every process refuses what was revoked."""
MAX_ENTRIES = 20_000
"""Tokens remembered per process."""
MAX_LISTS, MAX_LIST_BYTES = 256, 1 << 16
"""Lists remembered per process, and how large one may be."""
ALLOW_EXPIRED_S = 172_800
"""For how long an expired token can still be validated with ``allow_expired``."""

_encode = msgspec.json.Encoder().encode
_READ = sa.select(REVISION.c.n).where(REVISION.c.id == 1)
_BUMP = sa.update(REVISION).where(REVISION.c.id == 1).values(n=REVISION.c.n + 1)


class Memory:
    """What one process remembers; dropped whole when the revision moves."""

    def __init__(self, keep_revocations_s: float) -> None:
        self.revocations = Revocations(REVOCATION, keep_s=keep_revocations_s)
        self.revision: int | None = None
        self.next_check = 0.0
        self.tokens: dict[str, Any] = {}
        self.lists: dict[Hashable, tuple[object, bytes]] = {}
        self.facts: dict[Hashable, Any] = {}  # small things computed once per revision: roles, implied roles, catalogue

    def forget(self) -> None:
        """Drop everything; new dicts, so that a thread that is reading the old ones is not disturbed."""
        self.tokens, self.facts, self.lists = {}, {}, {}
        self.next_check = 0.0

    def remember(self, token: str, entry: Any) -> None:
        """Keep what a token means, in bounded memory (the oldest tenth goes when it is full)."""
        tokens = self.tokens
        if len(tokens) >= MAX_ENTRIES:
            for old in list(tokens)[: MAX_ENTRIES // 10]:
                tokens.pop(old, None)
        tokens[token] = entry

    def check(self, reader: Reader, now: float) -> bool:
        """Compare with the database and forget when something changed; True when it did."""
        n = reader.scalar(_READ)
        moved = bool(n != self.revision)
        if moved:
            self.tokens, self.facts, self.lists = {}, {}, {}
            self.revision = n
        self.next_check = now + CHECK_S
        return moved


def recall(known: Memory, reader: Reader, key: Hashable, read: Callable[[], T]) -> T:
    """What ``read`` returned earlier in this revision; shared, not to be changed.

    Nothing found is not remembered, nor what a transaction sees: it may be undone.
    """
    facts = known.facts  # replaced when forgotten: what is read below must not get into the new dict
    found: T | None = facts.get(key)
    if found is None:
        found = read()
        if found and len(facts) < MAX_ENTRIES and not isinstance(reader, Tx):
            facts[key] = found
    return found


def listed(call: Call, make: Callable[[], Reply]) -> Reply:
    """A list as this token got it before, if no process has changed anything since (Hooks.listed).

    Only for kinds of which every change adds one to the revision, in the same transaction. The caller's rights must be
    of this revision too: for ``CHECK_S`` a process may still go by rights that were taken away, but not keep what they
    show.
    """
    known = fresh(call.cloud, call.tx, exact=True)
    lists, token = known.lists, call.headers.get("x-auth-token", "")
    if getattr(known.tokens.get(token), "creds", None) is not call.creds:
        return make()
    key, rules = (token, call.path, tuple(call.query), call.base), call.cloud.policy.state
    under, body = lists.get(key, (None, b""))
    if under is rules:
        return Reply(body)
    answer = make()
    if answer.status == 200 and not answer.headers:
        answer.body = _encode(answer.body)
        if len(lists) < MAX_LISTS and len(answer.body) <= MAX_LIST_BYTES:
            lists[key] = rules, answer.body
    return answer


def memory(cloud: Cloud) -> Memory:
    """The memory of this process for this cloud."""
    found: Memory | None = cloud.memory.get("identity")
    if found is None:
        found = cloud.memory.setdefault("identity", Memory(cloud.settings.token_ttl_s + ALLOW_EXPIRED_S))
    return found


def fresh(cloud: Cloud, reader: Reader, *, exact: bool = False) -> Memory:
    """The memory, compared with the database now (``exact``) or if the last comparison is too old."""
    found = memory(cloud)
    now = clock.monotonic()
    if (exact or now >= found.next_check) and found.check(reader, now):
        found.revocations.soon()  # what was dropped must not be accepted again by an older list of revocations
    return found


def bump(cloud: Cloud, tx: Tx) -> None:
    """Say, in this transaction, that tokens may mean something else now."""
    tx.execute(_BUMP)
    tx.after_commit(memory(cloud).forget)
