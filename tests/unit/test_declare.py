"""Declarations: what they derive, and which ones stop at import."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import sqlalchemy as sa
from tiny import Thing

from nubila.core.declare import METADATA, UNSET, Attr, Resource, Rest, body_schema, epoch, epochs
from nubila.core.gates import ALWAYS, CLOSED, Gate, show, since, until
from nubila.core.types import Int, Str, Uuid


@pytest.fixture
def scratch() -> Iterator[None]:
    """Tables that a test declares go again: the metadata is the whole process's."""
    before = set(METADATA.tables)
    yield
    for name in set(METADATA.tables) - before:
        METADATA.remove(METADATA.tables[name])


def declare(doc: str | None = "A thing.", **members: Any) -> type[Resource]:
    """A class made of these members."""
    base = {"kind": "scratch_thing", "owner": "", "id": Attr(Uuid, "Id.", key=True)}
    return type("Scratch", (Resource,), {**base, **members, "__doc__": doc})


@pytest.mark.parametrize(
    ("members", "why"),
    [
        ({"doc": None}, "docstring"),
        ({"id": Attr(Uuid, "Id.")}, "no key"),
        ({"kind": "tiny_thing"}, "declared twice"),
        ({"owner": "project_id"}, "owner project_id is not an attribute"),
        ({"seen": Attr(Int(), observed=True, write="u")}, "seen: observed"),
        ({"name": Attr(Str(), write="x")}, "name: write takes"),
        ({"name": Attr(Str(), store=False, filter="eq")}, "name: cannot filter"),
        ({"other_id": Attr(Uuid, ref="other")}, "other_id: ref is"),
        ({"name": Attr(Str(), alias=("id",))}, "name: name on the wire used twice"),
        ({"indexes": (("id",),), "rest": Attr(Str())}, "rest: the name means something"),
        ({"unique": (("id", "nothing"),)}, r"unknown attributes \['nothing'\]"),
        ({"indexes": (("nothing",),)}, r"unknown attributes \['nothing'\]"),
    ],
)
def test_declarations_that_cannot_mean_anything(scratch: None, members: dict[str, Any], why: str) -> None:
    with pytest.raises(TypeError, match=why) as caught:
        declare(**members)
    assert "Scratch" in str(caught.value)


def test_table_follows(scratch: None) -> None:
    made = declare(
        name=Attr(Str(9), "Name.", write="c"), other_id=Attr(Uuid, "Other.", ref="tiny_thing.id", null=True),
        seen=Attr(Int(), "Seen.", observed=True), shown=Attr(Str(), "Shown.", store=False), unique=(("name",),),
        indexes=(("seen", "name"),),
    )  # fmt: skip
    t = made.table
    assert [c.name for c in t.columns] == ["id", "name", "other_id", "seen"]
    assert t.c.id.primary_key
    assert not t.c.name.nullable
    assert t.c.other_id.nullable
    assert t.c.seen.nullable
    assert [f.target_fullname for f in t.c.other_id.foreign_keys] == ["tiny_thing.id"]
    assert {i.name for i in t.indexes} == {"ix_scratch_thing_seen_name", "ix_scratch_thing_other_id"}
    assert [sorted(c.name for c in u.columns) for u in t.constraints if isinstance(u, sa.UniqueConstraint)] == [
        ["name"]
    ]


def test_inherited_attributes_come_first_and_can_be_replaced(scratch: None) -> None:
    class Base(Resource):
        """Not a kind of its own."""

        owner = ""
        id = Attr(Uuid, "Id.", key=True)
        name = Attr(Str(5), "Short.")

    class Kid(Base):
        """A kind."""

        kind = "scratch_kid"
        size = Attr(Int(), "Size.")
        name = Attr(Str(50), "Long.")

    assert list(Kid.attrs) == ["id", "size", "name"]
    assert Kid.attrs["name"].doc == "Long."
    assert Kid.key == "id"
    assert "scratch_kid" in METADATA.tables


def test_body_schema_follows_versions_and_verbs() -> None:
    old, new = body_schema(Thing, "create", (1, 0)), body_schema(Thing, "create", (1, 5))
    assert "early" in old["properties"]
    assert "late" not in old["properties"]
    assert "late" in new["properties"]
    assert "early" not in new["properties"]
    assert old["required"] == ["name"]
    assert old["properties"]["tenant_id"] == old["properties"]["project_id"]
    update = body_schema(Thing, "update", (1, 0))
    assert update["required"] == []
    assert not {"id", "project_id", "colour", "secret", "hidden"} & set(update["properties"])
    assert {"type": "null"} in update["properties"]["weight"]["anyOf"]
    assert update["additionalProperties"] is False


def test_must_makes_an_attribute_required_from_a_version_on(scratch: None) -> None:
    made = declare(name=Attr(Str(), "Name.", write="c", default="x", must=since(2, 3)))
    assert body_schema(made, "create", (2, 2))["required"] == []
    assert body_schema(made, "create", (2, 3))["required"] == ["name"]


def test_epochs() -> None:
    assert epochs(Thing) == (ALWAYS, (1, 5))
    assert epoch(Thing, (1, 4)) == ALWAYS
    assert epoch(Thing, (1, 5)) == epoch(Thing, (9, 9)) == (1, 5)


def test_gates() -> None:
    gate = since(2, 10) & until(2, 20)
    assert [gate.open((2, n)) for n in (9, 10, 19, 20)] == [False, True, True, False]
    assert not CLOSED.open((9998, 0))
    assert Gate().open(ALWAYS)
    assert show((2, 90)) == "2.90"


def test_statuses() -> None:
    rest = Rest(path="/x", item="x", items="xs", rules={},
                statuses={"create": ((until(1, 5), 200), (since(1, 5), 202)), "delete": 202})  # fmt: skip
    assert rest.status("create", (1, 4)) == 200
    assert rest.status("create", (1, 5)) == 202
    assert rest.status("delete", ALWAYS) == 202
    assert [rest.status(v, ALWAYS) for v in ("list", "show", "update")] == [200, 200, 200]


def test_unset_is_false_and_not_none() -> None:
    assert not UNSET
    assert UNSET is not None
    assert repr(UNSET) == "UNSET"
