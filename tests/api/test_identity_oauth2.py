"""OAuth 2.0 client credentials by secret and by client certificate; tokens bound to a certificate. API: OS-OAUTH2."""

from __future__ import annotations

import base64
import datetime
import hashlib
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlencode

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

from nubila.testing.cloud import Response, TestCloud

PATH = "/v3/OS-OAUTH2/token"
KEY = ec.generate_private_key(ec.SECP256R1())
GRANT = {"grant_type": "client_credentials"}


def certificate(issuer: str = "root_a", **subject: str) -> bytes:
    """A client certificate in DER."""
    oids = {
        "CN": NameOID.COMMON_NAME, "UID": NameOID.USER_ID, "O": NameOID.ORGANIZATION_NAME,
        "DC": NameOID.DOMAIN_COMPONENT, "emailAddress": NameOID.EMAIL_ADDRESS,
    }  # fmt: skip
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(oids[k], v) for k, v in subject.items()]))
        .issuer_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, issuer)]))
        .public_key(KEY.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now)
        .not_valid_after(now + datetime.timedelta(days=1))
        .sign(KEY, hashes.SHA256())
    )
    return made.public_bytes(Encoding.DER)


@pytest.fixture(scope="module")
def cloud(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestCloud]:
    made = TestCloud(tmp_path_factory.mktemp("cloud"), hosts=0)
    yield made
    made.close()


@pytest.fixture(scope="module")
def robot(cloud: TestCloud) -> dict[str, str]:
    """An application credential of the administrator."""
    me = cloud.request("GET", "/v3/auth/tokens", headers={"X-Subject-Token": cloud.token()}).json["token"]["user"]["id"]
    body = {"application_credential": {"name": "robot", "secret": "r0b+t%:x"}}
    made = cloud.request("POST", f"/v3/users/{me}/application_credentials", body).json["application_credential"]
    return {"id": made["id"], "secret": "r0b+t%:x"}


def ask(cloud: TestCloud, form: dict[str, str], *, cert: bytes | None = None, **headers: str) -> Response:
    sent = {"Content-Type": "application/x-www-form-urlencoded", **headers}
    return cloud.request("POST", PATH, token="", body=urlencode(form).encode(), headers=sent, client_cert=cert)


def basic(client: str, secret: str) -> dict[str, str]:
    return {"Authorization": "Basic " + base64.b64encode(f"{client}:{secret}".encode()).decode()}


def test_a_secret_gets_a_token(cloud: TestCloud, robot: dict[str, str]) -> None:
    got = ask(cloud, GRANT, **basic(robot["id"], robot["secret"]))
    assert got.status == 200, got.body
    assert set(got.json) == {"access_token", "token_type", "expires_in"}
    assert got.json["token_type"] == "Bearer"
    assert 3590 <= got.json["expires_in"] <= 3600
    assert got.headers["cache-control"] == "no-store"
    token = got.json["access_token"]
    shown = cloud.request("GET", "/v3/auth/tokens", headers={"X-Subject-Token": token}).json["token"]
    assert shown["application_credential"]["id"] == robot["id"]
    for headers in ({"X-Auth-Token": token}, {"Authorization": f"Bearer {token}"}):
        for path in ("/v3/auth/projects", "/image/v2/images", "/compute/v2.1/servers"):
            assert cloud.request("GET", path, token="", headers=headers).status == 200
    in_form = ask(cloud, {**GRANT, "client_id": robot["id"], "client_secret": robot["secret"]})
    assert in_form.status == 200


@pytest.mark.parametrize(
    ("form", "headers", "status", "error"),
    [
        ({}, {}, 400, "invalid_request"),
        ({"grant_type": ""}, {}, 400, "invalid_request"),
        ({"grant_type": "password"}, {}, 400, "unsupported_grant_type"),
        (GRANT, {}, 401, "invalid_client"),
        (GRANT, basic("nobody", "x"), 401, "invalid_client"),
        (GRANT, basic("", ""), 401, "invalid_client"),
        (GRANT, {"Authorization": "Basic !!!"}, 401, "invalid_client"),
        (GRANT, {"Authorization": "Basic /w=="}, 401, "invalid_client"),
        (GRANT, {"Authorization": "Bearer x"}, 401, "invalid_client"),
        ({**GRANT, "client_id": "x"}, {}, 401, "invalid_client"),
    ],
)
def test_refusals_are_worded_as_oauth_wants(
    cloud: TestCloud, form: dict[str, str], headers: dict[str, str], status: int, error: str
) -> None:
    got = ask(cloud, form, **headers)
    assert got.status == status, got.body
    assert got.json["error"] == error
    assert got.json["error_description"]
    assert ("www-authenticate" in got.headers) == (status == 401)


def test_a_wrong_secret_and_odd_bodies(cloud: TestCloud, robot: dict[str, str]) -> None:
    assert ask(cloud, GRANT, **basic(robot["id"], "wrong")).json["error"] == "invalid_client"
    for body in (b"\xff\xfe", b"grant_type=client_credentials&grant_type=x", b"a" * 100, b"&".join([b"a=b"] * 50)):
        got = cloud.request("POST", PATH, token="", body=body)
        assert (got.status, got.json["error"]) == (400, "invalid_request")
    for method in ("GET", "PUT", "PATCH", "DELETE"):
        assert cloud.request(method, PATH, token="").status == 405


# --- by certificate ------------------------------------------------------------------------------------------------

RULES = [
    {
        "local": [{"user": {"name": "{0}", "id": "{1}", "email": "{2}", "domain": {"name": "{3}", "id": "{4}"}}}],
        "remote": [
            {"type": "SSL_CLIENT_SUBJECT_DN_CN"}, {"type": "SSL_CLIENT_SUBJECT_DN_UID"},
            {"type": "SSL_CLIENT_SUBJECT_DN_EMAILADDRESS"}, {"type": "SSL_CLIENT_SUBJECT_DN_O"},
            {"type": "SSL_CLIENT_SUBJECT_DN_DC"}, {"type": "SSL_CLIENT_ISSUER_DN_CN", "any_one_of": ["root_a"]},
        ],
    },
    {
        "local": [{"user": {"id": "{0}", "domain": {"id": "{1}"}}}],
        "remote": [
            {"type": "SSL_CLIENT_SUBJECT_DN_UID"}, {"type": "SSL_CLIENT_SUBJECT_DN_DC"},
            {"type": "SSL_CLIENT_ISSUER_DN_CN", "any_one_of": ["root_b"]},
        ],
    },
    {
        "local": [{"user": {"email": "{0}"}}],
        "remote": [
            {"type": "SSL_CLIENT_SUBJECT_DN_EMAILADDRESS"},
            {"type": "SSL_CLIENT_ISSUER_DN_CN", "any_one_of": ["root_c"]},
        ],
    },
]  # fmt: skip


@pytest.fixture(scope="module")
def client(cloud: TestCloud) -> dict[str, Any]:
    """A user with a default project and a role there, and the mapping of certificates."""
    made = cloud.request("PUT", "/v3/OS-FEDERATION/mappings/oauth2_mapping", {"mapping": {"rules": RULES}})
    assert made.status == 201, made.body
    project = cloud.request("POST", "/v3/projects", {"project": {"name": "mtls"}}).json["project"]
    body = {"name": "client01", "email": "c@x.example", "default_project_id": project["id"]}
    user: dict[str, Any] = cloud.request("POST", "/v3/users", {"user": body}).json["user"]
    member = cloud.request("GET", "/v3/roles?name=member").json["roles"][0]["id"]
    cloud.request("PUT", f"/v3/projects/{project['id']}/users/{user['id']}/roles/{member}")
    return user


def subject(client: dict[str, Any], **changes: str) -> dict[str, str]:
    mine = {"CN": "client01", "UID": client["id"], "emailAddress": "c@x.example", "O": "Default", "DC": "default"}
    return {**mine, **changes}


@pytest.mark.req("A/ID-40")
def test_a_certificate_gets_a_token_that_is_bound_to_it(cloud: TestCloud, client: dict[str, Any]) -> None:
    cert = certificate(**subject(client))
    got = ask(cloud, {**GRANT, "client_id": client["id"]}, cert=cert)
    assert got.status == 200, got.body
    token = got.json["access_token"]
    print_ = base64.urlsafe_b64encode(hashlib.sha256(cert).digest()).rstrip(b"=").decode()
    shown = cloud.request("GET", "/v3/auth/tokens", headers={"X-Subject-Token": token}).json["token"]
    assert shown["oauth2_credential"] == {"x5t#S256": print_}
    assert shown["methods"] == ["oauth2_credential"]
    assert shown["project"]["id"] == client["default_project_id"]
    other = certificate(**subject(client))
    for path in ("/v3/auth/projects", "/image/v2/images", "/network/v2.0/networks"):
        for headers in ({"X-Auth-Token": token}, {"Authorization": f"Bearer {token}"}):
            assert cloud.request("GET", path, token="", headers=headers, client_cert=cert).status == 200
            for wrong in (None, other):
                refused = cloud.request("GET", path, token="", headers=headers, client_cert=wrong)
                assert refused.status == 401, path


@pytest.mark.req("A/ID-40")
def test_what_is_got_with_a_bound_token_is_bound_too(cloud: TestCloud, client: dict[str, Any]) -> None:
    cert = certificate(**subject(client))
    token = ask(cloud, {**GRANT, "client_id": client["id"]}, cert=cert).json["access_token"]
    body = {"auth": {"identity": {"methods": ["token"], "token": {"id": token}}, "scope": "unscoped"}}
    again = cloud.request("POST", "/v3/auth/tokens", body, token="", client_cert=cert)
    assert again.status == 201
    assert "oauth2_credential" in again.json["token"]
    made = again.headers["x-subject-token"]
    assert cloud.request("GET", "/v3/auth/projects", token=made).status == 401
    assert cloud.request("GET", "/v3/auth/projects", token=made, client_cert=cert).status == 200


@pytest.mark.parametrize(
    ("issuer", "changes", "good"),
    [
        ("root_a", {}, True),
        ("root_a", {"CN": "client02"}, False),
        ("root_a", {"UID": "0" * 32}, False),
        ("root_a", {"emailAddress": "d@x.example"}, False),
        ("root_a", {"O": "Other"}, False),
        ("root_a", {"DC": "other"}, False),
        ("root_b", {"CN": "anything", "O": "Other"}, True),
        ("root_b", {"DC": "other"}, False),
        ("root_c", {}, False),  # an address alone names nobody
        ("root_d", {}, False),
    ],
)
def test_the_certificate_must_be_the_users(
    cloud: TestCloud, client: dict[str, Any], issuer: str, changes: dict[str, str], good: bool
) -> None:
    got = ask(cloud, {**GRANT, "client_id": client["id"]}, cert=certificate(issuer, **subject(client, **changes)))
    assert got.status == (200 if good else 401), got.body
    if not good:
        assert got.json == {"error": "invalid_client", "error_description": "Client authentication failed."}


def test_users_that_get_no_token_by_certificate(cloud: TestCloud, client: dict[str, Any]) -> None:
    cert = certificate("root_b", **subject(client))
    form = {**GRANT, "client_id": client["id"]}
    assert ask(cloud, {**GRANT, "client_id": "nobody"}, cert=cert).status == 401
    assert ask(cloud, form, cert=b"not a certificate").status == 401
    assert ask(cloud, form).status == 401
    user = f"/v3/users/{client['id']}"
    for change, back in (
        ({"enabled": False}, {"enabled": True}),
        ({"default_project_id": None}, {"default_project_id": client["default_project_id"]}),
        (
            {"options": {"multi_factor_auth_enabled": True, "multi_factor_auth_rules": [["password", "totp"]]}},
            {"options": {"multi_factor_auth_enabled": None, "multi_factor_auth_rules": None}},
        ),
    ):
        assert cloud.request("PATCH", user, {"user": change}).status == 200
        assert ask(cloud, form, cert=cert).status == 401
        assert cloud.request("PATCH", user, {"user": back}).status == 200
        assert ask(cloud, form, cert=cert).status == 200
