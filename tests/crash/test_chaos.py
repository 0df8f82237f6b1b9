"""Acceptance 4: kill -9 a random Nubila process about every second under a random workload; everything converges.

The suite runs a short storm; NUBILA_CHAOS_S=120 runs the full one. NUBILA_CHAOS_DB=postgresql or mariadb runs it on a
throw-away server of that kind, and a URL on a database that is there.
"""

from __future__ import annotations

import os
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from nubila.apps import lifecycle
from nubila.testing import chaos
from nubila.testing.databases import Databases
from nubila.testing.started import free_port

SECONDS = float(os.environ.get("NUBILA_CHAOS_S", "12"))


@pytest.fixture
def database() -> Iterator[str]:
    """The URL of the database to use, "" for SQLite in the state directory."""
    wish = os.environ.get("NUBILA_CHAOS_DB", "")
    if wish not in ("postgresql", "mariadb"):
        yield wish
        return
    servers = Databases()
    try:
        yield servers.fresh(wish)  # type: ignore[arg-type]
    finally:
        servers.close()


def up(state: Path, gear: str, database: str = "") -> None:
    state.mkdir(parents=True)
    (state / "nubila.toml").write_text("api_workers = 2\ncontrollers = 2\nsimulated_hosts = 2\nsweep_s = 10.0\n")
    command = [str(Path(sys.executable).parent / "nubila"), "up", "-d", "--state", str(state), "--gear", gear,
               "--listen", f"127.0.0.1:{free_port()}", "--name", f"ch{uuid.uuid4().hex[:6]}"]  # fmt: skip
    if database:
        command += ["--database", database]
    subprocess.run(command, check=True, timeout=60)
    lifecycle.wait(state, 60)


@pytest.mark.parametrize("gear", ["simulated", pytest.param("real", marks=pytest.mark.host)])
def test_everything_converges_after_kill_9(tmp_path: Path, gear: str, database: str) -> None:
    state = tmp_path / "cloud"
    up(state, gear, database)
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
