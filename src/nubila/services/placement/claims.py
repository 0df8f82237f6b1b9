"""Take and give back room on providers, inside the caller's transaction.

A claim first raises the provider's generation: that statement locks its row, so what is read afterwards is exact
under concurrency on every database and two claims can never share the last unit.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import sqlalchemy as sa

from nubila.core import clock
from nubila.core.db import Reader, Tx
from nubila.core.sql import upsert
from nubila.services.placement.kinds import ALLOCATION, CONSUMER, INVENTORY, PROVIDER, PROVIDER_TRAIT

INT_MAX = 2**31 - 1

_BUMP = (
    sa.update(PROVIDER)
    .where(PROVIDER.c.id == sa.bindparam("b_id"))
    .values(generation=PROVIDER.c.generation + 1, updated_at=sa.bindparam("b_now"))
)
_ROOM = (
    sa.select(
        INVENTORY.c.resource_class,
        INVENTORY.c.total,
        INVENTORY.c.reserved,
        INVENTORY.c.min_unit,
        INVENTORY.c.max_unit,
        INVENTORY.c.step_size,
        INVENTORY.c.allocation_ratio,
        sa.func.coalesce(sa.func.sum(ALLOCATION.c.used), 0).label("used"),
    )
    .select_from(
        INVENTORY.outerjoin(
            ALLOCATION,
            sa.and_(
                ALLOCATION.c.provider_id == INVENTORY.c.provider_id,
                ALLOCATION.c.resource_class == INVENTORY.c.resource_class,
            ),
        )
    )
    .group_by(*INVENTORY.columns)
)
_ROOM_ALL = _ROOM.add_columns(INVENTORY.c.provider_id)
_ROOM_ONE = _ROOM.where(INVENTORY.c.provider_id == sa.bindparam("b_id"))
_HELD = sa.select(ALLOCATION.c.provider_id, ALLOCATION.c.resource_class, ALLOCATION.c.used).where(
    ALLOCATION.c.consumer_id == sa.bindparam("b_id")
)
_DROP = sa.delete(ALLOCATION).where(
    ALLOCATION.c.consumer_id == sa.bindparam("b_id"), ALLOCATION.c.provider_id == sa.bindparam("b_provider"),
    ALLOCATION.c.resource_class == sa.bindparam("b_class"),
)  # fmt: skip
_OWNER = sa.select(CONSUMER.c.project_id).where(
    CONSUMER.c.id == sa.bindparam("b_id"), CONSUMER.c.type == sa.bindparam("b_type")
)
_FORGET = sa.delete(ALLOCATION).where(ALLOCATION.c.consumer_id == sa.bindparam("b_id"))
_FORGET_CONSUMER = sa.delete(CONSUMER).where(CONSUMER.c.id == sa.bindparam("b_id"))
_TRAITS = sa.select(PROVIDER_TRAIT.c.trait).where(PROVIDER_TRAIT.c.provider_id == sa.bindparam("b_id"))
_PROVIDER_BY_ID = sa.select(PROVIDER).where(PROVIDER.c.id == sa.bindparam("b_id"))


class NoRoom(Exception):
    """The provider cannot give what was asked; nothing was allocated. The text says of what there is too little."""


def capacity(inventory: Mapping[str, Any]) -> int:
    """How much of an inventory may be in use at once, overcommit included."""
    return int((inventory["total"] - inventory["reserved"]) * inventory["allocation_ratio"])


def fits(inventory: Mapping[str, Any], amount: int) -> bool:
    """Whether ``amount`` more can be taken from an inventory (with its ``used``), units and steps respected."""
    return bool(
        inventory["used"] + amount <= capacity(inventory)
        and inventory["min_unit"] <= amount <= inventory["max_unit"]
        and amount % inventory["step_size"] == 0
    )


def rooms(reader: Reader) -> dict[str, dict[str, dict[str, Any]]]:
    """provider id -> resource class -> its inventory with ``used``, for all providers in one query."""
    out: dict[str, dict[str, dict[str, Any]]] = {}
    for row in reader.all(_ROOM_ALL):
        row["used"] = int(row["used"])
        out.setdefault(row.pop("provider_id"), {})[row["resource_class"]] = row
    return out


def room(reader: Reader, provider_id: str) -> dict[str, dict[str, Any]]:
    """resource class -> inventory with ``used``, of one provider."""
    rows = reader.all(_ROOM_ONE, {"b_id": provider_id})
    return {row["resource_class"]: {**row, "used": int(row["used"])} for row in rows}


def free(reader: Reader) -> dict[str, dict[str, int]]:
    """provider id -> resource class -> how much can still be taken."""
    return {p: {rc: capacity(i) - i["used"] for rc, i in classes.items()} for p, classes in rooms(reader).items()}


def bump(tx: Tx, provider_id: str) -> bool:
    """Raise the provider's generation and so lock it until the transaction ends; False when there is none."""
    return tx.execute(_BUMP, {"b_id": provider_id, "b_now": clock.now()}) > 0


def claim(
    tx: Tx,
    consumer_id: str,
    project_id: str,
    user_id: str,
    amounts: Mapping[str, Mapping[str, int]],
    *,
    type: str = "INSTANCE",
) -> None:
    """Replace the consumer's allocations by ``amounts`` (provider id -> class -> how much).

    Raises NoRoom, after which the transaction may go on to try another provider.
    """
    release(tx, consumer_id, forget=False)
    for provider_id in sorted(amounts):
        if not bump(tx, provider_id):
            raise NoRoom(f"Resource provider {provider_id} does not exist.")
        have = room(tx, provider_id)
        for name, amount in sorted(amounts[provider_id].items()):
            if name not in have:
                raise NoRoom(f"Resource provider {provider_id} has no inventory of {name}.")
            if not fits(have[name], amount):
                left = capacity(have[name]) - have[name]["used"]
                raise NoRoom(f"Resource provider {provider_id} cannot give {amount} of {name}: {left} left.")
    now = clock.now()
    row = {
        "id": consumer_id, "project_id": project_id, "user_id": user_id, "type": type, "generation": 1,
        "created_at": now, "updated_at": now,
    }  # fmt: skip
    changes = {
        "project_id": project_id, "user_id": user_id, "type": type, "generation": CONSUMER.c.generation + 1,
        "updated_at": now,
    }  # fmt: skip
    tx.execute(upsert(tx.dialect, CONSUMER, row, changes))
    for provider_id, classes in sorted(amounts.items()):
        for name, amount in sorted(classes.items()):
            tx.insert(
                ALLOCATION,
                {"consumer_id": consumer_id, "provider_id": provider_id, "resource_class": name, "used": amount},
            )


def shift(
    tx: Tx,
    consumer_id: str,
    project_id: str,
    less: Mapping[str, Mapping[str, int]],
    more: Mapping[str, Mapping[str, int]],
    *,
    type: str = "INSTANCE",
) -> None:
    """Take ``less`` from what a consumer holds and add ``more`` (provider id -> class -> how much); all or nothing.

    Only what grows must fit, so somebody may always give back, on a host that has become too small too. Raises NoRoom
    before anything is changed.
    """
    for provider_id in sorted({*less, *more}):
        if not bump(tx, provider_id) and provider_id in more:
            raise NoRoom(f"Resource provider {provider_id} does not exist.")
    have = {(p, n): int(used) for p, n, used in tx.rows(_HELD, {"b_id": consumer_id})}
    after = _moved(_moved(have, less, -1), more, 1)
    for (provider_id, name), n in sorted(after.items()):
        if n > have.get((provider_id, name), 0):
            _grow(tx, provider_id, name, have.get((provider_id, name), 0), n)
    if not after:
        release(tx, consumer_id)
        return
    now = clock.now()
    row = {
        "id": consumer_id, "project_id": project_id, "user_id": "", "type": type, "generation": 1,
        "created_at": now, "updated_at": now,
    }  # fmt: skip
    tx.execute(upsert(tx.dialect, CONSUMER, row, {"generation": CONSUMER.c.generation + 1, "updated_at": now}))
    for (provider_id, name), n in after.items():
        if have.get((provider_id, name)) != n:
            one = {"consumer_id": consumer_id, "provider_id": provider_id, "resource_class": name, "used": n}
            tx.execute(upsert(tx.dialect, ALLOCATION, one, {"used": n}))
    for provider_id, name in have.keys() - after.keys():
        tx.execute(_DROP, {"b_id": consumer_id, "b_provider": provider_id, "b_class": name})


def _moved(
    have: Mapping[tuple[str, str], int], amounts: Mapping[str, Mapping[str, int]], sign: int
) -> dict[tuple[str, str], int]:
    after = dict(have)
    for provider_id, classes in amounts.items():
        for name, amount in classes.items():
            after[provider_id, name] = after.get((provider_id, name), 0) + sign * amount
    return {key: n for key, n in after.items() if n > 0}


def _grow(tx: Tx, provider_id: str, name: str, before: int, after: int) -> None:
    it = room(tx, provider_id).get(name)
    if it is None:
        raise NoRoom(f"Resource provider {provider_id} has no inventory of {name}.")
    if not fits({**it, "used": it["used"] - before}, after):
        left = capacity(it) - it["used"]
        raise NoRoom(f"Resource provider {provider_id} cannot give {after - before} more of {name}: {left} left.")


def owner(reader: Reader, consumer_id: str, type: str) -> str | None:
    """The project of a consumer of this type; None when there is none such."""
    found: str | None = reader.scalar(_OWNER, {"b_id": consumer_id, "b_type": type})
    return found


def release(tx: Tx, consumer_id: str, *, forget: bool = True) -> None:
    """Give back everything the consumer holds; nothing to give back is fine."""
    tx.execute(_FORGET, {"b_id": consumer_id})
    if forget:
        tx.execute(_FORGET_CONSUMER, {"b_id": consumer_id})


def report_inventory(tx: Tx, host: Mapping[str, Any], ratios: Mapping[str, float]) -> None:
    """Make the provider of a compute host be what the host reported (``host``: a row of core.hosts).

    ``ratios`` gives the allocation ratio per class (VCPU, MEMORY_MB, DISK_GB; 1.0 when absent). An inventory an
    operator gave other classes or a reserve is kept; traits the host reports are added.
    """
    offered = host["capabilities"]
    totals = {
        "VCPU": offered.get("vcpus", 0),
        "MEMORY_MB": offered.get("ram_mb", 0),
        "DISK_GB": offered.get("disk_gb", 0),
    }
    provider_id, now = host["id"], clock.now()
    known = tx.one(_PROVIDER_BY_ID, {"b_id": provider_id})
    if known is None:
        tx.insert(
            PROVIDER,
            {
                "id": provider_id, "name": host["name"], "generation": 0, "parent_id": None, "root_id": provider_id,
                "created_at": now, "updated_at": now,
            },
        )  # fmt: skip
    have = room(tx, provider_id)
    changed = known is None
    for name, total in totals.items():
        old = have.get(name)
        if total <= 0:
            continue
        ratio = ratios.get(name, 1.0)
        if old is None:
            tx.insert(
                INVENTORY,
                {
                    "provider_id": provider_id, "resource_class": name, "total": total, "reserved": 0, "min_unit": 1,
                    "max_unit": total, "step_size": 1, "allocation_ratio": ratio,
                },
            )  # fmt: skip
            changed = True
        elif (old["total"], old["max_unit"], old["allocation_ratio"]) != (total, total, ratio):
            tx.execute(
                sa.update(INVENTORY)
                .where(INVENTORY.c.provider_id == provider_id, INVENTORY.c.resource_class == name)
                .values(total=total, max_unit=total, allocation_ratio=ratio)
            )
            changed = True
    mine = {t for (t,) in tx.rows(_TRAITS, {"b_id": provider_id})}
    for trait in sorted(set(offered.get("traits", ())) - mine):
        tx.insert(PROVIDER_TRAIT, {"provider_id": provider_id, "trait": trait})
        changed = True
    if changed and known is not None:
        bump(tx, provider_id)
