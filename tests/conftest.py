"""Shared fixtures. Tests marked ``host`` drive real engines: without root or engines they are left out, and say why."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from networking import admin, alt, demo, play  # noqa: F401  # fixtures

from nubila.apps.host import missing_engines
from nubila.testing.cloud import TestCloud


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("loadgroup", False):  # what a worker is told of --dist loadgroup
        _group(items)
    missing = missing_engines()
    reason = "needs root" if os.geteuid() else f"missing engines: {', '.join(missing)}" if missing else ""
    if reason:
        for item in items:
            if item.get_closest_marker("host"):
                item.add_marker(pytest.mark.skip(reason=f"real gear: {reason}"))


def pytest_collection_finish(session: pytest.Session) -> None:
    """Real gear in two workers at once is two tests under one name: rather none than that."""
    ungrouped = [i.nodeid for i in session.items if i.get_closest_marker("host") and not i.nodeid.endswith("@host")]
    if session.config.getoption("loadgroup", False) and ungrouped:
        raise pytest.UsageError(f"pytest-xdist did not group {ungrouped[0]} and {len(ungrouped) - 1} more")


def _group(items: list[pytest.Item]) -> None:
    """With two workers: all real gear in one, one test at a time, first; beside it the others, file by file."""
    items.sort(key=lambda item: item.get_closest_marker("host") is None)
    for item in items:
        group = "host" if item.get_closest_marker("host") else item.path.name
        item.add_marker(pytest.mark.xdist_group(group))


@pytest.fixture
def cloud(tmp_path: Path) -> Iterator[TestCloud]:
    """A fresh cloud in this process: one simulated host, everything settled."""
    made = TestCloud(tmp_path / "cloud")
    yield made
    made.close()
