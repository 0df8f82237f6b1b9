"""DHCP and names on real engines: servers that agree, name resolution inside and outside, options."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from contract_network import external, network, port, replace, router, with_hosts
from network_world import Guest, Host, until
from test_network_hosts import join

from nubila.core.ports import DhcpHost, FixedIp, NetworkSpec, PortSpec
from nubila.drivers import links, processes
from nubila.services.network import SERVICE
from nubila.testing.cloud import TestCloud

pytestmark = pytest.mark.host


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Host]:
    host = Host(tmp_path)
    yield host
    host.close()


def known(net: NetworkSpec, *ports: PortSpec, **more: object) -> NetworkSpec:
    """The network whose subnet names no name server: guests are told the DHCP server."""
    net = with_hosts(net, *ports)
    assert net.dhcp is not None
    plain = replace(net.subnets[0], dns_nameservers=(), resolvers=("10.0.0.2",))
    changed: NetworkSpec = replace(net, subnets=(plain,), dhcp=replace(net.dhcp, **more))
    return changed


def resolves(guest: Guest, name: str, server: str = "10.0.0.2") -> str:
    return guest.run("busybox", "nslookup", name, server, check=False, patience_s=30).stdout


@pytest.mark.req("C/DHCP-15", "C/DHCP-16")
def test_two_servers_give_the_same_lease(tmp_path: Path) -> None:
    hosts = [Host(tmp_path / f"h{i}", tunnel_ip=f"198.18.0.{i}") for i in (1, 2)]
    try:
        join(*hosts)
        net = network()
        spec = port(net, 3)
        first = replace(known(net, spec), peers=("198.18.0.2",))
        assert first.dhcp is not None
        other = "fa:16:3e:00:00:02"
        own = (replace(first.dhcp.fixed_ips[0], ip_address="10.0.0.9"),)
        second = replace(
            first, peers=("198.18.0.1",),
            dhcp=replace(first.dhcp, port_id="ffffffff-2222-3333-4444-555555555555", mac=other, fixed_ips=own),
        )  # fmt: skip
        both = tuple(replace(s, resolvers=("10.0.0.2", "10.0.0.9")) for s in first.subnets)
        for host, wish in zip(hosts, (first, second), strict=True):
            host.driver.ensure_network(replace(wish, subnets=both))
        guest = hosts[0].guest(spec)
        lease = guest.lease()
        assert (lease["ip"], lease["dns"]) == ("10.0.0.3", "10.0.0.2 10.0.0.9")
        processes.kill("dnsmasq", hosts[0].place.root / "dhcp" / net.id)
        again = guest.lease()
        assert (again["ip"], again["serverid"]) == ("10.0.0.3", "10.0.0.9"), "the other one stands in"
        assert "web-0.openstack.test" in resolves(guest, "10.0.0.3", "10.0.0.9")
        processes.kill("dnsmasq", hosts[1].place.root / "dhcp" / net.id)
        with pytest.raises(AssertionError, match="no lease"):
            guest.lease()
        hosts[1].driver.ensure_network(replace(second, subnets=both))
        again = guest.lease()
        assert (again["ip"], again["serverid"]) == ("10.0.0.3", "10.0.0.9"), "and is back"
    finally:
        for host in hosts:
            host.close()


@pytest.mark.req("B/NET-44")
def test_names_inside_and_by_an_upstream_server(host: Host) -> None:
    net, outside = network(gateway="10.0.0.1"), external()
    a, b = port(net, 3), port(net, 4)
    net = known(net, a, b, upstreams=("172.24.4.1",))
    for spec in (net, outside):
        host.driver.ensure_network(spec)
    host.driver.ensure_router(router(net, outside=outside))
    run_dir = host.root / "upstream"
    argv = ["dnsmasq", "--keep-in-foreground", "--no-hosts", "--no-resolv", "--pid-file=", "--user=root", "--port=53",
            "--listen-address=172.24.4.1", "--bind-interfaces", "--address=/www.example.test/192.0.2.7"]  # fmt: skip
    processes.start("upstream", argv, run_dir, log=host.root / "upstream.log", netns=host.place.namespace)
    try:
        guest = host.guest(a)
        lease = guest.lease()
        assert (lease["dns"], lease["domain"], lease["search"]) == ("10.0.0.2", "openstack.test", "openstack.test")
        assert "10.0.0.4" in resolves(guest, "web-1.openstack.test")
        assert "10.0.0.4" in resolves(guest, "web-1")
        assert "web-1.openstack.test" in resolves(guest, "10.0.0.4")
        assert "192.0.2.7" in resolves(guest, "www.example.test")
        assert "NXDOMAIN" in resolves(guest, "nobody.openstack.test"), "names of the network are never asked outside"
    finally:
        processes.stop("upstream", run_dir)


def test_resolvers_of_the_host_and_none_at_all(host: Host) -> None:
    net = known(network(), host_resolvers=True)
    host.driver.ensure_network(net)
    run_dir = host.place.root / "dhcp" / net.id
    assert "resolv-file=/etc/resolv.conf" in (run_dir / "config").read_text()
    assert processes.alive("dnsmasq", run_dir)
    assert net.dhcp is not None
    spec = port(net, 3)
    silent = replace(net.subnets[0], dns_nameservers=("0.0.0.0",))
    host.driver.ensure_network(with_hosts(replace(net, subnets=(silent,)), spec))
    assert "dns" not in host.guest(spec).lease(), "0.0.0.0 stands for: none"


def test_options_of_a_port_reach_it_and_only_it(host: Host) -> None:
    net = network()
    assert net.dhcp is not None
    mine, others = port(net, 3), port(net, 4)
    options = (
        ("tftp-server", "192.0.2.9"), ("bootfile-name", "pxe.0"), ("ntp-server", "192.0.2.1,192.0.2.2"),
        ("no-such-option-at-all", "x"), ("dns-server", "not an address"), ("26", "1300"),
    )  # fmt: skip
    entries = tuple(
        DhcpHost(port_id=p.id, mac=p.mac, hostname="h", fixed_ips=p.fixed_ips, options=options if p == mine else ())
        for p in (mine, others)
    )
    host.driver.ensure_network(replace(net, dhcp=replace(net.dhcp, hosts=entries)))
    said = lease_with(host.guest(mine), "tftp", "bootfile", "ntpsrv", "mtu")
    assert (said["mtu"], said["ntpsrv"]) == ("1300", "192.0.2.1 192.0.2.2")
    assert (said.get("tftp"), said.get("bootfile")) == ("192.0.2.9", "pxe.0")
    plain = lease_with(host.guest(others), "tftp", "bootfile", "ntpsrv", "mtu")
    assert plain["mtu"] == "1450"
    assert not {"tftp", "bootfile", "ntpsrv"} & set(plain), "bad and good options of one port concern nobody else"


def lease_with(guest: Guest, *options: str) -> dict[str, str]:
    script = guest.host.root / f"options-{guest.namespace}"
    script.write_text("#!/bin/sh\n[ $1 = bound ] && set\nexit 0\n")
    script.chmod(0o755)
    wanted = [part for name in options for part in ("-O", name)]
    argv = ["busybox", "udhcpc", "-i", "eth0", "-n", "-q", "-f", "-t", "6", "-T", "1", "-s", str(script), *wanted]
    done = guest.run(*argv, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    found = dict(line.split("=", 1) for line in done.stdout.splitlines() if "=" in line)
    return {name: value.strip("'") for name, value in found.items() if name.islower()}


def test_a_restarted_server_remembers_its_leases_and_serves_names_without_dhcp(host: Host) -> None:
    net = network()
    spec = port(net, 3)
    net = known(net, spec)
    host.driver.ensure_network(net)
    guest = host.guest(spec)
    guest.lease()
    run_dir = host.place.root / "dhcp" / net.id
    until(lambda: "10.0.0.3" in (run_dir / "leases").read_text(), "the lease is written")
    assert net.dhcp is not None
    host.driver.ensure_network(replace(net, dhcp=replace(net.dhcp, upstreams=("192.0.2.53",))))
    assert "10.0.0.3" in (run_dir / "leases").read_text(), "another configuration is a restart"
    # What the network has is IPv6 by advertisement only: there are no leases, and names all the same.
    auto = replace(net.subnets[0], id="a", cidr="fd00:5::/64", ip_version=6, ipv6_ra_mode="slaac",
                   ipv6_address_mode="slaac", resolvers=("fd00:5::2",))  # fmt: skip
    own = FixedIp(subnet_id="a", ip_address="fd00:5::2", prefixlen=64)
    its = DhcpHost(port_id=spec.id, mac=spec.mac, hostname="six", fixed_ips=(replace(own, ip_address="fd00:5::7"),))
    bare = replace(net, subnets=(auto,), dhcp=replace(net.dhcp, fixed_ips=(own,), hosts=(its,)))
    host.driver.ensure_network(bare)
    with links.entered(host.driver.dhcp_namespace(net.id)):
        argv = ["busybox", "nslookup", "-type=aaaa", "six.openstack.test", "fd00:5::2"]
        said = subprocess.run(argv, capture_output=True, text=True, timeout=10).stdout
    assert "fd00:5::7" in said


# --- what the Networking API says of names is what guests are answered ----------------------------------------------


class Names:
    """A control plane with one network host, whose network is made real on a host of the test."""

    def __init__(self, tmp_path: Path, host: Host) -> None:
        self.cloud, self.host = TestCloud(tmp_path / "cloud", hosts=1), host
        net = {"name": "n", "dns_domain": "corp.example."}
        self.net = str(self.make("network", **net)["id"])
        self.make("subnet", network_id=self.net, ip_version=4, cidr="10.0.0.0/24", gateway_ip=None)
        slaac = {"ipv6_ra_mode": "slaac", "ipv6_address_mode": "slaac"}
        self.make("subnet", network_id=self.net, ip_version=6, cidr="fd00:9::/64", **slaac)

    def make(self, kind: str, **values: object) -> dict[str, Any]:
        got = self.cloud.request("POST", f"/network/v2.0/{kind}s", {kind: values})
        assert got.status == 201, got.body
        found: dict[str, Any] = got.json[kind]
        return found

    def change(self, kind: str, id: str, **values: object) -> dict[str, Any]:
        got = self.cloud.request("PUT", f"/network/v2.0/{kind}s/{id}", {kind: values})
        assert got.status == 200, got.body
        found: dict[str, Any] = got.json[kind]
        return found

    def wire(self) -> NetworkSpec:
        """Have the network as its host is told."""
        self.cloud.settle()
        with self.cloud.cloud.store.read() as r:
            spec = SERVICE.host_items["network"].describe(self.cloud.cloud, r, self.net, "host1")
        assert isinstance(spec, NetworkSpec)
        self.host.driver.ensure_network(spec)
        return spec

    def asks(self, server: str, *words: str) -> str:
        """What a name server of the network answers in the network."""
        with links.entered(self.host.driver.dhcp_namespace(self.net)):
            argv = ["busybox", "nslookup", *words, server]
            return subprocess.run(argv, capture_output=True, text=True, timeout=20).stdout.partition("\n\n")[2]


@pytest.mark.req("B/NET-44")
def test_names_of_ports_are_answered_as_the_api_shows_them(tmp_path: Path, host: Host) -> None:
    names = Names(tmp_path, host)
    try:
        web = names.make("port", network_id=names.net, dns_name="web")
        own = names.make("port", network_id=names.net, dns_name="db", dns_domain="deep.example.")
        plain = names.make("port", network_id=names.net)
        spec = names.wire()
        assert spec.dhcp is not None
        servers = [ip.ip_address for ip in spec.dhcp.fixed_ips]
        assert {":" in server for server in servers} == {True, False}, "over both versions of IP"
        shown = [one for port_ in (web, own, plain) for one in port_["dns_assignment"]]
        assert {"web.corp.example.", "db.deep.example."} <= {one["fqdn"] for one in shown}
        assert any(one["fqdn"].startswith("host-10-0-0-") for one in shown)
        for server in servers:
            for one in shown:
                name, address = one["fqdn"].rstrip("."), one["ip_address"]
                kind = "-type=aaaa" if ":" in address else "-type=a"
                assert f"Address: {address}" in names.asks(server, kind, name), (server, one)
                assert name in names.asks(server, address), f"reverse: {one}"
            assert "Address:" not in names.asks(server, "-type=a", "nobody.corp.example")
        names.change("port", web["id"], dns_name="shop")
        moved = names.change("network", names.net, dns_domain="new.example.")
        assert moved["dns_domain"] == "new.example."
        names.wire()
        port_ = names.cloud.request("GET", f"/network/v2.0/ports/{web['id']}").json["port"]
        first = next(one for one in port_["dns_assignment"] if ":" not in one["ip_address"])
        assert first["fqdn"] == "shop.new.example."
        until(lambda: first["ip_address"] in names.asks(servers[0], "-type=a", "shop.new.example"), "the new name")
        assert first["ip_address"] not in names.asks(servers[0], "-type=a", "web.corp.example")
    finally:
        names.cloud.close()
