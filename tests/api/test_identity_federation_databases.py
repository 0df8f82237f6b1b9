"""A guest's way in on every database: provider, mapping, shadow user, expiring membership, projects, OAuth 2.0."""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from jwt.algorithms import ECAlgorithm

from nubila.testing.cloud import TestCloud

pytest_plugins = ["nubila.testing.fixtures"]
KEY = ec.generate_private_key(ec.SECP256R1())
ISSUER = "https://login.example"


@pytest.fixture
def cloud(tmp_path: Path, database_url: str) -> Iterator[TestCloud]:
    (tmp_path / "cloud").mkdir()
    (tmp_path / "cloud" / "keys.json").write_text(
        json.dumps({"keys": [json.loads(ECAlgorithm.to_jwk(KEY.public_key()))]})
    )
    provider = {"identity_provider": "acme", "issuer": ISSUER, "audience": "nubila", "jwks": "keys.json"}
    made = TestCloud(tmp_path / "cloud", hosts=0, database=database_url, oidc=(provider,), token_provider="jws",
                     trusted_dashboards=("https://dash.example/",))  # fmt: skip
    yield made
    made.close()


def test_story(cloud: TestCloud) -> None:
    def do(method: str, path: str, body: Any = None, token: str | None = None) -> Any:
        got = cloud.request(method, path, body, token=token)
        assert got.status < 300, (path, got.status, got.body)
        return got.json if got.body else None

    group = do("POST", "/v3/groups", {"group": {"name": "staff"}})["group"]["id"]
    home = do("POST", "/v3/projects", {"project": {"name": "home"}})["project"]["id"]
    role = do("GET", "/v3/roles?name=member")["roles"][0]["id"]
    do("PUT", f"/v3/projects/{home}/groups/{group}/roles/{role}")
    local = [
        {"user": {"name": "{0}"}}, {"groups": "{1}", "domain": {"id": "default"}},
        {"projects": [{"name": "guests", "roles": [{"name": "reader"}]}]},
    ]  # fmt: skip
    rules = [{"local": local, "remote": [{"type": "OIDC-sub"}, {"type": "OIDC-groups"}]}]
    base = "/v3/OS-FEDERATION"
    idp = {"enabled": True, "authorization_ttl": 5, "remote_ids": [ISSUER, "x" * 255]}
    do("PUT", f"{base}/identity_providers/acme", {"identity_provider": idp})
    assert (
        cloud.request("PUT", f"{base}/identity_providers/b", {"identity_provider": {"remote_ids": [ISSUER]}}).status
        == 409
    )
    do("PUT", f"{base}/mappings/m", {"mapping": {"rules": rules, "schema_version": "3.0"}})
    path = f"{base}/identity_providers/acme/protocols/openid"
    do("PUT", path, {"protocol": {"mapping_id": "m"}})
    now = int(time.time())
    claims = {
        "iss": ISSUER,
        "aud": "nubila",
        "sub": "änn" + "n" * 200,
        "groups": ["staff"],
        "iat": now,
        "exp": now + 600,
    }
    headers = {"Authorization": f"Bearer {jwt.encode(claims, KEY, algorithm='ES256')}"}
    for _ in range(2):
        got = cloud.request("POST", f"{path}/auth", token="", headers=headers)
        assert got.status == 201, got.body
    other = {**claims, "sub": "ä" * 199 + "Ä"}
    headers_of_other = {"Authorization": f"Bearer {jwt.encode(other, KEY, algorithm='ES256')}"}
    somebody = cloud.request("POST", f"{path}/auth", token="", headers=headers_of_other)
    assert somebody.json["token"]["user"]["id"] != got.json["token"]["user"]["id"]
    user, token = got.json["token"]["user"]["id"], got.headers["x-subject-token"]
    names = {p["name"] for p in do("GET", f"{base}/projects", token=token)["projects"]}
    assert names == {"home", "guests"}
    assert do("GET", f"/v3/users/{user}/groups")["groups"][0]["membership_expires_at"]
    federated = do("GET", "/v3/users?idp_id=acme")["users"]
    assert {u["id"] for u in federated} == {user, somebody.json["token"]["user"]["id"]}
    web = cloud.request(
        "GET", "/v3/auth/OS-FEDERATION/websso/openid?origin=https://dash.example/", token="", headers=headers
    )
    assert web.status == 200, web.body
    scope = {"project": {"id": home}}
    body = {"auth": {"identity": {"methods": ["token"], "token": {"id": token}}, "scope": scope}}
    scoped = cloud.request("POST", "/v3/auth/tokens", body, token="").headers["x-subject-token"]
    robot = {"application_credential": {"name": "r", "secret": "s"}}
    made = do("POST", f"/v3/users/{user}/application_credentials", robot, scoped)["application_credential"]["id"]
    basic = {"Authorization": "Basic " + base64.b64encode(f"{made}:s".encode()).decode()}
    grant = cloud.request("POST", "/v3/OS-OAUTH2/token", token="", body=b"grant_type=client_credentials", headers=basic)
    assert grant.status == 200, grant.body
    assert do("GET", "/v3/auth/catalog", token=grant.json["access_token"])["catalog"]
    do("DELETE", f"{base}/identity_providers/acme")
    for old in (token, scoped, grant.json["access_token"]):
        assert cloud.request("GET", "/v3/auth/catalog", token=old).status == 401
    assert cloud.request("GET", f"/v3/users/{user}").status == 404
