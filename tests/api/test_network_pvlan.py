"""Private VLANs in the API: roles of ports, what is refused, and what hosts are told."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from networking import Net, Play

from nubila.core.ports import Restricted
from nubila.testing.cloud import TestCloud

Json = dict[str, Any]


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


def test_operators_and_owners_decide_who_sees_roles(cloud: TestCloud, demo: Net, net: Json) -> None:
    port = demo.make("port", network_id=net["id"])
    admin = Net(cloud, "admin")
    strange = admin.make("network", pvlan=True, shared=True)
    assert "pvlan" not in demo.ok("GET", f"networks/{strange['id']}")["network"], "another project's is not shown"
    assert {"pvlan" in n for n in demo.ok("GET", "networks")["networks"] if n["id"] == strange["id"]} == {False}
    assert {"pvlan" in n for n in demo.ok("GET", "networks")["networks"] if n["id"] == net["id"]} == {True}
    theirs = admin.make("port", network_id=net["id"], pvlan_type="isolated")
    seen = {p["id"]: p.get("pvlan_type") for p in demo.ok("GET", "ports", network_id=net["id"])["ports"]}
    assert seen[port["id"]] == "promiscuous"
    assert seen[theirs["id"]] is None, "seen as the network's owner, without its role"
    file = cloud.state / "policy.yaml"
    names = ("get_network:pvlan", "get_port:pvlan_type", "get_port:pvlan_community", "update_network:pvlan")
    file.write_text("".join(f'"{name}": "rule:admin_only"\n' for name in names))
    try:
        cloud.cloud.policy._next = 0.0  # as if the second between two looks had passed
        cloud.cloud.policy.reload_if_changed()
        assert "pvlan" not in demo.ok("GET", f"networks/{net['id']}")["network"]
        assert not {"pvlan_type", "pvlan_community"} & set(demo.ok("GET", f"ports/{port['id']}")["port"])
        assert admin.ok("GET", f"ports/{port['id']}")["port"]["pvlan_type"] == "promiscuous"
        asked = {"network": {"pvlan": False}}
        assert demo.refused("PUT", f"networks/{net['id']}", asked) == (403, "PolicyNotAuthorized")
    finally:
        file.unlink()
        cloud.cloud.policy._next = 0.0
        cloud.cloud.policy.reload_if_changed()
