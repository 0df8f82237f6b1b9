"""One simulated cloud for all stories."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from nubila.testing.started import Started, started
from nubila.testing.stories import Cloud


@pytest.fixture(scope="session")
def running() -> Iterator[Started]:
    # As the cloud the stories were recorded from: flat networks may name any physical network.
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NUBILA_PHYSICAL_NETWORKS", "physnet1,*")
        with started("simulated", "wire") as cloud:
            yield cloud


@pytest.fixture(scope="session")
def cloud(running: Started) -> Cloud:
    auth = running.auth()
    url = running.auth_url if running.auth_url.endswith("/v3") else running.auth_url + "/v3"
    return Cloud(url, auth["password"], auth["username"], auth["project_name"])
