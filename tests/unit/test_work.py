# ruff: noqa: PT012 - a transaction is one statement in spirit
"""The narrow promises of the work queue, one test each, on every database."""

from __future__ import annotations

import threading
import time
from typing import Any

import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

from nubila.core import work
from nubila.core.db import Store
from nubila.core.work import Item, LostLease

pytest_plugins = ["nubila.testing.fixtures"]


def ask(store: Store, id: str = "a", shard: str = "", kind: str = "k") -> None:
    with store.write() as tx:
        tx.ask(kind, id, shard)


def settle(store: Store, item: Item, note: str = "did it", **how: Any) -> None:
    with store.write(item) as tx:
        tx.settle(note, **how)


def row(store: Store, id: str = "a") -> dict[str, Any]:
    (found,) = work.why(store, id)
    return found


def test_asked_taken_settled(store: Store):
    assert work.next_due(store, "") is None
    ask(store)
    assert work.next_due(store, "") <= 0.001
    (item,) = work.take(store, "", 9, 60)
    assert (item.kind, item.id, item.shard, item.gen, item.tries) == ("k", "a", "", 1, 0)
    assert work.take(store, "", 9, 60) == []
    assert 50 < work.next_due(store, "") <= 60
    settle(store, item)
    assert item.ended == ["did it"]
    found = row(store)
    assert (found["gen"], found["done"], found["note"], found["due_in_s"]) == (1, 1, "did it", None)
    assert work.take(store, "", 9, 60) == []
    assert work.pending(store) == []
    assert work.invariants(store) == []


def test_what_its_one_worker_does_not_hold_is_due_again(store: Store):
    """An answer that never arrived must not keep its rows on lease until the lease runs out."""
    for id in ("a", "b"):
        ask(store, id, shard="h1")
    mine, lost = work.take(store, "h1", 9, 60)
    assert work.release_others(store, "h1", [(i.kind, i.id, i.token) for i in (mine, lost)]) == 0
    assert work.release_others(store, "h1", [(mine.kind, mine.id, mine.token)]) == 1
    (again,) = work.take(store, "h1", 9, 60)
    assert (again.id, again.token > lost.token) == (lost.id, True)
    settle(store, mine)
    with pytest.raises(LostLease):
        settle(store, lost)
    settle(store, again)
    assert work.release_others(store, "h1", []) == 0
    assert work.pending(store) == []


def soon(store: Store, id: str = "a", times: int = 1) -> None:
    with store.write() as tx:
        tx.ask("k", id, soon=times)


def test_asks_that_may_wait_are_answered_together(store: Store):
    store.calm_s = 60.0
    soon(store)
    assert work.take(store, "", 9, 60) == []
    assert 55 < work.next_due(store, "") <= 60
    soon(store, times=5)  # a steady stream must not put it off
    assert 55 < work.next_due(store, "") <= 60
    ask(store)
    (item,) = work.take(store, "", 9, 30)
    assert item.gen == 3
    soon(store)  # while it is being done: not at once after it, and not lost
    settle(store, item)
    assert work.take(store, "", 9, 60) == []
    assert 55 < row(store)["due_in_s"] <= 60
    assert work.invariants(store) == []
    with store.write() as tx:
        tx.ask("k", "a", soon=3)
        tx.ask("k", "a")  # the sooner of two in one transaction counts
    assert len(work.take(store, "", 9, 60)) == 1
    store.calm_s = 0.0
    soon(store, "b")
    assert [i.id for i in work.take(store, "", 9, 60)] == ["b"]


def test_nobody_is_told_twice_of_what_may_wait(store: Store):
    told: list[set[str]] = []
    store.calm_s, store.nudge = 60.0, told.append
    for id in ("a", "b", "c"):
        soon(store, id)
    assert told == [{""}]
    soon(store, times=2)
    ask(store)
    assert told == [{""}] * 3


def test_ask_during_the_turn_is_not_lost(store: Store):
    ask(store)
    (item,) = work.take(store, "", 9, 60)
    ask(store)
    settle(store, item)
    (again,) = work.take(store, "", 9, 60)
    assert (again.gen, row(store)["done"]) == (2, 1)


def test_ask_during_the_turn_beats_a_long_nap(store: Store):
    ask(store)
    (item,) = work.take(store, "", 9, 60)
    ask(store)
    settle(store, item, again=86400)
    assert work.take(store, "", 9, 60)


def test_looking_again_later_keeps_the_debt_but_is_not_due(store: Store):
    ask(store)
    (item,) = work.take(store, "", 9, 60)
    settle(store, item, "waiting for port p", again=30)
    assert work.take(store, "", 9, 60) == []
    (debt,) = work.pending(store)
    assert debt["note"] == "waiting for port p"
    assert 25 < debt["due_in_s"] <= 30
    assert 25 < work.next_due(store, "") <= 30
    ask(store)
    (item,) = work.take(store, "", 9, 60)
    assert item.tries == 0


def test_late_worker_can_not_write(store: Store):
    ask(store)
    (old,) = work.take(store, "", 9, -1)  # its lease is over at once
    (new,) = work.take(store, "", 9, 60)
    with pytest.raises(LostLease), store.write(old) as tx:
        tx.ask("other", "b")
        tx.settle("late")
    assert work.why(store, "b") == []
    assert row(store)["note"] == ""
    assert old.ended == []
    settle(store, new)


def test_worker_that_loses_its_lease_in_the_middle_is_undone(store: Store):
    """Between the first statement of the transaction and its end somebody else took the row."""
    ask(store)
    (old,) = work.take(store, "", 9, -1)
    if store.embedded:
        pytest.skip("SQLite has one writer: nobody can take it in the middle")
    other = Store(store.url)
    with pytest.raises(LostLease), store.write(old) as tx:
        assert work.take(other, "", 9, 60)
        tx.ask("other", "b")
        tx.settle("late")
    assert work.why(store, "b") == []
    with pytest.raises(LostLease), store.write(old) as tx:  # a write that does not end the turn is fenced as well
        tx.ask("other", "b")
    assert work.why(store, "b") == []
    other.close()


def test_late_worker_nobody_replaced_may_still_finish(store: Store):
    ask(store)
    (item,) = work.take(store, "", 9, -1)
    settle(store, item)
    assert work.pending(store) == []


def test_write_that_does_not_end_the_turn_keeps_the_lease(store: Store):
    ask(store)
    (item,) = work.take(store, "", 9, 60)
    with store.write(item) as tx:
        tx.ask("child", "b")
    assert item.ended == []
    assert [i.id for i in work.take(store, "", 9, 60)] == ["b"]
    settle(store, item)


def test_ask_and_change_live_or_die_together(store: Store):
    with pytest.raises(ZeroDivisionError), store.write() as tx:
        tx.ask("k", "a")
        raise ZeroDivisionError
    assert work.why(store, "a") == []


def test_token_of_a_row_that_came_back_is_larger(store: Store):
    ask(store)
    (old,) = work.take(store, "", 9, -1)
    (item,) = work.take(store, "", 9, 60)
    with store.write(item) as tx:
        tx.drop()
    threading.Event().wait(0.005)
    ask(store)
    (new,) = work.take(store, "", 9, 60)
    assert new.token > item.token > old.token
    for late in (old, item):
        with pytest.raises(LostLease):
            settle(store, late)


def test_drop_gives_way_to_a_new_ask(store: Store):
    ask(store)
    (item,) = work.take(store, "", 9, 60)
    ask(store)
    with store.write(item) as tx:
        tx.drop()
    (item,) = work.take(store, "", 9, 60)
    with store.write(item) as tx:
        tx.drop()
    assert work.why(store, "a") == []
    with pytest.raises(LostLease), store.write(item):
        pass


def test_failure_backs_off_and_keeps_the_debt(store: Store):
    ask(store)
    (item,) = work.take(store, "", 9, 60)
    settle(store, item, "boom", again=0, failed=True)
    (item,) = work.take(store, "", 9, 60)
    assert (row(store)["done"], item.tries) == (0, 1)
    before = time.monotonic()
    settle(store, item, "boom", failed=True)  # no time given: grows with the attempts
    due = work.next_due(store, "")
    assert due < 1.5
    assert due + time.monotonic() - before > 0.5
    ask(store)  # a new wish starts anew
    (item,) = work.take(store, "", 9, 60)
    assert item.tries == 0


def test_dying_counts_as_a_try_and_giving_back_does_not(store: Store):
    ask(store)
    (item,) = work.take(store, "", 9, -1)
    (item,) = work.take(store, "", 9, 60)
    assert item.tries == 1
    work.give_back(store, [item])
    (item,) = work.take(store, "", 9, 60)
    assert item.tries == 1


def test_asking_for_oneself_in_the_turn_makes_it_due_again(store: Store):
    ask(store)
    (item,) = work.take(store, "", 9, 60)
    with store.write(item) as tx:
        tx.ask("k", "a")
        tx.settle("once more")
    (item,) = work.take(store, "", 9, 60)
    assert item.gen == 2


def test_shards_and_kinds_are_separate(store: Store):
    ask(store, "a", "host1")
    ask(store, "a", "host2")
    ask(store, "a", "")
    ask(store, "b", "", kind="other")
    assert [i.shard for i in work.take(store, "host1", 9, 60)] == ["host1"]
    assert [i.id for i in work.take(store, "", 9, 60, kinds=["other", "none"])] == ["b"]
    assert [i.kind for i in work.take(store, "", 9, 60)] == ["k"]
    assert [i.shard for i in work.take(store, "host2", 9, 60)] == ["host2"]


def test_agent_takes_over_its_predecessors_leases(store: Store):
    ask(store, "a", "host1")
    ask(store, "a", "host2")
    (old,) = work.take(store, "host1", 9, 60)
    (other,) = work.take(store, "host2", 9, 60)
    work.release_shard(store, "host1")
    with pytest.raises(LostLease):  # even before somebody takes it anew
        settle(store, old)
    assert work.take(store, "host1", 9, 60)
    settle(store, other)


def test_those_due_longest_come_first_and_no_more_than_asked_for(store: Store):
    for id in "cab":
        ask(store, id)
        threading.Event().wait(0.003)  # SQLite's clock has milliseconds
    assert [i.id for i in work.take(store, "", 2, 60)] == ["c", "a"]
    assert [i.id for i in work.take(store, "", 2, 60)] == ["b"]


def test_bounds(store: Store):
    with pytest.raises(ValueError, match="at most"):
        work.take(store, "", 1, 1e9)
    ask(store, "i" * 96, "s" * 64, "k" * 64)
    (item,) = work.take(store, "s" * 64, 1, 60)
    settle(store, item, "é" * 1000)
    assert row(store, "i" * 96)["note"] == "é" * 255
    with pytest.raises(RuntimeError, match="not opened with an item"), store.write() as tx:
        tx.settle("what?")


def test_invariants_name_what_is_wrong(store: Store):
    for id in "abc":
        ask(store, id)
    with store.write() as tx:
        tx.execute(sa.update(work.work).where(work.work.c.id == "a").values(due=work.FAR))
        tx.execute(sa.update(work.work).where(work.work.c.id == "b").values(lease=work.FAR))
        tx.execute(sa.update(work.work).where(work.work.c.id == "c").values(done=9))
    text = "\n".join(work.invariants(store))
    for words in ("k a on shard '' has a debt that is due never", "k b", "beyond any limit", "k c", "further than"):
        assert words in text


def none_owed(store: Store, kind: str) -> bool:
    return not [d for d in work.pending(store) if d["kind"] == kind]


def test_takers_share_without_doubling_or_deadlock(store: Store):
    """Several takers and askers, rows in opposite orders: each row is held by one taker at a time, none gets stuck."""
    ids = [f"i{n}" for n in range(12)]
    holders: dict[str, int] = {}
    doubled: list[str] = []
    stop = threading.Event()

    def asker(order: list[str]) -> None:
        for _ in range(15):
            store.transact(lambda tx: [tx.ask("k", id) for id in order])

    def taker() -> None:
        while not stop.is_set():
            for item in work.take(store, "", 3, 60):
                holders[item.id] = holders.get(item.id, 0) + 1
                if holders[item.id] > 1:
                    doubled.append(item.id)

                def end(tx: Any, item: Item = item) -> None:
                    tx.ask("child", item.id, "h")
                    holders[item.id] -= 1
                    tx.settle("ok")

                store.transact(end, item=item)
            stop.wait(0.002)

    takers = [threading.Thread(target=taker) for _ in range(3)]
    askers = [threading.Thread(target=asker, args=(order,)) for order in (ids, ids[::-1])]
    for thread in takers + askers:
        thread.start()
    for thread in askers:
        thread.join(60)
    deadline = time.monotonic() + 60
    while not none_owed(store, "k") and time.monotonic() < deadline:
        stop.wait(0.01)
    stop.set()
    for thread in takers:
        thread.join(60)
    assert doubled == []
    assert none_owed(store, "k")
    assert {r["gen"] for id in ids for r in work.why(store, id) if r["kind"] == "k"} == {30}
    assert work.invariants(store) == []


class Interleaving(RuleBasedStateMachine):
    """Any order of asks, takes, ends, deaths and late comers, against a model that fits on a page."""

    store: Store

    def __init__(self) -> None:
        super().__init__()
        with self.store.write() as tx:
            tx.execute(sa.delete(work.work))
        self.gen: dict[str, int] = {}
        self.seen: dict[str, int] = {}  # id -> highest gen a finished turn had read
        self.held: dict[str, Item] = {}
        self.lost: list[Item] = []

    @rule(id=st.sampled_from("abc"))
    def ask(self, id: str) -> None:
        ask(self.store, id)
        self.gen[id] = self.gen.get(id, 0) + 1

    @rule(dies=st.booleans())
    def take(self, dies: bool) -> None:
        due = {id for id, gen in self.gen.items() if self.seen.get(id, 0) < gen} - set(self.held)
        items = work.take(self.store, "", 9, -1 if dies else 60)
        assert {i.id for i in items} == due
        for item in items:
            assert item.gen == self.gen[item.id]
            if dies:
                self.lost.append(item)
            else:
                self.held[item.id] = item

    @precondition(lambda self: self.held)
    @rule(how=st.sampled_from(["settle", "again", "fail", "drop", "crash"]), data=st.data())
    def end(self, how: str, data: st.DataObject) -> None:
        id = data.draw(st.sampled_from(sorted(self.held)))
        item = self.held.pop(id)
        if how == "crash":
            work.give_back(self.store, [item])
            return
        with self.store.write(item) as tx:
            if how == "settle":
                tx.settle("ok")
            elif how == "drop":
                tx.drop()
            else:
                tx.settle("not yet", again=0, failed=how == "fail")
        if how in ("settle", "drop"):
            self.seen[id] = item.gen
        if how == "drop" and self.gen[id] == item.gen:
            del self.gen[id], self.seen[id]

    @precondition(lambda self: self.lost)
    @rule(data=st.data())
    def late(self, data: st.DataObject) -> None:
        item = self.lost.pop(data.draw(st.integers(0, len(self.lost) - 1)))
        newest = work.why(self.store, item.id)
        if newest and newest[0]["token"] == item.token:
            return  # nobody came after it: it may still write
        with pytest.raises(LostLease):
            settle(self.store, item)

    @invariant()
    def debts_are_exactly_the_unseen_asks(self) -> None:
        owed = {d["id"]: d["gen"] for d in work.pending(self.store)}
        assert owed == {id: gen for id, gen in self.gen.items() if self.seen.get(id, 0) < gen}
        assert work.invariants(self.store) == []


def test_any_interleaving(store: Store):
    class Here(Interleaving):
        pass

    Here.store = store
    run_state_machine_as_test(
        Here,
        settings=settings(
            max_examples=60 if store.embedded else 20,
            stateful_step_count=25,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
