"""Authentication by a time-based one-time passcode (RFC 6238: SHA-1, six digits, steps of 30 s).

The secret is the base32 blob of a credential of type ``totp``. A passcode is good in its own step and a set number of
steps after it, and only once, on whichever API server it is shown.
"""

from __future__ import annotations

import base64
import binascii
import hmac
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from nubila.core import clock
from nubila.core.sql import Conflict
from nubila.services.identity import auth, compliance, credentials
from nubila.services.identity.kinds_auth import USED_PASSCODE
from nubila.services.identity.proof import DOMAIN, Proof, expecting, find_user, named

if TYPE_CHECKING:
    from nubila.core.cloud import Cloud
    from nubila.core.db import Reader, Tx

Row = dict[str, Any]
STEP_S = 30
DIGITS = 6
SCHEMA: Row = {
    "type": "object",
    "properties": {
        "user": {
            "type": "object",
            "properties": {
                "id": {"type": "string"}, "name": {"type": "string"}, "passcode": {"type": "string"}, "domain": DOMAIN,
            },
        }
    },
}  # fmt: skip
_P = USED_PASSCODE.c
_USED = sa.select(_P.step).where(
    _P.user_id == sa.bindparam("user"), _P.step == sa.bindparam("step"), _P.code == sa.bindparam("code")
)


def passcode(secret: str, step: int) -> str:
    """The passcode of a base32 secret (spaces, case and padding do not matter) in one step. Raises ValueError."""
    text = secret.replace(" ", "").rstrip("=").upper()
    try:
        key = base64.b32decode(text + "=" * (-len(text) % 8))
    except binascii.Error as e:
        raise ValueError("the secret is not base32") from e
    digest = hmac.digest(key, step.to_bytes(8, "big"), "sha1")
    at = digest[-1] & 15
    number = int.from_bytes(digest[at : at + 4], "big") & 0x7FFFFFFF
    return str(number % 10**DIGITS).zfill(DIGITS)


def prove(cloud: Cloud, reader: Reader, part: Row, proof: Proof) -> None:
    """A passcode of one of the user's credentials of type totp."""
    if "user" not in part:
        raise expecting("user", "totp")
    named(part["user"], "identity/totp/user")
    given = part["user"].get("passcode") or ""
    user = find_user(reader, part["user"])
    if user is not None and not compliance.usable(cloud, reader, user):
        user = None
    proof.users.append(user["id"] if user else None)
    if user is None:
        return
    step = _matching(cloud, reader, user["id"], given)
    if step is None:
        proof.refused = True
        proof.wrong.append(user["id"])
        return
    call, user_id = proof.call, user["id"]

    def consume(tx: Tx) -> None:
        tx.execute(sa.delete(USED_PASSCODE).where(_P.user_id == user_id, _P.step < step - 1000))
        try:
            tx.insert(USED_PASSCODE, {"user_id": user_id, "step": step, "code": given})
        except Conflict:
            raise auth.denied(call) from None  # shown twice at the same moment

    proof.effects.append(consume)


def _matching(cloud: Cloud, reader: Reader, user_id: str, given: str) -> int | None:
    """The step whose unused passcode was given."""
    now = int(clock.seconds(clock.now())) // STEP_S
    steps = range(now, now - max(0, cloud.settings.totp_included_previous_windows) - 1, -1)
    found = None
    for secret in credentials.secrets(cloud, reader, user_id, "totp"):
        for step in steps:
            try:
                right = hmac.compare_digest(passcode(secret, step).encode(), given.encode("utf-8", "replace"))
            except ValueError:
                break  # the blob of this credential is not base32: it matches nothing
            if right and found is None:
                found = step
    if found is None or reader.scalar(_USED, {"user": user_id, "step": found, "code": given}) is not None:
        return None
    return found
