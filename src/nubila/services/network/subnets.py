"""Subnets: what follows from creating, changing and deleting one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import sqlalchemy as sa

from nubila.core import clock, quota
from nubila.core.call import Call
from nubila.core.db import Reader, Tx
from nubila.core.faults import bad_request, conflict
from nubila.core.query import ListQuery
from nubila.core.service import Hooks
from nubila.services.network import (
    addresses,
    allocate,
    asks,
    fixed,
    look,
    network_segments,
    paging,
    placing,
    pools,
    prefix_delegation,
    rbac,
    segments,
    subnet_checks,
    tags,
)
from nubila.services.network.asks import DHCP, FLOATING, INTERFACES, ROUTER_OWNERS
from nubila.services.network.kinds import AUTO, Network, Subnet
from nubila.services.network.kinds_port import Port
from nubila.services.network.subnet_checks import refuse
from nubila.services.network.tables import IP_ALLOCATION

Row = dict[str, Any]
_P, _A, _S = Port.table.c, IP_ALLOCATION.c, Subnet.table.c
_HOLDERS = sa.select(_P.id, _P.device_owner).join(IP_ALLOCATION, _A.port_id == _P.id).where(
    _A.subnet_id == sa.bindparam("subnet")
)  # fmt: skip
_GATEWAY_PORT = sa.select(_P.id).join(IP_ALLOCATION, _A.port_id == _P.id).where(
    _A.subnet_id == sa.bindparam("subnet"), _A.ip_key == sa.bindparam("key"), _P.device_owner.in_(ROUTER_OWNERS)
)  # fmt: skip
_INSIDE = sa.select(Port.table).where(
    _P.network_id == sa.bindparam("network"), _P.device_owner.not_in((*ROUTER_OWNERS, FLOATING))
)  # fmt: skip
_DELETE = sa.delete(Subnet.table).where(_S.id == sa.bindparam("b_id"))
_EMPTY = sa.delete(IP_ALLOCATION).where(_A.subnet_id == sa.bindparam("b_subnet"))
_LAST_PLACE = sa.select(sa.func.max(_A.place)).where(_A.port_id == sa.bindparam("port"))


def target(call: Call, row: Row) -> Mapping[str, Any]:
    """A subnet belongs to its network: a new one takes over who owns and sees the network."""
    look.own_project(call, row)
    if not row.get("network_owner") and row.get("network_id"):
        _copy(call, row)
    return rbac.Reach(call.tx, call.creds, Subnet, row)


def _copy(call: Call, row: Row) -> None:
    net = call.memo.get(row["network_id"])
    if net is None:
        net = look.need(call.tx, Network, look.uuid("network_id", row["network_id"]))
        call.memo[row["network_id"]] = net
    row["network_owner"], row["shared"], row["external"] = net["project_id"], net["shared"], net["external"]


def prepare(call: Call, values: Row) -> None:
    _copy(call, values)
    look.lock(call.tx, Network, values["network_id"])
    _addresses(call, values)
    net = call.memo[values["network_id"]]
    segments.least_mtu(net["id"], net["mtu"], [values["ip_version"]])
    finish(call.tx, values)
    network_segments.check_subnet(call.tx, values)
    values["tags"] = tags.clean(values["tags"])


def _addresses(call: Call, values: Row) -> None:
    """CIDR and version, from the request or from a pool."""
    pool_id = values.get("subnetpool_id")
    if values.get("use_default_subnetpool"):
        if pool_id:
            raise bad_request("use_default_subnetpool: leave it out beside subnetpool_id.", "BadRequest")
        delegated = prefix_delegation.is_default(call, values)
        pool_id = prefix_delegation.POOL if delegated else pools.default(call, values.get("ip_version") or 4)["id"]
    if values.get("prefixlen") is not None and values.get("cidr"):
        raise bad_request("Bad subnets request: prefixlen: leave it out beside cidr.", "BadRequest")
    if pool_id == prefix_delegation.POOL and values.get("cidr"):  # nothing to delegate then, as Neutron sees it
        pool_id = values["subnetpool_id"] = None
    if not pool_id:
        if not values.get("cidr"):
            text = "Bad subnets request: give a cidr, or a subnetpool_id to take one from."
            raise bad_request(text, "BadRequest")
        if values.get("prefixlen") is not None:
            raise bad_request("Bad subnets request: prefixlen needs a subnetpool.", "BadRequest")
        values["ip_version"] = subnet_checks.version(values)
        pools.without_pool(call.tx, values["network_id"], values["ip_version"])
        return
    if pool_id == prefix_delegation.POOL:
        prefix_delegation.prepare(call, values)
    else:
        pools.cut(call, values, pool_id)


def finish(tx: Reader, values: Row) -> None:
    """Check everything and fill in what follows from the CIDR."""
    values["cidr"] = str(addresses.network(values["cidr"]))
    subnet_checks.cidr(values["cidr"], values["ip_version"], values["enable_dhcp"])
    subnet_checks.modes(values)
    for other in look.subnets(tx, values["network_id"]):
        if prefix_delegation.pending(other) or prefix_delegation.pending(values):
            continue
        if addresses.overlap(other["cidr"], values["cidr"]):
            raise refuse(
                f"cidr {values['cidr']} overlaps with another subnet of network {values['network_id']}."  # clients look
            )
    if values["gateway_ip"] == AUTO:
        values["gateway_ip"] = addresses.default_gateway(values["cidr"])
    subnet_checks.gateway(values)
    asked = values["allocation_pools"]
    if asked is None:
        values["allocation_pools"] = addresses.default_pools(values["cidr"], values["gateway_ip"])
    else:
        values["allocation_pools"] = subnet_checks.pools(values, asked)
    values["dns_nameservers"] = subnet_checks.servers(values["dns_nameservers"] or [], values["ip_version"])
    values["service_types"] = _service_types(values["service_types"] or [])
    values["host_routes"] = subnet_checks.routes(
        values["host_routes"] or [], values["ip_version"], "host_routes", subnet_checks.MAX_ROUTES
    )


def _service_types(given: list[str]) -> list[str]:
    if len(set(given)) != len(given) or not all(":" in one for one in given):
        raise refuse("service_types are different device owners such as compute:nova.", "InvalidServiceType")
    return given


def created(call: Call, row: Row) -> None:
    tags.store(call.tx, row["id"], row["tags"], fresh=True)
    settled(call.cloud, call.tx, row)


def settled(cloud: Any, tx: Tx, row: Row) -> None:
    """What follows from a new subnet: automatic addresses for ports that are there, DHCP, hosts."""
    if row["segment_id"]:
        network_segments.subnets_changed(tx, row["network_id"])
        row["host_routes"] = look.need(tx, Subnet, row["id"])["host_routes"]
    if fixed.is_auto(row):
        for port in tx.all(_INSIDE, {"network": row["network_id"]}):
            if row["segment_id"] and not network_segments.on([row], _segment_of(tx, port)):
                continue
            ip = addresses.eui64(row["cidr"], port["mac_address"])
            allocate.take(tx, row, ip, port["id"], (tx.scalar(_LAST_PLACE, {"port": port["id"]}) or 0) + 1)
            asks.port(tx, port)
    if row["enable_dhcp"] and not placing.dhcp(cloud, tx, row["network_id"]):
        tx.ask("dhcp", row["network_id"])
    asks.network(tx, row["network_id"], external=row["external"])
    allocate.bump(tx, Network, [row["network_id"]], clock.now())


def _segment_of(tx: Tx, port: Row) -> Row | None:
    return network_segments.at(tx, port["network_id"], port["bound_host"])


def prepare_update(call: Call, before: Row, values: Row) -> None:
    look.check_revision(call, before)
    prefix_delegation.check_update(before, values)
    after = {**before, **values}
    if values.get("gateway_ip") == AUTO:
        del values["gateway_ip"]
        after["gateway_ip"] = before["gateway_ip"]
    if "gateway_ip" in values and values["gateway_ip"] != before["gateway_ip"]:
        subnet_checks.gateway(after)
        if before["gateway_ip"] is not None and addresses.contains(before["cidr"], before["gateway_ip"]):
            where = {"subnet": before["id"], "key": addresses.key(before["gateway_ip"])}
            if (port := call.tx.scalar(_GATEWAY_PORT, where)) is not None:
                text = f"gateway_ip: port {port} has {before['gateway_ip']}; delete it before the address changes."
                raise conflict(text, "GatewayIpInUse")
    if values.get("allocation_pools", 0) is None:
        del values["allocation_pools"]
    if "allocation_pools" in values:
        values["allocation_pools"] = subnet_checks.pools(after, values["allocation_pools"])
    elif "gateway_ip" in values:
        subnet_checks.pools(after, before["allocation_pools"])
    _lists(before, after, values)
    if values.get("segment_id", before["segment_id"]) != before["segment_id"]:
        look.lock(call.tx, Network, before["network_id"])
        network_segments.check_subnet(call.tx, after, before)


def _lists(before: Row, after: Row, values: Row) -> None:
    """What is told to guests, and whether DHCP may be switched."""
    if "dns_nameservers" in values:
        values["dns_nameservers"] = subnet_checks.servers(values["dns_nameservers"] or [], before["ip_version"])
    if "host_routes" in values:
        values["host_routes"] = subnet_checks.routes(
            values["host_routes"] or [], before["ip_version"], "host_routes", subnet_checks.MAX_ROUTES
        )
    if "service_types" in values:
        values["service_types"] = _service_types(values["service_types"] or [])
    if values.get("enable_dhcp") is False:
        subnet_checks.modes(after)
    elif values.get("enable_dhcp"):
        subnet_checks.cidr(before["cidr"], before["ip_version"], True)


def updated(call: Call, before: Row, after: Row) -> None:
    tx, network = call.tx, before["network_id"]
    if before["enable_dhcp"] != after["enable_dhcp"]:
        tx.execute(sa.update(Subnet.table).where(_S.id == before["id"]).values(enable_dhcp=after["enable_dhcp"]))
        if not placing.dhcp(call.cloud, tx, network):
            tx.ask("dhcp", network)
    if after["segment_id"]:
        network_segments.subnet_changed(tx, before, after)
        placing.dhcp(call.cloud, tx, network)
    names = ("gateway_ip", "enable_dhcp", "dns_nameservers", "host_routes", "segment_id")
    if any(before[n] != after[n] for n in names):
        asks.network(tx, network, external=before["external"])
    if before["gateway_ip"] != after["gateway_ip"] or (
        before["ipv6_ra_mode"] and before["dns_nameservers"] != after["dns_nameservers"]
    ):
        asks.routers_of(tx, network)


def deleting(call: Call, row: Row) -> None:
    tx = call.tx
    look.lock(tx, Network, row["network_id"])
    automatic = fixed.is_auto(row)
    holders = tx.rows(_HOLDERS, {"subnet": row["id"]})
    for _, owner in holders:
        if owner == DHCP or (automatic and owner not in INTERFACES):
            continue
        why = "Ports have addresses of it: delete them first."
        raise look.in_use("subnet", row["id"], why, "SubnetInUse")
    row["_ports"] = [id for id, owner in holders if owner != DHCP]
    tx.execute(_EMPTY, {"b_subnet": row["id"]})
    tags.forget(tx, row["id"])


def deleted(call: Call, row: Row) -> None:
    tx = call.tx
    if row["segment_id"]:
        network_segments.subnets_changed(tx, row["network_id"], gone=row)
    placing.dhcp(call.cloud, tx, row["network_id"])
    asks.network(tx, row["network_id"], external=row["external"])
    for id in row["_ports"]:
        port = look.row(tx, Port, id)
        if port is not None:
            asks.port(tx, port)
    allocate.bump(tx, Network, [row["network_id"]], clock.now())


def remove(tx: Tx, row: Row) -> None:
    """Delete a subnet together with its network."""
    tx.execute(_EMPTY, {"b_subnet": row["id"]})
    tags.forget(tx, row["id"])
    tx.execute(_DELETE, {"b_id": row["id"]})
    if row["project_id"]:
        quota.release(tx, row["project_id"], {"subnet": 1})


def scope(call: Call, q: ListQuery) -> list[Any]:
    return [*paging.adapt(call, Subnet, q), *rbac.narrow(call, Subnet, q)]


HOOKS = Hooks(
    prepare=prepare,
    created=created,
    prepare_update=prepare_update,
    updated=updated,
    deleting=deleting,
    deleted=deleted,
    target=target,
    scope=scope,
    own_filters=(*tags.FILTERS, "shared"),
    column_for=lambda call, name: rbac.column(call, Subnet, name),
)


def insert(cloud: Any, tx: Tx, net: Row, values: Row) -> Row:
    """Make a subnet for the cloud itself (bootstrap)."""
    now = clock.now()
    row = {
        "id": clock.new_id(), "project_id": net["project_id"], "description": "", "created_at": now, "updated_at": now,
        "revision_number": 0, "name": "", "network_id": net["id"], "ip_version": 4, "gateway_ip": AUTO,
        "allocation_pools": None, "enable_dhcp": True, "dns_nameservers": [], "host_routes": [], "ipv6_ra_mode": None,
        "ipv6_address_mode": None, "subnetpool_id": None, "segment_id": None, "service_types": [], "tags": [],
        "network_owner": net["project_id"],
        "shared": net["shared"], "external": net["external"], **values,
    }  # fmt: skip
    finish(tx, row)
    if row["project_id"]:
        quota.count(tx, row["project_id"], {"subnet": 1})
    tx.insert(Subnet.table, row)
    settled(cloud, tx, row)
    return row
