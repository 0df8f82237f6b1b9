"""Which tokens no longer count, for services that check JWS tokens offline; and what went with PKI tokens.

API: OS-REVOKE (GET /v3/OS-REVOKE/events). A service that holds the public keys (core/jws.py) reads the events now and
then, ``since`` its last look, and refuses tokens that have all properties of one and were issued no later. What takes
roles away (a grant removed, a project disabled) is no event: it counts with the next token. The routes of PKI tokens
(OS-SIMPLE-CERT, OS-PKI) answer 410 as the original's do: the keys in ``keys/jws/public`` replace their certificates.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import sqlalchemy as sa

from nubila.core.call import Call, Reply, Route
from nubila.core.clock import zulu_us
from nubila.core.faults import Fault, bad_request
from nubila.core.payload import iso
from nubila.core.policy import Rule
from nubila.core.revocations import FIELDS
from nubila.services.identity.kinds import REVOCATION
from nubila.services.identity.policies import ADMIN
from nubila.services.identity.shape import listing

Row = dict[str, Any]
_SHOWN = {"trust_id": "OS-TRUST:trust_id", "access_token_id": "OS-OAUTH1:access_token_id"}
_E = REVOCATION.c
_SINCE = (
    sa.select(*(_E[name] for name in FIELDS), _E.issued_before, _E.revoked_at)
    .where(_E.revoked_at >= sa.bindparam("since"))
    .order_by(_E.revoked_at, _E.id)
)


def events(call: Call) -> Reply:
    """GET /v3/OS-REVOKE/events."""
    out = []
    for row in call.tx.all(_SINCE, {"since": _since(call.arg("since"))}):
        event: Row = {_SHOWN.get(name, name): row[name] for name in FIELDS if row[name] is not None}
        out.append({**event, "issued_before": iso(row["issued_before"]), "revoked_at": iso(row["revoked_at"])})
    return Reply(listing(call, "events", out, "/v3/OS-REVOKE/events"))


def _since(text: str | None) -> int:
    if not text:
        return 0
    try:
        at = datetime.fromisoformat(text)
        return int((at if at.tzinfo else at.replace(tzinfo=UTC)).timestamp() * 1_000_000)
    except (ValueError, OverflowError):
        shown = zulu_us("2030-01-31T12:00:00.000000")
        raise bad_request(f"since: '{text}' is not a time like {shown}.", "ValidationError") from None


def gone(call: Call) -> Reply:
    """GET /v3/OS-SIMPLE-CERT/ca and /certificates, GET /v3/auth/tokens/OS-PKI/revoked."""
    raise Fault(410, "There are no PKI tokens any more; the keys in keys/jws/public check JWS tokens.", "Gone")


RULES = [
    Rule(
        "identity:list_revoke_events", f"{ADMIN} or rule:service_role", "List revocation events.",
        (("GET", "/v3/OS-REVOKE/events"),), ("system", "project"),
    )
]  # fmt: skip
ROUTES = (
    Route(
        method="GET", path="/v3/OS-REVOKE/events", handler=events, doc="List revocation events.",
        rule="identity:list_revoke_events",
    ),
    *(
        Route(method="GET", path=path, handler=gone, doc="Gone with PKI tokens.", auth=False, tx="")
        for path in ("/v3/OS-SIMPLE-CERT/ca", "/v3/OS-SIMPLE-CERT/certificates", "/v3/auth/tokens/OS-PKI/revoked")
    ),
)  # fmt: skip
