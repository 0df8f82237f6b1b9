"""Image v2: rows, data as streams, members, dead uploads, files that are not what they say."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import struct
import time
from collections.abc import AsyncIterator, Iterator, MutableMapping
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from nubila.core import clock
from nubila.core.faults import Fault
from nubila.services.image import files, lookup
from nubila.services.image.kinds import Image
from nubila.testing.cloud import Response, TestCloud

OCTETS = {"Content-Type": "application/octet-stream"}
PATCH = {"Content-Type": "application/openstack-images-v2.1-json-patch"}
BARE = {"disk_format": "raw", "container_format": "bare"}
JSON = {"Accept": "application/json"}


@pytest.fixture(scope="module")
def cloud(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestCloud]:
    made = TestCloud(tmp_path_factory.mktemp("cloud"), hosts=0)
    yield made
    made.close()


def make(cloud: TestCloud, name: str = "x", token: str | None = None, **attrs: Any) -> dict[str, Any]:
    got = cloud.request("POST", "/image/v2/images", {"name": name, **BARE, **attrs}, token=token)
    assert got.status == 201, got.body
    found: dict[str, Any] = got.json
    return found


def url(image: dict[str, Any], tail: str = "") -> str:
    return f"/image/v2/images/{image['id']}{tail}"


def upload(cloud: TestCloud, image: dict[str, Any], data: bytes, token: str | None = None) -> Response:
    return cloud.request("PUT", url(image, "/file"), body=data, headers={**OCTETS, **JSON}, token=token)


def show(cloud: TestCloud, image: dict[str, Any], token: str | None = None) -> dict[str, Any]:
    got = cloud.request("GET", url(image), token=token)
    assert got.status == 200, got.body
    found: dict[str, Any] = got.json
    return found


def patch(cloud: TestCloud, image: dict[str, Any], *ops: tuple[Any, ...], token: str | None = None) -> Response:
    body = [dict(zip(("op", "path", "value"), op, strict=False)) for op in ops]
    return cloud.request("PATCH", url(image), body=json.dumps(body).encode(), headers={**PATCH, **JSON}, token=token)


def listed(cloud: TestCloud, query: str = "", token: str | None = None) -> list[str]:
    got = cloud.request("GET", f"/image/v2/images?{query}", token=token)
    assert got.status == 200, got.body
    return [i["name"] for i in got.json["images"]]


def stored(cloud: TestCloud) -> set[str]:
    folder = cloud.state / "images"
    return {p.name for p in folder.iterdir()} if folder.exists() else set()


def qcow2(*, backing: bool = False, data_file: bool = False, size: int = 1 << 30) -> bytes:
    """A qcow2 header as QEMU docs/interop/qcow2.txt describes it."""
    incompatible = 4 if data_file else 0
    header = struct.pack(
        ">4sIQIIQIIQQIIQQQQII",
        b"QFI\xfb", 3, 112 if backing else 0, 10 if backing else 0, 16, size, 0, 1, 196608, 65536, 1, 0, 0,
        incompatible, 0, 0, 4, 104,
    )  # fmt: skip
    header += struct.pack(">II", 0, 0) + (b"/etc/hosts" if backing else b"")
    return header.ljust(262144, b"\0")


# --- rows ----------------------------------------------------------------------------------------------------------


def test_versions_and_schemas(cloud: TestCloud) -> None:
    got = cloud.request("GET", "/image/", token="")
    assert got.status == 300
    assert [v["status"] for v in got.json["versions"]].count("CURRENT") == 1
    assert got.json["versions"][0]["links"][0]["href"] == "http://127.0.0.1:5000/image/v2/"
    assert cloud.request("GET", "/image/versions", token="").status == 200
    for name in ("image", "images", "member", "members"):
        assert cloud.request("GET", f"/image/v2/schemas/{name}").json["name"] == name
    assert cloud.request("GET", "/image/v2/schemas/boat").status == 404
    assert cloud.request("GET", "/image/v2/images", token="").status == 401


def test_create_and_show(cloud: TestCloud) -> None:
    got = cloud.request(
        "POST", "/image/v2/images", {"name": "first", **BARE, "tags": ["b", "a", "a"], "os_distro": "x"}
    )
    assert got.status == 201
    assert got.headers["location"] == f"http://127.0.0.1:5000/image/v2/images/{got.json['id']}"
    image = show(cloud, got.json)
    assert image == got.json
    assert (image["status"], image["visibility"], image["os_distro"]) == ("queued", "shared", "x")
    assert sorted(image["tags"]) == ["a", "b"]
    assert image["file"] == f"/v2/images/{image['id']}/file"
    assert image["owner"] == cloud.request("GET", "/v3/projects?name=admin").json["projects"][0]["id"]


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (None, 400),
        ([], 400),
        ({"visibility": "loud"}, 400),
        ({"disk_format": "floppy"}, 400),
        ({"container_format": "crate"}, 400),
        ({"id": "banana"}, 400),
        ({"name": 5}, 400),
        ({"name": "x" * 256}, 400),
        ({"colour": 5}, 400),
        ({"colour": {"a": "b"}}, 400),
        ({"min_disk": -1}, 400),
        ({"min_ram": 2**40}, 400),
        ({"protected": "yes"}, 400),
        ({"tags": ["x" * 256]}, 400),
        ({"x" * 256: "y"}, 400),
        ({"status": "active"}, 403),
        ({"checksum": "x"}, 403),
        ({"location": "file:///etc/passwd"}, 403),
        ({"locations": []}, 403),
        ({"os_glance_x": "y"}, 403),
        ({"tags": [str(i) for i in range(129)]}, 413),
    ],
)
def test_create_refusals(cloud: TestCloud, body: Any, status: int) -> None:
    got = cloud.request("POST", "/image/v2/images", body, headers=JSON, token=cloud.token("demo"))
    assert got.status == status, got.body
    assert got.json["code"].startswith(str(status))
    assert got.json["message"]


def test_missing_id(cloud: TestCloud) -> None:
    for method in ("GET", "DELETE"):
        assert cloud.request(method, "/image/v2/images/").status == 404


def test_errors_are_pages_for_browsers(cloud: TestCloud) -> None:
    got = cloud.request("GET", "/image/v2/images/none", headers={"Accept": "text/html"})
    assert got.headers["content-type"].startswith("text/html")
    assert b"404 Not Found" in got.body


def test_ids_are_never_used_twice(cloud: TestCloud) -> None:
    id = "0b0b0b0b-0b0b-4b0b-8b0b-0b0b0b0b0b0b"
    image = make(cloud, id=id)
    assert cloud.request("POST", "/image/v2/images", {"id": id}).status == 409
    assert cloud.request("DELETE", url(image)).status == 204
    assert cloud.request("POST", "/image/v2/images", {"id": id}).status == 409


def test_owner_and_visibility_rules(cloud: TestCloud) -> None:
    demo = cloud.token("demo")
    admin_project = cloud.request("GET", "/v3/projects?name=admin").json["projects"][0]["id"]
    assert cloud.request("POST", "/image/v2/images", {"owner": admin_project}, token=demo).status == 403
    assert cloud.request("POST", "/image/v2/images", {"visibility": "public"}, token=demo).status == 403
    image = make(cloud, "mine", demo)
    assert patch(cloud, image, ("replace", "/visibility", "public"), token=demo).status == 403
    assert patch(cloud, image, ("replace", "/owner", admin_project), token=demo).status == 403
    assert patch(cloud, image, ("replace", "/visibility", "community"), token=demo).status == 200
    public = make(cloud, "everybody's", visibility="public")
    assert patch(cloud, public, ("replace", "/name", "x"), token=demo).status == 403
    assert cloud.request("DELETE", url(public), token=demo).status == 403
    private = make(cloud, "hidden", visibility="private")
    for method, tail in (("GET", ""), ("DELETE", ""), ("GET", "/file"), ("PUT", "/tags/x"), ("GET", "/members")):
        assert cloud.request(method, url(private, tail), token=demo).status == 404
    assert "hidden" not in listed(cloud, "limit=100", demo)
    assert "everybody's" in listed(cloud, "limit=100", demo)


def test_patch(cloud: TestCloud) -> None:
    image = make(cloud, "patched")
    got = patch(cloud, image, ("replace", "/name", "new"), ("add", "/colour", "red"), ("replace", "/tags", ["t", "t"]))
    assert (got.json["name"], got.json["colour"], got.json["tags"]) == ("new", "red", ["t"])
    assert patch(cloud, image, ("add", "/a~1b", "slash")).json["a/b"] == "slash"
    assert patch(cloud, image, ("remove", "/colour")).status == 200
    assert "colour" not in show(cloud, image)
    old = {"Content-Type": "application/openstack-images-v2.0-json-patch"}
    body = json.dumps([{"replace": "/name", "value": "older"}]).encode()
    assert cloud.request("PATCH", url(image), body=body, headers=old).json["name"] == "older"
    for ops, status in (
        ([("remove", "/colour")], 409),
        ([("replace", "/colour", "x")], 409),
        ([("replace", "/status", "active")], 403),
        ([("replace", "/id", "x")], 403),
        ([("remove", "/visibility")], 403),
        ([("add", "/locations", [])], 403),
        ([("replace", "/min_ram", "much")], 400),
        ([("replace", "/min_ram", -1)], 400),
        ([("bend", "/name", "x")], 400),
        ([("replace", "name", "x")], 400),
        ([("replace", "/a/b", "x")], 400),
        ([("replace", "/name")], 400),
        ([("add", "/x", 5)], 400),
    ):
        assert patch(cloud, image, *ops).status == status, ops
    got = cloud.request("PATCH", url(image), [{"op": "replace", "path": "/name", "value": "x"}])
    assert got.status == 415
    assert "v2.1-json-patch" in got.headers["accept-patch"]
    assert show(cloud, image)["name"] == "older"


def test_tags(cloud: TestCloud) -> None:
    image = make(cloud)
    assert cloud.request("PUT", url(image, "/tags/sun")).status == 204
    assert cloud.request("PUT", url(image, "/tags/sun")).status == 204
    assert show(cloud, image)["tags"] == ["sun"]
    assert cloud.request("DELETE", url(image, "/tags/sun")).status == 204
    assert cloud.request("DELETE", url(image, "/tags/sun")).status == 404
    assert cloud.request("PUT", url(image, "/tags/" + "x" * 256)).status == 400


def test_protected(cloud: TestCloud) -> None:
    image = make(cloud, protected=True)
    assert cloud.request("DELETE", url(image)).status == 403
    patch(cloud, image, ("replace", "/protected", False))
    assert cloud.request("DELETE", url(image)).status == 204
    assert cloud.request("DELETE", url(image)).status == 404


def test_list_filters(cloud: TestCloud) -> None:
    a = make(cloud, "list-a", tags=["one", "two"], min_ram=7, colour="blue")
    make(cloud, "list-b", tags=["one"], os_hidden=True)
    make(cloud, "list,c", disk_format="qcow2")
    upload(cloud, a, b"x" * 1000)
    base = "name=in:list-a,list-b,%22list,c%22&"
    for query, found in (
        ("", ["list,c", "list-a"]),
        ("os_hidden=true", ["list-b"]),
        ("status=active", ["list-a"]),
        ("status=in:queued,saving", ["list,c"]),
        ("tag=one&tag=two", ["list-a"]),
        ("size_min=1000&size_max=1000", ["list-a"]),
        ("size_min=1001", []),
        ("colour=blue", ["list-a"]),
        ("min_ram=7", ["list-a"]),
        ("disk_format=qcow2", ["list,c"]),
        ("container_format=in:bare,ovf", ["list,c", "list-a"]),
        ("created_at=gt:2020-01-01T00:00:00Z", ["list,c", "list-a"]),
        ("created_at=lt:2020-01-01T00:00:00Z", []),
        ("updated_at=gte:2020-01-01T00:00:00%2B02:00", ["list,c", "list-a"]),
        ("protected=true", []),
        ("visibility=private", []),
        ("visibility=all", ["list,c", "list-a"]),
    ):
        assert sorted(listed(cloud, base + query)) == found, query
    for query in ("visibility=loud", "member_status=maybe", "limit=two", "limit=-1", "sort=colour:asc", "sort=name:up",
                  "sort=name&sort_key=name", "marker=none", "created_at=gt:yesterday", "size_min=x",
                  "sort_key=name&sort_key=id&sort_dir=asc&sort_dir=desc&sort_dir=asc", "protected=maybe"):  # fmt: skip
        assert cloud.request("GET", f"/image/v2/images?{query}").status == 400, query


@pytest.mark.parametrize("sort", ["", "sort=name:asc", "sort=size:desc,name", "sort_key=status&sort_dir=asc"])
def test_paging_reaches_every_image_once(cloud: TestCloud, sort: str) -> None:
    for i in range(5):
        made = make(cloud, f"page{i % 2}")
        if i == 3:
            upload(cloud, made, b"1234")
    whole = listed(cloud, f"limit=1000&{sort}")
    seen, next_ = [], f"/v2/images?limit=3&{sort}"
    while next_:
        got = cloud.request("GET", "/image" + next_).json
        seen += [i["id"] for i in got["images"]]
        next_ = got.get("next")
    assert len(seen) == len(set(seen)) == len(whole)


# --- data ----------------------------------------------------------------------------------------------------------


def test_upload_and_download(cloud: TestCloud) -> None:
    image, data = make(cloud), os.urandom(3_000_000)
    assert cloud.request("GET", url(image, "/file")).status == 204
    assert upload(cloud, image, data).status == 204
    seen = show(cloud, image)
    assert seen["status"] == "active"
    assert seen["size"] == seen["virtual_size"] == len(data)
    assert seen["checksum"] == hashlib.md5(data, usedforsecurity=False).hexdigest()
    assert (seen["os_hash_algo"], seen["os_hash_value"]) == ("sha512", hashlib.sha512(data).hexdigest())
    got = cloud.request("GET", url(image, "/file"))
    assert got.body == data
    assert got.headers["content-md5"] == seen["checksum"]
    assert got.headers["content-length"] == str(len(data))
    for text, part in (("bytes=10-19", data[10:20]), ("bytes=2999990-", data[-10:]), ("bytes=-5", data[-5:])):
        ranged = cloud.request("GET", url(image, "/file"), headers={"Range": text})
        assert (ranged.status, ranged.body) == (206, part)
    assert cloud.request("GET", url(image, "/file"), headers={"Range": "bytes=9999999-"}).status == 416
    assert upload(cloud, image, b"again").status == 409
    assert patch(cloud, image, ("replace", "/disk_format", "qcow2")).status == 403
    assert files.path_of(cloud.cloud, image["id"]).read_bytes() == data
    assert cloud.request("DELETE", url(image)).status == 204
    cloud.settle()
    assert not [n for n in stored(cloud) if image["id"] in n]


def test_upload_refusals(cloud: TestCloud) -> None:
    image = make(cloud, disk_format=None)
    assert upload(cloud, image, b"x").status == 400
    image = make(cloud)
    assert cloud.request("PUT", url(image, "/file"), body=b"x", headers={"Content-Type": "text/plain"}).status == 415
    assert cloud.request("PUT", "/image/v2/images/none/file", body=b"x", headers=OCTETS).status == 404
    community = make(cloud, visibility="community")
    assert upload(cloud, community, b"x", cloud.token("demo")).status == 403
    assert show(cloud, image)["status"] == "queued"


def test_upload_limit(tmp_path: Path) -> None:
    small = TestCloud(tmp_path / "small", hosts=0, image_max_bytes=1000)
    try:
        image = make(small)
        assert upload(small, image, b"x" * 1001).status == 413
        assert show(small, image)["status"] == "queued"
        assert upload(small, image, b"x" * 1000).status == 204
    finally:
        small.close()


@pytest.mark.parametrize(
    ("declared", "data"),
    [
        ("qcow2", b"\0" * 4096),
        ("raw", qcow2()),
        ("qcow2", qcow2(backing=True)),
        ("qcow2", qcow2(data_file=True)),
        ("vmdk", b"\0" * 4096),
        ("qcow2", b"QFI\xfb"),
    ],
)
def test_image_that_is_not_what_it_says(cloud: TestCloud, declared: str, data: bytes) -> None:
    image = make(cloud, disk_format=declared)
    got = upload(cloud, image, data)
    assert got.status == 415
    assert len(got.json["message"]) > 10
    seen = show(cloud, image)
    assert (seen["status"], seen["size"], seen["checksum"]) == ("queued", None, None)
    assert not [n for n in stored(cloud) if image["id"] in n]
    with cloud.cloud.store.read() as reader, pytest.raises(Fault) as refused:
        lookup.usable_by(reader, _creds(cloud), image["id"])
    assert refused.value.status == 400


def test_qcow2_knows_its_virtual_size(cloud: TestCloud) -> None:
    image = make(cloud, disk_format="qcow2")
    assert upload(cloud, image, qcow2(size=5 << 30)).status == 204
    assert show(cloud, image)["virtual_size"] == 5 << 30


def _creds(cloud: TestCloud, user: str = "admin") -> Any:
    from nubila.services.identity.auth import authenticate

    return authenticate(cloud.cloud, cloud.token(user))


def stream(
    cloud: TestCloud, image: dict[str, Any], chunks: AsyncIterator[bytes | None], tail: str = "/file"
) -> list[Any]:
    """An upload fed piece by piece; None = the client goes away."""
    sent: list[MutableMapping[str, Any]] = []

    async def receive() -> dict[str, Any]:
        async for chunk in chunks:
            if chunk is None:
                return {"type": "http.disconnect"}
            return {"type": "http.request", "body": chunk, "more_body": True}
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: MutableMapping[str, Any]) -> None:
        sent.append(message)

    headers = {"host": "127.0.0.1:5000", "x-auth-token": cloud.token(), "content-type": "application/octet-stream"}
    raw = [(k.encode(), v.encode()) for k, v in headers.items()]
    path = url(image, tail)
    scope = {
        "type": "http", "method": "PUT", "path": path, "raw_path": path.encode(), "scheme": "http", "query_string": b"",
        "client": ("127.0.0.1", 1), "http_version": "1.1", "headers": raw,
    }  # fmt: skip
    asyncio.run(cloud.edge(scope, receive, send))
    return sent


def test_client_that_goes_away_leaves_nothing(cloud: TestCloud) -> None:
    image = make(cloud)

    async def chunks() -> AsyncIterator[bytes | None]:
        for _ in range(3):
            yield b"x" * (1 << 20)
        assert show_row(cloud, image)["status"] == "saving"
        yield None

    sent = stream(cloud, image, chunks())
    assert sent[0]["status"] == 400
    assert show(cloud, image)["status"] == "queued"
    assert not [n for n in stored(cloud) if image["id"] in n]


def show_row(cloud: TestCloud, image: dict[str, Any]) -> dict[str, Any]:
    with cloud.cloud.store.read() as reader:
        found = reader.one(sa.select(Image.table).where(Image.table.c.id == image["id"]))
        assert found is not None
        return found


def test_second_upload_at_the_same_time(cloud: TestCloud) -> None:
    image = make(cloud)
    second: list[int] = []

    async def chunks() -> AsyncIterator[bytes | None]:
        yield b"first"
        second.append(await asyncio.to_thread(lambda: upload(cloud, image, b"second").status))

    sent = stream(cloud, image, chunks())
    assert second == [409]
    assert sent[0]["status"] == 204
    assert cloud.request("GET", url(image, "/file")).body == b"first"


def test_image_deleted_during_its_upload(cloud: TestCloud) -> None:
    image = make(cloud)

    async def chunks() -> AsyncIterator[bytes | None]:
        yield b"x"
        await asyncio.to_thread(cloud.request, "DELETE", url(image))

    assert stream(cloud, image, chunks())[0]["status"] == 410
    cloud.settle()
    assert not [n for n in stored(cloud) if image["id"] in n]


@pytest.mark.parametrize("tail", ["/file", "/stage"])
def test_killed_upload_goes_back_to_queued(cloud: TestCloud, tail: str) -> None:
    """A process that died leaves its row and its file; time passes; the reconciler cleans up."""
    image = make(cloud)
    status, token = {"/file": "saving", "/stage": "uploading"}[tail], "deadbeef"
    with cloud.cloud.store.write() as tx:
        dead = {"status": status, "transfer": token, "transfer_until": clock.at(time.time() + 60)}
        tx.execute(sa.update(Image.table).where(Image.table.c.id == image["id"]).values(**dead))
        tx.ask("image", image["id"])
    temp = files.staged_path(cloud.cloud, image["id"], token)
    temp.write_bytes(b"half")
    cloud.settle()
    assert temp.exists()  # it still counts as alive
    assert show(cloud, image)["status"] == status
    with cloud.cloud.store.write() as tx:
        over = {"transfer_until": clock.at(time.time() - 1)}
        tx.execute(sa.update(Image.table).where(Image.table.c.id == image["id"]).values(**over))
    cloud.sweep()
    assert show(cloud, image)["status"] == "queued"
    assert not temp.exists()
    assert upload(cloud, image, b"whole").status == 204


def test_files_without_a_row_are_swept(cloud: TestCloud) -> None:
    folder = files.directory(cloud.cloud)
    orphan = folder / "11111111-2222-4333-8444-555555555555"
    half = folder / ".11111111-2222-4333-8444-555555555556.abcdef"
    other = folder / "README"
    for path in (orphan, half, other):
        path.write_bytes(b"x")
    cloud.sweep()
    assert not orphan.exists()
    assert not half.exists()
    assert other.exists()  # not ours


def test_deactivate(cloud: TestCloud) -> None:
    demo = cloud.token("demo")
    image = make(cloud, "off", demo)
    assert cloud.request("POST", url(image, "/actions/deactivate"), token=demo).status == 403  # queued
    upload(cloud, image, b"x", demo)
    assert cloud.request("POST", url(image, "/actions/deactivate"), token=demo).status == 204
    assert show(cloud, image)["status"] == "deactivated"
    assert cloud.request("GET", url(image, "/file"), token=demo).status == 403
    assert cloud.request("GET", url(image, "/file")).status == 200  # an administrator can
    assert cloud.request("POST", url(image, "/actions/reactivate"), token=demo).status == 204
    assert cloud.request("GET", url(image, "/file"), token=demo).body == b"x"


def test_stage_and_import(cloud: TestCloud) -> None:
    image, body = make(cloud), {"method": {"name": "glance-direct"}}
    assert cloud.request("POST", url(image, "/import"), body).status == 409
    assert cloud.request("PUT", url(image, "/stage"), body=b"staged", headers=OCTETS).status == 204
    seen = show(cloud, image)
    assert (seen["status"], seen["size"], seen["checksum"]) == ("uploading", 6, None)
    cloud.sweep()
    assert show(cloud, image)["status"] == "uploading"  # staged data stay
    assert cloud.request("POST", url(image, "/import"), {"method": {"name": "magic"}}).status == 400
    assert cloud.request("POST", url(image, "/import"), {}).status == 400
    assert cloud.request("POST", url(image, "/import"), body).status == 202
    cloud.settle()
    assert show(cloud, image)["status"] == "active"
    assert show(cloud, image)["checksum"] == hashlib.md5(b"staged", usedforsecurity=False).hexdigest()
    assert cloud.request("GET", url(image, "/file")).body == b"staged"
    wrong = make(cloud, disk_format="qcow2")
    cloud.request("PUT", url(wrong, "/stage"), body=b"not a qcow2" * 99, headers=OCTETS)
    assert cloud.request("POST", url(wrong, "/import"), body).status == 202
    cloud.settle()
    assert show(cloud, wrong)["status"] == "queued"
    assert not [n for n in stored(cloud) if wrong["id"] in n]
    assert cloud.request("GET", "/image/v2/info/import").json["import-methods"]["value"] == ["glance-direct"]


# --- members -------------------------------------------------------------------------------------------------------


def test_members(cloud: TestCloud) -> None:
    demo = cloud.token("demo")
    project = cloud.request("GET", "/v3/projects?name=demo").json["projects"][0]["id"]
    image = make(cloud, "to-share")
    upload(cloud, image, b"shared")
    all_, one = url(image, "/members"), url(image, f"/members/{project}")
    assert cloud.request("GET", url(image), token=demo).status == 404
    assert cloud.request("POST", all_, {}).status == 400
    made = cloud.request("POST", all_, {"member": project})
    assert (made.status, made.json["status"]) == (200, "pending")
    assert cloud.request("POST", all_, {"member": project}).status == 409
    assert cloud.request("POST", all_, {"member": "x"}, token=demo).status == 403
    assert show(cloud, image, demo)["name"] == "to-share"
    assert listed(cloud, "name=to-share", demo) == []
    assert listed(cloud, "name=to-share&visibility=shared&member_status=pending", demo) == ["to-share"]
    assert cloud.request("PUT", one, {"status": "maybe"}, token=demo).status == 400
    assert cloud.request("PUT", one, {}, token=demo).status == 400
    assert cloud.request("PUT", one, {"status": "accepted"}, token=demo).json["status"] == "accepted"
    assert listed(cloud, "name=to-share", demo) == ["to-share"]
    assert [m["member_id"] for m in cloud.request("GET", all_, token=demo).json["members"]] == [project]
    assert cloud.request("GET", one, token=demo).status == 200
    assert cloud.request("GET", url(image, "/members/nobody")).status == 404
    assert cloud.request("GET", url(image, "/file"), token=demo).body == b"shared"
    assert cloud.request("DELETE", one, token=demo).status == 403
    assert cloud.request("DELETE", one).status == 204
    assert cloud.request("DELETE", one).status == 404
    assert cloud.request("GET", url(image), token=demo).status == 404
    private = make(cloud, visibility="private")
    assert cloud.request("POST", url(private, "/members"), {"member": project}).status == 403


def test_lookup_for_other_services(cloud: TestCloud) -> None:
    image = make(cloud, "bootable", visibility="public", min_disk=2, hw_disk_bus="virtio")
    with cloud.cloud.store.read() as reader:
        with pytest.raises(Fault) as refused:
            lookup.usable_by(reader, _creds(cloud, "demo"), image["id"])
        assert refused.value.status == 400
    upload(cloud, image, b"disk")
    with cloud.cloud.store.read() as reader:
        row = lookup.usable_by(reader, _creds(cloud, "demo"), image["id"])
        assert (row["min_disk"], row["properties"]["hw_disk_bus"], row["size"]) == (2, "virtio", 4)
        with pytest.raises(Fault) as refused:
            lookup.usable_by(reader, _creds(cloud), "none")
        assert refused.value.status == 404
    with pytest.raises(ValueError, match="not an image id"):
        files.path_of(cloud.cloud, "../../etc/passwd")
