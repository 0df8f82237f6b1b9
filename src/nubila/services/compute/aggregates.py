"""Host aggregates and availability zones."""

from __future__ import annotations

import re
from typing import Any

import sqlalchemy as sa

from nubila.core import clock
from nubila.core.call import Call, Reply, Route, takes
from nubila.core.db import Conflict
from nubila.core.faults import Fault, bad_request, conflict
from nubila.services.compute import hypervisors, wire, zones
from nubila.services.compute.kinds import AGGREGATE, AGGREGATE_HOST, SERVER
from nubila.services.compute.wire import Row, obj

RULE = "os_compute_api:os-aggregates"
_ONE = sa.select(AGGREGATE).where(AGGREGATE.c.id == sa.bindparam("id"))
_ALL = sa.select(AGGREGATE).order_by(AGGREGATE.c.id)
_HOSTS = sa.select(AGGREGATE_HOST.c.aggregate_id, AGGREGATE_HOST.c.host).order_by(AGGREGATE_HOST.c.host)
_NEXT = sa.select(sa.func.coalesce(sa.func.max(AGGREGATE.c.id), 0) + 1)
_BUSY = sa.select(sa.func.count()).where(
    SERVER.c.host.in_(sa.bindparam("hosts", expanding=True)), SERVER.c.deleted.is_(False)
)
_ZONE = {"anyOf": [{**wire.NAME, "pattern": r"^[^\s:](?:[^:\x00-\x1f]*[^\s:])?$"}, {"type": "null"}]}
_META = {
    "type": "object",
    "patternProperties": {r"^[a-zA-Z0-9_:. -]{1,255}$": {"type": ["string", "null"], "maxLength": 255}},
    "additionalProperties": False,
}
CREATE = obj({"aggregate": obj({"name": wire.NAME, "availability_zone": _ZONE}, ["name"])}, ["aggregate"])
UPDATE = obj({"aggregate": {**obj({"name": wire.NAME, "availability_zone": _ZONE}), "minProperties": 1}}, ["aggregate"])
ACTIONS = {
    "add_host": obj({"add_host": obj({"host": wire.FQDN}, ["host"])}, ["add_host"]),
    "remove_host": obj({"remove_host": obj({"host": wire.FQDN}, ["host"])}, ["remove_host"]),
    "set_metadata": obj({"set_metadata": obj({"metadata": _META}, ["metadata"])}, ["set_metadata"]),
}


def _members(call: Call) -> dict[int, list[str]]:
    out: dict[int, list[str]] = {}
    for id, host in call.tx.rows(_HOSTS):
        out.setdefault(id, []).append(host)
    return out


def _view(call: Call, row: Row, members: list[str] | None) -> Row:
    out: Row = {
        "id": row["id"], "name": row["name"], "availability_zone": (row["metadata"] or {}).get("availability_zone"),
        "created_at": wire.plain(row["created_at"]), "updated_at": wire.plain(row["updated_at"]), "deleted": False,
        "deleted_at": None,
    }  # fmt: skip
    if members is not None:
        out |= {"hosts": members, "metadata": row["metadata"] or {}}
    if call.version >= (2, 41):
        out["uuid"] = row["uuid"]
    return out


def _find(call: Call) -> Row:
    text = call.params["id"]
    if not re.fullmatch(r"-?[0-9]+", text):
        raise bad_request(f"id must be a whole number, not {text}")
    row = call.tx.one(_ONE, {"id": int(text)}) if len(text) < 19 else None
    if row is None:
        raise Fault(404, f"Aggregate {text} could not be found.")
    return dict(row)


def index(call: Call) -> Row:
    """List aggregates."""
    members = _members(call)
    return {"aggregates": [_view(call, r, members.get(r["id"], [])) for r in call.tx.all(_ALL)]}


def show(call: Call) -> Row:
    """Show an aggregate."""
    row = _find(call)
    return {"aggregate": _view(call, row, _members(call).get(row["id"], []))}


@takes(CREATE)
def create(call: Call) -> Row:
    """Create an aggregate."""
    given = wire.body(call, CREATE)["aggregate"]
    zone = given.get("availability_zone")
    row: Row = {
        "id": int(call.tx.scalar(_NEXT)), "uuid": clock.new_id(), "name": given["name"],
        "metadata": {"availability_zone": zone} if zone else {}, "created_at": clock.now(), "updated_at": None,
    }  # fmt: skip
    try:
        call.tx.insert(AGGREGATE, row)
    except Conflict:
        raise conflict(f"Aggregate {row['name']} already exists.") from None
    return {"aggregate": _view(call, row, None)}


def _zone_free_to_change(call: Call, row: Row, zone: str | None, hosts: list[str]) -> None:
    """Servers stay in their zone: a zone changes only while its hosts are empty."""
    if (row["metadata"] or {}).get("availability_zone") == zone or not hosts:
        return
    if call.tx.scalar(_BUSY, {"hosts": hosts}):
        raise bad_request("Cannot change the availability zone of an aggregate whose hosts have servers.")


def _write(call: Call, row: Row, **values: Any) -> None:
    values["updated_at"] = clock.now()
    try:
        call.tx.execute(sa.update(AGGREGATE).where(AGGREGATE.c.id == row["id"]).values(**values))
    except Conflict:
        raise conflict(f"Aggregate {values.get('name')} already exists.") from None
    row.update(values)


@takes(UPDATE)
def update(call: Call) -> Row:
    """Rename an aggregate or change its availability zone."""
    given = wire.body(call, UPDATE)["aggregate"]
    row = _find(call)
    members = _members(call).get(row["id"], [])
    changes: Row = {}
    if "name" in given:
        changes["name"] = given["name"]
    if "availability_zone" in given:
        zone = given["availability_zone"]
        _zone_free_to_change(call, row, zone, members)
        metadata = dict(row["metadata"] or {})
        metadata.pop("availability_zone", None)
        changes["metadata"] = metadata | ({"availability_zone": zone} if zone else {})
    _write(call, row, **changes)
    return {"aggregate": _view(call, row, members)}


def delete(call: Call) -> Reply:
    """Delete an aggregate without hosts."""
    row = _find(call)
    if _members(call).get(row["id"]):
        raise bad_request(f"Cannot delete aggregate {row['id']}: it still has hosts, remove them first.")
    call.tx.execute(sa.delete(AGGREGATE).where(AGGREGATE.c.id == row["id"]))
    return Reply(None, 200)


def action(call: Call) -> Row:
    """Add or remove a host, or set metadata."""
    name = next(iter(call.body), "") if isinstance(call.body, dict) else ""
    if name not in ACTIONS:
        raise bad_request(f"There is no such action: {name}")
    call.enforce(f"{RULE}:{name}", {})
    given = wire.body(call, ACTIONS[name])[name]
    row = _find(call)
    members = _members(call)
    mine = members.get(row["id"], [])
    if name == "set_metadata":
        _set_metadata(call, row, given["metadata"], mine)
    elif name == "add_host":
        _add_host(call, row, given["host"], members)
    else:
        if given["host"] not in mine:
            raise Fault(404, f"Cannot remove host {given['host']} in aggregate {row['id']}")
        _leave_zone(call, row, given["host"])
        call.tx.execute(
            sa.delete(AGGREGATE_HOST).where(
                AGGREGATE_HOST.c.aggregate_id == row["id"], AGGREGATE_HOST.c.host == given["host"]
            )
        )
        _write(call, row)
    return {"aggregate": _view(call, row, _members(call).get(row["id"], []))}


def _set_metadata(call: Call, row: Row, given: Row, mine: list[str]) -> None:
    metadata = {k: v for k, v in {**(row["metadata"] or {}), **given}.items() if v is not None}
    if "availability_zone" in given:
        if given["availability_zone"] == "":
            raise bad_request("Aggregate availability_zone cannot be empty: use null to remove it.")
        _zone_free_to_change(call, row, given["availability_zone"], mine)
    _write(call, row, metadata=metadata)


def _add_host(call: Call, row: Row, host: str, members: dict[int, list[str]]) -> None:
    known = {h["name"]: h for h in zones.compute_hosts(call.tx)}
    if host not in known:
        raise Fault(404, f"There is no compute host {host}.")
    if host in members.get(row["id"], []):
        raise conflict(f"Aggregate {row['id']} already has host {host}.")
    zone = (row["metadata"] or {}).get("availability_zone")
    for other in call.tx.all(_ALL):
        theirs = (other["metadata"] or {}).get("availability_zone")
        if zone and theirs and theirs != zone and host in members.get(other["id"], []):
            raise conflict(f"Host {host} is in availability zone {theirs} already; a host has only one.")
    if zone and known[host]["zone"] != zone and call.tx.scalar(_BUSY, {"hosts": [host]}):
        raise conflict(f"Host {host} has servers in availability zone {known[host]['zone']}: they cannot change zone.")
    call.tx.insert(AGGREGATE_HOST, {"aggregate_id": row["id"], "host": host})
    _write(call, row)


def _leave_zone(call: Call, row: Row, host: str) -> None:
    if (row["metadata"] or {}).get("availability_zone") and call.tx.scalar(_BUSY, {"hosts": [host]}):
        raise conflict(f"Host {host} has servers in this availability zone: they cannot change zone.")


# --- availability zones -----------------------------------------------------------------------------------------------


def list_zones(call: Call) -> Row:
    """List availability zones and whether they can be used."""
    good = zones.available(call.tx)
    every = {h["zone"] for h in zones.compute_hosts(call.tx)}
    return {"availabilityZoneInfo": [
        {"zoneName": z, "zoneState": {"available": z in good}, "hosts": None} for z in sorted(every)
    ]}  # fmt: skip


def zone_detail(call: Call) -> Row:
    """List availability zones with their hosts and services."""
    good = zones.available(call.tx)
    by_zone: dict[str, Row] = {}
    for s in hypervisors.services(call):
        by_zone.setdefault(s["zone"], {}).setdefault(s["host"], {})[s["binary"]] = {
            "available": s["state"] == "up", "active": s["status"] == "enabled",
            "updated_at": wire.plain(s["updated_at"]),
        }  # fmt: skip
    return {"availabilityZoneInfo": [
        {
            "zoneName": z, "zoneState": {"available": z in good or z == zones.INTERNAL},
            "hosts": found if z in good or z == zones.INTERNAL else None,
        }
        for z, found in sorted(by_zone.items())
    ]}  # fmt: skip


def _route(method: str, path: str, handler: Any, rule: str) -> Route:
    tx = "read" if method == "GET" else "write"
    return Route(method=method, path=f"/v2.1{path}", handler=handler, doc=handler.__doc__ or "", tx=tx, rule=rule)


ROUTES = (
    _route("GET", "/os-aggregates", index, f"{RULE}:index"),
    _route("POST", "/os-aggregates", create, f"{RULE}:create"),
    _route("GET", "/os-aggregates/{id}", show, f"{RULE}:show"),
    _route("PUT", "/os-aggregates/{id}", update, f"{RULE}:update"),
    _route("DELETE", "/os-aggregates/{id}", delete, f"{RULE}:delete"),
    _route("POST", "/os-aggregates/{id}/action", action, ""),
    _route("GET", "/os-availability-zone", list_zones, "os_compute_api:os-availability-zone:list"),
    _route("GET", "/os-availability-zone/detail", zone_detail, "os_compute_api:os-availability-zone:detail"),
)
