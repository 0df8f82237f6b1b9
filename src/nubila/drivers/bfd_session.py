"""One BFD session: the state machine and the packets, without sockets or clock (RFC 5880; single hop, RFC 5881).

Asynchronous mode without echo and authentication. Times are seconds of a monotonic clock that the caller reads.
"""

from __future__ import annotations

import enum
import random
import struct

from msgspec import Struct

PORT = 3784
INTERVAL_S, SLOW_S, MULTIPLIER = 0.3, 1.0, 3
_FORMAT = struct.Struct("!BBBBIIIII")
_POLL, _FINAL, _AUTH, _MULTIPOINT = 0x20, 0x10, 0x04, 0x01
_TIME_EXPIRED, _NEIGHBOUR_DOWN, _ADMIN_DOWN = 1, 3, 7


class State(enum.IntEnum):
    """RFC 5880 section 4.1."""

    ADMIN_DOWN = 0
    DOWN = 1
    INIT = 2
    UP = 3


class Packet(Struct, frozen=True, kw_only=True):
    """A control packet."""

    state: State
    mine: int  # the sender's discriminator
    yours: int
    desired_s: float
    required_s: float
    multiplier: int = MULTIPLIER
    diagnostic: int = 0
    poll: bool = False
    final: bool = False

    def encode(self) -> bytes:
        """On the wire."""
        flags = (_POLL if self.poll else 0) | (_FINAL if self.final else 0)
        return _FORMAT.pack(
            1 << 5 | self.diagnostic, self.state << 6 | flags, self.multiplier, _FORMAT.size, self.mine, self.yours,
            round(self.desired_s * 1e6), round(self.required_s * 1e6), 0,
        )  # fmt: skip


def decode(data: bytes) -> Packet | None:
    """A control packet from the wire; None for one that must be ignored (RFC 5880 section 6.8.6)."""
    if len(data) < _FORMAT.size:
        return None
    first, second, multiplier, length, mine, yours, desired, required, _ = _FORMAT.unpack_from(data)
    bad = first >> 5 != 1 or not _FORMAT.size <= length <= len(data) or not multiplier or not mine
    if bad or second & (_AUTH | _MULTIPOINT) or (not yours and second >> 6 not in (State.DOWN, State.ADMIN_DOWN)):
        return None
    return Packet(
        state=State(second >> 6), mine=mine, yours=yours, desired_s=desired / 1e6, required_s=required / 1e6,
        multiplier=multiplier, diagnostic=first & 0x1F, poll=bool(second & _POLL), final=bool(second & _FINAL),
    )  # fmt: skip


class Session:
    """Our end of a session with one neighbour."""

    def __init__(self, discriminator: int, now: float) -> None:
        self.state = State.DOWN
        self.was_up = False
        self.next = now  # when a packet is due
        self._mine, self._yours = discriminator, 0
        self._heard = now
        self._remote = Packet(state=State.DOWN, mine=0, yours=0, desired_s=SLOW_S, required_s=0.001)
        self._diagnostic = 0
        self._polling = False

    def receive(self, packet: Packet, now: float) -> Packet | None:
        """Take a packet in; the answer that must be sent at once, if any."""
        if packet.yours and packet.yours != self._mine:
            return None
        self._remote, self._yours, self._heard = packet, packet.mine, now
        if packet.final:
            self._polling = False
        before = self.state
        if packet.state == State.ADMIN_DOWN:
            self._become(State.DOWN, _NEIGHBOUR_DOWN)
        elif self.state == State.DOWN:
            if packet.state == State.DOWN:
                self._become(State.INIT)
            elif packet.state == State.INIT:
                self._become(State.UP)
        elif self.state == State.INIT and packet.state in (State.INIT, State.UP):
            self._become(State.UP)
        elif self.state == State.UP and packet.state == State.DOWN:
            self._become(State.DOWN, _NEIGHBOUR_DOWN)
        if self.state != before:
            self.next = now
        return self._packet(final=True) if packet.poll else None

    def tick(self, now: float) -> Packet | None:
        """Let time pass; the periodic packet when it is due."""
        if self.state in (State.INIT, State.UP) and now - self._heard > self._patience():
            self._become(State.DOWN, _TIME_EXPIRED)
            self._yours = 0
        if now < self.next:
            return None
        # Jitter of up to 25 %, so that neighbours do not fall into step (section 6.8.7).
        self.next = now + max(self._interval(), self._remote.required_s) * random.uniform(0.75, 1.0)
        return self._packet()

    def _become(self, state: State, diagnostic: int = 0) -> None:
        if state != self.state:
            self.state, self._diagnostic = state, diagnostic
            self._polling = state == State.UP  # we send faster now: the other end must agree
            self.was_up = self.was_up or state == State.UP

    def _interval(self) -> float:
        return INTERVAL_S if self.state == State.UP else SLOW_S

    def _patience(self) -> float:
        return self._remote.multiplier * max(INTERVAL_S, self._remote.desired_s)

    def _packet(self, *, final: bool = False) -> Packet:
        return Packet(
            state=self.state, mine=self._mine, yours=self._yours, desired_s=self._interval(), required_s=INTERVAL_S,
            diagnostic=self._diagnostic, poll=self._polling and not final, final=final,
        )  # fmt: skip
