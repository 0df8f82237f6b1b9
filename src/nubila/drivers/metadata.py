"""The metadata address inside routers' and DHCP servers' namespaces.

Listening sockets are opened inside each namespace and served here, so a guest's own address (not a header it could
forge) and the namespace it came through say who asks. One thread accepts, a small pool answers; a guest may hold a
few connections and five seconds, no more. One request a connection. Nothing is kept: after a restart the sockets are
opened again.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import selectors
import socket
import threading
import time
from collections import Counter
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from http import HTTPStatus

from msgspec import Struct

from nubila.core.ports import MetadataAnswer, TryAgain
from nubila.drivers import links
from nubila.drivers.dhcp import METADATA_ADDRESS, METADATA_ADDRESS_6
from nubila.drivers.nft import METADATA_PORT

log = logging.getLogger("nubila.metadata")

HEAD_BYTES = 16 * 1024
BODY_BYTES = 64 * 1024
REQUEST_S = 5.0
_WORKERS = 16
_PER_GUEST = 8
_IP_FREEBIND, _IPV6_FREEBIND = 15, 78
_PLAIN = "text/plain; charset=UTF-8"


class Door(Struct, frozen=True, kw_only=True):
    """One listening place and whom it speaks for."""

    namespace: str
    address: str
    port: int
    network_id: str | None = None
    router_id: str | None = None
    device: str = ""  # for a link-local IPv6 address: where


def dhcp_doors(namespace: str, device: str, network_id: str) -> list[Door]:
    """Where a DHCP server's namespace answers, IPv4 and IPv6."""
    return [
        Door(namespace=namespace, address=METADATA_ADDRESS, port=80, network_id=network_id),
        Door(namespace=namespace, address=METADATA_ADDRESS_6, port=80, network_id=network_id, device=device),
    ]


def router_doors(namespace: str, router_id: str, devices: Iterable[tuple[str, str]]) -> list[Door]:
    """Where a router answers: IPv4 by redirection, IPv6 on each (device, network id) inside."""
    doors = [Door(namespace=namespace, address="0.0.0.0", port=METADATA_PORT, router_id=router_id)]
    return doors + [
        Door(namespace=namespace, address=METADATA_ADDRESS_6, port=80, network_id=network, device=device)
        for device, network in devices
    ]


class _Refusal(Exception):
    def __init__(self, status: int) -> None:
        super().__init__(status)
        self.status = status


class MetadataServer:
    """Serves every door with one answer function."""

    def __init__(self, answer: MetadataAnswer) -> None:
        self._answer = answer
        self._lock = threading.Lock()
        self._doors: dict[Door, tuple[socket.socket, tuple[int, int]]] = {}  # with inode and index
        self._busy: Counter[tuple[Door, str]] = Counter()
        self._selector = selectors.DefaultSelector()
        self._wake, self._waker = socket.socketpair()
        self._wake.setblocking(False)
        self._selector.register(self._wake, selectors.EVENT_READ, None)
        self._pool = ThreadPoolExecutor(_WORKERS, thread_name_prefix="metadata")
        self._closing = False
        self._thread = threading.Thread(target=self._accept, name="metadata", daemon=True)
        self._thread.start()

    def open(self, door: Door) -> None:
        """Listen there; a namespace or device made anew under the same name is entered anew."""
        inode = os.stat(links.NETNS / door.namespace).st_ino
        with links.entered(door.namespace):
            index = _index(door.device)
            with self._lock:
                present = self._doors.get(door)
            if present is not None and present[1] == (inode, index):
                return
            self._close(door)
            family = socket.AF_INET6 if ":" in door.address else socket.AF_INET
            listener = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                listener.setsockopt(socket.IPPROTO_IPV6, _IPV6_FREEBIND, 1)
                listener.bind((door.address, door.port, 0, index))
            else:
                listener.setsockopt(socket.IPPROTO_IP, _IP_FREEBIND, 1)
                listener.bind((door.address, door.port))
            listener.listen(64)
        except OSError as failure:
            listener.close()
            raise TryAgain(f"Cannot listen for metadata in {door.namespace}: {failure}.") from failure
        with self._lock:
            self._doors[door] = (listener, (inode, index))
            self._selector.register(listener, selectors.EVENT_READ, door)
        self._nudge()

    def keep(self, namespace: str, doors: Iterable[Door]) -> None:
        """Have exactly these doors in a namespace. Raises TryAgain when one cannot be opened."""
        wanted = set(doors)
        with self._lock:
            gone = [door for door in self._doors if door.namespace == namespace and door not in wanted]
        for door in gone:
            self._close(door)
        for door in sorted(wanted, key=lambda door: (door.address, door.device)):
            self.open(door)

    def close_namespace(self, namespace: str) -> None:
        """Stop listening in a namespace; absent is success."""
        with self._lock:
            doors = [door for door in self._doors if door.namespace == namespace]
        for door in doors:
            self._close(door)

    def close(self) -> None:
        """Stop listening everywhere and end the threads."""
        self._closing = True
        self._nudge()
        self._thread.join(timeout=5)
        with self._lock:
            doors = list(self._doors)
        for door in doors:
            self._close(door)
        self._pool.shutdown(wait=True, cancel_futures=True)
        self._selector.close()
        self._wake.close()
        self._waker.close()

    def _close(self, door: Door) -> None:
        with self._lock:
            present = self._doors.pop(door, None)
            if present is None:
                return
            with contextlib.suppress(KeyError, ValueError):
                self._selector.unregister(present[0])
            present[0].close()
        self._nudge()

    def _nudge(self) -> None:
        with contextlib.suppress(OSError):
            self._waker.send(b"x")

    # --- one connection

    def _accept(self) -> None:
        while not self._closing:
            for key, _ in self._selector.select():
                if key.data is None:
                    with contextlib.suppress(OSError):
                        self._wake.recv(4096)
                    continue
                try:
                    connection, peer = key.fileobj.accept()  # type: ignore[union-attr]
                except OSError:
                    continue
                self._admit(key.data, connection, peer[0].partition("%")[0])

    def _admit(self, door: Door, connection: socket.socket, address: str) -> None:
        with self._lock:
            if self._busy[door, address] >= _PER_GUEST:
                connection.close()
                return
            self._busy[door, address] += 1
        try:
            self._pool.submit(self._serve, door, connection, address)
        except RuntimeError:  # the pool is shutting down
            connection.close()

    def _serve(self, door: Door, connection: socket.socket, address: str) -> None:
        try:
            with connection:
                self._respond(door, connection, address)
        except OSError:
            pass  # the guest went away
        finally:
            with self._lock:
                self._busy[door, address] -= 1
                if not self._busy[door, address]:
                    del self._busy[door, address]

    def _respond(self, door: Door, connection: socket.socket, address: str) -> None:
        method = ""
        try:
            method, path, body = _read_request(connection)
            status, kind, content = self._answer(
                network_id=door.network_id,
                router_id=door.router_id,
                address=address,
                method=method,
                path=path,
                body=body,
            )
        except _Refusal as refusal:
            status, kind, content = refusal.status, _PLAIN, _phrase(refusal.status).encode()
        except Exception:
            log.exception("metadata for %s in %s", address, door.namespace)
            status, kind, content = 500, _PLAIN, b"The metadata service failed; try again."
        head = (
            f"HTTP/1.1 {status} {_phrase(status)}\r\nContent-Type: {kind}\r\n"
            f"Content-Length: {len(content)}\r\nConnection: close\r\n\r\n"
        )
        connection.settimeout(REQUEST_S)
        connection.sendall(head.encode("latin-1", "replace") + (b"" if method == "HEAD" else content))
        with contextlib.suppress(OSError):
            connection.shutdown(socket.SHUT_WR)


def _index(device: str) -> int:
    try:
        return socket.if_nametoindex(device) if device else 0
    except OSError:
        raise TryAgain(f"The network device {device} does not exist.") from None


def _phrase(status: int) -> str:
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return "Unknown"


def _read_request(connection: socket.socket) -> tuple[str, str, bytes]:
    """Method, raw path with query, and body of the one request (RFC 9112), within limits of size and time."""
    deadline = time.monotonic() + REQUEST_S
    data = b""
    while b"\r\n\r\n" not in data:
        if len(data) > HEAD_BYTES:
            raise _Refusal(431)
        data += _more(connection, deadline)
    head, _, body = data.partition(b"\r\n\r\n")
    lines = head.decode("latin-1").split("\r\n")
    match = re.fullmatch(r"([A-Z]{1,16}) (\S+) HTTP/1\.[01]", lines[0])
    if match is None:
        raise _Refusal(400)
    method, target = match[1], match[2]
    path = re.sub(r"^https?://[^/]*", "", target) or "/"
    if not path.startswith("/"):
        raise _Refusal(400)
    headers = {}
    for line in lines[1:]:
        name, colon, value = line.partition(":")
        if not colon:
            raise _Refusal(400)
        headers[name.strip().lower()] = value.strip()
    if "transfer-encoding" in headers:
        raise _Refusal(411)
    length = headers.get("content-length", "0")
    if not length.isdigit() or len(length) > 9:
        raise _Refusal(400)
    if int(length) > BODY_BYTES:
        raise _Refusal(413)
    if headers.get("expect", "").lower() == "100-continue" and len(body) < int(length):
        connection.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
    while len(body) < int(length):
        body += _more(connection, deadline)
    return method, path, body[: int(length)]


def _more(connection: socket.socket, deadline: float) -> bytes:
    left = deadline - time.monotonic()
    if left <= 0:
        raise _Refusal(408)
    connection.settimeout(left)
    try:
        chunk = connection.recv(65536)
    except TimeoutError:
        raise _Refusal(408) from None
    if not chunk:
        raise ConnectionError("closed by the guest")
    return chunk
