"""What every module that speaks SQL shares: the core tables' metadata, the database's clock, upserts, the errors.

Nothing here opens a connection. ``core.db`` raises the errors, ``core.work`` and ``core.quota`` define the tables.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, cast

import sqlalchemy as sa
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.functions import FunctionElement

core_meta = sa.MetaData()
"""The tables of core itself (work queue, quotas); ``Store.create_all`` always makes them."""


class StoreError(Exception):
    """Base of everything the database refuses."""


class Conflict(StoreError):
    """A unique, foreign key or other constraint was violated; the transaction is over.

    ``constraint`` is the name or the columns as the database says it ("project.name" or "uq_project_name"), ``kind``
    one of "unique", "foreign", "other" (not null, check).
    """

    def __init__(self, constraint: str, kind: str = "unique") -> None:
        super().__init__(f"{kind} constraint violated: {constraint}")
        self.constraint = constraint
        self.kind = kind


class Busy(StoreError):
    """Locked, deadlocked or not serializable: nothing was written, the same call may succeed later (HTTP 503)."""


class Unavailable(Busy):
    """The database can not be reached or can not write (disk full): retrying at once does not help (HTTP 503).

    When the connection broke during commit nobody knows whether the transaction happened, hence no blind retry.
    """


class now(FunctionElement[float]):
    """The database's clock in seconds since 1970: one clock for every machine that shares the database."""

    type = sa.Double()
    inherit_cache = True


@compiles(now)
def _now(element: now, compiler: Any, **kw: Any) -> str:
    return "now()"  # for str(statement) only: every supported database has its own below


@compiles(now, "sqlite")
def _now_sqlite(element: now, compiler: Any, **kw: Any) -> str:
    return "((julianday('now') - 2440587.5) * 86400.0)"


@compiles(now, "postgresql")
def _now_postgresql(element: now, compiler: Any, **kw: Any) -> str:
    return "extract(epoch from clock_timestamp())::double precision"


@compiles(now, "mysql")
@compiles(now, "mariadb")
def _now_mysql(element: now, compiler: Any, **kw: Any) -> str:
    return "cast(unix_timestamp(sysdate(6)) as double)"


def upsert(
    dialect: str, table: sa.Table, values: Mapping[str, Any], update: Mapping[str, Any], keys: Iterable[str] = ()
) -> sa.Insert:
    """Return one statement that inserts `values` or, when the key is there already, sets `update` on the row.

    `keys` are the columns of the unique key (default: the primary key). An empty `update` leaves the row as it is but
    waits for, and then sees, a concurrent insert of the same key. The row count tells nothing reliable.
    """
    names = list(keys) or [c.name for c in table.primary_key.columns]
    if dialect == "mysql":  # imported here: 40 ms of every start for a database that is not used
        from sqlalchemy.dialects import mysql

        mine = mysql.insert(table).values(**values)
        return mine.on_duplicate_key_update(**(update or {names[0]: table.c[names[0]]}))
    stmt: Any
    if dialect == "sqlite":
        from sqlalchemy.dialects import sqlite

        stmt = sqlite.insert(table).values(**values)
    else:
        from sqlalchemy.dialects import postgresql

        stmt = postgresql.insert(table).values(**values)
    if not update:
        return cast(sa.Insert, stmt.on_conflict_do_nothing(index_elements=names))
    return cast(sa.Insert, stmt.on_conflict_do_update(index_elements=names, set_=dict(update)))
