"""What a proxy in front says about the client, believed only from trusted proxies.

``X-Forwarded-Proto``, ``-Host``, ``-Prefix`` and ``-For`` as proxies write them (de facto standard; RFC 7239 describes
the idea). Where a proxy appended to what it was sent, the last word is its own. A client certificate that a proxy
verified comes in the header named by the setting ``client_cert_header``: PEM, URL-encoded PEM or base64 of DER.
"""

from __future__ import annotations

import base64
import binascii
import ipaddress
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote

from nubila.core.config import Settings

_HOST = re.compile(r"[A-Za-z0-9._-]+(:[0-9]{1,5})?|\[[0-9A-Fa-f:.]+\](:[0-9]{1,5})?")
_PREFIX = re.compile(r"(/[A-Za-z0-9._~-]+)*")
_MARKS = re.compile(r"-----(BEGIN|END) CERTIFICATE-----|\s+")
_REMEMBERED = 4096


@dataclass(frozen=True, slots=True)
class Seen:
    """A request as its client sent it: URL scheme and authority, path prefix at the proxy, address, certificate."""

    scheme: str
    host: str
    prefix: str
    peer: str
    proxied: bool
    client_cert: bytes | None


class Proxies:
    """The trusted proxies of one set of settings."""

    def __init__(self, settings: Settings) -> None:
        self._networks = [ipaddress.ip_network(n, strict=False) for n in settings.trusted_proxies]
        self._certificate = settings.client_cert_header.lower()
        self._known: dict[str, bool] = {}

    def trusts(self, address: str) -> bool:
        """Whether a connection from this address may speak for others."""
        known = self._known.get(address)
        if known is None:
            if len(self._known) >= _REMEMBERED:
                self._known.clear()
            known = self._known[address] = self._looked_up(address)
        return known

    def _looked_up(self, address: str) -> bool:
        try:
            found = ipaddress.ip_address(address.partition("%")[0])
        except ValueError:
            return False
        if isinstance(found, ipaddress.IPv6Address) and found.ipv4_mapped is not None:
            found = found.ipv4_mapped
        return any(found in n for n in self._networks)

    def seen(self, scope: Mapping[str, Any], headers: Mapping[str, str]) -> Seen:
        """What the client did, as far as whoever connected may say so."""
        client = scope.get("client")
        peer = scope.get("nubila.peer") or (client[0] if client else "local")
        scheme, host = scope.get("scheme", "http"), headers.get("host") or "localhost"
        certificate: bytes | None = scope.get("nubila.client_cert")
        if not self.trusts(peer):
            return Seen(scheme, host, "", peer, False, certificate)
        prefix = ""
        if (text := _last(headers, "x-forwarded-proto").lower()) in ("http", "https"):
            scheme = text
        if _HOST.fullmatch(text := _last(headers, "x-forwarded-host")):
            host = text
        if (text := _last(headers, "x-forwarded-prefix").rstrip("/")) and _PREFIX.fullmatch(text):
            prefix = text
        if text := headers.get("x-forwarded-for", ""):
            peer = self._origin(text, peer)
        if self._certificate and (text := headers.get(self._certificate, "")):
            certificate = der(text) or certificate
        return Seen(scheme, host, prefix, peer, True, certificate)

    def _origin(self, text: str, peer: str) -> str:
        """The last address that is not a proxy of ours; what stands before it may be invented."""
        for part in reversed(text.split(",")):
            word = part.strip().strip("[]")
            try:
                ipaddress.ip_address(word)
            except ValueError:
                return peer
            peer = word
            if not self.trusts(word):
                return peer
        return peer


def _last(headers: Mapping[str, str], name: str) -> str:
    text = headers.get(name)
    return text.rpartition(",")[2].strip() if text else ""


def der(text: str) -> bytes | None:
    """A certificate header's value as DER; None when it is none."""
    plain = _MARKS.sub("", unquote(text)).replace(" ", "")
    try:
        found = base64.b64decode(plain, validate=True)
    except (binascii.Error, ValueError):
        return None
    return found if found[:1] == b"\x30" else None  # a certificate is an ASN.1 sequence
