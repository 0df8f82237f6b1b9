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
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

import sqlalchemy as sa

from nubila.core import clock
from nubila.core.call import Call, Reply
from nubila.core.checks import checker
from nubila.core.faults import Fault, bad_request, forbidden
from nubila.core.passwords import Passwords, verify
from nubila.core.payload import Payload, new_payload
from nubila.services.identity import assignments, auth, lookup
from nubila.services.identity.kinds import TRUST, ApplicationCredential, Project, User
from nubila.services.identity.revision import fresh

if TYPE_CHECKING:
    from nubila.core.cloud import Cloud
    from nubila.core.db import Reader

Row = dict[str, Any]
T = TypeVar("T")
METHODS = ("password", "token", "application_credential")

_DOMAIN = {"type": "object", "properties": {"id": {"type": "string"}, "name": {"type": "string"}}}
_USER = {
    "type": "object",
    "properties": {
        "id": {"type": "string"}, "name": {"type": "string"}, "password": {"type": "string"}, "domain": _DOMAIN,
    },
}  # fmt: skip
SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "identity": {
            "type": "object",
            "properties": {
                "methods": {"type": "array", "items": {"type": "string"}},
                "password": {"type": "object", "properties": {"user": _USER}},
                "token": {"type": "object", "properties": {"id": {"type": "string"}}, "required": ["id"]},
                "application_credential": {
                    "type": "object",
                    "properties": {
                        "id": {"type": "string"}, "name": {"type": "string"}, "secret": {"type": "string"},
                        "user": _USER,
                    },
                },
            },
            "required": ["methods"],
        },
        "scope": {
            "type": ["object", "string"],
            "properties": {
                "project": {
                    "type": "object",
                    "properties": {"id": {"type": "string"}, "name": {"type": "string"}, "domain": _DOMAIN},
                },
                "domain": _DOMAIN,
                "OS-TRUST:trust": {"type": "object", "properties": {"id": {"type": "string"}}},
                "system": {"type": "object", "properties": {"all": {"type": "boolean"}}},
            },
        },
    },
    "required": ["identity"],
}  # fmt: skip

_U, _P, _A = User.table, Project.table, ApplicationCredential.table
_USER_BY_NAME = sa.select(_U).where(_U.c.name == sa.bindparam("name"), _U.c.domain_id == sa.bindparam("domain_id"))
_PROJECT_BY_NAME = sa.select(_P).where(_P.c.name == sa.bindparam("name"), _P.c.domain_id == sa.bindparam("domain_id"))
_APP_CRED_BY_NAME = sa.select(_A).where(_A.c.name == sa.bindparam("name"), _A.c.user_id == sa.bindparam("user_id"))
_TRUST = sa.select(TRUST).where(TRUST.c.id == sa.bindparam("id"))
_APP_CRED_BY_ID = sa.select(_A).where(_A.c.id == sa.bindparam("id"))


@dataclass
class Proof:
    """What the methods of one request have shown so far."""

    methods: list[str] = field(default_factory=list)
    users: list[str | None] = field(default_factory=list)  # one per method; None = refused
    compare: list[tuple[str | None, str]] = field(default_factory=list)  # (hash or None, secret) still to compare
    parent: Payload | None = None
    app_cred: Row | None = None
    refused: bool = False


def expecting(what: str, where: str) -> Fault:
    """400: a part of the body is missing."""
    return bad_request(f"Expecting to find {what} in {where}.", "ValidationError")


async def issue(call: Call) -> Reply:
    """Answer POST /v3/auth/tokens."""
    wanted, methods = _read(call)
    proof = await _database(call.cloud, lambda: _prove(call.cloud, wanted["identity"], methods))
    for hashed, secret in proof.compare:
        if not await asyncio.get_running_loop().run_in_executor(
            _pool(call.cloud), _compare, call.cloud, hashed, secret
        ):
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


def _compare(cloud: Cloud, hashed: str | None, secret: str) -> bool:
    return hashing(cloud).dummy_verify(secret) if hashed is None else verify(hashed, secret)


# --- reading the request -------------------------------------------------------------------------------------------


def _read(call: Call) -> tuple[dict[str, Any], list[str]]:
    """The ``auth`` object, checked, and the methods without repetition."""
    body = call.body
    if not isinstance(body, dict) or not isinstance(body.get("auth"), dict):
        raise expecting("auth", "request body")
    wanted: dict[str, Any] = body["auth"]
    checker(SCHEMA)(wanted)
    identity = wanted["identity"]
    methods = list(dict.fromkeys(identity["methods"]))
    for method in methods:
        if method not in identity:
            raise expecting(method, "identity")
    for method in methods:
        if method not in METHODS:
            raise auth.denied(call, f"Attempted to authenticate with an unsupported method; use {', '.join(METHODS)}.")
    scope = wanted.get("scope")
    if scope is not None:
        if "application_credential" in methods:
            raise auth.denied(call, "Application credentials cannot request a scope.")
        kinds = ("system", "project", "domain", "OS-TRUST:trust", "unscoped")
        given = [k for k in kinds if k in scope] if isinstance(scope, dict) else [scope]
        if len(given) != 1 or given[0] not in kinds:
            raise expecting("exactly one of system, project, domain, OS-TRUST:trust or unscoped", "scope")
    return wanted, methods


def _named(part: dict[str, Any], where: str) -> None:
    if "id" not in part and "name" not in part:
        raise bad_request(f"Invalid input for field {where}: id or name must be present.", "ValidationError")
    if "id" not in part and "domain" not in part:
        raise expecting("domain", where.rpartition("/")[2])
    if "id" not in part.get("domain", {"id": ""}) and "name" not in part["domain"]:
        raise bad_request(f"Invalid input for field {where}/domain: id or name must be present.", "ValidationError")


def domain_of(reader: Reader, part: dict[str, Any]) -> Row | None:
    """The enabled domain that ``{id}`` or ``{name}`` means."""
    if "id" in part:
        row = lookup.project(reader, part["id"])
    else:
        row = reader.one(_PROJECT_BY_NAME, {"name": part["name"], "domain_id": ""})
    return row if row is not None and row["is_domain"] and row["enabled"] else None


def _user(reader: Reader, part: dict[str, Any]) -> Row | None:
    """The enabled user that ``{id}`` or ``{name, domain}`` means; None also when its domain is disabled."""
    if "id" in part:
        row = lookup.user(reader, part["id"])
    else:
        domain = domain_of(reader, part["domain"])
        row = None
        if domain is not None:
            row = reader.one(_USER_BY_NAME, {"name": part["name"], "domain_id": domain["id"]})
    if row is None or not row["enabled"]:
        return None
    return row if domain_of(reader, {"id": row["domain_id"]}) is not None else None


# --- the methods ---------------------------------------------------------------------------------------------------


def _prove(cloud: Cloud, identity: dict[str, Any], methods: list[str]) -> Proof:
    proof = Proof(methods=list(methods))
    with cloud.store.read() as reader:
        for method in methods:
            _METHODS[method](cloud, reader, identity[method], proof)
    return proof


def _by_password(cloud: Cloud, reader: Reader, part: dict[str, Any], proof: Proof) -> None:
    if "user" not in part:
        raise expecting("user", "password")
    _named(part["user"], "identity/password/user")
    user = _user(reader, part["user"])
    proof.users.append(user["id"] if user else None)
    hashed = user["password"] if user else None
    if user and user["password_expires_at"] and user["password_expires_at"] <= clock.now():
        hashed = None
    proof.compare.append((hashed, part["user"].get("password") or ""))


def _by_token(cloud: Cloud, reader: Reader, part: dict[str, Any], proof: Proof) -> None:
    try:
        found = auth.meaning(cloud, reader, part["id"])
    except auth.Refused as e:
        raise auth.not_valid(f"The token of the method 'token' cannot be used: {e}") from None
    if found.claims.trust_id:  # else a trustee could become the trustor everywhere
        raise forbidden("A token got by a trust cannot be used for getting another.", "Forbidden")
    proof.users.append(found.user["id"])
    proof.parent = found.claims
    proof.app_cred = found.app_cred
    proof.methods += [m for m in found.claims.methods if m not in proof.methods]


def _by_app_cred(cloud: Cloud, reader: Reader, part: dict[str, Any], proof: Proof) -> None:
    row: Row | None = None
    if "id" in part:
        row = reader.one(_APP_CRED_BY_ID, {"id": part["id"]})
    elif "name" in part:
        if "user" not in part:
            raise expecting("user", "application_credential")
        _named(part["user"], "identity/application_credential/user")
        user = _user(reader, part["user"])
        if user is not None:
            row = reader.one(_APP_CRED_BY_NAME, {"name": part["name"], "user_id": user["id"]})
    else:
        raise expecting("id or name", "application_credential")
    if row is not None and row["expires_at"] and row["expires_at"] <= clock.now():
        row = None
    proof.users.append(row["user_id"] if row else None)
    proof.compare.append((row["secret_hash"] if row else None, part.get("secret") or ""))
    proof.app_cred = row


_METHODS: dict[str, Callable[[Any, Any, dict[str, Any], Proof], None]] = {
    "password": _by_password,
    "token": _by_token,
    "application_credential": _by_app_cred,
}


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
    _named(part, "scope/project")
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
        claims = new_payload(user["id"], tuple(proof.methods), lifetime, parent=proof.parent, **fields)
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
        _named(scope["project"], "scope/project")


def _multi_factor(user: Row, methods: list[str]) -> bool:
    """Whether the methods used satisfy the user's multi-factor rules, if there are any that can be."""
    options = user["options"] or {}
    rules = [set(r) & set(METHODS) for r in options.get("multi_factor_auth_rules") or []]
    rules = [r for r in rules if r]
    if not rules or options.get("multi_factor_auth_enabled") is False:
        return True
    return any(r <= set(methods) for r in rules)
