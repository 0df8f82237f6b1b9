"""Who has to look again when something changed: the fan-out from a changed row to (kind, id, host) work rows.

Every function is called in the transaction of the change itself and only asks; what is then to be done is computed
from the rows (hosting.py). Asking once too often costs a comparison, once too seldom leaves a host wrong until the next
full compare.

Host kinds: "network", "port", "router", "security_group", "address_set": the id is the resource's UUID, the shard the
host. Controller kinds (shard ""): "security_group" and "group_members" pass a change of a group's rules or members on
to the hosts it concerns, however many, outside the user's request; "dhcp" and "router_place" choose hosts.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import sqlalchemy as sa

from nubila.core import hosts
from nubila.core.db import Reader, Tx
from nubila.services.network import dvr_hosts, l2pop, local_ips
from nubila.services.network.dvr_hosts import DVR_INTERFACE
from nubila.services.network.ha_tables import HA_HOST
from nubila.services.network.kinds import Network, Router
from nubila.services.network.kinds_port import Port, SecurityGroupRule
from nubila.services.network.tables import DHCP_BINDING, IP_ALLOCATION, PORT_GROUP

Row = Mapping[str, Any]
INTERFACE, GATEWAY, DHCP, FLOATING = (
    "network:router_interface", "network:router_gateway", "network:dhcp", "network:floatingip",
)  # fmt: skip
HA_INTERFACE, CENTRAL = "network:ha_router_replicated_interface", "network:router_centralized_snat"
INTERFACES = (INTERFACE, HA_INTERFACE, DVR_INTERFACE)  # what connects a router to a project's network
ROUTER_OWNERS = (*INTERFACES, GATEWAY)

_P = Port.table.c
_HOSTS = l2pop.HOSTS
_AT_HOST = (
    sa.select(_P.id).where(_P.bound_host == sa.bindparam("host"), _P.network_id == sa.bindparam("network")).limit(2)
)
_TOLD = sa.union(
    sa.select(DHCP_BINDING.c.host).where(
        DHCP_BINDING.c.network_id == sa.bindparam("network"), DHCP_BINDING.c.port_id.is_not(None)
    ),
    l2pop.BRIDGED,  # they are told who has which address, too
).subquery()
_HA_HOSTS = sa.select(HA_HOST.c.host).where(HA_HOST.c.router_id == sa.bindparam("router"))
_HA_HOSTS_OF_NETWORK = (
    sa.select(HA_HOST.c.host)
    .join(Port.table, _P.device_id == HA_HOST.c.router_id)
    .where(_P.network_id == sa.bindparam("network"), _P.device_owner.in_(ROUTER_OWNERS))
    .distinct()
)
LARGE, LARGE_PAUSE = 500, 20  # addresses; times the pause of other networks
_LARGE = (
    sa.select(IP_ALLOCATION.c.ip_key)
    .where(IP_ALLOCATION.c.network_id == sa.bindparam("network"))
    .limit(1)
    .offset(LARGE)
    .scalar_subquery()
)
_DHCP_HOSTS = sa.select(_TOLD.c.host, _LARGE.label("large"))
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
_IN_GROUP = sa.and_(PORT_GROUP.c.port_id == _P.id, _P.bound_host != "", _P.device_owner.not_like("network:%"))
_GROUP_HOSTS = (
    sa.select(_P.bound_host).where(_IN_GROUP, PORT_GROUP.c.security_group_id == sa.bindparam("group")).distinct()
)
_SET_HOSTS = (
    sa.select(_P.bound_host)
    .where(
        _IN_GROUP,
        PORT_GROUP.c.security_group_id.in_(
            sa.select(_R.security_group_id).where(
                sa.or_(_R.remote_group_id == sa.bindparam("set"), _R.remote_address_group_id == sa.bindparam("set"))
            )
        ),
    )
    .distinct()
)
_SETS_OF = (
    sa.select(_R.remote_group_id, _R.remote_address_group_id)
    .where(
        _R.security_group_id.in_(sa.bindparam("groups", expanding=True)),
        sa.or_(_R.remote_group_id.is_not(None), _R.remote_address_group_id.is_not(None)),
    )
    .distinct()
)
_GROUPS_OF = sa.select(PORT_GROUP.c.security_group_id).where(PORT_GROUP.c.port_id == sa.bindparam("port"))


def is_guest(port: Row) -> bool:
    """Whether the port is wired on its own (router and DHCP ports are part of their router and network)."""
    return not str(port["device_owner"]).startswith("network:")


def network_hosts(reader: Reader, network_id: str, *, external: bool = False) -> set[str]:
    """The hosts where a network has something to do; an external one lives on every network host."""
    found = {host for (host,) in reader.rows(_HOSTS, {"network": network_id})}
    found |= {host for (host,) in reader.rows(_HA_HOSTS_OF_NETWORK, {"network": network_id})}
    found |= dvr_hosts.of_network(reader, network_id)
    if external:
        found |= {h["name"] for h in hosts.every(reader) if "network" in h["roles"]}
        found |= dvr_hosts.with_gateway(reader, network_id)
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
    """What DHCP hands out on the network changed: the hosts that serve it.

    They are told everything about the network each time, so of a large one they are told less often.
    """
    for host, large in tx.rows(_DHCP_HOSTS, {"network": network_id}):
        tx.ask("network", network_id, host, soon=1 if large is None else LARGE_PAUSE)


def port(tx: Tx, row: Row, host: str | None = None) -> None:
    """The port's wiring changed: its host, and the router it belongs to."""
    where = row["bound_host"] if host is None else host
    if row["device_owner"] in (*ROUTER_OWNERS, CENTRAL):
        router(tx, row["device_id"])
    elif row["device_owner"] == DHCP:
        dhcp(tx, row["network_id"])
    elif where and is_guest(row):
        tx.ask("port", row["id"], where)


def moved(tx: Tx, row: Row, old: str, new: str) -> None:
    """The port left one host and came to another: both, and everybody on its network when its set of hosts changed."""
    if old == new:
        return
    if is_guest(row):
        for host in {old, new} - {""}:
            tx.ask("port", row["id"], host)
            groups_at(tx, row.get("_groups") or [id for (id,) in tx.rows(_GROUPS_OF, {"port": row["id"]})], host)
        local_ips.moved(tx, row, old, new)
    appeared = bool(new) and len(tx.rows(_AT_HOST, {"host": new, "network": row["network_id"]})) <= 1
    vanished = bool(old) and not tx.rows(_AT_HOST, {"host": old, "network": row["network_id"]})
    if appeared or vanished:
        others = {host for (host,) in tx.rows(_HOSTS, {"network": row["network_id"]})}
        if row["network_id"] in external_networks(tx):
            others |= network_hosts(tx, row["network_id"], external=True)
        for host in (others | {old, new}) - {""}:
            tx.ask("network", row["network_id"], host)
        dvr_hosts.touched(tx, row["network_id"])
    else:
        l2pop.ask(tx, row["network_id"])
    if is_guest(row):
        dvr_hosts.port_moved(tx, row["id"])


def router(tx: Tx, router_id: str) -> None:
    """The router's interfaces, gateway, routes, NAT or state changed: its host; none yet means choose one."""
    host = tx.scalar(_ROUTER_HOST, {"id": router_id})
    several = tx.rows(_HA_HOSTS, {"router": router_id})
    spread = dvr_hosts.of(tx, router_id)
    if several:
        for (one,) in several:
            tx.ask("router", router_id, one)
    elif spread:
        dvr_hosts.asked(tx, router_id, spread)
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
    """Rules of these groups changed; a controller tells the hosts of their ports."""
    for id in group_ids:
        tx.ask("security_group", id)


def members(tx: Tx, set_ids: Iterable[str]) -> None:
    """The addresses of these security groups or address groups changed; a controller tells the hosts that need them."""
    for id in set_ids:
        tx.ask("group_members", id, soon=1)


def groups_at(tx: Tx, group_ids: Iterable[str], host: str) -> None:
    """Ports of these groups came to a host, left it or have other rules: it looks at the groups and their sets."""
    ids = sorted(set(group_ids))
    if not ids or not host:
        return
    for id in ids:
        tx.ask("security_group", id, host)
    for id in sets_of(tx, ids):
        tx.ask("address_set", id, host)


def sets_of(reader: Reader, group_ids: Iterable[str]) -> set[str]:
    """The address sets that rules of these groups name."""
    return {one for pair in reader.rows(_SETS_OF, {"groups": sorted(group_ids)}) for one in pair if one}


def group_hosts(reader: Reader, group_id: str) -> list[str]:
    """The hosts with ports in the group."""
    return sorted(host for (host,) in reader.rows(_GROUP_HOSTS, {"group": group_id}))


def set_hosts(reader: Reader, set_id: str) -> list[str]:
    """The hosts with ports in groups whose rules name this group's or address group's addresses."""
    return sorted(host for (host,) in reader.rows(_SET_HOSTS, {"set": set_id}))
