"""nftables as whole tables: rendered from a spec, loaded by one atomic ``nft -f``.

A load empties and refills one table in one transaction, so no packet meets half of it, and connections already
tracked keep their translation. Everything of ours is a table of its own, named and commented after the cloud.
"""

from __future__ import annotations

import hashlib
import ipaddress
import re
from collections.abc import Iterable

from msgspec import Struct

from nubila.core.ports import RouterSpec
from nubila.drivers import programs
from nubila.drivers.links import GROUP

ROUTER_TABLE = "nubila-router"
METADATA_PORT = 9697
_FROM_OUTSIDE = 0x2


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


def _replace(family: str, name: str, chains: dict[str, tuple[str, Iterable[str]]]) -> str:
    """A script that makes a table exactly these chains: name -> (hook line, rules)."""
    lines = [f"table {family} {name}", f"flush table {family} {name}", f"table {family} {name} {{"]
    for chain, (hook, rules) in chains.items():
        lines.append(f"  chain {chain} {{")
        lines.append(f"    type {hook};")
        lines += [f"    {rule}" for rule in rules]
        lines.append("  }")
    return "\n".join([*lines, "}", ""])


# --- routers ------------------------------------------------------------------------------------------------------


def router_table(spec: RouterSpec, inside: Iterable[str], outside: str | None) -> str:
    """A router's translation of addresses.

    ``inside`` are its qr- devices, ``outside`` its qg- device. Order in postrouting: a floating address wins over the
    router's own; traffic that came from inside and was turned round to a floating address gets a source that the
    answer must come back to; the rest of what leaves gets the router's address.
    """
    pre: list[str] = [
        f'iifname "{name}" ip daddr 169.254.169.254 tcp dport 80 redirect to :{METADATA_PORT}' for name in inside
    ]
    out: list[str] = []
    post: list[str] = []
    guard: list[str] = []
    if outside:
        pre.insert(0, f'iifname "{outside}" meta mark set {_FROM_OUTSIDE:#x}')
        guard.append(f'iifname "{outside}" tcp dport {METADATA_PORT} drop')
        for floating in spec.floating_ips:
            pre.append(f"ip daddr {floating.floating_ip} dnat to {floating.fixed_ip}")
            out.append(f"ip daddr {floating.floating_ip} dnat to {floating.fixed_ip}")
            post.append(f'oifname "{outside}" ip saddr {floating.fixed_ip} snat to {floating.floating_ip}')
            turned = f"meta mark != {_FROM_OUTSIDE:#x} ct status dnat"
            post.append(f"{turned} ip saddr {floating.fixed_ip} snat to {floating.floating_ip}")
        own = _own_address(spec)
        if own:
            post.append(f"meta mark != {_FROM_OUTSIDE:#x} ct status dnat snat to {own}")
            if spec.snat:
                post.append(f'oifname "{outside}" meta mark != {_FROM_OUTSIDE:#x} snat to {own}')
    return _replace(
        "ip",
        ROUTER_TABLE,
        {
            "prerouting": ("nat hook prerouting priority dstnat", pre),
            "output": ("nat hook output priority -100", out),
            "postrouting": ("nat hook postrouting priority srcnat", post),
            "input": ("filter hook input priority filter", guard),
        },
    )


def _own_address(spec: RouterSpec) -> str | None:
    ips = [ip.ip_address for ip in spec.gateway.fixed_ips] if spec.gateway else []
    return next((ip for ip in ips if ipaddress.ip_address(ip).version == 4), None)


def forget_connections(address: str, timeout_s: float = 5.0) -> None:
    """End tracked connections that use a translated address, in the namespace this thread is in.

    Otherwise they would keep the translation after its rule is gone.
    """
    for side in ("--orig-dst", "--reply-dst"):
        argv = ["conntrack", "-D", side, address]  # fails when there is none
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
        post.append(f'{family} saddr {network} oifname != "{masquerade.bridge}" masquerade')
    return _replace(
        "inet",
        host_table_name(cloud),
        {
            "prerouting": ("filter hook prerouting priority raw", [f"iifgroup {GROUP} drop"]),
            "postrouting": ("nat hook postrouting priority srcnat", post),
        },
    )
