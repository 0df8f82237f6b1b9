"""The Linux bridge as the virtual switch of a host (switches.VirtualSwitch).

Goal: a bridge ``brq<network>`` per network with the guests' taps ``tap<port>``, one end of a veth pair for each router
and DHCP port (``tap<port>`` too), and the way out: a kernel VXLAN device ``vxlan-<number>``, a network card (flat) or
an 802.1Q device above one (vlan). Names are those of the original Linux bridge agent, 11 characters of the id.

Model: the kernel is the memory. Each device says in its alias whose it is (kind and id, network, owner, the number of
its filter), each bridge its network and its connection tracking zone. Filters are nftables (bridge_rules,
bridge_tables). Where the control plane says who lives on which host (``NetworkSpec.neighbours``), forwarding entries
are static and the bridge answers ARP for them itself (l2 population); the rest is flooded to all peers and learned.

Failure: every step can be repeated. A filter is loaded before its device joins the bridge. A bridge that somebody
deleted is made again with all its ports by the next ``wire_network``. A network card's addresses and routes move to
its bridge and come back with the removal of the network.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from nubila.core.ports import (
    AddressSetSpec,
    HostPlace,
    Impossible,
    NeedsOperator,
    NetworkSpec,
    PortSpec,
    SecurityGroupSpec,
    TryAgain,
)
from nubila.drivers import bridge_links, bridge_local_ip, bridge_log, bridge_rules, links, shaping
from nubila.drivers.bridge_links import HOSTED
from nubila.drivers.bridge_tables import Tables, words
from nubila.drivers.links import GROUP, Device, Net
from nubila.drivers.switches import InnerPort, Plugged, mark, marked

_PORT_KINDS = {"port": "guest", "router": "router", "dhcp": "dhcp", "uplink": "uplink"}
_OF_NETWORKS = ("localip", "network", "pvlan", "talk")
"""Parts of filters that begin with a network's id, in the order in which they can go."""


def bridge_name(network_id: str) -> str:
    """A network's bridge."""
    return f"brq{network_id[:11]}"


def tap_name(port_id: str) -> str:
    """A port's device on the host's side."""
    return f"tap{port_id[:11]}"


class LinuxBridge:
    """The bridges of one place."""

    def __init__(self, place: HostPlace) -> None:
        self.place = place
        self.tables = Tables(place)
        self.log = bridge_log.BridgeLog(place)

    # --- life

    def start(self) -> None:
        """Load all filters anew from what is kept of them, without those of ports and networks that are gone."""
        self.tables.check_kernel()
        present = {port.id for port in self.plugged()}
        for id in self.tables.ids("port"):
            if id not in present:
                self.tables.drop("port", id)
                self.log.forget(id)
        networks = self.networks()
        for kind in _OF_NETWORKS:
            for id in self.tables.ids(kind):
                if id.partition("_")[0] not in networks:
                    self.tables.drop(kind, id)
        self.tables.load_all()
        self.log.start()

    def ready(self) -> None:
        """Bring the filters back when somebody took them away."""
        if not self.tables.present():
            self.tables.check_kernel()
            self.tables.load_all()

    def running(self) -> bool:
        """The kernel always is."""
        return True

    def stop(self) -> None:
        """Write no more to the log of security groups; packets go on."""
        self.log.stop()

    def destroy(self) -> None:
        """Remove the bridges that are left, and the filters; cards get their addresses back."""
        for id in self.networks():
            self.drop_network(id)
        self.tables.remove()
        self.log.destroy()

    # --- reading

    def networks(self) -> set[str]:
        """Networks that have a bridge."""
        with links.opened(self.place.namespace) as net:
            marks = [marked(self.place, device.alias) for device in net.devices()]
        return {found[1] for found in marks if found and found[0] == "network"}

    def plugged(self) -> list[Plugged]:
        """Every device of ours that is the port of some bridge, or is meant to be."""
        with links.opened(self.place.namespace) as net:
            return [port for port in map(self._port, net.devices()) if port is not None]

    def _port(self, device: Device) -> Plugged | None:
        found = marked(self.place, device.alias)
        if found is None or found[0] not in _PORT_KINDS:
            return None
        more = words(device.alias)
        return Plugged(
            kind=_PORT_KINDS[found[0]],
            id=found[1],
            network_id=more.get("network", ""),
            device=device.name,
            inner=more.get("inner", ""),
            owner=more.get("owner", ""),
        )

    # --- networks

    def wire_network(self, spec: NetworkSpec) -> None:
        """A bridge, its way out, and who is where."""
        card_name = self._card_name(spec)
        with links.opened(self.place.namespace) as net:
            card = net.device(card_name) if card_name else None
            bridge, zone, new = self._bridge(net, spec, card)
            way = self._way_out(net, spec, bridge, card)
            own = net.addresses(bridge.index) | (net.addresses(card.index) if card is not None else set())
            hosted = bool(spec.host_address or spec.masquerade or own)
        part = bridge_rules.network_part(self.tables.name, bridge.name, zone, hosted, [way.name] if way else [])
        self.tables.put("network", spec.id, part)
        self._local_ips(spec, bridge.name, [way.name] if way else [])
        if spec.restricted:
            self.tables.put("pvlan", spec.id, bridge_rules.pvlan_part(self.tables.name, spec.id, spec.restricted))
        else:
            self.tables.drop("pvlan", spec.id)
        with links.opened(self.place.namespace) as net:
            group = HOSTED if hosted else GROUP
            if way is not None and not (card and way.index == card.index):
                alias = f"{mark(self.place, 'uplink', spec.id)} network={spec.id}"
                bridge_links.make_port(net, way, bridge, alias, spec.mtu, group=group)
            elif way is not None and way.master != bridge.index:
                self._take_card(net, way, bridge)
            self._keep_ways(net, spec.id, way)
            if way is not None and way.kind == "vxlan":
                net.set_flood(way.index, spec.peers)
                bridge_links.set_flags(net, way.index, proxyarp_wifi=1)
                bridge_links.populate(net, way, [n for n in spec.neighbours if n.host in spec.peers])
            bridge_links.answer_arp(net, bridge, self._arp_answers(spec, way))
            for device in net.devices() if new else ():
                port = self._port(device)
                if port is not None and port.network_id == spec.id:
                    bridge_links.make_port(net, device, bridge, device.alias, device.mtu, group=group)
            # Frames for a host that is not on this network are dropped above; it must not even say who it is.
            links.sysctl(f"net/ipv4/conf/{bridge.name}/arp_ignore", "0" if hosted else "8")
            self._regroup(net, bridge, group)

    def _arp_answers(self, spec: NetworkSpec, way: Device | None) -> dict[str, str]:
        """The addresses that the bridge itself answers ARP for."""
        tunnelled = way is not None and way.kind == "vxlan"
        known = [n for n in spec.neighbours if tunnelled and n.host in spec.peers]
        found = {ip: n.mac.lower() for n in known for ip in n.addresses if ":" not in ip}
        return found | bridge_local_ip.answers(spec.local_ips)

    def _local_ips(self, spec: NetworkSpec, bridge: str, ways: Sequence[str]) -> None:
        name, mine = self.tables.name, {}
        for one in bridge_local_ip.chosen(spec.local_ips):
            if one.translate:
                key, part = bridge_local_ip.memory(name, one)
                mine[f"{spec.id}_{key}"] = part
        for id, part in mine.items():
            self.tables.put("talk", id, part)
        if spec.local_ips:
            part = bridge_local_ip.network_part(name, spec.id, bridge, ways, spec.local_ips)
            self.tables.put("localip", spec.id, part)
        else:
            self.tables.drop("localip", spec.id)
        for id in self.tables.ids("talk"):
            if id.startswith(f"{spec.id}_") and id not in mine:
                self.tables.drop("talk", id)

    def _card_name(self, spec: NetworkSpec) -> str:
        kind, physical = spec.segment.network_type, spec.segment.physical_network
        if kind not in ("flat", "vlan"):
            return ""
        if physical is None:
            raise NeedsOperator(f"Network {spec.id} is of type {kind} and names no physical network.")
        card = self.place.bridges.get(physical)
        if card is None:
            raise NeedsOperator(f"This host has no network card for the physical network {physical}.")
        return card

    def _bridge(self, net: Net, spec: NetworkSpec, card: Device | None) -> tuple[Device, int, bool]:
        name = bridge_name(spec.id)
        present = net.device(name)
        if present is not None and marked(self.place, present.alias) != ("network", spec.id):
            raise NeedsOperator(f"The bridge {name} belongs to somebody else.")
        zone = int(words(present.alias).get("zone", "0")) if present is not None else 0
        if not zone:
            taken = {int(words(d.alias).get("zone", "0")) for d in net.devices() if marked(self.place, d.alias)}
            zone = next((number for number in range(1, 1 << 16) if number not in taken), 0)
            if not zone:
                raise Impossible("This host has 65535 networks already.")
        flat = card is not None and spec.segment.network_type == "flat"
        digest = hashlib.sha256(f"{self.place.cloud}/{self.place.host}/{name}".encode()).digest()
        mac = card.mac if card is not None and flat else ":".join(f"{b:02x}" for b in (0xFA, 0x16, *digest[:4]))
        alias = f"{mark(self.place, 'network', spec.id)} zone={zone}"
        if card is not None and flat:
            alias += f" card={card.name}"
        bridge, new = bridge_links.ensure_bridge(net, name, alias, mac, spec.mtu)
        return bridge, zone, new

    def _way_out(self, net: Net, spec: NetworkSpec, bridge: Device, card: Device | None) -> Device | None:
        """The device that leads out of this host, made; None when the network stays here."""
        kind, number = spec.segment.network_type, spec.segment.segmentation_id or 0
        if kind == "vxlan":
            if not spec.peers:
                return None
            return self._tunnel(net, spec, f"vxlan-{number}", number)
        if kind == "vlan":
            if card is None:
                raise NeedsOperator(f"The network card of {spec.segment.physical_network} does not exist.")
            name = f"{card.name[: 15 - len(str(number)) - 1]}.{number}"
            if net.device(name) is None:
                net.change(card, up=True)
                bridge_links.add_vlan(net, card, number, name)
            return net.must(name)
        if kind == "flat":
            if card is not None and card.kind == "bridge":
                raise NeedsOperator(f"{card.name} is a bridge: name the network card of the physical network instead.")
            if card is not None and card.master not in (0, bridge.index):
                raise NeedsOperator(f"The network card {card.name} is a port of another bridge.")
            return card
        if kind == "local":
            return None
        raise Impossible(
            f"The Linux bridge carries flat, vlan, vxlan and local networks; network {spec.id} is of type {kind}."
        )

    def _tunnel(self, net: Net, spec: NetworkSpec, name: str, number: int) -> Device:
        present = net.device(name)
        if present is None:
            net.add_vxlan(name, number, self.place.tunnel_ip, spec.mtu)
        elif present.alias and marked(self.place, present.alias) != ("uplink", spec.id):
            raise NeedsOperator(f"The device {name} belongs to somebody else: VXLAN number {number} is taken here.")
        return net.must(name)

    def _take_card(self, net: Net, card: Device, bridge: Device) -> None:
        net.change(card, up=True)
        net.route.link("set", index=card.index, master=bridge.index)
        bridge_links.move_addresses(net, card, bridge)

    def _keep_ways(self, net: Net, network_id: str, way: Device | None) -> None:
        """Remove tunnels and VLAN devices that the network had for other segments."""
        for device in net.devices():
            if marked(self.place, device.alias) == ("uplink", network_id) and (way is None or device.name != way.name):
                net.remove(device.name)

    def _regroup(self, net: Net, bridge: Device, group: int) -> None:
        for device in net.devices():
            if device.master == bridge.index and marked(self.place, device.alias):
                net.change(device, group=group)

    def drop_network(self, id: str) -> None:
        """The bridge, the ways out and the DHCP port; a card gets its addresses back."""
        with links.opened(self.place.namespace) as net:
            for device in net.devices():
                port = self._port(device)
                if port and port.network_id == id and port.kind in ("uplink", "dhcp"):
                    net.remove(device.name)
                    if port.kind == "dhcp":
                        self.tables.drop("port", port.id)
            bridge = net.device(bridge_name(id))
            if bridge is not None and marked(self.place, bridge.alias) == ("network", id):
                card = net.device(words(bridge.alias).get("card", ""))
                if card is not None and card.master == bridge.index:
                    bridge_links.leave(net, card)
                    bridge_links.move_addresses(net, bridge, card)
                net.remove(bridge.name)
        for kind in _OF_NETWORKS:
            for one in self.tables.ids(kind):
                if one.partition("_")[0] == id:
                    self.tables.drop(kind, one)

    def outside_device(self, spec: NetworkSpec) -> str:
        """The bridge itself carries the host's address."""
        return bridge_name(spec.id)

    def uplink_devices(self, network_id: str) -> list[str]:
        """The host's card in the bridge of a flat network."""
        with links.opened(self.place.namespace) as net:
            bridge = net.device(bridge_name(network_id))
            card = net.device(words(bridge.alias).get("card", "")) if bridge is not None else None
        return [card.name] if card is not None else []

    # --- ports

    def ensure_guest(self, spec: PortSpec) -> str:
        """A guest's tap: filtered first, then plugged."""
        if spec.trunk is not None:
            raise NeedsOperator("Trunks need Open vSwitch: this host switches with Linux bridges.")
        with links.opened(self.place.namespace) as net:
            bridge = self._wired(net, spec.network_id)
            device = net.device(spec.device)
            base = mark(self.place, "port", spec.id)
            ours = device is not None and marked(self.place, device.alias) == ("port", spec.id)
            number = int(words(device.alias).get("n", "0")) if device is not None and ours else 0
            fresh = not number
            if fresh:
                number = self._number(net)
            limited = device is not None and ours and words(device.alias).get("q") == "1"
            alias = f"{base} network={spec.network_id} n={number}{' q=1' if spec.qos else ''}"
            if device is None:
                net.add_tap(spec.device, alias)
                device = net.must(spec.device)
        zone = int(words(bridge.alias).get("zone", "0"))
        if fresh:
            for ip in spec.fixed_ips:
                self.tables.forget_connections(zone, ip.ip_address)
        self.log.keep(spec)
        nflog = bridge_log.group_of(self.place.cloud)
        self.tables.put("port", spec.id, bridge_rules.port_part(self.tables.name, spec, number, nflog))
        own = bridge_rules.macs(spec)
        if spec.qos or limited:
            with links.entered(self.place.namespace):
                shaping.guest(spec.device, spec.qos)
        with links.opened(self.place.namespace) as net:
            bridge_links.make_port(net, device, bridge, alias, spec.mtu, group=self._group(net, bridge))
            # Frames to nobody known are no business of a guest whose addresses are all known.
            known = spec.port_security and own == [spec.mac.lower()]
            # Questions that the bridge answers itself (local IPs, other hosts' guests) are no business of guests.
            bridge_links.set_flags(net, device.index, unicast_flood=0 if known else 1, proxyarp_wifi=1)
            bridge_links.forward_here(net, device, [spec.mac])
        return ""

    def ensure_inner(self, port: InnerPort) -> list[str]:
        """A veth pair: ``tap...`` in the bridge, its device in its namespace."""
        if port.shared_as:
            raise NeedsOperator("Distributed routers need Open vSwitch: this host switches with Linux bridges.")
        outer = tap_name(port.port_id)
        alias = f"{mark(self.place, port.kind, port.port_id)} network={port.network_id}"
        alias += f" owner={port.owner} inner={port.device}"
        with links.opened(port.namespace) as net:
            present = net.device(port.device) is not None
        with links.opened(self.place.namespace) as net:
            bridge = self._wired(net, port.network_id)
            if not present or net.device(outer) is None:
                net.remove(outer)  # its other end may be in a namespace that somebody unmounted
                net.add_veth(outer, port.namespace, port.mac, port.device)
        self.tables.put("port", port.port_id, bridge_rules.trusted_part(self.tables.name, outer))
        with links.opened(self.place.namespace) as net:
            end = net.must(outer)
            bridge_links.make_port(net, end, bridge, alias, port.mtu, group=self._group(net, bridge))
            bridge_links.forward_here(net, end, [] if port.roams else [port.mac])
        with links.opened(port.namespace) as net:
            links.sysctl(f"net/ipv6/conf/{port.device}/accept_ra", "0")
            inner = net.must(port.device)
            if port.made is not None and not inner.up:
                port.made()
            net.change(inner, up=True, mtu=port.mtu, mac=port.mac)
            return net.set_addresses(inner.index, port.addresses) if port.addresses is not None else []

    def drift(self) -> list[tuple[str, str]]:
        """Nothing: what it has are devices, which are looked at anyway."""
        return []

    def remove(self, ports: Sequence[Plugged]) -> None:
        """Delete devices, then their filters."""
        if not ports:
            return
        with links.opened(self.place.namespace) as net:
            for port in ports:
                present = net.device(port.device)
                if present is not None and words(present.alias).get("q") == "1":
                    shaping.guest(port.device, None)
                net.remove(port.device)
        for port in ports:
            self.tables.drop("port", port.id)
            self.log.forget(port.id)

    def _wired(self, net: Net, network_id: str) -> Device:
        bridge = net.device(bridge_name(network_id))
        if bridge is None or marked(self.place, bridge.alias) != ("network", network_id):
            raise TryAgain(f"The network {network_id} is not wired on this host yet.")
        return bridge

    def _number(self, net: Net) -> int:
        taken = {int(words(d.alias).get("n", "0")) for d in net.devices() if marked(self.place, d.alias)}
        number = next((n for n in range(1, bridge_rules.MAX_NUMBER) if n not in taken), 0)
        if not number:
            raise Impossible("This host has 32766 guests' ports already.")
        return number

    def _group(self, net: Net, bridge: Device) -> int:
        kept = self.tables.kept("network", marked(self.place, bridge.alias)[1])  # type: ignore[index]  # it is ours
        return HOSTED if kept is not None and " hosted " in kept.add else GROUP

    # --- security groups

    def ensure_group(self, spec: SecurityGroupSpec) -> None:
        """A group's rules, for all its ports at once."""
        self.tables.put("group", spec.id, bridge_rules.group_part(self.tables.name, spec))

    def remove_group(self, id: str) -> None:
        """Forget a group."""
        gone = "".join(f"delete chain inet {self.tables.name} {name}\n" for name in bridge_rules.group_chains(id))
        self.tables.drop("group", id, gone)

    def groups(self) -> list[str]:
        """Groups that have rules here."""
        return self.tables.ids("group")

    def ensure_set(self, spec: AddressSetSpec) -> None:
        """Addresses that rules refer to, replaced in place."""
        self.tables.put("set", spec.id, bridge_rules.set_part(self.tables.name, spec))

    def remove_set(self, id: str) -> None:
        """Forget a set of addresses."""
        gone = "".join(f"delete set inet {self.tables.name} {name}\n" for name in bridge_rules.set_names(id))
        self.tables.drop("set", id, gone)

    def sets(self) -> list[str]:
        """Address sets that are here."""
        return self.tables.ids("set")
