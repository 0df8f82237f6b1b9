"""Security groups under Compute's old names (before 2.36): Network's own, made and changed by its own code."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa

from nubila.core import checks, clock, quota
from nubila.core.call import Call, Reply, Route, takes
from nubila.core.declare import Resource
from nubila.core.faults import Fault, bad_request, over_quota
from nubila.core.gates import ALWAYS, until
from nubila.core.service import Hooks
from nubila.core.types import is_uuid
from nubila.services.compute import secgroups, wire
from nubila.services.compute.wire import Row, is_admin, obj
from nubila.services.network import group_api
from nubila.services.network.kinds_port import SecurityGroup, SecurityGroupRule

RULE = "os_compute_api:os-security-groups"
_TEXT = {"type": "string", "minLength": 1, "maxLength": 255}
_NOTE = {"type": "string", "maxLength": 255}
GROUP = obj({"security_group": obj({"name": _TEXT, "description": _NOTE}, ["name", "description"])}, ["security_group"])
_PORT = {"anyOf": [{"type": "integer"}, {"type": "string", "pattern": "^-?[0-9]{0,5}$"}, {"type": "null"}]}
RULE_BODY = obj(
    {
        "security_group_rule": obj(
            {
                "parent_group_id": {"type": "string"}, "group_id": {"type": ["string", "null"]},
                "ip_protocol": {"type": ["string", "null"]}, "from_port": _PORT, "to_port": _PORT,
                "cidr": {"type": ["string", "null"]},
            },
            ["parent_group_id"],
        )
    },
    ["security_group_rule"],
)  # fmt: skip


def _find(call: Call, cls: type[Resource], id: str, what: str) -> Row:
    if not is_uuid(id):
        raise bad_request(f"Security group id should be uuid, not {id}.")
    row = call.tx.one(sa.select(cls.table).where(cls.table.c.id == id))
    if row is None or (row["project_id"] != call.creds.project_id and not is_admin(call)):
        raise Fault(404, f"{what} {id} not found.")
    return dict(row)


def _make(call: Call, cls: type[Resource], hooks: Hooks, values: Row) -> Row:
    """Insert a row the way Network's API does: defaults, its own checks, quota, follow-ups."""
    values["project_id"] = wire.project_of(call)
    checks.defaults(cls, values, ALWAYS)
    values["created_at"] = values["updated_at"] = clock.now()
    values["revision_number"] = 0
    if hooks.prepare:
        try:
            hooks.prepare(call, values)
        except Fault as e:
            raise Fault(400 if e.status == 409 else e.status, e.message) from None
    try:
        quota.claim(call.tx, values["project_id"], {cls.quota: 1}, call.cloud.service("network").quotas)
    except quota.OverQuota as e:
        raise over_quota(f"Quota exceeded for {e.resource}: {e.used} of {e.limit} in use.", status=403) from None
    call.tx.insert(cls.table, {c.name: values.get(c.name) for c in cls.table.columns})
    if hooks.created:
        hooks.created(call, values)
    return values


def _drop(call: Call, cls: type[Resource], hooks: Hooks, row: Row) -> None:
    if hooks.deleting:
        try:
            hooks.deleting(call, row)
        except Fault as e:
            raise Fault(400 if e.status == 409 else e.status, e.message) from None
    call.tx.execute(sa.delete(cls.table).where(cls.table.c.id == row["id"]))
    quota.release(call.tx, row["project_id"], {cls.quota: 1})
    if hooks.deleted:
        hooks.deleted(call, row)


def _allowed(call: Call, verb: str) -> None:
    call.enforce(f"{RULE}:{verb}", wire.mine(call))


@takes(GROUP)
def create(call: Call) -> Row:
    """Create a security group."""
    _allowed(call, "create")
    given = wire.body(call, GROUP)["security_group"]
    row = _make(call, SecurityGroup, group_api.HOOKS, {"name": given["name"], "description": given["description"]})
    return {"security_group": secgroups.shown(call.tx, [row])[0]}


def show(call: Call) -> Row:
    """Show a security group."""
    _allowed(call, "show")
    row = _find(call, SecurityGroup, call.params["id"], "Security group")
    return {"security_group": secgroups.shown(call.tx, [row])[0]}


@takes(GROUP)
def update(call: Call) -> Row:
    """Change a security group's name and description."""
    _allowed(call, "update")
    given = wire.body(call, GROUP)["security_group"]
    row = _find(call, SecurityGroup, call.params["id"], "Security group")
    values: Row = {"name": given["name"], "description": given["description"]}
    try:
        group_api.prepare_update(call, row, values)
    except Fault as e:
        raise Fault(400 if e.status == 409 else e.status, e.message) from None
    values |= {"updated_at": clock.now(), "revision_number": (row["revision_number"] or 0) + 1}
    call.tx.execute(sa.update(SecurityGroup.table).where(SecurityGroup.table.c.id == row["id"]).values(**values))
    return {"security_group": secgroups.shown(call.tx, [{**row, **values}])[0]}


def delete(call: Call) -> Reply:
    """Delete a security group that no port is in."""
    _allowed(call, "delete")
    row = _find(call, SecurityGroup, call.params["id"], "Security group")
    _drop(call, SecurityGroup, group_api.HOOKS, row)
    return Reply(None, 202)


def _port(value: Any) -> int | None:
    return None if value is None or value == "" or int(value) == -1 else int(value)


@takes(RULE_BODY)
def add_rule(call: Call) -> Row:
    """Let one more kind of packet in."""
    _allowed(call, "rule:create")
    given = wire.body(call, RULE_BODY)["security_group_rule"]
    group = _find(call, SecurityGroup, given["parent_group_id"], "Security group")
    remote = given.get("group_id")
    if remote:
        _find(call, SecurityGroup, remote, "Security group")
    protocol = given.get("ip_protocol")
    first, last = _port(given.get("from_port")), _port(given.get("to_port"))
    if not remote and (protocol is None or given.get("from_port") is None or given.get("to_port") is None):
        raise bad_request("The rule lacks ip_protocol, from_port or to_port.")
    cidr = given.get("cidr") or (None if remote else "0.0.0.0/0")
    values: Row = {
        "security_group_id": group["id"], "direction": "ingress",
        "ethertype": "IPv6" if cidr and ":" in cidr else "IPv4", "protocol": protocol.lower() if protocol else None,
        "port_range_min": first, "port_range_max": last, "remote_ip_prefix": cidr, "remote_group_id": remote or None,
    }  # fmt: skip
    row = _make(call, SecurityGroupRule, group_api.RULE_HOOKS, values)
    return {"security_group_rule": secgroups.shown_rule(call.tx, row)}


def delete_rule(call: Call) -> Reply:
    """Take a rule away."""
    _allowed(call, "rule:delete")
    row = _find(call, SecurityGroupRule, call.params["id"], "Security group rule")
    _drop(call, SecurityGroupRule, group_api.RULE_HOOKS, row)
    return Reply(None, 202)


def _route(method: str, path: str, handler: Any) -> Route:
    return Route(
        method=method, path=f"/v2.1{path}", handler=handler, doc=handler.__doc__ or "",
        tx="read" if method == "GET" else "write", gate=until(2, 36),
    )  # fmt: skip


def nothing(call: Call) -> Reply:
    """Refuse to delete a security group that is not named."""
    raise Fault(404, "The security group's id is missing in the path.")


ROUTES = (
    _route("DELETE", "/os-security-groups", nothing),
    _route("POST", "/os-security-groups", create),
    _route("GET", "/os-security-groups/{id}", show),
    _route("PUT", "/os-security-groups/{id}", update),
    _route("DELETE", "/os-security-groups/{id}", delete),
    _route("POST", "/os-security-group-rules", add_rule),
    _route("DELETE", "/os-security-group-rules/{id}", delete_rule),
)
