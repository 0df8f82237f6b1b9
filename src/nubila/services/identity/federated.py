"""What federation means for a token: groups the identity provider vouched for, and memberships that run out.

A federated token carries its provider, protocol and groups (core/payload.py). They hold while the provider is enabled
and the protocol exists. Where the provider has an ``authorization_ttl`` the groups are also kept as memberships that
expire, so that application credentials of federated users have roles too.
"""

from __future__ import annotations

import hashlib
import math
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from nubila.core import clock
from nubila.services.identity.kinds_federation import EXPIRING_MEMBERSHIP, IDP, PROTOCOL, SERVICE_PROVIDER

if TYPE_CHECKING:
    from nubila.core.db import Reader
    from nubila.core.payload import Payload
    from nubila.services.identity.revision import Memory

Row = dict[str, Any]
_E = EXPIRING_MEMBERSHIP.c
_STANDING = (
    sa.select(IDP.c.enabled, PROTOCOL.c.id)
    .join(PROTOCOL, PROTOCOL.c.idp_id == IDP.c.id, isouter=True)
    .where(IDP.c.id == sa.bindparam("idp_id"))
)
_ANY = sa.select(_E.user_id).limit(1)
_NEXT = sa.select(sa.func.min(_E.expires_at)).where(
    _E.user_id == sa.bindparam("user_id"), _E.expires_at > sa.bindparam("now")
)
_PROVIDERS = (
    sa.select(SERVICE_PROVIDER.c.id, SERVICE_PROVIDER.c.auth_url, SERVICE_PROVIDER.c.sp_url)
    .where(SERVICE_PROVIDER.c.enabled.is_(True))
    .order_by(SERVICE_PROVIDER.c.id)
)


def broken(reader: Reader, claims: Payload) -> str:
    """Why nobody vouches for a federated token any more; "" when all is well, and for every other token."""
    if not claims.idp_id:
        return ""
    rows = reader.rows(_STANDING, {"idp_id": claims.idp_id})
    if not rows or not rows[0][0]:
        return f"The identity provider {claims.idp_id} is gone or disabled."
    if claims.protocol_id not in [protocol for _, protocol in rows]:
        return f"The identity provider {claims.idp_id} has no protocol {claims.protocol_id} any more."
    return ""


def until(memory: Memory, reader: Reader, user_id: str) -> float:
    """Unix time of the next end of a membership of the user; infinity when none expires."""
    facts = memory.facts
    there = facts.get("expiring")
    if there is None:
        there = facts["expiring"] = reader.scalar(_ANY) is not None
    if not there:
        return math.inf
    found = reader.scalar(_NEXT, {"user_id": user_id, "now": clock.now()})
    return clock.seconds(found) if found else math.inf


def shadow_id(idp_id: str, protocol_id: str, unique_id: str) -> str:
    """The id of the user that is made for a guest; two first logins at once make the same one."""
    return hashlib.sha256("\0".join((idp_id, protocol_id, unique_id)).encode()).hexdigest()[:32]


def section(claims: Payload) -> Row:
    """``OS-FEDERATION`` of a token's user."""
    return {
        "groups": [{"id": id} for id in claims.group_ids],
        "identity_provider": {"id": claims.idp_id},
        "protocol": {"id": claims.protocol_id},
    }


def service_providers(memory: Memory, reader: Reader) -> list[Row]:
    """The enabled service providers as tokens list them."""
    facts = memory.facts
    found: list[Row] | None = facts.get("service_providers")
    if found is None:
        found = facts["service_providers"] = [
            {"id": id, "auth_url": auth, "sp_url": sp} for id, auth, sp in reader.rows(_PROVIDERS)
        ]
    return found
