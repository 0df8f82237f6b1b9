"""Run a short-lived program of the host: fixed search path, a time limit, failures as driver errors."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence

from nubila.core.ports import NeedsOperator, TryAgain

_ENV = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LANG": "C.UTF-8"}


def run(argv: Sequence[str], *, package: str, text: str = "", timeout_s: float = 10.0, check: bool = True) -> str:
    """Run ``argv`` with ``text`` on its standard input and return what it printed.

    It runs in the network namespace this thread is in. Raises NeedsOperator, naming the Debian ``package``, when the
    program is missing; TryAgain with its first complaint when it fails (unless ``check`` is false) or takes too long.
    """
    try:
        done = subprocess.run(argv, input=text, capture_output=True, text=True, timeout=timeout_s, env=_ENV)
    except FileNotFoundError:
        raise NeedsOperator(f"The program {argv[0]} is not installed on this host (package {package}).") from None
    except subprocess.TimeoutExpired:
        raise TryAgain(f"{argv[0]} took more than {timeout_s:.0f} s.") from None
    if check and done.returncode != 0:
        said = [line for line in done.stderr.splitlines() if line.strip()]
        raise TryAgain(f"{argv[0]} failed: {said[0] if said else f'code {done.returncode}'}.")
    return done.stdout
