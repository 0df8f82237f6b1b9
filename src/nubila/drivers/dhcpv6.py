"""Just enough of DHCPv6 (RFC 8415) to read a client's lease file and to give prefixes back.

A message is its type, a transaction number and options; an option is a number, a length and a value. Options that are
cut off end the reading: what came before counts.
"""

from __future__ import annotations

import ipaddress
import secrets
from collections.abc import Iterable, Iterator

from msgspec import Struct

RELEASE, REPLY = 8, 7
CLIENT_ID, SERVER_ID, ELAPSED, STATUS, IA_PD, IA_PREFIX = 1, 2, 8, 13, 25, 26
CLIENT_PORT, SERVER_PORT = 546, 547
SERVERS = "ff02::1:2"
"""All relay agents and servers on a link."""


class Prefix(Struct, frozen=True, kw_only=True):
    """A delegated prefix; lifetimes in seconds from when the message came."""

    prefix: str  # "2001:db8::/56"
    preferred_s: int
    valid_s: int


def options(data: bytes) -> Iterator[tuple[int, bytes]]:
    """The options in ``data``, which begins with one."""
    while len(data) >= 4:
        number, length = int.from_bytes(data[:2], "big"), int.from_bytes(data[2:4], "big")
        if len(data) < 4 + length:
            return
        yield number, data[4 : 4 + length]
        data = data[4 + length :]


def option(number: int, value: bytes) -> bytes:
    """One option as it is sent."""
    return number.to_bytes(2, "big") + len(value).to_bytes(2, "big") + value


def delegated(message: bytes) -> dict[int, list[Prefix]]:
    """The prefixes in a REPLY by the number of their identity association (IAID); {} when it is none."""
    found: dict[int, list[Prefix]] = {}
    if message[:1] != bytes([REPLY]):
        return found
    for number, value in options(message[4:]):
        if number == IA_PD and len(value) >= 12:
            mine = found.setdefault(int.from_bytes(value[:4], "big"), [])
            mine += [p for n, v in options(value[12:]) if n == IA_PREFIX and (p := _prefix(v)) is not None]
    return found


def _prefix(value: bytes) -> Prefix | None:
    if len(value) < 25 or value[8] > 128:
        return None
    net = ipaddress.IPv6Network((value[9:25], value[8]), strict=False)
    preferred, valid = int.from_bytes(value[:4], "big"), int.from_bytes(value[4:8], "big")
    if preferred > valid or any(n == STATUS and v[:2] not in (b"", b"\0\0") for n, v in options(value[25:])):
        return None
    return Prefix(prefix=str(net), preferred_s=preferred, valid_s=valid)


def release(reply: bytes, iaids: Iterable[int]) -> bytes | None:
    """The message that gives back what a REPLY delegated to these associations; None when that was nothing."""
    if reply[:1] != bytes([REPLY]):
        return None
    given = list(options(reply[4:]))
    named = [option(n, v) for n, v in given if n in (CLIENT_ID, SERVER_ID)]
    going = {iaid.to_bytes(4, "big") for iaid in iaids}
    back = [option(n, v) for n, v in given if n == IA_PD and v[:4] in going and len(v) > 12]
    if len(named) != 2 or not back:
        return None
    return b"".join([bytes([RELEASE]), secrets.token_bytes(3), *named, option(ELAPSED, b"\0\0"), *back])
