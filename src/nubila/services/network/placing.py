"""Keep DHCP services and routers on hosts: done at once in the user's transaction when a host is there, else later.

Both functions make the rows be what the network or router needs now and may be called at any time; the reconcilers
"dhcp" and "router_place" call them again until they are satisfied. A service leaves a host only when the operator
removes or drains that host: a host that is merely silent may still be forwarding (and nothing must exist twice).
DHCP of a host that has been silent for ``dhcp_standin_after_s`` is served by one more host meanwhile (a stand-in): that
is harmless, since every server reads the same leases from the same rows, and the silent host keeps its port and
address. The stand-in leaves when enough of the others are back. A network that an operator took from an agent is not
given to that agent again until somebody does so, or the agent is switched on.
A router that an operator took from its host (``unschedule``) stays nowhere until it is given to a host, until something
that needs a host is done with it, or until an L3 agent is switched on: what Neutron does.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import Any

import sqlalchemy as sa

from nubila.core import clock, hosts
from nubila.core.cloud import Cloud
from nubila.core.db import Reader, Store, Tx
from nubila.core.faults import Fault
from nubila.core.work import Item
from nubila.services.network import (
    agents,
    allocate,
    asks,
    bridged,
    dvr,
    dvr_hosts,
    fixed,
    l2pop,
    look,
    network_segments,
    place,
    place_router,
    ports,
    qos_offers,
    segment_ranges,
)
from nubila.services.network.asks import DHCP, INTERFACES, ROUTER_OWNERS
from nubila.services.network.ha_tables import HA_HOST
from nubila.services.network.kinds import FloatingIP, Network, Router, Subnet
from nubila.services.network.kinds_port import Port
from nubila.services.network.tables import DHCP_BINDING

Row = dict[str, Any]
RETRY_S = 5.0
SLOW_S = 30.0
NOWHERE = ""  # what ``router`` says of one that needs no single host
TAKEN = ""  # router.host: an operator took it from its host (NULL: it has none yet)
_D, _P = DHCP_BINDING.c, Port.table.c
STANDIN, AWAY = "standin", "taken"  # dhcp_binding.state
_BINDINGS = sa.select(_D.host, _D.port_id, _D.state).where(_D.network_id == sa.bindparam("network")).order_by(_D.host)
_DHCP_LOAD = sa.select(_D.host, sa.func.count()).where(_D.state != AWAY).group_by(_D.host)
_SET_STATE = (
    sa.update(DHCP_BINDING)
    .where(_D.network_id == sa.bindparam("b_network"), _D.host == sa.bindparam("b_host"))
    .values(state=sa.bindparam("b_state"), port_id=None)
)
_AWAY = sa.select(_D.network_id).where(_D.host == sa.bindparam("host"), _D.state == AWAY)
_FORGET_AWAY = sa.delete(DHCP_BINDING).where(_D.host == sa.bindparam("b_host"), _D.state == AWAY)
_R = Router.table.c
_ROUTER_LOAD = sa.select(_R.host, sa.func.count()).where(_R.host > TAKEN).group_by(_R.host)
_SET_PORT = (
    sa.update(DHCP_BINDING)
    .where(_D.network_id == sa.bindparam("b_network"), _D.host == sa.bindparam("b_host"))
    .values(port_id=sa.bindparam("b_port"))
)
_UNBIND = sa.delete(DHCP_BINDING).where(_D.network_id == sa.bindparam("b_network"), _D.host == sa.bindparam("b_host"))
_ROUTER_PORTS = sa.select(Port.table).where(
    _P.device_id == sa.bindparam("router"), _P.device_owner.in_(ROUTER_OWNERS)
)  # fmt: skip
_NEED_DHCP = sa.select(Subnet.table.c.network_id).where(Subnet.table.c.enable_dhcp.is_(True)).distinct()
_NEED_HOST = sa.select(_P.device_id).where(_P.device_owner.in_(ROUTER_OWNERS)).distinct()
_BOUND_TO = sa.select(_D.network_id).where(_D.host == sa.bindparam("host"), _D.state != AWAY)
_ROUTED_BY = sa.select(_R.id).where(_R.host == sa.bindparam("host"))
_F = FloatingIP.table.c
_FLOATING_DOWN = (
    sa.update(FloatingIP.table)
    .where(_F.router_id == sa.bindparam("b_router"), _F.status != "DOWN")
    .values(status="DOWN")
)
_TAKEN = sa.select(_R.id).where(_R.host == TAKEN)
_HA_HERE = sa.select(HA_HOST.c.router_id).where(HA_HOST.c.host == sa.bindparam("host"))
STAYING = ("enabled", "disabled")


def usable(reader: Reader, binary: str) -> list[Row]:
    """Network hosts where new services of that agent may be placed."""
    off = agents.switched_off(reader)
    return [h for h in hosts.usable(reader, "network") if agents.agent_id(h["name"], binary) not in off]


def served_by(reader: Reader, host: str) -> tuple[list[str], list[str]]:
    """The routers that a host runs and the networks it serves DHCP for."""
    routers = [id for (id,) in reader.rows(_ROUTED_BY, {"host": host})]
    routers += [id for (id,) in reader.rows(_HA_HERE, {"host": host}) if id not in routers]
    return routers, [id for (id,) in reader.rows(_BOUND_TO, {"host": host})]


def on_host(cloud: Cloud, tx: Tx, host: Row) -> None:
    """A host said hello, or an operator changed its state.

    External networks live on every network host; what a drained or removed host serves moves to others.
    """
    l2pop.on_host(tx, host)
    qos_offers.offer(cloud, tx, host)
    if l2pop.switch(host) == l2pop.LINUX_BRIDGE:
        for id in dvr_hosts.on(tx, host["name"]):  # it had another switch before
            dvr_hosts.spread(tx, id)
    segment_ranges.show_settings(tx, cloud.settings)
    if "network" in host["roles"] and host["state"] != "removed":
        for id in asks.external_networks(tx):
            tx.ask("network", id, host["name"])
    if host["state"] not in STAYING:
        routers, networks = served_by(tx, host["name"])
        for id in networks:
            tx.ask("dhcp", id)
        for id in routers:
            tx.ask("router_place", id)
        for (id,) in tx.rows(_HA_HERE, {"host": host["name"]}):
            tx.ask("router_ha", id)
    elif "network" in host["roles"]:
        from nubila.services.network import ha_place

        for id in ha_place.wanting(cloud, tx):
            tx.ask("router_ha", id)


def _draining(reader: Reader) -> set[str]:
    """Hosts that go on with what they have until another takes it over."""
    return {h["name"] for h in hosts.every(reader) if h["state"] == "draining" and "network" in h["roles"]}


def _staying(reader: Reader) -> set[str]:
    return {h["name"] for h in hosts.every(reader) if h["state"] in STAYING and "network" in h["roles"]}


# --- DHCP -----------------------------------------------------------------------------------------------------------


def bindings(reader: Reader, network_id: str) -> dict[str, str | None]:
    """host -> DHCP port of a network."""
    return {host: port for host, port, state in reader.rows(_BINDINGS, {"network": network_id}) if state != AWAY}


def dhcp(cloud: Cloud, tx: Tx, network_id: str, *, wanted: int | None = None) -> bool:
    """Bring the network's DHCP services to what its subnets need; False when no host is there.

    ``wanted``: how many hosts shall serve it, at least; ``dhcp_agents_per_network`` when not given.
    """
    look.lock(tx, Network, network_id)
    net = look.row(tx, Network, network_id)
    if net is None:
        return True
    served = [s for s in look.subnets(tx, network_id) if s["enable_dhcp"]]
    rows = {host: (port, state) for host, port, state in tx.rows(_BINDINGS, {"network": network_id})}
    have = {host: port for host, (port, state) in rows.items() if state != AWAY}
    staying = _staying(tx) if rows else set()
    gone = {h: have.pop(h) for h in list(have) if h not in staying}
    found: list[str] = []
    n = cloud.settings.dhcp_agents_per_network if wanted is None else wanted
    silent = _silent(cloud, tx, have) if have else set()
    parts = network_segments.dhcp_parts(tx, net, served)
    _unbind_strays(tx, network_id, have, parts)
    standing: set[str] = set()
    for part in parts:
        mine = {h for h in have if part is None or h in part}
        heard = len(mine - silent)
        more = _more(tx, net, part, n - heard, rows) if served else []
        found += more
        standing |= set(more[max(0, n - len(mine)) :])
        standins = sorted(h for h in mine if rows[h][1] == STANDIN)
        for host in standins[: max(0, heard - n)]:
            unbind(tx, network_id, host, have.pop(host))
    for host in [h for h, (_, state) in rows.items() if state == AWAY and h not in staying]:
        tx.execute(_UNBIND, {"b_network": network_id, "b_host": host})
    if served and gone and not have and not found:
        have = {h: port for h, port in gone.items() if h in _draining(tx)}  # better from there than from nowhere
    for host in gone.keys() - have.keys():
        unbind(tx, network_id, host, gone[host])
    if not served:
        for port_id in filter(None, have.values()):
            _drop_port(tx, port_id)
        return True
    for host in found:
        bind(cloud, tx, net, host, STANDIN if host in standing else "")
        have[host] = None
    for host, port_id in have.items():
        _serve(cloud, tx, net, network_segments.dhcp_at(tx, net, served, host), host, port_id)
    return all(part is None or part & set(have) for part in parts) and bool(have)


def _unbind_strays(tx: Tx, network_id: str, have: dict[str, str | None], parts: list[set[str] | None]) -> None:
    """Hosts from which there is no way to the network any more serve it no longer."""
    for host in [h for h in have if not any(part is None or h in part for part in parts)]:
        unbind(tx, network_id, host, have.pop(host))


def _more(tx: Tx, net: Row, part: set[str] | None, n: int, rows: Iterable[str]) -> list[str]:
    """Up to ``n`` further hosts for a network's DHCP, of those in ``part``."""
    if n <= 0:
        return []
    fit = bridged.able(tx, usable(tx, agents.DHCP), [net["id"]])
    free = [h for h in fit if part is None or h["name"] in part]
    if not net["several"]:  # where nobody has its physical network, the hosts themselves say so
        free = [h for h in free if dvr_hosts.reaches(h, net)] or free
    return place.choose(free, dict(tx.rows(_DHCP_LOAD)), n, zones=net["availability_zone_hints"], have=rows)


def _silent(cloud: Cloud, reader: Reader, bound: Iterable[str]) -> set[str]:
    """Which of these hosts have not been heard of for so long that somebody should stand in."""
    oldest = time.time() - cloud.settings.dhcp_standin_after_s
    return {h["name"] for h in hosts.every(reader) if h["name"] in bound and h["seen"] < oldest}


def bind(cloud: Cloud, tx: Tx, net: Row, host: str, state: str = "") -> None:
    """Note that the host serves DHCP for the network; ``dhcp`` gives it a port."""
    tx.execute(_UNBIND, {"b_network": net["id"], "b_host": host})  # it may have been taken from there
    tx.insert(DHCP_BINDING, {"network_id": net["id"], "host": host, "port_id": None, "state": state})


def take_away(tx: Tx, network_id: str, host: str, port_id: str | None) -> None:
    """An operator took the network from a DHCP agent: that agent does not get it again by itself."""
    unbind(tx, network_id, host, port_id)
    tx.insert(DHCP_BINDING, {"network_id": network_id, "host": host, "port_id": None, "state": AWAY})


def dhcp_agent_is_on(tx: Tx, host: str) -> None:
    """A DHCP agent was switched on: networks that were taken from it may come back."""
    away = [id for (id,) in tx.rows(_AWAY, {"host": host})]
    tx.execute(_FORGET_AWAY, {"b_host": host})
    for id in away:
        tx.ask("dhcp", id)


def give_up(cloud: Cloud, tx: Tx, host: str, binary: str) -> None:
    """An operator deleted an agent of a host that is gone: what it served is placed elsewhere."""
    routers, networks = served_by(tx, host)
    if binary == agents.DHCP:
        for id in networks:
            unbind(tx, id, host, bindings(tx, id)[host])
            tx.ask("dhcp", id)
        tx.execute(_FORGET_AWAY, {"b_host": host})
    elif binary == agents.L3:
        for id in routers:
            move_router(tx, look.need(tx, Router, id), None)
            tx.ask("router_place", id)


def unbind(tx: Tx, network_id: str, host: str, port_id: str | None) -> None:
    """Take DHCP for the network away from a host."""
    tx.execute(_UNBIND, {"b_network": network_id, "b_host": host})
    if port_id is not None:
        _drop_port(tx, port_id)
    tx.ask("network", network_id, host)


def _drop_port(tx: Tx, port_id: str) -> None:
    row = look.row(tx, Port, port_id)
    if row is not None:
        ports.delete(tx, row)


def _serve(cloud: Cloud, tx: Tx, net: Row, served: list[Row], host: str, port_id: str | None) -> None:
    """The DHCP port of one host: one address in every served subnet that has room."""
    port = look.row(tx, Port, port_id) if port_id else None
    ips = look.addresses_of(tx, port["id"]) if port else []
    have = {ip["subnet_id"] for ip in ips}
    missing = [s for s in served if s["id"] not in have]
    extra = [ip for ip in ips if ip["subnet_id"] not in {s["id"] for s in served}]
    if port is not None and not missing and not extra:
        return
    if port is None:
        try:
            row = ports.create(
                cloud, tx, counted="count", project_id=net["project_id"], network_id=net["id"], name="",
                device_id=f"dhcp{clock.new_id()[:8]}-{net['id']}", device_owner=DHCP, host_id=host,
                port_security_enabled=False, fixed_ips=[], security_groups=[],
            )  # fmt: skip
        except Fault:
            return
        tx.execute(_SET_PORT, {"b_network": net["id"], "b_host": host, "b_port": row["id"]})
        port = row
    for ip in extra:
        allocate.release_one(tx, port["id"], ip["subnet_id"], ip["ip_address"])
    for place_, subnet in enumerate(missing, len(ips)):
        wish = fixed.wishes(tx, port, [{"subnet_id": subnet["id"]}])[:1]
        try:
            fixed.claim(tx, port, wish, place_)
        except Fault:
            continue  # no address left: the subnet's pools are the user's business; the other subnets are served
    tx.ask("network", net["id"], host)
    if any(subnet["ipv6_ra_mode"] for subnet in served):
        asks.routers_of(tx, net["id"])  # they tell guests where the name servers are


def dhcp_item(cloud: Cloud, store: Store, item: Item) -> None:
    """Reconciler "dhcp": a network that needs DHCP and may not have it."""
    with store.write(item) as tx:
        if look.row(tx, Network, item.id) is None:
            tx.drop()
        elif dhcp(cloud, tx, item.id):
            short = cloud.settings.dhcp_agents_per_network - len(bindings(tx, item.id))
            tx.settle("DHCP is placed" + (f"; {short} more hosts would serve it if they were there" * (short > 0)))
        elif any(state == AWAY for *_, state in tx.rows(_BINDINGS, {"network": item.id})):
            text = "an operator took the network from its DHCP agent: give it to one (openstack network agent add"
            tx.settle(f"{text} network --dhcp)", again=SLOW_S)
        else:
            tx.settle(f"waiting for a network host to serve DHCP: {_unserved(tx, item.id)}", again=RETRY_S)


def _unserved(reader: Reader, network_id: str) -> str:
    """What network hosts lack to serve those of the network's subnets that nobody serves."""
    net = look.need(reader, Network, network_id)
    have, parts = set(bindings(reader, network_id)), {s["segment_id"] for s in look.subnets(reader, network_id)}
    at = network_segments.by_host(reader, network_id, hosts.every(reader)) if net["several"] else {}
    missing = parts - {at[name]["id"] for name in have if name in at} - ({None} if have else set())
    wanted = [place_router.Need(net, segment or "") for segment in sorted(missing, key=str)]
    return place_router.shortage(reader, {"distributed": False}, usable(reader, agents.DHCP), wanted, "DHCP")


def networks_with_dhcp(cloud: Cloud, reader: Reader) -> list[str]:
    """Every network that needs DHCP."""
    return [id for (id,) in reader.rows(_NEED_DHCP)]


# --- routers --------------------------------------------------------------------------------------------------------


def router(cloud: Cloud, tx: Tx, router_id: str, *, tell: bool = True) -> str | None:
    """Keep the router on a host and its ports bound there; the host, None when none can be had.

    A user's change that needs a host comes here also for a router that an operator took from its host.
    ``tell``: something about the router changed, its host must look even when it keeps it.
    """
    look.lock(tx, Router, router_id)
    row = look.row(tx, Router, router_id)
    if row is None:
        return None
    if row["ha"]:
        from nubila.services.network import ha_place  # it makes networks, which are placed here

        return ha_place.keep(cloud, tx, row, tell_all=tell)
    mine = tx.all(_ROUTER_PORTS, {"router": router_id})
    host: str | None = row["host"] or None
    if host is not None and host not in _staying(tx):
        tx.ask("router", router_id, host)
        host = None
    if row["distributed"]:
        needed = dvr.needs_host(tx, router_id)
        mine = [port for port in mine if port["device_owner"] not in INTERFACES]
    else:
        needed = bool(mine)
    rank = place_router.rank(tx, row, host) if host is not None and needed else place_router.WHOLE
    leaves = rank < place_router.WHOLE and place_router.better(tx, row, rank, usable(tx, agents.L3))
    if needed and (host is None or leaves):
        able = place_router.able(tx, row, usable(tx, agents.L3))
        found = place.choose(able, dict(tx.rows(_ROUTER_LOAD)), 1, zones=row["availability_zone_hints"])
        host = found[0] if found else row["host"] if leaves or row["host"] in _draining(tx) else None
        rank = place_router.rank(tx, row, host) if host is not None else rank
    if tell and rank < place_router.WHOLE:
        tx.ask("router_place", router_id)  # it says what the host lacks, and looks for a better one again
    if host != row["host"]:
        move_router(tx, row, host)
    elif host is not None and tell:
        tx.ask("router", router_id, host)
    for port in mine:
        place_router.bind(tx, row, port, host or "")
    if row["distributed"]:
        dvr.kept(cloud, tx, {**row, "host": host}, tell=tell)
        return host or (NOWHERE if not needed else None)
    return host


def move_router(tx: Tx, row: Row, host: str | None) -> None:
    """Note the router's new host; the epoch fences the old one."""
    for place_ in {row["host"], host} - {None, TAKEN}:
        tx.ask("router", row["id"], place_)
    allocate.set_columns(tx, Router, row["id"], {"host": host, "fence": row["fence"] + 1})
    tx.execute(_FLOATING_DOWN, {"b_router": row["id"]})  # until the new host says that they lead somewhere


def unschedule(tx: Tx, row: Row) -> None:
    """An operator took the router from its host: it and its ports are nowhere until somebody places it again."""
    move_router(tx, row, TAKEN)
    for port in tx.all(_ROUTER_PORTS, {"router": row["id"]}):
        if port["bound_host"]:
            ports.bind(tx, port, "")
    if row["distributed"]:
        dvr.unplaced(tx, row)


def schedule_taken(tx: Tx) -> None:
    """An L3 agent was switched on: it takes the routers that operators took from their hosts."""
    for (id,) in tx.rows(_TAKEN):
        allocate.set_columns(tx, Router, id, {"host": None})
        tx.ask("router_place", id)


def router_item(cloud: Cloud, store: Store, item: Item) -> None:
    """Reconciler "router_place": a router that needs a host and may not have one."""
    with store.write(item) as tx:
        row = look.row(tx, Router, item.id)
        if row is None:
            tx.drop()
            return
        if row["host"] == TAKEN:
            tx.settle("an operator took the router from its host: give it to one (openstack network agent add router)")
            return
        host = router(cloud, tx, item.id, tell=False)
        if host is not None:
            text = f"the router is on {host}" if host else "the router is where its networks are"
            found = hosts.get(tx, host) if host and not row["ha"] else None
            lacks = place_router.reason(tx, row, [found]) if found is not None else ""
            tx.settle(f"{text}, which cannot carry it all: {lacks}" if lacks else text, again=SLOW_S if lacks else None)
        elif tx.rows(_ROUTER_PORTS, {"router": item.id}):
            why = place_router.reason(tx, row, usable(tx, agents.L3))
            tx.settle(f"waiting for a network host to run the router: {why}", again=RETRY_S)
        else:
            tx.settle("nothing is connected to the router")


def routers_with_ports(cloud: Cloud, reader: Reader) -> list[str]:
    """Every router that needs a host."""
    return [id for (id,) in reader.rows(_NEED_HOST)]
