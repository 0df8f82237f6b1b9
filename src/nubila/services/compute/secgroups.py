"""Security groups as Compute shows them: of a server's ports, and the project's (before 2.36)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import sqlalchemy as sa

from nubila.core.call import Answer, Call, Reply, Route
from nubila.core.db import Reader
from nubila.core.faults import Fault, bad_request
from nubila.core.gates import until
from nubila.services.compute import interfaces, rows, wire
from nubila.services.compute.wire import Row, obj
from nubila.services.network import plug
from nubila.services.network.kinds_port import SecurityGroup, SecurityGroupRule

_G, _R = SecurityGroup.table, SecurityGroupRule.table
_BY_ID = sa.select(_G).where(_G.c.id.in_(sa.bindparam("ids", expanding=True))).order_by(_G.c.name, _G.c.id)
_OF_PROJECT = sa.select(_G).where(_G.c.project_id == sa.bindparam("project")).order_by(_G.c.name, _G.c.id)
_EVERY = sa.select(_G).order_by(_G.c.project_id, _G.c.name, _G.c.id)
_RULES = (
    sa.select(_R)
    .where(_R.c.security_group_id.in_(sa.bindparam("ids", expanding=True)), _R.c.direction == "ingress")
    .order_by(_R.c.security_group_id, _R.c.id)
)


def _number(value: Any) -> int | None:
    return None if value is None else int(value)


def _rule(rule: Row, names: dict[str, Row]) -> Row:
    remote = names.get(rule["remote_group_id"] or "")
    prefix = rule["remote_ip_prefix"]
    if not prefix and remote is None:
        prefix = "0.0.0.0/0" if rule["ethertype"] == "IPv4" else "::/0"
    return {
        "id": rule["id"], "parent_group_id": rule["security_group_id"], "ip_protocol": rule["protocol"],
        "from_port": _number(rule["port_range_min"]), "to_port": _number(rule["port_range_max"]),
        "group": {"tenant_id": remote["project_id"], "name": remote["name"]} if remote else {},
        "ip_range": {"cidr": prefix} if prefix else {},
    }  # fmt: skip


def shown(reader: Reader, groups: list[Row]) -> list[Row]:
    """Groups with their ingress rules, as Compute shows them."""
    if not groups:
        return []
    rules = reader.all(_RULES, {"ids": [g["id"] for g in groups]})
    remote = {r["remote_group_id"] for r in rules if r["remote_group_id"]}
    names = {g["id"]: g for g in reader.all(_BY_ID, {"ids": sorted(remote)})} if remote else {}
    return [
        {
            "id": g["id"], "name": g["name"], "description": g["description"] or "", "tenant_id": g["project_id"],
            "rules": [_rule(r, names) for r in rules if r["security_group_id"] == g["id"]],
        }
        for g in groups
    ]  # fmt: skip


def shown_rule(reader: Reader, rule: Row) -> Row:
    """One rule."""
    remote = rule["remote_group_id"]
    names = {g["id"]: g for g in reader.all(_BY_ID, {"ids": [remote]})} if remote else {}
    return _rule(rule, names)


def of_server(call: Call) -> Row:
    """List the security groups of a server's ports."""
    row = rows.find(call, "os_compute_api:os-security-groups:list")
    ids = {id for port in interfaces.ports_of(call, row) for id in plug.groups_of_port(call.tx, port["id"])}
    groups = call.tx.all(_BY_ID, {"ids": sorted(ids)}) if ids else []
    return {"security_groups": shown(call.tx, groups)}


def of_project(call: Call) -> Row:
    """List the project's security groups."""
    call.enforce("os_compute_api:os-security-groups:get", wire.mine(call))
    if call.arg("all_tenants") is not None and wire.is_admin(call):
        groups = call.tx.all(_EVERY)
    else:
        groups = call.tx.all(_OF_PROJECT, {"project": wire.project_of(call)})
    return {"security_groups": shown(call.tx, groups)}


def _change(call: Call, action: str, rule: str) -> Answer:
    inner = obj({"name": {"type": "string", "minLength": 1, "maxLength": 255}}, ["name"])
    name = str(wire.body(call, obj({action: inner}, [action]))[action]["name"])
    row = rows.find(call, f"os_compute_api:os-security-groups:{rule}")
    rows.unlocked(call, row, f"'{action}'")
    try:
        id = plug.security_group_ids(call.tx, row["project_id"], [name])[0]
    except Fault as e:
        raise Fault(404 if e.status == 400 else e.status, e.message) from None
    ports = [p["id"] for p in interfaces.ports_of(call, row)]
    if not ports:
        raise bad_request(f"Instance {row['id']} has no port that could have a security group.")
    before = {p: plug.groups_of_port(call.tx, p) for p in ports}
    if rule == "remove" and not any(id in have for have in before.values()):
        raise Fault(404, f"Server {row['id']} does not have security group {name}.")
    for port, have in before.items():
        wanted: Sequence[str] = [g for g in have if g != id] if rule == "remove" else [*have, id]
        if rule == "remove" or id not in have:
            plug.set_groups(call.cloud, call.tx, port, wanted)
    return Reply(None, 202)


def add(call: Call) -> Answer:
    """Put every port of a server into a security group."""
    return _change(call, "addSecurityGroup", "add")


def remove(call: Call) -> Answer:
    """Take every port of a server out of a security group."""
    return _change(call, "removeSecurityGroup", "remove")


ROUTES = (
    Route(method="GET", path="/v2.1/servers/{server_id}/os-security-groups", handler=of_server,
          doc="List the security groups of a server's ports."),
    Route(method="GET", path="/v2.1/os-security-groups", handler=of_project, doc="List the project's security groups.",
          gate=until(2, 36)),
)  # fmt: skip
