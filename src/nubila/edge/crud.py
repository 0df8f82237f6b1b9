"""Create, show, list, update and delete of any declared resource: the same few lines for all services.

What a declaration cannot say is in the service's :class:`Hooks`. Each function is one readable sequence; the order of
the steps is the same as the original services': visible, valid, allowed, quota, change, follow-ups.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import sqlalchemy as sa

from nubila.core import checks, clock, query, quota
from nubila.core.call import Call, Reply, Route
from nubila.core.declare import Attr, Resource, Rest
from nubila.core.faults import Fault, bad_request, forbidden, not_found, over_quota
from nubila.core.service import Hooks, Service
from nubila.edge import dialects
from nubila.edge.views import views

Row = dict[str, Any]
Kind = type[Resource]


def routes(service: Service) -> list[Route]:
    """The derived routes of all kinds of a service that have a representation."""
    return [route for _, _, route in derived(service)]


def derived(service: Service) -> list[tuple[Kind, str, Route]]:
    """The same routes, each with the declaration and the verb it comes from."""
    out: list[tuple[Kind, str, Route]] = []
    for cls in service.kinds:
        if cls.rest is not None:
            made = _Crud(service, cls, cls.rest, service.hooks.get(cls, Hooks()))
            out += [(cls, verb, route) for verb, route in made.routes()]
    return out


class Target(Mapping[str, Any]):
    """A row as policy rules name it: plain, or with the prefix ``target.<item>.``, or by a wire alias."""

    __slots__ = ("cls", "extra", "prefix", "row")

    def __init__(self, cls: type[Resource], row: Mapping[str, Any], extra: Mapping[str, Any] | None = None) -> None:
        self.cls, self.row, self.extra = cls, row, extra or {}
        self.prefix = f"target.{cls.rest.item}." if cls.rest else ""

    def __getitem__(self, key: str) -> Any:
        if key in self.extra:
            return self.extra[key]
        if self.prefix and key.startswith(self.prefix):
            key = key[len(self.prefix) :]
        if key in self.row:
            return self.row[key]
        a = self.cls.by_wire.get(key)
        if a is None:
            raise KeyError(key)
        return self.row[a.name]

    def __iter__(self) -> Iterator[str]:
        return iter({*self.row, *self.extra})

    def __len__(self) -> int:
        return len(self.row)


class _Crud:
    def __init__(self, service: Service, cls: type[Resource], rest: Rest, hooks: Hooks) -> None:
        self.service, self.cls, self.rest, self.hooks = service, cls, rest, hooks
        self.dialect = dialects.of(service.name)
        table = cls.table
        self.key = cls.attrs[rest.key]
        self.by_key = sa.select(table).where(table.c[self.key.name] == sa.bindparam("key"))
        # In a write the row is locked, so that what is decided from it stays true until the commit; SQLite has one
        # writer anyway. A change does not keep others from referring to the row, a deletion does.
        self.to_change = self.by_key.with_for_update(key_share=True)
        self.to_delete = self.by_key.with_for_update()
        self.columns = [c.name for c in table.columns]

    def routes(self) -> Iterator[tuple[str, Route]]:
        one = f"{self.rest.path}/{{id}}"
        name = self.rest.item.replace("_", " ")
        all_: list[tuple[str, str, str, Callable[[Call], Any], str, str]] = [
            ("list", "GET", self.rest.path, self.page, "read", f"List {self.rest.items.replace('_', ' ')}."),
            ("create", "POST", self.rest.path, self.create, "write", f"Create a {name}."),
            ("show", "GET", one, self.show, "read", f"Show a {name}."),
            ("update", self.rest.update, one, self.update, "write", f"Update a {name}."),
            ("delete", "DELETE", one, self.delete, "write", f"Delete a {name}."),
        ]
        for verb, method, path, handler, tx, doc in all_:
            if verb in self.rest.verbs:
                yield verb, Route(method=method, path=path, handler=handler, tx=tx, doc=doc)

    # --- shared steps ---------------------------------------------------------------------------------------------

    def target(self, call: Call, row: Row) -> Mapping[str, Any]:
        return Target(self.cls, row, self.hooks.target(call, row) if self.hooks.target else None)

    def rule(self, call: Call, verb: str, row: Row | None = None) -> str:
        """The policy rule of a verb, for this row when it depends on it."""
        special = self.hooks.rule(call, verb, row) if self.hooks.rule else None
        return special or self.rest.rules[verb]

    def find(self, call: Call, id: str, statement: sa.Select[Any] | None = None) -> Row:
        """The row if the caller may know of it, else 404."""
        row: Row | None
        if self.hooks.find:
            row = self.hooks.find(call, id)
        else:
            row = call.tx.one(self.by_key if statement is None else statement, {"key": id})
        if row is None:
            raise not_found(self.rest.item, id)
        if self.rest.hidden == 404 and not call.may(self.rule(call, "show", row), self.target(call, row)):
            raise not_found(self.rest.item, id)
        return row

    def answer(self, call: Call, row: Row, verb: str) -> Reply:
        if self.hooks.present:
            self.hooks.present(call, [row])
        fields = tuple(f for k, v in call.query if k == "fields" for f in v.split(","))
        view = views(call, self.cls, [row], fields)[0]
        if self.hooks.trim:
            self.hooks.trim(verb, row, view)
        self.dialect.item_links(view, f"{call.base}{self.rest.path}/{row[self.key.name]}")
        return Reply({self.rest.item: view}, self.rest.status(verb, call.version))

    def inner(self, call: Call) -> Any:
        body = call.body
        if not isinstance(body, dict) or self.rest.item not in body or not isinstance(body[self.rest.item], dict):
            raise bad_request(f"The body must be an object with the key '{self.rest.item}'.", "HTTPBadRequest")
        if extra := set(body) - {self.rest.item}:
            raise bad_request(f"Unexpected keys beside '{self.rest.item}': {sorted(extra)}.", "HTTPBadRequest")
        return body[self.rest.item]

    def attr_rules(self, call: Call, verb: str, values: Mapping[str, Any], target: Mapping[str, Any]) -> None:
        for name in values:
            a: Attr | None = self.cls.attrs.get(name)
            if a is not None and a.set and not (verb == "create" and values[name] == a.default):
                call.enforce(f"{verb}_{self.rest.item}:{a.api}", target)

    # --- verbs ----------------------------------------------------------------------------------------------------

    def create(self, call: Call) -> Reply:
        if self.rest.bulk and isinstance(call.body, dict) and self.rest.items in call.body:
            many = call.body[self.rest.items]
            if not isinstance(many, list) or not many or not all(isinstance(one, dict) for one in many):
                raise bad_request(f"'{self.rest.items}' must be a list of at least one object.")
            item = self.rest.item  # each may be wrapped on its own, as in {"ports": [{"port": {...}}]}
            many = [one[item] if set(one) == {item} and isinstance(one[item], dict) else one for one in many]
            rows = [self._insert(call, one) for one in many]
            if self.hooks.present:
                self.hooks.present(call, rows)
            return Reply({self.rest.items: views(call, self.cls, rows)}, 201)
        return self.answer(call, self._insert(call, self.inner(call)), "create")

    def _insert(self, call: Call, body: Mapping[str, Any]) -> Row:
        given = checks.accept(self.cls, "create", body, call.version)
        values = dict(given)
        owner = self.cls.owner
        if owner == "project_id" and owner in self.cls.attrs and not values.get(owner):
            values[owner] = call.creds.project_id
        checks.defaults(self.cls, values, call.version)
        now = clock.now()
        for name in ("created_at", "updated_at"):
            if name in self.cls.attrs:
                values[name] = now
        if "revision_number" in self.cls.attrs:
            values.setdefault("revision_number", 0)
        target = self.target(call, values)
        call.enforce(self.rule(call, "create", values), target)
        self.attr_rules(call, "create", given, target)
        if self.hooks.prepare:
            self.hooks.prepare(call, values)
        if self.cls.quota and values.get(owner):
            self._claim(call, values[owner], 1)
        call.tx.insert(self.cls.table, {c: values.get(c) for c in self.columns})
        if self.hooks.created:
            self.hooks.created(call, values)
        return values

    def _claim(self, call: Call, owner: str, n: int) -> None:
        try:
            quota.claim(call.tx, owner, {self.cls.quota: n}, self.service.quotas)
        except quota.OverQuota as e:
            text = f"Quota exceeded for resources: ['{e.resource}']: {e.used} of {e.limit} in use."
            raise over_quota(text, status=self.dialect.over_quota_status) from None

    def show(self, call: Call) -> Reply:
        row = self.find(call, call.params["id"])
        if self.rest.hidden != 404:  # where things are not hidden each verb asks its own rule alone
            call.enforce(self.rule(call, "show", row), self.target(call, row))
        return self.answer(call, row, "show")

    def update(self, call: Call) -> Reply:
        if self.rest.body_first:
            checks.accept(self.cls, "update", self.inner(call), call.version)
        before = self.find(call, call.params["id"], self.to_change)
        target = self.target(call, before)
        if self.rest.hidden != 404:  # before the body, whose refusal would say that there is such a thing
            call.enforce(self.rule(call, "update", before), target)
        values = checks.accept(self.cls, "update", self.inner(call), call.version)
        call.enforce(self.rule(call, "update", before), target)
        self.attr_rules(call, "update", values, self.target(call, {**before, **values}))
        if self.hooks.prepare_update:
            self.hooks.prepare_update(call, before, values)
        if values:  # nobody may make a thing into what he could not have changed: another user's, another project's
            call.enforce(self.rule(call, "update", before), self.target(call, {**before, **values}))
        if "updated_at" in self.cls.attrs:
            values["updated_at"] = clock.now()
        if "revision_number" in self.cls.attrs:
            values["revision_number"] = (before.get("revision_number") or 0) + 1
        table = self.cls.table
        stored = {k: v for k, v in values.items() if k in self.columns}
        if stored:
            mine = table.c[self.cls.key] == before[self.cls.key]
            if not call.tx.execute(sa.update(table).where(mine).values(**stored)):
                raise not_found(self.rest.item, call.params["id"])  # somebody deleted it since we looked
        after = {**before, **values}
        if self.hooks.updated:
            self.hooks.updated(call, before, after)
        return self.answer(call, after, "update")

    def delete(self, call: Call) -> Reply:
        row = self.find(call, call.params["id"], self.to_delete)
        call.enforce(self.rule(call, "delete", row), self.target(call, row))
        if self.hooks.deleting:
            self.hooks.deleting(call, row)
        table = self.cls.table
        if not call.tx.execute(sa.delete(table).where(table.c[self.cls.key] == row[self.cls.key])):
            raise not_found(self.rest.item, call.params["id"])  # somebody was faster, and gave back the quota
        if self.cls.quota and row.get(self.cls.owner):
            quota.release(call.tx, row[self.cls.owner], {self.cls.quota: 1})
        if self.hooks.deleted:
            self.hooks.deleted(call, row)
        return Reply(None, self.rest.status("delete", call.version))

    def page(self, call: Call) -> Reply:
        return self.hooks.listed(call, lambda: self._page(call)) if self.hooks.listed else self._page(call)

    def _page(self, call: Call) -> Reply:
        rest, cls = self.rest, self.cls
        q = query.parse(cls, rest, call.query, call.version, own=self.hooks.own_filters)
        rule = self.rule(call, "list")
        scope = call.predicate(rule, lambda name: self.column(call, name))
        if isinstance(scope, sa.sql.elements.False_):
            if self.dialect.refused_list == 403 and rest.hidden == 403:
                raise forbidden(f"Policy does not allow {rule} with these credentials.")
            return self._listing(call, [], q, more=False)
        if self.hooks.scope:
            q.where += self.hooks.scope(call, q)
        marker: Row | None = None
        if q.marker is not None:
            marker = self._marker(call, q.marker, scope)
        wanted = q.limit
        if wanted is not None:
            q.limit = wanted + 1
        statement = query.select(
            cls, q, scope=None if isinstance(scope, sa.sql.elements.True_) else scope, marker=marker
        )
        rows = call.tx.all(statement)
        more = wanted is not None and len(rows) > wanted
        if more:
            rows = rows[:wanted]
        q.limit = wanted
        if q.reverse:
            rows.reverse()
        return self._listing(call, rows, q, more=more)

    def column(self, call: Call, name: str) -> Any:
        """The column behind a policy target name, None when there is none."""
        if self.hooks.column_for is not None and (special := self.hooks.column_for(call, name)) is not None:
            return special
        if self.hooks.column is not None and (special := self.hooks.column(name)) is not None:
            return special
        prefix = f"target.{self.rest.item}."
        a = self.cls.by_wire.get(name.removeprefix(prefix)) or self.cls.attrs.get(name.removeprefix(prefix))
        return self.cls.table.c[a.name] if a is not None and a.store else None

    def _marker(self, call: Call, id: str, scope: Any) -> Row:
        row: Row | None = call.tx.one(self.by_key.where(scope), {"key": id})
        if row is None:
            raise Fault(400, f"The marker {id} could not be found.", "HTTPBadRequest")
        return row

    def _listing(self, call: Call, rows: list[Row], q: query.ListQuery, *, more: bool) -> Reply:
        if self.hooks.present and rows:
            self.hooks.present(call, rows)
        shown = views(call, self.cls, rows, q.fields)
        url = f"{call.base}{self.rest.path}"
        for view, row in zip(shown, rows, strict=True):
            self.dialect.item_links(view, f"{url}/{row[self.key.name]}")
            if self.hooks.trim:
                self.hooks.trim("list", row, view)
        body: dict[str, Any] = {self.rest.items: shown}
        key = self.key.name
        page = dialects.Page(
            rows[0][key] if rows else None, rows[-1][key] if rows else None,
            limited=q.limit is not None, more=more, reverse=q.reverse,
            short=q.limit is not None and len(rows) < q.limit,
        )  # fmt: skip
        self.dialect.list_links(body, self.rest.items, url, call.query, page)
        return Reply(body, self.rest.status("list", call.version))
