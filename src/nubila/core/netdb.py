"""PostgreSQL and MariaDB: SQLAlchemy's engine, our errors.

Only ``core.db`` uses this module. Reads run on connections in autocommit (no BEGIN and ROLLBACK round trips), writes in
READ COMMITTED, where PostgreSQL and MariaDB lock alike and gap locks do not deadlock.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

import sqlalchemy as sa
from sqlalchemy import exc

from nubila.core.sql import Busy, Conflict, Unavailable
from nubila.core.sqlite import Traced

Row = tuple[Any, ...]
_PG_BUSY = {"40001", "40P01", "55P03"}  # serialization_failure, deadlock_detected, lock_not_available
_MY_BUSY = {1020, 1205, 1213}  # record changed, lock wait timeout, deadlock
_MY_UNIQUE = {1062, 1586}
_MY_FOREIGN = {1216, 1217, 1451, 1452}


def _mysql_conflict(number: int, text: str) -> Conflict:
    if number in _MY_UNIQUE:
        found = re.search(r"for key '([^']*)'", text)
        return Conflict(found[1] if found else text, "unique")
    found = re.search(r"CONSTRAINT `([^`]*)`", text)
    return Conflict(found[1] if found else text, "foreign" if number in _MY_FOREIGN else "other")


def _postgresql_conflict(orig: Any) -> Conflict:
    kind = {"23505": "unique", "23503": "foreign"}.get(orig.sqlstate or "", "other")
    return Conflict(orig.diag.constraint_name or orig.diag.column_name or str(orig), kind)


def refuse(error: exc.SQLAlchemyError) -> NoReturn:
    """Raise what the rest of the program understands instead of a SQLAlchemy error."""
    if isinstance(error, exc.TimeoutError):
        raise Busy("no free database connection") from error
    if isinstance(error, exc.DBAPIError):
        orig: Any = error.orig
        number = orig.args[0] if orig.args and isinstance(orig.args[0], int) else 0
        state = getattr(orig, "sqlstate", None)
        if isinstance(error, exc.IntegrityError):
            raise (_mysql_conflict(number, str(orig)) if number else _postgresql_conflict(orig)) from error
        if number in _MY_BUSY or state in _PG_BUSY:
            raise Busy(f"the database asks to try again: {orig}") from error
        # class 57P: the server is shutting down; 53: out of disk, memory or connections; 2002-2013: MariaDB's gone
        gone = error.connection_invalidated or (state or "")[:3] == "57P" or (state or "")[:2] in ("08", "53")
        lost = isinstance(error, exc.OperationalError) and state is None and (number in range(2000, 2060) or not number)
        if gone or lost or number in (1021, 1040, 1053, 1114):
            raise Unavailable(f"the database can not be used: {orig}") from error
    raise error


def engines(url: sa.URL, json: dict[str, Any], busy_timeout_s: float) -> tuple[sa.Engine, sa.Engine]:
    """Return the engines for writing and for reading; statements wait `busy_timeout_s` for a lock."""
    mysql = url.get_backend_name() == "mysql"
    if mysql:
        url = url.update_query_dict({"charset": "utf8mb4"})
        connect: dict[str, Any] = {
            "init_command": f"SET SESSION innodb_lock_wait_timeout = {int(busy_timeout_s)}",
            "connect_timeout": 10,
        }
    else:
        connect = {
            "options": f"-c lock_timeout={max(1, int(busy_timeout_s * 1000))}",  # 0 would mean for ever
            "connect_timeout": 10,
        }
    common: dict[str, Any] = {"pool_size": 10, "max_overflow": 30, "pool_timeout": 20, "connect_args": connect, **json}
    write = sa.create_engine(url, isolation_level="READ COMMITTED", **common)
    read = sa.create_engine(url, isolation_level="AUTOCOMMIT", skip_autocommit_rollback=True, **common)
    return write, read


class Session:
    """Runs statements on one SQLAlchemy connection, taken from the pool at the first statement."""

    __slots__ = ("_conn", "_engine", "_owner", "_retry", "broken")

    def __init__(self, engine: sa.Engine, owner: Traced, *, retry: bool) -> None:
        self._engine = engine
        self._owner = owner
        self._retry = retry
        self.broken = False
        self._conn: sa.Connection | None = None

    def _run(self, stmt: sa.Executable, params: Any) -> sa.CursorResult[Any]:
        if self._owner.trace is not None:
            self._owner.trace("execute", str(stmt.compile(self._engine)) if isinstance(stmt, sa.ClauseElement) else "")
        for attempt in (0, 1):
            try:
                if self._conn is None:
                    self._conn = self._engine.connect()
                return self._conn.execute(stmt, params)
            except exc.DBAPIError as error:
                # After the server restarted, the first use of each pooled connection fails; a read can just be redone.
                if self._retry and attempt == 0 and error.connection_invalidated:
                    self.release()
                    continue
                self.broken = True
                refuse(error)
            except exc.TimeoutError as error:
                refuse(error)
        raise AssertionError("unreachable")

    def fetch(self, stmt: sa.Executable, params: Mapping[str, Any] | None) -> tuple[Sequence[str], list[Row]]:
        result = self._run(stmt, params)
        return tuple(result.keys()), [tuple(row) for row in result]

    def first(self, stmt: sa.Executable, params: Mapping[str, Any] | None) -> tuple[Sequence[str], Row | None]:
        result = self._run(stmt, params)
        row = result.first()
        return tuple(result.keys()), None if row is None else tuple(row)

    def execute(self, stmt: sa.Executable, params: Any) -> int:
        return self._run(stmt, params if params else None).rowcount

    def begin(self) -> None:
        try:
            self._conn = self._engine.connect()
        except exc.SQLAlchemyError as error:
            refuse(error)

    def commit(self) -> None:
        assert self._conn is not None
        try:
            self._conn.commit()
        except exc.SQLAlchemyError as error:
            refuse(error)

    def rollback(self) -> None:
        if self._conn is None:
            return
        try:
            self._conn.rollback()
        except exc.SQLAlchemyError:
            self._conn.invalidate()  # a broken connection has rolled back by itself

    def release(self) -> None:
        if self._conn is not None:
            self._conn.close()
            self._conn = None
