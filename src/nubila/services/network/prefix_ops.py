"""Subnet pools changed in part: add and remove prefixes, take over the subnets of a network (onboarding)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import sqlalchemy as sa

from nubila.core import clock
from nubila.core.call import Call, Route
from nubila.core.faults import bad_request, forbidden
from nubila.core.policy import Rule
from nubila.services.network import addresses, allocate, asks, look, pools, prefix_delegation
from nubila.services.network.feature import Feature
from nubila.services.network.kinds import Network, Subnet, SubnetPool
from nubila.services.network.policies import ADMIN_OR_MEMBER

Row = dict[str, Any]
_S = Subnet.table.c
_CUT = sa.select(_S.id, _S.cidr).where(_S.subnetpool_id == sa.bindparam("pool"))
_MAX = 100


def _pool(call: Call, rule: str) -> Row:
    id = call.params["id"]
    look.lock(call.tx, SubnetPool, id)
    row = look.seen(call.cloud, call.tx, call.creds, SubnetPool, id)
    call.enforce(rule, look.wire(SubnetPool, row))
    return row


def _prefixes(call: Call, version: int) -> list[str]:
    body = call.body
    given = body.get("prefixes") if isinstance(body, dict) and set(body) == {"prefixes"} else None
    if not isinstance(given, list) or not given or len(given) > _MAX or not all(isinstance(p, str) for p in given):
        text = f"Request body contains invalid data: it must be an object whose key 'prefixes' holds 1 to {_MAX} CIDRs."
        raise bad_request(text, "HTTPBadRequest")
    try:
        found = [addresses.network(p) for p in given]
    except ValueError as e:
        raise bad_request(f"Invalid input for prefixes: {e}.", "InvalidInput") from None
    if any(p.version != version for p in found):
        raise bad_request("prefixes: a pool is either IPv4 or IPv6.", "PrefixVersionMismatch")
    return [str(p) for p in found]


def _store(call: Call, pool: Row, prefixes: list[str]) -> None:
    allocate.set_columns(call.tx, SubnetPool, pool["id"], {"prefixes": prefixes})
    allocate.bump(call.tx, SubnetPool, [pool["id"]], clock.now())


def _widen(call: Call, pool: Row, more: Iterable[str]) -> list[str]:
    values: Row = {"prefixes": [*pool["prefixes"], *more]}
    pools.prepare_update(call, pool, values)
    _store(call, pool, values["prefixes"])
    found: list[str] = values["prefixes"]
    return found


def add(call: Call) -> Row:
    """PUT .../add_prefixes: the pool's prefixes afterwards."""
    pool = _pool(call, "add_prefixes")
    return {"prefixes": _widen(call, pool, _prefixes(call, pool["ip_version"]))}


def remove(call: Call) -> Row:
    """PUT .../remove_prefixes: the pool's prefixes afterwards; 400 when a subnet has addresses of them."""
    pool = _pool(call, "remove_prefixes")
    gone = _prefixes(call, pool["ip_version"])
    for id, cidr in call.tx.rows(_CUT, {"pool": pool["id"]}):
        if any(addresses.overlap(cidr, p) for p in gone):
            text = f"prefixes: subnet {id} has {cidr} of them; delete it first."
            raise bad_request(text, "IllegalSubnetPoolPrefixUpdate")
    left = addresses.compact(addresses.without(pool["prefixes"], gone))
    if left != pool["prefixes"]:
        _store(call, pool, left)
    return {"prefixes": left}


def onboard(call: Call) -> Any:
    """PUT .../onboard_network_subnets: the network's subnets of the pool's family belong to the pool from now on."""
    pool = _pool(call, "onboard_network_subnets")
    body = call.body
    if not isinstance(body, dict) or set(body) != {"network_id"}:
        raise bad_request("Invalid input for operation: network_id must be specified.", "InvalidInput")
    id = look.uuid("network_id", body["network_id"])
    look.lock(call.tx, Network, id)
    net = look.seen(call.cloud, call.tx, call.creds, Network, id)
    if net["project_id"] != call.creds.project_id and not call.may("context_is_admin"):
        raise forbidden("Only the network's owner can put its subnets into a pool.", "NotAuthorized")
    mine = [s for s in look.subnets(call.tx, id) if s["ip_version"] == pool["ip_version"]]
    if any(prefix_delegation.is_delegated(s) for s in mine):
        text = "network_id: it has subnets with delegated prefixes, which belong to no pool."
        raise bad_request(text, "IllegalSubnetPoolUpdate")
    cut = call.tx.rows(_CUT, {"pool": pool["id"]})
    for subnet in mine:
        if any(addresses.overlap(subnet["cidr"], cidr) for _, cidr in cut):
            text = f"network_id: another subnet of pool {pool['id']} has addresses of {subnet['cidr']} already."
            raise bad_request(text, "IllegalSubnetPoolUpdate")
    if mine:
        _widen(call, pool, [s["cidr"] for s in mine])
    for subnet in mine:
        allocate.set_columns(call.tx, Subnet, subnet["id"], {"subnetpool_id": pool["id"]})
    allocate.bump(call.tx, Subnet, [s["id"] for s in mine], clock.now())
    asks.routers_of(call.tx, id)
    return [{"id": s["id"], "cidr": s["cidr"]} for s in mine]


def _route(name: str, handler: Any, doc: str) -> Route:
    return Route(method="PUT", path=f"/v2.0/subnetpools/{{id}}/{name}", handler=handler, doc=doc, tx="write")


FEATURE = Feature(
    routes=(
        _route("add_prefixes", add, "Add prefixes to a subnet pool."),
        _route("remove_prefixes", remove, "Remove prefixes from a subnet pool."),
        _route("onboard_network_subnets", onboard, "Put the subnets of a network into a subnet pool."),
    ),
    rules=tuple(
        Rule(name, ADMIN_OR_MEMBER, f"{doc} a subnet pool.", scopes=("project",))
        for name, doc in (
            ("add_prefixes", "Add prefixes to"),
            ("remove_prefixes", "Remove prefixes from"),
            ("onboard_network_subnets", "Put the subnets of a network into"),
        )
    ),
    extensions={
        "subnetpool-prefix-ops": (
            "Subnet Pool Prefix Operations", "Prefixes of subnet pools come and go one by one.", "2019-02-08",
        ),
        "subnet_onboard": ("Subnet Onboard", "Subnets that are there can be put into a pool.", "2018-12-18"),
    },
)  # fmt: skip
