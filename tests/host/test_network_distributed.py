"""Distributed routers on three hosts: packets stay where they belong, captures prove it."""

from __future__ import annotations

import subprocess
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from contract_network import external, network, port, replace, router_port
from network_world import Guest, Host, await_line, heard, until

from nubila.core.ports import FloatingSpec, NetworkSpec, PortSpec, RouterPort, RouterSpec, RuleSpec
from nubila.drivers import links

pytestmark = pytest.mark.host
ANY = (RuleSpec(direction="ingress"), RuleSpec(direction="ingress", ethertype="IPv6"))
OUTSIDE = "172.24.4.1"  # the machine on the external network


class Wires:
    """Three hosts on two wires: one of tunnels, one that is the external network, with a machine on it."""

    def __init__(self, root: Path) -> None:
        self.name = f"nbw-{uuid.uuid4().hex[:6]}"
        links.ensure_namespace(self.name, "nubila test")
        self.far = f"{self.name}-far"
        links.ensure_namespace(self.far, "nubila test")
        self.hosts = [Host(root / name, tunnel_ip=f"198.18.0.{i}") for i, name in enumerate(("net", "one", "two"), 1)]
        for bridge in ("tunnels", "outside"):
            self.run("ip", "link", "add", bridge, "type", "bridge")
            self.run("ip", "link", "set", bridge, "up")
        for number, host in enumerate(self.hosts):
            self._join(host, "tunnels", f"t{number}", f"{host.place.tunnel_ip}/24")
            self._join(host, "outside", f"o{number}", "")
            daemons = host.driver.switch.daemons  # type: ignore[attr-defined]
            # Its first flat network makes the bridge; the wire is a port of it.
            host.driver.switch.physical_bridge("physnet1")  # type: ignore[attr-defined]
            database = f"--db=unix:{daemons.run_dir}/db.sock"
            host.run("ovs-vsctl", database, "--no-wait", "add-port", "br-ex", f"o{number}")
        with links.opened(self.name) as net:
            net.add_veth("far", self.far, "fa:16:3e:00:ff:01")
        self.run("ip", "link", "set", "far", "master", "outside", "up")
        with links.entered(self.far):
            links.plain_frames("far")
            for argv in (["link", "set", "far", "up"], ["addr", "add", f"{OUTSIDE}/24", "dev", "far"]):
                subprocess.run(["ip", *argv], check=True)

    def _join(self, host: Host, bridge: str, device: str, address: str) -> None:
        with links.opened(self.name) as net:
            kind = 1 if bridge == "tunnels" else 2
            net.add_veth(device, host.place.namespace, f"fa:16:3e:00:e{kind}:0{host.place.tunnel_ip[-1]}")
        self.run("ip", "link", "set", device, "mtu", "1600", "master", bridge, "up")
        with links.opened(host.place.namespace) as net:
            end = net.must(device)
            net.change(end, up=True, mtu=1600)
            if address:
                net.set_addresses(end.index, [address])
        with links.entered(host.place.namespace):
            links.plain_frames(device)

    def run(self, *argv: str) -> None:
        with links.entered(self.name):
            subprocess.run(argv, check=True, capture_output=True, timeout=10)

    def watch(self, where: str, device: str, condition: str) -> subprocess.Popen[str]:
        """Start a capture in a namespace."""
        with links.entered(where):
            child = subprocess.Popen(
                ["tcpdump", "-i", device, "-l", "-n", "-e", "--immediate-mode", *condition.split()],
                stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            )  # fmt: skip
        await_line(child.stdout, "listening on")
        return child

    def pings(self, address: str, patience_s: int = 3) -> bool:
        """From the machine outside."""
        with links.entered(self.far):
            argv = ["busybox", "ping", "-c", "1", "-W", str(patience_s), address]
            return subprocess.run(argv, capture_output=True, timeout=10).returncode == 0

    def close(self) -> None:
        for host in self.hosts:
            host.close()
        links.remove_namespace(self.far)
        links.remove_namespace(self.name)


@pytest.fixture
def wires(tmp_path: Path) -> Iterator[Wires]:
    wires = Wires(tmp_path)
    yield wires
    wires.close()


def away(mac: str, number: int) -> str:
    """A MAC of one host for something every host has."""
    return f"0e:00:{number:02x}:" + mac[9:]


class Cloud:
    """Two networks behind one distributed router, as the control plane tells the three hosts."""

    def __init__(self, wires: Wires) -> None:
        self.wires = wires
        self.a, self.b, self.ext = network(dhcp=False, vni=7), network("10.1.0.0/24", dhcp=False, vni=8), external()
        self.ext = replace(self.ext, host_address=None)
        self.id = str(uuid.uuid4())
        self.inside = [router_port(net, 1) for net in (self.a, self.b)]
        self.sg = [router_port(net, 250) for net in (self.a, self.b)]
        self.gateway = router_port(self.ext, 10)
        self.floats: dict[int, tuple[FloatingSpec, ...]] = {}
        everybody = [host.place.tunnel_ip for host in wires.hosts]
        for host in wires.hosts:
            peers = tuple(ip for ip in everybody if ip != host.place.tunnel_ip)
            for net in (self.a, self.b, self.ext):
                host.driver.ensure_network(replace(net, peers=peers if net is not self.ext else ()))

    def spec(self, number: int) -> RouterSpec:
        """The router on one host; the first host translates."""
        floats = self.floats.get(number, ())
        door = RouterPort(
            port_id=str(uuid.uuid5(uuid.UUID(self.gateway.port_id), str(number))), network_id=self.ext.id,
            mac=away(self.gateway.mac, number), fixed_ips=(), mtu=1500, near=("172.24.4.0/24",),
        )  # fmt: skip
        central = RouterSpec(id=self.id, interfaces=tuple(self.sg), gateway=self.gateway, gateway_ips=(OUTSIDE,))
        return RouterSpec(
            id=self.id,
            interfaces=tuple(replace(p, alias_mac=away(p.mac, number)) for p in self.inside),
            gateway=door if floats else None,
            gateway_ips=(OUTSIDE,) if floats else (),
            floating_ips=floats,
            way_out=(self.sg[0].fixed_ips[0].ip_address,),
            central=central if number == 0 else None,
        )

    def route(self) -> None:
        """Have the router everywhere."""
        for number, host in enumerate(self.wires.hosts):
            assert host.driver.ensure_router(self.spec(number)).fault == ""

    def guest(self, number: int, net: NetworkSpec, address: int) -> Guest:
        spec: PortSpec = port(net, address, *ANY)
        gateway = self.inside[0 if net is self.a else 1].fixed_ips[0].ip_address
        return self.wires.hosts[number].guest(spec).configure(gateway)


def test_east_west_stays_on_the_hosts_of_the_guests(wires: Wires) -> None:
    cloud = Cloud(wires)
    cloud.route()
    a1, b1 = cloud.guest(1, cloud.a, 11), cloud.guest(1, cloud.b, 11)
    a2, b2 = cloud.guest(2, cloud.a, 12), cloud.guest(2, cloud.b, 12)
    wire = wires.watch(wires.name, "t0", "udp port 4789")
    tunnel = wires.watch(wires.hosts[2].place.namespace, "t2", "udp port 4789")
    assert a1.pings(b1.ip), "on one host"
    assert "ICMP echo" not in heard(tunnel), "nothing of it leaves the host"
    tunnel = wires.watch(wires.hosts[2].place.namespace, "t2", "udp port 4789")
    assert a1.pings(b2.ip), "from host to host"
    assert b2.pings(a1.ip)
    assert a2.pings(b1.ip)
    assert a1.pings(a2.ip), "and within the network"
    assert a1.pings("10.0.0.1")
    assert a2.pings("10.1.0.1"), "the gateways answer on either host"
    said, between = heard(wire), heard(tunnel)
    assert "ICMP echo" not in said, "no packet of theirs reaches the network host"
    assert "ICMP echo" in between
    shared = {p.mac for p in cloud.inside}
    sources = {line.split(" > ")[0].split()[-1] for line in (said + between).splitlines() if " > " in line}
    assert not any(f"{mac} >" in said + between for mac in shared), "the shared MAC is never a source out there"
    assert sources
    assert "who-has 10.0.0.1 " not in said + between, "nobody asks other hosts for the gateway"
    mine = a1.run("ip", "neigh", "show", "10.0.0.1").stdout
    assert cloud.inside[0].mac in mine
    a1.serve(80, "I am a1")
    assert b2.reads(a1.ip, 80) == "I am a1"


def test_floating_addresses_live_with_their_guests_and_the_rest_leaves_centrally(wires: Wires) -> None:
    cloud = Cloud(wires)
    a1, a2, b2 = cloud.guest(1, cloud.a, 11), cloud.guest(2, cloud.a, 12), cloud.guest(2, cloud.b, 12)
    cloud.floats = {
        1: (FloatingSpec(id="1", floating_ip="172.24.4.101", fixed_ip=a1.ip),),
        2: (FloatingSpec(id="2", floating_ip="172.24.4.102", fixed_ip=b2.ip),),
    }
    cloud.route()
    until(lambda: a2.pings(OUTSIDE), "by the central part")
    wire = wires.watch(wires.name, "t0", "udp port 4789")
    central = wires.watch(wires.name, "o0", "icmp")
    assert wires.pings("172.24.4.101")
    assert wires.pings("172.24.4.102")
    assert a1.pings(OUTSIDE)
    assert "ICMP echo" not in heard(wire) + heard(central), "a floating address never passes the network host"
    outer = wires.watch(wires.far, "far", "icmp")
    assert a1.pings(OUTSIDE)
    assert a2.pings(OUTSIDE)
    said = heard(outer)
    assert "172.24.4.101 > 172.24.4.1:" in said
    assert "172.24.4.10 > 172.24.4.1:" in said, "what has none leaves as the router's own"
    assert a1.pings("172.24.4.102"), "from floating address to floating address"
    assert a2.pings("172.24.4.102"), "from a guest of the same host without one"
    assert a2.pings("172.24.4.101"), "from a guest of another host without one"
    assert b2.pings("172.24.4.102"), "from itself"
    cloud.floats = {2: cloud.floats[2]}
    cloud.route()
    assert not wires.pings("172.24.4.101", 1)
    until(lambda: a1.pings(OUTSIDE), "it leaves centrally now")
    moved = replace(cloud.spec(0), central=None)
    wires.hosts[0].driver.ensure_router(moved)
    assert not a1.pings(OUTSIDE, 1), "the central part is gone"
    assert a1.pings(b2.ip), "and nobody else cares"


def test_a_distributed_router_comes_and_goes(wires: Wires) -> None:
    cloud = Cloud(wires)
    cloud.route()
    a1, b2 = cloud.guest(1, cloud.a, 11), cloud.guest(2, cloud.b, 12)
    assert a1.pings(b2.ip)
    host = wires.hosts[1]
    where = host.driver.router_namespace(cloud.id)
    links.remove_namespace(where)
    host.driver.ensure_router(cloud.spec(1))
    until(lambda: a1.pings(b2.ip), "made again")
    plain = replace(cloud.spec(1), interfaces=tuple(cloud.inside), way_out=())
    for one in wires.hosts:
        one.driver.remove_router(cloud.id)
    assert not a1.pings(b2.ip, 1)
    wires.hosts[0].driver.ensure_router(replace(plain, gateway=cloud.gateway, gateway_ips=(OUTSIDE,)))
    until(lambda: a1.pings(b2.ip), "one router for all, the shared MAC is an ordinary one")
    until(lambda: a1.pings(OUTSIDE), "and out")
    assert not [name for name in links.namespaces() if name.startswith(f"snat-{cloud.id}")]
