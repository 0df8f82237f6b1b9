"""Naps of handlers: a nudge that came since the last one ends the next at once."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import pytest

from nubila.apps.waiters import Waiters
from nubila.core.nudge import Nudger


@pytest.mark.parametrize("elsewhere", [False, True])
def test_a_nudge_between_listening_and_napping_is_not_lost(tmp_path: Path, elsewhere: bool) -> None:
    here, other = Nudger(tmp_path), Nudger(tmp_path)

    async def story() -> None:
        waiters = Waiters()
        waiters.start(here, tmp_path)
        with waiters.listening("h1") as nap:
            (other if elsewhere else here).send({"h1"})
            await nap(30)
            (other if elsewhere else here).send({"h2"})
            await nap(0.01)

    started = time.monotonic()
    asyncio.run(story())
    assert time.monotonic() - started < 20, "nobody slept"
    assert not list(tmp_path.iterdir()), "no socket is left"
    here.close()
    other.close()
