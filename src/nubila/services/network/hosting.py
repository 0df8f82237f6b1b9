"""Networks, ports and routers as one host must make them, and what hosts report back.

``describe_*`` compute a complete spec (core/ports.py) from the rows, None when the thing has no business on that host.
``observe_*`` turn a host's report into statuses. Both see only what is in the database now.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import msgspec
import sqlalchemy as sa

from nubila.core import hosts
from nubila.core.cloud import Cloud
from nubila.core.db import Reader, Tx
from nubila.core.ports import (
    DhcpHost,
    DhcpSpec,
    FixedIp,
    FloatingSpec,
    NetworkSpec,
    PortSpec,
    RouterPort,
    RouterSpec,
    Segment,
    SubnetSpec,
)
from nubila.core.service import HostItem
from nubila.services.network import (
    addresses,
    allocate,
    asks,
    dvr,
    dvr_hosts,
    ha_place,
    l2pop,
    local_ips,
    logs,
    look,
    metering,
    network_segments,
    prefix_delegation,
    pvlan,
    qos_use,
    router_specs,
    segments,
    transparent,
    trunks_links,
)
from nubila.services.network.asks import CENTRAL, DHCP, FLOATING, GATEWAY, INTERFACES, ROUTER_OWNERS
from nubila.services.network.kinds import FloatingIP, Network, Router, Subnet
from nubila.services.network.kinds_port import Port, SecurityGroup
from nubila.services.network.tables import DHCP_BINDING, IP_ALLOCATION, PORT_GROUP

Row = dict[str, Any]
METADATA_ROUTE = "169.254.169.254/32"
_P, _A, _D, _R = Port.table.c, IP_ALLOCATION.c, DHCP_BINDING.c, Router.table.c
_S, _F = Subnet.table.c, FloatingIP.table.c
_ON_NETWORK = (
    sa.select(_P.id, _P.mac_address, _P.device_owner, _P.dns_name, _P.dns_domain, _P.extra_dhcp_opts)
    .where(_P.network_id == sa.bindparam("network"), _P.device_owner.not_in((DHCP, FLOATING)))
    .order_by(_P.id)
)
_IPS_ON_NETWORK = (
    sa.select(_A.port_id, _A.subnet_id, _A.ip_address)
    .where(_A.network_id == sa.bindparam("network"))
    .order_by(_A.port_id, _A.place)
)
_DHCP_IPS = (
    sa.select(_A.subnet_id, _A.ip_address)
    .join(Port.table, _P.id == _A.port_id)
    .where(_A.network_id == sa.bindparam("network"), _P.device_owner == DHCP)
    .order_by(_A.ip_key)
)
_DHCP_PORT = sa.select(_D.port_id).where(_D.network_id == sa.bindparam("network"), _D.host == sa.bindparam("host"))
_ROUTED = sa.select(_A.subnet_id).join(Port.table, _P.id == _A.port_id).join(Subnet.table, _S.id == _A.subnet_id).where(
    _A.network_id == sa.bindparam("network"), _P.device_owner.in_(INTERFACES), _A.ip_address == _S.gateway_ip
)  # fmt: skip
_PORT_IPS = (
    sa.select(_A.subnet_id, _A.ip_address, _S.cidr, _S.gateway_ip)
    .join(Subnet.table, _S.id == _A.subnet_id)
    .where(_A.port_id == sa.bindparam("port"), prefix_delegation.HAS_PREFIX)
    .order_by(_A.place)
)
_GROUPS = (
    sa.select(PORT_GROUP.c.security_group_id, SecurityGroup.table.c.stateful)
    .join(SecurityGroup.table, SecurityGroup.table.c.id == PORT_GROUP.c.security_group_id)
    .where(PORT_GROUP.c.port_id == sa.bindparam("port"))
    .order_by(PORT_GROUP.c.security_group_id)
)
_ROUTER_PORTS = (
    sa.select(_P.id, _P.network_id, _P.mac_address, _P.device_owner, _P.status, _P.qos_policy_id, Network.table.c.mtu)
    .join(Network.table, Network.table.c.id == _P.network_id)
    .where(_P.device_id == sa.bindparam("router"), _P.device_owner.in_((*ROUTER_OWNERS, CENTRAL)))
    .order_by(_P.id)
)
_FLOATING = (
    sa.select(_F.id, _F.floating_ip_address, _F.fixed_ip_address, _F.status, _F.qos_policy_id, _F.floating_network_id)
    .where(_F.router_id == sa.bindparam("router"))
    .order_by(_F.id)
)
_PORT_STATUS = (
    sa.update(Port.table)
    .where(
        _P.id == sa.bindparam("b_id"), _P.bound_host == sa.bindparam("b_host"), _P.status != sa.bindparam("b_status")
    )
    .values(status=sa.bindparam("b_status"))
)
_FLOATING_STATUS = (
    sa.update(FloatingIP.table)
    .where(_F.id == sa.bindparam("b_id"), _F.router_id == sa.bindparam("b_router"))
    .values(status=sa.bindparam("b_status"))
)
_NETWORKS_HERE = sa.select(_P.network_id).where(_P.bound_host == sa.bindparam("host")).distinct()
_PORTS_HERE = sa.select(_P.id, _P.device_owner).where(_P.bound_host == sa.bindparam("host"))
_ROUTERS_HERE = sa.select(_R.id).where(_R.host == sa.bindparam("host"), _R.ha.is_not(True))


# --- networks ---------------------------------------------------------------------------------------------------------


def describe_network(cloud: Cloud, reader: Reader, id: str, host: str) -> NetworkSpec | None:
    """The network on one host: its segment, its tunnel peers, DHCP when this host serves it."""
    net = look.row(reader, Network, id)
    if net is None:
        return None
    here = {h["name"]: h for h in hosts.every(reader)}
    where = asks.network_hosts(reader, id) & set(here)
    if net["external"]:
        where |= dvr_hosts.outside(reader, net, here)
    gateway_host = net["external"] and "network" in here.get(host, {}).get("roles", ())
    if host not in where and not gateway_host:
        return None
    subnets = [s for s in look.subnets(reader, id) if not prefix_delegation.pending(s)]
    segment = net
    if net["several"]:
        mine = network_segments.by_host(reader, id, here.values())
        if host not in mine:
            return None  # no way to it from here
        segment = mine[host]
        here = {name: h for name, h in here.items() if name in mine and mine[name]["id"] == segment["id"]}
        where &= set(here)
        subnets = network_segments.on(subnets, segment)
    dhcp = _dhcp(cloud, reader, net, subnets, host)
    tunnels = segment["network_type"] in segments.TUNNELS
    peers = sorted(here[name]["tunnel_ip"] for name in where if name != host and tunnels)
    first = next((s for s in subnets if s["ip_version"] == 4 and s["gateway_ip"]), None)
    own_gateway = bool(gateway_host and net["host_gateway"] and first)
    return NetworkSpec(
        id=id,
        project_id=net["project_id"],
        segment=Segment(
            network_type=segment["network_type"],
            physical_network=segment["physical_network"],
            segmentation_id=segment["segmentation_id"],
        ),
        mtu=net["mtu"],
        subnets=_subnets(cloud, reader, net, subnets, dhcp),
        dhcp=dhcp,
        peers=tuple(dict.fromkeys(peers)),
        restricted=pvlan.restricted(reader, net),
        neighbours=l2pop.neighbours(reader, id, host, here) if tunnels else (),
        host_address=f"{first['gateway_ip']}/{addresses.network(first['cidr']).prefixlen}"
        if own_gateway and first
        else None,
        masquerade=own_gateway,
        local_ips=local_ips.of_network(reader, id, host),
        guest_tags=bool(transparent.chosen(net)),
        vlan_ethertype=transparent.ethertype(net),
    )


def _subnets(
    cloud: Cloud, reader: Reader, net: Row, subnets: list[Row], dhcp: DhcpSpec | None
) -> tuple[SubnetSpec, ...]:
    """Subnets with what their guests are told: by DHCP here, or by a router on this host."""
    found = tuple(_subnet(s, ()) for s in subnets) if dhcp is None else _isolated(reader, net["id"], subnets, dhcp)
    servers: dict[str, list[str]] = {}
    for subnet, ip in reader.rows(_DHCP_IPS, {"network": net["id"]}):
        servers.setdefault(subnet, []).append(ip)
    return tuple(
        msgspec.structs.replace(s, resolvers=tuple(servers.get(s.id, ())), domain=_domain(cloud)) for s in found
    )  # fmt: skip


def _domain(cloud: Cloud) -> str:
    return cloud.settings.dns_domain.rstrip(".")


def _subnet(row: Row, more_routes: Iterable[tuple[str, str]]) -> SubnetSpec:
    routes = tuple((r["destination"], r["nexthop"]) for r in row["host_routes"] or ())
    return SubnetSpec(
        id=row["id"], cidr=row["cidr"], ip_version=row["ip_version"], gateway_ip=row["gateway_ip"],
        enable_dhcp=row["enable_dhcp"], dns_nameservers=tuple(row["dns_nameservers"] or ()),
        host_routes=(*routes, *more_routes), ipv6_ra_mode=row["ipv6_ra_mode"],
        ipv6_address_mode=row["ipv6_address_mode"], delegated=prefix_delegation.is_delegated(row),
    )  # fmt: skip


def _isolated(reader: Reader, id: str, subnets: list[Row], dhcp: DhcpSpec) -> tuple[SubnetSpec, ...]:
    """Subnets as DHCP serves them: one whose gateway no router has gets a route to the metadata service here."""
    routed = {s for (s,) in reader.rows(_ROUTED, {"network": id})}
    own = {ip.subnet_id: ip.ip_address for ip in dhcp.fixed_ips}
    out = []
    for s in subnets:
        alone = s["ip_version"] == 4 and s["gateway_ip"] and s["id"] in own and s["id"] not in routed
        taken = {r["destination"] for r in s["host_routes"] or ()}
        out.append(_subnet(s, [(METADATA_ROUTE, own[s["id"]])] if alone and METADATA_ROUTE not in taken else []))
    return tuple(out)


def _dhcp(cloud: Cloud, reader: Reader, net: Row, subnets: list[Row], host: str) -> DhcpSpec | None:
    port_id = reader.scalar(_DHCP_PORT, {"network": net["id"], "host": host})
    port = look.row(reader, Port, port_id) if port_id else None
    served = {s["id"]: addresses.network(s["cidr"]).prefixlen for s in subnets if s["enable_dhcp"]}
    if port is None or not served or not (net["admin_state_up"] and port["admin_state_up"]):
        return None
    ips: dict[str, list[FixedIp]] = {}
    for owner, subnet, ip in reader.rows(_IPS_ON_NETWORK, {"network": net["id"]}):
        if subnet in served:
            ips.setdefault(owner, []).append(FixedIp(subnet_id=subnet, ip_address=ip, prefixlen=served[subnet]))
    return DhcpSpec(
        port_id=port["id"],
        mac=port["mac_address"],
        fixed_ips=tuple(ips.get(port["id"], ())),
        hosts=tuple(
            DhcpHost(
                port_id=p["id"], mac=p["mac_address"], hostname=p["dns_name"], fixed_ips=tuple(ips[p["id"]]),
                domain=str(p["dns_domain"] or net["dns_domain"]).rstrip("."),
                options=tuple(
                    (o["opt_name"] if o["ip_version"] == 4 else f"option6:{o['opt_name']}", o["opt_value"])
                    for o in p["extra_dhcp_opts"]
                ),
            )
            for p in reader.all(_ON_NETWORK, {"network": net["id"]})
            if p["id"] in ips
        ),
        metadata=True,
        dns_domain=_domain(cloud),
        upstreams=_upstreams(cloud, subnets),
        host_resolvers=cloud.settings.dhcp_host_resolvers,
    )  # fmt: skip


def _upstreams(cloud: Cloud, subnets: list[Row]) -> tuple[str, ...]:
    """Whom DHCP's name servers ask: the operator's choice, else the name servers of the network's subnets."""
    own = [server for s in subnets for server in s["dns_nameservers"] or ()]
    named = cloud.settings.dhcp_dns_servers or own or filter(None, [cloud.settings.external_dns])
    return tuple(dict.fromkeys(server for server in named if server not in ("0.0.0.0", "::")))


def observe_network(cloud: Cloud, tx: Tx, id: str, host: str, observed: Mapping[str, Any]) -> str:
    """The DHCP port is up when the host says the network is."""
    status = observed.get("status")
    port_id = tx.scalar(_DHCP_PORT, {"network": id, "host": host})
    if port_id is not None and status in ("ACTIVE", "DOWN", "ERROR"):
        up = status == "ACTIVE" and look.need(tx, Port, port_id)["admin_state_up"]
        _set_port(tx, port_id, host, "ACTIVE" if up else "DOWN")
    return _note(observed)


def networks_on(cloud: Cloud, reader: Reader, host: str) -> list[str]:
    """Every network that has something to do on the host."""
    found = {id for (id,) in reader.rows(_NETWORKS_HERE, {"host": host})} | ha_place.networks_on(reader, host)
    found |= dvr_hosts.networks_on(reader, host)
    row = hosts.get(reader, host)
    if row is not None and "network" in row["roles"]:
        found |= set(asks.external_networks(reader))
    return sorted(found)


# --- ports ------------------------------------------------------------------------------------------------------------


def fixed_ips(reader: Reader, port_id: str) -> tuple[tuple[FixedIp, ...], list[str]]:
    """A port's addresses with their prefix lengths, and the gateways of their subnets."""
    rows = reader.rows(_PORT_IPS, {"port": port_id})
    ips = tuple(
        FixedIp(subnet_id=s, ip_address=ip, prefixlen=addresses.network(cidr).prefixlen) for s, ip, cidr, _ in rows
    )
    return ips, [g for *_, g in rows if g]


def describe_port(cloud: Cloud, reader: Reader, id: str, host: str) -> PortSpec | None:
    """A guest's port on its host: addresses it may use and the groups it is in (group_hosting.py)."""
    port = look.row(reader, Port, id)
    if port is None or port["bound_host"] != host or not asks.is_guest(port):
        return None
    net = look.need(reader, Network, port["network_id"])
    groups = reader.rows(_GROUPS, {"port": id}) if port["port_security_enabled"] else []
    return PortSpec(
        id=id,
        qos=qos_use.spec(reader, qos_use.effective(port, net["qos_policy_id"])),
        trunk=trunks_links.place(reader, port),
        network_id=net["id"],
        device=f"tap{id[:11]}",
        mac=port["mac_address"],
        fixed_ips=fixed_ips(reader, id)[0],
        mtu=net["mtu"],
        admin_state_up=port["admin_state_up"] and net["admin_state_up"],
        port_security=port["port_security_enabled"],
        allowed_pairs=tuple(
            (str(addresses.network(p["ip_address"])), p["mac_address"]) for p in port["allowed_address_pairs"] or ()
        ),
        groups=tuple(id for id, _ in groups),
        stateful=all(stateful for _, stateful in groups),
        logs=logs.of_port(reader, port, [id for id, _ in groups]),
        project_id=port["project_id"],
        tx_steering=_steering(port["hints"]),
    )


def _steering(hints: Any) -> str:
    """Which transmit queues Open vSwitch is hinted to use: "thread", "hash", or "" for as it likes."""
    return str((((hints or {}).get("openvswitch") or {}).get("other_config") or {}).get("tx-steering") or "")


def observe_port(cloud: Cloud, tx: Tx, id: str, host: str, observed: Mapping[str, Any]) -> str:
    """A wired port is ACTIVE; one that the host could not wire, or that is switched off, is DOWN."""
    port = look.row(tx, Port, id)
    if port is None or port["bound_host"] != host:
        return _note(observed)
    status = observed.get("status")
    if status in ("ACTIVE", "DOWN", "ERROR", "GONE"):
        wanted = "ACTIVE" if status == "ACTIVE" and port["admin_state_up"] else "DOWN"
        if port["status"] != wanted:
            _set_port(tx, id, host, wanted)
            trunks_links.observed(tx, id)
    return _note(observed)


def ports_on(cloud: Cloud, reader: Reader, host: str) -> list[str]:
    """Every guest port on the host."""
    return [id for id, owner in reader.rows(_PORTS_HERE, {"host": host}) if not owner.startswith("network:")]


def _set_port(tx: Tx, id: str, host: str, status: str) -> None:
    """What the host saw; nothing when the port has been moved meanwhile: compared and written in one statement."""
    tx.execute(_PORT_STATUS, {"b_id": id, "b_host": host, "b_status": status})


def _note(observed: Mapping[str, Any]) -> str:
    return str(observed.get("fault") or "") or str(observed.get("status", ""))


# --- routers ----------------------------------------------------------------------------------------------------------


def describe_router(cloud: Cloud, reader: Reader, id: str, host: str) -> RouterSpec | None:
    """The router on its host: interfaces, gateway, translations, routes."""
    row = look.row(reader, Router, id)
    ha = ha_place.spec(cloud, reader, id, host) if row is not None and row["ha"] else None
    elsewhere = row is not None and (row["ha"] or row["host"] != host) and ha is None
    if row is None or (elsewhere and not row["distributed"]):
        return None
    interfaces: list[RouterPort] = []
    gateways: list[RouterPort] = []
    inner: list[RouterPort] = []
    advertised: list[SubnetSpec] = []
    for p in reader.all(_ROUTER_PORTS, {"router": id}):
        ips, hops = fixed_ips(reader, p["id"])
        port = RouterPort(
            port_id=p["id"], network_id=p["network_id"], mac=p["mac_address"], fixed_ips=ips, mtu=p["mtu"],
            qos=qos_use.spec(reader, p["qos_policy_id"]),
        )  # fmt: skip
        if p["device_owner"] == CENTRAL:
            inner.append(port)
        elif p["device_owner"] == GATEWAY:
            port = msgspec.structs.replace(port, hops=tuple(dict.fromkeys(hops)))
            gateways.insert(0 if p["id"] == row["gw_port_id"] else len(gateways), port)
        else:
            interfaces.append(port)
            if any(":" in ip.ip_address for ip in ips):
                net = look.need(reader, Network, p["network_id"])
                mine = {ip.subnet_id for ip in ips}
                found = [s for s in look.subnets(reader, net["id"]) if s["ipv6_ra_mode"] and s["id"] in mine]
                advertised += _subnets(cloud, reader, net, found, None)
    if not gateways and not interfaces and ha is None:
        return None
    gateway = gateways[0] if gateways else None
    way_in = router_specs.ways_in(gateways, interfaces)
    whole = RouterSpec(
        id=id,
        ha=ha,
        epoch=row["fence"],
        subnets=tuple(advertised),
        admin_state_up=row["admin_state_up"],
        interfaces=tuple(interfaces),
        gateway=gateway,
        gateway_ips=gateway.hops if gateway else (),
        more_gateways=tuple(gateways[1:]),
        snat=row["enable_snat"],
        floating_ips=tuple(
            FloatingSpec(
                id=f["id"],
                floating_ip=f["floating_ip_address"],
                fixed_ip=f["fixed_ip_address"],
                qos=qos_use.spec(reader, f["qos_policy_id"]),
                port_id=way_in(f["floating_network_id"]),
            )
            for f in reader.all(_FLOATING, {"router": id})
            if f["fixed_ip_address"]
        ),
        routes=tuple((r["destination"], r["nexthop"]) for r in row["routes"] or ()),
        gateway_qos=qos_use.spec(reader, row["gw_qos_policy_id"]) if gateway else None,
        labels=metering.labels(reader, row),
        delegations=prefix_delegation.wish(reader, row, host),
        **router_specs.more(reader, row, way_in),
    )
    return dvr.spec(reader, row, host, whole, inner) if row["distributed"] else whole


def observe_router(cloud: Cloud, tx: Tx, id: str, host: str, observed: Mapping[str, Any]) -> str:
    """Ports and floating IPs of a router that the host made are ACTIVE."""
    row = look.row(tx, Router, id)
    status = observed.get("status")
    if row is not None and observed.get("delegated") is not None:
        why = prefix_delegation.observe(tx, row, host, observed["delegated"])
        observed = {**observed, "fault": " ".join(filter(None, [str(observed.get("fault") or ""), why]))}
    if row is not None and row["ha"]:
        ha_place.observed(tx, row, host, str(status))
    if row is not None and (row["ha"] or row["distributed"] or row["host"] == host):
        metering.observe(tx, id, host, observed.get("counts") or ())
    distributed = row is not None and row["distributed"]
    if row is None or (row["host"] != host and not distributed) or status not in ("ACTIVE", "DOWN", "ERROR"):
        return _note(observed)
    if distributed:
        dvr.observed(tx, row, status)
    up = status == "ACTIVE" or (status == "DOWN" and not row["admin_state_up"])
    wanted = "ACTIVE" if status != "ERROR" else "ERROR"
    if row["status"] != wanted:
        allocate.set_columns(tx, Router, id, {"status": wanted})
    wired = "ACTIVE" if status == "ACTIVE" and row["admin_state_up"] else "DOWN"
    for p in tx.all(_ROUTER_PORTS, {"router": id}):
        if p["status"] != wired:
            _set_port(tx, p["id"], host, wired)
    mine = dvr.floating_here(tx, id, host, row["host"] == host) if distributed else None
    for f in tx.all(_FLOATING, {"router": id}):
        if mine is not None and f["id"] not in mine and (f["fixed_ip_address"] or row["host"] != host):
            continue
        now = "ACTIVE" if up else "DOWN" if status == "DOWN" else "ERROR"
        if f["status"] != now:
            tx.execute(_FLOATING_STATUS, {"b_id": f["id"], "b_router": id, "b_status": now})
    return _note(observed)


def routers_on(cloud: Cloud, reader: Reader, host: str) -> list[str]:
    """Every router on the host."""
    plain = [id for (id,) in reader.rows(_ROUTERS_HERE, {"host": host})]
    return sorted({*plain, *ha_place.routers_on(reader, host), *dvr_hosts.on(reader, host)})


HOST_ITEMS = {
    "network": HostItem(describe=describe_network, observe=observe_network, every=networks_on, order=0),
    "port": HostItem(describe=describe_port, observe=observe_port, every=ports_on, order=1),
    "router": HostItem(describe=describe_router, observe=observe_router, every=routers_on, order=2),
}
