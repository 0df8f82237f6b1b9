"""What a port or network costs must not grow with those there are: in steps of SQLite's machine, not in time."""

from __future__ import annotations

from typing import Any

import pytest
import sqlalchemy as sa

from nubila.services.network import segment_ranges
from nubila.services.network.tables import SEGMENT
from nubila.testing.cloud import TestCloud

FEW, MANY = 20, 400


def _steps(cloud: TestCloud, body: dict[str, Any], items: str = "ports") -> int:
    """The steps of the transaction that makes a port, or something else."""
    writer = cloud.cloud.store._connections.writer()
    taken = 0

    def count() -> int:
        nonlocal taken
        taken += 1
        return 0

    writer.set_progress_handler(count, 1)
    try:
        assert cloud.request("POST", f"/network/v2.0/{items}", body).status == 201
    finally:
        writer.set_progress_handler(None, 1)
    return taken


@pytest.mark.parametrize("host", ["", "host1"])
def test_a_port_costs_the_same_on_a_large_network(cloud: TestCloud, host: str) -> None:
    made = cloud.request("POST", "/network/v2.0/networks", {"network": {}}).json["network"]
    subnet = {"network_id": made["id"], "cidr": "10.0.0.0/8", "ip_version": 4}
    assert cloud.request("POST", "/network/v2.0/subnets", {"subnet": subnet}).status == 201
    quota = {"quota": {"port": -1}}
    assert cloud.request("PUT", f"/network/v2.0/quotas/{made['project_id']}", quota).status == 200
    port = {"network_id": made["id"], "binding:host_id": host}

    def grow(n: int) -> int:
        have = len(cloud.request("GET", "/network/v2.0/ports", query={"network_id": made["id"]}).json["ports"])
        body = {"ports": [port] * (n - have)}
        assert cloud.request("POST", "/network/v2.0/ports", body).status == 201
        cloud.settle()
        return min(_steps(cloud, {"port": port}) for _ in range(3))

    few, many = grow(FEW), grow(MANY)
    counted = 3.5 * (MANY - FEW)  # whether a network is large is counted, up to asks.LARGE addresses
    assert many - few < counted + 200, f"{few} steps with {FEW} ports, {many} with {MANY}"


def test_a_network_costs_the_same_beside_many(cloud: TestCloud) -> None:
    """Also when all the ids that are given out first are in use: none of them is looked at one by one."""
    made = cloud.request("POST", "/network/v2.0/networks", {"network": {}}).json["network"]

    def cost() -> int:
        return max(_steps(cloud, {"network": {}}, "networks") for _ in range(3))

    alone = cost()
    row = {"network_type": "vxlan", "physical_network": "", "network_id": made["id"]}
    with cloud.cloud.store.write() as tx:
        for id in range(1, segment_ranges.FIRST + 1):
            if tx.one(sa.select(SEGMENT.c.network_id).where(SEGMENT.c.segmentation_id == id)) is None:
                tx.insert(SEGMENT, {**row, "segmentation_id": id})
    full = cost()
    counted = 4 * segment_ranges.FIRST
    assert full < alone + counted, f"{alone} steps alone, {full} beside {segment_ranges.FIRST} networks"
