"""What is asked about tokens: every form of X-Subject-Token, expired ones, chains, other clouds, revocation events."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nubila.core.payload import new_payload
from nubila.core.tokens import open_keys
from nubila.testing.cloud import Response, TestCloud


@pytest.fixture(scope="module")
def cloud(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestCloud]:
    made = TestCloud(tmp_path_factory.mktemp("cloud"), hosts=0)
    yield made
    made.close()


def about(cloud: TestCloud, token: str | None, method: str = "GET", by: str | None = None, query: str = "") -> Response:
    headers = {} if token is None else {"X-Subject-Token": token}
    return cloud.request(method, "/v3/auth/tokens" + query, token=by, headers=headers)


def expired(cloud: TestCloud, ago_s: float) -> str:
    """A token of the administrator that expired some time ago."""
    live = cloud.cloud.keys.read(cloud.token())
    made = new_payload(live.user_id, ("password",), 60, now=time.time() - ago_s - 60, project_id=live.project_id)
    return cloud.cloud.keys.issue(made)


def fresh(cloud: TestCloud, user: str = "admin") -> str:
    return cloud.login(user, cloud.passwords[user], user)


def service_user(cloud: TestCloud) -> str:
    """The token of a user with the role service on the project service."""
    project = cloud.request("GET", "/v3/projects?name=service").json["projects"][0]["id"]
    user = cloud.request("POST", "/v3/users", {"user": {"name": "watcher", "password": "w"}}).json["user"]["id"]
    role = cloud.request("GET", "/v3/roles?name=service").json["roles"][0]["id"]
    assert cloud.request("PUT", f"/v3/projects/{project}/users/{user}/roles/{role}").status == 204
    return cloud.login("watcher", "w", "service")


def test_an_expired_token_is_shown_to_services_that_ask_for_it(cloud: TestCloud) -> None:
    late = expired(cloud, 100)
    watcher = service_user(cloud)
    for by in (None, watcher):
        assert about(cloud, late, by=by).status == 404
        for word in ("1", "true", "True", "t", "yes", "on"):
            got = about(cloud, late, by=by, query=f"?allow_expired={word}")
            assert got.status == 200, word
            assert got.json["token"]["user"]["name"] == "admin"
        for word in ("0", "false", "no", "", "maybe"):
            assert about(cloud, late, by=by, query=f"?allow_expired={word}").status == 404
    assert about(cloud, late, by=cloud.token("demo"), query="?allow_expired=1").status == 403
    assert about(cloud, expired(cloud, 172_900), query="?allow_expired=1").status == 404
    assert cloud.request("GET", "/v3/auth/projects?allow_expired=1", token=late).status == 401
    assert about(cloud, late, method="DELETE").status == 404


@pytest.mark.parametrize("method", ["GET", "HEAD", "DELETE"])
@pytest.mark.parametrize("subject", [None, "", "x", "gAAAAA", "eyJhbGciOiJub25lIn0.e30.", "a" * 5000, "é"])
def test_what_is_no_subject_token_is_not_found(cloud: TestCloud, method: str, subject: str | None) -> None:
    got = about(cloud, subject, method)
    assert got.status == 404
    assert (got.body == b"") == (method == "HEAD")


def test_head_says_whether_and_get_says_what(cloud: TestCloud) -> None:
    token = fresh(cloud)
    head = about(cloud, token, "HEAD")
    assert (head.status, head.body, head.headers["x-subject-token"]) == (200, b"", token)
    got = about(cloud, token, query="?nocatalog")
    assert "catalog" not in got.json["token"]
    assert "catalog" in about(cloud, token).json["token"]
    assert "catalog" not in about(cloud, token, query="?nocatalog=0").json["token"]  # that it is there counts
    assert int(got.headers["content-length"]) == len(got.body)


@pytest.mark.req("A/ID-22")
def test_a_token_of_another_cloud_is_worth_nothing(cloud: TestCloud, tmp_path: Path) -> None:
    live = cloud.cloud.keys.read(cloud.token())
    for provider in ("fernet", "jws"):
        foreign = open_keys(tmp_path, provider).issue(live)
        assert about(cloud, foreign).status == 404
        assert cloud.request("GET", "/v3/auth/projects", token=foreign).status == 401
        body = {"auth": {"identity": {"methods": ["token"], "token": {"id": foreign}}}}
        assert cloud.request("POST", "/v3/auth/tokens", body, token="").status == 404


def rescope(cloud: TestCloud, token: str, scope: Any) -> Response:
    body = {"auth": {"identity": {"methods": ["token"], "token": {"id": token}}, "scope": scope}}
    return cloud.request("POST", "/v3/auth/tokens", body, token="")


def test_tokens_got_with_tokens_form_a_chain(cloud: TestCloud) -> None:
    first = fresh(cloud)
    ids = [about(cloud, first).json["token"]["audit_ids"]]
    system = rescope(cloud, first, {"system": {"all": True}})
    ids.append(system.json["token"]["audit_ids"])
    third = rescope(cloud, system.headers["x-subject-token"], "unscoped")
    ids.append(third.json["token"]["audit_ids"])
    assert [len(i) for i in ids] == [1, 2, 2]
    assert ids[1][1] == ids[2][1] == ids[0][0]
    assert system.json["token"]["system"] == {"all": True}
    assert not {"project", "domain", "is_domain"} & set(system.json["token"])
    with cloud.cloud.store.write() as tx:
        from nubila.services.identity.auth import revoke

        revoke(cloud.cloud, tx, audit_chain_id=ids[0][0])
    for token in (first, system.headers["x-subject-token"], third.headers["x-subject-token"]):
        assert about(cloud, token).status == 404


def test_revoking_one_token_leaves_the_others(cloud: TestCloud) -> None:
    first, second = fresh(cloud), fresh(cloud)
    third = rescope(cloud, first, "unscoped").headers["x-subject-token"]
    assert about(cloud, first, "DELETE", by=first).status == 204
    assert about(cloud, first).status == 404
    assert about(cloud, second).status == about(cloud, third).status == 200


@pytest.mark.req("A/ID-27", "A/ID-49")
def test_revocation_events_tell_offline_validators(cloud: TestCloud) -> None:
    token = fresh(cloud)
    audit = about(cloud, token).json["token"]["audit_ids"][0]
    about(cloud, token, "DELETE", by=token)
    events = cloud.request("GET", "/v3/OS-REVOKE/events").json["events"]
    mine = [e for e in events if e.get("audit_id") == audit]
    assert len(mine) == 1
    assert set(mine[0]) == {"audit_id", "issued_before", "revoked_at"}
    assert mine[0]["issued_before"].endswith("Z")
    since = cloud.request("GET", f"/v3/OS-REVOKE/events?since={mine[0]['revoked_at']}").json["events"]
    assert mine[0] in since
    assert cloud.request("GET", "/v3/OS-REVOKE/events?since=2999-01-01T00:00:00Z").json["events"] == []
    assert cloud.request("GET", "/v3/OS-REVOKE/events?since=yesterday").status == 400
    assert cloud.request("GET", "/v3/OS-REVOKE/events", token=cloud.token("demo")).status == 403
    for path in ("OS-SIMPLE-CERT/ca", "OS-SIMPLE-CERT/certificates", "auth/tokens/OS-PKI/revoked"):
        assert cloud.request("GET", f"/v3/{path}", token="").status == 410


# --- fuzzing what people log in with --------------------------------------------------------------------------------

LEAVES = (
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=8)
)
LEAVES |= st.sampled_from(["admin", "default", "password", "token", "all", "unscoped", "\0", "é", "\ud7ff"])
WORDS = [
    "id",
    "name",
    "domain",
    "user",
    "password",
    "secret",
    "methods",
    "passcode",
    "project",
    "system",
    "all",
    "unscoped",
    "identity_provider",
    "protocol",
    "OS-TRUST:trust",
    "token",
    "application_credential",
    "totp",
    "mapped",
    "external",
]
KEYS = st.sampled_from(WORDS)
ANYTHING = st.recursive(
    LEAVES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS | st.text(max_size=4), inner, max_size=4)
)
METHODS = (
    "password",
    "token",
    "application_credential",
    "totp",
    "mapped",
    "external",
    "oauth1",
    "oauth2_credential",
    "x",
)


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    methods=st.lists(st.sampled_from(METHODS), max_size=3) | ANYTHING,
    parts=st.dictionaries(st.sampled_from(METHODS), ANYTHING, max_size=3),
    scope=st.none() | ANYTHING,
    headers=st.dictionaries(
        st.sampled_from(["Authorization", "OpenStack-Auth-Receipt", "X-Auth-Token", "X-Forwarded-For"]),
        st.text(alphabet=st.characters(min_codepoint=33, max_codepoint=126), max_size=30), max_size=2,
    ),
)  # fmt: skip
def test_no_credentials_are_a_crash_or_a_login(
    cloud: TestCloud, methods: Any, parts: dict[str, Any], scope: Any, headers: dict[str, str]
) -> None:
    body: dict[str, Any] = {"auth": {"identity": {"methods": methods, **parts}}}
    if scope is not None:
        body["auth"]["scope"] = scope
    got = cloud.request("POST", "/v3/auth/tokens", body, token="", headers=headers)
    assert got.status in (400, 401, 403, 404), (got.status, got.body)
    assert "x-subject-token" not in got.headers


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(body=st.binary(max_size=80) | st.text(max_size=40).map(lambda t: f'{{"auth": {t}}}'.encode()))
def test_no_body_is_a_crash(cloud: TestCloud, body: bytes) -> None:
    for path in ("/v3/auth/tokens", "/v3/OS-OAUTH2/token", "/v3/OS-FEDERATION/identity_providers/a/protocols/b/auth"):
        got = cloud.request("POST", path, token="", body=body, headers={"Content-Type": "application/json"})
        assert got.status in (400, 401, 404), (path, got.body)
