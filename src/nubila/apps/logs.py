"""Logs of the processes of a cloud: who rotates them, and how a process goes on in the new file.

The supervisor renames a log that is full and tells its children (SIGUSR1; SIGHUP when settings are to be read again as
well); each reopens its own. Imports nothing: the supervisor stays small.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

SIGNALS = (signal.SIGHUP, signal.SIGUSR1)
"""What children are told by: read settings and reopen logs; reopen logs alone."""
VARIABLE = "NUBILA_LOG_FILE"
"""Environment variable by which a child knows the file its output goes to."""
DEFAULT = (100_000_000, 5)


def rotate(directory: Path, max_bytes: int, keep: int) -> list[str]:
    """Rename logs of at least ``max_bytes`` to NAME.1 (NAME.1 to NAME.2 ...), keep that many old ones; say which."""
    done = []
    for path in sorted(directory.glob("*.log")):
        try:
            if path.stat().st_size < max(1, max_bytes):
                continue
            old = [path, *(path.with_name(f"{path.name}.{n}") for n in range(1, keep + 1))]
            for newer, older in reversed(list(pairwise(old))):
                if newer.exists():
                    newer.rename(older)
            if keep < 1:
                path.unlink()
            os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600))
        except OSError as e:
            print(f"{path} cannot be rotated: {e.strerror}", flush=True)
            continue
        done.append(path.name)
    return done


def follow(path: Path) -> None:
    """When our output goes to a file that had this name, have it go to the one that has it now."""
    with contextlib.suppress(OSError):
        if os.readlink("/proc/self/fd/1").startswith(str(path)):
            _output_to(path)


def reopen() -> None:
    """Have the output of this child go on in its log's new file."""
    if path := os.environ.get(VARIABLE):
        _output_to(Path(path))


def _output_to(path: Path) -> None:
    sys.stdout.flush()
    sys.stderr.flush()
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    try:
        os.dup2(fd, 1)
        os.dup2(fd, 2)
    finally:
        os.close(fd)


def listen() -> None:
    """Take the signals that the supervisor kept back while we were loading."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)


def on_signals(hang_up: Callable[[], None] | None = None) -> None:
    """For processes without an event loop: reopen the log on both signals, and ``hang_up`` on SIGHUP."""

    def handle(number: int, _frame: object) -> None:
        reopen()
        if number == signal.SIGHUP and hang_up is not None:
            hang_up()

    for number in SIGNALS:
        signal.signal(number, handle)
    listen()
