"""Quotas and limits as the API shows them: limits, os-quota-sets, os-quota-class-sets, os-simple-tenant-usage."""

from __future__ import annotations

import functools
import time
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlencode

import sqlalchemy as sa

from nubila.core import clock
from nubila.core.call import Call, Reply, Route, takes
from nubila.core.faults import Fault, bad_request
from nubila.core.gates import Version
from nubila.core.sql import upsert
from nubila.core.types import boolean
from nubila.services.compute import quotas, wire
from nubila.services.compute.kinds import KEYPAIR, QUOTA_CLASS, SERVER
from nubila.services.compute.wire import Row, obj
from nubila.services.identity import lookup as identity
from nubila.services.network.kinds import FloatingIP
from nubila.services.network.kinds_port import SecurityGroup

FILES = ("injected_files", "injected_file_content_bytes", "injected_file_path_bytes")
_KEYS = sa.select(sa.func.count()).where(KEYPAIR.c.user_id == sa.bindparam("user"))
_FLOATING = sa.select(sa.func.count()).where(FloatingIP.table.c.project_id == sa.bindparam("project"))
_GROUPS = sa.select(sa.func.count()).where(SecurityGroup.table.c.project_id == sa.bindparam("project"))


def _names(version: Version) -> list[str]:
    """Resources a quota set shows in this version."""
    out = list(quotas.DEFAULTS)
    if version < (2, 36):
        out += list(quotas.NETWORK)
    return [n for n in out if version < (2, 57) or n not in FILES]


def _usage(call: Call, project: str) -> Row:
    used: Row = {name: 0 for name in (*quotas.DEFAULTS, *quotas.NETWORK)}
    used |= quotas.used(call.tx, project)
    if call.version < (2, 36):
        used["floating_ips"] = int(call.tx.scalar(_FLOATING, {"project": project}) or 0)
        used["security_groups"] = int(call.tx.scalar(_GROUPS, {"project": project}) or 0)
    return used


# --- limits -----------------------------------------------------------------------------------------------------------

_ABSOLUTE = {
    "maxTotalInstances": "instances", "maxTotalCores": "cores", "maxTotalRAMSize": "ram",
    "maxTotalKeypairs": "key_pairs",
    "maxServerMeta": "metadata_items", "maxServerGroups": "server_groups",
    "maxServerGroupMembers": "server_group_members",
}  # fmt: skip
_USED = {
    "totalInstancesUsed": "instances", "totalCoresUsed": "cores", "totalRAMUsed": "ram",
    "totalServerGroupsUsed": "server_groups",
}  # fmt: skip


def limits(call: Call) -> Row:
    """Show the project's limits and what it uses of them."""
    wire.known_query(call, ("reserved", "tenant_id"))
    project = call.creds.project_id or ""
    other = call.arg("tenant_id")
    if other is not None:
        call.enforce("os_compute_api:limits:other_project", {})
        project = other
    most = quotas.limits(call.tx, project)
    used = _usage(call, project)
    out = {name: most[key] for name, key in _ABSOLUTE.items()}
    out |= {name: used[key] for name, key in _USED.items()}
    if call.version < (2, 57):
        out |= {"maxPersonality": most["injected_files"], "maxPersonalitySize": most["injected_file_content_bytes"]}
    if call.version < (2, 39):
        out["maxImageMeta"] = most["metadata_items"]
    if call.version < (2, 36):
        out |= {
            "maxTotalFloatingIps": most["floating_ips"], "maxSecurityGroups": most["security_groups"],
            "maxSecurityGroupRules": most["security_group_rules"], "totalFloatingIpsUsed": used["floating_ips"],
            "totalSecurityGroupsUsed": used["security_groups"],
        }  # fmt: skip
    return {"limits": {"rate": [], "absolute": out}}


# --- quota sets -------------------------------------------------------------------------------------------------------


def _project(call: Call) -> str:
    """The project in the path. Raises 400 when there is none."""
    id = call.params["id"]
    if identity.project(call.tx, id) is None:
        raise bad_request(f"There is no project {id}.")
    return id


def _set(call: Call, values: Mapping[str, Any], id: str | None) -> Row:
    out: Row = {} if id is None else {"id": id}
    out |= {name: values[name] for name in _names(call.version)}
    return {"quota_set": out}


def show_quotas(call: Call) -> Row:
    """Show a project's quotas."""
    wire.known_query(call, ("user_id",))
    call.enforce("os_compute_api:os-quota-sets:show", {"project_id": call.params["id"]})
    project = _project(call)
    return _set(call, quotas.limits(call.tx, project), project)


def quota_detail(call: Call) -> Row:
    """Show a project's quotas with what is in use."""
    wire.known_query(call, ("user_id",))
    call.enforce("os_compute_api:os-quota-sets:detail", {"project_id": call.params["id"]})
    project = _project(call)
    most, used = quotas.limits(call.tx, project), _usage(call, project)
    return _set(call, {n: {"limit": most[n], "in_use": used[n], "reserved": 0} for n in most}, project)


def default_quotas(call: Call) -> Row:
    """Show the quotas of projects that have none of their own."""
    call.enforce("os_compute_api:os-quota-sets:defaults", {"project_id": call.params["id"]})
    return _set(call, quotas.defaults(call.tx), _project(call))


_LIMIT = {"anyOf": [
    {"type": "integer", "minimum": -1, "maximum": 2**31 - 1}, {"type": "string", "pattern": "^-?[0-9]{1,10}$"},
    {"type": "null"},
]}  # fmt: skip


@functools.cache
def _update_schema(version: Version) -> dict[str, Any]:
    inner: Row = {name: _LIMIT for name in _names(version)}
    inner["force"] = wire.BOOL
    return obj({"quota_set": obj(inner)}, ["quota_set"])


@takes(_update_schema)
def update_quotas(call: Call) -> Row:
    """Set a project's quotas."""
    wire.known_query(call, ("user_id",))
    call.enforce("os_compute_api:os-quota-sets:update", {"project_id": call.params["id"]})
    given = dict(wire.body(call, _update_schema)["quota_set"])
    project = _project(call)
    force = boolean(given.pop("force", False))
    used = quotas.used(call.tx, project)
    checked = {n: wire.number(v, n, -1) for n, v in given.items() if v is not None and v != ""}
    for name, limit in checked.items():
        if not force and 0 <= limit < used.get(name, 0):
            raise bad_request(f"{name}: {limit} is less than the {used[name]} in use; give a higher number or force.")
    for name, limit in checked.items():
        quotas.set_limit(call.tx, project, name, limit)
    return _set(call, quotas.limits(call.tx, project), None)


def reset_quotas(call: Call) -> Reply:
    """Give a project the default quotas again."""
    wire.known_query(call, ("user_id",))
    call.enforce("os_compute_api:os-quota-sets:delete", {"project_id": call.params["id"]})
    quotas.reset(call.tx, call.params["id"])
    return Reply(None, 202)


# --- quota classes ----------------------------------------------------------------------------------------------------


def _class_names(version: Version) -> list[str]:
    out = list(quotas.DEFAULTS) + ([] if version >= (2, 50) else list(quotas.NETWORK))
    if version < (2, 50):
        out = [n for n in out if n not in ("server_groups", "server_group_members")]
    return [n for n in out if version < (2, 57) or n not in FILES]


def _class(call: Call, id: str | None) -> Row:
    values = quotas.defaults(call.tx)
    out: Row = {} if id is None else {"id": id}
    return {"quota_class_set": out | {n: values[n] for n in _class_names(call.version)}}


def show_class(call: Call) -> Row:
    """Show a class of default quotas; "default" is the one in force."""
    return _class(call, call.params["id"])


@functools.cache
def _class_schema(version: Version) -> dict[str, Any]:
    names = [*_class_names(version), "server_groups", "server_group_members"]
    return obj({"quota_class_set": obj({n: _LIMIT for n in names})}, ["quota_class_set"])


@takes(_class_schema)
def update_class(call: Call) -> Row:
    """Change the default quotas."""
    given = wire.body(call, _class_schema)["quota_class_set"]
    if call.params["id"] != "default":
        raise bad_request("Only the quota class default can be changed: it is the one in force.")
    for name, value in given.items():
        if value is None:
            continue
        limit = wire.number(value, name, -1)
        call.tx.execute(upsert(call.tx.dialect, QUOTA_CLASS, {"resource": name, "limit": limit}, {"limit": limit}))
    return _class(call, None)


# --- usage ------------------------------------------------------------------------------------------------------------


def _period(call: Call) -> tuple[float, float, bool]:
    now = time.time()
    start_text, end_text = call.arg("start"), call.arg("end")
    start = clock.seconds(wire.parse_time(start_text, "start")) if start_text else now
    end = clock.seconds(wire.parse_time(end_text, "end")) if end_text else now
    if start >= end:
        raise bad_request("start must not be later than end.")
    return start, min(end, now), call.arg("detailed") == "1"


def _usages(call: Call, project: str | None, detailed: bool, *, paged: bool) -> tuple[list[Row], list[Row], int]:
    start, end, _ = _period(call)
    c = SERVER.c
    statement = sa.select(SERVER).where(
        c.launched_at.is_not(None), c.launched_at < clock.at(end),
        sa.or_(c.terminated_at.is_(None), c.terminated_at > clock.at(start)),
    )  # fmt: skip
    if project is not None:
        statement = statement.where(c.project_id == project)
    limit, marker = wire.limit_and_marker(call) if paged else (wire.MAX_LIMIT, None)
    if marker is not None:
        if call.tx.scalar(sa.select(c.id).where(c.id == marker)) is None:
            raise bad_request(f"marker [{marker}] not found")
        statement = statement.where(c.id > marker)
    found = call.tx.all(statement.order_by(c.id).limit(limit))
    sums: dict[str, Row] = {}
    for row in found:
        one = _usage_of(row, start, end)
        total = sums.setdefault(row["project_id"], {
            "tenant_id": row["project_id"], "total_local_gb_usage": 0.0, "total_vcpus_usage": 0.0,
            "total_memory_mb_usage": 0.0, "total_hours": 0.0, "start": clock.at(start), "stop": clock.at(end),
            **({"server_usages": []} if detailed else {}),
        })  # fmt: skip
        total["total_hours"] += one["hours"]
        for name, key in (("local_gb", "local_gb"), ("vcpus", "vcpus"), ("memory_mb", "memory_mb")):
            total[f"total_{name}_usage"] += one[key] * one["hours"]
        if detailed:
            total["server_usages"].append(one)
    return list(sums.values()), found, limit


def _usage_of(row: Row, start: float, end: float) -> Row:
    begun = clock.seconds(row["launched_at"])
    ended = clock.seconds(row["terminated_at"]) if row["terminated_at"] else None
    hours = max(0.0, min(end, ended or end) - max(start, begun)) / 3600.0
    return {
        "instance_id": row["id"], "name": row["name"], "tenant_id": row["project_id"], "flavor": row["flavor"]["name"],
        "hours": hours, "memory_mb": row["flavor"]["ram"], "vcpus": row["flavor"]["vcpus"],
        "local_gb": row["flavor"]["disk"] + row["flavor"]["ephemeral"], "started_at": row["launched_at"],
        "ended_at": row["terminated_at"], "state": "terminated" if ended else row["vm_state"],
        "uptime": int((ended or time.time()) - begun),
    }  # fmt: skip


_USAGE_QUERY = ("start", "end", "detailed", "limit", "marker")


def list_usage(call: Call) -> Row:
    """Sum up what every project used in a period."""
    if call.path.endswith("/"):
        raise Fault(404, "The project's id is missing in the path.")
    wire.known_query(call, _USAGE_QUERY)
    paged = call.version >= (2, 40)
    sums, found, limit = _usages(call, None, _period(call)[2], paged=paged)
    return _with_links(call, {"tenant_usages": sums}, "tenant_usages_links", "", found, limit, paged)


def show_usage(call: Call) -> Row:
    """Sum up what one project used in a period."""
    wire.known_query(call, _USAGE_QUERY)
    project = call.params["id"]
    call.enforce("os_compute_api:os-simple-tenant-usage:show", {"project_id": project})
    paged = call.version >= (2, 40)
    sums, found, limit = _usages(call, project, True, paged=paged)
    body: Row = {"tenant_usage": sums[0] if sums else {}}
    return _with_links(call, body, "tenant_usage_links", f"/{project}", found, limit, paged)


def _with_links(call: Call, body: Row, key: str, path: str, found: list[Row], limit: int, paged: bool) -> Row:
    if paged and len(found) == limit:
        query = [(k, v) for k, v in call.query if k != "marker"] + [("marker", found[-1]["id"])]
        href = f"{call.base}/v2.1/os-simple-tenant-usage{path}?{urlencode(query)}"
        body[key] = [{"rel": "next", "href": href}]
    return body


def _route(method: str, path: str, handler: Any, rule: str = "") -> Route:
    tx = "read" if method == "GET" else "write"
    return Route(
        method=method, path=f"/v2.1{path}", handler=handler, doc=handler.__doc__ or "", tx=tx,
        rule=f"os_compute_api:{rule}" if rule else "",
    )  # fmt: skip


ROUTES = (
    _route("GET", "/limits", limits, "limits"),
    _route("GET", "/os-quota-sets/{id}", show_quotas),
    _route("GET", "/os-quota-sets/{id}/detail", quota_detail),
    _route("GET", "/os-quota-sets/{id}/defaults", default_quotas),
    _route("PUT", "/os-quota-sets/{id}", update_quotas),
    _route("DELETE", "/os-quota-sets/{id}", reset_quotas),
    _route("GET", "/os-quota-class-sets/{id}", show_class, "os-quota-class-sets:show"),
    _route("PUT", "/os-quota-class-sets/{id}", update_class, "os-quota-class-sets:update"),
    _route("GET", "/os-simple-tenant-usage", list_usage, "os-simple-tenant-usage:list"),
    _route("GET", "/os-simple-tenant-usage/{id}", show_usage),
)
