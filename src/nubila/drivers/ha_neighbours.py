"""The neighbours of a highly available router, handed from host to host, and how switches learn where it is now.

A host that takes over knows nobody: every packet would wait for an ARP request, and when that or its answer meets a
switch that still believes in the last host, for a second one a second later. So the host that forwards tells the others
whom it knows (:meth:`Neighbours.known`), and who takes over starts with that (:meth:`Neighbours.put`): as "stale", so
that the kernel checks each of them when it is used.

Switches learn from what they see. One that caches its decisions (Open vSwitch: ten seconds, evaluated anew every half
second) does not look at a frame like one it has seen: neither at a gratuitous ARP of a host that was the router's a
moment ago. :meth:`Sender.show` therefore sends frames that no switch has seen before, each to a group address drawn at
random. They are RARP requests for our own address, as a hypervisor sends after a live migration (RFC 903); nobody
answers.
Source: rtnetlink(7), neighbour tables; ovs-vswitchd.conf.db(5), max-revalidator and max-idle.
"""

from __future__ import annotations

import contextlib
import secrets
import select
import socket
import struct
from collections.abc import Iterable, Sequence

from nubila.core.ports import TryAgain
from nubila.drivers import links

Neighbour = tuple[str, str, str]
"""(device, address, MAC)"""
MOST = 2048
"""How many neighbours are kept: the kernel's own table is not larger by default (gc_thresh3 is 1024)."""
ANSWER_S = 0.1
_NEW, _GET, _ERROR, _DONE = 28, 30, 2, 3  # RTM_NEWNEIGH, RTM_GETNEIGH, NLMSG_*
_REQUEST, _CREATE, _REPLACE, _DUMP = 0x1, 0x400, 0x100, 0x300
_DST, _LLADDR = 1, 2  # NDA_*
_USABLE, _STALE = 0x02 | 0x04 | 0x08 | 0x10, 0x04  # NUD_REACHABLE, STALE, DELAY, PROBE
_FAMILIES = {4: socket.AF_INET, 16: socket.AF_INET6}
_ETH_P_RARP = 0x8035


class Neighbours:
    """The neighbour tables of one namespace, by a netlink socket that lives there."""

    def __init__(self, namespace: str) -> None:
        self.namespace = namespace
        with links.entered(namespace):
            self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, 0)
        self._socket.bind((0, 0))
        self._socket.setblocking(False)
        self._sequence = 0

    def close(self) -> None:
        """Let go of the namespace."""
        self._socket.close()

    def _numbers(self, devices: Iterable[str]) -> dict[str, int]:
        found = {}
        with contextlib.suppress(TryAgain), links.entered(self.namespace):
            for name in devices:
                with contextlib.suppress(OSError):
                    found[name] = socket.if_nametoindex(name)
        return found

    def known(self, devices: Sequence[str]) -> list[Neighbour]:
        """Who is known on these devices; [] when nobody can tell."""
        names = {number: name for name, number in self._numbers(devices).items()}
        found: list[Neighbour] = []
        if not names:
            return found
        self._drain()
        self._sequence += 1
        header = struct.pack("=IHHII", 28, _GET, _REQUEST | _DUMP, self._sequence, 0)
        try:
            self._socket.send(header + bytes(12))
            while select.select([self._socket], [], [], ANSWER_S)[0]:
                data = self._socket.recv(1 << 17)
                while len(data) >= 16:
                    length, kind, _, sequence, _ = struct.unpack_from("=IHHII", data)
                    if sequence == self._sequence and kind in (_DONE, _ERROR):
                        return found[:MOST]
                    if sequence == self._sequence and kind == _NEW:
                        self._read(data[16:length], names, found)
                    data = data[(length + 3) & ~3 :]
        except OSError:
            pass
        return found[:MOST]

    def _read(self, body: bytes, names: dict[int, str], found: list[Neighbour]) -> None:
        _, _, _, number, state, _, _ = struct.unpack_from("=BBHiHBB", body)
        if number not in names or not state & _USABLE:
            return
        parts: dict[int, bytes] = {}
        at = 12
        while at + 4 <= len(body):
            length, kind = struct.unpack_from("=HH", body, at)
            if length < 4:
                break
            parts[kind] = body[at + 4 : at + length]
            at += (length + 3) & ~3
        address, mac = parts.get(_DST, b""), parts.get(_LLADDR, b"")
        if len(address) in _FAMILIES and len(mac) == 6:
            found.append((names[number], socket.inet_ntop(_FAMILIES[len(address)], address), mac.hex(":")))

    def put(self, neighbours: Iterable[Neighbour]) -> None:
        """Know them, best effort: who is known already is replaced."""
        wanted = list(neighbours)
        numbers = self._numbers({device for device, _, _ in wanted})
        batch = []
        for device, address, mac in wanted:
            family = socket.AF_INET6 if ":" in address else socket.AF_INET
            with contextlib.suppress(OSError, ValueError, KeyError):
                data = struct.pack("=BBHiHBB", family, 0, 0, numbers[device], _STALE, 0, 0)
                for kind, value in ((_DST, socket.inet_pton(family, address)), (_LLADDR, _octets(mac))):
                    data += struct.pack("=HH", len(value) + 4, kind) + value + b"\0" * (-len(value) % 4)
                self._sequence += 1
                flags = _REQUEST | _CREATE | _REPLACE
                batch.append(struct.pack("=IHHII", len(data) + 16, _NEW, flags, self._sequence, 0) + data)
        with contextlib.suppress(OSError):
            for at in range(0, len(batch), 64):
                self._socket.send(b"".join(batch[at : at + 64]))
                self._drain()

    def _drain(self) -> None:
        """Read away refusals: nobody waits for them."""
        with contextlib.suppress(OSError):
            while self._socket.recv(1 << 16):
                pass


def _octets(mac: str) -> bytes:
    value = bytes.fromhex(mac.replace(":", ""))
    if len(value) != 6 or value[0] & 1:
        raise ValueError(f"{mac} is no station's address")
    return value


def retry_quickly(namespace: str, devices: Iterable[str]) -> None:
    """Ask again for a neighbour that did not answer after a quarter of a second, not after a whole one, and longer."""
    with contextlib.suppress(TryAgain), links.entered(namespace):
        for device in devices:
            for family in ("ipv4", "ipv6"):
                with contextlib.suppress(OSError):
                    links.sysctl(f"net/{family}/neigh/{device}/retrans_time_ms", "250")
                    links.sysctl(f"net/{family}/neigh/{device}/mcast_solicit", "12")


class Sender:
    """Sends whole frames from devices of one namespace. It is kept: to close such a socket takes tens of ms."""

    def __init__(self, namespace: str) -> None:
        with links.entered(namespace):
            self._socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW | socket.SOCK_CLOEXEC, 0)
        self._socket.setblocking(False)

    def close(self) -> None:
        """Let go of the namespace."""
        self._socket.close()

    def send(self, device: str, frames: Iterable[bytes]) -> None:
        """Send frames, best effort."""
        for frame in frames:
            with contextlib.suppress(OSError):
                self._socket.sendto(frame.ljust(60, b"\0"), (device, 0))

    def show(self, devices: Iterable[tuple[str, str]]) -> None:
        """Have every switch look where these (device, MAC) are now, best effort."""
        for device, mac in devices:
            own = bytes.fromhex(mac.replace(":", ""))
            group = b"\x03" + secrets.token_bytes(5)
            body = struct.pack("!HHBBH", 1, 0x0800, 6, 4, 3) + own + bytes(4) + own + bytes(4)
            self.send(device, [group + own + struct.pack("!H", _ETH_P_RARP) + body])
