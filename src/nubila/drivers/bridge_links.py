"""Kernel bridges by netlink: bridges, their ports, VXLAN and VLAN devices, forwarding and neighbour entries.

Everything works on an opened ``links.Net`` and makes equal what differs.
"""

from __future__ import annotations

import errno
import socket
from collections.abc import Iterable, Mapping
from typing import Any

from pyroute2.netlink.exceptions import NetlinkError

from nubila.core.ports import NeedsOperator, Neighbour
from nubila.drivers import link_reads, links
from nubila.drivers.links import Device, Net

HOSTED = links.GROUP + 1  # interface group of ports whose network the host itself may be reached on
_PERMANENT, _NOARP, _REACHABLE = 0x80, 0x40, 0x02
_SELF, _MASTER = 0x02, 0x04
_NOBODY = "00:00:00:00:00:00"
_ABSENT = (errno.ENODEV, errno.ENOENT, errno.ESRCH, errno.EADDRNOTAVAIL)


def ensure_bridge(net: Net, name: str, alias: str, mac: str, mtu: int) -> tuple[Device, bool]:
    """A bridge whose IPv4 and IPv6 packets pass the host's inet tables; returns it and whether it was new.

    It forwards at once, learns, does not speak STP and floods multicast, as an Ethernet switch without management.
    """
    device = net.device(name)
    new = device is None
    if device is None:
        options = {"br_forward_delay": 0, "br_stp_state": 0, "br_mcast_snooping": 0}
        tracked = {"br_nf_call_iptables": 1, "br_nf_call_ip6tables": 1}
        try:
            net.route.link("add", ifname=name, kind="bridge", address=mac, ifalias=alias, **options, **tracked)
        except NetlinkError as refusal:
            if refusal.code == errno.EOPNOTSUPP:
                raise NeedsOperator("This kernel has no bridges (CONFIG_BRIDGE).") from None
            raise
        device = net.must(name)
    links.sysctl(f"net/ipv6/conf/{name}/disable_ipv6", "1")
    net.change(device, up=True, mtu=mtu, mac=mac, alias=alias)
    return device, new


def make_port(net: Net, device: Device, bridge: Device, alias: str, mtu: int, *, group: int) -> bool:
    """Make a device of ours a port of a bridge; returns whether it was none before."""
    links.sysctl(f"net/ipv6/conf/{device.name}/disable_ipv6", "1")
    # The bridge answers ARP by its ports, which a port that has ARP switched off never lets out.
    net.change(device, mtu=mtu, alias=alias, arp=True, group=group)
    fresh = device.master != bridge.index
    if fresh:
        net.route.link("set", index=device.index, master=bridge.index)
    net.change(device, up=True)
    return fresh


def set_flags(net: Net, index: int, **flags: int) -> None:
    """Flags of a bridge port, e.g. unicast_flood=0."""
    present = link_reads.port_flags(index)
    if any(present.get(name) != value for name, value in flags.items()):
        net.route.brport("set", index=index, **flags)


def leave(net: Net, device: Device) -> None:
    """Take a device out of its bridge."""
    if device.master:
        net.route.link("set", index=device.index, master=0)


def add_vlan(net: Net, card: Device, vlan: int, name: str) -> None:
    """An 802.1Q device above a network card."""
    try:
        net.route.link("add", ifname=name, kind="vlan", link=card.index, vlan_id=vlan)
    except NetlinkError as refusal:
        if refusal.code == errno.EOPNOTSUPP:
            raise NeedsOperator(
                "VLAN networks on the Linux bridge need 802.1Q devices, and this kernel has none "
                "(CONFIG_VLAN_8021Q); use Open vSwitch on this host or another kernel."
            ) from None
        raise


def move_addresses(net: Net, source: Device, target: Device, keep: Iterable[str] = ()) -> None:
    """Give a device's addresses and the routes that use it to another device, as one does when a card is bridged."""
    stay = set(keep)
    routes = [r for r in net.route.get_routes(oif=source.index, table=254) if r.get_attr("RTA_GATEWAY")]
    moved = sorted(net.addresses(source.index) - stay)
    for address in moved:
        net.add_address(target.index, address)
        net.remove_address(source.index, address)
    for route in routes if moved else ():
        family = socket.AF_INET6 if ":" in route.get_attr("RTA_GATEWAY") else socket.AF_INET
        to = route.get_attr("RTA_DST") or ("::" if family == socket.AF_INET6 else "0.0.0.0")
        wish: dict[str, Any] = {"gateway": route.get_attr("RTA_GATEWAY"), "oif": target.index}
        if route.get_attr("RTA_PRIORITY"):
            wish["priority"] = route.get_attr("RTA_PRIORITY")
        net.route.route("replace", dst=f"{to}/{route['dst_len']}", **wish)


# --- who is where -------------------------------------------------------------------------------------------------


def forward_here(net: Net, port: Device, macs: Iterable[str]) -> None:
    """Send frames to these addresses out of a port of the bridge, learned or not."""
    wanted = {mac.lower() for mac in macs}
    present = {entry.mac for entry in link_reads.forwarding(port.index) if entry.state == _NOARP} if wanted else set()
    for mac in sorted(wanted - present):
        net.route.fdb("replace", ifindex=port.index, lladdr=mac, flags=_MASTER, state=_NOARP)


def populate(net: Net, tunnel: Device, neighbours: Iterable[Neighbour]) -> None:
    """Tell the tunnel and its bridge who lives on which other host (l2 population).

    The tunnel sends to the one host, the bridge sends to the tunnel, and answers ARP requests for these addresses
    itself, so that they need not be flooded. What is not known is flooded and learned as before.
    """
    wanted = {n.mac.lower(): n.host for n in neighbours}
    present: dict[str, str] = {}
    for entry in link_reads.forwarding(tunnel.index):
        if entry.address and entry.mac != _NOBODY and entry.state & _PERMANENT:
            present[entry.mac] = entry.address
    for mac in sorted(present.keys() - wanted.keys()):
        _forget(net, "fdb", ifindex=tunnel.index, lladdr=mac, flags=_SELF)
        _forget(net, "fdb", ifindex=tunnel.index, lladdr=mac, flags=_MASTER)
    for mac, host in sorted(wanted.items()):
        if present.get(mac) != host:
            net.route.fdb("replace", ifindex=tunnel.index, lladdr=mac, dst=host, flags=_SELF, state=_PERMANENT | _NOARP)
            net.route.fdb("replace", ifindex=tunnel.index, lladdr=mac, flags=_MASTER, state=_NOARP)


def answer_arp(net: Net, bridge: Device, wanted: Mapping[str, str]) -> None:
    """Have the bridge answer ARP requests for these addresses (address -> MAC), and no others, by itself."""
    present = {e.address: e.mac for e in link_reads.neighbours(bridge.index) if e.state & _PERMANENT}
    for ip in sorted(present.keys() - wanted.keys()):
        _forget(net, "neigh", ifindex=bridge.index, dst=ip, family=socket.AF_INET)
    for ip, mac in sorted(wanted.items()):
        if present.get(ip) != mac:
            net.route.neigh("replace", ifindex=bridge.index, dst=ip, lladdr=mac, state=_PERMANENT)


def _forget(net: Net, what: str, **entry: Any) -> None:
    try:
        getattr(net.route, what)("del", **entry)
    except NetlinkError as refusal:
        if refusal.code not in _ABSENT:
            raise
