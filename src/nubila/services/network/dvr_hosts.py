"""On which hosts distributed routers are: wherever anything of their networks is, and where their central part is.

A packet between two networks is routed where it starts and leaves by the other network's tunnel. So a distributed
router's networks are all on all of its hosts; and since a host may send into a network through which another
distributed router can be reached, routers that share a network share their hosts (``component``). The rows are made to
be what the ports say whenever a network's set of hosts changes; who is concerned is asked in the same transaction.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import sqlalchemy as sa

from nubila.core import hosts
from nubila.core.db import Reader, Tx
from nubila.core.declare import METADATA
from nubila.services.network.kinds import FloatingIP, Network, Router
from nubila.services.network.kinds_port import Port

Row = dict[str, Any]
DVR_INTERFACE = "network:router_interface_distributed"
GATEWAY = "network:router_gateway"
TABLE = sa.Table(
    "router_distributed_host",
    METADATA,
    sa.Column("router_id", sa.String(36), sa.ForeignKey("router.id"), primary_key=True),
    sa.Column("host", sa.String(64), primary_key=True, index=True),
)
"""Which hosts have a distributed router."""

_T, _P, _R, _F, _N = TABLE.c, Port.table.c, Router.table.c, FloatingIP.table.c, Network.table.c
_OF = sa.select(_T.host).where(_T.router_id == sa.bindparam("router")).order_by(_T.host)
_EVERY = sa.select(_R.id).where(_R.distributed.is_(True))
_ALL = sa.select(_T.host).distinct()
_ON = sa.select(_T.router_id).where(_T.host == sa.bindparam("host")).order_by(_T.router_id)
_AT = sa.and_(_P.device_id == _T.router_id, _P.device_owner == DVR_INTERFACE)
_OF_NETWORK = sa.select(_T.host).join(Port.table, _AT).where(_P.network_id == sa.bindparam("network")).distinct()
_NETWORKS_ON = sa.select(_P.network_id).join(TABLE, _AT).where(_T.host == sa.bindparam("host")).distinct()
_ROUTERS = (
    sa.select(_P.device_id)
    .where(_P.network_id.in_(sa.bindparam("networks", expanding=True)), _P.device_owner == DVR_INTERFACE)
    .distinct()
)
_NETWORKS = (
    sa.select(_P.network_id)
    .where(_P.device_id.in_(sa.bindparam("routers", expanding=True)), _P.device_owner == DVR_INTERFACE)
    .distinct()
)
_BOUND = (
    sa.select(_P.bound_host)
    .where(_P.network_id.in_(sa.bindparam("networks", expanding=True)), _P.bound_host != "")
    .distinct()
)
_CENTRAL = sa.select(_R.id, _R.host).where(_R.id.in_(sa.bindparam("routers", expanding=True)), _R.distributed.is_(True))
_OUTER = sa.select(_P.network_id).where(_P.device_id == sa.bindparam("router"), _P.device_owner == GATEWAY).distinct()
_OUTSIDE = (
    sa.select(_T.host)
    .join(Port.table, sa.and_(_P.device_id == _T.router_id, _P.device_owner == GATEWAY))
    .where(_P.network_id == sa.bindparam("network"))
    .distinct()
)
_DROP = sa.delete(TABLE).where(_T.router_id == sa.bindparam("b_router"), _T.host == sa.bindparam("b_host"))
_FLOATING = (
    sa.select(_F.router_id, _F.floating_network_id)
    .join(Router.table, _R.id == _F.router_id)
    .where(_F.port_id == sa.bindparam("port"), _R.distributed.is_(True))
)


def of(reader: Reader, router_id: str) -> list[str]:
    """The hosts of a distributed router; none of another."""
    return [host for (host,) in reader.rows(_OF, {"router": router_id})]


def everywhere(reader: Reader) -> set[str]:
    """All hosts with a distributed router."""
    return {host for (host,) in reader.rows(_ALL)}


def on(reader: Reader, host: str) -> list[str]:
    """The distributed routers of a host."""
    return [id for (id,) in reader.rows(_ON, {"host": host})]


def of_network(reader: Reader, network_id: str) -> set[str]:
    """The hosts of the distributed routers that a network is connected to."""
    return {host for (host,) in reader.rows(_OF_NETWORK, {"network": network_id})}


def networks_on(reader: Reader, host: str) -> set[str]:
    """Networks that a host needs for its distributed routers, external ones included."""
    found = {id for (id,) in reader.rows(_NETWORKS_ON, {"host": host})}
    for router_id in on(reader, host):
        found |= {id for (id,) in reader.rows(_OUTER, {"router": router_id})}
    return found


def reaches(host: Mapping[str, Any], network: Mapping[str, Any]) -> bool:
    """Whether a host can have a port on an external network: it is tunnelled, or the host has its physical network."""
    physical = network["physical_network"]
    return not physical or physical in (host["bridges"] or {})


def with_gateway(reader: Reader, network_id: str) -> set[str]:
    """The hosts of distributed routers with a gateway on an external network."""
    return {host for (host,) in reader.rows(_OUTSIDE, {"network": network_id})}


def outside(reader: Reader, network: Mapping[str, Any], known: Mapping[str, Mapping[str, Any]]) -> set[str]:
    """The hosts of distributed routers with their gateway on an external network that reach it themselves."""
    return {host for host in with_gateway(reader, network["id"]) if host in known and reaches(known[host], network)}


def component(reader: Reader, networks: Iterable[str]) -> tuple[set[str], set[str]]:
    """(routers, networks) that distributed routers join, starting from some networks."""
    nets, routers, new = set(networks), set[str](), set(networks)
    while new:
        found = {id for (id,) in reader.rows(_ROUTERS, {"networks": sorted(new)})} - routers
        routers |= found
        new = ({id for (id,) in reader.rows(_NETWORKS, {"routers": sorted(found)})} - nets) if found else set()
        nets |= new
    return routers, nets


def spread(tx: Tx, router_id: str) -> None:
    """Bring a router and those it shares networks with to the hosts they belong on."""
    networks = [id for (id,) in tx.rows(_NETWORKS, {"routers": [router_id]})]
    _spread(tx, *component(tx, networks), also=router_id)


def touched(tx: Tx, network_id: str) -> None:
    """The set of a network's hosts changed: its distributed routers follow."""
    routers, networks = component(tx, [network_id])
    if routers:
        _spread(tx, routers, networks)


def _spread(tx: Tx, routers: set[str], networks: set[str], also: str = "") -> None:
    everyone = sorted({*routers, *([also] if also else [])})
    wanted = _wanted(tx, everyone, routers, networks)
    changed: set[str] = set()
    for id in everyone:
        changed |= _move(tx, id, wanted[id])
    for network_id in networks if changed else ():
        for host in changed.union(*wanted.values()):
            tx.ask("network", network_id, host)


def _wanted(reader: Reader, everyone: list[str], routers: set[str], networks: set[str]) -> dict[str, set[str]]:
    """On which hosts each of these routers belongs; ``routers`` are those that ``networks`` are connected to."""
    central = {id: host or "" for id, host in reader.rows(_CENTRAL, {"routers": everyone})} if everyone else {}
    where: set[str] = set()
    if networks and routers:
        where = {host for (host,) in reader.rows(_BOUND, {"networks": sorted(networks)})}
        where |= {host for id, host in central.items() if id in routers}
    # Hosts that switch with Linux bridges cannot have one (bridged.py).
    where &= {h["name"] for h in hosts.every(reader) if h["switch"] != "linuxbridge"}
    return {
        id: ((where if id in routers else set()) | ({central[id]} - {""})) if id in central else set()
        for id in everyone
    }


def unsound(reader: Reader) -> list[str]:
    """One sentence for each distributed router that is not where it belongs."""
    out = []
    for (id,) in reader.rows(_EVERY):
        routers, networks = component(reader, [net for (net,) in reader.rows(_NETWORKS, {"routers": [id]})])
        wanted = _wanted(reader, sorted({id, *routers}), routers, networks)[id]
        if wanted != set(of(reader, id)):
            out.append(f"router {id} is on {of(reader, id)} and belongs on {sorted(wanted)}")
    return out


def _move(tx: Tx, router_id: str, wanted: set[str]) -> set[str]:
    """Note a router's hosts; the ones that came or went."""
    have = set(of(tx, router_id))
    for host in sorted(wanted - have):
        tx.insert(TABLE, {"router_id": router_id, "host": host})
    for host in sorted(have - wanted):
        tx.execute(_DROP, {"b_router": router_id, "b_host": host})
    if have != wanted:
        asked(tx, router_id, have | wanted)
    return have ^ wanted


def forget(tx: Tx, router_id: str) -> None:
    """The router is deleted or distributed no longer: it goes from its hosts."""
    networks = {id for (id,) in tx.rows(_NETWORKS, {"routers": [router_id]})}
    networks |= {id for (id,) in tx.rows(_OUTER, {"router": router_id})}
    for host in of(tx, router_id):
        tx.execute(_DROP, {"b_router": router_id, "b_host": host})
        tx.ask("router", router_id, host)
        for network_id in networks:
            tx.ask("network", network_id, host)


def asked(tx: Tx, router_id: str, where: Iterable[str]) -> None:
    """Something about the router changed: its hosts look, at its external networks as well."""
    outer = [id for (id,) in tx.rows(_OUTER, {"router": router_id})]
    for host in where:
        tx.ask("router", router_id, host)
        for network_id in outer:
            tx.ask("network", network_id, host)


def port_moved(tx: Tx, port_id: str) -> None:
    """A guest's port changed its host: floating IPs that lead to it live where it is."""
    for router_id, _ in tx.rows(_FLOATING, {"port": port_id}):
        asked(tx, router_id, of(tx, router_id))


def reachable(reader: Reader, network_id: str, host: str) -> bool:
    """Whether a host reaches an external network by itself."""
    net = reader.one(sa.select(Network.table).where(_N.id == network_id))
    found = hosts.get(reader, host)
    return net is not None and found is not None and reaches(found, net)
