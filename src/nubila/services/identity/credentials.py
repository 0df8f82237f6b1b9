"""Credentials of users (EC2 keys, certificates, one-time codes) beyond what their declaration says.

API: /v3/credentials. The secret is encrypted at rest (credential_keys.py). An EC2 key pair made with a delegated token
(trust, application credential, OAuth) remembers the delegation in its blob: what is got with it is delegated as well.
A delegated token sees and changes only credentials of its own project.
"""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from nubila.core.call import Call
from nubila.core.faults import bad_request, conflict, forbidden, not_found
from nubila.core.query import ListQuery
from nubila.core.service import Hooks
from nubila.services.identity import credential_keys, lookup, shape
from nubila.services.identity.kinds import ApplicationCredential, Credential

if TYPE_CHECKING:
    from nubila.core.cloud import Cloud
    from nubila.core.db import Reader, Tx

Row = dict[str, Any]
_C = Credential.table
_A = ApplicationCredential.table
_find = shape.finder(Credential)
_OF_USER = sa.select(_C).where(_C.c.user_id == sa.bindparam("user_id"), _C.c.type == sa.bindparam("type"))
DELEGATIONS = ("trust_id", "app_cred_id", "access_token_id")
"""What an EC2 blob may remember: the names are those of core.payload.Payload too."""


def blob(cloud: Cloud, row: Row) -> str:
    """The secret of a row, in clear."""
    return credential_keys.keys(cloud).decrypt(row["encrypted_blob"]) if row["encrypted_blob"] else ""


def secrets(cloud: Cloud, reader: Reader, user_id: str, type: str) -> list[str]:
    """The secrets of one type ("totp") that a user has, in clear."""
    return [blob(cloud, row) for row in reader.all(_OF_USER.order_by(_C.c.id), {"user_id": user_id, "type": type})]


def seal(cloud: Cloud, values: Row) -> None:
    """Put the encrypted form beside the blob that is in ``values``."""
    keys = credential_keys.keys(cloud)
    values["encrypted_blob"], values["key_hash"] = keys.encrypt(values["blob"]), keys.hash


def key_pair(text: str) -> Row:
    """The object in the blob of an EC2 credential, else 400."""
    try:
        found = json.loads(text)
    except ValueError:
        found = None
    if not isinstance(found, dict) or not isinstance(found.get("access"), str) or not found["access"]:
        raise bad_request(
            'blob: the blob of an ec2 credential is a JSON object with "access" and "secret".', "ValidationError"
        )
    return found


def ec2_id(access: str) -> str:
    """The id of the credential with this access key."""
    return hashlib.sha256(access.encode()).hexdigest()


def delegation(call: Call) -> dict[str, str]:
    """How the caller's token was delegated, if it was."""
    token = call.creds.token
    return {} if token is None else {n: v for n in DELEGATIONS if (v := getattr(token, n))}


def unrestricted(call: Call) -> None:
    """Raise 403 for an application credential that may not make others."""
    token = call.creds.token
    if token is not None and token.app_cred_id:
        row = call.tx.one(sa.select(_A.c.unrestricted).where(_A.c.id == token.app_cred_id))
        if row is None or not row["unrestricted"]:
            raise forbidden("A restricted application credential cannot manage credentials.", "Forbidden")


def within(call: Call, row: Row) -> None:
    """Raise 403 when a delegated token is used on a credential of another project, or of none."""
    if delegation(call) and (row.get("project_id") or None) != call.creds.project_id:
        raise forbidden("The credential is not of the project of this delegated token.", "Forbidden")


def drop(tx: Tx, key: str, id: str) -> None:
    """Remove the credentials whose column ``key`` has this id."""
    tx.execute(sa.delete(_C).where(_C.c[key] == id))


def _is_ec2(values: Row) -> bool:
    return str(values.get("type") or "").lower() == "ec2"


def _checked(call: Call, values: Row) -> None:
    if lookup.user(call.tx, values["user_id"]) is None:
        raise not_found("user", values["user_id"])
    if _is_ec2(values) and not values.get("project_id"):
        raise bad_request("project_id: an ec2 credential needs one.", "ValidationError")


def _new(call: Call, values: Row) -> None:
    if _is_ec2(values):
        unrestricted(call)
    within(call, values)
    shape.keep_extra(call, Credential, values)
    _checked(call, values)
    if _is_ec2(values):
        pair = key_pair(values["blob"])
        values["id"] = ec2_id(pair["access"])
        if call.tx.scalar(sa.select(_C.c.id).where(_C.c.id == values["id"])) is not None:
            raise conflict("There is already a credential with this access key.")
        if given := delegation(call):
            values["blob"] = json.dumps({**pair, **given})
    seal(call.cloud, values)


def _change(call: Call, before: Row, values: Row) -> None:
    shape.keep_extra(call, Credential, values, before)
    _checked(call, {**before, **values})
    within(call, {**before, **values})
    if "blob" in values:
        if _is_ec2({**before, **values}):
            pair = key_pair(values["blob"])
            old = key_pair(blob(call.cloud, before)) if _is_ec2(before) else {}
            for name in DELEGATIONS:
                if old.get(name) != pair.get(name):
                    raise bad_request(f"blob: {name} of an ec2 credential cannot be changed.", "ValidationError")
        seal(call.cloud, values)
    elif _is_ec2(values) and not _is_ec2(before):
        key_pair(blob(call.cloud, before))


def _present(call: Call, rows: list[Row]) -> None:
    for row in rows:
        if row.get("blob") is None:
            row["blob"] = blob(call.cloud, row)


def _found(call: Call, id: str) -> Row | None:
    row = _find(call, id)
    if row is not None and delegation(call):
        call.enforce("identity:get_credential", {"target.credential.user_id": row["user_id"]})
        within(call, row)
    return row


def _scope(call: Call, q: ListQuery) -> list[Any]:
    return [_C.c.project_id == call.creds.project_id] if delegation(call) else []


HOOKS = Hooks(prepare=_new, prepare_update=_change, find=_found, present=_present, scope=_scope)
