"""Segment ranges: networks really get their ids from them."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from networking import Net

from nubila.services.network.segment_ranges import minus
from nubila.testing.cloud import TestCloud

pytest_plugins = ["nubila.testing.fixtures"]
Json = dict[str, Any]
SPAN = st.tuples(st.integers(1, 60), st.integers(0, 20)).map(lambda s: (s[0], s[0] + s[1]))


@given(st.lists(SPAN, max_size=4), st.lists(SPAN, max_size=4))
def test_minus_is_the_difference_of_the_sets(spans: list[tuple[int, int]], holes: list[tuple[int, int]]) -> None:
    def ids(of: list[tuple[int, int]]) -> set[int]:
        return {id for lo, hi in of for id in range(lo, hi + 1)}

    assert ids(minus(spans, holes)) == ids(spans) - ids(holes)


@pytest.fixture
def small(tmp_path: Path) -> Iterator[TestCloud]:
    made = TestCloud(tmp_path / "cloud", vni_range=(1, 12), vlan_range=(100, 105))
    yield made
    made.close()


@pytest.mark.req("C/ML2-04")
def test_networks_without_a_type_get_the_first_that_has_ids(tmp_path: Path, database_url: str) -> None:
    made = TestCloud(
        tmp_path / "cloud", database=database_url, tenant_network_types=("vlan", "gre", "vxlan"), vlan_range=(100, 101),
        physical_networks=("physnet1", "physnet2"), vni_range=(1, 3),
    )  # fmt: skip
    try:
        demo, admin = Net(made), Net(made, "admin")
        free = {
            (r["network_type"], r["physical_network"] or None): len(r["available"])
            for r in admin.ok("GET", "network_segment_ranges")["network_segment_ranges"]
        }
        order = [("vlan", "physnet1"), ("vlan", "physnet2"), ("gre", None), ("vxlan", None)]
        wanted = [way for way in order for _ in range(free[way])]

        def kind(id: str) -> tuple[str, str | None]:
            found = admin.ok("GET", f"networks/{id}")["network"]
            return found["provider:network_type"], found["provider:physical_network"]

        with ThreadPoolExecutor(4) as several:
            ids = list(several.map(lambda _: demo.make("network")["id"], wanted))
        assert sorted(map(kind, ids)) == sorted(wanted, key=str)
        assert demo.refused("POST", "networks", {"network": {}}) == (503, "NoNetworkAvailable")
        last = next(id for id in ids if kind(id) == order[1])
        assert admin.ok("GET", f"networks/{last}")["network"]["mtu"] == 1500
        demo.ok("DELETE", f"networks/{last}")
        assert kind(demo.make("network")["id"]) == order[1]
    finally:
        made.close()


@pytest.mark.req("C/PROV-15")
def test_a_projects_own_range_is_its_own(small: TestCloud) -> None:
    demo, admin = Net(small), Net(small, "admin")
    project = demo.make("network")["project_id"]
    mine = admin.make("network_segment_range", "network_segment_ranges", name="r", shared=False, project_id=project,
                      network_type="vxlan", minimum=20, maximum=21)  # fmt: skip
    assert (mine["available"], mine["used"], mine["default"]) == ([20, 21], {}, False)

    def vni(who: Net) -> int:
        id = who.make("network")["id"]
        return int(admin.ok("GET", f"networks/{id}")["network"]["provider:segmentation_id"])

    assert {vni(demo), vni(demo)} == {20, 21}
    assert 1 <= vni(demo) <= 12  # used up: what belongs to everybody
    assert all(1 <= vni(admin) <= 12 for _ in range(3))
    path = f"network_segment_ranges/{mine['id']}"
    shown = admin.ok("GET", path)["network_segment_range"]
    assert (shown["used"], shown["available"]) == ({"20": project, "21": project}, [])
    assert admin.refused("DELETE", path) == (409, "NetworkSegmentRangeReferencedByProject")
    less = {"network_segment_range": {"minimum": 21}}
    assert admin.refused("PUT", path, less) == (409, "NetworkSegmentRangeReferencedByProject")
    more = admin.ok("PUT", path, {"network_segment_range": {"maximum": 30}})["network_segment_range"]
    assert more["available"] == list(range(22, 31))


def test_what_one_project_has_for_itself_nobody_else_gets(small: TestCloud) -> None:
    demo, admin = Net(small), Net(small, "admin")
    project = demo.ok("GET", "quotas/project")["project"]["project_id"]
    admin.make("network_segment_range", "network-segment-ranges", shared=False, project_id=project,
               network_type="vxlan", minimum=3, maximum=4)  # fmt: skip
    ids = [admin.make("network")["provider:segmentation_id"] for _ in range(10)]
    assert sorted(ids) == [1, 2, *range(5, 13)]
    assert admin.refused("POST", "networks", {"network": {}}) == (503, "NoNetworkAvailable")
    assert demo.make("network")["status"] == "ACTIVE"


def test_shared_ranges_add_to_the_settings(small: TestCloud) -> None:
    admin = Net(small, "admin")
    for _ in range(12):
        admin.make("network")
    full = {"network": {}}
    assert admin.refused("POST", "networks", full) == (503, "NoNetworkAvailable")
    admin.make("network_segment_range", "network_segment_ranges", network_type="vxlan", minimum=500, maximum=500)
    id = admin.make("network")["id"]
    assert admin.ok("GET", f"networks/{id}")["network"]["provider:segmentation_id"] == 500
    assert admin.refused("POST", "networks", full) == (503, "NoNetworkAvailable")


def test_ranges_are_checked_and_default_ones_are_read_only(small: TestCloud) -> None:
    admin, demo = Net(small, "admin"), Net(small)
    defaults = admin.ok("GET", "network_segment_ranges", default=True)["network_segment_ranges"]
    assert {(r["network_type"], r["physical_network"], r["minimum"], r["maximum"]) for r in defaults} == {
        ("vlan", "physnet1", 100, 105), ("vxlan", "", 1, 12), ("gre", "", 1, 12), ("geneve", "", 1, 12),
    }  # fmt: skip
    path = f"network_segment_ranges/{defaults[0]['id']}"
    assert admin.refused("DELETE", path) == (400, "NetworkSegmentRangeDefaultReadOnly")
    change = {"network_segment_range": {"maximum": 20}}
    assert admin.refused("PUT", path, change) == (400, "NetworkSegmentRangeDefaultReadOnly")
    assert demo.ok("GET", "network_segment_ranges")["network_segment_ranges"] == []
    assert demo.call("GET", path).status == 404

    def refused(**values: Any) -> tuple[int, str]:
        wish = {"network_type": "vxlan", "minimum": 40, "maximum": 50, **values}
        return admin.refused("POST", "network_segment_ranges", {"network_segment_range": wish})

    admin.make("network_segment_range", "network_segment_ranges", network_type="vxlan", minimum=45, maximum=46)
    assert refused() == (409, "NetworkSegmentRangeOverlaps")
    assert refused(network_type="flat") == (400, "HTTPBadRequest")
    assert refused(minimum=9, maximum=8) == (400, "InvalidInput")
    assert refused(minimum=0)[0] == 400
    assert refused(maximum=2**24) == (400, "InvalidInput")
    assert refused(network_type="vlan", maximum=4095, physical_network="physnet1") == (400, "InvalidInput")
    assert refused(network_type="vlan", physical_network="nowhere") == (400, "InvalidInput")
    body = {"network_segment_range": {"network_type": "vxlan", "minimum": 40, "maximum": 41}}
    assert demo.refused("POST", "network_segment_ranges", body) == (403, "PolicyNotAuthorized")
