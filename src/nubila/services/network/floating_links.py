"""What becomes of floating IPs, port forwardings and NDP proxies when what they lead to changes or goes."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import sqlalchemy as sa

from nubila.core import clock
from nubila.core.db import Reader, Tx
from nubila.services.network import allocate, asks, nested
from nubila.services.network.kinds import FloatingIP
from nubila.services.network.kinds_l3 import NdpProxy, PortForwarding

Row = dict[str, Any]
_F, _W, _N = FloatingIP.table.c, PortForwarding.table.c, NdpProxy.table.c
_OF_PORT = sa.select(FloatingIP.table).where(_F.port_id == sa.bindparam("port"))
_ROUTER = sa.select(_F.id, _F.fixed_ip_address, _F.floating_network_id).where(_F.router_id == sa.bindparam("router"))
_FORWARDINGS = sa.select(PortForwarding.table).where(_W.internal_port_id == sa.bindparam("port"))
_OF_FLOATING = (
    sa.select(PortForwarding.table).where(_W.floatingip_id == sa.bindparam("floating")).order_by(_W.created_at, _W.id)
)
_ROUTER_FORWARDINGS = (
    sa.select(PortForwarding.table, _F.floating_ip_address, _F.floating_network_id)
    .join(FloatingIP.table, _F.id == _W.floatingip_id)
    .where(_F.router_id == sa.bindparam("router"))
    .order_by(_W.id)
)
_FLOATING = sa.select(FloatingIP.table).where(_F.id == sa.bindparam("id"))
_PROXIES = sa.select(NdpProxy.table).where(_N.port_id == sa.bindparam("port"))
_ROUTER_PROXIES = sa.select(NdpProxy.table).where(_N.router_id == sa.bindparam("router")).order_by(_N.id)


def of_port(reader: Reader, port_id: str) -> list[Row]:
    """The floating IPs that lead to a port."""
    return reader.all(_OF_PORT, {"port": port_id})


def of_router(reader: Reader, router_id: str, network_id: str = "") -> list[str]:
    """Ids of the floating IPs that a router translates, of one external network when it is named."""
    rows = reader.rows(_ROUTER, {"router": router_id})
    return [id for id, _, net in rows if network_id in ("", net)]


def targets(reader: Reader, router_id: str) -> list[str]:
    """The fixed addresses that floating IPs and port forwardings of a router lead to."""
    floating = [ip for _, ip, _ in reader.rows(_ROUTER, {"router": router_id}) if ip]
    return floating + [row["internal_ip_address"] for row in forwardings_of_router(reader, router_id)]


def forwardings(reader: Reader, floating_id: str) -> list[Row]:
    """The port forwardings of a floating IP, oldest first."""
    return reader.all(_OF_FLOATING, {"floating": floating_id})


def forwardings_of_port(reader: Reader, port_id: str) -> list[Row]:
    """The port forwardings that lead to a port."""
    return reader.all(_FORWARDINGS, {"port": port_id})


def forwardings_of_router(reader: Reader, router_id: str) -> list[Row]:
    """A router's port forwardings, with ``floating_ip_address``."""
    return reader.all(_ROUTER_FORWARDINGS, {"router": router_id})


def proxies_of_router(reader: Reader, router_id: str) -> list[Row]:
    """A router's NDP proxies."""
    return reader.all(_ROUTER_PROXIES, {"router": router_id})


def unlink(tx: Tx, row: Row) -> None:
    """The floating IP leads nowhere any more; its router is told."""
    allocate.set_columns(
        tx, FloatingIP, row["id"],
        {"port_id": None, "fixed_ip_address": None, "router_id": None, "status": "DOWN", "updated_at": clock.now(),
         "revision_number": row["revision_number"] + 1},
    )  # fmt: skip
    if row["router_id"]:
        asks.router(tx, row["router_id"])


def forwarding_gone(tx: Tx, row: Row) -> None:
    """A port forwarding was deleted: a floating IP without any leads nowhere."""
    floating = tx.one(_FLOATING, {"id": row["floatingip_id"]})
    if floating is None:
        return
    if not forwardings(tx, floating["id"]):
        unlink(tx, floating)
    elif floating["router_id"]:
        asks.router(tx, floating["router_id"])


def port_gone(tx: Tx, port_id: str) -> None:
    """A port is being deleted."""
    for row in of_port(tx, port_id):
        unlink(tx, row)
    _lost(tx, port_id, set())


def addresses_changed(tx: Tx, port_id: str, addresses: Iterable[str]) -> None:
    """A port has other addresses now; what led to one it lost leads nowhere."""
    left = set(addresses)
    for row in of_port(tx, port_id):
        if row["fixed_ip_address"] not in left:
            unlink(tx, row)
    _lost(tx, port_id, left)


def _lost(tx: Tx, port_id: str, left: set[str]) -> None:
    for row in forwardings_of_port(tx, port_id):
        if row["internal_ip_address"] not in left:
            nested.remove(PortForwarding, tx, row)
            forwarding_gone(tx, row)
    for row in tx.all(_PROXIES, {"port": port_id}):
        if row["ip_address"] not in left:
            nested.remove(NdpProxy, tx, row)
            asks.router(tx, row["router_id"])
