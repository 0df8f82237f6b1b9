"""QoS policies in the API: who may make and use them, what their rules can say, who is told what they say."""

from __future__ import annotations

import uuid
from typing import Any

import pytest
import sqlalchemy as sa
from computing import image
from networking import Net, Play

from nubila.core import work
from nubila.core.faults import Fault
from nubila.core.ports import QosSpec
from nubila.services.network import plug, qos, qos_guarantees
from nubila.services.placement import reading
from nubila.testing.cloud import TestCloud

Json = dict[str, Any]


def policy(admin: Net, **values: Any) -> Json:
    return admin.make("policy", "qos/policies", name="p", **values)


def rule(admin: Net, policy: Json, kind: str, **values: Any) -> Json:
    found: Json = admin.ok("POST", f"qos/policies/{policy['id']}/{kind}_rules", {f"{kind}_rule": values})
    return found[f"{kind}_rule"]


def test_rules_of_every_kind_are_made_shown_changed_and_deleted(admin: Net) -> None:
    p = policy(admin)
    base = f"qos/policies/{p['id']}"
    made = {
        "bandwidth_limit": rule(admin, p, "bandwidth_limit", max_kbps="1000", direction="ingress"),
        "packet_rate_limit": rule(admin, p, "packet_rate_limit", max_kpps=5, max_burst_kpps=2),
        "dscp_marking": rule(admin, p, "dscp_marking", dscp_mark=26),
        "minimum_bandwidth": rule(admin, p, "minimum_bandwidth", min_kbps=100),
        "minimum_packet_rate": rule(admin, p, "minimum_packet_rate", min_kpps=3, direction="any"),
    }
    assert made["bandwidth_limit"] == {
        "id": made["bandwidth_limit"]["id"], "max_kbps": 1000, "max_burst_kbps": 0, "direction": "ingress",
    }  # fmt: skip
    assert made["packet_rate_limit"]["direction"] == "egress"
    shown = admin.ok("GET", base)["policy"]
    hidden = ("type", "qos_policy_id")
    assert {r["type"]: {k: v for k, v in r.items() if k not in hidden} for r in shown["rules"]} == made
    assert {r["qos_policy_id"] for r in shown["rules"]} == {p["id"]}
    assert shown["revision_number"] == p["revision_number"] + 5
    one = made["bandwidth_limit"]["id"]
    got = admin.ok("PUT", f"{base}/bandwidth_limit_rules/{one}", {"bandwidth_limit_rule": {"max_kbps": 2000}})
    assert got["bandwidth_limit_rule"] == {**made["bandwidth_limit"], "max_kbps": 2000}
    for spelled in ("alias_bandwidth_limit_rules", "alias-bandwidth-limit-rules"):
        got = admin.ok("GET", f"qos/{spelled}/{one}")["alias_bandwidth_limit_rule"]
        assert (got["id"], got["max_kbps"], got["project_id"]) == (one, 2000, p["project_id"])
    got = admin.ok("PUT", f"qos/alias-bandwidth-limit-rules/{one}", {"alias_bandwidth_limit_rule": {"max_kbps": 7}})
    assert admin.ok("GET", f"{base}/bandwidth_limit_rules/{one}")["bandwidth_limit_rule"]["max_kbps"] == 7
    admin.ok("DELETE", f"qos/alias_bandwidth_limit_rules/{one}")
    assert admin.refused("GET", f"{base}/bandwidth_limit_rules/{one}") == (404, "QosRuleNotFound")
    assert admin.ok("GET", f"{base}/bandwidth_limit_rules")["bandwidth_limit_rules"] == []
    admin.ok("DELETE", base)
    assert admin.refused("GET", base) == (404, "QosPolicyNotFound")


def test_rules_that_contradict_each_other_or_mean_nothing_are_refused(admin: Net) -> None:
    p = policy(admin)
    base = f"qos/policies/{p['id']}"

    def refused(kind: str, **values: Any) -> tuple[int, str]:
        return admin.refused("POST", f"{base}/{kind}_rules", {f"{kind}_rule": values})

    limit = rule(admin, p, "bandwidth_limit", max_kbps=100)
    assert refused("bandwidth_limit", max_kbps=5) == (409, "QoSRulesConflict")
    assert refused("minimum_bandwidth", min_kbps=101) == (409, "QoSRuleParameterConflict")
    rule(admin, p, "minimum_bandwidth", min_kbps=101, direction="ingress")
    other = rule(admin, p, "bandwidth_limit", max_kbps=200, direction="ingress")
    change = {"bandwidth_limit_rule": {"direction": "egress"}}
    assert admin.refused("PUT", f"{base}/bandwidth_limit_rules/{other['id']}", change) == (409, "QoSRulesConflict")
    rule(admin, p, "minimum_packet_rate", min_kpps=1, direction="any")
    assert refused("minimum_packet_rate", min_kpps=1)[1] == "QoSRuleParameterConflict"
    for kind, values in (
        ("dscp_marking", {"dscp_mark": 58}), ("dscp_marking", {"dscp_mark": "x"}), ("dscp_marking", {}),
        ("bandwidth_limit", {"max_kbps": -1}), ("bandwidth_limit", {"max_kbps": 2**31}),
        ("bandwidth_limit", {"max_kbps": 1, "direction": "any"}), ("minimum_bandwidth", {"direction": "egress"}),
        ("packet_rate_limit", {"max_kpps": 1, "more": 2}), ("bandwidth_limit", {"max_kbps": True}),
        ("bandwidth_limit", {"max_kbps": "9999999999"}),
    ):  # fmt: skip
        assert refused(kind, **values)[0] == 400, (kind, values)
    strange = "00000000-0000-0000-0000-000000000000"
    assert admin.refused("PUT", f"qos/policies/{strange}/bandwidth_limit_rules/{limit['id']}", change)[0] == 404
    assert admin.refused("GET", f"{base}/dscp_marking_rules/{limit['id']}")[0] == 404
    assert admin.refused("POST", f"{base}/bandwidth_limit_rules", [])[0] == 400


def test_lists_of_rules_are_filtered_sorted_and_paged(admin: Net) -> None:
    p = policy(admin)
    for direction, value in (("ingress", 30), ("egress", 20)):
        rule(admin, p, "bandwidth_limit", max_kbps=value, direction=direction)
    path = f"qos/policies/{p['id']}/bandwidth_limit_rules"

    def listed(**query: Any) -> list[Json]:
        found: list[Json] = admin.ok("GET", path, **query)["bandwidth_limit_rules"]
        return found

    assert [r["max_kbps"] for r in listed(direction="egress")] == [20]
    assert [r["max_kbps"] for r in listed(sort_key="max_kbps", sort_dir="desc")] == [30, 20]
    first = listed(sort_key="max_kbps", sort_dir="asc", limit=1)
    assert [r["max_kbps"] for r in first] == [20]
    assert [r["max_kbps"] for r in listed(sort_key="max_kbps", sort_dir="asc", limit=1, marker=first[0]["id"])] == [30]
    assert set(listed(fields="direction")[0]) == {"direction"}
    assert admin.refused("GET", path, nonsense="1")[0] == 400
    assert admin.refused("GET", path, limit="\u00b2")[0] == 400


def test_rule_types_say_what_hosts_honour(admin: Net, demo: Net) -> None:
    names = {t["type"] for t in demo.ok("GET", "qos/rule-types")["rule_types"]}
    assert {"bandwidth_limit", "packet_rate_limit", "dscp_marking"} <= names
    everything = {t["type"] for t in demo.ok("GET", "qos/rule-types", all_rules="true")["rule_types"]}
    assert everything == names | {"minimum_bandwidth", "minimum_packet_rate"}
    both = demo.refused("GET", "qos/rule-types", all_rules="true", all_supported="true")
    assert both == (400, "InvalidInput")
    assert demo.refused("GET", "qos/rule-types/dscp_marking")[0] == 403
    drivers = admin.ok("GET", "qos/rule-types/dscp_marking")["rule_type"]["drivers"]
    assert drivers[0]["supported_parameters"][0]["parameter_values"][:3] == [0, 8, 10]


def test_a_project_neither_sees_nor_uses_nor_changes_what_is_not_shared_with_it(admin: Net, demo: Net) -> None:
    mine = demo.make("network")
    p = policy(admin)
    limit = rule(admin, p, "bandwidth_limit", max_kbps=100)
    base = f"qos/policies/{p['id']}"
    assert demo.ok("GET", "qos/policies")["policies"] == []
    for method, path in (("GET", base), ("DELETE", base), ("GET", f"{base}/bandwidth_limit_rules"),
                         ("DELETE", f"{base}/bandwidth_limit_rules/{limit['id']}"),
                         ("GET", f"qos/alias-bandwidth-limit-rules/{limit['id']}"),
                         ("DELETE", f"qos/alias-bandwidth-limit-rules/{limit['id']}"),
                         ("GET", f"policies/{p['id']}/tags")):  # fmt: skip
        assert demo.refused(method, path)[0] == 404, (method, path)
    # Whether there is such a policy is not told to those who may make rules nowhere.
    there = demo.refused("POST", f"{base}/bandwidth_limit_rules", {"bandwidth_limit_rule": {"max_kbps": 1}})
    nowhere = demo.refused("POST", "qos/policies/x/bandwidth_limit_rules", {"bandwidth_limit_rule": {"max_kbps": 1}})
    assert there == nowhere == (403, "PolicyNotAuthorized")
    use = {"qos_policy_id": p["id"]}
    for path, item in ((f"networks/{mine['id']}", "network"), ("ports", "port"), ("networks", "network")):
        method = "PUT" if "/" in path else "POST"
        body = {item: use | ({"network_id": mine["id"]} if item == "port" else {})}
        assert demo.refused(method, path, body) == (404, "QosPolicyNotFound")
    assert demo.refused("POST", "qos/policies", {"policy": {"name": "own"}})[0] == 403
    share = {"object_type": "qos_policy", "object_id": p["id"], "action": "access_as_shared"}
    grant = admin.make("rbac_policy", "rbac-policies", **share, target_tenant=mine["project_id"])
    assert demo.ok("GET", base)["policy"]["shared"] is True
    demo.ok("PUT", f"networks/{mine['id']}", {"network": use})
    assert demo.refused("DELETE", base)[0] == 403
    assert admin.refused("DELETE", f"rbac-policies/{grant['id']}") == (409, "RbacPolicyInUse")
    admin.ok("PUT", f"networks/{mine['id']}", {"network": {"qos_policy_id": None}})
    admin.ok("PUT", f"networks/{mine['id']}", {"network": use})
    port = demo.make("port", network_id=mine["id"], **use)
    assert admin.refused("DELETE", base) == (409, "QosPolicyInUse")
    demo.ok("DELETE", f"ports/{port['id']}")
    demo.ok("PUT", f"networks/{mine['id']}", {"network": {"qos_policy_id": None}})
    admin.ok("PUT", f"networks/{mine['id']}", {"network": use})
    with demo.cloud.cloud.store.write() as tx:  # as if the sharing had ended with the network still using it
        tx.execute(sa.text("delete from rbac_policy"))
    refused = demo.refused("PUT", f"networks/{mine['id']}", {"network": {"qos_policy_id": None}})
    assert refused == (403, "PolicyRemoveAuthorizationError")


def test_one_default_policy_a_project_and_quota(admin: Net, demo: Net) -> None:
    owner = demo.make("network")["project_id"]
    p = policy(admin, project_id=owner, is_default=True)
    again = {"policy": {"name": "q", "project_id": owner, "is_default": True}}
    assert admin.refused("POST", "qos/policies", again) == (409, "QoSPolicyDefaultAlreadyExists")
    net = demo.make("network")
    assert net["qos_policy_id"] == p["id"]
    port = demo.make("port", network_id=net["id"])
    assert (port["qos_policy_id"], port["qos_network_policy_id"]) == (None, p["id"])
    q = policy(admin, project_id=owner)
    assert demo.make("network", qos_policy_id=q["id"])["qos_policy_id"] == q["id"]
    changed = admin.refused("PUT", f"qos/policies/{q['id']}", {"policy": {"is_default": True}})
    assert changed == (409, "QoSPolicyDefaultAlreadyExists")
    admin.ok("PUT", f"qos/policies/{p['id']}", {"policy": {"is_default": False}})
    admin.ok("PUT", f"qos/policies/{q['id']}", {"policy": {"is_default": True}})
    assert demo.make("network")["qos_policy_id"] == q["id"]
    with admin.cloud.cloud.store.read() as r:
        assert qos.wrong(admin.cloud.cloud, r) == []
    admin.ok("PUT", f"quotas/{owner}", {"quota": {"qos_policy": 2}})
    full = admin.refused("POST", "qos/policies", {"policy": {"name": "r", "project_id": owner}})
    assert full == (409, "OverQuota")


def test_what_a_port_needs_of_a_host_is_shown_to_administrators(admin: Net, demo: Net) -> None:
    p = policy(admin, shared=True)
    for direction, least in (("ingress", 2000), ("egress", 1000)):
        rule(admin, p, "minimum_bandwidth", min_kbps=least, direction=direction)
    rule(admin, p, "minimum_packet_rate", min_kpps=5, direction="any")
    net = admin.make("network", **{"provider:network_type": "vlan", "provider:physical_network": "physnet1"})
    port = admin.make("port", network_id=net["id"], qos_policy_id=p["id"])
    wanted = port["resource_request"]
    groups = wanted["request_groups"]
    assert [g["id"] for g in groups] == wanted["same_subtree"]
    assert groups[0]["required"] == ["CUSTOM_PHYSNET_PHYSNET1", "CUSTOM_VNIC_TYPE_NORMAL"]
    assert groups[0]["resources"] == {"NET_BW_IGR_KILOBIT_PER_SEC": 2000, "NET_BW_EGR_KILOBIT_PER_SEC": 1000}
    assert groups[1]["resources"] == {"NET_PACKET_RATE_KILOPACKET_PER_SEC": 5}
    mine = demo.make("network", qos_policy_id=p["id"])
    own = demo.make("port", network_id=mine["id"])
    assert "resource_request" not in own
    seen = admin.ok("GET", f"ports/{own['id']}")["port"]["resource_request"]["request_groups"]
    assert seen[0]["required"][0] == "CUSTOM_NETWORK_TUNNEL_PROVIDER"
    admin.ok("PUT", f"networks/{mine['id']}", {"network": {"qos_policy_id": None}})
    assert admin.ok("GET", f"ports/{own['id']}")["port"]["resource_request"] is None


def forget_debts(play: Play) -> None:
    with play.cloud.store.write() as tx:
        tx.execute(sa.update(work.work).values(done=work.work.c.gen))


def test_hosts_are_told_what_a_policy_says_and_when_it_changes(play: Play) -> None:
    net, _ = play.network()
    p = play.post("qos/policies", "policy", "admin", name="p", shared=True)
    base = f"qos/policies/{p['id']}"
    play.post(f"{base}/bandwidth_limit_rules", "bandwidth_limit_rule", "admin", max_kbps=1000)
    plain, own = play.plug(net, "host1"), play.plug(net, "host2")
    q = play.post("qos/policies", "policy", "admin", name="q", shared=True)
    play.post(f"qos/policies/{q['id']}/dscp_marking_rules", "dscp_marking_rule", "admin", dscp_mark=46)
    assert play.spec("port", plain["id"], "host1").qos is None
    forget_debts(play)
    play.put(f"networks/{net}", {"network": {"qos_policy_id": p["id"]}})
    play.put(f"ports/{own['id']}", {"port": {"qos_policy_id": q["id"]}})
    assert {("port", plain["id"], "host1"), ("port", own["id"], "host2")} <= play.debts()
    limit = QosSpec(egress_kbps=1000, egress_burst_kbit=800)
    assert play.spec("port", plain["id"], "host1").qos == limit
    assert play.spec("port", own["id"], "host2").qos == QosSpec(dscp=46)
    play.test.settle()
    play.post(f"{base}/packet_rate_limit_rules", "packet_rate_limit_rule", "admin", max_kpps=2, max_burst_kpps=1,
              direction="ingress")  # fmt: skip
    assert play.debts() == {("qos_policy", p["id"], "")}
    play.test.settle()
    found = [agent.drivers.network.port(plain["id"]) for agent in play.test.agents]  # type: ignore[attr-defined]
    both = next(spec for spec in found if spec is not None).qos  # what its host has been told
    assert (both.ingress_pps, both.ingress_burst_packets, both.egress_kbps) == (2000, 1000, 1000)


def test_routers_carry_the_limits_of_gateways_and_floating_addresses(play: Play) -> None:
    net, subnet = play.network()
    p = play.post("qos/policies", "policy", "admin", name="p", shared=True)
    play.post(f"qos/policies/{p['id']}/bandwidth_limit_rules", "bandwidth_limit_rule", "admin", max_kbps=1000)
    public = play.test.request("GET", "/network/v2.0/networks?router:external=true").json["networks"][0]["id"]
    info = {"network_id": public, "qos_policy_id": p["id"]}
    router = play.post("routers", "router", external_gateway_info=info)
    assert router["external_gateway_info"]["qos_policy_id"] == p["id"]
    play.put(f"routers/{router['id']}/add_router_interface", {"subnet_id": subnet})
    port = play.plug(net, "host1")
    where = {"floating_network_id": public, "port_id": port["id"]}
    float_ = play.post("floatingips", "floatingip", qos_policy_id=p["id"], **where)
    assert float_["qos_policy_id"] == p["id"]
    host = play.scalar("select host from router")
    spec = play.spec("router", router["id"], host)
    assert spec.gateway_qos == spec.floating_ips[0].qos == QosSpec(egress_kbps=1000, egress_burst_kbit=800)
    forget_debts(play)
    play.put(f"floatingips/{float_['id']}", {"floatingip": {"qos_policy_id": None, "port_id": port["id"]}})
    play.put(f"routers/{router['id']}", {"router": {"external_gateway_info": {**info, "qos_policy_id": None}}})
    assert ("router", router["id"], host) in play.debts()
    spec = play.spec("router", router["id"], host)
    assert (spec.gateway_qos, spec.floating_ips[0].qos) == (None, None)
    play.delete(f"qos/policies/{p['id']}", "admin")


def test_a_policy_is_refused_where_nothing_would_limit(play: Play) -> None:
    net, _ = play.network()
    p = play.post("qos/policies", "policy", "admin", name="p", shared=True)
    dhcp = play.test.request("GET", "/network/v2.0/ports", query={"network_id": net, "device_owner": "network:dhcp"})
    id = dhcp.json["ports"][0]["id"]
    got = play.test.request("PUT", f"/network/v2.0/ports/{id}", {"port": {"qos_policy_id": p["id"]}})
    assert (got.status, got.json["NeutronError"]["type"]) == (400, "InvalidInput")
    assert play.test.request("PUT", f"/network/v2.0/ports/{id}", {"port": {"qos_policy_id": None}}).status == 200


def inventory(play: Play, host: str, **totals: int) -> None:
    """What an operator says a host's tunnels carry, on a provider he makes below the host's."""
    headers = {"openstack-api-version": "placement 1.29"}

    def put(path: str, body: Json, method: str = "PUT") -> None:
        got = play.test.request(method, f"/placement/{path}", body, headers=headers)
        assert got.status in (200, 201, 204), got.body

    id, root = str(uuid.uuid4()), play.scalar(f"select id from host where name = '{host}'")
    put("resource_providers", {"name": f"uplink of {host}", "uuid": id, "parent_provider_uuid": root}, "POST")
    traits = ["CUSTOM_NETWORK_TUNNEL_PROVIDER", "CUSTOM_VNIC_TYPE_NORMAL"]
    for trait in traits:
        put(f"traits/{trait}", {})
    put(f"resource_providers/{id}/traits", {"resource_provider_generation": 0, "traits": traits})
    rooms = {name: {"total": total} for name, total in totals.items()}
    put(f"resource_providers/{id}/inventories", {"resource_provider_generation": 1, "inventories": rooms})


def test_guarantees_take_room_on_the_host_and_never_more_than_it_has(play: Play) -> None:
    inventory(play, "host1", NET_BW_EGR_KILOBIT_PER_SEC=1000)
    inventory(play, "host2", NET_BW_EGR_KILOBIT_PER_SEC=1000)
    net, _ = play.network()
    p = play.post("qos/policies", "policy", "admin", name="p", shared=True)
    base = f"qos/policies/{p['id']}/minimum_bandwidth_rules"
    rule = play.post(base, "minimum_bandwidth_rule", "admin", min_kbps=600)["id"]
    ports = [play.post("ports", "port", network_id=net, qos_policy_id=p["id"])["id"] for _ in range(3)]

    def attach(port: str, host: str) -> None:
        with play.cloud.store.write() as tx:
            plug.attach_port(play.cloud, tx, port, device_id="guest", device_owner="compute:nova", host=host)

    def held() -> dict[str, Any]:
        with play.cloud.store.read() as r:
            assert qos_guarantees.wrong(play.cloud, r) == []
            return reading.held(r, "PORT")

    attach(ports[0], "host1")
    with pytest.raises(Fault) as full:
        attach(ports[1], "host1")
    assert (full.value.status, full.value.type) == (409, "QosPlacementAllocationConflict")
    with pytest.raises(Fault):
        attach(ports[1], "host3")  # has no bandwidth to give
    attach(ports[1], "host2")
    assert set(held()) == {ports[0], ports[1]}
    more = {"minimum_bandwidth_rule": {"min_kbps": 1001}}
    got = play.test.request("PUT", f"/network/v2.0/{base}/{rule}", more)
    assert got.status == 409, "a port on a host would have more than there is"
    more["minimum_bandwidth_rule"]["min_kbps"] = 300
    play.put(f"{base}/{rule}", more, "admin")
    assert sorted(n for one in held().values() for room in one.values() for n in room.values()) == [300, 300]
    attach(ports[2], "host1")
    play.put(f"ports/{ports[2]}", {"port": {"qos_policy_id": None}})
    play.put(f"networks/{net}", {"network": {"qos_policy_id": p["id"]}})
    assert set(held()) == set(ports)
    with play.cloud.store.read() as r:
        asked = plug.guaranteed(r, ports[:1], [net])
    assert [g["resources"] for one in asked for g in one.groups] == [{"NET_BW_EGR_KILOBIT_PER_SEC": 300}] * 2
    play.delete(f"{base}/{rule}", "admin")
    assert held() == {}


def test_servers_go_where_their_ports_have_room(cloud: TestCloud) -> None:
    play = Play(cloud)
    net, _ = play.network()
    p = play.post("qos/policies", "policy", "admin", name="p", shared=True)
    play.post(f"qos/policies/{p['id']}/minimum_packet_rate_rules", "minimum_packet_rate_rule", "admin", min_kpps=5,
              direction="any")  # fmt: skip
    flavor = "42"
    tiny = image(cloud)

    def server() -> str:
        port = play.post("ports", "port", network_id=net, qos_policy_id=p["id"])["id"]
        body = {"server": {"name": "s", "flavorRef": flavor, "imageRef": tiny, "networks": [{"port": port}]}}
        got = cloud.request("POST", "/compute/v2.1/servers", body, token=cloud.token("demo"))
        assert (got.status, "2.72" in got.json["badRequest"]["message"]) == (400, True)
        headers = {"openstack-api-version": "compute 2.72"}
        got = cloud.request("POST", "/compute/v2.1/servers", body, token=cloud.token("demo"), headers=headers)
        assert got.status == 202, got.body
        cloud.settle()
        return str(cloud.request("GET", f"/compute/v2.1/servers/{got.json['server']['id']}").json["server"]["status"])

    assert server() == "ERROR"
    inventory(play, str(play.scalar("select name from host")), NET_PACKET_RATE_KILOPACKET_PER_SEC=7)
    assert [server(), server()] == ["ACTIVE", "ERROR"]
