"""Agents as the Networking API shows them: derived from the hosts, four roles of the one agent each host runs."""

from __future__ import annotations

import uuid
from typing import Any

import sqlalchemy as sa

from nubila.core import clock, hosts, types
from nubila.core.db import Reader, Tx
from nubila.core.faults import Fault, bad_request, conflict, not_found
from nubila.core.sql import upsert
from nubila.services.network import dvr_hosts, l2pop
from nubila.services.network.tables import AGENT, DHCP_BINDING
from nubila.services.placement import reading

Row = dict[str, Any]
SPACE = uuid.UUID("7e4a1d2c-0b6f-4b3e-9a53-6c1f2d8e9b70")  # ours; makes agent ids the same on every server
OVS, DHCP, L3, METADATA, BRIDGE = (
    "neutron-openvswitch-agent", "neutron-dhcp-agent", "neutron-l3-agent", "neutron-metadata-agent",
    "neutron-linuxbridge-agent",
)  # fmt: skip
TYPES = {
    OVS: "Open vSwitch agent", BRIDGE: "Linux bridge agent", DHCP: "DHCP agent", L3: "L3 agent",
    METADATA: "Metadata agent",
}  # fmt: skip
TOPICS = {OVS: "N/A", BRIDGE: "N/A", DHCP: "dhcp_agent", L3: "l3_agent", METADATA: "N/A"}
ALIVE_S = hosts.ALIVE_S
_ALL = sa.select(AGENT)
_OFF = sa.select(AGENT.c.id).where(AGENT.c.admin_state_up.is_(False))
_DHCP_COUNT = (
    sa.select(DHCP_BINDING.c.host, sa.func.count()).where(DHCP_BINDING.c.state != "taken").group_by(DHCP_BINDING.c.host)
)
SORTS = ("id", "agent_type", "binary", "host", "topic", "admin_state_up", "alive", "availability_zone", "created_at",
         "started_at", "heartbeat_timestamp", "description")  # fmt: skip
FILTERS = ("id", "agent_type", "binary", "host", "topic", "admin_state_up", "alive", "availability_zone", "description")


def agent_id(host: str, binary: str) -> str:
    """The stable id of one agent."""
    return str(uuid.uuid5(SPACE, f"{host}/{binary}"))


def switched_off(reader: Reader) -> set[str]:
    """Ids of the agents an operator took out of scheduling."""
    return {id for (id,) in reader.rows(_OFF)}


def every(reader: Reader) -> list[Row]:
    """All agents as the API shows them."""
    changed = {row["id"]: row for row in reader.all(_ALL)}
    networks = dict(reader.rows(_DHCP_COUNT))
    out = []
    spread = dvr_hosts.everywhere(reader)
    offered = reading.offering(reader, "NET_")
    for host in hosts.every(reader):
        binaries = [BRIDGE if l2pop.switch(host) == l2pop.LINUX_BRIDGE else OVS]
        if "network" in host["roles"]:
            binaries += [DHCP, L3, METADATA]
        elif host["name"] in spread:
            binaries.append(L3)
        for binary in binaries:
            gone = changed.get(agent_id(host["name"], binary), {}).get("deleted")
            if gone is None or host["seen"] > gone:
                view = _view(host, binary, changed, networks, spread)
                if binary in (OVS, BRIDGE) and host["id"] in offered:
                    view["resources_synced"] = True  # one database: what it offers is in Placement, or is not at all
                    view["configurations"] |= _offers(view, offered[host["id"]])
                out.append(view)
    return out


_DIRECTIONS = {"EGR": "egress", "IGR": "ingress"}


def _offers(view: Row, offered: list[tuple[str, str, int]]) -> Row:
    """What Placement has of the agent's own providers, in the words of Neutron's agents."""
    mine = f"{view['host']}:{view['agent_type']}"
    bandwidths: dict[str, dict[str, int]] = {}
    packets: dict[str, int] = {}
    for name, resource_class, total in offered:
        words = resource_class.split("_")  # NET_BW_EGR_..., NET_PACKET_RATE_EGR_..., NET_PACKET_RATE_KILOPACKET_...
        direction = next((_DIRECTIONS[w] for w in words if w in _DIRECTIONS), "any")
        if name == mine:
            packets[direction] = total
        elif name.startswith(f"{mine}:"):
            bandwidths.setdefault(name.removeprefix(f"{mine}:"), {})[direction] = total
    switched = {view["host"]: packets} if packets else {}
    return {
        "resource_provider_bandwidths": bandwidths,
        "resource_provider_hypervisors": dict.fromkeys(bandwidths, view["host"]),
        "resource_provider_packet_processing_with_direction": {} if "any" in packets else switched,
        "resource_provider_packet_processing_without_direction": switched if "any" in packets else {},
    }


L3_EXTENSIONS = ("conntrack_helper", "fip_qos", "gateway_ip_qos", "ndp_proxy", "port_forwarding")
"""What hosts do for routers beyond routing, as Neutron names its agent's extensions: clients look before they ask."""


def _view(host: Row, binary: str, changed: dict[str, Row], networks: dict[str, int], spread: set[str]) -> Row:
    id = agent_id(host["name"], binary)
    mine = changed.get(id, {})
    config: Row = {"log_agent_heartbeats": False}
    if binary == OVS:
        config |= {
            "bridge_mappings": host["bridges"], "tunnel_types": ["vxlan"], "tunneling_ip": host["tunnel_ip"],
            "datapath_type": "system", "devices": 0, "l2_population": False, "arp_responder_enabled": False,
            "integration_bridge": "br-int", "extensions": ["local_ip", "log", "qos"], "in_distributed_mode": False,
        }  # fmt: skip
    elif binary == BRIDGE:
        config |= {
            "bridge_mappings": {}, "interface_mappings": host["bridges"], "tunnel_types": ["vxlan"],
            "tunneling_ip": host["tunnel_ip"], "devices": 0, "l2_population": True, "extensions": [],
        }  # fmt: skip
    elif binary == DHCP:
        config |= {"dhcp_driver": "nubila", "dhcp_lease_duration": 86400, "networks": networks.get(host["name"], 0)}
    elif binary == L3:
        mode = "legacy" if host["name"] not in spread else "dvr_snat" if "network" in host["roles"] else "dvr"
        config |= {"agent_mode": mode, "handle_internal_only_routers": True, "external_network_bridge": "",
                   "extensions": list(L3_EXTENSIONS)}  # fmt: skip
    seen = clock.at(host["seen"])[:19].replace("T", " ")
    born = host["created_at"][:19].replace("T", " ")
    return {
        "id": id, "agent_type": TYPES[binary], "binary": binary, "topic": TOPICS[binary], "host": host["name"],
        "admin_state_up": mine.get("admin_state_up", True), "alive": host["alive"], "configurations": config,
        "created_at": born, "started_at": born,
        "heartbeat_timestamp": seen, "description": mine.get("description"), "resource_versions": {},
        "availability_zone": host["zone"] if binary in (DHCP, L3) else None, "resources_synced": None,
    }  # fmt: skip


def get(reader: Reader, id: str) -> Row:
    """One agent; 404 AgentNotFound."""
    found = next((a for a in every(reader) if a["id"] == id), None)
    if found is None:
        raise not_found("agent", id, "AgentNotFound")
    return found


def filtered(found: list[Row], query: list[tuple[str, str]]) -> list[Row]:
    """The agents that match a query string, sorted and cut as it says; 400 for a key that is no filter."""
    return _page(_matching(found, query), query)


def _page(found: list[Row], query: list[tuple[str, str]]) -> list[Row]:
    """Sorting and paging: there are a few agents a host, so this is done in memory."""
    keys, directions = ([v for k, v in query if k == name] for name in ("sort_key", "sort_dir"))
    if len(keys) != len(directions):
        raise bad_request("sort_dir: give one direction for every sort_key.", "HTTPBadRequest")
    for key, direction in reversed(list(zip(keys, directions, strict=True))):
        if key not in SORTS or direction not in ("asc", "desc"):
            raise bad_request(f"Invalid sort: agents sort by {', '.join(SORTS)}, asc or desc.", "HTTPBadRequest")
        found = sorted(found, key=lambda a: (a[key] is not None, a[key]), reverse=direction == "desc")
    one = dict(query)
    if not str(one.get("limit", "0")).isdigit():
        text = f"limit: '{one['limit']}' must be a whole number, 0 or more."
        raise bad_request(text, "HTTPBadRequest")
    limit = int(one.get("limit", 0))
    if not limit:
        return found
    back = one.get("page_reverse", "").lower() in ("true", "1")
    if back:
        found = found[::-1]
    if one.get("marker"):
        place = next((i for i, a in enumerate(found) if a["id"] == one["marker"]), None)
        if place is None:
            raise not_found("agent", one["marker"], "AgentNotFound")
        found = found[place + 1 :]
    found = found[:limit]
    return found[::-1] if back else found


def _matching(found: list[Row], query: list[tuple[str, str]]) -> list[Row]:
    wanted: dict[str, list[Any]] = {}
    for key, text in query:
        if key in ("fields", "limit", "marker", "sort_key", "sort_dir", "page_reverse"):
            continue
        if key not in FILTERS:
            raise bad_request(f"Agents can not be filtered by '{key}'.", "InvalidInput")
        wanted.setdefault(key, []).append(text)
    for key, texts in wanted.items():
        if key in ("alive", "admin_state_up"):
            try:
                values = [types.boolean(t) for t in texts]
            except ValueError:
                raise bad_request(f"Invalid input for filter '{key}': it is true or false.", "InvalidInput") from None
            found = [a for a in found if a[key] in values]
        elif key == "agent_type":  # Neutron's databases compare without regard to case; clients rely on it
            lower = [t.lower() for t in texts]
            found = [a for a in found if a[key].lower() in lower]
        else:
            found = [a for a in found if a[key] in texts]
    return found


def update(tx: Any, id: str, body: Any) -> Row:
    """Change what an operator may change of an agent: admin_state_up and description."""
    agent = get(tx, id)
    if not isinstance(body, dict) or not set(body) <= {"admin_state_up", "description"}:
        raise bad_request("Only admin_state_up and description of an agent can be changed.", "HTTPBadRequest")
    try:
        up = types.boolean(body.get("admin_state_up", agent["admin_state_up"]))
    except ValueError:
        raise bad_request("Invalid input for admin_state_up: it is true or false.", "InvalidInput") from None
    text = body.get("description", agent["description"])
    if text is not None and (not isinstance(text, str) or len(text) > 255):
        raise bad_request("Invalid input for description: it is a text of at most 255 characters.", "HTTPBadRequest")
    row = {"id": id, "admin_state_up": up, "description": text, "deleted": None}
    tx.execute(upsert(tx.dialect, AGENT, row, {"admin_state_up": up, "description": text}))
    return get(tx, id)


def delete(tx: Tx, agent: Row) -> None:
    """Show an agent of a silent host no longer; it is back as soon as its host reports again."""
    host = hosts.get(tx, agent["host"])
    if host is None or host["alive"]:
        text = f"Agent {agent['id']} is alive on host {agent['host']}: remove the host (nubila host remove"
        raise conflict(f"{text} {agent['host']}) or switch the agent off (admin_state_up).", "AgentInUse")
    row = {"id": agent["id"], "admin_state_up": agent["admin_state_up"], "description": agent["description"]}
    tx.execute(upsert(tx.dialect, AGENT, {**row, "deleted": host["seen"]}, {"deleted": host["seen"]}))


def need(reader: Reader, id: str, binary: str) -> Row:
    """One agent of a kind; 404 when there is none or when it is of another kind."""
    agent = get(reader, id)
    if agent["binary"] != binary:
        raise invalid(id, binary)
    return agent


def invalid(id: str, binary: str) -> Fault:
    """What is said of an agent that cannot take what it is given."""
    name, kind = ("valid DHCP Agent", "InvalidDHCPAgent") if binary == DHCP else ("L3 Agent", "InvalidL3Agent")
    return Fault(404, f"Agent {id} is not a {name} or has been disabled.", kind)
