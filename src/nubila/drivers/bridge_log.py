"""The log of security groups on Linux bridge hosts: what the filters hand to NFLOG, written as Open vSwitch hosts do.

Model: chains of a logged port (``verdicts``, ``accepted``) copy packets to an NFLOG group of the host, all of them
through one limit; a thread reads the group and writes a line for each to ``<root>/log/security-groups.log``
(security_log.py has the format). ``<root>/security-log/<port>.json`` says which logs a port has. A packet's prefix says
which port it is about, which way it went and which of the port's groups was asked; while rules are looked up, the
connection's mark says that (``ASKED``), so that groups' own chains need not know who is logged.

Failure: while this process is away nothing is logged and packets are not touched. What exceeds the rate is not logged.
Source: Linux include/uapi/linux/netfilter/nfnetlink_log.h.
"""

from __future__ import annotations

import contextlib
import ipaddress
import logging
import os
import select
import socket
import struct
import threading
import zlib
from collections.abc import Iterable, Sequence
from typing import Any

from nubila.core.ports import HostPlace, PortSpec
from nubila.drivers import links
from nubila.drivers.files import read_json, write_json
from nubila.drivers.security_log import Entry, line, writer

ASKED = {"o": 8, "i": 16}
"""Where in a connection's mark it says which group was asked, by direction: 8 bits each."""
_OWN, _FIRST, _MOST = 1, 2, 255  # the port's own rules, its first group, what 8 bits can say
_NETLINK_NETFILTER = 12
_CONFIG, _PACKET = 4 << 8 | 1, 4 << 8  # NFNL_SUBSYS_ULOG; NFULNL_MSG_CONFIG, NFULNL_MSG_PACKET
_COMMAND, _MODE, _THRESHOLD, _BIND, _COPY_PACKET = 1, 2, 5, 1, 2
_PAYLOAD, _PREFIX, _HEADER = 9, 10, 16
_COPIED_BYTES = 128
_TCP_FLAGS = ("fin", "syn", "rst", "psh", "ack", "urg")
_PORTED = {6: "tcp", 17: "udp", 132: "sctp"}


def group_of(cloud: str) -> int:
    """The NFLOG group of a cloud."""
    return 1 + zlib.crc32(cloud.encode()) % 65535


# --- rules ------------------------------------------------------------------------------------------------------------


def numbers(spec: PortSpec) -> dict[str, int]:
    """What the mark says for each group of a port; its own rules have the port's id."""
    found = {id: number for number, id in enumerate(spec.groups, _FIRST) if number <= _MOST}
    return {**found, spec.id: _OWN}


def asking(spec: PortSpec, letter: str, group: str) -> list[str]:
    """Rule before a group's rules are looked up, when the port is logged."""
    number = numbers(spec).get(group, 0)
    if not spec.logs or not number:
        return []
    shift = ASKED[letter]
    return [f"ct mark set ct mark & {0xFFFFFFFF ^ (0xFF << shift):#x} | {number << shift:#x}"]


def dropped(spec: PortSpec, letter: str, nflog: int) -> list[str]:
    """Rules before a packet is dropped because no group lets it through."""
    if not any(log.event in ("ALL", "DROP") for log in spec.logs):
        return []
    return [_copy(spec, "D", letter, 0, nflog)]


def accepted(spec: PortSpec, letter: str, nflog: int) -> list[str]:
    """Rules for what passed: a copy of the first packets of connections, by the group that let them through."""
    passing = [log for log in spec.logs if log.event in ("ALL", "ACCEPT")]
    everything = any(log.group is None for log in passing)
    named = {log.group for log in passing}
    shift, state = ASKED[letter], "ct state new " if spec.stateful else ""
    return [
        f"{state}ct mark & {0xFF << shift:#x} == {number << shift:#x} {_copy(spec, 'A', letter, number, nflog)}"
        for group, number in numbers(spec).items()
        if everything or group in named
    ]


def _copy(spec: PortSpec, verdict: str, letter: str, number: int, nflog: int) -> str:
    prefix = f"{verdict} {letter} {spec.id} {number}"
    return f'limit name "logged" log prefix "{prefix}" group {nflog} snaplen {_COPIED_BYTES} queue-threshold 1'


# --- the reader -------------------------------------------------------------------------------------------------------


class BridgeLog:
    """One host's log."""

    def __init__(self, place: HostPlace) -> None:
        self._place = place
        self._folder = place.root / "security-log"
        self.file = place.root / "log" / "security-groups.log"
        self._entries: dict[str, Entry] | None = None  # by port; None: not read yet
        self._stopping = threading.Event()
        self._wake: tuple[int, int] | None = None  # a pipe that ends the reader's wait
        self._thread: threading.Thread | None = None

    def keep(self, spec: PortSpec) -> None:
        """Know what packets of the port mean, before its filter copies any; without logs forget it."""
        if not spec.logs:
            self.forget(spec.id)
            return
        entry = Entry(port_id=spec.id, project_id=spec.project_id, logs=spec.logs, groups=numbers(spec))
        known = self._read()
        if known.get(spec.id) != entry:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            write_json(self._folder / f"{spec.id}.json", entry)
            known[spec.id] = entry
        self.start()

    def forget(self, port_id: str) -> None:
        """The port is gone or logged no more."""
        if self._read().pop(port_id, None) is not None:
            (self._folder / f"{port_id}.json").unlink(missing_ok=True)

    def start(self) -> None:
        """Write lines from now on, when any port is logged."""
        if not self._read() or (self._thread is not None and self._thread.is_alive()):
            return
        self._stopping.clear()
        self._wake = os.pipe()
        ready = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(ready, self._wake[0]), name="bridge-log", daemon=True)
        self._thread.start()
        ready.wait(5)

    def stop(self) -> None:
        """Write no more; what is logged stays known."""
        self._stopping.set()
        if self._wake is not None:
            os.close(self._wake[1])
        if self._thread is not None:
            self._thread.join(5)
        if self._wake is not None:
            os.close(self._wake[0])
        self._wake = self._thread = None

    def destroy(self) -> None:
        """Write no more, and know nothing."""
        self.stop()
        for path in self._folder.glob("*.json"):
            path.unlink()
        if self._folder.is_dir():
            self._folder.rmdir()
        self._entries = None

    def _read(self) -> dict[str, Entry]:
        if self._entries is None:
            found = [read_json(path, Entry) for path in self._folder.glob("*.json")]
            self._entries = {entry.port_id: entry for entry in found if entry}
        return self._entries

    def _run(self, ready: threading.Event, wake: int) -> None:
        out = writer(self.file)
        try:
            while not self._stopping.is_set():
                with contextlib.suppress(OSError), _listening(self._place) as kernel:
                    ready.set()
                    self._follow(kernel, wake, out)
                ready.set()
                self._stopping.wait(1.0)  # another process of this host, which is about to end, still has the group
        finally:
            out.close()

    def _follow(self, kernel: socket.socket, wake: int, out: logging.Handler) -> None:
        while not self._stopping.is_set():
            waiting: list[Any] = [kernel, wake]
            if wake in select.select(waiting, [], [])[0]:
                return
            try:
                said = kernel.recv(1 << 18)
            except OSError as e:
                if e.errno == 105:  # ENOBUFS: more than could be read; the rest comes
                    continue
                raise
            for attributes in _packets(said):
                text = self._line(attributes)
                if text:
                    out.emit(logging.LogRecord("", logging.INFO, "", 0, text, None, None))

    def _line(self, attributes: dict[int, bytes]) -> str:
        words = attributes.get(_PREFIX, b"").rstrip(b"\0").decode(errors="replace").split()
        if len(words) != 4 or words[2] not in (known := dict(self._entries or {})):
            return ""
        verdict, letter, port_id, number = words
        direction = "egress" if letter == "o" else "ingress"
        packet = describe(attributes.get(_HEADER, b""), attributes.get(_PAYLOAD, b""))
        return line(known[port_id], verdict == "A", int(number), direction, packet)


def _listening(place: HostPlace) -> socket.socket:
    with links.entered(place.namespace):
        kernel = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, _NETLINK_NETFILTER)
    try:
        kernel.settimeout(5)
        kernel.bind((0, 0))
        group = group_of(place.cloud)
        _configure(kernel, group, [(_COMMAND, struct.pack("=B", _BIND))])
        mode = struct.pack("!IBB", _COPIED_BYTES, _COPY_PACKET, 0)
        _configure(kernel, group, [(_MODE, mode), (_THRESHOLD, struct.pack("!I", 1))])
    except BaseException:
        kernel.close()
        raise
    return kernel


def _configure(kernel: socket.socket, group: int, attributes: Iterable[tuple[int, bytes]]) -> None:
    body = struct.pack("!BBH", socket.AF_UNSPEC, 0, group)
    for kind, value in attributes:
        body += struct.pack("=HH", 4 + len(value), kind) + value + b"\0" * (-len(value) % 4)
    kernel.send(struct.pack("=IHHII", 16 + len(body), _CONFIG, 5, 1, 0) + body)  # NLM_F_REQUEST | NLM_F_ACK
    while True:
        said = kernel.recv(1 << 16)
        if struct.unpack_from("=H", said, 4)[0] == 2:  # NLMSG_ERROR, also for success
            code = -struct.unpack_from("=i", said, 16)[0]
            if code:
                raise OSError(code, os.strerror(code))
            return


def _packets(said: bytes) -> list[dict[int, bytes]]:
    """The attributes of each packet in what the kernel sent."""
    found = []
    while len(said) >= 16:
        length, kind = struct.unpack_from("=IH", said)
        if length < 16:
            break
        if kind == _PACKET:
            found.append(_attributes(said[20:length]))
        said = said[(length + 3) & ~3 :]
    return found


def _attributes(body: bytes) -> dict[int, bytes]:
    out = {}
    while len(body) >= 4:
        length, kind = struct.unpack_from("=HH", body)
        if length < 4:
            break
        out[kind & 0x3FFF] = body[4:length]
        body = body[(length + 3) & ~3 :]
    return out


# --- packets in words ---------------------------------------------------------------------------------------------


def describe(header: bytes, packet: bytes) -> str:
    """A packet as Open vSwitch would name it: ``tcp,dl_src=...,nw_src=...,tp_dst=80,tcp_flags=syn``."""
    if len(packet) >= 20 and packet[0] >> 4 == 4:
        protocol, rest = packet[9], packet[(packet[0] & 15) * 4 :]
        ends = [f"nw_src={ipaddress.IPv4Address(packet[12:16])}", f"nw_dst={ipaddress.IPv4Address(packet[16:20])}"]
        ends += [f"nw_tos={packet[1] & 0xFC}", f"nw_ttl={packet[8]}"]
        six = ""
    elif len(packet) >= 40 and packet[0] >> 4 == 6:
        protocol, rest = _upper(packet[6], packet[40:])
        ends = [f"ipv6_src={ipaddress.IPv6Address(packet[8:24])}", f"ipv6_dst={ipaddress.IPv6Address(packet[24:40])}"]
        six = "6"
    else:
        return "unknown"
    macs = []
    if len(header) >= 14:
        macs = [f"dl_src={header[6:12].hex(':')}", f"dl_dst={header[:6].hex(':')}"]
    name, more = _transport(protocol, rest, six)
    return ",".join([name, *macs, *ends, *more])


def _transport(protocol: int, rest: bytes, six: str) -> tuple[str, Sequence[str]]:
    if protocol in _PORTED and len(rest) >= 4:
        more = [f"tp_src={int.from_bytes(rest[:2], 'big')}", f"tp_dst={int.from_bytes(rest[2:4], 'big')}"]
        if protocol == 6 and len(rest) >= 14:
            flags = [name for bit, name in enumerate(_TCP_FLAGS) if rest[13] >> bit & 1]
            more.append(f"tcp_flags={'|'.join(flags) or 0}")
        return _PORTED[protocol] + six, more
    if protocol in (1, 58) and len(rest) >= 2:
        return "icmp6" if protocol == 58 else "icmp", [f"icmp_type={rest[0]}", f"icmp_code={rest[1]}"]
    return f"ip{'v6' if six else ''}", [f"nw_proto={protocol}"]


def _upper(header: int, rest: bytes) -> tuple[int, bytes]:
    """The upper-layer protocol of an IPv6 packet, behind its extension headers (RFC 8200, 4.1)."""
    while header in (0, 43, 60, 44) and len(rest) >= 8:
        length = 8 if header == 44 else (rest[1] + 1) * 8
        header, rest = rest[0], rest[length:]
    return header, rest
