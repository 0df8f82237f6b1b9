"""The walk is played once for each gear; the tests look at what it saw."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from walk import Client, Walk, clouds, empty_qcow2

from nubila.testing.started import Started, started


def _walk(cloud: Started, folder: Path, image: Path) -> Iterator[Walk]:
    with Client(clouds(cloud, folder)) as client:
        walk = Walk(cloud, client, folder, image)
        walk.play()
        yield walk


@pytest.fixture(scope="session")
def simulated_walk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Walk]:
    folder = tmp_path_factory.mktemp("walk")
    with started("simulated", "walk") as cloud:
        yield from _walk(cloud, folder, empty_qcow2(folder / "cirros.qcow2"))


@pytest.fixture(scope="session")
def real_walk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Walk]:
    from nubila.apps.quickstart import cached_image

    image = cached_image(lambda line: None)
    with started("real", "walkr", timeout_s=120) as cloud:
        yield from _walk(cloud, tmp_path_factory.mktemp("walk"), image)


@pytest.fixture(params=["simulated", pytest.param("real", marks=pytest.mark.host)])
def walk(request: pytest.FixtureRequest) -> Walk:
    found: Walk = request.getfixturevalue(f"{request.param}_walk")
    return found
