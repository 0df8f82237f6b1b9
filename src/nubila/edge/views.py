"""Rows become what the API shows: the attributes open in this version that this caller may see."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from nubila.core.call import Call
from nubila.core.declare import Attr, Resource, epoch
from nubila.core.gates import Version
from nubila.core.policy import Rule
from nubila.core.remember import remembered


def attr_rules(cls: type[Resource]) -> list[Rule]:
    """The policy rules that attributes with ``see`` or ``set`` get: get_/create_/update_<item>:<attribute>."""
    assert cls.rest is not None
    rules: list[Rule] = []
    item = cls.rest.item
    for a in cls.attrs.values():
        if a.see:
            rules.append(Rule(f"get_{item}:{a.api}", a.see, f"See {a.api} of a {item}.", ()))
        for letter, verb in (("c", "create"), ("u", "update")):
            if a.set and letter in a.write:
                rules.append(Rule(f"{verb}_{item}:{a.api}", a.set, f"Set {a.api} of a {item} on {verb}.", ()))
    return rules


class _Asked(Exception):
    """The rule looked at the target."""


class _Probe(Mapping[str, Any]):
    """A target that tells whether a rule looks at it."""

    def __getitem__(self, key: str) -> Any:
        raise _Asked

    def get(self, key: str, default: Any = None) -> Any:
        raise _Asked

    def __contains__(self, key: object) -> bool:
        raise _Asked

    def __iter__(self) -> Iterator[str]:
        raise _Asked

    def __len__(self) -> int:
        return 1


PROBE = _Probe()


@remembered
def _shown(cls: type[Resource], version: Version) -> tuple[tuple[Attr, ...], tuple[tuple[str, Attr], ...]]:
    open_ = [a for a in cls.attrs.values() if not a.hidden and a.show.open(version)]
    item = cls.rest.item if cls.rest else cls.kind
    return tuple(a for a in open_ if not a.see), tuple((f"get_{item}:{a.api}", a) for a in open_ if a.see)


def views(
    call: Call, cls: type[Resource], rows: list[dict[str, Any]], fields: tuple[str, ...] = ()
) -> list[dict[str, Any]]:
    """Views of a page of rows of one kind."""
    plain, guarded = _shown(cls, epoch(cls, call.version))
    attrs: list[Attr] = list(plain)
    per_row: list[tuple[str, Attr]] = []
    for rule, a in guarded:
        try:
            if call.may(rule, PROBE):
                attrs.append(a)
        except _Asked:
            per_row.append((rule, a))
    if fields:
        attrs = [a for a in attrs if not set(a.wire).isdisjoint(fields)]
        per_row = [(r, a) for r, a in per_row if not set(a.wire).isdisjoint(fields)]
    plan = [(name, a.name, a.type.dump, a.compute) for a in attrs for name in a.wire]
    own = cls.rest is not None and cls.rest.extra_body  # the caller's own attributes, kept in a column "extra"
    out = []
    for row in rows:
        view: dict[str, Any] = {}
        for name, key, dump, compute in plan:
            value = compute(row) if compute is not None else row.get(key)
            view[name] = dump(value) if dump is not None and value is not None else value
        for rule, a in per_row:
            if call.may(rule, row):
                value = a.compute(row) if a.compute is not None else row.get(a.name)
                for name in a.wire:
                    view[name] = a.type.dump(value) if a.type.dump is not None and value is not None else value
        if own and row.get("extra"):
            view = {**row["extra"], **view}
        if fields and len(view) > len(fields):
            view = {k: v for k, v in view.items() if k in fields}
        out.append(view)
    return out
