"""Lists: filters, sorting, paging and policy become one SELECT."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import sqlalchemy as sa

from nubila.core.declare import Attr, Resource, Rest
from nubila.core.faults import bad_request
from nubila.core.gates import Version

PAGE_KEYS = frozenset({"limit", "marker", "sort_key", "sort_dir", "fields", "page_reverse", "sort"})
_OPERATORS: dict[str, Callable[[Any, Any], Any]] = {
    "ge": lambda c, v: c >= v,
    "le": lambda c, v: c <= v,
    "gt": lambda c, v: c > v,
    "lt": lambda c, v: c < v,
    "gte": lambda c, v: c >= v,
    "lte": lambda c, v: c <= v,
    "neq": lambda c, v: c != v,
    "like": lambda c, v: c.like(f"%{_escaped(v)}%", escape="\\"),
    "contains": lambda c, v: c.like(f"%{_escaped(v)}%", escape="\\"),
    "icontains": lambda c, v: sa.func.lower(c).like(f"%{_escaped(v.lower())}%", escape="\\"),
    "startswith": lambda c, v: c.like(f"{_escaped(v)}%", escape="\\"),
    "endswith": lambda c, v: c.like(f"%{_escaped(v)}", escape="\\"),
    "istartswith": lambda c, v: sa.func.lower(c).like(f"{_escaped(v.lower())}%", escape="\\"),
    "iendswith": lambda c, v: sa.func.lower(c).like(f"%{_escaped(v.lower())}", escape="\\"),
    "iexact": lambda c, v: sa.func.lower(c) == v.lower(),
}


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace("%", "\\%").replace("_", "\\_")


@dataclass
class ListQuery:
    """A parsed query string: what to filter by, the order, the page."""

    where: list[Any] = field(default_factory=list)
    order: list[tuple[str, str]] = field(default_factory=list)
    limit: int | None = None
    marker: str | None = None
    reverse: bool = False
    fields: tuple[str, ...] = ()
    extra: dict[str, list[str]] = field(default_factory=dict)  # keys that a service's own filter takes


def parse(
    cls: type[Resource],
    rest: Rest,
    query: Iterable[tuple[str, str]],
    version: Version,
    *,
    own: Iterable[str] = (),
) -> ListQuery:
    """Read a query string; ``own`` names keys the service filters by itself (left in ``extra``).

    Raises a 400 Fault for an unknown key (unless the version ignores them), a bad value, order or limit.
    """
    out = ListQuery()
    page: dict[str, list[str]] = {}
    filters: dict[str, list[str]] = {}
    mine = set(own)
    for key, value in query:
        if key in mine:
            out.extra.setdefault(key, []).append(value)
        else:
            (page if key in PAGE_KEYS else filters).setdefault(key, []).append(value)
    for key, texts in filters.items():
        clause = _filter(cls, rest, key, texts, version)
        if clause is not None:
            out.where.append(clause)
    _order(cls, rest, page, out)
    _page(rest, page, out)
    return out


def _filter(cls: type[Resource], rest: Rest, key: str, texts: list[str], version: Version) -> Any:
    base, _, op = key.partition("__")
    a: Attr | None = cls.by_wire.get(base)
    if a is None or not a.filter or not (a.show.open(version) or a.take.open(version)):
        if rest.unknown_query.open(version):
            return None
        raise bad_request(f"{rest.items} can not be filtered by '{key}'.", "HTTPBadRequest")
    column = cls.table.c[a.name]
    allowed = a.filter.split()
    if not op and len(texts) == 1 and "in:" in texts[0][:3] and "in" in allowed:
        texts = texts[0][3:].split(",")
    try:
        values = [a.type.parse(t) for t in texts]
    except ValueError as e:
        raise bad_request(f"Invalid input for filter '{key}': {e}.", "InvalidInput") from None
    if op:
        if op not in allowed or op not in _OPERATORS:
            raise bad_request(f"Filter '{base}' does not take the operator '{op}'.", "HTTPBadRequest")
        return sa.or_(*(_OPERATORS[op](column, v) for v in values))
    if a.null and values == [""]:
        return sa.or_(column.is_(None), column == "") if _is_text(column) else column.is_(None)
    return column.in_(values) if len(values) > 1 else column == values[0]


def _is_text(column: Any) -> bool:
    return isinstance(column.type, sa.String | sa.Text)


def _order(cls: type[Resource], rest: Rest, page: dict[str, list[str]], out: ListQuery) -> None:
    keys, dirs = page.get("sort_key", []), page.get("sort_dir", [])
    if "sort" in page:
        pairs = [p.partition(":") for p in ",".join(page["sort"]).split(",")]
        keys, dirs = [p[0] for p in pairs], [p[2] or "desc" for p in pairs]
    if len(dirs) > len(keys) and keys:
        raise bad_request("The number of sort_dir values exceeds the number of sort_key values.", "HTTPBadRequest")
    default_dir = dirs[0] if len(dirs) == 1 and not keys else "asc"
    dirs = [*dirs, *["asc"] * (len(keys) - len(dirs))]
    for key, direction in zip(keys, dirs, strict=False):
        a = cls.by_wire.get(key)
        if a is None or not a.sort:
            raise bad_request(f"Cannot sort {rest.items} by '{key}'.", "HTTPBadRequest")
        if direction not in ("asc", "desc"):
            raise bad_request(f"sort_dir is asc or desc, not '{direction}'.", "HTTPBadRequest")
        if a.name not in [k for k, _ in out.order]:
            out.order.append((a.name, direction))
    if not keys:
        out.order = list(rest.order)
    if cls.key not in [k for k, _ in out.order]:
        out.order.append((cls.key, default_dir if not out.order else out.order[-1][1]))


def _page(rest: Rest, page: dict[str, list[str]], out: ListQuery) -> None:
    if "limit" in page:
        text = page["limit"][-1]
        if not re.fullmatch(r"\d{1,9}", text):
            raise bad_request(f"Invalid input for limit: '{text}' is not a whole number of zero or more.", "BadRequest")
        out.limit = min(int(text), rest.max_limit)
    elif rest.forced_limit:
        out.limit = rest.max_limit
    out.marker = page.get("marker", [None])[-1]
    out.reverse = page.get("page_reverse", ["false"])[-1].lower() in ("true", "1", "yes", "on")
    out.fields = tuple(f for text in page.get("fields", []) for f in text.split(",") if f)


def _equal(column: Any, value: Any) -> Any:
    return column.is_(None) if value is None else column == value


def _after(column: Any, value: Any, direction: str) -> Any:
    """Strictly later in the order, NULL first when ascending."""
    if value is None:
        return column.is_not(None) if direction == "asc" else sa.false()
    bound = sa.bindparam(None, value, type_=column.type)  # some databases refuse to compare literal TRUE
    return column > bound if direction == "asc" else sa.or_(column < bound, column.is_(None))


def _key_order(order: Sequence[tuple[str, str]], reverse: bool) -> list[tuple[str, str]]:
    if not reverse:
        return list(order)
    return [(k, "desc" if d == "asc" else "asc") for k, d in order]


def select(
    cls: type[Resource],
    q: ListQuery,
    *,
    scope: Any = None,
    marker: Mapping[str, Any] | None = None,
    columns: Sequence[Any] | None = None,
) -> sa.Select[Any]:
    """The SELECT of one page. ``scope`` is the policy's row predicate; ``marker`` the marker's own row.

    With ``q.reverse`` rows come backwards; the caller turns the page round. One row more than ``limit`` is not
    fetched: callers ask for ``limit + 1`` by raising ``q.limit`` when they need to know whether more follow.
    """
    t = cls.table
    statement = sa.select(*(columns if columns is not None else (t,)))
    if scope is not None:
        statement = statement.where(scope)
    for clause in q.where:
        statement = statement.where(clause)
    order = _key_order(q.order, q.reverse)
    if marker is not None:
        statement = statement.where(
            sa.or_(*(
                sa.and_(*(_equal(t.c[kk], marker[kk]) for kk, _ in order[:i]), _after(t.c[k], marker[k], d))
                for i, (k, d) in enumerate(order)
            ))
        )  # fmt: skip
    for key, direction in order:
        column = t.c[key]
        parts = [column.is_not(None), column] if column.nullable else [column]
        statement = statement.order_by(*(p.asc() if direction == "asc" else p.desc() for p in parts))
    return statement if q.limit is None else statement.limit(q.limit)
