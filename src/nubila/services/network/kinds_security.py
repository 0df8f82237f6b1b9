"""Address groups and the templates of security group rules of the Networking API v2.0."""

from __future__ import annotations

from nubila.core import clock
from nubila.core.declare import Attr, Resource
from nubila.core.types import Enum, List, LooseBool, Str, Uuid
from nubila.services.network.kinds import Named, rest
from nubila.services.network.kinds_port import PortNumber, Protocol

PARENT = "PARENT"
"""In a template's ``remote_group_id``: the group that the rule is made for."""


class AddressGroup(Named):
    """Addresses with a name, for security group rules to refer to."""

    kind, quota = "address_group", "address_group"
    rest = rest("address_group", "address_groups")
    addresses = Attr(List(Str(64)), "Its CIDRs.", write="c", default=[], null=True)
    shared = Attr(LooseBool, "Whether every project may use it.", default=False, hidden=True)


class DefaultSecurityGroupRule(Resource):
    """A rule that every new security group gets."""

    kind, service, owner = "default_security_group_rule", "network", ""
    rest = rest("default_security_group_rule", "default_security_group_rules", bulk=False,
                verbs=frozenset({"list", "show", "create", "delete"}))  # fmt: skip
    id = Attr(Uuid, "Identifier.", key=True, default=clock.new_id, filter="eq", sort=True)
    description = Attr(Str(255), "Free text.", write="c", default="", filter="eq")
    direction = Attr(Enum("ingress", "egress"), "To the port or from it.", write="c", filter="eq", sort=True)
    ethertype = Attr(Str(16), "IPv4 or IPv6.", write="c", default="IPv4", null=True, filter="eq", sort=True)
    protocol = Attr(Protocol, "Protocol name or number.", write="c", default=None, null=True, filter="eq", sort=True)
    port_range_min = Attr(PortNumber, "First port, or ICMP type.", write="c", default=None, null=True, filter="eq",
                          sort=True)  # fmt: skip
    port_range_max = Attr(PortNumber, "Last port, or ICMP code.", write="c", default=None, null=True, filter="eq",
                          sort=True)  # fmt: skip
    remote_ip_prefix = Attr(Str(64), "Addresses at the other end.", write="c", default=None, null=True, filter="eq",
                            sort=True)  # fmt: skip
    remote_group_id = Attr(Str(64), "Group the other end must be in; PARENT: the new group itself.", write="c",
                           default=None, null=True, filter="eq", sort=True)  # fmt: skip
    remote_address_group_id = Attr(Str(64), "Address group the other end must be in.", write="c", default=None,
                                   null=True, filter="eq", sort=True)  # fmt: skip
    used_in_default_sg = Attr(LooseBool, "Whether projects' default groups get it.", write="c", filter="eq")
    used_in_non_default_sg = Attr(LooseBool, "Whether other new groups get it.", write="c", filter="eq")
    project_id = Attr(Str(255), "Taken for old clients' sake; a template is nobody's.", alias=("tenant_id",), write="c",
                      default="", store=False, hidden=True)  # fmt: skip
    normalized_cidr = Attr(Str(64), "The prefix with its host bits cleared.", default=None, null=True, hidden=True)
    sameness = Attr(Str(255), "Equal in two rules that let the same packets through.", default="", hidden=True,
                    index=True)  # fmt: skip
