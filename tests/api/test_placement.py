"""Placement: providers, inventories, claims, candidates."""

from __future__ import annotations

import threading
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from nubila.core.db import Store
from nubila.core.declare import METADATA
from nubila.services.placement import claims
from nubila.services.placement.combine import Group, Provider, candidates
from nubila.testing.cloud import Response, TestCloud

pytest_plugins = ["nubila.testing.fixtures"]
A, B, C = (str(uuid.UUID(int=n)) for n in (1, 2, 3))


# --- claims -----------------------------------------------------------------------------------------------------------


def host(id: str = A, **changes: int) -> dict[str, Any]:
    return {"id": id, "name": id, "capabilities": {"vcpus": 4, "ram_mb": 1000, "disk_gb": 10, **changes}}


def test_claims_are_exact(store: Store) -> None:
    store.create_all(METADATA)
    with store.write() as tx:
        claims.report_inventory(tx, host(), {"VCPU": 2.0})
    with store.read() as r:
        assert claims.free(r) == {A: {"VCPU": 8, "MEMORY_MB": 1000, "DISK_GB": 10}}
    with store.write() as tx:
        claims.claim(tx, B, "p", "u", {A: {"VCPU": 4, "MEMORY_MB": 600}})
    with store.write() as tx, pytest.raises(claims.NoRoom, match="MEMORY_MB"):
        claims.claim(tx, C, "p", "u", {A: {"MEMORY_MB": 401}})
    with store.write() as tx, pytest.raises(claims.NoRoom, match="VCPU"):
        claims.claim(tx, C, "p", "u", {A: {"VCPU": 5}})  # more than one provider's max_unit
    with store.write() as tx, pytest.raises(claims.NoRoom, match="CUSTOM"):
        claims.claim(tx, C, "p", "u", {A: {"CUSTOM_X": 1}})
    with store.write() as tx:
        claims.claim(tx, B, "p", "u", {A: {"MEMORY_MB": 1000}})  # replaces what it held
    with store.read() as r:
        assert claims.free(r) == {A: {"VCPU": 8, "MEMORY_MB": 0, "DISK_GB": 10}}
    with store.write() as tx:
        claims.report_inventory(tx, host(ram_mb=500), {"VCPU": 2.0})
        claims.release(tx, B)
        claims.release(tx, B)
    with store.read() as r:
        assert claims.free(r)[A]["MEMORY_MB"] == 500


def test_the_last_unit_is_given_once(store: Store) -> None:
    store.create_all(METADATA)
    with store.write() as tx:
        claims.report_inventory(tx, host(), {})
    won: list[int] = []

    def take(n: int) -> None:
        def once(tx: Any) -> None:
            claims.claim(tx, str(uuid.UUID(int=100 + n)), "p", "u", {A: {"VCPU": 1}})

        try:
            store.transact(once, retries=50)
            won.append(n)
        except claims.NoRoom:
            pass

    threads = [threading.Thread(target=take, args=(n,)) for n in range(12)]
    for t in threads:
        t.start()
    for t in threads:
        t.join(60)
    assert len(won) == 4
    with store.read() as r:
        assert claims.free(r)[A]["VCPU"] == 0


# --- candidates -------------------------------------------------------------------------------------------------------


def provider(id: str, root: str, parent: str | None = None, traits: str = "", **totals: int) -> Provider:
    room = {
        n: {"total": t, "reserved": 0, "min_unit": 1, "max_unit": t, "step_size": 1, "allocation_ratio": 1.0, "used": 0}
        for n, t in totals.items()
    }  # fmt: skip
    return Provider(
        id=id, root=root, parent=parent, room=room, traits=frozenset(traits.split()), aggregates=frozenset()
    )


def group(suffix: str = "", traits: str = "", **resources: int) -> Group:
    need = set(traits.split())
    return Group(
        suffix=suffix, resources=resources, traits=lambda have: need <= have, forbids=lambda have: True,
        members=lambda have: True,
    )  # fmt: skip


TREE = {
    "r": [
        provider("r", "r", MEMORY_MB=100),
        provider("n1", "r", "r", traits="FAST", VCPU=4),
        provider("n2", "r", "r", VCPU=4),
    ]
}


def test_nested_providers_combine() -> None:
    got = candidates(TREE, [group(VCPU=2, MEMORY_MB=50)], claims.fits, nested=True)
    assert sorted(sorted(c.resources) for c in got) == [["n1", "r"], ["n2", "r"]]
    got = candidates(TREE, [group(traits="FAST", VCPU=2, MEMORY_MB=50)], claims.fits, nested=True)
    assert [sorted(c.resources) for c in got] == [["n1", "r"]]
    assert candidates(TREE, [group(VCPU=5)], claims.fits, nested=True) == []


def test_granular_groups() -> None:
    groups = [group("1", VCPU=3), group("2", VCPU=3)]
    isolated = candidates(TREE, groups, claims.fits, nested=True, isolate=True)
    assert len(isolated) == 2
    assert len(candidates(TREE, groups, claims.fits, nested=True)) == 2  # both on one would be 6 of 4
    small = [group("1", VCPU=1), group("2", VCPU=1)]
    assert len(candidates(TREE, small, claims.fits, nested=True)) == 4
    related = candidates(TREE, small, claims.fits, nested=True, subtrees=[["1", "2"]])
    assert all(c.mappings["1"] == c.mappings["2"] for c in related)


# --- the API ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def cloud(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestCloud]:
    made = TestCloud(tmp_path_factory.mktemp("placement"))
    yield made
    made.close()


class Placement:
    """Placement as an administrator sees it."""

    def __init__(self, cloud: TestCloud, user: str = "admin") -> None:
        self.cloud, self.token = cloud, cloud.token(user)

    def __call__(
        self, method: str, path: str, body: Any = None, *, v: str = "1.39", expect: int | None = None
    ) -> Response:
        got = self.cloud.request(
            method, f"/placement{path}", body, token=self.token, headers={"OpenStack-API-Version": f"placement {v}"}
        )
        if expect is not None:
            assert got.status == expect, (method, path, got.status, got.body)
        return got


@pytest.fixture(scope="module")
def api(cloud: TestCloud) -> Placement:
    return Placement(cloud)


def make(api: Placement, name: str, **more: Any) -> str:
    id: str = api("POST", "/resource_providers", {"name": name, **more}, expect=200).json["uuid"]
    return id


def stock(api: Placement, id: str, **totals: int) -> None:
    generation = api("GET", f"/resource_providers/{id}").json["generation"]
    body = {"resource_provider_generation": generation, "inventories": {n: {"total": t} for n, t in totals.items()}}
    api("PUT", f"/resource_providers/{id}/inventories", body, expect=200)


def test_the_root_and_the_host(cloud: TestCloud, api: Placement) -> None:
    root = cloud.request("GET", "/placement/", token="").json["versions"][0]
    assert (root["min_version"], root["max_version"]) == ("1.0", "1.39")
    assert api("GET", "/", v="1.10").headers["openstack-api-version"] == "placement 1.10"
    mine = api("GET", "/resource_providers?name=host1").json["resource_providers"][0]
    found = api("GET", f"/resource_providers/{mine['uuid']}/inventories").json["inventories"]
    assert found["VCPU"]["allocation_ratio"] == 4.0
    assert "COMPUTE_NODE" in api("GET", f"/resource_providers/{mine['uuid']}/traits").json["traits"]


def test_only_administrators_and_services(cloud: TestCloud) -> None:
    demo = Placement(cloud, "demo")
    refused = demo("GET", "/resource_providers", expect=403).json["errors"][0]
    assert refused["status"] == 403
    project = cloud.request("GET", "/v3/auth/projects", token=demo.token).json["projects"][0]["id"]
    demo("GET", f"/usages?project_id={project}", expect=200)
    demo("GET", "/usages?project_id=other", expect=403)


def test_provider_gates(api: Placement) -> None:
    got = api("POST", "/resource_providers", {"name": "old"}, v="1.19", expect=201)
    assert got.body == b""
    id = got.headers["location"].rsplit("/", 1)[1]
    assert set(api("GET", f"/resource_providers/{id}", v="1.0").json) == {"uuid", "name", "generation", "links"}
    assert "root_provider_uuid" in api("GET", f"/resource_providers/{id}", v="1.14").json
    again = api("POST", "/resource_providers", {"name": "old"}, expect=409).json["errors"][0]
    assert again["code"] == "placement.duplicate_name"
    assert "code" not in api("POST", "/resource_providers", {"name": "old"}, v="1.22", expect=409).json["errors"][0]
    api("DELETE", f"/resource_providers/{id}", expect=204)
    missing = api("GET", f"/resource_providers/{id}", expect=404).json["errors"][0]
    assert missing["code"] == "placement.undefined_code"
    api("POST", "/resource_providers", {"name": "x", "parent_provider_uuid": B}, expect=400)
    api("POST", "/resource_providers", {"name": "x", "colour": 1}, expect=400)
    api("GET", "/resource_providers?colour=red", expect=400)


def test_generations(api: Placement) -> None:
    id = make(api, "gen")
    stock(api, id, VCPU=4)
    body = {"resource_provider_generation": 0, "inventories": {}}
    late = api("PUT", f"/resource_providers/{id}/inventories", body, expect=409).json["errors"][0]
    assert late["code"] == "placement.concurrent_update"
    one = {"resource_provider_generation": 1, "total": 8, "reserved": 8}
    api("PUT", f"/resource_providers/{id}/inventories/VCPU", one, v="1.25", expect=400)
    got = api("PUT", f"/resource_providers/{id}/inventories/VCPU", one, v="1.26", expect=200).json
    assert got["resource_provider_generation"] == 2
    api("PUT", f"/resource_providers/{id}/inventories/NOPE", one, expect=400)
    api("DELETE", f"/resource_providers/{id}/inventories", v="1.4", expect=405)
    api("DELETE", f"/resource_providers/{id}/inventories", expect=204)
    api("DELETE", f"/resource_providers/{id}", expect=204)


def test_allocations(api: Placement) -> None:
    id = make(api, "alloc")
    stock(api, id, VCPU=4, MEMORY_MB=100)
    consumer = str(uuid.uuid4())
    body = {
        "allocations": {id: {"resources": {"VCPU": 3}}}, "project_id": "proj", "user_id": "user",
        "consumer_generation": None, "consumer_type": "INSTANCE",
    }  # fmt: skip
    api("PUT", f"/allocations/{consumer}", body, expect=204)
    api("PUT", f"/allocations/{consumer}", body, expect=409)
    got = api("GET", f"/allocations/{consumer}").json
    assert got["allocations"][id]["resources"] == {"VCPU": 3}
    assert (got["consumer_generation"], got["consumer_type"]) == (1, "INSTANCE")
    assert "project_id" not in api("GET", f"/allocations/{consumer}", v="1.11").json
    other = {**body, "allocations": {id: {"resources": {"VCPU": 2}}}}
    refused = api("PUT", f"/allocations/{uuid.uuid4()}", other, expect=409).json["errors"][0]["detail"]
    assert "1 left" in refused
    api("DELETE", f"/resource_providers/{id}", expect=409)
    usage = api("GET", "/usages?project_id=proj").json["usages"]
    assert usage == {"INSTANCE": {"VCPU": 3, "consumer_count": 1}}
    assert api("GET", "/usages?project_id=proj", v="1.9").json == {"usages": {"VCPU": 3}}
    assert api("GET", f"/resource_providers/{id}/usages").json["usages"] == {"VCPU": 3, "MEMORY_MB": 0}
    swap = {
        consumer: {**body, "allocations": {}, "consumer_generation": 1},
        str(uuid.uuid4()): {**body, "allocations": {id: {"resources": {"VCPU": 4}}}},
    }
    api("POST", "/allocations", swap, expect=204)
    assert api("GET", f"/allocations/{consumer}").json["allocations"] == {}
    api("DELETE", f"/allocations/{consumer}", expect=404)
    for bad in ({}, {**body, "consumer_generation": "x"}, {**body, "allocations": {id: {"resources": {"VCPU": 0}}}}):
        api("PUT", f"/allocations/{uuid.uuid4()}", bad, expect=400)
    unknown = {**body, "allocations": {B: {"resources": {"VCPU": 1}}}}
    api("PUT", f"/allocations/{uuid.uuid4()}", unknown, expect=400)


def test_candidates(api: Placement) -> None:
    root = make(api, "cand")
    stock(api, root, DISK_GB=7777, MEMORY_MB=10)
    child = make(api, "cand-numa", parent_provider_uuid=root)
    stock(api, child, PCPU=2)
    generation = api("GET", f"/resource_providers/{child}").json["generation"]
    traits = {"resource_provider_generation": generation, "traits": ["HW_CPU_X86_AVX"]}
    api("PUT", f"/resource_providers/{child}/traits", traits, expect=200)
    api("PUT", f"/resource_providers/{child}/traits", traits, expect=409)
    query = "resources=DISK_GB:5000,PCPU:1"
    got = api("GET", f"/allocation_candidates?{query}&required=HW_CPU_X86_AVX", expect=200).json
    assert got["allocation_requests"][0]["allocations"] == {
        root: {"resources": {"DISK_GB": 5000}}, child: {"resources": {"PCPU": 1}},
    }  # fmt: skip
    assert got["allocation_requests"][0]["mappings"] == {"": sorted([root, child])}
    assert got["provider_summaries"][child]["root_provider_uuid"] == root
    assert api("GET", f"/allocation_candidates?{query}", v="1.28").json["allocation_requests"] == []
    assert api("GET", f"/allocation_candidates?{query}&required=!HW_CPU_X86_AVX").json["allocation_requests"] == []
    one = api(
        "GET", "/allocation_candidates?resources1=PCPU:1&resources2=DISK_GB:5000&group_policy=isolate", expect=200
    )
    assert one.json["allocation_requests"][0]["mappings"] == {"1": [child], "2": [root]}
    api("GET", "/allocation_candidates?resources1=PCPU:1&resources2=DISK_GB:1", expect=400)
    for bad in ("", "resources=PCPU", "resources=NOPE:1", "resources=PCPU:0", "resources=PCPU:1&required=NOPE",
                "resources=PCPU:1&limit=0", "resources=PCPU:1&colour=red", "required=HW_CPU_X86_AVX"):  # fmt: skip
        api("GET", f"/allocation_candidates?{bad}", expect=400)
    api("GET", "/allocation_candidates?resources=PCPU:1", v="1.9", expect=404)
    api("DELETE", f"/resource_providers/{root}", expect=409)
    assert len(api("GET", f"/resource_providers?in_tree={child}").json["resource_providers"]) == 2
    alone = {"name": "cand-numa", "parent_provider_uuid": None}
    api("PUT", f"/resource_providers/{child}", alone, v="1.36", expect=400)
    assert api("PUT", f"/resource_providers/{child}", alone, expect=200).json["root_provider_uuid"] == child


def test_names(api: Placement) -> None:
    assert "VCPU" in [c["name"] for c in api("GET", "/resource_classes").json["resource_classes"]]
    api("PUT", "/resource_classes/CUSTOM_GOLD", expect=201)
    api("PUT", "/resource_classes/CUSTOM_GOLD", expect=204)
    api("PUT", "/resource_classes/custom", expect=400)
    api("DELETE", "/resource_classes/VCPU", expect=400)
    id = make(api, "gold")
    stock(api, id, CUSTOM_GOLD=1)
    api("DELETE", "/resource_classes/CUSTOM_GOLD", expect=409)
    stock(api, id)
    api("DELETE", "/resource_classes/CUSTOM_GOLD", expect=204)
    api("PUT", "/traits/CUSTOM_SHINY", expect=201)
    api("PUT", "/traits/SHINY", expect=400)
    api("GET", "/traits/CUSTOM_SHINY", expect=204)
    assert api("GET", "/traits?name=startswith:CUSTOM_SH").json == {"traits": ["CUSTOM_SHINY"]}
    assert "COMPUTE_NODE" in api("GET", "/traits?associated=true").json["traits"]
    api("GET", "/traits?name=CUSTOM", expect=400)
    api("DELETE", "/traits/CUSTOM_SHINY", expect=204)
    api("DELETE", "/traits/CUSTOM_SHINY", expect=404)
    api("DELETE", "/traits/HW_CPU_X86_AVX", expect=400)
    aggregate = str(uuid.uuid4())
    generation = api("GET", f"/resource_providers/{id}").json["generation"]
    body = {"resource_provider_generation": generation, "aggregates": [aggregate]}
    api("PUT", f"/resource_providers/{id}/aggregates", body, expect=200)
    assert [p["uuid"] for p in api("GET", f"/resource_providers?member_of={aggregate}").json["resource_providers"]] == [
        id
    ]
    assert id not in [
        p["uuid"] for p in api("GET", f"/resource_providers?member_of=!{aggregate}").json["resource_providers"]
    ]


def test_a_life_of_a_host(tmp_path: Path) -> None:
    cloud = TestCloud(tmp_path / "cloud")
    try:
        api = Placement(cloud)
        before = api("GET", "/resource_providers?name=host1").json["resource_providers"][0]
        cloud.agents[0]._greet()
        after = api("GET", "/resource_providers?name=host1").json["resource_providers"][0]
        assert before == after  # an unchanged report changes nothing
    finally:
        cloud.close()
