"""Images, who they are shared with, and what hangs on them."""

from __future__ import annotations

import sqlalchemy as sa

from nubila.core import clock
from nubila.core.declare import METADATA, Attr, Resource
from nubila.core.types import Bool, Enum, Int, Str, Time, Type, Uuid

VISIBILITIES = ("community", "public", "private", "shared")
CONTAINER_FORMATS = ("ami", "ari", "aki", "bare", "ovf", "ova", "docker", "compressed")
DISK_FORMATS = ("ami", "ari", "aki", "vhd", "vhdx", "vmdk", "raw", "qcow2", "vdi", "iso", "ploop")
STATUSES = (
    "queued",
    "saving",
    "active",
    "killed",
    "deleted",
    "uploading",
    "importing",
    "pending_delete",
    "deactivated",
)
ID_PATTERN = r"^([0-9a-fA-F]){8}-([0-9a-fA-F]){4}-([0-9a-fA-F]){4}-([0-9a-fA-F]){4}-([0-9a-fA-F]){12}$"

_BIG = Type(lambda: sa.BigInteger)


class Image(Resource):
    """A disk that instances start from. Its bytes are in a file of the image store; everything else is here."""

    kind = "image"
    service = "image"
    owner = "owner_id"
    id = Attr(Uuid, "Unique id.", key=True, write="c", default=clock.new_id, sort=True)
    name = Attr(Str(255), "What people call it.", write="cu", null=True, sort=True)
    status = Attr(Enum(*STATUSES), "queued, saving, active ...", default="queued", sort=True)
    visibility = Attr(Enum(*VISIBILITIES), "Who can see it.", write="cu", default="shared", index=True)
    protected = Attr(Bool, "It cannot be deleted while true.", write="cu", default=False)
    os_hidden = Attr(Bool, "It is left out of lists by default.", write="cu", default=False)
    checksum = Attr(Str(32), "MD5 of the data.", observed=True)
    os_hash_algo = Attr(Str(64), "Algorithm of os_hash_value.", observed=True)
    os_hash_value = Attr(Str(128), "Hash of the data.", observed=True)
    owner_id = Attr(Str(255), "The project it belongs to.", api="owner", write="cu", null=True, index=True)
    size = Attr(_BIG, "Bytes of the data.", observed=True, sort=True)
    virtual_size = Attr(_BIG, "Bytes of the disk as a guest sees it.", observed=True)
    container_format = Attr(Str(20), "What wraps the disk.", write="cu", null=True, sort=True)
    disk_format = Attr(Str(20), "Format of the disk.", write="cu", null=True, sort=True)
    min_ram = Attr(Int(), "MB of memory a guest needs.", write="cu", default=0)
    min_disk = Attr(Int(), "GB of disk a guest needs.", write="cu", default=0)
    created_at = Attr(Time, "When it was made.", default=clock.now, sort=True)
    updated_at = Attr(Time, "When it last changed.", default=clock.now, sort=True)
    transfer = Attr(Str(36), "Token of the upload that is going on.", hidden=True, observed=True)
    transfer_until = Attr(Str(32), "When that upload counts as dead unless it says more.", hidden=True, observed=True)
    fault = Attr(Str(255), "Why staged data cannot be imported.", hidden=True, observed=True)


MEMBER = sa.Table(
    "image_member",
    METADATA,
    sa.Column("image_id", sa.String(36), primary_key=True),
    sa.Column("member_id", sa.String(255), primary_key=True, index=True),  # a project
    sa.Column("status", sa.String(16), nullable=False),  # pending | accepted | rejected
    sa.Column("created_at", sa.String(32), nullable=False),
    sa.Column("updated_at", sa.String(32), nullable=False),
)

TAG = sa.Table(
    "image_tag",
    METADATA,
    sa.Column("image_id", sa.String(36), primary_key=True),
    sa.Column("name", sa.String(255), primary_key=True),
)

PROPERTY = sa.Table(
    "image_property",
    METADATA,
    sa.Column("image_id", sa.String(36), primary_key=True),
    sa.Column("name", sa.String(255), primary_key=True),
    sa.Column("value", sa.Text, nullable=False),
)

# Ids are never used twice: hosts keep copies of images by id.
GONE = sa.Table(
    "image_gone",
    METADATA,
    sa.Column("id", sa.String(36), primary_key=True),
    sa.Column("at", sa.String(32), nullable=False),
)
