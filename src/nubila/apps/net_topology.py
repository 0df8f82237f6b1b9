"""``nubila net topology``: the networks of projects as a tree, or as a graph for Graphviz (``--dot``)."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa

from nubila.core.cloud import Cloud
from nubila.core.db import Reader
from nubila.services.identity.kinds import Project
from nubila.services.network import asks, dvr_hosts, ha_place, network_segments
from nubila.services.network.kinds import FloatingIP, Network, Router, Subnet
from nubila.services.network.kinds_port import Port
from nubila.services.network.tables import DHCP_BINDING, IP_ALLOCATION

Row = dict[str, Any]
_A = IP_ALLOCATION.c


class NoProject(Exception):
    """There is no such project."""


class Topology:
    """Everything that is drawn, at one look."""

    def __init__(self, reader: Reader, project: str | None = None) -> None:
        self.names: dict[str, str] = dict(reader.rows(sa.select(Project.table.c.id, Project.table.c.name)))
        wanted = {id for id, name in self.names.items() if project in (id, name)}
        if project is not None and not wanted:
            raise NoProject(f"there is no project {project}; see `openstack project list`")
        self.networks = _by_id(reader, Network)
        self.subnets = sorted(reader.all(sa.select(Subnet.table)), key=lambda s: (s["ip_version"], s["cidr"], s["id"]))
        self.ports, self.routers = _by_id(reader, Port), _by_id(reader, Router)
        self.floating = {(f["port_id"], f["fixed_ip_address"]): f for f in reader.all(sa.select(FloatingIP.table))}
        self.serving: dict[str, list[str]] = {}
        for network, host, port in reader.rows(
            sa.select(DHCP_BINDING.c.network_id, DHCP_BINDING.c.host, DHCP_BINDING.c.port_id)
        ):
            if port is not None:
                self.serving.setdefault(network, []).append(host)
        self.ips: dict[str, list[str]] = {}
        for port, ip in reader.rows(sa.select(_A.port_id, _A.ip_address).order_by(_A.port_id, _A.place)):
            self.ips.setdefault(port, []).append(ip)
        self.segments = network_segments.of_many(reader, [id for id, n in self.networks.items() if n["several"]])
        self.where = {id: _where(reader, router) for id, router in self.routers.items()}
        if project is not None:
            self._keep(wanted)

    def _keep(self, projects: set[str]) -> None:
        """What belongs to the projects, and the networks their things are on."""
        ports = [p for p in self.ports.values() if p["project_id"] in projects]
        routers = {r["id"] for r in self.routers.values() if r["project_id"] in projects}
        ports += [p for p in self.ports.values() if p["device_id"] in routers]
        on = {p["network_id"] for p in ports} | {n["id"] for n in self.networks.values() if n["project_id"] in projects}
        self.networks = {id: n for id, n in self.networks.items() if id in on}
        self.routers = {id: r for id, r in self.routers.items() if id in routers}
        self.ports = {p["id"]: p for p in ports}

    def of(self, network_id: str, *owners: str) -> list[Row]:
        """The network's ports of these owners, by address."""
        mine = [p for p in self.ports.values() if p["network_id"] == network_id and p["device_owner"] in owners]
        return sorted(mine, key=lambda p: (self.ips.get(p["id"], []), p["id"]))

    def guests(self, network_id: str) -> list[Row]:
        """The network's ports of servers and of nobody."""
        mine = [
            p for p in self.ports.values()
            if p["network_id"] == network_id and not p["device_owner"].startswith("network:")
        ]  # fmt: skip
        return sorted(mine, key=lambda p: (self.ips.get(p["id"], []), p["id"]))

    def addresses(self, port: Row) -> str:
        """A port's addresses with the floating ones that lead there."""
        out = []
        for ip in self.ips.get(port["id"], []):
            floating = self.floating.get((port["id"], ip))
            out.append(f"{ip} ({floating['floating_ip_address']})" if floating else ip)
        return ", ".join(out) or "no address"


def _where(reader: Reader, router: Row) -> str:
    """On which hosts a router is, and as what."""
    if router["ha"]:
        states = ha_place.views(reader, router["id"])
        parts = [f"{state} on {host}" for host, state in sorted(states.items(), key=lambda one: (one[1], one[0]))]
        return f"highly available, {', '.join(parts)}" if parts else "highly available, on no host"
    if router["distributed"]:
        central = f", central part on {router['host']}" if router["host"] else ""
        return f"distributed, on {', '.join(dvr_hosts.of(reader, router['id'])) or 'no host'}{central}"
    return f"on {router['host']}" if router["host"] else "on no host"


def _carried(one: Row) -> str:
    """What carries a network or a segment of one."""
    number = f" {one['segmentation_id']}" if one["segmentation_id"] is not None else ""
    physical = f" on {one['physical_network']}" if one["physical_network"] else ""
    return f"{one['network_type'] or 'no segment'}{number}{physical}"


def _by_id(reader: Reader, cls: Any) -> dict[str, Row]:
    return {row["id"]: row for row in reader.all(sa.select(cls.table).order_by(cls.table.c.name, cls.table.c.id))}


def tree(cloud: Cloud, project: str | None = None) -> list[str]:
    """The networks as lines of text. Raises NoProject."""
    with cloud.store.read() as reader:
        return _tree(Topology(reader, project))


def _tree(top: Topology) -> list[str]:
    lines: list[str] = []
    for net in sorted(top.networks.values(), key=lambda n: (not n["external"], n["name"], n["id"])):
        owner = top.names.get(net["project_id"], net["project_id"] or "nobody")
        carried = " or ".join(_carried(one) for one in top.segments.get(net["id"]) or [net])
        words = [carried, f"mtu {net['mtu']}", f"project {owner}"]
        words += [word for word, true in (("external", net["external"]), ("shared", net["shared"])) if true]
        lines.append(f"network {_name(net)} [{', '.join(words)}]")
        lines += _branches(_children(top, net))
    return lines or ["no networks"]


def _children(top: Topology, net: Row) -> list[tuple[str, list[str]]]:
    out: list[tuple[str, list[str]]] = []
    for subnet in (s for s in top.subnets if s["network_id"] == net["id"]):
        dhcp = "DHCP" if subnet["enable_dhcp"] else "no DHCP"
        mode = f" {subnet['ipv6_address_mode']}" if subnet["ipv6_address_mode"] else ""
        out.append(
            (f"subnet {_name(subnet)} {subnet['cidr']}, gateway {subnet['gateway_ip'] or 'none'}, {dhcp}{mode}", [])
        )
    if net["id"] in top.serving:
        ips = ", ".join(filter(None, (", ".join(top.ips.get(p["id"], [])) for p in top.of(net["id"], asks.DHCP))))
        out.append((f"DHCP on {', '.join(sorted(top.serving[net['id']]))}: {ips}", []))
    for port in top.of(net["id"], *asks.ROUTER_OWNERS):
        router = top.routers.get(port["device_id"])
        if router is None:
            continue
        role = "gateway of router" if port["device_owner"] == asks.GATEWAY else "router"
        others = sorted(
            {_name(top.networks[p["network_id"]]) for p in top.ports.values()
             if p["device_id"] == router["id"] and p["device_owner"] in asks.ROUTER_OWNERS
             and p["network_id"] != net["id"] and p["network_id"] in top.networks}
        )  # fmt: skip
        leads = [f"leads to {name}" for name in others]
        out.append((f"{role} {_name(router)} {top.addresses(port)} {port['status']}, {top.where[router['id']]}", leads))
    for port in top.guests(net["id"]):
        what = f"server {port['device_id']}" if port["device_owner"].startswith("compute:") else f"port {_name(port)}"
        where = f" on {port['bound_host']}" if port["bound_host"] else ""
        out.append((f"{what} {top.addresses(port)} {port['status']}{where}", []))
    return out


def _branches(children: list[tuple[str, list[str]]]) -> list[str]:
    lines = []
    for i, (text, below) in enumerate(children):
        last = i == len(children) - 1
        lines.append(f"{'└─' if last else '├─'} {text}")
        lines += [f"{'  ' if last else '│ '} └─ {one}" for one in below]
    return lines


def _name(row: Row) -> str:
    return f"{row['name']} ({row['id'][:8]})" if row["name"] else str(row["id"])


# --- Graphviz ---------------------------------------------------------------------------------------------------------


def dot(cloud: Cloud, project: str | None = None) -> list[str]:
    """The networks as a graph in the language of Graphviz. Raises NoProject."""
    with cloud.store.read() as reader:
        return _dot(Topology(reader, project))


def _dot(top: Topology) -> list[str]:
    lines = ["graph topology {", "  rankdir=LR; node [fontname=sans]; edge [fontname=sans, fontsize=9];"]
    for net in top.networks.values():
        cidrs = [s["cidr"] for s in top.subnets if s["network_id"] == net["id"]]
        colour = "lightblue" if net["external"] else "lightyellow"
        text = _quoted("\n".join([net["name"] or net["id"], *cidrs]))
        lines.append(f'  "{net["id"]}" [shape=box, style="rounded,filled", fillcolor={colour}, label={text}];')
    for router in top.routers.values():
        text = _quoted(router["name"] or router["id"])
        lines.append(f'  "{router["id"]}" [shape=diamond, label={text}];')
    for net in top.networks.values():
        for port in top.of(net["id"], *asks.ROUTER_OWNERS):
            if port["device_id"] in top.routers:
                lines.append(f'  "{port["device_id"]}" -- "{net["id"]}" [label={_quoted(top.addresses(port))}];')
        for port in top.guests(net["id"]):
            thing = port["device_id"] or port["id"]
            text = _quoted(port["name"] or thing)
            lines.append(f'  "{thing}" [shape=ellipse, label={text}];')
            lines.append(f'  "{thing}" -- "{net["id"]}" [label={_quoted(top.addresses(port))}];')
    return [*lines, "}"]


def _quoted(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    return f'"{escaped}"'
