"""Lines about packets that security groups let through or dropped, for ports that somebody asked to log.

Model: the flows of a logged port copy the packets in question to the bridge's OpenFlow listener, through one meter for
the whole host; ``ovs-ofctl monitor``, a child of this process, prints them, and a thread writes one line for each to
``<root>/log/security-groups.log`` (three files of 8 MiB at most). ``<root>/security-log/<port>.json`` says which port
and which logs a packet's cookie means. Lines have the fields of the original service: action, project_id,
log_resource_ids, vm_port, pkt.

Failure: while this process or the child is away nothing is logged and packets are not touched; a child that ends is
started again. What exceeds the rate is dropped from the log, not from the network.
Source: ovs-actions(7) controller, ovs-ofctl(8) monitor.
"""

from __future__ import annotations

import logging
import logging.handlers
import os
import re
import subprocess
import threading
from pathlib import Path

from msgspec import Struct

from nubila.core.ports import HostPlace, LogSpec
from nubila.drivers import links, ovs_flows
from nubila.drivers.files import read_json, write_json
from nubila.drivers.ovs_daemons import Daemons
from nubila.drivers.ovs_security import LOG_METER

RATE, BURST = 100, 25  # packets a second, as in the original service
_HEAD = re.compile(r"NXT_PACKET_IN2.*? table_id=(\d+) cookie=0x([0-9a-f]+) (.*)\(via")
_SIZE, _FILES = 8 << 20, 2


class Entry(Struct, frozen=True, kw_only=True):
    """What a logged port's packets are about."""

    port_id: str
    project_id: str
    logs: tuple[LogSpec, ...]
    groups: dict[str, int]  # group -> its number on this host


class SecurityLog:
    """One host's log."""

    def __init__(self, place: HostPlace, daemons: Daemons, bridge: str) -> None:
        self._place, self._daemons, self._bridge = place, daemons, bridge
        self._folder = place.root / "security-log"
        self.file = place.root / "log" / "security-groups.log"
        self._entries: dict[int, Entry] | None = None  # by cookie; None: not read yet
        self._child: subprocess.Popen[str] | None = None
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None

    def keep(self, port_id: str, project_id: str, logs: tuple[LogSpec, ...], groups: dict[str, int]) -> None:
        """Know what packets of the port mean, before its flows copy any; without logs forget it."""
        path = self._folder / f"{port_id}.json"
        known = self._read()
        mark = ovs_flows.cookie(self._place.cloud, "guest", port_id)
        if not logs:
            if mark in known:
                path.unlink(missing_ok=True)
                del known[mark]
            return
        entry = Entry(port_id=port_id, project_id=project_id, logs=logs, groups=groups)
        if known.get(mark) != entry:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            write_json(path, entry)
            known[mark] = entry
        self.start()

    def start(self) -> None:
        """Write lines from now on, when any port is logged."""
        if not self._read() or (self._thread is not None and self._thread.is_alive()):
            return
        self.make_meter()
        self._stopping.clear()
        self._thread = threading.Thread(target=self._run, name="security-log", daemon=True)
        self._thread.start()

    def make_meter(self) -> None:
        """Have the meter that logged ports' flows name; a restarted ovs-vswitchd has forgotten it."""
        if self._read():
            shown = self._daemons.openflow("dump-meters", self._bridge)
            if f"meter={LOG_METER} " not in shown:
                band = f"meter={LOG_METER},pktps,burst,band=type=drop,rate={RATE},burst_size={BURST}"
                self._daemons.openflow("add-meter", self._bridge, band)

    def stop(self) -> None:
        """Write no more; what is logged stays known."""
        self._stopping.set()
        child, thread = self._child, self._thread
        if child is not None:
            child.terminate()
        if thread is not None:
            thread.join(5)
        self._thread = None

    def _read(self) -> dict[int, Entry]:
        if self._entries is None:
            found = [read_json(path, Entry) for path in self._folder.glob("*.json")]
            self._entries = {
                ovs_flows.cookie(self._place.cloud, "guest", entry.port_id): entry for entry in found if entry
            }
        return self._entries

    def _run(self) -> None:
        out = writer(self.file)
        try:
            while not self._stopping.is_set():
                self._follow(out)
                self._stopping.wait(1.0)
        finally:
            out.close()

    def _follow(self, out: logging.Handler) -> None:
        run_dir = str(self._daemons.run_dir)
        argv = ["ovs-ofctl", "-O", "OpenFlow14", "monitor", f"unix:{run_dir}/{self._bridge}.mgmt", "128"]
        argv.append(f"--unixctl={run_dir}/security-log-{os.getpid()}.ctl")
        with links.entered(self._place.namespace):
            child = subprocess.Popen(
                argv, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
                env={**os.environ, "OVS_RUNDIR": run_dir},
            )  # fmt: skip
        self._child = child
        try:
            if self._stopping.is_set():
                child.terminate()
            head = None
            assert child.stderr is not None
            for text in child.stderr:
                if head is not None and text.strip():
                    said = self._line(head, text.strip())
                    head = None
                    if said:
                        out.emit(logging.LogRecord("", logging.INFO, "", 0, said, None, None))
                else:
                    head = _HEAD.match(text)
        finally:
            child.terminate()
            child.wait(5)
            if child.stderr:
                child.stderr.close()
            self._child = None

    def _line(self, head: re.Match[str], packet: str) -> str:
        entry = (self._entries or {}).get(int(head[2], 16))
        if entry is None:
            return ""
        accepted = ",reg9=0x1" in head[3]
        by = re.search(r",reg10=(0x[0-9a-f]+)", head[3])
        number = int(by[1], 16) if by else 0
        direction = "ingress" if head[1] == "42" else "egress"
        return line(entry, accepted, number, direction, packet)


def line(entry: Entry, accepted: bool, number: int, direction: str, packet: str) -> str:
    """A line about a packet of a logged port; ``number``: the group that let it through. "" when no log wants it."""
    wanted = "ACCEPT" if accepted else "DROP"
    ids = [
        log.id
        for log in entry.logs
        if log.event in ("ALL", wanted) and (not accepted or log.group is None or entry.groups.get(log.group) == number)
    ]
    if not ids:
        return ""
    return (
        f"action={wanted} project_id={entry.project_id} log_resource_ids={ids} vm_port={entry.port_id} "
        f"direction={direction} pkt={packet}"
    )


def writer(file: Path) -> logging.Handler:
    """Where lines go; old files are kept as far as there is room."""
    file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    made = logging.handlers.RotatingFileHandler(file, maxBytes=_SIZE, backupCount=_FILES)
    made.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
    file.chmod(0o600)
    return made
