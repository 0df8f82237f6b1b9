"""What a port costs must not grow with its network: counted in steps of SQLite's machine, not in time."""

from __future__ import annotations

from typing import Any

import pytest

from nubila.testing.cloud import TestCloud

FEW, MANY = 20, 400


def _steps(cloud: TestCloud, body: dict[str, Any]) -> int:
    """The steps of the transaction that makes a port."""
    writer = cloud.cloud.store._connections.writer()
    taken = 0

    def count() -> int:
        nonlocal taken
        taken += 1
        return 0

    writer.set_progress_handler(count, 1)
    try:
        assert cloud.request("POST", "/network/v2.0/ports", body).status == 201
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
