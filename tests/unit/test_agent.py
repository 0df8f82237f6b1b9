"""The agent's loop and its line to the control plane, where things fail."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from nubila.agent.apply import Drivers
from nubila.agent.client import HostApi, Unreachable
from nubila.agent.loop import Agent
from nubila.core.ports import HostPlace
from nubila.drivers.simulated_hypervisor import SimulatedHypervisor
from nubila.drivers.simulated_network import SimulatedNetwork


def until(condition: Callable[[], Any], what: str, timeout_s: float = 10.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"never: {what}"
        time.sleep(0.01)


class Api(HostApi):
    """A control plane that hands out ``given`` once and may lose what it is told."""

    def __init__(self, given: list[dict[str, Any]]) -> None:
        super().__init__("unix:/nowhere", "h1")
        self.given, self.settled, self.greeted, self.lose = given, [], 0, 0

    def hello(self, body: Any) -> dict[str, Any]:
        self.greeted += 1
        return {}

    def every(self) -> dict[str, list[str]]:
        return {}

    def take(self, limit: int, wait_s: float, holding: Any = None) -> list[dict[str, Any]]:
        time.sleep(0.01)
        return list(self.given)

    def settle(self, items: list[dict[str, Any]]) -> list[str]:
        if self.lose:
            self.lose -= 1
            raise Unreachable("lost")
        self.settled += items
        return ["ok"] * len(items)

    def call(self, method: str, path: str, body: Any = None) -> Any:
        return {}


def item(kind: str, id: str) -> dict[str, Any]:
    return {"kind": kind, "id": id, "gen": 1, "token": 1, "tries": 0, "order": 0, "spec": None}


@pytest.fixture
def place(tmp_path: Path) -> HostPlace:
    return HostPlace(cloud="c", host="h1", root=tmp_path / "h1")


def run(agent: Agent) -> Callable[[], None]:
    stop = threading.Event()
    thread = threading.Thread(target=agent.run, args=(stop,), daemon=True)
    thread.start()

    def end() -> None:
        stop.set()
        thread.join(10)
        assert not thread.is_alive()

    return end


def test_a_guest_is_not_forgotten_when_a_report_before_it_is_lost(place: HostPlace) -> None:
    api = Api([item("port", "p1"), item("guest", "g1")])
    api.lose = 1  # removals go leaves first: the guest is started in the background, then the port's report is lost
    api.given = [{**item("port", "p1"), "spec": None}, {**item("query", "q1"), "spec": {"kind": "nothing"}}]
    end = run(Agent(api, place, Drivers(SimulatedHypervisor(place), SimulatedNetwork(place)), roles=["compute"]))
    try:
        until(lambda: any(o["kind"] == "query" for o in api.settled), "the query is answered")
    finally:
        end()


def test_engines_that_cannot_prune_do_not_stop_the_work(place: HostPlace, monkeypatch: pytest.MonkeyPatch) -> None:
    api = Api([item("guest", "g1")])
    hypervisor = SimulatedHypervisor(place)

    def broken(known: Any) -> Any:
        raise OSError("no space left on device")

    monkeypatch.setattr(hypervisor, "prune", broken)
    end = run(Agent(api, place, Drivers(hypervisor, SimulatedNetwork(place)), roles=["compute"]))
    try:
        until(lambda: api.settled, "the guest is reported")
    finally:
        end()


def test_a_failing_look_at_the_engines_is_tried_again(place: HostPlace, monkeypatch: pytest.MonkeyPatch) -> None:
    api = Api([item("guest", "g1")])
    hypervisor = SimulatedHypervisor(place)
    seen, real = [], hypervisor.capabilities

    def once() -> Any:
        seen.append(1)
        if len(seen) == 1:
            raise OSError("try later")
        return real()

    monkeypatch.setattr(hypervisor, "capabilities", once)
    end = run(Agent(api, place, Drivers(hypervisor, SimulatedNetwork(place)), roles=["compute"]))
    try:
        until(lambda: api.settled, "the guest is reported")
        assert len(seen) == 2
    finally:
        end()


@pytest.mark.parametrize("sent", [b"", b"x" * 10, b"x" * 99])
def test_a_download_that_breaks_off_leaves_nothing(tmp_path: Path, sent: bytes) -> None:
    path = tmp_path / "api.sock"
    server = socket.socket(socket.AF_UNIX)
    server.bind(str(path))
    server.listen(4)

    def serve(whole: bytes) -> None:
        connection = server.accept()[0]
        connection.recv(65536)
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n" + whole)
        connection.close()

    into = tmp_path / "image"
    try:
        for data in (sent, b"y" * 100):
            thread = threading.Thread(target=serve, args=(data,))
            thread.start()
            if data is sent:
                with pytest.raises(Unreachable):
                    HostApi(f"unix:{path}", "h1").download("/images/x", into)
                assert list(tmp_path.iterdir()) == [path]
            else:
                HostApi(f"unix:{path}", "h1").download("/images/x", into)
                assert into.read_bytes() == data
            thread.join()
    finally:
        server.close()


class Once(Api):
    """Hands out each of ``given`` once and notes what the agent says it holds."""

    def take(self, limit: int, wait_s: float, holding: Any = None) -> list[dict[str, Any]]:
        time.sleep(0.01)
        self.holding = holding
        return [self.given.pop(0)] if self.given else []


def test_what_is_given_out_again_while_it_is_done_is_done_again(
    place: HostPlace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a hello or a lost answer the same guest comes with a new token: it must not be dropped as busy."""
    api, hypervisor, go = Once([item("guest", "g1")]), SimulatedHypervisor(place), threading.Event()
    monkeypatch.setattr(hypervisor, "remove", lambda id: go.wait(10))
    end = run(Agent(api, place, Drivers(hypervisor, SimulatedNetwork(place)), roles=["compute"]))
    try:
        until(lambda: getattr(api, "holding", None) == [("guest", "g1", 1)], "the agent says what it holds")
        api.given.append({**item("guest", "g1"), "token": 2})
        until(lambda: not api.given and api.holding == [("guest", "g1", 2)], "it holds the newer one")
        go.set()
        until(lambda: {o["token"] for o in api.settled} == {1, 2}, "both are reported")
        until(lambda: api.holding == [], "nothing is held any more")
    finally:
        go.set()
        end()


def test_a_starting_agent_waits_for_its_predecessor_to_end(place: HostPlace) -> None:
    """A supervisor that died leaves an agent that is just ending: failing at once would mean back-off."""
    first, second = Api([]), Api([])
    make = [Agent(a, place, Drivers(None, SimulatedNetwork(place)), roles=["network"]) for a in (first, second)]
    end_first = run(make[0])
    until(lambda: first.greeted, "the first one works")
    end_second = run(make[1])
    try:
        assert not second.greeted
        end_first()
        until(lambda: second.greeted, "the second one takes over")
    finally:
        end_second()
