"""TLS of the API listeners: one context whose certificates can be replaced while connections are open."""

from __future__ import annotations

import contextlib
import socket
import ssl
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from cryptography import x509
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from nubila.core import pki
from nubila.core.config import BadSetting, Settings

AUTO = "auto"


class ClientCertificates(HttpToolsProtocol):
    """HTTP over TLS; the scope's ``nubila.client_cert`` is the DER of the client certificate that was verified."""

    _der: bytes | None = None

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        tls = transport.get_extra_info("ssl_object")
        self._der = tls.getpeercert(binary_form=True) if tls is not None else None

    def on_message_begin(self) -> None:
        super().on_message_begin()
        if self._der:
            self.scope["nubila.client_cert"] = self._der  # type: ignore[typeddict-unknown-key]


class Context(ssl.SSLContext):
    """A server context that hands each new connection to ``now``; open connections keep what they began with."""

    now: ssl.SSLContext

    def __new__(cls, now: ssl.SSLContext) -> Context:
        made = super().__new__(cls, ssl.PROTOCOL_TLS_SERVER)
        made.now = now
        return made

    def __init__(self, now: ssl.SSLContext) -> None:
        pass

    def wrap_bio(self, *args: Any, **options: Any) -> ssl.SSLObject:
        """One new connection (what event loops call)."""
        return self.now.wrap_bio(*args, **options)


def absolute(options: Mapping[str, Any]) -> dict[str, Any]:
    """Options of a command with file names made absolute; those in settings are relative to the state directory."""
    names = ("tls_cert", "tls_key", "tls_ca", "tls_client_ca", "tls_client_crl")
    return {k: str(Path(v).absolute()) if k in names and v and v != AUTO else v for k, v in options.items()}


def files(settings: Settings, state: Path) -> tuple[Path, Path | None] | None:
    """Certificate and key file (None: in the certificate's) as the settings say; None without TLS."""
    if not settings.tls_cert:
        return None
    if settings.tls_cert == AUTO:
        return state / "keys" / "tls" / "server.pem", state / "keys" / "tls" / "server.key"
    return state / settings.tls_cert, state / settings.tls_key if settings.tls_key else None


def cacert(settings: Settings, state: Path) -> str:
    """The CA file clients need, "" for what they trust anyway."""
    if settings.tls_cert == AUTO:
        return str(state / "keys" / "tls" / "ca.pem")
    return str(state / settings.tls_ca) if settings.tls_cert and settings.tls_ca else ""


def make_own(settings: Settings, state: Path, names: Callable[[str], list[str]]) -> None:
    """With ``tls_cert = "auto"``: certificate and key by an authority of the cloud's own, unless they still hold."""
    if settings.tls_cert != AUTO:
        return
    directory = state / "keys" / "tls"
    authority = pki.Authority(directory, settings.name, "API authority")
    wanted = names(settings.listen)
    if settings.public_url and (host := urlsplit(settings.public_url).hostname):
        wanted.append(host)
    cert = directory / "server.pem"
    if cert.exists() and (directory / "server.key").exists():
        found = x509.load_pem_x509_certificate(cert.read_bytes())
        if pki.names_of(found) >= set(wanted) and pki.days_left(found) > 30:
            return
    authority.listener(wanted)


def listener_names(listen: str) -> list[str]:
    """The names by which clients may reach a listener: its address, this machine's names and addresses."""
    address = listen.rpartition(":")[0].strip("[]") or "127.0.0.1"
    names = [socket.gethostname(), "localhost", "127.0.0.1", "::1"]
    if address in ("0.0.0.0", "::"):
        with contextlib.suppress(OSError):
            found = socket.getaddrinfo(socket.gethostname(), None)
            names += sorted({str(a[4][0]).partition("%")[0] for a in found})
    else:
        names.insert(0, address)
    return list(dict.fromkeys(names))


def context(settings: Settings, state: Path) -> ssl.SSLContext | None:
    """The context for these settings, None without TLS. Raises BadSetting: one sentence with file and fix."""
    found = files(settings, state)
    if found is None:
        if settings.tls_client_ca or settings.tls_client_required:
            raise BadSetting("tls_client_ca and tls_client_required need tls_cert: name the listener's certificate")
        return None
    certificate, key = found
    made = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    made.minimum_version = ssl.TLSVersion.TLSv1_2
    _readable("tls_cert", certificate)
    if key is not None:
        _readable("tls_key", key)
    try:
        made.load_cert_chain(certificate, key, password=_no_password)
    except _Encrypted:
        raise BadSetting(f"tls_key: {key or certificate} is encrypted: decrypt it (openssl pkey), mode 0600") from None
    except ssl.SSLError as e:
        if "MISMATCH" in str(e):
            raise BadSetting(f"tls_key: {key or certificate} is not the key of {certificate}") from None
        raise BadSetting(f"tls_cert: {certificate} with key {key or certificate} cannot be used: {e}") from None
    if settings.tls_client_required and not settings.tls_client_ca:
        raise BadSetting("tls_client_required needs tls_client_ca: the CA whose certificates clients may have")
    if settings.tls_client_ca:
        _clients(made, settings, state)
    return made


def _clients(made: ssl.SSLContext, settings: Settings, state: Path) -> None:
    made.verify_mode = ssl.CERT_REQUIRED if settings.tls_client_required else ssl.CERT_OPTIONAL
    for name in ("tls_client_ca", "tls_client_crl"):
        if text := getattr(settings, name):
            path = state / text
            _readable(name, path)
            try:
                made.load_verify_locations(path)
            except ssl.SSLError as e:
                raise BadSetting(f"{name}: {path} cannot be used: {e}") from None
    if settings.tls_client_crl:
        made.verify_flags |= ssl.VerifyFlags.VERIFY_CRL_CHECK_LEAF


class _Encrypted(Exception):
    pass


def _no_password() -> str:
    raise _Encrypted


def _readable(name: str, path: Path) -> None:
    try:
        path.open("rb").close()
    except OSError as e:
        raise BadSetting(f"{name}: {path} cannot be read: {e.strerror}") from None
