"""Tables of federation: who may vouch for users (identity providers), how what they say is read (mappings), who came
that way (federated users), and whom our own users may go to (service providers).
"""

from __future__ import annotations

import sqlalchemy as sa

from nubila.core.declare import METADATA

IDP = sa.Table(
    "identity_provider",
    METADATA,
    sa.Column("id", sa.String(64), primary_key=True),
    sa.Column("enabled", sa.Boolean, nullable=False),
    sa.Column("description", sa.Text),
    sa.Column("domain_id", sa.String(64), nullable=False, index=True),
    sa.Column("authorization_ttl", sa.Integer),  # minutes
)

REMOTE_ID = sa.Table(
    "identity_provider_remote_id",
    METADATA,
    sa.Column("remote_id", sa.String(255), primary_key=True),
    sa.Column("idp_id", sa.String(64), nullable=False, index=True),
)

PROTOCOL = sa.Table(
    "federation_protocol",
    METADATA,
    sa.Column("idp_id", sa.String(64), primary_key=True),
    sa.Column("id", sa.String(64), primary_key=True),
    sa.Column("mapping_id", sa.String(64), nullable=False, index=True),
    sa.Column("remote_id_attribute", sa.String(64)),
)

MAPPING = sa.Table(
    "federation_mapping",
    METADATA,
    sa.Column("id", sa.String(64), primary_key=True),
    sa.Column("rules", sa.JSON, nullable=False),
    sa.Column("schema_version", sa.String(5), nullable=False),
)

SERVICE_PROVIDER = sa.Table(
    "service_provider",
    METADATA,
    sa.Column("id", sa.String(64), primary_key=True),
    sa.Column("enabled", sa.Boolean, nullable=False),
    sa.Column("description", sa.Text),
    sa.Column("auth_url", sa.String(256), nullable=False),
    sa.Column("sp_url", sa.String(256), nullable=False),
    sa.Column("relay_state_prefix", sa.String(256), nullable=False),
)

FEDERATED_USER = sa.Table(
    "federated_user",
    METADATA,
    sa.Column("idp_id", sa.String(64), primary_key=True),
    sa.Column("protocol_id", sa.String(64), primary_key=True),
    sa.Column("unique_id", sa.String(255), primary_key=True),
    sa.Column("user_id", sa.String(64), nullable=False, index=True),
    sa.Column("display_name", sa.String(255)),
)

EXPIRING_MEMBERSHIP = sa.Table(
    "expiring_membership",
    METADATA,
    sa.Column("user_id", sa.String(64), primary_key=True),
    sa.Column("group_id", sa.String(64), primary_key=True, index=True),
    sa.Column("idp_id", sa.String(64), primary_key=True, index=True),
    sa.Column("expires_at", sa.String(32), nullable=False),
)
