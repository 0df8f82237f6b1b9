"""Highly available routers as a feature of the Networking API: alias ``l3-ha``, rules, reconciler, checks."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import sqlalchemy as sa

from nubila.core.call import Call
from nubila.core.cloud import Cloud
from nubila.core.db import Reader
from nubila.core.faults import bad_request
from nubila.core.policy import Rule
from nubila.services.network import gateways, ha_place
from nubila.services.network.feature import Feature
from nubila.services.network.ha_tables import HA_HOST, HA_ROUTER
from nubila.services.network.kinds import Router

Row = dict[str, Any]


def prepare(call: Call, values: Row) -> None:
    """A new router: several hosts when it is asked for or configured."""
    if values.get("ha") is None:
        values["ha"] = bool(call.cloud.settings.l3_ha) and not values.get("distributed")
    _not_both(values)


def _not_both(row: Row) -> None:
    """400 for a router that would be distributed and highly available: it is on every host already, or on some."""
    if row.get("ha") and row.get("distributed"):
        text = "Bad router request: A router cannot be distributed and highly available; choose one of both."
        raise bad_request(text, "BadRequest")


def created(call: Call, row: Row) -> None:
    """Put a new highly available router on its hosts."""
    if row["ha"]:
        ha_place.made(call.cloud, call.tx, row)


def prepare_update(call: Call, before: Row, values: Row) -> None:
    """400 unless the router is switched off when its ``ha`` changes."""
    _not_both({**before, **values})
    if "ha" not in values:
        return
    if values["ha"] is None:
        values["ha"] = before["ha"]
    if values["ha"] != before["ha"] and (refusal := ha_place.refuse_active(before)):
        raise refusal
    gateways.one_if_ha(call.tx, {**before, **values})


def updated(call: Call, before: Row, after: Row) -> None:
    """Give the router more hosts, or leave it one."""
    if bool(before["ha"]) == bool(after["ha"]):
        return
    if after["ha"]:
        ha_place.made(call.cloud, call.tx, after)
    else:
        ha_place.unmade(call.tx, after)
        call.tx.ask("router_place", after["id"])


def deleting(call: Call, row: Row) -> None:
    """Take it from all its hosts."""
    if row["ha"]:
        ha_place.unmade(call.tx, row)


def _sound(cloud: Cloud, reader: Reader) -> Iterable[str]:
    leased = {r["router_id"]: r for r in reader.all(sa.select(HA_ROUTER))}
    for id, ha in reader.rows(sa.select(Router.table.c.id, Router.table.c.ha)):
        if bool(ha) != (id in leased):
            yield f"router {id} is {'' if ha else 'not '}highly available, and its lease says otherwise"
    for one in reader.all(sa.select(HA_HOST)):
        if one["router_id"] not in leased:
            yield f"router {one['router_id']} is on {one['host']} and has no lease"


def _invariants(cloud: Cloud, reader: Reader) -> list[str]:
    return list(_sound(cloud, reader))


FEATURE = Feature(
    rules=[
        Rule(f"{verb}_router:ha", "rule:admin_only", f"{verb.capitalize()} ha of a router.", scopes=("project",))
        for verb in ("create", "get", "update")
    ],
    reconcilers={"router_ha": ha_place.item},
    sweeps={"router_ha": ha_place.every},
    invariants=(_invariants,),
    extensions={
        "l3-ha": ("HA Router extension", "Routers on several hosts: one forwards, another stands by.", "2014-04-26")
    },
)
