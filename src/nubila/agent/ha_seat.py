"""One host's half of the lease protocol for one highly available router (ADR 7): pure, no clock, no network.

The gate is opened by the control plane's lease alone. Once open it may stay so until :meth:`Seat.deadline`: the lease,
or the promises of *all* other hosts that could be granted it, whichever lasts longer. A promise is not to take over for
a while; who promised waits, who is open or has been granted the lease promises nothing. So of any two hosts at most one
is open, whatever is lost, late, stopped or started again. Times are this host's own clock (seconds); clocks may run up
to 1 % apart.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

FOREVER = float("inf")
NEVER = float("-inf")
DRIFT = 0.01
SLACK_S = 0.01
PROMISE_S = 0.5
"""How long a promise holds, from when it was asked for."""
LEAST_S = 0.05
"""A lease with less left is not worth opening for."""


@dataclass
class Seat:
    """What one host knows of one router's lease."""

    me: str
    others: tuple[str, ...] = ()  # hosts that may be granted the lease besides us
    up: bool = True  # the router is switched on
    fit: bool = True  # our links are there
    master: bool = False  # we are the VRRP master
    term: int = 0  # how often we opened; what was promised to an earlier term is worth nothing
    epoch: int = 0
    opened: bool = False
    lease_until: float = NEVER
    told: dict[int, tuple[str, ...]] = field(default_factory=dict)  # claim -> the hosts it said we ask; see needed
    promised: dict[str, float] = field(default_factory=dict)  # host -> until when it will not take over
    given: dict[str, tuple[int, float]] = field(default_factory=dict)  # host -> (its term, until when we will not)
    quiet_until: float = NEVER  # we may have promised something before we were started
    control_seen: float = NEVER
    answered_seq: int = 0  # the newest claim that was answered
    closed_seq: int = 0  # the last claim that said: closed
    seq: int = 0  # of the last claim
    holder: str = ""  # who the control plane says holds it
    give_back: bool = False
    to: str = ""  # who gets it when we give it back
    busy: bool = False  # and that has to wait a moment: what still arrives then cannot be handed on yet
    prepare: bool = False
    ready: bool = False

    def deadline(self) -> float:
        """Until when the gate may be open."""
        if not self.up or (self.give_back and not self.busy):
            return NEVER
        until = self.lease_until
        if self.opened and self.told:  # going on, not taking over
            needed = self.needed()
            until = max(until, min((self.promised.get(host, NEVER) for host in needed), default=FOREVER))
        return until

    def needed(self) -> set[str]:
        """Whose promises we need: everybody that the control plane may believe we ask."""
        return {host for known in self.told.values() for host in known}

    def barred(self, now: float) -> bool:
        """Whether something that we promised, or may have promised, keeps us from opening."""
        return now < self.quiet_until or any(now < until for _, until in self.given.values())

    def may_open(self, now: float) -> bool:
        """Whether a closed gate may be opened."""
        return not self.opened and self.deadline() > now + LEAST_S and not self.barred(now)

    def must_close(self, now: float) -> bool:
        """Whether an open gate must be closed."""
        return self.opened and self.deadline() <= now

    def open(self) -> None:
        """The gate has been opened."""
        self.opened, self.ready, self.prepare = True, False, False
        self.term += 1

    def close(self) -> None:
        """The gate has been closed: whatever it was open by is used up, answers on their way included."""
        self.opened = False
        self.promised.clear()
        self.told.clear()
        self.lease_until, self.closed_seq = NEVER, self.seq + 1

    # --- the control plane

    def claim(self, now: float) -> dict[str, Any]:
        """What to tell the control plane."""
        self.seq += 1
        if not self.opened:  # our word: nothing that was granted before opens the gate any more
            self.lease_until, self.closed_seq = NEVER, self.seq
        if (self.told or not self.opened) and self.others != next(reversed(self.told.values()), None):
            self.told[self.seq] = self.others
        return {
            "seq": self.seq, "want": self.up, "open": self.opened, "master": self.master, "fit": self.fit,
            "bound": any(now < until for _, until in self.given.values()), "term": self.term, "ready": self.ready,
            "knows": list(self.others),
        }  # fmt: skip

    def answered(self, sent: float, now: float, answer: Mapping[str, Any]) -> None:
        """The control plane answered a claim that was sent then."""
        seq = int(answer["seq"])
        if seq <= self.answered_seq:  # overtaken by a newer one
            return
        self.answered_seq, self.control_seen = seq, now
        self.others = tuple(str(host) for host in answer["members"] if host != self.me)
        self.holder = str(answer["holder"])
        self.give_back = bool(answer["give_back"])
        self.prepare = bool(answer["prepare"])
        if self.give_back:
            self.to = str(answer["to"])
        term, until = self.given.get(str(answer["freed"]), (0, NEVER))
        if until > NEVER and term <= int(answer["freed_term"]):
            del self.given[str(answer["freed"])]
        if answer["epoch"] and seq >= self.closed_seq:
            self.epoch = int(answer["epoch"])
            self.lease_until = sent + float(answer["ttl_s"]) * (1 - DRIFT) - SLACK_S
            said = max((n for n in self.told if n <= seq), default=seq)
            self.told = {n: known for n, known in self.told.items() if n >= said}
        elif self.holder not in ("", self.me):  # somebody else was granted it: he waits for promises that we hold
            self.lease_until, self.epoch = NEVER, 0
            self.promised.clear()

    # --- the other hosts

    def asks(self) -> int | None:
        """The term to ask promises for, None when there is nothing to ask for: who is closed does not ask."""
        return self.term if self.up and self.opened and not self.give_back and self.needed() else None

    def asked(self, host: str, term: int, now: float) -> bool:
        """Another host asks us not to take over; whether we promise."""
        if self.opened or self.lease_until > now or host not in self.others:
            return False
        known, until = self.given.get(host, (0, NEVER))
        if term < known:
            return False
        self.given[host] = (term, max(until, now + PROMISE_S * (1 + 2 * DRIFT) + SLACK_S))
        return True

    def promise(self, host: str, term: int, sent: float) -> None:
        """Another host promised what we asked it for then."""
        if self.opened and term == self.term:
            until = sent + PROMISE_S * (1 - DRIFT) - SLACK_S
            self.promised[host] = max(until, self.promised.get(host, NEVER))

    # --- VRRP

    def standing(self) -> int:
        """What is added to the VRRP priority: nobody takes the addresses from who forwards."""
        if self.opened:
            return 0 if self.master else 10
        return -10 if self.holder not in ("", self.me) or self.given else 0
