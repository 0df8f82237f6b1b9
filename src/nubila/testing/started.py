"""A cloud started the way a user starts one, with the command `nubila`, for tests that look from outside."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

_PORTS = range(10_000, 32_768)


@dataclass(frozen=True)
class Started:
    """A running cloud: its state directory and where its APIs are, its gear and its name."""

    state: Path
    auth_url: str
    gear: str
    name: str

    @property
    def clouds_yaml(self) -> Path:
        """The file with the clouds nubila-admin and nubila-demo."""
        return self.state / "clouds.yaml"

    def auth(self, cloud: str = "nubila-admin") -> dict[str, Any]:
        """The auth section of one of them."""
        found: dict[str, Any] = yaml.safe_load(self.clouds_yaml.read_text())["clouds"][cloud]["auth"]
        return found


def nubila(*arguments: str, timeout_s: float = 120) -> subprocess.CompletedProcess[str]:
    """Run the command `nubila` of this environment; the result is returned whatever its exit status."""
    program = Path(sys.executable).with_name("nubila")
    return subprocess.run(
        [str(program), *arguments],
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
        stdin=subprocess.DEVNULL,
    )


def free_port() -> int:
    """A TCP port of the loopback address nobody listens on at the moment.

    It is drawn from below the range the kernel takes the ports of clients from: neither another test's connection nor
    another test's draw is likely to have it before the caller listens on it.
    """
    for port in random.SystemRandom().sample(_PORTS, 100):
        with contextlib.suppress(OSError), socket.socket() as sock:
            sock.bind(("127.0.0.1", port))
            return port
    raise OSError("no free port on 127.0.0.1")


@contextlib.contextmanager
def started(gear: str, name: str, extra: Sequence[str] = (), timeout_s: float = 60) -> Iterator[Started]:
    """Bring a cloud up in a directory of its own and destroy it afterwards; AssertionError says what went wrong."""
    state = Path(tempfile.mkdtemp(prefix=f"nubila-{name}-"))
    at = ["--state", str(state)]
    try:
        listen = f"127.0.0.1:{free_port()}"
        up = nubila("up", "-d", *at, "--gear", gear, "--listen", listen, "--name", name, *extra, timeout_s=timeout_s)
        assert up.returncode == 0, f"nubila up: {up.stdout}{up.stderr}"
        wait = nubila("wait", *at, "--timeout", str(int(timeout_s)), timeout_s=timeout_s + 30)
        assert wait.returncode == 0, f"nubila wait: {wait.stdout}{wait.stderr}{_tail(state)}"
        admin = yaml.safe_load((state / "clouds.yaml").read_text())["clouds"]["nubila-admin"]
        yield Started(state, admin["auth"]["auth_url"].rstrip("/"), gear, name)
    finally:
        nubila("destroy", *at, "--yes", timeout_s=180)
        if os.environ.get("NUBILA_KEEP_STATE") is None:
            shutil.rmtree(state, ignore_errors=True)


def _tail(state: Path) -> str:
    """The last lines of every log, for the message of a failed start."""
    parts = []
    for path in sorted((state / "log").glob("*")):
        if path.is_file():
            parts.append(f"\n== {path.name}\n" + "\n".join(path.read_text(errors="replace").splitlines()[-15:]))
    return "".join(parts)
