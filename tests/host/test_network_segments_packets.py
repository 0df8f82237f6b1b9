"""Routed provider networks and floating IPs behind further routers, with packets."""

from __future__ import annotations

import subprocess
import uuid
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
from contract_network import external, network, port, replace, router, router_port
from network_world import Guest, Host, until

from nubila.agent.apply import Drivers
from nubila.core.ports import FloatingSpec, HostPlace, RuleSpec
from nubila.drivers import links
from nubila.drivers.network import RealNetwork
from nubila.drivers.simulated_hypervisor import SimulatedHypervisor
from nubila.services.network import hosting, plug
from nubila.testing.cloud import TestCloud

pytestmark = pytest.mark.host
Json = dict[str, Any]
ANY = (RuleSpec(direction="ingress"), RuleSpec(direction="ingress", ethertype="IPv6"))
OUT = "172.24.4.99"


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Host]:
    host = Host(tmp_path)
    yield host
    host.close()


def test_a_floating_ip_leads_to_a_guest_behind_another_router(host: Host) -> None:
    inside, transit, outside = network(dhcp=False, vni=7), network("10.9.0.0/24", dhcp=False, vni=8), external()
    for net in (inside, transit, outside):
        host.driver.ensure_network(net)
    guest = host.guest(port(inside, 3, *ANY)).configure("10.0.0.1")
    inner = router(inside)
    inner = replace(inner, interfaces=(*inner.interfaces, router_port(transit, 5)), routes=(("0.0.0.0/0", "10.9.0.1"),))
    floating = FloatingSpec(id=str(uuid.uuid4()), floating_ip=OUT, fixed_ip=guest.ip)
    outer = router(transit, outside=outside, routes=(("10.0.0.0/24", "10.9.0.5"),))
    for one in (inner, outer):
        host.driver.ensure_router(one)
    assert not host.pings(OUT, 1), "nobody has the address yet"
    host.driver.ensure_router(replace(outer, floating_ips=(floating,)))
    until(lambda: host.pings(OUT, 1), "the floating IP answers")
    guest.serve(80, "inner")
    argv = ("busybox", "nc", "-w", "5", OUT, "80")
    assert host.run(*argv, check=False).strip() == "inner"


def test_extra_routes_to_one_destination_share_its_traffic(host: Host) -> None:
    net = network(dhcp=False)
    host.driver.ensure_network(net)
    far = "198.51.100.0/24"
    gate = router(net, routes=((far, "10.0.0.5"), (far, "10.0.0.6")))
    host.driver.ensure_router(gate)
    namespace = host.driver.router_namespace(gate.id)
    told = host.inside(namespace, "ip", "route", "show", far)
    assert {hop for hop in ("10.0.0.5", "10.0.0.6", "10.0.0.7") if hop in told} == {"10.0.0.5", "10.0.0.6"}
    host.driver.ensure_router(replace(gate, routes=gate.routes[:1]))
    assert "10.0.0.6" not in host.inside(namespace, "ip", "route", "show", far)


def test_a_hint_about_transmit_queues_is_told_to_the_switch(host: Host) -> None:
    net = network(dhcp=False)
    host.driver.ensure_network(net)
    guest = host.guest(port(net, 3, *ANY, tx_steering="hash"))
    database = f"--db=unix:{host.driver.switch.daemons.run_dir}/db.sock"  # type: ignore[attr-defined]

    def told() -> str:
        return host.run("ovs-vsctl", database, "get", "Interface", guest.spec.device, "other_config").strip()

    assert told() == "{tx-steering=hash}"
    host.driver.ensure_port(replace(guest.spec, tx_steering=""))
    assert told() == "{}"
    host.driver.ensure_port(replace(guest.spec, tx_steering="thread"))
    assert told() == "{tx-steering=thread}"


class Racks:
    """Two hosts in racks of their own, and a router of the operator's between the racks."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.drivers: dict[str, RealNetwork] = {}
        self.guests: list[Guest] = []
        self.leaf = f"nbw-{uuid.uuid4().hex[:8]}"
        links.ensure_namespace(self.leaf, "nubila test")
        self.cloud = TestCloud(root / "cloud", hosts=0, physical_networks=("physnet1", "rack1", "rack2"))
        for number in (1, 2):
            self.cloud.add_host(f"host{number}", self._drivers, bridges={f"rack{number}": f"br-{number}"})
            self._connect(number)
        with links.entered(self.leaf):
            links.sysctl("net/ipv4/ip_forward", "1")

    def _drivers(self, place: HostPlace) -> Drivers:
        namespace = f"nbh-{uuid.uuid4().hex[:8]}"
        links.ensure_namespace(namespace, "nubila test host")
        real = msgspec.structs.replace(place, namespace=namespace)
        self.drivers[place.host] = RealNetwork(real)
        return Drivers(SimulatedHypervisor(place), self.drivers[place.host])

    def _connect(self, number: int) -> None:
        driver, device = self.drivers[f"host{number}"], f"leaf{number}"
        with links.opened(driver.place.namespace) as net:
            net.add_veth(device, self.leaf, f"fa:16:3e:00:ee:0{number}")
            net.change(net.must(device), up=True)
        driver.switch.physical_bridge(f"rack{number}")  # type: ignore[attr-defined]
        database = f"--db=unix:{driver.switch.daemons.run_dir}/db.sock"  # type: ignore[attr-defined]
        argv = ["ovs-vsctl", database, "--no-wait", "add-port", f"br-{number}", device]
        for where, words in (
            (driver.place.namespace, argv),
            (self.leaf, ["ip", "addr", "add", f"10.7{number}.0.1/24", "dev", device]),
            (self.leaf, ["ip", "link", "set", device, "up"]),
        ):
            with links.entered(where):
                links.plain_frames(device)
                subprocess.run(words, check=True, timeout=20)

    def make(self, item: str, user: str = "admin", **values: Any) -> Json:
        token = self.cloud.token(user)
        got = self.cloud.request("POST", f"/network/v2.0/{item}s", {item: values}, token=token)
        assert got.status < 300, got.body
        found: Json = got.json[item]
        return found

    def plug(self, made: Json, host: str) -> Guest:
        """Plug a port into a guest of a host; the device is there before the agent looks."""
        cloud = self.cloud.cloud
        with cloud.store.write() as tx:
            plug.attach_port(cloud, tx, made["id"], device_id=str(uuid.uuid4()), device_owner="compute:nova", host=host)
        with cloud.store.read() as reader:
            spec = hosting.describe_port(cloud, reader, made["id"], host)
        assert spec is not None
        stage: Any = SimpleNamespace(place=self.drivers[host].place, root=self.root)
        self.guests.append(Guest(stage, spec))
        self.cloud.settle()
        return self.guests[-1]

    def close(self) -> None:
        for guest in self.guests:
            guest.close()
        for driver in self.drivers.values():
            driver.destroy()
            links.remove_namespace(driver.place.namespace)
        links.remove_namespace(self.leaf)
        self.cloud.close()


@pytest.fixture
def racks(tmp_path: Path) -> Iterator[Racks]:
    racks = Racks(tmp_path)
    try:
        yield racks
    finally:
        racks.close()


def test_guests_of_a_routed_network_meet_through_the_operators_router(racks: Racks) -> None:
    parts = [{"provider:network_type": "flat", "provider:physical_network": f"rack{n}"} for n in (1, 2)]
    net = racks.make("network", name="routed", shared=True, segments=parts)
    token = racks.cloud.token()
    found = racks.cloud.request("GET", f"/network/v2.0/segments?network_id={net['id']}", token=token).json["segments"]
    for segment in found:
        number = segment["physical_network"][-1]
        racks.make("subnet", network_id=net["id"], ip_version=4, cidr=f"10.7{number}.0.0/24", segment_id=segment["id"])
    made = [racks.make("port", user="demo", network_id=net["id"]) for _ in range(2)]
    assert {p["ip_allocation"] for p in made} == {"deferred"}
    one, two = (racks.plug(p, f"host{n}") for n, p in enumerate(made, 1))
    assert (one.ip[:6], two.ip[:6]) == ("10.71.", "10.72.")
    lease = one.lease()
    assert lease["ip"] == one.ip, "from the DHCP server of its own segment"
    routes = lease["staticroutes"].split()
    assert dict(zip(routes[::2], routes[1::2], strict=True))["10.72.0.0/24"] == "10.71.0.1"
    assert two.lease()["ip"] == two.ip
    until(lambda: one.pings(two.ip, 1), "they meet")
    with links.entered(racks.leaf):
        words = ["ip", "link", "set", "leaf2", "down"]
        subprocess.run(words, check=True, timeout=10)
    assert not one.pings(two.ip, 1), "there is no other way"
