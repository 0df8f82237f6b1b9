"""Make request bodies out of JSON Schemas: the smallest valid one, and random ones, good and bad."""

from __future__ import annotations

import random
import re
import string
from collections.abc import Callable, Mapping
from re import _constants as sre  # type: ignore[attr-defined]
from re import _parser as parser  # type: ignore[attr-defined]
from typing import Any

Schema = Mapping[str, Any]
JUNK: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 2**31, 2**63, -(2**63), 10**30, 1.5, -0.0, 1e308, "", " ", "x", "0", "-1", "null",
    "true", "../../etc/passwd", "%00", "%s%s%n", "'; DROP TABLE port; --", "a" * 300, "é" * 70, "\U0001f600", "\u202e",
    "1e309", "0x10", "::1", "0.0.0.0", "255.255.255.256", "10.0.0.0/33", "10.0.0.0/0", "fe80::/10", "ff:ff:ff:ff:ff:ff",
    "2030-01-01T00:00:00Z", "99999-01-01", "{", "[]", "*", "%", "_", "\\", [], {}, [None], [[]], {"": ""}, {"id": None},
    [1, "a"], {"a": {"b": {"c": []}}}, "PUBLIC", "\n", "\t", "a b", "a/b", "a,b", "in:a,b",
)  # fmt: skip


def whole(schema: Schema) -> Schema:
    """The schema with its allOf merged in."""
    out = dict(schema)
    for part in out.pop("allOf", ()):
        part = whole(part)
        for key, value in part.items():
            if key == "properties":
                out["properties"] = {**out.get("properties", {}), **value}
            elif key == "required":
                out["required"] = [*out.get("required", ()), *value]
            else:
                out.setdefault(key, value)
    return out


def kind_of(schema: Schema) -> str:
    """The type word of a schema, guessed when it is not said."""
    kind = schema.get("type")
    if isinstance(kind, list):
        return next((k for k in kind if k != "null"), "null")
    if kind:
        return str(kind)
    if "properties" in schema or "patternProperties" in schema:
        return "object"
    if "items" in schema:
        return "array"
    return "string" if {"pattern", "minLength", "maxLength", "format"} & schema.keys() else ""


def smallest(schema: Schema, hint: Callable[[str], Any] = lambda name: None, name: str = "") -> Any:
    """The smallest value the schema takes; ``hint`` may know a value for a property's name."""
    schema = whole(schema)
    known = hint(name) if name else None
    if known is not None:
        return known
    if "const" in schema:
        return schema["const"]
    if "enum" in schema:
        return schema["enum"][0]
    for word in ("oneOf", "anyOf"):
        if word in schema and not (word == "anyOf" and schema.get("type") == "string"):
            return smallest(schema[word][0], hint)
    kind = kind_of(schema)
    if kind == "object":
        properties = schema.get("properties", {})
        names = dict.fromkeys([*schema.get("required", ()), *list(properties)[: schema.get("minProperties", 0)]])
        return {n: smallest(properties.get(n, {}), hint, n) for n in names}
    if kind == "array":
        return [smallest(schema.get("items", {}), hint) for _ in range(schema.get("minItems", 0))]
    if kind == "string":
        return Maker(random.Random(7)).text(schema)
    if kind in ("integer", "number"):
        return schema.get("minimum", 0)
    return {"boolean": False, "null": None}.get(kind, "x")


class Maker:
    """Random values. ``ids`` gives an id for a property or path parameter of that name; ``mark`` is in free texts."""

    def __init__(self, r: random.Random, ids: Callable[[str], str] | None = None, mark: str = "") -> None:
        self.r, self.ids, self.mark = r, ids, mark

    # --- valid ones -----------------------------------------------------------------------------------------------

    def value(self, schema: Schema, name: str = "", depth: int = 0) -> Any:
        """A value that the schema (nearly always) takes."""
        r, schema = self.r, whole(schema)
        if "const" in schema:
            return schema["const"]
        if "enum" in schema:
            return r.choice(schema["enum"])
        for word in ("oneOf", "anyOf"):
            if word in schema:
                base = {k: v for k, v in schema.items() if k != word}
                return self.value({**base, **r.choice(schema[word])}, name, depth)
        if isinstance(schema.get("type"), list):
            schema = {**schema, "type": r.choice(schema["type"])}
        kind = kind_of(schema)
        if kind == "object":
            return self.object(schema, depth)
        if kind == "array":
            low, high = schema.get("minItems", 0), min(schema.get("maxItems", 3), 3)
            singular = name[:-1] if name.endswith("s") else name
            items = [
                self.value(schema.get("items", {}), singular, depth + 1) for _ in range(r.randint(low, max(low, high)))
            ]
            return items if not schema.get("uniqueItems") else [x for i, x in enumerate(items) if x not in items[:i]]
        if kind == "string":
            return self.named(name) or self.text(schema)
        if kind in ("integer", "number"):
            low, high = schema.get("minimum", -5), schema.get("maximum", 2**31)
            near = min(high, low + r.choice((0, 1, 2, 10, 100)))
            return r.choice((low, near, near, near, high))
        if kind == "boolean":
            return r.random() < 0.5
        if kind == "null":
            return None
        return self.named(name) or r.choice(("x", 1, True, None, {}, [], "y" * 10))

    def object(self, schema: Schema, depth: int) -> dict[str, Any]:
        r, properties = self.r, schema.get("properties", {})
        required = set(schema.get("required", ()))
        share = r.choice((0.0, 0.15, 0.4, 0.8))
        out = {n: self.value(s, n, depth + 1) for n, s in properties.items() if n in required or r.random() < share}
        for missing in required - properties.keys():
            out[missing] = self.value({}, missing, depth + 1)
        if depth < 4 and r.random() < 0.5:
            for pattern, inner in schema.get("patternProperties", {}).items():
                for _ in range(r.randint(0, 2)):
                    out[self.text({"pattern": pattern})] = self.value(inner, "", depth + 1)
        return out

    def named(self, name: str) -> str | None:
        """A value that makes sense for a property of this name."""
        r = self.r
        word = name.rsplit(":", 1)[-1].lower()
        if self.ids is not None and re.search(r"(^|_)(id|uuid|ref|ids)$|ref$|^(port|network|flavor|imageref)$", word):
            return self.ids(word)
        if word in ("cidr", "destination", "subnet", "remote_ip_prefix", "default_prefixlen"):
            return r.choice(("10.1.0.0/24", "10.2.0.0/16", "192.168.7.0/28", "2001:db8::/64", "0.0.0.0/0"))
        if word in (
            "ip_address",
            "gateway_ip",
            "nexthop",
            "start",
            "end",
            "fixed_ip",
            "floating_ip_address",
            "address",
        ):
            return r.choice((f"10.1.0.{r.randint(0, 255)}", f"10.20.0.{r.randint(2, 250)}", "2001:db8::5", "1.1.1.1"))
        if word in ("mac_address", "mac"):
            return f"fa:16:3e:00:00:{r.randint(0, 255):02x}"
        return None

    def text(self, schema: Schema) -> str:
        """A text the schema takes."""
        r, high = self.r, schema.get("maxLength", 30)
        if fmt := schema.get("format"):
            found = {"ipv4": "10.1.0.9", "ipv6": "2001:db8::9", "uuid": self.uuid(), "uri": "http://127.0.0.1:9/",
                     "date-time": "2030-01-01T00:00:00Z", "cidr": "10.1.0.0/24"}.get(fmt)  # fmt: skip
            if found:
                return found
        if "pattern" in schema:
            made = self.match(schema["pattern"])
            if self.mark and len(self.mark + made) <= high and re.search(schema["pattern"], self.mark + made):
                return self.mark + made
            if schema.get("minLength", 0) <= len(made) <= high:
                return made
        made = self.mark + "".join(r.choices(string.ascii_letters + string.digits, k=r.choice((1, 3, 8))))
        return made.ljust(schema.get("minLength", 0), "x")[:high]

    def uuid(self) -> str:
        """A random UUID."""
        h = f"{self.r.getrandbits(128):032x}"
        return f"{h[:8]}-{h[8:12]}-4{h[13:16]}-8{h[17:20]}-{h[20:]}"

    def match(self, pattern: str) -> str:
        """A text that matches a regular expression (without look-arounds)."""
        try:
            return self._sequence(parser.parse(pattern))
        except (re.error, KeyError, ValueError, OverflowError):
            return "x"

    def _sequence(self, tree: Any) -> str:
        return "".join(self._piece(op, arg) for op, arg in tree)

    def _piece(self, op: Any, arg: Any) -> str:
        r = self.r
        if op is sre.LITERAL:
            return chr(arg)
        if op is sre.NOT_LITERAL:
            return "a" if chr(arg) != "a" else "b"
        if op is sre.ANY:
            return r.choice(string.ascii_letters)
        if op is sre.IN:
            return self._one_of(arg)
        if op is sre.BRANCH:
            return self._sequence(r.choice(arg[1]))
        if op is sre.SUBPATTERN:
            return self._sequence(arg[3])
        if op in (sre.MAX_REPEAT, sre.MIN_REPEAT):
            low, high, inner = arg
            n = r.randint(low, max(low, min(int(high), low + 6)))
            return "".join(self._sequence(inner) for _ in range(n))
        return ""

    def _one_of(self, parts: Any) -> str:
        r, candidates = self.r, ""
        negated = parts and parts[0][0] is sre.NEGATE
        for op, arg in parts:
            if op is sre.LITERAL:
                candidates += chr(arg)
            elif op is sre.RANGE:
                candidates += "".join(map(chr, range(arg[0], min(arg[1], arg[0] + 200) + 1)))
            elif op is sre.CATEGORY:
                candidates += {sre.CATEGORY_DIGIT: string.digits, sre.CATEGORY_SPACE: " "}.get(
                    arg, string.ascii_letters + string.digits
                )
        if negated:
            rest = [c for c in string.ascii_letters + string.digits if c not in candidates]
            return r.choice(rest or ["~"])
        return r.choice(candidates or "x")

    # --- bad ones -------------------------------------------------------------------------------------------------

    def spoil(self, value: Any) -> Any:
        """The value with one thing in it wrong, missing or too much."""
        r = self.r
        if isinstance(value, dict) and value and r.random() < 0.85:
            out = dict(value)
            key = r.choice(list(out))
            what = r.random()
            if what < 0.15:
                del out[key]
            elif what < 0.25:
                out["unknown" + str(r.randint(0, 9))] = self.junk()
            else:
                out[key] = self.spoil(out[key])
            return out
        if isinstance(value, list) and value and r.random() < 0.7:
            out_list = list(value)
            i = r.randrange(len(out_list))
            out_list[i] = self.spoil(out_list[i])
            return out_list if r.random() < 0.8 else out_list * 2
        return self.junk()

    def junk(self) -> Any:
        """Something that is rarely right."""
        return self.r.choice(JUNK)
