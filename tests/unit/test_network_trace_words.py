"""Reading what Open vSwitch and nft say: pure, from text to words."""

from __future__ import annotations

from typing import Any

from nubila.drivers import trace_nft, trace_ovs

REFUSED = """Flow: icmp,in_port=1

bridge("br-int")
----------------
 0. in_port=1,vlan_tci=0x0000/0x1fff, priority 100, cookie 0x7cd7b00de6f9561b
    set_field:0x1->reg5
    resubmit(,10)
10. ip,in_port=1, priority 50, cookie 0x7cd7b00de6f9561b
    ct(table=11,zone=1)
    drop
     -> A clone of the packet is forked to recirculate.

Final flow: icmp,reg5=0x1
Datapath actions: ct(zone=1),recirc(0x1)

bridge("br-int")
----------------
    thaw
        Resuming from table 11
41. reg7=0x2, priority 50, cookie 0x7cd733449a2001c7
    resubmit(,43)
    43. priority 0, cookie 0x7cd794824dd5db7c
            drop
    resubmit(,42)
42. priority 0, cookie 0x7cd794824dd5db7c
    drop

Final flow: unchanged
"""


def test_a_refusal_is_read_with_its_reason() -> None:
    outcome = trace_ovs.read(REFUSED)
    assert [one.table for one in outcome.passed] == [0, 10, 41, 43, 42]
    assert outcome.outputs == ()
    assert outcome.stop == "no security group rule of the receiving port lets it in"
    assert outcome.passed[1].says.endswith("-> ct(table=11,zone=1)"), "the original is dropped, its copy goes on"
    assert outcome.passed[3].says == "table 43 (rules for receiving): anything else -> drop"


def test_outputs_are_read() -> None:
    text = REFUSED.replace(
        "42. priority 0, cookie 0x7cd794824dd5db7c\n    drop",
        "60. priority 0\n    output:NXM_NX_REG7[]\n     -> output port is 2",
    )
    assert trace_ovs.read(text).outputs == (("br-int", "2"),)
    flood = REFUSED.replace("    resubmit(,42)\n", "    resubmit(,42)\n    output:3\n")
    assert trace_ovs.read(flood).outputs == (("br-int", "3"),), "what a table does after looking into another"
    local = 'bridge("br-ex")\n 0. priority 0\n    NORMAL\n     -> no learned MAC for destination, flooding\n'
    assert trace_ovs.read(local).floods


def test_packets_are_written_as_open_vswitch_wants_them() -> None:
    four = {"smac": "a", "dmac": "b", "src": "10.0.0.1", "dst": "10.0.0.2", "protocol": "tcp", "dport": "22"}
    assert trace_ovs.flow("1", four).endswith("tcp,nw_src=10.0.0.1,nw_dst=10.0.0.2,nw_ttl=64,tcp_src=40000,tcp_dst=22")
    six = {"smac": "a", "dmac": "b", "src": "fd00::1", "dst": "fd00::2"}
    assert "icmp6,ipv6_src=fd00::1" in trace_ovs.flow("LOCAL", six)


def rule(chain: str, *expr: dict[str, Any]) -> dict[str, Any]:
    return {"rule": {"family": "ip", "table": "t", "chain": chain, "expr": list(expr)}}


def match(left: dict[str, Any], right: Any, op: str = "==") -> dict[str, Any]:
    return {"match": {"op": op, "left": left, "right": right}}


DADDR = {"payload": {"protocol": "ip", "field": "daddr"}}
CHAIN = {"chain": {"family": "ip", "table": "t", "name": "pre", "hook": "prerouting", "prio": -100}}


def packet(**more: Any) -> trace_nft.Packet:
    return {
        "iifname": "qg-1", "oifname": "", "src": "192.0.2.1", "dst": "172.24.4.9", "protocol": "tcp", "dport": 80,
        "mark": 0, "status": set(), **more,
    }  # fmt: skip


def test_translations_and_drops_are_worked_out() -> None:
    rules = [
        rule(
            "pre",
            match({"meta": {"key": "iifname"}}, "qg-1"),
            {"mangle": {"key": {"meta": {"key": "mark"}}, "value": 2}},
        ),
        rule("pre", match(DADDR, "172.24.4.8"), {"dnat": {"addr": "10.0.0.8"}}),
        rule(
            "pre",
            match(DADDR, {"prefix": {"addr": "172.24.4.0", "len": 24}}),
            {"dnat": {"addr": "10.0.0.9", "port": 8080}},
        ),
        rule("pre", {"drop": None}),
    ]
    here = packet()
    said, stop = trace_nft.walk({"nftables": [CHAIN, *rules]}, "prerouting", here)
    assert (here["dst"], here["dport"], here["mark"], stop) == ("10.0.0.9", 8080, 2, "")
    assert said == ["nft t pre: destination 172.24.4.9 becomes 10.0.0.9:8080"]
    masked = match({"&": [{"meta": {"key": "mark"}}, 6]}, 0)
    assert trace_nft.walk({"nftables": [CHAIN, rule("pre", masked, {"drop": None})]}, "prerouting", packet())[1]
    assert not trace_nft.walk({"nftables": [CHAIN, rule("pre", masked, {"drop": None})]}, "prerouting", packet(mark=2))[
        1
    ]
    assert trace_nft.walk({"nftables": [CHAIN, *rules]}, "forward", packet()) == ([], "")


def test_what_is_not_understood_is_said_and_passed_over() -> None:
    strange = rule("pre", match({"fib": {"result": "type"}}, "local"), {"drop": None})
    said, stop = trace_nft.walk({"nftables": [CHAIN, strange]}, "prerouting", packet())
    assert stop == ""
    assert "cannot be worked out" in said[0]
