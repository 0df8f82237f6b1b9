"""Keystone's published policy rules for endpoint filters and policy associations."""

from __future__ import annotations

from nubila.core.policy import Rule
from nubila.services.identity.policies import ADMIN, ADMIN_OR_READER

_FILTER, _SCOPES = "/v3/OS-EP-FILTER", ("system", "project")
_GROUPS = f"{_FILTER}/endpoint_groups"
_GROUP = f"{_GROUPS}/{{endpoint_group_id}}"
_PROJECT = f"{_FILTER}/projects/{{project_id}}"
_POLICY = "/v3/policies/{policy_id}/OS-ENDPOINT-POLICY"


def _rule(name: str, text: str, doc: str, method: str, path: str) -> Rule:
    return Rule(f"identity:{name}", text, doc, ((method, path),), _SCOPES)


def _association(what: str, doc: str, path: str) -> list[Rule]:
    name = f"policy_association_for_{what}"
    return [
        _rule(f"create_{name}", ADMIN, f"Say that a policy is for {doc}.", "PUT", path),
        _rule(f"check_{name}", ADMIN_OR_READER, f"Ask whether a policy is for {doc}.", "GET", path),
        _rule(f"delete_{name}", ADMIN, f"Say that a policy is not for {doc} any more.", "DELETE", path),
    ]


RULES: list[Rule] = [
    _rule("create_endpoint_group", ADMIN, "Create an endpoint group.", "POST", _GROUPS),
    _rule("list_endpoint_groups", ADMIN_OR_READER, "List endpoint groups.", "GET", _GROUPS),
    _rule("get_endpoint_group", ADMIN_OR_READER, "Show an endpoint group.", "GET", _GROUP),
    _rule("update_endpoint_group", ADMIN, "Change an endpoint group.", "PATCH", _GROUP),
    _rule("delete_endpoint_group", ADMIN, "Delete an endpoint group.", "DELETE", _GROUP),
    _rule(
        "list_projects_associated_with_endpoint_group", ADMIN_OR_READER, "List the projects that see a group.", "GET",
        f"{_GROUP}/projects",
    ),
    _rule(
        "list_endpoints_associated_with_endpoint_group", ADMIN_OR_READER, "List the endpoints of a group.", "GET",
        f"{_GROUP}/endpoints",
    ),
    _rule(
        "get_endpoint_group_in_project", ADMIN_OR_READER, "Ask whether a project sees a group.", "GET",
        f"{_GROUP}/projects/{{project_id}}",
    ),
    _rule(
        "list_endpoint_groups_for_project", ADMIN_OR_READER, "List the groups a project sees.", "GET",
        f"{_PROJECT}/endpoint_groups",
    ),
    _rule(
        "add_endpoint_group_to_project", ADMIN, "Let a project see a group.", "PUT",
        f"{_GROUP}/projects/{{project_id}}",
    ),
    _rule(
        "remove_endpoint_group_from_project", ADMIN, "Let a project see a group no more.", "DELETE",
        f"{_GROUP}/projects/{{project_id}}",
    ),
    _rule(
        "list_projects_for_endpoint", ADMIN_OR_READER, "List the projects that were given an endpoint.", "GET",
        f"{_FILTER}/endpoints/{{endpoint_id}}/projects",
    ),
    _rule(
        "add_endpoint_to_project", ADMIN, "Let a project see an endpoint.", "PUT",
        f"{_PROJECT}/endpoints/{{endpoint_id}}",
    ),
    _rule(
        "check_endpoint_in_project", ADMIN_OR_READER, "Ask whether a project was given an endpoint.", "GET",
        f"{_PROJECT}/endpoints/{{endpoint_id}}",
    ),
    _rule(
        "list_endpoints_for_project", ADMIN_OR_READER, "List the endpoints a project sees.", "GET",
        f"{_PROJECT}/endpoints",
    ),
    _rule(
        "remove_endpoint_from_project", ADMIN, "Take an endpoint from a project.", "DELETE",
        f"{_PROJECT}/endpoints/{{endpoint_id}}",
    ),
    *_association("endpoint", "an endpoint", f"{_POLICY}/endpoints/{{endpoint_id}}"),
    *_association("service", "a service", f"{_POLICY}/services/{{service_id}}"),
    *_association(
        "region_and_service", "a service in a region", f"{_POLICY}/services/{{service_id}}/regions/{{region_id}}"
    ),
    _rule(
        "get_policy_for_endpoint", ADMIN_OR_READER, "Show the policy that is for an endpoint.", "GET",
        "/v3/endpoints/{endpoint_id}/OS-ENDPOINT-POLICY/policy",
    ),
    _rule(
        "list_endpoints_for_policy", ADMIN_OR_READER, "List the endpoints a policy is for.", "GET",
        f"{_POLICY}/endpoints",
    ),
]  # fmt: skip
