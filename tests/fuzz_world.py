"""Two projects that play with everything: their seeds, their random requests, and what belongs to whom."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

import sqlalchemy as sa
from bodies import Maker, Schema

from nubila.core.cloud import Nap
from nubila.core.declare import METADATA
from nubila.core.gates import show
from nubila.core.service import Service
from nubila.edge import openapi
from nubila.testing.cloud import Response, TestCloud

ID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}|\b[0-9a-f]{32}\b")
MARKS = {"a": "zqA7", "b": "zqB7"}
NO_ROWS = ("/defaults", "/openapi.json", "/limits")  # answers about a project that hold nothing of it
ACTIONS: tuple[Any, ...] = (
    {"os-start": None}, {"os-stop": None}, {"reboot": {"type": "SOFT"}}, {"reboot": {"type": "HARD"}},
    {"os-getConsoleOutput": {"length": 3}}, {"os-getConsoleOutput": {}}, {"addSecurityGroup": {"name": "default"}},
    {"removeSecurityGroup": {"name": "default"}}, {"pause": None}, {"unpause": None}, {"suspend": None},
    {"lock": None}, {"unlock": None}, {"os-resetState": {"state": "error"}}, {"createImage": {"name": "x"}},
    {"changePassword": {"adminPass": "x"}}, {"rebuild": {"imageRef": "x"}}, {"resize": {"flavorRef": "1"}},
    {"addTenantAccess": {"tenant": "x"}}, {"removeTenantAccess": {"tenant": "x"}}, {"addFixedIp": {"networkId": "x"}},
    {"forceDelete": None}, {"os-getVNCConsole": {"type": "novnc"}}, {"migrate": None}, {"evacuate": {}},
    {"add_host": {"host": "host1"}}, {"set_metadata": {"metadata": {"a": "b"}}},
)  # fmt: skip
WORDS = (
    "limit", "marker", "sort_key", "sort_dir", "fields", "all_tenants", "name", "project_id", "status", "tenant_id",
    "resources", "visibility", "member_status", "changes-since", "page_reverse", "device_id", "host", "tags",
    "required", "member_of", "in_tree", "user_id", "domain_id", "type", "uuid", "consumer_type",
)  # fmt: skip
Ids = Callable[[str], str]
N, C = "/v2.0", "/v2.1"
TEMPLATES: Mapping[tuple[str, str, str], Callable[[Ids, Maker], Any]] = {
    ("compute", "POST", f"{C}/servers"): lambda id, m: {"server": {
        "name": m.text({}), "imageRef": id("image"), "flavorRef": id("flavor"),
        "networks": m.r.choice(([{"uuid": id("network")}], [{"port": id("port")}], "auto", "none", [])),
        "metadata": {"k": m.text({})}, "user_data": "eA=="}},
    ("compute", "POST", f"{C}/servers/{{server_id}}/os-interface"): lambda id, m: {"interfaceAttachment": m.r.choice((
        {"net_id": id("network")}, {"port_id": id("port")}, {}))},
    ("compute", "POST", f"{C}/os-keypairs"): lambda id, m: {"keypair": {"name": m.text({})}},
    ("compute", "POST", f"{C}/os-server-groups"): lambda id, m: {"server_group": {
        "name": m.text({}), "policy": m.r.choice(("affinity", "anti-affinity", "soft-affinity"))}},
    ("network", "POST", f"{N}/subnets"): lambda id, m: {"subnet": {
        "network_id": id("network"), "ip_version": 4, "cidr": f"10.{m.r.randint(0, 255)}.0.0/24", "name": m.text({})}},
    ("network", "POST", f"{N}/ports"): lambda id, m: {"port": {
        "network_id": id("network"), "name": m.text({}), "security_groups": [id("security_group")]}},
    ("network", "POST", f"{N}/routers"): lambda id, m: {"router": {
        "name": m.text({}), "external_gateway_info": {"network_id": id("network")}}},
    ("network", "PUT", f"{N}/routers/{{id}}/add_router_interface"): lambda id, m: m.r.choice((
        {"subnet_id": id("subnet")}, {"port_id": id("port")})),
    ("network", "PUT", f"{N}/routers/{{id}}/remove_router_interface"): lambda id, m: m.r.choice((
        {"subnet_id": id("subnet")}, {"port_id": id("port")})),
    ("network", "POST", f"{N}/floatingips"): lambda id, m: {"floatingip": {
        "floating_network_id": id("network"), "description": m.text({}), "port_id": m.r.choice((None, id("port")))}},
    ("network", "PUT", f"{N}/floatingips/{{id}}"): lambda id, m: {"floatingip": {"port_id": id("port")}},
    ("network", "POST", f"{N}/security-group-rules"): lambda id, m: {"security_group_rule": {
        "security_group_id": id("security_group"), "direction": "ingress", "protocol": m.r.choice(("tcp", "udp", 6)),
        "port_range_min": m.r.randint(1, 65535), "remote_group_id": m.r.choice((None, id("security_group")))}},
    ("image", "POST", "/v2/images"): lambda id, m: {
        "name": m.text({}), "disk_format": m.r.choice(("raw", "qcow2")), "container_format": "bare"},
    ("identity", "POST", "/v3/auth/tokens"): lambda id, m: {"auth": {
        "identity": {"methods": ["password"], "password": {"user": {"id": id("user"), "password": m.mark}}},
        "scope": {"project": {"id": id("project")}}}},
}  # fmt: skip


class World:
    """Two projects with something of everything, and all operations of all services."""

    def __init__(self, state: Path, seed: int) -> None:
        self.cloud = TestCloud(state)
        self.r = random.Random(seed)
        self.loop = asyncio.new_event_loop()
        self.cloud.cloud.waiters = self
        self.ids: dict[str, dict[str, list[str]]] = {"a": defaultdict(list), "b": defaultdict(list)}
        self.common: dict[str, list[str]] = defaultdict(list)
        self.projects: dict[str, str] = {}
        self.tokens: dict[str, str] = {}
        self.operations = [
            (s, o, path, spec)
            for s in self.cloud.cloud.services if s.type
            for o, path, spec in _documented(s)
        ]  # fmt: skip
        self.learned: dict[tuple[str, str, str], list[Schema]] = defaultdict(list)
        self.current = ("", "", "")
        self.given_away: dict[str, set[str]] = defaultdict(set)  # the other's ids stored as free text (device_id)
        self.weights = [0.3 if o.route.method == "DELETE" else 1.0 for _, o, _, _ in self.operations]
        self.answers: dict[tuple[str, str, str], Counter[int]] = defaultdict(Counter)
        for who in ("a", "b"):
            self._project(who)
        for who in ("a", "b"):
            self._furnish(who)
        self.cloud.settle()

    @contextlib.contextmanager
    def listening(self, shard: str) -> Iterator[Nap]:
        """Whoever waits for a host has the host work."""
        yield lambda timeout_s: asyncio.to_thread(self.cloud.settle)

    def close(self) -> None:
        """Close loop and database."""
        self.loop.close()
        self.cloud.close()

    # --- the projects ---------------------------------------------------------------------------------------------

    def _project(self, who: str) -> None:
        admin = self.cloud.request
        name = f"{MARKS[who]}-project"
        project = admin("POST", "/v3/projects", {"project": {"name": name}}).json["project"]["id"]
        user = admin("POST", "/v3/users", {"user": {"name": f"{MARKS[who]}-user", "password": MARKS[who]}}).json[
            "user"
        ]["id"]
        roles = {r["name"]: r["id"] for r in admin("GET", "/v3/roles").json["roles"]}
        assert admin("PUT", f"/v3/projects/{project}/users/{user}/roles/{roles['member']}").status == 204
        self.projects[who], self.tokens[who] = project, self.cloud.login(f"{MARKS[who]}-user", MARKS[who], name)
        self.ids[who]["projects"].append(project)
        self.ids[who]["users"].append(user)

    def _make(self, who: str, url: str, body: Any, *statuses: int) -> Any:
        got = self.cloud.request("POST", url, body, token=self.tokens[who])
        assert got.status in (statuses or (200, 201, 202)), (url, got.status, got.body)
        self.keep(who, got)
        return next(iter(got.json.values())) if url != "/image/v2/images" else got.json

    def _furnish(self, who: str) -> None:
        n, name = "/network/v2.0", f"{MARKS[who]}-seed{self.r.getrandbits(24):x}"
        public = self.cloud.request("GET", f"{n}/networks?router:external=true").json["networks"]
        for row in public:
            self.common["networks"] = [row["id"]]
        for row in self.cloud.request("GET", "/compute/v2.1/flavors").json["flavors"]:
            self.common["flavors"] = [row["id"]]
        network = self._make(who, f"{n}/networks", {"network": {"name": name, "description": name}})
        subnet = self._make(who, f"{n}/subnets", {"subnet": {
            "network_id": network["id"], "cidr": "10.20.0.0/24", "ip_version": 4, "name": name}})  # fmt: skip
        port = self._make(who, f"{n}/ports", {"port": {"network_id": network["id"], "name": name}})
        group = self._make(who, f"{n}/security-groups", {"security_group": {"name": name}})
        self._make(who, f"{n}/security-group-rules", {"security_group_rule": {
            "security_group_id": group["id"], "direction": "ingress", "protocol": "tcp", "port_range_min": 22,
            "port_range_max": 22, "description": name}})  # fmt: skip
        gateway = {"external_gateway_info": {"network_id": public[0]["id"]}} if public else {}
        router = self._make(who, f"{n}/routers", {"router": {"name": name, **gateway}})
        got = self.cloud.request("PUT", f"{n}/routers/{router['id']}/add_router_interface",
                                 {"subnet_id": subnet["id"]}, token=self.tokens[who])  # fmt: skip
        assert got.status == 200, got.body
        if public:
            self._make(who, f"{n}/floatingips", {"floatingip": {
                "floating_network_id": public[0]["id"], "port_id": port["id"], "description": name}})  # fmt: skip
        c = "/compute/v2.1"
        self._make(who, f"{c}/os-keypairs", {"keypair": {"name": name}})
        self._make(who, f"{c}/os-server-groups", {"server_group": {"name": name, "policies": ["affinity"]}})
        image = self._make(who, "/image/v2/images", {
            "name": name, "disk_format": "raw", "container_format": "bare", "secret": name})  # fmt: skip
        put = self.cloud.request("PUT", f"/image/v2/images/{image['id']}/file", token=self.tokens[who],
                                 body=b"x" * 4096, headers={"content-type": "application/octet-stream"})  # fmt: skip
        assert put.status == 204, put.body
        self.ids[who]["images"].append(image["id"])
        self._make(who, f"{c}/servers", {"server": {
            "name": name, "imageRef": image["id"], "flavorRef": self.common["flavors"][0],
            "networks": [{"uuid": network["id"]}], "metadata": {name: name}}})  # fmt: skip

    # --- requests -------------------------------------------------------------------------------------------------

    def send(
        self, who: str, method: str, url: str, headers: Mapping[str, str], body: bytes
    ) -> tuple[int, dict[str, str], bytes]:
        """One request on the one event loop: several times faster than a loop for each."""
        path, _, query = url.partition("?")
        sent = {"host": "127.0.0.1:5000", "x-auth-token": self.tokens[who], **headers}
        if body or method in ("POST", "PUT", "PATCH"):
            sent["content-length"] = str(len(body))
        scope = {
            "type": "http", "method": method, "path": path, "raw_path": path.encode(), "query_string": query.encode(),
            "headers": [(k.encode(), v.encode()) for k, v in sent.items()], "client": ("127.0.0.1", 1),
        }  # fmt: skip
        got: list[Any] = []

        async def receive() -> dict[str, Any]:
            return {"type": "http.request", "body": body, "more_body": False}

        async def answer(message: Any) -> None:
            got.append(message)

        self.loop.run_until_complete(self.cloud.edge(scope, receive, answer))
        headers = {k.decode(): v.decode() for k, v in got[0]["headers"]}
        return got[0]["status"], headers, b"".join(m.get("body", b"") for m in got[1:])

    def any_id(self, who: str, name: str, *, path: bool = False) -> str:
        """An id for a parameter or property of that name: mostly one that exists, often the other project's."""
        r, other = self.r, "b" if who == "a" else "a"
        collection = _collection(name)
        pools = {"own": self.ids[who], "other": self.ids[other], "common": self.common}
        pool = pools[r.choices(("own", "other", "common"), (6, 3, 1) if path else (8, 2, 2))[0]]
        if r.random() < 0.07:
            return str(r.choice(("x", "0", "null", "..", "é", "a" * 300, Maker(r).uuid(), "%2e%2e", "default", "1")))
        found = pool.get(collection) or self.common.get(collection) or self.ids[who].get(collection)
        if not found or r.random() < 0.1:
            found = [i for some in pool.values() for i in some] or ["x"]
        chosen = r.choice(found[-200:])
        return chosen if path or MARKS[other] not in chosen else Maker(r).uuid()

    def keep(self, who: str, got: Any) -> None:
        """Remember the ids in an answer by collection."""
        body = got.json if isinstance(got, Response) else got
        if isinstance(body, dict):
            self._walk(who, "", body)

    def _walk(self, who: str, name: str, value: Any) -> None:
        if isinstance(value, dict):
            id = (
                value.get("id") or value.get("uuid") or (value.get("name") if _collection(name) == "keypairs" else None)
            )
            other = self.ids["b" if who == "a" else "a"]
            if isinstance(id, str) and name and id not in other[_collection(name)]:
                pool = self.ids[who][_collection(name)]
                if id not in pool and id not in self.common[_collection(name)]:
                    pool.append(id)
            for key, inner in value.items():
                if key != "links":
                    self._walk(who, key, inner)
        elif isinstance(value, list):
            for inner in value:
                self._walk(who, name, inner)

    def weigh(self, status: int) -> None:
        """Ask less often for what a member may never do."""
        seen = self.answers[self.current]
        seen[status] += 1
        tries = sum(seen.values())
        if tries == 12 and seen[403] >= 6 and not any(s < 300 for s in seen):
            keys = [(s.name, o.route.method, o.route.path) for s, o, _, _ in self.operations]
            self.weights[keys.index(self.current)] = 0.1

    def refresh(self, who: str) -> None:
        """Forget the ids of what is gone and make new things to play with."""
        alive = things_of(self, who)
        for pool in self.ids[who].values():
            pool[:] = [id for id in pool if id in alive or not ID.fullmatch(id)]
        with contextlib.suppress(AssertionError):  # a quota is used up
            self._furnish(who)

    def generate(self, who: str) -> tuple[str, str, dict[str, str], bytes]:
        """A random request: method, URL, headers, body."""
        r = self.r
        service, operation, path, spec = r.choices(self.operations, self.weights)[0]
        self.current = (service.name, operation.route.method, operation.route.path)
        maker = Maker(r, lambda name: self.any_id(who, name), MARKS[who])
        url = service.prefix + self._path(who, path)
        query = self._query(maker, spec)
        if query:
            url += "?" + query
        headers: dict[str, str] = {}
        if service.versions:
            low, high = service.versions
            version = r.choice((None, high, high, (low[0], r.randint(low[1], high[1]))))
            if version is not None:
                headers["openstack-api-version"] = f"{service.version_word} {show(version)}"
        body, kind = self._body(maker, service, operation, spec)
        if kind:
            headers["content-type"] = kind
        return operation.route.method, url, headers, body

    def _path(self, who: str, path: str) -> str:
        parts = path.split("/")
        for i, part in enumerate(parts):
            if part.startswith("{"):
                if part.strip("{}") in ("tag", "key", "label", "alias"):
                    parts[i] = quote(Maker(self.r, mark=MARKS[who]).text({}))
                else:
                    parts[i] = quote(self.any_id(who, parts[i - 1], path=True), safe="%")
        return "/".join(parts)

    def _query(self, maker: Maker, spec: Mapping[str, Any]) -> str:
        r = self.r
        pairs: list[tuple[str, str]] = []
        known = [p for p in spec.get("parameters", ()) if p["in"] == "query"]
        for _ in range(r.choice((0, 0, 0, 1, 1, 2))):
            if known and r.random() < 0.85:
                p = r.choice(known)
                value = maker.value(p["schema"], p["name"]) if r.random() < 0.8 else maker.junk()
                pairs.append((p["name"], value if isinstance(value, str) else json.dumps(value)))
            else:
                word = r.choice(WORDS)
                value = r.choice((self.any_id("a", "project"), "1", "true", "name", "-1", "all", str(maker.junk())))
                pairs.append((word, value))
        return urlencode(pairs)

    def _body(
        self, maker: Maker, service: Service, operation: openapi.Operation, spec: Mapping[str, Any]
    ) -> tuple[bytes, str]:
        r = self.r
        content = spec.get("requestBody", {}).get("content", {})
        if not content:
            return (b"", "") if r.random() < 0.97 else (b"{}", "application/json")
        if "application/octet-stream" in content:
            return r.randbytes(r.choice((0, 10, 5000))), r.choice(("application/octet-stream", "application/json"))
        schema = content["application/json"]["schema"]
        learned = self.learned.get(self.current)
        template = TEMPLATES.get(self.current)
        if template and r.random() < 0.4:
            value = template(lambda name: maker.ids(name) if maker.ids else "x", maker)
        elif operation.route.path.endswith("/action") and r.random() < 0.7:
            value = r.choice(ACTIONS)
        elif operation.route.method == "PATCH" and service.name == "image":
            paths = ("/name", "/tags", "/min_disk", "/visibility", "/x", "/owner", "/id", "/protected", "", "a/b")
            value = [{"op": r.choice(("add", "replace", "remove", "move")), "path": r.choice(paths),
                      "value": r.choice((maker.text({}), 1, True, [], "public", None))}]  # fmt: skip
            if r.random() < 0.9:
                return to_json(maker.spoil(value) if r.random() < 0.2 else value), (
                    "application/openstack-images-v2.1-json-patch"
                )
        elif schema == {"type": "object"} and learned:
            value = maker.value(r.choice(learned))
        else:
            value = maker.value(schema)
        if r.random() < 0.25:
            value = maker.spoil(value)
        data = to_json(value)
        what = r.random()
        if what < 0.01:
            return data[: len(data) // 2], "application/json"
        if what < 0.02:
            return data, "text/plain"
        if what < 0.03:
            return bytes(r.randbytes(20)), "application/json"
        return data, "application/json"


def to_json(value: Any) -> bytes:
    """The value as a body."""
    return json.dumps(value).encode()


def _documented(service: Service) -> Iterator[tuple[openapi.Operation, str, Mapping[str, Any]]]:
    """Each operation of a service with its OpenAPI path and description."""
    document = openapi.document(service)
    paths = {re.sub(r"\{[^}]*\}", "{}", path): path for path in document["paths"]}
    for operation in openapi.operations(service, openapi.newest(service)):
        path = paths[operation.key[1].replace("...", "")]
        yield operation, path, document["paths"][path][operation.route.method.lower()]


def _collection(name: str) -> str:
    """``network_id``, ``network``, ``networks``, ``os-networks`` and ``networkRef`` are all of ``networks``."""
    word = name.lower().replace("-", "_").removeprefix("os_")
    word = re.sub(r"(_id|_ids|_uuid|ref)$", "", word)
    word = {"tenant": "project", "device": "server", "floating_network": "network", "uuid": "network",
            "prior": "role", "implied": "role", "target": "project", "actor": "user"}.get(word, word)  # fmt: skip
    return word if word.endswith("s") else word + "s"


# --- what must not change ---------------------------------------------------------------------------------------------

Rows = dict[tuple[str, tuple[Any, ...]], dict[str, Any]]


def rows_of(world: World, who: str) -> Rows:
    """Every database row that belongs to a project: names it, or names a row that does."""
    mine = {world.projects[who], *world.ids[who]["users"]}
    tables = {t.name: t for t in METADATA.sorted_tables if t.name != "work"}
    with world.cloud.cloud.store.read() as reader:
        everything = {name: reader.all(sa.select(t)) for name, t in tables.items()}
    found: Rows = {}
    grown = True
    while grown:
        grown = False
        for name, rows in everything.items():
            keys = [c.name for c in tables[name].primary_key.columns] or [c.name for c in tables[name].columns]
            for row in rows:
                place = (name, tuple(str(row[k]) for k in keys))
                if place not in found and any(row[c] in mine for c in _owners(tables[name])):
                    found[place] = row
                    if len(keys) == 1 and isinstance(row[keys[0]], str) and ID.fullmatch(row[keys[0]]):
                        mine.add(row[keys[0]])  # a link between two things is not a thing of its own
                    grown = True
    return found


def _owners(table: sa.Table) -> list[str]:
    """The columns that say whose a row is or of what; device_id is free text."""
    if table.name == "credential":
        return ["user_id"]  # it may name any project
    keys = [c.name for c in table.primary_key.columns]
    return [
        c.name for c in table.columns
        if isinstance(c.type, sa.String) and c.name != "device_id"
        and (c.name in keys or c.name.endswith("_id") or c.name in ("owner", "consumer", "user"))
    ]  # fmt: skip


def things_of(world: World, who: str) -> set[str]:
    """The ids of a project, its users and everything it owns."""
    ids = {place[1][0] for place in rows_of(world, who) if len(place[1]) == 1 and ID.fullmatch(place[1][0])}
    return ids | {world.projects[who], *world.ids[who]["users"]}
