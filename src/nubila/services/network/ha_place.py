"""On which hosts a highly available router is, and the hidden network between them.

The rows are made to be what the router needs now; may be called at any time. ``router.host``, which everything else
that is bound to a router's place reads, is the host that holds its lease.
"""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa

from nubila.core import hosts
from nubila.core.cloud import Cloud
from nubila.core.db import Reader, Store, Tx
from nubila.core.faults import Fault, bad_request, conflict
from nubila.core.ports import FixedIp, HaPeer, HaSpec, RouterPort
from nubila.core.work import Item
from nubila.services.network import (
    addresses,
    agents,
    allocate,
    asks,
    ha_lease,
    look,
    network_segments,
    networks,
    place,
    place_router,
    ports,
    subnets,
)
from nubila.services.network.asks import ROUTER_OWNERS
from nubila.services.network.ha_tables import HA_AWAY, HA_HOST, HA_NETWORK, HA_ROUTER
from nubila.services.network.kinds import Network, Router
from nubila.services.network.kinds_port import Port
from nubila.services.network.tables import IP_ALLOCATION

Row = dict[str, Any]
OWNER = "network:router_ha_interface"
RETRY_S, SLOW_S = 5.0, 30.0
VRIDS = range(1, 255)  # 255 is a VRRP id as well, but its address 169.254.0.255/24 would be a broadcast address
_H, _R, _N, _P, _A = HA_HOST.c, HA_ROUTER.c, HA_NETWORK.c, Port.table.c, IP_ALLOCATION.c
_HOSTS = sa.select(HA_HOST).where(_H.router_id == sa.bindparam("router")).order_by(_H.host)
_ROUTER = sa.select(HA_ROUTER).where(_R.router_id == sa.bindparam("router"))
_NETWORK = sa.select(_N.network_id).where(_N.project_id == sa.bindparam("project"))
_USED = sa.select(_R.vrid).where(_R.network_id == sa.bindparam("network"))
_TAKEN = sa.select(_A.ip_address).where(_A.network_id == sa.bindparam("network"))
_LOAD = sa.select(_H.host, sa.func.count()).group_by(_H.host)
_COUNTS = sa.select(_R.router_id, sa.func.count(_H.host)).outerjoin(HA_HOST, _H.router_id == _R.router_id).group_by(
    _R.router_id
)  # fmt: skip
_HERE = sa.select(_H.router_id).where(_H.host == sa.bindparam("host")).order_by(_H.router_id)
_AWAY = sa.select(HA_AWAY.c.host).where(HA_AWAY.c.router_id == sa.bindparam("router"))
_BACK = sa.delete(HA_AWAY).where(
    HA_AWAY.c.router_id == sa.bindparam("b_router"), HA_AWAY.c.host == sa.bindparam("b_host")
)
_ALL_BACK = sa.delete(HA_AWAY).where(HA_AWAY.c.router_id == sa.bindparam("b_router"))
_ALL = sa.select(_R.router_id).order_by(_R.router_id)
_PORTS = sa.select(Port.table).where(_P.device_id == sa.bindparam("router"), _P.device_owner.in_(ROUTER_OWNERS))
_HA_PORTS = (
    sa.select(_H.host, _H.port_id, _A.ip_address, _P.mac_address)
    .join(Port.table, _P.id == _H.port_id)
    .join(IP_ALLOCATION, _A.port_id == _P.id)
    .where(_H.router_id == sa.bindparam("router"))
    .order_by(_H.host)
)
_DROP_HOST = sa.delete(HA_HOST).where(_H.router_id == sa.bindparam("b_router"), _H.host == sa.bindparam("b_host"))
_LEAVE = (
    sa.update(HA_HOST)
    .where(_H.router_id == sa.bindparam("b_router"), _H.host == sa.bindparam("b_host"))
    .values(leaving=sa.bindparam("b_leaving"))
)
_DROP_ROUTER = sa.delete(HA_ROUTER).where(_R.router_id == sa.bindparam("b_router"))
_DROP_NETWORK = sa.delete(HA_NETWORK).where(_N.network_id == sa.bindparam("b_network"))
_DELETE_NETWORK = sa.delete(Network.table).where(Network.table.c.id == sa.bindparam("b_id"))
_NETWORKS_HERE = (
    sa.select(_P.network_id)
    .join(HA_HOST, _H.router_id == _P.device_id)
    .where(_H.host == sa.bindparam("host"), _P.device_owner.in_(ROUTER_OWNERS))
    .distinct()
)
_HOSTS_OF_NETWORK = (
    sa.select(_H.host)
    .join(Port.table, _P.device_id == _H.router_id)
    .where(_P.network_id == sa.bindparam("network"), _P.device_owner.in_(ROUTER_OWNERS))
    .distinct()
)


# --- reading ----------------------------------------------------------------------------------------------------------


def on(reader: Reader, router_id: str) -> list[Row]:
    """The hosts of a router, by name, with those that are leaving it."""
    return reader.all(_HOSTS, {"router": router_id})


def staying(reader: Reader, router_id: str) -> list[str]:
    """The hosts of a router that nobody is taking it from."""
    return [h["host"] for h in on(reader, router_id) if not h["leaving"]]


def routers_on(reader: Reader, host: str) -> list[str]:
    """The highly available routers of a host."""
    return [id for (id,) in reader.rows(_HERE, {"host": host})]


def every(cloud: Cloud, reader: Reader) -> list[str]:
    """All highly available routers."""
    return [id for (id,) in reader.rows(_ALL)]


def wanting(cloud: Cloud, reader: Reader) -> list[str]:
    """Highly available routers that would like more hosts than they have."""
    most = cloud.settings.max_l3_agents_per_router
    return [id for id, n in reader.rows(_COUNTS) if not most or n < most]


def networks_on(reader: Reader, host: str) -> set[str]:
    """Networks that a host needs for routers it is ready to take over."""
    return {id for (id,) in reader.rows(_NETWORKS_HERE, {"host": host})}


def hosts_of_network(reader: Reader, network_id: str) -> set[str]:
    """The hosts of all highly available routers that are connected to a network."""
    return {host for (host,) in reader.rows(_HOSTS_OF_NETWORK, {"network": network_id})}


def spec(cloud: Cloud, reader: Reader, router_id: str, host: str) -> HaSpec | None:
    """One host's part in a router; None when it has none."""
    row = reader.one(_ROUTER, {"router": router_id})
    if row is None:
        return None
    net = look.need(reader, Network, row["network_id"])
    subnet = look.subnets(reader, net["id"])[0]
    own, peers = None, []
    for name, port_id, ip, mac in reader.rows(_HA_PORTS, {"router": router_id}):
        if name != host:
            peers.append(HaPeer(host=name, address=ip))
            continue
        length = addresses.network(subnet["cidr"]).prefixlen
        fixed_ip = FixedIp(subnet_id=subnet["id"], ip_address=ip, prefixlen=length)
        own = RouterPort(port_id=port_id, network_id=net["id"], mac=mac, fixed_ips=(fixed_ip,), mtu=net["mtu"])
    if own is None:
        return None
    return HaSpec(
        vrid=row["vrid"], port=own, vip=f"169.254.0.{row['vrid']}/24", peers=tuple(peers),
        advert_s=cloud.settings.ha_vrrp_advert_s,
    )  # fmt: skip


# --- the hidden network -----------------------------------------------------------------------------------------------


def _network(cloud: Cloud, tx: Tx, project: str) -> str:
    """The project's HA network, made when there is none."""
    found = tx.scalar(_NETWORK, {"project": project})
    if found is not None:
        return str(found)
    net = networks.insert(cloud, tx, {"name": f"HA network tenant {project}", "port_security_enabled": False})
    cidr = cloud.settings.l3_ha_net_cidr
    name = f"HA subnet tenant {project}"
    subnets.insert(cloud, tx, net, {"name": name, "cidr": cidr, "gateway_ip": None, "enable_dhcp": False})
    tx.insert(HA_NETWORK, {"project_id": project, "network_id": net["id"]})
    return str(net["id"])


def _forget_network(tx: Tx, network_id: str) -> None:
    """Remove a project's HA network with its last router."""
    if tx.rows(_USED, {"network": network_id}):
        return
    tx.execute(_DROP_NETWORK, {"b_network": network_id})
    where = asks.network_hosts(tx, network_id)
    for subnet in look.subnets(tx, network_id):
        subnets.remove(tx, subnet)
    network_segments.drop_all(tx, network_id)
    tx.execute(_DELETE_NETWORK, {"b_id": network_id})
    for host in where:
        tx.ask("network", network_id, host)


# --- making and unmaking ----------------------------------------------------------------------------------------------


def made(cloud: Cloud, tx: Tx, row: Row) -> None:
    """A router became highly available; 409 when too few hosts or no VRRP id are there."""
    project = row["project_id"] or ""
    network = _network(cloud, tx, project)
    look.lock(tx, Network, network)
    used = {vrid for (vrid,) in tx.rows(_USED, {"network": network})}
    vrid = next((i for i in VRIDS if i not in used), None)
    if vrid is None:
        text = f"No VRID could be allocated on HA network {network}: a project has at most {len(VRIDS)} HA routers."
        raise conflict(text, "NoVRIDAvailable")
    tx.insert(HA_ROUTER, ha_lease.blank(row["id"], network, vrid))
    fit = _enough(cloud, tx, row)
    if row["host"]:  # it was on one host until now
        if any(h["name"] == row["host"] for h in fit):
            add(cloud, tx, row, row["host"])
        else:
            tx.ask("router", row["id"], row["host"])
    keep(cloud, tx, row)
    ha_lease.lead(tx, row["id"], staying(tx, row["id"]))


def _enough(cloud: Cloud, tx: Tx, row: Row) -> list[Row]:
    """The hosts that can carry the router; 409 when they are fewer than one needs to be highly available."""
    n, usable = cloud.settings.min_l3_agents_per_router, _usable(tx)
    fit = place_router.able(tx, row, usable, least=n)
    if len(fit) < n:
        why = "start another network host, enable an L3 agent, or lower min_l3_agents_per_router"
        if len(usable) >= n:
            why = place_router.reason(tx, row, usable)
        text = f"Not enough l3 agents available to ensure HA. Minimum required {n}, available {len(fit)}: {why}."
        raise conflict(text, "HANotEnoughAvailableAgents")
    return fit


def unmade(tx: Tx, row: Row) -> None:
    """A router is deleted, or is not highly available any more."""
    found = tx.one(_ROUTER, {"router": row["id"]})
    if found is None:
        return
    for one in on(tx, row["id"]):
        _drop(tx, row["id"], one)
    tx.execute(_ALL_BACK, {"b_router": row["id"]})
    tx.execute(_DROP_ROUTER, {"b_router": row["id"]})
    _forget_network(tx, found["network_id"])


def _usable(reader: Reader) -> list[Row]:
    off = agents.switched_off(reader)
    return [h for h in hosts.usable(reader, "network") if agents.agent_id(h["name"], agents.L3) not in off]


def add(cloud: Cloud, tx: Tx, row: Row, host: str) -> None:
    """Put the router on one more host."""
    found = tx.one(_ROUTER, {"router": row["id"]})
    assert found is not None
    net, project = found["network_id"], row["project_id"] or ""
    subnet = look.subnets(tx, net)[0]
    taken = {ip for (ip,) in tx.rows(_TAKEN, {"network": net})}
    free = next(str(ip) for ip in addresses.network(subnet["cidr"]).hosts() if str(ip) not in taken)
    port = ports.create(
        cloud, tx, counted="no", project_id="", network_id=net, name=f"HA port tenant {project}", device_id=row["id"],
        device_owner=OWNER, host_id=host, port_security_enabled=False, security_groups=[],
        fixed_ips=[{"subnet_id": subnet["id"], "ip_address": free}],
    )  # fmt: skip
    tx.insert(HA_HOST, {
        "router_id": row["id"], "host": host, "port_id": port["id"], "leaving": False, "able": False, "seen": 0.0,
    })  # fmt: skip
    _tell(tx, row["id"])


def take_by_operator(cloud: Cloud, tx: Tx, row: Row, host: str) -> None:
    """An operator takes the router from an L3 agent: it does not come back by itself."""
    tx.execute(_BACK, {"b_router": row["id"], "b_host": host})
    tx.insert(HA_AWAY, {"router_id": row["id"], "host": host})
    take(cloud, tx, row, host)


def take(cloud: Cloud, tx: Tx, row: Row, host: str) -> None:
    """Take the router from a host: at once when it is a standby, else as soon as another host forwards."""
    lease = ha_lease.of(tx, row["id"])
    others = [h for h in staying(tx, row["id"]) if h != host]
    mine = next(h for h in on(tx, row["id"]) if h["host"] == host)
    if lease is None or lease.holder != host or not others:
        _drop(tx, row["id"], mine)
        _tell(tx, row["id"])
        return
    tx.execute(_LEAVE, {"b_router": row["id"], "b_host": host, "b_leaving": True})
    tx.ask("router_ha", row["id"])


def add_by_operator(cloud: Cloud, tx: Tx, row: Row, agent: Row) -> None:
    """Put the router on an L3 agent's host as well; 409 when it is on as many as it may be, or there already."""
    have = {h["host"]: h for h in on(tx, row["id"])}
    host, most = agent["host"], cloud.settings.max_l3_agents_per_router
    if host in have and not have[host]["leaving"]:
        return
    if not agent["admin_state_up"]:
        raise agents.invalid(agent["id"], agents.L3)
    place_router.refuse_unfit(tx, row, agent["host"])
    if most and len(staying(tx, row["id"])) >= most:
        text = f"The router {row['id']} is on {most} L3 agents already, the most a router may be on."
        raise conflict(text, "RouterHostedByL3Agent")
    tx.execute(_BACK, {"b_router": row["id"], "b_host": host})
    if host in have:
        tx.execute(_LEAVE, {"b_router": row["id"], "b_host": host, "b_leaving": False})
    else:
        add(cloud, tx, row, host)


def _drop(tx: Tx, router_id: str, mine: Row) -> None:
    where = {p["network_id"] for p in tx.all(_PORTS, {"router": router_id})}
    tx.execute(_DROP_HOST, {"b_router": router_id, "b_host": mine["host"]})
    port = look.row(tx, Port, mine["port_id"])
    if port is not None:
        ports.delete(tx, port)
    tx.ask("router", router_id, mine["host"])
    for network_id in where:
        asks.network(tx, network_id, also=[mine["host"]])


def _tell(tx: Tx, router_id: str) -> None:
    """Everybody who has the router looks again, and so do the hosts of its networks: one more or less is there."""
    for one in on(tx, router_id):
        tx.ask("router", router_id, one["host"])
    for network_id in {p["network_id"] for p in tx.all(_PORTS, {"router": router_id})}:
        asks.network(tx, network_id)


def tell(tx: Tx, router_id: str) -> None:
    """Something about the router changed: its hosts look."""
    for one in on(tx, router_id):
        tx.ask("router", router_id, one["host"])


# --- keeping ----------------------------------------------------------------------------------------------------------


def keep(cloud: Cloud, tx: Tx, row: Row, *, tell_all: bool = True) -> str | None:
    """Keep the router on as many hosts as it should be on; its ports are bound to the one that forwards."""
    look.lock(tx, Router, row["id"])
    id = row["id"]
    known = {h["name"]: h for h in hosts.every(tx)}
    have = {h["host"]: h for h in on(tx, id)}
    for name, one in list(have.items()):
        state = known.get(name, {}).get("state", "removed")
        if state == "removed":  # the operator says that it does not run any more
            ha_lease.given_up(tx, id, name)
            _drop(tx, id, have.pop(name))
        elif (state == "draining") != one["leaving"] and state == "draining":
            take(cloud, tx, row, name)
    _spread(cloud, tx, row, known)
    _bind(tx, row)
    if tell_all:
        for network_id in {p["network_id"] for p in tx.all(_PORTS, {"router": id})}:
            asks.network(tx, network_id)
        tell(tx, id)
        if _too_few(cloud, tx, row, staying(tx, id)):
            tx.ask("router_ha", id)  # it says what the hosts lack
    return str(row["host"]) if row["host"] else None


def _spread(cloud: Cloud, tx: Tx, row: Row, known: dict[str, Row]) -> None:
    """Put the router on more hosts that can carry it, and take it from others once one can."""
    id, n = row["id"], cloud.settings.max_l3_agents_per_router or len(known)
    usable = _usable(tx)
    names = {h["name"] for h in usable}
    mine = [known[name] for name in staying(tx, id) if name in known and name not in names]  # silent or switched off
    lease = ha_lease.of(tx, id)
    holder = lease.holder or lease.to if lease is not None else ""
    fit = place_router.able(tx, row, [*usable, *mine], least=cloud.settings.min_l3_agents_per_router)
    fit = place_router.together(tx, row, fit, holder, n)
    good = {h["name"] for h in fit}
    stay = [name for name in staying(tx, id) if name in good]
    if len(stay) < n:
        present = {h["host"] for h in on(tx, id)} | {host for (host,) in tx.rows(_AWAY, {"router": id})}
        free = [h for h in fit if h["name"] in names]
        hints = row["availability_zone_hints"]
        for name in place.choose(free, dict(tx.rows(_LOAD)), n - len(stay), zones=hints, have=present):
            add(cloud, tx, row, name)
            stay.append(name)
    if stay:
        place_router.give_addresses(tx, row, holder if holder in stay else stay[0])
        for name in sorted(set(staying(tx, id)) - set(stay), key=lambda name: name == holder):
            take(cloud, tx, row, name)
    if lease is not None and lease.to and not lease.holder and lease.to not in staying(tx, id):
        ha_lease.lead(tx, id, staying(tx, id))


def _bind(tx: Tx, row: Row) -> None:
    """The router's host, and the binding of its ports, are the holder of its lease."""
    lease = ha_lease.of(tx, row["id"])
    present = [h["host"] for h in on(tx, row["id"])]
    holder = lease.holder if lease is not None and lease.holder in present else ""
    host = holder or (row["host"] if row["host"] in present else "") or (present[0] if present else None)
    if host != row["host"]:
        allocate.set_columns(tx, Router, row["id"], {"host": host})
        row["host"] = host
    for port in tx.all(_PORTS, {"router": row["id"]}):
        if port["bound_host"] != (host or ""):
            after = place_router.bind(tx, row, port, host or "")
            if port["status"] == "ACTIVE" and after["bound_host"]:  # it was wired on all the router's hosts already
                allocate.set_columns(tx, Port, port["id"], {"status": "ACTIVE"})
                after["status"] = "ACTIVE"


def item(cloud: Cloud, store: Store, work: Item) -> None:
    """Reconciler "router_ha": a lease went to another host, or a host is to be left."""
    with store.write(work) as tx:
        row = look.row(tx, Router, work.id)
        lease = ha_lease.of(tx, work.id) if row is not None else None
        if row is None or lease is None:
            tx.drop()
            return
        keep(cloud, tx, row, tell_all=False)
        leaving = [h for h in on(tx, work.id) if h["leaving"]]
        stay = staying(tx, work.id)
        now = ha_lease.now_in(tx)
        for one in leaving:
            if not stay or (one["host"] != lease.holder and now > lease.to_until):  # it may be handing on packets
                _drop(tx, work.id, one)
            elif not lease.to:
                able = [h["host"] for h in on(tx, work.id) if h["able"] and not h["leaving"]]
                if able:
                    ha_lease.move(tx, work.id, able[0])
        if leaving and stay:
            tx.settle(f"moving the router away from {leaving[0]['host']}", again=0.5)
        elif not stay:
            why = place_router.reason(tx, row, _usable(tx))
            tx.settle(f"waiting for network hosts to run the router: {why}", again=RETRY_S)
        elif few := _too_few(cloud, tx, row, stay):
            tx.settle(f"on {', '.join(stay)}, {few}", again=SLOW_S)
        else:
            tx.settle(f"on {', '.join(stay)}; {lease.holder or 'nobody'} forwards")


def _too_few(cloud: Cloud, reader: Reader, row: Row, stay: list[str]) -> str:
    """In words that fewer of the router's hosts can carry it than there should be, and why; "" otherwise."""
    least = max(cloud.settings.min_l3_agents_per_router, 1)
    good = {h["name"] for h in place_router.whole(reader, row, hosts.every(reader))} & set(stay)
    if len(good) >= least:
        return ""
    why = place_router.reason(reader, row, sorted(_usable(reader), key=lambda h: h["name"] not in stay))
    return f"of which {len(good)} can carry it all and {least} should: {why}"


def views(reader: Reader, router_id: str) -> dict[str, str]:
    """host -> ha_state."""
    lease = ha_lease.of(reader, router_id)
    return {host: ("active" if lease and lease.holder == host else "standby") for host in staying(reader, router_id)}


def observed(tx: Tx, row: Row, host: str, status: str) -> None:
    """A host says what became of its part: wired, or nothing is left of it."""
    mine = next((one for one in on(tx, row["id"]) if one["host"] == host), None)
    if mine is None and status == "GONE":
        ha_lease.given_up(tx, row["id"], host)
    if mine is not None and status in ("ACTIVE", "DOWN", "ERROR"):
        wired = status != "ERROR" and row["admin_state_up"]
        allocate.set_columns(tx, Port, mine["port_id"], {"status": "ACTIVE" if wired else "DOWN"})


def refuse_active(row: Row) -> Fault | None:
    """The refusal of a change between one host and several while the router forwards."""
    if not row["admin_state_up"]:
        return None
    text = "ha changes only while the router is off: set admin_state_up to false before."
    return bad_request(f"Bad router request: {text}", "BadRequest")
