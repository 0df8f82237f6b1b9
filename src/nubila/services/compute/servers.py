"""Servers: show, update, delete; metadata, tags, actions, password, volumes of one server."""

from __future__ import annotations

import functools
from typing import Any

import sqlalchemy as sa

from nubila.core.call import Answer, Call, Reply, Route, takes
from nubila.core.faults import Fault, bad_request
from nubila.core.gates import OPEN, Gate, Version, since
from nubila.services.compute import creating, history, listing, quotas, rows, verbs, views, wire
from nubila.services.compute.kinds import ACTION, EVENT, SERVER_TAG
from nubila.services.compute.wire import Row, obj

SERVERS = "os_compute_api:servers"


def show(call: Call) -> Row:
    """Show a server."""
    return views.show(call, rows.find(call, f"{SERVERS}:show", shown=True))


@functools.cache
def _update_schema(version: Version) -> dict[str, Any]:
    inner: Row = {
        "name": wire.NAME,
        "OS-DCF:diskConfig": {"enum": ["AUTO", "MANUAL"]},
        "accessIPv4": {"type": "string", "anyOf": [{"format": "ipv4"}, {"const": ""}]},
        "accessIPv6": {"type": "string", "anyOf": [{"format": "ipv6"}, {"const": ""}]},
    }
    if version >= (2, 19):
        inner["description"] = wire.TEXT
    if version >= (2, 90):
        inner["hostname"] = wire.HOSTNAME if version < (2, 94) else wire.FQDN
    return obj({"server": obj(inner)}, ["server"])


@takes(_update_schema)
def update(call: Call) -> Row:
    """Change a server's name, description, host name or access addresses."""
    given = wire.body(call, _update_schema)["server"]
    row = rows.find(call, f"{SERVERS}:update")
    columns = {"name": "name", "description": "description", "hostname": "hostname"}
    changes = {columns[k]: v for k, v in given.items() if k in columns}
    if "accessIPv4" in given:
        changes["access_ip_v4"] = wire.address(given["accessIPv4"])
    if "accessIPv6" in given:
        changes["access_ip_v6"] = wire.address(given["accessIPv6"])
    if "OS-DCF:diskConfig" in given:
        changes["auto_disk"] = given["OS-DCF:diskConfig"] == "AUTO"
    if changes:
        rows.change(call.tx, row, **changes)
    return views.show(call, row, brief=call.version < (2, 75))


def delete(call: Call) -> Reply:
    """Delete a server, whatever it is doing."""
    row = rows.find(call, f"{SERVERS}:delete")
    rows.unlocked(call, row, "'delete'")
    if row["want"] != "gone":
        history.finish(call.tx, row, "Instance was deleted." if row["vm_state"] == "building" else "")
        rows.change(call.tx, row, want="gone")
        history.record(call, row["id"], "delete")
    call.tx.ask("server", row["id"])
    if row["host"]:
        call.tx.ask("guest", row["id"], row["host"])
    return Reply(None, 204)


# --- metadata ---------------------------------------------------------------------------------------------------------

META = "os_compute_api:server-metadata"
_ALL = obj({"metadata": wire.METADATA}, ["metadata"])
_ONE = obj({"meta": {**wire.METADATA, "minProperties": 1, "maxProperties": 1}}, ["meta"])


def _set_metadata(call: Call, row: Row, metadata: Row) -> None:
    rows.unlocked(call, row, "changing its metadata")
    quotas.check_metadata(quotas.limits(call.tx, row["project_id"]), metadata)
    if row["want"] == "gone":
        raise rows.wrong_state(row, "update metadata", "task_state", "deleting")
    rows.change(call.tx, row, metadata=metadata)


def metadata(call: Call) -> Row:
    """List a server's metadata."""
    return {"metadata": rows.find(call, f"{META}:index")["metadata"] or {}}


def metadata_item(call: Call) -> Row:
    """Show one metadata item."""
    have = rows.find(call, f"{META}:show")["metadata"] or {}
    key = call.params["key"]
    if key not in have:
        raise Fault(404, f"Metadata item {key} was not found")
    return {"meta": {key: have[key]}}


@takes(_ALL)
def add_metadata(call: Call) -> Row:
    """Set metadata items, keeping the others."""
    given = wire.body(call, _ALL)["metadata"]
    row = rows.find(call, f"{META}:create")
    _set_metadata(call, row, {**(row["metadata"] or {}), **given})
    return {"metadata": row["metadata"]}


@takes(_ALL)
def replace_metadata(call: Call) -> Row:
    """Replace all metadata items."""
    given = wire.body(call, _ALL)["metadata"]
    row = rows.find(call, f"{META}:update_all")
    _set_metadata(call, row, given)
    return {"metadata": given}


@takes(_ONE)
def set_metadata_item(call: Call) -> Row:
    """Set one metadata item."""
    given = wire.body(call, _ONE)["meta"]
    if call.params["key"] not in given:
        raise bad_request("Request body and URI mismatch")
    row = rows.find(call, f"{META}:update")
    _set_metadata(call, row, {**(row["metadata"] or {}), **given})
    return {"meta": given}


def delete_metadata_item(call: Call) -> Reply:
    """Remove one metadata item."""
    row = rows.find(call, f"{META}:delete")
    left = dict(row["metadata"] or {})
    if left.pop(call.params["key"], None) is None:
        raise Fault(404, f"Metadata item {call.params['key']} was not found")
    _set_metadata(call, row, left)
    return Reply(None, 204)


# --- tags -------------------------------------------------------------------------------------------------------------

TAGS = "os_compute_api:os-server-tags"
_TAGS = obj({"tags": {"type": "array", "items": wire.TAG, "maxItems": creating.MAX_TAGS}}, ["tags"])


def _set_tags(call: Call, row: Row, tags: set[str]) -> None:
    if len(tags) > creating.MAX_TAGS:
        raise bad_request(f"tags: a server has {creating.MAX_TAGS} at most.")
    call.tx.execute(sa.delete(SERVER_TAG).where(SERVER_TAG.c.server_id == row["id"]))
    for tag in sorted(tags):
        call.tx.insert(SERVER_TAG, {"server_id": row["id"], "tag": tag})
    rows.change(call.tx, row, tags=sorted(tags))


def _taggable(call: Call, rule: str) -> Row:
    row = rows.find(call, f"{TAGS}:{rule}")
    if row["vm_state"] == "building" or row["want"] == "gone":
        raise rows.wrong_state(row, "modify tags", "vm_state", row["vm_state"])
    return row


def tags(call: Call) -> Row:
    """List a server's tags."""
    return {"tags": rows.find(call, f"{TAGS}:index")["tags"] or []}


def check_tag(call: Call) -> Reply:
    """Say whether a server has a tag."""
    row = rows.find(call, f"{TAGS}:show")
    if call.params["tag"] not in (row["tags"] or []):
        raise Fault(404, f"The server {row['id']} is not tagged '{call.params['tag']}'.")
    return Reply(None, 204)


@takes(_TAGS)
def replace_tags(call: Call) -> Row:
    """Replace all tags."""
    given = wire.body(call, _TAGS)["tags"]
    row = _taggable(call, "update_all")
    _set_tags(call, row, set(given))
    return {"tags": row["tags"]}


def add_tag(call: Call) -> Reply:
    """Add one tag."""
    row = _taggable(call, "update")
    tag = call.params["tag"]
    if not 0 < len(tag) <= 60 or "," in tag or "/" in tag:
        raise bad_request(f"A tag has 1 to 60 characters without comma and slash; '{tag}' does not.")
    if tag in (row["tags"] or []):
        return Reply(None, 204)
    _set_tags(call, row, {*(row["tags"] or []), tag})
    return Reply(None, 201, {"Location": f"{call.base}/v2.1/servers/{row['id']}/tags/{tag}"})


def delete_tag(call: Call) -> Reply:
    """Remove one tag."""
    row = _taggable(call, "delete")
    if call.params["tag"] not in (row["tags"] or []):
        raise Fault(404, f"The server {row['id']} is not tagged '{call.params['tag']}'.")
    _set_tags(call, row, {*row["tags"]} - {call.params["tag"]})
    return Reply(None, 204)


def delete_tags(call: Call) -> Reply:
    """Remove all tags."""
    _set_tags(call, _taggable(call, "delete_all"), set())
    return Reply(None, 204)


# --- actions and events -----------------------------------------------------------------------------------------------

ACTIONS = "os_compute_api:os-instance-actions"
_BY_REQUEST = sa.select(ACTION).where(
    ACTION.c.server_id == sa.bindparam("server"), ACTION.c.request_id == sa.bindparam("request")
)
_EVENTS = sa.select(EVENT).where(EVENT.c.action_id == sa.bindparam("action")).order_by(EVENT.c.start_time.desc())


def _action(call: Call, it: Row) -> Row:
    out = {
        "action": it["action"], "instance_uuid": it["server_id"], "request_id": it["request_id"],
        "user_id": it["user_id"], "project_id": it["project_id"], "start_time": wire.plain(it["start_time"]),
        "message": it["message"],
    }  # fmt: skip
    if call.version >= (2, 58):
        out["updated_at"] = wire.plain(it["updated_at"])
    return out


def actions(call: Call) -> Row:
    """List what was asked of a server, newest first."""
    row = rows.find(call, f"{ACTIONS}:list", deleted=call.version >= (2, 21))
    statement = sa.select(ACTION).where(ACTION.c.server_id == row["id"])
    statement = statement.order_by(ACTION.c.start_time.desc(), ACTION.c.id.desc())
    if call.version < (2, 58):
        return {"instanceActions": [_action(call, a) for a in call.tx.all(statement)]}
    known = ["limit", "marker", "changes-since"] + (["changes-before"] if call.version >= (2, 66) else [])
    wire.known_query(call, known, since=(2, 58))
    limit, marker = wire.limit_and_marker(call)
    after, before = call.arg("changes-since"), call.arg("changes-before")
    if after is not None:
        statement = statement.where(ACTION.c.updated_at >= wire.parse_time(after, "changes-since"))
    if before is not None:
        statement = statement.where(ACTION.c.updated_at <= wire.parse_time(before, "changes-before"))
        if after is not None and wire.parse_time(after, "changes-since") > wire.parse_time(before, "changes-before"):
            raise bad_request("changes-since must not be later than changes-before.")
    if marker is not None:
        at = call.tx.one(_BY_REQUEST, {"server": row["id"], "request": marker})
        if at is None:
            raise bad_request(f"marker [{marker}] not found")
        statement = statement.where(
            sa.or_(ACTION.c.start_time < at["start_time"],
                   sa.and_(ACTION.c.start_time == at["start_time"], ACTION.c.id < at["id"]))
        )  # fmt: skip
    found = call.tx.all(statement.limit(limit))
    body: Row = {"instanceActions": [_action(call, a) for a in found]}
    path = f"/servers/{row['id']}/os-instance-actions"
    if following := wire.next_link(call, path, found, limit, "request_id"):
        body["links"] = following
    return body


def action(call: Call) -> Row:
    """Show one action with its events."""
    row = rows.find(call, f"{ACTIONS}:show", deleted=call.version >= (2, 21))
    it = call.tx.one(_BY_REQUEST, {"server": row["id"], "request": call.params["request_id"]})
    if it is None:
        raise Fault(404, f"Server {row['id']} has no action of request {call.params['request_id']}.")
    full = call.may(f"{ACTIONS}:events", row)
    out = _action(call, it)
    if full or call.version >= (2, 51):
        out["events"] = [_event(call, row, e, full) for e in call.tx.all(_EVENTS, {"action": it["id"]})]
    return {"instanceAction": out}


def _event(call: Call, row: Row, e: Row, full: bool) -> Row:
    out = {
        "event": e["event"], "start_time": wire.plain(e["start_time"]), "finish_time": wire.plain(e["finish_time"]),
        "result": e["result"],
    }  # fmt: skip
    if full:
        out["traceback"] = None
    if call.version >= (2, 62):
        out["hostId"] = views.host_id({**row, "host": e["host"]})
        if full:
            out["host"] = e["host"]
    if call.version >= (2, 84) and call.may(f"{ACTIONS}:events:details", row):
        out["details"] = e["details"]
    return out


# --- password, volumes ------------------------------------------------------------------------------------------------


def password(call: Call) -> Row:
    """Show the encrypted password the guest reported."""
    return {"password": rows.find(call, "os_compute_api:os-server-password:show")["password"] or ""}


def clear_password(call: Call) -> Reply:
    """Forget the encrypted password."""
    row = rows.find(call, "os_compute_api:os-server-password:clear")
    rows.change(call.tx, row, password=None)
    return Reply(None, 204)


def volumes(call: Call) -> Row:
    """List the volumes attached to a server."""
    rows.find(call, "os_compute_api:os-volumes-attachments:index")
    return {"volumeAttachments": []}


def _route(method: str, path: str, handler: Any, gate: Gate = OPEN, tx: str | None = None) -> Route:
    mode = tx if tx is not None else "read" if method == "GET" else "write"
    return Route(
        method=method, path=f"/v2.1/servers{path}", handler=handler, doc=handler.__doc__ or "", tx=mode, gate=gate
    )


@takes(creating.schema)
def _create(call: Call) -> Answer:
    """Create one server or several."""
    return creating.create(call)


ONE = "/{server_id}"
ROUTES = (
    _route("GET", "", listing.index),
    _route("GET", "/detail", listing.detail),
    _route("POST", "", _create),
    _route("GET", ONE, show),
    _route("PUT", ONE, update),
    _route("DELETE", ONE, delete),
    _route("POST", f"{ONE}/action", verbs.action, tx=""),
    _route("GET", f"{ONE}/metadata", metadata),
    _route("POST", f"{ONE}/metadata", add_metadata),
    _route("PUT", f"{ONE}/metadata", replace_metadata),
    _route("GET", f"{ONE}/metadata/{{key}}", metadata_item),
    _route("PUT", f"{ONE}/metadata/{{key}}", set_metadata_item),
    _route("DELETE", f"{ONE}/metadata/{{key}}", delete_metadata_item),
    _route("GET", f"{ONE}/tags", tags, since(2, 26)),
    _route("PUT", f"{ONE}/tags", replace_tags, since(2, 26)),
    _route("DELETE", f"{ONE}/tags", delete_tags, since(2, 26)),
    _route("GET", f"{ONE}/tags/{{tag}}", check_tag, since(2, 26)),
    _route("PUT", f"{ONE}/tags/{{tag}}", add_tag, since(2, 26)),
    _route("DELETE", f"{ONE}/tags/{{tag}}", delete_tag, since(2, 26)),
    _route("GET", f"{ONE}/os-instance-actions", actions),
    _route("GET", f"{ONE}/os-instance-actions/{{request_id}}", action),
    _route("GET", f"{ONE}/os-server-password", password),
    _route("DELETE", f"{ONE}/os-server-password", clear_password),
    _route("GET", f"{ONE}/os-volume_attachments", volumes),
)
