"""What packets meet on the Linux bridge: the same tests that Open vSwitch passes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from network_world import Host
from test_network_packets import *  # noqa: F403  the tests; their ``host`` is the one below

pytestmark = pytest.mark.host


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Host]:
    """A host that switches with Linux bridges."""
    host = Host(tmp_path, switch="linuxbridge")
    yield host
    host.close()
