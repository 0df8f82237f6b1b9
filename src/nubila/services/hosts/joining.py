"""Join tokens: made by the operator, used once, name the cloud by its authority's fingerprint.

A token is ``<secret>.<CA fingerprint>``. The joining host checks the CA it is shown against the fingerprint before it
sends the secret; the cloud keeps only the secret's SHA-256.
"""

from __future__ import annotations

import hashlib
import re
import secrets
import time

import sqlalchemy as sa

from nubila.core import clock, hosts, pki
from nubila.core.db import Tx
from nubila.core.faults import Fault, bad_request, conflict, forbidden
from nubila.services.hosts.tables import TOKEN

TTL_S = 3600.0
_TOKEN = sa.select(TOKEN).where(TOKEN.c.digest == sa.bindparam("digest"))


def _digest(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()


def make_token(tx: Tx, authority: pki.Authority, *, host: str | None, roles: list[str], ttl_s: float = TTL_S) -> str:
    """A new token; it is not kept anywhere in clear."""
    secret = secrets.token_urlsafe(24)
    tx.execute(sa.delete(TOKEN).where(TOKEN.c.expires < time.time() - 7 * 86400))
    tx.insert(TOKEN, {
        "digest": _digest(secret), "host": host, "roles": roles, "expires": time.time() + ttl_s, "used_by": None,
        "created_at": clock.now(),
    })  # fmt: skip
    return f"{secret}.{authority.fingerprint}"


def join(tx: Tx, authority: pki.Authority, *, secret: str, host: str, csr: str) -> tuple[str, list[str]]:
    """Use a token: the host's certificate in PEM and the roles it was given. Raises 400, 403 or 409."""
    if not re.fullmatch(r"[A-Za-z0-9]([A-Za-z0-9.-]{0,61}[A-Za-z0-9])?", host):
        raise bad_request(f"'{host}' is not a host name.")
    row = tx.one(_TOKEN, {"digest": _digest(secret)})
    if row is None:
        raise forbidden("This join token is not one of this cloud's; make one with `nubila host token create`.")
    if row["expires"] < time.time():
        raise forbidden("This join token has expired; make a new one with `nubila host token create`.")
    if row["host"] is not None and row["host"] != host:
        raise forbidden(f"This join token is for host {row['host']}, not {host}.")
    used = tx.execute(
        sa.update(TOKEN).where(TOKEN.c.digest == row["digest"], TOKEN.c.used_by.is_(None)).values(used_by=host)
    )
    if not used:
        raise forbidden("This join token has been used already; make a new one with `nubila host token create`.")
    known = hosts.get(tx, host)
    if known is not None and known["state"] != "removed" and row["host"] is None:
        raise conflict(
            f"A host named {host} has joined already; make a token with `--host {host}` to let it join again."
        )
    try:
        certificate = authority.sign_request(csr.encode(), host).decode()
    except pki.BadRequestFile as e:
        raise Fault(400, f"csr: {e}.") from None
    hosts.report(
        tx, host, roles=row["roles"], tunnel_ip="", bridges={}, capabilities={},
        certificate=pki.fingerprint(certificate.encode()),
    )  # fmt: skip
    tx.execute(
        sa.update(hosts.TABLE)
        .where(hosts.TABLE.c.name == host, hosts.TABLE.c.state == "removed")
        .values(state="enabled")
    )
    return certificate, list(row["roles"])
