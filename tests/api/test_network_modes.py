"""What hosts are told about IPv6 subnets and names, and who asks for metadata by a link-local address."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from nubila.core.config import BadSetting, Settings
from nubila.core.ports import NetworkSpec
from nubila.drivers import dhcp
from nubila.drivers.ovs_flows import link_local
from nubila.services.network import addresses, hosting, placing, plug
from nubila.testing.cloud import TestCloud

Json = dict[str, Any]


class Play:
    """One cloud, one user."""

    def __init__(self, cloud: TestCloud) -> None:
        self.cloud = cloud

    def make(self, item: str, **values: Any) -> Json:
        body = {item: values}
        got = self.cloud.request("POST", f"/network/v2.0/{item}s", body, token=self.cloud.token("demo"))
        assert got.status == 201, got.body
        found: Json = got.json[item]
        return found

    def network(self, *subnets: Json) -> Json:
        net = self.make("network", name="n")
        for subnet in subnets:
            self.make("subnet", network_id=net["id"], **subnet)
        return net

    def spec(self, net: Json) -> NetworkSpec:
        self.cloud.settle()
        with self.cloud.cloud.store.read() as reader:
            host = next(iter(placing.bindings(reader, net["id"])))
            spec = hosting.describe_network(self.cloud.cloud, reader, net["id"], host)
        assert spec is not None
        return spec


@pytest.fixture
def play(tmp_path: Path) -> Iterator[Play]:
    cloud = TestCloud(tmp_path / "cloud", dhcp_dns_servers=("192.0.2.53",))
    yield Play(cloud)
    cloud.close()


@pytest.mark.parametrize(
    ("ra", "mode", "derived"),
    [
        ("slaac", "slaac", True), ("dhcpv6-stateless", "dhcpv6-stateless", True), ("slaac", None, True),
        (None, "slaac", True), ("dhcpv6-stateful", "dhcpv6-stateful", False), (None, "dhcpv6-stateful", False),
        (None, None, False),
    ],
)  # fmt: skip
def test_the_address_shown_is_the_one_that_the_guest_chooses(
    play: Play, ra: str | None, mode: str | None, derived: bool
) -> None:
    modes = {k: v for k, v in (("ipv6_ra_mode", ra), ("ipv6_address_mode", mode)) if v}
    net = play.network({"ip_version": 6, "cidr": "fd00:1::/64", **modes})
    port = play.make("port", network_id=net["id"])
    ip = port["fixed_ips"][0]["ip_address"]
    assert (ip == addresses.eui64("fd00:1::/64", port["mac_address"])) is derived
    assert (addresses.mac_of(ip) == port["mac_address"]) is derived


def test_guests_are_told_the_servers_of_dhcp_where_no_name_server_is_named(play: Play) -> None:
    net = play.network(
        {"ip_version": 4, "cidr": "10.0.0.0/24"},
        {"ip_version": 4, "cidr": "10.1.0.0/24", "dns_nameservers": ["198.51.100.1"]},
    )
    spec = play.spec(net)
    assert spec.dhcp is not None
    assert spec.dhcp.upstreams == ("192.0.2.53",), "the operator's choice comes first"
    by_cidr = {s.cidr: s for s in spec.subnets}
    own = {ip.subnet_id: ip.ip_address for ip in spec.dhcp.fixed_ips}
    plain = by_cidr["10.0.0.0/24"]
    assert (plain.dns_nameservers, plain.resolvers) == ((), (own[plain.id],))
    assert by_cidr["10.1.0.0/24"].dns_nameservers == ("198.51.100.1",)
    assert plain.domain == spec.dhcp.dns_domain != ""


def test_guests_search_the_domain_of_the_cloud_whatever_their_network_is_called(play: Play) -> None:
    net = play.network({"ip_version": 4, "cidr": "10.0.0.0/24"})
    other = {"network": {"dns_domain": "starwars."}}
    token = play.cloud.token("demo")
    assert play.cloud.request("PUT", f"/network/v2.0/networks/{net['id']}", other, token=token).status == 200
    leia = play.make("port", network_id=net["id"], dns_name="leia")
    luke = play.make("port", network_id=net["id"], dns_name="luke", dns_domain="tatooine.")
    spec = play.spec(net)
    assert spec.dhcp is not None
    assert (spec.dhcp.dns_domain, spec.subnets[0].domain) == ("openstacklocal", "openstacklocal")
    told = {host.port_id: host.domain for host in spec.dhcp.hosts}
    assert (told[leia["id"]], told[luke["id"]]) == ("starwars", "tatooine")
    names = dhcp.render(spec, spec.dhcp, Path("/run/x"))["names"].splitlines()
    assert f"{leia['fixed_ips'][0]['ip_address']} leia.starwars leia.openstacklocal leia" in names
    assert leia["dns_assignment"][0]["fqdn"] == "leia.starwars."


@pytest.mark.parametrize("name", ["", "a b", "-a.org", "a..org", "x" * 64, "evil\nuser=root"])
def test_a_domain_of_the_wrong_form_is_refused(name: str) -> None:
    with pytest.raises(BadSetting, match="is no domain"):
        Settings(dns_domain=name)


def test_a_link_local_address_is_known_on_its_own_network_only(play: Play) -> None:
    one, other = (play.network({"ip_version": 4, "cidr": "10.0.0.0/24"}) for _ in range(2))
    mine = play.make("port", network_id=one["id"])
    twin = play.make("port", network_id=other["id"], mac_address=mine["mac_address"])
    address = link_local(mine["mac_address"])
    with play.cloud.cloud.store.read() as reader:
        for net, port in ((one, mine), (other, twin)):
            found = plug.port_at(reader, network_id=net["id"], router_id=None, address=address)
            assert found is not None
            assert found["id"] == port["id"]
        assert plug.port_at(reader, network_id=one["id"], router_id=None, address="fe80::1") is None


def test_a_gateway_that_no_router_has_means_metadata_by_dhcp(play: Play) -> None:
    net = play.network({"ip_version": 4, "cidr": "10.0.0.0/24", "gateway_ip": "10.0.0.1"})
    route = ("169.254.169.254/32", "10.0.0.2")
    assert route in play.spec(net).subnets[0].host_routes
    routers = [play.make("router", name=name)["id"] for name in ("beside", "gateway")]
    beside = play.make("port", network_id=net["id"], fixed_ips=[{"ip_address": "10.0.0.77"}])
    subnet = play.cloud.request("GET", f"/network/v2.0/subnets?network_id={net['id']}").json["subnets"][0]["id"]

    def connect(router: str, **what: str) -> None:
        url = f"/network/v2.0/routers/{router}/add_router_interface"
        got = play.cloud.request("PUT", url, what, token=play.cloud.token("demo"))
        assert got.status == 200, got.body

    connect(routers[0], port_id=beside["id"])
    assert route in play.spec(net).subnets[0].host_routes, "a router beside the gateway is not the gateway"
    connect(routers[1], subnet_id=subnet)
    assert route not in play.spec(net).subnets[0].host_routes
