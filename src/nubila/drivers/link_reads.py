"""Devices, forwarding entries and neighbours as the kernel has them, by rtnetlink(7) itself.

Every verb looks at devices, and hosts have thousands: a dump is read here in some ten microseconds a device (pyroute2
takes a millisecond), and the kernel is asked for the entries of one device only (NETLINK_GET_STRICT_CHK, Linux 5.0).
All of it is about the namespace the calling thread is in. Nothing is changed here (links.py, bridge_links.py).
"""

from __future__ import annotations

import errno
import ipaddress
import os
import socket
import struct
import sys
from collections.abc import Iterator

from msgspec import Struct

from nubila.core.ports import TryAgain

_NEWLINK, _GETLINK, _GETNEIGH = 16, 18, 30
_ERROR, _DONE = 2, 3
_REQUEST, _DUMP, _INTERRUPTED = 0x1, 0x300, 0x10
_SOL_NETLINK, _STRICT = 270, 12
_NO_STATISTICS = 1 << 3  # RTEXT_FILTER_SKIP_STATS
_IFLA_ADDRESS, _IFLA_IFNAME, _IFLA_MTU, _IFLA_MASTER = 1, 3, 4, 10
_IFLA_LINKINFO, _IFLA_IFALIAS, _IFLA_GROUP, _IFLA_EXT_MASK = 18, 20, 27, 29
_INFO_SLAVE_KIND, _INFO_SLAVE_DATA = 4, 5
_FLAGS = {"unicast_flood": 9, "proxyarp": 10, "proxyarp_wifi": 12}  # IFLA_BRPORT_...
_NDA_DST, _NDA_LLADDR, _NDA_IFINDEX = 1, 2, 8
_IFF_UP, _IFF_NOARP = 0x1, 0x80
_ABSENT = (errno.ENODEV, errno.EINVAL, errno.ERANGE)
_TRIES = 5


class Device(Struct, frozen=True, kw_only=True):
    """A network device as netlink shows it."""

    index: int
    name: str
    kind: str  # "", "veth", "tun", "vxlan" ...
    mac: str
    mtu: int
    up: bool
    arp: bool
    alias: str
    group: int
    master: int = 0  # index of the bridge it is a port of


class Entry(Struct, frozen=True):
    """A forwarding entry (``address``: the tunnel's other end) or a neighbour of one device."""

    mac: str
    address: str  # "" when it has none
    state: int  # NUD_...


def device(name: str) -> Device | None:
    """One device by name, None when absent."""
    wanted = name.encode() + b"\0"
    with _socket() as asker:
        asker.send(_message(_GETLINK, _REQUEST, bytes(16) + _attribute(_IFLA_IFNAME, wanted)))
        said = asker.recv(1 << 16)
    if struct.unpack_from("=H", said, 4)[0] != _NEWLINK:
        code = -struct.unpack_from("=i", said, 16)[0]
        if code in _ABSENT:
            return None
        raise TryAgain(f"The kernel does not say what the device {name} is: {os.strerror(code)}.")
    return _device(said[16:])


def devices() -> list[Device]:
    """All devices."""
    mask = _attribute(_IFLA_EXT_MASK, struct.pack("=I", _NO_STATISTICS))
    return [_device(part) for part in _dump(_GETLINK, bytes(16) + mask)]


def port_flags(index: int) -> dict[str, int]:
    """The flags of a bridge's port, by the names of ``bridge link``; none when it is the port of no bridge."""
    with _socket() as asker:
        asker.send(_message(_GETLINK, _REQUEST, struct.pack("=BxHiII", 0, 0, index, 0, 0)))
        said = asker.recv(1 << 16)
    if struct.unpack_from("=H", said, 4)[0] != _NEWLINK:
        return {}
    info = _attributes(_attributes(said[32:]).get(_IFLA_LINKINFO, b""))
    found = _attributes(info.get(_INFO_SLAVE_DATA, b"")) if _text(info.get(_INFO_SLAVE_KIND, b"")) == "bridge" else {}
    return {name: found[key][0] for name, key in _FLAGS.items() if found.get(key)}


def forwarding(index: int) -> list[Entry]:
    """The forwarding entries of a device, and those of its bridge that lead to it."""
    return _entries(index, struct.pack("=BxxxiHBB", socket.AF_BRIDGE, index, 0, 0, 0))


def neighbours(index: int) -> list[Entry]:
    """The IPv4 neighbours of a device."""
    of = _attribute(_NDA_IFINDEX, struct.pack("=I", index))
    return _entries(index, struct.pack("=BxxxiHBB", socket.AF_INET, 0, 0, 0, 0) + of)


def _entries(index: int, request: bytes) -> list[Entry]:
    found = []
    for part in _dump(_GETNEIGH, request):
        where, state = struct.unpack_from("=iH", part, 4)
        if where == index:
            said = _attributes(part[12:])
            address = said.get(_NDA_DST, b"")
            text = str(ipaddress.ip_address(address)) if len(address) in (4, 16) else ""
            found.append(Entry(said.get(_NDA_LLADDR, b"").hex(":"), text, state))
    return found


def _device(part: bytes) -> Device:
    index, flags = struct.unpack_from("=iI", part, 4)
    found = _attributes(part[16:])
    info = _attributes(found.get(_IFLA_LINKINFO, b""))

    def number(key: int) -> int:
        return int.from_bytes(found.get(key, b""), sys.byteorder)

    return Device(
        index=index,
        name=_text(found.get(_IFLA_IFNAME, b"")),
        kind=_text(info.get(1, b"")),
        mac=found.get(_IFLA_ADDRESS, b"").hex(":"),
        mtu=number(_IFLA_MTU),
        up=bool(flags & _IFF_UP),
        arp=not flags & _IFF_NOARP,
        alias=_text(found.get(_IFLA_IFALIAS, b"")),
        group=number(_IFLA_GROUP),
        master=number(_IFLA_MASTER),
    )


# --- the protocol -------------------------------------------------------------------------------------------------


def _socket() -> socket.socket:
    asker = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE)
    asker.settimeout(5)
    return asker


def _message(kind: int, flags: int, body: bytes) -> bytes:
    return struct.pack("=IHHII", 16 + len(body), kind, flags, 1, 0) + body


def _attribute(kind: int, value: bytes) -> bytes:
    return (struct.pack("=HH", 4 + len(value), kind) + value).ljust((len(value) + 7) & ~3, b"\0")


def _dump(kind: int, body: bytes) -> list[bytes]:
    """The payloads of all that a dump lists; asked again when something changed meanwhile."""
    for last in range(_TRIES, 0, -1):
        with _socket() as asker:
            asker.setsockopt(_SOL_NETLINK, _STRICT, 1)
            asker.send(_message(kind, _REQUEST | _DUMP, body))
            found, whole = [], True
            for what, flags, part in _answers(asker):
                whole = whole and not flags & _INTERRUPTED
                if what == _ERROR:
                    code = -struct.unpack_from("=i", part)[0]
                    if code in _ABSENT:
                        return []
                    raise TryAgain(f"The kernel does not say which devices there are: {os.strerror(code)}.")
                if what != _DONE:
                    found.append(part)
        if whole or last == 1:  # what changes all the time is as good as it gets: it is looked at again
            return found
    raise AssertionError("unreachable")


def _answers(asker: socket.socket) -> Iterator[tuple[int, int, bytes]]:
    """(type, flags, payload) of every message of an answer, up to its end."""
    while True:
        said = memoryview(asker.recv(1 << 18))
        while len(said) >= 16:
            length, what, flags = struct.unpack_from("=IHH", said)
            yield what, flags, bytes(said[16:length])
            if what in (_DONE, _ERROR):
                return
            said = said[(length + 3) & ~3 :]


def _attributes(data: bytes) -> dict[int, bytes]:
    found = {}
    while len(data) >= 4:
        length, kind = struct.unpack_from("=HH", data)
        found[kind & 0x3FFF] = data[4:length]
        data = data[(max(length, 4) + 3) & ~3 :]
    return found


def _text(data: bytes) -> str:
    return data.rstrip(b"\0").decode(errors="replace")
