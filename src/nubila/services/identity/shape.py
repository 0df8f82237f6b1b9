"""What Identity's resources have in common: attributes of the caller's own, names, views and lists outside the
derived routes, and the order of refusals (a stranger gets 403 before he can learn that there is nothing)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

import sqlalchemy as sa

from nubila.core.call import Call
from nubila.core.declare import Resource
from nubila.core.faults import Fault, bad_request, conflict, forbidden, not_found
from nubila.services.identity.lookup import DEFAULT_DOMAIN

if TYPE_CHECKING:
    from nubila.core.db import Reader

Row = dict[str, Any]
_VERBS = {"GET": "show", "HEAD": "show", "PATCH": "update", "DELETE": "delete"}
_OURS = frozenset({"id", "links", "extra"})


def finder(cls: type[Resource], *where: Any, open_to: str = "") -> Callable[[Call, str], Row | None]:
    """The hook that looks a row up by id, and refuses who may not ask before saying that there is none.

    ``open_to`` are the methods ("PATCH DELETE") by which, as in the original, everybody learns that there is none.
    """
    by_id = sa.select(cls.table).where(cls.table.c.id == sa.bindparam("id"), *where)
    rest = cls.rest
    assert rest is not None

    def find(call: Call, id: str) -> Row | None:
        row: Row | None = call.tx.one(by_id, {"id": id})
        if row is None and call.method not in open_to.split():
            call.enforce(rest.rules[_VERBS[call.method]], {})
        return row

    return find


def within(call: Call, column: Any) -> list[Any]:
    """Clauses that keep a list to the domain of a domain-scoped token, an administrator's too."""
    return [column == call.creds.domain_id] if call.creds.domain_id else []


def fetch(reader: Reader, cls: type[Resource], id: str, what: str = "", status: int = 404) -> Row:
    """The row with this id, else a Fault that names it."""
    row = reader.one(sa.select(cls.table).where(cls.table.c.id == id))
    if row is None:
        if status == 404:
            raise not_found(what or cls.kind, id)
        raise Fault(status, f"{(what or cls.kind).capitalize()} {id} could not be found.", "NotFound")
    return row


def own(cls: type[Resource], body: Mapping[str, Any]) -> Row:
    """The attributes of a body that are the caller's own."""
    return {k: v for k, v in body.items() if k not in cls.by_wire and k not in _OURS}


def keep_extra(call: Call, cls: type[Resource], values: Row, before: Row | None = None) -> None:
    """Store the caller's own attributes of this request's body with the row."""
    assert cls.rest is not None
    given = own(cls, call.body[cls.rest.item])
    values["extra"] = {**((before or {}).get("extra") or {}), **given}


def names_free(
    reader: Reader, cls: type[Resource], values: Mapping[str, Any], what: str, before: Mapping[str, Any] | None = None
) -> None:
    """Raise 409 when the name is taken in its domain."""
    t = cls.table
    domain = values.get("domain_id", (before or {}).get("domain_id", ""))
    name = values.get("name")
    if name is None or (before is not None and name == before["name"] and domain == before["domain_id"]):
        return
    found = reader.scalar(sa.select(t.c.id).where(t.c.name == name, t.c.domain_id == domain))
    if found is not None and found != (before or {}).get("id"):
        raise conflict(f"There is already a {what} with the name {name} in this place; choose another name.")


def default_domain(call: Call) -> str:
    """The domain of something created without one: that of a domain-scoped token, else the default domain."""
    return call.creds.domain_id or DEFAULT_DOMAIN


def same_domain(before: Row, values: Row) -> None:
    """Raise 400 when an update would move something to another domain."""
    if "domain_id" in values and (values["domain_id"] or "") != before["domain_id"]:
        raise bad_request("domain_id cannot be changed; leave it out.", "ValidationError")
    values.pop("domain_id", None)


def mutable(row: Row, values: Row | None = None) -> None:
    """Raise 403 for a change of an immutable resource, except of the option itself."""
    if not (row.get("options") or {}).get("immutable"):
        return
    if values is not None and not (set(values) - {"options", "extra"}):
        return
    raise forbidden("This resource is immutable; set options.immutable to false first.", "ResourceUpdateForbidden")


def merge_options(before: Row, values: Row) -> None:
    """Apply an update's options to those there are; null takes one away."""
    if "options" in values:
        merged = {**(before.get("options") or {}), **(values["options"] or {})}
        values["options"] = {k: v for k, v in merged.items() if v is not None}


def view(call: Call, cls: type[Resource], row: Mapping[str, Any], **more: Any) -> Row:
    """The row as the API shows it, with its link."""
    assert cls.rest is not None
    out: Row = dict(row.get("extra") or {})
    for a in cls.attrs.values():
        if not a.hidden:
            value = a.compute(row) if a.compute is not None else row.get(a.name)
            out[a.api] = a.type.dump(value) if a.type.dump is not None and value is not None else value
    return {**out, **more, "links": {"self": f"{call.base}{cls.rest.path}/{row['id']}"}}


def listing(call: Call, items: str, views: list[Row], path: str) -> Row:
    """A list's body, whole, with its links."""
    if call.query and "?" not in path:
        path += "?" + urlencode(call.query, safe="/:")
    return {items: views, "links": {"next": None, "self": f"{call.base}{path}", "previous": None}}


def inner(call: Call, item: str) -> Row:
    """The object below ``item`` in the body, else 400."""
    body = call.body
    if not isinstance(body, dict) or not isinstance(body.get(item), dict):
        raise bad_request(f"The body must be an object with the key '{item}'.", "ValidationError")
    if extra := sorted(set(body) - {item}):
        raise bad_request(f"Unexpected keys beside '{item}': {', '.join(extra)}.", "ValidationError")
    found: Row = body[item]
    return found


def domain_column(cls: type[Resource]) -> Callable[[str], Any]:
    """What list rules may name beside attributes: the domain that a list is about."""

    def column(name: str) -> Any:
        return cls.table.c.domain_id if name in ("target.domain_id", "target.domain.id") else None

    return column
