"""Where passwords are hashed: threads of low priority, at most one less than there are processors.

Goal: however many logins there are, other requests are answered as fast as before. A quarter of a second of hashing
never runs on the event loop nor in the threads that other requests use. Failure behaviour: logins queue.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, TypeVar

from nubila.core.passwords import Passwords, verify
from nubila.services.identity.proof import Compare

if TYPE_CHECKING:
    from nubila.core.cloud import Cloud

T = TypeVar("T")
CHECKERS = 16
"""Threads for checks that wait for something else (a directory), so that a slow one holds up no password."""


def passwords(cloud: Cloud) -> Passwords:
    """How this cloud hashes passwords."""
    settings = cloud.settings
    if settings.password_hash_algorithm.startswith("bcrypt"):
        return Passwords(settings.password_hash_algorithm, settings.bcrypt_rounds)
    return Passwords(settings.password_hash_algorithm, settings.password_hash_rounds)


def compare(cloud: Cloud, c: Compare) -> bool:
    """Whether the secret made the hash; without a hash False, after the same time."""
    return passwords(cloud).dummy_verify(c.secret) if c.hashed is None else verify(c.hashed, c.secret)


def pool(cloud: Cloud) -> ThreadPoolExecutor:
    """The hashing threads of this process."""
    return _threads(cloud, "identity.hashing", max(1, (os.cpu_count() or 2) - 1))


def checkers(cloud: Cloud) -> ThreadPoolExecutor:
    """The threads for checks that wait."""
    return _threads(cloud, "identity.checks", CHECKERS)


def run(cloud: Cloud, work: Callable[[], T]) -> T:
    """The result of work done in a hashing thread; for callers that are in a worker thread themselves."""
    return pool(cloud).submit(work).result()


def _threads(cloud: Cloud, key: str, workers: int) -> ThreadPoolExecutor:
    found: ThreadPoolExecutor | None = cloud.memory.get(key)
    if found is None:
        made = ThreadPoolExecutor(workers, thread_name_prefix=key, initializer=_yield_to_others)
        found = cloud.memory.setdefault(key, made)
    return found


def _yield_to_others() -> None:
    with contextlib.suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 5)
