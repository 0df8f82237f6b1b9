"""Registered limits and limits: how much services let projects have. API: /v3/registered_limits, /v3/limits.

Two models (the setting ``limit_model``): flat, where every limit stands alone, and strict_two_level, where projects are
one level below their domain and none may have more than it.
"""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa

from nubila.core import checks
from nubila.core.call import Call, Reply, Route
from nubila.core.declare import Resource
from nubila.core.faults import bad_request, conflict, forbidden
from nubila.core.policy import scope_of
from nubila.core.query import ListQuery
from nubila.core.service import Hooks
from nubila.services.identity import lookup, shape
from nubila.services.identity.kinds import CatalogService, Limit, Project, Region, RegisteredLimit

Row = dict[str, Any]
_R, _L = RegisteredLimit.table, Limit.table
STRICT = "strict_two_level"
MODELS = {
    "flat": "A project's limit does not depend on the projects above it.",
    STRICT: "There are domains and projects right below them; no project has a higher limit than its domain.",
}


def _many(call: Call, cls: type[Resource], rule: str) -> list[Row]:
    """The checked values of all elements of a body ``{items: [...]}``."""
    assert cls.rest is not None
    items = cls.rest.items
    call.enforce(rule)
    body = call.body
    if not isinstance(body, dict) or not isinstance(body.get(items), list) or not body[items]:
        raise bad_request(f"The body must be an object with the list '{items}'.", "ValidationError")
    out = []
    for one in body[items]:
        if not isinstance(one, dict):
            raise bad_request(f"Each of '{items}' must be an object.", "ValidationError")
        out.append(checks.defaults(cls, checks.accept(cls, "create", one, call.version), call.version))
    return out


def _insert(call: Call, cls: type[Resource], values: Row) -> None:
    call.tx.insert(cls.table, {c.name: values.get(c.name) for c in cls.table.columns})


def _same(table: Any, values: Row) -> list[Any]:
    region = values.get("region_id")
    return [
        table.c.service_id == values["service_id"], table.c.resource_name == values["resource_name"],
        table.c.region_id.is_(None) if region is None else table.c.region_id == region,
    ]  # fmt: skip


def _places(call: Call, values: Row) -> None:
    for cls, key, what in ((CatalogService, "service_id", "service"), (Region, "region_id", "region")):
        if values.get(key) is not None:
            t = cls.table
            if call.tx.scalar(sa.select(t.c.id).where(t.c.id == values[key])) is None:
                raise bad_request(f"{key}: {what} {values[key]} could not be found.", "ValidationError")


def _answer(call: Call, cls: type[Resource], rows: list[Row]) -> Reply:
    assert cls.rest is not None
    return Reply({cls.rest.items: [shape.view(call, cls, r) for r in rows]}, 201)


# --- registered limits ---------------------------------------------------------------------------------------------


def create_registered(call: Call) -> Reply:
    """POST /v3/registered_limits."""
    rows = _many(call, RegisteredLimit, "identity:create_registered_limits")
    for values in rows:
        _places(call, values)
        if call.tx.scalar(sa.select(_R.c.id).where(*_same(_R, values))) is not None:
            raise conflict(f"There is already a registered limit for {values['resource_name']} of this service.")
        _insert(call, RegisteredLimit, values)
    return _answer(call, RegisteredLimit, rows)


def _unused(call: Call, row: Row) -> None:
    if call.tx.scalar(sa.select(_L.c.id).where(*_same(_L, row))) is not None:
        raise forbidden(
            f"Projects have limits of their own for {row['resource_name']}; delete those first.", "Forbidden"
        )


def _change_registered(call: Call, before: Row, values: Row) -> None:
    if set(values) - {"description"}:
        _unused(call, before)
    _places(call, values)
    after = {**before, **values}
    other = call.tx.scalar(sa.select(_R.c.id).where(*_same(_R, after)))
    if other is not None and other != before["id"]:
        raise conflict(f"There is already a registered limit for {after['resource_name']} of this service.")


# --- limits --------------------------------------------------------------------------------------------------------


def create(call: Call) -> Reply:
    """POST /v3/limits."""
    rows = _many(call, Limit, "identity:create_limits")
    for values in rows:
        _owner(call, values)
        _places(call, values)
        if call.tx.scalar(sa.select(_R.c.id).where(*_same(_R, values))) is None:
            raise forbidden(f"Create a registered limit for {values['resource_name']} first.", "Forbidden")
        if call.tx.scalar(sa.select(_L.c.id).where(_of(values), *_same(_L, values))) is not None:
            raise conflict(f"There is already a limit for {values['resource_name']} there.")
        _insert(call, Limit, values)
    for values in rows:  # when all are there: a domain's and its projects' may come in any order
        _fits(call, values)
    return _answer(call, Limit, rows)


def _owner(call: Call, values: Row) -> None:
    """Make sure that there is the project or domain; a domain may be named as the project that it is."""
    project, domain = values.get("project_id"), values.get("domain_id")
    if bool(project) == bool(domain):
        raise bad_request("A limit has either a project_id or a domain_id.", "ValidationError")
    row = lookup.project(call.tx, str(project or domain))
    if row is None or (domain and not row["is_domain"]):
        what = "project" if project else "domain"
        raise bad_request(f"{what}_id: {what} {project or domain} could not be found.", "ValidationError")
    if row["is_domain"]:
        values["project_id"], values["domain_id"] = None, row["id"]


def _of(values: Row) -> Any:
    if values.get("project_id"):
        return _L.c.project_id == values["project_id"]
    return _L.c.domain_id == values["domain_id"]


def _change(call: Call, before: Row, values: Row) -> None:
    _fits(call, {**before, **values})


def _less(a: int, b: int) -> bool:
    """Whether a limit is lower than another; -1 is none."""
    return a != -1 and (b == -1 or a < b)


def _fits(call: Call, values: Row) -> None:
    """In the strict model, raise 403 when a project would have a higher limit than its domain."""
    if call.cloud.settings.limit_model != STRICT:
        return
    here, mine = _same(_L, values), values["resource_limit"]
    call.tx.rows(sa.select(_R.c.id).where(*_same(_R, values)).with_for_update())  # one after the other
    what = values["resource_name"]
    if values.get("project_id"):
        project = lookup.project(call.tx, values["project_id"])
        domain = project["domain_id"] if project else ""
        top = call.tx.scalar(sa.select(_L.c.resource_limit).where(_L.c.domain_id == domain, *here))
        if top is None:
            top = call.tx.scalar(sa.select(_R.c.default_limit).where(*_same(_R, values)))
        if top is not None and _less(top, mine):
            raise forbidden(f"resource_limit: {what} of a project cannot be more than its domain's {top}.", "Forbidden")
        return
    inside = sa.select(Project.table.c.id).where(Project.table.c.domain_id == values["domain_id"])
    for (limit,) in call.tx.rows(sa.select(_L.c.resource_limit).where(_L.c.project_id.in_(inside), *here)):
        if _less(mine, limit):
            raise forbidden(f"resource_limit: a project of the domain has {limit} {what}, which is more.", "Forbidden")


def _scope(call: Call, q: ListQuery) -> list[Any]:
    """Administrators, services and the system's readers see all limits, others those of their scope."""
    creds = call.creds
    if creds.is_admin or creds.system_scope or "service" in creds.roles:
        return []
    if scope_of(creds.as_mapping()) == "domain":
        t = Project.table
        inside = sa.select(t.c.id).where(t.c.domain_id == creds.domain_id)
        return [sa.or_(_L.c.domain_id == creds.domain_id, _L.c.project_id.in_(inside))]
    return [_L.c.project_id == creds.project_id]


def _target(call: Call, row: Row) -> Row:
    project = lookup.project(call.tx, row["project_id"]) if row.get("project_id") else None
    named = {**row, "project": project or {}, "domain": {"id": row.get("domain_id")}}
    return {"target": {"limit": named}}


def model(call: Call) -> Row:
    """GET /v3/limits/model."""
    call.enforce("identity:get_limit_model")
    name = call.cloud.settings.limit_model
    return {"model": {"name": name, "description": MODELS[name]}}


REGISTERED_HOOKS = Hooks(prepare_update=_change_registered, deleting=_unused, find=shape.finder(RegisteredLimit))
HOOKS = Hooks(prepare_update=_change, scope=_scope, target=_target, find=shape.finder(Limit, open_to="PATCH DELETE"))
ROUTES = (
    Route(
        method="POST", path="/v3/registered_limits", handler=create_registered, doc="Create registered limits.",
        tx="write", status=201,
    ),
    Route(method="POST", path="/v3/limits", handler=create, doc="Create limits.", tx="write", status=201),
    Route(method="GET", path="/v3/limits/model", handler=model, doc="Show how limits are worked out."),
)  # fmt: skip
