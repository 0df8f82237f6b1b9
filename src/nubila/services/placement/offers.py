"""Providers that another service keeps below a host's: made, changed and given up as that service says."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from nubila.core import clock
from nubila.core.db import Reader, Tx
from nubila.core.sql import upsert
from nubila.services.placement import claims
from nubila.services.placement.kinds import (
    ALLOCATION,
    CUSTOM_TRAIT,
    INVENTORY,
    PROVIDER,
    PROVIDER_AGGREGATE,
    PROVIDER_TRAIT,
)

_ONE = sa.select(PROVIDER).where(PROVIDER.c.id == sa.bindparam("id"))
_NAMED = sa.select(PROVIDER.c.id).where(PROVIDER.c.name == sa.bindparam("name"))
_BELOW = sa.select(PROVIDER.c.id, PROVIDER.c.name).where(PROVIDER.c.parent_id == sa.bindparam("id"))
_TRAITS = sa.select(PROVIDER_TRAIT.c.trait).where(PROVIDER_TRAIT.c.provider_id == sa.bindparam("id"))
_USED = sa.select(ALLOCATION.c.consumer_id).where(ALLOCATION.c.provider_id == sa.bindparam("id")).limit(1)


@dataclass(frozen=True, kw_only=True)
class Offer:
    """What a provider is to be. ``inventories``: class -> total, reserved, min_unit, max_unit, step_size,
    allocation_ratio; other classes that begin with ``prefix`` go, and so do other traits of ``own_traits``."""

    id: str
    name: str
    parent_id: str
    root_id: str
    inventories: Mapping[str, Mapping[str, Any]]
    traits: frozenset[str]
    prefix: str
    own_traits: tuple[str, ...]


def known(reader: Reader, id: str) -> bool:
    """Whether there is such a provider."""
    return reader.one(_ONE, {"id": id}) is not None


def below(reader: Reader, id: str) -> dict[str, str]:
    """id -> name of a provider's children."""
    return dict(reader.rows(_BELOW, {"id": id}))


def ensure(tx: Tx, offer: Offer) -> bool:
    """Make the provider be as offered; nothing is written when it is. False: another provider has its name."""
    row, now = tx.one(_ONE, {"id": offer.id}), clock.now()
    if row is None:
        if tx.one(_NAMED, {"name": offer.name}) is not None:
            return False
        tx.insert(PROVIDER, {
            "id": offer.id, "name": offer.name, "generation": 0, "parent_id": offer.parent_id,
            "root_id": offer.root_id, "created_at": now, "updated_at": now,
        })  # fmt: skip
    changed = _inventories(tx, offer)
    changed = _traits(tx, offer) or changed
    if changed:
        claims.bump(tx, offer.id)
    return True


def _inventories(tx: Tx, offer: Offer) -> bool:
    have, changed = claims.room(tx, offer.id), False
    for name, it in offer.inventories.items():
        if name not in have:
            tx.insert(INVENTORY, {"provider_id": offer.id, "resource_class": name, **it})
        elif any(have[name][key] != value for key, value in it.items()):
            _set(tx, offer.id, name, it)
        else:
            continue
        changed = True
    for name, row in have.items():
        if name.startswith(offer.prefix) and name not in offer.inventories:
            changed = _give_up(tx, offer.id, name, row) or changed
    return changed


def _traits(tx: Tx, offer: Offer) -> bool:
    have = {t for (t,) in tx.rows(_TRAITS, {"id": offer.id})}
    stale = {t for t in have - offer.traits if t.startswith(offer.own_traits)}
    for trait in sorted(offer.traits - have):
        tx.execute(upsert(tx.dialect, CUSTOM_TRAIT, {"name": trait}, {}))
        tx.insert(PROVIDER_TRAIT, {"provider_id": offer.id, "trait": trait})
    for trait in stale:
        where = (PROVIDER_TRAIT.c.provider_id == offer.id, PROVIDER_TRAIT.c.trait == trait)
        tx.execute(sa.delete(PROVIDER_TRAIT).where(*where))
    return bool(stale or offer.traits - have)


def retire(tx: Tx, id: str) -> None:
    """Give a provider up: it goes when nobody uses it, else it gives nothing more until then."""
    if not known(tx, id):
        return
    idle = all(row["used"] and row["reserved"] == row["total"] for row in claims.room(tx, id).values())
    if idle and tx.one(_USED, {"id": id}) is not None:
        return
    claims.bump(tx, id)  # who takes from it now waits, and finds it gone; who was faster is seen
    if tx.one(_USED, {"id": id}) is None and not below(tx, id):
        for table in (INVENTORY, PROVIDER_TRAIT, PROVIDER_AGGREGATE):
            tx.execute(sa.delete(table).where(table.c.provider_id == id))
        tx.execute(sa.delete(PROVIDER).where(PROVIDER.c.id == id))
        return
    for name, row in claims.room(tx, id).items():
        _give_up(tx, id, name, row)


def _give_up(tx: Tx, id: str, name: str, row: Mapping[str, Any]) -> bool:
    """Offer a class no more; whether anything changed."""
    if not row["used"]:
        tx.execute(sa.delete(INVENTORY).where(INVENTORY.c.provider_id == id, INVENTORY.c.resource_class == name))
        return True
    if row["reserved"] == row["total"]:
        return False
    _set(tx, id, name, {"reserved": row["total"]})
    return True


def _set(tx: Tx, id: str, name: str, values: Mapping[str, Any]) -> None:
    where = (INVENTORY.c.provider_id == id, INVENTORY.c.resource_class == name)
    tx.execute(sa.update(INVENTORY).where(*where).values(**values))
