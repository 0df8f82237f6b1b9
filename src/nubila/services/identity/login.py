"""Getting a token: who are you (methods), what for (scope), here it is. API: POST /v3/auth/tokens.

Nothing is written to the database: a token is its own record. Password hashing runs in threads of low priority, so
that a storm of logins does not slow other requests down. An unknown user costs the same time as a wrong password, and
whatever is wrong with user, password or scope is answered alike.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, TypeVar

import sqlalchemy as sa

from nubila.core import clock
from nubila.core.call import Call, Reply
from nubila.core.checks import checker
from nubila.core.faults import bad_request
from nubila.core.passwords import Passwords, verify
from nubila.core.payload import new_payload
from nubila.services.identity import assignments, auth, lookup, methods
from nubila.services.identity.kinds import TRUST, Project
from nubila.services.identity.proof import DOMAIN, Compare, Proof, domain_of, expecting, named
from nubila.services.identity.revision import fresh

if TYPE_CHECKING:
    from nubila.core.cloud import Cloud
    from nubila.core.db import Reader

Row = dict[str, Any]
T = TypeVar("T")

SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "identity": {
            "type": "object",
            "properties": {"methods": {"type": "array", "items": {"type": "string"}}, **methods.schemas()},
            "required": ["methods"],
        },
        "scope": {
            "type": ["object", "string"],
            "properties": {
                "project": {
                    "type": "object",
                    "properties": {"id": {"type": "string"}, "name": {"type": "string"}, "domain": DOMAIN},
                },
                "domain": DOMAIN,
                "OS-TRUST:trust": {"type": "object", "properties": {"id": {"type": "string"}}},
                "system": {"type": "object", "properties": {"all": {"type": "boolean"}}},
            },
        },
    },
    "required": ["identity"],
}

_P = Project.table
_PROJECT_BY_NAME = sa.select(_P).where(_P.c.name == sa.bindparam("name"), _P.c.domain_id == sa.bindparam("domain_id"))
_TRUST = sa.select(TRUST).where(TRUST.c.id == sa.bindparam("id"))


async def issue(call: Call) -> Reply:
    """Answer POST /v3/auth/tokens."""
    wanted, names = _read(call)
    proof = await _database(call.cloud, lambda: _prove(call, wanted["identity"], names))
    loop, pool = asyncio.get_running_loop(), _pool(call.cloud)
    for compare in proof.compare:
        if not await loop.run_in_executor(pool, _compare, call.cloud, compare):
            proof.refused = True
    for check in proof.check:
        if not await loop.run_in_executor(pool, check):
            proof.refused = True
    return await _database(call.cloud, lambda: _grant(call, wanted, proof))


async def _database(cloud: Cloud, work: Callable[[], T]) -> T:
    """Inline on an embedded database, else in a worker thread."""
    return work() if cloud.store.embedded else await asyncio.to_thread(work)


def _pool(cloud: Cloud) -> ThreadPoolExecutor:
    pool: ThreadPoolExecutor | None = cloud.memory.get("identity.hashing")
    if pool is None:
        workers = max(1, (os.cpu_count() or 2) - 1)
        pool = ThreadPoolExecutor(workers, thread_name_prefix="hash", initializer=_yield_to_others)
        pool = cloud.memory.setdefault("identity.hashing", pool)
    return pool


def _yield_to_others() -> None:
    with contextlib.suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 10)


def hashing(cloud: Cloud) -> Passwords:
    """How this cloud hashes passwords."""
    return Passwords("bcrypt", cloud.settings.bcrypt_rounds)


def _compare(cloud: Cloud, c: Compare) -> bool:
    return hashing(cloud).dummy_verify(c.secret) if c.hashed is None else verify(c.hashed, c.secret)


# --- reading the request -------------------------------------------------------------------------------------------


def _read(call: Call) -> tuple[dict[str, Any], list[str]]:
    """The ``auth`` object, checked, and the methods without repetition."""
    body = call.body
    if not isinstance(body, dict) or not isinstance(body.get("auth"), dict):
        raise expecting("auth", "request body")
    wanted: dict[str, Any] = body["auth"]
    checker(SCHEMA)(wanted)
    identity = wanted["identity"]
    names = list(dict.fromkeys(identity["methods"]))
    for method in names:
        if method not in identity:
            raise expecting(method, "identity")
    known = methods.enabled(call.cloud.settings)
    for method in names:
        if method not in known:
            raise auth.denied(call, f"Attempted to authenticate with an unsupported method; use {', '.join(known)}.")
    scope = wanted.get("scope")
    if scope is not None:
        if "application_credential" in names:
            raise auth.denied(call, "Application credentials cannot request a scope.")
        kinds = ("system", "project", "domain", "OS-TRUST:trust", "unscoped")
        given = [k for k in kinds if k in scope] if isinstance(scope, dict) else [scope]
        if len(given) != 1 or given[0] not in kinds:
            raise expecting("exactly one of system, project, domain, OS-TRUST:trust or unscoped", "scope")
    return wanted, names


def _prove(call: Call, identity: Row, names: list[str]) -> Proof:
    proof = Proof(call, methods=list(names))
    with call.cloud.store.read() as reader:
        for name in names:
            methods.METHODS[name].prove(call.cloud, reader, identity[name], proof)
    return proof


# --- the scope and the token ---------------------------------------------------------------------------------------


def _scope(call: Call, reader: Reader, wanted: dict[str, Any], user: Row, app_cred: Row | None) -> dict[str, Any]:
    """Payload fields of the scope asked for, or of the user's default project. Raises 401 when it cannot be had."""
    scope = wanted.get("scope")
    if app_cred is not None:
        if scope is not None and (scope == "unscoped" or scope.get("project", {}).get("id") != app_cred["project_id"]):
            raise auth.denied(call)  # it is for that project and no other
        return {"project_id": app_cred["project_id"], "app_cred_id": app_cred["id"]}
    if scope is None:
        return _default_scope(call.cloud, reader, user)
    if scope == "unscoped" or "unscoped" in scope:
        return {}
    if "system" in scope:
        return {"system": True}
    if "OS-TRUST:trust" in scope:
        return _trust_scope(call, reader, scope["OS-TRUST:trust"])
    if "domain" in scope:
        part = scope["domain"]
        if "id" not in part and "name" not in part:
            raise bad_request("Invalid input for field scope/domain: id or name must be present.", "ValidationError")
        domain = domain_of(reader, part)
        if domain is None:
            raise auth.denied(call)
        return {"domain_id": domain["id"]}
    part = scope["project"]
    named(part, "scope/project")
    if "id" in part:
        project = lookup.project(reader, part["id"])
    else:
        domain = domain_of(reader, part["domain"])
        by_name = {"name": part["name"], "domain_id": domain["id"] if domain else ""}
        project = reader.one(_PROJECT_BY_NAME, by_name) if domain else None
    if project is None or not project["domain_id"]:
        raise auth.denied(call)
    return {"project_id": project["id"]}


def _trust_scope(call: Call, reader: Reader, part: dict[str, Any]) -> dict[str, Any]:
    if "id" not in part:
        raise expecting("id", "OS-TRUST:trust")
    trust = reader.one(_TRUST, {"id": part["id"]})
    if trust is None:
        raise auth.denied(call)
    return {"trust_id": trust["id"], "project_id": trust["project_id"], "_until": trust["expires_at"]}


def _default_scope(cloud: Cloud, reader: Reader, user: Row) -> dict[str, Any]:
    """The default project if the user can use it, else no scope."""
    project = lookup.project(reader, user["default_project_id"]) if user["default_project_id"] else None
    if project is None or not project["enabled"] or domain_of(reader, {"id": project["domain_id"]}) is None:
        return {}
    roles = assignments.token_roles(fresh(cloud, reader), reader, user["id"], "project", project["id"])
    return {"project_id": project["id"]} if roles else {}


def _grant(call: Call, wanted: dict[str, Any], proof: Proof) -> Reply:
    cloud = call.cloud
    _check_scope_form(wanted)
    same = len(set(proof.users)) == 1 and proof.users[0] is not None
    if proof.refused or not same:
        raise auth.denied(call)
    if proof.effects:
        with cloud.store.write() as tx:
            for effect in proof.effects:
                effect(tx)
    with cloud.store.read() as reader:
        known = fresh(cloud, reader)
        tokens = known.tokens
        user = lookup.user(reader, str(proof.users[0]))
        if user is None or not _multi_factor(user, proof.methods):
            raise auth.denied(call)
        fields = _scope(call, reader, wanted, user, proof.app_cred)
        lifetime = float(cloud.settings.token_ttl_s)
        until = fields.pop("_until", None) or (proof.app_cred or {}).get("expires_at")
        if until:
            lifetime = min(lifetime, clock.seconds(until) - clock.seconds(clock.now()))
        claims = new_payload(user["id"], tuple(proof.methods), lifetime, parent=proof.parent, **proof.fields, **fields)
        try:
            meaning = auth.resolve(cloud, reader, claims)
        except auth.Refused:
            raise auth.denied(call) from None
        token = cloud.keys.issue(claims)
        if tokens is known.tokens:
            known.remember(token, meaning)
        with_catalog = call.arg("nocatalog") is None
        body = auth.document(cloud, reader, meaning, call.base, catalog=with_catalog)
    return Reply(body, 201, {"X-Subject-Token": token})


def _check_scope_form(wanted: dict[str, Any]) -> None:
    scope = wanted.get("scope")
    if isinstance(scope, dict) and "project" in scope:
        named(scope["project"], "scope/project")


def _multi_factor(user: Row, names: list[str]) -> bool:
    """Whether the methods used satisfy the user's multi-factor rules, if there are any that can be."""
    options = user["options"] or {}
    rules = [set(r) & set(methods.METHODS) for r in options.get("multi_factor_auth_rules") or []]
    rules = [r for r in rules if r]
    if not rules or options.get("multi_factor_auth_enabled") is False:
        return True
    return any(r <= set(names) for r in rules)
