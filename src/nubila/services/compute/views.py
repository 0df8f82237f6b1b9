"""How a server looks on the wire, and what its status is: derived from what is wanted and what was seen.

Everything here is pure except :func:`detailed`, which reads the ports of a whole page in one go.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from nubila.core import clock
from nubila.core.call import Call
from nubila.core.gates import Version
from nubila.services.compute import zones
from nubila.services.compute.wire import Row, bookmark, links
from nubila.services.network import plug

RUNNING, OFF, CRASHED, NOSTATE = 1, 4, 6, 0
PROGRESS = ("ACTIVE", "BUILD", "REBUILD", "RESIZE", "VERIFY_RESIZE", "MIGRATING")


def vm_state(row: Mapping[str, Any]) -> str:
    """OS-EXT-STS:vm_state: the last settled state."""
    return str(row["vm_state"])


def task_state(row: Mapping[str, Any]) -> str | None:
    """OS-EXT-STS:task_state: what is still to be done, None when everything is as asked."""
    if row["deleted"]:
        return None
    if row["want"] == "gone":
        return "deleting"
    if row["vm_state"] == "building":
        return "scheduling" if row["host"] is None else "spawning"
    if row["vm_state"] == "error" or row["host"] is None:
        return None
    if row["power"] == "off" and row["power_state"] == RUNNING:
        return "powering-off"
    if row["power"] == "on" and row["power_state"] != RUNNING:
        return "powering-on"
    if row["boots"] != row["booted"] and row["power"] == "on":
        return "rebooting_hard" if row["hard"] else "rebooting"
    return None


_STATUS = {"building": "BUILD", "active": "ACTIVE", "stopped": "SHUTOFF", "error": "ERROR", "deleted": "DELETED"}


def status(row: Mapping[str, Any]) -> str:
    """The word most clients look at."""
    if row["deleted"]:
        return "DELETED"
    if row["vm_state"] == "active":
        task = task_state(row)
        if task == "rebooting":
            return "REBOOT"
        if task == "rebooting_hard":
            return "HARD_REBOOT"
    return _STATUS[row["vm_state"]]


def host_id(row: Mapping[str, Any]) -> str:
    """A name of the host that tells a project which of its servers share one, and nothing else."""
    if not row["host"]:
        return ""
    return hashlib.sha224(f"{row['project_id']}{row['host']}".encode()).hexdigest()


def instance_name(id: str) -> str:
    """The name of the guest on its host: derived from the id, in Nova's form."""
    return f"instance-{id[:8]}"


def _fixed(port: Mapping[str, Any], ip: Mapping[str, Any]) -> Row:
    return {
        "version": ip["version"], "addr": ip["ip_address"], "OS-EXT-IPS:type": "fixed",
        "OS-EXT-IPS-MAC:mac_addr": port["mac_address"],
    }  # fmt: skip


def addresses(ports: Sequence[Mapping[str, Any]], *, extended: bool = True) -> dict[str, list[Row]]:
    """Addresses by network name, fixed ones followed by their floating ones."""
    out: dict[str, list[Row]] = {}
    for port in ports:
        mine = out.setdefault(port["network_name"], [])
        for ip in port["fixed_ips"]:
            mine.append(_fixed(port, ip))
            for pair in port["floating_ips"]:
                if pair["fixed"] == ip["ip_address"]:
                    mine.append({**mine[-1], "version": 4, "addr": pair["floating"], "OS-EXT-IPS:type": "floating"})
                    mine[-1]["OS-EXT-IPS-MAC:mac_addr"] = port["mac_address"]
    if not extended:
        return {n: [{"version": a["version"], "addr": a["addr"]} for a in found] for n, found in out.items()}
    return out


def in_order(row: Mapping[str, Any], ports: Sequence[Row]) -> list[Row]:
    """A server's ports in the order in which its NICs were asked for."""
    place = {nic["port_id"]: n for n, nic in enumerate(row["nics"] or [])}
    return sorted(ports, key=lambda p: place.get(p["id"], len(place)))


def flavor(call: Call, row: Mapping[str, Any], version: Version, specs: bool) -> Row:
    """The flavor: a reference before 2.47, its content as it was from then on."""
    it = row["flavor"]
    if version < (2, 47):
        return {"id": row["flavor_id"], "links": bookmark(call, "flavors", row["flavor_id"])}
    out = {
        "vcpus": it["vcpus"], "ram": it["ram"], "disk": it["disk"], "ephemeral": it["ephemeral"], "swap": it["swap"],
        "original_name": it["name"],
    }  # fmt: skip
    if specs:
        out["extra_specs"] = it["extra_specs"]
    return out


def image(call: Call, row: Mapping[str, Any], version: Version) -> Row | str:
    """The image: a reference, "" when there is none; from 2.98 with its properties."""
    if not row["image_id"]:
        return ""
    out: Row = {"id": row["image_id"], "links": bookmark(call, "images", row["image_id"])}
    if version >= (2, 98):
        out["properties"] = {
            k: None if v is None else str(v) for k, v in (row["image"].get("properties") or {}).items()
        }
    return out


def fault(row: Mapping[str, Any], admin: bool) -> Row:
    """Why a server is in ERROR."""
    it = row["fault"]
    out = {"code": it["code"], "created": clock.zulu(it["created"]), "message": it["message"]}
    if it.get("details") and (admin or it["code"] != 500):
        out["details"] = it["details"]
    return out


def security_groups(row: Mapping[str, Any], ports: Sequence[Mapping[str, Any]]) -> list[Row]:
    """Names of the groups of all ports; what was asked for while there are none."""
    names: dict[str, None] = {}
    for port in ports:
        names.update(dict.fromkeys(port["security_groups"]))
    if not ports and row["vm_state"] == "building":
        names = dict.fromkeys(row["group_names"] or [])
    return [{"name": name} for name in names]


def basic(call: Call, row: Row) -> Row:
    """A server in a brief list."""
    return {"id": row["id"], "name": row["name"], "links": links(call, "servers", row["id"])}


_Field = tuple[str, Version, Callable[[Row], Any]]

_EXTENDED: tuple[_Field, ...] = (  # for those the rule os-extended-server-attributes allows
    ("OS-EXT-SRV-ATTR:host", (2, 1), lambda r: r["host"]),
    ("OS-EXT-SRV-ATTR:instance_name", (2, 1), lambda r: instance_name(r["id"])),
    ("OS-EXT-SRV-ATTR:hypervisor_hostname", (2, 1), lambda r: r["host"]),
    ("OS-EXT-SRV-ATTR:hostname", (2, 3), lambda r: r["hostname"]),
    ("OS-EXT-SRV-ATTR:kernel_id", (2, 3), lambda r: ""),
    ("OS-EXT-SRV-ATTR:launch_index", (2, 3), lambda r: r["launch_index"]),
    ("OS-EXT-SRV-ATTR:ramdisk_id", (2, 3), lambda r: ""),
    ("OS-EXT-SRV-ATTR:reservation_id", (2, 3), lambda r: r["reservation_id"]),
    ("OS-EXT-SRV-ATTR:root_device_name", (2, 3), lambda r: "/dev/vda"),
    ("OS-EXT-SRV-ATTR:user_data", (2, 3), lambda r: r["user_data"]),
)
_COMMON: tuple[_Field, ...] = (
    ("accessIPv4", (2, 1), lambda r: r["access_ip_v4"] or ""),
    ("accessIPv6", (2, 1), lambda r: r["access_ip_v6"] or ""),
    ("created", (2, 1), lambda r: clock.zulu(r["created_at"])),
    ("hostId", (2, 1), host_id),
    ("id", (2, 1), lambda r: r["id"]),
    ("metadata", (2, 1), lambda r: r["metadata"] or {}),
    ("name", (2, 1), lambda r: r["name"]),
    ("status", (2, 1), status),
    ("tenant_id", (2, 1), lambda r: r["project_id"]),
    ("user_id", (2, 1), lambda r: r["user_id"]),
    ("updated", (2, 1), lambda r: clock.zulu(r["updated_at"])),
    ("OS-DCF:diskConfig", (2, 1), lambda r: "AUTO" if r["auto_disk"] else "MANUAL"),
)
_DETAIL: tuple[_Field, ...] = (
    ("OS-EXT-AZ:availability_zone", (2, 1), lambda r: r["zone"] or r["zone_wanted"] or ""),
    ("config_drive", (2, 1), lambda r: "True" if r["config_drive"] else ""),
    ("key_name", (2, 1), lambda r: r["key_name"]),
    ("OS-SRV-USG:launched_at", (2, 1), lambda r: r["launched_at"]),
    ("OS-SRV-USG:terminated_at", (2, 1), lambda r: r["terminated_at"]),
    ("OS-EXT-STS:task_state", (2, 1), task_state),
    ("OS-EXT-STS:vm_state", (2, 1), vm_state),
    ("OS-EXT-STS:power_state", (2, 1), lambda r: r["power_state"]),
    ("os-extended-volumes:volumes_attached", (2, 1), lambda r: []),
    ("pinned_availability_zone", (2, 96), lambda r: r["zone_wanted"]),
)
_LATER: tuple[_Field, ...] = (
    ("locked", (2, 9), lambda r: r["locked_by"] is not None),
    ("description", (2, 19), lambda r: r["description"]),
    ("tags", (2, 26), lambda r: r["tags"] or []),
    ("trusted_image_certificates", (2, 63), lambda r: r["trusted_certs"]),
    ("locked_reason", (2, 73), lambda r: r["locked_reason"]),
    ("scheduler_hints", (2, 100), lambda r: r["hints"] or {}),
)


def detailed(call: Call, rows: list[Row], *, one: bool = False, brief: bool = False) -> list[Row]:
    """Complete views of a page of servers. ``one``: a single server is shown (with its groups, from 2.71).

    ``brief`` leaves out what PUT did not show before 2.75.
    """
    version = call.version
    ports = plug.ports_of(call.tx, [r["id"] for r in rows])
    groups = [f for f in (*_COMMON, *_LATER, *(() if brief else _DETAIL)) if version >= f[1]]
    extended = [f for f in _EXTENDED if version >= f[1]]
    per_project: dict[str, tuple[bool, bool, bool]] = {}
    up: dict[str, str] | None = None
    out = []
    for row in rows:
        found = in_order(row, ports.get(row["id"], []))
        view: Row = {name: read(row) for name, _, read in groups}
        project = row["project_id"]
        if project not in per_project:
            per_project[project] = (
                call.may("os_compute_api:os-extended-server-attributes", row),
                version >= (2, 47) and call.may("os_compute_api:servers:show:flavor-extra-specs", row),
                version >= (2, 16) and call.may("os_compute_api:servers:show:host_status", row),
            )
        attributes, specs, host_status = per_project[project]
        view["addresses"] = addresses(found, extended=not brief)
        view["flavor"] = flavor(call, row, version, specs)
        view["image"] = image(call, row, version)
        view["links"] = links(call, "servers", row["id"])
        if not brief:
            view["security_groups"] = security_groups(row, found)
            if not view["security_groups"]:
                del view["security_groups"]
            if attributes:
                view.update((name, read(row)) for name, _, read in extended)
            elif version >= (2, 90):
                view["OS-EXT-SRV-ATTR:hostname"] = row["hostname"]
        if host_status and not brief:
            if up is None:
                up = _host_statuses(call)
            view["host_status"] = up.get(row["host"], "UNKNOWN") if row["host"] else ""
        if one and version >= (2, 71):
            view["server_groups"] = [row["group_id"]] if row["group_id"] else []
        if view["status"] in ("ERROR", "DELETED") and row["fault"]:
            view["fault"] = fault(row, attributes)
        if view["status"] in PROGRESS:
            view["progress"] = 0  # counts the copying of a disk between hosts; building and running leave it at 0
        out.append(view)
    return out


def _host_statuses(call: Call) -> dict[str, str]:
    return {
        h["name"]: "DOWN" if h["forced_down"] else "UNKNOWN" if not h["alive"] else
        "MAINTENANCE" if h["state"] != "enabled" else "UP"
        for h in zones.compute_hosts(call.tx)
    }  # fmt: skip


def show(call: Call, row: Row, *, brief: bool = False) -> Row:
    """The body of a single server."""
    return {"server": detailed(call, [row], one=True, brief=brief)[0]}
