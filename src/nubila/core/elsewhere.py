"""Work that a handler must not do where it runs: it says so, the edge has it done in threads, the handler runs again.

Handlers are plain blocking functions and may run on the event loop. One that needs something slow from outside (a
directory, say) raises :class:`Elsewhere` with functions that start the work. The transaction is undone, the edge waits
for the results without holding a thread or the loop, and calls the handler once more; that time it finds what it
needs in memory or in the database. What was refused meanwhile (a Fault of the work) is the request's answer.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import TypeVar

from nubila.core.faults import Fault

T = TypeVar("T")
ROUNDS = 12
"""How often one request may ask for work before it is given up (each round needs something the last one found)."""


class Elsewhere(Exception):
    """``start`` begins the work and returns its futures; ``late`` makes the refusal when they take ``timeout_s``."""

    def __init__(
        self, start: Callable[[], Sequence[Future[None]]], timeout_s: float, late: Callable[[], Fault]
    ) -> None:
        super().__init__("this handler needs work to be done in another thread first (see core/elsewhere.py)")
        self.start, self.timeout_s, self.late = start, timeout_s, late

    async def done(self) -> None:
        """Wait for the work; raises its Fault, or the one of ``late``. Others may wait for the same futures."""
        waiting = [asyncio.shield(asyncio.wrap_future(f)) for f in self.start()]
        try:
            await asyncio.wait_for(asyncio.gather(*waiting), self.timeout_s)
        except TimeoutError:
            raise self.late() from None


def settled(function: Callable[[], T]) -> T:
    """The function's result, its work elsewhere waited for: for code that has a thread of its own."""
    for _ in range(ROUNDS):
        try:
            return function()
        except Elsewhere as e:
            for future in e.start():
                try:
                    future.result(e.timeout_s)
                except TimeoutError:
                    raise e.late() from None
    return function()
