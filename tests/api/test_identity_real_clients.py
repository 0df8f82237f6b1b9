"""keystoneauth logs in by OpenID Connect, by OAuth 2.0 and by OAuth 2.0 with mutual TLS, on a listener with TLS."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from jwt.algorithms import ECAlgorithm
from keystoneauth1 import exceptions, session
from keystoneauth1.identity import v3

from nubila.apps import wiring
from nubila.core import pki

KEY = ec.generate_private_key(ec.SECP256R1())
ISSUER = "https://login.example"


class World:
    """One API server process that speaks TLS, and who may come in."""

    def __init__(self, state: Path) -> None:
        self.state = state
        self.servers, self.clients = (pki.Authority(state / name, "test", name) for name in ("servers", "clients"))
        self.verify = str(state / "servers" / "ca.pem")
        self._signed("server", self.servers, names=["localhost", "127.0.0.1"], server=True)
        (state / "keys.json").write_text(json.dumps({"keys": [json.loads(ECAlgorithm.to_jwk(KEY.public_key()))]}))
        (state / "nubila.toml").write_text(
            f'bcrypt_rounds = 4\ntls_cert = "{state}/server.pem"\ntls_client_ca = "{state}/clients/ca.pem"\n'
            f'[[oidc]]\nidentity_provider = "acme"\nissuer = "{ISSUER}"\naudience = "nubila"\njwks = "keys.json"\n'
        )
        cloud = wiring.open_cloud(state, replace(wiring.settings(state), bcrypt_rounds=4))
        passwords = wiring.first_start(cloud)
        assert passwords is not None
        cloud.store.close()
        self.socket = socket.create_server(("127.0.0.1", 0))
        self.socket.set_inheritable(True)
        self.url = f"https://localhost:{self.socket.getsockname()[1]}/v3"
        command = [sys.executable, "-m", "nubila.apps.process", "server", "--state", str(state)]
        with (state / "out.log").open("ab") as out:
            self.process = subprocess.Popen(
                [*command, "--fds", f"main={self.socket.fileno()}", "--parent", str(os.getpid())],
                stdin=subprocess.DEVNULL, stdout=out, stderr=out, pass_fds=(self.socket.fileno(),),
            )  # fmt: skip
        place = {"user_domain_id": "default", "project_domain_id": "default", "project_name": "admin"}
        self.admin = self.session(v3.Password(self.url, username="admin", password=passwords["admin"], **place))

    def _signed(self, name: str, by: pki.Authority, *, names: list[str], server: bool = False, file: str = "") -> Path:
        key, path = pki.new_key(), self.state / f"{file or name}.pem"
        pki.private_write(path, by.sign(name, key.public_key(), server=server, names=names) + pki.key_pem(key))
        return path

    def certificate(self, name: str, file: str) -> Path:
        """A new certificate for this client, with its key."""
        return self._signed(name, self.clients, names=[name], file=file)

    def session(self, auth: Any, cert: Path | None = None) -> session.Session:
        return session.Session(auth, verify=self.verify, cert=str(cert) if cert else None, timeout=60)

    def do(self, method: str, path: str, body: Any = None) -> Any:
        got = self.admin.request(f"{self.url}{path}", method, json=body)
        return got.json() if got.content else None


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    made = World(tmp_path_factory.mktemp("tls"))
    yield made
    made.process.terminate()
    made.process.wait(20)
    made.socket.close()


def projects(found: session.Session, url: str) -> set[str]:
    return {p["name"] for p in found.get(f"{url}/auth/projects").json()["projects"]}


def test_openid_connect(world: World) -> None:
    roles = [{"name": "member"}]
    local = [{"user": {"name": "{0}"}}, {"projects": [{"name": "guests", "roles": roles}]}]
    rules = {"mapping": {"rules": [{"local": local, "remote": [{"type": "OIDC-sub"}]}]}}
    world.do("PUT", "/OS-FEDERATION/mappings/acme", rules)
    idp = world.do("PUT", "/OS-FEDERATION/identity_providers/acme", {"identity_provider": {"enabled": True}})
    path = "/OS-FEDERATION/identity_providers/acme/protocols/openid"
    world.do("PUT", path, {"protocol": {"mapping_id": "acme"}})
    now = int(time.time())
    token = jwt.encode(
        {"iss": ISSUER, "aud": "nubila", "sub": "ann", "iat": now, "exp": now + 600}, KEY, algorithm="ES256"
    )
    scope = {"project_name": "guests", "project_domain_id": idp["identity_provider"]["domain_id"]}
    auth = v3.OidcAccessToken(world.url, "acme", "openid", access_token=token, **scope)
    found = world.session(auth)
    assert projects(found, world.url) == {"guests"}
    assert auth.get_access(found).project_name == "guests"
    assert auth.get_access(found).is_federated
    bad = v3.OidcAccessToken(world.url, "acme", "openid", access_token=token[:-4] + "AAAA")
    with pytest.raises(exceptions.Unauthorized):
        world.session(bad).get_token()


def test_oauth2_by_secret(world: World) -> None:
    me = world.admin.get_user_id()
    body = {"application_credential": {"name": "robot", "secret": "r0bot"}}
    made = world.do("POST", f"/users/{me}/application_credentials", body)["application_credential"]
    endpoint = f"{world.url}/OS-OAUTH2/token"
    auth = v3.OAuth2ClientCredential(
        world.url, endpoint, oauth2_client_id=made["id"], oauth2_client_secret="r0bot"
    )  # fmt: skip
    assert "admin" in projects(world.session(auth), world.url)


@pytest.mark.req("A/ID-30", "A/ID-40")
def test_oauth2_by_certificate(world: World) -> None:
    user = {"user": {"name": "{0}", "domain": {"id": "default"}}}
    rules = [{"local": [user], "remote": [{"type": "SSL_CLIENT_SUBJECT_DN_CN"}]}]
    world.do("PUT", "/OS-FEDERATION/mappings/oauth2_mapping", {"mapping": {"rules": rules}})
    project = world.do("POST", "/projects", {"project": {"name": "mtls"}})["project"]["id"]
    body = {"user": {"name": "client01", "default_project_id": project}}
    client = world.do("POST", "/users", body)["user"]["id"]
    member = world.do("GET", "/roles?name=member")["roles"][0]["id"]
    world.do("PUT", f"/projects/{project}/users/{client}/roles/{member}")
    endpoint = f"{world.url}/OS-OAUTH2/token"
    auth = v3.OAuth2mTlsClientCredential(world.url, endpoint, client)
    mine, other = world.certificate("client01", "mine"), world.certificate("client01", "other")
    found = world.session(auth, mine)
    assert projects(found, world.url) == {"mtls"}
    token = found.get_token()
    for cert, status in ((mine, 200), (None, 401), (other, 401)):
        plain = session.Session(verify=world.verify, cert=str(cert) if cert else None)
        got = plain.get(f"{world.url}/auth/projects", headers={"X-Auth-Token": token}, raise_exc=False)
        assert got.status_code == status
