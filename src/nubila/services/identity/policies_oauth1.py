"""Keystone's published policy rules for OAuth 1.0a."""

from __future__ import annotations

from nubila.core.policy import Rule
from nubila.services.identity.policies import ADMIN, ADMIN_OR_READER

_CONSUMERS = "/v3/OS-OAUTH1/consumers"
_CONSUMER = f"{_CONSUMERS}/{{consumer_id}}"
_TOKENS = "/v3/users/{user_id}/OS-OAUTH1/access_tokens"
_TOKEN = f"{_TOKENS}/{{access_token_id}}"
_ANY, _PROJECT = ("system", "project"), ("project",)


def _rule(name: str, text: str, doc: str, method: str, path: str, scopes: tuple[str, ...]) -> Rule:
    return Rule(f"identity:{name}", text, doc, ((method, path),), scopes)


RULES: list[Rule] = [
    _rule("get_consumer", ADMIN_OR_READER, "Show an OAuth consumer.", "GET", _CONSUMER, _ANY),
    _rule("list_consumers", ADMIN_OR_READER, "List OAuth consumers.", "GET", _CONSUMERS, _ANY),
    _rule("create_consumer", ADMIN, "Create an OAuth consumer.", "POST", _CONSUMERS, _ANY),
    _rule("update_consumer", ADMIN, "Change an OAuth consumer.", "PATCH", _CONSUMER, _ANY),
    _rule("delete_consumer", ADMIN, "Delete an OAuth consumer.", "DELETE", _CONSUMER, _ANY),
    _rule(
        "authorize_request_token", ADMIN, "Let a consumer act for oneself.", "PUT",
        "/v3/OS-OAUTH1/authorize/{request_token_id}", _PROJECT,
    ),
    _rule("get_access_token", ADMIN, "Show an OAuth access token of a user.", "GET", _TOKEN, _PROJECT),
    _rule("list_access_tokens", ADMIN, "List the OAuth access tokens of a user.", "GET", _TOKENS, _PROJECT),
    _rule(
        "get_access_token_role", ADMIN, "Show a role of such a token.", "GET", f"{_TOKEN}/roles/{{role_id}}", _PROJECT
    ),
    _rule("list_access_token_roles", ADMIN, "List the roles of such a token.", "GET", f"{_TOKEN}/roles", _PROJECT),
    _rule("delete_access_token", ADMIN, "Delete an OAuth access token of a user.", "DELETE", _TOKEN, _PROJECT),
]  # fmt: skip
