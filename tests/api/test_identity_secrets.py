"""Credentials encrypted at rest with rotating keys; configuration of domains with its secrets."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from typing import Any

import pytest
import sqlalchemy as sa

from nubila.core.db import Reader
from nubila.services.identity import credential_keys, credentials, domain_config
from nubila.testing.cloud import Response, TestCloud


@pytest.fixture(scope="module")
def cloud(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestCloud]:
    made = TestCloud(tmp_path_factory.mktemp("cloud"), hosts=0)
    yield made
    made.close()


def user_id(cloud: TestCloud, name: str) -> str:
    id: str = cloud.request("GET", f"/v3/users?name={name}").json["users"][0]["id"]
    return id


def make(cloud: TestCloud, **attrs: Any) -> Response:
    return cloud.request("POST", "/v3/credentials", {"credential": attrs})


def stored(cloud: TestCloud) -> str:
    """Everything the database holds, as text."""
    with cloud.cloud.store.read() as reader:
        return repr([_all(reader, name) for name in ("credential", "domain_config")])


def _all(reader: Reader, table: str) -> list[Any]:
    return reader.rows(sa.select(sa.text("*")).select_from(sa.text(table)))


# --- credentials ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("type", ["totp", "cert", "whatever"])
def test_blob_is_shown_but_not_stored(cloud: TestCloud, type: str) -> None:
    demo = user_id(cloud, "demo")
    made = make(cloud, user_id=demo, type=type, blob="GEZDGNBVGY3TQOJQ")
    assert made.status == 201
    id = made.json["credential"]["id"]
    assert not {"encrypted_blob", "key_hash"} & set(made.json["credential"])
    assert "GEZDGNBVGY3TQOJQ" not in stored(cloud)
    url = f"/v3/credentials/{id}"
    assert cloud.request("GET", url).json["credential"]["blob"] == "GEZDGNBVGY3TQOJQ"
    listed = cloud.request("GET", f"/v3/credentials?type={type}&user_id={demo}").json["credentials"]
    assert [c["blob"] for c in listed] == ["GEZDGNBVGY3TQOJQ"]
    changed = cloud.request("PATCH", url, {"credential": {"blob": "новый"}})
    assert changed.json["credential"]["blob"] == "новый"
    with cloud.cloud.store.read() as reader:
        assert credentials.secrets(cloud.cloud, reader, demo, type) == ["новый"]
    assert cloud.request("PATCH", url, {"credential": {"type": "x" + type}}).json["credential"]["blob"] == "новый"
    assert cloud.request("DELETE", url).status == 204


@pytest.mark.parametrize(
    ("attrs", "status"),
    [
        ({"blob": "x", "type": "cert"}, 400),
        ({"user_id": "none", "blob": "x", "type": "cert"}, 404),
        ({"blob": "x", "type": "ec2", "project_id": "p"}, 400),
        ({"blob": "{}", "type": "ec2", "project_id": "p"}, 400),
        ({"blob": '{"access": 5}', "type": "ec2", "project_id": "p"}, 400),
        ({"blob": '{"access": "a", "secret": "b"}', "type": "ec2"}, 400),
        ({"blob": None, "type": "cert"}, 400),
    ],
)
def test_credential_refusals(cloud: TestCloud, attrs: dict[str, Any], status: int) -> None:
    attrs = {"user_id": user_id(cloud, "demo"), **attrs} if "project_id" in attrs or attrs["blob"] is None else attrs
    if attrs.get("type") == "ec2":
        attrs.setdefault("user_id", user_id(cloud, "demo"))
    assert make(cloud, **attrs).status == status


def test_keys_rotate_without_losing_a_secret(cloud: TestCloud) -> None:
    demo = user_id(cloud, "demo")
    ids = [make(cloud, user_id=demo, type="turn", blob=f"secret-{i}").json["credential"]["id"] for i in range(3)]
    config = {"config": {"ldap": {"url": "ldap://one", "password": "hush"}}}
    assert cloud.request("PUT", "/v3/domains/default/config", config).status == 201
    where = credential_keys.directory(cloud.cloud)
    assert {n: (where / n).stat().st_mode & 0o777 for n in os.listdir(where)} == {"0": 0o600, "1": 0o600}
    for turn in range(3):
        assert credential_keys.rotate(cloud.cloud) == turn + 2
        with pytest.raises(credential_keys.RotationRefused, match="migrate"):
            credential_keys.rotate(cloud.cloud)
        assert credential_keys.migrate(cloud.cloud) >= 4
        assert credential_keys.migrate(cloud.cloud) == 0
        seen = [cloud.request("GET", f"/v3/credentials/{id}").json["credential"]["blob"] for id in ids]
        assert seen == ["secret-0", "secret-1", "secret-2"]
        with cloud.cloud.store.read() as reader:
            assert domain_config.read(cloud.cloud, reader, "default")["ldap"]["password"] == "hush"
    assert sorted(os.listdir(where)) == ["0", "3", "4"]
    assert cloud.request("DELETE", "/v3/domains/default/config").status == 204


def test_missing_keys_are_said_and_the_last_good_stay(cloud: TestCloud) -> None:
    from dataclasses import replace

    demo = user_id(cloud, "demo")
    id = make(cloud, user_id=demo, type="kept", blob="kept").json["credential"]["id"]
    where = credential_keys.directory(cloud.cloud)
    away = where.with_name("away")
    where.rename(away)
    try:
        credential_keys._kept(cloud.cloud).next = 0.0
        assert cloud.request("GET", f"/v3/credentials/{id}").json["credential"]["blob"] == "kept"
        assert "keys/credential" in (credential_keys.problem(cloud.cloud) or "")
        fresh = replace(cloud.cloud, memory={**cloud.cloud.memory})
        fresh.memory.pop("identity.credential_keys")
        with pytest.raises(Exception, match="cannot be read") as refused:
            credential_keys.keys(fresh)
        assert refused.value.status == 503  # type: ignore[attr-defined]
    finally:
        away.rename(where)
    assert credential_keys.problem(cloud.cloud) is None


def test_broken_key_is_named(cloud: TestCloud, tmp_path: Any) -> None:
    (tmp_path / "1").write_text("nonsense")
    with pytest.raises(Exception, match=r"/1 is not a Fernet key"):
        credential_keys.read(tmp_path)


# --- domain configuration ------------------------------------------------------------------------------------------

LDAP = {"url": "ldap://u:%(password)s@host", "user": "cn=admin", "password": "s3cret", "use_tls": True}


@pytest.fixture
def domain(cloud: TestCloud) -> Iterator[str]:
    id = cloud.request("POST", "/v3/domains", {"domain": {"name": "configured"}}).json["domain"]["id"]
    yield f"/v3/domains/{id}"
    cloud.request("PATCH", f"/v3/domains/{id}", {"domain": {"enabled": False}})
    assert cloud.request("DELETE", f"/v3/domains/{id}").status == 204
    assert id not in stored(cloud)


def test_secret_options_are_never_shown(cloud: TestCloud, domain: str) -> None:
    url = f"{domain}/config"
    assert cloud.request("GET", url).status == 404
    got = cloud.request("PUT", url, {"config": {"identity": {"driver": "ldap"}, "ldap": LDAP}})
    assert got.status == 201
    assert b"s3cret" not in got.body
    shown = {k: v for k, v in LDAP.items() if k != "password"}
    assert got.json["config"] == {"identity": {"driver": "ldap"}, "ldap": shown}
    assert cloud.request("GET", f"{url}/ldap").json["config"] == {"ldap": shown}
    assert cloud.request("GET", f"{url}/ldap/url").json["config"] == {"url": LDAP["url"]}
    assert cloud.request("GET", f"{url}/ldap/password").status == 404
    assert "s3cret" not in stored(cloud)
    with cloud.cloud.store.read() as reader:
        found = domain_config.read(cloud.cloud, reader, domain.rpartition("/")[2])
        assert found["ldap"]["url"] == "ldap://u:s3cret@host"
        assert found["ldap"]["password"] == "s3cret"
        assert found["ldap"]["use_tls"] is True
        assert domain_config.read(cloud.cloud, reader, "none") == {}
    assert cloud.request("PUT", url, {"config": {"identity": {"driver": "sql"}}}).status == 200
    assert cloud.request("GET", f"{url}/ldap").status == 404


def test_domain_config_changes_part_by_part(cloud: TestCloud, domain: str) -> None:
    url = f"{domain}/config"
    cloud.request("PUT", url, {"config": {"ldap": LDAP}})
    got = cloud.request("PATCH", url, {"config": {"ldap": {"suffix": "dc=x"}, "identity": {"driver": "ldap"}}})
    assert (got.status, got.json["config"]["ldap"]["suffix"]) == (200, "dc=x")
    got = cloud.request("PATCH", f"{url}/ldap", {"config": {"ldap": {"suffix": "dc=y"}}})
    assert got.json["config"]["ldap"]["suffix"] == "dc=y"
    got = cloud.request("PATCH", f"{url}/ldap/suffix", {"config": {"suffix": "dc=z"}})
    assert got.json["config"]["ldap"]["suffix"] == "dc=z"
    for part, body, status in (
        ("/ldap", {"identity": {"driver": "sql"}}, 403),
        ("/ldap/suffix", {"url": "x"}, 403),
        ("/ldap/user_filter", {"user_filter": "x"}, 404),
        ("/ldap/nonsense", {"nonsense": "x"}, 403),
        ("/nonsense", {"nonsense": {"a": "x"}}, 403),
        ("", {}, 403),
        ("", {"ldap": {}}, 403),
        ("", {"ldap": "x"}, 403),
        ("", {"ldap": {"url": {"a": 1}}}, 400),
    ):
        assert cloud.request("PATCH", url + part, {"config": body}).status == status, (part, body)
    assert cloud.request("PATCH", url, {"conf": {}}).status == 400
    assert cloud.request("DELETE", f"{url}/ldap/suffix").status == 204
    assert cloud.request("DELETE", f"{url}/ldap/suffix").status == 404
    assert cloud.request("DELETE", f"{url}/ldap").status == 204
    assert cloud.request("DELETE", f"{url}/ldap").status == 404
    assert cloud.request("GET", url).json["config"] == {"identity": {"driver": "ldap"}}
    assert cloud.request("DELETE", url).status == 204
    assert cloud.request("GET", url).status == 404


def test_domain_config_defaults_and_strangers(cloud: TestCloud) -> None:
    whole = cloud.request("GET", "/v3/domains/config/default").json["config"]
    assert whole["ldap"]["user_objectclass"] == "inetOrgPerson"
    assert "password" not in json.dumps(sorted(whole["ldap"])).replace("user_pass", "")
    assert cloud.request("GET", "/v3/domains/config/ldap/default").json["config"] == {"ldap": whole["ldap"]}
    assert cloud.request("GET", "/v3/domains/config/ldap/url/default").json["config"] == {"url": "ldap://localhost"}
    assert cloud.request("GET", "/v3/domains/config/ldap/password/default").status == 403
    assert cloud.request("GET", "/v3/domains/config/other/default").status == 403
    assert cloud.request("PUT", "/v3/domains/none/config", {"config": {"ldap": LDAP}}).status == 404
    demo = cloud.token("demo")
    for method, url in (
        ("GET", "/v3/domains/default/config"), ("GET", "/v3/domains/none/config"), ("DELETE", "/v3/domains/x/config"),
        ("GET", "/v3/domains/config/default"),
    ):  # fmt: skip
        assert cloud.request(method, url, token=demo).status == 403
    compliance = "/v3/domains/default/config/security_compliance"
    assert set(cloud.request("GET", compliance, token=demo).json["config"]["security_compliance"]) == {
        "password_regex", "password_regex_description",
    }  # fmt: skip
    assert cloud.request("GET", f"{compliance}/password_regex", token=demo).status == 200
    assert cloud.request("GET", f"{compliance}/lockout_duration", token=demo).status == 403
