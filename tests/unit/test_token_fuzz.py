"""Whatever is not letter for letter a token of this cloud is refused; nothing crashes. NUBILA_FUZZ=inputs for more."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from fuzz_tokens import Attack
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

INPUTS = int(os.environ.get("NUBILA_FUZZ", "10000"))
SEED = int(os.environ.get("NUBILA_FUZZ_SEED", "7"))


@pytest.fixture(scope="module")
def attack(tmp_path_factory: pytest.TempPathFactory) -> Attack:
    return Attack(tmp_path_factory.mktemp("keys"), SEED)


@pytest.mark.req("A/PAIN-17")
def test_spoiled_tokens_of_every_format_are_refused(attack: Attack) -> None:
    attack.run(attack.count + INPUTS)
    assert attack.refused > INPUTS * 0.8
    assert attack.keys.cached() < 2000  # what is refused is not kept


def test_the_real_ones_are_accepted(attack: Attack) -> None:
    assert all(attack.keys.read(token).user_id for token in attack.good)


EDITS = st.lists(
    st.tuples(
        st.integers(0, 2000), st.integers(0, 40), st.text(max_size=12) | st.sampled_from([".", "=", "gAAAAA", "eyJ"])
    ),
    min_size=1,
    max_size=6,
)


@settings(
    max_examples=max(300, INPUTS // 100), deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(which=st.integers(0, 1000), edits=EDITS)
def test_edits_that_hypothesis_finds(attack: Attack, which: int, edits: list[tuple[int, int, str]]) -> None:
    token = attack.corpus[which % len(attack.corpus)]
    for at, cut, text in edits:
        token = token[:at] + text + token[at + cut :]
    attack._must_refuse(token)


@settings(
    max_examples=max(300, INPUTS // 100), deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    thing=st.one_of(st.text(max_size=300), st.binary(max_size=50), st.none(), st.integers(), st.floats(allow_nan=False))
)
def test_any_thing_is_no_token(attack: Attack, thing: Any) -> None:
    attack._must_refuse(thing)


@pytest.mark.parametrize("token", ["gAAAAA" * 3000, "eyJ" * 6000, "eyJ" + "A" * 10_000_000, "." * 100_000, "gAAAAA\0"])
def test_oversize_is_refused_at_once(attack: Attack, token: str) -> None:
    attack._must_refuse(token)


def test_the_fuzzer_would_notice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A planted weakness, one that forgets to compare the spelling of base64, is found."""
    from nubila.core import jws

    monkeypatch.setattr(jws, "_ORDER", 1 << 257)  # the twin of a signature counts too
    weak = Attack(tmp_path, SEED)
    with pytest.raises(AssertionError, match="accepted"):
        weak.run(100)
