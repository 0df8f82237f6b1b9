"""What operators ask of passwords and accounts: lockout, expiry, history, strength, age, first use, inactivity.

Settings as Keystone's section security_compliance. Time is moved, nothing sleeps.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import bcrypt
import pytest
import sqlalchemy as sa

from nubila.core import clock
from nubila.core.config import BadSetting, Settings
from nubila.services.identity import lookup
from nubila.services.identity.bootstrap import Wanted, repair
from nubila.services.identity.kinds_auth import OLD_PASSWORD, SECURITY
from nubila.services.identity.methods_totp import STEP_S, passcode
from nubila.testing.cloud import Response, TestCloud

PLEASE = "Authentication is required: log in with valid credentials."
DAY = 86400


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


class Calendar:
    """Moves the clock of the tables."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.ahead, real = 0.0, clock.now
        monkeypatch.setattr(clock, "now", lambda: clock.at(clock.seconds(real()) + self.ahead))

    def go(self, seconds: float) -> None:
        self.ahead += seconds


@pytest.fixture
def calendar(monkeypatch: pytest.MonkeyPatch) -> Calendar:
    return Calendar(monkeypatch)


def make_user(cloud: TestCloud, name: str, **attrs: Any) -> dict[str, Any]:
    got = cloud.request("POST", "/v3/users", {"user": {"name": name, "password": "s3cret", **attrs}})
    assert got.status == 201, got.body
    found: dict[str, Any] = got.json["user"]
    return found


def login(cloud: TestCloud, user: dict[str, Any], password: str = "s3cret", client: str = "127.0.0.1") -> Response:
    who = {"user": {"id": user["id"], "password": password}}
    body = {"auth": {"identity": {"methods": ["password"], "password": who}, "scope": "unscoped"}}
    return cloud.request("POST", "/v3/auth/tokens", body, token="", client=client)


def change(cloud: TestCloud, user: dict[str, Any], old: str, new: str) -> Response:
    body = {"user": {"original_password": old, "password": new}}
    return cloud.request("POST", f"/v3/users/{user['id']}/password", body, token="")


def patch(cloud: TestCloud, user: dict[str, Any], **attrs: Any) -> dict[str, Any]:
    got = cloud.request("PATCH", f"/v3/users/{user['id']}", {"user": attrs})
    assert got.status == 200, got.body
    found: dict[str, Any] = got.json["user"]
    return found


def show(cloud: TestCloud, user: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = cloud.request("GET", f"/v3/users/{user['id']}").json["user"]
    return found


def refused(got: Response) -> bool:
    """Whether this is the answer that a wrong password gets, word for word."""
    wrong = {"error": {"code": 401, "message": PLEASE, "title": "Unauthorized"}}
    return got.status == 401 and bool(got.json == wrong)


# --- lockout -------------------------------------------------------------------------------------------------------


def test_lock_and_its_end(cloud: TestCloud, calendar: Calendar) -> None:
    with setting(cloud, lockout_failure_attempts=3, lockout_duration=60):
        user = make_user(cloud, "lock")
        for _ in range(2):
            for _ in range(2):
                assert refused(login(cloud, user, "wrong"))
            assert login(cloud, user).status == 201  # and the count begins anew
        for _ in range(3):
            assert refused(login(cloud, user, "wrong"))
        assert refused(login(cloud, user))
        assert refused(change(cloud, user, "s3cret", "0ther"))
        calendar.go(59)
        assert refused(login(cloud, user))
        assert refused(login(cloud, user, "wrong"))  # does not make it longer
        calendar.go(2)
        assert refused(login(cloud, user, "wrong"))  # one failure after the lock is one
        assert login(cloud, user).status == 201


def test_lock_for_ever_until_enabled(cloud: TestCloud, calendar: Calendar) -> None:
    with setting(cloud, lockout_failure_attempts=1, lockout_duration=0):
        user = make_user(cloud, "lock-long")
        login(cloud, user, "wrong")
        calendar.go(365 * DAY)
        assert refused(login(cloud, user))
        patch(cloud, user, enabled=True)
        assert login(cloud, user).status == 201


def test_bootstrap_ends_a_lock(cloud: TestCloud) -> None:
    cloud.token()
    with setting(cloud, lockout_failure_attempts=1, lockout_duration=0):
        admin = {"id": cloud.request("GET", "/v3/users?name=admin").json["users"][0]["id"]}
        login(cloud, admin, "wrong")
        assert refused(login(cloud, admin, cloud.passwords["admin"]))
        for done in (["unlocked user admin"], []):
            with cloud.cloud.store.write() as tx:
                assert repair(cloud.cloud, tx, Wanted()) == done
        assert login(cloud, admin, cloud.passwords["admin"]).status == 201


def test_lock_by_changing_the_password(cloud: TestCloud) -> None:
    with setting(cloud, lockout_failure_attempts=2):
        user = make_user(cloud, "lock-change")
        for _ in range(2):
            assert refused(change(cloud, user, "wrong", "0ther"))
        assert refused(login(cloud, user))
        patch(cloud, user, password="reset-1")
        assert login(cloud, user, "reset-1").status == 201


def test_lock_exemption(cloud: TestCloud) -> None:
    with setting(cloud, lockout_failure_attempts=1):
        user = make_user(cloud, "lock-not", options={"ignore_lockout_failure_attempts": True})
        for _ in range(3):
            assert refused(login(cloud, user, "wrong"))
        assert login(cloud, user).status == 201


def test_nothing_is_written_without_the_setting(cloud: TestCloud) -> None:
    user = make_user(cloud, "lock-off")
    for _ in range(5):
        assert refused(login(cloud, user, "wrong"))
    with setting(cloud, lockout_failure_attempts=1):
        assert login(cloud, user).status == 201


# --- one answer for all --------------------------------------------------------------------------------------------


def test_one_answer_for_whatever_is_wrong(cloud: TestCloud, monkeypatch: pytest.MonkeyPatch) -> None:
    domain = cloud.request("POST", "/v3/domains", {"domain": {"name": "off"}}).json["domain"]
    users = {
        "wrong": make_user(cloud, "one-wrong"),
        "nobody": {"id": "nobody"},
        "disabled": make_user(cloud, "one-off", enabled=False),
        "no password": make_user(cloud, "one-none", password=None),
        "domain": make_user(cloud, "one-domain", domain_id=domain["id"]),
        "too long": make_user(cloud, "one-long"),
        "locked": make_user(cloud, "one-locked"),
    }
    assert cloud.request("PATCH", f"/v3/domains/{domain['id']}", {"domain": {"enabled": False}}).status == 200
    hashed: list[bytes] = []
    real = bcrypt.checkpw

    def counting(password: bytes, hash: bytes) -> bool:
        hashed.append(hash)
        return real(password, hash)

    monkeypatch.setattr(bcrypt, "checkpw", counting)
    with setting(cloud, lockout_failure_attempts=1):
        login(cloud, users["locked"], "wrong")
        for why, user in users.items():
            hashed.clear()
            password = {"wrong": "nope", "too long": "x" * 100}.get(why, "s3cret")
            assert refused(login(cloud, user, password)), why
            assert len(hashed) == 1, why  # the same work for everybody
            assert int(hashed[0].split(b"$")[2]) == 4, why


# --- expiry and first use ------------------------------------------------------------------------------------------


def test_expired_password_is_only_good_for_changing_it(cloud: TestCloud, calendar: Calendar) -> None:
    with setting(cloud, password_expires_days=10):
        user = make_user(cloud, "expiry")
        assert user["password_expires_at"].endswith(".000000")
        assert login(cloud, user).json["token"]["user"]["password_expires_at"] == user["password_expires_at"]
        calendar.go(10 * DAY + 1)
        assert refused(login(cloud, user, "wrong"))
        got = login(cloud, user)
        assert got.status == 401
        assert "password is expired" in got.json["error"]["message"]
        assert user["id"] in got.json["error"]["message"]
        assert change(cloud, user, "s3cret", "n3w").status == 204
        assert login(cloud, user, "n3w").status == 201
        assert show(cloud, user)["password_expires_at"] > user["password_expires_at"]


def test_expiry_exemption(cloud: TestCloud, calendar: Calendar) -> None:
    with setting(cloud, password_expires_days=1):
        never = make_user(cloud, "expiry-never", options={"ignore_password_expiry": True})
        assert never["password_expires_at"] is None
        late = make_user(cloud, "expiry-late")
        calendar.go(2 * DAY)
        assert login(cloud, late).status == 401
        patch(cloud, late, options={"ignore_password_expiry": True})
        assert login(cloud, late).status == 201


def test_filter_by_expiry(cloud: TestCloud) -> None:
    with setting(cloud, password_expires_days=30):
        user = make_user(cloud, "expiry-filter")
    other = make_user(cloud, "expiry-filter-never")
    group = cloud.request("POST", "/v3/groups", {"group": {"name": "expiry"}}).json["group"]
    for u in (user, other):
        assert cloud.request("PUT", f"/v3/groups/{group['id']}/users/{u['id']}").status == 204
    at = user["password_expires_at"]
    found = {
        f"lt:{at}": False, f"lte:{at}": True, f"gt:{at}": False, f"gte:{at}": True, f"eq:{at}": True,
        f"neq:{at}": False, "gt:2020-01-01T00:00:00Z": True, "lt:2020-01-01T00:00:00Z": False,
        f"eq:{at[:19]}": True,
    }  # fmt: skip
    for url in ("/v3/users", f"/v3/groups/{group['id']}/users"):
        for text, there in found.items():
            got = cloud.request("GET", url, query={"password_expires_at": text})
            ids = {u["id"] for u in got.json["users"]}
            assert (user["id"] in ids, other["id"] in ids) == (there, False), (url, text)
        for bad in ("at:2020-01-01", "lt:yesterday", "2020-01-01T00:00:00Z", "lt:", "lt:0001-01-01T00:00:00+23:00"):
            assert cloud.request("GET", url, query={"password_expires_at": bad}).status == 400, bad


def test_first_use(cloud: TestCloud) -> None:
    with setting(cloud, change_password_upon_first_use=True):
        user = make_user(cloud, "first")
        robot = make_user(cloud, "first-robot", options={"ignore_change_password_upon_first_use": True})
        assert login(cloud, robot).status == 201
        assert "password is expired" in login(cloud, user).json["error"]["message"]
        assert change(cloud, user, "s3cret", "0wn").status == 204
        assert login(cloud, user, "0wn").status == 201
        patch(cloud, user, password="reset")
        assert "password is expired" in login(cloud, user, "reset").json["error"]["message"]
        patch(cloud, robot, password="reset")
        assert login(cloud, robot, "reset").status == 201


# --- new passwords -------------------------------------------------------------------------------------------------


def test_strength(cloud: TestCloud) -> None:
    user = make_user(cloud, "strength")
    words = "at least 7 characters with a digit"
    with setting(cloud, password_regex=r"^(?=.*\d).{7,}$", password_regex_description=words):
        for got in (
            cloud.request("POST", "/v3/users", {"user": {"name": "weak", "password": "weak"}}),
            cloud.request("PATCH", f"/v3/users/{user['id']}", {"user": {"password": "weak"}}),
            change(cloud, user, "s3cret", "weak"),
        ):
            assert got.status == 400
            assert words in got.json["error"]["message"]
            assert "weak" not in got.json["error"]["message"]
        assert refused(change(cloud, user, "wrong", "weak"))  # strangers learn nothing
        assert change(cloud, user, "s3cret", "str0nger").status == 204
        assert cloud.request("POST", "/v3/users", {"user": {"name": "no-password", "password": None}}).status == 201


def test_bad_pattern_stops_the_start() -> None:
    with pytest.raises(BadSetting, match="password_regex"):
        Settings(password_regex="(")
    with pytest.raises(BadSetting, match="password_hash_algorithm"):
        Settings(password_hash_algorithm="md5")
    with pytest.raises(BadSetting, match="lockout_duration"):
        Settings(lockout_duration=-1)


def test_history(cloud: TestCloud) -> None:
    with setting(cloud, unique_last_password_count=3):
        user = make_user(cloud, "history")
        assert change(cloud, user, "s3cret", "s3cret").status == 400
        assert change(cloud, user, "s3cret", "second").status == 204
        assert change(cloud, user, "second", "third").status == 204
        got = change(cloud, user, "third", "s3cret")
        assert got.status == 400
        assert "3" in got.json["error"]["message"]
        patch(cloud, user, password="fourth")  # an administrator's counts as well
        assert change(cloud, user, "fourth", "second").status == 400
        assert change(cloud, user, "fourth", "s3cret").status == 204
        patch(cloud, user, password="fourth")  # an administrator is not asked
    assert change(cloud, user, "fourth", "fourth").status == 204  # no history is asked for


def test_minimum_age(cloud: TestCloud, calendar: Calendar) -> None:
    with setting(cloud, minimum_password_age=2):
        user = make_user(cloud, "age")
        assert change(cloud, user, "s3cret", "second").status == 204  # an administrator gave the first
        got = change(cloud, user, "second", "third")
        assert got.status == 400
        assert "2 day(s)" in got.json["error"]["message"]
        calendar.go(2 * DAY + 1)
        assert change(cloud, user, "second", "third").status == 204
        patch(cloud, user, password="fourth")
        assert change(cloud, user, "fourth", "fifth").status == 204


def test_locked_password(cloud: TestCloud) -> None:
    user = make_user(cloud, "pinned", options={"lock_password": True})
    assert refused(change(cloud, user, "wrong", "0ther"))
    got = change(cloud, user, "s3cret", "0ther")
    assert got.status == 400
    assert "lock_password" in got.json["error"]["message"]
    patch(cloud, user, password="admin-may")
    patch(cloud, user, options={"lock_password": None})
    assert change(cloud, user, "admin-may", "0ther").status == 204


@pytest.mark.req("A/ID-41")
@pytest.mark.req("A/ID-42")
def test_tokens_end_with_the_password(cloud: TestCloud) -> None:
    user = make_user(cloud, "revoked")
    token = login(cloud, user).headers["x-subject-token"]
    assert cloud.request("GET", "/v3/auth/projects", token=token).status == 200
    assert change(cloud, user, "s3cret", "n3w").status == 204
    assert cloud.request("GET", "/v3/auth/projects", token=token).status == 401
    assert refused(login(cloud, user))
    assert login(cloud, user, "n3w").status == 201


@pytest.mark.parametrize(
    "body",
    [
        None,
        {},
        {"user": {}},
        {"user": {"password": "x"}},
        {"user": {"original_password": "s3cret"}},
        {"user": {"original_password": "s3cret", "password": None}},
        {"user": {"original_password": 5, "password": "x"}},
        {"user": {"original_password": "s3cret", "password": "x" * 5000}},
        {"user": {"original_password": "s3cret", "password": "x", "more": 1}},
        {"user": "x"},
    ],
)
def test_bad_change(cloud: TestCloud, body: Any) -> None:
    got = cloud.request("POST", "/v3/users/nobody/password", body, token="")
    assert got.status == 400, got.body


# --- inactivity ----------------------------------------------------------------------------------------------------


def test_inactive_users_are_disabled(cloud: TestCloud, calendar: Calendar) -> None:
    with setting(cloud, disable_user_account_days_inactive=30):
        user = make_user(cloud, "idle")
        robot = make_user(cloud, "idle-robot", options={"ignore_user_inactivity": True})
        calendar.go(20 * DAY)
        assert login(cloud, user).status == 201
        calendar.go(20 * DAY)
        assert login(cloud, user).status == 201  # the last login counts, not the first
        assert show(cloud, user)["enabled"] is True
        calendar.go(30 * DAY)
        assert refused(login(cloud, user))
        assert refused(change(cloud, user, "s3cret", "0ther"))
        assert show(cloud, user)["enabled"] is False
        assert login(cloud, robot).status == 201
        assert patch(cloud, user, enabled=True)["enabled"] is True
        assert login(cloud, user).status == 201
    calendar.go(1000 * DAY)
    assert login(cloud, user).status == 201


def test_inactive_users_have_no_application_credential(cloud: TestCloud, calendar: Calendar) -> None:
    project = cloud.request("POST", "/v3/projects", {"project": {"name": "idle"}}).json["project"]
    user = make_user(cloud, "idle-creds")
    role = cloud.request("GET", "/v3/roles?name=member").json["roles"][0]["id"]
    assert cloud.request("PUT", f"/v3/projects/{project['id']}/users/{user['id']}/roles/{role}").status == 204
    who = {"user": {"id": user["id"], "password": "s3cret"}}
    scope = {"project": {"id": project["id"]}}
    body: dict[str, Any] = {"auth": {"identity": {"methods": ["password"], "password": who}, "scope": scope}}
    token = cloud.request("POST", "/v3/auth/tokens", body, token="").headers["x-subject-token"]
    url = f"/v3/users/{user['id']}/application_credentials"
    made = cloud.request("POST", url, {"application_credential": {"name": "robot"}}, token=token)
    assert made.status == 201, made.body
    robot = {k: made.json["application_credential"][k] for k in ("id", "secret")}
    body = {"auth": {"identity": {"methods": ["application_credential"], "application_credential": robot}}}
    with setting(cloud, disable_user_account_days_inactive=30):
        for _ in range(3):
            calendar.go(20 * DAY)
            assert cloud.request("POST", "/v3/auth/tokens", body, token="").status == 201  # counts as activity
        calendar.go(30 * DAY)
        assert refused(cloud.request("POST", "/v3/auth/tokens", body, token=""))


# --- hashes --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("algorithm", "rounds", "start"),
    [
        ("scrypt", 4, "$scrypt$ln=4,"),
        ("pbkdf2_sha512", 1000, "$pbkdf2-sha512$1000$"),
        ("bcrypt_sha256", 0, "$bcrypt-sha256$"),
    ],
)
def test_hash_is_renewed_at_login(cloud: TestCloud, algorithm: str, rounds: int, start: str) -> None:
    user = make_user(cloud, f"rehash-{algorithm}")
    assert stored(cloud, user).startswith("$2b$04$")
    with setting(cloud, password_hash_algorithm=algorithm, password_hash_rounds=rounds):
        assert refused(login(cloud, user, "wrong"))
        assert stored(cloud, user).startswith("$2b$04$")
        token = login(cloud, user)
        assert token.status == 201
        renewed = stored(cloud, user)
        assert renewed.startswith(start)
        assert login(cloud, user).status == 201
        assert stored(cloud, user) == renewed
        assert refused(login(cloud, {"id": "nobody"}))
    assert login(cloud, user).status == 201
    kept = start if algorithm == "bcrypt_sha256" else "$2b$04$"  # bcrypt itself uses it for long passwords
    assert stored(cloud, user).startswith(kept)
    assert cloud.request("GET", "/v3/auth/projects", token=token.headers["x-subject-token"]).status == 200


def test_long_passwords_are_not_cut(cloud: TestCloud) -> None:
    user = make_user(cloud, "long", password="x" * 72 + "a")
    assert refused(login(cloud, user, "x" * 72 + "b"))
    assert refused(login(cloud, user, "x" * 72))
    assert login(cloud, user, "x" * 72 + "a").status == 201
    short = make_user(cloud, "long-short", password="y" * 72)
    assert refused(login(cloud, short, "y" * 73))


def stored(cloud: TestCloud, user: dict[str, Any]) -> str:
    with cloud.cloud.store.read() as reader:
        found = lookup.user(reader, user["id"])
    assert found is not None
    return str(found["password"])


# --- rate limit ----------------------------------------------------------------------------------------------------


def test_failures_are_limited_per_user_and_address(cloud: TestCloud, monkeypatch: pytest.MonkeyPatch) -> None:
    at = [1000.0]
    monkeypatch.setattr(clock, "monotonic", lambda: at[0])
    with setting(cloud, login_failures_per_minute=3):
        user, other = make_user(cloud, "rate"), make_user(cloud, "rate-other")
        for _ in range(10):
            assert login(cloud, user).status == 201  # who is right is not limited
        for password in ("wrong", "wrong", "s3cret", "wrong"):
            assert login(cloud, user, password).status == (201 if password == "s3cret" else 401)
        got = login(cloud, user, "wrong")
        assert got.status == 429
        assert 0 < int(got.headers["retry-after"]) <= 20
        assert change(cloud, user, "s3cret", "0ther").status == 429
        assert login(cloud, other).status == 201
        assert login(cloud, user, client="203.0.113.5").status == 201
        at[0] += int(got.headers["retry-after"])
        assert refused(login(cloud, user, "wrong"))
        assert login(cloud, user).status == 429
        for _ in range(3):
            assert refused(login(cloud, {"id": "nobody-at-all"}))
        assert login(cloud, {"id": "nobody-at-all"}).status == 429  # as if there were such a user
        at[0] += 60
        assert login(cloud, user).status == 201


def test_passcodes_are_limited_and_tokens_are_not(cloud: TestCloud, monkeypatch: pytest.MonkeyPatch) -> None:
    at = clock.now()
    monkeypatch.setattr(clock, "now", lambda: at)
    user, secret = make_user(cloud, "rate-totp"), "GEZDGNBVGY3TQOJQ"
    body = {"credential": {"type": "totp", "user_id": user["id"], "blob": secret}}
    assert cloud.request("POST", "/v3/credentials", body).status == 201
    token = login(cloud, user).headers["x-subject-token"]
    right = passcode(secret, int(clock.seconds(at)) // STEP_S)

    def by(method: str, part: dict[str, Any]) -> int:
        body = {"auth": {"identity": {"methods": [method], method: part}, "scope": "unscoped"}}
        return cloud.request("POST", "/v3/auth/tokens", body, token="").status

    with setting(cloud, login_failures_per_minute=2):
        for code, status in (("x", 401), ("y", 401), ("z", 429), (right, 429)):
            assert by("totp", {"user": {"id": user["id"], "passcode": code}}) == status
        assert by("token", {"id": token}) == 201
    assert by("totp", {"user": {"id": user["id"], "passcode": right}}) == 201


def test_deleted_user_leaves_nothing(cloud: TestCloud) -> None:
    with setting(cloud, unique_last_password_count=3, lockout_failure_attempts=3):
        user = make_user(cloud, "gone")
        assert change(cloud, user, "s3cret", "second").status == 204
        login(cloud, user, "wrong")
    assert cloud.request("DELETE", f"/v3/users/{user['id']}").status == 204
    with cloud.cloud.store.read() as reader:
        for table in (SECURITY, OLD_PASSWORD):
            left = sa.select(sa.func.count()).select_from(table).where(table.c.user_id == user["id"])
            assert reader.scalar(left) == 0
