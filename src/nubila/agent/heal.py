"""Bring back what somebody or something took away on this host, soon and without touching anything else.

The driver says what is missing (``drift``); what it should be is in the ledger, so the control plane is not needed.
What does not stay is tried less and less often, up to once a minute: the sweep and the control plane see to the rest.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Any

import msgspec

from nubila.agent.ledger import Ledger
from nubila.core.ports import NetworkDriver, NetworkSpec, PortSpec, RouterSpec

log = logging.getLogger("nubila.agent")
HEAL_S = 4.0
"""Seconds between looks."""
MAX_PAUSE_S = 60.0
_SPECS: dict[str, Any] = {"network": NetworkSpec, "port": PortSpec, "router": RouterSpec}


class Healer:
    """Looks for drift every HEAL_S seconds, when ``turn`` is called often enough."""

    def __init__(self, ledger: Ledger, network: NetworkDriver, pause_s: float = HEAL_S) -> None:
        self.ledger, self.network, self.pause_s = ledger, network, pause_s
        self._next = 0.0
        self._tried: dict[tuple[str, str], tuple[float, float]] = {}  # not again before; pause after that

    def turn(self, do: Callable[[dict[str, Any]], dict[str, Any]]) -> int:
        """Look, when it is time, and ``do`` (ensure) each ledger entry that is not what it should be; how many."""
        now = time.monotonic()
        if now < self._next:
            return 0
        try:
            return self.heal(do)
        except Exception as e:  # whatever it is, the sweep will meet it too
            log.warning("cannot look for what is missing: %s", e)
            return 0
        finally:
            self._next = time.monotonic() + self.pause_s

    def heal(self, do: Callable[[dict[str, Any]], dict[str, Any]]) -> int:
        """Look now."""
        missing = self.network.drift(self.ledger.ids(), self._spec)
        now, done = time.monotonic(), 0
        for entry in self.ledger.some(missing):
            key = (entry["kind"], entry["id"])
            after, pause = self._tried.get(key, (0.0, self.pause_s / 2))
            if now < after:
                continue
            pause = min(pause * 2, MAX_PAUSE_S)
            self._tried[key] = (now + pause, pause)
            outcome = do(entry)
            log.warning("%s %s was not as it should be: %s", *key, outcome["note"])
            done += 1
        for key, (after, pause) in list(self._tried.items()):
            if key not in missing and now > after + pause:
                del self._tried[key]
        return done

    def _spec(self, kind: str, id: str) -> Any:
        entry = next(iter(self.ledger.some([(kind, id)])), None)
        known = _SPECS.get(kind)
        return msgspec.convert(entry["spec"], known) if entry is not None and known is not None else None
