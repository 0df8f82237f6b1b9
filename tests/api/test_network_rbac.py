"""RBAC policies: what is shared with single projects, seen from both sides."""

from __future__ import annotations

from typing import Any

import pytest
from networking import Net

from nubila.core.db import Reader

Json = dict[str, Any]


def project(who: Net) -> str:
    return str(who.make("network", name="whose")["project_id"])


def share(who: Net, kind: str, id: str, target: str, action: str = "access_as_shared") -> Json:
    return who.make("rbac_policy", "rbac-policies", object_type=kind, object_id=id, action=action, target_tenant=target)


def test_a_network_is_shared_with_one_project_only_and_only_as_long_as_nobody_needs_it(demo: Net, admin: Net) -> None:
    net = admin.make("network", name="lent")
    subnet = admin.make("subnet", network_id=net["id"], ip_version=4, cidr="10.9.0.0/24")
    for path in (f"networks/{net['id']}", f"subnets/{subnet['id']}"):
        assert demo.call("GET", path).status == 404
    policy = share(admin, "network", net["id"], project(demo))
    assert policy["target_tenant"] == project(demo)
    shown = demo.ok("GET", f"networks/{net['id']}")["network"]
    assert shown["shared"] is True
    assert shown["revision_number"] > net["revision_number"]
    assert admin.ok("GET", f"networks/{net['id']}")["network"]["shared"] is False
    assert [n["id"] for n in demo.ok("GET", "networks", shared=True)["networks"]] == [net["id"]]
    assert [s["id"] for s in demo.ok("GET", "subnets", shared=True)["subnets"]] == [subnet["id"]]
    assert net["id"] not in [n["id"] for n in demo.ok("GET", "networks", shared=False)["networks"]]
    assert demo.refused("PUT", f"networks/{net['id']}", {"network": {"name": "x"}}) == (403, "PolicyNotAuthorized")
    port = demo.make("port", network_id=net["id"])
    assert len(port["fixed_ips"]) == 1
    assert admin.refused("DELETE", f"rbac-policies/{policy['id']}") == (409, "RbacPolicyInUse")
    elsewhere = {"rbac_policy": {"target_tenant": project(admin)}}
    assert admin.refused("PUT", f"rbac-policies/{policy['id']}", elsewhere) == (409, "RbacPolicyInUse")
    wildcard = share(admin, "network", net["id"], "*")
    admin.ok("DELETE", f"rbac-policies/{policy['id']}")
    unshare = {"network": {"shared": False}}
    assert admin.refused("PUT", f"networks/{net['id']}", unshare) == (409, "InvalidSharedSetting")
    assert admin.refused("DELETE", f"rbac-policies/{wildcard['id']}") == (409, "RbacPolicyInUse")
    demo.ok("DELETE", f"ports/{port['id']}")
    admin.ok("PUT", f"networks/{net['id']}", unshare)
    assert admin.ok("GET", "rbac-policies", object_id=net["id"])["rbac_policies"] == []
    assert demo.call("GET", f"networks/{net['id']}").status == 404


def test_what_is_shared_with_others_is_in_no_list_of_mine(demo: Net, admin: Net) -> None:
    net = admin.make("network", name="theirs")
    subnet = admin.make("subnet", network_id=net["id"], ip_version=4, cidr="10.9.0.0/24")
    pool = admin.make("subnetpool", name="theirs", prefixes=["10.61.0.0/16"])
    scope = admin.make("address_scope", "address-scopes", name="theirs", ip_version=4)
    outside = admin.make("network", name="theirs")
    for kind, id in (("network", net["id"]), ("subnetpool", pool["id"]), ("address_scope", scope["id"])):
        share(admin, kind, id, "1" * 32)
    share(admin, "network", outside["id"], "1" * 32, "access_as_external")
    for items in ("networks", "subnetpools", "address-scopes"):
        for query in ({}, {"shared": True}):
            assert demo.ok("GET", items, name="theirs", **query) == {items.replace("-", "_"): []}
    assert demo.ok("GET", "subnets", network_id=net["id"])["subnets"] == []
    for path in (f"networks/{net['id']}", f"networks/{outside['id']}", f"subnets/{subnet['id']}",
                 f"subnetpools/{pool['id']}", f"address-scopes/{scope['id']}"):  # fmt: skip
        assert demo.call("GET", path).status == 404
    assert demo.refused("POST", "ports", {"port": {"network_id": net["id"]}}) == (404, "NetworkNotFound")


def test_nobody_shares_what_is_not_his_or_with_everybody(demo: Net, admin: Net) -> None:
    theirs = admin.make("network")
    mine = demo.make("network")
    me, other = project(demo), project(admin)

    def refused(who: Net, **values: Any) -> tuple[int, str]:
        full = {"object_type": "network", "object_id": mine["id"], "action": "access_as_shared",
                "target_tenant": other, **values}  # fmt: skip
        return who.refused("POST", "rbac-policies", {"rbac_policy": full})

    unknown = "11111111-2222-3333-4444-555555555555"
    assert refused(demo, object_id=theirs["id"]) == refused(demo, object_id=unknown) == (400, "InvalidInput")
    assert refused(demo, target_tenant="*") == (403, "PolicyNotAuthorized")
    assert refused(demo, target_tenant="1234" * 100)[0] == 400
    assert refused(demo, target_tenant=None)[0] == 400
    assert refused(demo, target_tenant="everybody") == (400, "InvalidInput")
    assert refused(demo, object_type="port") == (400, "InvalidInput")
    assert refused(demo, action="access_as_owner") == (400, "InvalidActionForType")
    assert refused(demo, object_type="subnetpool") == (400, "InvalidInput")
    policy = share(demo, "network", mine["id"], other)
    assert refused(demo) == (409, "DuplicateRbacPolicy")
    wider = {"rbac_policy": {"target_tenant": "*"}}
    assert demo.refused("PUT", f"rbac-policies/{policy['id']}", wider) == (403, "PolicyNotAuthorized")
    share(admin, "network", theirs["id"], me)
    assert refused(demo, object_id=theirs["id"]) == (400, "InvalidInput")  # seen, but not owned
    listed = [p["object_id"] for p in demo.ok("GET", "rbac-policies")["rbac_policies"]]
    assert listed == [mine["id"]]
    assert demo.ok("GET", "rbac-policies", fields="id")["rbac_policies"] == [{"id": policy["id"]}]
    demo.ok("DELETE", f"networks/{mine['id']}")
    assert demo.ok("GET", "rbac-policies")["rbac_policies"] == []


def test_an_external_network_for_some_projects(demo: Net, admin: Net) -> None:
    net = admin.make("network", name="uplink")
    admin.make("subnet", network_id=net["id"], ip_version=4, cidr="203.0.113.0/24")
    policy = share(admin, "network", net["id"], project(demo), "access_as_external")
    shown = demo.ok("GET", f"networks/{net['id']}")["network"]
    assert (shown["router:external"], shown["shared"]) == (True, False)
    assert demo.refused("POST", "ports", {"port": {"network_id": net["id"]}}) == (403, "PolicyNotAuthorized")
    router = demo.make("router", external_gateway_info={"network_id": net["id"]})
    assert admin.refused("DELETE", f"rbac-policies/{policy['id']}") == (409, "RbacPolicyInUse")
    demo.ok("DELETE", f"routers/{router['id']}")
    admin.ok("DELETE", f"rbac-policies/{policy['id']}")
    assert demo.call("GET", f"networks/{net['id']}").status == 404
    assert admin.ok("GET", f"networks/{net['id']}")["network"]["router:external"] is False
    public = admin.public()
    everybody = admin.ok("GET", "rbac-policies", object_id=public["id"])["rbac_policies"]
    assert [(p["action"], p["target_tenant"]) for p in everybody] == [("access_as_external", "*")]
    assert admin.refused("DELETE", f"rbac-policies/{everybody[0]['id']}") == (409, "RbacPolicyInUse")


def test_pools_and_scopes(demo: Net, admin: Net) -> None:
    scope = admin.make("address_scope", "address-scopes", name="s", ip_version=4)
    wish = {"prefixes": ["10.50.0.0/16"], "name": "p", "address_scope_id": scope["id"], "default_prefixlen": 24}
    assert demo.refused("POST", "subnetpools", {"subnetpool": wish}) == (404, "AddressScopeNotFound")
    policy = share(admin, "address_scope", scope["id"], project(demo))
    pool = demo.make("subnetpool", **wish)
    assert demo.ok("GET", "address-scopes", shared=True)["address_scopes"][0]["id"] == scope["id"]
    assert admin.refused("DELETE", f"rbac-policies/{policy['id']}") == (409, "RbacPolicyInUse")
    stranger = {"object_type": "subnetpool", "object_id": pool["id"], "action": "access_as_shared",
                "target_tenant": "11111111222233334444555555555555"}  # fmt: skip
    assert demo.refused("POST", "rbac-policies", {"rbac_policy": stranger}) == (400, "RbacPolicyInitError")
    change = {"subnetpool": {"prefixes": ["10.50.0.0/16", "10.52.0.0/16"]}}
    assert demo.refused("PUT", f"subnetpools/{pool['id']}", change) == (400, "IllegalSubnetPoolUpdate")
    lent = admin.make("subnetpool", prefixes=["10.60.0.0/16"], name="lent", default_prefixlen=24)
    assert demo.call("GET", f"subnetpools/{lent['id']}").status == 404
    grant = share(admin, "subnetpool", lent["id"], project(demo))
    assert demo.ok("GET", f"subnetpools/{lent['id']}")["subnetpool"]["shared"] is True
    net = demo.make("network")
    subnet = demo.make("subnet", network_id=net["id"], ip_version=4, subnetpool_id=lent["id"])
    assert admin.refused("DELETE", f"rbac-policies/{grant['id']}") == (409, "RbacPolicyInUse")
    demo.ok("DELETE", f"subnets/{subnet['id']}")
    admin.ok("DELETE", f"rbac-policies/{grant['id']}")


def test_policies_are_counted(demo: Net, admin: Net) -> None:
    net = demo.make("network")
    admin.ok("PUT", f"quotas/{net['project_id']}", {"quota": {"rbac_policy": 1}})
    policy = share(demo, "network", net["id"], "1" * 32)
    more = {"object_type": "network", "object_id": net["id"], "action": "access_as_shared", "target_tenant": "2" * 32}
    assert demo.refused("POST", "rbac-policies", {"rbac_policy": more}) == (409, "OverQuota")
    demo.ok("DELETE", f"rbac-policies/{policy['id']}")
    assert demo.make("rbac_policy", "rbac-policies", **more)


def test_a_list_costs_the_same_however_much_is_shared(demo: Net, admin: Net, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []
    for name in ("all", "one", "scalar", "rows"):
        real = getattr(Reader, name)

        def counting(self: Reader, stmt: Any, params: Any = None, real: Any = real) -> Any:
            asked.append(stmt)
            return real(self, stmt, params)

        monkeypatch.setattr(Reader, name, counting)

    def cost() -> int:
        asked.clear()
        demo.ok("GET", "networks")
        return sum("identity_" not in str(stmt) for stmt in asked)

    me = project(demo)
    share(admin, "network", admin.make("network")["id"], me)
    demo.ok("GET", "networks")
    before = cost()
    for _ in range(5):
        share(admin, "network", admin.make("network")["id"], me)
    assert len(demo.ok("GET", "networks", shared=True)["networks"]) == 6
    assert cost() == before
