"""What a token means: signature, revocation, the live state of its user and scope, its roles.

``authenticate`` is called for every request of every service. A token it has seen costs two dictionary look-ups; what
it remembers is dropped within ``revision.CHECK_S`` after anything changed (services/identity/revision.py). A token
holds no roles: they are read when it is first seen and again after every change, so taking a role away or disabling a
user, project or domain works at once, on every process.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from nubila.core import clock
from nubila.core.faults import Fault, unauthorized
from nubila.core.payload import InvalidToken, Payload, iso
from nubila.core.tokens import Creds
from nubila.services.identity import assignments, federated, lookup
from nubila.services.identity import catalog as catalogue
from nubila.services.identity.kinds import TRUST, ApplicationCredential
from nubila.services.identity.kinds_oauth1 import ACCESS_TOKEN
from nubila.services.identity.ldap import reads as directories
from nubila.services.identity.revision import Memory, bump, fresh, memory, recall
from nubila.services.identity.trust_chain import Broken, chain

if TYPE_CHECKING:
    from nubila.core.call import Call
    from nubila.core.cloud import Cloud
    from nubila.core.db import Reader, Tx

Row = dict[str, Any]
PLEASE = "Authentication is required: log in with valid credentials."

_TRUST = sa.select(TRUST).where(TRUST.c.id == sa.bindparam("id"))
_ACCESS_TOKEN = sa.select(ACCESS_TOKEN).where(ACCESS_TOKEN.c.id == sa.bindparam("id"))
_APP_CRED = sa.select(ApplicationCredential.table).where(ApplicationCredential.table.c.id == sa.bindparam("id"))


@dataclass(slots=True)
class Meaning:
    """What one valid token says, ready to be shown."""

    claims: Payload
    creds: Creds
    expires: float  # Unix time
    user: Row
    user_domain: Row
    project: Row | None = None
    project_domain: Row | None = None
    domain: Row | None = None
    roles: list[dict[str, str]] = field(default_factory=list)
    app_cred: Row | None = None
    trust: Row | None = None
    access_token: Row | None = None  # of OAuth 1
    shown: dict[tuple[str, bool], bytes] = field(default_factory=dict)  # encoded answers by base URL and catalogue
    until: float = 0.0  # Unix time after which all this is looked up again: a directory may say something else by then


class Refused(Exception):
    """The token cannot be used; the text says why (for validation's 404, never for a stranger's 401).

    ``forbidden``: who proved to be the right user is told so with 403 when he asks for such a token.
    """

    def __init__(self, message: str, *, forbidden: bool = False) -> None:
        super().__init__(message)
        self.forbidden = forbidden


def authenticate(cloud: Cloud, token: str) -> Creds:
    """The caller's credentials, or Fault 401."""
    known = memory(cloud)
    if clock.monotonic() < known.next_check:
        found: Meaning | None = known.tokens.get(token)
        if found is not None and found.until > time.time():
            return found.creds
    try:
        with cloud.store.read() as reader:
            return meaning(cloud, reader, token).creds
    except Refused:
        raise unauthorized(PLEASE) from None


def meaning(cloud: Cloud, reader: Reader, token: str, *, window_s: float = 0.0) -> Meaning:
    """All that a token means now. ``window_s``: accept it so long after its end. Raises :class:`Refused`."""
    known = fresh(cloud, reader)
    tokens = known.tokens  # whoever forgets replaces the dict: what is read from here on is not put into the new one
    found: Meaning | None = tokens.get(token)
    now = time.time()
    if found is None or found.until <= now < found.expires:
        try:
            claims = cloud.keys.read(token, window_s)
        except InvalidToken as e:
            raise Refused(str(e)) from None
        found = resolve(cloud, reader, claims)
        if tokens is known.tokens:
            known.remember(token, found)
    if found.expires + window_s <= now:
        raise Refused("The token has expired.")
    return found


def resolve(cloud: Cloud, reader: Reader, claims: Payload) -> Meaning:
    """Compare a token's claims with the database as it is. Raises :class:`Refused`."""
    known = memory(cloud)
    known.revocations.refresh(reader)
    if why := federated.broken(reader, claims):
        raise Refused(why)
    user = _user(cloud, reader, claims.user_id)
    trust = _trust(cloud, reader, claims) if claims.trust_id else None
    if trust is not None and trust["impersonation"]:
        user = _user(cloud, reader, trust["trustor_user_id"])
    user_domain = _live(known, reader, user["domain_id"], "domain")
    domains = [user_domain["id"]]
    out = Meaning(claims, None, claims.expires_at / 1e6, user, user_domain)  # type: ignore[arg-type]  # creds: below
    out.trust, groups = trust, claims.group_ids
    if claims.project_id:
        out.project = _live(known, reader, claims.project_id, "project")
        out.project_domain = _live(known, reader, out.project["domain_id"] or out.project["id"], "domain")
        domains.append(out.project_domain["id"])
        whose = trust["first_trustor"] if trust else user["id"]
        out.roles = assignments.token_roles(known, reader, whose, "project", claims.project_id, groups)
    elif claims.domain_id:
        out.domain = _live(known, reader, claims.domain_id, "domain")
        out.roles = assignments.token_roles(known, reader, user["id"], "domain", claims.domain_id, groups)
    elif claims.system:
        out.roles = assignments.token_roles(known, reader, user["id"], "system", assignments.SYSTEM, groups)
    if known.revocations.revoked(claims, domains):
        raise Refused("The token has been revoked.")
    _narrow(known, reader, out)
    if (claims.project_id or claims.domain_id or claims.system) and not out.roles:
        raise Refused("The user has no role on the token's scope.")
    out.creds = _creds(out)
    whom = (claims.user_id, trust["trustor_user_id"], trust["first_trustor"]) if trust else (claims.user_id,)
    out.until = min(out.expires, time.time() + directories.good_s(cloud, reader, whom))
    out.until = min(out.until, *(federated.until(known, reader, id) for id in whom))  # memberships end
    return out


def _narrow(known: Memory, reader: Reader, out: Meaning) -> None:
    """Leave only the roles that were delegated, if the token rests on a delegation."""
    claims, trust = out.claims, out.trust
    if claims.app_cred_id:
        out.app_cred = _app_cred(reader, claims)
        kept = {r["id"] for r in out.app_cred["roles"]}
        out.roles = [r for r in out.roles if r["id"] in kept]
    if trust is not None:
        given = set(assignments.expand(trust["roles"], assignments.implied_roles(known, reader)))
        if not set(trust["roles"]) <= {r["id"] for r in out.roles}:
            raise Refused("The trustor has not all roles of the trust any more.", forbidden=True)
        out.roles = [r for r in out.roles if r["id"] in given]
    if claims.access_token_id:
        out.access_token = _access_token(reader, claims)
        out.roles = [r for r in out.roles if r["id"] in out.access_token["roles"]]
    for row in (trust, out.app_cred, out.access_token):
        if row is not None and row["expires_at"]:  # nothing outlives what it rests on, however it was got
            out.expires = min(out.expires, clock.seconds(row["expires_at"]))


def _live(known: Memory, reader: Reader, id: str, what: str) -> Row:
    row = recall(known, reader, ("project", id), lambda: lookup.project(reader, id))
    if row is None or not row["enabled"]:
        raise Refused(f"Unable to validate token because {what} {id} is disabled")
    return row


def _user(cloud: Cloud, reader: Reader, id: str) -> Row:
    row = recall(memory(cloud), reader, ("user", id), lambda: lookup.user(reader, id))
    row = row and directories.current(cloud, reader, row)
    if row is None or not row["enabled"]:
        raise Refused("The token's user is gone or disabled.")
    return row


def _trust(cloud: Cloud, reader: Reader, claims: Payload) -> Row:
    """The trust of a token, with ``first_trustor``: the user whose roles it gives, also when it was passed on."""
    row = reader.one(_TRUST, {"id": claims.trust_id})
    if row is None or (row["expires_at"] and row["expires_at"] <= clock.now()):
        raise Refused("The trust is gone or has expired.")
    if row["trustee_user_id"] != claims.user_id:
        raise Refused("The token's user is not the trustee.", forbidden=True)
    try:
        row["first_trustor"] = chain(reader, row)[-1]["trustor_user_id"]
        for id in dict.fromkeys((row["trustor_user_id"], row["first_trustor"])):
            _live(memory(cloud), reader, _user(cloud, reader, id)["domain_id"], "domain")
    except (Broken, Refused) as e:
        raise Refused(str(e), forbidden=True) from None
    return row


def _app_cred(reader: Reader, claims: Payload) -> Row:
    row = reader.one(_APP_CRED, {"id": claims.app_cred_id})
    if row is None or (row["expires_at"] and row["expires_at"] <= clock.now()):
        raise Refused("The application credential is gone or has expired.")
    return row


def _access_token(reader: Reader, claims: Payload) -> Row:
    row = reader.one(_ACCESS_TOKEN, {"id": claims.access_token_id})
    if row is None or row["expires_at"] <= clock.now():
        raise Refused("The OAuth access token is gone or has expired.")
    if (row["user_id"], row["project_id"]) != (claims.user_id, claims.project_id):
        raise Refused("The OAuth access token is for another user or project.")
    return row


def _access_rules(app_cred: Row | None) -> tuple[tuple[str, str, str], ...] | None:
    rules = app_cred["access_rules"] if app_cred else None
    return tuple((r["service"], r["method"], r["path"]) for r in rules) if rules else None


def _creds(m: Meaning) -> Creds:
    claims, project, domain = m.claims, m.project, m.domain
    return Creds(
        user_id=m.user["id"],
        user_name=m.user["name"],
        user_domain_id=m.user_domain["id"],
        user_domain_name=m.user_domain["name"],
        project_id=project["id"] if project else None,
        project_name=project["name"] if project else None,
        project_domain_id=m.project_domain["id"] if m.project_domain else None,
        project_domain_name=m.project_domain["name"] if m.project_domain else None,
        domain_id=domain["id"] if domain else None,
        domain_name=domain["name"] if domain else None,
        system_scope="all" if claims.system else None,
        roles=tuple(r["name"] for r in m.roles),
        role_ids=tuple(r["id"] for r in m.roles),
        token=claims,
        access_rules=_access_rules(m.app_cred),
    )


def revoke(cloud: Cloud, tx: Tx, **names: str) -> None:
    """Refuse, from now on and everywhere, the tokens that have these properties (``audit_id``, ``user_id`` ...)."""
    bump(cloud, tx)
    memory(cloud).revocations.revoke(tx, None, **names)


def named(row: Row) -> dict[str, str]:
    """``{id, name}``, as tokens mention things."""
    return {"id": row["id"], "name": row["name"]}


def document(cloud: Cloud, reader: Reader, m: Meaning, base: str, *, catalog: bool) -> dict[str, Any]:
    """The token as Identity shows it. API: "Validate and show information for token"."""
    claims = m.claims
    token: dict[str, Any] = {
        "methods": list(claims.methods),
        "user": {
            "domain": named(m.user_domain), "id": m.user["id"], "name": m.user["name"],
            "password_expires_at": m.user["password_expires_at"],
        },
        "audit_ids": list(claims.audit_ids),
        "expires_at": iso(claims.expires_at),
        "issued_at": iso(claims.issued_at),
    }  # fmt: skip
    if claims.idp_id:
        token["user"]["OS-FEDERATION"] = federated.section(claims)
        del token["user"]["password_expires_at"]
    if providers := federated.service_providers(memory(cloud), reader):
        token["service_providers"] = providers
    if claims.thumbprint:
        token["oauth2_credential"] = {"x5t#S256": claims.thumbprint}
    if m.project is not None and m.project_domain is not None:
        token["project"] = {"domain": named(m.project_domain), **named(m.project)}
        token["is_domain"] = bool(m.project["is_domain"])
    elif m.domain is not None:
        token["domain"] = named(m.domain)
    elif claims.system:
        token["system"] = {"all": True}
    else:
        return {"token": token}
    token["roles"] = m.roles
    if m.trust is not None:
        token["OS-TRUST:trust"] = {
            "id": m.trust["id"], "trustor_user": {"id": m.trust["trustor_user_id"]},
            "trustee_user": {"id": m.trust["trustee_user_id"]}, "impersonation": bool(m.trust["impersonation"]),
        }  # fmt: skip
    if m.app_cred is not None:
        token["application_credential"] = {**named(m.app_cred), "restricted": not m.app_cred["unrestricted"]}
        if m.app_cred["access_rules"]:
            token["application_credential"]["access_rules"] = m.app_cred["access_rules"]
    if m.access_token is not None:
        token["OS-OAUTH1"] = {
            "access_token_id": m.access_token["id"], "consumer_id": m.access_token["consumer_id"],
        }  # fmt: skip
    if catalog:
        token["catalog"] = catalogue.catalog(
            memory(cloud), reader, base, project_id=claims.project_id, user_id=claims.user_id
        )
    return {"token": token}


def catalog(cloud: Cloud, reader: Reader, project_id: str, base_url: str) -> list[dict[str, Any]]:
    """The service catalogue of a project, its URLs below ``base_url``."""
    return catalogue.catalog(fresh(cloud, reader), reader, base_url, project_id=project_id, user_id=None)


def denied(call: Call, message: str = PLEASE) -> Fault:
    """401, saying where tokens are to be had."""
    return Fault(401, message, "HTTPUnauthorized", headers={"WWW-Authenticate": f'Keystone uri="{call.base}/v3"'})


def not_valid(why: str) -> Fault:
    """404: what validation says of a token that is not valid."""
    return Fault(404, why, "TokenNotFound")
