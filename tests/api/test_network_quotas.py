"""Quotas of Networking: what is counted, and the limits of projects without their own."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import pytest
from networking import Net

from nubila.apps import wiring
from nubila.core.config import BadSetting, Settings
from nubila.testing.cloud import TestCloud


def test_quota_counts_what_is_there(demo: Net, admin: Net) -> None:
    project = demo.network()[0]["project_id"]
    assert admin.ok("PUT", f"quotas/{project}", {"quota": {"network": 1}})["quota"]["network"] == 1
    assert demo.refused("POST", "networks", {"network": {}}) == (409, "OverQuota")
    details = demo.ok("GET", f"quotas/{project}/details.json")["quota"]
    assert details["network"] == {"limit": 1, "used": 1, "reserved": 0}
    assert details["port"]["used"] == 1  # DHCP's
    assert demo.refused("PUT", f"quotas/{project}", {"quota": {"network": 5}}) == (403, "PolicyNotAuthorized")
    assert admin.refused("PUT", f"quotas/{project}", {"quota": {"moons": 5}})[0] == 400
    assert admin.refused("PUT", f"quotas/{project}", {"quota": {"network": -2}})[0] == 400
    assert demo.ok("GET", f"quotas/{project}/default")["quota"]["network"] == 100
    admin.ok("DELETE", f"quotas/{project}")
    assert admin.refused("DELETE", f"quotas/{project}") == (404, "TenantQuotaNotFound")
    assert demo.ok("GET", f"quotas/{project}")["quota"]["network"] == 100


def test_operators_choose_the_limits_of_projects_without_their_own(tmp_path: Path) -> None:
    with closing(TestCloud(tmp_path / "c", hosts=0, network_quotas=("router=12", "subnetpool=0", "trunk=3"))) as cloud:
        demo, admin = Net(cloud), Net(cloud, "admin")
        project = demo.network()[0]["project_id"]
        for path in (f"quotas/{project}", f"quotas/{project}/default"):
            found = demo.ok("GET", path)["quota"]
            assert {n: found[n] for n in ("router", "subnetpool", "trunk", "network")} == {
                "router": 12, "subnetpool": 0, "trunk": 3, "network": 100
            }  # fmt: skip
        used = demo.ok("GET", f"quotas/{project}/details.json")["quota"]["router"]["used"]
        demo.ok("POST", "routers", {"routers": [{}] * (12 - used)})
        assert demo.refused("POST", "routers", {"router": {}}) == (409, "OverQuota")
        pool = {"subnetpool": {"name": "p", "prefixes": ["10.9.0.0/16"]}}
        assert demo.refused("POST", "subnetpools", pool) == (409, "OverQuota")
        admin.ok("PUT", f"quotas/{project}", {"quota": {"router": 13}})
        demo.ok("POST", "routers", {"router": {}})


@pytest.mark.parametrize("one", ["router", "router=many", "router=-2", "router=1.5", "Router=1"])
def test_limits_of_the_wrong_form_are_refused(one: str) -> None:
    with pytest.raises(BadSetting, match="RESOURCE=NUMBER"):
        wiring.with_quotas(wiring.services(), Settings(network_quotas=("network=5", one)))


def test_limits_of_unknown_resources_are_refused_with_the_nearest() -> None:
    with pytest.raises(BadSetting, match="'routers' has a quota; there is router"):
        wiring.with_quotas(wiring.services(), Settings(network_quotas=("routers=30",)))
