"""Endpoint groups, endpoints given to projects, and policy documents for endpoints."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from nubila.testing.cloud import TestCloud

Row = dict[str, Any]
FILTER = "/v3/OS-EP-FILTER"


@pytest.fixture(scope="module")
def cloud(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestCloud]:
    made = TestCloud(tmp_path_factory.mktemp("cloud"), hosts=0)
    yield made
    made.close()


def make(cloud: TestCloud, path: str, item: str, **attrs: Any) -> Row:
    got = cloud.request("POST", f"/v3/{path}", {item: attrs})
    assert got.status == 201, got.body
    found: Row = got.json[item]
    return found


def ids(cloud: TestCloud, url: str) -> set[str]:
    got = cloud.request("GET", url)
    assert got.status == 200, got.body
    return {x["id"] for v in got.json.values() if isinstance(v, list) for x in v}


def code(cloud: TestCloud, method: str, url: str, body: Any = None) -> int:
    return cloud.request(method, url, body).status


def catalogue(cloud: TestCloud) -> dict[str, set[str]]:
    """What demo finds: service type -> interfaces."""
    got = cloud.request("GET", "/v3/auth/catalog", token=cloud.token("demo")).json["catalog"]
    return {s["type"]: {e["interface"] for e in s["endpoints"]} for s in got}


def project(cloud: TestCloud) -> str:
    id: str = cloud.request("GET", "/v3/projects?name=demo").json["projects"][0]["id"]
    return id


def service(cloud: TestCloud, type: str) -> str:
    id: str = cloud.request("GET", f"/v3/services?type={type}").json["services"][0]["id"]
    return id


def test_catalogue_of_a_project_that_was_given_endpoints(cloud: TestCloud) -> None:
    whole, demo = catalogue(cloud), project(cloud)
    image = cloud.request("GET", f"/v3/endpoints?service_id={service(cloud, 'image')}&interface=public").json
    id = image["endpoints"][0]["id"]
    one = f"{FILTER}/projects/{demo}/endpoints/{id}"
    assert code(cloud, "GET", one) == code(cloud, "HEAD", one) == code(cloud, "DELETE", one) == 404
    assert code(cloud, "PUT", one) == 204
    assert code(cloud, "PUT", one) == 409
    assert code(cloud, "GET", one) == code(cloud, "HEAD", one) == 204
    assert catalogue(cloud) == {"image": {"public"}}
    assert "compute" in {s["type"] for s in cloud.request("GET", "/v3/auth/catalog").json["catalog"]}  # admin's
    assert ids(cloud, f"{FILTER}/projects/{demo}/endpoints") == {id}
    assert ids(cloud, f"{FILTER}/endpoints/{id}/projects") == {demo}
    group = make(
        cloud, "OS-EP-FILTER/endpoint_groups", "endpoint_group", name="network",
        filters={"service_id": service(cloud, "network"), "interface": "internal"},
    )  # fmt: skip
    given = f"{FILTER}/endpoint_groups/{group['id']}/projects/{demo}"
    assert code(cloud, "GET", given) == code(cloud, "DELETE", given) == 404
    assert code(cloud, "PUT", given) == 204
    assert code(cloud, "PUT", given) == 409
    seen = cloud.request("GET", given).json["project_endpoint_group"]
    assert (seen["project_id"], seen["endpoint_group_id"]) == (demo, group["id"])
    assert catalogue(cloud) == {"image": {"public"}, "network": {"internal"}}
    assert len(ids(cloud, f"{FILTER}/projects/{demo}/endpoints")) == 2
    assert ids(cloud, f"{FILTER}/projects/{demo}/endpoint_groups") == {group["id"]}
    assert ids(cloud, f"{FILTER}/endpoint_groups/{group['id']}/projects") == {demo}
    url = f"{FILTER}/endpoint_groups/{group['id']}"
    changed = cloud.request("PATCH", url, {"endpoint_group": {"filters": {"interface": "admin"}}})
    assert changed.json["endpoint_group"]["filters"] == {"interface": "admin"}
    assert catalogue(cloud)["compute"] == {"admin"}
    assert code(cloud, "DELETE", one) == 204
    assert set(catalogue(cloud)) == set(whole)
    assert all(v == {"admin"} for v in catalogue(cloud).values())
    assert code(cloud, "DELETE", given) == 204
    assert catalogue(cloud) == whole
    assert code(cloud, "PUT", given) == 204
    assert code(cloud, "DELETE", url) == 204
    assert catalogue(cloud) == whole
    assert code(cloud, "GET", url) == 404


def test_endpoint_groups(cloud: TestCloud) -> None:
    made = make(
        cloud, "OS-EP-FILTER/endpoint_groups", "endpoint_group", name="pub", description="d",
        filters={"interface": "public"},
    )  # fmt: skip
    url = f"{FILTER}/endpoint_groups/{made['id']}"
    assert made["links"]["self"].endswith(url)
    assert cloud.request("GET", url).json["endpoint_group"] == made
    assert made["id"] in ids(cloud, f"{FILTER}/endpoint_groups")
    assert ids(cloud, f"{FILTER}/endpoint_groups?name=none") == set()
    public = cloud.request("GET", "/v3/endpoints?interface=public").json["endpoints"]
    assert ids(cloud, f"{url}/endpoints") == {e["id"] for e in public}
    assert cloud.request("GET", f"{url}/endpoints").json["endpoints"][0]["url"].startswith("http")
    assert cloud.request("PATCH", url, {"endpoint_group": {"name": "n"}}).json["endpoint_group"]["name"] == "n"
    for attrs in (
        {"name": "x"}, {"name": "x", "filters": {}}, {"name": "x", "filters": {"enabled": True}},
        {"name": "x", "filters": {"url": "y"}}, {"name": "x", "filters": {"interface": "odd"}},
        {"filters": {"region_id": "x"}},
        {"name": "x", "filters": {"region_id": 5}},
    ):  # fmt: skip
        assert code(cloud, "POST", f"{FILTER}/endpoint_groups", {"endpoint_group": attrs}) == 400, attrs
    demo = cloud.token("demo")
    for method, path in (
        ("GET", url),
        ("GET", f"{FILTER}/endpoint_groups"),
        ("DELETE", url),
        ("GET", f"{url}/projects"),
    ):
        assert cloud.request(method, path, token=demo).status == 403
    assert code(cloud, "PUT", f"{url}/projects/none") == 404
    assert code(cloud, "PUT", f"{FILTER}/projects/{project(cloud)}/endpoints/none") == 404
    assert code(cloud, "DELETE", url) == 204


def test_what_was_given_goes_with_project_and_endpoint(cloud: TestCloud) -> None:
    mine = make(cloud, "projects", "project", name="given")["id"]
    kept = make(cloud, "projects", "project", name="given2")["id"]
    made = make(cloud, "services", "service", type="odd", name="odd")
    endpoint = make(cloud, "endpoints", "endpoint", service_id=made["id"], interface="public", url="http://x/")["id"]
    for each in (mine, kept):
        assert code(cloud, "PUT", f"{FILTER}/projects/{each}/endpoints/{endpoint}") == 204
    assert code(cloud, "DELETE", f"/v3/projects/{mine}") == 204
    assert ids(cloud, f"{FILTER}/endpoints/{endpoint}/projects") == {kept}
    assert code(cloud, "DELETE", f"/v3/services/{made['id']}") == 204
    assert ids(cloud, f"{FILTER}/projects/{kept}/endpoints") == set()


def test_policy_associations(cloud: TestCloud) -> None:
    top = make(cloud, "regions", "region", id="top")["id"]
    low = make(cloud, "regions", "region", id="low", parent_region_id=top)["id"]
    odd = make(cloud, "services", "service", type="policed", name="policed")["id"]
    here = make(cloud, "endpoints", "endpoint", service_id=odd, interface="public", url="http://x/", region_id=low)[
        "id"
    ]
    there = make(cloud, "endpoints", "endpoint", service_id=odd, interface="public", url="http://y/")["id"]
    first, second, third = (make(cloud, "policies", "policy", type="text/plain", blob=b)["id"] for b in "abc")
    lookup = f"/v3/endpoints/{here}/OS-ENDPOINT-POLICY/policy"

    def paths(policy: str) -> tuple[str, str, str]:
        start = f"/v3/policies/{policy}/OS-ENDPOINT-POLICY"
        return f"{start}/services/{odd}", f"{start}/services/{odd}/regions/{top}", f"{start}/endpoints/{here}"

    def current() -> str:
        id: str = cloud.request("GET", lookup).json["policy"]["id"]
        return id

    assert code(cloud, "GET", lookup) == 404
    for policy, path in zip((first, second, third), (paths(first)[0], paths(second)[1], paths(third)[2]), strict=True):
        assert code(cloud, "GET", path) == code(cloud, "HEAD", path) == 404
        assert code(cloud, "PUT", path) == 204
        assert code(cloud, "PUT", path) == 204
        assert code(cloud, "GET", path) == code(cloud, "HEAD", path) == 204
        assert current() == policy  # the nearer one counts
    assert ids(cloud, f"/v3/policies/{first}/OS-ENDPOINT-POLICY/endpoints") == {here, there}
    assert ids(cloud, f"/v3/policies/{second}/OS-ENDPOINT-POLICY/endpoints") == {here}
    assert ids(cloud, f"/v3/policies/{third}/OS-ENDPOINT-POLICY/endpoints") == {here}
    assert code(cloud, "PUT", paths(second)[2]) == 204  # instead of the third
    assert code(cloud, "GET", paths(third)[2]) == 404
    assert current() == second
    assert code(cloud, "DELETE", paths(second)[2]) == 204
    assert code(cloud, "DELETE", paths(second)[1]) == 204
    assert current() == first
    assert code(cloud, "DELETE", f"/v3/policies/{first}") == 204
    assert code(cloud, "GET", lookup) == 404
    for missing in ("/services/none", f"/services/{odd}/regions/none", "/endpoints/none"):
        assert code(cloud, "PUT", f"/v3/policies/{third}/OS-ENDPOINT-POLICY{missing}") == 404
    assert code(cloud, "PUT", f"/v3/policies/none/OS-ENDPOINT-POLICY/endpoints/{here}") == 404
    assert cloud.request("PUT", paths(third)[0], token=cloud.token("demo")).status == 403
    assert code(cloud, "PUT", paths(third)[0]) == 204
    assert code(cloud, "DELETE", f"/v3/services/{odd}") == 204
    assert ids(cloud, f"/v3/policies/{third}/OS-ENDPOINT-POLICY/endpoints") == set()
