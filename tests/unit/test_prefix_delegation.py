"""Reading a DHCPv6 client's lease, choosing a prefix, and what a host remembers of it."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nubila.core.ports import Delegation, SubnetSpec
from nubila.drivers import advertise, dhcpv6, prefix_delegation
from nubila.drivers.dhcpv6 import IA_PD, IA_PREFIX, STATUS, Prefix, option
from nubila.drivers.files import read_json, write_json
from nubila.drivers.prefix_delegation import Held, Task, after, choose

ONE, TWO = "12345678-0000-4000-8000-000000000001", "03040506-0000-4000-8000-000000000002"
# What dhcpcd 9.4.1 wrote after a REPLY of Kea 2.2: two associations of one prefix each.
LEASE = bytes.fromhex(
    "073d5f27000100120004112233445566778899aabbccddeeff000002000d0002000009bf87abef7a5bb545"
    "0019002912345678000000030000000600" "1a0019000000080000000c4020010db8100000000000000000000000"
    "001900290304050600000003000000060" "01a0019000000080000000c4020010db8100000010000000000000000"
)  # fmt: skip


def test_a_lease_file_is_read() -> None:
    assert dhcpv6.delegated(LEASE) == {
        0x12345678: [Prefix(prefix="2001:db8:1000::/64", preferred_s=8, valid_s=12)],
        0x03040506: [Prefix(prefix="2001:db8:1000:1::/64", preferred_s=8, valid_s=12)],
    }
    assert prefix_delegation.iaid(ONE) == 0x12345678


@given(st.binary(max_size=300), st.integers(0, len(LEASE)))
def test_no_bytes_break_the_reading(junk: bytes, cut: int) -> None:
    for message in (junk, LEASE[:cut] + junk, bytes([7]) + junk):
        for prefixes in dhcpv6.delegated(message).values():
            choose(prefixes, "")
        dhcpv6.release(message, [0x12345678])


def test_an_association_that_was_refused_has_no_prefix() -> None:
    head, times = LEASE[:43], bytes(8)
    refused = option(IA_PD, b"\x12\x34\x56\x78" + times + option(STATUS, b"\x00\x06none left"))
    assert dhcpv6.delegated(head + refused) == {0x12345678: []}
    inner = b"\0\0\0\x08\0\0\0\x0c\x40" + bytes.fromhex("20010db8100000000000000000000000")
    bad = option(IA_PREFIX, inner + option(STATUS, b"\x00\x04"))
    assert dhcpv6.delegated(head + option(IA_PD, b"\x12\x34\x56\x78" + times + bad)) == {0x12345678: []}


def test_a_release_names_client_server_and_what_is_given_back_only() -> None:
    message = dhcpv6.release(LEASE, [0x03040506])
    assert message is not None
    assert message[0] == dhcpv6.RELEASE
    assert [n for n, _ in dhcpv6.options(message[4:])] == [dhcpv6.CLIENT_ID, dhcpv6.SERVER_ID, dhcpv6.ELAPSED, IA_PD]
    assert b"\x12\x34\x56\x78" not in message
    assert bytes.fromhex("20010db810000001") in message
    assert dhcpv6.release(LEASE, [1]) is None
    assert dhcpv6.release(b"", [0x03040506]) is None


def offer(prefix: str, preferred_s: int = 100, valid_s: int = 200) -> Prefix:
    return Prefix(prefix=prefix, preferred_s=preferred_s, valid_s=valid_s)


@pytest.mark.parametrize(
    ("offered", "have", "chosen"),
    [
        ([], "2001:db8::/64", None),
        ([offer("2001:db8:1::/64"), offer("2001:db8:2::/64")], "2001:db8:1::/64", "2001:db8:1::/64"),
        ([offer("2001:db8:1::/64", 0), offer("2001:db8:2::/64")], "2001:db8:1::/64", "2001:db8:2::/64"),
        ([offer("2001:db8:1::/64", 0)], "2001:db8:1::/64", "2001:db8:1::/64"),
        ([offer("2001:db8:1::/64", 0, 0)], "2001:db8:1::/64", None),
        ([offer("2001:db8:100::/56")], "", "2001:db8:100::/64"),
        ([offer("2001:db8:1::/80")], "", None),
    ],
)
def test_the_prefix_one_has_stays_while_it_is_preferred(offered: list[Prefix], have: str, chosen: str | None) -> None:
    assert (choose(offered, have) or (None,))[0] == chosen


def test_what_is_held_ends_with_its_time_or_when_it_is_taken_back() -> None:
    held = {ONE: Held(prefix="2001:db8:1::/64", until=50.0)}
    assert after(held, [ONE], {}, 0.0, 49.0) == held, "a server that says nothing takes nothing"
    assert after(held, [ONE], {}, 0.0, 51.0) == {}
    lease = {prefix_delegation.iaid(ONE): [offer("2001:db8:2::/64")]}
    assert after(held, [ONE], lease, 10.0, 20.0) == {ONE: Held(prefix="2001:db8:2::/64", until=210.0)}
    assert after(held, [ONE], {prefix_delegation.iaid(ONE): []}, 10.0, 20.0) == {}, "taken back"
    assert after(held, [TWO], {}, 0.0, 1.0) == {}, "not asked for any more"
    assert after(held, [ONE], lease, 10.0, 300.0) == {}, "an old lease file"


def test_the_client_is_known_by_the_router_and_the_subnet_on_every_host() -> None:
    task = Task(namespace="qrouter-x", device="qg-1", router_id=TWO, subnets=(ONE, TWO))
    assert prefix_delegation.duid(TWO) == "00:04:03:04:05:06:00:00:40:00:80:00:00:00:00:00:00:02"
    said = prefix_delegation.config(task)
    assert "  ia_pd 305419896 -\n  ia_pd 50595078 -\n" in said
    assert "noipv6rs" in said


def test_a_host_that_takes_a_router_over_keeps_its_prefix_for_a_while(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prefix_delegation, "CLIENT", "no-such-program")
    task = Task(namespace="qrouter-x", device="qg-1", router_id=TWO, subnets=(ONE, TWO))
    known = [Delegation(subnet_id=ONE, prefix="2001:db8:1::/64"), Delegation(subnet_id=TWO)]
    (said,) = prefix_delegation.ensure(tmp_path, task, known)
    assert "no-such-program is not installed on this host (package dhcpcd-base)" in said
    assert prefix_delegation.report(tmp_path, task) == (Delegation(subnet_id=ONE, prefix="2001:db8:1::/64"),)
    assert not prefix_delegation.news(tmp_path)
    held = read_json(tmp_path / "pd-held.json", dict[str, Held])
    assert held is not None
    write_json(tmp_path / "pd-held.json", {ONE: Held(prefix=held[ONE].prefix, until=1.0)})
    assert prefix_delegation.news(tmp_path), "nobody confirmed it"
    assert prefix_delegation.report(tmp_path, task) == ()
    prefix_delegation.ensure(tmp_path, task, known)
    assert prefix_delegation.report(tmp_path, task) == (), "what is lost is not believed again"
    prefix_delegation.leave(tmp_path, None)
    assert list(tmp_path.iterdir()) == []
    assert prefix_delegation.report(tmp_path, None) is None


def test_a_client_that_gets_nothing_is_not_waited_for(tmp_path: Path) -> None:
    task = Task(namespace="qrouter-x", device="qg-1", router_id=TWO, subnets=(ONE, TWO))
    write_json(tmp_path / "pd.json", task)
    assert not prefix_delegation.impatient(tmp_path, task), "there is no client"
    (tmp_path / "pd.pid").write_text("1 1\n")
    some = {ONE: Held(prefix="2001:db8:1::/64", until=time.time() + 900)}
    for held, patience_s in (({}, prefix_delegation.NOTHING_S), (some, prefix_delegation.LACKING_S)):
        write_json(tmp_path / "pd-held.json", held)
        for age_s in (patience_s - 30, patience_s + 30):
            os.utime(tmp_path / "pd.pid", (time.time() - age_s,) * 2)
            assert prefix_delegation.impatient(tmp_path, task) == (age_s > patience_s)
    write_json(tmp_path / "pd-held.json", some | {TWO: some[ONE]})
    assert not prefix_delegation.impatient(tmp_path, task), "it has everything"


def test_guests_are_told_of_a_prefix_that_is_gone_for_two_hours(tmp_path: Path) -> None:
    def six(cidr: str) -> dict[str, SubnetSpec]:
        return {ONE: SubnetSpec(id=ONE, cidr=cidr, ip_version=6, ipv6_ra_mode="slaac", delegated=True)}

    there: list[advertise.Interface] = [("qr-1", "fa:16:3e:00:00:01", 1500, [ONE])]
    nowhere: list[advertise.Interface] = [("qr-1", "fa:16:3e:00:00:01", 1500, [])]
    first, second = six("2001:db8:1::/64"), six("2001:db8:2::/64")
    assert advertise.stale(tmp_path, there, first) == {"qr-1": ()}
    assert "Lifetime 0" not in advertise.render(there, first, {"qr-1": ()})
    gone = advertise.stale(tmp_path, there, second)
    assert gone == {"qr-1": ("2001:db8:1::/64",)}
    said = advertise.render(there, second, gone)
    assert "prefix 2001:db8:2::/64 { AdvOnLink on; AdvAutonomous on; };" in said
    assert "prefix 2001:db8:1::/64 { AdvOnLink off; AdvAutonomous on; AdvPreferredLifetime 0;" in said
    assert "AdvDefaultLifetime" not in said
    both = advertise.stale(tmp_path, nowhere, {})
    assert both == {"qr-1": ("2001:db8:1::/64", "2001:db8:2::/64")}
    assert "AdvDefaultLifetime 0;" in advertise.render(nowhere, {}, both)
    assert advertise.stale(tmp_path, there, first) == {"qr-1": ("2001:db8:2::/64",)}, "one of them is back"
    write_json(tmp_path / "radvd.delegated", {"qr-1": {"2001:db8:2::/64": 1.0}})
    assert advertise.stale(tmp_path, nowhere, {}) == {}, "its time is over"
    assert advertise.render(nowhere, {}, {}) == ""
    assert advertise.stale(tmp_path, [], {}) == {}
