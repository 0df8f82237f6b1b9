"""GET /v3/role_assignments: who has which role where, as granted or as it works out (``effective``)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import sqlalchemy as sa

from nubila.core.call import Call, Route
from nubila.core.faults import bad_request
from nubila.services.identity import assignments, lookup, shape
from nubila.services.identity.kinds import ASSIGNMENT, MEMBERSHIP, Group, Project
from nubila.services.identity.ldap import reads as directories
from nubila.services.identity.revision import fresh

Row = dict[str, Any]
_A = ASSIGNMENT.c


@dataclass(frozen=True)
class Grant:
    """One line of the list. The ``via`` fields say what an effective one follows from."""

    actor_kind: str
    actor_id: str
    target_kind: str
    target_id: str
    role_id: str
    inherited: bool = False
    via_group: str = ""
    via_target: tuple[str, str] = ("", "")
    via_role: str = ""


def _truth(call: Call, key: str) -> bool:
    text = call.arg(key)
    return text is not None and text.lower() not in ("0", "false", "no", "off")


def _check(call: Call, effective: bool, inherited: bool | None) -> None:
    def both(a: str, b: str) -> bool:
        return bool(call.arg(a)) and bool(call.arg(b))

    for a, b in (
        ("scope.domain.id", "scope.project.id"), ("scope.domain.id", "scope.system"),
        ("scope.project.id", "scope.system"), ("user.id", "group.id"),
    ):  # fmt: skip
        if both(a, b):
            raise bad_request(f"Specify {a} or {b}, not both.", "ValidationError")
    if effective and call.arg("group.id"):
        raise bad_request("effective and group.id together never match anything.", "ValidationError")
    if effective and inherited and call.arg("scope.domain.id"):
        raise bad_request("effective, inherited and scope.domain.id together never match anything.", "ValidationError")


def expanded(
    rows: Iterable[Grant], members: dict[str, list[str]], below: dict[str, list[str]], implied: dict[str, list[str]]
) -> list[Grant]:
    """Grants as they work out: groups become users, inherited ones projects below, roles all they imply."""
    out: dict[Grant, None] = {}
    for g in rows:
        users = [g] if g.actor_kind == "user" else [
            replace(g, actor_kind="user", actor_id=u, via_group=g.actor_id) for u in members.get(g.actor_id, ())
        ]  # fmt: skip
        for u in users:
            placed = [u] if not u.inherited else [
                replace(u, target_kind="project", target_id=p, via_target=(u.target_kind, u.target_id))
                for p in below.get(u.target_id, ())
            ]  # fmt: skip
            for p in placed:
                todo, seen = [p], {p.role_id}
                while todo:
                    one = todo.pop()
                    out[one] = None
                    for role in implied.get(one.role_id, ()):
                        if role not in seen:
                            seen.add(role)
                            todo.append(replace(one, role_id=role, via_role=one.role_id))
    return list(out)


def _effective(call: Call, rows: list[Grant]) -> list[Grant]:
    known = fresh(call.cloud, call.tx)
    directories.members(call, (g.actor_id for g in rows if g.actor_kind == "group"))
    members: dict[str, list[str]] = {}
    for user, group in call.tx.rows(sa.select(MEMBERSHIP.c.user_id, MEMBERSHIP.c.group_id)):
        members.setdefault(group, []).append(user)
    tops = {g.target_id for g in rows if g.inherited}
    below = {t: [p["id"] for p in assignments.subtree(call.tx, t)] for t in tops}
    out = expanded(rows, members, below, assignments.implied_roles(known, call.tx))
    roles = assignments.roles_by_id(known, call.tx)
    return [g for g in out if g.role_id in roles and not roles[g.role_id]["domain_id"]]


def _matching(call: Call, rows: Iterable[Grant], inherited: bool | None, projects: set[str] | None) -> list[Grant]:
    wanted = {k: call.arg(k) for k in ("user.id", "group.id", "role.id", "scope.domain.id", "scope.system")}

    def fits(g: Grant) -> bool:
        return (
            (not wanted["user.id"] or (g.actor_kind, g.actor_id) == ("user", wanted["user.id"]))
            and (not wanted["group.id"] or (g.actor_kind, g.actor_id) == ("group", wanted["group.id"]))
            and (not wanted["role.id"] or g.role_id == wanted["role.id"])
            and (not wanted["scope.domain.id"] or (g.target_kind, g.target_id) == ("domain", wanted["scope.domain.id"]))
            and (not wanted["scope.system"] or g.target_kind == "system")
            and (projects is None or (g.target_kind == "project" and g.target_id in projects))
            and (inherited is None or g.inherited == inherited)
        )

    return [g for g in rows if fits(g)]


def _within(call: Call, rows: list[Grant], domain_id: str) -> list[Grant]:
    """What a domain-scoped caller may see: grants on the domain and on its projects."""
    t = Project.table
    mine = {p for (p,) in call.tx.rows(sa.select(t.c.id).where(t.c.domain_id == domain_id))}
    targets = {("domain", domain_id), *(("project", p) for p in mine)}
    return [g for g in rows if (g.target_kind, g.target_id) in targets]


def list_assignments(call: Call) -> Row:
    """GET /v3/role_assignments."""
    tree = _truth(call, "include_subtree")
    project_id = call.arg("scope.project.id")
    target: Row = {"domain_id": call.creds.domain_id, "target.domain_id": call.creds.domain_id}
    if tree:
        project = shape.fetch(call.tx, Project, project_id) if project_id else None
        if project is not None:
            domain = project["domain_id"] or project["id"]
            target = {"target": {"project": project}, "domain_id": domain, "target.domain_id": domain}
        call.enforce("identity:list_role_assignments_for_tree", target)
        if project is None:
            raise bad_request("include_subtree needs scope.project.id.", "ValidationError")
    else:
        call.enforce("identity:list_role_assignments", target)
    effective = _truth(call, "effective")
    inherit = call.arg("scope.OS-INHERIT:inherited_to")
    inherited = None if inherit is None else inherit == "projects"
    _check(call, effective, inherited)
    projects: set[str] | None = None
    if project_id:
        projects = {project_id} | ({p["id"] for p in assignments.subtree(call.tx, project_id)} if tree else set())
    names = ("actor_kind", "actor_id", "target_kind", "target_id", "role_id", "inherited")
    found = sa.select(*(_A[n] for n in names)).order_by(*(_A[n] for n in names))
    rows = [Grant(r[0], r[1], r[2], r[3], r[4], bool(r[5])) for r in call.tx.rows(found)]
    if effective:
        rows = _effective(call, rows)
    rows = _matching(call, rows, inherited, projects)
    if call.creds.domain_id and not tree:
        rows = _within(call, rows, call.creds.domain_id)
    shown = _Names(call) if _truth(call, "include_names") else None
    views = [_view(call, g, shown) for g in rows]
    query = "&".join(f"{k}={v}" if v else k for k, v in call.query)
    return shape.listing(call, "role_assignments", views, f"{call.path}?{query}" if query else call.path)


class _Names:
    """Names of what grants mention, each looked up once."""

    def __init__(self, call: Call) -> None:
        self.call = call
        self.roles = assignments.roles_by_id(fresh(call.cloud, call.tx), call.tx)
        self.rows: dict[tuple[str, str], Row | None] = {}

    def row(self, kind: str, id: str) -> Row | None:
        """The user, group, project or domain."""
        key = (kind, id)
        if key not in self.rows:
            tx = self.call.tx
            if kind == "user":
                self.rows[key] = lookup.user(tx, id)
            elif kind == "group":
                self.rows[key] = tx.one(sa.select(Group.table).where(Group.table.c.id == id))
            else:
                self.rows[key] = lookup.project(tx, id)
        return self.rows[key]

    def of(self, kind: str, id: str) -> Row:
        """``{name, domain}`` of it; nothing when it is gone."""
        row = self.row(kind, id)
        if row is None:
            return {}
        if kind == "domain":
            return {"name": row["name"]}
        domain = self.row("domain", row["domain_id"])
        return {"name": row["name"], "domain": {"id": row["domain_id"], "name": domain["name"] if domain else None}}


def _view(call: Call, g: Grant, names: _Names | None) -> Row:
    def ref(kind: str, id: str) -> Row:
        return {"id": id, **(names.of(kind, id) if names else {})}

    out: Row = {"links": {}}
    scope: Row = (
        {"system": {"all": True}} if g.target_kind == "system" else {g.target_kind: ref(g.target_kind, g.target_id)}
    )
    if g.inherited:
        scope["OS-INHERIT:inherited_to"] = "projects"
    out["scope"] = scope
    out[g.actor_kind] = ref(g.actor_kind, g.actor_id)
    role: Row = {"id": g.role_id}
    if names:
        row = names.roles.get(g.role_id)
        role["name"] = row["name"] if row else None
        if row and row["domain_id"]:
            role["domain"] = {"id": row["domain_id"], **names.of("domain", row["domain_id"])}
    out["role"] = role
    out["links"] = _links(call, g)
    return out


def _links(call: Call, g: Grant) -> Row:
    kind, id = g.via_target if g.via_target[0] else (g.target_kind, g.target_id)
    actor = f"groups/{g.via_group}" if g.via_group else f"{g.actor_kind}s/{g.actor_id}"
    path = f"/{'system' if kind == 'system' else f'{kind}s/{id}'}/{actor}/roles/{g.via_role or g.role_id}"
    if g.inherited:
        path = f"/OS-INHERIT{path}/inherited_to_projects"
    links = {"assignment": f"{call.base}/v3{path}"}
    if g.via_group:
        links["membership"] = f"{call.base}/v3/groups/{g.via_group}/users/{g.actor_id}"
    if g.via_role:
        links["prior_role"] = f"{call.base}/v3/prior_role/{g.role_id}/implies/{g.via_role}"
    return links


ROUTES = (Route(method="GET", path="/v3/role_assignments", handler=list_assignments, doc="List role assignments."),)
