"""Security groups on a real switch: what rules cost to apply, and what they cost a TCP stream between two guests.

    python -m bench.security_groups [--rules 100] [--seconds 4] [--rounds 3]

Root and Open vSwitch are needed; hosts and guests are network namespaces. Two guests whose ports have no filter at all
(port security off) and two behind a group with so many rules stream in turns; the medians are compared. Then a
thousand rules are given to a group with a hundred ports on one host.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).parents[1] / "tests"), str(Path(__file__).parents[1] / "tests" / "host")]

from contract_network import EGRESS, network, port  # noqa: E402
from network_world import Guest, Host, until  # noqa: E402

from nubila.core.ports import RuleSpec, SecurityGroupSpec  # noqa: E402

_SINK = """
import socket, sys
server = socket.create_server(("0.0.0.0", 5001))
while True:
    peer, _ = server.accept()
    while peer.recv(1 << 20):
        pass
"""
_SOURCE = """
import socket, sys, time
out = socket.create_connection((sys.argv[1], 5001), timeout=5)
data, sent, ends = b"x" * (1 << 16), 0, time.monotonic() + float(sys.argv[2])
while time.monotonic() < ends:
    sent += out.send(data)
print(sent * 8 / float(sys.argv[2]) / 1e6)
"""


def rules(n: int) -> tuple[RuleSpec, ...]:
    """Rules that do not match, and last the one that does."""
    others = tuple(
        RuleSpec(direction="ingress", protocol="tcp", port_min=p, port_max=p, remote=(f"192.0.{p % 250}.0/24",))
        for p in range(10_000, 10_000 + n - 1)
    )
    return (*EGRESS, *others, RuleSpec(direction="ingress", protocol="tcp", port_min=5001, port_max=5001))


def stream(server: Guest, client: Guest, seconds: float) -> float:
    """Megabits per second."""
    done = client.run("python3", "-c", _SOURCE, server.ip, str(seconds), patience_s=seconds + 20)
    return float(done.stdout)


def throughput(host: Host, n: int, seconds: float, rounds: int) -> dict[str, Any]:
    """The same stream without and with ``n`` rules, in turns."""
    net = network(dhcp=False)
    host.driver.ensure_network(net)
    host.driver.ensure_security_group(SecurityGroupSpec(id="few", rules=rules(1)))
    host.driver.ensure_security_group(SecurityGroupSpec(id="bench", rules=rules(n)))
    pairs: dict[str, tuple[Guest, Guest]] = {}
    kinds: dict[str, dict[str, Any]] = {
        "no_filter": {"port_security": False, "rules": ()},
        "1_rule": {"groups": ("few",), "rules": ()},
        f"{n}_rules": {"groups": ("bench",), "rules": ()},
    }
    for i, (name, more) in enumerate(kinds.items()):
        server, client = (host.guest(port(net, 10 + 2 * i + j, **more)).configure() for j in (0, 1))
        server.spawn("python3", "-c", _SINK)
        until(lambda s=server: ":5001" in s.run("busybox", "netstat", "-ltn").stdout, "the sink")  # type: ignore[misc]
        pairs[name] = (server, client)
    seen: dict[str, list[float]] = {name: [] for name in pairs}
    names = list(pairs)
    for turn in range(rounds):  # each is first, in the middle and last equally often
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            server, client = pairs[name]
            seen[name].append(stream(server, client, seconds))
    found: dict[str, Any] = {f"mbit_s_{name}": round(statistics.median(values)) for name, values in seen.items()}
    one, many = found["mbit_s_1_rule"], found[f"mbit_s_{n}_rules"]
    return found | {f"cost_of_{n}_rules_percent": round(100 * (1 - many / one), 1)}


def applying(host: Host, ports: int, n: int) -> dict[str, Any]:
    """Rules given to a group with many ports: bundles, flows and seconds."""
    net = network(dhcp=False, vni=9)
    host.driver.ensure_network(net)
    for number in range(20, 20 + ports):
        host.driver.ensure_port(port(net, number, rules=(), groups=("many",)))
    switch: Any = host.driver.switch
    bundles: list[int] = []
    send = switch._bundle

    def count(lines: list[str]) -> None:
        bundles.append(len(lines))
        send(lines)

    switch._bundle = count
    times = []
    for content in (rules(n), rules(n)[:-1]):
        began = time.monotonic()
        host.driver.ensure_security_group(SecurityGroupSpec(id="many", rules=content))
        times.append(round(time.monotonic() - began, 3))
    return {"ports": ports, "rules": n, "bundle_lines": list(bundles), "seconds": times}


def main() -> None:
    """Run it and print one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rules", type=int, default=100)
    parser.add_argument("--seconds", type=float, default=4)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--ports", type=int, default=100)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as root:
        host = Host(Path(root) / "host")
        try:
            found = throughput(host, options.rules, options.seconds, options.rounds)
            found["applying"] = applying(host, options.ports, 1000)
        finally:
            host.close()
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
