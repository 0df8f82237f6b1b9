"""NDP proxies: IPv6 addresses of ports that a router answers for on its external network.

Source: Networking API reference, "Router NDP proxy". A router can have them when its gateway's network has IPv6 subnets
of an address scope; the port's network must be of the same one, since only then addresses mean the same on both.
"""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa

from nubila.core.call import Call
from nubila.core.db import Reader
from nubila.core.faults import bad_request, conflict
from nubila.core.policy import Rule
from nubila.core.query import ListQuery
from nubila.core.service import Hooks
from nubila.services.network import asks, floating_links, look, paging
from nubila.services.network.asks import INTERFACES
from nubila.services.network.feature import Feature
from nubila.services.network.kinds import Router, SubnetPool
from nubila.services.network.kinds_l3 import NdpProxy
from nubila.services.network.kinds_port import Port
from nubila.services.network.policies import ADMIN_OR_MEMBER, ADMIN_OR_READER
from nubila.services.network.tables import IP_ALLOCATION

Row = dict[str, Any]
_P, _A, _N = Port.table.c, IP_ALLOCATION.c, NdpProxy.table.c
_ROUTER_SUBNETS = (
    sa.select(_A.subnet_id)
    .join(Port.table, _P.id == _A.port_id)
    .where(_P.device_id == sa.bindparam("router"), _P.device_owner.in_(INTERFACES))
)
_SAME = sa.select(_N.id).where(_N.port_id == sa.bindparam("port"), _N.ip_address == sa.bindparam("ip"))


def scope_of(reader: Reader, network_id: str) -> str | None:
    """The address scope of a network's IPv6 subnets, None when it has none."""
    for subnet in look.subnets(reader, network_id):
        if subnet["ip_version"] == 6 and subnet["subnetpool_id"]:
            pool = look.row(reader, SubnetPool, subnet["subnetpool_id"])
            if pool is not None and pool["address_scope_id"]:
                return str(pool["address_scope_id"])
    return None


def check_router(reader: Reader, router_id: str, gw_port_id: str | None, *, going: bool = False) -> None:
    """409 unless the router's gateway lets it answer for IPv6 addresses; ``going``: the gateway is being taken away."""
    port = look.row(reader, Port, gw_port_id) if gw_port_id and not going else None
    six = port is not None and any(":" in ip["ip_address"] for ip in look.addresses_of(reader, port["id"]))
    if port is not None and six and scope_of(reader, port["network_id"]) is not None:
        return
    text = f"enable_ndp_proxy: router {router_id} needs a gateway first, with an IPv6 address in an address scope."
    raise conflict(text, "RouterGatewayNotValid")


def gateway_needed(reader: Reader, router_id: str) -> None:
    """409 while the router answers for addresses through its gateway."""
    if floating_links.proxies_of_router(reader, router_id):
        text = f"NDP proxies of router {router_id} need its gateway: delete them first."
        raise conflict(text, "RouterGatewayInUseByNDPProxy")


def interface_needed(reader: Reader, router_id: str, subnet_id: str) -> None:
    """409 while the router answers for an address of the subnet."""
    for row in floating_links.proxies_of_router(reader, router_id):
        mine = look.addresses_of(reader, row["port_id"])
        if any(ip["subnet_id"] == subnet_id and ip["ip_address"] == row["ip_address"] for ip in mine):
            text = f"NDP proxies of router {router_id} stand for addresses of subnet {subnet_id}: delete them first."
            raise conflict(text, "RouterInterfaceInUseByNDPProxy")


def _unreachable(row: Row) -> Exception:
    text = f"Router {row['router_id']} is on no IPv6 subnet of port {row['port_id']}: add an interface first."
    return conflict(text, "PortUnreachableRouter")


def prepare(call: Call, values: Row) -> None:
    tx = call.tx
    router = look.seen(call.cloud, tx, call.creds, Router, values["router_id"])
    if router["project_id"] != call.creds.project_id and not call.may("context_is_admin"):
        raise look.missing(Router, router["id"])
    look.lock(tx, Router, router["id"])
    look.lock(tx, Port, values["port_id"])
    port = look.seen(call.cloud, tx, call.creds, Port, values["port_id"])
    near = {subnet for (subnet,) in tx.rows(_ROUTER_SUBNETS, {"router": router["id"]})}
    here = [s["id"] for s in look.subnets(tx, port["network_id"]) if s["id"] in near]
    if not here:
        raise _unreachable(values)
    if not router["enable_ndp_proxy"]:
        text = f"Router {router['id']} takes no NDP proxies: set its enable_ndp_proxy to true first."
        raise conflict(text, "RouterNDPProxyNotEnable")
    ips = [ip for ip in look.addresses_of(tx, port["id"]) if ":" in ip["ip_address"]]
    if not ips:
        raise _no_address(call, values, port)
    wanted = values["ip_address"]
    if wanted is None:
        chosen = next((ip for ip in ips if ip["subnet_id"] in near), None)
        if chosen is None:
            raise _unreachable(values)
        values["ip_address"] = chosen["ip_address"]
    else:
        found = next((ip for ip in ips if ip["ip_address"] == wanted), None)
        if found is None or found["subnet_id"] not in near:
            why = f"router {router['id']} is not on its subnet"
            if found is None:
                why = f"port {port['id']} does not have it"
            raise bad_request(f"ip_address: {wanted} can not be used, {why}.", "InvalidAddress")
    gateway = look.need(tx, Port, router["gw_port_id"])
    outside, inside = scope_of(tx, gateway["network_id"]), scope_of(tx, port["network_id"])
    if outside != inside:
        text = f"Outside is IPv6 address scope {outside}, inside {inside}: both networks must be of one."
        raise conflict(text, "AddressScopeConflict")
    if tx.scalar(_SAME, {"port": port["id"], "ip": values["ip_address"]}) is not None:
        text = f"There is an NDP proxy for address {values['ip_address']} of port {port['id']} already."
        raise conflict(text, "NeutronDbObjectDuplicateEntry")


def _no_address(call: Call, values: Row, port: Row) -> Exception:
    text = f"Bad ndp_proxy request: port_id: {port['id']} has no IPv6 address."
    return bad_request(text, "BadRequest")


def created(call: Call, row: Row) -> None:
    asks.router(call.tx, row["router_id"])


def prepare_update(call: Call, before: Row, values: Row) -> None:
    look.check_revision(call, before)


def deleted(call: Call, row: Row) -> None:
    asks.router(call.tx, row["router_id"])


def _scope(call: Call, q: ListQuery) -> list[Any]:
    return paging.adapt(call, NdpProxy, q)


FEATURE = Feature(
    kinds=(NdpProxy,),
    hooks={
        NdpProxy: Hooks(
            target=look.own_project, prepare=prepare, created=created, prepare_update=prepare_update, deleted=deleted,
            scope=_scope,
        )
    },
    rules=[
        Rule(f"{verb}_ndp_proxy", ADMIN_OR_READER if verb == "get" else ADMIN_OR_MEMBER,
             f"{verb.capitalize()} an NDP proxy.", scopes=("project",))
        for verb in ("create", "get", "update", "delete")
    ],
    quotas={"ndp_proxy": 500},
    resources={"ndp_proxies": "ndp_proxy"},
    extensions={
        "l3-ndp-proxy": ("L3 NDP Proxy", "IPv6 addresses are made known on external networks.", "2021-06-29"),
        "l3-ext-ndp-proxy": ("Router support to enable NDP proxy", "NDP proxies are switched per router.",
                             "2020-08-25"),
    },
)  # fmt: skip
