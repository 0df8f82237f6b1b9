"""Networking beside the original service, where it is installed, taking turns in the same minutes; two processes each.

The original is named as for identity.py. ``NUBILA_PEER_CONTROL``, when set, is a command that takes ``restart neutron``
and ``memjson neutron`` (JSON: process -> ``pss_mb``); with it start-up and memory are compared too.
"""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from typing import Any

from identity import CONNECTIONS, peer
from measure import Case, Floor, admin, pss_mb, section, wrk

from nubila.apps.client import ApiError, Client

NETWORKS = 100
GOALS = {
    f"list {NETWORKS} networks": 40, "show a network": 30, "create a network": 30, "create a port with an address": 40,
    "create a security-group rule": 50,
}  # fmt: skip
PORTS_GOAL = 800  # per second
PREFIX = "bench-"
COUNT = """
local n = 0
request = function()
  n = n + 1
  return wrk.format("POST", nil, nil, (wrk.body:gsub("77777", tostring(n))))
end
"""


class Side:
    """One of the two services and the compared requests."""

    def __init__(self, c: Client) -> None:
        self.c, self.url = c, c.endpoints["network"] + "/v2.0"
        limits = dict.fromkeys(("network", "subnet", "port", "security_group", "security_group_rule"), -1)
        c.call("PUT", "network", f"/quotas/{c.project_id}", {"quota": limits})
        have = len(c.call("GET", "network", "/networks", fields="id")["networks"])
        made = [self.make("network", name=f"{PREFIX}{i}") for i in range(max(NETWORKS - have, 2))]
        self.make("subnet", network_id=made[0], ip_version=4, cidr="10.64.0.0/12")
        token, sent = {"X-Auth-Token": c.token}, {"X-Auth-Token": c.token, "Content-Type": "application/json"}
        network, port = {"network": {"name": PREFIX + "more"}}, {"port": {"network_id": made[0]}}
        self.cases = [
            Case(f"list {NETWORKS} networks", f"{self.url}/networks?limit={NETWORKS}", token),
            Case("show a network", f"{self.url}/networks/{made[0]}", token),
            Case("create a network", f"{self.url}/networks", sent, "POST", json.dumps(network), size=900),
            Case("create a port with an address", f"{self.url}/ports", sent, "POST", json.dumps(port), size=1100),
            Case("create a security-group rule", f"{self.url}/security-group-rules", sent, "POST", size=650,
                 script=COUNT),
        ]  # fmt: skip
        for case in self.cases:
            if case.method == "GET":
                with urllib.request.urlopen(urllib.request.Request(case.url, headers=token), timeout=60) as answer:
                    case.size = len(answer.read())

    def make(self, what: str, **values: Any) -> str:
        """Create one thing; its id."""
        made: str = self.c.call("POST", "network", f"/{what.replace('_', '-')}s", {what: values})[what]["id"]
        return made

    def run(self, case: Case, connections: int, seconds: float) -> None:
        """One turn of one case; the best of its turns counts."""
        if case.script:  # every rule another one, every turn a group of its own
            rule = {"security_group_id": self.make("security_group", name=PREFIX + "group"), "direction": "ingress",
                    "protocol": "tcp", "port_range_min": 77777, "port_range_max": 77777}  # fmt: skip
            case.body = json.dumps({"security_group_rule": rule})
        rate, p99, bad = wrk(case.url, connections, seconds, case)
        if bad:
            raise SystemExit(f"{case.name} at {case.url}: {bad} answers were not 2xx")
        if rate >= case.rates.get(connections, 0.0):
            case.rates[connections], case.p99_ms[connections] = rate, p99

    def clean(self) -> None:
        """Take away what was made."""
        for what in ("ports", "networks", "security-groups"):
            for one in self.c.call("GET", "network", f"/{what}")[what.replace("-", "_")]:
                if (what == "ports" and not one["device_owner"]) or one["name"].startswith(PREFIX):
                    with contextlib.suppress(ApiError):
                        self.c.call("DELETE", "network", f"/{what}/{one['id']}")


def compared(state: Path, seconds: float, rounds: int, only: str = "") -> str:
    """Requests per second and p99 beside the original; the share of the floor is that of one process."""
    other = peer()
    sides = [Side(admin(state)), *([Side(other)] if other is not None else [])]
    rows: list[tuple[str, ...]] = [
        ("request", "connections", "requests/s", "share of the floor", "p99 ms", "original", "its p99 ms", "times",
         "goal")
    ]  # fmt: skip
    try:
        for i, case in enumerate(sides[0].cases):
            if only not in case.name:
                continue
            floor = Floor(case.size)
            try:
                for _ in range(rounds):
                    for n in CONNECTIONS:
                        rate, _, _ = wrk(f"http://127.0.0.1:{floor.port}/", n, seconds)
                        case.floors[n] = max(case.floors.get(n, 0.0), rate)
                        for side in sides:
                            side.run(side.cases[i], n, seconds)
            finally:
                floor.stop()
            for n in CONNECTIONS:
                theirs = sides[1].cases[i] if len(sides) > 1 else None
                rows.append((
                    case.name, str(n), f"{case.rates[n]:.0f}", f"{case.rates[n] / case.floors[n]:.0%}",
                    f"{case.p99_ms[n]:.1f}", f"{theirs.rates[n]:.1f}" if theirs else "not here",
                    f"{theirs.p99_ms[n]:.0f}" if theirs else "",
                    f"{case.rates[n] / theirs.rates[n]:.0f}x" if theirs and theirs.rates[n] else "",
                    f"{GOALS[case.name]}x",
                ))  # fmt: skip
            print(*rows[-len(CONNECTIONS) :], sep="\n", flush=True)
    finally:
        for side in sides[1:]:
            side.clean()
    return section("Networking beside the original", rows)


def weighed(state: Path, up_s: float) -> str:
    """Start-up and memory: of all our services together, of the original's Networking processes alone."""
    theirs = ["not here", "not here"]
    if control := shlex.split(os.environ.get("NUBILA_PEER_CONTROL", "")):
        start = time.monotonic()
        subprocess.run([*control, "stop", "neutron"], check=True, timeout=120, stdout=subprocess.DEVNULL)
        start = time.monotonic()
        subprocess.run([*control, "start", "neutron"], check=True, timeout=180, stdout=subprocess.DEVNULL)
        theirs[0] = f"{time.monotonic() - start:.1f} s"
        out = subprocess.run([*control, "memjson", "neutron"], check=True, timeout=60, capture_output=True, text=True)
        theirs[1] = f"{sum(one['pss_mb'] for one in json.loads(out.stdout).values()):.0f} MB"
    return section("Networking: start and memory", [
        ("what", "Nubila, all services", "the original, Networking alone"),
        ("start until the API answers, database there", f"{up_s:.1f} s", theirs[0]),
        ("memory (PSS)", f"{sum(pss_mb(state).values()):.0f} MB", theirs[1]),
    ])  # fmt: skip


if __name__ == "__main__":  # a quick look: network.py STATE [SECONDS [ROUNDS [PART OF A NAME]]]
    given = [*sys.argv[2:], *("3", "2", "")[len(sys.argv) - 2 :]]
    print(compared(Path(sys.argv[1]), float(given[0]), int(given[1]), given[2]))
