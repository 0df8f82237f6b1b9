"""Keeps rows and files of the image store in agreement: dead uploads, imports, what deletions leave behind."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from nubila.core import clock
from nubila.core.db import Reader, Store, Tx
from nubila.core.imagefile import UnsafeImage, inspect
from nubila.core.work import Item
from nubila.services.image.data import INSPECTED_CONTAINERS
from nubila.services.image.files import found, of_image, path_of, publish, remove, staged_path
from nubila.services.image.kinds import Image

if TYPE_CHECKING:
    from nubila.core.cloud import Cloud

Row = dict[str, Any]
MOVING = ("saving", "uploading", "importing")
_I = Image.table
_ROW = sa.select(_I).where(_I.c.id == sa.bindparam("id"))
_MOVING = sa.select(_I.c.id).where(_I.c.status.in_(MOVING))
_ALL = sa.select(_I.c.id)


def image(cloud: Cloud, store: Store, item: Item) -> None:
    """One image: its status as it should be, no file but its own."""
    with store.write(item) as tx:
        row = tx.one(_ROW, {"id": item.id})
        if row is None:
            for path in of_image(cloud, item.id):
                remove(path)
            tx.drop()
            return
        again = _busy_s(row)
        if again > 0:
            tx.settle(f"upload going on ({row['status']})", again=again)
            return
        if row["status"] == "importing":
            _import(cloud, tx, row)
        elif row["status"] == "saving" or (row["status"] == "uploading" and row["transfer_until"] is not None):
            _reset(tx, row["id"])
            row |= {"status": "queued", "transfer": None}
        keep = {path_of(cloud, row["id"])} if row["status"] in ("active", "deactivated") else set()
        if row["transfer"]:
            keep.add(staged_path(cloud, row["id"], row["transfer"]))
        for path in of_image(cloud, row["id"]):
            if path not in keep:
                remove(path)
        tx.settle(f"image is {row['status']}")


def _busy_s(row: Row) -> float:
    """How long the upload that is going on still counts as alive, in seconds; 0 when there is none."""
    if row["status"] not in MOVING or not row["transfer_until"]:
        return 0.0
    return max(0.0, clock.seconds(row["transfer_until"]) - time.time())


def _reset(tx: Tx, id: str) -> None:
    back = {"status": "queued", "transfer": None, "transfer_until": None, "size": None, "updated_at": clock.now()}
    tx.execute(sa.update(_I).where(_I.c.id == id).values(**back))


def _import(cloud: Cloud, tx: Tx, row: Row) -> None:
    """Staged data become the image's; data that are not what they should be put it back to queued."""
    staged, final = staged_path(cloud, row["id"], row["transfer"] or ""), path_of(cloud, row["id"])
    virtual, refused = row["size"], bool(row["fault"])
    source = staged if staged.exists() else final  # died between the renaming and the commit
    if not refused and source.exists():
        try:
            if row["container_format"] in INSPECTED_CONTAINERS:
                virtual = inspect(source, row["disk_format"]).virtual_size_bytes or row["size"]
        except UnsafeImage:
            refused = True
    else:
        refused = True
    if refused:
        _reset(tx, row["id"])
        row |= {"status": "queued", "transfer": None}
        return
    values = {"status": "active", "virtual_size": virtual, "transfer": None, "updated_at": clock.now()}
    tx.execute(sa.update(_I).where(_I.c.id == row["id"]).values(**values))
    if staged.exists():
        publish(staged, final)
    row |= values


def sweep(cloud: Cloud, reader: Reader) -> list[str]:
    """Images that may need attention: on the move, or with files that have no finished row."""
    moving = {id for (id,) in reader.rows(_MOVING)}
    files = found(cloud)
    known = {id for (id,) in reader.rows(_ALL)}
    odd = {id for id, paths in files.items() if id not in known or len(paths) > 1}
    return sorted(moving | odd)
