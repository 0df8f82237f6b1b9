"""Tables of the host API: join tokens and questions put to hosts."""

from __future__ import annotations

import sqlalchemy as sa

from nubila.core.declare import METADATA

TOKEN = sa.Table(
    "host_token",
    METADATA,
    sa.Column("digest", sa.String(64), primary_key=True),  # SHA-256 of the secret; the secret is shown once
    sa.Column("host", sa.String(64)),  # the only name it may be used for; NULL = any new name
    sa.Column("roles", sa.JSON, nullable=False),
    sa.Column("expires", sa.Double, nullable=False),
    sa.Column("used_by", sa.String(64)),
    sa.Column("created_at", sa.String(32), nullable=False),
)

QUERY = sa.Table(
    "host_query",
    METADATA,
    sa.Column("id", sa.String(36), primary_key=True),
    sa.Column("host", sa.String(64), nullable=False),
    sa.Column("question", sa.JSON, nullable=False),
    sa.Column("answer", sa.JSON),
    sa.Column("asked", sa.Double, nullable=False),
)
