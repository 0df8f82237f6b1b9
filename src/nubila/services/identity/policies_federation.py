"""Keystone's published policy rules for federation."""

from __future__ import annotations

from nubila.core.policy import Rule
from nubila.services.identity.policies import ADMIN, ADMIN_OR_READER

_SCOPES = ("system", "project")
_BASE = "/v3/OS-FEDERATION"


def _managed(item: str, items: str, what: str, path: str, one: str) -> list[Rule]:
    """The five rules of a thing that only administrators change."""
    single, many = f"{_BASE}/{path}/{one}", f"{_BASE}/{path}"
    return [
        Rule(f"identity:create_{item}", ADMIN, f"Create {what}.", (("PUT", single),), _SCOPES),
        Rule(f"identity:list_{items}", ADMIN_OR_READER, f"List every {what[2:].strip()}.", (("GET", many),), _SCOPES),
        Rule(f"identity:get_{item}", ADMIN_OR_READER, f"Show {what}.", (("GET", single),), _SCOPES),
        Rule(f"identity:update_{item}", ADMIN, f"Change {what}.", (("PATCH", single),), _SCOPES),
        Rule(f"identity:delete_{item}", ADMIN, f"Delete {what}.", (("DELETE", single),), _SCOPES),
    ]


RULES: list[Rule] = [
    *_managed("identity_provider", "identity_providers", "an identity provider", "identity_providers", "{idp_id}"),
    *_managed("protocol", "protocols", "a protocol", "identity_providers/{idp_id}/protocols", "{protocol_id}"),
    *_managed("mapping", "mappings", "a mapping", "mappings", "{mapping_id}"),
    *_managed(
        "service_provider", "service_providers", "a service provider", "service_providers", "{service_provider_id}"
    ),
]
