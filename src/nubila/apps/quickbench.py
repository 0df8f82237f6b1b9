"""``nubila bench``: a quick look at this machine in the simulated gear: start-up, memory, requests, servers."""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import click

from nubila.apps import lifecycle
from nubila.apps.client import Client, poll


def memory_mb(state: Path) -> float:
    """Proportional memory of Nubila's own processes."""
    total = 0.0
    for pid in json.loads((state / "run" / "processes.json").read_text()).values():
        with contextlib.suppress(OSError):
            found = re.search(r"^Pss:\s+(\d+) kB", Path(f"/proc/{pid}/smaps_rollup").read_text(), re.M)
            total += int(found[1]) / 1024 if found else 0.0
    return total


def _active(c: Client, path: str) -> bool:
    return bool(c.call("GET", "compute", path)["server"]["status"] == "ACTIVE")


def _rate(act: Callable[[], object], seconds: float) -> float:
    n, start = 0, time.monotonic()
    while time.monotonic() - start < seconds:
        act()
        n += 1
    return n / (time.monotonic() - start)


def run(*, quick: bool) -> None:
    """Measure with one client on a throw-away simulated cloud and print."""
    import yaml

    seconds = 0.5 if quick else 2.0
    state = Path(tempfile.mkdtemp(prefix="nubila-bench-"))
    try:
        start = time.monotonic()
        lifecycle.up(state, {"gear": "simulated", "listen": f"127.0.0.1:{lifecycle.free_port(15000)}", "name": "bench"})
        lifecycle.start_detached(state)
        lifecycle.wait(state, 30)
        click.echo(f"up to all APIs answering   {time.monotonic() - start:8.2f} s")
        click.echo(f"memory (PSS)               {memory_mb(state):8.0f} MB")
        auth = yaml.safe_load((state / "clouds.yaml").read_text())["clouds"]["nubila-admin"]["auth"]
        c = Client(auth["auth_url"], auth["username"], auth["password"], auth["project_name"])
        network = c.call("POST", "network", "/networks", {"network": {"name": "bench"}})["network"]["id"]
        one = f"/networks/{network}"
        click.echo(f"show a network             {_rate(lambda: c.call('GET', 'network', one), seconds):8.0f} /s")
        click.echo(
            f"list flavors               {_rate(lambda: c.call('GET', 'compute', '/flavors/detail'), seconds):8.0f} /s"
        )
        image = c.call("POST", "image", "/images", {"name": "b", "disk_format": "raw", "container_format": "bare"})[
            "id"
        ]
        blank = state / "blank.raw"
        blank.write_bytes(bytes(1 << 16))
        c.upload(image, blank)
        flavors = c.call("GET", "compute", "/flavors/detail")["flavors"]
        flavor = min(flavors, key=lambda f: (f["ram"], f["disk"]))["id"]
        body = {"server": {"name": "b", "imageRef": image, "flavorRef": flavor, "networks": "none"}}
        times = []
        for _ in range(5 if quick else 9):
            begun = time.monotonic()
            server = c.call("POST", "compute", "/servers", body)["server"]["id"]
            look = f"/servers/{server}"
            poll("ACTIVE", partial(_active, c, look), 30, 0.002)
            times.append(time.monotonic() - begun)
        click.echo(f"server create to ACTIVE    {statistics.median(times) * 1000:8.0f} ms (p50)")
    finally:
        lifecycle.destroy(state)
        shutil.rmtree(state, ignore_errors=True)
