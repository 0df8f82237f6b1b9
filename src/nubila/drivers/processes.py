"""Named processes that outlive us.

A process is known by a name and a run directory. ``<run_dir>/<name>.pid`` holds its pid, the kernel's start time of
that pid (field 22 of ``/proc/<pid>/stat``) and the boot's id, so a recycled pid is never taken for ours: a machine
may hand out the same pids at the same times whenever it boots. The file is written by the process itself just before
it becomes the wanted program: if we are killed in the middle of ``start``, the next ``alive`` still finds it.

Where systemd is PID 1 the process is a transient unit (a cgroup of its own, logged and accounted by systemd); elsewhere
it is a session leader whose parent is PID 1. Everything else is the same, so callers never need to know which.

Programs must stay in the foreground (``dnsmasq --keep-in-foreground``, ``haproxy -db`` ...).
"""

from __future__ import annotations

import hashlib
import os
import select
import shutil
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from nubila.core.ports import NeedsOperator, TryAgain

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

# $1 = pid file, the rest is the program. Writes "pid starttime bootid" atomically, then becomes the program (same pid,
# same start time). Field 2 of stat is "(sh)", which has no space, so splitting on blanks is safe here.
_LAUNCH = """
f=$1; shift
read -r line < /proc/$$/stat
start=$(set -- $line; shift 21; echo "$1")
read -r boot < /proc/sys/kernel/random/boot_id
echo "$$ $start $boot" > "$f.new" && mv "$f.new" "$f" || exit 126
exec "$@"
"""


def start(
    name: str,
    argv: Sequence[str],
    run_dir: Path,
    *,
    log: Path,
    env: Mapping[str, str] | None = None,
    netns: str | None = None,
    timeout_s: float = 10.0,
) -> int:
    """Start ``argv`` as ``name`` unless it runs already; return its pid.

    ``env`` is added to a minimal environment (PATH, LANG). ``netns`` is the name of a network namespace under
    /run/netns. Output is appended to ``log``. The program may still fail right after: ask ``alive``.
    Raises NeedsOperator when the program is not installed, TryAgain when it did not come up in ``timeout_s``.
    """
    running = alive(name, run_dir)
    if running is not None:
        return running
    if shutil.which(argv[0], path=_PATH) is None:
        raise NeedsOperator(f"The program {argv[0]} is not installed on this host.")
    if netns and not Path("/run/netns", netns).exists():
        raise TryAgain(f"The network namespace {netns} does not exist yet.")
    run_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    pid_file = _pid_file(name, run_dir)
    pid_file.unlink(missing_ok=True)
    command = ["sh", "-c", _LAUNCH, "launch", str(pid_file.absolute()), *argv]
    if netns:
        command = ["nsenter", f"--net=/run/netns/{netns}", *command]
    plain = {"PATH": _PATH, "LANG": "C.UTF-8", **(env or {})}
    if _systemd():
        command = [*_unit(name, run_dir, log, plain), *command]
    else:
        command = ["setsid", "--fork", *command]
    with open(log, "ab", opener=_private) as out:
        try:
            done = subprocess.run(
                command, stdin=subprocess.DEVNULL, stdout=out, stderr=out, env=plain, cwd=run_dir, timeout=timeout_s
            )
        except subprocess.TimeoutExpired:
            raise TryAgain(f"Starting {name} took more than {timeout_s:.0f} s.") from None
    if done.returncode != 0:
        raise TryAgain(f"Starting {name} failed with code {done.returncode}; see {log.name}.")
    deadline = time.monotonic() + timeout_s
    while True:  # the launcher writes the file within a few milliseconds
        recorded = _read(pid_file)
        if recorded is not None:
            return recorded[0]
        if time.monotonic() > deadline:
            raise TryAgain(f"{name} did not come up within {timeout_s:.0f} s; see {log.name}.")
        time.sleep(0.002)


def alive(name: str, run_dir: Path) -> int | None:
    """The pid of ``name`` if that very process still runs, else None."""
    recorded = _read(_pid_file(name, run_dir))
    if recorded is None or _start_time(recorded[0]) != recorded[1]:
        return None
    return recorded[0]


def stop(name: str, run_dir: Path, timeout_s: float = 5.0) -> bool:
    """Ask ``name`` to end (SIGTERM), make it end (SIGKILL) after ``timeout_s`` seconds; absent is success.

    Returns whether a process was stopped. Raises TryAgain if it survives SIGKILL for 5 s (stuck in the kernel).
    """
    return _end(name, run_dir, [(signal.SIGTERM, timeout_s), (signal.SIGKILL, 5.0)])


def kill(name: str, run_dir: Path) -> bool:
    """End ``name`` at once (SIGKILL); absent is success."""
    return _end(name, run_dir, [(signal.SIGKILL, 5.0)])


def reload(name: str, run_dir: Path, signum: int = signal.SIGHUP) -> bool:
    """Send a signal (SIGHUP unless told) to ``name`` if it runs; returns whether it did."""
    handle = _open(name, run_dir)
    if handle is None:
        return False
    try:
        signal.pidfd_send_signal(handle, signum)
    except ProcessLookupError:
        return False
    finally:
        os.close(handle)
    return True


def wait(name: str, run_dir: Path, timeout_s: float) -> bool:
    """Wait until ``name`` has ended, at most ``timeout_s`` seconds; returns whether it has."""
    handle = _open(name, run_dir)
    if handle is None:
        return True
    try:
        return _ended(handle, timeout_s)
    finally:
        os.close(handle)


def _end(name: str, run_dir: Path, steps: Sequence[tuple[int, float]]) -> bool:
    handle = _open(name, run_dir)
    if handle is None:
        _pid_file(name, run_dir).unlink(missing_ok=True)
        return False
    try:
        for signum, patience_s in steps:
            try:
                signal.pidfd_send_signal(handle, signum)
            except ProcessLookupError:
                break
            if _ended(handle, patience_s):
                break
        else:
            raise TryAgain(f"{name} does not end even when killed.")
    finally:
        os.close(handle)
    _pid_file(name, run_dir).unlink(missing_ok=True)
    return True


def _open(name: str, run_dir: Path) -> int | None:
    """A pidfd of the process, taken before its identity is checked, so that signals cannot hit a stranger."""
    recorded = _read(_pid_file(name, run_dir))
    if recorded is None:
        return None
    try:
        handle = os.pidfd_open(recorded[0])
    except ProcessLookupError:
        return None
    if _start_time(recorded[0]) != recorded[1]:
        os.close(handle)
        return None
    return handle


def _ended(handle: int, timeout_s: float) -> bool:
    poller = select.poll()
    poller.register(handle, select.POLLIN)
    return bool(poller.poll(max(0, int(timeout_s * 1000))))


def _pid_file(name: str, run_dir: Path) -> Path:
    return run_dir / f"{name}.pid"


def _read(path: Path) -> tuple[int, int] | None:
    try:
        pid, started, *boot = path.read_text().split()
        if boot and boot != [_BOOT_ID.read_text().strip()]:
            return None
        return int(pid), int(started)
    except (OSError, ValueError):
        return None


def _start_time(pid: int) -> int | None:
    """Kernel start time of a pid in clock ticks since boot; None when absent or a zombie nobody reaped."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in "ZX" else int(fields[19])


def _systemd() -> bool:
    return Path("/run/systemd/system").is_dir() and os.geteuid() == 0 and shutil.which("systemd-run") is not None


def _unit(name: str, run_dir: Path, log: Path, env: Mapping[str, str]) -> list[str]:
    """systemd-run's arguments; values of variables are taken from its own environment, never from argv."""
    where = hashlib.sha256(str(run_dir.absolute()).encode()).hexdigest()[:8]
    return [
        "systemd-run",
        "--quiet",
        "--collect",
        "--service-type=exec",
        f"--unit=nubila-{name}-{where}",
        "--slice=nubila.slice",
        f"--working-directory={run_dir.absolute()}",
        "--property=LimitNOFILE=65536",
        f"--property=StandardOutput=append:{log.absolute()}",
        f"--property=StandardError=append:{log.absolute()}",
        *(f"--setenv={variable}" for variable in env),
    ]


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)
