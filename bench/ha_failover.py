"""How long a floating IP is silent when the host that forwards for it dies: ``python bench/ha_failover.py``.

Five machines (tests/host/ha_stage.py). 100 echo requests a second come from outside; the active host dies by
power-off, by its links going down, by the kill of keepalived (with and without the keeper), by turns, 20 times in all;
then planned moves. Prints every run and the worst case, and writes docs/ha-failover.json. Needs root.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "host"))

from ha_stage import Stage, Stream  # the stage is the tests'
from machines import until

MOST_S = 1.0


def _kill(stage: Stage, host: str, pattern: str) -> None:
    pids = [str(pid) for pid, args in stage.machines[host].processes().items() if re.search(pattern, args)]
    stage.machines[host].run("kill", "-9", *pids)


def power_off(stage: Stage, host: str) -> Callable[[], None]:
    """Pull the plug."""
    stage.power_off(host)
    return lambda: stage.power_on(host)


def link_down(stage: Stage, host: str) -> Callable[[], None]:
    """All its cables."""
    stage.cut(host)
    return lambda: stage.mend(host)


def tunnel_down(stage: Stage, host: str) -> Callable[[], None]:
    """Only the card of the tunnels: guests cannot be reached, the control plane can."""
    stage.tunnels.cut(stage.machines[host])
    return lambda: stage.tunnels.mend(stage.machines[host])


def kill_keepalived(stage: Stage, host: str) -> Callable[[], None]:
    """kill -9 of keepalived with its children."""
    _kill(stage, host, "keepalived --dont-fork")
    return lambda: None


def kill_all(stage: Stage, host: str) -> Callable[[], None]:
    """kill -9 of keepalived, keeper and agent together."""
    _kill(stage, host, "keepalived --dont-fork|nubila.apps.keeper|apps.process agent")
    return lambda: None


KINDS = (power_off, kill_keepalived, link_down, tunnel_down, kill_all)


def settled(stage: Stage) -> None:
    """Both hosts are there and the floating IP answers."""
    until(lambda: sorted(stage.states_of().values()) == ["active", "standby"], "one active, one standby", 120)
    until(lambda: all(stage.cloud.hosts()[h]["alive"] for h in stage.network_hosts), "both are alive", 120)
    until(lambda: all("keepalived" in " ".join(stage.machines[h].processes().values()) for h in stage.network_hosts),
          "keepalived on both", 120)  # fmt: skip
    until(lambda: stage.pings(stage.floating), "the floating IP answers", 60)
    time.sleep(2.0)  # let what was started find its place


def run(stage: Stage, kind: Callable[[Stage, str], Callable[[], None]]) -> dict[str, Any]:
    """One failure."""
    settled(stage)
    active = stage.active()
    stream = Stream(stage, stage.floating)
    time.sleep(1.0)
    undo = kind(stage, active)
    time.sleep(4.0)
    sent, lost, hole = stream.stop()
    answers = stage.pings(stage.floating)
    now = stage.active()
    undo()
    return {"kind": kind.__name__, "active": active, "then": now, "sent": sent, "lost": lost, "hole_s": hole,
            "answers": answers}  # fmt: skip


def move(stage: Stage) -> dict[str, Any]:
    """One planned move, by taking the router from the L3 agent that has it."""
    settled(stage)
    first, second = stage.active(), stage.standby()
    agents = {a["host"]: a["id"] for a in stage.call("GET", "/agents", agent_type="L3 agent")["agents"]}
    stream = Stream(stage, stage.floating)
    time.sleep(1.0)
    stage.call("DELETE", f"/agents/{agents[first]}/l3-routers/{stage.router}")
    until(lambda: stage.states_of() == {second: "active"}, "it moved", 30)
    sent, lost, hole = stream.stop(2.0)
    stage.call("POST", f"/agents/{agents[first]}/l3-routers", {"router_id": stage.router})
    return {"kind": "move", "active": first, "then": second, "sent": sent, "lost": lost, "hole_s": hole,
            "answers": True}  # fmt: skip


def main() -> int:
    """Measure and report; 1 when a promise was not kept."""
    asked = argparse.ArgumentParser(description=__doc__)
    asked.add_argument("--failures", type=int, default=20)
    asked.add_argument("--moves", type=int, default=5)
    asked.add_argument("--out", type=Path, default=Path(__file__).parents[1] / "docs" / "ha-failover.json")
    wanted = asked.parse_args()
    with tempfile.TemporaryDirectory() as root:
        stage = Stage(Path(root) / "stage")
        found: list[dict[str, Any]] = []
        try:
            stage.build()
            until(stage.active, "one host forwards")
            stage.guest("compute1")
            for i in range(wanted.failures):
                found.append(run(stage, KINDS[i % len(KINDS)]))
                print(json.dumps(found[-1]), flush=True)
            for _ in range(wanted.moves):
                found.append(move(stage))
                print(json.dumps(found[-1]), flush=True)
        finally:
            stage.close()
    failures = [one for one in found if one["kind"] != "move"]
    moves = [one for one in found if one["kind"] == "move"]
    summary = {
        "failures": len(failures), "worst_s": max((o["hole_s"] for o in failures), default=0.0),
        "mean_s": round(sum(o["hole_s"] for o in failures) / max(1, len(failures)), 3),
        "moves": len(moves), "lost_in_moves": sum(o["lost"] for o in moves),
    }  # fmt: skip
    print(json.dumps(summary))
    wanted.out.write_text(json.dumps({"summary": summary, "runs": found}, indent=1) + "\n")
    return int(summary["worst_s"] > MOST_S or summary["lost_in_moves"] > 0)


if __name__ == "__main__":
    sys.exit(main())
