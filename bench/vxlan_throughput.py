"""VXLAN throughput between two guests on two hosts, by both switches, beside the same tunnel made by hand.

    .venv/bin/python bench/vxlan_throughput.py [--rounds 12] [--seconds 0.7] [--rules 100] [--json FILE]

Hosts and guests are network namespaces, hosts are joined by a veth pair. Made by hand means: the same devices, joined
by ``ip`` and ``bridge`` (or by ``ovs-vsctl`` on the same userspace datapath, which needs checksum offload off), with no
filter at all. All arrangements exist at the same time and take turns (streams.py says what is compared). Goals: at
least 90 % of the tunnel by hand, and at most 10 % lost by a hundred rules. About three minutes. Needs root.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import statistics
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "tests" / "host")]

import streams  # noqa: E402  after the tests' folder is on the path, as all that follow
from contract_network import network, port, replace  # noqa: E402
from network_world import Host  # noqa: E402

from nubila.core.ports import NetworkSpec, PortSpec, RuleSpec, SecurityGroupSpec  # noqa: E402
from nubila.drivers import links, processes  # noqa: E402


class Guest:
    """A namespace with an eth0 whose other end is the port's device."""

    def __init__(self, host: Host, spec: PortSpec, *, offload: bool) -> None:
        self.namespace, self.ip = f"nbv-{spec.id[:8]}", spec.fixed_ips[0].ip_address
        links.ensure_namespace(self.namespace, "nubila bench guest")
        with links.opened(host.place.namespace) as net:
            net.add_veth(spec.device, self.namespace, spec.mac, "eth0")
            net.change(net.must(spec.device), up=True, mtu=spec.mtu)
        with links.opened(self.namespace) as net:
            if not offload:
                links.plain_frames("eth0")
            device = net.must("eth0")
            net.change(device, up=True, mtu=spec.mtu)
            net.set_addresses(device.index, [f"{self.ip}/24"])


class Lane:
    """One arrangement: two hosts, a guest on each, a sink on the second."""

    def __init__(self, root: Path, name: str, number: int, switch: str, rules: int | None) -> None:
        self.name = name
        self.by_hand = switch == "openvswitch" and rules is None
        hosts = [Host(root / f"{number}-{i}", tunnel_ip=f"198.18.{number}.{i}", switch=switch) for i in (1, 2)]
        self.hosts = hosts
        with links.opened(hosts[0].place.namespace) as net:
            net.add_veth("underlay", hosts[1].place.namespace, f"fa:16:3e:00:01:{number:02x}")
        for host in hosts:
            with links.opened(host.place.namespace) as net:
                device = net.must("underlay")
                net.change(device, up=True, mtu=1500)
                net.set_addresses(device.index, [f"{host.place.tunnel_ip}/24"])
        net_spec = network(dhcp=False, vni=number)
        specs = [port(net_spec, n, rules=(), groups=("bench",)) for n in (3, 4)]
        self.guests = [Guest(h, s, offload=switch == "linuxbridge") for h, s in zip(hosts, specs, strict=True)]
        for host, other, spec in zip(hosts, reversed(hosts), specs, strict=True):
            peered = replace(net_spec, peers=(other.place.tunnel_ip,))
            if rules is not None:
                host.driver.ensure_network(peered)
                host.driver.ensure_security_group(SecurityGroupSpec(id="bench", rules=_rules(rules)))
                host.driver.ensure_port(spec)
            elif switch == "linuxbridge":
                _bridge_by_hand(host, peered, spec)
            else:
                _openvswitch_by_hand(host, peered, spec)
        self.sink = streams.sink(self.guests[1].namespace)
        pids = [self.sink.pid]
        if switch == "openvswitch":
            daemons = [host.driver.switch.daemons.run_dir for host in hosts]  # type: ignore[attr-defined]
            pids += [pid for run_dir in daemons if (pid := processes.alive("ovs-vswitchd", run_dir)) is not None]
        source, there = self.guests
        self.stream = streams.Stream(source.namespace, there.namespace, there.ip, tuple(pids))

    def close(self) -> None:
        with contextlib.suppress(AttributeError):
            self.sink.kill()
            self.sink.communicate()
        for host in self.hosts:
            if self.by_hand:  # what was not made by Nubila keeps its Open vSwitch running
                host.run("ovs-vsctl", _database(host), "--if-exists", "del-br", "hand")
            host.close()
        for guest in self.guests:
            links.remove_namespace(guest.namespace)


def _rules(count: int) -> tuple[RuleSpec, ...]:
    """So many rules of different kinds; the last lets the measured stream in."""
    found = [RuleSpec(direction="egress"), RuleSpec(direction="egress", ethertype="IPv6")]
    for i in range(count - 3):
        remote = (f"192.0.2.{i}/32",) if i % 2 else None
        protocol = "tcp" if i % 3 else "udp"
        found.append(
            RuleSpec(direction="ingress", protocol=protocol, port_min=100 + 2 * i, port_max=100 + 2 * i, remote=remote)
        )
    return (*found, RuleSpec(direction="ingress", protocol="tcp", port_min=5001, port_max=5001))


def _run(host: Host, *commands: str) -> None:
    for command in commands:
        host.run(*command.split())


def _tunnel_by_hand(host: Host, net: NetworkSpec) -> str:
    number = net.segment.segmentation_id
    _run(
        host,
        f"ip link add vx{number} mtu {net.mtu} type vxlan id {number} local {host.place.tunnel_ip} dstport 4789",
        f"bridge fdb append 00:00:00:00:00:00 dev vx{number} dst {net.peers[0]}",
        f"ip link set vx{number} up",
    )
    return f"vx{number}"


def _bridge_by_hand(host: Host, net: NetworkSpec, spec: PortSpec) -> None:
    tunnel = _tunnel_by_hand(host, net)
    _run(host, "ip link add hand type bridge", "ip link set hand up")
    _run(host, f"ip link set {tunnel} master hand", f"ip link set {spec.device} master hand")


def _database(host: Host) -> str:
    return f"--db=unix:{host.driver.switch.daemons.database.path}"  # type: ignore[attr-defined]  # it is that switch


def _openvswitch_by_hand(host: Host, net: NetworkSpec, spec: PortSpec) -> None:
    tunnel = _tunnel_by_hand(host, net)
    vsctl = ["ovs-vsctl", _database(host)]
    for command in ("add-br hand -- set bridge hand datapath_type=netdev", f"add-port hand {tunnel}",
                    f"add-port hand {spec.device}"):  # fmt: skip
        host.run(*vsctl, *command.split())


@contextlib.contextmanager
def lanes(rules: int) -> Iterator[list[tuple[Lane, str]]]:
    """Every arrangement with the name of what it is compared with."""
    plan = [
        ("bridge by hand", "linuxbridge", None, ""),
        ("Linux bridge, 3 rules", "linuxbridge", 3, "bridge by hand"),
        (f"Linux bridge, {rules} rules", "linuxbridge", rules, "bridge by hand"),
        ("Open vSwitch by hand", "openvswitch", None, ""),
        ("Open vSwitch, 3 rules", "openvswitch", 3, "Open vSwitch by hand"),
        (f"Open vSwitch, {rules} rules", "openvswitch", rules, "Open vSwitch by hand"),
    ]
    made: list[tuple[Lane, str]] = []
    with tempfile.TemporaryDirectory(prefix="nubila-vxlan-") as folder:
        try:
            for number, (name, switch, count, base) in enumerate(plan, 1):
                made.append((Lane(Path(folder), name, number, switch, count), base))
            yield made
        finally:
            for lane, _ in made:
                lane.close()


def main() -> None:
    """Measure, print the verdicts; optionally leave the figures as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--seconds", type=float, default=0.7)
    parser.add_argument("--rules", type=int, default=100)
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    found: dict[str, dict[str, float]] = {}
    with lanes(asked.rules) as made:
        turns = streams.rounds({lane.name: lane.stream for lane, _ in made}, asked.rounds, asked.seconds)
        for lane, base in made:
            speed, price = streams.compared(turns[lane.name], turns[base or lane.name])
            gbits = statistics.median(one.speed for one in turns[lane.name])
            found[lane.name] = {"gbits": gbits, "speed": speed, "price": price}
            if base:
                print(streams.verdict(f"{lane.name}, {gbits:.2f} Gbit/s, beside {base}", speed, price, 0.9))
    for switch in ("Linux bridge", "Open vSwitch"):
        many, few = turns[f"{switch}, {asked.rules} rules"], turns[f"{switch}, 3 rules"]
        print(streams.verdict(f"{switch}: {asked.rules} rules beside 3 rules", *streams.compared(many, few), 0.9))
    if asked.json:
        asked.json.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
