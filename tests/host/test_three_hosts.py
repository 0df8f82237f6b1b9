"""Three machines, one cloud: join by token, networks across hosts, cut, mended, killed, drained and removed hosts.

"ctl" has the control plane and serves the network; "real" runs QEMU guests and can serve the network as well; "sim"
simulates its guests on real networks, and a namespace plugged into a port stands for the guest.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from machines import Controller, Guest, Machine, Wire, until

from nubila.apps.quickstart import cached_image

pytestmark = pytest.mark.host
ADDRESSES = {"ctl": "198.18.0.1/24", "real": "198.18.0.2/24", "sim": "198.18.0.3/24"}
URL = "https://198.18.0.1:5443"


class Scene:
    """The machines and what runs on them. One project's guests: "a" on real, "b" on sim; another's: "d" on sim."""

    def __init__(self, root: Path) -> None:
        self.states = {name: root / name for name in ADDRESSES}
        self.wire = Wire()
        self.machines = {name: Machine(name) for name in ADDRESSES}
        for name, address in ADDRESSES.items():
            self.wire.connect(self.machines[name], address)
        self.ctl, self.real, self.sim = self.machines.values()
        self.cloud = Controller(self.ctl, self.states["ctl"], "--host-listen", URL[8:], "--host", "ctl")
        self.cloud.join(self.real, self.states["real"], URL, roles=("compute", "network"))
        self.cloud.join(self.sim, self.states["sim"], URL, "--hypervisor", "simulated")
        cloud = self.cloud
        self.image = cloud.upload(cached_image(lambda line: None))
        self.net, subnet = cloud.network("n", "10.0.0.0/24")
        self.router = cloud.router(subnet)
        self.group = cloud.open_ping()
        self.servers = {name: self.server(name, host) for name, host in (("a", "real"), ("b", "sim"))}
        other, _ = cloud.network("n", "10.0.0.0/24", who="demo")
        with self.only("sim"):
            self.servers["d"] = cloud.server("d", self.image, other, who="demo")
            for server in self.servers.values():
                cloud.becomes(server, "ACTIVE")
        self.a = cloud.port(self.servers["a"])["fixed_ips"][0]["ip_address"]
        self.b, self.d = (Guest(self.sim, cloud.port(self.servers[name])) for name in ("b", "d"))
        self.floating = cloud.floating(cloud.port(self.servers["a"])["id"])

    def server(self, name: str, host: str) -> str:
        return self.cloud.server(name, self.image, self.net, host=host, security_groups=[{"name": "open"}])

    @contextlib.contextmanager
    def only(self, host: str) -> Iterator[None]:
        """New servers go to this host, whoever asks."""
        services = self.cloud.call("GET", "compute", "/os-services", binary="nova-compute")["services"]
        others = [s["id"] for s in services if s["host"] != host]
        for id in others:
            self.cloud.call("PUT", "compute", f"/os-services/{id}", {"status": "disabled"})
        yield
        for id in others:
            self.cloud.call("PUT", "compute", f"/os-services/{id}", {"status": "enabled"})

    def qemu(self) -> dict[str, int]:
        """The guests that really run on "real": id to pid there."""
        found = {}
        for directory in self.states["real"].glob("hosts/real/guests/*-*"):
            pid = int((directory / "qemu.pid").read_text().split()[0])
            words = self.real.processes().get(pid, "-").split()
            if words[0].endswith("qemu-system-x86_64") and "-name" in words:
                found[directory.name] = pid
        return found

    def serving(self) -> dict[str, set[str]]:
        """Which machines have the router, and the DHCP server of the network, in a namespace."""
        out: dict[str, set[str]] = {"router": set(), "dhcp": set()}
        for name, machine in self.machines.items():
            spaces = machine.run("ip", "netns").stdout
            out["router"] |= {name} if f"qrouter-{self.router}" in spaces else set()
            out["dhcp"] |= {name} if f"qdhcp-{self.net}" in spaces else set()
        return out

    def settled(self) -> bool:
        """Nothing is owed, and every host has exactly the guests that the database says."""
        hosts = self.cloud.hosts()
        listed = self.cloud.call("GET", "compute", "/servers/detail", all_tenants="1")["servers"]
        there = {s["id"] for s in listed if s["OS-EXT-SRV-ATTR:host"] == "real"}
        return all(h["alive"] and not h["work"] for h in hosts.values()) and set(self.qemu()) == there

    def metadata(self) -> dict[str, Any]:
        """What guest b is told by 169.254.169.254."""
        found: dict[str, Any] = json.loads(self.b.reads("http://169.254.169.254/openstack/latest/meta_data.json"))
        return found

    def close(self) -> None:
        for machine in (*self.machines.values(), self.wire.machine):
            machine.switch_off()


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    made = Scene(tmp_path_factory.mktemp("three"))
    yield made
    made.close()


@pytest.mark.req("C/ARCH-11")
def test_joined_hosts_hold_no_secrets_of_the_cloud(scene: Scene) -> None:
    hosts = scene.cloud.hosts()
    assert {name: (h["alive"], h["roles"], h["tunnel_ip"]) for name, h in hosts.items()} == {
        "ctl": (True, ["compute", "network"], "198.18.0.1"),
        "real": (True, ["compute", "network"], "198.18.0.2"),
        "sim": (True, ["compute"], "198.18.0.3"),
    }
    assert hosts["sim"]["accel"] == "simulated"
    for name in ("real", "sim"):
        state = scene.states[name]
        assert not [p for p in state.rglob("*") if p.name in ("nubila.db", "fernet", "clouds.yaml", "ca.key")]
        assert all(p.stat().st_mode & 0o077 == 0 for p in state.rglob("*.key"))
        assert "database" not in json.loads((state / "hosts" / name / "agent.json").read_text())


@pytest.mark.req("C/ARCH-09", "C/ARCH-13", "C/OVS-15", "C/ARCH-04", "C/TUN-03")
def test_a_network_spans_hosts_and_projects_are_apart(scene: Scene) -> None:
    scene.b.lease()
    until(lambda: scene.b.pings(scene.a), "guest to guest, host to host", 150)
    tunnel = scene.real.spawn("timeout", "20", "tcpdump", "-i", "eth0", "-c", "4", "-n", "udp and port 4789")
    assert until(lambda: scene.b.pings(scene.a) and tunnel.poll() is not None, "packets in the tunnel", 20)
    assert tunnel.returncode == 0, "they went by VXLAN"
    assert scene.metadata()["uuid"] == scene.servers["b"]
    assert scene.ctl.pings(scene.floating), "and out through the router"
    scene.d.lease()
    assert scene.d.ip.startswith("10.0.0."), "the same addresses, another network"
    for address in {scene.a, scene.b.ip} - {scene.d.ip}:
        assert not scene.d.pings(address, 1)


@pytest.mark.req("C/AGT-02")
def test_a_host_that_is_cut_off_keeps_its_guests_and_catches_up(scene: Scene) -> None:
    before = scene.qemu()
    rule = next(
        r["id"]
        for r in scene.cloud.call("GET", "network", "/security-group-rules", security_group_id=scene.group)[
            "security_group_rules"
        ]
        if r["protocol"] == "icmp"
    )
    scene.wire.cut(scene.real)
    assert not scene.b.pings(scene.a, 1)
    scene.cloud.call("DELETE", "network", f"/security-group-rules/{rule}")
    late = scene.server("late", "real")
    assert scene.cloud.status(late) == "BUILD"
    assert scene.qemu() == before
    scene.wire.mend(scene.real)
    scene.cloud.becomes(late, "ACTIVE")
    assert not scene.b.pings(scene.a, 1), "what changed meanwhile holds"
    icmp = {"security_group_id": scene.group, "direction": "ingress", "ethertype": "IPv4", "protocol": "icmp"}
    scene.cloud.call("POST", "network", "/security-group-rules", {"security_group_rule": icmp})
    until(lambda: scene.b.pings(scene.a), "and changes back")
    assert before.items() <= scene.qemu().items()
    scene.wire.cut(scene.real)
    scene.cloud.call("DELETE", "compute", f"/servers/{late}")
    assert late in scene.qemu()
    until(lambda: not scene.cloud.hosts()["real"]["alive"], "its silence is noticed", 60)
    scene.wire.mend(scene.real)
    until(scene.settled, "everybody agrees")
    assert scene.qemu() == before
    assert scene.cloud.status(late) == ""


def test_a_killed_agent_converges(scene: Scene) -> None:
    before = scene.qemu()
    pids = json.loads((scene.states["real"] / "run" / "processes.json").read_text())
    made = scene.server("made", "real")
    scene.real.run("kill", "-9", str(pids["agent"]))
    scene.cloud.becomes(made, "ACTIVE")
    scene.real.run("kill", "-9", str(pids["supervisor"]))
    scene.cloud.call("DELETE", "compute", f"/servers/{made}")
    said = until(lambda: scene.real.nubila("up", "-d", "--state", str(scene.states["real"])), "its lock is free", 20)
    assert "a host of cloud nubila" in said
    until(scene.settled, "everybody agrees")
    assert scene.qemu() == before
    assert scene.b.pings(scene.a)


def test_a_cut_off_host_reboots_into_its_guests(scene: Scene) -> None:
    before = scene.qemu()
    assert before
    scene.real.reboot()
    assert scene.qemu() == {}
    scene.real.run("ip", "link", "add", "eth1", "type", "ifb")  # a network, but not the way to the controller
    scene.real.nubila("up", "-d", "--state", str(scene.states["real"]))
    until(lambda: scene.qemu().keys() == before.keys(), "its guests run again", 90)
    running = scene.qemu()
    scene.wire.connect(scene.real, ADDRESSES["real"])
    until(lambda: scene.b.pings(scene.a), "and are back on the network", 150)
    until(scene.settled, "everybody agrees")
    assert scene.qemu() == running


def test_a_drained_host_hands_its_routers_over(scene: Scene) -> None:
    assert scene.serving() == {"router": {"ctl"}, "dhcp": {"ctl"}}
    for off, on in (("ctl", "real"), ("real", "ctl")):
        scene.cloud.nubila("host", "drain", off)
        until(lambda on=on: scene.serving() == {"router": {on}, "dhcp": {on}}, f"{on} serves", 60)  # type: ignore[misc]
        until(lambda on=on: scene.machines[on].pings(scene.floating), "the floating IP")  # type: ignore[misc]
        until(scene.b.lease, f"DHCP by {on}")
        until(lambda: scene.metadata()["uuid"] == scene.servers["b"], f"metadata by {on}")
        assert scene.b.pings(scene.a)
        refused = scene.server("refused", off)
        scene.cloud.becomes(refused, "ERROR")
        scene.cloud.call("DELETE", "compute", f"/servers/{refused}")
        scene.cloud.nubila("host", "enable", off)
    until(scene.settled, "everybody agrees")


def test_a_removed_host_is_out_until_it_joins_again(scene: Scene) -> None:
    said = scene.cloud.nubila("host", "remove", "sim", check=False)
    assert "2 guests are still on sim" in said
    for name in ("b", "d"):
        scene.cloud.call("DELETE", "compute", f"/servers/{scene.servers[name]}")
        scene.cloud.becomes(scene.servers[name], "")
    assert "is removed" in scene.cloud.nubila("host", "remove", "sim")
    assert "sim" not in scene.cloud.hosts()
    log = scene.states["sim"] / "log" / "agent.log"
    until(lambda: "no longer" in log.read_text(), "its agent is refused")
    refused = scene.server("nowhere", "sim")
    assert scene.cloud.status(refused) in ("BUILD", "ERROR")
    scene.cloud.becomes(refused, "ERROR")
    scene.cloud.call("DELETE", "compute", f"/servers/{refused}")
    scene.sim.nubila("destroy", "--yes", "--state", str(scene.states["sim"]))
    assert scene.sim.run("nft", "list", "ruleset").stdout == ""
    left = " ".join(scene.sim.processes().values())
    assert not [name for name in ("nubila.apps", "ovs-vswitchd", "ovsdb-server", "dnsmasq") if name in left]
    scene.cloud.join(scene.sim, scene.states["sim"], URL, "--hypervisor", "simulated")
    back = scene.server("back", "sim")
    scene.cloud.becomes(back, "ACTIVE")
    guest = Guest(scene.sim, scene.cloud.port(back))
    guest.lease()
    until(lambda: guest.pings(scene.a), "it is on the network again")


def test_a_used_token_does_not_admit_another_machine(scene: Scene) -> None:
    token = scene.cloud.nubila("host", "token", "create").strip()
    state, sim = str(scene.states["sim"].with_name("more")), scene.sim
    for expected in ("joined cloud nubila", "has been used already"):
        argv = ["join", URL, "--token", token, "--state", f"{state}-{expected[:3]}", "--gear", "simulated"]
        said = sim.nubila(*argv, "--host", f"more-{expected[:3]}", "-d", check=False)
        assert expected in said
    sim.nubila("destroy", "--yes", "--state", f"{state}-joi")
    scene.cloud.nubila("host", "remove", "more-joi")
