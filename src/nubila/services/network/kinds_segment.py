"""Segments of networks, and the ranges their ids come from, of the Networking API v2.0."""

from __future__ import annotations

from dataclasses import replace

from nubila.core.declare import Attr
from nubila.core.types import Int, Json, LooseBool, LooseInt, Str, Uuid
from nubila.services.network.kinds import Named, OwnerId, Standard, Tags, rest


class Segment(Standard):
    """One of the layer 2 segments that a network consists of."""

    kind, quota = "network_segment", ""
    rest = rest("segment", "segments")
    project_id = Attr(OwnerId, "Not shown: segments belong to the cloud.", alias=("tenant_id",), write="c", default="",
                      hidden=True)  # fmt: skip
    name = Attr(Str(255), "Name, need not be unique.", write="cu", default=None, null=True, filter="eq", sort=True)
    description = Attr(Str(255), "Free text.", write="cu", default=None, null=True, filter="eq", sort=True)
    revision_number = Attr(Int(), "Grows by one with every change.", default=0, filter="eq", sort=True)
    network_id = Attr(Uuid, "Network it is part of.", write="c", ref="network.id", filter="eq", sort=True)
    network_type = Attr(Str(32), "flat, vlan, vxlan, gre, geneve or local.", write="c", filter="eq", sort=True)
    physical_network = Attr(Str(64), "Physical network of a flat or vlan segment.", write="c", default=None, null=True,
                            filter="eq", sort=True)  # fmt: skip
    segmentation_id = Attr(LooseInt(0, 2**32 - 1), "VLAN id or tunnel id.", write="c", default=None, null=True,
                           filter="eq", sort=True)  # fmt: skip
    place = Attr(Int(), "Order within the network: a host uses the first one it reaches.", default=0, hidden=True)


class NetworkSegmentRange(Named):
    """VLAN or tunnel ids that networks get, of everybody or of one project."""

    kind, quota = "network_segment_range", ""
    rest = replace(rest("network_segment_range", "network_segment_ranges", bulk=False),
                   path="/v2.0/network_segment_ranges")  # fmt: skip
    project_id = Attr(OwnerId, "Project whose networks use it; empty: every project's.", write="c", default="",
                      filter="eq", sort=True, index=True)  # fmt: skip
    is_default = Attr(LooseBool, "Whether it comes from the settings.", api="default", default=False, filter="eq",
                      sort=True)  # fmt: skip
    shared = Attr(LooseBool, "Whether networks of every project use it.", write="c", default=True, filter="eq",
                  sort=True)  # fmt: skip
    network_type = Attr(Str(32), "vlan, vxlan, gre or geneve.", write="c", filter="eq", sort=True)
    physical_network = Attr(Str(64), "Physical network of VLAN ids.", write="c", default="", null=True, filter="eq",
                            sort=True)  # fmt: skip
    minimum = Attr(LooseInt(1, 2**32 - 1), "First id.", write="cu", filter="eq", sort=True)
    maximum = Attr(LooseInt(1, 2**32 - 1), "Last id.", write="cu", filter="eq", sort=True)
    used = Attr(Json, "Ids in use, with the project of the network.", store=False)
    available = Attr(Json, "Ids not in use.", store=False)
    tags = Attr(Tags, "Labels.", write="c", default=[])
    indexes = (("network_type", "physical_network"),)
