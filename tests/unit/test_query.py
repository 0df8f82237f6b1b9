"""Lists: filters, orders and pages against rows compared with plain Python."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import Thing, Tiny

from nubila.core import query
from nubila.core.faults import Fault

assert Thing.rest is not None
REST = Thing.rest
ORDER = ("name", "size", "weight", "on", "colour", "id")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tiny]:
    made = Tiny(Path(tmp_path_factory.mktemp("query")))
    colours = (None, "red", "green", None, "red", "red", None)
    for i, colour in enumerate(colours):
        made.thing(name=f"n{i}_%", size=i % 3 + 1, weight=None if i % 2 else i / 2, on=bool(i % 2), colour=colour)
    made.thing(token="p2:member", name="foreign")
    yield made
    made.close()


def listed(tiny: Tiny, text: str = "") -> list[dict[str, Any]]:
    got = tiny.request("GET", "/v1/things" + (f"?{text}" if text else ""))
    assert got.status == 200, got.body
    rows: list[dict[str, Any]] = got.json["things"]
    return rows


def key(row: dict[str, Any], order: list[tuple[str, str]]) -> Any:
    """A sort key with NULL first when ascending."""

    def compare(a: dict[str, Any], b: dict[str, Any]) -> int:
        for name, direction in order:
            x, y = ((v is not None, v if v is not None else 0) for v in (a[name], b[name]))
            if x != y:
                return (-1 if x < y else 1) * (1 if direction == "asc" else -1)
        return 0

    return functools.cmp_to_key(compare)(row)


orders = st.lists(
    st.tuples(st.sampled_from(ORDER), st.sampled_from(["asc", "desc"])), max_size=3, unique_by=lambda o: o[0]
)


@given(orders)
@settings(max_examples=40, deadline=None)
def test_sorting_with_nulls(tiny: Tiny, order: list[tuple[str, str]]) -> None:
    text = "&".join(f"sort_key={k}&sort_dir={d}" for k, d in order)
    rows = listed(tiny, text)
    assert rows == sorted(rows, key=lambda r: key(r, order))
    assert len(rows) == 7


@given(orders, st.integers(1, 9), st.booleans())
@settings(max_examples=60, deadline=None)
def test_pages_have_each_row_once_in_order(
    tiny: Tiny, order: list[tuple[str, str]], limit: int, backwards: bool
) -> None:
    text = "".join(f"&sort_key={k}&sort_dir={d}" for k, d in order)
    whole = [r["id"] for r in listed(tiny, text[1:])]
    seen: list[str] = []
    marker = ""
    for _ in range(10):
        page = [r["id"] for r in listed(tiny, f"limit={limit}{text}{marker}" + "&page_reverse=true" * backwards)]
        if not page:
            break
        assert len(page) <= limit
        seen = page + seen if backwards else seen + page
        marker = f"&marker={page[0] if backwards else page[-1]}"
    assert seen == whole


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("name=n1_%25", "1"), ("name=n1_%25&name=n2_%25", "12"), ("name=in:n1_%25,n3_%25", "13"), ("name=none", ""),
        ("name__like=_%25", "0123456"), ("name__like=1_", "1"), ("name__startswith=n4", "4"), ("size=2", "14"),
        ("size__ge=3", "25"), ("size__le=1", "036"), ("size__ge=2&size__le=2", "14"), ("on=True", "135"),
        ("on=0", "0246"), ("colour=red", "145"), ("colour=", "036"), ("weight=1.0", "2"), ("tenant_id=p1", "0123456"),
        ("project_id=p2", ""), ("size=2&colour=red", "14"), ("colour=in:red,green", "1245"), ("loose=0", "0123456"),
    ],
)  # fmt: skip
def test_filters(tiny: Tiny, text: str, names: str) -> None:
    assert sorted(r["name"][1] for r in listed(tiny, text)) == list(names)


@pytest.mark.parametrize(
    "text",
    [
        "nmae=x", "labels=a", "size=x", "size__like=1", "size__nothing=1", "on=maybe", "weight=nan", "limit=x",
        "limit=-1", "limit=1e3", "sort_key=labels", "sort_key=nothing", "sort_key=name&sort_dir=up",
        "sort_key=name&sort_dir=asc&sort_dir=desc", "marker=none", "late=x", "secret=s", "hidden=h",
        "name=a%00b", "name__startswith=%00",
    ],
)  # fmt: skip
def test_refused_queries(tiny: Tiny, text: str) -> None:
    assert tiny.request("GET", f"/v1/things?{text}").status == 400


def test_an_attribute_of_a_later_version_is_a_later_filter() -> None:
    for version, known in (((1, 4), False), ((1, 5), True)):
        late = Thing.attrs["late"]
        assert late.show.open(version) is known


def test_limit_zero_and_beyond_the_maximum(tiny: Tiny) -> None:
    assert query.parse(Thing, REST, [("limit", "9999")], (1, 0)).limit == 50
    assert query.parse(Thing, REST, [], (1, 0)).limit is None


def test_own_keys_are_left_to_the_service() -> None:
    q = query.parse(Thing, REST, [("special", "1"), ("special", "2")], (1, 0), own=["special"])
    assert q.extra == {"special": ["1", "2"]}
    with pytest.raises(Fault):
        query.parse(Thing, REST, [("special", "1")], (1, 0))


def test_links_lead_through_the_pages(tiny: Tiny) -> None:
    from nubila.edge.dialects import Network, Page

    body: dict[str, Any] = {}
    Network().list_links(
        body, "things", "http://x/things", [("limit", "2"), ("marker", "m")],
        Page("first", "last", limited=True, more=True, reverse=False, short=False),
    )  # fmt: skip
    assert {link["rel"]: link["href"] for link in body["things_links"]} == {
        "next": "http://x/things?limit=2&marker=last",
        "previous": "http://x/things?limit=2&marker=first&page_reverse=True",
    }
