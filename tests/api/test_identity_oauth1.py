"""OAuth 1.0a: consumers, the dance, tokens got with it. Requests are signed by oauthlib's client."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any
from urllib.parse import parse_qs

import pytest
import sqlalchemy as sa
from oauthlib import oauth1

from nubila.services.identity import credential_keys
from nubila.testing.cloud import Response, TestCloud

Row = dict[str, Any]
BASE = "http://127.0.0.1:5000"


@pytest.fixture(scope="module")
def cloud(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestCloud]:
    made = TestCloud(tmp_path_factory.mktemp("cloud"), hosts=0)
    yield made
    made.close()


@pytest.fixture(scope="module")
def admin(cloud: TestCloud) -> Row:
    user = cloud.request("GET", "/v3/users?name=admin").json["users"][0]["id"]
    project = cloud.request("GET", "/v3/projects?name=admin").json["projects"][0]["id"]
    return {"user": user, "project": project, "url": f"/v3/users/{user}/OS-OAUTH1/access_tokens"}


def consumer(cloud: TestCloud, **attrs: Any) -> Row:
    got = cloud.request("POST", "/v3/OS-OAUTH1/consumers", {"consumer": attrs})
    assert got.status == 201, got.body
    found: Row = got.json["consumer"]
    return found


def signed(cloud: TestCloud, path: str, client: oauth1.Client, body: Any = None, **headers: str) -> Response:
    _, sent, _ = client.sign(BASE + path, http_method="POST")
    return cloud.request("POST", path, body, token="", headers={**sent, **headers})


def pair(got: Response) -> tuple[str, str]:
    assert got.status == 201, got.body
    assert got.headers["content-type"] == "application/x-www-form-urlencoded"
    found = parse_qs(got.body.decode())
    assert found["oauth_expires_at"][0].endswith("Z")
    return found["oauth_token"][0], found["oauth_token_secret"][0]


def ask(cloud: TestCloud, admin: Row, made: Row, **options: Any) -> Response:
    client = oauth1.Client(made["id"], made["secret"], callback_uri="oob", **options)
    return signed(cloud, "/v3/OS-OAUTH1/request_token", client, **{"Requested-Project-Id": admin["project"]})


def authorize(cloud: TestCloud, id: str, *roles: str) -> Response:
    return cloud.request("PUT", f"/v3/OS-OAUTH1/authorize/{id}", {"roles": [{"name": r} for r in roles]})


def exchange(cloud: TestCloud, made: Row, token: tuple[str, str], verifier: str) -> Response:
    client = oauth1.Client(made["id"], made["secret"], token[0], token[1], verifier=verifier)
    return signed(cloud, "/v3/OS-OAUTH1/access_token", client)


def dance(cloud: TestCloud, admin: Row, made: Row, *roles: str) -> tuple[str, str]:
    token = pair(ask(cloud, admin, made))
    verifier = authorize(cloud, token[0], *roles).json["token"]["oauth_verifier"]
    return pair(exchange(cloud, made, token, verifier))


def login(cloud: TestCloud, made: Row, access: tuple[str, str], scope: Any = None, **options: Any) -> Response:
    body: Row = {"auth": {"identity": {"methods": ["oauth1"], "oauth1": {}}}}
    if scope is not None:
        body["auth"]["scope"] = scope
    client = oauth1.Client(made["id"], made["secret"], access[0], access[1], **options)
    return signed(cloud, "/v3/auth/tokens", client, body)


def test_consumers(cloud: TestCloud) -> None:
    made = consumer(cloud, description="a program", colour="red", secret="mine")
    assert made["secret"] != "mine"
    assert (made["description"], made["colour"]) == ("a program", "red")
    url = f"/v3/OS-OAUTH1/consumers/{made['id']}"
    assert made["links"]["self"] == BASE + url
    seen = cloud.request("GET", url).json["consumer"]
    assert seen == {k: v for k, v in made.items() if k != "secret"}
    assert seen in cloud.request("GET", "/v3/OS-OAUTH1/consumers").json["consumers"]
    assert cloud.request("PATCH", url, {"consumer": {"description": "b"}}).json["consumer"]["description"] == "b"
    assert cloud.request("PATCH", url, {"consumer": {"secret": "x"}}).status == 400
    demo = cloud.token("demo")
    for method, path in (("GET", url), ("GET", "/v3/OS-OAUTH1/consumers"), ("DELETE", url), ("PATCH", url)):
        assert cloud.request(method, path, {"consumer": {}}, token=demo).status == 403
    with cloud.cloud.store.read() as reader:
        rows = reader.rows(sa.text("SELECT * FROM oauth_consumer"))
    assert made["secret"] not in repr(rows)
    assert cloud.request("DELETE", url).status == 204
    assert cloud.request("GET", url).status == 404


@pytest.mark.parametrize("method", [oauth1.SIGNATURE_HMAC_SHA1, oauth1.SIGNATURE_HMAC_SHA256])
def test_dance(cloud: TestCloud, admin: Row, method: str) -> None:
    made = consumer(cloud)
    token = pair(ask(cloud, admin, made, signature_method=method))
    assert exchange(cloud, made, token, "abcdefgh").status == 401  # nobody has authorised it
    assert authorize(cloud, token[0], "ResellerAdmin").status == 401  # not admin's role there
    assert authorize(cloud, token[0]).status == 400
    assert authorize(cloud, "none", "member").status == 404
    got = authorize(cloud, token[0], "member", "reader")
    assert got.status == 200
    verifier = got.json["token"]["oauth_verifier"]
    assert exchange(cloud, made, token, "abcdefgh").status == 401
    assert exchange(cloud, consumer(cloud), token, verifier).status == 401
    assert exchange(cloud, made, (token[0], "0" * 32), verifier).status == 401
    access = pair(exchange(cloud, made, token, verifier))
    assert exchange(cloud, made, token, verifier).status == 401  # once
    seen = login(cloud, made, access, signature_method=method)
    assert seen.status == 201, seen.body
    found = seen.json["token"]
    assert found["OS-OAUTH1"] == {"access_token_id": access[0], "consumer_id": made["id"]}
    assert found["user"]["id"] == admin["user"]
    assert found["project"]["id"] == admin["project"]
    assert found["methods"] == ["oauth1"]
    assert {r["name"] for r in found["roles"]} == {"member", "reader"}
    delegated = seen.headers["x-subject-token"]
    assert cloud.request("GET", "/v3/auth/projects", token=delegated).status == 200
    assert cloud.request("GET", "/v3/users", token=delegated).status == 403  # no admin by OAuth
    one = f"{admin['url']}/{access[0]}"
    shown = cloud.request("GET", one).json["access_token"]
    assert (shown["consumer_id"], shown["authorizing_user_id"]) == (made["id"], admin["user"])
    assert shown["id"] in {t["id"] for t in cloud.request("GET", admin["url"]).json["access_tokens"]}
    roles = cloud.request("GET", f"{one}/roles").json["roles"]
    assert {r["name"] for r in roles} == {"member", "reader"}
    assert cloud.request("GET", f"{one}/roles/{roles[0]['id']}").json["role"]["name"] == roles[0]["name"]
    assert cloud.request("GET", f"{one}/roles/none").status == 404
    assert cloud.request("GET", f"/v3/users/none/OS-OAUTH1/access_tokens/{access[0]}").status == 404
    assert cloud.request("GET", one, token=cloud.token("demo")).status == 403
    assert cloud.request("DELETE", one).status == 204
    assert cloud.request("GET", "/v3/auth/projects", token=delegated).status == 401
    assert login(cloud, made, access).status == 401
    assert cloud.request("GET", one).status == 404


def test_requests_are_not_taken_twice(cloud: TestCloud, admin: Row) -> None:
    made = consumer(cloud)
    access = dance(cloud, admin, made, "reader")
    body = {"auth": {"identity": {"methods": ["oauth1"], "oauth1": {}}}}
    _, sent, _ = oauth1.Client(made["id"], made["secret"], *access).sign(BASE + "/v3/auth/tokens", http_method="POST")
    assert cloud.request("POST", "/v3/auth/tokens", body, token="", headers=sent).status == 201
    assert cloud.request("POST", "/v3/auth/tokens", body, token="", headers=sent).status == 401
    for stamp in ("1", "99999999999"):
        assert login(cloud, made, access, timestamp=stamp).status == 401
    assert login(cloud, made, access).status == 201
    _, sent, _ = oauth1.Client(made["id"], made["secret"], callback_uri="oob").sign(
        BASE + "/v3/OS-OAUTH1/request_token", http_method="POST"
    )
    sent["Requested-Project-Id"] = admin["project"]
    assert cloud.request("POST", "/v3/OS-OAUTH1/request_token", token="", headers=sent).status == 201
    assert cloud.request("POST", "/v3/OS-OAUTH1/request_token", token="", headers=sent).status == 401


def test_broken_requests(cloud: TestCloud, admin: Row) -> None:
    made = consumer(cloud)
    asking, login_url = "/v3/OS-OAUTH1/request_token", "/v3/auth/tokens"
    project = {"Requested-Project-Id": admin["project"]}
    assert ask(cloud, admin, {**made, "secret": "wrong"}).status == 401
    assert ask(cloud, admin, {**made, "id": "unknown0"}).status == 401
    client = oauth1.Client(made["id"], made["secret"], callback_uri="oob")
    assert signed(cloud, asking, client).status == 400
    assert signed(cloud, asking, client, **{"Requested-Project-Id": "none"}).status == 404
    plain = oauth1.Client(made["id"], made["secret"], callback_uri="oob", signature_method=oauth1.SIGNATURE_PLAINTEXT)
    assert signed(cloud, asking, plain, **project).status in (400, 401)
    body = {"auth": {"identity": {"methods": ["oauth1"], "oauth1": {}}}}
    for header in ("", "Basic eDp5", "OAuth", "OAuth x", 'OAuth oauth_consumer_key="x"', 'OAuth oauth_token="x"', "é"):
        for path, sent in ((asking, None), ("/v3/OS-OAUTH1/access_token", None), (login_url, body)):
            got = cloud.request("POST", path, sent, token="", headers={"Authorization": header, **project})
            assert got.status in (400, 401), (path, header, got.body)
    access = dance(cloud, admin, made, "reader")
    assert login(cloud, made, (access[0], "0" * 32)).status == 401
    assert login(cloud, made, ("unknown0", access[1])).status == 401
    assert login(cloud, consumer(cloud), access).status == 401
    for scope in ("unscoped", {"system": {"all": True}}, {"project": {"id": "other"}}, {"domain": {"id": "default"}}):
        assert login(cloud, made, access, scope).status == 401, scope
    assert login(cloud, made, access, {"project": {"id": admin["project"]}}).status == 201
    assert cloud.request("GET", asking).status == 405


def test_delegated_tokens_stay_delegated(cloud: TestCloud, admin: Row) -> None:
    made = consumer(cloud)
    access = dance(cloud, admin, made, "member", "admin")
    token = login(cloud, made, access).headers["x-subject-token"]
    rescope = {"auth": {"identity": {"methods": ["token"], "token": {"id": token}}}}
    assert cloud.request("POST", "/v3/auth/tokens", rescope, token="").status == 403
    assert cloud.request("GET", admin["url"], token=token).status == 403
    other = pair(ask(cloud, admin, made))
    sent = {"roles": [{"name": "member"}]}
    assert cloud.request("PUT", f"/v3/OS-OAUTH1/authorize/{other[0]}", sent, token=token).status == 403
    robot = {"application_credential": {"name": "robot"}}
    assert cloud.request("POST", f"/v3/users/{admin['user']}/application_credentials", robot, token=token).status == 403
    trust = {
        "trustor_user_id": admin["user"], "trustee_user_id": admin["user"], "impersonation": False,
        "project_id": admin["project"], "roles": [{"name": "member"}],
    }  # fmt: skip
    assert cloud.request("POST", "/v3/OS-TRUST/trusts", {"trust": trust}, token=token).status == 403


def test_everything_goes_with_the_consumer(cloud: TestCloud, admin: Row) -> None:
    made = consumer(cloud)
    access = dance(cloud, admin, made, "reader")
    waiting = pair(ask(cloud, admin, made))
    token = login(cloud, made, access).headers["x-subject-token"]
    credential_keys.rotate(cloud.cloud)
    credential_keys.migrate(cloud.cloud)
    assert login(cloud, made, access).status == 201  # also after the keys have changed
    assert cloud.request("DELETE", f"/v3/OS-OAUTH1/consumers/{made['id']}").status == 204
    assert cloud.request("GET", "/v3/auth/projects", token=token).status == 401
    assert login(cloud, made, access).status == 401
    assert authorize(cloud, waiting[0], "reader").status == 404
    assert cloud.request("GET", f"{admin['url']}/{access[0]}").status == 404
