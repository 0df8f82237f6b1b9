"""Security groups and rules in the API."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa

from nubila.core import clock, quota
from nubila.core.call import Call
from nubila.core.db import Reader, Tx
from nubila.core.faults import bad_request, conflict, not_found, over_quota
from nubila.core.query import ListQuery
from nubila.core.service import Hooks
from nubila.core.types import is_uuid
from nubila.services.network import allocate, asks, group_hosting, group_rules, groups, logs, look, paging, rbac, tags
from nubila.services.network.feature import Feature
from nubila.services.network.groups import DEFAULT
from nubila.services.network.kinds_port import Port, SecurityGroup, SecurityGroupRule
from nubila.services.network.kinds_security import AddressGroup
from nubila.services.network.tables import DEFAULT_GROUP, PORT_GROUP

Row = dict[str, Any]
_G, _R = SecurityGroup.table.c, SecurityGroupRule.table.c
_RULES = (
    sa.select(SecurityGroupRule.table)
    .where(_R.security_group_id.in_(sa.bindparam("groups", expanding=True)))
    .order_by(_R.security_group_id, _R.created_at, _R.id)
)
_USED = sa.select(PORT_GROUP.c.port_id).where(PORT_GROUP.c.security_group_id == sa.bindparam("group")).limit(1)
_PROJECTS = (
    sa.select(Port.table.c.project_id)
    .join(PORT_GROUP, PORT_GROUP.c.port_id == Port.table.c.id)
    .where(PORT_GROUP.c.security_group_id == sa.bindparam("group"))
    .distinct()
)
_NAMING = sa.select(SecurityGroupRule.table).where(
    sa.or_(_R.security_group_id == sa.bindparam("group"), _R.remote_group_id == sa.bindparam("group"))
)
_DELETE_RULES = sa.delete(SecurityGroupRule.table).where(
    sa.or_(_R.security_group_id == sa.bindparam("b_group"), _R.remote_group_id == sa.bindparam("b_group"))
)
_FORGET_DEFAULT = sa.delete(DEFAULT_GROUP).where(DEFAULT_GROUP.c.security_group_id == sa.bindparam("b_group"))
_SAME = sa.select(_R.id).where(
    _R.security_group_id == sa.bindparam("group"), _R.sameness == sa.bindparam("sameness")
)  # fmt: skip


# --- groups ---------------------------------------------------------------------------------------------------------


def _named(name: str) -> None:
    """400 for a name that looks like another one: blanks at its ends, characters that do not print."""
    if name != name.strip() or not name.isprintable():
        raise bad_request("name: no blanks at its ends, printable characters only.", "HTTPBadRequest")


def prepare(call: Call, values: Row) -> None:
    _named(values["name"])
    groups.ensure_default(call.cloud, call.tx, values["project_id"])
    if values["name"].lower() == DEFAULT:
        raise conflict("Default security group already exists.", "SecurityGroupDefaultAlreadyExists")
    values["tags"] = tags.clean(values["tags"])


def created(call: Call, row: Row) -> None:
    try:
        groups.add_rules(
            call.tx, row["id"], row["project_id"], default=False, limits=call.cloud.service("network").quotas
        )
    except quota.OverQuota as e:
        raise over_quota(f"Quota exceeded for resources: ['{e.resource}']: {e.used} of {e.limit} in use.") from None
    tags.store(call.tx, row["id"], row["tags"], fresh=True)


def prepare_update(call: Call, before: Row, values: Row) -> None:
    look.check_revision(call, before)
    is_default = groups.default_of(call.tx, before["project_id"]) == before["id"]
    name = values.get("name", before["name"]) or ""
    if name != before["name"]:
        _named(name)
    if is_default and name != before["name"]:
        raise conflict("Updating default security group not allowed.", "SecurityGroupCannotUpdateDefault")
    if not is_default and name.lower() == DEFAULT:
        raise conflict("Default security group already exists.", "SecurityGroupDefaultAlreadyExists")
    if values.get("stateful", before["stateful"]) != before["stateful"]:
        look.lock(call.tx, SecurityGroup, before["id"])
        if call.tx.one(_USED, {"group": before["id"]}) is not None:
            raise conflict(f"Security Group {before['id']} in use.", "SecurityGroupInUse")


def deleting(call: Call, row: Row) -> None:
    tx, id = call.tx, row["id"]
    look.lock(tx, SecurityGroup, id)
    if tx.one(_USED, {"group": id}) is not None:
        raise conflict(f"Security Group {id} in use.", "SecurityGroupInUse")
    if groups.default_of(tx, row["project_id"]) == id and not call.may("context_is_admin"):
        text = "A project's default security group stays as long as the project; only administrators delete it."
        raise conflict(text, "SecurityGroupCannotRemoveDefault")
    lost: dict[str, int] = {}
    for rule in tx.all(_NAMING, {"group": id}):
        lost[rule["project_id"]] = lost.get(rule["project_id"], 0) + 1
        if rule["security_group_id"] != id:
            _rule_gone(tx, rule)
    tx.execute(_DELETE_RULES, {"b_group": id})
    for project, n in sorted(lost.items()):
        quota.release(tx, project, {"security_group_rule": n})
    tx.execute(_FORGET_DEFAULT, {"b_group": id})
    logs.forget(tx, id)
    tags.forget(tx, id)


def present(call: Call, rows: list[Row]) -> None:
    by_id = {r["id"]: r for r in rows}
    for row in rows:
        row["security_group_rules"] = []
    ids = list(by_id)
    for i in range(0, len(ids), 500):
        for rule in call.tx.all(_RULES, {"groups": ids[i : i + 500]}):
            by_id[rule["security_group_id"]]["security_group_rules"].append(rule_view(rule))


def rule_view(rule: Row) -> Row:
    """A rule as it is shown inside its group."""
    view: Row = {}
    for a in SecurityGroupRule.attrs.values():
        if not a.hidden:
            value = rule.get(a.name)
            for name in a.wire:
                view[name] = a.type.dump(value) if a.type.dump is not None and value is not None else value
    return view


def scope(call: Call, q: ListQuery) -> list[Any]:
    groups.ensure_default(call.cloud, call.tx, call.creds.project_id or "")
    asked = {value for name, value in call.query if name in ("project_id", "tenant_id")}
    if asked and call.may("context_is_admin"):  # whoever looks for a project's groups finds its default one
        for project in sorted(asked):
            if is_uuid(project):
                groups.ensure_default(call.cloud, call.tx, project)
    return paging.adapt(call, SecurityGroup, q)


def projects_using(reader: Reader, id: str) -> list[str]:
    """The projects with ports in the group."""
    return [project for (project,) in reader.rows(_PROJECTS, {"group": id})]


HOOKS = rbac.shareable(
    SecurityGroup,
    Hooks(
        target=look.own_project,
        prepare=prepare,
        created=created,
        prepare_update=prepare_update,
        deleting=deleting,
        present=present,
        scope=scope,
        own_filters=tags.FILTERS,
    ),
)


# --- rules ----------------------------------------------------------------------------------------------------------


def rule_target(call: Call, row: Row) -> Row:
    """A rule belongs to its group; one that the caller cannot see does not exist."""
    if not row.get("group_owner") and row.get("security_group_id"):
        group = look.need(call.tx, SecurityGroup, row["security_group_id"])
        row["group_owner"] = row["project_id"] = group["project_id"]
    return {}


def rule_prepare(call: Call, values: Row) -> None:
    rule_target(call, values)
    group_rules.check(values)
    if values["remote_group_id"]:
        look.seen(call.cloud, call.tx, call.creds, SecurityGroup, values["remote_group_id"])
    if values["remote_address_group_id"]:
        look.seen(call.cloud, call.tx, call.creds, AddressGroup, values["remote_address_group_id"])
    values["sameness"] = group_rules.sameness(values)
    values["belongs_to_default_sg"] = groups.default_of(call.tx, values["project_id"]) == values["security_group_id"]
    look.lock(call.tx, SecurityGroup, values["security_group_id"])
    same = call.tx.scalar(_SAME, {"group": values["security_group_id"], "sameness": values["sameness"]})
    if same is not None:
        raise conflict(f"Rule {same} of the group says this already.", "SecurityGroupRuleExists")


def rule_created(call: Call, row: Row) -> None:
    asks.groups(call.tx, [row["security_group_id"]])
    allocate.bump(call.tx, SecurityGroup, [row["security_group_id"]], clock.now())


def rule_deleted(call: Call, row: Row) -> None:
    rule_created(call, row)
    _rule_gone(call.tx, row)


def _rule_gone(tx: Tx, row: Row) -> None:
    """The hosts of its group may not need the addresses any more that the rule named."""
    asks.groups(tx, [row["security_group_id"]])
    named = row["remote_group_id"] or row["remote_address_group_id"]
    if named:
        for host in asks.group_hosts(tx, row["security_group_id"]):
            tx.ask("address_set", named, host)


def rule_scope(call: Call, q: ListQuery) -> list[Any]:
    groups.ensure_default(call.cloud, call.tx, call.creds.project_id or "")
    return paging.adapt(call, SecurityGroupRule, q)


def rule_find(call: Call, id: str) -> Row | None:
    """The rule; one of somebody else's group is not found in other words than one that nobody has."""
    row = look.row(call.tx, SecurityGroupRule, id)
    if row is not None:
        rule_target(call, row)
        if not call.may("get_security_group_rule", look.wire(SecurityGroupRule, row)):
            raise not_found("security_group_rule", id, "HTTPNotFound")
    return row


RULE_HOOKS = Hooks(
    prepare=rule_prepare, created=rule_created, deleted=rule_deleted, target=rule_target, scope=rule_scope,
    find=rule_find,
)  # fmt: skip


FEATURE = Feature(
    host_items=group_hosting.HOST_ITEMS,
    reconcilers=group_hosting.RECONCILERS,
    shareable=(rbac.Shareable(kind=SecurityGroup, uses={rbac.SHARED: projects_using}),),
    extensions={
        "port-security-groups-filtering": (
            "Port filtering on security groups", "Ports are listed by security group.", "2018-01-09",
        ),
        "rbac-security-groups": (
            "Add security_group type to network RBAC", "Security groups can be shared.", "2019-02-14",
        ),
        "security-groups-rules-belongs-to-default-sg": (
            "Security group rule belongs to the project's default security group", "Rules say so.", "2023-05-23",
        ),
        "security-groups-shared-filtering": (
            "Security group filtering on the shared field", "Security groups are listed by shared.", "2021-10-05",
        ),
        "stateful-security-group": (
            "Stateful security group", "Groups can do without connection tracking.", "2019-11-26",
        ),
    },
)  # fmt: skip
