"""How the unmodified client is told who one is: by environment and by flags; and what it then sees."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from nubila.testing.started import Started, started

PROGRAM = str(Path(sys.executable).with_name("openstack"))


@pytest.fixture(scope="module")
def cloud() -> Iterator[Started]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NUBILA_BCRYPT_ROUNDS", "4")
        with started("simulated", "oscenv") as made:
            yield made


def environment(cloud: Started, who: str) -> dict[str, str]:
    """What an openrc file would set."""
    auth = yaml.safe_load((cloud.state / "clouds.yaml").read_text())["clouds"][f"nubila-{who}"]["auth"]
    return {"OS_IDENTITY_API_VERSION": "3", **{f"OS_{name.upper()}": str(value) for name, value in auth.items()}}


def openstack(env: dict[str, str], *argv: str) -> subprocess.CompletedProcess[str]:
    kept = {k: v for k, v in os.environ.items() if not k.startswith("OS_")}
    command = [PROGRAM, *argv]
    return subprocess.run(command, env={**kept, **env}, capture_output=True, text=True, timeout=120, check=False)


@pytest.mark.req("A/ID-09", "C/IDN-08")
def test_the_environment_says_who_one_is_and_flags_win(cloud: Started) -> None:
    env = environment(cloud, "admin")
    by_password = openstack(env, "user", "list", "-f", "value", "-c", "Name")
    assert "admin" in by_password.stdout.split(), by_password.stderr
    token = openstack(env, "token", "issue", "-f", "value", "-c", "id").stdout.strip()
    by_token = {"OS_AUTH_TYPE": "token", "OS_TOKEN": token} | {
        k: v for k, v in env.items() if "USER" not in k and "PASSWORD" not in k
    }
    assert openstack(by_token, "user", "list", "-f", "value", "-c", "Name").stdout == by_password.stdout
    wrong = {**env, "OS_PASSWORD": "wrong"}
    assert "401" in openstack(wrong, "user", "list").stderr
    flags = ["--os-password", env["OS_PASSWORD"]]
    assert openstack(wrong, *flags, "user", "list", "-f", "value", "-c", "Name").stdout == by_password.stdout
    no_env = [f"--{name.lower().replace('_', '-')}={value}" for name, value in env.items()]
    assert openstack({}, *no_env, "user", "list", "-f", "value", "-c", "Name").stdout == by_password.stdout


@pytest.mark.req("C/IDN-08")
@pytest.mark.parametrize(("left_out", "named"), [("OS_USERNAME", "user"), ("OS_AUTH_URL", "auth_url")])
def test_what_is_missing_is_named(cloud: Started, left_out: str, named: str) -> None:
    env = environment(cloud, "admin")
    del env[left_out]
    done = openstack(env, "user", "list")
    assert done.returncode != 0
    assert named in (done.stdout + done.stderr).lower().replace("-", "_")


@pytest.mark.req("A/ID-10")
def test_debug_shows_the_traffic_and_no_secret(cloud: Started) -> None:
    env = environment(cloud, "admin")
    done = openstack(env, "--debug", "user", "list")
    said = done.stdout + done.stderr
    assert "REQ: curl" in said
    assert "RESP: [200]" in said
    assert env["OS_PASSWORD"] not in said
    assert "X-Auth-Token: {SHA256}" in said


@pytest.mark.req("A/ID-57", "A/ID-58")
def test_key_pairs_are_the_users_and_the_rest_the_projects(cloud: Started) -> None:
    admin, demo = environment(cloud, "admin"), environment(cloud, "demo")
    other = {**demo, "OS_USERNAME": "second", "OS_PASSWORD": "second secret"}
    for argv in (
        ("user", "create", "--password", "second secret", "second"),
        ("role", "add", "--user", "second", "--project", demo["OS_PROJECT_NAME"], "member"),
    ):
        assert openstack(admin, *argv).returncode == 0
    assert openstack(demo, "keypair", "create", "mine", "-f", "json").returncode == 0
    keys = {who: openstack(env, "keypair", "list", "-f", "json").stdout for who, env in (("a", demo), ("b", other))}
    assert [k["Name"] for k in json.loads(keys["a"])] == ["mine"]
    assert json.loads(keys["b"]) == []
    made = openstack(demo, "network", "create", "ours", "-f", "json")
    assert made.returncode == 0, made.stderr
    assert "ours" in openstack(other, "network", "list", "-f", "value", "-c", "Name").stdout.split()
    assert openstack(admin, "server", "list", "-f", "json").stdout.strip() == "[]"
    unscoped = {k: v for k, v in demo.items() if "PROJECT" not in k}
    token = openstack(unscoped, "token", "issue", "-f", "json")
    assert "project_id" not in json.loads(token.stdout), "a token without a project has no catalogue"
    refused = openstack(unscoped, "server", "list")
    assert refused.returncode != 0
