"""What ``nubila doctor`` asks about Identity: keys, certificates, clocks, whether the catalogue leads here."""

from __future__ import annotations

import os
import ssl
import stat
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path
from urllib.parse import urlsplit

import sqlalchemy as sa
from cryptography import x509

from nubila.apps import identity_ops, tls
from nubila.apps.checks import Check
from nubila.core import jws, keyfiles, pki, tokens
from nubila.core.cloud import Cloud
from nubila.core.config import Settings
from nubila.core.faults import Fault
from nubila.services.identity import catalog, credential_keys
from nubila.services.identity.kinds import CatalogService, Endpoint
from nubila.services.identity.ldap import registry
from nubila.services.identity.ldap.client import Rejected, Unreachable

SKEW_S = 5.0
OLD_DAYS = 180
SOON_DAYS = 21


def keys(state: Path, settings: Settings) -> Iterator[Check]:
    """Key repositories: there, readable by us alone, whole, not too old."""
    for kind in identity_ops.DIRECTORIES:
        wanted = kind != "jws" or settings.token_provider == "jws"
        if wanted or (state / "keys" / kind).is_dir():
            yield from _repository(state, kind)


def _repository(state: Path, kind: str) -> Iterator[Check]:
    name, again = f"{kind} keys", f"nubila key setup --kind {kind} --state {state}"
    try:
        _load(state, kind)
    except (keyfiles.KeysError, OSError) as e:
        yield Check(name, False, str(e), f"restore {state / 'keys' / kind} from a backup; without one: {again}")
        return
    found = [k for k in identity_ops.keys(state) if k["kind"] == kind]
    primary = next((k for k in found if k["for"] == "primary"), None)
    if not any(k["for"] == "staged" for k in found) or primary is None:
        yield Check(name, False, "half-rotated: the staged key is missing", again)
        return
    half = [str(p) for p in (state / "keys" / kind).rglob(".new-*")]
    days = primary["age_s"] / 86400
    yield Check(name, days < OLD_DAYS, f"primary {primary['number']}, {days:.0f} days old",
                f"nubila key rotate --kind {kind} --state {state}")  # fmt: skip
    if half:
        yield Check(f"{name} are whole", False, f"left by a rotation that was killed: {', '.join(half)}",
                    f"rm {' '.join(half)}")  # fmt: skip
    open_ = [p for p in _paths(state, kind) if stat.S_IMODE(p.stat().st_mode) & 0o077]
    yield Check(f"{name} are private", not open_, ", ".join(map(str, open_)),
                f"chmod go= {' '.join(map(str, open_))}")  # fmt: skip
    foreign = [p for p in _paths(state, kind) if p.stat().st_uid != state.stat().st_uid]
    yield Check(f"{name} belong to the cloud's user", not foreign, ", ".join(map(str, foreign)),
                f"chown {state.stat().st_uid} {' '.join(map(str, foreign))}")  # fmt: skip


def _load(state: Path, kind: str) -> None:
    directory = state / "keys" / kind
    if kind == "fernet":
        tokens.TokenKeys(directory)
    elif kind == "jws":
        jws.JwsKeys(directory)
    else:
        credential_keys.read(directory)


def _paths(state: Path, kind: str) -> list[Path]:
    out = []
    for part in identity_ops.DIRECTORIES[kind]:
        if part not in identity_ops.NOT_SECRET:
            directory = state / "keys" / part
            out += [directory, *(directory / name for name in sorted(os.listdir(directory)))]
    return [p for p in out if p.is_file() or p.is_dir()]


def certificate(state: Path, settings: Settings) -> Iterator[Check]:
    """The listeners' certificate: usable, not about to end, for the name that clients use."""
    found = tls.files(settings, state)
    if found is None:
        return
    try:
        tls.context(settings, state)
        made = x509.load_pem_x509_certificate(found[0].read_bytes())
    except (ValueError, OSError) as e:
        yield Check("TLS certificate", False, str(e), "correct the setting or the file, then `nubila reload`")
        return
    days = pki.days_left(made)
    yield Check("TLS certificate", days > SOON_DAYS, f"{found[0]} ends in {days:.0f} days",
                "put a new one in its place, then `nubila reload`")  # fmt: skip
    host = urlsplit(settings.public_url).hostname
    if host:
        yield Check("TLS certificate names the public URL", _covers(pki.names_of(made), host), host,
                    f"get a certificate for {host}, or set public_url to a name it has")  # fmt: skip


def _covers(names: set[str], host: str) -> bool:
    return host in names or any(n.startswith("*.") and host.partition(".")[2] == n[2:] for n in names)


def clocks(cloud: Cloud) -> Iterator[Check]:
    """Whether the database server agrees on the time: tokens and leases are compared with clocks."""
    if cloud.store.embedded:
        return
    before = time.time()
    with cloud.store.read() as reader:
        if cloud.store.dialect == "postgresql":
            at = reader.scalar(sa.text("SELECT EXTRACT(EPOCH FROM clock_timestamp())"))
        else:
            at = reader.scalar(sa.text("SELECT UNIX_TIMESTAMP(SYSDATE(3))"))
    yield _skew("the database server", float(at) - (before + time.time()) / 2)


def _skew(whose: str, ahead_s: float) -> Check:
    return Check(f"clock of {whose}", abs(ahead_s) < SKEW_S, f"{ahead_s:+.1f} s to ours",
                 "run a time service (chrony, systemd-timesyncd) on both")  # fmt: skip


def clock_of(url: str) -> Check:
    """Whether the controller at this URL agrees on the time (asked on a joined host)."""
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE  # only the Date header of a public page
    try:
        with urllib.request.urlopen(f"{url}/host/ca", timeout=5, context=context) as answer:
            at = parsedate_to_datetime(answer.headers["Date"])
    except (OSError, ValueError, TypeError) as e:
        return Check("clock of the controller", False, f"{url} does not answer: {e}", "see why the controller is away")
    return _skew("the controller", (at - datetime.now(UTC)).total_seconds() + 0.5)


def catalogue(cloud: Cloud, *, up: bool) -> Iterator[Check]:
    """Whether the public endpoints of Identity lead to an Identity service."""
    with cloud.store.read() as reader:
        rows = reader.all(
            sa.select(Endpoint.table.c.url, Endpoint.table.c.region_id)
            .join(CatalogService.table, CatalogService.table.c.id == Endpoint.table.c.service_id)
            .where(CatalogService.table.c.type == "identity", Endpoint.table.c.interface == "public",
                   Endpoint.table.c.enabled.is_(True), CatalogService.table.c.enabled.is_(True))
        )  # fmt: skip
    fix = "nubila identity bootstrap --keep-password"
    if not rows:
        yield Check("catalogue", False, "it has no public endpoint of Identity", fix)
        return
    public = cloud.settings.public_url.rstrip("/")
    fixed = sorted({r["url"] for r in rows if not r["url"].startswith(catalog.BASE)} | ({public + "/v3"} - {"/v3"}))
    wrong = [f"{url}: {why}" for url in fixed if up and (why := _not_identity(url))]
    yield Check("catalogue", not wrong, "; ".join(wrong) or ", ".join(fixed) or "follows the request",
                f"correct public_url or the endpoint (openstack endpoint set), or: {fix} --public-url URL")  # fmt: skip


def directories(cloud: Cloud) -> Iterator[Check]:
    """Whether each domain's LDAP directory answers and lets us look for a user."""
    wrong = registry.problems(cloud.settings.ldap)
    if wrong:
        yield Check("directories", False, "; ".join(wrong), f"correct [ldap.*] in {cloud.state / 'nubila.toml'}")
    with cloud.store.read() as reader:
        found = list(registry.directories(cloud, reader).values())
    for directory in found:
        name = f"directory of domain {directory.name}"
        try:
            directory.usable()
            directory.person_named("nubila-doctor")
        except (Fault, Unreachable, Rejected) as e:
            yield Check(name, False, str(e), "see that its server runs and the options of the domain are right")
        else:
            yield Check(name, True)
        finally:
            directory.close()


def _not_identity(url: str) -> str:
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE  # trust is the client's business
    try:
        with urllib.request.urlopen(url, timeout=5, context=context) as answer:
            return "" if b'"version' in answer.read(4096) else "not an Identity service answers"
    except urllib.error.HTTPError as e:
        return f"answers {e.code}"
    except (OSError, ValueError) as e:
        return str(e)
