"""With whom images are shared. API: /v2/images/{image_id}/members."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa

from nubila.core import clock
from nubila.core.call import Call, Reply, Route
from nubila.core.faults import Fault, bad_request, conflict, forbidden
from nubila.services.image.images import allowed, known
from nubila.services.image.kinds import MEMBER
from nubila.services.image.schemas import MEMBER_STATUSES

Row = dict[str, Any]
MOST = 128
_M = MEMBER.c


def _view(row: Row) -> Row:
    return {
        "member_id": row["member_id"], "image_id": row["image_id"], "status": row["status"],
        "created_at": clock.zulu(row["created_at"]), "updated_at": clock.zulu(row["updated_at"]),
        "schema": "/v2/schemas/member",
    }  # fmt: skip


def _shareable(row: Row) -> None:
    if row["visibility"] != "shared":
        raise forbidden(f"Only shared images have members; image {row['id']} is {row['visibility']}.", "Forbidden")


def _rows(call: Call, image: Row) -> list[Row]:
    """The members the caller may see: all for the owner, himself for a member."""
    found = sa.select(MEMBER).where(_M.image_id == image["id"]).order_by(_M.created_at, _M.member_id)
    if not call.creds.is_admin and image["owner_id"] != call.creds.project_id:
        found = found.where(_M.member_id == call.creds.project_id)
    rows: list[Row] = call.tx.all(found)
    return rows


def _one(call: Call, image: Row) -> Row:
    id = call.params["member_id"]
    for row in _rows(call, image):
        if row["member_id"] == id:
            return row
    raise Fault(404, f"Image {image['id']} is not shared with project {id}.", "NotFound")


def add(call: Call) -> Reply:
    """POST /v2/images/{image_id}/members."""
    member = call.body.get("member") if isinstance(call.body, dict) else None
    if not isinstance(member, str) or not 0 < len(member) <= 255:
        raise bad_request('Member to be added not specified: send {"member": PROJECT_ID}.', "Invalid")
    image = known(call)
    allowed(call, "add_member", image)
    _shareable(image)
    rows = _rows(call, image)
    if member in [r["member_id"] for r in rows]:
        raise conflict(f"Member {member} is duplicated for image {image['id']}", "Duplicate")
    if len(rows) >= MOST:
        raise Fault(413, f"The limit of {MOST} members of an image has been exceeded.", "ImageMemberLimitExceeded")
    now = clock.now()
    row = {"image_id": image["id"], "member_id": member, "status": "pending", "created_at": now, "updated_at": now}
    call.tx.insert(MEMBER, row)
    return Reply(_view(row), 200)


def index(call: Call) -> Row:
    """GET /v2/images/{image_id}/members."""
    image = known(call)
    allowed(call, "get_members", image, call.creds.project_id if image["visibility"] == "shared" else None)
    if image["visibility"] == "public":
        raise forbidden("Public images do not have members.", "Forbidden")
    return {"members": [_view(r) for r in _rows(call, image)], "schema": "/v2/schemas/members"}


def show(call: Call) -> Row:
    """GET /v2/images/{image_id}/members/{member_id}."""
    image = known(call)
    row = _one(call, image)
    allowed(call, "get_member", image, row["member_id"])
    return _view(row)


def update(call: Call) -> Row:
    """PUT /v2/images/{image_id}/members/{member_id}: the member accepts or rejects."""
    status = call.body.get("status") if isinstance(call.body, dict) else None
    if status is None:
        raise bad_request('Status not specified: send {"status": "accepted"}.', "Invalid")
    if status not in MEMBER_STATUSES:
        raise bad_request("status: use pending, accepted or rejected.", "Invalid")
    image = known(call)
    row = _one(call, image)
    allowed(call, "modify_member", image, row["member_id"])
    row |= {"status": status, "updated_at": clock.now()}
    same = (_M.image_id == row["image_id"], _M.member_id == row["member_id"])
    call.tx.execute(sa.update(MEMBER).where(*same).values(status=status, updated_at=row["updated_at"]))
    return _view(row)


def delete(call: Call) -> None:
    """DELETE /v2/images/{image_id}/members/{member_id}."""
    image = known(call)
    allowed(call, "delete_member", image)
    row = _one(call, image)
    call.tx.execute(sa.delete(MEMBER).where(_M.image_id == image["id"], _M.member_id == row["member_id"]))


_ALL, _ONE = "/v2/images/{image_id}/members", "/v2/images/{image_id}/members/{member_id}"
ROUTES = (
    Route(method="GET", path=_ALL, handler=index, doc="List with whom an image is shared."),
    Route(method="POST", path=_ALL, handler=add, doc="Share an image with a project.", tx="write"),
    Route(method="GET", path=_ONE, handler=show, doc="Show a member."),
    Route(method="PUT", path=_ONE, handler=update, doc="Accept or reject a shared image.", tx="write"),
    Route(method="DELETE", path=_ONE, handler=delete, doc="Stop sharing with a project.", tx="write", status=204),
)
