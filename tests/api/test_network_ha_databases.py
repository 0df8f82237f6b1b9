"""Leases of highly available routers on every kind of database: an epoch is never granted to two hosts."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from nubila.services.network import ha_lease
from nubila.services.network.ha_tables import HA_HOST, HA_ROUTER
from nubila.testing.cloud import TestCloud
from nubila.testing.databases import Databases, available

pytest_plugins = ["nubila.testing.fixtures"]
HOSTS = ("host1", "host2", "host3")
ROUNDS = 25


class Race:
    """One router on three hosts whose claims come from threads of their own."""

    def __init__(self, test: TestCloud) -> None:
        self.test, self.cloud = test, test.cloud
        made = test.request("POST", "/network/v2.0/routers", {"router": {"name": "r", "ha": True}})
        assert made.status == 201, made.body
        self.router = made.json["router"]["id"]
        test.settle()
        self.seq = time.time_ns()

    def claim(self, host: str, **said: Any) -> Any:
        """One claim, answered."""
        self.seq += 1
        peers = [one for one in HOSTS if one != host]
        one = {"want": True, "master": True, "fit": True, "knows": peers, "seq": self.seq, **said}
        asked = {self.router: one}
        return self.cloud.store.transact(lambda tx: ha_lease.claims(self.cloud, tx, host, asked))[self.router]

    def side_by_side(self, work: Callable[[str], None]) -> None:
        """``work`` for every host at once; what one raises is raised here."""
        start, raised = threading.Barrier(len(HOSTS)), list[BaseException]()

        def run(host: str) -> None:
            try:
                start.wait(60)
                work(host)
            except BaseException as e:
                raised.append(e)

        threads = [threading.Thread(target=run, args=(host,)) for host in HOSTS]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(120)
        assert raised == []

    def set(self, **values: Any) -> None:
        """Write the lease as if something had happened to it."""
        change = sa.update(HA_ROUTER).where(HA_ROUTER.c.router_id == self.router).values(**values)
        self.cloud.store.transact(lambda tx: tx.execute(change))

    def lease(self) -> Any:
        with self.cloud.store.read() as reader:
            return ha_lease.of(reader, self.router)

    def settled(self) -> None:
        """Claims are heard: for half a second after a start nobody is granted anything."""
        deadline = time.monotonic() + 60
        self.set(holder="", to="", until=0.0)
        while not any(self.claim(host)["epoch"] for host in HOSTS):
            assert time.monotonic() < deadline, "nobody is ever granted it"


@pytest.fixture
def race(tmp_path: Path, database_url: str) -> Iterator[Race]:
    test = TestCloud(tmp_path, hosts=3, database=database_url)
    yield Race(test)
    test.close()


def one_is_granted(race: Race) -> None:
    """Rounds in which the lease is free, or has just run out, and every host wants it at the same moment."""
    race.settled()
    for i in range(ROUNDS):
        before = race.lease().epoch
        with race.cloud.store.read() as reader:
            now = ha_lease.now_in(reader)
        last = HOSTS[i % 3] if i % 2 else ""  # run out, or given back
        race.set(holder=last, until=now - 10, known=[host for host in HOSTS if host != last], to="", ready=False)
        granted: list[tuple[str, int]] = []

        def ask(host: str, last: str = last, granted: list[tuple[str, int]] = granted) -> None:
            deadline = time.monotonic() + 60
            while host != last:  # after a step of the clock, as a slow answer may look like, nobody gets it for a while
                answer = race.claim(host, open=False)
                if answer["epoch"]:
                    granted.append((host, answer["epoch"]))
                if answer["epoch"] or answer["holder"] not in ("", last):
                    return
                assert time.monotonic() < deadline, "nobody is granted it"

        race.side_by_side(ask)
        epochs = sorted(epoch for _, epoch in granted)
        assert epochs == list(range(before + 1, before + 1 + len(epochs))), (i, granted)
        assert epochs, "somebody has it"


def whatever_they_do(race: Race) -> None:
    """Hosts that take it, keep it, give it back, and are moved, all in a row."""
    race.settled()
    seen: list[tuple[int, str]] = []
    lock = threading.Lock()

    def live(host: str) -> None:
        opened = False
        for i in range(3 * ROUNDS):
            giving = opened and i % 5 == 4
            answer = race.claim(host, open=opened and not giving, want=not giving, term=i, ready=True)
            opened = bool(answer["epoch"]) and not answer["give_back"]
            if answer["epoch"]:
                with lock:
                    seen.append((answer["epoch"], host))
            if i % 11 == 0:
                race.cloud.store.transact(lambda tx, i=i: ha_lease.move(tx, race.router, HOSTS[i % 3]))

    race.side_by_side(live)
    owners: dict[int, set[str]] = {}
    for epoch, host in seen:
        owners.setdefault(epoch, set()).add(host)
    assert len(owners) > 3, "it went from hand to hand"
    assert {epoch: hosts for epoch, hosts in owners.items() if len(hosts) > 1} == {}


def test_an_epoch_is_granted_to_one_host(race: Race) -> None:
    one_is_granted(race)
    whatever_they_do(race)


def test_the_race_finds_claims_that_are_not_one_after_another(
    tmp_path: Path, databases: Databases, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One database is enough to show it; SQLite has one writer at a time."""
    if not available("postgresql"):
        pytest.skip("the programs of postgresql are not installed")
    test = TestCloud(tmp_path, hosts=3, database=databases.fresh("postgresql"))
    race = Race(test)
    unlocked = (
        sa.select(HA_ROUTER).join(HA_HOST, HA_HOST.c.router_id == HA_ROUTER.c.router_id)
        .where(HA_HOST.c.host == sa.bindparam("host"))
        .where(HA_ROUTER.c.router_id.in_(sa.bindparam("routers", expanding=True)))
    )  # fmt: skip
    monkeypatch.setattr(ha_lease, "_MINE", unlocked)
    with pytest.raises(AssertionError):
        one_is_granted(race)
    test.close()
