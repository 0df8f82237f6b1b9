"""OpenStack's policy language, parsed once and compiled twice: to yes/no for one row, and to SQL for lists.

The language (the one of the oslo.policy documentation)::

    role:member and (project_id:%(project_id)s or 'public':%(visibility)s) or rule:admin_required
    @ (always)   ! (never)   not CHECK   is_admin:True   system_scope:all   None:%(trust_id)s
    field:networks:shared=True   field:port:device_owner=~^network:

A check is ``KIND:MATCH``. ``rule:`` refers to another rule, ``role:`` asks the caller's roles without regard to case,
``field:`` (Network) compares an attribute of the target. Every other KIND is a Python literal or the dotted path of a
value in the caller's credentials; lists on the way match when any element does. MATCH is text with ``%(name)s``
places filled from the target: first the flat key, then the dotted path through nested mappings.

Where we differ from oslo.policy, on purpose:

- a null is never equal to a null: ``project_id:%(project_id)s`` does not hold for a row and a token that both have no
  project; ``None:%(x)s`` asks for null explicitly;
- text that cannot be parsed, a cycle and ``http:`` checks are refused when rules are loaded (:class:`RuleError`), they
  do not deny silently or fail per request;
- ``tenant_id`` and ``project_id`` (also behind a prefix, ``network:tenant_id``) are one name: whichever the credentials
  or the target have.

Unknown rule names fall to the rule called ``default`` when there is one, else they deny.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import sqlalchemy as sa

from nubila.core.rule_sql import Column, where
from nubila.core.rule_tree import (
    MAX_DEPTH,
    MISSING,
    All,
    Always,
    CredCheck,
    Creds,
    Decision,
    FieldCheck,
    Match,
    Node,
    Not,
    OneOf,
    RoleCheck,
    RuleError,
    RuleRef,
    Target,
    constant_of,
    cred_values,
    fallback_for,
    field_holds,
    filled_text,
    parse,
    place_of,
    references,
)

__all__ = ["Column", "Creds", "Decision", "RuleError", "RuleSet", "Target", "parse"]

DEFAULT_RULE = "default"
_WORD = re.compile(r"[\w.-]+")

# --- to yes or no --------------------------------------------------------------------------------------------------


def _decide_role(node: RoleCheck) -> Decision:
    constant = constant_of(node.match)
    if constant is not None:
        wanted = constant.lower()

        def fixed(creds: Creds, target: Target) -> bool:
            roles = creds.get("roles")
            if not roles:
                return False
            if wanted in roles:
                return True
            for role in roles:  # noqa: SIM110 - loops here and below: half the time of any() with a generator
                if role.lower() == wanted:
                    return True
            return False

        return fixed

    def filled(creds: Creds, target: Target) -> bool:
        text = filled_text(node.match, target)
        return text is not None and text.lower() in [role.lower() for role in creds.get("roles") or ()]

    return filled


def _decide_place(path: tuple[str, ...], name: str) -> Decision:
    """The commonest check, ``project_id:%(project_id)s``: strings on both sides are compared at once."""
    fallback, key, deep = fallback_for(name), path[0], len(path) > 1

    def decide(creds: Creds, target: Target) -> bool:
        value = target.get(name, MISSING)
        if value is MISSING and fallback is not None:
            value = fallback(target)
        if value is None or value is MISSING:
            return False
        mine = None if deep else creds.get(key)
        if mine.__class__ is str and value.__class__ is str:
            return bool(mine == value)
        text = str(value)
        return any(found is not None and str(found) == text for found in cred_values(creds, path))

    return decide


def _decide_literal(literal: str, match: Match) -> Decision:
    constant, name = constant_of(match), place_of(match)
    if constant is not None:
        return _fixed(literal == constant)
    if name is None:
        return lambda creds, target: filled_text(match, target) == literal
    fallback, null = fallback_for(name), literal == "None"

    def decide(creds: Creds, target: Target) -> bool:
        value = target.get(name, MISSING)
        if value is MISSING:
            value = fallback(target) if fallback is not None else MISSING
            if value is MISSING:
                return False
        return null if value is None else not null and str(value) == literal

    return decide


def _decide_cred(node: CredCheck) -> Decision:
    if node.literal is not None:
        return _decide_literal(node.literal, node.match)
    path, match = node.path, node.match
    constant, name = constant_of(match), place_of(match)
    if name is not None:
        return _decide_place(path, name)
    if constant is None:

        def mixed(creds: Creds, target: Target) -> bool:
            text = filled_text(match, target)
            return text is not None and any(
                found is not None and str(found) == text for found in cred_values(creds, path)
            )

        return mixed
    key, deep = path[0], len(path) > 1

    def fixed(creds: Creds, target: Target) -> bool:
        value = None if deep else creds.get(key)
        if value.__class__ is str:
            return bool(value == constant)
        if value.__class__ is bool:
            return constant == ("True" if value else "False")
        return any(str(found) == constant for found in cred_values(creds, path))

    return fixed


def _decide_field(node: FieldCheck) -> Decision:
    name, other = node.field, f"{node.resource}:{node.field}"

    def decide(creds: Creds, target: Target) -> bool:
        value = target.get(name, MISSING)
        if value is MISSING:
            value = target.get(other)
        return field_holds(node, value)

    return decide


def _fixed(answer: bool) -> Decision:
    return lambda creds, target: answer


def _decide_all(parts: list[Decision]) -> Decision:
    if len(parts) == 2:
        first, second = parts
        return lambda creds, target: first(creds, target) and second(creds, target)

    def decide(creds: Creds, target: Target) -> bool:
        for part in parts:  # noqa: SIM110
            if not part(creds, target):
                return False
        return True

    return decide


def _decide_any(parts: list[Decision]) -> Decision:
    if len(parts) == 2:
        first, second = parts
        return lambda creds, target: first(creds, target) or second(creds, target)

    def decide(creds: Creds, target: Target) -> bool:
        for part in parts:  # noqa: SIM110
            if part(creds, target):
                return True
        return False

    return decide


# --- the set -------------------------------------------------------------------------------------------------------


class RuleSet:
    """Named rules that may refer to each other, checked whole when made; immutable and safe to share by threads."""

    def __init__(self, rules: Mapping[str, str]) -> None:
        """Raises :class:`RuleError` naming the first rule that cannot be parsed or is part of a cycle."""
        self.rules: Mapping[str, str] = dict(rules)
        self._trees: dict[str, Node] = {}
        self._decisions: dict[str, Decision] = {}
        self._texts: dict[str, Decision] = {}
        seen: dict[str, Node] = {}  # many rules share their text
        for name, text in self.rules.items():
            if text not in seen:
                try:
                    seen[text] = parse(text)
                except RuleError as e:
                    raise RuleError(f"rule {name!r} cannot be read: {e}") from None
            self._trees[name] = seen[text]
        self._refuse_cycles()

    def tree(self, name: str) -> Node | None:
        """The parsed rule that answers for ``name``, None when nothing does (it is denied)."""
        return self._tree(name)

    def holds(self, node: Node, creds: Creds, target: Target) -> bool:
        """Whether one part of a rule holds."""
        return self._compile(node)(creds, target)

    def _tree(self, name: str) -> Node | None:
        """The tree that answers for ``name``: its own, the default rule's, or none."""
        return self._trees.get(name) or self._trees.get(DEFAULT_RULE)

    def _refuse_cycles(self) -> None:
        done: set[str] = set()
        for start in self._trees:
            trail: dict[str, None] = {}  # insertion-ordered: the way from start to here
            stack: list[tuple[str, bool]] = [(start, False)]
            while stack:
                name, leave = stack.pop()
                if leave:
                    trail.pop(name)
                    done.add(name)
                    continue
                if name in trail:
                    ring = [*trail][[*trail].index(name) :]
                    raise RuleError(f"rules refer to each other in a circle: {' -> '.join([*ring, name])}")
                if name in done:
                    continue
                if len(trail) > MAX_DEPTH:
                    raise RuleError(f"rule {start!r} refers through more than {MAX_DEPTH} other rules")
                trail[name] = None
                stack.append((name, True))
                for ref in references(self._trees[name]):
                    if (to := ref if ref in self._trees else DEFAULT_RULE) in self._trees:
                        stack.append((to, False))

    def __contains__(self, name: object) -> bool:
        return name in self._trees

    def missing(self) -> list[str]:
        """Names that rules refer to and nobody defines."""
        return sorted({ref for tree in self._trees.values() for ref in references(tree)} - self._trees.keys())

    def references(self) -> set[str]:
        """Every name some rule refers to."""
        return {ref for tree in self._trees.values() for ref in references(tree)}

    def named(self, name: str) -> Decision:
        """The compiled rule of this name (or what answers for an unknown one)."""
        known = name if name in self._trees else DEFAULT_RULE
        found = self._decisions.get(known)
        if found is None:
            tree = self._trees.get(known)
            found = self._decisions[known] = _fixed(False) if tree is None else self._compile(tree)
        return found

    def _is_name(self, rule: str) -> bool:
        return rule in self._trees or _WORD.fullmatch(rule) is not None

    def _compile(self, node: Node) -> Decision:
        match node:
            case Always(answer):
                return _fixed(answer)
            case Not(part):
                inner = self._compile(part)
                return lambda creds, target: not inner(creds, target)
            case All(parts):
                return _decide_all([self._compile(part) for part in parts])
            case OneOf(parts):
                return _decide_any([self._compile(part) for part in parts])
            case RuleRef(name):
                return self.named(name)
            case RoleCheck():
                return _decide_role(node)
            case FieldCheck():
                return _decide_field(node)
            case CredCheck():
                return _decide_cred(node)

    def decide(self, rule: str, creds: Creds, target: Target) -> bool:
        """Whether ``rule`` (a name, else text in the language) holds for this caller and this row.

        A single word that is no rule's name is an unknown rule. Raises :class:`RuleError` for text that cannot be read.
        """
        found = self._decisions.get(rule) or self._texts.get(rule)
        if found is None:
            if self._is_name(rule):
                return self.named(rule)(creds, target)
            found = self._texts[rule] = self._compile(parse(rule))
        return found(creds, target)

    def predicate(self, rule: str, creds: Creds, column: Column) -> sa.ColumnElement[bool]:
        """The rows of a list for which :meth:`decide` would say yes, as a WHERE clause.

        ``column`` gives, for a name of the target, the column (or a plain value common to all rows) or None when the
        target has no such thing. Everything that depends only on the caller is folded: ``sa.true()`` when all rows
        are visible, ``sa.false()`` when none is. Text columns compare as the database's collation does: keep it binary.
        """
        tree = self._tree(rule) if self._is_name(rule) else parse(rule)
        answer = False if tree is None else where(tree, self._tree, creds, column)
        if isinstance(answer, bool):
            return sa.true() if answer else sa.false()
        return answer
