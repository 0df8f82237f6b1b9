"""The shape of the database: made when there is none, upgraded when older, refused when newer.

A fresh database gets all tables at once and is stamped with the newest revision; Alembic is not even imported, so a
start costs one SELECT. An older one is upgraded by the scripts in core/migrations, after a backup. The version lives in
Alembic's own table, so its command line works too. Processes that start together take turns.

A new revision is ``migrations/versions/NNNN_what.py`` with ``revision = "NNNN"``; a test compares a migrated database
with a fresh one.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import sqlite3
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from nubila.core.db import Store
from nubila.core.sql import StoreError, core_meta

if TYPE_CHECKING:
    from alembic.config import Config

log = logging.getLogger(__name__)
SCRIPTS = Path(__file__).parent / "migrations"
MAKING = "making"  # stamped while the tables are being made: MariaDB can not do that in one transaction
_LOCK_NAME = "nubila-schema"
_LOCK_NUMBER = 0x6E7562696C61  # "nubila"

_version = sa.Table("alembic_version", sa.MetaData(), sa.Column("version_num", sa.String(32), primary_key=True))


class SchemaError(Exception):
    """The database can not be used as it is; the text is one sentence that says why and how to mend it."""


class NewerSchema(SchemaError):
    """A later version of this program has used the database."""


class ForeignSchema(SchemaError):
    """The database holds somebody else's tables."""


class MigrationFailed(SchemaError):
    """An upgrade stopped halfway; the text names the backup."""


def revisions() -> list[str]:
    """Return all revisions this program knows, oldest first."""
    return sorted(f.name.split("_", 1)[0] for f in (SCRIPTS / "versions").glob("[0-9]*_*.py"))


def version(store: Store) -> str | None:
    """Return the revision the database is stamped with, None when it has no stamp."""
    with store.engine.connect() as conn:
        if not sa.inspect(conn).has_table(_version.name):
            return None
        found: str | None = conn.execute(sa.select(_version.c.version_num)).scalar()
        return found


def prepare(store: Store, meta: sa.MetaData, *, backups: Path | None = None) -> str:
    """Make or upgrade the tables of `meta` and of core; return what was done: "current", "made" or "upgraded".

    `backups` is where a SQLite database is copied before an upgrade (None: beside it). Raises ``SchemaError``.
    """
    known = revisions()
    if version(store) == known[-1]:
        return "current"
    with _alone(store):
        found = version(store)  # somebody else may have done it while we waited
        if found == known[-1]:
            return "current"
        if found is None or found == MAKING:
            _make(store, meta, known[-1], resume=found == MAKING)
            return "made"
        if found not in known:
            raise NewerSchema(
                f"the database has schema {found}, this program knows up to {known[-1]}: "
                "run the newer Nubila that used it last, or restore an older backup"
            )
        _upgrade(store, meta, found, known[-1], backups)
        return "upgraded"


def _make(store: Store, meta: sa.MetaData, head: str, *, resume: bool) -> None:
    with store.engine.begin() as conn:
        if not resume:
            others = set(sa.inspect(conn).get_table_names()) - {_version.name}
            if others:
                raise ForeignSchema(
                    f"the database already holds tables that are not Nubila's ({', '.join(sorted(others)[:3])}): "
                    "give it an empty database"
                )
            if store.dialect == "mysql":
                # Names and ids must compare as on the other databases: by case, by accent, by trailing space.
                name = conn.dialect.identifier_preparer.quote(str(conn.engine.url.database))
                conn.exec_driver_sql(f"ALTER DATABASE {name} CHARACTER SET utf8mb4 COLLATE utf8mb4_nopad_bin")
            _version.create(conn, checkfirst=True)
            conn.execute(sa.insert(_version).values(version_num=MAKING))
        for each in _metas(meta):
            each.create_all(conn, checkfirst=resume)
        conn.execute(sa.update(_version).values(version_num=head))


def _upgrade(store: Store, meta: sa.MetaData, found: str, head: str, backups: Path | None) -> None:
    backup = _backup(store, found, backups)
    log.warning("upgrading the database from schema %s to %s; backup: %s", found, head, backup or "none was made")
    from alembic import command

    try:
        with store.engine.begin() as conn:
            command.upgrade(_config(conn, meta), head)
    except Exception as error:
        kept = f"the backup is {backup}" if backup else "restore your own dump of the database"
        raise MigrationFailed(
            f"upgrading the database from schema {found} to {head} failed ({type(error).__name__}: "
            f"{str(error).splitlines()[0]}): {kept}"
        ) from error


def differences(store: Store, meta: sa.MetaData) -> list[Any]:
    """Return how the database differs from the declarations, as Alembic words it (for tests and doctor)."""
    from alembic.autogenerate import compare_metadata
    from alembic.migration import MigrationContext

    with store.engine.connect() as conn:
        context = MigrationContext.configure(conn, opts={"compare_type": True})
        return list(compare_metadata(context, _metas(meta)))  # type: ignore[arg-type]


def _metas(meta: sa.MetaData) -> Sequence[sa.MetaData]:
    return [core_meta] if meta is core_meta else [core_meta, meta]


def _config(conn: sa.Connection, meta: sa.MetaData) -> Config:
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(SCRIPTS).replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    config.attributes.update(connection=conn, metadata=_metas(meta))
    return config


def _backup(store: Store, found: str, backups: Path | None) -> Path | None:
    """Copy a SQLite database to a dated file, mode 0600; the others are backed up by their own means."""
    if store.path is None:
        return None
    directory = backups or Path(store.path).parent
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    target = directory / f"{Path(store.path).stem}-{found}-{datetime.now(UTC):%Y%m%dT%H%M%S.%f}.db"
    os.close(os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))  # VACUUM INTO takes an empty file
    conn = sqlite3.connect(store.path, isolation_level=None, timeout=20)
    try:
        conn.execute("VACUUM INTO ?", (str(target),))
    except sqlite3.Error as error:
        target.unlink(missing_ok=True)
        raise MigrationFailed(f"the database could not be copied to {target} before its upgrade: {error}") from error
    finally:
        conn.close()
    return target


@contextlib.contextmanager
def _alone(store: Store, timeout_s: int = 120) -> Iterator[None]:
    """Let one process at a time make or upgrade the database."""
    if store.path is not None:
        fd = os.open(store.path + ".lock", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            yield
        finally:
            os.close(fd)
        return
    with store.engine.connect() as conn:
        if store.dialect == "mysql":
            if conn.execute(sa.text("SELECT GET_LOCK(:n, :s)"), {"n": _LOCK_NAME, "s": timeout_s}).scalar() != 1:
                raise StoreError("another process has been changing the schema for too long")
        else:
            # Taken in a transaction of its own that stays open: it goes when the connection goes, also by kill -9.
            conn.execute(sa.text(f"SET LOCAL lock_timeout = '{timeout_s}s'"))
            conn.execute(sa.select(sa.func.pg_advisory_xact_lock(_LOCK_NUMBER)))
        try:
            yield
        finally:
            conn.invalidate()
