"""The gateways of routers: the one that ``external_gateway_info`` shows, and more besides it.

Source: Networking API reference, "Routers", ``external_gateway_info`` and ``add_/update_/remove_external_gateways``.
``router.gw_port_id`` is the first gateway; every port of the router with the owner "network:router_gateway" is one.
Several may be on one external network. A gateway stays while floating IPs need it and no other is on their network.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import sqlalchemy as sa

from nubila.core import clock
from nubila.core.call import Call, Route
from nubila.core.db import Reader, Tx
from nubila.core.faults import bad_request, conflict
from nubila.core.policy import Rule
from nubila.services.network import (
    addresses,
    allocate,
    asks,
    dvr,
    fixed,
    floating_links,
    look,
    ndp_proxies,
    place_router,
    placing,
    ports,
    prefix_delegation,
    qos_use,
    router_views,
)
from nubila.services.network.asks import GATEWAY, ROUTER_OWNERS
from nubila.services.network.feature import Feature
from nubila.services.network.kinds import Network, Router, Subnet
from nubila.services.network.kinds_port import Port
from nubila.services.network.policies import ADMIN, ADMIN_OR_MEMBER
from nubila.services.network.tables import IP_ALLOCATION

Row = dict[str, Any]
_P, _A, _S = Port.table.c, IP_ALLOCATION.c, Subnet.table.c
_OF_ROUTER = (
    sa.select(Port.table)
    .where(_P.device_id == sa.bindparam("router"), _P.device_owner == GATEWAY)
    .order_by(_P.created_at, _P.id)
)
_CONNECTED = (
    sa.select(Subnet.table, _A.ip_address.label("router_ip"), _A.port_id, _P.device_owner)
    .join(IP_ALLOCATION, _A.subnet_id == _S.id)
    .join(Port.table, _P.id == _A.port_id)
    .where(_P.device_id == sa.bindparam("router"), _P.device_owner.in_(ROUTER_OWNERS))
)


def refuse(text: str, type: str = "BadRequest") -> Exception:
    return bad_request(f"Bad router request: {text}", type)


def of_router(reader: Reader, router: Mapping[str, Any]) -> list[Row]:
    """The gateway ports of a router, the first one first."""
    found = reader.all(_OF_ROUTER, {"router": router["id"]})
    return sorted(found, key=lambda port: port["id"] != router["gw_port_id"])


def connected(reader: Reader, router_id: str) -> list[Row]:
    """The subnets a router has an address in, with ``router_ip``, ``port_id`` and ``device_owner``."""
    return reader.all(_CONNECTED, {"router": router_id})


def no_overlap(reader: Reader, router_id: str, new: Sequence[Row], owner: str) -> None:
    """400 when a subnet that is to be connected is connected already or overlaps with one that is."""
    for old in connected(reader, router_id):
        for subnet in new:
            gateways = owner == old["device_owner"] == GATEWAY
            if gateways and old["network_id"] == subnet["network_id"]:
                continue  # several gateways may be on one network
            if old["id"] == subnet["id"] and not gateways and old["device_owner"] != GATEWAY:
                raise refuse(f"The router is on subnet {subnet['id']} already.")
            if prefix_delegation.pending(old) or prefix_delegation.pending(subnet):
                continue
            if addresses.overlap(old["cidr"], subnet["cidr"]):
                text = f"Subnet {subnet['id']} shares addresses of {subnet['cidr']} with subnet {old['id']}, "
                raise refuse(f"{text}which the router is on.")


# --- what is asked for ----------------------------------------------------------------------------------------------


def wish(call: Call, rule: str, row: Row, info: Any) -> Row | None:
    """The gateway asked for in checked form, None = none; ``rule`` is what the policy of its parts begins with."""
    if not info:
        return None
    network_id = info.get("network_id")
    if not network_id:
        if set(info) - {"network_id"}:
            raise refuse("external_gateway_info needs a network_id.", "HTTPBadRequest")
        return None
    qos_use.check(call, info, {"qos_policy_id": row["gw_qos_policy_id"]})
    for part in ("network_id", "enable_snat", "external_fixed_ips"):
        if part in info and rule:
            call.enforce(f"{rule}:{part}", look.wire(Router, row))
    net = look.seen(call.cloud, call.tx, call.creds, Network, network_id)
    if not net["external"]:
        raise refuse(f"network_id: {network_id} is not external; name one with router:external.")
    snat = info.get("enable_snat")
    return {
        "network": net,
        "enable_snat": None if snat is None else Router.attrs["enable_snat"].type.load(snat),
        "ips": info.get("external_fixed_ips"),
        "qos": info.get("qos_policy_id", row["gw_qos_policy_id"]),
    }


# --- the first gateway ----------------------------------------------------------------------------------------------


def set_first(call: Call, row: Row, asked: Row) -> None:
    """Make the router's first gateway what is asked for: a new port, another network, other addresses."""
    tx, net = call.tx, asked["network"]
    port = look.row(tx, Port, row["gw_port_id"]) if row["gw_port_id"] else None
    if port is not None and port["network_id"] != net["id"]:
        _drop(call, row, port)
        port = None
    if port is None:
        port = _add(call, row, asked)
        allocate.set_columns(tx, Router, row["id"], {"gw_port_id": port["id"]})
        row["gw_port_id"] = port["id"]
    elif asked["ips"]:
        if row["enable_ndp_proxy"]:
            _keeps_six(tx, row, asked["ips"])
        fixed.replace(tx, port, asked["ips"])
        allocate.bump(tx, Port, [port["id"]], clock.now())
    placed(call, row)


def _keeps_six(tx: Tx, row: Row, ips: Sequence[Mapping[str, str]]) -> None:
    """409 when new addresses of the gateway leave none for NDP proxies."""
    for ip in ips:
        subnet = look.row(tx, Subnet, ip["subnet_id"]) if ip.get("subnet_id") else None
        if ":" in ip.get("ip_address", "") or (subnet is not None and subnet["ip_version"] == 6):
            return
    text = f"NDP proxies of router {row['id']} need an IPv6 address on its gateway: keep it or delete them first."
    raise conflict(text, "RouterIPv6GatewayInUse")


def placed(call: Call, row: Row) -> None:
    """The router needs a host, or its host has to look again."""
    row["host"] = placing.router(call.cloud, call.tx, row["id"])
    if row["host"] is None:
        call.tx.ask("router_place", row["id"])


def _add(call: Call, row: Row, asked: Row) -> Row:
    tx, net = call.tx, asked["network"]
    no_overlap(tx, row["id"], look.subnets(tx, net["id"]), GATEWAY)
    return ports.create(
        call.cloud, tx, counted="no", project_id="", network_id=net["id"], device_id=row["id"],
        device_owner=GATEWAY, host_id=place_router.first_host(tx, row, net["id"]), security_groups=[],
        port_security_enabled=False,
        **({} if asked["ips"] is None else {"fixed_ips": asked["ips"]}),
    )  # fmt: skip


def clear_first(call: Call, row: Row) -> None:
    """Take the first gateway away, the next one takes its place; 409 while floating IPs or NDP proxies need it."""
    port = look.row(call.tx, Port, row["gw_port_id"]) if row["gw_port_id"] else None
    if port is not None:
        ndp_proxies.gateway_needed(call.tx, row["id"])
        _drop(call, row, port)


def clear_all(call: Call, row: Row) -> None:
    """Take all gateways away; 409 while something needs one."""
    if row["gw_port_id"]:
        ndp_proxies.gateway_needed(call.tx, row["id"])
    for port in reversed(of_router(call.tx, row)):
        _drop(call, row, port)


def _drop(call: Call, row: Row, port: Row) -> None:
    tx = call.tx
    others = [p for p in of_router(tx, row) if p["id"] != port["id"]]
    left = any(p["network_id"] == port["network_id"] for p in others)
    if not left and floating_links.of_router(tx, row["id"], port["network_id"]):
        text = f"Floating IPs of network {port['network_id']} go by router {row['id']}: take them off first."
        raise conflict(text, "RouterExternalGatewayInUseByFloatingIp")
    if row["gw_port_id"] == port["id"]:
        prefix_delegation.gateway_gone(tx, row["id"])
        row["gw_port_id"] = others[0]["id"] if others else None
        allocate.set_columns(tx, Router, row["id"], {"gw_port_id": row["gw_port_id"]})
    ports.delete(tx, port)
    asks.router(tx, row["id"])
    if row["distributed"]:
        dvr.network_changed(tx, row["id"], port["network_id"])
        dvr.kept(call.cloud, tx, row)


# --- several --------------------------------------------------------------------------------------------------------


def _asked(call: Call, action: str) -> tuple[Row, list[Row]]:
    """The router and the gateways named in the body, checked and allowed."""
    row = look.seen(call.cloud, call.tx, call.creds, Router, call.params["id"])
    target = look.wire(Router, row)
    rule = f"{action}_external_gateways"
    call.enforce(rule, target)
    look.lock(call.tx, Router, row["id"])
    row = look.need(call.tx, Router, row["id"])
    body = call.body.get("router") if isinstance(call.body, dict) else None
    infos = body.get("external_gateways") if isinstance(body, dict) else None
    known = {"network_id", "enable_snat", "external_fixed_ips", "qos_policy_id"}
    if not isinstance(infos, list) or not all(isinstance(i, dict) and set(i) <= known for i in infos):
        raise refuse('the body must be {"router": {"external_gateways": [{"network_id": ...}]}}.', "HTTPBadRequest")
    call.enforce(f"{rule}:external_gateways", target)
    out = []
    for info in infos:
        ips = info.get("external_fixed_ips")
        if ips is not None and not (
            isinstance(ips, list)
            and all(isinstance(ip, dict) and set(ip) <= {"subnet_id", "ip_address"} for ip in ips)
            and all(isinstance(text, str) for ip in ips for text in ip.values())
        ):
            raise refuse("external_fixed_ips is a list of objects with subnet_id and ip_address.", "HTTPBadRequest")
        if not isinstance(info.get("network_id"), str):
            raise refuse("each of external_gateways needs a network_id.", "HTTPBadRequest")
        asked = wish(call, "" if action == "remove" else f"{rule}:external_gateways", row, info)
        assert asked is not None
        out.append(asked)
    return row, out


def _answer(call: Call, row: Row, asked: Sequence[Row]) -> Row:
    tx = call.tx
    snat = [a["enable_snat"] for a in asked if a["enable_snat"] is not None]
    changed: Row = {"enable_snat": snat[-1]} if snat else {}
    if not look.need(tx, Router, row["id"])["gw_port_id"]:
        changed = {"enable_snat": True, "enable_ndp_proxy": False}
    if changed:
        allocate.set_columns(tx, Router, row["id"], changed)
    allocate.bump(tx, Router, [row["id"]], clock.now())
    one_if_ha(tx, row)
    placed(call, row)
    return {"router": router_views.view(call, look.need(tx, Router, row["id"]))}


def one_if_ha(reader: Reader, row: Mapping[str, Any]) -> None:
    """400 for a highly available router with several gateways: a fail-over would bring up the first one only."""
    if row["ha"] and len(of_router(reader, row)) > 1:
        text = f"router {row['id']} is highly available (ha) and can have one external gateway; remove the others first"
        raise refuse(f"{text}, or make it a plain router.")


def _more(call: Call, row: Row, asked: Sequence[Row]) -> None:
    for one in asked:
        if row["gw_port_id"] is None:
            set_first(call, row, one)
        else:
            _add(call, row, one)


def add(call: Call) -> Row:
    """Add gateways to those the router has."""
    row, asked = _asked(call, "add")
    _more(call, row, asked)
    return _answer(call, row, asked)


def _match(call: Call, row: Row, asked: Row, among: Sequence[Row]) -> Row | None:
    """The gateway port that is meant: by an address, or as the only one on its network; 400 when it is unclear."""
    here = [p for p in among if p["network_id"] == asked["network"]["id"]]
    wanted = {ip["ip_address"] for ip in asked["ips"] or () if "ip_address" in ip}
    if not wanted:
        if len(here) > 1:
            text = f"it has {len(here)} on network {asked['network']['id']}, so say which by external_fixed_ips"
            raise _unmatched(row, text)
        return here[0] if here else None
    for port in here:
        if wanted & {ip["ip_address"] for ip in look.addresses_of(call.tx, port["id"])}:
            return port
    return None


def _unmatched(row: Row, why: str) -> Exception:
    text = f"Router {row['id']} has no such gateway: {why}."
    return bad_request(text, "UnableToMatchGateways")


def remove(call: Call) -> Row:
    """Take the named gateways away."""
    row, asked = _asked(call, "remove")
    have = of_router(call.tx, row)
    if asked and not have:
        text = f"Router {row['id']} has no gateways that could be removed."
        raise bad_request(text, "UnableToRemoveGateways")
    going = []
    for one in asked:
        port = _match(call, row, one, have)
        if port is None:
            why = f"none on network {one['network']['id']} has the addresses {one['ips']}"
            raise _unmatched(row, why)
        going.append(port)
    for port in sorted(going, key=lambda p: p["id"] == row["gw_port_id"]):
        if len(of_router(call.tx, row)) == 1:
            ndp_proxies.gateway_needed(call.tx, row["id"])
        _drop(call, row, port)
    return _answer(call, row, [])


def update(call: Call) -> Row:
    """Make the router's gateways these and no others; the first one named becomes the first."""
    row, asked = _asked(call, "update")
    have = of_router(call.tx, row)
    keep: list[tuple[Row, Row]] = []
    new: list[Row] = []
    for one in asked:
        port = _match(call, row, one, [p for p in have if p["id"] not in [k["id"] for k, _ in keep]])
        if port is None:
            new.append(one)
        else:
            keep.append((port, one))
    stay = {port["id"] for port, _ in keep}
    if asked and keep and asked[0] is keep[0][1] and row["gw_port_id"] != keep[0][0]["id"]:
        row["gw_port_id"] = keep[0][0]["id"]
        allocate.set_columns(call.tx, Router, row["id"], {"gw_port_id": row["gw_port_id"]})
    going = [port for port in reversed(have) if port["id"] not in stay]
    if len(going) == len(have) and not new and have:
        ndp_proxies.gateway_needed(call.tx, row["id"])
    added: list[Row] = []
    for one in new:  # before others go, so that floating IPs keep a way out
        added.append(_add(call, row, one))
        if row["gw_port_id"] is None or (asked and one is asked[0]):
            row["gw_port_id"] = added[-1]["id"]
            allocate.set_columns(call.tx, Router, row["id"], {"gw_port_id": row["gw_port_id"]})
    for port in going:
        _drop(call, row, port)
    for port, one in keep:
        if one["ips"]:
            fixed.replace(call.tx, port, one["ips"])
            allocate.bump(call.tx, Port, [port["id"]], clock.now())
    return _answer(call, row, asked)


_ONE = "/v2.0/routers/{id}"
_PARTS = ("network_id", "enable_snat", "external_fixed_ips")
FEATURE = Feature(
    routes=[
        Route(method="PUT", path=f"{_ONE}/add_external_gateways", handler=add, tx="write",
              doc="Add external gateways to a router."),
        Route(method="PUT", path=f"{_ONE}/update_external_gateways", handler=update, tx="write",
              doc="Replace the external gateways of a router."),
        Route(method="PUT", path=f"{_ONE}/remove_external_gateways", handler=remove, tx="write",
              doc="Remove external gateways from a router."),
    ],
    rules=[
        *(Rule(f"{verb}_external_gateways{part}", ADMIN_OR_MEMBER, f"{verb.capitalize()} gateways of a router.",
               scopes=("project",)) for verb in ("add", "update", "remove") for part in ("", ":external_gateways")),
        *(Rule(f"{verb}_external_gateways:external_gateways:{part}",
               ADMIN_OR_MEMBER if part == "network_id" else ADMIN,
               f"{verb.capitalize()} gateways with a chosen {part}.", scopes=("project",))
          for verb in ("add", "update") for part in _PARTS),
    ],
    extensions={
        "external-gateway-multihoming": ("Neutron L3 External Gateway Multihoming", "Routers have several gateways.",
                                         "2023-01-18"),
        "enable-default-route-bfd": ("Enable Default Route BFD", "BFD watches the next hops of default routes.",
                                     "2023-02-27"),
        "enable-default-route-ecmp": ("Enable Default Route ECMP", "Traffic is spread over all gateways.",
                                      "2023-02-27"),
    },
)  # fmt: skip
