"""IPv6 for guests on real engines: every address mode, several prefixes, and metadata by link-local address."""

from __future__ import annotations

import ipaddress
import json
import uuid
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import dhcpv6
import pytest
from contract_network import EGRESS, mac_of, network, port, replace, router
from network_world import Guest, Host, until

from nubila.core.ports import DhcpHost, FixedIp, NetworkSpec, PortSpec, RouterSpec, SubnetSpec
from nubila.drivers import advertise, processes
from nubila.drivers.ovs_flows import link_local
from nubila.services.network import addresses

pytestmark = pytest.mark.host


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Host]:
    host = Host(tmp_path)
    yield host
    host.close()


def six(number: int, ra: str | None, mode: str | None, **more: object) -> SubnetSpec:
    cidr = f"fd00:{number}::/64"
    spec = SubnetSpec(
        id=f"six-{number}", cidr=cidr, ip_version=6, gateway_ip=f"fd00:{number}::1", ipv6_ra_mode=ra,
        ipv6_address_mode=mode, resolvers=(f"fd00:{number}::2",), domain="openstack.test",
    )  # fmt: skip
    changed: SubnetSpec = replace(spec, **more)
    return changed


def fixed(subnet: SubnetSpec, ip: str) -> FixedIp:
    return FixedIp(subnet_id=subnet.id, ip_address=ip, prefixlen=64)


def build(vni: int, *subnets: SubnetSpec) -> tuple[NetworkSpec, PortSpec, RouterSpec]:
    """A network of these subnets, one guest's port as the API would make it, and a router at every gateway."""
    net = network(vni=vni)
    assert net.dhcp is not None
    id = str(uuid.uuid4())
    auto = [s for s in subnets if {s.ipv6_ra_mode, s.ipv6_address_mode} & set(addresses.AUTO_V6_MODES)]
    ips = tuple(
        fixed(s, addresses.eui64(s.cidr, mac_of(id)) if s in auto else f"{s.cidr.partition('::')[0]}::33")
        for s in subnets
    )
    spec = PortSpec(
        id=id, network_id=net.id, device=f"tap{id[:11]}", mac=mac_of(id), mtu=net.mtu, fixed_ips=ips, rules=EGRESS
    )
    own = tuple(fixed(s, s.resolvers[0]) for s in subnets)
    known = (DhcpHost(port_id=id, mac=spec.mac, hostname="web", fixed_ips=ips),)
    net = replace(net, subnets=subnets, dhcp=replace(net.dhcp, fixed_ips=own, hosts=known))
    gate = router(replace(net, subnets=network().subnets), subnets=subnets)
    inside = replace(gate.interfaces[0], fixed_ips=tuple(fixed(s, str(s.gateway_ip)) for s in subnets))
    return net, spec, replace(gate, interfaces=(inside,))


def stage(host: Host, vni: int, *subnets: SubnetSpec) -> tuple[Guest, RouterSpec]:
    net, spec, gate = build(vni, *subnets)
    host.driver.ensure_network(net)
    host.driver.ensure_router(gate)
    return host.guest(spec), gate


def has(guest: Guest, address: str) -> bool:
    shown = guest.run("ip", "-6", "-j", "addr", "show", "dev", "eth0").stdout
    return address in [a["local"] for a in json.loads(shown)[0]["addr_info"]]


@pytest.mark.req("B/NET-44")
def test_every_mode_means_what_it_says(host: Host) -> None:
    modes = ("slaac", "dhcpv6-stateless", "dhcpv6-stateful")
    stages = {mode: stage(host, 7 + i, six(i + 1, mode, mode)) for i, mode in enumerate(modes)}
    for i, mode in enumerate(modes):
        guest, gate = stages[mode]
        said = dhcpv6.advertisement(guest)
        assert said is not None, mode
        assert said.source == link_local(gate.interfaces[0].mac), "the router itself, not the metadata service"
        assert (said.managed, said.other) == (mode == "dhcpv6-stateful", mode != "slaac"), mode
        assert said.prefixes == {f"fd00:{i + 1}::/64": "L" if mode == "dhcpv6-stateful" else "LA"}
        assert (said.mtu, said.lifetime_s > 0) == (1450, True)
        assert said.name_servers == [f"fd00:{i + 1}::2"]
        assert said.domains == ["openstack.test"]
        assert said.routes == ["fe80::a9fe:a9fe/128"]
    for mode in modes[:2]:
        guest, _ = stages[mode]
        own = guest.ip
        until(partial(has, guest, own), f"{mode}: the address that the API shows")
        until(partial(guest.pings, own.partition("::")[0] + "::1"), f"{mode}: the router answers")
    answers = {mode: dhcpv6.lease(stages[mode][0], patience_s=4 if mode != "slaac" else 1) for mode in modes}
    assert answers["slaac"] is None
    stateful = answers["dhcpv6-stateful"]
    assert stateful is not None
    assert (stateful.kind, stateful.addresses) == (dhcpv6.REPLY, ["fd00:3::33"])
    assert (stateful.name_servers, stateful.domains) == (["fd00:3::2"], ["openstack.test"])
    guest = stages["dhcpv6-stateful"][0]
    until(lambda: guest.pings("fd00:3::1"), "the leased address is let through")
    assert answers["dhcpv6-stateless"] is None or answers["dhcpv6-stateless"].addresses == []
    told = dhcpv6.ask(stages["dhcpv6-stateless"][0], dhcpv6.INFORMATION)
    assert told is not None
    assert (told.name_servers, told.domains) == (["fd00:2::2"], ["openstack.test"])


def test_modes_of_one_side_only(host: Host) -> None:
    router_only, _ = stage(host, 7, six(1, "slaac", None))
    until(lambda: has(router_only, router_only.ip), "our router, the guest by itself")
    guest_only, _ = stage(host, 8, six(2, None, "dhcpv6-stateful"))
    assert dhcpv6.advertisement(guest_only, patience_s=1.0) is None, "somebody else advertises"
    bound = dhcpv6.lease(guest_only)
    assert bound is not None
    assert bound.addresses == ["fd00:2::33"]
    neither, _ = stage(host, 9, six(3, None, None))
    bound = dhcpv6.lease(neither)
    assert bound is not None
    assert bound.addresses == ["fd00:3::33"]


def test_several_prefixes_change_while_the_guest_runs(host: Host) -> None:
    one, two = six(1, "slaac", "slaac"), six(2, "slaac", "slaac", dns_nameservers=("fd00:2::53",))
    guest, gate = stage(host, 7, one, two)
    for ip in guest.spec.fixed_ips:
        until(partial(has, guest, ip.ip_address), f"an address in {ip.subnet_id}")
    said = dhcpv6.advertisement(guest)
    assert said is not None
    assert said.prefixes == {"fd00:1::/64": "LA", "fd00:2::/64": "LA"}
    assert said.name_servers == ["fd00:1::2", "fd00:2::53"]
    run_dir = host.place.root / "routers" / gate.id
    pid = processes.alive(advertise.NAME, run_dir)
    host.driver.ensure_router(replace(gate, subnets=(one,)))
    changed = dhcpv6.advertisement(guest)
    assert changed is not None
    inside = replace(gate.interfaces[0], fixed_ips=gate.interfaces[0].fixed_ips[:1])
    host.driver.ensure_router(replace(gate, interfaces=(inside,), subnets=(one,)))
    assert processes.alive(advertise.NAME, run_dir) == pid, "a change is no restart"
    until(lambda: (a := dhcpv6.advertisement(guest)) is not None and list(a.prefixes) == ["fd00:1::/64"], "one prefix")
    until(lambda: "default via" in guest.run("ip", "-6", "route").stdout, "a default route")
    host.driver.remove_router(gate.id)
    until(lambda: "default via" not in guest.run("ip", "-6", "route").stdout, "the router said good-bye")


def test_a_dead_radvd_comes_back(host: Host) -> None:
    guest, gate = stage(host, 7, six(1, "slaac", "slaac"))
    run_dir = host.place.root / "routers" / gate.id
    processes.kill(advertise.NAME, run_dir)
    host.driver.ensure_router(gate)
    assert advertise.running(run_dir)
    assert dhcpv6.advertisement(guest) is not None


def test_a_large_prefix_is_said_not_to_be_served(host: Host) -> None:
    large = six(1, None, "dhcpv6-stateful", cidr="fd00:1::/48")
    net, _, _ = build(7, large)
    assert "shorter than /64" in host.driver.ensure_network(net).fault
    processes.stop("dnsmasq", host.place.root / "dhcp" / net.id)


def curl(guest: Guest, url: str) -> dict[str, object]:
    done = guest.run("curl", "-sg", "--max-time", "5", url, check=False)
    assert done.returncode == 0, done
    found: dict[str, object] = json.loads(done.stdout)
    return found


def test_metadata_over_ipv6_from_dhcp_and_from_routers(host: Host) -> None:
    host.driver.serve_metadata(lambda **request: (200, "text/plain", json.dumps(request, default=str).encode()))
    url = "http://[fe80::a9fe:a9fe%25eth0]/openstack"
    net, spec, gate = build(7, six(1, "slaac", "slaac"))
    host.driver.ensure_network(net)
    guest = host.guest(spec)
    until(lambda: guest.run("ping", "-c1", "-W1", "fe80::a9fe:a9fe%eth0", check=False).returncode == 0, "its neighbour")
    asked = curl(guest, url)
    own = link_local(spec.mac)
    assert (asked["network_id"], asked["router_id"], asked["address"]) == (net.id, None, own)
    assert addresses.mac_of(own) == spec.mac
    routed = replace(net, dhcp=None)
    host.driver.ensure_network(routed)
    host.driver.ensure_router(gate)
    # A second network behind the same router has the same addresses on the link: told apart by the link.
    other, second, _ = build(8, six(2, "slaac", "slaac"))
    host.driver.ensure_network(replace(other, dhcp=None))
    more = router(replace(other, subnets=network().subnets)).interfaces[0]
    more = replace(more, fixed_ips=(fixed(six(2, "slaac", "slaac"), "fd00:2::1"),))
    host.driver.ensure_router(replace(gate, interfaces=(*gate.interfaces, more)))
    neighbour = host.guest(second)
    guest.run("ip", "-6", "neigh", "flush", "dev", "eth0")
    for where, known in ((guest, net.id), (neighbour, other.id)):
        until(partial(where.pings, "fe80::a9fe:a9fe%eth0"), "the router")
        assert curl(where, url)["network_id"] == known
        assert ipaddress.ip_address(str(curl(where, url)["address"])).is_link_local


def test_metadata_for_a_subnet_without_dhcp_beside_one_that_has_it(host: Host) -> None:
    host.driver.serve_metadata(lambda **request: (200, "text/plain", json.dumps(request, default=str).encode()))
    net = network()
    quiet = SubnetSpec(id="quiet", cidr="10.9.0.0/24", enable_dhcp=False)
    net = replace(net, subnets=(*net.subnets, quiet))
    host.driver.ensure_network(net)
    spec = port(net, 3)
    guest = host.guest(replace(spec, fixed_ips=(FixedIp(subnet_id="quiet", ip_address="10.9.0.3", prefixlen=24),)))
    guest.configure()
    guest.run("ip", "route", "add", "169.254.169.254/32", "dev", "eth0")
    asked = curl(guest, "http://169.254.169.254/latest")
    assert (asked["network_id"], asked["address"]) == (net.id, "10.9.0.3")
