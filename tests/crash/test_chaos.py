"""Acceptance 4: kill -9 a random Nubila process about every second under a random workload; everything converges.

The suite runs a short storm; NUBILA_CHAOS_S=120 runs the full one. NUBILA_CHAOS_DB names a network database.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from nubila.apps import lifecycle
from nubila.testing import chaos

SECONDS = float(os.environ.get("NUBILA_CHAOS_S", "12"))


def up(state: Path, gear: str) -> None:
    state.mkdir(parents=True)
    (state / "nubila.toml").write_text("api_workers = 2\ncontrollers = 2\nsimulated_hosts = 2\nsweep_s = 10.0\n")
    port = lifecycle.free_port(15100)
    command = [str(Path(sys.executable).parent / "nubila"), "up", "-d", "--state", str(state), "--gear", gear,
               "--listen", f"127.0.0.1:{port}", "--name", f"ch{port % 1000}"]  # fmt: skip
    if database := os.environ.get("NUBILA_CHAOS_DB"):
        command += ["--database", database]
    subprocess.run(command, check=True, timeout=60)
    lifecycle.wait(state, 60)


@pytest.mark.parametrize("gear", ["simulated", pytest.param("real", marks=pytest.mark.host)])
def test_everything_converges_after_kill_9(tmp_path: Path, gear: str) -> None:
    state = tmp_path / "cloud"
    up(state, gear)
    try:
        report = chaos.run(state, seconds=SECONDS, users=4 if gear == "simulated" else 2, seed=int(SECONDS) % 97,
                           servers=15 if gear == "simulated" else 4)  # fmt: skip
        print(report)
        assert sum(report.kills.values()) >= SECONDS / 2
        assert sum(report.done.values()) > SECONDS * (2 if gear == "simulated" else 0.5)
        assert report.internal == []
        assert report.wrong == []
        assert report.settled_s < 30
    finally:
        lifecycle.destroy(state)
