"""Refusals. A service raises a :class:`Fault`; the edge words it in the service's own error dialect.

``type`` is the exception name clients of some services match on (Neutron's ``NeutronError.type``); ``message`` is ours
and names the field and the fix.
"""

from __future__ import annotations

from collections.abc import Mapping


class Fault(Exception):
    """A request that is refused: HTTP status, dialect type name, one sentence, extra headers."""

    def __init__(
        self, status: int, message: str, type: str = "", *, headers: Mapping[str, str] | None = None, detail: str = ""
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.type, self.detail = status, message, type, detail
        self.headers = dict(headers or {})


def bad_request(message: str, type: str = "HTTPBadRequest") -> Fault:
    """400: the request itself is wrong."""
    return Fault(400, message, type)


def unauthorized(message: str = "The request needs a valid token.") -> Fault:
    """401: no valid token."""
    return Fault(401, message, "HTTPUnauthorized")


def forbidden(message: str, type: str = "PolicyNotAuthorized") -> Fault:
    """403: the caller may not do this."""
    return Fault(403, message, type)


def not_found(what: str, id: str, type: str = "") -> Fault:
    """404: ``what`` ("network") with this id does not exist, or the caller may not know that it does."""
    name = "".join(w.capitalize() for w in what.replace("-", "_").split("_"))
    return Fault(404, f"{what.replace('_', ' ').capitalize()} {id} could not be found.", type or f"{name}NotFound")


def conflict(message: str, type: str = "Conflict") -> Fault:
    """409: the request contradicts what exists."""
    return Fault(409, message, type)


def over_quota(message: str, type: str = "OverQuota", status: int = 409) -> Fault:
    """A quota would be exceeded (409 in Network, 403 in Compute, 413 in Image)."""
    return Fault(status, message, type)


def unavailable(message: str, retry_after_s: int = 1) -> Fault:
    """503: a part that is needed does not answer; try again."""
    return Fault(503, message, "ServiceUnavailable", headers={"Retry-After": str(retry_after_s)})
