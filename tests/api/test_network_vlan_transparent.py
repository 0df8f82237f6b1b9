"""VLAN transparency and QinQ in the API: which networks can be that, where their ports can be, what hosts are told."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from networking import Net, Play
from test_network_switches import Mixed, kept_from_bridges, port_of

from nubila.testing.cloud import TestCloud

Json = dict[str, Any]
PHYSICAL = {"provider:network_type": "vlan", "provider:physical_network": "physnet1"}


@pytest.fixture
def mixed(tmp_path: Path) -> Any:
    made = Mixed(tmp_path / "cloud")
    yield made
    made.test.close()


def test_a_network_is_transparent_from_its_creation_and_for_good(demo: Net) -> None:
    plain, made = demo.make("network"), demo.make("network", vlan_transparent="true")
    assert (plain["vlan_transparent"], plain["qinq"]) == (False, False)
    assert (made["vlan_transparent"], made["qinq"]) == (True, False)
    assert made["mtu"] == plain["mtu"], "guests leave room for their tags themselves"
    shown = demo.ok("GET", f"networks/{made['id']}")["network"]
    assert shown["vlan_transparent"] is True
    assert [n["id"] for n in demo.ok("GET", "networks", vlan_transparent=True)["networks"]] == [made["id"]]
    assert plain["id"] in {n["id"] for n in demo.ok("GET", "networks", vlan_transparent=False)["networks"]}
    for value in (True, False):
        got = demo.refused("PUT", f"networks/{made['id']}", {"network": {"vlan_transparent": value}})
        assert got == (400, "HTTPBadRequest")
        assert demo.refused("PUT", f"networks/{made['id']}", {"network": {"qinq": value}}) == (400, "HTTPBadRequest")
    aliases = {e["alias"] for e in demo.ok("GET", "extensions")["extensions"]}
    assert {"vlan-transparent", "qinq"} <= aliases


def test_both_need_segments_that_can_carry_tags(admin: Net) -> None:
    for kind in ("vxlan", "gre", "geneve", "local"):
        assert admin.make("network", vlan_transparent=True, **{"provider:network_type": kind})["vlan_transparent"]
        refused = admin.call("POST", "networks", {"network": {"qinq": True, "provider:network_type": kind}})
        assert (refused.status, refused.json["NeutronError"]["type"]) == (400, "VlanQinqDriverError")
        assert "vlan" in refused.json["NeutronError"]["message"]
    assert admin.make("network", vlan_transparent=True, **PHYSICAL)["vlan_transparent"]
    assert admin.make("network", qinq=True, vlan_transparent=False, **PHYSICAL)["qinq"]
    flat = {"provider:network_type": "flat", "provider:physical_network": "physnet1"}
    for name, kind in (("vlan_transparent", "VlanTransparencyDriverError"), ("qinq", "VlanQinqDriverError")):
        body = {"network": {name: True, "segments": [PHYSICAL, flat]}}
        assert admin.refused("POST", "networks", body) == (400, kind)
        assert admin.refused("POST", "networks", {"network": {name: True, **flat}}) == (400, kind)
    both = {"network": {"vlan_transparent": True, "qinq": True, **PHYSICAL}}
    assert admin.refused("POST", "networks", both) == (400, "BadRequest")


@pytest.mark.parametrize("name", ["vlan_transparent", "qinq"])
@pytest.mark.parametrize("value", ["abc", 3, [], None])
def test_what_is_no_boolean_is_refused(admin: Net, name: str, value: Any) -> None:
    refused = admin.call("POST", "networks", {"network": {name: value, **PHYSICAL}})
    assert refused.status == 400, refused.body
    assert name in refused.json["NeutronError"]["message"]


def test_a_network_stays_what_it_is_with_further_segments(admin: Net) -> None:
    net = admin.make("network", qinq=True, **PHYSICAL)
    segment = {"network_id": net["id"], "network_type": "vxlan"}
    assert admin.refused("POST", "segments", {"segment": segment}) == (400, "VlanQinqDriverError")
    more = {"network_id": net["id"], "network_type": "vlan", "physical_network": "physnet1"}
    assert admin.ok("POST", "segments", {"segment": more})["segment"]["network_type"] == "vlan"


def test_hosts_are_told_what_a_network_carries(cloud: TestCloud) -> None:
    play = Play(cloud)
    for more, told in (
        ({}, (False, 0x8100)),
        ({"vlan_transparent": True}, (True, 0x8100)),
        ({"qinq": True, **PHYSICAL}, (True, 0x88A8)),
    ):
        net = play.post("networks", "network", user="admin", shared=True, **more)["id"]
        play.post("subnets", "subnet", user="admin", network_id=net, ip_version=4, cidr="10.9.0.0/24")
        host = cloud.agents[0].place.host
        play.plug(net, host)
        spec = play.spec("network", net, host)
        assert (spec.guest_tags, spec.vlan_ethertype) == told


def test_linux_bridges_have_no_ports_of_such_networks(mixed: Mixed) -> None:
    net = kept_from_bridges(mixed, vlan_transparent=True)
    assert port_of(mixed, "bridge", network_id=net)["binding:vif_type"] == "binding_failed"
    assert port_of(mixed, "ovs", network_id=net)["binding:vif_type"] == "ovs"


def test_a_cloud_of_linux_bridges_says_that_it_cannot(tmp_path: Path) -> None:
    cloud = TestCloud(tmp_path / "cloud", hosts=0)
    try:
        cloud.add_host("bridge", switch="linuxbridge")
        refused = cloud.request("POST", "/network/v2.0/networks", {"network": {"vlan_transparent": True}})
        error = refused.json["NeutronError"]
        assert (refused.status, error["type"]) == (400, "VlanTransparencyDriverError")
        assert "Open vSwitch" in error["message"]
        assert cloud.request("POST", "/network/v2.0/networks", {"network": {}}).status == 201
    finally:
        cloud.close()
