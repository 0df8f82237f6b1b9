"""Die at every point, interfere at every point, stall at every point: deterministic nets for anything on the queue.

A *play* is a story (what users do, one request a step), the reconcilers that make it true, and a judge. A *point* is
every SQL statement, every begin and commit, and every call of a driver that was passed through ``Scene.watch`` (before
and after it). For n = 0, 1, 2 ... the play is performed with one accident at its n-th point, everything is brought to
rest, and after each step the judge must find everything as the rows say, as without the accident:

- **die**: the process is gone; leases run out, a new one starts from the database and the disk. The user, who got no
  answer, does not ask again.
- **an intruder** by name: another user's request is answered exactly there.
- **stall**: the worker loses its lease there without noticing: an intruder, then a second process that works until
  nothing is due, and only then the first one goes on where it stood.

Where the accident can not happen (the row is locked) it happens at the next point where it can. No sleeping, no luck:
whatever waits (``settle(again=...)``) is made due at once when nothing else is left, which is what time would do.
"""

from __future__ import annotations

import random
import shutil
import tempfile
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar, cast

import sqlalchemy as sa

from nubila.core import quota, work
from nubila.core.db import Store
from nubila.core.reconcile import Reconciler, turn
from nubila.core.sql import Busy, now

T = TypeVar("T")
Cast = Mapping[str, Mapping[str, Reconciler] | Callable[[], bool]]
"""shard -> kind -> reconciler: everything that works on the queue. A worker that has its own way of taking and
settling (an agent behind its API) is a function instead: one take, and whether there was anything."""


class Die(BaseException):
    """The process ends here; nothing may catch it."""


class Scene:
    """One performance: the store, a directory that survives deaths, and the count of points passed.

    ``memory`` is what the living process holds: a death empties it. ``notes`` is what users and judge remember.
    """

    def __init__(self, store: Store, directory: Path) -> None:
        self.store = store
        self.dir = directory
        self.passed: list[str] = []
        self.memory: dict[str, Any] = {}
        self.notes: dict[str, Any] = {}
        self.happened = False
        self._at: int | None = None
        self._accident: Callable[[], bool] | None = None
        self._nested = False

    def point(self, name: str) -> None:
        """Pass a point; drivers with steps worth dying between may call this themselves."""
        if self._nested:
            return
        self.passed.append(name)
        if self._accident is None or self._at is None or len(self.passed) <= self._at:
            return
        self._nested = True
        try:
            if self._accident():
                self._accident = None
                self.happened = True
        except Die:
            self._accident = None
            self.happened = True
            raise
        finally:
            self._nested = False

    def watch(self, driver: T, name: str = "") -> T:
        """Return `driver` with a point before and after every call of a public method."""
        return cast(T, _Watched(driver, self, name or type(driver).__name__))

    def _arm(self, at: int | None, accident: Callable[[], bool] | None) -> None:
        self._at, self._accident = at, accident


class _Watched:
    def __init__(self, driver: Any, scene: Scene, name: str) -> None:
        self._driver, self._scene, self._name = driver, scene, name

    def __getattr__(self, attribute: str) -> Any:
        found = getattr(self._driver, attribute)
        if attribute.startswith("_") or not callable(found):
            return found

        def call(*args: Any, **named: Any) -> Any:
            self._scene.point(f"before {self._name}.{attribute}")
            result = found(*args, **named)
            self._scene.point(f"after {self._name}.{attribute}")
            return result

        return call


@dataclass(frozen=True)
class Play:
    """What to perform.

    `start` is called whenever a process starts, and must read everything it needs from the scene's store and directory;
    it gets the store to use, which for a second process is not the scene's. `steps` are users' requests, each must
    cope with whatever an accident left; accidents happen in the first `struck` of them (None: in all). `judge` is asked
    after every step, at rest, and returns complaints; debts left in the queue and its broken invariants are complaints
    anyway, except debts that `may_wait` accepts. `intruders` are other users' requests by name; the first one also
    precedes the second process of a stall. `stalls` says which shards a second process may take over (a shard that only
    one process can work on, by a lock on its host, is none of them).

    Every performance begins with empty tables, except those named in `keep`, and then `setup`, which passes no points
    (``store.create_all`` has been called, nothing else).
    """

    tables: sa.MetaData
    start: Callable[[Scene, Store], Cast]
    steps: Sequence[Callable[[Scene], None]]
    judge: Callable[[Scene], list[str]]
    intruders: Mapping[str, Callable[[Store], None]] = field(default_factory=dict)
    may_wait: Callable[[Mapping[str, Any]], bool] = lambda debt: False
    stalls: Callable[[str], bool] = lambda shard: True
    setup: Callable[[Scene], None] = lambda scene: None
    keep: Collection[str] = ()
    struck: int | None = None


@dataclass
class Report:
    """Result of one kind of accident at all points."""

    accident: str
    points: int = 0
    performed: int = 0
    failures: list[tuple[int, str, str]] = field(default_factory=list)  # (point number, its name, first complaint)

    def __str__(self) -> str:
        shown = "".join(f"\n  at {n} ({name}): {what}" for n, name, what in self.failures[:5])
        return f"{self.accident}: {self.performed} of {self.points} points, {len(self.failures)} go wrong{shown}"


class Theatre:
    """Performs one play on one database again and again."""

    def __init__(self, play: Play, url: str) -> None:
        self._play = play
        self._store = Store(url)
        self._store.create_all(play.tables)
        self._other = Store(url, busy_timeout_s=0)  # shares our thread: it must never wait for us
        self._rehearsed: tuple[list[str], list[str]] | None = None
        self._desk = Store(url)  # ours, between the acts: passes no points, and may wait

    def close(self) -> None:
        self._store.close()
        self._other.close()
        self._desk.close()

    def rehearse(self) -> tuple[list[str], list[str]]:
        """Perform without an accident; return the points passed and the complaints (there should be none)."""
        passed, ends, complaints = self._perform(None, None)
        struck = self._play.struck
        return passed if struck is None else passed[: ends[struck - 1]], complaints

    def perform(self, accident: str, *, every: int = 1, first: int = 0) -> Report:
        """Perform with `accident` ("die", "stall" or an intruder's name) at each `every`-th point from `first` on."""
        if self._rehearsed is None:
            self._rehearsed = self.rehearse()
        points, complaints = self._rehearsed
        if complaints:
            raise AssertionError(f"goes wrong without any accident: {complaints[:3]}")
        report = Report(accident, len(points))
        for at in range(first, len(points), every):
            passed, _, complaints = self._perform(at, accident)
            report.performed += 1
            if complaints:
                report.failures.append((at, passed[at] if at < len(passed) else "?", complaints[0]))
        return report

    def _accident(self, kind: str, scene: Scene) -> Callable[[], bool]:
        if kind == "die":

            def die() -> bool:
                raise Die

            return die
        if kind != "stall":
            return lambda: _intrude(self._play.intruders[kind], self._other)
        done: list[str] = []

        def stall() -> bool:
            first = next(iter(self._play.intruders.values()), None)
            if first is not None and not done:
                if not _intrude(first, self._other):
                    return False
                done.append("intruded")
            return self._second_process(scene)

        return stall

    def _second_process(self, scene: Scene) -> bool:
        try:
            _let_leases_run_out(self._other)
            cast = {s: r for s, r in self._play.start(scene, self._other).items() if self._play.stalls(s)}
            _work(self._other, cast)
        except Busy:
            return False
        return True

    def _perform(self, at: int | None, accident: str | None) -> tuple[list[str], list[int], list[str]]:
        """Return the points passed, how many there were after each step, and the complaints."""
        mood = random.getstate()
        with _directory() as directory:
            random.seed(1)  # back-off jitter must not decide what a failure looks like
            self._empty()
            scene = Scene(self._store, directory)
            self._play.setup(scene)
            scene.passed.clear()  # what drivers passed while being set up
            self._store.trace = lambda event, sql: scene.point(sql.split("\n")[0][:60] if sql else event)
            scene._arm(at, self._accident(accident, scene) if accident else None)
            complaints: list[str] = []
            ends: list[int] = []
            try:
                for step in self._play.steps:
                    self._survive(scene, step)
                    ends.append(len(scene.passed))
                    if accident is None or scene.happened:  # until then all is as in the rehearsal
                        complaints = complaints or self._judge(scene)  # at rest after each step: the next could heal
                scene._arm(None, None)
                self._settle_down(scene)
                complaints = complaints or self._judge(scene)
                passed = list(scene.passed)
            finally:
                self._store.trace = None
                random.setstate(mood)
        return passed, ends, complaints

    def _survive(self, scene: Scene, step: Callable[[Scene], None]) -> None:
        """Take one step and let the processes work; when they die, start them anew."""
        try:
            step(scene)
            self._settle_down(scene)
        except Die:
            scene.memory.clear()
            self._settle_down(scene)

    def _settle_down(self, scene: Scene, rounds: int = 40) -> None:
        """Work until nothing is due; then let time pass, until there is no debt."""
        _let_leases_run_out(self._desk)
        for _ in range(rounds):
            _work(self._store, self._play.start(scene, self._store))
            debts = [d for d in work.pending(self._desk) if not self._play.may_wait(d)]
            if not debts:
                return
            _let_leases_run_out(self._desk)
            with self._desk.write() as tx:
                tx.execute(_TIME_PASSES)

    def _judge(self, scene: Scene) -> list[str]:
        trace, self._store.trace = self._store.trace, None  # looking is not a point
        try:
            complaints = self._play.judge(scene)
        finally:
            self._store.trace = trace
        complaints += [
            f"left in the queue: {d['kind']} {d['id']} on {d['shard']!r}: {d['note']}"
            for d in work.pending(self._desk)
            if not self._play.may_wait(d)
        ]
        return complaints + work.invariants(self._desk)

    def _empty(self) -> None:
        with self._desk.write() as tx:
            if tx.dialect == "mysql":  # it checks row by row, so a table that refers to itself could not be emptied
                tx.execute(sa.text("SET FOREIGN_KEY_CHECKS = 0"))
            tables = {t.name: t for t in (*self._play.tables.sorted_tables, work.work, *quota.TABLES)}
            for name in reversed(tables):
                if name not in self._play.keep:
                    tx.execute(sa.delete(tables[name]))
            if tx.dialect == "mysql":
                tx.execute(sa.text("SET FOREIGN_KEY_CHECKS = 1"))


_LEASES_END = sa.update(work.work).where(work.c.lease > 0, work.c.lease < now() + work.MAX_LEASE_S).values(lease=0)
_TIME_PASSES = (
    sa.update(work.work).where(work.c.gen != work.c.done, work.c.due < work.FAR, work.c.due > now()).values(due=now())
)


def _let_leases_run_out(store: Store) -> None:
    with store.write() as tx:
        tx.execute(_LEASES_END)


def _intrude(intruder: Callable[[Store], None], store: Store) -> bool:
    try:
        intruder(store)
    except Busy:
        return False  # somebody holds the row: this order of events can not happen
    return True


def _work(store: Store, cast: Cast, limit: int = 2000) -> None:
    """Take and reconcile on all shards until nothing is due, as processes do: a failure becomes a note."""
    for _ in range(limit):
        busy = False
        for shard, reconcilers in cast.items():
            if not isinstance(reconcilers, Mapping):
                busy |= reconcilers()
                continue
            for item in work.take(store, shard, 1, 60):
                busy = True
                turn(store, reconcilers, item)
        if not busy:
            return
    raise AssertionError(f"never settles: {[(d['kind'], d['id'], d['note']) for d in work.pending(store)][:5]}")


@contextmanager
def _directory() -> Iterator[Path]:
    path = Path(tempfile.mkdtemp(prefix="nubila-play-"))
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


def survives(play: Play, url: str, *, every: int = 1) -> list[Report]:
    """Perform every accident at every point; raise AssertionError with the first complaints, else return reports."""
    theatre = Theatre(play, url)
    try:
        reports = [theatre.perform(accident, every=every) for accident in ("die", *play.intruders, "stall")]
    finally:
        theatre.close()
    if any(report.failures for report in reports):
        raise AssertionError("\n".join(str(report) for report in reports if report.failures))
    return reports
