"""Key pairs: imported, or generated with the private half given out once and never kept."""

from __future__ import annotations

import base64
import binascii
import functools
import hashlib
from datetime import UTC, datetime, timedelta
from typing import Any

import sqlalchemy as sa
from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from nubila.core import clock
from nubila.core.call import Call, Reply, Route, takes
from nubila.core.db import Conflict
from nubila.core.faults import Fault, bad_request, conflict, over_quota
from nubila.core.gates import Version
from nubila.services.compute import quotas, wire
from nubila.services.compute.kinds import KEYPAIR
from nubila.services.compute.wire import Row, obj
from nubila.services.identity import lookup as identity

RULE = "os_compute_api:os-keypairs"
_ONE = sa.select(KEYPAIR).where(KEYPAIR.c.user_id == sa.bindparam("user"), KEYPAIR.c.name == sa.bindparam("name"))
_COUNT = sa.select(sa.func.count()).where(KEYPAIR.c.user_id == sa.bindparam("user"))


@functools.cache
def _schema(version: Version) -> dict[str, Any]:
    name: Row = {"type": "string", "minLength": 1, "maxLength": 255, "pattern": r"^[a-zA-Z0-9 _-]+$"}
    if version >= (2, 92):
        name["pattern"] = r"^[a-zA-Z0-9 @._-]+$"
    inner: Row = {"name": name, "public_key": {"type": "string"}}
    required = ["name"]
    if version >= (2, 2):
        inner["type"] = {"enum": ["ssh", "x509"]}
    if version >= (2, 10):
        inner["user_id"] = {"type": "string", "minLength": 1, "maxLength": 255}
    if version >= (2, 92):
        required.append("public_key")
    return obj({"keypair": obj(inner, required)}, ["keypair"])


def fingerprint(public_key: str) -> str:
    """MD5 of an OpenSSH public key as pairs of hexadecimal digits. Raises 400 when it is not one."""
    parts = public_key.split()
    try:
        if len(parts) < 2:
            raise ValueError("it needs a type and the key")
        data = base64.b64decode(parts[1], validate=True)
        serialization.load_ssh_public_key(public_key.encode())
    except (ValueError, binascii.Error, UnsupportedAlgorithm) as e:
        raise bad_request(f"Keypair data is invalid: public_key is not an OpenSSH public key ({e})") from None
    digest = hashlib.md5(data, usedforsecurity=False).hexdigest()
    return ":".join(digest[i : i + 2] for i in range(0, 32, 2))


def generate() -> tuple[str, str]:
    """A fresh ed25519 key: (private half in OpenSSH form, public half)."""
    key = Ed25519PrivateKey.generate()
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.OpenSSH, serialization.NoEncryption()
    )
    public = key.public_key().public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)
    return private.decode(), public.decode()


def certificate(user: str) -> tuple[str, str]:
    """A fresh certificate of a user for logging in to Windows: (private key, certificate), both PEM."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, user[:64])])
    now = datetime.now(UTC)
    made = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now)
        .not_valid_after(now + timedelta(days=3650))
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH]), critical=False)
        .sign(key, hashes.SHA256())
    )
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    return private.decode(), made.public_bytes(serialization.Encoding.PEM).decode()


def certificate_fingerprint(pem: str) -> str:
    """SHA-1 of a PEM certificate as pairs of hexadecimal digits. Raises 400 when it is not one."""
    try:
        digest = x509.load_pem_x509_certificate(pem.encode()).fingerprint(hashes.SHA1()).hex()
    except ValueError as e:
        raise bad_request(
            f"Keypair data is invalid: public_key is not an X.509 certificate in PEM form ({e})"
        ) from None
    return ":".join(digest[i : i + 2] for i in range(0, 40, 2))


def _user(call: Call, rule: str, asked: str | None) -> str:
    """Whose keys are meant; another user's (from 2.10) needs the rule."""
    user = asked if asked is not None and call.version >= (2, 10) else str(call.creds.user_id)
    call.enforce(f"{RULE}:{rule}", {"user_id": user})
    return user


def _view(call: Call, row: Row) -> Row:
    out = {"name": row["name"], "public_key": row["public_key"], "fingerprint": row["fingerprint"]}
    if call.version >= (2, 2):
        out["type"] = row["type"]
    return out


@takes(_schema)
def create(call: Call) -> Reply:
    """Import a key, or generate one (before 2.92)."""
    given = wire.body(call, _schema)["keypair"]
    user = _user(call, "create", given.get("user_id"))
    if user != call.creds.user_id and identity.user(call.tx, user) is None:
        raise bad_request(f"User {user} could not be found.")
    name = given["name"]
    if name.strip() != name and call.version >= (2, 1):
        raise bad_request("Keypair data is invalid: name has leading or trailing blanks")
    most = quotas.limits(call.tx, wire.project_of(call))["key_pairs"]
    if 0 <= most <= int(call.tx.scalar(_COUNT, {"user": user}) or 0):
        raise over_quota("Quota exceeded, too many key pairs.", status=403)
    private = None
    kind = given.get("type") or "ssh"
    if given.get("public_key") is not None:
        public = given["public_key"].strip()
    elif kind == "x509":
        private, public = certificate(user)
    else:
        private, public = generate()
    row = {
        "id": clock.new_id(), "user_id": user, "name": name, "type": kind, "public_key": public,
        "fingerprint": certificate_fingerprint(public) if kind == "x509" else fingerprint(public),
        "created_at": clock.now(),
    }  # fmt: skip
    try:
        call.tx.insert(KEYPAIR, row)
    except Conflict:
        raise conflict(f"Key pair '{name}' already exists.") from None
    view = _view(call, row)
    view["user_id"] = user
    if private is not None:
        view["private_key"] = private
    return Reply({"keypair": view}, 200 if call.version < (2, 2) else 201)


def _find(call: Call, rule: str) -> Row:
    wire.known_query(call, ["user_id"] if call.version >= (2, 10) else [])
    user = _user(call, rule, call.arg("user_id"))
    row = call.tx.one(_ONE, {"user": user, "name": call.params["name"]})
    if row is None:
        raise Fault(404, f"Keypair {call.params['name']} not found for user {user}")
    return dict(row)


def show(call: Call) -> Row:
    """Show a key pair."""
    row = _find(call, "show")
    return {"keypair": {
        **_view(call, row), "user_id": row["user_id"], "id": int(row["id"][:7], 16), "deleted": False,
        "created_at": wire.plain(row["created_at"]), "deleted_at": None, "updated_at": None,
    }}  # fmt: skip


def delete(call: Call) -> Reply:
    """Delete a key pair; servers keep their copy."""
    row = _find(call, "delete")
    call.tx.execute(sa.delete(KEYPAIR).where(KEYPAIR.c.id == row["id"]))
    return Reply(None, 202 if call.version < (2, 2) else 204)


def index(call: Call) -> Row:
    """List a user's key pairs."""
    known = (["user_id"] if call.version >= (2, 10) else []) + (["limit", "marker"] if call.version >= (2, 35) else [])
    wire.known_query(call, known)
    user = _user(call, "index", call.arg("user_id"))
    statement = sa.select(KEYPAIR).where(KEYPAIR.c.user_id == user).order_by(KEYPAIR.c.name)
    if call.version < (2, 35):
        return {"keypairs": [{"keypair": _view(call, r)} for r in call.tx.all(statement)]}
    limit, marker = wire.limit_and_marker(call)
    if marker is not None:
        if call.tx.one(_ONE, {"user": user, "name": marker}) is None:
            raise bad_request(f"marker [{marker}] not found")
        statement = statement.where(KEYPAIR.c.name > marker)
    found = call.tx.all(statement.limit(limit))
    body: Row = {"keypairs": [{"keypair": _view(call, r)} for r in found]}
    if call.arg("limit") is not None and (following := wire.next_link(call, "/os-keypairs", found, limit, "name")):
        body["keypairs_links"] = following
    return body


def _route(method: str, path: str, handler: Any) -> Route:
    tx = "read" if method == "GET" else "write"
    return Route(method=method, path=f"/v2.1/os-keypairs{path}", handler=handler, doc=handler.__doc__ or "", tx=tx)


ROUTES = (
    _route("GET", "", index),
    _route("POST", "", create),
    _route("GET", "/{name}", show),
    _route("DELETE", "/{name}", delete),
)
