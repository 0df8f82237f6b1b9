"""The Open vSwitch daemons a host uses: the system's where they run, else a pair of our own.

Our own pair lives in ``/run/nubila/ovs`` (database, sockets, pid files, logs), uses the userspace datapath and
outlives this process. It is one pair for all clouds of a host, because a network namespace has room for one userspace
datapath only (it takes the device name ``ovs-netdev``): the first cloud starts it, the last one stops it. A crashed
daemon is started again by the next ``ensure``. The system's daemons are only ever talked to; without the kernel
datapath they are asked for the userspace one. Hosts played by network namespaces have a pair each.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from nubila.core.ports import HostPlace, NeedsOperator, TryAgain
from nubila.drivers import ovs_db, processes, programs
from nubila.drivers.ovs_db import Database

_SYSTEM = Path("/run/openvswitch")
_OWN = Path("/run/nubila")
_SCHEMA = Path("/usr/share/openvswitch/vswitch.ovsschema")
_SERVER, _SWITCH = "ovsdb-server", "ovs-vswitchd"


class Daemons:
    """Where the daemons of one place are, and how to have them running."""

    def __init__(self, place: HostPlace, system: Path = _SYSTEM, own: Path = _OWN) -> None:
        self.place = place
        self.run_dir = own / (f"ovs.{place.namespace}" if place.namespace else "ovs")
        # Once our own pair runs we stay with it, even if the system's is started later.
        own_runs = processes.alive(_SWITCH, self.run_dir) is not None
        self.private = own_runs or bool(place.namespace) or not _answers(Database(system / "db.sock", timeout_s=2))
        if not self.private:
            self.run_dir = system
        self.database = Database(self.run_dir / "db.sock")
        kernel = not self.private and Path("/sys/module/openvswitch").is_dir()
        self.datapath_type = "system" if kernel else "netdev"

    def ensure(self) -> None:
        """Have both daemons answer; cheap when they do."""
        if not self.private:
            if self._switch_pid() is None:
                raise NeedsOperator("ovs-vswitchd does not run: start the host's Open vSwitch service.")
            return
        if self.running():
            return
        with self._alone():
            if processes.alive(_SERVER, self.run_dir) is None:
                self._start_server()
            if processes.alive(_SWITCH, self.run_dir) is None:
                self._start_switch()

    def identity(self) -> str:
        """What changes whenever ovs-vswitchd was started anew, and so has forgotten all flows."""
        pid = self._switch_pid()
        if pid is None:
            return ""
        try:
            return f"{pid}.{Path(f'/proc/{pid}/stat').read_text().rpartition(')')[2].split()[19]}"
        except OSError:
            return ""

    def control(self, command: str, *arguments: str) -> str:
        """Run a command of ovs-vswitchd's control socket (what ovs-appctl does)."""
        return str(ovs_db.call(self.control_socket(), command, list(arguments)) or "")

    def control_socket(self) -> Path:
        """Where ovs-vswitchd takes commands."""
        return self.run_dir / ("ovs-vswitchd.ctl" if self.private else f"ovs-vswitchd.{self._switch_pid()}.ctl")

    def openflow(self, command: str, bridge: str, *arguments: str, lines: str = "", timeout_s: float = 30.0) -> str:
        """Run ovs-ofctl against a bridge; ``lines`` go to its standard input."""
        target = f"unix:{self.run_dir}/{bridge}.mgmt"
        # Without names: else it first asks for the features of all 254 tables, 800 KB and 100 ms.
        argv = ["ovs-ofctl", "--no-names", "-O", "OpenFlow14", *command.split(), target, *arguments]
        return programs.run(argv, package="openvswitch-switch", text=lines, timeout_s=timeout_s)

    def stop(self) -> None:
        """End our own daemons and forget their database, unless another cloud has a bridge there."""
        if not self.private or not self.run_dir.is_dir():
            return
        with self._alone():
            if self.running() and self.database.rows(ovs_db.select("Bridge", ["_uuid"]))[0]:
                return
            with contextlib.suppress(TryAgain):  # else its devices stay: they are persistent taps
                self.control("exit", "--cleanup")
                processes.wait(_SWITCH, self.run_dir, timeout_s=5)
            processes.stop(_SWITCH, self.run_dir)
            processes.stop(_SERVER, self.run_dir)
            shutil.rmtree(self.run_dir, ignore_errors=True)
        with contextlib.suppress(OSError):  # the played hosts of this machine have theirs there
            self.run_dir.parent.rmdir()

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        """One starter or stopper at a time among the clouds of this host."""
        while True:
            path = self.run_dir / "lock"
            try:
                self.run_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
                lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            except FileNotFoundError:
                continue  # the last cloud removes it right now
            fcntl.flock(lock, fcntl.LOCK_EX)
            try:
                current = path.stat().st_ino
            except FileNotFoundError:
                current = -1
            if current == os.fstat(lock).st_ino:
                break
            os.close(lock)  # the last cloud removed the directory while we waited: lock the new one
        try:
            yield
        finally:
            os.close(lock)

    def running(self) -> bool:
        """Whether both daemons run, without starting them."""
        if not self.private:
            return self._switch_pid() is not None
        return all(processes.alive(name, self.run_dir) for name in (_SERVER, _SWITCH))

    def _switch_pid(self) -> int | None:
        if self.private:
            return processes.alive(_SWITCH, self.run_dir)
        try:
            pid = int((self.run_dir / "ovs-vswitchd.pid").read_text())
            os.kill(pid, 0)
        except (OSError, ValueError):
            return None
        return pid

    def _start_server(self) -> None:
        self.run_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not _SCHEMA.exists():
            raise NeedsOperator("Open vSwitch is not installed on this host (package openvswitch-switch).")
        data = self.run_dir / "conf.db"
        if not data.exists():
            fresh = self.run_dir / "conf.db.new"
            fresh.unlink(missing_ok=True)
            programs.run(["ovsdb-tool", "create", str(fresh), str(_SCHEMA)], package="openvswitch-common")
            fresh.replace(data)
        self.database.path.unlink(missing_ok=True)
        self._spawn(
            _SERVER,
            [str(data), f"--remote=punix:{self.database.path}", f"--unixctl={self.run_dir}/ovsdb-server.ctl"],
        )
        _until(lambda: _answers(self.database), "ovsdb-server")

    def _start_switch(self) -> None:
        if not self.database.rows(ovs_db.select("Open_vSwitch", ["_uuid"]))[0]:
            self.database.transact(ovs_db.insert("Open_vSwitch", "root", {}))
        self._spawn(_SWITCH, [f"unix:{self.database.path}", f"--unixctl={self.run_dir}/ovs-vswitchd.ctl"])
        _until((self.run_dir / "ovs-vswitchd.ctl").exists, "ovs-vswitchd")

    def _spawn(self, name: str, arguments: list[str]) -> None:
        here = str(self.run_dir)
        argv = [name, *arguments, "--no-chdir", "-vconsole:warn", "-vsyslog:off", "-vfile:off"]
        env = {"OVS_RUNDIR": here, "OVS_LOGDIR": here, "OVS_DBDIR": here}
        log = self.run_dir / f"{name}.log"
        processes.start(name, argv, self.run_dir, log=log, env=env, netns=self.place.namespace or None)


def _answers(database: Database) -> bool:
    if not database.path.exists():
        return False
    try:
        database.rows(ovs_db.select("Open_vSwitch", ["_uuid"]))
    except TryAgain:
        return False
    return True


def _until(ready: Callable[[], bool], what: str, timeout_s: float = 10.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not ready():
        if time.monotonic() > deadline:
            raise TryAgain(f"{what} did not answer within {timeout_s:.0f} s.")
        time.sleep(0.005)
