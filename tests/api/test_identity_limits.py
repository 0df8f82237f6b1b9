"""Limits in both models, and projects' trees as the strict one wants them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from nubila.core import config
from nubila.testing.cloud import Response, TestCloud

Row = dict[str, Any]


@pytest.fixture(scope="module")
def flat(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestCloud]:
    made = TestCloud(tmp_path_factory.mktemp("flat"), hosts=0)
    yield made
    made.close()


@pytest.fixture(scope="module")
def strict(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestCloud]:
    made = TestCloud(tmp_path_factory.mktemp("strict"), hosts=0, limit_model="strict_two_level")
    yield made
    made.close()


class Tree:
    """A domain with two projects, and a registered limit of 10."""

    def __init__(self, cloud: TestCloud, name: str) -> None:
        self.cloud, self.name = cloud, name
        self.domain = self.make("domains", "domain", name=name)
        self.projects = [self.make("projects", "project", name=f"{name}{i}", domain_id=self.domain) for i in (1, 2)]
        self.service = self.make("services", "service", type=name, name=name)
        registered = {"service_id": self.service, "resource_name": "cows", "default_limit": 10}
        got = cloud.request("POST", "/v3/registered_limits", {"registered_limits": [registered]})
        assert got.status == 201

    def make(self, items: str, item: str, **attrs: Any) -> str:
        got = self.cloud.request("POST", f"/v3/{items}", {item: attrs})
        assert got.status == 201, got.body
        id: str = got.json[item]["id"]
        return id

    def limit(self, n: int, **owner: str) -> Row:
        return {"service_id": self.service, "resource_name": "cows", "resource_limit": n, **owner}

    def post(self, *limits: Row) -> Response:
        return self.cloud.request("POST", "/v3/limits", {"limits": list(limits)})

    def patch(self, id: str, n: int) -> Response:
        return self.cloud.request("PATCH", f"/v3/limits/{id}", {"limit": {"resource_limit": n}})


def test_models(flat: TestCloud, strict: TestCloud, tmp_path: Path) -> None:
    for cloud, name in ((flat, "flat"), (strict, "strict_two_level")):
        got = cloud.request("GET", "/v3/limits/model", token=cloud.token("demo")).json["model"]
        assert got["name"] == name
        assert got["description"]
    (tmp_path / "nubila.toml").write_text('limit_model = "loose"\n')
    with pytest.raises(config.BadSetting, match="strict_two_level"):
        config.load(tmp_path / "nubila.toml")


def test_flat_limits_stand_alone(flat: TestCloud) -> None:
    tree = Tree(flat, "flat")
    first, second = tree.projects
    got = tree.post(tree.limit(5, domain_id=tree.domain), tree.limit(50, project_id=first))
    assert got.status == 201
    assert tree.post(tree.limit(5, project_id=first)).status == 409
    assert tree.post(tree.limit(5, project_id=tree.domain)).status == 409  # the domain by another name
    assert tree.post(tree.limit(5)).status == 400
    assert tree.post(tree.limit(5, project_id=second, domain_id=tree.domain)).status == 400
    assert tree.post(tree.limit(5, domain_id=second)).status == 400
    assert tree.post(tree.limit(5, project_id="none")).status == 400
    assert tree.post({**tree.limit(5, project_id=second), "resource_name": "pigs"}).status == 403
    assert tree.post(tree.limit(-2, project_id=second)).status == 400
    assert tree.patch(got.json["limits"][0]["id"], 1).status == 200
    low = tree.make("projects", "project", name="low", parent_id=first)
    assert tree.post(tree.limit(500, project_id=low)).status == 201


def test_strict_limits_fit_their_domain(strict: TestCloud) -> None:
    tree = Tree(strict, "strict")
    first, second = tree.projects
    assert tree.post(tree.limit(11, project_id=first)).status == 403  # the default is the domain's
    assert tree.post(tree.limit(-1, project_id=first)).status == 403
    low = tree.post(tree.limit(10, project_id=first)).json["limits"][0]["id"]
    assert tree.patch(low, 11).status == 403
    assert tree.post(tree.limit(9, domain_id=tree.domain)).status == 403  # less than the project has
    assert tree.post(tree.limit(30, project_id=second), tree.limit(20, domain_id=tree.domain)).status == 403
    assert tree.post(tree.limit(20, project_id=second), tree.limit(20, domain_id=tree.domain)).status == 201
    found = strict.request("GET", f"/v3/limits?domain_id={tree.domain}").json["limits"]
    assert [x["resource_limit"] for x in found] == [20]
    top = found[0]["id"]
    assert tree.patch(top, 19).status == 403
    assert tree.patch(low, 20).status == 200
    assert tree.patch(low, 21).status == 403
    assert tree.patch(top, -1).status == 200
    assert tree.patch(low, 10_000).status == 200
    assert strict.request("PATCH", f"/v3/limits/{low}", {"limit": {"description": "d"}}).status == 200


def test_strict_projects_are_one_level_deep(strict: TestCloud) -> None:
    top = strict.request("POST", "/v3/projects", {"project": {"name": "top"}}).json["project"]["id"]
    got = strict.request("POST", "/v3/projects", {"project": {"name": "low", "parent_id": top}})
    assert got.status == 403


def test_who_sees_limits(flat: TestCloud) -> None:
    tree = Tree(flat, "seen")
    demo = flat.request("GET", "/v3/projects?name=demo").json["projects"][0]["id"]
    got = tree.post(tree.limit(1, project_id=tree.projects[0]), tree.limit(2, project_id=demo))
    mine = got.json["limits"][1]["id"]
    token = flat.token("demo")
    assert [x["id"] for x in flat.request("GET", "/v3/limits", token=token).json["limits"]] == [mine]
    assert flat.request("GET", f"/v3/limits/{mine}", token=token).status == 200
    assert flat.request("GET", f"/v3/limits/{got.json['limits'][0]['id']}", token=token).status == 403
    assert len(flat.request("GET", f"/v3/limits?service_id={tree.service}").json["limits"]) == 2


@pytest.mark.parametrize("what", ["parents", "subtree"])
def test_tree_is_asked_for_in_one_form(flat: TestCloud, what: str) -> None:
    id = flat.request("GET", "/v3/projects?name=demo").json["projects"][0]["id"]
    assert flat.request("GET", f"/v3/projects/{id}?{what}_as_list&{what}_as_ids").status == 400
