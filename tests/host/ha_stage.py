"""Five machines as the L3HA scenario has them: a controller, two network hosts, two compute hosts, four networks.

Management 10.0.0.0/24 (eth0), tunnels 10.0.1.0/24 (eth1), external 203.0.113.0/24 (eth2 of the network hosts, in the
bridge br-ex). The external network's gateway and everybody out there is the external wire itself: captures on it see
which host a frame came from.
"""

from __future__ import annotations

import json
import re
import subprocess
import time
from pathlib import Path
from typing import Any

from machines import Controller, Guest, Machine, Wire, until

from nubila.drivers import links

NAMES = ("controller", "network1", "network2", "compute1", "compute2")
URL = "https://10.0.0.1:5443"
GATEWAY = "203.0.113.1"


class Stage:
    """The machines, a highly available router, and guests on the compute hosts."""

    def __init__(
        self,
        root: Path,
        names: tuple[str, ...] = NAMES,
        settings: str = "",
        *,
        switch: str = "openvswitch",
        real: tuple[str, ...] = (),
    ) -> None:
        self.switch, self.real = switch, real
        self.states = {name: root / name for name in names}
        self.machines = {name: Machine(name) for name in names}
        self.management, self.tunnels, self.external = Wire(), Wire(), Wire()
        self.network_hosts = [name for name in names if name.startswith("network")]
        try:
            self._bring_up(names, settings)
        except BaseException:
            self.close()
            raise

    def _bring_up(self, names: tuple[str, ...], settings: str) -> None:
        for i, (name, machine) in enumerate(self.machines.items(), 1):
            self.management.connect(machine, f"10.0.0.{i}/24")
            if name != "controller":
                self.tunnels.connect(machine, f"10.0.1.{i}/24", "eth1")
        self.external.inside("ip", "addr", "add", f"{GATEWAY}/24", "dev", "br0")
        state = self.states["controller"]
        state.mkdir(mode=0o700, parents=True)
        (state / "nubila.toml").write_text(f'l3_ha = true\nphysical_networks = ["physnet1", "external"]\n{settings}')
        self.cloud = Controller(
            self.machines["controller"], state, "--host-listen", URL[8:], "--gear", "simulated",
            "--host", "controller",
        )  # fmt: skip
        self.cloud.nubila("host", "remove", "controller", "--force")  # it controls, and is no host itself
        for i, name in enumerate(names, 1):
            if name != "controller":
                self.join(name, f"10.0.1.{i}")
        self.guests: dict[str, Guest] = {}

    def join(self, name: str, tunnel: str) -> None:
        """Make a machine a host; a network host's eth2 goes into br-ex."""
        machine = self.machines[name]
        network = name in self.network_hosts
        card = "br-ex" if self.switch == "openvswitch" else "eth2"
        more = ["--physical", f"external={card}"] if network else []
        if not network and name not in self.real:
            more = ["--hypervisor", "simulated"]
        roles = ("network",) if network else ("compute",)
        if network:
            self.plug_in(name)
        where = ["--tunnel-ip", tunnel, "--switch", self.switch]
        self.cloud.join(machine, self.states[name], URL, *where, *more, roles=roles)

    def plug_in(self, name: str) -> None:
        """Connect a network host to the outside."""
        machine = self.machines[name]
        self.external.connect(machine, "", "eth2")
        with self.external.machine.network():  # the userspace switch passes frames on as they are
            for device in ("br0", f"to-{name}"):
                links.plain_frames(device)

    def bridge(self, name: str) -> None:
        """Put eth2 into br-ex, as the operator of a network host does."""
        if self.switch != "openvswitch":
            return
        machine = self.machines[name]
        argv = ["--timeout=5", "--may-exist", "add-port", "br-ex", "eth2"]
        until(lambda: machine.run("ovs-vsctl", f"--db=unix:{self.ovs_database(name)}", *argv), "eth2 in br-ex")

    def ovs_database(self, name: str) -> str:
        """The socket of a machine's Open vSwitch database."""
        found = self.machines[name].run("find", "/run", "-name", "db.sock", "-path", "*nubila*").stdout.split()
        return found[0] if found else ""

    def close(self) -> None:
        """Switch everything off."""
        for machine in (*self.machines.values(), *(w.machine for w in (self.management, self.tunnels, self.external))):
            machine.switch_off()

    # --- the project

    def call(self, method: str, path: str, body: Any = None, who: str = "admin", **query: Any) -> Any:
        """One call of the Networking API."""
        return self.cloud.call(method, "network", path, body, who=who, **query)

    def build(self, who: str = "demo") -> None:
        """External network, project network, router with both, a guest with a floating IP."""
        external = {"name": "ext-net", "router:external": True, "provider:network_type": "flat",
                    "provider:physical_network": "external"}  # fmt: skip
        self.ext_net = self.call("POST", "/networks", {"network": external})["network"]["id"]
        self.call("POST", "/subnets", {"subnet": {
            "network_id": self.ext_net, "name": "ext-subnet", "cidr": "203.0.113.0/24", "ip_version": 4,
            "gateway_ip": GATEWAY, "enable_dhcp": False,
            "allocation_pools": [{"start": "203.0.113.101", "end": "203.0.113.200"}]}})  # fmt: skip
        self.net = self.call("POST", "/networks", {"network": {"name": "demo-net"}}, who)["network"]["id"]
        subnet = {"network_id": self.net, "name": "demo-subnet", "cidr": "192.168.1.0/24", "ip_version": 4,
                  "gateway_ip": "192.168.1.1"}  # fmt: skip
        self.subnet = self.call("POST", "/subnets", {"subnet": subnet}, who)["subnet"]["id"]
        until(lambda: all(self.cloud.hosts()[name]["alive"] for name in self.network_hosts), "hosts for the router")
        self.router = self.call("POST", "/routers", {"router": {"name": "demo-router"}}, who)["router"]["id"]
        self.call("PUT", f"/routers/{self.router}/add_router_interface", {"subnet_id": self.subnet}, who)
        gateway = {"router": {"external_gateway_info": {"network_id": self.ext_net}}}
        self.call("PUT", f"/routers/{self.router}", gateway, who)
        for name in self.network_hosts:
            self.bridge(name)
        shown = self.call("GET", f"/routers/{self.router}")["router"]
        self.outside = shown["external_gateway_info"]["external_fixed_ips"][0]["ip_address"]

    def guest(self, host: str, name: str = "demo-instance1") -> Guest:
        """A guest on a compute host, with its address."""
        port = self.call("POST", "/ports", {"port": {
            "network_id": self.net, "name": name, "binding:host_id": host, "device_id": name,
            "device_owner": "compute:nova", "port_security_enabled": False}})["port"]  # fmt: skip
        guest = Guest(self.machines[host], port)
        guest.run("ip", "addr", "add", f"{guest.ip}/24", "dev", "eth0")
        guest.run("ip", "route", "add", "default", "via", "192.168.1.1")
        self.guests[name] = guest
        body = {"floatingip": {"floating_network_id": self.ext_net, "port_id": port["id"]}}
        self.floating = str(self.call("POST", "/floatingips", body)["floatingip"]["floating_ip_address"])
        return guest

    def move_away(self, host: str) -> None:
        """Take the router from a host, without losing a packet."""
        self.call("DELETE", f"/agents/{self.l3_agent(host)}/l3-routers/{self.router}")

    def give(self, host: str) -> None:
        """Put the router on a host again."""
        self.call("POST", f"/agents/{self.l3_agent(host)}/l3-routers", {"router_id": self.router})

    def cut(self, host: str) -> None:
        """Pull every cable of a host."""
        for wire in (self.tunnels, self.management, self.external):
            wire.cut(self.machines[host])

    def mend(self, host: str) -> None:
        """Put them back."""
        for wire in (self.tunnels, self.management, self.external):
            wire.mend(self.machines[host])

    # --- looking

    def l3_agent(self, host: str) -> str:
        """The L3 agent's id of a host."""
        found = self.call("GET", "/agents", agent_type="L3 agent", host=host)["agents"]
        return str(found[0]["id"])

    def states_of(self) -> dict[str, str]:
        """host -> ha_state of the router."""
        found = self.call("GET", f"/routers/{self.router}/l3-agents")["agents"]
        return {a["host"]: a["ha_state"] for a in found}

    def active(self) -> str:
        """The host that forwards; "" when none does."""
        return next((host for host, state in self.states_of().items() if state == "active"), "")

    def standby(self) -> str:
        """The first host that stands by."""
        return next((host for host, state in sorted(self.states_of().items()) if state != "active"), "")

    def inside(self, host: str, *argv: str, check: bool = True) -> str:
        """A command in the router's namespace on a host."""
        return self.machines[host].run("ip", "netns", "exec", f"qrouter-{self.router}", *argv, check=check).stdout

    def hears(self, host: str, other: str) -> bool:
        """Whether one host of the router reaches the other over their hidden network."""
        found = [a for d, mine in self.addresses(other).items() if d.startswith("ha-") for a in mine]
        address = next((a for a in found if a.startswith("169.254.192.")), "").partition("/")[0]
        return bool(address) and "1 received" in self.inside(host, "ping", "-c", "1", "-W", "1", address, check=False)

    def addresses(self, host: str) -> dict[str, list[str]]:
        """Device -> addresses in the router's namespace on a host."""
        found = json.loads(self.inside(host, "ip", "-j", "addr"))
        return {
            d["ifname"]: [f"{a['local']}/{a['prefixlen']}" for a in d["addr_info"]]
            for d in found
            if d["ifname"] != "lo"
        }

    def from_outside(self, *argv: str, check: bool = False) -> subprocess.CompletedProcess[str]:
        """A command on the external network."""
        outer = ["nsenter", "-t", str(self.external.machine.pid), "--net", *argv]
        return subprocess.run(outer, capture_output=True, text=True, timeout=60, check=check)

    def pings(self, address: str) -> bool:
        """Whether one echo from outside is answered within a second."""
        return self.from_outside("ping", "-c", "1", "-W", "1", address).returncode == 0

    def keeper_log(self, host: str) -> str:
        """What the keeper of a host said."""
        path = self.states[host] / "hosts" / host / "ha" / "keeper.log"
        return path.read_text() if path.exists() else ""

    def power_off(self, host: str) -> None:
        """Pull the plug."""
        self.machines[host].switch_off()

    def power_on(self, host: str) -> None:
        """Switch it on again: cards, bridge and Nubila."""
        machine = self.machines[host]
        machine._switch_on()
        i = list(self.machines).index(host) + 1
        for wire, address, device in (
            (self.management, f"10.0.0.{i}/24", "eth0"), (self.tunnels, f"10.0.1.{i}/24", "eth1"),
        ):  # fmt: skip
            wire.connect(machine, address, device)
        machine.nubila("up", "-d", "--state", str(self.states[host]))
        if host in self.network_hosts:
            self.plug_in(host)
            self.bridge(host)


class Stream:
    """Numbered echo requests from outside, ``rate`` a second, and which of them were answered."""

    def __init__(self, stage: Stage, address: str, rate: int = 100) -> None:
        self.rate = rate
        outer = ["nsenter", "-t", str(stage.external.machine.pid), "--net"]
        argv = [*outer, "ping", "-n", "-D", "-O", "-i", f"{1 / rate}", "-W", "2", address]
        self._ping = subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        self.started = time.monotonic()
        self.slowest_ms = 0.0  # the longest that an answer took, once it is stopped
        self.missing: list[int] = []  # numbers of the requests that were not answered, once it is stopped

    def stop(self, linger_s: float = 0.0) -> tuple[int, int, float]:
        """(sent, lost, longest time without an answer in seconds)."""
        time.sleep(linger_s)
        self._ping.send_signal(2)
        out, _ = self._ping.communicate(timeout=20)
        said = re.findall(r"\[(\d+\.\d+)\] \d+ bytes from .* icmp_seq=(\d+) (?!.*DUP)", out)
        answered = sorted({int(number): float(at) for at, number in reversed(said)}.items())
        self.slowest_ms = max(map(float, re.findall(r" time=([\d.]+) ms(?! \(DUP)", out)), default=0.0)
        sent = int(re.search(r"(\d+) packets transmitted", out).group(1))  # type: ignore[union-attr]
        lost, hole, last, then = 0, 0.0, 0, answered[0][1] if answered else 0.0
        for number, at in answered:
            if number > last + 1:
                lost += number - last - 1
                self.missing += range(last + 1, number)
                hole = max(hole, at - then)
            last, then = number, at
        if sent - last > 3:  # the very last ones may still have been on their way
            lost += sent - last
            self.missing += range(last + 1, sent + 1)
            hole = max(hole, (sent - last) / self.rate)
        return sent, lost, round(hole, 3)
