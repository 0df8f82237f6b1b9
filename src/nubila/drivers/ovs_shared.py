"""Flows of interfaces that are on every host of their network: those of distributed routers (pure).

Such an interface has the same MAC and addresses everywhere, so each host's guests must meet their own host's, and no
other host may notice that there are several. Therefore, on every host:

- questions for its addresses (ARP, neighbour solicitations) are answered here and never leave;
- what it sends to other hosts leaves with a MAC of this host (the alias) and gets the shared one back where it arrives;
- answers to its own questions go to this host's and, since the guest cannot know who asked, to every other host's: an
  instance that did not ask takes no notice;
- nothing else reaches it from other hosts, and its router advertisements stay at home.

An alias has a first octet of its own and the last three of the shared MAC; the host is in between (``alias_mac`` of
RouterPort). So one masked flow per interface recognises those of all hosts. Register 4 is 1 for frames from outside.
"""

from __future__ import annotations

from collections.abc import Sequence

MULTICAST = "dl_dst=01:00:00:00:00:00/01:00:00:00:00:00"


def flows(
    vlan: int,
    *,
    ofport: int,
    mac: str,
    alias: str,
    addresses: Sequence[str],
    others: Sequence[str],
    away: Sequence[str],
    back: Sequence[str],
    learns: bool,
) -> list[str]:
    """Flows of table 30 for one shared interface.

    ``others`` are the deliveries to the network's other local ports, ``away`` the ways to other hosts, ``back`` those
    of them that a frame from another host may take.
    """
    here, there = f"table=30,reg4=0,reg5={vlan}", f"table=30,reg4=1,reg5={vlan}"
    mine = f"output:{ofport}"
    out = [f"mod_dl_src:{alias}", *away] if away else []
    octets = alias.split(":")
    found = []
    for address in addresses:
        asked = f"icmp6,icmp_type=135,nd_target={address}" if ":" in address else f"arp,arp_op=1,arp_tpa={address}"
        found += [f"{here},priority=150,{asked} actions={mine}", f"{there},priority=150,{asked} actions=drop"]
    for answer in ("arp,arp_op=2", "icmp6,icmp_type=136"):
        found.append(f"{here},priority=130,dl_dst={mac},{answer} actions={','.join([mine, *away])}")
        found.append(f"{there},priority=130,dl_dst={mac},{answer} actions={mine}")
    found += [
        f"{there},priority=120,dl_dst={mac} actions=drop",
        f"{there},priority=200,dl_src={octets[0]}:00:00:{':'.join(octets[3:])}/ff:00:00:ff:ff:ff "
        f"actions=mod_dl_src:{mac},resubmit(,30)",
        _flow(f"{there},priority=140,dl_src={mac},{MULTICAST}", [*others, *back]),
        _flow(f"{here},priority=125,in_port={ofport},{MULTICAST}", [*others, *out]),
    ]
    for kind in (134, 136):
        found.append(_flow(f"{here},priority=145,in_port={ofport},icmp6,icmp_type={kind},{MULTICAST}", others))
    if learns:
        find = f"mod_dl_src:{alias},set_field:0->reg7,resubmit(,31),resubmit(,32)"
        found.append(f"{here},priority=20,in_port={ofport} actions={find}")
    else:
        found.append(_flow(f"{here},priority=20,in_port={ofport}", out))
    return found


def _flow(match: str, actions: Sequence[str]) -> str:
    return f"{match} actions={','.join(actions) if actions else 'drop'}"
