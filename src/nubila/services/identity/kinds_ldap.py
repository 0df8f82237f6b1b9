"""Which public id stands for which user or group of which directory."""

from __future__ import annotations

import sqlalchemy as sa

from nubila.core.declare import METADATA

ID_MAPPING = sa.Table(
    "id_mapping",
    METADATA,
    sa.Column("public_id", sa.String(64), primary_key=True),
    sa.Column("domain_id", sa.String(64), nullable=False),
    sa.Column("local_id", sa.String(255), nullable=False),
    sa.Column("entity_type", sa.String(8), nullable=False),  # user | group
    sa.Column("dn", sa.Text, nullable=False),  # where it was when it was last seen
    sa.Column("present", sa.Boolean, nullable=False),  # whether it was there when it was last looked for
    sa.UniqueConstraint("domain_id", "entity_type", "local_id", name="uq_id_mapping_local"),
)
