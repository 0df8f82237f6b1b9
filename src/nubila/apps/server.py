"""The API server process: all services on one port, the host API on a Unix socket and, when asked, on mutual TLS.

The first server also runs the controller in a thread unless the settings ask for controller processes of their own.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import hashlib
import logging
import os
import signal
import socket
import ssl
import threading
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from nubila.apps import logs, reload, tls
from nubila.apps.controller import controller
from nubila.apps.first import auth_url, write_clouds
from nubila.apps.supervisor import listen
from nubila.apps.waiters import Waiters
from nubila.apps.wiring import first_start, open_cloud
from nubila.core import pki, work
from nubila.core.cloud import Cloud
from nubila.core.config import Settings
from nubila.edge.access import AccessLog
from nubila.edge.app import Edge
from nubila.services.identity.auth import authenticate

log = logging.getLogger("nubila.server")
CLASSIC_PORTS = {8774: "/compute", 8775: "/metadata", 8778: "/placement", 9292: "/image", 9696: "/network"}


class _HostProtocol(HttpToolsProtocol):
    """HTTP over TLS that tells the application whose certificate the client showed."""

    nubila_peer = "tls:anonymous"

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        tls = transport.get_extra_info("ssl_object")
        der = tls.getpeercert(binary_form=True) if tls is not None else None
        if der:
            subject = dict(part[0] for part in tls.getpeercert()["subject"])
            self.nubila_peer = f"host:{subject['commonName']}#{hashlib.sha256(der).hexdigest()}"

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self.scope["nubila.peer"] = self.nubila_peer  # type: ignore[typeddict-unknown-key]


App = Callable[[Any, Any, Any], Awaitable[None]]


STRANGERS = (b"/host/ca", b"/host/join")
"""What a machine without a certificate may ask, so that it can get one."""

LOCAL = (b"/healthz",)
"""What the local socket answers besides /host: how things are, for `nubila status` where the APIs speak TLS."""


def _first_part(scope: Any) -> str:
    """The first part of the path, read as the edge reads it."""
    raw: bytes = scope.get("raw_path") or scope["path"].encode()
    return raw.partition(b"?")[0].lstrip(b"/").partition(b"/")[0].decode("latin-1")


async def _not_here(send: Any) -> None:
    await send({"type": "http.response.start", "status": 404, "headers": [(b"content-length", b"0")]})
    await send({"type": "http.response.body", "body": b""})


def only_hosts(app: App, peer: str | None) -> App:
    """The application as the host listeners show it: nothing but /host; to strangers, joining alone."""

    async def hosts(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            if peer is not None:
                scope["nubila.peer"] = peer
            stranger = not scope.get("nubila.peer", "").startswith(("unix", "host:"))
            if peer == "unix" and scope.get("raw_path") in LOCAL:
                scope.pop("nubila.peer")
                await app(scope, receive, send)
                return
            if _first_part(scope) != "host" or (stranger and scope.get("raw_path") not in STRANGERS):
                await _not_here(send)
                return
        await app(scope, receive, send)

    return hosts


def not_for_hosts(app: App) -> App:
    """The application as everybody sees it: without the host API."""

    async def public(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            scope.pop("nubila.peer", None)
            if _first_part(scope) == "host":
                await _not_here(send)
                return
        await app(scope, receive, send)

    return public


def _unix(path: Path) -> socket.socket:
    """The host API's local socket, 0600, made beside and moved into place so that it is never half there."""
    temp = path.with_name(f"{path.name}.{os.getpid()}")
    temp.unlink(missing_ok=True)
    s = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        s.bind(f"/proc/self/fd/{directory}/{temp.name}")
    finally:
        os.close(directory)
    temp.chmod(0o600)
    temp.rename(path)
    s.listen(128)
    s.setblocking(False)
    return s


def _config(app: App, **options: Any) -> uvicorn.Config:
    return uvicorn.Config(
        app, http=options.pop("http", "httptools"), loop="uvloop", ws="none", log_config=None, access_log=False,
        server_header=False, proxy_headers=False,  # else X-Forwarded-For says who the peer is
        timeout_keep_alive=75, h11_max_incomplete_event_size=1 << 16, limit_concurrency=None,
        timeout_graceful_shutdown=3, **options,
    )  # fmt: skip


class _Server(uvicorn.Server):
    @contextlib.contextmanager
    def capture_signals(self) -> Any:  # the process handles signals once for all its servers
        yield


def edge_of(cloud: Cloud) -> Edge:
    """The edge of a cloud with its access log."""
    return Edge(cloud, authenticate, access_log=AccessLog(cloud.state / "log" / "access.log"))


async def serve(
    cloud: Cloud, sockets: dict[str, socket.socket], stop: asyncio.Event, *, hosts: bool = True,
    public: tls.Context | None = None, edge: Edge | None = None,
) -> None:  # fmt: skip
    """Serve until ``stop``. ``sockets``: "main" and classic prefixes to listening sockets; ``public``: their TLS."""
    edge = edge or edge_of(cloud)
    waiters = Waiters()
    nudger = cloud.memory["nudger"]
    waiters.start(nudger, cloud.state / "run")
    cloud.waiters = waiters
    servers: list[tuple[uvicorn.Server, socket.socket]] = []
    for name, sock in sockets.items():
        app: App = edge if name in ("main", "/identity") else edge.on_port(name)  # Identity is at the root anyway
        how: dict[str, Any] = {"lifespan": "on" if name == "main" else "off"}
        if public is not None:
            how |= {"http": tls.ClientCertificates, "ssl_context_factory": lambda *_: public}
        servers.append((_Server(_config(not_for_hosts(app), **how)), sock))
    if hosts:
        local = _Server(_config(only_hosts(edge, "unix"), lifespan="off"))
        servers.append((local, _unix(cloud.state / "run" / "host.sock")))
        if cloud.settings.host_listen:
            servers.append((_tls_server(cloud, edge), listen(cloud.settings.host_listen)))
    tasks = [asyncio.create_task(server.serve(sockets=[sock])) for server, sock in servers]
    stopping = asyncio.create_task(stop.wait())
    await asyncio.wait([*tasks, stopping], return_when=asyncio.FIRST_COMPLETED)
    for server, _ in servers:
        server.should_exit = True
    await asyncio.gather(*tasks, return_exceptions=True)
    stopping.cancel()


def _tls_server(cloud: Cloud, edge: Edge) -> uvicorn.Server:
    authority = pki.Authority(cloud.state / "keys" / "pki", cloud.name)
    certificate, key = authority.listener(tls.listener_names(cloud.settings.host_listen))
    config = _config(
        only_hosts(edge, None), lifespan="off", http=_HostProtocol, ssl_certfile=str(certificate),
        ssl_keyfile=str(key), ssl_ca_certs=str(authority.directory / "ca.pem"), ssl_cert_reqs=ssl.CERT_OPTIONAL,
    )  # fmt: skip
    return _Server(config)


def run(
    state: Path, settings: Settings, *, fds: dict[str, int], with_controller: bool, hosts: bool, first: bool
) -> None:
    """The process: serve on inherited sockets until SIGTERM. ``first`` makes what a new cloud begins with."""
    secure = tls.context(settings, state)
    public = tls.Context(secure) if secure is not None else None
    cloud = open_cloud(state, settings)
    cloud.store.calm_s = work.CALM_S
    if first:
        url = auth_url(settings)
        ca = tls.cacert(settings, state)
        if first_start(cloud, keep=lambda made: write_clouds(state, url, made, settings.region, ca)) is None:
            write_clouds(state, url, None, settings.region, ca)
    ended = threading.Event()
    workers: list[threading.Thread] = []
    if with_controller:
        loop_of, wake = controller(cloud)
        thread = threading.Thread(target=loop_of, args=(ended,), name="controller", daemon=True)
        thread.start()
        workers.append(thread)

    async def main() -> None:
        stop = asyncio.Event()
        running = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            running.add_signal_handler(number, stop.set)
        edge = edge_of(cloud)

        def reopen() -> None:
            logs.reopen()
            edge.access.reopen()

        def again() -> None:
            reopen()
            reload.settings(cloud, public)

        running.add_signal_handler(signal.SIGHUP, again)
        running.add_signal_handler(signal.SIGUSR1, reopen)
        logs.listen()
        sockets = {name: socket.socket(fileno=fd) for name, fd in fds.items()}
        await serve(cloud, sockets, stop, hosts=hosts, public=public, edge=edge)

    import uvloop

    gc.collect()
    gc.freeze()  # what is loaded now stays: keep the collector away from it
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main())
    ended.set()
    if with_controller:
        wake()
        workers[0].join(5)
    cloud.store.close()
