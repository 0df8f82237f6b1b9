"""Authentication by password, by another token and by application credential."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from nubila.core import clock
from nubila.core.faults import forbidden
from nubila.services.identity import auth, compliance
from nubila.services.identity.kinds import ApplicationCredential
from nubila.services.identity.ldap import writes as directories
from nubila.services.identity.proof import USER, Compare, Proof, expecting, find_user, named

if TYPE_CHECKING:
    from nubila.core.cloud import Cloud
    from nubila.core.db import Reader

Row = dict[str, Any]
PASSWORD_SCHEMA: Row = {"type": "object", "properties": {"user": USER}}
TOKEN_SCHEMA: Row = {"type": "object", "properties": {"id": {"type": "string"}}, "required": ["id"]}
APP_CRED_SCHEMA: Row = {
    "type": "object",
    "properties": {
        "id": {"type": "string"}, "name": {"type": "string"}, "secret": {"type": "string"}, "user": USER,
    },
}  # fmt: skip

_A = ApplicationCredential.table
_APP_CRED_BY_NAME = sa.select(_A).where(_A.c.name == sa.bindparam("name"), _A.c.user_id == sa.bindparam("user_id"))
_APP_CRED_BY_ID = sa.select(_A).where(_A.c.id == sa.bindparam("id"))


def by_password(cloud: Cloud, reader: Reader, part: Row, proof: Proof) -> None:
    """The user's password; that of a directory's user is checked by a bind (``proof.check``)."""
    if "user" not in part:
        raise expecting("user", "password")
    named(part["user"], "identity/password/user")
    secret = part["user"].get("password") or ""
    if directories.password(cloud, reader, part["user"], secret, proof):
        return
    user = find_user(reader, part["user"])
    if user is not None and (not user["password"] or not compliance.usable(cloud, reader, user)):
        user = None
    proof.users.append(user["id"] if user else None)
    proof.compare.append(Compare(user["password"] if user else None, secret, user))


def by_token(cloud: Cloud, reader: Reader, part: Row, proof: Proof) -> None:
    """Another token of the same user, which the new one does not outlive."""
    try:
        found = auth.meaning(cloud, reader, part["id"])
    except auth.Refused as e:
        raise auth.not_valid(f"The token of the method 'token' cannot be used: {e}") from None
    if found.claims.access_token_id:
        raise forbidden("A token got by OAuth cannot be used for getting another; sign a request.", "Forbidden")
    if found.claims.trust_id:  # else a trustee could become the trustor everywhere
        raise forbidden("A token got by a trust cannot be used for getting another.", "Forbidden")
    proof.users.append(found.user["id"])
    proof.parent = found.claims
    proof.app_cred = found.app_cred
    claims = found.claims
    if claims.idp_id:  # still the identity provider's word, and its groups
        proof.fields |= {"idp_id": claims.idp_id, "protocol_id": claims.protocol_id, "group_ids": claims.group_ids}
    if claims.thumbprint:  # a token bound to a certificate begets only such
        proof.fields["thumbprint"] = claims.thumbprint
    proof.methods += [m for m in found.claims.methods if m not in proof.methods]


def by_app_cred(cloud: Cloud, reader: Reader, part: Row, proof: Proof) -> None:
    """An application credential and its secret."""
    row: Row | None = None
    if "id" in part:
        row = reader.one(_APP_CRED_BY_ID, {"id": part["id"]})
    elif "name" in part:
        if "user" not in part:
            raise expecting("user", "application_credential")
        named(part["user"], "identity/application_credential/user")
        user = find_user(reader, part["user"])
        if user is not None:
            row = reader.one(_APP_CRED_BY_NAME, {"name": part["name"], "user_id": user["id"]})
    else:
        raise expecting("id or name", "application_credential")
    if row is not None and row["expires_at"] and row["expires_at"] <= clock.now():
        row = None
    proof.users.append(row["user_id"] if row else None)
    proof.compare.append(Compare(row["secret_hash"] if row else None, part.get("secret") or ""))
    proof.app_cred = row
