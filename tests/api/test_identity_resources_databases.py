"""Delegations, secrets and filters of Identity on every database: each kind of SQL they use, in one story each."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from oauthlib import oauth1

from nubila.services.identity import credential_keys, domain_config
from nubila.testing.cloud import TestCloud

pytest_plugins = ["nubila.testing.fixtures"]
Row = dict[str, Any]


@pytest.fixture
def cloud(tmp_path: Path, database_url: str) -> Iterator[TestCloud]:
    made = TestCloud(tmp_path / "cloud", hosts=0, database=database_url, limit_model="strict_two_level")
    yield made
    made.close()


def ask(cloud: TestCloud, method: str, url: str, body: Any = None, **options: Any) -> Any:
    got = cloud.request(method, "/v3" + url, body, **options)
    assert got.status < 300, (method, url, got.body)
    return got.json if got.body.startswith(b"{") else got.body.decode()


def who(cloud: TestCloud, name: str) -> tuple[str, str]:
    user = ask(cloud, "GET", f"/users?name={name}")["users"][0]["id"]
    return user, ask(cloud, "GET", f"/projects?name={name}")["projects"][0]["id"]


def password(cloud: TestCloud, name: str) -> Row:
    user = {"name": name, "domain": {"id": "default"}, "password": cloud.passwords[name]}
    return {"methods": ["password"], "password": {"user": user}}


def test_delegations(cloud: TestCloud) -> None:
    demo, project = who(cloud, "demo")
    admin, _ = who(cloud, "admin")
    token = cloud.token("demo")
    rule = {"service": "identity", "method": "GET", "path": "/v3/auth/projects"}
    body = {"application_credential": {"name": "robot", "access_rules": [rule]}}
    made = ask(cloud, "POST", f"/users/{demo}/application_credentials", body, token=token)["application_credential"]
    rules = f"/users/{demo}/access_rules"
    assert len(ask(cloud, "GET", rules, token=token)["access_rules"]) == 1
    ask(cloud, "DELETE", f"/users/{demo}/application_credentials/{made['id']}", token=token)
    ask(cloud, "DELETE", f"{rules}/{made['access_rules'][0]['id']}", token=token)
    trust = {
        "trustor_user_id": demo, "trustee_user_id": admin, "project_id": project, "impersonation": True,
        "roles": [{"name": "reader"}], "remaining_uses": 1,
    }  # fmt: skip
    id = ask(cloud, "POST", "/OS-TRUST/trusts", {"trust": trust}, token=token)["trust"]["id"]
    wanted = {"auth": {"identity": password(cloud, "admin"), "scope": {"OS-TRUST:trust": {"id": id}}}}
    assert cloud.request("POST", "/v3/auth/tokens", wanted, token="").status == 201
    assert cloud.request("POST", "/v3/auth/tokens", wanted, token="").status == 401
    again = {**trust, "remaining_uses": None}
    id = ask(cloud, "POST", "/OS-TRUST/trusts", {"trust": again}, token=token)["trust"]["id"]
    ask(cloud, "DELETE", f"/OS-TRUST/trusts/{id}", token=token)
    pair = ask(cloud, "POST", f"/users/{demo}/credentials/OS-EC2", {"tenant_id": project}, token=token)["credential"]
    assert ask(cloud, "GET", f"/users/{demo}/credentials/OS-EC2", token=token)["credentials"] == [pair]


def test_secrets(cloud: TestCloud) -> None:
    demo, _ = who(cloud, "demo")
    credential = {"user_id": demo, "type": "totp", "blob": "ключ"}
    id = ask(cloud, "POST", "/credentials", {"credential": credential})["credential"]["id"]
    config = {"config": {"ldap": {"url": "ldap://x", "password": "hush", "use_tls": False, "page_size": 3}}}
    domain = ask(cloud, "POST", "/domains", {"domain": {"name": "configured"}})["domain"]["id"]
    ask(cloud, "PUT", f"/domains/{domain}/config", config)
    assert ask(cloud, "PATCH", f"/domains/{domain}/config/ldap/url", {"config": {"url": "ldap://y"}})["config"] == {
        "ldap": {"url": "ldap://y", "use_tls": False, "page_size": 3}
    }
    _, project = who(cloud, "admin")
    made = ask(cloud, "POST", "/OS-OAUTH1/consumers", {"consumer": {}})["consumer"]
    client = oauth1.Client(made["id"], made["secret"], callback_uri="oob")
    _, sent, _ = client.sign("http://127.0.0.1:5000/v3/OS-OAUTH1/request_token", http_method="POST")
    sent["Requested-Project-Id"] = project
    asked = ask(cloud, "POST", "/OS-OAUTH1/request_token", token="", headers=sent)
    key = asked.split("oauth_token=")[1].split("&")[0]
    assert "oauth_verifier" in json.dumps(
        ask(cloud, "PUT", f"/OS-OAUTH1/authorize/{key}", {"roles": [{"name": "reader"}]})
    )
    assert cloud.request("POST", "/v3/OS-OAUTH1/request_token", token="", headers=sent).status == 401
    credential_keys.rotate(cloud.cloud)
    assert credential_keys.migrate(cloud.cloud) == 4
    assert ask(cloud, "GET", f"/credentials/{id}")["credential"]["blob"] == "ключ"
    with cloud.cloud.store.read() as reader:
        assert domain_config.read(cloud.cloud, reader, domain)["ldap"]["password"] == "hush"
    ask(cloud, "DELETE", f"/OS-OAUTH1/consumers/{made['id']}")


def test_filters_and_limits(cloud: TestCloud) -> None:
    _, project = who(cloud, "demo")
    group = {"name": "g", "filters": {"interface": "admin"}}
    id = ask(cloud, "POST", "/OS-EP-FILTER/endpoint_groups", {"endpoint_group": group})["endpoint_group"]["id"]
    ask(cloud, "PUT", f"/OS-EP-FILTER/endpoint_groups/{id}/projects/{project}")
    found = ask(cloud, "GET", "/auth/catalog", token=cloud.token("demo"))["catalog"]
    assert {e["interface"] for s in found for e in s["endpoints"]} == {"admin"}
    assert len(ask(cloud, "GET", f"/OS-EP-FILTER/projects/{project}/endpoints")["endpoints"]) == len(found)
    ask(cloud, "DELETE", f"/OS-EP-FILTER/endpoint_groups/{id}")
    service = ask(cloud, "GET", "/services?type=image")["services"][0]["id"]
    policy = ask(cloud, "POST", "/policies", {"policy": {"type": "text/plain", "blob": "x"}})["policy"]["id"]
    one = f"/policies/{policy}/OS-ENDPOINT-POLICY/services/{service}"
    ask(cloud, "PUT", one)
    ask(cloud, "PUT", one)
    assert len(ask(cloud, "GET", f"/policies/{policy}/OS-ENDPOINT-POLICY/endpoints")["endpoints"]) == 3
    ask(cloud, "DELETE", f"/policies/{policy}")
    limit = {"service_id": service, "resource_name": "cows"}
    ask(cloud, "POST", "/registered_limits", {"registered_limits": [{**limit, "default_limit": 10}]})
    wide = {"limits": [{**limit, "project_id": project, "resource_limit": 11}]}
    assert cloud.request("POST", "/v3/limits", wide).status == 403
    wide["limits"][0]["resource_limit"] = 10
    ask(cloud, "POST", "/limits", wide)
