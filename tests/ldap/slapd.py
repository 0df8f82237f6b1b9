"""A real OpenLDAP server for tests: its own folder, configuration, certificates and ports; ended by its pid."""

from __future__ import annotations

import contextlib
import ipaddress
import os
import shutil
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from nubila.testing.started import free_port

SUFFIX = "dc=example,dc=org"
ROOT = f"cn=root,{SUFFIX}"
READER = f"cn=reader,{SUFFIX}"
PASSWORD = "root-secret"
READER_PASSWORD = "reader-secret"
SLAPD = shutil.which("slapd", path="/usr/sbin:/usr/bin:/usr/local/sbin:/opt/sbin") or ""
MODULES = "/usr/lib/ldap"
SCHEMAS = Path("/etc/ldap/schema")

CONF = """
{schemas}
attributetype ( 1.2.840.113556.1.4.8 NAME 'userAccountControl' EQUALITY integerMatch
  SYNTAX 1.3.6.1.4.1.1466.115.121.1.27 SINGLE-VALUE )
attributetype ( 1.3.6.1.4.1.4203.666.1.900 NAME 'enabled' EQUALITY booleanMatch
  SYNTAX 1.3.6.1.4.1.1466.115.121.1.7 SINGLE-VALUE )
objectclass ( 1.3.6.1.4.1.4203.666.3.900 NAME 'switched' SUP top AUXILIARY MAY ( userAccountControl $ enabled ) )
modulepath {modules}
moduleload back_mdb
pidfile {root}/pid
allow bind_anon_cred
sizelimit size.soft=500 size.hard=500 size.pr=1000 size.prtotal=unlimited
{tls}
database mdb
maxsize 268435456
suffix "{suffix}"
rootdn "{rootdn}"
rootpw {rootpw}
directory {root}/db
dbnosync
index objectClass,uid,cn,member eq
access to attrs=userPassword by self write by anonymous auth by * none
access to * by * read
"""

BASE = """dn: {suffix}
objectClass: domain
dc: example

dn: cn=reader,{suffix}
objectClass: person
cn: reader
sn: reader
userPassword: {reader}

dn: ou=Users,{suffix}
objectClass: organizationalUnit
ou: Users

dn: ou=UserGroups,{suffix}
objectClass: organizationalUnit
ou: UserGroups
"""


def authority(folder: Path, name: str) -> tuple[Path, x509.Certificate, ec.EllipticCurvePrivateKey]:
    """A CA certificate in a file, and what signs with it."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = datetime.now(UTC)
    cert = (
        x509.CertificateBuilder().subject_name(subject).issuer_name(subject).public_key(key.public_key())
        .serial_number(x509.random_serial_number()).not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=2)).add_extension(x509.BasicConstraints(True, None), critical=True)
        .sign(key, hashes.SHA256())
    )  # fmt: skip
    path = folder / f"{name}.pem"
    path.write_bytes(cert.public_bytes(serialization.Encoding.PEM))
    return path, cert, key


def certificate(
    folder: Path, name: str, ca: x509.Certificate, ca_key: ec.EllipticCurvePrivateKey, *, names: bool = True
) -> tuple[Path, Path]:
    """(certificate, key) files of a server at 127.0.0.1 and localhost, or of one with another name."""
    key = ec.generate_private_key(ec.SECP256R1())
    now = datetime.now(UTC)
    alternatives: list[x509.GeneralName] = (
        [x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
        if names else [x509.DNSName("elsewhere.example.org")]
    )  # fmt: skip
    cert = (
        x509.CertificateBuilder().subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")]))
        .issuer_name(ca.subject).public_key(key.public_key()).serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1)).not_valid_after(now + timedelta(days=2))
        .add_extension(x509.SubjectAlternativeName(alternatives), critical=False)
        .sign(ca_key, hashes.SHA256())
    )  # fmt: skip
    path, key_path = folder / f"{name}.pem", folder / f"{name}.key"
    path.write_bytes(cert.public_bytes(serialization.Encoding.PEM))
    key_path.write_bytes(key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    ))  # fmt: skip
    key_path.chmod(0o600)
    return path, key_path


class Slapd:
    """One server. ``certificate`` = (certificate, key, CA) files, None = a server without TLS."""

    def __init__(self, root: Path, *, certificate: tuple[Path, Path, Path] | None = None, ldif: str = "") -> None:
        self.root = root
        (root / "db").mkdir(parents=True)
        self.port, self.tls_port = free_port(), free_port()
        self.certificate = certificate
        tls = ""
        if certificate:
            cert, key, ca = certificate
            tls = f"TLSCertificateFile {cert}\nTLSCertificateKeyFile {key}\nTLSCACertificateFile {ca}"
        schemas = "\n".join(
            f"include {SCHEMAS / n}.schema" for n in ("core", "cosine", "inetorgperson", "nis")
            if (SCHEMAS / f"{n}.schema").exists()
        )  # fmt: skip
        self.conf = root / "slapd.conf"
        self.conf.write_text(CONF.format(
            schemas=schemas, modules=MODULES, root=root, tls=tls, suffix=SUFFIX, rootdn=ROOT, rootpw=PASSWORD
        ))  # fmt: skip
        self.conf.chmod(0o600)
        seed = root / "seed.ldif"
        seed.write_text(BASE.format(suffix=SUFFIX, reader=READER_PASSWORD) + "\n" + ldif)
        subprocess.run(
            [SLAPD, "-T", "add", "-q", "-f", self.conf, "-l", seed], check=True, timeout=60, capture_output=True
        )
        self.process: subprocess.Popen[bytes] | None = None
        self.start()

    @property
    def url(self) -> str:
        """Where it answers in the clear and with StartTLS."""
        return f"ldap://127.0.0.1:{self.port}"

    @property
    def ldaps(self) -> str:
        """Where it answers with TLS only."""
        return f"ldaps://127.0.0.1:{self.tls_port}"

    @property
    def ldapi(self) -> str:
        """Its Unix socket."""
        return f"ldapi://{str(self.root / 'sock').replace('/', '%2F')}"

    def start(self) -> None:
        """Start it and wait until it answers."""
        urls = f"{self.url} {self.ldapi}" + (f" {self.ldaps}" if self.certificate else "")
        self.process = subprocess.Popen(
            [SLAPD, "-d", "0", "-h", urls, "-f", self.conf], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        deadline = time.monotonic() + 15
        while True:
            try:
                socket.create_connection(("127.0.0.1", self.port), 1).close()
                return
            except OSError:
                if self.process.poll() is not None or time.monotonic() > deadline:
                    raise
                time.sleep(0.01)

    def stop(self) -> None:
        """End it."""
        if self.process is not None:
            with contextlib.suppress(ProcessLookupError):
                self.process.send_signal(signal.SIGCONT)
                self.process.terminate()
            try:
                self.process.wait(10)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait(10)
            self.process = None

    def freeze(self) -> None:
        """Let it hang: connections are accepted by the kernel, nothing answers."""
        assert self.process is not None
        os.kill(self.process.pid, signal.SIGSTOP)

    def thaw(self) -> None:
        """Let it go on."""
        assert self.process is not None
        os.kill(self.process.pid, signal.SIGCONT)

    def change(self, ldif: str) -> None:
        """Change the directory behind everybody's back (LDIF with changetype, or whole entries to add)."""
        subprocess.run(
            ["ldapmodify", "-x", "-H", self.url, "-D", ROOT, "-y", self._secret(), *self._adds(ldif)],
            input=ldif.encode(), check=True, timeout=20, capture_output=True,
        )  # fmt: skip

    def show(self, name: str) -> str:
        """The entry at this name below the suffix, "" when there is none."""
        got = subprocess.run(
            ["ldapsearch", "-x", "-LLL", "-o", "ldif-wrap=no", "-H", self.url, "-D", ROOT, "-y", self._secret(),
             "-b", f"{name},{SUFFIX}", "-s", "base"], timeout=20, capture_output=True, check=False,
        )  # fmt: skip
        return got.stdout.decode()

    def dump(self) -> str:
        """Everything in it."""
        got = subprocess.run(
            ["ldapsearch", "-x", "-LLL", "-H", self.url, "-D", ROOT, "-y", self._secret(), "-b", SUFFIX],
            timeout=20, capture_output=True, check=True,
        )  # fmt: skip
        return got.stdout.decode()

    @staticmethod
    def _adds(ldif: str) -> list[str]:
        return [] if "changetype:" in ldif else ["-a"]

    def _secret(self) -> str:
        path = self.root / "secret"
        if not path.exists():
            path.write_text(PASSWORD)
            path.chmod(0o600)
        return str(path)


def person(uid: str, *, password: str = "", more: str = "") -> str:
    """LDIF of a user."""
    secret = f"userPassword: {password}\n" if password else ""
    return (
        f"dn: uid={uid},ou=Users,{SUFFIX}\nobjectClass: inetOrgPerson\nuid: {uid}\ncn: {uid}\nsn: {uid}\n"
        f"mail: {uid}@example.org\n{secret}{more}\n"
    )


def group(cn: str, *uids: str) -> str:
    """LDIF of a group."""
    members = "".join(f"member: uid={u},ou=Users,{SUFFIX}\n" for u in uids) or f"member: {ROOT}\n"
    return f"dn: cn={cn},ou=UserGroups,{SUFFIX}\nobjectClass: groupOfNames\ncn: {cn}\n{members}\n"


@contextlib.contextmanager
def pretender(answer: bytes | None = None, *, drip_s: float = 0.0) -> Iterator[int]:
    """A port on which something that is no directory answers whatever it is sent; None: it never says a word, b"": it
    hangs up. ``drip_s``: one byte of the answer at a time, with so many seconds in between."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        s.listen(64)
        kept: list[socket.socket] = []
        over = threading.Event()

        def serve(one: socket.socket) -> None:
            with contextlib.suppress(OSError):
                while answer is not None and one.recv(4096):
                    if not answer:
                        one.close()
                        return
                    for i in range(len(answer)) if drip_s else ():
                        one.sendall(answer[i : i + 1])
                        if over.wait(drip_s):
                            return
                    if not drip_s:
                        one.sendall(answer)

        def accept() -> None:
            with contextlib.suppress(OSError):
                while True:
                    kept.append(s.accept()[0])
                    threading.Thread(target=serve, args=(kept[-1],), daemon=True).start()

        thread = threading.Thread(target=accept, daemon=True)
        thread.start()
        yield int(s.getsockname()[1])
        over.set()
        s.shutdown(socket.SHUT_RDWR)
        for one in kept:
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
            one.close()
        thread.join(5)
