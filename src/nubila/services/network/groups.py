"""Security groups of projects and ports: the default group, membership."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import sqlalchemy as sa

from nubila.core import clock, quota
from nubila.core.cloud import Cloud
from nubila.core.db import Reader, Tx
from nubila.core.faults import Fault, bad_request, conflict
from nubila.core.sql import upsert
from nubila.services.network import group_rules, look
from nubila.services.network.kinds_port import SecurityGroup, SecurityGroupRule
from nubila.services.network.kinds_security import PARENT, DefaultSecurityGroupRule
from nubila.services.network.tables import DEFAULT_GROUP, PORT_GROUP

Row = dict[str, Any]
DEFAULT = "default"
_G = SecurityGroup.table.c
_DEFAULT_OF = sa.select(DEFAULT_GROUP.c.security_group_id).where(DEFAULT_GROUP.c.project_id == sa.bindparam("project"))
_OF_PORT = (
    sa.select(PORT_GROUP.c.security_group_id)
    .where(PORT_GROUP.c.port_id == sa.bindparam("port"))
    .order_by(PORT_GROUP.c.security_group_id)
)
_KNOWN = sa.select(SecurityGroup.table).where(_G.id.in_(sa.bindparam("ids", expanding=True)))
_BY_NAME = sa.select(_G.id).where(_G.project_id == sa.bindparam("project"), _G.name == sa.bindparam("name"))
_T = DefaultSecurityGroupRule.table.c
_TEMPLATES = {
    default: sa.select(DefaultSecurityGroupRule.table)
    .where((_T.used_in_default_sg if default else _T.used_in_non_default_sg).is_(True))
    .order_by(_T.direction, _T.ethertype, _T.id)
    for default in (False, True)
}
_COPIED = (
    "direction", "ethertype", "protocol", "port_range_min", "port_range_max", "remote_ip_prefix", "remote_group_id",
    "remote_address_group_id", "normalized_cidr", "description",
)  # fmt: skip
_LEAVE = sa.delete(PORT_GROUP).where(PORT_GROUP.c.port_id == sa.bindparam("b_port"))


@functools.cache
def _claim_default(dialect: str) -> sa.Insert:
    values: dict[str, Any] = {"project_id": sa.bindparam("b_project"), "security_group_id": sa.bindparam("b_group")}
    return upsert(dialect, DEFAULT_GROUP, values, {})


def default_of(reader: Reader, project_id: str) -> str | None:
    """The id of the project's default group, None when it has none yet."""
    found: str | None = reader.scalar(_DEFAULT_OF, {"project": project_id})
    return found


def ensure_default(cloud: Cloud, tx: Reader, project_id: str) -> str | None:
    """The project's default group, made with its four rules when the project has none.

    Given a mere reader it opens a transaction of its own. None for an empty project.
    """
    if not project_id:
        return None
    found = default_of(tx, project_id)
    if found is not None:
        return found
    if isinstance(tx, Tx):
        return _make_default(tx, project_id)
    return cloud.store.transact(lambda own: default_of(own, project_id) or _make_default(own, project_id))


def _make_default(tx: Tx, project_id: str) -> str:
    id = clock.new_id()
    tx.execute(_claim_default(tx.dialect), {"b_project": project_id, "b_group": id})
    winner = default_of(tx, project_id)
    assert winner is not None
    if winner != id:
        return winner
    now = clock.now()
    tx.insert(SecurityGroup.table, {
        "id": id, "name": DEFAULT, "description": "Default security group", "project_id": project_id, "tags": [],
        "stateful": True, "shared": False, "created_at": now, "updated_at": now, "revision_number": 1,
    })  # fmt: skip
    add_rules(tx, id, project_id, default=True)
    quota.count(tx, project_id, {"security_group": 1})
    return id


def add_rules(tx: Tx, group_id: str, owner: str, *, default: bool, limits: Mapping[str, int] | None = None) -> None:
    """The rules that templates say a new group gets. ``limits``: raise OverQuota when there may not be so many."""
    now, templates = clock.now(), tx.all(_TEMPLATES[default])
    amount = {"security_group_rule": len(templates)}
    if limits is None:
        quota.count(tx, owner, amount)
    else:
        quota.claim(tx, owner, amount, limits)
    for template in templates:
        row: Row = {name: template[name] for name in _COPIED}
        if row["remote_group_id"] == PARENT:
            row["remote_group_id"] = group_id
        row["sameness"] = group_rules.sameness(row)
        row |= {
            "id": clock.new_id(), "security_group_id": group_id, "project_id": owner, "group_owner": owner,
            "belongs_to_default_sg": default, "created_at": now, "updated_at": now, "revision_number": 0,
        }  # fmt: skip
        tx.insert(SecurityGroupRule.table, row)


def of_port(reader: Reader, port_id: str) -> list[str]:
    """The ids of a port's groups."""
    return [id for (id,) in reader.rows(_OF_PORT, {"port": port_id})]


def chosen(cloud: Cloud, tx: Tx, port: Row, asked: Sequence[str] | None, creds: Any) -> list[str]:
    """The groups a port is to be in. ``asked`` None: the project's default group where groups apply at all."""
    guarded = bool(port["port_security_enabled"]) and not str(port["device_owner"]).startswith("network:")
    if asked is None:
        default = ensure_default(cloud, tx, port["project_id"]) if guarded else None
        return [default] if default else []
    ids = list(dict.fromkeys(asked))
    if len(ids) != len(asked):
        text = f"Invalid input for security_groups. Reason: Duplicate items in the list: {list(asked)}."
        raise bad_request(text, "HTTPBadRequest")
    if not ids:
        return []
    if not port["port_security_enabled"]:
        text = "security_groups: the port has port_security_enabled off; switch it on or give no groups."
        raise bad_request(text, "PortSecurityAndIPRequiredForSecurityGroups")
    rows = {g["id"]: g for g in tx.all(_KNOWN, {"ids": ids})}
    for id in ids:
        group = rows.get(id)
        mine = group is not None and (creds is None or group["project_id"] in (port["project_id"], creds.project_id))
        if group is None or not (mine or look.visible(cloud, creds, SecurityGroup, group, tx)):
            raise look.missing(SecurityGroup, id)
    if len({rows[id]["stateful"] for id in ids}) > 1:
        text = "security_groups: a port has either stateful groups or stateless ones, not a mixture."
        raise conflict(text, "SecurityGroupConflict")
    return ids


def join(tx: Tx, port_id: str, ids: Sequence[str]) -> None:
    """Put a port in exactly these groups."""
    tx.execute(_LEAVE, {"b_port": port_id})
    for id in sorted(ids):
        tx.insert(PORT_GROUP, {"port_id": port_id, "security_group_id": id})


def by_names(reader: Reader, project_id: str, names_or_ids: Iterable[str]) -> list[str]:
    """Ids of groups given by id or by name within the project; 400 for an unknown, 409 for an ambiguous name."""
    out = []
    for name in names_or_ids:
        ids = [id for (id,) in reader.rows(_BY_NAME, {"project": project_id, "name": name})]
        group = look.row(reader, SecurityGroup, name) if not ids else None
        if group is not None and group["project_id"] == project_id:
            ids = [group["id"]]
        if not ids:
            raise bad_request(f"Project {project_id} has no security group {name}.", "SecurityGroupNotFound")
        if len(ids) > 1:
            text = f"{len(ids)} security groups are called '{name}': give the id of the one you mean."
            raise Fault(409, text, "NoUniqueMatch")
        out.append(ids[0])
    return list(dict.fromkeys(out))
