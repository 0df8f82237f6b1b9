"""Ports, security groups and their rules of the Networking API v2.0."""

from __future__ import annotations

from typing import Any

from nubila.core.declare import Attr
from nubila.core.types import Enum, Int, Json, List, LooseBool, Mac, Str, Type, Uuid, with_schema
from nubila.services.network.kinds import ADMIN, AUTO, Named, OwnerId, Standard, Tags, rest

ADMIN_OR_SERVICE = "(rule:admin_only) or (role:service)"
NET_OWNER = "(rule:admin_only) or (role:service) or (role:member and rule:network_owner)"
OWNER_OR_SERVICE = "(rule:admin_only) or (role:member and project_id:%(project_id)s) or role:service"
PAIR_SETTER = "(rule:admin_only) or (role:member and rule:network_owner) or role:service"
MEMBER = "(rule:admin_only) or (role:member and project_id:%(project_id)s)"
READER = "(rule:admin_only) or (role:reader and project_id:%(project_id)s)"
FIXED_IP: dict[str, Any] = {
    "type": "object",
    "properties": {"subnet_id": {"type": "string", "maxLength": 64}, "ip_address": {"type": "string", "maxLength": 64}},
}  # port_api.py refuses other keys, in Neutron's words
PAIR: dict[str, Any] = {
    "type": "object",
    "properties": {
        "ip_address": {"type": "string", "maxLength": 64},
        "mac_address": {"type": ["string", "null"], "maxLength": 32},
        "active": {"type": ["boolean", "null"]},
    },
    "required": ["ip_address"],
    "additionalProperties": False,
}
OPTION: dict[str, Any] = {
    "type": "object",
    "properties": {
        "opt_name": {"type": "string", "minLength": 1, "maxLength": 64},
        "opt_value": {"type": ["string", "null"], "maxLength": 255},
        "ip_version": {"enum": [4, 6, "4", "6"]},
    },
    "required": ["opt_name", "opt_value"],
    "additionalProperties": False,
}
VNIC_TYPES = ("normal", "direct", "macvtap", "baremetal", "direct-physical", "virtio-forwarder", "smart-nic", "vdpa",
              "accelerator-direct", "accelerator-direct-physical", "remote-managed")  # fmt: skip
DATA_PLANE = "rule:admin_only or role:data_plane_integrator"
HINTS = Type(Json.sql, {"type": "object", "additionalProperties": False, "properties": {
    "openvswitch": {"type": "object", "additionalProperties": False, "properties": {
        "other_config": {"type": "object", "additionalProperties": False, "properties": {
            "tx-steering": {"enum": ["thread", "hash"]}}}}}}})  # fmt: skip
FreeObject = Type(Json.sql, {"type": "object"})
Protocol = Type(Str(40).sql, {"type": ["string", "integer"]}, load=str)
PortNumber = Type(Int().sql, {"anyOf": [{"type": "integer"}, {"type": "string", "maxLength": 20}]}, Int().parse)


class Port(Named):
    """A place on a network where one device can plug in."""

    kind, quota = "port", "port"
    rest = rest("port", "ports")
    network_id = Attr(Uuid, "Network it is on.", write="c", ref="network.id", filter="eq", sort=True)
    mac_address = Attr(Mac, "Hardware address.", write="cu", default=None, set=NET_OWNER, filter="eq", sort=True)
    admin_state_up = Attr(LooseBool, "Whether it forwards packets.", write="cu", default=True, filter="eq", sort=True)
    status = Attr(Str(16), "ACTIVE once wired, else DOWN.", default="DOWN", filter="eq", sort=True)
    device_id = Attr(Str(255), "What is plugged in: a server, router, DHCP service.", write="cu", default="",
                     set=OWNER_OR_SERVICE, filter="eq", sort=True, index=True)  # fmt: skip
    device_owner = Attr(Str(255), "Which service plugged it in.", write="cu", default="",
                        set=f"(not rule:network_device) or {NET_OWNER}",
                        filter="eq startswith", sort=True)  # fmt: skip
    fixed_ips = Attr(with_schema(List(Json), {"type": "array", "items": FIXED_IP}), "Its addresses.", write="cu",
                     store=False, null=True, set=f"{NET_OWNER} or rule:shared")  # fmt: skip
    security_groups = Attr(List(Uuid), "Security groups it is in.", write="cu", store=False, null=True)
    allowed_address_pairs = Attr(with_schema(List(Json), {"type": "array", "items": PAIR, "maxItems": 64}),
                                 "Further addresses it may send from.", write="cu", default=[], null=True,
                                 set=PAIR_SETTER)  # fmt: skip
    extra_dhcp_opts = Attr(with_schema(List(Json), {"type": "array", "items": OPTION}), "DHCP options of its own.",
                           write="cu", default=[], null=True)  # fmt: skip
    port_security_enabled = Attr(LooseBool, "Whether spoofing is prevented and groups apply.", write="cu",
                                 default=None, set=NET_OWNER, filter="eq", sort=True)  # fmt: skip
    host_id = Attr(Str(64), "Host it is on.", api="binding:host_id", write="cu", default="", null=True,
                   see=ADMIN_OR_SERVICE, set=ADMIN_OR_SERVICE, filter="eq", sort=True, index=True)  # fmt: skip
    bound_host = Attr(Str(64), "The host, when it is one of this cloud's.", default="", hidden=True)
    vnic_type = Attr(Enum(*VNIC_TYPES), "Kind of virtual card.", api="binding:vnic_type", write="cu", default="normal",
                     set=OWNER_OR_SERVICE, filter="eq", sort=True)  # fmt: skip
    profile = Attr(FreeObject, "Facts for the host.", api="binding:profile", write="cu", default={}, null=True,
                   see=ADMIN_OR_SERVICE, set="role:service")  # fmt: skip
    vif_type = Attr(Str(64), "How it is bound: unbound, ovs, bridge or distributed.", api="binding:vif_type",
                    default="unbound", see=ADMIN_OR_SERVICE, filter="eq")  # fmt: skip
    vif_details = Attr(Json, "Details of the binding.", api="binding:vif_details", store=False, see=ADMIN_OR_SERVICE)
    qos_policy_id = Attr(Uuid, "QoS policy of its own.", write="cu", default=None, null=True, ref="qos_policy.id")
    qos_network_policy_id = Attr(Uuid, "QoS policy of its network.", store=False)
    trunk_details = Attr(Json, "The trunk it is the parent of.", store=False)
    resource_request = Attr(Json, "What its host must have for its QoS policy.", store=False, see=ADMIN)
    dns_name = Attr(Str(63), "Host name in DNS.", write="cu", default="", filter="eq")
    dns_domain = Attr(Str(255), "DNS domain of its name instead of the network's.", write="cu", default="",
                      filter="eq", sort=True)  # fmt: skip
    trusted = Attr(LooseBool, "Whether its virtual function may change MAC and mode; shown in binding:profile.",
                   write="cu", default=None, null=True, see=ADMIN, set=ADMIN, filter="eq", sort=True)  # fmt: skip
    numa_affinity_policy = Attr(Enum("required", "preferred", "legacy", "socket"), "How near its card must be to the "
                                "guest's memory.", write="cu", default=None, null=True, filter="eq",
                                sort=True)  # fmt: skip
    device_profile = Attr(Str(255), "Accelerator profile.", write="c", default=None, null=True, filter="eq",
                          sort=True)  # fmt: skip
    propagate_uplink_status = Attr(LooseBool, "Whether its virtual function sees the state of the physical link.",
                                   write="cu", default=True, filter="eq", sort=True)  # fmt: skip
    pvlan_type = Attr(Enum("promiscuous", "isolated", "community"), "Whom it reaches on a private VLAN.", write="cu",
                      default=None, null=True, see=READER, set=MEMBER, filter="eq")  # fmt: skip
    pvlan_community = Attr(Str(255), "Its community on a private VLAN.", write="cu", default=None, null=True,
                           see=READER, set=MEMBER, filter="eq")  # fmt: skip
    data_plane_status = Attr(Enum("ACTIVE", "DOWN"), "What monitoring says of the network beneath it.", write="u",
                             default=None, null=True, set=DATA_PLANE)  # fmt: skip
    hints = Attr(HINTS, "Wishes about how its host switches it.", write="cu", default=None, null=True, see=ADMIN,
                 set=ADMIN)  # fmt: skip
    ip_allocation = Attr(Str(16), "When it gets addresses: immediate, deferred until its host is known, or none.",
                         default="immediate", filter="eq", sort=True)  # fmt: skip
    dns_assignment = Attr(Json, "Names of its addresses.", store=False)
    tags = Attr(Tags, "Labels.", write="c", default=[])
    network_owner = Attr(
        OwnerId, "Owner of the network.", api="network:project_id", default="", hidden=True, index=True
    )
    unique = (("network_id", "mac_address"),)
    indexes = (("network_id", "device_owner"), ("bound_host", "network_id"))


class SecurityGroup(Named):
    """A set of rules that say which packets its ports let through."""

    kind, quota = "security_group", "security_group"
    rest = rest("security_group", "security_groups")
    security_group_rules = Attr(Json, "Its rules.", store=False)
    stateful = Attr(LooseBool, "Whether answers to what its rules let through pass as well.", write="cu", default=True,
                    filter="eq")  # fmt: skip
    shared = Attr(LooseBool, "Whether every project may use it.", default=False, filter="eq")
    tags = Attr(Tags, "Labels.", write="c", default=[])


class SecurityGroupRule(Standard):
    """Lets one kind of packet through."""

    kind, quota = "security_group_rule", "security_group_rule"
    rest = rest("security_group_rule", "security_group_rules", verbs=frozenset({"list", "show", "create", "delete"}))
    revision_number = Attr(Int(), "Grows by one with every change.", default=0, filter="eq", sort=True)
    security_group_id = Attr(
        Str(64), "Group it belongs to.", write="c", ref="security_group.id", filter="eq", sort=True
    )
    direction = Attr(Enum("ingress", "egress"), "To the port or from it.", write="c", filter="eq", sort=True)
    ethertype = Attr(Str(16), "IPv4 or IPv6.", write="c", default="IPv4", null=True, filter="eq", sort=True)
    protocol = Attr(Protocol, "Protocol name or number.", write="c", default=None, null=True, filter="eq", sort=True)
    port_range_min = Attr(PortNumber, "First port, or ICMP type.", write="c", default=None, null=True, filter="eq",
                          sort=True)  # fmt: skip
    port_range_max = Attr(PortNumber, "Last port, or ICMP code.", write="c", default=None, null=True, filter="eq",
                          sort=True)  # fmt: skip
    remote_ip_prefix = Attr(Str(64), "Addresses at the other end.", write="c", default=None, null=True, filter="eq",
                            sort=True)  # fmt: skip
    remote_group_id = Attr(Str(64), "Group the other end must be in.", write="c", default=None, null=True, filter="eq",
                           sort=True, index=True)  # fmt: skip
    remote_address_group_id = Attr(Str(64), "Address group the other end must be in.", write="c", default=None,
                                   null=True, filter="eq", sort=True, index=True)  # fmt: skip
    normalized_cidr = Attr(Str(64), "The prefix with its host bits cleared.", default=None, null=True, filter="eq",
                           sort=True)  # fmt: skip
    belongs_to_default_sg = Attr(LooseBool, "Whether its group is the project's default one.", default=False,
                                 filter="eq")  # fmt: skip
    group_owner = Attr(OwnerId, "Owner of the group.", api="security_group:project_id", default="", hidden=True,
                       index=True)  # fmt: skip
    sameness = Attr(Str(255), "Equal in two rules that let the same packets through.", default="", hidden=True)
    unique = (("security_group_id", "sameness"),)


__all__ = ["ADMIN", "AUTO", "Port", "SecurityGroup", "SecurityGroupRule"]
