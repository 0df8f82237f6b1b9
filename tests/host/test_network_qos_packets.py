"""Limits and marks on real engines: streams are measured, packets counted, marks seen at the far end."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from contract_network import EGRESS, external, network, port, replace, router
from network_world import Guest, Host, await_line, heard, listen, until

from nubila.core.ports import FloatingSpec, NetworkSpec, PortSpec, QosSpec, RuleSpec
from nubila.drivers import links

pytestmark = pytest.mark.host
ANYTHING = (RuleSpec(direction="ingress"), RuleSpec(direction="ingress", ethertype="IPv6"))
# Counts what comes in between two moments, so that neither the first burst nor the end is measured.
SINK = """
import socket, sys, time
server = socket.create_server(("0.0.0.0", 5001))
print("ready", flush=True)
connection, _ = server.accept()
first, last = float(sys.argv[1]), float(sys.argv[2])
start, seen = time.monotonic(), 0
while (now := time.monotonic() - start) < last:
    got = len(connection.recv(1 << 16))
    seen += got if now >= first else 0
print(round(seen * 8 / 1000 / (last - first)), flush=True)
"""
SOURCE = """
import socket, sys
connection = socket.create_connection((sys.argv[1], 5001))
try:
    while True:
        connection.send(b"x" * 8192)
except OSError:
    pass
"""
PACKETS_SINK = """
import socket, time
receiver = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
receiver.bind(("0.0.0.0", 5002))
receiver.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 22)
print("ready", flush=True)
receiver.recv(2048)
start, seen = time.monotonic(), 0
receiver.settimeout(0.2)
while (now := time.monotonic() - start) < 1.4:
    try:
        receiver.recv(2048)
    except TimeoutError:
        continue
    seen += now >= 0.4
print(round(seen / 1), flush=True)
"""
PACKETS_SOURCE = """
import socket, sys, time
sender = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
end = time.monotonic() + 1.8
while time.monotonic() < end:
    for _ in range(10):
        sender.sendto(b"x", (sys.argv[1], 5002))
    time.sleep(0.002)
"""


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Host]:
    host = Host(tmp_path)
    yield host
    host.close()


def free(net: NetworkSpec, number: int, **more: object) -> PortSpec:
    return replace(port(net, number), rules=(*EGRESS, *ANYTHING), **more)


def kbps(source: Guest, sink: Guest, address: str = "", first_s: float = 0.6, last_s: float = 1.8) -> int:
    """How fast a TCP stream is."""
    server = sink.spawn("python3", "-c", SINK, str(first_s), str(last_s))
    await_line(server.stdout, "ready")
    client = source.spawn("python3", "-c", SOURCE, address or sink.ip)
    said = server.communicate(timeout=20)[0]
    client.kill()
    client.wait()
    return int(said)


def packets_per_s(source: Guest, sink: Guest) -> int:
    """How many small packets of a flood come through each second."""
    server = sink.spawn("python3", "-c", PACKETS_SINK)
    await_line(server.stdout, "ready")
    client = source.spawn("python3", "-c", PACKETS_SOURCE, sink.ip)
    said = server.communicate(timeout=20)[0]
    client.wait(timeout=10)
    return int(said)


def near(measure: Callable[[], int], limit: int) -> bool:
    """Within 20 % of the limit; a busy machine may need a second look."""
    return any(0.8 * limit <= measure() <= 1.2 * limit for _ in range(3))


def pair(host: Host) -> tuple[Guest, Guest]:
    net = network(dhcp=False)
    host.driver.ensure_network(net)
    return host.guest(free(net, 3)).configure(), host.guest(free(net, 4)).configure()


def meters(host: Host) -> list[str]:
    switch = host.driver.switch
    return [line for line in switch.daemons.openflow("dump-meters", switch.bridge).splitlines() if "meter=" in line]


def limit(kbps: int, **more: int) -> QosSpec:
    return QosSpec(egress_kbps=kbps, egress_burst_kbit=int(kbps * 0.8), **more)


def test_bandwidth_is_limited_both_ways_changed_while_streaming_and_freed(host: Host) -> None:
    a, b = pair(host)
    both = limit(6_000, ingress_kbps=5_000, ingress_burst_kbit=4_000)
    host.driver.ensure_port(replace(a.spec, qos=both))
    assert near(lambda: kbps(a, b), 6_000), "from the guest"
    assert near(lambda: kbps(b, a), 5_000), "to the guest"
    flows = host.driver.switch.daemons.openflow("dump-flows --no-stats", host.driver.switch.bridge)
    server = b.spawn("python3", "-c", SINK, "1.2", "2.2")
    await_line(server.stdout, "ready")
    client = a.spawn("python3", "-c", SOURCE, b.ip)
    until(lambda: ":5001" in a.run("busybox", "netstat", "-tn").stdout, "the stream")
    host.driver.ensure_port(replace(a.spec, qos=replace(both, egress_kbps=12_000, egress_burst_kbit=9_000)))
    assert 7_000 <= int(server.communicate(timeout=20)[0]) <= 15_000, "the same connection at the new rate"
    client.kill()
    assert flows == host.driver.switch.daemons.openflow("dump-flows --no-stats", host.driver.switch.bridge)
    host.driver.ensure_port(a.spec)
    assert meters(host) == []
    assert kbps(a, b, first_s=0.2, last_s=0.7) > 13_000
    assert kbps(b, a, first_s=0.2, last_s=0.7) > 13_000


def test_packets_are_limited_both_ways_beside_bandwidth(host: Host) -> None:
    a, b = pair(host)
    spec = limit(
        50_000, egress_pps=500, egress_burst_packets=100, ingress_kbps=50_000, ingress_burst_kbit=40_000,
        ingress_pps=1000, ingress_burst_packets=100,
    )  # fmt: skip
    assert packets_per_s(a, b) > 1500
    host.driver.ensure_port(replace(a.spec, qos=spec))
    assert near(lambda: packets_per_s(a, b), 500)
    assert near(lambda: packets_per_s(b, a), 1000)
    host.driver.remove_port(a.spec.id)
    assert meters(host) == []


def test_marks_are_seen_at_the_far_end(host: Host) -> None:
    a, b = pair(host)
    listening = listen(b, "icmp")
    host.driver.ensure_port(replace(a.spec, qos=QosSpec(dscp=46)))
    assert a.pings(b.ip)
    seen = heard(listening)
    assert "echo request" in seen
    listening = b.spawn("tcpdump", "-i", "eth0", "-l", "-n", "-v", "-Q", "in", "--immediate-mode", "icmp or icmp6")
    await_line(listening.stdout, "listening on")
    assert a.pings(b.ip)
    six = b.run("busybox", "ip", "-6", "addr", "show", "dev", "eth0").stdout.split("inet6 ")[1].partition("/")[0]
    a.run("busybox", "ping", "-c", "1", "-W", "2", f"{six}%eth0")
    seen = heard(listening)
    assert "tos 0xb8" in seen, seen
    assert "class 0xb8" in seen, seen
    listening = a.spawn("tcpdump", "-i", "eth0", "-l", "-n", "-v", "-Q", "in", "--immediate-mode", "icmp")
    await_line(listening.stdout, "listening on")
    assert b.pings(a.ip)
    assert "tos 0x0," in heard(listening), "only what the owner sends is marked"


def test_limits_outlive_a_restart_of_the_switch(host: Host) -> None:
    a, b = pair(host)
    host.driver.ensure_port(replace(a.spec, qos=limit(10_000)))
    before = meters(host)
    assert len(before) == 1
    switch = host.driver.switch
    switch.daemons.openflow("del-meters", switch.bridge)  # takes the flows that name them along
    assert not a.pings(b.ip, 1)
    host.driver.start()
    host.driver.ensure_port(replace(a.spec, qos=limit(10_000)))
    assert a.pings(b.ip)
    switch.daemons.control("exit")
    until(lambda: not switch.daemons.running(), "the switch has ended")
    host.driver.start()
    assert meters(host) == before
    until(lambda: a.pings(b.ip), "packets pass again")
    assert near(lambda: kbps(a, b), 10_000)


@contextmanager
def sink_of(host: Host, address: str) -> Iterator[Guest]:
    """The host itself as the far end outside."""
    outside = object.__new__(Guest)
    outside.host, outside.namespace, outside._children = host, host.place.namespace, []
    yield outside
    for child in outside._children:
        child.kill()
        child.wait()


def test_gateways_and_floating_addresses_have_limits_of_their_own(host: Host) -> None:
    inside, outside = network(dhcp=False), external()
    for net in (inside, outside):
        host.driver.ensure_network(net)
    gate = router(inside, outside=outside)
    a = host.guest(free(inside, 3)).configure("10.0.0.1")
    c = host.guest(free(inside, 4)).configure("10.0.0.1")
    slow = limit(8_000, ingress_kbps=4_000, ingress_burst_kbit=3_200)
    own = limit(6_000)
    floats = (FloatingSpec(id="1", floating_ip="172.24.4.101", fixed_ip=a.ip, qos=slow),)
    host.driver.ensure_router(replace(gate, floating_ips=floats, gateway_qos=own))
    with sink_of(host, "172.24.4.1") as far:
        assert near(lambda: kbps(a, far, "172.24.4.1"), 8_000), "from the floating address"
        assert near(lambda: kbps(far, a, "172.24.4.101"), 4_000), "to the floating address"
        assert near(lambda: kbps(c, far, "172.24.4.1"), 6_000), "from the router's own address"
        host.driver.ensure_router(gate)
        assert kbps(c, far, "172.24.4.1", 0.2, 0.7) > 13_000
    with links.entered(host.driver.router_namespace(gate.id)):
        tables = subprocess.run(["nft", "list", "tables"], capture_output=True, text=True).stdout
    assert "nubila-qos" not in tables


def test_linux_bridges_limit_and_mark_as_well(tmp_path: Path) -> None:
    host = Host(tmp_path, switch="linuxbridge")
    try:
        a, b = pair(host)
        spec = limit(6_000, ingress_kbps=4_000, ingress_burst_kbit=3_200, dscp=46)
        host.driver.ensure_port(replace(a.spec, qos=spec))
        listening = b.spawn("tcpdump", "-i", "eth0", "-l", "-n", "-v", "-Q", "in", "--immediate-mode", "icmp")
        await_line(listening.stdout, "listening on")
        assert a.pings(b.ip)
        assert "tos 0xb8" in heard(listening)
        assert near(lambda: kbps(a, b), 6_000), "from the guest"
        assert near(lambda: kbps(b, a), 4_000), "to the guest"
        host.driver.ensure_port(replace(a.spec, qos=QosSpec(egress_pps=500, egress_burst_packets=100)))
        assert near(lambda: packets_per_s(a, b), 500)
        host.driver.ensure_port(a.spec)
        assert packets_per_s(a, b) > 1500
        host.driver.ensure_port(replace(a.spec, qos=spec))
        host.driver.remove_port(a.spec.id)
        assert "nubila-qos" not in host.run("nft", "list", "tables")
    finally:
        host.close()
