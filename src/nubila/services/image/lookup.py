"""What other services may ask Image, in their own transaction."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from nubila.core.faults import Fault, bad_request
from nubila.services.image.files import path_of
from nubila.services.image.kinds import MEMBER, PROPERTY, TAG, Image

if TYPE_CHECKING:
    from nubila.core.db import Reader
    from nubila.core.tokens import Creds

__all__ = ["missing", "path_of", "row", "usable_by", "visible", "with_parts"]

Row = dict[str, Any]
BOOTABLE_CONTAINERS = (None, "bare", "ami", "aki", "ari")
_I = Image.table
_ROW = sa.select(_I).where(_I.c.id == sa.bindparam("id"))
_IDS: sa.BindParameter[list[str]] = sa.bindparam("ids", expanding=True)
_TAGS = sa.select(TAG.c.image_id, TAG.c.name).order_by(TAG.c.name)
_TAGS_OF, _TAGS_OF_ONE = _TAGS.where(TAG.c.image_id.in_(_IDS)), _TAGS.where(TAG.c.image_id == sa.bindparam("id"))
_PROPERTIES = sa.select(PROPERTY.c.image_id, PROPERTY.c.name, PROPERTY.c.value)
_PROPERTIES_OF = _PROPERTIES.where(PROPERTY.c.image_id.in_(_IDS))
_PROPERTIES_OF_ONE = _PROPERTIES.where(PROPERTY.c.image_id == sa.bindparam("id"))
_MEMBER = sa.select(MEMBER.c.status).where(
    MEMBER.c.image_id == sa.bindparam("id"), MEMBER.c.member_id == sa.bindparam("member_id")
)


def with_parts(reader: Reader, rows: list[Row]) -> list[Row]:
    """Fill in ``tags`` (list) and ``properties`` (name -> value) of rows."""
    if not rows:
        return rows
    tags: dict[str, list[str]] = {}
    properties: dict[str, dict[str, str]] = {}
    one = len(rows) == 1
    ids: Row = {"id": rows[0]["id"]} if one else {"ids": [r["id"] for r in rows]}
    for id, name in reader.rows(_TAGS_OF_ONE if one else _TAGS_OF, ids):
        tags.setdefault(id, []).append(name)
    for id, name, value in reader.rows(_PROPERTIES_OF_ONE if one else _PROPERTIES_OF, ids):
        properties.setdefault(id, {})[name] = value
    for r in rows:
        r["tags"], r["properties"] = tags.get(r["id"], []), properties.get(r["id"], {})
    return rows


def row(reader: Reader, id: str) -> Row | None:
    """The image whoever asks; None when there is none."""
    found = reader.one(_ROW, {"id": id})
    return None if found is None else with_parts(reader, [found])[0]


def missing(id: str) -> Fault:
    """404 for an image."""
    return Fault(404, f"No image found with ID {id}", "ImageNotFound")


def visible(reader: Reader, creds: Creds, image_id: str) -> Row | None:
    """The image when it exists and the caller may know of it: administrator, owner, public, community, member.

    The row has the columns of the table image, ``owner``, ``tags`` and ``properties``.
    """
    found = row(reader, image_id)
    if found is None:
        return None
    found["owner"] = found["owner_id"]
    mine = creds.project_id is not None and found["owner_id"] == creds.project_id
    if creds.is_admin or mine or found["visibility"] in ("public", "community"):
        return found
    if found["visibility"] != "shared" or not creds.project_id:
        return None
    member = reader.scalar(_MEMBER, {"id": image_id, "member_id": creds.project_id})
    return None if member is None else found


def usable_by(reader: Reader, creds: Creds, image_id: str) -> Row:
    """The image when the caller may start an instance from it.

    Raises 404 when he may not see it, 400 when it is not active or not a disk.
    """
    found = visible(reader, creds, image_id)
    if found is None:
        raise missing(image_id)
    if found["status"] != "active":
        raise bad_request(f"Image {image_id} is not active but {found['status']}.", "ImageNotActive")
    if found["container_format"] not in BOOTABLE_CONTAINERS:
        text = f"Image {image_id} is packed as {found['container_format']}; only bare disks can be started."
        raise bad_request(text, "ImageUnacceptable")
    return found
