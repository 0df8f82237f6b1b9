"""Routers: gateways, interfaces, extra routes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import sqlalchemy as sa

from nubila.core import clock, hosts
from nubila.core.call import Call, Route
from nubila.core.db import Reader, Tx
from nubila.core.faults import Fault, bad_request, conflict
from nubila.core.query import ListQuery
from nubila.core.service import Hooks
from nubila.services.network import (
    addresses,
    allocate,
    asks,
    fixed,
    floating_links,
    look,
    paging,
    placing,
    ports,
    subnet_checks,
    tags,
)
from nubila.services.network.asks import GATEWAY, INTERFACE, ROUTER_OWNERS
from nubila.services.network.kinds import Network, Router, Subnet
from nubila.services.network.kinds_port import Port
from nubila.services.network.networks import check_zones
from nubila.services.network.tables import IP_ALLOCATION

Row = dict[str, Any]
MAX_ROUTES = 30
_P, _A, _S = Port.table.c, IP_ALLOCATION.c, Subnet.table.c
_PORTS = sa.select(Port.table).where(
    _P.device_id == sa.bindparam("router"), _P.device_owner == sa.bindparam("owner")
)  # fmt: skip
_CONNECTED = (
    sa.select(Subnet.table, _A.ip_address.label("router_ip"), _A.port_id, _P.device_owner)
    .join(IP_ALLOCATION, _A.subnet_id == _S.id)
    .join(Port.table, _P.id == _A.port_id)
    .where(_P.device_id == sa.bindparam("router"), _P.device_owner.in_(ROUTER_OWNERS))
)
_GATEWAYS = (
    sa.select(_A.port_id, _P.network_id, _A.subnet_id, _A.ip_address)
    .select_from(Port.table.outerjoin(IP_ALLOCATION, _A.port_id == _P.id))
    .where(_P.id.in_(sa.bindparam("ports", expanding=True)))
    .order_by(_P.id, _A.place)
)
_GATEWAY_NETWORKS = sa.select(_P.id, _P.network_id).where(_P.id.in_(sa.bindparam("ports", expanding=True)))
_ZONES = sa.select(hosts.TABLE.c.name, hosts.TABLE.c.zone)


def refuse(text: str, type: str = "BadRequest") -> Exception:
    return bad_request(f"Bad router request: {text}", type)


# --- create, update, delete -----------------------------------------------------------------------------------------


def prepare(call: Call, values: Row) -> None:
    check_zones(call.tx, values["availability_zone_hints"], "network")
    values["tags"] = tags.clean(values["tags"])
    values["_gateway"] = _gateway_wish(call, "create", values, values.get("external_gateway_info"))
    if values["_gateway"] and values["_gateway"].get("enable_snat") is not None:
        values["enable_snat"] = values["_gateway"]["enable_snat"]


def created(call: Call, row: Row) -> None:
    tags.store(call.tx, row["id"], row["tags"], fresh=True)
    wish = row.pop("_gateway")
    if wish:
        set_gateway(call, row, wish)


def _gateway_wish(call: Call, verb: str, row: Row, info: Any) -> Row | None:
    """The gateway asked for in checked form; None = none."""
    if not info:
        return None
    network_id = info.get("network_id")
    if not network_id:
        if set(info) - {"network_id"}:
            raise refuse("external_gateway_info needs a network_id.", "HTTPBadRequest")
        return None
    for part in ("network_id", "enable_snat", "external_fixed_ips"):
        if part in info:
            call.enforce(f"{verb}_router:external_gateway_info:{part}", look.wire(Router, row))
    net = look.seen(call.cloud, call.tx, call.creds, Network, network_id)
    if not net["external"]:
        raise refuse(f"Network {network_id} is not an external network.")
    snat = info.get("enable_snat")
    return {
        "network": net,
        "enable_snat": None if snat is None else Router.attrs["enable_snat"].type.load(snat),
        "ips": info.get("external_fixed_ips"),
    }


def prepare_update(call: Call, before: Row, values: Row) -> None:
    look.check_revision(call, before)
    look.lock(call.tx, Router, before["id"])
    if "external_gateway_info" in values:
        wish = _gateway_wish(call, "update", {**before, **values}, values["external_gateway_info"])
        values["_gateway"] = wish
        if wish and wish["enable_snat"] is not None:
            values["enable_snat"] = wish["enable_snat"]
        elif wish is None:
            values["enable_snat"] = True
        if wish is None:
            clear_gateway(call, before)
        else:
            set_gateway(call, {**before, **values}, wish)
        values["gw_port_id"] = call.tx.scalar(_GW_PORT, {"id": before["id"]})
    if "routes" in values:
        values["routes"] = check_routes(call.tx, before["id"], values["routes"] or [])


_GW_PORT = sa.select(Router.table.c.gw_port_id).where(Router.table.c.id == sa.bindparam("id"))


def updated(call: Call, before: Row, after: Row) -> None:
    after.pop("_gateway", None)
    after.pop("external_gateway_info", None)
    if any(before[n] != after[n] for n in ("admin_state_up", "routes", "enable_snat", "gw_port_id")):
        asks.router(call.tx, before["id"])


def deleting(call: Call, row: Row) -> None:
    tx, id = call.tx, row["id"]
    look.lock(tx, Router, id)
    if tx.one(_PORTS, {"router": id, "owner": INTERFACE}) is not None:
        raise conflict(f"Router {id} still has ports.", "RouterInUse")
    clear_gateway(call, row)
    tags.forget(tx, id)


def deleted(call: Call, row: Row) -> None:
    if row["host"]:
        call.tx.ask("router", row["id"], row["host"])


# --- the gateway ----------------------------------------------------------------------------------------------------


def set_gateway(call: Call, row: Row, wish: Row) -> None:
    """Make the router's gateway what is asked for: a new port, another network, other addresses."""
    tx, net = call.tx, wish["network"]
    port = look.row(tx, Port, row["gw_port_id"]) if row["gw_port_id"] else None
    if port is not None and port["network_id"] != net["id"]:
        clear_gateway(call, row)
        port = None
    if port is None:
        _no_overlap(tx, row["id"], [s for s in look.subnets(tx, net["id"])])
        port = ports.create(
            call.cloud, tx, counted="no", project_id="", network_id=net["id"], device_id=row["id"],
            device_owner=GATEWAY, host_id=row["host"] or "", security_groups=[], port_security_enabled=False,
            **({} if wish["ips"] is None else {"fixed_ips": wish["ips"]}),
        )  # fmt: skip
        allocate.set_columns(tx, Router, row["id"], {"gw_port_id": port["id"]})
        row["gw_port_id"] = port["id"]
    elif wish["ips"]:
        fixed.replace(tx, port, wish["ips"])
        allocate.bump(tx, Port, [port["id"]], clock.now())
    row["host"] = placing.router(call.cloud, tx, row["id"])
    if row["host"] is None:
        tx.ask("router_place", row["id"])


def clear_gateway(call: Call, row: Row) -> None:
    """Take the gateway away; 409 while floating IPs need it."""
    tx = call.tx
    port = look.row(tx, Port, row["gw_port_id"]) if row["gw_port_id"] else None
    if port is None:
        return
    if floating_links.of_router(tx, row["id"]):
        text = f"Gateway cannot be updated for router {row['id']}, since a gateway to external network "
        text += f"{port['network_id']} is required by one or more floating IPs."
        raise conflict(text, "RouterExternalGatewayInUseByFloatingIp")
    allocate.set_columns(tx, Router, row["id"], {"gw_port_id": None})
    ports.delete(tx, port)
    asks.router(tx, row["id"])


def connected(reader: Reader, router_id: str) -> list[Row]:
    """The subnets a router has an address in, with ``router_ip``, ``port_id`` and ``device_owner``."""
    return reader.all(_CONNECTED, {"router": router_id})


def _no_overlap(reader: Reader, router_id: str, new: Sequence[Row]) -> None:
    for old in connected(reader, router_id):
        for subnet in new:
            if old["id"] == subnet["id"] and old["device_owner"] == INTERFACE:
                raise refuse(f"Router already has a port on subnet {subnet['id']}.")
            if addresses.overlap(old["cidr"], subnet["cidr"]):
                text = f"Cidr {subnet['cidr']} of subnet {subnet['id']} overlaps with cidr {old['cidr']} of subnet "
                raise refuse(f"{text}{old['id']}.")


# --- interfaces -----------------------------------------------------------------------------------------------------


def _router(call: Call, rule: str) -> Row:
    row = look.seen(call.cloud, call.tx, call.creds, Router, call.params["id"])
    call.enforce(rule, look.wire(Router, row))
    look.lock(call.tx, Router, row["id"])
    return row


def _body(call: Call, *, removal: bool) -> tuple[str | None, str | None]:
    body = call.body
    if not isinstance(body, dict) or not ("port_id" in body or "subnet_id" in body):
        raise refuse("Either subnet_id or port_id must be specified.")
    for name in ("port_id", "subnet_id"):
        if name in body:
            look.uuid(name, body[name], "BadRequest")
    if not removal and "port_id" in body and "subnet_id" in body:
        raise refuse("Cannot specify both subnet-id and port-id.")
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
    asks.dhcp(call.tx, port["network_id"])
    allocate.bump(call.tx, Router, [row["id"]], clock.now())
    return _interface(row, port, subnets)


def _interface(row: Row, port: Row, subnets: Sequence[str]) -> Row:
    return {
        "id": row["id"], "project_id": row["project_id"], "port_id": port["id"],
        "network_id": port["network_id"], "subnet_id": subnets[0], "subnet_ids": list(subnets),
    }  # fmt: skip


def _add_subnet(call: Call, row: Row, subnet_id: str) -> tuple[Row, list[str]]:
    tx = call.tx
    subnet = look.seen(call.cloud, tx, call.creds, Subnet, subnet_id)
    if not subnet["gateway_ip"]:
        raise refuse("Subnet for router interface must have a gateway IP.")
    owner = call.creds.project_id in (subnet["project_id"], subnet["network_owner"])
    if not owner and not call.may("context_is_admin"):
        raise refuse(
            f"Cannot add interface to router because subnet {subnet_id} is not owned by project making the request."
        )
    _no_overlap(tx, row["id"], [subnet])
    wish = {"subnet_id": subnet_id, "ip_address": subnet["gateway_ip"]}
    if subnet["ip_version"] == 6:
        mine = tx.all(_PORTS, {"router": row["id"], "owner": INTERFACE})
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
        device_owner=INTERFACE, host_id=row["host"] or "", fixed_ips=[wish], security_groups=[],
        port_security_enabled=False,
    )  # fmt: skip
    return port, [subnet_id]


def _add_port(call: Call, row: Row, port_id: str) -> tuple[Row, list[str]]:
    tx = call.tx
    port = look.seen(call.cloud, tx, call.creds, Port, port_id)
    if not call.may("update_port", look.wire(Port, port)):
        raise look.missing(Port, port_id)
    if port["device_id"]:
        text = f"Unable to complete operation on port {port_id} for network {port['network_id']}. Port already has an "
        raise conflict(f"{text}attached device {port['device_id']}.", "PortInUse")
    ips = look.addresses_of(tx, port_id)
    if not ips:
        raise refuse("Router port must have at least one fixed IP.")
    subnets = [look.need(tx, Subnet, ip["subnet_id"]) for ip in ips]
    if sum(s["ip_version"] == 4 for s in subnets) > 1:
        raise refuse("Cannot have multiple IPv4 subnets on router port.")
    _no_overlap(tx, row["id"], subnets)
    after = ports.bind(tx, port, row["host"] or "", device_id=row["id"], device_owner=INTERFACE)
    return after, [s["id"] for s in subnets]


def remove_interface(call: Call) -> Row:
    """Disconnect a port or subnet; its port goes when nothing is left on it."""
    tx, row = call.tx, _router(call, "remove_router_interface")
    port_id, subnet_id = _body(call, removal=True)
    mine = {p["id"]: p for p in tx.all(_PORTS, {"router": row["id"], "owner": INTERFACE})}
    if port_id is not None:
        port = mine.get(port_id)
        if port is None:
            text = f"Router {row['id']} does not have an interface with id {port_id}"
            raise _missing(text, "RouterInterfaceNotFound")
        ips = look.addresses_of(tx, port_id)
        if subnet_id is not None and subnet_id not in [ip["subnet_id"] for ip in ips]:
            text = f"Subnet on port {port_id} does not match the requested subnet {subnet_id}."
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
            text = f"Router {row['id']} has no interface on subnet {subnet_id}"
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
    asks.router(tx, row["id"])
    asks.dhcp(tx, port["network_id"])
    allocate.bump(tx, Router, [row["id"]], clock.now())
    return _interface(row, port, [ip["subnet_id"] for ip in going])


def _missing(text: str, type: str) -> Exception:
    return Fault(404, text, type)


def _not_needed(tx: Tx, row: Row, subnet: Row) -> None:
    """409 while floating IPs or extra routes go through the interface."""
    for id in floating_links.of_router(tx, row["id"]):
        if addresses.contains(subnet["cidr"], floating_links.fixed_of(tx, id)):
            text = (
                f"Router interface for subnet {subnet['id']} on router {row['id']} cannot be deleted, as it is required"
            )
            raise conflict(f"{text} by one or more floating IPs.", "RouterInterfaceInUseByFloatingIP")
    for route in row["routes"] or ():
        if addresses.contains(subnet["cidr"], route["nexthop"]):
            text = (
                f"Router interface for subnet {subnet['id']} on router {row['id']} cannot be deleted, as it is required"
            )
            raise conflict(f"{text} by one or more routes.", "RouterInterfaceInUseByRoute")


# --- extra routes ---------------------------------------------------------------------------------------------------


def check_routes(tx: Reader, router_id: str, asked: Sequence[Mapping[str, str]]) -> list[Row]:
    """Extra routes in normal form: next hops must be neighbours, and not the router itself."""
    routes = subnet_checks.routes(asked, None, "routes", MAX_ROUTES)
    near = connected(tx, router_id)
    own = {s["router_ip"] for s in near}
    for route in routes:
        if not any(addresses.contains(s["cidr"], route["nexthop"]) for s in near):
            text = f"Invalid format for routes: {route}, the nexthop is not connected with router"
            raise bad_request(text, "InvalidRoutes")
        if route["nexthop"] in own:
            text = f"Invalid format for routes: {route}, the nexthop is used by router"
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
    present(call, [row])
    from_row = {n: row.get(a.name) for a in Router.attrs.values() if not a.hidden for n in a.wire}
    return {"router": {**from_row, "created_at": clock.zulu(row["created_at"]), "updated_at": clock.zulu(clock.now())}}


def add_routes(call: Call) -> Row:
    """Add extra routes in one step, whatever others are there."""
    return _change_routes(call, "add_extraroutes", lambda have, new: [*have, *(r for r in new if r not in have)])


def remove_routes(call: Call) -> Row:
    """Remove extra routes in one step."""
    return _change_routes(call, "remove_extraroutes", lambda have, gone: [r for r in have if r not in gone])


# --- views ----------------------------------------------------------------------------------------------------------


def present(call: Call, rows: list[Row]) -> None:
    gateways = [r["gw_port_id"] for r in rows if r["gw_port_id"]]
    networks: dict[str, str] = {}
    ips: dict[str, list[Row]] = {}
    for i in range(0, len(gateways), 500):
        chunk = {"ports": gateways[i : i + 500]}
        networks.update(dict(call.tx.rows(_GATEWAY_NETWORKS, chunk)))
        for port, _, subnet, ip in call.tx.rows(_GATEWAYS, chunk):
            if ip is not None:
                ips.setdefault(port, []).append({"subnet_id": subnet, "ip_address": ip})
    zones = dict(call.tx.rows(_ZONES)) if any(r["host"] for r in rows) else {}
    for row in rows:
        port = row["gw_port_id"]
        row["external_gateway_info"] = (
            {"network_id": networks[port], "external_fixed_ips": ips.get(port, []), "enable_snat": row["enable_snat"]}
            if port in networks
            else None
        )
        row["availability_zones"] = [zones[row["host"]]] if row["host"] in zones else []
        row["routes"] = row["routes"] or []


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
    present=present,
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
