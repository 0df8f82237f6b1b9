"""What application credentials and trusts have in common: giving some of one's roles on a project to others."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from typing import Any

from nubila.core import clock
from nubila.core.call import Call
from nubila.core.faults import bad_request
from nubila.services.identity import assignments, shape
from nubila.services.identity.kinds import Role
from nubila.services.identity.revision import fresh

Row = dict[str, Any]
ROLES: Row = {
    "type": "array",
    "items": {
        "type": "object",
        "properties": {"id": {"type": "string"}, "name": {"type": "string"}},
        "minProperties": 1,
    },
}


def expiry(text: str | None) -> str | None:
    """A time in the future in stored form, else 400."""
    if text is None:
        return None
    try:
        at = datetime.fromisoformat(text.replace("Z", "+00:00"))
    except ValueError:
        raise bad_request(f"expires_at: '{text}' is not a time like 2030-01-31T12:00:00Z.", "ValidationError") from None
    at = at.replace(tzinfo=UTC) if at.tzinfo is None else at.astimezone(UTC)
    if at.timestamp() <= time.time():
        raise bad_request("expires_at must be in the future.", "ValidationError")
    return clock.at(at.timestamp())


def wanted_roles(call: Call, given: list[Row] | None, held: list[str]) -> list[str]:
    """Role ids asked for, each of which must be held; all that are held when nothing is asked for."""
    if not given:
        return held
    roles = assignments.roles_by_id(fresh(call.cloud, call.tx), call.tx)
    out = []
    for part in given:
        key, value = ("id", part["id"]) if "id" in part else ("name", part.get("name"))
        found = [id for id in held if roles[id][key] == value]
        if not found:
            raise bad_request(f"roles: you do not have the role {value}.", "ValidationError")
        out += found
    return list(dict.fromkeys(out))


def role_views(call: Call, ids: list[str], *, links: bool = False) -> list[Row]:
    roles = assignments.roles_by_id(fresh(call.cloud, call.tx), call.tx)
    out = []
    for id in ids:
        if id in roles:
            view = shape.view(call, Role, roles[id])
            if not links:
                view.pop("links")
            out.append(view)
    return out
