"""Addresses, segments and default groups are given out once, on every database, whoever asks at the same time."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from nubila.core import quota
from nubila.core.faults import Fault
from nubila.services.network import groups, networks, plug, subnets
from nubila.services.network.kinds_port import Port
from nubila.services.network.tables import IP_ALLOCATION, SEGMENT
from nubila.testing.cloud import TestCloud

pytest_plugins = ["nubila.testing.fixtures"]
CLIENTS = 6


@pytest.fixture
def anywhere(tmp_path: Path, database_url: str) -> Iterator[TestCloud]:
    made = TestCloud(tmp_path / "cloud", database=database_url, vni_range=(1, 40))
    yield made
    made.close()


def at_once(jobs: list[Any]) -> list[Any]:
    """Results or Faults of jobs that run as concurrently as threads can."""

    def run(job: Any) -> Any:
        try:
            return job()
        except Fault as e:
            return e

    with ThreadPoolExecutor(CLIENTS) as pool:
        return list(pool.map(run, jobs))


def test_a_pool_is_emptied_exactly(anywhere: TestCloud) -> None:
    cloud = anywhere.cloud
    with cloud.store.write() as tx:
        net = networks.insert(cloud, tx, {"name": "n", "project_id": "p"})
        subnets.insert(cloud, tx, net, {"cidr": "10.0.0.0/26", "enable_dhcp": False})

    def job() -> Any:
        return cloud.store.transact(
            lambda tx: plug.create_port(
                cloud, tx, project_id="p", network_id=net["id"], fixed_ip=None, security_group_ids=None,
                device_id="d", device_owner="compute:nova", host=None,
            ),
            retries=20,
        )  # fmt: skip

    got = at_once([job] * 70)
    ports = [g for g in got if not isinstance(g, Fault)]
    refused = {g.type for g in got if isinstance(g, Fault)}
    ips = [p["fixed_ips"][0]["ip_address"] for p in ports]
    assert refused == {"IpAddressGenerationFailure"}
    assert sorted(set(ips)) == sorted(ips)
    assert len(ips) == 61  # 62 hosts less the gateway
    assert len({p["mac_address"] for p in ports}) == 61
    assert len({p["security_groups"][0] for p in ports}) == 1
    with cloud.store.read() as r:
        assert r.scalar(sa.select(sa.func.count()).select_from(IP_ALLOCATION)) == 61
        assert r.scalar(sa.select(sa.func.count()).select_from(Port.table)) == 61
        assert quota.usage(r, "p")["port"] == 61
        assert quota.usage(r, "p")["security_group"] == 1


def test_one_address_has_one_taker(anywhere: TestCloud) -> None:
    cloud = anywhere.cloud
    with cloud.store.write() as tx:
        net = networks.insert(cloud, tx, {"name": "n", "project_id": "p"})
        subnets.insert(cloud, tx, net, {"cidr": "fd00::/64", "ip_version": 6, "enable_dhcp": False})

    def job() -> Any:
        return cloud.store.transact(
            lambda tx: plug.create_port(
                cloud, tx, project_id="p", network_id=net["id"], fixed_ip="fd00::7", security_group_ids=[],
                device_id="d", device_owner="compute:nova", host=None,
            ),
            retries=20,
        )  # fmt: skip

    got = at_once([job] * 12)
    assert sorted(g.type if isinstance(g, Fault) else "made" for g in got) == ["IpAddressAlreadyAllocated"] * 11 + [
        "made"
    ]


def test_every_segment_is_used_once(anywhere: TestCloud) -> None:
    cloud = anywhere.cloud

    def job() -> Any:
        return cloud.store.transact(lambda tx: networks.insert(cloud, tx, {"name": "n", "project_id": "p"}), retries=20)

    got = at_once([job] * 45)
    made = [g for g in got if not isinstance(g, Fault)]
    assert len(made) == 40
    assert {g.status for g in got if isinstance(g, Fault)} == {503}
    with cloud.store.read() as r:
        ids = [i for (i,) in r.rows(sa.select(SEGMENT.c.segmentation_id).where(SEGMENT.c.network_type == "vxlan"))]
    assert sorted(ids) == list(range(1, 41))


def test_a_project_has_one_default_group(anywhere: TestCloud) -> None:
    cloud = anywhere.cloud

    def job() -> Any:
        return cloud.store.transact(lambda tx: groups.ensure_default(cloud, tx, "new"), retries=20)

    got = at_once([job] * 12)
    assert len(set(got)) == 1
    assert isinstance(got[0], str)
