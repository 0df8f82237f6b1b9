"""Tests that follow from the declarations: the same questions to every resource of every service.

A new resource gets them by being declared; what a smallest body needs beyond its schema (a network, a user) is said in
``NEEDS``.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jsonschema_rs
import pytest
from bodies import smallest

from nubila.apps import wiring
from nubila.core import clock
from nubila.core.call import Route
from nubila.core.declare import Attr, Resource, Rest, body_schema
from nubila.core.gates import ALWAYS, OPEN, show
from nubila.core.service import Service
from nubila.edge import crud, openapi
from nubila.testing.cloud import Response, TestCloud

SERVICES = [s for s in wiring.services() if s.type]
NO = "/nothing-of-that-name"
WRONG: tuple[Any, ...] = ({"x": {"y": 1}}, [["x"]], 1.25, "\u0007 no", True, -(10**9))


class World:
    """One cloud, two projects and their members."""

    def __init__(self, state: Path) -> None:
        self.cloud = TestCloud(state)
        self.n = itertools.count(1)
        self.tokens = {"admin": self.cloud.token()}
        self.users: dict[str, str] = {}
        roles = {r["name"]: r["id"] for r in self.get("/v3/roles")["roles"]}
        for who in ("owner", "stranger"):
            project = self.post("/v3/projects", {"project": {"name": who}})["project"]["id"]
            user = self.post("/v3/users", {"user": {"name": who, "password": "pw"}})["user"]["id"]
            self.cloud.request("PUT", f"/v3/projects/{project}/users/{user}/roles/{roles['member']}")
            self.tokens[who], self.users[who] = self.cloud.login(who, "pw", who), user
            counted = ("network", "subnet", "port", "router", "floatingip", "security_group", "rbac_policy")
            free = dict.fromkeys(counted, -1)
            got = self.cloud.request("PUT", f"/network/v2.0/quotas/{project}", {"quota": free})
            assert got.status == 200, got.body
        networks = self.get("/network/v2.0/networks?router:external=true")["networks"]
        self.public = networks[0]["id"] if networks else ""
        self.makers: dict[str, str] = {}

    def get(self, url: str, who: str = "admin") -> Any:
        got = self.cloud.request("GET", url, token=self.tokens[who])
        assert got.status == 200, (url, got.body)
        return got.json

    def post(self, url: str, body: Any, who: str = "admin") -> Any:
        got = self.cloud.request("POST", url, body, token=self.tokens[who])
        assert got.status in (200, 201), (url, got.body)
        return got.json

    def network(self, who: str) -> str:
        """A fresh network's id."""
        body = {"network": {"name": f"net{next(self.n)}"}}
        return str(self.post("/network/v2.0/networks", body, who)["network"]["id"])


@dataclass(frozen=True)
class Kind:
    """One resource behind one API."""

    service: Service
    cls: type[Resource]
    rest: Rest

    @property
    def url(self) -> str:
        return self.service.prefix + self.rest.path

    def has(self, verb: str) -> bool:
        """Whether the verb is the derived one: hand-written ones have rules of their own."""
        own = {openapi.Operation(r).key for r in self.service.routes}
        return any(
            v == verb and openapi.Operation(r).key not in own for c, v, r in crud.derived(self.service) if c is self.cls
        )


KINDS = [Kind(s, cls, cls.rest) for s in SERVICES for cls in s.kinds if cls.rest is not None]


def _ndp_proxy(w: World, who: str) -> dict[str, Any]:
    """A router with an IPv6 gateway and interface of one address scope, and a port behind it."""
    base, n = "/network/v2.0", next(w.n)
    scope = w.post(f"{base}/address-scopes", {"address_scope": {"name": "s", "ip_version": 6}}, who)["address_scope"]
    pool = {"name": "p", "address_scope_id": scope["id"], "prefixes": [f"2001:db8:{n:x}::/96"]}
    pool = w.post(f"{base}/subnetpools", {"subnetpool": pool}, who)["subnetpool"]
    ext = {"name": f"e{n}", "router:external": True, "project_id": pool["project_id"]}
    nets = [w.post(f"{base}/networks", {"network": ext})["network"]["id"], w.network(who)]
    subnets = [
        w.post(f"{base}/subnets", {"subnet": {"network_id": net, "ip_version": 6, "subnetpool_id": pool["id"],
                                              "prefixlen": 112}}, who)["subnet"]["id"] for net in nets
    ]  # fmt: skip
    router = {"external_gateway_info": {"network_id": nets[0]}, "enable_ndp_proxy": True}
    router_id = w.post(f"{base}/routers", {"router": router}, who)["router"]["id"]
    path, body = f"{base}/routers/{router_id}/add_router_interface", {"subnet_id": subnets[1]}
    assert w.cloud.request("PUT", path, body, token=w.tokens[who]).status == 200
    port = w.post(f"{base}/ports", {"port": {"network_id": nets[1]}}, who)["port"]
    return {"router_id": router_id, "port_id": port["id"], "ip_address": port["fixed_ips"][0]["ip_address"]}


def _with_subnet(w: World, who: str) -> str:
    net = w.network(who)
    cidr = f"10.{next(w.n) % 250}.0.0/24"
    w.post("/network/v2.0/subnets", {"subnet": {"network_id": net, "cidr": cidr, "ip_version": 4}}, who)
    return net


NEEDS: dict[str, Callable[[World, str], dict[str, Any]]] = {
    "subnet": lambda w, who: {"network_id": w.network(who), "cidr": f"10.{next(w.n) % 250}.0.0/24", "ip_version": 4},
    "port": lambda w, who: {"network_id": w.network(who)},
    "floatingip": lambda w, who: {"floating_network_id": w.public},
    "security_group_rule": lambda w, who: {
        "direction": "ingress", "protocol": "tcp", "port_range_min": next(w.n), "port_range_max": 60000,
        "security_group_id": w.post("/network/v2.0/security-groups", {"security_group": {"name": "g"}}, who)[
            "security_group"]["id"],
    },
    "rbac_policy": lambda w, who: {
        "object_type": "network", "object_id": w.network(who), "action": "access_as_shared",
        "target_tenant": clock.new_hex(),
    },
    "network_segment_range": lambda w, who: {
        "network_type": "geneve", "minimum": (n := 10**6 + 10 * next(w.n)), "maximum": n + 3,
    },
    "network_segment": lambda w, who: {"network_id": w.network(who), "network_type": "geneve"},
    "address_scope": lambda w, who: {"ip_version": 4},
    "subnetpool": lambda w, who: {"prefixes": [f"10.{next(w.n) % 250}.0.0/16"]},
    "endpoint": lambda w, who: {
        "service_id": w.post("/v3/services", {"service": {"type": "t"}})["service"]["id"], "interface": "public",
        "url": f"http://127.0.0.1/{next(w.n)}"},
    "region": lambda w, who: {"id": f"region{next(w.n)}"},
    "trunk": lambda w, who: {
        "port_id": w.post("/network/v2.0/ports", {"port": {"network_id": w.network(who)}}, who)["port"]["id"],
        "sub_ports": [],
    },
    "metering_label_rule": lambda w, who: {
        "direction": "ingress", "remote_ip_prefix": f"10.{next(w.n) % 250}.0.0/24",
        # Administrators make labels.
        "metering_label_id": w.post("/network/v2.0/metering/metering-labels", {"metering_label": {
            "project_id": w.post("/network/v2.0/networks", {"network": {}}, who)["network"]["project_id"],
        }})["metering_label"]["id"],
    },
    "credential": lambda w, who: {"user_id": w.users.get(who, w.users["owner"]), "type": "cert", "blob": "{}"},
    "ndp_proxy": lambda w, who: _ndp_proxy(w, who),
    "log": lambda w, who: {"resource_type": "security_group"},
    "local_ip": lambda w, who: {"network_id": _with_subnet(w, who)},
    "default_security_group_rule": lambda w, who: {
        "direction": "ingress", "protocol": "tcp", "port_range_min": next(w.n), "port_range_max": 60000,
        "used_in_default_sg": False, "used_in_non_default_sg": False,
    },
    "network_flavor": lambda w, who: {"service_type": "L3_ROUTER_NAT"},
    "network_service_profile": lambda w, who: {"metainfo": "facts"},
}  # fmt: skip


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    made = World(Path(tmp_path_factory.mktemp("derived")))
    yield made
    made.cloud.close()


@pytest.fixture(params=KINDS, ids=lambda k: f"{k.service.name}-{k.cls.kind}")
def kind(request: pytest.FixtureRequest) -> Kind:
    found: Kind = request.param
    return found


def needs(kind: Kind, *verbs: str) -> None:
    if missing := [v for v in verbs if not kind.has(v)]:
        pytest.skip(f"{kind.cls.kind} has no derived {', '.join(missing)}")


def send(world: World, method: str, url: str, body: Any = None, who: str = "admin") -> Response:
    return world.cloud.request(method, url, body, token=world.tokens[who])


def body_of(world: World, kind: Kind, who: str) -> dict[str, Any]:
    """The smallest valid inner body, named so that nothing else is called like it."""
    schema = body_schema(kind.cls, "create", ALWAYS)
    values: dict[str, Any] = smallest(schema)
    named = kind.cls.by_wire.get("name")
    if named is not None and "c" in named.write and not named.hidden:
        values["name"] = f"{kind.cls.kind}-{next(world.n)}"
    return {**values, **NEEDS.get(kind.cls.kind, lambda w, who: {})(world, who)}


SOMETIMES = {  # shown of some only, as Neutron does: external networks, ports of trunks
    "network": ("is_default",),
    "port": ("trunk_details",),
}


def make(world: World, kind: Kind, who: str = "") -> tuple[dict[str, Any], str]:
    """Make one; returns what the answer shows of it and who made it: a member where a member may."""
    for maker in (
        [who] if who else ([world.makers[kind.cls.kind]] if kind.cls.kind in world.makers else ["owner", "admin"])
    ):
        got = send(world, "POST", kind.url, {kind.rest.item: body_of(world, kind, maker)}, maker)
        if got.status == 403 and not who and maker == "owner":
            continue
        assert got.status == kind.rest.status("create", ALWAYS), got.body
        world.makers.setdefault(kind.cls.kind, maker)
        row: dict[str, Any] = got.json[kind.rest.item]
        for name in SOMETIMES.get(kind.cls.kind, ()):
            row.pop(name, None)
        return row, maker
    raise AssertionError("nobody may")


def one(kind: Kind, row: dict[str, Any]) -> str:
    return f"{kind.url}/{row[kind.cls.attrs[kind.rest.key].api]}"


def wire(a: Attr) -> str:
    return a.api


def change_of(kind: Kind) -> tuple[str, Any] | None:
    """An attribute that anybody may update, and a new value."""
    for a in kind.cls.attrs.values():
        if "u" in a.write and not a.set and a.api in ("description", "name", "type", "blob", "url"):
            return a.api, {"url": "http://127.0.0.1/new"}.get(a.api, "changed")
    return None


# --- every resource ---------------------------------------------------------------------------------------------------


def test_a_round_trip(world: World, kind: Kind) -> None:
    needs(kind, "create", "show", "list", "delete")
    row, who = make(world, kind)
    declared = {
        n for a in kind.cls.attrs.values() if not a.hidden and not a.see and a.show.open(ALWAYS) for n in a.wire
    }
    assert declared - set(SOMETIMES.get(kind.cls.kind, ())) <= row.keys()
    assert not {n for a in kind.cls.attrs.values() if a.hidden for n in a.wire} & row.keys()
    assert send(world, "GET", one(kind, row), who=who).json == {kind.rest.item: row}
    assert row in send(world, "GET", kind.url, who=who).json[kind.rest.items]
    if kind.has("update") and (change := change_of(kind)):
        changed = send(world, kind.rest.update, one(kind, row), {kind.rest.item: dict([change])}, who)
        assert changed.status == kind.rest.status("update", ALWAYS), changed.body
        assert changed.json[kind.rest.item][change[0]] == change[1]
        row = changed.json[kind.rest.item]
        if kind.rest.extra_body:
            row.pop("extra", None)  # Keystone shows it after an update only
        assert send(world, "GET", one(kind, row), who=who).json == {kind.rest.item: row}
    disable = {"domain": {"enabled": False}}.get(kind.cls.kind)
    if disable:
        assert send(world, kind.rest.update, one(kind, row), {kind.rest.item: disable}, who).status == 200
    gone = send(world, "DELETE", one(kind, row), who=who)
    assert (gone.status, gone.body) == (kind.rest.status("delete", ALWAYS), b""), gone.body
    assert send(world, "GET", one(kind, row), who=who).status in (404, kind.rest.hidden)
    assert send(world, "DELETE", one(kind, row), who=who).status in (404, kind.rest.hidden)


def test_filters_find_the_row_and_only_such(world: World, kind: Kind) -> None:
    needs(kind, "create", "list")
    row, who = make(world, kind)
    make(world, kind)
    key = kind.cls.attrs[kind.rest.key].api
    for a in kind.cls.attrs.values():
        if "eq" not in a.filter.split() or a.hidden or a.see:
            continue
        value = row.get(a.api)
        if not isinstance(value, str | int | float) or value == "" or a.type.dump is not None:
            continue
        found = world.cloud.request("GET", kind.url, token=world.tokens[who], query={a.api: value})
        assert found.status == 200, (a.api, found.body)
        shown = found.json[kind.rest.items]
        assert row[key] in [r[key] for r in shown], f"{a.api}={value} does not find it"
        assert {repr(r[a.api]) for r in shown} == {repr(value)}, a.api
        if isinstance(value, str):
            other = world.cloud.request("GET", kind.url, token=world.tokens[who], query={a.api: value + "x"})
            assert other.status == 400 or row[key] not in [r[key] for r in other.json[kind.rest.items]], a.api


def test_attributes_nobody_declared_are_refused(world: World, kind: Kind) -> None:
    needs(kind, "create")
    if kind.rest.extra_body:
        pytest.skip("keeps the caller's own attributes")
    who = make(world, kind)[1]
    body = {**body_of(world, kind, who), "nmae": "x"}
    got = send(world, "POST", kind.url, {kind.rest.item: body}, who)
    assert got.status == 400
    assert "nmae" in got.body.decode()


def test_values_of_a_wrong_type_are_refused(world: World, kind: Kind) -> None:
    needs(kind, "create")
    who = make(world, kind)[1]
    for name, schema in body_schema(kind.cls, "create", ALWAYS)["properties"].items():
        wrong = [v for v in WRONG if not jsonschema_rs.Draft202012Validator(schema).is_valid(v)]
        if wrong:
            got = send(world, "POST", kind.url, {kind.rest.item: {**body_of(world, kind, who), name: wrong[0]}}, who)
            assert got.status == 400, (name, wrong[0], got.body)
            assert name in got.body.decode()


def test_bodies_that_are_none(world: World, kind: Kind) -> None:
    needs(kind, "create")
    for data in (b"", b"{", b"[]", b"{}", b'"x"', b'{"x": {}}', b'{"%s": 1}' % kind.rest.item.encode()):
        got = world.cloud.request(
            "POST", kind.url, body=data, token=world.tokens["admin"], headers={"Content-Type": "application/json"}
        )
        assert got.status == 400, (data, got.body)


def test_ids_that_do_not_exist(world: World, kind: Kind) -> None:
    item = kind.rest.item
    for id in (clock.new_id(), clock.new_hex(), "x", "a%20b", "%2e%2e", "x" * 300):
        for verb, method in (("show", "GET"), ("update", kind.rest.update), ("delete", "DELETE")):
            if kind.has(verb):
                got = send(world, method, f"{kind.url}/{id}", {item: {}} if verb == "update" else None)
                assert got.status == 404, (method, id, got.body)


def test_what_belongs_to_another_project(world: World, kind: Kind) -> None:
    needs(kind, "create", "show")
    row, who = make(world, kind)
    seen = send(world, "GET", one(kind, row), who="stranger")
    if seen.status == 200:
        assert who == "admin", "a member's thing is shown to a stranger"
    else:
        assert seen.status == kind.rest.hidden, seen.body
    change = change_of(kind)
    if kind.has("update") and change:
        got = send(world, kind.rest.update, one(kind, row), {kind.rest.item: dict([change])}, "stranger")
        assert got.status in (403, kind.rest.hidden)
    if kind.has("delete"):
        assert send(world, "DELETE", one(kind, row), who="stranger").status in (403, kind.rest.hidden)
    if kind.has("list"):
        listed = send(world, "GET", kind.url, who="stranger")
        if seen.status != 200 and listed.status == 200:
            assert row not in listed.json[kind.rest.items]
    assert send(world, "GET", one(kind, row), who=who).json == {kind.rest.item: row}


def test_walking_pages_of_any_size(world: World, kind: Kind) -> None:
    needs(kind, "create", "list")
    for _ in range(4):
        who = make(world, kind)[1]
    key = kind.cls.attrs[kind.rest.key].api
    whole = [r[key] for r in send(world, "GET", kind.url, who=who).json[kind.rest.items]]
    assert len(set(whole)) == len(whole) >= 4
    for size in (1, 2, 3, len(whole), len(whole) + 1):
        seen: list[str] = []
        query: dict[str, Any] = {"limit": size}
        while len(seen) <= len(whole):
            got = world.cloud.request("GET", kind.url, token=world.tokens[who], query=query)
            assert got.status == 200, got.body
            rows = [r[key] for r in got.json[kind.rest.items]]
            assert len(rows) <= size
            if not rows:
                break
            seen += rows
            query["marker"] = rows[-1]
        assert seen == whole, f"pages of {size}"


def test_sorting_by_everything_that_says_so(world: World, kind: Kind) -> None:
    needs(kind, "create", "list")
    for _ in range(3):
        who = make(world, kind)[1]
    for a in kind.cls.attrs.values():
        if not a.sort or a.see or a.hidden or a.type.dump is not None or a.api in SOMETIMES.get(kind.cls.kind, ()):
            continue
        for direction in ("asc", "desc"):
            query = {"sort_key": a.api, "sort_dir": direction}
            got = world.cloud.request("GET", kind.url, token=world.tokens[who], query=query)
            assert got.status == 200, (a.api, got.body)
            values = [(r[a.api] is not None, r[a.api]) for r in got.json[kind.rest.items]]
            flags = [known for known, _ in values]
            assert flags == sorted(flags, reverse=direction == "desc"), f"{a.api}: NULL first when ascending"
            known = [v for there, v in values if there]
            assert known == sorted(known, reverse=direction == "desc"), a.api


def test_unknown_queries(world: World, kind: Kind) -> None:
    needs(kind, "list")
    for query in ("limit=x", "limit=-1"):
        assert send(world, "GET", f"{kind.url}?{query}").status == 400, query
    for marker in ("nothing", clock.new_id()):
        assert send(world, "GET", f"{kind.url}?limit=2&marker={marker}").status in (400, 404), marker
    got = send(world, "GET", f"{kind.url}?nmae=x")
    assert got.status == (200 if kind.rest.unknown_query.open(ALWAYS) else 400)


# --- every operation --------------------------------------------------------------------------------------------------


def filled(service: Service, path: str) -> str:
    return service.prefix + re.sub(r"\{[^}]*\}", "x", path)


@pytest.mark.parametrize("service", SERVICES, ids=lambda s: s.name)
def test_without_a_token(world: World, service: Service) -> None:
    version = {"openstack-api-version": f"{service.version_word} latest"} if service.versions else {}
    for o in openapi.operations(service, openapi.newest(service)):
        if o.route.auth:
            for token in ("", "forged"):
                got = world.cloud.request(
                    o.route.method, filled(service, o.route.path), token=token, headers=version, body=b"{}"
                )
                assert got.status == 401, (o.route.method, o.route.path, got.status)
                assert got.headers["www-authenticate"].startswith("Keystone uri=")


@pytest.mark.parametrize("service", SERVICES, ids=lambda s: s.name)
def test_methods_that_a_path_does_not_have(world: World, service: Service) -> None:
    version = {"openstack-api-version": f"{service.version_word} latest"} if service.versions else {}
    paths: dict[str, set[str]] = {}
    for o in openapi.operations(service, openapi.newest(service)):
        paths.setdefault(filled(service, o.route.path), set()).add(o.route.method)
    for path, methods in paths.items():
        others = {"GET", "POST", "PUT", "PATCH", "DELETE"} - methods
        got = world.cloud.request(min(others), path, headers=version)
        assert got.status in (404, 405), (path, got.status)
        if got.status == 405:
            assert methods <= set(got.headers["allow"].split(", "))
        assert world.cloud.request("GET", path + NO, headers=version).status < 500, path


GATED = [
    (s, o) for s in SERVICES if s.versions for o in openapi.operations(s) if o.route.gate != OPEN
]  # fmt: skip


@pytest.mark.parametrize(("service", "operation"), GATED, ids=lambda v: getattr(v, "name", "") or v.route.path)
def test_operations_come_and_go_with_versions(world: World, service: Service, operation: openapi.Operation) -> None:
    route: Route = operation.route
    assert service.versions is not None
    low, high = service.versions

    def answer(version: tuple[int, int]) -> Response:
        headers = {"openstack-api-version": f"{service.version_word} {show(version)}"}
        body = b"{}" if route.method in ("POST", "PUT", "PATCH") else b""
        return world.cloud.request(route.method, filled(service, route.path), headers=headers, body=body)

    same = [r for r in service.routes if r.method == route.method and r.path == route.path and r is not route]
    for version in {route.gate.since, (route.gate.since[0], route.gate.since[1] - 1), route.gate.until,
                    (route.gate.until[0], route.gate.until[1] - 1)}:  # fmt: skip
        if low <= version <= high:
            wanted = route.gate.open(version) or any(r.gate.open(version) for r in same)
            got = answer(version)
            if wanted:
                assert got.status != 405, show(version)
                assert b"The resource could not be found." not in got.body, show(version)
            else:  # a path such as /statistics is then taken for an id
                assert got.status in (400, 404, 405), show(version)
