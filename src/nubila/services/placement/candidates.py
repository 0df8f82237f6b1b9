"""GET /allocation_candidates: the request in query form, answered by combine.py."""

from __future__ import annotations

import re

from nubila.core.call import Call, Reply, Route
from nubila.core.faults import bad_request
from nubila.core.gates import since
from nubila.core.types import is_uuid
from nubila.services.placement import claims
from nubila.services.placement.combine import Candidate, Group, Provider, candidates
from nubila.services.placement.trees import every
from nubila.services.placement.wire import BAD_VALUE, MISSING, MemberWish, Row, TraitWish, answer, resources, traits

_KEY = re.compile(r"(resources|required|member_of|in_tree)(.*)")


class _Asked:
    """The query, group by group."""

    def __init__(self) -> None:
        self.resources: dict[str, str] = {}
        self.required: dict[str, list[str]] = {}
        self.member_of: dict[str, list[str]] = {}
        self.in_tree: dict[str, str] = {}
        self.root_required: str | None = None
        self.same_subtree: list[list[str]] = []
        self.limit: int | None = None
        self.policy: str | None = None


def _suffix(call: Call, key: str, suffix: str) -> str:
    v = call.version
    good = suffix == "" or (v >= (1, 33) and re.fullmatch(r"[a-zA-Z0-9_-]{1,64}", suffix)) or (
        v >= (1, 25) and re.fullmatch(r"[1-9][0-9]*", suffix)
    )  # fmt: skip
    if not good:
        raise bad_request(f"Invalid query string parameters: '{key}' was unexpected.")
    return suffix


def _read(call: Call) -> _Asked:
    asked = _Asked()
    for key, value in call.query:
        if key in ("limit", "group_policy", "root_required", "same_subtree"):
            _read_wide(call, asked, key, value)
            continue
        found = _KEY.fullmatch(key)
        if found is None:
            raise bad_request(f"Invalid query string parameters: '{key}' was unexpected.")
        name, suffix = found[1], _suffix(call, key, found[2])
        since_ = {"required": (1, 17), "member_of": (1, 21), "in_tree": (1, 31)}.get(name, (1, 10))
        if call.version < since_:
            raise bad_request(f"Invalid query string parameters: '{key}' needs version 1.{since_[1]}.")
        if name == "resources":
            asked.resources[suffix] = value
        elif name == "in_tree":
            if not is_uuid(value):
                raise bad_request(f"in_tree: '{value}' must be a UUID.")
            asked.in_tree[suffix] = value
        else:
            getattr(asked, name).setdefault(suffix, []).append(value)
    coded = call.version >= (1, 36)  # before that the original refuses these without a code of their own
    if not asked.resources:
        text = "Invalid query string parameters: 'resources' is a required property"
        raise bad_request(text, MISSING if coded else "")
    for name in ("required", "member_of", "in_tree"):
        for suffix in getattr(asked, name):
            if suffix not in asked.resources and not (suffix and call.version >= (1, 36)):
                raise bad_request(
                    f"All traits and aggregates must be associated with resources. Got orphan {name}{suffix}.",
                    BAD_VALUE if coded else "",
                )  # fmt: skip
    return asked


def _read_wide(call: Call, asked: _Asked, key: str, value: str) -> None:
    since_ = {"limit": (1, 16), "group_policy": (1, 25), "root_required": (1, 35), "same_subtree": (1, 36)}[key]
    if call.version < since_:
        raise bad_request(f"Invalid query string parameters: '{key}' needs version 1.{since_[1]}.")
    if key == "limit":
        if not re.fullmatch(r"[1-9]\d{0,8}", value):
            raise bad_request(f"Invalid query string parameters: limit '{value}' is not a positive number.")
        asked.limit = int(value)
    elif key == "group_policy":
        if value not in ("none", "isolate"):
            raise bad_request("Invalid query string parameters: group_policy is none or isolate.")
        asked.policy = value
    elif key == "root_required":
        asked.root_required = value
    else:
        asked.same_subtree.append(value.split(","))


def _groups(call: Call, asked: _Asked, known: set[str], roots: dict[str, str]) -> list[Group]:
    out = []
    suffixes = sorted({*asked.resources, *asked.required, *asked.member_of, *asked.in_tree})
    for suffix in suffixes:
        wanted, members = TraitWish(), MemberWish()
        for text in asked.required.get(suffix, []):
            wanted.add(call, text, known)
        for text in asked.member_of.get(suffix, []):
            members.add(call, text)
        tree = asked.in_tree.get(suffix)
        listed = asked.resources.get(suffix)
        out.append(Group(
            suffix=suffix, resources=resources(call.tx, listed) if listed else {}, traits=wanted.holds,
            forbids=wanted.tolerates, members=members.holds,
            tree=roots.get(tree, "none") if tree else None,
        ))  # fmt: skip
    numbered = [g for g in out if g.suffix]
    if len(numbered) > 1 and asked.policy is None:
        raise bad_request("group_policy: several numbered groups of resources need one, none or isolate.")
    return out


def index(call: Call) -> Reply:
    """List the ways in which a request for resources can be satisfied."""
    asked = _read(call)
    trees = every(call.tx)
    known = traits(call.tx)
    roots = {p.id: root for root, tree in trees.items() for p in tree}
    groups = _groups(call, asked, known, roots)
    nested = call.version >= (1, 29)
    if asked.root_required is not None:
        wanted = TraitWish()
        wanted.add(call, asked.root_required, known)
        trees = {r: t for r, t in trees.items() if wanted.holds(set(next(p for p in t if p.id == r).traits))}
    usable = trees if nested else {p.id: [p] for tree in trees.values() for p in tree}
    found = candidates(
        usable, groups, claims.fits, nested=nested, isolate=asked.policy == "isolate", subtrees=asked.same_subtree,
        limit=asked.limit,
    )  # fmt: skip
    return answer(call, {
        "allocation_requests": [_request(call, c) for c in found],
        "provider_summaries": _summaries(call, found, groups, trees, roots),
    })  # fmt: skip


def _request(call: Call, c: Candidate) -> Row:
    if call.version < (1, 12):
        return {"allocations": [
            {"resource_provider": {"uuid": id}, "resources": classes} for id, classes in c.resources.items()
        ]}  # fmt: skip
    out: Row = {"allocations": {id: {"resources": classes} for id, classes in c.resources.items()}}
    if call.version >= (1, 34):
        out["mappings"] = c.mappings
    return out


def _summaries(
    call: Call, found: list[Candidate], groups: list[Group], trees: dict[str, list[Provider]], roots: dict[str, str]
) -> Row:
    used = {id for c in found for id in c.resources}
    shown: list[Provider] = []
    if call.version >= (1, 29):
        for root in sorted({roots[id] for id in used}):
            shown += trees[root]
    else:
        shown = [p for tree in trees.values() for p in tree if p.id in used]
    asked = {n for g in groups for n in g.resources}
    out: Row = {}
    for p in shown:
        one: Row = {"resources": {
            n: {"capacity": claims.capacity(i), "used": i["used"]}
            for n, i in p.room.items() if n in asked or call.version >= (1, 27)
        }}  # fmt: skip
        if call.version >= (1, 17):
            one["traits"] = sorted(p.traits)
        if call.version >= (1, 29):
            one |= {"parent_provider_uuid": p.parent, "root_provider_uuid": p.root}
        out[p.id] = one
    return out


ROUTES = (
    Route(
        method="GET", path="/allocation_candidates", handler=index, doc=index.__doc__ or "",
        rule="placement:allocation_candidates:list", gate=since(1, 10),
    ),
)  # fmt: skip
