"""The audit log: an event for every authentication and every change, none of them with a secret."""

from __future__ import annotations

import json
import stat
import time
from pathlib import Path
from typing import Any

import pytest

from nubila.edge import crud
from nubila.services.identity import SERVICE, audit
from nubila.testing.cloud import TestCloud

Event = dict[str, Any]
SECRET = "S3cret-of-mine"


def events(cloud: TestCloud) -> list[Event]:
    return [json.loads(line) for line in (cloud.state / "log" / "audit.log").read_text().splitlines()]


def last(cloud: TestCloud) -> Event:
    return events(cloud)[-1]


def auth(name: str, password: str, **scope: Any) -> Event:
    user = {"name": name, "domain": {"id": "default"}, "password": password}
    return {"auth": {"identity": {"methods": ["password"], "password": {"user": user}}, **scope}}


def make(cloud: TestCloud, path: str, item: str, **values: Any) -> Event:
    got = cloud.request("POST", path, {item: values})
    assert got.status == 201, got.body
    made: Event = got.json[item]
    return made


def test_a_login_and_what_is_said_about_it(cloud: TestCloud) -> None:
    got = cloud.request("POST", "/v3/auth/tokens", auth("admin", cloud.passwords["admin"]), token="",
                        headers={"User-Agent": "curl/8.1"}, client="192.0.2.9")  # fmt: skip
    event, user = last(cloud), got.json["token"]["user"]["id"]
    assert event["typeURI"] == "http://schemas.dmtf.org/cloud/audit/1.0/event"
    assert (event["eventType"], event["action"], event["outcome"]) == ("activity", "authenticate", "success")
    assert event["initiator"]["id"] == event["target"]["id"] == user
    assert event["initiator"]["host"] == {"address": "192.0.2.9", "agent": "curl/8.1"}
    assert event["initiator"]["request_id"] == got.headers["x-openstack-request-id"]
    assert event["target"]["typeURI"] == "service/security/account/user"
    assert event["observer"]["typeURI"] == "service/security"
    assert event["methods"] == ["password"]
    assert got.headers["x-subject-token"] not in json.dumps(event)
    assert stat.S_IMODE((cloud.state / "log" / "audit.log").stat().st_mode) == 0o600


def test_failed_logins(cloud: TestCloud) -> None:
    admin = cloud.request("GET", "/v3/users?name=admin").json["users"][0]["id"]
    for name, who in (("admin", admin), ("nobody", "unknown")):
        assert cloud.request("POST", "/v3/auth/tokens", auth(name, SECRET), token="").status == 401
        event = last(cloud)
        assert (event["action"], event["outcome"]) == ("authenticate", "failure")
        assert event["reason"]["reasonCode"] == "401"
        assert event["initiator"]["id"] == who
    for junk in ({"auth": {"identity": {"methods": ["password"], "password": SECRET}}}, {"auth": SECRET}, [SECRET]):
        assert cloud.request("POST", "/v3/auth/tokens", junk, token="").status == 400
        assert last(cloud)["reason"]["reasonCode"] == "400"
    assert SECRET not in (cloud.state / "log" / "audit.log").read_text()


def test_changes_name_what_was_changed_and_by_whom(cloud: TestCloud) -> None:
    admin = cloud.request("GET", "/v3/users?name=admin").json["users"][0]["id"]
    items: tuple[tuple[str, str, Event], ...] = (
        ("users", "user", {"name": "u", "password": SECRET}),
        ("groups", "group", {"name": "g"}),
        ("projects", "project", {"name": "p"}),
        ("domains", "domain", {"name": "d", "enabled": False}),
        ("roles", "role", {"name": "r"}),
        ("services", "service", {"type": "x", "name": "x"}),
        ("policies", "policy", {"blob": SECRET, "type": "text/plain"}),
        ("regions", "region", {}),
    )
    for path, item, values in items:
        made = make(cloud, f"/v3/{path}", item, **values)
        for verb, done in (("", "created"), ("PATCH", "updated"), ("DELETE", "deleted")):
            if verb:
                body = {item: {"description": "new"}} if verb == "PATCH" else None
                assert cloud.request(verb, f"/v3/{path}/{made['id']}", body).status < 300
            event = last(cloud)
            assert (event["action"], event["outcome"]) == (f"{done}.{item}", "success")
            assert event["target"]["id"] == event["resource_info"] == made["id"]
            assert event["target"]["typeURI"] == {"user": "data/security/account/user"}.get(
                item, f"data/security/{item}"
            )
            assert event["initiator"]["user_id"] == admin
            assert event["initiator"]["project_id"]
    assert SECRET not in (cloud.state / "log" / "audit.log").read_text()


def test_role_assignments_and_members(cloud: TestCloud) -> None:
    user = make(cloud, "/v3/users", "user", name="u")["id"]
    group = make(cloud, "/v3/groups", "group", name="g")["id"]
    project = make(cloud, "/v3/projects", "project", name="p")["id"]
    role = make(cloud, "/v3/roles", "role", name="r")["id"]
    for url, said in (
        (f"/v3/projects/{project}/users/{user}/roles/{role}", {"project": project, "user": user}),
        (f"/v3/domains/default/groups/{group}/roles/{role}", {"domain": "default", "group": group}),
        (f"/v3/system/users/{user}/roles/{role}", {"system": "all", "user": user}),
        (f"/v3/OS-INHERIT/projects/{project}/users/{user}/roles/{role}/inherited_to_projects",
         {"project": project, "user": user, "inherited_to_projects": True}),
    ):  # fmt: skip
        for verb, done in (("PUT", "created"), ("DELETE", "deleted")):
            assert cloud.request(verb, url).status == 204
            event = last(cloud)
            assert event["action"] == f"{done}.role_assignment"
            assert {"role": role, "inherited_to_projects": False, **said}.items() <= event.items()
    assert cloud.request("PUT", f"/v3/groups/{group}/users/{user}").status == 204
    assert {"action": "updated.group", "resource_info": group, "user": user,
            "actor_operation": "added"}.items() <= last(cloud).items()  # fmt: skip


def test_refused_changes_are_events_too(cloud: TestCloud) -> None:
    token = cloud.token("demo")
    assert cloud.request("POST", "/v3/users", {"user": {"name": "x", "password": SECRET}}, token=token).status == 403
    event = last(cloud)
    assert (event["action"], event["outcome"]) == ("created.user", "failure")
    assert event["reason"]["reasonCode"] == "403"
    assert event["initiator"]["username"] == "demo"
    assert cloud.request("DELETE", "/v3/domains/default", token="gAAAAAforged").status == 401
    assert last(cloud)["initiator"]["id"] == "unknown"
    assert cloud.request("POST", "/v3/users", {"user": {"name": 1, "password": SECRET}}).status == 400
    assert SECRET not in (cloud.state / "log" / "audit.log").read_text()


def test_reading_is_not_audited(cloud: TestCloud) -> None:
    cloud.token()
    before = len(events(cloud))
    for url in ("/v3/users", "/v3/projects", "/v3/auth/catalog", "/v3", "/v3/nowhere"):
        cloud.request("GET", url)
    cloud.request("POST", "/v3/nowhere", {})
    assert len(events(cloud)) == before


@pytest.mark.parametrize(
    ("settings", "kept"),
    [
        ({"audit": False}, []),
        ({"audit_opt_out": ("identity.authenticate.success",)}, ["authenticate", "created.group", "created.role"]),
        (
            {"audit_opt_out": ("identity.authenticate.failed", "identity.group.created")},
            ["authenticate", "created.role"],
        ),
    ],
)
def test_events_can_be_left_out(tmp_path: Path, settings: dict[str, Any], kept: list[str]) -> None:
    cloud = TestCloud(tmp_path / "c", **settings)
    try:
        cloud.token()
        cloud.request("POST", "/v3/auth/tokens", auth("admin", "wrong"), token="")
        make(cloud, "/v3/groups", "group", name="g")
        make(cloud, "/v3/roles", "role", name="r")
        path = cloud.state / "log" / "audit.log"
        assert [e["action"] for e in events(cloud)] == kept if path.exists() else kept == []
    finally:
        cloud.close()


def test_the_log_is_followed_when_it_is_rotated(cloud: TestCloud, monkeypatch: pytest.MonkeyPatch) -> None:
    cloud.token()
    path = cloud.state / "log" / "audit.log"
    path.rename(path.with_name("audit.log.1"))
    start = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: start + 2)
    make(cloud, "/v3/groups", "group", name="g")
    assert [e["action"] for e in events(cloud)] == ["created.group"]


def test_a_log_that_cannot_be_written_refuses_nobody(cloud: TestCloud, caplog: pytest.LogCaptureFixture) -> None:
    cloud.cloud.memory.pop("identity.audit", None)
    path = cloud.state / "log" / "audit.log"
    path.unlink(missing_ok=True)
    path.mkdir()
    for name in ("g", "h"):
        make(cloud, "/v3/groups", "group", name=name)
    assert caplog.text.count("audit events are lost") == 1


def test_every_change_of_identity_has_a_name() -> None:
    """A resource that comes later is audited without being told: its route alone says what it does."""
    found = {(r.method, r.path): audit.plan(r.method, r.path) for r in [*SERVICE.routes, *crud.routes(SERVICE)]}
    changes = {key: p for key, p in found.items() if key[0] not in ("GET", "HEAD")}
    assert [key for key, p in changes.items() if p is None] == []
    for (method, path), planned in changes.items():
        assert planned is not None
        assert "{" not in planned.resource, path
        names = {part[1:-1] for part in path.split("/") if part.startswith("{")}
        assert planned.id in {"", *names}, path
        assert {p for _, p in planned.extra if p[0] != "="} <= names, path
        if method in ("PATCH", "DELETE") and names and planned.resource != "token":
            assert planned.id, path
    assert audit.plan("POST", "/v3/OS-TRUST/trusts") == audit.Plan("OS-TRUST:trust", "created")
    assert audit.plan("GET", "/v3/users") is None
    assert audit.plan("POST", "/v3/OS-FEDERATION/identity_providers/{i}/protocols/{p}/auth") == audit.Plan(
        "user", "authenticate"
    )
    assert audit.plan("DELETE", "/v3/users/{user_id}/credentials/OS-EC2/{credential_id}") == audit.Plan(
        "credential", "deleted", "credential_id"
    )
