"""What hangs on routers and floating IPs: port forwardings, conntrack helpers, NDP proxies, flavors."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from nubila.core import clock
from nubila.core.declare import Attr, Resource
from nubila.core.types import Int, Ip, List, LooseBool, Str, Text, Type, Uuid
from nubila.services.network.kinds import Named, OwnerId, Standard, rest

PORTS_OF = ("tcp", "udp", "sctp", "dccp", "udplite")
"""Protocols that have ports."""


def _port(value: Any) -> int:
    number = int(value)
    if not 1 <= number <= 65535:
        raise ValueError(f"'{value}' is not between 1 and 65535")
    return number


def _range(value: Any) -> str:
    first, _, last = str(value).partition(":")
    low, high = _port(first), _port(last or first)
    if low > high:
        raise ValueError(f"'{value}' ends before it begins")
    return f"{low}:{high}"


def _protocol(value: Any) -> str:
    name = {"6": "tcp", "17": "udp", "132": "sctp", "33": "dccp", "136": "udplite"}.get(str(value), str(value).lower())
    if name not in PORTS_OF:
        raise ValueError(f"'{value}' is not in {list(PORTS_OF)}")
    return name


TEXT_OR_INT: dict[str, Any] = {"anyOf": [{"type": "integer"}, {"type": "string", "maxLength": 20}]}
PortNumber = Type(Int().sql, TEXT_OR_INT, lambda text: _port(text), _port)
PortRange = Type(Str(16).sql, TEXT_OR_INT, load=_range)
Protocol = Type(Str(16).sql, TEXT_OR_INT, load=_protocol)


class PortForwarding(Standard):
    """Leads one port, or a range of ports, of a floating IP to a port of the network."""

    kind, quota = "port_forwarding", "port_forwarding"
    project_id = Attr(OwnerId, "Owner of the floating IP.", default="", hidden=True, index=True)
    created_at = Attr(Standard.attrs["created_at"].type, "When it was made.", default=clock.now, hidden=True)
    updated_at = Attr(Standard.attrs["updated_at"].type, "When it was changed.", default=clock.now, hidden=True)
    revision_number = Attr(Int(), "Grows by one with every change.", default=0, hidden=True)
    floatingip_id = Attr(Uuid, "Floating IP.", default="", hidden=True, ref="floatingip.id")
    protocol = Attr(Protocol, "tcp, udp or another protocol with ports.", write="cu", filter="eq", sort=True)
    external_port = Attr(PortNumber, "Port of the floating IP.", write="cu", default=None, null=True, filter="eq",
                         sort=True)  # fmt: skip
    external_port_range = Attr(PortRange, "Ports of the floating IP, e.g. 8000:8010.", write="cu", default=None,
                               null=True, filter="eq", sort=True)  # fmt: skip
    internal_port_id = Attr(Uuid, "Port it leads to.", write="cu", filter="eq", sort=True, index=True)
    internal_ip_address = Attr(Ip, "Address of that port.", write="cu", default=None, null=True, filter="eq")
    internal_port = Attr(PortNumber, "Where it leads on that address.", write="cu", default=None, null=True,
                         filter="eq")  # fmt: skip
    internal_port_range = Attr(PortRange, "As many ports as the floating IP's, or one.", write="cu", default=None,
                               null=True, filter="eq")  # fmt: skip
    indexes = (("internal_port_id", "protocol"),)


def bounds(text: str) -> tuple[int, int]:
    """First and last port of a stored range."""
    first, _, last = text.partition(":")
    return int(first), int(last or first)


def brief(row: dict[str, Any]) -> dict[str, Any]:
    """A forwarding as its floating IP shows it."""
    names = ("id", "internal_port_id", "internal_ip_address", "protocol", "internal_port", "external_port")
    return {n: row[n] for n in names if row[n] is not None}


class ConntrackHelper(Standard):
    """Lets a router follow a protocol that opens further connections (FTP, TFTP, SIP ...)."""

    kind, quota = "conntrack_helper", "conntrack_helper"
    project_id = Attr(OwnerId, "Owner of the router.", default="", hidden=True, index=True)
    description = Attr(Str(255), "Not part of this resource.", default="", hidden=True)
    created_at = Attr(Standard.attrs["created_at"].type, "When it was made.", default=clock.now, hidden=True)
    updated_at = Attr(Standard.attrs["updated_at"].type, "When it was changed.", default=clock.now, hidden=True)
    revision_number = Attr(Int(), "Grows by one with every change.", default=0, hidden=True)
    router_id = Attr(Uuid, "Router.", default="", hidden=True, ref="router.id")
    protocol = Attr(Protocol, "tcp or udp.", write="cu", filter="eq", sort=True)
    port = Attr(PortNumber, "Port the protocol is spoken on.", write="cu", filter="eq", sort=True)
    helper = Attr(Str(64), "Name of the helper: ftp, tftp, sip ...", write="cu", filter="eq", sort=True)
    unique = (("router_id", "protocol", "port", "helper"),)


class NdpProxy(Named):
    """Makes an IPv6 address of a port known on a router's external network."""

    kind, quota = "ndp_proxy", "ndp_proxy"
    rest = replace(rest("ndp_proxy", "ndp_proxies"), path="/v2.0/ndp_proxies")
    router_id = Attr(Uuid, "Router that answers for it.", write="c", ref="router.id", filter="eq", sort=True)
    port_id = Attr(Uuid, "Port that has the address.", write="c", ref="port.id", filter="eq", sort=True)
    ip_address = Attr(Ip, "The address; by default the port's first on a subnet of the router.", write="c",
                      default=None, null=True, filter="eq", sort=True)  # fmt: skip
    unique = (("port_id", "ip_address"),)


class NetworkFlavor(Resource):
    """A kind of router (or another service) that operators offer."""

    kind, service, owner = "network_flavor", "network", ""
    rest = rest("flavor", "flavors", bulk=False)
    id = Attr(Uuid, "Identifier.", key=True, default=clock.new_id, filter="eq", sort=True)
    name = Attr(Str(255), "Name.", write="cu", default="", filter="eq", sort=True)
    description = Attr(Str(1024), "Free text.", write="cu", default="", null=True, filter="eq", sort=True)
    service_type = Attr(Str(36), "Kind of service, e.g. L3_ROUTER_NAT.", write="c", filter="eq", sort=True)
    enabled = Attr(LooseBool, "Whether users may choose it.", write="cu", default=True, filter="eq", sort=True)
    service_profiles = Attr(List(Uuid), "Service profiles it stands for.", write="c", store=False, null=True)


class ServiceProfile(Resource):
    """How flavors are made real: a driver, or facts for one."""

    kind, service, owner = "network_service_profile", "network", ""
    rest = replace(rest("service_profile", "service_profiles", bulk=False), path="/v2.0/service_profiles")
    id = Attr(Uuid, "Identifier.", key=True, default=clock.new_id, filter="eq", sort=True)
    description = Attr(Str(1024), "Free text.", write="cu", default="", null=True, filter="eq", sort=True)
    driver = Attr(Str(1024), "Driver, as service providers name it.", write="cu", default="", filter="eq", sort=True)
    metainfo = Attr(Text(4096), "Facts for the driver.", write="cu", default="", sort=True)
    enabled = Attr(LooseBool, "Whether flavors may use it.", write="cu", default=True, filter="eq", sort=True)
    flavors = Attr(List(Uuid), "Flavors it is part of.", store=False)
