"""One database: the truth everybody reads and the only place where a wish is recorded.

``Store`` is SQLite (WAL, one file, mode 0600) or, by URL, PostgreSQL or MariaDB. Reading is cheap and promises no
snapshot between statements. Writing is one transaction: rows first, then the work rows that were asked for, sorted by
(kind, id, shard), so that two transactions never wait for each other's work rows in opposite order; afterwards the
shards that were asked are nudged.

On SQLite statements bypass SQLAlchemy's connection (core/sqlite.py): pass the same module-level statement object with
``sa.bindparam`` and `params` each time and a row by key costs about what the sqlite3 module costs. A ``Store`` must be
opened after a fork, not before.
"""

from __future__ import annotations

import functools
import logging
import os
import random
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Any, Protocol, Self, TypeVar

import msgspec
import sqlalchemy as sa
from sqlalchemy.pool import NullPool

from nubila.core import netdb, sqlite, work
from nubila.core.sql import Busy, Conflict, StoreError, Unavailable, core_meta
from nubila.core.work import Item, LostLease

__all__ = ["Busy", "Conflict", "Item", "LostLease", "Reader", "Store", "StoreError", "Tx", "Unavailable", "core_meta"]

log = logging.getLogger(__name__)
T = TypeVar("T")
Params = Mapping[str, Any]


class _Session(Protocol):
    broken: bool

    def fetch(self, stmt: sa.Executable, params: Params | None) -> tuple[Sequence[str], list[tuple[Any, ...]]]: ...
    def first(self, stmt: sa.Executable, params: Params | None) -> tuple[Sequence[str], tuple[Any, ...] | None]: ...
    def execute(self, stmt: sa.Executable, params: Params | Sequence[Params] | None) -> int: ...
    def begin(self) -> None: ...
    def commit(self) -> None: ...
    def rollback(self) -> None: ...
    def release(self) -> None: ...


class Reader:
    """Runs SELECTs. Column names are those of the statement (a second ``id`` becomes ``id_1``)."""

    dialect: str

    def __init__(self, session: _Session, dialect: str) -> None:
        self._session = session
        self.dialect = dialect

    def all(self, stmt: sa.Executable, params: Params | None = None) -> list[dict[str, Any]]:
        """Return every row as a dict."""
        names, rows = self._session.fetch(stmt, params)
        return [dict(zip(names, row, strict=False)) for row in rows]

    def one(self, stmt: sa.Executable, params: Params | None = None) -> dict[str, Any] | None:
        """Return the first row as a dict, None when there is none."""
        names, row = self._session.first(stmt, params)
        return None if row is None else dict(zip(names, row, strict=False))

    def scalar(self, stmt: sa.Executable, params: Params | None = None) -> Any:
        """Return the first column of the first row, None when there is none."""
        row = self._session.first(stmt, params)[1]
        return None if row is None else row[0]

    def rows(self, stmt: sa.Executable, params: Params | None = None) -> list[tuple[Any, ...]]:
        """Return every row as a tuple: the fastest."""
        return self._session.fetch(stmt, params)[1]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._session.release()


class Tx(Reader):
    """One write transaction, opened by ``Store.write``; commits at the end of the block, undoes on an exception.

    After a statement failed (``Conflict``, ``Busy``) the transaction is over: let the exception leave the block.
    """

    def __init__(self, store: Store, session: _Session, item: Item | None) -> None:
        super().__init__(session, store.dialect)
        self._store = store
        self._item = item
        self._asks: dict[tuple[str, str, str], int] = {}  # how soon is enough, 0 = at once
        self._end: tuple[str, Callable[[], None]] | None = None
        self._after: list[Callable[[], None]] = []

    def execute(self, stmt: sa.Executable, params: Params | Sequence[Params] | None = None) -> int:
        """Run INSERT, UPDATE or DELETE, once per dict of a list; return the number of rows matched."""
        if params is not None and not params and not isinstance(params, Mapping):
            return 0
        return self._session.execute(stmt, params)

    def insert(self, table: sa.Table, values: Params) -> None:
        """Insert one row."""
        self._session.execute(self._store.insert_stmt(table), values)

    def ask(self, kind: str, id: str, shard: str = "", *, soon: int = 0) -> None:
        """Say that (kind, id) may no longer be as it should on `shard`; takes effect with this transaction.

        `soon`: within so many times the store's ``calm_s`` is early enough, so that a burst of asks costs few turns.
        """
        key = (kind, id, shard)
        self._asks[key] = min(soon, self._asks.get(key, soon))

    def settle(self, note: str, *, again: float | None = None, failed: bool = False) -> None:
        """End the item's turn with one sentence.

        `again` None: it is as asked, look again when asked. A number: it is not yet, look again after so many seconds.
        `failed`: the debt stays and the attempts are counted; without `again` the back-off grows with them. An ask that
        arrived during the turn makes the row due at once, whatever is said here.
        """
        item = self._mine()
        self._end = (note, lambda: work.settle(self, item, note, again, failed))

    def drop(self) -> None:
        """End the item's turn and forget its work row, unless somebody asked again meanwhile."""
        item = self._mine()
        self._end = ("gone", lambda: work.drop(self, item))

    def after_commit(self, fn: Callable[[], None]) -> None:
        """Call `fn` once the transaction is committed; it may be lost when the process dies, so only speed-ups."""
        self._after.append(fn)

    def _mine(self) -> Item:
        if self._item is None:
            raise RuntimeError("this transaction was not opened with an item: store.write(item)")
        return self._item

    def __enter__(self) -> Self:
        store = self._store
        store._enter()
        try:
            self._session.begin()
            if store.trace is not None:
                store.trace("begin", "")
            if self._item is not None:
                work.hold(self, self._item)
        except BaseException:
            self._undo()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        if kind is not None:
            self._undo()
            return
        trace = self._store.trace
        try:
            if self._session.broken:
                raise RuntimeError("a statement of this transaction failed and was ignored; nothing was written")
            self._flush()
            if trace is not None:
                trace("commit", "")
            self._session.commit()
        except BaseException:
            self._undo()
            raise
        self._leave()
        if self._item is not None and self._end is not None:
            self._item.ended.append(self._end[0])
        if trace is not None:
            trace("committed", "")
        self._tell()

    def _flush(self) -> None:
        """Write the asks and the end of the turn, last and in one order everywhere; at equal keys the ask is first."""
        todo: list[tuple[tuple[str, str, str, int], Callable[[], None]]] = [
            ((*key, 0), functools.partial(work.ask, self, *key, self._store.calm_s * soon))
            for key, soon in self._asks.items()
        ]
        if self._item is not None:
            item = self._item
            end = self._end[1] if self._end is not None else lambda: work.keep(self, item)
            todo.append(((item.kind, item.id, item.shard, 1), end))
        for _, write in sorted(todo, key=lambda entry: entry[0]):
            write()

    def _undo(self) -> None:
        try:
            self._session.rollback()
        finally:
            self._leave()

    def _leave(self) -> None:
        self._session.release()
        self._store._leave()

    def _tell(self) -> None:
        """Nudge and call back; nothing that fails here may make a committed transaction look failed."""
        todo = list(self._after)
        if self._asks and self._store.nudge is not None:
            nudge, shards = self._store.nudge, self._store.awaited(self._asks)
            if shards:
                todo.append(lambda: nudge(shards))
        for fn in todo:
            try:
                fn()
            except Exception:
                log.exception("after a commit")


def _encode(value: Any) -> str:
    return msgspec.json.encode(value).decode()


def full_url(url: str) -> sa.URL:
    """Read a database URL; ``postgresql://`` and ``mysql://`` (``mariadb://``) get our drivers.

    Raises ValueError with a sentence that names the fix.
    """
    try:
        parsed = sa.make_url(url)
    except sa.exc.ArgumentError as error:
        raise ValueError(f"database URL {url.split('@')[-1]!r} is not one: write sqlite:////path/to/file.db") from error
    backend = parsed.drivername.partition("+")[0]
    driver = {"postgresql": "postgresql+psycopg", "mysql": "mysql+pymysql", "mariadb": "mysql+pymysql"}.get(backend)
    if backend == "sqlite":
        if parsed.database in (None, "", ":memory:"):
            raise ValueError("SQLite needs a file: write sqlite:////path/to/file.db")
        return parsed.set(drivername="sqlite")
    if driver is None:
        raise ValueError(f"database {backend!r} is not supported: use sqlite, postgresql or mysql (MariaDB)")
    return parsed.set(drivername=driver)


def patiently(work: Callable[[], T], retries: int = 5, *, blindly: bool = False) -> T:
    """Call ``work``, again (after a short random pause) while it finds the database busy; at last ``Busy`` is raised.

    ``blindly``: also when the database can not be reached, for work that may happen to be done twice.
    """
    for attempt in range(retries + 1):
        try:
            return work()
        except Busy as busy:
            if attempt == retries or (isinstance(busy, Unavailable) and not blindly):
                raise
            time.sleep(random.uniform(0.001, 0.01 * 2**attempt))
    raise AssertionError("unreachable")


class Store:
    """One database, shared by all threads of a process.

    `nudge` is called with the shards that were asked after each commit. `busy_timeout_s` is how long a statement waits
    for another transaction's lock before it is ``Busy``. ``trace``, when set, is called before each statement and
    around each commit with ("execute", sql), ("begin", ""), ("commit", ""), ("committed", ""): the test harness's way
    in. ``calm_s`` is how long an ask that is to be answered soon may wait for more (processes set it; 0 = not at all).
    """

    def __init__(
        self,
        url: str,
        *,
        nudge: Callable[[set[str]], None] | None = None,
        readonly: bool = False,
        busy_timeout_s: float = 20.0,
    ) -> None:
        parsed = full_url(url)
        self.url = url
        self.nudge = nudge
        self.readonly = readonly
        self.trace: Callable[[str, str], None] | None = None
        self.calm_s = 0.0
        self._nudged: dict[tuple[str, int], float] = {}  # (shard, how soon) -> when somebody was last told of such
        self.dialect = parsed.get_backend_name()
        self.embedded = self.dialect == "sqlite"
        self._busy_timeout_s = busy_timeout_s
        self._writing = threading.Lock()
        self._local = threading.local()
        self._inserts: dict[sa.Table, sa.Insert] = {}
        json = {"json_serializer": _encode, "json_deserializer": msgspec.json.decode}
        if self.embedded:
            self.path: str | None = os.path.abspath(str(parsed.database))
            self._connections = sqlite.Connections(self.path, readonly=readonly, busy_timeout_s=busy_timeout_s)
            self.engine = sa.create_engine(
                parsed.set(database=self.path),
                poolclass=NullPool,
                connect_args={"timeout": busy_timeout_s, "isolation_level": None},
                **json,
            )
            sa.event.listen(self.engine, "connect", _pragmas)
            sa.event.listen(self.engine, "begin", _begin_immediate)
            self._compiler = sqlite.Compiler(self.engine.dialect)
        else:
            self.path = None
            self.engine, self._read_engine = netdb.engines(parsed, json, busy_timeout_s)

    def read(self) -> Reader:
        """Return a reader, to be used in a ``with`` block."""
        if not self.embedded:
            return Reader(netdb.Session(self._read_engine, self, retry=True), self.dialect)
        conn = self._connections.reader()
        reader: Reader | None = getattr(self._local, "reader", None)
        if reader is None or self._local.conn is not conn:
            reader = self._local.reader = Reader(sqlite.Session(conn, self._compiler, self), self.dialect)
            self._local.conn = conn
        return reader

    def write(self, item: Item | None = None) -> Tx:
        """Return a transaction, to be used in a ``with`` block; with `item`, on behalf of that leased work row.

        Raises ``Busy``, ``Conflict``, and ``LostLease`` when the item is no longer ours.
        """
        if self.readonly:
            raise RuntimeError("this store was opened for reading only")
        session: _Session
        if self.embedded:
            session = sqlite.Session(self._connections.writer(), self._compiler, self)
        else:
            session = netdb.Session(self.engine, self, retry=False)
        return Tx(self, session, item)

    def transact(self, fn: Callable[[Tx], T], retries: int = 5, item: Item | None = None) -> T:
        """Call `fn` in a transaction, again (after a short random pause) when the database says busy."""

        def once() -> T:
            with self.write(item) as tx:
                return fn(tx)

        return patiently(once, retries)

    def awaited(self, asks: Mapping[tuple[str, str, str], int]) -> set[str]:
        """The shards to nudge for these asks.

        Whoever was told of something due soon looks again when it is due and sees what was asked until then: within
        that time nobody need be told again.
        """
        if not self.calm_s:
            return {shard for _, _, shard in asks}
        now, out = time.monotonic(), set()
        for (_, _, shard), soon in asks.items():
            if not soon:
                out.add(shard)
            elif now - self._nudged.get((shard, soon), float("-inf")) >= soon * self.calm_s:
                self._nudged[shard, soon] = now
                out.add(shard)
        return out

    def insert_stmt(self, table: sa.Table) -> sa.Insert:
        """Return the one INSERT statement object of a table (statement caches go by object)."""
        stmt = self._inserts.get(table)
        if stmt is None:
            stmt = self._inserts.setdefault(table, sa.insert(table))
        return stmt

    def create_all(self, meta: sa.MetaData, *, fresh: bool = False) -> None:
        """Create the tables of `meta` and of core that do not exist (`fresh`: known to be none, do not look)."""
        with self.engine.begin() as conn:
            for each in {id(m): m for m in (core_meta, meta)}.values():
                each.create_all(conn, checkfirst=not fresh)

    def close(self) -> None:
        """Close every connection; other threads must have stopped using the store."""
        if self.embedded:
            self._connections.close()
        else:
            self._read_engine.dispose()
        self.engine.dispose()

    def _enter(self) -> None:
        """One transaction a thread, one SQLite writer a process: a mutex is fairer than SQLite's sleeping."""
        if getattr(self._local, "writing", False):
            raise RuntimeError("this thread already has a transaction open: pass it on instead of opening another")
        if self.embedded and not self._writing.acquire(timeout=self._busy_timeout_s):
            raise Busy("the database is locked by another thread")
        self._local.writing = True

    def _leave(self) -> None:
        self._local.writing = False
        if self.embedded:
            self._writing.release()


def _pragmas(conn: Any, record: Any) -> None:
    for pragma in ("journal_mode=WAL", "synchronous=NORMAL", "foreign_keys=ON"):
        conn.execute("PRAGMA " + pragma)


def _begin_immediate(conn: sa.Connection) -> None:
    conn.exec_driver_sql("BEGIN IMMEDIATE")
