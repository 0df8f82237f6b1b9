"""Ports in the API: the hooks around ports.py, filters, what is shown."""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Mapping
from typing import Any

import sqlalchemy as sa

from nubila.core.call import Call
from nubila.core.faults import bad_request, conflict, forbidden
from nubila.core.query import ListQuery
from nubila.core.service import Hooks
from nubila.services.network import local_ips, look, paging, ports, qos_guarantees, qos_use, rbac, tags, trunks_links
from nubila.services.network.asks import CENTRAL, DHCP, FLOATING, GATEWAY, INTERFACES, ROUTER_OWNERS
from nubila.services.network.dvr_hosts import DVR_INTERFACE
from nubila.services.network.kinds import FloatingIP, Network, Router
from nubila.services.network.kinds_port import Port
from nubila.services.network.tables import IP_ALLOCATION, PORT_GROUP

Row = dict[str, Any]
_P, _A, _M = Port.table.c, IP_ALLOCATION.c, PORT_GROUP.c
_IPS = (
    sa.select(_A.port_id, _A.subnet_id, _A.ip_address)
    .where(_A.port_id.in_(sa.bindparam("ports", expanding=True)))
    .order_by(_A.port_id, _A.place)
)
_GROUPS = (
    sa.select(_M.port_id, _M.security_group_id)
    .where(_M.port_id.in_(sa.bindparam("ports", expanding=True)))
    .order_by(_M.port_id, _M.security_group_id)
)
_DOMAINS = sa.select(Network.table.c.id, Network.table.c.dns_domain).where(
    Network.table.c.id.in_(sa.bindparam("networks", expanding=True)), Network.table.c.dns_domain != ""
)
_CHUNK = 500


def target(call: Call, row: Row) -> Mapping[str, Any]:
    """A port belongs to its network: who owns and shares that decides, with the port's own project, who may what."""
    look.own_project(call, row)
    if row.get("network_owner"):
        return {}
    net = call.memo.get(row["network_id"])
    if net is None:
        net = look.seen(call.cloud, call.tx, call.creds, Network, look.uuid("network_id", row["network_id"]))
        call.memo[row["network_id"]] = net
    row["network_owner"] = net["project_id"]
    return rbac.Reach(call.tx, call.creds, Network, net)


def prepare(call: Call, values: Row) -> None:
    net = call.memo.get(values["network_id"]) or look.need(call.tx, Network, values["network_id"])
    extra: Any = ChainMap(
        rbac.Reach(call.tx, call.creds, Network, net),  # type: ignore[arg-type]  # nobody writes to it
        {**look.wire(Port, values), "network:project_id": net["project_id"]},
    )
    _parts(call, "create", values, extra)
    _guard_device(call, {}, values)
    qos_use.check(call, values)
    ports.fill(call.cloud, call.tx, values, net, call.creds)


def _parts(call: Call, verb: str, values: Row, target: Mapping[str, Any]) -> None:
    """Policy of the parts of attributes ("create_port:fixed_ips:ip_address"); 400 for parts that are none."""
    if strange := {n for one in values.get("fixed_ips") or [] for n in one} - {"subnet_id", "ip_address"}:
        text = f"Invalid input for fixed_ips: {sorted(strange)} are unknown; use subnet_id and ip_address."
        raise bad_request(text, "InvalidInput")
    for attr in ("fixed_ips", "allowed_address_pairs"):
        for name in {n for one in values.get(attr) or [] for n in one if n != "active"}:
            call.enforce(f"{verb}_port:{attr}:{name}", target)


def _guard_device(call: Call, before: Row, values: Row) -> None:
    """Nobody plugs a port into a router that is not theirs by writing its id into ``device_id``."""
    after = {**before, **values}
    if before.get("device_owner") in (*ROUTER_OWNERS, CENTRAL, DHCP, FLOATING) and before.get("device_id"):
        for name in ("device_id", "device_owner"):
            if after[name] != before[name] and look.row(call.tx, Router, before["device_id"]) is not None:
                text = f"Port {before['id']} belongs to router {before['device_id']}; remove the router interface."
                raise conflict(text, "PortInUse")
    if after.get("device_owner") not in ROUTER_OWNERS or not after.get("device_id"):
        return
    if before and all(after[n] == before[n] for n in ("device_id", "device_owner")):
        return
    router = look.row(call.tx, Router, after["device_id"])
    if router is not None:
        if router["project_id"] != call.creds.project_id and not call.may("update_router", look.wire(Router, router)):
            text = f"device_id: {after['device_id']} belongs to another project."
            raise conflict(text, "DeviceIDNotOwnedByTenant")
        text = "A port becomes part of a router by the router's add_router_interface or external_gateway_info."
        raise bad_request(text, "BadRequest")


def created(call: Call, row: Row) -> None:
    ports.made(call.cloud, call.tx, row)
    row["trunk_details"] = None  # nothing can have made it part of one yet


def prepare_update(call: Call, before: Row, values: Row) -> None:
    look.check_revision(call, before)
    _parts(call, "update", values, look.wire(Port, {**before, **values}))
    _guard_device(call, before, values)
    qos_use.check(call, values, before)
    if "fixed_ips" in values:
        _check_addresses(call, before, values["fixed_ips"] or [])
    if "host_id" in values and (
        before["device_owner"] in INTERFACES or trunks_links.of_subport(call.tx, before["id"]) is not None
    ):
        del values["host_id"]  # a router's ports live where the router does, subports where their parent does
    ports.prepare_change(call.cloud, call.tx, before, values, call.creds)


def _check_addresses(call: Call, before: Row, asked: list[Row]) -> None:
    if before["device_owner"] in (GATEWAY, FLOATING) and not call.may("context_is_admin"):
        raise bad_request("The addresses of this port follow from its router or floating IP.", "BadRequest")
    have = look.addresses_of(call.tx, before["id"])
    if before["device_owner"] in INTERFACES:
        kept = [ip for ip in have if any(ip["subnet_id"] == one.get("subnet_id") for one in asked)]
        same = all(one.get("ip_address") in (None, *(ip["ip_address"] for ip in have)) for one in asked)
        if not same or len(kept) != len(have):
            text = f"Bad ports request: fixed_ips: port {before['id']} is a router's interface and keeps its addresses."
            raise bad_request(text, "BadRequest")
        return
    if not all(ip in [{**ip, **one} for one in asked] for ip in have):
        ports.check_move(call.tx, before, asked)


def updated(call: Call, before: Row, after: Row) -> None:
    ports.changed(call.cloud, call.tx, before, after)


def deleting(call: Call, row: Row) -> None:
    """What belongs to a router or floating IP goes with that, not alone."""
    owner, device = row["device_owner"], row["device_id"]
    held = (owner in (*ROUTER_OWNERS, CENTRAL) and look.row(call.tx, Router, device)) or (
        owner == FLOATING and look.row(call.tx, FloatingIP, device)
    )
    if held:
        text = f"Port {row['id']} goes with its device (device_owner {owner}): delete or detach that."
        raise conflict(text, "ServicePortInUse")
    if owner.startswith("compute:") and not (call.may("context_is_admin") or call.may("service_api")):
        text = f"Port {row['id']} is in use by server {device}: detach it from the server (os-interface) instead."
        raise forbidden(text)
    trunks_links.guard(call.tx, row["id"])
    local_ips.guard(call.tx, row["id"])
    ports.let_go(call.tx, row)


def deleted(call: Call, row: Row) -> None:
    ports.gone(call.tx, row)
    if row["device_owner"].startswith("compute:") and row["bound_host"]:
        call.tx.ask("guest", row["device_id"], row["bound_host"])  # its NIC goes with the port
    if row["device_owner"] == DHCP:
        call.tx.ask("dhcp", row["network_id"])


def present(call: Call, rows: list[Row]) -> None:
    """Addresses, groups, names and binding details of a page of ports."""
    missing = [r for r in rows if "fixed_ips" not in r or "security_groups" not in r]
    by_id: dict[str, Row] = {}
    for row in missing:
        row["fixed_ips"], row["security_groups"] = [], []
        by_id[row["id"]] = row
    ids = list(by_id)
    for i in range(0, len(ids), _CHUNK):
        chunk = {"ports": ids[i : i + _CHUNK]}
        for port, subnet, ip in call.tx.rows(_IPS, chunk):
            by_id[port]["fixed_ips"].append({"subnet_id": subnet, "ip_address": ip})
        for port, group in call.tx.rows(_GROUPS, chunk):
            by_id[port]["security_groups"].append(group)
    qos_use.present_ports(call.tx, rows, call.memo)
    trunks_links.present_ports(call.tx, rows)
    qos_guarantees.present_ports(call.tx, rows)
    domains: dict[str, str] = {}
    networks = []
    for id in {r["network_id"] for r in rows}:
        if (net := call.memo.get(id)) is None:
            networks.append(id)
        elif net["dns_domain"]:  # a port just made: its network has been read
            domains[id] = net["dns_domain"]
    for i in range(0, len(networks), _CHUNK):
        domains.update(dict(call.tx.rows(_DOMAINS, {"networks": networks[i : i + _CHUNK]})))
    domain = call.cloud.settings.dns_domain
    for row in rows:
        row["dns_assignment"] = [
            _named(ip["ip_address"], row["dns_name"], row["dns_domain"] or domains.get(row["network_id"], domain))
            for ip in row["fixed_ips"]
        ]
        row["vif_details"] = ports.details(row["vif_type"])
        if row["device_owner"] == DVR_INTERFACE:
            row["vif_type"] = "distributed"  # it is on no host because it is on all of them
        if row["trusted"] is not None:
            row["profile"] = {**(row["profile"] or {}), "trusted": row["trusted"]}


def _named(address: str, name: str, domain: str) -> Row:
    host = name or "host-" + address.replace(".", "-").replace(":", "-")
    return {"ip_address": address, "hostname": host, "fqdn": f"{host}.{domain.rstrip('.')}."}


def trim(verb: str, row: Row, view: Row) -> None:
    """Only parents of trunks have ``trunk_details``."""
    if row["trunk_details"] is None:
        view.pop("trunk_details", None)


def scope(call: Call, q: ListQuery) -> list[Any]:
    """The filters of child tables: fixed_ips, security_groups, tags."""
    out = paging.adapt(call, Port, q)
    for text in q.extra.get("fixed_ips", []):
        name, sep, value = text.partition("=")
        column = {"ip_address": _A.ip_address, "subnet_id": _A.subnet_id, "ip_address_substr": _A.ip_address}.get(name)
        if not sep or column is None:
            text = (
                f"Invalid input for filter fixed_ips: '{text}' must be ip_address=, subnet_id= or ip_address_substr=."
            )
            raise bad_request(text, "InvalidInput")
        clause = column.contains(value, autoescape=True) if name.endswith("substr") else column == value
        out.append(_P.id.in_(sa.select(_A.port_id).where(clause)))
    if chosen := q.extra.get("security_groups", []):
        out.append(_P.id.in_(sa.select(_M.port_id).where(_M.security_group_id.in_(chosen))))
    return out


HOOKS = Hooks(
    prepare=prepare,
    created=created,
    prepare_update=prepare_update,
    updated=updated,
    deleting=deleting,
    deleted=deleted,
    target=target,
    present=present,
    trim=trim,
    scope=scope,
    own_filters=("fixed_ips", "security_groups", *tags.FILTERS),
)
