"""The story player itself: what it scrubs, what it compares, and that it catches a planted difference."""

from __future__ import annotations

import copy
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from nubila.testing.stories import StoryError, check, load, play
from nubila.testing.story_cloud import Cloud, pick
from nubila.testing.story_match import Bindings, Scrubber, compare, path_matches

ID = "0b7b3f6e-1111-4000-8000-000000000001"
OTHER = "0b7b3f6e-1111-4000-8000-000000000002"


def scrub(body: Any, status: int = 200, text: str = "", **known: str) -> dict[str, Any]:
    scrubber = Scrubber(text)
    for name, value in known.items():
        scrubber.know(value, name)
    return scrubber.answer(status, {}, body)


def differences(old: Any, new: Any, unordered: tuple[str, ...] = ()) -> list[str]:
    return [str(one).splitlines()[0] for one in compare(scrub(old), scrub(new), Bindings(), unordered)]


def test_known_values_become_their_names_also_inside_urls() -> None:
    seen = scrub({"id": ID, "href": f"http://cloud:1/v2/{ID}"}, net=ID, network="http://cloud:1")
    assert seen["body"] == {"id": "<net>", "href": "<network>/v2/<net>"}


def test_times_keep_their_form_and_ids_are_numbered() -> None:
    seen = scrub({"a": "2026-01-02T03:04:05Z", "b": "2026-01-02T03:04:05.123456", "c": [ID, OTHER, ID], "d": "a" * 32})
    assert seen["body"] == {
        "a": "<time:seconds,Z>",
        "b": "<time:micros>",
        "c": ["<uuid:1>", "<uuid:2>", "<uuid:1>"],
        "d": "<hex32:1>",
    }


def test_wording_of_errors_is_ours_but_its_presence_and_the_type_count() -> None:
    error = {"NeutronError": {"type": "NetworkNotFound", "message": "Gone.", "detail": ""}}
    assert scrub(error, 404)["body"] == {"NeutronError": {"type": "NetworkNotFound", "message": "<text>", "detail": ""}}
    assert scrub({"message": "Gone."})["body"] == {"message": "Gone."}


def test_secrets_and_free_addresses_are_not_kept() -> None:
    body = {"adminPass": "hunter2", "ip_address": "10.0.0.7", "private_key": "-----BEGIN", "audit_ids": ["xyz"]}
    assert scrub(body)["body"] == {
        "adminPass": "<password>",
        "ip_address": "<ip>",
        "private_key": "<private key>",
        "audit_ids": ["<audit>"],
    }
    assert scrub({"ip_address": "10.0.0.7"}, text="fixed_ip: 10.0.0.7")["body"] == {"ip_address": "10.0.0.7"}


def test_an_address_of_our_choice_may_be_one_that_the_story_names() -> None:
    def told(address: str) -> dict[str, Any]:
        return scrub({"ip_address": address}, text="ip_address: 10.0.0.7")

    assert compare(told("10.0.0.9"), told("10.0.0.7"), Bindings()) == []
    assert len(compare(told("10.0.0.7"), told("10.0.0.9"), Bindings())) == 1, "a wish must be granted"


def test_the_same_id_must_come_back_in_the_same_places() -> None:
    assert differences([ID, OTHER, ID], [OTHER, ID, OTHER]) == []
    assert differences([ID, OTHER, ID], [OTHER, ID, ID]) == ["$[2]"]


def test_extra_missing_and_retyped_values_are_found() -> None:
    assert differences({"a": 1, "b": 2}, {"a": 1, "c": 3}) == ["$.b", "$.c"]
    assert differences({"a": 1}, {"a": True}) == ["$.a"]
    assert differences({"a": None}, {"a": ""}) == ["$.a"]
    assert differences({"a": [1]}, {"a": [1, 2]}) == ["$.a[1]"]


def test_lists_named_unordered_are_sets() -> None:
    old, new = {"x": [{"n": 1, "i": ID}, {"n": 2, "i": OTHER}]}, {"x": [{"n": 2, "i": ID}, {"n": 1, "i": OTHER}]}
    assert differences(old, new) != []
    assert differences(old, new, ("$.x",)) == []


@pytest.mark.parametrize(
    ("pattern", "path", "expected"),
    [
        ("$.a", "$.a", True),
        ("$.a", "$.a.b[0]", True),
        ("$.a", "$.ab", False),
        ("$.x[*].mtu", "$.x[3].mtu", True),
        ("headers.*", "headers.vary", True),
        ("$.provider:type", "$.provider:type", True),
    ],
)
def test_paths_of_justified_differences(pattern: str, path: str, expected: bool) -> None:
    assert path_matches(pattern, path) is expected


def test_picking_values() -> None:
    body = {"images": [{"name": "a", "id": 1}, {"name": "b", "os:x": [5]}], "k.d": 9}
    assert pick(body, "$.images[name=a].id") == 1
    assert pick(body, "$.images[1].os:x[0]") == 5
    assert pick(body, '$["k.d"]') == 9
    with pytest.raises(KeyError):
        pick(body, "$.images[name=c].id")


def test_a_story_with_a_mistake_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "s.yaml"
    for step in ("{name: a, GET: 'x:/', kolor: 1}", "{name: a, GET: 'x:/', POST: 'x:/'}", "{name: a}"):
        path.write_text(f"story: s\nsteps:\n  - {step}\n")
        with pytest.raises(StoryError):
            load(path)


class _Handler(BaseHTTPRequestHandler):
    """Just enough of Identity for a cast, and one resource whose shape the test may change."""

    thing: dict[str, Any] = {"id": ID, "name": "thing", "size": 1}

    def _answer(self, status: int, body: Any = None, **headers: str) -> None:
        data = b"" if body is None else json.dumps(body).encode()
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        if self.path.endswith("/auth/tokens"):
            base = f"http://127.0.0.1:{self.server.server_address[1]}"
            endpoint = {"interface": "public", "url": f"{base}/v3"}
            token = {
                "user": {"id": "u" * 32, "name": "n"},
                "project": {"id": "p" * 32, "name": "n"},
                "catalog": [{"type": "identity", "endpoints": [endpoint]}],
            }
            self._answer(201, {"token": token}, X_Subject_Token="token" * 9)
        else:
            key = self.path.rsplit("/", 1)[1].removesuffix("s")
            self._answer(201, {key: {"id": key[0] * 32}})

    def do_GET(self) -> None:
        if self.path.endswith("/roles"):
            self._answer(200, {"roles": [{"name": "member", "id": "r" * 32}]})
        else:
            self._answer(200, {"thing": self.thing})

    def do_PUT(self) -> None:
        self._answer(204)

    do_DELETE = do_PUT

    def log_message(self, *_: Any) -> None:
        return


@pytest.fixture
def server() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), _Handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}/v3"
        server.shutdown()
        thread.join(5)


def test_a_planted_difference_is_caught(server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "thing.yaml"
    path.write_text("story: a thing\nsteps:\n  - {name: show, who: member, GET: 'identity:/v3/thing'}\n")
    story, cloud = load(path), Cloud(server, "secret")
    story.record(play(cloud, story), "test")
    assert check(story, play(cloud, story)) == {}
    for change in ({"size": 2}, {"size": "1"}, {"colour": "red"}):
        changed = copy.deepcopy(_Handler.thing) | change
        monkeypatch.setattr(_Handler, "thing", changed)
        assert list(check(story, play(cloud, story))) == ["show"]
    path.write_text(path.read_text().replace("}", ", differs: {$.thing: we are larger}}"))
    assert check(load(path), play(cloud, load(path))) == {}
    assert "secret" not in story.answers_path.read_text()
