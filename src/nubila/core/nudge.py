"""Nudges: "look at your shard now", sent after a commit. They carry no data and may be lost, doubled or late.

Inside a process a nudge is a function call; between the processes of one machine it is an empty datagram to a Unix
socket in a run directory. Whoever waits must also look by itself every second or so: a lost nudge costs latency, never
correctness.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import select
import socket
import threading
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from urllib.parse import quote

_ANY = "@any"  # file name of shard "": quote() never produces an @


def _name(shard: str) -> str:
    return quote(shard, safe="") or _ANY


@contextlib.contextmanager
def _directory(run_dir: Path) -> Iterator[str]:
    """Give a short name for a directory: socket addresses are limited to 107 bytes, state directories are not."""
    fd = os.open(run_dir, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield f"/proc/self/fd/{fd}"
    finally:
        os.close(fd)


class Nudger:
    """Wakes whoever listens for a shard. ``send`` never blocks and never raises for a listener's sake."""

    def __init__(self, run_dir: Path | None = None) -> None:
        self._run_dir = run_dir
        self._here: list[tuple[frozenset[str] | None, Callable[[], None]]] = []
        self._hearers: list[Callable[[set[str]], None]] = []
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) if run_dir is not None else None
        if self._socket is not None:
            self._socket.setblocking(False)

    def call(self, wake: Callable[[], None], shards: Iterable[str] | None = None) -> None:
        """Call `wake` in this process for these shards (None: for every one); it must be quick."""
        self._here.append((None if shards is None else frozenset(shards), wake))

    def hear(self, woken: Callable[[set[str]], None]) -> None:
        """Call `woken` in this process with the shards of every nudge sent from it; it must be quick."""
        self._hearers.append(woken)

    def send(self, shards: set[str]) -> None:
        """Nudge everybody who listens for one of these shards."""
        for woken in list(self._hearers):
            woken(shards)
        for mine, wake in list(self._here):
            if mine is None or not mine.isdisjoint(shards):
                wake()
        if self._run_dir is None or self._socket is None:
            return
        wanted = {_name(shard) for shard in shards}
        try:
            found = [f for f in os.listdir(self._run_dir) if f.endswith(".nudge") and f.split("~", 1)[0] in wanted]
        except FileNotFoundError:
            return
        if found:
            with _directory(self._run_dir) as where:
                for file in found:
                    self._send_to(f"{where}/{file}")

    def _send_to(self, address: str) -> None:
        assert self._socket is not None
        try:
            self._socket.sendto(b"", address)
        except ConnectionRefusedError:  # its listener died without closing
            with contextlib.suppress(FileNotFoundError):
                os.unlink(address)
        except OSError:
            pass  # gone, or its buffer is full of nudges already

    def close(self) -> None:
        if self._socket is not None:
            self._socket.close()


class Listener:
    """One place where nudges for some shards arrive. ``fileno`` allows it in a select or an event loop."""

    def __init__(self, run_dir: Path, shards: Iterable[str]) -> None:
        self._paths: list[Path] = []
        self._sockets: list[socket.socket] = []
        self._closing = threading.Event()
        self._waiting = threading.Lock()
        run_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._epoll = select.epoll()
        with _directory(run_dir) as where:
            for shard in sorted(set(shards)):
                file = f"{_name(shard)}~{os.getpid()}-{secrets.token_hex(4)}.nudge"
                one = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
                one.setblocking(False)
                one.bind(f"{where}/{file}")
                self._sockets.append(one)
                self._paths.append(run_dir / file)
                self._epoll.register(one.fileno(), select.EPOLLIN)
        self._wake_r, self._wake_w = os.pipe()
        self._epoll.register(self._wake_r, select.EPOLLIN)

    def fileno(self) -> int:
        return self._epoll.fileno()

    def wait(self, timeout_s: float) -> bool:
        """Sleep until nudged; return False when `timeout_s` passed or the listener was closed."""
        with self._waiting:
            if self._closing.is_set() or not self._epoll.poll(timeout_s) or self._closing.is_set():
                return False
            for one in self._sockets:
                with contextlib.suppress(BlockingIOError):
                    while True:
                        one.recv(1)
            return True

    def close(self) -> None:
        """Stop listening; a ``wait`` in another thread returns at once."""
        if self._closing.is_set():
            return
        self._closing.set()
        os.write(self._wake_w, b"x")
        for one, path in zip(self._sockets, self._paths, strict=True):
            with contextlib.suppress(FileNotFoundError):
                path.unlink()
            one.close()
        with self._waiting:  # the one who waits has gone
            self._epoll.close()
            os.close(self._wake_r)
            os.close(self._wake_w)
