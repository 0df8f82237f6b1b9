"""Keystone's published policy rule names with the defaults of its 2026 releases, for the operations we have.

An administrator (``role:admin``) may do everything. A reader of the system sees everything; readers and managers of a
domain see and manage its users, groups, projects and grants; a manager hands out only the roles of
``domain_managed_target_role``. Targets are named as in Keystone: ``target.<kind>.<attribute>`` for the row, plain
names for parts of the path.
"""

from __future__ import annotations

from nubila.core.policy import Rule

_ALL = ("system", "domain", "project")
_NOT_DOMAIN = ("system", "project")

ADMIN = "rule:admin_required"
SYSTEM_READER = "(role:reader and system_scope:all)"
ADMIN_OR_READER = f"{ADMIN} or {SYSTEM_READER}"
_READERS = f"({ADMIN}) or {SYSTEM_READER} or "


def _domain(role: str, *targets: str) -> str:
    """The role on the domain that all these targets belong to."""
    return f"(role:{role} and " + " and ".join(f"domain_id:%({target})s" for target in targets) + ")"


def _grants(role: str) -> str:
    """The role on the domain that holds both the actor (user or group) and the target (project or domain)."""
    pairs = [
        (f"target.{actor}.domain_id", where)
        for actor in ("user", "group")
        for where in ("target.project.domain_id", "target.domain.id")
    ]
    return " or ".join(_domain(role, *pair) for pair in pairs)


_OWN_DOMAIN_ROLE = "(domain_id:%(target.role.domain_id)s or None:%(target.role.domain_id)s)"
_PROJECT_IN_DOMAIN = "domain_id:%(target.project.domain_id)s and not None:%(target.project.domain_id)s)"
_SEE_PROJECT = f"{_READERS}(role:reader and {_PROJECT_IN_DOMAIN} or project_id:%(target.project.id)s"
_MANAGE_PROJECT = f"({ADMIN}) or (role:manager and {_PROJECT_IN_DOMAIN}"
_SEE_IN_DOMAIN = f"{_READERS}{_domain('reader', 'target.domain_id')}"
_MANAGE_USER = f"({ADMIN}) or (role:manager and token.domain.id:%(target.user.domain_id)s)"
_SEE_GROUP = f"{_READERS}{_domain('reader', 'target.group.domain_id')}"
_MANAGE_GROUP = f"({ADMIN}) or {_domain('manager', 'target.group.domain_id')}"
_MEMBERSHIP = ("target.group.domain_id", "target.user.domain_id")
_CHANGE_GRANT = (
    f"({ADMIN}) or ({_grants('admin')}) and {_OWN_DOMAIN_ROLE} or "
    f"({_grants('manager')}) and rule:domain_managed_target_role"
)
_CREDENTIAL_OWNER = "user_id:%(target.credential.user_id)s"
_USER = "user_id:%(target.user.id)s"

_GRANT_PATHS = tuple(
    f"{prefix}/{target}/{actor}/roles/{{role_id}}{suffix}"
    for prefix, suffix in (("", ""), ("/OS-INHERIT", "/inherited_to_projects"))
    for target in ("projects/{project_id}", "domains/{domain_id}")
    for actor in ("users/{user_id}", "groups/{group_id}")
)
_GRANT_LISTS = (
    *(path.removesuffix("/{role_id}") for path in _GRANT_PATHS[:4]),
    *(path.replace("/{role_id}", "") for path in _GRANT_PATHS[4:]),
)


def _rule(name: str, text: str, doc: str, operations: str = "", scopes: tuple[str, ...] = _ALL) -> Rule:
    """``operations`` as "GET /users, PUT /users/{user_id}", below /v3."""
    pairs = (operation.split(" ", 1) for operation in operations.split(", ") if operation)
    return Rule(f"identity:{name}", text, doc, tuple((method, "/v3" + path) for method, path in pairs), scopes)


def _paths(method: str, paths: tuple[str, ...]) -> str:
    return ", ".join(f"{method} {path}" for path in paths)


def _managed(item: str, items: str, what: str, many: str, path: str, show: str = ADMIN_OR_READER) -> list[Rule]:
    """The five rules of a thing that only administrators change."""
    one, scopes = f"{path}/{{{item}_id}}", _ALL if show == "" else _NOT_DOMAIN
    return [
        _rule(f"get_{item}", show, f"Show {what}.", f"GET {one}", scopes),
        _rule(f"list_{items}", show, f"List {many}.", f"GET {path}", scopes),
        _rule(f"create_{item}", ADMIN, f"Create {what}.", f"POST {path}", _NOT_DOMAIN),
        _rule(f"update_{item}", ADMIN, f"Change {what}.", f"PATCH {one}", _NOT_DOMAIN),
        _rule(f"delete_{item}", ADMIN, f"Delete {what}.", f"DELETE {one}", _NOT_DOMAIN),
    ]


_BASE = [
    Rule("admin_required", "role:admin or is_admin:1", "Administrators."),
    Rule("service_role", "role:service", "Services of the cloud."),
    Rule("service_or_admin", "rule:admin_required or rule:service_role", "Services and administrators."),
    Rule("owner", "user_id:%(user_id)s", "The user that the request is about."),
    Rule("admin_or_owner", "rule:admin_required or rule:owner", "That user and administrators."),
    Rule("token_subject", "user_id:%(target.token.user_id)s", "The user whose token it is."),
    Rule("admin_or_token_subject", "rule:admin_required or rule:token_subject", "That user and administrators."),
    Rule(
        "service_admin_or_token_subject",
        "rule:service_or_admin or rule:token_subject",
        "The user whose token it is, services and administrators.",
    ),
    Rule(
        "domain_managed_target_role",
        " or ".join(f"'{role}':%(target.role.name)s" for role in ("manager", "member", "reader")),
        "The roles that a domain manager may grant and revoke.",
    ),
]

_DOMAINS = [
    _rule(
        "get_domain",
        f"{ADMIN_OR_READER} or token.domain.id:%(target.domain.id)s or token.project.domain.id:%(target.domain.id)s",
        "Show a domain; everybody may see the one of his own token.",
        "GET /domains/{domain_id}",
    ),
    _rule(
        "list_domains",
        f"{ADMIN_OR_READER} or {_domain('reader', 'target.domain.id')}",
        "List domains; a domain's reader finds his own.",
        "GET /domains",
    ),
    _rule("create_domain", ADMIN, "Create a domain.", "POST /domains", _NOT_DOMAIN),
    _rule("update_domain", ADMIN, "Change a domain.", "PATCH /domains/{domain_id}", _NOT_DOMAIN),
    _rule("delete_domain", ADMIN, "Delete a disabled domain.", "DELETE /domains/{domain_id}", _NOT_DOMAIN),
]

_TAGS, _TAG = "/projects/{project_id}/tags", "/projects/{project_id}/tags/{value}"
_PROJECTS = [
    _rule("get_project", _SEE_PROJECT, "Show a project.", "GET /projects/{project_id}"),
    _rule("list_projects", _SEE_IN_DOMAIN, "List projects.", "GET /projects"),
    _rule(
        "list_user_projects",
        f"{_READERS}{_domain('reader', 'target.user.domain_id')} or {_USER}",
        "List the projects in which a user has a role.",
        "GET /users/{user_id}/projects",
    ),
    _rule("create_project", _MANAGE_PROJECT, "Create a project.", "POST /projects"),
    _rule("update_project", _MANAGE_PROJECT, "Change a project.", "PATCH /projects/{project_id}"),
    _rule("delete_project", _MANAGE_PROJECT, "Delete a project.", "DELETE /projects/{project_id}"),
    _rule("list_project_tags", _SEE_PROJECT, "List a project's tags.", f"GET {_TAGS}"),
    _rule("get_project_tag", _SEE_PROJECT, "Ask whether a project has a tag.", f"GET {_TAG}"),
    _rule("update_project_tags", _MANAGE_PROJECT, "Set all tags of a project.", f"PUT {_TAGS}"),
    _rule("create_project_tag", _MANAGE_PROJECT, "Tag a project.", f"PUT {_TAG}"),
    _rule("delete_project_tags", _MANAGE_PROJECT, "Take all tags off a project.", f"DELETE {_TAGS}"),
    _rule("delete_project_tag", _MANAGE_PROJECT, "Take one tag off a project.", f"DELETE {_TAG}"),
]

_USERS = [
    _rule(
        "get_user",
        f"{_READERS}(role:reader and token.domain.id:%(target.user.domain_id)s) or {_USER}",
        "Show a user; everybody may see himself.",
        "GET /users/{user_id}",
    ),
    _rule("list_users", _SEE_IN_DOMAIN, "List users.", "GET /users"),
    _rule("list_projects_for_user", "", "List the projects the caller may ask a token for.", "GET /auth/projects", ()),
    _rule("list_domains_for_user", "", "List the domains the caller may ask a token for.", "GET /auth/domains", ()),
    _rule("create_user", _MANAGE_USER, "Create a user.", "POST /users"),
    _rule("update_user", _MANAGE_USER, "Change a user, the password included.", "PATCH /users/{user_id}"),
    _rule("delete_user", _MANAGE_USER, "Delete a user.", "DELETE /users/{user_id}"),
]

_IN_GROUP = "/groups/{group_id}/users/{user_id}"
_GROUPS = [
    _rule("get_group", _SEE_GROUP, "Show a group.", "GET /groups/{group_id}"),
    _rule("list_groups", _SEE_GROUP, "List groups.", "GET /groups"),
    _rule(
        "list_groups_for_user",
        f"{_READERS}{_domain('reader', 'target.user.domain_id')} or user_id:%(user_id)s",
        "List the groups a user belongs to.",
        "GET /users/{user_id}/groups",
    ),
    _rule("create_group", _MANAGE_GROUP, "Create a group.", "POST /groups"),
    _rule("update_group", _MANAGE_GROUP, "Change a group.", "PATCH /groups/{group_id}"),
    _rule("delete_group", _MANAGE_GROUP, "Delete a group.", "DELETE /groups/{group_id}"),
    _rule("list_users_in_group", _SEE_GROUP, "List the users of a group.", "GET /groups/{group_id}/users"),
    _rule(
        "remove_user_from_group",
        f"({ADMIN}) or {_domain('manager', *_MEMBERSHIP)}",
        "Take a user out of a group.",
        f"DELETE {_IN_GROUP}",
    ),
    _rule(
        "check_user_in_group",
        f"{_READERS}{_domain('reader', *_MEMBERSHIP)}",
        "Ask whether a user belongs to a group.",
        f"GET {_IN_GROUP}",
    ),
    _rule(
        "add_user_to_group",
        f"({ADMIN}) or {_domain('manager', *_MEMBERSHIP)}",
        "Put a user into a group.",
        f"PUT {_IN_GROUP}",
    ),
]

_ROLES = [
    _rule(
        "get_role",
        f"({ADMIN_OR_READER}) or (role:manager and rule:domain_managed_target_role)",
        "Show a role; a domain's manager sees those that managers may grant.",
        "GET /roles/{role_id}",
    ),
    _rule(
        "list_roles",
        f"({ADMIN_OR_READER}) or (role:manager and not domain_id:None)",
        "List roles.",
        "GET /roles",
    ),
    _rule("create_role", ADMIN, "Create a role.", "POST /roles", _NOT_DOMAIN),
    _rule("update_role", ADMIN, "Change a role.", "PATCH /roles/{role_id}", _NOT_DOMAIN),
    _rule("delete_role", ADMIN, "Delete a role.", "DELETE /roles/{role_id}", _NOT_DOMAIN),
    _rule("get_domain_role", ADMIN_OR_READER, "Show a role of a domain.", "GET /roles/{role_id}", _NOT_DOMAIN),
    _rule(
        "list_domain_roles",
        ADMIN_OR_READER,
        "List the roles of a domain.",
        "GET /roles?domain_id={domain_id}",
        _NOT_DOMAIN,
    ),
    _rule("create_domain_role", ADMIN, "Create a role of a domain.", "POST /roles", _NOT_DOMAIN),
    _rule("update_domain_role", ADMIN, "Change a role of a domain.", "PATCH /roles/{role_id}", _NOT_DOMAIN),
    _rule("delete_domain_role", ADMIN, "Delete a role of a domain.", "DELETE /roles/{role_id}", _NOT_DOMAIN),
]

_IMPLIES = "/roles/{prior_role_id}/implies"
_IMPLIED = f"{_IMPLIES}/{{implied_role_id}}"
_IMPLIED_ROLES = [
    _rule("get_implied_role", ADMIN_OR_READER, "Show that one role implies another.", f"GET {_IMPLIED}", _NOT_DOMAIN),
    _rule("list_implied_roles", ADMIN_OR_READER, "List what a role implies.", f"GET {_IMPLIES}", _NOT_DOMAIN),
    _rule("create_implied_role", ADMIN, "Let one role imply another.", f"PUT {_IMPLIED}", _NOT_DOMAIN),
    _rule("delete_implied_role", ADMIN, "Let a role imply another no longer.", f"DELETE {_IMPLIED}", _NOT_DOMAIN),
    _rule(
        "list_role_inference_rules",
        ADMIN_OR_READER,
        "List all roles that imply others.",
        "GET /role_inferences",
        _NOT_DOMAIN,
    ),
    _rule(
        "check_implied_role",
        ADMIN_OR_READER,
        "Ask whether one role implies another.",
        f"HEAD {_IMPLIED}",
        _NOT_DOMAIN,
    ),
]

_SEE_ASSIGNMENTS = f"{_READERS}(role:reader and domain_id:%(target.domain_id)s and not None:%(target.domain_id)s)"
_ASSIGNMENTS = [
    _rule("list_role_assignments", _SEE_ASSIGNMENTS, "List who has which role where.", "GET /role_assignments"),
    _rule(
        "list_role_assignments_for_tree",
        _SEE_ASSIGNMENTS,
        "The same for a project and all projects below it.",
        "GET /role_assignments?include_subtree",
    ),
    _rule(
        "check_grant",
        f"({ADMIN}) or ({SYSTEM_READER} or ({_grants('reader')}) and {_OWN_DOMAIN_ROLE})",
        "Ask whether a user or group has a role on a project or domain.",
        _paths("GET", _GRANT_PATHS),
    ),
    _rule(
        "list_grants",
        f"({ADMIN}) or ({SYSTEM_READER} or {_grants('reader')})",
        "List the roles a user or group has on a project or domain.",
        _paths("GET", _GRANT_LISTS),
    ),
    _rule(
        "create_grant",
        _CHANGE_GRANT,
        "Give somebody a role on a project or domain: one user, or a whole group.",
        _paths("PUT", _GRANT_PATHS),
    ),
    _rule(
        "revoke_grant",
        _CHANGE_GRANT,
        "Take a role on a project or domain from a user or group.",
        _paths("DELETE", _GRANT_PATHS),
    ),
]


def _system_grants(actor: str) -> list[Rule]:
    many = f"/system/{actor}s/{{{actor}_id}}/roles"
    one = f"{many}/{{role_id}}"
    return [
        _rule(
            f"list_system_grants_for_{actor}",
            ADMIN_OR_READER,
            f"List the roles a {actor} has on the system.",
            f"GET {many}",
            _NOT_DOMAIN,
        ),
        _rule(
            f"check_system_grant_for_{actor}",
            ADMIN_OR_READER,
            f"Say if a {actor} has the role on the system.",
            f"GET {one}",
            _NOT_DOMAIN,
        ),
        _rule(
            f"create_system_grant_for_{actor}",
            ADMIN,
            f"Give a {actor} a role on the system.",
            f"PUT {one}",
            _NOT_DOMAIN,
        ),
        _rule(
            f"revoke_system_grant_for_{actor}",
            ADMIN,
            f"Take a role on the system from a {actor}.",
            f"DELETE {one}",
            _NOT_DOMAIN,
        ),
    ]


_CATALOGUE = [
    _rule("get_region", "", "Show a region.", "GET /regions/{region_id}"),
    _rule("list_regions", "", "List regions.", "GET /regions"),
    _rule("create_region", ADMIN, "Create a region.", "POST /regions, PUT /regions/{region_id}", _NOT_DOMAIN),
    _rule("update_region", ADMIN, "Change a region.", "PATCH /regions/{region_id}", _NOT_DOMAIN),
    _rule("delete_region", ADMIN, "Delete a region without others below.", "DELETE /regions/{region_id}", _NOT_DOMAIN),
    *_managed("service", "services", "a service of the catalogue", "the services of the catalogue", "/services"),
    *_managed("endpoint", "endpoints", "the address of a service", "the addresses of services", "/endpoints"),
    *_managed("policy", "policies", "a policy document", "policy documents", "/policies"),
]

_TOKENS = [
    _rule(
        "check_token", f"{ADMIN_OR_READER} or rule:token_subject", "Ask whether a token is valid.", "HEAD /auth/tokens"
    ),
    _rule(
        "validate_token",
        f"{ADMIN_OR_READER} or rule:service_role or rule:token_subject",
        "Show what a token says.",
        "GET /auth/tokens",
    ),
    _rule("revoke_token", f"{ADMIN} or rule:token_subject", "Revoke a token.", "DELETE /auth/tokens"),
    _rule("get_auth_catalog", "", "Show the catalogue for the caller's token.", "GET /auth/catalog", ()),
    _rule("get_auth_projects", "", "List the projects the caller may ask a token for.", "GET /auth/projects", ()),
    _rule("get_auth_domains", "", "List the domains the caller may ask a token for.", "GET /auth/domains", ()),
    _rule("get_auth_system", "", "Ask whether the caller may have a token for the system.", "GET /auth/system", ()),
]

_SEE_CREDENTIAL = f"{_READERS}{_CREDENTIAL_OWNER}"
_CHANGE_CREDENTIAL = f"({ADMIN}) or {_CREDENTIAL_OWNER}"
_CREDENTIAL, _EC2 = "/credentials/{credential_id}", "/users/{user_id}/credentials/OS-EC2"
_MEMBER_OWNER = f"({ADMIN}) or (role:member and {_CREDENTIAL_OWNER})"
_CREDENTIALS = [
    _rule("get_credential", _SEE_CREDENTIAL, "Show a credential.", f"GET {_CREDENTIAL}"),
    _rule("list_credentials", _SEE_CREDENTIAL, "List credentials.", "GET /credentials"),
    _rule("create_credential", _CHANGE_CREDENTIAL, "Create a credential.", "POST /credentials"),
    _rule("update_credential", _CHANGE_CREDENTIAL, "Change a credential.", f"PATCH {_CREDENTIAL}"),
    _rule("delete_credential", _CHANGE_CREDENTIAL, "Delete a credential.", f"DELETE {_CREDENTIAL}"),
    _rule("ec2_get_credential", _SEE_CREDENTIAL, "Show an EC2 key pair.", f"GET {_EC2}/{{credential_id}}", _NOT_DOMAIN),
    _rule("ec2_list_credentials", f"{_READERS}rule:owner", "List a user's EC2 key pairs.", f"GET {_EC2}", _NOT_DOMAIN),
    _rule("ec2_create_credential", _MEMBER_OWNER, "Create an EC2 key pair.", f"POST {_EC2}", _NOT_DOMAIN),
    _rule(
        "ec2_delete_credential",
        _MEMBER_OWNER,
        "Delete an EC2 key pair.",
        f"DELETE {_EC2}/{{credential_id}}",
        _NOT_DOMAIN,
    ),
]

_APP = "/users/{user_id}/application_credentials"
_ACCESS = "/users/{user_id}/access_rules"
_APPLICATION_CREDENTIALS = [
    _rule(
        "get_application_credential",
        f"{_READERS}rule:owner",
        "Show an application credential.",
        f"GET {_APP}/{{application_credential_id}}",
        _NOT_DOMAIN,
    ),
    _rule(
        "list_application_credentials",
        f"{_READERS}rule:owner",
        "List a user's application credentials.",
        f"GET {_APP}",
        _NOT_DOMAIN,
    ),
    _rule(
        "create_application_credential",
        "user_id:%(user_id)s",
        "Create an application credential; nobody makes one for another user.",
        f"POST {_APP}",
        ("project",),
    ),
    _rule(
        "delete_application_credential",
        "rule:admin_or_owner",
        "Delete an application credential.",
        f"DELETE {_APP}/{{application_credential_id}}",
        _NOT_DOMAIN,
    ),
    _rule(
        "get_access_rule",
        f"{SYSTEM_READER} or {_USER}",
        "Show a rule that limits application credentials.",
        f"GET {_ACCESS}/{{access_rule_id}}",
        _NOT_DOMAIN,
    ),
    _rule(
        "list_access_rules",
        f"{SYSTEM_READER} or {_USER}",
        "List the rules that limit a user's application credentials.",
        f"GET {_ACCESS}",
        _NOT_DOMAIN,
    ),
    _rule(
        "delete_access_rule",
        f"(role:admin and system_scope:all) or {_USER}",
        "Delete a rule that no application credential uses.",
        f"DELETE {_ACCESS}/{{access_rule_id}}",
        _NOT_DOMAIN,
    ),
]

RULES: list[Rule] = [
    *_BASE,
    *_DOMAINS,
    *_PROJECTS,
    *_USERS,
    *_GROUPS,
    *_ROLES,
    *_IMPLIED_ROLES,
    *_ASSIGNMENTS,
    *_system_grants("user"),
    *_system_grants("group"),
    *_CATALOGUE,
    *_TOKENS,
    *_CREDENTIALS,
    *_APPLICATION_CREDENTIALS,
]
