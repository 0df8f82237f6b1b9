"""A server's life through the API: states, verbs, refusals, quotas, lists."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import sqlalchemy as sa
from computing import Nova, image

from nubila.core import hosts, work
from nubila.testing.cloud import TestCloud


@pytest.fixture(scope="module")
def cloud(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestCloud]:
    made = TestCloud(tmp_path_factory.mktemp("compute"), hosts=2)
    yield made
    made.close()


@pytest.fixture(scope="module")
def tiny(cloud: TestCloud) -> str:
    return image(cloud)


@pytest.fixture(scope="module")
def admin(cloud: TestCloud) -> Nova:
    return Nova(cloud)


@pytest.fixture
def demo(cloud: TestCloud, admin: Nova) -> Iterator[Nova]:
    """The demo user; every server is gone and nothing is owed afterwards."""
    caller = Nova(cloud, "demo")
    yield caller
    for server in admin("GET", "/servers?all_tenants=1").json["servers"]:
        admin("DELETE", f"/servers/{server['id']}", expect=204)
    cloud.settle()
    assert admin("GET", "/servers?all_tenants=1").json["servers"] == []
    assert work.pending(cloud.cloud.store) == []
    assert work.invariants(cloud.cloud.store) == []
    assert [g for a in cloud.agents if a.drivers.hypervisor for g in a.drivers.hypervisor.list()] == []
    used = caller("GET", "/limits").json["limits"]["absolute"]
    assert (used["totalInstancesUsed"], used["totalCoresUsed"], used["totalRAMUsed"]) == (0, 0, 0)


def states(server: dict[str, Any]) -> tuple[str, str, str | None, int]:
    return (
        server["status"], server["OS-EXT-STS:vm_state"], server["OS-EXT-STS:task_state"],
        server["OS-EXT-STS:power_state"],
    )  # fmt: skip


def test_a_life(cloud: TestCloud, tiny: str, demo: Nova) -> None:
    made = demo.boot(tiny, name="Web 1")
    assert set(made) == {"id", "links", "OS-DCF:diskConfig", "security_groups", "adminPass"}
    id = made["id"]
    assert states(demo.server(id)) == ("BUILD", "building", "scheduling", 0)
    cloud.settle()
    server = demo.server(id)
    assert states(server) == ("ACTIVE", "active", None, 1)
    assert server["OS-SRV-USG:launched_at"]
    assert server["hostId"]
    assert server["OS-EXT-AZ:availability_zone"] == "nova"
    demo.act(id, {"os-stop": None})
    assert states(demo.server(id)) == ("ACTIVE", "active", "powering-off", 1)
    cloud.settle()
    assert states(demo.server(id)) == ("SHUTOFF", "stopped", None, 4)
    demo.act(id, {"os-stop": None}, expect=409)
    demo.act(id, {"reboot": {"type": "SOFT"}}, expect=409)
    demo.act(id, {"os-start": None})
    assert states(demo.server(id)) == ("SHUTOFF", "stopped", "powering-on", 4)
    demo.act(id, {"os-start": None}, expect=409)
    cloud.settle()
    assert states(demo.server(id)) == ("ACTIVE", "active", None, 1)
    demo.act(id, {"reboot": {"type": "soft"}})
    assert states(demo.server(id))[0::2] == ("REBOOT", "rebooting")
    cloud.settle()
    demo.act(id, {"reboot": {"type": "HARD"}})
    assert states(demo.server(id))[0::2] == ("HARD_REBOOT", "rebooting_hard")
    cloud.settle()
    assert states(demo.server(id)) == ("ACTIVE", "active", None, 1)
    demo("DELETE", f"/servers/{id}", expect=204)
    assert demo.server(id)["OS-EXT-STS:task_state"] == "deleting"
    cloud.settle()
    demo("GET", f"/servers/{id}", expect=404)


def test_a_hard_reboot_starts_a_stopped_server(cloud: TestCloud, tiny: str, demo: Nova) -> None:
    id = demo.boot(tiny)["id"]
    cloud.settle()
    demo.act(id, {"os-stop": None})
    cloud.settle()
    demo.act(id, {"reboot": {"type": "HARD"}})
    cloud.settle()
    assert demo.server(id)["status"] == "ACTIVE"


def test_delete_in_every_state(cloud: TestCloud, tiny: str, demo: Nova) -> None:
    building = demo.boot(tiny)["id"]
    demo("DELETE", f"/servers/{building}", expect=204)
    demo.act(building, {"os-stop": None}, expect=409)
    cloud.settle()
    demo("GET", f"/servers/{building}", expect=404)
    stopping = demo.boot(tiny)["id"]
    cloud.settle()
    demo.act(stopping, {"os-stop": None})
    demo("DELETE", f"/servers/{stopping}", expect=204)
    demo("DELETE", f"/servers/{stopping}", expect=204)
    cloud.settle()
    demo("GET", f"/servers/{stopping}", expect=404)


def test_events_tell_who_asked_and_how_it_went(cloud: TestCloud, tiny: str, admin: Nova, demo: Nova) -> None:
    id = demo.boot(tiny)["id"]
    cloud.settle()
    asked = demo.act(id, {"os-stop": None}).headers["x-openstack-request-id"]
    cloud.settle()
    found = demo("GET", f"/servers/{id}/os-instance-actions").json["instanceActions"]
    assert [a["action"] for a in found] == ["stop", "create"]
    one = demo("GET", f"/servers/{id}/os-instance-actions/{asked}").json["instanceAction"]
    event = one["events"][0]
    assert (event["event"], event["result"]) == ("compute_stop_instance", "Success")
    assert event["finish_time"] >= event["start_time"]
    assert "traceback" not in event
    assert "host" not in event
    assert admin("GET", f"/servers/{id}/os-instance-actions/{asked}").json["instanceAction"]["events"][0]["host"]
    demo("DELETE", f"/servers/{id}", expect=204)
    cloud.settle()
    kept = demo("GET", f"/servers/{id}/os-instance-actions").json["instanceActions"]
    assert kept[0]["action"] == "delete"
    demo("GET", f"/servers/{id}/os-instance-actions", v="2.20", expect=404)
    page = demo("GET", f"/servers/{id}/os-instance-actions?limit=1").json
    assert [a["action"] for a in page["instanceActions"]] == ["delete"]
    assert page["links"][0]["rel"] == "next"


def test_no_host_is_a_fault_the_user_can_read(cloud: TestCloud, tiny: str, admin: Nova, demo: Nova) -> None:
    big = admin("POST", "/flavors", {"flavor": {"name": "huge", "ram": 1, "vcpus": 1, "disk": 999999}}, expect=200)
    id = demo.boot(tiny, flavorRef=big.json["flavor"]["id"])["id"]
    cloud.settle()
    server = demo.server(id)
    assert server["status"] == "ERROR"
    assert server["fault"]["code"] == 500
    assert server["fault"]["message"].startswith("No valid host was found.")
    assert "details" in admin.server(id)["fault"]
    events = demo("GET", f"/servers/{id}/os-instance-actions").json["instanceActions"]
    assert events[0]["message"] == "Error"


def test_a_host_that_cannot_run_it(cloud: TestCloud, tiny: str, demo: Nova) -> None:
    for agent in cloud.agents:
        (agent.place.root / "behaviours.json").write_text('{"fail": {"create": 1}, "fail_as": "impossible"}')
    id = demo.boot(tiny)["id"]
    cloud.settle()
    for agent in cloud.agents:
        (agent.place.root / "behaviours.json").unlink()
    server = demo.server(id)
    assert server["status"] == "ERROR"
    assert "told to fail" in server["fault"]["message"]
    assert cloud.request("GET", f"/placement/allocations/{id}").json["allocations"] == {}
    assert server["hostId"] == ""


def test_a_guest_that_ends_by_itself_is_shutoff(cloud: TestCloud, tiny: str, demo: Nova) -> None:
    id = demo.boot(tiny)["id"]
    cloud.settle()
    item = cloud.cloud.service("compute").host_items["guest"]
    name = next(a.place.host for a in cloud.agents if a.drivers.hypervisor and a.drivers.hypervisor.list())
    with cloud.cloud.store.write() as tx:
        seen = {"id": id, "power": "off", "boots": 0, "fault": "The guest powered itself off.", "status": "ERROR"}
        item.observe(cloud.cloud, tx, id, name, seen)
    assert states(demo.server(id)) == ("SHUTOFF", "stopped", None, 4)
    demo.act(id, {"os-start": None})
    cloud.settle()
    assert demo.server(id)["status"] == "ACTIVE"


def test_a_build_that_takes_too_long_fails(cloud: TestCloud, tiny: str, demo: Nova) -> None:
    for agent in cloud.agents:
        (agent.place.root / "behaviours.json").write_text('{"fail": {"create": -1}, "fail_as": "again"}')
    id = demo.boot(tiny)["id"]
    cloud.settle()
    assert demo.server(id)["status"] == "BUILD"
    from nubila.services.compute.kinds import SERVER

    with cloud.cloud.store.write() as tx:
        tx.execute(sa.update(SERVER).values(deadline=1.0))
        tx.ask("server", id)
    cloud.settle()
    for agent in cloud.agents:
        (agent.place.root / "behaviours.json").unlink()
    server = demo.server(id)
    assert server["status"] == "ERROR"
    assert "in time" in server["fault"]["message"]


def test_a_server_on_a_dead_host_waits_to_be_removed(cloud: TestCloud, tiny: str, admin: Nova, demo: Nova) -> None:
    id = demo.boot(tiny)["id"]
    cloud.settle()
    name = admin.server(id)["OS-EXT-SRV-ATTR:host"]
    agent = next(a for a in cloud.agents if a.place.host == name)
    cloud.agents.remove(agent)
    with cloud.cloud.store.write() as tx:
        tx.execute(sa.update(hosts.TABLE).where(hosts.TABLE.c.name == name).values(seen=0.0))
    demo("DELETE", f"/servers/{id}", expect=204)
    cloud.settle()
    assert demo.server(id)["OS-EXT-STS:task_state"] == "deleting"
    assert admin.server(id)["host_status"] == "UNKNOWN"
    assert "does not report" in next(w["note"] for w in work.why(cloud.cloud.store, id) if w["kind"] == "server")
    agent._greet()
    cloud.agents.append(agent)
    cloud.settle()
    demo("GET", f"/servers/{id}", expect=404)


def test_several_at_once(cloud: TestCloud, tiny: str, admin: Nova, demo: Nova) -> None:
    body = {"name": "n", "imageRef": tiny, "flavorRef": "42", "networks": "none", "min_count": 2, "max_count": 3,
            "return_reservation_id": True}  # fmt: skip
    reservation = demo("POST", "/servers", {"server": body}, expect=202).json["reservation_id"]
    cloud.settle()
    found = demo("GET", f"/servers/detail?reservation_id={reservation}").json["servers"]
    assert sorted(s["name"] for s in found) == ["n-1", "n-2", "n-3"]
    every = admin("GET", "/servers/detail?all_tenants=1").json["servers"]
    assert {s["OS-EXT-SRV-ATTR:launch_index"] for s in every} == {
        0, 1, 2
    }  # fmt: skip
    assert len({s["hostId"] for s in found}) == 2  # spread over both hosts
    demo("POST", "/servers", {"server": {**body, "min_count": 4}}, expect=400)


def test_quota(tiny: str, demo: Nova) -> None:
    big = {"name": "n", "imageRef": tiny, "flavorRef": "42", "networks": "none", "max_count": 11, "min_count": 11}
    refused = demo("POST", "/servers", {"server": big}, expect=403).json["forbidden"]["message"]
    assert refused == "Quota exceeded for instances: Requested 11, but already used 0 of 10 instances"
    wide = {**big, "flavorRef": "5", "min_count": 3, "max_count": 3}
    refused = demo("POST", "/servers", {"server": wide}, expect=403).json["forbidden"]["message"]
    assert refused == "Quota exceeded for cores: Requested 24, but already used 0 of 20 cores"
    assert demo("GET", "/servers").json["servers"] == []


def test_server_groups_are_honoured(cloud: TestCloud, tiny: str, admin: Nova, demo: Nova) -> None:
    def group(policy: str) -> str:
        made = demo("POST", "/os-server-groups", {"server_group": {"name": policy, "policy": policy}}, expect=200)
        return str(made.json["server_group"]["id"])

    def boot(group: str) -> str:
        body = {"server": {"name": "g", "imageRef": tiny, "flavorRef": "42", "networks": "none"},
                "os:scheduler_hints": {"group": group}}  # fmt: skip
        id: str = demo("POST", "/servers", body, expect=202).json["server"]["id"]
        cloud.settle()
        return id

    apart, near = group("anti-affinity"), group("affinity")
    spread = [boot(apart) for _ in range(3)]
    assert [demo.server(i)["status"] for i in spread] == ["ACTIVE", "ACTIVE", "ERROR"]
    assert len({admin.server(i)["OS-EXT-SRV-ATTR:host"] for i in spread[:2]}) == 2
    together = [boot(near) for _ in range(3)]
    assert len({admin.server(i)["OS-EXT-SRV-ATTR:host"] for i in together}) == 1
    assert demo("GET", f"/os-server-groups/{near}").json["server_group"]["members"] == together
    assert demo.server(together[0])["server_groups"] == [near]
    for id in (apart, near):
        demo("DELETE", f"/os-server-groups/{id}", expect=204)


def test_forced_host_and_zone(cloud: TestCloud, tiny: str, admin: Nova, demo: Nova) -> None:
    body = {"name": "z", "imageRef": tiny, "flavorRef": "42", "networks": "none"}
    for name in ("host1", "host2"):
        id = admin("POST", "/servers", {"server": {**body, "availability_zone": f"nova:{name}"}}, expect=202)
        cloud.settle()
        assert admin.server(id.json["server"]["id"])["OS-EXT-SRV-ATTR:host"] == name
    demo("POST", "/servers", {"server": {**body, "availability_zone": "nova:host1"}}, expect=403)
    demo("POST", "/servers", {"server": {**body, "host": "host1"}}, expect=403)
    demo("POST", "/servers", {"server": {**body, "availability_zone": "moon"}}, expect=400)
    admin("POST", "/servers", {"server": {**body, "host": "nowhere"}}, expect=400)


@pytest.mark.parametrize(
    ("change", "status"),
    [
        ({"flavorRef": "nope"}, 400),
        ({"imageRef": "11111111-1111-4111-8111-111111111111"}, 400),
        ({"imageRef": "not-a-uuid"}, 400),
        ({"imageRef": ""}, 400),
        ({"name": " padded "}, 400),
        ({"name": ""}, 400),
        ({"name": "x" * 256}, 400),
        ({"key_name": "nope"}, 400),
        ({"networks": "maybe"}, 400),
        ({"networks": [{"uuid": "11111111-1111-4111-8111-111111111111"}]}, 400),
        ({"networks": [{"port": "11111111-1111-4111-8111-111111111111"}]}, 400),
        ({"networks": [{"uuid": "x"}]}, 400),
        ({"metadata": {"k": 1}}, 400),
        ({"metadata": {"k" * 256: "v"}}, 400),
        ({"metadata": {str(i): "v" for i in range(129)}}, 403),
        ({"user_data": "not base64 !"}, 400),
        ({"personality": []}, 400),
        ({"min_count": 0}, 400),
        ({"min_count": 3, "max_count": 2}, 400),
        ({"tags": ["a,b"]}, 400),
        ({"block_device_mapping_v2": [{"source_type": "blank", "destination_type": "volume", "volume_size": 1}]}, 400),
        ({"config_drive": "sometimes"}, 400),
        ({"accessIPv4": "1.2.3.4.5"}, 400),
        ({"hostname": "bad_host name"}, 400),
        ({"colour": "red"}, 400),
    ],
)
def test_bad_bodies(tiny: str, demo: Nova, change: dict[str, Any], status: int) -> None:
    body = {"name": "n", "imageRef": tiny, "flavorRef": "42", "networks": "none", **change}
    got = demo("POST", "/servers", {"server": body}, expect=status).json
    assert next(iter(got.values()))["message"]


def test_bad_requests_change_nothing(tiny: str, demo: Nova) -> None:
    demo("POST", "/servers", {"sever": {}}, expect=400)
    demo("POST", "/servers", [], expect=400)
    demo("POST", "/servers/11111111-1111-4111-8111-111111111111/action", {"os-start": None}, expect=404)
    id = demo.boot(tiny)["id"]
    wrong: list[dict[str, Any]] = [{"fly": None}, {}, {"reboot": {"type": "COLD"}}, {"reboot": {}}]
    for action in (*wrong, {"os-start": None, "os-stop": None}):
        demo.act(id, action, expect=400)
    demo("PUT", f"/servers/{id}", {"server": {"status": "ERROR"}}, expect=400)
    demo("GET", "/servers?sort_key=nope", expect=400)
    demo("GET", "/servers?limit=-1", expect=400)
    demo("GET", "/servers?marker=nope", expect=400)
    demo("GET", "/servers?status=WEIRD", expect=400)
    demo("GET", "/servers?colour=red", expect=400)
    assert demo("GET", "/servers?colour=red", v="2.74").status == 200
    assert demo("GET", "/servers?status=WEIRD", v="2.37").json["servers"] == []


def test_other_projects_do_not_exist(cloud: TestCloud, tiny: str, admin: Nova, demo: Nova) -> None:
    theirs = admin.boot(tiny)["id"]
    cloud.settle()
    for method, path, body in (
        ("GET", "", None), ("DELETE", "", None), ("PUT", "", {"server": {"name": "x"}}), ("GET", "/metadata", None),
        ("GET", "/os-interface", None), ("GET", "/ips", None), ("GET", "/os-instance-actions", None),
        ("POST", "/action", {"os-stop": None}), ("POST", "/action", {"os-getConsoleOutput": {}}),
        ("GET", "/tags", None),
    ):  # fmt: skip
        demo(method, f"/servers/{theirs}{path}", body, expect=404)
    assert demo("GET", "/servers").json["servers"] == []
    demo("GET", "/servers?all_tenants=1", expect=403)
    demo("POST", f"/servers/{demo.boot(tiny)['id']}/action", {"os-resetState": {"state": "error"}}, expect=403)
    assert len(admin("GET", "/servers?all_tenants=1").json["servers"]) == 2


def test_locked_servers(cloud: TestCloud, tiny: str, admin: Nova, demo: Nova) -> None:
    id = demo.boot(tiny)["id"]
    cloud.settle()
    demo.act(id, {"lock": {"locked_reason": "mine"}})
    shown = demo.server(id)
    assert (shown["locked"], shown["locked_reason"]) == (True, "mine")
    demo.act(id, {"os-stop": None}, expect=409)
    demo("DELETE", f"/servers/{id}", expect=409)
    demo("PUT", f"/servers/{id}/metadata", {"metadata": {}}, expect=409)
    assert len(demo("GET", "/servers?locked=true").json["servers"]) == 1
    admin.act(id, {"os-stop": None})
    demo.act(id, {"unlock": None})
    admin.act(id, {"lock": None})
    demo.act(id, {"unlock": None}, expect=403)
    admin.act(id, {"unlock": None})
    assert demo.server(id)["locked"] is False


def test_reset_state(cloud: TestCloud, tiny: str, admin: Nova, demo: Nova) -> None:
    id = demo.boot(tiny)["id"]
    cloud.settle()
    admin.act(id, {"os-resetState": {"state": "error"}})
    assert demo.server(id)["status"] == "ERROR"
    admin.act(id, {"os-resetState": {"state": "active"}})
    cloud.settle()
    assert demo.server(id)["status"] == "ACTIVE"


def test_metadata_and_tags(cloud: TestCloud, tiny: str, demo: Nova) -> None:
    id = demo.boot(tiny, metadata={"a": "1"}, tags=["x"])["id"]
    cloud.settle()
    assert demo("POST", f"/servers/{id}/metadata", {"metadata": {"b": "2"}}).json == {"metadata": {"a": "1", "b": "2"}}
    assert demo("PUT", f"/servers/{id}/metadata/a", {"meta": {"a": "3"}}).json == {"meta": {"a": "3"}}
    demo("PUT", f"/servers/{id}/metadata/a", {"meta": {"b": "3"}}, expect=400)
    demo("DELETE", f"/servers/{id}/metadata/b", expect=204)
    demo("GET", f"/servers/{id}/metadata/b", expect=404)
    assert demo.server(id)["metadata"] == {"a": "3"}
    demo("PUT", f"/servers/{id}/tags/y", expect=201)
    demo("PUT", f"/servers/{id}/tags/y", expect=204)
    demo("GET", f"/servers/{id}/tags/z", expect=404)
    assert demo("GET", f"/servers/{id}/tags").json == {"tags": ["x", "y"]}
    other = demo.boot(tiny, tags=["y"])["id"]
    listed = {q: [s["id"] for s in demo("GET", f"/servers?{q}").json["servers"]] for q in (
        "tags=x,y", "tags=y", "tags-any=x,q", "not-tags=x,y", "not-tags-any=x"
    )}  # fmt: skip
    assert listed["tags=x,y"] == [id]
    assert set(listed["tags=y"]) == {id, other}
    assert listed["tags-any=x,q"] == [id]
    assert listed["not-tags=x,y"] == [other] == listed["not-tags-any=x"]
    demo("DELETE", f"/servers/{id}/tags", expect=204)
    assert demo.server(id)["tags"] == []
    demo("GET", f"/servers/{id}/tags", v="2.25", expect=404)


def test_lists(cloud: TestCloud, tiny: str, admin: Nova, demo: Nova) -> None:
    ids = [demo.boot(tiny, name=f"web-{n}")["id"] for n in range(3)]
    cloud.settle()
    demo.act(ids[0], {"os-stop": None})
    cloud.settle()

    def names(query: str, path: str = "/servers") -> list[str]:
        return [s["name"] for s in demo("GET", f"{path}?{query}", expect=200).json["servers"]]

    assert names("") == ["web-2", "web-1", "web-0"]  # newest first
    assert names("sort_key=display_name&sort_dir=asc") == ["web-0", "web-1", "web-2"]
    assert names("status=SHUTOFF") == ["web-0"]
    assert names("status=ACTIVE") == ["web-2", "web-1"]
    assert names("name=web-[12]") == ["web-2", "web-1"]
    assert names("name=^WEB-0$") == ["web-0"]
    assert names("name=eb-1") == ["web-1"]
    assert names("name=100%25") == []
    assert names(f"image={tiny}&flavor=42&limit=1") == ["web-2"]
    assert names("vm_state=stopped") == ["web-0"]
    assert names("power_state=1") == ["web-2", "web-1"]
    first = demo("GET", "/servers/detail?limit=2").json
    assert [s["name"] for s in first["servers"]] == ["web-2", "web-1"]
    link = first["servers_links"][0]["href"].partition("/v2.1")[2]
    assert [s["name"] for s in demo("GET", link).json["servers"]] == ["web-0"]
    since = demo.server(ids[1])["updated"]
    demo("DELETE", f"/servers/{ids[1]}", expect=204)
    cloud.settle()
    changed = demo("GET", f"/servers/detail?changes-since={since}").json["servers"]
    assert {s["id"]: s["status"] for s in changed}[ids[1]] == "DELETED"
    assert names("") == ["web-2", "web-0"]
    demo("GET", "/servers?status=deleted", expect=403)
    assert ids[1] in [s["id"] for s in admin("GET", "/servers?deleted=true&all_tenants=1").json["servers"]]


GATES = {
    "2.9": "locked", "2.19": "description", "2.26": "tags", "2.63": "trusted_image_certificates",
    "2.71": "server_groups", "2.73": "locked_reason", "2.90": "OS-EXT-SRV-ATTR:hostname",
    "2.96": "pinned_availability_zone", "2.100": "scheduler_hints",
}  # fmt: skip


@pytest.mark.parametrize("version", GATES)
def test_gates_of_a_server(tiny: str, demo: Nova, version: str) -> None:
    id = demo.boot(tiny)["id"]
    before = f"2.{int(version[2:]) - 1}"
    assert GATES[version] in demo.server(id, version)
    assert GATES[version] not in demo.server(id, before)


def test_versions_of_the_flavor_in_a_server(cloud: TestCloud, tiny: str, admin: Nova, demo: Nova) -> None:
    id = demo.boot(tiny)["id"]
    assert set(demo.server(id, "2.46")["flavor"]) == {"id", "links"}
    assert demo.server(id, "2.47")["flavor"] == {
        "vcpus": 1, "ram": 128, "disk": 1, "ephemeral": 0, "swap": 0, "original_name": "n1.nano", "extra_specs": {},
    }  # fmt: skip
    assert "OS-EXT-SRV-ATTR:host" in admin.server(id, "2.1")
    assert "OS-EXT-SRV-ATTR:user_data" not in admin.server(id, "2.1")
    assert "OS-EXT-SRV-ATTR:user_data" in admin.server(id, "2.3")
    assert "host_status" in admin.server(id, "2.16")
    assert "host_status" not in demo.server(id, "2.16")
    put = demo("PUT", f"/servers/{id}", {"server": {"name": "new"}}, v="2.74").json["server"]
    assert put["name"] == "new"
    assert "key_name" not in put
    put = demo("PUT", f"/servers/{id}", {"server": {"hostname": "host-a"}}, v="2.90").json["server"]
    assert put["OS-EXT-SRV-ATTR:hostname"] == "host-a"
    assert "key_name" in put


def test_versions_are_negotiated(cloud: TestCloud, demo: Nova) -> None:
    got = cloud.request(
        "GET", "/compute/v2.1/flavors", token=demo.token, headers={"X-OpenStack-Nova-API-Version": "2.55"}
    )
    assert got.headers["x-openstack-nova-api-version"] == "2.55"
    assert got.headers["openstack-api-version"] == "compute 2.55"
    assert demo("GET", "/flavors", v="2.999").status == 406
    assert demo("GET", "/flavors", v="two").status == 400
    assert demo("GET", "/flavors", v="latest").headers["openstack-api-version"] == "compute 2.100"
    assert cloud.request("GET", "/compute/", token="").json["versions"][1]["id"] == "v2.1"
    assert cloud.request("GET", "/compute/v2.1/", token="").json["version"]["version"] == "2.100"
    assert cloud.request("GET", "/compute/v2/flavors", token=demo.token).status == 200
    assert cloud.request("GET", "/compute/v2.1/flavors", token="").status == 401


def test_the_console(cloud: TestCloud, tiny: str, demo: Nova) -> None:
    import threading

    id = demo.boot(tiny)["id"]
    demo.act(id, {"os-getConsoleOutput": {}}, expect=409)
    cloud.settle()
    stop = threading.Event()

    def serve() -> None:
        while not stop.wait(0.01):
            for agent in cloud.agents:
                cloud.step(agent)

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        text = demo.act(id, {"os-getConsoleOutput": {"length": 2}}, expect=200).json["output"]
        whole = demo.act(id, {"os-getConsoleOutput": {}}, expect=200).json["output"]
    finally:
        stop.set()
        thread.join(10)
    assert "login:" in text
    assert len(text.splitlines()) == 2
    assert len(whole) > len(text)
    demo.act(id, {"os-getConsoleOutput": {"length": "many"}}, expect=400)
