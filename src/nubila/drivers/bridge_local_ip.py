"""Local IPs on Linux bridges as nftables: an address that a port of the same host answers for, whoever else has it.

The bridge answers ARP for the address with that port's MAC (bridge_switch gives it the entry); questions that come from
other hosts are dropped before it can, for theirs are theirs. Packets to the address that start on this host get the
port's MAC, whichever they had. Mode "translate": they get its fixed address as they leave the bridge, and answers get
the local IP as they enter it, so that filters and conntrack in between see the same connection both ways. Which answers
those are is remembered by the packets that went there (the kernel's own translation cannot be used: it would have to
route between bridge ports, and networks overlap). So a guest cannot have connections to the local IP and to the fixed
address from one port of its own to the same port at the same time; ICMP errors are not translated.

Sources: nft(8) dynamic sets; Linux net/bridge/br_netfilter_hooks.c, br_arp_nd_proxy.c.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from nubila.core.ports import LocalIp
from nubila.drivers.bridge_rules import OUTSIDE, Part, join

_LASTS = (
    # what, for how long answers are translated after the last packet that went there
    ("tcp flags & (fin | rst) != 0", "1m"),
    ("meta l4proto tcp", "6h"),
    ("meta l4proto { udp, udplite, sctp, dccp }", "3m"),
)


def chosen(local_ips: Sequence[LocalIp]) -> list[LocalIp]:
    """The first port of each address."""
    found: dict[str, LocalIp] = {}
    for one in local_ips:
        found.setdefault(one.address, one)
    return list(found.values())


def answers(local_ips: Sequence[LocalIp]) -> dict[str, str]:
    """Which MAC the bridge says an address has; one whose owner is here is asked himself."""
    return {one.address: one.mac.lower() for one in chosen(local_ips) if not one.owner_here}


def memory(table: str, one: LocalIp) -> tuple[str, Part]:
    """(name, part): who spoke to a local IP. A part of its own, so that other changes do not forget it."""
    name = hashlib.sha256(f"{one.port_id}/{one.fixed_ip}/{one.address}".encode()).hexdigest()[:16]
    add = [
        f"add set inet {table} lt{name} {{ type ipv4_addr . inet_proto . inet_service . inet_service; "
        "size 65535; flags dynamic,timeout; }",
        f"add set inet {table} li{name} {{ typeof ip saddr . icmp id; size 65535; flags dynamic,timeout; }}",
    ]
    return name, join(add, [f"delete set inet {table} {letters}{name}" for letters in ("lt", "li")])


def network_part(table: str, network_id: str, bridge: str, ways: Sequence[str], local_ips: Sequence[LocalIp]) -> Part:
    """A network's local IPs; their memories must be there."""
    packets, into, out = f"inet {table}", f"lip-{network_id[:11]}", f"lop-{network_id[:11]}"
    add = [f"add chain {packets} {name}" for name in (into, out)]
    inside = f"meta mark & {OUTSIDE:#x} == 0"
    for one in chosen(local_ips):
        add.append(f"add rule {packets} {into} {inside} ip daddr {one.address} ether daddr set {one.mac.lower()}")
        if not one.translate:
            continue
        name, _ = memory(table, one)
        reply = f"add rule {packets} {into} ip saddr {one.fixed_ip}"
        add.append(f"{reply} ip daddr . meta l4proto . th dport . th sport @lt{name} ip saddr set {one.address}")
        add.append(f"{reply} icmp type echo-reply ip daddr . icmp id @li{name} ip saddr set {one.address}")
        ask = f"add rule {packets} {out} {inside} ip daddr {one.address}"
        for match, lasts in _LASTS:
            key = f"ip saddr . meta l4proto . th sport . th dport timeout {lasts}"
            add.append(f"{ask} {match} update @lt{name} {{ {key} }} ip daddr set {one.fixed_ip}")
        key = "ip saddr . icmp id timeout 30s"
        add.append(f"{ask} icmp type echo-request update @li{name} {{ {key} }} ip daddr set {one.fixed_ip}")
    elements = [(packets, "to_local_ips", f'"{bridge}"', f" : jump {into}")]
    elements.append((packets, "from_bridge", f'"{bridge}"', f" : jump {out}"))
    elements += [(f"bridge {table}", "theirs", f'"{way}" . {ip}', "") for way in ways for ip in answers(local_ips)]
    add += [f"add element {where} {name} {{ {key}{verdict} }}" for where, name, key, verdict in elements]
    remove = [f"delete element {where} {name} {{ {key} }}" for where, name, key, _ in elements]
    return join(add, [*remove, *(f"delete chain {packets} {name}" for name in (into, out))])
