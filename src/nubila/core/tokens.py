"""Identity tokens: self-contained, signed, validated in memory without a query.

Two formats. A Fernet token (the default) is a Fernet message (the Fernet specification, version 0x80, hence every one
starts with ``gAAAAA``) without its base64 padding; inside is a versioned MessagePack array (core/payload.py). Its keys
live in a directory as in Keystone: files named 0, 1, 2 ...; the highest is the primary that makes tokens, 0 is staged
to become the next primary, the rest still read old tokens. A JWS token (core/jws.py) can be checked with public keys
alone. The setting ``token_provider`` says which are made; both are read, so that a switch logs nobody out.
:class:`TokenKeys` makes and reads tokens, :class:`Revocations` knows which valid ones no longer count, :class:`Creds`
is what a valid one says about its bearer.
"""

from __future__ import annotations

import base64
import binascii
import os
import re
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
from cryptography.fernet import Fernet
from cryptography.fernet import InvalidToken as NotFernet

from nubila.core import jws
from nubila.core.keyfiles import Followed, KeysError, locked, write_file
from nubila.core.payload import Expired, InvalidToken, Payload, iso, new_audit_id, new_payload, pack, pad, unpack
from nubila.core.revocations import Revocations, table

__all__ = [
    "Creds", "Expired", "InvalidToken", "KeysError", "Payload", "Revocations", "TokenKeys", "iso", "new_audit_id",
    "new_payload", "open_keys", "rotate", "rotate_keys", "setup_keys", "table",
]  # fmt: skip

DEFAULT_MAX_ACTIVE_KEYS = 3
PROVIDERS = ("fernet", "jws")
_LONGEST = 4096  # characters; ours are about 230, federated ones with many groups longer
_SEALED = b"\x00sealed:"  # never how a payload begins
_SHAPE = re.compile(r"gAAAAA[A-Za-z0-9_-]+")


# --- the key directory ---------------------------------------------------------------------------------------------


def _numbers(directory: Path) -> list[int]:
    return sorted(int(name) for name in os.listdir(directory) if name.isascii() and name.isdigit())


def _write_key(directory: Path, number: int) -> None:
    write_file(directory / str(number), Fernet.generate_key())


def setup_keys(directory: Path) -> None:
    """Make the directory (0700) with a primary and a staged key (0600) unless it has them; may be repeated."""
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    with locked(directory):
        found = _numbers(directory)
        if not any(found):
            _write_key(directory, 1)
        if 0 not in found:
            _write_key(directory, 0)


def rotate_keys(directory: Path, max_active_keys: int = DEFAULT_MAX_ACTIVE_KEYS) -> int:
    """Make the staged key the primary, stage a new one, drop the oldest beyond the limit; return the primary's number.

    ``max_active_keys`` counts every key (at least 2). Tokens live as long as their key does: with N keys rotate no more
    often than every (token lifetime) / (N - 2). A rotation that was killed half-way is finished instead of a new one.
    """
    if max_active_keys < 2:
        raise ValueError("max_active_keys must be at least 2: a primary and a staged key")
    with locked(directory):
        found = _numbers(directory)
        if not found:
            raise KeysError(f"{directory} holds no keys: set it up first")
        if 0 in found:
            primary = found[-1] + 1
            os.rename(directory / "0", directory / str(primary))
        _write_key(directory, 0)
        rest = _numbers(directory)[1:]
        for number in rest[: max(0, len(rest) + 1 - max_active_keys)]:
            os.unlink(directory / str(number))
        return rest[-1]


def rotate(keys: Path, provider: str = "fernet", max_active_keys: int = DEFAULT_MAX_ACTIVE_KEYS) -> int:
    """Rotate the token keys of one provider ("fernet" or "jws") below ``keys`` (the state directory's ``keys``).

    Running processes use the new primary within a second; return its number. Raises :class:`KeysError` when there are
    none, ValueError for another provider or a limit below 2.
    """
    if provider not in PROVIDERS:
        raise ValueError(f"token provider {provider!r} is not one of {', '.join(PROVIDERS)}")
    if not (keys / provider).is_dir():
        raise KeysError(f"{keys / provider} is missing: set token_provider to {provider} and start the cloud first")
    return rotate_keys(keys / provider, max_active_keys) if provider == "fernet" else jws.rotate_keys(
        keys / provider, max_active_keys
    )  # fmt: skip


def open_keys(keys: Path, provider: str = "fernet") -> TokenKeys:
    """What makes tokens of the provider, and reads those of every format there are keys for; makes missing keys.

    Raises :class:`KeysError` when there are keys but they cannot be used, ValueError for an unknown provider.
    """
    if provider not in PROVIDERS:
        raise ValueError(f"token_provider must be one of {', '.join(PROVIDERS)}, not {provider!r}")
    setup_keys(keys / "fernet")
    if provider == "jws":
        jws.setup_keys(keys / "jws")
    signed = jws.JwsKeys(keys / "jws") if (keys / "jws").is_dir() else None
    return TokenKeys(keys / "fernet", signed=signed, provider=provider)


class _Keys:
    """One state of the directory, with what was read by these keys: a key that goes takes its tokens along.

    Two generations of parsed tokens: hits in the old one move up; when the young one is full it becomes the old one.
    """

    def __init__(self, raw: tuple[bytes, ...], limit: int) -> None:
        self.raw = raw  # primary first
        self.fernets = tuple(Fernet(key) for key in raw)
        self.half = max(1, limit // 2)
        self.young: dict[str, Payload] = {}
        self.old: dict[str, Payload] = {}

    def remember(self, token: str, payload: Payload) -> None:
        if len(self.young) >= self.half:
            self.old, self.young = self.young, {}
        self.young[token] = payload

    def __len__(self) -> int:
        return len(self.young) + len(self.old)


class TokenKeys:
    """Makes and reads tokens with the keys of one directory; follows the directory as it changes. Thread-safe."""

    def __init__(
        self,
        directory: Path,
        *,
        signed: jws.JwsKeys | None = None,
        provider: str = "fernet",
        cache_size: int = 4096,
        clock: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        """``signed`` also reads JWS tokens, and makes them when the provider is "jws".

        ``cache_size`` bounds the parsed tokens kept (about 1 KB each). Raises :class:`KeysError` without keys.
        """
        self.directory, self.signed, self.provider = directory, signed, provider
        self._limit, self._clock = cache_size, clock
        self._last: _Keys | None = None
        self._followed = Followed((directory,), self._load, monotonic)

    @property
    def problem(self) -> str | None:
        """Why a key directory as it is now is not in use; None when all is well."""
        return self._followed.problem or (self.signed.problem if self.signed else None)

    def issue(self, payload: Payload) -> str:
        """The token that says ``payload``, signed with the primary key of the provider."""
        if self.provider == "jws" and self.signed is not None:
            return self.signed.issue(payload)
        keys = self._followed.current()
        token = (
            keys.fernets[0].encrypt_at_time(pack(payload), payload.issued_at // 1_000_000).decode("ascii").rstrip("=")
        )
        keys.remember(token, payload)
        return token

    def read(self, token: str, allow_expired_s: float = 0) -> Payload:
        """What a token of ours says, whatever its format. Raises :class:`InvalidToken`, or :class:`Expired` more than
        ``allow_expired_s`` after its end. Whether it was revoked is :meth:`Revocations.revoked`'s answer.
        """
        keys = self._followed.current()
        payload = keys.young.get(token)
        if payload is None:
            payload = keys.old.get(token)
            if payload is None:
                if self.signed is not None and isinstance(token, str) and token.startswith("ey"):
                    return self.signed.read(token, allow_expired_s)
                payload = _open(keys, token)
            keys.remember(token, payload)
        if (self._clock() - allow_expired_s) * 1_000_000 >= payload.expires_at:
            raise Expired(payload)
        return payload

    def seal(self, data: bytes) -> str:
        """Text that only this cloud can make and read, such as a receipt; it is no token."""
        return self._followed.current().fernets[0].encrypt(_SEALED + data).decode("ascii").rstrip("=")

    def unseal(self, text: str) -> bytes:
        """What :meth:`seal` was given. Raises :class:`InvalidToken` for anything else, tokens too."""
        data = _decrypt(self._followed.current(), text)
        if not data.startswith(_SEALED):
            raise InvalidToken("this is not a sealed text")
        return data[len(_SEALED) :]

    def cached(self) -> int:
        """How many parsed tokens are kept now."""
        return len(self._followed.current()) + (self.signed.cached() if self.signed else 0)

    def rotate(self, max_active_keys: int = DEFAULT_MAX_ACTIVE_KEYS) -> int:
        """:func:`rotate_keys` of our directory, in use at once."""
        primary = rotate_keys(self.directory, max_active_keys)
        self._followed.current(now=True)
        return primary

    def _load(self) -> _Keys:
        """The keys there are, primary first; the same object when nothing changed, so that what it knows stays."""
        try:
            numbers = _numbers(self.directory)
            raw = tuple((self.directory / str(number)).read_bytes().strip() for number in reversed(numbers))
        except OSError as e:
            raise KeysError(f"token keys: {e.filename} cannot be read: {e.strerror}") from None
        if not raw:
            raise KeysError(f"token keys: {self.directory} holds no keys; restore them or set up new ones")
        for number, key in zip(reversed(numbers), raw, strict=True):
            try:
                Fernet(key)
            except (ValueError, TypeError, binascii.Error):
                raise KeysError(f"token keys: {self.directory / str(number)} is not a Fernet key") from None
        if self._last is None or raw != self._last.raw:
            self._last = _Keys(raw, self._limit)
        return self._last


def _decrypt(keys: _Keys, token: str) -> bytes:
    if not isinstance(token, str) or len(token) > _LONGEST or not _SHAPE.fullmatch(token):
        raise InvalidToken("this is not a token")
    padded = pad(token)
    try:
        # base64 has several spellings of one message; only the one we wrote counts
        if base64.urlsafe_b64encode(base64.urlsafe_b64decode(padded)) != padded:
            raise InvalidToken("this is not a token")
    except binascii.Error:
        raise InvalidToken("this is not a token") from None
    for fernet in keys.fernets:
        try:
            return fernet.decrypt(padded)
        except NotFernet:
            continue
    raise InvalidToken("the token is not one of this cloud, or its key is gone")


def _open(keys: _Keys, token: str) -> Payload:
    try:
        return unpack(_decrypt(keys, token))
    except (ValueError, IndexError, msgspec.MsgspecError):
        raise InvalidToken("the token is not one of this cloud, or its key is gone") from None


# --- who is asking -------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Creds:
    """Who makes a request, with names resolved and roles expanded (implied ones included)."""

    user_id: str | None = None
    user_name: str | None = None
    user_domain_id: str | None = None
    user_domain_name: str | None = None
    project_id: str | None = None
    project_name: str | None = None
    project_domain_id: str | None = None
    project_domain_name: str | None = None
    domain_id: str | None = None  # of a domain-scoped token
    domain_name: str | None = None
    system_scope: str | None = None  # "all" or None
    roles: tuple[str, ...] = ()
    role_ids: tuple[str, ...] = ()
    is_admin: bool = False  # holds the role admin; set by itself from ``roles``
    is_admin_project: bool = True
    token: Payload | None = None
    access_rules: tuple[tuple[str, str, str], ...] | None = None  # the only requests allowed (core/access_rules.py)
    service_user_id: str | None = None  # X-Service-Token: the service that asks for the user
    service_user_domain_id: str | None = None
    service_project_id: str | None = None
    service_project_domain_id: str | None = None
    service_roles: tuple[str, ...] = ()
    request_id: str | None = None
    global_request_id: str | None = None
    _mapping: Any = field(default=None, init=False, repr=False, compare=False)  # as_mapping's answer, once made

    def __post_init__(self) -> None:
        if not self.is_admin and any(role.lower() == "admin" for role in self.roles):
            object.__setattr__(self, "is_admin", True)

    def as_mapping(self) -> dict[str, Any]:
        """The credentials under the names policy rules use; made once, not to be changed."""
        found: dict[str, Any] | None = self._mapping
        if found is None:
            found = {
                "user_id": self.user_id,
                "user_domain_id": self.user_domain_id,
                "project_id": self.project_id,
                "tenant_id": self.project_id,
                "project_domain_id": self.project_domain_id,
                "domain_id": self.domain_id,
                "system_scope": self.system_scope,
                "system": self.system_scope,
                "roles": self.roles,
                "is_admin": self.is_admin,
                "is_admin_project": self.is_admin_project,
                "service_user_id": self.service_user_id,
                "service_user_domain_id": self.service_user_domain_id,
                "service_project_id": self.service_project_id,
                "service_project_domain_id": self.service_project_domain_id,
                "service_roles": self.service_roles,
                "token": {
                    "domain": {"id": self.domain_id},
                    "user": {"domain": {"id": self.user_domain_id}},
                    "project": {"domain": {"id": self.project_domain_id}},
                },
            }
            object.__setattr__(self, "_mapping", found)
        return found
