"""Chaos around a highly available router: links cut at random, keepers killed and stopped, masters isolated, moves.

The oracle is the wire. The external network is made to flood: every echo request reaches both network hosts, so a host
that forwards while another one does sends the same request into the tunnels a second time. Captures there (the outer
address says which host) and on the external network (each host's own port) must never show one packet from two hosts.
"""

from __future__ import annotations

import os
import random
import struct
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "host"))

from ha_stage import Stage, Stream  # the stage of the host tests
from machines import until

pytestmark = [pytest.mark.host, pytest.mark.slow]
SECONDS = float(os.environ.get("NUBILA_CHAOS_S", "45"))
CONVERGE_S = 30.0
Packet = tuple[float, str, tuple[int, int]]  # when, from which host, (id, sequence number) of the echo


def frames(path: Path) -> Iterator[tuple[float, bytes]]:
    """The frames of a capture file (pcap-savefile(5), nanoseconds or microseconds)."""
    data = path.read_bytes()
    if len(data) < 24:
        return
    unit = 1e-9 if data[:4] == b"\x4d\x3c\xb2\xa1" else 1e-6
    at = 24
    while at + 16 <= len(data):
        seconds, part, length, _ = struct.unpack_from("<IIII", data, at)
        yield seconds + part * unit, data[at + 16 : at + 16 + length]
        at += 16 + length


def echo(ip: bytes, kind: int) -> tuple[int, int] | None:
    """(id, sequence number) of an ICMP echo request (8) or reply (0); None for anything else."""
    head = (ip[0] & 0xF) * 4
    if len(ip) < head + 8 or ip[9] != 1 or ip[head] != kind:
        return None
    id, number = struct.unpack_from("!HH", ip, head + 4)
    return id, number


class Witness:
    """Captures on both sides of the router."""

    def __init__(self, stage: Stage, root: Path) -> None:
        self.stage, self.root = stage, root
        self._children = []
        for name, wire, device, condition in (
            ("tunnels", stage.tunnels, "br0", "udp port 4789"),
            *((host, stage.external, f"to-{host}", "icmp") for host in stage.network_hosts),
        ):
            way = ["-Q", "in"] if device != "br0" else []
            argv = ["tcpdump", "-i", device, "-U", "-n", *way, "-w", str(root / f"{name}.pcap"), condition]
            self._children.append(wire.machine.spawn(*argv))
        time.sleep(1.0)

    def stop(self) -> None:
        """Write everything out."""
        for child in self._children:
            child.terminate()
        time.sleep(1.0)

    def inwards(self) -> list[Packet]:
        """Echo requests that network hosts sent into tunnels."""
        hosts = {bytes((10, 0, 1, i)): name for i, name in enumerate(self.stage.machines, 1)}
        found: list[Packet] = []
        for at, frame in frames(self.root / "tunnels.pcap"):
            outer, inner = frame[14:34], frame[50:]  # Ethernet, IPv4, UDP, VXLAN
            host = hosts.get(outer[12:16], "")
            if host in self.stage.network_hosts and inner[12:14] == b"\x08\x00":
                what = echo(inner[14:], 8)
                if what is not None:
                    found.append((at, host, what))
        return found

    def outwards(self) -> list[Packet]:
        """Echo replies that network hosts sent out."""
        found: list[Packet] = []
        for host in self.stage.network_hosts:
            for at, frame in frames(self.root / f"{host}.pcap"):
                what = echo(frame[14:], 0) if frame[12:14] == b"\x08\x00" else None
                if what is not None:
                    found.append((at, host, what))
        return sorted(found)


def twice(packets: list[Packet]) -> list[str]:
    """Packets that two hosts forwarded."""
    first: dict[tuple[int, int], tuple[float, str]] = {}
    out = []
    for at, host, what in sorted(packets):
        known = first.setdefault(what, (at, host))
        if known[1] != host and at - known[0] < 30:
            out.append(f"echo {what}: {known[1]} at {known[0]:.3f}, {host} {1000 * (at - known[0]):.1f} ms later")
    return out


class Chaos:
    """What goes wrong, drawn from a seed."""

    def __init__(self, stage: Stage, seed: int) -> None:
        self.stage, self.dice, self.log = stage, random.Random(seed), list[str]()
        self.cuts: set[tuple[str, str]] = set()
        self.agents = {a["host"]: a["id"] for a in stage.call("GET", "/agents", agent_type="L3 agent")["agents"]}
        self.made: list[str] = []

    def wire(self, name: str) -> Any:
        return getattr(self.stage, name)

    def cut(self) -> None:
        """A cable."""
        what = self.dice.choice([
            *[("tunnels", h) for h in self.stage.network_hosts], *[("management", h) for h in self.stage.network_hosts],
            *[("external", h) for h in self.stage.network_hosts], ("management", "controller"),
        ])  # fmt: skip
        self.wire(what[0]).cut(self.stage.machines[what[1]])
        self.cuts.add(what)
        self.log.append(f"cut {what}")

    def mend(self) -> None:
        """One that was cut."""
        if self.cuts:
            what = self.dice.choice(sorted(self.cuts))
            self.wire(what[0]).mend(self.stage.machines[what[1]])
            self.cuts.discard(what)
            self.log.append(f"mend {what}")

    def isolate(self) -> None:
        """Both hosts from each other, and one of them from the controller."""
        host = self.dice.choice(self.stage.network_hosts)
        for what in (("tunnels", host), ("management", host)):
            self.wire(what[0]).cut(self.stage.machines[what[1]])
            self.cuts.add(what)
        self.log.append(f"isolate {host}")

    def _signal(self, host: str, number: str, word: str) -> list[str]:
        machine = self.stage.machines[host]
        pids = [str(pid) for pid, args in machine.processes().items() if word in args]
        if pids:
            machine.run("kill", f"-{number}", *pids, check=False)
        return pids

    def kill(self) -> None:
        """Something on a network host."""
        host = self.dice.choice(self.stage.network_hosts)
        word = self.dice.choice(["nubila.apps.keeper", "keepalived --dont-fork", "conntrackd", "apps.process agent"])
        self._signal(host, "KILL", word)
        self.log.append(f"kill {word} on {host}")

    def freeze(self) -> None:
        """A keeper, for a while: longer than a lease."""
        host = self.dice.choice(self.stage.network_hosts)
        self._signal(host, "STOP", "nubila.apps.keeper")
        pause = self.dice.uniform(0.2, 2.0)
        self.log.append(f"freeze the keeper of {host} for {pause:.1f} s")
        time.sleep(pause)
        self._signal(host, "CONT", "nubila.apps.keeper")

    def change(self) -> None:
        """A networking operation: more work for everybody."""
        call = self.stage.call
        if self.made and self.dice.random() < 0.5:
            call("DELETE", f"/routers/{self.made.pop()}")
        else:
            self.made.append(call("POST", "/routers", {"router": {"name": "more"}}, "demo")["router"]["id"])
        self.log.append("a router comes or goes")

    def move(self) -> None:
        """Take the router from the host that forwards, and give it back to it."""
        host = self.stage.active()
        if host and len(self.stage.states_of()) == 2:
            path = f"/agents/{self.agents[host]}/l3-routers"
            self.stage.call("DELETE", f"{path}/{self.stage.router}")
            time.sleep(self.dice.uniform(0.0, 1.5))
            self.stage.call("POST", path, {"router_id": self.stage.router})
            self.log.append(f"move away from {host}")

    def step(self) -> None:
        """One of them."""
        what: Callable[[], None] = self.dice.choice(
            [self.cut, self.cut, self.mend, self.mend, self.mend, self.isolate, self.kill, self.freeze, self.change,
             self.move]
        )  # fmt: skip
        try:
            what()
        except Exception as e:  # the controller may be cut off: so be it
            self.log.append(f"{what.__name__}: {type(e).__name__}")

    def end(self) -> None:
        """Mend everything."""
        for name, host in sorted(self.cuts):
            self.wire(name).mend(self.stage.machines[host])
        self.cuts.clear()


def flood(stage: Stage) -> None:
    """What comes from outside reaches both network hosts, and neither hears the other there: so none learns better."""
    for host in stage.network_hosts:
        stage.external.inside(
            "bridge", "link", "set", "dev", f"to-{host}", "learning", "off", "flood", "on", "isolated", "on"
        )


def test_at_no_moment_two_hosts_forward(tmp_path: Path) -> None:
    seed = int(os.environ.get("NUBILA_CHAOS_SEED", str(random.randrange(10**6))))
    stage = Stage(tmp_path / "stage")
    try:
        flood(stage)
        stage.build()
        until(stage.active, "one host forwards")
        stage.guest("compute1")
        until(lambda: stage.pings(stage.floating), "the floating IP answers")
        witness = Witness(stage, tmp_path)
        stream = Stream(stage, stage.floating)
        chaos = Chaos(stage, seed)
        ends = time.monotonic() + SECONDS
        while time.monotonic() < ends:
            chaos.step()
            time.sleep(chaos.dice.uniform(0.1, 1.2))
        chaos.end()
        mended = time.monotonic()
        until(lambda: stage.pings(stage.floating), f"the floating IP answers again (seed {seed}: {chaos.log})", 60)
        until(lambda: sorted(stage.states_of().values()) == ["active", "standby"], "one active, one standby", 60)
        took = time.monotonic() - mended
        sent, lost, hole = stream.stop(2.0)
        witness.stop()
        inwards, outwards = witness.inwards(), witness.outwards()
        print(
            f"seed {seed}: {len(chaos.log)} steps, {sent} sent, {lost} lost, longest {hole} s; again after {took:.1f} s"
        )
        print("\n".join(chaos.log))
        assert len({host for _, host, _ in inwards}) == 2, "both hosts have forwarded at some time"
        assert len(inwards) > 100
        assert twice(inwards) == [], f"seed {seed}"
        assert twice(outwards) == [], f"seed {seed}"
        assert took < CONVERGE_S, f"seed {seed}: {took:.1f} s"
    finally:
        stage.close()
