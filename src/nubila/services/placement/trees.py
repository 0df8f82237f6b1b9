"""Trees of resource providers, in the form combine.py chooses from."""

from __future__ import annotations

import sqlalchemy as sa

from nubila.core.db import Reader
from nubila.services.placement import claims, reading
from nubila.services.placement.combine import Provider
from nubila.services.placement.kinds import PROVIDER, PROVIDER_TRAIT
from nubila.services.placement.providers import aggregates_by_provider

_ALL = sa.select(PROVIDER).order_by(PROVIDER.c.created_at, PROVIDER.c.id)
_BELOW = _ALL.where(PROVIDER.c.root_id == sa.bindparam("root"))
_TRAITS = sa.select(PROVIDER_TRAIT.c.trait).where(PROVIDER_TRAIT.c.provider_id == sa.bindparam("id"))


def every(reader: Reader) -> dict[str, list[Provider]]:
    """root's id -> the root and everything below it, for all trees."""
    room, have = claims.rooms(reader), reading.traits_by_provider(reader)
    members = aggregates_by_provider(reader)
    out: dict[str, list[Provider]] = {}
    for p in reader.all(_ALL):
        out.setdefault(p["root_id"], []).append(Provider(
            id=p["id"], root=p["root_id"], parent=p["parent_id"], room=room.get(p["id"], {}),
            traits=frozenset(have.get(p["id"], ())), aggregates=frozenset(members.get(p["id"], ())),
        ))  # fmt: skip
    return out


def one(reader: Reader, root: str) -> list[Provider]:
    """One tree, without aggregates."""
    return [
        Provider(
            id=p["id"], root=root, parent=p["parent_id"], room=claims.room(reader, p["id"]),
            traits=frozenset(t for (t,) in reader.rows(_TRAITS, {"id": p["id"]})), aggregates=frozenset(),
        )
        for p in reader.all(_BELOW, {"root": root})
    ]  # fmt: skip
