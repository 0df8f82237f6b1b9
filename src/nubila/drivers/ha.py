"""Highly available routers on one host: the namespace, its gate, keepalived, conntrackd, and what the keeper reads.

The namespace is wired like any router's, except that its ``qr-`` and ``qg-`` devices have no addresses until keepalived
(or the keeper) puts them there, and that the gate is closed. ``<root>/ha/<router>.json`` tells the keeper, one process
per host that outlives this one (apps/keeper.py), everything it needs.

Failure: killed anywhere, the next ``ensure`` goes on; what forwards meanwhile is the keeper's business alone.
"""

from __future__ import annotations

import contextlib
import functools
import ipaddress
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from msgspec import Struct, structs

from nubila.core.ports import HostPlace, RouterPort, RouterSpec, SubnetSpec, TryAgain
from nubila.drivers import ha_daemons, ha_gate, ha_neighbours, links, nft, processes, programs, switches
from nubila.drivers.dhcp import METADATA_ADDRESS_6
from nubila.drivers.files import read_json, write_json
from nubila.drivers.switches import mark

if TYPE_CHECKING:
    from nubila.drivers.router import Routers

KEEPER = "ha-keeper"


class Device(Struct, frozen=True, kw_only=True):
    """A device behind the gate."""

    name: str
    outer: str  # its other end, in the host's own namespace
    mac: str
    addresses: tuple[str, ...] = ()  # "ip/length", on it only while this host forwards


class Kept(Struct, frozen=True, kw_only=True):
    """All that the keeper must know of one router."""

    router_id: str
    namespace: str
    run_dir: str
    up: bool
    device: str  # ha-...
    address: str  # ours on the HA network
    vip: str
    peers: dict[str, str] = {}  # host -> address
    devices: tuple[Device, ...] = ()
    routes: tuple[tuple[str, str], ...] = ()
    carriers: tuple[str, ...] = ()  # devices of the host that must have a link
    switch: str = ""  # the control socket of the host's Open vSwitch; "": it has another switch


def ha_device(port: RouterPort) -> str:
    """The device on the HA network."""
    return f"ha-{port.port_id[:11]}"


def folder(place: HostPlace) -> Path:
    """Where the keeper finds its routers."""
    return place.root / "ha"


def kept(place: HostPlace, router_id: str) -> Kept | None:
    """What the keeper was told of a router."""
    return read_json(folder(place) / f"{router_id}.json", Kept)


def ensure(routers: Routers, spec: RouterSpec, subnets: Mapping[str, SubnetSpec], routes: list[tuple[str, str]]) -> str:
    """Have this host's part in the router; returns a sentence about what could not be, or ""."""
    from nubila.drivers import router

    assert spec.ha is not None
    place, up = routers.place, spec.admin_state_up
    where, run_dir = router.namespace(place, spec.id), routers.run_dir(spec.id)
    ports = {router.inside_device(p): p for p in (spec.interfaces if up else ())}
    outside = router.outside_device(spec.gateway) if up and spec.gateway else None
    if outside and spec.gateway:
        ports[outside] = spec.gateway
    links.ensure_namespace(where, mark(place, "router", spec.id))
    before = kept(place, spec.id)
    with links.entered(where):
        links.sysctl("net/ipv4/ip_forward", "1")
        links.sysctl("net/ipv6/conf/all/forwarding", "1")
        links.sysctl("net/netfilter/nf_conntrack_tcp_be_liberal", "1")  # connections begun on another host
        ha_gate.ensure(_there(where, ports))
        routers.rules(spec, spec.interfaces if up else (), spec.gateway if up else None)
    _ha_port(routers, spec, where)
    routers.remove_ports(spec.id, [spec.ha.port.port_id, *(p.port_id for p in ports.values())])
    for name, port in ports.items():
        _gated(routers, spec, port, name, where)
    ha_neighbours.retry_quickly(where, ports)
    with links.entered(where):
        ha_gate.ensure(ports)
        ha_gate.quiet(ha_device(spec.ha.port), ha_daemons.SYNC_PORT)
    routers.advertise(spec.id, where, spec.interfaces if up else (), subnets)
    outer = {plugged.id: plugged.device for plugged in routers.switch.plugged() if plugged.owner == spec.id}
    addresses = {name: _addresses(spec, port, name == outside) for name, port in ports.items()}
    now = Kept(
        router_id=spec.id, namespace=where, run_dir=str(run_dir), up=up, device=ha_device(spec.ha.port),
        address=spec.ha.port.fixed_ips[0].ip_address, vip=spec.ha.vip,
        peers={peer.host: peer.address for peer in spec.ha.peers},
        devices=tuple(
            Device(
                name=name, mac=port.mac.lower(), outer=outer.get(port.port_id, name),
                addresses=(*addresses[name], *_link_local(name)),
            )
            for name, port in ports.items()
        ),
        routes=tuple(routes) if up else (),
        carriers=_carriers(routers, spec),
        switch=_switch(routers),
    )  # fmt: skip
    said = _daemons(spec, addresses, run_dir, where) if up else ""
    if not up:
        ha_daemons.stop(run_dir)
    if now != before:
        folder(place).mkdir(mode=0o700, parents=True, exist_ok=True)
        write_json(folder(place) / f"{spec.id}.json", now)
    if before is not None:
        left = {a for d in before.devices for a in d.addresses} - {a for d in now.devices for a in d.addresses}
        with links.entered(where):
            for address in left:
                nft.forget_connections(address.partition("/")[0])
    keeper(place)
    return said


def _there(where: str, ports: Mapping[str, RouterPort]) -> list[str]:
    with links.opened(where) as net:
        return [name for name in ports if net.device(name) is not None]


def _ha_port(routers: Routers, spec: RouterSpec, where: str) -> None:
    assert spec.ha is not None
    port = spec.ha.port
    name = ha_device(port)
    inner = switches.of_router(spec.id, port, name, where)
    quiet = functools.partial(ha_gate.quiet, name, ha_daemons.SYNC_PORT, anew=True)
    routers.switch.ensure_inner(structs.replace(inner, made=quiet))
    own = f"{port.fixed_ips[0].ip_address}/{port.fixed_ips[0].prefixlen}"
    with links.opened(where) as net:
        missing = own not in net.addresses(net.must(name).index)
    if missing:
        with links.entered(where):
            programs.run(["ip", "addr", "add", own, "brd", "+", "dev", name], package="iproute2")


def _gated(routers: Routers, spec: RouterSpec, port: RouterPort, name: str, where: str) -> None:
    """A device behind the gate: the gate is there before the device is up."""

    def shut() -> None:
        ha_gate.forget(name)
        ha_gate.ensure([*_present_gates(), name])

    inner = switches.of_router(spec.id, port, name, where)
    routers.switch.ensure_inner(structs.replace(inner, roams=True, made=shut))


def _present_gates() -> list[str]:
    return sorted(ha_gate.gated())


def _addresses(spec: RouterSpec, port: RouterPort, outside: bool) -> tuple[str, ...]:
    own = [f"{ip.ip_address}/{ip.prefixlen}" for ip in port.fixed_ips]
    floating = sorted(f"{ip.floating_ip}/32" for ip in spec.floating_ips) if outside else []
    return tuple(links.normal_interface(a) for a in (*own, *floating))


def _link_local(name: str) -> tuple[str, ...]:
    return (f"{METADATA_ADDRESS_6}/64",) if name.startswith("qr-") else ()


def _daemons(spec: RouterSpec, addresses: Mapping[str, tuple[str, ...]], run_dir: Path, where: str) -> str:
    assert spec.ha is not None
    name = ha_device(spec.ha.port)
    flat = [(device, address) for device, mine in addresses.items() for address in mine]
    ha_daemons.keepalived(ha_daemons.keepalived_config(spec.ha, name, flat, run_dir), run_dir, where)
    if not spec.ha.peers:
        ha_daemons.stop(run_dir, [ha_daemons.CONNTRACKD])
        return ""
    if shutil.which(ha_daemons.CONNTRACKD, path="/usr/sbin:/sbin:/usr/bin:/bin") is None:
        return "Connections do not outlive a fail-over: conntrackd is not installed (package conntrackd)."
    ha_daemons.conntrackd(ha_daemons.conntrackd_config(spec.ha, name, run_dir), run_dir, where)
    return ""


def _switch(routers: Routers) -> str:
    where = getattr(routers.switch, "control_socket", None)
    return str(where()) if where is not None else ""


def _carriers(routers: Routers, spec: RouterSpec) -> tuple[str, ...]:
    """The host's devices without which the router is no use here: the tunnels' and the way out."""
    place = routers.place
    found: list[str] = []
    tunnel = ipaddress.ip_address(place.tunnel_ip)
    if not tunnel.is_loopback:
        with links.opened(place.namespace) as net:
            for device in net.devices():
                if str(tunnel) in {a.partition("/")[0] for a in net.addresses(device.index)}:
                    found.append(device.name)
    if spec.gateway is not None:
        look = getattr(routers.switch, "uplink_devices", None)
        if look is not None:
            found += look(spec.gateway.network_id)
    return tuple(dict.fromkeys(found))


# --- taking away, and keeping alive -----------------------------------------------------------------------------------


def remove(routers: Routers, router_id: str) -> None:
    """Take the highly available parts of a router away: first of all, close its gate."""
    from nubila.drivers import router

    place = routers.place
    record = folder(place) / f"{router_id}.json"
    if not record.exists():
        ha_daemons.stop(routers.run_dir(router_id))
        return
    record.unlink(missing_ok=True)
    with contextlib.suppress(TryAgain, OSError):
        ha_gate.Gate(router.namespace(place, router_id)).close()
    ha_daemons.stop(routers.run_dir(router_id))


def keeper(place: HostPlace) -> None:
    """Have the keeper process of this host."""
    run_dir = folder(place)
    if processes.alive(KEEPER, run_dir) is None and (place.root / "agent.json").exists():
        argv = [sys.executable, "-m", "nubila.apps.keeper", str(place.root)]
        processes.start(KEEPER, argv, run_dir, log=run_dir / "keeper.log")


def tend(routers: Routers) -> None:
    """Start again what ended by itself."""
    run_dir = folder(routers.place)
    records = sorted(run_dir.glob("*.json")) if run_dir.is_dir() else []
    if not records:
        return
    keeper(routers.place)
    for record in records:
        one = kept(routers.place, record.stem)
        if one is None or not one.up or not links.namespace_exists(one.namespace):
            continue
        mine = Path(one.run_dir)
        for name, argv in (
            (ha_daemons.KEEPALIVED, ha_daemons.keepalived_argv(mine)),
            (ha_daemons.CONNTRACKD, ha_daemons.conntrackd_argv(mine)),
        ):
            if (mine / f"{name}.conf").exists() and processes.alive(name, mine) is None:
                ha_daemons.clear(name, mine)
                processes.start(name, argv, mine, log=mine / f"{name}.log", netns=one.namespace)


def destroy(place: HostPlace) -> None:
    """End the keeper and everything it was told."""
    run_dir = folder(place)
    processes.stop(KEEPER, run_dir, timeout_s=3)
    for record in run_dir.glob("*.json") if run_dir.is_dir() else ():
        one = kept(place, record.stem)
        if one is not None:
            ha_daemons.stop(Path(one.run_dir))
    shutil.rmtree(run_dir, ignore_errors=True)
