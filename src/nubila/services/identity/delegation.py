"""Application credentials and trusts: letting programs or others act with some of one's roles on a project."""

from __future__ import annotations

import secrets
import time
from datetime import UTC, datetime
from typing import Any

import sqlalchemy as sa

from nubila.core import checks, clock
from nubila.core.call import Call, Reply, Route
from nubila.core.faults import bad_request, conflict, forbidden, not_found
from nubila.services.identity import assignments, auth, lookup, shape
from nubila.services.identity.kinds import TRUST, ApplicationCredential, Role, User
from nubila.services.identity.login import hashing
from nubila.services.identity.revision import fresh

Row = dict[str, Any]
_A, _T, _R = ApplicationCredential.table, TRUST.c, Role.table
_ROLES = {
    "type": "array",
    "items": {
        "type": "object",
        "properties": {"id": {"type": "string"}, "name": {"type": "string"}},
        "minProperties": 1,
    },
}
_APP_CRED = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "minLength": 1, "maxLength": 255},
        "description": {"type": ["string", "null"]},
        "secret": {"type": ["string", "null"], "minLength": 1, "maxLength": 4096},
        "expires_at": {"type": ["string", "null"]},
        "project_id": {"type": ["string", "null"]},
        "roles": _ROLES,
        "unrestricted": {"type": ["boolean", "null"]},
        "access_rules": {"type": "array", "maxItems": 0},
    },
    "required": ["name"],
    "additionalProperties": False,
}
_TRUST = {
    "type": "object",
    "properties": {
        "trustor_user_id": {"type": "string"},
        "trustee_user_id": {"type": "string"},
        "impersonation": {"type": "boolean"},
        "project_id": {"type": ["string", "null"]},
        "remaining_uses": {"type": "null"},
        "expires_at": {"type": ["string", "null"]},
        "allow_redelegation": {"enum": [False, None]},
        "redelegation_count": {"enum": [0, None]},
        "roles": _ROLES,
    },
    "required": ["trustor_user_id", "trustee_user_id", "impersonation"],
}


def _expiry(text: str | None) -> str | None:
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


def _wanted_roles(call: Call, given: list[Row] | None, held: list[str]) -> list[str]:
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


def _role_views(call: Call, ids: list[str], *, links: bool = False) -> list[Row]:
    roles = assignments.roles_by_id(fresh(call.cloud, call.tx), call.tx)
    out = []
    for id in ids:
        if id in roles:
            view = shape.view(call, Role, roles[id])
            if not links:
                view.pop("links")
            out.append(view)
    return out


# --- application credentials ---------------------------------------------------------------------------------------


def _view(call: Call, row: Row, secret: str | None = None) -> Row:
    out = {
        "id": row["id"], "name": row["name"], "description": row["description"], "user_id": row["user_id"],
        "project_id": row["project_id"], "system": None, "expires_at": row["expires_at"],  # as the original: no Z
        "unrestricted": bool(row["unrestricted"]), "roles": _role_views(call, [r["id"] for r in row["roles"]]),
        "links": {"self": f"{call.base}/v3/users/{row['user_id']}/application_credentials/{row['id']}"},
    }  # fmt: skip
    if secret is not None:
        out["secret"] = secret
    return out


def _unrestricted(call: Call) -> None:
    """An application credential makes or deletes others only when it was made unrestricted."""
    token = call.creds.token
    if token is not None and token.trust_id:
        raise forbidden("A token got by a trust cannot manage application credentials.", "Forbidden")
    if token is None or not token.app_cred_id:
        return
    row = call.tx.one(sa.select(_A.c.unrestricted).where(_A.c.id == token.app_cred_id))
    if row is None or not row["unrestricted"]:
        raise forbidden("A restricted application credential cannot manage application credentials.", "Forbidden")


def create_app_cred(call: Call) -> Reply:
    """POST /v3/users/{user_id}/application_credentials."""
    user_id = call.params["user_id"]
    call.enforce("identity:create_application_credential", {"user_id": user_id, "target": {"user": {"id": user_id}}})
    body = shape.inner(call, "application_credential")
    checks.checker(_APP_CRED)(body)
    if not call.creds.project_id or body.get("project_id") not in (None, call.creds.project_id):
        raise bad_request("An application credential is for the project of the token that makes it.", "ValidationError")
    expires = _expiry(body.get("expires_at"))
    secret = body.get("secret") or secrets.token_urlsafe(64)
    hashed = hashing(call.cloud).hash(secret)
    with call.cloud.store.write() as call.tx:
        _unrestricted(call)
        shape.fetch(call.tx, User, user_id, "user")
        if call.tx.scalar(sa.select(_A.c.id).where(_A.c.user_id == user_id, _A.c.name == body["name"])) is not None:
            raise conflict(f"There is already an application credential called {body['name']}.")
        roles = _wanted_roles(call, body.get("roles"), list(call.creds.role_ids))
        row = {
            "id": clock.new_hex(), "user_id": user_id, "name": body["name"], "description": body.get("description"),
            "project_id": call.creds.project_id, "expires_at": expires, "secret_hash": hashed, "extra": {},
            "unrestricted": bool(body.get("unrestricted")), "roles": [{"id": r} for r in roles],
        }  # fmt: skip
        call.tx.insert(_A, row)
        return Reply({"application_credential": _view(call, row, secret)}, 201)


def _app_cred(call: Call, rule: str) -> Row:
    user_id, id = call.params["user_id"], call.params["id"]
    row: Row | None = call.tx.one(sa.select(_A).where(_A.c.id == id))
    owner = row["user_id"] if row is not None else user_id  # the path's user is only what the caller says
    call.enforce(rule, {"user_id": owner, "target": {"user": {"id": owner}}})
    if row is None or owner != user_id:
        raise not_found("application_credential", id)
    return row


def list_app_creds(call: Call) -> Row:
    """GET /v3/users/{user_id}/application_credentials."""
    user_id = call.params["user_id"]
    call.enforce("identity:list_application_credentials", {"user_id": user_id, "target": {"user": {"id": user_id}}})
    shape.fetch(call.tx, User, user_id, "user")
    where = [_A.c.name == v for k, v in call.query if k == "name"]
    rows = call.tx.all(sa.select(_A).where(_A.c.user_id == user_id, *where).order_by(_A.c.id))
    return shape.listing(call, "application_credentials", [_view(call, r) for r in rows], call.path)


def show_app_cred(call: Call) -> Row:
    """GET /v3/users/{user_id}/application_credentials/{id}."""
    return {"application_credential": _view(call, _app_cred(call, "identity:get_application_credential"))}


def delete_app_cred(call: Call) -> None:
    """DELETE /v3/users/{user_id}/application_credentials/{id}."""
    row = _app_cred(call, "identity:delete_application_credential")
    _unrestricted(call)
    call.tx.execute(sa.delete(_A).where(_A.c.id == row["id"]))
    auth.revoke(call.cloud, call.tx, app_cred_id=row["id"])


# --- trusts --------------------------------------------------------------------------------------------------------


def _trust_view(call: Call, row: Row, *, whole: bool = True) -> Row:
    out: Row = {
        "id": row["id"], "trustor_user_id": row["trustor_user_id"], "trustee_user_id": row["trustee_user_id"],
        "project_id": row["project_id"], "impersonation": bool(row["impersonation"]),
        "expires_at": clock.zulu_us(row["expires_at"]), "remaining_uses": None, "deleted_at": None,
        "redelegated_trust_id": None, "redelegation_count": 0,
        "links": {"self": f"{call.base}/v3/OS-TRUST/trusts/{row['id']}"},
    }  # fmt: skip
    if whole:
        out["roles"] = _role_views(call, row["roles"], links=True)
        links = {"self": f"{out['links']['self']}/roles", "next": None, "previous": None}
        out["roles_links"] = links
    return out


def create_trust(call: Call) -> Reply:
    """POST /v3/OS-TRUST/trusts."""
    body = shape.inner(call, "trust")
    checks.checker(_TRUST)(body)
    call.enforce("identity:create_trust", {"trust": body, "trust.trustor_user_id": body["trustor_user_id"]})
    token = call.creds.token
    if token is not None and (token.trust_id or token.app_cred_id):
        raise forbidden("A delegated token cannot make trusts.", "Forbidden")
    shape.fetch(call.tx, User, body["trustee_user_id"], "user")
    roles: list[str] = []
    project_id = body.get("project_id")
    if project_id:
        if lookup.project(call.tx, project_id) is None:
            raise not_found("project", project_id)
        if not body.get("roles"):
            raise bad_request("roles: a trust for a project needs at least one role.", "ValidationError")
        known = fresh(call.cloud, call.tx)
        held = assignments.token_roles(known, call.tx, body["trustor_user_id"], "project", project_id)
        if not held:
            raise forbidden("You have no role on this project.", "Forbidden")
        roles = _wanted_roles(call, body["roles"], [r["id"] for r in held])
    row = {
        "id": clock.new_hex(), "trustor_user_id": body["trustor_user_id"], "trustee_user_id": body["trustee_user_id"],
        "project_id": project_id, "impersonation": body["impersonation"], "expires_at": _expiry(body.get("expires_at")),
        "roles": roles, "created_at": clock.now(),
    }  # fmt: skip
    call.tx.insert(TRUST, row)
    return Reply({"trust": _trust_view(call, row)}, 201)


def _trust(call: Call, rule: str) -> Row:
    row: Row | None = call.tx.one(sa.select(TRUST).where(_T.id == call.params["id"]))
    if row is None or (row["expires_at"] and row["expires_at"] <= clock.now()):
        raise not_found("trust", call.params["id"])
    call.enforce(rule, {"target": {"trust": row}})
    return row


def list_trusts(call: Call) -> Row:
    """GET /v3/OS-TRUST/trusts."""
    where = []
    rule = "identity:list_trusts"
    for key in ("trustor_user_id", "trustee_user_id"):
        if (id := call.arg(key)) is not None:
            rule = f"identity:list_trusts_for_{key.removesuffix('_user_id')}"
            where.append(_T[key] == id)
            call.enforce(rule, {"target": {"trust": {key: id}}})
    if not where:
        call.enforce(rule)
    where.append(sa.or_(_T.expires_at.is_(None), _T.expires_at > clock.now()))
    rows = call.tx.all(sa.select(TRUST).where(*where).order_by(_T.id))
    return shape.listing(call, "trusts", [_trust_view(call, r, whole=False) for r in rows], call.path)


def show_trust(call: Call) -> Row:
    """GET /v3/OS-TRUST/trusts/{id}."""
    return {"trust": _trust_view(call, _trust(call, "identity:get_trust"))}


def delete_trust(call: Call) -> None:
    """DELETE /v3/OS-TRUST/trusts/{id}."""
    row = _trust(call, "identity:delete_trust")
    call.tx.execute(sa.delete(TRUST).where(_T.id == row["id"]))
    auth.revoke(call.cloud, call.tx, trust_id=row["id"])


def trust_roles(call: Call) -> Row:
    """GET /v3/OS-TRUST/trusts/{id}/roles."""
    row = _trust(call, "identity:list_roles_for_trust")
    return shape.listing(call, "roles", _role_views(call, row["roles"], links=True), call.path)


def trust_role(call: Call) -> Row:
    """GET and HEAD /v3/OS-TRUST/trusts/{id}/roles/{role_id}."""
    row = _trust(call, "identity:get_role_for_trust")
    found = _role_views(call, [r for r in row["roles"] if r == call.params["role_id"]], links=True)
    if not found:
        raise not_found("role", call.params["role_id"])
    return {"role": found[0]}


_APP, _TRUSTS = "/v3/users/{user_id}/application_credentials", "/v3/OS-TRUST/trusts"
ROUTES = (
    Route(method="POST", path=_APP, handler=create_app_cred, doc="Create an application credential.", tx="", slow=True),
    Route(method="GET", path=_APP, handler=list_app_creds, doc="List application credentials."),
    Route(method="GET", path=f"{_APP}/{{id}}", handler=show_app_cred, doc="Show an application credential."),
    Route(
        method="DELETE", path=f"{_APP}/{{id}}", handler=delete_app_cred, doc="Delete an application credential.",
        tx="write", status=204,
    ),
    Route(method="POST", path=_TRUSTS, handler=create_trust, doc="Create a trust.", tx="write", status=201),
    Route(method="GET", path=_TRUSTS, handler=list_trusts, doc="List trusts."),
    Route(method="GET", path=f"{_TRUSTS}/{{id}}", handler=show_trust, doc="Show a trust."),
    Route(method="DELETE", path=f"{_TRUSTS}/{{id}}", handler=delete_trust, doc="End a trust.", tx="write", status=204),
    Route(method="GET", path=f"{_TRUSTS}/{{id}}/roles", handler=trust_roles, doc="List the roles of a trust."),
    Route(method="GET", path=f"{_TRUSTS}/{{id}}/roles/{{role_id}}", handler=trust_role, doc="Show a role of a trust."),
)  # fmt: skip
