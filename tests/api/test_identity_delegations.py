"""Application credentials with access rules, and trusts that are used up and passed on."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from nubila.core.call import Call
from nubila.core.faults import Fault
from nubila.services.identity import trusts
from nubila.testing.cloud import Response, TestCloud

Row = dict[str, Any]


@pytest.fixture(scope="module")
def cloud(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestCloud]:
    made = TestCloud(tmp_path_factory.mktemp("cloud"), hosts=0)
    yield made
    made.close()


class Person:
    """A user with a project of his own and roles on it."""

    def __init__(self, cloud: TestCloud, name: str, *roles: str) -> None:
        self.cloud, self.name = cloud, name
        self.id: str = cloud.request("POST", "/v3/users", {"user": {"name": name, "password": "pw"}}).json["user"]["id"]
        body = {"project": {"name": name}}
        self.project: str = cloud.request("POST", "/v3/projects", body).json["project"]["id"]
        for role in roles:
            self.grant(role)
        self.url = f"/v3/users/{self.id}"

    def grant(self, role: str, method: str = "PUT") -> Response:
        return self.cloud.request(
            method, f"/v3/projects/{self.project}/users/{self.id}/roles/{role_id(self.cloud, role)}"
        )

    def token(self) -> str:
        return self.cloud.login(self.name, "pw", self.name)

    def auth(self, scope: Any) -> Response:
        identity = {"methods": ["password"], "password": {"user": {"id": self.id, "password": "pw"}}}
        body = {"auth": {"identity": identity, "scope": scope}}
        return self.cloud.request("POST", "/v3/auth/tokens", body, token="")


def role_id(cloud: TestCloud, name: str) -> str:
    id: str = cloud.request("GET", f"/v3/roles?name={name}").json["roles"][0]["id"]
    return id


def robot(cloud: TestCloud, owner: Person, name: str, token: str | None = None, **attrs: Any) -> Row:
    """Make an application credential; with its token under "token"."""
    got = cloud.request(
        "POST", f"{owner.url}/application_credentials", {"application_credential": {"name": name, **attrs}},
        token=token or owner.token(),
    )  # fmt: skip
    assert got.status == 201, got.body
    found: Row = got.json["application_credential"]
    return {**found, "token": login_robot(cloud, found).headers["x-subject-token"]}


def login_robot(cloud: TestCloud, found: Row) -> Response:
    part = {"id": found["id"], "secret": found["secret"]}
    body = {"auth": {"identity": {"methods": ["application_credential"], "application_credential": part}}}
    return cloud.request("POST", "/v3/auth/tokens", body, token="")


# --- access rules --------------------------------------------------------------------------------------------------

SERVERS = {"service": "compute", "method": "GET", "path": "/v2.1/servers"}
FLAVOR = {"service": "compute", "method": "GET", "path": "/v2.1/flavors/{flavor_id}"}
NETWORKS = {"service": "network", "method": "GET", "path": "/v2.0/**"}


def test_access_rules_are_enforced_by_every_service(cloud: TestCloud) -> None:
    owner = Person(cloud, "narrowed", "member")
    got = robot(cloud, owner, "narrow", access_rules=[SERVERS, FLAVOR, NETWORKS])
    assert [{k: r[k] for k in SERVERS} for r in got["access_rules"]] == [SERVERS, FLAVOR, NETWORKS]
    allowed = [
        "/compute/v2.1/servers", "/compute/v2.1/servers?limit=1", "/compute/v2.1/flavors/1", "/network/v2.0/networks",
        "/network/v2.0/ports",
    ]  # fmt: skip
    refused = [
        "/compute/v2.1/servers/detail", "/compute/v2.1/flavors", "/compute/v2.1/flavors/1/os-extra_specs",
        "/image/v2/images", "/v3/auth/projects", "/placement/resource_providers", "/v3/users/" + owner.id,
        "/compute/v2.1/servers/", "/compute/v2.1//servers",
    ]  # fmt: skip
    for url in allowed:
        assert cloud.request("GET", url, token=got["token"]).status in (200, 404), url
    for url in refused:
        assert cloud.request("GET", url, token=got["token"]).status == 401, url
    for method in ("POST", "DELETE", "PUT"):
        assert cloud.request(method, "/network/v2.0/networks", {}, token=got["token"]).status in (401, 405)
    assert cloud.request("HEAD", "/compute/v2.1/servers", token=got["token"]).status == 401
    service = Person(cloud, "some-service", "service")
    chained = {"X-Service-Token": service.token()}
    assert cloud.request("GET", "/image/v2/images", token=got["token"], headers=chained).status == 200
    chained = {"X-Service-Token": owner.token()}
    assert cloud.request("GET", "/image/v2/images", token=got["token"], headers=chained).status == 401


def test_token_with_access_rules_is_shown_only_to_who_enforces_them(cloud: TestCloud) -> None:
    owner = Person(cloud, "shown", "member")
    got = robot(cloud, owner, "narrow", access_rules=[SERVERS])
    headers = {"X-Subject-Token": got["token"]}
    assert cloud.request("GET", "/v3/auth/tokens", headers=headers).status == 404
    for text, status in (("1.0", 200), ("1.1", 200), ("0.9", 404), ("x", 404)):
        sent = {**headers, "OpenStack-Identity-Access-Rules": text}
        seen = cloud.request("GET", "/v3/auth/tokens", headers=sent)
        assert seen.status == status
    seen = cloud.request("GET", "/v3/auth/tokens", headers={**headers, "OpenStack-Identity-Access-Rules": "1"})
    assert seen.json["token"]["application_credential"]["access_rules"] == got["access_rules"]
    own = {**headers, "OpenStack-Identity-Access-Rules": "1"}
    assert cloud.request("GET", "/v3/auth/tokens", headers=own, token=got["token"]).status == 200
    assert cloud.request("GET", "/v3/auth/tokens", headers=own, token=owner.token()).status == 200


def test_access_rules_as_a_resource(cloud: TestCloud) -> None:
    owner, other = Person(cloud, "ruler", "member"), Person(cloud, "not-ruler", "member")
    token, url = owner.token(), f"{owner.url}/access_rules"
    first = robot(cloud, owner, "first", access_rules=[SERVERS, FLAVOR])
    second = robot(cloud, owner, "second", access_rules=[SERVERS, {"id": first["access_rules"][1]["id"]}])
    assert second["access_rules"] == first["access_rules"]  # the same rule is one
    listed = cloud.request("GET", url, token=token).json["access_rules"]
    assert {r["path"] for r in listed} == {SERVERS["path"], FLAVOR["path"]}
    assert [r["path"] for r in cloud.request("GET", f"{url}?path=/v2.1/servers", token=token).json["access_rules"]] == [
        SERVERS["path"]
    ]
    id = first["access_rules"][0]["id"]
    assert cloud.request("GET", f"{url}/{id}", token=token).json["access_rule"]["service"] == "compute"
    assert cloud.request("GET", f"{url}/{id}", token=other.token()).status == 403
    assert cloud.request("GET", f"{other.url}/access_rules/{id}", token=other.token()).status == 403
    assert cloud.request("GET", f"{url}/none", token=token).status == 404
    assert cloud.request("DELETE", f"{url}/{id}", token=token).status == 403  # in use
    for used in (first["id"], second["id"]):
        assert cloud.request("DELETE", f"{owner.url}/application_credentials/{used}", token=token).status == 204
    assert cloud.request("DELETE", f"{url}/{id}", token=token).status == 204
    assert cloud.request("DELETE", f"{url}/{id}", token=token).status == 404
    bad = cloud.request(
        "POST", f"{other.url}/application_credentials",
        {"application_credential": {"name": "x", "access_rules": [{"id": listed[0]["id"]}]}}, token=other.token(),
    )  # fmt: skip
    assert bad.status == 404  # another user's rule


@pytest.mark.parametrize(
    "rule",
    [
        {}, {"service": "compute"}, {**SERVERS, "method": "get"}, {**SERVERS, "path": "v2.1"}, {**SERVERS, "path": 5},
        {**SERVERS, "more": 1}, "x", {**SERVERS, "path": "/" + "x" * 300},
    ],
)  # fmt: skip
def test_broken_access_rules(cloud: TestCloud, rule: Any) -> None:
    admin = cloud.request("GET", "/v3/users?name=admin").json["users"][0]["id"]
    body = {"application_credential": {"name": "x", "access_rules": [rule]}}
    assert cloud.request("POST", f"/v3/users/{admin}/application_credentials", body).status == 400


def test_unrestricted_robot_makes_no_wider_one(cloud: TestCloud) -> None:
    owner = Person(cloud, "maker", "member")
    url = f"{owner.url}/application_credentials"
    make = {"service": "identity", "method": "POST", "path": "/v3/users/*/application_credentials"}
    free = robot(cloud, owner, "free", unrestricted=True)
    child = robot(cloud, owner, "child", token=free["token"], roles=[{"name": "reader"}])
    assert [r["name"] for r in child["roles"]] == ["reader"]
    wide = {"application_credential": {"name": "wide", "roles": [{"name": "member"}], "unrestricted": True}}
    assert cloud.request("POST", url, wide, token=child["token"]).status == 403  # restricted itself
    narrow = robot(cloud, owner, "narrow", unrestricted=True, access_rules=[make, SERVERS])
    assert cloud.request("POST", url, wide, token=narrow["token"]).status == 403
    wide["application_credential"]["access_rules"] = [{**SERVERS, "path": "/**"}]
    assert cloud.request("POST", url, wide, token=narrow["token"]).status == 403
    robot(cloud, owner, "as-narrow", token=narrow["token"], access_rules=[SERVERS])


@pytest.mark.parametrize("what", ["project", "assignment", "role", "user"])
def test_robots_go_with_what_they_rest_on(cloud: TestCloud, what: str) -> None:
    owner = Person(cloud, f"resting-{what}", "member")
    custom = cloud.request("POST", "/v3/roles", {"role": {"name": f"resting-{what}"}}).json["role"]
    owner.grant(custom["name"])
    got = robot(cloud, owner, "robot", roles=[{"name": "reader"}])
    status = {
        "project": lambda: cloud.request("DELETE", f"/v3/projects/{owner.project}"),
        "assignment": lambda: owner.grant(custom["name"], "DELETE"),
        "role": lambda: cloud.request("DELETE", f"/v3/roles/{custom['id']}"),
        "user": lambda: cloud.request("DELETE", owner.url),
    }[what]().status
    assert status == 204
    assert cloud.request("GET", "/v3/auth/projects", token=got["token"]).status == 401
    assert login_robot(cloud, got).status == 401
    if what == "assignment":
        owner.grant(custom["name"])
        assert login_robot(cloud, got).status == 401  # it does not come back with the role


def test_expired_robot(cloud: TestCloud) -> None:
    owner = Person(cloud, "expiring", "member")
    for when in ("2001-01-01T00:00:00Z", "soon"):
        body = {"application_credential": {"name": "late", "expires_at": when}}
        got = cloud.request("POST", f"{owner.url}/application_credentials", body, token=owner.token())
        assert got.status == 400
    found = robot(cloud, owner, "later", expires_at="2101-01-01T00:00:00.000000Z")
    assert found["expires_at"].startswith("2101-01-01T00:00:00")


# --- trusts --------------------------------------------------------------------------------------------------------


def trust(cloud: TestCloud, giver: Person, taker: Person, token: str | None = None, **attrs: Any) -> Response:
    body = {
        "trustor_user_id": giver.id, "trustee_user_id": taker.id, "project_id": giver.project, "impersonation": False,
        "roles": [{"name": "reader"}], **attrs,
    }  # fmt: skip
    return cloud.request("POST", "/v3/OS-TRUST/trusts", {"trust": body}, token=token or giver.token())


def use(taker: Person, id: str) -> Response:
    return taker.auth({"OS-TRUST:trust": {"id": id}})


def made(got: Response) -> Row:
    assert got.status == 201, got.body
    found: Row = got.json["trust"]
    return found


def test_uses_are_counted_once_per_token(cloud: TestCloud) -> None:
    giver, taker = Person(cloud, "counts-g", "member"), Person(cloud, "counts-t", "member")
    found = made(trust(cloud, giver, taker, remaining_uses=3))
    url = f"/v3/OS-TRUST/trusts/{found['id']}"
    token = giver.token()
    first = use(taker, found["id"])
    assert first.status == 201
    assert cloud.request("GET", url, token=token).json["trust"]["remaining_uses"] == 2
    assert use(giver, found["id"]).status == 403  # not the trustee: no use
    borrowed = first.headers["x-subject-token"]
    for _ in range(3):
        assert cloud.request("GET", "/v3/auth/projects", token=borrowed).status == 200
    assert cloud.request("GET", url, token=token).json["trust"]["remaining_uses"] == 2
    with ThreadPoolExecutor(6) as pool:
        answers = [got.status for got in pool.map(lambda _: use(taker, found["id"]), range(6))]
    assert sorted(answers) == [201, 201, 401, 401, 401, 401]
    assert cloud.request("GET", url, token=token).status == 404
    assert cloud.request("GET", "/v3/auth/projects", token=borrowed).status == 200  # tokens outlive the last use
    last = made(trust(cloud, giver, taker, remaining_uses=1))["id"]
    call = Call(cloud.cloud, cloud.cloud.service("identity"), "POST", "/v3/auth/tokens")
    trusts.consume(call, last)
    with pytest.raises(Fault):  # another process was between looking and taking
        trusts.consume(call, last)
    for wrong in (0, -1, "2", 1.5):
        assert trust(cloud, giver, taker, remaining_uses=wrong).status == 400


def test_trust_is_passed_on(cloud: TestCloud) -> None:
    a, b, c, d = (Person(cloud, f"chain-{x}", "member", "service") for x in "abcd")
    first = made(
        trust(cloud, a, b, allow_redelegation=True, impersonation=True, roles=[{"name": "reader"}, {"name": "service"}])
    )
    assert first["redelegation_count"] == 3
    as_a = use(b, first["id"]).headers["x-subject-token"]
    second = made(trust(cloud, a, c, token=as_a, allow_redelegation=True, impersonation=True))
    assert (second["redelegated_trust_id"], second["redelegation_count"]) == (first["id"], 2)
    got = use(c, second["id"])
    assert got.status == 201
    assert got.json["token"]["user"]["id"] == a.id
    assert [r["name"] for r in got.json["token"]["roles"]] == ["reader"]
    as_a_too = got.headers["x-subject-token"]
    wider = {"roles": [{"name": "service"}]}
    assert trust(cloud, a, d, token=as_a_too, **wider).status == 403
    assert trust(cloud, a, d, token=as_a_too, remaining_uses=1).status == 403
    assert trust(cloud, a, d, token=as_a_too, allow_redelegation=True, redelegation_count=2).status == 403
    assert trust(cloud, b, d, token=as_a_too).status == 403  # not the trustor
    third = made(trust(cloud, a, d, token=as_a_too, impersonation=True))
    assert third["redelegation_count"] == 0
    last = use(d, third["id"])
    assert last.status == 201
    assert trust(cloud, a, b, token=last.headers["x-subject-token"]).status == 403  # the end of the chain
    cloud.request("PATCH", c.url, {"user": {"enabled": False}})
    assert cloud.request("GET", "/v3/auth/projects", token=last.headers["x-subject-token"]).status == 401
    assert use(d, third["id"]).status == 403
    cloud.request("PATCH", c.url, {"user": {"enabled": True}})
    assert use(d, third["id"]).status == 201
    assert cloud.request("DELETE", f"/v3/OS-TRUST/trusts/{first['id']}", token=a.token()).status == 204
    for id, who in ((second["id"], c), (third["id"], d)):
        assert cloud.request("GET", f"/v3/OS-TRUST/trusts/{id}").status == 404
        assert use(who, id).status == 401


def test_trust_passed_on_without_impersonation_draws_on_the_first_trustor(cloud: TestCloud) -> None:
    a, b, c = (Person(cloud, f"plain-{x}", "member") for x in "abc")
    first = made(trust(cloud, a, b, allow_redelegation=True, redelegation_count=1, expires_at="2101-01-01T00:00:00Z"))
    as_b = use(b, first["id"]).headers["x-subject-token"]
    same = {"token": as_b, "project_id": a.project}
    assert trust(cloud, b, c, **same, impersonation=True).status == 403
    assert trust(cloud, b, c, **same, expires_at="2102-01-01T00:00:00Z").status == 403
    assert trust(cloud, b, c, token=as_b).status in (403, 404)  # b's own project is not in the trust
    second = made(trust(cloud, b, c, **same))
    assert second["expires_at"] == first["expires_at"]
    got = use(c, second["id"])
    assert got.status == 201
    assert (got.json["token"]["user"]["id"], got.json["token"]["project"]["id"]) == (c.id, a.project)
    a.grant("member", "DELETE")
    assert use(c, second["id"]).status == 403
    assert cloud.request("GET", "/v3/auth/projects", token=got.headers["x-subject-token"]).status == 401


@pytest.mark.parametrize(
    ("attrs", "status"),
    [
        ({"allow_redelegation": True, "redelegation_count": 9}, 403),
        ({"allow_redelegation": True, "remaining_uses": 2}, 400),
        ({"roles": []}, 403),
        ({"roles": [{"name": "admin"}]}, 404),
        ({"roles": [{"id": "none"}]}, 404),
        ({"project_id": "none"}, 404),
        ({"trustee_user_id": "none"}, 404),
        ({"expires_at": "2001-01-01T00:00:00Z"}, 400),
        ({"expires_at": "whenever"}, 400),
        ({"impersonation": "maybe"}, 400),
        ({"impersonation": None}, 400),
    ],
)
def test_trust_refusals(cloud: TestCloud, attrs: Row, status: int) -> None:
    demo = cloud.request("GET", "/v3/users?name=demo").json["users"][0]["id"]
    project = cloud.request("GET", "/v3/projects?name=demo").json["projects"][0]["id"]
    body = {
        "trustor_user_id": demo, "trustee_user_id": demo, "project_id": project, "impersonation": False,
        "roles": [{"name": "reader"}], **attrs,
    }  # fmt: skip
    got = cloud.request("POST", "/v3/OS-TRUST/trusts", {"trust": body}, token=cloud.token("demo"))
    assert got.status == status, got.body


def test_who_sees_and_ends_a_trust(cloud: TestCloud) -> None:
    giver, taker, other = (Person(cloud, f"sees-{x}", "member") for x in "gto")
    found = made(trust(cloud, giver, taker))
    url = f"/v3/OS-TRUST/trusts/{found['id']}"
    reader = role_id(cloud, "reader")
    for who, status in ((giver, 200), (taker, 200), (other, 403)):
        token = who.token()
        for path in (url, f"{url}/roles", f"{url}/roles/{reader}"):
            assert cloud.request("GET", path, token=token).status == status, (who.name, path)
        assert cloud.request("GET", "/v3/OS-TRUST/trusts", token=token).status == 403
    assert cloud.request("HEAD", f"{url}/roles/{reader}", token=giver.token()).status == 200
    assert cloud.request("GET", f"{url}/roles/{role_id(cloud, 'member')}", token=giver.token()).status == 404
    for key, who in (("trustor", giver), ("trustee", taker)):
        listing = f"/v3/OS-TRUST/trusts?{key}_user_id={who.id}"
        got = cloud.request("GET", listing, token=who.token())
        assert [t["id"] for t in got.json["trusts"]] == [found["id"]]
        assert "roles" not in got.json["trusts"][0]
        assert cloud.request("GET", listing, token=other.token()).status == 403
    machine = robot(cloud, giver, "robot", unrestricted=True)
    for method, path in (("GET", url), ("GET", f"{url}/roles"), ("DELETE", url)):
        assert cloud.request(method, path, token=machine["token"]).status == 403
    assert trust(cloud, giver, taker, token=machine["token"]).status == 403
    for who in (taker, other):
        assert cloud.request("DELETE", url, token=who.token()).status == 403
    assert cloud.request("DELETE", url, token=giver.token()).status == 204
    assert cloud.request("DELETE", url, token=giver.token()).status == 404


@pytest.mark.parametrize("what", ["trustor", "trustee", "project", "trustor disabled", "project disabled"])
def test_trusts_end_with_users_and_projects(cloud: TestCloud, what: str) -> None:
    giver, taker = Person(cloud, f"ends-g-{what}", "member"), Person(cloud, f"ends-t-{what}", "member")
    found = made(trust(cloud, giver, taker))
    token = use(taker, found["id"]).headers["x-subject-token"]
    change = {
        "trustor": ("DELETE", giver.url, None),
        "trustee": ("DELETE", taker.url, None),
        "project": ("DELETE", f"/v3/projects/{giver.project}", None),
        "trustor disabled": ("PATCH", giver.url, {"user": {"enabled": False}}),
        "project disabled": ("PATCH", f"/v3/projects/{giver.project}", {"project": {"enabled": False}}),
    }[what]
    assert cloud.request(*change).status in (200, 204)
    assert cloud.request("GET", "/v3/auth/projects", token=token).status == 401
    assert use(taker, found["id"]).status in (401, 403)
    gone = cloud.request("GET", f"/v3/OS-TRUST/trusts/{found['id']}").status
    assert gone == (200 if "disabled" in what else 404)
