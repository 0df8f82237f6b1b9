"""Version documents: GET / and GET /v3."""

from __future__ import annotations

from typing import Any

from nubila.core.call import Call, Reply, Route


def _document(call: Call) -> dict[str, Any]:
    return {
        "id": "v3.14",
        "status": "stable",
        "updated": "2020-04-07T00:00:00Z",
        "links": [{"rel": "self", "href": f"{call.base}/v3/"}],
        "media-types": [{"base": "application/json", "type": "application/vnd.openstack.identity-v3+json"}],
    }


def every(call: Call) -> Reply:
    """GET /."""
    return Reply({"versions": {"values": [_document(call)]}}, 300, {"Location": f"{call.base}/v3/"})


def one(call: Call) -> dict[str, Any]:
    """GET /v3."""
    return {"version": _document(call)}


ROUTES = (
    Route(method="GET", path="/", handler=every, doc="List the API's versions.", auth=False, tx="", status=300),
    Route(method="GET", path="/v3", handler=one, doc="Show version 3.", auth=False, tx=""),
)
