"""Rows of highly available routers: their hidden networks, their hosts, their leases."""

from __future__ import annotations

import sqlalchemy as sa

from nubila.core.declare import METADATA

HA_NETWORK = sa.Table(
    "router_ha_network",
    METADATA,
    sa.Column("project_id", sa.String(255), primary_key=True),
    sa.Column("network_id", sa.String(36), sa.ForeignKey("network.id"), nullable=False, unique=True),
)
"""The hidden network over which the hosts of a project's routers hear each other."""

HA_ROUTER = sa.Table(
    "router_ha",
    METADATA,
    sa.Column("router_id", sa.String(36), sa.ForeignKey("router.id"), primary_key=True),
    sa.Column("network_id", sa.String(36), sa.ForeignKey("network.id"), nullable=False),
    sa.Column("vrid", sa.Integer, nullable=False),
    sa.Column("holder", sa.String(64), nullable=False),  # the lease, see ha_grant.Lease
    sa.Column("epoch", sa.BigInteger, nullable=False),
    sa.Column("until", sa.Double, nullable=False),
    sa.Column("known", sa.JSON, nullable=False),
    sa.Column("freed", sa.String(64), nullable=False),
    sa.Column("freed_term", sa.BigInteger, nullable=False),
    sa.Column("seq", sa.BigInteger, nullable=False),
    sa.Column("to", sa.String(64), nullable=False),
    sa.Column("to_until", sa.Double, nullable=False),
    sa.Column("ready", sa.Boolean, nullable=False),
    sa.UniqueConstraint("network_id", "vrid"),
)
"""A highly available router's VRRP id and lease."""

HA_HOST = sa.Table(
    "router_ha_host",
    METADATA,
    sa.Column("router_id", sa.String(36), sa.ForeignKey("router.id"), primary_key=True),
    sa.Column("host", sa.String(64), primary_key=True, index=True),
    sa.Column("port_id", sa.String(36), nullable=False),
    sa.Column("leaving", sa.Boolean, nullable=False),  # it goes as soon as another host forwards
    sa.Column("able", sa.Boolean, nullable=False),  # said lately that it could forward
    sa.Column("seen", sa.Double, nullable=False),  # when it said so last, to the second
)
"""On which hosts a highly available router is."""

HA_AWAY = sa.Table(
    "router_ha_away",
    METADATA,
    sa.Column("router_id", sa.String(36), sa.ForeignKey("router.id"), primary_key=True),
    sa.Column("host", sa.String(64), primary_key=True),
)
"""Hosts that an operator took a router from: it is not put there again unless an operator says so."""
