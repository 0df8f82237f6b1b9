"""The schemas Image publishes and checks requests with. API: GET /v2/schemas/{name}."""

from __future__ import annotations

from typing import Any

from nubila.core.call import Call, Route
from nubila.core.faults import Fault
from nubila.services.image.kinds import CONTAINER_FORMATS, DISK_FORMATS, ID_PATTERN, STATUSES, VISIBILITIES

Schema = dict[str, Any]
MEMBER_STATUSES = ("pending", "accepted", "rejected")


def _text(doc: str, n: int | None = None, **more: Any) -> Schema:
    return {"type": ["null", "string"], "description": doc, **({"maxLength": n} if n else {}), **more}


_READ_ONLY = {"readOnly": True}
IMAGE: Schema = {
    "id": {"type": "string", "description": "Id of the image.", "pattern": ID_PATTERN},
    "name": _text("What people call it.", 255),
    "status": {"type": "string", **_READ_ONLY, "description": "State of the image.", "enum": list(STATUSES)},
    "visibility": {"type": "string", "description": "Who can see it.", "enum": list(VISIBILITIES)},
    "protected": {"type": "boolean", "description": "It cannot be deleted while true."},
    "os_hidden": {"type": "boolean", "description": "It is left out of lists by default."},
    "checksum": _text("MD5 of the data.", 32, **_READ_ONLY),
    "os_hash_algo": _text("Algorithm of os_hash_value.", 64, **_READ_ONLY),
    "os_hash_value": _text("Hash of the data.", 128, **_READ_ONLY),
    "owner": _text("The project it belongs to.", 255),
    "size": {"type": ["null", "integer"], **_READ_ONLY, "description": "Bytes of the data."},
    "virtual_size": {"type": ["null", "integer"], **_READ_ONLY, "description": "Bytes of the disk a guest sees."},
    "container_format": _text("What wraps the disk.", enum=[None, *CONTAINER_FORMATS]),
    "disk_format": _text("Format of the disk.", enum=[None, *DISK_FORMATS]),
    "created_at": {"type": "string", **_READ_ONLY, "description": "When it was made."},
    "updated_at": {"type": "string", **_READ_ONLY, "description": "When it last changed."},
    "tags": {"type": "array", "description": "Labels.", "items": {"type": "string", "maxLength": 255}},
    "min_ram": {"type": "integer", "description": "MB of memory a guest needs."},
    "min_disk": {"type": "integer", "description": "GB of disk a guest needs."},
    "self": {"type": "string", **_READ_ONLY, "description": "URL of the image."},
    "file": {"type": "string", **_READ_ONLY, "description": "URL of the data."},
    "schema": {"type": "string", **_READ_ONLY, "description": "URL of the schema."},
}
MEMBER: Schema = {
    "member_id": {"type": "string", "description": "The project the image is shared with."},
    "image_id": {"type": "string", "description": "Id of the image.", "pattern": ID_PATTERN},
    "created_at": {"type": "string", "description": "When it was shared."},
    "updated_at": {"type": "string", "description": "When that last changed."},
    "status": {
        "type": "string",
        "description": "What it thinks.",
        "enum": list(MEMBER_STATUSES),
    },
    "schema": {**_READ_ONLY, "type": "string"},
}
_ONE_IMAGE: Schema = {
    "name": "image",
    "properties": IMAGE,
    "additionalProperties": {"type": "string"},
    "links": [
        {"rel": "self", "href": "{self}"}, {"rel": "enclosure", "href": "{file}"},
        {"rel": "describedby", "href": "{schema}"},
    ],
}  # fmt: skip
_ONE_MEMBER: Schema = {"name": "member", "properties": MEMBER}


def _many(name: str, one: Schema, *, paged: bool) -> Schema:
    words = ("first", "next", "schema") if paged else ("schema",)
    rels = {"first": "first", "next": "next", "schema": "describedby"}
    return {
        "name": name,
        "properties": {name: {"type": "array", "items": one}, **{w: {"type": "string"} for w in words}},
        "links": [{"rel": rels[w], "href": f"{{{w}}}"} for w in words],
    }


PUBLISHED: Schema = {
    "image": _ONE_IMAGE,
    "images": _many("images", _ONE_IMAGE, paged=True),
    "member": _ONE_MEMBER,
    "members": _many("members", _ONE_MEMBER, paged=False),
}
CHECK: Schema = {"type": "object", "properties": IMAGE, "additionalProperties": {"type": "string"}}
"""What an image in a request body must look like."""


def show(call: Call) -> Schema:
    """GET /v2/schemas/{name}."""
    found: Schema | None = PUBLISHED.get(call.params["name"])
    if found is None:
        raise Fault(404, f"There is no schema called {call.params['name']}.", "NotFound")
    return found


ROUTES = (Route(method="GET", path="/v2/schemas/{name}", handler=show, doc="Show a schema.", tx=""),)
