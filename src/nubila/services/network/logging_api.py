"""Logs in the API (extension logging)."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa

from nubila.core.call import Call, Route
from nubila.core.faults import Fault, bad_request
from nubila.core.policy import Rule
from nubila.core.query import ListQuery
from nubila.core.service import Hooks
from nubila.services.network import logs, look, paging
from nubila.services.network.feature import Feature
from nubila.services.network.kinds_logging import Log
from nubila.services.network.kinds_port import Port, SecurityGroup
from nubila.services.network.policies import ADMIN
from nubila.services.network.tables import PORT_GROUP

Row = dict[str, Any]
GROUP = "security_group"
TYPES = (GROUP,)
"""What can be logged."""
_IN = sa.select(PORT_GROUP.c.port_id).where(
    PORT_GROUP.c.port_id == sa.bindparam("port"), PORT_GROUP.c.security_group_id == sa.bindparam("group")
)


def prepare(call: Call, values: Row) -> None:
    tx, group, port = call.tx, values["resource_id"], values["target_id"]
    if values["resource_type"] not in TYPES:
        text = f"Invalid log resource_type: {values['resource_type']}."
        raise bad_request(text, "InvalidLogResourceType")
    if group:
        look.lock(tx, SecurityGroup, group)
        row = look.row(tx, SecurityGroup, group)
        if row is None or not look.visible(call.cloud, call.creds, SecurityGroup, row, tx):
            raise Fault(404, f"Resource {group} could not be found.", "ResourceNotFound")
    if port:
        look.lock(tx, Port, port)
        row = look.row(tx, Port, port)
        if row is None or not look.visible(call.cloud, call.creds, Port, row, tx):
            raise Fault(404, f"target_id: there is no port {port}.", "TargetResourceNotFound")
    if group and port and tx.one(_IN, {"port": port, "group": group}) is None:
        text = f"Invalid resource constraint between resource ({GROUP} {group}) and target resource (port {port})."
        raise bad_request(text, "InvalidResourceConstraint")


def created(call: Call, row: Row) -> None:
    logs.ask(call.tx, row)


def prepare_update(call: Call, before: Row, values: Row) -> None:
    look.check_revision(call, before)


def updated(call: Call, before: Row, after: Row) -> None:
    if before["enabled"] != after["enabled"]:
        logs.ask(call.tx, after)


def scope(call: Call, q: ListQuery) -> list[Any]:
    return paging.adapt(call, Log, q)


def find(call: Call, id: str) -> Row:
    """The log; what is not there is called a log resource."""
    row = look.need(call.tx, Log, id)
    if not call.may("get_log", row):
        raise look.missing(Log, id)
    return row


def types(call: Call) -> Row:
    call.enforce("get_loggable_resource", {"project_id": call.creds.project_id})
    return {"loggable_resources": [{"type": name} for name in TYPES]}


def _rule(name: str, doc: str) -> Rule:
    return Rule(name, f"({ADMIN}) or (role:manager and project_id:%(project_id)s)", doc, scopes=("project",))


FEATURE = Feature(
    kinds=(Log,),
    hooks={
        Log: Hooks(
            target=look.own_project, prepare=prepare, created=created, prepare_update=prepare_update, updated=updated,
            deleted=created, scope=scope, find=find,
        )
    },
    routes=(
        Route(method="GET", path="/v2.0/log/loggable-resources", handler=types, doc="List what can be logged."),
    ),
    reconcilers={"log_ports": logs.ports_item},
    quotas={"log": 100},
    rules=(
        *(_rule(f"{verb}_log", f"{verb.capitalize()} logs.") for verb in ("create", "get", "update", "delete")),
        _rule("get_loggable_resource", "List what can be logged."),
    ),
    extensions={
        "logging": ("Logging API Extension", "Hosts write down what security groups accept and drop.", "2017-01-01"),
    },
)  # fmt: skip
