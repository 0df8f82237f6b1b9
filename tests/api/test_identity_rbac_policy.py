"""Policy files that take effect while the cloud runs, and ``nubila policy``: who may do what, and why."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner, Result

from nubila.apps import policy_view
from nubila.apps.cli import main
from nubila.core.policy import Policy, policy_files
from nubila.core.rule_explain import explain
from nubila.core.rules import RuleSet
from nubila.testing.cloud import TestCloud


@pytest.fixture(scope="module")
def cloud(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestCloud]:
    made = TestCloud(tmp_path_factory.mktemp("cloud"), hosts=0)
    (made.state / "run").mkdir(exist_ok=True)
    (made.state / "run" / "options.json").write_text("{}")
    yield made
    made.close()


@pytest.fixture
def files(cloud: TestCloud) -> Iterator[Path]:
    """The state directory; policy files put there are gone afterwards."""
    yield cloud.state
    for path in cloud.state.glob("policy*"):
        path.unlink()
    read_again(cloud)


def read_again(cloud: TestCloud) -> None:
    cloud.cloud.policy._next = 0.0  # as if the second between two looks had passed
    cloud.cloud.policy.reload_if_changed()


def nubila(cloud: TestCloud, *words: str) -> Result:
    return CliRunner().invoke(main, ["policy", words[0], "--state", str(cloud.state), *words[1:]])


# --- policy files --------------------------------------------------------------------------------------------------


@pytest.mark.req("A/ID-12")
@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("policy.yaml", '"identity:list_regions": "role:admin"\n'),
        ("policy.identity.yaml", '"identity:list_regions": "rule:admin_required"\n'),
        ("policy.json", '{"identity:list_regions": [["role:admin"]]}'),
        ("policy.json", '{"identity:list_regions": "rule:ours", "ours": "role:admin and not role:none"}'),
    ],
)
def test_a_policy_file_takes_effect_at_once(cloud: TestCloud, files: Path, name: str, text: str) -> None:
    demo = cloud.token("demo")
    assert cloud.request("GET", "/v3/regions", token=demo).status == 200
    (files / name).write_text(text)
    read_again(cloud)
    assert cloud.request("GET", "/v3/regions", token=demo).status == 403
    assert cloud.request("GET", "/v3/regions").status == 200
    (files / name).write_text("{broken")
    read_again(cloud)
    assert cloud.request("GET", "/v3/regions", token=demo).status == 403  # the last good one stays
    (files / name).unlink()
    read_again(cloud)
    assert cloud.request("GET", "/v3/regions", token=demo).status == 200


@pytest.mark.req("A/ID-13", "A/ID-14")
def test_a_role_that_everything_asks_for(cloud: TestCloud, files: Path) -> None:
    """The old recipe, in the old form: what is not for administrators needs the role compute-user."""
    policy, demo = cloud.cloud.policy, cloud.token("demo")
    free = [name for name in policy.defaults["compute"] if name.startswith("os_compute_api:")]
    nobody = {"roles": ["member", "reader"], "project_id": "p"}
    target = {"project_id": "p"}
    free = [name for name in free if policy.enforce(name, nobody, target, "compute")]
    assert "os_compute_api:os-flavor-manage:create" not in free  # only administrators, from the start
    assert len(free) > 50
    assert cloud.request("GET", "/compute/v2.1/servers", token=demo).status == 200
    (files / "policy.compute.json").write_text(json.dumps({name: [["role:compute-user"]] for name in free}))
    read_again(cloud)
    assert policy.problem is None
    user = {**nobody, "roles": ["compute-user"]}
    for name in free:
        assert not policy.enforce(name, nobody, target, "compute"), name
        assert policy.enforce(name, user, target, "compute"), name
    assert not policy.enforce("os_compute_api:os-flavor-manage:create", user, target, "compute")
    assert cloud.request("GET", "/compute/v2.1/servers", token=demo).status == 403


def test_scopes_stay_when_a_text_is_overridden(cloud: TestCloud, files: Path) -> None:
    (files / "policy.yaml").write_text('"identity:list_services": "@"\n')
    read_again(cloud)
    policy = cloud.cloud.policy
    assert policy.enforce("identity:list_services", {"roles": [], "project_id": "p"}, {})
    assert not policy.enforce("identity:list_services", {"roles": ["admin"], "domain_id": "d"}, {})


# --- why -----------------------------------------------------------------------------------------------------------

RULES = RuleSet(
    {
        "admin": "role:admin",
        "own": "project_id:%(project_id)s",
        "see": "rule:admin or (role:reader and rule:own)",
        "strange": "not (role:a or 'x':%(name)s) and None:%(gone)s",
        "shared": "field:networks:shared=True",
        "nobody": "!",
        "lost": "rule:absent",
    }
)


@pytest.mark.parametrize(
    ("rule", "creds", "target", "answer", "reasons"),
    [
        ("see", {"roles": ["admin"]}, {}, True, ["role:admin"]),
        ("see", {"roles": ["reader"], "project_id": "p"}, {}, None, ["project_id:%(project_id)s"]),
        ("see", {"roles": ["reader"], "project_id": "p"}, {"project_id": "p"}, True,
         ["role:reader", "project_id:%(project_id)s"]),
        ("see", {"roles": ["reader"], "project_id": "p"}, {"project_id": "q"}, False,
         ["role:admin", "project_id:%(project_id)s"]),
        ("see", {"roles": ["x"], "project_id": "p"}, {}, False, ["role:admin", "role:reader"]),
        ("own", {"roles": ["x"]}, {}, False, ["project_id:%(project_id)s"]),
        ("strange", {"roles": []}, {"name": "y", "gone": None}, True, ["role:a", "'x':%(name)s", "None:%(gone)s"]),
        ("strange", {"roles": ["a"]}, {}, False, ["role:a"]),
        ("shared", {}, {}, None, ["field:networks:shared=True"]),
        ("shared", {}, {"shared": True}, True, ["field:networks:shared=True"]),
        ("nobody", {}, {}, False, ["!"]),
        ("lost", {}, {}, False, ["rule:absent"]),
        ("unknown", {}, {}, False, ["unknown"]),
    ],
)  # fmt: skip
def test_the_parts_that_decide(
    rule: str, creds: dict[str, Any], target: dict[str, Any], answer: bool | None, reasons: list[str]
) -> None:
    found = explain(RULES, rule, creds, target)
    assert found.answer is answer
    assert [leaf.text for _, leaf in found.deciding()] == reasons
    if answer is not None:
        assert RULES.decide(rule, creds, target) is answer


def test_explanations_agree_with_decisions(cloud: TestCloud) -> None:
    """Where an explanation says yes or no, with whatever the target has, the policy says the same."""
    policy = cloud.cloud.policy
    people = [
        {"roles": list(roles), "user_id": "u", "project_id": "p", "is_admin": "admin" in roles}
        for roles in ((), ("reader",), ("member", "reader"), ("admin", "member", "reader"))
    ]
    decided = 0
    for service, rule in policy_view.rules(cloud.cloud):
        rules = policy.rules_of(service)
        assert rules is not None
        for creds in people:
            answer = explain(rules, rule.name, creds, {}).answer
            if answer is not None:
                decided += 1
                allowed = not policy.scopes(rule.name, service) or "project" in policy.scopes(rule.name, service)
                assert policy.enforce(rule.name, creds, {}, service) is (answer and allowed), rule.name
    assert decided > 500


# --- the command ---------------------------------------------------------------------------------------------------


@pytest.mark.req("A/ID-12")
@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (("identity:create_domain", "--user", "admin", "--project", "admin"), 0, "allowed"),
        (("identity:create_domain", "--user", "demo", "--project", "demo"), 1, "role:admin does not hold"),
        (("identity:create_domain", "--user", "admin", "--domain", "Default"), 1, "the token is for a domain"),
        (("identity:create_domain", "--user", "admin", "--system"), 0, "rule:admin_required > role:admin holds"),
        (("identity:get_user", "--user", "demo", "--project", "demo"), 3, "if target.user.id of the target is user_id"),
        (("identity:get_user", "--role", "reader", "--system"), 0, "system_scope:all holds"),
        (("identity:get_user", "--role", "reader", "--domain", "default", "--target", "target.user.domain_id=default"),
         0, "token.domain.id:%(target.user.domain_id)s holds"),
        (("identity:get_user", "--role", "reader", "--domain", "default", "--target", "target.user.domain_id=x"), 1,
         "token.domain.id:%(target.user.domain_id)s does not hold"),
        (("--operation", "GET /v3/users", "--user", "demo", "--project", "demo"), 1, "identity:list_users"),
        (("--operation", "GET /v3/users/4711", "--role", "admin", "--system"), 0, "identity:get_user"),
        (("--operation", "post /compute/v2.1/servers", "--user", "demo", "--project", "demo"), 1,
         "os_compute_api:servers:create "),
        (("--operation", "GET /network/v2.0/networks", "--role", "admin"), 0, "get_network (network): allowed"),
        (("--operation", "GET /v3/nonsense", "--role", "admin"), 2, "no rule governs"),
        (("--operation", "users", "--role", "admin"), 2, "a method and a path"),
        (("identity:get_usr", "--role", "admin"), 2, "no rule is called"),
        (("identity:get_user",), 2, "say who asks"),
        (("identity:get_user", "--user", "ghost", "--project", "demo"), 2, "there is no user 'ghost'"),
        (("identity:get_user", "--user", "demo", "--project", "admin"), 2, "has no role"),
        (("identity:get_user", "--role", "a", "--service", "mail"), 2, "there is no service"),
        (("identity:get_user", "--cloud", "nope"), 2, "clouds.yaml"),
        (("identity:get_user", "--role", "a", "--target", "x"), 2, "NAME=VALUE"),
        (("identity:get_user", "--role", "a", "--project", "demo", "--system"), 2, "one of"),
        ((), 2, "give either RULE or --operation"),
    ],
)  # fmt: skip
def test_check(cloud: TestCloud, words: tuple[str, ...], code: int, says: str) -> None:
    got = nubila(cloud, "check", *words)
    assert says in got.output, got.output
    assert got.exit_code == code, got.output


def test_check_as_json(cloud: TestCloud) -> None:
    got = nubila(cloud, "check", "identity:list_regions", "--role", "x", "--json")
    found = json.loads(got.stdout)
    assert [(v["rule"], v["answer"], v["text"]) for v in found] == [("identity:list_regions", "allowed", "")]


def test_list(cloud: TestCloud, files: Path) -> None:
    (files / "policy.yaml").write_text('"identity:list_regions": "role:reader"\n')
    got = nubila(cloud, "list", "identity:*_region*")
    assert got.exit_code == 0
    assert "* identity   identity:list_regions: role:reader" in got.output
    assert "  identity   identity:get_region: everybody" in got.output
    rows = json.loads(nubila(cloud, "list", "--service", "placement", "--json").stdout)
    assert {row["service"] for row in rows} == {"placement"}
    (files / "policy.yaml").write_text('"identity:list_regoins": "!"')
    got = nubila(cloud, "list", "identity:*_region*")
    assert got.exit_code == 0
    assert "has 'identity:list_regoins', which no service declares" in got.output
    (files / "policy.yaml").write_text("[]")
    got = nubila(cloud, "list")
    assert got.exit_code == 1
    assert "must be a mapping" in got.output


@pytest.mark.req("A/ID-12")
@pytest.mark.parametrize("service", ["", "identity", "compute", "network", "image", "placement"])
def test_what_is_rendered_is_the_policy_in_force(cloud: TestCloud, files: Path, tmp_path: Path, service: str) -> None:
    (files / "policy.yaml").write_text('"identity:list_regions": "rule:ours"\n"ours": "role:x"\n')
    got = nubila(cloud, "render", *(("--service", service) if service else ()))
    assert got.exit_code == 0
    text = got.stdout
    assert isinstance(yaml.safe_load(text), dict)
    (tmp_path / f"policy{'.' + service if service else ''}.yaml").write_text(text)
    read_again(cloud)
    now, defaults = cloud.cloud.policy, cloud.cloud.policy.defaults
    again = Policy({s: list(mine.values()) for s, mine in defaults.items()}, policy_files(tmp_path, defaults))
    assert again.problem is None
    assert again.unknown == ()
    for owner in [service] if service else defaults:
        for name in defaults[owner]:
            assert again.text(name, owner) == now.text(name, owner), name
    if service in ("", "identity"):
        assert '# Default: ""\n"identity:list_regions": "rule:ours"' in text
        assert '"ours": "role:x"' in text
