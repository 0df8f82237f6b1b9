"""Local IPs as OpenFlow: an address that is answered by a port of the same host, whoever else may have it.

On a host with a port that is associated with a local IP, the switch answers ARP for the address with that port's MAC
and takes packets to the address there. Mode "translate": the port sees its own fixed address and its answers come back
from the local IP (destination NAT in a connection tracking zone of the network's own, above those of ports); senders'
and receivers' security groups judge what each of them sees. Mode "passthrough": nothing is translated.

    30  to the local IP, or from a fixed address behind one: through conntrack        33, 34  with addresses translated

Other hosts have their own associations or none; without one the address is wherever it really is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from nubila.core.ports import LocalIp

FIRST_ZONE = 61_440
"""Zones of networks follow (plus the local VLAN, at most 4094); port numbers, which are zones too, end below."""


def static_flows() -> list[str]:
    """What came out of translation goes on."""
    return [
        "table=33,priority=0 actions=drop",
        "table=34,priority=0 actions=set_field:1->reg11,resubmit(,30)",
    ]


def flows(vlan: int, local_ips: Sequence[LocalIp], numbers: Mapping[str, int]) -> list[str]:
    """A network's part; ``numbers``: the OpenFlow numbers of the ports that are plugged."""
    out: dict[str, str] = {}
    zone = FIRST_ZONE + vlan
    for local in local_ips:
        number = numbers.get(local.port_id)
        if number is None:
            continue
        there = f"set_field:{local.mac}->eth_dst,set_field:{number}->reg7,resubmit(,50)"  # 50: private VLANs
        out.setdefault(
            f"table=30,priority=120,reg4=0,reg5={vlan},arp,arp_op=1,arp_tpa={local.address}",
            "move:NXM_OF_ARP_SPA[]->NXM_OF_ARP_TPA[],move:NXM_NX_ARP_SHA[]->NXM_NX_ARP_THA[],set_field:2->arp_op,"
            f"set_field:{local.address}->arp_spa,set_field:{local.mac}->arp_sha,"
            f"move:NXM_OF_ETH_SRC[]->NXM_OF_ETH_DST[],set_field:{local.mac}->eth_src,IN_PORT",
        )
        to = f"table=30,priority=120,reg4=0,reg5={vlan},ip,nw_dst={local.address}"
        if not local.translate:
            out.setdefault(to, there)
            continue
        out.setdefault(to, f"ct(commit,zone={zone},nat(dst={local.fixed_ip}),table=33)")
        out.setdefault(f"table=33,priority=100,reg5={vlan},ip,nw_dst={local.fixed_ip}", there)
        back = f"table=30,priority=110,reg11=0,reg5={vlan},reg6={number},ip,nw_src={local.fixed_ip}"
        out.setdefault(back, f"ct(zone={zone},nat,table=34)")
    return [f"{match} actions={actions}" for match, actions in out.items()]
