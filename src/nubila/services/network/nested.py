"""Resources that live below another one in the URL: ``/v2.0/<parents>/{parent_id}/<items>/{id}``.

A :class:`Nested` says which declaration lives below which parent, and what follows from its changes; ``routes`` makes
its five operations. The steps are those of every other resource: visible, valid, allowed, quota, change, follow-ups.
Whoever may not see the parent finds nothing below it, and policy knows the parent's owner as ``ext_parent:project_id``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from nubila.core import checks, clock, query, quota
from nubila.core.call import Call, Reply, Route, takes
from nubila.core.declare import Resource, Rest, body_schema
from nubila.core.faults import Fault, bad_request, not_found, over_quota
from nubila.core.gates import ALWAYS
from nubila.services.network import look

Row = dict[str, Any]


def _nothing(*_: Any) -> None:
    return None


@dataclass(frozen=True, kw_only=True)
class Nested:
    """One kind below one parent; ``rule`` is what the verbs' policy rules end with ("floatingip_port_forwarding")."""

    cls: type[Resource]
    parent: type[Resource]
    link: str  # the column that names the parent
    item: str
    items: str
    rule: str
    prepare: Callable[[Call, Row, Row], None] = _nothing  # (call, parent, values): before the insert
    created: Callable[[Call, Row, Row], None] = _nothing  # (call, parent, row)
    prepare_update: Callable[[Call, Row, Row, Row], None] = _nothing  # (call, parent, row as it is, new values)
    updated: Callable[[Call, Row, Row, Row], None] = _nothing  # (call, parent, before, after)
    deleted: Callable[[Call, Row, Row], None] = _nothing  # (call, parent, row)
    view: Callable[[Row], Row] | None = None  # what is shown of a row, where that is not simply its attributes

    @property
    def path(self) -> str:
        """Below which path they are."""
        assert self.parent.rest is not None
        return f"{self.parent.rest.path}/{{parent_id}}/{self.items}"

    def routes(self) -> list[Route]:
        """List, create, show, update, delete."""
        assert self.parent.rest is not None
        name, parent = self.item.replace("_", " "), self.parent.rest.item.replace("_", " ")
        rest = Rest(path=self.path, item=self.item, items=self.items, rules={})
        one = self.path + "/{id}"
        return [
            Route(method="GET", path=self.path, handler=lambda call: _page(self, rest, call),
                  doc=f"List the {self.items.replace('_', ' ')} of a {parent}."),
            Route(method="POST", path=self.path, handler=_body(self, "create", _create), tx="write", status=201,
                  doc=f"Create a {name} of a {parent}."),
            Route(method="GET", path=one, handler=lambda call: _show(self, call), doc=f"Show a {name} of a {parent}."),
            Route(method="PUT", path=one, handler=_body(self, "update", _update), tx="write",
                  doc=f"Update a {name} of a {parent}."),
            Route(method="DELETE", path=one, handler=lambda call: _delete(self, call), tx="write", status=204,
                  doc=f"Delete a {name} of a {parent}."),
        ]  # fmt: skip

    def missing(self, id: str) -> Fault:
        """The 404 of one."""
        return not_found(self.item, id)


def _body(nested: Nested, verb: str, handler: Callable[[Nested, Call], Reply]) -> Callable[[Call], Reply]:
    schema = {
        "type": "object", "properties": {nested.item: body_schema(nested.cls, verb, ALWAYS)},
        "required": [nested.item],
    }  # fmt: skip

    @takes(schema)
    def handle(call: Call) -> Reply:
        return handler(nested, call)

    return handle


def _parent(nested: Nested, call: Call) -> Row:
    """The parent as the caller may see it; in a write, locked against other changes of what hangs on it."""
    id = call.params["parent_id"]
    row = look.seen(call.cloud, call.tx, call.creds, nested.parent, id)
    if call.method != "GET":
        look.lock(call.tx, nested.parent, id)
        row = look.need(call.tx, nested.parent, id)
    return row


def _target(parent: Row, row: Mapping[str, Any]) -> Row:
    owner = parent["project_id"]
    return {**row, "project_id": owner, "tenant_id": owner, "ext_parent:project_id": owner,
            "ext_parent:tenant_id": owner}  # fmt: skip


def _find(nested: Nested, call: Call, parent: Row) -> Row:
    t = nested.cls.table.c
    row: Row | None = call.tx.one(
        sa.select(nested.cls.table).where(t.id == call.params["id"], t[nested.link] == parent["id"])
    )
    if row is None or not call.may(f"get_{nested.rule}", _target(parent, row)):
        raise nested.missing(call.params["id"])
    return row


def _shown(nested: Nested, row: Row, fields: tuple[str, ...] = ()) -> Row:
    shown = {
        name: a.type.dump(row[a.name]) if a.type.dump else row[a.name]
        for a in nested.cls.attrs.values()
        if not a.hidden
        for name in a.wire
    }
    if nested.view is not None:
        shown = nested.view(shown)
    return {n: v for n, v in shown.items() if n in fields} if fields else shown


def _inner(nested: Nested, call: Call) -> Row:
    body = call.body
    if not isinstance(body, dict) or set(body) != {nested.item} or not isinstance(body[nested.item], dict):
        raise bad_request(f"The body must be an object with the key '{nested.item}'.", "HTTPBadRequest")
    return dict(body[nested.item])


def _page(nested: Nested, rest: Rest, call: Call) -> Row:
    parent = _parent(nested, call)
    cls = nested.cls
    q = query.parse(cls, rest, call.query, call.version)
    if not call.may(f"get_{nested.rule}", _target(parent, {})):
        return {nested.items: []}
    t = cls.table.c
    q.where.append(t[nested.link] == parent["id"])
    q.limit = q.limit or None
    marker: Row | None = None
    if q.marker is not None:
        marker = call.tx.one(sa.select(cls.table).where(t.id == q.marker, t[nested.link] == parent["id"]))
        if marker is None:
            raise nested.missing(q.marker)
    rows = call.tx.all(query.select(cls, q, marker=marker))
    if q.reverse:
        rows.reverse()
    return {nested.items: [_shown(nested, row, q.fields) for row in rows]}


def _create(nested: Nested, call: Call) -> Reply:
    parent = _parent(nested, call)
    many = call.body.get(nested.items) if isinstance(call.body, dict) else None
    if isinstance(many, list) and many and all(isinstance(one, dict) for one in many) and len(call.body) == 1:
        return Reply({nested.items: [_shown(nested, _insert(nested, call, parent, one)) for one in many]}, 201)
    return Reply({nested.item: _shown(nested, _insert(nested, call, parent, _inner(nested, call)))}, 201)


def _insert(nested: Nested, call: Call, parent: Row, body: Mapping[str, Any]) -> Row:
    cls = nested.cls
    values = checks.accept(cls, "create", body, call.version)
    values["project_id"] = parent["project_id"]
    values[nested.link] = parent["id"]
    checks.defaults(cls, values, call.version)
    now = clock.now()
    values.update({name: now for name in ("created_at", "updated_at") if name in cls.attrs})
    call.enforce(f"create_{nested.rule}", _target(parent, values))
    nested.prepare(call, parent, values)
    if cls.quota and values["project_id"]:
        try:
            quota.claim(call.tx, values["project_id"], {cls.quota: 1}, call.service.quotas)
        except quota.OverQuota as e:
            text = f"Quota exceeded for resources: ['{e.resource}']: {e.used} of {e.limit} in use."
            raise over_quota(text) from None
    call.tx.insert(cls.table, {c.name: values.get(c.name) for c in cls.table.columns})
    nested.created(call, parent, values)
    return values


def _show(nested: Nested, call: Call) -> Row:
    parent = _parent(nested, call)
    fields = tuple(f for k, v in call.query if k == "fields" for f in v.split(","))
    return {nested.item: _shown(nested, _find(nested, call, parent), fields)}


def _update(nested: Nested, call: Call) -> Reply:
    parent = _parent(nested, call)
    before, cls = _find(nested, call, parent), nested.cls
    values = checks.accept(cls, "update", _inner(nested, call), call.version)
    call.enforce(f"update_{nested.rule}", _target(parent, before))
    nested.prepare_update(call, parent, before, values)
    if "updated_at" in cls.attrs:
        values["updated_at"] = clock.now()
    if "revision_number" in cls.attrs:
        values["revision_number"] = (before["revision_number"] or 0) + 1
    stored = {k: v for k, v in values.items() if k in cls.table.c}
    if stored:
        call.tx.execute(sa.update(cls.table).where(cls.table.c.id == before["id"]).values(**stored))
    after = {**before, **values}
    nested.updated(call, parent, before, after)
    return Reply({nested.item: _shown(nested, after)})


def _delete(nested: Nested, call: Call) -> None:
    parent = _parent(nested, call)
    row = _find(nested, call, parent)
    call.enforce(f"delete_{nested.rule}", _target(parent, row))
    remove(nested.cls, call.tx, row)
    nested.deleted(call, parent, row)


def remove(cls: type[Resource], tx: Any, row: Row) -> None:
    """Delete one row and give its quota back."""
    if tx.execute(sa.delete(cls.table).where(cls.table.c.id == row["id"])) and cls.quota and row["project_id"]:
        quota.release(tx, row["project_id"], {cls.quota: 1})
