"""Routers: a namespace ``qrouter-<id>`` with ``qr-`` and ``qg-`` devices, routes, and one nft table.

Model: the namespace is the router. Everything in it is made equal to the spec at each ``ensure``: devices, addresses,
routes, the translation table. Ports that the spec does not name any more are removed. New addresses are announced by
gratuitous ARP, so that neighbours forget who had them before. IPv6 subnets that ask for router advertisements get
them from radvd in the namespace (advertise.py), which outlives this process like everything else.

Failure: killed anywhere, the next ``ensure`` goes on. A spec with an older epoch than the one that was applied is
refused.
"""

from __future__ import annotations

import contextlib
import ipaddress
import shutil
import socket
import struct
from collections.abc import Iterable, Mapping
from pathlib import Path

from nubila.core.ports import HostPlace, RouterPort, RouterSpec, SubnetSpec, TryAgain
from nubila.drivers import advertise, links, nft, shaping
from nubila.drivers.dhcp import METADATA_ADDRESS_6
from nubila.drivers.switches import VirtualSwitch, mark

_ETH_P_ARP = 0x0806


def namespace(place: HostPlace, router_id: str) -> str:
    """A router's namespace; hosts played by namespaces add their own name."""
    return f"qrouter-{router_id}" + (f".{place.namespace}" if place.namespace else "")


def inside_device(port: RouterPort) -> str:
    """The device of an interface to a project's network."""
    return f"qr-{port.port_id[:11]}"


def outside_device(port: RouterPort) -> str:
    """The device of the gateway."""
    return f"qg-{port.port_id[:11]}"


class Routers:
    """The routers of one place."""

    def __init__(self, place: HostPlace, switch: VirtualSwitch) -> None:
        self.place = place
        self.switch = switch

    def ensure(self, spec: RouterSpec, subnets: Mapping[str, SubnetSpec]) -> list[str]:
        """Make the router equal to its spec; returns sentences about what could not be.

        ``subnets`` are those known on this host, by id: they say which want router advertisements.
        """
        self._fence(spec)
        up = spec.admin_state_up
        interfaces = spec.interfaces if up else ()
        gateway = spec.gateway if up else None
        where = namespace(self.place, spec.id)
        links.ensure_namespace(where, mark(self.place, "router", spec.id))
        with links.entered(where):
            links.sysctl("net/ipv4/ip_forward", "1")
            links.sysctl("net/ipv6/conf/all/forwarding", "1")
            # Translation comes before the devices: nothing may leave with an inside address.
            inside = [inside_device(port) for port in interfaces]
            nft.load(nft.router_table(spec, inside, outside_device(gateway) if gateway else None))
            devices = [*zip(inside, interfaces, strict=True), *([(outside_device(gateway), gateway)] if gateway else [])]
            shaping.ensure(spec, devices, outside_device(gateway) if gateway else None)
        self._remove_ports(spec.id, [port.port_id for port in (*interfaces, *([gateway] if gateway else []))])
        for port in interfaces:
            self._plug(spec, port, inside_device(port), [*_addresses(port), f"{METADATA_ADDRESS_6}/64"])
        gone = self._outside(spec, gateway) if gateway else set()
        with links.opened(where) as net:
            refused = net.set_routes(_routes(spec) if up else [])
            for address in gone:
                nft.forget_connections(address)
        self._advertise(spec.id, where, interfaces, subnets)
        return refused

    def remove(self, router_id: str) -> None:
        """Take a router away with everything in it; absent is success."""
        self.stop_advertising(router_id)
        self._remove_ports(router_id, [])
        links.remove_namespace(namespace(self.place, router_id))
        shutil.rmtree(self._run_dir(router_id), ignore_errors=True)

    def tend(self) -> None:
        """Start again what ended by itself of highly available routers."""

    def _run_dir(self, router_id: str) -> Path:
        return self.place.root / "routers" / router_id

    def _fence(self, spec: RouterSpec) -> None:
        """Refuse what an older master of this router wishes."""
        record = self._run_dir(spec.id) / "epoch"
        with contextlib.suppress(FileNotFoundError, ValueError):
            applied = int(record.read_text())
            if applied > spec.epoch:
                raise TryAgain(
                    f"Router {spec.id} is at epoch {applied}: this wish of epoch {spec.epoch} is out of date."
                )
            if applied == spec.epoch:
                return
        record.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        fresh = record.with_suffix(".new")
        fresh.write_text(str(spec.epoch))
        fresh.replace(record)

    # --- ports

    def _plug(self, spec: RouterSpec, port: RouterPort, device: str, addresses: list[str]) -> None:
        where = namespace(self.place, spec.id)
        new = self.switch.ensure_inner(
            kind="router",
            port_id=port.port_id,
            owner=spec.id,
            network_id=port.network_id,
            device=device,
            namespace=where,
            mac=port.mac,
            mtu=port.mtu,
            addresses=addresses,
        )
        if new:
            announce(where, device, port.mac, new)

    def _outside(self, spec: RouterSpec, gateway: RouterPort) -> set[str]:
        """The gateway's device; returns floating addresses that left it."""
        floating = {f"{ip.floating_ip}/32" for ip in spec.floating_ips}
        wanted = _addresses(gateway) + sorted(floating)
        device = outside_device(gateway)
        before: set[str] = set()
        with links.opened(namespace(self.place, spec.id)) as net:
            present = net.device(device)
            if present is not None:
                before = net.addresses(present.index)
        self._plug(spec, gateway, device, wanted)
        kept = {links.normal_interface(address) for address in wanted}
        return {address.partition("/")[0] for address in before - kept}

    def _remove_ports(self, router_id: str, keep: Iterable[str]) -> None:
        stay = set(keep)
        ours = [port for port in self.switch.plugged() if port.kind == "router" and port.owner == router_id]
        self.switch.remove([port for port in ours if port.id not in stay])

    # --- router advertisements

    def _advertise(
        self, router_id: str, where: str, interfaces: Iterable[RouterPort], subnets: Mapping[str, SubnetSpec]
    ) -> None:
        shown = [
            (inside_device(port), port.mac, port.mtu, [ip.subnet_id for ip in port.fixed_ips]) for port in interfaces
        ]
        advertise.ensure(advertise.render(shown, subnets), self._run_dir(router_id), where)

    def stop_advertising(self, router_id: str) -> None:
        """End a router's advertisements; absent is success."""
        advertise.stop(self._run_dir(router_id))


def announce(where: str, device: str, mac: str, addresses: Iterable[str]) -> None:
    """Send a gratuitous ARP request for each new IPv4 address (RFC 5944 section 4.6), best effort."""
    source = bytes.fromhex(mac.replace(":", ""))
    header = b"\xff" * 6 + source + struct.pack("!H", _ETH_P_ARP) + struct.pack("!HHBBH", 1, 0x0800, 6, 4, 1)
    packed = [ip.packed for ip in (ipaddress.ip_interface(address).ip for address in addresses) if ip.version == 4]
    with links.entered(where):
        sender = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(_ETH_P_ARP))
    with sender, contextlib.suppress(OSError):
        sender.bind((device, _ETH_P_ARP))
        for ip in packed:
            sender.send(header + source + ip + b"\0" * 6 + ip)


def _addresses(port: RouterPort) -> list[str]:
    return [f"{ip.ip_address}/{ip.prefixlen}" for ip in port.fixed_ips]


def _routes(spec: RouterSpec) -> list[tuple[str, str]]:
    routes = list(spec.routes)
    if spec.gateway:
        for hop in spec.gateway_ips:
            routes.append(("::/0" if ":" in hop else "0.0.0.0/0", hop))
    return routes
