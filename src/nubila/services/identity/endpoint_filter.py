"""Which endpoints a project sees. API: OS-EP-FILTER.

A project that was given endpoints, or groups of them, finds those in its catalogue and no others; any other project
finds all. A group is a description: endpoints that have these attributes are in it, also later ones.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from nubila.core.call import Call, Route
from nubila.core.faults import conflict, not_found
from nubila.core.service import Hooks
from nubila.services.identity import catalog, lookup, resources, shape
from nubila.services.identity.kinds import Endpoint, Project
from nubila.services.identity.kinds_filter import FILTERS, PROJECT_ENDPOINT, PROJECT_ENDPOINT_GROUP, EndpointGroup
from nubila.services.identity.places import endpoint_views
from nubila.services.identity.revision import bump

if TYPE_CHECKING:
    from nubila.core.db import Reader

Row = dict[str, Any]
_E, _G = Endpoint.table, EndpointGroup.table
_PE, _PG = PROJECT_ENDPOINT.c, PROJECT_ENDPOINT_GROUP.c


# --- groups --------------------------------------------------------------------------------------------------------


def _change(call: Call, before: Row, values: Row) -> None:
    bump(call.cloud, call.tx)


def _delete(call: Call, row: Row) -> None:
    call.tx.execute(sa.delete(PROJECT_ENDPOINT_GROUP).where(_PG.endpoint_group_id == row["id"]))
    bump(call.cloud, call.tx)


def _in_group(reader: Reader, filters: Mapping[str, str | None]) -> list[Row]:
    where = [_E.c[name] == value for name, value in filters.items() if name in FILTERS]
    return reader.all(sa.select(_E).where(*where).order_by(_E.c.id))


# --- looking things up ---------------------------------------------------------------------------------------------


def _endpoint(call: Call) -> str:
    return str(shape.fetch(call.tx, Endpoint, call.params["endpoint_id"], "endpoint")["id"])


def _group(call: Call) -> Row:
    return shape.fetch(call.tx, EndpointGroup, call.params["endpoint_group_id"], "endpoint_group")


def _project(call: Call) -> str:
    id = call.params["project_id"]
    if lookup.project(call.tx, id) is None:
        raise not_found("project", id)
    return id


def _projects(call: Call, ids: sa.Select[Any]) -> Row:
    rows = call.tx.all(sa.select(Project.table).where(Project.table.c.id.in_(ids)).order_by(Project.table.c.id))
    return shape.listing(call, "projects", resources.project_views(call, rows), call.path)


def _add(call: Call, table: sa.Table, row: Row) -> None:
    if _has(call, table, row):
        raise conflict("The project was already given this.")
    call.tx.insert(table, row)
    bump(call.cloud, call.tx)


def _has(call: Call, table: sa.Table, row: Row) -> bool:
    where = [table.c[k] == v for k, v in row.items()]
    return call.tx.scalar(sa.select(table.c.project_id).where(*where)) is not None


def _remove(call: Call, table: sa.Table, row: Row, what: str) -> None:
    if not call.tx.execute(sa.delete(table).where(*(table.c[k] == v for k, v in row.items()))):
        raise not_found(what, "of this project", "NotFound")
    bump(call.cloud, call.tx)


# --- projects and endpoints ----------------------------------------------------------------------------------------


def projects_of_endpoint(call: Call) -> Row:
    """GET /v3/OS-EP-FILTER/endpoints/{endpoint_id}/projects."""
    id = _endpoint(call)
    return _projects(call, sa.select(_PE.project_id).where(_PE.endpoint_id == id))


def _pair(call: Call) -> Row:
    return {"project_id": _project(call), "endpoint_id": _endpoint(call)}


def add_endpoint(call: Call) -> None:
    """PUT /v3/OS-EP-FILTER/projects/{project_id}/endpoints/{endpoint_id}."""
    _add(call, PROJECT_ENDPOINT, _pair(call))


def check_endpoint(call: Call) -> None:
    """GET and HEAD of the same."""
    if not _has(call, PROJECT_ENDPOINT, pair := _pair(call)):
        raise not_found("endpoint", f"{pair['endpoint_id']} of this project")


def remove_endpoint(call: Call) -> None:
    """DELETE of the same."""
    _remove(call, PROJECT_ENDPOINT, dict(call.params), "endpoint")


def endpoints_of_project(call: Call) -> Row:
    """GET /v3/OS-EP-FILTER/projects/{project_id}/endpoints: given one by one or by groups."""
    found = catalog.given(call.tx, _project(call)) or set()
    rows = call.tx.all(sa.select(_E).where(_E.c.id.in_(sorted(found))).order_by(_E.c.id))
    return shape.listing(call, "endpoints", endpoint_views(call, rows), call.path)


# --- projects and groups -------------------------------------------------------------------------------------------


def groups_of_project(call: Call) -> Row:
    """GET /v3/OS-EP-FILTER/projects/{project_id}/endpoint_groups."""
    mine = sa.select(_PG.endpoint_group_id).where(_PG.project_id == _project(call))
    rows = call.tx.all(sa.select(_G).where(_G.c.id.in_(mine)).order_by(_G.c.id))
    return shape.listing(call, "endpoint_groups", [shape.view(call, EndpointGroup, r) for r in rows], call.path)


def projects_of_group(call: Call) -> Row:
    """GET /v3/OS-EP-FILTER/endpoint_groups/{endpoint_group_id}/projects."""
    return _projects(call, sa.select(_PG.project_id).where(_PG.endpoint_group_id == _group(call)["id"]))


def endpoints_of_group(call: Call) -> Row:
    """GET /v3/OS-EP-FILTER/endpoint_groups/{endpoint_group_id}/endpoints."""
    rows = _in_group(call.tx, _group(call)["filters"])
    return shape.listing(call, "endpoints", endpoint_views(call, rows), call.path)


def _group_pair(call: Call) -> Row:
    return {"project_id": _project(call), "endpoint_group_id": _group(call)["id"]}


def add_group(call: Call) -> None:
    """PUT /v3/OS-EP-FILTER/endpoint_groups/{endpoint_group_id}/projects/{project_id}."""
    _add(call, PROJECT_ENDPOINT_GROUP, _group_pair(call))


def check_group(call: Call) -> Row:
    """GET and HEAD of the same."""
    pair = _group_pair(call)
    if not _has(call, PROJECT_ENDPOINT_GROUP, pair):
        raise not_found("endpoint_group", f"{pair['endpoint_group_id']} of this project", "NotFound")
    return {"project_endpoint_group": {**pair, "links": {"self": f"{call.base}{call.path}"}}}


def remove_group(call: Call) -> None:
    """DELETE of the same."""
    _remove(call, PROJECT_ENDPOINT_GROUP, _group_pair(call), "endpoint_group")


HOOKS = Hooks(prepare_update=_change, deleting=_delete, find=shape.finder(EndpointGroup))
_FILTER = "/v3/OS-EP-FILTER"
_ONE, _GROUP = (
    f"{_FILTER}/projects/{{project_id}}/endpoints/{{endpoint_id}}",
    (f"{_FILTER}/endpoint_groups/{{endpoint_group_id}}"),
)
_GIVEN = f"{_GROUP}/projects/{{project_id}}"


def _route(method: str, path: str, handler: Any, rule: str, doc: str, status: int = 200) -> Route:
    tx = "read" if method == "GET" else "write"
    return Route(method=method, path=path, handler=handler, doc=doc, tx=tx, rule=f"identity:{rule}", status=status)


ROUTES = (
    _route(
        "GET", f"{_FILTER}/endpoints/{{endpoint_id}}/projects", projects_of_endpoint, "list_projects_for_endpoint",
        "List the projects that were given an endpoint.",
    ),
    _route("PUT", _ONE, add_endpoint, "add_endpoint_to_project", "Let a project see an endpoint.", 204),
    _route("GET", _ONE, check_endpoint, "check_endpoint_in_project", "Ask whether it was given the endpoint.", 204),
    _route("DELETE", _ONE, remove_endpoint, "remove_endpoint_from_project", "Take it away again.", 204),
    _route(
        "GET", f"{_FILTER}/projects/{{project_id}}/endpoints", endpoints_of_project, "list_endpoints_for_project",
        "List the endpoints a project was given.",
    ),
    _route(
        "GET", f"{_FILTER}/projects/{{project_id}}/endpoint_groups", groups_of_project,
        "list_endpoint_groups_for_project", "List the endpoint groups a project was given.",
    ),
    _route(
        "GET", f"{_GROUP}/projects", projects_of_group, "list_projects_associated_with_endpoint_group",
        "List the projects that were given an endpoint group.",
    ),
    _route(
        "GET", f"{_GROUP}/endpoints", endpoints_of_group, "list_endpoints_associated_with_endpoint_group",
        "List the endpoints in a group.",
    ),
    _route("PUT", _GIVEN, add_group, "add_endpoint_group_to_project", "Let a project see a group.", 204),
    _route("GET", _GIVEN, check_group, "get_endpoint_group_in_project", "Ask whether it was given the group."),
    _route("DELETE", _GIVEN, remove_group, "remove_endpoint_group_from_project", "Take it away again.", 204),
)  # fmt: skip
