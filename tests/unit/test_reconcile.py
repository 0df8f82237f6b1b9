"""The loop: what a reconciler does or fails to do, and what becomes of the debt."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from nubila.core import work
from nubila.core.db import Store
from nubila.core.reconcile import EX_HUNG, Loop, Reconciler, run_until_quiet
from nubila.core.sql import Busy
from nubila.core.work import Item

pytest_plugins = ["nubila.testing.fixtures"]


@pytest.fixture
def database_url(tmp_path: Path) -> str:
    """Here SQLite is enough: what differs between databases is below the loop."""
    return f"sqlite:///{tmp_path}/db"


def ask(store: Store, *ids: str, shard: str = "") -> None:
    with store.write() as tx:
        for id in ids:
            tx.ask("k", id, shard)


def until(fact: Callable[[], Any], what: str = "it") -> Any:
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        found = fact()
        if found:
            return found
        time.sleep(0.005)
    raise AssertionError(f"{what} did not happen")


@contextmanager
def running(store: Store, reconciler: Reconciler, **how: Any) -> Iterator[Loop]:
    loop = Loop(store, "", {"k": reconciler}, **how)
    stop = threading.Event()
    thread = threading.Thread(target=loop.run, args=(stop,))
    thread.start()
    yield loop
    stop.set()
    loop.wake()
    thread.join(20)
    assert not thread.is_alive()


def settle(store: Store, item: Item) -> None:
    with store.write(item) as tx:
        tx.settle("done")


def note(store: Store, id: str) -> str:
    return str(work.why(store, id)[0]["note"])


def test_everything_asked_is_done_by_several_threads(store: Store):
    seen: set[str] = set()

    def slow(store: Store, item: Item) -> None:
        seen.add(threading.current_thread().name)
        time.sleep(0.002)
        settle(store, item)

    ask(store, *(f"i{n}" for n in range(60)))
    with running(store, slow, threads=3, batch=4):
        until(lambda: work.pending(store) == [])
    assert len(seen) == 3


def test_nudge_wakes_a_sleeping_loop_at_once(store: Store):
    with running(store, settle, idle_s=60) as loop:
        time.sleep(0.1)  # it sleeps now
        ask(store, "a")
        loop.wake()
        until(lambda: work.pending(store) == [])  # long before the minute is over


def test_lost_nudge_costs_only_idle_time(store: Store):
    with running(store, settle, idle_s=0.05):
        ask(store, "a")
        until(lambda: work.pending(store) == [])


def test_waiting_row_is_looked_at_when_due_without_a_nudge(store: Store):
    turns: list[float] = []

    def twice(store: Store, item: Item) -> None:
        turns.append(time.monotonic())
        with store.write(item) as tx:
            tx.settle("waiting", again=0.1) if len(turns) == 1 else tx.settle("done")

    ask(store, "a")
    with running(store, twice, idle_s=60):
        until(lambda: work.pending(store) == [])  # long before the minute is over
    assert turns[1] - turns[0] > 0.09


def test_failure_becomes_the_note_and_is_tried_again(store: Store):
    tries: list[int] = []

    def bad(store: Store, item: Item) -> None:
        tries.append(item.tries)
        raise ValueError("no room\n  on any host")

    ask(store, "a")
    with running(store, bad):
        until(lambda: note(store, "a") == "ValueError: no room on any host")
        ask(store, "a")  # at once, not after the back-off
        until(lambda: len(tries) > 1)
    (debt,) = work.pending(store)
    assert debt["due_in_s"] < 2


def test_unknown_kind_and_forgotten_settle_are_told(store: Store):
    with store.write() as tx:
        tx.ask("other", "o")
        tx.ask("k", "a")
    with running(store, lambda store, item: None):
        until(lambda: "neither settled nor dropped" in note(store, "a"))
        until(lambda: "nothing here reconciles other" in note(store, "o"))


def test_failure_after_settling_changes_nothing(store: Store):
    def late(store: Store, item: Item) -> None:
        settle(store, item)
        raise ValueError("afterwards")

    ask(store, "a")
    with running(store, late):
        until(lambda: work.pending(store) == [])
    assert note(store, "a") == "done"


def test_busy_database_is_tried_again_soon(store: Store):
    calls: list[int] = []

    def busy(store: Store, item: Item) -> None:
        calls.append(1)
        if len(calls) < 3:
            raise Busy("planted")
        settle(store, item)

    ask(store, "a")
    with running(store, busy, idle_s=60):
        until(lambda: work.pending(store) == [])


def test_batch_that_takes_long_is_given_back(store: Store):
    """Rows behind a slow one are not worked on with the rest of its lease."""
    left: list[float] = []

    def slow(store: Store, item: Item) -> None:
        (row,) = work.why(store, item.id)
        left.append(row["leased_for_s"])
        time.sleep(0.6)
        settle(store, item)

    ask(store, "a", "b", "c")
    with running(store, slow, lease_s=1.0, hung=lambda item: None):
        until(lambda: work.pending(store) == [])
    assert len(left) == 3
    assert min(left) > 0.8


def test_stopping_returns_the_rest_of_the_batch(store: Store):
    stop = threading.Event()
    loop = Loop(store, "", {"k": lambda store, item: (stop.set(), settle(store, item))[1]})
    ask(store, "a", "b", "c")
    loop.run(stop)
    assert [d["leased_for_s"] for d in work.pending(store)] == [None, None]


def test_watchdog_names_what_hangs(store: Store):
    hung: list[Item] = []
    release = threading.Event()

    def hang(store: Store, item: Item) -> None:
        release.wait(20)
        settle(store, item)

    ask(store, "a")
    with running(store, hang, lease_s=0.4, hung=hung.append):
        until(lambda: hung)
        assert work.take(store, "", 1, 60) == []  # in time: nobody else could take it yet
        release.set()
    assert hung[0].id == "a"


def test_watchdog_ends_the_process(store: Store, database_url: str):
    code = (
        "import sys, threading\nfrom nubila.core.db import Store\nfrom nubila.core.reconcile import Loop\n"
        "hang = lambda store, item: threading.Event().wait(60)\n"
        "Loop(Store(sys.argv[1]), '', {'k': hang}, lease_s=1.0).run(threading.Event())\n"
    )
    ask(store, "a")
    done = subprocess.run(
        [sys.executable, "-c", code, database_url], capture_output=True, text=True, timeout=30, check=False
    )
    assert done.returncode == EX_HUNG
    assert "k a hangs" in done.stderr
    assert "in hang" in done.stderr or "<lambda>" in done.stderr
    until(lambda: work.take(store, "", 1, 60), "its lease ran out: that")


def test_run_until_quiet(store: Store):
    def fan(store: Store, item: Item) -> None:
        with store.write(item) as tx:
            tx.ask("k", item.id, "h")
            tx.settle("handed on")

    ask(store, "a", "b")
    assert run_until_quiet(store, {"": {"k": fan}, "h": {"k": settle}}) == 4
    assert work.pending(store) == []

    def again(store: Store, item: Item) -> None:
        with store.write(item) as tx:
            tx.settle("never", again=0)

    ask(store, "a")
    with pytest.raises(AssertionError, match=r"never settles.*k a: never"):
        run_until_quiet(store, {"": {"k": again}}, limit=20)
    ask(store, "z", shard="h2")
    with pytest.raises(RuntimeError, match="neither settled"):
        run_until_quiet(store, {"h2": {"k": lambda store, item: None}})
    with store.write() as tx:
        tx.ask("strange", "s", "h3")
    with pytest.raises(LookupError, match="strange"):
        run_until_quiet(store, {"h3": {}})
