"""Network segment ranges of the Networking API v2.0."""

from __future__ import annotations

from dataclasses import replace

from nubila.core.declare import Attr
from nubila.core.types import Json, LooseBool, LooseInt, Str
from nubila.services.network.kinds import Named, OwnerId, Tags, rest


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
