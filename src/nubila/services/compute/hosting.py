"""What a host must know of a server to run it, and what its report means."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import sqlalchemy as sa

from nubila.core import clock
from nubila.core.cloud import Cloud
from nubila.core.db import Reader, Tx
from nubila.core.ports import DiskSpec, GuestSpec, NicSpec
from nubila.core.service import HostItem
from nubila.services.compute import history, metadata, nics, rows, views
from nubila.services.compute.kinds import SERVER
from nubila.services.compute.reconcile import fail
from nubila.services.network import plug
from nubila.services.placement import claims

Row = dict[str, Any]
_ON = sa.select(SERVER.c.id).where(
    SERVER.c.host == sa.bindparam("host"), SERVER.c.deleted.is_(False), SERVER.c.want == "present"
)


def describe(cloud: Cloud, reader: Reader, id: str, host: str) -> GuestSpec | None:
    """The guest as it should be on this host; None when nothing of it should be there."""
    row = rows.get(reader, id)
    if row is None or row["deleted"] or row["want"] == "gone" or row["host"] != host:
        return None
    if row["vm_state"] == "error" and row["launched_at"] is None:
        return None  # a failed build leaves nothing behind; its owner can only delete it
    ports = views.in_order(row, plug.ports_of(reader, [id]).get(id, []))
    return GuestSpec(
        id=id,
        name=views.instance_name(id),
        display_name=row["name"],
        vcpus=row["flavor"]["vcpus"],
        ram_mb=row["flavor"]["ram"],
        power=row["power"],
        boots=row["boots"],
        hard=bool(row["hard"]),
        disks=_disks(row),
        nics=tuple(
            NicSpec(port_id=p["id"], device=f"tap{p['id'][:11]}", mac=p["mac_address"], mtu=p["mtu"] or 1500)
            for p in ports
        ),
        config_drive=metadata.config_drive_files(cloud, reader, row) if row["config_drive"] else None,
        project_id=row["project_id"],
        user_id=row["user_id"],
        flavor_name=row["flavor"]["name"],
    )


def _disks(row: Row) -> tuple[DiskSpec, ...]:
    flavor, image = row["flavor"], row["image"] or {}
    out = [
        DiskSpec(
            name="disk", size_gb=flavor["disk"], image_id=row["image_id"],
            image_format=image.get("disk_format") or "raw",
            image_checksum=image.get("os_hash_value") or "",
        )
    ]  # fmt: skip
    if flavor["ephemeral"]:
        out.append(DiskSpec(name="disk.eph0", size_gb=flavor["ephemeral"]))
    if flavor["swap"]:
        out.append(DiskSpec(name="disk.swap", size_gb=-(-flavor["swap"] // 1024)))
    return tuple(out)


def observe(cloud: Cloud, tx: Tx, id: str, host: str, seen: Mapping[str, Any]) -> str:
    """Take in what the host saw; returns the sentence for the work row."""
    row = tx.one(rows.ONE_LOCKED, {"id": id}) if tx.dialect != "sqlite" else rows.get(tx, id)
    status, fault = str(seen.get("status") or ""), str(seen.get("fault") or "")
    if row is None or row["deleted"] or row["host"] != host:
        return "not here any more"
    if row["want"] == "gone":
        if status == "GONE":
            rows.change(tx, row, host_gone=True)
            tx.ask("server", id)
            return "removed"
        return fault or "to be removed"
    if status == "GONE":
        return _gone(cloud, tx, row)
    if seen.get("power") is not None:
        return _saw(tx, row, seen, fault)
    return _failed(tx, row, fault) if status == "ERROR" else fault or "no word on its power"


def _gone(cloud: Cloud, tx: Tx, row: Row) -> str:
    """Nothing of the guest is on the host. After a failed build its room and ports are given back."""
    if row["vm_state"] != "error" or row["launched_at"] is not None:
        tx.ask("guest", row["id"], row["host"])
        return "to be made again"
    nics.unplug_all(cloud, tx, row)
    claims.release(tx, row["id"])
    rows.change(tx, row, host=None, zone=None, nics=[])
    return "nothing is left of the failed build"


def _failed(tx: Tx, row: Row, fault: str) -> str:
    """The host can not make it as asked, and says it never will."""
    text = fault or "The host could not run the guest."
    if row["vm_state"] != "error" or (row["fault"] or {}).get("message") != text[:255]:
        if row["deadline"] is not None:
            tx.ask("server", row["id"])
        fail(tx, row, text)
        if row["launched_at"] is None:
            tx.ask("guest", row["id"], row["host"])  # what was half built must go
    return text


def _saw(tx: Tx, row: Row, seen: Mapping[str, Any], fault: str) -> str:
    power, boots = seen["power"], int(seen.get("boots") or 0)
    now = clock.now()
    new: Row = {}
    if power in ("on", "paused"):
        new |= {"power_state": views.RUNNING}
        if row["power"] == "on":
            new |= {"vm_state": "active", "booted": min(boots, row["boots"]), "fault": None, "deadline": None}
        if row["launched_at"] is None:
            new["launched_at"] = now
    else:
        new |= {"vm_state": "stopped", "power_state": views.CRASHED if power == "crashed" else views.OFF}
        if row["power"] == "on":
            if row["launched_at"] is None:
                return _failed(tx, row, fault) if power == "crashed" else fault or "waiting for the guest to start"
            if not fault or boots < row["boots"]:
                return "waiting for the guest to start"
            new["power"] = "off"  # it went off by itself: that is how it is wanted until somebody starts it
        new |= {"booted": row["boots"], "deadline": None}
    changed = {k: v for k, v in new.items() if row[k] != v}
    if "deadline" in changed:
        tx.ask("server", row["id"])  # the controller waits for the end of building no longer
    if changed:
        rows.change(tx, row, **changed)
    if views.task_state(row) is None:
        if changed or seen.get("nics") is not None:
            history.finish(tx, row)
        return f"{views.status(row).lower()}"
    return f"{views.task_state(row)}"


def every(cloud: Cloud, reader: Reader, host: str) -> list[str]:
    """Ids of all guests that belong on the host."""
    return [id for (id,) in reader.rows(_ON, {"host": host})]


ITEM = HostItem(describe=describe, observe=observe, every=every, order=5)
