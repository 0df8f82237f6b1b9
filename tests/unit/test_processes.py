"""Processes of a cloud: who holds the state directory, what survives failures, what a first start leaves behind."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
import sqlalchemy as sa

from nubila.apps import first, host, lifecycle, supervisor, wiring
from nubila.apps.controller import steadily
from nubila.core.sql import Busy


def until(condition: object, what: str) -> None:
    deadline = time.monotonic() + 10
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < deadline, f"never: {what}"
        time.sleep(0.01)


def test_looking_whether_a_cloud_runs_does_not_keep_it_from_starting(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    stop = threading.Event()

    def look() -> None:
        while not stop.is_set():
            supervisor.running(tmp_path)

    thread = threading.Thread(target=look)
    thread.start()
    try:
        for _ in range(100):
            supervisor.lock(tmp_path).close()
    finally:
        stop.set()
        thread.join()
    held = supervisor.lock(tmp_path)
    with pytest.raises(supervisor.AlreadyUp):
        supervisor.lock(tmp_path)
    held.close()


def test_a_child_that_cannot_be_started_is_tried_again(tmp_path: Path) -> None:
    child = supervisor.Child("x", ["-c", "pass"], (), tmp_path / "nowhere" / "x.log")
    assert supervisor._tend([child]) is False
    assert child.again > time.monotonic()
    (tmp_path / "nowhere").mkdir()
    child.again = 0.0
    assert supervisor._tend([child]) is True
    assert child.process is not None
    child.process.wait(20)


def test_what_fails_is_done_again() -> None:
    stop, done = threading.Event(), []

    def once() -> None:
        done.append(1)
        if len(done) == 1:
            raise Busy("locked")
        if len(done) == 2:
            raise KeyError("a defect")

    thread = threading.Thread(target=steadily, args=("test", once, stop, 0.001), kwargs={"again_s": 0.001})
    thread.start()
    until(lambda: len(done) > 5, "it goes on")
    stop.set()
    thread.join(5)


def test_one_agent_of_several_that_ends_ends_the_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[bool] = []

    class Fake:
        def __init__(self, name: str, ends: bool) -> None:
            self.place, self.ends = type("Place", (), {"host": name}), ends

        def run(self, stop: threading.Event) -> None:
            if not self.ends:
                told.append(stop.wait(60))

    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        config = host.HostConfig(host=name, cloud="c", gear="simulated", url="unix:/x")
        import msgspec

        (tmp_path / name / "agent.json").write_bytes(msgspec.json.encode(config))
    monkeypatch.setattr(host, "make_agent", lambda root, config: Fake(config.host, config.host == "a"))
    monkeypatch.setattr(host.signal, "signal", lambda *a: None)
    host.run(tmp_path)
    assert told == [True]


def test_passwords_are_written_down_before_they_hold(tmp_path: Path) -> None:
    settings = replace(wiring.settings(tmp_path), bcrypt_rounds=4)
    cloud = wiring.open_cloud(tmp_path, settings)

    def killed(passwords: dict[str, str]) -> None:
        first.write_clouds(tmp_path, "http://127.0.0.1:5000/v3", passwords, "RegionOne")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        wiring.first_start(cloud, keep=killed)
    with cloud.store.read() as reader:
        assert reader.scalar(sa.select(wiring.STARTED.c.done)) is None
    made: list[dict[str, str]] = []
    assert wiring.first_start(cloud, keep=made.append) == made[0]
    assert wiring.first_start(cloud, keep=made.append) is None
    assert len(made) == 1
    cloud.store.close()


def test_a_joined_host_has_a_status(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "plan.json").write_text('{"listen": {}, "children": []}')
    assert lifecycle.status(tmp_path)["up"] is False


@pytest.mark.parametrize("listen", ["nonsense", "127.0.0.1:x", "127.0.0.1:99999", "127.0.0.1:"])
@pytest.mark.parametrize("classic", [False, True])
def test_an_address_that_is_none(tmp_path: Path, listen: str, classic: bool) -> None:
    options = {"listen": listen, "classic_ports": classic, "gear": "simulated"}
    with pytest.raises(lifecycle.Cannot, match="--listen takes"):
        lifecycle.up(tmp_path / "state", options)
    assert not (tmp_path / "state").exists()


def test_a_child_that_was_still_loading_when_its_supervisor_died_ends(tmp_path: Path) -> None:
    """Else it would serve on beside its successor, for ever."""
    command = ["-m", "nubila.apps.process", "controller", "--state", str(tmp_path), "--parent", "1"]
    assert subprocess.run([sys.executable, *command], timeout=60, check=False).returncode == 0
    assert list(tmp_path.iterdir()) == []
