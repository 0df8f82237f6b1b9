"""A cloud whose hosts switch differently: bindings, agents, and who is told who lives where."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest
import sqlalchemy as sa
from computing import Nova, image

from nubila.core import hosts
from nubila.core.ports import Neighbour, NetworkSpec, PortSpec
from nubila.services.network import SERVICE, plug
from nubila.testing.cloud import TestCloud


class Mixed:
    """ "ovs" switches with Open vSwitch, "bridge" and "bridge2" with Linux bridges."""

    def __init__(self, state: Path) -> None:
        self.test = TestCloud(state, hosts=0)
        self.test.add_host("ovs")
        for name in ("bridge", "bridge2"):
            self.test.add_host(name, switch="linuxbridge", roles=["compute"])
        self.test.settle()
        net = self.call("POST", "/networks", {"network": {"name": "n"}})["network"]
        self.net: str = net["id"]
        self.call("POST", "/subnets", {"subnet": {"network_id": self.net, "ip_version": 4, "cidr": "10.0.0.0/24"}})
        self.project: str = net["project_id"]
        self.test.settle()

    def call(self, method: str, path: str, body: Any = None) -> Any:
        got = self.test.request(method, f"/network/v2.0{path}", body)
        assert got.status < 300, got.body
        return got.json if got.body else None

    def plug(self, host: str) -> dict[str, Any]:
        with self.test.cloud.store.write() as tx:
            made = plug.create_port(
                self.test.cloud, tx, project_id=self.project, network_id=self.net, fixed_ip=None,
                security_group_ids=None, device_id="guest", device_owner="compute:nova", host=host,
            )  # fmt: skip
        shown: dict[str, Any] = self.call("GET", f"/ports/{made['id']}")["port"]
        return shown

    def spec(self, host: str) -> NetworkSpec:
        with self.test.cloud.store.read() as r:
            found = SERVICE.host_items["network"].describe(self.test.cloud, r, self.net, host)
        assert isinstance(found, NetworkSpec)
        return found

    def told(self, host: str) -> NetworkSpec:
        """What the host's driver was told last."""
        agent = next(a for a in self.test.agents if a.place.host == host)
        kept = agent.place.root / "network" / "networks" / f"{self.net}.json"
        return msgspec.json.decode(kept.read_bytes(), type=NetworkSpec)


@pytest.fixture
def mixed(tmp_path: Path) -> Any:
    cloud = Mixed(tmp_path / "cloud")
    yield cloud
    cloud.test.close()


def neighbour(port: dict[str, Any], host: str) -> Neighbour:
    return Neighbour(mac=port["mac_address"], host=host, addresses=tuple(i["ip_address"] for i in port["fixed_ips"]))


@pytest.mark.req("C/AGT-07", "C/ML2-01")
def test_ports_and_agents_say_how_their_host_switches(mixed: Mixed) -> None:
    here, there = mixed.plug("bridge"), mixed.plug("ovs")
    assert (here["binding:vif_type"], there["binding:vif_type"]) == ("bridge", "ovs")
    assert here["binding:vif_details"]["bound_drivers"] == {"0": "linuxbridge"}
    agents = mixed.call("GET", "/agents")["agents"]
    switches = {(a["host"], a["binary"], a["agent_type"]) for a in agents if "switch" in a["agent_type"].lower() or
                "bridge" in a["agent_type"].lower()}  # fmt: skip
    assert switches == {
        ("ovs", "neutron-openvswitch-agent", "Open vSwitch agent"),
        ("bridge", "neutron-linuxbridge-agent", "Linux bridge agent"),
        ("bridge2", "neutron-linuxbridge-agent", "Linux bridge agent"),
    }
    config = next(a["configurations"] for a in agents if a["host"] == "bridge")
    assert (config["l2_population"], config["interface_mappings"]) == (True, {"physnet1": "br-ex"})


def test_bridges_are_told_who_lives_where_and_others_are_not(mixed: Mixed) -> None:
    here, there, far = mixed.plug("bridge"), mixed.plug("ovs"), mixed.plug("bridge2")
    dhcp = mixed.call("GET", f"/ports?network_id={mixed.net}&device_owner=network:dhcp")["ports"][0]
    told = mixed.spec("bridge")
    assert set(told.neighbours) == {neighbour(p, at) for p, at in
                                    ((there, "127.0.1.1"), (dhcp, "127.0.1.1"), (far, "127.0.1.3"))}  # fmt: skip
    assert {n.host for n in told.neighbours} == set(told.peers)
    assert here["mac_address"] in {n.mac for n in mixed.spec("bridge2").neighbours}
    assert mixed.spec("ovs").neighbours == ()


def test_a_port_that_comes_changes_or_goes_is_told_at_once(mixed: Mixed) -> None:
    mixed.plug("bridge")
    first = mixed.plug("ovs")
    mixed.test.settle()
    second = mixed.plug("ovs")  # nothing changes about the set of hosts
    mixed.test.settle()
    macs = {first["mac_address"], second["mac_address"]}
    assert macs <= {n.mac for n in mixed.told("bridge").neighbours}
    moved = {"port": {"fixed_ips": [{"ip_address": "10.0.0.77"}]}}
    mixed.call("PUT", f"/ports/{second['id']}", moved)
    mixed.test.settle()
    assert {n.mac: n.addresses for n in mixed.told("bridge").neighbours}[second["mac_address"]] == ("10.0.0.77",)
    mixed.call("DELETE", f"/ports/{second['id']}")
    mixed.test.settle()
    assert second["mac_address"] not in {n.mac for n in mixed.told("bridge").neighbours}


def test_a_host_that_changes_its_switch_rebinds_its_ports(mixed: Mixed) -> None:
    port = mixed.plug("bridge")
    agent = next(a for a in mixed.test.agents if a.place.host == "bridge")
    agent.place = msgspec.structs.replace(agent.place, switch="openvswitch")
    agent._greet()
    assert mixed.call("GET", f"/ports/{port['id']}")["port"]["binding:vif_type"] == "ovs"


# --- what Linux bridges cannot have ---------------------------------------------------------------------------------


def port_of(mixed: Mixed, host: str = "", **more: Any) -> dict[str, Any]:
    body = {"network_id": mixed.net, "device_owner": "compute:nova", **({"binding:host_id": host} if host else {})}
    made: dict[str, Any] = mixed.call("POST", "/ports", {"port": {**body, **more}})["port"]
    return made


def kept_from_bridges(mixed: Mixed, **wish: Any) -> str:
    """A network that Linux bridge hosts lack something for, served and placed on the other host; its id."""
    mixed.test.add_host("bridge0", switch="linuxbridge")  # a network host too, and the first by name
    mixed.test.settle()
    net = mixed.call("POST", "/networks", {"network": wish})["network"]["id"]
    mixed.call("POST", "/subnets", {"subnet": {"network_id": net, "ip_version": 4, "cidr": "10.1.0.0/24"}})
    subnet = mixed.call("GET", f"/subnets?network_id={net}")["subnets"][0]["id"]
    router = mixed.call("POST", "/routers", {"router": {}})["router"]["id"]
    mixed.call("PUT", f"/routers/{router}/add_router_interface", {"subnet_id": subnet})
    mixed.test.settle()
    for path in (f"/networks/{net}/dhcp-agents", f"/routers/{router}/l3-agents"):
        assert [a["host"] for a in mixed.call("GET", path)["agents"]] == ["ovs"]
    assert fit(mixed, [], [net]) == {"ovs"}
    return str(net)


def fit(mixed: Mixed, ports: list[str], networks: list[str]) -> set[str]:
    """The hosts on which Compute puts a server with these."""
    with mixed.test.cloud.store.read() as r:
        return plug.hosts_reaching(r, ports, networks, ["ovs", "bridge", "bridge2"])


def refused(mixed: Mixed, method: str, path: str, body: Any) -> tuple[int, str]:
    got = mixed.test.request(method, f"/network/v2.0{path}", body)
    return got.status, got.json["NeutronError"]["type"] if got.status >= 400 else ""


def test_a_trunk_is_not_bound_where_there_are_none_and_says_so(mixed: Mixed) -> None:
    on_bridge = port_of(mixed, "bridge")
    assert refused(mixed, "POST", "/trunks", {"trunk": {"port_id": on_bridge["id"]}}) == (409, "ParentPortInUse")
    parent, sub = port_of(mixed), port_of(mixed, device_owner="")
    subs = [{"port_id": sub["id"], "segmentation_type": "vlan", "segmentation_id": 7}]
    trunk = mixed.call("POST", "/trunks", {"trunk": {"port_id": parent["id"], "sub_ports": subs}})["trunk"]
    assert trunk["status"] == "DOWN"
    assert fit(mixed, [parent["id"]], []) == {"ovs"}
    path, sub_path = f"/ports/{parent['id']}", f"/ports/{sub['id']}"
    moved = mixed.call("PUT", path, {"port": {"binding:host_id": "bridge"}})["port"]
    assert moved["binding:vif_type"] == "binding_failed"
    assert mixed.call("GET", sub_path)["port"]["binding:vif_type"] == "binding_failed"
    assert mixed.call("GET", f"/trunks/{trunk['id']}")["trunk"]["status"] == "ERROR"
    moved = mixed.call("PUT", path, {"port": {"binding:host_id": "ovs"}})["port"]
    assert (moved["binding:vif_type"], moved["binding:host_id"]) == ("ovs", "ovs")
    mixed.test.settle()
    assert mixed.call("GET", f"/trunks/{trunk['id']}")["trunk"]["status"] == "ACTIVE"


@pytest.mark.parametrize("kind", ["gre", "geneve"])
def test_tunnels_that_bridges_lack_are_served_and_bound_elsewhere(mixed: Mixed, kind: str) -> None:
    net = kept_from_bridges(mixed, **{"provider:network_type": kind})
    assert fit(mixed, [], [mixed.net]) == {"ovs", "bridge", "bridge2"}
    assert port_of(mixed, "bridge", network_id=net)["binding:vif_type"] == "binding_failed"


def test_distributed_routers_keep_to_hosts_that_can_have_them(mixed: Mixed) -> None:
    mixed.test.add_host("bridge0", switch="linuxbridge")
    mixed.test.settle()
    subnet = mixed.call("GET", f"/subnets?network_id={mixed.net}")["subnets"][0]["id"]
    guest = port_of(mixed, "bridge")
    made = mixed.call("POST", "/routers", {"router": {"distributed": True}})["router"]["id"]
    path, body = f"/routers/{made}/add_router_interface", {"subnet_id": subnet}
    assert refused(mixed, "PUT", path, body) == (409, "RouterInterfaceAttachmentConflict")
    mixed.call("PUT", f"/ports/{guest['id']}", {"port": {"binding:host_id": ""}})
    mixed.call("PUT", path, body)
    public = mixed.call("GET", "/networks?router:external=true")["networks"][0]["id"]
    mixed.call("PUT", f"/routers/{made}", {"router": {"external_gateway_info": {"network_id": public}}})
    mixed.test.settle()
    assert {a["host"] for a in mixed.call("GET", f"/routers/{made}/l3-agents")["agents"]} == {"ovs"}
    assert fit(mixed, [guest["id"]], []) == {"ovs"}
    assert port_of(mixed, "bridge")["binding:vif_type"] == "binding_failed"
    assert port_of(mixed, "ovs")["binding:vif_type"] == "ovs"
    plain = mixed.call("POST", "/networks", {"network": {}})["network"]["id"]
    mixed.call("POST", "/subnets", {"subnet": {"network_id": plain, "ip_version": 4, "cidr": "10.7.0.0/24"}})
    port_of(mixed, "bridge", network_id=plain)
    off = mixed.call("POST", "/routers", {"router": {"admin_state_up": False, "distributed": False}})["router"]["id"]
    other = mixed.call("GET", f"/subnets?network_id={plain}")["subnets"][0]["id"]
    mixed.call("PUT", f"/routers/{off}/add_router_interface", {"subnet_id": other})
    change = {"router": {"distributed": True}}
    assert refused(mixed, "PUT", f"/routers/{off}", change) == (409, "RouterInterfaceAttachmentConflict")


def test_logs_are_for_ports_on_bridges_too(mixed: Mixed) -> None:
    port = port_of(mixed, "bridge")
    mixed.call("POST", "/log/logs", {"log": {"resource_type": "security_group", "target_id": port["id"]}})
    with mixed.test.cloud.store.read() as r:
        spec = SERVICE.host_items["port"].describe(mixed.test.cloud, r, port["id"], "bridge")
    assert isinstance(spec, PortSpec)
    assert [log.event for log in spec.logs] == ["ALL"]


def test_a_server_goes_where_its_trunk_can_be_or_says_why_nowhere(mixed: Mixed) -> None:
    nova, tiny = Nova(mixed.test), image(mixed.test)

    def boot() -> dict[str, Any]:
        parent = port_of(mixed, device_owner="")
        mixed.call("POST", "/trunks", {"trunk": {"port_id": parent["id"]}})
        id = nova.boot(tiny, networks=[{"port": parent["id"]}])["id"]
        mixed.test.settle()
        return nova.server(id)

    made = boot()
    assert (made["status"], made["OS-EXT-SRV-ATTR:host"]) == ("ACTIVE", "ovs")
    with mixed.test.cloud.store.write() as tx:
        tx.execute(sa.update(hosts.TABLE).where(hosts.TABLE.c.name == "ovs").values(roles=["network"]))
    refused_one = boot()
    assert refused_one["status"] == "ERROR"
    assert "kind of switch" in refused_one["fault"]["details"]
