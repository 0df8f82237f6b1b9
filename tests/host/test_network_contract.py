"""The real network driver keeps the network contract."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from contract_network import Bench, NetworkContract
from network_world import Host, ask_in

from nubila.core.ports import NetworkSpec, RouterSpec
from nubila.drivers.network import RealNetwork

pytestmark = pytest.mark.host


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    host = Host(tmp_path)

    def ask(net: NetworkSpec | None, gate: RouterSpec | None, path: str) -> tuple[int, bytes]:
        if net is not None:
            return ask_in(host.driver.dhcp_namespace(net.id), "169.254.169.254", 80, path)
        assert gate is not None
        return ask_in(host.driver.router_namespace(gate.id), gate.interfaces[0].fixed_ips[0].ip_address, 9697, path)

    yield Bench(host.driver, lambda: RealNetwork(host.place), ask)
    host.close()


class TestReal(NetworkContract):
    """The contract."""
