"""One request as a service sees it, and what a handler may answer. No HTTP library is known here."""

from __future__ import annotations

import inspect
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

from nubila.core.faults import forbidden
from nubila.core.gates import ALWAYS, OPEN, Gate, Version

if TYPE_CHECKING:
    from nubila.core.cloud import Cloud
    from nubila.core.service import Service
    from nubila.core.tokens import Creds


@dataclass(slots=True)
class Reply:
    """An answer: ``body`` is encoded as JSON unless it is bytes; None means no body."""

    body: Any = None
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    content_type: str = "application/json"


@dataclass(slots=True)
class StreamReply:
    """An answer sent piece by piece in constant memory; ``chunks`` is run in a worker thread."""

    chunks: Iterator[bytes]
    length: int | None = None
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    content_type: str = "application/octet-stream"


BodyReader = Callable[[], AsyncIterator[bytes]]
Answer = Reply | StreamReply | Mapping[str, Any] | None


class Call:
    """One request on its way through a handler.

    ``tx`` is the open transaction (write routes) or reader (read routes); None for streaming handlers, which open
    their own. ``path`` and ``params`` are decoded; ``base`` is the URL prefix of the service as the client sees it
    ("http://127.0.0.1:5000/network").
    """

    __slots__ = (
        "base", "body", "client_cert", "cloud", "creds", "from_proxy", "headers", "item", "memo", "method",
        "params", "path", "peer", "query", "request_id", "route", "service", "stream", "tx", "version",
    )  # fmt: skip

    def __init__(self, cloud: Cloud, service: Service, method: str, path: str) -> None:
        self.cloud, self.service, self.method, self.path = cloud, service, method, path
        self.params: dict[str, str] = {}
        self.query: list[tuple[str, str]] = []
        self.headers: dict[str, str] = {}  # lower-case names
        self.body: Any = None  # decoded JSON, or bytes where the route says raw
        self.stream: BodyReader | None = None
        self.version: Version = ALWAYS
        self.request_id = ""
        self.creds: Creds = None  # type: ignore[assignment]  # always set on routes that need a token
        self.tx: Any = None
        self.base = ""
        self.route: Route | None = None
        self.peer = ""  # name in the client certificate (host API), or the remote address
        self.from_proxy = False  # connected by a trusted proxy, whose headers may speak for the client
        self.client_cert: bytes | None = None  # DER of the verified client certificate
        self.item: Any = None
        self.memo: dict[str, Any] = {}  # what one request computed once (never shared between requests)

    def may(self, rule: str, target: Mapping[str, Any] | None = None) -> bool:
        """Whether policy lets the caller do this to the target."""
        creds = self.creds.as_mapping() if self.creds is not None else {}
        return self.cloud.policy.enforce(rule, creds, target if target is not None else {}, self.service.name)

    def predicate(self, rule: str, column: Callable[[str], Any]) -> Any:
        """The rows of a list the caller may see, as SQL (``column`` maps a policy target name to a column)."""
        creds = self.creds.as_mapping() if self.creds is not None else {}
        return self.cloud.policy.predicate(rule, creds, column, self.service.name)

    def enforce(self, rule: str, target: Mapping[str, Any] | None = None) -> None:
        """Raise 403 unless policy lets the caller do this to the target."""
        if not self.may(rule, target):
            raise forbidden(f"Policy does not allow {rule} with these credentials.")

    def arg(self, name: str, default: str | None = None) -> str | None:
        """The last value of a query key."""
        for key, value in reversed(self.query):
            if key == name:
                return value
        return default


Handler = Callable[[Call], Answer]
AsyncHandler = Callable[[Call], Awaitable[Answer]]


Schema = Mapping[str, Any]
F = TypeVar("F", bound=Callable[..., Any])


def takes(schema: Schema | Callable[[Version], Schema]) -> Callable[[F], F]:
    """Say which JSON Schema a handler checks its body with (it may depend on the version): the documents show it."""

    def mark(handler: F) -> F:
        handler.takes = schema  # type: ignore[attr-defined]
        return handler

    return mark


@dataclass(frozen=True, kw_only=True)
class Route:
    """One operation of an API: what the edge needs to know before the handler runs.

    ``tx`` opens the transaction: "read", "write" or "" (the handler opens its own). ``rule`` is enforced before the
    handler when the answer does not depend on a row. ``raw`` hands the body over as bytes; ``stream`` as chunks
    (the handler is then an async function).
    """

    method: str
    path: str
    handler: Handler | AsyncHandler
    doc: str
    tx: str = "read"
    rule: str = ""
    auth: bool = True
    status: int = 200
    raw: bool = False
    stream: bool = False
    schema: Mapping[str, Any] | None = None  # JSON Schema of the whole body
    gate: Gate = OPEN  # versions in which the route exists (404 otherwise)
    slow: bool = False  # hashing or file work: always in a worker thread
    max_body: int = 0  # bytes; 0 = the setting max_body_bytes
    waits: bool = field(init=False)  # the handler is a coroutine function: awaited on the loop

    def __post_init__(self) -> None:
        object.__setattr__(self, "waits", inspect.iscoroutinefunction(self.handler))
