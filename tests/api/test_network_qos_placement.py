"""Guaranteed bandwidth and packet rate through Placement: who offers it, who is placed where it is, what each holds."""

from __future__ import annotations

import contextlib
import uuid
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from computing import Nova, image
from networking import Play
from test_network_port_bindings import service_token

from nubila.apps import doctor
from nubila.core import hosts
from nubila.core.config import BadSetting, Settings
from nubila.services.compute import invariants
from nubila.services.network import qos_guarantees, qos_offers
from nubila.services.network.tables import PORT_GUARANTEE
from nubila.services.placement.kinds import ALLOCATION
from nubila.testing.cloud import TestCloud

Json = dict[str, Any]
IGR, EGR, PPS = "NET_BW_IGR_KILOBIT_PER_SEC", "NET_BW_EGR_KILOBIT_PER_SEC", "NET_PACKET_RATE_KILOPACKET_PER_SEC"
NEUTRON = uuid.UUID("87ee7d5c-73bb-11e8-9008-c4d987b2a692")  # the namespace of its Open vSwitch driver
OFFERED: Json = {
    "resource_provider_bandwidths": ("br-ex:5000:5000", "rp_tunnelled:5000:3000", "host2:br-ex:9000:9000", "eth9:1:1"),
    "resource_provider_packet_processing_without_direction": (":100",),
}


class World(Play):
    """A cloud whose hosts guarantee something; servers of demo on a VLAN of physnet1."""

    def __init__(self, cloud: TestCloud) -> None:
        super().__init__(cloud)
        self.nova, self.admin = Nova(cloud, "demo"), Nova(cloud)
        self.image = image(cloud)
        physical = {"provider:network_type": "vlan", "provider:physical_network": "physnet1", "shared": True}
        self.net = self.post("networks", "network", "admin", name="p", **physical)["id"]
        self.post("subnets", "subnet", "admin", network_id=self.net, ip_version=4, cidr="10.7.0.0/24")

    def policy(self, *rules: tuple[str, int], **more: Any) -> str:
        """A policy of the administrator; rules as (direction, kbit/s), or ("any", kpps)."""
        id = str(self.post("qos/policies", "policy", "admin", name="p", shared=True, **more)["id"])
        for direction, value in rules:
            self.rule(id, direction, value)
        return id

    def rule(self, policy: str, direction: str, value: int) -> str:
        kind, name = ("packet_rate", "min_kpps") if direction == "any" else ("bandwidth", "min_kbps")
        values = {"direction": direction, name: value}
        kind = f"minimum_{kind}_rule"
        return str(self.post(f"qos/policies/{policy}/{kind}s", kind, "admin", **values)["id"])

    def port(self, policy: str | None, **more: Any) -> str:
        return str(self.post("ports", "port", **{"network_id": self.net, "qos_policy_id": policy, **more})["id"])

    def boot(self, *ports: str, **more: Any) -> str:
        id = str(self.nova.boot(self.image, networks=[{"port": p} for p in ports], **more)["id"])
        self.test.settle()
        return id

    def server(self, id: str) -> Json:
        return self.admin.server(id)

    def placement(self, path: str) -> Any:
        got = self.test.request("GET", f"/placement{path}", headers={"openstack-api-version": "placement 1.36"})
        assert got.status == 200, got.body
        return got.json

    def held(self, consumer: str) -> dict[str, Json]:
        """provider's name -> what the consumer holds there, the host's own provider left out; all rows agree."""
        self.test.settle()
        assert doctor.rows(self.cloud) == []
        names = {p["uuid"]: p["name"] for p in self.placement("/resource_providers")["resource_providers"]}
        found = self.placement(f"/allocations/{consumer}")["allocations"]
        return {names[id]: one["resources"] for id, one in found.items() if "VCPU" not in one["resources"]}

    def shown(self, port: str) -> Json:
        """Its ``binding:profile``, as the administrator sees it."""
        found: Json = self.test.request("GET", f"/network/v2.0/ports/{port}").json["port"]["binding:profile"]
        return found

    def change(self, port: str, policy: str | None) -> tuple[int, str]:
        body = {"port": {"qos_policy_id": policy}}
        got = self.test.request("PUT", f"/network/v2.0/ports/{port}", body, token=self.test.token("demo"))
        return got.status, got.json.get("NeutronError", {}).get("type", "")


@pytest.fixture
def world(tmp_path: Path) -> Any:
    made = TestCloud(tmp_path / "cloud", hosts=2, **OFFERED)
    yield World(made)
    made.close()


def test_hosts_offer_what_settings_say_as_neutron_names_it(world: World) -> None:
    found = world.placement("/resource_providers")["resource_providers"]
    by_name = {p["name"]: p for p in found}
    for host, total in (("host1", 5000), ("host2", 9000)):
        agent, bridge = by_name[f"{host}:Open vSwitch agent"], by_name[f"{host}:Open vSwitch agent:br-ex"]
        assert (agent["uuid"], bridge["uuid"]) == tuple(str(uuid.uuid5(NEUTRON, n)) for n in (host, f"{host}:br-ex"))
        assert agent["parent_provider_uuid"] == bridge["root_provider_uuid"] == by_name[host]["uuid"]
        assert bridge["parent_provider_uuid"] == agent["uuid"]
        rooms = {p["name"]: world.placement(f"/resource_providers/{p['uuid']}/inventories")["inventories"]
                 for p in (agent, bridge)}  # fmt: skip
        assert {n: i["total"] for n, i in rooms[bridge["name"]].items()} == {IGR: total, EGR: total}
        assert rooms[agent["name"]] == {PPS: {
            "total": 100, "reserved": 0, "min_unit": 1, "max_unit": 2**31 - 1, "step_size": 1, "allocation_ratio": 1.0,
        }}  # fmt: skip
        traits = {p["name"]: world.placement(f"/resource_providers/{p['uuid']}/traits")["traits"]
                  for p in (agent, bridge, by_name[f"{host}:Open vSwitch agent:rp_tunnelled"])}  # fmt: skip
        assert list(traits.values()) == [
            ["CUSTOM_VNIC_TYPE_NORMAL"], ["CUSTOM_PHYSNET_PHYSNET1", "CUSTOM_VNIC_TYPE_NORMAL"],
            ["CUSTOM_NETWORK_TUNNEL_PROVIDER", "CUSTOM_VNIC_TYPE_NORMAL"],
        ]  # fmt: skip
    assert not any("eth9" in name for name in by_name), "no host has such a device"
    agents = world.test.request("GET", "/network/v2.0/agents?binary=neutron-openvswitch-agent&host=host2").json[
        "agents"
    ]
    said = agents[0]["configurations"]
    assert agents[0]["resources_synced"] is True
    assert said["resource_provider_bandwidths"] == {
        "br-ex": {"egress": 9000, "ingress": 9000}, "rp_tunnelled": {"egress": 5000, "ingress": 3000},
    }  # fmt: skip
    assert said["resource_provider_packet_processing_without_direction"] == {"host2": {"any": 100}}
    assert said["resource_provider_packet_processing_with_direction"] == {}
    world.test.add_host("host3", switch="linuxbridge", bridges={"physnet1": "eth9"})
    names = {p["name"] for p in world.placement("/resource_providers")["resource_providers"]}
    assert {n for n in names if n.startswith("host3")} == {
        "host3", "host3:Linux bridge agent", "host3:Linux bridge agent:eth9", "host3:Linux bridge agent:rp_tunnelled",
    }  # fmt: skip


def test_what_is_said_of_one_host_counts_more_than_what_is_of_all() -> None:
    said = Settings(
        resource_provider_bandwidths=("a:1:2", "h:a::3", "b::"),
        resource_provider_packet_processing_with_direction=(":5:6", "h:7:"),
    )
    assert qos_offers.bandwidths(said, "h") == {"a": {IGR: 3}, "b": {}}
    assert qos_offers.bandwidths(said, "other") == {"a": {EGR: 1, IGR: 2}, "b": {}}
    egress, ingress = (PPS.replace("RATE_", f"RATE_{way}_") for way in ("EGR", "IGR"))
    assert qos_offers.packet_rates(said, "h") == {egress: 7}
    assert qos_offers.packet_rates(said, "other") == {egress: 5, ingress: 6}


def test_what_is_offered_no_more_gives_nothing_and_goes_when_it_is_free(world: World) -> None:
    port = world.port(world.policy(("ingress", 1000), ("any", 10)))
    server = world.boot(port)
    host = world.server(server)["OS-EXT-SRV-ATTR:host"]

    def report(**settings: Any) -> set[str]:
        with world.cloud.store.write() as tx:
            cloud = replace(world.cloud, settings=replace(world.cloud.settings, **settings))
            for row in hosts.every(tx):
                qos_offers.offer(cloud, tx, row)
        return {p["name"] for p in world.placement("/resource_providers")["resource_providers"]}

    nothing: Json = {name: () for name in OFFERED}
    kept = {f"{host}:Open vSwitch agent", f"{host}:Open vSwitch agent:br-ex"}
    assert report(**nothing) == {"host1", "host2"} | kept
    assert world.held(server) == {
        f"{host}:Open vSwitch agent": {PPS: 10}, f"{host}:Open vSwitch agent:br-ex": {IGR: 1000},
    }  # fmt: skip
    assert world.server(world.boot(world.port(world.policy(("ingress", 1)))))["status"] == "ERROR"
    assert world.change(port, world.policy(("ingress", 500), ("any", 10)))[0] == 200, "less may always be had"
    assert world.change(port, world.policy(("ingress", 501), ("any", 10)))[0] == 409
    world.nova("DELETE", f"/servers/{server}", expect=204)
    world.test.settle()
    assert report(**nothing) == {"host1", "host2"}
    assert len(report()) == 2 * 4
    generation = world.placement("/resource_providers")["resource_providers"]
    report()
    assert world.placement("/resource_providers")["resource_providers"] == generation, "written without need"


def test_a_server_holds_what_its_ports_are_guaranteed(world: World) -> None:
    port = world.port(world.policy(("ingress", 1000), ("egress", 2000), ("any", 10)))
    assert world.shown(port) == {}
    server = world.boot(port)
    assert world.server(server)["status"] == "ACTIVE"
    host = world.server(server)["OS-EXT-SRV-ATTR:host"]
    agent, bridge = f"{host}:Open vSwitch agent", f"{host}:Open vSwitch agent:br-ex"
    assert world.held(server) == {agent: {PPS: 10}, bridge: {IGR: 1000, EGR: 2000}}
    asked = world.test.request("GET", f"/network/v2.0/ports/{port}").json["port"]["resource_request"]
    allocation = world.shown(port)["allocation"]
    assert set(allocation) == {g["id"] for g in asked["request_groups"]} == set(asked["same_subtree"])
    assert set(allocation.values()) == {str(uuid.uuid5(NEUTRON, host)), str(uuid.uuid5(NEUTRON, f"{host}:br-ex"))}
    mine = world.test.request("GET", f"/network/v2.0/ports/{port}", token=world.test.token("demo")).json["port"]
    assert not {"binding:profile", "resource_request"} & mine.keys()
    service = service_token(world.test)
    bound = world.test.request("GET", f"/network/v2.0/ports/{port}/bindings", token=service).json["bindings"]
    assert [b["profile"] for b in bound] == [{"allocation": allocation}]
    world.nova("DELETE", f"/servers/{server}", expect=204)
    world.test.settle()
    assert (world.held(server), world.shown(port)) == ({}, {})


def test_placement_finds_the_candidates_that_neutron_and_nova_ask_for(world: World) -> None:
    query = (
        f"resources=VCPU:1&resources_p1={IGR}:4000&required_p1=CUSTOM_PHYSNET_PHYSNET1,CUSTOM_VNIC_TYPE_NORMAL"
        f"&resources_p2={PPS}:10&required_p2=CUSTOM_VNIC_TYPE_NORMAL&same_subtree=_p1,_p2&group_policy=none"
    )
    found = world.placement(f"/allocation_candidates?{query}")["allocation_requests"]
    assert [sorted(one["mappings"]) for one in found] == [["", "_p1", "_p2"]] * 2
    found = world.placement(f"/allocation_candidates?{query.replace(':4000', ':6000')}")["allocation_requests"]
    assert [one["mappings"]["_p1"] for one in found] == [[str(uuid.uuid5(NEUTRON, "host2:br-ex"))]]
    for amount, some in ((1, True), (2**31 - 1, False)):
        got = world.placement(f"/allocation_candidates?resources1={IGR}:{amount}")
        assert bool(got["provider_summaries"]) is some


def test_servers_go_where_the_room_is_and_nowhere_when_there_is_none(world: World) -> None:
    big = world.policy(("ingress", 4500))
    where = [world.server(world.boot(world.port(big))).get("OS-EXT-SRV-ATTR:host") for _ in range(3)]
    assert sorted(where) == ["host1", "host2", "host2"]
    port = world.port(big)
    full = world.boot(port)
    fault = world.admin.server(full)["fault"]
    assert (world.server(full)["status"], fault["message"][:24]) == ("ERROR", "No valid host was found.")
    assert "guarantee" in fault["details"]
    assert (world.held(full), world.shown(port)) == ({}, {})
    direct = world.port(world.policy(("ingress", 1)))
    with world.cloud.store.write() as tx:
        tx.execute(sa.text("update port set vnic_type = 'direct' where id = :id").bindparams(id=direct))
    assert world.server(world.boot(direct))["status"] == "ERROR", "no host has CUSTOM_VNIC_TYPE_DIRECT"
    two = world.policy(("any", 60))
    assert world.server(world.boot(world.port(two), world.port(two)))["status"] == "ERROR", "together they are too many"


def test_ports_of_one_server_add_up(world: World) -> None:
    one, two = world.policy(("ingress", 1000)), world.policy(("ingress", 2000))
    ports = [world.port(one), world.port(two)]
    server = world.boot(*ports)
    bridge = f"{world.server(server)['OS-EXT-SRV-ATTR:host']}:Open vSwitch agent:br-ex"
    assert world.held(server) == {bridge: {IGR: 3000}}
    assert world.change(ports[0], two) == (200, "")
    assert world.held(server) == {bridge: {IGR: 4000}}
    tunnel = world.network()[0]
    third = world.port(one, network_id=tunnel)
    world.nova("POST", f"/servers/{server}/os-interface", {"interfaceAttachment": {"port_id": third}}, expect=200)
    assert world.held(server) == {bridge: {IGR: 4000}, bridge.replace("br-ex", "rp_tunnelled"): {IGR: 1000}}
    world.delete(f"ports/{ports[1]}", "admin")
    assert world.held(server) == {bridge: {IGR: 2000}, bridge.replace("br-ex", "rp_tunnelled"): {IGR: 1000}}


def test_another_policy_changes_how_much_and_never_of_what(world: World) -> None:
    port = world.port(world.policy(("ingress", 1000), ("any", 10)))
    server = world.boot(port)
    agent = f"{world.server(server)['OS-EXT-SRV-ATTR:host']}:Open vSwitch agent"
    bridge = f"{agent}:br-ex"
    assert world.change(port, world.policy(("ingress", 2000), ("any", 5))) == (200, "")
    assert world.held(server) == {agent: {PPS: 5}, bridge: {IGR: 2000}}
    before = world.shown(port)
    assert world.change(port, world.policy(("ingress", 2**31 - 1))) == (409, "QosPlacementAllocationUpdateConflict")
    assert (world.held(server), world.shown(port)) == ({agent: {PPS: 5}, bridge: {IGR: 2000}}, before)
    assert world.change(port, world.policy(("egress", 700))) == (200, "")
    assert world.held(server) == {bridge: {EGR: 700}}
    assert world.change(port, world.policy(("egress", 800), ("any", 5))) == (200, "")
    assert world.held(server) == {bridge: {EGR: 800}}, "nobody chose a provider for packets"
    assert len(world.shown(port)["allocation"]) == 1
    world.put(f"ports/{port}", {"port": {"description": "d"}})
    assert world.held(server) == {bridge: {EGR: 800}}
    assert world.change(port, None) == (200, "")
    assert (world.held(server), world.shown(port)) == ({}, {})
    assert world.change(port, world.policy(("egress", 1))) == (200, "")
    assert (world.held(server), world.shown(port)) == ({}, {}), "it was placed without"


def test_rules_and_networks_policies_change_what_servers_hold(world: World) -> None:
    policy = world.policy()
    rule = world.rule(policy, "ingress", 1000)
    port = world.port(policy)
    server = world.boot(port)
    bridge = f"{world.server(server)['OS-EXT-SRV-ATTR:host']}:Open vSwitch agent:br-ex"
    path = f"qos/policies/{policy}/minimum_bandwidth_rules"
    world.put(f"{path}/{rule}", {"minimum_bandwidth_rule": {"min_kbps": 3000}}, "admin")
    assert world.held(server) == {bridge: {IGR: 3000}}
    too_much = {"minimum_bandwidth_rule": {"min_kbps": 10**6}}
    assert world.test.request("PUT", f"/network/v2.0/{path}/{rule}", too_much).status == 409
    more = world.rule(policy, "egress", 50)
    assert world.held(server) == {bridge: {IGR: 3000, EGR: 50}}
    world.delete(f"{path}/{rule}", "admin")
    assert world.held(server) == {bridge: {EGR: 50}}
    world.delete(f"{path}/{more}", "admin")
    assert world.held(server) == {}
    of_network = world.policy(("ingress", 100))
    world.put(f"networks/{world.net}", {"network": {"qos_policy_id": of_network}}, "admin")
    made = str(world.nova.boot(world.image, networks=[{"uuid": world.net}])["id"])
    world.test.settle()
    bridge = f"{world.server(made)['OS-EXT-SRV-ATTR:host']}:Open vSwitch agent:br-ex"
    assert world.held(made) == {bridge: {IGR: 100}}
    less = {"network": {"qos_policy_id": world.policy(("ingress", 60))}}
    world.put(f"networks/{world.net}", less, "admin")
    assert world.held(made) == {bridge: {IGR: 60}}


def test_interfaces_take_and_give_back(world: World) -> None:
    plain, port = world.port(None), world.port(world.policy(("ingress", 1000), ("any", 100)))
    server = world.boot(plain)
    agent = f"{world.server(server)['OS-EXT-SRV-ATTR:host']}:Open vSwitch agent"
    body = {"interfaceAttachment": {"port_id": port}}
    world.nova("POST", f"/servers/{server}/os-interface", body, expect=200)
    assert world.held(server) == {agent: {PPS: 100}, f"{agent}:br-ex": {IGR: 1000}}
    over = world.port(world.policy(("any", 1)))
    got = world.nova("POST", f"/servers/{server}/os-interface", {"interfaceAttachment": {"port_id": over}}, expect=400)
    assert "Failed to allocate additional resources" in got.json["badRequest"]["message"]
    assert world.held(server) == {agent: {PPS: 100}, f"{agent}:br-ex": {IGR: 1000}}
    world.nova("DELETE", f"/servers/{server}/os-interface/{port}", expect=202)
    assert (world.held(server), world.shown(port)) == ({}, {})


def test_a_port_bound_without_a_server_holds_in_its_own_name(world: World) -> None:
    port = world.port(world.policy(("ingress", 1000)))
    bind = {"port": {"binding:host_id": "host1", "device_owner": "compute:nova", "device_id": "a machine elsewhere"}}
    world.put(f"ports/{port}", bind, "admin")
    assert world.held(port) == {"host1:Open vSwitch agent:br-ex": {IGR: 1000}}
    service = service_token(world.test)

    def profile_is(profile: Json) -> None:
        body = {"port": {"binding:profile": profile}}
        assert world.test.request("PUT", f"/network/v2.0/ports/{port}", body, token=service).status == 200

    world.put(f"ports/{port}", {"port": {"binding:host_id": "host2"}}, "admin")
    profile_is({"a": 1})
    assert world.held(port) == {"host2:Open vSwitch agent:br-ex": {IGR: 1000}}
    profile = world.shown(port)
    assert (profile["a"], list(profile["allocation"].values())) == (1, [str(uuid.uuid5(NEUTRON, "host2:br-ex"))])
    profile_is(profile)  # read, changed and written back, as clients do
    full = world.policy(("ingress", 9001))
    assert world.change(port, full) == (409, "QosPlacementAllocationConflict")
    assert world.change(port, world.policy(("ingress", 9000), ("any", 1))) == (200, "")
    assert world.held(port) == {"host2:Open vSwitch agent:br-ex": {IGR: 9000}, "host2:Open vSwitch agent": {PPS: 1}}
    world.put(f"ports/{port}", {"port": {"binding:host_id": ""}}, "admin")
    assert (world.held(port), world.shown(port)) == ({}, {"a": 1})


def test_nobody_makes_another_projects_server_hold_anything(world: World) -> None:
    victim = world.boot(world.port(world.policy(("ingress", 10))))
    host = world.server(victim)["OS-EXT-SRV-ATTR:host"]
    mine = world.held(victim)
    policy = world.policy(("ingress", 500))
    body = {"network_id": world.net, "qos_policy_id": policy, "device_id": victim, "device_owner": "compute:nova"}
    port = world.post("ports", "port", "admin", **body, **{"binding:host_id": host})["id"]
    found = world.placement(f"/allocations/{victim}")["allocations"]
    assert {IGR: 10} in [one["resources"] for one in found.values()]
    assert len(found) == 1 + len(mine)
    own = world.placement(f"/allocations/{port}")["allocations"]
    assert [one["resources"] for one in own.values()] == [{IGR: 500}]
    world.delete(f"ports/{port}", "admin")
    assert (world.held(port), world.held(victim)) == ({}, mine)


def test_the_invariants_see_what_is_leaked_or_counted_twice(world: World) -> None:
    port = world.port(world.policy(("ingress", 1000)))
    server = world.boot(port)
    world.held(server)

    def broken(statement: Any) -> list[str]:
        seen: list[str] = []
        with contextlib.suppress(_Undo), world.cloud.store.write() as tx:
            tx.execute(statement)
            seen += qos_guarantees.wrong(world.cloud, tx) + invariants.claims(world.cloud, tx)
            raise _Undo
        return seen

    assert broken(sa.update(ALLOCATION).where(ALLOCATION.c.resource_class == IGR).values(used=999))
    assert broken(sa.delete(ALLOCATION).where(ALLOCATION.c.resource_class == IGR))
    assert broken(sa.update(PORT_GUARANTEE).values(used=2000))
    assert broken(sa.delete(PORT_GUARANTEE))
    assert broken(sa.update(PORT_GUARANTEE).values(provider_id=world.scalar("select id from host where name='host1'")))
    assert world.held(server)


class _Undo(Exception):
    pass


@pytest.mark.parametrize(
    "wrong",
    [
        {"resource_provider_bandwidths": ("br-ex",)},
        {"resource_provider_bandwidths": ("br-ex:10:-1",)},
        {"resource_provider_inventory_defaults": ("colour:1",)},
        {"resource_provider_packet_processing_without_direction": ("10",)},
        {
            "resource_provider_packet_processing_without_direction": (":10",),
            "resource_provider_packet_processing_with_direction": (":10:10",),
        },
    ],
)  # fmt: skip
def test_settings_that_mean_nothing_are_refused(wrong: Json) -> None:
    with pytest.raises(BadSetting, match=r"setting resource_provider_"):
        Settings(**wrong)
