"""Users and groups beyond what their declarations say. Passwords are hashed before the transaction begins."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import sqlalchemy as sa

from nubila.core import checks, clock
from nubila.core.call import Call, Reply, Route
from nubila.core.faults import bad_request, not_found
from nubila.core.query import ListQuery
from nubila.core.service import Hooks
from nubila.services.identity import (
    assignments,
    auth,
    compliance,
    federation_users,
    hashing,
    lookup,
    own_password,
    resources,
    shape,
)
from nubila.services.identity.kinds import MEMBERSHIP, Group, User
from nubila.services.identity.ldap import reads, writes
from nubila.services.identity.revision import bump

Row = dict[str, Any]
_U, _G, _M = User.table, Group.table, MEMBERSHIP.c
_PASSWORD = {"type": ["string", "null"], "maxLength": 4096}
_OPERATORS = {"lt": "__lt__", "lte": "__le__", "gt": "__gt__", "gte": "__ge__", "eq": "__eq__", "neq": "__ne__"}
_find_user, _find_group = reads.finder(shape.finder(User)), reads.finder(shape.finder(Group, open_to="DELETE"))


# --- users ---------------------------------------------------------------------------------------------------------


def _hashed(call: Call, body: Row) -> Row:
    """The body without its password, and the hash put aside in the call's memo."""
    if "password" not in body:
        return body
    password = body["password"]
    checks.checker(_PASSWORD)(password)
    if password is not None:
        compliance.strong(call.cloud.settings, password)
    how = hashing.passwords(call.cloud)
    call.memo["hash"] = None if password is None else hashing.run(call.cloud, lambda: how.hash(password))
    return {k: v for k, v in body.items() if k != "password"}


def _target(call: Call, row: Row) -> Row:
    domain = row.get("domain_id")  # of a new one: only when it is given
    named = {"target": {"user": {**row, "domain_id": domain}}, "target.user.domain_id": domain}
    return {**named, "user_id": row.get("id"), "domain_id": domain}


def _shown(call: Call, row: Row) -> Row:
    _present(call, [row])
    return shape.view(call, User, row)


def _present(call: Call, rows: list[Row]) -> None:
    """Attributes that the original leaves out when they are not set go with the caller's own; who has not been here
    for too long is shown as disabled."""
    inactive = compliance.inactive_ids(call.cloud.settings, call.tx, rows)
    federated = federation_users.of(call.tx, [r["id"] for r in rows])
    for row in rows:
        row["enabled"] = bool(row["enabled"]) and row["id"] not in inactive
        extra = dict(row.get("extra") or {})
        if call.method == "PATCH":
            extra["extra"] = dict(extra)
        if row.get("default_project_id"):
            extra["default_project_id"] = row["default_project_id"]
        if row["id"] in federated:
            extra["federated"] = federated[row["id"]]
        row["extra"] = extra


def create_user(call: Call) -> Reply:
    """POST /v3/users."""
    body = shape.inner(call, "user")
    given = checks.accept(User, "create", {k: v for k, v in body.items() if k != "password"}, call.version)
    call.enforce("identity:create_user", _target(call, given))  # before the time for hashing is spent
    body = _hashed(call, body)
    with call.cloud.store.write() as call.tx:
        values = checks.defaults(User, dict(given), call.version)
        values["domain_id"] = values.get("domain_id") or shape.default_domain(call)
        federated = values.pop("federated", None)
        values["extra"] = shape.own(User, body)
        values["password"] = call.memo.get("hash")
        shape.merge_options({}, values)
        if values["password"]:
            values["password_expires_at"] = compliance.expiry(call.cloud.settings, values["options"], by_admin=True)
        _check_project(call, values)
        _domain(call, values["domain_id"])
        shape.names_free(call.tx, User, values, "user")
        if (made := writes.create_user(call, values, call.body["user"].get("password"))) is not None:
            return Reply({"user": _shown(call, made)}, 201)
        call.tx.insert(_U, {c.name: values.get(c.name) for c in _U.columns})
        if values["password"]:
            compliance.note_password(call.cloud, call.tx, values["id"], None, self_service=False)
        federation_users.keep(call, values["id"], federated)
        return Reply({"user": _shown(call, values)}, 201)


def _domain(call: Call, id: str) -> Row:
    row = lookup.project(call.tx, id)
    if row is None or not row["is_domain"]:
        raise not_found("domain", id)
    return row


def _check_project(call: Call, values: Row) -> None:
    project = lookup.project(call.tx, values["default_project_id"]) if values.get("default_project_id") else None
    if project is not None and project["is_domain"]:
        raise bad_request("default_project_id: this is a domain; name a project.", "ValidationError")


def update_user(call: Call) -> Reply:
    """PATCH /v3/users/{id}."""
    body = shape.inner(call, "user")
    with call.cloud.store.read() as call.tx:
        row = _find_user(call, call.params["id"])
        if row is not None:
            call.enforce("identity:update_user", _target(call, row))
    if row is None:
        raise not_found("user", call.params["id"])
    values = checks.accept(User, "update", {k: v for k, v in body.items() if k != "password"}, call.version)
    body = _hashed(call, body)
    with call.cloud.store.write() as call.tx:
        before = shape.fetch(call.tx, User, row["id"])
        federation_users.keep(call, before["id"], values.pop("federated", None))
        shape.same_domain(before, values)
        shape.merge_options(before, values)
        shape.names_free(call.tx, User, values, "user", before)
        _check_project(call, values)
        values["extra"] = {**before["extra"], **shape.own(User, body)}
        if "hash" in call.memo:
            values["password"] = call.memo["hash"]
            options = values.get("options", before["options"])
            until = compliance.expiry(call.cloud.settings, options, by_admin=True) if values["password"] else None
            values["password_expires_at"] = until
            compliance.note_password(call.cloud, call.tx, before["id"], before["password"], self_service=False)
        if values.get("enabled"):
            compliance.note_enabled(call.cloud, call.tx, before["id"])
        writes.update_user(call, before, values, shape.own(User, body), call.body["user"].get("password"))
        call.tx.execute(sa.update(_U).where(_U.c.id == before["id"]).values(**values))
        after = {**before, **values}
        if "hash" in call.memo or (before["enabled"] and not after["enabled"]):
            auth.revoke(call.cloud, call.tx, user_id=before["id"])
        else:
            bump(call.cloud, call.tx)
        return Reply({"user": _shown(call, after)}, 200)


def _delete_user(call: Call, row: Row) -> None:
    writes.delete_user(call, row)
    resources.forget_user(call.tx, row["id"])
    auth.revoke(call.cloud, call.tx, user_id=row["id"])


def _expiry(query: list[str]) -> list[Any]:
    """The clauses of ``password_expires_at=OPERATOR:TIME``, else 400."""
    out = []
    for text in query:
        op, _, at = text.partition(":")
        if op not in _OPERATORS:
            raise bad_request(
                f"password_expires_at takes {', '.join(_OPERATORS)}, a colon and a time.", "ValidationError"
            )
        try:
            given = datetime.fromisoformat(at)
            when = clock.at((given if given.tzinfo else given.replace(tzinfo=UTC)).timestamp())
        except (ValueError, OverflowError):
            raise bad_request(
                f"password_expires_at: '{at}' is not a time such as 2030-01-31T12:00:00Z.", "ValidationError"
            ) from None
        out.append(getattr(_U.c.password_expires_at, _OPERATORS[op])(when))
    return out


def _narrow(call: Call, q: ListQuery) -> list[Any]:
    mine = [*_expiry(q.extra.get("password_expires_at", [])), *shape.within(call, _U.c.domain_id)]
    mine += federation_users.clauses(q)
    return [*mine, *reads.listed(call, User, [*q.where, *mine])]


def _narrow_groups(call: Call, q: ListQuery) -> list[Any]:
    mine = shape.within(call, _G.c.domain_id)
    return [*mine, *reads.listed(call, Group, [*q.where, *mine])]


def user_projects(call: Call) -> Row:
    """GET /v3/users/{user_id}/projects."""
    user = _known(call, "identity:list_user_projects")
    projects, _, _ = assignments.targets_of_user(call.tx, user["id"])
    rows = [r for p in projects if (r := lookup.project(call.tx, p)) and not r["is_domain"]]
    return shape.listing(call, "projects", resources.project_views(call, rows), call.path)


def _known(call: Call, rule: str) -> Row:
    user = lookup.user(call.tx, call.params["user_id"])
    call.enforce(rule, {} if user is None else _target(call, user))
    if user is None or not reads.compared(call, user["id"]):
        raise not_found("user", call.params["user_id"])
    return user


# --- groups --------------------------------------------------------------------------------------------------------


def _group_target(call: Call, row: Row) -> Row:
    domain = row.get("domain_id")
    named = {"target": {"group": {**row, "domain_id": domain}}, "target.group.domain_id": domain}
    return {**named, "group_id": row.get("id"), "domain_id": domain}


def _new_group(call: Call, values: Row) -> None:
    values["domain_id"] = values.get("domain_id") or shape.default_domain(call)
    _domain(call, values["domain_id"])
    values["description"] = values.get("description") or ""
    shape.keep_extra(call, Group, values)
    shape.names_free(call.tx, Group, values, "group")
    writes.create_group(call, values)


def _change_group(call: Call, before: Row, values: Row) -> None:
    shape.same_domain(before, values)
    shape.keep_extra(call, Group, values, before)
    shape.names_free(call.tx, Group, values, "group", before)
    writes.update_group(call, before, values)


def _delete_group(call: Call, row: Row) -> None:
    writes.delete_group(call, row)
    resources.forget_group(call.tx, row["id"])
    bump(call.cloud, call.tx)


def user_groups(call: Call) -> Row:
    """GET /v3/users/{user_id}/groups."""
    user = _known(call, "identity:list_groups_for_user")
    where = [*shape.within(call, _G.c.domain_id), *(_G.c.name == v for k, v in call.query if k == "name")]
    until = federation_users.memberships(call.tx, user["id"], clock.now())
    always = sa.select(_M.group_id).where(_M.user_id == user["id"])
    mine = sa.or_(_G.c.id.in_(always), _G.c.id.in_(sorted(until))) if until else _G.c.id.in_(always)
    kept = {id for (id,) in call.tx.rows(always)} if until else set()
    rows = call.tx.all(sa.select(_G).where(mine, *where).order_by(_G.c.id))
    ends = {id: clock.zulu_us(at) for id, at in until.items() if id not in kept}
    views = [shape.view(call, Group, r, membership_expires_at=ends.get(r["id"])) for r in rows]
    return shape.listing(call, "groups", views, call.path)


def _group(call: Call, rule: str, user: Row | None = None) -> Row:
    group = call.tx.one(sa.select(_G).where(_G.c.id == call.params["group_id"]))
    target: Row = {}
    if group is not None:
        target = _group_target(call, group)
        if user is not None:
            target["target"]["user"] = user
    call.enforce(rule, target)
    if group is None:
        raise not_found("group", call.params["group_id"])
    found: Row = group
    return found


def group_users(call: Call) -> Row:
    """GET /v3/groups/{group_id}/users."""
    group = _group(call, "identity:list_users_in_group")
    if not reads.compared(call, group["id"]):
        raise not_found("group", group["id"])
    where = [*shape.within(call, _U.c.domain_id), *(_U.c.name == v for k, v in call.query if k == "name")]
    where += [_U.c.enabled.is_(v.lower() not in ("0", "false")) for k, v in call.query if k == "enabled"]
    where += _expiry([v for k, v in call.query if k == "password_expires_at"])
    found = sa.select(_U).join(MEMBERSHIP, _M.user_id == _U.c.id).where(_M.group_id == group["id"], *where)
    views = [_shown(call, r) for r in call.tx.all(found.order_by(_U.c.id))]
    return shape.listing(call, "users", views, call.path)


def _member(call: Call, rule: str) -> tuple[str, str, bool]:
    """(group id, user id, whether he is in it)."""
    user = lookup.user(call.tx, call.params["user_id"])
    group = _group(call, rule, user)
    if user is None or not reads.compared(call, user["id"]):
        raise not_found("user", call.params["user_id"])
    same = (_M.group_id == group["id"], _M.user_id == user["id"])
    return (
        group["id"],
        user["id"],
        bool(call.tx.scalar(sa.select(sa.func.count()).select_from(MEMBERSHIP).where(*same))),
    )


def add_member(call: Call) -> None:
    """PUT /v3/groups/{group_id}/users/{user_id}."""
    group, user, there = _member(call, "identity:add_user_to_group")
    if not there:
        writes.change_member(call, group, user, present=True)
        call.tx.insert(MEMBERSHIP, {"group_id": group, "user_id": user})
        bump(call.cloud, call.tx)


def _absent(call: Call) -> Exception:
    user, group = call.params["user_id"], call.params["group_id"]
    return not_found("user", f"{user} in group {group}")


def check_member(call: Call) -> None:
    """GET and HEAD /v3/groups/{group_id}/users/{user_id}."""
    if not _member(call, "identity:check_user_in_group")[2]:
        raise _absent(call)


def remove_member(call: Call) -> None:
    """DELETE /v3/groups/{group_id}/users/{user_id}."""
    group, user, there = _member(call, "identity:remove_user_from_group")
    if not there:
        raise _absent(call)
    writes.change_member(call, group, user, present=False)
    call.tx.execute(sa.delete(MEMBERSHIP).where(_M.group_id == group, _M.user_id == user))
    bump(call.cloud, call.tx)


USER_HOOKS = Hooks(
    deleting=_delete_user, present=_present, target=_target, find=_find_user, column=shape.domain_column(User),
    own_filters=("password_expires_at", *federation_users.FILTERS), scope=_narrow,
)  # fmt: skip
GROUP_HOOKS = Hooks(
    prepare=_new_group, prepare_update=_change_group, deleting=_delete_group, target=_group_target, find=_find_group,
    column=shape.domain_column(Group), scope=_narrow_groups,
)  # fmt: skip

_MEMBER = "/v3/groups/{group_id}/users/{user_id}"
ROUTES = (
    Route(method="POST", path="/v3/users", handler=create_user, doc="Create a user.", tx="", slow=True),
    Route(method="PATCH", path="/v3/users/{id}", handler=update_user, doc="Update a user.", tx="", slow=True),
    Route(
        method="POST", path="/v3/users/{id}/password", handler=own_password.change_password,
        doc="Change one's own password.", tx="", slow=True, auth=False, status=204,
    ),
    Route(method="GET", path="/v3/users/{user_id}/projects", handler=user_projects, doc="A user's projects."),
    Route(method="GET", path="/v3/users/{user_id}/groups", handler=user_groups, doc="Groups a user is in."),
    Route(method="GET", path="/v3/groups/{group_id}/users", handler=group_users, doc="Users in a group."),
    Route(method="GET", path=_MEMBER, handler=check_member, doc="Check a membership.", status=204),
    Route(method="PUT", path=_MEMBER, handler=add_member, doc="Add a user to a group.", tx="write", status=204),
    Route(method="DELETE", path=_MEMBER, handler=remove_member, doc="Take a user out.", tx="write", status=204),
)  # fmt: skip
