"""Trusts that were passed on: each rests on all before it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from nubila.core import clock
from nubila.services.identity import lookup
from nubila.services.identity.kinds import TRUST

if TYPE_CHECKING:
    from nubila.core.db import Reader

Row = dict[str, Any]
MAX_REDELEGATION = 3
"""How often a trust may be passed on at most (Keystone's max_redelegation_count)."""
_BY_ID = sa.select(TRUST).where(TRUST.c.id == sa.bindparam("id"))


class Broken(Exception):
    """A trust before this one in its chain is gone, has ended, or its trustee is gone or disabled."""


def usable() -> Any:
    """SQL: the trusts that have neither ended nor been used up."""
    t = TRUST.c
    return sa.and_(
        sa.or_(t.expires_at.is_(None), t.expires_at > clock.now()),
        sa.or_(t.remaining_uses.is_(None), t.remaining_uses > 0),
    )


def chain(reader: Reader, trust: Row) -> list[Row]:
    """This trust, the one it was made with, and so on; the last is the first trustor's. Raises :class:`Broken`."""
    out = [trust]
    while (id := out[-1]["redelegated_trust_id"]) is not None:
        row = reader.one(_BY_ID, {"id": id})
        if row is None or len(out) > MAX_REDELEGATION or (row["expires_at"] and row["expires_at"] <= clock.now()):
            raise Broken("A trust that this one rests on is gone or has ended.")
        agent = lookup.user(reader, row["trustee_user_id"])
        if agent is None or not agent["enabled"]:
            raise Broken("A user that passed this trust on is gone or disabled.")
        out.append(row)
    return out
