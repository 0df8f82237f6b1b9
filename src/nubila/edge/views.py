"""Rows become what the API shows: the attributes open in this version that this caller may see."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
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


class _Read(dict[str, Any]):
    """A row that writes down what a rule reads of it."""

    def __init__(self, row: Mapping[str, Any]) -> None:
        super().__init__(row)
        self.seen: dict[str, Any] = {}

    def __getitem__(self, key: str) -> Any:
        self.seen[key] = super().get(key)
        return super().__getitem__(key)

    def get(self, key: str, default: Any = None) -> Any:
        self.seen[key] = super().get(key)
        return super().get(key, default)

    def __contains__(self, key: object) -> bool:
        self.seen[str(key)] = super().get(str(key))
        return super().__contains__(key)


class _Verdicts:
    """One rule on a page of rows: rows that are equal in all that the rule read have the same verdict."""

    def __init__(self, call: Call, rule: str) -> None:
        self._call, self._rule = call, rule
        self._known: list[tuple[list[tuple[str, Any]], bool]] = []

    def of(self, row: Mapping[str, Any]) -> bool:
        """Whether the caller may see the attribute in this row."""
        for seen, verdict in self._known:
            if all(row.get(key) == value for key, value in seen):
                return verdict
        target = _Read(row)
        verdict = self._call.may(self._rule, target)
        if target.seen:
            self._known.append((list(target.seen.items()), verdict))
        return verdict


@remembered
def _shown(cls: type[Resource], version: Version) -> tuple[tuple[str, ...], tuple[tuple[str, Attr], ...]]:
    open_ = [a for a in cls.attrs.values() if not a.hidden and a.show.open(version)]
    item = cls.rest.item if cls.rest else cls.kind
    return tuple(a.name for a in open_ if not a.see), tuple((f"get_{item}:{a.api}", a) for a in open_ if a.see)


Render = Callable[[Mapping[str, Any]], dict[str, Any]]


@remembered
def _renderer(cls: type[Resource], attrs: tuple[str, ...]) -> Render:
    """One dict display over these attributes, written out and compiled once: half the time of a loop over them."""
    names: dict[str, Any] = {}
    parts = []
    for i, a in enumerate(cls.attrs[name] for name in attrs):
        value = f"row.get({a.name!r})"
        if a.compute is not None:
            names[f"compute{i}"] = a.compute
            value = f"compute{i}(row)"
        if a.type.dump is not None:
            names[f"dump{i}"] = a.type.dump
            value = f"(None if (v := {value}) is None else dump{i}(v))"
        parts += [f"{name!r}: {value}" for name in a.wire]
    made: Render = eval(compile(f"lambda row: {{{', '.join(parts)}}}", "<view>", "eval"), names)  # our names only
    return made


def views(
    call: Call, cls: type[Resource], rows: list[dict[str, Any]], fields: tuple[str, ...] = ()
) -> list[dict[str, Any]]:
    """Views of a page of rows of one kind."""
    plain, guarded = _shown(cls, epoch(cls, call.version))
    attrs, per_row = plain, []
    for rule, a in guarded:
        try:
            if call.may(rule, PROBE):
                attrs = (*attrs, a.name)
        except _Asked:
            per_row.append((rule, a))
    if fields:
        attrs = tuple(n for n in attrs if not set(cls.attrs[n].wire).isdisjoint(fields))
        per_row = [(r, a) for r, a in per_row if not set(a.wire).isdisjoint(fields)]
    render = _renderer(cls, attrs)
    own = cls.rest is not None and cls.rest.extra_body  # the caller's own attributes, kept in a column "extra"
    if not per_row and not own and not fields:
        return [render(row) for row in rows]
    out = []
    verdicts = [(_Verdicts(call, rule), a.name) for rule, a in per_row]
    renders: dict[tuple[str, ...], Render] = {(): render}
    for row in rows:
        more = tuple(name for rule, name in verdicts if rule.of(row))
        if (render_this := renders.get(more)) is None:
            render_this = renders[more] = _renderer(cls, (*attrs, *more))
        view = render_this(row)
        if own and row.get("extra"):
            view = {**row["extra"], **view}
        if fields:
            view = {k: v for k, v in view.items() if k in fields}
        out.append(view)
    return out
