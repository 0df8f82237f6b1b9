"""The Linux bridge as the switch of a host: the driver's contract, and what is particular to it."""

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
def host(tmp_path: Path) -> Iterator[Host]:
    host = Host(tmp_path, switch="linuxbridge")
    yield host
    host.close()


@pytest.fixture
def bench(host: Host) -> Bench:
    def ask(net: NetworkSpec | None, gate: RouterSpec | None, path: str) -> tuple[int, bytes]:
        if net is not None:
            return ask_in(host.driver.dhcp_namespace(net.id), "169.254.169.254", 80, path)
        assert gate is not None
        return ask_in(host.driver.router_namespace(gate.id), gate.interfaces[0].fixed_ips[0].ip_address, 9697, path)

    return Bench(host.driver, lambda: RealNetwork(host.place), ask)


class TestLinuxBridge(NetworkContract):
    """The contract."""
