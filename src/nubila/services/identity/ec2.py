"""EC2 key pairs of users, and tokens for requests signed with them.

API: /v3/users/{user_id}/credentials/OS-EC2, POST /v3/ec2tokens, POST /v3/s3tokens. A key pair is a credential of the
type ec2 (credentials.py), found by the hash of its access key. Who asks for tokens is a service or an administrator:
a signed request that was overheard is worth nothing to others. Signatures of EC2 requests hold for ``AUTH_TTL_S``
before and after the time they name.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

import sqlalchemy as sa
from msgspec.structs import replace

from nubila.core.call import Call, Reply, Route
from nubila.core.faults import Fault, bad_request, not_found
from nubila.core.payload import new_payload
from nubila.services.identity import auth, credentials, ec2_signature, lookup, shape, trusts
from nubila.services.identity.kinds import TRUST, Credential, User

Row = dict[str, Any]
AUTH_TTL_S = 900
_C = Credential.table
_BY_ID = sa.select(_C).where(_C.c.id == sa.bindparam("id"), _C.c.type == "ec2")


# --- key pairs -----------------------------------------------------------------------------------------------------


def _view(call: Call, row: Row, pair: Row) -> Row:
    return {
        "access": pair["access"], "secret": pair.get("secret"), "user_id": row["user_id"],
        "tenant_id": row["project_id"], "trust_id": pair.get("trust_id"),
        "links": {"self": f"{call.base}/v3/users/{row['user_id']}/credentials/OS-EC2/{pair['access']}"},
    }  # fmt: skip


def _pair(call: Call, row: Row) -> Row:
    found: Row = json.loads(credentials.blob(call.cloud, row))
    return found


def create(call: Call) -> Reply:
    """POST /v3/users/{user_id}/credentials/OS-EC2."""
    user_id = call.params["user_id"]
    call.enforce("identity:ec2_create_credential", {"target.credential.user_id": user_id})
    credentials.unrestricted(call)
    shape.fetch(call.tx, User, user_id, "user")
    project_id = call.body.get("tenant_id") if isinstance(call.body, dict) else None
    if not isinstance(project_id, str):
        raise bad_request("tenant_id: the project that the key pair is for must be given.", "ValidationError")
    if lookup.project(call.tx, project_id) is None:
        raise not_found("project", project_id)
    row = {"user_id": user_id, "project_id": project_id, "type": "ec2", "extra": {}}
    credentials.within(call, row)
    pair: Row = {"access": secrets.token_hex(16), "secret": secrets.token_hex(16), "trust_id": None}
    pair |= credentials.delegation(call)
    row |= {"id": credentials.ec2_id(pair["access"]), "blob": json.dumps(pair)}
    credentials.seal(call.cloud, row)
    call.tx.insert(_C, {c.name: row[c.name] for c in _C.columns})
    return Reply({"credential": _view(call, row, pair)}, 201)


def index(call: Call) -> Row:
    """GET /v3/users/{user_id}/credentials/OS-EC2."""
    user_id = call.params["user_id"]
    call.enforce("identity:ec2_list_credentials", {"user_id": user_id})
    shape.fetch(call.tx, User, user_id, "user")
    where = [_C.c.user_id == user_id, _C.c.type == "ec2"]
    if credentials.delegation(call):
        where.append(_C.c.project_id == call.creds.project_id)
    rows = call.tx.all(sa.select(_C).where(*where).order_by(_C.c.id))
    return shape.listing(call, "credentials", [_view(call, r, _pair(call, r)) for r in rows], call.path)


def _found(call: Call, rule: str) -> Row:
    user_id, access = call.params["user_id"], call.params["credential_id"]
    row: Row | None = call.tx.one(_BY_ID, {"id": credentials.ec2_id(access)})
    if row is None:  # before policy, as the original: the name is a secret of its owner
        raise not_found("credential", access)
    # whose pair it is decides; the user in the path does not, as in the original (keystone-tempest-plugin relies on it)
    call.enforce(rule, {"target.credential.user_id": row["user_id"], "user_id": user_id})
    credentials.within(call, row)
    return row


def show(call: Call) -> Row:
    """GET /v3/users/{user_id}/credentials/OS-EC2/{credential_id}."""
    row = _found(call, "identity:ec2_get_credential")
    return {"credential": _view(call, row, _pair(call, row))}


def delete(call: Call) -> None:
    """DELETE /v3/users/{user_id}/credentials/OS-EC2/{credential_id}."""
    row = _found(call, "identity:ec2_delete_credential")
    call.tx.execute(sa.delete(_C).where(_C.c.id == row["id"]))


# --- tokens --------------------------------------------------------------------------------------------------------


def _signed(call: Call, check: Callable[[str, Mapping[str, Any]], bool], *, dated: bool) -> tuple[Row, Row]:
    """The credential that a request passed on to us was signed with, and its key pair."""
    body = call.body
    if not isinstance(body, dict) or not body:
        raise bad_request("The body must be an object with the key 'credentials'.", "ValidationError")
    given = body.get("credentials") or body.get("credential") or body.get("ec2Credentials") or {}
    if not isinstance(given, dict) or not isinstance(given.get("access"), str):
        raise auth.denied(call, "credentials/access: the access key is missing.")
    row = call.tx.one(_BY_ID, {"id": credentials.ec2_id(given["access"])})
    if row is None:
        raise Fault(404, "EC2 access key not found.", "NotFound")
    pair = _pair(call, row)
    try:
        good = isinstance(pair.get("secret"), str) and check(pair["secret"], given)
        at = ec2_signature.ec2_time(given) if dated else None
    except ec2_signature.BadSignature as e:
        raise auth.denied(call, str(e)) from None
    if not good:
        raise auth.denied(call, "The signature does not match.")
    if at is not None and abs(datetime.now(UTC) - at) > timedelta(seconds=AUTH_TTL_S):
        raise auth.denied(
            call, f"The signature's time is more than {AUTH_TTL_S} s from ours; sign anew or set the clock."
        )
    return row, pair


def _token(call: Call, row: Row, pair: Row) -> tuple[str, Row]:
    """A token for the key pair's user and project, delegated as the key pair is."""
    fields = {name: pair[name] for name in credentials.DELEGATIONS if pair.get(name)}
    user_id = row["user_id"]
    if trust_id := fields.get("trust_id"):
        trust = call.tx.one(sa.select(TRUST).where(TRUST.c.id == trust_id))
        owner = trust and trust["trustor_user_id" if trust["impersonation"] else "trustee_user_id"]
        if trust is None or owner != user_id or trust["project_id"] != row["project_id"]:
            raise auth.denied(call)
        user_id = trust["trustee_user_id"]
    lifetime = float(call.cloud.settings.token_ttl_s)
    claims = new_payload(user_id, ("ec2credential",), lifetime, project_id=row["project_id"], **fields)
    try:
        meaning = auth.resolve(call.cloud, call.tx, claims)
    except auth.Refused:
        raise auth.denied(call) from None
    given = meaning.app_cred
    if given is not None and (given["project_id"], given["user_id"]) != (row["project_id"], row["user_id"]):
        raise auth.denied(call)
    if trust_id:
        trusts.consume(call, trust_id)
    claims = meaning.claims = replace(claims, expires_at=min(claims.expires_at, int(meaning.expires * 1e6)))
    body = auth.document(call.cloud, call.tx, meaning, call.base, catalog=True)
    return call.cloud.keys.issue(claims), body


def ec2_token(call: Call) -> Reply:
    """POST /v3/ec2tokens."""
    token, body = _token(call, *_signed(call, ec2_signature.ec2_signed, dated=True))
    return Reply(body, 200, {"X-Subject-Token": token})


def s3_token(call: Call) -> Reply:
    """POST /v3/s3tokens: what the token would say, not the token itself. S3 services bound the time themselves."""
    _, body = _token(call, *_signed(call, ec2_signature.s3_signed, dated=False))
    return Reply(body, 200)


_ALL = "/v3/users/{user_id}/credentials/OS-EC2"
_ONE = f"{_ALL}/{{credential_id}}"
ROUTES = (
    Route(method="POST", path=_ALL, handler=create, doc="Create an EC2 key pair.", tx="write", status=201),
    Route(method="GET", path=_ALL, handler=index, doc="List a user's EC2 key pairs."),
    Route(method="GET", path=_ONE, handler=show, doc="Show an EC2 key pair."),
    Route(method="DELETE", path=_ONE, handler=delete, doc="Delete an EC2 key pair.", tx="write", status=204),
    Route(
        method="POST", path="/v3/ec2tokens", handler=ec2_token, doc="Get a token for a signed EC2 request.",
        rule="identity:ec2tokens_validate",
    ),
    Route(
        method="POST", path="/v3/s3tokens", handler=s3_token, doc="Ask who signed an S3 request.",
        rule="identity:s3tokens_validate",
    ),
)  # fmt: skip
