"""A directory's users in one short story on every database: what differs is in the SQL of their copies."""

from __future__ import annotations

from pathlib import Path

import pytest
import slapd
from corp import Corp, writable

pytest_plugins = ["nubila.testing.fixtures"]
pytestmark = [pytest.mark.host, pytest.mark.skipif(not slapd.SLAPD, reason="slapd is not installed")]


def test_story(tmp_path: Path, database_url: str, ldap: slapd.Slapd) -> None:
    c = Corp(tmp_path / "cloud", writable(ldap), database=database_url)
    assert c.users() == ["alice", "bob", "carol"]
    c.grant("staff", "member", "groups")
    token = c.token("alice", "alice-pw")
    c.ask("GET", "/v3/auth/projects", token=token)
    members = c.ask("GET", f"/v3/groups/{c.group('staff')['id']}/users").json["users"]
    assert sorted(u["name"] for u in members) == ["alice", "bob"]
    made = c.ask("POST", "/v3/users", {"user": {"name": "José", "domain_id": c.domain, "password": "ü"}}, 201).json
    c.login("José", "ü", scope=False)
    c.ask("PUT", f"/v3/groups/{c.group('staff')['id']}/users/{made['user']['id']}", status=204)
    c.login("José", "ü")
    c.ask("PATCH", f"/v3/users/{made['user']['id']}", {"user": {"email": "j@x.org"}})
    assert c.user("Jos%C3%A9")["email"] == "j@x.org"
    c.ask("DELETE", f"/v3/users/{made['user']['id']}", status=204)
    assert c.users() == ["alice", "bob", "carol"]
    c.ask("DELETE", f"/v3/groups/{c.group('staff')['id']}", status=204)
    c.ask("GET", "/v3/auth/projects", token=token, status=401)
    c.ask("DELETE", f"/v3/users/{c.user('bob')['id']}", status=204)
    assert c.users() == ["alice", "carol"]
    c.close()
