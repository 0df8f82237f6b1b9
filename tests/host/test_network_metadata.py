"""The metadata listener against well and badly behaved guests."""

from __future__ import annotations

import socket
import time
import uuid
from collections.abc import Iterator
from typing import Any

import pytest

from nubila.drivers import links, metadata
from nubila.drivers.metadata import Door, MetadataServer

pytestmark = pytest.mark.host


class Place:
    """A namespace with a listener, and what it was asked."""

    def __init__(self) -> None:
        self.name = f"nbm-{uuid.uuid4().hex[:8]}"
        links.ensure_namespace(self.name, "nubila test")
        self.asked: list[dict[str, Any]] = []
        self.server = MetadataServer(self.answer)
        self.door = Door(namespace=self.name, address="127.0.0.1", port=80, network_id="net")
        self.server.open(self.door)

    def answer(self, **request: Any) -> tuple[int, str, bytes]:
        self.asked.append(request)
        if request["path"] == "/boom":
            raise ValueError("a secret detail")
        return 200, "text/plain", b"hello"

    def say(self, data: bytes, *, pause_s: float = 0.0) -> bytes:
        with links.entered(self.name):
            connection = socket.create_connection(("127.0.0.1", 80), timeout=8)
        with connection:
            connection.sendall(data)
            time.sleep(pause_s)
            answer = b""
            while chunk := connection.recv(65536):
                answer += chunk
        return answer


@pytest.fixture
def place() -> Iterator[Place]:
    place = Place()
    yield place
    place.server.close()
    links.remove_namespace(place.name)


def test_get_head_and_post(place: Place) -> None:
    got = place.say(b"GET /latest?x=1 HTTP/1.1\r\nHost: 169.254.169.254\r\n\r\n")
    assert got.startswith(b"HTTP/1.1 200 OK\r\n")
    assert b"Connection: close" in got
    assert got.endswith(b"\r\n\r\nhello")
    head = place.say(b"HEAD /latest HTTP/1.0\r\n\r\n")
    assert b"Content-Length: 5\r\n" in head
    assert head.endswith(b"\r\n\r\n")
    place.say(b"POST http://169.254.169.254/openstack/latest/password HTTP/1.1\r\nContent-Length: 6\r\n\r\nsecret")
    assert [(r["method"], r["path"], r["body"]) for r in place.asked] == [
        ("GET", "/latest?x=1", b""),
        ("HEAD", "/latest", b""),
        ("POST", "/openstack/latest/password", b"secret"),
    ]
    assert {r["address"] for r in place.asked} == {"127.0.0.1"}
    assert {r["network_id"] for r in place.asked} == {"net"}


@pytest.mark.req("C/META-03")
def test_who_asks_is_known_by_its_address_whatever_it_says(place: Place) -> None:
    forged = b"X-Instance-ID: other\r\nX-Tenant-ID: other\r\nX-Forwarded-For: 10.0.0.9\r\nX-Router-ID: other\r\n"
    place.say(b"GET /latest HTTP/1.1\r\n" + forged + b"\r\n")
    place.say(b"GET /latest HTTP/1.1\r\n\r\n")
    assert place.asked[0] == place.asked[1]


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (b"nonsense\r\n\r\n", b"400"),
        (b"GET / HTTP/1.1\r\nno colon\r\n\r\n", b"400"),
        (b"GET / HTTP/1.1\r\nContent-Length: many\r\n\r\n", b"400"),
        (b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n", b"411"),
        (b"POST / HTTP/1.1\r\nContent-Length: 999999\r\n\r\n", b"413"),
        (b"GET / HTTP/1.1\r\nA: " + b"x" * 40000, b"431"),
        (b"GET /boom HTTP/1.1\r\n\r\n", b"500"),
    ],
)
def test_bad_requests_are_refused(place: Place, request_: bytes, status: bytes) -> None:
    answer = place.say(request_)
    assert answer.startswith(b"HTTP/1.1 " + status)
    assert b"secret detail" not in answer


def test_a_slow_guest_is_cut_off_and_blocks_nobody(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metadata, "REQUEST_S", 0.5)
    with links.entered(place.name):
        slow = [socket.create_connection(("127.0.0.1", 80), timeout=8) for _ in range(7)]
    for connection in slow:
        connection.sendall(b"GET / HT")
    assert place.say(b"GET / HTTP/1.1\r\n\r\n").endswith(b"hello")
    for connection in slow:
        with connection:
            assert connection.recv(100).startswith(b"HTTP/1.1 408")


def test_doors_close_and_follow_a_new_namespace(place: Place) -> None:
    place.server.open(place.door)
    links.remove_namespace(place.name)
    links.ensure_namespace(place.name, "nubila test")
    place.server.open(place.door)
    assert place.say(b"GET / HTTP/1.1\r\n\r\n").endswith(b"hello")
    place.server.close_namespace(place.name)
    with pytest.raises(OSError, match="refused"):
        place.say(b"GET / HTTP/1.1\r\n\r\n")
