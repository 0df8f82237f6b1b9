"""Named processes: found again, never mistaken for a stranger with the same pid, ended for sure."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest

from nubila.core.ports import NeedsOperator, TryAgain
from nubila.drivers import processes

DEAF = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('deaf', flush=True); time.sleep(60)"


def test_a_process_is_started_once_found_and_stopped(tmp_path: Path) -> None:
    pid = processes.start("one", ["sleep", "60"], tmp_path, log=tmp_path / "log")
    assert processes.start("one", ["sleep", "60"], tmp_path, log=tmp_path / "log") == pid
    assert processes.alive("one", tmp_path) == pid
    assert os.getsid(pid) == pid  # it does not die with our terminal
    assert processes.stop("one", tmp_path) is True
    assert processes.alive("one", tmp_path) is None
    assert processes.stop("one", tmp_path) is False


def test_a_pid_of_another_boot_is_nobody(tmp_path: Path) -> None:
    pid = os.getpid()
    started = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    for text, found in ((f"{pid} {started} {boot}", pid), (f"{pid} {started} {boot[::-1]}", None)):
        (tmp_path / "one.pid").write_text(text)
        assert processes.alive("one", tmp_path) == found


def test_a_recycled_pid_is_not_ours(tmp_path: Path) -> None:
    (tmp_path / "one.pid").write_text(f"{os.getpid()} 12345\n")
    assert processes.alive("one", tmp_path) is None
    assert processes.kill("one", tmp_path) is False  # or this test would be dead


@pytest.mark.parametrize("text", ["", "x y", "12", "99999999 1"])
def test_a_broken_pid_file_is_nobody(tmp_path: Path, text: str) -> None:
    (tmp_path / "one.pid").write_text(text)
    assert processes.alive("one", tmp_path) is None
    pid = processes.start("one", ["sleep", "60"], tmp_path, log=tmp_path / "log")
    assert processes.alive("one", tmp_path) == pid
    processes.kill("one", tmp_path)


def test_a_deaf_process_is_killed(tmp_path: Path) -> None:
    processes.start("deaf", ["python3", "-c", DEAF], tmp_path, log=tmp_path / "log")
    deadline = time.monotonic() + 20
    while "deaf" not in (tmp_path / "log").read_text():
        assert time.monotonic() < deadline
    assert processes.stop("deaf", tmp_path, 0.2) is True
    assert processes.alive("deaf", tmp_path) is None


def test_death_is_seen_and_the_environment_is_given(tmp_path: Path) -> None:
    processes.start("short", ["sh", "-c", 'echo "$WORD"'], tmp_path, log=tmp_path / "log", env={"WORD": "hello"})
    assert processes.wait("short", tmp_path, 10.0)
    assert processes.alive("short", tmp_path) is None
    assert (tmp_path / "log").read_text() == "hello\n"
    assert processes.reload("short", tmp_path, signal.SIGHUP) is False


def test_what_cannot_start_says_why(tmp_path: Path) -> None:
    with pytest.raises(NeedsOperator, match="no-such-program is not installed"):
        processes.start("x", ["no-such-program"], tmp_path, log=tmp_path / "log")
    with pytest.raises(TryAgain, match="namespace no-such-space does not exist"):
        processes.start("x", ["sleep", "1"], tmp_path, log=tmp_path / "log", netns="no-such-space")
