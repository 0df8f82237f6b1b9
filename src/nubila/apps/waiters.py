"""Async waiting for nudges: long polls and questions to hosts sleep here instead of asking again and again."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator
from pathlib import Path

from nubila.core.cloud import Nap
from nubila.core.nudge import Listener, Nudger


class Waiters:
    """Handlers of this process that wait for a shard; woken by commits here and in other processes."""

    def __init__(self) -> None:
        self._events: dict[str, set[asyncio.Event]] = {}
        self._loop: asyncio.AbstractEventLoop | None = None
        self._run_dir: Path | None = None

    def start(self, nudger: Nudger, run_dir: Path) -> None:
        """Begin to hear nudges (called on the event loop)."""
        self._loop, self._run_dir = asyncio.get_running_loop(), run_dir
        nudger.hear(self._wake)

    @contextlib.contextmanager
    def listening(self, shard: str) -> Iterator[Nap]:
        """Hear nudges for the shard from now on; what is given sleeps until one came, or until its seconds are over.

        Who begins to listen before looking for work misses none.
        """
        event = asyncio.Event()
        self._events.setdefault(shard, set()).add(event)
        listener = Listener(self._run_dir, [shard]) if self._run_dir is not None else None
        loop = asyncio.get_running_loop()

        def heard() -> None:
            assert listener is not None
            listener.wait(0)
            event.set()

        async def nap(timeout_s: float) -> None:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(event.wait(), timeout_s)
            event.clear()

        if listener is not None:
            loop.add_reader(listener.fileno(), heard)
        try:
            yield nap
        finally:
            if listener is not None:
                loop.remove_reader(listener.fileno())
                listener.close()
            waiting = self._events.get(shard)
            if waiting is not None:
                waiting.discard(event)
                if not waiting:
                    del self._events[shard]

    def _wake(self, shards: set[str]) -> None:
        if self._loop is None:
            return
        for shard in shards & self._events.keys():
            for event in list(self._events.get(shard, ())):
                with contextlib.suppress(RuntimeError):  # the loop is closing
                    self._loop.call_soon_threadsafe(event.set)
