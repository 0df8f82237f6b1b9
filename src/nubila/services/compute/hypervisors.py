"""Hypervisors and compute services: the host table as operators know it."""

from __future__ import annotations

import functools
import json
import uuid
from collections.abc import Mapping
from typing import Any

import sqlalchemy as sa

from nubila.core import clock, hosts
from nubila.core.call import Call, Reply, Route, takes
from nubila.core.faults import Fault, bad_request, conflict
from nubila.core.gates import OPEN, Gate, Version, until
from nubila.core.sql import upsert
from nubila.core.types import boolean, is_uuid
from nubila.services.compute import patterns, wire, zones
from nubila.services.compute.kinds import AGGREGATE_HOST, FORCED_DOWN, SERVER
from nubila.services.compute.wire import Row, obj
from nubila.services.placement import claims

RULE = "os_compute_api:os-hypervisors"
_ON_HOST = (
    sa.select(SERVER.c.host, SERVER.c.id, SERVER.c.name)
    .where(SERVER.c.deleted.is_(False), SERVER.c.host.is_not(None))
    .order_by(SERVER.c.created_at, SERVER.c.id)
)


def number_of(id: str) -> int:
    """The number that stands for a UUID in versions before 2.53."""
    return int(id[:8], 16) >> 1


def service_id(host_id: str, binary: str = "nova-compute") -> str:
    """UUID of a host's service, derived from the host's."""
    return str(uuid.uuid5(uuid.UUID(host_id), binary))


# --- hypervisors ------------------------------------------------------------------------------------------------------


def _brief(call: Call, h: Row) -> Row:
    return {
        "id": h["id"] if call.version >= (2, 53) else number_of(h["id"]), "hypervisor_hostname": h["name"],
        "state": "up" if h["up"] else "down", "status": "enabled" if h["state"] == "enabled" else "disabled",
    }  # fmt: skip


def _full(call: Call, h: Row, room: Mapping[str, Row], servers: int) -> Row:
    can = h["capabilities"]
    service = service_id(h["id"])
    out = _brief(call, h) | {
        "hypervisor_type": can.get("hypervisor_type") or "QEMU",
        "hypervisor_version": can.get("hypervisor_version") or 0,
        "host_ip": h["tunnel_ip"],
        "service": {
            "id": service if call.version >= (2, 53) else number_of(service), "host": h["name"],
            "disabled_reason": h["disabled_reason"],
        },
    }  # fmt: skip
    if call.version >= (2, 88):
        return out | {"uptime": None}
    out |= _room(room, servers)
    info: Row = {"arch": can.get("cpu_arch") or "x86_64"}
    info |= {"model": can.get("accel") or "", "topology": {}, "features": []}
    return out | {"cpu_info": info if call.version >= (2, 28) else json.dumps(info)}


def _room(room: Mapping[str, Row], servers: int) -> Row:
    def part(name: str) -> tuple[int, int]:
        it = room.get(name)
        return (0, 0) if it is None else (int(it["total"]), int(it["used"]))

    (vcpus, vcpus_used), (ram, ram_used), (disk, disk_used) = part("VCPU"), part("MEMORY_MB"), part("DISK_GB")
    return {
        "vcpus": vcpus, "vcpus_used": vcpus_used, "memory_mb": ram, "memory_mb_used": ram_used, "local_gb": disk,
        "local_gb_used": disk_used, "free_ram_mb": ram - ram_used, "free_disk_gb": disk - disk_used,
        "current_workload": 0, "running_vms": servers, "disk_available_least": disk - disk_used,
    }  # fmt: skip


def _on_hosts(call: Call) -> dict[str, list[Row]]:
    out: dict[str, list[Row]] = {}
    for host, id, name in call.tx.rows(_ON_HOST):
        out.setdefault(host, []).append({"name": name, "uuid": id})
    return out


def _with_servers(call: Call) -> bool:
    text = call.arg("with_servers", "false") if call.version >= (2, 53) else "false"
    try:
        return boolean(text)
    except ValueError:
        raise bad_request(f"Invalid input for query parameter with_servers: '{text}' is not true or false.") from None


def _add_servers(call: Call, view: Row, servers: list[Row]) -> Row:
    if servers or call.version >= (2, 75):
        view["servers"] = servers
    return view


def _list(call: Call, detail: bool) -> Row:
    known = ["limit", "marker"] + (["hypervisor_hostname_pattern", "with_servers"] if call.version >= (2, 53) else [])
    wire.known_query(call, known, since=(2, 53))
    pattern = call.arg("hypervisor_hostname_pattern") if call.version >= (2, 53) else None
    found = zones.compute_hosts(call.tx)
    if pattern is not None:
        if call.arg("limit") is not None or call.arg("marker") is not None:
            raise bad_request("hypervisor_hostname_pattern: leave limit and marker out beside it.")
        found = _matching(found, pattern)
    with_servers = _with_servers(call)
    limit, marker = wire.limit_and_marker(call) if call.version >= (2, 33) else (wire.MAX_LIMIT, None)
    found.sort(key=lambda h: str(h["id"]))
    if marker is not None:
        ids = [h["id"] if call.version >= (2, 53) else str(number_of(h["id"])) for h in found]
        if marker not in ids:
            raise bad_request(f"marker [{marker}] not found")
        found = found[ids.index(marker) + 1 :]
    page = found[:limit]
    servers = _on_hosts(call) if detail or with_servers else {}
    room = claims.rooms(call.tx) if detail and call.version < (2, 88) else {}
    shown = []
    for h in page:
        mine = servers.get(h["name"], [])
        view = _full(call, h, room.get(h["id"], {}), len(mine)) if detail else _brief(call, h)
        shown.append(_add_servers(call, view, mine) if with_servers else view)
    body: Row = {"hypervisors": shown}
    if call.version >= (2, 33) and pattern is None and len(found) >= limit:
        path = "/os-hypervisors/detail" if detail else "/os-hypervisors"
        if following := wire.next_link(call, path, shown, limit):
            body["hypervisors_links"] = following
    return body


def _matching(found: list[Row], pattern: str) -> list[Row]:
    kept = [h for h in found if pattern.lower() in h["name"].lower()]
    if not kept and not pattern.isalnum():
        match = patterns.predicate("hypervisor_hostname_pattern", pattern)
        kept = [h for h in found if match(h["name"])]
    if not kept:
        raise Fault(404, f"No hypervisor's name contains '{pattern}'.")
    return kept


def index(call: Call) -> Row:
    """List hypervisors."""
    return _list(call, False)


def detail(call: Call) -> Row:
    """List hypervisors with everything."""
    return _list(call, True)


def _find(call: Call) -> Row:
    id = call.params["id"]
    if call.version >= (2, 53) and not is_uuid(id):
        raise bad_request(f"Invalid uuid {id}")
    for h in zones.compute_hosts(call.tx):
        if id == (h["id"] if call.version >= (2, 53) else str(number_of(h["id"]))):
            return h
    raise Fault(404, f"There is no hypervisor {id}.")


def show(call: Call) -> Row:
    """Show a hypervisor."""
    if call.params["id"] == "statistics":  # its own resource until 2.88, and never the id of a hypervisor
        raise Fault(404, "The resource could not be found: hypervisor statistics end with version 2.87.")
    h = _find(call)
    mine = _on_hosts(call).get(h["name"], [])
    view = _full(call, h, claims.room(call.tx, h["id"]), len(mine))
    return {"hypervisor": _add_servers(call, view, mine) if _with_servers(call) else view}


def uptime(call: Call) -> Row:
    """Show since when a hypervisor's host runs; hosts do not report it."""
    _find(call)
    raise bad_request("This hypervisor does not report its uptime.")


def statistics(call: Call) -> Row:
    """Sum up all hypervisors (before 2.88)."""
    found = [h for h in zones.compute_hosts(call.tx) if h["state"] == "enabled"]
    servers, room = _on_hosts(call), claims.rooms(call.tx)
    total: Row = {"count": len(found), **_room({}, 0)}
    for h in found:
        for name, n in _room(room.get(h["id"], {}), len(servers.get(h["name"], []))).items():
            total[name] += n
    return {"hypervisor_statistics": total}


def search(call: Call) -> Row:
    """Find hypervisors by a part of their name (before 2.53)."""
    return {"hypervisors": [_brief(call, h) for h in _matching(zones.compute_hosts(call.tx), call.params["id"])]}


def servers_of(call: Call) -> Row:
    """List the servers of hypervisors found by a part of their name (before 2.53)."""
    servers = _on_hosts(call)
    out = []
    for h in _matching(zones.compute_hosts(call.tx), call.params["id"]):
        view = _brief(call, h)
        if mine := servers.get(h["name"]):
            view["servers"] = mine
        out.append(view)
    return {"hypervisors": out}


# --- services ---------------------------------------------------------------------------------------------------------

SERVICES = "os_compute_api:os-services"
CONTROLLER = ("nova-conductor", "nova-scheduler")
"""What controllers are listed as, for tools that look for these names."""


def services(call: Call) -> list[Row]:
    """Every service: those of controllers, and one for each compute host."""
    name = call.cloud.settings.host or "controller"
    root = uuid.uuid5(uuid.NAMESPACE_DNS, f"{call.cloud.name}.{name}")
    out: list[Row] = [
        {
            "binary": binary, "host": name, "id": str(uuid.uuid5(root, binary)), "zone": zones.INTERNAL,
            "status": "enabled", "state": "up", "updated_at": clock.now(), "disabled_reason": None,
            "forced_down": False,
        }
        for binary in CONTROLLER
    ]  # fmt: skip
    out += [_compute(h) for h in zones.compute_hosts(call.tx)]
    return out


def _compute(h: Row) -> Row:
    return {
        "binary": "nova-compute", "host": h["name"], "id": service_id(h["id"]), "zone": h["zone"],
        "status": "enabled" if h["state"] == "enabled" else "disabled", "state": "up" if h["up"] else "down",
        "updated_at": clock.at(h["seen"]), "disabled_reason": h["disabled_reason"], "forced_down": h["forced_down"],
    }  # fmt: skip


def _service_view(call: Call, s: Row) -> Row:
    out = dict(s)
    if call.version < (2, 53):
        out["id"] = number_of(s["id"])
    if call.version < (2, 11):
        del out["forced_down"]
    return out


def list_services(call: Call) -> Row:
    """List the services of the cloud's hosts."""
    wire.known_query(call, ("host", "binary"))
    host, binary = call.arg("host"), call.arg("binary")
    found = [s for s in services(call) if host in (None, "", s["host"]) and binary in (None, "", s["binary"])]
    return {"services": [_service_view(call, s) for s in found]}


_REASON = {"type": "string", "minLength": 1, "maxLength": 255, "pattern": r"^\S(?:.*\S)?$"}
_OLD = {
    "enable": obj({"host": wire.FQDN, "binary": wire.NAME}, ["host", "binary"]),
    "disable": obj({"host": wire.FQDN, "binary": wire.NAME}, ["host", "binary"]),
    "disable-log-reason": obj(
        {"host": wire.FQDN, "binary": wire.NAME, "disabled_reason": _REASON}, ["host", "binary", "disabled_reason"]
    ),
    "force-down": obj(
        {"host": wire.FQDN, "binary": wire.NAME, "forced_down": wire.BOOL}, ["host", "binary", "forced_down"]
    ),
}


def _computer(call: Call, host: str, binary: str) -> Row:
    if binary != "nova-compute":
        raise bad_request(f"binary: {binary} can not be changed, only nova-compute.")
    row = next((h for h in zones.compute_hosts(call.tx) if h["name"] == host), None)
    if row is None:
        raise Fault(404, f"Host {host} runs no {binary}.")
    return row


def _set_state(call: Call, host: str, enabled: bool, reason: str | None) -> None:
    call.tx.execute(
        sa.update(hosts.TABLE)
        .where(hosts.TABLE.c.name == host)
        .values(state="enabled" if enabled else "disabled", disabled_reason=reason, updated_at=clock.now())
    )


def _force(call: Call, host: str, down: bool) -> None:
    if down:
        call.tx.execute(upsert(call.tx.dialect, FORCED_DOWN, {"host": host}, {}))
    else:
        call.tx.execute(sa.delete(FORCED_DOWN).where(FORCED_DOWN.c.host == host))


def update_service(call: Call) -> Row:
    """Enable, disable or force down a compute service."""
    if call.version >= (2, 53):
        return _update_by_id(call)
    action = call.params["id"]
    if action not in _OLD or (action == "force-down" and call.version < (2, 11)):
        raise Fault(404, "Unknown action")
    given = wire.body(call, _OLD[action])
    host, binary = given["host"], given["binary"]
    _computer(call, host, binary)
    out = {"host": host, "binary": binary}
    if action == "force-down":
        down = boolean(given["forced_down"])
        _force(call, host, down)
        return {"service": out | {"forced_down": down}}
    _set_state(call, host, action == "enable", given.get("disabled_reason"))
    out["status"] = "enabled" if action == "enable" else "disabled"
    if "disabled_reason" in given:
        out["disabled_reason"] = given["disabled_reason"]
    return {"service": out}


@functools.cache
def _new_schema(version: Version) -> dict[str, Any]:
    return obj({"status": {"enum": ["enabled", "disabled"]}, "disabled_reason": _REASON, "forced_down": wire.BOOL})


@takes(_new_schema)
def _update_by_id(call: Call) -> Row:
    id = call.params["id"]
    if not is_uuid(id):
        raise bad_request(f"Invalid uuid {id}")
    given = wire.body(call, _new_schema)
    found = next((s for s in services(call) if s["id"] == id), None)
    if found is None:
        raise Fault(404, f"Service {id} could not be found.")
    _computer(call, found["host"], found["binary"])
    if not given:
        raise bad_request("The body changes nothing: give status or forced_down.")
    status, reason = given.get("status"), given.get("disabled_reason")
    if reason is not None and status != "disabled":
        raise bad_request("Specifying 'disabled_reason' requires status 'disabled'.")
    if status is not None:
        _set_state(call, found["host"], status == "enabled", reason)
    if "forced_down" in given:
        _force(call, found["host"], boolean(given["forced_down"]))
    after = next(s for s in services(call) if s["id"] == id)
    return {"service": _service_view(call, after)}


def delete_service(call: Call) -> Reply:
    """Forget a compute host that has no servers."""
    id = call.params["id"]
    if call.version >= (2, 53) and not is_uuid(id):
        raise bad_request(f"Invalid uuid {id}")
    if call.version < (2, 53) and not id.isdigit():
        raise bad_request(f"id must be a whole number, not {id}")
    found = next((s for s in services(call) if id == str(_service_view(call, s)["id"])), None)
    if found is None:
        raise Fault(404, f"Service {id} could not be found.")
    row = _computer(call, found["host"], found["binary"])
    if _on_hosts(call).get(row["name"]):
        raise conflict("Servers are on this host: migrate or delete them before its service goes.")
    if row["alive"]:
        raise conflict(f"Host {row['name']} is still reporting: stop its agent first, or use nubila host remove.")
    call.tx.execute(sa.delete(AGGREGATE_HOST).where(AGGREGATE_HOST.c.host == row["name"]))
    call.tx.execute(sa.update(hosts.TABLE).where(hosts.TABLE.c.name == row["name"]).values(state="removed"))
    return Reply(None, 204)


def _route(method: str, path: str, handler: Any, rule: str, gate: Gate = OPEN) -> Route:
    tx = "read" if method == "GET" else "write"
    return Route(
        method=method, path=f"/v2.1{path}", handler=handler, doc=handler.__doc__ or "", tx=tx, rule=rule, gate=gate
    )


ROUTES = (
    _route("GET", "/os-hypervisors", index, f"{RULE}:list"),
    _route("GET", "/os-hypervisors/detail", detail, f"{RULE}:list-detail"),
    _route("GET", "/os-hypervisors/statistics", statistics, f"{RULE}:statistics", until(2, 88)),
    _route("GET", "/os-hypervisors/{id}", show, f"{RULE}:show"),
    _route("GET", "/os-hypervisors/{id}/uptime", uptime, f"{RULE}:uptime", until(2, 88)),
    _route("GET", "/os-hypervisors/{id}/search", search, f"{RULE}:search", until(2, 53)),
    _route("GET", "/os-hypervisors/{id}/servers", servers_of, f"{RULE}:servers", until(2, 53)),
    _route("GET", "/os-services", list_services, f"{SERVICES}:list"),
    _route("PUT", "/os-services/{id}", update_service, f"{SERVICES}:update"),
    _route("DELETE", "/os-services/{id}", delete_service, f"{SERVICES}:delete"),
)
