"""What Linux bridges cannot have: GRE and Geneve networks, tags of guests, trunks, distributed routers.

A port that would need it is not bound there (``binding_failed``, and a trunk of it is in ERROR); servers, DHCP and
routers are placed where it can be had, when there is such a host. A distributed router is nowhere on such hosts, so
neither are guests of its networks.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import sqlalchemy as sa

from nubila.core import hosts
from nubila.core.db import Reader
from nubila.core.faults import conflict
from nubila.services.network import dvr_hosts, l2pop, look, network_segments, transparent, trunks_links
from nubila.services.network.kinds import Network
from nubila.services.network.kinds_port import Port

Row = dict[str, Any]
UNSUPPORTED = ("gre", "geneve")
_P = Port.table.c
_GUESTS = (
    sa.select(_P.id, _P.bound_host)
    .join(hosts.TABLE, hosts.TABLE.c.name == _P.bound_host)
    .where(
        _P.network_id.in_(sa.bindparam("networks", expanding=True)), _P.device_owner.not_like("network:%"),
        hosts.TABLE.c.switch == l2pop.LINUX_BRIDGE,
    )
    .order_by(_P.id)
    .limit(1)
)  # fmt: skip


def lacks(reader: Reader, host: Mapping[str, Any], network_id: str, *, port_id: str = "", guest: bool = False) -> str:
    """Why a port of the network cannot be bound on the host, in a few words; "" when it can, as far as we know.

    ``port_id``: the port, when there is one already. ``guest``: it is a server's, or will be.
    """
    if l2pop.switch(host) != l2pop.LINUX_BRIDGE:
        return ""
    net = look.row(reader, Network, network_id)
    if net is None:
        return ""
    used: Mapping[str, Any] = net
    if net["several"]:
        used = network_segments.by_host(reader, network_id, [host]).get(host["name"], net)
    if used["network_type"] in UNSUPPORTED:
        return f"Linux bridges have no {used['network_type']} networks"
    if transparent.chosen(net):
        return "Linux bridges do not carry tags of guests"
    if port_id and (trunks_links.of_parent(reader, port_id) or trunks_links.of_subport(reader, port_id)):
        return "Linux bridges have no trunks"
    if guest and dvr_hosts.component(reader, [network_id])[0]:
        return "distributed routers do not reach Linux bridges"
    return ""


def able(
    reader: Reader, known: Iterable[Row], networks: Iterable[str], ports: Iterable[str] = (), *, guest: bool = False
) -> list[Row]:
    """Those of the hosts that lack nothing that ports of these networks, and these ports, need."""
    wanted, own = list(dict.fromkeys(networks)), list(ports)

    def fits(host: Row) -> bool:
        if l2pop.switch(host) != l2pop.LINUX_BRIDGE:
            return True
        whole = {id: str(row["network_id"]) for id in own if (row := look.row(reader, Port, id)) is not None}
        pairs = [*(("", net) for net in wanted), *whole.items()]
        return not any(lacks(reader, host, net, port_id=id, guest=guest) for id, net in pairs)

    return [host for host in known if fits(host)]


def refuse_distributed(reader: Reader, networks: Iterable[str]) -> None:
    """409 when guests of these networks are where a distributed router cannot be."""
    found = reader.one(_GUESTS, {"networks": sorted(set(networks))})
    if found is not None:
        text = f"Port {found['id']} is on a host that switches with Linux bridges, where distributed routers can not "
        raise conflict(f"{text}be: move its server, or use a centralized router.", "RouterInterfaceAttachmentConflict")
