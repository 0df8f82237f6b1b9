"""Getting, using, validating and revoking tokens. API: /v3/auth."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from costs import calls

from nubila.edge.app import Edge
from nubila.services.identity.auth import authenticate
from nubila.testing.cloud import Response, TestCloud, call_app


@pytest.fixture(scope="module")
def cloud(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestCloud]:
    made = TestCloud(tmp_path_factory.mktemp("cloud"), hosts=0)
    yield made
    made.close()


def auth(
    cloud: TestCloud, scope: Any = None, *, user: Any = None, password: str | None = None, query: str = ""
) -> Response:
    """POST /v3/auth/tokens with a password."""
    who = user or {"name": "admin", "domain": {"id": "default"}}
    body: dict[str, Any] = {
        "identity": {
            "methods": ["password"],
            "password": {"user": {**who, "password": cloud.passwords["admin"] if password is None else password}},
        }
    }
    if scope is not None:
        body["scope"] = scope
    return cloud.request("POST", "/v3/auth/tokens" + query, {"auth": body}, token="")


def make_user(
    cloud: TestCloud, name: str, role: str | None = "member", **attrs: Any
) -> tuple[dict[str, Any], dict[str, Any]]:
    """A user and a project of the same name, where it has the role."""
    project = cloud.request("POST", "/v3/projects", {"project": {"name": name}}).json["project"]
    user = cloud.request("POST", "/v3/users", {"user": {"name": name, "password": "s3cret", **attrs}}).json["user"]
    if role:
        found = cloud.request("GET", f"/v3/roles?name={role}").json["roles"][0]["id"]
        put = cloud.request("PUT", f"/v3/projects/{project['id']}/users/{user['id']}/roles/{found}")
        assert put.status == 204
    return user, project


def login(cloud: TestCloud, user: dict[str, Any], project: dict[str, Any] | None) -> str:
    got = auth(
        cloud, {"project": {"id": project["id"]}} if project else None, user={"id": user["id"]}, password="s3cret"
    )
    assert got.status == 201, got.body
    return got.headers["x-subject-token"]


def rescope(cloud: TestCloud, token: str, scope: Any) -> Response:
    """POST /v3/auth/tokens with a token."""
    body = {"auth": {"identity": {"methods": ["token"], "token": {"id": token}}, "scope": scope}}
    return cloud.request("POST", "/v3/auth/tokens", body, token="")


def subject(cloud: TestCloud, token: str, method: str = "GET", by: str | None = None, query: str = "") -> Response:
    return cloud.request(method, "/v3/auth/tokens" + query, token=by, headers={"X-Subject-Token": token})


def test_project_scoped_token_says_everything(cloud: TestCloud) -> None:
    got = auth(cloud, {"project": {"name": "admin", "domain": {"name": "Default"}}})
    assert got.status == 201
    token = got.json["token"]
    assert token["methods"] == ["password"]
    assert token["project"]["name"] == "admin"
    assert [r["name"] for r in token["roles"]] == ["admin", "manager", "member", "reader"]
    assert {s["type"] for s in token["catalog"]} >= {"identity", "image", "compute", "network", "placement"}
    urls = {e["url"] for s in token["catalog"] for e in s["endpoints"]}
    assert "http://127.0.0.1:5000/v3" in urls
    assert "http://127.0.0.1:5000/compute/v2.1" in urls
    assert token["expires_at"].endswith("Z")


def test_catalogue_follows_the_name_the_client_used(cloud: TestCloud) -> None:
    token = cloud.token()
    headers = {"X-Auth-Token": token, "Host": "cloud.example.org:8443", "X-Forwarded-Proto": "https"}
    got = call_app(cloud.edge, "GET", "/v3/auth/catalog", headers=headers)
    assert "https://cloud.example.org:8443/image" in {e["url"] for s in got.json["catalog"] for e in s["endpoints"]}


def test_scopes(cloud: TestCloud) -> None:
    system = auth(cloud, {"system": {"all": True}}).json["token"]
    assert system["system"] == {"all": True}
    assert "project" not in system
    domain = auth(cloud, {"domain": {"id": "default"}}).json["token"]
    assert domain["domain"] == {"id": "default", "name": "Default"}
    for unscoped in (auth(cloud, "unscoped"), auth(cloud, {"unscoped": {}}), auth(cloud)):
        assert unscoped.status == 201
        assert not {"project", "domain", "system", "roles", "catalog"} & set(unscoped.json["token"])
    assert "catalog" not in auth(cloud, {"system": {"all": True}}, query="?nocatalog").json["token"]


def test_default_project_is_the_scope_when_usable(cloud: TestCloud) -> None:
    user, project = make_user(cloud, "default-project")
    cloud.request("PATCH", f"/v3/users/{user['id']}", {"user": {"default_project_id": project["id"]}})
    got = auth(cloud, user={"id": user["id"]}, password="s3cret")
    assert got.json["token"]["project"]["id"] == project["id"]
    cloud.request("PATCH", f"/v3/projects/{project['id']}", {"project": {"enabled": False}})
    got = auth(cloud, user={"id": user["id"]}, password="s3cret")
    assert got.status == 201
    assert "project" not in got.json["token"]


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (None, 400),
        ({}, 400),
        ([1], 400),
        ({"auth": {}}, 400),
        ({"auth": {"identity": {}}}, 400),
        ({"auth": {"identity": {"methods": "password"}}}, 400),
        ({"auth": {"identity": {"methods": []}}}, 401),
        ({"auth": {"identity": {"methods": ["smoke"], "smoke": {}}}}, 401),
        ({"auth": {"identity": {"methods": ["password"]}}}, 400),
        ({"auth": {"identity": {"methods": ["password"], "password": {}}}}, 400),
        ({"auth": {"identity": {"methods": ["password"], "password": {"user": {"password": "x"}}}}}, 400),
        ({"auth": {"identity": {"methods": ["password"], "password": {"user": {"name": "admin"}}}}}, 400),
        ({"auth": {"identity": {"methods": ["token"], "token": {"id": "forged"}}}}, 404),
        ({"auth": {"identity": {"methods": ["token"], "token": {}}}}, 400),
        ({"auth": {"identity": {"methods": ["password"], "password": {"user": {"id": "x\x00"}}}}}, 400),
    ],
)
def test_broken_requests(cloud: TestCloud, body: Any, status: int) -> None:
    got = cloud.request("POST", "/v3/auth/tokens", body, token="")
    assert got.status == status
    assert got.json["error"]["code"] == status
    assert got.json["error"]["message"]


def test_whatever_is_wrong_is_answered_alike(cloud: TestCloud) -> None:
    answers = [
        auth(cloud, password="wrong"),
        auth(cloud, user={"name": "nobody", "domain": {"id": "default"}}),
        auth(cloud, user={"name": "admin", "domain": {"id": "nowhere"}}),
        auth(cloud, {"project": {"id": "0123456789abcdef0123456789abcdef"}}),
        auth(cloud, {"project": {"name": "demo", "domain": {"id": "default"}}}),
        auth(cloud, {"domain": {"id": "nowhere"}}),
        auth(cloud, {"project": {"id": "default"}}),
    ]
    assert {a.status for a in answers} == {401}
    assert len({a.body for a in answers}) == 1
    assert answers[0].headers["www-authenticate"] == 'Keystone uri="http://127.0.0.1:5000/v3"'


def test_two_scopes_are_refused(cloud: TestCloud) -> None:
    assert auth(cloud, {"project": {"id": "x"}, "domain": {"id": "default"}}).status == 400
    assert auth(cloud, {"project": {"name": "admin"}}).status == 400
    assert auth(cloud, {"project": {}}).status == 400
    assert auth(cloud, "everything").status == 400


def test_rescoping_keeps_expiry_and_chain(cloud: TestCloud) -> None:
    first = auth(cloud)
    body = {
        "auth": {
            "identity": {"methods": ["token"], "token": {"id": first.headers["x-subject-token"]}},
            "scope": {"project": {"name": "admin", "domain": {"id": "default"}}},
        }
    }
    second = cloud.request("POST", "/v3/auth/tokens", body, token="").json["token"]
    assert second["expires_at"] == first.json["token"]["expires_at"]
    assert second["audit_ids"][1] == first.json["token"]["audit_ids"][0]
    assert second["methods"] == ["token", "password"]


def test_validation(cloud: TestCloud) -> None:
    user, project = make_user(cloud, "validated")
    token = login(cloud, user, project)
    mine = subject(cloud, token, by=token)
    assert mine.status == 200
    assert mine.headers["x-subject-token"] == token
    assert mine.json["token"]["user"]["name"] == "validated"
    assert subject(cloud, token).json == mine.json  # the administrator's view
    assert subject(cloud, token, "HEAD").status == 200
    assert subject(cloud, token, "HEAD").body == b""
    assert "catalog" not in subject(cloud, token, query="?nocatalog").json["token"]
    stranger, other = make_user(cloud, "validating-stranger")
    assert subject(cloud, token, by=login(cloud, stranger, other)).status == 403
    assert subject(cloud, "forged").status == 404
    assert subject(cloud, token[:-6] + "AAAAAA").status == 404
    assert cloud.request("GET", "/v3/auth/tokens").status == 404
    assert cloud.request("GET", "/v3/auth/tokens", token=token).status == 403


def test_revoked_token_is_refused_everywhere(cloud: TestCloud) -> None:
    user, project = make_user(cloud, "revoked")
    token, kept = login(cloud, user, project), login(cloud, user, project)
    assert subject(cloud, token, "DELETE", by=token).status == 204
    assert cloud.request("GET", "/v3/auth/projects", token=token).status == 401
    assert subject(cloud, token).status == 404
    assert cloud.request("GET", "/v3/auth/projects", token=kept).status == 200


def changes() -> dict[str, Any]:
    """What must end a token: name -> (cloud, user, project, role id) -> None."""
    return {
        "user disabled": lambda c, u, p, r: c.request("PATCH", f"/v3/users/{u}", {"user": {"enabled": False}}),
        "user deleted": lambda c, u, p, r: c.request("DELETE", f"/v3/users/{u}"),
        "password changed": lambda c, u, p, r: c.request("PATCH", f"/v3/users/{u}", {"user": {"password": "other"}}),
        "project disabled": lambda c, u, p, r: c.request("PATCH", f"/v3/projects/{p}", {"project": {"enabled": False}}),
        "project deleted": lambda c, u, p, r: c.request("DELETE", f"/v3/projects/{p}"),
        "role taken away": lambda c, u, p, r: c.request("DELETE", f"/v3/projects/{p}/users/{u}/roles/{r}"),
    }


@pytest.mark.parametrize("what", changes())
def test_changes_end_tokens_on_every_server(cloud: TestCloud, what: str) -> None:
    """A second process with a memory of its own refuses the token within a second."""
    user, project = make_user(cloud, "ends " + what)
    token = login(cloud, user, project)
    other = Edge(_second(cloud), authenticate)

    def uses(edge: Edge) -> int:
        return call_app(edge, "GET", "/v3/auth/projects", headers={"X-Auth-Token": token}).status

    assert uses(cloud.edge) == uses(other) == 200
    role = cloud.request("GET", "/v3/roles?name=member").json["roles"][0]["id"]
    assert changes()[what](cloud, user["id"], project["id"], role).status < 300
    assert uses(cloud.edge) == 401
    assert within_a_second(lambda: uses(other), 401) == 401


def test_what_lost_rights_showed_is_not_kept(cloud: TestCloud) -> None:
    """A process may list by rights taken away a moment ago, elsewhere; it must not remember that list for later."""
    user, project = make_user(cloud, "was admin", "admin")
    roles = {r["name"]: r["id"] for r in cloud.request("GET", "/v3/roles").json["roles"]}
    given = f"/v3/projects/{project['id']}/users/{user['id']}/roles"
    assert cloud.request("PUT", f"{given}/{roles['member']}").status == 204
    token, other = login(cloud, user, project), Edge(_second(cloud), authenticate)

    def lists() -> int:
        return call_app(other, "GET", "/v3/projects", headers={"X-Auth-Token": token}).status

    assert [lists(), lists()] == [200, 200]
    assert cloud.request("DELETE", f"{given}/{roles['admin']}").status == 204
    assert within_a_second(lists, 403) == 403


def within_a_second(ask: Callable[[], int], wished: int) -> int:
    """The wished status, or what is still answered to a question asked a second from now."""
    deadline = time.monotonic() + 1.0
    while True:
        last = time.monotonic() >= deadline
        if (status := ask()) == wished or last:
            return status


def _second(cloud: TestCloud) -> Any:
    """The same cloud as another process sees it."""
    from dataclasses import replace

    return replace(cloud.cloud, memory={})


def test_roles_of_a_token_follow_the_grants(cloud: TestCloud) -> None:
    user, project = make_user(cloud, "promoted", "reader")
    token = login(cloud, user, project)
    assert [r["name"] for r in subject(cloud, token).json["token"]["roles"]] == ["reader"]
    role = cloud.request("GET", "/v3/roles?name=manager").json["roles"][0]["id"]
    cloud.request("PUT", f"/v3/projects/{project['id']}/users/{user['id']}/roles/{role}")
    names = {r["name"] for r in subject(cloud, token).json["token"]["roles"]}
    assert names == {"manager", "member", "reader"}


def test_expired_token(cloud: TestCloud) -> None:
    from nubila.core.payload import new_payload

    admin = cloud.request("GET", "/v3/users?name=admin").json["users"][0]["id"]
    token = cloud.cloud.keys.issue(new_payload(admin, ("password",), 1.0, now=time.time() - 3600))
    assert cloud.request("GET", "/v3/auth/projects", token=token).status == 401
    assert subject(cloud, token).status == 404
    assert subject(cloud, token, query="?allow_expired=true").status == 200


def test_what_can_be_scoped_to(cloud: TestCloud) -> None:
    user, _ = make_user(cloud, "scopes")
    token = login(cloud, user, None)
    assert [p["name"] for p in cloud.request("GET", "/v3/auth/projects", token=token).json["projects"]] == ["scopes"]
    assert cloud.request("GET", "/v3/auth/domains", token=token).json["domains"] == []
    assert cloud.request("GET", "/v3/auth/system", token=token).json["system"] == []
    assert cloud.request("GET", "/v3/auth/system").json["system"] == [{"all": True}]
    assert cloud.request("GET", "/v3/auth/catalog", token=token).status == 403


def test_own_password(cloud: TestCloud) -> None:
    user, project = make_user(cloud, "changes-password")
    token = login(cloud, user, project)
    url = f"/v3/users/{user['id']}/password"
    wrong = {"user": {"original_password": "nope", "password": "n3w"}}
    assert cloud.request("POST", url, wrong, token=token).status == 401
    assert cloud.request("POST", url, {"user": {"password": "n3w"}}, token=token).status == 400
    right = {"user": {"original_password": "s3cret", "password": "n3w"}}
    assert cloud.request("POST", url, right, token="").status == 204  # the old password is the proof
    assert cloud.request("GET", "/v3/auth/projects", token=token).status == 401
    assert auth(cloud, user={"id": user["id"]}, password="s3cret").status == 401
    assert auth(cloud, user={"id": user["id"]}, password="n3w").status == 201


def test_long_and_strange_passwords(cloud: TestCloud) -> None:
    user, _ = make_user(cloud, "long", None)
    for password in ("x" * 100, "ключ🔑", "a" * 72 + "b"):
        cloud.request("PATCH", f"/v3/users/{user['id']}", {"user": {"password": password}})
        assert auth(cloud, user={"id": user["id"]}, password=password).status == 201
        assert auth(cloud, user={"id": user["id"]}, password=password[:-1] + "c").status == 401


def test_application_credential(cloud: TestCloud) -> None:
    user, project = make_user(cloud, "robot-owner")
    token = login(cloud, user, project)
    url = f"/v3/users/{user['id']}/application_credentials"
    made = cloud.request(
        "POST", url, {"application_credential": {"name": "robot", "roles": [{"name": "reader"}]}}, token=token
    )
    assert made.status == 201
    found = made.json["application_credential"]
    part = {"id": found["id"], "secret": found["secret"]}
    body = {"auth": {"identity": {"methods": ["application_credential"], "application_credential": part}}}
    got = cloud.request("POST", "/v3/auth/tokens", body, token="")
    assert got.status == 201
    assert [r["name"] for r in got.json["token"]["roles"]] == ["reader"]
    assert got.json["token"]["application_credential"]["restricted"] is True
    robot = got.headers["x-subject-token"]
    assert cloud.request("POST", url, {"application_credential": {"name": "child"}}, token=robot).status == 403
    assert rescope(cloud, robot, "unscoped").status == 401
    assert rescope(cloud, robot, {"system": {"all": True}}).status == 401
    again = rescope(cloud, robot, {"project": {"id": project["id"]}})
    assert [r["name"] for r in again.json["token"]["roles"]] == ["reader"]
    assert cloud.request("POST", url, {"application_credential": {"name": "robot"}}, token=token).status == 409
    admin = {"application_credential": {"name": "more", "roles": [{"name": "admin"}]}}
    assert cloud.request("POST", url, admin, token=token).status == 400
    assert "secret" not in cloud.request("GET", f"{url}/{found['id']}", token=token).json["application_credential"]
    assert cloud.request("DELETE", f"{url}/{found['id']}", token=token).status == 204
    assert cloud.request("GET", "/v3/auth/projects", token=robot).status == 401
    assert cloud.request("POST", "/v3/auth/tokens", body, token="").status == 401


@pytest.mark.parametrize("impersonation", [True, False])
def test_trust(cloud: TestCloud, impersonation: bool) -> None:
    trustor, project = make_user(cloud, f"trustor-{impersonation}")
    trustee, _ = make_user(cloud, f"trustee-{impersonation}")
    token = login(cloud, trustor, project)
    body = {
        "trust": {
            "trustor_user_id": trustor["id"], "trustee_user_id": trustee["id"], "project_id": project["id"],
            "impersonation": impersonation, "roles": [{"name": "reader"}],
        }
    }  # fmt: skip
    made = cloud.request("POST", "/v3/OS-TRUST/trusts", body, token=token)
    assert made.status == 201
    trust = made.json["trust"]["id"]
    scope = {"OS-TRUST:trust": {"id": trust}}
    got = auth(cloud, scope, user={"id": trustee["id"]}, password="s3cret")
    assert got.status == 201
    assert got.json["token"]["user"]["id"] == (trustor if impersonation else trustee)["id"]
    assert got.json["token"]["project"]["id"] == project["id"]
    assert [r["name"] for r in got.json["token"]["roles"]] == ["reader"]
    assert auth(cloud, scope).status == 403  # not the trustee
    borrowed = got.headers["x-subject-token"]
    for wider in ("unscoped", {"project": {"id": project["id"]}}):
        assert rescope(cloud, borrowed, wider).status == 403
    robot = {"application_credential": {"name": f"robot-{impersonation}"}}
    url = f"/v3/users/{got.json['token']['user']['id']}/application_credentials"
    assert cloud.request("POST", url, robot, token=borrowed).status == 403
    assert cloud.request("DELETE", f"/v3/OS-TRUST/trusts/{trust}", token=token).status == 204
    assert cloud.request("GET", "/v3/auth/projects", token=got.headers["x-subject-token"]).status == 401
    assert cloud.request("GET", f"/v3/OS-TRUST/trusts/{trust}", token=token).status == 404


def test_authentication_costs_no_query(cloud: TestCloud) -> None:
    token = cloud.token()
    cloud.request("GET", "/v3/auth/projects", token=token)
    # What is remembered is compared with the database four times a second: the cheapest of many is one in between.
    assert min(calls(lambda: authenticate(cloud.cloud, token)) for _ in range(50)) < 10


def test_memory_of_tokens_is_bounded(cloud: TestCloud) -> None:
    from nubila.services.identity.revision import MAX_ENTRIES, Memory

    memory = Memory(60.0)
    for i in range(MAX_ENTRIES * 2):
        memory.remember(str(i), i)
    assert len(memory.tokens) <= MAX_ENTRIES
    assert str(MAX_ENTRIES * 2 - 1) in memory.tokens
