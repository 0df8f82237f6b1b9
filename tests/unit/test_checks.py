"""Types and checks: what a body may hold, what is stored of it, how a refusal reads."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny import Thing

from nubila.core import checks, types
from nubila.core.faults import Fault

V = (1, 0)


def accept(**body: Any) -> dict[str, Any]:
    return checks.accept(Thing, "create", {"name": "n", **body}, V)


@pytest.mark.parametrize(
    ("name", "given_", "stored"),
    [
        ("size", 5, 5), ("size", 5.0, 5), ("loose", "7", 7), ("loose", 0, 0), ("weight", 1, 1.0),
        ("weight", None, None), ("on", False, False), ("shared", "yes", True), ("shared", "OFF", False),
        ("shared", 1, True), ("colour", "red", "red"), ("mac", "FA-16-3E-00-00-01", "fa:16:3e:00:00:01"),
        ("labels", ["a", "b"], ["a", "b"]), ("notes", {"k": "v"}, {"k": "v"}),
        ("anything", {"a": [1, None]}, {"a": [1, None]}), ("tenant_id", "p", "p"),
    ],
)  # fmt: skip
def test_what_is_accepted_and_stored(name: str, given_: Any, stored: Any) -> None:
    got = accept(**{name: given_})[Thing.by_wire[name].name]
    assert got == stored
    assert type(got) is type(stored)


@pytest.mark.parametrize(
    ("name", "bad"),
    [
        ("name", ""), ("name", "x" * 61), ("name", 1), ("name", None), ("size", 0), ("size", 101), ("size", "5"),
        ("size", True), ("loose", "10"), ("loose", "-1"), ("loose", "x"), ("loose", 1.5), ("weight", "1"),
        ("weight", -1), ("on", "true"), ("on", 1), ("shared", "maybe"), ("shared", None), ("shared", 2),
        ("colour", "blue"), ("mac", "01:00:00:00:00:01"), ("mac", "00:00:00:00:00:00"), ("mac", "x"), ("labels", "a"),
        ("labels", ["a", "a"]), ("labels", ["x" * 11]), ("labels", [1]), ("notes", []), ("notes", {"k": 1}),
        ("id", "x"), ("secret", "x"), ("hidden", "x"), ("late", "x"), ("nmae", "x"), ("created_at", "x"),
    ],
)  # fmt: skip
def test_what_is_refused_names_the_field(name: str, bad: Any) -> None:
    with pytest.raises(Fault) as caught:
        accept(**{name: bad})
    assert caught.value.status == 400
    assert name in caught.value.message


def test_long_values_are_not_repeated_in_full() -> None:
    with pytest.raises(Fault) as caught:
        accept(name="x" * 5000)
    assert len(caught.value.message) < 600


def test_defaults_fill_in_and_are_not_shared() -> None:
    one, two = (checks.defaults(Thing, accept(), V) for _ in range(2))
    assert one["size"] == 1
    assert one["weight"] is None
    assert one["id"] != two["id"]
    one["labels"].append("x")
    one["notes"]["k"] = "v"
    assert two["labels"] == []
    assert two["notes"] == {}


def test_defaults_leave_alone_what_was_given() -> None:
    assert checks.defaults(Thing, accept(size=9, weight=None), V)["size"] == 9


@given(st.text(max_size=12))
def test_query_spellings_parse_or_are_refused(text: str) -> None:
    for kind in (types.Int(), types.LooseInt(), types.Float(), types.Bool, types.LooseBool, types.Mac, types.Uuid):
        try:
            kind.parse(text)
        except ValueError:
            continue


@pytest.mark.parametrize("text", ["true", "True", "1", "yes", "on", "T", " y "])
def test_spellings_of_true(text: str) -> None:
    assert types.boolean(text) is True
    assert types.Bool.parse(text) is True


@pytest.mark.parametrize("bad", ["", "2", "tru", "nan"])
def test_what_is_neither_true_nor_false(bad: str) -> None:
    with pytest.raises(ValueError, match="not true or false"):
        types.boolean(bad)


@pytest.mark.parametrize("bad", ["nan", "inf", "-inf", "x", ""])
def test_numbers_that_are_none(bad: str) -> None:
    with pytest.raises(ValueError):  # noqa: PT011  # the text is Python's own in some cases
        types.Float().parse(bad)


def test_addresses_are_stored_in_one_spelling() -> None:
    assert types.Ip.load("2001:DB8:0::1") == "2001:db8::1"
    assert types.Cidr.load("10.1.2.3/24") == "10.1.2.0/24"
    assert types.Ip.load(None) is None
    for bad in ("10.0.0.256", "x", "fe80::1%eth0", "10.0.0.1/24"):
        with pytest.raises(ValueError, match=r"\S"):
            types.Ip.load(bad)
    for bad in ("10.0.0.0/33", "x", "fe80::%a/64"):
        with pytest.raises(ValueError, match=r"\S"):
            types.Cidr.load(bad)


def test_uuids() -> None:
    assert types.is_uuid("0" * 32)
    assert types.is_uuid("00000000-0000-4000-8000-000000000000")
    assert not types.is_uuid("x")
    assert not types.is_uuid("0" * 32 + "\n")


def test_a_schema_is_compiled_once() -> None:
    assert checks.checker({"type": "integer"}) is checks.checker({"type": "integer"})
