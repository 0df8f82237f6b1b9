"""What hosts have to know of a router besides its ports: forwarded ports, helpers, NDP proxies, ways in."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from nubila.core.db import Reader
from nubila.core.ports import ForwardSpec, HelperSpec, RouterPort
from nubila.services.network import conntrack_helpers, floating_links
from nubila.services.network.kinds_l3 import bounds


def ways_in(gateways: Sequence[RouterPort], interfaces: Sequence[RouterPort]) -> Callable[[str], str]:
    """From an external network's id to the router's port where its floating addresses live; "" = the first gateway."""
    found = {port.network_id: port.port_id for port in (*interfaces, *reversed(gateways))}
    if gateways:
        found[gateways[0].network_id] = ""
    return lambda network_id: found.get(network_id, "")


def more(reader: Reader, row: Mapping[str, Any], way_in: Callable[[str], str]) -> dict[str, Any]:
    """Fields of the RouterSpec of a router's row."""
    return {
        "ecmp": row["enable_default_route_ecmp"],
        "bfd": row["enable_default_route_bfd"],
        "forwardings": tuple(
            ForwardSpec(
                floating_ip=one["floating_ip_address"],
                protocol=one["protocol"],
                outside=bounds(one["external_port_range"]),
                fixed_ip=one["internal_ip_address"],
                inside=bounds(one["internal_port_range"]),
                port_id=way_in(one["floating_network_id"]),
            )
            for one in floating_links.forwardings_of_router(reader, row["id"])
        ),
        "helpers": tuple(
            HelperSpec(helper=one["helper"], protocol=one["protocol"], port=one["port"])
            for one in conntrack_helpers.of_router(reader, row["id"])
        ),
        "ndp_proxy": row["enable_ndp_proxy"],
        "proxies": tuple(one["ip_address"] for one in floating_links.proxies_of_router(reader, row["id"])),
    }
