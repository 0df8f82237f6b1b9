"""Why a rule says yes or no: the rule decided part by part, and the parts that mattered.

Three answers are possible: True, False, and None where the answer depends on something of the target that was not
given (every list and most single things: whose row is it?).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from nubila.core.rule_tree import (
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
    Target,
    cred_values,
    filled_text,
)
from nubila.core.rules import RuleSet

Answer = bool | None


@dataclass(frozen=True, slots=True)
class Part:
    """One part of a rule: its text, its answer, a sentence why (leaves only), and its own parts."""

    text: str
    answer: Answer
    why: str = ""
    parts: tuple[Part, ...] = ()

    def deciding(self, trail: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Part]]:
        """The leaves that made the answer what it is, each with the names of the rules on the way to it."""
        here = (*trail, self.text) if self.why == "rule" else trail
        if not self.parts:
            yield trail, self
            return
        same = [part for part in self.parts if part.answer == self.answer] or list(self.parts)  # a "not" turns it round
        one_is_enough = (self.why, self.answer) in (("any", True), ("all", False))
        for part in same[:1] if one_is_enough else same:
            yield from part.deciding(here)


def explain(rules: RuleSet, name: str, creds: Creds, target: Target) -> Part:
    """How ``name`` comes out for this caller; what ``target`` does not have is unknown, not missing."""
    tree = rules.tree(name)
    if tree is None:
        return Part(name, False, "no rule has this name, and there is no rule called default")
    return _part(rules, tree, creds, target)


def _part(rules: RuleSet, node: Node, creds: Creds, target: Target) -> Part:
    match node:
        case Not(inner):
            found = _part(rules, inner, creds, target)
            return Part(text_of(node), None if found.answer is None else not found.answer, "not", (found,))
        case All(nodes):
            parts = tuple(_part(rules, each, creds, target) for each in nodes)
            answers = [part.answer for part in parts]
            return Part(text_of(node), False if False in answers else None if None in answers else True, "all", parts)
        case OneOf(nodes):
            parts = tuple(_part(rules, each, creds, target) for each in nodes)
            answers = [part.answer for part in parts]
            return Part(text_of(node), True if True in answers else None if None in answers else False, "any", parts)
        case RuleRef(name):
            tree = rules.tree(name)
            if tree is None:
                return Part(f"rule:{name}", False, "no rule has this name")
            found = _part(rules, tree, creds, target)
            return Part(f"rule:{name}", found.answer, "rule", (found,))
        case _:
            return _leaf(rules, node, creds, target)


def _leaf(rules: RuleSet, node: Node, creds: Creds, target: Target) -> Part:
    text = text_of(node)
    if isinstance(node, Always):
        return Part(text, node.answer, "always" if node.answer else "never")
    if isinstance(node, FieldCheck):
        if node.field not in target and f"{node.resource}:{node.field}" not in target:
            what = f"{node.field} {'like ' if node.regex else ''}{node.value}"
            return Part(text, None, f"if the {node.resource} has {what}")
        return Part(text, rules.holds(node, creds, target), f"the target's {node.field} is asked")
    assert isinstance(node, (RoleCheck, CredCheck))
    unknown = [p.name for p in node.match if isinstance(p, Place) and filled_text((p,), target) is None]
    mine = _mine(node, creds)
    if unknown and not (isinstance(node, CredCheck) and node.literal is None and mine in ("nothing", "no roles")):
        what = f"{', '.join(unknown)} of the target is {mine}"
        given = [name for name in unknown if name in target]
        return Part(text, rules.holds(node, creds, target), what) if given else Part(text, None, f"if {what}")
    return Part(text, rules.holds(node, creds, target), f"the caller has {mine}" if _from_caller(node) else "")


def _from_caller(node: RoleCheck | CredCheck) -> bool:
    return isinstance(node, RoleCheck) or node.literal is None


def _mine(node: RoleCheck | CredCheck, creds: Creds) -> str:
    """What the caller brings to the comparison, in words."""
    if isinstance(node, RoleCheck):
        return f"the roles {', '.join(creds.get('roles') or ())}" if creds.get("roles") else "no roles"
    if node.literal is not None:
        return "null" if node.literal == "None" else repr(node.literal)
    found = [str(value) for value in cred_values(creds, node.path) if value is not None]
    return f"{'.'.join(node.path)} {', '.join(found)}" if found else "nothing"


def _text(match: Match) -> str:
    return "".join(f"%({part.name})s" if isinstance(part, Place) else part.replace("%", "%%") for part in match)


def text_of(node: Node) -> str:
    """A part of a rule in the language."""
    match node:
        case Always(answer):
            return "@" if answer else "!"
        case Not(inner):
            return f"not {_inside(inner)}"
        case All(parts):
            return " and ".join(map(_inside, parts))
        case OneOf(parts):
            return " or ".join(map(_inside, parts))
        case RuleRef(name):
            return f"rule:{name}"
        case RoleCheck(match):
            return f"role:{_text(match)}"
        case FieldCheck(resource, name, value):
            return f"field:{resource}:{name}={value}"
        case CredCheck(literal, path, match):
            plain = literal in ("None", "True", "False") or (literal or "").isdigit()
            kind = ".".join(path) if literal is None else literal if plain else repr(literal)
            return f"{kind}:{_text(match)}"


def _inside(node: Node) -> str:
    return f"({text_of(node)})" if isinstance(node, (All, OneOf)) else text_of(node)
