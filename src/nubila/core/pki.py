"""The cloud's own certificate authority: hosts prove themselves to the host API with certificates it signed.

Files live in ``DIR/keys/pki`` (directory 0700, keys 0600). ECDSA P-256 throughout; RFC 5280 profiles.
"""

from __future__ import annotations

import hashlib
import ipaddress
import os
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

CA_DAYS, HOST_DAYS = 3650, 825
_SIGNS = x509.KeyUsage(
    digital_signature=False, content_commitment=False, key_encipherment=False, data_encipherment=False,
    key_agreement=False, key_cert_sign=True, crl_sign=True, encipher_only=False, decipher_only=False,
)  # fmt: skip


class BadRequestFile(ValueError):
    """A certificate signing request that is not one, or is not signed by its own key."""


def private_write(path: Path, data: bytes) -> None:
    """Write a file with mode 0600 so that it is complete or absent."""
    temp = path.with_name(path.name + ".new")
    fd = os.open(temp, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(fd, "wb") as f:
        f.write(data)
        f.flush()
        os.fsync(f.fileno())
    temp.rename(path)


def new_key() -> ec.EllipticCurvePrivateKey:
    """A fresh P-256 key."""
    return ec.generate_private_key(ec.SECP256R1())


def key_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    """PKCS #8, unencrypted (the file is 0600)."""
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def _name(common: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common)])


def _window(days: int) -> tuple[datetime, datetime]:
    start = datetime.now(UTC) - timedelta(minutes=5)  # clocks of two hosts differ a little
    return start, start + timedelta(days=days)


class Authority:
    """The CA of one cloud; made on first use."""

    def __init__(self, directory: Path, cloud: str, purpose: str = "host authority") -> None:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.directory = directory
        key_file, cert_file = directory / "ca.key", directory / "ca.pem"
        if not (key_file.exists() and cert_file.exists()):
            self._make(key_file, cert_file, f"{cloud} {purpose}")
        loaded = serialization.load_pem_private_key(key_file.read_bytes(), None)
        assert isinstance(loaded, ec.EllipticCurvePrivateKey)
        self._key = loaded
        self.pem = cert_file.read_bytes()
        self.certificate = x509.load_pem_x509_certificate(self.pem)

    @staticmethod
    def _make(key_file: Path, cert_file: Path, common: str) -> None:
        key = new_key()
        start, end = _window(CA_DAYS)
        name = _name(common)
        cert = (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(start)
            .not_valid_after(end)
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(_SIGNS, critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
            .sign(key, hashes.SHA256())
        )
        private_write(key_file, key_pem(key))
        private_write(cert_file, cert.public_bytes(serialization.Encoding.PEM))

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the CA certificate, hexadecimal: part of a join token, so that a joining host knows its cloud."""
        return fingerprint(self.pem)

    def sign(self, common: str, public_key: ec.EllipticCurvePublicKey, *, server: bool, names: list[str]) -> bytes:
        """A certificate in PEM for a host (client) or for the host API's listener (server)."""
        start, end = _window(HOST_DAYS)
        usage = [ExtendedKeyUsageOID.SERVER_AUTH] if server else [ExtendedKeyUsageOID.CLIENT_AUTH]
        alt = [_alt(n) for n in names] or [x509.DNSName(common)]
        cert = (
            x509.CertificateBuilder()
            .subject_name(_name(common))
            .issuer_name(self.certificate.subject)
            .public_key(public_key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(start)
            .not_valid_after(end)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(x509.ExtendedKeyUsage(usage), critical=False)
            .add_extension(x509.SubjectAlternativeName(alt), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key()), critical=False)
            .sign(self._key, hashes.SHA256())
        )
        return cert.public_bytes(serialization.Encoding.PEM)

    def sign_request(self, pem: bytes, common: str) -> bytes:
        """Sign a host's request under the name *we* give it. Raises BadRequestFile."""
        try:
            request = x509.load_pem_x509_csr(pem)
            key = request.public_key()
        except ValueError as e:
            raise BadRequestFile(f"not a certificate signing request: {e}") from None
        if not request.is_signature_valid or not isinstance(key, ec.EllipticCurvePublicKey):
            raise BadRequestFile("the request must be signed by its own elliptic-curve key")
        return self.sign(common, key, server=False, names=[common])

    def listener(self, names: list[str]) -> tuple[Path, Path]:
        """Certificate and key files of the host API's listener, made anew for these names."""
        key = new_key()
        cert_file, key_file = self.directory / "server.pem", self.directory / "server.key"
        private_write(key_file, key_pem(key))
        private_write(cert_file, self.sign(names[0], key.public_key(), server=True, names=names))
        return cert_file, key_file


def _alt(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def names_of(certificate: x509.Certificate) -> set[str]:
    """The DNS names and addresses a certificate is for."""
    try:
        found = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return set()
    return {*found.get_values_for_type(x509.DNSName), *map(str, found.get_values_for_type(x509.IPAddress))}


def days_left(certificate: x509.Certificate) -> float:
    """Days until a certificate ends; negative when it has."""
    return (certificate.not_valid_after_utc - datetime.now(UTC)).total_seconds() / 86400


def fingerprint(pem: bytes) -> str:
    """SHA-256 over the DER form, hexadecimal."""
    der = x509.load_pem_x509_certificate(pem).public_bytes(serialization.Encoding.DER)
    return hashlib.sha256(der).hexdigest()


def request(key: ec.EllipticCurvePrivateKey, common: str) -> bytes:
    """A certificate signing request in PEM."""
    csr = x509.CertificateSigningRequestBuilder().subject_name(_name(common)).sign(key, hashes.SHA256())
    return csr.public_bytes(serialization.Encoding.PEM)
