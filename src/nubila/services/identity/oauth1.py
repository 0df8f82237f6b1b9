"""OAuth 1.0a: programs of others act for a user with some of his roles on a project, without knowing his password.

API: /v3/OS-OAUTH1, /v3/users/{user_id}/OS-OAUTH1/access_tokens, and the authentication method ``oauth1``. The dance: a
consumer asks for a request token for a project; the user authorises it with some of his roles and passes the verifier
on; the consumer changes both for an access token, with which it signs requests for tokens. Secrets are encrypted in the
database. oauthlib (RFC 5849) checks the signatures: a protocol with this many corners is better not written anew.
"""

from __future__ import annotations

import secrets
import time
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from nubila.core import checks, clock
from nubila.core.call import Call, Reply, Route, takes
from nubila.core.faults import bad_request, forbidden, not_found
from nubila.core.service import Hooks
from nubila.services.identity import assignments, credential_keys, delegation, lookup, oauth1_requests, shape
from nubila.services.identity.kinds_oauth1 import ACCESS_TOKEN, REQUEST_TOKEN, Consumer
from nubila.services.identity.revision import bump, fresh

if TYPE_CHECKING:
    from nubila.core.cloud import Cloud
    from nubila.core.db import Reader, Tx
    from nubila.services.identity.proof import Proof

Row = dict[str, Any]
REQUEST_TOKEN_S, ACCESS_TOKEN_S = 28_800, 86_400
_R, _A, _C = REQUEST_TOKEN.c, ACCESS_TOKEN.c, Consumer.table
_LETTERS = "abcdefghijkmnopqrstuvwxyzABCDEFGHJKLMNPQRSTUVWXYZ23456789"
SCHEMA: Row = {"type": "object"}
_AUTHORIZE = {
    "type": "object",
    "properties": {"roles": {**delegation.ROLES, "minItems": 1}},
    "required": ["roles"],
}


# --- consumers -----------------------------------------------------------------------------------------------------


def create_consumer(call: Call) -> Reply:
    """POST /v3/OS-OAUTH1/consumers: the only time the secret is shown."""
    body = shape.inner(call, "consumer")
    call.enforce("identity:create_consumer")
    values = checks.defaults(Consumer, checks.accept(Consumer, "create", body, call.version), call.version)
    shape.keep_extra(call, Consumer, values)
    values["extra"].pop("secret", None)
    keys, secret = credential_keys.keys(call.cloud), secrets.token_hex(16)
    values["encrypted_secret"], values["key_hash"] = keys.encrypt(secret), keys.hash
    call.tx.insert(_C, {c.name: values.get(c.name) for c in _C.columns})
    return Reply({"consumer": {**shape.view(call, Consumer, values), "secret": secret}}, 201)


def _change(call: Call, before: Row, values: Row) -> None:
    if "secret" in call.body["consumer"]:
        raise bad_request("secret: cannot be changed; make another consumer.", "ValidationError")
    shape.keep_extra(call, Consumer, values, before)


def _delete(call: Call, row: Row) -> None:
    for table in (REQUEST_TOKEN, ACCESS_TOKEN):
        call.tx.execute(sa.delete(table).where(table.c.consumer_id == row["id"]))
    bump(call.cloud, call.tx)


HOOKS = Hooks(prepare_update=_change, deleting=_delete, find=shape.finder(Consumer))


# --- the dance -----------------------------------------------------------------------------------------------------


def _make(call: Call, table: sa.Table, seconds: int, **values: Any) -> Reply:
    """Write a token and answer it in OAuth's form."""
    keys, secret = credential_keys.keys(call.cloud), secrets.token_hex(16)
    row = {
        "id": clock.new_hex(), "secret": keys.encrypt(secret), "key_hash": keys.hash,
        "expires_at": clock.at(time.time() + seconds), **values,
    }  # fmt: skip
    call.tx.insert(table, row)
    body = f"oauth_token={row['id']}&oauth_token_secret={secret}&oauth_expires_at={clock.zulu_us(row['expires_at'])}"
    return Reply(body.encode(), 201, content_type="application/x-www-form-urlencoded")


def request_token(call: Call) -> Reply:
    """POST /v3/OS-OAUTH1/request_token."""
    found = oauth1_requests.headers(call)
    project_id = call.headers.get("requested-project-id")
    if not project_id:
        raise bad_request("The header Requested-Project-Id is missing.", "ValidationError")
    oauth1_requests.for_request_token(call)
    if lookup.project(call.tx, project_id) is None:
        raise not_found("project", project_id)
    oauth1_requests.once_only(call.tx, found)
    call.tx.execute(sa.delete(REQUEST_TOKEN).where(_R.expires_at < clock.now()))
    return _make(
        call, REQUEST_TOKEN, REQUEST_TOKEN_S, consumer_id=found["oauth_consumer_key"], user_id=None,
        project_id=project_id, roles=[], verifier=None,
    )  # fmt: skip


@takes(_AUTHORIZE)
def authorize(call: Call) -> Row:
    """PUT /v3/OS-OAUTH1/authorize/{request_token_id}."""
    call.enforce("identity:authorize_request_token")
    _undelegated(call)
    checks.checker(_AUTHORIZE)(call.body)
    id, user_id = call.params["request_token_id"], str(call.creds.user_id)
    row = oauth1_requests.token(call.tx, REQUEST_TOKEN, id)
    if row is None:
        raise not_found("request_token", id)
    if row["user_id"] not in (None, user_id):
        raise forbidden("Another user has authorised this request token.", "Forbidden")
    known = fresh(call.cloud, call.tx)
    held = [r["id"] for r in assignments.token_roles(known, call.tx, user_id, "project", row["project_id"])]
    every = assignments.roles_by_id(known, call.tx)
    asked = [
        p.get("id") or next((r for r in held if every[r]["name"] == p.get("name")), "") for p in call.body["roles"]
    ]
    if not set(asked) <= set(held):
        raise oauth1_requests.refused("roles: you do not have all of them on the project of the request token.")
    verifier = "".join(secrets.choice(_LETTERS) for _ in range(8))
    values = {"user_id": user_id, "verifier": verifier, "roles": sorted(set(asked))}
    call.tx.execute(sa.update(REQUEST_TOKEN).where(_R.id == id).values(values))
    return {"token": {"oauth_verifier": verifier}}


def access_token(call: Call) -> Reply:
    """POST /v3/OS-OAUTH1/access_token."""
    found = oauth1_requests.headers(call)
    for name in ("oauth_token", "oauth_verifier"):
        if not found.get(name):
            raise bad_request(f"{name} is missing from the Authorization header.", "ValidationError")
    oauth1_requests.for_access_token(call)
    row = oauth1_requests.token(call.tx, REQUEST_TOKEN, found["oauth_token"])
    if row is None or row["user_id"] is None or not call.tx.execute(sa.delete(REQUEST_TOKEN).where(_R.id == row["id"])):
        raise oauth1_requests.refused("The request token is gone, or nobody has authorised it.")
    call.tx.execute(sa.delete(ACCESS_TOKEN).where(_A.expires_at < clock.now()))
    return _make(
        call, ACCESS_TOKEN, ACCESS_TOKEN_S, consumer_id=row["consumer_id"], user_id=row["user_id"],
        project_id=row["project_id"], roles=row["roles"],
    )  # fmt: skip


def _undelegated(call: Call) -> None:
    token = call.creds.token
    if token is not None and (token.trust_id or token.app_cred_id or token.access_token_id):
        raise forbidden("A delegated token cannot be used for this.", "Forbidden")


def prove(cloud: Cloud, reader: Reader, part: Row, proof: Proof) -> None:
    """The authentication method: the request itself is signed with an access token."""
    call = proof.call
    found = oauth1_requests.headers(call)
    if not found.get("oauth_token"):
        raise bad_request("oauth_token is missing from the Authorization header.", "ValidationError")
    row = oauth1_requests.token(reader, ACCESS_TOKEN, found["oauth_token"])
    if not oauth1_requests.for_resource(call, reader) or row is None:
        proof.users.append(None)
        return
    scope = call.body["auth"].get("scope")
    if scope is not None and not (isinstance(scope, dict) and _is(scope.get("project"), row["project_id"])):
        raise oauth1_requests.refused("scope: an access token is for its own project; leave it out.")
    proof.users.append(row["user_id"])
    proof.fields |= {"project_id": row["project_id"], "access_token_id": row["id"]}
    proof.effects.append(lambda tx: oauth1_requests.once_only(tx, found))


def _is(project: Any, id: str) -> bool:
    return isinstance(project, dict) and project.get("id") == id


# --- access tokens of a user ---------------------------------------------------------------------------------------


def _view(call: Call, row: Row) -> Row:
    url = f"{call.base}/v3/users/{row['user_id']}/OS-OAUTH1/access_tokens/{row['id']}"
    return {
        "id": row["id"], "consumer_id": row["consumer_id"], "authorizing_user_id": row["user_id"],
        "project_id": row["project_id"], "expires_at": clock.zulu_us(row["expires_at"]),
        "links": {"self": url, "roles": f"{url}/roles"},
    }  # fmt: skip


def index(call: Call) -> Row:
    """GET /v3/users/{user_id}/OS-OAUTH1/access_tokens."""
    call.enforce("identity:list_access_tokens")
    _undelegated(call)
    where = (_A.user_id == call.params["user_id"], _A.expires_at > clock.now())
    rows = call.tx.all(sa.select(ACCESS_TOKEN).where(*where).order_by(_A.id))
    return shape.listing(call, "access_tokens", [_view(call, r) for r in rows], call.path)


def _found(call: Call, rule: str) -> Row:
    call.enforce(f"identity:{rule}")
    _undelegated(call)
    row = oauth1_requests.token(call.tx, ACCESS_TOKEN, call.params["id"])
    if row is None or row["user_id"] != call.params["user_id"]:
        raise not_found("access_token", call.params["id"])
    return row


def show(call: Call) -> Row:
    """GET /v3/users/{user_id}/OS-OAUTH1/access_tokens/{id}."""
    return {"access_token": _view(call, _found(call, "get_access_token"))}


def delete(call: Call) -> None:
    """DELETE of the same: tokens got with it end at once."""
    row = _found(call, "delete_access_token")
    call.tx.execute(sa.delete(ACCESS_TOKEN).where(_A.id == row["id"]))
    bump(call.cloud, call.tx)


def roles(call: Call) -> Row:
    """GET /v3/users/{user_id}/OS-OAUTH1/access_tokens/{id}/roles."""
    row = _found(call, "list_access_token_roles")
    return shape.listing(call, "roles", delegation.role_views(call, row["roles"], links=True), call.path)


def role(call: Call) -> Row:
    """GET /v3/users/{user_id}/OS-OAUTH1/access_tokens/{id}/roles/{role_id}."""
    row, id = _found(call, "get_access_token_role"), call.params["role_id"]
    found = delegation.role_views(call, [r for r in row["roles"] if r == id], links=True)
    if not found:
        raise not_found("role", id)
    return {"role": found[0]}


def forget(tx: Tx, column: str, id: str) -> None:
    """A user or project ("user_id", "project_id") goes, and what consumers may do for or in it."""
    for table in (REQUEST_TOKEN, ACCESS_TOKEN):
        tx.execute(sa.delete(table).where(table.c[column] == id))


_O, _U = "/v3/OS-OAUTH1", "/v3/users/{user_id}/OS-OAUTH1/access_tokens"
ROUTES = (
    Route(
        method="POST", path=f"{_O}/consumers", handler=create_consumer, doc="Create an OAuth consumer.", tx="write",
        status=201,
    ),
    Route(
        method="POST", path=f"{_O}/request_token", handler=request_token, doc="Get an OAuth request token.", tx="write",
        auth=False, raw=True, status=201,
    ),
    Route(
        method="PUT", path=f"{_O}/authorize/{{request_token_id}}", handler=authorize, tx="write",
        doc="Authorise a request token.",
    ),
    Route(
        method="POST", path=f"{_O}/access_token", handler=access_token, doc="Get an OAuth access token.", tx="write",
        auth=False, raw=True, status=201,
    ),
    Route(method="GET", path=_U, handler=index, doc="List a user's OAuth access tokens."),
    Route(method="GET", path=f"{_U}/{{id}}", handler=show, doc="Show an OAuth access token."),
    Route(
        method="DELETE", path=f"{_U}/{{id}}", handler=delete, doc="Delete an OAuth access token.", tx="write",
        status=204,
    ),
    Route(method="GET", path=f"{_U}/{{id}}/roles", handler=roles, doc="List the roles of an access token."),
    Route(method="GET", path=f"{_U}/{{id}}/roles/{{role_id}}", handler=role, doc="Show a role of an access token."),
)  # fmt: skip
