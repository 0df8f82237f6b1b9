"""Networks that carry frames that guests tagged: the attributes ``vlan_transparent`` and ``qinq`` of a network.

Both promise the same to guests: what they send with a VLAN tag arrives with it at the network's other guests, judged
as what is inside (ovs_tags.py). They differ on a physical network: the network's own tag there, around the guest's, is
one of 802.1Q (0x8100) or, with ``qinq``, one of 802.1ad (0x88a8). A flat network can be neither: what a guest tags
there would be in another VLAN. Both are chosen at the network's creation for good.

Source: Networking API reference, VLAN transparency and QinQ; the original's OVN driver for which networks can be which.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from nubila.core import hosts
from nubila.core.db import Reader
from nubila.core.faults import bad_request
from nubila.services.network import l2pop
from nubila.services.network.feature import Feature

KINDS = {"vlan_transparent": ("vlan", "vxlan", "gre", "geneve", "local"), "qinq": ("vlan",)}
"""Which types of segments can be which."""
_FAULTS = {
    "vlan_transparent": ("VLAN Transparency", "VlanTransparencyDriverError"),
    "qinq": ("VLAN QinQ", "VlanQinqDriverError"),
}
_C_TAG, _S_TAG = 0x8100, 0x88A8


def chosen(net: Mapping[str, Any]) -> str:
    """Which of the two a network is; "" for neither."""
    return next((name for name in KINDS if net[name]), "")


def check(reader: Reader, net: Mapping[str, Any], parts: Iterable[Mapping[str, Any]]) -> None:
    """400 when these segments, or the hosts of this cloud, cannot carry the tags that the network is to carry."""
    if net["vlan_transparent"] and net["qinq"]:
        text = "Bad network request: a network is either vlan_transparent or qinq: leave one of them out."
        raise bad_request(text, "BadRequest")
    name = chosen(net)
    if not name:
        return
    what, kind = _FAULTS[name]
    wrong = sorted({part["network_type"] for part in parts} - set(KINDS[name]))
    if wrong:
        able = ", ".join(KINDS[name])
        text = f"{name}: a network of type {' or '.join(wrong)} can not be that; use one of: {able}."
        raise bad_request(f"Backend does not support {what}. {text}", kind)
    known = hosts.every(reader)
    if known and all(l2pop.switch(host) == l2pop.LINUX_BRIDGE for host in known):
        text = f"{name}: all hosts switch with Linux bridges; it needs hosts with Open vSwitch."
        raise bad_request(f"Backend does not support {what}. {text}", kind)


def ethertype(net: Mapping[str, Any]) -> int:
    """Of the network's own tag on a physical network."""
    return _S_TAG if net["qinq"] else _C_TAG


FEATURE = Feature(
    extensions={
        "vlan-transparent": ("Vlantransparent", "Networks that carry VLAN tags of guests.", "2015-03-23"),
        "qinq": ("QinQ networks", "The same with an outer tag of 802.1ad.", "2024-12-02"),
    }
)
