"""A cloud whose hosts switch differently: bindings, agents, and who is told who lives where."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest

from nubila.core.ports import Neighbour, NetworkSpec
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
