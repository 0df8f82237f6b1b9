"""pytest fixtures for tests that must hold on every database.

Use with ``pytest_plugins = ["nubila.testing.fixtures"]`` in the test module. A test that takes ``database_url`` runs
three times; the servers start once a session, and only when their programs are installed.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import sqlalchemy as sa

from nubila.core.db import Store
from nubila.testing.databases import KINDS, Databases, Kind, available


@pytest.fixture(scope="session")
def databases() -> Iterator[Databases]:
    """All kinds of throw-away database."""
    found = Databases()
    yield found
    found.close()


@pytest.fixture(params=KINDS)
def database_url(request: pytest.FixtureRequest, databases: Databases) -> Iterator[str]:
    """The URL of a new, empty database: SQLite, PostgreSQL, MariaDB in turn."""
    kind: Kind = request.param
    if not available(kind):
        pytest.skip(f"the programs of {kind} are not installed")
    url = databases.fresh(kind)
    yield url
    databases.drop(url)


@pytest.fixture
def store(database_url: str) -> Iterator[Store]:
    """A store with core's own tables on each kind of database."""
    found = Store(database_url)
    found.create_all(sa.MetaData())
    yield found
    found.close()
