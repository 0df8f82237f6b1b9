"""The supervisor: starts the processes of one cloud on this machine and starts them again when they die.

It holds the listening sockets, so a server that is killed and restarted refuses nobody. It imports next to nothing and
stays small. When it dies itself its children end too (they ask the kernel for that); guests, switches and routers go
on, and the next ``nubila up`` finds them.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from nubila.apps import logs

PR_SET_PDEATHSIG = 1
QUICK_S = 2.0
LOGS_EVERY_S = 30.0
TOLD_BY = (signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
LOCK_TRIES = 10


def die_with_parent(parent: int) -> None:
    """End this process when its parent ends (prctl(2)), also when it has ended already."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:  # it ended before we asked: we were still loading
        sys.exit(0)


class AlreadyUp(Exception):
    """Another supervisor runs this state directory."""


def lock(state: Path) -> Any:
    """Hold the state directory: the open lock file, with our pid in it. Raises AlreadyUp."""
    file = (state / "run" / "supervisor.pid").open("a+")
    for attempt in range(LOCK_TRIES):
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        except OSError:
            if attempt == LOCK_TRIES - 1:
                file.close()
                raise AlreadyUp(f"this cloud is up already (process {running(state)})") from None
            time.sleep(0.02)  # ``running`` holds it for a moment when it looks
    file.seek(0)
    file.truncate()
    file.write(str(os.getpid()))
    file.flush()
    return file


def running(state: Path) -> int | None:
    """The pid of the supervisor that holds this state directory, or None."""
    try:
        with (state / "run" / "supervisor.pid").open("r+") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                return int(file.read() or 0) or None
            return None
    except (FileNotFoundError, ValueError):
        return None


class Child:
    """One process kept running. ``command`` is the arguments after the interpreter."""

    def __init__(self, name: str, command: list[str], fds: tuple[int, ...], log: Path) -> None:
        self.name, self.command, self.fds, self.log = name, command, fds, log
        self.process: subprocess.Popen[bytes] | None = None
        self.started = 0.0
        self.quick = 0  # deaths shortly after the start, one after the other
        self.again = 0.0

    def start(self) -> None:
        """Start it; its output goes to its log."""
        before = signal.pthread_sigmask(signal.SIG_BLOCK, logs.SIGNALS)  # the child takes them when it can
        try:
            with self.log.open("ab") as out:
                self.process = subprocess.Popen(
                    [sys.executable, *self.command, "--parent", str(os.getpid())],
                    stdin=subprocess.DEVNULL,
                    stdout=out,
                    stderr=out,
                    pass_fds=self.fds,
                    env={**os.environ, logs.VARIABLE: str(self.log)},
                )
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        self.started = time.monotonic()

    def died(self) -> None:
        """Note a death and when to start again: at once, later when it keeps dying young."""
        lived = time.monotonic() - self.started
        self.quick = self.quick + 1 if lived < QUICK_S else 0
        self.again = time.monotonic() + (min(0.1 * 2 ** min(self.quick, 6), 5.0) if self.quick else 0.0)
        self.process = None


def _children(state: Path, plan: dict[str, Any], sockets: dict[str, socket.socket]) -> list[Child]:
    fds = {name: s.fileno() for name, s in sockets.items()}
    for fd in fds.values():
        os.set_inheritable(fd, True)
    listening = ",".join(f"{name}={fd}" for name, fd in fds.items())
    return [
        Child(
            c["name"], ["-m", "nubila.apps.process", c["role"], "--state", str(state), *c.get("args", ()),
                        *(["--fds", listening] if c["role"] == "server" else [])],
            tuple(fds.values()) if c["role"] == "server" else (), state / "log" / f"{c['name']}.log",
        )
        for c in plan["children"]
    ]  # fmt: skip


def _tend(children: list[Child]) -> bool:
    """Notice deaths and start again what is due; True when something was started."""
    changed = False
    for child in children:
        if child.process is not None and child.process.poll() is not None:
            print(f"{child.name} ended with {child.process.returncode}", flush=True)
            child.died()
        if child.process is None and time.monotonic() >= child.again:
            try:
                child.start()
                changed = True
            except OSError as e:  # no memory, no disk: the others go on, this one is tried again
                print(f"{child.name} cannot be started: {e}", flush=True)
                child.died()
                child.again = time.monotonic() + 1.0
    return changed


def _end(children: list[Child]) -> None:
    running = [c.process for c in children if c.process is not None]
    for process in running:
        process.terminate()
    deadline = time.monotonic() + 8.0
    for process in running:
        try:
            process.wait(max(0.1, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _tell(children: list[Child], number: signal.Signals) -> None:
    for child in children:
        if child.process is not None:
            with contextlib.suppress(ProcessLookupError):
                child.process.send_signal(number)


def supervise(state: Path, plan: dict[str, Any], sockets: dict[str, socket.socket]) -> None:
    """Run the children of the plan until SIGTERM or SIGINT.

    SIGHUP (SIGUSR2 on a terminal) has them read their settings and certificates again and go on in new logs where one
    was full; logs that fill up are noticed without it.
    """
    children = _children(state, plan, sockets)
    stopping = False
    wanted: list[signal.Signals] = []
    keep_logs = plan.get("log", logs.DEFAULT)
    look = time.monotonic() + LOGS_EVERY_S

    def stop(*_: Any) -> None:
        nonlocal stopping
        stopping = True

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
    wake_r, wake_w = os.pipe()
    os.set_blocking(wake_w, False)
    signal.set_wakeup_fd(wake_w, warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.signal(signal.SIGUSR1, lambda *_: wanted.append(signal.SIGUSR1))
    signal.signal(signal.SIGUSR2, lambda *_: wanted.append(signal.SIGHUP))
    if not os.isatty(0):  # there it means that the terminal was closed
        signal.signal(signal.SIGHUP, lambda *_: wanted.append(signal.SIGHUP))
    signal.pthread_sigmask(signal.SIG_UNBLOCK, TOLD_BY)
    while not stopping:
        told, wanted[:] = wanted[:], []
        if told or time.monotonic() >= look:
            look = time.monotonic() + LOGS_EVERY_S
            if told:
                with contextlib.suppress(OSError, ValueError, KeyError):  # what is in force stays so
                    keep_logs = json.loads((state / "run" / "plan.json").read_text())["log"]
            if logs.rotate(state / "log", *keep_logs) or told:
                logs.follow(state / "log" / "supervisor.log")
                _tell(children, signal.SIGHUP if signal.SIGHUP in told else signal.SIGUSR1)
        if _tend(children):
            _write_pids(state, children)
        _sleep(wake_r, min([1.0, *(max(0.0, c.again - time.monotonic()) for c in children if c.process is None)]))
    _end(children)
    (state / "run" / "processes.json").unlink(missing_ok=True)


def _sleep(fd: int, seconds: float) -> None:
    import select

    readable, _, _ = select.select([fd], [], [], seconds)
    if readable:
        with contextlib.suppress(OSError):
            os.read(fd, 4096)


def _write_pids(state: Path, children: list[Child]) -> None:
    pids = {c.name: c.process.pid for c in children if c.process is not None}
    temp = state / "run" / "processes.json.new"
    temp.write_text(json.dumps({"supervisor": os.getpid(), **pids}))
    temp.rename(state / "run" / "processes.json")


def listen(address: str) -> socket.socket:
    """A listening TCP socket on ADDR:PORT. Raises OSError."""
    host, _, port = address.rpartition(":")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    s = socket.socket(family, socket.SOCK_STREAM)
    s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    s.bind((host.strip("[]") or "127.0.0.1", int(port)))
    s.listen(1024)
    return s


def main() -> None:
    """``python -m nubila.apps.supervisor STATE``: the plan is in ``STATE/run/plan.json``."""
    state = Path(sys.argv[1])
    plan = json.loads((state / "run" / "plan.json").read_text())
    signal.pthread_sigmask(signal.SIG_BLOCK, TOLD_BY)  # from the lock on we may be told: not before we can listen
    held = lock(state)
    sockets = {name: listen(address) for name, address in plan["listen"].items()}
    supervise(state, plan, sockets)
    held.close()


if __name__ == "__main__":
    main()
