"""A database is made, upgraded or refused; a migrated one equals a fresh one, on every database."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import sqlalchemy as sa

from nubila.core import migrate, quota, work
from nubila.core.db import Store
from nubila.core.migrate import ForeignSchema, MigrationFailed, NewerSchema

pytest_plugins = ["nubila.testing.fixtures"]

meta = sa.MetaData()
parent = sa.Table("parent", meta, sa.Column("id", sa.String(36), primary_key=True), sa.Column("name", sa.String(255)))
child = sa.Table(
    "child",
    meta,
    sa.Column("id", sa.String(36), primary_key=True),
    sa.Column("parent_id", sa.String(36), sa.ForeignKey("parent.id"), nullable=False, index=True),
    sa.Column("up", sa.Boolean, nullable=False),
)


@pytest.fixture
def empty(database_url: str):
    store = Store(database_url)
    yield store
    store.close()


def stamp(store: Store, version: str) -> None:
    with store.engine.begin() as conn:
        conn.exec_driver_sql(f"UPDATE alembic_version SET version_num = '{version}'")


@pytest.fixture
def scripts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the scripts, to which a test adds revisions."""
    directory = tmp_path / "migrations"
    (directory / "versions").mkdir(parents=True)
    for file in ("env.py", "versions/0001_initial.py"):
        (directory / file).write_text((migrate.SCRIPTS / file).read_text())
    monkeypatch.setattr(migrate, "SCRIPTS", directory)
    return directory


@pytest.mark.req("C/ARCH-20")
def test_fresh_database_is_made_once_and_matches_the_declarations(empty: Store):
    assert migrate.version(empty) is None
    assert migrate.prepare(empty, meta) == "made"
    assert migrate.version(empty) == migrate.revisions()[-1]
    assert migrate.prepare(empty, meta) == "current"
    assert migrate.differences(empty, meta) == []
    with empty.write() as tx:
        tx.ask("k", "a")
        quota.claim(tx, "p", {"x": 1}, {"x": 1})
        tx.insert(parent, {"id": "1", "name": "x"})
        tx.insert(child, {"id": "1", "parent_id": "1", "up": True})


def test_migrated_equals_fresh(empty: Store, database_url: str):
    """All revisions run on an empty database give exactly the tables that a fresh start makes."""
    from alembic import command

    with empty.engine.begin() as conn:
        command.upgrade(migrate._config(conn, meta), "head")
    assert migrate.version(empty) == migrate.revisions()[-1]
    assert migrate.differences(empty, meta) == []
    assert migrate.prepare(empty, meta) == "current"


def test_names_compare_alike_everywhere(empty: Store):
    migrate.prepare(empty, meta)
    for id in ("a", "A", "a ", "á"):
        with empty.write() as tx:
            tx.insert(parent, {"id": id, "name": id})
    with empty.read() as r:
        assert r.rows(sa.select(parent.c.id).where(parent.c.name == "a")) == [("a",)]


def test_newer_database_is_refused_in_one_sentence(empty: Store):
    migrate.prepare(empty, meta)
    stamp(empty, "9999")
    with pytest.raises(NewerSchema, match="schema 9999, this program knows up to 0001") as error:
        migrate.prepare(empty, meta)
    assert "\n" not in str(error.value)


def test_somebody_elses_database_is_left_alone(empty: Store):
    meta.create_all(empty.engine)
    with pytest.raises(ForeignSchema, match=r"not Nubila's \(child, parent\)"):
        migrate.prepare(empty, meta)
    assert migrate.version(empty) is None


def test_making_that_was_killed_halfway_is_resumed(empty: Store):
    migrate.prepare(empty, meta)
    stamp(empty, migrate.MAKING)
    child.drop(empty.engine)
    assert migrate.prepare(empty, meta) == "made"
    assert migrate.differences(empty, meta) == []


def test_older_database_is_upgraded_after_a_backup(empty: Store, scripts: Path, tmp_path: Path):
    migrate.prepare(empty, meta)
    with empty.write() as tx:
        tx.insert(parent, {"id": "1", "name": "kept"})
    (scripts / "versions" / "0002_age.py").write_text(
        "import sqlalchemy as sa\nfrom alembic import op\nrevision, down_revision = '0002', '0001'\n"
        "def upgrade():\n    op.add_column('parent', sa.Column('age', sa.Integer))\n"
    )
    assert migrate.prepare(empty, meta, backups=tmp_path / "backups") == "upgraded"
    assert migrate.version(empty) == "0002"
    with empty.read() as r:
        assert r.all(sa.text("SELECT id, name, age FROM parent")) == [{"id": "1", "name": "kept", "age": None}]
    if empty.embedded:
        (backup,) = (tmp_path / "backups").iterdir()
        assert backup.stat().st_mode & 0o777 == 0o600
        assert (tmp_path / "backups").stat().st_mode & 0o777 == 0o700
        old = Store(f"sqlite:///{backup}")
        assert migrate.version(old) == "0001"
        with old.read() as r:
            assert r.rows(sa.text("SELECT * FROM parent")) == [("1", "kept")]
        old.close()
    assert migrate.prepare(empty, meta, backups=tmp_path / "backups") == "current"


def test_failed_upgrade_names_the_backup(empty: Store, scripts: Path, tmp_path: Path):
    migrate.prepare(empty, meta)
    (scripts / "versions" / "0002_bad.py").write_text(
        "import sqlalchemy as sa\nfrom alembic import op\nrevision, down_revision = '0002', '0001'\n"
        "def upgrade():\n    op.add_column('parent', sa.Column('age', sa.Integer))\n    op.drop_table('nowhere')\n"
    )
    with pytest.raises(MigrationFailed, match="from schema 0001 to 0002 failed") as error:
        migrate.prepare(empty, meta, backups=tmp_path / "backups")
    assert "\n" not in str(error.value)
    assert migrate.version(empty) == "0001"
    if empty.embedded:
        assert str(next((tmp_path / "backups").iterdir())) in str(error.value)
    if empty.dialect != "mysql":  # there DDL can not be undone
        assert "age" not in {c["name"] for c in sa.inspect(empty.engine).get_columns("parent")}


def test_processes_that_start_together_take_turns(database_url: str):
    code = (
        "import sys, sqlalchemy as sa\nfrom nubila.core import migrate\nfrom nubila.core.db import Store\n"
        "m = sa.MetaData()\nfor i in range(30): sa.Table(f't{i}', m, sa.Column('id', sa.Integer, primary_key=True))\n"
        "print(migrate.prepare(Store(sys.argv[1]), m)); assert 'alembic' not in sys.modules\n"
    )
    processes = [
        subprocess.Popen([sys.executable, "-c", code, database_url], stdout=subprocess.PIPE, text=True)
        for _ in range(3)
    ]
    said = sorted(p.communicate(timeout=60)[0].strip() for p in processes)
    assert said == ["current", "current", "made"]


def test_core_tables_are_part_of_every_database(empty: Store):
    migrate.prepare(empty, sa.MetaData())
    found = set(sa.inspect(empty.engine).get_table_names())
    assert found >= {"alembic_version", work.work.name, quota.quota_usage.name, quota.quota_limit.name}
