"""Who has which role where: direct, by group, inherited from above and implied by other roles.

The functions that compute take plain data; those that take a reader fetch it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from nubila.core import clock
from nubila.services.identity.kinds import ASSIGNMENT, IMPLIED, MEMBERSHIP, Project, Role
from nubila.services.identity.kinds_federation import EXPIRING_MEMBERSHIP
from nubila.services.identity.revision import Memory, recall

if TYPE_CHECKING:
    from nubila.core.db import Reader, Tx

Row = dict[str, Any]
SYSTEM = "all"
_P = Project.table
_A = ASSIGNMENT.c

_GROUPS = sa.select(MEMBERSHIP.c.group_id).where(MEMBERSHIP.c.user_id == sa.bindparam("user_id"))
_X = EXPIRING_MEMBERSHIP.c
_FOR_NOW = sa.select(_X.group_id).where(_X.user_id == sa.bindparam("user_id"), _X.expires_at > sa.bindparam("now"))
_OF_ACTOR = sa.select(
    _A.actor_kind, _A.actor_id, _A.target_kind, _A.target_id, _A.role_id, _A.inherited
).where(
    sa.or_(
        sa.and_(_A.actor_kind == "user", _A.actor_id == sa.bindparam("user_id")),
        sa.and_(_A.actor_kind == "group", sa.or_(_A.actor_id.in_(_GROUPS), _A.actor_id.in_(_FOR_NOW))),
    )
)  # fmt: skip
_OF_GROUPS = sa.select(
    _A.actor_kind, _A.actor_id, _A.target_kind, _A.target_id, _A.role_id, _A.inherited
).where(_A.actor_kind == "group", _A.actor_id.in_(sa.bindparam("ids", expanding=True)))  # fmt: skip
_IMPLIED = sa.select(IMPLIED.c.prior_id, IMPLIED.c.implied_id)
_ROLES = sa.select(Role.table)
_PARENT = sa.select(_P.c.parent_id, _P.c.domain_id).where(_P.c.id == sa.bindparam("id"))
_CHILDREN = sa.select(_P).where(_P.c.parent_id == sa.bindparam("id"), _P.c.is_domain.is_(False)).order_by(_P.c.id)

MAX_DEPTH = 50
"""How deep projects may nest; deeper is a damaged tree."""


def expand(role_ids: Iterable[str], implied: Mapping[str, Iterable[str]]) -> list[str]:
    """The roles and all they imply, in a stable order without repetition."""
    out: dict[str, None] = {}
    todo = list(role_ids)
    while todo:
        role = todo.pop(0)
        if role not in out:
            out[role] = None
            todo += implied.get(role, ())
    return list(out)


def implied_roles(memory: Memory, reader: Reader) -> dict[str, list[str]]:
    """prior role id -> ids it implies directly."""

    def read() -> dict[str, list[str]]:
        found: dict[str, list[str]] = {}
        for prior, role in reader.rows(_IMPLIED):
            found.setdefault(prior, []).append(role)
        return found

    return recall(memory, reader, "implied", read)


def roles_by_id(memory: Memory, reader: Reader) -> dict[str, Row]:
    """All roles."""
    return recall(memory, reader, "roles", lambda: {r["id"]: r for r in reader.all(_ROLES)})


def ancestors(reader: Reader, project_id: str) -> list[str]:
    """Ids above a project, nearest first, its domain last."""
    out: list[str] = []
    row = reader.one(_PARENT, {"id": project_id})
    while row is not None and row["parent_id"] and row["parent_id"] not in out and len(out) < MAX_DEPTH:
        out.append(row["parent_id"])
        row = reader.one(_PARENT, {"id": row["parent_id"]})
    return out


def subtree(reader: Reader, project_id: str) -> list[Row]:
    """All projects below one, parents before children."""
    out: list[Row] = []
    todo = [project_id]
    while todo:
        found = reader.all(_CHILDREN, {"id": todo.pop(0)})
        out += found
        todo += [r["id"] for r in found]
    return out


def granted(
    rows: Iterable[tuple[str, str, str, str, str, bool]], target_kind: str, target_id: str, above: Iterable[str] = ()
) -> list[str]:
    """Role ids that assignment rows of one actor give on a target; ``above`` are the project's ancestors."""
    up = set(above)
    return [
        role
        for _, _, kind, target, role, inherited in rows
        if (not inherited and kind == target_kind and target == target_id)
        or (inherited and target in up and kind in ("project", "domain"))
    ]


def of_user(
    reader: Reader, user_id: str, groups: Sequence[str] = ()
) -> list[tuple[str, str, str, str, str, bool]]:  # fmt: skip
    """Every assignment of a user, also by its groups and by ``groups`` (those a federated token carries)."""
    rows = reader.rows(_OF_ACTOR, {"user_id": user_id, "now": clock.now()})
    return [*rows, *reader.rows(_OF_GROUPS, {"ids": list(groups)})] if groups else rows


def token_roles(
    memory: Memory, reader: Reader, user_id: str, target_kind: str, target_id: str, groups: Sequence[str] = ()
) -> list[dict[str, str]]:
    """The roles a token of this user for this target has: ``[{id, name}]``, domain roles expanded and left out."""

    def read() -> list[dict[str, str]]:
        above = ancestors(reader, target_id) if target_kind == "project" else []
        given = granted(of_user(reader, user_id, groups), target_kind, target_id, above)
        if not given:
            return []
        roles = roles_by_id(memory, reader)
        return [
            {"id": r, "name": roles[r]["name"]}
            for r in expand(given, implied_roles(memory, reader))
            if r in roles and not roles[r]["domain_id"]
        ]

    if memory.facts.get("expiring") is not False:  # memberships that end by themselves change no revision
        return read()
    return recall(memory, reader, ("token roles", user_id, target_kind, target_id, tuple(groups)), read)


def targets_of_user(
    reader: Reader, user_id: str, groups: Sequence[str] = ()
) -> tuple[list[str], list[str], bool]:  # fmt: skip
    """(project ids, domain ids, whether the system) the user could scope a token to."""
    rows = of_user(reader, user_id, groups)
    projects = {t for _, _, kind, t, _, inherited in rows if kind == "project" and not inherited}
    domains = {t for _, _, kind, t, _, inherited in rows if kind == "domain" and not inherited}
    for _, _, kind, target, _, inherited in rows:
        if inherited and kind != "system":
            projects |= {p["id"] for p in subtree(reader, target)}
    return sorted(projects), sorted(domains), any(kind == "system" for _, _, kind, _, _, _ in rows)


def grant(tx: Tx, actor: tuple[str, str], target: tuple[str, str], role_id: str, inherited: bool = False) -> None:
    """Give a role; giving it twice is the same as once. ``actor`` = ("user"|"group", id), ``target`` = (kind, id)."""
    values = _values(actor, target, role_id, inherited)
    if tx.scalar(sa.select(sa.func.count()).select_from(ASSIGNMENT).where(*_same(values))):
        return
    tx.insert(ASSIGNMENT, values)


def revoke(tx: Tx, actor: tuple[str, str], target: tuple[str, str], role_id: str, inherited: bool = False) -> bool:
    """Take a role away; False when it was not given."""
    return tx.execute(sa.delete(ASSIGNMENT).where(*_same(_values(actor, target, role_id, inherited)))) > 0


def has(reader: Reader, actor: tuple[str, str], target: tuple[str, str], role_id: str, inherited: bool = False) -> bool:
    """Whether exactly this grant exists."""
    found = _same(_values(actor, target, role_id, inherited))
    return bool(reader.scalar(sa.select(sa.func.count()).select_from(ASSIGNMENT).where(*found)))


def _values(actor: tuple[str, str], target: tuple[str, str], role_id: str, inherited: bool) -> Row:
    return {
        "actor_kind": actor[0], "actor_id": actor[1], "target_kind": target[0], "target_id": target[1],
        "role_id": role_id, "inherited": inherited,
    }  # fmt: skip


def _same(values: Row) -> list[Any]:
    return [ASSIGNMENT.c[k] == v if k != "inherited" else ASSIGNMENT.c[k].is_(bool(v)) for k, v in values.items()]


def forget(tx: Tx, **columns: str | list[str]) -> None:
    """Remove all assignments whose columns have these values."""
    where = [_A[k].in_(v) if isinstance(v, list) else _A[k] == v for k, v in columns.items()]
    tx.execute(sa.delete(ASSIGNMENT).where(*where))


def forget_role(tx: Tx, id: str) -> None:
    """Remove what hangs on a role, not the role."""
    forget(tx, role_id=id)
    tx.execute(sa.delete(IMPLIED).where(sa.or_(IMPLIED.c.prior_id == id, IMPLIED.c.implied_id == id)))
