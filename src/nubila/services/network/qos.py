"""QoS policies: what follows from making, changing and deleting one, and who is told."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa

from nubila.core.call import Call
from nubila.core.cloud import Cloud
from nubila.core.db import Reader, Store, Tx
from nubila.core.faults import conflict
from nubila.core.policy import Rule
from nubila.core.query import ListQuery
from nubila.core.service import Hooks
from nubila.core.sql import upsert
from nubila.core.work import Item
from nubila.services.network import asks, look, paging, qos_guarantees, qos_offers, qos_rules, qos_use, rbac, tags
from nubila.services.network.feature import Feature
from nubila.services.network.kinds import FloatingIP, Network, Router
from nubila.services.network.kinds_port import Port
from nubila.services.network.kinds_qos import QOS_DEFAULT, QOS_RULE, QosPolicy
from nubila.services.network.policies import ADMIN, READER

Row = dict[str, Any]
_P, _N, _R, _F = Port.table.c, Network.table.c, Router.table.c, FloatingIP.table.c
_ID: Any = sa.bindparam("policy")
_USERS = (
    ("Network", sa.select(_N.id, _N.project_id).where(_N.qos_policy_id == _ID).order_by(_N.id)),
    ("Port", sa.select(_P.id, _P.project_id).where(_P.qos_policy_id == _ID).order_by(_P.id)),
    ("FloatingIP", sa.select(_F.id, _F.project_id).where(_F.qos_policy_id == _ID).order_by(_F.id)),
    ("Router", sa.select(_R.id, _R.project_id).where(_R.gw_qos_policy_id == _ID).order_by(_R.id)),
)
_CONCERNED = (
    sa.select(_P.id, _P.bound_host, _P.device_owner, _P.device_id, _P.network_id)
    .join(Network.table, _N.id == _P.network_id)
    .where(
        _P.bound_host != "",
        sa.or_(_P.qos_policy_id == _ID, sa.and_(_P.qos_policy_id.is_(None), _N.qos_policy_id == _ID)),
    )
)
_FLOATING = sa.select(_F.router_id).where(_F.qos_policy_id == _ID, _F.router_id.is_not(None)).distinct()
_ROUTERS = sa.select(_R.id).where(_R.gw_qos_policy_id == _ID)
_FORGET_DEFAULT = sa.delete(QOS_DEFAULT).where(QOS_DEFAULT.c.qos_policy_id == sa.bindparam("b_policy"))
_FORGET_RULES = sa.delete(QOS_RULE).where(QOS_RULE.c.qos_policy_id == sa.bindparam("b_policy"))


def prepare(call: Call, values: Row) -> None:
    values["tags"] = tags.clean(values["tags"])
    if values["is_default"]:
        _only_default(call.tx, values)


def _only_default(tx: Tx, row: Row) -> None:
    other = qos_use.default(tx, row["project_id"])
    if other not in (None, row["id"]):
        text = f"is_default: project {row['project_id']} has a default policy; change that first."
        raise conflict(text, "QoSPolicyDefaultAlreadyExists")


def _make_default(tx: Tx, row: Row) -> None:
    """Claim the project's place; whoever was faster keeps it."""
    tx.execute(upsert(tx.dialect, QOS_DEFAULT, {"project_id": row["project_id"], "qos_policy_id": row["id"]}, {}))
    _only_default(tx, row)


def created(call: Call, row: Row) -> None:
    tags.store(call.tx, row["id"], row["tags"], fresh=True)
    if row["is_default"]:
        _make_default(call.tx, row)


def prepare_update(call: Call, before: Row, values: Row) -> None:
    look.check_revision(call, before)
    if before["shared"] and values.get("shared") is False:
        granted = {p["target"] for p in rbac.policies(call.tx, before["id"]) if p["action"] == rbac.SHARED}
        needing = set(users(call.tx, before["id"])) - granted
        if needing:
            text = f"shared: other projects use policy {before['id']}: {', '.join(sorted(needing)[:5])}."
            raise conflict(text, "RbacPolicyInUse")
    if values.get("is_default"):
        _only_default(call.tx, before)


def updated(call: Call, before: Row, after: Row) -> None:
    if after["is_default"] and not before["is_default"]:
        _make_default(call.tx, after)
    elif before["is_default"] and not after["is_default"]:
        call.tx.execute(_FORGET_DEFAULT, {"b_policy": before["id"]})


def deleting(call: Call, row: Row) -> None:
    tx, id = call.tx, row["id"]
    look.lock(tx, QosPolicy, id)
    for what, statement in _USERS:
        if (found := tx.one(statement.limit(1), {"policy": id})) is not None:
            raise conflict(f"QoS Policy {id} is used by {what} {found['id']}.", "QosPolicyInUse")
    tx.execute(_FORGET_DEFAULT, {"b_policy": id})
    tx.execute(_FORGET_RULES, {"b_policy": id})
    tags.forget(tx, id)


def users(reader: Reader, id: str) -> list[str]:
    """The projects whose networks, ports, routers or floating IPs have the policy."""
    found = {row["project_id"] for _, statement in _USERS for row in reader.all(statement, {"policy": id})}
    return sorted(found - {""})


def present(call: Call, rows: list[Row]) -> None:
    found = qos_use.rules(call.tx, [r["id"] for r in rows])
    for row in rows:
        row["rules"] = [qos_use.view(rule, whole=True) for rule in found[row["id"]]]


def scope(call: Call, q: ListQuery) -> list[Any]:
    out = paging.adapt(call, QosPolicy, q)
    if q.marker is not None:
        row = look.need(call.tx, QosPolicy, q.marker)
        if not look.visible(call.cloud, call.creds, QosPolicy, row, call.tx):
            q.marker = None  # Neutron goes on after policies the caller may not see; here nothing follows them
            out.append(sa.false())
    return out


HOOKS = rbac.shareable(QosPolicy, Hooks(
    target=look.own_project,
    prepare=prepare,
    created=created,
    prepare_update=prepare_update,
    updated=updated,
    deleting=deleting,
    present=present,
    scope=scope,
    own_filters=tags.FILTERS,
))  # fmt: skip


def item(cloud: Cloud, store: Store, item: Item) -> None:
    """Reconciler "qos_policy": pass a change of its rules on to every port and router that has it, however many."""
    with store.write(item) as tx:
        where = {"policy": item.id}
        found = tx.all(_CONCERNED, where)
        routers = {id for (id,) in [*tx.rows(_ROUTERS, where), *tx.rows(_FLOATING, where)]}
        for port in found:
            asks.port(tx, port)
        for id in sorted(routers):
            asks.router(tx, id)
        tx.settle(f"{len(found)} ports and {len(routers)} routers were told")


def wrong(cloud: Cloud, reader: Reader) -> list[str]:
    """Invariant: the table of defaults and the policies' own column agree."""
    t = QosPolicy.table.c
    said = set(reader.rows(sa.select(t.project_id, t.id).where(t.is_default.is_(True))))
    kept = set(reader.rows(sa.select(QOS_DEFAULT.c.project_id, QOS_DEFAULT.c.qos_policy_id)))
    return [f"qos_policy {id}: default of project {project} in one place only" for project, id in sorted(said ^ kept)]


_SEE = f"({ADMIN}) or {READER} or rule:shared_qos_policy"
_MANAGE = f"({ADMIN}) or (role:manager and project_id:%(project_id)s)"
_TEXTS = {
    "reader": f"({ADMIN}) or (role:reader and rule:ext_parent_owner)",
    "manager": f"({ADMIN}) or (role:manager and rule:ext_parent_owner)",
}


def _text(who: str, name: str) -> str:
    """Published defaults: rules under their alias are judged as below their policy."""
    verb, _, what = name.partition("_")
    if what == "alias_minimum_packet_rate_rule":
        return f"rule:{verb}_policy_minimum_packet_rate_rule"
    return _TEXTS[who]


RULES = (
    Rule("shared_qos_policy", "field:policies:shared=True", "Used by other rules."),
    *(Rule(f"get_{n}", _SEE, "See QoS policies.", scopes=("project",)) for n in ("policy", "policy:tags")),
    *(Rule(f"{verb}_{n}", _MANAGE, f"{verb.capitalize()} QoS policies.", scopes=("project",))
      for verb in ("create", "update", "delete") for n in ("policy", "policy:tags")),
    Rule("get_rule_type", "role:reader", "List the kinds of QoS rules.", scopes=("project",)),
    *(Rule(name, _text(who, name), "Rules of QoS policies.", scopes=("project",))
      for who, names in qos_rules.rule_names().items() for name in names),
)  # fmt: skip

FEATURE = Feature(
    kinds=(QosPolicy,),
    hooks={QosPolicy: HOOKS},
    routes=qos_rules.ROUTES,
    rules=RULES,
    reconcilers={"host_offer": qos_offers.item, "qos_policy": item},
    sweeps={"host_offer": qos_offers.every},
    invariants=(wrong, qos_guarantees.wrong),
    quotas={"qos_policy": 100},
    resources={"qos/policies": "policy", "qos/rule-types": "rule_type"},
    shareable=(rbac.Shareable(kind=QosPolicy, uses={rbac.SHARED: users}, strict=True),),
    extensions={
        "port-resource-request": ("Port Resource Request", "What ports need of a host is shown.", "2018-05-08"),
        "port-resource-request-groups": ("Port Resource Request Groups", "In groups of one host.", "2021-08-02"),
        "qos": ("Quality of Service", "Limits and marks for ports and networks.", "2015-06-08"),
        "qos-bw-minimum-ingress": (
            "Ingress direction for QoS minimum bandwidth rule",
            "Guarantees towards guests.",
            "2018-07-09",
        ),
        "qos-pps-minimum": ("QoS minimum packet rate rule", "Guaranteed packets per second.", "2021-07-14"),
        "qos-pps-minimum-rule-alias": ("QoS minimum packet rate rule alias", "By their own id.", "2021-10-22"),
        "qos-bw-limit-direction": ("Direction for QoS bandwidth limit rule", "To guests and from them.", "2017-04-10"),
        "qos-default": ("QoS default policy", "A policy for networks that name none.", "2017-04-06"),
        "qos-fip": ("Floating IP QoS", "Policies of floating IPs.", "2017-07-20"),
        "qos-gateway-ip": ("Router gateway IP QoS", "Policies of router gateways.", "2018-02-24"),
        "qos-port-network-policy": ("QoS port network policy ID", "Ports show their network's.", "2019-11-01"),
        "qos-pps": ("QoS Rule Type Packet per Second Extension", "Packets per second.", "2021-05-12"),
        "qos-rule-type-details": ("Details of QoS rule types", "What rules can say.", "2017-06-22"),
        "qos-rule-type-filter": ("Allow to filter the list of QoS rule types", "All, or the honoured.", "2022-02-02"),
        "qos-rules-alias": ("Quality of Service rules alias API", "Rules by their own id.", "2018-10-07"),
    },
)
