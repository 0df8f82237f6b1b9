"""Distributed routers in the Networking API: alias ``dvr``, their kind, their conversion, their central part.

Source: Networking API reference, ``distributed`` of routers. Interfaces of a distributed router are bound to no host:
every host of their networks has them (dvr_hosts.py). What has to be in one place (translation to the gateway's
address, port forwardings, floating IPs of ports whose host does not reach the external network) is the central part, on
``router.host``, with a port of its own on each of the router's networks.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import sqlalchemy as sa
from msgspec.structs import replace

from nubila.core.call import Call
from nubila.core.cloud import Cloud
from nubila.core.db import Reader, Tx
from nubila.core.faults import bad_request
from nubila.core.policy import Rule
from nubila.core.ports import FloatingSpec, RouterPort, RouterSpec
from nubila.services.network import addresses, asks, bridged, dvr_hosts, look, place_router, ports
from nubila.services.network.asks import CENTRAL, GATEWAY, INTERFACE
from nubila.services.network.dvr_hosts import DVR_INTERFACE
from nubila.services.network.feature import Feature
from nubila.services.network.kinds import FloatingIP
from nubila.services.network.kinds_port import Port

Row = dict[str, Any]
_P, _F = Port.table.c, FloatingIP.table.c
_OF = (
    sa.select(Port.table)
    .where(_P.device_id == sa.bindparam("router"), _P.device_owner == sa.bindparam("owner"))
    .order_by(_P.created_at, _P.id)
)
_INNER = Port.table.alias("inner_port")
_JOINED = sa.exists().where(
    _INNER.c.device_id == _F.router_id, _INNER.c.device_owner == DVR_INTERFACE, _INNER.c.network_id == _P.network_id
)
# A port behind a further router (floating-ip-router-writable) is reached by the central part.
_WHERE = (
    sa.select(_F.id, sa.case((_JOINED, _P.bound_host), else_=""), _F.floating_network_id)
    .join(Port.table, _P.id == _F.port_id)
    .where(_F.router_id == sa.bindparam("router"))
)
_OWNER = (
    sa.update(Port.table)
    .where(_P.device_id == sa.bindparam("b_router"), _P.device_owner == sa.bindparam("b_from"))
    .values(device_owner=sa.bindparam("b_to"))
)
_STATUS = (
    sa.update(Port.table)
    .where(_P.device_id == sa.bindparam("b_router"), _P.device_owner == DVR_INTERFACE, _P.status != sa.bindparam("b_s"))
    .values(status=sa.bindparam("b_s"))
)


# --- the API --------------------------------------------------------------------------------------------------------


def prepare(call: Call, values: Row) -> None:
    """A new router is centralized unless it is asked for otherwise."""
    values["distributed"] = bool(values.get("distributed"))
    _not_both(values)


def _not_both(row: Row) -> None:
    if row["distributed"] and row["ha"]:
        text = "Bad router request: A router is either distributed or highly available: give one of them as false."
        raise bad_request(text, "BadRequest")


def prepare_update(call: Call, before: Row, values: Row) -> None:
    """400 unless the router is switched off when its kind changes."""
    if "distributed" in values:
        if values["distributed"] is None:
            values["distributed"] = before["distributed"]
        if bool(values["distributed"]) != bool(before["distributed"]) and before["admin_state_up"]:
            text = "Bad router request: switch the router off before distributed changes (admin_state_up)."
            raise bad_request(text, "BadRequest")
        if values["distributed"] and not before["distributed"]:
            bridged.refuse_distributed(call.tx, [p["network_id"] for p in _of(call.tx, before["id"], INTERFACE)])
    _not_both({**before, **values})


def updated(call: Call, before: Row, after: Row) -> None:
    """Make the router's ports those of its new kind."""
    if bool(before["distributed"]) == bool(after["distributed"]):
        return
    from nubila.services.network import placing  # it keeps distributed routers with this module

    tx, id = call.tx, after["id"]
    if after["distributed"]:
        for port in _of(tx, id, INTERFACE):
            if port["bound_host"]:
                ports.bind(tx, port, "")
        tx.execute(_OWNER, {"b_router": id, "b_from": INTERFACE, "b_to": DVR_INTERFACE})
    else:
        dvr_hosts.forget(tx, id)
        for port in _of(tx, id, CENTRAL):
            ports.delete(tx, port)
        tx.execute(_OWNER, {"b_router": id, "b_from": DVR_INTERFACE, "b_to": INTERFACE})
    if placing.router(call.cloud, tx, id) is None:
        tx.ask("router_place", id)


def deleting(call: Call, row: Row) -> None:
    """Take it from all its hosts."""
    if row["distributed"]:
        for port in _of(call.tx, row["id"], CENTRAL):
            ports.delete(call.tx, port)
        dvr_hosts.forget(call.tx, row["id"])


def _of(reader: Reader, router_id: str, owner: str) -> list[Row]:
    return reader.all(_OF, {"router": router_id, "owner": owner})


# --- the central part -----------------------------------------------------------------------------------------------


def needs_host(reader: Reader, router_id: str) -> bool:
    """Whether something of the router has to be in one place."""
    return bool(_of(reader, router_id, GATEWAY))


def kept(cloud: Cloud, tx: Tx, row: Row, *, tell: bool = True) -> None:
    """Have the ports of the central part, where the router's host is, and the router wherever its networks are."""
    id, host = row["id"], row["host"] or ""
    have = _of(tx, id, CENTRAL)
    if needs_host(tx, id):
        for port in _of(tx, id, DVR_INTERFACE):
            subnets = [ip["subnet_id"] for ip in look.addresses_of(tx, port["id"])]
            mine = next((p for p in have if p["network_id"] == port["network_id"] and
                         [ip["subnet_id"] for ip in look.addresses_of(tx, p["id"])] == subnets), None)  # fmt: skip
            if mine is not None:
                have.remove(mine)
            elif subnets:
                mine = ports.create(
                    cloud, tx, counted="no", project_id="", network_id=port["network_id"], device_id=id,
                    device_owner=CENTRAL, host_id=place_router.first_host(tx, row, port["network_id"]),
                    security_groups=[], port_security_enabled=False,
                    fixed_ips=[{"subnet_id": subnet} for subnet in subnets],
                )  # fmt: skip
            if mine is not None:
                place_router.bind(tx, row, mine, host)
    for port in have:
        ports.delete(tx, port)
    dvr_hosts.spread(tx, id)
    if tell:
        asks.router(tx, id)


def unplaced(tx: Tx, row: Row) -> None:
    """An operator took the central part from its host: it is nowhere."""
    for port in _of(tx, row["id"], CENTRAL):
        if port["bound_host"]:
            ports.bind(tx, port, "")
    dvr_hosts.spread(tx, row["id"])
    asks.router(tx, row["id"])


def network_changed(tx: Tx, router_id: str, network_id: str) -> None:
    """A network was connected to the router or taken from it: all hosts of either look at it."""
    for host in {*dvr_hosts.of(tx, router_id), *asks.network_hosts(tx, network_id)}:
        tx.ask("network", network_id, host)


# --- what hosts are told --------------------------------------------------------------------------------------------


def alias(mac: str, host: str) -> str:
    """What a distributed interface goes by away from a host: the last three octets of its MAC, and who says it."""
    first = "0a" if mac.lower().startswith("0e") else "0e"  # never the shared MAC's own
    mark = hashlib.sha256(host.encode()).digest()
    return f"{first}:{mark[0]:02x}:{mark[1]:02x}:{mac.lower()[9:]}"


def spec(reader: Reader, row: Row, host: str, whole: RouterSpec, inner: Sequence[RouterPort]) -> RouterSpec | None:
    """One host's part of a distributed router; None when it has none.

    ``whole`` is the router as one host would have it, ``inner`` are the ports of its central part.
    """
    if host not in dvr_hosts.of(reader, row["id"]):
        return None
    where = {id: (at, net) for id, at, net in reader.rows(_WHERE, {"router": row["id"]})}
    here, central = [], []
    for one in whole.floating_ips:
        at, net = where.get(one.id, ("", ""))
        if one.port_id == "" and whole.gateway is not None and at and dvr_hosts.reachable(reader, net, at):
            if at == host:
                here.append(one)
        else:
            central.append(one)
    is_central = row["host"] == host and whole.gateway is not None
    firsts = {":" in ip.ip_address: ip.ip_address for port in reversed(inner) for ip in port.fixed_ips}
    return replace(
        whole,
        interfaces=tuple(replace(p, alias_mac=alias(p.mac, host)) for p in whole.interfaces),
        gateway=_door(reader, whole, host) if here else None,
        gateway_ips=whole.gateway_ips if here else (),
        more_gateways=(),
        floating_ips=tuple(here),
        forwardings=(),
        ndp_proxy=False,
        proxies=(),
        gateway_qos=None,
        routes=tuple(r for r in whole.routes if not _outer(whole, r[1])),
        way_out=tuple(firsts[six] for six in sorted(firsts)),
        central=_central(whole, inner, central) if is_central else None,
    )


def _central(whole: RouterSpec, inner: Sequence[RouterPort], floats: Sequence[FloatingSpec]) -> RouterSpec:
    return replace(whole, interfaces=tuple(inner), floating_ips=tuple(floats), subnets=())


def _door(reader: Reader, whole: RouterSpec, host: str) -> RouterPort:
    """Where floating addresses live on a host: a port of that host's own on the external network, without address."""
    assert whole.gateway is not None
    digest = hashlib.sha256(f"{whole.gateway.port_id}/{host}".encode()).hexdigest()
    return RouterPort(
        port_id=f"{digest[:8]}-{digest[8:12]}-{digest[12:16]}-{digest[16:20]}-{digest[20:32]}",
        network_id=whole.gateway.network_id,
        mac=alias(whole.gateway.mac, host),
        fixed_ips=(),
        mtu=whole.gateway.mtu,
        near=tuple(s["cidr"] for s in look.subnets(reader, whole.gateway.network_id) if s["ip_version"] == 4),
    )


def _outer(whole: RouterSpec, hop: str) -> bool:
    """Whether a next hop is on the gateway's side."""
    near = [f"{ip.ip_address}/{ip.prefixlen}" for p in whole.interfaces for ip in p.fixed_ips]
    return not any(addresses.contains(str(addresses.network(cidr)), hop) for cidr in near)


def observed(tx: Tx, row: Row, status: str) -> None:
    """A host reported: interfaces are up when a host has them, whichever."""
    if status in ("ACTIVE", "DOWN"):
        up = status == "ACTIVE" and row["admin_state_up"]
        tx.execute(_STATUS, {"b_router": row["id"], "b_s": "ACTIVE" if up else "DOWN"})


def floating_here(reader: Reader, router_id: str, host: str, is_central: bool) -> set[str]:
    """Ids of the floating IPs that a host's part of the router leads inside."""
    found = set()
    for id, at, net in reader.rows(_WHERE, {"router": router_id}):
        local = bool(at) and dvr_hosts.reachable(reader, net, at)
        if (local and at == host) or (not local and is_central):
            found.add(id)
    return found


FEATURE = Feature(
    rules=[
        Rule(f"{verb}_router:distributed", "rule:admin_only", f"{verb.capitalize()} distributed of a router.",
             scopes=("project",))
        for verb in ("create", "get", "update")
    ],
    invariants=(lambda cloud, reader: dvr_hosts.unsound(reader),),
    extensions={
        "dvr": ("Distributed Virtual Router", "Routers on the hosts of their guests.", "2014-06-01"),
        "router-admin-state-down-before-update": (
            "Enforce Router's Admin State Down Before Update Extension",
            "Routers are switched off before they become distributed or centralized.", "2019-07-02",
        ),
    },
)  # fmt: skip
