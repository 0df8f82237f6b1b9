"""Roles, the roles they imply, and grants of roles to users and groups. API: /v3/roles, .../roles/{role_id}."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import sqlalchemy as sa

from nubila.core.call import Call, Reply, Route
from nubila.core.faults import bad_request, forbidden, not_found
from nubila.core.query import ListQuery
from nubila.core.service import Hooks
from nubila.services.identity import application_credentials, assignments, lookup, shape
from nubila.services.identity.kinds import ASSIGNMENT, IMPLIED, Group, Role
from nubila.services.identity.revision import bump, fresh

Row = dict[str, Any]
_R = Role.table
_A, _I = ASSIGNMENT.c, IMPLIED.c


# --- roles ---------------------------------------------------------------------------------------------------------


def _domain(values: Row) -> None:
    values["domain_id"] = values.get("domain_id") or ""


def _new(call: Call, values: Row) -> None:
    _domain(values)
    if values["domain_id"]:
        row = lookup.project(call.tx, values["domain_id"])
        if row is None or not row["is_domain"]:
            raise not_found("domain", values["domain_id"])
    shape.keep_extra(call, Role, values)
    shape.merge_options({}, values)
    shape.names_free(call.tx, Role, values, "role")


def _change(call: Call, before: Row, values: Row) -> None:
    shape.same_domain(before, values)
    shape.keep_extra(call, Role, values, before)
    shape.mutable(before, values)
    shape.merge_options(before, values)
    shape.names_free(call.tx, Role, values, "role", before)


def _changed(call: Call, before: Row, after: Row) -> None:
    bump(call.cloud, call.tx)


def _delete(call: Call, row: Row) -> None:
    shape.mutable(row)
    application_credentials.role_deleted(call, row["id"])
    assignments.forget_role(call.tx, row["id"])
    bump(call.cloud, call.tx)


def _scope(call: Call, q: ListQuery) -> list[Any]:
    """Without a filter by domain only the global roles are listed."""
    return [] if call.arg("domain_id") is not None else [_R.c.domain_id == ""]


def _target(call: Call, row: Row) -> Row:
    return {"target.role.domain_id": row.get("domain_id") or None, "role_id": row.get("id")}


def _of_domain(call: Call, verb: str, row: Row | None) -> str | None:
    """Roles of a domain have rules of their own."""
    if not (call.arg("domain_id") if row is None else row.get("domain_id")):
        return None
    return "identity:list_domain_roles" if verb == "list" else f"identity:{_VERBS[verb]}_domain_role"


_VERBS = {"show": "get", "create": "create", "update": "update", "delete": "delete"}
HOOKS = Hooks(
    prepare=_new, prepare_update=_change, updated=_changed, deleting=_delete, scope=_scope, target=_target,
    find=shape.finder(Role, open_to="GET HEAD PATCH DELETE"), column=shape.domain_column(Role), rule=_of_domain,
)  # fmt: skip


# --- implied roles -------------------------------------------------------------------------------------------------


def _short(call: Call, role: Row) -> Row:
    return {"id": role["id"], "links": {"self": f"{call.base}/v3/roles/{role['id']}"}, "name": role["name"]}


def _both(call: Call, rule: str) -> tuple[Row, Row]:
    call.enforce(rule, {"prior_role_id": call.params["prior"], "implied_role_id": call.params["implied"]})
    return tuple(shape.fetch(call.tx, Role, call.params[k]) for k in ("prior", "implied"))  # type: ignore[return-value]


def _inference(call: Call, prior: Row, implied: Row) -> Row:
    return {
        "role_inference": {"prior_role": _short(call, prior), "implies": _short(call, implied)},
        "links": {"self": f"{call.base}/v3/roles/{prior['id']}/implies/{implied['id']}"},
    }


def _there(call: Call, prior: Row, implied: Row) -> bool:
    same = (_I.prior_id == prior["id"], _I.implied_id == implied["id"])
    return call.tx.scalar(sa.select(_I.prior_id).where(*same)) is not None


def imply(call: Call) -> Reply:
    """PUT /v3/roles/{prior}/implies/{implied}."""
    prior, implied = _both(call, "identity:create_implied_role")
    if implied["name"] == "admin" and not implied["domain_id"]:
        raise forbidden("The role admin cannot be implied by another.", "InvalidImpliedRole")
    if implied["domain_id"] and not prior["domain_id"]:
        raise forbidden("A global role cannot imply a domain role.", "InvalidImpliedRole")
    below = assignments.expand([implied["id"]], assignments.implied_roles(fresh(call.cloud, call.tx), call.tx))
    if prior["id"] in below:
        raise bad_request("A role cannot imply itself, not even through others.", "ValidationError")
    if not _there(call, prior, implied):
        call.tx.insert(IMPLIED, {"prior_id": prior["id"], "implied_id": implied["id"]})
        bump(call.cloud, call.tx)
    return Reply(_inference(call, prior, implied), 201)


def show_implied(call: Call) -> Reply:
    """GET and HEAD /v3/roles/{prior}/implies/{implied}."""
    rule = "identity:check_implied_role" if call.method == "HEAD" else "identity:get_implied_role"
    prior, implied = _both(call, rule)
    if not _there(call, prior, implied):
        raise not_found("role_inference", f"{prior['id']} to {implied['id']}")
    return Reply(None, 204) if call.method == "HEAD" else Reply(_inference(call, prior, implied))


def unimply(call: Call) -> None:
    """DELETE /v3/roles/{prior}/implies/{implied}."""
    prior, implied = _both(call, "identity:delete_implied_role")
    if not call.tx.execute(sa.delete(IMPLIED).where(_I.prior_id == prior["id"], _I.implied_id == implied["id"])):
        raise not_found("role_inference", f"{prior['id']} to {implied['id']}")
    bump(call.cloud, call.tx)


def list_implied(call: Call) -> Row:
    """GET /v3/roles/{prior}/implies."""
    call.enforce("identity:list_implied_roles", {"prior_role_id": call.params["prior"]})
    prior = shape.fetch(call.tx, Role, call.params["prior"])
    found = sa.select(_R).join(IMPLIED, _I.implied_id == _R.c.id).where(_I.prior_id == prior["id"]).order_by(_R.c.id)
    implies = [_short(call, r) for r in call.tx.all(found)]
    return {
        "role_inference": {"prior_role": _short(call, prior), "implies": implies},
        "links": {"self": f"{call.base}{call.path}"},
    }


def list_inferences(call: Call) -> Row:
    """GET /v3/role_inferences."""
    call.enforce("identity:list_role_inference_rules")
    known = fresh(call.cloud, call.tx)
    roles = assignments.roles_by_id(known, call.tx)
    found = [
        {"prior_role": _short(call, roles[prior]), "implies": [_short(call, roles[r]) for r in implied if r in roles]}
        for prior, implied in sorted(assignments.implied_roles(known, call.tx).items())
        if prior in roles
    ]
    return {"role_inferences": found, "links": {"self": f"{call.base}{call.path}"}}


# --- grants --------------------------------------------------------------------------------------------------------


def _grant(call: Call, rule: str, target_kind: str, actor_kind: str) -> tuple[Row, tuple[str, str], tuple[str, str]]:
    """(the policy target's role, actor, target) of a grant's path; 403 for strangers before any 404."""
    p = call.params
    role = call.tx.one(sa.select(_R).where(_R.c.id == p["role_id"])) if "role_id" in p else None
    actor_id = p["actor_id"]
    actor = (
        lookup.user(call.tx, actor_id) if actor_kind == "user"
        else call.tx.one(sa.select(Group.table).where(Group.table.c.id == actor_id))
    )  # fmt: skip
    target_id = p.get("target_id", assignments.SYSTEM)
    target = lookup.project(call.tx, target_id) if target_kind != "system" else {"id": target_id}
    if target is not None and target_kind == "domain" and not target["is_domain"]:
        target = None
    named = {k: v for k, v in ((actor_kind, actor), (target_kind, target), ("role", role)) if v is not None}
    if "role" in named:
        named["role"] = {**named["role"], "domain_id": named["role"]["domain_id"] or None}
    if target_kind == "domain" and target is not None:
        named["domain"] = {**target, "domain_id": target["id"]}
    call.enforce(rule, {"target": named, f"{actor_kind}_id": actor_id, f"{target_kind}_id": target_id})
    for what, row, id in ((target_kind, target, target_id), (actor_kind, actor, actor_id)):
        if row is None and not (call.method == "DELETE" and what == actor_kind):
            raise not_found(what, id)
    if role is None and "role_id" in p:
        raise not_found("role", p["role_id"])
    return role or {}, (actor_kind, actor_id), (target_kind, target_id)


def _rule(verb: str, target_kind: str, actor_kind: str) -> str:
    if target_kind == "system":
        word = "revoke" if verb == "delete" else verb
        return f"identity:{word}_system_grant{'s' if verb == 'list' else ''}_for_{actor_kind}"
    return {
        "list": "identity:list_grants", "check": "identity:check_grant", "create": "identity:create_grant",
        "delete": "identity:revoke_grant",
    }[verb]  # fmt: skip


def _fits(role: Row, call: Call, target: tuple[str, str]) -> None:
    """A domain role can be given only on projects of its domain and, where it has no effect, on domains."""
    if not role["domain_id"]:
        return
    if target[0] == "system":
        raise bad_request("A domain role cannot be granted on the system.", "ValidationError")
    row = lookup.project(call.tx, target[1])
    if target[0] == "project" and row is not None and (row["domain_id"] or row["id"]) != role["domain_id"]:
        raise forbidden("A domain role can be granted only within its domain.", "DomainSpecificRoleMismatch")


def put_grant(call: Call, target_kind: str, actor_kind: str, inherited: bool) -> None:
    """PUT: give the role."""
    role, actor, target = _grant(call, _rule("create", target_kind, actor_kind), target_kind, actor_kind)
    _fits(role, call, target)
    assignments.grant(call.tx, actor, target, role["id"], inherited)
    bump(call.cloud, call.tx)


def check_grant(call: Call, target_kind: str, actor_kind: str, inherited: bool) -> None:
    """GET and HEAD: whether exactly this was granted."""
    role, actor, target = _grant(call, _rule("check", target_kind, actor_kind), target_kind, actor_kind)
    if not assignments.has(call.tx, actor, target, role["id"], inherited):
        raise not_found("role_assignment", f"of role {role['id']}")


def delete_grant(call: Call, target_kind: str, actor_kind: str, inherited: bool) -> None:
    """DELETE: take the role away."""
    role, actor, target = _grant(call, _rule("delete", target_kind, actor_kind), target_kind, actor_kind)
    if not assignments.revoke(call.tx, actor, target, role["id"], inherited):
        raise not_found("role_assignment", f"of role {role['id']}")
    if actor[0] == "user" and target[0] == "project":
        application_credentials.role_taken(call, actor[1], target[1])
    bump(call.cloud, call.tx)


def list_grants(call: Call, target_kind: str, actor_kind: str, inherited: bool) -> Row:
    """GET: roles granted to the actor on the target, directly."""
    _, actor, target = _grant(call, _rule("list", target_kind, actor_kind), target_kind, actor_kind)
    found = (
        sa.select(_R)
        .join(ASSIGNMENT, _A.role_id == _R.c.id)
        .where(
            _A.actor_kind == actor[0], _A.actor_id == actor[1], _A.target_kind == target[0], _A.target_id == target[1],
            _A.inherited.is_(inherited),
        )
        .order_by(_R.c.id)
    )  # fmt: skip
    return shape.listing(call, "roles", [shape.view(call, Role, r) for r in call.tx.all(found)], call.path)


def _grant_routes() -> list[Route]:
    out: list[Route] = []
    bases = {"project": "/projects/{target_id}", "domain": "/domains/{target_id}", "system": "/system"}
    verbs: tuple[tuple[str, Callable[..., Any], str, str], ...] = (
        ("PUT", put_grant, "write", "Grant"), ("GET", check_grant, "read", "Check"),
        ("DELETE", delete_grant, "write", "Revoke"),
    )  # fmt: skip
    for kind, base in bases.items():
        for actor in ("user", "group"):
            for inherited in (False, True) if kind != "system" else (False,):
                start = f"/v3{'/OS-INHERIT' if inherited else ''}{base}/{actor}s/{{actor_id}}/roles"
                end = "/inherited_to_projects" if inherited else ""
                what = f"a role of a {actor} on {'the system' if kind == 'system' else 'a ' + kind}"
                bind: Row = {"target_kind": kind, "actor_kind": actor, "inherited": inherited}
                for method, handler, tx, word in verbs:
                    out.append(
                        Route(
                            method=method, path=f"{start}/{{role_id}}{end}", handler=partial(handler, **bind), tx=tx,
                            doc=f"{word} {what}{', inherited by projects below' if inherited else ''}.", status=204,
                        )
                    )  # fmt: skip
                out.append(
                    Route(
                        method="GET", path=f"{start}{end}", handler=partial(list_grants, **bind),
                        doc=f"List roles of a {actor} there{', inherited' if inherited else ''}.",
                    )
                )  # fmt: skip
    return out


_IMPLIES = "/v3/roles/{prior}/implies"
ROUTES = (
    Route(method="GET", path=_IMPLIES, handler=list_implied, doc="List the roles a role implies."),
    Route(method="GET", path=f"{_IMPLIES}/{{implied}}", handler=show_implied, doc="Show an implied role."),
    Route(method="PUT", path=f"{_IMPLIES}/{{implied}}", handler=imply, doc="Make a role imply another.", tx="write"),
    Route(
        method="DELETE", path=f"{_IMPLIES}/{{implied}}", handler=unimply, doc="End an implication.", tx="write",
        status=204,
    ),
    Route(method="GET", path="/v3/role_inferences", handler=list_inferences, doc="List all implications."),
    *_grant_routes(),
)  # fmt: skip
