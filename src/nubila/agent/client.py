"""The agent's side of the host API: JSON over HTTP on the local Unix socket, or over mutual TLS.

One short-lived connection per thread, kept alive between calls. Raises :class:`Unreachable` when nobody answers and
:class:`Refused` when the control plane says no.
"""

from __future__ import annotations

import base64
import contextlib
import http.client
import os
import socket
import ssl
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import msgspec

TIMEOUT_S = 15.0
"""How long one answer may take: a wire that was cut is noticed, and a new one used, after this."""


class Unreachable(Exception):
    """The control plane does not answer; everything here goes on running."""


class Refused(Exception):
    """The control plane refused: ``status`` and its sentence."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: str, timeout_s: float) -> None:
        super().__init__("localhost", timeout=timeout_s)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        directory = os.open(os.path.dirname(self._path), os.O_RDONLY | os.O_DIRECTORY)
        try:  # socket addresses are limited to 107 bytes, state directories are not
            self.sock.connect(f"/proc/self/fd/{directory}/{os.path.basename(self._path)}")
        finally:
            os.close(directory)


class HostApi:
    """One host's line to the control plane. ``url`` is ``unix:/path`` or ``https://address:port``."""

    def __init__(
        self, url: str, host: str, *, certificate: Path | None = None, key: Path | None = None, ca: Path | None = None,
        timeout_s: float = TIMEOUT_S,
    ) -> None:  # fmt: skip
        self.url, self.host, self._timeout_s = url, host, timeout_s
        self._local = threading.local()
        self._tls: ssl.SSLContext | None = None
        if url.startswith("https:"):
            self._tls = ssl.create_default_context(cafile=str(ca))
            self._tls.minimum_version = ssl.TLSVersion.TLSv1_2
            # The cloud's authority signs one kind of server certificate, for this API: whoever shows one is the
            # control plane, by whatever name or address it was reached.
            self._tls.check_hostname = False
            if certificate is not None:
                self._tls.load_cert_chain(str(certificate), str(key))

    def _connection(self) -> http.client.HTTPConnection:
        kept: http.client.HTTPConnection | None = getattr(self._local, "connection", None)
        if kept is not None:
            return kept
        if self.url.startswith("unix:"):
            made: http.client.HTTPConnection = _UnixConnection(self.url[5:], self._timeout_s)
        else:
            parts = urlsplit(self.url)
            made = http.client.HTTPSConnection(
                parts.hostname or "", parts.port or 443, timeout=self._timeout_s, context=self._tls
            )
        self._local.connection = made
        return made

    def close(self) -> None:
        """Drop this thread's connection."""
        kept = getattr(self._local, "connection", None)
        if kept is not None:
            kept.close()
            self._local.connection = None

    def _send(self, method: str, path: str, body: bytes | None) -> http.client.HTTPResponse:
        headers = {"X-Nubila-Host": self.host}
        if body is not None:
            headers["Content-Type"] = "application/json"
        for attempt in (0, 1):
            connection = self._connection()
            fresh = connection.sock is None
            try:
                connection.request(method, "/host" + path, body, headers)
                return connection.getresponse()
            except (OSError, http.client.HTTPException) as e:
                self.close()
                if attempt or fresh:  # a kept connection may have been closed by a restart: once more
                    raise Unreachable(f"{type(e).__name__}: {e}") from None
        raise AssertionError("unreachable")

    def call(self, method: str, path: str, body: Any = None) -> Any:
        """One request and its decoded answer."""
        response = self._send(method, path, None if body is None else msgspec.json.encode(body))
        try:
            data = response.read()
        except (OSError, http.client.HTTPException) as e:
            self.close()
            raise Unreachable(f"{type(e).__name__}: {e}") from None
        if response.status >= 500:
            raise Unreachable(f"HTTP {response.status}: {data[:200]!r}")
        if response.status >= 400:
            message = data.decode("utf-8", "replace")
            with contextlib.suppress(Exception):
                message = msgspec.json.decode(data)["error"]["message"]
            raise Refused(response.status, message)
        return msgspec.json.decode(data) if data else None

    def download(self, path: str, into: Path) -> None:
        """Stream a body into a file: complete or absent."""
        response = self._send("GET", path, None)
        if response.status != 200:
            raise Refused(response.status, response.read()[:300].decode("utf-8", "replace"))
        length = response.length
        temp = into.with_name(f"{into.name}.{os.getpid()}.{threading.get_ident()}.part")
        try:
            with temp.open("wb") as f:
                while data := response.read(1 << 20):
                    f.write(data)
                if length is not None and f.tell() != length:  # http.client takes a broken connection for the end
                    raise http.client.IncompleteRead(b"", length - f.tell())
                f.flush()
                os.fsync(f.fileno())
            temp.rename(into)
        except (OSError, http.client.HTTPException) as e:
            self.close()
            raise Unreachable(f"{type(e).__name__}: {e}") from None
        finally:
            temp.unlink(missing_ok=True)

    # --- the calls ------------------------------------------------------------------------------------------------

    def hello(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """Say what this host is."""
        answer: dict[str, Any] = self.call("POST", "/hello", body)
        return answer

    def take(
        self, limit: int, wait_s: float, holding: list[tuple[str, str, int]] | None = None
    ) -> list[dict[str, Any]]:
        """Lease work, waiting for some. ``holding``: (kind, id, token) of all that is on lease already."""
        body = {"max": limit, "wait_s": wait_s, "holding": holding}
        items: list[dict[str, Any]] = self.call("POST", "/take", body)["items"]
        return items

    def settle(self, items: list[dict[str, Any]]) -> list[str]:
        """Report outcomes."""
        results: list[str] = self.call("POST", "/settle", {"items": items})["results"]
        return results

    def every(self) -> dict[str, list[str]]:
        """What may be here."""
        kinds: dict[str, list[str]] = self.call("GET", "/every")["kinds"]
        return kinds

    def sweep(self) -> None:
        """Have everything asked once."""
        self.call("POST", "/sweep", {})

    def routers(self, claims: Mapping[str, Any]) -> dict[str, Any]:
        """Claim, renew or give back leases of highly available routers; answers by router."""
        answers: dict[str, Any] = self.call("POST", "/routers", {"routers": claims})["routers"]
        return answers

    def metadata(
        self, *, network_id: str | None, router_id: str | None, address: str, method: str, path: str, body: bytes
    ) -> tuple[int, str, bytes]:
        """A guest's metadata request (ports.MetadataAnswer)."""
        got = self.call("POST", "/metadata", {
            "network_id": network_id, "router_id": router_id, "address": address, "method": method, "path": path,
            "body": base64.b64encode(body).decode(),
        })  # fmt: skip
        return got["status"], got["content_type"], base64.b64decode(got["body"])
