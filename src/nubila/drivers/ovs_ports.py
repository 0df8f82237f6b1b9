"""Ports of the integration bridge together with their devices: guests' taps, and veth pairs into namespaces.

Routers and DHCP servers use veth pairs rather than Open vSwitch internal ports: a veth outlives a restart of
ovs-vswitchd, the userspace datapath's internal ports do not. Both ends have the same name.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

from nubila.core.ports import PortSpec, TryAgain
from nubila.drivers import links, ovs_db, ovs_flows, ovs_qos, ovs_security, ovs_trunk
from nubila.drivers.ovs_switch import Switch
from nubila.drivers.ovs_view import (
    ALIAS,
    FLOWS,
    ID,
    INDEX,
    MACS,
    NETWORK,
    OPEN,
    OWNER,
    SHARED,
    STEERING,
    UP,
    Interface,
    LocalNetwork,
    View,
    Wish,
)
from nubila.drivers.switches import InnerPort, mark


def ensure_guest(switch: Switch, spec: PortSpec) -> None:
    """A guest's tap, plugged and filtered; a device that has the name already is adopted as it is."""
    place = switch.place
    view = switch.view()
    network = _network(view, spec.network_id)
    index: int | None = None
    if spec.trunk is None or spec.trunk.vlan is None:  # a subport's frames come by its parent's tap
        with links.opened(place.namespace) as net:
            alias = mark(place, "port", spec.id)
            if net.device(spec.device) is None:
                net.add_tap(spec.device, alias)
            index = net.give_to_switch(spec.device, alias, spec.mtu).index
    view = ovs_trunk.place(switch, spec, index, view)
    name = ovs_trunk.inner(spec)
    trunked = {} if spec.trunk is None else {
        ovs_trunk.TRUNK: spec.trunk.trunk_id, ovs_trunk.TAP: spec.device if spec.trunk.vlan is None else "",
    }  # fmt: skip
    macs = sorted({spec.mac.lower(), *(mac.lower() for _, mac in spec.allowed_pairs if mac)})
    wish = Wish(
        name=name,
        kind="guest",
        type="patch" if trunked else "",
        options={"peer": ovs_trunk.outer(name)} if trunked else {},
        id=spec.id,
        network_id=spec.network_id,
        tag=network.vlan,
        ids={
            **(trunked or {INDEX: str(index)}),
            MACS: json.dumps(macs),
            OPEN: "0" if spec.port_security else "1",
            UP: "1" if spec.admin_state_up else "0",
            STEERING: "" if trunked else spec.tx_steering,
            "iface-id": spec.id,
            "attached-mac": spec.mac,
            "iface-status": "active",
        },
    )
    interface = switch.plug(wish, view)
    number = interface.ofport or 0
    groups = switch.numbers("security_group", spec.groups, view)
    switch.log.keep(spec.id, spec.project_id, spec.logs, ovs_security.logged_groups(spec, number, groups))
    flows = ovs_flows.port_flows(spec, number, network.vlan, groups, tags=network.tags)
    flows = ovs_qos.shaped(flows, spec.qos, number)
    known, wanted = ovs_qos.remembered(interface.ids), ovs_qos.meters(spec.qos, number)
    if known or wanted:
        whole = interface.ids.get(FLOWS, "") != ""  # else a meter may have gone, and taken flows with it
        ovs_qos.ensure(switch.daemons, switch.bridge, wanted, known if whole else {})
        if known != wanted:
            switch.set_ids(interface, {ovs_qos.METERS: ovs_qos.encode(known | wanted)})
    _wire(switch, interface, spec.network_id, flows)
    if known.keys() - wanted.keys():
        ovs_qos.drop(switch.daemons, switch.bridge, sorted(known.keys() - wanted.keys()))
        switch.set_ids(interface, {ovs_qos.METERS: ovs_qos.encode(wanted)})


def ensure_inner(switch: Switch, port: InnerPort) -> list[str]:
    """A router's or DHCP server's port: a veth into its namespace (see switches.VirtualSwitch)."""
    place = switch.place
    view = switch.view()
    network = _network(view, port.network_id)
    with links.opened(port.namespace) as net:
        present = net.device(port.device) is not None
    with links.opened(place.namespace) as net:
        if not present:
            net.remove(port.device)  # its other end may be in a namespace that somebody unmounted
            net.add_veth(port.device, port.namespace, port.mac)
        index = net.give_to_switch(port.device, mark(place, port.kind, port.port_id), port.mtu).index
    with links.opened(port.namespace) as net:
        links.plain_frames(port.device)
        links.sysctl(f"net/ipv6/conf/{port.device}/accept_ra", "0")
        inner = net.must(port.device)
        if port.made is not None and not inner.up:
            port.made()
        net.change(inner, up=True, mtu=port.mtu, mac=port.mac)
        new = net.set_addresses(inner.index, port.addresses) if port.addresses is not None else []
    ids = {INDEX: str(index), OWNER: port.owner, "iface-id": port.port_id, "attached-mac": port.mac}
    ids |= {MACS: "[]", OPEN: "1"} if port.roams else {MACS: json.dumps([port.mac.lower()])}
    if port.kind == "router":
        shared = [address.partition("/")[0] for address in port.addresses or ()]
        ids |= {
            ALIAS: port.shared_as,
            SHARED: json.dumps([*shared, ovs_flows.link_local(port.mac)] if port.shared_as else []),
        }
    wish = Wish(
        name=port.device, kind=port.kind, id=port.port_id, network_id=port.network_id, tag=network.vlan, ids=ids
    )
    interface = switch.plug(wish, view)
    roaming = port.mac if port.roams else ""
    _wire(
        switch,
        interface,
        port.network_id,
        ovs_flows.trusted_flows(interface.ofport or 0, network.vlan, roaming=roaming),
    )
    return new


def remove(switch: Switch, interfaces: Sequence[Interface]) -> None:
    """Unplug interfaces, delete their devices, and bring their networks' flows up to date; absent is success."""
    gone = take_out(switch, interfaces)
    networks = sorted({interface.ids.get(NETWORK, "") for interface in interfaces})
    for network_id in networks:
        switch.wire(network_id, gone)
        gone = {}


def take_out(switch: Switch, interfaces: Sequence[Interface]) -> dict[tuple[str, str], Sequence[str]]:
    """Unplug interfaces and delete their devices; returns the flow sets that the caller must replace by nothing."""
    gone = switch.unplug(interfaces)
    for interface in interfaces:
        switch.log.keep(interface.ids.get(ID, ""), "", (), {})
    if interfaces:
        devices = [interface.name for interface in interfaces] + ovs_trunk.forget(switch, interfaces)
        with links.opened(switch.place.namespace) as net:
            for device in devices:
                net.remove(device)
    return gone


def _network(view: View, network_id: str) -> LocalNetwork:
    network = view.networks.get(network_id)
    if network is None:
        raise TryAgain(f"The network {network_id} is not wired on this host yet.")
    return network


def _wire(switch: Switch, interface: Interface, network_id: str, flows: Sequence[str]) -> None:
    fingerprint = ovs_flows.digest(flows)
    if interface.ids.get(FLOWS) == fingerprint:
        switch.wire(network_id)
        return
    done = ovs_db.mutate("Interface", interface.uuid, *ovs_db.put("external_ids", {FLOWS: fingerprint}))
    switch.wire(network_id, {(interface.kind, interface.ids["nubila-id"]): flows}, [done])
