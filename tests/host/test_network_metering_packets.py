"""Metering on real engines: packets that pass a router are counted, whatever happens to its tables meanwhile."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from contract_network import PING, external, network, port, replace, router
from network_world import Host

from nubila.core.ports import FloatingSpec, LabelRule, LabelSpec, MeterCount

pytestmark = pytest.mark.host
ONE, TWO = "1a111111-2222-3333-4444-555555555555", "2b222222-2222-3333-4444-555555555555"


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Host]:
    host = Host(tmp_path)
    yield host
    host.close()


@pytest.mark.req("C/MTR-04")
@pytest.mark.req("C/MTR-04")
def test_packets_are_counted_and_counters_outlive_every_change(host: Host) -> None:
    inside, outside = network(dhcp=False), external()
    for net in (inside, outside):
        host.driver.ensure_network(net)
    a = host.guest(port(inside, 3, PING)).configure("10.0.0.1")
    b = host.guest(port(inside, 4, PING)).configure("10.0.0.1")
    out = LabelRule(direction="egress", source="10.0.0.0/24")
    back = LabelRule(direction="ingress", destination="10.0.0.0/24")
    label = LabelSpec(id=ONE, rules=(out, back))
    gate = replace(router(inside, outside=outside), labels=(label,))

    def count(spec: object) -> dict[str, tuple[int, int]]:
        state = host.driver.ensure_router(spec)  # type: ignore[arg-type]
        assert all(isinstance(one, MeterCount) for one in state.counts)
        return {one.label_id: (one.packets, one.bytes) for one in state.counts}

    assert count(gate) == {ONE: (0, 0)}
    assert a.pings("172.24.4.1")
    assert a.pings("172.24.4.1")
    assert a.pings(b.ip), "not past the router"
    assert count(gate) == {ONE: (4, 4 * 84)}, "two out, two back, 84 bytes each"
    # The table of translations is loaded anew, a rule comes, another label comes.
    floating = (FloatingSpec(id="1", floating_ip="172.24.4.101", fixed_ip=a.ip),)
    only_b = LabelSpec(id=TWO, rules=(out, back, LabelRule(direction="egress", source="10.0.0.3/32", excluded=True)))
    more = replace(gate, floating_ips=floating, labels=(label, only_b))
    assert count(more) == {ONE: (4, 336), TWO: (0, 0)}
    assert host.pings("172.24.4.101"), "in by the floating address: counted under the inside one"
    assert count(more) == {ONE: (6, 504), TWO: (1, 84)}, "what the excluded address sends is left out"
    assert b.pings("172.24.4.1")
    assert count(more) == {ONE: (8, 672), TWO: (3, 252)}
    host.driver.start()  # a restarted agent
    to_far = replace(gate, labels=(LabelSpec(id=ONE, rules=(
        LabelRule(direction="egress", source="10.0.0.0/24", destination="172.24.4.9/32"),)), only_b))  # fmt: skip
    assert count(to_far) == {ONE: (8, 672), TWO: (3, 252)}
    assert b.pings("172.24.4.1")
    assert count(to_far) == {ONE: (8, 672), TWO: (5, 420)}
    assert count(replace(gate, labels=(only_b,))) == {TWO: (5, 420)}
    assert count(replace(gate, labels=(label, only_b))) == {ONE: (0, 0), TWO: (5, 420)}, "a label that went begins anew"
    assert host.driver.ensure_router(replace(gate, labels=())).counts == ()
    assert "nubila-metering" not in host.inside(host.driver.router_namespace(gate.id), "nft", "list", "tables")
    assert count(replace(gate, gateway=None, gateway_ips=())) == {ONE: (0, 0)}


@pytest.mark.req("C/MTR-03")
def test_every_router_counts_for_itself(host: Host) -> None:
    outside = external()
    host.driver.ensure_network(outside)
    rules = tuple(LabelRule(direction=to, **{end: "10.0.0.0/8"}) for to, end in (
        ("egress", "source"), ("ingress", "destination")))  # type: ignore[arg-type]  # fmt: skip
    label = LabelSpec(id=ONE, rules=rules)
    for number, pings in ((10, 1), (11, 2)):
        inside = network(f"10.{number}.0.0/24", dhcp=False, vni=number)
        host.driver.ensure_network(inside)
        gate = replace(router(inside, outside=outside, number=number), labels=(label,))
        host.driver.ensure_router(gate)
        guest = host.guest(port(inside, 3, PING)).configure(f"10.{number}.0.1")
        for _ in range(pings):
            assert guest.pings("172.24.4.1")
        counted = MeterCount(label_id=ONE, packets=2 * pings, bytes=168 * pings)
        assert host.driver.ensure_router(gate).counts == (counted,)
