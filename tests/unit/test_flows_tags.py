"""Flows of networks that carry tags of guests: only additions, for tagged frames, and to those who take them."""

from __future__ import annotations

import re

from contract_network import PING, network, port, replace
from hypothesis import given
from hypothesis import strategies as st

from nubila.core.ports import QosSpec, Restricted, TrunkPlace
from nubila.drivers import ovs_flows, ovs_qos, ovs_tags
from nubila.drivers.ovs_flows import Member, Uplink
from nubila.drivers.ovs_trunk import TRUNK
from nubila.drivers.ovs_view import KIND, NETWORK, Interface, View, members

MACS = st.sampled_from([f"fa:16:3e:00:00:0{n}" for n in range(6)])
MEMBERS = st.lists(
    st.builds(
        Member,
        ofport=st.integers(1, 9),
        macs=st.lists(MACS, max_size=2, unique=True).map(tuple),
        trusted=st.booleans(),
        open=st.booleans(),
    ),
    max_size=6,
    unique_by=lambda one: one.ofport,
).map(lambda found: [replace(one, tags=not one.trusted and one.ofport % 3 > 0) for one in found])
UPLINKS = st.one_of(
    st.just([]),
    st.lists(st.builds(Uplink, ofport=st.integers(10, 14)), min_size=1, max_size=3, unique_by=lambda one: one.ofport),
    st.sampled_from([0x8100, 0x88A8]).map(lambda kind: [Uplink(ofport=10, vlan=100, tunnel=False, tpid=kind)]),
)
RESTRICTED = st.lists(st.builds(Restricted, device=st.just("tap"), macs=st.tuples(MACS)), max_size=2)


def parts(flow: str) -> tuple[str, str]:
    match, _, actions = flow.partition(" actions=")
    return match, actions


@given(MEMBERS, UPLINKS, RESTRICTED)
def test_what_untagged_frames_meet_stays_as_it_is(
    members: list[Member], uplinks: list[Uplink], restricted: list[Restricted]
) -> None:
    plain = ovs_flows.network_flows(3, members, uplinks, restricted)
    whole = ovs_flows.network_flows(3, members, uplinks, restricted, tags=True)
    added = list(whole)
    for flow in plain:
        added.remove(flow)
    assert not any(flow.startswith(("table=35,", "table=36,")) or ovs_tags.TAGGED in flow for flow in plain)
    for match, _ in map(parts, added):
        assert match.startswith(("table=35,", "table=36,")) or match.endswith(ovs_tags.TAGGED)
    matches = [parts(flow)[0] for flow in whole]
    assert len(matches) == len(set(matches)), "drift is found by counting"


@given(MEMBERS, UPLINKS, RESTRICTED)
def test_tagged_frames_go_to_takers_and_out_and_nowhere_else(
    members: list[Member], uplinks: list[Uplink], restricted: list[Restricted]
) -> None:
    flows = ovs_flows.network_flows(3, members, uplinks, restricted, tags=True)
    takers = {member.ofport for member in members if member.tags}
    outside = {uplink.ofport for uplink in uplinks}
    tunnels = {uplink.ofport for uplink in uplinks if uplink.tunnel}
    (gate,) = (parts(flow) for flow in flows if flow.startswith("table=30,") and ovs_tags.TAGGED in flow)
    assert gate == (f"table=30,priority=300,reg5=3,{ovs_tags.TAGGED}", "resubmit(,35)")
    highest = max(int(re.findall(r"priority=(\d+)", parts(f)[0])[0]) for f in flows if f.startswith("table=30,"))
    assert highest == 300, "nothing of table 30 comes first"
    apart = [parts(flow) for flow in flows if flow.startswith(("table=35,", "table=36,"))]
    for match, actions in apart:
        assert ",reg5=3" in match, "of this network alone"
        assert {int(n) for n in re.findall(r"set_field:(\d+)->reg7", actions)} <= takers | {0}
        assert {int(n) for n in re.findall(r"output:(\d+)", actions)} <= outside
        assert set(re.findall(r"resubmit\(,(\d+)\)", actions)) <= {"31", "36", "40", "50", "60"}
        if "reg4=1" in match:
            assert not tunnels & {int(n) for n in re.findall(r"output:(\d+)", actions)}
        if "resubmit(,60)" in actions:
            assert int(match.rpartition("reg7=")[2]) in takers
    assert ("table=35,priority=200,reg5=3,dl_vlan=0", "drop") in apart


@given(st.booleans(), st.booleans(), st.booleans())
def test_a_port_lets_tags_in_on_such_networks_only_and_never_from_a_trunk(
    security: bool, trunked: bool, tags: bool
) -> None:
    trunk = TrunkPlace(trunk_id="t") if trunked else None
    spec = port(network(), 3, PING, port_security=security, trunk=trunk)
    plain = ovs_flows.port_flows(spec, 5, 1, {})
    flows = ovs_flows.port_flows(spec, 5, 1, {}, tags=tags)
    new = [flow for flow in flows if flow not in plain]
    assert [flow for flow in flows if flow in plain] == plain
    if trunked or not tags:
        assert new == []
        return
    (entry,) = map(parts, new)
    (untagged,) = (parts(flow) for flow in plain if flow.startswith("table=0,"))
    assert entry == (f"table=0,priority=100,in_port=5,{ovs_tags.TAGGED}", untagged[1]), "the same way in"


def test_limits_are_met_once_whatever_the_tag() -> None:
    limits = QosSpec(egress_kbps=100, egress_pps=10, dscp=8)
    flows = ovs_qos.shaped(ovs_flows.port_flows(port(network(), 3), 5, 1, {}, tags=True), limits, 5)
    assert len([flow for flow in flows if flow.startswith("table=0,") and "meter:" in flow]) == 2
    matches = [parts(flow)[0] for flow in flows]
    assert len(matches) == len(set(matches))


def test_the_networks_own_tag_goes_around_the_guests() -> None:
    uplink = Uplink(ofport=9, vlan=100, tunnel=False)
    assert ovs_tags.leave(uplink) == "push_vlan:0x8100,set_field:4196->vlan_vid,output:9,pop_vlan"
    qinq = replace(uplink, tpid=0x88A8)
    outer = "push_vlan:0x88a8,set_field:4196->vlan_vid,output:9,pop_vlan"
    flows = ovs_flows.network_flows(1, [], [qinq], tags=True)
    leaving = [parts(flow)[1] for flow in flows if "output:9" in flow]
    assert leaving
    assert set(leaving) == {outer}, "for untagged frames as well"


def test_a_flat_network_never_takes_tags_from_outside_nor_lets_them_out() -> None:
    flows = ovs_flows.network_flows(
        1, [Member(ofport=3, macs=(), open=True)], [Uplink(ofport=9, tunnel=False)], tags=True
    )
    assert not any(flow.startswith("table=0,") and ovs_tags.TAGGED in flow for flow in flows)
    assert not any(flow.startswith(("table=35,", "table=36,")) and "output:9" in flow for flow in flows)


def test_who_takes_tags_guests_outside_trunks() -> None:
    def plugged(number: int, kind: str, **ids: str) -> Interface:
        known = {KIND: kind, NETWORK: "n", **ids}
        return Interface(uuid=f"u{number}", port_uuid="", name=f"p{number}", ofport=number, error="", ids=known)

    found = [plugged(1, "guest"), plugged(2, "router"), plugged(3, "dhcp"), plugged(4, "guest", **{TRUNK: "t"})]
    view = View(bridge_uuid="", networks={}, interfaces={i.name: i for i in found}, numbers=frozenset())
    assert [(member.ofport, member.tags) for member in members(view, "n")] == [
        (1, True), (2, False), (3, False), (4, False),
    ]  # fmt: skip
