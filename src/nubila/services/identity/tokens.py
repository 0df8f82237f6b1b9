"""What can be done with a token: validate it, revoke it, ask what it may be scoped to. API: /v3/auth."""

from __future__ import annotations

from typing import Any

import msgspec

from nubila.core.call import Call, Reply, Route
from nubila.core.faults import forbidden
from nubila.services.identity import assignments, auth, login, resources
from nubila.services.identity import catalog as catalogue
from nubila.services.identity.revision import ALLOW_EXPIRED_S, memory

_encode = msgspec.json.Encoder().encode


def _subject(call: Call, rule: str, window_s: float = 0.0) -> auth.Meaning:
    """The token of X-Subject-Token if the caller may ask about it; one that is not valid is 404 for everybody."""
    token = call.headers.get("x-subject-token", "")
    found: auth.Meaning | None = None
    if token:
        try:
            found = auth.meaning(call.cloud, call.tx, token, window_s=window_s)
        except auth.Refused as e:
            raise auth.not_valid(str(e)) from None
    user_id = found.user["id"] if found else None
    call.enforce(rule, {"target.token.user_id": user_id, "user_id": user_id})
    if found is None:
        raise auth.not_valid("There is no token in X-Subject-Token.")
    return found


def _understands_rules(call: Call) -> bool:
    """Whether the one who asks says (with this header) that he enforces access rules."""
    try:
        return float(call.headers.get("openstack-identity-access-rules", "0")) >= 1.0
    except ValueError:
        return False


def validate(call: Call) -> Reply:
    """GET and HEAD /v3/auth/tokens."""
    late = (call.arg("allow_expired") or "").lower() in ("1", "t", "true", "on", "y", "yes")
    rule = "identity:check_token" if call.method == "HEAD" else "identity:validate_token"
    found = _subject(call, rule, ALLOW_EXPIRED_S if late else 0.0)
    if found.creds.access_rules is not None and not _understands_rules(call):
        raise auth.not_valid("The token has access rules, which the one who asks does not say he enforces.")
    with_catalog = call.arg("nocatalog") is None
    key = (call.base, with_catalog)
    body = found.shown.get(key)
    if body is None:
        body = _encode(auth.document(call.cloud, call.tx, found, call.base, catalog=with_catalog))
        if len(found.shown) < 4:  # clients know us by few names
            found.shown[key] = body
    return Reply(body, 200, {"X-Subject-Token": call.headers["x-subject-token"]})


def revoke(call: Call) -> Reply:
    """DELETE /v3/auth/tokens."""
    found = _subject(call, "identity:revoke_token")
    auth.revoke(call.cloud, call.tx, audit_id=found.claims.audit_id)
    return Reply(None, 204)


def catalog(call: Call) -> dict[str, Any]:
    """GET /v3/auth/catalog."""
    call.enforce("identity:get_auth_catalog")
    if not call.creds.project_id:
        raise forbidden("The catalog is a project's: log in to one.")
    found = catalogue.catalog(
        memory(call.cloud), call.tx, call.base, project_id=call.creds.project_id, user_id=call.creds.user_id
    )
    return {"catalog": found, "links": {"self": f"{call.base}/v3/auth/catalog"}}


def _groups(call: Call) -> tuple[str, ...]:
    """Groups that the caller's identity provider vouches for."""
    return call.creds.token.group_ids if call.creds.token is not None else ()


def _targets(call: Call, kind: str) -> list[str]:
    projects, domains, _ = assignments.targets_of_user(call.tx, str(call.creds.user_id), _groups(call))
    return projects if kind == "project" else domains


def projects(call: Call) -> dict[str, Any]:
    """GET /v3/auth/projects."""
    call.enforce("identity:get_auth_projects")
    rows = resources.enabled_projects(call.tx, _targets(call, "project"), is_domain=False)
    return resources.listing(call, "projects", resources.project_views(call, rows), "/v3/auth/projects")


def domains(call: Call) -> dict[str, Any]:
    """GET /v3/auth/domains."""
    call.enforce("identity:get_auth_domains")
    rows = resources.enabled_projects(call.tx, _targets(call, "domain"), is_domain=True)
    return resources.listing(call, "domains", resources.domain_views(call, rows), "/v3/auth/domains")


def system(call: Call) -> dict[str, Any]:
    """GET /v3/auth/system."""
    call.enforce("identity:get_auth_system")
    _, _, whole = assignments.targets_of_user(call.tx, str(call.creds.user_id), _groups(call))
    return {"system": [{"all": True}] if whole else [], "links": {"self": f"{call.base}/v3/auth/system"}}


ROUTES = (
    Route(
        method="POST", path="/v3/auth/tokens", handler=login.issue, doc="Get a token.", auth=False, tx="", status=201
    ),
    Route(method="GET", path="/v3/auth/tokens", handler=validate, doc="Validate a token and show what it means."),
    Route(method="DELETE", path="/v3/auth/tokens", handler=revoke, doc="Revoke a token.", tx="write", status=204),
    Route(method="GET", path="/v3/auth/catalog", handler=catalog, doc="The catalogue for the caller's token."),
    Route(method="GET", path="/v3/auth/projects", handler=projects, doc="Projects the caller can scope to."),
    Route(method="GET", path="/v3/auth/domains", handler=domains, doc="Domains the caller can scope to."),
    Route(method="GET", path="/v3/auth/system", handler=system, doc="Whether the caller can scope to the system."),
)
