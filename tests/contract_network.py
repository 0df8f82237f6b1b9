"""What every network driver promises (core/ports.py): one suite, run on the simulated and on the real one.

A test module subclasses ``NetworkContract`` and gives a ``bench`` fixture: a driver on a place of its own, a way to
build the same driver anew (as a restarted agent does), and a way to ask for metadata as a guest would. The builders of
specs below serve other network tests too.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable
from dataclasses import dataclass

import msgspec
import pytest

from nubila.core.ports import (
    AddressSetSpec,
    DhcpHost,
    DhcpSpec,
    FixedIp,
    NeedsOperator,
    NetworkDriver,
    NetworkSpec,
    PortSpec,
    RouterPort,
    RouterSpec,
    RuleSpec,
    SecurityGroupSpec,
    Segment,
    SubnetSpec,
    TryAgain,
)

replace = msgspec.structs.replace
EGRESS = (RuleSpec(direction="egress"), RuleSpec(direction="egress", ethertype="IPv6"))
PING = RuleSpec(direction="ingress", protocol="icmp")
WEB = RuleSpec(direction="ingress", protocol="tcp", port_min=80, port_max=80)


def mac_of(id: str) -> str:
    return "fa:16:3e:" + ":".join(uuid.uuid5(uuid.NAMESPACE_OID, id).hex[i : i + 2] for i in (0, 2, 4))


def network(
    cidr: str = "10.0.0.0/24", *, gateway: str | None = None, dhcp: bool = True, vni: int = 7, **more: object
) -> NetworkSpec:
    """A VXLAN network with one subnet, its DHCP port at .2."""
    id, subnet = str(uuid.uuid4()), str(uuid.uuid4())
    base = cidr.rpartition(".")[0]
    port = str(uuid.uuid4())
    wish = DhcpSpec(
        port_id=port,
        mac=mac_of(port),
        fixed_ips=(FixedIp(subnet_id=subnet, ip_address=f"{base}.2", prefixlen=24),),
        dns_domain="openstack.test",
    )
    spec = NetworkSpec(
        id=id,
        project_id=uuid.uuid4().hex,
        segment=Segment(network_type="vxlan", segmentation_id=vni),
        mtu=1450,
        subnets=(SubnetSpec(id=subnet, cidr=cidr, gateway_ip=gateway, dns_nameservers=("9.9.9.9",)),),
        dhcp=wish if dhcp else None,
    )
    return replace(spec, **more)


def external(cidr: str = "172.24.4.0/24", **more: object) -> NetworkSpec:
    """A flat external network that the host itself reaches."""
    base = cidr.rpartition(".")[0]
    spec = network(cidr, gateway=f"{base}.1", dhcp=False)
    segment = Segment(network_type="flat", physical_network="physnet1")
    return replace(spec, segment=segment, mtu=1500, host_address=f"{base}.1/24", **more)


def port(net: NetworkSpec, number: int, *rules: RuleSpec, **more: object) -> PortSpec:
    """A guest's port with one address of the network's subnet; it may send anything."""
    id = str(uuid.uuid4())
    subnet = net.subnets[0]
    spec = PortSpec(
        id=id,
        network_id=net.id,
        device=f"tap{id[:11]}",
        mac=mac_of(id),
        mtu=net.mtu,
        fixed_ips=(fixed(net, number),),
        rules=(*EGRESS, *rules),
    )
    assert subnet.ip_version == 4
    return replace(spec, **more)


def fixed(net: NetworkSpec, number: int) -> FixedIp:
    subnet = net.subnets[0]
    return FixedIp(subnet_id=subnet.id, ip_address=f"{subnet.cidr.rpartition('.')[0]}.{number}", prefixlen=24)


def router_port(net: NetworkSpec, number: int) -> RouterPort:
    id = str(uuid.uuid4())
    return RouterPort(port_id=id, network_id=net.id, mac=mac_of(id), fixed_ips=(fixed(net, number),), mtu=net.mtu)


def with_hosts(net: NetworkSpec, *ports: PortSpec) -> NetworkSpec:
    """The network with its DHCP server knowing these ports."""
    assert net.dhcp is not None
    hosts = tuple(
        DhcpHost(port_id=p.id, mac=p.mac, hostname=f"web-{i}", fixed_ips=p.fixed_ips) for i, p in enumerate(ports)
    )
    return replace(net, dhcp=replace(net.dhcp, hosts=hosts))


def router(*nets: NetworkSpec, outside: NetworkSpec | None = None, number: int = 10, **more: object) -> RouterSpec:
    """A router at .1 of each network, at ``number`` of the external one."""
    gateway = router_port(outside, number) if outside else None
    hop = outside.subnets[0].gateway_ip if outside else None
    spec = RouterSpec(
        id=str(uuid.uuid4()),
        interfaces=tuple(router_port(net, 1) for net in nets),
        gateway=gateway,
        gateway_ips=(hop,) if hop else (),
    )
    return replace(spec, **more)


@dataclass
class Bench:
    """One driver under test."""

    driver: NetworkDriver
    rebuild: Callable[[], NetworkDriver]
    ask: Callable[[NetworkSpec | None, RouterSpec | None, str], tuple[int, bytes]]  # path -> status, body


class NetworkContract:
    """Subclass it in a module with a ``bench`` fixture."""

    def test_what_is_ensured_is_listed_until_it_is_removed(self, bench: Bench) -> None:
        driver = bench.driver
        net, outside = network(), external()
        spec, way_out = port(net, 3), router(net, outside=outside)
        for _ in range(2):
            assert driver.ensure_network(net).status == "ACTIVE"
            assert driver.ensure_network(outside).status == "ACTIVE"
            assert driver.ensure_port(spec).status == "ACTIVE"
            assert driver.ensure_router(way_out).status == "ACTIVE"
            assert driver.networks() == sorted([net.id, outside.id])
            assert driver.ports() == [spec.id]
            assert driver.routers() == [way_out.id]
        for _ in range(2):
            driver.remove_router(way_out.id)
            driver.remove_port(spec.id)
            driver.remove_network(net.id)
            driver.remove_network(outside.id)
            assert (driver.networks(), driver.ports(), driver.routers()) == ([], [], [])

    def test_a_new_driver_finds_everything(self, bench: Bench) -> None:
        net = network()
        spec, gate = port(net, 3), router(net)
        bench.driver.ensure_network(net)
        bench.driver.ensure_port(spec)
        bench.driver.ensure_router(gate)
        bench.driver.stop()
        again = bench.rebuild()
        again.start()
        assert (again.networks(), again.ports(), again.routers()) == ([net.id], [spec.id], [gate.id])

    def test_groups_and_sets_are_listed_until_they_are_removed_or_pruned(self, bench: Bench) -> None:
        driver = bench.driver
        rule = RuleSpec(direction="ingress", protocol="tcp", remote_set="members")
        group = SecurityGroupSpec(id="group", rules=(*EGRESS, WEB, rule))
        members = AddressSetSpec(id="members", addresses=("10.0.0.7/32", "fd00::/64"))
        for _ in range(2):
            assert driver.ensure_security_group(group).status == "ACTIVE"  # names a set that is not here yet
            driver.ensure_security_group(SecurityGroupSpec(id="other"))
            assert driver.ensure_address_set(members).status == "ACTIVE"
            driver.ensure_address_set(AddressSetSpec(id="spare"))
            assert driver.security_groups() == ["group", "other"]
            assert {"members", "spare"} <= set(driver.address_sets())
        again = bench.rebuild()
        again.start()
        assert again.security_groups() == ["group", "other"]
        assert driver.prune((), (), ()) == []
        assert driver.prune((), (), (), ["group"], ["members"]) == ["security_group other", "address_set spare"]
        for _ in range(2):
            driver.remove_security_group("group")
            driver.remove_address_set("members")
        assert (driver.security_groups(), driver.address_sets()) == ([], [])

    def test_prune_keeps_what_is_named_only(self, bench: Bench) -> None:
        driver = bench.driver
        keep, drop = network(vni=7), network("10.1.0.0/24", vni=8)
        kept, gone = port(keep, 3), port(drop, 3)
        way = router(drop)
        for net in (keep, drop):
            driver.ensure_network(net)
        for spec in (kept, gone):
            driver.ensure_port(spec)
        driver.ensure_router(way)
        removed = driver.prune([keep.id], [kept.id], [])
        assert removed == [f"router {way.id}", f"port {gone.id}", f"network {drop.id}"]
        assert (driver.networks(), driver.ports(), driver.routers()) == ([keep.id], [kept.id], [])
        assert driver.prune([keep.id], [kept.id], []) == []

    def test_what_needs_a_network_waits_for_it(self, bench: Bench) -> None:
        net = network()
        with pytest.raises(TryAgain, match="not wired"):
            bench.driver.ensure_port(port(net, 3))
        with pytest.raises(TryAgain, match="not wired"):
            bench.driver.ensure_router(router(net))

    def test_an_unknown_physical_network_needs_the_operator(self, bench: Bench) -> None:
        segment = Segment(network_type="flat", physical_network="nowhere")
        with pytest.raises(NeedsOperator, match="nowhere"):
            bench.driver.ensure_network(replace(network(), segment=segment))

    def test_administratively_down_is_down(self, bench: Bench) -> None:
        net = network()
        bench.driver.ensure_network(net)
        assert bench.driver.ensure_port(port(net, 3, admin_state_up=False)).status == "DOWN"
        assert bench.driver.ensure_router(router(net, admin_state_up=False)).status == "DOWN"

    def test_an_older_epoch_of_a_router_is_refused(self, bench: Bench) -> None:
        net = network()
        bench.driver.ensure_network(net)
        spec = router(net, epoch=4)
        bench.driver.ensure_router(spec)
        with pytest.raises(TryAgain, match="epoch 4"):
            bench.driver.ensure_router(replace(spec, epoch=3))
        bench.driver.ensure_router(replace(spec, epoch=5))

    def test_metadata_is_answered_through_dhcp_and_routers(self, bench: Bench) -> None:
        net = network()
        gate = router(net)
        asked = []

        def answer(
            *, network_id: str | None, router_id: str | None, address: str, method: str, path: str, body: bytes
        ) -> tuple[int, str, bytes]:
            asked.append((network_id, router_id, method, path, body))
            return 200, "text/plain", b"i-00000001"

        bench.driver.ensure_network(net)
        bench.driver.serve_metadata(answer)
        bench.driver.ensure_router(gate)
        assert bench.ask(net, None, "/latest/meta-data/instance-id?x=1") == (200, b"i-00000001")
        assert bench.ask(None, gate, "/openstack") == (200, b"i-00000001")
        assert asked == [
            (net.id, None, "GET", "/latest/meta-data/instance-id?x=1", b""),
            (None, gate.id, "GET", "/openstack", b""),
        ]
