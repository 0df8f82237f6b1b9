"""Declare a resource once; its table, checks, filters, policy names, views and reference pages follow.

A :class:`Resource` says what a thing is (attributes, owner, quota). A :class:`Rest` says how one API shows it (path,
names, verbs, policy rules, status codes). Declarations are data: importing them touches no file, socket or database.
A declaration that cannot mean anything stops at import, naming class and attribute.
"""

from __future__ import annotations

import dataclasses as dc
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import sqlalchemy as sa

from nubila.core.gates import ALWAYS, CLOSED, NEVER, OPEN, Gate, Version
from nubila.core.remember import remembered
from nubila.core.sql import core_meta
from nubila.core.types import Type

METADATA = core_meta
UNSET: Any = type("Unset", (), {"__repr__": lambda s: "UNSET", "__bool__": lambda s: False})()


@dc.dataclass(frozen=True, kw_only=True)
class _AttrFields:
    doc: str = ""
    api: str = ""  # the name on the wire when it is not an identifier, e.g. "router:external"
    alias: tuple[str, ...] = ()  # further names on the wire, accepted, filtered and shown alike (tenant_id)
    write: str = ""  # "c" on create, "u" on update, "cu" both
    default: Any = UNSET  # value or callable; UNSET and writable on create and not null => required
    null: bool = False
    key: bool = False
    filter: str = ""  # operators: eq in like ge le contains startswith ...
    sort: bool = False
    show: Gate = OPEN  # versions in which it is in answers
    take: Gate = OPEN  # versions in which it is accepted
    must: Gate = CLOSED  # versions in which it is required on create
    see: str = ""  # default policy text of who may see it ("" = whoever sees the row)
    set: str = ""  # default policy text of who may set it on create and update ("" = whoever may write)
    ref: str = ""  # "table.column" it points at: foreign key and index
    index: bool = False
    observed: bool = False  # written by reconcilers and hosts only
    store: bool = True  # False: no column; the service's present hook or ``compute`` fills it
    hidden: bool = False  # a column never shown
    compute: Callable[[Mapping[str, Any]], Any] | None = None  # the shown value from the row
    name: str = ""


@dc.dataclass(frozen=True)
class Attr(_AttrFields):
    """One attribute of a resource."""

    type: Type = dc.field(default=None)  # type: ignore[assignment]  # positional first argument, always given

    def __init__(self, type: Type, doc: str = "", **options: Any) -> None:
        super().__init__(doc=doc, **options)
        object.__setattr__(self, "type", type)

    def named(self, name: str) -> Attr:
        """The same attribute knowing its own name."""
        options = {f.name: getattr(self, f.name) for f in dc.fields(_AttrFields)}
        return Attr(self.type, **{**options, "name": name, "api": self.api or name})

    @property
    def wire(self) -> tuple[str, ...]:
        """All names on the wire, the main one first."""
        return (self.api, *self.alias)


@dc.dataclass(frozen=True, kw_only=True)
class Rest:
    """How one API shows a resource.

    ``rules`` names the policy rule of each verb; ``statuses`` overrides 200/200/201/200/204; ``update`` is the method.
    """

    path: str  # "/v2.0/networks", as seen below the service's own prefix
    item: str  # wrapping key of one
    items: str  # wrapping key of many
    verbs: frozenset[str] = frozenset({"list", "show", "create", "update", "delete"})
    rules: Mapping[str, str]
    statuses: Mapping[str, int | tuple[tuple[Gate, int], ...]] = dc.field(default_factory=dict)
    update: str = "PUT"
    key: str = "id"  # the attribute in the path
    body_first: bool = False  # an update's body is checked before the row is looked up (400 comes before 404)
    bulk: bool = False  # POST may carry a list under ``items``
    hidden: int = 404  # status when the row exists but the caller may not see it
    unknown_query: Gate = CLOSED  # versions that ignore unknown query keys
    max_limit: int = 1000
    forced_limit: bool = False  # a page is never longer than max_limit even without ?limit
    extra_body: bool = False  # unknown body attributes are kept (Identity) instead of refused
    attr_rules: bool = False  # attributes with set/see get rules of their own: "create_network:shared"
    order: tuple[tuple[str, str], ...] = ()  # default sorting

    def status(self, verb: str, version: Version) -> int:
        """HTTP status of a success."""
        given = self.statuses.get(verb)
        if given is None:
            return {"create": 201, "delete": 204}.get(verb, 200)
        if isinstance(given, int):
            return given
        return next(code for gate, code in given if gate.open(version))


class Resource:
    """Base of every declaration. Subclass, fill in, done."""

    kind: ClassVar[str] = ""  # "network"; also the table's name
    service: ClassVar[str] = ""
    owner: ClassVar[str] = "project_id"  # attribute that says whose it is; "" = the cloud's
    quota: ClassVar[str] = ""  # quota resource counted per owner
    counted: ClassVar[Callable[[Any], Any] | None] = None  # which rows count, as SQL of the columns; None = all
    rest: ClassVar[Rest | None] = None
    unique: ClassVar[tuple[tuple[str, ...], ...]] = ()
    indexes: ClassVar[tuple[tuple[str, ...], ...]] = ()
    attrs: ClassVar[dict[str, Attr]] = {}
    by_wire: ClassVar[dict[str, Attr]] = {}
    table: ClassVar[sa.Table]
    key: ClassVar[str] = "id"

    def __init_subclass__(cls, **kw: Any) -> None:
        super().__init_subclass__(**kw)
        found = {k: v.named(k) for k, v in vars(cls).items() if isinstance(v, Attr)}
        inherited: dict[str, Attr] = {}
        for base in reversed(cls.__mro__[1:]):
            inherited.update(vars(base).get("attrs", {}))
        cls.attrs = {**{k: v for k, v in inherited.items() if k not in found}, **found}
        if "kind" in vars(cls) and cls.kind:
            _check(cls)
            cls.by_wire = {n: a for a in cls.attrs.values() for n in a.wire}
            cls.key = next(a.name for a in cls.attrs.values() if a.key)
            cls.table = _table(cls)


@remembered
def epochs(cls: type[Resource]) -> tuple[Version, ...]:
    """Versions at which anything about a kind changes."""
    marks = {ALWAYS}
    for a in cls.attrs.values():
        for g in (a.show, a.take, a.must):
            marks |= {g.since, g.until}
    return tuple(sorted(m for m in marks if m < NEVER))


def epoch(cls: type[Resource], version: Version) -> Version:
    """The newest epoch of a kind not after the version."""
    return max(e for e in epochs(cls) if e <= version)


def _check(cls: type[Resource]) -> None:  # noqa: C901  # a list of independent refusals
    def wrong(why: str) -> TypeError:
        return TypeError(f"{cls.__module__}.{cls.__name__}: {why}")

    if not (cls.__doc__ or "").strip():
        raise wrong("a resource needs a docstring; it becomes its documentation")
    if not any(a.key for a in cls.attrs.values()):
        raise wrong("no key attribute")
    if cls.kind in METADATA.tables:
        raise wrong(f"kind {cls.kind} is declared twice")
    if cls.owner and cls.owner not in cls.attrs:
        raise wrong(f"owner {cls.owner} is not an attribute")
    seen: set[str] = set()
    for a in cls.attrs.values():
        if a.name in vars(Resource):
            raise wrong(f"{a.name}: the name means something to every resource; store it under another")
        if a.observed and a.write:
            raise wrong(f"{a.name}: observed attributes are not for users to write")
        if set(a.write) - set("cu"):
            raise wrong(f"{a.name}: write takes the letters c and u")
        if a.filter and not a.store:
            raise wrong(f"{a.name}: cannot filter on an attribute without a column")
        if a.ref and "." not in a.ref:
            raise wrong(f'{a.name}: ref is "table.column"')
        if seen & set(a.wire):
            raise wrong(f"{a.name}: name on the wire used twice")
        seen |= set(a.wire)
    for names in (*cls.unique, *cls.indexes):
        if missing := set(names) - set(cls.attrs):
            raise wrong(f"unique/indexes name unknown attributes {sorted(missing)}")


def _table(cls: type[Resource]) -> sa.Table:
    columns: list[Any] = []
    for a in cls.attrs.values():
        if not a.store:
            continue
        args: list[Any] = [sa.ForeignKey(a.ref)] if a.ref else []
        nullable = not a.key and (a.null or a.observed or a.default is None)
        columns.append(
            sa.Column(a.name, a.type.sql(), *args, primary_key=a.key, nullable=nullable,
                      index=True if (a.ref or a.index) and not a.key else None)
        )  # fmt: skip
    columns += [sa.UniqueConstraint(*names) for names in cls.unique]
    columns += [sa.Index(f"ix_{cls.kind}_{'_'.join(names)}", *names) for names in cls.indexes]
    return sa.Table(cls.kind, METADATA, *columns)


def body_schema(cls: type[Resource], verb: str, version: Version) -> dict[str, Any]:
    """JSON Schema of the inner object of a create or update body in this version."""
    letter = {"create": "c", "update": "u"}[verb]
    extra = cls.rest.extra_body if cls.rest else False
    properties: dict[str, Any] = {}
    required: list[str] = []
    for a in cls.attrs.values():
        if letter not in a.write or not a.take.open(version):
            continue
        schema = {**a.type.schema}
        if a.doc:
            schema["description"] = a.doc
        if a.null or a.default is None:
            schema = {"anyOf": [schema, {"type": "null"}]}
        for name in a.wire:
            properties[name] = schema
        if verb == "create" and ((a.default is UNSET and not a.null) or a.must.open(version)):
            required.append(a.api)
    return {"type": "object", "properties": properties, "required": required, "additionalProperties": extra}
