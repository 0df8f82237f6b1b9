"""The service catalogue as a token shows it. Rows are read once per identity revision, URLs filled in per request.

Addresses of our own services are stored as "{base}/compute/v2.1" so that they follow the name the client used for us
(or ``public_url``). Others may hold ``$(project_id)s``, ``%(user_id)s`` and the like; an endpoint whose places cannot
be filled is left out, as the original does. A project that was given endpoints of its own (endpoint_filter.py) finds
only those, and services only where it finds endpoints.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from nubila.services.identity.kinds import CatalogService, Endpoint
from nubila.services.identity.kinds_filter import PROJECT_ENDPOINT, PROJECT_ENDPOINT_GROUP, EndpointGroup
from nubila.services.identity.revision import Memory, recall

if TYPE_CHECKING:
    from nubila.core.db import Reader

BASE = "{base}"
_S, _E = CatalogService.table, Endpoint.table
_ROWS = (
    sa.select(
        _S.c.id.label("service_id"), _S.c.type, _S.c.name, _E.c.id, _E.c.interface, _E.c.region_id, _E.c.url
    )
    .select_from(_S.outerjoin(_E, sa.and_(_E.c.service_id == _S.c.id, _E.c.enabled.is_(True))))
    .where(_S.c.enabled.is_(True))
    .order_by(_S.c.type, _S.c.id, _E.c.region_id, _E.c.interface)
)  # fmt: skip
_GIVEN = sa.select(PROJECT_ENDPOINT.c.project_id, PROJECT_ENDPOINT.c.endpoint_id)
_GIVEN_GROUPS = sa.select(PROJECT_ENDPOINT_GROUP.c.project_id, EndpointGroup.table.c.filters).join(
    EndpointGroup.table, EndpointGroup.table.c.id == PROJECT_ENDPOINT_GROUP.c.endpoint_group_id
)
_ENDPOINTS = sa.select(_E.c.id, _E.c.interface, _E.c.service_id, _E.c.region_id)
_PLACE = re.compile(r"[$%]\(([a-z_]+)\)s")
KNOWN = ("project_id", "tenant_id", "user_id", "domain_id", "public_url", "admin_url", "internal_url")


def fill(url: str, base: str, values: Mapping[str, str | None]) -> str | None:
    """The URL with its places filled; None when one has no value."""
    if url.startswith(BASE):
        url = base + url[len(BASE) :]
    if "(" not in url:
        return url
    missing = [m for m in _PLACE.findall(url) if not values.get(m)]
    return None if missing else _PLACE.sub(lambda m: str(values[m[1]]), url)


def wrong_places(url: str) -> list[str]:
    """Names in a URL's places that nothing fills."""
    return [m for m in _PLACE.findall(url) if m not in KNOWN]


def rows(memory: Memory, reader: Reader) -> list[dict[str, Any]]:
    """All enabled services joined with their enabled endpoints."""
    return recall(memory, reader, "catalog", lambda: reader.all(_ROWS))


def _all_given(reader: Reader) -> dict[str, set[str]]:
    """project id -> ids of the endpoints it was given, one by one or by groups; others are not in it."""
    found: dict[str, set[str]] = {}
    for project_id, endpoint_id in reader.rows(_GIVEN):
        found.setdefault(project_id, set()).add(endpoint_id)
    groups = reader.rows(_GIVEN_GROUPS)
    endpoints = reader.all(_ENDPOINTS) if groups else []
    for project_id, filters in groups:
        members = {e["id"] for e in endpoints if all(e.get(k) == v for k, v in filters.items())}
        if members:  # as the original: a project with none finds all
            found.setdefault(project_id, set()).update(members)
    return found


def given(reader: Reader, project_id: str) -> set[str] | None:
    """Ids of the endpoints a project sees; None = all."""
    return _all_given(reader).get(project_id)


MAX_CATALOGS = 64
"""Catalogues remembered per process, one for each name the cloud is called by."""


def catalog(
    memory: Memory, reader: Reader, base: str, *, project_id: str | None, user_id: str | None
) -> list[dict[str, Any]]:
    """The catalogue for a token's scope; shared, not to be changed."""
    facts = memory.facts
    if (filters := facts.get("endpoint_filter")) is None:
        filters = facts["endpoint_filter"] = _all_given(reader)
    found = rows(memory, reader)
    seen: set[str] | None = filters.get(project_id or "")
    if (same := facts.get("catalog_for_all")) is None:
        same = facts["catalog_for_all"] = not any("(" in row["url"] for row in found if row["url"])
    if not same or seen is not None:
        return _catalog(found, seen, base, {"project_id": project_id, "tenant_id": project_id, "user_id": user_id})
    made: dict[str, list[dict[str, Any]]] = facts.setdefault("catalogs", {})
    if (known := made.get(base)) is None:
        known = _catalog(found, None, base, {})
        if len(made) < MAX_CATALOGS:
            made[base] = known
    return known


def _catalog(
    found: list[dict[str, Any]], seen: set[str] | None, base: str, values: Mapping[str, str | None]
) -> list[dict[str, Any]]:
    services: dict[str, dict[str, Any]] = {}
    for row in found:
        if seen is not None and row["id"] not in seen:
            continue
        service = services.get(row["service_id"])
        if service is None:
            service = services[row["service_id"]] = {
                "endpoints": [], "id": row["service_id"], "type": row["type"], "name": row["name"],
            }  # fmt: skip
        if row["id"] is None:
            continue
        url = fill(row["url"], base, values)
        if url is not None:
            service["endpoints"].append(
                {
                    "id": row["id"],
                    "interface": row["interface"],
                    "region_id": row["region_id"],
                    "url": url,
                    "region": row["region_id"],
                }
            )
    return list(services.values())
