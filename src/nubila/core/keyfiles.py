"""Directories of key files: written whole or not at all, changed by one process at a time, followed as they change.

Failure behaviour: a directory that becomes unreadable or half-written while we run leaves the keys read before in use
and says so (:attr:`Followed.problem`); at the start it stops the program (:class:`KeysError`).
"""

from __future__ import annotations

import fcntl
import logging
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Generic, TypeVar

log = logging.getLogger("nubila.keys")
CHECK_EVERY_S = 1.0
"""How often a directory is looked at."""

K = TypeVar("K")


class KeysError(Exception):
    """The key directory cannot be used; the text says which file and what to do."""


def write_file(path: Path, data: bytes, mode: int = 0o600) -> None:
    """Write a file so that it is never half there, also after a crash."""
    temporary = path.with_name(f".new-{path.name}")
    temporary.unlink(missing_ok=True)  # left by a process that died here
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    with os.fdopen(fd, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    os.rename(temporary, path)


@contextmanager
def locked(directory: Path) -> Iterator[None]:
    """One process at a time changes the directory; a killed one leaves the lock free."""
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
        os.fsync(fd)
    finally:
        os.close(fd)


def stamp(directory: Path) -> tuple[int, int]:
    """What tells a change of a directory. The clock of a file system ticks in milliseconds: one that was changed a
    moment ago gets a stamp that never comes again, because a change right after might not show. Raises OSError."""
    stat = os.stat(directory)
    young = time.time() - stat.st_mtime < 2
    return (0 if young else stat.st_mtime_ns, stat.st_ino)


class Followed(Generic[K]):
    """The keys of some directories as ``load`` reads them, read again when the directories change. Thread-safe."""

    def __init__(self, directories: tuple[Path, ...], load: Callable[[], K], monotonic: Callable[[], float]) -> None:
        """``load`` raises :class:`KeysError` or OSError; so does this."""
        self.problem: str | None = None  # why the directory as it is now is not in use
        self._directories, self._load, self._monotonic = directories, load, monotonic
        self._next = monotonic() + CHECK_EVERY_S
        self._seen = self._stamps()
        self._keys = load()

    def current(self, *, now: bool = False) -> K:
        """The keys; looks at the directories once a second, or ``now``."""
        at = self._monotonic()
        if now or at >= self._next:
            self._next = at + CHECK_EVERY_S
            self._follow()
        return self._keys

    def _stamps(self) -> tuple[tuple[int, int], ...]:
        try:
            return tuple(stamp(directory) for directory in self._directories)
        except OSError as e:
            raise KeysError(f"token keys: {e.filename} cannot be read: {e.strerror}") from None

    def _follow(self) -> None:
        try:
            seen = self._stamps()
            if seen == self._seen and all(mtime for mtime, _ in seen):
                return
            self._keys = self._load()
            self._seen = seen
        except (KeysError, OSError) as e:
            problem = f"{e}; the keys read before stay in use"
            if problem != self.problem:
                log.error("%s", problem)
            self.problem = problem
            return
        self.problem = None
