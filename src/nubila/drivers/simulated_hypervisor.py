"""A hypervisor that runs nothing: same protocol, same answers, no root, well under a millisecond a call.

One JSON file per guest under ``<root>/guests``, replaced by rename, so the "guests" survive ``kill -9`` of the agent
as real ones do. ``<root>/behaviours.json`` (optional, read anew when it changes) makes it slow or makes it fail:

    {"boot_s": 2.0,                    seconds until the console shows the login prompt
     "delay_s": {"create": 0.5},       seconds an operation blocks: create start stop reboot plug remove
     "fail": {"create": 1, "stop": -1}, how many of the next calls fail; -1 = all
     "fail_as": "again",               again | operator | impossible
     "capabilities": {"vcpus": 64}}    overrides of what the host offers
"""

from __future__ import annotations

import os
import re
import shutil
import time
from collections.abc import Iterable
from pathlib import Path

import msgspec
from msgspec import Struct, field

from nubila.core.ports import (
    Capabilities,
    GuestSpec,
    GuestState,
    HostPlace,
    Impossible,
    NeedsOperator,
    TryAgain,
)
from nubila.drivers.files import read_json, write_json

_ID = re.compile(r"[0-9A-Za-z][0-9A-Za-z._-]{0,63}\Z")
_KEPT_BOOTS = 8
_Names = list[str]  # inside the class, ``list`` is the verb
_KINDS = {"again": TryAgain, "operator": NeedsOperator, "impossible": Impossible}


class Behaviours(Struct, frozen=True, kw_only=True):
    """What ``behaviours.json`` may say."""

    boot_s: float = 0.0
    delay_s: dict[str, float] = field(default_factory=dict)
    fail: dict[str, int] = field(default_factory=dict)
    fail_as: str = "again"
    capabilities: dict[str, int] = field(default_factory=dict)
    prefixes: dict[str, str] = field(default_factory=dict)


class _Guest(Struct, kw_only=True):
    """The file of one guest."""

    cloud: str
    spec: GuestSpec
    power: str  # on | off | crashed
    boots: int
    epoch: int
    nics: list[str]
    booted_at: list[float] = field(default_factory=list)  # wall time of the last boots
    fault: str = ""


class SimulatedHypervisor:
    """The Hypervisor of the simulated gear; see the module for its behaviours."""

    def __init__(self, place: HostPlace) -> None:
        self.place = place
        self.guests = place.root / "guests"
        self.guests.mkdir(mode=0o700, parents=True, exist_ok=True)

    def capabilities(self) -> Capabilities:
        """A roomy host, unless behaviours.json says otherwise."""
        told = self._behaviours().capabilities
        return Capabilities(
            vcpus=told.get("vcpus", 64),
            ram_mb=told.get("ram_mb", 262144),
            disk_gb=told.get("disk_gb", 4096),
            hypervisor_version=7002000,
            accel="simulated",
            traits=("COMPUTE_NODE", "COMPUTE_NET_ATTACH_INTERFACE", "COMPUTE_IMAGE_TYPE_QCOW2"),
        )

    def list(self) -> list[GuestState]:
        self._maybe_fail("list")
        found = (self._read(id) for id in self._ids())
        return [_state(guest) for guest in found if guest is not None]

    def ensure(self, spec: GuestSpec) -> GuestState:
        """Make the guest be as ``spec`` says; raises what behaviours.json asks for, TryAgain for an old epoch."""
        path = self._path(spec.id)
        guest = read_json(path, _Guest)
        if guest is not None and spec.epoch < guest.epoch:
            raise TryAgain(f"Epoch {spec.epoch} of guest {spec.id} is older than {guest.epoch}, which is applied.")
        before = msgspec.json.encode(guest)
        if guest is None:
            self._step("create")
            guest = _Guest(cloud=self.place.cloud, spec=spec, power="off", boots=spec.boots, epoch=spec.epoch, nics=[])
            write_json(path, guest, sync=False)
        guest.epoch = spec.epoch
        guest.spec = spec
        self._apply_power(guest, spec)
        wanted = [nic.port_id for nic in spec.nics]
        if guest.nics != wanted:
            if guest.power == "on":
                self._step("plug")
            guest.nics = wanted
        if msgspec.json.encode(guest) != before:
            write_json(path, guest, sync=False)
        return _state(guest)

    def remove(self, id: str) -> None:
        path = self._path(id)
        if path.exists():
            self._step("remove")
        path.unlink(missing_ok=True)

    def prune(self, keep: Iterable[str]) -> _Names:
        gone = sorted(set(self._ids()) - set(keep))
        for id in gone:
            self.remove(id)
        return gone

    def console_log(self, id: str, lines: int | None = None) -> str:
        """A plausible boot log with a login prompt once ``boot_s`` has passed; "" for a guest that is not here."""
        guest = self._read(id)
        if guest is None:
            return ""
        boot_s = self._behaviours().boot_s
        text: _Names = []
        for booted_at in guest.booted_at:
            text += _boot_log(guest.spec, boot_s, time.time() - booted_at)
        kept = text if lines is None else text[len(text) - min(lines, len(text)) :]
        return "\n".join(kept) + ("\n" if kept and not kept[-1].endswith("login: ") else "")

    def destroy(self) -> None:
        """Remove every trace of the simulated guests."""
        shutil.rmtree(self.guests, ignore_errors=True)

    def crash(self, id: str) -> None:
        """Pretend the guest's process died (for tests)."""
        self._become(id, "crashed", "The guest's process has died.")

    def halt(self, id: str) -> None:
        """Pretend the guest powered itself off (for tests)."""
        self._become(id, "off", "The guest powered itself off.")

    # --- inside ---------------------------------------------------------------------------------------------------

    def _apply_power(self, guest: _Guest, spec: GuestSpec) -> None:
        if spec.power == "off":
            if guest.power == "on":
                self._step("stop")
            guest.power = "off"
        elif guest.power != "on":
            self._step("start")
            guest.power = "on"
            guest.booted_at = [*guest.booted_at, time.time()][-_KEPT_BOOTS:]
        elif spec.boots > guest.boots:
            self._step("reboot")
            guest.booted_at = [*guest.booted_at, time.time()][-_KEPT_BOOTS:]
        guest.fault = ""
        guest.boots = max(guest.boots, spec.boots)

    def _become(self, id: str, power: str, fault: str) -> None:
        guest = self._read(id)
        if guest is not None:
            guest.power, guest.fault = power, fault
            write_json(self._path(id), guest, sync=False)

    def _path(self, id: str) -> Path:
        if not _ID.match(id):
            raise Impossible(f"{id!r} is not a guest id.")
        return self.guests / f"{id}.json"

    def _read(self, id: str) -> _Guest | None:
        return read_json(self._path(id), _Guest)

    def _ids(self) -> _Names:
        return sorted(name[:-5] for name in os.listdir(self.guests) if name.endswith(".json") and name[0] != ".")

    def _behaviours(self) -> Behaviours:
        return read_json(self.place.root / "behaviours.json", Behaviours) or Behaviours()

    def _step(self, operation: str) -> None:
        delay_s = self._behaviours().delay_s.get(operation, 0.0)
        if delay_s:
            time.sleep(delay_s)
        self._maybe_fail(operation)

    def _maybe_fail(self, operation: str) -> None:
        behaviours = self._behaviours()
        left = behaviours.fail.get(operation, 0)
        if not left:
            return
        if left > 0:
            rest = {**behaviours.fail, operation: left - 1}
            write_json(self.place.root / "behaviours.json", msgspec.structs.replace(behaviours, fail=rest), sync=False)
        raise _KINDS.get(behaviours.fail_as, TryAgain)(f"The simulated host was told to fail at {operation}.")


def _state(guest: _Guest) -> GuestState:
    return GuestState(
        id=guest.spec.id,
        power="crashed" if guest.power == "crashed" else "on" if guest.power == "on" else "off",
        boots=guest.boots,
        epoch=guest.epoch,
        nics=tuple(guest.nics),
        fault=guest.fault,
    )


def _boot_log(spec: GuestSpec, boot_s: float, elapsed_s: float) -> list[str]:
    """What a small Linux guest would have printed ``elapsed_s`` seconds after power-on."""
    name = re.sub(r"[^0-9A-Za-z-]+", "-", spec.display_name).strip("-").lower() or "guest"
    parts = [
        "Linux version 6.1.0-cloud-amd64 (simulated) #1 SMP PREEMPT_DYNAMIC",
        "Command line: console=ttyS0",
        f"Memory: {spec.ram_mb * 1024}K/{spec.ram_mb * 1024}K available",
        f"smp: Brought up 1 node, {spec.vcpus} CPU{'s' if spec.vcpus > 1 else ''}",
        *(f"virtio_blk virtio{n}: [vd{chr(97 + n)}] {disk.size_gb} GiB" for n, disk in enumerate(spec.disks)),
        *(f"virtio_net: eth{n}: {nic.mac} mtu {nic.mtu}" for n, nic in enumerate(spec.nics)),
        "Run /init as init process",
        *(f"udhcpc: eth{n}: lease obtained" for n in range(len(spec.nics))),
        f"metadata: instance {spec.id}, hostname {name}",
        "sshd: listening on port 22",
    ]
    each_s = boot_s / (len(parts) + 1)
    log = [f"[{index * each_s:12.6f}] {text}" for index, text in enumerate(parts, 1) if index * each_s <= elapsed_s]
    return [*log, "", f"{name} login: "] if elapsed_s >= boot_s else log
