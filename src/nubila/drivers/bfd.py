"""Watch the next hops of a router's default routes by BFD, and leave out those that went away.

Model: ``<run_dir>/bfd.json`` says whom to watch and what the routes are while all are there; a process in the router's
namespace (``python -m nubila.drivers.bfd FILE``) speaks BFD (bfd_session.py, RFC 5881: UDP 3784, TTL 255) and makes
the routes without the hops that are down. It outlives the agent. ``<run_dir>/bfd-down.json`` says which these are, so
that the agent makes the same routes. A neighbour that has never spoken BFD is taken for there: only what was up can go.

Failure: without the process all next hops count as there; ``ensure`` starts it again.
"""

from __future__ import annotations

import random
import selectors
import signal
import socket
import struct
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

from msgspec import Struct
from msgspec.structs import replace

from nubila.drivers import links, processes, routes
from nubila.drivers.bfd_session import PORT, Session, State, decode
from nubila.drivers.files import read_json, write_json
from nubila.drivers.routes import Way

NAME = "bfd"
_IP_RECVTTL = 12  # ip(7); Python has no name for it
_TTL = 255  # of single-hop BFD, so that nobody farther away can speak it (RFC 5881 section 5)


class Watch(Struct, frozen=True, kw_only=True):
    """Whom to watch, and the routes while all are there."""

    namespace: str
    sessions: tuple[tuple[str, str], ...]  # (own address, next hop)
    routes: tuple[tuple[str, str], ...]
    ways: tuple[Way, ...]


def ensure(run_dir: Path, watch: Watch | None) -> set[str]:
    """Watch these next hops, None = nobody; returns those that are down now."""
    config, record = run_dir / "bfd.json", run_dir / "bfd-down.json"
    if watch is None or not watch.sessions:
        processes.stop(NAME, run_dir, timeout_s=2)
        config.unlink(missing_ok=True)
        record.unlink(missing_ok=True)
        return set()
    pid = processes.alive(NAME, run_dir)
    if pid is not None and not links.lives_in(pid, watch.namespace):
        processes.kill(NAME, run_dir)
        pid = None
    if pid is None:
        record.unlink(missing_ok=True)
    if pid is None or read_json(config, Watch) != watch:
        run_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        write_json(config, watch)
        if pid is not None:
            processes.reload(NAME, run_dir)
    tend(run_dir)
    return set(read_json(record, list[str]) or ())


def tend(run_dir: Path) -> None:
    """Start the process again when it ended by itself."""
    watch = read_json(run_dir / "bfd.json", Watch)
    if watch is not None and processes.alive(NAME, run_dir) is None:
        path = {"PYTHONPATH": str(Path(__file__).parents[2])}
        argv = [sys.executable, "-m", "nubila.drivers.bfd", str(run_dir / "bfd.json")]
        processes.start(NAME, argv, run_dir, log=run_dir / "bfd.log", env=path, netns=watch.namespace)


def without(
    wanted: Iterable[tuple[str, str]], ways: Sequence[Way], down: set[str]
) -> tuple[list[tuple[str, str]], list[Way]]:
    """Default routes and ways without the next hops that are down; other routes stay as they are."""
    left = [(to, hop) for to, hop in wanted if hop not in down or routes.default(hop)[0] != to]
    return left, [replace(way, hops=tuple(hop for hop in way.hops if hop not in down)) for way in ways]


# --- the process --------------------------------------------------------------------------------------------------


class Speaker:
    """All sessions of one router."""

    def __init__(self, config: Path) -> None:
        self.config = config
        self.watch = read_json(config, Watch) or Watch(namespace="", sessions=(), routes=(), ways=())
        self.sessions: dict[tuple[str, str], tuple[Session, socket.socket]] = {}
        self.down: set[str] = set()
        self.states: dict[str, State] = {}
        self.selector = selectors.DefaultSelector()
        for family, option in ((socket.AF_INET, _IP_RECVTTL), (socket.AF_INET6, socket.IPV6_RECVHOPLIMIT)):
            hears = socket.socket(family, socket.SOCK_DGRAM)
            level = socket.IPPROTO_IP if family == socket.AF_INET else socket.IPPROTO_IPV6
            if family == socket.AF_INET6:
                hears.setsockopt(level, socket.IPV6_V6ONLY, 1)
            hears.setsockopt(level, option, 1)
            hears.bind(("" if family == socket.AF_INET else "::", PORT))
            hears.setblocking(False)
            self.selector.register(hears, selectors.EVENT_READ)
        self.again = True

    def run(self) -> None:
        """Speak until the end."""
        while True:
            if self.again:
                self.again = False
                self._configure()
            now = time.monotonic()
            for (_, hop), (session, says) in self.sessions.items():
                due = session.tick(now)
                if due is not None:
                    self._send(says, hop, due.encode())
            self._judge()
            first = min([s.next for s, _ in self.sessions.values()], default=now + 1)
            for key, _ in self.selector.select(max(0.0, min(first - time.monotonic(), 0.1))):
                assert isinstance(key.fileobj, socket.socket)
                self._hear(key.fileobj)

    def _configure(self) -> None:
        self.watch = read_json(self.config, Watch) or self.watch
        for pair in self.sessions.keys() - set(self.watch.sessions):
            self.sessions.pop(pair)[1].close()
        for own, hop in self.watch.sessions:
            if (own, hop) in self.sessions:
                continue
            six = ":" in own
            says = socket.socket(socket.AF_INET6 if six else socket.AF_INET, socket.SOCK_DGRAM)
            if six:
                says.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_UNICAST_HOPS, _TTL)
            else:
                says.setsockopt(socket.IPPROTO_IP, socket.IP_TTL, _TTL)
            says.bind((own, random.randint(49152, 65535)))
            self.sessions[own, hop] = (Session(random.randint(1, 2**32 - 1), time.monotonic()), says)

    def _hear(self, hears: socket.socket) -> None:
        data, more, _, sender = hears.recvmsg(256, 64)
        hops = [struct.unpack("i", value[:4])[0] for _, _, value in more if len(value) >= 4]
        packet = decode(data)
        if packet is None or _TTL not in hops:
            return
        for (_, hop), (session, says) in self.sessions.items():
            if hop == sender[0]:
                answer = session.receive(packet, time.monotonic())
                if answer is not None:
                    self._send(says, hop, answer.encode())

    def _send(self, says: socket.socket, hop: str, data: bytes) -> None:
        try:
            says.sendto(data, (hop, PORT))
        except OSError as refusal:  # the link is down, say: the session will notice
            print(f"to {hop}: {refusal}", flush=True)

    def _judge(self) -> None:
        """Make the routes follow when a next hop went or came."""
        for (_, hop), (session, _) in self.sessions.items():
            if self.states.get(hop) != session.state:
                self.states[hop] = session.state
                print(hop, session.state.name, flush=True)
        down = {hop for (_, hop), (s, _) in self.sessions.items() if s.was_up and s.state != State.UP}
        if down == self.down:
            return
        self.down = down
        write_json(self.config.with_name("bfd-down.json"), sorted(down))
        with links.opened("") as net:
            for said in routes.apply(net, *without(self.watch.routes, self.watch.ways, down)):
                print(said, flush=True)


def main(config: str) -> None:
    """Run the process."""
    speaker = Speaker(Path(config))

    def reload(*_: object) -> None:
        speaker.again = True

    signal.signal(signal.SIGHUP, reload)
    speaker.run()


if __name__ == "__main__":
    main(sys.argv[1])
