"""Open vSwitch as the virtual switch of a host (switches.VirtualSwitch)."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import msgspec

from nubila.core.ports import AddressSetSpec, NeedsOperator, NetworkSpec, PortSpec, SecurityGroupSpec, TryAgain
from nubila.drivers import links, ovs_db, ovs_ports, ovs_security
from nubila.drivers.ovs_flows import Uplink
from nubila.drivers.ovs_switch import Switch
from nubila.drivers.ovs_view import ID, INDEX, NETWORK, OWNER, Wish
from nubila.drivers.switches import InnerPort, Plugged, mark, marked


class OpenVSwitch(Switch):
    """The bridges of one place, with the verbs that the network driver uses."""

    def running(self) -> bool:
        """Whether the daemons run."""
        return self.daemons.running()

    def networks(self) -> set[str]:
        """Ids of the networks that br-int remembers."""
        return set(self.view().networks)

    def plugged(self) -> list[Plugged]:
        """Every interface of ours."""
        return [
            Plugged(
                kind=i.kind,
                id=i.ids.get(ID, ""),
                network_id=i.ids.get(NETWORK, ""),
                device=i.name,
                inner=i.name if i.kind in ("router", "dhcp") else "",
                owner=i.ids.get(OWNER, ""),
            )
            for i in self.view().interfaces.values()
        ]

    def wire_network(self, spec: NetworkSpec) -> None:
        """A local VLAN, tunnels and patch ports, and the flows that join them."""
        local = self.ensure_network(spec.id, spec.segment, spec.project_id, self.view())
        if spec.guest_tags:
            self.see_two_tags()
        uplinks = self._uplinks(spec)
        wanted = (uplinks, spec.restricted, spec.local_ips, spec.guest_tags)
        if wanted != (local.uplinks, local.restricted, local.local_ips, local.tags):
            view = self.view()
            now = msgspec.structs.replace(
                view.networks[spec.id], uplinks=uplinks, restricted=spec.restricted, local_ips=spec.local_ips,
                tags=spec.guest_tags,
            )  # fmt: skip
            self.save_network(spec.id, now, view)
        self.wire(spec.id)

    def drop_network(self, id: str) -> None:
        """Its tunnels, DHCP port and flows."""
        of = [i for i in self.view().interfaces.values() if i.ids.get(NETWORK) == id]
        gone = ovs_ports.take_out(self, [i for i in of if i.kind in ("uplink", "dhcp")])
        self.forget_network(id, gone)

    def outside_device(self, spec: NetworkSpec) -> str:
        """The physical network's bridge: its own port is the host's device."""
        bridge = self.physical_bridge(spec.segment.physical_network or "")
        with links.entered(self.place.namespace):
            links.plain_frames(bridge)
        return bridge

    def ensure_guest(self, spec: PortSpec) -> str:
        """A guest's tap, plugged and filtered."""
        ovs_ports.ensure_guest(self, spec)
        return ""

    def ensure_inner(self, port: InnerPort) -> list[str]:
        """A veth pair into its namespace; both ends have the same name."""
        return ovs_ports.ensure_inner(self, port)

    def remove(self, ports: Sequence[Plugged]) -> None:
        """Unplug ports and delete their devices."""
        if not ports:
            return
        present = self.view().interfaces
        ovs_ports.remove(self, [present[port.device] for port in ports if port.device in present])

    # --- security groups

    def groups(self) -> list[str]:
        """Ids of the groups that br-int knows."""
        return sorted(self.view().shared["security_group"])

    def ensure_group(self, spec: SecurityGroupSpec) -> None:
        """A group's rules, once for all its ports."""
        view = self.view()
        number = self.numbers("security_group", [spec.id], view)[spec.id]
        if spec.id not in view.shared["security_group"]:
            view = self.view()
        named = {rule.remote_set for rule in spec.rules if rule.remote_set is not None}
        sets = self.numbers("address_set", named, view)
        self.write_shared("security_group", spec.id, number, ovs_security.group_flows(spec, number, sets), view)

    def remove_group(self, id: str) -> None:
        """Forget a group; absent is success."""
        self.drop_shared("security_group", id)

    def sets(self) -> list[str]:
        """Ids of the sets that br-int knows."""
        return sorted(self.view().shared["address_set"])

    def ensure_set(self, spec: AddressSetSpec) -> None:
        """A set's addresses, once for all rules."""
        view = self.view()
        number = self.numbers("address_set", [spec.id], view)[spec.id]
        self.write_shared("address_set", spec.id, number, ovs_security.set_flows(spec, number), view)

    def remove_set(self, id: str) -> None:
        """Forget a set; absent is success."""
        self.drop_shared("address_set", id)

    # --- ways out

    def control_socket(self) -> Path:
        """Where ovs-vswitchd takes commands (ovs-appctl(8))."""
        return self.daemons.control_socket()

    def uplink_devices(self, network_id: str) -> list[str]:
        """The host's cards in the bridge of a network's physical network."""
        network = self.view().networks.get(network_id)
        bridge = self.place.bridges.get((network.segment.physical_network if network else None) or "")
        if not bridge:
            return []
        bridges, ports = self.db.rows(
            ovs_db.select("Bridge", ["ports"], [["name", "==", bridge]]), ovs_db.select("Port", ["_uuid", "name"])
        )
        mine: set[str] = set()
        for row in bridges:
            mine |= set(row["ports"] if isinstance(row["ports"], list) else [row["ports"]])
        names = [row["name"] for row in ports if row["_uuid"] in mine and row["name"] != bridge]
        with links.opened(self.place.namespace) as net:
            devices = [net.device(name) for name in names]
        return sorted(d.name for d in devices if d is not None and marked(self.place, d.alias) is None)

    def _uplinks(self, spec: NetworkSpec) -> tuple[Uplink, ...]:
        """The network's ways to other hosts, made; those it does not need any more are removed."""
        segment = spec.segment
        wanted: list[Uplink] = []
        keep: set[str] = set()
        if segment.network_type in ("vlan", "flat"):
            if segment.physical_network is None:
                raise NeedsOperator(
                    f"Network {spec.id} is of type {segment.network_type} and names no physical network."
                )
            tag = segment.segmentation_id if segment.network_type == "vlan" else None
            number = self.patch(segment.physical_network)
            wanted.append(Uplink(ofport=number, vlan=tag, tunnel=False, tpid=spec.vlan_ethertype))
        elif segment.network_type == "vxlan" and spec.peers:
            wanted.append(Uplink(ofport=self._vxlan(spec)))
            keep.add(spec.id)
        elif segment.network_type in ("gre", "geneve"):
            if spec.peers:
                self._tunnels_get_out(segment.network_type)
            for peer in spec.peers:
                keep.add(f"{spec.id}/{peer}")
                wanted.append(Uplink(ofport=self._tunnel(spec, peer)))
        present = self.view().interfaces.values()
        gone = [i for i in present if i.kind == "uplink" and i.ids.get(NETWORK) == spec.id and i.ids[ID] not in keep]
        ovs_ports.remove(self, gone)
        return tuple(wanted)

    def _vxlan(self, spec: NetworkSpec) -> int:
        vni = spec.segment.segmentation_id or 0
        name = f"vxlan-{vni}"
        alias = mark(self.place, "uplink", spec.id)
        with links.opened(self.place.namespace) as net:
            present = net.device(name)
            if present is None:
                net.add_vxlan(name, vni, self.place.tunnel_ip, spec.mtu)
            elif present.alias not in ("", alias):
                raise NeedsOperator(f"The device {name} belongs to somebody else: VXLAN number {vni} is taken here.")
            device = net.give_to_switch(name, alias, spec.mtu)
            net.set_flood(device.index, spec.peers)
        return self._uplink(
            Wish(name=name, kind="uplink", id=spec.id, network_id=spec.id, ids={INDEX: str(device.index)})
        )

    def _tunnels_get_out(self, kind: str) -> None:
        """Raise NeedsOperator where the userspace datapath's tunnels would end: they leave by its own bridges only."""
        if self.daemons.datapath_type != "netdev":
            return
        with links.opened(self.place.namespace) as net:
            owners = [d.name for d in net.devices() if self.place.tunnel_ip in
                      {a.partition("/")[0] for a in net.addresses(d.index)}]  # fmt: skip
        if not any(self.bridge_row(name) for name in owners):
            raise NeedsOperator(
                f"Open vSwitch runs in user space here: its {kind} tunnels get out only when the tunnel address "
                f"{self.place.tunnel_ip} is on an Open vSwitch bridge that has the network card as a port. VXLAN "
                "needs no such thing."
            )

    def _tunnel(self, spec: NetworkSpec, peer: str) -> int:
        digest = hashlib.sha256(f"{spec.id}/{peer}".encode()).hexdigest()[:8]
        options = {"remote_ip": peer, "local_ip": self.place.tunnel_ip, "key": str(spec.segment.segmentation_id or 0)}
        kind = spec.segment.network_type
        name = f"{kind}-{digest}"
        return self._uplink(
            Wish(name=name, kind="uplink", id=f"{spec.id}/{peer}", network_id=spec.id, type=kind, options=options)
        )

    def _uplink(self, wish: Wish) -> int:
        number = self.plug(wish, self.view()).ofport
        if number is None:
            raise TryAgain(f"The tunnel {wish.name} has no number yet.")
        return number
