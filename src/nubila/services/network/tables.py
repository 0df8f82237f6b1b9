"""Tables that are not resources of their own: addresses in use, group membership, segments, tags, placements."""

from __future__ import annotations

import sqlalchemy as sa

from nubila.core.declare import METADATA

IP_ALLOCATION = sa.Table(
    "ip_allocation",
    METADATA,
    # The key of addresses.py; subnets of one network never overlap, so one row per subnet and address is exact.
    sa.Column("subnet_id", sa.String(36), sa.ForeignKey("subnet.id"), primary_key=True),
    sa.Column("ip_key", sa.String(32), primary_key=True),
    sa.Column("ip_address", sa.String(64), nullable=False),
    sa.Column("port_id", sa.String(36), sa.ForeignKey("port.id"), nullable=False, index=True),
    sa.Column("network_id", sa.String(36), nullable=False),
    sa.Column("place", sa.Integer, nullable=False),  # order within the port
    sa.Index("ix_ip_allocation_network_id_ip_key", "network_id", "ip_key"),
)
"""Which port has which address."""

PORT_GROUP = sa.Table(
    "port_security_group",
    METADATA,
    sa.Column("port_id", sa.String(36), sa.ForeignKey("port.id"), primary_key=True),
    sa.Column("security_group_id", sa.String(36), sa.ForeignKey("security_group.id"), primary_key=True, index=True),
)
"""Which security groups a port is in."""

DEFAULT_GROUP = sa.Table(
    "default_security_group",
    METADATA,
    sa.Column("project_id", sa.String(255), primary_key=True),
    sa.Column("security_group_id", sa.String(36), nullable=False),
)
"""The one default group of each project; the key makes a second one impossible."""

SEGMENT = sa.Table(
    "network_segment_allocation",
    METADATA,
    sa.Column("network_type", sa.String(32), primary_key=True),
    sa.Column("physical_network", sa.String(64), primary_key=True),  # "" for tunnels
    sa.Column("segmentation_id", sa.BigInteger, primary_key=True),  # 0 for flat
    sa.Column("network_id", sa.String(36), sa.ForeignKey("network.id"), nullable=False, index=True),
)
"""VLAN ids, tunnel ids and flat physical networks in use."""

DHCP_BINDING = sa.Table(
    "dhcp_binding",
    METADATA,
    sa.Column("network_id", sa.String(36), sa.ForeignKey("network.id"), primary_key=True),
    sa.Column("host", sa.String(64), primary_key=True, index=True),
    sa.Column("port_id", sa.String(36), index=True),  # NULL until the network has a subnet with DHCP
    sa.Column("state", sa.String(16), nullable=False, server_default=""),  # "" | "standin" | "taken", see placing.py
)
"""Which hosts serve DHCP for a network, and with which port."""

TAG = sa.Table(
    "network_tag",
    METADATA,
    sa.Column("resource_id", sa.String(36), primary_key=True),
    sa.Column("tag", sa.String(255), primary_key=True),
)
"""Tags for filtering; each resource's own ``tags`` column is what is shown. Only tags.py writes either."""

AGENT = sa.Table(
    "network_agent",
    METADATA,
    sa.Column("id", sa.String(36), primary_key=True),
    sa.Column("admin_state_up", sa.Boolean, nullable=False),
    sa.Column("description", sa.String(255)),
    sa.Column("deleted", sa.Double),  # the host's last report when it was deleted: shown again after a newer one
)
"""What operators changed about an agent; everything else is derived from the host table."""

PORT_BINDING = sa.Table(
    "port_binding",
    METADATA,
    sa.Column("port_id", sa.String(36), sa.ForeignKey("port.id"), primary_key=True),
    sa.Column("host", sa.String(64), primary_key=True),
    sa.Column("vnic_type", sa.String(64), nullable=False),
    sa.Column("vif_type", sa.String(64), nullable=False),
    sa.Column("profile", sa.JSON, nullable=False),
)
"""Bindings of ports to further hosts; the active one is in the port itself."""

PORT_GUARANTEE = sa.Table(
    "port_guarantee",
    METADATA,
    sa.Column("port_id", sa.String(36), sa.ForeignKey("port.id"), primary_key=True),
    sa.Column("resource_class", sa.String(64), primary_key=True),
    sa.Column("group_id", sa.String(36), nullable=False),  # of the port's resource_request
    sa.Column("provider_id", sa.String(36), nullable=False),
    sa.Column("consumer_id", sa.String(36), nullable=False, index=True),  # the server, or the port itself
    sa.Column("used", sa.BigInteger, nullable=False),
)
"""What ports hold in Placement, in whose name and on which provider: each consumer's allocations contain the sum."""
