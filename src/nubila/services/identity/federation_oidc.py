"""OpenID Connect: is this bearer token one of the identity provider's, and what does it say? (RFC 7519, 7517, 6750.)

Which issuer, audience and keys belong to an identity provider is the operator's to say, in ``nubila.toml``::

    [[oidc]]
    identity_provider = "acme"
    issuer = "https://login.acme.example"
    audience = ["nubila"]
    jwks = "acme.json"  # a file (relative to the state directory) or an http(s) URL

Only signatures by asymmetric keys of that set count. A key set from a URL is fetched when it is first needed, again
after ``KEEP_S`` and when a token names a key that is not in it (at most every ``AGAIN_S``); while the provider does not
answer the last good set stays in use. Runs in threads that may block: every fetch has a timeout.
"""

from __future__ import annotations

import json
import threading
import time
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jwt

from nubila.core.config import BadSetting, Settings

if TYPE_CHECKING:
    from nubila.core.cloud import Cloud

Row = dict[str, Any]
KEEP_S, AGAIN_S, TIMEOUT_S = 600.0, 10.0, 5.0
LARGEST_SET, LONGEST = 1 << 20, 16384
ALGORITHMS = ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA")
_KINDS: Mapping[str, str] = {"RS": "RSA", "PS": "RSA", "ES": "EC", "Ed": "OKP"}
_FIELDS = {"identity_provider", "issuer", "audience", "jwks", "skew_s", "algorithms"}


class Rejected(Exception):
    """The bearer token is not accepted; the text tells its bearer why."""


class Unreachable(Exception):
    """The provider's keys cannot be had now; the text says why."""


@dataclass
class Provider:
    """What the operator said about one identity provider, and its keys as last read."""

    issuer: str
    audience: tuple[str, ...]
    jwks: str
    skew_s: float = 60.0
    algorithms: tuple[str, ...] = ALGORITHMS
    keys: list[Row] = field(default_factory=list)
    read_at: float = -1e9
    stamp: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)


def read(settings: Settings) -> dict[str, Provider]:
    """The providers of the setting ``oidc`` by identity provider. Raises BadSetting naming the entry and the fix."""
    out: dict[str, Provider] = {}
    for n, given in enumerate(settings.oidc):
        where = f"setting oidc[{n}]"
        if not isinstance(given, dict):
            raise BadSetting(f"{where} must be a table: write [[oidc]] in nubila.toml")
        if unknown := sorted(set(given) - _FIELDS):
            raise BadSetting(f"{where}: unknown {', '.join(unknown)}; known are {', '.join(sorted(_FIELDS))}")
        for name in ("identity_provider", "issuer", "jwks"):
            if not isinstance(given.get(name), str) or not given[name]:
                raise BadSetting(f"{where}: {name} must be a text")
        audience = given.get("audience")
        audience = [audience] if isinstance(audience, str) else audience
        if not isinstance(audience, list) or not audience or not all(isinstance(a, str) and a for a in audience):
            raise BadSetting(f"{where}: audience must be a text or a list of texts: for whom the provider makes tokens")
        algorithms = given.get("algorithms", ALGORITHMS)
        if bad := sorted(set(algorithms) - set(ALGORITHMS)):
            raise BadSetting(f"{where}: algorithms {', '.join(bad)} cannot be used; use {', '.join(ALGORITHMS)}")
        if given["identity_provider"] in out:
            raise BadSetting(f"{where}: {given['identity_provider']} is there twice")
        skew = given.get("skew_s", 60)
        if isinstance(skew, bool) or not isinstance(skew, (int, float)) or not 0 <= skew <= 600:
            raise BadSetting(f"{where}: skew_s must be 0 to 600 seconds")
        out[given["identity_provider"]] = Provider(
            given["issuer"], tuple(audience), given["jwks"], float(skew), tuple(algorithms)
        )
    return out


def providers(cloud: Cloud) -> dict[str, Provider]:
    """Those of this cloud, read once and again when the settings were (SIGHUP). Raises BadSetting."""
    given = cloud.settings.oidc
    kept: tuple[Any, dict[str, Provider]] | None = cloud.memory.get("identity.oidc")
    if kept is None or kept[0] != given:
        kept = cloud.memory["identity.oidc"] = (given, read(cloud.settings))
    return kept[1]


def verify(cloud: Cloud, idp_id: str, token: str) -> Row:
    """The claims of a bearer token of this identity provider. Raises :class:`Rejected` or :class:`Unreachable`."""
    try:
        provider = providers(cloud).get(idp_id)
    except BadSetting as e:
        raise Unreachable(str(e)) from None
    if provider is None:
        raise Rejected(f"no [[oidc]] section of this cloud's configuration is about the identity provider {idp_id}")
    if len(token) > LONGEST:
        raise Rejected("the token is too long")
    try:
        header = jwt.get_unverified_header(token)
    except (jwt.PyJWTError, ValueError, RecursionError):
        raise Rejected("it is not a signed JSON Web Token") from None
    algorithm, kid = header.get("alg"), header.get("kid")
    if algorithm not in provider.algorithms:
        raise Rejected(f"its algorithm must be one of {', '.join(provider.algorithms)}")
    keys = _candidates(provider, cloud.state, algorithm, kid)
    if not keys:
        raise Rejected("it is not signed with a key of the identity provider")
    why = "its signature is wrong"
    for key in keys:
        try:
            made = jwt.PyJWK(key, algorithm=algorithm)
            claims: Row = jwt.decode(
                token, made, algorithms=[algorithm], audience=list(provider.audience), issuer=provider.issuer,
                leeway=provider.skew_s, options={"require": ["exp", "iat", "iss", "aud", "sub"]},
            )  # fmt: skip
        except jwt.InvalidSignatureError:
            continue
        except (jwt.PyJWTError, ValueError, TypeError, OverflowError, RecursionError) as e:
            why = str(e) or why
            continue
        party = claims.get("azp")
        if isinstance(claims["aud"], list) and len(claims["aud"]) > 1 and party not in (None, *provider.audience):
            raise Rejected("its authorized party (azp) is somebody else")
        return claims
    raise Rejected(why)


def _candidates(provider: Provider, state: Path, algorithm: str, kid: Any) -> list[Row]:
    for fetch in (False, True):
        found = []
        for key in _keys(provider, state, again=fetch):
            fits = key.get("kty") == _KINDS[algorithm[:2]] and key.get("use", "sig") == "sig"
            if fits and key.get("alg", algorithm) == algorithm and (kid is None or key.get("kid") in (None, kid)):
                found.append(key)
        if found:
            return found
    return []


def _keys(provider: Provider, state: Path, *, again: bool) -> list[Row]:
    """The key set, read again when it is old, or ``again`` when it may have changed."""
    with provider.lock:
        age = time.monotonic() - provider.read_at
        if age > KEEP_S or (again and age > AGAIN_S) or not _is_url(provider.jwks):
            try:
                _refresh(provider, state)
            except (OSError, ValueError) as e:
                if not provider.keys:
                    raise Unreachable(f"the keys of {provider.issuer} cannot be read: {e}") from None
            provider.read_at = time.monotonic()
        return provider.keys


def _is_url(text: str) -> bool:
    return text.startswith(("http://", "https://"))


def _refresh(provider: Provider, state: Path) -> None:
    if _is_url(provider.jwks):
        request = urllib.request.Request(provider.jwks, headers={"Accept": "application/json"})
        with urllib.request.urlopen(request, timeout=TIMEOUT_S) as got:
            data = got.read(LARGEST_SET + 1)
    else:
        path = state / provider.jwks
        stamp = path.stat().st_mtime_ns
        if provider.keys and stamp == provider.stamp:
            return
        data, provider.stamp = path.read_bytes(), stamp
    if len(data) > LARGEST_SET:
        raise ValueError("the key set is too large")
    found = json.loads(data)
    keys = found.get("keys") if isinstance(found, dict) else None
    if not isinstance(keys, list):
        raise ValueError("it is not a JSON Web Key Set: the list 'keys' is missing")
    provider.keys = [k for k in keys if isinstance(k, dict)]


def assertion(claims: Mapping[str, Any]) -> dict[str, list[str]]:
    """Claims under the names that mappings use for them: as mod_auth_openidc hands them on, with its prefix ``OIDC-``
    and as CGI variables (``HTTP_OIDC_ISS``). Lists stay lists: no character inside a value separates anything."""
    out: dict[str, list[str]] = {}
    for name, value in claims.items():
        texts = [_text(v) for v in (value if isinstance(value, list) else [value]) if v is not None]
        out[f"OIDC-{name}"] = out[f"HTTP_OIDC_{name.upper().replace('-', '_')}"] = texts
    out["REMOTE_USER"] = [str(claims["sub"])]
    return out


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, separators=(",", ":"))
