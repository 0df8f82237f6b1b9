"""What guests get: ports, addresses, metadata, config drive; the same on every database."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from computing import Nova, image, network

from nubila.core import work
from nubila.services.compute import metadata
from nubila.services.compute.keypairs import generate
from nubila.testing.cloud import TestCloud

pytest_plugins = ["nubila.testing.fixtures"]


@pytest.fixture(scope="module")
def cloud(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestCloud]:
    made = TestCloud(tmp_path_factory.mktemp("compute"))
    yield made
    made.close()


@pytest.fixture(scope="module")
def demo(cloud: TestCloud) -> Nova:
    return Nova(cloud, "demo")


@pytest.fixture(scope="module")
def net(cloud: TestCloud, demo: Nova) -> str:
    id, _ = network(cloud, demo.token)
    cloud.settle()
    return id


@pytest.fixture(scope="module")
def guest(cloud: TestCloud, demo: Nova, net: str) -> str:
    demo("POST", "/os-keypairs", {"keypair": {"name": "k", "public_key": generate()[1]}}, expect=201)
    script = base64.b64encode(b"#!/bin/sh\n").decode()
    id: str = demo.boot(
        image(cloud), networks=[{"uuid": net, "tag": "front"}], key_name="k", user_data=script, config_drive=True,
        metadata={"role": "web"}, name="Guest 1",
    )["id"]  # fmt: skip
    cloud.settle()
    return id


def ask(
    cloud: TestCloud, demo: Nova, net: str, guest: str, path: str, method: str = "GET", body: bytes = b""
) -> tuple[int, bytes]:
    address = demo("GET", f"/servers/{guest}/ips").json["addresses"]["net"][0]["addr"]
    with cloud.cloud.store.write() as tx:
        status, _, data = metadata.answer(
            cloud.cloud, tx, network_id=net, router_id=None, address=address, method=method, path=path, body=body
        )
    return status, data


def test_openstack_metadata(cloud: TestCloud, demo: Nova, net: str, guest: str) -> None:
    got = json.loads(ask(cloud, demo, net, guest, "/openstack/latest/meta_data.json")[1])
    assert (got["uuid"], got["hostname"], got["name"]) == (guest, "guest-1", "Guest 1")
    assert got["meta"] == {"role": "web"}
    assert got["public_keys"]["k"].startswith("ssh-ed25519 ")
    assert got["devices"][0]["tags"] == ["front"]
    old = json.loads(ask(cloud, demo, net, guest, "/openstack/2012-08-10/meta_data.json")[1])
    assert "random_seed" not in old
    assert "project_id" not in old
    assert ask(cloud, demo, net, guest, "/openstack/2012-08-10/network_data.json")[0] == 404
    assert ask(cloud, demo, net, guest, "/openstack/latest/user_data") == (200, b"#!/bin/sh\n")
    found = json.loads(ask(cloud, demo, net, guest, "/openstack/latest/network_data.json")[1])
    assert found["links"][0]["ethernet_mac_address"].startswith("fa:16:3e")
    assert found["networks"][0]["type"] == "ipv4_dhcp"
    assert found["services"] == [{"type": "dns", "address": "9.9.9.9"}]


def test_the_network_knows_a_guest_by_its_host_name(cloud: TestCloud, demo: Nova, guest: str) -> None:
    path = f"/network/v2.0/ports?device_id={guest}"
    port = cloud.request("GET", path, token=demo.token).json["ports"][0]
    assert port["dns_name"] == "guest-1"
    assert port["dns_assignment"][0]["fqdn"] == "guest-1.openstacklocal."


@pytest.mark.parametrize(
    "path", ["/openstack/1999-01-01", "/nope", "/latest/nope", "/openstack/latest/../x", "/latest/meta-data/hostname/x"]
)
def test_unknown_paths(cloud: TestCloud, demo: Nova, net: str, guest: str, path: str) -> None:
    assert ask(cloud, demo, net, guest, path)[0] == 404


def test_ec2_metadata(cloud: TestCloud, demo: Nova, net: str, guest: str) -> None:
    def text(path: str) -> str:
        status, data = ask(cloud, demo, net, guest, path)
        assert status == 200, path
        return data.decode()

    assert text("/").splitlines()[-1] == "latest"
    assert "public-keys/" in text("/latest/meta-data/").splitlines()
    assert text("/latest/meta-data/public-keys/") == "0=k"
    assert text("/latest/meta-data/public-keys/0/openssh-key").startswith("ssh-ed25519")
    assert text("/latest/meta-data/instance-id") == f"i-{guest[:8]}"
    assert text("/2009-04-04/meta-data/placement/availability-zone") == "nova"
    assert text("/latest/user-data") == "#!/bin/sh\n"
    assert "public-ipv4" not in text("/1.0/meta-data").splitlines()


def test_password(cloud: TestCloud, demo: Nova, net: str, guest: str) -> None:
    path = "/openstack/2013-10-17/password"
    assert ask(cloud, demo, net, guest, path, "POST", b"c2VjcmV0")[0] == 200
    assert ask(cloud, demo, net, guest, path, "POST", b"other")[0] == 409
    assert demo("GET", f"/servers/{guest}/os-server-password").json == {"password": "c2VjcmV0"}
    demo("DELETE", f"/servers/{guest}/os-server-password", expect=204)
    assert demo("GET", f"/servers/{guest}/os-server-password").json == {"password": ""}
    assert ask(cloud, demo, net, guest, path, "PUT", b"x")[0] == 405


def test_strangers_learn_nothing(cloud: TestCloud, net: str) -> None:
    with cloud.cloud.store.write() as tx:
        for address in ("10.9.0.250", "not an address"):
            status, _, body = metadata.answer(
                cloud.cloud, tx, network_id=net, router_id=None, address=address, method="GET", path="/", body=b""
            )
            assert status in (400, 404)
            assert b"latest" not in body


def test_config_drive_is_stable(cloud: TestCloud, demo: Nova, guest: str) -> None:
    item = cloud.cloud.service("compute").host_items["guest"]
    with cloud.cloud.store.read() as reader:
        first, second = (item.describe(cloud.cloud, reader, guest, "host1") for _ in range(2))
    assert first == second
    files = first.config_drive
    assert json.loads(files["openstack/latest/meta_data.json"])["uuid"] == guest
    assert files["openstack/latest/user_data"] == "#!/bin/sh\n"
    assert "ec2/latest/meta-data.json" in files


def test_ports_come_and_go(cloud: TestCloud, demo: Nova, net: str, guest: str) -> None:
    base = f"/servers/{guest}/os-interface"
    made = demo("POST", base, {"interfaceAttachment": {"net_id": net}}, expect=200).json["interfaceAttachment"]
    cloud.settle()
    assert demo("GET", f"{base}/{made['port_id']}").json["interfaceAttachment"]["port_state"] == "ACTIVE"
    assert len(demo.server(guest)["addresses"]["net"]) == 2
    with cloud.cloud.store.read() as reader:
        spec = cloud.cloud.service("compute").host_items["guest"].describe(cloud.cloud, reader, guest, "host1")
    assert [n.port_id for n in spec.nics][1] == made["port_id"]
    demo("DELETE", f"{base}/{made['port_id']}", expect=202)
    demo("DELETE", f"{base}/{made['port_id']}", expect=404)
    cloud.settle()
    assert len(demo.server(guest)["addresses"]["net"]) == 1
    own = cloud.request("POST", "/network/v2.0/ports", {"port": {"network_id": net}}, token=demo.token).json["port"][
        "id"
    ]
    demo("POST", base, {"interfaceAttachment": {"port_id": own}}, expect=200)
    demo("POST", base, {"interfaceAttachment": {"port_id": own}}, expect=409)
    demo("POST", base, {"interfaceAttachment": {"port_id": own, "net_id": net}}, expect=400)
    demo("POST", base, {"interfaceAttachment": {"fixed_ips": [{"ip_address": "10.9.0.9"}]}}, expect=400)
    demo("DELETE", f"{base}/{own}", expect=202)
    cloud.settle()
    kept = cloud.request("GET", f"/network/v2.0/ports/{own}", token=demo.token).json["port"]
    assert (kept["device_id"], kept["device_owner"]) == ("", "")


def test_a_port_deleted_in_network_leaves_the_guest(cloud: TestCloud, demo: Nova, net: str, guest: str) -> None:
    made = demo("POST", f"/servers/{guest}/os-interface", {"interfaceAttachment": {"net_id": net}}, expect=200)
    port = made.json["interfaceAttachment"]["port_id"]
    cloud.settle()
    hypervisor = cloud.agents[0].drivers.hypervisor
    assert hypervisor is not None
    assert port in next(g for g in hypervisor.list() if g.id == guest).nics
    path = f"/network/v2.0/ports/{port}"
    assert cloud.request("DELETE", path, token=demo.token).status == 403
    assert cloud.request("DELETE", path).status == 204
    cloud.settle()
    assert port not in next(g for g in hypervisor.list() if g.id == guest).nics
    assert port not in [
        p["port_id"] for p in demo("GET", f"/servers/{guest}/os-interface").json["interfaceAttachments"]
    ]


def test_filters_by_address(demo: Nova, guest: str) -> None:
    address = demo("GET", f"/servers/{guest}/ips/net").json["net"][0]["addr"]
    assert [s["id"] for s in demo("GET", f"/servers?ip=^{address}$").json["servers"]] == [guest]
    assert demo("GET", "/servers?ip=192.0.2").json["servers"] == []
    demo("GET", f"/servers/{guest}/ips/nowhere", expect=404)


def test_the_callers_project_may_stand_in_the_url(cloud: TestCloud, demo: Nova, guest: str) -> None:
    """As catalogues of old had it: /v2.1/{project_id}/servers."""

    def status(method: str, path: str, body: object = None) -> int:
        return cloud.request(method, f"/compute/{path}", body, token=demo.token).status

    mine, other = (
        cloud.request("GET", "/v3/projects", query={"name": name}).json["projects"][0]["id"]
        for name in ("demo", "admin")
    )
    shown = cloud.request("GET", f"/compute/v2.1/{mine}/servers/{guest}", token=demo.token)
    assert (shown.status, shown.json["server"]["id"]) == (200, guest)
    assert status("GET", f"v2/{mine}/servers/{guest}") == 200
    assert status("POST", f"v2.1/{mine}/servers/{guest}/action", {"lock": None}) == 202
    assert status("POST", f"v2.1/{mine}/servers/{guest}/action", {"unlock": None}) == 202
    for path in (f"v2.1/{other}/servers", f"v2.1/{other}/servers/{guest}"):
        got = cloud.request("GET", f"/compute/{path}", token=demo.token)
        assert (got.status, "not for project" in got.json["badRequest"]["message"]) == (400, True)
    assert status("GET", f"v2.1/{mine}/nothing") == 404
    assert status("PATCH", f"v2.1/{mine}/servers") == 405
    assert status("GET", f"v2.1/{mine}/{mine}/servers") == 404
    assert cloud.request("GET", f"/compute/v2.1/{mine}/servers", token="").status == 401
    assert cloud.request("GET", f"/network/v2.0/{mine}/networks", token=demo.token).status == 404


@pytest.mark.req("C/SG-13")
def test_security_groups(cloud: TestCloud, demo: Nova, guest: str) -> None:
    body = {"security_group": {"name": "web", "description": "d"}}
    made = demo("POST", "/os-security-groups", body, v="2.35", expect=200).json["security_group"]
    rule = {"parent_group_id": made["id"], "ip_protocol": "tcp", "from_port": 80, "to_port": 80, "cidr": "0.0.0.0/0"}
    added = demo("POST", "/os-security-group-rules", {"security_group_rule": rule}, v="2.1", expect=200).json
    assert added["security_group_rule"]["ip_range"] == {"cidr": "0.0.0.0/0"}
    demo("POST", "/os-security-group-rules", {"security_group_rule": rule}, v="2.1", expect=400)
    demo.act(guest, {"addSecurityGroup": {"name": "web"}})
    assert {g["name"] for g in demo.server(guest)["security_groups"]} == {"default", "web"}
    assert len(demo("GET", f"/servers/{guest}/os-security-groups").json["security_groups"]) == 2
    demo("DELETE", f"/os-security-groups/{made['id']}", v="2.1", expect=400)
    demo.act(guest, {"removeSecurityGroup": {"name": "web"}})
    demo.act(guest, {"removeSecurityGroup": {"name": "web"}}, expect=404)
    demo.act(guest, {"addSecurityGroup": {"name": "moon"}}, expect=404)
    demo("DELETE", f"/os-security-groups/{made['id']}", v="2.1", expect=202)
    demo("GET", "/os-security-groups", v="2.36", expect=404)


def test_a_failed_network_is_a_readable_fault(cloud: TestCloud, demo: Nova) -> None:
    small, _ = network(cloud, demo.token, "10.77.0.0/30", "small")
    cloud.settle()
    tiny = image(cloud, "small")
    ids = [demo.boot(tiny, networks=[{"uuid": small}])["id"] for _ in range(3)]
    cloud.settle()
    failed = [demo.server(i) for i in ids if demo.server(i)["status"] == "ERROR"]
    assert failed
    assert failed[0]["fault"]["message"].startswith("Failed to allocate the network(s)")
    for id in ids:
        demo("DELETE", f"/servers/{id}", expect=204)
    cloud.settle()
    assert work.pending(cloud.cloud.store) == []


def test_deleting_gives_everything_back(cloud: TestCloud, demo: Nova, net: str) -> None:
    own = cloud.request("POST", "/network/v2.0/ports", {"port": {"network_id": net}}, token=demo.token).json["port"][
        "id"
    ]
    id = demo.boot(image(cloud, "back"), networks=[{"port": own}, {"uuid": net}])["id"]
    cloud.settle()
    assert demo.server(id)["status"] == "ACTIVE"
    assert next(p["port_id"] for p in demo("GET", f"/servers/{id}/os-interface").json["interfaceAttachments"]) == own
    demo("DELETE", f"/servers/{id}", expect=204)
    cloud.settle()
    ports = cloud.request("GET", f"/network/v2.0/ports?device_id={id}").json["ports"]
    assert ports == []
    assert cloud.request("GET", f"/network/v2.0/ports/{own}", token=demo.token).json["port"]["device_id"] == ""
    assert cloud.request("GET", f"/placement/allocations/{id}").json["allocations"] == {}


def test_a_life_on_every_database(database_url: str, tmp_path: Path) -> None:
    cloud = TestCloud(tmp_path / "cloud", hosts=2, database=database_url)
    try:
        demo = Nova(cloud, "demo")
        net, _ = network(cloud, demo.token)
        cloud.settle()
        tiny = image(cloud)
        ids = [demo.boot(tiny, networks=[{"uuid": net}], tags=["a"])["id"] for _ in range(3)]
        cloud.settle()
        found = demo("GET", "/servers/detail?sort_key=display_name&tags=a").json["servers"]
        assert [s["status"] for s in found] == ["ACTIVE"] * 3
        demo.act(ids[0], {"os-stop": None})
        demo.act(ids[1], {"reboot": {"type": "HARD"}})
        cloud.settle()
        assert [demo.server(i)["status"] for i in ids] == ["SHUTOFF", "ACTIVE", "ACTIVE"]
        assert len(demo("GET", "/servers?name=^guest$&limit=2").json["servers"]) == 2
        for id in ids:
            demo("DELETE", f"/servers/{id}", expect=204)
        cloud.settle()
        assert demo("GET", "/servers").json["servers"] == []
        assert work.pending(cloud.cloud.store) == []
    finally:
        cloud.close()
