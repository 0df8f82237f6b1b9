"""What one address costs in a /24 and in a /8, taken at random and lowest first: the same, whatever the pool's size.

    .venv/bin/python bench/allocation.py [ADDRESSES] [DATABASE-URL]

Empty pools and pools that hold ADDRESSES already are measured in turns; printed are microseconds an address, the median
of the rounds. Rows are claimed as for a port, in transactions of one address.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from nubila.core import checks
from nubila.core.gates import ALWAYS
from nubila.services.network import allocate, networks, subnets
from nubila.services.network.kinds_port import Port
from nubila.services.network.tables import IP_ALLOCATION
from nubila.testing.cloud import TestCloud

ROUNDS, EACH = 9, 20
PREFIXES = (24, 16, 8)


def prepare(test: TestCloud, length: int, full: int) -> dict[str, Any]:
    """A subnet 10.0.0.0/LENGTH of a network of its own with ``full`` addresses in use, spread as random ones are."""
    cloud = test.cloud
    with cloud.store.write() as tx:
        net = networks.insert(cloud, tx, {"name": f"bench-{length}-{full}", "project_id": "bench"})
        subnet = subnets.insert(cloud, tx, net, {"cidr": f"10.0.0.0/{length}", "enable_dhcp": False})
    for at in range(0, full, 100):
        with cloud.store.write() as tx:
            port = holder(tx, net, subnet, at)
            for place in range(min(100, full - at)):
                allocate.take_free(tx, subnet, port, place)
    return {"net": net, "subnet": subnet, "length": length, "full": full}


def holder(tx: Any, net: dict[str, Any], subnet: dict[str, Any], n: int) -> str:
    """A bare port row to hang addresses on."""
    values = {"network_id": net["id"], "project_id": "bench", "mac_address": f"fa:16:3e:00:{n >> 8:02x}:{n & 255:02x}",
              "port_security_enabled": False}  # fmt: skip
    row = checks.defaults(Port, values, ALWAYS)
    tx.insert(Port.table, {c.name: row.get(c.name) for c in Port.table.columns})
    return str(row["id"])


def once(test: TestCloud, pool: dict[str, Any], port: str, *, lowest: bool) -> float:
    """Seconds for one address, the mean of EACH; they are given back."""
    began = time.perf_counter()
    for place in range(EACH):
        with test.cloud.store.write() as tx:
            assert allocate.take_free(tx, pool["subnet"], port, 1000 + place, lowest=lowest)
    spent = (time.perf_counter() - began) / EACH
    with test.cloud.store.write() as tx:
        tx.execute(sa.delete(IP_ALLOCATION).where(IP_ALLOCATION.c.place >= 1000))
    return spent


def main(full: int, database: str) -> None:
    with tempfile.TemporaryDirectory(prefix="nubila-bench-") as place:
        test = TestCloud(Path(place) / "cloud", hosts=0, database=database)
        try:
            measure(test, full)
        finally:
            test.close()


def measure(test: TestCloud, full: int) -> None:
    found: dict[tuple[int, int, bool], list[float]] = {}
    pools = [prepare(test, length, n) for n in (0, full) for length in PREFIXES]
    with test.cloud.store.write() as tx:
        ports = [holder(tx, pool["net"], pool["subnet"], 60000 + i) for i, pool in enumerate(pools)]
    for _ in range(ROUNDS):
        for pool, port in zip(pools, ports, strict=True):
            for lowest in (False, True):
                key = (pool["full"], pool["length"], lowest)
                found.setdefault(key, []).append(once(test, pool, port, lowest=lowest))
    print("in use   order   " + "".join(f"/{length:<10}" for length in PREFIXES) + "/8 to /24")
    for n in (0, full):
        for lowest in (False, True):
            us = [statistics.median(found[n, length, lowest]) * 1e6 for length in PREFIXES]
            numbers = "".join(f"{v:<11.0f}" for v in us)
            print(f"{n:<8} {'lowest' if lowest else 'random'}  {numbers}{us[-1] / us[0]:.2f}")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 200, sys.argv[2] if len(sys.argv) > 2 else "")
