"""The way of a request through the edge, seen from outside: statuses, headers and bodies."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tiny import Thing, Tiny

from nubila.core import quota
from nubila.core.gates import OPEN
from nubila.edge import crud
from nubila.edge.access import AccessLog, Metrics
from nubila.testing.cloud import call_app


@pytest.fixture
def tiny(tmp_path: Path) -> Iterator[Tiny]:
    made = Tiny(tmp_path)
    yield made
    made.close()


def test_create_show_update_list_delete(tiny: Tiny) -> None:
    made = tiny.thing(name="one", loose="7")
    assert made["project_id"] == made["tenant_id"] == "p1"
    assert made["loose"] == 7
    assert made["revision_number"] == 0
    assert "secret" not in made
    assert "hidden" not in made
    path = f"/v1/things/{made['id']}"
    assert tiny.request("GET", path).json == {"thing": made}
    changed = tiny.request("PUT", path, {"thing": {"size": 5, "weight": 2}}).json["thing"]
    assert changed["size"] == 5
    assert changed["revision_number"] == 1
    assert tiny.request("GET", path).json["thing"] == changed
    assert tiny.request("GET", "/v1/things").json["things"] == [changed]
    gone = tiny.request("DELETE", path)
    assert (gone.status, gone.body) == (204, b"")
    assert "content-type" not in gone.headers
    assert tiny.request("GET", path).status == 404


def test_attributes_that_only_operators_see_or_set(tiny: Tiny) -> None:
    assert tiny.request("POST", "/v1/things", {"thing": {"name": "x", "shared": True}}).status == 403
    assert tiny.thing(token="p1:admin", name="y", shared="yes")["shared"] is True
    for thing in tiny.request("GET", "/v1/things", token="p1:admin").json["things"]:
        assert thing["secret"] == "s"
    only = tiny.request("GET", "/v1/things?fields=name&fields=tenant_id").json["things"]
    assert [sorted(t) for t in only] == [["name", "tenant_id"]]


def test_fields_are_what_was_asked_for(tiny: Tiny) -> None:
    tiny.thing(name="x")
    for query, wanted in (("fields=tenant_id&fields=nothing", ["tenant_id"]), ("fields=name,size", ["name", "size"])):
        assert [sorted(t) for t in tiny.request("GET", f"/v1/things?{query}").json["things"]] == [wanted]


@pytest.mark.parametrize(("method", "body"), [("DELETE", None), ("PUT", {"thing": {"size": 2}})])
def test_what_somebody_else_deletes_meanwhile_is_gone_once(
    tiny: Tiny, monkeypatch: pytest.MonkeyPatch, method: str, body: Any
) -> None:
    """On PostgreSQL and MariaDB two requests may both have read the row; played here by a find that sees ghosts."""
    made = tiny.thing()
    path = f"/v1/things/{made['id']}"
    rows: list[Any] = []
    real = crud._Crud.find

    def find(self: Any, call: Any, id: str, statement: Any = None) -> Any:
        rows[:] = rows or [real(self, call, id, statement)]
        return dict(rows[0])

    monkeypatch.setattr(crud._Crud, "find", find)
    assert tiny.request("DELETE", path).status == 204
    assert tiny.request(method, path, body).status == 404
    with tiny.cloud.store.read() as reader:
        assert quota.usage(reader, "p1") == {"thing": 0}


def test_another_project_sees_nothing(tiny: Tiny) -> None:
    mine = tiny.thing()
    path = f"/v1/things/{mine['id']}"
    for method, body in (("GET", None), ("PUT", {"thing": {"size": 2}}), ("DELETE", None)):
        assert tiny.request(method, path, body, token="p2:member").status == 404
    assert tiny.request("GET", "/v1/things", token="p2:member").json["things"] == []
    assert tiny.request("GET", f"/v1/things?marker={mine['id']}", token="p2:member").status == 400
    assert tiny.request("POST", "/v1/things", {"thing": {"name": "x", "project_id": "p1"}}, token="p2:m").status == 403
    assert tiny.request("GET", path).json["thing"] == mine


def test_bulk_create_is_all_or_nothing(tiny: Tiny) -> None:
    many = tiny.request("POST", "/v1/things", {"things": [{"name": "a"}, {"name": "b"}]})
    assert [t["name"] for t in many.json["things"]] == ["a", "b"]
    assert tiny.request("POST", "/v1/things", {"things": [{"name": "c"}, {"name": "a"}]}).status == 409
    assert tiny.request("POST", "/v1/things", {"things": []}).status == 400
    assert len(tiny.request("GET", "/v1/things").json["things"]) == 2


def test_quota_counts_what_exists(tiny: Tiny, tmp_path: Path) -> None:
    made = [tiny.thing() for _ in range(3)]
    with tiny.cloud.store.write() as tx:
        quota.set_limit(tx, "p1", "thing", 3)
    refused = tiny.request("POST", "/v1/things", {"thing": {"name": "one more"}})
    assert refused.status == 409
    assert "3 of 3" in refused.json["error"]["message"]
    assert tiny.request("DELETE", f"/v1/things/{made[0]['id']}").status == 204
    tiny.thing()


@pytest.mark.parametrize(
    ("body", "headers", "status"),
    [
        (b"{", {}, 400),
        (b'{"thing": {"name": "\\ud800"}}', {}, 400),
        (b'{"thing": {"name": "x", "size": 1e999}}', {}, 400),
        (b'{"thing": {"name": "x", "anything": ' + b"[" * 5000 + b"]" * 5000 + b"}}", {}, 400),
        (b'{"thing": {"name": "x", "size": 123456789012345678901234567890}}', {}, 400),
        (b'{"thing": {"name": "x\\u0000y"}}', {}, 400),
        (b'{"thing": {"name": "x", "notes": {"a\\u0000": "b"}}}', {}, 400),
        (b"[]", {}, 400),
        (b"", {}, 400),
        (b'{"thing": []}', {}, 400),
        (b'{"thing": {"name": "x"}, "more": 1}', {}, 400),
        (b'{"thing": {"name": "x", "nmae": "y"}}', {}, 400),
        (b'{"thing": {}}', {}, 400),
        (b"<thing/>", {"content-type": "text/xml"}, 415),
        (b"{}", {"content-length": "many"}, 400),
        (b"{}", {"content-length": "9" * 30}, 413),
        (b'{"thing": {"name": "' + b"x" * (1 << 20) + b'"}}', {}, 413),
    ],
    ids=lambda v: repr(v)[:40],
)
def test_bad_bodies(tiny: Tiny, body: bytes, headers: dict[str, str], status: int) -> None:
    got = tiny.request("POST", "/v1/things", body=body, headers=headers)
    assert got.status == status, got.body
    assert got.json["error"]["code"] == status
    assert tiny.request("GET", "/v1/things").json["things"] == []


def test_loose_numbers_keep_their_limits(tiny: Tiny) -> None:
    for bad in ("10", "-1", "99999999999999999999", "x", 10, -1, 1.5):
        assert tiny.request("POST", "/v1/things", {"thing": {"name": "n", "loose": bad}}).status == 400, bad
    made = tiny.thing(size=3.0)
    assert made["size"] == 3
    assert isinstance(made["size"], int)


def test_versions_open_and_close(tiny: Tiny) -> None:
    low = tiny.request("GET", "/v1/things")
    assert low.headers["openstack-api-version"] == "tiny 1.0"
    assert low.headers["vary"] == "openstack-api-version"
    assert tiny.request("GET", "/v1/things", version="latest").headers["openstack-api-version"] == "tiny 1.9"
    assert tiny.request("GET", "/v1/new", version="1.4").status == 404
    assert tiny.request("GET", "/v1/new", version="1.5").status == 200
    for wrong, status in (("1.10", 406), ("0.9", 406), ("x", 400), ("1", 400), ("1." + "9" * 5000, 400), ("1.²", 400)):
        assert tiny.request("GET", "/v1/things", version=wrong).status == status, wrong[:20]


@pytest.mark.parametrize(("name", "first", "last"), [("late", 5, 9), ("early", 0, 4)])
def test_attributes_open_and_close_with_versions(tiny: Tiny, name: str, first: int, last: int) -> None:
    assert {a.name for a in Thing.attrs.values() if a.show != OPEN} == {"late", "early"}
    for minor in range(10):
        version, there = f"1.{minor}", first <= minor <= last
        body = {"thing": {"name": f"n{minor}", name: "x"}}
        got = tiny.request("POST", "/v1/things", body, version=version)
        assert got.status == (201 if there else 400), version
        if there:
            assert got.json["thing"][name] == "x"
            shown = tiny.request("GET", f"/v1/things/{got.json['thing']['id']}", version=version)
            assert shown.json["thing"][name] == "x"
        for thing in tiny.request("GET", "/v1/things", version=version).json["things"]:
            assert (name in thing) is there


def test_tokens_paths_and_methods(tiny: Tiny) -> None:
    none = tiny.request("GET", "/v1/things", token="")
    assert none.status == 401
    assert none.headers["www-authenticate"].startswith("Keystone uri=")
    assert tiny.request("GET", "/v1/things", token="forged").status == 401
    assert tiny.request("GET", "/v1/nothing").status == 404
    wrong = tiny.request("PATCH", "/v1/things")
    assert (wrong.status, wrong.headers["allow"]) == (405, "GET, POST")
    assert tiny.request("GET", "/v1/things/%2e%2e%2f").status == 404
    head = tiny.request("HEAD", "/v1/things")
    assert (head.status, head.body) == (200, b"")


def test_what_goes_wrong_inside_is_told_without_a_trace(tiny: Tiny) -> None:
    broken = tiny.request("GET", "/v1/fail?how=error", token="")
    assert broken.status == 500
    assert "planted" not in broken.body.decode()
    assert broken.headers["x-openstack-request-id"] in broken.body.decode()
    assert tiny.request("GET", "/v1/fail?how=odd", token="").status == 500
    tea = tiny.request("GET", "/v1/fail?how=fault", token="")
    assert (tea.status, tea.headers["x-tea"]) == (418, "green")


def test_route_schema_is_checked(tiny: Tiny) -> None:
    assert tiny.request("POST", "/v1/shout", {"text": "hi"}).json == {"said": "HI"}
    assert tiny.request("POST", "/v1/shout", {"text": 1}).status == 400
    assert tiny.request("POST", "/v1/shout").status == 400


def test_body_limit_is_a_setting(tmp_path: Path) -> None:
    small = Tiny(tmp_path, max_body_bytes=100)
    try:
        assert small.request("POST", "/v1/things", {"thing": {"name": "x" * 50}}).status == 201
        assert small.request("POST", "/v1/things", {"thing": {"name": "y", "anything": "z" * 100}}).status == 413
    finally:
        small.close()


def test_health_and_metrics(tiny: Tiny) -> None:
    tiny.request("GET", "/v1/things")
    health = call_app(tiny.edge, "GET", "/healthz")
    assert health.json["services"] == {"tiny": "ok"}
    text = call_app(tiny.edge, "GET", "/metrics").body.decode()
    assert 'nubila_http_requests_total{service="tiny",method="GET",status="200"} 2' in text
    assert "nubila_work_pending 0" in text
    assert 'nubila_http_request_seconds_bucket{service="tiny",le="+Inf"} 2' in text


def test_metrics_count_a_histogram() -> None:
    m = Metrics()
    for seconds in (0.0005, 0.002, 99.0):
        m.count("s", "GET", 200, seconds)
    text = m.text({})
    assert 'le="0.001"} 1\n' in text
    assert 'le="0.0025"} 2\n' in text
    assert 'le="+Inf"} 3\n' in text
    assert "seconds_count" in text


def test_access_log_lines_are_whole_and_late_ones_harmless(tmp_path: Path) -> None:
    path = tmp_path / "access.log"
    log, other = AccessLog(path), AccessLog(path)
    for i in range(3000):
        log.write(n=i, text="x" * 50)
        other.write(n=i, text="y" * 50)
    log.close()
    other.close()
    log.write(n=-1)
    lines = path.read_bytes().splitlines()
    assert len(lines) == 6000
    assert all(line.startswith(b"{") and line.endswith(b"}") for line in lines)


def test_upload_that_breaks_off_is_not_taken_for_a_body(tiny: Tiny) -> None:
    sent: list[Any] = []
    messages = iter(
        [{"type": "http.request", "body": b'{"thing": {"name": "x"}}', "more_body": True}, {"type": "http.disconnect"}]
    )

    async def receive() -> Any:
        return next(messages)

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {
        "type": "http", "method": "POST", "path": "/tiny/v1/things", "query_string": b"",
        "headers": [(b"x-auth-token", b"p1:member"), (b"content-type", b"application/json")], "client": None,
    }  # fmt: skip
    asyncio.run(tiny.edge(scope, receive, send))
    assert sent[0]["status"] == 400
    assert tiny.request("GET", "/v1/things").json["things"] == []
