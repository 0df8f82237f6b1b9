"""Segments: networks made of several, subnets on one of them, and what that means for hosts and addresses."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from computing import Nova, image
from networking import Net

from nubila.services.network import SERVICE
from nubila.services.network.network_segments import peer_routes
from nubila.testing.cloud import TestCloud

Json = dict[str, Any]


@pytest.fixture
def racks(tmp_path: Path) -> Iterator[TestCloud]:
    """Host1 is in every rack, host2 and host3 in one each, host4 in none."""
    made = TestCloud(tmp_path / "cloud", physical_networks=("physnet1", "rack2", "rack3"))
    for name, bridges in (("host2", {"rack2": "br-2"}), ("host3", {"rack3": "br-3"}), ("host4", {})):
        made.add_host(name, bridges=bridges)
    made.settle()
    yield made
    made.settle()
    with made.cloud.store.read() as reader:
        assert [one for check in SERVICE.invariants for one in check(made.cloud, reader)] == []
    made.close()


@pytest.fixture
def admin(racks: TestCloud) -> Net:
    return Net(racks, "admin")


@pytest.fixture
def demo(racks: TestCloud) -> Net:
    return Net(racks)


def vlan(physnet: str, id: int) -> Json:
    return {"provider:network_type": "vlan", "provider:physical_network": physnet, "provider:segmentation_id": id}


def routed(admin: Net, *, dhcp: bool = True) -> tuple[Json, dict[str, Json], dict[str, Json]]:
    """A shared network with a segment and a subnet for rack2 and rack3."""
    parts = [vlan("rack2", 20), vlan("rack3", 30)]
    net = admin.make("network", name="routed", shared=True, segments=parts)
    found = admin.ok("GET", "segments", network_id=net["id"])["segments"]
    segments = {s["physical_network"]: s for s in found}
    subnets = {
        rack: admin.make("subnet", network_id=net["id"], ip_version=4, cidr=f"10.{n}.0.0/24", enable_dhcp=dhcp,
                         segment_id=segments[rack]["id"])
        for rack, n in (("rack2", 2), ("rack3", 3))
    }  # fmt: skip
    return net, segments, subnets


def told(cloud: TestCloud, kind: str, id: str) -> dict[str, Any]:
    """What each host was told of a network or port, by host."""
    cloud.settle()
    found = {a.place.host: getattr(a.drivers.network, kind)(id) for a in cloud.agents}
    return {host: spec for host, spec in found.items() if spec is not None}


@pytest.mark.req("C/PROV-15")
def test_segments_are_made_changed_and_deleted(admin: Net, demo: Net) -> None:
    net = demo.make("network")
    first = admin.ok("GET", "segments", network_id=net["id"])["segments"]
    assert [(s["network_type"], s["name"], s["revision_number"]) for s in first] == [("vxlan", None, 0)]
    one = admin.make("segment", network_id=net["id"], network_type="vlan", physical_network="rack2",
                     segmentation_id=7, name="rack two")  # fmt: skip
    assert (one["segmentation_id"], one["description"]) == (7, None)
    wish = {"network_id": net["id"], "network_type": "vlan", "physical_network": "rack2", "segmentation_id": 7}
    assert admin.refused("POST", "segments", {"segment": wish}) == (409, "VlanIdInUse")
    assert admin.refused("POST", "segments", {"segment": {**wish, "physical_network": "nowhere"}})[0] == 400
    assert admin.refused("POST", "segments", {"segment": {"network_id": net["id"]}})[0] == 400
    ghost = {**wish, "network_id": "8a1b9f6e-0000-4000-8000-000000000000", "segmentation_id": 8}
    assert admin.refused("POST", "segments", {"segment": ghost}) == (404, "NetworkNotFound")
    shown = admin.ok("GET", f"networks/{net['id']}")["network"]
    assert "provider:network_type" not in shown
    assert [s["provider:network_type"] for s in shown["segments"]] == ["vxlan", "vlan"]
    assert shown["mtu"] == 1450
    renamed = admin.ok("PUT", f"segments/{one['id']}", {"segment": {"name": "x", "description": "d"}})["segment"]
    assert (renamed["name"], renamed["description"], renamed["revision_number"]) == ("x", "d", 1)
    assert admin.refused("PUT", f"segments/{one['id']}", {"segment": {"network_type": "flat"}})[0] == 400
    assert [s["id"] for s in admin.ok("GET", "segments", physical_network="rack2")["segments"]] == [one["id"]]
    admin.ok("DELETE", f"segments/{first[0]['id']}")
    shown = admin.ok("GET", f"networks/{net['id']}")["network"]
    assert (shown["provider:network_type"], shown["provider:segmentation_id"]) == ("vlan", 7)
    admin.ok("DELETE", f"segments/{one['id']}")
    assert admin.refused("DELETE", f"segments/{one['id']}") == (404, "SegmentNotFound")
    assert admin.ok("GET", f"networks/{net['id']}")["network"]["provider:network_type"] is None
    again = admin.make("segment", **wish)  # its id is free again
    assert again["segmentation_id"] == 7
    demo.ok("DELETE", f"networks/{net['id']}")
    assert admin.ok("GET", "segments", network_id=net["id"])["segments"] == []


def test_segments_are_for_administrators(admin: Net, demo: Net) -> None:
    net = demo.make("network")
    mine = admin.ok("GET", "segments", network_id=net["id"])["segments"][0]
    assert demo.ok("GET", "segments")["segments"] == []
    assert demo.call("GET", f"segments/{mine['id']}").status == 404
    wish = {"segment": {"network_id": net["id"], "network_type": "vxlan"}}
    assert demo.refused("POST", "segments", wish) == (403, "PolicyNotAuthorized")
    many = {"network": {"segments": [vlan("rack2", 5)]}}
    assert demo.refused("POST", "networks", many) == (403, "PolicyNotAuthorized")
    subnet = {"subnet": {"network_id": net["id"], "ip_version": 4, "cidr": "10.0.0.0/24", "segment_id": mine["id"]}}
    assert demo.refused("POST", "subnets", subnet) == (403, "PolicyNotAuthorized")
    own = demo.make("subnet", network_id=net["id"], ip_version=4, cidr="10.0.0.0/24")
    assert "segment_id" not in own
    assert "segments" not in demo.ok("GET", f"networks/{net['id']}")["network"]


@pytest.mark.parametrize(
    ("more", "type"),
    [
        ({"provider:network_type": "vxlan"}, "SegmentsSetInConjunctionWithProviders"),
        ({"segments": [vlan("rack2", 5), vlan("rack2", 5)]}, "SegmentsContainDuplicateEntry"),
        ({"segments": "many"}, "HTTPBadRequest"),
        ({"segments": [{"provider:physical_network": "rack2"}]}, "HTTPBadRequest"),
        ({"segments": [{"provider:network_type": "vlan", "banana": 1}]}, "HTTPBadRequest"),
        ({"segments": [{"provider:network_type": 7}]}, "HTTPBadRequest"),
        ({"segments": [{**vlan("rack2", 5), "provider:segmentation_id": "five"}]}, "HTTPBadRequest"),
        ({"segments": [{"provider:network_type": "flat", "provider:physical_network": "x" * 65}]}, "HTTPBadRequest"),
        ({"segments": [vlan("rack2", 10**30)]}, "InvalidInput"),
        ({"segments": [vlan("rack2", 5000)]}, "InvalidInput"),
        ({"segments": [vlan("nowhere", 5)]}, "InvalidInput"),
    ],
)
def test_segments_of_a_new_network_are_checked(admin: Net, more: Json, type: str) -> None:
    wish = {"network": {"segments": [vlan("rack2", 5)], **more}}
    assert admin.refused("POST", "networks", wish) == (400, type)


def test_a_host_uses_the_first_segment_that_it_reaches(admin: Net, racks: TestCloud) -> None:
    parts = [vlan("rack2", 21), vlan("rack3", 31)]
    net = admin.make("network", segments=parts)
    assert (net["l2_adjacency"], net["segments"]) == (True, parts)
    admin.make("subnet", network_id=net["id"], ip_version=4, cidr="10.5.0.0/24", enable_dhcp=False)
    ports = {h: admin.make("port", network_id=net["id"], **{"binding:host_id": h}) for h in ("host2", "host3", "host4")}
    assert {h: p["binding:vif_type"] for h, p in ports.items()} == {
        "host2": "ovs", "host3": "ovs", "host4": "binding_failed",
    }  # fmt: skip
    wired = {h: s.segment for h, s in told(racks, "network", net["id"]).items()}
    assert {h: (s.physical_network, s.segmentation_id) for h, s in wired.items()} == {
        "host2": ("rack2", 21), "host3": ("rack3", 31),
    }  # fmt: skip
    assert admin.ok("GET", f"ports/{ports['host3']['id']}")["port"]["status"] == "ACTIVE"
    used = admin.ok("GET", "segments", network_id=net["id"], physical_network="rack3")["segments"][0]["id"]
    assert admin.refused("DELETE", f"segments/{used}") == (409, "SegmentInUse")
    tunnel = admin.make("segment", network_id=net["id"], network_type="vxlan")
    body = {"port": {"binding:host_id": "host4"}}
    admin.ok("PUT", f"ports/{ports['host4']['id']}", {"port": {"binding:host_id": ""}})
    assert admin.ok("PUT", f"ports/{ports['host4']['id']}", body)["port"]["binding:vif_type"] == "ovs"
    specs = told(racks, "network", net["id"])
    assert specs["host4"].segment.segmentation_id == tunnel["segmentation_id"]
    assert specs["host4"].peers == ()  # nobody else is on that segment
    assert admin.ok("GET", f"networks/{net['id']}")["network"]["mtu"] == 1450  # what fits everywhere


def test_a_port_gets_an_address_of_its_hosts_segment(admin: Net, demo: Net, racks: TestCloud) -> None:
    net, _, subnets = routed(admin)
    assert admin.ok("GET", f"networks/{net['id']}")["network"]["l2_adjacency"] is False
    there = admin.make("port", network_id=net["id"], **{"binding:host_id": "host3"})
    assert [ip["subnet_id"] for ip in there["fixed_ips"]] == [subnets["rack3"]["id"]]
    late = demo.make("port", network_id=net["id"])
    assert (late["fixed_ips"], late["ip_allocation"]) == ([], "deferred")
    none = demo.make("port", network_id=net["id"], fixed_ips=[])
    assert none["ip_allocation"] == "none"
    assert [p["id"] for p in demo.ok("GET", "ports", ip_allocation="deferred")["ports"]] == [late["id"]]
    path = f"ports/{late['id']}"
    bound = admin.ok("PUT", path, {"port": {"binding:host_id": "host2"}})["port"]
    assert [ip["subnet_id"] for ip in bound["fixed_ips"]] == [subnets["rack2"]["id"]]
    assert [ip.subnet_id for ip in told(racks, "port", late["id"])["host2"].fixed_ips] == [subnets["rack2"]["id"]]
    moved = {"port": {"binding:host_id": "host3"}}
    assert admin.refused("PUT", path, moved) == (409, "HostNotCompatibleWithFixedIps")
    moved["port"]["fixed_ips"] = [{"subnet_id": subnets["rack3"]["id"]}]  # type: ignore[assignment]
    assert [ip["subnet_id"] for ip in admin.ok("PUT", path, moved)["port"]["fixed_ips"]] == [subnets["rack3"]["id"]]
    nowhere = {"port": {"network_id": net["id"], "binding:host_id": "host4"}}
    assert admin.refused("POST", "ports", nowhere) == (409, "HostNotConnectedToAnySegment")
    both = [{"subnet_id": s["id"]} for s in subnets.values()]
    wish = {"port": {"network_id": net["id"], "fixed_ips": both}}
    assert demo.refused("POST", "ports", wish) == (400, "FixedIpsSubnetsNotOnSameSegment")
    early = demo.make("port", network_id=net["id"], fixed_ips=both[1:])
    assert (early["ip_allocation"], early["fixed_ips"][0]["subnet_id"]) == ("immediate", subnets["rack3"]["id"])
    body = {"port": {"binding:host_id": "host2"}}
    assert admin.refused("PUT", f"ports/{early['id']}", body) == (409, "HostNotCompatibleWithFixedIps")


def test_every_segment_has_dhcp_of_its_own(admin: Net, racks: TestCloud) -> None:
    net, _, subnets = routed(admin)
    racks.settle()
    ports = admin.ok("GET", "ports", network_id=net["id"], device_owner="network:dhcp")["ports"]
    served = {p["binding:host_id"]: [ip["subnet_id"] for ip in p["fixed_ips"]] for p in ports}
    assert served == {"host2": [subnets["rack2"]["id"]], "host3": [subnets["rack3"]["id"]]}
    assert {p["status"] for p in ports} == {"ACTIVE"}
    guest = admin.make("port", network_id=net["id"], **{"binding:host_id": "host3"})
    specs = told(racks, "network", net["id"])
    assert [s.id for s in specs["host3"].subnets] == [subnets["rack3"]["id"]]
    assert guest["id"] in {h.port_id for h in specs["host3"].dhcp.hosts}
    assert guest["id"] not in {h.port_id for h in specs["host2"].dhcp.hosts}


def test_subnets_on_segments_route_to_each_other(admin: Net) -> None:
    net, segments, subnets = routed(admin, dhcp=False)

    def routes(rack: str) -> list[tuple[str, str]]:
        shown = admin.ok("GET", f"subnets/{subnets[rack]['id']}")["subnet"]["host_routes"]
        return [(r["destination"], r["nexthop"]) for r in shown]

    assert routes("rack2") == [("10.3.0.0/24", "10.2.0.1")]
    assert routes("rack3") == [("10.2.0.0/24", "10.3.0.1")]
    admin.ok("PUT", f"subnets/{subnets['rack2']['id']}", {"subnet": {
        "gateway_ip": "10.2.0.254", "allocation_pools": [{"start": "10.2.0.2", "end": "10.2.0.99"}]}})  # fmt: skip
    assert routes("rack2") == [("10.3.0.0/24", "10.2.0.254")]
    third = admin.make("subnet", network_id=net["id"], ip_version=4, cidr="10.4.0.0/24", gateway_ip="10.4.0.9",
                       segment_id=segments["rack3"]["id"], enable_dhcp=False)  # fmt: skip
    assert third["host_routes"] == [{"destination": "10.2.0.0/24", "nexthop": "10.4.0.9"}]
    assert routes("rack2") == [("10.3.0.0/24", "10.2.0.254"), ("10.4.0.0/24", "10.2.0.254")]
    admin.ok("DELETE", f"subnets/{third['id']}")
    admin.ok("DELETE", f"subnets/{subnets['rack3']['id']}")
    assert routes("rack2") == []


def test_a_wider_route_of_the_user_is_enough() -> None:
    wide = {"destination": "10.0.0.0/8", "nexthop": "10.2.0.7"}
    own = {"ip_version": 4, "segment_id": "a", "gateway_ip": "10.2.0.1", "host_routes": [wide]}
    peers = [{"ip_version": 4, "segment_id": "b", "cidr": "10.3.0.0/24"},
             {"ip_version": 6, "segment_id": "b", "cidr": "2001:db8::/64"},
             {"ip_version": 4, "segment_id": "b", "cidr": "192.0.2.0/24"}]  # fmt: skip
    assert peer_routes(own, peers, ()) == [wide, {"destination": "192.0.2.0/24", "nexthop": "10.2.0.1"}]
    assert peer_routes({**own, "gateway_ip": None}, peers, ()) == [wide]


def test_subnets_are_all_on_segments_or_none_is(admin: Net) -> None:
    net, segments, subnets = routed(admin, dhcp=False)
    plain = {"network_id": net["id"], "ip_version": 4, "cidr": "10.9.0.0/24"}
    mixed = (400, "SubnetsNotAllAssociatedWithSegments")
    assert admin.refused("POST", "subnets", {"subnet": plain}) == mixed
    admin.ok("POST", "subnets", {"subnet": {**plain, "service_types": ["network:routed"]}})
    other = admin.make("network")
    wish = {**plain, "network_id": other["id"], "segment_id": segments["rack2"]["id"]}
    assert admin.refused("POST", "subnets", {"subnet": wish}) == (400, "NetworkIdsDontMatch")
    wish["segment_id"] = net["id"]
    assert admin.refused("POST", "subnets", {"subnet": wish}) == (404, "SegmentNotFound")
    assert admin.refused("DELETE", f"segments/{segments['rack2']['id']}") == (409, "SegmentInUse")
    alone = admin.make("subnet", **{**plain, "network_id": other["id"]})
    mine = admin.ok("GET", "segments", network_id=other["id"])["segments"][0]["id"]
    path = f"subnets/{alone['id']}"
    assert admin.ok("PUT", path, {"subnet": {"segment_id": mine}})["subnet"]["segment_id"] == mine
    off = {"subnet": {"segment_id": None}}
    assert admin.refused("PUT", path, off) == (400, "SubnetSegmentAssociationChangeNotAllowed")
    many = admin.make("network", segments=[vlan("rack2", 1), vlan("rack3", 1)])
    loose = admin.make("subnet", **{**plain, "network_id": many["id"]})
    first = admin.ok("GET", "segments", network_id=many["id"])["segments"][0]["id"]
    body = {"subnet": {"segment_id": first}}
    several = (400, "NoUpdateSubnetWhenMultipleSegmentsOnNetwork")
    assert admin.refused("PUT", f"subnets/{loose['id']}", body) == several
    assert subnets


def test_a_server_starts_where_its_networks_are(admin: Net, racks: TestCloud) -> None:
    net, _, subnets = routed(admin)
    port = admin.make("port", network_id=net["id"], fixed_ips=[{"subnet_id": subnets["rack3"]["id"]}])
    nova = Nova(racks)
    for asked in ({"uuid": net["id"]}, {"port": port["id"]}):
        made = nova.boot(image(racks), networks=[asked])
        racks.settle()
        shown = nova.server(made["id"])
        assert shown["status"] == "ACTIVE", shown
        assert shown["OS-EXT-SRV-ATTR:host"] in ({"host3"} if "port" in asked else {"host2", "host3"})
    nowhere = admin.make("network", segments=[vlan("physnet1", 9), vlan("rack2", 9)])
    only = nova.boot(image(racks), networks=[{"uuid": nowhere["id"]}], availability_zone="nova:host4")
    racks.settle()
    assert nova.server(only["id"])["status"] == "ERROR"
