"""What the rows of a network resource say about why it is as it is, for operators (`nubila why`).

Work that waits says so itself; ports of routers and of DHCP have no work of their own, and a port that cannot be bound
has none left. Here is what is to be said of those, and whose work to look at instead.
"""

from __future__ import annotations

from typing import Any

from nubila.core import hosts
from nubila.core.db import Reader
from nubila.services.network import asks, bridged, look, network_segments, place_router
from nubila.services.network.kinds import Network
from nubila.services.network.kinds_port import Port

Row = dict[str, Any]


def about(reader: Reader, id: str) -> tuple[list[str], list[str]]:
    """(sentences about a port, ids of the resources whose work it depends on); empty for anything else."""
    port = look.row(reader, Port, id)
    if port is None:
        return [], []
    says = [text] if (text := _unbound(reader, port)) else []
    if port["ip_allocation"] == network_segments.DEFERRED and not look.addresses_of(reader, id):
        says.append("it gets addresses with a host (binding:host_id), those of the host's segment")
    if port["device_owner"] == asks.DHCP:
        return [*says, "it belongs to the network's DHCP"], [port["network_id"]]
    if not asks.is_guest(port) and port["device_id"]:
        return [*says, f"it belongs to router {port['device_id']}"], [port["device_id"]]
    return says, []


def _unbound(reader: Reader, port: Row) -> str:
    if port["vif_type"] != "binding_failed":
        return ""
    name = port["host_id"]
    host = hosts.get(reader, name)
    if host is None:
        return f"not bound: there is no host {name} (openstack hypervisor list); choose another (binding:host_id)"
    net = look.need(reader, Network, port["network_id"])
    why = place_router.unreached(reader, host, place_router.Need(net))
    if not why:
        guest = asks.is_guest(port)
        why = bridged.lacks(reader, host, net["id"], port_id=port["id"], guest=guest)
    if not why:
        return f"not bound on {name} when it was asked for: ask again (binding:host_id)"
    return f"not bound on {name}: {why}; choose another host, or mend this one"
