"""What hosts can guarantee, in Placement: providers below a compute host's own, as Neutron's agents report them.

Below the host's provider is one of its switch agent (``HOST:Open vSwitch agent``) with how many packets it switches,
and below that one for each bridge (``HOST:Open vSwitch agent:br-ex``) with its bandwidth. Their ids are derived as
Neutron derives them, so clients that know host and bridge find them. Settings say how much (resource_provider_...).
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Mapping
from typing import Any

from nubila.core import hosts
from nubila.core.cloud import Cloud
from nubila.core.config import Settings
from nubila.core.db import Reader, Store, Tx
from nubila.core.work import Item
from nubila.services.network import l2pop, qos_use
from nubila.services.network.kinds_qos import ANY, EGRESS, INGRESS, MINIMUM_BANDWIDTH, MINIMUM_PACKET_RATE
from nubila.services.placement import claims, offers

TUNNELS = "rp_tunnelled"
"""The name of what carries networks in tunnels, as Neutron has it by default."""
OVS, BRIDGE = "Open vSwitch agent", "Linux bridge agent"
SPACES = {
    OVS: uuid.UUID("87ee7d5c-73bb-11e8-9008-c4d987b2a692"),  # of Neutron's mechanism driver openvswitch
    BRIDGE: uuid.UUID("5d3f6a52-1c0e-4f5e-8b57-2f6f6f0c9a11"),  # ours: Neutron's knew no guarantees
}
_PREFIX = "NET_"
_OWN_TRAITS = ("CUSTOM_PHYSNET_", "CUSTOM_VNIC_TYPE_", qos_use.TUNNEL_TRAIT)
_VNIC = qos_use.trait("VNIC_TYPE", "normal")
Totals = dict[str, int]  # resource class -> how much


def agent_type(host: Mapping[str, Any]) -> str:
    """The switch agent of a host, by the name its provider has."""
    return BRIDGE if l2pop.switch(host) == l2pop.LINUX_BRIDGE else OVS


def agent_provider(kind: str, host: str) -> str:
    """Id of the provider of a host's switch agent."""
    return str(uuid.uuid5(SPACES[kind], host))


def device_provider(kind: str, host: str, device: str) -> str:
    """Id of the provider of one of its bridges or network cards."""
    return str(uuid.uuid5(SPACES[kind], f"{host}:{device}"))


# --- settings ---------------------------------------------------------------------------------------------------------


def _totals(rule: str, rates: Mapping[str, str]) -> Totals:
    return {qos_use.RESOURCES[rule, direction]: int(n) for direction, n in rates.items() if n and int(n)}


def bandwidths(settings: Settings, host: str) -> dict[str, Totals]:
    """device -> what it carries on this host; what is said of the host itself counts more than what is of all."""
    found: dict[bool, dict[str, Totals]] = {False: {}, True: {}}
    for one in settings.resource_provider_bandwidths:
        *who, device, out, into = one.split(":")
        if who in ([], [""], [host]):
            found[who == [host]][device] = _totals(MINIMUM_BANDWIDTH.name, {EGRESS: out, INGRESS: into})
    return {**found[False], **found[True]}


def packet_rates(settings: Settings, host: str) -> Totals:
    """How much the host switches."""
    found: dict[str, Totals] = {}
    for one in settings.resource_provider_packet_processing_without_direction:
        who, rate = one.split(":")
        found[who] = _totals(MINIMUM_PACKET_RATE.name, {ANY: rate})
    for one in settings.resource_provider_packet_processing_with_direction:
        who, out, into = one.split(":")
        found[who] = _totals(MINIMUM_PACKET_RATE.name, {EGRESS: out, INGRESS: into})
    return found.get(host, found.get("", {}))


def _inventories(totals: Totals, defaults: tuple[str, ...]) -> dict[str, dict[str, Any]]:
    more: dict[str, Any] = {
        "reserved": 0, "min_unit": 1, "max_unit": claims.INT_MAX, "step_size": 1, "allocation_ratio": 1.0,
    }  # fmt: skip
    for one in defaults:
        name, _, value = one.partition(":")
        more[name] = float(value) if name == "allocation_ratio" else int(value)
    return {name: {**more, "total": total, "reserved": min(more["reserved"], total)} for name, total in totals.items()}


# --- keeping Placement in step ----------------------------------------------------------------------------------------


def wanted(settings: Settings, host: Mapping[str, Any]) -> Iterator[offers.Offer]:
    """The providers a host is to have below its own, parents first; none when it can guarantee nothing."""
    name, root, kind = host["name"], host["id"], agent_type(host)
    if host["state"] == "removed" or "compute" not in host["roles"]:
        return
    carried = {device: [qos_use.trait("PHYSNET", p) for p, d in sorted(host["bridges"].items()) if d == device]
               for device in host["bridges"].values()}  # fmt: skip
    carried.setdefault(TUNNELS, []).append(qos_use.TUNNEL_TRAIT)
    devices = {d: totals for d, totals in bandwidths(settings, name).items() if d in carried}
    packets = packet_rates(settings, name)
    if not devices and not packets:
        return
    agent = agent_provider(kind, name)
    shared = {"root_id": root, "prefix": _PREFIX, "own_traits": _OWN_TRAITS}
    yield offers.Offer(
        id=agent, name=f"{name}:{kind}", parent_id=root, traits=frozenset([_VNIC]), **shared,
        inventories=_inventories(packets, settings.resource_provider_packet_processing_inventory_defaults),
    )  # fmt: skip
    for device, totals in sorted(devices.items()):
        yield offers.Offer(
            id=device_provider(kind, name, device), name=f"{name}:{kind}:{device}", parent_id=agent,
            traits=frozenset([*carried[device], _VNIC]), **shared,
            inventories=_inventories(totals, settings.resource_provider_inventory_defaults),
        )  # fmt: skip


def offer(cloud: Cloud, tx: Tx, host: Mapping[str, Any]) -> None:
    """Make a host's providers in Placement be what settings say; writes nothing when they are."""
    if not offers.known(tx, host["id"]):
        return  # no compute host: nothing is ever placed there
    kept = set()
    for one in wanted(cloud.settings, host):
        if not offers.ensure(tx, one):
            break  # an operator's provider has the name; below it nothing of ours can be
        kept.add(one.id)
    for kind in SPACES:
        agent = agent_provider(kind, host["name"])
        for id, name in offers.below(tx, agent).items():
            device = name.removeprefix(f"{host['name']}:{kind}:")
            if id not in kept and id == device_provider(kind, host["name"], device):  # else it is an operator's
                offers.retire(tx, id)
        if agent not in kept:
            offers.retire(tx, agent)


def item(cloud: Cloud, store: Store, item: Item) -> None:
    """Reconciler "host_offer": settings may have changed since the host said hello."""
    with store.write(item) as tx:
        host = hosts.get(tx, item.id)
        if host is not None:
            offer(cloud, tx, host)
        tx.settle("as settings say")


def every(cloud: Cloud, reader: Reader) -> list[str]:
    """Names of all hosts, for the full compare."""
    return [str(h["name"]) for h in hosts.every(reader) if "compute" in h["roles"]]
