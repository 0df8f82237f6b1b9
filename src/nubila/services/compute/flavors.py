"""Flavors: list, show, create, update, delete, extra specs, access."""

from __future__ import annotations

import functools
from typing import Any

import sqlalchemy as sa

from nubila.core import clock, query
from nubila.core.call import Call, Reply, Route, takes
from nubila.core.db import Conflict
from nubila.core.faults import Fault, bad_request, conflict
from nubila.core.gates import Version, since
from nubila.core.query import ListQuery
from nubila.core.types import boolean
from nubila.services.compute import wire
from nubila.services.compute.kinds import FLAVOR, FLAVOR_ACCESS, Flavor
from nubila.services.compute.wire import Row, allowed, is_admin, obj
from nubila.services.identity import lookup as identity

_ONE = sa.select(FLAVOR).where(FLAVOR.c.id == sa.bindparam("id"))
_GRANTED = sa.select(FLAVOR_ACCESS.c.project_id).where(
    FLAVOR_ACCESS.c.flavor_id == sa.bindparam("id"), FLAVOR_ACCESS.c.project_id == sa.bindparam("project")
)
_ACCESS = sa.select(FLAVOR_ACCESS.c.project_id).where(FLAVOR_ACCESS.c.flavor_id == sa.bindparam("id"))
_SORT = {
    "created_at": "created_at", "description": "description", "disabled": "disabled", "ephemeral_gb": "ephemeral",
    "flavorid": "id", "id": "id", "is_public": "is_public", "memory_mb": "ram", "name": "name", "root_gb": "disk",
    "rxtx_factor": "rxtx_factor", "swap": "swap", "updated_at": "updated_at", "vcpu_weight": "vcpus", "vcpus": "vcpus",
}  # fmt: skip
_SPEC_KEY = r"^[a-zA-Z0-9_:. -]{1,255}$"
SPECS = obj(
    {
        "extra_specs": {
            "type": "object",
            "patternProperties": {_SPEC_KEY: {"type": "string", "maxLength": 255}},
            "additionalProperties": False,
        }
    },
    ["extra_specs"],
)
ACCESS = {
    name: obj({name: obj({"tenant": {"type": "string", "minLength": 1, "maxLength": 255}}, ["tenant"])}, [name])
    for name in ("addTenantAccess", "removeTenantAccess")
}


@functools.cache
def create_schema(version: Version) -> dict[str, Any]:
    """What a create body may hold."""
    flavor: dict[str, Any] = {
        "name": wire.NAME,
        "id": {"type": ["string", "number", "null"], "minLength": 1, "maxLength": 255,
               "pattern": "^(?! )[a-zA-Z0-9. _-]+(?<! )$"},
        "ram": wire.whole(1), "vcpus": wire.whole(1), "disk": wire.whole(0),
        "OS-FLV-EXT-DATA:ephemeral": wire.whole(0), "swap": wire.whole(0),
        "rxtx_factor": {"anyOf": [{"type": "number", "exclusiveMinimum": 0, "maximum": 3.40282e38},
                                  {"type": "string", "pattern": r"^[0-9]+(\.[0-9]+)?$"}]},
        "os-flavor-access:is_public": wire.BOOL,
    }  # fmt: skip
    if version >= (2, 55):
        flavor["description"] = {"type": ["string", "null"], "maxLength": 65535}
    return obj({"flavor": obj(flavor, ["name", "ram", "vcpus", "disk"])}, ["flavor"])


UPDATE = obj(
    {"flavor": obj({"description": {"type": ["string", "null"], "maxLength": 65535}}, ["description"])}, ["flavor"]
)


def missing(id: str) -> Fault:
    """404 for a flavor."""
    return Fault(404, f"Flavor {id} could not be found.")


def visible(call: Call, id: str) -> Row | None:
    """The flavor when the caller may use it: public, granted to the project, or to administrators any."""
    row: Row | None = call.tx.one(_ONE, {"id": id})
    if row is None or row["is_public"] or is_admin(call):
        return row
    return row if call.tx.one(_GRANTED, {"id": id, "project": call.creds.project_id or ""}) else None


def _visible(call: Call) -> Row:
    row = visible(call, call.params["id"])
    if row is None:
        raise missing(call.params["id"])
    return row


def _view(call: Call, row: Row) -> Row:
    version = call.version
    out: Row = {
        "id": row["id"], "name": row["name"], "ram": row["ram"], "disk": row["disk"],
        "swap": row["swap"] or ("" if version < (2, 75) else 0), "OS-FLV-EXT-DATA:ephemeral": row["ephemeral"],
        "OS-FLV-DISABLED:disabled": row["disabled"], "vcpus": row["vcpus"],
        "os-flavor-access:is_public": row["is_public"], "rxtx_factor": row["rxtx_factor"],
        "links": wire.links(call, "flavors", row["id"]),
    }  # fmt: skip
    if version >= (2, 55):
        out["description"] = row["description"]
    if version >= (2, 61) and allowed(call, "os_compute_api:os-flavor-extra-specs:index"):
        out["extra_specs"] = row["extra_specs"] or {}
    return out


def _page(call: Call) -> tuple[list[Row], int]:
    wire.known_query(call, ("limit", "marker", "is_public", "minRam", "minDisk", "sort_key", "sort_dir"))
    limit, marker = wire.limit_and_marker(call)
    q = ListQuery(limit=limit)
    key, direction = call.arg("sort_key") or "flavorid", call.arg("sort_dir") or "asc"
    if key not in _SORT or direction not in ("asc", "desc"):
        raise bad_request(f"Invalid sort_key '{key}' or sort_dir '{direction}'.")
    q.order = [(_SORT[key], direction)] + ([("id", direction)] if _SORT[key] != "id" else [])
    _filters(call, q)
    at = None
    if marker is not None:
        at = call.tx.one(_ONE, {"id": marker})
        if at is None:
            raise bad_request(f"marker [{marker}] not found")
    return call.tx.all(query.select(Flavor, q, marker=at)), limit


def _filters(call: Call, q: ListQuery) -> None:
    c = FLAVOR.c
    public = call.arg("is_public")
    if not is_admin(call):
        granted = sa.select(FLAVOR_ACCESS.c.flavor_id).where(
            FLAVOR_ACCESS.c.project_id == (call.creds.project_id or "")
        )
        q.where += [sa.or_(c.is_public.is_(True), c.id.in_(granted)), c.disabled.is_(False)]
    elif public is None:
        granted = sa.select(FLAVOR_ACCESS.c.flavor_id).where(
            FLAVOR_ACCESS.c.project_id == (call.creds.project_id or "")
        )
        q.where.append(sa.or_(c.is_public.is_(True), c.id.in_(granted)))
    elif public.lower() != "none":
        try:
            q.where.append(c.is_public.is_(boolean(public)))
        except ValueError:
            raise bad_request(f"Invalid is_public filter [{public}]") from None
    for name, column in (("minRam", c.ram), ("minDisk", c.disk)):
        text = call.arg(name)
        if text is not None:
            try:
                q.where.append(column >= int(text))
            except ValueError:
                raise bad_request(f"Invalid {name} filter [{text}]") from None


def index(call: Call) -> Row:
    """List flavors briefly."""
    rows, limit = _page(call)
    out = []
    for row in rows:
        view = {"id": row["id"], "name": row["name"], "links": wire.links(call, "flavors", row["id"])}
        if call.version >= (2, 55):
            view["description"] = row["description"]
        out.append(view)
    return _listed(call, out, rows, limit, "/flavors")


def detail(call: Call) -> Row:
    """List flavors with everything."""
    rows, limit = _page(call)
    return _listed(call, [_view(call, r) for r in rows], rows, limit, "/flavors/detail")


def _listed(call: Call, views: list[Row], rows: list[Row], limit: int, path: str) -> Row:
    body: Row = {"flavors": views}
    if following := wire.next_link(call, path, rows, limit):
        body["flavors_links"] = following
    return body


def show(call: Call) -> Row:
    """Show a flavor."""
    return {"flavor": _view(call, _visible(call))}


@takes(create_schema)
def create(call: Call) -> Row:
    """Create a flavor."""
    body = wire.body(call, create_schema)["flavor"]
    now = clock.now()
    row: Row = {
        "id": clock.new_id() if body.get("id") in (None, "auto") else str(body["id"]), "name": body["name"],
        "ram": wire.number(body["ram"], "ram", 1), "vcpus": wire.number(body["vcpus"], "vcpus", 1),
        "disk": wire.number(body["disk"], "disk", 0),
        "ephemeral": wire.number(body.get("OS-FLV-EXT-DATA:ephemeral", 0), "OS-FLV-EXT-DATA:ephemeral", 0),
        "swap": wire.number(body.get("swap", 0), "swap", 0),
        "rxtx_factor": float(body.get("rxtx_factor", 1.0)),
        "is_public": boolean(body.get("os-flavor-access:is_public", True)), "disabled": False,
        "description": body.get("description"), "extra_specs": {}, "created_at": now, "updated_at": None,
    }  # fmt: skip
    if row["rxtx_factor"] <= 0:
        raise bad_request("Invalid input for field/attribute rxtx_factor: it must be greater than 0.")
    try:
        call.tx.insert(FLAVOR, row)
    except Conflict as e:
        what = f"name {row['name']}" if "name" in e.constraint else f"ID {row['id']}"
        raise conflict(f"Flavor with {what} already exists.") from None
    return {"flavor": _view(call, row)}


@takes(UPDATE)
def update(call: Call) -> Row:
    """Change a flavor's description."""
    body = wire.body(call, UPDATE)["flavor"]
    row = _visible(call)
    changes = {"description": body["description"], "updated_at": clock.now()}
    call.tx.execute(sa.update(FLAVOR).where(FLAVOR.c.id == row["id"]).values(**changes))
    return {"flavor": _view(call, {**row, **changes})}


def delete(call: Call) -> Reply:
    """Delete a flavor; servers keep their copy."""
    row = _visible(call)
    call.tx.execute(sa.delete(FLAVOR_ACCESS).where(FLAVOR_ACCESS.c.flavor_id == row["id"]))
    call.tx.execute(sa.delete(FLAVOR).where(FLAVOR.c.id == row["id"]))
    return Reply(None, 202)


# --- extra specs ------------------------------------------------------------------------------------------------------


def specs(call: Call) -> Row:
    """List a flavor's extra specs."""
    return {"extra_specs": _visible(call)["extra_specs"] or {}}


def _check_specs(call: Call, given: Row) -> None:
    """From 2.86 values of known namespaces must mean something."""
    if call.version < (2, 86):
        return
    for key, value in given.items():
        if key.startswith("trait") and ":" in key and value not in ("required", "forbidden"):
            raise bad_request(f"Extra spec {key}: '{value}' must be required or forbidden.")
        if key.startswith("resources") and ":" in key and not str(value).isdigit():
            raise bad_request(f"Extra spec {key}: '{value}' must be a whole number.")
        if key.startswith("quota:") and not str(value).lstrip("-").isdigit() and key != "quota:separate_period":
            raise bad_request(f"Extra spec {key}: '{value}' must be a whole number.")
        allowed_words = _WORDS.get(key)
        if allowed_words is not None and str(value).lower() not in allowed_words:
            raise bad_request(f"Extra spec {key}: '{value}' must be one of {', '.join(allowed_words)}.")
        if key.startswith("hw:") and key not in _HW and not key.startswith(_HW_NUMBERED):
            raise bad_request(f"Extra spec {key} is unknown: correct it, or use a prefix of your own instead of hw:.")


_BOOLS = ("true", "false", "yes", "no", "on", "off", "1", "0", "t", "f", "y", "n")
_WORDS: dict[str, tuple[str, ...]] = {
    "hw:cpu_policy": ("dedicated", "mixed", "shared"), "hw:cpu_thread_policy": ("isolate", "prefer", "require"),
    "hw:emulator_threads_policy": ("isolate", "share"), "hw:boot_menu": _BOOLS, "hw:mem_encryption": _BOOLS,
    "hw:hide_hypervisor_id": _BOOLS, "hw:watchdog_action": ("none", "pause", "poweroff", "reset", "disabled"),
    "hw:pci_numa_affinity_policy": ("required", "preferred", "legacy", "socket"), "hw:pmu": _BOOLS,
    "hw:vif_multiqueue_enabled": _BOOLS, "os:secure_boot": ("required", "disabled", "optional"),
}  # fmt: skip
_HW = frozenset((
    *_WORDS, "hw:cpu_sockets", "hw:cpu_cores", "hw:cpu_threads", "hw:cpu_max_sockets", "hw:cpu_max_cores",
    "hw:cpu_max_threads", "hw:cpu_sockets", "hw:cpu_dedicated_mask", "hw:cpu_realtime", "hw:cpu_realtime_mask",
    "hw:mem_page_size", "hw:numa_nodes", "hw:pmem", "hw:serial_port_count", "hw:tpm_model", "hw:tpm_version",
    "hw:maxphysaddr_mode", "hw:maxphysaddr_bits", "hw:viommu_model", "hw:locked_memory", "hw:virtio_packed_ring",
    "hw:mem_encryption_model", "hw:sound_model", "hw:usb_model", "hw:redirected_usb_ports", "hw:tpm_secret_security",
))  # fmt: skip
_HW_NUMBERED = ("hw:numa_cpus.", "hw:numa_mem.")


def _write_specs(call: Call, row: Row, changed: Row) -> None:
    call.tx.execute(
        sa.update(FLAVOR).where(FLAVOR.c.id == row["id"]).values(extra_specs=changed, updated_at=clock.now())
    )


@takes(SPECS)
def add_specs(call: Call) -> Row:
    """Set extra specs of a flavor, keeping the others."""
    given = wire.body(call, SPECS)["extra_specs"]
    _check_specs(call, given)
    row = _visible(call)
    _write_specs(call, row, {**(row["extra_specs"] or {}), **given})
    return {"extra_specs": given}


def show_spec(call: Call) -> Row:
    """Show one extra spec."""
    row = _visible(call)
    key = call.params["key"]
    if key not in (row["extra_specs"] or {}):
        raise Fault(404, f"Flavor {row['id']} has no extra spec {key}.")
    return {key: row["extra_specs"][key]}


def set_spec(call: Call) -> Row:
    """Set one extra spec."""
    given = wire.body(
        call,
        {
            "type": "object", "minProperties": 1, "maxProperties": 1, "additionalProperties": False,
            "patternProperties": {_SPEC_KEY: {"type": "string", "maxLength": 255}},
        },
    )  # fmt: skip
    if call.params["key"] not in given:
        raise bad_request("Request body and URI mismatch")
    _check_specs(call, given)
    row = _visible(call)
    _write_specs(call, row, {**(row["extra_specs"] or {}), **given})
    return given


def delete_spec(call: Call) -> Reply:
    """Remove one extra spec."""
    row = _visible(call)
    left = dict(row["extra_specs"] or {})
    if left.pop(call.params["key"], None) is None:
        raise Fault(404, f"Flavor {row['id']} has no extra spec {call.params['key']}.")
    _write_specs(call, row, left)
    return Reply(None, 200)


# --- access -----------------------------------------------------------------------------------------------------------


def _granted(call: Call, id: str) -> Row:
    return {"flavor_access": [{"flavor_id": id, "tenant_id": p} for (p,) in call.tx.rows(_ACCESS, {"id": id})]}


def access(call: Call) -> Row:
    """List the projects that may use a private flavor."""
    row = _visible(call)
    if row["is_public"]:
        raise Fault(404, "The flavor is public: everybody has access.")
    return _granted(call, row["id"])


def action(call: Call) -> Row:
    """Grant or revoke a project's access to a private flavor."""
    name = next(iter(call.body), "") if isinstance(call.body, dict) else ""
    if name not in ACCESS:
        raise bad_request(f"There is no such action: {name}")
    rule = "add_tenant_access" if name == "addTenantAccess" else "remove_tenant_access"
    call.enforce(f"os_compute_api:os-flavor-access:{rule}", wire.mine(call))
    project = wire.body(call, ACCESS[name])[name]["tenant"]
    row = _visible(call)
    if identity.project(call.tx, project) is None:
        raise bad_request(f"tenant: there is no project {project}.")
    known = call.tx.one(_GRANTED, {"id": row["id"], "project": project})
    if name == "addTenantAccess":
        if call.version >= (2, 7) and row["is_public"]:
            raise conflict("The flavor is public: everybody has access already.")
        if known:
            raise conflict(f"Project {project} has access to flavor {row['id']} already.")
        call.tx.insert(FLAVOR_ACCESS, {"flavor_id": row["id"], "project_id": project})
    else:
        if not known:
            raise Fault(404, f"Flavor access not found for {row['id']} / {project} combination.")
        call.tx.execute(
            sa.delete(FLAVOR_ACCESS).where(
                FLAVOR_ACCESS.c.flavor_id == row["id"], FLAVOR_ACCESS.c.project_id == project
            )
        )
    return _granted(call, row["id"])


def _route(method: str, path: str, handler: Any, rule: str = "", **options: Any) -> Route:
    tx = "read" if method == "GET" else "write"
    return Route(
        method=method, path=f"/v2.1/flavors{path}", handler=handler, doc=handler.__doc__ or "", tx=tx,
        rule=f"os_compute_api:{rule}" if rule else "", **options,
    )  # fmt: skip


ROUTES = (
    _route("GET", "", index),
    _route("GET", "/detail", detail),
    _route("GET", "/{id}", show),
    _route("POST", "", create, "os-flavor-manage:create"),
    _route("PUT", "/{id}", update, "os-flavor-manage:update", gate=since(2, 55)),
    _route("DELETE", "/{id}", delete, "os-flavor-manage:delete"),
    _route("POST", "/{id}/action", action),
    _route("GET", "/{id}/os-flavor-access", access, "os-flavor-access"),
    _route("GET", "/{id}/os-extra_specs", specs),
    _route("POST", "/{id}/os-extra_specs", add_specs, "os-flavor-extra-specs:create"),
    _route("GET", "/{id}/os-extra_specs/{key}", show_spec),
    _route("PUT", "/{id}/os-extra_specs/{key}", set_spec, "os-flavor-extra-specs:update"),
    _route("DELETE", "/{id}/os-extra_specs/{key}", delete_spec, "os-flavor-extra-specs:delete"),
)

STANDARD = (
    ("n1.nano", "42", 128, 1, 1), ("n1.tiny", "84", 256, 1, 1), ("m1.tiny", "1", 512, 1, 1),
    ("m1.small", "2", 2048, 1, 20), ("m1.medium", "3", 4096, 2, 40), ("m1.large", "4", 8192, 4, 80),
    ("m1.xlarge", "5", 16384, 8, 160),
)  # fmt: skip
"""name, id, ram MiB, vcpus, disk GiB of the flavors every new cloud has."""


def standard_rows() -> list[Row]:
    """Rows of the flavors a new cloud starts with."""
    now = clock.now()
    return [
        {
            "id": id, "name": name, "ram": ram, "vcpus": vcpus, "disk": disk, "ephemeral": 0, "swap": 0,
            "rxtx_factor": 1.0, "is_public": True, "disabled": False, "description": None, "extra_specs": {},
            "created_at": now, "updated_at": None,
        }
        for name, id, ram, vcpus, disk in STANDARD
    ]  # fmt: skip
