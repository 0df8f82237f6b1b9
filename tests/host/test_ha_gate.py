"""The gate of a highly available router in a real kernel: what passes, for how long, and who can open it."""

from __future__ import annotations

import subprocess
import uuid
from collections.abc import Iterator

import pytest
from network_world import until

from nubila.drivers import ha_gate, links
from nubila.drivers.ha_gate import Gate, Held, Injector
from nubila.drivers.router import announce

pytestmark = pytest.mark.host


class Pair:
    """A router's namespace with qg-x, and a neighbour."""

    def __init__(self) -> None:
        self.router, self.neighbour = (f"nbh-{uuid.uuid4().hex[:8]}" for _ in range(2))
        for name in (self.router, self.neighbour):
            links.ensure_namespace(name, "nubila test")
        with links.opened(self.neighbour) as net:
            net.add_veth("qg-x", self.router, "fa:16:3e:00:00:01")
            net.change(net.must("qg-x"), up=True)
            net.add_address(net.must("qg-x").index, "10.9.0.2/24")
        with links.opened(self.router) as net:
            ha_gate.ensure(["qg-x"])
            net.change(net.must("qg-x"), up=True)
            net.add_address(net.must("qg-x").index, "10.9.0.1/24")
        self.gate = Gate(self.router)

    def pings(self) -> bool:
        with links.entered(self.neighbour):
            argv = ["ping", "-c", "1", "-W", "1", "10.9.0.1"]
            return subprocess.run(argv, capture_output=True, timeout=10).returncode == 0

    def knows(self) -> str:
        with links.entered(self.neighbour):
            return subprocess.run(["ip", "neigh"], capture_output=True, text=True, timeout=10).stdout

    def close(self) -> None:
        self.gate.close_socket()
        for name in (self.router, self.neighbour):
            links.remove_namespace(name)


@pytest.fixture
def pair() -> Iterator[Pair]:
    made = Pair()
    yield made
    made.close()


def test_it_is_closed_at_first_and_closes_by_itself(pair: Pair) -> None:
    assert not pair.pings()
    assert not pair.gate.renew(5), "what is not open cannot be renewed"
    assert pair.gate.open(0.6)
    assert pair.pings()
    until(lambda: not pair.gate.is_open(), "nobody renewed it")
    assert not pair.gate.renew(5), "what ran out stays closed"
    assert not pair.pings()


def test_renewals_last_and_closing_is_at_once(pair: Pair) -> None:
    assert pair.gate.open(0.3)
    assert pair.gate.renew(30)
    assert pair.pings()
    with links.entered(pair.router):
        ha_gate.ensure(["qg-x"])  # as the agent does at every sweep
    assert pair.pings()
    assert pair.gate.close()
    assert pair.gate.close(), "closed already is success"
    assert not pair.pings()


def test_not_even_packet_sockets_get_out(pair: Pair) -> None:
    announce(pair.router, "qg-x", "fa:16:3e:00:00:01", ["10.9.0.1/24"])
    pair.pings()
    assert "fa:16:3e:00:00:01" not in pair.knows()
    pair.gate.open(30)
    assert pair.pings()
    assert "fa:16:3e:00:00:01" in pair.knows()


def test_what_arrives_after_the_close_is_handed_on(pair: Pair) -> None:
    pair.gate.open(30)
    assert pair.pings()
    held = Held(pair.router, {"fa:16:3e:00:00:01": "qg-x"})
    pair.gate.hold(10)
    pair.gate.close()
    with links.entered(pair.neighbour):
        argv = ["ping", "-c", "3", "-i", "0.2", "-W", "5", "10.9.0.1"]
        child = subprocess.Popen(argv, stdout=subprocess.PIPE, text=True)
    frames: list[bytes] = []
    until(lambda: len(frames.extend(held.frames()) or frames) >= 3, "three requests")  # type: ignore[func-returns-value]
    pair.gate.open(30)
    injector = Injector(pair.neighbour, {"fa:16:3e:00:00:01": "qg-x"})
    assert all(injector.put(frame) for frame in frames)
    assert not injector.put(b"\xff" * 60)
    out, _ = child.communicate(timeout=20)
    assert "3 received" in out
    injector.end()
    held.end()
    assert pair.pings(), "and the gate is as it was"
