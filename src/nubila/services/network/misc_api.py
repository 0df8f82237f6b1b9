"""Versions, quotas, availability zones, address usage, service providers."""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Mapping
from typing import Any

import sqlalchemy as sa

from nubila.core import hosts, quota, types
from nubila.core.call import Call, Route
from nubila.core.db import Reader
from nubila.core.faults import Fault, bad_request
from nubila.services.network import addresses, flavors
from nubila.services.network.kinds import Network, Subnet
from nubila.services.network.tables import IP_ALLOCATION

Row = dict[str, Any]
QUOTAS = {
    "network": 100, "subnet": 100, "subnetpool": -1, "port": 500, "router": 10, "floatingip": 50,
    "security_group": 10, "security_group_rule": 100,
}  # fmt: skip
"""Limits a project has unless it has its own; -1 = unlimited."""
RESOURCES = {
    "networks": "network", "subnets": "subnet", "ports": "port", "routers": "router", "floatingips": "floatingip",
    "security-groups": "security_group", "security-group-rules": "security_group_rule", "subnetpools": "subnetpool",
    "address-scopes": "address_scope", "agents": "agent", "quotas": "quota", "extensions": "extension",
    "availability_zones": "availability_zone", "network-ip-availabilities": "network_ip_availability",
    "service-providers": "service_provider",
}  # fmt: skip
MAX_LIMIT = 2**31 - 1


# --- versions -------------------------------------------------------------------------------------------------------


def versions(call: Call) -> Row:
    link = {"rel": "self", "href": f"{call.base}/v2.0/"}
    return {"versions": [{"id": "v2.0", "status": "CURRENT", "links": [link]}]}


def listing(more: Mapping[str, str]) -> Callable[[Call], Row]:
    """The answer to GET /v2.0: our resources and those of the features (collection in the URL -> name of one)."""

    def resources(call: Call) -> Row:
        return {
            "resources": [
                {"name": item, "collection": items.rpartition("/")[2].replace("-", "_"),
                 "links": [{"rel": "self", "href": f"{call.base}/v2.0/{items}"}]}
                for items, item in {**RESOURCES, **more}.items()
            ]
        }  # fmt: skip

    return resources


# --- quotas ---------------------------------------------------------------------------------------------------------


def _target(call: Call) -> str:
    project = call.params["project_id"]
    if not 0 < len(project) <= 64:
        raise bad_request("A project id has at most 64 characters.", "HTTPBadRequest")
    return project


def _allow(call: Call, rule: str, project: str) -> None:
    call.enforce(rule, {"project_id": project, "tenant_id": project})


def quotas(call: Call) -> Row:
    """The projects with limits of their own, for administrators."""
    if not call.may("context_is_admin"):
        return {"quotas": []}
    table = quota.quota_limit
    names = list(call.service.quotas)
    ids = call.tx.rows(sa.select(table.c.project_id).where(table.c.resource.in_(names)).distinct())
    return {"quotas": [{**_own(call, id), "project_id": id, "tenant_id": id} for (id,) in sorted(ids)]}


def _own(call: Call, project: str) -> dict[str, int]:
    found = quota.limits(call.tx, project, call.service.quotas)
    return {name: found[name] for name in call.service.quotas}


def show_quota(call: Call) -> Row:
    project = _target(call)
    if call.creds.project_id != project:
        _allow(call, "get_quota", project)
    return {"quota": _own(call, project)}


def default_quota(call: Call) -> Row:
    project = _target(call)
    if call.creds.project_id != project:
        _allow(call, "get_quota", project)
    return {"quota": dict(call.service.quotas)}


def quota_details(call: Call) -> Row:
    project = _target(call)
    if call.creds.project_id != project:
        _allow(call, "get_quota", project)
    used = quota.usage(call.tx, project)
    limits = _own(call, project)
    return {"quota": {n: {"limit": limits[n], "used": used.get(n, 0), "reserved": 0} for n in call.service.quotas}}


def update_quota(call: Call) -> Row:
    project = _target(call)
    _allow(call, "update_quota", project)
    body = call.body.get("quota") if isinstance(call.body, dict) else None
    if not isinstance(body, dict) or not body:
        raise bad_request("The body must be an object with the key 'quota'.", "HTTPBadRequest")
    body.pop("check_limit", None)  # what it asked for is the rule now
    forced = body.pop("force", None) is True
    used = {} if forced else quota.usage(call.tx, project)
    for name, value in body.items():
        if name not in call.service.quotas:
            raise bad_request(f"Unrecognized attribute(s) '{name}' in quota.", "HTTPBadRequest")
        try:
            number = int(value) if not isinstance(value, bool | float) else None
        except (TypeError, ValueError):
            number = None
        if number is None or not -1 <= number <= MAX_LIMIT:
            text = f"Invalid input for {name}: '{value}' must be a whole number from -1 to {MAX_LIMIT}."
            raise bad_request(text, "InvalidInput" if number is None else "HTTPBadRequest")
        if not forced and 0 <= number < used.get(name, 0):
            text = f"{name}: {number} is less than the {used[name]} in use; give a higher number or force."
            raise bad_request(text, "HTTPBadRequest")
        quota.set_limit(call.tx, project, name, number)
    return {"quota": _own(call, project)}


def whose(key: str) -> Callable[[Call], Row]:
    """GET /v2.0/quotas/tenant and /project: which project the token is for."""

    def handler(call: Call) -> Row:
        if not call.creds.project_id:
            raise bad_request("The token has no project: log in to one.", "QuotaMissingTenant")
        return {key: {f"{key}_id": call.creds.project_id}}

    return handler


def delete_quota(call: Call) -> None:
    project = _target(call)
    _allow(call, "delete_quota", project)
    table = quota.quota_limit
    gone = call.tx.execute(
        sa.delete(table).where(table.c.project_id == project, table.c.resource.in_(list(call.service.quotas)))
    )  # fmt: skip
    if not gone:
        raise Fault(404, f"Project {project} has no quotas of its own.", "TenantQuotaNotFound")


# --- zones, providers -----------------------------------------------------------------------------------------------


def zones(call: Call) -> Row:
    call.enforce("get_availability_zone")
    state: dict[str, bool] = {}
    for host in hosts.every(call.tx):
        if "network" in host["roles"]:
            state[host["zone"]] = state.get(host["zone"], False) or (host["alive"] and host["state"] == "enabled")
    found = [
        {"name": name, "resource": kind, "state": "available" if up else "unavailable"}
        for name, up in sorted(state.items())
        for kind in ("network", "router")
    ]
    for key, value in call.query:
        if key in ("name", "resource", "state"):
            found = [z for z in found if z[key] == value]
    return {"availability_zones": found}


def providers(call: Call) -> Row:
    call.enforce("get_service_provider")
    return {"service_providers": flavors.providers()}


# --- address usage --------------------------------------------------------------------------------------------------

_N, _S, _A = Network.table.c, Subnet.table.c, IP_ALLOCATION.c
_NETWORKS = sa.select(_N.id, _N.name, _N.project_id).order_by(_N.id)
_SUBNETS = sa.select(_S.id, _S.network_id, _S.name, _S.cidr, _S.ip_version, _S.allocation_pools, _S.gateway_ip)
_USED = sa.select(_A.subnet_id, sa.func.count()).group_by(_A.subnet_id)
_WITHIN = sa.select(sa.func.count()).where(
    _A.subnet_id == sa.bindparam("subnet"), _A.ip_key.between(sa.bindparam("lo"), sa.bindparam("hi"))
)
_DETAILS = ("total_ips_in_subnet", "total_ips_in_allocation_pool", "used_ips_in_subnet",
            "used_ips_in_allocation_pool")  # fmt: skip
_FILTERS = ("network_id", "network_name", "project_id", "tenant_id", "ip_version")


def _availability(reader: Reader, networks: list[Row], version: int | None) -> list[Row]:
    used = dict(reader.rows(_USED))
    per: dict[str, list[Row]] = {}
    for s in reader.all(_SUBNETS):
        if version is None or s["ip_version"] == version:
            per.setdefault(s["network_id"], []).append(s)
    out = []
    for net in networks:
        subnets = [
            {"subnet_id": s["id"], "subnet_name": s["name"], "cidr": s["cidr"], "ip_version": s["ip_version"],
             "used_ips": used.get(s["id"], 0), "total_ips": _total(s),
             "ip_availability_details": _details(reader, s, used.get(s["id"], 0))}
            for s in per.get(net["id"], [])
        ]  # fmt: skip
        out.append({
            "network_id": net["id"], "network_name": net["name"], "project_id": net["project_id"],
            "tenant_id": net["project_id"], "subnet_ip_availability": subnets,
            "used_ips": sum(s["used_ips"] for s in subnets), "total_ips": sum(s["total_ips"] for s in subnets),
            "ip_availability_details": {
                name: sum(s["ip_availability_details"][name] for s in subnets) for name in _DETAILS
            },
        })  # fmt: skip
    return out


def _details(reader: Reader, subnet: Row, used: int) -> Row:
    """Addresses of the subnet and of its pools, and how many of each are in use."""
    pools = subnet["allocation_pools"] or []
    within = 0
    for pool in pools if used else ():
        ends = {"lo": addresses.key(pool["start"]), "hi": addresses.key(pool["end"])}
        within += reader.scalar(_WITHIN, {"subnet": subnet["id"], **ends}) or 0
    return dict(zip(_DETAILS, (_hosts(subnet), addresses.count(pools), used, within), strict=True))


def _total(subnet: Row) -> int:
    """Addresses that can be had: the pools'; a subnet without pools counts its hosts."""
    pools = subnet["allocation_pools"]
    return addresses.count(pools) if pools else _hosts(subnet)


def _hosts(subnet: Row) -> int:
    net = ipaddress.ip_network(subnet["cidr"])
    return max(net.num_addresses - (2 if net.version == 4 and net.prefixlen < 31 else 0), 0)


def availabilities(call: Call) -> Row:
    if not call.may("get_network_ip_availability"):
        return {"network_ip_availabilities": []}
    networks = call.tx.all(_NETWORKS)
    version: int | None = None
    for key, value in call.query:
        if key in ("fields", "limit", "marker"):
            continue
        if key not in _FILTERS:
            text = f"IP availabilities can not be filtered by '{key}'."
            raise bad_request(text, "InvalidInput")
        if key == "ip_version":
            if value not in ("4", "6"):
                raise bad_request("Invalid input for filter 'ip_version': it is 4 or 6.", "InvalidInput")
            version = int(value)
            continue
        column = {"network_id": "id", "network_name": "name", "tenant_id": "project_id"}.get(key, key)
        wanted = {v for k, v in call.query if k == key}
        networks = [n for n in networks if n[column] in wanted]
    return {"network_ip_availabilities": _availability(call.tx, networks, version)}


def availability(call: Call) -> Row:
    id = call.params["id"]
    found = [n for n in call.tx.all(_NETWORKS) if n["id"] == id]
    allowed = call.may("get_network_ip_availability")
    if not found or not allowed or not types.is_uuid(id):
        raise Fault(404, f"Network {id} could not be found.", "NetworkNotFound" if allowed else "HTTPNotFound")
    return {"network_ip_availability": _availability(call.tx, found, None)[0]}


def _route(method: str, path: str, handler: Any, doc: str, *, status: int = 200, auth: bool = True) -> Route:
    tx = "" if not auth else "read" if method == "GET" else "write"
    return Route(method=method, path=path, handler=handler, doc=doc, status=status, auth=auth, tx=tx)


_Q = "/v2.0/quotas"


def routes(more: Mapping[str, str]) -> list[Route]:
    """The routes of this module; ``more`` are the features' resources."""
    return [_route("GET", "/v2.0", listing(more), "List the resources of version 2.0."), *_ROUTES]


_ROUTES = [
    _route("GET", "/", versions, "List API versions.", auth=False),
    _route("GET", _Q, quotas, "List the projects with limits of their own."),
    _route("GET", f"{_Q}/tenant", whose("tenant"), "Show the project the token is for."),
    _route("GET", f"{_Q}/project", whose("project"), "Show the project the token is for."),
    _route("GET", f"{_Q}/{{project_id}}", show_quota, "Show a project's limits."),
    _route("PUT", f"{_Q}/{{project_id}}", update_quota, "Set a project's limits."),
    _route("DELETE", f"{_Q}/{{project_id}}", delete_quota, "Let the defaults apply to a project again.", status=204),
    _route("GET", f"{_Q}/{{project_id}}/default", default_quota, "Show the default limits."),
    _route("GET", f"{_Q}/{{project_id}}/details.json", quota_details, "Show limits and usage."),
    _route("GET", f"{_Q}/{{project_id}}/details", quota_details, "Show limits and usage."),
    _route("GET", "/v2.0/availability_zones", zones, "List availability zones."),
    _route("GET", "/v2.0/service-providers", providers, "List service providers."),
    _route("GET", "/v2.0/network-ip-availabilities", availabilities, "List how many addresses are used."),
    _route("GET", "/v2.0/network-ip-availabilities/{id}", availability, "Show how many addresses a network uses."),
]
