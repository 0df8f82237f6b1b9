"""Things that other projects may use: who may, in SQL and for one row. The API of the policies is rbac_api.py.

How a kind becomes shareable (security groups, address groups, QoS policies, subnet pools ...):

1. Its declaration has a stored ``shared = Attr(LooseBool, ..., default=False, filter="eq", sort=True)``, writable or
   not (security groups: not). The column says "every project" and is kept by this module; what a caller is shown,
   filters by and is judged by is whether it is shared *with him*.
2. Its hooks are wrapped: ``HOOKS = rbac.shareable(SecurityGroup, Hooks(...))``. That brings the policy target
   ``shared`` (``rule:shared_security_group`` and the like work), the list predicate, the filter, what is shown, the
   implicit ``*`` policy when ``shared`` is written, and the end of the policies with the thing.
3. Its feature says ``shareable=(rbac.Shareable(kind=SecurityGroup, uses={rbac.SHARED: projects_using}),)`` where
   ``projects_using(reader, id)`` returns the ids of the projects that depend on it (ports in the group and so on; the
   owner may be among them). A policy that one of them needs cannot go (409 RbacPolicyInUse). The object type in the
   API is ``kind.kind``: "security_group", "address_group", "qos_policy". Announce "rbac-security-groups" and the like
   in the feature's ``extensions``.
4. Whoever refers to such a thing by id (a port to its groups) checks it with ``look.seen(cloud, tx, creds, cls, id)``,
   which knows the policies, or asks ``may_use(reader, creds.project_id, cls, row)``.
"""

from __future__ import annotations

import dataclasses as dc
import functools
from collections import ChainMap
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import sqlalchemy as sa

from nubila.core import clock, quota
from nubila.core.call import Call
from nubila.core.db import Reader, Tx
from nubila.core.declare import Resource
from nubila.core.faults import bad_request
from nubila.core.query import ListQuery
from nubila.core.service import Hooks
from nubila.core.types import boolean
from nubila.services.network.kinds import Network, Subnet
from nubila.services.network.kinds_rbac import RbacPolicy

Row = dict[str, Any]
SHARED, EXTERNAL = "access_as_shared", "access_as_external"
EVERYBODY = "*"
_R = RbacPolicy.table.c
_GRANTED = sa.select(_R.object_id).where(
    _R.object_id.in_(sa.bindparam("ids", expanding=True)), _R.action == sa.bindparam("action"),
    _R.target.in_(sa.bindparam("targets", expanding=True)),
)  # fmt: skip
GRANTED_TO = sa.select(_R.object_id).where(
    _R.action == SHARED, _R.target.in_((sa.literal(EVERYBODY), sa.bindparam("project", type_=sa.String(255))))
)  # fmt: skip
"""Ids of what is shared with the parameter ``project``, to put into other statements."""
_OF = sa.select(RbacPolicy.table).where(_R.object_id == sa.bindparam("object"))
_DROP = sa.delete(RbacPolicy.table).where(_R.id == sa.bindparam("b_id"))
_SUBNETS = (
    sa.update(Subnet.table)
    .where(Subnet.table.c.network_id == sa.bindparam("b_network"))
    .values(shared=sa.bindparam("b_shared"), external=sa.bindparam("b_external"))
)


@dc.dataclass(frozen=True, kw_only=True)
class Shareable:
    """A kind of thing that RBAC policies can be about.

    ``uses`` names its actions and, for each, who depends on it: projects by (reader, id of the thing). ``changed`` is
    told (call, row before, row after) when a policy made the thing shared with everybody, external, or no more so.
    ``keep`` says why the policy for everybody must stay ((row, action) -> a sentence, "" when it need not);
    ``why_not`` why the thing cannot be shared with a target ((reader, row, target) -> a sentence, "" when it can).
    """

    kind: type[Resource]
    uses: Mapping[str, Callable[[Reader, str], Iterable[str]]]
    changed: Callable[[Call, Row, Row], None] | None = None
    keep: Callable[[Row, str], str] | None = None
    strict: bool = False  # giving a policy another target is judged as taking it away (Neutron: QoS policies)
    why_not: Callable[[Reader, Row, str], str] | None = None


# --- may it be used? ------------------------------------------------------------------------------------------------


def _object(cls: type[Resource]) -> str:
    """The column with the id of what is shared: a subnet is shared with its network."""
    return "network_id" if cls is Subnet else "id"


def may_use(reader: Reader, project_id: str, cls: type[Resource], row: Mapping[str, Any], action: str = SHARED) -> bool:
    """Whether a policy lets the project use this row of a shareable kind."""
    if action == SHARED and row.get("shared") and "id" in row and cls is not Subnet:
        return True
    where = {"ids": [row[_object(cls)]], "action": action, "targets": [EVERYBODY, project_id]}
    return bool(reader.rows(_GRANTED, where))


def clause(cls: type[Resource], project_id: str, action: str = SHARED) -> Any:
    """The rows of a kind the project may use, as SQL."""
    granted = sa.select(_R.object_id).where(_R.action == action, _R.target.in_((EVERYBODY, project_id)))
    return cls.table.c[_object(cls)].in_(granted)


_NAMES = {"shared": SHARED, "router:external": EXTERNAL}


def _has(cls: type[Resource], name: str) -> bool:
    return name == "shared" or (name == "router:external" and cls in (Network, Subnet))


class Reach(Mapping[str, Any]):
    """Policy target: ``shared`` and ``router:external`` as the caller has them, looked up when a rule asks."""

    def __init__(self, reader: Reader, creds: Any, cls: type[Resource], row: Mapping[str, Any]) -> None:
        self._reader, self._project = reader, (creds.project_id or "") if creds is not None else ""
        self._cls, self._row = cls, row
        self._known: dict[str, bool] = {}

    def __contains__(self, key: object) -> bool:
        return isinstance(key, str) and _has(self._cls, key)

    def __getitem__(self, key: str) -> bool:
        if key not in self:
            raise KeyError(key)
        if key not in self._known:
            self._known[key] = self._row.get(_object(self._cls)) is not None and may_use(
                self._reader, self._project, self._cls, self._row, _NAMES[key]
            )
        return self._known[key]

    def __iter__(self) -> Iterator[str]:
        return iter([name for name in _NAMES if name in self])

    def __len__(self) -> int:
        return sum(1 for _ in self)


def target(reader: Reader, creds: Any, cls: type[Resource], row: Mapping[str, Any]) -> Mapping[str, Any]:
    """The row (under its names on the wire) as policy rules judge it for this caller."""
    if "shared" not in cls.attrs:
        return row
    return ChainMap(Reach(reader, creds, cls, row), row)  # type: ignore[arg-type]  # nobody writes to it


def column(call: Call, cls: type[Resource], name: str) -> Any:
    """``Hooks.column_for`` of a shareable kind."""
    return clause(cls, call.creds.project_id or "", _NAMES[name]) if name in _NAMES and _has(cls, name) else None


def narrow(call: Call, cls: type[Resource], q: ListQuery) -> list[Any]:
    """The clauses of the filter ``shared``, which means "with me"."""
    out: list[Any] = []
    for text in q.extra.get("shared", [])[-1:]:
        try:
            wanted = boolean(text)
        except ValueError:
            text = f"Invalid input for filter 'shared': '{text}' is not true or false."
            raise bad_request(text, "InvalidInput") from None
        mine = clause(cls, call.creds.project_id or "")
        out.append(mine if wanted else sa.not_(mine))
    return out


def show(call: Call, rows: list[Row]) -> None:
    """Set ``shared`` of a page as the caller is to see it."""
    ids = [r["id"] for r in rows if not r["shared"]]
    project = call.creds.project_id or ""
    if not ids or not project:
        return
    granted: set[str] = set()
    for i in range(0, len(ids), 500):
        where = {"ids": ids[i : i + 500], "action": SHARED, "targets": [project]}
        granted |= {id for (id,) in call.tx.rows(_GRANTED, where)}
    for row in rows:
        row["shared"] = bool(row["shared"]) or row["id"] in granted


# --- policies that follow from the thing itself -----------------------------------------------------------------------


def policies(reader: Reader, object_id: str) -> list[Row]:
    """All policies about one thing."""
    return reader.all(_OF, {"object": object_id})


def grant(tx: Tx, cls: type[Resource], row: Mapping[str, Any], action: str, target: str = EVERYBODY) -> None:
    """Make a policy because the thing itself says so (``shared`` or ``router:external`` was written); never refused."""
    if any(p["action"] == action and p["target"] == target for p in policies(tx, row["id"])):
        return
    tx.insert(RbacPolicy.table, {
        "id": clock.new_id(), "project_id": row["project_id"], "object_type": cls.kind, "object_id": row["id"],
        "action": action, "target": target,
    })  # fmt: skip
    if row["project_id"]:
        quota.count(tx, row["project_id"], {"rbac_policy": 1})


def withdraw(tx: Tx, object_id: str, action: str = "", target: str = "") -> None:
    """Take back the policies about a thing ("" = of every action, for every target)."""
    for policy in policies(tx, object_id):
        if action in ("", policy["action"]) and target in ("", policy["target"]):
            tx.execute(_DROP, {"b_id": policy["id"]})
            if policy["project_id"]:
                quota.release(tx, policy["project_id"], {"rbac_policy": 1})


def lock(tx: Tx, cls: type[Resource], id: str) -> Row | None:
    """The thing's row; nobody else changes who may use it until the transaction ends."""
    return tx.one(_lock(cls.table), {"id": id})


@functools.cache
def _lock(table: sa.Table) -> sa.Select[Any]:
    return sa.select(table).where(table.c.id == sa.bindparam("id")).with_for_update()


def sync(tx: Tx, cls: type[Resource], row: Mapping[str, Any]) -> Row:
    """Bring the row's own columns to what the policies say; returns the row as it is then."""
    mine = {(p["action"], p["target"]) for p in policies(tx, row["id"])}
    values: Row = {"shared": (SHARED, EVERYBODY) in mine}
    if cls is Network:
        values["external"] = any(action == EXTERNAL for action, _ in mine)
    after = {**row, **values}
    if after != dict(row):
        tx.execute(sa.update(cls.table).where(cls.table.c.id == row["id"]).values(**values))
        if cls is Network:
            copy(tx, after)
    return after


def copy(tx: Tx, network: Mapping[str, Any]) -> None:
    """Subnets carry copies of their network's ``shared`` and ``external``."""
    tx.execute(_SUBNETS, {"b_network": network["id"], "b_shared": network["shared"], "b_external": network["external"]})


# --- the wrapper ------------------------------------------------------------------------------------------------------


def shareable(cls: type[Resource], hooks: Hooks) -> Hooks:  # noqa: C901  # six small functions
    """The hooks of a kind with what makes it shareable (see the module's text)."""

    def own_target(call: Call, row: Row) -> Mapping[str, Any]:
        extra = hooks.target(call, row) if hooks.target else {}
        reach: Any = Reach(call.tx, call.creds, cls, row)
        return ChainMap(reach, dict(extra)) if extra else reach

    def created(call: Call, row: Row) -> None:
        if row.get("shared"):
            grant(call.tx, cls, row, SHARED)
        if hooks.created:
            hooks.created(call, row)

    def updated(call: Call, before: Row, after: Row) -> None:
        if before["shared"] != after["shared"]:
            if after["shared"]:
                grant(call.tx, cls, before, SHARED)
            else:
                withdraw(call.tx, before["id"], SHARED, EVERYBODY)
        if hooks.updated:
            hooks.updated(call, before, after)

    def deleting(call: Call, row: Row) -> None:
        if hooks.deleting:
            hooks.deleting(call, row)
        withdraw(call.tx, row["id"])

    def present(call: Call, rows: list[Row]) -> None:
        if hooks.present:
            hooks.present(call, rows)
        show(call, rows)

    def scope(call: Call, q: ListQuery) -> list[Any]:
        return [*(hooks.scope(call, q) if hooks.scope else []), *narrow(call, cls, q)]

    return dc.replace(
        hooks,
        target=own_target,
        created=created,
        updated=updated,
        deleting=deleting,
        present=present,
        scope=scope,
        column_for=lambda call, name: column(call, cls, name),
        own_filters=(*hooks.own_filters, "shared"),
    )
