"""OpenFlow rendering: rules, masks, claims and forwarding as pure text."""

from __future__ import annotations

import pytest
from contract_network import EGRESS, WEB, network, port, replace
from hypothesis import given
from hypothesis import strategies as st

from nubila.core.ports import RuleSpec
from nubila.drivers import ovs_flows, ovs_security
from nubila.drivers.ovs_flows import Member, Uplink


@given(st.integers(0, 65535), st.integers(0, 65535))
def test_port_masks_cover_exactly_the_range(one: int, other: int) -> None:
    low, high = sorted((one, other))
    covered: set[int] = set()
    for text in ovs_security.port_masks(low, high):
        if not text:
            covered |= set(range(65536))
            continue
        value, _, mask = text.partition("/")
        start, bits = int(value, 0), int(mask, 0) if mask else 0xFFFF
        size = 0x10000 - bits
        assert start & bits == start, "OpenFlow refuses values outside their mask"
        block = set(range(start, start + size))
        assert not covered & block
        covered |= block
    assert covered == set(range(low, high + 1))


@pytest.mark.parametrize(
    ("rule", "matches"),
    [
        (RuleSpec(direction="ingress"), ["ip"]),
        (RuleSpec(direction="ingress", ethertype="IPv6"), ["ipv6"]),
        (WEB, ["tcp,tp_dst=80"]),
        (RuleSpec(direction="ingress", protocol="tcp", port_min=80, remote=("10.0.0.5/24",)),
         ["tcp,nw_src=10.0.0.0/24,tp_dst=80"]),
        (RuleSpec(direction="egress", protocol="6", remote=("0.0.0.0/0", "::/0")), ["tcp"]),
        (RuleSpec(direction="egress", ethertype="IPv6", protocol="udp", port_min=53, port_max=53, remote=("fd00::/8",)),
         ["udp6,ipv6_dst=fd00::/8,tp_dst=53"]),
        (RuleSpec(direction="ingress", protocol="icmp", port_min=8, port_max=0), 
         ["icmp,icmp_type=8,icmp_code=0"]),
        (RuleSpec(direction="ingress", ethertype="IPv6", protocol="icmp", port_min=128), 
         ["icmp6,icmp_type=128"]),
        (RuleSpec(direction="ingress", ethertype="IPv6", protocol="icmpv6"),
         ["icmp6"]),
        (RuleSpec(direction="ingress", protocol="vrrp"), ["ip,nw_proto=112"]),
        (RuleSpec(direction="ingress", protocol="0"), ["ip"]),
        (RuleSpec(direction="ingress", protocol="sctp", port_min=5, port_max=5), ["sctp,tp_dst=5"]),
        (RuleSpec(direction="ingress", protocol="dccp", port_min=5, port_max=5), []),
        (RuleSpec(direction="ingress", remote=()), []),
        (RuleSpec(direction="ingress", protocol="tcp", port_min=1, port_max=65535, remote=("fd00::1",)), []),
    ],
)  # fmt: skip
def test_rules_become_matches(rule: RuleSpec, matches: list[str]) -> None:
    assert ovs_security.rule_matches(rule) == matches


def test_a_port_asks_each_of_its_groups_once() -> None:
    spec = port(network(), 3, rules=(), groups=("b", "a"))
    flows = ovs_flows.port_flows(spec, 5, 1, {"a": 7, "b": 9})
    asked = "set_field:0->reg9,set_field:7->reg8,resubmit(,{0}),set_field:9->reg8,resubmit(,{0}),resubmit(,{1})"
    assert [flow for flow in flows if flow.startswith(("table=11", "table=41", "table=13", "table=43"))] == [
        f"table=11,priority=50,reg6=5 actions={asked.format(13, 12)}",
        f"table=41,priority=50,reg7=5 actions={asked.format(43, 42)}",
    ]


def test_claims_name_mac_and_address_together() -> None:
    spec = port(network(), 3, allowed_pairs=(("10.0.0.100", "00:00:5e:00:01:01"),))
    flows = ovs_flows.port_flows(spec, 5, 1, {})
    tracked = {flow.partition("priority=50,")[2] for flow in flows if ",ip,nw_src=" in flow}
    assert tracked == {
        f"in_port=5,dl_src={spec.mac},ip,nw_src=10.0.0.3/32 actions=ct(table=11,zone=5)",
        "in_port=5,dl_src=00:00:5e:00:01:01,ip,nw_src=10.0.0.100/32 actions=ct(table=11,zone=5)",
    }
    assert not any("dl_src=00:00:5e:00:01:01" in flow and "nw_src=10.0.0.3/32" in flow for flow in flows)


def test_down_means_nothing_and_open_means_everything() -> None:
    spec = port(network(), 3)
    assert ovs_flows.port_flows(replace(spec, admin_state_up=False), 5, 1, {}) == []
    opened = ovs_flows.port_flows(replace(spec, port_security=False, rules=EGRESS), 5, 1, {})
    assert len(opened) == 2
    assert not any("ct(" in flow for flow in opened)


def test_what_came_by_a_tunnel_never_leaves_by_one() -> None:
    members = [Member(ofport=3, macs=("fa:16:3e:00:00:03",))]
    flows = ovs_flows.network_flows(1, members, [Uplink(ofport=9), Uplink(ofport=10)])
    from_others = [flow for flow in flows if "reg4=1" in flow.partition(" ")[0]]
    assert from_others
    assert not any("output:9" in flow or "output:10" in flow for flow in from_others)


def test_who_roams_is_learned_and_gets_all_that_other_hosts_send_here() -> None:
    enter, deliver = ovs_flows.trusted_flows(5, 1, roaming="FA:16:3e:00:00:01")
    assert "learn(table=31" in enter
    assert deliver == "table=30,priority=100,reg4=1,reg5=1,dl_dst=fa:16:3e:00:00:01 actions=output:5"
    (plain,) = ovs_flows.trusted_flows(5, 1)
    assert "learn" not in plain


def test_a_vlan_is_put_on_and_taken_off() -> None:
    flows = ovs_flows.network_flows(1, [], [Uplink(ofport=9, vlan=100, tunnel=False)])
    assert any("in_port=9,dl_vlan=100 actions=strip_vlan" in flow for flow in flows)
    assert any("mod_vlan_vid:100,output:9" in flow for flow in flows)


def test_a_guest_hears_floods_only_through_its_filter() -> None:
    members = [Member(ofport=3, macs=("fa:16:3e:00:00:03",)), Member(ofport=4, macs=(), trusted=True)]
    floods = [flow for flow in ovs_flows.network_flows(1, members, []) if "dl_dst=01:" in flow]
    for flow in floods:
        assert "output:4" in flow
        assert "output:3" not in flow
        assert "set_field:3->reg7,resubmit(,40)" in flow


def test_digests_ignore_order_and_tell_the_size() -> None:
    assert ovs_flows.digest(["a", "b"]) == ovs_flows.digest(["b", "a"])
    assert ovs_flows.digest(["a", "b"]).startswith("2:")


def test_cookies_are_of_the_cloud() -> None:
    mine, yours = ovs_flows.cookie("a", "port", "1"), ovs_flows.cookie("b", "port", "1")
    assert mine >> 48 != yours >> 48
    assert mine != ovs_flows.cookie("a", "port", "2")


def test_link_local_addresses() -> None:
    assert ovs_flows.link_local("fa:16:3e:12:34:56") == "fe80::f816:3eff:fe12:3456"
