"""Credentials of users (EC2 keys, certificates) beyond what their declaration says. API: /v3/credentials."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import sqlalchemy as sa

from nubila.core.call import Call
from nubila.core.faults import bad_request, conflict, forbidden, not_found
from nubila.core.service import Hooks
from nubila.services.identity import lookup, shape
from nubila.services.identity.kinds import Credential

Row = dict[str, Any]


def _ec2(blob: str) -> Row:
    """The key pair in the blob of an EC2 credential, else 400."""
    try:
        found = json.loads(blob)
    except ValueError:
        found = None
    if not isinstance(found, dict) or not isinstance(found.get("access"), str):
        raise bad_request(
            'The blob of an ec2 credential is a JSON object with "access" and "secret".', "ValidationError"
        )
    return found


def _checked(call: Call, values: Row) -> None:
    if lookup.user(call.tx, values["user_id"]) is None:
        raise not_found("user", values["user_id"])
    if values["type"] == "ec2":
        if not values.get("project_id"):
            raise bad_request("An ec2 credential needs a project_id.", "ValidationError")
        _ec2(values["blob"])


def _new(call: Call, values: Row) -> None:
    token = call.creds.token
    if token is not None and (token.trust_id or token.app_cred_id):
        raise forbidden("A delegated token cannot make credentials, which would outlive it.", "Forbidden")
    shape.keep_extra(call, Credential, values)
    _checked(call, values)
    if values["type"] == "ec2":
        values["id"] = hashlib.sha256(_ec2(values["blob"])["access"].encode()).hexdigest()
        t = Credential.table
        if call.tx.scalar(sa.select(t.c.id).where(t.c.id == values["id"])) is not None:
            raise conflict("There is already a credential with this access key.")


def _change(call: Call, before: Row, values: Row) -> None:
    shape.keep_extra(call, Credential, values, before)
    _checked(call, {**before, **values})


HOOKS = Hooks(prepare=_new, prepare_update=_change, find=shape.finder(Credential))
