"""The host API: what an agent may ask, and what a joined host may not see of others."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import sqlalchemy as sa

from nubila.core import hosts
from nubila.testing.cloud import Response, TestCloud, call_app


@pytest.fixture(scope="module")
def cloud(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestCloud]:
    """Two hosts with certificates; a server on one of them."""
    made = TestCloud(Path(tmp_path_factory.mktemp("hosts")), hosts=2)
    with made.cloud.store.write() as tx:
        for name in ("host1", "host2"):
            tx.execute(sa.update(hosts.TABLE).where(hosts.TABLE.c.name == name).values(certificate=f"print-{name}"))
    yield made
    made.close()


@pytest.fixture(scope="module")
def server(cloud: TestCloud) -> dict[str, Any]:
    """An active server and where it is."""
    n = "/network/v2.0"
    network = cloud.request("POST", f"{n}/networks", {"network": {"name": "n"}}).json["network"]["id"]
    subnet = {"network_id": network, "cidr": "10.9.0.0/24", "ip_version": 4}
    assert cloud.request("POST", f"{n}/subnets", {"subnet": subnet}).status == 201
    image = cloud.request("POST", "/image/v2/images", {"name": "i", "disk_format": "raw", "container_format": "bare"})
    image_id = image.json["id"]
    put = cloud.request("PUT", f"/image/v2/images/{image_id}/file", body=b"x" * 4096,
                        headers={"content-type": "application/octet-stream"})  # fmt: skip
    assert put.status == 204
    flavor = cloud.request("GET", "/compute/v2.1/flavors").json["flavors"][0]["id"]
    body = {"name": "s", "imageRef": image_id, "flavorRef": flavor, "networks": [{"uuid": network}]}
    id = cloud.request("POST", "/compute/v2.1/servers", {"server": body}).json["server"]["id"]
    cloud.settle()
    shown = cloud.request("GET", f"/compute/v2.1/servers/{id}").json["server"]
    assert shown["status"] == "ACTIVE"
    address = shown["addresses"]["n"][0]["addr"]
    here = shown["OS-EXT-SRV-ATTR:host"]
    other = "host2" if here == "host1" else "host1"
    return {"id": id, "image": image_id, "network": network, "address": address, "here": here, "other": other}


def ask(cloud: TestCloud, host: str, method: str, path: str, body: Any = None, *, peer: str = "") -> Response:
    data = b"" if body is None else msgspec.json.encode(body)
    return call_app(cloud.edge, method, f"/host{path}", body=data, peer=peer or f"host:{host}#print-{host}")


def test_only_hosts_of_this_cloud_are_heard(cloud: TestCloud) -> None:
    assert ask(cloud, "host1", "GET", "/every").status == 200
    for peer, status in (
        ("host:host1#forged", 403), ("host:host1", 403), ("host:host9#print-host9", 403), ("tls:anonymous", 404),
        ("127.0.0.1", 404),
    ):  # fmt: skip
        assert ask(cloud, "", "GET", "/every", peer=peer).status == status, peer
    named = call_app(cloud.edge, "GET", "/host/every", headers={"x-nubila-host": "host1"}, peer="127.0.0.1")
    assert named.status == 404


def test_images_go_only_where_a_guest_needs_them(cloud: TestCloud, server: dict[str, Any]) -> None:
    got = ask(cloud, server["here"], "GET", f"/images/{server['image']}")
    assert (got.status, len(got.body)) == (200, 4096)
    assert ask(cloud, server["other"], "GET", f"/images/{server['image']}").status == 404
    assert ask(cloud, server["here"], "GET", "/images/..%2F..%2Fnubila.db").status == 404


def test_metadata_is_answered_where_the_guest_is(cloud: TestCloud, server: dict[str, Any]) -> None:
    question = {
        "network_id": server["network"], "router_id": None, "address": server["address"], "method": "GET",
        "path": "/openstack/latest/meta_data.json", "body": "",
    }  # fmt: skip
    got = ask(cloud, server["here"], "POST", "/metadata", question)
    assert (got.status, got.json["status"]) == (200, 200)
    dhcp = ask(cloud, server["other"], "GET", "/every").json["kinds"]["network"]
    if server["network"] not in dhcp:
        assert ask(cloud, server["other"], "POST", "/metadata", question).status == 404


def test_a_host_settles_only_its_own_work(cloud: TestCloud, server: dict[str, Any]) -> None:
    one = {"kind": "guest", "id": server["id"], "gen": 1, "token": 1, "observed": {"status": "ERROR", "fault": "x"}}
    for host in (server["here"], server["other"]):  # neither holds a lease now
        assert ask(cloud, host, "POST", "/settle", {"items": [one]}).json == {"results": ["lost"]}
    assert cloud.request("GET", f"/compute/v2.1/servers/{server['id']}").json["server"]["status"] == "ACTIVE"
    assert server["id"] in ask(cloud, server["here"], "GET", "/every").json["kinds"]["guest"]
    assert server["id"] not in ask(cloud, server["other"], "GET", "/every").json["kinds"]["guest"]


@pytest.mark.parametrize("path", ["/hello", "/take", "/settle", "/changed", "/metadata", "/join"])
@pytest.mark.parametrize(
    "body",
    [None, [], "x", {"items": [1]}, {"items": [{}]}, {"items": 1}, {"max": "x"}, {"wait_s": {}}, {"guests": [{}]},
     {"guests": 1}, {"address": 1}, {"address": "10.0.0.1", "method": "GET", "path": "/", "body": "%"},
     {"token": "a", "host": "b", "csr": "c"}, {"roles": 1, "tunnel_ip": 1, "bridges": 1, "capabilities": 1}],
    ids=repr,
)  # fmt: skip
def test_nonsense_is_refused(cloud: TestCloud, path: str, body: Any) -> None:
    if path == "/take" and isinstance(body, dict) and not {"max", "wait_s"} & body.keys():
        body = {**body, "wait_s": 0}
    got = ask(cloud, "host1", "POST", path, {"wait_s": 0} if path == "/take" and body is None else body)
    assert got.status in (200, 400, 403), got.body
