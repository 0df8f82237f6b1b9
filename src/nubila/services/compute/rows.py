"""Find servers: the visible one of a request, and changes of its row."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa

from nubila.core import clock
from nubila.core.call import Call
from nubila.core.db import Reader, Tx
from nubila.core.faults import Fault, conflict
from nubila.services.compute.kinds import SERVER
from nubila.services.compute.wire import is_admin

Row = dict[str, Any]
ONE = sa.select(SERVER).where(SERVER.c.id == sa.bindparam("id"))
ONE_LOCKED = ONE.with_for_update()
_UNSEEN = ("networks", "security_groups", "keypair", "files", "password", "deadline")
VIEW = tuple(c for c in SERVER.c if c.name not in _UNSEEN)
"""The columns a view needs: the rest is for the host, and decoding its JSON would cost more than the query."""
_SHOWN = sa.select(*VIEW).where(SERVER.c.id == sa.bindparam("id"))


def missing(id: str) -> Fault:
    """404 for a server."""
    return Fault(404, f"Instance {id} could not be found.")


def get(reader: Reader, id: str) -> Row | None:
    """The row whatever its state, deleted ones included."""
    return reader.one(ONE, {"id": id})


def find(call: Call, rule: str, *, deleted: bool = False, shown: bool = False) -> Row:
    """The server in the path, when the caller may know of it (404) and policy allows ``rule`` (403).

    In a write transaction the row is locked, so that what is decided from it stays true until the commit. ``shown``:
    only what a view needs is read.
    """
    key = call.params["server_id"]
    statement = _SHOWN if shown else ONE
    if call.method != "GET" and call.tx.dialect != "sqlite":
        statement = ONE_LOCKED
    row = call.tx.one(statement, {"id": key})
    if row is None or (row["deleted"] and not deleted):
        raise missing(key)
    if row["project_id"] != call.creds.project_id and not is_admin(call):
        raise missing(key)
    call.enforce(rule, row)
    return dict(row)


def unlocked(call: Call, row: Row, what: str) -> None:
    """Refuse with 409 when the server is locked and the caller is not an administrator."""
    if row["locked_by"] and not is_admin(call):
        raise conflict(f"Instance {row['id']} is locked: unlock it before {what}.")


def change(tx: Tx, row: Row, **values: Any) -> None:
    """Write columns of a server and keep the caller's dict in step."""
    values.setdefault("updated_at", clock.now())
    tx.execute(sa.update(SERVER).where(SERVER.c.id == row["id"]).values(**values))
    row.update(values)


def wrong_state(row: Row, action: str, attribute: str, state: Any) -> Fault:
    """409 in the words clients know."""
    return conflict(f"Cannot '{action}' instance {row['id']} while it is in {attribute} {state}")
