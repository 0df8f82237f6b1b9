"""Local IPs as hosts are told, and what ends with a port."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import sqlalchemy as sa

from nubila.core import quota
from nubila.core.db import Reader, Tx
from nubila.core.faults import conflict
from nubila.core.ports import LocalIp
from nubila.services.network.kinds_local_ip import LocalIP, LocalIPAssociation
from nubila.services.network.kinds_port import Port
from nubila.services.network.tables import IP_ALLOCATION

_OWNER = Port.table.alias("owner")
_O = _OWNER.c
_L, _B, _P, _A = LocalIP.table.c, LocalIPAssociation.table.c, Port.table.c, IP_ALLOCATION.c
_HERE = (
    sa.select(_L.local_ip_address, _L.ip_mode, _B.fixed_ip, _P.id, _P.mac_address, _O.bound_host)
    .join(LocalIPAssociation.table, _B.local_ip_id == _L.id)
    .join(Port.table, _P.id == _B.fixed_port_id)
    .join(_OWNER, _O.id == _L.local_port_id, isouter=True)
    .join(IP_ALLOCATION, sa.and_(_A.port_id == _P.id, _A.ip_address == _B.fixed_ip))
    .where(_P.network_id == sa.bindparam("network"), _P.bound_host == sa.bindparam("host"), _P.admin_state_up.is_(True))
    .order_by(_L.local_ip_address, _P.id)
)
_IS_LOCAL = sa.select(_L.id).where(_L.local_port_id == sa.bindparam("port")).limit(1)
_BEHIND = sa.select(_B.id, _B.project_id).where(_B.fixed_port_id == sa.bindparam("port"))
_DELETE = sa.delete(LocalIPAssociation.table).where(_B.id == sa.bindparam("b_id"))


def of_network(reader: Reader, network_id: str, host: str) -> tuple[LocalIp, ...]:
    """The local IPs that ports of the network answer for on this host."""
    return tuple(
        LocalIp(
            address=address,
            port_id=port,
            mac=mac,
            fixed_ip=fixed_ip,
            translate=mode == "translate",
            owner_here=owner == host,
        )
        for address, mode, fixed_ip, port, mac, owner in reader.rows(_HERE, {"network": network_id, "host": host})
    )


def guard(reader: Reader, port_id: str) -> None:
    """409 for a port that has the address of a local IP."""
    if reader.one(_IS_LOCAL, {"port": port_id}) is not None:
        text = f"Local IPs need port {port_id}: delete them first."
        raise conflict(text, "ServicePortInUse")


def moved(tx: Tx, port: Mapping[str, Any], *hosts: str) -> None:
    """The port came to a host or left it: both look whether it is behind a local IP."""
    if tx.one(_BEHIND, {"port": port["id"]}) is not None:
        ask(tx, port, *hosts)


def ask(tx: Tx, port: Mapping[str, Any], *hosts: str) -> None:
    """Hosts where the port answers for another address, or does not any more."""
    for host in set(hosts) - {""}:
        tx.ask("network", port["network_id"], host)


def port_gone(tx: Tx, port: Mapping[str, Any]) -> None:
    """The port is going: it stands behind nothing any more."""
    found = tx.rows(_BEHIND, {"port": port["id"]})
    for id, project in found:
        tx.execute(_DELETE, {"b_id": id})
        if project:
            quota.release(tx, project, {"local_ip_association": 1})
    if found:
        ask(tx, port, port["bound_host"])
