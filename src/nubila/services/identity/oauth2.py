"""OAuth 2.0 client credentials (RFC 6749 section 4.4, RFC 8705). API: OS-OAUTH2, POST /v3/OS-OAUTH2/token.

The client is an application credential with its secret, or a user with a client certificate. For the latter the
mapping named by the setting ``oauth2_cert_dn_mapping_id`` turns the certificate's subject and issuer into properties
of a user, all of which must be those of the user named by ``client_id``; the token is for the user's default project
and bound to the certificate: it counts only on connections that show it (:func:`nubila.edge.app.Edge`).

Refusals have the form of RFC 6749 section 5.2, ``{"error": ..., "error_description": ...}``, and do not say which part
was wrong.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import hashlib
import time
from typing import Any
from urllib.parse import parse_qs

import sqlalchemy as sa
from cryptography import x509

from nubila.core.call import Call, Reply, Route
from nubila.core.faults import Fault
from nubila.core.payload import new_payload
from nubila.services.identity import auth, compliance, login, mapping, methods, receipts
from nubila.services.identity.kinds_federation import MAPPING
from nubila.services.identity.proof import domain_of, find_user
from nubila.services.identity.revision import fresh

Row = dict[str, Any]
METHOD = "oauth2_credential"
PATH = "/v3/OS-OAUTH2/token"
_FAILED = "Client authentication failed."
_EMAIL = "1.2.840.113549.1.9.1"  # emailAddress (RFC 2985): it has no short name in RFC 4514


class _No(Exception):
    """A refusal in OAuth's words."""

    def __init__(self, error: str, description: str, status: int = 400) -> None:
        super().__init__(description)
        self.error, self.status = error, status


def thumbprint(der: bytes) -> str:
    """``x5t#S256`` of a certificate: the SHA-256 of its DER, base64url without padding (RFC 8705 section 3.1)."""
    return base64.urlsafe_b64encode(hashlib.sha256(der).digest()).rstrip(b"=").decode("ascii")


async def token(call: Call) -> Reply:
    """POST /v3/OS-OAUTH2/token."""
    try:
        access, expires = await _granted(call)
    except _No as e:
        headers = {"WWW-Authenticate": f'Keystone uri="{call.base}/v3"'} if e.status == 401 else {}
        return Reply({"error": e.error, "error_description": str(e)}, e.status, headers)
    life = max(0, int(expires - time.time()))
    body = {"access_token": access, "token_type": "Bearer", "expires_in": life}
    return Reply(body, 200, {"Cache-Control": "no-store"})


async def _granted(call: Call) -> tuple[str, float]:
    form = _form(call.body or b"")
    grant = form.get("grant_type")
    if not grant:
        raise _No("invalid_request", "The parameter grant_type is required.")
    if grant != "client_credentials":
        raise _No("unsupported_grant_type", f"grant_type: '{grant}' must be client_credentials.")
    client, secret = form.get("client_id"), form.get("client_secret")
    basic = _basic(call.headers.get("authorization", ""))
    if basic is not None:
        client, secret = basic
    if not client:
        raise _No("invalid_client", _FAILED, 401)
    if secret:
        return await _by_secret(call, client, secret)
    if call.client_cert:
        der = call.client_cert
        if call.cloud.store.embedded:
            return _by_certificate(call, client, der)
        return await asyncio.to_thread(_by_certificate, call, client, der)
    raise _No("invalid_client", _FAILED, 401)


def _form(body: bytes) -> dict[str, str]:
    """The parameters of the body; one that comes twice makes the request invalid (RFC 6749 section 3.2)."""
    try:
        found = parse_qs(body.decode("utf-8"), strict_parsing=bool(body), max_num_fields=20)
    except ValueError:
        raise _No("invalid_request", "The body must be a form (application/x-www-form-urlencoded).") from None
    if twice := sorted(k for k, v in found.items() if len(v) > 1):
        raise _No("invalid_request", f"The parameter {twice[0]} is there twice.")
    return {k: v[0] for k, v in found.items()}


def _basic(header: str) -> tuple[str, str] | None:
    scheme, _, rest = header.partition(" ")
    if scheme.lower() != "basic":
        return None
    try:
        text = base64.b64decode(rest.strip(), validate=True).decode("utf-8")
    except (binascii.Error, ValueError):
        raise _No("invalid_client", _FAILED, 401) from None
    client, colon, secret = text.partition(":")
    return (client, secret) if colon else None


async def _by_secret(call: Call, client: str, secret: str) -> tuple[str, float]:
    part = {"id": client, "secret": secret}
    identity = {"methods": ["application_credential"], "application_credential": part}
    call.body = {"auth": {"identity": identity}}
    try:
        got = await login.issue(call)
    except Fault as e:
        if e.status == 401:
            raise _No("invalid_client", e.message, 401) from None
        if e.status == 400:
            raise _No("invalid_request", e.message) from None
        raise
    made = got.headers.get("X-Subject-Token")
    if made is None:  # a receipt: more methods are asked for
        raise _No("invalid_client", _FAILED, 401)
    return made, call.cloud.keys.read(made).expires_at / 1e6


# --- by certificate ------------------------------------------------------------------------------------------------


def names(der: bytes) -> dict[str, list[str]]:
    """What mappings may ask about a certificate: ``SSL_CLIENT_SUBJECT_DN_CN``, ``SSL_CLIENT_ISSUER_DN_O`` ..."""
    certificate = x509.load_der_x509_certificate(der)
    out: dict[str, list[str]] = {}
    for who, name in (("SUBJECT", certificate.subject), ("ISSUER", certificate.issuer)):
        for attribute in name:
            short = "EMAILADDRESS" if attribute.oid.dotted_string == _EMAIL else attribute.rfc4514_attribute_name
            value = attribute.value
            text = value if isinstance(value, str) else value.decode("utf-8", "replace")
            out.setdefault(f"SSL_CLIENT_{who}_DN_{short.upper()}", []).append(text)
    return out


def _by_certificate(call: Call, client: str, der: bytes) -> tuple[str, float]:
    cloud = call.cloud
    refused = _No("invalid_client", _FAILED, 401)
    try:
        said = names(der)
    except ValueError:
        raise refused from None
    with cloud.store.read() as reader:
        row = reader.one(sa.select(MAPPING).where(MAPPING.c.id == cloud.settings.oauth2_cert_dn_mapping_id))
        user = find_user(reader, {"id": client})
        if row is None or user is None or not user["default_project_id"]:
            raise refused
        domain = domain_of(reader, {"id": user["domain_id"]})
        try:
            mapped = mapping.evaluate(row["rules"], said, row["schema_version"])
        except mapping.NotMapped:
            raise refused from None
        if domain is None or not _same(mapped.user, user, domain):
            raise refused
        if not compliance.usable(cloud, reader, user):
            raise refused
        asked = receipts.rules(user, methods.enabled(cloud.settings))
        if not receipts.satisfied(asked, [METHOD]):
            raise refused
        claims = new_payload(
            user["id"], (METHOD,), float(cloud.settings.token_ttl_s), project_id=user["default_project_id"],
            thumbprint=thumbprint(der),
        )  # fmt: skip
        fresh(cloud, reader)
        try:
            auth.resolve(cloud, reader, claims)
        except auth.Refused:
            raise refused from None
    return cloud.keys.issue(claims), claims.expires_at / 1e6


def _same(wanted: Row, user: Row, domain: Row) -> bool:
    """Whether the user is the one of the certificate: every property the mapping gives is his, one names him."""
    place = wanted.get("domain") or {}
    pairs = [
        (wanted.get("id"), user["id"]), (wanted.get("name"), user["name"]),
        (wanted.get("email"), (user["extra"] or {}).get("email")),
        (place.get("id"), domain["id"]), (place.get("name"), domain["name"]),
    ]  # fmt: skip
    named = wanted.get("id") or (wanted.get("name") and (place.get("id") or place.get("name")))
    return bool(named) and all(given in (None, "") or given == is_ for given, is_ in pairs)


ROUTES = (
    Route(
        method="POST", path=PATH, handler=token, doc="Get an access token for client credentials (OAuth 2.0).",
        auth=False, tx="", raw=True,
    ),
)  # fmt: skip
