"""BFD sessions without sockets: two ends find each other, notice when the other goes, ignore what is wrong."""

from __future__ import annotations

import pytest

from nubila.drivers.bfd import without
from nubila.drivers.bfd_session import Packet, Session, State, decode
from nubila.drivers.routes import Way


def talk(a: Session, b: Session, start: float, seconds: float, *, deaf: bool = False) -> None:
    """Let two ends talk; with ``deaf`` nothing arrives."""
    for step in range(round(seconds / 0.05)):
        now = start + step * 0.05
        for one, other in ((a, b), (b, a)):
            sent = one.tick(now)
            while sent is not None and not deaf:
                arrived = decode(sent.encode())
                assert arrived is not None
                sent = other.receive(arrived, now)
                one, other = other, one


def test_two_ends_come_up_and_notice_silence() -> None:
    a, b = Session(1, 0.0), Session(2, 0.0)
    talk(a, b, 0.0, 4.0)
    assert (a.state, b.state) == (State.UP, State.UP)
    assert not a._polling, "the other end agreed to the new pace"
    talk(a, b, 4.0, 0.5, deaf=True)
    assert a.state == State.UP
    talk(a, b, 4.5, 0.8, deaf=True)
    assert (a.state, b.state, a.was_up) == (State.DOWN, State.DOWN, True)
    talk(a, b, 5.3, 4.0)
    assert (a.state, b.state) == (State.UP, State.UP)
    anew = Session(3, 9.3).tick(9.3)
    assert anew is not None
    a.receive(anew, 9.3)
    assert a.state == State.DOWN, "somebody who began anew is noticed at once"


def test_a_neighbour_that_is_switched_off_is_down() -> None:
    a, b = Session(1, 0.0), Session(2, 0.0)
    talk(a, b, 0.0, 4.0)
    a.receive(Packet(state=State.ADMIN_DOWN, mine=2, yours=1, desired_s=1, required_s=1), 4.0)
    assert a.state == State.DOWN


@pytest.mark.parametrize("spoil", ["short", "version", "multiplier", "discriminator", "nobody", "auth"])
def test_wrong_packets_are_ignored(spoil: str) -> None:
    raw = bytearray(Packet(state=State.UP, mine=7, yours=9, desired_s=0.3, required_s=0.3).encode())
    assert decode(bytes(raw)) is not None
    if spoil == "short":
        raw = raw[:20]
    elif spoil == "version":
        raw[0] = 0
    elif spoil == "multiplier":
        raw[2] = 0
    elif spoil == "discriminator":
        raw[4:8] = bytes(4)
    elif spoil == "nobody":
        raw[8:12] = bytes(4)  # only who is down need not know us
    else:
        raw[1] |= 4
    assert decode(bytes(raw)) is None


def test_packets_for_another_session_change_nothing() -> None:
    a = Session(1, 0.0)
    assert a.receive(Packet(state=State.INIT, mine=7, yours=9, desired_s=1, required_s=1), 0.1) is None
    assert a.state == State.DOWN


def test_only_default_routes_by_hops_that_are_down_go() -> None:
    wanted = [("0.0.0.0/0", "10.0.0.1"), ("0.0.0.0/0", "10.0.0.2"), ("192.0.2.0/24", "10.0.0.1"), ("::/0", "fd00::1")]
    left, ways = without(wanted, [Way(hops=("10.0.0.1",), mark=256)], {"10.0.0.1", "fd00::1"})
    assert left == [("0.0.0.0/0", "10.0.0.2"), ("192.0.2.0/24", "10.0.0.1")]
    assert (ways[0].hops, ways[0].mark) == ((), 256)
