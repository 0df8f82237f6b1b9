"""Chaos around a highly available router: links cut at random, keepers killed and stopped, masters isolated, moves.

The oracle is the wire (ha_witness.py): at no moment two hosts forward.
"""

from __future__ import annotations

import os
import random
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "host"))

from ha_stage import Stage, Stream  # the stage of the host tests
from ha_witness import Witness, flood, second_forwarder, twice
from machines import until

pytestmark = [pytest.mark.host, pytest.mark.slow]
SECONDS = float(os.environ.get("NUBILA_CHAOS_S", "45"))
CONVERGE_S = 30.0


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
        first = stage.active()
        chaos.move()
        until(lambda: stage.active() not in ("", first), "the other host has forwarded once")
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
        planted = tmp_path / "planted"
        planted.mkdir(mode=0o777)
        witness = Witness(stage, planted)
        until(lambda: second_forwarder(stage, witness), "the witness sees a second forwarder that is planted")
        witness.stop()
    finally:
        stage.close()
