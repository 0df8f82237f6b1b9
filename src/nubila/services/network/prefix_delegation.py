"""IPv6 subnets whose prefix a DHCPv6 server on the external network delegates (RFC 8415; Neutron's prefix delegation).

Such a subnet has ``subnetpool_id`` ``prefix_delegation`` and, until it has a prefix, the CIDR ``::/64``. The first
router that it is connected to asks on its gateway's network; where that router's gateway is, the host does it
(drivers/prefix_delegation.py) and reports what it has with the router. Everything that follows happens here, in the
transaction that takes in the report: CIDR, gateway, pools, and the address of every port keep their lower 64 bits and
get the new upper ones. Without gateway or interface, or when the lease ended, the subnet is ``::/64`` again.

Hosts never see a subnet without a prefix, nor addresses in it.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping, Sequence
from typing import Any

import sqlalchemy as sa

from nubila.core import clock
from nubila.core.call import Call
from nubila.core.cloud import Cloud
from nubila.core.db import Reader, Tx
from nubila.core.faults import bad_request
from nubila.core.ports import Delegation
from nubila.services.network import addresses, allocate, asks, groups, look, pools
from nubila.services.network.asks import INTERFACES, ROUTER_OWNERS
from nubila.services.network.feature import Feature
from nubila.services.network.kinds import AUTO, Network, Router, Subnet
from nubila.services.network.kinds_port import Port
from nubila.services.network.tables import IP_ALLOCATION

Row = dict[str, Any]
POOL, PROVISIONAL = "prefix_delegation", "::/64"
_LOW = (1 << 64) - 1
_USABLE = tuple(ipaddress.IPv6Network(cidr) for cidr in ("2000::/3", "fc00::/7"))
_P, _A, _S = Port.table.c, IP_ALLOCATION.c, Subnet.table.c
HAS_PREFIX = sa.or_(_S.subnetpool_id.is_(None), _S.subnetpool_id != POOL, _S.cidr != PROVISIONAL)
"""Whether a subnet is more than a promise, as SQL."""
_OF_ROUTER = (
    sa.select(Subnet.table)
    .join(IP_ALLOCATION, _A.subnet_id == _S.id)
    .join(Port.table, _P.id == _A.port_id)
    .where(_P.device_id == sa.bindparam("router"), _P.device_owner.in_(INTERFACES), _S.subnetpool_id == POOL)
    .order_by(_S.id)
)
_ROUTERS = (  # the gateway's address is the lowest
    sa.select(_P.device_id)
    .join(IP_ALLOCATION, _A.port_id == _P.id)
    .where(_A.subnet_id == sa.bindparam("subnet"), _P.device_owner.in_(INTERFACES))
    .order_by(_A.ip_key)
)
_NEAR = (
    sa.select(_S.id, _S.cidr)
    .join(IP_ALLOCATION, _A.subnet_id == _S.id)
    .join(Port.table, _P.id == _A.port_id)
    .where(_P.device_id == sa.bindparam("router"), _P.device_owner.in_(ROUTER_OWNERS), HAS_PREFIX)
)
_TAKEN = sa.select(IP_ALLOCATION).where(_A.subnet_id == sa.bindparam("subnet")).order_by(_A.ip_key)


def is_delegated(subnet: Mapping[str, Any]) -> bool:
    """Whether the subnet's prefix is, or is to be, a delegated one."""
    return bool(subnet["subnetpool_id"] == POOL)


def pending(subnet: Mapping[str, Any]) -> bool:
    """Whether a subnet waits for its prefix."""
    return is_delegated(subnet) and bool(subnet["cidr"] == PROVISIONAL)


# --- the API --------------------------------------------------------------------------------------------------------


def _refuse(text: str) -> Exception:
    return bad_request(f"Bad subnets request: {text}", "BadRequest")


def is_default(call: Call, values: Row) -> bool:
    """Whether ``use_default_subnetpool`` means prefix delegation for this request."""
    return bool(call.cloud.settings.ipv6_pd_enabled and values.get("ip_version") == 6 and not values.get("cidr"))


def prepare(call: Call, values: Row) -> None:
    """Check a new subnet and give it its provisional CIDR. Raises the 400s of the API."""
    if values.get("ip_version") != 6:
        raise _refuse("ip_version: prefix delegation is for subnets of ip_version 6.")
    for name in ("ipv6_ra_mode", "ipv6_address_mode"):
        if values.get(name) not in addresses.AUTO_V6_MODES:
            raise _refuse(f"{name}: prefix delegation needs one of {', '.join(sorted(addresses.AUTO_V6_MODES))}.")
    if values.get("prefixlen") not in (None, 64):
        raise _refuse("prefixlen: delegated subnets are /64; leave it out.")
    if values.get("allocation_pools"):
        raise _refuse("allocation_pools: they follow from the prefix that is delegated; leave them out.")
    if values.get("gateway_ip") not in (AUTO, None):
        raise _refuse("gateway_ip: it follows from the prefix that is delegated; leave it out.")
    if values.get("segment_id"):
        raise _refuse("segment_id: a subnet on a segment cannot have a delegated prefix.")
    if values.get("external"):
        raise _refuse("network_id: prefixes are delegated on external networks, not to their subnets.")
    pools.with_delegation(call.tx, values["network_id"], POOL)
    values["cidr"], values["subnetpool_id"] = PROVISIONAL, POOL


def check_update(before: Row, values: Row) -> None:
    """400 for what follows from the prefix and so cannot be changed."""
    for name in ("gateway_ip", "allocation_pools", "segment_id"):
        if is_delegated(before) and name in values and values[name] not in (before[name], AUTO, None):
            raise _refuse(f"{name}: it follows from the delegated prefix of subnet {before['id']}.")


# --- what hosts are told, and tell ----------------------------------------------------------------------------------


def asked(reader: Reader, router_id: str) -> list[Row]:
    """The subnets for which this router asks: those of which it is the first router."""
    mine = {row["id"]: row for row in reader.all(_OF_ROUTER, {"router": router_id})}
    return [row for id, row in mine.items() if reader.rows(_ROUTERS, {"subnet": id})[0][0] == router_id]


def wish(reader: Reader, router: Mapping[str, Any], host: str) -> tuple[Delegation, ...] | None:
    """What a host has to ask for; None: it is not this host that asks now, if any does."""
    if router["host"] != host or not router["admin_state_up"]:
        return None
    if not router["gw_port_id"]:
        return ()
    return tuple(
        Delegation(subnet_id=row["id"], prefix="" if pending(row) else row["cidr"])
        for row in asked(reader, router["id"])
    )


def observe(tx: Tx, router: Mapping[str, Any], host: str, told: Sequence[Mapping[str, Any]] | None) -> str:
    """Make the subnets be what the host has got for them; a sentence about what cannot be, or ""."""
    if told is None or router["host"] != host:
        return ""
    has = {str(one["subnet_id"]): str(one["prefix"]) for one in told} if router["gw_port_id"] else {}
    said = []
    for subnet in asked(tx, router["id"]):
        new, why = _fit(tx, router, subnet, has.get(subnet["id"], ""))
        renumber(tx, subnet, new)
        said += [why] if why else []
    return " ".join(said)


def _fit(reader: Reader, router: Mapping[str, Any], subnet: Row, prefix: str) -> tuple[str, str]:
    """The CIDR that a delegated prefix makes of the subnet, and why it is not the prefix."""
    if not prefix:
        return PROVISIONAL, ""
    try:
        net = ipaddress.IPv6Network(prefix)
    except ValueError:
        return PROVISIONAL, f"{prefix!r} was delegated to subnet {subnet['id']}, which is no IPv6 prefix."
    if net.prefixlen != 64 or not any(net.subnet_of(one) for one in _USABLE):
        return PROVISIONAL, f"The prefix {net} delegated to subnet {subnet['id']} is none that hosts can use."
    near = {id: cidr for id, cidr in reader.rows(_NEAR, {"router": router["id"]})}
    near |= {one["id"]: one["cidr"] for one in look.subnets(reader, subnet["network_id"]) if not pending(one)}
    for id, cidr in near.items():
        if id != subnet["id"] and addresses.overlap(cidr, str(net)):
            text = f"The prefix {net} delegated to subnet {subnet['id']} overlaps with subnet {id} ({cidr})."
            return PROVISIONAL, text
    return str(net), ""


def left(tx: Tx, router_id: str, subnet_ids: Sequence[str]) -> None:
    """A router is on these subnets no longer; another one that is asks from now on."""
    for id in subnet_ids:
        subnet = look.row(tx, Subnet, id)
        if subnet is not None and is_delegated(subnet):
            others = tx.rows(_ROUTERS, {"subnet": id})
            if not others or addresses.key(_gateway(subnet)) not in _keys(tx, id):
                renumber(tx, subnet, PROVISIONAL)
            for (other,) in others:
                asks.router(tx, other)


def gateway_gone(tx: Tx, router_id: str) -> None:
    """A router loses its first gateway: what was delegated by it is void."""
    for subnet in asked(tx, router_id):
        renumber(tx, subnet, PROVISIONAL)


# --- renumbering ----------------------------------------------------------------------------------------------------


def _gateway(subnet: Mapping[str, Any]) -> str:
    return str(subnet["gateway_ip"] or addresses.default_gateway(subnet["cidr"]))


def _keys(reader: Reader, subnet_id: str) -> set[str]:
    return {row["ip_key"] for row in reader.all(_TAKEN, {"subnet": subnet_id})}


def renumber(tx: Tx, subnet: Mapping[str, Any], cidr: str) -> None:
    """Give a subnet another /64, with all that has addresses in it; nothing when it has that already.

    The lower halves stay, except that a gateway at the very first address becomes the one after it.
    """
    look.lock(tx, Network, subnet["network_id"])
    now = look.row(tx, Subnet, subnet["id"])
    if now is None:
        return
    low = int(ipaddress.IPv6Network(cidr).network_address)
    strays = [row for row in tx.all(_TAKEN, {"subnet": now["id"]}) if not addresses.contains(cidr, row["ip_address"])]
    if now["cidr"] == cidr and not strays:
        return

    def moved(address: str) -> str:
        half = int(ipaddress.IPv6Address(address)) & _LOW
        return str(ipaddress.IPv6Address(low | (half or 1)))

    gateway = moved(now["gateway_ip"]) if now["gateway_ip"] and now["cidr"] != cidr else now["gateway_ip"]
    if now["cidr"] != cidr:
        values = {"cidr": cidr, "gateway_ip": gateway, "allocation_pools": addresses.default_pools(cidr, gateway)}
        allocate.set_columns(tx, Subnet, now["id"], values)
    for row in strays:
        allocate.release_one(tx, row["port_id"], now["id"], row["ip_address"])
    for row in strays:
        allocate.take(tx, {**now, "cidr": cidr}, moved(row["ip_address"]), row["port_id"], row["place"])
    _tell(tx, now, sorted({row["port_id"] for row in strays}))


def _tell(tx: Tx, subnet: Row, port_ids: Sequence[str]) -> None:
    """Everybody who knew the old addresses."""
    at, members = clock.now(), set()
    for id in port_ids:
        port = look.need(tx, Port, id)
        asks.port(tx, port)
        members |= set(groups.of_port(tx, id))
    asks.members(tx, members)
    asks.network(tx, subnet["network_id"], external=subnet["external"])
    asks.routers_of(tx, subnet["network_id"])
    allocate.bump(tx, Port, port_ids, at)
    allocate.bump(tx, Subnet, [subnet["id"]], at)
    allocate.bump(tx, Network, [subnet["network_id"]], at)


def unsound(cloud: Cloud, reader: Reader) -> list[str]:
    """Invariant: a subnet that no router with a gateway is connected to has no prefix."""
    found = []
    for subnet in reader.all(sa.select(Subnet.table).where(_S.subnetpool_id == POOL, _S.cidr != PROVISIONAL)):
        ids = [id for (id,) in reader.rows(_ROUTERS, {"subnet": subnet["id"]})]
        router = look.row(reader, Router, ids[0]) if ids else None
        if router is None or not router["gw_port_id"]:
            found.append(f"subnet {subnet['id']} has the delegated prefix {subnet['cidr']}, and nobody who asks for it")
    return found


FEATURE = Feature(invariants=(unsound,))
