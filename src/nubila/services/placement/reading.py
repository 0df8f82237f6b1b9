"""What other services read of Placement."""

from __future__ import annotations

import sqlalchemy as sa

from nubila.core.db import Reader
from nubila.services.placement.kinds import ALLOCATION, CONSUMER, PROVIDER_TRAIT

_HELD = (
    sa.select(ALLOCATION.c.consumer_id, ALLOCATION.c.provider_id, ALLOCATION.c.resource_class, ALLOCATION.c.used)
    .join(CONSUMER, CONSUMER.c.id == ALLOCATION.c.consumer_id)
    .where(CONSUMER.c.type == sa.bindparam("type"))
)
_TRAITS = sa.select(PROVIDER_TRAIT.c.provider_id, PROVIDER_TRAIT.c.trait)


def traits_by_provider(reader: Reader) -> dict[str, set[str]]:
    """provider id -> its traits."""
    out: dict[str, set[str]] = {}
    for provider, trait in reader.rows(_TRAITS):
        out.setdefault(provider, set()).add(trait)
    return out


def held(reader: Reader, type: str) -> dict[str, dict[str, dict[str, int]]]:
    """consumer -> provider id -> resource class -> how much, of all consumers of a type ("INSTANCE")."""
    out: dict[str, dict[str, dict[str, int]]] = {}
    for consumer, provider, name, used in reader.rows(_HELD, {"type": type}):
        out.setdefault(consumer, {}).setdefault(provider, {})[name] = int(used)
    return out
