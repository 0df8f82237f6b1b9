"""What the Open vSwitch database says of us: networks, interfaces, groups, and the wish for an interface.

Everything is in external_ids: of ``br-int`` for networks and groups, of each interface for whose it is.
"""

from __future__ import annotations

import json

from msgspec import Struct

from nubila.core.ports import LocalIp, Restricted, Segment
from nubila.drivers import ovs_flows, ovs_trunk

CLOUD, KIND, ID, NETWORK, OWNER = "nubila-cloud", "nubila-kind", "nubila-id", "nubila-network", "nubila-owner"
MACS, OPEN, UP, FLOWS, INDEX = "nubila-macs", "nubila-open", "nubila-up", "nubila-flows", "nubila-ifindex"
STEERING, TX_STEERING = "nubila-steering", "tx-steering"  # what was asked for; the switch's own name of it
ALIAS, SHARED = "nubila-alias", "nubila-shared"  # of interfaces that are on other hosts as well


class LocalNetwork(Struct, frozen=True, kw_only=True):
    """What br-int remembers of a network."""

    vlan: int
    segment: Segment
    uplinks: tuple[ovs_flows.Uplink, ...] = ()
    flows: str = ""
    project_id: str = ""
    restricted: tuple[Restricted, ...] = ()
    local_ips: tuple[LocalIp, ...] = ()
    tags: bool = False  # it carries frames that guests tagged


class Shared(Struct, frozen=True, kw_only=True):
    """What br-int remembers of a security group or an address set."""

    number: int
    flows: str = ""  # fingerprint, "" until it was told here


class Interface(Struct, frozen=True, kw_only=True):
    """One interface of ours in the database."""

    uuid: str
    port_uuid: str
    name: str
    ofport: int | None
    error: str
    ids: dict[str, str]

    @property
    def kind(self) -> str:
        """guest, router, dhcp, uplink or patch."""
        return self.ids.get(KIND, "")


class View(Struct, frozen=True, kw_only=True):
    """One consistent look at the database."""

    bridge_uuid: str
    networks: dict[str, LocalNetwork]
    interfaces: dict[str, Interface]  # by name
    numbers: frozenset[int]  # OpenFlow port numbers in use anywhere in this database
    shared: dict[str, dict[str, Shared]] = {}  # kind (security_group, address_set) -> id -> what is known
    last: int = 0  # the number given out last

    def of(self, kind: str, id: str) -> Interface | None:
        """The interface that belongs to one thing."""
        found = (i for i in self.interfaces.values() if i.ids.get(KIND) == kind and i.ids.get(ID) == id)
        return next(found, None)


class Wish(Struct, frozen=True, kw_only=True):
    """An interface that must be plugged into br-int."""

    name: str
    kind: str
    id: str
    network_id: str = ""
    type: str = ""  # OVS interface type: "" = a device of the system
    options: dict[str, str] = {}
    ids: dict[str, str] = {}
    tag: int | None = None


def members(view: View, network_id: str) -> list[ovs_flows.Member]:
    """The local ports of a network that take part in it."""
    found = []
    for interface in view.interfaces.values():
        ids = interface.ids
        if ids.get(NETWORK) != network_id or not interface.ofport or ids.get(UP) == "0":
            continue
        if interface.kind in ("guest", "router", "dhcp"):
            found.append(
                ovs_flows.Member(
                    ofport=interface.ofport,
                    macs=tuple(json.loads(ids.get(MACS, "[]"))),
                    trusted=interface.kind != "guest",
                    open=ids.get(OPEN) == "1",
                    alias=ids.get(ALIAS, ""),
                    addresses=tuple(json.loads(ids.get(SHARED, "[]"))),
                    tags=interface.kind == "guest" and not ids.get(ovs_trunk.TRUNK),
                )
            )
    return found
