"""The gate of a highly available router in a real kernel: what passes, for how long, and who can open it."""

from __future__ import annotations

import json
import socket
import subprocess
import uuid
from collections.abc import Iterator

import pytest
from network_world import until

from nubila.drivers import ha_gate, links
from nubila.drivers.ha_gate import Gate, Held, Injector
from nubila.drivers.ha_neighbours import Neighbours, Sender, retry_quickly
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
        until(lambda: all(map(self._running, (self.router, self.neighbour))), "the kernel has put the link to use")

    @staticmethod
    def _running(namespace: str) -> bool:
        """Until then, which may take a second on a busy machine, what is sent is dropped without a word."""
        with links.entered(namespace):
            said = subprocess.run(["ip", "-j", "link", "show", "qg-x"], capture_output=True, timeout=10).stdout
        return bool(json.loads(said)[0]["operstate"] == "UP")

    def pings(self) -> bool:
        with links.entered(self.neighbour):
            argv = ["ping", "-c", "1", "-W", "1", "10.9.0.1"]
            return subprocess.run(argv, capture_output=True, timeout=10).returncode == 0

    def answers(self) -> bool:
        """Whether it can be reached: the first request of all may take longer than a ping waits."""
        until(self.pings, "an answer", 60)
        return True

    def knows(self, namespace: str = "") -> str:
        with links.entered(namespace or self.neighbour):
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
    assert pair.gate.open(30)
    assert pair.answers()
    assert pair.gate.renew(0.3)
    until(lambda: not pair.gate.is_open(), "nobody renewed it")
    assert not pair.gate.renew(5), "what ran out stays closed"
    assert not pair.pings()


def test_renewals_last_and_closing_is_at_once(pair: Pair) -> None:
    assert pair.gate.open(0.3)
    assert pair.gate.renew(30)
    assert pair.answers()
    with links.entered(pair.router):
        ha_gate.ensure(["qg-x"])  # as the agent does at every sweep
    assert pair.answers()
    assert pair.gate.close()
    assert pair.gate.close(), "closed already is success"
    assert not pair.pings()


def test_not_even_packet_sockets_get_out(pair: Pair) -> None:
    announce(pair.router, "qg-x", "fa:16:3e:00:00:01", ["10.9.0.1/24"])
    pair.pings()
    assert "fa:16:3e:00:00:01" not in pair.knows()
    assert pair.gate.open(30)
    assert pair.answers()
    assert "fa:16:3e:00:00:01" in pair.knows()


def test_what_arrives_after_the_close_is_handed_on(pair: Pair) -> None:
    assert pair.gate.open(30)
    assert pair.answers()
    held = Held(pair.router, {"fa:16:3e:00:00:01": "qg-x"})
    assert pair.gate.hold(30)
    assert not pair.pings(), "what arrives is held from now on, the gate being open"
    assert held.frames()
    assert pair.gate.close()
    with links.entered(pair.neighbour):
        argv = ["ping", "-c", "3", "-i", "0.2", "-W", "20", "10.9.0.1"]
        child = subprocess.Popen(argv, stdout=subprocess.PIPE, text=True)
    frames: list[bytes] = []
    until(lambda: len(frames.extend(held.frames()) or frames) >= 3, "three requests")  # type: ignore[func-returns-value]
    assert pair.gate.open(30)
    injector = Injector(pair.neighbour, {"fa:16:3e:00:00:01": "qg-x"})
    assert all(injector.put(frame) for frame in frames)
    assert not injector.put(b"\xff" * 60)
    out, _ = child.communicate(timeout=60)
    assert "3 received" in out
    injector.end()
    held.end()
    assert pair.answers(), "and the gate is as it was"


def test_neighbours_are_handed_on(pair: Pair) -> None:
    assert pair.gate.open(30)
    assert pair.answers()
    here = Neighbours(pair.router)
    (known,) = here.known(["qg-x"])
    assert known[:2] == ("qg-x", "10.9.0.2")
    assert here.known(["lo", "absent"]) == []
    there = [
        ("qg-x", f"10.9.{i // 250}.{i % 250 + 3}", f"fa:16:3e:00:{i // 250 + 1:02x}:{i % 250:02x}") for i in range(300)
    ]
    wrong = [("absent", "10.9.0.9", "fa:16:3e:00:00:09"), ("qg-x", "nonsense", "x"), ("qg-x", "10.9.1.1", "01" * 6)]
    here.put([*wrong, *there, ("qg-x", "fd00::9", "fa:16:3e:00:00:09"), ("qg-x", "10.9.0.3", "fa:16:3e:00:00:03")])
    seen = pair.knows(pair.router)
    assert "10.9.0.3 dev qg-x lladdr fa:16:3e:00:00:03 STALE" in seen, "a later word counts"
    assert "fd00::9 dev qg-x lladdr fa:16:3e:00:00:09 STALE" in seen
    assert set(there[1:]) <= set(here.known(["qg-x"]))
    here.close()


def test_switches_are_shown_something_new_each_time(pair: Pair) -> None:
    with links.entered(pair.neighbour):
        heard = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(0x8035))
    heard.bind(("qg-x", 0x8035))
    heard.settimeout(0.3)
    sender = Sender(pair.router)
    sender.show([("qg-x", "fa:16:3e:00:00:01")])
    with pytest.raises(TimeoutError):
        heard.recv(100)  # the gate is closed
    assert pair.gate.open(30)
    heard.settimeout(20)
    frames = []
    for _ in range(20):
        sender.show([("qg-x", "fa:16:3e:00:00:01"), ("absent", "fa:16:3e:00:00:02")])
        frames.append(heard.recv(100))
    heard.close()
    sender.close()
    assert {frame[6:12].hex(":") for frame in frames} == {"fa:16:3e:00:00:01"}
    assert all(frame[0] & 1 for frame in frames), "groups: they reach every switch"
    assert len({frame[:6] for frame in frames}) == 20


def test_a_standby_says_nothing_about_connections(pair: Pair) -> None:
    """qg-x is the device of the HA network here."""
    with links.entered(pair.router):
        ha_gate.ensure([])
        ha_gate.quiet("qg-x", 3780)
        ha_gate.quiet("qg-x", 3780)
        ha_gate.quiet("qg-x", 3780, anew=True)
        sender = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    with links.entered(pair.neighbour):
        sync, other = (socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in range(2))
    sync.bind(("10.9.0.2", 3780))
    other.bind(("10.9.0.2", 3781))
    for one in (sync, other):
        one.settimeout(20)
    sender.sendto(b"closed", ("10.9.0.2", 3780))
    sender.sendto(b"passes", ("10.9.0.2", 3781))
    assert other.recv(10) == b"passes"
    assert pair.gate.open(30)
    sender.sendto(b"open", ("10.9.0.2", 3780))
    assert sync.recv(10) == b"open"
    for one in (sender, sync, other):
        one.close()


def test_who_does_not_answer_is_asked_again_soon(pair: Pair) -> None:
    retry_quickly(pair.router, ["qg-x", "absent"])
    with links.entered(pair.router):
        assert int(links.sysctl("net/ipv4/neigh/qg-x/retrans_time_ms")) < 300
        assert links.sysctl("net/ipv6/neigh/qg-x/mcast_solicit") == "12"
