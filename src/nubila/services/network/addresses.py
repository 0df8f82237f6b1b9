"""Address arithmetic of subnets, pools and ports: data in, data out; no database, no clock.

An address is kept as a *key*: its value in hexadecimal, 8 digits for IPv4 and 32 for IPv6. Within one family keys sort
as text exactly as addresses sort as numbers, so a database finds neighbours, gaps and ranges with an ordinary index
whatever the size of the pool (RFC 4291 addresses do not fit any integer column).
"""

from __future__ import annotations

import functools
import ipaddress
import itertools
import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

Net = ipaddress.IPv4Network | ipaddress.IPv6Network
Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Pool = dict[str, str]  # {"start": "10.0.0.2", "end": "10.0.0.254"}

AUTO_V6_MODES = ("slaac", "dhcpv6-stateless")
_PROBES = (32, 64, 128, 512, 2048, 8192)
_CHUNK = 10_000


def key(address: str) -> str:
    """The sortable form of an address; ValueError when it is none."""
    parsed = ipaddress.ip_address(address)
    return f"{int(parsed):0{parsed.max_prefixlen // 4}x}"


def address(key_text: str) -> str:
    """The address of a key."""
    number = int(key_text, 16)
    return str(ipaddress.IPv4Address(number) if len(key_text) == 8 else ipaddress.IPv6Address(number))


@functools.lru_cache(8192)
def network(cidr: str) -> Net:
    """Parse a CIDR, host bits ignored; ValueError when it is none."""
    return ipaddress.ip_network(cidr, strict=False)


def contains(cidr: str, address_text: str) -> bool:
    """Whether the address lies in the CIDR (families may differ: then no)."""
    try:
        return ipaddress.ip_address(address_text) in network(cidr)
    except ValueError:
        return False


def usable(cidr: str, address_text: str) -> bool:
    """Whether a host can have this address in the subnet: inside, and no IPv4 network or broadcast address."""
    net = network(cidr)
    if not contains(cidr, address_text):
        return False
    given = ipaddress.ip_address(address_text)
    if net.version == 4:
        return net.prefixlen >= 31 or given not in (net.network_address, net.broadcast_address)
    return True


def overlap(one: str, other: str) -> bool:
    """Whether two CIDRs share an address."""
    a, b = network(one), network(other)
    return a.version == b.version and a.overlaps(b)


def default_gateway(cidr: str) -> str:
    """The address a subnet's gateway has unless the user says otherwise.

    IPv4: the first after the network's own. IPv6: the network's own, which belongs to its routers (RFC 4291, 2.6.1).
    """
    net = network(cidr)
    alone = net.num_addresses == 1 or net.version == 6
    return str(net.network_address if alone else net.network_address + 1)


def hosts(cidr: str) -> tuple[int, int]:
    """First and last value that hosts may have."""
    net = network(cidr)
    first, last = int(net.network_address), int(net.broadcast_address)
    if net.version == 4 and net.prefixlen < 31:
        return first + 1, last - 1
    if net.version == 6 and net.prefixlen < 127:
        return first + 1, last
    return first, last


def default_pools(cidr: str, gateway: str | None) -> list[Pool]:
    """All addresses of the subnet except the gateway's, in one or two ranges."""
    net = network(cidr)
    first, last = hosts(cidr)
    make = ipaddress.IPv4Address if net.version == 4 else ipaddress.IPv6Address
    spans = [(first, last)]
    if gateway is not None and first <= int(ipaddress.ip_address(gateway)) <= last:
        middle = int(ipaddress.ip_address(gateway))
        spans = [(first, middle - 1), (middle + 1, last)]
    return [{"start": str(make(a)), "end": str(make(b))} for a, b in spans if a <= b]


class BadPool(ValueError):
    """A pool that cannot be: ``kind`` is "order", "outside", "overlap" or "gateway"."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


def check_pools(cidr: str, pools: Sequence[Pool], gateway: str | None) -> None:
    """Refuse pools that leave the subnet, run backwards, overlap each other or hold the gateway."""
    first, last = hosts(cidr)
    version = network(cidr).version
    spans: list[tuple[int, int, Pool]] = []
    for pool in pools:
        start, end = ipaddress.ip_address(pool["start"]), ipaddress.ip_address(pool["end"])
        text = f"{start}-{end}"
        if start.version != version or end.version != version:
            raise BadPool("order", f"The allocation pool {text} is not of IP version {version} like {cidr}.")
        if end < start:  # type: ignore[operator]  # same family checked
            raise BadPool("order", f"allocation_pools: {text} ends before it starts.")
        if int(start) < first or int(end) > last:
            raise BadPool("outside", f"allocation_pools: {text} leaves the subnet's cidr {cidr}.")
        spans.append((int(start), int(end), pool))
    spans.sort(key=lambda s: s[:2])
    for (_, end1, pool1), (start2, _, pool2) in itertools.pairwise(spans):
        if start2 <= end1:
            raise BadPool(
                "overlap",
                f"Found overlapping allocation pools {pool1['start']}-{pool1['end']} and "
                f"{pool2['start']}-{pool2['end']} for subnet {cidr}.",
            )
    if gateway is not None:
        value = int(ipaddress.ip_address(gateway))
        for start1, end1, pool in spans:
            if start1 <= value <= end1 and ipaddress.ip_address(gateway).version == version:
                raise BadPool(
                    "gateway",
                    f"gateway_ip {gateway} lies inside allocation pool {pool['start']}-{pool['end']}.",
                )


def eui64(cidr: str, mac: str) -> str:
    """The address that stateless configuration gives a MAC (RFC 4291, appendix A)."""
    octets = [int(part, 16) for part in mac.split(":")]
    octets[0] ^= 2
    interface = int.from_bytes(bytes([*octets[:3], 0xFF, 0xFE, *octets[3:]]), "big")
    net = network(cidr)
    return str(ipaddress.IPv6Address(int(net.network_address) | interface))


def mac_of(address_text: str) -> str:
    """The MAC that an address made by ``eui64`` comes from; "" when it comes from none."""
    octets = list(ipaddress.IPv6Address(address_text).packed[8:])
    if octets[3:5] != [0xFF, 0xFE]:
        return ""
    octets[0] ^= 2
    return ":".join(f"{octet:02x}" for octet in (*octets[:3], *octets[5:]))


def random_mac(pick: random.Random | None = None) -> str:
    """A MAC of the range clouds use, fa:16:3e:xx:xx:xx."""
    tail = (pick or random.SystemRandom()).getrandbits(24)
    return f"fa:16:3e:{tail >> 16:02x}:{tail >> 8 & 255:02x}:{tail & 255:02x}"


Taken = Callable[[str, str, int], Sequence[str]]
"""The taken keys from one key to another (both inclusive), ascending, at most so many."""


def _gap(keys: Sequence[str], first: int, last: int, limit: int) -> tuple[int | None, int]:
    """The first value from ``first`` on that is not among ascending ``keys``, and where the search got to."""
    expected = first
    for text in keys:
        if int(text, 16) != expected:
            return expected, expected
        expected += 1
    if expected <= last and len(keys) < limit:
        return expected, expected
    return None, expected


def guess(pools: Iterable[Pool], dice: random.Random) -> str | None:
    """Any address of the pools, taken or not; None when they hold none."""
    spans = [(ipaddress.ip_address(pool["start"]), int(ipaddress.ip_address(pool["end"]))) for pool in pools]
    offset = dice.randrange(sum(last - int(start) + 1 for start, last in spans) or 1)
    for start, last in spans:
        if offset <= last - int(start):
            return str(start + offset)
        offset -= last - int(start) + 1
    return None


def free(pools: Iterable[Pool], taken: Taken, pick: random.Random | None = None, *, lowest: bool = False) -> str | None:
    """A free address of the pools, chosen at random unless ``lowest``, or None when there is none.

    A random place is tried first and the first gap after it taken; a few probes with growing windows find one in any
    pool that is not nearly full, whatever its size. Only then every address is looked at.
    """
    dice = pick or random.SystemRandom()
    spans = []
    for pool in pools:
        start = ipaddress.ip_address(pool["start"])
        spans.append((int(start), int(ipaddress.ip_address(pool["end"])), start.max_prefixlen // 4))
    total = sum(last - first + 1 for first, last, _ in spans)
    if not total:
        return None
    if lowest:
        return _scan(spans, taken, _PROBES[0])
    for limit in _PROBES:
        offset = dice.randrange(total)
        for first, last, digits in spans:
            if offset > last - first:
                offset -= last - first + 1
                continue
            found, _ = _gap(_read(taken, first + offset, last, digits, limit), first + offset, last, limit)
            if found is not None:
                return address(f"{found:0{digits}x}")
            break
    return _scan(spans, taken)


def _read(taken: Taken, first: int, last: int, digits: int, limit: int) -> Sequence[str]:
    return taken(f"{first:0{digits}x}", f"{last:0{digits}x}", limit)


def _scan(spans: Sequence[tuple[int, int, int]], taken: Taken, chunk: int = _CHUNK) -> str | None:
    for first, last, digits in spans:
        at = first
        while at <= last:
            found, at = _gap(_read(taken, at, last, digits, chunk), at, last, chunk)
            if found is not None:
                return address(f"{found:0{digits}x}")
            chunk = _CHUNK
    return None


def count(pools: Iterable[Pool]) -> int:
    """How many addresses the pools hold."""
    return sum(
        int(ipaddress.ip_address(p["end"])) - int(ipaddress.ip_address(p["start"])) + 1 for p in pools
    )  # fmt: skip


def compact(cidrs: Iterable[str]) -> list[str]:
    """The same addresses in as few CIDRs as possible, IPv4 first."""
    distinct = set(cidrs)
    if len(distinct) == 1:
        return [str(network(distinct.pop()))]
    nets = [network(c) for c in distinct]
    four = ipaddress.collapse_addresses(n for n in nets if isinstance(n, ipaddress.IPv4Network))
    six = ipaddress.collapse_addresses(n for n in nets if isinstance(n, ipaddress.IPv6Network))
    return [str(n) for n in (*four, *six)]


def without(cidrs: Iterable[str], gone: Iterable[str]) -> list[str]:
    """What is left of some blocks of one family when others are taken out of them."""
    left: list[Any] = [network(c) for c in cidrs]
    for hole in map(network, gone):
        kept: list[Any] = []
        for net in left:
            if not net.overlaps(hole):
                kept.append(net)
            elif hole.prefixlen > net.prefixlen:
                kept += net.address_exclude(hole)
        left = kept
    return [str(n) for n in left]


def free_prefix(prefixes: Iterable[str], used: Iterable[str], prefixlen: int) -> str | None:
    """The first block of that length inside the prefixes that overlaps nothing used, or None."""
    taken = sorted((int(network(u).network_address), int(network(u).broadcast_address)) for u in used)
    for prefix in prefixes:
        net = network(prefix)
        if net.prefixlen > prefixlen:
            continue
        for block in _blocks(net, prefixlen, taken):
            return block
    return None


def _blocks(net: Net, prefixlen: int, taken: Sequence[tuple[int, int]]) -> Iterator[str]:
    size = 1 << (net.max_prefixlen - prefixlen)
    at, end = int(net.network_address), int(net.broadcast_address)
    make = ipaddress.IPv4Network if net.version == 4 else ipaddress.IPv6Network
    for first, last in taken:
        if last < at or first > end:
            continue
        if first - at >= size:
            break
        at = max(at, (last // size + 1) * size)
    if at + size - 1 <= end:
        yield str(make((at, prefixlen)))
