# ruff: noqa: PT012 - a transaction is one statement in spirit
"""What core/db.py promises, on SQLite here; test_work.py runs the queue on all three databases."""

from __future__ import annotations

import os
import socket
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import sqlalchemy as sa

from nubila.core.db import Busy, Conflict, Store, Unavailable, full_url
from nubila.core.nudge import Listener, Nudger

meta = sa.MetaData()
book = sa.Table(
    "book",
    meta,
    sa.Column("id", sa.String(36), primary_key=True),
    sa.Column("name", sa.String(255), nullable=False, unique=True),
    sa.Column("lent", sa.Boolean, nullable=False, default=False),
    sa.Column("tags", sa.JSON),
    sa.Column("serial", sa.Integer, default=lambda: 7, onupdate=lambda: 8),
)
page = sa.Table(
    "page",
    meta,
    sa.Column("id", sa.String(36), primary_key=True),
    sa.Column("book_id", sa.String(36), sa.ForeignKey("book.id"), nullable=False),
)
BY_ID = sa.select(book).where(book.c.id == sa.bindparam("b"))


@pytest.fixture
def store(tmp_path: Path):
    store = Store(f"sqlite:///{tmp_path}/db")
    store.create_all(meta)
    yield store
    store.close()


def add(store: Store, id: str, **more: object) -> None:
    with store.write() as tx:
        tx.insert(book, {"id": id, "name": f"book {id}", **more})


def test_types_and_defaults_survive_the_fast_path(store: Store):
    add(store, "1", tags={"a": [1, None, "é"]}, lent=True)
    add(store, "2")
    with store.read() as r:
        assert r.one(BY_ID, {"b": "1"}) == {
            "id": "1", "name": "book 1", "lent": True, "tags": {"a": [1, None, "é"]}, "serial": 7,
        }  # fmt: skip
        assert r.one(BY_ID, {"b": "2"})["lent"] is False
        assert r.one(BY_ID, {"b": "nobody"}) is None
        assert r.scalar(sa.select(sa.func.count()).select_from(book)) == 2
        assert r.rows(sa.select(book.c.id).order_by(book.c.id)) == [("1",), ("2",)]


def test_same_statement_object_gives_each_call_its_own_values(store: Store):
    for id in "123":
        add(store, id)
    by_list = sa.select(book.c.id).where(book.c.id.in_(sa.bindparam("ids", expanding=True))).order_by(book.c.id)
    with store.read() as r:
        assert r.rows(by_list, {"ids": ["1", "3"]}) == [("1",), ("3",)]
        assert r.rows(by_list, {"ids": ["2"]}) == [("2",)]
        assert r.rows(by_list, {"ids": []}) == []
        for id in "123":  # same shape, other value inside
            assert r.scalar(sa.select(book.c.name).where(book.c.id == id)) == f"book {id}"
            assert r.rows(sa.select(book.c.id).where(book.c.id.in_([id, "x"]))) == [(id,)]
        assert r.all(sa.text("SELECT id AS it FROM book WHERE id = :b"), {"b": "2"}) == [{"it": "2"}]
        two = r.one(sa.select(book.c.id, sa.literal("x").label("y")).params())
        assert two == {"id": "1", "y": "x"}


def test_missing_parameter_is_a_programming_error_not_null(store: Store):
    with store.read() as r, pytest.raises(TypeError, match="'b'"):
        r.one(BY_ID)


def test_update_by_columns_and_many(store: Store):
    for id in "12":
        add(store, id)
    with store.write() as tx:
        stmt = sa.update(book).where(book.c.id == sa.bindparam("b"))
        assert tx.execute(stmt, {"b": "1", "lent": True}) == 1
        assert tx.execute(stmt, [{"b": "1", "tags": [1]}, {"b": "2", "tags": [2]}]) == 2
        assert tx.execute(stmt, []) == 0
        assert tx.execute(sa.delete(book).where(book.c.id == "9")) == 0
    with store.read() as r:
        assert r.one(BY_ID, {"b": "1"}) == {"id": "1", "name": "book 1", "lent": True, "tags": [1], "serial": 8}


def test_second_column_of_one_name_gets_a_suffix(store: Store):
    add(store, "1")
    with store.write() as tx:
        tx.insert(page, {"id": "p", "book_id": "1"})
    with store.read() as r:
        assert r.one(sa.select(page.c.id, book.c.id).join(book)) == {"id": "p", "id_1": "1"}


def test_constraints_become_conflicts_and_nothing_is_written(store: Store):
    add(store, "1")
    with pytest.raises(Conflict) as unique, store.write() as tx:
        tx.insert(page, {"id": "p", "book_id": "1"})
        tx.insert(book, {"id": "2", "name": "book 1"})
    assert (unique.value.kind, unique.value.constraint) == ("unique", "book.name")
    with pytest.raises(Conflict) as foreign, store.write() as tx:
        tx.insert(page, {"id": "p", "book_id": "9"})
    assert foreign.value.kind == "foreign"
    with pytest.raises(Conflict) as empty, store.write() as tx:
        tx.insert(book, {"id": "3", "name": None})
    assert (empty.value.kind, empty.value.constraint) == ("other", "book.name")
    with store.read() as r:
        assert r.rows(sa.select(page)) == []


def test_swallowed_failure_does_not_commit(store: Store):
    """PostgreSQL would refuse to go on; SQLite must not be more forgiving."""
    add(store, "1")
    with pytest.raises(RuntimeError, match="was ignored"), store.write() as tx:
        tx.insert(book, {"id": "2", "name": "other"})
        with pytest.raises(Conflict):
            tx.insert(book, {"id": "1", "name": "again"})
    with store.read() as r:
        assert r.one(BY_ID, {"b": "2"}) is None


def test_one_transaction_a_thread(store: Store):
    with store.write(), pytest.raises(RuntimeError, match="already has a transaction"), store.write():
        pass
    add(store, "1")  # and the first one has let go


def test_reader_can_not_write_and_readonly_store_neither(store: Store, tmp_path: Path):
    with store.read() as r, pytest.raises(Exception, match="readonly"):
        r.rows(sa.insert(book).values(id="1", name="x"))
    add(store, "1")
    other = Store(f"sqlite:///{tmp_path}/db", readonly=True)
    with other.read() as r:
        assert r.one(BY_ID, {"b": "1"})
    with pytest.raises(RuntimeError, match="reading only"):
        other.write()
    other.close()


def test_locked_database_is_busy_and_transact_tries_again(store: Store, tmp_path: Path):
    other = Store(f"sqlite:///{tmp_path}/db", busy_timeout_s=0)
    with store.write() as tx:
        tx.insert(book, {"id": "1", "name": "x"})
        with pytest.raises(Busy), other.write():
            pass
    calls = []

    def fn(tx: object) -> int:
        calls.append(1)
        if len(calls) < 3:
            raise Busy("planted")
        return 42

    assert other.transact(fn) == 42
    assert len(calls) == 3
    with pytest.raises(Busy):
        other.transact(lambda tx: (_ for _ in ()).throw(Busy("always")), retries=2)
    calls.clear()
    with pytest.raises(Unavailable):
        other.transact(lambda tx: calls.append(1) or (_ for _ in ()).throw(Unavailable("disk")))
    assert len(calls) == 1
    other.close()


def test_files_are_private_even_when_the_umask_is_not(tmp_path: Path):
    old = os.umask(0)
    try:
        store = Store(f"sqlite:///{tmp_path}/private.db")
        store.create_all(meta)
        add(store, "1")
        modes = {f.name: stat.S_IMODE(f.stat().st_mode) for f in tmp_path.iterdir()}
    finally:
        os.umask(old)
    assert set(modes) == {"private.db", "private.db-wal", "private.db-shm"}
    assert set(modes.values()) == {0o600}
    store.close()


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("sqlite://", "needs a file"),
        ("sqlite:///:memory:", "needs a file"),
        ("oracle://u:secret@h/db", "not supported"),
        ("nonsense", "is not one"),
    ],
)
def test_bad_url_is_one_sentence_without_password(url: str, says: str):
    with pytest.raises(ValueError, match=says) as error:
        full_url(url)
    assert "secret" not in str(error.value)


def test_urls_get_our_drivers():
    assert full_url("postgresql://u@h/db").drivername == "postgresql+psycopg"
    assert full_url("mariadb://u@h/db").drivername == "mysql+pymysql"


def test_missing_directory_is_an_os_error_that_names_it(tmp_path: Path):
    with pytest.raises(OSError, match="nowhere"):
        Store(f"sqlite:///{tmp_path}/nowhere/db")


def test_threads_and_processes_lose_no_update(store: Store, tmp_path: Path):
    add(store, "1", serial=0)
    code = (
        "import sys, sqlalchemy as sa; from nubila.core.db import Store\n"
        "s = Store(sys.argv[1]); up = sa.text('UPDATE book SET serial = serial + 1')\n"
        "for _ in range(100):\n"
        "    with s.write() as tx: tx.execute(up)\n"
    )
    processes = [subprocess.Popen([sys.executable, "-c", code, store.url]) for _ in range(2)]
    up = sa.text("UPDATE book SET serial = serial + 1")

    def work() -> None:
        for _ in range(100):
            with store.write() as tx:
                tx.execute(up)

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert [p.wait(60) for p in processes] == [0, 0]
    with store.read() as r:
        assert r.scalar(sa.select(book.c.serial)) == 500


def test_after_commit_and_nudges_follow_the_commit_only(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    told: list[object] = []
    store = Store(f"sqlite:///{tmp_path}/db", nudge=told.append)
    store.create_all(meta)

    def broken() -> None:
        raise ZeroDivisionError

    with store.write() as tx:
        tx.after_commit(broken)
        tx.after_commit(lambda: told.append("after"))
        tx.ask("k", "1")
        tx.ask("k", "1", "host1")
        assert told == []
    assert told == ["after", {"", "host1"}]
    assert "ZeroDivisionError" in caplog.text
    with pytest.raises(KeyError), store.write() as tx:
        tx.after_commit(lambda: told.append("never"))
        tx.ask("k", "2")
        raise KeyError
    assert len(told) == 2
    store.close()


def test_nudges_reach_the_listeners_of_their_shard(tmp_path: Path):
    run = tmp_path / ("deep" * 30)  # longer than a socket address may be
    here: list[int] = []
    nudger = Nudger(run)
    nudger.send({"nobody"})
    nudger.call(lambda: here.append(1), ["", "h1"])
    controller, host = Listener(run, [""]), Listener(run, ["host/1"])
    nudger.send({""})
    assert controller.wait(5)
    assert not controller.wait(0)
    assert not host.wait(0)
    for _ in range(2000):  # a full buffer is no error
        nudger.send({"host/1", "h2"})
    assert host.wait(5)
    assert not host.wait(0)
    assert len(here) == 1
    host.close()
    assert not host.wait(5)
    thread = threading.Thread(target=lambda: here.append(controller.wait(60)))
    thread.start()
    controller.close()
    thread.join(5)
    assert here[1:] == [False]
    assert list(run.iterdir()) == []
    nudger.close()


def test_socket_of_a_dead_listener_is_swept(tmp_path: Path):
    dead = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    dead.bind(str(tmp_path / "@any~1-x.nudge"))
    dead.close()
    nudger = Nudger(tmp_path)
    nudger.send({""})
    assert list(tmp_path.iterdir()) == []
    nudger.close()
