"""Disks of guests: qcow2 overlays on cached, inspected base images.

``<root>/base/<image>`` holds an image as it was uploaded, read-only, checksum verified and inspected (core/imagefile)
before any image tool sees it. A guest's disk is an overlay that names its base by a relative path, so the state
directory can be moved. qemu-img runs with explicit formats, in a memory and CPU limit, with a timeout. Every file is
made beside its final name and renamed: a disk that exists is complete.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import subprocess
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from nubila.core.imagefile import UnsafeImage, inspect
from nubila.core.ports import DiskSpec, DriverError, ImageSource, Impossible, NeedsOperator, TryAgain

GIB = 1024**3
_KEEP_UNUSED_S = 24 * 3600.0
_QEMU_FORMATS = {"vhd": "vpc", "iso": "raw", "ami": "raw", "aki": "raw", "ari": "raw"}
_LIMITS = ("prlimit", f"--as={2 * GIB}", "--cpu=60", "--")


class BaseImages:
    """The cache of base images of one host."""

    def __init__(self, root: Path, source: ImageSource) -> None:
        self.root, self.source = root, source
        root.mkdir(mode=0o700, parents=True, exist_ok=True)

    def get(self, disk: DiskSpec) -> tuple[Path, int]:
        """The path and virtual size in bytes of a disk's base image, fetched first if need be.

        Raises Impossible for an image that is unsafe or not of its declared format, TryAgain when it cannot be had.
        """
        assert disk.image_id is not None
        path = self.root / disk.image_id
        if not path.exists():
            with _locked(self.root / f".{disk.image_id}.lock"):
                if not path.exists():
                    self._fetch(disk, path)
        os.utime(path)
        try:
            return path, inspect(path, disk.image_format).virtual_size_bytes
        except UnsafeImage as refusal:
            raise Impossible(str(refusal)) from None

    def prune(self, used: Iterable[str]) -> None:
        """Drop base images that no guest uses and nobody asked for within a day."""
        keep, now = set(used), time.time()
        for path in self.root.iterdir():
            image = path.name.removeprefix(".").removesuffix(".lock").removesuffix(".part")
            if image not in keep and now - path.stat().st_mtime > _KEEP_UNUSED_S:
                path.unlink(missing_ok=True)

    def _fetch(self, disk: DiskSpec, path: Path) -> None:
        assert disk.image_id is not None
        part = path.with_name(f".{path.name}.part")
        part.unlink(missing_ok=True)
        try:
            self.source(disk.image_id, part)
            if disk.image_checksum:
                with open(part, "rb") as file:
                    seen = hashlib.file_digest(file, "sha512").hexdigest()
                if seen != disk.image_checksum:
                    raise TryAgain(f"The bytes of image {disk.image_id} arrived damaged (sha512 differs).")
            inspect(part, disk.image_format)
            os.chmod(part, 0o400)
            os.replace(part, path)
        except UnsafeImage as refusal:
            part.unlink(missing_ok=True)
            raise Impossible(str(refusal)) from None
        except DriverError:
            part.unlink(missing_ok=True)
            raise
        except OSError as error:
            part.unlink(missing_ok=True)
            raise _disk_error(f"Image {disk.image_id} cannot be fetched: {error}.") from None


def ensure_disk(disk: DiskSpec, folder: Path, images: BaseImages, *, running: bool) -> None:
    """Make ``<folder>/<disk.name>`` exist with at least its wanted size; grown only while the guest is off."""
    path = folder / disk.name
    if path.exists():
        if not running and disk.name == "disk" and _overlay_size(path) < disk.size_gb * GIB:
            _run("qemu-img", "resize", "-q", "-f", "qcow2", disk.name, str(disk.size_gb * GIB), cwd=folder)
        return
    part = folder / f".{disk.name}.part"
    part.unlink(missing_ok=True)
    if disk.image_id is None:
        _make_empty(disk, part)
    else:
        base, virtual = images.get(disk)
        size = disk.size_gb * GIB or virtual
        if size < virtual:
            raise Impossible(
                f"The image needs a disk of {-(-virtual // GIB)} GiB, but the flavor gives {disk.size_gb} GiB."
            )
        kind = _QEMU_FORMATS.get(disk.image_format, disk.image_format)
        backing = os.path.relpath(base, folder)
        _run("qemu-img", "create", "-q", "-f", "qcow2", "-F", kind, "-b", backing, part.name, str(size), cwd=folder)
    os.chmod(part, 0o600)
    os.replace(part, path)


def disk_format(disk: DiskSpec) -> str:
    """How QEMU must open the disk: overlays are qcow2, ephemeral and swap disks raw."""
    return "raw" if disk.image_id is None and disk.name != "disk" else "qcow2"


def _make_empty(disk: DiskSpec, part: Path) -> None:
    size = disk.size_gb * GIB
    if disk_format(disk) == "qcow2":
        _run("qemu-img", "create", "-q", "-f", "qcow2", part.name, str(max(size, 1 << 20)), cwd=part.parent)
        return
    with open(part, "wb") as file:
        file.truncate(size)
    if disk.name.startswith("disk.swap"):
        _run("mkswap", part.name, cwd=part.parent)
    elif disk.name.startswith("disk.eph"):
        label = "ephemeral" + disk.name.removeprefix("disk.eph")
        _run("mkfs.ext4", "-q", "-F", "-L", label, part.name, cwd=part.parent)


def _overlay_size(path: Path) -> int:
    """Virtual size of a qcow2 file of ours: a big-endian number at byte 24."""
    with open(path, "rb") as file:
        head = file.read(32)
    return int.from_bytes(head[24:32], "big") if head[:4] == b"QFI\xfb" else path.stat().st_size


def _run(*command: str, cwd: Path, timeout_s: float = 120.0) -> None:
    try:
        done = subprocess.run(
            [*_LIMITS, *command], cwd=cwd, capture_output=True, text=True, timeout=timeout_s, stdin=subprocess.DEVNULL
        )
    except subprocess.TimeoutExpired:
        raise TryAgain(f"{command[0]} took more than {timeout_s:.0f} s.") from None
    except FileNotFoundError as error:
        raise NeedsOperator(f"The program {error.filename} is not installed on this host.") from None
    if done.returncode:
        words = done.stderr.strip().splitlines()
        raise _disk_error(f"{command[0]} failed: {words[-1] if words else done.returncode}.")


def _disk_error(text: str) -> DriverError:
    full = "No space left" in text or "Disk quota" in text
    return NeedsOperator(f"The host's disk is full: {text}") if full else TryAgain(text)


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def used_images(disks: Sequence[DiskSpec]) -> set[str]:
    """The base images these disks stand on."""
    return {disk.image_id for disk in disks if disk.image_id is not None}
