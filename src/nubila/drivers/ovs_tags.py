"""Frames that guests tag themselves, as OpenFlow: for networks that carry tags (VLAN transparent, QinQ).

A guest's tagged frame goes the way of its untagged ones: OpenFlow matches see through tags, so the same filter judges
the same MAC and addresses inside, and the same security groups. What differs is who may get it. Only guests may, and
of them those that are in no trunk: routers and DHCP servers would read a frame's inside as if it were untagged. So all
tagged frames of such a network leave the common tables where they ask "to whom?":

    30  tagged: go to 35        35  to whom?        36  to what was learned, else everywhere        (as 30 and 32)

VLAN 0 is no VLAN but a priority for an untagged frame (IEEE 802.1Q, 9.6), and receivers read it as one: it is dropped.
A network's own tag on a physical network is put around the guest's, and two tags can only be told apart by a switch
that looks at both (``other_config:vlan-limit``, ovs-vswitchd.conf.db(5)). Networks that carry no tags have none of
these flows; there, tagged frames match nothing where they enter.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from nubila.drivers import ovs_shared

if TYPE_CHECKING:
    from nubila.drivers.ovs_flows import Member, Uplink

TAGGED = "vlan_tci=0x1000/0x1000"
"""Any tag, whatever its type, VLAN and priority."""
C_TAG = 0x8100
"""Ethertype of the tag of a customer's VLAN (802.1Q)."""
_PRESENT = 0x1000  # in OpenFlow's VLAN ids: there is a tag


def leave(uplink: Uplink) -> str:
    """To other hosts with the network's tag around whatever tag the frame has, which it has again afterwards."""
    if uplink.vlan is None:
        return f"output:{uplink.ofport}"
    vid = _PRESENT | uplink.vlan
    return f"push_vlan:{uplink.tpid:#06x},set_field:{vid}->vlan_vid,output:{uplink.ofport},pop_vlan"


def flows(vlan: int, members: Sequence[tuple[Member, str]], uplinks: Sequence[Uplink], learns: bool) -> list[str]:
    """One network's part; ``members``: each port of it here with the action that delivers to it.

    Nothing goes out to a physical network without a tag of the network's own: the guest's would be another network's.
    """
    takers = [(member, deliver) for member, deliver in members if member.tags]
    known: dict[str, list[str]] = {mac.lower(): [] for member, _ in members for mac in member.macs}
    uplinks = [uplink for uplink in uplinks if uplink.tunnel or uplink.vlan is not None]
    for member, deliver in takers:
        for mac in member.macs:
            known[mac.lower()].append(deliver)
    everyone = [deliver for _, deliver in takers]
    away = [leave(uplink) for uplink in uplinks]
    back = [leave(uplink) for uplink in uplinks if not uplink.tunnel]
    here = f"reg5={vlan}"
    found = [
        f"table=30,priority=300,{here},{TAGGED} actions=resubmit(,35)",
        f"table=35,priority=200,{here},dl_vlan=0 actions=drop",
    ]
    found += [_flow(f"table=35,priority=100,{here},dl_dst={mac}", to) for mac, to in sorted(known.items())]
    found.append(_flow(f"table=35,priority=90,reg4=0,{here},{ovs_shared.MULTICAST}", everyone + away))
    found.append(_flow(f"table=35,priority=90,reg4=1,{here},{ovs_shared.MULTICAST}", everyone + back))
    if not learns:
        return [*found, _flow(f"table=35,priority=10,reg4=0,{here}", away)]
    found.append(f"table=35,priority=10,{here} actions=set_field:0->reg7,resubmit(,31),resubmit(,36)")
    strangers = [(member, deliver) for member, deliver in takers if member.open]
    found += [f"table=36,priority=10,{here},reg7={member.ofport} actions=resubmit(,60)" for member, _ in strangers]
    for uplink in uplinks:
        unless_tunnelled = "reg4=0," if uplink.tunnel else ""
        found.append(f"table=36,priority=10,{unless_tunnelled}{here},reg7={uplink.ofport} actions={leave(uplink)}")
    anywhere = [deliver for _, deliver in strangers]
    found.append(_flow(f"table=36,priority=5,reg4=0,{here},reg7=0", anywhere + away))
    found.append(_flow(f"table=36,priority=5,reg4=1,{here},reg7=0", anywhere + back))
    return found


def _flow(match: str, actions: Sequence[str]) -> str:
    return f"{match} actions={','.join(actions) if actions else 'drop'}"
