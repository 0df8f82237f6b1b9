"""What keeps a slow or dead directory from harming anything else: own threads, time limits, a circuit breaker.

A directory has a few threads of its own and a bounded queue. Equal questions that come at the same time are asked
once. After ``FAILURES`` failures in a row nobody asks for a pause (2 s, doubled up to 60 s); then one may try. What
runs longer than its deadline is cut off, so threads always come back.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from nubila.core import clock
from nubila.core.db import Busy, patiently
from nubila.core.faults import Fault, unavailable
from nubila.services.identity.ldap.client import Rejected, Unreachable

log = logging.getLogger("nubila.ldap")
WORKERS = 4
WAITING = 64
FAILURES = 2
PAUSE_S, LONGEST_S = 2.0, 60.0


class Breaker:
    """Closed, open for a pause, or letting one through. All methods are called under the guard's lock."""

    def __init__(self) -> None:
        self.failures, self.pause, self.until, self.reason = 0, PAUSE_S, 0.0, ""

    def wait_s(self, now: float) -> float:
        """Seconds for which nobody may ask; 0 = ask (one caller at a time while it is being tried)."""
        if self.failures < FAILURES:
            return 0.0
        if now >= self.until:
            self.until = now + self.pause  # this caller tries, the others go on waiting
            return 0.0
        return self.until - now

    def good(self) -> None:
        """The directory has answered."""
        self.failures, self.pause, self.until = 0, PAUSE_S, 0.0

    def bad(self, now: float, reason: str) -> None:
        """It has not."""
        self.failures, self.reason = self.failures + 1, reason
        if self.failures >= FAILURES:
            self.until = now + self.pause
            self.pause = min(self.pause * 2, LONGEST_S)


class Guard:
    """The threads of one directory. ``cut`` ends the work of a thread (by its number) that runs too long."""

    def __init__(self, name: str, deadline_s: float, cut: Callable[[int], None]) -> None:
        self.name, self.deadline_s, self._cut = name, deadline_s, cut
        self.breaker = Breaker()
        self._lock = threading.Lock()
        self._pool = ThreadPoolExecutor(WORKERS, thread_name_prefix="ldap")
        self._flying: dict[object, Future[Any]] = {}
        self._running: dict[int, float] = {}  # thread -> when it must be done
        self._waiting = 0

    def fault(self, reason: str, retry_s: float = 1.0) -> Fault:
        """503 for this domain."""
        text = f"The directory of domain {self.name} cannot be used: {reason.rstrip('.')}; try again later."
        return unavailable(text, max(1, round(retry_s)))

    def late(self) -> Fault:
        """The refusal for who has waited long enough."""
        with self._lock:
            self._reap()
        return self.fault("no answer in time")

    def check(self) -> None:
        """Raise the 503 at once when it makes no sense to ask now."""
        with self._lock:
            self._reap()
            if self._waiting >= WAITING:
                raise self.fault("too many requests wait for it")
            if self.breaker.failures >= FAILURES and clock.monotonic() < self.breaker.until:
                raise self.fault(self.breaker.reason, self.breaker.until - clock.monotonic())

    def start(self, key: object, work: Callable[[], Any]) -> Future[Any]:
        """Have the work done; equal keys that are under way share one result. Raises the 503."""
        with self._lock:
            flying = self._flying.get(key)
            if flying is not None:
                return flying
            self._reap()
            if self._waiting >= WAITING:
                raise self.fault("too many requests wait for it")
            if (pause := self.breaker.wait_s(clock.monotonic())) > 0:
                raise self.fault(self.breaker.reason, pause)
            self._waiting += 1
            trial = self.breaker.failures >= FAILURES
            try:
                future = self._flying[key] = self._pool.submit(self._run, work, trial)
            except RuntimeError:  # closed: other options hold by now, the next request has them
                self._waiting -= 1
                raise self.fault("its configuration has just changed") from None
        future.add_done_callback(lambda _: self._landed(key))
        return future

    def _landed(self, key: object) -> None:
        with self._lock:
            self._flying.pop(key, None)
            self._waiting -= 1

    def _run(self, work: Callable[[], Any], trial: bool) -> Any:
        me = threading.get_ident()
        with self._lock:
            if self.breaker.failures >= FAILURES and not trial:  # it has been waiting while others found out
                raise self.fault(self.breaker.reason, self.breaker.pause)
            self._running[me] = clock.monotonic() + self.deadline_s
        try:
            result = _patiently(work)
        except Unreachable as e:
            log.warning("directory of domain %s: %s", self.name, e)
            with self._lock:
                self.breaker.bad(clock.monotonic(), e.reason)
            raise self.fault(e.reason) from None
        except Rejected as e:
            with self._lock:
                self.breaker.good()
            log.warning("directory of domain %s: %s", self.name, e)
            raise self.fault(f"it refuses our request ({e})") from None
        except Fault:
            with self._lock:
                self.breaker.good()
            raise
        finally:
            with self._lock:
                self._running.pop(me, None)
        with self._lock:
            self.breaker.good()
        return result

    def _reap(self) -> None:
        now = clock.monotonic()
        for thread, until in list(self._running.items()):
            if now > until:
                self._running.pop(thread)
                self._cut(thread)

    def threads(self) -> int:
        """How many are at work or wait for it."""
        with self._lock:
            return self._waiting

    def close(self, *, now: bool = False) -> None:
        """Take no more work; what waits is done unless the process ends ``now``."""
        self._pool.shutdown(wait=False, cancel_futures=now)


def _patiently(work: Callable[[], Any]) -> Any:
    """The work's result; what finds our own database busy is done again a few times."""
    try:
        return patiently(work, blindly=True)
    except Busy:
        raise unavailable("The database is busy; try again.") from None
