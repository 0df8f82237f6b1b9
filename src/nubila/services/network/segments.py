"""Which layer 2 segment a network gets: checks of the provider attributes and what MTU fits."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from nubila.core.config import Settings
from nubila.core.db import Reader, Tx
from nubila.core.faults import bad_request, conflict, unavailable
from nubila.services.network import allocate, segment_ranges

Row = dict[str, Any]
TYPES = ("flat", "vlan", "vxlan", "gre", "geneve", "local")
TUNNELS = {"vxlan": 50, "gre": 42, "geneve": 58}
"""Bytes that each encapsulation adds to a packet over IPv4."""
MAX_TUNNEL_ID = {"vxlan": 2**24 - 1, "gre": 2**32 - 1, "geneve": 2**24 - 1}
PROVIDER = ("network_type", "physical_network", "segmentation_id")


def _refuse(text: str) -> Exception:
    return bad_request(f"Invalid input for operation: {text}", "InvalidInput")


def check_physical_network(reader: Reader, settings: Settings, kind: str, name: str) -> None:
    """400 for a physical network that this cloud does not have."""
    if name in settings.physical_networks or (kind == "flat" and segment_ranges.ANY in settings.physical_networks):
        return
    known = segment_ranges.physical_networks(reader, settings)
    if name not in known:
        text = f"physical_network '{name}' unknown for {kind} networks; this cloud has: {', '.join(sorted(known))}."
        raise _refuse(f"{text} Hosts add to it with --physical, the setting physical_networks names further ones.")


def _of_tenants(tx: Tx, settings: Settings, project_id: str) -> tuple[str, str | None]:
    """(type, physical network) of a network that names none: the first that has an id left for the project."""
    named = [name for name in settings.physical_networks if name != segment_ranges.ANY]
    ways = [
        (kind, physnet) for kind in settings.tenant_network_types for physnet in (named if kind == "vlan" else [None])
    ]
    for kind, physnet in ways if len(ways) > 1 else ():
        if kind not in segment_ranges.RANGED:
            return kind, None
        segment_ranges.hold(tx, kind, physnet or "")
        spans = segment_ranges.spans(tx, settings, kind, physnet or "", project_id)
        if any(allocate.free_segment(tx, kind, physnet or "", lo, hi) is not None for lo, hi in spans):
            return kind, physnet
    return ways[-1]  # claim() says that nothing is left


def check(tx: Tx, settings: Settings, values: Row) -> None:
    """Complete ``network_type`` and ``physical_network``; 400 for a combination that cannot be."""
    kind, physnet, id = (values.get(name) for name in PROVIDER)
    if kind is None:
        if physnet is not None or id is not None:
            raise _refuse("provider:network_type required when another provider attribute is given.")
        values["network_type"], values["physical_network"] = _of_tenants(tx, settings, values["project_id"])
        return
    if kind not in TYPES:
        raise _refuse(f"provider:network_type '{kind}' is not supported; use one of {', '.join(TYPES)}.")
    if kind in ("flat", "vlan"):
        if physnet is None and kind == "vlan" and id is None:
            values["physical_network"] = physnet = segment_ranges.first(settings)
        if physnet is None:
            raise _refuse(f"provider:physical_network required for a {kind} network.")
        check_physical_network(tx, settings, kind, physnet)
    elif physnet is not None:
        raise _refuse(f"provider:physical_network prohibited for a {kind} network.")
    if kind in ("flat", "local") and id is not None:
        raise _refuse(f"provider:segmentation_id prohibited for a {kind} network.")
    if kind == "vlan" and id is not None and not 1 <= id <= 4094:
        raise _refuse(f"segmentation_id out of range (1 through 4094): {id}.")
    if kind in TUNNELS and id is not None and not 1 <= id <= MAX_TUNNEL_ID[kind]:
        raise _refuse(f"segmentation_id out of range (1 through {MAX_TUNNEL_ID[kind]}): {id}.")


def claim(tx: Tx, settings: Settings, row: Row) -> None:
    """Reserve the network's segment and fill in ``segmentation_id``; 409 when it is taken, 503 when none is left."""
    kind, physnet, id = row["network_type"], row["physical_network"] or "", row["segmentation_id"]
    if kind == "local":
        return
    if kind == "flat":
        if not allocate.take_segment(tx, row["id"], kind, physnet, 0):
            text = f"provider:physical_network: {physnet} has a flat network already; it can have one."
            raise conflict(text, "FlatNetworkInUse")
        return
    if id is not None:
        if not allocate.take_segment(tx, row["id"], kind, physnet, id):
            where = f"VLAN {id} on physical network {physnet}" if kind == "vlan" else f"tunnel ID {id}"
            text = f"Unable to create the network. The {where} is in use."
            raise conflict(text, "VlanIdInUse" if kind == "vlan" else "TunnelIdInUse")
        return
    found: int | None = None
    for lo, hi in segment_ranges.spans(tx, settings, kind, physnet, row["project_id"]):
        found = allocate.take_free_segment(tx, row["id"], kind, physnet, lo, hi)
        if found is not None:
            break
    if found is None:
        fault = unavailable("Unable to create the network. No tenant network is available for allocation.")
        fault.type = "NoNetworkAvailable"
        raise fault
    row["segmentation_id"] = found
    return


def domain(text: str | None) -> str:
    """A DNS domain as it is stored: lower case, with the dot at its end; 400 for what is none (RFC 1035, 2.3.1)."""
    found = (text or "").lower()
    labels = found.rstrip(".").split(".")
    valid = len(found) < 255 and all(re.fullmatch(r"[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?", label) for label in labels)
    if found and not (valid and found.endswith(".")):
        raise _refuse(f"dns_domain '{found}' is not a FQDN: it is a name of labels and dots that ends with a dot.")
    return found


def max_mtu(settings: Settings, kind: str) -> int:
    """The largest MTU a network of that type can have."""
    if kind in TUNNELS:
        return settings.global_mtu - TUNNELS[kind]
    return settings.physical_network_mtu if kind in ("flat", "vlan") else settings.global_mtu


def mtu(settings: Settings, kind: str, asked: int | None) -> int:
    """The MTU of a network; 400 when the one asked for does not fit."""
    most = max_mtu(settings, kind)
    if not asked:
        return most
    if asked > most:
        raise _refuse(f"mtu: {asked} is more than the {most} this network can carry.")
    return asked


def least_mtu(network_id: str, mtu: int, versions: Iterable[int]) -> None:
    """409 when the MTU is below what IP (68 bytes, RFC 791) or IPv6 (1280, RFC 8200) on the network's subnets needs."""
    least = max((1280 if version == 6 else 68 for version in versions), default=0)
    if mtu < least:
        text = f"Cannot add subnets to network {network_id} or change its MTU: it is {mtu}, its subnets need {least}."
        raise conflict(text, "NetworkMTUSubnetConflict")
