"""``./run bench``: measure this machine in one sitting and write docs/benchmarks.md.

Speeds are shares of a floor measured in the same run: the same server software (uvicorn, httptools, uvloop) answering a
constant of about the same size. Shared machines change speed within seconds, so floor and case alternate and the best
of the rounds counts for both. Load comes from wrk on the other core; everything stays on 127.0.0.1.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

import identity
import network
from measure import ROOT, Case, Floor, admin, bring_up, pss_mb, section, wrk

from nubila.apps import lifecycle
from nubila.apps.client import Client, poll


def unlimited(c: Client) -> None:
    """Quotas out of the way."""
    c.call("PUT", "network", f"/quotas/{c.project_id}",
           {"quota": dict.fromkeys(("network", "subnet", "port", "router"), -1)})  # fmt: skip
    c.call("PUT", "compute", f"/os-quota-sets/{c.project_id}",
           {"quota_set": dict.fromkeys(("instances", "cores", "ram"), -1)})  # fmt: skip


def a_server(c: Client, image: str, network: str | None) -> dict[str, Any]:
    """The body of a server."""
    flavor = min(c.call("GET", "compute", "/flavors/detail")["flavors"], key=lambda f: (f["ram"], f["disk"]))["id"]
    networks: Any = [{"uuid": network}] if network else "none"
    return {"server": {"name": "bench", "imageRef": image, "flavorRef": flavor, "networks": networks}}


def an_image(c: Client, path: Path | None) -> str:
    """An image: the given file, or a megabyte of zeros for simulated guests."""
    body = {"name": "bench", "disk_format": "qcow2" if path else "raw", "container_format": "bare"}
    image: str = c.call("POST", "image", "/images", body)["id"]
    if path is None:
        path = Path(tempfile.gettempdir()) / "nubila-bench.raw"
        path.write_bytes(bytes(1 << 20))
    c.upload(image, path)
    return image


def creation(c: Client, body: dict[str, Any], n: int, at_once: int) -> tuple[list[float], float]:
    """Seconds from POST to ACTIVE of each, and creations per second, with so many clients at once."""
    from concurrent.futures import ThreadPoolExecutor

    def one(_: int) -> float:
        mine = Client.__new__(Client)
        mine.__dict__.update(c.__dict__, _connection=None)
        start = time.monotonic()
        server = mine.call("POST", "compute", "/servers", body)["server"]["id"]

        def active() -> bool:
            status = mine.call("GET", "compute", f"/servers/{server}")["server"]["status"]
            if status == "ERROR":
                raise RuntimeError(f"server {server} is in ERROR")
            return bool(status == "ACTIVE")

        poll("server ACTIVE", active, 60, 0.002)
        return time.monotonic() - start

    start = time.monotonic()
    with ThreadPoolExecutor(at_once) as pool:
        times = list(pool.map(one, range(n)))
    return times, n / (time.monotonic() - start)


def throughput(state: Path, seconds: float, rounds: int) -> list[Case]:
    """The API cases against their floors."""
    c = admin(state)
    unlimited(c)
    image = an_image(c, None)
    networks = [
        c.call("POST", "network", "/networks", {"network": {"name": f"n{i}"}})["network"]["id"] for i in range(100)
    ]
    subnet = {"network_id": networks[0], "cidr": "10.64.0.0/12", "ip_version": 4}
    c.call("POST", "network", "/subnets", {"subnet": subnet})
    creation(c, a_server(c, image, networks[0]), 100, 8)
    server = c.call("GET", "compute", "/servers")["servers"][0]["id"]
    token = {"X-Auth-Token": c.token}
    compute = {**token, "OpenStack-API-Version": "compute 2.90"}
    port = json.dumps({"port": {"network_id": networks[0]}})
    cases = [
        Case("validate a token", c.auth_url + "/auth/tokens", {**token, "X-Subject-Token": c.token}),
        Case("show one network", f"{c.endpoints['network']}/v2.0/networks/{networks[0]}", token),
        Case("list 100 networks", f"{c.endpoints['network']}/v2.0/networks?limit=100", token),
        Case("show one server", f"{c.endpoints['compute']}/servers/{server}", compute),
        Case("list 100 servers in detail", f"{c.endpoints['compute']}/servers/detail?limit=100", compute),
        Case("create a port", f"{c.endpoints['network']}/v2.0/ports", {**token, "Content-Type": "application/json"},
             "POST", port),
    ]  # fmt: skip
    for case in cases:
        if case.method == "GET":
            import urllib.request

            with urllib.request.urlopen(urllib.request.Request(case.url, headers=case.headers), timeout=30) as a:
                case.size = len(a.read())
        else:
            case.size = 1100
        floor = Floor(case.size)
        try:
            for _ in range(rounds):
                for n in (1, 16):
                    rate, _, _ = wrk(f"http://127.0.0.1:{floor.port}/", n, seconds)
                    case.floors[n] = max(case.floors.get(n, 0.0), rate)
                    rate, p99, bad = wrk(case.url, n, seconds, case)
                    if bad:
                        raise SystemExit(f"{case.name}: {bad} answers were not 2xx")
                    if rate > case.rates.get(n, 0.0):
                        case.rates[n], case.p99_ms[n] = rate, p99
        finally:
            floor.stop()
        print(f"{case.name}: {case.rates} of {case.floors}", flush=True)
    return cases


def real(image: Path) -> dict[str, float]:
    """Start of a real guest through the cloud, beside the bare qemu start of the same image."""
    state, first, second = bring_up("real")
    out = {"up_first": first, "up_again": second}
    try:
        c = admin(state)
        picture = an_image(c, image)
        body = a_server(c, picture, None)
        times, _ = creation(c, body, 1, 1)  # fills the base image cache
        times, _ = creation(c, body, 5, 1)
        out["active"] = statistics.median(times)
        bare = []
        for i in range(5):
            pid_file = state / f"bare{i}.pid"
            start = time.monotonic()
            subprocess.run(
                ["qemu-system-x86_64", "-accel", "tcg", "-m", "128", "-display", "none", "-nodefaults", "-snapshot",
                 "-drive", f"file={image},format=qcow2,if=virtio", "-daemonize", "-pidfile", str(pid_file)],
                check=True, timeout=60,
            )  # fmt: skip
            bare.append(time.monotonic() - start)
            os.kill(int(pid_file.read_text()), 9)
        out["bare"] = statistics.median(bare)
        out["memory"] = sum(pss_mb(state).values())
    finally:
        lifecycle.destroy(state)
    return out


def networking(seconds: float, rounds: int) -> list[str]:
    """The sections about Networking."""
    state, _, again = bring_up("simulated", "api_workers = 2\n")  # the original has two processes
    try:
        return [network.weighed(state, again), network.compared(state, seconds, rounds)]
    finally:
        lifecycle.destroy(state)


def put(page: str, part: str) -> str:
    """The page with this section in the place of the one of the same title, or before the notes."""
    title = part.partition("\n")[0]
    before, found, after = page.partition(title + "\n")
    if not found:
        before, mark, after = page.partition("<!-- notes -->")
        return f"{before}{part}\n{mark}{after}"
    cut = min(at for at in (after.find("\n## "), after.find("\n<!-- notes -->")) if at >= 0)
    return before + part + after[cut:]


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=float, default=3)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--image", type=Path, help="guest image for the real gear; none = build the tiny one")
    parser.add_argument("--no-real", action="store_true")
    parser.add_argument("--validations", type=int, default=100_000, help="tokens validated before memory is compared")
    parser.add_argument("--only", choices=["network"], help="measure one part and leave the rest of the page alone")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "benchmarks.md")
    args = parser.parse_args()
    if shutil.which("wrk") is None:
        raise SystemExit("wrk is missing: apt-get install wrk")
    if args.only:
        page = args.out.read_text()
        for part in networking(args.seconds, args.rounds):
            page = put(page, part)
        args.out.write_text(page)
        return
    parts = [
        "# Benchmarks", "",
        f"Written by `./run bench` on {time.strftime('%Y-%m-%d')}: {os.cpu_count()} cores, "
        f"Python {platform.python_version()}, "
        f"kernel {platform.release().split('-')[0]}. Absolute figures belong to that machine; the shares travel.", "",
    ]  # fmt: skip
    state, first, second = bring_up("simulated")
    try:
        memory = pss_mb(state)
        cases = throughput(state, args.seconds, args.rounds)
        after = pss_mb(state)
        c = admin(state)
        unlimited(c)
        body = a_server(c, an_image(c, None), None)
        alone, _ = creation(c, body, 50, 1)
        _, rate = creation(c, body, 400, 8)
    finally:
        lifecycle.destroy(state)
    state, _, _ = bring_up("simulated", "api_workers = 2\n")  # the original has two processes
    try:
        about_identity = [identity.compared(state, args.seconds, args.rounds)]
    finally:
        lifecycle.destroy(state)
    about_network = networking(args.seconds, args.rounds)
    state, _, _ = bring_up("simulated")
    try:
        about_identity.append(identity.by_itself(state, args.seconds, args.validations))
    finally:
        lifecycle.destroy(state)
    rows: list[tuple[str, ...]] = [("request", "connections", "requests/s", "floor", "share", "p99 ms")]
    for case in cases:
        for n in (1, 16):
            share = case.rates[n] / case.floors[n]
            rows.append((case.name, str(n), f"{case.rates[n]:.0f}", f"{case.floors[n]:.0f}", f"{share:.0%}",
                         f"{case.p99_ms[n]:.1f}"))  # fmt: skip
    parts.append(section("API throughput as a share of the same server answering a constant", rows))
    p50 = statistics.median(alone) * 1000
    p95 = sorted(alone)[int(len(alone) * 0.95)] * 1000
    simulated: list[tuple[str, ...]] = [
        ("what", "measured", "goal"),
        ("up to all APIs answering, first start", f"{first:.2f} s", "1.0 s"),
        ("up to all APIs answering, again", f"{second:.2f} s", "1.0 s"),
        ("memory, idle (PSS)", f"{sum(memory.values()):.0f} MB", "150 MB"),
        *((f"- {name}", f"{mb:.0f} MB", "") for name, mb in memory.items()),
        ("memory after the load above (PSS)", f"{sum(after.values()):.0f} MB", ""),
        ("server create to ACTIVE, p50 / p95", f"{p50:.0f} / {p95:.0f} ms", "20 ms"),
        ("server creates to ACTIVE, 8 clients", f"{rate:.0f} /s", "100 /s"),
    ]
    parts.append(section("Simulated gear", simulated))
    parts += [*about_identity, *about_network]
    if not args.no_real and os.geteuid() == 0:
        from nubila.apps.quickstart import cached_image

        found = real(args.image or cached_image(print))
        parts.append(section("Real gear", [
            ("what", "measured", "goal"),
            ("up to all APIs answering, first start", f"{found['up_first']:.2f} s", "3 s"),
            ("up to all APIs answering, again", f"{found['up_again']:.2f} s", "3 s"),
            ("memory of Nubila's own processes, one guest (PSS)", f"{found['memory']:.0f} MB", "150 MB"),
            ("server create to ACTIVE, p50", f"{found['active']:.2f} s", ""),
            ("bare qemu start of the same image", f"{found['bare']:.2f} s", ""),
            ("difference", f"{found['active'] - found['bare']:.2f} s", "0.5 s"),
        ]))  # fmt: skip
    kept = args.out.read_text().partition("<!-- notes -->")[2] if args.out.exists() else ""
    args.out.write_text("\n".join(parts) + "\n<!-- notes -->" + kept)
    print(args.out.read_text())


if __name__ == "__main__":
    main()
