"""A highly available router on hosts that switch with Linux bridges: planned moves and fail-overs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from ha_stage import Stage, Stream
from machines import until

pytestmark = pytest.mark.host


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[Stage]:
    made = Stage(tmp_path / "stage", ("controller", "network1", "network2", "compute1"), switch="linuxbridge")
    try:
        made.build()
        until(made.active, "one host forwards")
        made.guest("compute1")
        until(lambda: made.pings(made.floating), "the floating IP answers")
        yield made
    finally:
        made.close()


@pytest.mark.req("C/L3HA-03", "C/L3HA-24", "C/L3HA-26")
def test_it_moves_and_fails_over(stage: Stage) -> None:
    guest = stage.guests["demo-instance1"]
    until(lambda: sorted(stage.states_of().values()) == ["active", "standby"], "both are there")
    first, second = stage.active(), stage.standby()
    assert "br-int" not in stage.machines[first].run("ip", "link").stdout
    assert guest.pings("203.0.113.1")

    stream = Stream(stage, stage.floating)
    until(lambda: stage.pings(stage.floating), "packets flow")
    for wire in (stage.tunnels, stage.management, stage.external):
        wire.cut(stage.machines[first])
    until(lambda: stage.active() == second, "the other host is active")
    until(lambda: stage.pings(stage.floating), "and forwards")
    _, _, hole = stream.stop(1.0)
    assert hole <= 3.0, f"{hole} s without an answer"
    assert guest.pings("203.0.113.1")
    for wire in (stage.tunnels, stage.management, stage.external):
        wire.mend(stage.machines[first])
    until(lambda: stage.cloud.hosts()[first]["alive"], f"{first} is back")
    until(lambda: stage.pings(stage.floating), "who comes back takes nothing")
    assert stage.active() == second

    stream = Stream(stage, stage.floating)
    until(lambda: stage.pings(stage.floating), "packets flow")
    stage.move_away(second)
    until(lambda: stage.states_of() == {first: "active"}, "it moved")
    sent, lost, _ = stream.stop(3.0)
    assert lost == 0, f"{lost} of {sent}: {stream.missing}; the slowest took {stream.slowest_ms} ms"
    assert guest.pings("203.0.113.1")
