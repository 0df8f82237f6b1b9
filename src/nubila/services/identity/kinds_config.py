"""The table of domains' own configuration."""

from __future__ import annotations

import sqlalchemy as sa

from nubila.core.declare import METADATA

DOMAIN_CONFIG = sa.Table(
    "domain_config",
    METADATA,
    sa.Column("domain_id", sa.String(64), primary_key=True),
    sa.Column("group_name", sa.String(64), primary_key=True),
    sa.Column("option_name", sa.String(64), primary_key=True),
    sa.Column("value", sa.JSON),  # unless it is sensitive
    sa.Column("secret", sa.Text),  # the sensitive value as encrypted JSON
    sa.Column("key_hash", sa.String(64)),  # which key encrypted it
)
