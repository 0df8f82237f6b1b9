"""What Compute (and other services) ask of networking, inside their own transaction."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import sqlalchemy as sa

from nubila.core import hosts
from nubila.core.cloud import Cloud
from nubila.core.db import Reader, Tx
from nubila.core.faults import conflict
from nubila.services.network import (
    addresses,
    bridged,
    dvr_hosts,
    groups,
    look,
    network_segments,
    ports,
    qos_guarantees,
    rbac,
)
from nubila.services.network.asks import DHCP, INTERFACES
from nubila.services.network.kinds import FloatingIP, Network, Subnet
from nubila.services.network.kinds_port import Port, SecurityGroup
from nubila.services.network.qos_guarantees import NO_ROOM, Request, choices, held, hold, shares
from nubila.services.network.tables import IP_ALLOCATION, PORT_GROUP

Row = dict[str, Any]
__all__ = ["NO_ROOM", "Request", "choices", "held", "hold", "shares"]  # how servers hold what ports are guaranteed

_P, _N, _A, _F = Port.table.c, Network.table.c, IP_ALLOCATION.c, FloatingIP.table.c
_PORTS = (
    sa.select(_P.id, _P.device_id, _P.network_id, _P.mac_address, _P.status, _P.device_owner, _P.host_id, _P.profile,
              _P.vif_type, _N.name.label("network_name"), _N.mtu)
    .join(Network.table, _N.id == _P.network_id)
    .where(_P.device_id.in_(sa.bindparam("devices", expanding=True)))
    .order_by(_P.created_at, _P.id)
)  # fmt: skip
_IPS = (
    sa.select(_A.port_id, _A.subnet_id, _A.ip_address)
    .where(_A.port_id.in_(sa.bindparam("ports", expanding=True)))
    .order_by(_A.port_id, _A.place)
)
_FLOATING = sa.select(_F.port_id, _F.floating_ip_address, _F.fixed_ip_address).where(
    _F.port_id.in_(sa.bindparam("ports", expanding=True))
)
_GROUPS = (
    sa.select(PORT_GROUP.c.port_id, SecurityGroup.table.c.name)
    .join(SecurityGroup.table, SecurityGroup.table.c.id == PORT_GROUP.c.security_group_id)
    .where(PORT_GROUP.c.port_id.in_(sa.bindparam("ports", expanding=True)))
    .order_by(PORT_GROUP.c.port_id, SecurityGroup.table.c.name)
)
_NOT_WIRED = sa.select(sa.func.count()).where(
    _P.id.in_(sa.bindparam("ports", expanding=True)), _P.status == "ACTIVE", _P.bound_host == sa.bindparam("host")
)
_OWN = sa.select(Network.table).where(_N.project_id == sa.bindparam("project")).order_by(_N.created_at, _N.id)
_SHARED = sa.select(Network.table).where(_N.id.in_(rbac.GRANTED_TO)).order_by(_N.created_at, _N.id)
_WITH_SUBNETS = sa.select(Subnet.table.c.network_id).distinct()
_AT = (
    sa.select(Port.table)
    .join(IP_ALLOCATION, _A.port_id == _P.id)
    .where(_A.network_id == sa.bindparam("network"), _A.ip_key == sa.bindparam("key"))
)
_WITH_MAC = sa.select(Port.table).where(_P.network_id == sa.bindparam("network"), _P.mac_address == sa.bindparam("mac"))
_BEHIND = (
    sa.select(Port.table)
    .join(IP_ALLOCATION, _A.port_id == _P.id)
    .where(
        _A.ip_key == sa.bindparam("key"),
        _A.network_id.in_(
            sa.select(_P.network_id)
            .where(_P.device_id == sa.bindparam("router"), _P.device_owner.in_(INTERFACES))
            .correlate(None)
        ),
    )
)


def create_port(
    cloud: Cloud,
    tx: Tx,
    *,
    project_id: str,
    network_id: str,
    fixed_ip: str | None,
    security_group_ids: list[str] | None,
    device_id: str,
    device_owner: str,
    host: str | None,
    name: str = "",
    mac: str | None = None,
    dns_name: str = "",
    creds: Any = None,
) -> Row:
    """Make a port for a device and return its row with ``fixed_ips``.

    ``dns_name``: what the device calls itself; nothing happens when that is no host name.

    ``security_group_ids`` None: the project's default group. ``host`` None: not wired yet. ``creds`` None: the cloud
    itself asks. Raises the Faults of the API: NetworkNotFound 404, SecurityGroupNotFound 404, InvalidIpForNetwork 400,
    IpAddressAlreadyAllocated 409, IpAddressGenerationFailure 409, MacAddressInUse 409, OverQuota 409.
    """
    more: Row = {} if security_group_ids is None else {"security_groups": list(security_group_ids)}
    if fixed_ip is not None:
        more["fixed_ips"] = [{"ip_address": fixed_ip}]
    if ports.is_host_name(dns_name):
        more["dns_name"] = dns_name
    return ports.create(
        cloud, tx, creds, project_id=project_id, network_id=network_id, name=name, mac_address=mac, host_id=host or "",
        device_id=device_id, device_owner=device_owner, **more,
    )  # fmt: skip


def attach_port(
    cloud: Cloud, tx: Tx, port_id: str, *, device_id: str, device_owner: str, host: str | None, creds: Any = None
) -> Row:
    """Plug an existing port into a device; 404 PortNotFound, 409 PortInUse when it has another."""
    look.lock(tx, Port, port_id)
    row = look.seen(cloud, tx, creds, Port, port_id)
    if row["device_id"] and row["device_id"] != device_id:
        text = f"Port {port_id} is in use by device {row['device_id']}; detach it there first."
        raise conflict(text, "PortInUse")
    after = ports.bind(tx, row, host or "", device_id=device_id, device_owner=device_owner)
    after["fixed_ips"] = look.addresses_of(tx, port_id)
    return after


def guaranteed(reader: Reader, port_ids: Iterable[str], network_ids: Iterable[str]) -> list[Request]:
    """What a host must guarantee to existing ports, and to ports to be made on networks."""
    return qos_guarantees.requests(reader, port_ids, network_ids)


def hosts_reaching(
    reader: Reader, port_ids: Iterable[str], network_ids: Iterable[str], names: Iterable[str]
) -> set[str]:
    """Those of the hosts on which these ports, and new ports on these networks, can be bound (segments)."""
    taken = [row for id in port_ids if (row := look.row(reader, Port, id)) is not None]
    nets = network_segments.with_several(reader, [*network_ids, *(row["network_id"] for row in taken)])
    at: dict[str, str] = {}
    for row in taken if nets else ():
        mine = {ip["subnet_id"] for ip in look.addresses_of(reader, row["id"])}
        for subnet in look.subnets(reader, row["network_id"]):
            if subnet["id"] in mine and subnet["segment_id"]:
                at[row["network_id"]] = subnet["segment_id"]
    known = [h for h in hosts.every(reader) if h["name"] in set(names)]
    fit = bridged.able(reader, known, network_ids, port_ids, guest=True)
    reaching = network_segments.reaching(reader, fit, nets, at) if nets else fit
    for id in {*network_ids, *(row["network_id"] for row in taken)} - set(nets):
        net = look.row(reader, Network, id)
        if net is not None:
            reaching = [h for h in reaching if dvr_hosts.reaches(h, net)]
    return {h["name"] for h in reaching}


def detach_port(cloud: Cloud, tx: Tx, port_id: str) -> None:
    """Unplug a port: no device, no host. A port that is gone is fine."""
    look.lock(tx, Port, port_id)
    row = look.row(tx, Port, port_id)
    if row is not None:
        ports.bind(tx, row, "", device_id="", device_owner="")


def delete_port(cloud: Cloud, tx: Tx, port_id: str) -> None:
    """Delete a port with all that hangs on it. A port that is gone is fine."""
    look.lock(tx, Port, port_id)
    row = look.row(tx, Port, port_id)
    if row is not None:
        ports.delete(tx, row)


def bind_port(cloud: Cloud, tx: Tx, port_id: str, host: str | None) -> None:
    """Wire a port on another host, or on none. A port that is gone is fine."""
    look.lock(tx, Port, port_id)
    row = look.row(tx, Port, port_id)
    if row is not None and row["host_id"] != (host or ""):
        ports.bind(tx, row, host or "")


def ports_of(reader: Reader, device_ids: Sequence[str]) -> dict[str, list[Row]]:
    """The ports of devices, oldest first, with all that servers show about them.

    device id -> [{id, network_id, network_name, mac_address, mtu, status, host_id, vif_type, device_owner, fixed_ips:
    [{ip_address, subnet_id, version}], floating_ips: [{floating, fixed}], security_groups: [name]}]
    """
    out: dict[str, list[Row]] = {id: [] for id in device_ids}
    if not out:
        return out
    rows = reader.all(_PORTS, {"devices": list(out)})
    by_id: dict[str, Row] = {}
    for row in rows:
        by_id[row["id"]] = row
        row["fixed_ips"], row["floating_ips"], row["security_groups"] = [], [], []
        out[row["device_id"]].append(row)
    if by_id:
        ids = {"ports": list(by_id)}
        for port, subnet, ip in reader.rows(_IPS, ids):
            version = 6 if ":" in ip else 4
            by_id[port]["fixed_ips"].append({"ip_address": ip, "subnet_id": subnet, "version": version})
        for port, floating, fixed in reader.rows(_FLOATING, ids):
            by_id[port]["floating_ips"].append({"floating": floating, "fixed": fixed})
        for port, name in reader.rows(_GROUPS, ids):
            by_id[port]["security_groups"].append(name)
    return out


def networks_for(reader: Reader, project_id: str) -> list[Row]:
    """The networks a server of the project gets when none is named: its own that have subnets, else shared ones."""
    usable = {id for (id,) in reader.rows(_WITH_SUBNETS)}
    own = [n for n in reader.all(_OWN, {"project": project_id}) if not n["external"]]
    if own:
        return [n for n in own if n["id"] in usable] or own
    return [n for n in reader.all(_SHARED, {"project": project_id}) if n["id"] in usable and not n["external"]]


def network_visible(reader: Reader, creds: Any, id: str, cloud: Cloud | None = None) -> Row | None:
    """The network if the caller may see it, by policy, or without ``cloud`` by the default rule."""
    row = look.row(reader, Network, id)
    if row is None:
        return None
    if cloud is not None:
        return row if look.visible(cloud, creds, Network, row, reader) else None
    own = row["project_id"] == creds.project_id or any(rbac.Reach(reader, creds, Network, row).values())
    return row if own or {"admin", "service"} & set(creds.roles) else None


def port_visible(cloud: Cloud, reader: Reader, creds: Any, id: str) -> Row | None:
    """The port if the caller may see it, with ``fixed_ips``."""
    row = look.row(reader, Port, id)
    if row is None or not look.visible(cloud, creds, Port, row, reader):
        return None
    row["fixed_ips"] = look.addresses_of(reader, id)
    return row


def security_group_ids(reader: Reader, project_id: str, names_or_ids: Iterable[str]) -> list[str]:
    """Ids of the project's groups given by name or id; Faults 400 unknown, 409 ambiguous."""
    return groups.by_names(reader, project_id, names_or_ids)


def set_groups(cloud: Cloud, tx: Tx, port_id: str, ids: Sequence[str]) -> None:
    """Put a port in exactly these groups (add/remove security group of a server)."""
    look.lock(tx, Port, port_id)
    row = look.need(tx, Port, port_id)
    values: Row = {"security_groups": list(ids)}
    ports.prepare_change(cloud, tx, row, values, None)
    ports.changed(cloud, tx, row, {**row, **values})


def groups_of_port(reader: Reader, port_id: str) -> list[str]:
    """Ids of the groups a port is in."""
    return groups.of_port(reader, port_id)


def wired(reader: Reader, port_ids: Sequence[str], host: str) -> bool:
    """Whether all the ports are ACTIVE on that host."""
    ids = list(dict.fromkeys(port_ids))
    return not ids or reader.scalar(_NOT_WIRED, {"ports": ids, "host": host}) == len(ids)


def port_at(reader: Reader, *, network_id: str | None, router_id: str | None, address: str) -> Row | None:
    """The guest port with this fixed address on a network, or on any network the router is attached to.

    On a network a link-local IPv6 address stands for the MAC that it is made of.
    """
    key = addresses.key(address)
    if network_id is not None and addresses.contains("fe80::/64", address):
        found = reader.all(_WITH_MAC, {"network": network_id, "mac": addresses.mac_of(address)})
    elif network_id is not None:
        found = reader.all(_AT, {"network": network_id, "key": key})
    else:
        found = reader.all(_BEHIND, {"router": router_id, "key": key})
    return next((p for p in found if p["device_owner"] not in (*INTERFACES, DHCP)), None)
