"""Check request bodies against what the declaration allows, and bring them to stored form.

Validators are compiled once per (schema); a failure says which field and what would be accepted.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Mapping
from typing import Any

import jsonschema_rs

from nubila.core.declare import UNSET, Attr, Resource, body_schema, epoch
from nubila.core.faults import bad_request
from nubila.core.gates import Version
from nubila.core.remember import remembered

NO_SUCH = "ConversionError"


class Invalid(ValueError):
    """A value that the schema refuses: ``path`` ("server.name"), ``rule`` ("maxLength"), ``value``."""

    def __init__(self, path: str, rule: str, message: str, value: Any = None) -> None:
        super().__init__(message)
        self.path, self.rule, self.value, self.message = path, rule, value, message


class Checker:
    """A compiled JSON Schema (draft 4 wording of numbers and formats is not needed: 2020-12)."""

    def __init__(self, schema: Mapping[str, Any]) -> None:
        self.schema = schema
        self._validator = jsonschema_rs.Draft202012Validator(dict(schema), validate_formats=True)

    def __call__(self, value: Any) -> None:
        """Return when valid, else raise a 400 Fault that names the field."""
        if self._validator.is_valid(value):
            return
        first = min(self._validator.iter_errors(value), key=lambda e: len(list(e.instance_path)))
        path = ".".join(str(p) for p in first.instance_path)
        kind = getattr(first.kind, "name", "") or type(first.kind).__name__
        raise bad_request(_sentence(path, str(first.message), value), type="ValidationError" if kind else "")


def _sentence(path: str, message: str, value: Any) -> str:
    text = message if len(message) < 400 else message[:400] + "..."
    return f"Invalid input for field/attribute {path or 'body'}: {text}."


@remembered
def _compiled(text: str) -> Checker:
    return Checker(json.loads(text))


def checker(schema: Mapping[str, Any]) -> Checker:
    """The checker of a schema, compiled once."""
    return _compiled(json.dumps(schema, sort_keys=True))


@remembered
def _plan(
    cls: type[Resource], verb: str, version: Version
) -> tuple[Checker, dict[str, Attr], dict[str, Any], tuple[tuple[str, Any], ...]]:
    """What a verb needs in a version: checker, attributes, defaults that may be shared, those that are made anew."""
    letter = {"create": "c", "update": "u"}[verb]
    attrs = {n: a for n, a in cls.by_wire.items() if letter in a.write and a.take.open(version)}
    defaults: tuple[tuple[str, Any], ...] = ()
    if verb == "create":
        defaults = tuple(
            (a.name, None if a.default is UNSET else a.default)
            for a in cls.attrs.values()
            if (a.default is not UNSET or "c" in a.write) and a.store
        )
    fixed = {name: value for name, value in defaults if isinstance(value, str | int | float | bool | None)}
    fresh = tuple((name, value) for name, value in defaults if name not in fixed)
    return checker(body_schema(cls, verb, version)), attrs, fixed, fresh


def accept(cls: type[Resource], verb: str, body: Mapping[str, Any], version: Version) -> dict[str, Any]:
    """Check the inner object of a body and return stored values by attribute name, without defaults.

    Unknown names are refused unless the representation keeps them (then they are left out here).
    """
    check, attrs, _, _ = _plan(cls, verb, epoch(cls, version))
    for name, raw in body.items():
        a = attrs.get(name)
        if a is not None and a.type.convert is not None and isinstance(raw, str | int | float):
            _convertible(a.type.convert, name, raw)
    check(body)
    values: dict[str, Any] = {}
    for name, raw in body.items():
        a = attrs.get(name)
        if a is None:
            continue
        values[a.name] = raw if raw is None else loaded(a.type.load, name, raw)
    return values


def _convertible(convert: Callable[[Any], Any], name: str, raw: Any) -> None:
    """Refuse what is no boolean, number or CIDR at all: Network words that unlike a value that is out of bounds."""
    try:
        convert(raw)
    except (ValueError, OverflowError, TypeError) as e:
        raise bad_request(f"Invalid input for field/attribute {name}: '{str(raw)[:100]}' is {e}.", NO_SUCH) from None


def loaded(load: Callable[[Any], Any], name: str, raw: Any) -> Any:
    """Apply a type's ``load``; what it refuses becomes a 400 naming the field."""
    try:
        return load(raw)
    except (ValueError, TypeError) as e:
        raise bad_request(f"Invalid input for {name}: {e}.", "HTTPBadRequest") from None


def defaults(cls: type[Resource], values: dict[str, Any], version: Version) -> dict[str, Any]:
    """Fill in what a create body left out. Callables are called."""
    _, _, fixed, fresh = _plan(cls, "create", epoch(cls, version))
    for name, value in fresh:
        if name not in values:
            values[name] = value() if callable(value) else copy.copy(value)
    values.update({**fixed, **values})
    return values
