"""Routers: gateways, interfaces, extra routes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import sqlalchemy as sa

from nubila.core import clock
from nubila.core.call import Call, Route
from nubila.core.db import Reader, Tx
from nubila.core.faults import Fault, bad_request, conflict
from nubila.core.query import ListQuery
from nubila.core.service import Hooks
from nubila.services.network import (
    addresses,
    allocate,
    asks,
    bridged,
    conntrack_helpers,
    dvr,
    fixed,
    flavors,
    floating_links,
    gateways,
    ha,
    look,
    ndp_proxies,
    nested,
    paging,
    place_router,
    placing,
    ports,
    prefix_delegation,
    router_views,
    subnet_checks,
    tags,
)
from nubila.services.network.asks import HA_INTERFACE, INTERFACE, INTERFACES
from nubila.services.network.dvr_hosts import DVR_INTERFACE
from nubila.services.network.gateways import refuse
from nubila.services.network.kinds import Router, Subnet
from nubila.services.network.kinds_l3 import ConntrackHelper
from nubila.services.network.kinds_port import Port
from nubila.services.network.networks import check_zones

Row = dict[str, Any]
MAX_ROUTES = 30
SWITCHES = ("enable_ndp_proxy", "enable_default_route_ecmp", "enable_default_route_bfd")
_P = Port.table.c
_PORTS = sa.select(Port.table).where(_P.device_id == sa.bindparam("router"), _P.device_owner.in_(INTERFACES))


# --- create, update, delete -----------------------------------------------------------------------------------------


def prepare(call: Call, values: Row) -> None:
    check_zones(call.tx, values["availability_zone_hints"], "network")
    values["tags"] = tags.clean(values["tags"])
    if values["flavor_id"]:
        if values.get("ha") is not None or values.get("distributed") is not None:
            raise refuse("A router is made of a flavor, or with the attributes ha and distributed, not of both.")
        values.update(flavors.router_kind(call.tx, values["flavor_id"]))
    ha.prepare(call, values)
    dvr.prepare(call, values)
    for name in SWITCHES:
        values[name] = bool(values[name])
    _no_bfd_with_ha(values)
    values["_gateway"] = gateways.wish(
        call, "create_router:external_gateway_info", values, values.get("external_gateway_info")
    )
    if values["_gateway"] and values["_gateway"].get("enable_snat") is not None:
        values["enable_snat"] = values["_gateway"]["enable_snat"]
    values["gw_qos_policy_id"] = values["_gateway"]["qos"] if values["_gateway"] else None


def _no_bfd_with_ha(row: Row) -> None:
    """Highly available routers notice by themselves when they are cut off; their hosts do not run BFD."""
    if row["enable_default_route_bfd"] and row["ha"]:
        raise refuse("enable_default_route_bfd is not available for highly available routers.")


def created(call: Call, row: Row) -> None:
    tags.store(call.tx, row["id"], row["tags"], fresh=True)
    ha.created(call, row)
    wish = row.pop("_gateway")
    if wish:
        gateways.set_first(call, row, wish)
    if row["enable_ndp_proxy"]:
        ndp_proxies.check_router(call.tx, row["id"], row["gw_port_id"])


def prepare_update(call: Call, before: Row, values: Row) -> None:
    look.check_revision(call, before)
    look.lock(call.tx, Router, before["id"])
    ha.prepare_update(call, before, values)
    dvr.prepare_update(call, before, values)
    if "external_gateway_info" in values:
        rule = "update_router:external_gateway_info"
        wish = gateways.wish(call, rule, {**before, **values}, values["external_gateway_info"])
        values["_gateway"] = wish
        if wish and wish["enable_snat"] is not None:
            values["enable_snat"] = wish["enable_snat"]
        elif wish is None:
            values["enable_snat"] = True
        if wish is None:
            gateways.clear_first(call, dict(before))
        else:
            gateways.set_first(call, {**before, **values}, wish)
        values["gw_port_id"] = call.tx.scalar(_GW_PORT, {"id": before["id"]})
        values["gw_qos_policy_id"] = wish["qos"] if wish else None
    for name in SWITCHES:
        if name in values and values[name] is None:
            del values[name]
    _no_bfd_with_ha({**before, **values})
    gateway = values.get("gw_port_id", before["gw_port_id"])
    if values.get("enable_ndp_proxy"):
        ndp_proxies.check_router(call.tx, before["id"], gateway)
    elif gateway is None and before["enable_ndp_proxy"]:
        values["enable_ndp_proxy"] = False
    if "routes" in values:
        values["routes"] = check_routes(call.tx, before["id"], values["routes"] or [])


SPEC = (
    "admin_state_up", "routes", "enable_snat", "gw_port_id", "gw_qos_policy_id", "enable_ndp_proxy",
    "enable_default_route_ecmp", "enable_default_route_bfd",
)  # fmt: skip
"""What hosts have to know of a router's own row."""
_OWNER = (
    sa.update(Port.table)
    .where(_P.device_id == sa.bindparam("b_router"), _P.device_owner == sa.bindparam("b_from"))
    .values(device_owner=sa.bindparam("b_to"))
)
_GW_PORT = sa.select(Router.table.c.gw_port_id).where(Router.table.c.id == sa.bindparam("id"))


def updated(call: Call, before: Row, after: Row) -> None:
    after.pop("_gateway", None)
    after.pop("external_gateway_info", None)
    ha.updated(call, before, after)
    if before["ha"] and not after["ha"]:
        call.tx.execute(_OWNER, {"b_router": before["id"], "b_from": HA_INTERFACE, "b_to": INTERFACE})
    dvr.updated(call, before, after)
    if after["ha"] and not before["ha"]:
        call.tx.execute(_OWNER, {"b_router": before["id"], "b_from": INTERFACE, "b_to": HA_INTERFACE})
    if any(before[n] != after[n] for n in SPEC):
        asks.router(call.tx, before["id"])


def deleting(call: Call, row: Row) -> None:
    tx, id = call.tx, row["id"]
    look.lock(tx, Router, id)
    if tx.one(_PORTS, {"router": id}) is not None:
        raise conflict(f"Router {id} still has ports.", "RouterInUse")
    gateways.clear_all(call, row)
    ha.deleting(call, row)
    dvr.deleting(call, row)
    for helper in conntrack_helpers.of_router(tx, id):
        nested.remove(ConntrackHelper, tx, helper)
    tags.forget(tx, id)


def deleted(call: Call, row: Row) -> None:
    if row["host"]:
        call.tx.ask("router", row["id"], row["host"])


# --- interfaces -----------------------------------------------------------------------------------------------------


def _router(call: Call, rule: str) -> Row:
    row = look.seen(call.cloud, call.tx, call.creds, Router, call.params["id"])
    call.enforce(rule, look.wire(Router, row))
    look.lock(call.tx, Router, row["id"])
    return row


def _body(call: Call, *, removal: bool) -> tuple[str | None, str | None]:
    body = call.body
    if not isinstance(body, dict) or not ("port_id" in body or "subnet_id" in body):
        raise refuse("Name the interface by its subnet_id or its port_id.")
    for name in ("port_id", "subnet_id"):
        if name in body:
            look.uuid(name, body[name], "BadRequest")
    if not removal and "port_id" in body and "subnet_id" in body:
        raise refuse("subnet_id, port_id: one of them is enough, leave the other out.")
    return body.get("port_id"), body.get("subnet_id")


def add_interface(call: Call) -> Row:
    """Connect a subnet (with its gateway address) or an existing port to the router."""
    row = _router(call, "add_router_interface")
    port_id, subnet_id = _body(call, removal=False)
    if port_id is not None:
        port, subnets = _add_port(call, row, port_id)
    else:
        port, subnets = _add_subnet(call, row, str(subnet_id))
    if placing.router(call.cloud, call.tx, row["id"]) is None:
        call.tx.ask("router_place", row["id"])
    if row["distributed"]:
        bridged.refuse_distributed(call.tx, [port["network_id"]])
        dvr.network_changed(call.tx, row["id"], port["network_id"])
    asks.dhcp(call.tx, port["network_id"])
    allocate.bump(call.tx, Router, [row["id"]], clock.now())
    return _interface(row, port, subnets)


def interface_owner(row: Row) -> str:
    """What a router's interfaces are called in ``device_owner``, by the kind of router."""
    return DVR_INTERFACE if row.get("distributed") else HA_INTERFACE if row.get("ha") else INTERFACE


def _place(tx: Tx, row: Row, network_id: str) -> str:
    """Where a router's interfaces are bound: a distributed router's nowhere, since they are everywhere."""
    return "" if row["distributed"] else place_router.first_host(tx, row, network_id)


def _interface(row: Row, port: Row, subnets: Sequence[str]) -> Row:
    return {
        "id": row["id"], "project_id": row["project_id"], "port_id": port["id"],
        "network_id": port["network_id"], "subnet_id": subnets[0], "subnet_ids": list(subnets),
    }  # fmt: skip


def _add_subnet(call: Call, row: Row, subnet_id: str) -> tuple[Row, list[str]]:
    tx = call.tx
    subnet = look.seen(call.cloud, tx, call.creds, Subnet, subnet_id)
    if not subnet["gateway_ip"]:
        raise refuse(f"subnet_id: {subnet_id} has no gateway_ip; set one or connect a port of your own.")
    owner = call.creds.project_id in (subnet["project_id"], subnet["network_owner"])
    if not owner and not call.may("context_is_admin"):
        raise refuse(f"subnet_id: {subnet_id} belongs to another project; connect a port of your own instead.")
    gateways.no_overlap(tx, row["id"], [subnet], INTERFACE)
    wish = {"subnet_id": subnet_id, "ip_address": subnet["gateway_ip"]}
    if subnet["ip_version"] == 6:
        mine = tx.all(_PORTS, {"router": row["id"]})
        for port in mine:
            if port["network_id"] == subnet["network_id"] and any(
                ":" in ip["ip_address"] for ip in look.addresses_of(tx, port["id"])
            ):
                have = look.addresses_of(tx, port["id"])
                fixed.replace(tx, port, [*have, wish])
                allocate.bump(tx, Port, [port["id"]], clock.now())
                asks.router(tx, row["id"])
                return port, [subnet_id]
    port = ports.create(
        call.cloud, tx, project_id=row["project_id"], network_id=subnet["network_id"], device_id=row["id"],
        device_owner=interface_owner(row), host_id=_place(tx, row, subnet["network_id"]), fixed_ips=[wish],
        security_groups=[], port_security_enabled=False,
    )  # fmt: skip
    return port, [subnet_id]


def _add_port(call: Call, row: Row, port_id: str) -> tuple[Row, list[str]]:
    tx = call.tx
    port = look.seen(call.cloud, tx, call.creds, Port, port_id)
    if not call.may("update_port", look.wire(Port, port)):
        raise look.missing(Port, port_id)
    if port["device_id"]:
        text = f"Port {port_id} of network {port['network_id']} serves device {port['device_id']}: choose another."
        raise conflict(text, "PortInUse")
    ips = look.addresses_of(tx, port_id)
    if not ips:
        raise refuse(f"port_id: {port_id} has no address.")
    subnets = [look.need(tx, Subnet, ip["subnet_id"]) for ip in ips]
    if sum(s["ip_version"] == 4 for s in subnets) > 1:
        raise refuse(f"port_id: {port_id} has addresses of several IPv4 subnets; an interface has one.")
    gateways.no_overlap(tx, row["id"], subnets, INTERFACE)
    host, owner = _place(tx, row, port["network_id"]), interface_owner(row)
    after = ports.bind(tx, port, host, device_id=row["id"], device_owner=owner)
    return after, [s["id"] for s in subnets]


def remove_interface(call: Call) -> Row:
    """Disconnect a port or subnet; its port goes when nothing is left on it."""
    tx, row = call.tx, _router(call, "remove_router_interface")
    port_id, subnet_id = _body(call, removal=True)
    mine = {p["id"]: p for p in tx.all(_PORTS, {"router": row["id"]})}
    if port_id is not None:
        port = mine.get(port_id)
        if port is None:
            text = f"Port {port_id} is no interface of router {row['id']}."
            raise _missing(text, "RouterInterfaceNotFound")
        ips = look.addresses_of(tx, port_id)
        if subnet_id is not None and subnet_id not in [ip["subnet_id"] for ip in ips]:
            text = f"subnet_id: port {port_id} has no address of {subnet_id}."
            raise bad_request(text, "SubnetMismatchForPort")
        going = ips
    else:
        look.seen(call.cloud, tx, call.creds, Subnet, str(subnet_id))
        found = next(
            ((p, look.addresses_of(tx, p["id"])) for p in mine.values()
             if subnet_id in [ip["subnet_id"] for ip in look.addresses_of(tx, p["id"])]),
            None,
        )  # fmt: skip
        if found is None:
            text = f"Router {row['id']} is not on subnet {subnet_id}."
            raise _missing(text, "RouterInterfaceNotFoundForSubnet")
        port, ips = found
        going = [ip for ip in ips if ip["subnet_id"] == subnet_id]
    for ip in going:
        _not_needed(tx, row, look.need(tx, Subnet, ip["subnet_id"]))
    if len(going) < len(ips):
        fixed.replace(tx, port, [ip for ip in ips if ip not in going])
        allocate.bump(tx, Port, [port["id"]], clock.now())
    else:
        ports.delete(tx, port)
    prefix_delegation.left(tx, row["id"], [ip["subnet_id"] for ip in going])
    asks.router(tx, row["id"])
    if row["distributed"]:
        dvr.network_changed(tx, row["id"], port["network_id"])
        dvr.kept(call.cloud, tx, row)
    asks.dhcp(tx, port["network_id"])
    allocate.bump(tx, Router, [row["id"]], clock.now())
    return _interface(row, port, [ip["subnet_id"] for ip in going])


def _missing(text: str, type: str) -> Exception:
    return Fault(404, text, type)


def _not_needed(tx: Tx, row: Row, subnet: Row) -> None:
    """409 while floating IPs or extra routes go through the interface."""
    text = f"Router {row['id']} must stay on subnet {subnet['id']}:"
    if any(addresses.contains(subnet["cidr"], ip) for ip in floating_links.targets(tx, row["id"])):
        raise conflict(f"{text} floating IPs lead there.", "RouterInterfaceInUseByFloatingIP")
    for route in row["routes"] or ():
        if addresses.contains(subnet["cidr"], route["nexthop"]):
            raise conflict(f"{text} its routes lead there.", "RouterInterfaceInUseByRoute")
    outside = {port["network_id"] for port in gateways.of_router(tx, row)}
    if subnet["network_id"] not in outside and floating_links.of_router(tx, row["id"], subnet["network_id"]):
        raise conflict(f"{text} floating IPs come from there.", "RouterInterfaceInUseAsGatewayByFloatingIP")
    ndp_proxies.interface_needed(tx, row["id"], subnet["id"])


# --- extra routes ---------------------------------------------------------------------------------------------------


def check_routes(tx: Reader, router_id: str, asked: Sequence[Mapping[str, str]]) -> list[Row]:
    """Extra routes in normal form: next hops must be neighbours, and not the router itself."""
    routes = subnet_checks.routes(asked, None, "routes", MAX_ROUTES)
    near = gateways.connected(tx, router_id)
    own = {s["router_ip"] for s in near}
    for route in routes:
        if not any(addresses.contains(s["cidr"], route["nexthop"]) for s in near):
            text = f"routes: nexthop {route['nexthop']} is on no subnet of the router."
            raise bad_request(text, "InvalidRoutes")
        if route["nexthop"] in own:
            text = f"routes: nexthop {route['nexthop']} is the router itself."
            raise bad_request(text, "InvalidRoutes")
    return routes


def _change_routes(call: Call, rule: str, change: Any) -> Row:
    row = _router(call, rule)
    body = call.body
    inner = body.get("router") if isinstance(body, dict) else None
    routes = inner.get("routes") if isinstance(inner, dict) else None
    if not isinstance(routes, list) or not all(
        isinstance(r, dict) and set(r) == {"destination", "nexthop"} for r in routes
    ):
        raise refuse('the body must be {"router": {"routes": [{"destination": ..., "nexthop": ...}]}}.')
    given = subnet_checks.routes(routes, None, "routes", MAX_ROUTES)
    after = check_routes(call.tx, row["id"], change(row["routes"] or [], given))
    allocate.set_columns(call.tx, Router, row["id"], {"routes": after})
    allocate.bump(call.tx, Router, [row["id"]], clock.now())
    asks.router(call.tx, row["id"])
    row["routes"] = after
    return {"router": router_views.view(call, look.need(call.tx, Router, row["id"]))}


def add_routes(call: Call) -> Row:
    """Add extra routes in one step, whatever others are there."""
    return _change_routes(call, "add_extraroutes", lambda have, new: [*have, *(r for r in new if r not in have)])


def remove_routes(call: Call) -> Row:
    """Remove extra routes in one step."""
    return _change_routes(call, "remove_extraroutes", lambda have, gone: [r for r in have if r not in gone])


# --- views ----------------------------------------------------------------------------------------------------------


def scope(call: Call, q: ListQuery) -> list[Any]:
    return paging.adapt(call, Router, q)


HOOKS = Hooks(
    target=look.own_project,
    prepare=prepare,
    created=created,
    prepare_update=prepare_update,
    updated=updated,
    deleting=deleting,
    deleted=deleted,
    present=router_views.present,
    scope=scope,
    own_filters=tags.FILTERS,
)
_ONE = "/v2.0/routers/{id}"
ROUTES = [
    Route(method="PUT", path=f"{_ONE}/add_router_interface", handler=add_interface, tx="write",
          doc="Connect a subnet or port to a router."),
    Route(method="PUT", path=f"{_ONE}/remove_router_interface", handler=remove_interface, tx="write",
          doc="Disconnect a subnet or port from a router."),
    Route(method="PUT", path=f"{_ONE}/add_extraroutes", handler=add_routes, tx="write",
          doc="Add extra routes to a router."),
    Route(method="PUT", path=f"{_ONE}/remove_extraroutes", handler=remove_routes, tx="write",
          doc="Remove extra routes from a router."),
]  # fmt: skip
