"""Every operation of Identity x every kind of caller x own and other things, through the API: who may not is refused
with 403 (401 without a token), who may is not refused by policy, and nobody gets a 500. What is expected is what
oslo.policy says of the published defaults for the target that the original service would build."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from oslo_config import cfg
from oslo_policy import opts
from oslo_policy import policy as oslo

from nubila.edge.openapi import Operation, operations, policy_of
from nubila.services.identity import SERVICE
from nubila.testing.cloud import Response, TestCloud

ROLES = ("reader", "member", "manager", "admin", "service")
SCOPES = ("own project", "other project", "domain", "other domain", "system")
PUBLISHED = Path(__file__).parents[1] / "published_policies" / "identity.json"

ONE_RULE = {  # of operations that several published rules name, the one that decides
    ("GET", "/v3/auth/projects"): "identity:get_auth_projects",
    ("GET", "/v3/auth/domains"): "identity:get_auth_domains",
}
NO_RULE = {  # nothing but a valid token, or not even that, is asked
    "/", "/v3", "/v3/OS-SIMPLE-CERT/ca", "/v3/OS-SIMPLE-CERT/certificates", "/v3/auth/tokens/OS-PKI/revoked",
    "/v3/auth/tokens", "/v3/users/{}/password", "/v3/OS-FEDERATION/projects", "/v3/OS-FEDERATION/domains",
}  # fmt: skip
BODIES: dict[str, Any] = {
    "PUT /v3/OS-FEDERATION/identity_providers/{}": {"identity_provider": {}},
    "PATCH /v3/OS-FEDERATION/identity_providers/{}": {"identity_provider": {}},
    "PUT /v3/OS-FEDERATION/identity_providers/{}/protocols/{}": {"protocol": {"mapping_id": "map"}},
    "PATCH /v3/OS-FEDERATION/identity_providers/{}/protocols/{}": {"protocol": {"mapping_id": "map"}},
    "PUT /v3/OS-FEDERATION/mappings/{}": {"mapping": {"rules": [
        {"local": [{"user": {"name": "{0}"}}], "remote": [{"type": "UserName"}]}]}},
    "PATCH /v3/OS-FEDERATION/mappings/{}": {"mapping": {"rules": [
        {"local": [{"user": {"name": "{0}"}}], "remote": [{"type": "UserName"}]}]}},
    "PUT /v3/OS-FEDERATION/service_providers/{}": {"service_provider": {
        "auth_url": "http://127.0.0.1/v3", "sp_url": "http://127.0.0.1/sp"}},
    "PATCH /v3/OS-FEDERATION/service_providers/{}": {"service_provider": {}},
    "PUT /v3/projects/{}/tags": {"tags": ["a"]},
    "POST /v3/users": {"user": {"name": "new", "domain_id": "$domain"}},
    "PATCH /v3/users/{}": {"user": {"description": "d"}},
    "POST /v3/registered_limits": {"registered_limits": [
        {"service_id": "$service", "resource_name": "new", "default_limit": 1}]},
    "POST /v3/limits": {"limits": [
        {"service_id": "$service", "resource_name": "box", "resource_limit": 1, "project_id": "$project"}]},
    "POST /v3/users/{}/application_credentials": {"application_credential": {"name": "new"}},
    "POST /v3/OS-TRUST/trusts": {"trust": {
        "trustor_user_id": "$user", "trustee_user_id": "$user", "impersonation": False}},
    "PUT /v3/domains/{}/config": {"config": {"identity": {"driver": "sql"}}},
    "PATCH /v3/domains/{}/config": {"config": {"identity": {"driver": "sql"}}},
    "PATCH /v3/domains/{}/config/{}": {"config": {"identity": {"driver": "sql"}}},
    "PATCH /v3/domains/{}/config/{}/{}": {"config": {"driver": "sql"}},
    "POST /v3/users/{}/credentials/OS-EC2": {"tenant_id": "$project"},
    "POST /v3/ec2tokens": {"credentials": {"access": "a", "signature": "b"}},
    "POST /v3/s3tokens": {"credentials": {"access": "a", "signature": "b", "token": "c"}},
    "POST /v3/OS-OAUTH1/consumers": {"consumer": {}},
    "PUT /v3/OS-OAUTH1/authorize/{}": {"roles": [{"id": "$role"}]},
    "POST /v3/domains": {"domain": {"name": "new"}},
    "POST /v3/projects": {"project": {"name": "new", "domain_id": "$domain"}},
    "POST /v3/groups": {"group": {"name": "new", "domain_id": "$domain"}},
    "POST /v3/roles": {"role": {"name": "new"}},
    "POST /v3/regions": {"region": {}},
    "PUT /v3/regions/{}": {"region": {}},
    "POST /v3/services": {"service": {"type": "new"}},
    "POST /v3/endpoints": {"endpoint": {
        "service_id": "$service", "interface": "public", "url": "http://127.0.0.1/"}},
    "POST /v3/policies": {"policy": {"type": "a", "blob": "b"}},
    "POST /v3/OS-EP-FILTER/endpoint_groups": {"endpoint_group": {"name": "new", "filters": {"interface": "public"}}},
    "POST /v3/credentials": {"credential": {"type": "totp", "blob": "b", "user_id": "$user"}},
}  # fmt: skip
OF_SEGMENT = {  # what stands for a place in a path, by the word before it
    "users": "user", "groups": "group", "projects": "project", "domains": "domain", "roles": "role",
    "implies": "implied", "regions": "region", "services": "service", "endpoints": "endpoint", "policies": "policy",
    "credentials": "credential", "OS-EC2": "ec2", "registered_limits": "registered_limit", "limits": "limit",
    "application_credentials": "app_cred", "access_rules": "access_rule", "trusts": "trust", "tags": "tag",
    "config": "config_group", "endpoint_groups": "endpoint_group", "consumers": "consumer",
    "identity_providers": "idp", "protocols": "protocol", "mappings": "mapping", "service_providers": "sp",
    "authorize": "request_token", "access_tokens": "access_token",
}  # fmt: skip


@dataclass
class Things:
    """One of everything: what belongs to the callers' own domain, or to another."""

    ids: dict[str, str] = field(default_factory=dict)
    subject: str = ""  # a token of its user


@dataclass
class World:
    cloud: TestCloud
    own: Things
    other: Things
    callers: dict[str, tuple[str, dict[str, Any]]]  # name -> (token, credentials as policy sees them)


def ok(got: Response) -> Any:
    assert got.status < 300, got.body
    return got.json if got.body else None


def post(cloud: TestCloud, path: str, item: str, *, token: str | None = None, **attrs: Any) -> dict[str, Any]:
    found: dict[str, Any] = ok(cloud.request("POST", path, {item: attrs}, token=token))[item]
    return found


def login(cloud: TestCloud, user_id: str, scope: Any = None) -> str:
    auth: dict[str, Any] = {"identity": {"methods": ["password"], "password": {
        "user": {"id": user_id, "password": "s3cret-Pass"}}}}  # fmt: skip
    if scope is not None:
        auth["scope"] = scope
    got = cloud.request("POST", "/v3/auth/tokens", {"auth": auth}, token="")
    assert got.status == 201, got.body
    return got.headers["x-subject-token"]


def role_id(cloud: TestCloud, name: str) -> str:
    found: str = cloud.request("GET", f"/v3/roles?name={name}").json["roles"][0]["id"]
    return found


def things(cloud: TestCloud, name: str) -> Things:
    """A domain with one of everything."""
    out = Things()
    ids = out.ids
    ids["domain"] = post(cloud, "/v3/domains", "domain", name=name)["id"]
    ids["project"] = post(cloud, "/v3/projects", "project", name="p", domain_id=ids["domain"], tags=["t"])["id"]
    ids["user"] = post(cloud, "/v3/users", "user", name="u", domain_id=ids["domain"], password="s3cret-Pass")["id"]
    ids["group"] = post(cloud, "/v3/groups", "group", name="g", domain_id=ids["domain"])["id"]
    ids["role"], ids["implied"] = role_id(cloud, "reader"), post(cloud, "/v3/roles", "role", name=f"i-{name}")["id"]
    ids["region"] = post(cloud, "/v3/regions", "region", id=f"r-{name}")["id"]
    ids["service"] = post(cloud, "/v3/services", "service", type=f"s-{name}")["id"]
    ids["endpoint"] = post(
        cloud, "/v3/endpoints", "endpoint", service_id=ids["service"], interface="public", url="http://127.0.0.1/"
    )["id"]
    ids["policy"] = post(cloud, "/v3/policies", "policy", type="a", blob="b")["id"]
    member = role_id(cloud, "member")
    base = f"/v3/projects/{ids['project']}/users/{ids['user']}/roles"
    ok(cloud.request("PUT", f"{base}/{member}"))
    out.subject = login(cloud, ids["user"], {"project": {"id": ids["project"]}})
    ids["credential"] = post(cloud, "/v3/credentials", "credential", type="t", blob="b", user_id=ids["user"])["id"]
    pair = cloud.request(
        "POST", f"/v3/users/{ids['user']}/credentials/OS-EC2", {"tenant_id": ids["project"]}, token=out.subject
    )
    ids["ec2"] = ok(pair)["credential"]["access"]
    rules = [{"service": "compute", "method": "GET", "path": "/v2.1/servers"}]
    made = post(
        cloud, f"/v3/users/{ids['user']}/application_credentials", "application_credential", token=out.subject,
        name="a", access_rules=rules,
    )  # fmt: skip
    ids["app_cred"], ids["access_rule"] = made["id"], made["access_rules"][0]["id"]
    ids["trust"] = post(
        cloud, "/v3/OS-TRUST/trusts", "trust", token=out.subject, trustor_user_id=ids["user"], impersonation=False,
        trustee_user_id=ids["user"], project_id=ids["project"], roles=[{"id": ids["role"]}],
    )["id"]  # fmt: skip
    limit = {"service_id": ids["service"], "resource_name": "thing", "default_limit": 5}
    many = [limit, {**limit, "resource_name": "box"}, {**limit, "resource_name": "free"}]
    made = ok(cloud.request("POST", "/v3/registered_limits", {"registered_limits": many}))["registered_limits"]
    ids["registered_limit"] = made[2]["id"]
    given = {"service_id": ids["service"], "resource_name": "thing", "resource_limit": 3, "project_id": ids["project"]}
    ids["limit"] = ok(cloud.request("POST", "/v3/limits", {"limits": [given]}))["limits"][0]["id"]
    ids["endpoint_group"] = post(
        cloud, "/v3/OS-EP-FILTER/endpoint_groups", "endpoint_group", name=name, filters={"interface": "public"}
    )["id"]
    ids["consumer"] = post(cloud, "/v3/OS-OAUTH1/consumers", "consumer", description=name)["id"]
    ids |= {
        "tag": "t", "config_group": "identity", "option": "driver", "request_token": "none", "access_token": "none",
        "idp": f"idp-{name}", "protocol": "mapped", "mapping": f"map-{name}", "sp": f"sp-{name}",
    }  # fmt: skip
    fed = "/v3/OS-FEDERATION"
    rule = {"local": [{"user": {"name": "{0}"}}], "remote": [{"type": "UserName"}]}
    ok(cloud.request("PUT", f"{fed}/mappings/{ids['mapping']}", {"mapping": {"rules": [rule]}}))
    ok(cloud.request("PUT", f"{fed}/identity_providers/{ids['idp']}", {"identity_provider": {}}))
    return out


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    cloud = TestCloud(tmp_path_factory.mktemp("cloud"), hosts=0)
    own, other = things(cloud, "own"), things(cloud, "other")
    where = {
        "own project": ("project", own.ids["project"], own), "other project": ("project", other.ids["project"], other),
        "domain": ("domain", own.ids["domain"], own), "other domain": ("domain", other.ids["domain"], other),
        "system": ("system", "all", own),
    }  # fmt: skip
    callers: dict[str, tuple[str, dict[str, Any]]] = {}
    implied = {"admin": 4, "manager": 3, "member": 2, "reader": 1}
    for role in ROLES:
        granted = role_id(cloud, role)
        for scope in SCOPES:
            kind, id, home = where[scope]
            domain = home.ids["domain"]
            name = f"{role} {scope}"
            user = post(cloud, "/v3/users", "user", name=name, domain_id=domain, password="s3cret-Pass")["id"]
            path = "/v3/system" if kind == "system" else f"/v3/{kind}s/{id}"
            ok(cloud.request("PUT", f"{path}/users/{user}/roles/{granted}"))
            token = login(cloud, user, {"system": {"all": True}} if kind == "system" else {kind: {"id": id}})
            roles = ["service"] if role == "service" else ["reader", "member", "manager", "admin"][: implied[role]]
            callers[name] = (token, creds_of(user, domain, kind, id, roles))
    callers["unscoped"] = (login(cloud, own.ids["user"]), creds_of(own.ids["user"], own.ids["domain"], "", "", []))
    yield World(cloud, own, other, callers)
    cloud.close()


def creds_of(user: str, home: str, kind: str, id: str, roles: list[str]) -> dict[str, Any]:
    project = kind == "project"
    return {
        "user_id": user, "roles": roles, "project_id": id if project else None, "is_admin": "admin" in roles,
        "domain_id": id if kind == "domain" else None, "system_scope": "all" if kind == "system" else None,
        "system": "all" if kind == "system" else None, "user_domain_id": home,
        "token": {"domain": {"id": id if kind == "domain" else None}, "user": {"domain": {"id": home}},
                  "project": {"domain": {"id": home if project else None}}},
    }  # fmt: skip


class _Undo(Exception):
    pass


class Undone:
    """A transaction that is taken back where it would be committed: the world stays as it is."""

    def __init__(self, tx: Any) -> None:
        self.tx = tx

    def __enter__(self) -> Any:
        return self.tx.__enter__()

    def __exit__(self, kind: Any, error: Any, trace: Any) -> Any:
        if kind is not None:
            return self.tx.__exit__(kind, error, trace)
        undo = _Undo()
        self.tx.__exit__(_Undo, undo, None)
        return True


def judge() -> oslo.Enforcer:
    conf = cfg.ConfigOpts()
    conf([])
    opts._register(conf)
    enforcer = oslo.Enforcer(conf, use_conf=False, rules={})
    for name, (text, scopes) in json.loads(PUBLISHED.read_text())["rules"].items():
        enforcer.register_default(oslo.RuleDefault(name, text, scope_types=scopes or None))
    enforcer.set_rules({n: r.check for n, r in enforcer.registered_rules.items()}, overwrite=True, use_conf=False)
    return enforcer


def key_of(operation: Operation) -> str:
    return " ".join(operation.key)


def url_of(path: str, ids: Mapping[str, str]) -> str:
    """The path with the things' ids; a place is what the word before it says."""
    out: list[str] = []
    for part in path.split("/"):
        if not part.startswith("{"):
            out.append(part)
            continue
        what = OF_SEGMENT.get(out[-1], "option" if part == "{option}" else "")
        if part == "{group}":
            what = "config_group"
        if out[-1] == "endpoints" and "OS-EP-FILTER" in out:
            what = "endpoint"
        assert what, f"what is {part} of {path}?"
        out.append(ids[what])
    return "/".join(out)


def filled(body: Any, ids: Mapping[str, str]) -> Any:
    if isinstance(body, str) and body.startswith("$"):
        return ids[body[1:]]
    if isinstance(body, dict):
        return {k: filled(v, ids) for k, v in body.items()}
    return [filled(v, ids) for v in body] if isinstance(body, list) else body


def target_of(operation: Operation, ids: Mapping[str, str], creds: Mapping[str, Any]) -> dict[str, Any]:
    """What the original would ask its policy about, flat: the things that the path or the body names."""
    method, path = operation.key
    listed = method == "GET" and not path.endswith("}")
    words = set(path.split("/"))
    out: dict[str, Any] = {}
    if listed and path in ("/v3/projects", "/v3/users", "/v3/groups", "/v3/domains", "/v3/role_assignments"):
        if creds["domain_id"]:  # lists are kept to the caller's domain
            same = ("target.domain_id", "target.group.domain_id", "target.domain.id")
            out.update(dict.fromkeys(same, creds["domain_id"]))
        return out
    user, domain = ids["user"], ids["domain"]
    if "users" in words:
        out |= {"user_id": user, "target.user.id": user, "target.user.domain_id": domain}
    if "groups" in words:
        out |= {"group_id": ids["group"], "target.group.id": ids["group"], "target.group.domain_id": domain}
    if "projects" in words:
        out |= {"target.project.id": ids["project"], "target.project.domain_id": domain}
        out["project_id"] = ids["project"]
    if "domains" in words:
        out |= {"target.domain.id": domain, "domain_id": domain}
    if "roles" in words:
        out |= {"target.role.id": ids["role"], "target.role.name": "reader", "target.role.domain_id": None}
    if words & {"credentials", "OS-EC2"}:
        out["target.credential.user_id"] = user
    if "trusts" in words and (not listed or path.endswith("/roles")):
        out |= {"target.trust.trustor_user_id": user, "target.trust.trustee_user_id": user}
    if "limits" in words:
        out |= {"target.limit.project_id": ids["project"], "target.limit.project.domain_id": domain}
    if path == "/v3/auth/tokens":
        out["target.token.user_id"] = user
    return out


def governed() -> list[Operation]:
    """The operations that a rule guards, one per method and path."""
    return [o for o in operations(SERVICE) if o.route.auth and policy_of(SERVICE, o)]


def rule_of(operation: Operation) -> str:
    names = policy_of(SERVICE, operation)
    method, path = operation.key
    return ONE_RULE.get((method, path)) or (names[0] if len(names) == 1 else "")


@pytest.mark.req("A/ID-20")
def test_every_operation_has_its_rule() -> None:
    free = {o.key[1] for o in operations(SERVICE) if not policy_of(SERVICE, o)}
    free = {p for p in free if "/websso" not in p and not p.endswith("/auth")}
    assert {p for p in free if not re.search(r"OS-OAUTH[12]/(request_token|access_token|token)$", p)} <= NO_RULE
    assert [key_of(o) for o in governed() if not rule_of(o)] == []
    assert len(governed()) > 200


def without_list_filter(operation: Operation) -> bool:
    """Whether the answer is yes or no: the original filters these lists row by row and never refuses them."""
    return key_of(operation) != "GET /v3/credentials"


@pytest.mark.req("A/ID-20")
@pytest.mark.parametrize("group", range(6))
def test_every_cell_through_the_api(world: World, group: int, monkeypatch: pytest.MonkeyPatch) -> None:
    cloud, enforcer = world.cloud, judge()
    write = cloud.cloud.store.write
    monkeypatch.setattr(cloud.cloud.store, "write", lambda item=None: Undone(write(item)))
    wrong: list[str] = []
    cells = 0
    mine = [o for i, o in enumerate(governed()) if i % 6 == group and without_list_filter(o)]
    for operation in mine:
        key, rule = key_of(operation), rule_of(operation)
        method = operation.route.method
        for which, target in (("own", world.own), ("other", world.other)):
            url = url_of(operation.route.path, target.ids)
            if method == "PUT" and key in ("PUT /v3/regions/{}", *(k for k in BODIES if "OS-FEDERATION" in k)):
                url = url[: -len(url.rpartition("/")[2])] + "new"
            body = filled(BODIES.get(key), target.ids)
            if body is None and method == "PATCH":
                assert operation.kind is not None
                assert operation.kind.rest is not None
                body = {operation.kind.rest.item: {}}
            headers = {"X-Subject-Token": target.subject} if operation.key[1] == "/v3/auth/tokens" else {}
            for who, (token, creds) in [*world.callers.items(), ("nobody", ("", {}))]:
                got = cloud.request(method, url, body, token=token, headers=headers)
                cells += 1
                refused = got.status == 403 and "Policy does not allow" in got.body.decode()
                if who == "nobody":
                    right = got.status == 401
                elif enforcer.enforce(rule, target_of(operation, target.ids, creds), creds):
                    right = not refused and got.status != 401
                else:
                    right = refused
                if not right or got.status >= 500:
                    wrong.append(f"{key} on {which} by {who}: {got.status} {got.body.decode()[:160]}")
    assert not wrong, f"{len(wrong)} of {cells} cells:\n" + "\n".join(wrong[:40])
    assert cells == len(mine) * 2 * (len(ROLES) * len(SCOPES) + 2)


def test_credentials_are_listed_row_by_row(world: World) -> None:
    """Nobody is refused the list; everybody finds what he may see."""
    admin, reader = world.callers["admin system"][0], world.callers["reader own project"][0]
    mine, others = world.own.ids, world.other.ids
    assert world.cloud.request("GET", "/v3/credentials", token=reader).json["credentials"] == []
    got = world.cloud.request("GET", "/v3/credentials", token=world.own.subject).json["credentials"]
    assert {c["user_id"] for c in got} == {mine["user"]}
    got = world.cloud.request("GET", "/v3/credentials", token=admin).json["credentials"]
    assert {mine["user"], others["user"]} <= {c["user_id"] for c in got}


def test_a_domains_callers_find_only_what_is_in_it(world: World) -> None:
    """Lists are kept to the domain of the token, for its administrators too."""
    mine, others = world.own.ids, world.other.ids
    for role in ("reader", "admin"):
        token = world.callers[f"{role} domain"][0]
        for items in ("projects", "users", "groups"):
            found = ok(world.cloud.request("GET", f"/v3/{items}", token=token))[items]
            assert {row["domain_id"] for row in found} == {mine["domain"]}
            url = f"/v3/{items}?domain_id={others['domain']}"
            assert ok(world.cloud.request("GET", url, token=token))[items] == []
        found = ok(world.cloud.request("GET", "/v3/domains", token=token))["domains"]
        assert [row["id"] for row in found] == [mine["domain"]]
        found = ok(world.cloud.request("GET", "/v3/role_assignments", token=token))["role_assignments"]
        targets = {a["scope"].get("project", a["scope"].get("domain", {})).get("id") for a in found}
        assert targets == {mine["domain"], mine["project"]}
