"""Trunks of the Networking API v2.0: one port that carries others, told apart by VLAN tags."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa

from nubila.core.declare import METADATA, Attr
from nubila.core.types import Json, List, LooseBool, Str, Uuid, with_schema
from nubila.services.network.kinds import Named, Tags, rest

SUB_PORT: dict[str, Any] = {
    "type": "object",
    "properties": {
        "port_id": {"type": "string", "maxLength": 64},
        "segmentation_type": {"type": "string", "maxLength": 32},
        "segmentation_id": {"type": ["integer", "string", "null"]},
    },
    "required": ["port_id"],
    "additionalProperties": False,
}  # trunks.py refuses what the parts cannot be, in Neutron's words


class Trunk(Named):
    """A port whose guest reaches further networks by VLAN tags: each subport is a port of its own on such a network."""

    kind, quota = "trunk", "trunk"
    rest = rest("trunk", "trunks")
    admin_state_up = Attr(LooseBool, "Whether subports may be added and removed, and the trunk deleted.", write="cu",
                          default=True, filter="eq", sort=True)  # fmt: skip
    port_id = Attr(Uuid, "The parent port: what its guest sends untagged.", write="c", ref="port.id", filter="eq",
                   sort=True)  # fmt: skip
    status = Attr(Str(16), "ACTIVE once all its ports are wired, BUILD meanwhile, DOWN without a host.",
                  default="DOWN", filter="eq", sort=True)  # fmt: skip
    sub_ports = Attr(with_schema(List(Json), {"type": "array", "items": SUB_PORT, "maxItems": 4094}), "Its subports.",
                     write="c", store=False, null=True)  # fmt: skip
    tags = Attr(Tags, "Labels.", write="c", default=[])
    unique = (("port_id",),)


SUBPORT = sa.Table(
    "trunk_subport",
    METADATA,
    sa.Column("port_id", sa.String(36), sa.ForeignKey("port.id"), primary_key=True),
    sa.Column("trunk_id", sa.String(36), sa.ForeignKey("trunk.id"), nullable=False),
    sa.Column("segmentation_type", sa.String(32), nullable=False),
    sa.Column("segmentation_id", sa.Integer, nullable=False),
    sa.UniqueConstraint("trunk_id", "segmentation_type", "segmentation_id"),
)
"""Which port is behind which tag of which trunk; a port is in one place at most."""
