"""Networks, subnets, subnet pools, address scopes, routers and floating IPs of the Networking API v2.0."""

from __future__ import annotations

import dataclasses
from typing import Any

import sqlalchemy as sa

from nubila.core import clock
from nubila.core.declare import Attr, Resource, Rest
from nubila.core.types import (
    Cidr,
    Enum,
    Int,
    Ip,
    Json,
    List,
    LooseBool,
    LooseInt,
    Object,
    Str,
    Time,
    Type,
    Uuid,
    with_schema,
)

AUTO = "auto"
"""Stands for "not given" where null means something else; no user can send it."""

ADMIN = "rule:admin_only"
OwnerId = Str(255)
Tags = List(Str(255), unique=True)
IpList = List(Str(64))
HostRoute = Object({"destination": {"type": "string"}, "nexthop": {"type": "string"}}, ("destination", "nexthop"))
AllocationPool = Object({"start": {"type": "string"}, "end": {"type": "string"}}, ("start", "end"))
GATEWAY_IP = {
    "type": "object",
    "properties": {"subnet_id": {"type": "string"}, "ip_address": {"type": "string"}},
    "additionalProperties": False,
}
GatewayInfo = Type(
    Json.sql,
    {
        "type": "object",
        "properties": {
            "network_id": {"type": ["string", "null"]},
            "enable_snat": LooseBool.schema,
            "external_fixed_ips": {"anyOf": [{"type": "array", "items": GATEWAY_IP}, {"type": "null"}]},
            "qos_policy_id": {"type": ["string", "null"]},
        },
        "additionalProperties": False,
    },
)
Mtu = LooseInt()  # segments.mtu knows what fits
PrefixLen = dataclasses.replace(LooseInt(0, 128), dump=str)  # subnet pools show theirs as text


def rules(item: str) -> dict[str, str]:
    """The policy rule of each verb, as Neutron names them."""
    return {
        "list": f"get_{item}", "show": f"get_{item}", "create": f"create_{item}",
        "update": f"update_{item}", "delete": f"delete_{item}",
    }  # fmt: skip


def rest(item: str, items: str, *, bulk: bool = True, **options: Any) -> Rest:
    """The representation every Neutron resource has."""
    path = f"/v2.0/{items.replace('_', '-')}"
    options = {"attr_rules": True, "body_first": True, **options}
    return Rest(path=path, item=item, items=items, rules=rules(item), bulk=bulk, **options)


class Standard(Resource):
    """What every Networking resource has (standard attributes)."""

    service = "network"
    id = Attr(Uuid, "Identifier.", key=True, default=clock.new_id, filter="eq", sort=True)
    project_id = Attr(OwnerId, "Project that owns it.", alias=("tenant_id",), write="c", default="", filter="eq",
                      sort=True, index=True)  # fmt: skip
    description = Attr(Str(255), "Free text.", write="cu", default="", filter="eq", sort=True)
    created_at = Attr(Time, "When it was made.", default=clock.now, filter="eq", sort=True)
    updated_at = Attr(Time, "When it was last changed.", default=clock.now, filter="eq", sort=True)
    revision_number = Attr(Int(), "Grows by one with every change.", default=1, filter="eq", sort=True)


class Named(Standard):
    """Standard attributes and a name."""

    name = Attr(Str(255), "Name, need not be unique.", write="cu", default="", filter="eq", sort=True)


class Network(Named):
    """An isolated layer 2 segment."""

    kind, quota = "network", "network"
    rest = rest("network", "networks")
    admin_state_up = Attr(LooseBool, "Whether it forwards packets.", write="cu", default=True, filter="eq", sort=True)
    status = Attr(Str(16), "ACTIVE, DOWN, BUILD or ERROR.", default="ACTIVE", filter="eq", sort=True)
    shared = Attr(LooseBool, "Whether every project may use it.", write="cu", default=False, set=ADMIN, filter="eq",
                  sort=True)  # fmt: skip
    external = Attr(LooseBool, "Whether routers may have their gateway on it.", api="router:external", write="cu",
                    default=False, set=ADMIN, filter="eq", sort=True)  # fmt: skip
    is_default = Attr(LooseBool, "Whether it is the external network used when none is named.", write="cu",
                      default=False, set=ADMIN, filter="eq", sort=True)  # fmt: skip
    mtu = Attr(Mtu, "Largest IP packet in bytes.", write="cu", default=0, filter="eq", sort=True)
    network_type = Attr(Str(32), "flat, vlan, vxlan, gre, geneve or local.", api="provider:network_type", write="cu",
                        default=None, null=True, see=ADMIN, set=ADMIN, filter="eq", sort=True)  # fmt: skip
    physical_network = Attr(Str(64), "Physical network of a flat or vlan network.", api="provider:physical_network",
                            write="cu", default=None, null=True, see=ADMIN, set=ADMIN, filter="eq",
                            sort=True)  # fmt: skip
    segmentation_id = Attr(LooseInt(0, 2**32 - 1), "VLAN id or tunnel id.", api="provider:segmentation_id", write="cu",
                           default=None, null=True, see=ADMIN, set=ADMIN, filter="eq", sort=True)  # fmt: skip
    segments = Attr(Json, "Its segments, when it has several.", write="cu", store=False, null=True, see=ADMIN,
                    set=ADMIN)  # fmt: skip
    several = Attr(LooseBool, "Whether hosts may differ in the segment they reach it by.", default=False, hidden=True)
    l2_adjacency = Attr(LooseBool, "Whether all its ports are on one layer 2 segment.", store=False)
    port_security_enabled = Attr(LooseBool, "Default of its ports.", write="cu", default=True, filter="eq", sort=True)
    pvlan = Attr(LooseBool, "Whether its ports can be kept apart (private VLAN).", write="cu", default=False,
                 see=f"({ADMIN}) or (role:reader and project_id:%(project_id)s)",
                 set=f"({ADMIN}) or (role:member and project_id:%(project_id)s)", filter="eq")  # fmt: skip
    vlan_transparent = Attr(LooseBool, "Whether it carries frames that guests tagged.", write="c", default=False,
                            filter="eq")  # fmt: skip
    qinq = Attr(LooseBool, "The same, with a tag of 802.1ad around them on a physical network.", write="c",
                default=False, filter="eq")  # fmt: skip
    dns_domain = Attr(Str(255), "DNS domain of its ports.", write="cu", default="", filter="eq", sort=True)
    host_gateway = Attr(LooseBool, "Whether network hosts themselves are its gateway to the world.", default=False,
                        hidden=True)  # fmt: skip
    availability_zone_hints = Attr(List(Str(255)), "Zones its services should be in.", write="c", default=[])
    availability_zones = Attr(List(Str(255)), "Zones its services are in.", store=False)
    qos_policy_id = Attr(Uuid, "QoS policy of its guests' ports.", write="cu", default=None, null=True,
                         ref="qos_policy.id")  # fmt: skip
    subnets = Attr(List(Uuid), "Ids of its subnets.", store=False)
    ipv4_address_scope = Attr(Uuid, "Address scope of its IPv4 subnets.", store=False)
    ipv6_address_scope = Attr(Uuid, "Address scope of its IPv6 subnets.", store=False)
    tags = Attr(Tags, "Labels.", write="c", default=[])


class AddressScope(Named):
    """A range of addresses in which no two subnets overlap."""

    kind, quota = "address_scope", ""
    rest = rest("address_scope", "address_scopes")
    description = Attr(Str(255), "Not part of this resource.", store=False, hidden=True)
    created_at = Attr(Time, "Not part of this resource.", store=False, hidden=True)
    updated_at = Attr(Time, "Not part of this resource.", store=False, hidden=True)
    revision_number = Attr(Int(), "Not part of this resource.", store=False, hidden=True)
    shared = Attr(LooseBool, "Whether every project may use it.", write="cu", default=False, set=ADMIN, filter="eq",
                  sort=True)  # fmt: skip
    ip_version = Attr(LooseInt(4, 6), "4 or 6.", write="c", filter="eq", sort=True)


class SubnetPool(Named):
    """Prefixes from which subnets get their CIDR."""

    kind, quota = "subnetpool", "subnetpool"
    rest = rest("subnetpool", "subnetpools")
    prefixes = Attr(with_schema(List(Str(64)), {"anyOf": [
        {"type": "array", "items": {"type": "string"}}, {"type": "string"}]}), "CIDRs to hand out.",
                    write="cu")  # fmt: skip
    min_prefixlen = Attr(PrefixLen, "Shortest prefix it gives.", alias=("min_prefix",), write="cu",
                         default=None, null=True, filter="eq", sort=True)  # fmt: skip
    max_prefixlen = Attr(PrefixLen, "Longest prefix it gives.", alias=("max_prefix",), write="cu",
                         default=None, null=True, filter="eq", sort=True)  # fmt: skip
    default_prefixlen = Attr(PrefixLen, "Prefix length when none is asked for.", alias=("default_prefix",),
                             write="cu", default=None, null=True, filter="eq", sort=True)  # fmt: skip
    default_quota = Attr(LooseInt(0), "Addresses one project may take (/64 blocks in IPv6).", write="cu", default=None,
                         null=True, filter="eq", sort=True)  # fmt: skip
    ip_version = Attr(Int(), "4 or 6, from the prefixes.", default=4, filter="eq", sort=True)
    shared = Attr(LooseBool, "Whether every project may use it.", write="c", default=False, set=ADMIN, filter="eq",
                  sort=True)  # fmt: skip
    is_default = Attr(LooseBool, "Whether it is used when none is named.", write="cu", default=False, set=ADMIN,
                      filter="eq", sort=True)  # fmt: skip
    address_scope_id = Attr(Uuid, "Address scope.", write="cu", default=None, null=True, filter="eq", sort=True,
                            ref="address_scope.id")  # fmt: skip
    tags = Attr(Tags, "Labels.", write="c", default=[])


class Subnet(Named):
    """A block of addresses on a network."""

    kind, quota = "subnet", "subnet"
    rest = rest("subnet", "subnets")
    revision_number = Attr(Int(), "Grows by one with every change.", default=0, filter="eq", sort=True)
    network_id = Attr(Uuid, "Network it is on.", write="c", ref="network.id", filter="eq", sort=True)
    ip_version = Attr(LooseInt(0, 128), "4 or 6.", write="c", default=None, null=True, filter="eq", sort=True)
    cidr = Attr(with_schema(Cidr, {"type": "string"}), "Addresses, e.g. 10.0.0.0/24.", write="c", default=None,
                null=True, filter="eq", sort=True)  # fmt: skip
    gateway_ip = Attr(Ip, "Default gateway; null for none.", write="cu", default=AUTO, null=True, filter="eq",
                      sort=True)  # fmt: skip
    allocation_pools = Attr(
        List(AllocationPool), "Ranges given out automatically.", write="cu", default=None, null=True
    )
    enable_dhcp = Attr(LooseBool, "Whether DHCP serves it.", write="cu", default=True, filter="eq", sort=True)
    dns_nameservers = Attr(IpList, "Name servers told to guests.", write="cu", default=[], null=True)
    host_routes = Attr(List(HostRoute), "Routes told to guests.", write="cu", default=[], null=True)
    ipv6_ra_mode = Attr(Enum("slaac", "dhcpv6-stateful", "dhcpv6-stateless"), "Router advertisements.", write="c",
                        default=None, null=True, filter="eq", sort=True)  # fmt: skip
    ipv6_address_mode = Attr(Enum("slaac", "dhcpv6-stateful", "dhcpv6-stateless"), "How guests get addresses.",
                             write="c", default=None, null=True, filter="eq", sort=True)  # fmt: skip
    subnetpool_id = Attr(Str(64), "Pool the CIDR came from.", write="c", default=None, null=True, filter="eq",
                         sort=True, index=True)  # fmt: skip
    prefixlen = Attr(LooseInt(0, 128), "Prefix length wanted from the pool.", write="c", store=False, hidden=True,
                     null=True)  # fmt: skip
    use_default_subnetpool = Attr(LooseBool, "Take the CIDR from the default pool.", write="c", store=False,
                                  hidden=True, null=True)  # fmt: skip
    segment_id = Attr(Uuid, "Segment it is on, when it is not on all of the network.", write="cu", default=None,
                      null=True, see=ADMIN, set=ADMIN, filter="eq", sort=True, ref="network_segment.id")  # fmt: skip
    service_types = Attr(List(Str(255)), "Device owners whose ports get addresses here; none = all.", write="cu",
                         default=[], null=True)  # fmt: skip
    tags = Attr(Tags, "Labels.", write="c", default=[])
    # Copies of the network's, so that one predicate decides who sees a subnet.
    network_owner = Attr(
        OwnerId, "Owner of the network.", api="network:project_id", default="", hidden=True, index=True
    )
    shared = Attr(LooseBool, "Whether the network is shared.", default=False, hidden=True, filter="eq")
    external = Attr(LooseBool, "Whether the network is external.", api="router:external", default=False, filter="eq")


class Router(Named):
    """Forwards packets between subnets and to an external network."""

    kind, quota = "router", "router"
    rest = rest("router", "routers")
    admin_state_up = Attr(LooseBool, "Whether it forwards packets.", write="cu", default=True, filter="eq", sort=True)
    status = Attr(Str(16), "ACTIVE or ERROR.", default="ACTIVE", filter="eq", sort=True)
    external_gateway_info = Attr(GatewayInfo, "Its gateway to an external network.", write="cu", store=False, null=True)
    enable_snat = Attr(LooseBool, "Whether fixed addresses leave as the gateway's.", default=True, filter="eq",
                       sort=True)  # fmt: skip
    gw_port_id = Attr(Uuid, "Gateway port.", default=None, null=True, hidden=True, index=True)
    gw_qos_policy_id = Attr(Uuid, "QoS policy of its gateway address.", default=None, null=True, hidden=True,
                            ref="qos_policy.id")  # fmt: skip
    routes = Attr(List(HostRoute), "Extra routes.", write="u", default=[], null=True)
    availability_zone_hints = Attr(List(Str(255)), "Zones it should be in.", write="c", default=[])
    availability_zones = Attr(List(Str(255)), "Zones it is in.", store=False)
    external_gateways = Attr(Json, "All its gateways, the first one first.", store=False)
    enable_default_route_ecmp = Attr(LooseBool, "Whether traffic is spread over all its gateways.", write="cu",
                                     default=False, null=True, set=ADMIN)  # fmt: skip
    enable_default_route_bfd = Attr(LooseBool, "Whether BFD watches the next hops of its default routes.", write="cu",
                                    default=False, null=True, set=ADMIN)  # fmt: skip
    enable_ndp_proxy = Attr(LooseBool, "Whether NDP proxies make its ports' IPv6 addresses known outside.",
                            write="cu", default=False, null=True, filter="eq")  # fmt: skip
    conntrack_helpers = Attr(Json, "Protocols whose further connections it follows.", store=False)
    flavor_id = Attr(Uuid, "Flavor it was made of.", write="c", default=None, null=True, sort=True,
                     ref="network_flavor.id")  # fmt: skip
    host = Attr(Str(64), "Host it runs on; empty: an operator took it from there.", default=None, null=True,
                hidden=True, index=True)  # fmt: skip
    fence = Attr(Int(), "Grows when it moves to another host.", default=0, hidden=True)
    distributed = Attr(LooseBool, "Whether every host of its networks has it.", write="cu", default=None, null=True,
                       see=ADMIN, set=ADMIN, filter="eq", sort=True)  # fmt: skip
    ha = Attr(LooseBool, "Whether it is on several hosts, one of which forwards.", write="cu", default=None, null=True,
              see=ADMIN, set=ADMIN, filter="eq", sort=True)  # fmt: skip
    tags = Attr(Tags, "Labels.", write="c", default=[])


class FloatingIP(Standard):
    """An external address translated to a port's fixed address."""

    kind, quota = "floatingip", "floatingip"
    rest = rest("floatingip", "floatingips", bulk=False)
    floating_network_id = Attr(Uuid, "External network.", write="c", filter="eq", sort=True, ref="network.id")
    subnet_id = Attr(Uuid, "Subnet to take the address from.", write="c", store=False, hidden=True, null=True)
    floating_ip_address = Attr(Ip, "The external address.", write="c", default=None, null=True,
                               set="(rule:admin_only) or (role:manager and project_id:%(project_id)s)", filter="eq",
                               sort=True)  # fmt: skip
    floating_port_id = Attr(Uuid, "Port that holds the address.", default="", hidden=True, index=True)
    port_id = Attr(Uuid, "Port it leads to.", write="cu", default=None, null=True, filter="eq", sort=True, index=True)
    fixed_ip_address = Attr(Ip, "Address of that port.", write="cu", default=None, null=True, filter="eq", sort=True)
    router_id = Attr(Uuid, "Router that translates.", write="cu", default=None, null=True, filter="eq", sort=True,
                     index=True)  # fmt: skip
    status = Attr(Str(16), "ACTIVE when it leads somewhere, else DOWN.", default="DOWN", filter="eq", sort=True)
    port_details = Attr(Json, "Facts about the port it leads to.", store=False)
    qos_policy_id = Attr(Uuid, "QoS policy of the address.", write="cu", default=None, null=True,
                         ref="qos_policy.id")  # fmt: skip
    dns_name = Attr(Str(63), "Host name of the address.", write="c", default="", filter="eq", sort=True)
    dns_domain = Attr(Str(255), "DNS domain of that name.", write="c", default="", filter="eq", sort=True)
    port_forwardings = Attr(Json, "Ports of it that lead to ports of the network.", store=False)
    tags = Attr(Tags, "Labels.", write="c", default=[])
    unique = (("port_id", "fixed_ip_address"),)


def by_id(cls: type[Resource]) -> sa.Select[Any]:
    """One row by its id, as a statement to keep."""
    return sa.select(cls.table).where(cls.table.c.id == sa.bindparam("id"))
