"""How Networking's lists differ from the others' in paging and sorting; each list's ``scope`` hook calls this first."""

from __future__ import annotations

from typing import Any

from nubila.core.call import Call
from nubila.core.declare import Resource
from nubila.core.faults import bad_request
from nubila.core.query import ListQuery
from nubila.services.network import look, tags


def adapt(call: Call, cls: type[Resource], q: ListQuery) -> list[Any]:
    """Bring the parsed query to Neutron's meaning and return the clauses of the tag filters.

    ``limit=0`` and a marker without a limit mean everything; a marker that is no row is a 404; every sort_key needs its
    sort_dir.
    """
    keys = sum(k == "sort_key" for k, _ in call.query)
    if keys != sum(k == "sort_dir" for k, _ in call.query):
        raise bad_request("sort_dir: give one direction for every sort_key.", "HTTPBadRequest")
    if q.limit == 0:
        q.limit = None
    if q.limit is None:
        q.marker = None
    if q.marker is not None and look.row(call.tx, cls, q.marker) is None:
        raise look.missing(cls, q.marker)
    return tags.clauses(cls, q)
