"""Finding routes: literal before parameter, decoded parameters, versions, methods."""

from __future__ import annotations

from typing import Any

import pytest

from nubila.core.call import Route
from nubila.core.gates import Gate, since, until
from nubila.edge.routes import Router


def route(method: str, path: str, **options: Any) -> Route:
    return Route(method=method, path=path, handler=lambda call: None, doc=f"{method} {path}", **options)


ROUTER = Router([
    route("GET", "/"),
    route("GET", "/v2/servers"),
    route("POST", "/v2/servers"),
    route("GET", "/v2/servers/detail"),
    route("GET", "/v2/servers/{id}"),
    route("DELETE", "/v2/servers/{server_id}"),
    route("GET", "/v2/servers/{id}/ips/{label}"),
    route("GET", "/v2/old", gate=until(2, 5)),
    route("GET", "/v2/new", gate=since(2, 5)),
    route("GET", "/v2/both", gate=until(2, 5)),
    Route(method="GET", path="/v2/both", handler=lambda call: None, doc="newer", gate=since(2, 5)),
    route("GET", "/files/{rest...}"),
])  # fmt: skip


@pytest.mark.parametrize(
    ("method", "path", "template", "params"),
    [
        ("GET", "/", "/", {}),
        ("GET", "/v2/servers", "/v2/servers", {}),
        ("GET", "/v2/servers/", "/v2/servers", {}),
        ("HEAD", "/v2/servers", "/v2/servers", {}),
        ("GET", "/v2/servers/detail", "/v2/servers/detail", {}),
        ("GET", "/v2/servers/x", "/v2/servers/{id}", {"id": "x"}),
        ("DELETE", "/v2/servers/x", "/v2/servers/{server_id}", {"server_id": "x"}),
        ("DELETE", "/v2/servers/detail", "/v2/servers/{server_id}", {"server_id": "detail"}),
        ("GET", "/v2/servers/a%2Fb%20c", "/v2/servers/{id}", {"id": "a/b c"}),
        ("GET", "/v2/servers/x/ips/y", "/v2/servers/{id}/ips/{label}", {"id": "x", "label": "y"}),
        ("GET", "/files/a/b/c", "/files/{rest...}", {"rest": "a/b/c"}),
    ],
)
def test_found(method: str, path: str, template: str, params: dict[str, str]) -> None:
    found = ROUTER.find(method, path)
    assert not isinstance(found, frozenset)
    assert found[0].path == template
    assert found[1] == params


@pytest.mark.parametrize(
    ("method", "path", "methods"),
    [
        ("PATCH", "/v2/servers", {"GET", "POST"}),
        ("PUT", "/v2/servers/x", {"GET", "DELETE"}),
        ("PUT", "/v2/servers/detail", {"GET", "DELETE"}),
        ("HEAD", "/v2/nothing", set()),
        ("GET", "/v2", set()),
        ("GET", "/v2/servers/x/y", set()),
        ("GET", "/files", set()),
    ],
)
def test_not_found_says_which_methods_there_are(method: str, path: str, methods: set[str]) -> None:
    assert ROUTER.find(method, path) == frozenset(methods)


def test_versions_choose() -> None:
    assert ROUTER.find("GET", "/v2/old", (2, 5)) == frozenset()
    assert ROUTER.find("GET", "/v2/new", (2, 4)) == frozenset()
    for version, doc in (((2, 4), "GET /v2/both"), ((2, 5), "newer")):
        found = ROUTER.find("GET", "/v2/both", version)
        assert not isinstance(found, frozenset)
        assert found[0].doc == doc


def test_first_added_wins() -> None:
    own = Route(method="GET", path="/x/{id}", handler=lambda call: None, doc="own", gate=Gate())
    found = Router([own, route("GET", "/x/{other}")]).find("GET", "/x/1")
    assert not isinstance(found, frozenset)
    assert found[0] is own
    assert found[1] == {"id": "1"}
