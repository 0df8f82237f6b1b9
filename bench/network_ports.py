"""How long one host needs for its ports: wiring one more, and a full resync of many. A real switch, real taps.

    .venv/bin/python bench/network_ports.py [PORTS] [NETWORKS] [openvswitch|linuxbridge]

Needs root; everything happens in a network namespace of its own and is taken away again. Prints one JSON object:
``wire_ms`` (p50, p95 and the last of wiring a port when so many are there), ``resync`` (every network, group and port
ensured again as a restarted agent does, nothing differs), ``resync_one`` (one of them differs), each with what was
written to the switch meanwhile; ``look_ms`` (the healer's look). Then the verdict. The ``cpu`` figures are what we and
the programs we start use, which is what a busy machine tells truly. A thousand ports take about two minutes.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import shutil
import statistics
import sys
import tempfile
import time
import uuid
from pathlib import Path
from typing import Any

import msgspec

from nubila.core.ports import (
    FixedIp,
    HostPlace,
    NetworkSpec,
    PortSpec,
    RuleSpec,
    SecurityGroupSpec,
    Segment,
    SubnetSpec,
    TryAgain,
)
from nubila.drivers import links, processes
from nubila.drivers.network import RealNetwork
from nubila.drivers.ovs_daemons import Daemons

SECONDS = 10


def network(number: int) -> NetworkSpec:
    """A VXLAN network without DHCP."""
    return NetworkSpec(
        id=str(uuid.uuid4()), project_id="p", segment=Segment(network_type="vxlan", segmentation_id=1000 + number),
        mtu=1450, subnets=(SubnetSpec(id=f"s{number}", cidr=f"10.{number}.0.0/16"),), peers=("127.0.0.2",),
    )  # fmt: skip


def port(net: NetworkSpec, number: int, group: str) -> PortSpec:
    """A guest's port."""
    id = str(uuid.uuid4())
    mac = "fa:16:3e:" + ":".join(f"{byte:02x}" for byte in number.to_bytes(3, "big"))
    ip = FixedIp(
        subnet_id=net.subnets[0].id, prefixlen=16,
        ip_address=f"{net.subnets[0].cidr.rpartition('.0.0')[0]}.{number // 250 + 1}.{number % 250 + 1}",
    )  # fmt: skip
    return PortSpec(
        id=id, network_id=net.id, device=f"tap{id[:11]}", mac=mac, mtu=1450, fixed_ips=(ip,), groups=(group,)
    )


def cpu_s() -> float:
    """CPU seconds of this process and of the programs it has run; the daemons are not among them."""
    both = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in both)


def measure(ports: int, networks: int, switch: str) -> dict[str, Any]:
    """Build, measure, take away."""
    namespace = f"nbb-{uuid.uuid4().hex[:8]}"
    links.ensure_namespace(namespace, "nubila bench")
    root = Path(tempfile.mkdtemp(prefix="nubila-bench-"))
    place = HostPlace(cloud="bench", host=namespace, root=root, namespace=namespace, switch=switch)
    driver = RealNetwork(place)
    driver.start()
    try:
        rules = tuple(RuleSpec(direction=d, ethertype=e) for d in ("egress", "ingress") for e in ("IPv4", "IPv6"))
        group = SecurityGroupSpec(id=str(uuid.uuid4()), rules=rules)
        nets = [network(i) for i in range(networks)]
        for net in nets:
            driver.ensure_network(net)
        driver.ensure_security_group(group)
        specs = [port(nets[i % networks], i, group.id) for i in range(ports)]
        took, spent = [], cpu_s()
        for spec in specs:
            start = time.perf_counter()
            driver.ensure_port(spec)
            took.append((time.perf_counter() - start) * 1000)

        spent = (cpu_s() - spent) / ports * 1000

        def resync(changed: PortSpec | None = None) -> dict[str, float]:
            again = RealNetwork(driver.place)  # as a restarted agent
            writes = Writes(again)
            start, busy = time.perf_counter(), cpu_s()
            again.start()
            for net in nets:
                again.ensure_network(net)
            again.ensure_security_group(group)
            for spec in specs:
                again.ensure_port(changed if changed is not None and changed.id == spec.id else spec)
            took, busy = time.perf_counter() - start, cpu_s() - busy
            again.stop()
            return {"s": round(took, 2), "cpu_s": round(busy, 2), "bundles": writes.bundles, "rows": writes.rows}

        same = resync()
        moved = msgspec.structs.replace(specs[0].fixed_ips[0], ip_address="10.0.255.1")
        one = resync(msgspec.structs.replace(specs[0], fixed_ips=(moved,)))
        known = {"network": {n.id for n in nets}, "port": {s.id for s in specs}, "security_group": {group.id}}
        looks = []
        for _ in range(6):
            start = time.perf_counter()
            assert driver.drift(known, lambda kind, id: None) == []
            looks.append((time.perf_counter() - start) * 1000)
        ordered = sorted(took)
        return {
            "ports": ports, "networks": networks,
            "wire_ms": {
                "p50": round(statistics.median(took), 1), "p95": round(ordered[int(len(ordered) * 0.95)], 1),
                "first_100_p50": round(statistics.median(took[:100]), 1),
                "last_100_p50": round(statistics.median(took[-100:]), 1), "cpu": round(spent, 1),
            },
            "resync": same, "resync_one": one,
            "look_ms": {"p50": round(statistics.median(looks), 1), "max": round(max(looks), 1)},
        }  # fmt: skip
    finally:
        driver.stop()
        end(place)
        links.remove_namespace(namespace)
        shutil.rmtree(root)


class Writes:
    """Counts what a driver writes to its switch: OpenFlow bundles, rows of the database."""

    def __init__(self, driver: RealNetwork) -> None:
        self.bundles = self.rows = 0
        switch: Any = driver.switch
        if driver.place.switch == "linuxbridge":
            load = switch.tables._load

            def loaded(script: str, timeout_s: float = 20) -> None:
                self.bundles += 1
                load(script, timeout_s)

            switch.tables._load = loaded
            return
        bundle, transact = switch._bundle, switch.db.transact

        def bundled(lines: Any) -> None:
            self.bundles += 1
            bundle(lines)

        def transacted(*operations: Any) -> Any:
            self.rows += sum(one["op"] in ("insert", "update", "mutate", "delete") for one in operations)
            return transact(*operations)

        switch._bundle, switch.db.transact = bundled, transacted


def end(place: HostPlace) -> None:
    """End a played host's Open vSwitch as it is: taking a thousand ports out one by one takes minutes."""
    if place.switch == "linuxbridge":
        return
    daemons = Daemons(place)
    for name in ("ovs-vswitchd", "ovsdb-server"):
        for _ in range(12):  # the kernel takes the thousand taps of a killed switch away, and that takes its time
            with contextlib.suppress(TryAgain):
                processes.stop(name, daemons.run_dir)
                break
    shutil.rmtree(daemons.run_dir, ignore_errors=True)


def main() -> None:
    """Measure, print what was found and the verdict."""
    ports, networks, switch = (*sys.argv[1:], *("1000", "10", "openvswitch")[len(sys.argv) - 1 :])
    load = os.getloadavg()[0]
    got = measure(int(ports), int(networks), switch)
    print(json.dumps(got | {"load": round(load, 1)}, indent=2))
    same, one = got["resync"], got["resync_one"]
    quick = same["cpu_s" if load > 2.5 else "s"] <= SECONDS
    met = (
        quick
        and same["bundles"] == (switch == "linuxbridge")
        and same["rows"] == 0
        and one["bundles"] == 1 + same["bundles"]
    )
    print(
        f"{'PASS' if met else 'MISS'}: a resync of {got['ports']} ports took {same['s']} s ({same['cpu_s']} s of CPU) "
        f"and wrote {same['bundles']} bundles and {same['rows']} rows;\nwith one that differed {one['bundles']} "
        f"bundle and {one['rows']} rows; goal: at most {SECONDS} s, and nothing but what differs"
    )


if __name__ == "__main__":
    main()
