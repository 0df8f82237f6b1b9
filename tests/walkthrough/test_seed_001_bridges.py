"""Seed 001, troubleshooting: a guest's packet followed from its tap to the world, on Linux bridges.

Two machines as there: "os-controller" (control plane and network node, 10.0.0.10) and "os-compute" (10.0.0.11), one
card ens192 each for everything: management, tunnels and the provider network. "kerch" is the gateway 10.0.0.1. The
guest 172.16.1.10 has the floating address 10.0.0.109; its network's VXLAN number is 58. A third host of ours,
"os-compute-ovs", switches with Open vSwitch.

What differs by design: VXLAN goes to UDP port 4789 (RFC 7348) where the seed's kernel default was 8472; chains are
nftables', with iptables' names where packets are filtered; guests are QEMU's, so there is no libvirt file to read.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "host"))
from machines import Controller, Guest, Machine, Wire, until  # type: ignore[import-not-found]

pytestmark = pytest.mark.host
URL = "https://10.0.0.10:5443"
FIXED, FLOATING, WORLD = "172.16.1.10", "10.0.0.109", "10.0.0.1"


class Lab:
    """The seed's two machines with its networks, router and guest."""

    def __init__(self, root: Path) -> None:
        self.wire = Wire()
        names = ("os-controller", "os-compute", "kerch", "os-compute-ovs")
        self.machines = [Machine(name) for name in names]
        self.controller, self.compute, self.kerch, self.ovs = self.machines
        for machine, number in zip(self.machines, (10, 11, 1, 12), strict=True):
            self.wire.connect(machine, f"10.0.0.{number}/24")
            machine.run("sh", "-c", "ip link set eth0 down; ip link set eth0 name ens192; ip link set ens192 up")
        state = root / "controller"
        state.mkdir(mode=0o700)
        (state / "nubila.toml").write_text(
            'switch = "linuxbridge"\nphysical_networks = ["physnet1", "provider"]\n'
            'physical_devices = ["physnet1=none0", "provider=ens192"]\ntunnel_ip = "10.0.0.10"\n'
        )
        self.cloud = Controller(self.controller, state, "--host-listen", URL[8:], "--host", "os-controller")
        self.cloud.join(
            self.compute, root / "compute", URL, "--hypervisor", "simulated", "--switch", "linuxbridge",
            "--physical", "provider=ens192",
        )  # fmt: skip
        self.cloud.join(self.ovs, root / "ovs", URL, "--hypervisor", "simulated")
        self.make()

    def call(self, method: str, path: str, body: Any = None, **query: Any) -> Any:
        return self.cloud.call(method, "network", path, body, **query)

    def make(self) -> None:
        """The seed's networks, router, guest and floating IP."""
        for old in self.call("GET", "/networks", **{"router:external": "true"})["networks"]:
            self.call("DELETE", f"/networks/{old['id']}")
        provider = {"name": "provider", "router:external": True, "provider:network_type": "flat",
                    "provider:physical_network": "provider", "shared": True}  # fmt: skip
        self.provider: str = self.call("POST", "/networks", {"network": provider})["network"]["id"]
        pool = {"network_id": self.provider, "ip_version": 4, "cidr": "10.0.0.0/24", "gateway_ip": WORLD,
                "allocation_pools": [{"start": "10.0.0.101", "end": "10.0.0.250"}]}  # fmt: skip
        self.call("POST", "/subnets", {"subnet": pool})
        own = {"name": "selfservice", "provider:network_type": "vxlan", "provider:segmentation_id": 58}
        self.net: str = self.call("POST", "/networks", {"network": own})["network"]["id"]
        subnet = {"network_id": self.net, "ip_version": 4, "cidr": "172.16.1.0/24", "gateway_ip": "172.16.1.1"}
        inside = self.call("POST", "/subnets", {"subnet": subnet})["subnet"]["id"]
        gate = {"router": {"name": "router", "external_gateway_info": {"network_id": self.provider}}}
        self.router: str = self.call("POST", "/routers", gate)["router"]["id"]
        self.call("PUT", f"/routers/{self.router}/add_router_interface", {"subnet_id": inside})
        group = self.cloud.open_ping()
        port = {"network_id": self.net, "fixed_ips": [{"ip_address": FIXED}], "security_groups": [group]}
        self.port: dict[str, Any] = self.call("POST", "/ports", {"port": port})["port"]
        port = {"network_id": self.net, "security_groups": [group]}
        self.far: dict[str, Any] = self.call("POST", "/ports", {"port": port})["port"]
        image = {"name": "cirros", "disk_format": "raw", "container_format": "bare"}
        made = self.cloud.call("POST", "image", "/images", image)["id"]
        blank = self.cloud.state / "blank"
        blank.write_bytes(b"\0" * 1024)
        with self.controller.network():
            self.cloud.client().upload(made, blank)
        for host, its in (("os-compute", self.port), ("os-compute-ovs", self.far)):
            body = {"networks": [{"port": its["id"]}]}
            self.cloud.becomes(self.cloud.server("selfservice-instance", made, self.net, host=host, **body), "ACTIVE")
        self.guest, self.mate = Guest(self.compute, self.port), Guest(self.ovs, self.far)
        fixed = {"floating_network_id": self.provider, "port_id": self.port["id"], "floating_ip_address": FLOATING}
        self.call("POST", "/floatingips", {"floatingip": fixed})
        for guest in (self.guest, self.mate):
            until(guest.lease, "DHCP across the tunnel")
        until(lambda: self.guest.pings(WORLD), "the world")
        owned = self.call("GET", "/ports", device_id=self.router)["ports"]
        self.inner, self.outer = (
            next(p for p in owned if p["device_owner"] == f"network:router_{kind}") for kind in ("interface", "gateway")
        )
        self.space = f"qrouter-{self.router}"

    def dhcp_ports(self, network: str) -> list[str]:
        """Devices of a network's DHCP ports."""
        found = self.call("GET", "/ports", network_id=network, device_owner="network:dhcp")["ports"]
        return [f"tap{p['id'][:11]}" for p in found]

    def close(self) -> None:
        for machine in (*self.machines, self.wire.machine):
            machine.switch_off()


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    made = Lab(tmp_path_factory.mktemp("seed001"))
    yield made
    made.close()


def brq(network: str) -> str:
    return f"brq{network[:11]}"


def tap(port: dict[str, Any]) -> str:
    return f"tap{port['id'][:11]}"


def members(machine: Machine, bridge: str) -> set[str]:
    """What ``brctl show`` lists as a bridge's interfaces."""
    links = json.loads(machine.run("ip", "-j", "link").stdout)
    return {link["ifname"] for link in links if link.get("master") == bridge}


def listen(machine: Machine, device: str, condition: str, space: str = "") -> subprocess.Popen[str]:
    """tcpdump -nne on a device until two packets have been seen."""
    inside = ["ip", "netns", "exec", space] if space else []
    argv = ["timeout", "30", "tcpdump", "-i", device, "-l", "-nne", "-c", "2", "--immediate-mode", condition]
    child: subprocess.Popen[str] = machine.spawn(*inside, *argv)
    assert child.stdout is not None
    while "listening on" not in (line := child.stdout.readline()):
        assert line, "tcpdump did not start"
    return child


def said(child: subprocess.Popen[str]) -> list[str]:
    """The packets that were seen."""
    assert child.stdout is not None
    return [line.strip() for line in child.stdout.read().splitlines() if " > " in line]


def chain(machine: Machine, *where: str, space: str = "") -> str:
    inside = ["ip", "netns", "exec", space] if space else []
    return machine.run(*inside, "nft", "list", "chain", *where).stdout


def table(machine: Machine, *where: str, space: str = "") -> str:
    inside = ["ip", "netns", "exec", space] if space else []
    return machine.run(*inside, "nft", "list", "table", *where).stdout


@pytest.mark.req("B/WALK-60")
@pytest.mark.req("B/WALK-62")
def test_a_firewall_of_the_host_that_stops_tunnels_is_seen_and_cured(lab: Lab) -> None:
    gateway = "172.16.1.1"
    assert lab.guest.pings(gateway)
    lab.controller.run("nft", "add table ip host")
    lab.controller.run("nft", "add chain ip host INPUT { type filter hook input priority 10; }")
    lab.controller.run("nft", "add rule ip host INPUT udp dport 4789 reject with icmp type host-prohibited")
    hearing = listen(lab.compute, "ens192", "icmp")
    assert not lab.guest.pings(gateway, 1)
    assert not lab.guest.pings(gateway, 1)
    assert "10.0.0.10 unreachable - admin prohibited" in said(hearing)[0]
    lab.controller.run("nft", "delete", "table", "ip", "host")
    assert lab.guest.pings(gateway), "without a restart of anything"
    assert lab.guest.lease()


@pytest.mark.req("B/WALK-61")
@pytest.mark.req("B/WALK-66")
def test_chains_of_the_filter_have_their_names(lab: Lab) -> None:
    own = ("inet", "linuxbridge-nubila")
    eleven = lab.port["id"][:11]
    forward = chain(lab.compute, *own, "neutron-linuxbri-FORWARD")
    assert "hook forward" in forward
    assert "policy accept" in forward
    assert "hook input" in chain(lab.controller, *own, "neutron-linuxbri-INPUT")
    for letter in "io":
        assert "ct state invalid" in chain(lab.compute, *own, f"neutron-linuxbri-{letter}{eleven}")
    spoof = chain(lab.compute, "bridge", own[1], f"neutron-linuxbri-s{eleven}")
    assert f"{lab.port['mac_address']}" in spoof
    assert FIXED in spoof


@pytest.mark.req("B/WALK-63")
@pytest.mark.req("B/WALK-68")
@pytest.mark.req("B/WALK-82")
@pytest.mark.req("C/LBR-05")
@pytest.mark.req("C/LBR-11")
def test_bridges_have_the_ports_that_brctl_showed(lab: Lab) -> None:
    assert lab.call("GET", f"/ports/{lab.port['id']}")["port"]["binding:vif_type"] == "bridge"
    assert members(lab.compute, brq(lab.net)) == {tap(lab.port), "vxlan-58"}
    inside = {tap(lab.inner), "vxlan-58", *lab.dhcp_ports(lab.net)}
    assert members(lab.controller, brq(lab.net)) == inside
    outside = {"ens192", tap(lab.outer), *lab.dhcp_ports(lab.provider)}
    assert members(lab.controller, brq(lab.provider)) == outside
    for machine in (lab.compute, lab.controller):
        shown = machine.run("ip", "-d", "link", "show", brq(lab.net)).stdout
        assert "stp_state 0" in shown
    assert "10.0.0.10/24" in lab.controller.run("ip", "-br", "addr", "show", brq(lab.provider)).stdout


@pytest.mark.req("B/WALK-67")
def test_the_tunnel_device_is_as_it_was_shown(lab: Lab) -> None:
    for machine in (lab.compute, lab.controller):
        shown = machine.run("ip", "-d", "link", "show", "vxlan-58").stdout
        assert "mtu 1450" in shown
        assert f"master {brq(lab.net)}" in shown
        assert re.search(r"vxlan id 58 .*dstport 4789 .*ageing 300", shown)


@pytest.mark.req("B/WALK-77", "C/L3A-06")
def test_the_router_has_its_devices_and_addresses(lab: Lab) -> None:
    shown = lab.controller.run("ip", "netns", "exec", lab.space, "ip", "a").stdout
    inner, outer = (f"{kind}-{port['id'][:11]}" for kind, port in (("qr", lab.inner), ("qg", lab.outer)))
    assert re.search(rf"{inner}@if\d+: .*LOWER_UP.* mtu 1450 .*state UP", shown)
    assert re.search(rf"{outer}@if\d+: .*LOWER_UP.* mtu 1500 .*state UP", shown)
    assert "inet 172.16.1.1/24" in shown
    assert f"inet {lab.outer['fixed_ips'][0]['ip_address']}/24" in shown
    assert f"inet {FLOATING}/32" in shown
    assert "link-netns" in shown
    listed = lab.controller.run("ip", "netns").stdout
    for space in (lab.space, f"qdhcp-{lab.net}"):
        assert space in listed


@pytest.mark.req("B/WALK-79")
@pytest.mark.req("B/WALK-80")
@pytest.mark.req("B/WALK-81", "C/L3-20")
def test_the_router_translates_as_its_chains_showed(lab: Lab) -> None:
    rules = table(lab.controller, "ip", "nubila-router", space=lab.space)
    chains = dict(re.findall(r"chain (\S+) \{(.*?)\n\t\}", rules, re.DOTALL))
    hooked = {re.search(r"type nat hook (\w+)", text)[1]: text for text in chains.values() if "type nat" in text}  # type: ignore[index]
    assert re.search(rf"daddr {FLOATING} .*dnat to {FIXED}", rules)
    assert {"prerouting", "output", "postrouting"} <= hooked.keys()
    assert re.search(r"169\.254\.169\.254 tcp dport 80 .*redirect to :9697", rules)
    assert re.search(rf"saddr {FIXED} .*snat to {FLOATING}", rules)
    for direction in (lab.guest.pings(WORLD), lab.kerch.pings(FLOATING)):
        assert direction


def test_hosts_with_different_switches_are_one_network(lab: Lab) -> None:
    agents = {a["host"]: a["binary"] for a in lab.call("GET", "/agents")["agents"] if "metadata" not in a["binary"]
              and a["topic"] == "N/A"}  # fmt: skip
    assert agents == {
        "os-controller": "neutron-linuxbridge-agent",
        "os-compute": "neutron-linuxbridge-agent",
        "os-compute-ovs": "neutron-openvswitch-agent",
    }
    assert lab.call("GET", f"/ports/{lab.far['id']}")["port"]["binding:vif_type"] == "ovs"
    assert lab.guest.pings(lab.mate.ip)
    assert lab.mate.pings(FIXED)
    assert lab.mate.pings("172.16.1.1"), "the router"
    fdb = lab.compute.run("bridge", "fdb", "show", "dev", "vxlan-58").stdout
    for mac, at in ((lab.far["mac_address"], "10.0.0.12"), (lab.inner["mac_address"], "10.0.0.10")):
        assert f"{mac} dst {at} self permanent" in fdb, "where it is has been told"
    neighbours = lab.compute.run("ip", "neigh", "show", "dev", brq(lab.net), "nud", "permanent").stdout
    assert f"{lab.mate.ip} lladdr {lab.far['mac_address']}" in neighbours


@pytest.mark.req("B/WALK-84")
def test_names_are_made_of_eleven_characters(lab: Lab) -> None:
    names = {link["ifname"] for link in json.loads(lab.controller.run("ip", "-j", "link").stdout)}
    assert {brq(lab.net), brq(lab.provider), tap(lab.inner), tap(lab.outer), "vxlan-58"} <= names
    assert all(len(name) <= 15 for name in names)


@pytest.mark.req("B/WALK-64")
@pytest.mark.req("B/WALK-65")
@pytest.mark.req("B/WALK-69")
@pytest.mark.req("B/WALK-70")
@pytest.mark.req("B/WALK-71")
@pytest.mark.req("B/WALK-75")
@pytest.mark.req("B/WALK-76")
@pytest.mark.req("B/WALK-78")
@pytest.mark.req("B/WALK-83")
@pytest.mark.req("B/WALK-85")
def test_one_ping_is_seen_at_every_point_of_its_way(lab: Lab) -> None:
    frame = "udp dst port 4789 and greater 148 and less 148"
    points = {
        "tap": listen(lab.compute, tap(lab.port), "icmp"),
        "bridge": listen(lab.compute, brq(lab.net), "icmp"),
        "tunnel": listen(lab.compute, "vxlan-58", "icmp"),
        "card": listen(lab.compute, "ens192", frame),
        "network node's tunnel": listen(lab.controller, "vxlan-58", "icmp"),
        "qr": listen(lab.controller, f"qr-{lab.inner['id'][:11]}", "icmp", lab.space),
        "qg": listen(lab.controller, f"qg-{lab.outer['id'][:11]}", "icmp", lab.space),
        "provider bridge": listen(lab.controller, brq(lab.provider), "icmp"),
        "network node's card": listen(lab.controller, "ens192", "icmp"),
        "world": listen(lab.kerch, "ens192", "icmp"),
    }
    assert lab.guest.pings(WORLD)
    seen = {name: said(child) for name, child in points.items()}
    wrapped = seen["card"][1::2]  # tcpdump shows what is inside on a line of its own
    seen["card"] = seen["card"][::2]
    assert {name: packets for name, packets in seen.items() if len(packets) != 2} == {}
    assert f"{FIXED} > {WORLD}: ICMP echo request" in wrapped[0]
    guest, gate, outer = lab.port["mac_address"], lab.inner["mac_address"], lab.outer["mac_address"]
    for name in ("tap", "bridge", "tunnel", "network node's tunnel", "qr"):
        there, back = seen[name]
        assert f"{guest} > {gate}, ethertype IPv4 (0x0800), length 98: {FIXED} > {WORLD}: ICMP echo request" in there
        assert f"{gate} > {guest}, ethertype IPv4 (0x0800), length 98: {WORLD} > {FIXED}: ICMP echo reply" in back
    there, back = seen["card"]
    assert re.search(r"length 148: 10\.0\.0\.11\.\d+ > 10\.0\.0\.10\.4789: VXLAN, flags \[I\] \(0x08\), vni 58", there)
    assert re.search(r"length 148: 10\.0\.0\.10\.\d+ > 10\.0\.0\.11\.4789: VXLAN, flags \[I\] \(0x08\), vni 58", back)
    for name in ("qg", "provider bridge", "network node's card", "world"):
        there, back = seen[name]
        assert f"{outer} > " in there
        assert f"length 98: {FLOATING} > {WORLD}: ICMP echo request" in there
        assert f"length 98: {WORLD} > {FLOATING}: ICMP echo reply" in back
        assert FIXED not in there + back, "the fixed address never leaves"
