"""Who has which role where: every filter of GET /v3/role_assignments, roles that imply others, inheritance, the system,
roles of a domain, and what tokens make of it."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import pytest

from nubila.testing.cloud import Response, TestCloud


class World:
    """A domain ``d`` with project ``p`` and ``c`` below it, users ``a`` and ``b``, group ``g`` with ``b`` in it, the
    roles ``x`` that implies ``y``, and the domain's own role ``dr`` that implies ``y`` too."""

    def __init__(self, cloud: TestCloud) -> None:
        self.cloud = cloud
        self.ids: dict[str, str] = {}
        self.make("domains", "d")
        self.make("projects", "p", domain_id=self.ids["d"])
        self.make("projects", "c", parent_id=self.ids["p"])
        for name in ("a", "b"):
            self.make("users", name, domain_id=self.ids["d"], password="s3cret-Pass")
        self.make("groups", "g", domain_id=self.ids["d"])
        for name in ("x", "y"):
            self.make("roles", name)
        self.make("roles", "dr", domain_id=self.ids["d"])
        self.ok("PUT", "/v3/groups/{g}/users/{b}")
        for prior in ("x", "dr"):
            self.ok("PUT", f"/v3/roles/{{{prior}}}/implies/{{y}}")
        for path in (
            "/v3/projects/{p}/users/{a}/roles/{x}", "/v3/projects/{p}/groups/{g}/roles/{y}",
            "/v3/OS-INHERIT/domains/{d}/users/{a}/roles/{x}/inherited_to_projects",
            "/v3/domains/{d}/users/{b}/roles/{y}", "/v3/system/users/{a}/roles/{x}",
            "/v3/system/groups/{g}/roles/{x}", "/v3/projects/{p}/users/{a}/roles/{dr}",
            "/v3/OS-INHERIT/projects/{p}/groups/{g}/roles/{y}/inherited_to_projects",
        ):  # fmt: skip
            self.ok("PUT", path)

    def make(self, items: str, name: str, **attrs: Any) -> None:
        item = items.rstrip("s")
        got = self.cloud.request("POST", f"/v3/{items}", {item: {"name": f"ra-{name}", **attrs}})
        assert got.status == 201, got.body
        self.ids[name] = got.json[item]["id"]

    def ask(self, method: str, path: str, body: Any = None, token: str | None = None) -> Response:
        return self.cloud.request(method, path.format(**self.ids), body, token=token)

    def ok(self, method: str, path: str, body: Any = None) -> Any:
        got = self.ask(method, path, body)
        assert got.status < 300, (path, got.body)
        return got.json if got.body else None

    def listed(self, query: str) -> set[str]:
        """The assignments as "ACTOR TARGET ROLE" with the short names, ``*`` after an inherited target."""
        short = {id: name for name, id in self.ids.items()}
        out = set()
        for found in self.ok("GET", f"/v3/role_assignments?{query}")["role_assignments"]:
            actor = found.get("user") or found["group"]
            scope = found["scope"]
            target = "system" if "system" in scope else short.get((scope.get("project") or scope["domain"])["id"], "?")
            star = "*" if scope.get("OS-INHERIT:inherited_to") == "projects" else ""
            if actor["id"] in short:
                out.add(f"{short[actor['id']]} {target}{star} {short.get(found['role']['id'], '?')}")
        return out


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    cloud = TestCloud(tmp_path_factory.mktemp("cloud"), hosts=0)
    yield World(cloud)
    cloud.close()


EVERY = {"a p x", "g p y", "a d* x", "b d y", "a system x", "g system x", "a p dr", "g p* y"}
EFFECTIVE = {
    "a p x", "a p y", "b p y", "a p* x", "a p* y", "a c* x", "a c* y", "b d y", "a system x", "a system y",
    "b system x", "b system y", "b c* y",
}  # fmt: skip


@pytest.mark.req("A/ID-18")
@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("", EVERY),
        ("user.id={a}", {row for row in EVERY if row.startswith("a ")}),
        ("group.id={g}", {row for row in EVERY if row.startswith("g ")}),
        ("role.id={x}", {row for row in EVERY if row.endswith(" x")}),
        ("role.id={dr}", {"a p dr"}),
        ("scope.project.id={p}", {"a p x", "g p y", "a p dr", "g p* y"}),
        ("scope.domain.id={d}", {"a d* x", "b d y"}),
        ("scope.system=all", {"a system x", "g system x"}),
        ("scope.OS-INHERIT:inherited_to=projects", {"a d* x", "g p* y"}),
        ("scope.domain.id={d}&scope.OS-INHERIT:inherited_to=projects", {"a d* x"}),
        ("scope.project.id={p}&user.id={a}&role.id={x}", {"a p x"}),
        ("scope.project.id={c}", set()),
        ("user.id=nobody", set()),
        ("effective", EFFECTIVE),
        ("effective=true&user.id={b}", {row for row in EFFECTIVE if row.startswith("b ")}),
        ("effective&scope.project.id={c}", {"a c* x", "a c* y", "b c* y"}),
        ("effective&scope.system=all", {"a system x", "a system y", "b system x", "b system y"}),
        ("effective&scope.domain.id={d}", {"b d y"}),
        ("effective&role.id={y}&scope.project.id={p}", {"a p y", "b p y", "a p* y"}),
        ("effective=0&user.id={b}", {"b d y"}),
        ("include_subtree&scope.project.id={p}", {"a p x", "g p y", "a p dr", "g p* y"}),
        ("include_subtree=true&effective&scope.project.id={p}",
         {row for row in EFFECTIVE if row.split()[1] in ("p", "p*", "c*")}),
    ],
)  # fmt: skip
def test_every_filter(world: World, query: str, expected: set[str]) -> None:
    assert world.listed(query) == expected
    got = world.ask("HEAD", f"/v3/role_assignments?{query}")
    assert (got.status, got.body) == (200, b"")


@pytest.mark.parametrize(
    "query",
    [
        "user.id={a}&group.id={g}", "scope.project.id={p}&scope.domain.id={d}", "scope.system=all&scope.project.id={p}",
        "scope.system=all&scope.domain.id={d}", "effective&group.id={g}", "include_subtree=true",
        "effective&scope.domain.id={d}&scope.OS-INHERIT:inherited_to=projects",
    ],
)  # fmt: skip
def test_filters_that_exclude_each_other(world: World, query: str) -> None:
    assert world.ask("GET", f"/v3/role_assignments?{query}").status == 400


def test_names_and_links(world: World) -> None:
    ids = world.ids
    rows = world.ok("GET", "/v3/role_assignments?include_names&user.id={a}&role.id={dr}")["role_assignments"]
    assert rows == [
        {
            "links": {"assignment": world.cloud.request("GET", "/v3").json["version"]["links"][0]["href"].rstrip("/")
                      + f"/projects/{ids['p']}/users/{ids['a']}/roles/{ids['dr']}"},
            "user": {"id": ids["a"], "name": "ra-a", "domain": {"id": ids["d"], "name": "ra-d"}},
            "scope": {"project": {"id": ids["p"], "name": "ra-p", "domain": {"id": ids["d"], "name": "ra-d"}}},
            "role": {"id": ids["dr"], "name": "ra-dr", "domain": {"id": ids["d"], "name": "ra-d"}},
        }
    ]  # fmt: skip
    rows = world.ok("GET", "/v3/role_assignments?effective&user.id={b}&scope.project.id={c}")["role_assignments"]
    assert rows[0]["links"]["assignment"].endswith(
        f"/v3/OS-INHERIT/projects/{ids['p']}/groups/{ids['g']}/roles/{ids['y']}/inherited_to_projects"
    )
    assert rows[0]["links"]["membership"].endswith(f"/v3/groups/{ids['g']}/users/{ids['b']}")
    rows = world.ok("GET", "/v3/role_assignments?effective&user.id={a}&scope.system=all&role.id={y}")
    assert "/prior_role/" in rows["role_assignments"][0]["links"]["prior_role"]


# --- tokens ---------------------------------------------------------------------------------------------------------


def token_roles(world: World, user: str, scope: Any) -> set[str] | int:
    """The short names of the roles in a token, or the status that refused it."""
    auth = {
        "identity": {"methods": ["password"], "password": {"user": {"id": world.ids[user], "password": "s3cret-Pass"}}},
        "scope": scope,
    }
    got = world.cloud.request("POST", "/v3/auth/tokens", {"auth": auth}, token="")
    if got.status != 201:
        return got.status
    return {role["name"].removeprefix("ra-") for role in got.json["token"]["roles"]}


@pytest.mark.req("A/ID-07", "A/ID-19")
@pytest.mark.parametrize(
    ("user", "kind", "name", "roles"),
    [
        ("a", "project", "p", {"x", "y"}), ("a", "project", "c", {"x", "y"}), ("b", "project", "p", {"y"}),
        ("b", "project", "c", {"y"}), ("a", "domain", "d", 401), ("b", "domain", "d", {"y"}),
        ("a", "system", "", {"x", "y"}), ("b", "system", "", {"x", "y"}),
    ],
)  # fmt: skip
def test_tokens_hold_exactly_the_roles_of_their_scope(
    world: World, user: str, kind: str, name: str, roles: set[str] | int
) -> None:
    scope = {"system": {"all": True}} if kind == "system" else {kind: {"id": world.ids[name]}}
    assert token_roles(world, user, scope) == roles


# --- implied roles --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("length", [1, 2, 5])
def test_implication_never_closes_a_circle(world: World, length: int) -> None:
    names = [f"ring{length}-{i}" for i in range(length)]
    for name in names:
        world.make("roles", name)
    for prior, implied in pairwise(names):
        world.ok("PUT", f"/v3/roles/{{{prior}}}/implies/{{{implied}}}")
    assert world.ask("PUT", f"/v3/roles/{{{names[-1]}}}/implies/{{{names[0]}}}").status == 400
    if length > 1:
        one = f"/v3/roles/{{{names[0]}}}/implies/{{{names[1]}}}"
        assert world.ask("HEAD", one).status == 204
        assert world.ok("GET", one)["role_inference"]["prior_role"]["id"] == world.ids[names[0]]
        found = world.ok("GET", "/v3/role_inferences")["role_inferences"]
        assert [world.ids[names[1]]] in [[r["id"] for r in f["implies"]] for f in found]
        assert world.ask("DELETE", one).status == 204
        assert world.ask("HEAD", one).status == 404
        assert world.ask("DELETE", one).status == 404
        world.ok("PUT", f"/v3/roles/{{{names[-1]}}}/implies/{{{names[0]}}}")


def test_roles_of_a_domain(world: World) -> None:
    world.make("domains", "else")
    world.make("projects", "far", domain_id=world.ids["else"])
    world.make("roles", "dr2", domain_id=world.ids["d"])
    assert world.ask("PUT", "/v3/roles/{x}/implies/{dr2}").status == 403  # a global role cannot
    world.ok("PUT", "/v3/roles/{dr2}/implies/{dr}")
    assert world.ask("PUT", "/v3/projects/{far}/users/{a}/roles/{dr2}").status == 403
    assert world.ask("PUT", "/v3/system/users/{a}/roles/{dr2}").status == 400
    assert world.ask("PUT", "/v3/projects/{c}/users/{b}/roles/{dr2}").status == 204
    assert token_roles(world, "b", {"project": {"id": world.ids["c"]}}) == {"y"}  # domain roles do not show
    listed = world.ok("GET", "/v3/roles?domain_id={d}")["roles"]
    assert {r["name"] for r in listed} == {"ra-dr", "ra-dr2"}
    assert not {"ra-dr", "ra-dr2"} & {r["name"] for r in world.ok("GET", "/v3/roles")["roles"]}
    assert world.ask("DELETE", "/v3/projects/{c}/users/{b}/roles/{dr2}").status == 204
    assert world.ask("DELETE", "/v3/roles/{dr2}").status == 204
    assert world.ask("GET", "/v3/roles/{dr2}/implies").status == 404


def test_a_domain_takes_its_roles_and_their_implications_along(world: World) -> None:
    world.make("domains", "brief")
    world.make("roles", "gone", domain_id=world.ids["brief"])
    world.ok("PUT", "/v3/roles/{gone}/implies/{y}")
    world.ok("PATCH", "/v3/domains/{brief}", {"domain": {"enabled": False}})
    assert world.ask("DELETE", "/v3/domains/{brief}").status == 204
    inferences = world.ok("GET", "/v3/role_inferences")["role_inferences"]
    assert world.ids["gone"] not in {f["prior_role"]["id"] for f in inferences}


# --- grants on the system and inherited ones ------------------------------------------------------------------------


@pytest.mark.parametrize("actor", ["users", "groups"])
def test_system_grants(world: World, actor: str) -> None:
    world.make(actor, f"sys-{actor}")
    base = f"/v3/system/{actor}/{{sys-{actor}}}/roles"
    assert world.ok("GET", base)["roles"] == []
    assert world.ask("HEAD", f"{base}/{{x}}").status == 404
    assert world.ask("PUT", f"{base}/{{x}}").status == 204
    assert world.ask("PUT", f"{base}/{{x}}").status == 204
    assert world.ask("HEAD", f"{base}/{{x}}").status == 204
    assert world.ask("GET", f"{base}/{{x}}").status == 204
    assert [r["id"] for r in world.ok("GET", base)["roles"]] == [world.ids["x"]]
    assert world.ask("DELETE", f"{base}/{{x}}").status == 204
    assert world.ask("DELETE", f"{base}/{{x}}").status == 404
    assert world.ask("PUT", f"{base}/nonsense").status == 404
    assert world.ask("PUT", f"/v3/system/{actor}/nobody/roles/{{x}}").status == 404


@pytest.mark.req("A/ID-18")
@pytest.mark.parametrize("actor", ["users", "groups"])
@pytest.mark.parametrize("place", ["projects", "domains"])
def test_inherited_grants(world: World, actor: str, place: str) -> None:
    name = f"{actor}-{place}"
    world.make(actor, name)
    target = "{c}" if place == "projects" else "{d}"
    base = f"/v3/OS-INHERIT/{place}/{target}/{actor}/{{{name}}}/roles"
    one = f"{base}/{{y}}/inherited_to_projects"
    assert world.ask("GET", one).status == 404
    assert world.ask("PUT", one).status == 204
    assert world.ask("GET", one).status == 204
    assert world.ask("HEAD", one).status == 204
    plain = f"/v3/{place}/{target}/{actor}/{{{name}}}/roles"
    assert world.ok("GET", plain)["roles"] == []  # an inherited grant is none on the thing itself
    assert [r["id"] for r in world.ok("GET", f"{base}/inherited_to_projects")["roles"]] == [world.ids["y"]]
    assert world.ask("DELETE", one).status == 204
    assert world.ask("DELETE", one).status == 404
    assert world.ask("PUT", one.replace("{y}", "nonsense")).status == 404
