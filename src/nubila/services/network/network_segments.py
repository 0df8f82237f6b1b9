"""The segments of a network: which one a host reaches it by, and what that means for subnets, addresses and services.

Most networks have one segment, and every host uses it. A network with several, or with subnets that are on segments (a
routed provider network), is marked ``several``; only for those is anything here asked. A host uses the first segment
whose physical network it has a bridge to (tunnels and local segments are everywhere); of a routed network the first
such one that has subnets. What joins the segments is the operator's: a bridge for several segments without subnets of
their own, routers for routed networks. The network's own provider columns are its first segment's.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import sqlalchemy as sa

from nubila.core import clock, hosts
from nubila.core.config import Settings
from nubila.core.db import Reader, Tx
from nubila.core.faults import bad_request, conflict
from nubila.services.network import addresses, allocate, look, segments
from nubila.services.network.dvr_hosts import reaches
from nubila.services.network.kinds import Network, Subnet
from nubila.services.network.kinds_port import Port
from nubila.services.network.kinds_segment import Segment

Row = dict[str, Any]
ROUTED = "network:routed"
"""Service type of subnets that may be off all segments on a routed network."""
_IN_USE = {"flat": "FlatNetworkInUse", "vlan": "VlanIdInUse"}
MOST = 100
"""Segments that one network may have."""
IMMEDIATE, DEFERRED, NONE = "immediate", "deferred", "none"
_G, _S, _N, _P = Segment.table.c, Subnet.table.c, Network.table.c, Port.table.c
_OF = sa.select(Segment.table).where(_G.network_id == sa.bindparam("network")).order_by(_G.place, _G.id)
_MANY = (
    sa.select(Segment.table)
    .where(_G.network_id.in_(sa.bindparam("networks", expanding=True)))
    .order_by(_G.network_id, _G.place, _G.id)
)
_DROP = sa.delete(Segment.table).where(_G.network_id == sa.bindparam("b_network"))
_SEVERAL = sa.select(_N.several).where(_N.id == sa.bindparam("network"))
_SEVERAL_OF = sa.select(_N.id).where(_N.id.in_(sa.bindparam("networks", expanding=True)), _N.several.is_(True))
_WITH_SUBNETS = (
    sa.select(_S.segment_id).where(_S.network_id == sa.bindparam("network"), _S.segment_id.is_not(None)).distinct()
)
_BOUND = sa.select(_P.id, _P.bound_host, _P.device_owner).where(
    _P.network_id == sa.bindparam("network"), _P.bound_host != ""
)


# --- rows -----------------------------------------------------------------------------------------------------------


def of(reader: Reader, network_id: str) -> list[Row]:
    """A network's segments in the order hosts try them."""
    return reader.all(_OF, {"network": network_id})


def of_many(reader: Reader, network_ids: Iterable[str]) -> dict[str, list[Row]]:
    """The segments of several networks."""
    out: dict[str, list[Row]] = {id: [] for id in network_ids}
    for row in reader.all(_MANY, {"networks": sorted(out)}) if out else ():
        out[row["network_id"]].append(row)
    return out


def asked(tx: Tx, settings: Settings, values: Row) -> list[Row]:
    """The segments of a new network, kept in ``_segments``: those it lists, or what its provider attributes say.

    The network's own columns become the first one's. Raises the 400s of the API.
    """
    listed = values.get("segments")
    if not listed:
        segments.check(tx, settings, values)
        values["_segments"] = [{name: values[name] for name in segments.PROVIDER}]
        return list(values["_segments"])
    if any(values[name] is not None for name in segments.PROVIDER):
        text = "segments: leave the provider attributes of the network out beside it."
        raise bad_request(text, "SegmentsSetInConjunctionWithProviders")
    parts: list[Row] = []
    for part in _listed(listed):
        segments.check(tx, settings, part)
        if part in parts and (part["segmentation_id"] is not None or part["network_type"] == "flat"):
            raise bad_request("segments: one is listed twice.", "SegmentsContainDuplicateEntry")
        parts.append(part)
    values.update(parts[0])
    values["_segments"] = parts
    return parts


def _listed(given: Any) -> list[Row]:
    keys = {f"provider:{name}": name for name in segments.PROVIDER}
    if not isinstance(given, list) or len(given) > MOST:
        raise bad_request(f"segments: a list of up to {MOST} objects.", "HTTPBadRequest")
    out: list[Row] = []
    for one in given:
        if not isinstance(one, dict) or not one.keys() <= keys.keys() or "provider:network_type" not in one:
            text = f"segments: each is an object with provider:network_type and of {', '.join(keys)}."
            raise bad_request(text, "HTTPBadRequest")
        part: Row = {name: one.get(key) for key, name in keys.items()}
        text = f"segments: {one} holds a value of the wrong type."
        if not isinstance(part["network_type"], str) or not isinstance(part["physical_network"], str | None):
            raise bad_request(text, "HTTPBadRequest")
        if len(part["physical_network"] or "") > 64:
            raise bad_request("segments: provider:physical_network has at most 64 characters.", "HTTPBadRequest")
        if part["segmentation_id"] is not None:
            try:
                part["segmentation_id"] = int(part["segmentation_id"])
            except (TypeError, ValueError):
                raise bad_request(text, "HTTPBadRequest") from None
        out.append(part)
    return out


def make(tx: Tx, settings: Settings, net: Row, parts: Sequence[Row]) -> None:
    """Reserve and note the segments of a network that has its row; completes the network's own columns."""
    for place, part in enumerate(parts):
        claim(tx, settings, net, part)
        add(tx, net["id"], part, place)
    first = parts[0]["segmentation_id"]
    if net["segmentation_id"] != first or len(parts) > 1:
        net["segmentation_id"], net["several"] = first, len(parts) > 1
        allocate.set_columns(tx, Network, net["id"], {"segmentation_id": first, "several": net["several"]})


def present(reader: Reader, networks: Sequence[Row]) -> None:
    """Fill in ``segments`` of a page of networks: None for those with one."""
    found = of_many(reader, [net["id"] for net in networks if net["several"]])
    for net in networks:
        mine = found.get(net["id"], [])
        shown = [{f"provider:{name}": one[name] for name in segments.PROVIDER} for one in mine]
        net["segments"] = shown if len(shown) > 1 else None


def claim(tx: Tx, settings: Settings, net: Mapping[str, Any], wish: Row) -> None:
    """Reserve a segment of the network and fill in its ``segmentation_id``; 409 or 503 as segments.claim."""
    own = [tuple(one[name] for name in segments.PROVIDER) for one in of(tx, net["id"])]
    if wish["network_type"] != "local" and tuple(wish[name] for name in segments.PROVIDER) in own:
        text = f"segmentation_id: the network has this {wish['network_type']} segment already; choose another."
        raise conflict(text, _IN_USE.get(wish["network_type"], "TunnelIdInUse"))
    whole = {**wish, "id": net["id"], "project_id": net["project_id"]}
    segments.claim(tx, settings, whole)
    wish["segmentation_id"] = whole["segmentation_id"]


def add(tx: Tx, network_id: str, wish: Mapping[str, Any], place: int = 0) -> None:
    """Note a segment that has been reserved."""
    now = clock.now()
    tx.insert(Segment.table, {
        "id": clock.new_id(), "project_id": "", "name": None, "description": None, "created_at": now,
        "updated_at": now, "revision_number": 0, "network_id": network_id, "place": place,
        **{name: wish[name] for name in segments.PROVIDER},
    })  # fmt: skip


def drop_all(tx: Tx, network_id: str) -> None:
    """The network is going, its subnets are gone."""
    tx.execute(_DROP, {"b_network": network_id})
    allocate.release_segments(tx, network_id)


def refresh(tx: Tx, network_id: str) -> None:
    """Bring the network's own columns to what its segments and subnets say."""
    found = of(tx, network_id)
    routed = bool(tx.rows(_WITH_SUBNETS, {"network": network_id}))
    first: Mapping[str, Any] = found[0] if found else dict.fromkeys(segments.PROVIDER)
    own = {name: first[name] for name in segments.PROVIDER}
    allocate.set_columns(tx, Network, network_id, {**own, "several": len(found) != 1 or routed})


# --- hosts ----------------------------------------------------------------------------------------------------------


def choose(found: Sequence[Row], routed: Iterable[str], host: Mapping[str, Any]) -> Row | None:
    """The segment a host uses of those it reaches, those with subnets first; pure."""
    mine = [one for one in found if reaches(host, one)]
    ids = set(routed)
    return next((one for one in mine if one["id"] in ids), mine[0] if mine else None)


def by_host(reader: Reader, network_id: str, known: Iterable[Mapping[str, Any]]) -> dict[str, Row]:
    """Which of a network's segments each of these hosts uses; hosts that reach none are left out."""
    found, routed = of(reader, network_id), [id for (id,) in reader.rows(_WITH_SUBNETS, {"network": network_id})]
    chosen = {host["name"]: choose(found, routed, host) for host in known}
    return {name: one for name, one in chosen.items() if one is not None}


def at(reader: Reader, network_id: str, host: str) -> Row | None:
    """The segment that a host uses of a network with several."""
    row = hosts.get(reader, host) if host else None
    return None if row is None else by_host(reader, network_id, [row]).get(host)


def connected(reader: Reader, network_id: str, host: Mapping[str, Any]) -> bool:
    """Whether a port of the network can be bound on the host.

    A host without the bridge of a network's only segment counts as connected: it says itself what it lacks.
    """
    if not reader.scalar(_SEVERAL, {"network": network_id}):
        return True
    return bool(by_host(reader, network_id, [host]))


def with_several(reader: Reader, network_ids: Iterable[str]) -> list[str]:
    """Those of the networks where hosts may differ in the segment they use."""
    ids = sorted(set(network_ids))
    return [id for (id,) in reader.rows(_SEVERAL_OF, {"networks": ids})] if ids else []


def reaching(
    reader: Reader, known: Sequence[Row], network_ids: Iterable[str], at_segments: Mapping[str, str] | None = None
) -> list[Row]:
    """Those of the hosts that reach all the networks, by the segment that ``at_segments`` names where it does."""
    out = list(known)
    for id in with_several(reader, network_ids):
        mine = by_host(reader, id, out)
        wanted = (at_segments or {}).get(id)
        out = [h for h in out if h["name"] in mine and wanted in (None, mine[h["name"]]["id"])]
    return out


def ports_on(reader: Reader, segment: Row) -> list[str]:
    """Ids of the ports bound by way of a segment, those of DHCP aside: they follow."""
    mine = by_host(reader, segment["network_id"], hosts.every(reader))
    return [
        id
        for id, host, owner in reader.rows(_BOUND, {"network": segment["network_id"]})
        if owner != "network:dhcp" and mine.get(host, {}).get("id") == segment["id"]
    ]


def dhcp_parts(reader: Reader, net: Mapping[str, Any], served: Iterable[Row]) -> list[set[str] | None]:
    """The sets of hosts of which each needs DHCP servers of its own: one per segment with served subnets.

    None stands for every host: the network has one segment.
    """
    wanted = {s["segment_id"] for s in served}
    if not net["several"]:
        return [None]
    mine = by_host(reader, net["id"], hosts.every(reader))
    if wanted <= {None}:
        return [set(mine)]
    return [{h for h, one in mine.items() if one["id"] == id} for id in sorted(wanted - {None})]


def dhcp_at(reader: Reader, net: Mapping[str, Any], served: list[Row], host: str) -> list[Row]:
    """Those of the subnets with DHCP that a host serves."""
    return on(served, at(reader, net["id"], host)) if net["several"] else served


# --- subnets --------------------------------------------------------------------------------------------------------


def on(subnets: Iterable[Row], segment: Mapping[str, Any] | None) -> list[Row]:
    """The subnets that there are on a segment: its own, and those that are on no segment."""
    id = segment["id"] if segment else None
    return [s for s in subnets if s["segment_id"] in (None, id)]


def check_subnet(reader: Reader, values: Mapping[str, Any], before: Mapping[str, Any] | None = None) -> None:
    """Raise the 400s and 404s of a subnet's ``segment_id``: a new one's, or one given to a subnet that is there."""
    network, wanted = values["network_id"], values["segment_id"]
    others = [s for s in look.subnets(reader, network) if ROUTED not in (s["service_types"] or ())]
    others = [s for s in others if before is None or s["id"] != before["id"]]
    mixed = f"segment_id: network {network} has other subnets; all of them name a segment, or none does."
    if before is not None:
        if others:
            raise bad_request(mixed, "SubnetsNotAllAssociatedWithSegments")
        if before["segment_id"] is not None:
            text = "segment_id: the subnet is on a segment already and stays there; make another subnet."
            raise bad_request(text, "SubnetSegmentAssociationChangeNotAllowed")
        if len(of(reader, network)) > 1:
            text = f"segment_id: network {network} has several segments; name one when the subnet is made."
            raise bad_request(text, "NoUpdateSubnetWhenMultipleSegmentsOnNetwork")
    exempt = ROUTED in (values.get("service_types") or ())
    segment = None if wanted is None else look.need(reader, Segment, wanted)
    if not exempt and any((s["segment_id"] is None) != (wanted is None) for s in others):
        raise bad_request(mixed, "SubnetsNotAllAssociatedWithSegments")
    if segment is not None and segment["network_id"] != network:
        text = f"segment_id: segment {wanted} is of network {segment['network_id']}, the subnet of {network}."
        raise bad_request(text, "NetworkIdsDontMatch")


def peer_routes(subnet: Mapping[str, Any], peers: Sequence[Row], gone: Sequence[tuple[str, str | None]]) -> list[Row]:
    """``host_routes`` of a subnet on a segment: to every subnet on another segment by its own gateway; pure.

    What the user routes, wider prefixes included, stays as it is. ``gone``: (CIDR, gateway) of routes that this
    function once made and that must go.
    """
    routes = [r for r in subnet["host_routes"] or () if (r["destination"], r["nexthop"]) not in gone]
    if not subnet["gateway_ip"]:
        return routes
    named = [r["destination"] for r in routes]
    for peer in peers:
        if peer["ip_version"] != subnet["ip_version"] or peer["segment_id"] == subnet["segment_id"]:
            continue
        first = str(addresses.network(peer["cidr"]).network_address)
        if not any(addresses.contains(wide, first) and addresses.network(wide).prefixlen <= _length(peer)
                   for wide in named):  # fmt: skip
            routes.append({"destination": peer["cidr"], "nexthop": subnet["gateway_ip"]})
    return routes


def _length(subnet: Mapping[str, Any]) -> int:
    return addresses.network(subnet["cidr"]).prefixlen


def subnets_changed(tx: Tx, network_id: str, gone: Mapping[str, Any] | None = None, gateway: str | None = None) -> None:
    """A subnet of the network came, went (``gone``) or lost its gateway (``gateway``): routes, and who is routed."""
    refresh(tx, network_id)
    found = look.subnets(tx, network_id)
    if not any(s["segment_id"] for s in (*found, *([gone] if gone else []))):
        return
    for subnet in found:
        if subnet["segment_id"] is None:
            continue
        old = [(gone["cidr"], subnet["gateway_ip"])] if gone else []
        old += [(s["cidr"], gateway) for s in found if gateway]
        routes = peer_routes(subnet, [s for s in found if s["segment_id"]], old)
        if routes != (subnet["host_routes"] or []):
            allocate.set_columns(tx, Subnet, subnet["id"], {"host_routes": routes})
            allocate.bump(tx, Subnet, [subnet["id"]], clock.now())


def subnet_changed(tx: Tx, before: Mapping[str, Any], after: Row) -> None:
    """A subnet on a segment was changed by its owner: the routes of all subnets follow; completes ``after``."""
    names = ("gateway_ip", "segment_id", "host_routes")
    if any(before[n] != after[n] for n in names):
        allocate.set_columns(tx, Subnet, before["id"], {n: after[n] for n in names})
        moved = before["gateway_ip"] if before["gateway_ip"] != after["gateway_ip"] else None
        subnets_changed(tx, before["network_id"], gateway=moved)
        after["host_routes"] = look.need(tx, Subnet, before["id"])["host_routes"]


# --- addresses ------------------------------------------------------------------------------------------------------


def candidates(
    reader: Reader, port: Mapping[str, Any], subnets: list[Row], wanted: Sequence[Mapping[str, Any]] | None
) -> list[Row]:
    """The subnets from which a port of a routed network may have addresses.

    Those on its host's segment. While its host is not known: those on the segment of what it asks for, none when it
    asks for nothing (its addresses are deferred). 409 for a host that reaches none, 400 for addresses of two segments.
    """
    if not any(s["segment_id"] for s in subnets):
        return subnets
    if port.get("host_id"):
        here = at(reader, port["network_id"], port["host_id"])
        found = on(subnets, here)
        if here is None and not found:
            raise _unconnected(port, port["host_id"])
        return found
    if not wanted:
        return on(subnets, None)
    named = {s["segment_id"] for s in subnets if any(_names(one, s) for one in wanted)}
    if len(named) > 1:
        text = "fixed_ips: they belong to different segments, and a port is on one."
        raise bad_request(text, "FixedIpsSubnetsNotOnSameSegment")
    return [s for s in subnets if s["segment_id"] in named] or subnets


def _unconnected(port: Mapping[str, Any], host: str) -> Exception:
    text = f"binding:host_id: {host} reaches no segment of network {port['network_id']}; give it a bridge to one, or"
    return conflict(f"{text} choose another host.", "HostNotConnectedToAnySegment")


def _names(wanted: Mapping[str, Any], subnet: Mapping[str, Any]) -> bool:
    if wanted.get("subnet_id"):
        return bool(wanted["subnet_id"] == subnet["id"])
    try:
        return addresses.contains(subnet["cidr"], str(wanted.get("ip_address")))
    except ValueError:
        return False


def allocation(reader: Reader, port: Mapping[str, Any], wanted: Any, found: Sequence[Any]) -> str:
    """``ip_allocation`` of a new port that wanted these ``fixed_ips`` and is to have ``found``."""
    if wanted is not None:
        return NONE if not wanted else IMMEDIATE
    if found or port.get("host_id"):
        return IMMEDIATE
    return DEFERRED if reader.rows(_WITH_SUBNETS, {"network": port["network_id"]}) else IMMEDIATE


def check_host(reader: Reader, port: Mapping[str, Any], host: str) -> None:
    """409 when a port's addresses mean nothing on the segment of the host it is to move to."""
    if not host or not reader.scalar(_SEVERAL, {"network": port["network_id"]}):
        return
    mine = {ip["subnet_id"] for ip in look.addresses_of(reader, port["id"])}
    subnets = look.subnets(reader, port["network_id"])
    here = at(reader, port["network_id"], host)
    there = {s["id"] for s in on(subnets, here)}
    if mine - there and here is None:
        raise _unconnected(port, host)
    if mine - there:
        text = f"binding:host_id: the addresses of port {port['id']} belong to a segment that {host} does not use;"
        raise conflict(f"{text} give it others (fixed_ips) with the host.", "HostNotCompatibleWithFixedIps")
