"""What must be true of Network's rows whenever nothing is being changed; one sentence for each thing that is not.

``nubila doctor`` asks, and every crash test ends with it (DESIGN.md section 4). Only rows are read here; what hosts
really have is compared elsewhere.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import sqlalchemy as sa

from nubila.core import hosts
from nubila.core.cloud import Cloud
from nubila.core.db import Reader
from nubila.services.network import addresses, segments
from nubila.services.network.asks import DHCP, FLOATING, GATEWAY, INTERFACES, ROUTER_OWNERS
from nubila.services.network.dvr_hosts import DVR_INTERFACE
from nubila.services.network.kinds import FloatingIP, Network, Router, Subnet
from nubila.services.network.kinds_l3 import PortForwarding
from nubila.services.network.kinds_port import Port, SecurityGroup
from nubila.services.network.kinds_segment import Segment
from nubila.services.network.tables import DEFAULT_GROUP, DHCP_BINDING, IP_ALLOCATION, PORT_GROUP, SEGMENT, TAG
from nubila.services.network.tags import TAGGED

Row = Mapping[str, Any]


def _table(reader: Reader, table: sa.Table) -> dict[str, dict[str, Any]]:
    return {row["id"]: row for row in reader.all(sa.select(table))}


class _Rows:
    """Everything at one look."""

    def __init__(self, reader: Reader) -> None:
        self.networks, self.subnets = _table(reader, Network.table), _table(reader, Subnet.table)
        self.ports, self.routers = _table(reader, Port.table), _table(reader, Router.table)
        self.floating, self.groups = _table(reader, FloatingIP.table), _table(reader, SecurityGroup.table)
        self.forwardings = _table(reader, PortForwarding.table)
        self.forwarding = {row["floatingip_id"] for row in self.forwardings.values()}
        self.hosts = {h["name"] for h in hosts.every(reader)}
        self.addresses: dict[str, list[Row]] = {}
        for row in reader.all(sa.select(IP_ALLOCATION).order_by(IP_ALLOCATION.c.place)):
            self.addresses.setdefault(row["port_id"], []).append(row)
        self.bindings = reader.all(sa.select(DHCP_BINDING))


def everything(cloud: Cloud, reader: Reader) -> list[str]:
    """All of Network's invariants."""
    rows = _Rows(reader)
    return [
        *_addresses(rows), *_ports(rows), *_floating(rows), *_forwardings(rows), *_dhcp(rows), *_routers(rows),
        *_segments(rows, reader), *_memberships(rows, reader), *_tags(reader),
    ]  # fmt: skip


def _addresses(rows: _Rows) -> Iterator[str]:
    for port_id, mine in rows.addresses.items():
        port = rows.ports.get(port_id)
        if port is None:
            yield f"address {mine[0]['ip_address']} belongs to port {port_id}, which is not there"
            continue
        for one in mine:
            subnet = rows.subnets.get(one["subnet_id"])
            if subnet is None or not one["network_id"] == port["network_id"] == subnet["network_id"]:
                yield f"address {one['ip_address']} of port {port_id} is of another network than the port"
            elif addresses.key(one["ip_address"]) != one["ip_key"]:
                yield f"address {one['ip_address']} of port {port_id} is filed under {one['ip_key']}"
            elif not addresses.contains(subnet["cidr"], one["ip_address"]):
                yield f"address {one['ip_address']} of port {port_id} is outside {subnet['cidr']}"


def _ports(rows: _Rows) -> Iterator[str]:
    for id, port in rows.ports.items():
        owner, device, host = port["device_owner"], port["device_id"], port["bound_host"]
        if port["network_id"] not in rows.networks:
            yield f"port {id} is on network {port['network_id']}, which is not there"
        if host and host not in rows.hosts:
            yield f"port {id} is bound to host {host}, which is not there"
        if host and (port["host_id"] != host or port["vif_type"] not in ("ovs", "bridge")):
            yield f"port {id} is bound to {host} and says {port['host_id']}, {port['vif_type']}"
        if port["status"] == "ACTIVE" and not host and not owner.startswith("network:"):
            yield f"port {id} is ACTIVE on no host"
        if owner == FLOATING and rows.floating.get(device, {}).get("floating_port_id") != id:
            yield f"port {id} holds an address for floating IP {device}, which does not know it"
        if owner == GATEWAY and (r := rows.routers.get(device)) is not None and r["gw_port_id"] != id:
            yield f"port {id} is a second gateway of router {device}"


def _floating(rows: _Rows) -> Iterator[str]:
    for id, f in rows.floating.items():
        own = {a["ip_address"] for a in rows.addresses.get(f["floating_port_id"], ())}
        if f["floating_ip_address"] not in own:
            yield f"floating IP {id}: nobody holds {f['floating_ip_address']}"
        linked = (f["port_id"], f["fixed_ip_address"], f["router_id"])
        if not any(linked):
            if f["status"] == "ACTIVE":
                yield f"floating IP {id} leads nowhere and is ACTIVE"
            continue
        if id in rows.forwarding:
            if linked[:2] != (None, None) or f["router_id"] not in rows.routers:
                yield f"floating IP {id} forwards ports, and leads elsewhere: {linked}"
        elif not all(linked):
            yield f"floating IP {id} is half linked: {linked}"
        elif f["fixed_ip_address"] not in {a["ip_address"] for a in rows.addresses.get(f["port_id"], ())}:
            yield f"floating IP {id} leads to {f['fixed_ip_address']}, which port {f['port_id']} does not have"
        elif f["router_id"] not in rows.routers:
            yield f"floating IP {id} is translated by router {f['router_id']}, which is not there"


def _forwardings(rows: _Rows) -> Iterator[str]:
    for id, one in rows.forwardings.items():
        if one["internal_ip_address"] not in {a["ip_address"] for a in rows.addresses.get(one["internal_port_id"], ())}:
            port = one["internal_port_id"]
            yield f"port forwarding {id} leads to {one['internal_ip_address']}, which port {port} does not have"


def _dhcp(rows: _Rows) -> Iterator[str]:
    bound = {b["port_id"] for b in rows.bindings}
    for b in rows.bindings:
        where = f"DHCP of network {b['network_id']} on {b['host']}"
        if b["host"] not in rows.hosts:
            yield f"{where}: the host is not there"
        if b["port_id"] is None:
            continue
        port = rows.ports.get(b["port_id"])
        if port is None:
            yield f"{where}: its port {b['port_id']} is not there"
        elif (port["network_id"], port["device_owner"], port["bound_host"]) != (b["network_id"], DHCP, b["host"]):
            yield f"{where}: its port {b['port_id']} is somebody else's or elsewhere"
    for id, port in rows.ports.items():
        if port["device_owner"] == DHCP and id not in bound:
            yield f"DHCP port {id} of network {port['network_id']} serves nobody"


def _routers(rows: _Rows) -> Iterator[str]:
    for id, router in rows.routers.items():
        if router["host"] and router["host"] not in rows.hosts:
            yield f"router {id} is on host {router['host']}, which is not there"
        gateway = router["gw_port_id"]
        if gateway is not None:
            port = rows.ports.get(gateway, {})
            if (port.get("device_id"), port.get("device_owner")) != (id, GATEWAY):
                yield f"router {id}: its gateway port {gateway} is not there or somebody else's"
    for id, port in rows.ports.items():
        owner = rows.routers.get(port["device_id"])
        if port["device_owner"] in ROUTER_OWNERS and owner is not None:
            host = "" if port["device_owner"] == DVR_INTERFACE else owner["host"] or ""  # those are everywhere
            failed = port["vif_type"] == "binding_failed"  # no way to the network from there
            if port["bound_host"] != host and not failed:
                yield f"port {id} of router {owner['id']} is on {port['bound_host']}, the router on {owner['host']}"
            if port["device_owner"] in INTERFACES and not rows.addresses.get(id):
                yield f"port {id} of router {owner['id']} has no address"


def _segments(rows: _Rows, reader: Reader) -> Iterator[str]:
    used = {(s["network_type"], s["physical_network"], s["segmentation_id"]): s["network_id"]
            for s in reader.all(sa.select(SEGMENT))}  # fmt: skip
    own: dict[str, list[Any]] = {id: [] for id in rows.networks}
    for one in reader.all(sa.select(Segment.table).order_by(Segment.table.c.place, Segment.table.c.id)):
        id = one["network_id"]
        own.setdefault(id, []).append(tuple(one[name] for name in segments.PROVIDER))
        if one["network_type"] == "local":
            continue
        key = (one["network_type"], one["physical_network"] or "", one["segmentation_id"] or 0)
        if one["network_type"] in segments.TUNNELS and not one["segmentation_id"]:
            yield f"network {id} has no tunnel id"
        if used.pop(key, None) != id:
            yield f"network {id} uses segment {key} without having reserved it"
    for id, net in rows.networks.items():
        first = own[id][0] if own[id] else (None, None, None)
        if tuple(net[name] for name in segments.PROVIDER) != first:
            yield f"network {id} shows another segment than its first one, {first}"
        if len(own[id]) != 1 and not net["several"]:
            yield f"network {id} has {len(own[id])} segments and is not marked so"
    for key, id in used.items():
        yield f"segment {key} is reserved for network {id}, which does not use it"


def _memberships(rows: _Rows, reader: Reader) -> Iterator[str]:
    for m in reader.all(sa.select(PORT_GROUP)):
        port = rows.ports.get(m["port_id"])
        if port is None or m["security_group_id"] not in rows.groups:
            yield f"port {m['port_id']} is in security group {m['security_group_id']}: one of them is not there"
        elif not port["port_security_enabled"]:
            yield f"port {m['port_id']} is in a security group without port security"
    for d in reader.all(sa.select(DEFAULT_GROUP)):
        group = rows.groups.get(d["security_group_id"])
        if group is None or group["project_id"] != d["project_id"]:
            yield f"project {d['project_id']}: its default security group is not there"


def _tags(reader: Reader) -> Iterator[str]:
    filed: dict[str, set[str]] = {}
    for row in reader.all(sa.select(TAG)):
        filed.setdefault(row["resource_id"], set()).add(row["tag"])
    for cls in TAGGED:
        for id, shown in reader.rows(sa.select(cls.table.c.id, cls.table.c.tags)):
            if set(shown or ()) != filed.pop(id, set()):
                yield f"{cls.kind} {id} shows other tags than it is found by"
    for id in filed:
        yield f"tags are kept for {id}, which is not there"


INVARIANTS = (everything,)
