"""Keystone's published policy rules for the configuration of domains."""

from __future__ import annotations

from nubila.core.policy import Rule
from nubila.services.identity.policies import ADMIN, ADMIN_OR_READER

_ALL = "/v3/domains/{domain_id}/config"
_PARTS = ("", "/{group}", "/{group}/{option}")
_SCOPES = ("system", "project")


def _rule(name: str, text: str, doc: str, method: str, paths: tuple[str, ...], scopes: tuple[str, ...]) -> Rule:
    return Rule(f"identity:{name}", text, doc, tuple((method, path) for path in paths), scopes)


_EACH = tuple(_ALL + part for part in _PARTS)
_COMPLIANCE = f"{_ALL}/security_compliance"
RULES: list[Rule] = [
    _rule("create_domain_config", ADMIN, "Set the configuration of a domain.", "PUT", (_ALL,), _SCOPES),
    _rule("get_domain_config", ADMIN_OR_READER, "Show the configuration of a domain.", "GET", _EACH, _SCOPES),
    _rule("update_domain_config", ADMIN, "Change the configuration of a domain.", "PATCH", _EACH, _SCOPES),
    _rule("delete_domain_config", ADMIN, "Delete the configuration of a domain.", "DELETE", _EACH, _SCOPES),
    _rule(
        "get_security_compliance_domain_config", "", "Ask what passwords must look like.", "GET",
        (_COMPLIANCE, f"{_COMPLIANCE}/{{option}}"), ("system", "domain", "project"),
    ),
    _rule(
        "get_domain_config_default", ADMIN_OR_READER, "Show what domains have by default.", "GET",
        ("/v3/domains/config/default", *(f"/v3/domains/config{p}/default" for p in _PARTS[1:])), _SCOPES,
    ),
]  # fmt: skip
