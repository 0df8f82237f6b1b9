"""Rules of QoS policies in the API: below their policy, and by themselves under an alias."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

import sqlalchemy as sa

from nubila.core import checks, clock
from nubila.core.call import Call, Route, takes
from nubila.core.faults import Fault, bad_request, conflict, forbidden
from nubila.core.types import boolean
from nubila.services.network import allocate, look, qos_guarantees, qos_use
from nubila.services.network.kinds_qos import (
    ANY,
    BANDWIDTH_LIMIT,
    MINIMUM_BANDWIDTH,
    MINIMUM_PACKET_RATE,
    MOST,
    QOS_RULE,
    RULE_TYPES,
    QosPolicy,
    RuleType,
)

Row = dict[str, Any]
_R = QOS_RULE.c
_ONE = sa.select(QOS_RULE).where(_R.id == sa.bindparam("id"), _R.type == sa.bindparam("type"))
_DELETE = sa.delete(QOS_RULE).where(_R.id == sa.bindparam("b_id"))
_UPDATE = (
    sa.update(QOS_RULE)
    .where(_R.id == sa.bindparam("b_id"))
    .values(value=sa.bindparam("b_value"), burst=sa.bindparam("b_burst"), direction=sa.bindparam("b_direction"))
)


# --- finding ----------------------------------------------------------------------------------------------------------


def _missing(rule_id: str, policy_id: str) -> Fault:
    return Fault(404, f"QoS policy {policy_id} has no rule {rule_id}.", "QosRuleNotFound")


def _target(policy: Row) -> Row:
    owner = policy["project_id"]
    names = ("project_id", "tenant_id", "ext_parent:project_id", "ext_parent:tenant_id")
    return dict.fromkeys(names, owner)


def _policy(call: Call, id: str) -> Row:
    """The policy of a rule as the caller may see it; in a write, locked: what its rules say together must stay true."""
    row = look.seen(call.cloud, call.tx, call.creds, QosPolicy, id)
    if call.method != "GET":
        look.lock(call.tx, QosPolicy, id)
        row = look.need(call.tx, QosPolicy, id)
    return row


def _find(call: Call, kind: RuleType, alias: bool) -> tuple[Row, Row]:
    """(policy, rule) of a request about one rule."""
    rule = call.tx.one(_ONE, {"id": call.params["id"], "type": kind.name})
    if alias:
        if rule is None:
            raise _missing(call.params["id"], "")
        try:
            policy = _policy(call, rule["qos_policy_id"])
        except Fault:
            raise _missing(call.params["id"], "") from None
    else:
        policy = _policy(call, call.params["policy_id"])
    name = f"{'alias' if alias else 'policy'}_{kind.item}"
    if rule is None or rule["qos_policy_id"] != policy["id"] or not call.may(f"get_{name}", _target(policy)):
        raise _missing(call.params["id"], policy["id"])
    return policy, rule


# --- checking ---------------------------------------------------------------------------------------------------------


def _given(call: Call, kind: RuleType, key: str, verb: str) -> Row:
    """The checked values of a body, numbers as numbers."""
    body = call.body
    if not isinstance(body, dict) or set(body) != {key} or not isinstance(body[key], dict):
        raise bad_request(f"The body must be an object with the key '{key}'.", "HTTPBadRequest")
    inner: Row = body[key]
    checks.checker(kind.schema(verb))(inner)
    values = {name: value if name == "direction" else int(value) for name, value in inner.items()}
    if strange := [name for name, value in values.items() if name != "direction" and value > MOST]:
        raise bad_request(f"Invalid input for {strange[0]}: it is more than {MOST}.", "HTTPBadRequest")
    if kind.values and values.get(kind.value, kind.values[0]) not in kind.values:
        text = f"Invalid input for {kind.value}: {values[kind.value]} is not one of {list(kind.values)}."
        raise bad_request(text, "HTTPBadRequest")
    return values


def _clash(policy_id: str, value: Any, rule: Row, existing: Any) -> Fault:
    text = f"{value} contradicts the {existing} of the {rule['type']} rule {rule['id']} in policy {policy_id}."
    return conflict(text, "QoSRuleParameterConflict")


def _agree(call: Call, policy: Row, wish: Row) -> None:
    """409 when the rule cannot stand beside the others of its policy."""
    for other in qos_use.rules(call.tx, [policy["id"]])[policy["id"]]:
        if other["id"] == wish["id"]:
            continue
        same = other["direction"] == wish["direction"]
        if same and {other["type"], wish["type"]} == {BANDWIDTH_LIMIT.name, MINIMUM_BANDWIDTH.name}:
            least, most = (other, wish) if other["type"] == MINIMUM_BANDWIDTH.name else (wish, other)
            if least["value"] > most["value"]:
                raise _clash(policy["id"], wish["value"], other, other["value"])
        if other["type"] != wish["type"]:
            continue
        if wish["type"] == MINIMUM_PACKET_RATE.name and (other["direction"] == ANY) != (wish["direction"] == ANY):
            raise _clash(policy["id"], wish["direction"], other, other["direction"])
        if same:
            text = f"Policy {policy['id']} has such a {wish['type']} rule already, {other['id']}: change that one."
            raise conflict(text, "QoSRulesConflict")


def _changed(call: Call, policy: Row, kind: RuleType) -> None:
    guarantees = kind in (MINIMUM_BANDWIDTH, MINIMUM_PACKET_RATE)
    allocate.bump(call.tx, QosPolicy, [policy["id"]], clock.now())
    if guarantees:
        qos_guarantees.policy(call.tx, policy["id"])
    call.tx.ask("qos_policy", policy["id"])


# --- verbs ------------------------------------------------------------------------------------------------------------


def _create(kind: RuleType) -> Callable[[Call], Row]:
    @takes({"type": "object", "properties": {kind.item: kind.schema("create")}, "required": [kind.item]})
    def handler(call: Call) -> Row:
        rule = f"create_policy_{kind.item}"
        found = look.row(call.tx, QosPolicy, call.params["policy_id"])
        # Before anything is said about the policy: who may create rules nowhere learns nothing from the answer.
        call.enforce(rule, _target(found or {"project_id": None}))
        policy = _policy(call, call.params["policy_id"])
        given = _given(call, kind, kind.item, "create")
        row = {
            "id": clock.new_id(), "qos_policy_id": policy["id"], "type": kind.name,
            "direction": given.get("direction", "egress" if kind.directions else ""),
            "value": given[kind.value], "burst": given.get(kind.burst, 0) if kind.burst else 0,
        }  # fmt: skip
        _agree(call, policy, row)
        call.tx.insert(QOS_RULE, row)
        _changed(call, policy, kind)
        return {kind.item: qos_use.view(row)}

    return handler


def _update(kind: RuleType, alias: bool) -> Callable[[Call], Row]:
    key = f"alias_{kind.item}" if alias else kind.item

    @takes({"type": "object", "properties": {key: kind.schema("update")}, "required": [key]})
    def handler(call: Call) -> Row:
        policy, before = _find(call, kind, alias)
        call.enforce(f"update_{'alias' if alias else 'policy'}_{kind.item}", _target(policy))
        given = _given(call, kind, key, "update")
        after = {
            **before, "value": given.get(kind.value, before["value"]),
            "burst": given.get(kind.burst, before["burst"]) if kind.burst else 0,
            "direction": given.get("direction", before["direction"]),
        }  # fmt: skip
        _agree(call, policy, after)
        call.tx.execute(_UPDATE, {f"b_{n}": after[n] for n in ("id", "value", "burst", "direction")})
        _changed(call, policy, kind)
        return {key: _alias(qos_use.view(after), policy, alias)}

    return handler


def _show(kind: RuleType, alias: bool) -> Callable[[Call], Row]:
    def handler(call: Call) -> Row:
        policy, rule = _find(call, kind, alias)
        shown = _alias(qos_use.view(rule), policy, alias)
        return {f"alias_{kind.item}" if alias else kind.item: _only(call, [shown])[0]}

    return handler


def _alias(shown: Row, policy: Row, alias: bool) -> Row:
    """By itself a rule says whose it is."""
    return {**shown, "project_id": policy["project_id"], "tenant_id": policy["project_id"]} if alias else shown


def _delete(kind: RuleType, alias: bool) -> Callable[[Call], None]:
    def handler(call: Call) -> None:
        policy, rule = _find(call, kind, alias)
        call.enforce(f"delete_{'alias' if alias else 'policy'}_{kind.item}", _target(policy))
        call.tx.execute(_DELETE, {"b_id": rule["id"]})
        _changed(call, policy, kind)

    return handler


def _list(kind: RuleType) -> Callable[[Call], Row]:
    known = {"id", kind.value, *([kind.burst] if kind.burst else []), *(["direction"] if kind.directions else [])}

    def handler(call: Call) -> Row:
        policy = _policy(call, call.params["policy_id"])
        rows: list[Row] = []
        if call.may(f"get_policy_{kind.item}", _target(policy)):
            all_ = qos_use.rules(call.tx, [policy["id"]])[policy["id"]]
            rows = [qos_use.view(r) for r in all_ if r["type"] == kind.name]
        return {f"{kind.item}s": _only(call, _page(call, rows, known))}

    return handler


def _page(call: Call, rows: list[Row], known: set[str]) -> list[Row]:
    """Filters, order, marker and limit; a policy has a handful of rules of one type at most."""
    asked: dict[str, list[str]] = {}
    for name, text in call.query:
        asked.setdefault(name, []).append(text)
    keys = asked.pop("sort_key", [])
    dirs = [*asked.pop("sort_dir", []), *["asc"] * len(keys)]
    limit, marker = asked.pop("limit", ["0"])[-1], asked.pop("marker", [""])[-1]
    backwards = asked.pop("page_reverse", ["false"])[-1].lower() in ("true", "1")
    asked.pop("fields", None)
    if strange := [name for name in (*asked, *keys) if name not in known]:
        text = f"Rules can not be filtered by '{strange[0]}', only by {', '.join(sorted(known))}."
        raise bad_request(text, "HTTPBadRequest")
    if not re.fullmatch(r"[0-9]{1,9}", limit) or any(d not in ("asc", "desc") for d in dirs):
        raise bad_request("limit is a whole number, sort_dir is asc or desc.", "HTTPBadRequest")
    rows = [r for r in rows if all(str(r[name]) in texts for name, texts in asked.items())]
    rows.sort(key=lambda r: str(r["id"]))
    for key, direction in reversed(list(zip(keys, dirs, strict=False))):
        rows.sort(key=lambda r: r[key], reverse=direction == "desc")
    if backwards:
        rows.reverse()
    if marker:
        ids = [r["id"] for r in rows]
        if marker not in ids:
            raise _missing(marker, call.params["policy_id"])
        rows = rows[ids.index(marker) + 1 :]
    rows = rows[: int(limit)] if int(limit) else rows
    return rows[::-1] if backwards else rows


def _only(call: Call, views: list[Row]) -> list[Row]:
    fields = {f for name, text in call.query if name == "fields" for f in text.split(",") if f}
    return [{n: v for n, v in view.items() if not fields or n in fields} for view in views]


# --- rule types -------------------------------------------------------------------------------------------------------


def list_types(call: Call) -> Row:
    """The kinds of rules that hosts honour, or with ``all_rules`` every kind the API knows."""
    flags = {}
    for name, text in call.query:
        if name not in ("all_rules", "all_supported", "type", "fields"):
            raise bad_request(f"Rule types can not be filtered by '{name}'.", "HTTPBadRequest")
        try:
            flags[name] = boolean(text) if name.startswith("all_") else text
        except ValueError:
            raise bad_request(f"Invalid input for {name}: '{text}' is not true or false.", "InvalidInput") from None
    if flags.get("all_rules") and flags.get("all_supported"):
        raise bad_request("Only one of 'all_rules' and 'all_supported' can be asked for.", "InvalidInput")
    call.enforce("get_rule_type")
    kinds = [t for t in RULE_TYPES.values() if t.supported or flags.get("all_rules")]
    return {"rule_types": [{"type": t.name} for t in kinds if flags.get("type", t.name) == t.name]}


def show_type(call: Call) -> Row:
    """What can be said in rules of one kind, and who honours it; for administrators."""
    call.enforce("get_rule_type")
    if not call.may("context_is_admin"):
        raise forbidden("Only administrators may see the details of rule types.", "NotAuthorized")
    kind = RULE_TYPES.get(call.params["type"])
    if kind is None:
        text = f"Rule type {call.params['type']} is not one of {', '.join(RULE_TYPES)}."
        raise Fault(404, text, "HTTPNotFound")
    drivers = [{"name": "openvswitch", "supported_parameters": kind.parameters()}] if kind.supported else []
    return {"rule_type": {"type": kind.name, "drivers": drivers}}


def _routes() -> list[Route]:
    out = [
        Route(method="GET", path="/v2.0/qos/rule-types", handler=list_types, doc="List the kinds of QoS rules."),
        Route(method="GET", path="/v2.0/qos/rule-types/{type}", handler=show_type, doc="Show a kind of QoS rules."),
    ]
    for kind in RULE_TYPES.values():
        name = kind.item.replace("_", " ")
        base = f"/v2.0/qos/policies/{{policy_id}}/{kind.item}s"
        out += [
            Route(method="GET", path=base, handler=_list(kind), doc=f"List the {name}s of a QoS policy."),
            Route(method="POST", path=base, handler=_create(kind), tx="write", status=201, doc=f"Create a {name}."),
        ]
        places = [(f"{base}/{{id}}", False)]
        if kind.alias:  # the reference spells it with underscores, the original's URLs with dashes
            plain = f"alias_{kind.item}s"
            places += [(f"/v2.0/qos/{spelled}/{{id}}", True) for spelled in (plain, plain.replace("_", "-"))]
        for path, alias in places:
            what = f"{name} without naming its policy" if alias else name
            out += [
                Route(method="GET", path=path, handler=_show(kind, alias), doc=f"Show a {what}."),
                Route(method="PUT", path=path, handler=_update(kind, alias), tx="write", doc=f"Update a {what}."),
                Route(method="DELETE", path=path, handler=_delete(kind, alias), tx="write", status=204,
                      doc=f"Delete a {what}."),
            ]  # fmt: skip
    return out


ROUTES = _routes()


def rule_names() -> Mapping[str, tuple[str, ...]]:
    """Policy rules of these routes: who may -> names."""
    kinds = RULE_TYPES.values()
    items = [f"policy_{t.item}" for t in kinds] + [f"alias_{t.item}" for t in kinds if t.alias]
    return {
        "reader": tuple(f"get_{item}" for item in items),
        "manager": tuple(f"{verb}_{item}" for item in items for verb in ("create", "update", "delete")
                         if not (verb == "create" and item.startswith("alias_"))),
    }  # fmt: skip
