"""Conntrack helpers of routers: protocols whose further connections a router lets through and translates."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa

from nubila.core.call import Call
from nubila.core.db import Reader
from nubila.core.faults import bad_request
from nubila.services.network import asks
from nubila.services.network.feature import Feature
from nubila.services.network.kinds import Router
from nubila.services.network.kinds_l3 import ConntrackHelper
from nubila.services.network.nested import Nested
from nubila.services.network.port_forwardings import parent_rules

Row = dict[str, Any]
ALLOWED: dict[str, tuple[str, ...]] = {
    # What Linux has a helper for, and for which protocol; a host that lacks one says so when it makes the router.
    "amanda": ("udp",), "ftp": ("tcp",), "h323": ("udp", "tcp"), "irc": ("tcp",), "netbios-ns": ("udp",),
    "pptp": ("tcp",), "sane": ("tcp",), "sip": ("udp", "tcp"), "snmp": ("udp",), "tftp": ("udp",),
}  # fmt: skip
_C = ConntrackHelper.table.c
_OF_ROUTER = (
    sa.select(ConntrackHelper.table).where(_C.router_id == sa.bindparam("router")).order_by(_C.created_at, _C.id)
)
_OF_ROUTERS = (
    sa.select(_C.router_id, _C.protocol, _C.port, _C.helper)
    .where(_C.router_id.in_(sa.bindparam("routers", expanding=True)))
    .order_by(_C.created_at, _C.id)
)
_DROP = sa.delete(ConntrackHelper.table).where(_C.id == sa.bindparam("b_id"))


def of_router(reader: Reader, router_id: str) -> list[Row]:
    """The helpers of a router, oldest first."""
    return reader.all(_OF_ROUTER, {"router": router_id})


def of_routers(reader: Reader, ids: list[str]) -> dict[str, list[Row]]:
    """router -> its helpers as the router shows them."""
    out: dict[str, list[Row]] = {}
    for router, protocol, port, helper in reader.rows(_OF_ROUTERS, {"routers": ids}):
        out.setdefault(router, []).append({"protocol": protocol, "port": port, "helper": helper})
    return out


def _check(call: Call, parent: Row, row: Row, own: str = "") -> None:
    protocols = ALLOWED.get(row["helper"])
    if protocols is None:
        raise bad_request(f"Conntrack Helper {row['helper']} is not allowed.", "ConntrackHelperNotAllowed")
    if row["protocol"] not in protocols:
        text = f"protocol {row['protocol']} does not suit conntrack helper {row['helper']}: use one of "
        raise bad_request(f"{text}{', '.join(protocols)}", "InvalidProtocolForHelper")
    key = ("protocol", "port", "helper")
    if any(other["id"] != own and all(other[n] == row[n] for n in key) for other in of_router(call.tx, parent["id"])):
        text = f"The router has a conntrack helper with { {n: row[n] for n in key} } already."
        raise bad_request(text, "BadRequest")


def prepare(call: Call, parent: Row, values: Row) -> None:
    _check(call, parent, values)


def prepare_update(call: Call, parent: Row, before: Row, values: Row) -> None:
    _check(call, parent, {**before, **values}, before["id"])


def changed(call: Call, parent: Row, *_: Row) -> None:
    asks.router(call.tx, parent["id"])


NESTED = Nested(
    cls=ConntrackHelper, parent=Router, link="router_id", item="conntrack_helper", items="conntrack_helpers",
    rule="router_conntrack_helper", prepare=prepare, created=changed, prepare_update=prepare_update, updated=changed,
    deleted=changed,
)  # fmt: skip

FEATURE = Feature(
    kinds=(ConntrackHelper,),
    routes=NESTED.routes(),
    rules=parent_rules("router_conntrack_helper", "conntrack helper"),
    quotas={"conntrack_helper": 100},
    extensions={
        "l3-conntrack-helper": ("L3 Conntrack helper", "Routers follow FTP, TFTP, SIP and other protocols.",
                                "2019-04-04"),
        "expose-l3-conntrack-helper": ("Expose CT target rules for conntrack helper",
                                       "Routers show their conntrack helpers.", "2019-04-04"),
    },
)  # fmt: skip
