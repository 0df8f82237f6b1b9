"""``nubila net trace``: follow a packet from a port to a destination, on paper, and say where it stops and why.

What the database knows (who has which address, where routers run) chooses the legs; each leg is worked out on the host
it happens on (drivers/trace.py: flows, tables and routes as they really are there). Nothing is sent and nothing is
changed. The packet is the first one of a connection; its answers pass by connection tracking.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import sqlalchemy as sa

from nubila.core import hosts
from nubila.core.cloud import Cloud
from nubila.core.db import Reader
from nubila.services.network import asks, look
from nubila.services.network.kinds import FloatingIP, Network, Router, Subnet
from nubila.services.network.kinds_port import Port
from nubila.services.network.tables import DHCP_BINDING, IP_ALLOCATION

Row = dict[str, Any]
Ask = Callable[[str, Mapping[str, Any]], Mapping[str, Any]]
"""(host, question) -> the host's answer."""
MAX_HOPS = 8
_P, _A = Port.table.c, IP_ALLOCATION.c
_AT = (
    sa.select(Port.table)
    .join(IP_ALLOCATION, _A.port_id == _P.id)
    .where(_A.network_id == sa.bindparam("network"), _A.ip_address == sa.bindparam("ip"))
)
_PORTS = sa.select(Port.table)
_FLOATING = sa.select(FloatingIP.table).where(FloatingIP.table.c.floating_ip_address == sa.bindparam("ip"))
_SUBNET = sa.select(Subnet.table).where(Subnet.table.c.id == sa.bindparam("id"))
_SERVING = sa.select(DHCP_BINDING).where(DHCP_BINDING.c.network_id == sa.bindparam("network"))


class NotFound(Exception):
    """What was asked for is not there; the text says what to do."""


@dataclass
class Report:
    """The way of one packet."""

    steps: list[tuple[str, str, str]] = field(default_factory=list)  # (host, where, what)
    stop: str = ""  # why it got no further; "" = it arrived
    arrived: str = ""

    def lines(self, *, brief: bool = False) -> list[str]:
        """For people."""
        out, last = [], None
        for host, where, what in self.steps:
            if brief and what.startswith("table "):
                continue
            if (host, where) != last:
                out.append(f"{host}: {where}")
                last = (host, where)
            out.append(f"    {what}")
        out.append(f"STOPS: {self.stop}" if self.stop else f"ARRIVES: {self.arrived}")
        return out


def trace(
    cloud: Cloud, ask: Ask, source: str, destination: str, *, protocol: str = "icmp", number: int | None = None
) -> Report:
    """Follow a packet. ``source``: a port's id (or its beginning) or name, or "outside"; ``destination``: an address, a
    port, or "dhcp". Raises NotFound."""
    with cloud.store.read() as reader:
        way = _Way(reader, ask, protocol, number)
        if source == "outside":
            way.from_outside(destination)
        elif destination == "dhcp":
            way.dhcp(_port(reader, source))
        else:
            way.between(_port(reader, source), destination)
        return way.report


def _port(reader: Reader, name: str) -> Row:
    found = [row for row in reader.all(_PORTS) if row["id"].startswith(name) or row["name"] == name]
    exact = [row for row in found if row["id"] == name]
    if len(exact or found) != 1:
        many = f"{len(found)} ports are called that: give the id" if found else "see `openstack port list`"
        raise NotFound(f"there is no single port {name}: {many}")
    return (exact or found)[0]


class _Stop(Exception):
    pass


class _Way:
    """One packet under way."""

    def __init__(self, reader: Reader, ask: Ask, protocol: str, number: int | None) -> None:
        self.reader, self._ask, self.report = reader, ask, Report()
        self.packet: Row = {"protocol": protocol, "dport": number or 80, "sport": 40000}
        self.hosts = {h["name"]: h for h in hosts.every(reader)}

    # --- where it starts

    def between(self, port: Row, destination: str) -> None:
        """From a guest's port to an address."""
        try:
            target = destination if _is_address(destination) else self._first_ip(_port(self.reader, destination), port)
            self._wired(port)
            own = look.addresses_of(self.reader, port["id"])
            version = ipaddress.ip_address(target).version
            mine = [ip for ip in own if ipaddress.ip_address(ip["ip_address"]).version == version]
            if not mine:
                raise _Stop(f"port {port['id']} has no IPv{version} address")
            near = next((ip for ip in mine if _inside(self._subnet(ip["subnet_id"]), target)), mine[0])
            self.packet |= {"src": near["ip_address"], "dst": target, "smac": port["mac_address"]}
            here = f"tap{port['id'][:11]}"
            self._say(port["bound_host"], here, f"port {port['id']} sends {self._words()}")
            self._out_of(port, self._subnet(near["subnet_id"]), target, port["bound_host"], {"device": here})
        except _Stop as e:
            self.report.stop = str(e)

    def from_outside(self, destination: str) -> None:
        """From the world beyond the external network to an address on it."""
        try:
            if not _is_address(destination):
                raise NotFound("from outside, the destination is an address on an external network")
            net, port = self._external(destination)
            floating = self.reader.one(_FLOATING, {"ip": destination})
            if floating is not None and not floating["router_id"]:
                raise _Stop(f"floating IP {destination} leads to no port")
            router = floating["router_id"] if floating is not None else port["device_id"] if port is not None else ""
            row = look.row(self.reader, Router, router) if router else None
            if row is None or not row["host"]:
                raise _Stop(f"no router on any host has {destination}")
            gate = look.need(self.reader, Port, row["gw_port_id"])
            sender = next(
                (s["gateway_ip"] for s in look.subnets(self.reader, net["id"]) if s["gateway_ip"]), destination
            )
            self.packet |= {"src": sender, "dst": destination, "smac": "00:00:00:00:00:01", "dmac": gate["mac_address"]}
            self._say(row["host"], "outside", f"the world sends {self._words()}")
            answer = self._leg(row["host"], {"do": "switch", "from": {"outside": net["physical_network"]},
                                             "network_id": net["id"], "packet": self.packet})  # fmt: skip
            self._arrive(answer, row["host"], net, gate)
        except _Stop as e:
            self.report.stop = str(e)

    def dhcp(self, port: Row) -> None:
        """A guest asks for its address."""
        try:
            self._wired(port)
            device, host = f"tap{port['id'][:11]}", port["bound_host"]
            self.packet |= {"src": "0.0.0.0", "dst": "255.255.255.255", "protocol": "udp", "sport": 68, "dport": 67,
                            "smac": port["mac_address"], "dmac": "ff:ff:ff:ff:ff:ff"}  # fmt: skip
            self._say(host, device, f"port {port['id']} asks for an address by DHCP")
            net = look.need(self.reader, Network, port["network_id"])
            serving = [b for b in self.reader.all(_SERVING, {"network": net["id"]}) if b["port_id"]]
            if not serving:
                raise _Stop(
                    f"no host serves DHCP for network {net['id']}: it has no subnet with DHCP, or `nubila why` it"
                )
            answer = self._leg(host, {"do": "switch", "from": {"device": device}, "network_id": net["id"],
                                      "packet": self.packet})  # fmt: skip
            for one in serving:
                self._reaches(answer, host, net, look.need(self.reader, Port, one["port_id"]), one["host"])
                said = self._leg(one["host"], {"do": "dhcp", "network_id": net["id"], "mac": port["mac_address"]})
                if said["stop"]:
                    raise _Stop(said["stop"])
            self.report.arrived = f"DHCP answers on {', '.join(one['host'] for one in serving)}"
        except _Stop as e:
            self.report.stop = str(e)

    # --- hops

    def _out_of(self, port: Row, subnet: Row, target: str, host: str, source: Row) -> None:
        """A guest sends: to a neighbour, or to its gateway."""
        net = look.need(self.reader, Network, port["network_id"])
        if any(_inside(s, target) for s in look.subnets(self.reader, net["id"]) if self._has_address(port, s)):
            self._to_neighbour(net, target, host, source)
            return
        routes = [(r["destination"], r["nexthop"]) for r in subnet["host_routes"] or ()]
        fit = [(ipaddress.ip_network(to).prefixlen, hop) for to, hop in routes if _covers(to, target)]
        hop = max(fit)[1] if fit else subnet["gateway_ip"]
        if target == "169.254.169.254" and not fit and not subnet["gateway_ip"]:
            hop = target
        if not hop:
            raise _Stop(f"no route to {target}: subnet {subnet['id']} has no gateway and no host route for it")
        self._say(host, "the guest", f"{target} is not on its subnet: it goes to the gateway {hop}")
        taken = self._at(net["id"], hop)
        if taken is None:
            raise _Stop(f"wrong gateway: nobody on network {net['id']} has the address {hop}{self._instead(net['id'])}")
        self.packet["dmac"] = taken["mac_address"]
        answer = self._leg(host, {"do": "switch", "from": source, "network_id": net["id"], "packet": self.packet})
        self._arrive(answer, host, net, taken)

    def _to_neighbour(self, net: Row, target: str, host: str, source: Row) -> None:
        """To somebody on the same network."""
        taken = self._at(net["id"], target)
        if taken is None:
            raise _Stop(
                f"nobody on network {net['id']} has the address {target}: the question for its MAC stays unanswered"
            )
        self.packet["dmac"] = taken["mac_address"]
        answer = self._leg(host, {"do": "switch", "from": source, "network_id": net["id"], "packet": self.packet})
        self._arrive(answer, host, net, taken)

    def _arrive(self, answer: Mapping[str, Any], host: str, net: Row, target: Row) -> None:
        """The switch leg is done: at the target's port, on whatever host it is, or the packet stopped."""
        where = self._reaches(answer, host, net, target, target["bound_host"])
        owner = target["device_owner"]
        if owner in asks.ROUTER_OWNERS:
            self._through(look.need(self.reader, Router, target["device_id"]), where, target)
            return
        kind = "server" if owner.startswith("compute:") else owner or "port"
        what = f"{kind} {target['device_id'] or target['id']}"
        self.report.arrived = f"{self.packet['dst']} is {what} on {where}"

    def _reaches(self, answer: Mapping[str, Any], host: str, net: Row, target: Row, there: str) -> str:
        """The host on which the packet reaches a port of the network; another host is asked if there is a tunnel."""
        if answer["stop"]:
            raise _Stop(answer["stop"])
        if not there:
            raise _Stop(f"port {target['id']} is on no host")
        out = answer["out"]
        if there == host:
            ids = {one["id"] for one in out} | {one["owner"] for one in out}
            if target["id"] not in ids and target["device_id"] not in ids:
                raise _Stop(f"the switch of {host} does not deliver to port {target['id']}")
            return host
        kinds = {one["kind"] for one in out}
        if not kinds & {"uplink", "physical"}:
            raise _Stop(f"port {target['id']} is on {there}, and the switch of {host} sends nothing there")
        if not self.hosts.get(there, {}).get("alive"):
            raise _Stop(f"port {target['id']} is on {there}, which has not reported")
        source = {"uplink": net["id"]} if "uplink" in kinds else {"physical": net["physical_network"]}
        self._say(there, "tunnel" if "uplink" in kinds else "physical network", f"comes from {host}")
        more = dict(self.packet)
        if net["network_type"] == "vlan":
            more["vlan"] = net["segmentation_id"]
        far = self._leg(there, {"do": "switch", "from": source, "network_id": net["id"], "packet": more})
        return self._reaches(
            {**far, "out": [o for o in far["out"] if o["kind"] != "uplink"]}, there, net, target, there
        )

    def _through(self, router: Row, host: str, port: Row, hops: int = 0) -> None:
        """A router's namespace, and out of it again."""
        if hops > MAX_HOPS:
            raise _Stop("it goes round in a circle of routers")
        if not router["admin_state_up"]:
            raise _Stop(f"router {router['id']} is administratively down")
        prefix = "qg" if port["device_owner"] == asks.GATEWAY else "qr"
        question = {"do": "route", "router": router["id"], "iif": f"{prefix}-{port['id'][:11]}", "packet": self.packet}
        answer = self._leg(host, question)
        if answer["stop"]:
            raise _Stop(answer["stop"])
        (out,) = answer["out"]
        if out["kind"] in ("metadata", "local"):
            self.report.arrived = f"router {router['id']} on {host} itself"
            return
        self.packet |= answer["packet"]
        self.packet["smac"] = out["own_mac"]
        device = out["device"]
        leaves = next((p for p in self._of(router) if p["id"].startswith(device[3:])), None)
        if leaves is None:
            raise _Stop(f"router {router['id']} sends by {device}, which is no port of it")
        net = look.need(self.reader, Network, leaves["network_id"])
        taken = self._at(net["id"], out["next_hop"])
        self.packet["dmac"] = (taken or {}).get("mac_address") or out["mac"]
        if taken is None and device.startswith("qg-"):
            self._world(net, host, device, out["next_hop"])
            return
        if taken is None:
            raise _Stop(f"nobody on network {net['id']} has the address {out['next_hop']}")
        answer = self._leg(host, {"do": "switch", "from": {"device": device}, "network_id": net["id"],
                                  "packet": self.packet})  # fmt: skip
        self._arrive(answer, host, net, taken)

    def _world(self, net: Row, host: str, device: str, hop: str) -> None:
        """Out of the cloud."""
        if not self.packet["dmac"]:
            self._say(host, device, f"the MAC of {hop} is not known yet: it is asked for when the packet is sent")
            self.packet["dmac"] = "02:00:00:00:00:01"
        answer = self._leg(host, {"do": "switch", "from": {"device": device}, "network_id": net["id"],
                                  "packet": self.packet})  # fmt: skip
        if answer["stop"] and not any(one["kind"] in ("physical", "host") for one in answer["out"]):
            raise _Stop(answer["stop"])
        if net["host_gateway"]:
            self._say(host, "the host itself", f"is the gateway {hop}")
            far = self._leg(host, {"do": "route", "router": "", "iif": "", "packet": self.packet})
            if far["stop"]:
                raise _Stop(far["stop"])
        self.report.arrived = (
            f"it leaves the cloud by {device} of {host} as {self.packet['src']} -> {self.packet['dst']}"
        )

    # --- facts

    def _wired(self, port: Row) -> None:
        host = port["bound_host"]
        if not host:
            raise _Stop(f"port {port['id']} is on no host: nothing is plugged into it")
        if not port["admin_state_up"]:
            raise _Stop(f"port {port['id']} is administratively down")
        if not self.hosts.get(host, {}).get("alive"):
            raise _Stop(f"host {host} of port {port['id']} has not reported")

    def _has_address(self, port: Row, subnet: Row) -> bool:
        return any(ip["subnet_id"] == subnet["id"] for ip in look.addresses_of(self.reader, port["id"]))

    def _subnet(self, id: str) -> Row:
        return look.need(self.reader, Subnet, id)

    def _at(self, network_id: str, ip: str) -> Row | None:
        found = self.reader.one(_AT, {"network": network_id, "ip": ip})
        if found is None:
            floating = self.reader.one(_FLOATING, {"ip": ip})
            row = look.row(self.reader, Router, floating["router_id"]) if floating and floating["router_id"] else None
            return look.row(self.reader, Port, row["gw_port_id"]) if row and row["gw_port_id"] else None
        if found["device_owner"] == asks.FLOATING:
            floating = self.reader.one(_FLOATING, {"ip": ip})
            if floating is None or not floating["router_id"]:
                raise _Stop(f"floating IP {ip} leads to no port")
            row = look.need(self.reader, Router, floating["router_id"])
            return look.row(self.reader, Port, row["gw_port_id"])
        return found

    def _instead(self, network_id: str) -> str:
        rows = self.reader.all(_PORTS.where(_P.network_id == network_id, _P.device_owner.in_(asks.INTERFACES)))
        known = [f"router {r['device_id']} has {self._first_ip(r)}" for r in rows]
        return f" ({', '.join(known)})" if known else " (no router is connected to it)"

    def _external(self, ip: str) -> tuple[Row, Row | None]:
        for id in asks.external_networks(self.reader):
            if any(_inside(s, ip) for s in look.subnets(self.reader, id)):
                return look.need(self.reader, Network, id), self.reader.one(_AT, {"network": id, "ip": ip})
        raise NotFound(f"{ip} is on no external network")

    def _of(self, router: Row) -> list[Row]:
        return self.reader.all(_PORTS.where(_P.device_id == router["id"], _P.device_owner.in_(asks.ROUTER_OWNERS)))

    def _first_ip(self, port: Row, like: Row | None = None) -> str:
        ips = [ip["ip_address"] for ip in look.addresses_of(self.reader, port["id"])]
        if not ips:
            raise _Stop(f"port {port['id']} has no address")
        return str(sorted(ips, key=lambda ip: ":" in ip)[0])

    # --- asking

    def _leg(self, host: str, question: Row) -> Mapping[str, Any]:
        answer = self._ask(host, {"kind": "trace", **question})
        if "error" in answer:
            raise _Stop(f"host {host} cannot say: {answer['error']}")
        for where, what in answer["steps"]:
            self._say(host, where, what)
        return answer

    def _say(self, host: str, where: str, what: str) -> None:
        self.report.steps.append((host, where, what))

    def _words(self) -> str:
        p = self.packet
        port = f" port {p['dport']}" if p["protocol"] != "icmp" else ""
        return f"{p['protocol']} from {p['src']} to {p['dst']}{port}"


def _is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


def _inside(subnet: Row, ip: str) -> bool:
    return _covers(subnet["cidr"], ip)


def _covers(cidr: str, ip: str) -> bool:
    net, address = ipaddress.ip_network(cidr, strict=False), ipaddress.ip_address(ip)
    return net.version == address.version and address in net
