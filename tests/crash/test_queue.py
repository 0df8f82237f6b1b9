"""Die, interfere and stall at every point of a toy server's life; and proof that the nets catch what they are for."""

from __future__ import annotations

import dataclasses
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from nubila.core import work
from nubila.core.db import Store, Tx
from nubila.core.work import Item
from nubila.testing.crashpoints import Report, Scene, Theatre, survives

sys.path.insert(0, str(Path(__file__).parent))
import toy

pytest_plugins = ["nubila.testing.fixtures"]

# A network database costs 0.1 s a performance: every point there takes minutes, so daily runs take every fifth.
EVERY = 1 if os.environ.get("NUBILA_EVERY_POINT") else 5


def test_toy_survives_every_accident(database_url: str):
    reports = survives(toy.play(), database_url, every=1 if database_url.startswith("sqlite") else EVERY)
    assert [r.accident for r in reports] == ["die", *toy.INTRUDERS, "stall"]
    assert all(r.points > 100 and r.performed >= r.points // EVERY for r in reports)


def test_points_are_statements_commits_and_driver_calls(tmp_path: Path):
    theatre = Theatre(toy.play(), f"sqlite:///{tmp_path}/db")
    points, complaints = theatre.rehearse()
    theatre.close()
    assert complaints == []
    for some in ("begin", "commit", "committed", "before Hypervisor.ensure", "after Hypervisor.remove"):
        assert some in points
    assert any(p.startswith("UPDATE work") for p in points)
    assert any(p.startswith("SELECT toy_server") for p in points)


# --- planted bugs: each must turn the net red -------------------------------------------------------------------------

Plant = Callable[[pytest.MonkeyPatch], None]
real_ask, real_settle, real_drop, real_take = work.ask, work.settle, work.drop, work.take


def ask_after_commit(patch: pytest.MonkeyPatch) -> None:
    """The broker's way: first the database, then the queue."""

    def ask(tx: Tx, kind: str, id: str, shard: str) -> None:
        store = tx._store

        def later() -> None:
            with store.write() as second:
                real_ask(second, kind, id, shard)

        tx.after_commit(later)

    patch.setattr(work, "ask", ask)


def settle_without_comparing(patch: pytest.MonkeyPatch) -> None:
    def now_asked(tx: Tx, item: Item) -> Item:
        found = tx.scalar(sa.select(work.c.gen).where(work.c.id == item.id, work.c.shard == item.shard))
        return dataclasses.replace(item, gen=found or item.gen)

    patch.setattr(work, "settle", lambda tx, item, *how: real_settle(tx, now_asked(tx, item), *how))
    patch.setattr(work, "drop", lambda tx, item: real_drop(tx, now_asked(tx, item)))


def no_fencing_token(patch: pytest.MonkeyPatch) -> None:
    def whatever(tx: Tx, item: Item) -> Item:
        found = tx.scalar(sa.select(work.c.token).where(work.c.id == item.id, work.c.shard == item.shard))
        return dataclasses.replace(item, token=found or item.token)

    patch.setattr(work, "hold", lambda tx, item: None)
    patch.setattr(work, "keep", lambda tx, item: None)
    patch.setattr(work, "settle", lambda tx, item, *how: real_settle(tx, whatever(tx, item), *how))
    patch.setattr(work, "drop", lambda tx, item: real_drop(tx, whatever(tx, item)))


def no_epoch_at_the_host(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(toy.Hypervisor, "fencing", False)


def lease_for_ever(patch: pytest.MonkeyPatch) -> None:
    def take(store: Store, *how: Any) -> list[Item]:
        items = real_take(store, *how)
        if items:
            with store.write() as tx:
                tx.execute(sa.update(work.work).where(work.c.lease > 0).values(lease=work.FAR))
        return items

    patch.setattr(work, "take", take)


@pytest.mark.parametrize(
    ("plant", "accident"),
    [
        (ask_after_commit, "die"),
        (settle_without_comparing, "a rival, and off"),
        (settle_without_comparing, "gone"),
        (no_fencing_token, "stall"),
        (no_epoch_at_the_host, "stall"),
        (lease_for_ever, "die"),
    ],
)
def test_net_catches_a_planted_bug(plant: Plant, accident: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    plant(monkeypatch)
    theatre = Theatre(toy.play(), f"sqlite:///{tmp_path}/db")
    report: Report = theatre.perform(accident)
    theatre.close()
    print(report)
    assert report.failures


def test_complaint_without_accident_is_not_blamed_on_one(tmp_path: Path):
    def judge(scene: Scene) -> list[str]:
        return ["the judge is in a mood"]

    theatre = Theatre(toy.play(judge=judge), f"sqlite:///{tmp_path}/db")
    with pytest.raises(AssertionError, match="without any accident"):
        theatre.perform("die")
    theatre.close()
    with pytest.raises(AssertionError, match="mood"):
        survives(toy.play(judge=judge), f"sqlite:///{tmp_path}/db2")
