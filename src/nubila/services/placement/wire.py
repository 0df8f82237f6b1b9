"""What every Placement handler needs: checked bodies and queries, last-modified headers, refusals with a code."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from email.utils import formatdate
from typing import Any

import os_resource_classes
import os_traits
import sqlalchemy as sa

from nubila.core import checks
from nubila.core.call import Call, Reply
from nubila.core.db import Reader
from nubila.core.faults import Fault, bad_request
from nubila.core.types import is_uuid
from nubila.services.placement.kinds import CUSTOM_CLASS, CUSTOM_TRAIT, PROVIDER

Row = dict[str, Any]
CONCURRENT, IN_USE, DUPLICATE = (
    "placement.concurrent_update", "placement.inventory.inuse", "placement.duplicate_name",
)  # fmt: skip
PROVIDER_IN_USE, PARENT = "placement.resource_provider.inuse", "placement.resource_provider.cannot_delete_parent"
# The original has these for few queries; what the schema refuses, and what is not there, has no code of its own.
BAD_VALUE, MISSING = "placement.query.bad_value", "placement.query.missing_value"
UUID = "^[0-9a-fA-F]{8}-?(?:[0-9a-fA-F]{4}-?){3}[0-9a-fA-F]{12}$"
NAME = "^[A-Z0-9_]+$"
CUSTOM = "^CUSTOM_[A-Z0-9_]+$"
_ONE = sa.select(PROVIDER).where(PROVIDER.c.id == sa.bindparam("id"))


def obj(properties: Mapping[str, Any], required: Iterable[str] = (), *, extra: bool = False) -> Row:
    """An object with exactly these properties."""
    return {
        "type": "object", "properties": dict(properties), "required": list(required), "additionalProperties": extra,
    }  # fmt: skip


def body(call: Call, schema: Mapping[str, Any]) -> Any:
    """The request's body, checked. Raises 400."""
    if call.body is None:
        raise bad_request("Malformed JSON: the request needs a body.")
    checks.checker(schema)(call.body)
    return call.body


def query(call: Call, known: Iterable[str], repeated: Iterable[str] = ()) -> dict[str, str]:
    """The query as a dict. Raises 400 for unknown and repeated keys."""
    names, many, out = set(known), set(repeated), {}
    for key, value in call.query:
        if key not in names:
            raise bad_request(f"Invalid query string parameters: '{key}' was unexpected.")
        if key in out and key not in many:
            raise bad_request(f"Invalid query string parameters: '{key}' is given twice.")
        out[key] = value
    return out


def answer(call: Call, data: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Reply:
    """An answer with the headers of 1.15."""
    more = dict(headers or {})
    if call.version >= (1, 15):
        more |= {"Last-Modified": formatdate(usegmt=True), "Cache-Control": "no-cache"}
    return Reply(data, status, more)


def provider(call: Call, id: str | None = None) -> Row:
    """The provider in the path. Raises 404."""
    key = id or call.params["uuid"]
    row = call.tx.one(_ONE, {"id": key.lower()}) if is_uuid(key) else None
    if row is None:
        raise Fault(404, f"There is no resource provider {key}.")
    return dict(row)


def same_generation(row: Row, given: int) -> None:
    """409 when somebody changed the provider meanwhile."""
    if row["generation"] != given:
        raise Fault(
            409, "resource_provider_generation is out of date: read the provider again and repeat.",
            CONCURRENT,
        )  # fmt: skip


def classes(reader: Reader) -> list[str]:
    """Every resource class there is."""
    return [*os_resource_classes.STANDARDS, *(n for (n,) in reader.rows(sa.select(CUSTOM_CLASS.c.name)))]


def known_class(reader: Reader, name: str) -> bool:
    """Whether the resource class exists."""
    if name in os_resource_classes.STANDARDS:
        return True
    return reader.scalar(sa.select(CUSTOM_CLASS.c.name).where(CUSTOM_CLASS.c.name == name)) is not None


def traits(reader: Reader) -> set[str]:
    """Every trait there is."""
    return {*os_traits.get_traits(), *(n for (n,) in reader.rows(sa.select(CUSTOM_TRAIT.c.name)))}


def resources(reader: Reader, text: str) -> dict[str, int]:
    """``VCPU:1,MEMORY_MB:512`` as a dict. Raises 400."""
    out: dict[str, int] = {}
    for part in text.split(","):
        name, colon, amount = part.partition(":")
        if not colon or not re.fullmatch(r"[1-9]\d{0,9}", amount):
            raise bad_request(f"Badly formed resources parameter. Expected resources=CLASS:AMOUNT,... Got: '{text}'")
        if not known_class(reader, name):
            raise bad_request(f"Invalid resource class in resources parameter: No such resource class {name}.")
        out[name] = int(amount)
    return out


class TraitWish:
    """``required``: traits all of which, none of which, and any of which (per group) are wanted."""

    def __init__(self) -> None:
        self.every: set[str] = set()
        self.none: set[str] = set()
        self.any: list[set[str]] = []

    def add(self, call: Call, text: str, known: set[str]) -> None:
        """Read one value of the parameter. Raises 400."""
        if not text.strip():
            raise bad_request("Invalid query string parameters: required is empty.")
        if text.startswith("in:"):
            if call.version < (1, 39):
                raise bad_request("The any-traits syntax in: needs version 1.39.")
            group = set(text[3:].split(","))
            self._check(group, known)
            self.any.append(group)
            return
        for name in text.split(","):
            if name.startswith("!"):
                if call.version < (1, 22):
                    raise bad_request("Forbidden traits (!) need version 1.22.")
                self._check({name[1:]}, known)
                self.none.add(name[1:])
            else:
                self._check({name}, known)
                self.every.add(name)

    @staticmethod
    def _check(names: set[str], known: set[str]) -> None:
        if missing := sorted(n for n in names if n not in known):
            raise bad_request(f'Invalid trait(s) in "required" parameter: No such trait(s): {", ".join(missing)}.')

    def tolerates(self, have: set[str]) -> bool:
        """Whether a provider with these traits may take part at all."""
        return not self.none & have

    def holds(self, have: set[str]) -> bool:
        """Whether a provider (or tree) with these traits will do."""
        return self.every <= have and not self.none & have and all(g & have for g in self.any)


class MemberWish:
    """``member_of``: aggregates a provider must be in and must not be in."""

    def __init__(self) -> None:
        self.groups: list[set[str]] = []
        self.none: set[str] = set()

    def add(self, call: Call, text: str) -> None:
        """Read one value of the parameter. Raises 400."""
        forbidden = text.startswith("!")
        if forbidden:
            if call.version < (1, 32):
                raise bad_request("Forbidden aggregates (!) need version 1.32.")
            text = text[1:]
        ids = text[3:].split(",") if text.startswith("in:") else [text]
        if not all(is_uuid(i) for i in ids):
            raise bad_request(f"member_of: '{text}' must be UUIDs.")
        if forbidden:
            self.none |= set(ids)
        else:
            self.groups.append(set(ids))

    def holds(self, have: set[str]) -> bool:
        """Whether a provider in these aggregates will do."""
        return not self.none & have and all(g & have for g in self.groups)
