"""Can this host really run guests with KVM?

/dev/kvm may exist, open and answer while no ordinary guest can run (nested and para-virtualised hosts), and libvirt's
capabilities repeat the lie. So a guest decides: a boot sector of ten bytes that switches its own machine off. The
verdict is kept in ``<root>/accel.json`` until the host reboots or QEMU changes.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from msgspec import Struct

from nubila.drivers.files import read_json, write_json

_TIMEOUT_S = 3.0
_EXIT_CODE = 0x10 << 1 | 1  # what isa-debug-exit makes of the value written
# cli; mov dx, 0x501; mov al, 0x10; out dx, al; hlt; jmp back to hlt
_BOOT_SECTOR = bytes.fromhex("fa ba0105 b010 ee f4 ebfd").ljust(510, b"\0") + b"\x55\xaa"


class _Verdict(Struct, frozen=True):
    accel: str
    boot_id: str
    qemu: str


def probe(binary: str, root: Path) -> str:
    """ "kvm" when a guest ran to its end under KVM within three seconds, else "tcg"."""
    boot_id = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    stat = os.stat(binary)
    qemu = f"{binary} {stat.st_size} {stat.st_mtime_ns}"
    kept = read_json(root / "accel.json", _Verdict)
    if kept is not None and (kept.boot_id, kept.qemu) == (boot_id, qemu):
        return kept.accel
    verdict = _Verdict("kvm" if _runs(binary, root, "kvm", "host") else "tcg", boot_id, qemu)
    write_json(root / "accel.json", verdict)
    return verdict.accel


def _runs(binary: str, root: Path, accel: str, cpu: str) -> bool:
    """Whether the boot sector ends its machine with our exit code in time."""
    if accel == "kvm" and not os.access("/dev/kvm", os.R_OK | os.W_OK):
        return False
    disk = root / f".probe-{os.getpid()}.img"
    disk.write_bytes(_BOOT_SECTOR.ljust(1 << 20, b"\0"))
    command = [binary, "-machine", "pc", "-accel", accel, "-cpu", cpu, "-m", "32", "-nodefaults", "-no-user-config"]
    command += ["-display", "none", "-device", "isa-debug-exit,iobase=0x501,iosize=2", "-no-reboot"]
    command += ["-drive", f"file={disk.name},format=raw,if=ide,read-only=off"]
    try:
        done = subprocess.run(command, capture_output=True, timeout=_TIMEOUT_S, stdin=subprocess.DEVNULL, cwd=root)
        return done.returncode == _EXIT_CODE
    except subprocess.TimeoutExpired:
        return False
    finally:
        disk.unlink(missing_ok=True)
