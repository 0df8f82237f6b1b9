"""Private VLANs in the API: roles of ports, what is refused, and what hosts are told."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from test_network import Net
from test_network_hosting import Play

from nubila.core.ports import Restricted
from nubila.testing.cloud import TestCloud

Json = dict[str, Any]


@pytest.fixture
def demo(cloud: TestCloud) -> Net:
    return Net(cloud)


@pytest.fixture
def net(demo: Net) -> Json:
    return demo.make("network", pvlan=True)


def test_a_port_has_a_role(demo: Net, net: Json) -> None:
    assert net["pvlan"] is True
    port = demo.make("port", network_id=net["id"])
    assert (port["pvlan_type"], port["pvlan_community"]) == ("promiscuous", None)
    path = f"ports/{port['id']}"
    change = {"pvlan_type": "community", "pvlan_community": "red"}
    assert demo.ok("PUT", path, {"port": change})["port"].items() >= change.items()
    assert demo.ok("PUT", path, {"port": {"pvlan_type": "community"}})["port"]["pvlan_community"] == "red"
    alone = demo.ok("PUT", path, {"port": {"pvlan_type": "isolated"}})["port"]
    assert (alone["pvlan_type"], alone["pvlan_community"]) == ("isolated", None)
    assert [p["id"] for p in demo.ok("GET", "ports?pvlan_type=isolated")["ports"]] == [port["id"]]


@pytest.mark.parametrize(
    "role",
    [
        {"pvlan_type": "community"},
        {"pvlan_type": "community", "pvlan_community": ""},
        {"pvlan_type": "community", "pvlan_community": "1st"},
        {"pvlan_type": "community", "pvlan_community": "a b"},
        {"pvlan_type": "isolated", "pvlan_community": "red"},
        {"pvlan_community": "red"},
        {"pvlan_type": "strange"},
        {"port_security_enabled": False},
    ],
)
def test_a_role_that_cannot_be_is_refused(demo: Net, net: Json, role: Json) -> None:
    refused = demo.call("POST", "ports", {"port": {"network_id": net["id"], **role}})
    assert refused.status == 400, refused.body


def test_only_a_private_vlan_has_roles(demo: Net) -> None:
    plain = demo.make("network")
    assert plain["pvlan"] is False
    body = {"port": {"network_id": plain["id"], "pvlan_type": "isolated"}}
    assert demo.call("POST", "ports", body).status == 400
    port = demo.make("port", network_id=plain["id"])
    assert port["pvlan_type"] is None
    path = f"networks/{plain['id']}"
    demo.ok("PUT", path, {"network": {"pvlan": True}})
    assert demo.ok("GET", f"ports/{port['id']}")["port"]["pvlan_type"] == "promiscuous"
    demo.ok("PUT", f"ports/{port['id']}", {"port": {"pvlan_type": "isolated"}})
    demo.ok("PUT", path, {"network": {"pvlan": False}})
    assert demo.ok("GET", f"ports/{port['id']}")["port"]["pvlan_type"] is None


def test_a_private_vlan_needs_port_security(demo: Net, net: Json) -> None:
    for body in ({"port_security_enabled": False}, {"pvlan": True, "port_security_enabled": False}):
        assert demo.call("PUT", f"networks/{net['id']}", {"network": body}).status == 400
    plain = demo.make("network")
    demo.make("port", network_id=plain["id"], port_security_enabled=False, security_groups=[])
    assert demo.call("PUT", f"networks/{plain['id']}", {"network": {"pvlan": True}}).status == 400


def test_hosts_learn_who_is_kept_apart(tmp_path: Path) -> None:
    cloud = TestCloud(tmp_path / "cloud", hosts=2)
    play = Play(cloud)
    net, _ = play.network()
    play.put(f"networks/{net}", {"network": {"pvlan": True}})
    ports = [play.plug(net, host) for host in ("host1", "host2")]
    cloud.settle()
    play.put(f"ports/{ports[0]['id']}", {"port": {"pvlan_type": "isolated"}})
    told = Restricted(device=f"tap{ports[0]['id'][:11]}", macs=(ports[0]["mac_address"],))
    for host in ("host1", "host2"):
        assert ("network", net, host) in play.debts(), "every host of the network is asked to look again"
        assert play.spec("network", net, host).restricted == (told,)
    cloud.settle()
    play.delete(f"ports/{ports[0]['id']}", user="admin")
    assert ("network", net, "host2") in play.debts()
    assert play.spec("network", net, "host2").restricted == ()
    cloud.close()
