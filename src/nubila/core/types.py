"""Attribute types: one object knows the column, the JSON schema and how a query string spells it.

``schema`` is what a request body may hold (JSON Schema), ``load`` turns a valid body value into the stored one,
``parse`` does the same for a query string (ValueError = refused), ``dump`` turns the stored value into the answer's.
"""

from __future__ import annotations

import ipaddress
import math
import re
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import sqlalchemy as sa

from nubila.core import clock


def _same(value: Any) -> Any:
    return value


@dataclass(frozen=True)
class Type:
    """What one attribute can hold."""

    sql: Callable[[], Any]
    schema: dict[str, Any] = field(default_factory=dict)
    parse: Callable[[str], Any] = _same
    load: Callable[[Any], Any] = _same
    dump: Callable[[Any], Any] | None = None
    convert: Callable[[Any], Any] | None = None  # ValueError: the value cannot be read as one of this type at all


def Str(n: int = 255, *, lo: int = 0, pattern: str | None = None) -> Type:
    """Text of ``lo`` to ``n`` characters."""
    schema: dict[str, Any] = {"type": "string", "maxLength": n}
    if lo:
        schema["minLength"] = lo
    if pattern:
        schema["pattern"] = pattern
    return Type(lambda: sa.String(n), schema)


def Text(n: int = 65535) -> Type:
    """Long text."""
    return Type(sa.Text, {"type": "string", "maxLength": n})


def Enum(*values: str) -> Type:
    """One of a few words."""
    return Type(lambda: sa.String(64), {"type": "string", "enum": list(values)})


def _int(text: str) -> int:
    if not re.fullmatch(r"[+-]?\d{1,18}", text):
        raise ValueError("not a whole number")
    return int(text)


def Int(lo: int | None = 0, hi: int = 2**31 - 1) -> Type:
    """A whole number."""
    schema: dict[str, Any] = {"type": "integer", "maximum": hi}
    if lo is not None:
        schema["minimum"] = lo
    return Type(sa.BigInteger, schema, _int, int)  # JSON Schema takes 3.0 for a whole number


def LooseInt(lo: int | None = 0, hi: int = 2**31 - 1) -> Type:
    """A whole number that may also come as text, as Compute and Network accept it."""
    strict = dict(Int(lo, hi).schema)

    def load(value: Any) -> int:
        number = int(value)
        if number > hi or (lo is not None and number < lo):
            raise ValueError(f"'{value}' is not between {lo} and {hi}")
        return number

    return Type(
        sa.BigInteger, {"anyOf": [strict, {"type": "string", "pattern": r"^-?[0-9]{1,18}$"}]}, _int, load, convert=int
    )


def _float(value: Any) -> float:
    number = float(value)
    if not math.isfinite(number):
        raise ValueError("not a number")
    return number


def Float(lo: float = 0.0) -> Type:
    """A number."""
    return Type(lambda: sa.Double, {"type": "number", "minimum": lo}, _float, _float)


_TRUE, _FALSE = ("true", "1", "yes", "on", "t", "y"), ("false", "0", "no", "off", "f", "n")


def boolean(value: Any) -> bool:
    """Read a truth value spelled in any of the ways clients spell it; ValueError otherwise."""
    text = str(value).strip().lower()
    if text in _TRUE:
        return True
    if text in _FALSE:
        return False
    raise ValueError("not true or false")


Bool = Type(lambda: sa.Boolean, {"type": "boolean"}, boolean)
LooseBool = Type(
    lambda: sa.Boolean,
    {"enum": [True, False, "True", "TRUE", "true", "1", "ON", "On", "on", "YES", "Yes", "yes", "y", "t",
              "False", "FALSE", "false", "0", "OFF", "Off", "off", "NO", "No", "no", "n", "f", 0, 1]},
    boolean,
    boolean,
    convert=boolean,
)  # fmt: skip

_UUID = r"^[0-9a-fA-F]{8}-?[0-9a-fA-F]{4}-?[0-9a-fA-F]{4}-?[0-9a-fA-F]{4}-?[0-9a-fA-F]{12}$"
Uuid = Type(lambda: sa.String(36), {"type": "string", "pattern": _UUID})
Id64 = Str(64)  # Identity's ids: 32 hexadecimal digits, or "default"
Time = Type(lambda: sa.String(32), {"type": "string"}, dump=clock.zulu)
Json = Type(lambda: sa.JSON)


def is_uuid(text: str) -> bool:
    """Whether the text is a UUID, with or without dashes."""
    return re.fullmatch(_UUID, text) is not None


def List(item: Type, *, max_items: int | None = None, unique: bool = False) -> Type:
    """A JSON list kept in one column."""
    schema: dict[str, Any] = {"type": "array", "items": item.schema}
    if max_items is not None:
        schema["maxItems"] = max_items
    if unique:
        schema["uniqueItems"] = True
    return Type(lambda: sa.JSON, schema)


def Object(properties: dict[str, dict[str, Any]], required: tuple[str, ...] = (), *, extra: bool = False) -> Type:
    """A JSON object with known properties kept in one column."""
    schema = {"type": "object", "properties": properties, "required": list(required), "additionalProperties": extra}
    return Type(lambda: sa.JSON, schema)


def Map(key_pattern: str = r"^.{1,255}$", value: dict[str, Any] | None = None) -> Type:
    """A JSON object with free keys, such as metadata."""
    schema = {
        "type": "object",
        "patternProperties": {key_pattern: value or {"type": "string", "maxLength": 255}},
        "additionalProperties": False,
    }
    return Type(lambda: sa.JSON, schema)


def _checked(read: Callable[[str], Any]) -> Callable[[Any], Any]:
    def load(value: Any) -> Any:
        return value if value is None else str(read(value))

    return load


def _mac(text: str) -> str:
    clean = text.lower().replace("-", ":")
    if not re.fullmatch(r"([0-9a-f]{2}:){5}[0-9a-f]{2}", clean):
        raise ValueError(f"'{text}' is no MAC address")
    if clean == "00:00:00:00:00:00" or int(clean[:2], 16) & 1:
        raise ValueError(f"'{text}' is no port's MAC address: it is all zero or a multicast one")
    return clean


def _ip(text: str) -> str:
    if "%" in text:
        raise ValueError(f"'{text}' has a zone index, which means something on one host only")
    return str(ipaddress.ip_address(text))


def cidr(text: str) -> str:
    """Normalise a CIDR (host bits cleared); ValueError otherwise."""
    if "%" in text:
        raise ValueError(f"'{text}' has a zone index, which means something on one host only")
    return str(ipaddress.ip_network(text, strict=False))


# A ``load`` that raises ValueError becomes a 400 naming the attribute.
Ip = Type(lambda: sa.String(64), {"type": "string"}, load=_checked(_ip))
Cidr = Type(lambda: sa.String(64), {"type": "string"}, load=_checked(cidr), convert=_checked(cidr))
Mac = Type(lambda: sa.String(32), {"type": "string"}, load=_checked(_mac), parse=lambda s: s.lower())


def with_schema(base: Type, schema: dict[str, Any]) -> Type:
    """The same type accepting another request schema."""
    return replace(base, schema=schema)
