"""Where people whom an identity provider vouches for come in. API: OS-FEDERATION, requesting a token; web sign-on."""

from __future__ import annotations

import asyncio
import html
from functools import partial
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from nubila.core.call import Call, Reply, Route
from nubila.core.faults import Fault, bad_request, unauthorized
from nubila.services.identity import federation_login, federation_oidc, login
from nubila.services.identity.kinds_federation import REMOTE_ID
from nubila.services.identity.tokens import domains, projects

if TYPE_CHECKING:
    from nubila.core.cloud import Cloud

Row = dict[str, Any]


async def _issue(call: Call, idp_id: str, protocol_id: str) -> Reply:
    federation_login.bearer(call)
    part = {"identity_provider": idp_id, "protocol": protocol_id}
    call.body = {"auth": {"identity": {"methods": ["mapped"], "mapped": part}, "scope": "unscoped"}}
    return await login.issue(call)


async def authenticate(call: Call) -> Reply:
    """GET and POST /v3/OS-FEDERATION/identity_providers/{idp_id}/protocols/{protocol_id}/auth: an unscoped token."""
    return await _issue(call, call.params["idp_id"], call.params["protocol_id"])


def _origin(call: Call) -> str:
    """The dashboard to go back to; only one that the operator trusts."""
    origin = call.arg("origin")
    if not origin:
        raise bad_request("origin: the address of the dashboard is missing in the query.", "ValidationError")
    if origin not in call.cloud.settings.trusted_dashboards:
        raise unauthorized(f"origin: {origin} is not among the trusted_dashboards.")
    return origin


def _page(origin: str, token: str) -> Reply:
    """A page that hands the token over to the dashboard."""
    where, value = html.escape(origin, quote=True), html.escape(token, quote=True)
    body = (
        '<!DOCTYPE html><html><head><title>Signing in</title></head><body onload="document.forms[0].submit()">'
        f'<form method="post" action="{where}"><input type="hidden" name="token" value="{value}">'
        '<noscript><button type="submit">Continue</button></noscript></form></body></html>'
    )
    return Reply(body.encode(), 200, {"Cache-Control": "no-store"}, "text/html; charset=utf-8")


async def sign_on(call: Call) -> Reply:
    """GET and POST /v3/auth/OS-FEDERATION/identity_providers/{idp_id}/protocols/{protocol_id}/websso."""
    origin = _origin(call)
    got = await _issue(call, call.params["idp_id"], call.params["protocol_id"])
    return _page(origin, got.headers["X-Subject-Token"])


def _provider_of(cloud: Cloud, issuer: str) -> str | None:
    """The identity provider with this remote id."""
    found = sa.select(REMOTE_ID.c.idp_id).where(REMOTE_ID.c.remote_id == issuer)
    with cloud.store.read() as reader:
        idp_id: str | None = reader.scalar(found)
    return idp_id


async def sign_on_anywhere(call: Call) -> Reply:
    """GET and POST /v3/auth/OS-FEDERATION/websso/{protocol_id}: the provider is the one that made the token."""
    import jwt

    origin, token = _origin(call), federation_login.bearer(call)
    try:  # only to find whose keys to use: what it says counts once they have verified it
        issuer = jwt.decode(token[: federation_oidc.LONGEST], options={"verify_signature": False}).get("iss")
    except (jwt.PyJWTError, ValueError, RecursionError):
        issuer = None
    idp_id = None
    if isinstance(issuer, str):
        work = partial(_provider_of, call.cloud, issuer)
        idp_id = work() if call.cloud.store.embedded else await asyncio.to_thread(work)
    if idp_id is None:
        raise Fault(404, "No identity provider has this token's issuer as a remote id.", "IdentityProviderNotFound")
    got = await _issue(call, str(idp_id), call.params["protocol_id"])
    return _page(origin, got.headers["X-Subject-Token"])


_AUTH = "/v3/OS-FEDERATION/identity_providers/{idp_id}/protocols/{protocol_id}/auth"
_WEB = "/v3/auth/OS-FEDERATION/identity_providers/{idp_id}/protocols/{protocol_id}/websso"
_ANY = "/v3/auth/OS-FEDERATION/websso/{protocol_id}"
ROUTES = (
    *(
        Route(method=method, path=path, handler=handler, doc=doc, auth=False, tx="", raw=True, status=status)
        for method in ("GET", "POST")
        for path, handler, doc, status in (
            (_AUTH, authenticate, "Get an unscoped token from an identity provider's token.", 201),
            (_WEB, sign_on, "Sign on in a browser, through one identity provider.", 200),
            (_ANY, sign_on_anywhere, "Sign on in a browser, through the provider that made the token.", 200),
        )
    ),
    Route(method="GET", path="/v3/OS-FEDERATION/projects", handler=projects, doc="Projects the caller can scope to."),
    Route(method="GET", path="/v3/OS-FEDERATION/domains", handler=domains, doc="Domains the caller can scope to."),
)
