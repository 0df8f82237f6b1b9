"""A DHCPv6 client and a listener for router advertisements, as guests have them (RFC 8415, 4861, 8106)."""

from __future__ import annotations

import contextlib
import ipaddress
import os
import socket
import struct
import time
from dataclasses import dataclass, field

from network_world import Guest

from nubila.drivers import links

SOLICIT, ADVERTISE, REQUEST, REPLY, INFORMATION = 1, 2, 3, 7, 11
_SERVERS = "ff02::1:2"


@dataclass
class Answer:
    """What a server said."""

    kind: int
    addresses: list[str] = field(default_factory=list)
    options: dict[int, bytes] = field(default_factory=dict)
    status: int = 0

    @property
    def name_servers(self) -> list[str]:
        """DNS recursive name servers (option 23)."""
        return _addresses(self.options.get(23, b""))

    @property
    def domains(self) -> list[str]:
        """Domain search list (option 24)."""
        return names(self.options.get(24, b""))


def ask(guest: Guest, kind: int, more: bytes = b"", patience_s: float = 3.0) -> Answer | None:
    """One message to all servers on eth0 and the first answer to it; None when there is none."""
    duid = b"\0\3\0\1" + bytes.fromhex(guest.spec.mac.replace(":", ""))
    number = os.urandom(3)
    message = bytes([kind]) + number + _option(1, duid) + _option(6, struct.pack("!HH", 23, 24)) + more
    if kind != INFORMATION:
        message += _option(3, struct.pack("!III", 1, 0, 0))
    with links.entered(guest.namespace):
        index = socket.if_nametoindex("eth0")
        client = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
        client.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        client.bind(("::", 546))
    deadline = time.monotonic() + patience_s
    with client:
        client.settimeout(0.3)
        while time.monotonic() < deadline:
            with contextlib.suppress(OSError):  # its link-local address may be new
                client.sendto(message, (_SERVERS, 547, 0, index))
                said = client.recv(4096)
                if said[1:4] == number:
                    return _answer(said)
    return None


def lease(guest: Guest, patience_s: float = 6.0) -> Answer | None:
    """Solicit, request: an address, put on eth0. None when no server offers one."""
    offered = ask(guest, SOLICIT, patience_s=patience_s)
    if offered is None or not offered.addresses:
        return offered
    bound = ask(guest, REQUEST, _option(2, offered.options[2]))
    assert bound is not None
    for address in bound.addresses:
        guest.run("ip", "addr", "replace", f"{address}/128", "dev", "eth0")
    return bound


def _option(code: int, value: bytes) -> bytes:
    return struct.pack("!HH", code, len(value)) + value


def _options(data: bytes) -> list[tuple[int, bytes]]:
    found = []
    while len(data) >= 4:
        code, length = struct.unpack("!HH", data[:4])
        found.append((code, data[4 : 4 + length]))
        data = data[4 + length :]
    return found


def _answer(said: bytes) -> Answer:
    answer = Answer(kind=said[0])
    for code, value in _options(said[4:]):
        answer.options[code] = value
        if code == 13:
            answer.status = int.from_bytes(value[:2], "big")
        for inner, content in _options(value[12:]) if code == 3 else ():
            if inner == 5:
                answer.addresses.append(str(ipaddress.IPv6Address(content[:16])))
            elif inner == 13:
                answer.status = int.from_bytes(content[:2], "big")
    return answer


def _addresses(data: bytes) -> list[str]:
    return [str(ipaddress.IPv6Address(data[i : i + 16])) for i in range(0, len(data) - 15, 16)]


def names(data: bytes) -> list[str]:
    """DNS names one after the other; padding is left out."""
    found: list[str] = []
    labels: list[str] = []
    while data:
        length, data = data[0], data[1:]
        if length:
            labels.append(data[:length].decode())
            data = data[length:]
        elif labels:
            found.append(".".join(labels))
            labels = []
    return found


@dataclass
class Advertisement:
    """A router advertisement. ``prefixes``: prefix -> flags, of "L" (on link) and "A" (make an address of it)."""

    source: str
    managed: bool
    other: bool
    lifetime_s: int
    mtu: int = 0
    prefixes: dict[str, str] = field(default_factory=dict)
    name_servers: list[str] = field(default_factory=list)
    domains: list[str] = field(default_factory=list)
    routes: list[str] = field(default_factory=list)


def advertisement(guest: Guest, patience_s: float = 5.0) -> Advertisement | None:
    """Solicit routers on eth0 and take the first answer; None when there is none."""
    with links.entered(guest.namespace):
        index = socket.if_nametoindex("eth0")
        listener = socket.socket(socket.AF_INET6, socket.SOCK_RAW, socket.IPPROTO_ICMPV6)
        listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_HOPS, 255)
    deadline = time.monotonic() + patience_s
    with listener:
        listener.settimeout(0.5)
        while time.monotonic() < deadline:
            with contextlib.suppress(OSError):
                listener.sendto(b"\x85\0\0\0\0\0\0\0", ("ff02::2", 0, 0, index))
                while True:
                    said, sender = listener.recvfrom(4096)
                    if said[0] == 134:
                        return _advertisement(said, str(sender[0]).partition("%")[0])
    return None


def _advertisement(said: bytes, source: str) -> Advertisement:
    flags, lifetime = said[5], int.from_bytes(said[6:8], "big")
    found = Advertisement(source=source, managed=bool(flags & 0x80), other=bool(flags & 0x40), lifetime_s=lifetime)
    data = said[16:]
    while len(data) >= 8:
        kind, length = data[0], data[1] * 8
        value, data = data[:length], data[length:]
        if kind == 3:
            prefix = f"{ipaddress.IPv6Address(value[16:32])}/{value[2]}"
            found.prefixes[prefix] = ("L" if value[3] & 0x80 else "") + ("A" if value[3] & 0x40 else "")
        elif kind == 5:
            found.mtu = int.from_bytes(value[4:8], "big")
        elif kind == 25:
            found.name_servers = _addresses(value[8:])
        elif kind == 31:
            found.domains = names(value[8:])
        elif kind == 24:
            found.routes.append(f"{ipaddress.IPv6Address(value[8:].ljust(16, bytes(1)))}/{value[2]}")
    return found
