"""Metering labels: what routers count, and what they have counted.

A label counts in the routers of its project, a shared one in all: packets that pass between outside (a gateway) and
inside, under their inside addresses. Hosts report their counters with each compare of the router; ``metering_count``
adds them up, so that a router that moves or is made anew goes on where it was. The sums are shown by /metrics.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import sqlalchemy as sa

from nubila.core import quota
from nubila.core.call import Call
from nubila.core.cloud import Cloud
from nubila.core.db import Reader, Store, Tx
from nubila.core.faults import bad_request, conflict
from nubila.core.policy import Rule
from nubila.core.ports import LabelRule, LabelSpec
from nubila.core.query import ListQuery
from nubila.core.service import Hooks
from nubila.core.sql import upsert
from nubila.core.work import Item
from nubila.services.network import addresses, asks, look, paging
from nubila.services.network.feature import Feature
from nubila.services.network.kinds import Router
from nubila.services.network.kinds_metering import METERING_COUNT, MeteringLabel, MeteringLabelRule
from nubila.services.network.policies import ADMIN, ADMIN_OR_READER

Row = dict[str, Any]
_L, _R, _C = MeteringLabel.table.c, MeteringLabelRule.table.c, METERING_COUNT.c
ALL = "*"
PREFIXES = ("remote_ip_prefix", "source_ip_prefix", "destination_ip_prefix")
_FOR = (
    sa.select(_L.id)
    .where(sa.or_(_L.project_id == sa.bindparam("project"), _L.shared.is_(True)))
    .order_by(_L.id)
)  # fmt: skip
_RULES = (
    sa.select(MeteringLabelRule.table)
    .where(_R.metering_label_id.in_(sa.bindparam("labels", expanding=True)))
    .order_by(_R.metering_label_id, _R.excluded.desc(), _R.id)
)
_BESIDE = sa.select(MeteringLabelRule.table).where(
    _R.metering_label_id == sa.bindparam("label"), _R.direction == sa.bindparam("direction"),
    _R.excluded == sa.bindparam("excluded"), _R.remote_ip_prefix.is_not(None),
)  # fmt: skip
_DROP_RULES = sa.delete(MeteringLabelRule.table).where(_R.metering_label_id == sa.bindparam("b_label"))
_DROP_COUNTS = sa.delete(METERING_COUNT).where(_C.label_id == sa.bindparam("b_label"))
_OWN = sa.select(Router.table.c.id).where(Router.table.c.project_id == sa.bindparam("project"))
_EVERY = sa.select(Router.table.c.id)
_SEEN = sa.select(METERING_COUNT).where(
    _C.label_id == sa.bindparam("label"), _C.router_id == sa.bindparam("router"), _C.host == sa.bindparam("host")
)
_SUMS = (
    sa.select(_L.id, _L.project_id, sa.func.sum(_C.packets), sa.func.sum(_C.bytes))
    .join(METERING_COUNT, _C.label_id == _L.id)
    .group_by(_L.id, _L.project_id)
    .order_by(_L.id)
)


# --- labels -----------------------------------------------------------------------------------------------------------


def _told(tx: Tx, label: Mapping[str, Any]) -> None:
    """The routers a label counts in have to look again: a controller passes it on."""
    tx.ask("metering", ALL if label["shared"] else label["project_id"])


def created(call: Call, row: Row) -> None:
    _told(call.tx, row)


def deleting(call: Call, row: Row) -> None:
    look.lock(call.tx, MeteringLabel, row["id"])
    gone = call.tx.execute(_DROP_RULES, {"b_label": row["id"]})
    if row["project_id"]:
        quota.release(call.tx, row["project_id"], {"metering_label_rule": gone})
    call.tx.execute(_DROP_COUNTS, {"b_label": row["id"]})
    _told(call.tx, row)


def scope(call: Call, q: ListQuery) -> list[Any]:
    return _page(call, MeteringLabel, q)


def _page(call: Call, cls: Any, q: ListQuery) -> list[Any]:
    return paging.adapt(call, cls, q)


HOOKS = Hooks(target=look.own_project, created=created, deleting=deleting, scope=scope)


# --- rules ------------------------------------------------------------------------------------------------------------


def rule_target(call: Call, row: Row) -> Row:
    """A rule belongs to its label's project; a label the caller cannot see does not exist."""
    if call.method == "POST":
        label = look.seen(
            call.cloud, call.tx, call.creds, MeteringLabel, look.uuid("metering_label_id", row["metering_label_id"])
        )
        row["project_id"] = label["project_id"]
    return {}


def rule_prepare(call: Call, values: Row) -> None:
    look.lock(call.tx, MeteringLabel, values["metering_label_id"])
    values["project_id"] = look.need(call.tx, MeteringLabel, values["metering_label_id"])["project_id"]
    given = [name for name in PREFIXES if values.get(name)]
    if not given:
        raise _refuse(f"The rule has no addresses: give {', '.join(PREFIXES)}, one at least.")
    if "remote_ip_prefix" in given and len(given) > 1:
        raise _refuse("remote_ip_prefix stands alone: leave it out or drop source_ip_prefix and destination_ip_prefix.")
    versions = {":" in values[name] for name in given}
    if len(versions) > 1:
        raise _refuse("'source_ip_prefix' and 'destination_ip_prefix' must be of one IP version.")
    prefix = str(values.get("remote_ip_prefix") or "")
    where = {"label": values["metering_label_id"], "direction": values["direction"], "excluded": values["excluded"]}
    for other in call.tx.all(_BESIDE, where) if prefix else ():
        there = str(other["remote_ip_prefix"])
        if (":" in prefix) == (":" in there) and addresses.overlap(prefix, there):
            text = f"remote_ip_prefix: {prefix} shares addresses with the label's rule for {there}."
            raise conflict(text, "MeteringLabelRuleOverlaps")


def _refuse(text: str) -> Exception:
    return bad_request(text, "Invalid")


def rule_changed(call: Call, row: Row) -> None:
    _told(call.tx, look.need(call.tx, MeteringLabel, row["metering_label_id"]))


def rule_scope(call: Call, q: ListQuery) -> list[Any]:
    return _page(call, MeteringLabelRule, q)


RULE_HOOKS = Hooks(
    target=rule_target, prepare=rule_prepare, created=rule_changed, deleted=rule_changed, scope=rule_scope
)  # fmt: skip


# --- hosts ------------------------------------------------------------------------------------------------------------


def item(cloud: Cloud, store: Store, item: Item) -> None:
    """Reconciler "metering": pass a change of labels on to the routers of a project, or of all."""
    with store.write(item) as tx:
        found = tx.rows(_EVERY) if item.id == ALL else tx.rows(_OWN, {"project": item.id})
        for (id,) in found:
            asks.router(tx, id)
        tx.settle(f"{len(found)} routers were told")


def labels(reader: Reader, router: Mapping[str, Any]) -> tuple[LabelSpec, ...]:
    """What a router has to count."""
    ids = [id for (id,) in reader.rows(_FOR, {"project": router["project_id"]})]
    rules: dict[str, list[LabelRule]] = {id: [] for id in ids}
    for i in range(0, len(ids), 500):
        for row in reader.all(_RULES, {"labels": ids[i : i + 500]}):
            rules[row["metering_label_id"]].append(_rule(row))
    return tuple(LabelSpec(id=id, rules=tuple(rules[id])) for id in ids)


def _rule(row: Mapping[str, Any]) -> LabelRule:
    source, destination = row["source_ip_prefix"], row["destination_ip_prefix"]
    if row["remote_ip_prefix"]:  # its name misleads: it has always been the inside of the packet
        inside = "source" if row["direction"] == "egress" else "destination"
        source, destination = (row["remote_ip_prefix"], None) if inside == "source" else (None, row["remote_ip_prefix"])
    return LabelRule(direction=row["direction"], source=source, destination=destination, excluded=row["excluded"])


def observe(tx: Tx, router_id: str, host: str, counts: Sequence[Mapping[str, Any]]) -> None:
    """Add what a host has counted since it last said; a counter that is smaller than it was has begun anew."""
    for one in counts:
        label = str(one["label_id"])
        if look.row(tx, MeteringLabel, label) is None:
            continue
        now = {"packets": int(one["packets"]), "bytes": int(one["bytes"])}
        key = {"label_id": label, "router_id": router_id, "host": host}
        seen = tx.one(_SEEN, {"label": label, "router": router_id, "host": host})
        if seen is None:
            seen = dict.fromkeys(("packets", "bytes", "seen_packets", "seen_bytes"), 0)
        fresh = any(now[n] < seen[f"seen_{n}"] for n in now)
        values = {n: seen[n] + now[n] - (0 if fresh else seen[f"seen_{n}"]) for n in now}
        values |= {f"seen_{n}": now[n] for n in now}
        if any(values[n] != seen[n] for n in values):
            tx.execute(upsert(tx.dialect, METERING_COUNT, key | values, values))


def sums(reader: Reader) -> list[tuple[str, str, int, int]]:
    """(label, project, packets, bytes) of every label that has counted anything."""
    return [(id, project, int(packets), int(octets)) for id, project, packets, octets in reader.rows(_SUMS)]


def gauges(cloud: Cloud, reader: Reader) -> dict[str, float]:
    """For /metrics."""
    found: dict[str, float] = {}
    for id, project, packets, octets in sums(reader):
        labels = f'label="{id}",project="{project}"'
        found[f"nubila_metering_packets_total{{{labels}}}"] = packets
        found[f"nubila_metering_bytes_total{{{labels}}}"] = octets
    return dict(sorted(found.items()))


_MANAGE = f"({ADMIN}) or (role:manager and project_id:%(project_id)s)"
FEATURE = Feature(
    kinds=(MeteringLabel, MeteringLabelRule),
    hooks={MeteringLabel: HOOKS, MeteringLabelRule: RULE_HOOKS},
    rules=(
        *(Rule(f"get_{n}", ADMIN_OR_READER, "See metering labels.", scopes=("project",))
          for n in ("metering_label", "metering_label_rule")),
        *(Rule(f"{verb}_{n}", _MANAGE, f"{verb.capitalize()} metering labels.", scopes=("project",))
          for verb in ("create", "delete") for n in ("metering_label", "metering_label_rule")),
    ),
    reconcilers={"metering": item},
    quotas={"metering_label": 100, "metering_label_rule": 1000},
    resources={
        "metering/metering-labels": "metering_label", "metering/metering-label-rules": "metering_label_rule",
    },
    extensions={
        "metering": ("Neutron Metering", "Counters of projects' traffic.", "2013-06-12"),
        "metering_source_and_destination_fields": (
            "Neutron Metering with source and destination filtering", "Both ends of a packet.", "2020-08-21",
        ),
    },
)  # fmt: skip
