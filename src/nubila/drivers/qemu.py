"""Guests as QEMU processes, driven over QMP, without a daemon in between.

Goal: a guest is one detached process with one directory, ``<root>/guests/<id>``, and outlives us. The directory is
everything there is to know: ``spec.json`` (last accepted spec), ``stamp.json`` (what was done), ``qemu.pid``,
``qmp.sock``, ``console.log``, ``console.sock`` (serial console), ``qemu.log`` and the disks.

Failure: ``ensure`` may be killed anywhere. Files appear by rename. The stamp is written *before* QEMU starts, so a
death in between looks like a crashed guest and is mended by starting it, never by a second reboot. One ensure at a
time works on a guest (flock on its directory). Nothing waits long: a guest that takes its time to shut down or to
release a NIC is reported by TryAgain and looked at again by the next ensure.

Power: a guest that switches itself off stays as a halted process and is listed "off"; a process that vanished while
it should run is "crashed"; a halted or crashed guest is started by ``ensure(power="on")``.
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
import shutil
import subprocess
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from msgspec import Struct

from nubila.core.ports import (
    Capabilities,
    GuestSpec,
    GuestState,
    HostPlace,
    ImageSource,
    Impossible,
    NeedsOperator,
    TryAgain,
)
from nubila.drivers import accel, configdrive, disks, processes, qemu_command, qemu_nics
from nubila.drivers.files import read_json, write_json
from nubila.drivers.qmp import Qmp, QmpError

PROCESS = "qemu"
_ID = re.compile(r"[0-9A-Za-z][0-9A-Za-z_-]{0,63}\Z")
_UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}\Z")
_DISK_NAME = re.compile(r"disk(\.(eph|swap|local)[0-9]*)?\Z")
_CONSOLE_LIMIT_BYTES = 8 * 1024 * 1024
_CONSOLE_KEPT_BYTES = 1024 * 1024
_POLL_S = 2.0  # the longest one ensure waits for a guest to shut down
_START_S = 15.0

Names = list[str]  # inside the class, ``list`` is the verb
Power = Literal["on", "off", "paused", "crashed"]


class Stamp(Struct, kw_only=True):
    """What has been done for a guest; its presence marks the directory as ours."""

    cloud: str
    epoch: int
    boots: int
    started: bool = False  # it should be running: set before QEMU starts
    stop_asked_at: float | None = None  # wall time of the first press of the power button


class QemuHypervisor:
    """The Hypervisor that runs real guests; needs root (taps, namespaces)."""

    def __init__(
        self,
        place: HostPlace,
        images: ImageSource,
        *,
        binary: str | None = None,
        stop_grace_s: float = 10.0,
    ) -> None:
        """``stop_grace_s``: how long a guest may take to shut down before it is switched off."""
        self.place = place
        self.stop_grace_s = stop_grace_s
        self.guests = place.root / "guests"
        self.guests.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.images = disks.BaseImages(place.root / "base", images)
        self._binary = binary

    # --- the protocol ---------------------------------------------------------------------------------------------

    def capabilities(self) -> Capabilities:
        """What this host has, with the acceleration a guest has proved to work."""
        binary = self._find_binary()
        space = os.statvfs(self.place.root)
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        return Capabilities(
            vcpus=len(os.sched_getaffinity(0)),
            ram_mb=memory // 1024**2,
            disk_gb=space.f_frsize * space.f_blocks // 1024**3,
            hypervisor_version=_version(binary),
            accel=accel.probe(binary, self.place.root),
            traits=(
                "COMPUTE_IMAGE_TYPE_ISO",
                "COMPUTE_IMAGE_TYPE_QCOW2",
                "COMPUTE_IMAGE_TYPE_RAW",
                "COMPUTE_IMAGE_TYPE_VHD",
                "COMPUTE_IMAGE_TYPE_VHDX",
                "COMPUTE_IMAGE_TYPE_VMDK",
                "COMPUTE_NET_ATTACH_INTERFACE",
                "COMPUTE_STORAGE_BUS_IDE",
                "COMPUTE_STORAGE_BUS_SCSI",
                "COMPUTE_STORAGE_BUS_VIRTIO",
            ),
        )

    def list(self) -> list[GuestState]:
        return [state for id in self._ids() if (state := self._state(id)) is not None]

    def ensure(self, spec: GuestSpec) -> GuestState:
        """Make the guest be as ``spec`` says, or say in one sentence why not yet (see the module)."""
        _check(spec)
        home = self._home(spec.id)
        home.mkdir(mode=0o700, exist_ok=True)
        try:
            self._ensure(home, spec)
        except FileNotFoundError as error:
            if home.exists():
                raise
            raise TryAgain(f"Guest {spec.id} was removed meanwhile ({error.strerror}).") from None
        state = self._state(spec.id)
        if state is None:
            raise TryAgain(f"Guest {spec.id} was removed meanwhile.")
        return state

    def remove(self, id: str) -> None:
        home = self._home(id)
        try:
            with _only_one(home):
                processes.kill(PROCESS, home)
                gone = self.guests / f".gone-{time.time_ns()}"
                os.rename(home, gone)
        except FileNotFoundError:
            return
        shutil.rmtree(gone, ignore_errors=True)

    def prune(self, keep: Iterable[str]) -> Names:
        lost = sorted(set(self._ids()) - set(keep))
        for id in lost:
            self.remove(id)
        for path in self.guests.glob(".gone-*"):
            shutil.rmtree(path, ignore_errors=True)
        specs = (read_json(self._home(id) / "spec.json", GuestSpec) for id in self._ids())
        self.images.prune(image for spec in specs if spec for image in disks.used_images(spec.disks))
        return lost

    def console_log(self, id: str, lines: int | None = None) -> str:
        """The tail of what the guest wrote to its first serial port, at most a megabyte; "" when there is none."""
        try:
            with open(self._home(id) / qemu_command.CONSOLE_LOG, "rb") as file:
                file.seek(max(0, file.seek(0, os.SEEK_END) - _CONSOLE_KEPT_BYTES))
                text = file.read().decode("utf-8", "replace")
        except FileNotFoundError:
            return ""
        if lines is None:
            return text
        parts = text.splitlines(keepends=True)
        return "".join(parts[len(parts) - min(lines, len(parts)) :])

    def destroy(self) -> None:
        """End and remove every guest, and the image cache."""
        self.prune(())
        shutil.rmtree(self.images.root, ignore_errors=True)

    # --- levels ---------------------------------------------------------------------------------------------------

    def _ensure(self, home: Path, spec: GuestSpec) -> None:
        with _only_one(home):
            stamp = read_json(home / "stamp.json", Stamp)
            if stamp is not None and spec.epoch < stamp.epoch:
                raise TryAgain(f"Epoch {spec.epoch} of guest {spec.id} is older than {stamp.epoch}, which is applied.")
            if stamp is None or stamp.epoch != spec.epoch:
                stamp = stamp or Stamp(cloud=self.place.cloud, epoch=spec.epoch, boots=spec.boots)
                stamp.epoch = spec.epoch
                write_json(home / "stamp.json", stamp)
            if read_json(home / "spec.json", GuestSpec) != spec:
                write_json(home / "spec.json", spec)
            if spec.power == "off":
                self._ensure_off(home, spec, stamp)
            else:
                self._ensure_on(home, spec, stamp)

    def _ensure_off(self, home: Path, spec: GuestSpec, stamp: Stamp) -> None:
        if processes.alive(PROCESS, home) is not None:
            self._shut_down(home, stamp, at_once=False)
        self._make_files(home, spec)
        if stamp.started or stamp.boots < spec.boots:
            stamp.started, stamp.boots = False, max(stamp.boots, spec.boots)
            write_json(home / "stamp.json", stamp)

    def _ensure_on(self, home: Path, spec: GuestSpec, stamp: Stamp) -> None:
        power, _ = self._power(home, stamp)
        if processes.alive(PROCESS, home) is not None:
            if power == "paused":
                self._resume(home)
            elif power != "on":
                processes.stop(PROCESS, home, 3.0)
            elif stamp.boots < spec.boots or stamp.stop_asked_at is not None:
                self._shut_down(home, stamp, at_once=spec.hard)
        if processes.alive(PROCESS, home) is None:
            self._start(home, spec, stamp)
        else:
            qemu_nics.ensure(home / qemu_command.QMP_SOCKET, spec.nics)

    def _make_files(self, home: Path, spec: GuestSpec) -> None:
        for disk in spec.disks:
            disks.ensure_disk(disk, home, self.images, running=False)
        drive = home / qemu_command.CONFIG_DRIVE
        if spec.config_drive is None:
            drive.unlink(missing_ok=True)
        else:
            made_from = home / "disk.config.json"
            if not drive.exists() or read_json(made_from, dict[str, str]) != spec.config_drive:
                configdrive.build(spec.config_drive, drive)
                write_json(made_from, spec.config_drive)

    def _start(self, home: Path, spec: GuestSpec, stamp: Stamp) -> None:
        self._make_files(home, spec)
        binary = self._find_binary()
        argv = qemu_command.command(binary, accel.probe(binary, self.place.root), spec, spec.config_drive is not None)
        stamp.started, stamp.stop_asked_at = True, None
        stamp.boots = max(stamp.boots, spec.boots)
        write_json(home / "stamp.json", stamp)
        for name in (qemu_command.QMP_SOCKET, qemu_command.CONSOLE_SOCKET):
            (home / name).unlink(missing_ok=True)
        _shorten(home / qemu_command.CONSOLE_LOG)
        log = home / "qemu.log"
        log.unlink(missing_ok=True)
        processes.start(PROCESS, argv, home, log=log, netns=self.place.namespace or None)
        deadline = time.monotonic() + _START_S
        while True:
            try:
                with Qmp(home / qemu_command.QMP_SOCKET, 5.0):
                    return
            except QmpError:
                if processes.alive(PROCESS, home) is None:
                    raise _start_error(log) from None
                if time.monotonic() > deadline:
                    processes.kill(PROCESS, home)
                    raise TryAgain(f"QEMU did not come up within {_START_S:.0f} s.") from None
            time.sleep(0.01)

    def _shut_down(self, home: Path, stamp: Stamp, *, at_once: bool) -> None:
        """End a running guest: power button, wait, then the plug. Raises TryAgain while the guest may still take."""
        if not at_once:
            self._press_power_button(home, stamp)
        processes.stop(PROCESS, home, 3.0)
        stamp.stop_asked_at = None

    def _press_power_button(self, home: Path, stamp: Stamp) -> None:
        now = time.time()
        if stamp.stop_asked_at is None or stamp.stop_asked_at > now:
            stamp.stop_asked_at = now
            write_json(home / "stamp.json", stamp)
        left_s = stamp.stop_asked_at + self.stop_grace_s - now
        if left_s <= 0:
            return
        try:
            with Qmp(home / qemu_command.QMP_SOCKET) as qmp:
                if qmp.execute("query-status")["status"] != "running":
                    return
                qmp.execute("system_powerdown")  # again at each call: a booting guest misses the first ones
                if qmp.wait_event(lambda event: event["event"] == "SHUTDOWN", min(_POLL_S, left_s)):
                    return
        except QmpError:
            if processes.alive(PROCESS, home) is None:
                return
        if time.time() - stamp.stop_asked_at < self.stop_grace_s:
            raise TryAgain(
                f"Waiting for the guest to shut down ({time.time() - stamp.stop_asked_at:.0f} s"
                f" of {self.stop_grace_s:.0f} s)."
            )

    def _resume(self, home: Path) -> None:
        try:
            with Qmp(home / qemu_command.QMP_SOCKET) as qmp:
                qmp.execute("cont")
        except QmpError as error:
            raise TryAgain(f"The guest is paused and does not continue: {error}") from None

    # --- what is --------------------------------------------------------------------------------------------------

    def _state(self, id: str) -> GuestState | None:
        home = self._home(id)
        stamp = read_json(home / "stamp.json", Stamp)
        if stamp is None or stamp.cloud != self.place.cloud:
            return None
        power, fault = self._power(home, stamp)
        pid = processes.alive(PROCESS, home)
        nics: tuple[str, ...] = ()
        if pid is not None and power in ("on", "paused"):
            nics = qemu_nics.plugged(home / qemu_command.QMP_SOCKET)
            if _too_long(home / qemu_command.CONSOLE_LOG):
                _shorten(home / qemu_command.CONSOLE_LOG)
        elif pid is None:
            spec = read_json(home / "spec.json", GuestSpec)
            nics = tuple(nic.port_id for nic in spec.nics) if spec else ()
        return GuestState(id=id, power=power, boots=stamp.boots, epoch=stamp.epoch, pid=pid, nics=nics, fault=fault)

    def _power(self, home: Path, stamp: Stamp) -> tuple[Power, str]:
        if processes.alive(PROCESS, home) is None:
            return ("crashed", "The guest's QEMU process has ended unexpectedly.") if stamp.started else ("off", "")
        try:
            with Qmp(home / qemu_command.QMP_SOCKET, 2.0) as qmp:
                status = qmp.execute("query-status")["status"]
        except QmpError as error:
            if processes.alive(PROCESS, home) is None:
                return "crashed", "The guest's QEMU process has ended unexpectedly."
            return "on", "" if "does not answer" in str(error) else str(error)
        if status in ("running", "prelaunch", "debug", "inmigrate", "postmigrate", "finish-migrate"):
            return "on", ""
        if status == "shutdown":
            return "off", "The guest powered itself off."
        if status == "internal-error":
            return "crashed", "QEMU stopped the guest after an internal error."
        return "paused", f"The guest is stopped: {status}."

    def _home(self, id: str) -> Path:
        if not _ID.match(id):
            raise Impossible(f"{id!r} is not a guest id.")
        return self.guests / id

    def _ids(self) -> Names:
        return sorted(name for name in os.listdir(self.guests) if _ID.match(name))

    def _find_binary(self) -> str:
        binary = self._binary or shutil.which("qemu-system-x86_64")
        if binary is None:
            raise NeedsOperator("qemu-system-x86_64 is not installed on this host (package qemu-system-x86).")
        return binary


def _check(spec: GuestSpec) -> None:
    """Names that become paths or firmware fields must be plain."""
    if not _UUID.match(spec.id):
        raise Impossible(f"{spec.id!r} is not a server's UUID.")
    for disk in spec.disks:
        if not _DISK_NAME.match(disk.name) or not _ID.match(disk.image_id or "none"):
            raise Impossible(f"{disk.name!r} of image {disk.image_id!r} is not a disk this host can make.")


@contextmanager
def _only_one(home: Path) -> Iterator[None]:
    """Hold the guest's directory; FileNotFoundError when it is or goes away."""
    handle = os.open(home, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        if not os.path.samestat(os.fstat(handle), os.stat(home)):
            raise FileNotFoundError(errno.ENOENT, "replaced", str(home))
        yield
    finally:
        os.close(handle)


def _too_long(path: Path) -> bool:
    try:
        return path.stat().st_size > _CONSOLE_LIMIT_BYTES
    except FileNotFoundError:
        return False


def _shorten(path: Path) -> None:
    """Keep the end of an overlong console log; QEMU appends, so it goes on behind what is left."""
    if not _too_long(path):
        return
    with open(path, "r+b") as file:
        file.seek(-_CONSOLE_KEPT_BYTES, os.SEEK_END)
        tail = file.read()
        file.seek(0)
        file.write(tail)
        file.truncate()


def _start_error(log: Path) -> TryAgain | NeedsOperator:
    lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()] if log.exists() else []
    last = re.sub(r"^\S+Z ", "", lines[-1]).removeprefix("qemu-system-x86_64: ") if lines else "it left no message"
    if "No space left" in last:
        return NeedsOperator(f"QEMU does not start: {last}")
    return TryAgain(f"QEMU does not start: {last}")


def _version(binary: str) -> int:
    """7002022 for "QEMU emulator version 7.2.22 (Debian ...)"."""
    done = subprocess.run([binary, "--version"], capture_output=True, text=True, timeout=10)
    found = re.search(r"version (\d+)\.(\d+)\.(\d+)", done.stdout)
    return int(found[1]) * 1_000_000 + int(found[2]) * 1000 + int(found[3]) if found else 0
