"""SQLAlchemy statements at the speed of the sqlite3 module.

SQLAlchemy's connection costs 60 to 100 us a statement, mostly for generality that SQLite does not need. Here a
statement is compiled once per shape (SQLAlchemy's own cache key), its values are extracted, and the text runs on a raw
sqlite3 connection; a row is converted only in columns whose type needs it (Boolean, JSON ...).

Only ``core.db`` uses this module. The two private calls into SQLAlchemy live in ``Compiler.plan``.
"""

from __future__ import annotations

import os
import re
import sqlite3
import threading
import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn, Protocol

import msgspec
import sqlalchemy as sa
from sqlalchemy.engine.interfaces import Dialect
from sqlalchemy.sql.dml import UpdateBase

from nubila.core.sql import Busy, Conflict, Unavailable

_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder().decode
Convert = Callable[[Any], Any]
Row = tuple[Any, ...]


def _direct(kind: Any) -> Convert | None:
    """Converters of the commonest types without SQLAlchemy's layers (measured: a third of the time)."""
    if isinstance(kind, sa.JSON):
        return _from_json
    return _from_bool if type(kind) is sa.Boolean else None


def _from_json(value: Any) -> Any:
    # SQLite keeps a number in a column of type JSON as a number, not as text
    return value if value is None or isinstance(value, int | float) else _decode(value)


def _from_bool(value: Any) -> bool | None:
    return None if value is None else value == 1


def _json(value: Any) -> str:
    return _encode(value).decode()


class Plan:
    """One compiled shape of statement: its text, the order of its parameters, its columns and what converts them."""

    __slots__ = ("columns", "compiled", "converts", "expanding", "lists", "makers", "names", "processors", "sql")

    def __init__(self, compiled: Any, dialect: Dialect) -> None:
        self.compiled = compiled
        self.sql = str(compiled)
        self.names: tuple[str, ...] = tuple(compiled.positiontup or ())
        self.processors: dict[str, Convert] = dict(compiled._bind_processors)
        self.expanding = bool(compiled.post_compile_params)
        self.lists: tuple[str, ...] = ()
        if self.expanding:
            self._take_lists_as_json(compiled, dialect)
        self.columns: tuple[str, ...] = tuple(entry.keyname for entry in compiled._result_columns)
        self.converts: list[tuple[int, Convert]] = []
        for index, entry in enumerate(compiled._result_columns):
            fn = _direct(entry.type) or entry.type.dialect_impl(dialect).result_processor(dialect, None)
            if fn is not None:
                self.converts.append((index, fn))
        self.makers: list[tuple[str, Callable[[], Any]]] = [
            *((c.key, _maker(c.default)) for c in compiled.insert_prefetch),
            *((c.key, _maker(c.onupdate)) for c in compiled.update_prefetch),
        ]

    def _take_lists_as_json(self, compiled: Any, dialect: Dialect) -> None:
        """Let ``IN (...)`` read one JSON parameter: the text stays the same for lists of every length.

        Measured: 55 us less for each use of such a statement. Anything but plain lists stays with SQLAlchemy.
        """
        binds = {compiled.bind_names[bind]: bind for bind in compiled.post_compile_params}
        sql, names = self.sql, list(compiled.positiontup or ())
        for name, bind in binds.items():
            token = f"(__[POSTCOMPILE_{name}])"
            plain = bind.expanding and bind.type.dialect_impl(dialect).bind_processor(dialect) is None
            if not plain or sql.count(token) != 1 or names.count(name) != 1:
                return
            sql = sql.replace(token, "(SELECT value FROM json_each(?))")
        if sql.count("?") != len(names):  # a text with a question mark of its own
            return
        self.sql, self.names, self.expanding, self.lists = sql, tuple(names), False, tuple(binds)


def _maker(default: Any) -> Callable[[], Any]:
    """Return what gives a Python-side column default its value."""
    if default.is_scalar:
        return lambda: default.arg
    return lambda: default.arg(None)


class Bound:
    """A plan with the values found inside one statement object."""

    __slots__ = ("fixed", "plan", "values")

    def __init__(self, plan: Plan, values: dict[str, Any]) -> None:
        self.plan = plan
        self.values = values
        self.fixed: tuple[Any, ...] | None = None
        if not plan.makers and not plan.expanding and not plan.lists and all(name in values for name in plan.names):
            self.fixed = self._positional(values, plan.names, plan.processors)

    @staticmethod
    def _positional(values: Mapping[str, Any], names: Sequence[str], how: Mapping[str, Convert]) -> tuple[Any, ...]:
        try:
            if not how:
                return tuple([values[name] for name in names])
            return tuple([how[name](values[name]) if name in how else values[name] for name in names])
        except KeyError as error:
            raise TypeError(f"no value for the statement's parameter {error.args[0]!r}") from None

    def text(self, params: Mapping[str, Any] | None) -> tuple[str, tuple[Any, ...]]:
        """Return SQL and positional values for these parameters."""
        plan = self.plan
        if not params and self.fixed is not None:
            return plan.sql, self.fixed
        values: Mapping[str, Any] = {**self.values, **params} if params and self.values else (params or self.values)
        if plan.makers:
            values = dict(values)
            for name, make in plan.makers:
                values.setdefault(name, make())
        if plan.lists:
            values = dict(values)
            for name in plan.lists:
                values[name] = _json(list(values[name]))
        if plan.expanding:
            state = plan.compiled._process_parameters_for_postcompile(dict(values))
            merged = {**values, **state.additional_parameters}
            return state.statement, self._positional(merged, state.positiontup, {**plan.processors, **state.processors})
        return plan.sql, self._positional(values, plan.names, plan.processors)


class Compiler:
    """Turns statements into bound plans and remembers them; shared by all threads."""

    def __init__(self, dialect: Dialect) -> None:
        self._dialect = dialect
        self._compiled: dict[Any, Any] = {}
        self._plans: weakref.WeakKeyDictionary[Any, Plan] = weakref.WeakKeyDictionary()
        self._bound: weakref.WeakKeyDictionary[Any, dict[Any, Bound]] = weakref.WeakKeyDictionary()

    def bind(self, stmt: sa.Executable, params: Mapping[str, Any] | None) -> Bound:
        """Return the bound plan of this statement object; `params` only matter for inserts and updates."""
        keys = tuple(params) if params and isinstance(stmt, UpdateBase) else ()
        mine = self._bound.get(stmt)
        if mine is None:
            self._bound[stmt] = mine = {}
        bound = mine.get(keys)
        if bound is None:
            bound = mine[keys] = self._bind(stmt, keys)
        return bound

    def _bind(self, stmt: Any, keys: tuple[str, ...]) -> Bound:
        if len(self._compiled) > 2000:  # statements built from user input (filters, sorts) have many shapes
            self._compiled.clear()
        # As Connection.execute does it. SQLAlchemy 2.0 gives three values, 2.1 adds those of .params() as third.
        answer = stmt._compile_w_cache(self._dialect, compiled_cache=self._compiled, column_keys=sorted(keys))
        compiled, extracted = answer[0], answer[1]
        more = {"_collected_params": answer[2]} if len(answer) > 3 and answer[2] else {}
        plan = self._plans.get(compiled)
        if plan is None:
            plan = self._plans[compiled] = Plan(compiled, self._dialect)
        values = compiled.construct_params(extracted_parameters=extracted, _check=False, **more)
        given = set(keys)
        for bind, name in compiled.bind_names.items():
            if bind.required or (name in given and values.get(name) is None):  # required: holds a sentinel, no value
                values.pop(name, None)
        for column, _ in plan.makers:
            values.pop(column, None)
        return Bound(plan, values)


def refuse(error: sqlite3.Error) -> NoReturn:
    """Raise what the rest of the program understands instead of an sqlite3 error."""
    text = str(error)
    if isinstance(error, sqlite3.IntegrityError):
        what, _, columns = text.partition(" constraint failed")
        kind = {"UNIQUE": "unique", "PRIMARY KEY": "unique", "FOREIGN KEY": "foreign"}.get(what, "other")
        raise Conflict(columns.removeprefix(": ") or what, kind) from error
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
        raise Busy(f"the database is locked: {text}") from error
    if code in (sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_CANTOPEN):
        raise Unavailable(f"the database can not be used: {text}") from error
    raise error


def _regexp(pattern: str, value: str | None) -> bool | None:
    """What ``column REGEXP pattern`` calls; policy rules with ``field:...=~`` need it."""
    return None if value is None else re.search(pattern, value) is not None


class Connections:
    """One read and one write connection of every thread, all closed at once."""

    def __init__(self, path: str, *, readonly: bool, busy_timeout_s: float) -> None:
        self.path = path
        self._readonly = readonly
        self._timeout_s = busy_timeout_s
        self._all: weakref.WeakSet[_Pair] = weakref.WeakSet()
        self._local = threading.local()
        self._generation = 0
        if not readonly:
            # SQLite gives the journal files the mode of the database file, so it is enough to make that one private.
            os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))
            if os.stat(path).st_mode & 0o077:
                os.chmod(path, 0o600)

    def _open(self, *, query_only: bool) -> sqlite3.Connection:
        uri = "file:" + self.path.replace("%", "%25").replace("?", "%3f").replace("#", "%23")
        try:
            conn = sqlite3.connect(
                uri + ("?mode=ro" if self._readonly else "?mode=rw"),
                uri=True,
                isolation_level=None,
                check_same_thread=False,  # close() may come from another thread, after the owner has stopped
                timeout=self._timeout_s,
                cached_statements=1024,
            )
            conn.create_function("regexp", 2, _regexp, deterministic=True)
            if not self._readonly:
                conn.execute("PRAGMA journal_mode=WAL")
            for pragma in ("synchronous=NORMAL", "foreign_keys=ON", "temp_store=MEMORY"):
                conn.execute("PRAGMA " + pragma)
            if query_only:
                conn.execute("PRAGMA query_only=ON")
        except sqlite3.Error as error:
            refuse(error)
        return conn

    def _mine(self) -> _Pair:
        pair: _Pair | None = getattr(self._local, "pair", None)
        if pair is None or pair.generation != self._generation:
            pair = self._local.pair = _Pair(self._generation)
            self._all.add(pair)
        return pair

    def reader(self) -> sqlite3.Connection:
        pair = self._mine()
        if pair.read is None:
            pair.read = self._open(query_only=True)
        return pair.read

    def writer(self) -> sqlite3.Connection:
        pair = self._mine()
        if pair.write is None:
            pair.write = self._open(query_only=False)
        return pair.write

    def close(self) -> None:
        self._generation += 1
        for pair in list(self._all):
            pair.close()


class _Pair:
    __slots__ = ("__weakref__", "generation", "read", "write")

    def __init__(self, generation: int) -> None:
        self.generation = generation
        self.read: sqlite3.Connection | None = None
        self.write: sqlite3.Connection | None = None

    def close(self) -> None:
        for conn in (self.read, self.write):
            if conn is not None:
                conn.close()
        self.read = self.write = None


class Traced(Protocol):
    """Who is told about every statement (a test harness, mostly nobody)."""

    trace: Callable[[str, str], None] | None


class Session:
    """Runs statements on one sqlite3 connection; `broken` once one of them failed."""

    __slots__ = ("_compiler", "_owner", "broken", "conn")

    def __init__(self, conn: sqlite3.Connection, compiler: Compiler, owner: Traced) -> None:
        self.conn = conn
        self._compiler = compiler
        self._owner = owner
        self.broken = False

    def _start(self, stmt: sa.Executable, params: Mapping[str, Any] | None) -> tuple[Plan, sqlite3.Cursor]:
        bound = self._compiler.bind(stmt, params)
        sql, values = bound.text(params)
        trace = self._owner.trace
        if trace is not None:
            trace("execute", sql)
        try:
            return bound.plan, self.conn.execute(sql, values)
        except sqlite3.Error as error:
            self.broken = True
            refuse(error)

    def fetch(self, stmt: sa.Executable, params: Mapping[str, Any] | None) -> tuple[Sequence[str], list[Row]]:
        """Return column names and all rows."""
        plan, cursor = self._start(stmt, params)
        try:
            rows = cursor.fetchall()
        except sqlite3.Error as error:
            self.broken = True
            refuse(error)
        if plan.converts:
            rows = [_convert(row, plan.converts) for row in rows]
        return plan.columns or [d[0] for d in cursor.description or ()], rows

    def first(self, stmt: sa.Executable, params: Mapping[str, Any] | None) -> tuple[Sequence[str], Row | None]:
        """Return column names and the first row; the statement is then over, it holds no snapshot."""
        plan, cursor = self._start(stmt, params)
        try:
            row: Row | None = cursor.fetchone()
        except sqlite3.Error as error:
            self.broken = True
            refuse(error)
        names = plan.columns or [d[0] for d in cursor.description or ()]
        cursor.close()
        if row is not None and plan.converts:
            row = _convert(row, plan.converts)
        return names, row

    def execute(self, stmt: sa.Executable, params: Mapping[str, Any] | Sequence[Mapping[str, Any]] | None) -> int:
        """Run a statement for its effect; return the number of rows it touched."""
        if isinstance(params, Mapping) or params is None:
            return max(self._start(stmt, params)[1].rowcount, 0)
        return sum(max(self._start(stmt, one)[1].rowcount, 0) for one in params)

    def begin(self) -> None:
        """Take the write lock now, so that no statement of the transaction can fail for want of it."""
        self._plain("BEGIN IMMEDIATE")

    def commit(self) -> None:
        self._plain("COMMIT")

    def _plain(self, sql: str) -> None:
        try:
            self.conn.execute(sql)
        except sqlite3.Error as error:
            self.broken = True
            refuse(error)

    def rollback(self) -> None:
        if self.conn.in_transaction:
            self.conn.execute("ROLLBACK")

    def release(self) -> None:
        """Keep the connection: it belongs to the thread."""


def _convert(row: Row, converts: list[tuple[int, Convert]]) -> Row:
    cells = list(row)
    for index, fn in converts:
        cells[index] = fn(cells[index])
    return tuple(cells)
