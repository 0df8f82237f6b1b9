"""What every hypervisor driver promises (core/ports.py): one suite, run on the simulated and on the real one.

A test module subclasses ``HypervisorContract`` and gives a ``bench`` fixture: a driver on a place of its own, a way to
build the same driver anew (as a restarted agent does), a way to make a guest's process die, and an image.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import msgspec
import pytest

from nubila.core.ports import DiskSpec, GuestSpec, GuestState, Hypervisor, Impossible, TryAgain

replace = msgspec.structs.replace


@dataclass
class Bench:
    """One driver under test."""

    driver: Hypervisor
    rebuild: Callable[[], Hypervisor]
    crash: Callable[[str], None]
    root: Path
    image_id: str | None = None
    patience_s: float = 30.0

    def spec(self, **changes: object) -> GuestSpec:
        base = GuestSpec(
            id=str(uuid.uuid4()),
            name="instance-00000001",
            display_name="web-1",
            epoch=5,
            vcpus=1,
            ram_mb=256,
            disks=(DiskSpec(name="disk", size_gb=1, image_id=self.image_id, image_format="qcow2"),),
            config_drive={"openstack/latest/meta_data.json": '{"uuid": "x", "hostname": "web-1"}'},
        )
        return replace(base, **changes)

    def settle(self, spec: GuestSpec) -> GuestState:
        """``ensure`` as the agent does: again while the driver says so."""
        deadline = time.monotonic() + self.patience_s
        while True:
            try:
                return self.driver.ensure(spec)
            except TryAgain:
                if time.monotonic() > deadline:
                    raise

    def seen(self, id: str) -> GuestState | None:
        return next((state for state in self.driver.list() if state.id == id), None)

    def await_console(self, id: str, text: str, times: int = 1) -> str:
        """The console log once it holds ``text`` ``times`` times."""
        deadline = time.monotonic() + self.patience_s
        while True:
            log = self.driver.console_log(id)
            if log.count(text) >= times:
                return log
            assert time.monotonic() < deadline, f"no {text!r} on the console; it ends with:\n{log[-2000:]}"
            time.sleep(0.02)


class HypervisorContract:
    """The promises; every test starts and ends with no guest."""

    def test_capabilities_offer_something(self, bench: Bench) -> None:
        host = bench.driver.capabilities()
        assert host.vcpus > 0
        assert host.ram_mb > 0
        assert host.disk_gb > 0
        assert host.hypervisor_version >= 1000000

    def test_a_guest_runs_is_listed_and_goes(self, bench: Bench) -> None:
        spec = bench.spec()
        assert bench.driver.list() == []
        state = bench.settle(spec)
        assert (state.power, state.boots, state.epoch, state.fault) == ("on", 0, 5, "")
        assert bench.driver.list() == [state]
        bench.driver.remove(spec.id)
        assert bench.driver.list() == []
        assert [path for path in bench.root.rglob("*") if spec.id in str(path)] == []

    def test_ensure_again_changes_nothing(self, bench: Bench) -> None:
        spec = bench.spec()
        first = bench.settle(spec)
        assert bench.settle(spec) == first
        assert bench.settle(spec) == first

    def test_absent_is_success(self, bench: Bench) -> None:
        nobody = str(uuid.uuid4())
        bench.driver.remove(nobody)
        assert bench.driver.console_log(nobody) == ""
        assert bench.driver.prune([nobody]) == []

    def test_a_new_driver_adopts_the_guest(self, bench: Bench) -> None:
        spec = bench.spec()
        first = bench.settle(spec)
        bench.driver = bench.rebuild()
        assert bench.driver.list() == [first]
        assert bench.settle(spec) == first

    def test_stop_and_start(self, bench: Bench) -> None:
        spec = bench.spec()
        bench.settle(spec)
        bench.await_console(spec.id, "login:")
        assert bench.settle(replace(spec, power="off")).power == "off"
        assert bench.seen(spec.id) == bench.settle(replace(spec, power="off"))
        assert bench.driver.console_log(spec.id) != ""
        assert bench.settle(spec).power == "on"

    def test_a_guest_can_be_made_stopped(self, bench: Bench) -> None:
        state = bench.settle(bench.spec(power="off"))
        assert (state.power, state.pid) == ("off", None)

    @pytest.mark.parametrize("hard", [False, True])
    def test_a_reboot_happens_once(self, bench: Bench, hard: bool) -> None:
        spec = bench.spec()
        bench.settle(spec)
        bench.await_console(spec.id, "login:")
        again = replace(spec, boots=1, hard=hard)
        state = bench.settle(again)
        assert (state.power, state.boots) == ("on", 1)
        bench.await_console(spec.id, "login:", 2)
        assert bench.settle(again) == state
        bench.driver = bench.rebuild()
        assert bench.settle(again) == state
        assert bench.driver.console_log(spec.id).count("login:") == 2

    def test_reboots_of_a_stopped_guest_are_only_stamped(self, bench: Bench) -> None:
        spec = bench.spec(power="off")
        bench.settle(spec)
        assert bench.settle(replace(spec, boots=3)).boots == 3
        started = bench.settle(replace(spec, boots=3, power="on"))
        assert (started.power, started.boots) == ("on", 3)
        assert bench.settle(replace(spec, boots=3, power="on")) == started

    def test_a_crashed_guest_is_seen_and_started_again(self, bench: Bench) -> None:
        spec = bench.spec()
        bench.settle(spec)
        bench.crash(spec.id)
        seen = bench.seen(spec.id)
        assert seen is not None
        assert seen.power == "crashed"
        assert seen.fault
        state = bench.settle(spec)
        assert (state.power, state.fault) == ("on", "")

    def test_a_crashed_guest_that_shall_be_off_is_off(self, bench: Bench) -> None:
        spec = bench.spec()
        bench.settle(spec)
        bench.crash(spec.id)
        assert bench.settle(replace(spec, power="off")).power == "off"
        seen = bench.seen(spec.id)
        assert seen is not None
        assert seen.power == "off"

    def test_an_older_epoch_is_refused(self, bench: Bench) -> None:
        spec = bench.spec()
        bench.settle(spec)
        with pytest.raises(TryAgain, match="older"):
            bench.driver.ensure(replace(spec, epoch=4, power="off"))
        seen = bench.seen(spec.id)
        assert seen is not None
        assert (seen.power, seen.epoch) == ("on", 5)
        assert bench.settle(replace(spec, epoch=6)).epoch == 6

    def test_prune_keeps_only_what_is_named(self, bench: Bench) -> None:
        keep, lose = bench.spec(power="off"), bench.spec(power="off")
        bench.settle(keep)
        bench.settle(lose)
        assert bench.driver.prune([keep.id]) == [lose.id]
        assert [state.id for state in bench.driver.list()] == [keep.id]

    def test_a_strange_id_is_refused(self, bench: Bench) -> None:
        with pytest.raises(Impossible):
            bench.driver.ensure(bench.spec(id="../../etc"))
        with pytest.raises(Impossible):
            bench.driver.remove("a/b")

    def test_the_console_gives_the_last_lines(self, bench: Bench) -> None:
        spec = bench.spec()
        bench.settle(spec)
        log = bench.await_console(spec.id, "login:")
        last = bench.driver.console_log(spec.id, 3)
        assert log.endswith(last)
        assert len(last.splitlines()) == 3
        assert bench.driver.console_log(spec.id, 0) == ""
