"""Frames made by hand, honest and forged, and ears that hear whole frames."""

from __future__ import annotations

import ipaddress
import select
import socket
import struct
import time
import zlib

from network_world import Guest

from nubila.drivers import links

BROADCAST = "ff:ff:ff:ff:ff:ff"
_ETH_P_ALL = 3


def mac(text: str) -> bytes:
    return bytes.fromhex(text.replace(":", ""))


def ether(source: str, to: str, kind: int, body: bytes) -> bytes:
    return mac(to) + mac(source) + struct.pack("!H", kind) + body


def tagged(frame: bytes, vlan: int, kind: int = 0x8100) -> bytes:
    """The frame with an 802.1Q tag put in."""
    return frame[:12] + struct.pack("!HH", kind, vlan) + frame[12:]


def _sum(data: bytes) -> int:
    total = sum(struct.unpack(f"!{(len(data) + 1) // 2}H", data + b"\0" * (len(data) % 2)))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def arp(
    source: str, sender_mac: str, sender_ip: str, target_ip: str, *, reply: bool = False, to: str = BROADCAST
) -> bytes:
    four = ipaddress.IPv4Address
    body = struct.pack("!HHBBH", 1, 0x0800, 6, 4, 2 if reply else 1)
    body += mac(sender_mac) + four(sender_ip).packed + b"\0" * 6 + four(target_ip).packed
    return ether(source, to, 0x0806, body)


def ipv4(
    source: str, to: str, src: str, dst: str, protocol: int, body: bytes, fragment: int = 0, ident: int = 7
) -> bytes:
    """``fragment``: flags and offset, 0x2000 = more to come."""
    head = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(body), ident, fragment, 64, protocol, 0)
    head += ipaddress.IPv4Address(src).packed + ipaddress.IPv4Address(dst).packed
    return ether(source, to, 0x0800, head[:10] + struct.pack("!H", _sum(head)) + head[12:] + body)


def udp(src: str, dst: str, ports: tuple[int, int], data: bytes) -> bytes:
    """With its checksum, for both versions of IP."""
    body = struct.pack("!HHHH", *ports, 8 + len(data), 0) + data
    pseudo = ipaddress.ip_address(src).packed + ipaddress.ip_address(dst).packed + struct.pack("!II", len(body), 17)
    return body[:6] + struct.pack("!H", _sum(pseudo + body) or 0xFFFF) + body[8:]


def ipv6(source: str, to: str, src: str, dst: str, next_header: int, body: bytes, hops: int = 255) -> bytes:
    six = ipaddress.IPv6Address
    head = struct.pack("!IHBB", 6 << 28, len(body), next_header, hops) + six(src).packed + six(dst).packed
    return ether(source, to, 0x86DD, head + body)


def icmp6(src: str, dst: str, kind: int, data: bytes) -> bytes:
    body = struct.pack("!BBH", kind, 0, 0) + data
    six = ipaddress.IPv6Address
    pseudo = six(src).packed + six(dst).packed + struct.pack("!II", len(body), 58)
    return body[:2] + struct.pack("!H", _sum(pseudo + body)) + body[4:]


def neighbour(source: str, src: str, dst: str, kind: int, target: str, option_mac: str | None, to: str) -> bytes:
    """A neighbour solicitation (135) or advertisement (136)."""
    data = struct.pack("!I", 0x60000000 if kind == 136 else 0) + ipaddress.IPv6Address(target).packed
    if option_mac is not None:
        data += struct.pack("!BB", 2 if kind == 136 else 1, 1) + mac(option_mac)
    return ipv6(source, to, src, dst, 58, icmp6(src, dst, kind, data))


def fragments6(source: str, to: str, src: str, dst: str, next_header: int, body: bytes, cut: int) -> list[bytes]:
    """An IPv6 packet in two fragments; ``cut`` is a multiple of 8."""
    ident = zlib.crc32(body)
    one = struct.pack("!BBHI", next_header, 0, 1, ident) + body[:cut]
    two = struct.pack("!BBHI", next_header, 0, cut, ident) + body[cut:]
    return [ipv6(source, to, src, dst, 44, one), ipv6(source, to, src, dst, 44, two)]


class Ear:
    """Hears every frame that reaches a device: a guest's card, or another one in some namespace."""

    def __init__(self, guest: Guest | str, device: str = "eth0") -> None:
        with links.entered(guest if isinstance(guest, str) else guest.namespace):
            self._socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(_ETH_P_ALL))
            self._socket.bind((device, _ETH_P_ALL))
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 22)
        self._socket.setsockopt(263, 8, 1)  # SOL_PACKET, PACKET_AUXDATA: the kernel takes tags out of frames
        self.heard: list[bytes] = []

    def listen(self, until: bytes | None, patience_s: float) -> bool:
        """Listen until a frame comes, or for that long; whether it came."""
        deadline = time.monotonic() + patience_s
        while (left := deadline - time.monotonic()) > 0:
            if not select.select([self._socket], [], [], left)[0]:
                break
            data, more, _, address = self._socket.recvmsg(65536, 256)
            if address[2] == socket.PACKET_OUTGOING:
                continue
            for level, kind, value in more:
                if (level, kind) == (263, 8):
                    status, tci, tpid = struct.unpack_from("=I", value)[0], *struct.unpack_from("=HH", value, 16)
                    if status & 0x10:  # TP_STATUS_VLAN_VALID
                        data = tagged(data, tci, tpid if status & 0x40 else 0x8100)
            self.heard.append(data)
            if until is not None and data[: len(until)] == until:
                return True
        return False

    def has(self, frame: bytes) -> bool:
        """Whether the frame came, however it was padded."""
        return any(one[: len(frame)] == frame for one in self.heard)

    def carried(self, frame: bytes) -> bool:
        """Whether the frame came inside another one, in whatever tunnel."""
        return any(frame in one for one in self.heard)

    def close(self) -> None:
        self._socket.close()


def send(guest: Guest, frames: list[bytes]) -> None:
    """Send frames from a guest's card as they are."""
    with links.entered(guest.namespace):
        out = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
        out.bind(("eth0", 0))
    try:
        for frame in frames:
            out.send(frame)
    finally:
        out.close()
