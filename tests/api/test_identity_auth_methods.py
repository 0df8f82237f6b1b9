"""Methods beside password, token and application credential; several factors with receipts. API: /v3/auth/tokens."""

from __future__ import annotations

import base64
import contextlib
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.hazmat.primitives.twofactor.totp import TOTP
from cryptography.x509.oid import NameOID

from nubila.core import clock
from nubila.core.payload import new_payload, pack
from nubila.services.identity import receipts
from nubila.testing.cloud import Response, TestCloud

SECRET = "GEZDGNBVGY3TQOJQGEZDGNBVGY3TQOJQ"
PLEASE = "Authentication is required: log in with valid credentials."


@pytest.fixture(scope="module")
def cloud(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestCloud]:
    made = TestCloud(tmp_path_factory.mktemp("cloud"), hosts=0)
    yield made
    made.close()


@contextlib.contextmanager
def setting(cloud: TestCloud, **changes: Any) -> Iterator[None]:
    """The cloud as if it had been started with these settings."""
    before = cloud.cloud.settings
    cloud.cloud.settings = replace(before, **changes)
    try:
        yield
    finally:
        cloud.cloud.settings = before


def make_user(cloud: TestCloud, name: str, **attrs: Any) -> dict[str, Any]:
    got = cloud.request("POST", "/v3/users", {"user": {"name": name, "password": "s3cret", **attrs}})
    assert got.status == 201, got.body
    found: dict[str, Any] = got.json["user"]
    return found


def add_totp(cloud: TestCloud, user: dict[str, Any], secret: str = SECRET) -> None:
    body = {"credential": {"type": "totp", "user_id": user["id"], "blob": secret}}
    assert cloud.request("POST", "/v3/credentials", body).status == 201


def code(secret: str = SECRET, ago: int = 0) -> str:
    """What an authenticator shows, by another implementation of RFC 6238."""
    totp = TOTP(base64.b32decode(secret), 6, hashes.SHA1(), 30, enforce_key_length=False)
    return totp.generate(int(clock.seconds(clock.now())) - 30 * ago).decode()


def auth(cloud: TestCloud, *methods: str, headers: dict[str, str] | None = None, **parts: Any) -> Response:
    """POST /v3/auth/tokens, unscoped."""
    body = {"auth": {"identity": {"methods": list(methods), **parts}, "scope": "unscoped"}}
    return cloud.request("POST", "/v3/auth/tokens", body, token="", headers=headers)


def password(user: dict[str, Any], text: str = "s3cret") -> dict[str, Any]:
    return {"user": {"id": user["id"], "password": text}}


def passcode(user: dict[str, Any], text: str) -> dict[str, Any]:
    return {"user": {"id": user["id"], "passcode": text}}


@pytest.fixture
def steady(monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock that stands still, so that no step of 30 s ends in the middle of a test."""
    at = clock.now()
    monkeypatch.setattr(clock, "now", lambda: at)


def test_passcode_is_good_once(cloud: TestCloud, steady: None) -> None:
    user = make_user(cloud, "totp-once")
    add_totp(cloud, user)
    got = auth(cloud, "totp", totp=passcode(user, code()))
    assert got.status == 201, got.body
    assert got.json["token"]["methods"] == ["totp"]
    again = auth(cloud, "totp", totp=passcode(user, code()))
    assert again.status == 401
    assert again.json["error"]["message"] == PLEASE


def test_passcode_by_name_and_of_the_step_before(cloud: TestCloud, steady: None) -> None:
    user = make_user(cloud, "totp-late")
    add_totp(cloud, user, "not base32!")
    add_totp(cloud, user, SECRET)
    who = {"name": "totp-late", "domain": {"id": "default"}}
    assert auth(cloud, "totp", totp={"user": {**who, "passcode": code(ago=2)}}).status == 401
    with setting(cloud, totp_included_previous_windows=0):
        assert auth(cloud, "totp", totp={"user": {**who, "passcode": code(ago=1)}}).status == 401
    assert auth(cloud, "totp", totp={"user": {**who, "passcode": code(ago=1)}}).status == 201
    assert auth(cloud, "totp", totp={"user": {**who, "passcode": code()}}).status == 201


@pytest.mark.parametrize("given", ["000000", "", "12345", "１２３４５６", "1" * 4000])
def test_wrong_passcodes(cloud: TestCloud, given: str) -> None:
    name = f"totp-wrong-{len(given)}-{given.isascii()}"
    user = make_user(cloud, name)
    assert auth(cloud, "totp", totp=passcode(user, given)).status == 401  # no credential at all
    add_totp(cloud, user, "MFRGGZDFMZTWQ2LK")
    if given != code("MFRGGZDFMZTWQ2LK"):
        assert auth(cloud, "totp", totp=passcode(user, given)).status == 401


def test_passcode_of_nobody_or_of_a_disabled_user(cloud: TestCloud, steady: None) -> None:
    user = make_user(cloud, "totp-off", enabled=False)
    add_totp(cloud, user)
    assert auth(cloud, "totp", totp=passcode(user, code())).status == 401
    assert auth(cloud, "totp", totp=passcode({"id": "nobody"}, code())).status == 401
    assert auth(cloud, "totp", totp={}).status == 400
    assert auth(cloud, "totp", totp={"user": {"passcode": "1"}}).status == 400


def test_two_factors_with_a_receipt(cloud: TestCloud, steady: None) -> None:
    rules = {"multi_factor_auth_rules": [["password", "totp"]], "multi_factor_auth_enabled": True}
    user = make_user(cloud, "mfa", options=rules)
    add_totp(cloud, user)
    first = auth(cloud, "password", password=password(user))
    assert first.status == 401
    assert set(first.json) == {"receipt", "required_auth_methods"}
    assert [sorted(rule) for rule in first.json["required_auth_methods"]] == [["password", "totp"]]
    shown = first.json["receipt"]
    assert shown["methods"] == ["password"]
    assert shown["user"] == {"id": user["id"], "name": "mfa", "domain": {"id": "default", "name": "Default"}}
    assert shown["issued_at"] < shown["expires_at"]
    receipt = first.headers["openstack-auth-receipt"]
    headers = {"Openstack-Auth-Receipt": receipt}
    assert cloud.request("GET", "/v3/auth/projects", token=receipt).status == 401  # a receipt is no token
    assert cloud.request("GET", "/v3/auth/tokens", headers={"X-Subject-Token": receipt}).status == 404
    assert auth(cloud, "password", password=password(user), headers=headers).status == 401
    second = auth(cloud, "totp", totp=passcode(user, code()), headers=headers)
    assert second.status == 201, second.body
    assert sorted(second.json["token"]["methods"]) == ["password", "totp"]
    both = auth(cloud, "password", "totp", password=password(user), totp=passcode(user, code(ago=1)))
    assert both.status == 201


def test_receipts_of_others_forged_and_late(cloud: TestCloud, steady: None, monkeypatch: pytest.MonkeyPatch) -> None:
    rules = {"multi_factor_auth_rules": [["password", "totp"], ["password", "nonsense", "totp"]]}
    user, other = make_user(cloud, "mfa-a", options=rules), make_user(cloud, "mfa-b", options=rules)
    for u in (user, other):
        add_totp(cloud, u)
    good = auth(cloud, "password", password=password(user)).headers["openstack-auth-receipt"]
    token = auth(cloud, "password", password=password(make_user(cloud, "mfa-none"))).headers["x-subject-token"]
    claims = pack(new_payload(user["id"], ("password",), 300.0))
    other_use = cloud.cloud.keys.seal(b"other" + claims)
    for bad in (good[:-2] + "AA", good[:20], "", "nonsense", token, other_use, cloud.cloud.keys.seal(claims)):
        got = auth(cloud, "totp", totp=passcode(user, code()), headers={"Openstack-Auth-Receipt": bad})
        assert got.status == 401, bad

    got = auth(cloud, "totp", totp=passcode(other, code()), headers={"Openstack-Auth-Receipt": good})
    assert got.status == 401
    assert "openstack-auth-receipt" not in got.headers
    monkeypatch.setattr(receipts, "LIFETIME_S", -1.0)
    late = auth(cloud, "password", password=password(user)).headers["openstack-auth-receipt"]
    got = auth(cloud, "totp", totp=passcode(user, code(ago=1)), headers={"Openstack-Auth-Receipt": late})
    assert got.status == 401


def test_receipt_ends_with_the_password(cloud: TestCloud, steady: None) -> None:
    user = make_user(cloud, "mfa-changed", options={"multi_factor_auth_rules": [["password", "totp"]]})
    add_totp(cloud, user)
    receipt = auth(cloud, "password", password=password(user)).headers["openstack-auth-receipt"]
    assert cloud.request("PATCH", f"/v3/users/{user['id']}", {"user": {"password": "0ther"}}).status == 200
    got = auth(cloud, "totp", totp=passcode(user, code()), headers={"Openstack-Auth-Receipt": receipt})
    assert got.status == 401


@pytest.mark.parametrize(
    "options",
    [
        {"multi_factor_auth_rules": [["password", "totp"]], "multi_factor_auth_enabled": False},
        {"multi_factor_auth_rules": [["of-another-cloud"]]},
        {"multi_factor_auth_rules": [["password"], ["totp", "password"]]},
        {"multi_factor_auth_rules": []},
    ],
)
def test_rules_that_one_password_satisfies(cloud: TestCloud, options: dict[str, Any]) -> None:
    user = make_user(cloud, f"mfa-free-{abs(hash(str(options)))}", options=options)
    assert auth(cloud, "password", password=password(user)).status == 201


def test_receipt_without_anything_in_common(cloud: TestCloud, steady: None) -> None:
    user = make_user(cloud, "mfa-apart", options={"multi_factor_auth_rules": [["password", "application_credential"]]})
    add_totp(cloud, user)
    got = auth(cloud, "totp", totp=passcode(user, code()))
    assert got.status == 401
    assert got.json["required_auth_methods"] == []


@pytest.mark.req("A/ID-29")
def test_user_named_by_a_trusted_proxy(cloud: TestCloud) -> None:
    alice = make_user(cloud, "alice")
    headers = {"X-Remote-User": "alice"}
    assert auth(cloud, "external", external={}, headers=headers).status == 401  # off by default
    with setting(cloud, remote_user_header="X-Remote-User"):
        got = auth(cloud, "external", external={}, headers=headers)
        assert got.status == 201, got.body
        assert got.json["token"]["user"]["id"] == alice["id"]
        assert got.json["token"]["methods"] == ["external"]
        assert auth(cloud, headers=headers).json["token"]["methods"] == ["external"]  # methods: []
        assert auth(cloud, "external", external={}).status == 401
        assert auth(cloud, "external", external={}, headers={"X-Remote-User": "nobody"}).status == 401
        both = auth(cloud, "password", password=password(alice), headers=headers)
        assert sorted(both.json["token"]["methods"]) == ["external", "password"]
        assert auth(cloud, "password", password=password(alice), headers={"X-Remote-User": "nobody"}).status == 201
        assert auth(cloud, "password", password=password(alice, "wrong"), headers=headers).status == 401
        other = make_user(cloud, "external-other")
        assert auth(cloud, "password", password=password(other), headers=headers).status == 401  # two users at once


@pytest.mark.req("A/ID-29")
def test_header_of_strangers_is_ignored(cloud: TestCloud) -> None:
    make_user(cloud, "forged")
    body = {"auth": {"identity": {"methods": ["external"], "external": {}}}}
    headers = {"X-Remote-User": "forged"}
    with setting(cloud, remote_user_header="X-Remote-User", trusted_proxies=("127.0.0.1",)):
        for client, status in (("203.0.113.9", 401), ("127.0.0.1", 201)):
            got = cloud.request("POST", "/v3/auth/tokens", body, token="", headers=headers, client=client)
            assert got.status == status, client


def test_domain_named_by_a_trusted_proxy(cloud: TestCloud) -> None:
    domain = cloud.request("POST", "/v3/domains", {"domain": {"name": "ext"}}).json["domain"]
    user = make_user(cloud, "ext-user", domain_id=domain["id"])
    headers = {"X-Remote-User": "ext-user", "X-Remote-Domain": "ext"}
    with setting(cloud, remote_user_header="X-Remote-User", remote_domain_header="X-Remote-Domain"):
        assert auth(cloud, "external", external={}, headers=headers).json["token"]["user"]["id"] == user["id"]
        assert auth(cloud, "external", external={}, headers={**headers, "X-Remote-Domain": "nil"}).status == 401


@pytest.mark.req("A/ID-30")
def test_common_name_of_a_client_certificate(cloud: TestCloud) -> None:
    user = make_user(cloud, "cert-user")
    body = {"auth": {"identity": {"methods": ["external"], "external": {}}}}
    der = certificate("cert-user")
    assert cloud.request("POST", "/v3/auth/tokens", body, token="", client_cert=der).status == 401  # off by default
    with setting(cloud, remote_user_certificate=True):
        got = cloud.request("POST", "/v3/auth/tokens", body, token="", client_cert=der)
        assert got.status == 201, got.body
        assert got.json["token"]["user"]["id"] == user["id"]
        assert cloud.request("POST", "/v3/auth/tokens", body, token="").status == 401
        for bad in (certificate("stranger"), b"nonsense"):
            assert cloud.request("POST", "/v3/auth/tokens", body, token="", client_cert=bad).status == 401


@pytest.mark.req("A/ID-55")
def test_user_name_and_api_key(cloud: TestCloud) -> None:
    user = cloud.request("GET", "/v3/users?name=admin").json["users"][0]["id"]
    url = f"/v3/users/{user}/application_credentials"
    made = cloud.request("POST", url, {"application_credential": {"name": "key"}}).json["application_credential"]
    part = {"name": "key", "secret": made["secret"], "user": {"name": "admin", "domain": {"id": "default"}}}
    body: dict[str, Any] = {"identity": {"methods": ["application_credential"], "application_credential": part}}
    got = cloud.request("POST", "/v3/auth/tokens", {"auth": body}, token="")
    assert got.status == 201, got.body
    token = got.headers["x-subject-token"]
    assert cloud.request("GET", "/v3/auth/projects", token=token).status == 200
    part["secret"] += "x"
    assert cloud.request("POST", "/v3/auth/tokens", {"auth": body}, token="").status == 401


def certificate(name: str) -> bytes:
    """A certificate with this common name (who signed it is the listener's business)."""
    key, now = ec.generate_private_key(ec.SECP256R1()), datetime.now(UTC)
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    made = x509.CertificateBuilder().subject_name(subject).issuer_name(subject).public_key(key.public_key())
    made = made.serial_number(1).not_valid_before(now).not_valid_after(now + timedelta(days=1))
    return made.sign(key, hashes.SHA256()).public_bytes(Encoding.DER)
