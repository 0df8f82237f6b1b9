"""The loop that makes debts true: take, reconcile, settle, sleep until nudged.

A reconciler gets a key, reads everything anew, changes the difference and settles with a sentence. It may raise
anything: the exception becomes the note and the debt is tried again with back-off. It may die anywhere: the lease runs
out and somebody else takes the row. It may hang: the watchdog ends the whole process shortly before the lease runs out,
because a crash is the one failure that is handled, and a process that merely thinks it still holds a lease is not.
"""

from __future__ import annotations

import faulthandler
import logging
import os
import sys
import threading
import time
from collections.abc import Callable, Iterable, Mapping

from nubila.core import work
from nubila.core.db import Store
from nubila.core.sql import Busy, StoreError
from nubila.core.work import Item, LostLease

Reconciler = Callable[[Store, Item], None]
log = logging.getLogger(__name__)
EX_HUNG = 70  # exit status of a process the watchdog ended (EX_SOFTWARE of sysexits.h)


def _die(item: Item) -> None:
    print(f"nubila: {item.kind} {item.id} hangs; ending this process before its lease runs out", file=sys.stderr)
    faulthandler.dump_traceback(all_threads=True)
    os._exit(EX_HUNG)


def explain(error: BaseException) -> str:
    """Word an exception as a note: its class and its text in one line."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def turn(store: Store, reconcilers: Mapping[str, Reconciler], item: Item) -> None:
    """Run one item's reconciler and see to it that the turn ends; raises only what ends a process."""
    try:
        reconciler = reconcilers.get(item.kind)
        if reconciler is None:
            raise LookupError(f"nothing here reconciles {item.kind}")
        reconciler(store, item)
        if not item.ended:
            raise RuntimeError(f"the reconciler of {item.kind} neither settled nor dropped")
    except LostLease:
        log.info("%s %s: somebody else holds it now", item.kind, item.id)
    except Busy as error:
        # Nobody's fault and usually over at once: not a failure of this item.
        log.debug("%s %s: %s", item.kind, item.id, error)
        _end(store, item, explain(error), again=work.backoff_s(item.tries, first=0.05, most=5.0), failed=True)
    except Exception as error:
        log.warning("%s %s: %s", item.kind, item.id, explain(error), exc_info=log.isEnabledFor(logging.DEBUG))
        _end(store, item, explain(error), again=work.backoff_s(item.tries), failed=True)


def _end(store: Store, item: Item, note: str, *, again: float, failed: bool) -> None:
    if item.ended:  # it failed after it had settled: what it promised in between stands
        return
    try:
        store.transact(lambda tx: tx.settle(note, again=again, failed=failed), item=item)
    except (LostLease, StoreError) as error:
        log.info("%s %s: can not settle: %s", item.kind, item.id, error)  # the lease will run out


class Loop:
    """Keeps one shard true with `threads` threads.

    Rows are leased `lease_s` seconds, `batch` at a time. `idle_s` is the longest sleep when no nudge comes. Shortly
    before a lease runs out (``margin_s``, a fifth of it) the watchdog calls `hung` with the item, by default to end the
    process.
    """

    def __init__(
        self,
        store: Store,
        shard: str,
        reconcilers: Mapping[str, Reconciler],
        *,
        lease_s: float = 30.0,
        batch: int = 8,
        idle_s: float = 1.0,
        threads: int = 1,
        hung: Callable[[Item], None] = _die,
    ) -> None:
        self._store = store
        self._shard = shard
        self._reconcilers = reconcilers
        self._lease_s = lease_s
        self._batch = batch
        self._idle_s = idle_s
        self._threads = threads
        self._hung = hung
        self.margin_s = lease_s / 5
        self._nudged = threading.Condition()
        self._nudges = 0
        self._running: dict[int, tuple[float, Item]] = {}  # thread -> (when it must be over, what it does)
        self._over = threading.Event()

    def wake(self) -> None:
        """Look for work now: the nudge. Cheap, from any thread."""
        with self._nudged:
            self._nudges += 1
            self._nudged.notify_all()

    def run(self, stop: threading.Event) -> None:
        """Work until `stop` is set (call ``wake`` after setting it, to be noticed at once)."""
        self._over.clear()
        watchdog = threading.Thread(target=self._watch, name=f"watchdog {self._shard}", daemon=True)
        watchdog.start()
        others = [
            threading.Thread(target=self._work, args=(stop,), name=f"reconcile {self._shard} {n}", daemon=True)
            for n in range(1, self._threads)
        ]
        for thread in others:
            thread.start()
        try:
            self._work(stop)
            for thread in others:
                thread.join()
        finally:
            self._over.set()
            watchdog.join()

    def _work(self, stop: threading.Event) -> None:
        while not stop.is_set():
            seen = self._nudges  # before looking: a nudge that comes while we look must not be slept over
            taken_at = time.monotonic()
            try:
                items = work.take(self._store, self._shard, self._batch, self._lease_s)
            except Busy as error:
                log.info("can not take work: %s", error)
                stop.wait(min(self._idle_s, 0.2))
                continue
            if items:
                self._batch_of(items, taken_at, stop)
            else:
                self._sleep(seen)

    def _batch_of(self, items: list[Item], taken_at: float, stop: threading.Event) -> None:
        me = threading.get_ident()
        for index, item in enumerate(items):
            # A slow item has used up the time of those behind it: they start anew with a whole lease.
            if stop.is_set() or (index and time.monotonic() - taken_at > self._lease_s / 2):
                self._give_back(items[index:])
                return
            self._running[me] = (taken_at + self._lease_s - self.margin_s, item)
            try:
                turn(self._store, self._reconcilers, item)
            finally:
                del self._running[me]

    def _give_back(self, items: list[Item]) -> None:
        try:
            work.give_back(self._store, items)
        except StoreError as error:
            log.info("can not return work: %s", error)  # the leases will run out

    def _sleep(self, seen: int) -> None:
        try:
            due = work.next_due(self._store, self._shard)
        except StoreError:
            due = None
        wait_s = self._idle_s if due is None else min(max(due, 0.001), self._idle_s)
        with self._nudged:
            if self._nudges == seen:
                self._nudged.wait(wait_s)

    def _watch(self) -> None:
        while not self._over.wait(min(self.margin_s / 4, 1.0)):
            now = time.monotonic()
            for until, item in list(self._running.values()):
                if now > until:
                    self._hung(item)


def run_until_quiet(
    store: Store, shards_and_reconcilers: Mapping[str, Mapping[str, Reconciler]], limit: int = 10_000
) -> int:
    """For tests: reconcile every shard, in turn, until nothing is due; return how many turns it took.

    No threads, no sleeping: what is due later (``again``) stays. An exception of a reconciler is raised, not noted.
    Raises AssertionError after `limit` turns: something never settles.
    """
    turns = 0
    while True:
        before = turns
        for shard, reconcilers in shards_and_reconcilers.items():
            for item in work.take(store, shard, 1, 60):
                turns += 1
                if turns > limit:
                    raise AssertionError(f"never settles; still due: {_notes(work.pending(store))}")
                if item.kind not in reconcilers:
                    raise LookupError(f"nothing here reconciles {item.kind} on shard {shard!r}")
                try:
                    reconcilers[item.kind](store, item)
                except LostLease:
                    continue
                if not item.ended:
                    raise RuntimeError(f"the reconciler of {item.kind} neither settled nor dropped")
        if turns == before:
            return turns


def _notes(debts: Iterable[Mapping[str, object]]) -> str:
    return "; ".join(f"{d['kind']} {d['id']}: {d['note']}" for d in debts)
