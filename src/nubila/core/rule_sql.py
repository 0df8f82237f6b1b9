"""A parsed rule as a WHERE clause: the rows for which the rule would say yes."""

from __future__ import annotations

import re
import uuid
from collections.abc import Callable, Iterable
from typing import Any

import sqlalchemy as sa

from nubila.core.rule_tree import (
    TRUTH,
    All,
    Always,
    CredCheck,
    Creds,
    FieldCheck,
    Match,
    Node,
    Not,
    OneOf,
    Place,
    RoleCheck,
    RuleRef,
    alias_of,
    constant_of,
    cred_values,
    field_holds,
    place_of,
)

Column = Callable[[str], "sa.ColumnElement[Any] | str | int | bool | None"]
Sql = bool | sa.ColumnElement[bool]


def _python_type(column: sa.ColumnElement[Any]) -> type:
    if isinstance(column.type, sa.Enum):
        return object  # compared as text: a value outside the enumeration must be unequal, not an error
    try:
        return column.type.python_type
    except NotImplementedError:
        return str


def _sql_equal(column: sa.ColumnElement[Any], text: str, negated: bool) -> Sql:
    """``str(value) == text`` for a column; two-valued (null is unequal) where a negation would see the difference."""
    kind = _python_type(column)
    if kind is bool:
        answer = {"True": sa.true(), "False": sa.false()}.get(text)
        return False if answer is None else column.is_(answer)
    value: Any = text
    if kind in (int, uuid.UUID):
        try:
            value = kind(text)
        except ValueError:
            return False
        if str(value) != text:
            return False
    elif kind is not str:
        column = sa.cast(column, sa.String)
    equal = column == value
    return sa.and_(column.is_not(None), equal) if negated else equal


def _sql_text(column: sa.ColumnElement[Any]) -> sa.ColumnElement[str]:
    kind = _python_type(column)
    if kind is bool:
        return sa.case((column.is_(sa.true()), "True"), (column.is_(sa.false()), "False"), else_=sa.null())
    return column if kind is str else sa.cast(column, sa.String)


def _sql_any(parts: Iterable[Sql]) -> Sql:
    rest: list[sa.ColumnElement[bool]] = []
    for part in parts:
        if isinstance(part, bool):
            if part:
                return True
        else:
            rest.append(part)
    return sa.or_(*rest) if len(rest) > 1 else rest[0] if rest else False


def _sql_all(parts: Iterable[Sql]) -> Sql:
    rest: list[sa.ColumnElement[bool]] = []
    for part in parts:
        if isinstance(part, bool):
            if not part:
                return False
        else:
            rest.append(part)
    return sa.and_(*rest) if len(rest) > 1 else rest[0] if rest else True


def _column(column: Column, name: str) -> Any:
    found = column(name)
    other = alias_of(name) if found is None else None
    return column(other) if other is not None else found


def _sql_match(match: Match, texts: list[str], column: Column, negated: bool, lower: bool = False) -> Sql:
    """The filled match is one of ``texts``; a place without a column makes it false."""
    pieces = [_column(column, part.name) if isinstance(part, Place) else part for part in match]
    if not texts or any(piece is None for piece in pieces):
        return False
    if not any(isinstance(piece, sa.ColumnElement) for piece in pieces):
        plain = "".join(map(str, pieces))
        return (plain.lower() if lower else plain) in texts
    first: Any = pieces[0]
    if len(pieces) == 1 and not lower:
        return _sql_any(_sql_equal(first, text, negated) for text in texts)
    whole: Any = None
    for piece in pieces:
        part = _sql_text(piece) if isinstance(piece, sa.ColumnElement) else sa.literal(str(piece))
        whole = part if whole is None else whole.concat(part)
    if lower:
        whole = sa.func.lower(whole)
    equal: sa.ColumnElement[bool] = whole.in_(texts)
    return sa.and_(whole.is_not(None), equal) if negated else equal


def _sql_cred(node: CredCheck, creds: Creds, column: Column, negated: bool) -> Sql:
    constant, name = constant_of(node.match), place_of(node.match)
    if node.literal is None:
        values = cred_values(creds, node.path)
        if constant is not None:
            return any(str(value) == constant for value in values)
        texts = list(dict.fromkeys(str(value) for value in values if value is not None))
        return _sql_match(node.match, texts, column, negated)
    if constant is not None:
        return node.literal == constant
    if node.literal == "None" and name is not None:
        found = _column(column, name)
        return found.is_(None) if isinstance(found, sa.ColumnElement) else False
    return _sql_match(node.match, [node.literal], column, negated)


def _sql_field(node: FieldCheck, column: Column, negated: bool) -> Sql:
    found: Any = column(node.field)
    if found is None:
        found = column(f"{node.resource}:{node.field}")
    if not isinstance(found, sa.ColumnElement):
        return field_holds(node, found)
    if node.regex is None:
        if _python_type(found) is not bool:
            return _sql_equal(found, node.value, negated)
        truth = TRUTH.get(node.value.lower())
        return False if truth is None else _sql_equal(found, str(truth), negated)
    text, pattern = _sql_text(found), node.regex.pattern.removeprefix("^")
    if re.fullmatch(r"[\w:/ -]+", pattern):  # a prefix: an index may serve it, and it means the same everywhere
        holds: sa.ColumnElement[bool] = sa.func.substr(text, 1, len(pattern)) == pattern
    else:
        holds = text.regexp_match(f"^(?:{node.regex.pattern})")
    return sa.and_(text.is_not(None), holds) if negated else holds


def where(node: Node, rule: Callable[[str], Node | None], creds: Creds, column: Column, negated: bool = False) -> Sql:
    """The clause for one tree; ``rule`` finds trees it refers to, ``negated``: an odd number of nots is around it."""
    match node:
        case Always(answer):
            return answer
        case Not(part):
            inner = where(part, rule, creds, column, not negated)
            return (not inner) if isinstance(inner, bool) else sa.not_(inner)
        case All(parts):
            return _sql_all(where(part, rule, creds, column, negated) for part in parts)
        case OneOf(parts):
            return _sql_any(where(part, rule, creds, column, negated) for part in parts)
        case RuleRef(name):
            tree = rule(name)
            return False if tree is None else where(tree, rule, creds, column, negated)
        case RoleCheck(match):
            return _sql_role(match, creds, column, negated)
        case FieldCheck():
            return _sql_field(node, column, negated)
        case CredCheck():
            return _sql_cred(node, creds, column, negated)


def _sql_role(match: Match, creds: Creds, column: Column, negated: bool) -> Sql:
    roles = [role.lower() for role in creds.get("roles") or ()]
    constant = constant_of(match)
    if constant is not None:
        return constant.lower() in roles
    return _sql_match(match, roles, column, negated, lower=True)
