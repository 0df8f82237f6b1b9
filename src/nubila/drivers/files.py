"""Small files that are either the old or the new version, never half of one."""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import TypeVar

import msgspec

T = TypeVar("T")


def write_atomic(path: Path, data: bytes, *, mode: int = 0o600, sync: bool = True) -> None:
    """Replace ``path`` by ``data``: write beside it, flush, rename.

    ``sync=False`` survives the death of this process but not a power cut; it is for simulated things only.
    """
    beside = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}")
    handle = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, mode)
    try:
        with open(handle, "wb") as file:
            file.write(data)
            if sync:
                file.flush()
                os.fsync(handle)
        os.replace(beside, path)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise


def write_json(path: Path, value: object, *, mode: int = 0o600, sync: bool = True) -> None:
    """Replace ``path`` by ``value`` as JSON."""
    write_atomic(path, msgspec.json.encode(value), mode=mode, sync=sync)


def read_json(path: Path, type: type[T]) -> T | None:
    """The value kept in ``path``; None when absent or not of that type (a file from a newer or broken version)."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=type)
    except (FileNotFoundError, NotADirectoryError, msgspec.DecodeError):
        return None
