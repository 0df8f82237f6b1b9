"""Failed logins: a budget per user and address in the memory of each process, and the count that locks a user.

The budget (setting ``login_failures_per_minute``) refuses with 429 before any hashing. It is a token bucket: each
attempt takes one token, a successful one gives it back, so that attempts side by side cannot outrun it. Unknown users
have a budget like others: nothing is learnt from a 429. With several API processes each has its own budget.
"""

from __future__ import annotations

import math
import threading
from typing import TYPE_CHECKING

from nubila.core import clock
from nubila.core.faults import Fault

if TYPE_CHECKING:
    from nubila.core.cloud import Cloud

MAX_ENTRIES = 20_000
"""Buckets remembered per process; when there are more, those that are full again go first, then the oldest."""


class Budget:
    """Token buckets by key. Thread-safe."""

    def __init__(self) -> None:
        self._buckets: dict[tuple[str, str], tuple[float, float]] = {}  # key -> (tokens, when that was)
        self._lock = threading.Lock()

    def take(self, key: tuple[str, str], per_minute: int) -> float:
        """Take one token: 0.0, or the seconds until there is one."""
        now = clock.monotonic()
        with self._lock:
            tokens = self._tokens(key, per_minute, now)
            if tokens < 1.0:
                return (1.0 - tokens) * 60.0 / per_minute
            if len(self._buckets) >= MAX_ENTRIES and key not in self._buckets:
                self._make_room(per_minute, now)
            self._buckets[key] = (tokens - 1.0, now)
            return 0.0

    def give_back(self, key: tuple[str, str], per_minute: int) -> None:
        """The attempt was a good one."""
        now = clock.monotonic()
        with self._lock:
            tokens = self._tokens(key, per_minute, now) + 1.0
            if tokens >= per_minute:
                self._buckets.pop(key, None)
            else:
                self._buckets[key] = (tokens, now)

    def _tokens(self, key: tuple[str, str], per_minute: int, now: float) -> float:
        tokens, then = self._buckets.get(key, (float(per_minute), now))
        return min(float(per_minute), tokens + (now - then) * per_minute / 60.0)

    def _make_room(self, per_minute: int, now: float) -> None:
        full = [k for k in self._buckets if self._tokens(k, per_minute, now) >= per_minute]
        for key in full or list(self._buckets)[: MAX_ENTRIES // 10]:
            self._buckets.pop(key, None)


class Attempt:
    """One login attempt, paid for; :meth:`good` gives the token back. Raises 429 when there is none."""

    def __init__(self, cloud: Cloud, subject: str, peer: str) -> None:
        self._budget: Budget = cloud.memory.get("identity.budget") or cloud.memory.setdefault(
            "identity.budget", Budget()
        )
        self._key, self._limit = (subject, peer), cloud.settings.login_failures_per_minute
        if self._limit and (wait := self._budget.take(self._key, self._limit)):
            raise Fault(
                429, f"Too many failed logins from this address; try again in {math.ceil(wait)} s.", "TooManyRequests",
                headers={"Retry-After": str(math.ceil(wait))},
            )  # fmt: skip

    def good(self) -> None:
        """What was shown was right."""
        if self._limit:
            self._budget.give_back(self._key, self._limit)
