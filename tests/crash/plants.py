"""Bugs to plant: what the nets are for. Each is put in by monkeypatching and must turn a net red."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import sqlalchemy as sa

from nubila.core import work
from nubila.core.db import Store, Tx
from nubila.core.work import Item

Plant = Callable[[pytest.MonkeyPatch], None]
real_ask, real_settle, real_drop, real_take = work.ask, work.settle, work.drop, work.take


def ask_after_commit(patch: pytest.MonkeyPatch) -> None:
    """The broker's way: first the database, then the queue."""

    def ask(tx: Tx, kind: str, id: str, shard: str, *how: float) -> None:
        store = tx._store

        def later() -> None:
            with store.write() as second:
                real_ask(second, kind, id, shard, *how)

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


def lease_for_ever(patch: pytest.MonkeyPatch) -> None:
    def take(store: Store, *how: Any) -> list[Item]:
        items = real_take(store, *how)
        if items:
            with store.write() as tx:
                tx.execute(sa.update(work.work).where(work.c.lease > 0).values(lease=work.FAR))
        return items

    patch.setattr(work, "take", take)
