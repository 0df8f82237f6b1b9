"""Which combinations of providers can satisfy a request: pure, no database.

A tree is a root provider with everything below it. The unsuffixed group may spread over a tree (each class from any one
provider of it); a suffixed group comes from one provider. Sharing providers are trees of their own here.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

MOST = 1000
"""So many combinations are looked at for one tree; more mean nothing to anybody."""


@dataclass(frozen=True, kw_only=True)
class Provider:
    """A provider as candidates see it."""

    id: str
    root: str
    parent: str | None
    room: Mapping[str, Mapping[str, Any]]  # class -> inventory with used
    traits: frozenset[str]
    aggregates: frozenset[str]


@dataclass(frozen=True, kw_only=True)
class Group:
    """One request group: "" is the unsuffixed one."""

    suffix: str
    resources: Mapping[str, int]
    traits: Callable[[set[str]], bool]
    forbids: Callable[[set[str]], bool]  # whether a provider with these traits may take part at all
    members: Callable[[set[str]], bool]
    tree: str | None = None


@dataclass(frozen=True)
class Candidate:
    """One way to satisfy everything: provider -> class -> amount, and which providers serve which group."""

    resources: dict[str, dict[str, int]] = field(default_factory=dict)
    mappings: dict[str, list[str]] = field(default_factory=dict)


Fits = Callable[[Mapping[str, Any], int], bool]


def _spread(group: Group, tree: Sequence[Provider], fits: Fits, nested: bool) -> Iterator[dict[str, str]]:
    """class -> provider id, for the unsuffixed group."""
    able = [p for p in tree if group.forbids(set(p.traits)) and (not nested or group.members(set(p.aggregates)))]
    choices = []
    for name, amount in group.resources.items():
        fit = [p.id for p in able if name in p.room and fits(p.room[name], amount)]
        if not fit:
            return
        choices.append(fit)
    by_id = {p.id: p for p in tree}
    for combination in itertools.islice(itertools.product(*choices), MOST):
        used = set(combination)
        if not nested and len(used) > 1:
            continue
        have = set().union(*(by_id[i].traits for i in used)) if used else set()
        if group.traits(have) and all(group.members(set(by_id[i].aggregates)) for i in used):
            yield dict(zip(group.resources, combination, strict=True))


def _whole(group: Group, tree: Sequence[Provider], fits: Fits) -> list[str]:
    """Providers that can serve a suffixed group alone."""
    return [
        p.id for p in tree
        if all(n in p.room and fits(p.room[n], a) for n, a in group.resources.items())
        and group.forbids(set(p.traits)) and group.traits(set(p.traits)) and group.members(set(p.aggregates))
    ]  # fmt: skip


def candidates(
    trees: Mapping[str, Sequence[Provider]],
    groups: Sequence[Group],
    fits: Fits,
    *,
    nested: bool,
    isolate: bool = False,
    subtrees: Sequence[Sequence[str]] = (),
    limit: int | None = None,
) -> list[Candidate]:
    """Every candidate, tree by tree. ``subtrees``: lists of suffixes whose providers must have a common ancestor
    among themselves."""
    out: list[Candidate] = []
    for root in sorted(trees):
        for one in _of_tree(root, trees[root], groups, fits, nested, isolate, subtrees):
            if one not in out:
                out.append(one)
            if limit is not None and len(out) >= limit:
                return out
    return out


def _of_tree(
    root: str, tree: Sequence[Provider], groups: Sequence[Group], fits: Fits, nested: bool, isolate: bool,
    subtrees: Sequence[Sequence[str]],
) -> Iterator[Candidate]:  # fmt: skip
    if any(g.tree is not None and g.tree != root for g in groups):
        return
    options: list[list[dict[str, str] | str]] = []
    for group in groups:
        found: list[dict[str, str] | str] = (
            list(_spread(group, tree, fits, nested)) if group.suffix == "" else list(_whole(group, tree, fits))
        )
        if not found:
            return
        options.append(found)
    by_id = {p.id: p for p in tree}
    for combination in itertools.islice(itertools.product(*options), MOST):
        mappings = {
            g.suffix: sorted(set(c.values())) if isinstance(c, dict) else [c]
            for g, c in zip(groups, combination, strict=True)
        }
        alone = [c for c in combination if isinstance(c, str)]
        if isolate and len(set(alone)) < len(alone):
            continue
        if not all(_related([i for s in suffixes for i in mappings.get(s, [])], by_id) for suffixes in subtrees):
            continue
        taken: dict[str, dict[str, int]] = {}
        for group, choice in zip(groups, combination, strict=True):
            for name, amount in group.resources.items():
                id = choice[name] if isinstance(choice, dict) else choice
                mine = taken.setdefault(id, {})
                mine[name] = mine.get(name, 0) + amount
        if all(fits(by_id[id].room[n], a) for id, classes in taken.items() for n, a in classes.items()):
            yield Candidate(taken, mappings)


def _related(ids: Sequence[str], by_id: Mapping[str, Provider]) -> bool:
    """Whether one of the providers is an ancestor of (or is) every other."""
    for top in set(ids):
        if all(_below(id, top, by_id) for id in ids):
            return True
    return not ids


def _below(id: str | None, top: str, by_id: Mapping[str, Provider]) -> bool:
    while id is not None and id in by_id:
        if id == top:
            return True
        id = by_id[id].parent
    return False
