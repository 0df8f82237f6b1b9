"""Config drives: a small read-only CD labelled ``config-2`` (OpenStack's config drive, version 2).

ISO 9660 with Joliet and Rock Ridge by genisoimage, xorriso or mkisofs, whichever the host has; else a VFAT image by
mkfs.vfat and mtools. Contents may hold passwords: files are 0600 and never named on a command line.
"""

from __future__ import annotations

import base64
import binascii
import os
import shutil
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path, PurePosixPath

from nubila.core.ports import Impossible, NeedsOperator, TryAgain

LABEL = "config-2"
_VFAT_KIB = 64 * 1024


def build(contents: Mapping[str, str], out: Path, timeout_s: float = 30.0) -> None:
    """Write the drive to ``out`` (replaced atomically).

    ``contents`` maps paths inside the drive to texts; a text that starts with ``base64:`` is decoded. Raises
    Impossible for a path that leaves the drive or broken base64, NeedsOperator when no tool is installed.
    """
    with tempfile.TemporaryDirectory(prefix=".config-", dir=out.parent) as scratch:
        tree = Path(scratch, "tree")
        tree.mkdir()
        for name, text in contents.items():
            _write(tree, name, text)
        part = Path(scratch, "drive")
        for command in _commands(tree, part):
            try:
                done = subprocess.run(command, capture_output=True, text=True, timeout=timeout_s, cwd=scratch)
            except subprocess.TimeoutExpired:
                raise TryAgain(f"{command[0]} took more than {timeout_s:.0f} s to make a config drive.") from None
            if done.returncode:
                raise TryAgain(f"{command[0]} could not make a config drive: {done.stderr.strip()[-200:]}.")
        os.chmod(part, 0o600)
        os.replace(part, out)


def _write(tree: Path, name: str, text: str) -> None:
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or not path.parts:
        raise Impossible(f"The config drive cannot hold the path {name!r}.")
    try:
        data = base64.b64decode(text[7:], validate=True) if text.startswith("base64:") else text.encode()
    except binascii.Error:
        raise Impossible(f"The config drive's {name} is not valid base64.") from None
    target = tree.joinpath(*path.parts)
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(data)


def _commands(tree: Path, part: Path) -> list[list[str]]:
    iso = ["-quiet", "-J", "-joliet-long", "-r", "-V", LABEL, "-o", part.name, tree.name]
    for tool in (["genisoimage"], ["mkisofs"], ["xorriso", "-as", "mkisofs"]):
        if shutil.which(tool[0]):
            return [[*tool, *iso]]
    if shutil.which("mkfs.vfat") and shutil.which("mcopy"):
        entries = sorted(f"{tree.name}/{entry.name}" for entry in tree.iterdir())
        return [
            ["mkfs.vfat", "-C", "-n", LABEL, part.name, str(_VFAT_KIB)],
            ["mcopy", "-s", "-Q", "-i", part.name, *entries, "::"],
        ]
    raise NeedsOperator("Install genisoimage (or xorriso, or dosfstools and mtools): config drives need it.")
