"""Application credentials: secrets with some of their user's roles on one project, for programs.

API: /v3/users/{user_id}/application_credentials and /v3/users/{user_id}/access_rules. Access rules narrow a credential
to certain requests; the edge enforces them (core/access_rules.py). They belong to the user and may be used by several
credentials; each credential keeps its own copy, since neither can be changed. A credential goes with its user, its
project, and with any role its user loses on that project.
"""

from __future__ import annotations

import secrets
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from nubila.core import access_rules, checks, clock
from nubila.core.call import Call, Reply, Route, takes
from nubila.core.faults import bad_request, conflict, forbidden, not_found
from nubila.services.identity import auth, delegation, shape
from nubila.services.identity.kinds import ASSIGNMENT, ApplicationCredential, User
from nubila.services.identity.kinds_delegation import ACCESS_RULE
from nubila.services.identity.login import hashing
from nubila.services.identity.revision import bump

if TYPE_CHECKING:
    from nubila.core.db import Tx

Row = dict[str, Any]
_A, _R = ApplicationCredential.table, ACCESS_RULE.c
_RULE = {
    "type": "object",
    "properties": {
        "id": {"type": "string", "minLength": 1, "maxLength": 64},
        "service": {"type": "string", "minLength": 1, "maxLength": 64},
        "method": {"enum": list(access_rules.METHODS)},
        "path": {"type": "string", "maxLength": 128, "pattern": "^/"},
    },
    "anyOf": [{"required": ["id"]}, {"required": ["service", "method", "path"]}],
    "additionalProperties": False,
}
SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "minLength": 1, "maxLength": 255},
        "description": {"type": ["string", "null"]},
        "secret": {"type": ["string", "null"], "minLength": 1, "maxLength": 4096},
        "expires_at": {"type": ["string", "null"]},
        "project_id": {"type": ["string", "null"]},
        "roles": delegation.ROLES,
        "unrestricted": {"type": ["boolean", "null"]},
        "system": {"type": ["string", "null"]},
        "access_rules": {"type": "array", "items": _RULE, "maxItems": 256},
    },
    "required": ["name"],
    "additionalProperties": False,
}
_BODY = {"type": "object", "properties": {"application_credential": SCHEMA}, "required": ["application_credential"]}


def _view(call: Call, row: Row, secret: str | None = None) -> Row:
    out = {
        "id": row["id"], "name": row["name"], "description": row["description"], "user_id": row["user_id"],
        "project_id": row["project_id"], "system": None, "expires_at": row["expires_at"],  # as the original: no Z
        "unrestricted": bool(row["unrestricted"]),
        "roles": delegation.role_views(call, [r["id"] for r in row["roles"]]),
        "links": {"self": f"{call.base}/v3/users/{row['user_id']}/application_credentials/{row['id']}"},
    }  # fmt: skip
    if row["access_rules"]:
        out["access_rules"] = row["access_rules"]
    if secret is not None:
        out["secret"] = secret
    return out


def _own(call: Call, rule: str) -> str:
    """The user of the path, if policy lets the caller manage his credentials."""
    user_id = call.params["user_id"]
    call.enforce(rule, {"user_id": user_id, "target": {"user": {"id": user_id}}})
    return user_id


def _undelegated(call: Call, *, change: bool = True) -> None:
    """An application credential makes or deletes others only when it was made unrestricted; a trust never does."""
    token = call.creds.token
    if token is None:
        return
    if token.trust_id or token.access_token_id:
        raise forbidden("A delegated token cannot manage application credentials.", "Forbidden")
    if not token.app_cred_id or not change:
        return
    row = call.tx.one(sa.select(_A.c.unrestricted).where(_A.c.id == token.app_cred_id))
    if row is None or not row["unrestricted"]:
        raise forbidden("A restricted application credential cannot manage application credentials.", "Forbidden")


# --- application credentials ---------------------------------------------------------------------------------------


@takes(_BODY)
def create(call: Call) -> Reply:
    """POST /v3/users/{user_id}/application_credentials."""
    user_id = _own(call, "identity:create_application_credential")
    body = shape.inner(call, "application_credential")
    checks.checker(SCHEMA)(body)
    if not call.creds.project_id or body.get("project_id") not in (None, call.creds.project_id):
        raise bad_request("An application credential is for the project of the token that makes it.", "ValidationError")
    expires = delegation.expiry(body.get("expires_at"))
    secret = body.get("secret") or secrets.token_urlsafe(64)
    hashed = hashing(call.cloud).hash(secret)
    with call.cloud.store.write() as call.tx:
        _undelegated(call)
        shape.fetch(call.tx, User, user_id, "user")
        if call.tx.scalar(sa.select(_A.c.id).where(_A.c.user_id == user_id, _A.c.name == body["name"])) is not None:
            raise conflict(f"There is already an application credential called {body['name']}.")
        roles = delegation.wanted_roles(call, body.get("roles"), list(call.creds.role_ids))
        row = {
            "id": clock.new_hex(), "user_id": user_id, "name": body["name"], "description": body.get("description"),
            "project_id": call.creds.project_id, "expires_at": expires, "secret_hash": hashed, "extra": {},
            "unrestricted": bool(body.get("unrestricted")), "roles": [{"id": r} for r in roles],
            "access_rules": [_rule(call, user_id, given) for given in body.get("access_rules") or []] or None,
        }  # fmt: skip
        _not_wider(call, row)
        call.tx.insert(_A, row)
        return Reply({"application_credential": _view(call, row, secret)}, 201)


def _not_wider(call: Call, row: Row) -> None:
    """A credential that is limited to certain requests cannot make one that may do more."""
    mine = call.creds.access_rules
    if mine is None:
        return
    made = {(r["service"], r["method"], r["path"]) for r in row["access_rules"] or []}
    if not made or not made <= set(mine):
        raise forbidden("access_rules: an application credential cannot make one with other rules.", "Forbidden")


def _found(call: Call, rule: str) -> Row:
    user_id, id = call.params["user_id"], call.params["id"]
    row: Row | None = call.tx.one(sa.select(_A).where(_A.c.id == id))
    owner = row["user_id"] if row is not None else user_id  # the path's user is only what the caller says
    call.enforce(rule, {"user_id": owner, "target": {"user": {"id": owner}}})
    if row is None or owner != user_id:
        raise not_found("application_credential", id)
    return row


def index(call: Call) -> Row:
    """GET /v3/users/{user_id}/application_credentials."""
    user_id = _own(call, "identity:list_application_credentials")
    shape.fetch(call.tx, User, user_id, "user")
    where = [_A.c.name == v for k, v in call.query if k == "name"]
    rows = call.tx.all(sa.select(_A).where(_A.c.user_id == user_id, *where).order_by(_A.c.id))
    return shape.listing(call, "application_credentials", [_view(call, r) for r in rows], call.path)


def show(call: Call) -> Row:
    """GET /v3/users/{user_id}/application_credentials/{id}."""
    return {"application_credential": _view(call, _found(call, "identity:get_application_credential"))}


def delete(call: Call) -> None:
    """DELETE /v3/users/{user_id}/application_credentials/{id}."""
    row = _found(call, "identity:delete_application_credential")
    _undelegated(call)
    call.tx.execute(sa.delete(_A).where(_A.c.id == row["id"]))
    auth.revoke(call.cloud, call.tx, app_cred_id=row["id"])


# --- what takes them along -----------------------------------------------------------------------------------------


def role_taken(call: Call, user_id: str, project_id: str) -> None:
    """A user lost a role on a project: his application credentials there go, and do not come back with the role."""
    call.tx.execute(sa.delete(_A).where(_A.c.user_id == user_id, _A.c.project_id == project_id))
    bump(call.cloud, call.tx)


def role_deleted(call: Call, role_id: str) -> None:
    """Before a role and its assignments go: the same for all who have it."""
    a = ASSIGNMENT.c
    where = (a.role_id == role_id, a.actor_kind == "user", a.target_kind == "project")
    for user_id, project_id in call.tx.rows(sa.select(a.actor_id, a.target_id).where(*where)):
        role_taken(call, user_id, project_id)


def forget_user(tx: Tx, user_id: str) -> None:
    """Remove a user's application credentials and access rules."""
    tx.execute(sa.delete(_A).where(_A.c.user_id == user_id))
    tx.execute(sa.delete(ACCESS_RULE).where(_R.user_id == user_id))


# --- access rules --------------------------------------------------------------------------------------------------


def _rule(call: Call, user_id: str, given: Row) -> Row:
    """The user's rule that is meant, made with an id of ours when there is none yet: nobody picks ids for others."""
    if "service" not in given or "method" not in given or "path" not in given:
        where = [_R.id == given["id"]]
    else:
        where = [_R.service == given["service"], _R.method == given["method"], _R.path == given["path"]]
    row = call.tx.one(sa.select(ACCESS_RULE).where(_R.user_id == user_id, *where))
    if row is None and len(where) == 1:
        raise not_found("access_rule", given["id"])
    if row is None:
        row = {**given, "id": clock.new_hex(), "user_id": user_id}
        call.tx.insert(ACCESS_RULE, row)
    return {k: row[k] for k in ("id", "service", "method", "path")}


def _rule_view(call: Call, row: Row) -> Row:
    return {
        "id": row["id"], "service": row["service"], "method": row["method"], "path": row["path"],
        "links": {"self": f"{call.base}/v3/users/{row['user_id']}/access_rules/{row['id']}"},
    }  # fmt: skip


def _access_rule(call: Call, rule: str) -> Row:
    user_id, id = call.params["user_id"], call.params["id"]
    row: Row | None = call.tx.one(sa.select(ACCESS_RULE).where(_R.id == id))
    owner = row["user_id"] if row is not None else user_id
    call.enforce(rule, {"user_id": owner, "target": {"user": {"id": owner}}})
    _undelegated(call, change=call.method == "DELETE")
    if row is None or owner != user_id:
        raise not_found("access_rule", id)
    return row


def list_rules(call: Call) -> Row:
    """GET /v3/users/{user_id}/access_rules."""
    user_id = _own(call, "identity:list_access_rules")
    _undelegated(call, change=False)
    shape.fetch(call.tx, User, user_id, "user")
    where = [_R[k] == v for k, v in call.query if k in ("service", "method", "path")]
    rows = call.tx.all(sa.select(ACCESS_RULE).where(_R.user_id == user_id, *where).order_by(_R.id))
    return shape.listing(call, "access_rules", [_rule_view(call, r) for r in rows], call.path)


def show_rule(call: Call) -> Row:
    """GET /v3/users/{user_id}/access_rules/{id}."""
    return {"access_rule": _rule_view(call, _access_rule(call, "identity:get_access_rule"))}


def delete_rule(call: Call) -> None:
    """DELETE /v3/users/{user_id}/access_rules/{id}."""
    row = _access_rule(call, "identity:delete_access_rule")
    used = sa.select(_A.c.access_rules).where(_A.c.user_id == row["user_id"])
    if any(rule["id"] == row["id"] for (rules,) in call.tx.rows(used) for rule in rules or ()):
        raise forbidden("An application credential uses this access rule; delete that first.", "Forbidden")
    call.tx.execute(sa.delete(ACCESS_RULE).where(_R.id == row["id"]))


_APP, _ACCESS = "/v3/users/{user_id}/application_credentials", "/v3/users/{user_id}/access_rules"
ROUTES = (
    Route(
        method="POST", path=_APP, handler=create, doc="Create an application credential.", tx="", slow=True, status=201
    ),
    Route(method="GET", path=_APP, handler=index, doc="List application credentials."),
    Route(method="GET", path=f"{_APP}/{{id}}", handler=show, doc="Show an application credential."),
    Route(
        method="DELETE", path=f"{_APP}/{{id}}", handler=delete, doc="Delete an application credential.", tx="write",
        status=204,
    ),
    Route(method="GET", path=_ACCESS, handler=list_rules, doc="List a user's access rules."),
    Route(method="GET", path=f"{_ACCESS}/{{id}}", handler=show_rule, doc="Show an access rule."),
    Route(
        method="DELETE", path=f"{_ACCESS}/{{id}}", handler=delete_rule, doc="Delete an access rule.", tx="write",
        status=204,
    ),
)  # fmt: skip
