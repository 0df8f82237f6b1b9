"""Trusts: one user (the trustor) lets another (the trustee) act with some of his roles on a project.

API: /v3/OS-TRUST/trusts. A trust may be passed on: a trustee makes a further trust with the token that the first gave
him, at most ``redelegation_count`` times in a row. All trusts of such a chain draw on the roles of the first trustor
and go when any of those before them goes. ``remaining_uses`` counts tokens; the last use hides the trust, tokens got by
then stay valid.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from nubila.core import checks, clock
from nubila.core.call import Call, Reply, Route, takes
from nubila.core.faults import bad_request, forbidden, not_found
from nubila.services.identity import assignments, auth, delegation, lookup, shape
from nubila.services.identity.kinds import TRUST, User
from nubila.services.identity.revision import fresh
from nubila.services.identity.trust_chain import MAX_REDELEGATION, Broken, chain, usable

if TYPE_CHECKING:
    from nubila.core.db import Tx

Row = dict[str, Any]
_T = TRUST.c
SCHEMA = {
    "type": "object",
    "properties": {
        "trustor_user_id": {"type": "string"},
        "trustee_user_id": {"type": "string"},
        "impersonation": {"type": "boolean"},
        "project_id": {"type": ["string", "null"]},
        "remaining_uses": {"type": ["integer", "null"], "minimum": 1, "maximum": 2147483647},
        "expires_at": {"type": ["string", "null"]},
        "allow_redelegation": {"type": ["boolean", "null"]},
        "redelegation_count": {"type": ["integer", "null"], "minimum": 0, "maximum": 2147483647},
        "roles": delegation.ROLES,
    },
    "required": ["trustor_user_id", "trustee_user_id", "impersonation"],
}
_BODY = {"type": "object", "properties": {"trust": SCHEMA}, "required": ["trust"]}


def _view(call: Call, row: Row, *, whole: bool = True) -> Row:
    out: Row = {
        "id": row["id"], "trustor_user_id": row["trustor_user_id"], "trustee_user_id": row["trustee_user_id"],
        "project_id": row["project_id"], "impersonation": bool(row["impersonation"]),
        "expires_at": clock.zulu_us(row["expires_at"]), "remaining_uses": row["remaining_uses"], "deleted_at": None,
        "redelegated_trust_id": row["redelegated_trust_id"], "redelegation_count": row["redelegation_count"],
        "links": {"self": f"{call.base}/v3/OS-TRUST/trusts/{row['id']}"},
    }  # fmt: skip
    if whole:
        out["roles"] = delegation.role_views(call, row["roles"], links=True)
        links = {"self": f"{out['links']['self']}/roles", "next": None, "previous": None}
        out["roles_links"] = links
    return out


def _no_robot(call: Call) -> None:
    """An application credential is for one project: it neither makes nor reads trusts."""
    if call.creds.token is not None and call.creds.token.app_cred_id:
        raise forbidden("An application credential cannot be used for trusts.", "Forbidden")


# --- making one ----------------------------------------------------------------------------------------------------


@takes(_BODY)
def create(call: Call) -> Reply:
    """POST /v3/OS-TRUST/trusts."""
    body = shape.inner(call, "trust")
    checks.checker(SCHEMA)(body)
    call.enforce("identity:create_trust", {"target": {"trust": body}})
    _no_robot(call)
    project_id = body.get("project_id") or None
    if project_id and not body.get("roles"):
        raise forbidden("roles: a trust for a project needs at least one role.", "Forbidden")
    if call.creds.user_id != body["trustor_user_id"]:
        raise forbidden("trustor_user_id: only the trustor himself makes a trust.", "Forbidden")
    shape.fetch(call.tx, User, body["trustee_user_id"], "user")
    parent = _parent(call)
    first = chain(call.tx, parent)[-1] if parent is not None else None
    roles = _roles(call, body, first)
    row = {
        "id": clock.new_hex(), "trustor_user_id": body["trustor_user_id"], "trustee_user_id": body["trustee_user_id"],
        "project_id": project_id, "impersonation": body["impersonation"], "roles": roles, "created_at": clock.now(),
        "expires_at": delegation.expiry(body.get("expires_at")), "remaining_uses": body.get("remaining_uses"),
        "redelegated_trust_id": parent["id"] if parent is not None else None,
        "redelegation_count": _count(body, parent),
    }  # fmt: skip
    if parent is not None:
        for above in chain(call.tx, parent):
            _within(above, row)
    call.tx.insert(TRUST, row)
    return Reply({"trust": _view(call, row)}, 201)


def _parent(call: Call) -> Row | None:
    """The trust that gave the caller his token, when he passes it on."""
    token = call.creds.token
    if token is None or not (token.trust_id or token.access_token_id):
        return None
    row = call.tx.one(sa.select(TRUST).where(_T.id == token.trust_id)) if token.trust_id else None
    if row is None:
        raise forbidden("Only what was delegated by a trust can be passed on.", "Forbidden")
    found: Row = row
    return found


def _roles(call: Call, body: Row, first: Row | None) -> list[str]:
    """Ids of the roles asked for, each of which the first trustor has there."""
    project_id = body.get("project_id")
    if not project_id:
        return []
    if lookup.project(call.tx, project_id) is None:
        raise not_found("project", project_id)
    whose = first["trustor_user_id"] if first is not None else body["trustor_user_id"]
    known = fresh(call.cloud, call.tx)
    held = [r["id"] for r in assignments.token_roles(known, call.tx, whose, "project", project_id)]
    if not held:
        raise forbidden("You have no role on this project.", "Forbidden")
    every = assignments.roles_by_id(known, call.tx)
    for part in body["roles"]:
        if "id" in part and part["id"] not in held:
            raise not_found("role", part["id"])
        if "id" not in part and part.get("name") not in {every[r]["name"] for r in held}:
            raise not_found("role", str(part.get("name")))
    return delegation.wanted_roles(call, body["roles"], held)


def _count(body: Row, parent: Row | None) -> int:
    """How often the new trust may be passed on."""
    wished: int | None = body.get("redelegation_count")
    if not body.get("allow_redelegation") or wished == 0:
        return 0
    if wished is not None and wished > MAX_REDELEGATION:
        raise forbidden(f"redelegation_count can be {MAX_REDELEGATION} at most.", "Forbidden")
    if body.get("remaining_uses") is not None:
        raise bad_request(
            "remaining_uses: leave it out of a trust that may be passed on (allow_redelegation).", "ValidationError"
        )
    if parent is None:
        return MAX_REDELEGATION if wished is None else wished
    left: int = parent["redelegation_count"] - 1
    if wished is not None and wished != left:
        raise forbidden("redelegation_count: leave it out when a trust is passed on.", "Forbidden")
    return left


def _within(above: Row, row: Row) -> None:
    """Raise 403 when a trust would give more than one before it in its chain; it ends no later."""
    if above["redelegation_count"] <= 0:
        raise forbidden("This trust cannot be passed on (any further).", "Forbidden")
    if row["remaining_uses"] is not None:
        raise forbidden("remaining_uses: leave it out when a trust is passed on.", "Forbidden")
    if row["expires_at"] is None:
        row["expires_at"] = above["expires_at"]
    elif above["expires_at"] is not None and above["expires_at"] < row["expires_at"]:
        raise forbidden("expires_at: the trust that is passed on ends earlier.", "Forbidden")
    if not set(row["roles"]) <= set(above["roles"]):
        raise forbidden("roles: the trust that is passed on does not have all of them.", "Forbidden")
    if row["project_id"] != above["project_id"]:
        raise forbidden("project_id: it must be that of the trust that is passed on.", "Forbidden")
    if row["impersonation"] and not above["impersonation"]:
        raise forbidden("impersonation: the trust that is passed on has it not.", "Forbidden")


# --- the others ----------------------------------------------------------------------------------------------------


def _found(call: Call, rule: str) -> Row:
    row: Row | None = call.tx.one(sa.select(TRUST).where(_T.id == call.params["id"], usable()))
    if row is None:
        raise not_found("trust", call.params["id"])
    try:
        chain(call.tx, row)
    except Broken as e:
        raise forbidden(str(e), "Forbidden") from None
    call.enforce(rule, {"target": {"trust": row}})
    _no_robot(call)
    return row


def index(call: Call) -> Row:
    """GET /v3/OS-TRUST/trusts."""
    where = []
    for key in ("trustor_user_id", "trustee_user_id"):
        if (id := call.arg(key)) is not None:
            where.append(_T[key] == id)
            call.enforce(f"identity:list_trusts_for_{key.removesuffix('_user_id')}", {"target": {"trust": {key: id}}})
    if not where:
        call.enforce("identity:list_trusts")
    _no_robot(call)
    rows = call.tx.all(sa.select(TRUST).where(*where, usable()).order_by(_T.id))
    return shape.listing(call, "trusts", [_view(call, r, whole=False) for r in rows], call.path)


def show(call: Call) -> Row:
    """GET /v3/OS-TRUST/trusts/{id}."""
    return {"trust": _view(call, _found(call, "identity:get_trust"))}


def delete(call: Call) -> None:
    """DELETE /v3/OS-TRUST/trusts/{id}: it goes with all trusts it was passed on by."""
    row = call.tx.one(sa.select(TRUST).where(_T.id == call.params["id"], usable()))
    if row is None:
        raise not_found("trust", call.params["id"])
    call.enforce("identity:delete_trust", {"target": {"trust": row}})
    _no_robot(call)
    auth.revoke(call.cloud, call.tx, trust_id=row["id"])
    end(call.tx, [row["id"]])


def roles(call: Call) -> Row:
    """GET /v3/OS-TRUST/trusts/{id}/roles."""
    row = _found(call, "identity:list_roles_for_trust")
    return shape.listing(call, "roles", delegation.role_views(call, row["roles"], links=True), call.path)


def role(call: Call) -> Row:
    """GET and HEAD /v3/OS-TRUST/trusts/{id}/roles/{role_id}."""
    row = _found(call, "identity:get_role_for_trust")
    found = delegation.role_views(call, [r for r in row["roles"] if r == call.params["role_id"]], links=True)
    if not found:
        raise not_found("role", call.params["role_id"])
    return {"role": found[0]}


# --- use and end ---------------------------------------------------------------------------------------------------


def consume(call: Call, id: str) -> None:
    """Take one use off a trust for the token that is about to be given; 401 when none is left."""
    with call.cloud.store.write() as tx:
        left = tx.one(sa.select(_T.remaining_uses).where(_T.id == id))
        if left is None:
            raise auth.denied(call)
        if left["remaining_uses"] is None:
            return
        taken = sa.update(TRUST).where(_T.id == id, _T.remaining_uses > 0)
        if not tx.execute(taken.values(remaining_uses=_T.remaining_uses - 1)):
            raise auth.denied(call)


def end(tx: Tx, ids: list[str]) -> None:
    """Delete these trusts and all that they were passed on by; tokens end with the trust, after a ``bump``."""
    while ids:
        below = tx.rows(sa.select(_T.id).where(_T.redelegated_trust_id.in_(ids)))
        tx.execute(sa.delete(TRUST).where(_T.id.in_(ids)))
        ids = [id for (id,) in below]


def forget(tx: Tx, *, user_id: str = "", project_id: str = "") -> None:
    """A user or project goes, and the trusts by, for or about it with it."""
    by_user = sa.or_(_T.trustor_user_id == user_id, _T.trustee_user_id == user_id)
    where = _T.project_id == project_id if project_id else by_user
    end(tx, [id for (id,) in tx.rows(sa.select(_T.id).where(where))])


_ALL, _ONE = "/v3/OS-TRUST/trusts", "/v3/OS-TRUST/trusts/{id}"
ROUTES = (
    Route(method="POST", path=_ALL, handler=create, doc="Create a trust.", tx="write", status=201),
    Route(method="GET", path=_ALL, handler=index, doc="List trusts."),
    Route(method="GET", path=_ONE, handler=show, doc="Show a trust."),
    Route(method="DELETE", path=_ONE, handler=delete, doc="End a trust.", tx="write", status=204),
    Route(method="GET", path=f"{_ONE}/roles", handler=roles, doc="List the roles of a trust."),
    Route(method="GET", path=f"{_ONE}/roles/{{role_id}}", handler=role, doc="Show a role of a trust."),
)
