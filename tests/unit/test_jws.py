"""JWS tokens: what they say, who can check them, how their keys rotate, and how a cloud changes its format."""

from __future__ import annotations

import json
import os
import shutil
import stat
from pathlib import Path

import jwt
import pytest
from fuzz_tokens import payloads, unb64

from nubila.core import tokens
from nubila.core.jws import JwsKeys, rotate_keys, setup_keys
from nubila.core.keyfiles import KeysError
from nubila.core.tokens import Expired, InvalidToken, new_payload, open_keys
from nubila.testing.cloud import TestCloud


class Clock:
    def __init__(self, now: float = 1_800_000_000.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    setup_keys(tmp_path / "jws")
    return tmp_path / "jws"


def names(directory: Path) -> list[str]:
    return sorted(os.listdir(directory))


@pytest.mark.req("A/PAIN-17")
def test_every_claim_survives_and_the_token_is_short(directory: Path) -> None:
    import random

    keys, others = JwsKeys(directory), JwsKeys(directory)
    for payload in payloads(random.Random(3)):
        token = keys.issue(payload)
        assert others.read(token) == payload
        assert len(token) < 1024


@pytest.mark.req("A/ID-22", "A/ID-49")
def test_anybody_with_the_public_key_can_check_a_token(directory: Path, tmp_path: Path) -> None:
    """With another implementation of JWS, and with ours when only the public keys are there."""
    payload = new_payload("u" * 32, ("password",), 3600, now=4e9, project_id="p" * 32)
    token = JwsKeys(directory).issue(payload)
    assert jwt.get_unverified_header(token)["alg"] == "ES256"
    claims = jwt.decode(
        token, (directory / "public" / "1.pem").read_text(), algorithms=["ES256"], options={"verify_iat": False}
    )
    assert claims["sub"] == payload.user_id
    assert claims["openstack_project_id"] == payload.project_id
    assert claims["openstack_audit_ids"] == list(payload.audit_ids)
    assert claims["openstack_methods"] == ["password"]
    shutil.copytree(directory / "public", tmp_path / "elsewhere" / "public")
    reader = JwsKeys(tmp_path / "elsewhere")
    assert reader.read(token) == payload
    with pytest.raises(KeysError, match="no key to sign"):
        reader.issue(payload)


def test_an_expired_token_is_refused(directory: Path) -> None:
    clock = Clock()
    keys = JwsKeys(directory, clock=clock)
    token = keys.issue(new_payload("u", ("password",), 3600, now=clock.now))
    clock.now += 3599
    keys.read(token)
    clock.now += 1
    with pytest.raises(Expired):
        keys.read(token)
    assert keys.read(token, allow_expired_s=10).user_id == "u"


@pytest.mark.parametrize("end", ["", "none"])
def test_claims_without_a_signature_are_refused(directory: Path, end: str) -> None:
    header, body, signature = JwsKeys(directory).issue(new_payload("u", (), 60, now=4e9)).split(".")
    assert json.loads(unb64(header)) == {"typ": "JWT", "alg": "ES256", "kid": json.loads(unb64(header))["kid"]}
    for token in (f"{header}.{body}.", f"{header}.{body}", f".{body}.{signature}"):
        with pytest.raises(InvalidToken):
            JwsKeys(directory).read(token)


@pytest.mark.req("A/ID-24")
def test_key_pairs_are_private_and_rotate(directory: Path) -> None:
    assert names(directory / "private") == names(directory / "public") == ["1.pem", "2.pem"]
    assert stat.S_IMODE((directory / "private").stat().st_mode) == 0o700
    assert all(stat.S_IMODE(f.stat().st_mode) == 0o600 for f in (directory / "private").iterdir())
    assert stat.S_IMODE((directory / "public" / "1.pem").stat().st_mode) == 0o644
    setup_keys(directory)
    assert names(directory / "private") == ["1.pem", "2.pem"]
    ticks = Clock()
    mine, theirs = (JwsKeys(directory, monotonic=ticks) for _ in range(2))
    payload = new_payload("u", (), 60, now=4e9)
    first = mine.issue(payload)
    assert mine.rotate() == 2
    second = mine.issue(payload)
    assert theirs.read(second) == payload  # the staged key was known before
    assert names(directory / "private") == ["2.pem", "3.pem"]
    assert names(directory / "public") == ["1.pem", "2.pem", "3.pem"]
    assert theirs.read(first) == payload
    assert mine.rotate() == 3
    assert names(directory / "public") == ["2.pem", "3.pem", "4.pem"]
    ticks.now += 2
    with pytest.raises(InvalidToken):
        theirs.read(first)
    assert theirs.read(second) == payload
    with pytest.raises(ValueError, match="at least 2"):
        rotate_keys(directory, 1)


def test_a_rotation_that_was_killed_is_finished(directory: Path) -> None:
    shutil.copy(directory / "private" / "1.pem", directory.parent / "1.pem")
    assert rotate_keys(directory) == 2
    shutil.move(directory.parent / "1.pem", directory / "private" / "1.pem")  # as if killed before the unlink
    assert rotate_keys(directory) == 2
    assert names(directory / "private") == ["2.pem", "3.pem"]


@pytest.mark.req("A/ID-25")
@pytest.mark.parametrize("damage", ["garbage", "another kind", "encrypted", "no public"])
def test_broken_keys_stop_the_start_and_not_the_running(directory: Path, damage: str) -> None:
    from cryptography.hazmat.primitives.asymmetric import ec, rsa
    from cryptography.hazmat.primitives.serialization import (
        BestAvailableEncryption,
        Encoding,
        NoEncryption,
        PrivateFormat,
    )

    ticks = Clock()
    keys = JwsKeys(directory, monotonic=ticks)
    token = keys.issue(new_payload("u", (), 60, now=4e9))
    private = directory / "private" / "1.pem"
    if damage == "garbage":
        private.write_bytes(b"not a key")
    elif damage == "another kind":
        key = rsa.generate_private_key(65537, 2048)
        private.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    elif damage == "encrypted":
        locked = ec.generate_private_key(ec.SECP256R1())
        private.write_bytes(locked.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"x")))
    else:
        (directory / "public" / "1.pem").unlink()
    with pytest.raises(KeysError, match=r"1\.pem"):
        JwsKeys(directory)
    ticks.now += 2
    assert keys.read(token).user_id == "u"
    assert keys.problem is not None
    assert "stay in use" in keys.problem


def test_a_cloud_that_changes_its_format_logs_nobody_out(tmp_path: Path) -> None:
    payload = new_payload("u", (), 60, now=4e9)
    before = open_keys(tmp_path).issue(payload)
    switched = open_keys(tmp_path, "jws")
    signed = switched.issue(payload)
    assert signed.startswith("eyJ")
    assert switched.read(before) == switched.read(signed) == payload
    back = open_keys(tmp_path, "fernet")
    assert back.issue(payload).startswith("gAAAAA")
    assert back.read(signed) == payload
    assert tokens.rotate(tmp_path, "jws") == 2
    assert tokens.rotate(tmp_path, "fernet") == 2
    with pytest.raises(ValueError, match="fernet, jws"):
        open_keys(tmp_path, "uuid")
    with pytest.raises(KeysError, match="missing"):
        tokens.rotate(tmp_path / "nowhere", "jws")


@pytest.mark.req("A/ID-22", "A/ID-42")
def test_a_cloud_with_jws_tokens_issues_validates_and_revokes(tmp_path: Path) -> None:
    cloud = TestCloud(tmp_path, hosts=0, token_provider="jws")
    try:
        token = cloud.token()
        assert token.startswith("eyJ")
        got = cloud.request("GET", "/v3/auth/tokens", token=token, headers={"X-Subject-Token": token})
        assert got.status == 200
        claims = json.loads(unb64(token.split(".")[1]))
        assert claims["openstack_audit_ids"] == got.json["token"]["audit_ids"]
        gone = cloud.request("DELETE", "/v3/auth/tokens", token=token, headers={"X-Subject-Token": token})
        assert gone.status == 204
        assert cloud.request("GET", "/v3/auth/projects", token=token).status == 401
    finally:
        cloud.close()
