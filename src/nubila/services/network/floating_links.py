"""What becomes of floating IPs when the port or address they lead to changes."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import sqlalchemy as sa

from nubila.core import clock
from nubila.core.db import Reader, Tx
from nubila.services.network import allocate, asks
from nubila.services.network.kinds import FloatingIP

_F = FloatingIP.table.c
_OF_PORT = sa.select(FloatingIP.table).where(_F.port_id == sa.bindparam("port"))
_ROUTER = sa.select(_F.id).where(_F.router_id == sa.bindparam("router"))


def of_port(reader: Reader, port_id: str) -> list[dict[str, Any]]:
    """The floating IPs that lead to a port."""
    return reader.all(_OF_PORT, {"port": port_id})


def of_router(reader: Reader, router_id: str) -> list[str]:
    """Ids of the floating IPs that a router translates."""
    return [id for (id,) in reader.rows(_ROUTER, {"router": router_id})]


def unlink(tx: Tx, row: dict[str, Any]) -> None:
    """The floating IP leads nowhere any more; its router is told."""
    allocate.set_columns(
        tx, FloatingIP, row["id"],
        {"port_id": None, "fixed_ip_address": None, "router_id": None, "status": "DOWN", "updated_at": clock.now(),
         "revision_number": row["revision_number"] + 1},
    )  # fmt: skip
    if row["router_id"]:
        asks.router(tx, row["router_id"])


def port_gone(tx: Tx, port_id: str) -> None:
    """A port is being deleted."""
    for row in of_port(tx, port_id):
        unlink(tx, row)


def addresses_changed(tx: Tx, port_id: str, addresses: Iterable[str]) -> None:
    """A port has other addresses now; floating IPs that led to one it lost lead nowhere."""
    left = set(addresses)
    for row in of_port(tx, port_id):
        if row["fixed_ip_address"] not in left:
            unlink(tx, row)


_FIXED = sa.select(_F.fixed_ip_address).where(_F.id == sa.bindparam("id"))


def fixed_of(reader: Reader, id: str) -> str:
    """The fixed address a floating IP leads to."""
    return str(reader.scalar(_FIXED, {"id": id}))
