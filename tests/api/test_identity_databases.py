"""Identity and Image in one short story on every database: what differs is in the SQL, so each kind of it is used."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from nubila.testing.cloud import TestCloud

pytest_plugins = ["nubila.testing.fixtures"]


@pytest.fixture
def cloud(tmp_path: Path, database_url: str) -> Iterator[TestCloud]:
    made = TestCloud(tmp_path / "cloud", hosts=0, database=database_url)
    yield made
    made.close()


def test_story(cloud: TestCloud) -> None:
    project = cloud.request("POST", "/v3/projects", {"project": {"name": "p", "tags": ["a"], "own": "x"}}).json[
        "project"
    ]
    user = cloud.request("POST", "/v3/users", {"user": {"name": "u", "password": "pw"}}).json["user"]
    role = cloud.request("GET", "/v3/roles?name=member").json["roles"][0]["id"]
    grant = f"/v3/projects/{project['id']}/users/{user['id']}/roles/{role}"
    assert cloud.request("PUT", grant).status == 204
    token = cloud.login("u", "pw", "p")
    found = cloud.request("GET", "/v3/projects?tags=a&name__icontains=P&enabled=true&limit=1&sort_key=name").json
    assert [p["own"] for p in found["projects"]] == ["x"]
    assert len(cloud.request("GET", "/v3/role_assignments?effective&include_names").json["role_assignments"]) > 5
    body = {"name": "i", "disk_format": "raw", "container_format": "bare", "tags": ["t"], "colour": "red"}
    image = cloud.request("POST", "/image/v2/images", body, token=token).json
    url = f"/image/v2/images/{image['id']}"
    octets = {"Content-Type": "application/octet-stream"}
    assert cloud.request("PUT", url + "/file", body=b"data", headers=octets, token=token).status == 204
    query = "tag=t&colour=red&size_min=4&created_at=gt:2020-01-01T00:00:00Z&sort=size:desc,name&status=in:active,queued"
    listed = cloud.request("GET", f"/image/v2/images?{query}", token=token).json["images"]
    assert [i["id"] for i in listed] == [image["id"]]
    assert cloud.request("DELETE", url, token=token).status == 204
    assert cloud.request("POST", "/v3/users", {"user": {"name": "u"}}).status == 409
    assert cloud.request("DELETE", grant).status == 204
    assert cloud.request("GET", "/v3/auth/projects", token=token).status == 401
    cloud.settle()
