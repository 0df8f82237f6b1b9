"""The simulated hypervisor keeps the hypervisor contract, fails on request and costs little."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from contract_hypervisor import Bench, HypervisorContract, replace
from costs import calls

from nubila.core.ports import HostPlace, Impossible, NicSpec, TryAgain
from nubila.drivers.simulated_hypervisor import SimulatedHypervisor


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    place = HostPlace(cloud="test", host="h1", root=tmp_path)
    driver = SimulatedHypervisor(place)
    return Bench(driver, lambda: SimulatedHypervisor(place), driver.crash, tmp_path, "an-image")


class TestSimulated(HypervisorContract):
    """The contract."""


def test_nics_follow_the_spec(bench: Bench) -> None:
    nic = NicSpec(port_id="p1", device="tapp1", mac="fa:16:3e:00:00:01")
    spec = bench.spec(nics=(nic,))
    assert bench.settle(spec).nics == ("p1",)
    assert bench.settle(replace(spec, nics=())).nics == ()


def test_failures_are_counted(bench: Bench) -> None:
    behaviours = bench.root / "behaviours.json"
    behaviours.write_text(json.dumps({"fail": {"create": 2, "reboot": -1}}))
    spec = bench.spec()
    for _ in range(2):
        with pytest.raises(TryAgain, match="told to fail at create"):
            bench.driver.ensure(spec)
    assert bench.driver.ensure(spec).power == "on"
    for _ in range(3):
        with pytest.raises(TryAgain, match="reboot"):
            bench.driver.ensure(replace(spec, boots=1))
    behaviours.write_text(json.dumps({"fail": {"start": -1}, "fail_as": "impossible"}))
    with pytest.raises(Impossible):
        bench.driver.ensure(bench.spec())


def test_the_login_prompt_waits_for_the_boot(bench: Bench) -> None:
    (bench.root / "behaviours.json").write_text('{"boot_s": 3600}')
    spec = bench.spec()
    bench.settle(spec)
    assert "login:" not in bench.driver.console_log(spec.id)
    (bench.root / "behaviours.json").write_text('{"boot_s": 0}')
    assert bench.driver.console_log(spec.id).endswith("web-1 login: ")


def test_a_guest_that_halts_itself_is_off(bench: Bench) -> None:
    spec = bench.spec()
    bench.settle(spec)
    assert isinstance(bench.driver, SimulatedHypervisor)
    bench.driver.halt(spec.id)
    seen = bench.seen(spec.id)
    assert seen is not None
    assert seen.power == "off"


def test_ensure_costs_the_same_whatever_is_there(bench: Bench) -> None:
    specs = [bench.spec() for _ in range(100)]
    for turn in ("makes", "finds"):
        costs = [calls(lambda spec=spec: bench.driver.ensure(spec)) for spec in specs]  # type: ignore[misc]
        assert max(costs[1:]) < min(costs[1:]) + 20, turn
        assert max(costs) < 500, turn
