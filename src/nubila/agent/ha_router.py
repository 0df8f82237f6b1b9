"""One highly available router on this host as the keeper works it: gate, addresses, routes, the HA network.

The decisions are :mod:`nubila.agent.ha_seat`'s; here they meet the kernel. What is read is read from the kernel (who is
VRRP master shows in the VIP, a link in the device's flags), never from what was done before.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import socket
import struct
import subprocess
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from nubila.agent.ha_seat import FOREVER, PROMISE_S, Seat
from nubila.core.ports import TryAgain
from nubila.drivers import ha_daemons, ha_neighbours, links, ovs_learned
from nubila.drivers.ha import Kept
from nubila.drivers.ha_gate import Gate, Held, Injector, pin
from nubila.drivers.ha_neighbours import Neighbour, Neighbours, Sender
from nubila.drivers.router import announcements

log = logging.getLogger("nubila.keeper")
PORT, FRAMES_PORT = 3781, 3782
"""UDP on the HA network: promises; frames that arrived on the host that has just been left."""
RELAY_S = 2.0
"""How long a host that was left hands on what still arrives: switches have learned by then (ha_neighbours.show)."""
LEAVE_S = 0.01
"""How long what has entered the router may take to leave it before the gate closes."""
MOST_WAITING = 4096
NEEDED = "needed.json"
TTL_S = 0.5
ASK_S = 0.12
AGAIN_S = (0.05, 0.2, 0.7, 2.0)
"""When the addresses are announced again after the gate opened."""
SHOW_S = (0.02, 0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.6, 0.8, 1.0, 1.3, 1.6)
"""When switches are shown again where the router is: what they saw of the last host a moment ago may still count."""
SHARE_S, SHARE_ALL_S = 2.0, 10.0
"""How often the other hosts are told whom we know, when that changed and in any case."""
A_DATAGRAM = 20
_LINK_AND_ADDRESSES = 0x1 | 0x10 | 0x100  # RTMGRP_LINK, RTMGRP_IPV4_IFADDR, RTMGRP_IPV6_IFADDR
DRESS_S = 2.0
"""How often addresses and routes are looked at without a sign from the kernel that one has changed."""
_SIOCGIFFLAGS, _IFF_RUNNING = 0x8913, 0x40


def clock() -> float:
    """This host's own clock: it counts while the machine sleeps, and nobody sets it."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def _fresh() -> int:
    """Larger than any number that a keeper of this host has counted to."""
    return int(time.time() * 1000)


def watcher(namespace: str) -> socket.socket:
    """A socket that wakes up when a device or address of the namespace changes."""
    with links.entered(namespace):
        found = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK, 0)
    found.bind((0, _LINK_AND_ADDRESSES))
    return found


def drain(source: socket.socket) -> None:
    """Read away what woke us up."""
    with contextlib.suppress(BlockingIOError, OSError):
        while source.recv(65536):
            pass


class HaRouter:
    """One router. ``kept`` is what the driver wrote for us."""

    def __init__(self, host: str, host_namespace: str, kept: Kept) -> None:
        self.kept, self.host_namespace = kept, host_namespace
        self.gate = Gate(kept.namespace)
        now = clock()
        self.seat = Seat(host, others=tuple(sorted(kept.peers)), up=kept.up, term=_fresh(), seq=_fresh())
        self._control = self._host_socket()
        if self.gate.is_open():  # our predecessor opened it: it stays open while somebody confirms it in time
            self.seat.opened = True
            self.seat.lease_until = now + 0.3
            self.seat.told = self._remembered()
        else:
            self.seat.quiet_until = now + PROMISE_S * 1.03 + 0.02
        self.udp, self.frames = self._udp(PORT), self._udp(FRAMES_PORT)
        self.frames.setsockopt(socket.SOL_SOCKET, 33, 8 << 20)  # SO_RCVBUFFORCE
        self.watch = watcher(kept.namespace)
        self.neighbours, self.sender = Neighbours(kept.namespace), Sender(kept.namespace)
        self._known: dict[tuple[str, str], str] = {}  # what the host that forwards knows
        self._shared: list[Neighbour] = []
        self._share_at = self._share_all_at = 0.0
        self._renewed = self._asked = self._dressed = 0.0
        self._announce: list[float] = []
        self._show: list[float] = []
        self._standing: int | None = None
        self._needed: list[str] | None = None
        self.held: Held | None = None
        self._readying: Future[Held] | None = None
        self._clearing: Future[None] | None = None
        self._readying_until = self._ready_again = self._relay_until = 0.0
        self._aside = ThreadPoolExecutor(1, f"aside-{kept.router_id[:8]}")  # for what takes long and can wait
        self._wardrobe = ThreadPoolExecutor(1, f"addresses-{kept.router_id[:8]}")
        self._dressing: Future[None] | None = None
        self._injector: Injector | None = None
        self._waiting: list[tuple[float, bytes]] = []
        self._naked_since: float | None = None
        self.look()

    def _host_socket(self) -> socket.socket:
        with links.entered(self.host_namespace):
            return socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)

    def _udp(self, port: int) -> socket.socket:
        with links.entered(self.kept.namespace):
            found = socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
            found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            found.setsockopt(socket.IPPROTO_IP, 15, 1)  # IP_FREEBIND
            found.setsockopt(socket.IPPROTO_IP, 6, 0xC0)  # IP_TOS: network control
        found.bind((self.kept.address, port))
        return found

    def change(self, kept: Kept) -> None:
        """The driver wrote something new."""
        self.kept = kept
        self.seat.up = kept.up
        self._dressed = 0.0
        self.look()

    def _remembered(self) -> dict[int, tuple[str, ...]]:
        """Whose promises our predecessor needed; {} when nobody knows: then only the control plane counts."""
        with contextlib.suppress(OSError, ValueError, TypeError):
            known = json.loads(Path(self.kept.run_dir, NEEDED).read_text())
            return {0: tuple(str(host) for host in known)}
        return {}

    def _remember(self) -> None:
        """Leave a successor word whose promises are needed, before anybody relies on fewer or others."""
        needed = sorted(self.seat.needed())
        if self.seat.opened and self.seat.told and needed != self._needed:
            with contextlib.suppress(OSError):
                fresh = Path(self.kept.run_dir, NEEDED).with_suffix(".new")
                fresh.write_text(json.dumps(needed))
                fresh.replace(Path(self.kept.run_dir, NEEDED))
                self._needed = needed

    def end(self) -> None:
        """The router is taken away: close, and let go."""
        self._shut("it is taken away")
        self._end_relay()
        if self._injector is not None:
            self._aside.submit(self._injector.end)
        for helper in (self._aside, self._wardrobe):
            helper.shutdown(wait=False)
        for one in (self.udp, self.frames, self.watch, self._control):
            one.close()
        self.neighbours.close()
        self.sender.close()
        self.gate.close_socket()

    # --- reading the kernel

    def look(self) -> None:
        """Who is VRRP master, whether the links are there."""
        drain(self.watch)
        with contextlib.suppress(TryAgain, OSError), links.opened(self.kept.namespace) as net:
            device = net.device(self.kept.device)
            self.seat.master = device is not None and self.kept.vip in net.addresses(device.index)
        self.carriers()
        self._dressed = 0.0

    def carriers(self) -> None:
        """Whether the host's links are there."""
        self.seat.fit = all(self._running(name) for name in self.kept.carriers)

    def _running(self, name: str) -> bool:
        try:
            got = fcntl.ioctl(self._control, _SIOCGIFFLAGS, struct.pack("16sH14x", name.encode(), 0))
        except OSError:
            return False
        return bool(struct.unpack_from("16xH", got)[0] & _IFF_RUNNING)

    # --- what is due

    def tick(self, now: float) -> bool:
        """Do what is due; returns whether the control plane should be told at once."""
        seat, before = self.seat, (self.seat.opened, self.seat.ready)
        self._look_aside(now)
        if seat.must_close(now):
            if seat.give_back:
                self._give_back(now)
                return True
            self._shut("its lease ran out")
        elif seat.opened:
            self._renew(now)
        elif seat.may_open(now):
            self._open(now)
        if seat.prepare and not seat.opened:
            self._prepare(now)
        elif not seat.opened:
            seat.ready, self._clearing = False, None
        if self.held is not None and now > self._relay_until:
            self._end_relay()
        self._inject(now)
        self._dress_when_due(now)
        if self._show and now >= self._show[0]:
            self._show = [later for later in self._show if later > now]
            self._show_switches()
        while self._announce and now >= self._announce[0]:
            self._announce.pop(0)
            self._announce_all()
        self._remember()
        self._ask(now)
        self._share(now)
        self._write_standing()
        return before != (seat.opened, seat.ready)

    def _remaining(self) -> float:
        return min(self.seat.deadline() - clock(), TTL_S)

    def _open(self, now: float) -> None:
        if not self.seat.ready and now - self._dressed > DRESS_S + 0.5:
            self._dress(now)
        left = self._remaining()
        if left <= 0:
            return
        self._learn()
        if not self.gate.open(min(left, 0.1)):
            return
        self.seat.open()
        self._renewed, self._clearing = 0.0, None
        self._show_switches()
        waited = len(self._waiting)
        self._inject(now)
        self._renew(now)
        self._announce_all()
        self._announce = [now + later for later in AGAIN_S]
        self._show = [now + later for later in SHOW_S]
        log.info("router %s: open, epoch %d, %d frames had waited", self.kept.router_id, self.seat.epoch, waited)

    def _renew(self, now: float) -> None:
        """Extend the kernel's own timeout; it never lasts longer than what we may have."""
        for _ in range(3):
            before = clock()
            left = min(self.seat.deadline() - before, TTL_S)
            if left <= 0:
                self._shut("its lease ran out")
                return
            if now - self._renewed < 0.08 and left < FOREVER:
                return
            if not self.gate.renew(left):
                log.warning("router %s: the gate had closed before it could be renewed", self.kept.router_id)
                self.gate.close()
                self.seat.close()
                return
            if clock() - before < 0.02:  # not put aside meanwhile: the timeout is right
                self._renewed = now
                return
        self._renewed = now

    def _shut(self, why: str) -> None:
        was = self.seat.opened
        for _ in range(3):
            if self.gate.close():
                break
        else:  # nobody can tell: it closes by itself
            if not links.namespace_exists(self.kept.namespace):
                self.seat.close()
                return
            time.sleep(TTL_S)
        self.seat.close()
        self._announce.clear()
        self._show.clear()
        if was:
            log.info("router %s: closed, %s", self.kept.router_id, why)

    # --- addresses

    def _dress(self, now: float) -> None:
        """Have the addresses and routes of a router that forwards, or is about to."""
        self._dressed = now
        try:
            with links.opened(self.kept.namespace) as net:
                for device in self.kept.devices:
                    found = net.device(device.name)
                    if found is None:
                        continue
                    present = net.addresses(found.index)
                    for address in sorted(device.addresses, key=lambda a: int(a.rpartition("/")[2])):
                        if links.normal_interface(address) not in present:
                            net.add_address(found.index, address)
                for said in net.set_routes(self.kept.routes):
                    log.warning("router %s: %s", self.kept.router_id, said)
        except (TryAgain, OSError) as e:
            log.warning("router %s: %s", self.kept.router_id, e)
            self._dressed = now - DRESS_S + 0.2  # again soon

    def _dress_when_due(self, now: float) -> None:
        """Have what belongs to our part, beside the main loop: leases are renewed while a busy kernel is asked.

        A standby has no addresses: keepalived takes them away, and if it cannot, we do.
        """
        seat = self.seat
        if self._in_charge():
            self._naked_since = None
        elif self._naked_since is None:
            self._naked_since = now + 0.5
        if self._dressing is not None and not self._dressing.done():
            return
        if (seat.opened or seat.master or seat.ready) and now - self._dressed > DRESS_S:
            self._dressed = now
            self._dressing = self._wardrobe.submit(self._dress, now)
        elif self._naked_since is not None and now >= self._naked_since:
            self._naked_since = now + DRESS_S
            self._dressing = self._wardrobe.submit(self._undress)

    def _in_charge(self) -> bool:
        return self.seat.opened or self.seat.master or self.seat.prepare

    def _undress(self) -> None:
        with contextlib.suppress(TryAgain, OSError), links.opened(self.kept.namespace) as net:
            for device in self.kept.devices:
                found = net.device(device.name)
                if found is not None:
                    present = net.addresses(found.index)
                    for address in device.addresses:
                        if links.normal_interface(address) in present and not self._in_charge():
                            net.remove_address(found.index, address)

    def _announce_all(self) -> None:
        for device in self.kept.devices:
            self.sender.send(device.name, announcements(device.mac, device.addresses))

    def _show_switches(self) -> None:
        self.sender.show((device.name, device.mac) for device in self.kept.devices)

    # --- neighbours

    def _share(self, now: float) -> None:
        """Tell the other hosts whom we know: one of them may have to go on in our place."""
        if not self.seat.opened or now < self._share_at or not self.kept.peers:
            return
        self._share_at = now + SHARE_S
        known = sorted(self.neighbours.known([device.name for device in self.kept.devices]))
        if known != self._shared or now >= self._share_all_at:
            self._shared, self._share_all_at = known, now + SHARE_ALL_S
            for address in self.kept.peers.values():
                self._tell(address, known)

    def _tell(self, address: str, known: Sequence[Neighbour]) -> None:
        for at in range(0, len(known), A_DATAGRAM):
            part = known[at : at + A_DATAGRAM]
            self._send(address, {"neighbours": self.kept.router_id, "from": self.seat.me, "known": part})

    def _told(self, known: Sequence[Sequence[str]]) -> None:
        """The host that forwards told us whom it knows."""
        names = {device.name for device in self.kept.devices}
        for device, address, mac in known:
            if str(device) in names and (len(self._known) < ha_neighbours.MOST or (device, address) in self._known):
                self._known.pop((device, address), None)
                self._known[device, address] = mac

    def _learn(self) -> None:
        """Know whom the last host knew."""
        known, self._known = self._known, {}
        if known:
            with contextlib.suppress(TryAgain, OSError):
                self.neighbours.put((device, address, mac) for (device, address), mac in known.items())

    # --- a planned move

    def _prepare(self, now: float) -> None:
        """We are about to get the lease: have everything but the lease, and be free to use it at once."""
        if self.held is not None:  # of our own last move: what switches flood to us too is not to go to and fro
            self.gate.end_hold()
            self._end_relay()
        if self.seat.ready or now < self.seat.quiet_until:
            return
        if self._clearing is None:
            address = self.kept.peers.get(self.seat.holder)
            if address:
                self._send(address, {"prepare": self.kept.router_id, "from": self.seat.me})
            self._dress(now)
            self._open_injector()
            self._clearing = self._aside.submit(self._clear)
        elif self._clearing.done():
            self.seat.ready = True

    def _clear(self) -> None:
        """Have our own switch not drop the first frames that others send us: it has learned that we are elsewhere."""
        if self.kept.switch:
            ovs_learned.forget(Path(self.kept.switch), {device.mac for device in self.kept.devices})

    def _help(self, address: str) -> None:
        """The next host prepares: tell it whom we know, and of all connections once more.

        What it heard of a connection when that began may have run out there since.
        """
        self._get_ready(clock())
        self._tell(address, self.neighbours.known([device.name for device in self.kept.devices]))
        self._aside.submit(self._tell_connections)

    def _tell_connections(self) -> None:
        quiet = subprocess.DEVNULL
        with contextlib.suppress(OSError, subprocess.TimeoutExpired):
            argv = ha_daemons.bulk_argv(Path(self.kept.run_dir))
            subprocess.run(argv, stdin=quiet, stdout=quiet, stderr=quiet, timeout=2)

    def _get_ready(self, now: float) -> None:
        """Have what hands on frames: that takes a while, and the gate is open meanwhile."""
        if self.held is None and self._readying is None and now >= self._ready_again:
            self._readying, self._readying_until = self._aside.submit(self._hold), now + 1.0

    def _hold(self) -> Held:
        held = Held(self.kept.namespace, {device.mac: device.name for device in self.kept.devices})
        pin(self.host_namespace, self._outer(), True)
        return held

    def _look_aside(self, now: float) -> None:
        """Whether what takes long is done."""
        if self.seat.opened and self.seat.give_back:
            self._get_ready(now)
        if self._readying is not None and self._readying.done():
            try:
                self.held, self._relay_until = self._readying.result(), now + 5.0
            except (TryAgain, OSError) as e:
                log.warning("router %s: what arrives after a move is lost: %s", self.kept.router_id, e)
                self._readying_until, self._ready_again = 0.0, now + 5.0
            self._readying = None
        self.seat.busy = self.held is None and now < self._readying_until

    def _give_back(self, now: float) -> None:
        """Close for the next host; what still arrives here is handed on to it for a while."""
        address = self.kept.peers.get(self.seat.to)
        if address:
            self._tell(address, self.neighbours.known([device.name for device in self.kept.devices]))
        if self.held is not None and self.gate.hold(RELAY_S):
            self._relay_until = now + RELAY_S
            time.sleep(LEAVE_S)
        self._shut("it is moved")

    def relay(self) -> None:
        """Hand on what has arrived since we closed."""
        address = self.kept.peers.get(self.seat.to)
        if self.held is None or address is None:
            return
        for frame in self.held.frames():
            with contextlib.suppress(OSError):
                self.frames.sendto(frame, (address, FRAMES_PORT))

    def _end_relay(self) -> None:
        held, self.held, self._readying_until = self.held, None, 0.0
        if held is not None:
            self._aside.submit(self._end_hold, held, self._outer())

    def _end_hold(self, held: Held, outer: dict[str, str]) -> None:
        with contextlib.suppress(TryAgain, OSError):
            held.end()
        pin(self.host_namespace, outer, False)

    def _outer(self) -> dict[str, str]:
        return {device.mac: device.outer for device in self.kept.devices}

    def _open_injector(self) -> None:
        if self._injector is None:
            self._injector = Injector(self.host_namespace, self._outer())

    def relayed(self, now: float) -> None:
        """The last host hands on what arrived there: at once when we are open, else once we are.

        What comes when we are not the next one is a copy: while two hosts hold after two quick moves, what a switch
        floods reaches both, and each hands it on to the other.
        """
        seat = self.seat
        awaited = seat.opened or seat.prepare or seat.lease_until > now
        senders = set(self.kept.peers.values()) if awaited else set()
        while True:
            try:
                frame, (address, *_) = self.frames.recvfrom(65536)
            except OSError:
                break
            if address in senders and len(self._waiting) < MOST_WAITING:
                self._waiting.append((now, frame))
        self._inject(now)

    def _inject(self, now: float) -> None:
        if not self._waiting or not self.seat.opened:
            self._waiting = [one for one in self._waiting if now - one[0] < RELAY_S]
            return
        self._open_injector()
        assert self._injector is not None
        for _, frame in self._waiting:
            self._injector.put(frame)
        self._waiting.clear()

    # --- the other hosts

    def _ask(self, now: float) -> None:
        term = self.seat.asks()
        if term is None or now - self._asked < ASK_S:
            return
        self._asked = now
        for host in self.seat.needed():
            address = self.kept.peers.get(host)
            if address:
                self._send(address, {"ask": self.kept.router_id, "from": self.seat.me, "term": term, "sent": now})

    def _send(self, address: str, message: dict[str, Any]) -> None:
        with contextlib.suppress(OSError):
            self.udp.sendto(json.dumps(message).encode(), (address, PORT))

    def heard(self, now: float) -> None:
        """Messages of the other hosts have arrived."""
        known = {address: host for host, address in self.kept.peers.items()}
        while True:
            try:
                data, (address, *_) = self.udp.recvfrom(16384)
            except OSError:
                return
            with contextlib.suppress(ValueError, KeyError, TypeError):
                message = json.loads(data)
                host = known.get(address)
                if host is None or message["from"] != host:
                    continue
                if message.get("ask") == self.kept.router_id:
                    if self.seat.asked(host, int(message["term"]), clock()):
                        answer = {"promise": self.kept.router_id, "from": self.seat.me}
                        self._send(address, {**answer, "term": message["term"], "sent": message["sent"]})
                elif message.get("promise") == self.kept.router_id:
                    self.seat.promise(host, int(message["term"]), float(message["sent"]))
                elif message.get("neighbours") == self.kept.router_id and not self.seat.opened:
                    self._told(message["known"])
                elif message.get("prepare") == self.kept.router_id and self.seat.opened:
                    self._help(address)

    def _write_standing(self) -> None:
        standing = self.seat.standing()
        if standing == self._standing:
            return
        with contextlib.suppress(OSError):
            path = Path(self.kept.run_dir, ha_daemons.STANDING)
            path.write_text(f"{standing}\n")
            self._standing = standing


def sockets(routers: Iterable[HaRouter]) -> dict[int, tuple[HaRouter, str]]:
    """File number -> (router, what it is)."""
    out: dict[int, tuple[HaRouter, str]] = {}
    for one in routers:
        out[one.udp.fileno()] = (one, "udp")
        out[one.frames.fileno()] = (one, "frames")
        if one.held is not None:
            out[one.held.tap.fileno()] = (one, "held")
        out[one.watch.fileno()] = (one, "watch")
    return out
