"""People whom an OpenID Connect provider vouches for: bearer tokens, shadow users, groups, projects, expiry."""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from jwt.algorithms import ECAlgorithm, RSAAlgorithm

from nubila.core import clock
from nubila.core.config import BadSetting, load
from nubila.services.identity import federation_oidc
from nubila.testing.cloud import Response, TestCloud

ISSUER, AUDIENCE = "https://login.acme.example", "nubila"
BASE = "/v3/OS-FEDERATION"
RSA = rsa.generate_private_key(65537, 2048)
EC = ec.generate_private_key(ec.SECP256R1())
STRANGER = rsa.generate_private_key(65537, 2048)


def jwk(key: Any, kid: str) -> dict[str, Any]:
    how = RSAAlgorithm if isinstance(key, rsa.RSAPrivateKey) else ECAlgorithm
    made: dict[str, Any] = json.loads(how.to_jwk(key.public_key()))
    return {**made, "kid": kid, "use": "sig"}


def bearer(key: Any = RSA, kid: str | None = "r1", algorithm: str = "RS256", **claims: Any) -> str:
    now = int(time.time())
    said = {"iss": ISSUER, "aud": AUDIENCE, "sub": "ann", "iat": now, "exp": now + 600, **claims}
    said = {k: v for k, v in said.items() if v is not None}
    return jwt.encode(said, key, algorithm=algorithm, headers={"kid": kid} if kid else None)


@pytest.fixture(scope="module")
def cloud(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestCloud]:
    state = tmp_path_factory.mktemp("cloud")
    (state / "acme.json").write_text(json.dumps({"keys": [jwk(RSA, "r1"), jwk(EC, "e1"), {"kty": "oct", "k": "AA"}]}))
    provider = {"issuer": ISSUER, "audience": [AUDIENCE], "jwks": "acme.json"}
    oidc = tuple({**provider, "identity_provider": name} for name in ("acme", "other", "unheard"))
    made = TestCloud(state, hosts=0, oidc=oidc, trusted_dashboards=("https://dash.example/auth/websso/",))
    yield made
    made.close()


def setup(
    cloud: TestCloud, rules: list[dict[str, Any]], idp: str = "acme", version: str = "1.0", **attrs: Any
) -> dict[str, Any]:
    """An enabled identity provider with the protocol openid and these rules; made anew each time."""
    path = f"{BASE}/identity_providers/{idp}"
    cloud.request("DELETE", path)
    cloud.request("DELETE", f"{BASE}/mappings/{idp}")
    made = cloud.request("PUT", path, {"identity_provider": {"enabled": True, **attrs}})
    assert made.status == 201, made.body
    mapping = {"rules": rules, "schema_version": version}
    assert cloud.request("PUT", f"{BASE}/mappings/{idp}", {"mapping": mapping}).status == 201
    body = {"protocol": {"mapping_id": idp}}
    assert cloud.request("PUT", f"{path}/protocols/openid", body).status == 201
    found: dict[str, Any] = made.json["identity_provider"]
    return found


def enter(cloud: TestCloud, token: str, idp: str = "acme", method: str = "POST", protocol: str = "openid") -> Response:
    path = f"{BASE}/identity_providers/{idp}/protocols/{protocol}/auth"
    return cloud.request(method, path, token="", headers={"Authorization": f"Bearer {token}"})


def rescope(cloud: TestCloud, token: str, scope: Any) -> Response:
    body = {"auth": {"identity": {"methods": ["token"], "token": {"id": token}}, "scope": scope}}
    return cloud.request("POST", "/v3/auth/tokens", body, token="")


def group(cloud: TestCloud, name: str, domain: str = "default") -> str:
    made = cloud.request("POST", "/v3/groups", {"group": {"name": name, "domain_id": domain}})
    return str(made.json["group"]["id"])


def project(cloud: TestCloud, name: str) -> str:
    return str(cloud.request("POST", "/v3/projects", {"project": {"name": name}}).json["project"]["id"])


def role(cloud: TestCloud, name: str) -> str:
    return str(cloud.request("GET", f"/v3/roles?name={name}").json["roles"][0]["id"])


SIMPLE = [{"local": [{"user": {"name": "{0}"}}], "remote": [{"type": "OIDC-sub"}]}]


def test_a_guest_gets_a_token_and_a_shadow(cloud: TestCloud) -> None:
    idp = setup(cloud, SIMPLE)
    got = enter(cloud, bearer())
    assert got.status == 201, got.body
    token = got.json["token"]
    assert token["methods"] == ["openid"]
    assert token["user"]["name"] == "ann"
    assert token["user"]["domain"]["id"] == idp["domain_id"]
    section = {"identity_provider": {"id": "acme"}, "protocol": {"id": "openid"}, "groups": []}
    assert token["user"]["OS-FEDERATION"] == section
    assert "password_expires_at" not in token["user"]
    assert not {"project", "roles", "catalog"} & set(token)
    again = enter(cloud, bearer(EC, "e1", "ES256"), method="GET")
    assert again.status == 201
    assert again.json["token"]["user"]["id"] == token["user"]["id"]
    body = {
        "auth": {"identity": {"methods": ["mapped"], "mapped": {"identity_provider": "acme", "protocol": "openid"}}}
    }
    headers = {"Authorization": f"Bearer {bearer()}"}
    assert cloud.request("POST", "/v3/auth/tokens", body, token="", headers=headers).status == 201
    assert cloud.request("GET", f"/v3/users/{token['user']['id']}").json["user"]["name"] == "ann"
    shown = cloud.request("GET", "/v3/auth/tokens", headers={"X-Subject-Token": got.headers["x-subject-token"]})
    assert shown.json["token"]["user"]["OS-FEDERATION"] == section


NOW = int(time.time())
LATER = NOW + 86400


@pytest.mark.parametrize(
    "token",
    [
        bearer(STRANGER),
        bearer(STRANGER, None),
        bearer(kid="unheard-of"),
        bearer(iss="https://evil.example"),
        bearer(aud="somebody else"),
        bearer(aud=None),
        bearer(sub=None),
        bearer(exp=None),
        bearer(exp=NOW - 300),
        bearer(nbf=LATER),
        bearer(iat=LATER),
        bearer(aud=[AUDIENCE, "x"], azp="x"),
        bearer(EC, "r1", "ES256"),
        jwt.encode({"sub": "ann", "iss": ISSUER, "aud": AUDIENCE, "exp": LATER, "iat": NOW}, "", algorithm="none"),
        jwt.encode({"sub": "ann", "iss": ISSUER, "aud": AUDIENCE, "exp": LATER, "iat": NOW}, "A" * 64),
        bearer()[:-3] + "AAA",
        bearer().rpartition(".")[0] + ".",
        "nonsense",
        "a.b.c",
        "." * 50,
        "x" * 20000,
    ],
    ids=range(21),
)
def test_bearer_tokens_that_are_not_accepted(cloud: TestCloud, token: str) -> None:
    setup(cloud, SIMPLE)
    got = enter(cloud, token)
    assert got.status == 401, got.body
    assert got.json["error"]["message"].startswith("The bearer token is not accepted: ")
    assert "x-subject-token" not in got.headers


def test_the_public_key_is_no_secret_to_sign_with(cloud: TestCloud) -> None:
    """HS256 with the text of the public key: the classic confusion."""
    import hashlib
    import hmac

    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    setup(cloud, SIMPLE)
    pem = RSA.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    head, body = (base64.urlsafe_b64encode(json.dumps(x).encode()).rstrip(b"=").decode() for x in (
        {"alg": "HS256", "kid": "r1"}, {"sub": "ann", "iss": ISSUER, "aud": AUDIENCE, "exp": LATER, "iat": NOW},
    ))  # fmt: skip
    mac = base64.urlsafe_b64encode(hmac.digest(pem, f"{head}.{body}".encode(), hashlib.sha256)).rstrip(b"=").decode()
    assert enter(cloud, f"{head}.{body}.{mac}").status == 401


def test_clocks_may_differ_a_little(cloud: TestCloud) -> None:
    setup(cloud, SIMPLE)
    assert enter(cloud, bearer(exp=int(time.time()) - 30)).status == 201
    assert enter(cloud, bearer(nbf=int(time.time()) + 30, iat=int(time.time()) + 30)).status == 201


def test_doors_that_are_closed(cloud: TestCloud) -> None:
    setup(cloud, SIMPLE, remote_ids=["https://another.example"])
    assert enter(cloud, bearer()).status == 403
    setup(cloud, SIMPLE, remote_ids=[ISSUER])
    assert enter(cloud, bearer()).status == 201
    assert enter(cloud, bearer(), idp="nobody").status == 404
    assert enter(cloud, bearer(), protocol="saml2").status == 404
    missing = cloud.request("GET", f"{BASE}/identity_providers/acme/protocols/openid/auth", token="")
    assert missing.status == 401
    assert missing.headers["www-authenticate"] == "Bearer"
    setup(cloud, SIMPLE, idp="unset")
    assert "[[oidc]]" in enter(cloud, bearer(), idp="unset").json["error"]["message"]
    off = {"identity_provider": {"enabled": False}}
    cloud.request("PATCH", f"{BASE}/identity_providers/acme", off)
    assert enter(cloud, bearer()).status == 403


GROUPS = [
    {
        "local": [{"user": {"name": "{0}", "email": "{1}"}}, {"groups": "{2}", "domain": {"id": "default"}}],
        "remote": [{"type": "OIDC-sub"}, {"type": "OIDC-email"}, {"type": "OIDC-groups", "blacklist": ["hidden"]}],
    }
]


@pytest.mark.req("A/ID-19")
def test_groups_give_roles_and_both_can_be_taken_away(cloud: TestCloud) -> None:
    staff, home = group(cloud, "staff"), project(cloud, "fed-home")
    cloud.request("PUT", f"/v3/projects/{home}/groups/{staff}/roles/{role(cloud, 'member')}")
    setup(cloud, GROUPS)
    who = bearer(sub="bea", email="bea@acme.example", groups=["staff", "hidden", "unknown"])
    got = enter(cloud, who)
    assert got.json["token"]["user"]["OS-FEDERATION"]["groups"] == [{"id": staff}]
    unscoped = got.headers["x-subject-token"]
    for path in ("/v3/OS-FEDERATION/projects", "/v3/auth/projects"):
        assert [p["id"] for p in cloud.request("GET", path, token=unscoped).json["projects"]] == [home]
    assert cloud.request("GET", "/v3/OS-FEDERATION/domains", token=unscoped).json["domains"] == []
    scoped = rescope(cloud, unscoped, {"project": {"id": home}})
    assert scoped.status == 201, scoped.body
    assert {r["name"] for r in scoped.json["token"]["roles"]} == {"member", "reader"}
    assert scoped.json["token"]["user"]["OS-FEDERATION"]["groups"] == [{"id": staff}]
    assert scoped.json["token"]["expires_at"] == got.json["token"]["expires_at"]
    token = scoped.headers["x-subject-token"]
    assert cloud.request("GET", "/v3/auth/catalog", token=token).status == 200
    refused = enter(cloud, bearer(sub="eve", email="eve@acme.example", groups=["unknown"]))
    assert rescope(cloud, refused.headers["x-subject-token"], {"project": {"id": home}}).status == 401
    cloud.request("DELETE", f"/v3/projects/{home}/groups/{staff}/roles/{role(cloud, 'member')}")
    assert cloud.request("GET", "/v3/auth/catalog", token=token).status == 401


@pytest.mark.parametrize("what", ["provider off", "provider gone", "protocol gone", "user off", "domain off"])
def test_nobody_vouches_any_more(cloud: TestCloud, what: str) -> None:
    idp = setup(cloud, SIMPLE)
    got = enter(cloud, bearer(sub=what))
    token = got.headers["x-subject-token"]
    assert cloud.request("GET", "/v3/auth/projects", token=token).status == 200
    path = f"{BASE}/identity_providers/acme"
    if what == "provider off":
        cloud.request("PATCH", path, {"identity_provider": {"enabled": False}})
    elif what == "provider gone":
        cloud.request("DELETE", path)
    elif what == "protocol gone":
        cloud.request("DELETE", f"{path}/protocols/openid")
    elif what == "user off":
        cloud.request("PATCH", f"/v3/users/{got.json['token']['user']['id']}", {"user": {"enabled": False}})
    else:
        cloud.request("PATCH", f"/v3/domains/{idp['domain_id']}", {"domain": {"enabled": False}})
    assert cloud.request("GET", "/v3/auth/projects", token=token).status == 401
    if what in ("user off", "domain off"):
        assert enter(cloud, bearer(sub=what)).status == 401


def test_a_local_user_is_one_that_exists(cloud: TestCloud) -> None:
    local = {"user": {"name": "{0}", "domain": {"id": "default"}, "type": "local"}}
    setup(cloud, [{"local": [local], "remote": [{"type": "OIDC-preferred_username"}]}])
    got = enter(cloud, bearer(preferred_username="demo"))
    assert got.status == 201
    assert got.json["token"]["user"]["name"] == "demo"
    assert "OS-FEDERATION" not in got.json["token"]["user"]
    assert enter(cloud, bearer(preferred_username="nobody")).status == 401
    nobody = enter(cloud, bearer())
    assert nobody.status == 401
    assert "no rule" in nobody.json["error"]["message"]


PROJECTS = [
    {
        "local": [
            {"user": {"name": "{0}"}},
            {
                "projects": [
                    {"name": "Work of {0}", "roles": [{"name": "member"}]},
                    {"name": "All", "roles": [{"name": "reader"}]},
                ]
            },
        ],
        "remote": [{"type": "OIDC-sub"}],
    }
]


def test_projects_are_made_for_guests(cloud: TestCloud) -> None:
    idp = setup(cloud, PROJECTS)
    got = enter(cloud, bearer(sub="cid"))
    assert got.status == 201, got.body
    token = got.headers["x-subject-token"]
    mine = cloud.request("GET", "/v3/auth/projects", token=token).json["projects"]
    assert {(p["name"], p["domain_id"]) for p in mine} == {("Work of cid", idp["domain_id"]), ("All", idp["domain_id"])}
    work = next(p["id"] for p in mine if p["name"] == "Work of cid")
    assert rescope(cloud, token, {"project": {"id": work}}).status == 201
    assert enter(cloud, bearer(sub="cid")).status == 201
    bad = json.loads(json.dumps(PROJECTS).replace("reader", "wizard"))
    setup(cloud, bad, idp="other")
    refused = enter(cloud, bearer(sub="cid"), idp="other")
    assert refused.status == 401
    assert "wizard" in refused.json["error"]["message"]


def test_grants_follow_the_provider_in_version_3(cloud: TestCloud) -> None:
    rule = {
        "local": [{"user": {"name": "{0}"}}, {"projects_json": "{1}"}],
        "remote": [{"type": "OIDC-sub"}, {"type": "OIDC-projects"}],
    }
    setup(cloud, [rule], version="3.0")

    def names(*wanted: str) -> set[str]:
        said = [{"name": n, "roles": [{"name": "member"}]} for n in wanted]
        got = enter(cloud, bearer(sub="dan", projects=json.dumps(said)))
        assert got.status == 201, got.body
        token = got.headers["x-subject-token"]
        return {p["name"] for p in cloud.request("GET", "/v3/auth/projects", token=token).json["projects"]}

    assert names("one", "two") == {"one", "two"}
    assert names("two", "three") == {"two", "three"}
    assert names() == set()
    assert enter(cloud, bearer(sub="dan", projects="{nonsense")).status == 401


def test_memberships_last_as_long_as_the_provider_says(cloud: TestCloud, monkeypatch: pytest.MonkeyPatch) -> None:
    """So that an application credential of a guest has roles, until he has not come back for too long."""
    crew, home = group(cloud, "crew"), project(cloud, "crew-home")
    cloud.request("PUT", f"/v3/projects/{home}/groups/{crew}/roles/{role(cloud, 'member')}")
    setup(cloud, GROUPS, authorization_ttl=10)
    who = {"sub": "fay", "email": "fay@acme.example", "groups": ["crew"]}
    got = enter(cloud, bearer(**who))
    user = got.json["token"]["user"]["id"]
    scoped = rescope(cloud, got.headers["x-subject-token"], {"project": {"id": home}}).headers["x-subject-token"]
    body = {"application_credential": {"name": "robot", "secret": "r0bot"}}
    made = cloud.request("POST", f"/v3/users/{user}/application_credentials", body, token=scoped)
    assert made.status == 201, made.body
    method = {"id": made.json["application_credential"]["id"], "secret": "r0bot"}
    login = {"auth": {"identity": {"methods": ["application_credential"], "application_credential": method}}}
    robot = cloud.request("POST", "/v3/auth/tokens", login, token="")
    assert robot.status == 201, robot.body
    assert {r["name"] for r in robot.json["token"]["roles"]} == {"member", "reader"}
    groups = cloud.request("GET", f"/v3/users/{user}/groups").json["groups"]
    assert [g["id"] for g in groups] == [crew]
    assert groups[0]["membership_expires_at"].endswith("Z")
    assert enter(cloud, bearer(**{**who, "groups": ["none"]})).status == 201  # he is in it no more
    assert cloud.request("GET", "/v3/auth/catalog", token=robot.headers["x-subject-token"]).status == 401
    assert enter(cloud, bearer(**who)).status == 201
    robot = cloud.request("POST", "/v3/auth/tokens", login, token="")
    token = robot.headers["x-subject-token"]
    assert cloud.request("GET", "/v3/auth/catalog", token=token).status == 200
    then = time.time() + 601
    monkeypatch.setattr("time.time", lambda: then)
    monkeypatch.setattr("nubila.core.clock.now", lambda: clock.at(then))
    assert cloud.request("GET", "/v3/auth/catalog", token=token).status == 401
    assert cloud.request("POST", "/v3/auth/tokens", login, token="").status == 401


def test_federated_attributes_name_who_comes_in(cloud: TestCloud) -> None:
    setup(cloud, SIMPLE)
    federated = [{"idp_id": "acme", "protocols": [{"protocol_id": "openid", "unique_id": "gil"}]}]
    made = cloud.request("POST", "/v3/users", {"user": {"name": "Gilbert", "federated": federated}})
    assert made.status == 201, made.body
    user = made.json["user"]
    assert user["federated"] == federated
    assert cloud.request("GET", f"/v3/users/{user['id']}").json["user"]["federated"] == federated
    assert enter(cloud, bearer(sub="gil")).json["token"]["user"]["id"] == user["id"]
    for query in ("idp_id=acme&unique_id=gil", "unique_id=gil", "protocol_id=openid&unique_id=gil"):
        assert [u["id"] for u in cloud.request("GET", f"/v3/users?{query}").json["users"]] == [user["id"]]
    assert cloud.request("GET", "/v3/users?idp_id=nothing").json["users"] == []
    other = [{"idp_id": "acme", "protocols": [{"protocol_id": "openid", "unique_id": "gus"}]}]
    changed = cloud.request("PATCH", f"/v3/users/{user['id']}", {"user": {"federated": other}})
    assert changed.json["user"]["federated"] == other
    assert cloud.request("GET", "/v3/users?unique_id=gil").json["users"] == []
    for bad in (
        [{"idp_id": "nothing", "protocols": [{"protocol_id": "openid", "unique_id": "x"}]}],
        [{"idp_id": "acme", "protocols": [{"protocol_id": "nothing", "unique_id": "x"}]}],
        [{"idp_id": "acme"}],
        [{"idp_id": "acme", "protocols": []}],
        [{"idp_id": "acme", "protocols": [{"protocol_id": "openid"}]}],
    ):
        assert cloud.request("POST", "/v3/users", {"user": {"name": "bad", "federated": bad}}).status == 400
    assert cloud.request("DELETE", f"/v3/users/{user['id']}").status == 204
    assert enter(cloud, bearer(sub="gus")).json["token"]["user"]["id"] != user["id"]


def test_a_guest_of_a_later_provider_is_somebody_else(cloud: TestCloud) -> None:
    setup(cloud, SIMPLE)
    home, member = project(cloud, "old-home"), role(cloud, "member")
    user = enter(cloud, bearer(sub="hal")).json["token"]["user"]["id"]
    assert cloud.request("PUT", f"/v3/projects/{home}/users/{user}/roles/{member}").status == 204
    kept = [{"idp_id": "acme", "protocols": [{"protocol_id": "openid", "unique_id": "ida"}]}]
    by_hand = cloud.request("POST", "/v3/users", {"user": {"name": "Ida", "federated": kept}}).json["user"]["id"]
    setup(cloud, SIMPLE)  # deleted and made again
    assert cloud.request("GET", f"/v3/users/{user}").status == 404
    assert cloud.request("GET", f"/v3/users/{by_hand}").status == 200
    again = enter(cloud, bearer(sub="hal"))
    assert again.status == 201
    assert rescope(cloud, again.headers["x-subject-token"], {"project": {"id": home}}).status == 401


def test_a_guest_cannot_take_the_name_of_somebody_else(cloud: TestCloud) -> None:
    local = {"user": {"name": "{0}", "domain": {"id": "default"}}}
    setup(cloud, [{"local": [local], "remote": [{"type": "OIDC-sub"}]}], version="2.0")
    got = enter(cloud, bearer(sub="admin"))
    assert got.status == 201
    assert got.json["token"]["user"]["name"] == "admin (acme)"


def test_signing_on_in_a_browser(cloud: TestCloud) -> None:
    setup(cloud, SIMPLE, remote_ids=[ISSUER])
    origin = "https://dash.example/auth/websso/"
    headers = {"Authorization": f"Bearer {bearer()}"}
    one = f"/v3/auth/OS-FEDERATION/identity_providers/acme/protocols/openid/websso?origin={origin}"
    for path in (one, f"/v3/auth/OS-FEDERATION/websso/openid?origin={origin}"):
        got = cloud.request("GET", path, token="", headers=headers)
        assert got.status == 200, got.body
        assert got.headers["content-type"].startswith("text/html")
        page = got.body.decode()
        assert f'action="{origin}"' in page
        token = page.partition('value="')[2].partition('"')[0]
        assert cloud.request("GET", "/v3/auth/projects", token=token).status == 200
    evil = cloud.request("GET", one.replace("dash", "evil"), token="", headers=headers)
    assert evil.status == 401
    assert cloud.request("GET", one.partition("?")[0], token="", headers=headers).status == 400
    stranger = {"Authorization": f"Bearer {bearer(STRANGER)}"}
    assert cloud.request("GET", one, token="", headers=stranger).status == 401
    foreign = {"Authorization": f"Bearer {bearer(iss='https://x.example')}"}
    path = f"/v3/auth/OS-FEDERATION/websso/openid?origin={origin}"
    assert cloud.request("GET", path, token="", headers=foreign).status == 404


def test_keys_from_a_url_follow_a_rotation_and_survive_an_outage(tmp_path: Path) -> None:
    keys = [jwk(RSA, "r1")]
    asked: list[str] = []

    class Keys(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_response(200)
            self.end_headers()
            self.wfile.write(json.dumps({"keys": keys}).encode())

        def log_message(self, *args: Any) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Keys)
    Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_port}/keys"
    provider = {"identity_provider": "acme", "issuer": ISSUER, "audience": AUDIENCE, "jwks": url}
    cloud = TestCloud(tmp_path, hosts=0, oidc=(provider,))
    try:
        setup(cloud, SIMPLE)
        assert enter(cloud, bearer()).status == 201
        assert enter(cloud, bearer()).status == 201
        assert asked == ["/keys"]
        keys.append(jwk(EC, "e1"))
        assert enter(cloud, bearer(EC, "e1", "ES256")).status == 401  # a stranger's key id asks at most every 10 s
        federation_oidc.providers(cloud.cloud)["acme"].read_at -= 11
        assert enter(cloud, bearer(EC, "e1", "ES256")).status == 201
        server.shutdown()
        server.server_close()
        federation_oidc.providers(cloud.cloud)["acme"].read_at -= 10_000
        assert enter(cloud, bearer()).status == 201
        cloud.cloud.memory.pop("identity.oidc")
        down = enter(cloud, bearer())
        assert down.status == 503
        assert "cannot be read" in down.json["error"]["message"]
    finally:
        cloud.close()


def test_a_provider_added_while_running_is_known_after_a_reload(cloud: TestCloud) -> None:
    setup(cloud, SIMPLE, idp="late")
    assert enter(cloud, bearer(), idp="late").status == 401
    before = cloud.cloud.settings
    added = {"identity_provider": "late", "issuer": ISSUER, "audience": AUDIENCE, "jwks": "acme.json"}
    cloud.cloud.settings = replace(before, oidc=(*before.oidc, added))
    assert enter(cloud, bearer(), idp="late").status == 201
    cloud.cloud.settings = replace(before, oidc=("nonsense",))
    assert enter(cloud, bearer(), idp="late").status == 503
    cloud.cloud.settings = before


@pytest.mark.parametrize(
    ("table", "why"),
    [
        ("", "identity_provider"),
        ('identity_provider = "a"\nissuer = "i"\njwks = "j"', "audience"),
        ('identity_provider = "a"\nissuer = "i"\njwks = "j"\naudience = "x"\nkeys = "k"', "unknown keys"),
        ('identity_provider = "a"\nissuer = "i"\njwks = "j"\naudience = "x"\nalgorithms = ["HS256"]', "HS256"),
        ('identity_provider = "a"\nissuer = "i"\njwks = "j"\naudience = "x"\nskew_s = 99999', "skew_s"),
    ],
)
def test_what_is_wrong_with_the_setting_is_said(tmp_path: Path, table: str, why: str) -> None:
    (tmp_path / "nubila.toml").write_text(f"[[oidc]]\n{table}\n")
    with pytest.raises(BadSetting, match=why):
        federation_oidc.read(load(tmp_path / "nubila.toml", environ={}))
