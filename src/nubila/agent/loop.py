"""The agent: one per host. It makes the host be what the database says, and never decides.

Start: take the host's lock; let the drivers find what runs; say hello (which asks for everything once); remove what is
marked ours and unknown; then take, apply, report until told to stop. Without a control plane it brings up what its
ledger says and keeps trying. Guests start in worker threads; network changes are applied one after the other.
"""

from __future__ import annotations

import fcntl
import logging
import os
import threading
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import msgspec

from nubila.agent.apply import Drivers, apply, sequence
from nubila.agent.client import HostApi, Refused, Unreachable
from nubila.agent.heal import Healer
from nubila.agent.ledger import Ledger
from nubila.core.ports import Capabilities, GuestSpec, HostPlace

log = logging.getLogger("nubila.agent")
WATCH_S = 2.0
RESTORE_AFTER_S = 3.0
"""How long the control plane may be silent before the agent goes by its ledger."""
LOCK_S = 30.0
"""How long a starting agent waits for one that still works on the host to end."""
MEND_S = 5.0
"""How soon the agent tries again what it could not bring up from its ledger."""


class AlreadyRunning(Exception):
    """Another agent works on this host's state directory."""


class Agent:
    """One host's loop."""

    def __init__(
        self, api: HostApi, place: HostPlace, drivers: Drivers, *, roles: list[str], sweep_s: float = 60.0,
        guest_threads: int = 4,
    ) -> None:  # fmt: skip
        self.api, self.place, self.drivers, self.roles, self.sweep_s = api, place, drivers, roles, sweep_s
        self.ledger = Ledger(place.root / "ledger")
        self._pool = ThreadPoolExecutor(guest_threads, thread_name_prefix="guest")
        self._busy: set[tuple[str, str]] = set()
        self._later: dict[tuple[str, str], Mapping[str, Any]] = {}  # taken again while still busy
        self._turns = threading.Lock()  # of _busy and _later
        self._healer = Healer(self.ledger, drivers.network)
        self._held: dict[tuple[str, str], int] = {}  # on lease: the token
        self._wired: set[str] = set()
        self._lock_file: Any = None
        self._powers: dict[str, str] = {}  # as last seen
        self._wanted: dict[str, str] = {}  # power last asked for
        self._went_off: set[str] = set()  # guests that switched themselves off and have not been reported

    def run(self, stop: threading.Event) -> None:
        """Work until ``stop`` is set."""
        self._lock(stop)
        self.drivers.network.start()
        self.drivers.network.serve_metadata(self.api.metadata)
        self._wired = set(self.drivers.network.ports())
        pause, lost = 0.02, time.monotonic()
        silent = False  # for so long that the ledger counts
        mend = 0.0
        while not stop.is_set():
            try:
                self._greet()
                pause, silent = 0.02, False
                try:
                    self._work(stop)
                finally:
                    lost = time.monotonic()
            except Refused as e:  # it is there, and says no: what runs here goes on, nothing is started
                log.warning("the control plane refuses: %s", e)
                stop.wait(2.0)
            except Unreachable as e:
                if time.monotonic() - lost > RESTORE_AFTER_S and (not silent or time.monotonic() > mend):
                    if not silent:
                        log.warning("no control plane (%s): going by the ledger", e)
                    silent = True
                    mend = time.monotonic() + (self.sweep_s if self._restore() else MEND_S)
                if silent:
                    self._heal()
                stop.wait(pause)
                pause = min(pause * 2, 2.0 if silent else 0.2)
            except Exception:  # an engine that fails must not take the others with it
                log.exception("starting over")
                stop.wait(1.0)
        self._pool.shutdown(wait=True)
        self.drivers.network.stop()
        self._lock_file.close()

    def _lock(self, stop: threading.Event) -> None:
        """Be this host's only agent; a predecessor that was told to end gets a moment to do so."""
        self.place.root.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._lock_file = (self.place.root / "agent.lock").open("a+")
        ends = time.monotonic() + LOCK_S
        while True:
            try:
                fcntl.flock(self._lock_file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except OSError:
                if time.monotonic() > ends or stop.wait(0.05):
                    raise AlreadyRunning(f"another agent holds {self.place.root}") from None
        self._lock_file.truncate(0)
        self._lock_file.write(str(os.getpid()))
        self._lock_file.flush()

    def _greet(self) -> None:
        self._held.clear()  # saying hello ends every lease
        hypervisor = self.drivers.hypervisor
        what = hypervisor.capabilities() if hypervisor else Capabilities(vcpus=0, ram_mb=0, disk_gb=0)
        self.api.hello({
            "roles": self.roles, "tunnel_ip": self.place.tunnel_ip, "bridges": self.place.bridges,
            "capabilities": msgspec.to_builtins(msgspec.structs.replace(what, switch=self.place.switch)),
        })  # fmt: skip
        self._prune()

    def _prune(self) -> None:
        """Remove what carries our mark and nobody knows; only with a complete list in hand."""
        every = self.api.every()
        self.ledger.keep(every)
        try:  # what cannot be removed is tried again at the next sweep; meanwhile there is other work
            if self.drivers.hypervisor is not None:
                for id in self.drivers.hypervisor.prune(every.get("guest", [])):
                    log.warning("removed unknown guest %s", id)
            for name in self.drivers.network.prune(
                every.get("network", []), every.get("port", []), every.get("router", []),
                every.get("security_group", []), every.get("address_set", []),
            ):  # fmt: skip
                log.warning("removed unknown %s", name)
        except Exception:
            log.exception("could not remove what is unknown here")
        self._wired = set(self.drivers.network.ports())

    def _restore(self) -> bool:
        """Have what the ledger says, without the control plane; False when something must be tried again.

        A guest that is switched off stays so: its owner did that, and the ledger may not have heard.
        """
        hypervisor, whole = self.drivers.hypervisor, True
        off = {g.id for g in hypervisor.list() if g.power == "off"} if hypervisor else set()
        for item in sequence(self.ledger.entries()):
            if item["kind"] == "query" or (item["kind"] == "guest" and item["id"] in off):
                continue
            outcome = apply(self.drivers, item, self._waits_for)
            self._note_wired(item, outcome)
            if outcome.get("failed"):
                whole = False
                log.warning("from the ledger: %s %s: %s", item["kind"], item["id"], outcome["note"])
        return whole

    def _work(self, stop: threading.Event) -> None:
        swept = watched = time.monotonic()
        while not stop.is_set():
            now = time.monotonic()
            if now - swept > self.sweep_s:
                swept = now
                self.api.sweep()
                self._prune()
            if now - watched > WATCH_S:
                watched = now
                self._watch()
            self._heal()
            items = self.api.take(32, 1.0, [(*key, token) for key, token in list(self._held.items())])
            self._held |= {(i["kind"], i["id"]): i["token"] for i in items}
            outcomes: list[dict[str, Any]] = []
            for item in sequence(items):
                if item["kind"] in ("guest", "query"):
                    if outcomes:  # whoever waits for these ports learns of them first
                        self._report(outcomes)
                        outcomes = []
                    self._start(item)
                else:
                    outcomes.append(self._do(item))
            if outcomes:
                self._report(outcomes)

    def _heal(self) -> None:
        """Bring back what was taken away on this host; by the ledger, so also while the control plane is away."""

        def do(entry: dict[str, Any]) -> dict[str, Any]:
            outcome = apply(self.drivers, entry, self._waits_for)
            self._note_wired(entry, outcome)
            return outcome

        self._healer.turn(do)

    def _report(self, outcomes: list[dict[str, Any]]) -> None:
        try:
            self.api.settle(outcomes)
        finally:  # told or not: the control plane may give them out again
            for one in outcomes:
                key = (one["kind"], one["id"])
                if self._held.get(key) == one["token"]:
                    del self._held[key]

    def _start(self, item: Mapping[str, Any]) -> None:
        """Do it in the background, after what is being done about the same thing."""
        key = (item["kind"], item["id"])
        with self._turns:
            if key in self._busy:
                self._later[key] = item
                return
            self._busy.add(key)
        self._pool.submit(self._in_background, item)

    def _do(self, item: Mapping[str, Any]) -> dict[str, Any]:
        outcome = self._self_stopped(item) or apply(self.drivers, item, self._waits_for)
        self._note_wired(item, outcome)
        if item["spec"] is None:
            if outcome.get("gone"):
                self.ledger.remove(item["kind"], item["id"])
        elif item["kind"] != "query":
            self.ledger.put(item["kind"], item["id"], item["order"], item["spec"])
        return {**{k: item[k] for k in ("kind", "id", "gen", "token", "tries")}, **outcome}

    def _self_stopped(self, item: Mapping[str, Any]) -> dict[str, Any] | None:
        """A guest that powered itself off stays off and is reported, instead of being started again."""
        if item["kind"] != "guest":
            return None
        id, spec = item["id"], item["spec"]
        if spec is None:
            self._wanted.pop(id, None)
            self._went_off.discard(id)
            return None
        off = id in self._went_off
        self._went_off.discard(id)
        self._wanted[id] = spec["power"]
        assert self.drivers.hypervisor is not None
        if off and spec["power"] == "on":
            state = next((g for g in self.drivers.hypervisor.list() if g.id == id), None)
            if state is not None and state.power == "off" and state.boots == spec["boots"]:
                fault = "The guest switched itself off."
                observed = {**msgspec.to_builtins(state), "status": "SHUTOFF", "fault": fault}
                return {"observed": observed, "note": fault}
        return None

    def _in_background(self, item: Mapping[str, Any]) -> None:
        key, todo = (item["kind"], item["id"]), item
        while True:
            try:
                self._report([self._do(todo)])
            except (Unreachable, Refused) as e:  # it is given out and done again
                log.warning("could not report %s %s: %s", *key, e)
            except Exception:
                log.exception("%s %s", *key)
                self._held.pop(key, None)
            with self._turns:
                if key not in self._later:
                    self._busy.discard(key)
                    return
                todo = self._later.pop(key)

    def _note_wired(self, item: Mapping[str, Any], outcome: Mapping[str, Any]) -> None:
        if item["kind"] == "port":
            if item["spec"] is None:
                self._wired.discard(item["id"])
            elif (outcome.get("observed") or {}).get("status") in ("ACTIVE", "DOWN"):
                self._wired.add(item["id"])

    def _waits_for(self, spec: GuestSpec) -> str:
        missing = [n.port_id for n in spec.nics if n.port_id not in self._wired]
        return f"waiting for port {missing[0]} on {self.place.host}" if missing and spec.power == "on" else ""

    def tend(self) -> None:
        """Look after the network's daemons; tell the control plane of routers that changed by themselves."""
        self.drivers.network.tend(self.api.routers)
        if routers := self.drivers.network.news():
            self.api.call("POST", "/changed", {"routers": routers})

    def _watch(self) -> None:
        """Look after what runs beside us; tell the control plane of guests and routers that changed by themselves."""
        self.tend()
        if self.drivers.hypervisor is None:
            return
        powers = {g.id: g.power for g in self.drivers.hypervisor.list()}
        changed = [id for id, p in powers.items() if self._powers.get(id) not in (None, p) or p == "crashed"]
        self._went_off |= {
            id for id, p in powers.items()
            if p == "off" and self._powers.get(id) == "on" and self._wanted.get(id) == "on"
        }  # fmt: skip
        self._powers = dict(powers)
        if changed:
            self.api.call("POST", "/changed", {"guests": changed})
