"""A cloud whose domain ``corp`` is kept in a directory, and what an operator writes for that."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import slapd

from nubila.core.config import Sections
from nubila.testing.cloud import Response, TestCloud

PEOPLE = "\n".join([
    slapd.person("alice", password="alice-pw", more="description: the first\n"),
    slapd.person("bob", password="bob-pw"),
    slapd.person("carol"),
    slapd.group("staff", "alice", "bob"),
    slapd.group("empty"),
])  # fmt: skip


def options(server: slapd.Slapd, **more: Any) -> dict[str, Any]:
    """What an operator would write for this server."""
    return {
        "url": server.url, "user": slapd.READER, "password": slapd.READER_PASSWORD, "suffix": slapd.SUFFIX,
        "user_id_attribute": "uid", "user_name_attribute": "uid", "group_name_attribute": "cn", "page_size": 500,
        "connection_timeout": 1, "operation_timeout": 2, "cache_time": 1, **more,
    }  # fmt: skip


def writable(server: slapd.Slapd, **more: Any) -> dict[str, Any]:
    """The same with everything allowed, as an account that may."""
    allowed = {f"{what}_allow_{verb}": True for what in ("user", "group") for verb in ("create", "update", "delete")}
    return options(server, user=slapd.ROOT, password=slapd.PASSWORD, use_dumb_member=True, **allowed, **more)


class Corp:
    """A cloud with a domain ``corp`` in a directory, a project there, and shorthands."""

    def __init__(self, state: Path, corp: dict[str, Any], *, database: str = "", **others: dict[str, Any]) -> None:
        self.cloud = TestCloud(state, hosts=0, database=database, ldap=Sections(corp=corp, **others))
        self.domains = {name: self.make_domain(name) for name in ("corp", *others)}
        self.domain = self.domains["corp"]
        body = {"project": {"name": "work", "domain_id": self.domain}}
        self.project = self.ask("POST", "/v3/projects", body, 201).json["project"]["id"]
        self.roles = {r["name"]: r["id"] for r in self.ask("GET", "/v3/roles").json["roles"]}

    def make_domain(self, name: str) -> str:
        return str(self.ask("POST", "/v3/domains", {"domain": {"name": name}}, 201).json["domain"]["id"])

    def ask(self, method: str, url: str, body: Any = None, status: int = 200, token: str | None = None) -> Response:
        """One request as admin (or with a token), and its status checked."""
        got = self.cloud.request(method, url, body, token=token)
        assert got.status == status, (method, url, got.status, got.body)
        return got

    def users(self, query: str = "", *, domain: str = "", status: int = 200) -> Any:
        """The names of a list of users, or the answer's body when it is a refusal."""
        got = self.ask("GET", f"/v3/users?domain_id={domain or self.domain}{query}", status=status).json
        return sorted(u["name"] for u in got["users"]) if status == 200 else got

    def user(self, name: str) -> dict[str, Any]:
        """One user by name."""
        found = self.ask("GET", f"/v3/users?domain_id={self.domain}&name={name}").json["users"]
        assert len(found) == 1, found
        return dict(found[0])

    def group(self, name: str) -> dict[str, Any]:
        """One group by name."""
        found = self.ask("GET", f"/v3/groups?domain_id={self.domain}&name={name}").json["groups"]
        assert len(found) == 1, found
        return dict(found[0])

    def grant(self, name: str, role: str = "member", kind: str = "users") -> None:
        """Give somebody a role on the project, or a whole group."""
        id = self.user(name)["id"] if kind == "users" else self.group(name)["id"]
        self.ask("PUT", f"/v3/projects/{self.project}/{kind}/{id}/roles/{self.roles[role]}", None, 204)

    def login(
        self, name: str, password: str, *, status: int = 201, domain: str = "corp", scope: bool = True, id: str = ""
    ) -> Response:
        """A login with a password, on the project unless told otherwise."""
        body = self.credentials(name, password, domain=domain, scope=scope, id=id)
        return self.ask("POST", "/v3/auth/tokens", body, status, token="")

    def credentials(
        self, name: str, password: str, *, domain: str = "corp", scope: bool = True, id: str = ""
    ) -> dict[str, Any]:
        """The body of such a login."""
        who: dict[str, Any] = {"id": id} if id else {"name": name, "domain": {"name": domain}}
        auth: dict[str, Any] = {
            "identity": {"methods": ["password"], "password": {"user": {**who, "password": password}}}
        }
        if scope:
            auth["scope"] = {"project": {"id": self.project}}
        return {"auth": auth}

    def token(self, name: str, password: str) -> str:
        """A token for the project."""
        return self.login(name, password).headers["x-subject-token"]

    def close(self) -> None:
        self.cloud.close()
