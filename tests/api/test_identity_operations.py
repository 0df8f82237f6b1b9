"""Operating Identity: addresses in the catalogue, proxies, first things made again, keys."""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from urllib.parse import quote

import pytest
import sqlalchemy as sa
import yaml
from click.testing import CliRunner, Result

from nubila.apps import cli, doctor, first, lifecycle, supervisor, tls, wiring
from nubila.core import pki
from nubila.core.config import BadSetting, Sections, Settings, load
from nubila.core.keyfiles import KeysError
from nubila.edge.forwarded import Proxies, der
from nubila.services.identity import kinds
from nubila.services.identity.revision import bump
from nubila.testing.cloud import Response, TestCloud
from nubila.testing.started import free_port

FORGED = {"X-Forwarded-Host": "evil.example.org", "X-Forwarded-Proto": "https", "X-Forwarded-For": "192.0.2.1"}


def until(condition: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline, f"never: {what}"
        time.sleep(0.02)


def login(cloud: TestCloud, **how: object) -> Response:
    body = {"auth": {
        "identity": {"methods": ["password"], "password": {
            "user": {"name": "admin", "domain": {"id": "default"}, "password": cloud.passwords["admin"]}}},
        "scope": {"project": {"name": "admin", "domain": {"id": "default"}}},
    }}  # fmt: skip
    got = cloud.request("POST", "/v3/auth/tokens", body, token="", **how)  # type: ignore[arg-type]
    assert got.status == 201, got.body
    return got


def urls(got: Response) -> set[str]:
    return {e["url"].partition("/v")[0] for s in got.json["token"]["catalog"] for e in s["endpoints"]}


# --- the catalogue's host ---------------------------------------------------------------------------------------------


def test_the_catalogue_follows_the_name_the_client_used(cloud: TestCloud) -> None:
    for host in ("cloud.example.org", "10.1.2.3:5000", "[2001:db8::1]:5000"):
        assert all(u.startswith(f"http://{host}") for u in urls(login(cloud, headers={"host": host})))


def test_a_trusted_proxy_says_what_the_client_used(cloud: TestCloud) -> None:
    sent = {"X-Forwarded-Host": "a.example, api.example.org", "X-Forwarded-Proto": "https"}
    got = login(cloud, headers=sent, client="127.0.0.1")
    assert all(u.startswith("https://api.example.org") for u in urls(got))
    under = login(cloud, headers={**sent, "X-Forwarded-Prefix": "/cloud/"})
    assert all(u.startswith("https://api.example.org/cloud") for u in urls(under))
    project = cloud.request("GET", "/v3/projects", headers=sent).json["projects"][0]
    assert project["links"]["self"].startswith("https://api.example.org/v3/projects/")


def test_nobody_else_does(cloud: TestCloud) -> None:
    got = login(cloud, headers={"host": "10.0.0.5:5000", **FORGED}, client="192.0.2.77")
    assert all(u.startswith("http://10.0.0.5:5000") for u in urls(got))
    for junk in ("a b", "evil/../x", "x@y", "a\\b", ""):
        got = login(cloud, headers={"host": "10.0.0.5:5000", "X-Forwarded-Host": junk})
        assert all(u.startswith("http://10.0.0.5:5000") for u in urls(got))


def test_a_fixed_address_wins(tmp_path: Path) -> None:
    cloud = TestCloud(tmp_path / "c", public_url="https://cloud.example.org/")
    try:
        for headers in ({}, {"host": "other:1"}, FORGED):
            assert all(u.startswith("https://cloud.example.org") and "//" not in u[8:] for u in
                       urls(login(cloud, headers=headers)))  # fmt: skip
        refused = cloud.request("GET", "/v3/projects", token="", headers=FORGED)
        assert refused.headers["www-authenticate"] == 'Keystone uri="https://cloud.example.org/v3"'
    finally:
        cloud.close()


@pytest.mark.req("A/ID-17")
def test_places_in_addresses_are_filled(cloud: TestCloud) -> None:
    service = cloud.request("POST", "/v3/services", {"service": {"type": "volume", "name": "v"}}).json["service"]["id"]
    for interface, url in (("public", "http://h/$(tenant_id)s"), ("internal", "http://h/%(project_id)s/%(user_id)s")):
        body = {"endpoint": {"service_id": service, "interface": interface, "region": "RegionOne", "url": url}}
        assert cloud.request("POST", "/v3/endpoints", body).status == 201
    wrong = {"endpoint": {"service_id": service, "interface": "admin", "url": "http://h/$(colour)s"}}
    assert cloud.request("POST", "/v3/endpoints", wrong).status == 400
    token = login(cloud).json["token"]
    project, user = token["project"]["id"], token["user"]["id"]
    found = {e["interface"]: e["url"] for s in token["catalog"] if s["id"] == service for e in s["endpoints"]}
    assert found == {"public": f"http://h/{project}", "internal": f"http://h/{project}/{user}"}


@pytest.mark.req("A/ID-16", "C/IDN-05")
def test_a_service_user_sees_everybodys_things(cloud: TestCloud) -> None:
    roles = {r["name"]: r["id"] for r in cloud.request("GET", "/v3/roles").json["roles"]}
    project = cloud.request("GET", "/v3/projects?name=service").json["projects"][0]["id"]
    user = {"name": "neutron", "password": "a-password", "email": "n@example.org"}
    made = cloud.request("POST", "/v3/users", {"user": user}).json["user"]["id"]
    url = f"/v3/projects/{project}/users/{made}/roles/{roles['admin']}"
    assert cloud.request("PUT", url).status == 204
    network = cloud.request("POST", "/network/v2.0/networks", {"network": {"name": "n"}}, token=cloud.token("demo"))
    seen = cloud.request("GET", "/network/v2.0/networks", token=cloud.login("neutron", "a-password", "service"))
    assert network.json["network"]["id"] in {n["id"] for n in seen.json["networks"]}


@pytest.mark.req("C/IDN-10")
def test_only_administrators_make_things_for_others(cloud: TestCloud) -> None:
    admin = cloud.request("GET", "/v3/projects?name=admin").json["projects"][0]["id"]
    demo = cloud.request("GET", "/v3/projects?name=demo").json["projects"][0]["id"]
    own = cloud.request("POST", "/network/v2.0/networks", {"network": {"name": "n"}}, token=cloud.token("demo"))
    assert own.json["network"]["project_id"] == demo
    body = {"network": {"name": "n", "tenant_id": admin}}
    refused = cloud.request("POST", "/network/v2.0/networks", body, token=cloud.token("demo"))
    assert refused.status == 400  # the row infers 403; Neutron itself says 400
    assert "requires admin privileges" in refused.json["NeutronError"]["message"]
    body = {"network": {"name": "n", "tenant_id": demo}}
    assert cloud.request("POST", "/network/v2.0/networks", body).json["network"]["project_id"] == demo


# --- who may speak for the client -------------------------------------------------------------------------------------


def seen(settings: Settings, client: str, **headers: str):  # type: ignore[no-untyped-def]
    named = {k.replace("_", "-"): v for k, v in headers.items()}
    return Proxies(settings).seen({"client": (client, 1), "scheme": "http"}, named)


def test_the_client_is_the_last_address_that_is_no_proxy_of_ours() -> None:
    settings = Settings(trusted_proxies=("10.0.0.0/8", "::1"))
    assert seen(settings, "10.0.0.1", x_forwarded_for="1.1.1.1, 192.0.2.9, 10.0.0.2").peer == "192.0.2.9"
    assert seen(settings, "::ffff:10.0.0.1", x_forwarded_for="192.0.2.9").peer == "192.0.2.9"
    assert seen(settings, "::1", x_forwarded_for="2001:db8::1").peer == "2001:db8::1"
    assert seen(settings, "10.0.0.1", x_forwarded_for="unix").peer == "10.0.0.1"
    assert seen(settings, "10.0.0.1", x_forwarded_for="host:a#b, 10.0.0.3").peer == "10.0.0.3"
    assert seen(settings, "192.0.2.1", x_forwarded_for="1.1.1.1").peer == "192.0.2.1"
    assert seen(settings, "192.0.2.1").proxied is False
    assert seen(settings, "10.9.9.9").proxied is True


def test_a_proxy_passes_the_client_certificate_on(tmp_path: Path) -> None:
    authority = pki.Authority(tmp_path, "c")
    pem = authority.pem.decode()
    raw = der(pem)
    assert raw is not None
    told = Settings(client_cert_header="X-SSL-Client-Cert")
    for text in (pem, pem.replace("\n", " "), quote(pem), base64.b64encode(raw).decode()):
        assert seen(told, "127.0.0.1", x_ssl_client_cert=text).client_cert == raw
        assert seen(told, "192.0.2.1", x_ssl_client_cert=text).client_cert is None
        assert seen(Settings(), "127.0.0.1", x_ssl_client_cert=text).client_cert is None
    for junk in ("", "(null)", "AAAA", "%zz", "-----BEGIN CERTIFICATE-----"):
        assert seen(told, "127.0.0.1", x_ssl_client_cert=junk).client_cert is None


def test_proxies_are_addresses(tmp_path: Path) -> None:
    (tmp_path / "nubila.toml").write_text('trusted_proxies = ["the-proxy"]\n')
    with pytest.raises(BadSetting, match="trusted_proxies must be addresses or networks"):
        load(tmp_path / "nubila.toml", environ={})
    assert wiring.settings(tmp_path / "none").trusted_proxies == ("127.0.0.0/8", "::1")


# --- first things made again ------------------------------------------------------------------------------------------


@pytest.fixture
def stopped(tmp_path: Path) -> Iterator[TestCloud]:
    """A cloud with the files that `nubila up` leaves, for commands that open it themselves."""
    made = TestCloud(tmp_path / "cloud", hosts=0)
    first.write_clouds(made.state, "http://127.0.0.1:5000/v3", made.passwords, "RegionOne")
    (made.state / "run" / "options.json").write_text('{"bcrypt_rounds": 4}')
    yield made
    made.close()


def run(cloud: TestCloud, *arguments: str, env: dict[str, str] | None = None) -> Result:
    command = [*arguments, "--state", str(cloud.state)]
    return CliRunner().invoke(cli.main, command, env={"OS_BOOTSTRAP_PASSWORD": None, **(env or {})})


def break_everything(cloud: TestCloud) -> None:
    """What an administrator may do to himself."""
    with cloud.cloud.store.write() as tx:
        for statement in (
            sa.delete(kinds.ASSIGNMENT), sa.delete(kinds.Endpoint.table), sa.delete(kinds.IMPLIED),
            sa.delete(kinds.Role.table).where(kinds.Role.table.c.name == "reader"),
            sa.update(kinds.User.table).values(enabled=False, password=None),
            sa.update(kinds.Project.table).values(enabled=False),
            sa.update(kinds.CatalogService.table).values(enabled=False),
        ):  # fmt: skip
            tx.execute(statement)
        bump(cloud.cloud, tx)


@pytest.mark.req("A/ID-02")
@pytest.mark.req("A/ID-59")
def test_bootstrap_repairs_what_locks_everybody_out(stopped: TestCloud) -> None:
    break_everything(stopped)
    said = run(stopped, "identity", "bootstrap", env={"OS_BOOTSTRAP_PASSWORD": "n3w-secret"})
    assert said.exit_code == 0, said.output
    for words in ("created role reader", "role member implies reader", "granted role admin to user admin on system",
                  "enabled user admin", "enabled project admin", "enabled domain Default", "enabled service keystone",
                  "created the public endpoint of keystone in RegionOne", "wrote the password into"):  # fmt: skip
        assert words in said.output
    assert "n3w-secret" not in said.output
    stopped.passwords["admin"] = "n3w-secret"
    stopped.cloud.memory.pop("identity", None)
    got = login(stopped)
    assert {r["name"] for r in got.json["token"]["roles"]} == {"admin", "manager", "member", "reader"}
    assert "http://127.0.0.1:5000" in urls(got)
    assert yaml.safe_load((stopped.state / "clouds.yaml").read_text())["clouds"]["nubila-admin"]["auth"][
        "password"
    ] == "n3w-secret"  # fmt: skip
    again = run(stopped, "identity", "bootstrap", "--keep-password")
    assert (again.exit_code, again.output) == (0, "everything was as it should be\n")


def test_bootstrap_makes_another_administrator_and_endpoints(stopped: TestCloud, tmp_path: Path) -> None:
    (tmp_path / "pw").write_text("0ther-secret\nnot this\n")
    said = run(
        stopped, "identity", "bootstrap", "--bootstrap-username", "root", "--bootstrap-project-name", "ops",
        "--role", "boss", "--region-id", "North", "--public-url", "https://id.example.org/v3",
        "--password-file", str(tmp_path / "pw"),
    )  # fmt: skip
    assert said.exit_code == 0, said.output
    token = stopped.login("root", "0ther-secret", "ops")
    shown = stopped.request("GET", "/v3/auth/tokens", token=token, headers={"X-Subject-Token": token}).json["token"]
    assert [r["name"] for r in shown["roles"]] == ["boss"]
    north = {e["interface"]: e["url"] for s in shown["catalog"] if s["type"] == "identity" for e in s["endpoints"]
             if e["region"] == "North"}  # fmt: skip
    assert north["public"] == "https://id.example.org/v3"
    assert set(north) == {"public", "internal", "admin"}


def test_bootstrap_of_a_password_without_one(stopped: TestCloud, tmp_path: Path) -> None:
    said = run(stopped, "identity", "bootstrap")
    assert said.exit_code == 2
    assert "no password was given: set OS_BOOTSTRAP_PASSWORD" in said.output
    said = run(stopped, "identity", "bootstrap", "--keep-password", "--user", "nobody")
    assert said.exit_code == 2
    assert "there is no user nobody yet" in said.output
    (tmp_path / "empty").write_text("\n")
    said = run(stopped, "identity", "bootstrap", "--password-file", str(tmp_path / "empty"))
    assert said.exit_code == 2
    assert "is empty; write the password there" in said.output


def test_a_new_password_ends_the_tokens_made_with_the_old_one(stopped: TestCloud) -> None:
    token = stopped.login("admin", stopped.passwords["admin"], "admin")
    assert stopped.request("GET", "/v3/projects", token=token).status == 200
    assert run(stopped, "identity", "bootstrap", env={"OS_BOOTSTRAP_PASSWORD": "x1-secret"}).exit_code == 0
    stopped.cloud.memory["identity"].next_check = 0.0  # instead of waiting a quarter of a second
    assert stopped.request("GET", "/v3/projects", token=token).status == 401


# --- keys -------------------------------------------------------------------------------------------------------------


@pytest.mark.req("A/ID-23")
def test_keys_are_rotated_and_listed(stopped: TestCloud) -> None:
    token = stopped.token()
    for kind in ("fernet", "credential"):
        before = json.loads(run(stopped, "key", "list", "--json").output)
        mine = [(k["number"], k["for"], k["mode"]) for k in before if k["kind"] == kind]
        assert mine == [(0, "staged", "0600"), (1, "primary", "0600")]
        said = run(stopped, "key", "rotate", "--kind", kind)
        assert said.exit_code == 0, said.output
        assert f"{kind}: key 2 is the primary" in said.output
        after = json.loads(run(stopped, "key", "list", "--json").output)
        now = [(k["number"], k["for"]) for k in after if k["kind"] == kind]
        assert now == [(0, "staged"), (1, "reads older ones"), (2, "primary")]
    trail = [json.loads(x) for x in (stopped.state / "log" / "audit.log").read_text().splitlines()]
    assert [(e["action"], e["resource_info"]) for e in trail[-2:]] == [
        ("rotated.key", "fernet"), ("rotated.key", "credential"),
    ]  # fmt: skip
    assert "tokens may end before their time" in run(stopped, "key", "rotate").output
    assert stopped.request("GET", "/v3/projects", token=token).status == 200
    assert (stopped.state / "keys" / "fernet" / "2").read_text() not in run(stopped, "key", "list").output


def test_jws_keys_are_set_up_and_rotated(stopped: TestCloud) -> None:
    said = run(stopped, "key", "rotate", "--kind", "jws")
    assert said.exit_code == 2
    assert "nubila key setup --kind jws" in said.output
    assert run(stopped, "key", "setup", "--kind", "jws").exit_code == 0
    assert run(stopped, "key", "rotate", "--kind", "jws").output.startswith("jws: key 2 is the primary")
    found = [k for k in json.loads(run(stopped, "key", "list", "--json").output) if k["kind"] == "jws"]
    assert [(k["number"], k["for"]) for k in found] == [(1, "reads older ones"), (2, "primary"), (3, "staged")]


@pytest.mark.parametrize("damage", ["missing", "empty", "garbage", "unreadable"])
@pytest.mark.req("A/ID-53")
def test_keys_that_cannot_be_used(stopped: TestCloud, damage: str) -> None:
    """A start is refused with a sentence; a running process keeps the keys it has, and says so."""
    directory = stopped.state / "keys" / "fernet"
    token = stopped.login("admin", stopped.passwords["admin"], "admin")
    if damage == "missing":
        shutil.rmtree(directory)
    elif damage == "empty":
        for path in directory.iterdir():
            path.unlink()
    elif damage == "garbage":
        (directory / "1").write_text("x")
    else:  # the tests may run as root, whom no mode stops
        (directory / "1").unlink()
        (directory / "1").mkdir()
    assert stopped.request("GET", "/v3/projects", token=token).status == 200
    with pytest.raises(KeysError) as refused:
        wiring.open_cloud(stopped.state, replace(wiring.settings(stopped.state), bcrypt_rounds=4))
    assert str(refused.value).startswith("token keys: ")
    assert str(directory) in str(refused.value)
    assert "\n" not in str(refused.value)
    said = run(stopped, "identity", "bootstrap", "--keep-password")
    assert said.exit_code == 2
    assert said.output.startswith("nubila: token keys: ")
    with pytest.raises(lifecycle.Cannot, match="nubila key setup"):
        lifecycle.up(stopped.state, {"gear": "simulated", "listen": f"127.0.0.1:{free_port()}"})
    process = subprocess.run(
        [sys.executable, "-m", "nubila.apps.process", "controller", "--state", str(stopped.state)],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert process.returncode == 2
    assert "cannot start: token keys: " in process.stderr
    assert "Traceback" not in process.stderr
    until(lambda: stopped.cloud.keys.problem or stopped.cloud.keys.read(token) is None, "the running process noticed")
    assert "the keys read before stay in use" in (stopped.cloud.keys.problem or "")
    assert stopped.request("GET", "/v3/projects", token=token).status == 200
    assert any("keys" in c.name and not c.ok for c in doctor.identity(stopped.state, None))


def test_a_rotation_that_was_killed_is_finished(stopped: TestCloud) -> None:
    directory = stopped.state / "keys" / "fernet"
    (directory / "0").rename(directory / "2")  # killed here
    token = stopped.login("admin", stopped.passwords["admin"], "admin")
    assert [c.fix for c in doctor.identity(stopped.state, None) if not c.ok] == [
        f"nubila key setup --kind fernet --state {stopped.state}"
    ]
    assert run(stopped, "key", "rotate").exit_code == 0
    assert all(c.ok for c in doctor.identity(stopped.state, None))
    assert sorted(p.name for p in directory.iterdir()) == ["0", "1", "2"]
    assert stopped.request("GET", "/v3/projects", token=token).status == 200


# --- doctor -----------------------------------------------------------------------------------------------------------


def wrong(cloud: TestCloud) -> dict[str, str]:
    return {c.name: f"{c.seen} -> {c.fix}" for c in doctor.identity(cloud.state, cloud.cloud) if not c.ok}


@pytest.mark.req("A/ID-52")
def test_the_doctor_looks_at_identity(stopped: TestCloud, tmp_path: Path) -> None:
    assert wrong(stopped) == {}
    key = stopped.state / "keys" / "fernet" / "1"
    key.chmod(0o644)
    assert wrong(stopped) == {"fernet keys are private": f"{key} -> chmod go= {key}"}
    key.chmod(0o600)
    os.utime(key, (0, time.time() - 200 * 86400))
    assert "200 days old -> nubila key rotate" in wrong(stopped)["fernet keys"]
    os.utime(key)
    half = stopped.state / "keys" / "credential" / ".new-0"
    half.touch()
    assert wrong(stopped)["credential keys are whole"].endswith(f"rm {half}")
    half.unlink()
    (stopped.state / "keys" / "credential" / "1").write_text("x")
    assert "is not a Fernet key" in wrong(stopped)["credential keys"]


def test_the_doctor_looks_at_certificates(stopped: TestCloud) -> None:
    stopped.cloud.settings = replace(stopped.cloud.settings, tls_cert="auto", public_url="https://other.example")
    assert "cannot be read" in wrong(stopped)["TLS certificate"]
    tls.make_own(replace(stopped.cloud.settings, public_url=""), stopped.state, lambda listen: ["localhost"])
    assert set(wrong(stopped)) == {"TLS certificate names the public URL"}


def test_the_doctor_follows_the_catalogue(stopped: TestCloud, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisor, "running", lambda state: 1)
    stopped.cloud.settings = replace(stopped.cloud.settings, public_url=f"http://127.0.0.1:{free_port()}")
    assert "Connection refused" in wrong(stopped)["catalogue"]
    with stopped.cloud.store.write() as tx:
        tx.execute(sa.delete(kinds.Endpoint.table))
    assert "no public endpoint of Identity" in wrong(stopped)["catalogue"]


def test_the_doctor_asks_directories(stopped: TestCloud) -> None:
    made = stopped.request("POST", "/v3/domains", {"domain": {"name": "office"}})
    assert made.status == 201
    url = f"ldap://127.0.0.1:{free_port()}"
    stopped.cloud.settings = replace(
        stopped.cloud.settings, ldap=Sections({"office": {"url": url, "suffix": "dc=example"}})
    )
    assert "directory of domain office" in wrong(stopped)
