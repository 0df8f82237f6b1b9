"""Die, interfere and stall at every point of a toy server's life; and proof that the nets catch what they are for."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from nubila.testing.crashpoints import Report, Scene, Theatre, survives

sys.path.insert(0, str(Path(__file__).parent))
import toy
from plants import Plant, ask_after_commit, lease_for_ever, no_fencing_token, settle_without_comparing

pytest_plugins = ["nubila.testing.fixtures"]

# A network database costs 0.1 s a performance: every point there takes minutes, so daily runs take every fifth.
EVERY = 1 if os.environ.get("NUBILA_EVERY_POINT") else 5


def test_toy_survives_every_accident(database_url: str):
    reports = survives(toy.play(), database_url, every=1 if database_url.startswith("sqlite") else EVERY)
    assert [r.accident for r in reports] == ["die", *toy.INTRUDERS, "stall"]
    assert all(r.points > 100 and r.performed >= r.points // EVERY for r in reports)


def test_points_are_statements_commits_and_driver_calls(tmp_path: Path):
    theatre = Theatre(toy.play(), f"sqlite:///{tmp_path}/db")
    points, complaints = theatre.rehearse()
    theatre.close()
    assert complaints == []
    for some in ("begin", "commit", "committed", "before Hypervisor.ensure", "after Hypervisor.remove"):
        assert some in points
    assert any(p.startswith("UPDATE work") for p in points)
    assert any(p.startswith("SELECT toy_server") for p in points)


# --- planted bugs: each must turn the net red -------------------------------------------------------------------------


def no_epoch_at_the_host(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(toy.Hypervisor, "fencing", False)


@pytest.mark.parametrize(
    ("plant", "accident"),
    [
        (ask_after_commit, "die"),
        (settle_without_comparing, "a rival, and off"),
        (settle_without_comparing, "gone"),
        (no_fencing_token, "stall"),
        (no_epoch_at_the_host, "stall"),
        (lease_for_ever, "die"),
    ],
)
def test_net_catches_a_planted_bug(plant: Plant, accident: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    plant(monkeypatch)
    theatre = Theatre(toy.play(), f"sqlite:///{tmp_path}/db")
    report: Report = theatre.perform(accident)
    theatre.close()
    print(report)
    assert report.failures


def test_complaint_without_accident_is_not_blamed_on_one(tmp_path: Path):
    def judge(scene: Scene) -> list[str]:
        return ["the judge is in a mood"]

    theatre = Theatre(toy.play(judge=judge), f"sqlite:///{tmp_path}/db")
    with pytest.raises(AssertionError, match="without any accident"):
        theatre.perform("die")
    theatre.close()
    with pytest.raises(AssertionError, match="mood"):
        survives(toy.play(judge=judge), f"sqlite:///{tmp_path}/db2")
