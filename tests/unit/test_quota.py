"""Quotas are exact: alone, against a model, and when many claim at once, on every database."""

from __future__ import annotations

import threading

import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nubila.core import quota
from nubila.core.db import Store
from nubila.core.quota import OverQuota

pytest_plugins = ["nubila.testing.fixtures"]

DEFAULTS = {"network": 3, "port": 10, "image": -1}


def claim(store: Store, project: str = "p", **amounts: int) -> None:
    store.transact(lambda tx: quota.claim(tx, project, amounts, DEFAULTS))


def usage(store: Store, project: str = "p") -> dict[str, int]:
    with store.read() as r:
        return quota.usage(r, project)


def test_claims_count_up_to_the_limit(store: Store):
    claim(store, network=1, port=4)
    claim(store, network=2)
    with pytest.raises(OverQuota, match="network") as over:
        claim(store, network=1, port=1)
    assert (over.value.resource, over.value.requested, over.value.used, over.value.limit) == ("network", 1, 3, 3)
    with pytest.raises(OverQuota, match="port"):
        claim(store, image=5, port=7)
    assert usage(store) == {"network": 3, "port": 4}  # all or none, and no trace of image
    claim(store, "other", network=3)


def test_first_claim_beyond_the_limit(store: Store):
    with pytest.raises(OverQuota) as over:
        claim(store, network=4)
    assert (over.value.used, over.value.limit) == (0, 3)
    assert usage(store) == {}


def test_unlimited_and_nothing(store: Store):
    claim(store, image=10**12, network=0)
    assert usage(store) == {"image": 10**12}


def test_release_and_shrinking(store: Store):
    claim(store, network=3, port=2)
    store.transact(lambda tx: quota.release(tx, "p", {"network": 1, "port": 5, "image": 1}))
    assert usage(store) == {"network": 2, "port": 0}
    store.transact(lambda tx: quota.set_limit(tx, "p", "network", 1))
    claim(store, network=-1)  # above a lowered limit one may still shrink
    with pytest.raises(OverQuota):
        claim(store, network=1)


def test_limits_of_a_project(store: Store):
    with store.write() as tx:
        quota.set_limit(tx, "p", "network", 5)
        quota.set_limit(tx, "p", "network", 1)
        quota.set_limit(tx, "p", "port", -1)
        quota.set_usage(tx, "p", "port", 100)
    with store.read() as r:
        assert quota.limits(r, "p", DEFAULTS) == {"network": 1, "port": -1, "image": -1}
        assert quota.limits(r, "q", DEFAULTS) == DEFAULTS
    claim(store, port=1)
    with pytest.raises(OverQuota):
        claim(store, network=2)
    with store.write() as tx:
        quota.reset_limits(tx, "p")
    claim(store, network=3)


def test_crowd_gets_exactly_what_there_is(store: Store):
    """Eight threads claim until refused, first of all the rows that do not exist yet."""
    got: list[int] = []
    gate = threading.Barrier(8)

    def one() -> None:
        gate.wait(30)
        while True:
            try:
                store.transact(lambda tx: quota.claim(tx, "p", {"port": 1}, {"port": 40}), retries=50)
            except OverQuota:
                return
            got.append(1)

    threads = [threading.Thread(target=one) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(got) == 40
    assert usage(store) == {"port": 40}


RESOURCES = st.sampled_from(["network", "port", "image"])
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("claim"), st.dictionaries(RESOURCES, st.integers(0, 6), max_size=3)),
        st.tuples(st.just("release"), st.dictionaries(RESOURCES, st.integers(0, 6), max_size=3)),
        st.tuples(st.just("limit"), st.tuples(RESOURCES, st.integers(-1, 12))),
        st.tuples(st.just("reset"), st.none()),
    ),
    max_size=25,
)


def test_any_sequence_agrees_with_arithmetic(store: Store):
    @settings(max_examples=60 if store.embedded else 25, deadline=None, suppress_health_check=list(HealthCheck))
    @given(STEPS)
    def check(steps: list) -> None:  # type: ignore[type-arg]
        with store.write() as tx:
            tx.execute(sa.delete(quota.quota_usage))
            quota.reset_limits(tx, "p")
        used = dict.fromkeys(DEFAULTS, 0)
        most = dict(DEFAULTS)
        for what, value in steps:
            if what == "claim":
                fits = all(most[r] < 0 or used[r] + n <= most[r] for r, n in value.items() if n)
                if not fits:
                    with pytest.raises(OverQuota) as over:
                        claim(store, **value)
                    assert over.value.used == used[over.value.resource]
                    assert over.value.limit == most[over.value.resource]
                else:
                    claim(store, **value)
                    used = {r: n + value.get(r, 0) for r, n in used.items()}
            elif what == "release":
                store.transact(lambda tx, value=value: quota.release(tx, "p", value))
                used = {r: max(0, n - value.get(r, 0)) for r, n in used.items()}
            elif what == "limit":
                store.transact(lambda tx, value=value: quota.set_limit(tx, "p", *value))
                most[value[0]] = value[1]
            else:
                store.transact(lambda tx: quota.reset_limits(tx, "p"))
                most = dict(DEFAULTS)
            found = usage(store)
            assert {r: found.get(r, 0) for r in used} == used

    check()
