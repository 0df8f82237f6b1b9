"""/v2.0/segments: the segments of networks, and the extensions that come with them."""

from __future__ import annotations

from typing import Any

from nubila.core.call import Call
from nubila.core.faults import conflict
from nubila.core.policy import Rule
from nubila.core.query import ListQuery
from nubila.core.service import Hooks
from nubila.services.network import allocate, asks, look, network_segments, paging, placing, segments, transparent
from nubila.services.network.feature import Feature
from nubila.services.network.kinds import Network
from nubila.services.network.kinds_segment import Segment
from nubila.services.network.policies import ADMIN

Row = dict[str, Any]


def prepare(call: Call, values: Row) -> None:
    tx = call.tx
    look.lock(tx, Network, look.uuid("network_id", values["network_id"]))
    net = look.need(tx, Network, values["network_id"])
    segments.check(tx, call.cloud.settings, values)
    transparent.check(tx, net, [values])
    there = network_segments.of(tx, net["id"])
    if len(there) >= network_segments.MOST:
        text = f"Network {net['id']} has {network_segments.MOST} segments: delete one first."
        raise conflict(text, "Conflict")
    values["place"] = max((one["place"] for one in there), default=-1) + 1
    network_segments.claim(tx, call.cloud.settings, net, values)


def created(call: Call, row: Row) -> None:
    _changed(call, row["network_id"])


def _changed(call: Call, network_id: str) -> None:
    """The network has other segments than before: what fits in its packets, who serves it, and its hosts."""
    tx = call.tx
    network_segments.refresh(tx, network_id)
    kinds = [one["network_type"] for one in network_segments.of(tx, network_id)]
    net = look.need(tx, Network, network_id)
    most = min((segments.max_mtu(call.cloud.settings, kind) for kind in kinds), default=net["mtu"])
    if most < net["mtu"]:
        allocate.set_columns(tx, Network, network_id, {"mtu": most})
        asks.guests_of(tx, network_id)
        asks.routers_of(tx, network_id)
    asks.network(tx, network_id, external=net["external"])
    if not placing.dhcp(call.cloud, tx, network_id):
        tx.ask("dhcp", network_id)


def prepare_update(call: Call, before: Row, values: Row) -> None:
    look.check_revision(call, before)


def deleting(call: Call, row: Row) -> None:
    """Refuse (409) while subnets or bound ports need the segment."""
    tx = call.tx
    look.lock(tx, Network, row["network_id"])
    subnets = [s["id"] for s in look.subnets(tx, row["network_id"]) if s["segment_id"] == row["id"]]
    if subnets:
        raise _in_use(row, f"subnets {', '.join(subnets)} are on it: delete them first")
    if bound := network_segments.ports_on(tx, row):
        raise _in_use(row, f"ports {', '.join(bound[:5])} are bound by way of it: unbind them first")
    row["_hosts"] = asks.network_hosts(tx, row["network_id"], external=True)


def _in_use(row: Row, why: str) -> Exception:
    return conflict(f"Segment {row['id']} stays: {why}.", "SegmentInUse")


def deleted(call: Call, row: Row) -> None:
    if row["network_type"] != "local":
        physnet, id = row["physical_network"] or "", row["segmentation_id"] or 0
        allocate.release_segment(call.tx, row["network_id"], row["network_type"], physnet, id)
    _changed(call, row["network_id"])
    for host in row["_hosts"]:
        call.tx.ask("network", row["network_id"], host)


def scope(call: Call, q: ListQuery) -> list[Any]:
    return paging.adapt(call, Segment, q)


_NAMES = ("create", "get", "update", "delete")
FEATURE = Feature(
    kinds=(Segment,),
    hooks={
        Segment: Hooks(
            prepare=prepare, created=created, prepare_update=prepare_update, deleting=deleting, deleted=deleted,
            scope=scope,
        )
    },
    rules=(
        *(Rule(f"{verb}_segment", ADMIN, f"{verb.capitalize()} a segment of a network.", scopes=("project",))
          for verb in _NAMES),
        *(Rule(f"{verb}_network:segments", ADMIN, f"{verb.capitalize()} segments of a network.", scopes=("project",))
          for verb in _NAMES[:3]),
        *(Rule(f"{verb}_subnet:segment_id", ADMIN, f"{verb.capitalize()} segment_id of a subnet.",
               scopes=("project",))
          for verb in _NAMES[:3]),
    ),
    resources={"segments": "segment"},
    extensions={
        "segment": ("Segment", "Networks consist of segments, and subnets can be on one of them.", "2016-02-24"),
        "standard-attr-segment": (
            "Standard Attribute Segment Extension", "Segments have descriptions, times and revisions.", "2018-04-09",
        ),
        "multi-provider": ("Multi Provider Network", "Networks can be made of several segments.", "2013-06-27"),
        "ip_allocation": ("IP Allocation", "Ports say when they get addresses.", "2016-06-10"),
        "l2_adjacency": ("L2 Adjacency", "Networks say whether they are one layer 2 segment.", "2016-04-12"),
        "subnet-segmentid-writable": (
            "Subnet SegmentID (writable)", "A network's only subnet can be put on its segment.", "2018-03-12",
        ),
        "subnet-segmentid-enforce": (
            "Subnet SegmentID (policy enforced)", "Policy says who sees and sets it.", "2018-09-04",
        ),
        "segments-peer-subnet-host-routes": (
            "Segments peer-subnet host routes", "Subnets on segments route to each other by their gateways.",
            "2018-06-12",
        ),
    },
)  # fmt: skip
