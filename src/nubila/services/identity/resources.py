"""Domains and projects beyond what their declarations say: the tree, tags, what a deletion takes along."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from nubila.core.call import Call, Reply, Route
from nubila.core.checks import checker
from nubila.core.faults import bad_request, conflict, forbidden, not_found
from nubila.core.query import ListQuery
from nubila.core.service import Hooks
from nubila.services.identity import (
    application_credentials,
    assignments,
    auth,
    compliance,
    domain_config,
    federation_users,
    limits,
    lookup,
    oauth1,
    shape,
    trusts,
)
from nubila.services.identity.kinds import (
    MEMBERSHIP,
    PROJECT_TAG,
    ApplicationCredential,
    Credential,
    Domain,
    Group,
    Limit,
    Project,
    Role,
    Tags,
    User,
)
from nubila.services.identity.kinds_filter import PROJECT_ENDPOINT, PROJECT_ENDPOINT_GROUP
from nubila.services.identity.kinds_ldap import ID_MAPPING
from nubila.services.identity.revision import bump, listed

if TYPE_CHECKING:
    from nubila.core.db import Reader, Tx

Row = dict[str, Any]
MAX_DEPTH = 5
"""Levels of projects below a domain (Keystone's max_project_tree_depth)."""
_P = Project.table
_T = PROJECT_TAG.c
_TAGS = sa.select(_T.project_id, _T.name).order_by(_T.name)
_TAGS_OF = _TAGS.where(_T.project_id.in_(sa.bindparam("ids", expanding=True)))
_TAGS_OF_ONE = _TAGS.where(_T.project_id == sa.bindparam("id"))
listing = shape.listing


# --- tags ----------------------------------------------------------------------------------------------------------


def tags_of(reader: Reader, ids: list[str]) -> dict[str, list[str]]:
    """project id -> its tags."""
    if len(ids) == 1:
        found = reader.rows(_TAGS_OF_ONE, {"id": ids[0]})
    else:
        found = reader.rows(_TAGS) if len(ids) > 200 else reader.rows(_TAGS_OF, {"ids": ids})
    out: dict[str, list[str]] = {}
    for project, name in found:
        out.setdefault(project, []).append(name)
    return out


def _set_tags(tx: Tx, id: str, tags: Iterable[str]) -> None:
    tx.execute(sa.delete(PROJECT_TAG).where(_T.project_id == id))
    for name in dict.fromkeys(tags):
        tx.insert(PROJECT_TAG, {"project_id": id, "name": name})


def _with_tags(reader: Reader, rows: list[Row]) -> None:
    tags = tags_of(reader, [r["id"] for r in rows]) if rows else {}
    for row in rows:
        row["tags"] = tags.get(row["id"], [])


def _tagged(names: list[str]) -> Any:
    return sa.select(_T.project_id).where(_T.name.in_(names))


def _tag_filters(q: ListQuery) -> list[Any]:
    clauses: list[Any] = []
    for key, texts in q.extra.items():
        names = [n for text in texts for n in text.split(",") if n]
        every = [_P.c.id.in_(_tagged([n])) for n in names]
        if not names:
            continue
        clauses.append(
            {
                "tags": sa.and_(*every), "tags-any": _P.c.id.in_(_tagged(names)),
                "not-tags": sa.not_(sa.and_(*every)), "not-tags-any": _P.c.id.not_in(_tagged(names)),
            }[key]
        )  # fmt: skip
    return clauses


# --- projects ------------------------------------------------------------------------------------------------------


def _place(call: Call, values: Row) -> None:
    """Settle domain and parent of a new project; both are "" for one that acts as a domain."""
    values["domain_id"], values["parent_id"] = values.get("domain_id") or "", values.get("parent_id") or ""
    if values.get("is_domain"):
        if values["domain_id"] or values["parent_id"]:
            raise bad_request("A project that acts as a domain has neither domain_id nor parent_id.", "ValidationError")
        return
    parent: Row | None = None
    if values["parent_id"]:
        parent = lookup.project(call.tx, values["parent_id"])
        if parent is None:
            raise bad_request(f"parent_id: project {values['parent_id']} could not be found.", "ValidationError")
        domain = parent["id"] if parent["is_domain"] else parent["domain_id"]
        if values["domain_id"] and values["domain_id"] != domain:
            raise bad_request("domain_id must be the domain of the parent project.", "ValidationError")
        values["domain_id"] = domain
    values["domain_id"] = values["domain_id"] or shape.default_domain(call)
    values["parent_id"] = values["parent_id"] or values["domain_id"]
    found = lookup.project(call.tx, values["domain_id"])
    if found is None or not found["is_domain"]:
        raise bad_request(f"domain_id: domain {values['domain_id']} could not be found.", "ValidationError")
    if parent is not None and not parent["enabled"]:
        raise forbidden(f"The parent project {parent['id']} is disabled; enable it first.", "Forbidden")
    depth = 1 if call.cloud.settings.limit_model == limits.STRICT else MAX_DEPTH
    if len(assignments.ancestors(call.tx, values["parent_id"])) >= depth:
        raise forbidden(f"Projects can be {depth} levels deep below their domain, not more.", "Forbidden")


def _new_project(call: Call, values: Row) -> None:
    _place(call, values)
    shape.keep_extra(call, Project, values)
    values["description"] = values.get("description") or ""
    shape.merge_options({}, values)
    shape.names_free(call.tx, Project, values, "project")


def _created(call: Call, row: Row) -> None:
    _set_tags(call.tx, row["id"], row.get("tags") or [])
    bump(call.cloud, call.tx)


def _project_target(call: Call, row: Row) -> Row:
    """What project rules name. A new project's domain counts only when it is given: who may not create it anywhere
    names the domain he manages; a domain seen as a project is in none."""
    return {"target.project.domain_id": row.get("domain_id") or None, "project_id": row.get("id")}


def _change_project(call: Call, before: Row, values: Row) -> None:
    if "parent_id" in values and (values["parent_id"] or "") != before["parent_id"]:
        raise forbidden("parent_id cannot be changed; leave it out.", "Forbidden")
    if "is_domain" in values and values["is_domain"] != bool(before["is_domain"]):
        raise bad_request("is_domain cannot be changed; leave it out.", "ValidationError")
    shape.same_domain(before, values)
    values.pop("parent_id", None)
    _change(call, Project, before, values, "project")
    if values.get("enabled") is False and before["enabled"] and not before["is_domain"]:
        for below in assignments.subtree(call.tx, before["id"]):
            if below["enabled"]:
                raise forbidden(f"Disable the project {below['id']} below this one first.", "Forbidden")
    if values.get("enabled") and not before["enabled"] and not before["is_domain"]:
        for above in assignments.ancestors(call.tx, before["id"]):
            row = lookup.project(call.tx, above)
            if row is not None and not row["enabled"]:
                raise forbidden(f"The project {above} above this one is disabled; enable it first.", "Forbidden")


def _change(call: Call, cls: type[Project] | type[Domain], before: Row, values: Row, what: str) -> None:
    shape.keep_extra(call, cls, values, before)
    shape.mutable(before, values)
    shape.merge_options(before, values)
    shape.names_free(call.tx, cls, values, what, before)


def _changed(call: Call, before: Row, after: Row) -> None:
    if call.body[_item(call)].get("tags") is not None:
        _set_tags(call.tx, after["id"], after["tags"])
    bump(call.cloud, call.tx)
    if before["enabled"] and not after["enabled"]:
        auth.revoke(call.cloud, call.tx, **{"domain_id" if after["is_domain"] else "project_id": after["id"]})


def _item(call: Call) -> str:
    return "domain" if call.path.startswith("/v3/domains") else "project"


def _present_projects(call: Call, rows: list[Row]) -> None:
    _with_tags(call.tx, rows)
    if call.method == "PATCH":  # the original shows the caller's own attributes twice after a change
        for row in rows:
            row["extra"] = {**row["extra"], "extra": dict(row["extra"])}
    asked = {key for key, _ in call.query}
    if len(rows) == 1 and "id" in call.params and asked & {
        "parents_as_list", "parents_as_ids", "subtree_as_list", "subtree_as_ids",
    }:  # fmt: skip
        rows[0]["extra"] = {**rows[0]["extra"], **_tree(call, rows[0]["id"], asked)}


def _tree(call: Call, id: str, asked: set[str]) -> Row:
    """The projects above and below, as lists (of those the caller has a role on) or as nested ids."""
    for what in ("parents", "subtree"):
        if {f"{what}_as_list", f"{what}_as_ids"} <= asked:
            raise bad_request(f"Ask for {what}_as_list or {what}_as_ids, not for both.", "ValidationError")
    out: Row = {}
    above = assignments.ancestors(call.tx, id)
    below = assignments.subtree(call.tx, id)
    mine, _, _ = assignments.targets_of_user(call.tx, str(call.creds.user_id))
    if "parents_as_list" in asked:
        rows = [lookup.project(call.tx, a) for a in above if a in mine]
        out["parents"] = [{"project": v} for v in project_views(call, [r for r in rows if r])]
    elif "parents_as_ids" in asked:
        nested: Any = None
        for parent in reversed(above):
            nested = {parent: nested}
        out["parents"] = nested
    if "subtree_as_list" in asked:
        out["subtree"] = [{"project": v} for v in project_views(call, [r for r in below if r["id"] in mine])]
    elif "subtree_as_ids" in asked:
        out["subtree"] = _nested(id, below)
    return out


def _nested(id: str, below: list[Row]) -> Row | None:
    found = {r["id"]: _nested(r["id"], below) for r in below if r["parent_id"] == id}
    return found or None


def _scope_projects(call: Call, q: ListQuery) -> list[Any]:
    clauses = _tag_filters(q) + shape.within(call, _P.c.domain_id)
    if call.arg("is_domain") is None:
        clauses.append(_P.c.is_domain.is_(False))
    return clauses


def _delete_project(call: Call, row: Row) -> None:
    shape.mutable(row)
    if row["is_domain"]:
        _delete_domain(call, row)
        return
    if assignments.subtree(call.tx, row["id"]):
        raise forbidden(f"The project {row['id']} has projects below it; delete those first.", "Forbidden")
    _forget_project(call.tx, row["id"])
    auth.revoke(call.cloud, call.tx, project_id=row["id"])


def _forget_project(tx: Tx, id: str) -> None:
    tx.execute(sa.delete(PROJECT_TAG).where(_T.project_id == id))
    tx.execute(sa.delete(Limit.table).where(Limit.table.c.project_id == id))
    tx.execute(sa.delete(Credential.table).where(Credential.table.c.project_id == id))
    tx.execute(sa.delete(ApplicationCredential.table).where(ApplicationCredential.table.c.project_id == id))
    trusts.forget(tx, project_id=id)
    oauth1.forget(tx, "project_id", id)
    for given in (PROJECT_ENDPOINT, PROJECT_ENDPOINT_GROUP):
        tx.execute(sa.delete(given).where(given.c.project_id == id))
    users = User.table
    tx.execute(sa.update(users).where(users.c.default_project_id == id).values(default_project_id=None))
    assignments.forget(tx, target_kind="project", target_id=id)


# --- domains -------------------------------------------------------------------------------------------------------


def _new_domain(call: Call, values: Row) -> None:
    values |= {"is_domain": True, "domain_id": "", "parent_id": "", "description": values.get("description") or ""}
    shape.keep_extra(call, Domain, values)
    wished = values["extra"].pop("explicit_domain_id", None)
    if wished is not None:
        if not isinstance(wished, str) or len(wished) != 32 or not wished.isalnum():
            raise bad_request("explicit_domain_id must be 32 hexadecimal digits.", "ValidationError")
        if lookup.project(call.tx, wished) is not None:
            raise conflict(f"There is already a domain with the id {wished}.")
        values["id"] = wished
    shape.merge_options({}, values)
    shape.names_free(call.tx, Domain, values, "domain")


def _change_domain(call: Call, before: Row, values: Row) -> None:
    _change(call, Domain, before, values, "domain")


def _delete_domain(call: Call, row: Row) -> None:
    """A domain takes along all that is in it; it must have been disabled first."""
    shape.mutable(row)
    if row["enabled"]:
        raise forbidden("The domain is enabled: switch it off before you delete it.", "Forbidden")
    tx, id = call.tx, row["id"]
    federation_users.forget(tx, domain_id=id)
    users, groups, roles = User.table, Group.table, Role.table
    tx.execute(sa.delete(ID_MAPPING).where(ID_MAPPING.c.domain_id == id))
    for (user,) in tx.rows(sa.select(users.c.id).where(users.c.domain_id == id)):
        forget_user(tx, user)
    for (group,) in tx.rows(sa.select(groups.c.id).where(groups.c.domain_id == id)):
        forget_group(tx, group)
    for (project,) in tx.rows(sa.select(_P.c.id).where(_P.c.domain_id == id)):
        _forget_project(tx, project)
    for (role,) in tx.rows(sa.select(roles.c.id).where(roles.c.domain_id == id)):
        assignments.forget_role(tx, role)
    for table in (users, groups, roles, _P):
        tx.execute(sa.delete(table).where(table.c.domain_id == id))
    tx.execute(sa.delete(PROJECT_TAG).where(_T.project_id == id))
    tx.execute(sa.delete(Limit.table).where(Limit.table.c.domain_id == id))
    domain_config.forget(tx, id)
    assignments.forget(tx, target_kind="domain", target_id=id)
    auth.revoke(call.cloud, tx, domain_id=id)


def forget_user(tx: Tx, id: str) -> None:
    """Remove what hangs on a user, not the user."""
    tx.execute(sa.delete(MEMBERSHIP).where(MEMBERSHIP.c.user_id == id))
    tx.execute(sa.delete(Credential.table).where(Credential.table.c.user_id == id))
    application_credentials.forget_user(tx, id)
    trusts.forget(tx, user_id=id)
    oauth1.forget(tx, "user_id", id)
    compliance.forget_user(tx, id)
    federation_users.forget(tx, user_id=id)
    assignments.forget(tx, actor_kind="user", actor_id=id)


def forget_group(tx: Tx, id: str) -> None:
    """Remove what hangs on a group, not the group."""
    tx.execute(sa.delete(MEMBERSHIP).where(MEMBERSHIP.c.group_id == id))
    federation_users.forget(tx, group_id=id)
    assignments.forget(tx, actor_kind="group", actor_id=id)


# --- lists elsewhere ------------------------------------------------------------------------------------------------


def enabled_projects(reader: Reader, ids: list[str], *, is_domain: bool) -> list[Row]:
    """The rows of these ids that are enabled."""
    if not ids:
        return []
    found = sa.select(_P).where(_P.c.id.in_(ids), _P.c.is_domain.is_(is_domain), _P.c.enabled.is_(True))
    return reader.all(found.order_by(_P.c.id))


def project_views(call: Call, rows: list[Row]) -> list[Row]:
    """Projects as the API shows them."""
    _with_tags(call.tx, rows)
    return [shape.view(call, Project, r) for r in rows]


def domain_views(call: Call, rows: list[Row]) -> list[Row]:
    """Domains as the API shows them."""
    _with_tags(call.tx, rows)
    return [shape.view(call, Domain, r) for r in rows]


# --- tags as a resource --------------------------------------------------------------------------------------------


def _project(call: Call, rule: str) -> Row:
    row = lookup.project(call.tx, call.params["project_id"])
    target = {} if row is None else {"target": {"project": row}, **row, **_project_target(call, row)}
    call.enforce(rule, target)
    if row is None:
        raise not_found("project", call.params["project_id"])
    return row


def list_tags(call: Call) -> Row:
    """GET /v3/projects/{project_id}/tags."""
    row = _project(call, "identity:list_project_tags")
    tags = tags_of(call.tx, [row["id"]]).get(row["id"], [])
    return {"tags": tags, "links": {"self": f"{call.base}{call.path}", "next": None, "previous": None}}


def replace_tags(call: Call) -> Row:
    """PUT /v3/projects/{project_id}/tags."""
    row = _project(call, "identity:update_project_tags")
    schema = {"type": "object", "properties": {"tags": Tags.schema}, "required": ["tags"]}
    checker(schema)(call.body)
    _set_tags(call.tx, row["id"], call.body["tags"])
    bump(call.cloud, call.tx)
    return {
        "tags": sorted(call.body["tags"]), "links": {"self": f"{call.base}{call.path}", "next": None, "previous": None},
    }  # fmt: skip


def delete_tags(call: Call) -> None:
    """DELETE /v3/projects/{project_id}/tags."""
    _set_tags(call.tx, _project(call, "identity:delete_project_tags")["id"], [])
    bump(call.cloud, call.tx)


def _has_tag(call: Call, row: Row) -> bool:
    return call.params["tag"] in tags_of(call.tx, [row["id"]]).get(row["id"], [])


def check_tag(call: Call) -> None:
    """GET and HEAD /v3/projects/{project_id}/tags/{tag}."""
    if not _has_tag(call, _project(call, "identity:get_project_tag")):
        raise not_found("project_tag", call.params["tag"])


def add_tag(call: Call) -> Reply:
    """PUT /v3/projects/{project_id}/tags/{tag}."""
    row = _project(call, "identity:create_project_tag")
    checker(Tags.schema)([*tags_of(call.tx, [row["id"]]).get(row["id"], []), call.params["tag"]][-80:])
    if not _has_tag(call, row):
        call.tx.insert(PROJECT_TAG, {"project_id": row["id"], "name": call.params["tag"]})
        bump(call.cloud, call.tx)
    return Reply(None, 201, {"Location": f"{call.base}{call.path}"})


def delete_tag(call: Call) -> None:
    """DELETE /v3/projects/{project_id}/tags/{tag}."""
    row = _project(call, "identity:delete_project_tag")
    if not _has_tag(call, row):
        raise not_found("project_tag", call.params["tag"])
    call.tx.execute(sa.delete(PROJECT_TAG).where(_T.project_id == row["id"], _T.name == call.params["tag"]))
    bump(call.cloud, call.tx)


def _scope_domains(call: Call, q: ListQuery) -> list[Any]:
    return [_P.c.is_domain.is_(True), *shape.within(call, _P.c.id)]


def _domain_target(call: Call, row: Row) -> Row:
    return {"target.domain.id": row.get("id"), "domain_id": row.get("id")}


def _domain_column(name: str) -> Any:
    return _P.c.id if name in ("target.domain.id", "target.domain_id", "domain_id") else None


PROJECT_HOOKS = Hooks(
    prepare=_new_project, created=_created, prepare_update=_change_project, updated=_changed, deleting=_delete_project,
    present=_present_projects, scope=_scope_projects, target=_project_target, find=shape.finder(Project),
    own_filters=("tags", "tags-any", "not-tags", "not-tags-any"), column=shape.domain_column(Project), listed=listed,
)  # fmt: skip
DOMAIN_HOOKS = Hooks(
    prepare=_new_domain, created=_created, prepare_update=_change_domain, updated=_changed, deleting=_delete_domain,
    present=lambda call, rows: _with_tags(call.tx, rows), scope=_scope_domains,
    target=_domain_target, find=shape.finder(Domain, _P.c.is_domain.is_(True), open_to="PATCH DELETE"),
    column=_domain_column, listed=listed,
)  # fmt: skip

_ONE = "/v3/projects/{project_id}/tags/{tag}"
_ALL = "/v3/projects/{project_id}/tags"
ROUTES = (
    Route(method="GET", path=_ALL, handler=list_tags, doc="List a project's tags."),
    Route(method="PUT", path=_ALL, handler=replace_tags, doc="Replace a project's tags.", tx="write"),
    Route(method="DELETE", path=_ALL, handler=delete_tags, doc="Remove all tags.", tx="write", status=204),
    Route(method="GET", path=_ONE, handler=check_tag, doc="Check a tag.", status=204),
    Route(method="PUT", path=_ONE, handler=add_tag, doc="Add a tag.", tx="write", status=201),
    Route(method="DELETE", path=_ONE, handler=delete_tag, doc="Remove a tag.", tx="write", status=204),
)
