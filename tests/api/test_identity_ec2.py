"""EC2 key pairs, and tokens for requests that clients of EC2 and S3 signed.

python-keystoneclient's signer, which OpenStack's EC2 services use, is the independent witness; one vector of version 4
is AWS's own.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from keystoneclient.contrib.ec2.utils import Ec2Signer  # type: ignore[import-untyped]

from nubila.services.identity import ec2_signature
from nubila.testing.cloud import Response, TestCloud

Row = dict[str, Any]


@pytest.fixture(scope="module")
def cloud(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestCloud]:
    made = TestCloud(tmp_path_factory.mktemp("cloud"), hosts=0)
    yield made
    made.close()


@pytest.fixture(scope="module")
def demo(cloud: TestCloud) -> Row:
    user = cloud.request("GET", "/v3/users?name=demo").json["users"][0]["id"]
    project = cloud.request("GET", "/v3/projects?name=demo").json["projects"][0]["id"]
    return {"user": user, "project": project, "url": f"/v3/users/{user}/credentials/OS-EC2"}


def pair(cloud: TestCloud, demo: Row, token: str | None = None) -> Row:
    sent = {"tenant_id": demo["project"]}
    got = cloud.request("POST", demo["url"], sent, token=token or cloud.token("demo"))
    assert got.status == 201, got.body
    found: Row = got.json["credential"]
    return found


def stamp(minutes: float = 0) -> datetime:
    return datetime.now(UTC) + timedelta(minutes=minutes)


def version2(key: Row, minutes: float = 0, **changes: Any) -> Row:
    params = {
        "Action": "DescribeInstances", "AWSAccessKeyId": key["access"], "SignatureVersion": "2", "Filter.1": "a b~*/é",
        "SignatureMethod": "HmacSHA256", "Timestamp": stamp(minutes).strftime("%Y-%m-%dT%H:%M:%SZ"),
    }  # fmt: skip
    given = {"access": key["access"], "verb": "GET", "host": "ec2.example:8788", "path": "/services/Cloud"}
    signature = Ec2Signer(key["secret"]).generate({**given, "params": dict(params)})
    return {**given, "params": params, "signature": signature, **changes}


def version4(key: Row, minutes: float = 0, verb: str = "POST", **changes: Any) -> Row:
    at = stamp(minutes)
    date = at.strftime("%Y%m%dT%H%M%SZ")
    scope = f"{key['access']}/{date[:8]}/RegionOne/ec2/aws4_request"
    headers = {
        "X-Amz-Date": date, "Host": "ec2.example:8788",
        "Authorization": f"AWS4-HMAC-SHA256 Credential={scope}, SignedHeaders=host;x-amz-date, Signature=none",
    }  # fmt: skip
    given = {
        "access": key["access"], "verb": verb, "host": "ec2.example:8788", "path": "/", "headers": headers,
        "params": {"Action": "DescribeInstances", "Version": "2016-11-15"},
        "body_hash": hashlib.sha256(b"Action=DescribeInstances").hexdigest(),
    }  # fmt: skip
    return {**given, "signature": Ec2Signer(key["secret"]).generate(given), **changes}


def ask(cloud: TestCloud, given: Any, **options: Any) -> Response:
    return cloud.request("POST", "/v3/ec2tokens", {"credentials": given}, **options)


# --- key pairs -----------------------------------------------------------------------------------------------------


@pytest.mark.req("A/ID-45")
def test_key_pairs(cloud: TestCloud, demo: Row) -> None:
    token = cloud.token("demo")
    made = pair(cloud, demo)
    assert made["user_id"] == demo["user"]
    assert made["tenant_id"] == demo["project"]
    assert made["trust_id"] is None
    one = f"{demo['url']}/{made['access']}"
    assert made["links"]["self"].endswith(one)
    assert cloud.request("GET", one, token=token).json["credential"] == made
    assert made in cloud.request("GET", demo["url"], token=token).json["credentials"]
    as_credential = cloud.request("GET", f"/v3/credentials?user_id={demo['user']}&type=ec2").json["credentials"]
    assert made["secret"] in [json.loads(c["blob"])["secret"] for c in as_credential]
    admin = cloud.request("GET", "/v3/users?name=admin").json["users"][0]["id"]
    for method, url in (
        ("GET", f"/v3/users/{admin}/credentials/OS-EC2"),
        ("POST", f"/v3/users/{admin}/credentials/OS-EC2"),
    ):
        assert cloud.request(method, url, {"tenant_id": demo["project"]}, token=token).status == 403
    elsewhere = f"/v3/users/{admin}/credentials/OS-EC2/{made['access']}"
    assert cloud.request("GET", elsewhere).json["credential"] == made  # the pair's owner counts, not the path
    assert cloud.request("GET", f"{demo['url']}/none", token=token).status == 404
    assert cloud.request("POST", demo["url"], {"tenant_id": "none"}, token=token).status == 404
    bodies: tuple[Any, ...] = ({}, [], {"tenant_id": 5}, None)
    for body in bodies:
        assert cloud.request("POST", demo["url"], body, token=token).status == 400
    assert cloud.request("DELETE", one, token=token).status == 204
    assert cloud.request("DELETE", one, token=token).status == 404


# --- signed requests -----------------------------------------------------------------------------------------------


@pytest.mark.req("A/ID-45", "A/ID-55")
@pytest.mark.parametrize("sign", [version2, version4])
def test_signed_request_gets_a_token(cloud: TestCloud, demo: Row, sign: Any) -> None:
    key = pair(cloud, demo)
    got = ask(cloud, sign(key))
    assert got.status == 200, got.body
    assert got.json["token"]["user"]["id"] == demo["user"]
    assert got.json["token"]["project"]["id"] == demo["project"]
    assert got.json["token"]["methods"] == ["ec2credential"]
    assert {r["name"] for r in got.json["token"]["roles"]} == {"member", "reader"}
    token = got.headers["x-subject-token"]
    assert cloud.request("GET", "/v3/auth/projects", token=token).status == 200
    assert ask(cloud, sign(key), token=cloud.token("demo")).status == 403  # for services only
    assert ask(cloud, sign(key), token="").status == 401
    for name, value in (("verb", "DELETE"), ("path", "/other"), ("signature", "x"), ("signature", None), ("host", "x")):
        if not (sign is version4 and name == "host"):  # there the host is one of the headers
            assert ask(cloud, {**sign(key), name: value}).status == 401, name
    altered = sign(key, verb="GET") if sign is version4 else sign(key)
    altered["params"]["Action"] = "TerminateInstances"
    assert ask(cloud, altered).status == 401
    assert ask(cloud, {**sign(key), "access": "unknown"}).status == 404
    other = pair(cloud, demo)
    assert ask(cloud, {**sign(key), "access": other["access"]}).status == 401
    cloud.request("DELETE", f"{demo['url']}/{key['access']}")
    assert ask(cloud, sign(key)).status == 404


@pytest.mark.parametrize("sign", [version2, version4])
def test_old_and_future_requests_are_refused(cloud: TestCloud, demo: Row, sign: Any) -> None:
    key = pair(cloud, demo)
    for minutes, status in ((-14, 200), (14, 200), (-16, 401), (16, 401)):
        assert ask(cloud, sign(key, minutes)).status == status, minutes
    stale = sign(key, -16)
    fresh = stamp().strftime("%Y-%m-%dT%H:%M:%SZ")
    if sign is version4:  # what the signature does not cover says nothing
        stale["params"] = {**stale["params"], "Timestamp": fresh}
    assert ask(cloud, stale).status == 401


def test_signature_without_the_port(cloud: TestCloud, demo: Row) -> None:
    key = pair(cloud, demo)
    given = version2(key)
    bare = {**given, "host": "ec2.example", "params": dict(given["params"])}
    bare.pop("signature")
    given["signature"] = Ec2Signer(key["secret"]).generate(bare)
    assert ask(cloud, given).status == 200


def test_version4_in_the_query(cloud: TestCloud, demo: Row) -> None:
    key = pair(cloud, demo)
    date = stamp().strftime("%Y%m%dT%H%M%SZ")
    params = {
        "Action": "DescribeInstances", "X-Amz-Algorithm": "AWS4-HMAC-SHA256", "X-Amz-Date": date,
        "X-Amz-Credential": f"{key['access']}/{date[:8]}/RegionOne/ec2/aws4_request", "X-Amz-SignedHeaders": "host",
    }  # fmt: skip
    given = {
        "access": key["access"], "verb": "GET", "host": "h", "path": "/", "params": params, "headers": {"host": "h"},
        "body_hash": hashlib.sha256(b"").hexdigest(),
    }  # fmt: skip
    assert ask(cloud, {**given, "signature": Ec2Signer(key["secret"]).generate(given)}).status == 200


@pytest.mark.parametrize(
    "given",
    [
        {}, None, "x", 5, [], {"access": 5}, {"access": "KEY"}, {"access": "KEY", "signature": "x"},
        {"access": "KEY", "signature": "x", "host": 5, "params": {}, "verb": "GET", "path": "/"},
        {"access": "KEY", "signature": "x", "host": "h", "params": [], "verb": "GET", "path": "/"},
        {"access": "KEY", "signature": "x", "host": "h", "params": {"SignatureVersion": "1"}, "verb": "G", "path": "/"},
        {"access": "KEY", "signature": "x", "host": "[", "params": {"SignatureVersion": "2"}, "verb": "G", "path": "/"},
        {"access": "KEY", "signature": 5, "host": "h", "params": {"SignatureVersion": "2"}, "verb": "G", "path": "/"},
        {"access": "KEY", "signature": "x", "host": "h", "headers": {"Authorization": "AWS4-HMAC-SHA256"}},
        {"access": "KEY", "signature": "x", "host": "h", "verb": "GET", "path": "/",
         "headers": {"Authorization": "AWS4-HMAC-SHA256 Credential=a/b, SignedHeaders=host"}},
        {"access": "KEY", "signature": "x", "host": "h", "verb": "GET", "path": "/", "headers": 5},
    ],
)  # fmt: skip
def test_broken_requests(cloud: TestCloud, demo: Row, given: Any) -> None:
    key = pair(cloud, demo)
    if isinstance(given, dict) and given.get("access") == "KEY":
        given = {**given, "access": key["access"]}
    assert ask(cloud, given).status == 401
    assert cloud.request("POST", "/v3/ec2tokens", {}).status == 400
    assert cloud.request("POST", "/v3/s3tokens", {"credentials": given}).status in (400, 401)
    assert cloud.request("GET", "/v3/ec2tokens").status == 405


def test_awss_own_vector_of_version_4() -> None:
    """The example "GET iam ListUsers" of AWS's documentation of version 4."""
    given = {
        "access": "AKIDEXAMPLE", "verb": "GET", "path": "/", "host": "iam.amazonaws.com",
        "params": {"Action": "ListUsers", "Version": "2010-05-08"},
        "headers": {
            "Host": "iam.amazonaws.com", "X-Amz-Date": "20150830T123600Z",
            "Content-Type": "application/x-www-form-urlencoded; charset=utf-8",
            "Authorization": "AWS4-HMAC-SHA256 Credential=AKIDEXAMPLE/20150830/us-east-1/iam/aws4_request, "
            "SignedHeaders=content-type;host;x-amz-date, Signature=none",
        },
        "body_hash": hashlib.sha256(b"").hexdigest(),
    }  # fmt: skip
    found = ec2_signature.ec2_signature("wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY", given, "iam.amazonaws.com")
    assert found == "5d672d79c15b13162d9279b0855cfba6789a8edb4c82c400e06b5924a6f2b5d7"


@pytest.mark.parametrize(
    "change",
    [
        ("Credential=KEY/", "Credential=OTHER/"),
        ("/20300131/", "/20300130/"),
        ("/aws4_request", "/aws4"),
        ("SignedHeaders=host;x-amz-date", "SignedHeaders=x-amz-date"),
        ("SignedHeaders=host;x-amz-date", "SignedHeaders="),
    ],
)
def test_version4_says_whose_and_when(change: tuple[str, str]) -> None:
    scope = "Credential=KEY/20300131/RegionOne/ec2/aws4_request"
    text = f"AWS4-HMAC-SHA256 {scope}, SignedHeaders=host;x-amz-date, Signature=none"
    headers = {"X-Amz-Date": "20300131T000000Z", "Host": "h", "Authorization": text}
    given: Row = {"access": "KEY", "verb": "POST", "host": "h", "path": "/", "params": {}, "body_hash": "0" * 64}
    assert len(ec2_signature.ec2_signature("s", {**given, "headers": headers}, "h")) == 64
    assert change[0] in text
    headers["Authorization"] = text.replace(*change)
    with pytest.raises(ec2_signature.BadSignature):
        ec2_signature.ec2_signature("s", {**given, "headers": headers}, "h")


def test_s3(cloud: TestCloud, demo: Row) -> None:
    key = pair(cloud, demo)
    text = b"GET\n\n\nTue, 27 Mar 2007 19:36:42 +0000\n/bucket/object"
    digest = hmac.digest(key["secret"].encode(), text, "sha1")
    given = {
        "access": key["access"], "token": base64.urlsafe_b64encode(text).decode(),
        "signature": base64.b64encode(digest).decode(),
    }  # fmt: skip
    got = cloud.request("POST", "/v3/s3tokens", {"credentials": given})
    assert got.status == 200
    assert got.json["token"]["user"]["id"] == demo["user"]
    assert "x-subject-token" not in got.headers
    assert cloud.request("POST", "/v3/s3tokens", {"credentials": given}, token=cloud.token("demo")).status == 403
    date = stamp().strftime("%Y%m%dT%H%M%SZ")
    scope = f"{date[:8]}/RegionOne/s3/aws4_request"
    text = f"AWS4-HMAC-SHA256\n{date}\n{scope}\n{'0' * 64}".encode()
    step = f"AWS4{key['secret']}".encode()
    for part in scope.split("/"):
        step = hmac.digest(step, part.encode(), "sha256")
    given = {
        "access": key["access"], "token": base64.urlsafe_b64encode(text).decode(),
        "signature": hmac.digest(step, text, "sha256").hex(),
    }  # fmt: skip
    assert cloud.request("POST", "/v3/s3tokens", {"credentials": given}).status == 200
    for name, value in (
        ("signature", "0" * 64),
        ("signature", None),
        ("token", "QVdTNA=="),
        ("token", "?"),
        ("token", 5),
    ):
        assert cloud.request("POST", "/v3/s3tokens", {"credentials": {**given, name: value}}).status == 401


# --- key pairs of delegated tokens ---------------------------------------------------------------------------------


def test_key_pair_of_a_trust_is_delegated_too(cloud: TestCloud, demo: Row) -> None:
    admin = cloud.request("GET", "/v3/users?name=admin").json["users"][0]["id"]
    body = {
        "trustor_user_id": demo["user"], "trustee_user_id": admin, "project_id": demo["project"], "impersonation": True,
        "roles": [{"name": "reader"}, {"name": "member"}],
    }  # fmt: skip
    trust = cloud.request("POST", "/v3/OS-TRUST/trusts", {"trust": body}, token=cloud.token("demo")).json["trust"]["id"]
    user = {"name": "admin", "domain": {"id": "default"}, "password": cloud.passwords["admin"]}
    identity = {"methods": ["password"], "password": {"user": user}}
    got = cloud.request(
        "POST",
        "/v3/auth/tokens",
        {"auth": {"identity": identity, "scope": {"OS-TRUST:trust": {"id": trust}}}},
        token="",
    )
    key = pair(cloud, demo, got.headers["x-subject-token"])
    assert key["trust_id"] == trust
    seen = ask(cloud, version4(key)).json["token"]
    assert seen["OS-TRUST:trust"]["id"] == trust
    assert seen["user"]["id"] == demo["user"]
    other = {"tenant_id": cloud.request("GET", "/v3/projects?name=admin").json["projects"][0]["id"]}
    assert cloud.request("POST", demo["url"], other, token=got.headers["x-subject-token"]).status == 403
    assert cloud.request("DELETE", f"/v3/OS-TRUST/trusts/{trust}").status == 204
    assert ask(cloud, version4(key)).status == 401


def test_key_pair_of_an_application_credential(cloud: TestCloud, demo: Row) -> None:
    url = f"/v3/users/{demo['user']}/application_credentials"

    def robot(name: str, **attrs: Any) -> str:
        body = {"application_credential": {"name": name, **attrs}}
        found = cloud.request("POST", url, body, token=cloud.token("demo")).json["application_credential"]
        identity = {
            "methods": ["application_credential"],
            "application_credential": {"id": found["id"], "secret": found["secret"]},
        }
        got = cloud.request("POST", "/v3/auth/tokens", {"auth": {"identity": identity}}, token="")
        return got.headers["x-subject-token"]

    sent = {"tenant_id": demo["project"]}
    assert cloud.request("POST", demo["url"], sent, token=robot("restricted")).status == 403
    key = pair(cloud, demo, robot("free", unrestricted=True))
    got = ask(cloud, version2(key))
    assert got.status == 200
    assert got.json["token"]["application_credential"]["name"] == "free"
    soon = stamp(5).strftime("%Y-%m-%dT%H:%M:%S")
    got = ask(cloud, version2(pair(cloud, demo, robot("short", unrestricted=True, expires_at=soon))))
    assert got.json["token"]["expires_at"][:19] == soon  # it does not outlive what it rests on
