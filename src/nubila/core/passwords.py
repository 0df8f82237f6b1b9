"""Password hashes: made with bcrypt (default), scrypt or PBKDF2, verified whichever of them made them.

The formats are Keystone's (those of passlib): ``$2b$ROUNDS$...``, ``$bcrypt-sha256$v=2,t=2b,r=ROUNDS$SALT$DIGEST``,
``$scrypt$ln=16,r=8,p=1$SALT$DIGEST``, ``$pbkdf2-sha512$ROUNDS$SALT$DIGEST``. bcrypt reads 72 bytes at most: instead of
cutting a longer password (or one with a zero byte) silently, it is keyed through HMAC-SHA256 first, which is the
bcrypt-sha256 format. A longer password therefore never matches a plain bcrypt hash.

Hashing takes a quarter of a second on purpose: call it from a worker thread, never from the event loop.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import secrets
import string
from dataclasses import dataclass

import bcrypt

ALGORITHMS = ("bcrypt", "bcrypt_sha256", "scrypt", "pbkdf2_sha512")
_BCRYPT_MAX = 72
_DEFAULT_ROUNDS = {"bcrypt": 12, "bcrypt_sha256": 12, "scrypt": 16, "pbkdf2_sha512": 60000}
_RANGES = {"bcrypt": (4, 31), "bcrypt_sha256": (4, 31), "scrypt": (4, 22), "pbkdf2_sha512": (1000, 100_000_000)}
_SCRYPT_MEMORY = 1 << 30  # bytes; refuses a hash that would take more to verify
_SHORTEST_DIGEST = 16  # bytes
_LETTERS = "abcdefghjkmnpqrstuvwxyzABCDEFGHJKMNPQRSTUVWXYZ23456789"  # without those that look alike


def _bytes(password: str) -> bytes:
    return password.encode("utf-8", "surrogatepass")


def _text64(data: bytes) -> str:
    return base64.b64encode(data).rstrip(b"=").decode("ascii").replace("+", ".")


def _bytes64(text: str) -> bytes:
    return base64.b64decode(text.replace(".", "+") + "=" * (-len(text) % 4), validate=True)


def _prehash(password: bytes, salt: str) -> bytes:
    return base64.b64encode(hmac.digest(salt.encode("ascii"), password, "sha256"))


def _scrypt(password: bytes, salt: bytes, log2n: int, r: int, p: int, size: int) -> bytes:
    return hashlib.scrypt(password, salt=salt, n=1 << log2n, r=r, p=p, maxmem=_SCRYPT_MEMORY, dklen=size)


@dataclass(frozen=True, slots=True)
class Passwords:
    """How a cloud hashes passwords. ``rounds`` is bcrypt's cost, scrypt's ln or PBKDF2's iterations; 0: the default."""

    algorithm: str = "bcrypt"
    rounds: int = 0

    def __post_init__(self) -> None:
        if self.algorithm not in ALGORITHMS:
            raise ValueError(f"password algorithm {self.algorithm!r} is not known: use {', '.join(ALGORITHMS)}")
        if not self.rounds:
            object.__setattr__(self, "rounds", _DEFAULT_ROUNDS[self.algorithm])
        low, high = _RANGES[self.algorithm]
        if not low <= self.rounds <= high:
            raise ValueError(f"password rounds of {self.algorithm} must be {low} to {high}, not {self.rounds}")

    def hash(self, password: str) -> str:
        """The hash to store, with a new salt."""
        data = _bytes(password)
        if self.algorithm == "scrypt":
            salt = secrets.token_bytes(16)
            digest = _scrypt(data, salt, self.rounds, 8, 1, 32)
            return f"$scrypt$ln={self.rounds},r=8,p=1${_text64(salt)}${_text64(digest)}"
        if self.algorithm == "pbkdf2_sha512":
            salt = secrets.token_bytes(16)
            digest = hashlib.pbkdf2_hmac("sha512", data, salt, self.rounds)
            return f"$pbkdf2-sha512${self.rounds}${_text64(salt)}${_text64(digest)}"
        options = bcrypt.gensalt(self.rounds)
        if self.algorithm == "bcrypt" and len(data) <= _BCRYPT_MAX and b"\0" not in data:
            return bcrypt.hashpw(data, options).decode("ascii")
        key = options[-22:].decode("ascii")
        digest_text = bcrypt.hashpw(_prehash(data, key), options)[-31:].decode("ascii")
        return f"$bcrypt-sha256$v=2,t=2b,r={self.rounds}${key}${digest_text}"

    def needs_rehash(self, hashed: str) -> bool:
        """Whether ``hashed`` was made another way than :meth:`hash` would today: store it anew at the next login."""
        mine = {"scrypt": ("scrypt",), "pbkdf2_sha512": ("pbkdf2-sha512",), "bcrypt_sha256": ("bcrypt-sha256",)}
        kind, rounds = _kind(hashed)
        return kind not in mine.get(self.algorithm, ("2b", "bcrypt-sha256")) or rounds != self.rounds

    def dummy_verify(self, password: str) -> bool:
        """Always False, after the time a real comparison takes: for users that do not exist or have no password."""
        if self.algorithm in ("bcrypt", "bcrypt_sha256"):
            verify(f"$bcrypt-sha256$v=2,t=2b,r={self.rounds}${'.' * 22}${'.' * 31}", password)
        elif self.algorithm == "scrypt":
            verify(f"$scrypt$ln={self.rounds},r=8,p=1${'A' * 22}${'A' * 43}", password)
        else:
            verify(f"$pbkdf2-sha512${self.rounds}${'A' * 22}${'A' * 86}", password)
        return False


def _kind(hashed: str) -> tuple[str, int]:
    """Format name and rounds of a hash; ("", 0) when it is none."""
    parts = hashed.split("$")
    try:
        if len(parts) < 4 or parts[0]:
            return "", 0
        if parts[1] in ("bcrypt-sha256", "scrypt"):
            options = dict(option.split("=", 1) for option in parts[2].split(","))
            return parts[1], int(options["r" if parts[1] == "bcrypt-sha256" else "ln"])
        return parts[1], int(parts[2])
    except (ValueError, KeyError):
        return "", 0


def verify(hashed: str, password: str) -> bool:
    """Whether ``password`` made ``hashed`` (any format above); a hash of no known form matches nothing."""
    try:
        return _verify(hashed, _bytes(password))
    except (ValueError, KeyError, OverflowError, MemoryError, binascii.Error):
        return False


def _verify(hashed: str, password: bytes) -> bool:
    parts = hashed.split("$")
    if len(parts) < 4 or parts[0]:
        return False
    if parts[1] in ("2a", "2b", "2y", "2x"):
        # Too long a password takes the usual time as well: else it would tell which users there are.
        return bcrypt.checkpw(password[:_BCRYPT_MAX], hashed.encode("ascii")) and len(password) <= _BCRYPT_MAX
    _, kind, options, salt, digest = parts
    if kind == "pbkdf2-sha512":
        wanted = _digest(digest)
        return hmac.compare_digest(
            hashlib.pbkdf2_hmac("sha512", password, _bytes64(salt), int(options), len(wanted)), wanted
        )
    given = dict(option.split("=", 1) for option in options.split(","))
    if kind == "bcrypt-sha256":
        data = (
            _prehash(password, salt)
            if given.get("v", "1") == "2"
            else base64.b64encode(hashlib.sha256(password).digest())
        )
        return bcrypt.checkpw(data, f"${given['t']}${int(given['r']):02d}${salt}{digest}".encode("ascii"))
    if kind == "scrypt":
        wanted = _digest(digest)
        made = _scrypt(password, _bytes64(salt), int(given["ln"]), int(given["r"]), int(given["p"]), len(wanted))
        return hmac.compare_digest(made, wanted)
    return False


def _digest(text: str) -> bytes:
    """The digest of a hash; ValueError when it is so short (cut off) that chance would match it."""
    found = _bytes64(text)
    if len(found) < _SHORTEST_DIGEST:
        raise ValueError("the hash is cut off")
    return found


def generate_password(length: int = 20) -> str:
    """A random password (at least 8 characters) of letters and digits that are not mistaken for each other.

    It holds a lower-case letter, an upper-case letter and a digit, as password rules of sites usually ask.
    """
    if length < 8:
        raise ValueError("a generated password has at least 8 characters")
    while True:
        made = "".join(secrets.choice(_LETTERS) for _ in range(length))
        if all(
            any(c in kind for c in made) for kind in (string.ascii_lowercase, string.ascii_uppercase, string.digits)
        ):
            return made
