"""What a new cloud's networking has from the start: an external network."""

from __future__ import annotations

import secrets
from typing import Any

from nubila.core.cloud import Cloud
from nubila.core.db import Tx
from nubila.services.network import addresses, asks, default_rules, networks, pools, segment_ranges, subnets

CIDR = "172.24.4.0/24"


def run(cloud: Cloud, tx: Tx) -> None:
    """Make the templates of group rules, the default subnet pools and the external network "public".

    Its gateway is the network host itself, which lets it out to the world.
    """
    default_rules.make_first(tx)
    owner = cloud.bootstrap_ids.get("project:admin", "")
    net = networks.insert(
        cloud, tx,
        {"name": "public", "project_id": owner, "external": True, "is_default": True, "network_type": "flat",
         "physical_network": segment_ranges.first(cloud.settings) or "physnet1", "host_gateway": True,
         "description": "The way out of the cloud; floating IPs come from here."},
    )  # fmt: skip
    cidr = cloud.settings.external_cidr or CIDR
    first, last = addresses.hosts(cidr)
    start, end = (first + 9, last) if last - first > 32 else (first + 1, last)
    dns = [cloud.settings.external_dns] if cloud.settings.external_dns else []
    subnet = subnets.insert(
        cloud, tx, net,
        {"name": "public-subnet", "cidr": cidr, "enable_dhcp": False, "dns_nameservers": dns,
         "allocation_pools": [{"start": addresses.address(f"{start:08x}"), "end": addresses.address(f"{end:08x}")}]},
    )  # fmt: skip
    _default_pools(tx, owner)
    segment_ranges.show_settings(tx, cloud.settings)
    cloud.bootstrap_ids["external_network"] = net["id"]
    cloud.bootstrap_ids["external_subnet"] = subnet["id"]


def _default_pools(tx: Tx, owner: str) -> None:
    """Where subnets come from whose makers do not care: networks of no project overlap with another's in no way."""
    site = secrets.token_hex(5)  # a prefix of our own (RFC 4193, section 3.2.1)
    for version, prefix, length in ((4, "10.0.0.0/8", 24), (6, f"fd{site[:2]}:{site[2:6]}:{site[6:]}::/48", 64)):
        pools.insert(tx, {
            "name": f"shared-default-subnetpool-v{version}", "project_id": owner, "prefixes": [prefix], "shared": True,
            "is_default": True, "default_prefixlen": length,
        })  # fmt: skip


def on_host(cloud: Cloud, tx: Tx, host: dict[str, Any]) -> None:
    """A host said hello: external networks live on every network host."""
    if "network" in host["roles"]:
        for id in asks.external_networks(tx):
            tx.ask("network", id, host["name"])
