"""Who may forward for a highly available router: the control plane's half of the protocol (ADR 7), without a database.

A router has one lease. Its holder renews it every fifth of a second; another host gets it only when it was given back,
or has surely run out: the control plane counts from when it answered, the holder from when it asked, and there is
``MARGIN_S`` between them. Every grant has a larger epoch than the one before.

A host may also go on without the control plane when every other host that might be granted the lease has promised not
to take it. So a grant goes only to hosts that the last holder knew of (``known``): those keep their promises. A new
host waits until the holder has renewed once and knows it, or has given the lease back.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace

TTL_S = 0.5
"""How long a granted lease is good, from when the holder asked."""
MARGIN_S = 0.06
"""How much longer the control plane waits: clocks that differ by 1 %, and a kernel that wakes up late."""
PATIENCE_S = 0.2
"""How long a lease that nobody holds is kept for the VRRP master before any host may have it."""
MOVE_S = 3.0
"""How long a planned move may take before it is given up."""
LEAD_S = 3.0
"""How long a new router waits for the host that is to forward first."""


@dataclass(frozen=True)
class Lease:
    """One router's row. Times are the database's clock in seconds."""

    holder: str = ""
    epoch: int = 0
    until: float = 0.0  # the holder believes it is the holder until then, at most
    known: tuple[str, ...] = ()  # the hosts the holder asks for promises
    freed: str = ""  # who gave it back last, closed for good
    freed_term: int = 0  # and the number of that holder's claim: promises made to it up to this one are void
    seq: int = 0  # of the holder's last claim: one that comes later and is older says nothing
    to: str = ""  # where it is being moved to
    to_until: float = 0.0
    ready: bool = False  # that host has everything but the lease


@dataclass(frozen=True)
class Claim:
    """What a host says of its part in one router."""

    want: bool = False  # it could forward
    open: bool = False  # its gate is, or may still be, open
    master: bool = False  # it is the VRRP master
    fit: bool = True  # its links are up
    bound: bool = False  # it has promised another host not to take over
    term: int = 0  # grows with every time it opens its gate
    ready: bool = False  # prepared to take over in a planned move
    seq: int = 0  # grows with every claim of the host
    knows: tuple[str, ...] = ()  # the hosts it asks for promises


@dataclass(frozen=True)
class Answer:
    """What it is told."""

    seq: int = 0  # of the claim that is answered
    epoch: int = 0  # of its lease; 0: it has none
    ttl_s: float = 0.0
    holder: str = ""  # "" when nobody holds it
    members: tuple[str, ...] = ()
    freed: str = ""
    freed_term: int = 0
    prepare: bool = False  # get ready: the lease is coming
    give_back: bool = False  # close, and say so
    to: str = ""  # who gets it then


@dataclass(frozen=True)
class Scene:
    """What else counts: who belongs to the router now, and which of them could take over at once."""

    members: Collection[str]
    able: Collection[str] = field(default=())  # seen lately and fit, in the order of preference


def decide(lease: Lease, claim: Claim, me: str, now: float, scene: Scene) -> tuple[Lease, Answer]:
    """One host's claim to one router: the lease afterwards, and the answer."""
    if lease.to and now > lease.to_until:
        lease = replace(lease, to="", ready=False)
    if lease.holder == me and claim.seq <= lease.seq:
        return lease, Answer(seq=claim.seq, holder=me, members=tuple(sorted(scene.members)))
    if lease.holder == me:
        lease = _holder(lease, claim, me, now, scene)
    elif lease.to == me:
        lease = replace(lease, ready=claim.ready)
    if lease.holder != me and _may_have(lease, claim, me, now, scene):
        lease = replace(
            lease, holder=me, epoch=lease.epoch + 1, until=now + TTL_S, known=tuple(claim.knows), to="", ready=False,
            seq=claim.seq, to_until=lease.to_until if lease.epoch else 0.0,  # nobody hands on anything at the first
        )  # fmt: skip
    mine = lease.holder == me and lease.until == now + TTL_S
    return lease, Answer(
        seq=claim.seq,
        epoch=lease.epoch if mine else 0,
        ttl_s=TTL_S if mine else 0.0,
        holder=lease.holder if lease.holder and not _over(lease, now) else "",
        members=tuple(sorted(scene.members)),
        freed=lease.freed,
        freed_term=lease.freed_term,
        prepare=lease.to == me and lease.holder != me,
        give_back=mine and bool(lease.to) and lease.ready,
        to=lease.to,
    )


def _holder(lease: Lease, claim: Claim, me: str, now: float, scene: Scene) -> Lease:
    moving = bool(lease.to) and lease.ready
    if not claim.open and (not claim.want or moving or me not in scene.members):  # closed, and meant to stay so
        return replace(lease, holder="", until=now, freed=me, freed_term=claim.term)
    if not claim.want:  # about to close
        return lease
    lease = replace(lease, until=now + TTL_S, known=tuple(claim.knows), seq=claim.seq)
    better = next((host for host in scene.able if host != me), "")
    if better and not lease.to and (not claim.fit or me not in scene.members):
        lease = replace(lease, to=better, to_until=now + MOVE_S, ready=not claim.fit)
    return lease


def _over(lease: Lease, now: float) -> bool:
    return not lease.holder or lease.until + MARGIN_S <= now


def _may_have(lease: Lease, claim: Claim, me: str, now: float, scene: Scene) -> bool:
    if not (claim.want and me in scene.members and _over(lease, now)):
        return False
    if lease.holder and (me not in lease.known or claim.bound):  # run out, not given back: it may be open by promises
        return False
    if lease.to:
        return lease.to == me or now > lease.until + PATIENCE_S
    if not claim.fit and any(host != me for host in scene.able):
        return False
    return claim.master or now > lease.until + PATIENCE_S


def move(lease: Lease, to: str, now: float) -> Lease:
    """Have the lease moved to a host without losing a packet."""
    return replace(lease, to=to, to_until=now + MOVE_S, ready=False) if to != lease.holder else lease


def lead(lease: Lease, to: str, now: float) -> Lease:
    """Have a router that nobody has held yet begin on a host; any other may have it when that one is late."""
    return replace(lease, to=to, to_until=now + LEAD_S, until=now + LEAD_S)


def state(lease: Lease | None, host: str) -> str:
    """The ``ha_state`` of a host."""
    return "active" if lease is not None and lease.holder == host else "standby"


def parse(asked: Mapping[str, object]) -> Claim:
    """A claim as it came from a host; ValueError when it has another form."""
    knows, term, seq = asked.get("knows") or (), asked.get("term") or 0, asked.get("seq") or 0
    if not isinstance(knows, (list, tuple)) or not all(isinstance(k, str) for k in knows) or len(knows) > 64:
        raise ValueError("knows must be a list of host names")
    if not all(isinstance(n, int) and not isinstance(n, bool) and 0 <= n < 2**62 for n in (term, seq)):
        raise ValueError("term and seq must be whole numbers")
    flags = {name: asked.get(name, name == "fit") for name in ("want", "open", "master", "fit", "ready", "bound")}
    if not all(isinstance(value, bool) for value in flags.values()):
        raise ValueError(f"{', '.join(flags)} are true or false")
    return Claim(**flags, term=term, seq=seq, knows=tuple(knows))  # type: ignore[arg-type]  # checked above
