"""Everything a running process knows about its cloud, wired once by apps and passed down."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from nubila.core.config import Settings
    from nubila.core.db import Store
    from nubila.core.policy import Policy
    from nubila.core.service import Service
    from nubila.core.tokens import TokenKeys


Nap = Callable[[float], Awaitable[None]]
"""Sleeps until a nudge came since the last nap, or until this many seconds are over."""


class Waiters(Protocol):
    """Lets an async handler sleep until a shard is nudged."""

    def listening(self, shard: str) -> AbstractContextManager[Nap]: ...


@dataclass
class Cloud:
    """One cloud as one process sees it."""

    name: str
    settings: Settings
    state: Path
    store: Store
    policy: Policy
    keys: TokenKeys
    services: tuple[Service, ...]
    region: str = "RegionOne"
    waiters: Waiters | None = None  # in processes that serve the API
    admin_password: str = ""  # only while bootstrapping
    demo_password: str = ""
    bootstrap_ids: dict[str, str] = field(default_factory=dict)  # ids services make known to each other at first start
    memory: dict[str, Any] = field(default_factory=dict)  # what services keep in memory, by service name

    def service(self, name: str) -> Service:
        """The service of that folder name; KeyError when it is not wired in."""
        return next(s for s in self.services if s.name == name)
