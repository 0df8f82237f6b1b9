"""Security groups, address groups and rule templates in the API, from both sides of a project's border."""

from __future__ import annotations

from typing import Any

import pytest
from networking import Net

from nubila.testing.cloud import TestCloud

Json = dict[str, Any]


class User(Net):
    """A user who names things as their paths do."""

    def create(self, items: str, **values: Any) -> Json:
        item = items.replace("-", "_").removesuffix("s").replace("policie", "policy")
        found: Json = self.ok("POST", items, {item: values})[item]
        return found

    def rule(self, group: Json, **values: Any) -> Json:
        return self.create("security-group-rules", security_group_id=group["id"], direction="ingress", **values)

    @property
    def project(self) -> str:
        found: str = self.create("networks", name="whose")["project_id"]
        return found


@pytest.fixture
def demo(cloud: TestCloud) -> User:
    return User(cloud, "demo")


@pytest.fixture
def admin(cloud: TestCloud) -> User:
    return User(cloud, "admin")


# --- stateful and stateless -------------------------------------------------------------------------------------------


def test_a_group_in_use_keeps_its_statefulness(demo: User) -> None:
    stateful, stateless = demo.create("security-groups", name="a"), demo.create("security-groups", stateful=False)
    assert (stateful["stateful"], stateless["stateful"]) == (True, False)
    path = f"security-groups/{stateless['id']}"
    assert demo.ok("PUT", path, {"security_group": {"stateful": True}})["security_group"]["stateful"] is True
    demo.ok("PUT", path, {"security_group": {"stateful": False}})
    found = demo.ok("GET", "security-groups", stateful=False)["security_groups"]
    assert [g["id"] for g in found] == [stateless["id"]]
    net = demo.create("networks", name="n")
    both = {"network_id": net["id"], "security_groups": [stateful["id"], stateless["id"]]}
    assert demo.refused("POST", "ports", {"port": both}) == (409, "SecurityGroupConflict")
    port = demo.create("ports", network_id=net["id"], security_groups=[stateless["id"]])
    change = {"port": {"security_groups": both["security_groups"]}}
    assert demo.refused("PUT", f"ports/{port['id']}", change) == (409, "SecurityGroupConflict")
    assert demo.refused("PUT", path, {"security_group": {"stateful": True}}) == (409, "SecurityGroupInUse")
    assert demo.ok("PUT", path, {"security_group": {"stateful": False, "name": "b"}})["security_group"]["name"] == "b"


def test_a_group_named_twice_is_refused(demo: User) -> None:
    group, net = demo.create("security-groups", name="a"), demo.create("networks", name="n")
    port = demo.create("ports", network_id=net["id"])
    twice = {"port": {"security_groups": [group["id"], group["id"]]}}
    assert demo.refused("PUT", f"ports/{port['id']}", twice) == (400, "HTTPBadRequest")
    assert demo.ok("GET", f"ports/{port['id']}")["port"]["security_groups"] == port["security_groups"]


# --- rules ------------------------------------------------------------------------------------------------------------


def test_rules_say_whether_they_belong_to_the_default_group(demo: User) -> None:
    default = demo.ok("GET", "security-groups", name="default")["security_groups"][0]
    other = demo.create("security-groups", name="a")
    assert {r["belongs_to_default_sg"] for r in default["security_group_rules"]} == {True}
    assert {r["belongs_to_default_sg"] for r in other["security_group_rules"]} == {False}
    added = demo.rule(default, protocol="tcp")
    assert added["belongs_to_default_sg"] is True
    mine = demo.ok("GET", "security-group-rules", belongs_to_default_sg=True)["security_group_rules"]
    assert {r["security_group_id"] for r in mine} == {default["id"]}
    assert added["id"] in {r["id"] for r in mine}


@pytest.mark.parametrize("protocol", ["41", "44", "58", "59", "60", "43"])
def test_ipv6_protocol_numbers_are_not_for_ipv4(demo: User, protocol: str) -> None:
    rule = {"security_group_id": demo.create("security-groups")["id"], "direction": "ingress", "protocol": protocol}
    kind = "SecurityGroupEthertypeConflictWithProtocol"
    assert demo.refused("POST", "security-group-rules", {"security_group_rule": rule}) == (400, kind)
    demo.ok("POST", "security-group-rules", {"security_group_rule": {**rule, "ethertype": "IPv6"}})


def test_the_prefix_is_kept_as_given_and_shown_as_used(demo: User) -> None:
    rule = demo.rule(demo.create("security-groups"), remote_ip_prefix="10.0.0.34/24")
    assert (rule["remote_ip_prefix"], rule["normalized_cidr"]) == ("10.0.0.34/24", "10.0.0.0/24")
    found = demo.ok("GET", "security-group-rules", normalized_cidr="10.0.0.0/24")["security_group_rules"]
    assert [r["id"] for r in found] == [rule["id"]]


# --- address groups ---------------------------------------------------------------------------------------------------


def test_an_address_group_keeps_normal_addresses(demo: User) -> None:
    group = demo.create("address-groups", name="offices", addresses=["10.1.2.3/24", "2001:db8::f00/64", "10.1.2.0/24"])
    assert group["addresses"] == ["10.1.2.0/24", "2001:db8::/64"]
    assert "shared" not in group
    path = f"address-groups/{group['id']}"
    change = {"address_group": {"addresses": []}}
    assert demo.refused("PUT", path, change)[0] == 400
    added = demo.ok("PUT", f"{path}/add_addresses", {"addresses": ["192.0.2.7", "10.9.0.0/16"]})["address_group"]
    assert added["addresses"] == ["10.1.2.0/24", "2001:db8::/64", "192.0.2.7/32", "10.9.0.0/16"]
    again = {"addresses": ["10.9.0.1/16"]}
    assert demo.refused("PUT", f"{path}/add_addresses", again) == (400, "AddressesAlreadyExist")
    left = demo.ok("PUT", f"{path}/remove_addresses", {"addresses": ["192.0.2.7/32"]})["address_group"]
    assert left["addresses"] == ["10.1.2.0/24", "2001:db8::/64", "10.9.0.0/16"]
    assert left["revision_number"] > group["revision_number"]
    assert demo.refused("PUT", f"{path}/remove_addresses", {"addresses": ["192.0.2.7"]}) == (404, "AddressesNotFound")
    assert demo.ok("GET", path)["address_group"]["addresses"] == left["addresses"]


@pytest.mark.parametrize("addresses", [["10.20.30.40"], ["nonsense"], ["10.0.0.0/33"], "10.0.0.0/8", [8]])
def test_bad_addresses_of_a_new_group(demo: User, addresses: Any) -> None:
    assert demo.call("POST", "address-groups", {"address_group": {"addresses": addresses}}).status == 400


@pytest.mark.parametrize("body", [None, [], {}, {"addresses": "x"}, {"addresses": ["x"]}, {"addresses": [1]},
                                  {"addresses": [], "more": 1}])  # fmt: skip
def test_bad_changes_of_addresses(demo: User, body: Any) -> None:
    group = demo.create("address-groups")
    for verb in ("add_addresses", "remove_addresses"):
        assert demo.call("PUT", f"address-groups/{group['id']}/{verb}", body).status == 400


def test_an_address_group_has_a_limit(demo: User, admin: User) -> None:
    many = [f"10.{i // 256}.{i % 256}.0/24" for i in range(5001)]
    assert demo.call("POST", "address-groups", {"address_group": {"addresses": many}}).status == 400
    admin.ok("PUT", f"quotas/{demo.project}", {"quota": {"address_group": 1}})
    demo.create("address-groups")
    assert demo.refused("POST", "address-groups", {"address_group": {}}) == (409, "OverQuota")


def test_an_address_group_in_rules_stays(demo: User) -> None:
    group, addresses = demo.create("security-groups"), demo.create("address-groups", addresses=["10.0.0.0/24"])
    rule = demo.rule(group, protocol="tcp", remote_address_group_id=addresses["id"])
    assert rule["remote_address_group_id"] == addresses["id"]
    same = {"security_group_id": group["id"], "direction": "ingress", "protocol": "tcp"}
    twice = {**same, "remote_address_group_id": addresses["id"]}
    assert demo.refused("POST", "security-group-rules", {"security_group_rule": twice}) == (
        409,
        "SecurityGroupRuleExists",
    )
    two = {**twice, "remote_ip_prefix": "10.0.0.0/8"}
    kind = "SecurityGroupMultipleRemoteEntites"
    assert demo.refused("POST", "security-group-rules", {"security_group_rule": two}) == (400, kind)
    path = f"address-groups/{addresses['id']}"
    assert demo.refused("DELETE", path) == (409, "AddressGroupInUse")
    demo.ok("DELETE", f"security-group-rules/{rule['id']}")
    demo.ok("DELETE", path)
    assert demo.refused("GET", path) == (404, "AddressGroupNotFound")


def test_strangers_neither_see_nor_use_nor_change_an_address_group(demo: User, admin: User) -> None:
    theirs = admin.create("address-groups", addresses=["10.0.0.0/24"])
    path, group = f"address-groups/{theirs['id']}", demo.create("security-groups")
    body = {"addresses": ["10.0.0.0/24"]}

    def rule() -> tuple[int, str]:
        return demo.refused("POST", "security-group-rules", {"security_group_rule": {
            "security_group_id": group["id"], "direction": "ingress", "remote_address_group_id": theirs["id"],
        }})  # fmt: skip

    assert demo.refused("GET", path)[0] == 404
    assert demo.ok("GET", "address-groups")["address_groups"] == []
    assert rule() == (404, "AddressGroupNotFound")
    for verb in ("add_addresses", "remove_addresses"):
        assert demo.refused("PUT", f"{path}/{verb}", body)[0] == 404
    policy = admin.create("rbac-policies", object_type="address_group", object_id=theirs["id"],
                        action="access_as_shared", target_tenant=demo.project)  # fmt: skip
    assert demo.ok("GET", path)["address_group"]["addresses"] == ["10.0.0.0/24"]
    assert [g["id"] for g in demo.ok("GET", "address-groups")["address_groups"]] == [theirs["id"]]
    assert demo.refused("PUT", path, {"address_group": {"name": "mine"}})[0] == 404
    assert demo.refused("DELETE", path)[0] == 404
    for verb in ("add_addresses", "remove_addresses"):
        assert demo.refused("PUT", f"{path}/{verb}", body)[0] == 404
    used = demo.rule(group, remote_address_group_id=theirs["id"])
    assert admin.refused("DELETE", f"rbac-policies/{policy['id']}")[0] == 409
    assert admin.refused("DELETE", path) == (409, "AddressGroupInUse")
    demo.ok("DELETE", f"security-group-rules/{used['id']}")
    admin.ok("DELETE", f"rbac-policies/{policy['id']}")
    assert demo.refused("GET", path)[0] == 404


def test_a_shared_group_can_be_used_by_those_it_is_shared_with(demo: User, admin: User) -> None:
    theirs = admin.create("security-groups", name="shared")
    net = demo.create("networks", name="n")
    wanted = {"port": {"network_id": net["id"], "security_groups": [theirs["id"]]}}
    assert demo.refused("POST", "ports", wanted) == (404, "SecurityGroupNotFound")
    policy = admin.create("rbac-policies", object_type="security_group", object_id=theirs["id"],
                        action="access_as_shared", target_tenant=demo.project)  # fmt: skip
    shared = demo.ok("GET", "security-groups", shared=True)["security_groups"]
    assert [(g["id"], g["shared"]) for g in shared] == [(theirs["id"], True)]
    assert theirs["id"] not in {g["id"] for g in demo.ok("GET", "security-groups", shared=False)["security_groups"]}
    port = demo.ok("POST", "ports", wanted)["port"]
    assert admin.refused("DELETE", f"rbac-policies/{policy['id']}")[0] == 409
    rule = {"security_group_rule": {"security_group_id": theirs["id"], "direction": "ingress"}}
    assert demo.call("POST", "security-group-rules", rule).status in (403, 404), "using is not owning"
    demo.ok("DELETE", f"ports/{port['id']}")
    admin.ok("DELETE", f"rbac-policies/{policy['id']}")
    assert demo.refused("GET", f"security-groups/{theirs['id']}")[0] == 404


# --- templates --------------------------------------------------------------------------------------------------------


def test_new_groups_get_the_rules_of_the_templates(demo: User, admin: User) -> None:
    items = "default-security-group-rules"
    first = demo.ok("GET", items)["default_security_group_rules"]
    assert {(r["direction"], r["ethertype"], r["remote_group_id"], r["used_in_non_default_sg"]) for r in first} == {
        ("egress", "IPv4", None, True), ("egress", "IPv6", None, True),
        ("ingress", "IPv4", "PARENT", False), ("ingress", "IPv6", "PARENT", False),
    }  # fmt: skip
    assert all(r["description"] == f"Legacy default SG rule for {r['direction']} traffic" for r in first)
    both = {"direction": "ingress", "protocol": "tcp", "port_range_min": 22, "port_range_max": 22,
            "used_in_default_sg": False, "used_in_non_default_sg": True, "remote_group_id": "PARENT"}  # fmt: skip
    assert demo.call("POST", items, {"default_security_group_rule": both}).status == 403
    made = admin.create(items, **both)
    assert admin.refused("POST", items, {"default_security_group_rule": {**both, "used_in_default_sg": True}}) == (
        409, "DefaultSecurityGroupRuleExists",
    )  # fmt: skip
    admin.create(items, **{**both, "used_in_default_sg": True, "used_in_non_default_sg": False})
    group = demo.create("security-groups", name="a")
    rules = {(r["direction"], r["protocol"], r["port_range_min"], r["remote_group_id"])
             for r in group["security_group_rules"]}  # fmt: skip
    assert rules == {("egress", None, None, None), ("ingress", "tcp", 22, group["id"])}
    admin.ok("DELETE", f"{items}/{made['id']}")
    assert demo.refused("GET", f"{items}/{made['id']}") == (404, "DefaultSecurityGroupRuleNotFound")
    assert len(demo.create("security-groups", name="b")["security_group_rules"]) == 2
    assert admin.refused("POST", items, {"default_security_group_rule": {**both, "protocol": "bad"}})[0] == 400


def test_looking_for_a_projects_groups_makes_its_default_one(admin: User, demo: User) -> None:
    project = demo.project
    found = admin.ok("GET", "security-groups", project_id=project)["security_groups"]
    assert [g["name"] for g in found] == ["default"]


def test_a_group_whose_rules_exceed_the_quota_is_refused(demo: User, admin: User) -> None:
    admin.ok("PUT", f"quotas/{demo.project}", {"quota": {"security_group_rule": 5}})
    demo.ok("GET", "security-groups")
    assert demo.refused("POST", "security-groups", {"security_group": {"name": "a"}}) == (409, "OverQuota")
    assert [g["name"] for g in demo.ok("GET", "security-groups")["security_groups"]] == ["default"]


# --- logs -------------------------------------------------------------------------------------------------------------


def test_a_log_says_what_hosts_write_down(demo: User, admin: User) -> None:
    assert admin.ok("GET", "log/loggable-resources")["loggable_resources"] == [{"type": "security_group"}]
    group, net = demo.create("security-groups", name="a"), demo.create("networks", name="n")
    port = demo.create("ports", network_id=net["id"], security_groups=[group["id"]])
    about = {"resource_type": "security_group", "resource_id": group["id"], "target_id": port["id"]}
    log = admin.ok("POST", "log/logs", {"log": {**about, "event": "DROP"}})["log"]
    assert (log["event"], log["enabled"], log["name"]) == ("DROP", True, "")
    changed = admin.ok("PUT", f"log/logs/{log['id']}", {"log": {"enabled": False, "name": "x"}})["log"]
    assert (changed["enabled"], changed["name"]) == (False, "x")
    assert admin.call("PUT", f"log/logs/{log['id']}", {"log": {"event": "ALL"}}).status == 400
    assert demo.refused("GET", f"log/logs/{log['id']}")[0] == 404
    assert demo.ok("GET", "log/logs")["logs"] == []
    assert demo.call("POST", "log/logs", {"log": about}).status == 403
    assert demo.call("GET", "log/loggable-resources").status == 403
    demo.ok("DELETE", f"ports/{port['id']}")
    assert admin.refused("GET", f"log/logs/{log['id']}") == (404, "LogResourceNotFound")
    other = admin.ok("POST", "log/logs", {"log": {**about, "target_id": None}})["log"]
    demo.ok("DELETE", f"security-groups/{group['id']}")
    assert admin.refused("GET", f"log/logs/{other['id']}") == (404, "LogResourceNotFound")


NOBODY = "6e1b8b3c-6b3d-4a8e-9a0f-0d0f2a1c7e55"


@pytest.mark.parametrize(("values", "status", "kind"), [
    ({"resource_type": "router"}, 400, "InvalidLogResourceType"),
    ({"resource_id": NOBODY}, 404, "ResourceNotFound"),
    ({"target_id": NOBODY}, 404, "TargetResourceNotFound"),
    ({"resource_id": "x"}, 400, "HTTPBadRequest"),
    ({"event": "SOME"}, 400, "HTTPBadRequest"),
    ({"resource_id": "other"}, 400, "InvalidResourceConstraint"),
])  # fmt: skip
def test_logs_that_cannot_be(demo: User, admin: User, values: Json, status: int, kind: str) -> None:
    body = {"resource_type": "security_group", **values}
    if values.get("resource_id") == "other":
        net = demo.create("networks", name="n")
        body |= {"resource_id": demo.create("security-groups")["id"]}
        body |= {"target_id": demo.create("ports", network_id=net["id"])["id"]}
    assert admin.refused("POST", "log/logs", {"log": body}) == (status, kind)


# --- local IPs --------------------------------------------------------------------------------------------------------


def test_a_local_ip_takes_an_address_or_names_a_port(demo: User) -> None:
    net = demo.create("networks", name="n")
    refused = {"local_ip": {"network_id": net["id"]}}
    assert demo.refused("POST", "local_ips", refused) == (400, "BadRequest")
    demo.create("subnets", network_id=net["id"], ip_version=4, cidr="10.0.0.0/24")
    own = demo.create("local_ips", network_id=net["id"], local_ip_address="10.0.0.50", name="cache")
    assert (own["local_ip_address"], own["ip_mode"], own["network_id"]) == ("10.0.0.50", "translate", net["id"])
    held = f"ports/{own['local_port_id']}"
    assert demo.refused("DELETE", held) == (409, "ServicePortInUse")
    port = demo.create("ports", network_id=net["id"])
    named = demo.create("local_ips", local_port_id=port["id"], ip_mode="passthrough")
    assert named["local_ip_address"] == port["fixed_ips"][0]["ip_address"]
    assert demo.refused("DELETE", f"ports/{port['id']}") == (409, "ServicePortInUse")
    assert demo.refused("POST", "local_ips", {"local_ip": {}}) == (400, "LocalIPPortOrNetworkRequired")
    wrong = {"local_ip": {"local_port_id": port["id"], "local_ip_address": "10.0.0.77"}}
    assert demo.refused("POST", "local_ips", wrong) == (400, "LocalIPRequestedIPNotFound")
    demo.ok("DELETE", f"local_ips/{own['id']}")
    assert demo.refused("GET", held)[0] == 404
    demo.ok("DELETE", f"local_ips/{named['id']}")
    demo.ok("DELETE", f"ports/{port['id']}")


def test_ports_stand_behind_a_local_ip(demo: User, admin: User) -> None:
    net = demo.create("networks", name="n")
    subnet = demo.create("subnets", network_id=net["id"], ip_version=4, cidr="10.0.0.0/24")
    local = demo.create("local_ips", network_id=net["id"])
    path = f"local_ips/{local['id']}/port_associations"
    two = demo.create("ports", network_id=net["id"], fixed_ips=[{"subnet_id": subnet["id"]}] * 2)

    def body(**values: Any) -> Json:
        return {"port_association": {"fixed_port_id": two["id"], **values}}

    assert demo.refused("POST", path, body()) == (400, "LocalIPNoRequestedIP")
    assert demo.refused("POST", path, body(fixed_ip="10.0.0.99")) == (400, "LocalIPRequestedIPNotFound")
    fixed = two["fixed_ips"][1]["ip_address"]
    made = demo.ok("POST", path, body(fixed_ip=fixed))["port_association"]
    assert made == {
        "local_ip_id": local["id"], "local_ip_address": local["local_ip_address"], "fixed_port_id": two["id"],
        "fixed_ip": fixed, "host": "",
    }  # fmt: skip
    assert demo.refused("POST", path, body(fixed_ip=fixed)) == (409, "LocalIPAssociationExists")
    assert demo.ok("GET", path)["port_associations"] == [made]
    assert demo.ok("GET", f"{path}/{two['id']}")["port_association"] == made
    assert demo.refused("DELETE", f"local_ips/{local['id']}") == (409, "LocalIPInUse")
    theirs = admin.create("local_ips", network_id=admin.ok("GET", "networks", name="n")["networks"][0]["id"])
    assert demo.refused("GET", f"local_ips/{theirs['id']}/port_associations")[0] == 404
    assert demo.refused("POST", f"local_ips/{theirs['id']}/port_associations", body(fixed_ip=fixed))[0] == 404
    demo.ok("DELETE", f"{path}/{two['id']}")
    assert demo.refused("GET", f"{path}/{two['id']}") == (404, "LocalIPAssociationNotFound")
    demo.ok("POST", path, body(fixed_ip=fixed))
    demo.ok("DELETE", f"ports/{two['id']}")
    assert demo.ok("GET", path)["port_associations"] == []
    demo.ok("DELETE", f"local_ips/{local['id']}")


@pytest.mark.parametrize("body", [None, [], {}, {"port_association": 1}, {"port_association": {}},
                                  {"port_association": {"fixed_port_id": 7}},
                                  {"port_association": {"fixed_port_id": NOBODY}},
                                  {"port_association": {"fixed_port_id": NOBODY, "more": 1}}])  # fmt: skip
def test_bad_associations(demo: User, body: Any) -> None:
    net = demo.create("networks", name="n")
    demo.create("subnets", network_id=net["id"], ip_version=4, cidr="10.0.0.0/24")
    local = demo.create("local_ips", network_id=net["id"])
    assert demo.call("POST", f"local_ips/{local['id']}/port_associations", body).status == 400
