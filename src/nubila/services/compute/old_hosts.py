"""Hosts under their name before 2.43: GET /os-hosts and /os-hosts/{name}."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa

from nubila.core.call import Call, Route
from nubila.core.faults import Fault
from nubila.core.gates import until
from nubila.services.compute import hypervisors, zones
from nubila.services.compute.kinds import SERVER
from nubila.services.compute.wire import Row
from nubila.services.placement import claims

_ON = sa.select(SERVER.c.project_id, SERVER.c.vcpus, SERVER.c.ram, SERVER.c.disk).where(
    SERVER.c.host == sa.bindparam("host"), SERVER.c.deleted.is_(False)
)
_SERVICES = {"nova-compute": "compute", "nova-conductor": "conductor", "nova-scheduler": "scheduler"}


def index(call: Call) -> Row:
    """List hosts and what runs on them."""
    zone = call.arg("zone")
    return {"hosts": [
        {"host_name": s["host"], "service": _SERVICES[s["binary"]], "zone": s["zone"]}
        for s in hypervisors.services(call) if not zone or s["zone"] == zone
    ]}  # fmt: skip


def _part(host: str, project: str, vcpus: int, ram: int, disk: int) -> Row:
    return {"resource": {"host": host, "project": project, "cpu": vcpus, "memory_mb": ram, "disk_gb": disk}}


def show(call: Call) -> Row:
    """Show what a compute host has, and which projects use how much of it."""
    name = call.params["name"]
    host = next((h for h in zones.compute_hosts(call.tx) if h["name"] == name), None)
    if host is None:
        raise Fault(404, f"There is no compute host {name}.")
    room = claims.room(call.tx, host["id"])
    classes = ("VCPU", "MEMORY_MB", "DISK_GB")
    total = [int(room[c]["total"]) if c in room else 0 for c in classes]
    used = [int(room[c]["used"]) if c in room else 0 for c in classes]
    projects: dict[str, list[int]] = {}
    for project, *amounts in call.tx.rows(_ON, {"host": name}):
        sums = projects.setdefault(project, [0, 0, 0])
        projects[project] = [a + b for a, b in zip(sums, amounts, strict=True)]
    most = [sum(p[n] for p in projects.values()) for n in range(3)]
    parts = [_part(name, "(total)", *total), _part(name, "(used_now)", *used), _part(name, "(used_max)", *most)]
    return {"host": parts + [_part(name, project, *sums) for project, sums in sorted(projects.items())]}


def _route(path: str, handler: Any, rule: str) -> Route:
    return Route(
        method="GET", path=f"/v2.1/os-hosts{path}", handler=handler, doc=handler.__doc__ or "",
        rule=f"os_compute_api:os-hosts:{rule}", gate=until(2, 43),
    )  # fmt: skip


ROUTES = (_route("", index, "list"), _route("/{name}", show, "show"))
