# ruff: noqa: PT012 - a transaction is one statement in spirit
"""The store speaks to SQLite, PostgreSQL and MariaDB alike: types, refusals, deadlocks, a server that goes away."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest
import sqlalchemy as sa

from nubila.core.db import Busy, Conflict, Store, Unavailable
from nubila.testing.databases import Databases, Kind, Server, available

pytest_plugins = ["nubila.testing.fixtures"]

meta = sa.MetaData()
book = sa.Table(
    "book",
    meta,
    sa.Column("id", sa.String(36), primary_key=True),
    sa.Column("name", sa.String(255), nullable=False),
    sa.Column("lent", sa.Boolean, nullable=False, default=False),
    sa.Column("tags", sa.JSON),
    sa.UniqueConstraint("name", name="uq_book_name"),
)
page = sa.Table(
    "page",
    meta,
    sa.Column("id", sa.String(36), primary_key=True),
    sa.Column("book_id", sa.String(36), sa.ForeignKey("book.id", name="fk_page_book"), nullable=False),
)
RENAME = sa.update(book).where(book.c.id == sa.bindparam("b")).values(name=sa.bindparam("v"))


@pytest.fixture
def shop(database_url: str) -> Iterator[Store]:
    store = Store(database_url)
    store.create_all(meta)
    yield store
    store.close()


def add(store: Store, id: str, **more: object) -> None:
    with store.write() as tx:
        tx.insert(book, {"id": id, "name": f"book {id}", **more})


def test_same_types_everywhere(shop: Store):
    add(shop, "1", lent=True, tags={"a": [1, None, "é𝄞"], "b": {}})
    add(shop, "2")
    with shop.write() as tx:
        assert tx.execute(RENAME, [{"b": "1", "v": "x"}, {"b": "2", "v": "x2"}, {"b": "9", "v": "y"}]) == 2
        assert tx.execute(RENAME, {"b": "1", "v": "x"}) == 1  # matched, though nothing changes
    with shop.read() as r:
        assert r.all(sa.select(book).order_by(book.c.id)) == [
            {"id": "1", "name": "x", "lent": True, "tags": {"a": [1, None, "é𝄞"], "b": {}}},
            {"id": "2", "name": "x2", "lent": False, "tags": None},
        ]
        assert r.one(sa.select(book.c.lent, sa.func.count().label("n")).group_by(book.c.lent).order_by("n")) is not None
        assert r.rows(sa.select(book.c.id).where(book.c.id.in_(sa.bindparam("i", expanding=True))), {"i": ["2"]}) == [
            ("2",)
        ]
        assert r.scalar(sa.select(book.c.id).where(book.c.id == "none")) is None


def test_refusals_name_the_constraint(shop: Store):
    add(shop, "1")
    with pytest.raises(Conflict) as unique, shop.write() as tx:
        tx.insert(book, {"id": "2", "name": "book 1"})
    assert unique.value.kind == "unique"
    assert unique.value.constraint == ("book.name" if shop.embedded else "uq_book_name")
    with pytest.raises(Conflict) as foreign, shop.write() as tx:
        tx.insert(page, {"id": "2", "book_id": "9"})
    assert foreign.value.kind == "foreign"
    assert shop.embedded or foreign.value.constraint == "fk_page_book"
    with pytest.raises(Conflict) as other, shop.write() as tx:
        tx.insert(book, {"id": "3", "name": None})
    assert other.value.kind == "other"
    assert "name" in other.value.constraint
    add(shop, "2")


def test_swallowed_failure_does_not_commit(shop: Store):
    add(shop, "1")
    with pytest.raises(RuntimeError, match="was ignored"), shop.write() as tx:
        tx.insert(book, {"id": "2", "name": "other"})
        with pytest.raises(Conflict):
            tx.insert(book, {"id": "1", "name": "again"})
    with shop.read() as r:
        assert r.rows(sa.select(book.c.id)) == [("1",)]


def test_deadlock_is_busy_and_transact_gets_through(shop: Store):
    """Two transactions take two rows in opposite order, for certain: each waits until the other has its first."""
    if shop.embedded:
        pytest.skip("SQLite has one writer")
    for id in "12":
        add(shop, id)
    gate = threading.Barrier(2)
    victims: list[type] = []

    def crossing(first: str, second: str) -> None:
        def once(tx: object) -> None:
            shop_tx = tx
            shop_tx.execute(RENAME, {"b": first, "v": first})  # type: ignore[attr-defined]
            if not victims:
                gate.wait(20)
            try:
                shop_tx.execute(RENAME, {"b": second, "v": second})  # type: ignore[attr-defined]
            except Busy as error:
                victims.append(type(error))
                raise

        shop.transact(once)

    threads = [threading.Thread(target=crossing, args=pair) for pair in (("1", "2"), ("2", "1"))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(40)
    assert not any(thread.is_alive() for thread in threads)
    assert victims == [Busy]


def test_lock_wait_ends_as_busy(shop: Store):
    add(shop, "1")
    impatient = Store(shop.url, busy_timeout_s=0)
    with shop.write() as tx:
        tx.execute(RENAME, {"b": "1", "v": "x"})
        with pytest.raises(Busy) as error, impatient.write() as other:
            other.execute(RENAME, {"b": "1", "v": "y"})
    assert not isinstance(error.value, Unavailable)
    impatient.close()


@pytest.mark.parametrize("kind", ["postgresql", "mariadb"])
def test_server_that_goes_away_is_unavailable(kind: Kind):
    if not available(kind):
        pytest.skip(f"the programs of {kind} are not installed")
    server = Server(kind)  # type: ignore[arg-type]
    try:
        store = Store(server.fresh())
        store.create_all(meta)
        add(store, "1")
        with store.read() as r:
            assert r.scalar(sa.select(book.c.id)) == "1"
    finally:
        server.stop()
    with store.read() as r, pytest.raises(Unavailable):
        r.scalar(sa.select(book.c.id))
    for _ in range(2):  # with a broken connection from the pool, then without any
        with pytest.raises(Unavailable):
            add(store, "2")
    store.close()


def test_ended_connections_cost_a_read_nothing(shop: Store, databases: Databases):
    """After a restart of the server the pool is full of dead connections."""
    if shop.embedded:
        pytest.skip("SQLite has no server")
    add(shop, "1")
    with shop.read() as r:
        r.scalar(sa.select(book.c.id))
    end = {
        "postgresql": "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
        "WHERE pid <> pg_backend_pid() AND datname = current_database()",
        "mysql": "SELECT CONCAT('KILL ', id) FROM information_schema.processlist "
        "WHERE id <> connection_id() AND db = database()",
    }[shop.dialect]
    engine = sa.create_engine(shop.engine.url, poolclass=sa.pool.NullPool, isolation_level="AUTOCOMMIT")
    with engine.connect() as conn:
        for row in conn.execute(sa.text(end)).all():
            if shop.dialect == "mysql":
                conn.exec_driver_sql(row[0])
    with shop.read() as r:
        assert r.scalar(sa.select(book.c.id)) == "1"
