"""Nubila answers every story as the original services did when it was recorded."""

from __future__ import annotations

from pathlib import Path

import pytest

from nubila.testing.stories import Cloud, check, load, play, report, shared_reasons

STORIES = sorted(path for path in Path(__file__).parent.glob("stories/*/*.yaml") if path.name != "differs.yaml")


@pytest.mark.parametrize("path", STORIES, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_answers_as_recorded(path: Path, cloud: Cloud) -> None:
    story = load(path)
    if story.later:
        pytest.skip(story.later)
    found = check(story, play(cloud, story), shared_reasons(path))
    assert not found, f"{path.name} differs in {len(found)} of {len(story.steps)} steps\n{report(found)}"


@pytest.mark.parametrize("path", STORIES, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_every_step_is_recorded_and_every_difference_is_justified(path: Path) -> None:
    story = load(path)
    recorded = story.recorded()
    assert [step["name"] for step in story.steps if not step.get("optional")] == list(recorded)
    reasons = [reason for step in story.steps for reason in step.get("differs", {}).values()]
    reasons += [step["ours"]["because"] for step in story.steps if "ours" in step]
    assert all(isinstance(reason, str) and reason for reason in [*reasons, *story.differs.values()])
