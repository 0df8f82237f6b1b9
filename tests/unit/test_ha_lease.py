"""Leases of highly available routers: never two holders, whatever is late, lost, stopped, or started again.

The control plane's half (ha_grant) and the hosts' half (ha_seat) play against a world that draws everything: delays
and losses of every message, cuts between any two parties, crashes of keepers and of the control plane, hosts whose
clocks run up to 1 % fast or slow, operators that add, remove and move. The gates are kept as the kernel keeps them: an
element with a timeout, renewed only while it is there.
"""

from __future__ import annotations

import heapq
import itertools
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nubila.agent import ha_seat
from nubila.agent.ha_seat import PROMISE_S, Seat
from nubila.services.network import ha_grant
from nubila.services.network.ha_grant import TTL_S, Lease, Scene

HOSTS = ("a", "b", "c")


@dataclass
class Host:
    """A host: its clock runs ``rate`` times as fast as the world's."""

    name: str
    rate: float
    seat: Seat
    open_until: float = 0.0  # in the world's time: the kernel's own timeout
    alive: bool = True
    busy_until: float = 0.0  # its process is stopped
    remembered: dict[int, tuple[str, ...]] = field(default_factory=dict)  # on its disk

    def clock(self, world: float) -> float:
        return 1000.0 + world * self.rate


@dataclass
class World:
    """Time, messages, and what goes wrong."""

    dice: random.Random
    hosts: dict[str, Host] = field(default_factory=dict)
    lease: Lease = field(default_factory=Lease)
    members: list[str] = field(default_factory=list)
    able: dict[str, float] = field(default_factory=dict)
    now: float = 0.0
    cut: set[frozenset[str]] = field(default_factory=set)
    control_up: bool = True
    todo: list[tuple[float, int, Callable[[], None]]] = field(default_factory=list)
    count: Any = field(default_factory=itertools.count)
    both: list[str] = field(default_factory=list)
    opened: int = 0
    epochs: list[int] = field(default_factory=list)
    calm: bool = False  # nothing is lost, late or put aside

    def at(self, delay: float, what: Callable[[], None]) -> None:
        heapq.heappush(self.todo, (self.now + delay, next(self.count), what))

    def send(self, one: str, other: str, what: Callable[[], None]) -> None:
        """A message that may be late, lost, or come twice."""
        if frozenset((one, other)) in self.cut:
            return
        if self.calm:
            self.at(self.dice.uniform(0.0005, 0.02), what)
            return
        if self.dice.random() < 0.05:
            return
        for _ in range(1 if self.dice.random() < 0.97 else 2):
            slow = self.dice.random() < 0.05
            self.at(self.dice.uniform(0.0005, 1.5 if slow else 0.02), what)

    def run(self, until: float) -> None:
        while self.todo and self.todo[0][0] <= until:
            self.now, _, what = heapq.heappop(self.todo)
            what()
            holders = [h.name for h in self.hosts.values() if h.open_until > self.now]
            if len(holders) > 1:
                self.both.append(f"{self.now:.3f}: {holders}")
        self.now = until

    # --- a host's life

    def start(self, host: Host) -> None:
        """A keeper starts: it knows nothing but the state of its gate."""
        now = host.clock(self.now)
        others = tuple(n for n in self.members if n != host.name)
        host.seat = Seat(host.name, others=others, term=int(self.now * 1000), seq=int(self.now * 1000))
        if host.open_until > self.now:
            host.seat.opened = True
            host.seat.lease_until = now + 0.3
            host.seat.told = dict(host.remembered)
        else:
            host.seat.quiet_until = now + PROMISE_S * 1.03 + 0.02
        host.alive = True

    def live(self, host: Host) -> None:
        """One round of a keeper, and the next one later."""
        self.at(self.dice.uniform(0.02, 0.06), lambda: self.live(host))
        if not host.alive or self.now < host.busy_until:
            return
        if not self.calm and self.dice.random() < 0.01:  # put aside by the scheduler, or stopped
            host.busy_until = self.now + self.dice.uniform(0.05, 1.2)
        seat, now = host.seat, host.clock(self.now)
        if seat.must_close(now):
            host.open_until = 0.0
            seat.close()
        elif seat.opened:
            if host.open_until <= self.now:
                seat.close()
            else:
                host.open_until = self.now + min(seat.deadline() - now, TTL_S) / host.rate
        elif seat.may_open(now):
            host.open_until = self.now + min(seat.deadline() - now, TTL_S) / host.rate
            seat.open()
            self.opened += 1
        if seat.prepare and not seat.opened:
            seat.ready = True
        if seat.opened and seat.told:
            host.remembered = {0: tuple(sorted(seat.needed()))}
        term = seat.asks()
        if term is not None:
            for other in sorted(seat.needed()):
                self.ask(host, other, term, now)

    def ask(self, host: Host, other: str, term: int, sent: float) -> None:
        def arrive() -> None:
            peer = self.hosts[other]
            if peer.alive and self.now >= peer.busy_until and peer.seat.asked(host.name, term, peer.clock(self.now)):
                self.send(other, host.name, lambda: host.seat.promise(other, term, sent) if host.alive else None)

        self.send(host.name, other, arrive)

    def claim(self, host: Host) -> None:
        """One call to the control plane, and the next one later."""
        self.at(self.dice.uniform(0.1, 0.2), lambda: self.claim(host))
        if not host.alive or self.now < host.busy_until:
            return
        seat, sent = host.seat, host.clock(self.now)
        asked = seat.claim(sent)

        def arrive() -> None:
            if not self.control_up:
                return
            me = host.name
            self.able[me] = self.now if asked["want"] and asked["fit"] else -10.0
            able = [h for h in self.members if self.now - self.able.get(h, -10.0) < 3.0]
            before = self.lease.epoch
            claim = ha_grant.parse(asked)
            self.lease, answer = ha_grant.decide(self.lease, claim, me, self.now, Scene(list(self.members), able))
            if self.lease.epoch != before:
                self.epochs.append(self.lease.epoch)
            born = seat
            self.send("control", me, lambda: self.answer(host, born, sent, vars(answer)))

        self.send(host.name, "control", arrive)

    def answer(self, host: Host, born: Seat, sent: float, answer: dict[str, Any]) -> None:
        if host.alive and host.seat is born:
            host.seat.answered(sent, host.clock(self.now), answer)

    # --- trouble

    def trouble(self) -> None:
        """Something happens, and the next thing later."""
        self.at(self.dice.uniform(0.05, 1.5), self.trouble)
        kind = self.dice.randrange(9)
        host = self.hosts[self.dice.choice(HOSTS)]
        parties = [*HOSTS, "control"]
        if kind == 0:
            self.cut.add(frozenset(self.dice.sample(parties, 2)))
        elif kind == 1 and self.cut:
            self.cut.remove(self.dice.choice(sorted(self.cut, key=sorted)))
        elif kind == 2:
            self.cut.clear()
        elif kind == 3 and host.alive:
            host.alive = False
            if self.dice.random() < 0.5:  # the whole machine
                host.open_until = 0.0
            self.at(self.dice.uniform(0.01, 3.0), lambda: self.start(host))
        elif kind == 4:
            self.control_up = not self.control_up
        elif kind == 5:
            host.seat.master = not host.seat.master
        elif kind == 6:
            host.seat.fit = self.dice.random() < 0.7
        elif kind == 7 and self.control_up:
            self.lease = ha_grant.move(self.lease, self.dice.choice(self.members), self.now)
        elif kind == 8 and self.control_up:
            self.members = sorted(self.dice.sample(HOSTS, self.dice.randint(1, 3)))


def play(seed: int, seconds: float = 40.0) -> World:
    """A world with three hosts, two of which have the router at first."""
    dice = random.Random(seed)
    world = World(dice, members=["a", "b"])
    for name in HOSTS:
        rate = dice.uniform(0.995, 1.005)
        world.hosts[name] = Host(name, rate, Seat(name))
        world.start(world.hosts[name])
        world.live(world.hosts[name])
        world.claim(world.hosts[name])
    world.hosts["a"].seat.master = True
    world.at(2.0, world.trouble)
    world.run(seconds)
    return world


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.integers(0, 2**63))
def test_there_are_never_two(seed: int) -> None:
    world = play(seed)
    assert not world.both
    assert world.epochs == sorted(set(world.epochs)), "every grant has a larger epoch"
    assert world.opened


@pytest.mark.parametrize(
    ("broken", "value"), [("ha_grant.MARGIN_S", -0.3), ("ha_seat.PROMISE_S", 1.2), ("kept", 0.0), ("known", 0.0)]
)
def test_the_play_finds_mistakes(broken: str, value: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """A protocol that is wrong in one place has two holders in some of these worlds."""
    if broken == "ha_grant.MARGIN_S":
        monkeypatch.setattr(ha_grant, "MARGIN_S", value)
    elif broken == "ha_seat.PROMISE_S":  # believed twice as long as it was given for
        given_for = PROMISE_S * 1.03
        original = Seat.asked

        def asked(self: Seat, host: str, term: int, now: float) -> bool:
            said = original(self, host, term, now)
            if said:
                self.given[host] = (term, now + given_for)
            return said

        monkeypatch.setattr(Seat, "asked", asked)
        monkeypatch.setattr(ha_seat, "PROMISE_S", value)
    elif broken == "kept":  # promises that nobody remembers
        promising = Seat.asked

        def forgetful(self: Seat, host: str, term: int, now: float) -> bool:
            said = promising(self, host, term, now)
            self.given.clear()
            return said

        monkeypatch.setattr(Seat, "asked", forgetful)
    else:  # grants to hosts that the last holder does not know of
        original_known = ha_grant._may_have

        def may_have(lease: Lease, *rest: Any) -> bool:
            return original_known(Lease(**{**vars(lease), "known": HOSTS}), *rest)

        monkeypatch.setattr(ha_grant, "_may_have", may_have)
    assert any(play(seed, 60.0).both for seed in range(400))


def calm(seconds: float = 3.0, names: tuple[str, ...] = ("a", "b")) -> World:
    """A world without trouble in which "a" forwards."""
    world = World(random.Random(1), members=list(names), calm=True)
    for name in names:
        world.hosts[name] = Host(name, 1.0, Seat(name))
        world.start(world.hosts[name])
        world.live(world.hosts[name])
        world.claim(world.hosts[name])
    world.hosts["a"].seat.master = True
    world.run(seconds)
    return world


def test_a_dead_host_is_succeeded_within_a_second() -> None:
    for seed in range(30):
        world = calm(3.0 + seed / 100)
        assert world.hosts["a"].open_until > world.now
        world.hosts["a"].alive = False
        world.hosts["a"].open_until = 0.0
        world.at(0.38, lambda world=world: setattr(world.hosts["b"].seat, "master", True))  # type: ignore[misc]
        died = world.now
        while world.hosts["b"].open_until <= world.now and world.now < died + 3:
            world.run(world.now + 0.01)
        assert world.now - died < 0.95
        assert not world.both


def test_a_control_plane_outage_alone_changes_nothing() -> None:
    world = calm()
    for up in (False, True):
        world.control_up = up
        for _ in range(1000):
            world.run(world.now + 0.01)
            assert world.hosts["a"].open_until > world.now
    assert world.hosts["b"].open_until < world.now
    assert world.lease.epoch == 1


def test_without_a_majority_nobody_forwards() -> None:
    world = calm()
    world.cut = {frozenset(("a", "b")), frozenset(("a", "control")), frozenset(("b", "control"))}
    world.run(world.now + 3)
    assert all(host.open_until < world.now for host in world.hosts.values())


def test_a_planned_move_takes_the_next_host_no_waiting() -> None:
    world = calm()
    world.lease = ha_grant.move(world.lease, "b", world.now)
    closed = opened = 0.0
    for _ in range(3000):
        world.run(world.now + 0.001)
        if not closed and world.hosts["a"].open_until <= world.now:
            closed = world.now
        if not opened and world.hosts["b"].open_until > world.now:
            opened = world.now
    assert 0 < opened - closed < 0.5
    assert not world.both
    assert world.lease.holder == "b"


@pytest.mark.req("C/L3HA-02")
def test_a_new_router_begins_where_it_should_unless_that_host_is_late() -> None:
    scene = Scene(members=("a", "b"), able=("a", "b"))
    fresh = ha_grant.lead(Lease(), "b", 100.0)
    asks = ha_grant.Claim(want=True, master=True, seq=1, knows=("b",))
    waiting, answer = ha_grant.decide(fresh, asks, "a", 100.1, scene)
    assert (waiting.holder, answer.epoch) == ("", 0)
    begun, answer = ha_grant.decide(waiting, ha_grant.Claim(want=True, seq=1, knows=("a",)), "b", 100.2, scene)
    assert (begun.holder, answer.epoch, begun.to, begun.to_until) == ("b", 1, "", 0.0)
    late, answer = ha_grant.decide(waiting, asks, "a", 100.1 + ha_grant.LEAD_S, scene)
    assert (late.holder, answer.epoch) == ("a", 1)
