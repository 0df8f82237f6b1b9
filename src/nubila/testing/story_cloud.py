"""A cloud seen from outside, and the users and projects a parity story is played by."""

from __future__ import annotations

import dataclasses
import hashlib
import http.client
import json
import os
import re
import secrets
import ssl
import urllib.parse
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

ROLES = {
    "admin": ("", ""),
    "member": ("member", "project"),
    "reader": ("reader", "project"),
    "manager": ("manager", "project"),
    "stranger": ("member", "stranger"),
    "roleless": ("", "unscoped"),
    "anonymous": ("", ""),
}
"""Who may act: name -> (role, scope). `admin` is the cloud's own; `stranger` is a member of another project."""


class StoryError(Exception):
    """The story cannot be played: a mistake in it or a cloud that lacks what it needs."""


@dataclasses.dataclass(frozen=True)
class Answer:
    """What came back: status, all headers (lower case) and the body as JSON, text or a description of bytes."""

    status: int
    headers: dict[str, str]
    body: Any


class Http:
    """HTTP/1.1 with one kept connection per host."""

    def __init__(self, timeout_s: float = 120) -> None:
        self._timeout = timeout_s
        self._connections: dict[tuple[str, str], http.client.HTTPConnection] = {}

    def request(self, method: str, url: str, headers: Mapping[str, str], body: bytes | None) -> Answer:
        """One request; a kept connection that the server closed meanwhile is opened anew once."""
        parts = urllib.parse.urlsplit(url)
        target = parts.path + (f"?{parts.query}" if parts.query else "") or "/"
        key = (parts.scheme, parts.netloc)
        for attempt in (1, 2):
            connection = self._connections.get(key)
            if connection is None:
                connection = self._open(parts.scheme, parts.netloc)
                self._connections[key] = connection
            try:
                connection.request(method, target, body=body, headers=dict(headers))
                response = connection.getresponse()
                raw = response.read()
            except (http.client.HTTPException, OSError):
                connection.close()
                del self._connections[key]
                if attempt == 2:
                    raise
                continue
            seen: dict[str, str] = {}
            for name, value in response.getheaders():
                seen[name.lower()] = f"{seen[name.lower()]}, {value}" if name.lower() in seen else value
            return Answer(response.status, seen, _parse(raw, seen.get("content-type", "")))
        raise AssertionError("unreachable")

    def _open(self, scheme: str, netloc: str) -> http.client.HTTPConnection:
        if scheme == "https":
            context = ssl.create_default_context(cafile=os.environ.get("OS_CACERT"))
            return http.client.HTTPSConnection(netloc, timeout=self._timeout, context=context)
        return http.client.HTTPConnection(netloc, timeout=self._timeout)

    def close(self) -> None:
        """Close every kept connection."""
        for connection in self._connections.values():
            connection.close()
        self._connections.clear()


def _parse(raw: bytes, content_type: str) -> Any:
    if not raw:
        return None
    if "json" in content_type:
        try:
            return json.loads(raw)
        except ValueError:
            return {"_broken_json": raw.decode(errors="replace")}
    if content_type.startswith("text/"):
        return {"_text": raw.decode(errors="replace")}
    return {"_bytes": len(raw), "_sha256": hashlib.sha256(raw).hexdigest()}


_PATH = re.compile(r"""\.([^.\[\]]+)|\[(\d+)\]|\["([^"]+)"\]|\[([\w:-]+)=([^\]]*)\]""")


def pick(body: Any, path: str) -> Any:
    """The value at `$.a[0]["x.y"].b` or `$.images[name=foo].id`; KeyError with the path when it is not there."""
    position = 1
    while position < len(path):
        match = _PATH.match(path, position)
        if match is None:
            raise StoryError(f"cannot read path {path!r} at {path[position:]!r}")
        position = match.end()
        try:
            body = _pick_one(body, match)
        except (KeyError, IndexError, TypeError, StopIteration):
            raise KeyError(path) from None
    return body


def _pick_one(body: Any, match: re.Match[str]) -> Any:
    if match[2] is not None:
        return body[int(match[2])]
    if match[4] is not None:
        return next(item for item in body if str(item.get(match[4])) == match[5])
    return body[match[1] or match[3]]


@dataclasses.dataclass
class Actor:
    """One who asks: a token and the ids behind it."""

    name: str
    token: str = ""
    user_id: str = ""
    user_name: str = ""
    project_id: str = ""
    project_name: str = ""
    password: str = ""


class Cloud:
    """A cloud to play against, seen with its administrator's eyes."""

    def __init__(self, auth_url: str, password: str, user: str = "admin", project: str = "admin") -> None:
        self.auth_url = auth_url.rstrip("/")
        self.http = Http()
        scope = {"project": {"name": project, "domain": {"id": "default"}}}
        self.admin = Actor("admin", user_name=user, project_name=project, password=password)
        token = self.login({"name": user, "domain": {"id": "default"}, "password": password}, scope, self.admin)
        self.bases: dict[str, str] = {}
        for service in token["catalog"]:
            for endpoint in service["endpoints"]:
                if endpoint["interface"] == "public":
                    self.bases[service["type"]] = re.sub(r"/v\d+(\.\d+)?/?$", "", endpoint["url"]).rstrip("/")
        self.names = dict(self._host_names())

    def login(self, user: Mapping[str, Any], scope: Any, actor: Actor) -> dict[str, Any]:
        """Get a token by password, fill `actor`; returns the token's description."""
        identity: dict[str, Any] = {"methods": ["password"], "password": {"user": user}}
        auth = {"identity": identity, **({"scope": scope} if scope else {})}
        url = f"{self.auth_url}/auth/tokens"
        answer = self.http.request("POST", url, JSON_HEADERS, json.dumps({"auth": auth}).encode())
        if answer.status != 201:
            raise StoryError(f"login as {user.get('name')} at {url}: {answer.status} {answer.body}")
        token: dict[str, Any] = answer.body["token"]
        actor.token = answer.headers["x-subject-token"]
        actor.user_id, actor.user_name = token["user"]["id"], token["user"]["name"]
        if "project" in token:
            actor.project_id, actor.project_name = token["project"]["id"], token["project"]["name"]
        return token

    def ask(self, method: str, url: str, body: Any = None, ok: Sequence[int] = (200, 201, 202, 204)) -> Any:
        """A request of the administrator's that must succeed; `url` is `type:/path`."""
        data = None if body is None else json.dumps(body).encode()
        answer = self.http.request(method, self.url(url), {**JSON_HEADERS, "X-Auth-Token": self.admin.token}, data)
        if answer.status not in ok:
            raise StoryError(f"{method} {url}: {answer.status} {answer.body}")
        return answer.body

    def url(self, short: str) -> str:
        """`compute:/v2.1/servers` as a full URL of this cloud."""
        service, _, path = short.partition(":")
        if service not in self.bases:
            raise StoryError(f"this cloud has no service of type {service}")
        return self.bases[service] + path

    def _host_names(self) -> Iterator[tuple[str, str]]:
        if "compute" not in self.bases:
            return
        try:
            found = self.ask("GET", "compute:/v2.1/os-hypervisors/detail")["hypervisors"]
        except StoryError:  # in the catalogue, and not running where only Networking is recorded
            for agent in self.ask("GET", "network:/v2.0/agents")["agents"]:
                yield agent["host"], "host"
            return
        for hypervisor in found:
            yield hypervisor["hypervisor_hostname"], "hypervisor"
            yield hypervisor["service"]["host"], "host"
        for service in self.ask("GET", "compute:/v2.1/os-services")["services"]:
            yield service["host"], "host"


JSON_HEADERS = {"Accept": "application/json", "Content-Type": "application/json"}


class Cast:
    """The users and projects of one playing; a context manager that removes them."""

    def __init__(self, cloud: Cloud, wanted: set[str], extra: Mapping[str, Sequence[str]]) -> None:
        self.cloud = cloud
        self.tag = "nb" + secrets.token_hex(4)
        self.actors: dict[str, Actor] = {"admin": cloud.admin, "anonymous": Actor("anonymous")}
        self._made: list[str] = []
        self._roles: dict[str, Sequence[str]] = {**ROLES, **extra}
        self._wanted = wanted | set(extra)

    def __enter__(self) -> Cast:
        try:
            self._make()
        except BaseException:
            self._remove()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._remove()

    def _make(self) -> None:
        roles = {role["name"]: role["id"] for role in self.cloud.ask("GET", "identity:/v3/roles")["roles"]}
        projects: dict[str, str] = {}
        for name in sorted(self._wanted - set(self.actors)):
            if name not in self._roles:
                raise StoryError(f"nobody is called {name!r}")
            role, scope = self._roles[name]
            actor = Actor(name, user_name=f"{self.tag}-{name}", password=secrets.token_urlsafe(18))
            user = {"name": actor.user_name, "password": actor.password, "domain_id": "default"}
            actor.user_id = self._create("users", "user", user)
            where, wish = self._scope(scope, projects)
            if role:
                self.cloud.ask("PUT", f"identity:/v3/{where}/users/{actor.user_id}/roles/{roles[role]}")
            self.cloud.login({"id": actor.user_id, "password": actor.password}, wish, actor)
            self.actors[name] = actor

    def _scope(self, scope: str, projects: dict[str, str]) -> tuple[str, Any]:
        if scope == "system":
            return "system", {"system": {"all": True}}
        if scope == "domain":
            return "domains/default", {"domain": {"id": "default"}}
        if scope == "unscoped":
            return "", None
        if scope not in projects:
            project = {"name": f"{self.tag}-{scope}", "domain_id": "default", "description": "parity story"}
            projects[scope] = self._create("projects", "project", project)
        return f"projects/{projects[scope]}", {"project": {"id": projects[scope]}}

    def _create(self, collection: str, key: str, body: dict[str, Any]) -> str:
        made: str = self.cloud.ask("POST", f"identity:/v3/{collection}", {key: body})[key]["id"]
        self._made.append(f"identity:/v3/{collection}/{made}")
        return made

    def _remove(self) -> None:
        for name, actor in self.actors.items():
            if "network" in self.cloud.bases and actor.project_id and name != "admin":
                self._forget_default_group(actor.project_id)
        for url in reversed(self._made):
            self.cloud.ask("DELETE", url, ok=(204, 404))

    def _forget_default_group(self, project: str) -> None:
        listing = f"network:/v2.0/security-groups?tenant_id={project}&fields=id"
        for group in self.cloud.ask("GET", listing)["security_groups"]:
            self.cloud.ask("DELETE", f"network:/v2.0/security-groups/{group['id']}", ok=(204, 404, 409))
