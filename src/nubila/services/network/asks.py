"""Who has to look again when something changed: the fan-out from a changed row to (kind, id, host) work rows.

Every function is called in the transaction of the change itself and only asks; what is then to be done is computed
from the rows (hosting.py). Asking once too often costs a comparison, once too seldom leaves a host wrong until the next
full compare.

Host kinds: "network", "port" and "router", the id is the resource's UUID, the shard the host. Controller kinds (shard
""): "security_group" passes a change of a group's members or rules on to the ports it concerns, however many, outside
the user's request; "dhcp" and "router_place" choose hosts.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import sqlalchemy as sa

from nubila.core import hosts
from nubila.core.db import Reader, Tx
from nubila.services.network import l2pop
from nubila.services.network.ha_tables import HA_HOST
from nubila.services.network.kinds import Network, Router
from nubila.services.network.kinds_port import Port, SecurityGroupRule
from nubila.services.network.tables import DHCP_BINDING, PORT_GROUP

Row = Mapping[str, Any]
INTERFACE, GATEWAY, DHCP, FLOATING = (
    "network:router_interface", "network:router_gateway", "network:dhcp", "network:floatingip",
)  # fmt: skip
HA_INTERFACE, DVR_INTERFACE, CENTRAL = (
    "network:ha_router_replicated_interface", "network:router_interface_distributed",
    "network:router_centralized_snat",
)  # fmt: skip
INTERFACES = (INTERFACE, HA_INTERFACE, DVR_INTERFACE)  # what connects a router to a project's network
ROUTER_OWNERS = (*INTERFACES, GATEWAY)

_P = Port.table.c
_HOSTS = sa.select(_P.bound_host).where(_P.network_id == sa.bindparam("network"), _P.bound_host != "").distinct()
_DHCP_HOSTS = sa.union(
    sa.select(DHCP_BINDING.c.host).where(
        DHCP_BINDING.c.network_id == sa.bindparam("network"), DHCP_BINDING.c.port_id.is_not(None)
    ),
    l2pop.BRIDGED,  # they are told who has which address, too
)
_HA_HOSTS = sa.select(HA_HOST.c.host).where(HA_HOST.c.router_id == sa.bindparam("router"))
_HA_HOSTS_OF_NETWORK = (
    sa.select(HA_HOST.c.host)
    .join(Port.table, _P.device_id == HA_HOST.c.router_id)
    .where(_P.network_id == sa.bindparam("network"), _P.device_owner.in_(ROUTER_OWNERS))
    .distinct()
)
_ROUTER_HOST = sa.select(Router.table.c.host).where(Router.table.c.id == sa.bindparam("id"))
_ROUTERS = (
    sa.select(_P.device_id)
    .where(_P.network_id == sa.bindparam("network"), _P.device_owner.in_(ROUTER_OWNERS), _P.device_id != "")
    .distinct()
)
_GUEST_PORTS = sa.select(_P.id, _P.bound_host).where(
    _P.network_id == sa.bindparam("network"), _P.bound_host != "", _P.device_owner.not_like("network:%")
)
_R = SecurityGroupRule.table.c
_CONCERNED = (
    sa.select(_P.id, _P.bound_host)
    .join(PORT_GROUP, PORT_GROUP.c.port_id == _P.id)
    .where(
        _P.bound_host != "",
        sa.or_(
            PORT_GROUP.c.security_group_id == sa.bindparam("group"),
            PORT_GROUP.c.security_group_id.in_(
                sa.select(_R.security_group_id).where(_R.remote_group_id == sa.bindparam("group"))
            ),
        ),
    )
    .distinct()
)


def is_guest(port: Row) -> bool:
    """Whether the port is wired on its own (router and DHCP ports are part of their router and network)."""
    return not str(port["device_owner"]).startswith("network:")


def network_hosts(reader: Reader, network_id: str, *, external: bool = False) -> set[str]:
    """The hosts where a network has something to do; an external one lives on every network host."""
    found = {host for (host,) in reader.rows(_HOSTS, {"network": network_id})}
    found |= {host for (host,) in reader.rows(_HA_HOSTS_OF_NETWORK, {"network": network_id})}
    if external:
        found |= {h["name"] for h in hosts.every(reader) if "network" in h["roles"]}
    return found


def network(tx: Tx, network_id: str, *, also: Iterable[str] = (), external: bool = False) -> None:
    """The network itself changed (segment, MTU, set of hosts, subnets): all hosts where it lives, and ``also``."""
    for host in network_hosts(tx, network_id, external=external) | set(also):
        tx.ask("network", network_id, host)


_EXTERNAL = sa.select(Network.table.c.id).where(Network.table.c.external.is_(True)).order_by(Network.table.c.id)


def external_networks(reader: Reader) -> list[str]:
    """Ids of the external networks."""
    return [id for (id,) in reader.rows(_EXTERNAL)]


def dhcp(tx: Tx, network_id: str) -> None:
    """What DHCP hands out on the network changed: the hosts that serve it."""
    for (host,) in tx.rows(_DHCP_HOSTS, {"network": network_id}):
        tx.ask("network", network_id, host, soon=True)


def port(tx: Tx, row: Row, host: str | None = None) -> None:
    """The port's wiring changed: its host, and the router it belongs to."""
    where = row["bound_host"] if host is None else host
    if row["device_owner"] in ROUTER_OWNERS:
        router(tx, row["device_id"])
    elif row["device_owner"] == DHCP:
        dhcp(tx, row["network_id"])
    elif where and is_guest(row):
        tx.ask("port", row["id"], where)


def moved(tx: Tx, row: Row, old: str, new: str) -> None:
    """The port left one host and came to another: both, and everybody on its network when its set of hosts changed."""
    if old == new:
        return
    others = {host for (host,) in tx.rows(_HOSTS, {"network": row["network_id"]})}
    if is_guest(row):
        for host in {old, new} - {""}:
            tx.ask("port", row["id"], host)
    count = dict(tx.rows(_PER_HOST, {"network": row["network_id"]}))
    appeared = bool(new) and count.get(new, 0) <= 1
    vanished = bool(old) and count.get(old, 0) == 0
    if appeared or vanished:
        if row["network_id"] in external_networks(tx):
            others |= network_hosts(tx, row["network_id"], external=True)
        for host in (others | {old, new}) - {""}:
            tx.ask("network", row["network_id"], host)
    else:
        l2pop.ask(tx, row["network_id"])


_PER_HOST = (
    sa.select(_P.bound_host, sa.func.count())
    .where(_P.network_id == sa.bindparam("network"), _P.bound_host != "")
    .group_by(_P.bound_host)
)


def router(tx: Tx, router_id: str) -> None:
    """The router's interfaces, gateway, routes, NAT or state changed: its host; none yet means choose one."""
    host = tx.scalar(_ROUTER_HOST, {"id": router_id})
    several = tx.rows(_HA_HOSTS, {"router": router_id})
    if several:
        for (one,) in several:
            tx.ask("router", router_id, one)
    elif host:
        tx.ask("router", router_id, host)
    else:
        tx.ask("router_place", router_id)


def routers_of(tx: Tx, network_id: str) -> None:
    """Something about the network's subnets that routers use changed (gateway, MTU)."""
    for (id,) in tx.rows(_ROUTERS, {"network": network_id}):
        router(tx, id)


def guests_of(tx: Tx, network_id: str) -> None:
    """Something about the network that each port's wiring depends on changed (MTU, admin state)."""
    for id, host in tx.rows(_GUEST_PORTS, {"network": network_id}):
        tx.ask("port", id, host)


def groups(tx: Tx, group_ids: Iterable[str]) -> None:
    """Members or rules of these groups changed; a controller passes it on to the ports concerned."""
    for id in group_ids:
        tx.ask("security_group", id)


def members(tx: Tx, set_ids: Iterable[str]) -> None:
    """The addresses of these security groups or address groups changed; a controller tells the hosts that need them."""
    for id in set_ids:
        tx.ask("security_group", id, soon=True)


def concerned(reader: Reader, group_id: str) -> list[tuple[str, str]]:
    """(port, host) of the bound ports in the group and in groups whose rules let this group's members through."""
    return [(id, host) for id, host in reader.rows(_CONCERNED, {"group": group_id})]
