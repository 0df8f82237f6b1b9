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
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import msgspec
from msgspec import Struct

from nubila.core.ports import ForwardSpec, HostPlace, MeterCount, RouterPort, RouterSpec, SubnetSpec, TryAgain
from nubila.drivers import (
    advertise,
    bfd,
    ha,
    links,
    metering,
    nft,
    prefix_delegation,
    router_nft,
    routes,
    shaping,
    switches,
)
from nubila.drivers.dhcp import METADATA_ADDRESS_6
from nubila.drivers.files import read_json, write_json
from nubila.drivers.ovs_flows import link_local
from nubila.drivers.router_nft import Door
from nubila.drivers.routes import Way
from nubila.drivers.switches import VirtualSwitch, mark

_ETH_P_ARP = 0x0806
_ICMPV6 = 58


class Names(Struct, frozen=True, kw_only=True):
    """What the namespace and the devices of a router, or of a part of one, begin with."""

    space: str = "qrouter-"
    inside: str = "qr-"
    outside: str = "qg-"


WHOLE = Names()
LOCAL = Names(outside="fg-")  # a distributed router on one of its hosts; outside, only floating addresses live
CENTRAL = Names(space="snat-", inside="sg-")  # its part that translates for all hosts


def namespace(place: HostPlace, router_id: str, names: Names = WHOLE) -> str:
    """A router's namespace; hosts played by namespaces add their own name."""
    return f"{names.space}{router_id}" + (f".{place.namespace}" if place.namespace else "")


def inside_device(port: RouterPort, names: Names = WHOLE) -> str:
    """The device of an interface to a project's network."""
    return f"{names.inside}{port.port_id[:11]}"


def outside_device(port: RouterPort, names: Names = WHOLE) -> str:
    """The device of the gateway."""
    return f"{names.outside}{port.port_id[:11]}"


def is_distributed(spec: RouterSpec) -> bool:
    """Whether other hosts have the same router."""
    return any(port.alias_mac for port in spec.interfaces)


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
        prefix_delegation.leave(self.run_dir(spec.id), self.asking(spec), give_back=spec.delegations is not None)
        if spec.ha is not None:
            said = ha.ensure(self, spec, subnets, _routes(spec))
            return [said] if said else []
        ha.remove(self, spec.id)  # it was highly available until now
        central = spec.central
        wanted = [p for one in (spec, central) if one for p in (*one.interfaces, *gateways_of(one))]
        self.remove_ports(spec.id, [port.port_id for port in wanted] if spec.admin_state_up else [])
        where = namespace(self.place, spec.id)
        refused = self._make(spec, LOCAL if is_distributed(spec) else WHOLE, where)
        self.advertise(spec.id, where, spec.interfaces if spec.admin_state_up else (), subnets)
        if central is not None:
            return refused + self._make(central, CENTRAL, namespace(self.place, spec.id, CENTRAL))
        links.remove_namespace(namespace(self.place, spec.id, CENTRAL))
        if is_distributed(spec):
            bfd.ensure(self.run_dir(spec.id), None)
        return refused

    def _make(self, spec: RouterSpec, names: Names, where: str) -> list[str]:
        """Everything in one namespace of a router."""
        up = spec.admin_state_up
        interfaces = spec.interfaces if up else ()
        gateways = gateways_of(spec) if up else ()
        links.ensure_namespace(where, mark(self.place, "snat" if names is CENTRAL else "router", spec.id))
        with links.entered(where):
            links.sysctl("net/ipv4/ip_forward", "1")
            links.sysctl("net/ipv6/conf/all/forwarding", "1")
            # Translation comes before the devices: nothing may leave with an inside address.
            refused = self.rules(spec, interfaces, spec.gateway if up else None, names)
        gone: set[str] = set()
        for port in interfaces:
            own = [*_addresses(port), *_floating(spec, port, first=False)]
            if names is not CENTRAL:
                own.append(f"{METADATA_ADDRESS_6}/64")
            gone |= self._plug(spec, port, inside_device(port, names), where, own)
        for port in gateways:
            own = [*_addresses(port), *_floating(spec, port, first=port is gateways[0])]
            gone |= self._plug(spec, port, outside_device(port, names), where, own)
        with links.opened(where) as net:
            ways = _ways(spec, names) if up else []
            down = bfd.ensure(self.run_dir(spec.id), self._watch(spec, where, ways)) if names is not LOCAL else set()
            refused += routes.apply(net, *bfd.without(_routes(spec) if up else [], ways, down))
            for address in gone:
                nft.forget_connections(address)
            self._proxies(spec, net, where, [] if names is LOCAL else gateways)
        if names is not LOCAL:
            self._forget_forwardings(spec, where)
        return refused

    def rules(
        self,
        spec: RouterSpec,
        interfaces: Sequence[RouterPort],
        gateway: RouterPort | None,
        names: Names = WHOLE,
    ) -> list[str]:
        """Translation and rate limits, in the namespace this thread is in; sentences about what cannot be had here."""
        inside = [inside_device(port, names) for port in interfaces]
        outside = outside_device(gateway, names) if gateway else None
        here = msgspec.structs.replace(
            spec, interfaces=tuple(interfaces), gateway=gateway, more_gateways=spec.more_gateways if gateway else ()
        )
        without = router_nft.lacking(spec.helpers)
        nft.load(router_nft.script(here, inside, doors(here, names), without))
        devices = [*zip(inside, interfaces, strict=True), *((outside_device(p, names), p) for p in gateways_of(here))]
        shaping.ensure(spec, devices, outside)
        metering.ensure(spec.labels, [outside_device(port, names) for port in gateways_of(here)])
        return [f"This host's kernel has no conntrack helper {name}." for name in dict.fromkeys(without)]

    def asking(self, spec: RouterSpec) -> prefix_delegation.Task | None:
        """What the router asks for on its first gateway's network, None = nothing."""
        part, names = (spec.central, CENTRAL) if spec.central is not None else (spec, WHOLE)
        if not spec.delegations or part.gateway is None or not spec.admin_state_up:
            return None
        return prefix_delegation.Task(
            namespace=namespace(self.place, spec.id, names),
            device=outside_device(part.gateway, names),
            router_id=spec.id,
            subnets=tuple(one.subnet_id for one in spec.delegations),
        )

    def counts(self, spec: RouterSpec) -> tuple[MeterCount, ...]:
        """What the router has counted on this host, its central part included."""
        found: dict[str, MeterCount] = {}
        for names in (WHOLE, CENTRAL) if spec.central is not None else (WHOLE,):
            with links.entered(namespace(self.place, spec.id, names)):
                for one in metering.counts():
                    before = found.get(one.label_id, MeterCount(label_id=one.label_id, packets=0, bytes=0))
                    found[one.label_id] = MeterCount(
                        label_id=one.label_id, packets=before.packets + one.packets, bytes=before.bytes + one.bytes
                    )
        return tuple(found.values())

    def _watch(self, spec: RouterSpec, where: str, ways: Sequence[Way]) -> bfd.Watch | None:
        """Which next hops BFD has to watch."""
        if not spec.bfd or not spec.admin_state_up:
            return None
        pairs = []
        for number, port in enumerate(gateways_of(spec)):
            for hop in port.hops if number else spec.gateway_ips:
                own = next((ip.ip_address for ip in port.fixed_ips if (":" in ip.ip_address) == (":" in hop)), None)
                if own is not None:
                    pairs.append((own, hop))
        return bfd.Watch(namespace=where, sessions=tuple(pairs), routes=tuple(_routes(spec)), ways=tuple(ways))

    def _proxies(self, spec: RouterSpec, net: links.Net, where: str, gateways: Sequence[RouterPort]) -> None:
        """Answer for the IPv6 addresses of NDP proxies on the gateways' networks, and say so to the neighbours."""
        for port in gateways:
            device = net.must(outside_device(port))
            links.sysctl(f"net/ipv6/conf/{device.name}/proxy_ndp", "1" if spec.proxies else "0")
            new = routes.proxy(net, device, spec.proxies)
            if new:
                announce(where, device.name, port.mac, [f"{address}/128" for address in new])

    def _forget_forwardings(self, spec: RouterSpec, where: str) -> None:
        """End connections by ports that are not forwarded any longer."""
        record = self.run_dir(spec.id) / "forwardings.json"
        before = read_json(record, tuple[ForwardSpec, ...]) or ()
        now = spec.forwardings if spec.admin_state_up else ()
        gone = [one for one in before if one not in now]
        if gone:
            with links.entered(where):
                for one in gone:
                    nft.forget_forwarded(one.floating_ip, one.protocol, one.outside)
        if now != before:
            write_json(record, now)

    def remove(self, router_id: str) -> None:
        """Take a router away with everything in it; absent is success."""
        prefix_delegation.stop(self.run_dir(router_id), give_back=False)  # it may go on elsewhere
        ha.remove(self, router_id)
        self.stop_advertising(router_id)
        bfd.ensure(self.run_dir(router_id), None)
        self.remove_ports(router_id, [])
        for names in (WHOLE, CENTRAL):
            links.remove_namespace(namespace(self.place, router_id, names))
        shutil.rmtree(self.run_dir(router_id), ignore_errors=True)

    def tend(self) -> None:
        """Start again what ended by itself of highly available routers."""
        ha.tend(self)
        for config in (self.place.root / "routers").glob("*/bfd.json"):
            bfd.tend(config.parent)
        for config in (self.place.root / "routers").glob("*/pd.json"):
            with contextlib.suppress(TryAgain):  # next time
                prefix_delegation.tend(config.parent)

    def run_dir(self, router_id: str) -> Path:
        """Where a router's daemons keep their files."""
        return self.place.root / "routers" / router_id

    def _fence(self, spec: RouterSpec) -> None:
        """Refuse what an older master of this router wishes."""
        record = self.run_dir(spec.id) / "epoch"
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

    def _plug(self, spec: RouterSpec, port: RouterPort, device: str, where: str, addresses: list[str]) -> set[str]:
        """A port of the router with its addresses; returns those that left it."""
        before: set[str] = set()
        with links.opened(where) as net:
            present = net.device(device)
            if present is not None:
                before = net.addresses(present.index)
        inner = switches.of_router(spec.id, port, device, where, addresses)
        new = self.switch.ensure_inner(msgspec.structs.replace(inner, shared_as=port.alias_mac))
        if new and not port.alias_mac:
            announce(where, device, port.mac, new)
        kept = {links.normal_interface(address) for address in addresses}
        return {address.partition("/")[0] for address in before - kept}

    def remove_ports(self, router_id: str, keep: Iterable[str]) -> None:
        """Remove all ports of a router but these."""
        stay = set(keep)
        ours = [port for port in self.switch.plugged() if port.kind == "router" and port.owner == router_id]
        self.switch.remove([port for port in ours if port.id not in stay])

    # --- router advertisements

    def advertise(
        self, router_id: str, where: str, interfaces: Iterable[RouterPort], subnets: Mapping[str, SubnetSpec]
    ) -> None:
        shown = [
            (inside_device(port), port.mac, port.mtu, [ip.subnet_id for ip in port.fixed_ips]) for port in interfaces
        ]
        stale = advertise.stale(self.run_dir(router_id), shown, subnets)
        advertise.ensure(advertise.render(shown, subnets, stale), self.run_dir(router_id), where)

    def stop_advertising(self, router_id: str) -> None:
        """End a router's advertisements; absent is success."""
        advertise.stop(self.run_dir(router_id))


def gateways_of(spec: RouterSpec) -> tuple[RouterPort, ...]:
    """All gateways, the first one first."""
    return (spec.gateway, *spec.more_gateways) if spec.gateway else ()


def expected(place: HostPlace, spec: RouterSpec) -> list[tuple[str, str, RouterPort]]:
    """(namespace, device, port) of everything that a router has on this host while it is up."""
    names = LOCAL if is_distributed(spec) else WHOLE
    found = []
    for one, called in ((spec, names), (spec.central, CENTRAL)):
        if one is not None:
            where = namespace(place, spec.id, called)
            found += [(where, inside_device(port, called), port) for port in one.interfaces]
            found += [(where, outside_device(port, called), port) for port in gateways_of(one)]
    return found


def doors(spec: RouterSpec, names: Names = WHOLE) -> list[Door]:
    """The router's devices on external networks: gateways, and interfaces where floating addresses live."""
    gateways = gateways_of(spec)
    found = [
        Door(device=outside_device(port, names), port=port, mark=_mark(number) if len(gateways) > 1 else 0)
        for number, port in enumerate(gateways)
    ]
    used = {port for _, port in _led(spec)}
    found += [
        Door(device=inside_device(port, names), port=port, gateway=False)
        for port in spec.interfaces
        if port.port_id in used
    ]
    return found


def _mark(number: int) -> int:
    return (number + 1) << 8


def _led(spec: RouterSpec) -> list[tuple[str, str]]:
    """(floating address, router port) of everything that leads inside."""
    return [(one.floating_ip, one.port_id) for one in spec.floating_ips] + [
        (one.floating_ip, one.port_id) for one in spec.forwardings
    ]


def _floating(spec: RouterSpec, port: RouterPort, *, first: bool) -> list[str]:
    """The floating addresses that live on a port; those that name none live on the first gateway."""
    owners = {port.port_id, ""} if first else {port.port_id}
    return sorted({f"{address}/32" for address, where in _led(spec) if where in owners})


def _ways(spec: RouterSpec, names: Names) -> list[Way]:
    """With several gateways: answers go back by the one a connection came in by, floating IPs leave by their own.

    Of a distributed router: what has a floating IP on this host leaves here, the rest by the central part.
    """
    gateways = gateways_of(spec)
    if names is LOCAL and spec.gateway:
        sources = tuple(f"{one.fixed_ip}/32" for one in spec.floating_ips)
        door = spec.gateway
        return [Way(hops=spec.gateway_ips, device=outside_device(door, names), near=door.near, sources=sources)]
    if len(gateways) < 2:
        return []
    ways = []
    for number, port in enumerate(gateways):
        own = {port.port_id} if number else {port.port_id, ""}
        ways.append(
            Way(
                hops=port.hops if number else spec.gateway_ips,
                device=outside_device(port, names),
                mark=_mark(number),
                sources=tuple(f"{one.fixed_ip}/32" for one in spec.floating_ips if one.port_id in own),
            )
        )
    return ways


def announce(where: str, device: str, mac: str, addresses: Iterable[str]) -> None:
    """Tell the neighbours whose new addresses are, best effort."""
    frames = announcements(mac, addresses)
    with links.entered(where):
        sender = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(_ETH_P_ARP))
    with sender, contextlib.suppress(OSError):
        sender.bind((device, _ETH_P_ARP))
        for frame in frames:
            sender.send(frame)


def announcements(mac: str, addresses: Iterable[str]) -> list[bytes]:
    """The frames that say whose these addresses are.

    IPv4: a gratuitous ARP request for each (RFC 5944 section 4.6). IPv6: an unsolicited neighbour advertisement that
    overrides what was known (RFC 4861 section 7.2.6).
    """
    source = bytes.fromhex(mac.replace(":", ""))
    header = b"\xff" * 6 + source + struct.pack("!H", _ETH_P_ARP) + struct.pack("!HHBBH", 1, 0x0800, 6, 4, 1)
    frames = []
    for ip in (ipaddress.ip_interface(address).ip for address in addresses):
        if ip.version == 4:
            frames.append(header + source + ip.packed + b"\0" * 6 + ip.packed)
        elif not ip.is_link_local:
            frames.append(_advertisement(mac, ip.packed))
    return frames


def _advertisement(mac: str, target: bytes) -> bytes:
    """An unsolicited neighbour advertisement: to all nodes, from the link-local address, router and override set."""
    own = bytes.fromhex(mac.replace(":", ""))
    source = ipaddress.ip_address(link_local(mac)).packed
    everyone = ipaddress.ip_address("ff02::1").packed
    body = b"\x88\0\0\0" + b"\xa0\0\0\0" + target + b"\x02\x01" + own
    checked = source + everyone + struct.pack("!II", len(body), _ICMPV6) + body
    total = sum(struct.unpack(f"!{len(checked) // 2}H", checked))
    total = (total & 0xFFFF) + (total >> 16)
    body = body[:2] + struct.pack("!H", ~(total + (total >> 16)) & 0xFFFF) + body[4:]
    head = struct.pack("!IHBB", 6 << 28, len(body), _ICMPV6, 255) + source + everyone
    return b"\x33\x33\0\0\0\x01" + own + b"\x86\xdd" + head + body


def _addresses(port: RouterPort) -> list[str]:
    return [f"{ip.ip_address}/{ip.prefixlen}" for ip in port.fixed_ips]


def _routes(spec: RouterSpec) -> list[tuple[str, str]]:
    """Extra routes, and the default ones by the first gateway or by all of them."""
    found = list(spec.routes)
    if is_distributed(spec):
        return found + [routes.default(hop) for hop in spec.way_out]
    for number, port in enumerate(gateways_of(spec)):
        if number == 0 or spec.ecmp:
            found += [routes.default(hop) for hop in (port.hops if number else spec.gateway_ips)]
    return found
