"""Local IPs of the Networking API v2.0, and the ports behind them."""

from __future__ import annotations

from nubila.core.declare import Attr, Resource, Rest
from nubila.core.types import Enum, Ip, Str, Uuid
from nubila.services.network.kinds import Named, OwnerId, rules


class LocalIP(Named):
    """An address that each host answers with a port of its own."""

    kind, quota = "local_ip", "local_ip"
    rest = Rest(path="/v2.0/local_ips", item="local_ip", items="local_ips", rules=rules("local_ip"), bulk=True,
                attr_rules=True)  # fmt: skip
    local_port_id = Attr(Uuid, "Port that has the address.", write="c", default=None, null=True, filter="eq",
                         sort=True, index=True)  # fmt: skip
    network_id = Attr(Uuid, "Network of the address.", write="c", default=None, null=True, filter="eq", sort=True)
    local_ip_address = Attr(Ip, "The address.", write="c", default=None, null=True, filter="eq", sort=True)
    ip_mode = Attr(Enum("translate", "passthrough"), "Whether ports behind it see their own address.", write="c",
                   default="translate", filter="eq", sort=True)  # fmt: skip


class LocalIPAssociation(Resource):
    """A port behind a local IP, for its own host."""

    kind, service, quota = "local_ip_association", "network", "local_ip_association"
    id = Attr(Str(80), "Local IP and port.", key=True, hidden=True)
    local_ip_id = Attr(Uuid, "Local IP.", ref="local_ip.id", filter="eq")
    local_ip_address = Attr(Ip, "Its address.", store=False)
    fixed_port_id = Attr(Uuid, "Port behind it.", write="c", ref="port.id", filter="eq", sort=True)
    fixed_ip = Attr(Ip, "Address of that port.", write="c", default=None, null=True, filter="eq", sort=True)
    host = Attr(Str(64), "Host of that port.", store=False)
    project_id = Attr(OwnerId, "Project that owns it.", default="", hidden=True)
