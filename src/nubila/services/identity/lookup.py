"""What other services may ask Identity, in their own transaction."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from nubila.services.identity.kinds import Project, User

if TYPE_CHECKING:
    from nubila.core.db import Reader

DEFAULT_DOMAIN = "default"
"""Id of the domain that always exists."""

_PROJECT = sa.select(Project.table).where(Project.table.c.id == sa.bindparam("id"))
_USER = sa.select(User.table).where(User.table.c.id == sa.bindparam("id"))
_PROJECT_NAME = sa.select(Project.table.c.name).where(Project.table.c.id == sa.bindparam("id"))
_USER_NAME = sa.select(User.table.c.name).where(User.table.c.id == sa.bindparam("id"))


def project(reader: Reader, id: str) -> dict[str, Any] | None:
    """The project (or domain) with this id, None when there is none."""
    return reader.one(_PROJECT, {"id": id})


def user(reader: Reader, id: str) -> dict[str, Any] | None:
    """The user with this id, None when there is none."""
    return reader.one(_USER, {"id": id})


def project_name(reader: Reader, id: str) -> str | None:
    """A project's name."""
    found: str | None = reader.scalar(_PROJECT_NAME, {"id": id})
    return found


def user_name(reader: Reader, id: str) -> str | None:
    """A user's name."""
    found: str | None = reader.scalar(_USER_NAME, {"id": id})
    return found
