"""The policy language as a tree: parsing (core/rules.py describes it) and finding the values it names."""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

Creds = Mapping[str, Any]
Target = Mapping[str, Any]
Decision = Callable[[Creds, Target], bool]

MAX_DEPTH = 100  # nesting of one rule; deeper is a mistake and would exhaust the stack
MISSING: Any = object()
_PLACE = re.compile(r"%(?:%|\(([^()%]+)\)s)")
TRUTH = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}


class RuleError(ValueError):
    """A rule that cannot be used; the text is one sentence naming the rule and what is wrong with it."""


# --- the tree ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Place:
    """``%(name)s`` in a match."""

    name: str


Match = tuple["str | Place", ...]  # () is the empty text


@dataclass(frozen=True, slots=True)
class Always:
    answer: bool


@dataclass(frozen=True, slots=True)
class Not:
    part: Node


@dataclass(frozen=True, slots=True)
class All:
    parts: tuple[Node, ...]


@dataclass(frozen=True, slots=True)
class OneOf:
    parts: tuple[Node, ...]


@dataclass(frozen=True, slots=True)
class RuleRef:
    name: str


@dataclass(frozen=True, slots=True)
class RoleCheck:
    match: Match


@dataclass(frozen=True, slots=True)
class FieldCheck:
    resource: str
    field: str
    value: str
    regex: re.Pattern[str] | None


@dataclass(frozen=True, slots=True)
class CredCheck:
    """``literal`` is set when the kind is a Python literal, else ``path`` leads into the credentials."""

    literal: str | None
    path: tuple[str, ...]
    match: Match


Node = Always | Not | All | OneOf | RuleRef | RoleCheck | FieldCheck | CredCheck


# --- parsing -------------------------------------------------------------------------------------------------------


def _tokens(text: str) -> list[str]:
    """Words, with the parentheses at the ends of a word split off (those of ``%(x)s`` are inside a word)."""
    out: list[str] = []
    for word in text.split():
        bare = word.lstrip("(")
        out.extend("(" * (len(word) - len(bare)))
        if not bare:
            continue
        inner = bare.rstrip(")")
        if inner:
            out.append(inner)
        out.extend(")" * (len(bare) - len(inner)))
    return out


def _match(text: str) -> Match:
    parts: list[str | Place] = []
    plain, end = "", 0
    for found in _PLACE.finditer(text):
        plain += text[end : found.start()]
        end = found.end()
        if found[1] is None:
            plain += "%"
            continue
        if plain:
            parts.append(plain)
            plain = ""
        parts.append(Place(found[1]))
    plain += text[end:]
    rest = _PLACE.sub("", text)
    if "%" in rest:
        raise RuleError(f"{text!r} has a % that is neither %(name)s nor %%")
    if plain:
        parts.append(plain)
    return tuple(parts)


def _field(match: str) -> FieldCheck:
    resource, colon, rest = match.partition(":")
    name, equals, value = rest.partition("=")
    if not colon or not equals or not name:
        raise RuleError(f"'field:{match}' is not of the form field:RESOURCE:ATTRIBUTE=VALUE")
    regex = None
    if value.startswith("~"):
        try:
            regex = re.compile(value[1:])
        except re.error as e:
            raise RuleError(f"'field:{match}' has a bad regular expression: {e}") from None
    return FieldCheck(resource, name, value, regex)


def _check(word: str) -> Node:
    if word in ("@", "!"):
        return Always(word == "@")
    kind, colon, match = word.partition(":")
    if not colon:
        raise RuleError(f"{word!r} is not a check of the form KIND:MATCH")
    if kind == "rule":
        return RuleRef(match)
    if kind == "role":
        return RoleCheck(_match(match))
    if kind == "field":
        return _field(match)
    if kind in ("http", "https"):
        raise RuleError(f"{word!r}: {kind} checks are not supported; use roles and credentials instead")
    try:
        literal = str(ast.literal_eval(kind))
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        if not kind:
            raise RuleError(f"{word!r} has nothing before the colon") from None
        return CredCheck(None, tuple(kind.split(".")), _match(match))
    return CredCheck(literal, (), _match(match))


class _Parser:
    def __init__(self, text: str) -> None:
        self.words = _tokens(text)
        self.at = 0
        self.depth = 0

    def peek(self) -> str:
        return self.words[self.at].lower() if self.at < len(self.words) else ""

    def either(self) -> Node:
        parts = [self.both()]
        while self.peek() == "or":
            self.at += 1
            parts.append(self.both())
        return parts[0] if len(parts) == 1 else OneOf(tuple(parts))

    def both(self) -> Node:
        parts = [self.one()]
        while self.peek() == "and":
            self.at += 1
            parts.append(self.one())
        return parts[0] if len(parts) == 1 else All(tuple(parts))

    def one(self) -> Node:
        word = self.peek()
        if word in ("", "and", "or", ")"):
            raise RuleError(f"a check is missing {'before ' + repr(word) if word else 'at the end'}")
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise RuleError(f"it is nested more than {MAX_DEPTH} deep")
        try:
            self.at += 1
            if word == "not":
                return Not(self.one())
            if word != "(":
                return _check(self.words[self.at - 1])
            tree = self.either()
            if self.peek() != ")":
                raise RuleError("a ) is missing")
            self.at += 1
            return tree
        finally:
            self.depth -= 1


def parse(text: str) -> Node:
    """The tree of one rule's text; the empty text always holds. Raises :class:`RuleError` with a sentence."""
    if text == "":
        return Always(True)
    parser = _Parser(text)
    tree = parser.either()
    if parser.at < len(parser.words):
        raise RuleError(f"{parser.words[parser.at]!r} stands where 'and', 'or' or the end should be")
    return tree


def references(node: Node) -> Iterable[str]:
    match node:
        case RuleRef(name):
            yield name
        case Not(part):
            yield from references(part)
        case All(parts) | OneOf(parts):
            for part in parts:
                yield from references(part)


# --- values --------------------------------------------------------------------------------------------------------


def alias_of(name: str) -> str | None:
    head, colon, last = name.rpartition(":")
    other = {"tenant_id": "project_id", "project_id": "tenant_id"}.get(last)
    return None if other is None else head + colon + other


def fallback_for(name: str) -> Callable[[Target], Any] | None:
    """How to find ``name`` in a target that has no such flat key: its other spelling, or the dotted path."""
    other, path = alias_of(name), name.split(".")
    if other is not None:
        return lambda target: target.get(other, MISSING)
    if len(path) == 1:
        return None

    def walk(target: Target) -> Any:
        value: Any = target
        for key in path:
            if not isinstance(value, Mapping):
                return MISSING
            value = value.get(key, MISSING)
            if value is MISSING:
                return MISSING
        return value

    return walk


def cred_values(creds: Any, path: tuple[str, ...]) -> list[Any]:
    """Every value the path leads to; a list on the way stands for each of its elements."""
    if not path:
        return [creds]
    if not isinstance(creds, Mapping):
        return []
    value = creds.get(path[0], MISSING)
    if value is MISSING:
        other = alias_of(path[0])
        value = creds.get(other, MISSING) if other else MISSING
        if value is MISSING:
            return []
    if isinstance(value, (list, tuple, set, frozenset)):
        return [found for item in value for found in cred_values(item, path[1:])]
    return cred_values(value, path[1:])


def filled_text(match: Match, target: Target) -> str | None:
    """The match with its places filled; None when one is missing or null."""
    out = ""
    for part in match:
        if isinstance(part, Place):
            value = target.get(part.name, MISSING)
            if value is MISSING and (fallback := fallback_for(part.name)) is not None:
                value = fallback(target)
            if value is MISSING or value is None:
                return None
            out += str(value)
        else:
            out += part
    return out


def constant_of(match: Match) -> str | None:
    """The match's text when it has no places."""
    if not match:
        return ""
    return match[0] if len(match) == 1 and isinstance(match[0], str) else None


def place_of(match: Match) -> str | None:
    """The name when the match is exactly one place."""
    return match[0].name if len(match) == 1 and isinstance(match[0], Place) else None


def field_holds(node: FieldCheck, value: Any) -> bool:
    if value is None:
        return False
    if node.regex is not None:
        return node.regex.match(str(value)) is not None
    if isinstance(value, bool):
        return TRUTH.get(node.value.lower()) is value
    return str(value) == node.value
