"""How long a port takes from the request to ACTIVE on a real host, stage by stage.

    .venv/bin/python bench/port_wired.py [PORTS] [ALREADY]

Root and Open vSwitch are needed. A cloud of its own comes up (simulated, for its API and controller), and one more host
joins it: a network namespace with its own Open vSwitch and the real agent in a process of its own, as tests play hosts.
``ALREADY`` ports are there before, then ``PORTS`` are made one after the other, each bound to the host, and waited for.
Stages: request (the POST), taken (until the agent has it), wired (the driver), told (until the API shows ACTIVE).
CPU is that of the API server, the agent with what it starts, and the host's Open vSwitch: what a busy machine tells.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import statistics
import sys
import tempfile
import threading
import time
import uuid
from pathlib import Path
from typing import Any

from measure import admin, bring_up, section

from nubila.agent.apply import Drivers
from nubila.agent.client import HostApi
from nubila.agent.loop import Agent
from nubila.apps import lifecycle
from nubila.apps.client import Client, poll
from nubila.core.ports import HostPlace, NetworkState, PortSpec
from nubila.drivers import links, processes
from nubila.drivers.network import RealNetwork

GOAL_MS = 100.0
HOST = "bench-real"


class _Timed(RealNetwork):
    """Says when it began and ended to wire each port."""

    def __init__(self, place: HostPlace, said: Any) -> None:
        super().__init__(place)
        self._said = said

    def ensure_port(self, spec: PortSpec) -> NetworkState:
        began = time.monotonic()
        state = super().ensure_port(spec)
        self._said.put((spec.id, began, time.monotonic()))
        return state


def _agent(url: str, place: HostPlace, said: Any, stop: Any, ended: Any) -> None:
    """The agent's process."""
    driver = _Timed(place, said)
    over = threading.Event()
    threading.Thread(target=lambda: (stop.wait(), over.set()), daemon=True).start()
    Agent(HostApi(url, place.host), place, Drivers(None, driver), roles=["compute", "network"]).run(over)
    driver.destroy()
    ended.set()


def cpu_ms(pid: int, *, children: bool = False) -> float:
    """CPU a process has used, with that of the programs it has waited for."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return sum(map(int, fields[11 : 15 if children else 13])) * 1000 / os.sysconf("SC_CLK_TCK")


def measure(ports: int, already: int) -> dict[str, Any]:
    """Make a cloud and a host, measure, take both away."""
    state, _, _ = bring_up("simulated")
    namespace = f"nbw-{uuid.uuid4().hex[:8]}"
    root = Path(tempfile.mkdtemp(prefix="nubila-bench-"))
    context = multiprocessing.get_context("fork")
    said, stop, ended = context.Queue(), context.Event(), context.Event()
    links.ensure_namespace(namespace, "nubila bench")
    place = HostPlace(cloud="bench-wired", host=HOST, root=root, namespace=namespace, tunnel_ip="127.0.0.9")
    agent = context.Process(target=_agent, args=(f"unix:{state}/run/host.sock", place, said, stop, ended))
    try:
        agent.start()
        c = admin(state)
        c.call("PUT", "network", f"/quotas/{c.project_id}", {"quota": {"port": -1}})
        net = c.call("POST", "network", "/networks", {"network": {"name": "bench"}})["network"]["id"]
        subnet = {"network_id": net, "ip_version": 4, "cidr": "10.9.0.0/16", "enable_dhcp": False}
        c.call("POST", "network", "/subnets", {"subnet": subnet})
        poll("the host", lambda: any(a["host"] == HOST for a in c.call("GET", "network", "/agents")["agents"]), 60, 0.1)
        body = {"port": {"network_id": net, "binding:host_id": HOST, "device_owner": "compute:nova"}}
        for _ in range(already):
            c.call("POST", "network", "/ports", body)
        one(c, body)  # the network is wired, and all that was there before
        poll("all ports", lambda: all_active(c, net), 600, 0.5)
        while not said.empty():
            said.get()
        pids = json.loads((state / "run" / "processes.json").read_text())
        switch = processes.alive("ovs-vswitchd", Path("/run/nubila") / f"ovs.{namespace}")
        assert agent.pid is not None
        assert switch is not None
        who = {"api": (pids["server"], False), "agent": (agent.pid, True), "ovs-vswitchd": (switch, False)}
        before = {name: cpu_ms(pid, children=kids) for name, (pid, kids) in who.items()}
        stages: dict[str, list[float]] = {name: [] for name in ("request", "taken", "wired", "told", "all")}
        for _ in range(ports):
            id, asked, answered, active = one(c, body)
            began, done = found(said, id)
            marks = (asked, answered, began, done, active)
            for name, a, b in zip(stages, marks, marks[1:], strict=False):
                stages[name].append((b - a) * 1000)
            stages["all"].append((active - asked) * 1000)
        cpu = {name: (cpu_ms(pid, children=kids) - before[name]) / ports for name, (pid, kids) in who.items()}
        return {"stages": {name: quantiles(times) for name, times in stages.items()}, "cpu": cpu}
    finally:
        stop.set()
        ended.wait(60)
        agent.join(10)
        if agent.is_alive():
            agent.kill()
        links.remove_namespace(namespace)
        shutil.rmtree(root, ignore_errors=True)
        lifecycle.destroy(state)


def one(c: Client, body: dict[str, Any]) -> tuple[str, float, float, float]:
    """Make a port and wait for it: its id, when it was asked for, when the API answered, when it was ACTIVE."""
    asked = time.monotonic()
    id = c.call("POST", "network", "/ports", body)["port"]["id"]
    answered = time.monotonic()
    poll("port ACTIVE", lambda: c.call("GET", "network", f"/ports/{id}", fields="status")["port"]["status"] == "ACTIVE",
         120, 0.003)  # fmt: skip
    return id, asked, answered, time.monotonic()


def all_active(c: Client, network: str) -> bool:
    """Whether no port of the network waits."""
    return not c.call("GET", "network", "/ports", network_id=network, status="DOWN", fields="id")["ports"]


def found(said: Any, id: str) -> tuple[float, float]:
    """When the driver first began with the port, and ended."""
    while True:
        what, began, done = said.get(timeout=10)
        if what == id:
            return began, done


def quantiles(times: list[float]) -> tuple[float, float]:
    """p50 and p95."""
    return statistics.median(times), sorted(times)[int(len(times) * 0.95)]


def main() -> None:
    """Measure, print a table and the verdict."""
    ports, already = (int(text) for text in (*sys.argv[1:3], *("40", "0")[len(sys.argv[1:3]) :]))
    load = os.getloadavg()[0]
    got = measure(ports, already)
    rows: list[tuple[str, ...]] = [("stage", "p50 ms", "p95 ms")]
    rows += [(name, f"{p50:.1f}", f"{p95:.1f}") for name, (p50, p95) in got["stages"].items()]
    rows += [(f"CPU: {name}", f"{ms:.1f}", "") for name, ms in got["cpu"].items()]
    print(section(f"Port create to ACTIVE on a real host, {already} ports there before (load {load:.1f})", rows))
    p50 = got["stages"]["all"][0]
    print(f"{'PASS' if p50 <= GOAL_MS else 'MISS'}: p50 {p50:.0f} ms, goal {GOAL_MS:.0f} ms")


if __name__ == "__main__":
    main()
