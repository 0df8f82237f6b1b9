"""Metering labels of the Networking API v2.0: what of a project's traffic to and from outside is counted."""

from __future__ import annotations

import dataclasses
import ipaddress
from typing import Any

import sqlalchemy as sa

from nubila.core import clock
from nubila.core.declare import METADATA, Attr, Resource, Rest
from nubila.core.types import Enum, LooseBool, Str, Type, Uuid
from nubila.services.network.kinds import OwnerId, rest


def _prefix(value: Any) -> str:
    return str(ipaddress.ip_interface(str(value)).network)


Prefix = Type(
    lambda: sa.String(64), {"type": "string", "maxLength": 64}, load=lambda v: None if v is None else _prefix(v)
)  # fmt: skip


def _rest(item: str) -> Rest:
    made = rest(item, f"{item}s", verbs=frozenset({"list", "show", "create", "delete"}))
    return dataclasses.replace(made, path=made.path.replace("/v2.0/", "/v2.0/metering/"))


class MeteringLabel(Resource):
    """A name under which packets and bytes are counted in every router of its project, or of all projects."""

    kind, service, quota = "metering_label", "network", "metering_label"
    rest = _rest("metering_label")
    id = Attr(Uuid, "Identifier.", key=True, default=clock.new_id, filter="eq", sort=True)
    project_id = Attr(OwnerId, "Project that owns it.", alias=("tenant_id",), write="c", default="", filter="eq",
                      sort=True, index=True)  # fmt: skip
    name = Attr(Str(255), "Name, need not be unique.", write="c", default="", filter="eq", sort=True)
    description = Attr(Str(1024), "Free text.", write="c", default="", filter="eq", sort=True)
    shared = Attr(LooseBool, "Whether it counts in every project's routers.", write="c", default=False, filter="eq",
                  sort=True)  # fmt: skip


class MeteringLabelRule(Resource):
    """Which packets a label counts, or leaves out."""

    kind, service, quota = "metering_label_rule", "network", "metering_label_rule"
    rest = _rest("metering_label_rule")
    id = Attr(Uuid, "Identifier.", key=True, default=clock.new_id, filter="eq", sort=True)
    project_id = Attr(OwnerId, "Owner of the label.", api="project_id", default="", hidden=True, index=True)
    metering_label_id = Attr(Uuid, "Label it belongs to.", write="c", ref="metering_label.id", filter="eq", sort=True)
    direction = Attr(Enum("ingress", "egress"), "Into the project's networks, or out of them.", write="c",
                     default="ingress", filter="eq", sort=True)  # fmt: skip
    excluded = Attr(LooseBool, "Whether what it matches is left out.", write="c", default=False, filter="eq",
                    sort=True)  # fmt: skip
    remote_ip_prefix = Attr(Prefix, "Inside addresses: source of what goes out, destination of what comes in.",
                            write="c", default=None, null=True, filter="eq", sort=True)  # fmt: skip
    source_ip_prefix = Attr(Prefix, "Source addresses.", write="c", default=None, null=True, filter="eq",
                            sort=True)  # fmt: skip
    destination_ip_prefix = Attr(Prefix, "Destination addresses.", write="c", default=None, null=True, filter="eq",
                                 sort=True)  # fmt: skip


METERING_COUNT = sa.Table(
    "metering_count",
    METADATA,
    sa.Column("label_id", sa.String(36), primary_key=True),
    sa.Column("router_id", sa.String(36), primary_key=True, index=True),
    sa.Column("host", sa.String(64), primary_key=True),
    sa.Column("packets", sa.BigInteger, nullable=False),
    sa.Column("bytes", sa.BigInteger, nullable=False),
    sa.Column("seen_packets", sa.BigInteger, nullable=False),  # the host's own counter when it last reported
    sa.Column("seen_bytes", sa.BigInteger, nullable=False),
)
"""What hosts have counted; it outlives their counters, which begin anew with each namespace."""
