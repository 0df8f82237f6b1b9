"""Version documents and what the store can do. API: GET /, /versions, /v2/info/..."""

from __future__ import annotations

from typing import Any

from nubila.core.call import Call, Reply, Route
from nubila.services.image.images import IMPORT_METHODS

SUPPORTED = (*(f"v2.{n}" for n in (9, 7, 6, 5, 4, 3, 2, 1, 0)),)
"""v2.7: hidden images and hashes; v2.9: images with formats taken apart. Higher ones need several stores."""


def _documents(call: Call) -> dict[str, Any]:
    return {
        "versions": [
            {
                "id": version, "status": "CURRENT" if i == 0 else "SUPPORTED",
                "links": [{"rel": "self", "href": f"{call.base}/v2/"}],
            }
            for i, version in enumerate(SUPPORTED)
        ]
    }  # fmt: skip


def every(call: Call) -> Reply:
    """GET /."""
    return Reply(_documents(call), 300)


def versions(call: Call) -> dict[str, Any]:
    """GET /versions."""
    return _documents(call)


def import_info(call: Call) -> dict[str, Any]:
    """GET /v2/info/import."""
    value = IMPORT_METHODS.split(",")
    return {"import-methods": {"description": "Import methods available.", "type": "array", "value": value}}


def stores_info(call: Call) -> dict[str, Any]:
    """GET /v2/info/stores."""
    return {"stores": [{"id": "file", "default": "true"}]}


ROUTES = (
    Route(method="GET", path="/", handler=every, doc="List the API's versions.", auth=False, tx="", status=300),
    Route(method="GET", path="/versions", handler=versions, doc="List the API's versions.", auth=False, tx=""),
    Route(method="GET", path="/v2/info/import", handler=import_info, doc="How images can be imported.", tx=""),
    Route(method="GET", path="/v2/info/stores", handler=stores_info, doc="Where images can be kept.", tx=""),
)
