"""The simulated network keeps the network contract, fails on request and costs little."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from contract_network import Bench, NetworkContract, network, port, router
from costs import calls

from nubila.core.ports import HostPlace, Impossible, NetworkSpec, RouterSpec, TryAgain
from nubila.drivers.simulated_network import SimulatedNetwork


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    place = HostPlace(cloud="test", host="h1", root=tmp_path, bridges={"physnet1": "br-ex"})
    driver = SimulatedNetwork(place)
    driver.start()

    def ask(net: NetworkSpec | None, gate: RouterSpec | None, path: str) -> tuple[int, bytes]:
        status, _, body = driver.ask_metadata(
            address="10.0.0.3", path=path, network_id=net.id if net else None, router_id=gate.id if gate else None
        )
        return status, body

    return Bench(driver, lambda: SimulatedNetwork(place), ask)


class TestSimulated(NetworkContract):
    """The contract."""


def test_it_fails_as_it_is_told(tmp_path: Path) -> None:
    driver = SimulatedNetwork(HostPlace(cloud="test", host="h1", root=tmp_path))
    driver.start()
    told = tmp_path / "behaviours.json"
    told.write_text(json.dumps({"fail": {"network": 1, "router": -1}}))
    net = network()
    with pytest.raises(TryAgain, match="told to fail at network"):
        driver.ensure_network(net)
    driver.ensure_network(net)
    for _ in range(2):
        with pytest.raises(TryAgain, match="router"):
            driver.ensure_router(router(net))
    told.write_text(json.dumps({"fail": {"port": 1}, "fail_as": "impossible"}))
    with pytest.raises(Impossible):
        driver.ensure_port(port(net, 3))


def test_ids_cannot_leave_the_folder(tmp_path: Path) -> None:
    driver = SimulatedNetwork(HostPlace(cloud="test", host="h1", root=tmp_path))
    driver.start()
    with pytest.raises(Impossible):
        driver.remove_port("../../etc/passwd")


def test_a_call_costs_the_same_whatever_is_there(tmp_path: Path) -> None:
    driver = SimulatedNetwork(HostPlace(cloud="test", host="h1", root=tmp_path))
    driver.start()
    net = network()
    driver.ensure_network(net)
    specs = [port(net, number) for number in range(3, 103)]
    costs = [calls(lambda spec=spec: driver.ensure_port(spec)) for spec in specs]  # type: ignore[misc]
    assert max(costs[1:]) < min(costs[1:]) + 20, "the first reads what the others know"
    assert max(costs) < 300
