"""What somebody takes away by hand is found by a quick look and brought back; nothing else is touched."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from contract_network import PING, external, network, port, replace, router, with_hosts
from network_world import Guest, Host, until

from nubila.agent.apply import Drivers, apply
from nubila.agent.heal import Healer
from nubila.agent.ledger import Ledger
from nubila.core.ports import FixedIp, NetworkSpec, PortSpec, RouterSpec, SubnetSpec
from nubila.drivers import advertise, links, processes

pytestmark = pytest.mark.host


class Ward:
    """A host with two guests behind a router, kept by a healer as an agent keeps it."""

    def __init__(self, root: Path) -> None:
        self.host = Host(root)
        self.ledger = Ledger(root / "ledger")
        self.healer = Healer(self.ledger, self.host.driver, pause_s=0.0)
        self.done: list[tuple[str, str]] = []
        self.net, self.outside = network(gateway="10.0.0.1"), external()
        self.six = SubnetSpec(
            id="six", cidr="fd00:6::/64", ip_version=6, ipv6_ra_mode="slaac", ipv6_address_mode="slaac"
        )
        specs = [port(self.net, 3, PING), port(self.net, 4, PING)]
        self.net = with_hosts(self.net, *specs)
        gate = router(self.net, outside=self.outside, subnets=(self.six,))
        ips = (*gate.interfaces[0].fixed_ips, FixedIp(subnet_id="six", ip_address="fd00:6::1", prefixlen=64))
        self.gate = replace(gate, interfaces=(replace(gate.interfaces[0], fixed_ips=ips),))
        for spec in (self.net, self.outside, *specs, self.gate):
            self.make(spec)
        self.a, self.b = (self.guest(spec) for spec in specs)
        self.where = self.host.driver.router_namespace(self.gate.id)

    def guest(self, spec: PortSpec) -> Guest:
        """The tap that was made is replaced by a veth, as if by hand: it is not what is tested."""
        self.host.driver.remove_port(spec.id)
        return self.host.guest(spec).configure("10.0.0.1")

    def make(self, spec: NetworkSpec | PortSpec | RouterSpec) -> None:
        kind = {NetworkSpec: "network", PortSpec: "port", RouterSpec: "router"}[type(spec)]
        order = {"network": 0, "port": 1, "router": 2}[kind]
        self.ledger.put(kind, spec.id, order, msgspec.to_builtins(spec))
        assert not self.apply({"kind": kind, "id": spec.id, "spec": msgspec.to_builtins(spec)}).get("failed")

    def apply(self, entry: dict[str, Any]) -> dict[str, Any]:
        self.done.append((entry["kind"], entry["id"]))
        return apply(Drivers(None, self.host.driver), entry, lambda _: "")

    def heals(self, looks: int = 3) -> list[str]:
        """Look so often that everything was looked at; the kinds that were ensured again."""
        self.done.clear()
        for _ in range(looks):
            self.healer.heal(self.apply)
        return [kind for kind, _ in self.done]

    def works(self) -> bool:
        return self.a.pings("10.0.0.4") and self.b.pings("172.24.4.1")

    def openflow(self, *arguments: str) -> str:
        where = f"unix:/run/nubila/ovs.{self.host.place.namespace}/br-int.mgmt"
        return self.host.run("ovs-ofctl", "-O", "OpenFlow14", arguments[0], where, *arguments[1:])

    def vsctl(self, *arguments: str) -> str:
        return self.host.run("ovs-vsctl", f"--db=unix:/run/nubila/ovs.{self.host.place.namespace}/db.sock", *arguments)


@pytest.fixture
def ward(tmp_path: Path) -> Iterator[Ward]:
    ward = Ward(tmp_path)
    yield ward
    ward.host.close()


@pytest.mark.req("C/L3A-15")
def test_what_is_taken_away_comes_back(ward: Ward) -> None:
    assert ward.works()
    assert ward.heals(6) == [], "a sound host is only looked at"
    driver, host = ward.host.driver, ward.host
    dhcp_dir, router_dir = host.place.root / "dhcp" / ward.net.id, host.place.root / "routers" / ward.gate.id

    pid = processes.alive("dnsmasq", dhcp_dir)
    assert pid is not None
    processes.kill("dnsmasq", dhcp_dir)
    assert ward.heals() == ["network"]
    assert processes.alive("dnsmasq", dhcp_dir) not in (None, pid)

    processes.kill(advertise.NAME, router_dir)
    assert ward.heals() == ["router"]
    assert advertise.running(router_dir)

    links.remove_namespace(ward.where)
    assert ward.heals() == ["router"]
    until(ward.works, "the router is back")

    links.remove_namespace(driver.dhcp_namespace(ward.net.id))
    assert set(ward.heals()) == {"network"}
    assert processes.alive("dnsmasq", dhcp_dir)

    host.inside(ward.where, "nft", "flush", "ruleset")
    assert ward.heals() == ["router"]
    until(ward.works, "translation is back")

    device = f"qr-{ward.gate.interfaces[0].port_id[:11]}"
    host.inside(ward.where, "ip", "addr", "flush", "dev", device, "scope", "global")
    assert ward.heals() == ["router"]
    until(ward.works, "the gateway has its address back")

    host.run("ip", "link", "del", device)
    assert set(ward.heals()) == {"router"}
    until(ward.works, "the gateway has its device back")

    host.run("nft", "flush", "ruleset")
    assert ward.heals() == []
    assert "nubila-nubila" in host.run("nft", "list", "tables"), "the host's own rules"
    assert ward.heals(4) == []


def test_switch_things_come_back_and_connections_stay(ward: Ward) -> None:
    assert ward.works()
    driver, host = ward.host.driver, ward.host
    with links.entered(ward.a.namespace):
        pinging = subprocess.Popen(
            ["ping", "-i", "0.05", "-c", "20", "-W", "1", "10.0.0.4"], stdout=subprocess.PIPE, text=True
        )
    ward.openflow("del-flows", "table=30,reg5=2")
    assert "network" in ward.heals()
    said = pinging.communicate(timeout=20)[0]
    assert " 0% packet loss" in said, "the other network's flows concern nobody here"
    count = driver.switch.count_flows()  # type: ignore[attr-defined]
    ward.openflow("del-flows")
    kinds = ward.heals()
    assert {"network", "port", "router"} <= set(kinds)
    until(ward.works, "all flows are back")
    assert driver.switch.count_flows() == count  # type: ignore[attr-defined]

    processes.kill("ovs-vswitchd", Path("/run/nubila") / f"ovs.{host.place.namespace}")
    ward.heals(1)
    until(ward.works, "the switch is started again with all its flows")

    ward.vsctl("del-br", "br-ex")
    assert "network" in ward.heals()
    until(ward.works, "the way out is back")

    ward.vsctl("del-br", "br-int")
    assert {"network", "port", "router"} <= set(ward.heals())
    until(ward.works, "the bridge is back with everything on it")
    assert ward.heals(6) == []


def test_what_does_not_stay_is_tried_less_often(tmp_path: Path) -> None:
    class Stubborn:
        def drift(self, known: dict[str, set[str]], spec: object) -> list[tuple[str, str]]:
            return [("port", id) for id in known.get("port", ())]

    ledger = Ledger(tmp_path / "ledger")
    ledger.put("port", "one", 1, {})
    healer = Healer(ledger, Stubborn(), pause_s=30.0)  # type: ignore[arg-type]
    tried: list[str] = []

    def do(entry: dict[str, Any]) -> dict[str, Any]:
        tried.append(entry["id"])
        return {"note": "no"}

    assert [healer.heal(do) for _ in range(3)] == [1, 0, 0]
    assert tried == ["one"]
