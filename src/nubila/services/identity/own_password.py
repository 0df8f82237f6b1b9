"""Users change their own password. API: POST /v3/users/{user_id}/password; the old password is the proof, no token.

An expired password can be changed this way, that of a locked or disabled user cannot. What the operator asks of new
passwords (strength, history, age) is in compliance.py. All tokens of the user end with the old password.
"""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa

from nubila.core import checks
from nubila.core.call import Call
from nubila.services.identity import auth, compliance, hashing, lockout, shape
from nubila.services.identity.kinds import User
from nubila.services.identity.ldap import writes as directories
from nubila.services.identity.proof import Compare, find_user

Row = dict[str, Any]
_U = User.table
SCHEMA = {
    "type": "object",
    "properties": {"original_password": {"type": "string"}, "password": {"type": "string", "maxLength": 4096}},
    "required": ["original_password", "password"],
    "additionalProperties": False,
}


def change_password(call: Call) -> None:
    """POST /v3/users/{id}/password."""
    body = shape.inner(call, "user")
    checks.checker(SCHEMA)(body)
    cloud, id = call.cloud, call.params["id"]
    if directories.change_password(call, id, body):
        return
    with cloud.store.read() as reader:
        user = find_user(reader, {"id": id})
        if user is not None and (not user["password"] or not compliance.usable(cloud, reader, user)):
            user = None
        known = compliance.security(reader, id)
        last = compliance.history(cloud.settings, reader, user) if user else []
    attempt = lockout.Attempt(cloud, id, call.peer)
    proof = Compare(user["password"] if user else None, body["original_password"], user)
    right = hashing.run(cloud, lambda: hashing.compare(cloud, proof))
    if user is None or not right:
        if user is not None and cloud.settings.lockout_failure_attempts:
            with cloud.store.write() as tx:
                compliance.note_failures(cloud, tx, [id])
        raise auth.denied(call)
    attempt.good()
    hashed = hashing.run(cloud, lambda: _hashed(call, user, known, last, body["password"]))
    with cloud.store.write() as tx:
        until = compliance.expiry(cloud.settings, user["options"], by_admin=False)
        same = (_U.c.id == id, _U.c.password == user["password"])
        if not tx.execute(sa.update(_U).where(*same).values(password=hashed, password_expires_at=until)):
            raise auth.denied(call)  # somebody else changed it meanwhile
        compliance.note_password(cloud, tx, id, user["password"], self_service=True)
        auth.revoke(cloud, tx, user_id=id)


def _hashed(call: Call, user: Row, known: Row, last: list[str], password: str) -> str:
    """The new password's hash, if it may be the new one."""
    settings = call.cloud.settings
    compliance.strong(settings, password)
    compliance.changeable(settings, user, known)
    compliance.new(settings, last, password)
    return hashing.passwords(call.cloud).hash(password)
