"""Address arithmetic: the promises that allocation stands on, for any subnet."""

from __future__ import annotations

import ipaddress
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nubila.services.network import addresses

ANY_IP = st.one_of(st.ip_addresses(v=4), st.ip_addresses(v=6))
V4 = st.builds(
    lambda value, length: str(ipaddress.ip_network((value, length), strict=False)),
    st.integers(1 << 24, (224 << 24) - 1),
    st.integers(8, 30),
)
V6 = st.builds(
    lambda value, length: str(ipaddress.ip_network((value, length), strict=False)),
    st.integers(1 << 120, (1 << 125) - 1),
    st.integers(32, 126),
)
MACS = st.integers(0, 2**40 - 1).map(lambda n: ":".join(f"{n >> s & 255:02x}" for s in (32, 24, 16, 8, 0)))


def taken_from(keys: set[str]) -> addresses.Taken:
    ordered = sorted(keys)
    return lambda lo, hi, n: [k for k in ordered if lo <= k <= hi][:n]


@given(ANY_IP)
def test_a_key_tells_its_address(ip: ipaddress.IPv4Address | ipaddress.IPv6Address) -> None:
    assert addresses.address(addresses.key(str(ip))) == str(ip)


@given(st.lists(st.ip_addresses(v=4), min_size=2) | st.lists(st.ip_addresses(v=6), min_size=2))
def test_keys_sort_as_addresses_do(ips: list[ipaddress.IPv4Address]) -> None:
    assert [addresses.address(k) for k in sorted(addresses.key(str(i)) for i in ips)] == [str(i) for i in sorted(ips)]


@given(st.one_of(V4, V6))
def test_default_pools_hold_every_host_but_the_gateway(cidr: str) -> None:
    gateway = addresses.default_gateway(cidr)
    pools = addresses.default_pools(cidr, gateway)
    addresses.check_pools(cidr, pools, gateway)
    first, last = addresses.hosts(cidr)
    inside = first <= int(ipaddress.ip_address(gateway)) <= last
    assert addresses.count(pools) == last - first + 1 - inside


@given(st.one_of(V4, V6), st.data())
def test_pools_that_cannot_be_are_refused(cidr: str, data: st.DataObject) -> None:
    net = ipaddress.ip_network(cidr)
    below = str(net.network_address - 1)
    with pytest.raises(addresses.BadPool):
        addresses.check_pools(cidr, [{"start": below, "end": str(net.broadcast_address - 1)}], None)
    first, last = addresses.hosts(cidr)
    at = data.draw(st.integers(first, last))
    middle = str(type(net.network_address)(at))
    whole = {"start": str(type(net.network_address)(first)), "end": str(type(net.network_address)(last))}
    with pytest.raises(addresses.BadPool) as refused:
        addresses.check_pools(cidr, [whole], middle)
    assert refused.value.kind == "gateway"
    with pytest.raises(addresses.BadPool) as refused:
        addresses.check_pools(cidr, [whole, {"start": middle, "end": middle}], None)
    assert refused.value.kind == "overlap"


@given(st.integers(1, 60), st.sets(st.integers(1, 60)), st.integers())
def test_free_finds_an_address_exactly_when_there_is_one(size: int, used: set[int], seed: int) -> None:
    base = int(ipaddress.ip_address("10.0.0.0"))
    pools = [{"start": "10.0.0.1", "end": str(ipaddress.ip_address(base + size))}]
    taken = {f"{base + n:08x}" for n in used}
    found = addresses.free(pools, taken_from(taken), random.Random(seed))
    left = set(range(1, size + 1)) - used
    assert (found is None) == (not left)
    assert found is None or int(ipaddress.ip_address(found)) - base in left
    first = addresses.free(pools, taken_from(taken), lowest=True)
    assert first is None if not left else int(ipaddress.ip_address(str(first))) - base == min(left)


@given(st.integers(1, 20), st.integers(0, 20), st.integers())
def test_a_guess_is_an_address_of_the_pools(size: int, more: int, seed: int) -> None:
    base = int(ipaddress.ip_address("10.0.0.0"))
    ends = [(base + 1, base + size), (base + 100, base + 99 + more)]
    pools = [{"start": str(ipaddress.ip_address(a)), "end": str(ipaddress.ip_address(b))} for a, b in ends if a <= b]
    dice = random.Random(seed)
    got = {int(ipaddress.ip_address(str(addresses.guess(pools, dice)))) for _ in range(200)}
    assert got <= {n for a, b in ends for n in range(a, b + 1)}
    assert len(got) > 1 or size + more == 1
    assert addresses.guess([], dice) is None


@given(st.integers(), st.integers(1, 40))
def test_allocating_a_pool_until_it_is_full_gives_each_address_once(seed: int, size: int) -> None:
    base = int(ipaddress.ip_address("fd00::"))
    pools = [
        {"start": "fd00::1", "end": str(ipaddress.ip_address(base + size))},
        {"start": "fd00::1:0", "end": "fd00::1:3"},
    ]
    dice, got = random.Random(seed), set[str]()
    while (found := addresses.free(pools, taken_from({addresses.key(g) for g in got}), dice)) is not None:
        assert found not in got
        got.add(found)
    assert len(got) == size + 4


def test_a_nearly_full_large_pool_still_gives_its_last_address() -> None:
    base = int(ipaddress.ip_address("10.0.0.0"))
    hole, size = 54_321, 65_536
    calls = 0

    def taken(lo: str, hi: str, n: int) -> list[str]:
        nonlocal calls
        calls += 1
        first, last = int(lo, 16) - base, int(hi, 16) - base
        out: list[str] = []
        for i in range(first, last + 1):
            if i != hole:
                out.append(f"{base + i:08x}")
            if len(out) == n:
                break
        return out

    pools = [{"start": "10.0.0.0", "end": str(ipaddress.ip_address(base + size - 1))}]
    assert addresses.free(pools, taken, random.Random(1)) == str(ipaddress.ip_address(base + hole))
    assert calls < 20


def test_an_empty_pool_of_a_slash_8_costs_one_look() -> None:
    calls: list[int] = []

    def taken(lo: str, hi: str, n: int) -> list[str]:
        calls.append(n)
        return []

    assert addresses.free(addresses.default_pools("10.0.0.0/8", "10.0.0.1"), taken) is not None
    assert calls == [32]


@given(V6, MACS)
def test_eui64_is_inside_and_names_the_mac(cidr: str, tail: str) -> None:
    net = f"{ipaddress.ip_network(cidr).network_address}/64"
    ip = addresses.eui64(net, f"fa:{tail}")
    assert addresses.contains(net, ip)
    value = int(ipaddress.ip_address(ip)) & (2**64 - 1)
    assert f"{value >> 56 ^ 2:02x}" == "fa"
    assert f"{value & 0xFFFFFF:06x}" == tail.replace(":", "")[4:]


def test_eui64_as_rfc_4291_shows_it() -> None:
    assert addresses.eui64("2001:db8::/64", "fa:16:3e:12:34:56") == "2001:db8::f816:3eff:fe12:3456"


@given(st.lists(V4, max_size=5), st.integers(8, 28))
def test_a_cut_prefix_is_inside_and_overlaps_nothing(used: list[str], length: int) -> None:
    prefixes = ["10.0.0.0/8", "172.16.0.0/12"]
    found = addresses.free_prefix(prefixes, used, length)
    if found is not None:
        net = ipaddress.ip_network(found)
        assert net.prefixlen == length
        assert any(net.subnet_of(ipaddress.ip_network(p)) for p in prefixes)  # type: ignore[arg-type]
        assert not any(addresses.overlap(found, u) for u in used)


def test_prefixes_are_cut_until_there_are_no_more() -> None:
    used: list[str] = []
    while (found := addresses.free_prefix(["10.0.0.0/22"], used, 24)) is not None:
        used.append(found)
    assert used == ["10.0.0.0/24", "10.0.1.0/24", "10.0.2.0/24", "10.0.3.0/24"]


@pytest.mark.parametrize(
    ("cidr", "address", "yes"),
    [
        ("10.0.0.0/24", "10.0.0.0", False),
        ("10.0.0.0/24", "10.0.0.255", False),
        ("10.0.0.0/24", "10.0.0.1", True),
        ("10.0.0.0/24", "10.0.1.1", False),
        ("10.0.0.0/31", "10.0.0.0", True),
        ("10.0.0.4/32", "10.0.0.4", True),
        ("fd00::/64", "fd00::", True),
        ("fd00::/64", "fd01::1", False),
        ("10.0.0.0/24", "fd00::1", False),
        ("10.0.0.0/24", "word", False),
    ],
)
def test_which_addresses_hosts_can_have(cidr: str, address: str, yes: bool) -> None:
    assert addresses.usable(cidr, address) is yes


@given(st.lists(V4, max_size=6))
def test_compact_keeps_the_set_of_addresses(cidrs: list[str]) -> None:
    small = [c for c in cidrs if ipaddress.ip_network(c).prefixlen >= 22]
    before = {ip for c in small for ip in ipaddress.ip_network(c)}
    assert {ip for c in addresses.compact(small) for ip in ipaddress.ip_network(c)} == before


def test_macs_are_of_the_clouds_range() -> None:
    assert addresses.random_mac(random.Random(3)).startswith("fa:16:3e:")
