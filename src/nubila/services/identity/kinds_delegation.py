"""The table of users' access rules, which limit application credentials."""

from __future__ import annotations

import sqlalchemy as sa

from nubila.core.declare import METADATA

ACCESS_RULE = sa.Table(
    "access_rule",
    METADATA,
    sa.Column("id", sa.String(64), primary_key=True),
    sa.Column("user_id", sa.String(64), nullable=False, index=True),
    sa.Column("service", sa.String(64), nullable=False),
    sa.Column("method", sa.String(16), nullable=False),
    sa.Column("path", sa.String(128), nullable=False),
    sa.UniqueConstraint("user_id", "service", "method", "path"),
)
