"""nftables as whole tables: rendered from a spec, loaded by one atomic ``nft -f``.

A load empties and refills one table in one transaction, so no packet meets half of it, and connections already
tracked keep their translation. Everything of ours is a table of its own, named and commented after the cloud.
"""

from __future__ import annotations

import hashlib
import ipaddress
import re
import socket
import struct
from collections.abc import Iterable, Mapping

from msgspec import Struct

from nubila.drivers import programs
from nubila.drivers.links import GROUP

_NETLINK_NETFILTER, _GET_TABLE, _TABLE_NAME = 12, 10 << 8 | 1, 1
_REQUEST_DUMP, _ERROR, _DONE = 0x301, 2, 3
_FAMILIES = {1: "inet", 2: "ip", 3: "arp", 5: "netdev", 7: "bridge", 10: "ip6"}
ROUTER_TABLE = "nubila-router"
METADATA_PORT = 9697


class Masquerade(Struct, frozen=True, kw_only=True):
    """An external network that leaves by the host's own address."""

    cidr: str
    bridge: str


def load(script: str, timeout_s: float = 10.0) -> None:
    """Run an nft script in the namespace this thread is in."""
    _nft(["-f", "-"], script, timeout_s)


def tables(timeout_s: float = 10.0) -> list[tuple[str, str]]:
    """(family, name) of every table in the namespace this thread is in."""
    lines = _nft(["list", "tables"], "", timeout_s).splitlines()
    return [(words[1], words[2]) for words in (line.split() for line in lines) if len(words) == 3]


def table_names() -> set[tuple[str, str]]:
    """(family, name) of every table in the namespace this thread is in, by netlink: no process is started."""
    found: set[tuple[str, str]] = set()
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_NETFILTER) as asker:
        asker.settimeout(5)
        asker.send(struct.pack("=IHHIIBBH", 20, _GET_TABLE, _REQUEST_DUMP, 1, 0, 0, 0, 0))
        while True:
            said = asker.recv(1 << 16)
            while len(said) >= 16:
                length, kind = struct.unpack_from("=IH", said)
                if kind in (_ERROR, _DONE) or length < 16:
                    return found
                name = _attribute(said[20:length], _TABLE_NAME)
                found.add((_FAMILIES.get(said[16], str(said[16])), name))
                said = said[(length + 3) & ~3 :]


def _attribute(data: bytes, wanted: int) -> str:
    while len(data) >= 4:
        length, kind = struct.unpack_from("=HH", data)
        if kind == wanted:
            return data[4:length].rstrip(b"\0").decode()
        data = data[(max(length, 4) + 3) & ~3 :]
    return ""


def listing(arguments: list[str], timeout_s: float = 10.0) -> str:
    """``nft list`` as JSON, in the namespace this thread is in."""
    return _nft(["-j", "list", *arguments], "", timeout_s)


def has_chain(family: str, table: str, chain: str, timeout_s: float = 10.0) -> bool:
    """Whether the namespace this thread is in has this chain."""
    lines = _nft(["list", "chains", family], "", timeout_s).splitlines()
    inside = ""
    for line in lines:
        words = line.split()
        if words[:1] == ["table"]:
            inside = words[2]
        elif words[:2] == ["chain", chain] and inside == table:
            return True
    return False


def remove_table(family: str, name: str) -> None:
    """Delete a table; absent is success."""
    load(f"table {family} {name}\ndelete table {family} {name}\n")


def _nft(arguments: list[str], script: str, timeout_s: float) -> str:
    return programs.run(["nft", *arguments], package="nftables", text=script, timeout_s=timeout_s)


def replace(
    family: str, name: str, chains: Mapping[str, tuple[str, Iterable[str]]], objects: Iterable[str] = ()
) -> str:
    """A script that makes a table exactly these chains: name -> (hook line, rules); ``objects`` are lines before them.

    Tracked connections keep their translation: it is not the table's.
    """
    lines = [f"table {family} {name}", f"delete table {family} {name}", f"table {family} {name} {{"]
    lines += [f"  {line}" for line in objects]
    for chain, (hook, rules) in chains.items():
        lines.append(f"  chain {chain} {{")
        lines.append(f"    type {hook};")
        lines += [f"    {rule}" for rule in rules]
        lines.append("  }")
    return "\n".join([*lines, "}", ""])


# --- routers ------------------------------------------------------------------------------------------------------


def forget_connections(address: str, timeout_s: float = 5.0) -> None:
    """End tracked connections that use a translated address, in the namespace this thread is in.

    Otherwise they would keep the translation after its rule is gone.
    """
    for side in ("--orig-dst", "--reply-dst"):
        argv = ["conntrack", "-D", side, address]  # fails when there is none
        programs.run(argv, package="conntrack", timeout_s=timeout_s, check=False)


def forget_forwarded(address: str, protocol: str, ports: tuple[int, int], timeout_s: float = 5.0) -> None:
    """End tracked connections to forwarded ports of an address; of a range, all of the address and protocol."""
    argv = ["conntrack", "-D", "--orig-dst", address, "-p", protocol]
    if ports[0] == ports[1]:
        argv += ["--orig-port-dst", str(ports[0])]
    programs.run(argv, package="conntrack", timeout_s=timeout_s, check=False)


# --- the host -----------------------------------------------------------------------------------------------------


def host_table_name(cloud: str) -> str:
    """The host's table of one cloud; names that nft cannot spell get a fingerprint."""
    if re.fullmatch(r"[A-Za-z][A-Za-z0-9_-]{0,40}", cloud):
        return f"nubila-{cloud}"
    return f"nubila-{hashlib.sha256(cloud.encode()).hexdigest()[:12]}"


def host_table(cloud: str, masquerades: Iterable[Masquerade]) -> str:
    """What the host itself needs: frames of guests are the switch's business, and external networks get out.

    The userspace datapath reads devices by packet sockets, so the host's own IP stack sees the same frames; without
    the first rule a guest could reach services of the host past its security groups.
    """
    post = []
    for masquerade in masquerades:
        network = ipaddress.ip_network(masquerade.cidr, strict=False)
        family = "ip" if network.version == 4 else "ip6"
        # Frames that stay in a project's bridge pass here too (br_netfilter), in that network's zone.
        post.append(f'ct zone 0 {family} saddr {network} oifname != "{masquerade.bridge}" masquerade')
    return replace(
        "inet",
        host_table_name(cloud),
        {
            "prerouting": ("filter hook prerouting priority raw", [f"iifgroup {GROUP} drop"]),
            "postrouting": ("nat hook postrouting priority srcnat", post),
        },
    )
