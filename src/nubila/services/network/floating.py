"""Floating IPs: taking an external address, leading it to a port, giving it back."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa

from nubila.core import quota
from nubila.core.call import Call
from nubila.core.db import Reader, Tx
from nubila.core.faults import Fault, bad_request, conflict
from nubila.core.query import ListQuery
from nubila.core.service import Hooks
from nubila.services.network import asks, fixed, floating_links, look, paging, ports, qos_use, segments, tags
from nubila.services.network.asks import FLOATING, GATEWAY, INTERFACES
from nubila.services.network.kinds import FloatingIP, Network, Router, Subnet
from nubila.services.network.kinds_l3 import PortForwarding, brief
from nubila.services.network.kinds_port import Port
from nubila.services.network.tables import IP_ALLOCATION

Row = dict[str, Any]
_F, _P, _A, _S = FloatingIP.table.c, Port.table.c, IP_ALLOCATION.c, Subnet.table.c
_DELETE = sa.delete(FloatingIP.table).where(_F.id == sa.bindparam("b_id"))
_UNUSED = sa.select(FloatingIP.table).where(
    _F.floating_network_id == sa.bindparam("network"), _F.port_id.is_(None), _F.router_id.is_(None)
)  # fmt: skip
_LINKED = sa.select(_F.id).where(_F.port_id == sa.bindparam("port"), _F.fixed_ip_address == sa.bindparam("ip"))
_INSIDE = Port.table.alias("inside")
# A router reaches an external network by a gateway, or by an interface like any other network.
_ROUTERS = (
    sa.select(_INSIDE.c.device_id, _A.ip_address, _S.gateway_ip)
    .join(IP_ALLOCATION, _A.port_id == _INSIDE.c.id)
    .join(Subnet.table, _S.id == _A.subnet_id)
    .join(Port.table, _P.device_id == _INSIDE.c.device_id)
    .where(
        _A.subnet_id == sa.bindparam("subnet"), _INSIDE.c.device_owner.in_(INTERFACES), _P.id != _INSIDE.c.id,
        _P.device_owner.in_((*INTERFACES, GATEWAY)), _P.network_id == sa.bindparam("external"),
    )
)  # fmt: skip
_GATEWAY_ON = sa.select(_P.id).where(
    _P.device_id == sa.bindparam("router"), _P.device_owner == GATEWAY, _P.network_id == sa.bindparam("external")
).limit(1)  # fmt: skip
_DETAILS = sa.select(_P.id, _P.name, _P.network_id, _P.mac_address, _P.admin_state_up, _P.status, _P.device_id,
                     _P.device_owner).where(_P.id.in_(sa.bindparam("ports", expanding=True)))  # fmt: skip

_FORWARDINGS = (
    sa.select(PortForwarding.table)
    .where(PortForwarding.table.c.floatingip_id.in_(sa.bindparam("ids", expanding=True)))
    .order_by(PortForwarding.table.c.created_at, PortForwarding.table.c.id)
)


def refuse(text: str) -> Exception:
    return bad_request(f"Bad floatingip request: {text}", "BadRequest")


def prepare(call: Call, values: Row) -> None:
    tx = call.tx
    net = look.seen(
        call.cloud, tx, call.creds, Network, look.uuid("floating_network_id", values["floating_network_id"])
    )
    if not net["external"]:
        raise refuse(f"floating_network_id: {net['id']} is not external; name one with router:external.")
    values["tags"] = tags.clean(values["tags"])
    values["dns_name"] = ports.host_name(values["dns_name"])
    values["dns_domain"] = segments.domain(values["dns_domain"])
    if bool(values["dns_name"]) != bool(values["dns_domain"]):
        raise refuse("dns_name and dns_domain go together.")
    subnets = [s for s in look.subnets(tx, net["id"]) if s["ip_version"] == 4]
    if not subnets:
        raise refuse(f"floating_network_id: {net['id']} needs an IPv4 subnet first.")
    wanted, subnet_id = values.get("floating_ip_address"), values.get("subnet_id")
    if subnet_id is not None and subnet_id not in [s["id"] for s in look.subnets(tx, net["id"])]:
        look.need(tx, Subnet, subnet_id)
        raise refuse(f"Subnet {subnet_id} is not on network {net['id']}.")
    ip = {k: v for k, v in (("subnet_id", subnet_id), ("ip_address", wanted)) if v}
    link(call, values, values)
    qos_use.check(call, values)
    port = ports.create(
        call.cloud, tx, counted="no", project_id="", network_id=net["id"], device_id=values["id"],
        device_owner=FLOATING,
        status="N/A", security_groups=[], port_security_enabled=False,
        fixed_ips=[ip or {"subnet_id": _roomy(tx, subnets)}],
    )  # fmt: skip
    values["floating_port_id"] = port["id"]
    values["floating_ip_address"] = next(i["ip_address"] for i in port["fixed_ips"] if ":" not in i["ip_address"])


def _roomy(tx: Tx, subnets: list[Row]) -> str:
    return str(next((s for s in subnets if fixed.has_room(tx, s)), subnets[0])["id"])


def created(call: Call, row: Row) -> None:
    tags.store(call.tx, row["id"], row["tags"], fresh=True)
    if row["router_id"]:
        asks.router(call.tx, row["router_id"])


def link(call: Call, values: Row, row: Row) -> None:
    """Work out where a floating IP is to lead: fills ``fixed_ip_address`` and ``router_id`` of ``values``."""
    tx, port_id, wanted = call.tx, values.get("port_id"), values.get("fixed_ip_address")
    if not port_id:
        if wanted:
            raise refuse("fixed_ip_address needs a port_id beside it.")
        values.update(port_id=None, fixed_ip_address=None, router_id=None)
        return
    if floating_links.forwardings(tx, row["id"]):
        raise _forwards(row["id"])
    look.lock(tx, Port, port_id)  # it must not go, or lose its address, meanwhile
    port = look.seen(call.cloud, tx, call.creds, Port, port_id)
    if port["project_id"] not in ("", None, row["project_id"]) and not call.may("context_is_admin"):
        raise refuse(f"Port {port_id} is associated with a different project than the floating IP and cannot be bound.")
    ips = [ip for ip in look.addresses_of(tx, port_id) if ":" not in ip["ip_address"]]
    if wanted:
        chosen = next((ip for ip in ips if ip["ip_address"] == wanted), None)
        if chosen is None:
            raise refuse(f"fixed_ip_address: {wanted} is not an address of port {port_id}.")
    else:
        if not ips:
            raise refuse(f"port_id: {port_id} has only IPv6 addresses or none; give it an IPv4 one first.")
        if len(ips) > 1:
            raise refuse(f"fixed_ip_address: say which IPv4 address of port {port_id} is meant, it has {len(ips)}.")
        chosen = ips[0]
    other = tx.scalar(_LINKED, {"port": port_id, "ip": chosen["ip_address"]})
    if other is not None and other != row["id"]:
        text = f"Address {chosen['ip_address']} of port {port_id} has a floating IP already: take that off first."
        raise conflict(text, "FloatingIPPortAlreadyAssociated")
    values["fixed_ip_address"] = chosen["ip_address"]
    if values.get("router_id"):
        _chosen(call, values["router_id"], row["floating_network_id"])
    else:
        values["router_id"] = _router(call, chosen["subnet_id"], row["floating_network_id"], port_id)
    if floating_links.forwardings_of_port(tx, port_id) and look.need(tx, Router, values["router_id"])["distributed"]:
        # What is forwarded to the port comes back by the central part, what has a floating IP leaves on its own host.
        text = f"Port forwardings lead to port {port_id}: delete them before it gets a floating IP."
        raise bad_request(text, "PortHasPortForwarding")


def _chosen(call: Call, router_id: str, external: str) -> None:
    """404 unless the caller may see the router they named, 409 unless it has a gateway on the external network."""
    look.seen(call.cloud, call.tx, call.creds, Router, look.uuid("router_id", router_id))
    if call.tx.one(_GATEWAY_ON, {"router": router_id, "external": external}) is None:
        text = f"There was a conflict: Router {router_id} has no external gateway on network {external}."
        raise conflict(text, "Conflict")


def _router(call: Call, subnet_id: str, external: str, port_id: str) -> str:
    found = router_for(call.tx, subnet_id, external)
    if found is None:
        text = f"port_id: no router leads from {port_id}, subnet {subnet_id}, to network {external}; connect one."
        raise Fault(404, text, "ExternalGatewayForFloatingIPNotFound")
    return found


def router_for(reader: Reader, subnet_id: str, external: str) -> str | None:
    """The router that joins a subnet to an external network; of several the one that is the subnet's gateway."""
    found = reader.rows(_ROUTERS, {"subnet": subnet_id, "external": external})
    first = next((id for id, ip, gateway in found if ip == gateway), found[0][0] if found else None)
    return None if first is None else str(first)


def prepare_update(call: Call, before: Row, values: Row) -> None:
    look.check_revision(call, before)
    qos_use.check(call, values, before)
    if "router_id" in values and not (port_id := values.get("port_id", before["port_id"])):
        del values["router_id"]  # leads nowhere: nothing to translate
        if "port_id" not in values and not values:
            return
    elif "router_id" in values:
        values["port_id"] = port_id  # null: by the router that joins the networks
    if "port_id" not in values:
        if "fixed_ip_address" not in values:
            if not values and before["port_id"]:  # an empty update has always meant: lead nowhere
                link(call, values, before)
                values["status"] = "DOWN"
            return
        if values["fixed_ip_address"] is None:
            del values["fixed_ip_address"]
            return
        if before["port_id"] is None:
            raise refuse("fixed_ip_address needs a port_id beside it.")
        values["port_id"] = before["port_id"]
    if values["port_id"] and values["port_id"] == before["port_id"] and not values.get("fixed_ip_address"):
        values["fixed_ip_address"] = before["fixed_ip_address"]
        values.setdefault("router_id", before["router_id"])
    link(call, values, before)
    if any(values[n] != before[n] for n in ("port_id", "fixed_ip_address", "router_id")):
        values["status"] = "DOWN"


def updated(call: Call, before: Row, after: Row) -> None:
    if any(before[n] != after[n] for n in ("port_id", "fixed_ip_address", "router_id", "qos_policy_id")):
        for id in {before["router_id"], after["router_id"]} - {None}:
            asks.router(call.tx, id)


def deleting(call: Call, row: Row) -> None:
    if floating_links.forwardings(call.tx, row["id"]):
        raise _forwards(row["id"])


def _forwards(id: str) -> Exception:
    return conflict(f"Floating IP {id} has port forwardings: delete them first.", "FipInUseByPortForwarding")


def deleted(call: Call, row: Row) -> None:
    _drop_port(call.tx, row)
    tags.forget(call.tx, row["id"])
    if row["router_id"]:
        asks.router(call.tx, row["router_id"])


def _drop_port(tx: Tx, row: Row) -> None:
    port = look.row(tx, Port, row["floating_port_id"])
    if port is not None:
        ports.delete(tx, port)


def drop_unused(cloud: Any, tx: Tx, network_id: str) -> None:
    """A network is going, or is external no longer: its floating IPs that lead nowhere go with it."""
    for row in tx.all(_UNUSED, {"network": network_id}):
        tx.execute(_DELETE, {"b_id": row["id"]})
        _drop_port(tx, row)
        tags.forget(tx, row["id"])
        quota.release(tx, row["project_id"], {"floatingip": 1})


def present(call: Call, rows: list[Row]) -> None:
    ids = list({r["port_id"] for r in rows if r["port_id"]})
    details: dict[str, Row] = {}
    for i in range(0, len(ids), 500):
        for port in call.tx.all(_DETAILS, {"ports": ids[i : i + 500]}):
            details[port.pop("id")] = port
    forwardings: dict[str, list[Row]] = {}
    floats = [r["id"] for r in rows]
    for i in range(0, len(floats), 500):
        for one in call.tx.all(_FORWARDINGS, {"ids": floats[i : i + 500]}):
            forwardings.setdefault(one["floatingip_id"], []).append(brief(one))
    for row in rows:
        row["port_forwardings"] = forwardings.get(row["id"], [])
        row["port_details"] = details.get(row["port_id"]) if row["port_id"] else None


def scope(call: Call, q: ListQuery) -> list[Any]:
    return paging.adapt(call, FloatingIP, q)


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
