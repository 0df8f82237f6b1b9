"""What a virtual switch must do for the network driver, and how things of ours are marked.

Two switches keep this protocol: Open vSwitch (ovs.py) and the Linux bridge (bridge_switch.py). A host has one of them;
hosts of both kinds meet in one cloud, because what leaves a host is the same: VXLAN with the same numbers to the same
UDP port, flooded to the same peers, tagged or untagged frames on physical networks.

Everything is idempotent and absent is success, as for every driver (core/ports.py).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal, Protocol

from msgspec import Struct

from nubila.core.ports import AddressSetSpec, HostPlace, NetworkSpec, PortSpec, RouterPort, SecurityGroupSpec

Kind = Literal["guest", "router", "dhcp"]


class Plugged(Struct, frozen=True, kw_only=True):
    """One port of a network on this host."""

    kind: str  # guest | router | dhcp; a switch may have more for itself (uplink, patch ...)
    id: str  # port id
    network_id: str
    device: str  # the device on the host's side
    inner: str = ""  # the device in the namespace, for router and DHCP ports
    owner: str = ""  # router id or network id for router and DHCP ports


class InnerPort(Struct, frozen=True, kw_only=True):
    """A router's or DHCP server's port to be: ``device`` in ``namespace`` with its addresses."""

    kind: str  # router | dhcp
    port_id: str
    owner: str  # router id or network id
    network_id: str
    device: str
    namespace: str
    mac: str
    mtu: int
    addresses: Sequence[str] | None  # None: somebody else cares for them
    roams: bool = False  # its MAC may also be in use on another host, so where it is must be learned
    made: Callable[[], None] | None = None  # called in the namespace when the device is there and not yet up
    shared_as: str = ""
    """The same MAC and addresses are on every host of the network, each with its own; out there this host's goes by
    that MAC (ovs_shared.py)."""


def of_router(
    router_id: str, port: RouterPort, device: str, namespace: str, addresses: Sequence[str] | None = None
) -> InnerPort:
    """A router's port as the switch has to make it."""
    return InnerPort(
        kind="router", port_id=port.port_id, owner=router_id, network_id=port.network_id, device=device,
        namespace=namespace, mac=port.mac, mtu=port.mtu, addresses=addresses,
    )  # fmt: skip


class VirtualSwitch(Protocol):
    """Joins ports to networks on one host, and networks to the rest of the world."""

    place: HostPlace

    def start(self) -> None:
        """Have the switch; adopts what runs already and drops what nobody owns."""
        ...

    def ready(self) -> None:
        """What every other verb needs; quick when all is well. Brings back what somebody took away."""
        ...

    def running(self) -> bool:
        """Whether there is a switch that can be asked."""
        ...

    def stop(self) -> None:
        """Let go of what this process holds; packets go on."""
        ...

    def destroy(self) -> None:
        """Remove everything of ours, engines of ours included."""
        ...

    def networks(self) -> set[str]:
        """Ids of the networks that the switch knows."""
        ...

    def plugged(self) -> list[Plugged]:
        """Every port of ours, the switch's own ones included."""
        ...

    def wire_network(self, spec: NetworkSpec) -> None:
        """Have the network with its ways to other hosts and to physical networks; those not named any more go."""
        ...

    def drop_network(self, id: str) -> None:
        """Take away a network's ways out, DHCP port and memory."""
        ...

    def outside_device(self, spec: NetworkSpec) -> str:
        """The host's device on a flat network: it carries the host's own address there."""
        ...

    def ensure_guest(self, spec: PortSpec) -> str:
        """A guest's tap, plugged and filtered; a device that has the name already is adopted as it is.

        Returns a sentence about what this switch cannot do for it, "" when there is nothing.
        Raises TryAgain while the network is not wired.
        """
        ...

    def groups(self) -> list[str]:
        """Ids of the security groups that the switch knows; a port may name one before it is told."""
        ...

    def ensure_group(self, spec: SecurityGroupSpec) -> None:
        """A group's rules, for all its ports at once. A rule may name a set before it is told: it lets nobody in."""
        ...

    def remove_group(self, id: str) -> None: ...

    def sets(self) -> list[str]:
        """Ids of the address sets that the switch knows."""
        ...

    def ensure_set(self, spec: AddressSetSpec) -> None:
        """A set's addresses, changed in place: what rules let through meanwhile is not disturbed."""
        ...

    def remove_set(self, id: str) -> None: ...

    def ensure_inner(self, port: InnerPort) -> list[str]:
        """A router's or DHCP server's port, as it says; returns its new addresses."""
        ...

    def drift(self) -> list[tuple[str, str]]:
        """("network" | "port" | "router" ..., id) of what has lost flows or joints and must be ensured again."""
        ...

    def remove(self, ports: Sequence[Plugged]) -> None:
        """Unplug ports and delete their devices."""
        ...


def mark(place: HostPlace, kind: str, id: str) -> str:
    """What we write on namespaces and devices; ``place.namespace`` tells hosts played by one machine apart."""
    return f"nubila cloud={place.cloud} at={place.namespace or '-'} {kind}={id}"


def marked(place: HostPlace, alias: str) -> tuple[str, str] | None:
    """(kind, id) of a mark of ours; None for anything else. A switch may write more words behind it."""
    words = alias.split(" ")
    if len(words) < 4 or words[:3] != ["nubila", f"cloud={place.cloud}", f"at={place.namespace or '-'}"]:
        return None
    kind, _, id = words[3].partition("=")
    return kind, id
