"""The Linux bridge switch's nftables on one host: what each thing adds, kept on disk, loaded piece by piece.

Every part (a network, a port, a group, an address set) is a script that adds it and one that takes it away again. The
parts that are loaded lie in ``<root>/switch-rules``; a change is one transaction that takes the old part away and adds
the new one. When the tables are missing (a reboot, ``nft flush ruleset``) or are not what the files say, everything is
loaded again from the files in one transaction, so there is no moment in which a guest is unfiltered.
"""

from __future__ import annotations

import os
import socket
import struct
from pathlib import Path

from nubila.core.ports import HostPlace, NeedsOperator, TryAgain
from nubila.drivers import bridge_rules, links, nft, programs
from nubila.drivers.bridge_rules import Part
from nubila.drivers.files import read_json, write_json

_INET, _BRIDGE = 1, 7  # NFPROTO_INET, NFPROTO_BRIDGE
_NETLINK_NETFILTER, _GET_TABLE, _ERROR = 12, 10 << 8 | 1, 2  # NFNL_SUBSYS_NFTABLES, NFT_MSG_GETTABLE; NLMSG_ERROR
_ORDER = ("set", "group", "network", "pvlan", "talk", "localip", "port")  # as they are loaded


class Tables:
    """The two tables of one place."""

    def __init__(self, place: HostPlace) -> None:
        self.place = place
        self.name = nft.host_table_name(place.cloud).replace("nubila-", "linuxbridge-", 1)
        self._dir = place.root / "switch-rules"

    def kept(self, kind: str, id: str) -> Part | None:
        """What is loaded of one thing."""
        return read_json(self._path(kind, id), Part)

    def ids(self, kind: str) -> list[str]:
        """Every thing of a kind that has a part."""
        return sorted(path.stem.partition("-")[2] for path in self._dir.glob(f"{kind}-*.json"))

    def put(self, kind: str, id: str, part: Part) -> None:
        """Have one thing as it is now; nothing happens when it is so already."""
        old = self.kept(kind, id)
        if old == part:
            return
        self._dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        try:
            self._load((old.remove if old else "") + part.add)
        except TryAgain:
            write_json(self._path(kind, id), part, sync=False)
            self.load_all()
            return
        write_json(self._path(kind, id), part, sync=False)

    def drop(self, kind: str, id: str, also: str = "") -> None:
        """Take one thing away; absent is success. ``also`` may fail: what is still referred to stays."""
        old = self.kept(kind, id)
        if old is not None:
            try:
                self._load(old.remove)
                self._path(kind, id).unlink(missing_ok=True)
            except TryAgain:
                self._path(kind, id).unlink(missing_ok=True)
                self.load_all()
        for line in also.splitlines():
            try:
                self._load(line)
            except TryAgain:
                continue

    def load_all(self) -> None:
        """Make both tables exactly what the files say, in one transaction."""
        parts = [self.kept(kind, id) for kind in _ORDER for id in self.ids(kind)]
        self._load(bridge_rules.skeleton(self.name) + "".join(part.add for part in parts if part), timeout_s=60)

    def present(self) -> bool:
        """Whether both tables are there; asked of the kernel, since nft reads every rule to list tables."""
        with links.entered(self.place.namespace):
            return all(_has_table(family, self.name) for family in (_BRIDGE, _INET))

    def remove(self) -> None:
        """Delete both tables and forget everything."""
        with links.entered(self.place.namespace):
            for family in ("bridge", "inet"):
                nft.remove_table(family, self.name)
        for path in self._dir.glob("*"):
            path.unlink()
        if self._dir.is_dir():
            self._dir.rmdir()

    def check_kernel(self) -> None:
        """Raise NeedsOperator when bridged packets cannot pass the inet tables on this kernel."""
        if not Path("/proc/sys/net/bridge").is_dir():
            programs.run(["modprobe", "br_netfilter"], package="kmod", check=False)
        if not Path("/proc/sys/net/bridge").is_dir():
            raise NeedsOperator(
                "The Linux bridge switch needs br_netfilter (CONFIG_BRIDGE_NETFILTER): this kernel has none."
            )

    def forget_connections(self, zone: int, address: str) -> None:
        """End the tracked connections of an address in one network: whoever has it now has none yet."""
        family = "ipv6" if ":" in address else "ipv4"
        with links.entered(self.place.namespace):
            for side in ("--orig-src", "--orig-dst"):
                argv = ["conntrack", "-D", "-f", family, "-w", str(zone), side, address]  # fails when there is none
                programs.run(argv, package="conntrack", timeout_s=5, check=False)

    def _path(self, kind: str, id: str) -> Path:
        return self._dir / f"{kind}-{id}.json"

    def _load(self, script: str, timeout_s: float = 20) -> None:
        if script:
            with links.entered(self.place.namespace):
                nft.load(script, timeout_s)


def words(alias: str) -> dict[str, str]:
    """The ``name=value`` words of a mark."""
    return dict(word.split("=", 1) for word in alias.split(" ") if "=" in word)


def _has_table(family: int, name: str) -> bool:
    """Whether the namespace this thread is in has a table (nfnetlink, linux/netfilter/nf_tables.h)."""
    text = name.encode() + b"\0"
    attribute = struct.pack("=HH", 4 + len(text), 1) + text + b"\0" * (-len(text) % 4)
    body = struct.pack("=BBH", family, 0, 0) + attribute
    request = struct.pack("=IHHII", 16 + len(body), _GET_TABLE, 1, 1, 0) + body
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, _NETLINK_NETFILTER) as kernel:
        kernel.settimeout(5)
        kernel.bind((0, 0))
        kernel.send(request)
        answer = kernel.recv(1 << 16)
    if struct.unpack_from("=H", answer, 4)[0] != _ERROR:
        return True
    code = -struct.unpack_from("=i", answer, 16)[0]
    if code == 2:  # ENOENT
        return False
    raise TryAgain(f"The kernel did not say whether it has the table {name}: {os.strerror(code)}.")
