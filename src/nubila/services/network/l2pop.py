"""Hosts that switch with Linux bridges: what is different about them for the Networking API, and l2 population.

Such a host is told who lives where on its tunnelled networks (``NetworkSpec.neighbours``), so that it neither asks nor
learns. It therefore looks at a network again when any port of it comes, goes, moves or changes its addresses; hosts
with Open vSwitch learn and are not asked.

Addresses that may be in several places at once, or move without the control plane (interfaces of highly available and
of distributed routers, addresses of allowed pairs), are not told: they are flooded and learned.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import sqlalchemy as sa

from nubila.core import hosts
from nubila.core.db import Reader, Tx
from nubila.core.ports import Neighbour
from nubila.services.network.kinds_port import Port
from nubila.services.network.tables import IP_ALLOCATION

LINUX_BRIDGE = "linuxbridge"
VIF_TYPES = {"openvswitch": "ovs", LINUX_BRIDGE: "bridge"}
"""``binding:vif_type`` of ports on a host, by its switch."""
VIF_DETAILS = {"port_filter": True, "connectivity": "l2", "bound_drivers": {"0": LINUX_BRIDGE}}
_MANY_PLACES = ("network:ha_router_replicated_interface", "network:router_interface_distributed", "network:floatingip")

_P, _A, _H = Port.table.c, IP_ALLOCATION.c, hosts.TABLE.c
_HERE = sa.exists().where(_P.bound_host == _H.name, _P.network_id == sa.bindparam("network"))
HOSTS = sa.select(_H.name).where(_HERE)
"""The hosts of a network; one look for each host, however many ports there are."""
BRIDGED = HOSTS.where(_H.switch == LINUX_BRIDGE)
"""The hosts of a network that are told who lives where."""
_ELSEWHERE = (
    sa.select(_P.id, _P.mac_address, _P.bound_host, _A.ip_address)
    .join(IP_ALLOCATION, _A.port_id == _P.id, isouter=True)
    .where(
        _P.network_id == sa.bindparam("network"),
        _P.bound_host.not_in(("", sa.bindparam("host"))),
        _P.device_owner.not_in(_MANY_PLACES),
    )
    .order_by(_P.id, _A.place)
)
_REBIND = (
    sa.update(Port.table)
    .where(_P.bound_host == sa.bindparam("b_host"), _P.vif_type.in_(list(VIF_TYPES.values())))
    .where(_P.vif_type != sa.bindparam("b_type"))
    .values(vif_type=sa.bindparam("b_type"))
)


def switch(host: Mapping[str, Any]) -> str:
    """The switch of a host: openvswitch or linuxbridge."""
    return str(host.get("switch") or "openvswitch")


def vif_type(host: Mapping[str, Any]) -> str:
    """How ports on the host are bound."""
    return VIF_TYPES.get(switch(host), "ovs")


def on_host(tx: Tx, host: Mapping[str, Any]) -> None:
    """A host said hello, perhaps with another switch than before: its ports are bound that way now."""
    tx.execute(_REBIND, {"b_host": host["name"], "b_type": vif_type(host)})


def ask(tx: Tx, network_id: str) -> None:
    """A port of the network came, went or has other addresses: hosts that are told so look again."""
    for (host,) in tx.rows(BRIDGED, {"network": network_id}):
        tx.ask("network", network_id, host)


def neighbours(
    reader: Reader, network_id: str, host: str, known: Mapping[str, Mapping[str, Any]]
) -> tuple[Neighbour, ...]:
    """The network's ports on other hosts, as ``host`` is told; () when it has no use for them.

    ``known`` are all hosts by name.
    """
    if switch(known.get(host, {})) != LINUX_BRIDGE:
        return ()
    ports: dict[str, tuple[str, str, list[str]]] = {}
    for id, mac, where, address in reader.rows(_ELSEWHERE, {"network": network_id, "host": host}):
        if where in known:
            _, _, addresses = ports.setdefault(id, (mac, known[where]["tunnel_ip"], []))
            if address:
                addresses.append(address)
    return tuple(Neighbour(mac=mac, host=at, addresses=tuple(ips)) for mac, at, ips in ports.values())
