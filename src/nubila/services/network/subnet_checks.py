"""What makes a subnet's attributes valid: pure checks that raise the API's refusals."""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping, Sequence
from typing import Any

from nubila.core.faults import Fault, bad_request, conflict
from nubila.services.network import addresses

Row = dict[str, Any]
MAX_SERVERS, MAX_ROUTES = 5, 20


def refuse(text: str, type: str = "InvalidInput") -> Fault:
    """A 400."""
    return bad_request(f"Invalid input for operation: {text}", type)


def version(values: Row) -> int:
    """4 or 6, given or from the CIDR."""
    given = values.get("ip_version")
    if given is None and values.get("cidr"):
        raise refuse("ip_version is required: 4 or 6.", "HTTPBadRequest")
    if given is not None and given not in (4, 6):
        raise refuse(f"ip_version {given} is not one of 4 and 6.", "HTTPBadRequest")
    return int(given or 4)


def cidr(text: str, ip_version: int, enable_dhcp: bool) -> None:
    """A block that hosts can use."""
    net = addresses.network(text)
    if net.version != ip_version:
        raise refuse(f"cidr {text} is not of ip_version {ip_version}.")
    if net.prefixlen == 0:
        raise refuse(f"cidr {text}: the prefix must be longer than /0.")
    if net.is_multicast or net.is_loopback or (net.version == 4 and net.network_address.is_unspecified):
        raise refuse(f"cidr {text} is a multicast, loopback or unspecified range, which hosts can not use.")
    if enable_dhcp and net.version == 4 and net.prefixlen > 30:
        raise refuse(f"cidr {text} leaves no addresses for DHCP: take a shorter prefix or set enable_dhcp to false.")
    if net.is_link_local and net.version == 6:
        raise refuse(f"cidr {text} is the link-local range.")


def modes(values: Mapping[str, Any]) -> None:
    """IPv6 modes that go together."""
    ra, address = values.get("ipv6_ra_mode"), values.get("ipv6_address_mode")
    if ra is None and address is None:
        return
    if values["ip_version"] == 4:
        raise refuse("ipv6_ra_mode, ipv6_address_mode: these are for subnets of ip_version 6.")
    if not values["enable_dhcp"]:
        raise refuse("ipv6_ra_mode, ipv6_address_mode: these need enable_dhcp.")
    if ra and address and ra != address:
        raise refuse(f"ipv6_ra_mode '{ra}' and ipv6_address_mode '{address}' differ: make them equal or leave one out.")
    automatic = address in addresses.AUTO_V6_MODES or ra in addresses.AUTO_V6_MODES
    if automatic and values["cidr"] and addresses.network(values["cidr"]).prefixlen != 64:
        raise refuse(f"cidr {values['cidr']}: addresses are derived from MACs only in a /64.")


def gateway(values: Mapping[str, Any]) -> None:
    """A gateway that can be one."""
    ip = values["gateway_ip"]
    if ip is None:
        return
    if ipaddress.ip_address(ip).version != values["ip_version"]:
        raise refuse(f"gateway_ip {ip} is not of ip_version {values['ip_version']}.")
    if addresses.contains(values["cidr"], ip) and not addresses.usable(values["cidr"], ip):
        raise refuse(f"Gateway {ip} is not valid on subnet {values['cidr']}: it is the network or broadcast address.")


def pools(values: Mapping[str, Any], asked: Any) -> list[Row]:
    """Allocation pools in normal form, sorted; 400 or 409 for those that cannot be."""
    out = []
    for one in asked:
        try:
            out.append({"start": str(ipaddress.ip_address(one["start"])), "end": str(ipaddress.ip_address(one["end"]))})
        except ValueError:
            raise refuse(f"allocation pool {one} needs IP addresses as start and end.") from None
    try:
        addresses.check_pools(values["cidr"], out, values["gateway_ip"])
    except addresses.BadPool as e:
        kinds = {"order": (400, "InvalidAllocationPool"), "outside": (400, "OutOfBoundsAllocationPool"),
                 "overlap": (409, "OverlappingAllocationPools"),
                 "gateway": (409, "GatewayConflictWithAllocationPools")}  # fmt: skip
        status, name = kinds[e.kind]
        raise (bad_request if status == 400 else conflict)(str(e), name) from None
    return sorted(out, key=lambda p: addresses.key(p["start"]))


def servers(values: Sequence[str], ip_version: int) -> list[str]:
    """Name servers."""
    if len(values) > MAX_SERVERS:
        raise bad_request(f"Unable to complete operation: a subnet has at most {MAX_SERVERS} DNS nameservers.",
                          "DNSNameServersExhausted")  # fmt: skip
    out = []
    for text in values:
        try:
            out.append(str(ipaddress.ip_address(text)))
        except ValueError:
            raise refuse(f"'{text}' in dns_nameservers is not a valid IP address.", "HTTPBadRequest") from None
        if ipaddress.ip_address(text).version != ip_version and ip_version == 4:
            raise refuse(f"'{text}' in dns_nameservers is not of ip_version {ip_version}.")
    if len(set(out)) != len(out):
        raise refuse("dns_nameservers holds an address twice.", "HTTPBadRequest")
    return out


def routes(values: Sequence[Mapping[str, str]], ip_version: int | None, what: str, most: int) -> list[Row]:
    """Routes in normal form: destination CIDR and next hop of one family, none twice."""
    if len(values) > most:
        raise bad_request(f"Unable to complete operation: at most {most} {what} are allowed.",
                          "HostRoutesExhausted" if what == "host_routes" else "RoutesExhausted")  # fmt: skip
    out: list[Row] = []
    for one in values:
        try:
            destination = addresses.network(one["destination"])
            hop = ipaddress.ip_address(one["nexthop"])
        except ValueError:
            raise refuse(f"{what} need a CIDR as destination and an IP address as nexthop.", "HTTPBadRequest") from None
        if destination.version != hop.version or (ip_version is not None and destination.version != ip_version):
            raise refuse(f"route {dict(one)} in {what} mixes IP versions.")
        route = {"destination": str(destination), "nexthop": str(hop)}
        if route in out:
            raise refuse(f"{what} holds {route} twice.")
        out.append(route)
    return out
