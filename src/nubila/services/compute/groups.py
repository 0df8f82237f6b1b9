"""Server groups."""

from __future__ import annotations

import functools
from typing import Any

import sqlalchemy as sa

from nubila.core import clock
from nubila.core.call import Call, Reply, Route, takes
from nubila.core.faults import Fault
from nubila.core.gates import Version
from nubila.services.compute import quotas, wire
from nubila.services.compute.kinds import GROUP, SERVER
from nubila.services.compute.wire import Row, is_admin, obj

RULE = "os_compute_api:os-server-groups"
_ONE = sa.select(GROUP).where(GROUP.c.id == sa.bindparam("id"))
_MEMBERS = (
    sa.select(SERVER.c.group_id, SERVER.c.id)
    .where(SERVER.c.group_id.in_(sa.bindparam("ids", expanding=True)), SERVER.c.deleted.is_(False))
    .order_by(SERVER.c.created_at, SERVER.c.id)
)


@functools.cache
def _schema(version: Version) -> dict[str, Any]:
    words = ["anti-affinity", "affinity"] + (["soft-anti-affinity", "soft-affinity"] if version >= (2, 15) else [])
    if version < (2, 64):
        policies = {"type": "array", "items": {"enum": words}, "minItems": 1, "maxItems": 1}
        return obj({"server_group": obj({"name": wire.NAME, "policies": policies}, ["name", "policies"])},
                   ["server_group"])  # fmt: skip
    inner = {
        "name": wire.NAME, "policy": {"type": "string", "enum": words},
        "rules": obj({"max_server_per_host": wire.whole(1)}),
    }  # fmt: skip
    return obj({"server_group": obj(inner, ["name", "policy"])}, ["server_group"])


def _views(call: Call, found: list[Row]) -> list[Row]:
    members: dict[str, list[str]] = {g["id"]: [] for g in found}
    if members:
        for group, server in call.tx.rows(_MEMBERS, {"ids": list(members)}):
            members[group].append(server)
    out = []
    for g in found:
        view: Row = {"id": g["id"], "name": g["name"], "members": members[g["id"]]}
        if call.version >= (2, 64):
            view |= {"policy": g["policy"], "rules": g["rules"] or {}}
        else:
            view |= {"policies": [g["policy"]], "metadata": {}}
        if call.version >= (2, 13):
            view |= {"project_id": g["project_id"], "user_id": g["user_id"]}
        out.append(view)
    return out


def _find(call: Call, rule: str) -> Row:
    id = call.params["id"]
    row = call.tx.one(_ONE, {"id": id})
    if row is None or (row["project_id"] != call.creds.project_id and not is_admin(call)):
        raise Fault(404, f"There is no server group {id}.")
    call.enforce(f"{RULE}:{rule}", row)
    return dict(row)


def index(call: Call) -> Row:
    """List server groups."""
    wire.known_query(call, ("all_projects", "limit", "offset"))
    call.enforce(f"{RULE}:index", wire.mine(call))
    statement = sa.select(GROUP).order_by(GROUP.c.created_at, GROUP.c.id)
    if call.arg("all_projects") is None or not is_admin(call):
        statement = statement.where(GROUP.c.project_id == (call.creds.project_id or ""))
    else:
        call.enforce(f"{RULE}:index:all_projects", wire.mine(call))
    limit, _ = wire.limit_and_marker(call)
    offset = wire.number(call.arg("offset", "0"), "offset", 0)
    return {"server_groups": _views(call, call.tx.all(statement.offset(offset).limit(limit)))}


def show(call: Call) -> Row:
    """Show a server group."""
    return {"server_group": _views(call, [_find(call, "show")])[0]}


@takes(_schema)
def create(call: Call) -> Row:
    """Create a server group."""
    call.enforce(f"{RULE}:create", wire.mine(call))
    given = wire.body(call, _schema)["server_group"]
    policy = given["policy"] if "policy" in given else given["policies"][0]
    rules = {k: wire.number(v, k, 1) for k, v in (given.get("rules") or {}).items()}
    if rules and policy != "anti-affinity":
        raise Fault(400, f"Only anti-affinity policy supports rules, not {policy}.")
    project = wire.project_of(call)
    quotas.claim(call.tx, project, {"server_groups": 1})
    row: Row = {
        "id": clock.new_id(), "project_id": project, "user_id": call.creds.user_id, "name": given["name"],
        "policy": policy, "rules": rules, "created_at": clock.now(),
    }  # fmt: skip
    call.tx.insert(GROUP, row)
    return {"server_group": _views(call, [row])[0]}


def delete(call: Call) -> Reply:
    """Delete a server group; its servers stay."""
    row = _find(call, "delete")
    call.tx.execute(sa.update(SERVER).where(SERVER.c.group_id == row["id"]).values(group_id=None))
    call.tx.execute(sa.delete(GROUP).where(GROUP.c.id == row["id"]))
    quotas.release(call.tx, row["project_id"], {"server_groups": 1})
    return Reply(None, 204)


def _route(method: str, path: str, handler: Any) -> Route:
    tx = "read" if method == "GET" else "write"
    return Route(method=method, path=f"/v2.1/os-server-groups{path}", handler=handler, doc=handler.__doc__ or "", tx=tx)


ROUTES = (
    _route("GET", "", index),
    _route("POST", "", create),
    _route("GET", "/{id}", show),
    _route("DELETE", "/{id}", delete),
)
