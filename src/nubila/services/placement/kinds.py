"""What Placement keeps: providers of resources, how much they have, and who uses it."""

from __future__ import annotations

import sqlalchemy as sa

from nubila.core.clock import new_id, now
from nubila.core.declare import METADATA, Attr, Resource
from nubila.core.types import Int, Str, Time, Uuid


class ResourceProvider(Resource):
    """Something that has resources to give: usually a compute host."""

    kind = "resource_provider"
    service = "placement"
    owner = ""

    id = Attr(
        Uuid,
        "UUID of the provider; a compute host's is its hypervisor's.",
        key=True,
        write="c",
        default=new_id,
        api="uuid",
    )
    name = Attr(Str(200, lo=1), "Unique name.", write="cu")
    generation = Attr(Int(), "Raised by every change; compared to detect concurrent writers.", default=0)
    parent_id = Attr(
        Uuid, "The provider this one is part of.", null=True, default=None, index=True, api="parent_provider_uuid"
    )
    root_id = Attr(Uuid, "The top of the provider's tree.", index=True, api="root_provider_uuid")
    created_at = Attr(Time, "When it was made.", default=now)
    updated_at = Attr(Time, "When it last changed.", default=now)
    unique = (("name",),)


PROVIDER = ResourceProvider.table

INVENTORY = sa.Table(
    "inventory",
    METADATA,
    sa.Column("provider_id", sa.String(36), sa.ForeignKey("resource_provider.id"), primary_key=True),
    sa.Column("resource_class", sa.String(255), primary_key=True),
    sa.Column("total", sa.BigInteger, nullable=False),
    sa.Column("reserved", sa.BigInteger, nullable=False),
    sa.Column("min_unit", sa.BigInteger, nullable=False),
    sa.Column("max_unit", sa.BigInteger, nullable=False),
    sa.Column("step_size", sa.BigInteger, nullable=False),
    sa.Column("allocation_ratio", sa.Double, nullable=False),
)
CONSUMER = sa.Table(
    "consumer",
    METADATA,
    sa.Column("id", sa.String(36), primary_key=True),
    sa.Column("project_id", sa.String(255), nullable=False, index=True),
    sa.Column("user_id", sa.String(255), nullable=False),
    sa.Column("type", sa.String(255), nullable=False),  # INSTANCE, MIGRATION ...; "unknown" from before 1.38
    sa.Column("generation", sa.BigInteger, nullable=False),
    sa.Column("created_at", sa.String(32), nullable=False),
    sa.Column("updated_at", sa.String(32), nullable=False),
)
ALLOCATION = sa.Table(
    "allocation",
    METADATA,
    sa.Column("consumer_id", sa.String(36), sa.ForeignKey("consumer.id"), primary_key=True),
    sa.Column("provider_id", sa.String(36), sa.ForeignKey("resource_provider.id"), primary_key=True),
    sa.Column("resource_class", sa.String(255), primary_key=True),
    sa.Column("used", sa.BigInteger, nullable=False),
    sa.Index("ix_allocation_provider", "provider_id", "resource_class"),
)
PROVIDER_TRAIT = sa.Table(
    "provider_trait",
    METADATA,
    sa.Column("provider_id", sa.String(36), sa.ForeignKey("resource_provider.id"), primary_key=True),
    sa.Column("trait", sa.String(255), primary_key=True),
)
PROVIDER_AGGREGATE = sa.Table(
    "provider_aggregate",
    METADATA,
    sa.Column("provider_id", sa.String(36), sa.ForeignKey("resource_provider.id"), primary_key=True),
    sa.Column("aggregate_id", sa.String(36), primary_key=True),
)
CUSTOM_CLASS = sa.Table("custom_resource_class", METADATA, sa.Column("name", sa.String(255), primary_key=True))
CUSTOM_TRAIT = sa.Table("custom_trait", METADATA, sa.Column("name", sa.String(255), primary_key=True))
