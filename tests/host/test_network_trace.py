"""`nubila net trace` and `nubila net topology` on real switches, tables and namespaces of two hosts."""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec
import pytest

from nubila.agent.apply import Drivers
from nubila.apps import net_topology, net_trace
from nubila.core.ports import HostPlace
from nubila.drivers import links, processes
from nubila.drivers.network import RealNetwork
from nubila.drivers.simulated_hypervisor import SimulatedHypervisor
from nubila.services.hosts import queries
from nubila.services.network import plug
from nubila.testing.cloud import TestCloud

pytestmark = pytest.mark.host
Json = dict[str, Any]


class Stage:
    """A cloud whose hosts have simulated guests on real networks, each in a namespace of its own."""

    def __init__(self, root: Path) -> None:
        self.drivers: dict[str, RealNetwork] = {}
        self.cloud = TestCloud(root / "cloud", hosts=2, make=self._drivers)

    def build(self) -> None:
        one, two = (self.drivers[name].place for name in ("host1", "host2"))
        with links.opened(one.namespace) as net:
            net.add_veth("underlay", two.namespace, "fa:16:3e:00:00:bb")
        for place in (one, two):
            with links.opened(place.namespace) as net:
                device = net.must("underlay")
                net.change(device, up=True, mtu=1600)
                net.set_addresses(device.index, [f"{place.tunnel_ip}/24"])
        self.inner = self.make("network", name="inner")
        self.subnet = self.make("subnet", network_id=self.inner["id"], ip_version=4, cidr="10.0.0.0/24")
        self.public = self.ok("GET", "networks?router:external=true")["networks"][0]
        gateway = {"network_id": self.public["id"]}
        self.router = self.make("router", name="gate", external_gateway_info=gateway)
        self.ok("PUT", f"routers/{self.router['id']}/add_router_interface", {"subnet_id": self.subnet["id"]})
        rule = {
            "direction": "ingress",
            "ethertype": "IPv4",
            "protocol": "tcp",
            "port_range_min": 80,
            "port_range_max": 80,
        }
        self.web = self.make("security_group", name="web")
        self.make("security_group_rule", security_group_id=self.web["id"], **rule)
        self.a = self.plug(self.inner, "host1")
        self.b = self.plug(self.inner, "host2", [self.web["id"]])
        self.cloud.settle()

    def _drivers(self, place: HostPlace) -> Drivers:
        namespace = f"nbh-{uuid.uuid4().hex[:8]}"
        links.ensure_namespace(namespace, "nubila test host")
        tunnel = f"198.18.7.{len(self.drivers) + 1}"
        real = msgspec.structs.replace(place, namespace=namespace, tunnel_ip=tunnel)
        self.drivers[place.host] = RealNetwork(real)
        return Drivers(SimulatedHypervisor(place), self.drivers[place.host])

    def ok(self, method: str, path: str, body: Any = None, user: str = "demo") -> Any:
        got = self.cloud.request(method, f"/network/v2.0/{path}", body, token=self.cloud.token(user))
        assert got.status < 300, got.body
        return got.json if got.body else None

    def make(self, item: str, **values: Any) -> Json:
        found: Json = self.ok("POST", f"{item.replace('_', '-')}s", {item: values})[item]
        return found

    def plug(self, net: Json, host: str, groups: list[str] | None = None, **more: Any) -> Json:
        with self.cloud.cloud.store.write() as tx:
            made: Json = plug.create_port(
                self.cloud.cloud, tx, project_id=net["project_id"], network_id=net["id"], fixed_ip=more.get("fixed_ip"),
                security_group_ids=groups, device_id=str(uuid.uuid4()), device_owner="compute:nova", host=host,
            )  # fmt: skip
        return made

    def ask(self, host: str, question: Mapping[str, Any]) -> Mapping[str, Any]:
        id = self.cloud.cloud.store.transact(lambda tx: queries.ask(tx, host, question))
        self.cloud.settle()
        answer = queries.look(self.cloud.cloud, id)
        assert answer is not None
        return answer

    def trace(self, source: Json | str, destination: str, **more: Any) -> net_trace.Report:
        name = source if isinstance(source, str) else source["id"]
        return net_trace.trace(self.cloud.cloud, self.ask, name, destination, **more)

    def close(self) -> None:
        for driver in self.drivers.values():
            driver.destroy()
            links.remove_namespace(driver.place.namespace)
        self.cloud.close()


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    stage = Stage(tmp_path_factory.mktemp("trace"))
    try:
        stage.build()
        yield stage
    finally:
        stage.close()


def ip(port: Json) -> str:
    return str(port["fixed_ips"][0]["ip_address"])


def said(report: net_trace.Report) -> str:
    return "\n".join(report.lines())


def test_allowed_through_a_tunnel_and_refused_by_the_security_group(stage: Stage) -> None:
    allowed = stage.trace(stage.a, ip(stage.b), protocol="tcp", number=80)
    assert allowed.stop == "", said(allowed)
    assert "on host2" in allowed.arrived
    assert next(where for host, where, _ in allowed.steps if host == "host2") == "tunnel"
    assert "rules for receiving" in said(allowed)
    assert "table " not in "\n".join(allowed.lines(brief=True))
    refused = stage.trace(stage.a, stage.b["id"], protocol="tcp", number=22)
    assert refused.stop == "no security group rule of the receiving port lets it in", said(refused)
    assert refused.steps[-1][0] == "host2"
    assert said(refused).endswith(f"STOPS: {refused.stop}")
    stage.ok("PUT", f"ports/{stage.b['id']}", {"port": {"admin_state_up": False}})
    stage.cloud.settle()
    down = stage.trace(stage.a, ip(stage.b), protocol="tcp", number=80)
    assert down.stop != "", said(down)
    assert stage.trace(stage.b, ip(stage.a)).stop == f"port {stage.b['id']} is administratively down"
    stage.ok("PUT", f"ports/{stage.b['id']}", {"port": {"admin_state_up": True}})
    stage.cloud.settle()


def test_out_into_the_world_and_in_by_a_floating_address(stage: Stage) -> None:
    out = stage.trace(stage.a, "203.0.113.9")
    own = stage.ok("GET", f"routers/{stage.router['id']}")["router"]["external_gateway_info"]["external_fixed_ips"][0]
    words = said(out)
    assert f"source {ip(stage.a)} becomes {own['ip_address']}" in words, words
    assert "is the gateway 172.24." in words or "via 172.24." in words
    floating = stage.make("floatingip", floating_network_id=stage.public["id"], port_id=stage.b["id"])
    unused = stage.make("floatingip", floating_network_id=stage.public["id"])
    stage.cloud.settle()
    address = floating["floating_ip_address"]
    inside = stage.trace("outside", address, protocol="tcp", number=80)
    assert inside.stop == "", said(inside)
    assert f"destination {address} becomes {ip(stage.b)}" in said(inside)
    assert f"{ip(stage.b)} is server" in inside.arrived
    assert "lets it in" in stage.trace("outside", address, protocol="tcp", number=22).stop
    nowhere = stage.trace("outside", unused["floating_ip_address"])
    assert nowhere.stop == f"floating IP {unused['floating_ip_address']} leads to no port"
    round_ = stage.trace(stage.a, address, protocol="tcp", number=80)
    assert round_.stop == "", said(round_)


def test_no_route_and_a_wrong_gateway(stage: Stage) -> None:
    closed = stage.make("network", name="closed")
    stage.make("subnet", network_id=closed["id"], ip_version=4, cidr="10.7.0.0/24", gateway_ip=None)
    lonely = stage.make("network", name="lonely")
    stage.make("subnet", network_id=lonely["id"], ip_version=4, cidr="10.8.0.0/24", gateway_ip="10.8.0.77")
    other = stage.make("network", name="other")
    far = stage.make("subnet", network_id=other["id"], ip_version=4, cidr="10.9.0.0/24")
    router = stage.make("router", name="inside only")
    stage.ok("PUT", f"routers/{router['id']}/add_router_interface", {"subnet_id": far["id"]})
    ports = [stage.plug(net, "host1") for net in (closed, lonely, other)]
    stage.cloud.settle()
    assert "has no gateway and no host route" in stage.trace(ports[0], "192.0.2.1").stop
    wrong = stage.trace(ports[1], "192.0.2.1")
    assert "wrong gateway: nobody on network" in wrong.stop
    assert "10.8.0.77" in wrong.stop
    nowhere = stage.trace(ports[2], "192.0.2.1")
    assert "no route to 192.0.2.1" in nowhere.stop, said(nowhere)
    assert "qrouter-" in nowhere.stop
    assert "nobody on network" in stage.trace(ports[0], "10.7.0.99").stop
    spoof = stage.trace(stage.a, ip(ports[2]))
    assert spoof.stop != ""
    for id in (closed["id"], lonely["id"], other["id"]):
        assert id


def test_dhcp_and_metadata(stage: Stage) -> None:
    for port in (stage.a, stage.b):
        found = stage.trace(port, "dhcp")
        assert found.stop == "", said(found)
        assert f"it gives {ip(port)}" in said(found)
    host = next(h for h, d in stage.drivers.items() if d.dhcp.runs(stage.inner["id"]))
    processes.kill("dnsmasq", stage.drivers[host].dhcp.run_dir(stage.inner["id"]))
    assert stage.trace(stage.a, "dhcp").stop == "dnsmasq does not run"
    stage.cloud.sweep()
    assert stage.trace(stage.a, "dhcp").stop == ""
    metadata = stage.trace(stage.a, "169.254.169.254", protocol="tcp", number=80)
    assert "the metadata service of this host answers" in said(metadata), said(metadata)


def test_what_cannot_be_traced_is_said(stage: Stage) -> None:
    with pytest.raises(net_trace.NotFound, match="no single port"):
        stage.trace("nobody", "10.0.0.1")
    with pytest.raises(net_trace.NotFound, match="external network"):
        stage.trace("outside", "10.0.0.1")
    loose = stage.make("port", network_id=stage.inner["id"])
    assert "is on no host" in stage.trace(loose, ip(stage.a)).stop


def test_the_topology_is_drawn(stage: Stage) -> None:
    lines = net_topology.tree(stage.cloud.cloud)
    text = "\n".join(lines)
    assert f"network inner ({stage.inner['id'][:8]}) [vxlan" in text
    assert "subnet " in text
    assert "10.0.0.0/24, gateway 10.0.0.1, DHCP" in text
    assert f"server {stage.a['device_id']} {ip(stage.a)}" in text
    assert "router gate" in text
    assert "leads to public" in text
    assert lines[0].startswith("network public"), "external networks first"
    assert "network public" in "\n".join(net_topology.tree(stage.cloud.cloud, "demo")), "its router's gateway is there"
    assert stage.a["device_id"] not in "\n".join(net_topology.tree(stage.cloud.cloud, "admin"))
    graph = "\n".join(net_topology.dot(stage.cloud.cloud))
    assert graph.startswith("graph topology {")
    assert f'"{stage.router["id"]}" -- "{stage.inner["id"]}"' in graph
    with pytest.raises(net_topology.NoProject):
        net_topology.tree(stage.cloud.cloud, "nobody")
