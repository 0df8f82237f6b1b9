"""The Open vSwitch daemons a host uses: the system's, where its kernel datapath works, else a pair of our own.

Our own pair lives in ``<root>/ovs`` (database, sockets, pid files, logs) and in the host's network namespace, uses the
userspace datapath, and outlives this process. A crashed daemon is started again by the next ``ensure``. The system's
daemons are only ever talked to.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

from nubila.core.ports import HostPlace, NeedsOperator, TryAgain
from nubila.drivers import ovs_db, processes
from nubila.drivers.ovs_db import Database

_SYSTEM = Path("/run/openvswitch")
_SCHEMA = Path("/usr/share/openvswitch/vswitch.ovsschema")
_SERVER, _SWITCH = "ovsdb-server", "ovs-vswitchd"


class Daemons:
    """Where the daemons of one place are, and how to have them running."""

    def __init__(self, place: HostPlace, system: Path = _SYSTEM) -> None:
        self.place = place
        self.private = bool(place.namespace) or not kernel_switch_works(system)
        self.run_dir = place.root / "ovs" if self.private else system
        self.database = Database(self.run_dir / "db.sock")
        self.datapath_type = "netdev" if self.private else "system"

    def ensure(self) -> None:
        """Have both daemons answer; cheap when they do."""
        if not self.private:
            if self._switch_pid() is None:
                raise NeedsOperator("ovs-vswitchd does not run: start the host's Open vSwitch service.")
            return
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
        socket = self.run_dir / ("ovs-vswitchd.ctl" if self.private else f"ovs-vswitchd.{self._switch_pid()}.ctl")
        return str(ovs_db.call(socket, command, list(arguments)) or "")

    def openflow(self, command: str, bridge: str, *arguments: str, lines: str = "", timeout_s: float = 30.0) -> str:
        """Run ovs-ofctl against a bridge; ``lines`` go to its standard input."""
        target = f"unix:{self.run_dir}/{bridge}.mgmt"
        argv = ["ovs-ofctl", "-O", "OpenFlow14", *command.split(), target, *arguments]
        try:
            done = subprocess.run(argv, input=lines, capture_output=True, text=True, timeout=timeout_s)
        except FileNotFoundError:
            raise NeedsOperator("The program ovs-ofctl is not installed on this host.") from None
        except subprocess.TimeoutExpired:
            raise TryAgain(f"ovs-ofctl {command} on {bridge} took more than {timeout_s:.0f} s.") from None
        if done.returncode != 0:
            said = done.stderr.strip().splitlines()
            raise TryAgain(f"ovs-ofctl {command} on {bridge} failed: {said[-1] if said else done.returncode}.")
        return done.stdout

    def stop(self) -> None:
        """End our own daemons and forget their database; the system's are left alone."""
        if not self.private:
            return
        processes.stop(_SWITCH, self.run_dir)
        processes.stop(_SERVER, self.run_dir)
        shutil.rmtree(self.run_dir, ignore_errors=True)

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
            _run(["ovsdb-tool", "create", str(data) + ".new", str(_SCHEMA)])
            os.replace(str(data) + ".new", data)
        self.database.path.unlink(missing_ok=True)
        self._spawn(
            _SERVER,
            [str(data), f"--remote=punix:{self.database.path}", f"--unixctl={self.run_dir}/ovsdb-server.ctl"],
        )
        _until(lambda: self._answers(), "ovsdb-server")
        if not self.database.rows(ovs_db.select("Open_vSwitch", ["_uuid"]))[0]:
            self.database.transact(ovs_db.insert("Open_vSwitch", "root", {}))

    def _start_switch(self) -> None:
        self._spawn(_SWITCH, [f"unix:{self.database.path}", f"--unixctl={self.run_dir}/ovs-vswitchd.ctl"])
        _until((self.run_dir / "ovs-vswitchd.ctl").exists, "ovs-vswitchd")

    def _spawn(self, name: str, arguments: list[str]) -> None:
        here = str(self.run_dir)
        argv = [name, *arguments, "--no-chdir", "-vconsole:warn", "-vsyslog:off", "-vfile:off"]
        env = {"OVS_RUNDIR": here, "OVS_LOGDIR": here, "OVS_DBDIR": here}
        log = self.run_dir / f"{name}.log"
        processes.start(name, argv, self.run_dir, log=log, env=env, netns=self.place.namespace or None)

    def _answers(self) -> bool:
        try:
            self.database.rows()
        except TryAgain:
            return False
        return True


def kernel_switch_works(system: Path) -> bool:
    """Whether the host's own Open vSwitch answers and its kernel has the datapath (module openvswitch)."""
    if not Path("/sys/module/openvswitch").is_dir() or not (system / "db.sock").exists():
        return False
    try:
        Database(system / "db.sock", timeout_s=2).rows(ovs_db.select("Open_vSwitch", ["_uuid"]))
    except TryAgain:
        return False
    return True


def _run(argv: list[str], timeout_s: float = 10.0) -> None:
    try:
        subprocess.run(argv, check=True, capture_output=True, text=True, timeout=timeout_s)
    except FileNotFoundError:
        raise NeedsOperator(f"The program {argv[0]} is not installed on this host.") from None
    except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as failure:
        raise TryAgain(f"{argv[0]} failed: {getattr(failure, 'stderr', '') or failure}.") from failure


def _until(ready: Callable[[], bool], what: str, timeout_s: float = 10.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not ready():
        if time.monotonic() > deadline:
            raise TryAgain(f"{what} did not answer within {timeout_s:.0f} s.")
        time.sleep(0.005)
