"""Auth receipts: what a user who needs several factors gets for having shown some. API: "Authentication receipts".

A receipt says who it is and which methods were right; with the missing ones it is good for a token within five
minutes. It is encrypted with the tokens' keys for a purpose of its own, so neither is ever taken for the other, and is
void as soon as the user's tokens are revoked.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import msgspec

from nubila.core.call import Call, Reply
from nubila.core.faults import Fault
from nubila.core.payload import InvalidToken, Payload, iso, new_payload, pack, unpack
from nubila.services.identity import auth, lookup
from nubila.services.identity.revision import memory

if TYPE_CHECKING:
    from nubila.core.db import Reader

Row = dict[str, Any]
LIFETIME_S = 300.0
HEADER = "Openstack-Auth-Receipt"
_PURPOSE = b"receipt\0"


def rules(user: Row, known: tuple[str, ...]) -> list[list[str]]:
    """The user's multi-factor rules that can be satisfied with the methods there are; [] = nothing is asked."""
    options = user["options"] or {}
    if options.get("multi_factor_auth_enabled") is False:
        return []
    found = [[m for m in rule if m in known] for rule in options.get("multi_factor_auth_rules") or []]
    return [rule for rule in found if rule]


def satisfied(asked: list[list[str]], shown: list[str]) -> bool:
    """Whether the methods shown are enough."""
    return not asked or any(set(rule) <= set(shown) for rule in asked)


def issue(call: Call, reader: Reader, user: Row, methods: list[str], asked: list[list[str]]) -> Reply:
    """401 with a receipt for the methods shown."""
    claims = new_payload(user["id"], tuple(methods), LIFETIME_S)
    domain = lookup.project(reader, user["domain_id"])
    body = {
        "receipt": {
            "methods": methods,
            "user": {"domain": auth.named(domain) if domain else None, "id": user["id"], "name": user["name"]},
            "expires_at": iso(claims.expires_at),
            "issued_at": iso(claims.issued_at),
        },
        "required_auth_methods": [rule for rule in asked if set(rule) & set(methods)],
    }
    return Reply(body, 401, {HEADER: call.cloud.keys.seal(_PURPOSE + pack(claims))})


def read(call: Call, reader: Reader) -> Payload | None:
    """What the request's receipt says; None without one. Raises 401 when it is not good (any more)."""
    text = call.headers.get(HEADER.lower())
    if text is None:
        return None
    try:
        sealed = call.cloud.keys.unseal(text)
        if not sealed.startswith(_PURPOSE):
            raise InvalidToken("this is not a receipt")
        claims = unpack(sealed.removeprefix(_PURPOSE))
    except (InvalidToken, ValueError, IndexError, msgspec.MsgspecError):
        raise _unknown(call) from None
    revocations = memory(call.cloud).revocations
    revocations.refresh(reader)
    if claims.expires_at <= time.time() * 1e6 or revocations.revoked(claims, []):
        raise _unknown(call)
    return claims


def of(call: Call, claims: Payload, user_id: str) -> list[str]:
    """The methods that a receipt adds. Raises 401 when it is another user's."""
    if claims.user_id != user_id:
        raise _unknown(call)
    return list(claims.methods)


def _unknown(call: Call) -> Fault:
    return auth.denied(call, "The auth receipt is not valid: it is unknown, expired or another user's.")
