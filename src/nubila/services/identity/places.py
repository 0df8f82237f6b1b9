"""The catalogue's own resources: regions, services, endpoints; and policies kept for others."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa

from nubila.core import checks, clock
from nubila.core.call import Call, Reply, Route
from nubila.core.faults import bad_request, conflict, forbidden, not_found
from nubila.core.service import Hooks
from nubila.services.identity import catalog, shape
from nubila.services.identity.kinds import CatalogService, Endpoint, Limit, Policy, Region, RegisteredLimit
from nubila.services.identity.kinds_filter import POLICY_ASSOCIATION, PROJECT_ENDPOINT
from nubila.services.identity.revision import bump

Row = dict[str, Any]
_G, _E = Region.table, Endpoint.table


# --- regions -------------------------------------------------------------------------------------------------------


def _region(call: Call, id: str) -> Row | None:
    row: Row | None = call.tx.one(sa.select(_G).where(_G.c.id == id))
    return row


def _new_region(call: Call, values: Row) -> None:
    wished = call.body["region"].get("id")
    if call.params.get("id") and wished not in (None, "", call.params["id"]):
        raise bad_request("The id in the body must be the one in the path.", "ValidationError")
    values["id"] = call.params.get("id") or wished or clock.new_hex()
    values["description"] = values.get("description") or ""
    shape.keep_extra(call, Region, values)
    if _region(call, values["id"]) is not None:
        raise conflict(f"There is already a region with the id {values['id']}.")
    if values.get("parent_region_id") and _region(call, values["parent_region_id"]) is None:
        raise not_found("region", values["parent_region_id"])


def put_region(call: Call) -> Reply:
    """PUT /v3/regions/{id}: create a region with this id."""
    body = shape.inner(call, "region")
    call.enforce("identity:create_region")
    values = checks.defaults(Region, checks.accept(Region, "create", body, call.version), call.version)
    _new_region(call, values)
    call.tx.insert(_G, {c.name: values.get(c.name) for c in _G.columns})
    return Reply({"region": shape.view(call, Region, values)}, 201)


def _change_region(call: Call, before: Row, values: Row) -> None:
    if call.body["region"].get("id", before["id"]) != before["id"]:
        raise bad_request("The id of a region cannot be changed.", "ValidationError")
    shape.keep_extra(call, Region, values, before)
    parent = values.get("parent_region_id")
    seen = {before["id"]}
    while parent:
        if parent in seen:
            raise bad_request("parent_region_id would make the region part of itself.", "CircularRegionHierarchyError")
        seen.add(parent)
        row = _region(call, parent)
        if row is None:
            raise not_found("region", parent)
        parent = row["parent_region_id"]


def _delete_region(call: Call, row: Row) -> None:
    """A region takes those inside it along, unless endpoints are there."""
    todo, order = [row["id"]], []
    while todo:
        id = todo.pop(0)
        order.append(id)
        todo += [c for (c,) in call.tx.rows(sa.select(_G.c.id).where(_G.c.parent_region_id == id))]
    if call.tx.scalar(sa.select(_E.c.id).where(_E.c.region_id.in_(order))) is not None:
        raise forbidden(
            f"The region {row['id']} or one in it has endpoints; delete those first.", "RegionDeletionError"
        )
    _no_limits(call, "region_id", order, "region")
    call.tx.execute(sa.delete(POLICY_ASSOCIATION).where(POLICY_ASSOCIATION.c.region_id.in_(order)))
    for id in reversed(order[1:]):
        call.tx.execute(sa.delete(_G).where(_G.c.id == id))
    bump(call.cloud, call.tx)


def _no_limits(call: Call, column: str, ids: list[str], what: str) -> None:
    for cls in (RegisteredLimit, Limit):
        if call.tx.scalar(sa.select(cls.table.c.id).where(cls.table.c[column].in_(ids))) is not None:
            raise forbidden(f"There are limits for this {what}; delete those first.", "Forbidden")


# --- services and endpoints ----------------------------------------------------------------------------------------


def _new_service(call: Call, values: Row) -> None:
    shape.keep_extra(call, CatalogService, values)
    bump(call.cloud, call.tx)


def _change_service(call: Call, before: Row, values: Row) -> None:
    shape.keep_extra(call, CatalogService, values, before)
    bump(call.cloud, call.tx)


def _delete_service(call: Call, row: Row) -> None:
    _no_limits(call, "service_id", [row["id"]], "service")
    for (id,) in call.tx.rows(sa.select(_E.c.id).where(_E.c.service_id == row["id"])):
        _forget_endpoint(call, id)
    call.tx.execute(sa.delete(POLICY_ASSOCIATION).where(POLICY_ASSOCIATION.c.service_id == row["id"]))
    call.tx.execute(sa.delete(_E).where(_E.c.service_id == row["id"]))
    bump(call.cloud, call.tx)


def _endpoint(call: Call, values: Row) -> None:
    legacy = values.pop("region", None)
    if legacy and not values.get("region_id"):
        values["region_id"] = legacy
    if values.get("region_id") and _region(call, values["region_id"]) is None:
        if values["region_id"] != legacy:
            raise bad_request(f"region_id: region {values['region_id']} could not be found.", "ValidationError")
        call.tx.insert(_G, {"id": legacy, "description": "", "parent_region_id": None, "extra": {}})
    service = values.get("service_id")
    if (
        service
        and call.tx.scalar(sa.select(CatalogService.table.c.id).where(CatalogService.table.c.id == service)) is None
    ):
        raise bad_request(f"service_id: service {service} could not be found.", "ValidationError")
    if values.get("url") and (wrong := catalog.wrong_places(values["url"])):
        raise bad_request(f"The url has places nothing can fill: {', '.join(wrong)}.", "ValidationError")
    bump(call.cloud, call.tx)


def _new_endpoint(call: Call, values: Row) -> None:
    shape.keep_extra(call, Endpoint, values)
    _endpoint(call, values)


def _change_endpoint(call: Call, before: Row, values: Row) -> None:
    shape.keep_extra(call, Endpoint, values, before)
    if values.get("url") == _shown_url(call, before["url"]):
        values.pop("url")  # written back as it was shown: it keeps following the client's name for us
    _endpoint(call, values)


def _delete_endpoint(call: Call, row: Row) -> None:
    _forget_endpoint(call, row["id"])
    bump(call.cloud, call.tx)


def _forget_endpoint(call: Call, id: str) -> None:
    """Remove what was said about an endpoint that goes."""
    call.tx.execute(sa.delete(PROJECT_ENDPOINT).where(PROJECT_ENDPOINT.c.endpoint_id == id))
    call.tx.execute(sa.delete(POLICY_ASSOCIATION).where(POLICY_ASSOCIATION.c.endpoint_id == id))


def _shown_url(call: Call, url: str) -> str:
    return call.base + url[len(catalog.BASE) :] if url.startswith(catalog.BASE) else url


def _present_endpoints(call: Call, rows: list[Row]) -> None:
    for row in rows:
        row["url"] = _shown_url(call, row["url"])
        if row.get("name"):
            row["extra"] = {**row["extra"], "name": row["name"]}


def endpoint_views(call: Call, rows: list[Row]) -> list[Row]:
    """Endpoints as the API shows them."""
    _present_endpoints(call, rows)
    return [shape.view(call, Endpoint, row) for row in rows]


# --- policies ------------------------------------------------------------------------------------------------------


def _new_policy(call: Call, values: Row) -> None:
    shape.keep_extra(call, Policy, values)


def _change_policy(call: Call, before: Row, values: Row) -> None:
    if call.body["policy"].get("id", before["id"]) != before["id"]:
        raise bad_request("The id of a policy cannot be changed.", "ValidationError")
    shape.keep_extra(call, Policy, values, before)


def _delete_policy(call: Call, row: Row) -> None:
    call.tx.execute(sa.delete(POLICY_ASSOCIATION).where(POLICY_ASSOCIATION.c.policy_id == row["id"]))


REGION_HOOKS = Hooks(
    prepare=_new_region, prepare_update=_change_region, deleting=_delete_region, find=shape.finder(Region)
)
SERVICE_HOOKS = Hooks(
    prepare=_new_service, prepare_update=_change_service, deleting=_delete_service, find=shape.finder(CatalogService)
)
ENDPOINT_HOOKS = Hooks(
    prepare=_new_endpoint, prepare_update=_change_endpoint, deleting=_delete_endpoint, present=_present_endpoints,
    find=shape.finder(Endpoint),
)  # fmt: skip
POLICY_HOOKS = Hooks(
    prepare=_new_policy, prepare_update=_change_policy, deleting=_delete_policy, find=shape.finder(Policy)
)
ROUTES = (
    Route(method="PUT", path="/v3/regions/{id}", handler=put_region, doc="Create a region with this id.", tx="write"),
)
