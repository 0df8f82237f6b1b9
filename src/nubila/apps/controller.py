"""The controller: runs every service's reconcilers on the cloud's own shard and asks for everything now and then."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import Any

from nubila.core.cloud import Cloud
from nubila.core.nudge import Listener
from nubila.core.reconcile import Loop, Reconciler
from nubila.core.sql import StoreError

log = logging.getLogger("nubila.controller")


def reconcilers(cloud: Cloud) -> dict[str, Reconciler]:
    """All services' reconcilers, bound to the cloud."""
    out: dict[str, Reconciler] = {}
    for service in cloud.services:
        for kind, fn in service.reconcilers.items():
            out[kind] = lambda store, item, fn=fn: fn(cloud, store, item)  # type: ignore[misc]
    return out


def sweep(cloud: Cloud) -> int:
    """Ask for every controller-side thing once: what a lost ask would have cost ends here. Returns how many."""
    n = 0
    for service in cloud.services:
        for kind, all_ids in service.sweeps.items():
            with cloud.store.read() as reader:
                ids = all_ids(cloud, reader)
            for start in range(0, len(ids), 200):

                def ask(tx: Any, part: list[str] = ids[start : start + 200], kind: str = kind) -> None:
                    for id in part:
                        tx.ask(kind, id)

                cloud.store.transact(ask)
            n += len(ids)
    return n


def steadily(
    what: str, once: Callable[[], object], stop: threading.Event, pause_s: float, *, again_s: float = 1.0
) -> None:
    """Do it again and again until ``stop``; whatever it raises is written down and must not be the end of it."""
    while not stop.is_set():
        pause = pause_s
        try:
            once()
        except StoreError as e:  # the database is away: keep trying
            log.warning("%s: %s", what, e)
            pause = again_s
        except Exception:
            log.exception("%s", what)
            pause = again_s
        stop.wait(pause)


def controller(cloud: Cloud, *, lease_s: float = 12.0) -> tuple[Callable[[threading.Event], None], Callable[[], None]]:
    """The controller's loop as a function of a stop event, and what wakes it."""
    loop = Loop(cloud.store, "", reconcilers(cloud), lease_s=lease_s, batch=8, idle_s=0.5)
    nudger = cloud.memory["nudger"]
    nudger.call(loop.wake, [""])

    def listen(stop: threading.Event, listener: Listener) -> None:
        while not stop.is_set():
            if listener.wait(1.0):
                loop.wake()
        listener.close()

    def sweeper(stop: threading.Event) -> None:
        steadily("sweep", lambda: sweep(cloud), stop, cloud.settings.sweep_s)

    def run(stop: threading.Event) -> None:
        others = [
            threading.Thread(target=listen, args=(stop, Listener(cloud.state / "run", [""])), daemon=True),
            threading.Thread(target=sweeper, args=(stop,), daemon=True),
        ]
        for thread in others:
            thread.start()
        steadily("controller", lambda: loop.run(stop), stop, 0.0)

    return run, loop.wake
