"""Federation's resources: identity providers, protocols, mappings, service providers. API: OS-FEDERATION."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from nubila.testing.cloud import Response, TestCloud

BASE = "/v3/OS-FEDERATION"
RULES = [{"local": [{"user": {"name": "{0}"}}], "remote": [{"type": "OIDC-sub"}]}]


@pytest.fixture(scope="module")
def cloud(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestCloud]:
    made = TestCloud(tmp_path_factory.mktemp("cloud"), hosts=0)
    yield made
    made.close()


def put(cloud: TestCloud, path: str, item: str, **values: Any) -> Response:
    return cloud.request("PUT", f"{BASE}/{path}", {item: values})


def patch(cloud: TestCloud, path: str, item: str, **values: Any) -> Response:
    return cloud.request("PATCH", f"{BASE}/{path}", {item: values})


def get(cloud: TestCloud, path: str) -> Response:
    return cloud.request("GET", f"{BASE}/{path}")


def test_an_identity_provider_lives(cloud: TestCloud) -> None:
    made = put(cloud, "identity_providers/acme", "identity_provider", description="ACME", remote_ids=["a1", "a0"])
    assert made.status == 201, made.body
    idp = made.json["identity_provider"]
    link = f"http://127.0.0.1:5000{BASE}/identity_providers/acme"
    assert idp["links"] == {"self": link, "protocols": f"{link}/protocols"}
    assert (idp["enabled"], idp["authorization_ttl"], idp["remote_ids"]) == (False, None, ["a0", "a1"])
    domain = cloud.request("GET", f"/v3/domains/{idp['domain_id']}")
    assert domain.json["domain"]["enabled"] is True
    assert get(cloud, "identity_providers/acme").json["identity_provider"] == idp
    assert [i["id"] for i in get(cloud, "identity_providers?enabled=false").json["identity_providers"]] == ["acme"]
    assert get(cloud, "identity_providers?enabled=true").json["identity_providers"] == []
    assert get(cloud, "identity_providers?id=other").json["identity_providers"] == []
    set_ = patch(
        cloud, "identity_providers/acme", "identity_provider", enabled=True, authorization_ttl=5, remote_ids=["b"]
    )
    assert set_.json["identity_provider"] == {**idp, "enabled": True, "authorization_ttl": 5, "remote_ids": ["b"]}
    assert put(cloud, "identity_providers/acme", "identity_provider").status == 409
    assert put(cloud, "identity_providers/other", "identity_provider", remote_ids=["b"]).status == 409
    assert cloud.request("DELETE", f"{BASE}/identity_providers/acme").status == 204
    gone = get(cloud, "identity_providers/acme")
    assert gone.status == 404
    assert "Identity Provider: acme" in gone.json["error"]["message"]
    assert put(cloud, "identity_providers/acme", "identity_provider", domain_id="default").status == 201
    assert cloud.request("DELETE", f"{BASE}/identity_providers/acme").status == 204


@pytest.mark.parametrize(
    ("values", "status"),
    [
        ({"name": "x"}, 400),
        ({"enabled": "yes"}, 400),
        ({"remote_ids": ["a", "a"]}, 400),
        ({"remote_ids": "a"}, 400),
        ({"authorization_ttl": -1}, 400),
        ({"domain_id": "nowhere"}, 404),
    ],
)
def test_what_an_identity_provider_cannot_be(cloud: TestCloud, values: dict[str, Any], status: int) -> None:
    assert put(cloud, "identity_providers/odd", "identity_provider", **values).status == status
    assert get(cloud, "identity_providers/odd").status == 404
    assert patch(cloud, "identity_providers/odd", "identity_provider", enabled=True).status == 404


def test_protocols_tie_a_provider_to_a_mapping(cloud: TestCloud) -> None:
    put(cloud, "identity_providers/p", "identity_provider")
    for name in ("m1", "m2"):
        assert put(cloud, f"mappings/{name}", "mapping", rules=RULES).status == 201
    path = "identity_providers/p/protocols/openid"
    unknown = put(cloud, path, "protocol", mapping_id="nothing")
    assert unknown.status == 400
    assert "Invalid mapping id" in unknown.json["error"]["message"]
    assert put(cloud, path, "protocol").status == 400
    assert put(cloud, "identity_providers/x/protocols/openid", "protocol", mapping_id="m1").status == 404
    made = put(cloud, path, "protocol", mapping_id="m1")
    assert made.status == 201
    base = f"http://127.0.0.1:5000{BASE}/identity_providers/p"
    links = {"self": f"{base}/protocols/openid", "identity_provider": base}
    assert made.json == {"protocol": {"id": "openid", "mapping_id": "m1", "links": links}}
    assert put(cloud, path, "protocol", mapping_id="m1").status == 409
    assert patch(cloud, path, "protocol", mapping_id="nothing").status == 400
    assert patch(cloud, path, "protocol", mapping_id="m2").json["protocol"]["mapping_id"] == "m2"
    assert [p["id"] for p in get(cloud, "identity_providers/p/protocols").json["protocols"]] == ["openid"]
    assert cloud.request("DELETE", f"{BASE}/{path}").status == 204
    assert get(cloud, path).status == 404


def test_a_mapping_lives(cloud: TestCloud) -> None:
    made = put(cloud, "mappings/own", "mapping", rules=RULES, schema_version="2.0")
    assert made.status == 201
    assert made.json["mapping"]["rules"] == RULES
    assert made.json["mapping"]["schema_version"] == "2.0"
    other = [{**RULES[0], "local": [{"group": {"id": "0cd5e9"}}]}]
    assert patch(cloud, "mappings/own", "mapping", rules=other).json["mapping"]["rules"] == other
    assert get(cloud, "mappings/own").json["mapping"]["schema_version"] == "1.0"
    assert "own" in [m["id"] for m in get(cloud, "mappings").json["mappings"]]
    assert put(cloud, "mappings/own", "mapping", rules=RULES).status == 409
    assert cloud.request("DELETE", f"{BASE}/mappings/own").status == 204
    assert get(cloud, "mappings/own").status == 404


@pytest.mark.parametrize(
    "mapping",
    [
        {},
        {"rules": []},
        {"rules": [{"local": [], "remote": []}]},
        {"rules": [{"local": [{"user": {"name": "{0}", "age": "1"}}], "remote": [{"type": "a"}]}]},
        {"rules": [{"local": [{"user": {"name": "{1}"}}], "remote": [{"type": "a"}]}]},
        {"rules": [{"local": [{"user": {"name": "{0}"}}], "remote": [{"type": "a", "any_one_of": ["x"]}]}]},
        {"rules": [{"local": [], "remote": [{"type": "a", "any_one_of": ["("], "regex": True}]}]},
        {"rules": [{"local": [], "remote": [{"type": "a", "any_one_of": [1]}]}]},
        {"rules": [{"local": [], "remote": [{"type": "a", "any_one_of": ["x"], "not_any_of": ["y"]}]}]},
        {"rules": RULES, "schema_version": "9.0"},
        {"rules": [{"local": [{"projects": [{"name": "p", "roles": [], "domain": {}}]}], "remote": [{"type": "a"}]}]},
    ],
)
def test_what_a_mapping_cannot_be(cloud: TestCloud, mapping: dict[str, Any]) -> None:
    got = put(cloud, "mappings/odd", "mapping", **mapping)
    assert got.status == 400, got.body
    assert got.json["error"]["message"]


def test_service_providers_show_in_tokens_while_enabled(cloud: TestCloud) -> None:
    url = "https://example.com/identity/v3"
    made = put(cloud, "service_providers/sp", "service_provider", auth_url=url, sp_url=url)
    assert made.status == 201
    sp = made.json["service_provider"]
    assert (sp["enabled"], sp["relay_state_prefix"], sp["description"]) == (False, "ss:mem:", None)

    def in_token() -> Any:
        token = cloud.token()
        return cloud.request("GET", "/v3/auth/tokens", headers={"X-Subject-Token": token}).json["token"]

    assert "service_providers" not in in_token()
    assert patch(cloud, "service_providers/sp", "service_provider", enabled=True).json["service_provider"]["enabled"]
    assert in_token()["service_providers"] == [{"id": "sp", "auth_url": url, "sp_url": url}]
    assert patch(cloud, "service_providers/sp", "service_provider", auth_url="nothing").status == 400
    assert put(cloud, "service_providers/odd", "service_provider", auth_url=url).status == 400
    assert put(cloud, "service_providers/odd", "service_provider", auth_url=url, sp_url=url, x=1).status == 400
    assert cloud.request("DELETE", f"{BASE}/service_providers/sp").status == 204
    assert get(cloud, "service_providers/sp").status == 404
    assert "service_providers" not in in_token()


def test_only_administrators_change_them(cloud: TestCloud) -> None:
    demo = cloud.token("demo")
    for path in ("identity_providers", "mappings", "service_providers"):
        assert cloud.request("GET", f"{BASE}/{path}", token=demo).status == 403
        assert cloud.request("GET", f"{BASE}/{path}", token="").status == 401
        assert cloud.request("PUT", f"{BASE}/{path}/x", {}, token=demo).status == 403
        assert cloud.request("DELETE", f"{BASE}/{path}/x", token=demo).status == 403
