"""What dnsmasq and nft are given, as text; hostile names must not become syntax."""

from __future__ import annotations

from pathlib import Path

from contract_network import external, fixed, network, port, replace, router, router_port, with_hosts

from nubila.core.ports import DhcpHost, FloatingSpec, ForwardSpec, HostPlace, SubnetSpec
from nubila.drivers import dhcp, ovs_shared, router_nft
from nubila.drivers.ovs_bridges import bridge_name
from nubila.drivers.ovs_daemons import Daemons
from nubila.drivers.router_nft import Door
from nubila.drivers.switches import mark, marked


def render(net: object) -> dict[str, str]:
    return dhcp.render(net, net.dhcp, Path("/run/x"))  # type: ignore[attr-defined, arg-type]


def test_dhcp_hosts_and_options() -> None:
    net = network(gateway="10.0.0.1")
    files = render(with_hosts(net, port(net, 3), port(net, 4)))
    assert [line.split(",", 1)[1] for line in files["hosts"].splitlines()] == ["web-0,10.0.0.3", "web-1,10.0.0.4"]
    assert "10.0.0.3 web-0.openstack.test web-0\n" in files["names"]
    tag = f"tag:subnet-{net.subnets[0].id}"
    assert files["opts"].splitlines() == [
        f"{tag},option:dns-server,9.9.9.9",
        f"{tag},option:domain-search,openstack.test",
        f"{tag},26,1450",
        f"{tag},3,10.0.0.1",
    ]
    assert f"dhcp-range=set:subnet-{net.subnets[0].id},10.0.0.0,static,255.255.255.0,86400s\n" in files["config"]


def test_no_gateway_means_no_router_option_and_a_metadata_route() -> None:
    net = network()
    opts = render(net)["opts"].splitlines()
    tag = f"tag:subnet-{net.subnets[0].id}"
    assert f"{tag},option:classless-static-route,169.254.169.254/32,10.0.0.2" in opts
    assert f"{tag},3" in opts
    assert net.dhcp is not None
    quiet = replace(net, dhcp=replace(net.dhcp, metadata=False))
    assert "169.254.169.254" not in render(quiet)["opts"]
    assert dhcp.addresses(net.dhcp) == ["10.0.0.2/24", "169.254.169.254/32", "fe80::a9fe:a9fe/64"]


def test_hostile_names_and_options_are_left_out() -> None:
    net = network()
    assert net.dhcp is not None
    bad = DhcpHost(
        port_id="p",
        mac="fa:16:3e:00:00:01",
        hostname="x\n00:00:00:00:00:00,10.0.0.9",
        fixed_ips=(fixed(net, 3),),
        options=(("26\nx", "1"), ("tftp-server", "a\ntag:all,3,6.6.6.6"), ("150", "10.0.0.9")),
    )
    files = render(replace(net, dhcp=replace(net.dhcp, hosts=(bad,), dns_domain="a\nuser=evil")))
    assert files["hosts"] == "fa:16:3e:00:00:01,set:port-p,host-10-0-0-3,10.0.0.3\n"
    assert "6.6.6.6" not in files["opts"]
    assert files["opts"].splitlines()[-1] == "tag:port-p,150,10.0.0.9"
    assert "evil" not in files["config"]


def test_a_domain_of_a_ports_own_is_also_what_it_searches() -> None:
    net = network()
    assert net.dhcp is not None

    def opts(*options: tuple[str, str]) -> list[str]:
        host = DhcpHost(port_id="p", mac="fa:16:3e:00:00:01", hostname="h", fixed_ips=(fixed(net, 3),), options=options)
        lines = render(replace(net, dhcp=replace(net.dhcp, hosts=(host,))))["opts"].splitlines()
        return [line for line in lines if line.startswith("tag:port-p,")]

    search = "tag:port-p,option:domain-search,test.domain"
    assert opts(("domain-name", '"test.domain"')) == ['tag:port-p,option:domain-name,"test.domain"', search]
    assert opts(("15", "test.domain")) == ["tag:port-p,15,test.domain", search]
    both = [("domain-name", "test.domain"), ("domain-search", "other.domain")]
    assert opts(*both) == [f"tag:port-p,option:{name},{value}" for name, value in both]
    assert opts(("domain-name", '"a b"')) == ['tag:port-p,option:domain-name,"a b"']


def test_ipv6_subnets_are_served_by_their_mode() -> None:
    net = network()
    stateful = SubnetSpec(id="a", cidr="fd00::/64", ip_version=6, ipv6_address_mode="dhcpv6-stateful")
    slaac = SubnetSpec(id="b", cidr="fd01::/64", ip_version=6, ipv6_address_mode="slaac")
    config = render(replace(net, subnets=(stateful, slaac)))["config"]
    assert "dhcp-range=set:subnet-a,fd00::,static,64,86400s\n" in config
    assert "fd01::" not in config


def test_options_of_both_families_are_told_apart() -> None:
    net = network()
    assert net.dhcp is not None
    wishes = (("option6:dns-server", "[fd00::53]"), ("option6:23", "[fd00::54]"), ("ntp-server", "10.0.0.9"))
    host = DhcpHost(port_id="p", mac="fa:16:3e:00:00:01", hostname="h", fixed_ips=(fixed(net, 3),), options=wishes)
    opts = render(replace(net, dhcp=replace(net.dhcp, hosts=(host,))))["opts"].splitlines()
    assert opts[-3:] == [
        "tag:port-p,option6:dns-server,[fd00::53]",
        "tag:port-p,option6:23,[fd00::54]",
        "tag:port-p,option:ntp-server,10.0.0.9",
    ]


def test_router_translations() -> None:
    inner, outside = network(), external()
    floating = FloatingSpec(id="1", floating_ip="172.24.4.99", fixed_ip="10.0.0.3")
    spec = router(inner, outside=outside, floating_ips=(floating,))
    door = Door(device="qg-1", port=spec.gateway or router_port(outside, 9))
    table = router_nft.script(spec, ["qr-1"], [door])
    assert 'iifname "qr-1" ip daddr 169.254.169.254 tcp dport 80 redirect to :9697' in table
    assert "ip daddr 172.24.4.99 dnat to 10.0.0.3" in table
    own = table.index('oifname "qg-1" ip saddr 10.0.0.3 snat to 172.24.4.99')
    assert own < table.index('oifname "qg-1" meta mark & 0x2 == 0 snat to 172.24.4.10')
    without = router_nft.script(replace(spec, snat=False), ["qr-1"], [door])
    assert 'oifname "qg-1" meta mark & 0x2 == 0 snat' not in without
    inside_only = router_nft.script(replace(spec, gateway=None), ["qr-1"], [])
    assert "snat" not in inside_only.replace("srcnat", "")
    assert "172.24.4.99" not in inside_only


def test_forwarded_ports() -> None:
    spec = router(network(), outside=external())

    def rule(outside: tuple[int, int], inside: tuple[int, int], protocol: str = "tcp") -> str:
        ends = {"floating_ip": "172.24.4.9", "fixed_ip": "10.0.0.3"}
        lead = ForwardSpec(**ends, protocol=protocol, outside=outside, inside=inside)
        door = Door(device="qg-1", port=spec.gateway or router_port(network(), 9))
        lines = router_nft.script(replace(spec, forwardings=(lead,)), [], [door]).splitlines()
        return next(line.strip() for line in lines if "172.24.4.9 " in line)

    assert rule((80, 80), (8080, 8080)) == "ip daddr 172.24.4.9 tcp dport 80 dnat to 10.0.0.3:8080"
    assert rule((1, 9), (5, 5), "udp") == "ip daddr 172.24.4.9 udp dport 1-9 dnat to 10.0.0.3:5"
    assert rule((1, 9), (1, 9)) == "ip daddr 172.24.4.9 tcp dport 1-9 dnat to 10.0.0.3"
    assert rule((1, 2), (5, 6)).endswith("dnat ip to tcp dport map { 1 : 10.0.0.3 . 5, 2 : 10.0.0.3 . 6 }")


def test_what_distributed_interfaces_send_never_has_the_shared_mac() -> None:
    flows = ovs_shared.flows(
        5, ofport=3, mac="fa:16:3e:01:02:03", alias="0e:aa:bb:01:02:03", addresses=["10.0.0.1", "fd00::1"],
        others=["output:4"], away=["output:9"], back=[], learns=False,
    )  # fmt: skip
    for flow in flows:
        match, _, actions = flow.partition(" actions=")
        if "output:9" in actions and "in_port=3" in match:
            assert "mod_dl_src:0e:aa:bb:01:02:03,output:9" in actions
        if "arp_op=1" in match or "icmp_type=135" in match:
            assert actions in ("output:3", "drop"), "questions for the gateway stay here"
    assert any("dl_src=0e:00:00:01:02:03/ff:00:00:ff:ff:ff" in flow for flow in flows)


def test_marks_are_of_one_cloud_and_one_played_host(tmp_path: Path) -> None:
    place = HostPlace(cloud="a", host="h", root=tmp_path)
    other = replace(place, namespace="h2")
    assert marked(place, mark(place, "port", "1")) == ("port", "1")
    assert marked(place, mark(other, "port", "1")) is None
    assert marked(place, mark(replace(place, cloud="b"), "port", "1")) is None
    assert marked(place, "uplink to the rack") is None


def test_bridge_names_fit_and_differ_by_cloud() -> None:
    assert bridge_name("br-int", "nubila") == "br-int"
    assert bridge_name("br-int", "two") == "br-int-two"
    long = bridge_name("br-int", "a-cloud-with-a-long-name")
    assert len(long) <= 15
    assert long != bridge_name("br-int", "a-cloud-with-a-long-name-2")


def test_played_hosts_have_daemons_of_their_own(tmp_path: Path) -> None:
    place = HostPlace(cloud="a", host="h", root=tmp_path, namespace="played")
    daemons = Daemons(place, system=tmp_path / "none", own=tmp_path / "own")
    assert daemons.private
    assert daemons.run_dir == tmp_path / "own" / "ovs.played"
    assert daemons.datapath_type == "netdev"
