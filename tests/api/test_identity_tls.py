"""TLS on the API listeners: certificates of both sides, and reloading all of it while clients talk."""

from __future__ import annotations

import asyncio
import hashlib
import http.client
import json
import os
import signal
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from nubila.apps import lifecycle, logs, server, supervisor, tls
from nubila.core import pki
from nubila.core.config import BadSetting, Settings
from nubila.testing.started import Started, free_port, nubila, started


def until(condition: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline, f"never: {what}"
        time.sleep(0.02)


class Certificates:
    """A CA for servers, one for clients, a foreign one, and what they signed."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.servers = pki.Authority(root / "servers", "test", "servers")
        self.clients = pki.Authority(root / "clients", "test", "clients")
        self.strangers = pki.Authority(root / "strangers", "test", "strangers")
        self.server = root / "server.pem"  # certificate and key in one file
        self.new_server()

    def new_server(self) -> None:
        key = pki.new_key()
        pem = self.servers.sign("localhost", key.public_key(), server=True, names=["localhost", "127.0.0.1"])
        pki.private_write(self.server, pem + pki.key_pem(key))

    def client(self, name: str, authority: pki.Authority | None = None) -> Path:
        key, path = pki.new_key(), self.root / f"{name}.pem"
        pem = (authority or self.clients).sign(name, key.public_key(), server=False, names=[name])
        pki.private_write(path, pem + pki.key_pem(key))
        return path

    def revoke(self, certificate: Path) -> Path:
        found = x509.load_pem_x509_certificate(certificate.read_bytes())
        key = serialization.load_pem_private_key((self.root / "clients" / "ca.key").read_bytes(), None)
        assert isinstance(key, ec.EllipticCurvePrivateKey)
        now = datetime.now(UTC)
        one = x509.RevokedCertificateBuilder().serial_number(found.serial_number).revocation_date(now).build()
        crl = (
            x509.CertificateRevocationListBuilder()
            .issuer_name(self.clients.certificate.subject)
            .last_update(now - timedelta(hours=1))
            .next_update(now + timedelta(days=1))
            .add_revoked_certificate(one)
            .sign(key, hashes.SHA256())
        )
        path = self.root / "clients.crl"
        path.write_bytes(crl.public_bytes(serialization.Encoding.PEM))
        return path

    def settings(self, **more: Any) -> Settings:
        return Settings(tls_cert=str(self.server), tls_client_ca=str(self.root / "clients" / "ca.pem"), **more)

    def trust(self, certificate: Path | None = None) -> ssl.SSLContext:
        made = ssl.create_default_context(cafile=str(self.root / "servers" / "ca.pem"))
        if certificate is not None:
            made.load_cert_chain(certificate)
        return made


@pytest.fixture
def certificates(tmp_path: Path) -> Certificates:
    return Certificates(tmp_path)


# --- who shows which certificate --------------------------------------------------------------------------------------


async def _echo(scope: Any, receive: Any, send: Any) -> None:
    shown = scope.get("nubila.client_cert")
    body = hashlib.sha256(shown).hexdigest().encode() if shown else b"nobody"
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % len(body))]})
    await send({"type": "http.response.body", "body": body})


def ask(context: tls.Context, *clients: ssl.SSLContext) -> list[str]:
    """What the listener says to each client: whom it saw, or "refused"."""

    def one(port: int, client: ssl.SSLContext) -> str:
        connection = http.client.HTTPSConnection("127.0.0.1", port, context=client, timeout=10)
        try:
            connection.request("GET", "/")
            return connection.getresponse().read().decode()
        except (OSError, http.client.HTTPException):
            return "refused"
        finally:
            connection.close()

    async def main() -> list[str]:
        sock = supervisor.listen("127.0.0.1:0")
        config = server._config(
            _echo, lifespan="off", http=tls.ClientCertificates, ssl_context_factory=lambda *_: context
        )
        running = server._Server(config)
        task = asyncio.create_task(running.serve(sockets=[sock]))
        try:
            return [await asyncio.to_thread(one, sock.getsockname()[1], c) for c in clients]
        finally:
            running.should_exit = True
            await task

    return asyncio.run(main())


def listening(settings: Settings, state: Path) -> tls.Context:
    made = tls.context(settings, state)
    assert made is not None
    return tls.Context(made)


@pytest.mark.req("A/ID-28", "C/ARCH-16")
@pytest.mark.req("A/ID-30")
@pytest.mark.req("A/ID-62")
def test_client_certificates(certificates: Certificates, tmp_path: Path) -> None:
    mine, other = certificates.client("alice"), certificates.client("mallory", certificates.strangers)
    gone = certificates.client("gone")
    crl = certificates.revoke(gone)
    shown = pki.fingerprint(mine.read_bytes())
    asking = [certificates.trust(c) for c in (None, mine, other, gone)]
    optional = listening(certificates.settings(), tmp_path)
    assert ask(optional, *asking[:3]) == ["nobody", shown, "refused"]
    required = listening(certificates.settings(tls_client_required=True, tls_client_crl=str(crl)), tmp_path)
    assert ask(required, *asking) == ["refused", shown, "refused", "refused"]
    not_asked = listening(Settings(tls_cert=str(certificates.server)), tmp_path)
    assert ask(not_asked, *asking[:2]) == ["nobody", "nobody"]


def test_what_cannot_be_used_is_said_in_a_sentence(certificates: Certificates, tmp_path: Path) -> None:
    other = tmp_path / "other.key"
    other.write_bytes(pki.key_pem(pki.new_key()))
    locked = tmp_path / "locked.key"
    locked.write_bytes(
        pki.new_key().private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.BestAvailableEncryption(b"x")
        )
    )
    junk = tmp_path / "junk.pem"
    junk.write_text("no certificate")
    cert = str(certificates.server)
    for settings, words in (
        (Settings(tls_cert=str(tmp_path / "none.pem")), "tls_cert: .*none.pem cannot be read: No such file"),
        (Settings(tls_cert=str(junk)), "tls_cert: .*junk.pem with key .* cannot be used"),
        (Settings(tls_cert=cert, tls_key=str(other)), "tls_key: .*other.key is not the key of .*server.pem"),
        (Settings(tls_cert=cert, tls_key=str(locked)), "tls_key: .*locked.key is encrypted: decrypt it"),
        (Settings(tls_cert=cert, tls_client_ca=str(junk)), "tls_client_ca: .*junk.pem cannot be used"),
        (Settings(tls_cert=cert, tls_client_required=True), "tls_client_required needs tls_client_ca"),
        (Settings(tls_client_ca=cert), "need tls_cert"),
    ):
        with pytest.raises(BadSetting, match=words):
            tls.context(settings, tmp_path)
    with pytest.raises(lifecycle.Cannot, match=r"tls_cert: .*none.pem cannot be read"):
        lifecycle.up(tmp_path / "state", {"tls_cert": str(tmp_path / "none.pem"), "gear": "simulated",
                                          "listen": f"127.0.0.1:{free_port()}"})  # fmt: skip
    assert not (tmp_path / "state").exists()


def test_full_logs_make_room(tmp_path: Path) -> None:
    for n in range(5):
        (tmp_path / "a.log").write_text(f"{n}" * 10)
        (tmp_path / "b.log").write_text("x")
        assert logs.rotate(tmp_path, 10, 2) == ["a.log"]
    assert {p.name: p.read_text() for p in tmp_path.iterdir()} == {
        "a.log": "", "a.log.1": "4" * 10, "a.log.2": "3" * 10, "b.log": "x",
    }  # fmt: skip


# --- a running cloud --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def secure(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Started, Certificates]]:
    made = Certificates(tmp_path_factory.mktemp("pki"))
    options = ["--tls-cert", str(made.server), "--tls-ca", str(made.root / "servers" / "ca.pem")]
    with started("simulated", "tlsy", [*options, "--tls-client-ca", str(made.root / "clients" / "ca.pem")]) as cloud:
        yield cloud, made


def connect(cloud: Started, certificates: Certificates) -> http.client.HTTPSConnection:
    port = int(cloud.auth_url.rpartition(":")[2].partition("/")[0])
    return http.client.HTTPSConnection("127.0.0.1", port, context=certificates.trust(), timeout=20)


def login(cloud: Started, connection: http.client.HTTPSConnection) -> dict[str, Any]:
    auth = cloud.auth()
    body = {"auth": {"identity": {"methods": ["password"], "password": {"user": {
        "name": auth["username"], "domain": {"id": "default"}, "password": auth["password"]}}}}}  # fmt: skip
    connection.request("POST", "/v3/auth/tokens", json.dumps(body), {"Content-Type": "application/json"})
    answer = connection.getresponse()
    data = answer.read()
    assert answer.status == 201, data
    token: dict[str, Any] = json.loads(data)["token"]
    return token


def serial(connection: http.client.HTTPSConnection) -> int:
    if connection.sock is None:
        connection.connect()
    der: Any = connection.sock.getpeercert(binary_form=True)
    return x509.load_der_x509_certificate(der).serial_number


def lifetime_s(token: dict[str, Any]) -> float:
    issued, expires = (datetime.fromisoformat(token[k].replace("Z", "+00:00")) for k in ("issued_at", "expires_at"))
    return (expires - issued).total_seconds()


def test_clients_are_told_how_to_verify(secure: tuple[Started, Certificates]) -> None:
    cloud, certificates = secure
    found = yaml.safe_load(cloud.clouds_yaml.read_text())["clouds"]
    ca = str(certificates.root / "servers" / "ca.pem")
    assert {c["cacert"] for c in found.values()} == {ca}
    assert cloud.auth_url.startswith("https://127.0.0.1:")
    exports = nubila("openrc", "--state", str(cloud.state)).stdout
    assert f"export OS_CACERT={ca}\n" in exports
    assert "export OS_AUTH_URL=https://" in exports
    assert nubila("status", "--state", str(cloud.state)).returncode == 0
    connection = connect(cloud, certificates)
    assert serial(connection)
    connection.close()


@pytest.mark.req("A/ID-39")
def test_a_reload_drops_nothing(secure: tuple[Started, Certificates]) -> None:
    cloud, certificates = secure
    stop, failed, done = threading.Event(), [], []

    def talk() -> None:
        kept = connect(cloud, certificates)
        while not stop.is_set():
            fresh = connect(cloud, certificates)
            for one in (kept, fresh):
                try:
                    one.request("GET", "/v3")
                    answer = one.getresponse()
                    answer.read()
                    if answer.status != 200:
                        failed.append(str(answer.status))
                    done.append(1)
                except (OSError, http.client.HTTPException) as e:
                    failed.append(f"{type(e).__name__}: {e}")
            fresh.close()
        kept.close()

    old = connect(cloud, certificates)
    before = serial(old)
    assert lifetime_s(login(cloud, old)) == 3600
    threads = [threading.Thread(target=talk) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        for n in range(3):
            certificates.new_server()
            (cloud.state / "nubila.toml").write_text(f"token_ttl_s = {600 + n}\nlog_max_bytes = 1\n")
            said = nubila("reload", "--state", str(cloud.state))
            assert said.returncode == 0, said.stderr

            def renewed(n: int = n) -> bool:
                fresh = connect(cloud, certificates)
                try:
                    return serial(fresh) != before and lifetime_s(login(cloud, fresh)) == 600 + n
                finally:
                    fresh.close()

            until(renewed, "the new certificate and settings are in use")
    finally:
        stop.set()
        for thread in threads:
            thread.join(30)
    assert failed == []
    assert len(done) > 20
    assert serial(old) == before
    assert lifetime_s(login(cloud, old)) == 602
    old.close()
    log = cloud.state / "log"
    assert {"server.log.1", "access.log.1"} <= {p.name for p in log.iterdir()}
    until(lambda: b"/v3/auth/tokens" in (log / "access.log").read_bytes(), "the access log goes on in its new file")


def test_a_reload_of_nonsense_changes_nothing(secure: tuple[Started, Certificates]) -> None:
    cloud, certificates = secure
    with_good = connect(cloud, certificates)
    before = serial(with_good)
    with_good.close()
    good = certificates.server.read_bytes()
    try:
        certificates.server.write_bytes(good[:300])
        said = nubila("reload", "--state", str(cloud.state))
        assert said.returncode == 2
        assert said.stderr.startswith("nubila: tls_cert: ")
        assert said.stderr.count("\n") == 1
        os.kill(supervisor.running(cloud.state) or 0, signal.SIGHUP)  # not asked beforehand: the server notices
        until(lambda: "not reloaded" in (cloud.state / "log" / "server.log").read_text(), "the log says so")
        again = connect(cloud, certificates)
        assert serial(again) == before
        again.close()
        (cloud.state / "nubila.toml").write_text("token_tt1_s = 1\n")
        said = nubila("reload", "--state", str(cloud.state))
        assert said.returncode == 2
        assert "did you mean token_ttl_s?" in said.stderr
    finally:
        certificates.server.write_bytes(good)
        (cloud.state / "nubila.toml").write_text("")


def test_a_certificate_of_its_own() -> None:
    with started("simulated", "tlsa", ["--tls-cert", "auto"]) as cloud:
        found = yaml.safe_load(cloud.clouds_yaml.read_text())["clouds"]["nubila-admin"]
        assert found["cacert"] == str(cloud.state / "keys" / "tls" / "ca.pem")
        assert (cloud.state / "keys" / "tls" / "server.key").stat().st_mode & 0o777 == 0o600
        context = ssl.create_default_context(cafile=found["cacert"])
        context.verify_flags |= ssl.VERIFY_X509_STRICT
        port = int(cloud.auth_url.rpartition(":")[2].partition("/")[0])
        connection = http.client.HTTPSConnection("127.0.0.1", port, context=context, timeout=20)
        assert lifetime_s(login(cloud, connection)) == 3600
        connection.close()
