"""What a token says and how it is written: a versioned MessagePack array, small enough for a 230 character token."""

from __future__ import annotations

import base64
import re
import secrets
import time
from datetime import UTC, datetime
from typing import Any

import msgspec
from msgspec import Struct

_HEX = re.compile(r"[0-9a-f]{32}")
# The position is the number on the wire: append only.
_METHODS = (
    *("password", "token", "totp", "application_credential", "external", "mapped", "saml2", "openid", "oauth1"),
    *("oauth2_credential", "ec2credential", "x509", "kerberos"),
)
_METHOD_NUMBERS = {name: number for number, name in enumerate(_METHODS)}


class InvalidToken(Exception):
    """Not a token of this cloud: malformed, forged, or made with a key that is gone."""


class Expired(InvalidToken):
    """It was a token once; ``payload`` is what it said."""

    def __init__(self, payload: Payload) -> None:
        super().__init__(f"the token expired at {iso(payload.expires_at)}")
        self.payload = payload


class Payload(Struct, frozen=True, kw_only=True, gc=False):
    """What a token says. Times are microseconds since 1970; at most one of project, domain and system is set."""

    user_id: str
    methods: tuple[str, ...]
    issued_at: int
    expires_at: int
    audit_ids: tuple[str, ...]  # its own, and for a token got with a token that of the first in the chain
    project_id: str | None = None
    domain_id: str | None = None
    system: bool = False
    trust_id: str | None = None
    app_cred_id: str | None = None
    access_token_id: str | None = None  # OAuth 1
    thumbprint: str | None = None  # OAuth 2 client certificate
    idp_id: str | None = None  # federation: identity provider, protocol and the groups it mapped to
    protocol_id: str | None = None
    group_ids: tuple[str, ...] = ()

    @property
    def audit_id(self) -> str:
        return self.audit_ids[0]

    @property
    def audit_chain_id(self) -> str:
        return self.audit_ids[-1]


def new_payload(
    user_id: str,
    methods: tuple[str, ...],
    lifetime_s: float,
    *,
    parent: Payload | None = None,
    now: float | None = None,
    **scope: Any,
) -> Payload:
    """A payload issued now. One got with a token (``parent``) continues its audit chain and expires no later.

    ``scope`` are further fields of :class:`Payload` (``project_id=``, ``trust_id=`` ...).
    """
    issued = int((time.time() if now is None else now) * 1_000_000)
    expires = issued + int(lifetime_s * 1_000_000)
    audit: tuple[str, ...] = (new_audit_id(),)
    if parent is not None:
        expires = min(expires, parent.expires_at)
        audit += (parent.audit_chain_id,)
    return Payload(
        user_id=user_id, methods=methods, issued_at=issued, expires_at=expires, audit_ids=audit, **scope
    )  # fmt: skip


def new_audit_id() -> str:
    """128 random bits as 22 URL-safe characters."""
    return secrets.token_urlsafe(16)


def iso(microseconds: int) -> str:
    """The time as Identity shows it: ``2026-11-21T09:40:00.123456Z``."""
    seconds, rest = divmod(microseconds, 1_000_000)
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%dT%H:%M:%S}.{rest:06d}Z"


# --- on the wire ---------------------------------------------------------------------------------------------------

_VERSION = 1
_EXTRA = {  # optional fields -> short keys: never reuse one
    "trust_id": "t", "app_cred_id": "a", "access_token_id": "o", "thumbprint": "x", "idp_id": "i", "protocol_id": "p",
    "group_ids": "g",
}  # fmt: skip
_LATEST = 253_402_300_800_000_000  # the year 10000, where dates end
_UNSCOPED, _PROJECT, _DOMAIN, _SYSTEM = range(4)


class _Wire(Struct, array_like=True, frozen=True, gc=False):
    """Version 1. Ids of 32 hexadecimal digits are 16 bytes, others text; later versions may append fields."""

    version: int
    user: Any
    methods: tuple[int | str, ...]
    kind: int
    scope: Any
    issued: int
    expires: int
    audit: tuple[bytes, ...]
    extra: dict[str, Any]


_decode = msgspec.msgpack.Decoder(_Wire).decode
_encode = msgspec.msgpack.Encoder().encode


def _short(id: str) -> bytes | str:
    return bytes.fromhex(id) if _HEX.fullmatch(id) else id


def _long(id: Any) -> str:
    if isinstance(id, bytes):
        return id.hex()
    if isinstance(id, str):
        return id
    raise ValueError("an id is neither bytes nor text")


def _unpad(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode("ascii")


def pad(text: str) -> bytes:
    """Give URL-safe base64 the padding back that was cut off."""
    return (text + "=" * (-len(text) % 4)).encode("ascii")


def pack(p: Payload) -> bytes:
    """The payload as bytes."""
    kind, scope = _UNSCOPED, None
    if p.project_id is not None:
        kind, scope = _PROJECT, _short(p.project_id)
    elif p.domain_id is not None:
        kind, scope = _DOMAIN, _short(p.domain_id)
    elif p.system:
        kind = _SYSTEM
    extra: dict[str, Any] = {}
    for name, key in _EXTRA.items():
        value = getattr(p, name)
        if value:
            extra[key] = tuple(_short(id) for id in value) if isinstance(value, tuple) else _short(value)
    methods = tuple(_METHOD_NUMBERS.get(name, name) for name in p.methods)
    audit = tuple(base64.urlsafe_b64decode(pad(id)) for id in p.audit_ids)
    return _encode(_Wire(_VERSION, _short(p.user_id), methods, kind, scope, p.issued_at, p.expires_at, audit, extra))


def unpack(data: bytes) -> Payload:
    """The payload of bytes. Raises ValueError, IndexError or msgspec.MsgspecError when they are none."""
    w = _decode(data)
    if w.version != _VERSION or not w.audit or not (0 < w.issued < _LATEST and 0 < w.expires < _LATEST):
        raise ValueError("not a payload of version 1")
    extra: dict[str, Any] = {}
    for name, key in _EXTRA.items():
        value = w.extra.get(key)
        if value is not None:
            extra[name] = tuple(_long(id) for id in value) if name == "group_ids" else _long(value)
    scope = None if w.scope is None else _long(w.scope)
    return Payload(
        user_id=_long(w.user),
        methods=tuple(_METHODS[name] if isinstance(name, int) else name for name in w.methods),
        issued_at=w.issued,
        expires_at=w.expires,
        audit_ids=tuple(_unpad(id) for id in w.audit),
        project_id=scope if w.kind == _PROJECT else None,
        domain_id=scope if w.kind == _DOMAIN else None,
        system=w.kind == _SYSTEM,
        **extra,
    )
