"""The method ``mapped``: somebody whom an identity provider vouches for becomes a user here.

The proof is an OpenID Connect bearer token (``Authorization: Bearer``); the protocol's mapping says who that is. An
ephemeral user gets a shadow: a row of his own, without a password, made at the first login and found again by
(provider, protocol, unique id), so that he can hold roles. A local one must exist. SAML2 is not spoken here.
"""

from __future__ import annotations

import hashlib
import time
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import sqlalchemy as sa

from nubila.core import checks, clock
from nubila.core.faults import Fault, forbidden, unavailable
from nubila.core.gates import ALWAYS
from nubila.services.identity import assignments, auth, federation_oidc, lookup, mapping
from nubila.services.identity.federated import shadow_id
from nubila.services.identity.kinds import Group, Project, Role, User
from nubila.services.identity.kinds_federation import (
    EXPIRING_MEMBERSHIP,
    FEDERATED_USER,
    IDP,
    MAPPING,
    PROTOCOL,
    REMOTE_ID,
)
from nubila.services.identity.proof import Proof, domain_of, find_user
from nubila.services.identity.revision import bump

if TYPE_CHECKING:
    from nubila.core.call import Call
    from nubila.core.cloud import Cloud
    from nubila.core.db import Reader, Tx

Row = dict[str, Any]
SCHEMA: Row = {
    "type": "object",
    "properties": {"identity_provider": {"type": "string"}, "protocol": {"type": "string"}},
    "required": ["identity_provider", "protocol"],
}
ISSUER = "HTTP_OIDC_ISS"
"""The attribute that names the provider, unless the protocol has a remote_id_attribute."""
NOT_OURS = frozenset(
    ("password", "token", "totp", "application_credential", "external", "oauth1", "oauth2_credential", "ec2credential")
)
"""Methods that a token must not claim because a protocol happens to be called so."""
_F, _E = FEDERATED_USER.c, EXPIRING_MEMBERSHIP.c


def bearer(call: Call) -> str:
    """The bearer token of the request, else 401."""
    scheme, _, token = call.headers.get("authorization", "").partition(" ")
    if scheme.lower() != "bearer" or not token.strip():
        raise Fault(
            401, "Send the identity provider's token in the header 'Authorization: Bearer TOKEN'.", "HTTPUnauthorized",
            headers={"WWW-Authenticate": "Bearer"},
        )  # fmt: skip
    return token.strip()


def prove(cloud: Cloud, reader: Reader, part: Row, proof: Proof) -> None:
    """Find the provider and its mapping; the token itself is looked at in a thread that may block."""
    idp_id, protocol_id = part["identity_provider"], part["protocol"]
    idp = reader.one(sa.select(IDP).where(IDP.c.id == idp_id))
    if idp is None:
        raise Fault(404, f"Could not find Identity Provider: {idp_id}.", "IdentityProviderNotFound")
    if not idp["enabled"]:
        raise forbidden(f"Identity Provider {idp_id} is disabled", "Forbidden")
    protocol = reader.one(sa.select(PROTOCOL).where(PROTOCOL.c.idp_id == idp_id, PROTOCOL.c.id == protocol_id))
    if protocol is None:
        text = f"Identity Provider: {idp_id} has no protocol {protocol_id}."
        raise Fault(404, text, "FederatedProtocolNotFound")
    rules = reader.one(sa.select(MAPPING).where(MAPPING.c.id == protocol["mapping_id"]))
    if rules is None:
        raise Fault(404, f"Could not find mapping: {protocol['mapping_id']}.", "MappingNotFound")
    remote = [r for (r,) in reader.rows(sa.select(REMOTE_ID.c.remote_id).where(REMOTE_ID.c.idp_id == idp_id))]
    token = bearer(proof.call)
    slot = len(proof.users)
    proof.users.append(None)
    if protocol_id not in NOT_OURS:
        proof.methods[:] = [protocol_id if m == "mapped" else m for m in proof.methods]

    def check() -> bool:
        said = _said(proof.call, cloud, idp_id, token)
        _from_whom(protocol["remote_id_attribute"] or ISSUER, remote, said)
        try:
            mapped = mapping.evaluate(rules["rules"], said, rules["schema_version"])
        except mapping.NotMapped as e:
            raise auth.denied(proof.call, f"The mapping {rules['id']} lets you in as nobody: {e}.") from None
        with cloud.store.read() as reader:
            if mapped.user["type"] == mapping.LOCAL:
                proof.users[slot] = _local(reader, mapped.user)
                return proof.users[slot] is not None
            guest = _Guest(cloud, reader, proof.call, idp, protocol_id, mapped, said, rules["id"])
        proof.users[slot] = guest.user_id
        proof.fields |= {"idp_id": idp_id, "protocol_id": protocol_id, "group_ids": tuple(guest.group_ids)}
        if guest.changes():
            proof.effects.append(guest.keep)
        return True

    proof.check.append(check)


def _said(call: Call, cloud: Cloud, idp_id: str, token: str) -> dict[str, list[str]]:
    try:
        return federation_oidc.assertion(federation_oidc.verify(cloud, idp_id, token))
    except federation_oidc.Rejected as e:
        raise Fault(
            401, f"The bearer token is not accepted: {e}.", "HTTPUnauthorized",
            headers={"WWW-Authenticate": 'Bearer error="invalid_token"'},
        ) from None  # fmt: skip
    except federation_oidc.Unreachable as e:
        raise unavailable(f"The identity provider {idp_id} cannot be asked: {e}.") from None


def _from_whom(attribute: str, remote_ids: list[str], said: dict[str, list[str]]) -> None:
    """Raise unless what names the provider is one of its remote ids (a provider without any is not compared)."""
    if not remote_ids:
        return
    if attribute not in said:
        raise Fault(400, f"The proxy did not say who vouches for the user ({attribute}).", "ValidationError")
    if not set(said[attribute]) & set(remote_ids):
        raise forbidden("The login comes from a provider that is not among the remote_ids.", "Forbidden")


def _local(reader: Reader, user: Row) -> str | None:
    """The id of an existing, enabled user."""
    if "id" not in user and not ("name" in user and user.get("domain")):
        return None
    found = find_user(reader, {k: v for k, v in user.items() if k in ("id", "name", "domain")})
    return found["id"] if found else None


class _Guest:
    """An ephemeral user at the door: who he is, his groups and projects, and what has to be written down about it."""

    def __init__(
        self, cloud: Cloud, reader: Reader, call: Call, idp: Row, protocol_id: str, mapped: mapping.Mapped,
        said: dict[str, list[str]], mapping_id: str,
    ) -> None:  # fmt: skip
        self.cloud, self.call, self.idp, self.protocol_id, self.mapped = cloud, call, idp, protocol_id, mapped
        user = mapped.user
        name = user.get("name") or user.get("id") or (said.get("REMOTE_USER") or [""])[0]
        if not name.strip():
            raise auth.denied(call, "The mapping gives the user no name.")
        self.name = name[:255]
        known_as = quote(user.get("id") or name)
        self.unique_id = known_as if len(known_as) <= 255 else hashlib.sha256(known_as.encode()).hexdigest()
        self.domain_id = self._domain(reader, user.get("domain"))
        self.group_ids = self._groups(reader, mapping_id)
        self.user_id = shadow_id(idp["id"], protocol_id, self.unique_id)
        self._same = (_F.idp_id == idp["id"], _F.protocol_id == protocol_id, _F.unique_id == self.unique_id)
        self.row = reader.one(sa.select(FEDERATED_USER).where(*self._same))
        if self.row is not None:
            self.user_id = self.row["user_id"]
        self.roles = self._roles(reader)
        ttl = idp["authorization_ttl"]
        self.ttl_s = 60 * (cloud.settings.default_authorization_ttl if ttl is None else ttl)

    def _domain(self, reader: Reader, part: Row | None) -> str:
        if not part:
            return str(self.idp["domain_id"])
        found = domain_of(reader, part) if {"id", "name"} & set(part) else None
        if found is None:
            raise auth.denied(self.call, "The domain that the mapping gives the user does not exist or is disabled.")
        return str(found["id"])

    def _groups(self, reader: Reader, mapping_id: str) -> list[str]:
        t, out = Group.table, []
        for id in self.mapped.group_ids:
            if reader.scalar(sa.select(t.c.id).where(t.c.id == id)) is None:
                text = f"Mapping {mapping_id} names group {id}, which is not there."
                raise auth.denied(self.call, text)
            out.append(id)
        for name, part in self.mapped.group_names:
            domain = domain_of(reader, part) if {"id", "name"} & set(part) else None
            if domain is not None:
                found = sa.select(t.c.id).where(t.c.name == name, t.c.domain_id == domain["id"])
                out += [id for (id,) in reader.rows(found)]
        return list(dict.fromkeys(out))

    def _roles(self, reader: Reader) -> dict[str, str]:
        """Name to id of the roles the mapping hands out; all must exist and be usable in the user's domain."""
        names = {r["name"] for p in self.mapped.projects for r in p["roles"]}
        t = Role.table
        rows = reader.all(sa.select(t).where(t.c.name.in_(names))) if names else []
        good = {r["name"]: r["id"] for r in rows if r["domain_id"] in ("", self.domain_id)}
        if missing := sorted(names - set(good)):
            raise auth.denied(self.call, f"The mapping gives roles that cannot be given: {', '.join(missing)}.")
        return good

    def changes(self) -> bool:
        """Whether there is something to write; a returning guest usually leaves nothing."""
        row = self.row
        return row is None or row["display_name"] != self.name or bool(self.mapped.projects or self.ttl_s) or (
            self.mapped.sync_projects
        )  # fmt: skip

    def keep(self, tx: Tx) -> None:
        """Write the shadow user, his expiring memberships and his projects."""
        if tx.scalar(sa.select(IDP.c.id).where(IDP.c.id == self.idp["id"], IDP.c.enabled.is_(True))) is None:
            raise auth.denied(self.call)  # it went while we were looking
        self.row = tx.one(sa.select(FEDERATED_USER).where(*self._same))
        if self.row is None:
            self._new(tx)
        elif self.row["display_name"] != self.name:
            tx.execute(sa.update(FEDERATED_USER).where(*self._same).values(display_name=self.name))
            free = self._free_name(tx, self.row["user_id"])
            tx.execute(sa.update(User.table).where(User.table.c.id == self.row["user_id"]).values(name=free))
            bump(self.cloud, tx)
        if self.ttl_s:
            self._memberships(tx)
        self._projects(tx)

    def _free_name(self, tx: Tx, mine: str) -> str:
        """The name, or one like it when somebody in the domain has it already."""
        t = User.table
        for name in (self.name, f"{self.name[:180]} ({self.idp['id']})", f"{self.name[:220]} {mine}"):
            holder = tx.scalar(sa.select(t.c.id).where(t.c.name == name, t.c.domain_id == self.domain_id))
            if holder in (None, mine):
                return name
        return mine

    def _new(self, tx: Tx) -> None:
        if lookup.user(tx, self.user_id) is None:
            given: Row = {"id": self.user_id, "name": self._free_name(tx, self.user_id), "domain_id": self.domain_id}
            values = checks.defaults(User, given, ALWAYS)
            values |= {"id": self.user_id, "password": None}
            values["extra"] = {"email": self.mapped.user["email"]} if self.mapped.user.get("email") else {}
            tx.insert(User.table, {c.name: values.get(c.name) for c in User.table.columns})
        tx.insert(
            FEDERATED_USER,
            {
                "idp_id": self.idp["id"], "protocol_id": self.protocol_id, "unique_id": self.unique_id,
                "user_id": self.user_id, "display_name": self.name,
            },
        )  # fmt: skip

    def _memberships(self, tx: Tx) -> None:
        mine = (_E.user_id == self.user_id, _E.idp_id == self.idp["id"])
        now, end = clock.now(), clock.at(time.time() + self.ttl_s)
        there = dict(tx.rows(sa.select(_E.group_id, _E.expires_at).where(*mine)))
        gone = sorted(set(there) - set(self.group_ids))
        if gone:
            tx.execute(sa.delete(EXPIRING_MEMBERSHIP).where(*mine, _E.group_id.in_(gone)))
        for id in self.group_ids:
            if id in there:
                tx.execute(sa.update(EXPIRING_MEMBERSHIP).where(*mine, _E.group_id == id).values(expires_at=end))
            else:
                row = {"user_id": self.user_id, "group_id": id, "idp_id": self.idp["id"], "expires_at": end}
                tx.insert(EXPIRING_MEMBERSHIP, row)
        if gone or any(there.get(id, "") <= now for id in self.group_ids):
            bump(self.cloud, tx)

    def _projects(self, tx: Tx) -> None:
        actor, kept, changed = ("user", self.user_id), set(), False
        for wanted in self.mapped.projects:
            project = self._project(tx, wanted)
            for role in wanted["roles"]:
                id = self.roles[role["name"]]
                kept.add((project, id))
                if not assignments.has(tx, actor, ("project", project), id):
                    assignments.grant(tx, actor, ("project", project), id)
                    changed = True
        if self.mapped.sync_projects:
            for kind, _, target_kind, target, role_id, inherited in assignments.of_user(tx, self.user_id):
                if kind == "user" and target_kind == "project" and not inherited and (target, role_id) not in kept:
                    assignments.revoke(tx, actor, ("project", target), role_id)
                    changed = True
        if changed:
            bump(self.cloud, tx)

    def _project(self, tx: Tx, wanted: Row) -> str:
        """The project's id; one that is not there yet is made."""
        part = wanted.get("domain") or {"id": self.idp["domain_id"]}
        domain = domain_of(tx, part) if {"id", "name"} & set(part) else None
        if domain is None:
            raise auth.denied(self.call, f"The domain of the mapping's project {wanted['name']} does not exist.")
        t, name = Project.table, wanted["name"][:64]
        found = tx.scalar(sa.select(t.c.id).where(t.c.name == name, t.c.domain_id == domain["id"]))
        if found is not None:
            return str(found)
        id = clock.new_hex()
        tx.insert(
            t,
            {
                "id": id, "name": name, "domain_id": domain["id"], "parent_id": domain["id"], "is_domain": False,
                "enabled": True, "description": "", "options": {}, "extra": {},
            },
        )  # fmt: skip
        return id
