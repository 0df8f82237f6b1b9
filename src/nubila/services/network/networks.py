"""Networks: what follows from creating, changing and deleting one."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa

from nubila.core import clock, hosts, quota
from nubila.core.call import Call
from nubila.core.db import Reader, Tx
from nubila.core.faults import Fault, bad_request, conflict
from nubila.core.query import ListQuery
from nubila.core.service import Hooks
from nubila.services.network import (
    asks,
    floating,
    groups,
    look,
    network_segments,
    paging,
    placing,
    ports,
    pvlan,
    qos_guarantees,
    qos_use,
    rbac,
    segments,
    subnets,
    tags,
    transparent,
)
from nubila.services.network.asks import DHCP, FLOATING, GATEWAY
from nubila.services.network.kinds import AddressScope, Network, Router, Subnet, SubnetPool
from nubila.services.network.kinds_port import Port
from nubila.services.network.tables import DHCP_BINDING

Row = dict[str, Any]
_P, _S, _N = Port.table.c, Subnet.table.c, Network.table.c
_SUBNETS = (
    sa.select(_S.network_id, _S.id, _S.subnetpool_id, _S.ip_version, _S.segment_id)
    .where(_S.network_id.in_(sa.bindparam("networks", expanding=True)))
    .order_by(_S.created_at, _S.id)
)
_ZONES = sa.select(DHCP_BINDING.c.network_id, hosts.TABLE.c.zone).join(
    hosts.TABLE, hosts.TABLE.c.name == DHCP_BINDING.c.host
).where(
    DHCP_BINDING.c.network_id.in_(sa.bindparam("networks", expanding=True)), DHCP_BINDING.c.state != "taken"
)  # fmt: skip
_PORTS = sa.select(Port.table).where(_P.network_id == sa.bindparam("network"))
_USERS = sa.select(_P.project_id).where(
    _P.network_id == sa.bindparam("network"), _P.project_id != "", _P.device_owner.not_in((FLOATING, GATEWAY))
).distinct()  # fmt: skip
_GATEWAYS_OF = (
    sa.select(Router.table.c.project_id)
    .join(Port.table, _P.id == Router.table.c.gw_port_id)
    .where(_P.network_id == sa.bindparam("network"))
    .distinct()
)
_OUTSIDE = sa.select(_P.id).where(
    _P.network_id == sa.bindparam("network"), _P.device_owner.in_((FLOATING, GATEWAY))
).limit(1)  # fmt: skip
_FORGET_DHCP = sa.delete(DHCP_BINDING).where(DHCP_BINDING.c.network_id == sa.bindparam("b_network"))
_DEFAULT = sa.select(_N.id).where(_N.is_default.is_(True), _N.id != sa.bindparam("id"))
_SCOPES = (
    sa.select(SubnetPool.table.c.id, AddressScope.table.c.id, AddressScope.table.c.ip_version)
    .join(AddressScope.table, AddressScope.table.c.id == SubnetPool.table.c.address_scope_id)
    .where(SubnetPool.table.c.id.in_(sa.bindparam("pools", expanding=True)))
)


def check_zones(tx: Reader, hints: Any, role: str) -> None:
    """404 unless every zone hint is a zone with network hosts."""
    if not isinstance(hints, list) or len(hints) > 10 or len(set(hints)) != len(hints):
        raise bad_request("Invalid input for availability_zone_hints: up to 10 different zones.", "InvalidInput")
    known = {h["zone"] for h in hosts.every(tx) if role in h["roles"]} if hints else set()
    for hint in hints:
        if hint not in known:
            raise Fault(404, f"AvailabilityZone {hint} could not be found.", "AvailabilityZoneNotFound")


def prepare(call: Call, values: Row) -> None:
    settings = call.cloud.settings
    parts = network_segments.asked(call.tx, settings, values)
    transparent.check(call.tx, values, parts)
    values["dns_domain"] = segments.domain(values["dns_domain"])
    smallest = min((p["network_type"] for p in parts), key=lambda kind: segments.max_mtu(settings, kind))
    values["mtu"] = segments.mtu(settings, smallest, values.get("mtu"))
    check_zones(call.tx, values["availability_zone_hints"], "network")
    values["tags"] = tags.clean(values["tags"])
    _one_default(call.tx, values)
    pvlan.check_network(call.tx, values)
    qos_use.check(call, values)
    values["qos_policy_id"] = values["qos_policy_id"] or qos_use.default(call.tx, values["project_id"])


def _one_default(tx: Tx, row: Row) -> None:
    if row["is_default"] and row["external"] and (other := tx.scalar(_DEFAULT, {"id": row["id"]})):
        raise conflict(f"is_default: network {other} is the default, change it first.", "DefaultExternalNetworkExists")


def created(call: Call, row: Row) -> None:
    network_segments.make(call.tx, call.cloud.settings, row, row.pop("_segments"))
    tags.store(call.tx, row["id"], row["tags"], fresh=True)
    groups.ensure_default(call.cloud, call.tx, row["project_id"])
    if row["external"]:
        rbac.grant(call.tx, Network, row, rbac.EXTERNAL)
        asks.network(call.tx, row["id"], external=True)
    row["subnets"], row["availability_zones"] = [], []


def prepare_update(call: Call, before: Row, values: Row) -> None:
    look.check_revision(call, before)
    if values.pop("segments", None):
        raise bad_request("segments: those of a network change at /v2.0/segments, not here.", "InvalidInput")
    for name in segments.PROVIDER:
        if name in values:
            if values[name] != before[name]:
                raise bad_request("Invalid input for operation: provider attributes cannot be changed.", "InvalidInput")
            del values[name]
    if "mtu" in values:
        values["mtu"] = segments.mtu(call.cloud.settings, before["network_type"], values["mtu"])
        segments.least_mtu(before["id"], values["mtu"], [s["ip_version"] for s in look.subnets(call.tx, before["id"])])
    if "dns_domain" in values:
        values["dns_domain"] = segments.domain(values["dns_domain"])
    after = {**before, **values}
    if before["shared"] and not after["shared"] and _stranded(call.tx, before):
        text = f"shared: other projects have ports on network {before['id']}; it stays shared until they are gone."
        raise conflict(text, "InvalidSharedSetting")
    if before["external"] and not after["external"]:
        floating.drop_unused(call.cloud, call.tx, before["id"])
    if before["external"] and not after["external"] and call.tx.one(_OUTSIDE, {"network": before["id"]}):
        text = f"External network {before['id']} cannot be made non-external: gateways or floating IPs use it."
        raise conflict(text, "ExternalNetworkInUse")
    _one_default(call.tx, after)
    pvlan.check_network(call.tx, after)
    qos_use.check(call, values, before)


def _stranded(reader: Reader, net: Row) -> set[str]:
    """The projects that have ports on the network only because it is shared with everybody."""
    named = {p["target"] for p in rbac.policies(reader, net["id"]) if p["action"] == rbac.SHARED}
    return set(_users(reader, net["id"])) - named - {net["project_id"]}


def _users(reader: Reader, id: str) -> list[str]:
    return [project for (project,) in reader.rows(_USERS, {"network": id})]


def _gateways_of(reader: Reader, id: str) -> list[str]:
    return [project for (project,) in reader.rows(_GATEWAYS_OF, {"network": id})]


def _keep(row: Row, action: str) -> str:
    default = action == rbac.EXTERNAL and row["is_default"]
    return "the default external network must be open to every project." if default else ""


def updated(call: Call, before: Row, after: Row) -> None:
    tx, id = call.tx, before["id"]
    if before["external"] != after["external"]:
        if after["external"]:
            rbac.grant(tx, Network, before, rbac.EXTERNAL)
        else:
            rbac.withdraw(tx, id, rbac.EXTERNAL)
    followed(call, before, after)


def followed(call: Call, before: Row, after: Row) -> None:
    """What follows from changed columns, whoever changed them: a user, or an RBAC policy."""
    tx, id = call.tx, before["id"]
    if (before["shared"], before["external"]) != (after["shared"], after["external"]):
        rbac.copy(tx, after)
    if any(before[n] != after[n] for n in ("mtu", "admin_state_up", "external", "dns_domain")):
        asks.network(tx, id, external=before["external"] or after["external"])
    if any(before[n] != after[n] for n in ("mtu", "admin_state_up", "qos_policy_id")):
        asks.guests_of(tx, id)
    pvlan.switched(tx, before, after)
    if before["qos_policy_id"] != after["qos_policy_id"]:
        qos_guarantees.network(tx, id)
    if before["mtu"] != after["mtu"]:
        asks.routers_of(tx, id)


def deleting(call: Call, row: Row) -> None:
    """Take everything that may go with the network; 409 for what may not."""
    tx, id = call.tx, row["id"]
    look.lock(tx, Network, id)
    floating.drop_unused(call.cloud, tx, id)
    mine = tx.all(_PORTS, {"network": id})
    if any(p["device_owner"] != DHCP for p in mine):
        why = "There are one or more ports still in use on the network."  # clients look for these words
        raise look.in_use("network", id, why, "NetworkInUse")
    row["_hosts"] = asks.network_hosts(tx, id, external=row["external"])
    for host, port_id in placing.bindings(tx, id).items():
        row["_hosts"].add(host)
        placing.unbind(tx, id, host, port_id)
    tx.execute(_FORGET_DHCP, {"b_network": id})  # also what says from which agents it was taken
    for port in mine:
        if look.row(tx, Port, port["id"]) is not None:
            ports.delete(tx, port)
    for subnet in look.subnets(tx, id):
        subnets.remove(tx, subnet)
    network_segments.drop_all(tx, id)
    tags.forget(tx, id)


def deleted(call: Call, row: Row) -> None:
    for host in row["_hosts"]:
        call.tx.ask("network", row["id"], host)


def present(call: Call, rows: list[Row]) -> None:
    ids = [r["id"] for r in rows]
    found: dict[str, list[str]] = {id: [] for id in ids}
    pools: dict[str, str] = {}
    routed: dict[str, bool] = {}
    for network, subnet, pool, _, segment in call.tx.rows(_SUBNETS, {"networks": ids}):
        found[network].append(subnet)
        routed.setdefault(network, segment is not None)
        if pool:
            pools[network] = pool
    zones: dict[str, set[str]] = {}
    for network, zone in call.tx.rows(_ZONES, {"networks": ids}):
        zones.setdefault(network, set()).add(zone)
    scopes: dict[str, tuple[str, int]] = {}
    if pools:
        for pool, scope, version in call.tx.rows(_SCOPES, {"pools": sorted(set(pools.values()))}):
            scopes[pool] = (scope, version)
    network_segments.present(call.tx, rows)
    for row in rows:
        row["subnets"] = found[row["id"]]
        row["l2_adjacency"] = not routed.get(row["id"], False)
        row["availability_zones"] = sorted(zones.get(row["id"], ()))
        row["ipv4_address_scope"] = row["ipv6_address_scope"] = None
        if (hit := scopes.get(pools.get(row["id"], ""))) is not None:
            row[f"ipv{hit[1]}_address_scope"] = hit[0]


def trim(verb: str, row: Row, view: Row) -> None:
    """Neutron says whether an external network is the default one; of others only what was asked at their creation."""
    if verb != "create" and not row["external"]:
        view.pop("is_default", None)
    for name in ("segments",) if row["segments"] is None else [f"provider:{name}" for name in segments.PROVIDER]:
        view.pop(name, None)


def scope(call: Call, q: ListQuery) -> list[Any]:
    return paging.adapt(call, Network, q)


HOOKS = rbac.shareable(Network, Hooks(
    target=look.own_project,
    prepare=prepare,
    created=created,
    prepare_update=prepare_update,
    updated=updated,
    deleting=deleting,
    deleted=deleted,
    present=present,
    trim=trim,
    scope=scope,
    own_filters=tags.FILTERS,
))  # fmt: skip
SHAREABLE = rbac.Shareable(
    kind=Network, uses={rbac.SHARED: _users, rbac.EXTERNAL: _gateways_of}, changed=followed, keep=_keep
)


def insert(cloud: Any, tx: Tx, values: Row) -> Row:
    """Make a network for the cloud itself (bootstrap)."""
    now = clock.now()
    row = {
        "id": clock.new_id(), "project_id": "", "description": "", "created_at": now, "updated_at": now,
        "revision_number": 1, "name": "", "admin_state_up": True, "status": "ACTIVE", "shared": False,
        "external": False,
        "is_default": False, "mtu": 0, "network_type": None, "physical_network": None, "segmentation_id": None,
        "port_security_enabled": True, "dns_domain": "", "host_gateway": False, "qos_policy_id": None, "pvlan": False,
        "several": False, "vlan_transparent": False, "qinq": False,
        "availability_zone_hints": [],
        "tags": [], **values,
    }  # fmt: skip
    segments.check(tx, cloud.settings, row)
    row["mtu"] = segments.mtu(cloud.settings, row["network_type"], row["mtu"])
    if row["project_id"]:
        quota.count(tx, row["project_id"], {"network": 1})
    tx.insert(Network.table, row)
    for name, action in (("shared", rbac.SHARED), ("external", rbac.EXTERNAL)):
        if row[name]:
            rbac.grant(tx, Network, row, action)
    network_segments.make(tx, cloud.settings, row, [{name: row[name] for name in segments.PROVIDER}])
    return row
