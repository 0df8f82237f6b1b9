"""Domains, projects, users, groups, roles, grants, the catalogue's resources, limits, credentials."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from nubila.testing.cloud import Response, TestCloud


@pytest.fixture(scope="module")
def cloud(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestCloud]:
    made = TestCloud(tmp_path_factory.mktemp("cloud"), hosts=0)
    yield made
    made.close()


def make(cloud: TestCloud, items: str, name: str, **attrs: Any) -> dict[str, Any]:
    """Create one thing and return it."""
    item = items.rstrip("s")
    got = cloud.request("POST", f"/v3/{items}", {item: {"name": name, **attrs}})
    assert got.status == 201, got.body
    found: dict[str, Any] = got.json[item]
    assert found["links"]["self"].endswith(f"/v3/{items}/{found['id']}")
    return found


def patch(cloud: TestCloud, items: str, id: str, **attrs: Any) -> Response:
    return cloud.request("PATCH", f"/v3/{items}/{id}", {items.rstrip("s"): attrs})


def names(cloud: TestCloud, url: str) -> list[str]:
    got = cloud.request("GET", url)
    assert got.status == 200, got.body
    return sorted(x["name"] for x in next(v for k, v in got.json.items() if isinstance(v, list)))


def role(cloud: TestCloud, name: str) -> str:
    id: str = cloud.request("GET", f"/v3/roles?name={name}").json["roles"][0]["id"]
    return id


# --- versions ------------------------------------------------------------------------------------------------------


def test_versions(cloud: TestCloud) -> None:
    assert cloud.request("GET", "/", token="").status == 300
    got = cloud.request("GET", "/v3/", token="")
    assert got.json["version"]["links"] == [{"rel": "self", "href": "http://127.0.0.1:5000/v3/"}]
    assert cloud.request("GET", "/v3/nonsense", token="").status == 404
    assert cloud.request("PUT", "/v3/projects").status == 405
    assert cloud.request("GET", "/v3/projects", token="").status == 401


# --- domains -------------------------------------------------------------------------------------------------------


def test_domain_takes_all_in_it_along(cloud: TestCloud) -> None:
    domain = make(cloud, "domains", "doomed")
    project = make(cloud, "projects", "p", domain_id=domain["id"])
    child = make(cloud, "projects", "c", parent_id=project["id"])
    user = make(cloud, "users", "u", domain_id=domain["id"], password="x")
    group = make(cloud, "groups", "g", domain_id=domain["id"])
    assert child["domain_id"] == domain["id"]
    assert cloud.request("DELETE", f"/v3/domains/{domain['id']}").status == 403  # it is enabled
    assert patch(cloud, "domains", domain["id"], enabled=False).status == 200
    assert cloud.request("DELETE", f"/v3/domains/{domain['id']}").status == 204
    for items, thing in (("projects", project), ("projects", child), ("users", user), ("groups", group)):
        assert cloud.request("GET", f"/v3/{items}/{thing['id']}").status == 404
    assert cloud.request("DELETE", "/v3/domains/default").status == 403


def test_domain_is_a_project_that_acts_as_one(cloud: TestCloud) -> None:
    domain = make(cloud, "domains", "acting")
    seen = cloud.request("GET", f"/v3/projects/{domain['id']}").json["project"]
    assert seen["is_domain"] is True
    assert seen["domain_id"] is None
    assert names(cloud, "/v3/projects?is_domain=true&name=acting") == ["acting"]
    assert names(cloud, "/v3/projects?name=acting") == []
    made = make(cloud, "projects", "acting2", is_domain=True)
    assert names(cloud, "/v3/domains?name=acting2") == ["acting2"]
    assert cloud.request("POST", "/v3/domains", {"domain": {"name": "acting2"}}).status == 409
    assert cloud.request("GET", f"/v3/domains/{made['id']}").json["domain"]["enabled"] is True


# --- projects ------------------------------------------------------------------------------------------------------


def test_project_keeps_attributes_of_the_callers_own(cloud: TestCloud) -> None:
    made = make(cloud, "projects", "extra", colour="red", tags=["b", "a"])
    assert made["colour"] == "red"
    assert sorted(made["tags"]) == ["a", "b"]
    assert made["parent_id"] == made["domain_id"] == "default"
    changed = patch(cloud, "projects", made["id"], colour="green", description="d").json["project"]
    assert (changed["colour"], changed["description"]) == ("green", "d")
    assert cloud.request("GET", f"/v3/projects/{made['id']}").json["project"]["colour"] == "green"


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ({"project": {}}, 400),
        ({"project": {"name": ""}}, 400),
        ({"project": {"name": " "}}, 400),
        ({"project": {"name": 5}}, 400),
        ({"project": {"name": "x" * 65}}, 400),
        ({"name": "x"}, 400),
        ([], 400),
        ({"project": {"name": "x", "enabled": "maybe"}}, 400),
        ({"project": {"name": "x", "domain_id": "nowhere"}}, 400),
        ({"project": {"name": "x", "parent_id": "nothing"}}, 400),
        ({"project": {"name": "x", "tags": [3]}}, 400),
        ({"project": {"name": "x", "tags": ["a,b"]}}, 400),
        ({"project": {"name": "x", "options": {"unheard": True}}}, 400),
        ({"project": {"name": "admin"}}, 409),
        ({"project": {"name": "x", "is_domain": True, "domain_id": "default"}}, 400),
    ],
)
def test_project_refusals(cloud: TestCloud, body: Any, status: int) -> None:
    got = cloud.request("POST", "/v3/projects", body)
    assert got.status == status, got.body
    assert got.json["error"]["code"] == status


def test_project_tree(cloud: TestCloud) -> None:
    top = make(cloud, "projects", "top")
    mid = make(cloud, "projects", "mid", parent_id=top["id"])
    low = make(cloud, "projects", "low", parent_id=mid["id"])
    seen = cloud.request("GET", f"/v3/projects/{low['id']}?parents_as_ids").json["project"]
    assert seen["parents"] == {mid["id"]: {top["id"]: {"default": None}}}
    seen = cloud.request("GET", f"/v3/projects/{top['id']}?subtree_as_ids").json["project"]
    assert seen["subtree"] == {mid["id"]: {low["id"]: None}}
    assert cloud.request("GET", f"/v3/projects/{top['id']}?subtree_as_list").json["project"]["subtree"] == []
    assert cloud.request("DELETE", f"/v3/projects/{top['id']}").status == 403
    assert patch(cloud, "projects", top["id"], enabled=False).status == 403
    assert patch(cloud, "projects", low["id"], parent_id=top["id"]).status == 403
    assert patch(cloud, "projects", low["id"], domain_id="other").status == 400
    parent = low["id"]
    for i in range(3):
        got = cloud.request("POST", "/v3/projects", {"project": {"name": f"deep{i}", "parent_id": parent}})
        if got.status == 201:
            parent = got.json["project"]["id"]
    assert got.status == 403
    assert names(cloud, f"/v3/projects?parent_id={top['id']}") == ["mid"]


def test_project_tags(cloud: TestCloud) -> None:
    for name, tags in (("t1", ["blue", "red"]), ("t2", ["blue"]), ("t3", [])):
        make(cloud, "projects", name, tags=tags)
    all_ = "name__startswith=t&"
    assert names(cloud, f"/v3/projects?{all_}tags=blue,red") == ["t1"]
    assert names(cloud, f"/v3/projects?{all_}tags-any=blue,red") == ["t1", "t2"]
    assert names(cloud, "/v3/projects?name__startswith=t&not-tags=blue,red&name__contains=t") >= ["t2", "t3"]
    assert "t1" not in names(cloud, f"/v3/projects?{all_}not-tags-any=blue")
    id = cloud.request("GET", "/v3/projects?name=t3").json["projects"][0]["id"]
    url = f"/v3/projects/{id}/tags"
    assert cloud.request("PUT", f"{url}/new").status == 201
    assert cloud.request("GET", f"{url}/new").status == 204
    assert cloud.request("GET", url).json["tags"] == ["new"]
    assert cloud.request("PUT", url, {"tags": ["x", "y"]}).json["tags"] == ["x", "y"]
    assert cloud.request("PUT", url, {"tags": ["a/b"]}).status == 400
    assert cloud.request("DELETE", f"{url}/x").status == 204
    assert cloud.request("DELETE", f"{url}/x").status == 404
    assert cloud.request("DELETE", url).status == 204
    assert cloud.request("GET", url).json["tags"] == []


def test_immutable(cloud: TestCloud) -> None:
    made = make(cloud, "projects", "stone", options={"immutable": True})
    assert patch(cloud, "projects", made["id"], name="sand").status == 403
    assert cloud.request("DELETE", f"/v3/projects/{made['id']}").status == 403
    assert patch(cloud, "projects", made["id"], options={"immutable": None}).status == 200
    assert cloud.request("DELETE", f"/v3/projects/{made['id']}").status == 204
    assert cloud.request("DELETE", f"/v3/roles/{role(cloud, 'member')}").status == 403


def test_paging_reaches_every_project(cloud: TestCloud) -> None:
    for i in range(7):
        make(cloud, "projects", f"page{i}")
    url, seen = "/v3/projects?limit=3&sort_key=name", []
    while url:
        got = cloud.request("GET", url).json
        seen += [p["name"] for p in got["projects"]]
        following = got["links"]["next"]
        url = following.removeprefix("http://127.0.0.1:5000") if following else ""
    assert seen == sorted(seen)
    assert len(seen) == len(set(seen))
    assert {f"page{i}" for i in range(7)} <= set(seen)


# --- users and groups ----------------------------------------------------------------------------------------------


def test_users(cloud: TestCloud) -> None:
    made = make(cloud, "users", "jo", password="x", email="jo@example.org", description="somebody")
    assert made["email"] == "jo@example.org"
    assert "password" not in made
    assert "default_project_id" not in made
    assert cloud.request("POST", "/v3/users", {"user": {"name": "jo"}}).status == 409
    assert cloud.request("POST", "/v3/users", {"user": {"name": "x", "domain_id": "nowhere"}}).status == 404
    assert cloud.request("POST", "/v3/users", {"user": {"name": "x", "password": 5}}).status == 400
    assert cloud.request("POST", "/v3/users", {"user": {"password": "x"}}).status == 400
    assert names(cloud, "/v3/users?name__icontains=JO&enabled=true") == ["jo"]
    assert names(cloud, "/v3/users?name=jo&enabled=0") == []
    changed = patch(cloud, "users", made["id"], name="joe", shoe=44).json["user"]
    assert (changed["name"], changed["shoe"], changed["email"]) == ("joe", 44, "jo@example.org")
    assert cloud.request("DELETE", f"/v3/users/{made['id']}").status == 204
    assert cloud.request("GET", f"/v3/users/{made['id']}").status == 404
    assert patch(cloud, "users", made["id"], name="x").status == 404


def test_stranger_learns_nothing(cloud: TestCloud) -> None:
    demo = cloud.token("demo")
    for url in (
        "/v3/users",
        "/v3/projects",
        "/v3/domains",
        "/v3/groups",
        "/v3/roles",
        "/v3/users/none",
        "/v3/groups/none",
    ):
        assert cloud.request("GET", url, token=demo).status == 403, url
    admin = cloud.request("GET", "/v3/users?name=admin").json["users"][0]["id"]
    assert cloud.request("GET", f"/v3/users/{admin}", token=demo).status == 403
    me = cloud.request("GET", "/v3/users?name=demo").json["users"][0]["id"]
    assert cloud.request("GET", f"/v3/users/{me}", token=demo).status == 200
    assert cloud.request("PATCH", f"/v3/users/{me}", {"user": {"enabled": False}}, token=demo).status == 403
    assert cloud.request("POST", "/v3/users", {"user": {"name": "x", "password": "y"}}, token=demo).status == 403


def test_groups_bring_roles(cloud: TestCloud) -> None:
    user, group = make(cloud, "users", "member-of", password="x"), make(cloud, "groups", "crew")
    project = make(cloud, "projects", "crew-project")
    url = f"/v3/groups/{group['id']}/users/{user['id']}"
    assert cloud.request("HEAD", url).status == 404
    assert cloud.request("PUT", url).status == 204
    assert cloud.request("PUT", url).status == 204  # twice is once
    assert cloud.request("HEAD", url).status == 204
    assert names(cloud, f"/v3/groups/{group['id']}/users") == ["member-of"]
    assert names(cloud, f"/v3/users/{user['id']}/groups") == ["crew"]
    grant = f"/v3/projects/{project['id']}/groups/{group['id']}/roles/{role(cloud, 'member')}"
    assert cloud.request("PUT", grant).status == 204
    assert names(cloud, f"/v3/users/{user['id']}/projects") == ["crew-project"]
    token = cloud.login("member-of", "x", "crew-project")
    assert cloud.request("GET", "/v3/auth/projects", token=token).status == 200
    assert cloud.request("DELETE", url).status == 204
    assert cloud.request("DELETE", url).status == 404
    assert cloud.request("GET", "/v3/auth/projects", token=token).status == 401
    assert cloud.request("PUT", f"/v3/groups/{group['id']}/users/nobody").status == 404


# --- roles and grants ----------------------------------------------------------------------------------------------


def test_roles(cloud: TestCloud) -> None:
    made = make(cloud, "roles", "brewer")
    assert made["domain_id"] is None
    assert cloud.request("POST", "/v3/roles", {"role": {"name": "brewer"}}).status == 409
    of_domain = make(cloud, "roles", "brewer", domain_id="default")
    assert names(cloud, "/v3/roles?name=brewer") == ["brewer"]
    assert names(cloud, "/v3/roles?domain_id=default") == ["brewer"]
    assert of_domain["domain_id"] == "default"
    assert patch(cloud, "roles", made["id"], name="baker").json["role"]["name"] == "baker"
    for each in (made, of_domain):
        assert cloud.request("DELETE", f"/v3/roles/{each['id']}").status == 204


def test_implied_roles(cloud: TestCloud) -> None:
    a, b = make(cloud, "roles", "prior"), make(cloud, "roles", "implied")
    url = f"/v3/roles/{a['id']}/implies/{b['id']}"
    got = cloud.request("PUT", url)
    assert got.status == 201
    assert got.json["role_inference"]["implies"]["name"] == "implied"
    assert cloud.request("GET", url).status == 200
    assert cloud.request("HEAD", url).status == 204
    assert cloud.request("PUT", f"/v3/roles/{b['id']}/implies/{a['id']}").status == 400  # a circle
    assert cloud.request("PUT", f"/v3/roles/{a['id']}/implies/{role(cloud, 'admin')}").status == 403
    assert a["id"] in [
        x["prior_role"]["id"] for x in cloud.request("GET", "/v3/role_inferences").json["role_inferences"]
    ]
    assert cloud.request("DELETE", url).status == 204
    assert cloud.request("GET", url).status == 404


@pytest.mark.parametrize("actor", ["users", "groups"])
@pytest.mark.parametrize(
    ("place", "inherited"),
    [("projects", False), ("projects", True), ("domains", False), ("domains", True), ("system", False)],
)
def test_grants(cloud: TestCloud, actor: str, place: str, inherited: bool) -> None:
    tag = f"{actor}-{place}-{inherited}"
    who = make(cloud, actor, tag)
    if place == "system":
        where = "/system"
    else:
        where = f"/{place}/{make(cloud, place, tag)['id']}"
    start, end = ("/v3/OS-INHERIT", "/inherited_to_projects") if inherited else ("/v3", "")
    some = role(cloud, "reader")
    url = f"{start}{where}/{actor}/{who['id']}/roles/{some}{end}"
    listing = f"{start}{where}/{actor}/{who['id']}/roles{end}"
    assert cloud.request("HEAD", url).status == 404
    assert cloud.request("DELETE", url).status == 404
    assert cloud.request("PUT", url).status == 204
    assert cloud.request("PUT", url).status == 204
    assert cloud.request("GET", url).status == 204
    assert names(cloud, listing) == ["reader"]
    found = cloud.request("GET", f"/v3/role_assignments?{actor.rstrip('s')}.id={who['id']}").json["role_assignments"]
    assert len(found) == 1
    assert found[0]["links"]["assignment"] == "http://127.0.0.1:5000" + url
    assert cloud.request("PUT", url.replace(some, "none")).status == 404
    assert cloud.request("PUT", url.replace(who["id"], "nobody")).status == 404
    assert cloud.request("PUT", url, token=cloud.token("demo")).status == 403
    assert cloud.request("DELETE", url).status == 204
    assert names(cloud, listing) == []


def test_inherited_roles_reach_below(cloud: TestCloud) -> None:
    domain = make(cloud, "domains", "heirs")
    top = make(cloud, "projects", "heir", domain_id=domain["id"])
    low = make(cloud, "projects", "grandheir", parent_id=top["id"])
    user = make(cloud, "users", "heir", password="x")
    some = role(cloud, "member")
    cloud.request("PUT", f"/v3/OS-INHERIT/domains/{domain['id']}/users/{user['id']}/roles/{some}/inherited_to_projects")
    assert names(cloud, f"/v3/users/{user['id']}/projects") == ["grandheir", "heir"]
    found = cloud.request("GET", f"/v3/role_assignments?user.id={user['id']}&effective&include_names").json
    seen = {(a["scope"]["project"]["name"], a["role"]["name"]) for a in found["role_assignments"]}
    assert seen == {(p, r) for p in ("heir", "grandheir") for r in ("member", "reader")}
    tree = f"/v3/role_assignments?include_subtree=true&effective&scope.project.id={top['id']}&role.id={some}"
    assert len(cloud.request("GET", tree).json["role_assignments"]) == 2
    assert cloud.request("GET", "/v3/role_assignments?include_subtree=true").status == 400
    assert cloud.request("GET", "/v3/role_assignments?user.id=a&group.id=b").status == 400
    assert low["parent_id"] == top["id"]


def test_domain_manager(cloud: TestCloud) -> None:
    """Manager on a domain: makes and grants there, nowhere else."""
    domain = make(cloud, "domains", "managed")
    boss = make(cloud, "users", "boss", domain_id=domain["id"], password="x")
    cloud.request("PUT", f"/v3/domains/{domain['id']}/users/{boss['id']}/roles/{role(cloud, 'manager')}")
    body = {"auth": {
        "identity": {"methods": ["password"], "password": {"user": {"id": boss["id"], "password": "x"}}},
        "scope": {"domain": {"id": domain["id"]}},
    }}  # fmt: skip
    token = cloud.request("POST", "/v3/auth/tokens", body, token="").headers["x-subject-token"]

    def post(items: str, **attrs: Any) -> Response:
        return cloud.request("POST", f"/v3/{items}", {items.rstrip("s"): attrs}, token=token)

    assert post("projects", name="inside", domain_id=domain["id"]).status == 201
    assert post("projects", name="outside", domain_id="default").status == 403
    assert post("users", name="inside", domain_id=domain["id"]).status == 201
    assert post("users", name="outside", domain_id="default").status == 403
    assert post("groups", name="inside", domain_id=domain["id"]).status == 201
    assert post("groups", name="nowhere").status == 403  # as in the original: a manager says where
    seen = cloud.request("GET", "/v3/users", token=token)
    assert {u["domain_id"] for u in seen.json["users"]} == {domain["id"]}
    seen = cloud.request("GET", "/v3/projects", token=token)
    assert {p["domain_id"] for p in seen.json["projects"]} == {domain["id"]}
    project = cloud.request("GET", "/v3/projects?name=inside").json["projects"][0]["id"]
    grant = f"/v3/projects/{project}/users/{boss['id']}/roles/"
    assert cloud.request("PUT", grant + role(cloud, "member"), token=token).status == 204
    assert cloud.request("PUT", grant + role(cloud, "admin"), token=token).status == 403


# --- the catalogue -------------------------------------------------------------------------------------------------


def test_regions_services_endpoints(cloud: TestCloud) -> None:
    region = cloud.request("POST", "/v3/regions", {"region": {"id": "north"}}).json["region"]
    assert region["parent_region_id"] is None
    assert cloud.request("POST", "/v3/regions", {"region": {"id": "north"}}).status == 409
    assert cloud.request("PUT", "/v3/regions/south", {"region": {"parent_region_id": "north"}}).status == 201
    assert cloud.request("POST", "/v3/regions", {"region": {"parent_region_id": "nowhere"}}).status == 404
    assert cloud.request("PATCH", "/v3/regions/north", {"region": {"parent_region_id": "south"}}).status == 400
    service = make(cloud, "services", "brewery", type="brewing", description="beer")
    assert service["description"] == "beer"
    body = {"interface": "public", "service_id": service["id"], "region_id": "south", "url": "http://b/$(project_id)s"}
    made = cloud.request("POST", "/v3/endpoints", {"endpoint": body})
    assert made.status == 201
    endpoint = made.json["endpoint"]
    assert endpoint["region"] == "south"
    assert endpoint["enabled"] is True
    for wrong in ({"url": "banana"}, {"service_id": "none"}, {"region_id": "none"}, {"interface": "x"},
                  {"url": "http://b/%(nope)s"}):  # fmt: skip
        assert cloud.request("POST", "/v3/endpoints", {"endpoint": {**body, **wrong}}).status == 400, wrong
    token = cloud.token("demo")
    catalog = cloud.request("GET", "/v3/auth/catalog", token=token).json["catalog"]
    found = next(s for s in catalog if s["type"] == "brewing")
    project = cloud.request("GET", "/v3/auth/projects", token=token).json["projects"][0]["id"]
    assert [e["url"] for e in found["endpoints"]] == [f"http://b/{project}"]
    listed = cloud.request("GET", f"/v3/endpoints?interface=public&service_id={service['id']}").json["endpoints"]
    assert [e["id"] for e in listed] == [endpoint["id"]]
    assert cloud.request("GET", "/v3/endpoints?interface=loud").status == 400
    assert patch(cloud, "endpoints", endpoint["id"], enabled=False).status == 200
    catalog = cloud.request("GET", "/v3/auth/catalog", token=token).json["catalog"]
    assert next(s for s in catalog if s["type"] == "brewing")["endpoints"] == []
    assert cloud.request("DELETE", "/v3/regions/north").status == 403
    assert cloud.request("DELETE", f"/v3/services/{service['id']}").status == 204
    assert cloud.request("GET", f"/v3/endpoints/{endpoint['id']}").status == 404
    assert cloud.request("DELETE", "/v3/regions/north").status == 204
    assert cloud.request("GET", "/v3/regions/south").status == 404


def test_own_endpoints_are_shown_below_our_name(cloud: TestCloud) -> None:
    found = cloud.request("GET", "/v3/endpoints?interface=public").json["endpoints"]
    assert "http://127.0.0.1:5000/compute/v2.1" in {e["url"] for e in found}
    one = next(e for e in found if e["url"].endswith("/image"))
    assert patch(cloud, "endpoints", one["id"], url=one["url"]).json["endpoint"]["url"] == one["url"]
    got = cloud.request("GET", f"/v3/endpoints/{one['id']}", headers={"Host": "other.example.org"})
    assert got.json["endpoint"]["url"] == "http://other.example.org/image"


def test_policies(cloud: TestCloud) -> None:
    made = cloud.request("POST", "/v3/policies", {"policy": {"type": "application/json", "blob": "{}"}})
    assert made.status == 201
    id = made.json["policy"]["id"]
    changed = cloud.request("PATCH", f"/v3/policies/{id}", {"policy": {"type": "text/plain"}})
    assert changed.json["policy"]["type"] == "text/plain"
    assert cloud.request("DELETE", f"/v3/policies/{id}").status == 204


# --- limits and credentials ----------------------------------------------------------------------------------------


def test_limits(cloud: TestCloud) -> None:
    service = cloud.request("GET", "/v3/services?type=image").json["services"][0]["id"]
    demo = cloud.request("GET", "/v3/projects?name=demo").json["projects"][0]["id"]
    registered = {"service_id": service, "resource_name": "beer", "default_limit": 5}
    got = cloud.request("POST", "/v3/registered_limits", {"registered_limits": [registered]})
    assert got.status == 201
    id = got.json["registered_limits"][0]["id"]
    assert cloud.request("POST", "/v3/registered_limits", {"registered_limits": [registered]}).status == 409
    limit = {"service_id": service, "resource_name": "beer", "resource_limit": 9, "project_id": demo}
    got = cloud.request("POST", "/v3/limits", {"limits": [limit]})
    assert got.status == 201
    mine = got.json["limits"][0]["id"]
    assert cloud.request("POST", "/v3/limits", {"limits": [{**limit, "resource_name": "wine"}]}).status == 403
    assert cloud.request("POST", "/v3/limits", {"limits": [{**limit, "domain_id": "default"}]}).status == 400
    assert cloud.request("GET", "/v3/limits", token=cloud.token("demo")).json["limits"][0]["id"] == mine
    assert cloud.request("GET", "/v3/limits/model").json["model"]["name"] == "flat"
    assert (
        cloud.request("PATCH", f"/v3/limits/{mine}", {"limit": {"resource_limit": -1}}).json["limit"]["resource_limit"]
        == -1
    )
    change = {"registered_limit": {"default_limit": 7}}
    assert cloud.request("PATCH", f"/v3/registered_limits/{id}", change).status == 403
    assert cloud.request("DELETE", f"/v3/registered_limits/{id}").status == 403
    assert cloud.request("DELETE", f"/v3/services/{service}").status == 403
    assert cloud.request("DELETE", f"/v3/limits/{mine}").status == 204
    assert cloud.request("PATCH", f"/v3/registered_limits/{id}", change).status == 200
    assert cloud.request("DELETE", f"/v3/registered_limits/{id}").status == 204


def test_credentials(cloud: TestCloud) -> None:
    demo = cloud.request("GET", "/v3/users?name=demo").json["users"][0]["id"]
    project = cloud.request("GET", "/v3/projects?name=demo").json["projects"][0]["id"]
    body = {"type": "ec2", "blob": '{"access": "a", "secret": "s"}', "user_id": demo, "project_id": project}
    token = cloud.token("demo")
    made = cloud.request("POST", "/v3/credentials", {"credential": body}, token=token)
    assert made.status == 201
    id = made.json["credential"]["id"]
    assert len(id) == 64
    assert cloud.request("POST", "/v3/credentials", {"credential": body}).status == 409
    assert cloud.request("POST", "/v3/credentials", {"credential": {**body, "blob": "x"}}).status == 400
    admin = cloud.request("GET", "/v3/users?name=admin").json["users"][0]["id"]
    other = cloud.request("POST", "/v3/credentials", {"credential": {**body, "type": "cert", "user_id": admin}})
    assert other.status == 201
    seen = cloud.request("GET", "/v3/credentials", token=token).json["credentials"]
    assert [c["id"] for c in seen] == [id]
    assert cloud.request("GET", f"/v3/credentials/{other.json['credential']['id']}", token=token).status == 403
    assert cloud.request("DELETE", f"/v3/credentials/{id}", token=token).status == 204
