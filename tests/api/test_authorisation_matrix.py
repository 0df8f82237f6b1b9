"""Every policy rule of every service x roles x scopes x targets: our engine with our defaults decides as oslo.policy
does with the check strings and scope types that the original services publish (tests/published_policies)."""

from __future__ import annotations

import fnmatch
import json
import re
from collections.abc import Iterator, Mapping
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from oslo_config import cfg
from oslo_policy import _checks, opts
from oslo_policy import policy as oslo

from nubila.apps import wiring
from nubila.core.policy import Policy, Rule

PUBLISHED = Path(__file__).parents[1] / "published_policies"
SERVICES = ("identity", "compute", "network", "image", "placement")
ROLES: dict[str, tuple[str, ...]] = {
    "none": (),
    "reader": ("reader",),
    "member": ("member", "reader"),
    "manager": ("manager", "member", "reader"),
    "admin": ("admin", "manager", "member", "reader"),
    "service": ("service",),
}
SCOPES: dict[str, dict[str, str]] = {
    "own project": {"project_id": "p1", "project_domain_id": "d1"},
    "other project": {"project_id": "p9", "project_domain_id": "d9"},
    "domain": {"domain_id": "d1"},
    "other domain": {"domain_id": "d9"},
    "system": {"system_scope": "all"},
    "unscoped": {},
}
USERS = ("u1", "u9")  # the one the target belongs to, and a stranger
RETIRED = {
    "identity:revocation_list": "PKI tokens are gone",
    "identity:revoke_tokens_for_user": "no request uses it",
}
"""Published names of Identity without an operation."""
NOT_OURS = {
    "*segment*": "subnets of single segments are not there yet",
    "*local_ip*": "local addresses are not there yet",
    "*pvlan*": "private VLANs came to the original in its newest release",
    "*evpn*": "EVPN belongs to the BGP project",
    "*:hints": "hints to Open vSwitch about single ports",
    "*data_plane*": "no data-plane-status extension",
    "*_default_statefulness": "no extension for the default of stateful groups",
    "*:enable_default_route_bfd": "routes are watched by no BFD",
    "*floatingip:router_id": "a floating address finds its router by its port",
    "update_subnet:leak_routes": "BGP",
    "update_l3-router": "no such operation",
    "create_agent": "agents appear by themselves",
    "create_default_security_group": "default groups appear by themselves",
    "admin_or_sg_owner": "a part of other rules, said in them",
    "admin_owner_or_sg_owner": "a part of other rules, said in them",
    "context_with_global_access": "a part of other rules, said in them",
}
"""Published names of Networking that stand for what is not there."""
_PLACE = re.compile(r"%\(([^)]+)\)s")


class _Field(_checks.Check):
    """Networking's own check, ``field:RESOURCE:ATTRIBUTE=VALUE``, written down from its documentation."""

    def __call__(self, target: Mapping[str, Any], creds: Any, enforcer: Any, current_rule: Any = None) -> bool:
        name, _, wanted = self.match.partition(":")[2].partition("=")
        value = target.get(name)
        if value is None:
            return False
        return re.match(wanted[1:], str(value)) is not None if wanted.startswith("~") else str(value) == wanted


@pytest.fixture(scope="module", autouse=True)
def _field_checks() -> Iterator[None]:
    before = dict(_checks.registered_checks)
    _checks.registered_checks["field"] = _Field
    yield
    _checks.registered_checks.clear()
    _checks.registered_checks.update(before)


def published(service: str) -> dict[str, tuple[str, list[str]]]:
    return {name: (text, scopes) for name, (text, scopes) in json.loads(
        (PUBLISHED / f"{service}.json").read_text())["rules"].items()}  # fmt: skip


def judge(rules: Mapping[str, tuple[str, list[str]]]) -> oslo.Enforcer:
    """oslo.policy with these rules, nothing read from files."""
    conf = cfg.ConfigOpts()
    conf([])
    opts._register(conf)
    enforcer = oslo.Enforcer(conf, use_conf=False, rules={}, default_rule="default")
    for name, (text, scopes) in rules.items():
        enforcer.register_default(oslo.RuleDefault(name, text, scope_types=scopes or None))
    enforcer.load_rules()
    enforcer.set_rules({n: r.check for n, r in enforcer.registered_rules.items()}, overwrite=True, use_conf=False)
    return enforcer


def callers() -> Iterator[tuple[str, dict[str, Any]]]:
    for (role, roles), (scope, where), user in product(ROLES.items(), SCOPES.items(), USERS):
        domain = "d1" if user == "u1" else "d9"
        creds: dict[str, Any] = {
            "user_id": user, "user_domain_id": domain, "roles": list(roles), "is_admin": role == "admin",
            "is_admin_project": True, "project_id": None, "project_domain_id": None, "domain_id": None,
            "system_scope": None, "service_roles": [], **where,
        }  # fmt: skip
        creds["tenant_id"], creds["system"] = creds["project_id"], creds["system_scope"]
        creds["token"] = {
            "domain": {"id": creds["domain_id"]}, "user": {"domain": {"id": domain}},
            "project": {"domain": {"id": creds["project_domain_id"]}},
        }  # fmt: skip
        yield f"{role}, {scope}, {'owner' if user == 'u1' else 'stranger'}", creds


def value_of(name: str, variant: int) -> Any:
    """What the target has under a name of the rules: it belongs to user u1, project p1, domain d1."""
    last = re.split(r"[.:]", name)[-1]
    if last in ("shared", "external", "belongs_to_default_sg", "is_public", "protected"):
        return variant % 2 == 0
    if name == "target.role.domain_id":
        return (None, "d1", "d7")[variant % 3]
    if name == "target.role.name":
        return ("reader", "admin", "manager")[variant % 3]
    if "user_id" in last or name == "target.user.id":
        return "u1"
    if last in ("project_id", "tenant_id", "owner", "member_id") or name.endswith("project.id"):
        return "p1" if variant < 3 else "p7"
    if "domain" in name:
        return "d1" if variant < 3 else "d7"
    if last == "device_owner":
        return ("network:dhcp", "compute:nova", "baremetal:none")[variant % 3]
    if last == "visibility":
        return ("public", "private", "shared")[variant % 3]
    return f"{last}-{variant}"


def targets(texts: list[str]) -> list[tuple[str, dict[str, Any]]]:
    """Targets that have everything the rules name, in several kinds, and one that has nothing."""
    names = {name for text in texts for name in _PLACE.findall(text)}
    names |= {"shared", "router:external", "device_owner", "belongs_to_default_sg", "port_security_enabled"}
    return [(f"kind {v}", {n: value_of(n, v) for n in sorted(names)}) for v in range(6)] + [("empty", {})]


def ours(service: str) -> list[Rule]:
    found: list[Rule] = wiring.rules(wiring.services())[service]
    return found


@pytest.mark.req("A/ID-12", "A/ID-20", "C/POL-02", "C/POL-11")
@pytest.mark.parametrize("service", SERVICES)
def test_every_cell_is_decided_as_published(service: str) -> None:
    declared, facts = ours(service), published(service)
    enforcer, policy = judge(facts), Policy({service: declared})
    rows = [rule for rule in declared if rule.name in facts]
    things = targets([text for text, _ in facts.values()] + [rule.text for rule in declared])
    people = list(callers())
    cells, wrong = 0, []
    decided: dict[Any, list[str]] = {}  # rules of the same text and scopes are one question
    for rule in rows:
        question = (rule.text, rule.scopes, facts[rule.name][0], tuple(facts[rule.name][1]))
        if question not in decided:
            decided[question] = [
                f"by {who} to {what}" for (who, creds), (what, target) in product(people, things)
                if policy.enforce(rule.name, creds, target, service) != enforcer.enforce(rule.name, target, creds)
            ]  # fmt: skip
        wrong += [f"{rule.name} {cell}" for cell in decided[question]]
        cells += len(people) * len(things)
    assert not wrong, f"{len(wrong)} of {cells} cells: {wrong[:20]}"
    assert cells == len(rows) * len(ROLES) * len(SCOPES) * len(USERS) * len(things)


@pytest.mark.req("A/ID-12", "A/ID-20")
@pytest.mark.parametrize("service", SERVICES)
def test_every_rule_is_a_published_one_with_its_scopes(service: str) -> None:
    facts = published(service)
    unknown = sorted(rule.name for rule in ours(service) if rule.name not in facts)
    assert not unknown, f"rules nobody publishes: {unknown}"
    scopes = {r.name: sorted(r.scopes) for r in ours(service) if r.operations and r.name in facts}
    assert scopes == {name: sorted(facts[name][1]) for name in scopes}


@pytest.mark.req("A/ID-12", "A/ID-20")
def test_identity_has_every_published_rule() -> None:
    assert sorted(set(published("identity")) - {rule.name for rule in ours("identity")}) == sorted(RETIRED)


@pytest.mark.req("C/POL-11")
def test_networking_has_every_published_rule_of_what_it_does() -> None:
    missing = set(published("network")) - {rule.name for rule in ours("network")}
    assert not [name for name in sorted(missing) if not any(fnmatch.fnmatch(name, known) for known in NOT_OURS)]


def test_the_judge_sees_a_planted_difference() -> None:
    facts = published("identity")
    enforcer = judge({**facts, "identity:create_domain": ("role:member", ["system"])})
    creds = {"roles": ["admin"], "project_id": "p", "user_id": "u"}
    assert not enforcer.enforce("identity:create_domain", {}, creds)
    assert Policy({"identity": ours("identity")}).enforce("identity:create_domain", creds, {})
