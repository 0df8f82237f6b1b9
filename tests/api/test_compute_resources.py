"""Flavors, key pairs, hosts, zones, aggregates, quotas: the smaller parts of Compute."""

from __future__ import annotations

import hashlib
from base64 import b64decode
from collections.abc import Iterator

import pytest
from computing import Nova, image
from cryptography.hazmat.primitives import serialization

from nubila.services.compute.keypairs import generate
from nubila.testing.cloud import TestCloud


@pytest.fixture(scope="module")
def cloud(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestCloud]:
    made = TestCloud(tmp_path_factory.mktemp("compute"), hosts=2)
    yield made
    made.close()


@pytest.fixture(scope="module")
def admin(cloud: TestCloud) -> Nova:
    return Nova(cloud)


@pytest.fixture(scope="module")
def demo(cloud: TestCloud) -> Nova:
    return Nova(cloud, "demo")


# --- flavors ----------------------------------------------------------------------------------------------------------


@pytest.mark.req("B/WALK-35")
def test_the_walk_through_flavor(admin: Nova, demo: Nova) -> None:
    body = {"flavor": {"id": "0", "name": "m1.nano", "ram": 64, "vcpus": 1, "disk": 1}}
    made = admin("POST", "/flavors", body, v="2.1", expect=200).json["flavor"]
    assert (made["id"], made["swap"], made["rxtx_factor"], made["OS-FLV-DISABLED:disabled"]) == ("0", "", 1.0, False)
    admin("POST", "/flavors", body, expect=409)
    admin("POST", "/flavors", {"flavor": {**body["flavor"], "id": "00"}}, expect=409)
    demo("POST", "/flavors", body, expect=403)
    admin("DELETE", "/flavors/0", expect=202)
    admin("GET", "/flavors/0", expect=404)


def test_first_flavors(demo: Nova) -> None:
    found = {f["name"]: (f["id"], f["ram"]) for f in demo("GET", "/flavors/detail").json["flavors"]}
    assert found["m1.tiny"] == ("1", 512)
    assert found["m1.xlarge"] == ("5", 16384)
    assert {"m1.small", "m1.medium", "m1.large", "n1.nano", "n1.tiny"} < set(found)


def test_flavor_gates(admin: Nova) -> None:
    made = admin("POST", "/flavors", {"flavor": {"name": "g", "ram": 1, "vcpus": 1, "disk": 0}}, v="2.54", expect=200)
    id = made.json["flavor"]["id"]
    assert "description" not in made.json["flavor"]
    admin("PUT", f"/flavors/{id}", {"flavor": {"description": "x"}}, v="2.54", expect=405)
    admin("PUT", f"/flavors/{id}", {"flavor": {"description": "x"}}, v="2.55", expect=200)
    shown = {v: admin("GET", f"/flavors/{id}", v=v).json["flavor"] for v in ("2.55", "2.60", "2.61", "2.74", "2.75")}
    assert shown["2.55"]["description"] == "x"
    assert "extra_specs" not in shown["2.60"]
    assert shown["2.61"]["extra_specs"] == {}
    assert (shown["2.74"]["swap"], shown["2.75"]["swap"]) == ("", 0)
    admin("DELETE", f"/flavors/{id}", expect=202)


def test_private_flavors(admin: Nova, demo: Nova) -> None:
    body = {"name": "p", "ram": 1, "vcpus": 1, "disk": 0, "os-flavor-access:is_public": False}
    id = admin("POST", "/flavors", {"flavor": body}, expect=200).json["flavor"]["id"]
    project = demo.cloud.request("GET", "/v3/auth/projects", token=demo.token).json["projects"][0]["id"]
    demo("GET", f"/flavors/{id}", expect=404)
    grant = {"addTenantAccess": {"tenant": project}}
    got = admin("POST", f"/flavors/{id}/action", grant, expect=200).json
    assert got == {"flavor_access": [{"flavor_id": id, "tenant_id": project}]}
    admin("POST", f"/flavors/{id}/action", grant, expect=409)
    admin("POST", f"/flavors/{id}/action", {"addTenantAccess": {"tenant": "nobody"}}, expect=400)
    demo("POST", f"/flavors/{id}/action", grant, expect=403)
    demo("GET", f"/flavors/{id}", expect=200)
    assert id in [f["id"] for f in demo("GET", "/flavors").json["flavors"]]
    assert id in [f["id"] for f in admin("GET", "/flavors?is_public=false").json["flavors"]]
    admin("POST", f"/flavors/{id}/action", {"removeTenantAccess": {"tenant": project}}, expect=200)
    demo("GET", f"/flavors/{id}", expect=404)
    admin("GET", "/flavors/1/os-flavor-access", expect=404)
    admin("DELETE", f"/flavors/{id}", expect=202)


def test_extra_specs(admin: Nova, demo: Nova) -> None:
    base = "/flavors/5/os-extra_specs"
    assert admin("POST", base, {"extra_specs": {"k:1": "v"}}, expect=200).json == {"extra_specs": {"k:1": "v"}}
    assert demo("GET", base).json == {"extra_specs": {"k:1": "v"}}
    assert admin("PUT", f"{base}/k:1", {"k:1": "w"}, expect=200).json == {"k:1": "w"}
    admin("PUT", f"{base}/k:1", {"k:2": "w"}, expect=400)
    admin("POST", base, {"extra_specs": {"hw:cpu_policy": "sometimes"}}, v="2.86", expect=400)
    admin("POST", base, {"extra_specs": {"trait:X": "maybe"}}, v="2.86", expect=400)
    admin("POST", base, {"extra_specs": {"k": {"deep": 1}}}, expect=400)
    demo("DELETE", f"{base}/k:1", expect=403)
    admin("DELETE", f"{base}/k:1", expect=200)
    admin("GET", f"{base}/k:1", expect=404)


@pytest.mark.parametrize("change", [
    {"ram": 0}, {"vcpus": 0}, {"disk": -1}, {"ram": "lots"}, {"name": ""}, {"name": " x"}, {"rxtx_factor": 0},
    {"ram": 2**31}, {"id": "a/b"}, {"id": " x"}, {"colour": 1}, {"swap": -1}, {"os-flavor-access:is_public": "maybe"},
])  # fmt: skip
def test_bad_flavors(admin: Nova, change: dict[str, object]) -> None:
    admin("POST", "/flavors", {"flavor": {"name": "b", "ram": 1, "vcpus": 1, "disk": 0, **change}}, expect=400)


def test_flavor_lists(demo: Nova) -> None:
    def names(query: str) -> list[str]:
        return [f["name"] for f in demo("GET", f"/flavors?{query}", expect=200).json["flavors"]]

    assert names("minRam=8192") == ["m1.large", "m1.xlarge"]
    assert names("sort_key=memory_mb&sort_dir=desc&limit=2") == ["m1.xlarge", "m1.large"]
    assert names("minDisk=80&marker=4") == ["m1.xlarge"]
    assert names("limit=0") == []
    for query in ("minRam=x", "sort_key=colour", "marker=nope", "limit=x", "colour=red"):
        demo("GET", f"/flavors?{query}", expect=400)


# --- key pairs --------------------------------------------------------------------------------------------------------


def md5(public: str) -> str:
    digest = hashlib.md5(b64decode(public.split()[1]), usedforsecurity=False).hexdigest()
    return ":".join(digest[i : i + 2] for i in range(0, 32, 2))


@pytest.mark.req("B/WALK-36")
def test_keypairs(demo: Nova, admin: Nova) -> None:
    made = demo("POST", "/os-keypairs", {"keypair": {"name": "gen"}}, v="2.1", expect=200).json["keypair"]
    private = serialization.load_ssh_private_key(made["private_key"].encode(), None)
    half = private.public_key().public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)
    assert half.decode() == made["public_key"]
    assert made["fingerprint"] == md5(made["public_key"])
    shown = demo("GET", "/os-keypairs/gen", v="2.1", expect=200).json["keypair"]
    assert "private_key" not in shown
    assert "type" not in shown
    public = generate()[1]
    body = {"keypair": {"name": "imp", "public_key": public, "type": "ssh"}}
    made = demo("POST", "/os-keypairs", body, v="2.2", expect=201).json["keypair"]
    assert made["fingerprint"] == md5(public)
    assert "private_key" not in made
    demo("POST", "/os-keypairs", body, expect=409)
    demo("POST", "/os-keypairs", {"keypair": {"name": "x"}}, v="2.92", expect=400)
    demo("POST", "/os-keypairs", {"keypair": {"name": "a@b", "public_key": public}}, v="2.91", expect=400)
    demo("POST", "/os-keypairs", {"keypair": {"name": "a@b", "public_key": public}}, v="2.92", expect=201)
    demo("POST", "/os-keypairs", {"keypair": {"name": "bad", "public_key": "ssh-rsa nope"}}, expect=400)
    demo("POST", "/os-keypairs", {"keypair": {"name": "bad", "public_key": "junk"}}, expect=400)
    page = demo("GET", "/os-keypairs?limit=1").json
    assert [k["keypair"]["name"] for k in page["keypairs"]] == ["a@b"]
    assert page["keypairs_links"]
    me = demo.cloud.request("GET", "/v3/auth/tokens", headers={"X-Subject-Token": demo.token}).json["token"]["user"]
    assert len(admin("GET", f"/os-keypairs?user_id={me['id']}").json["keypairs"]) == 3
    demo("GET", "/os-keypairs?user_id=somebody", expect=403)
    admin("GET", "/os-keypairs/imp", expect=404)
    demo("DELETE", "/os-keypairs/imp", v="2.1", expect=202)
    demo("DELETE", "/os-keypairs/gen", v="2.2", expect=204)
    demo("DELETE", "/os-keypairs/gen", expect=404)
    windows = demo("POST", "/os-keypairs", {"keypair": {"name": "win", "type": "x509"}}, v="2.2", expect=201).json
    assert windows["keypair"]["public_key"].startswith("-----BEGIN CERTIFICATE")
    assert len(windows["keypair"]["fingerprint"]) == 59


# --- hosts ------------------------------------------------------------------------------------------------------------


@pytest.mark.req("B/WALK-15")
def test_hypervisors(cloud: TestCloud, admin: Nova, demo: Nova) -> None:
    demo("GET", "/os-hypervisors", expect=403)
    old = admin("GET", "/os-hypervisors/detail", v="2.87").json["hypervisors"]
    assert {h["hypervisor_hostname"] for h in old} == {"host1", "host2"}
    assert {(h["state"], h["status"], h["vcpus"], h["running_vms"]) for h in old} == {("up", "enabled", 64, 0)}
    new = admin("GET", f"/os-hypervisors/{old[0]['id']}", v="2.88", expect=200).json["hypervisor"]
    assert "vcpus" not in new
    assert "uptime" in new
    number = admin("GET", "/os-hypervisors", v="2.52").json["hypervisors"][0]["id"]
    assert isinstance(number, int)
    admin("GET", f"/os-hypervisors/{number}", v="2.52", expect=200)
    admin("GET", f"/os-hypervisors/{number}", v="2.53", expect=400)
    assert admin("GET", "/os-hypervisors/statistics", v="2.87").json["hypervisor_statistics"]["count"] == 2
    admin("GET", "/os-hypervisors/statistics", v="2.88", expect=404)
    page = admin("GET", "/os-hypervisors?limit=1").json
    assert page["hypervisors_links"]
    assert (
        len(admin("GET", "/os-hypervisors?hypervisor_hostname_pattern=host2&with_servers=true").json["hypervisors"])
        == 1
    )
    admin("GET", "/os-hypervisors?hypervisor_hostname_pattern=moon", expect=404)


def test_disabled_hosts_get_no_servers(cloud: TestCloud, admin: Nova) -> None:
    tiny = image(cloud, "services")
    listed = admin("GET", "/os-services").json["services"]
    assert {s["binary"] for s in listed} == {"nova-compute", "nova-conductor", "nova-scheduler"}
    mine = {s["host"]: s["id"] for s in listed if s["binary"] == "nova-compute"}
    off = {"status": "disabled", "disabled_reason": "mending"}
    got = admin("PUT", f"/os-services/{mine['host1']}", off, expect=200).json["service"]
    assert (got["status"], got["disabled_reason"]) == ("disabled", "mending")
    admin("PUT", f"/os-services/{mine['host1']}", {"status": "enabled", "disabled_reason": "x"}, expect=400)
    ids = [admin.boot(tiny)["id"] for _ in range(2)]
    cloud.settle()
    assert {admin.server(i)["OS-EXT-SRV-ATTR:host"] for i in ids} == {"host2"}
    down = {"host": "host2", "binary": "nova-compute", "forced_down": True}
    admin("PUT", "/os-services/force-down", down, v="2.11", expect=200)
    assert admin.server(ids[0])["host_status"] == "DOWN"
    lost = admin.boot(tiny)["id"]
    cloud.settle()
    assert admin.server(lost)["status"] == "ERROR"
    admin("PUT", "/os-services/force-down", {**down, "forced_down": False}, v="2.52", expect=200)
    admin("PUT", "/os-services/enable", {"host": "host1", "binary": "nova-compute"}, v="2.1", expect=200)
    admin("PUT", "/os-services/enable", {"host": "host9", "binary": "nova-compute"}, v="2.1", expect=404)
    admin("DELETE", f"/os-services/{mine['host2']}", expect=409)
    for id in (*ids, lost):
        admin("DELETE", f"/servers/{id}", expect=204)
    cloud.settle()


def test_aggregates_make_zones(cloud: TestCloud, admin: Nova, demo: Nova) -> None:
    tiny = image(cloud, "zones")
    made = admin("POST", "/os-aggregates", {"aggregate": {"name": "rack", "availability_zone": "z1"}}, expect=200)
    id = made.json["aggregate"]["id"]
    admin("POST", "/os-aggregates", {"aggregate": {"name": "rack"}}, expect=409)
    got = admin("POST", f"/os-aggregates/{id}/action", {"add_host": {"host": "host2"}}, expect=200).json["aggregate"]
    assert (got["hosts"], got["metadata"]) == (["host2"], {"availability_zone": "z1"})
    admin("POST", f"/os-aggregates/{id}/action", {"add_host": {"host": "host2"}}, expect=409)
    admin("POST", f"/os-aggregates/{id}/action", {"add_host": {"host": "moon"}}, expect=404)
    zones = {
        z["zoneName"]: z["zoneState"]["available"]
        for z in demo("GET", "/os-availability-zone").json["availabilityZoneInfo"]
    }
    assert zones == {"nova": True, "z1": True}
    server = demo.boot(tiny, availability_zone="z1")["id"]
    cloud.settle()
    shown = demo.server(server)
    assert (shown["OS-EXT-AZ:availability_zone"], shown["pinned_availability_zone"]) == ("z1", "z1")
    admin("POST", f"/os-aggregates/{id}/action", {"remove_host": {"host": "host2"}}, expect=409)
    admin("PUT", f"/os-aggregates/{id}", {"aggregate": {"availability_zone": "z2"}}, expect=400)
    demo("DELETE", f"/servers/{server}", expect=204)
    cloud.settle()
    admin("DELETE", f"/os-aggregates/{id}", expect=400)
    admin(
        "POST",
        f"/os-aggregates/{id}/action",
        {"set_metadata": {"metadata": {"k": "v", "availability_zone": None}}},
        expect=200,
    )
    admin("POST", f"/os-aggregates/{id}/action", {"remove_host": {"host": "host2"}}, expect=200)
    admin("DELETE", f"/os-aggregates/{id}", expect=200)
    admin("GET", f"/os-aggregates/{id}", expect=404)
    demo("GET", "/os-aggregates", expect=403)


# --- quotas -----------------------------------------------------------------------------------------------------------


def test_quotas(cloud: TestCloud, admin: Nova, demo: Nova) -> None:
    tiny = image(cloud, "quotas")
    project = cloud.request("GET", "/v3/auth/projects", token=demo.token).json["projects"][0]["id"]
    assert demo("GET", f"/os-quota-sets/{project}").json["quota_set"]["instances"] == 10
    demo("PUT", f"/os-quota-sets/{project}", {"quota_set": {"instances": 99}}, expect=403)
    demo("GET", "/os-quota-sets/somebody", expect=403)
    admin("GET", "/os-quota-sets/nobody", expect=400)
    admin("PUT", f"/os-quota-sets/{project}", {"quota_set": {"instances": 1}}, expect=200)
    server = demo.boot(tiny)["id"]
    body = {"name": "n", "imageRef": tiny, "flavorRef": "42", "networks": "none"}
    demo("POST", "/servers", {"server": body}, expect=403)
    detail = demo("GET", f"/os-quota-sets/{project}/detail").json["quota_set"]["instances"]
    assert detail == {"limit": 1, "in_use": 1, "reserved": 0}
    admin("PUT", f"/os-quota-sets/{project}", {"quota_set": {"instances": 0}}, expect=400)
    admin("PUT", f"/os-quota-sets/{project}", {"quota_set": {"instances": 0, "force": True}}, expect=200)
    admin("PUT", f"/os-quota-sets/{project}", {"quota_set": {"colour": 1}}, expect=400)
    admin("DELETE", f"/os-quota-sets/{project}", expect=202)
    assert demo("GET", f"/os-quota-sets/{project}").json["quota_set"]["instances"] == 10
    demo("DELETE", f"/servers/{server}", expect=204)
    cloud.settle()
    admin("PUT", "/os-quota-class-sets/default", {"quota_class_set": {"instances": 7}}, expect=200)
    assert demo("GET", "/limits").json["limits"]["absolute"]["maxTotalInstances"] == 7
    admin("PUT", "/os-quota-class-sets/default", {"quota_class_set": {"instances": 10}}, expect=200)
    for version, has in (("2.35", True), ("2.36", False)):
        assert ("fixed_ips" in demo("GET", f"/os-quota-sets/{project}", v=version).json["quota_set"]) is has


def test_usage(cloud: TestCloud, admin: Nova, demo: Nova) -> None:
    server = demo.boot(image(cloud, "usage"))["id"]
    cloud.settle()
    project = cloud.request("GET", "/v3/auth/projects", token=demo.token).json["projects"][0]["id"]
    got = demo("GET", f"/os-simple-tenant-usage/{project}?start=2020-01-01T00:00:00").json["tenant_usage"]
    assert server in [u["instance_id"] for u in got["server_usages"]]
    assert got["total_hours"] >= 0
    demo("GET", "/os-simple-tenant-usage", expect=403)
    admin("GET", "/os-simple-tenant-usage?start=2030-01-01T00:00:00&end=2020-01-01T00:00:00", expect=400)
    demo("DELETE", f"/servers/{server}", expect=204)
    cloud.settle()
