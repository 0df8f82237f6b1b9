"""Trunks in the API: what may be in one, who follows whom, what is left when they go."""

from __future__ import annotations

from typing import Any

from networking import Net, Play

from nubila.core.ports import TrunkPlace
from nubila.services.network import trunks

Json = dict[str, Any]


def port(net: Net, **values: Any) -> Json:
    return net.make("port", network_id=net.make("network")["id"], **values)


def sub(port: Json, vlan: int) -> Json:
    return {"port_id": port["id"], "segmentation_type": "vlan", "segmentation_id": vlan}


def test_a_trunk_gets_and_loses_subports(demo: Net) -> None:
    parent, one, two = port(demo), port(demo), port(demo)
    trunk = demo.make("trunk", port_id=parent["id"], sub_ports=[sub(one, 5)])
    path = f"trunks/{trunk['id']}"
    assert (trunk["sub_ports"], trunk["status"]) == ([sub(one, 5)], "DOWN")
    assert demo.ok("GET", path)["trunk"] == trunk
    added = demo.ok("PUT", f"{path}/add_subports", {"sub_ports": [sub(two, 6)]})
    assert added["sub_ports"] == [sub(one, 5), sub(two, 6)]
    assert added["revision_number"] == trunk["revision_number"] + 1
    assert demo.ok("GET", f"{path}/get_subports") == {"sub_ports": [sub(one, 5), sub(two, 6)]}
    details = demo.ok("GET", f"ports/{parent['id']}")["port"]["trunk_details"]
    assert details == {
        "trunk_id": trunk["id"],
        "sub_ports": [{**sub(p, v), "mac_address": p["mac_address"]} for p, v in ((one, 5), (two, 6))],
    }
    shown = demo.ok("GET", f"ports/{one['id']}")["port"]
    assert (shown["device_owner"], "trunk_details" in shown) == ("trunk:subport", False)
    for p, why in ((parent, "PortInUseAsTrunkParent"), (one, "PortInUseAsSubPort")):
        assert demo.refused("DELETE", f"ports/{p['id']}") == (409, why)
    left = demo.ok("PUT", f"{path}/remove_subports", {"sub_ports": [{"port_id": one["id"]}]})
    assert left["sub_ports"] == [sub(two, 6)]
    assert demo.ok("GET", f"ports/{one['id']}")["port"]["device_owner"] == ""
    gone = demo.refused("PUT", f"{path}/remove_subports", {"sub_ports": [sub(one, 5)]})
    assert gone == (404, "SubPortNotFound")
    demo.ok("PUT", path, {"trunk": {"admin_state_up": False}})
    for method, where, body in (
        ("PUT", f"{path}/add_subports", {"sub_ports": [sub(one, 5)]}),
        ("PUT", f"{path}/remove_subports", {"sub_ports": [sub(two, 6)]}),
        ("DELETE", path, None),
    ):
        assert demo.refused(method, where, body) == (409, "TrunkDisabled")
    demo.ok("PUT", path, {"trunk": {"admin_state_up": True, "name": "t"}})
    demo.ok("DELETE", path)
    for p in (parent, one, two):
        demo.ok("DELETE", f"ports/{p['id']}")


def test_what_cannot_be_in_a_trunk_is_refused(demo: Net, admin: Net) -> None:
    parent, one, two = port(demo), port(demo), port(demo)
    trunk = demo.make("trunk", port_id=parent["id"], sub_ports=[sub(one, 5)])
    path = f"trunks/{trunk['id']}/add_subports"

    def refused(*subs: Any) -> tuple[int, str]:
        return demo.refused("PUT", path, {"sub_ports": list(subs)})

    assert refused(sub(two, 5)) == (409, "DuplicateSubPort")
    assert refused(sub(one, 6)) == (409, "TrunkPortInUse")
    assert refused(sub(parent, 6)) == (409, "ParentPortInUse")
    for wrong in (
        {"port_id": two["id"]}, {"port_id": two["id"], "segmentation_type": "vlan"}, {"segmentation_id": 5},
        {**sub(two, 6), "segmentation_type": "vxlan"}, sub(two, 0), sub(two, 4095), {**sub(two, 6), "more": 1}, "x",
        {**sub(two, 6), "segmentation_id": "six"}, {**sub(two, 6), "segmentation_id": "\u00b2"},
        {**sub(two, 6), "port_id": "\0"}, {"port_id": two["id"], "segmentation_type": "inherit"},
    ):  # fmt: skip
        assert refused(wrong)[0] == 400, wrong
    assert refused(sub(two, 6), sub(two, 7))[0] == 400
    assert refused(sub(two, 6), sub(port(demo), 6))[0] == 400
    assert demo.refused("PUT", path, {"sub_ports": {}})[0] == 400
    again = {"trunk": {"port_id": parent["id"]}}
    assert demo.refused("POST", "trunks", again) == (409, "ParentPortInUse")
    assert demo.refused("POST", "trunks", {"trunk": {"port_id": one["id"]}}) == (409, "TrunkPortInUse")
    used = port(demo, device_id="something")
    assert refused(sub(used, 6)) == (409, "PortInUse")
    small = demo.make("port", network_id=demo.make("network", mtu=1280)["id"])
    late = {"trunk": {"port_id": small["id"], "sub_ports": [sub(two, 9)]}}
    assert demo.refused("POST", "trunks", late) == (409, "SubPortMtuGreaterThanTrunkPortMtu")
    assert demo.ok("GET", "trunks", port_id=small["id"])["trunks"] == []
    vlan = admin.make("network", **{"provider:network_type": "vlan", "provider:physical_network": "physnet1"})
    wired = admin.make("port", network_id=vlan["id"])
    carrier = admin.make("trunk", port_id=admin.make("port", network_id=vlan["id"])["id"],
                         sub_ports=[{"port_id": wired["id"], "segmentation_type": "inherit"}])  # fmt: skip
    assert carrier["sub_ports"][0]["segmentation_id"] == vlan["provider:segmentation_id"]


def test_another_project_sees_no_trunk_and_lends_no_port(demo: Net, admin: Net) -> None:
    mine, theirs = port(demo), port(admin)
    trunk = admin.make("trunk", port_id=theirs["id"])
    assert demo.ok("GET", "trunks")["trunks"] == []
    path = f"trunks/{trunk['id']}"
    for method, where, body in (
        ("GET", path, None), ("DELETE", path, None), ("PUT", path, {"trunk": {"name": "x"}}),
        ("GET", f"{path}/get_subports", None), ("PUT", f"{path}/add_subports", {"sub_ports": [sub(mine, 5)]}),
        ("PUT", f"{path}/remove_subports", {"sub_ports": [sub(mine, 5)]}), ("GET", f"{path}/tags", None),
    ):  # fmt: skip
        assert demo.refused(method, where, body)[0] == 404, (method, where)
    other = port(admin)
    assert demo.refused("POST", "trunks", {"trunk": {"port_id": other["id"]}}) == (404, "PortNotFound")
    taken = {"trunk": {"port_id": mine["id"], "sub_ports": [sub(other, 5)]}}
    assert demo.refused("POST", "trunks", taken) == (404, "PortNotFound")
    # A port of somebody else on a network of one's own can be seen, but not taken.
    net = demo.make("network")
    guest = admin.make("port", network_id=net["id"])
    assert demo.call("GET", f"ports/{guest['id']}").status == 200
    taken = {"trunk": {"port_id": mine["id"], "sub_ports": [sub(guest, 5)]}}
    assert demo.refused("POST", "trunks", taken) == (404, "PortNotFound")
    owner = mine["project_id"]
    admin.ok("PUT", f"quotas/{owner}", {"quota": {"trunk": 1}})
    demo.make("trunk", port_id=mine["id"])
    assert demo.refused("POST", "trunks", {"trunk": {"port_id": port(demo)["id"]}}) == (409, "OverQuota")


def test_subports_go_where_their_parent_goes(play: Play) -> None:
    nets = [play.network(f"10.{i}.0.0/24")[0] for i in range(3)]
    parent = play.plug(nets[0], "host1")
    one, two = (play.post("ports", "port", network_id=net)["id"] for net in nets[1:])
    vlans = {one: 11, two: 12}
    subs = [{"port_id": p, "segmentation_type": "vlan", "segmentation_id": v} for p, v in vlans.items()]
    trunk = play.post("trunks", "trunk", port_id=parent["id"], sub_ports=subs[:1])
    assert trunk["status"] == "BUILD"
    path = f"trunks/{trunk['id']}"
    play.put(f"{path}/add_subports", {"sub_ports": subs[1:]})
    assert {("port", one, "host1"), ("port", two, "host1"), ("port", parent["id"], "host1")} <= play.debts()
    assert play.spec("port", parent["id"], "host1").trunk == TrunkPlace(trunk_id=trunk["id"])
    for p, vlan in vlans.items():
        assert play.spec("port", p, "host1").trunk == TrunkPlace(trunk_id=trunk["id"], vlan=vlan)
    play.test.settle()

    def status() -> str:
        found: str = play.test.request("GET", f"/network/v2.0/{path}").json["trunk"]["status"]
        return found

    assert {play.status(p) for p in (one, two, parent["id"])} == {"ACTIVE"}
    assert status() == "ACTIVE"
    play.put(f"ports/{parent['id']}", {"port": {"binding:host_id": "host2"}}, "admin")
    assert status() == "BUILD"
    play.test.settle()
    assert (play.spec("port", one, "host1"), status()) == (None, "ACTIVE")
    play.put(f"ports/{one}", {"port": {"binding:host_id": "host3"}}, "admin")
    assert play.spec("port", one, "host2") is not None
    play.put(f"{path}/remove_subports", {"sub_ports": subs[:1]})
    assert play.spec("port", one, "host2") is None
    with play.cloud.store.read() as r:
        assert trunks.wrong(play.cloud, r) == []
    play.delete(path)
    assert play.spec("port", two, "host2") is None
    assert play.spec("port", parent["id"], "host2").trunk is None


def test_a_server_that_goes_takes_its_trunk_with_it(play: Play) -> None:
    from nubila.services.network import plug

    nets = [play.network(f"10.{i}.0.0/24")[0] for i in range(2)]
    parent = play.plug(nets[0], "host1")
    one = play.post("ports", "port", network_id=nets[1])["id"]
    wish = [{"port_id": one, "segmentation_type": "vlan", "segmentation_id": 5}]
    trunk = play.post("trunks", "trunk", port_id=parent["id"], sub_ports=wish)
    with play.cloud.store.write() as tx:
        plug.delete_port(play.cloud, tx, parent["id"])
    assert play.test.request("GET", f"/network/v2.0/trunks/{trunk['id']}").status == 404
    got = play.test.request("GET", f"/network/v2.0/ports/{one}").json["port"]
    assert (got["binding:host_id"], got["device_owner"]) == ("", "")
    usage = play.test.request("GET", f"/network/v2.0/quotas/{play.project}/details").json["quota"]
    assert usage["trunk"]["used"] == 0
