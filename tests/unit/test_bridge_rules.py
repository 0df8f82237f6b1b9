"""Security groups as nftables: few rules, nothing that nft refuses, nothing let through by mistake."""

from __future__ import annotations

import pytest
from contract_network import network, port

from nubila.core.ports import AddressSetSpec, RuleSpec, SecurityGroupSpec
from nubila.drivers import bridge_rules
from nubila.drivers.bridge_rules import rule_lines


def tcp(low: int | None = None, high: int | None = None, **more: object) -> RuleSpec:
    return RuleSpec(direction="ingress", protocol="tcp", port_min=low, port_max=high, **more)  # type: ignore[arg-type]


def lines(*rules: RuleSpec, direction: str = "ingress") -> list[str]:
    return rule_lines(rules, direction, 0)


def test_equal_remotes_share_one_rule_and_overlapping_ports_become_one_range() -> None:
    udp = RuleSpec(direction="ingress", protocol="udp", port_min=53, port_max=53)
    found = lines(tcp(80, 90), tcp(85, 100), tcp(101, 110), tcp(22, 22), udp)
    assert found == ["meta nfproto ipv4 meta l4proto . th dport { 6 . 22, 6 . 80-110, 17 . 53 } accept"]


def test_a_hundred_rules_for_as_many_remotes_are_one_set() -> None:
    found = lines(*(tcp(22, 22, remote=(f"10.0.0.{n}/32",)) for n in range(100)))
    assert len(found) == 1
    assert "10.0.0.0/26" in found[0], "neighbouring addresses are one element"


def test_everybody_includes_somebody() -> None:
    assert lines(tcp(22, 22), tcp(22, 22, remote=("10.0.0.0/8",))) == lines(tcp(22, 22))
    assert lines(tcp(22, 22, remote=("0.0.0.0/0",))) == lines(tcp(22, 22))
    assert lines(RuleSpec(direction="ingress"), tcp(22, 22)) == ["meta nfproto ipv4 accept"]
    assert lines(tcp(), tcp(22, 22)) == ["meta nfproto ipv4 meta l4proto { 6 } accept"]


@pytest.mark.parametrize(
    "rule",
    [
        tcp(22, 22, remote=()),  # nobody yet
        tcp(22, 22, remote=("2001:db8::/32",)),  # of the other version
        RuleSpec(direction="ingress", protocol="gre", port_min=1, port_max=2),  # a protocol without ports
        RuleSpec(direction="egress", protocol="tcp"),  # of the other direction
    ],
)
def test_what_means_nobody_lets_nobody_in(rule: RuleSpec) -> None:
    assert lines(rule) == []


def test_sets_and_versions_are_told_apart() -> None:
    both = [RuleSpec(direction="ingress", ethertype=e, remote_set="s") for e in ("IPv4", "IPv6")]  # type: ignore[arg-type]
    assert lines(*both) == ["meta nfproto ipv4 ip saddr @a4-s accept", "meta nfproto ipv6 ip6 saddr @a6-s accept"]
    six = RuleSpec(direction="egress", ethertype="IPv6", protocol="icmp", port_min=128, port_max=0)
    assert lines(six, direction="egress") == ["meta nfproto ipv6 icmpv6 type 128 icmpv6 code 0 accept"]


def test_what_is_taken_away_is_what_was_added() -> None:
    spec = port(network(), 3)
    parts = [
        bridge_rules.port_part("t", spec, 7),
        bridge_rules.network_part("t", "brq1", 5, False, ["vxlan-7"]),
        bridge_rules.trusted_part("t", "tap1"),
    ]
    for part in parts:
        added = [line.split("{")[1] for line in part.add.splitlines() if "add element" in line]
        elements = [line.split(" : ")[0].strip(" }") for line in added]
        gone = [line.split("{")[1].strip(" }") for line in part.remove.splitlines() if "delete element" in line]
        assert sorted(elements) == sorted(gone)
        made = {line.split()[4] for line in part.add.splitlines() if line.startswith("add chain")}
        assert made == {line.split()[4] for line in part.remove.splitlines() if line.startswith("delete chain")}


def test_names_are_the_original_agents() -> None:
    id = "89bce4c6-b0aa-4b6c-a44b-35ba5fba9b2c"
    assert bridge_rules.chain("o", id) == "neutron-linuxbri-o89bce4c6-b0"
    group = bridge_rules.group_part("t", SecurityGroupSpec(id="g", rules=(tcp(22, 22, remote_set=None),)))
    assert "accept" in group.add
    assert "delete" not in group.remove, "its ports refer to its chains"
    members = bridge_rules.set_part("t", AddressSetSpec(id="s", addresses=("10.0.0.1/32", "10.0.0.0/24", "fd00::/64")))
    assert "add element inet t a4-s { 10.0.0.0/24 }" in members.add
    assert "add element inet t a6-s { fd00::/64 }" in members.add
