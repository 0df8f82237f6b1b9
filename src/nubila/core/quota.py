"""How much of each resource a project may use, and does: exact under concurrency on every database.

A claim is one UPDATE that counts and compares at once, in the transaction that inserts the rows it pays for. -1 means
unlimited. What the defaults are, and which resources exist, the services say.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import sqlalchemy as sa

from nubila.core.sql import core_meta, upsert

if TYPE_CHECKING:
    from nubila.core.db import Reader, Tx

UNLIMITED = -1

quota_usage = sa.Table(
    "quota_usage",
    core_meta,
    sa.Column("project_id", sa.String(64), primary_key=True),
    sa.Column("resource", sa.String(64), primary_key=True),
    sa.Column("used", sa.BigInteger, nullable=False, server_default="0"),
)
quota_limit = sa.Table(
    "quota_limit",
    core_meta,
    sa.Column("project_id", sa.String(64), primary_key=True),
    sa.Column("resource", sa.String(64), primary_key=True),
    sa.Column("limit", sa.BigInteger, nullable=False),
)
TABLES = (quota_usage, quota_limit)


class OverQuota(Exception):
    """The claim does not fit; nothing was counted (let it end the transaction)."""

    def __init__(self, resource: str, requested: int, used: int, limit: int) -> None:
        super().__init__(f"Quota exceeded for {resource}: requested {requested}, used {used}, limit {limit}")
        self.resource = resource
        self.requested = requested
        self.used = used
        self.limit = limit


_u, _l = quota_usage.c, quota_limit.c
_LIMIT = sa.func.coalesce(
    sa.select(_l.limit)
    .where(_l.project_id == sa.bindparam("b_project"), _l.resource == sa.bindparam("b_resource"))
    .scalar_subquery(),
    sa.bindparam("b_default", type_=sa.BigInteger),
)
_N = sa.bindparam("b_n", type_=sa.BigInteger)
_ROW = sa.and_(_u.project_id == sa.bindparam("b_project"), _u.resource == sa.bindparam("b_resource"))
_CLAIM = (
    sa.update(quota_usage).where(_ROW, sa.or_(_u.used + _N <= _LIMIT, _LIMIT < 0, _N <= 0)).values(used=_u.used + _N)
)
_SEEN = sa.select(_u.used, _LIMIT.label("most")).where(_ROW)
_RELEASE = sa.update(quota_usage).where(_ROW).values(used=sa.case((_u.used > _N, _u.used - _N), else_=0))
_USAGE = sa.select(_u.resource, _u.used).where(_u.project_id == sa.bindparam("b_project"))
_LIMITS = sa.select(_l.resource, _l.limit).where(_l.project_id == sa.bindparam("b_project"))
_RESET = sa.delete(quota_limit).where(_l.project_id == sa.bindparam("b_project"))


def claim(tx: Tx, project_id: str, amounts: Mapping[str, int], defaults: Mapping[str, int]) -> None:
    """Count `amounts` (resource -> how many more) as used by the project, all or none.

    `defaults` gives the limit of resources that have none of their own; it must name every claimed resource. Raises
    ``OverQuota`` for the first resource, in alphabetical order, that does not fit. Usage above a limit that was lowered
    later is allowed to stand, not to grow.
    """
    for resource in sorted(amounts):
        wanted = amounts[resource]
        if not wanted:
            continue
        key = {"b_project": project_id, "b_resource": resource, "b_default": defaults[resource]}
        if tx.execute(_CLAIM, {**key, "b_n": wanted}):
            continue
        row = {"project_id": project_id, "resource": resource, "used": 0}
        tx.execute(upsert(tx.dialect, quota_usage, row, {}))
        if not tx.execute(_CLAIM, {**key, "b_n": wanted}):
            seen = tx.one(_SEEN, key) or {"used": 0, "most": defaults[resource]}
            raise OverQuota(resource, wanted, int(seen["used"]), int(seen["most"]))


def count(tx: Tx, project_id: str, amounts: Mapping[str, int]) -> None:
    """Count what the cloud itself makes for a project (its default group, DHCP ports): used, but never refused."""
    for resource in sorted(amounts):
        if amounts[resource]:
            row = {"project_id": project_id, "resource": resource, "used": amounts[resource]}
            tx.execute(upsert(tx.dialect, quota_usage, row, {"used": _u.used + amounts[resource]}))


def release(tx: Tx, project_id: str, amounts: Mapping[str, int]) -> None:
    """Give back what was claimed; usage never falls below zero."""
    for resource in sorted(amounts):
        if amounts[resource]:
            tx.execute(_RELEASE, {"b_project": project_id, "b_resource": resource, "b_n": amounts[resource]})


def usage(reader: Reader, project_id: str) -> dict[str, int]:
    """Return resource -> used for everything the project ever claimed."""
    return {resource: int(used) for resource, used in reader.rows(_USAGE, {"b_project": project_id})}


def limits(reader: Reader, project_id: str, defaults: Mapping[str, int]) -> dict[str, int]:
    """Return resource -> limit: the defaults, overlaid with what was set for the project."""
    return {**defaults, **{resource: int(most) for resource, most in reader.rows(_LIMITS, {"b_project": project_id})}}


def set_limit(tx: Tx, project_id: str, resource: str, limit: int) -> None:
    """Set the project's own limit (-1 = unlimited); it may be below what is used."""
    row = {"project_id": project_id, "resource": resource, "limit": limit}
    tx.execute(upsert(tx.dialect, quota_limit, row, {"limit": limit}))


def reset_limits(tx: Tx, project_id: str) -> None:
    """Forget the project's own limits: the defaults apply again."""
    tx.execute(_RESET, {"b_project": project_id})


def set_usage(tx: Tx, project_id: str, resource: str, used: int) -> None:
    """Correct a count (``nubila doctor`` does so after comparing with the rows)."""
    row = {"project_id": project_id, "resource": resource, "used": used}
    tx.execute(upsert(tx.dialect, quota_usage, row, {"used": used}))
