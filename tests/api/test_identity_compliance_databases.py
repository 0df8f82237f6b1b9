"""Counting failures, history and used passcodes on every database, also when requests come side by side."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from nubila.core import clock
from nubila.services.identity.methods_totp import STEP_S, passcode
from nubila.testing.cloud import TestCloud

pytest_plugins = ["nubila.testing.fixtures"]
SECRET = "GEZDGNBVGY3TQOJQGEZDGNBVGY3TQOJQ"


@pytest.fixture
def cloud(tmp_path: Path, database_url: str) -> Iterator[TestCloud]:
    made = TestCloud(
        tmp_path / "cloud", hosts=0, database=database_url, lockout_failure_attempts=4, lockout_duration=60,
        unique_last_password_count=3, password_expires_days=30, disable_user_account_days_inactive=10,
    )  # fmt: skip
    yield made
    made.close()


def status(cloud: TestCloud, method: str, id: str, **proof: str) -> int:
    part = {method: {"user": {"id": id, **proof}}}
    body = {"auth": {"identity": {"methods": [method], **part}, "scope": "unscoped"}}
    return cloud.request("POST", "/v3/auth/tokens", body, token="").status


def make_user(cloud: TestCloud, name: str, **more: Any) -> str:
    got = cloud.request("POST", "/v3/users", {"user": {"name": name, "password": "s3cret", **more}})
    assert got.status == 201, got.body
    return str(got.json["user"]["id"])


def test_failures_and_history(cloud: TestCloud, monkeypatch: pytest.MonkeyPatch) -> None:
    id = make_user(cloud, "u")
    assert status(cloud, "password", id, password="s3cret") == 201
    for old, new, answer in (("s3cret", "b", 204), ("b", "c", 204), ("c", "s3cret", 400), ("c", "d", 204)):
        body = {"user": {"original_password": old, "password": new}}
        assert cloud.request("POST", f"/v3/users/{id}/password", body, token="").status == answer, (old, new)
    for _ in range(3):
        assert status(cloud, "password", id, password="wrong") == 401
    assert status(cloud, "password", id, password="d") == 201
    for _ in range(4):
        assert status(cloud, "password", id, password="wrong") == 401
    assert status(cloud, "password", id, password="d") == 401
    late = clock.at(clock.seconds(clock.now()) + 61)
    monkeypatch.setattr(clock, "now", lambda: late)
    assert status(cloud, "password", id, password="d") == 201
    assert cloud.request("DELETE", f"/v3/users/{id}").status == 204


def test_guesses_side_by_side_all_count(cloud: TestCloud) -> None:
    id = make_user(cloud, "guessed")
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda _: status(cloud, "password", id, password="wrong"), range(4)))
    assert status(cloud, "password", id, password="s3cret") == 401


def test_a_passcode_side_by_side_is_good_once(cloud: TestCloud, monkeypatch: pytest.MonkeyPatch) -> None:
    at = clock.now()
    monkeypatch.setattr(clock, "now", lambda: at)
    id = make_user(cloud, "t", options={"ignore_lockout_failure_attempts": True})
    body = {"credential": {"type": "totp", "user_id": id, "blob": SECRET}}
    assert cloud.request("POST", "/v3/credentials", body).status == 201
    code = passcode(SECRET, int(clock.seconds(at)) // STEP_S)
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda _: status(cloud, "totp", id, passcode=code), range(6)))
    assert sorted(found) == [201] + [401] * 5


def test_a_passcode_as_in_the_rfc() -> None:
    seen = {59: "287082", 1111111109: "081804", 1234567890: "005924", 20000000000: "353130"}  # RFC 6238, appendix B
    assert {at: passcode(SECRET, at // STEP_S) for at in seen} == seen
    assert passcode("gezd gnbv gy3t qojq gezd gnbv gy3t qojq==", 1) == "287082"
