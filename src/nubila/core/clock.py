"""Times and ids as the tables keep them: fixed-width ISO 8601 in UTC, so that text order is time order."""

from __future__ import annotations

import time
import uuid
from datetime import UTC, datetime


def now() -> str:
    """Current time, UTC, microseconds, no zone suffix: ``2026-11-21T09:40:00.123456``."""
    return datetime.now(UTC).isoformat(timespec="microseconds")[:26]


def at(timestamp: float) -> str:
    """The same form for a Unix timestamp in seconds."""
    return datetime.fromtimestamp(timestamp, UTC).isoformat(timespec="microseconds")[:26]


def seconds(text: str) -> float:
    """Unix timestamp of a stored time."""
    return datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp()


def zulu(text: str | None) -> str | None:
    """Seconds precision with Z, as Compute and Network show times."""
    return None if text is None else text[:19] + "Z"


def zulu_us(text: str | None) -> str | None:
    """Microseconds with Z, as Identity shows times."""
    return None if text is None else text[:26] + "Z"


def new_id() -> str:
    """Random UUID with dashes."""
    return str(uuid.uuid4())


def new_hex() -> str:
    """Random UUID as 32 hexadecimal digits (Identity's ids)."""
    return uuid.uuid4().hex


def monotonic() -> float:
    """Seconds on a clock that never goes back; only differences mean anything."""
    return time.monotonic()
