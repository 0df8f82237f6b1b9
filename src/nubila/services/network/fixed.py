"""Fixed addresses of ports: what a request asks for, checked, then claimed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from nubila.core.db import Tx
from nubila.core.faults import bad_request, conflict
from nubila.services.network import addresses, allocate, look, network_segments
from nubila.services.network.asks import DHCP, ROUTER_OWNERS
from nubila.services.network.kinds import Subnet

Row = dict[str, Any]
Wish = tuple[Row, str | None]
"""A subnet and the address wanted in it; None = any."""


def is_auto(subnet: Mapping[str, Any]) -> bool:
    """Whether addresses of the subnet follow from the MAC (IPv6 SLAAC and stateless DHCPv6).

    One mode alone is enough: what our router advertises, or what guests do with somebody else's advertisements.
    """
    return bool({subnet["ipv6_address_mode"], subnet["ipv6_ra_mode"]} & set(addresses.AUTO_V6_MODES))


def wishes(tx: Tx, port: Mapping[str, Any], asked: Sequence[Mapping[str, Any]] | None) -> list[Wish]:
    """What addresses the port is to have.

    ``asked`` is the request's ``fixed_ips``; None = one address of each family, and one of every subnet whose
    addresses follow from the MAC. Raises the 400s and 404s of the API.
    """
    subnets = network_segments.candidates(tx, port, look.subnets(tx, port["network_id"]), asked)
    router_port = port["device_owner"] in ROUTER_OWNERS
    if asked is None:
        out = _default(tx, port, subnets)
    else:
        out = [_wish(tx, port, subnets, one) for one in asked]
        _no_duplicates(port, out)
    if not router_port and (asked is None or asked):
        have = {s["id"] for s, _ in out}
        out += [(s, None) for s in subnets if is_auto(s) and s["id"] not in have]
    return [
        (s, addresses.eui64(s["cidr"], port["mac_address"]) if ip is None and is_auto(s) and not router_port else ip)
        for s, ip in out
    ]


def _default(tx: Tx, port: Mapping[str, Any], subnets: Sequence[Row]) -> list[Wish]:
    owner = port["device_owner"]
    open_ = [s for s in subnets if not s["service_types"] or owner in s["service_types"]]
    if subnets and not open_:
        text = f"The network's subnets are kept for other device owners than '{owner or 'none'}' (see service_types)."
        raise conflict(text, "IpAddressGenerationFailureNoMatchingSubnet")
    subnets = sorted(open_, key=lambda s: not s["service_types"])
    out: list[Wish] = []
    for version in (4, 6):
        mine = [s for s in subnets if s["ip_version"] == version and not is_auto(s)]
        if mine:
            out.append((mine[0] if len(mine) == 1 else next((s for s in mine if has_room(tx, s)), mine[0]), None))
    return out


def has_room(tx: Tx, subnet: Row) -> bool:
    """Whether an address of the subnet's pools is free."""
    return addresses.free(subnet["allocation_pools"], allocate.reading(tx, subnet["id"])) is not None


def _wish(tx: Tx, port: Mapping[str, Any], subnets: Sequence[Row], asked: Mapping[str, Any]) -> Wish:
    network, wanted, ip = port["network_id"], asked.get("subnet_id"), asked.get("ip_address")
    if wanted is None and ip is None:
        raise bad_request("Invalid input for fixed_ips: each needs a subnet_id or an ip_address.", "InvalidInput")
    if ip is not None:
        try:
            ip = addresses.address(addresses.key(ip))
        except ValueError:
            raise bad_request(f"fixed_ips: '{ip}' is no IP address.", "HTTPBadRequest") from None
    if wanted is not None:
        subnet = next((s for s in subnets if s["id"] == wanted), None)
        if subnet is None:
            look.need(tx, Subnet, wanted)
            text = f"Invalid input for operation: subnet {wanted} in fixed_ips is not on network {network}."
            raise bad_request(text, "InvalidInput")
    else:
        subnet = next((s for s in subnets if addresses.contains(s["cidr"], str(ip))), None)
        if subnet is None:
            text = f"fixed_ips: {ip} belongs to no subnet of this network."
            raise bad_request(text, "InvalidIpForNetwork")
    if ip is None:
        return subnet, None
    if not addresses.usable(subnet["cidr"], ip):
        outside = wanted is not None and not addresses.contains(subnet["cidr"], ip)
        kind = "InvalidIpForSubnet" if outside else "InvalidIpForNetwork"
        raise bad_request(f"fixed_ips: {ip} can not be used in subnet {subnet['id']}.", kind)
    derived = is_auto(subnet) and port["device_owner"] not in ROUTER_OWNERS
    if derived and ip != addresses.eui64(subnet["cidr"], port["mac_address"]):
        text = f"fixed_ips: subnet {subnet['id']} derives addresses from MACs; leave {ip} out, name the subnet only."
        raise bad_request(text, "AllocationOnAutoAddressSubnet")
    return subnet, ip


def _no_duplicates(port: Mapping[str, Any], out: Sequence[Wish]) -> None:
    seen: set[tuple[str, str]] = set()
    for subnet, ip in out:
        if ip is not None:
            if (subnet["id"], ip) in seen:
                raise bad_request(f"Invalid input for fixed_ips: {ip} is given twice.", "InvalidInput")
            seen.add((subnet["id"], ip))


def claim(tx: Tx, port: Mapping[str, Any], wanted: Sequence[Wish], start: int = 0) -> list[dict[str, str]]:
    """Claim addresses for a port that has its row; returns them as ``fixed_ips``. 409 when there is none."""
    out = []
    for place, (subnet, ip) in enumerate(wanted, start):
        if ip is None:
            ip = allocate.take_free(tx, subnet, port["id"], place, lowest=port["device_owner"] == DHCP)
            if ip is None:
                text = f"Every address of network {port['network_id']} is taken: add a subnet or widen a pool."
                raise conflict(text, "IpAddressGenerationFailure")
        elif not allocate.take(tx, subnet, ip, port["id"], place):
            text = f"fixed_ips: {ip} of subnet {subnet['id']} is taken: choose another."
            raise conflict(text, "IpAddressAlreadyAllocated")
        out.append({"subnet_id": subnet["id"], "ip_address": ip})
    return out


def replace(tx: Tx, port: Mapping[str, Any], asked: Sequence[Mapping[str, Any]] | None) -> list[dict[str, str]]:
    """Give an existing port the addresses asked for, keeping those it has where they fit."""
    have = look.addresses_of(tx, port["id"])
    kept: list[dict[str, str]] = []
    todo: list[Wish] = []
    for subnet, ip in wishes(tx, port, asked if asked is not None else []):
        match = next(
            (h for h in have if h not in kept and h["subnet_id"] == subnet["id"] and ip in (None, h["ip_address"])),
            None,
        )
        if match is not None:
            kept.append(match)
        else:
            todo.append((subnet, ip))
    for old in have:
        if old not in kept:
            allocate.release_one(tx, port["id"], old["subnet_id"], old["ip_address"])
    return kept + claim(tx, port, todo, len(have))
