"""The image store: one file per image, named by its id, in a directory of the cloud's state.

An upload writes to a name of its own (``.<id>.<token>``) and is renamed when its row says so, in one transaction: a
file under an image's id is always complete. Whatever lies about without a reason is swept (reconcile.py).
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import IO, TYPE_CHECKING

if TYPE_CHECKING:
    from nubila.core.cloud import Cloud

CHUNK_BYTES = 1 << 20
_TEMP = re.compile(r"\.([0-9a-fA-F-]{36})\.[0-9a-z]+")
_DONE = re.compile(r"[0-9a-fA-F-]{36}")


def directory(cloud: Cloud) -> Path:
    """Where the files are; made when it is not there."""
    path = cloud.state / "images"
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    return path


def path_of(cloud: Cloud, image_id: str) -> Path:
    """The file of an active image. Raises ValueError for what is no image id."""
    if not _DONE.fullmatch(image_id):
        raise ValueError(f"{image_id!r} is not an image id")
    return cloud.state / "images" / image_id


def staged_path(cloud: Cloud, image_id: str, token: str) -> Path:
    """Where the upload ``token`` writes."""
    return cloud.state / "images" / f".{image_id}.{token}"


def found(cloud: Cloud) -> dict[str, list[Path]]:
    """Image id -> files of it, finished or not."""
    out: dict[str, list[Path]] = {}
    with contextlib.suppress(FileNotFoundError):
        for path in (cloud.state / "images").iterdir():
            temp = _TEMP.fullmatch(path.name)
            if temp or _DONE.fullmatch(path.name):
                out.setdefault(temp[1] if temp else path.name, []).append(path)
    return out


def of_image(cloud: Cloud, image_id: str) -> list[Path]:
    """All files of one image, finished or not."""
    folder = cloud.state / "images"
    return [p for p in (folder / image_id, *folder.glob(f".{image_id}.*")) if p.exists()]


def remove(path: Path) -> None:
    """Delete a file; absent is fine."""
    path.unlink(missing_ok=True)


def publish(temp: Path, final: Path) -> None:
    """Give a finished file its name, durably."""
    os.replace(temp, final)
    folder = os.open(final.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


class Sink:
    """A file being written, hashed on the way. All methods block: call them in a worker thread."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.size = 0
        self._md5 = hashlib.md5(usedforsecurity=False)
        self._sha512 = hashlib.sha512()
        self._file = os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb", buffering=0)

    def write(self, data: bytes | bytearray) -> None:
        """Add bytes. OSError when the disk is full."""
        view = memoryview(data)
        while view:
            view = view[self._file.write(view) :]
        self._md5.update(data)
        self._sha512.update(data)
        self.size += len(data)

    def finish(self) -> tuple[str, str]:
        """Make the file durable; returns (MD5, SHA-512)."""
        os.fsync(self._file.fileno())
        self._file.close()
        return self._md5.hexdigest(), self._sha512.hexdigest()

    def discard(self) -> None:
        """Close and delete."""
        with contextlib.suppress(OSError):
            self._file.close()
        remove(self.path)


def pieces(file: IO[bytes], start: int, length: int) -> Iterator[bytes]:
    """The bytes of an open file from ``start`` on, piece by piece; closes it."""
    with file:
        file.seek(start)
        while length > 0:
            data = file.read(min(CHUNK_BYTES, length))
            if not data:
                return
            length -= len(data)
            yield data
