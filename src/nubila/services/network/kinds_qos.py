"""QoS policies of the Networking API v2.0, and what kinds of rules there are."""

from __future__ import annotations

import dataclasses
from typing import Any

import sqlalchemy as sa
from msgspec import Struct

from nubila.core.declare import METADATA, Attr
from nubila.core.types import Json, LooseBool
from nubila.services.network.kinds import Named, Tags, rest

INGRESS, EGRESS, ANY = "ingress", "egress", "any"
MOST = 2**31 - 1
DSCP_MARKS = (0, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30, 32, 34, 36, 38, 40, 46, 48, 56)
"""The code points that may be set (class selectors, assured and expedited forwarding; RFC 2474, 2597, 3246)."""


class QosPolicy(Named):
    """Rules about how much, how fast and with which mark ports may send and receive."""

    kind, quota = "qos_policy", "qos_policy"
    rest = dataclasses.replace(rest("policy", "policies"), path="/v2.0/qos/policies")
    shared = Attr(LooseBool, "Whether every project may use it.", write="cu", default=False, filter="eq")
    is_default = Attr(LooseBool, "Whether networks of the project have it when they name none.", write="cu",
                      default=False, filter="eq")  # fmt: skip
    rules = Attr(Json, "Its rules.", store=False)
    tags = Attr(Tags, "Labels.", write="c", default=[])


QOS_RULE = sa.Table(
    "qos_rule",
    METADATA,
    sa.Column("id", sa.String(36), primary_key=True),
    sa.Column("qos_policy_id", sa.String(36), sa.ForeignKey("qos_policy.id"), nullable=False),
    sa.Column("type", sa.String(32), nullable=False),
    sa.Column("direction", sa.String(16), nullable=False),  # "" where the type has none
    sa.Column("value", sa.BigInteger, nullable=False),
    sa.Column("burst", sa.BigInteger, nullable=False),
    sa.UniqueConstraint("qos_policy_id", "type", "direction"),
)
"""All rules of all policies: one value each, for one direction; a policy has few."""

QOS_DEFAULT = sa.Table(
    "qos_policy_default",
    METADATA,
    sa.Column("project_id", sa.String(255), primary_key=True),
    sa.Column("qos_policy_id", sa.String(36), sa.ForeignKey("qos_policy.id"), nullable=False, index=True),
)
"""The default policy of each project; the key makes a second one impossible."""


class RuleType(Struct, frozen=True, kw_only=True):
    """One kind of rule: the names of its parts on the wire, and what they may be."""

    name: str
    value: str
    burst: str = ""
    directions: tuple[str, ...] = ()
    values: tuple[int, ...] = ()  # () = 0 to 2^31-1
    alias: bool = True  # reachable without its policy
    supported: bool = True  # hosts do what it says

    @property
    def item(self) -> str:
        """The key around one."""
        return f"{self.name}_rule"

    def parameters(self) -> list[dict[str, Any]]:
        """What may be said in a rule, as rule types are shown."""
        whole = {"start": 0, "end": MOST}
        found = [_parameter(self.value, list(self.values) or whole)]
        if self.burst:
            found.append(_parameter(self.burst, whole))
        if self.directions:
            found.append(_parameter("direction", list(self.directions)))
        return found

    def schema(self, verb: str) -> dict[str, Any]:
        """JSON Schema of one in a request."""
        number = {"anyOf": [{"type": "integer", "minimum": 0, "maximum": MOST},
                            {"type": "string", "pattern": "^[0-9]{1,10}$"}]}  # fmt: skip
        properties: dict[str, Any] = {self.value: number}
        if self.burst:
            properties[self.burst] = number
        if self.directions:
            properties["direction"] = {"enum": list(self.directions)}
        required = [self.value] if verb == "create" else []
        return {"type": "object", "properties": properties, "required": required, "additionalProperties": False}


def _parameter(name: str, values: Any) -> dict[str, Any]:
    kind = "range" if isinstance(values, dict) else "choices"
    return {"parameter_name": name, "parameter_type": kind, "parameter_values": values}


BANDWIDTH_LIMIT = RuleType(
    name="bandwidth_limit", value="max_kbps", burst="max_burst_kbps", directions=(INGRESS, EGRESS)
)  # fmt: skip
PACKET_RATE_LIMIT = RuleType(
    name="packet_rate_limit", value="max_kpps", burst="max_burst_kpps", directions=(INGRESS, EGRESS), alias=False
)
DSCP_MARKING = RuleType(name="dscp_marking", value="dscp_mark", values=DSCP_MARKS)
MINIMUM_BANDWIDTH = RuleType(name="minimum_bandwidth", value="min_kbps", directions=(INGRESS, EGRESS))
MINIMUM_PACKET_RATE = RuleType(name="minimum_packet_rate", value="min_kpps", directions=(INGRESS, EGRESS, ANY))
RULE_TYPES = {
    t.name: t for t in (BANDWIDTH_LIMIT, PACKET_RATE_LIMIT, DSCP_MARKING, MINIMUM_BANDWIDTH, MINIMUM_PACKET_RATE)
}
