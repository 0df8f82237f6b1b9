"""Ask a host a question (a guest's console log) through the same queue as everything else.

No API process touches a host: a question is a row and a work item of the host's shard; the answer is written into the
row when the agent settles the item.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import sqlalchemy as sa

from nubila.core import clock
from nubila.core.cloud import Cloud
from nubila.core.db import Reader, Tx
from nubila.core.faults import conflict, unavailable
from nubila.core.service import HostItem
from nubila.services.hosts.tables import QUERY

_ONE = sa.select(QUERY).where(QUERY.c.id == sa.bindparam("id"))
_OPEN = sa.select(QUERY.c.id).where(QUERY.c.host == sa.bindparam("host"))
KEEP_S = 60.0


def ask(tx: Tx, host: str, question: Mapping[str, Any]) -> str:
    """Put a question to a host; returns its id. Old questions nobody fetched go."""
    id = clock.new_id()
    tx.execute(sa.delete(QUERY).where(QUERY.c.asked < time.time() - KEEP_S))
    tx.insert(QUERY, {"id": id, "host": host, "question": dict(question), "answer": None, "asked": time.time()})
    tx.ask("query", id, host)
    return id


async def answer(cloud: Cloud, id: str, timeout_s: float = 10.0) -> dict[str, Any]:
    """Wait for the answer. Raises 503 when the host does not answer in time, 409 when it cannot."""
    deadline = time.monotonic() + timeout_s
    assert cloud.waiters is not None
    with cloud.waiters.listening(f"query:{id}") as nap:
        while True:
            with cloud.store.read() as reader:
                row = reader.one(_ONE, {"id": id})
            if row is None:
                raise unavailable("The host forgot the question; try again.")
            if row["answer"] is not None:
                break
            left = deadline - time.monotonic()
            if left <= 0:
                raise unavailable(f"Host {row['host']} did not answer within {timeout_s:g} s.", 5)
            await nap(min(left, 0.25))
    with cloud.store.write() as tx:
        tx.execute(sa.delete(QUERY).where(QUERY.c.id == id))
    result: dict[str, Any] = row["answer"]
    if "error" in result:
        raise conflict(str(result["error"]))
    return result


def look(cloud: Cloud, id: str) -> dict[str, Any] | None:
    """The answer if it is there, fetched once; None while the host has not answered. For commands, which may wait."""
    with cloud.store.read() as reader:
        row = reader.one(_ONE, {"id": id})
    if row is None:
        return {"error": "the host forgot the question"}
    if row["answer"] is None:
        return None
    with cloud.store.write() as tx:
        tx.execute(sa.delete(QUERY).where(QUERY.c.id == id))
    found: dict[str, Any] = row["answer"]
    return found


def _describe(cloud: Cloud, reader: Reader, id: str, host: str) -> Any:
    row = reader.one(_ONE, {"id": id})
    return None if row is None or row["host"] != host or row["answer"] is not None else row["question"]


def _observe(cloud: Cloud, tx: Tx, id: str, host: str, observed: Mapping[str, Any]) -> str:
    if observed.get("status") == "GONE":
        return "answered"
    result = observed.get("answer") or {"error": observed.get("fault") or "the host gave no answer"}
    tx.execute(sa.update(QUERY).where(QUERY.c.id == id, QUERY.c.host == host).values(answer=result))
    if (nudge := cloud.store.nudge) is not None:
        tx.after_commit(lambda: nudge({f"query:{id}"}))
    return "answered"


def _every(cloud: Cloud, reader: Reader, host: str) -> list[str]:
    return [r[0] for r in reader.rows(_OPEN, {"host": host})]


ITEM = HostItem(describe=_describe, observe=_observe, every=_every, order=9)
