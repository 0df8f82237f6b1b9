"""GET /servers and /servers/detail: filters, order and pages."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import sqlalchemy as sa

from nubila.core import query
from nubila.core.call import Call
from nubila.core.faults import bad_request, forbidden
from nubila.core.query import ListQuery
from nubila.core.types import boolean
from nubila.services.compute import patterns, views, wire
from nubila.services.compute.kinds import SERVER, SERVER_TAG, Server
from nubila.services.compute.rows import VIEW
from nubila.services.compute.wire import Row, is_admin
from nubila.services.network import plug

c = SERVER.c
_ONE = sa.select(SERVER).where(c.id == sa.bindparam("id"))
SORT = {
    "access_ip_v4": "access_ip_v4", "access_ip_v6": "access_ip_v6", "auto_disk_config": "auto_disk",
    "availability_zone": "zone", "config_drive": "config_drive", "created_at": "created_at",
    "display_description": "description", "display_name": "name", "host": "host", "hostname": "hostname",
    "image_ref": "image_id", "instance_type_id": "flavor_id", "key_name": "key_name", "launch_index": "launch_index",
    "launched_at": "launched_at", "locked_by": "locked_by", "node": "host", "power_state": "power_state",
    "project_id": "project_id", "terminated_at": "terminated_at", "updated_at": "updated_at", "user_id": "user_id",
    "uuid": "id", "vm_state": "vm_state", "task_state": "vm_state", "locked": "locked_by",
}  # fmt: skip
IGNORED_SORT = frozenset({
    "architecture", "cell_name", "cleaned", "default_ephemeral_device", "default_swap_device", "deleted", "deleted_at",
    "disable_terminate", "ephemeral_gb", "ephemeral_key_uuid", "id", "key_data", "launched_on", "locked", "memory_mb",
    "os_type", "reservation_id", "root_gb", "shutdown_terminate", "user_data", "vcpus", "vm_mode", "kernel_id",
    "ramdisk_id", "progress", "root_device_name",
})  # fmt: skip
ADMIN_SORT = frozenset({"host", "node"})

_EXACT = {"user_id": c.user_id, "vm_state": c.vm_state, "uuid": c.id, "host": c.host, "node": c.host}
_PATTERN = {
    "name": c.name, "display_name": c.name, "description": c.description, "display_description": c.description,
    "key_name": c.key_name, "hostname": c.hostname, "reservation_id": c.reservation_id, "availability_zone": c.zone,
    "created_at": c.created_at, "launched_at": c.launched_at, "terminated_at": c.terminated_at,
    "access_ip_v4": c.access_ip_v4, "access_ip_v6": c.access_ip_v6, "locked_by": c.locked_by,
}  # fmt: skip
_EVERYBODY = frozenset({
    "reservation_id", "name", "status", "image", "image_ref", "flavor", "ip", "changes-since", "all_tenants",
    "changes-before", "ip6", "tags", "tags-any", "not-tags", "not-tags-any", "locked",
})  # fmt: skip
_SINCE_283 = frozenset({
    "availability_zone", "config_drive", "key_name", "created_at", "launched_at", "terminated_at", "power_state",
    "task_state", "vm_state", "progress", "user_id",
})  # fmt: skip
_NO_EFFECT = frozenset({
    "kernel_id", "ramdisk_id", "root_device_name", "progress", "soft_deleted", "block_device_mapping", "services",
    "metadata", "system_metadata", "info_cache", "security_groups", "pci_devices",
})  # fmt: skip
_PAGE = frozenset({"limit", "marker", "sort_key", "sort_dir"})
_REBOOTING = sa.and_(c.vm_state == "active", c.boots != c.booted, c.power == "on")
_STATUSES: dict[str, Any] = {
    "ACTIVE": sa.and_(c.vm_state == "active", sa.or_(c.boots == c.booted, c.power == "off")),
    "REBOOT": sa.and_(_REBOOTING, c.hard.is_(False)),
    "HARD_REBOOT": sa.and_(_REBOOTING, c.hard.is_(True)),
    "BUILD": c.vm_state == "building",
    "SHUTOFF": c.vm_state == "stopped",
    "ERROR": c.vm_state == "error",
    "DELETED": c.deleted.is_(True),
    **dict.fromkeys((
        "PAUSED", "SUSPENDED", "RESIZE", "VERIFY_RESIZE", "REVERT_RESIZE", "REBUILD", "PASSWORD", "RESCUE", "SHELVED",
        "SHELVED_OFFLOADED", "MIGRATING", "SOFT_DELETED", "UNKNOWN",
    ), sa.false()),
}  # fmt: skip


def index(call: Call) -> Row:
    """List servers briefly."""
    rows, limit = page(call, "index", (c.id, c.name))
    return _body(call, [views.basic(call, r) for r in rows], rows, limit, "/servers")


def detail(call: Call) -> Row:
    """List servers with everything."""
    rows, limit = page(call, "detail", VIEW)
    return _body(call, views.detailed(call, rows), rows, limit, "/servers/detail")


def _body(call: Call, shown: list[Row], rows: list[Row], limit: int, path: str) -> Row:
    body: Row = {"servers": shown}
    if following := wire.next_link(call, path, rows, limit):
        body["servers_links"] = following
    return body


def page(call: Call, verb: str, columns: tuple[Any, ...]) -> tuple[list[Row], int]:
    """One page of servers the caller may see (these columns), and its limit."""
    rule = f"os_compute_api:servers:{verb}"
    call.enforce(rule, wire.mine(call))
    given = _given(call)
    limit, marker = wire.limit_and_marker(call)
    q = ListQuery(limit=limit)
    q.order = _order(call)
    later: list[tuple[str, Callable[[str | None], bool]]] = []
    _whose(call, q, given, rule)
    _when(call, q, given)
    _what(call, q, given, later)
    at = None
    if marker is not None:
        at = call.tx.one(_ONE, {"id": marker})
        if at is None or (at["project_id"] != call.creds.project_id and not is_admin(call)):
            raise bad_request(f"marker [{marker}] not found")
    if not later:
        return call.tx.all(query.select(Server, q, marker=at, columns=columns)), limit
    q.limit = None
    rows = call.tx.all(query.select(Server, q, marker=at))
    return [r for r in rows if all(match(r[column]) for column, match in later)][:limit], limit


def _given(call: Call) -> dict[str, list[str]]:
    """The query's filters; those the caller may not use are dropped, unknown ones refused from 2.75 on."""
    known = (
        {*_EVERYBODY, *_SINCE_283, *_EXACT, *_PATTERN, *_NO_EFFECT, *_PAGE} |
        {"tenant_id", "project_id", "deleted", "launch_index", "auto_disk_config"}
    )  # fmt: skip
    wire.known_query(call, known)
    everything = call.may("os_compute_api:servers:allow_all_filters", wire.mine(call))
    out: dict[str, list[str]] = {}
    for key, value in call.query:
        if key in _PAGE:
            continue
        if key not in known:
            continue
        if not everything and key not in _EVERYBODY and not (call.version >= (2, 83) and key in _SINCE_283):
            continue
        out.setdefault(key, []).append(value)
    for key, version in (("ip6", (2, 5)), ("changes-before", (2, 66)), ("locked", (2, 73))):
        if call.version < version and not (key == "ip6" and everything):
            out.pop(key, None)
    if call.version < (2, 26):
        for key in ("tags", "tags-any", "not-tags", "not-tags-any"):
            out.pop(key, None)
    return out


def _whose(call: Call, q: ListQuery, given: dict[str, list[str]], rule: str) -> None:
    text = given.pop("all_tenants", ["0"])[-1]
    try:
        all_projects = text == "" or boolean(text)
    except ValueError:
        raise bad_request(f"Invalid input for query parameter all_tenants: '{text}' is not true or false.") from None
    projects = given.pop("tenant_id", []) + given.pop("project_id", [])
    if all_projects:
        call.enforce(f"{rule}:get_all_tenants", wire.mine(call))
        if projects:
            q.where.append(c.project_id.in_(projects))
    else:
        q.where.append(c.project_id == (call.creds.project_id or ""))


def _when(call: Call, q: ListQuery, given: dict[str, list[str]]) -> None:
    deleted = False
    text = given.pop("deleted", ["false"])[-1]
    try:
        deleted = boolean(text)
    except ValueError:
        raise bad_request(f"Invalid input for query parameter deleted: '{text}' is not true or false.") from None
    since, before = given.pop("changes-since", []), given.pop("changes-before", [])
    if since:
        q.where.append(c.updated_at >= wire.parse_time(since[-1], "changes-since"))
    if before:
        q.where.append(c.updated_at <= wire.parse_time(before[-1], "changes-before"))
        if since and wire.parse_time(since[-1], "changes-since") > wire.parse_time(before[-1], "changes-before"):
            raise bad_request("changes-since must not be later than changes-before.")
    if any(s.upper() == "DELETED" for s in given.get("status", [])):
        if not is_admin(call):
            raise forbidden("Only administrators may list deleted servers.")
        deleted = True
    if deleted:
        q.where.append(c.deleted.is_(True))
    elif not since:
        q.where.append(c.deleted.is_(False))


def _what(call: Call, q: ListQuery, given: dict[str, list[str]], later: list[Any]) -> None:
    for key, values in given.items():
        value = values[-1]
        if key == "status":
            q.where.append(_status(call, values))
        elif key in ("ip", "ip6"):
            q.where.append(c.id.in_(_by_address(call, q, 4 if key == "ip" else 6, value)))
        elif key in ("tags", "tags-any", "not-tags", "not-tags-any"):
            q.where.append(_tags(key, [t for text in values for t in text.split(",")]))
        elif key in _EXACT:
            q.where.append(_EXACT[key].in_(values))
        elif key in _PATTERN:
            clause, match = patterns.clause(_PATTERN[key], key, value)
            if match is None:
                q.where.append(clause)
            else:
                later.append((_PATTERN[key].name, match))
        elif (one := _simple(key, value)) is not None:
            q.where.append(one)


def _simple(key: str, value: str) -> Any:
    """The clause of a filter that needs nothing but its value; None when it has no effect."""
    if key in ("image", "image_ref"):
        return c.image_id == value.rsplit("/", 1)[-1]
    if key == "flavor":
        return c.flavor_id == value.rsplit("/", 1)[-1]
    if key == "locked":
        return c.locked_by.is_not(None) if _true(key, value) else c.locked_by.is_(None)
    if key == "config_drive":
        return c.config_drive.is_(_true(key, value or "false"))
    if key == "auto_disk_config":
        return c.auto_disk.is_(_true(key, value))
    if key in ("power_state", "launch_index"):
        return (c.power_state if key == "power_state" else c.launch_index) == wire.number(value, key, 0)
    return _task(value) if key == "task_state" else None


def _true(name: str, text: str) -> bool:
    try:
        return boolean(text)
    except ValueError:
        raise bad_request(f"Invalid input for query parameter {name}: '{text}' is not true or false.") from None


def _status(call: Call, values: Iterable[str]) -> Any:
    found = [_STATUSES.get(v.upper()) for v in values]
    if all(f is None for f in found) and call.version >= (2, 38):
        raise bad_request(f"Invalid status value: {', '.join(values)}")
    return sa.or_(sa.false(), *(f for f in found if f is not None))


def _task(value: str) -> Any:
    if value.lower() in ("none", "null", ""):
        return sa.and_(c.want == "present", c.vm_state != "building", c.boots == c.booted)
    return {
        "deleting": c.want == "gone",
        "scheduling": sa.and_(c.vm_state == "building", c.host.is_(None)),
        "spawning": sa.and_(c.vm_state == "building", c.host.is_not(None)),
        "powering-off": sa.and_(c.vm_state == "active", c.power == "off"),
        "powering-on": sa.and_(c.vm_state == "stopped", c.power == "on"),
        "rebooting": sa.and_(_REBOOTING, c.hard.is_(False)),
        "rebooting_hard": sa.and_(_REBOOTING, c.hard.is_(True)),
    }.get(value, sa.false())


def _tags(key: str, wanted: list[str]) -> Any:
    t = SERVER_TAG.c
    having = sa.select(t.server_id).where(t.tag.in_(wanted))
    if key in ("tags", "not-tags"):
        every = having.group_by(t.server_id).having(sa.func.count() == len(set(wanted)))
        return c.id.in_(every) if key == "tags" else c.id.not_in(every)
    return c.id.in_(having) if key == "tags-any" else c.id.not_in(having)


def _by_address(call: Call, q: ListQuery, version: int, pattern: str) -> list[str]:
    """Servers in scope with a matching address: addresses are Network's, so they are compared here."""
    match = patterns.predicate("ip" if version == 4 else "ip6", pattern)
    ids = [id for (id,) in call.tx.rows(sa.select(c.id).where(*q.where))]
    out = []
    for n in range(0, len(ids), 500):
        for id, ports in plug.ports_of(call.tx, ids[n : n + 500]).items():
            found = [ip["ip_address"] for p in ports for ip in p["fixed_ips"] if ip["version"] == version]
            found += [f["floating"] for p in ports for f in p["floating_ips"]] if version == 4 else []
            if any(match(a) for a in found):
                out.append(id)
    return out


def _order(call: Call) -> list[tuple[str, str]]:
    keys = [v for k, v in call.query if k == "sort_key"]
    dirs = [v for k, v in call.query if k == "sort_dir"]
    if any(d not in ("asc", "desc") for d in dirs):
        raise bad_request("Invalid sort direction: sort_dir is asc or desc.")
    if len(dirs) > len(keys) and keys:
        raise bad_request("sort_dir: there are more directions than sort_keys.")
    order: list[tuple[str, str]] = []
    for n, key in enumerate(keys):
        if key in IGNORED_SORT and not (key == "locked" and call.version >= (2, 73)):
            if call.version >= (2, 75) and key not in ("kernel_id", "ramdisk_id", "progress", "root_device_name"):
                raise bad_request(f"Invalid input for query parameter sort_key: '{key}'.")
            continue
        if key not in SORT:
            raise bad_request(f"Invalid input for query parameter sort_key: '{key}'.")
        if key in ADMIN_SORT and not is_admin(call):
            raise forbidden("Only administrators can sort servers by compute host or compute node.")
        name = SORT[key]
        if name not in [k for k, _ in order]:
            order.append((name, dirs[n] if n < len(dirs) else (dirs[-1] if dirs else "desc")))
    for name in ("created_at", "id"):
        if name not in [k for k, _ in order]:
            order.append((name, order[-1][1] if order else (dirs[0] if dirs else "desc")))
    return order
