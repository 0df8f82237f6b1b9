"""Provider attributes of networks: which segments and physical networks there are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from networking import Net

from nubila.testing.cloud import TestCloud


def test_physical_networks_are_those_of_the_settings_and_of_the_hosts(tmp_path: Path) -> None:
    cloud = TestCloud(tmp_path, hosts=0, physical_networks=("physnet1", "planned"))
    try:
        admin = Net(cloud, "admin")

        def make(kind: str, name: str) -> int:
            asked = {"provider:network_type": kind, "provider:physical_network": name}
            return int(admin.call("POST", "networks", {"network": asked}).status)

        assert [make("flat", "planned"), make("vlan", "planned")] == [201, 201], "before any host is there"
        assert [make("flat", "rack"), make("vlan", "rack"), make("flat", "*")] == [400, 400, 400]
        cloud.add_host("host1", bridges={"rack": "br-rack"})
        assert [make("flat", "rack"), make("vlan", "rack"), make("flat", "shelf")] == [201, 201, 400]
        spans = {"network_type": "vlan", "physical_network": "rack", "minimum": 7, "maximum": 9, "shared": True}
        admin.make("network_segment_range", "network_segment_ranges", **spans)
    finally:
        cloud.close()


def test_a_star_allows_flat_networks_any_name(tmp_path: Path) -> None:
    cloud = TestCloud(tmp_path, hosts=1, physical_networks=("*",))
    try:
        admin = Net(cloud, "admin")
        flat = {"provider:network_type": "flat", "provider:physical_network": "anything"}
        admin.make("network", **flat)
        tagged = {"network": {**flat, "provider:network_type": "vlan"}}
        assert admin.refused("POST", "networks", tagged) == (400, "InvalidInput"), "VLAN ids need a range"
        assert admin.public()["provider:physical_network"] == "physnet1"
    finally:
        cloud.close()


def test_provider_segments_are_exact(admin: Net, demo: Net) -> None:
    def make(**provider: Any) -> tuple[int, Any]:
        got = admin.call("POST", "networks", {"network": {f"provider:{k}": v for k, v in provider.items()}})
        return got.status, got.json.get("NeutronError", {}).get("type")

    assert make(network_type="vlan", physical_network="physnet1", segmentation_id=7) == (201, None)
    assert make(network_type="vlan", physical_network="physnet1", segmentation_id=7) == (409, "VlanIdInUse")
    assert make(network_type="vxlan", segmentation_id=77) == (201, None)
    assert make(network_type="vxlan", segmentation_id=77) == (409, "TunnelIdInUse")
    assert make(network_type="flat", physical_network="physnet1") == (409, "FlatNetworkInUse")
    assert make(network_type="vlan", physical_network="nowhere")[0] == 400
    assert make(network_type="vlan", physical_network="physnet1", segmentation_id=4095)[0] == 400
    assert make(network_type="vxlan", physical_network="physnet1")[0] == 400
    assert make(segmentation_id=3)[0] == 400
    assert make(network_type="token-ring")[0] == 400
    body = {"network": {"provider:network_type": "local"}}
    assert demo.refused("POST", "networks", body) == (403, "PolicyNotAuthorized")
