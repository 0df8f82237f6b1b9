"""Logs of the Networking API v2.0: which packets of security groups are written down on hosts."""

from __future__ import annotations

from nubila.core.declare import Attr, Rest
from nubila.core.types import Enum, LooseBool, Str, Uuid
from nubila.services.network.kinds import Named, rules


class Log(Named):
    """Writes down what security groups let through or drop."""

    kind, quota = "log", "log"
    rest = Rest(path="/v2.0/log/logs", item="log", items="logs", rules=rules("log"), bulk=True, attr_rules=True)
    resource_type = Attr(Str(36), "What is logged: security_group.", write="c", filter="eq", sort=True)
    resource_id = Attr(Uuid, "The security group; null: all groups of the project.", write="c", default=None, null=True,
                       filter="eq", sort=True, index=True)  # fmt: skip
    target_id = Attr(Uuid, "The port; null: all ports.", write="c", default=None, null=True, filter="eq", sort=True,
                     index=True)  # fmt: skip
    event = Attr(Enum("ALL", "ACCEPT", "DROP"), "Which packets.", write="c", default="ALL", filter="eq", sort=True)
    enabled = Attr(LooseBool, "Whether it is written.", write="cu", default=True, filter="eq", sort=True)
