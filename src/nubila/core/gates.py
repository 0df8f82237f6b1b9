"""API versions and the gates that open and close with them (microversions)."""

from __future__ import annotations

from dataclasses import dataclass

Version = tuple[int, int]
ALWAYS: Version = (0, 0)
NEVER: Version = (9999, 0)


@dataclass(frozen=True)
class Gate:
    """From which version (inclusive) to which (exclusive) something holds."""

    since: Version = ALWAYS
    until: Version = NEVER

    def open(self, version: Version) -> bool:
        """Whether it holds in this version."""
        return self.since <= version < self.until

    def __and__(self, other: Gate) -> Gate:
        return Gate(max(self.since, other.since), min(self.until, other.until))


OPEN = Gate()
CLOSED = Gate(NEVER, NEVER)


def since(major: int, minor: int) -> Gate:
    """Open from this version on."""
    return Gate((major, minor))


def until(major: int, minor: int) -> Gate:
    """Open before this version."""
    return Gate(ALWAYS, (major, minor))


def show(version: Version) -> str:
    """``2.90``"""
    return f"{version[0]}.{version[1]}"
