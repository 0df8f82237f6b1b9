"""Security groups on a real switch: what rules cost to apply, and what they cost a TCP stream between two guests.

    .venv/bin/python bench/security_groups.py [--rules 100] [--seconds 0.7] [--rounds 16]

Root and Open vSwitch are needed; hosts and guests are network namespaces. Two guests whose ports have no filter at all
(port security off), two behind a group with one rule and two behind one with so many stream in turns (streams.py says
what is compared). Then a thousand rules are given to a group with a hundred ports on one host. About a minute.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).parents[1] / "tests"), str(Path(__file__).parents[1] / "tests" / "host")]

import streams  # noqa: E402  after the tests' folder is on the path, as all that follow
from contract_network import EGRESS, network, port  # noqa: E402
from network_world import Host  # noqa: E402

from nubila.core.ports import RuleSpec, SecurityGroupSpec  # noqa: E402
from nubila.drivers import processes  # noqa: E402


def rules(n: int) -> tuple[RuleSpec, ...]:
    """Rules that do not match, and last the one that does."""
    others = tuple(
        RuleSpec(direction="ingress", protocol="tcp", port_min=p, port_max=p, remote=(f"192.0.{p % 250}.0/24",))
        for p in range(10_000, 10_000 + n - 1)
    )
    return (*EGRESS, *others, RuleSpec(direction="ingress", protocol="tcp", port_min=5001, port_max=5001))


def throughput(host: Host, n: int, seconds: float, turns: int) -> dict[str, list[streams.Turn]]:
    """The same stream without a filter, with one rule and with ``n`` rules, in turns."""
    net = network(dhcp=False)
    host.driver.ensure_network(net)
    host.driver.ensure_security_group(SecurityGroupSpec(id="few", rules=rules(1)))
    host.driver.ensure_security_group(SecurityGroupSpec(id="bench", rules=rules(n)))
    switch = processes.alive("ovs-vswitchd", host.driver.switch.daemons.run_dir)  # type: ignore[attr-defined]
    assert switch is not None
    kinds: dict[str, dict[str, Any]] = {
        "no filter": {"port_security": False, "rules": ()},
        "1 rule": {"groups": ("few",), "rules": ()},
        f"{n} rules": {"groups": ("bench",), "rules": ()},
    }
    sinks, made = [], {}
    try:
        for i, (name, more) in enumerate(kinds.items()):
            server, client = (host.guest(port(net, 10 + 2 * i + j, **more)).configure() for j in (0, 1))
            sinks.append(streams.sink(server.namespace))
            made[name] = streams.Stream(client.namespace, server.namespace, server.ip, (sinks[-1].pid, switch))
        return streams.rounds(made, turns, seconds)
    finally:
        for one in sinks:
            one.kill()
            one.communicate()


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
    """Run it and print the verdicts."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rules", type=int, default=100)
    parser.add_argument("--seconds", type=float, default=0.7)
    parser.add_argument("--rounds", type=int, default=16)
    parser.add_argument("--ports", type=int, default=100)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as root:
        host = Host(Path(root) / "host")
        try:
            found = throughput(host, options.rules, options.seconds, options.rounds)
            given = applying(host, options.ports, 1000)
        finally:
            host.close()
    many = found[f"{options.rules} rules"]
    for base in ("1 rule", "no filter"):
        speed, price = streams.compared(many, found[base])
        print(streams.verdict(f"{options.rules} rules beside {base}", speed, price, 0.9))
    lines, seconds = given["bundle_lines"], given["seconds"]
    met = len(lines) == 2 and lines[0] < 2 * given["rules"] and lines[1] < 10
    print(
        f"{'PASS' if met else 'MISS'}: {given['rules']} rules for {given['ports']} ports: {len(lines)} bundles for "
        f"a new group and for one rule less, of {lines} lines, in {seconds} s; goal one transaction, not their product"
    )


if __name__ == "__main__":
    main()
