"""Find the rows others refer to, as the caller may see them; refusals carry Neutron's names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import sqlalchemy as sa

from nubila.core.cloud import Cloud
from nubila.core.db import Reader, Tx
from nubila.core.declare import Resource
from nubila.core.faults import Fault, bad_request, conflict, not_found
from nubila.core.remember import remembered
from nubila.core.types import is_uuid
from nubila.services.network import rbac
from nubila.services.network.kinds import AddressScope, FloatingIP, Network, Router, Subnet, SubnetPool, by_id
from nubila.services.network.kinds_local_ip import LocalIP
from nubila.services.network.kinds_logging import Log
from nubila.services.network.kinds_metering import MeteringLabel, MeteringLabelRule
from nubila.services.network.kinds_port import Port, SecurityGroup, SecurityGroupRule
from nubila.services.network.kinds_qos import QosPolicy
from nubila.services.network.kinds_security import AddressGroup, DefaultSecurityGroupRule
from nubila.services.network.kinds_segment import Segment
from nubila.services.network.kinds_trunk import Trunk
from nubila.services.network.tables import IP_ALLOCATION

Row = dict[str, Any]

NOT_FOUND: dict[type[Resource], str] = {
    Port: "PortNotFound", Network: "NetworkNotFound", Subnet: "SubnetNotFound", Router: "RouterNotFound",
    FloatingIP: "FloatingIPNotFound", SecurityGroup: "SecurityGroupNotFound", SubnetPool: "SubnetPoolNotFound",
    SecurityGroupRule: "SecurityGroupRuleNotFound", AddressScope: "AddressScopeNotFound",
    Log: "LogResourceNotFound", LocalIP: "LocalIPNotFound", AddressGroup: "AddressGroupNotFound",
    DefaultSecurityGroupRule: "DefaultSecurityGroupRuleNotFound",
    QosPolicy: "QosPolicyNotFound", Trunk: "TrunkNotFound", Segment: "SegmentNotFound",
    MeteringLabel: "MeteringLabelNotFound", MeteringLabelRule: "MeteringLabelRuleNotFound",
}  # fmt: skip
_by_id = remembered(by_id)

_SUBNETS = (
    sa.select(Subnet.table)
    .where(Subnet.table.c.network_id == sa.bindparam("network"))
    .order_by(Subnet.table.c.created_at, Subnet.table.c.id)
)
_ADDRESSES = (
    sa.select(IP_ALLOCATION.c.subnet_id, IP_ALLOCATION.c.ip_address)
    .where(IP_ALLOCATION.c.port_id == sa.bindparam("port"))
    .order_by(IP_ALLOCATION.c.place)
)


def row(reader: Reader, cls: type[Resource], id: str) -> Row | None:
    """A row by id, whoever asks."""
    return reader.one(_by_id(cls), {"id": id})


def need(reader: Reader, cls: type[Resource], id: str) -> Row:
    """A row by id, else a 404 in Neutron's words."""
    found = row(reader, cls, id)
    if found is None:
        raise missing(cls, id)
    return found


def missing(cls: type[Resource], id: str) -> Fault:
    """The 404 of a kind."""
    assert cls.rest is not None
    return not_found(cls.rest.item, id, NOT_FOUND.get(cls, ""))


def seen(cloud: Cloud, reader: Reader, creds: Any, cls: type[Resource], id: str) -> Row:
    """A row by id if the caller may see it, else 404. ``creds`` None: the cloud itself asks."""
    found = row(reader, cls, id)
    if found is None or (creds is not None and not visible(cloud, creds, cls, found, reader)):
        raise missing(cls, id)
    return found


def visible(
    cloud: Cloud, creds: Any, cls: type[Resource], found: Mapping[str, Any], reader: Reader | None = None
) -> bool:
    """Whether policy lets the caller see the row; without a ``reader`` only what is shared with everybody counts."""
    assert cls.rest is not None
    target: Mapping[str, Any] = wire(cls, found)
    if reader is not None:
        target = rbac.target(reader, creds, cls, target)
    return bool(cloud.policy.enforce(cls.rest.rules["show"], creds, target))


def wire(cls: type[Resource], found: Mapping[str, Any]) -> dict[str, Any]:
    """The row under its names on the wire, as policy rules call them."""
    target = dict(found)
    for name in ("external", "network_owner", "group_owner"):
        if name in found:
            target[cls.attrs[name].api] = found[name]
    return target


def lock(tx: Tx, cls: type[Resource], id: str) -> None:
    """Let nobody else change what hangs on this row until the transaction ends (SQLite has one writer anyway).

    What is decided from the row must be read after this.
    """
    if tx.dialect != "sqlite":
        tx.one(_lock(cls), {"id": id})


@remembered
def _lock(cls: type[Resource]) -> sa.Select[Any]:
    return sa.select(cls.table.c.id).where(cls.table.c.id == sa.bindparam("id")).with_for_update()


def subnets(reader: Reader, network_id: str) -> list[Row]:
    """All subnets of a network, oldest first."""
    return reader.all(_SUBNETS, {"network": network_id})


def addresses_of(reader: Reader, port_id: str) -> list[dict[str, str]]:
    """``fixed_ips`` of one port."""
    return [{"subnet_id": s, "ip_address": a} for s, a in reader.rows(_ADDRESSES, {"port": port_id})]


def uuid(field: str, value: Any, type: str = "HTTPBadRequest") -> str:
    """The value if it is a UUID, else a 400 that names the field."""
    if not isinstance(value, str) or not is_uuid(value):
        raise bad_request(f"Invalid input for {field}: '{value}' must be a UUID.", type)
    return value


def check_revision(call: Any, before: Mapping[str, Any]) -> None:
    """Refuse (412) an update whose ``If-Match: revision_number=N`` does not name the current revision."""
    match = call.headers.get("if-match")
    if not match:
        return
    name, _, number = match.partition("=")
    if name.strip() != "revision_number" or not number.strip().isdigit():
        raise bad_request("The If-Match header must read revision_number=NUMBER.", "HTTPBadRequest")
    if int(number) != before["revision_number"]:
        raise Fault(
            412,
            f"The resource has revision {before['revision_number']}, not {int(number)}; read it again.",
            "RevisionNumberConstraintFailed",
        )


def in_use(what: str, id: str, why: str, type: str) -> Fault:
    """409: something cannot go because of what hangs on it."""
    return conflict(f"{what.capitalize()} {id} is in use. {why}", type)


def own_project(call: Any, row: Mapping[str, Any]) -> dict[str, Any]:
    """Target hook: refuse (400) a create for another project by anybody but administrators, as Neutron does."""
    if call.method == "POST" and not row.get("project_id"):
        raise bad_request("project_id is required: the token is not scoped to a project.", "HTTPBadRequest")
    if call.method == "POST" and row.get("project_id") != call.creds.project_id and not call.may("context_is_admin"):
        text = "Specifying 'project_id' or 'tenant_id' other than the authenticated project requires admin privileges."
        raise bad_request(text, "HTTPBadRequest")
    return {}
