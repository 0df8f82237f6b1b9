"""How each service words errors and page links. One small class per service, found by the service's name."""

from __future__ import annotations

import html
from typing import Any
from urllib.parse import urlencode

from nubila.core.faults import Fault
from nubila.core.gates import Version, show

TITLES = {
    300: "Multiple Choices", 400: "Bad Request", 401: "Unauthorized", 403: "Forbidden", 404: "Not Found",
    405: "Method Not Allowed", 406: "Not Acceptable", 409: "Conflict", 410: "Gone", 411: "Length Required",
    412: "Precondition Failed", 413: "Request Entity Too Large", 415: "Unsupported Media Type",
    416: "Requested Range Not Satisfiable", 428: "Precondition Required", 429: "Too Many Requests",
    500: "Internal Server Error", 501: "Not Implemented", 503: "Service Unavailable",
}  # fmt: skip

JSON = "application/json"


class Dialect:
    """Defaults: an ``error`` object, no page links."""

    over_quota_status = 409
    refused_list = 403
    wrong_media_status = 415
    always_varies = False  # Vary: X-Auth-Token also on answers to requests without one

    def error(self, fault: Fault, request_id: str, version: Version) -> tuple[str, Any]:
        """Content type and body of a refusal."""
        title = TITLES.get(fault.status, "Error")
        return JSON, {"error": {"code": fault.status, "message": fault.message, "title": title}}

    def refusal(self, fault: Fault, request_id: str, version: Version, accept: str) -> tuple[str, Any]:
        """:meth:`error` in a form that the client's Accept header asks for."""
        return self.error(fault, request_id, version)

    def item_links(self, view: dict[str, Any], url: str) -> None:
        """Add what this service puts beside an item."""

    def list_links(self, body: dict[str, Any], items: str, url: str, query: list[tuple[str, str]], page: Page) -> None:
        """Add links to the neighbouring pages."""


class Page:
    """What the edges of a page are: ids of the first and last row, whether more follow, whether it is not full."""

    __slots__ = ("first", "last", "limited", "more", "reverse", "short")

    def __init__(
        self, first: str | None, last: str | None, *, limited: bool, more: bool, reverse: bool, short: bool
    ) -> None:
        self.first, self.last, self.limited, self.more, self.reverse, self.short = (
            first, last, limited, more, reverse, short,
        )  # fmt: skip


def _marker(id: str | None) -> dict[str, str]:
    return {} if id is None else {"marker": id}


def _with(query: list[tuple[str, str]], **changes: str) -> str:
    kept = [(k, v) for k, v in query if k not in ("marker", "page_reverse")]
    return urlencode(kept + list(changes.items()))


class Identity(Dialect):
    """Keystone: items and lists carry ``links``."""

    wrong_media_status = 400
    always_varies = True

    def item_links(self, view: dict[str, Any], url: str) -> None:
        view["links"] = {"self": url}

    def list_links(self, body: dict[str, Any], items: str, url: str, query: list[tuple[str, str]], page: Page) -> None:
        here = f"{url}?{urlencode(query)}" if query else url
        following = f"{url}?{_with(query, marker=page.last)}" if page.limited and page.more and page.last else None
        body["links"] = {"next": following, "self": here, "previous": None}
        if following:
            body["truncated"] = True


class Network(Dialect):
    """Neutron: NeutronError, and ``<items>_links`` when a limit was given.

    Neutron names a neighbouring page unless the page is short, which proves that there is none in that direction.
    """

    wrong_media_status = 400

    # Neutron's exception names where they do not follow from ours.
    KINDS = {
        "ValidationError": "HTTPBadRequest", "ConversionError": "InvalidInput",
        "MethodNotAllowed": "HTTPMethodNotAllowed",
        "FloatingipNotFound": "FloatingIPNotFound", "SubnetpoolNotFound": "SubnetPoolNotFound",
        "NdpProxyNotFound": "NDPProxyNotFound", "LocalIpNotFound": "LocalIPNotFound",
        "PolicyNotFound": "QosPolicyNotFound",
    }  # fmt: skip

    def error(self, fault: Fault, request_id: str, version: Version) -> tuple[str, Any]:
        if fault.status == 401:
            return super().error(fault, request_id, version)
        kind = fault.type or f"HTTP{TITLES.get(fault.status, 'Error').replace(' ', '')}"
        kind = self.KINDS.get(kind, kind)
        return JSON, {"NeutronError": {"type": kind, "message": fault.message, "detail": fault.detail}}

    def list_links(self, body: dict[str, Any], items: str, url: str, query: list[tuple[str, str]], page: Page) -> None:
        if not page.limited:
            return
        links = []
        if not page.short or page.reverse:
            links.append({"rel": "next", "href": f"{url}?{_with(query, **_marker(page.last))}"})
        if not page.short or not page.reverse:
            here = _with(query, **_marker(page.first), page_reverse="True")
            links.append({"rel": "previous", "href": f"{url}?{here}"})
        body[f"{items}_links"] = links


class Compute(Dialect):
    """Nova: a key that names the status, ``<items>_links`` with the next page."""

    over_quota_status = 403
    KEYS = {
        400: "badRequest", 401: "unauthorized", 403: "forbidden", 404: "itemNotFound", 405: "badMethod",
        409: "conflictingRequest", 413: "overLimit", 415: "badMediaType", 429: "overLimit",
        501: "notImplemented", 503: "serviceUnavailable",
    }  # fmt: skip

    def error(self, fault: Fault, request_id: str, version: Version) -> tuple[str, Any]:
        if fault.status == 401 or fault.type == "_plain":
            return super().error(fault, request_id, version)
        key = self.KEYS.get(fault.status, "computeFault")
        return JSON, {key: {"code": fault.status, "message": fault.message}}

    def list_links(self, body: dict[str, Any], items: str, url: str, query: list[tuple[str, str]], page: Page) -> None:
        if page.limited and page.more and page.last:
            body[f"{items}_links"] = [{"rel": "next", "href": f"{url}?{_with(query, marker=page.last)}"}]


class Placement(Dialect):
    """Placement: a list of errors with request id and, from 1.23, a code."""

    def error(self, fault: Fault, request_id: str, version: Version) -> tuple[str, Any]:
        one: dict[str, Any] = {
            "status": fault.status, "title": TITLES.get(fault.status, "Error"), "detail": fault.message,
            "request_id": request_id,
        }  # fmt: skip
        if version >= (1, 23):
            one["code"] = fault.type if fault.type.startswith("placement.") else "placement.undefined_code"
        if fault.status == 406:
            one |= {"max_version": fault.detail.partition("-")[2], "min_version": fault.detail.partition("-")[0]}
        return JSON, {"errors": [one]}


class Image(Dialect):
    """Glance: a small HTML page, as its clients expect."""

    over_quota_status = 413
    wrong_media_status = 400

    def refusal(self, fault: Fault, request_id: str, version: Version, accept: str) -> tuple[str, Any]:
        """JSON for clients that want JSON and not HTML."""
        if "application/json" not in accept or "text/html" in accept:
            return self.error(fault, request_id, version)
        title = TITLES.get(fault.status, "Error")
        return JSON, {"message": fault.message, "code": f"{fault.status} {title}", "title": title}

    def error(self, fault: Fault, request_id: str, version: Version) -> tuple[str, Any]:
        title = f"{fault.status} {TITLES.get(fault.status, 'Error')}"
        text = html.escape(fault.message, quote=False)
        page = (
            f"<html>\n <head>\n  <title>{title}</title>\n </head>\n <body>\n  <h1>{title}</h1>\n"
            f"  {text}<br /><br />\n </body>\n</html>"
        )
        return "text/html; charset=UTF-8", page.encode()


DIALECTS: dict[str, Dialect] = {
    "identity": Identity(), "network": Network(), "compute": Compute(), "placement": Placement(), "image": Image(),
}  # fmt: skip
DEFAULT = Dialect()


def of(service: str) -> Dialect:
    """The dialect of a service by its name."""
    return DIALECTS.get(service, DEFAULT)


def version_range(low: Version, high: Version) -> str:
    """``2.1-2.96``: what a 406 tells."""
    return f"{show(low)}-{show(high)}"
