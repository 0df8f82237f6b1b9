"""Prefix delegation on real engines: a Kea server outside, dhcpcd and radvd in the router, and a guest that pings."""

from __future__ import annotations

import ipaddress
import json
import os
import re
import signal
import subprocess
import uuid
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
import sqlalchemy as sa
from network_world import Guest, until
from prefix_server import NEAR, Kea

from nubila.agent.apply import Drivers
from nubila.core.ports import HostPlace
from nubila.drivers import links, prefix_delegation, processes
from nubila.drivers.network import RealNetwork
from nubila.drivers.simulated_hypervisor import SimulatedHypervisor
from nubila.services.network import addresses, hosting, plug
from nubila.testing.cloud import TestCloud

pytestmark = pytest.mark.host
Json = dict[str, Any]
PD = {"subnetpool_id": "prefix_delegation", "ip_version": 6, "ipv6_ra_mode": "slaac", "ipv6_address_mode": "slaac"}


class Upstream:
    """The operator's side of the external network: a namespace with a way to everywhere, and a DHCPv6 server."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.namespace = f"nbw-{uuid.uuid4().hex[:8]}"
        links.ensure_namespace(self.namespace, "nubila test")
        with links.entered(self.namespace):
            links.sysctl("net/ipv6/conf/all/forwarding", "1")
            links.sysctl("net/ipv6/conf/default/accept_dad", "0")
        self.kea = Kea(root, ["nsenter", f"--net={links.NETNS / self.namespace}"], "up0")

    def run(self, *argv: str) -> str:
        with links.entered(self.namespace):
            return subprocess.run(argv, check=True, capture_output=True, text=True, timeout=20).stdout

    def close(self) -> None:
        self.kea.silence()
        links.remove_namespace(self.namespace)


class Site:
    """A cloud of one real host, its external network joined to the upstream."""

    def __init__(self, root: Path, switch: str = "openvswitch") -> None:
        self.root, self.switch, self.guests = root, switch, list[Guest]()
        self.upstream = Upstream(root)
        self.cloud = TestCloud(root / "cloud", hosts=0)
        self.cloud.add_host("host1", self._drivers, bridges={"physnet1": "br-ex"})
        self._connect()
        self.public = self.ok("GET", "networks", **{"router:external": True})["networks"][0]
        six = {"network_id": self.public["id"], "ip_version": 6, "cidr": f"{NEAR}/64", "gateway_ip": f"{NEAR}1"}
        self.make("subnet", **six, enable_dhcp=False)

    def _drivers(self, place: HostPlace) -> Drivers:
        namespace = f"nbh-{uuid.uuid4().hex[:8]}"
        links.ensure_namespace(namespace, "nubila test host")
        self.place = msgspec.structs.replace(place, namespace=namespace, switch=self.switch)
        self.driver = RealNetwork(self.place)
        return Drivers(SimulatedHypervisor(place), self.driver)

    def _connect(self) -> None:
        bridge = self.switch == "linuxbridge"
        device = "br-ex" if bridge else "uplink"  # a Linux bridge switch makes its own bridge, with the card in it
        with links.opened(self.place.namespace) as net:
            net.add_veth(device, self.upstream.namespace, "fa:16:3e:00:ee:01")
            net.change(net.must(device), up=True)
        with links.entered(self.place.namespace):
            links.plain_frames(device)
        if not bridge:
            self.driver.switch.physical_bridge("physnet1")
            database = f"--db=unix:{self.driver.switch.daemons.run_dir}/db.sock"
            with links.entered(self.place.namespace):
                argv = ["ovs-vsctl", database, "--no-wait", "add-port", "br-ex", "uplink"]
                subprocess.run(argv, check=True, timeout=20)
        self.upstream.run("ip", "link", "set", device, "name", "up0")
        with links.entered(self.upstream.namespace):
            links.plain_frames("up0")
        self.upstream.run("ip", "link", "set", "up0", "up")
        self.upstream.run("ip", "addr", "add", f"{NEAR}1/64", "dev", "up0", "nodad")

    def restart_agent(self) -> None:
        """The agent was killed: a new one finds what runs."""
        self.driver = RealNetwork(self.place)
        self.cloud.agents[0].drivers.network = self.driver
        self.driver.start()

    def call(self, method: str, path: str, body: Any = None, user: str = "admin", **query: Any) -> Any:
        return self.cloud.request(
            method, f"/network/v2.0/{path}", body, token=self.cloud.token(user), query=query or None
        )

    def ok(self, method: str, path: str, body: Any = None, **query: Any) -> Any:
        got = self.call(method, path, body, **query)
        assert got.status < 300, got.body
        return got.json if got.body else None

    def make(self, item: str, user: str = "admin", **values: Any) -> Json:
        got = self.call("POST", f"{item}s", {item: values}, user)
        assert got.status < 300, got.body
        found: Json = got.json[item]
        return found

    def cidr(self, subnet: Json) -> str:
        """What the API says once everybody has done what is due."""
        self.cloud.settle()
        return str(self.ok("GET", f"subnets/{subnet['id']}")["subnet"]["cidr"])

    def delegated(self, subnet: Json, within: str, patience_s: float = 40.0) -> str:
        """Wait for a prefix of this one; the CIDR."""
        wide, last = ipaddress.IPv6Network(within), [""]

        def there() -> bool:
            last[0] = self.cidr(subnet)
            return ipaddress.IPv6Network(last[0]).subnet_of(wide)

        until(there, f"a prefix of {within}; {self.upstream.kea.log()[-1500:]}", patience_s)
        return last[0]

    def plug(self, made: Json) -> Guest:
        """A guest of the port that configures itself; its device is there before the agent looks."""
        cloud = self.cloud.cloud
        with cloud.store.write() as tx:
            plug.attach_port(
                cloud, tx, made["id"], device_id=str(uuid.uuid4()), device_owner="compute:nova", host="host1"
            )
        with cloud.store.read() as reader:
            spec = hosting.describe_port(cloud, reader, made["id"], "host1")
        assert spec is not None
        stage: Any = SimpleNamespace(place=self.place, root=self.root)
        self.guests.append(Guest(stage, spec))
        self.cloud.settle()
        return self.guests[-1]

    def close(self) -> None:
        for guest in self.guests:
            guest.close()
        self.driver.destroy()
        links.remove_namespace(self.place.namespace)
        self.upstream.close()
        self.cloud.close()


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    site = Site(tmp_path)
    try:
        yield site
    finally:
        site.close()


def own(guest: Guest, address: str) -> bool:
    """Whether the guest gave itself the address, and prefers it."""
    shown = json.loads(guest.run("ip", "-6", "-j", "addr", "show", "dev", "eth0").stdout)[0]["addr_info"]
    return any(a["local"] == address and not a.get("deprecated") for a in shown)


def build(site: Site, **kind: Any) -> tuple[Json, Json, Json, Guest]:
    """A user's network with a delegated subnet behind a router, and a guest."""
    network = site.make("network", "demo")
    subnet = site.make("subnet", "demo", network_id=network["id"], **PD)
    values = {"project_id": network["project_id"], "external_gateway_info": {"network_id": site.public["id"]}, **kind}
    router = site.make("router", "admin", **values)
    site.ok("PUT", f"routers/{router['id']}/add_router_interface", {"subnet_id": subnet["id"]})
    port = site.make("port", "demo", network_id=network["id"])
    return subnet, router, port, site.plug(port)


def follow(site: Site, router: Json, port: Json, guest: Guest, cidr: str) -> None:
    """The API's address is the guest's own, and it reaches the operator's side and is reached from there."""
    address = addresses.eui64(cidr, port["mac_address"])
    shown = site.ok("GET", f"ports/{port['id']}")["port"]["fixed_ips"]
    assert [ip["ip_address"] for ip in shown] == [address]
    gateway = site.ok("GET", f"routers/{router['id']}")["router"]["external_gateway_info"]["external_fixed_ips"]
    hop = next(ip["ip_address"] for ip in gateway if ":" in ip["ip_address"])
    site.upstream.run("ip", "-6", "route", "replace", cidr, "via", hop)
    until(lambda: own(guest, address), f"SLAAC in {cidr}", 20)
    until(lambda: guest.pings(f"{NEAR}1", 2), "the guest reaches the other side", 20)


def client(site: Site, router: Json) -> Path:
    return site.place.root / "routers" / router["id"]


def test_a_delegated_prefix_all_its_life(site: Site) -> None:
    subnet, router, port, guest = build(site)
    assert site.cidr(subnet) == "::/64"
    site.upstream.kea.serve("2001:db8:1000::")
    first = site.delegated(subnet, "2001:db8:1000::/48")
    follow(site, router, port, guest, first)
    run_dir = client(site, router)

    # Whoever dies is started again and the prefix stays: the client's processes, the agent, both.
    pid = processes.alive(prefix_delegation.NAME, run_dir)
    assert pid is not None
    inner = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()[0]
    for victim in (int(inner), None):
        os.kill(victim or processes.alive(prefix_delegation.NAME, run_dir) or 0, signal.SIGKILL)
        if victim is None:
            site.restart_agent()
        until(lambda: processes.alive(prefix_delegation.NAME, run_dir) is None, "it is dead")
        assert site.cidr(subnet) == first
        assert processes.alive(prefix_delegation.NAME, run_dir) is not None, "tended"
        assert site.delegated(subnet, first) == first
        assert guest.pings(f"{NEAR}1", 2)

    # Another server with another pool: renumbered. The guest has both addresses and prefers the new one.
    site.upstream.kea.serve("2001:db8:2000::")
    second = site.delegated(subnet, "2001:db8:2000::/48")
    follow(site, router, port, guest, second)
    until(lambda: not own(guest, addresses.eui64(first, port["mac_address"])), "the old address is deprecated")

    # A server that stays away: the lease ends.
    site.upstream.kea.silence()
    until(lambda: site.cidr(subnet) == "::/64", "the prefix is void", 40)
    until(lambda: not own(guest, addresses.eui64(second, port["mac_address"])), "so is its address")
    site.upstream.kea.serve("2001:db8:3000::")
    third = site.delegated(subnet, "2001:db8:3000::/48", 150)

    # Given back, and nothing left.
    site.ok("PUT", f"routers/{router['id']}/remove_router_interface", {"subnet_id": subnet["id"]})
    assert site.cidr(subnet) == "::/64"
    assert processes.alive(prefix_delegation.NAME, run_dir) is None
    until(lambda: re.search(f"DHCP6_RELEASE_PD.*{third}", site.upstream.kea.log()) is not None, "the server was told")
    namespace = site.driver.router_namespace(router["id"])
    with links.entered(namespace):
        argv = ["ip", "-6", "route", "show", "proto", "dhcp"]
        assert subprocess.run(argv, check=True, capture_output=True, text=True, timeout=10).stdout == ""


def test_each_subnet_has_its_own_and_gives_back_its_own(site: Site) -> None:
    site.upstream.kea.serve("2001:db8:1000::", lasts_s=400)
    subnet, router, port, guest = build(site)
    first = site.delegated(subnet, "2001:db8:1000::/48")
    other = site.make("subnet", "demo", network_id=site.make("network", "demo")["id"], **PD)
    site.ok("PUT", f"routers/{router['id']}/add_router_interface", {"subnet_id": other["id"]})
    second = site.delegated(other, "2001:db8:1000::/48")
    assert site.cidr(subnet) == first != second, "the first one is not disturbed"
    follow(site, router, port, guest, first)
    before = site.upstream.kea.log()
    site.ok("PUT", f"routers/{router['id']}/remove_router_interface", {"subnet_id": other["id"]})
    assert site.cidr(other) == "::/64"
    assert site.cidr(subnet) == first

    def released() -> list[str]:
        return [line for line in site.upstream.kea.log()[len(before) :].splitlines() if "RELEASE_PD" in line]

    until(lambda: bool(released()), "the server was told")
    assert all(second in line and first not in line for line in released() if "properly" in line)
    assert guest.pings(f"{NEAR}1", 2)


def test_a_host_without_the_client_says_so(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prefix_delegation, "CLIENT", "dhcpcd-which-is-not-here")
    site.upstream.kea.serve("2001:db8:1000::")
    subnet, router, _, _ = build(site)
    assert site.cidr(subnet) == "::/64"
    with site.cloud.cloud.store.read() as r:
        (note,) = [n for (n,) in r.rows(sa.text("select note from work where kind = 'router' and shard = 'host1'"))]
    assert "is not installed on this host (package dhcpcd-base)" in note
    assert site.ok("GET", f"routers/{router['id']}")["router"]["status"] == "ACTIVE"
    monkeypatch.undo()
    site.cloud.sweep()
    site.delegated(subnet, "2001:db8:1000::/48")


def test_the_central_part_of_a_distributed_router_asks(site: Site) -> None:
    site.upstream.kea.serve("2001:db8:1000::")
    subnet, router, port, guest = build(site, distributed=True)
    follow(site, router, port, guest, site.delegated(subnet, "2001:db8:1000::/48"))


def test_linux_bridges_carry_it_too(tmp_path: Path) -> None:
    site = Site(tmp_path, "linuxbridge")
    try:
        site.upstream.kea.serve("2001:db8:1000::")
        subnet, router, port, guest = build(site)
        follow(site, router, port, guest, site.delegated(subnet, "2001:db8:1000::/48"))
        shown = subprocess.run(["ip", "-n", site.place.namespace, "link"], capture_output=True, text=True, timeout=10)
        assert "br-int" not in shown.stdout
    finally:
        site.close()
