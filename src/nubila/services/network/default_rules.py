"""Templates of the rules that new security groups get (extension security-groups-default-rules)."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa

from nubila.core import clock
from nubila.core.call import Call
from nubila.core.db import Reader, Tx
from nubila.core.faults import conflict
from nubila.core.policy import Rule
from nubila.core.query import ListQuery
from nubila.core.service import Hooks
from nubila.services.network import group_rules, look, paging
from nubila.services.network.feature import Feature
from nubila.services.network.kinds_port import SecurityGroup
from nubila.services.network.kinds_security import PARENT, AddressGroup, DefaultSecurityGroupRule
from nubila.services.network.policies import ADMIN

Row = dict[str, Any]
_T = DefaultSecurityGroupRule.table.c
_SAME = (
    sa.select(_T.id)
    .where(
        _T.sameness == sa.bindparam("sameness"),
        sa.or_(
            sa.and_(_T.used_in_default_sg.is_(True), sa.bindparam("default", type_=sa.Boolean).is_(True)),
            sa.and_(_T.used_in_non_default_sg.is_(True), sa.bindparam("other", type_=sa.Boolean).is_(True)),
        ),
    )
    .order_by(_T.id)
    .limit(1)
)
_OUT = "Legacy default SG rule for egress traffic"  # clients compare these two
_IN = "Legacy default SG rule for ingress traffic"


def make_first(tx: Tx) -> None:
    """The four templates that a new cloud has: out to everybody, and default groups let their own members in."""
    for ethertype in ("IPv4", "IPv6"):
        for direction, text, remote, other in (("egress", _OUT, None, True), ("ingress", _IN, PARENT, False)):
            row: Row = {
                "id": clock.new_id(), "description": text, "direction": direction, "ethertype": ethertype,
                "protocol": None, "port_range_min": None, "port_range_max": None, "remote_ip_prefix": None,
                "remote_group_id": remote, "remote_address_group_id": None, "used_in_default_sg": True,
                "used_in_non_default_sg": other, "normalized_cidr": None,
            }  # fmt: skip
            tx.insert(DefaultSecurityGroupRule.table, {**row, "sameness": group_rules.sameness(row)})


def prepare(call: Call, values: Row) -> None:
    group_rules.check(values)
    if values["remote_group_id"] not in (None, PARENT):
        look.need(call.tx, SecurityGroup, values["remote_group_id"])
    if values["remote_address_group_id"]:
        look.need(call.tx, AddressGroup, values["remote_address_group_id"])
    values["sameness"] = group_rules.sameness(values)
    where = {
        "sameness": values["sameness"], "default": values["used_in_default_sg"],
        "other": values["used_in_non_default_sg"],
    }  # fmt: skip
    same = call.tx.scalar(_SAME, where)
    if same is not None:
        text = f"Default rule {same} says this already."
        raise conflict(text, "DefaultSecurityGroupRuleExists")


def scope(call: Call, q: ListQuery) -> list[Any]:
    return paging.adapt(call, DefaultSecurityGroupRule, q)


def unusable(cloud: Any, reader: Reader) -> list[str]:
    """Invariant: what templates refer to is there."""
    g, a = SecurityGroup.table.c, AddressGroup.table.c
    wrong = sa.select(_T.id).where(
        sa.or_(
            sa.and_(_T.remote_group_id.is_not(None), _T.remote_group_id != PARENT,
                    _T.remote_group_id.not_in(sa.select(g.id))),
            sa.and_(_T.remote_address_group_id.is_not(None), _T.remote_address_group_id.not_in(sa.select(a.id))),
        )
    )  # fmt: skip
    return [f"default_security_group_rule {id}: refers to a group that is gone" for (id,) in reader.rows(wrong)]


FEATURE = Feature(
    kinds=(DefaultSecurityGroupRule,),
    hooks={DefaultSecurityGroupRule: Hooks(prepare=prepare, scope=scope)},
    resources={"default-security-group-rules": "default_security_group_rule"},
    invariants=(unusable,),
    rules=(
        *(Rule(f"{verb}_default_security_group_rule", ADMIN, f"{verb.capitalize()} a template of security group rules.",
               scopes=("project",)) for verb in ("create", "delete")),
        Rule("get_default_security_group_rule", "role:reader", "Get templates of security group rules.",
             scopes=("project",)),
    ),
    extensions={
        "security-groups-default-rules": (
            "Default rules for security groups", "The rules that every new security group gets.", "2022-12-19",
        ),
    },
)  # fmt: skip
