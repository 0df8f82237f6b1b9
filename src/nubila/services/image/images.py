"""Images: create, list, show, change by JSON patch, delete, tags, deactivate. API: /v2/images."""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any
from urllib.parse import urlencode

import sqlalchemy as sa

from nubila.core import clock
from nubila.core.call import Call, Reply, Route
from nubila.core.checks import checker
from nubila.core.faults import Fault, bad_request, conflict, forbidden
from nubila.core.query import ListQuery, select
from nubila.core.types import boolean
from nubila.services.image import lookup
from nubila.services.image.kinds import GONE, MEMBER, PROPERTY, TAG, VISIBILITIES, Image
from nubila.services.image.schemas import CHECK

Row = dict[str, Any]
READ_ONLY = frozenset(
    {"created_at", "updated_at", "status", "checksum", "size", "virtual_size", "direct_url", "self", "file", "schema",
     "os_hash_algo", "os_hash_value", "stores"}
)  # fmt: skip
RESERVED = frozenset({"location", "locations", "deleted", "deleted_at"})
OURS = "os_glance_"
CORE = (
    "name",
    "visibility",
    "protected",
    "os_hidden",
    "owner",
    "container_format",
    "disk_format",
    "min_ram",
    "min_disk",
)
SORT_KEYS = ("name", "status", "container_format", "disk_format", "size", "id", "created_at", "updated_at")
MOST = 128
"""How many tags and how many properties an image can have."""
DEFAULT_LIMIT, MAX_LIMIT = 25, 1000
IMPORT_METHODS = "glance-direct"
_I = Image.table
_M = MEMBER.c
_UNSET_ON_REMOVE = {"name": None, "container_format": None, "disk_format": None, "min_ram": 0, "min_disk": 0,
                    "os_hidden": False, "protected": False, "visibility": "shared"}  # fmt: skip


# --- showing -------------------------------------------------------------------------------------------------------


def view(row: Mapping[str, Any]) -> Row:
    """An image as the API shows it."""
    path = f"/v2/images/{row['id']}"
    done = row["status"] in ("active", "deactivated")  # what staged data hash to is nobody's business yet
    hashes = {k: row[k] if done else None for k in ("checksum", "os_hash_algo", "os_hash_value")}
    return {
        **row["properties"],
        "name": row["name"], "disk_format": row["disk_format"], "container_format": row["container_format"],
        "visibility": row["visibility"], "size": row["size"], "virtual_size": row["virtual_size"],
        "status": row["status"], **hashes, "protected": bool(row["protected"]),
        "min_ram": row["min_ram"], "min_disk": row["min_disk"], "owner": row["owner_id"],
        "os_hidden": bool(row["os_hidden"]), "id": row["id"],
        "created_at": clock.zulu(row["created_at"]), "updated_at": clock.zulu(row["updated_at"]),
        "tags": row["tags"], "self": path, "file": f"{path}/file", "schema": "/v2/schemas/image",
        **({"stores": "file"} if done else {}),
    }  # fmt: skip


def target(row: Mapping[str, Any], member_id: str | None = None) -> Row:
    """What policy rules can name of an image."""
    return {
        **row, "project_id": row["owner_id"], "owner": row["owner_id"], "visibility": row["visibility"],
        "member_id": member_id,
    }  # fmt: skip


def known(call: Call, id: str | None = None) -> Row:
    """The image of the path if the caller may know of it, else 404."""
    id = id or call.params["image_id"]
    row = lookup.visible(call.tx, call.creds, id)
    if row is None or not call.may("get_image", target(row, call.creds.project_id)):
        raise lookup.missing(id)
    return row


def allowed(call: Call, rule: str, row: Mapping[str, Any], member_id: str | None = None) -> None:
    """Raise 403 unless the caller may do this to an image he can see."""
    if not call.may(rule, target(row, member_id)):
        raise forbidden(f"Policy does not allow you {rule}.", "Forbidden")


def show(call: Call) -> Row:
    """GET /v2/images/{image_id}."""
    return view(known(call))


# --- creating ------------------------------------------------------------------------------------------------------


def _names(values: Mapping[str, Any]) -> None:
    for name in values:
        if name in READ_ONLY:
            raise forbidden(f"Attribute '{name}' is read-only.", "ReadonlyProperty")
        if name in RESERVED or name.startswith(OURS):
            raise forbidden(f"Attribute '{name}' is reserved.", "ReservedProperty")
        if len(name) > 255:
            raise bad_request(f"The name of a property has 255 characters at most: '{name[:40]}...'.", "Invalid")


def _sizes(values: Mapping[str, Any]) -> None:
    for name in ("min_disk", "min_ram"):
        if not 0 <= values.get(name, 0) < 2**31:
            raise bad_request(f"Invalid value '{values[name]}' for {name}: it must be 0 to 2147483647.", "Invalid")


def _may_show(call: Call, visibility: str, row: Mapping[str, Any]) -> None:
    if visibility == "public":
        allowed(call, "publicize_image", row)
    elif visibility == "community":
        allowed(call, "communitize_image", row)


def create(call: Call) -> Reply:
    """POST /v2/images."""
    body = call.body
    if body is None:
        raise bad_request("Body expected in request.", "Invalid")
    if not isinstance(body, dict):
        raise bad_request("The body must be an object with the image's attributes.", "Invalid")
    _names(body)
    checker(CHECK)(body)
    _sizes(body)
    core = {k: body[k] for k in CORE if k in body}
    properties = {k: v for k, v in body.items() if k not in CORE and k not in ("id", "tags")}
    tags = sorted(set(body.get("tags", [])))
    _limits(tags, properties)
    owner = core.pop("owner", call.creds.project_id) if call.creds.is_admin else core.pop("owner", None)
    if not call.creds.is_admin:
        if owner is not None and owner != call.creds.project_id:
            raise forbidden(f"owner: only administrators make images for others, here '{owner}'.", "Forbidden")
        owner = call.creds.project_id
    now = clock.now()
    row: Row = {c.name: None for c in _I.columns}
    row |= {"visibility": "shared", "protected": False, "os_hidden": False, "min_ram": 0, "min_disk": 0}
    row |= {**core, "id": body.get("id", "").lower() or clock.new_id(), "owner_id": owner, "status": "queued"}
    row |= {"created_at": now, "updated_at": now}
    allowed(call, "add_image", row)
    _may_show(call, row["visibility"], row)
    used = sa.union_all(
        sa.select(_I.c.id).where(_I.c.id == row["id"]), sa.select(GONE.c.id).where(GONE.c.id == row["id"])
    )
    if call.tx.rows(used):
        raise conflict(f"Image ID {row['id']} already exists!", "Duplicate")
    call.tx.insert(_I, row)
    _store_parts(call, row["id"], tags, properties)
    row |= {"tags": tags, "properties": properties}
    headers = {
        "Location": f"{call.base}/v2/images/{row['id']}",
        "OpenStack-image-import-methods": IMPORT_METHODS,
        "OpenStack-image-store-ids": "file",
    }
    return Reply(view(row), 201, headers)


def _limits(tags: list[str], properties: Mapping[str, Any]) -> None:
    if len(tags) > MOST:
        raise Fault(413, f"The limit of {MOST} tags of an image has been exceeded.", "ImageTagLimitExceeded")
    if len(properties) > MOST:
        raise Fault(413, f"The limit of {MOST} properties of an image has been exceeded.", "ImagePropertyLimitExceeded")


def _store_parts(call: Call, id: str, tags: list[str] | None, properties: Mapping[str, str] | None) -> None:
    if tags is not None:
        call.tx.execute(sa.delete(TAG).where(TAG.c.image_id == id))
        for name in dict.fromkeys(tags):
            call.tx.insert(TAG, {"image_id": id, "name": name})
    if properties is not None:
        call.tx.execute(sa.delete(PROPERTY).where(PROPERTY.c.image_id == id))
        for name, value in properties.items():
            call.tx.insert(PROPERTY, {"image_id": id, "name": name, "value": value})


# --- listing -------------------------------------------------------------------------------------------------------


def _scope(call: Call, visibility: str | None, member_status: str) -> Any:
    """Whose images are listed, by visibility asked for and the caller's project."""
    mine = _I.c.owner_id == call.creds.project_id if call.creds.project_id else sa.false()
    shared = sa.select(_M.image_id).where(_M.member_id == (call.creds.project_id or ""))
    if member_status != "all":
        shared = shared.where(_M.status == member_status)
    with_me = sa.and_(_I.c.visibility == "shared", _I.c.id.in_(shared))
    admin = call.creds.is_admin
    if visibility is None:
        if admin:
            return sa.or_(_I.c.visibility != "community", mine)
        return sa.or_(mine, _I.c.visibility == "public", with_me)
    if visibility == "all":
        return sa.true() if admin else sa.or_(mine, _I.c.visibility.in_(("public", "community")), with_me)
    only = _I.c.visibility == visibility
    if visibility in ("public", "community") or admin:
        return only
    return sa.and_(only, sa.or_(mine, with_me))


def _when(name: str, text: str) -> Any:
    op, _, rest = text.partition(":")
    if op not in ("gt", "gte", "lt", "lte", "eq", "neq"):
        op, rest = "eq", text
    try:
        at = datetime.fromisoformat(rest.replace("Z", "+00:00"))
    except ValueError:
        raise bad_request(f"{name}: write the time like 2026-01-31T12:00:00Z.", "Invalid") from None
    at = at.replace(tzinfo=UTC) if at.tzinfo is None else at.astimezone(UTC)
    column = sa.func.substr(_I.c[name], 1, 19)  # the API shows whole seconds
    value = at.isoformat(timespec="seconds")[:19]
    return {
        "gt": column > value, "gte": column >= value, "lt": column < value, "lte": column <= value,
        "eq": column == value, "neq": column != value,
    }[op]  # fmt: skip


def _listed(name: str, text: str) -> list[str]:
    """The values of ``in:a,"b,c"`` or the one value."""
    if not text.startswith("in:"):
        return [text]
    parts = re.findall(r'"([^"]*)"|([^,"]+)', text[3:])
    if not parts:
        raise bad_request(f"The filter {name} has no values after 'in:'.", "Invalid")
    return [a or b for a, b in parts]


def _number(name: str, text: str) -> int:
    try:
        value = int(text)
    except ValueError:
        raise bad_request(f"The filter {name} must be a whole number, not '{text}'.", "Invalid") from None
    if not 0 <= value < 2**63:
        raise bad_request(f"The filter {name} must be 0 or more.", "Invalid")
    return value


def _truth(name: str, text: str) -> bool:
    try:
        return boolean(text)
    except ValueError:
        raise bad_request(f"The filter {name} must be true or false, not '{text}'.", "Invalid") from None


def _filter(name: str, text: str) -> Any:
    if name in ("name", "status", "id", "container_format", "disk_format"):
        return _I.c[name].in_(_listed(name, text))
    if name in ("checksum", "os_hash_algo", "os_hash_value"):
        return _I.c[name] == text
    if name == "owner":
        return _I.c.owner_id == text
    if name in ("protected", "os_hidden"):
        return _I.c[name].is_(_truth(name, text))
    if name in ("size_min", "size_max"):
        return _I.c.size >= _number(name, text) if name == "size_min" else _I.c.size <= _number(name, text)
    if name in ("size", "min_ram", "min_disk", "virtual_size"):
        return _I.c[name] == _number(name, text)
    if name in ("created_at", "updated_at"):
        return _when(name, text)
    if name == "tag":
        return _I.c.id.in_(sa.select(TAG.c.image_id).where(TAG.c.name == text.strip()))
    if name == "changes-since":
        raise bad_request('The "changes-since" filter is not available in v2; use updated_at=gt:...', "Invalid")
    p = PROPERTY.c
    return _I.c.id.in_(sa.select(p.image_id).where(p.name == name, p.value == text))


def _order(query: list[tuple[str, str]]) -> list[tuple[str, str]]:
    values = {k: [v for q, v in query if q == k] for k in ("sort", "sort_key", "sort_dir")}
    if values["sort"] and (values["sort_key"] or values["sort_dir"]):
        raise bad_request("sort stands alone: leave it out beside sort_key and sort_dir.", "Invalid")
    if values["sort"]:
        pairs = [
            (k.strip(), d.strip() or "desc") for k, _, d in (p.partition(":") for p in values["sort"][-1].split(","))
        ]
    else:
        keys, dirs = values["sort_key"] or ["created_at"], values["sort_dir"] or ["desc"]
        if len(dirs) == 1:
            dirs = dirs * len(keys)
        if len(dirs) != len(keys):
            raise bad_request("sort_dir: give one, or one for every sort_key.", "Invalid")
        pairs = list(zip(keys, dirs, strict=True))
    for key, direction in pairs:
        if key not in SORT_KEYS:
            raise bad_request(f"Images can not be sorted by {key}; use {', '.join(SORT_KEYS)}.", "Invalid")
        if direction not in ("asc", "desc"):
            raise bad_request(f"sort_dir: '{direction}' must be asc or desc.", "Invalid")
    out = dict(pairs)
    for key in ("created_at", "id"):
        out.setdefault(key, pairs[-1][1] if pairs else "desc")
    return list(out.items())


def _limit(text: str | None) -> int:
    if text is None:
        return DEFAULT_LIMIT
    if not re.fullmatch(r"\d{1,9}", text):
        raise bad_request("limit param must be an integer of 0 or more.", "Invalid")
    return min(int(text), MAX_LIMIT)


def index(call: Call) -> Row:
    """GET /v2/images."""
    if call.path.endswith("/"):
        raise lookup.missing("")
    if not call.may("get_images", {"project_id": call.creds.project_id}):
        raise forbidden("You are not authorized to complete get_images action.", "Forbidden")
    visibility, member_status = call.arg("visibility"), call.arg("member_status") or "accepted"
    if visibility is not None and visibility not in (*VISIBILITIES, "all"):
        raise bad_request(f"Invalid visibility value: {visibility}", "Invalid")
    if member_status not in ("pending", "accepted", "rejected", "all"):
        raise bad_request(f"Invalid status: {member_status}", "Invalid")
    q = ListQuery(order=_order(call.query))
    limit = _limit(call.arg("limit"))
    handled = ("visibility", "member_status", "limit", "marker", "sort", "sort_key", "sort_dir")
    q.where = [_filter(k, v) for k, v in call.query if k not in handled]
    if call.arg("os_hidden") is None:
        q.where.append(_I.c.os_hidden.is_(False))
    marker: Row | None = None
    if (id := call.arg("marker")) is not None:
        marker = lookup.visible(call.tx, call.creds, id)
        if marker is None:
            raise bad_request(f"No image found with ID {id}", "Invalid")
    q.limit = limit
    rows = call.tx.all(select(Image, q, scope=_scope(call, visibility, member_status), marker=marker)) if limit else []
    lookup.with_parts(call.tx, rows)
    kept = [(k, v) for k, v in call.query if k != "marker"]
    first = f"/v2/images?{urlencode(kept)}" if kept else "/v2/images"
    out: Row = {"images": [view(r) for r in rows], "first": first, "schema": "/v2/schemas/images"}
    if rows and len(rows) == limit:
        out["next"] = f"/v2/images?{urlencode([*kept, ('marker', rows[-1]['id'])])}"
    return out


# --- changing ------------------------------------------------------------------------------------------------------

PATCHES = {"application/openstack-images-v2.0-json-patch": 4, "application/openstack-images-v2.1-json-patch": 10}
OPERATIONS = ("add", "remove", "replace")


def _pointer(pointer: Any) -> str:
    """The one attribute a JSON pointer names."""
    if not isinstance(pointer, str) or not pointer.startswith("/"):
        raise bad_request(f'Pointer `{pointer}` does not start with "/".', "Invalid")
    if re.search(r"~[^01]|~$", pointer):
        raise bad_request(f'Pointer `{pointer}` contains "~" not part of an escape sequence.', "Invalid")
    parts = pointer[1:].split("/")
    if len(parts) != 1 or not parts[0].strip():
        raise bad_request(f"path: '{pointer}' must be / and the name of an attribute.", "Invalid")
    return parts[0].replace("~1", "/").replace("~0", "~").strip()


def _change(raw: Any, draft: int) -> tuple[str, str, Any]:
    """(operation, attribute, value) of one element of a patch."""
    if not isinstance(raw, dict):
        raise bad_request("Operations must be JSON objects.", "Invalid")
    if draft == 10:
        op, path = raw.get("op"), raw.get("path")
        if op not in OPERATIONS:
            raise bad_request(f"op: '{op}' must be one of {', '.join(OPERATIONS)}.", "Invalid")
        if path is None:
            raise bad_request("path: it is missing in a change.", "Invalid")
    else:
        given = [o for o in OPERATIONS if o in raw]
        if len(given) != 1:
            raise bad_request('Operation objects must contain exactly one of "add", "remove", "replace".', "Invalid")
        op, path = given[0], raw[given[0]]
    name = _pointer(path)
    if name in READ_ONLY or name == "id":
        raise forbidden(f"Attribute '{name}' is read-only.", "ReadonlyProperty")
    if name in RESERVED or name.startswith(OURS):
        raise forbidden(f"Attribute '{name}' is reserved.", "ReservedProperty")
    if len(name) > 255:
        raise bad_request(f"The name of a property has 255 characters at most: '{name[:40]}...'.", "Invalid")
    if op == "remove":
        return op, name, None
    if "value" not in raw:
        raise bad_request(f"value: it is missing beside op {op}.", "Invalid")
    checker(CHECK)({name: raw["value"]})
    return op, name, raw["value"]


def update(call: Call) -> Row:
    """PATCH /v2/images/{image_id}."""
    kind = call.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind not in PATCHES:
        kinds = ", ".join(sorted(PATCHES))
        raise Fault(415, f"Send the changes as {kinds}.", headers={"Accept-Patch": kinds})
    if not isinstance(call.body, list):
        raise bad_request("The body must be a list of changes.", "Invalid")
    changes = [_change(raw, PATCHES[kind]) for raw in call.body]
    row = known(call)
    allowed(call, "modify_image", row)
    values: Row = {}
    properties, tags = dict(row["properties"]), list(row["tags"])
    for op, name, value in changes:
        if name == "tags":
            tags = [] if op == "remove" else sorted(set(value))
        elif name in CORE:
            values[_column(name)] = _core(call, row, op, name, value)
        elif op == "add" or (op == "replace" and name in properties):
            properties[name] = value
        elif name not in properties:
            raise conflict(f"Property {name} does not exist.", "Conflict")
        else:
            del properties[name]
    _sizes(values)
    _limits(tags, properties)
    row |= values
    if changes:
        row["updated_at"] = values["updated_at"] = clock.now()
        call.tx.execute(sa.update(_I).where(_I.c.id == row["id"]).values(**values))
        _store_parts(call, row["id"], tags, properties)
    return view({**row, "tags": tags, "properties": properties})


def _column(name: str) -> str:
    return "owner_id" if name == "owner" else name


def _core(call: Call, row: Row, op: str, name: str, value: Any) -> Any:
    """The new value of an attribute of our own."""
    if op == "remove":
        if name not in _UNSET_ON_REMOVE or name in ("visibility", "protected", "os_hidden"):
            raise forbidden(f"Property {name} may not be removed.", "Forbidden")
        value = _UNSET_ON_REMOVE[name]
    if name in ("disk_format", "container_format") and row["status"] != "queued" and value != row[name]:
        raise forbidden(f"{name} is fixed once the image has data.", "Forbidden")
    if name == "visibility" and value != row["visibility"]:
        _may_show(call, value, row)
    if name == "owner" and value != row["owner_id"] and not call.creds.is_admin:
        raise forbidden("Only an administrator can give an image to another project.", "Forbidden")
    return value


def delete(call: Call) -> None:
    """DELETE /v2/images/{image_id}. The file is removed by the reconciler."""
    row = known(call)
    allowed(call, "delete_image", row)
    if row["protected"]:
        raise forbidden(f"Image {row['id']} is protected: set protected to false first.", "ProtectedImageDelete")
    for table in (TAG, PROPERTY, MEMBER):
        call.tx.execute(sa.delete(table).where(table.c.image_id == row["id"]))
    call.tx.execute(sa.delete(_I).where(_I.c.id == row["id"]))
    call.tx.insert(GONE, {"id": row["id"], "at": clock.now()})
    call.tx.ask("image", row["id"])


def delete_nothing(call: Call) -> None:
    """DELETE /v2/images/: the id is missing, which must never mean all of them."""
    raise lookup.missing("")


# --- tags and actions ----------------------------------------------------------------------------------------------


def add_tag(call: Call) -> None:
    """PUT /v2/images/{image_id}/tags/{tag}."""
    row = known(call)
    allowed(call, "modify_image", row)
    name = call.params["tag"]
    if not 0 < len(name) <= 255:
        raise bad_request("A tag has 1 to 255 characters.", "Invalid")
    if name not in row["tags"]:
        _limits([*row["tags"], name], {})
        call.tx.insert(TAG, {"image_id": row["id"], "name": name})
        _touch(call, row)


def delete_tag(call: Call) -> None:
    """DELETE /v2/images/{image_id}/tags/{tag}."""
    row = known(call)
    allowed(call, "modify_image", row)
    same = (TAG.c.image_id == row["id"], TAG.c.name == call.params["tag"])
    if not call.tx.execute(sa.delete(TAG).where(*same)):
        raise Fault(404, f"The image has no tag {call.params['tag']}.", "NotFound")
    _touch(call, row)


def _touch(call: Call, row: Row, **values: Any) -> None:
    call.tx.execute(sa.update(_I).where(_I.c.id == row["id"]).values(updated_at=clock.now(), **values))


def deactivate(call: Call) -> None:
    """POST /v2/images/{image_id}/actions/deactivate."""
    _switch(call, "deactivate", "deactivated")


def reactivate(call: Call) -> None:
    """POST /v2/images/{image_id}/actions/reactivate."""
    _switch(call, "reactivate", "active")


def _switch(call: Call, rule: str, status: str) -> None:
    row = known(call)
    allowed(call, rule, row)
    if row["status"] not in ("active", "deactivated"):
        raise forbidden(f"Not allowed to {rule} image in status '{row['status']}'", "Forbidden")
    if row["status"] != status:
        _touch(call, row, status=status)


_ALL, _ONE = "/v2/images", "/v2/images/{image_id}"
_TAG, _DO = f"{_ONE}/tags/{{tag}}", f"{_ONE}/actions"
ROUTES = (
    Route(method="GET", path=_ALL, handler=index, doc="List images."),
    Route(method="POST", path=_ALL, handler=create, doc="Create an image without data.", tx="write", status=201),
    Route(method="DELETE", path=_ALL, handler=delete_nothing, doc="Refused: the image's id is missing.", tx=""),
    Route(method="GET", path=_ONE, handler=show, doc="Show an image."),
    Route(method="PATCH", path=_ONE, handler=update, doc="Change an image.", tx="write"),
    Route(method="DELETE", path=_ONE, handler=delete, doc="Delete an image.", tx="write", status=204),
    Route(method="PUT", path=_TAG, handler=add_tag, doc="Add a tag.", tx="write", status=204),
    Route(method="DELETE", path=_TAG, handler=delete_tag, doc="Remove a tag.", tx="write", status=204),
    Route(method="POST", path=f"{_DO}/deactivate", handler=deactivate, doc="Stop downloads.", tx="write", status=204),
    Route(method="POST", path=f"{_DO}/reactivate", handler=reactivate, doc="Allow downloads.", tx="write", status=204),
)
