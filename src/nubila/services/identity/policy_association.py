"""Which policy document is for which endpoints. API: OS-ENDPOINT-POLICY.

A policy is for one endpoint, for a service in a region (and the regions in it), or for a service everywhere; of those
that fit an endpoint the first in this order counts.
"""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa

from nubila.core.call import Call, Route
from nubila.core.faults import Fault, not_found
from nubila.services.identity import shape
from nubila.services.identity.kinds import CatalogService, Endpoint, Policy, Region
from nubila.services.identity.kinds_filter import POLICY_ASSOCIATION
from nubila.services.identity.places import endpoint_views

Row = dict[str, Any]
_A, _E, _G = POLICY_ASSOCIATION.c, Endpoint.table, Region.table
_PARTS = ("endpoint_id", "service_id", "region_id")


def _what(call: Call) -> Row:
    """The association that the path names, after making sure of its parts."""
    shape.fetch(call.tx, Policy, call.params["policy_id"], "policy")
    for cls, key, what in ((Endpoint, "endpoint_id", "endpoint"), (CatalogService, "service_id", "service"),
                           (Region, "region_id", "region")):  # fmt: skip
        if key in call.params:
            shape.fetch(call.tx, cls, call.params[key], what)
    return {part: call.params.get(part, "") for part in _PARTS}


def _same(row: Row) -> list[Any]:
    return [_A[key] == value for key, value in row.items()]


def create(call: Call) -> None:
    """PUT: from now on this policy is for it, and no other."""
    row, policy = _what(call), call.params["policy_id"]
    if not call.tx.execute(sa.update(POLICY_ASSOCIATION).where(*_same(row)).values(policy_id=policy)):
        call.tx.insert(POLICY_ASSOCIATION, {**row, "policy_id": policy})


def check(call: Call) -> None:
    """GET and HEAD."""
    where = [*_same(_what(call)), _A.policy_id == call.params["policy_id"]]
    if call.tx.scalar(sa.select(_A.policy_id).where(*where)) is None:
        raise not_found("policy_association", f"of policy {call.params['policy_id']}")


def delete(call: Call) -> None:
    """DELETE: harmless when it was not."""
    where = [*_same(_what(call)), _A.policy_id == call.params["policy_id"]]
    call.tx.execute(sa.delete(POLICY_ASSOCIATION).where(*where))


def endpoints(call: Call) -> Row:
    """GET /v3/policies/{policy_id}/OS-ENDPOINT-POLICY/endpoints."""
    id = call.params["policy_id"]
    shape.fetch(call.tx, Policy, id, "policy")
    found: dict[str, Row] = {}
    for row in call.tx.all(sa.select(POLICY_ASSOCIATION).where(_A.policy_id == id)):
        if row["endpoint_id"]:
            where = [_E.c.id == row["endpoint_id"]]
        else:
            where = [_E.c.service_id == row["service_id"]]
            if row["region_id"]:
                where.append(_E.c.region_id.in_(_inside(call, row["region_id"])))
        found |= {r["id"]: r for r in call.tx.all(sa.select(_E).where(*where))}
    rows = [found[id] for id in sorted(found)]
    return shape.listing(call, "endpoints", endpoint_views(call, rows), call.path)


def _inside(call: Call, region: str) -> list[str]:
    """The region and those in it."""
    out: list[str] = []
    todo = [region]
    while todo:
        id = todo.pop()
        if id not in out:
            out.append(id)
            todo += [c for (c,) in call.tx.rows(sa.select(_G.c.id).where(_G.c.parent_region_id == id))]
    return out


def policy(call: Call) -> Row:
    """GET /v3/endpoints/{endpoint_id}/OS-ENDPOINT-POLICY/policy."""
    endpoint = shape.fetch(call.tx, Endpoint, call.params["endpoint_id"], "endpoint")
    candidates = [{"endpoint_id": endpoint["id"], "service_id": "", "region_id": ""}]
    region, seen = endpoint["region_id"], set()
    while region and region not in seen:
        seen.add(region)
        candidates.append({"endpoint_id": "", "service_id": endpoint["service_id"], "region_id": region})
        region = call.tx.scalar(sa.select(_G.c.parent_region_id).where(_G.c.id == region))
    candidates.append({"endpoint_id": "", "service_id": endpoint["service_id"], "region_id": ""})
    for candidate in candidates:
        id = call.tx.scalar(sa.select(_A.policy_id).where(*_same(candidate)))
        if id is not None:
            return {"policy": shape.view(call, Policy, shape.fetch(call.tx, Policy, id, "policy"))}
    raise Fault(404, f"Endpoint {endpoint['id']} has no policy.", "NotFound")


_POLICY = "/v3/policies/{policy_id}/OS-ENDPOINT-POLICY"
_SERVICE = f"{_POLICY}/services/{{service_id}}"


def _routes(path: str, name: str, what: str) -> tuple[Route, ...]:
    rule = f"policy_association_for_{name}"
    return (
        Route(
            method="PUT", path=path, handler=create, doc=f"Say that a policy is for {what}.", tx="write",
            rule=f"identity:create_{rule}", status=204,
        ),
        Route(
            method="GET", path=path, handler=check, doc=f"Ask whether a policy is for {what}.",
            rule=f"identity:check_{rule}", status=204,
        ),
        Route(
            method="DELETE", path=path, handler=delete, doc=f"Say that it is not for {what} any more.", tx="write",
            rule=f"identity:delete_{rule}", status=204,
        ),
    )  # fmt: skip


ROUTES = (
    *_routes(f"{_POLICY}/endpoints/{{endpoint_id}}", "endpoint", "an endpoint"),
    *_routes(_SERVICE, "service", "a service"),
    *_routes(f"{_SERVICE}/regions/{{region_id}}", "region_and_service", "a service in a region"),
    Route(
        method="GET", path=f"{_POLICY}/endpoints", handler=endpoints, doc="List the endpoints a policy is for.",
        rule="identity:list_endpoints_for_policy",
    ),
    Route(
        method="GET", path="/v3/endpoints/{endpoint_id}/OS-ENDPOINT-POLICY/policy", handler=policy,
        doc="Show the policy that is for an endpoint.", rule="identity:get_policy_for_endpoint",
    ),
)  # fmt: skip
