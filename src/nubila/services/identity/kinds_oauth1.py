"""What OAuth 1.0a keeps: consumers, request tokens, access tokens, and the nonces of recent requests."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import sqlalchemy as sa

from nubila.core.declare import METADATA, Attr
from nubila.core.types import Str, Text
from nubila.services.identity.kinds import Doc, _Own, rest


def _own_rules(item: str) -> Mapping[str, str]:
    return {
        "list": f"identity:list_{item}s",
        **{v: f"identity:{w}_{item}" for v, w in (("show", "get"), ("create",) * 2, ("update",) * 2, ("delete",) * 2)},
    }


class Consumer(_Own):
    """A program of others that users may let act for them by OAuth 1.0a."""

    kind = "oauth_consumer"
    description = Attr(Doc, "Free text.", write="cu", null=True)
    encrypted_secret = Attr(Text(), "", hidden=True)
    key_hash = Attr(Str(64), "", hidden=True)
    rest = rest("OS-OAUTH1/consumers", "consumer", "consumers", rules=_own_rules("consumer"),
                verbs=frozenset({"list", "show", "update", "delete"}))  # fmt: skip


def _tokens(name: str, *columns: sa.Column[Any]) -> sa.Table:
    return sa.Table(
        name,
        METADATA,
        sa.Column("id", sa.String(64), primary_key=True),
        sa.Column("secret", sa.Text, nullable=False),  # encrypted
        sa.Column("key_hash", sa.String(64), nullable=False),  # which key encrypted it
        sa.Column("consumer_id", sa.String(64), nullable=False, index=True),
        sa.Column("user_id", sa.String(64), index=True),  # who let the consumer act for him
        sa.Column("project_id", sa.String(64), nullable=False, index=True),
        sa.Column("roles", sa.JSON, nullable=False),  # ids
        sa.Column("expires_at", sa.String(32), nullable=False),
        *columns,
    )


REQUEST_TOKEN = _tokens("oauth_request_token", sa.Column("verifier", sa.String(64)))
ACCESS_TOKEN = _tokens("oauth_access_token")

NONCE = sa.Table(
    "oauth_nonce",
    METADATA,
    sa.Column("digest", sa.String(64), primary_key=True),  # of consumer, token, timestamp and nonce
    sa.Column("at", sa.BigInteger, nullable=False, index=True),  # Unix time after which it may be forgotten
)
