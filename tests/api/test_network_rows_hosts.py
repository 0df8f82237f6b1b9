"""Rows of the requirements about hosts and agents of Networking: who serves what, where segments come from."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from networking import Net

from nubila.testing.cloud import TestCloud

Json = dict[str, Any]


@pytest.fixture
def cloud(tmp_path: Path) -> Iterator[TestCloud]:
    made = TestCloud(tmp_path, hosts=3, vlan_range=(100, 101), physical_networks=("physnet1", "external"))
    yield made
    made.close()


@pytest.fixture
def admin(cloud: TestCloud) -> Net:
    quota = {"quota": dict.fromkeys(("network", "subnet", "port", "router", "floatingip"), -1)}
    made = Net(cloud, "admin")
    for name in ("admin", "demo"):
        project = cloud.request("GET", "/v3/projects", query={"name": name}).json["projects"][0]["id"]
        made.ok("PUT", f"quotas/{project}", quota)
    return made


def agent(admin: Net, binary: str, host: str) -> Json:
    (found,) = admin.ok("GET", "agents", binary=f"neutron-{binary}-agent", host=host)["agents"]
    shown: Json = admin.ok("GET", f"agents/{found['id']}")["agent"]
    assert shown == found
    return shown


@pytest.mark.req("C/AGT-06")
def test_agents_say_how_much_they_serve(demo: Net, admin: Net) -> None:
    net, subnet = demo.network()
    demo.make("subnet", network_id=net["id"], ip_version=4, cidr="10.1.0.0/24")
    demo.cloud.settle()
    (serving,) = admin.ok("GET", f"networks/{net['id']}/dhcp-agents")["agents"]
    first = agent(admin, "dhcp", serving["host"])
    assert first["topic"] == "dhcp_agent"
    named = "admin_state_up agent_type alive binary created_at description heartbeat_timestamp host id started_at"
    assert set(named.split()) <= first.keys()
    counts = first["configurations"]
    assert (counts["networks"], counts["subnets"], counts["ports"]) == (1, 2, 1), "one port of its own"
    demo.make("port", network_id=net["id"])
    assert agent(admin, "dhcp", serving["host"])["configurations"]["ports"] == 2
    router = demo.make("router", external_gateway_info={"network_id": demo.public()["id"]})
    demo.ok("PUT", f"routers/{router['id']}/add_router_interface", {"subnet_id": subnet["id"]})
    demo.make("floatingip", floating_network_id=demo.public()["id"])
    demo.cloud.settle()
    (carrying,) = admin.ok("GET", f"routers/{router['id']}/l3-agents")["agents"]
    counts = agent(admin, "l3", carrying["host"])["configurations"]
    assert [counts[n] for n in ("routers", "interfaces", "ex_gw_ports", "floating_ips")] == [1, 1, 1, 0]
    port = demo.make("port", network_id=net["id"])
    demo.make("floatingip", floating_network_id=demo.public()["id"], port_id=port["id"])
    assert agent(admin, "l3", carrying["host"])["configurations"]["floating_ips"] == 1
    admin.ok("PUT", f"ports/{port['id']}", {"port": {"binding:host_id": "host2"}})
    assert agent(admin, "openvswitch", "host2")["configurations"]["devices"] >= 1
    demo.ok("DELETE", f"ports/{port['id']}")
    assert agent(admin, "l3", carrying["host"])["configurations"]["floating_ips"] == 0


@pytest.mark.req("C/AGT-13", "C/L3A-11")
def test_networks_and_routers_are_spread_over_agents_that_are_on(demo: Net, admin: Net) -> None:
    off = agent(admin, "dhcp", "host3")
    admin.ok("PUT", f"agents/{off['id']}", {"agent": {"admin_state_up": False}})
    made = [demo.network()[0]["id"] for _ in range(20)]
    demo.cloud.settle()
    used = Counter(a["host"] for id in made for a in admin.ok("GET", f"networks/{id}/dhcp-agents")["agents"])
    assert used == {"host1": 10, "host2": 10}
    inside = [demo.make("router")["id"] for _ in range(6)]  # without a gateway: served by one agent each, once
    for id in inside:
        subnet = demo.network()[1]["id"]
        demo.ok("PUT", f"routers/{id}/add_router_interface", {"subnet_id": subnet})
    demo.cloud.settle()
    hosts = [[a["host"] for a in admin.ok("GET", f"routers/{id}/l3-agents")["agents"]] for id in inside]
    assert [len(one) for one in hosts] == [1] * 6
    assert {one[0] for one in hosts} == {"host1", "host2", "host3"}


@pytest.mark.req("C/L3HA-02")
def test_every_host_forwards_for_some_of_many_ha_routers(demo: Net, admin: Net) -> None:
    routers = [admin.make("router", ha=True)["id"] for _ in range(20)]
    demo.cloud.settle()
    active: Counter[str] = Counter()
    for id in routers:
        states = {a["host"]: a["ha_state"] for a in admin.ok("GET", f"routers/{id}/l3-agents")["agents"]}
        assert sorted(states.values()) == ["active", "standby", "standby"]
        active[next(host for host, state in states.items() if state == "active")] += 1
    assert set(active) == {"host1", "host2", "host3"}
    assert min(active.values()) >= 3, active


@pytest.mark.req("C/PROV-09", "C/PROV-16", "C/PROV-01", "C/PROV-07")
def test_vlans_belong_to_their_physical_network_and_operators_may_take_any(demo: Net, admin: Net) -> None:
    def made(**asked: Any) -> int:
        return admin.call("POST", "networks", {"network": {f"provider:{k}": v for k, v in asked.items()}}).status

    for physnet in ("physnet1", "external"):
        assert made(network_type="vlan", physical_network=physnet, segmentation_id=3000) == 201, "outside the range"
        assert made(network_type="vlan", physical_network=physnet, segmentation_id=3000) == 409
    assert made(network_type="flat", physical_network="external") == 201
    nets = [demo.make("network")["id"] for _ in range(5)]
    kinds = {admin.ok("GET", f"networks/{id}")["network"]["provider:network_type"] for id in nets}
    assert kinds == {"vxlan"}, "projects' networks never land on a physical network"
    chosen = admin.make("network", **{"provider:network_type": "vlan", "provider:physical_network": "external"})
    assert chosen["provider:segmentation_id"] in (100, 101), "what is chosen for him comes from the range"


@pytest.mark.req("C/AGT-03")
def test_when_an_agent_was_heard_is_told_by_the_servers_clock(cloud: TestCloud, admin: Net) -> None:
    """Hosts report no time of their own: only the clock of the server, here moved by ten minutes, matters."""
    shown = agent(admin, "dhcp", "host1")["heartbeat_timestamp"]
    with pytest.MonkeyPatch.context() as patch:
        now = time.time() + 600
        patch.setattr(time, "time", lambda: now)
        assert agent(admin, "dhcp", "host1")["alive"] is False
        cloud.agents[0]._greet()
        later = agent(admin, "dhcp", "host1")
        assert later["alive"] is True
    passed = datetime.fromisoformat(later["heartbeat_timestamp"]) - datetime.fromisoformat(shown)
    assert 590 < passed.total_seconds() < 1200


def test_a_pair_that_says_what_the_port_may_do_anyway_changes_nothing(demo: Net) -> None:
    """As today's Networking has it; the document's release refused it (C/AAP-03)."""
    net, _ = demo.network()
    port = demo.make("port", network_id=net["id"])
    own = {"mac_address": port["mac_address"], "ip_address": port["fixed_ips"][0]["ip_address"]}
    changed = demo.ok("PUT", f"ports/{port['id']}", {"port": {"allowed_address_pairs": [own]}})["port"]
    assert changed["allowed_address_pairs"] == [own]


@pytest.mark.req("C/MTR-09")
def test_extensions_of_service_plugins_are_listed(demo: Net) -> None:
    aliases = {e["alias"] for e in demo.ok("GET", "extensions")["extensions"]}
    assert {"metering", "router", "qos", "trunk"} <= aliases


@pytest.mark.req("C/ML2-07", "C/PROV-15")
def test_networks_outside_a_range_that_was_narrowed_stay_whole(cloud: TestCloud, admin: Net) -> None:
    made = admin.make("network", **{"provider:network_type": "vxlan", "provider:segmentation_id": 5000})
    wide = cloud.cloud.settings
    cloud.cloud.settings = replace(wide, vni_range=(1, 2))
    try:
        near = [admin.make("network")["provider:segmentation_id"] for _ in range(2)]
        assert sorted(near) == [1, 2]
        assert admin.refused("POST", "networks", {"network": {}}) == (503, "NoNetworkAvailable")
        (second,) = [n["id"] for n in admin.ok("GET", "networks", **{"provider:segmentation_id": 2})["networks"]]
        admin.ok("DELETE", f"networks/{second}")
        assert admin.make("network")["provider:segmentation_id"] == 2, "what was given back is taken again"
        assert admin.ok("GET", f"networks/{made['id']}")["network"]["provider:segmentation_id"] == 5000
        changed = {"network": {"name": "changed"}}
        assert admin.ok("PUT", f"networks/{made['id']}", changed)["network"]["name"] == "changed"
    finally:
        cloud.cloud.settings = wide
    again = {"network": {"provider:network_type": "vxlan", "provider:segmentation_id": 5000}}
    assert admin.refused("POST", "networks", again) == (409, "TunnelIdInUse")
    admin.ok("DELETE", f"networks/{made['id']}")
    assert admin.ok("POST", "networks", again)["network"]["provider:segmentation_id"] == 5000


@pytest.mark.req("C/NET-01")
def test_ports_of_a_network_that_is_down_are_silent(cloud: TestCloud, demo: Net, admin: Net) -> None:
    """What a silent port means on the wire: tests/host/test_network_packets.py."""
    net, _ = demo.network()
    port = demo.make("port", network_id=net["id"], device_owner="compute:nova")
    admin.ok("PUT", f"ports/{port['id']}", {"port": {"binding:host_id": "host1"}})
    driver = cloud.agents[0].drivers.network
    for up in (True, False, True):
        demo.ok("PUT", f"networks/{net['id']}", {"network": {"admin_state_up": up}})
        cloud.settle()
        assert driver.port(port["id"]).admin_state_up is up  # type: ignore[attr-defined]
