"""The gate of a highly available router: nothing enters or leaves its networks while its host has no lease (ADR 7).

One nft table in the router's namespace hooks the ingress and egress of every ``qr-`` and ``qg-`` device. Both drop
everything (forwarded packets, answers to ARP, gratuitous ARP, router advertisements, also what was sent by packet
sockets) unless the set ``lease`` has its one element, and that element has a timeout: when whoever renews it dies,
hangs or loses the lease, the kernel closes the gate by itself. A renewal deletes the element and adds it in one
transaction, so it fails as a whole when the gate has closed meanwhile: a process that was stopped for a while and goes
on cannot open what ran out.

In a planned move the last host hands on what still arrives after it closed (the set ``hold``): see :class:`Held`.
Source: nft(8), netdev family; netlink messages as in linux/netfilter/nf_tables.h.
"""

from __future__ import annotations

import contextlib
import re
import socket
import struct
from collections.abc import Iterable, Sequence

from pyroute2.netlink.exceptions import NetlinkError

from nubila.core.ports import TryAgain
from nubila.drivers import links, nft, programs

TABLE = "nubila-ha"
LEASE, HOLD = "lease", "hold"
_NETDEV = 5  # NFPROTO_NETDEV
_ETHER = struct.pack("=H", 1)  # ARPHRD_ETHER: true of every packet on these devices
_SUBSYS, _NEWSETELEM, _DELSETELEM = 10, 12, 14  # NFNL_SUBSYS_NFTABLES, NFT_MSG_*
_BATCH_BEGIN, _BATCH_END = 0x10, 0x11
_REQUEST, _ACK, _CREATE = 1, 4, 0x400
_HOLD_IN, _HOLD_OUT = "hold-in", "hold-out"
_SO_RCVBUFFORCE, _PACKET_OUTGOING = 33, 4
_MASTER, _NOARP = 0x04, 0x40  # NTF_MASTER, NUD_NOARP


# --- the table --------------------------------------------------------------------------------------------------------


def _chains(device: str) -> str:
    return (
        f'  chain in-{device} {{\n    type filter hook ingress device "{device}" priority -500; policy drop;\n'
        f"    iiftype @{LEASE} accept\n  }}\n"
        f'  chain out-{device} {{\n    type filter hook egress device "{device}" priority 500; policy drop;\n'
        f"    oiftype @{LEASE} accept\n"
        "  }\n"
    )


def _present(text: str) -> set[str]:
    return set(re.findall(r"chain in-(\S+) {", text))


def gated() -> set[str]:
    """The devices that have gates in the namespace this thread is in."""
    return _present(programs.run(["nft", "list", "table", "netdev", TABLE], package="nftables", check=False))


def ensure(devices: Iterable[str]) -> None:
    """Gates for these devices of the namespace this thread is in, closed at first; open ones stay open."""
    sets = "".join(f"  set {name} {{ type iface_type; flags timeout; }}\n" for name in (LEASE, HOLD))
    listed = programs.run(["nft", "list", "table", "netdev", TABLE], package="nftables", check=False)
    have, wanted = _present(listed), set(devices)
    lines = [f"table netdev {TABLE} {{\n{sets}{''.join(_chains(d) for d in sorted(wanted - have))}}}\n"]
    for gone in sorted(have - wanted):
        lines += [f"delete chain netdev {TABLE} {way}-{gone}\n" for way in ("in", "out")]
    if wanted != have or not listed:
        nft.load("".join(lines))


def forget(device: str) -> None:
    """Remove a device's chains (the device is gone, or is about to be made anew)."""
    listed = programs.run(["nft", "list", "table", "netdev", TABLE], package="nftables", check=False)
    if device in _present(listed):
        nft.load("".join(f"delete chain netdev {TABLE} {way}-{device}\n" for way in ("in", "out")))


def quiet(device: str, port: int, *, anew: bool = False) -> None:
    """Let what conntrackd sends to this UDP port leave by the HA network's device only while the gate is open.

    A standby only has copies of connections. They run out, because what prolongs a connection is no event, and
    conntrackd would tell the host that forwards to forget the connection as well. ``anew``: the device is new.
    """
    listed = programs.run(["nft", "list", "table", "netdev", TABLE], package="nftables", check=False)
    present = f"chain sync-{device} {{" in listed
    if present and not anew:
        return
    gone = f"delete chain netdev {TABLE} sync-{device}\n" if present else ""
    sets = "".join(f"  set {name} {{ type iface_type; flags timeout; }}\n" for name in (LEASE, HOLD))
    nft.load(
        f"{gone}table netdev {TABLE} {{\n{sets}  chain sync-{device} {{\n"
        f'    type filter hook egress device "{device}" priority 0; policy accept;\n'
        f"    udp dport {port} oiftype != @{LEASE} drop\n  }}\n}}\n"
    )


# --- the lease --------------------------------------------------------------------------------------------------------


def _attribute(kind: int, data: bytes) -> bytes:
    return struct.pack("=HH", len(data) + 4, kind) + data + b"\0" * (-len(data) % 4)


def _nested(kind: int, *parts: bytes) -> bytes:
    return _attribute(kind | 0x8000, b"".join(parts))


def _message(kind: int, flags: int, sequence: int, family: int, resource: int, body: bytes = b"") -> bytes:
    data = struct.pack("=BB", family, 0) + struct.pack("!H", resource) + body
    return struct.pack("=IHHII", len(data) + 16, kind, flags, sequence, 0) + data


def _element(kind: int, set_name: str, sequence: int, timeout_ms: int | None) -> bytes:
    key = _nested(1, _attribute(1, _ETHER))  # NFTA_SET_ELEM_KEY, NFTA_DATA_VALUE
    timeout = b"" if timeout_ms is None else _attribute(4, struct.pack("!Q", timeout_ms))  # NFTA_SET_ELEM_TIMEOUT
    body = _attribute(1, TABLE.encode() + b"\0") + _attribute(2, set_name.encode() + b"\0")
    body += _nested(3, _nested(1, key, timeout))  # NFTA_SET_ELEM_LIST_ELEMENTS, NFTA_LIST_ELEM
    flags = _REQUEST | _ACK | (_CREATE if kind == _NEWSETELEM else 0)
    return _message(_SUBSYS << 8 | kind, flags, sequence, _NETDEV, 0, body)


class Gate:
    """The gate of one namespace, as its keeper holds it: a netlink socket that lives there."""

    def __init__(self, namespace: str) -> None:
        self.namespace = namespace
        with links.entered(namespace):
            self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, 12)
        self._socket.bind((0, 0))
        self._socket.settimeout(0.5)
        self._sequence = 1

    def close_socket(self) -> None:
        """Let go of the namespace."""
        self._socket.close()

    def _batch(self, steps: Sequence[tuple[int, str, int | None]]) -> bool:
        first = self._sequence
        parts = [_message(_BATCH_BEGIN, _REQUEST, first, 0, _SUBSYS)]
        for i, (kind, name, timeout_ms) in enumerate(steps, 1):
            parts.append(_element(kind, name, first + i, timeout_ms))
        last = first + len(steps)
        parts.append(_message(_BATCH_END, _REQUEST, last + 1, 0, _SUBSYS))
        self._sequence = last + 2
        self._socket.send(b"".join(parts))
        waiting, good = set(range(first + 1, last + 1)), True
        while waiting:
            try:
                data = self._socket.recv(65536)
            except (TimeoutError, OSError):
                return False
            while len(data) >= 20:
                length, kind, _, sequence, _, error = struct.unpack_from("=IHHIIi", data)
                if kind == 2 and sequence >= first:  # NLMSG_ERROR; 0 is an acknowledgement
                    good = good and error == 0
                    waiting.discard(sequence)
                    if error:
                        waiting.clear()
                data = data[(length + 3) & ~3 :]
        return good

    def open(self, timeout_s: float) -> bool:
        """Open it for so long, whatever it was; and end holding."""
        ms = max(1, int(timeout_s * 1000))
        add = (_NEWSETELEM, LEASE, ms)
        no_hold = [(_NEWSETELEM, HOLD, 1), (_DELSETELEM, HOLD, None)]
        return self._batch([*no_hold, add, (_DELSETELEM, LEASE, None), add])

    def renew(self, timeout_s: float) -> bool:
        """Keep it open for so long from now; False when it had closed: it stays closed."""
        return self._batch([(_DELSETELEM, LEASE, None), (_NEWSETELEM, LEASE, max(1, int(timeout_s * 1000)))])

    def close(self) -> bool:
        """Close it; closed already is success, False when nobody can tell."""
        add = (_NEWSETELEM, LEASE, 1)
        return self._batch([add, (_DELSETELEM, LEASE, None)])

    def is_open(self) -> bool:
        """Whether it is open now."""
        with links.entered(self.namespace):
            argv = ["nft", "list", "set", "netdev", TABLE, LEASE]
            return "elements" in programs.run(argv, package="nftables", check=False)

    def hold(self, timeout_s: float) -> bool:
        """Keep what arrives for so long, also while the gate is open; needs :class:`Held`."""
        add = (_NEWSETELEM, HOLD, max(1, int(timeout_s * 1000)))
        return self._batch([add, (_DELSETELEM, HOLD, None), add])

    def end_hold(self) -> bool:
        """Stop keeping what arrives."""
        return self._batch([(_NEWSETELEM, HOLD, 1), (_DELSETELEM, HOLD, None)])


# --- holding ----------------------------------------------------------------------------------------------------------


class Held:
    """What still arrives at a router on the host that has just given the lease to another, in a planned move.

    What arrives goes, from :meth:`Gate.hold` on and before the gate closes, into a pair of devices whose far end only
    our packet socket reads. Frames for the router itself are handed to the next host (see :class:`Injector`);
    broadcasts are not worth it, they are sent again.
    """

    def __init__(self, namespace: str, devices: dict[str, str]) -> None:
        self.namespace = namespace
        self.devices = devices  # MAC -> device
        with links.opened(namespace) as net:
            net.remove(_HOLD_IN)
            net.add_pair(_HOLD_IN, _HOLD_OUT)
            for name in (_HOLD_IN, _HOLD_OUT):
                links.sysctl(f"net/ipv6/conf/{name}/disable_ipv6", "1")
                net.change(net.must(name), up=True, arp=False)
            self.tap = socket.socket(socket.AF_PACKET, socket.SOCK_RAW | socket.SOCK_NONBLOCK, socket.htons(0x0003))
        self.tap.bind((_HOLD_OUT, 0x0003))
        self.tap.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, 16 << 20)
        rules = [f'insert rule netdev {TABLE} in-{d} iiftype @{HOLD} fwd to "{_HOLD_IN}"\n' for d in devices.values()]
        with links.entered(namespace):
            nft.load("".join(rules))

    def frames(self) -> list[bytes]:
        """The frames that have arrived for the router."""
        found: list[bytes] = []
        while True:
            try:
                frame, where = self.tap.recvfrom(65536)
            except OSError:
                return found
            if where[2] != _PACKET_OUTGOING and frame[:6].hex(":") in self.devices:
                found.append(frame)

    def end(self) -> None:
        """Remove the devices and the rules."""
        self.tap.close()
        with contextlib.suppress(TryAgain), links.opened(self.namespace) as net:
            for device in self.devices.values():
                text = f"flush chain netdev {TABLE} in-{device}\nadd rule netdev {TABLE} in-{device} "
                with contextlib.suppress(TryAgain):
                    nft.load(f"{text}iiftype @{LEASE} accept\n")
            net.remove(_HOLD_IN)


def pin(host_namespace: str, outer: dict[str, str], here: bool) -> None:
    """Have Linux bridges send frames for these MACs (MAC -> device) to their own port while what arrives is held.

    A bridge has learned by then that the MAC is behind a tunnel, and would drop what still comes by that tunnel. Ports
    of other switches are left alone.
    """
    with contextlib.suppress(TryAgain, OSError), links.opened(host_namespace) as net:
        for mac, name in outer.items():
            device = net.device(name)
            if device is not None and device.master:
                verb, entry = ("replace", {"state": _NOARP}) if here else ("del", {})
                with contextlib.suppress(NetlinkError):
                    net.route.fdb(verb, ifindex=device.index, lladdr=mac, flags=_MASTER, **entry)


class Injector:
    """Puts frames in front of a router's devices, as if they had just arrived: at their outer ends."""

    def __init__(self, host_namespace: str, outer: dict[str, str]) -> None:
        self._senders: dict[str, socket.socket] = {}  # by MAC
        with links.entered(host_namespace):
            for mac, device in outer.items():
                with contextlib.suppress(OSError):
                    sender = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
                    sender.bind((device, 0))
                    self._senders[mac] = sender

    def put(self, frame: bytes) -> bool:
        """One frame; False when it is for nobody here."""
        sender = self._senders.get(frame[:6].hex(":"))
        if sender is None:
            return False
        with contextlib.suppress(OSError):
            sender.send(frame)
        return True

    def end(self) -> None:
        """Let go of the devices."""
        for sender in self._senders.values():
            sender.close()
