"""Ports bound to several hosts, and what ports carry for others: names, profiles, policies, a new MAC."""

from __future__ import annotations

from typing import Any

from networking import Net, sign_in

from nubila.services.network import hosting
from nubila.testing.cloud import TestCloud

Json = dict[str, Any]


def service_token(cloud: TestCloud) -> str:
    """A token of Compute's kind: the role service on a project."""
    return sign_in(cloud, "nova2", "service", "service")


def test_names_in_domains(demo: Net) -> None:
    net, _ = demo.network()
    port = demo.make("port", network_id=net["id"], dns_name="Web", dns_domain="Shop.Example.org.")
    ip = port["fixed_ips"][0]["ip_address"]
    assert (port["dns_name"], port["dns_domain"]) == ("web", "shop.example.org.")
    assert port["dns_assignment"] == [{"ip_address": ip, "hostname": "web", "fqdn": "web.shop.example.org."}]
    demo.ok("PUT", f"networks/{net['id']}", {"network": {"dns_domain": "net.test."}})
    shown = demo.ok("PUT", f"ports/{port['id']}", {"port": {"dns_domain": ""}})["port"]
    assert shown["dns_assignment"][0]["fqdn"] == "web.net.test."
    for bad in ("no-dot-at-the-end", "two..dots.", "-.", "x" * 300 + "."):
        assert demo.call("PUT", f"ports/{port['id']}", {"port": {"dns_domain": bad}}).status == 400
        assert demo.call("PUT", f"networks/{net['id']}", {"network": {"dns_domain": bad}}).status == 400


def test_what_ports_carry_for_their_hosts(demo: Net, admin: Net) -> None:
    net = demo.make("network")
    wish = {"network_id": net["id"], "numa_affinity_policy": "required", "device_profile": "gpu",
            "propagate_uplink_status": False}  # fmt: skip
    port = demo.make("port", **wish)
    assert {name: port[name] for name in wish} == wish
    assert "trusted" not in port
    path = f"ports/{port['id']}"
    assert demo.refused("PUT", path, {"port": {"trusted": True}}) == (403, "PolicyNotAuthorized")
    assert demo.call("PUT", path, {"port": {"device_profile": "other"}}).status == 400
    assert demo.call("PUT", path, {"port": {"numa_affinity_policy": "near"}}).status == 400
    before = admin.ok("GET", path)["port"]
    assert (before["trusted"], before["binding:profile"]) == (None, {})
    after = admin.ok("PUT", path, {"port": {"trusted": True}})["port"]
    assert (after["trusted"], after["binding:profile"]) == (True, {"trusted": True})
    new = admin.ok("PUT", path, {"port": {"mac_address": None}})["port"]["mac_address"]
    assert new not in (before["mac_address"], None)
    assert admin.ok("PUT", path, {"port": {"description": "d"}})["port"]["mac_address"] == new


def test_a_port_is_prepared_on_another_host_and_moves_there(cloud: TestCloud, demo: Net, admin: Net) -> None:
    cloud.add_host("second", roles=["compute"])
    first = "host1"
    net, _ = demo.network()
    port = admin.make(
        "port", network_id=net["id"], device_owner="compute:nova", device_id="x", **{"binding:host_id": first}
    )
    service = service_token(cloud)

    def call(method: str, path: str = "", body: Any = None) -> Any:
        return cloud.request(method, f"/network/v2.0/ports/{port['id']}/bindings{path}", body, token=service)

    assert [(b["host"], b["status"]) for b in call("GET").json["bindings"]] == [(first, "ACTIVE")]
    assert admin.call("POST", f"ports/{port['id']}/bindings", {"binding": {"host": "second"}}).status == 403
    assert demo.call("GET", f"ports/{port['id']}/bindings").status == 403
    made = call("POST", body={"binding": {"host": "second", "profile": {"a": 1}}})
    assert (made.status, made.json["binding"]["status"], made.json["binding"]["vif_type"]) == (201, "INACTIVE", "ovs")
    assert call("POST", body={"binding": {"host": "second"}}).status == 409
    assert call("POST", body={"binding": {"host": "nowhere"}}).status == 409
    assert call("PUT", "/nowhere/activate").status == 404
    assert call("PUT", f"/{first}/activate").status == 409
    assert admin.ok("GET", f"ports/{port['id']}")["port"]["binding:host_id"] == first
    cloud.settle()
    assert call("PUT", "/second/activate").json["binding"]["status"] == "ACTIVE"
    cloud.settle()
    moved = admin.ok("GET", f"ports/{port['id']}")["port"]
    assert (moved["binding:host_id"], moved["binding:profile"], moved["status"]) == ("second", {"a": 1}, "ACTIVE")
    states = {b["host"]: b["status"] for b in call("GET").json["bindings"]}
    assert states == {"second": "ACTIVE", first: "INACTIVE"}
    assert call("DELETE", f"/{first}").status == 204
    assert call("GET", f"/{first}").status == 404
    assert admin.call("DELETE", f"ports/{port['id']}").status in (204, 403)


def test_only_servers_ports_have_several_bindings(cloud: TestCloud, demo: Net) -> None:
    net = demo.make("network")
    port = demo.make("port", network_id=net["id"])
    got = Net(cloud, "admin").refused("GET", f"ports/{port['id']}/bindings")
    assert got == (409, "UnsupportedPortDeviceOwner")


def test_a_dhcp_port_that_is_switched_off_serves_nobody(cloud: TestCloud, demo: Net) -> None:
    net, _ = demo.network()
    cloud.settle()
    port = demo.ok("GET", "ports", network_id=net["id"], device_owner="network:dhcp")["ports"][0]
    assert port["status"] == "ACTIVE"
    for up, status in ((False, "DOWN"), (True, "ACTIVE")):
        demo.ok("PUT", f"ports/{port['id']}", {"port": {"admin_state_up": up}})
        cloud.settle()
        assert demo.ok("GET", f"ports/{port['id']}")["port"]["status"] == status
        with cloud.cloud.store.read() as r:
            spec = hosting.describe_network(cloud.cloud, r, net["id"], "host1")
        assert spec is not None
        assert (spec.dhcp is not None) is up
