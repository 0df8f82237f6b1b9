"""The keeper: one small process per host that holds the leases of its highly available routers (ADR 7).

It outlives the agent. Its threads: one talks to the control plane (all routers in one call, five to seven times a
second, at once when something changed), one does everything else and never waits for the network. Routers come and go
with the files that the driver writes. When the keeper dies the kernel closes its gates within a lease's time; one that
is started at once finds them open and goes on.
"""

from __future__ import annotations

import contextlib
import logging
import select
import socket
import threading
from pathlib import Path
from typing import Any

import msgspec

from nubila.agent.client import HostApi, Refused, Unreachable
from nubila.agent.ha_router import HaRouter, clock, drain, sockets, watcher
from nubila.core.ports import TryAgain
from nubila.drivers.ha import Kept

log = logging.getLogger("nubila.keeper")
RENEW_S = 0.15
MOVING_S, WAITING_S = 0.02, 0.04
TICK_S = 0.04
FOLDER_S = 0.1
LINKS_S = 0.5


class Keeper:
    """The routers of one host."""

    def __init__(self, folder: Path, host: str, namespace: str, api: HostApi) -> None:
        self.folder, self.host, self.namespace, self.api = folder, host, namespace, api
        self.routers: dict[str, HaRouter] = {}
        self._files: dict[str, int] = {}
        self._ending: dict[str, dict[str, Any]] = {}  # last claims of routers that were taken away
        self._wake = threading.Event()
        self._answers: list[tuple[float, dict[str, Any]]] = []
        self._lock = threading.Lock()  # of the answers
        self._turn = threading.Lock()  # of the routers
        self._out, self._in = socket.socketpair()
        self._in.setblocking(False)

    def run(self, stop: threading.Event) -> None:
        """Work until told to stop; what is open then stays open for a successor to find."""
        threading.Thread(target=self._talk, args=(stop,), name="control", daemon=True).start()
        host_links = watcher(self.namespace)
        looked = links_seen = 0.0
        while not stop.is_set():
            now = clock()
            if now - looked > FOLDER_S:
                looked = now
                with self._turn:
                    self._read_folder()
            by_file = sockets(self.routers.values())
            numbers = [*by_file, host_links.fileno(), self._in.fileno()]
            with contextlib.suppress(OSError, ValueError):
                ready = select.select(numbers, [], [], TICK_S)[0]
                with self._turn:
                    self._ready(ready, by_file, host_links)
            if now - links_seen > LINKS_S:
                links_seen = now
                for one in self.routers.values():
                    one.carriers()
            with self._turn:
                self._tick()

    def _ready(self, ready: list[int], by_file: dict[int, tuple[HaRouter, str]], host_links: socket.socket) -> None:
        now = clock()
        for number in ready:
            if number == host_links.fileno():
                drain(host_links)
                for one in self.routers.values():
                    before = one.seat.fit
                    one.carriers()
                    if one.seat.fit != before:
                        self._wake.set()
            elif number == self._in.fileno():
                drain(self._in)
            else:
                one, kind = by_file[number]
                if kind == "udp":
                    one.heard(now)
                elif kind == "frames":
                    one.relayed(now)
                elif kind == "held":
                    one.relay()
                else:
                    before = one.seat.master
                    one.look()
                    if one.seat.master != before:
                        self._wake.set()
        self._take_answers()

    def _take_answers(self) -> None:
        with self._lock:
            answers, self._answers = self._answers, []
        for sent, found in answers:
            now = clock()
            for id, answer in found.items():
                if id in self.routers:
                    with contextlib.suppress(KeyError, TypeError, ValueError):
                        self.routers[id].seat.answered(sent, now, answer)

    def _tick(self) -> None:
        self._take_answers()
        tell = False
        for id, one in list(self.routers.items()):
            try:
                tell = one.tick(clock()) or tell
            except (TryAgain, OSError) as e:
                log.warning("router %s: %s", id, e)
        if tell:
            self._wake.set()

    # --- what the driver says

    def _read_folder(self) -> None:
        seen: dict[str, int] = {}
        with contextlib.suppress(FileNotFoundError):
            for path in self.folder.glob("*.json"):
                with contextlib.suppress(OSError):
                    seen[path.stem] = path.stat().st_mtime_ns
        for id in set(self.routers) - set(seen):
            one = self.routers.pop(id)
            self._files.pop(id, None)
            with contextlib.suppress(TryAgain, OSError):
                one.end()
            self._ending[id] = {**one.seat.claim(clock()), "want": False, "open": False}
            self._wake.set()
        for id, changed in seen.items():
            if self._files.get(id) == changed:
                continue
            try:
                kept = msgspec.json.decode((self.folder / f"{id}.json").read_bytes(), type=Kept)
                present = self.routers.get(id)
                if present is not None and (present.kept.namespace, present.kept.address) == (
                    kept.namespace,
                    kept.address,
                ):
                    present.change(kept)
                else:
                    self.routers[id] = HaRouter(self.host, self.namespace, kept)
                self._files[id] = changed
                self._wake.set()
            except (TryAgain, OSError, msgspec.DecodeError) as e:
                log.warning("router %s: %s", id, e)

    # --- the control plane

    def _waiting(self) -> bool:
        """Whether we are the VRRP master of a router that another host's lease keeps us from."""
        with self._turn:
            return any(one.seat.master and one.seat.up and not one.seat.opened for one in self.routers.values())

    def _talk(self, stop: threading.Event) -> None:
        pause = RENEW_S
        while not stop.is_set():
            self._wake.wait(pause)
            self._wake.clear()
            sent = clock()
            with self._turn:  # what a claim says of a gate must be true when it is sent
                ending = dict(self._ending)
                claims = {id: one.seat.claim(sent) for id, one in self.routers.items()} | ending
            pause = RENEW_S
            if not claims:
                continue
            try:
                answers = self.api.routers(claims)
            except (Unreachable, Refused) as e:
                log.debug("no answer: %s", e)
                continue
            except Exception:
                log.exception("no answer")
                continue
            with self._lock:
                self._answers.append((sent, answers))
                for id in ending:
                    self._ending.pop(id, None)
            self._out.send(b".")
            if any(a.get("prepare") or a.get("give_back") for a in answers.values()):
                pause = MOVING_S
            elif self._waiting():
                pause = WAITING_S
