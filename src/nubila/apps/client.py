"""A small client for our own commands (quick start, launch): JSON over HTTP, endpoints from the catalogue.

People and programs use the openstack command line or an SDK; this exists so that a bare machine needs neither.
"""

from __future__ import annotations

import http.client
import json
import ssl
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlencode, urlsplit


class ApiError(Exception):
    """An answer of 400 or above: ``status`` and what the service said."""

    def __init__(self, method: str, url: str, status: int, text: str) -> None:
        super().__init__(f"{method} {url}: HTTP {status}: {text[:500]}")
        self.status = status


class Client:
    """One user in one project."""

    def __init__(self, auth_url: str, user: str, password: str, project: str, cacert: str | None = None) -> None:
        self._tls = ssl.create_default_context(cafile=cacert) if auth_url.startswith("https:") else None
        self.auth_url, self.user, self.password, self.project = auth_url, user, password, project
        self.token, self.endpoints, self.project_id = "", {}, ""  # type: tuple[str, dict[str, str], str]
        self._connection: http.client.HTTPConnection | None = None
        self.login()

    def login(self) -> None:
        """A fresh token and the catalogue."""
        body = {"auth": {
            "identity": {"methods": ["password"], "password": {"user": {
                "name": self.user, "domain": {"id": "default"}, "password": self.password}}},
            "scope": {"project": {"name": self.project, "domain": {"id": "default"}}},
        }}  # fmt: skip
        status, headers, data = self._send("POST", self.auth_url + "/auth/tokens", json.dumps(body).encode(), {})
        if status != 201:
            raise ApiError("POST", self.auth_url + "/auth/tokens", status, data.decode("utf-8", "replace"))
        token = json.loads(data)["token"]
        self.token, self.project_id = headers["x-subject-token"], token["project"]["id"]
        for service in token["catalog"]:
            for endpoint in service["endpoints"]:
                if endpoint["interface"] == "public":
                    self.endpoints[service["type"]] = endpoint["url"].rstrip("/")

    def _send(
        self, method: str, url: str, body: bytes | Iterator[bytes] | None, headers: dict[str, str]
    ) -> tuple[int, dict[str, str], bytes]:
        parts = urlsplit(url)
        path = parts.path + (f"?{parts.query}" if parts.query else "")
        for attempt in (0, 1):
            kept = self._connection
            if kept is not None and (kept.host, kept.port) != (parts.hostname, parts.port or kept.default_port):
                kept.close()  # another service on a port of its own
                kept = None
            connection = kept or self._connect(parts.hostname or "", parts.port)
            self._connection = connection
            try:
                connection.request(method, path, body, {"Content-Type": "application/json", **headers})
                answer = connection.getresponse()
                return answer.status, {k.lower(): v for k, v in answer.getheaders()}, answer.read()
            except (OSError, http.client.HTTPException):
                connection.close()
                self._connection = None
                if attempt or kept is None or not isinstance(body, bytes | None):
                    raise
        raise AssertionError("unreachable")

    def _connect(self, host: str, port: int | None) -> http.client.HTTPConnection:
        if self._tls is not None:
            return http.client.HTTPSConnection(host, port or 443, timeout=60, context=self._tls)
        return http.client.HTTPConnection(host, port or 80, timeout=60)

    def call(self, method: str, service: str, path: str, body: Any = None, **query: Any) -> Any:
        """One request to a service; the decoded answer. Raises ApiError."""
        base = self.endpoints[service]
        if service == "network":
            base += "/v2.0"
        elif service == "image":
            base += "/v2"
        url = base + path + (f"?{urlencode(query, doseq=True)}" if query else "")
        headers = {"X-Auth-Token": self.token, "Accept": "application/json"}
        if service == "compute":
            headers["OpenStack-API-Version"] = "compute 2.90"
        status, _, data = self._send(method, url, None if body is None else json.dumps(body).encode(), headers)
        if status >= 400:
            raise ApiError(method, url, status, data.decode("utf-8", "replace"))
        return json.loads(data) if data else None

    def upload(self, image_id: str, path: Path) -> None:
        """Send an image's bytes as a stream."""

        def chunks() -> Iterator[bytes]:
            with path.open("rb") as f:
                while data := f.read(1 << 20):
                    yield data

        url = f"{self.endpoints['image']}/v2/images/{image_id}/file"
        headers = {"X-Auth-Token": self.token, "Content-Type": "application/octet-stream",
                   "Content-Length": str(path.stat().st_size)}  # fmt: skip
        status, _, data = self._send("PUT", url, chunks(), headers)
        if status >= 400:
            raise ApiError("PUT", url, status, data.decode("utf-8", "replace"))


def poll(what: str, look: Callable[[], Any], timeout_s: float, every_s: float = 0.1) -> Any:
    """Look until there is an answer that is true; TimeoutError names what was waited for and what was seen last."""
    deadline = time.monotonic() + timeout_s
    last: Any = None
    while time.monotonic() < deadline:
        try:
            last = look()
            if last:
                return last
        except (OSError, ApiError) as e:
            last = e
        time.sleep(every_s)
    raise TimeoutError(f"{what}: not within {timeout_s:g} s (last seen: {last})")
