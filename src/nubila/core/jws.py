"""Identity tokens as JSON Web Signatures (RFC 7515, ES256): anybody who has the public keys can read and check them.

Longer than Fernet tokens (about 500 characters) and readable, but services that must not be able to make tokens can
validate them without asking. Claim names are Keystone's (``sub``, ``iat``, ``exp``, ``openstack_*``); times have
microseconds, as revocation compares them.

``<keys>/jws/private`` holds two key pairs ``N.pem``: the lowest number signs, the next one is staged; ``public`` holds
the public halves of those and of the ones before, which still read old tokens. A rotation adds a pair and then removes
the private key that signed so far: that one unlink is the moment of change, and a killed rotation is finished by the
next.

The signature is checked with ``cryptography`` directly, not by a JOSE library: we accept only the very header that we
write, compared as text, so there is no algorithm to be confused about.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import os
import re
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature, encode_dss_signature
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
    load_pem_public_key,
)
from msgspec import Struct

from nubila.core.keyfiles import Followed, KeysError, locked, write_file
from nubila.core.payload import Expired, InvalidToken, Payload

LONGEST = 16384  # characters; federated users may be in hundreds of groups
_SHAPE = re.compile(r"(eyJ[A-Za-z0-9_-]{1,200})\.([A-Za-z0-9_-]+)\.([A-Za-z0-9_-]{86})")
_ES256 = ec.ECDSA(hashes.SHA256())
_ORDER = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551  # of P-256 (FIPS 186-5)
_LATEST_S = 253_402_300_800  # the year 10000, where dates end
_FILE = re.compile(r"([0-9]{1,9})\.pem")


class _Claims(Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True, gc=False):
    sub: str
    iat: float
    exp: float
    openstack_methods: tuple[str, ...]
    openstack_audit_ids: tuple[str, ...]
    openstack_project_id: str | None = None
    openstack_domain_id: str | None = None
    openstack_system: str | None = None
    openstack_trust_id: str | None = None
    openstack_app_cred_id: str | None = None
    openstack_access_token_id: str | None = None
    openstack_thumbprint: str | None = None
    openstack_idp_id: str | None = None
    openstack_protocol_id: str | None = None
    openstack_group_ids: tuple[str, ...] = ()


_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(_Claims).decode
_SAME = (
    *("project_id", "domain_id", "trust_id", "app_cred_id", "access_token_id", "thumbprint", "idp_id", "protocol_id"),
    "group_ids",
)


def _text(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode("ascii")


def _bytes(text: str) -> bytes:
    """Undo :func:`_text`; other spellings of the same bytes are refused."""
    try:
        data = base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
    except binascii.Error:
        raise InvalidToken("this is not a token") from None
    if _text(data) != text:
        raise InvalidToken("this is not a token")
    return data


# --- key pairs -----------------------------------------------------------------------------------------------------


def _numbers(directory: Path) -> list[int]:
    found = (_FILE.fullmatch(name) for name in os.listdir(directory))
    return sorted(int(m[1]) for m in found if m)


def _write_pair(directory: Path, number: int) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    public = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    private = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    write_file(directory / "public" / f"{number}.pem", public, 0o644)  # before anything is signed with the other half
    write_file(directory / "private" / f"{number}.pem", private)


def setup_keys(directory: Path) -> None:
    """Make ``directory`` with private and public halves of a signing and a staged pair; may be repeated."""
    for path, mode in ((directory, 0o700), (directory / "private", 0o700), (directory / "public", 0o755)):
        path.mkdir(mode=mode, parents=True, exist_ok=True)
    with locked(directory):
        found = _numbers(directory / "private")
        top = max([0, *found, *_numbers(directory / "public")])
        for number in range(top + 1, top + 3 - min(2, len(found))):
            _write_pair(directory, number)


def rotate_keys(directory: Path, max_active_keys: int = 3) -> int:
    """Let the staged pair sign, stage a new one, drop the oldest public keys beyond the limit; return who signs now.

    ``max_active_keys`` counts public keys, the staged one included (at least 2). As with Fernet keys, rotate no more
    often than every (token lifetime) / (N - 2).
    """
    if max_active_keys < 2:
        raise ValueError("max_active_keys must be at least 2: a signing and a staged key")
    with locked(directory):
        found = _numbers(directory / "private")
        if not found:
            raise KeysError(f"{directory / 'private'} holds no keys: set them up first")
        while len(found) < 3:  # three: a rotation was killed before its last step
            _write_pair(directory, found[-1] + 1)
            found.append(found[-1] + 1)
        for number in found[:-2]:
            os.unlink(directory / "private" / f"{number}.pem")
        for number in _numbers(directory / "public")[:-max_active_keys]:
            os.unlink(directory / "public" / f"{number}.pem")
        return found[-2]


@dataclass
class _Pairs:
    """One state of the directory, with what was read by these keys."""

    signs: ec.EllipticCurvePrivateKey | None
    header: str  # of what we sign
    readers: dict[str, ec.EllipticCurvePublicKey]  # by the header of what they read
    files: tuple[bytes, ...]
    half: int
    young: dict[str, Payload] = field(default_factory=dict)
    old: dict[str, Payload] = field(default_factory=dict)

    def remember(self, token: str, payload: Payload) -> None:
        if len(self.young) >= self.half:
            self.old, self.young = self.young, {}
        self.young[token] = payload


def _header(public: ec.EllipticCurvePublicKey) -> str:
    """The header of tokens that this key reads; ``kid`` is the start of the hash of the key."""
    spki = public.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    kid = hashlib.sha256(spki).hexdigest()[:16]
    return _text(_encode({"typ": "JWT", "alg": "ES256", "kid": kid}))


class JwsKeys:
    """Makes and reads JWS tokens with the key pairs of one directory. Thread-safe.

    Without ``private`` keys (another service has only the public ones) it reads but does not issue.
    """

    def __init__(
        self,
        directory: Path,
        *,
        cache_size: int = 4096,
        clock: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        """Raises :class:`KeysError` when there are no public keys or a file is not one."""
        self.directory, self._clock, self._limit = directory, clock, cache_size
        self._last: _Pairs | None = None
        there = tuple(d for d in (directory / "public", directory / "private") if d.is_dir())
        if not there:
            raise KeysError(f"token keys: {directory / 'public'} is missing; restore it or set up new keys")
        self._followed = Followed(there, self._load, monotonic)

    @property
    def problem(self) -> str | None:
        """Why the directory as it is now is not in use."""
        return self._followed.problem

    def issue(self, payload: Payload) -> str:
        """The token that says ``payload``. Raises :class:`KeysError` without a private key."""
        pairs = self._followed.current()
        if pairs.signs is None:
            raise KeysError(f"token keys: {self.directory / 'private'} holds no key to sign with")
        claims = _Claims(
            sub=payload.user_id,
            iat=payload.issued_at / 1e6,
            exp=payload.expires_at / 1e6,
            openstack_methods=payload.methods,
            openstack_audit_ids=payload.audit_ids,
            openstack_system="all" if payload.system else None,
            **{f"openstack_{name}": getattr(payload, name) for name in _SAME},
        )
        signed = f"{pairs.header}.{_text(_encode(claims))}"
        r, s = decode_dss_signature(pairs.signs.sign(signed.encode("ascii"), _ES256))
        s = min(s, _ORDER - s)  # both are valid: one token must have one spelling
        token = f"{signed}.{_text(r.to_bytes(32, 'big') + s.to_bytes(32, 'big'))}"
        pairs.remember(token, payload)
        return token

    def read(self, token: str, allow_expired_s: float = 0) -> Payload:
        """What a token of ours says. Raises :class:`InvalidToken`, or :class:`Expired` more than
        ``allow_expired_s`` after its end."""
        pairs = self._followed.current()
        payload = pairs.young.get(token)
        if payload is None:
            payload = pairs.old.get(token) or self._open(pairs, token)
            pairs.remember(token, payload)
        if (self._clock() - allow_expired_s) * 1_000_000 >= payload.expires_at:
            raise Expired(payload)
        return payload

    def cached(self) -> int:
        """How many parsed tokens are kept now."""
        pairs = self._followed.current()
        return len(pairs.young) + len(pairs.old)

    def rotate(self, max_active_keys: int = 3) -> int:
        """:func:`rotate_keys` of our directory, in use at once."""
        signs = rotate_keys(self.directory, max_active_keys)
        self._followed.current(now=True)
        return signs

    def _open(self, pairs: _Pairs, token: str) -> Payload:
        if not isinstance(token, str) or len(token) > LONGEST or not (parts := _SHAPE.fullmatch(token)):
            raise InvalidToken("this is not a token")
        header, body, signature = parts.groups()
        key = pairs.readers.get(header)
        if key is None:
            raise InvalidToken("the token is not one of this cloud, or its key is gone")
        raw = _bytes(signature)
        r, s = int.from_bytes(raw[:32], "big"), int.from_bytes(raw[32:], "big")
        if s > _ORDER // 2:
            raise InvalidToken("this is not a token")
        data = _bytes(body)
        try:
            key.verify(encode_dss_signature(r, s), f"{header}.{body}".encode("ascii"), _ES256)
            return _payload(_decode(data))
        except InvalidSignature:
            raise InvalidToken("the token is not one of this cloud, or its key is gone") from None
        except (ValueError, OverflowError, msgspec.MsgspecError):
            raise InvalidToken("this is not a token") from None

    def _load(self) -> _Pairs:
        public, private = self.directory / "public", self.directory / "private"
        numbers = _numbers(public) if public.is_dir() else []
        if not numbers:
            raise KeysError(f"token keys: {public} holds no keys; restore them or set up new ones")
        own = _numbers(private) if private.is_dir() else []
        files = [public / f"{n}.pem" for n in numbers] + [private / f"{n}.pem" for n in own[:1]]
        try:
            contents = tuple(file.read_bytes() for file in files)
        except OSError as e:
            raise KeysError(f"token keys: {e.filename} cannot be read: {e.strerror}") from None
        if self._last is not None and contents == self._last.files:
            return self._last
        readers: dict[str, ec.EllipticCurvePublicKey] = {}
        for file, content in zip(files[: len(numbers)], contents, strict=False):
            key = _public(file, content)
            readers[_header(key)] = key
        signs = _private(files[-1], contents[-1]) if own else None
        header = _header(signs.public_key()) if signs else ""
        if signs and header not in readers:
            raise KeysError(f"token keys: {files[-1]} signs, but its public key is not in {public}; rotate again")
        self._last = _Pairs(signs, header, readers, contents, max(1, self._limit // 2))
        return self._last


def _public(file: Path, content: bytes) -> ec.EllipticCurvePublicKey:
    try:
        key = load_pem_public_key(content)
    except ValueError:
        key = None
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):
        raise KeysError(f"token keys: {file} is not a public P-256 key in PEM")
    return key


def _private(file: Path, content: bytes) -> ec.EllipticCurvePrivateKey:
    try:
        key = load_pem_private_key(content, None)
    except (ValueError, TypeError):  # TypeError: it is encrypted
        key = None
    if not isinstance(key, ec.EllipticCurvePrivateKey) or not isinstance(key.curve, ec.SECP256R1):
        raise KeysError(f"token keys: {file} is not an unencrypted private P-256 key in PEM")
    return key


def _payload(c: _Claims) -> Payload:
    if not c.openstack_audit_ids or not (0 < c.iat < _LATEST_S and 0 < c.exp < _LATEST_S):
        raise ValueError("no audit id, or a time that is none")
    return Payload(
        user_id=c.sub,
        methods=c.openstack_methods,
        issued_at=round(c.iat * 1e6),
        expires_at=round(c.exp * 1e6),
        audit_ids=c.openstack_audit_ids,
        system=c.openstack_system == "all",
        **{name: getattr(c, f"openstack_{name}") for name in _SAME},
    )
