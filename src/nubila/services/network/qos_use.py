"""Where QoS policies are used: networks, ports, gateways and floating IPs name one, hosts are told what it says.

Networks, ports, routers and floating IPs call this module from their own hooks; the policies themselves are qos.py.
A guest's port has its own policy, else its network's; ports of the cloud's own devices (``network:...``) have only
their own, as in Neutron.
"""

from __future__ import annotations

import re
import uuid
from collections.abc import Iterable, Mapping
from typing import Any

import sqlalchemy as sa

from nubila.core.call import Call
from nubila.core.db import Reader
from nubila.core.faults import bad_request, forbidden
from nubila.core.ports import QosSpec
from nubila.services.network import look
from nubila.services.network.kinds import Network
from nubila.services.network.kinds_qos import (
    ANY,
    BANDWIDTH_LIMIT,
    DSCP_MARKING,
    EGRESS,
    INGRESS,
    MINIMUM_BANDWIDTH,
    MINIMUM_PACKET_RATE,
    PACKET_RATE_LIMIT,
    QOS_DEFAULT,
    QOS_RULE,
    RULE_TYPES,
    QosPolicy,
)

Row = dict[str, Any]
_UNSHAPED = ("network:dhcp", "network:local_ip", "network:floatingip", "network:router_centralized_snat")
DEFAULT_BURST = 0.8  # of what may pass in a second, as Neutron has it: less, and TCP stays below the limit
_RULES = (
    sa.select(QOS_RULE)
    .where(QOS_RULE.c.qos_policy_id.in_(sa.bindparam("policies", expanding=True)))
    .order_by(QOS_RULE.c.type, QOS_RULE.c.direction, QOS_RULE.c.id)
)
_DEFAULT = sa.select(QOS_DEFAULT.c.qos_policy_id).where(QOS_DEFAULT.c.project_id == sa.bindparam("project"))
_NETWORKS = sa.select(Network.table.c.id, Network.table.c.qos_policy_id, Network.table.c.physical_network).where(
    Network.table.c.id.in_(sa.bindparam("networks", expanding=True))
)


# --- naming a policy --------------------------------------------------------------------------------------------------


def check(call: Call, values: Mapping[str, Any], before: Mapping[str, Any] | None = None) -> None:
    """Refuse a ``qos_policy_id`` the caller may not use (404), or to take away one he may not see (403)."""
    if "qos_policy_id" not in values:
        return
    new, old = values["qos_policy_id"], before["qos_policy_id"] if before else None
    if new == old:
        return
    if old is not None and not _sees(call, old):
        text = f"qos_policy_id: policy {old} is another project's, who alone takes it off."
        raise forbidden(text, "PolicyRemoveAuthorizationError")
    if new is not None:
        owner = str(values.get("device_owner") or (before or {}).get("device_owner") or "")
        if owner in _UNSHAPED:
            text = f"qos_policy_id: hosts do not limit ports of {owner}; give policies to guests' ports, gateways, "
            raise bad_request(f"{text}floating IPs or routers' interfaces.", "InvalidInput")
        row = look.seen(call.cloud, call.tx, call.creds, QosPolicy, new)
        look.lock(call.tx, QosPolicy, row["id"])
        look.need(call.tx, QosPolicy, row["id"])


def _sees(call: Call, id: str) -> bool:
    row = look.row(call.tx, QosPolicy, id)
    return row is None or look.visible(call.cloud, call.creds, QosPolicy, row, call.tx)


def default(reader: Reader, project_id: str) -> str | None:
    """The default policy of a project."""
    found: str | None = reader.scalar(_DEFAULT, {"project": project_id})
    return found


# --- what policies say ------------------------------------------------------------------------------------------------


def rules(reader: Reader, policy_ids: Iterable[str]) -> dict[str, list[Row]]:
    """The rows of the rules of each policy."""
    ids = sorted({id for id in policy_ids if id})
    found: dict[str, list[Row]] = {id: [] for id in ids}
    for i in range(0, len(ids), 500):
        for rule in reader.all(_RULES, {"policies": ids[i : i + 500]}):
            found[rule["qos_policy_id"]].append(rule)
    return found


def view(rule: Row, *, whole: bool = False) -> Row:
    """A rule as it is shown; ``whole``: inside its policy, where it says what and whose it is."""
    kind = RULE_TYPES[rule["type"]]
    shown = {"id": rule["id"], kind.value: rule["value"]}
    if kind.burst:
        shown[kind.burst] = rule["burst"]
    if kind.directions:
        shown["direction"] = rule["direction"]
    if whole:
        shown.update(qos_policy_id=rule["qos_policy_id"], type=rule["type"])
    return shown


def effective(port: Mapping[str, Any], network_policy: str | None) -> str | None:
    """The policy that holds for a port."""
    own = port["qos_policy_id"]
    devices = str(port["device_owner"]).startswith(("network:", "neutron:"))
    return own or (None if devices else network_policy)


def spec(reader: Reader, policy_id: str | None) -> QosSpec | None:
    """What hosts must do for whoever has the policy; None = nothing."""
    if policy_id is None:
        return None
    said = {(r["type"], r["direction"]): r for r in rules(reader, [policy_id])[policy_id]}

    def limit(kind: Any, direction: str, unit: int) -> tuple[int, int]:
        rule = said.get((kind.name, direction))
        if rule is None:
            return 0, 0
        rate = rule["value"] * unit
        return rate, rule["burst"] * unit or int(rate * DEFAULT_BURST)

    in_kbps, out_kbps = limit(BANDWIDTH_LIMIT, INGRESS, 1), limit(BANDWIDTH_LIMIT, EGRESS, 1)
    in_pps, out_pps = limit(PACKET_RATE_LIMIT, INGRESS, 1000), limit(PACKET_RATE_LIMIT, EGRESS, 1000)
    mark = said.get((DSCP_MARKING.name, ""))
    made = QosSpec(
        ingress_kbps=in_kbps[0], ingress_burst_kbit=in_kbps[1], egress_kbps=out_kbps[0], egress_burst_kbit=out_kbps[1],
        ingress_pps=in_pps[0], ingress_burst_packets=in_pps[1], egress_pps=out_pps[0], egress_burst_packets=out_pps[1],
        dscp=mark["value"] if mark else None,
    )  # fmt: skip
    return None if made == QosSpec() else made


# --- ports ------------------------------------------------------------------------------------------------------------

RESOURCES = {
    (MINIMUM_BANDWIDTH.name, INGRESS): "NET_BW_IGR_KILOBIT_PER_SEC",
    (MINIMUM_BANDWIDTH.name, EGRESS): "NET_BW_EGR_KILOBIT_PER_SEC",
    (MINIMUM_PACKET_RATE.name, INGRESS): "NET_PACKET_RATE_IGR_KILOPACKET_PER_SEC",
    (MINIMUM_PACKET_RATE.name, EGRESS): "NET_PACKET_RATE_EGR_KILOPACKET_PER_SEC",
    (MINIMUM_PACKET_RATE.name, ANY): "NET_PACKET_RATE_KILOPACKET_PER_SEC",
}
"""Placement's resource class for what a rule guarantees."""


def present_ports(reader: Reader, ports: list[Row], known_networks: Mapping[str, Row]) -> None:
    """Fill in ``qos_network_policy_id`` and ``resource_request`` of a page of ports; ``known_networks`` by id."""
    wanted_networks = {p["network_id"] for p in ports}
    networks: dict[str, tuple[str | None, str | None]] = {
        id: (known_networks[id]["qos_policy_id"], known_networks[id]["physical_network"])
        for id in wanted_networks & known_networks.keys()
    }
    ids = sorted(wanted_networks - networks.keys())
    for i in range(0, len(ids), 500):
        for id, policy, physical in reader.rows(_NETWORKS, {"networks": ids[i : i + 500]}):
            networks[id] = (policy, physical)
    wanted: dict[str, str] = {}
    for port in ports:
        port["qos_network_policy_id"] = networks[port["network_id"]][0]
        port["resource_request"] = None
        if policy := port["qos_policy_id"] or port["qos_network_policy_id"]:
            wanted[port["id"]] = policy
    if not wanted:
        return
    known = rules(reader, wanted.values())
    for port in ports:
        if port["id"] in wanted:
            port["resource_request"] = request(port, networks[port["network_id"]][1], known[wanted[port["id"]]])


def request(port: Mapping[str, Any], physical_network: str | None, said: list[Row]) -> Row | None:
    """What a host must have for the port, as groups Placement understands; None when its policy guarantees nothing."""
    found = groups(port, physical_network, said)
    return {"request_groups": found, "same_subtree": [g["id"] for g in found]} if found else None


def groups(port: Mapping[str, Any], physical_network: str | None, said: Iterable[Row]) -> list[Row]:
    """The groups of a request: id, required traits, resources."""
    vnic = trait("VNIC_TYPE", port["vnic_type"])
    physical = trait("PHYSNET", physical_network) if physical_network else TUNNEL_TRAIT
    out = []
    for kind, required in ((MINIMUM_BANDWIDTH, [physical, vnic]), (MINIMUM_PACKET_RATE, [vnic])):
        mine = sorted((r for r in said if r["type"] == kind.name), key=lambda r: str(r["id"]))
        if mine:
            name = ":".join(r["id"] for r in mine)
            resources = {RESOURCES[r["type"], r["direction"]]: r["value"] for r in mine}
            out.append({
                "id": str(uuid.uuid5(uuid.UUID(port["id"]), name)), "required": required, "resources": resources,
            })  # fmt: skip
    return out


TUNNEL_TRAIT = "CUSTOM_NETWORK_TUNNEL_PROVIDER"
"""What has bandwidth for networks in tunnels, which are on no physical network."""


def trait(kind: str, name: str) -> str:
    """The trait that stands for a physical network ("PHYSNET") or a kind of port ("VNIC_TYPE")."""
    return f"CUSTOM_{kind}_{re.sub('[^0-9A-Za-z]+', '_', name).upper()}"
