"""Identity's default rules: who may do what, as Keystone's published defaults say."""

from __future__ import annotations

from typing import Any

import pytest

from nubila.core.policy import Policy
from nubila.core.tokens import Creds
from nubila.services.identity.policies import RULES

ADMIN = Creds(user_id="a", project_id="pa", project_domain_id="default", roles=("admin", "manager", "member", "reader"))
SYSTEM_READER = Creds(user_id="s", system_scope="all", roles=("reader",))
MANAGER = Creds(user_id="m", domain_id="d1", roles=("manager", "member", "reader"))
DOMAIN_READER = Creds(user_id="r", domain_id="d1", roles=("reader",))
MEMBER = Creds(user_id="u", project_id="p1", project_domain_id="d1", user_domain_id="d1", roles=("member", "reader"))
SERVICE = Creds(user_id="n", project_id="ps", roles=("service",))
CALLERS = {
    "admin": ADMIN, "system": SYSTEM_READER, "manager": MANAGER, "reader": DOMAIN_READER, "member": MEMBER,
    "service": SERVICE,
}  # fmt: skip

USER = {"target.user.id": "u", "target.user.domain_id": "d1", "user_id": "u"}
OTHER_USER = {"target.user.id": "x", "target.user.domain_id": "d2", "user_id": "x"}
PROJECT = {"target.project.id": "p1", "target.project.domain_id": "d1"}
GRANT = USER | PROJECT | {"target.role.name": "member", "target.role.domain_id": None}


@pytest.mark.req("A/ID-20")
@pytest.mark.parametrize(
    ("rule", "target", "who"),
    [
        ("get_user", USER, "admin system manager reader member"),
        ("get_user", OTHER_USER, "admin system"),
        ("update_user", USER, "admin manager"),
        ("create_user", OTHER_USER, "admin"),
        ("get_project", PROJECT, "admin system manager reader member"),
        ("get_project", {"target.project.id": "p2", "target.project.domain_id": None}, "admin system"),
        ("create_project", PROJECT, "admin manager"),
        ("list_projects", {"target.domain_id": "d1"}, "admin system manager reader"),
        ("create_grant", GRANT, "admin manager"),
        ("create_grant", GRANT | {"target.role.name": "admin"}, "admin"),
        ("create_grant", GRANT | {"target.user.domain_id": "d2"}, "admin"),
        ("check_grant", GRANT, "admin system manager reader"),
        ("create_system_grant_for_user", USER, "admin"),
        ("list_system_grants_for_user", USER, "admin system"),
        ("create_domain", {}, "admin"),
        ("get_domain", {"target.domain.id": "d1"}, "admin system manager reader member"),
        ("list_roles", {}, "admin system manager"),
        ("get_role", {"target.role.name": "reader"}, "admin system manager"),
        ("get_region", {}, "admin system manager reader member service"),
        ("create_service", {}, "admin"),
        ("validate_token", {"target.token.user_id": "u"}, "admin system member service"),
        ("revoke_token", {"target.token.user_id": "u"}, "admin member"),
        ("get_auth_catalog", {}, "admin system manager reader member service"),
        ("get_credential", {"target.credential.user_id": "u"}, "admin system member"),
        ("create_application_credential", {"user_id": "u"}, "member"),
        ("create_application_credential", {"user_id": "a"}, "admin"),
    ],
)
def test_who_may(rule: str, target: dict[str, Any], who: str) -> None:
    policy = Policy({"identity": RULES})
    assert [name for name, creds in CALLERS.items() if policy.enforce(f"identity:{rule}", creds, target)] == who.split()


def test_the_rules_are_complete_in_themselves() -> None:
    policy = Policy({"identity": RULES})
    assert policy.unknown == ()
    assert len({rule.name for rule in RULES}) == len(RULES)
    assert all(rule.doc.endswith(".") for rule in RULES)
    assert all(rule.operations for rule in RULES if rule.name.startswith("identity:"))
