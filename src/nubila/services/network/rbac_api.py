"""RBAC policies in the API (/v2.0/rbac-policies); what they mean is in rbac.py."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import sqlalchemy as sa

from nubila.core import clock
from nubila.core.call import Call
from nubila.core.declare import Resource
from nubila.core.faults import bad_request, conflict
from nubila.core.policy import Rule
from nubila.core.query import ListQuery
from nubila.core.service import Hooks
from nubila.core.types import is_uuid
from nubila.services.network import allocate, look, paging, rbac
from nubila.services.network.feature import Feature
from nubila.services.network.kinds_rbac import TARGET_RULE, RbacPolicy
from nubila.services.network.policies import ADMIN, ADMIN_OR_MEMBER, ADMIN_OR_READER
from nubila.services.network.rbac import EVERYBODY, Shareable

Row = dict[str, Any]
_R = RbacPolicy.table.c
_SAME = sa.select(_R.id).where(
    _R.object_id == sa.bindparam("object"), _R.action == sa.bindparam("action"), _R.target == sa.bindparam("target"),
    _R.id != sa.bindparam("id"),
)  # fmt: skip


def _target(text: Any) -> str:
    """400 for what is neither a project id nor everybody."""
    if text != EVERYBODY and not (isinstance(text, str) and is_uuid(text)):
        text = f"Invalid input for target_tenant: '{text}' is neither a project's UUID nor '*' for every project."
        raise bad_request(text, "InvalidInput")
    return str(text)


def _not_yours(row: Row) -> Exception:
    text = f"there is no {row['object_type']} {row['object_id']} of yours, and only admins may share what others own."
    return bad_request(f"Invalid input for operation: {text}", "InvalidInput")


def _in_use(object_id: str, why: str) -> Exception:
    text = f"Object {object_id} is in use by what this policy allows: {why}"
    return conflict(text, "RbacPolicyInUse")


class _Policies:
    """The hooks, knowing what can be shared."""

    def __init__(self, shareables: Sequence[Shareable]) -> None:
        self.by_type = {one.kind.kind: one for one in shareables}

    def prepare(self, call: Call, values: Row) -> None:
        one = self.by_type.get(values["object_type"])
        if one is None:
            text = f"object_type '{values['object_type']}' is unknown: use one of {', '.join(self.by_type)}."
            raise bad_request(text, "InvalidInput")
        if values["action"] not in one.uses:
            text = f"'{values['action']}' is not an action on a {one.kind.kind}; use {' or '.join(one.uses)}."
            raise bad_request(f"Invalid input for operation: {text}", "InvalidActionForType")
        values["target"] = _target(values["target"])
        row = self._owned(call, one, values)
        self._single(call, values)
        self._grantable(call, one, row, values["target"])

    def _owned(self, call: Call, one: Shareable, values: Row) -> Row:
        row = rbac.lock(call.tx, one.kind, values["object_id"])
        admin = call.may("context_is_admin")
        if row is None or not (admin or row["project_id"] == call.creds.project_id):
            raise _not_yours(values)
        return row

    def _grantable(self, call: Call, one: Shareable, row: Row, target: str) -> None:
        if one.why_not and (why := one.why_not(call.tx, row, target)):
            text = f"object_id: {row['id']} can not be opened this way: {why}"
            raise bad_request(text, "RbacPolicyInitError")

    def _single(self, call: Call, row: Row) -> None:
        where = {"object": row["object_id"], "action": row["action"], "target": row["target"], "id": row["id"]}
        if call.tx.one(_SAME, where) is not None:
            raise conflict("There is an RBAC policy that says this already.", "DuplicateRbacPolicy")

    def changed(self, call: Call, policy: Row) -> None:
        """Bring the thing to what its policies say now."""
        one = self.by_type[policy["object_type"]]
        row = rbac.lock(call.tx, one.kind, policy["object_id"])
        if row is None:
            return
        after = rbac.sync(call.tx, one.kind, row)
        if "revision_number" in one.kind.table.c:
            allocate.bump(call.tx, one.kind, [row["id"]], policy["_now"])
        if one.changed and after != row:
            one.changed(call, row, after)

    def created(self, call: Call, row: Row) -> None:
        self.changed(call, {**row, "_now": clock.now()})

    def prepare_update(self, call: Call, before: Row, values: Row) -> None:
        one = self.by_type[before["object_type"]]
        row = self._owned(call, one, before)
        if "target" not in values:
            return
        values["target"] = _target(values["target"])
        after = {**before, **values}
        self._single(call, after)
        if values["target"] != before["target"]:
            self._grantable(call, one, row, values["target"])
            self._removable(call, one, before, set() if one.strict else {values["target"]})

    def updated(self, call: Call, before: Row, after: Row) -> None:
        self.changed(call, {**after, "_now": clock.now()})

    def deleting(self, call: Call, row: Row) -> None:
        one = self.by_type[row["object_type"]]
        self._removable(call, one, row, set())

    def deleted(self, call: Call, row: Row) -> None:
        self.changed(call, {**row, "_now": clock.now()})

    def _removable(self, call: Call, one: Shareable, policy: Row, instead: set[str]) -> None:
        """409 when somebody depends on the policy and no other one lets him."""
        row = rbac.lock(call.tx, one.kind, policy["object_id"])
        if row is None:
            return
        others = instead | {
            p["target"]
            for p in rbac.policies(call.tx, policy["object_id"])
            if p["action"] == policy["action"] and p["id"] != policy["id"]
        }
        if EVERYBODY in others:
            return
        if policy["target"] == EVERYBODY and one.keep and (why := one.keep(row, policy["action"])):
            raise _in_use(policy["object_id"], why)
        needing = set(one.uses[policy["action"]](call.tx, row["id"])) - others - {row["project_id"], ""}
        if policy["target"] != EVERYBODY:
            needing &= {policy["target"]}
        if needing:
            raise _in_use(policy["object_id"], f"projects that use it: {', '.join(sorted(needing)[:5])}.")


def _scope(call: Call, q: ListQuery) -> list[Any]:
    return paging.adapt(call, RbacPolicy, q)


def hooks(shareables: Sequence[Shareable]) -> Hooks:
    """The hooks of the resource for what can be shared in this cloud."""
    made = _Policies(shareables)
    return Hooks(
        target=look.own_project, prepare=made.prepare, created=made.created, prepare_update=made.prepare_update,
        updated=made.updated, deleting=made.deleting, deleted=made.deleted, scope=_scope,
    )  # fmt: skip


def unsynced(kinds: Sequence[type[Resource]]) -> Any:
    """Invariant: the column ``shared`` says whether a policy lets everybody."""

    def check(cloud: Any, reader: Any) -> list[str]:
        out: list[str] = []
        for cls in kinds:
            c = cls.table.c
            everybody = sa.select(_R.object_id).where(_R.action == rbac.SHARED, _R.target == EVERYBODY)
            wrong = sa.select(c.id).where(c.shared.is_(True) != c.id.in_(everybody)).limit(10)
            out += [f"{cls.kind} {id}: shared differs from its RBAC policies" for (id,) in reader.rows(wrong)]
        return out

    return check


FEATURE = Feature(
    kinds=(RbacPolicy,),
    quotas={"rbac_policy": 10},
    resources={"rbac-policies": "rbac_policy"},
    rules=(
        Rule("restrict_wildcard", "(not field:rbac_policy:target_tenant=* and not field:rbac_policy:target_project=*)"
             " or rule:admin_only", "Used by other rules."),
        *(Rule(f"{verb}_rbac_policy", text, f"{verb.capitalize()} an RBAC policy.", scopes=("project",))
          for verb, text in (("create", ADMIN_OR_MEMBER), ("update", ADMIN_OR_MEMBER), ("delete", ADMIN_OR_MEMBER),
                             ("get", ADMIN_OR_READER))),
        *(Rule(f"{verb}_rbac_policy:{name}", text, f"{verb.capitalize()} {name} of an RBAC policy.",
               scopes=("project",))
          for verb in ("create", "update")
          for name, text in (("target_tenant", TARGET_RULE),
                             ("target_project", f"{ADMIN} or not field:rbac_policy:target_project=*"))),
    ),
    extensions={
        "rbac-policies": ("RBAC Policies", "Things can be shared with single projects.", "2015-06-17"),
        "rbac-address-scope": ("RBAC for address scopes", "Address scopes can be shared.", "2020-02-12"),
        "rbac-subnetpool": ("RBAC for subnet pools", "Subnet pools can be shared.", "2020-04-07"),
    },
)  # fmt: skip
