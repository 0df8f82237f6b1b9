"""Getting a token: who are you (methods), what for (scope), here it is. API: POST /v3/auth/tokens.

A token is its own record: the database is written only where a setting or a method asks for it (failures counted,
passcodes used up). Secrets are compared in threads of low priority, so that a storm of logins does not slow other
requests down. An unknown user costs the same time as a wrong password, and whatever is wrong with user, password or
scope, a lock included, is answered alike; only who knows the password is told that it has expired.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import sqlalchemy as sa

from nubila.core import clock
from nubila.core.call import Call, Reply
from nubila.core.checks import Checker, checker
from nubila.core.db import Busy, patiently
from nubila.core.faults import bad_request, forbidden, unavailable
from nubila.core.passwords import Passwords
from nubila.core.payload import new_payload
from nubila.core.remember import remembered
from nubila.services.identity import (
    assignments,
    auth,
    compliance,
    lockout,
    lookup,
    methods,
    methods_external,
    receipts,
    trusts,
)
from nubila.services.identity import hashing as hashing_threads
from nubila.services.identity.kinds import TRUST, Project, User
from nubila.services.identity.ldap import reads as directories
from nubila.services.identity.ldap.copies import PUBLIC_ID
from nubila.services.identity.proof import DOMAIN, Proof, domain_of, expecting, named
from nubila.services.identity.revision import fresh, recall

if TYPE_CHECKING:
    from nubila.core.cloud import Cloud
    from nubila.core.db import Reader, Tx

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
    cloud = call.cloud
    proof = await _database(cloud, lambda: _prove(call, wanted["identity"], names))
    call.memo["audit.user"] = next((u for u in proof.users if u), None)
    guessing = proof.compare or proof.check or "totp" in names  # a token or a front's word is not guessed
    attempt = lockout.Attempt(cloud, _subject(wanted["identity"], proof), call.peer) if guessing else None
    loop = asyncio.get_running_loop()
    for check in proof.check:
        if not await loop.run_in_executor(hashing_threads.checkers(cloud), check):
            proof.refused = True
    if proof.compare or proof.effects or proof.wrong or proof.check:
        await loop.run_in_executor(hashing_threads.pool(cloud), _decide, call, proof)
    if attempt is not None and proof.user_id is not None:
        attempt.good()
    return await _database(cloud, lambda: _grant(call, wanted, proof))


async def _database(cloud: Cloud, work: Callable[[], T]) -> T:
    """Inline on an embedded database, else in a worker thread."""
    try:
        return work() if cloud.store.embedded else await asyncio.to_thread(work)
    except Busy:
        raise unavailable("The database is busy; try again.") from None


def _subject(identity: Row, proof: Proof) -> str:
    """Whom an attempt is about, also when there is no such user: its failures are counted together."""
    if found := next((u for u in proof.users if u), None):
        return found
    parts = [identity.get(m) for m in ("password", "totp", "application_credential")]
    named_as = [(p.get("user") or p) for p in parts if p]
    return "?" + repr([(u.get("id"), u.get("name"), repr(u.get("domain"))) for u in named_as])[:500]


def hashing(cloud: Cloud) -> Passwords:
    """How this cloud hashes passwords."""
    return hashing_threads.passwords(cloud)


# --- deciding, in a hashing thread ---------------------------------------------------------------------------------


def _decide(call: Call, proof: Proof) -> None:
    """Compare secrets and write down what follows: failures, or the login and what the methods have to store."""
    cloud = call.cloud
    for c in proof.compare:
        if not hashing_threads.compare(cloud, c):
            proof.refused = True
            if c.user is not None:
                proof.wrong.append(c.user["id"])
    if proof.user_id is None:
        if proof.wrong and cloud.settings.lockout_failure_attempts:
            _write(cloud, lambda tx: compliance.note_failures(cloud, tx, proof.wrong))
        raise auth.denied(call)
    for user in (c.user for c in proof.compare if c.user is not None):
        if compliance.expired(user):
            raise compliance.expired_fault(user["id"], dict(auth.denied(call).headers))
    _rehash(cloud, proof)
    settings = cloud.settings
    if settings.lockout_failure_attempts or settings.disable_user_account_days_inactive:
        proof.effects.append(lambda tx: _logged_in(call, tx, proof))
    if proof.effects:
        _write(cloud, lambda tx: [effect(tx) for effect in proof.effects])


def _rehash(cloud: Cloud, proof: Proof) -> None:
    """Hash a right password anew when the settings ask for another way than it was hashed in."""
    how = hashing_threads.passwords(cloud)
    for c in proof.compare:
        if c.user is not None and c.hashed is not None and how.needs_rehash(c.hashed):
            t, old, new = User.table, c.hashed, how.hash(c.secret)
            stmt = sa.update(t).where(t.c.id == c.user["id"], t.c.password == old).values(password=new)
            proof.effects.append(lambda tx, stmt=stmt: tx.execute(stmt))  # type: ignore[misc]


def _logged_in(call: Call, tx: Tx, proof: Proof) -> None:
    user = lookup.user(tx, str(proof.user_id))
    if user is None:
        raise auth.denied(call)
    known = compliance.security(tx, user["id"])
    settings, by_secret = call.cloud.settings, bool({"password", "totp"} & set(proof.methods))
    if by_secret and compliance.locked(settings, user, known):
        raise auth.denied(call)  # others failed meanwhile: guessing side by side does not outrun the lock
    if compliance.inactive(settings, user, known):
        raise auth.denied(call)
    compliance.note_login(call.cloud, tx, user, known if by_secret else {**known, "failures": 0})


def _write(cloud: Cloud, work: Callable[[Tx], object]) -> None:
    """One write transaction from a hashing thread, tried again while the database is busy."""

    def once() -> None:
        with cloud.store.write() as tx:
            work(tx)

    try:
        patiently(once, blindly=True)
    except Busy:
        raise unavailable("The database is busy; try again.") from None


# --- reading the request -------------------------------------------------------------------------------------------


@remembered
def _checker() -> Checker:
    return checker(SCHEMA)


def _read(call: Call) -> tuple[dict[str, Any], list[str]]:
    """The ``auth`` object, checked, and the methods without repetition."""
    body = call.body
    if not isinstance(body, dict) or not isinstance(body.get("auth"), dict):
        raise expecting("auth", "request body")
    wanted: dict[str, Any] = body["auth"]
    _checker()(wanted)
    identity = wanted["identity"]
    names = list(dict.fromkeys(identity["methods"]))
    for method in names:
        if method not in identity:
            raise expecting(method, "identity")
    known = methods.enabled(call.cloud.settings)
    for method in names:
        if method not in known:
            raise auth.denied(call, f"identity/methods: use one or more of {', '.join(known)}.")
    scope = wanted.get("scope")
    if scope is not None:
        if "application_credential" in names:
            raise auth.denied(call, "Application credentials cannot request a scope.")
        kinds = ("system", "project", "domain", "OS-TRUST:trust", "unscoped")
        given = [k for k in kinds if k in scope] if isinstance(scope, dict) else [scope]
        if len(given) != 1 or given[0] not in kinds:
            raise expecting("exactly one of system, project, domain, OS-TRUST:trust or unscoped", "scope")
    if isinstance(scope, dict) and "project" in scope:
        named(scope["project"], "scope/project")
    return wanted, names


def _prove(call: Call, identity: Row, names: list[str]) -> Proof:
    proof = Proof(call, methods=list(names))
    with call.cloud.store.read() as reader:
        for name in names:
            methods.METHODS[name].prove(call.cloud, reader, identity[name], proof)
        if "external" not in names and methods_external.enabled(call.cloud.settings):
            methods_external.implied(call.cloud, reader, proof)
        strangers = [id for id in proof.users if id and len(id) == PUBLIC_ID]
        for user in [row for id in strangers if (row := lookup.user(reader, id))]:
            directories.current(call.cloud, reader, user)  # now, while nothing has been written down yet
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
            raise bad_request("scope/domain: give an id or a name.", "ValidationError")
        domain = domain_of(reader, part)
        if domain is None:
            raise auth.denied(call)
        return {"domain_id": domain["id"]}
    part = scope["project"]
    named(part, "scope/project")
    if "id" in part:
        project = recall(
            fresh(call.cloud, reader), reader, ("project", part["id"]), lambda: lookup.project(reader, part["id"])
        )
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
    if trust is None or trust["remaining_uses"] == 0:
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
    if proof.user_id is None:
        raise auth.denied(call)
    with cloud.store.read() as reader:
        known = fresh(cloud, reader, exact=True)  # a role given a moment ago, by any process, counts
        tokens = known.tokens
        user = recall(known, reader, ("user", proof.user_id), lambda: lookup.user(reader, str(proof.user_id)))
        if user is None:
            raise auth.denied(call)
        receipt = receipts.read(call, reader)
        if receipt is not None:
            proof.methods += [m for m in receipts.of(call, receipt, user["id"]) if m not in proof.methods]
        asked = receipts.rules(user, methods.enabled(cloud.settings))
        if not receipts.satisfied(asked, proof.methods):
            return receipts.issue(call, reader, user, proof.methods, asked)
        fields = _scope(call, reader, wanted, user, proof.app_cred)
        lifetime = float(cloud.settings.token_ttl_s)
        until = fields.pop("_until", None) or (proof.app_cred or {}).get("expires_at")
        if until:
            lifetime = min(lifetime, clock.seconds(until) - clock.seconds(clock.now()))
        claims = new_payload(
            user["id"], tuple(proof.methods), lifetime, parent=proof.parent, **{**fields, **proof.fields}
        )
        try:
            meaning = auth.resolve(cloud, reader, claims)
        except auth.Refused as e:
            raise (forbidden(str(e), "Forbidden") if e.forbidden else auth.denied(call)) from None
        if claims.trust_id:
            trusts.consume(call, claims.trust_id)
        if proof.granted:
            with cloud.store.write() as tx:
                for settle in proof.granted:
                    settle(tx)
        token = cloud.keys.issue(claims)
        if tokens is known.tokens:
            known.remember(token, meaning)
        with_catalog = call.arg("nocatalog") is None
        body = auth.document(cloud, reader, meaning, call.base, catalog=with_catalog)
    return Reply(body, 201, {"X-Subject-Token": token})
