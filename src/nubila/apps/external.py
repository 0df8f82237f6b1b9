"""Which addresses a new cloud's first external network gets, when nobody said.

The first of 172.24.4.0/24 ... 172.24.99.0/24 that this machine has no route to and no other cloud of this machine has
taken. A cloud's claim is a link in /run/nubila/external to its state directory, so that two clouds brought up at the
same moment differ; one whose directory is gone counts no more.
"""

from __future__ import annotations

import contextlib
import ipaddress
import os
import socket
import struct
from collections.abc import Iterable
from pathlib import Path

CLAIMS = Path("/run/nubila/external")
CANDIDATES = tuple(ipaddress.IPv4Network(f"172.24.{n}.0/24") for n in range(4, 100))


def routes(table: Path = Path("/proc/net/route")) -> list[ipaddress.IPv4Network]:
    """Where this machine can send packets to, but for the default route."""
    found = []
    for line in table.read_text().splitlines()[1:]:
        words = line.split()
        address, mask = (socket.inet_ntoa(struct.pack("=I", int(words[n], 16))) for n in (1, 7))
        if mask != "0.0.0.0":
            found.append(ipaddress.IPv4Network(f"{address}/{mask}", strict=False))
    return found


def claim(state: Path, claims: Path = CLAIMS, taken: Iterable[ipaddress.IPv4Network] | None = None) -> str:
    """The CIDR for this cloud, claimed; "" when all are taken."""
    taken = list(routes() if taken is None else taken)
    claims.mkdir(mode=0o700, parents=True, exist_ok=True)
    for network in CANDIDATES:
        if any(network.overlaps(other) for other in taken):
            continue
        link = claims / str(network.network_address)
        with contextlib.suppress(OSError):
            if not Path(os.readlink(link)).exists():
                link.unlink()
        with contextlib.suppress(FileExistsError):
            link.symlink_to(state.absolute())
        if os.readlink(link) == str(state.absolute()):
            return str(network)
    return ""


def release(state: Path, claims: Path = CLAIMS) -> None:
    """Give back what a cloud has claimed; absent is success."""
    if not claims.is_dir():
        return
    for link in claims.iterdir():
        with contextlib.suppress(OSError):
            if os.readlink(link) == str(state.absolute()):
                link.unlink()
    for directory in (claims, claims.parent):
        with contextlib.suppress(OSError):  # others are in it
            directory.rmdir()
