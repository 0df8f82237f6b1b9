"""Security groups and rules in the API."""

from __future__ import annotations

import ipaddress
from typing import Any

import sqlalchemy as sa

from nubila.core import clock, quota
from nubila.core.call import Call
from nubila.core.faults import bad_request, conflict, not_found
from nubila.core.query import ListQuery
from nubila.core.service import Hooks
from nubila.services.network import allocate, asks, groups, look, paging, tags
from nubila.services.network.groups import DEFAULT
from nubila.services.network.kinds_port import SecurityGroup, SecurityGroupRule
from nubila.services.network.tables import DEFAULT_GROUP, PORT_GROUP

Row = dict[str, Any]
_G, _R = SecurityGroup.table.c, SecurityGroupRule.table.c
PROTOCOLS = {
    "ah": 51, "dccp": 33, "egp": 8, "esp": 50, "gre": 47, "icmp": 1, "icmpv6": 58, "igmp": 2, "ipip": 4,
    "ipv6-encap": 41, "ipv6-frag": 44, "ipv6-icmp": 58, "ipv6-nonxt": 59, "ipv6-opts": 60, "ipv6-route": 43,
    "ospf": 89, "pgm": 113, "rsvp": 46, "sctp": 132, "tcp": 6, "udp": 17, "udplite": 136, "vrrp": 112, "any": 0,
}  # fmt: skip
"""Names the API takes, with their IANA numbers."""
PORTED = ("tcp", "udp", "sctp", "dccp", "udplite", "6", "17", "132", "33", "136")
ICMP = ("icmp", "icmpv6", "ipv6-icmp", "1", "58")
ONLY_V6 = ("icmpv6", "ipv6-icmp", "ipv6-encap", "ipv6-frag", "ipv6-nonxt", "ipv6-opts", "ipv6-route", "58")
_RULES = (
    sa.select(SecurityGroupRule.table)
    .where(_R.security_group_id.in_(sa.bindparam("groups", expanding=True)))
    .order_by(_R.security_group_id, _R.created_at, _R.id)
)
_USED = sa.select(PORT_GROUP.c.port_id).where(PORT_GROUP.c.security_group_id == sa.bindparam("group")).limit(1)
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


def refuse(text: str, type: str) -> Exception:
    return bad_request(text, type)


# --- groups ---------------------------------------------------------------------------------------------------------


def prepare(call: Call, values: Row) -> None:
    groups.ensure_default(call.cloud, call.tx, values["project_id"])
    if values["name"] == DEFAULT:
        raise conflict("Default security group already exists.", "SecurityGroupDefaultAlreadyExists")
    values["tags"] = tags.clean(values["tags"])


def created(call: Call, row: Row) -> None:
    groups.add_rules(call.tx, row["id"], row["project_id"], [("egress", "IPv4", None), ("egress", "IPv6", None)])
    tags.store(call.tx, row["id"], row["tags"], fresh=True)


def prepare_update(call: Call, before: Row, values: Row) -> None:
    look.check_revision(call, before)
    is_default = groups.default_of(call.tx, before["project_id"]) == before["id"]
    name = values.get("name", before["name"])
    if is_default and name != before["name"]:
        raise conflict("Updating default security group not allowed.", "SecurityGroupCannotUpdateDefault")
    if not is_default and name == DEFAULT:
        raise conflict("Default security group already exists.", "SecurityGroupDefaultAlreadyExists")


def deleting(call: Call, row: Row) -> None:
    tx, id = call.tx, row["id"]
    look.lock(tx, SecurityGroup, id)
    if tx.one(_USED, {"group": id}) is not None:
        raise conflict(f"Security Group {id} in use.", "SecurityGroupInUse")
    if groups.default_of(tx, row["project_id"]) == id and not call.may("context_is_admin"):
        text = "Insufficient rights for removing default security group."
        raise conflict(text, "SecurityGroupCannotRemoveDefault")
    lost: dict[str, int] = {}
    for rule in tx.all(_NAMING, {"group": id}):
        lost[rule["project_id"]] = lost.get(rule["project_id"], 0) + 1
        if rule["security_group_id"] != id:
            asks.groups(tx, [rule["security_group_id"]])
    tx.execute(_DELETE_RULES, {"b_group": id})
    for project, n in sorted(lost.items()):
        quota.release(tx, project, {"security_group_rule": n})
    tx.execute(_FORGET_DEFAULT, {"b_group": id})
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
    return paging.adapt(call, SecurityGroup, q)


HOOKS = Hooks(
    target=look.own_project,
    prepare=prepare,
    created=created,
    prepare_update=prepare_update,
    deleting=deleting,
    present=present,
    scope=scope,
    own_filters=tags.FILTERS,
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
    _ethertype(values)
    _protocol(values)
    _ports(values)
    _remote(call, values)
    values["sameness"] = groups.sameness(values)
    look.lock(call.tx, SecurityGroup, values["security_group_id"])
    same = call.tx.scalar(_SAME, {"group": values["security_group_id"], "sameness": values["sameness"]})
    if same is not None:
        raise conflict(f"Security group rule already exists. Rule id is {same}.", "SecurityGroupRuleExists")


def _ethertype(values: Row) -> None:
    known = {"ipv4": "IPv4", "ipv6": "IPv6"}
    given = values.get("ethertype") or "IPv4"
    if given.lower() not in known:
        text = f"Security group rule for ethertype '{given}' not supported. Allowed values are IPv4 and IPv6."
        raise refuse(text, "SecurityGroupRuleInvalidEtherType")
    values["ethertype"] = known[given.lower()]


def _protocol(values: Row) -> None:
    given = values.get("protocol")
    if given is None:
        return
    name = str(given).strip().lower()
    if name in ("any", "0", ""):
        values["protocol"] = None
        return
    if not (name in PROTOCOLS or (name.isascii() and name.isdigit() and int(name) <= 255)):
        text = f"Security group rule protocol {given} not supported. Only protocol values {sorted(PROTOCOLS)} and"
        raise refuse(f"{text} integer representations [0 to 255] are supported.", "SecurityGroupRuleInvalidProtocol")
    if name in ONLY_V6 and values["ethertype"] == "IPv4":
        text = f"Invalid ethertype {values['ethertype']} for protocol {given}."
        raise refuse(text, "SecurityGroupEthertypeConflictWithProtocol")
    values["protocol"] = "ipv6-icmp" if name == "icmpv6" else str(int(name)) if name.isdigit() else name


def _ports(values: Row) -> None:
    low, high, protocol = values.get("port_range_min"), values.get("port_range_max"), values["protocol"]
    if low is None and high is None:
        return
    if protocol is None:
        raise refuse("Must also specify protocol if port range is given.", "SecurityGroupProtocolRequiredWithPorts")
    numbers: list[int | None] = []
    for text in (low, high):
        try:
            numbers.append(None if text is None else int(text))
        except ValueError:
            raise refuse(f"Invalid value for port {text}", "SecurityGroupInvalidPortValue") from None
    first, last = numbers
    if protocol in ICMP:
        _icmp(first, last)
    elif protocol in PORTED:
        for n in numbers:
            if n is not None and not 0 <= n <= 65535:
                raise refuse(f"Invalid value for port {n}", "SecurityGroupInvalidPortValue")
        if first is None or last is None or first > last:
            text = "For TCP/UDP protocols, port_range_min must be <= port_range_max"
            raise refuse(text, "SecurityGroupInvalidPortRange")
    else:
        text = f"Ports cannot be specified for protocol {protocol}. Ports are only supported for {', '.join(PORTED)}."
        raise refuse(text, "SecurityGroupInvalidProtocolForPort")
    values["port_range_min"], values["port_range_max"] = first, last


def _icmp(kind: int | None, code: int | None) -> None:
    for n, field, attr in ((kind, "type", "port-range-min"), (code, "code", "port-range-max")):
        if n is not None and not 0 <= n <= 255:
            text = f"Invalid value for ICMP {field} ({attr}) {n}. It must be 0 to 255."
            raise refuse(text, "SecurityGroupInvalidIcmpValue")
    if kind is None and code is not None:
        text = f"ICMP code (port-range-max) {code} is provided but ICMP type (port-range-min) is missing."
        raise refuse(text, "SecurityGroupMissingIcmpType")


def _remote(call: Call, values: Row) -> None:
    prefix, group = values.get("remote_ip_prefix") or None, values.get("remote_group_id") or None
    values["remote_ip_prefix"], values["remote_group_id"], values["normalized_cidr"] = prefix, group, None
    if prefix and group:
        text = "Only one of remote_ip_prefix or remote_group_id or remote_address_group_id may be provided."
        raise refuse(text, "SecurityGroupMultipleRemoteEntites")
    if group:
        look.seen(call.cloud, call.tx, call.creds, SecurityGroup, group)
    if not prefix:
        return
    try:
        net = ipaddress.ip_network(prefix, strict=False)
        if "/" not in prefix:
            values["remote_ip_prefix"] = str(net)
    except ValueError:
        text = f"Invalid input for remote_ip_prefix: '{prefix}' is not a valid IP address or CIDR."
        raise refuse(text, "InvalidCIDR") from None
    if f"IPv{net.version}" != values["ethertype"]:
        text = f"Conflicting value ethertype {values['ethertype']} for CIDR {prefix}"
        raise refuse(text, "SecurityGroupRuleParameterConflict")
    values["normalized_cidr"] = str(net)


def rule_created(call: Call, row: Row) -> None:
    asks.groups(call.tx, [row["security_group_id"]])
    allocate.bump(call.tx, SecurityGroup, [row["security_group_id"]], clock.now())


def rule_deleted(call: Call, row: Row) -> None:
    rule_created(call, row)


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
