"""What other services read of Placement."""

from __future__ import annotations

import sqlalchemy as sa

from nubila.core.db import Reader
from nubila.services.placement.kinds import ALLOCATION, CONSUMER, INVENTORY, PROVIDER, PROVIDER_TRAIT

_HELD = (
    sa.select(ALLOCATION.c.consumer_id, ALLOCATION.c.provider_id, ALLOCATION.c.resource_class, ALLOCATION.c.used)
    .join(CONSUMER, CONSUMER.c.id == ALLOCATION.c.consumer_id)
    .where(CONSUMER.c.type == sa.bindparam("type"))
)
_OFFERING = (
    sa.select(PROVIDER.c.root_id, PROVIDER.c.name, INVENTORY.c.resource_class, INVENTORY.c.total)
    .join(PROVIDER, PROVIDER.c.id == INVENTORY.c.provider_id)
    .where(INVENTORY.c.resource_class.startswith(sa.bindparam("prefix")))
    .order_by(PROVIDER.c.name, INVENTORY.c.resource_class)
)
_TRAITS = sa.select(PROVIDER_TRAIT.c.provider_id, PROVIDER_TRAIT.c.trait)


def traits_by_provider(reader: Reader) -> dict[str, set[str]]:
    """provider id -> its traits."""
    out: dict[str, set[str]] = {}
    for provider, trait in reader.rows(_TRAITS):
        out.setdefault(provider, set()).add(trait)
    return out


def offering(reader: Reader, prefix: str) -> dict[str, list[tuple[str, str, int]]]:
    """Who has inventories of resource classes that begin so ("NET_"): root's id -> (provider's name, class, total)."""
    out: dict[str, list[tuple[str, str, int]]] = {}
    for root, name, resource_class, total in reader.rows(_OFFERING, {"prefix": prefix}):
        out.setdefault(root, []).append((name, resource_class, int(total)))
    return out


def held(reader: Reader, type: str) -> dict[str, dict[str, dict[str, int]]]:
    """consumer -> provider id -> resource class -> how much, of all consumers of a type ("INSTANCE")."""
    out: dict[str, dict[str, dict[str, int]]] = {}
    for consumer, provider, name, used in reader.rows(_HELD, {"type": type}):
        out.setdefault(consumer, {}).setdefault(provider, {})[name] = int(used)
    return out
