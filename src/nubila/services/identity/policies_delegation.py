"""Keystone's published policy rules for limits, trusts and signed requests."""

from __future__ import annotations

from nubila.core.policy import Rule
from nubila.services.identity.policies import ADMIN, SYSTEM_READER

_OWN_LIMIT = (
    "(domain_id:%(target.limit.domain.id)s or domain_id:%(target.limit.project.domain_id)s) or "
    "(project_id:%(target.limit.project_id)s and not None:%(target.limit.project_id)s)"
)
_TRUSTOR, _TRUSTEE = "user_id:%(target.trust.trustor_user_id)s", "user_id:%(target.trust.trustee_user_id)s"
_SEE_TRUST = f"({ADMIN}) or {SYSTEM_READER} or {_TRUSTOR} or {_TRUSTEE}"
_REGISTERED, _LIMITS, _TRUSTS = "/v3/registered_limits", "/v3/limits", "/v3/OS-TRUST/trusts"
_ALL, _NOT_DOMAIN, _PROJECT = ("system", "domain", "project"), ("system", "project"), ("project",)


def _rule(name: str, text: str, doc: str, method: str, path: str, scopes: tuple[str, ...] = _NOT_DOMAIN) -> Rule:
    return Rule(f"identity:{name}", text, doc, ((method, path),), scopes)


RULES: list[Rule] = [
    _rule("get_registered_limit", "", "Show a registered limit.", "GET", f"{_REGISTERED}/{{id}}", _ALL),
    _rule("list_registered_limits", "", "List registered limits.", "GET", _REGISTERED, _ALL),
    _rule("create_registered_limits", ADMIN, "Create registered limits.", "POST", _REGISTERED),
    _rule("update_registered_limit", ADMIN, "Change a registered limit.", "PATCH", f"{_REGISTERED}/{{id}}"),
    _rule("delete_registered_limit", ADMIN, "Delete a registered limit.", "DELETE", f"{_REGISTERED}/{{id}}"),
    _rule("get_limit_model", "", "Ask how limits are worked out.", "GET", f"{_LIMITS}/model", _ALL),
    _rule(
        "get_limit", f"{ADMIN} or {SYSTEM_READER} or {_OWN_LIMIT}", "Show a limit.", "GET", f"{_LIMITS}/{{id}}", _ALL,
    ),
    _rule("list_limits", "", "List the limits one may see.", "GET", _LIMITS, _ALL),
    _rule("create_limits", ADMIN, "Create limits.", "POST", _LIMITS),
    _rule("update_limit", ADMIN, "Change a limit.", "PATCH", f"{_LIMITS}/{{id}}"),
    _rule("delete_limit", ADMIN, "Delete a limit.", "DELETE", f"{_LIMITS}/{{id}}"),
    _rule("create_trust", _TRUSTOR, "Create a trust; only for oneself.", "POST", _TRUSTS, _PROJECT),
    _rule("list_trusts", f"{ADMIN} or {SYSTEM_READER}", "List all trusts.", "GET", _TRUSTS),
    _rule(
        "list_trusts_for_trustor", f"({ADMIN}) or {SYSTEM_READER} or {_TRUSTOR}", "List trusts one gave.", "GET",
        f"{_TRUSTS}?trustor_user_id={{trustor_user_id}}",
    ),
    _rule(
        "list_trusts_for_trustee", f"({ADMIN}) or {SYSTEM_READER} or {_TRUSTEE}", "List trusts one was given.", "GET",
        f"{_TRUSTS}?trustee_user_id={{trustee_user_id}}",
    ),
    _rule("get_trust", _SEE_TRUST, "Show a trust.", "GET", f"{_TRUSTS}/{{id}}"),
    _rule("delete_trust", f"{ADMIN} or {_TRUSTOR}", "Delete a trust.", "DELETE", f"{_TRUSTS}/{{id}}"),
    _rule("list_roles_for_trust", _SEE_TRUST, "List the roles of a trust.", "GET", f"{_TRUSTS}/{{id}}/roles"),
    _rule("get_role_for_trust", _SEE_TRUST, "Show a role of a trust.", "GET", f"{_TRUSTS}/{{id}}/roles/{{role_id}}"),
    _rule("ec2tokens_validate", "rule:service_or_admin", "Log in by an EC2 request.", "POST", "/v3/ec2tokens", _ALL),
    _rule("s3tokens_validate", "rule:service_or_admin", "Ask who signed an S3 request.", "POST", "/v3/s3tokens", _ALL),
]  # fmt: skip
