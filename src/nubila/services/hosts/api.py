"""The host API: what an agent may ask of the control plane. It sees and writes the rows of its own host only.

Reached over the local Unix socket (the file's mode is the authentication) or over mutual TLS (the certificate's common
name is the host). An agent takes work, applies it, settles it; the same queue and rules as every reconciler.
"""

from __future__ import annotations

import ipaddress
import logging
import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
import sqlalchemy as sa

from nubila.core import hosts, pki, work
from nubila.core.call import Call, Reply, Route, StreamReply
from nubila.core.faults import Fault, bad_request, forbidden, not_found
from nubila.core.ports import Capabilities
from nubila.core.service import HostItem
from nubila.core.work import Item, LostLease
from nubila.services.hosts import joining

log = logging.getLogger("nubila.hosts")
LEASE_S = 60.0
BEAT_S = 4.0
AGAIN_MOST_S = 3600.0
REPORT_BYTES, JOIN_BYTES = 16 << 20, 64 << 10
ROLES = ("compute", "network")


def caller(call: Call) -> str:
    """The host that speaks; 404 on listeners that are not for hosts."""
    if call.peer.startswith("host:"):
        name, _, certificate = call.peer[5:].partition("#")
        with call.cloud.store.read() as reader:
            _admit(hosts.get(reader, name), name, certificate)
        return name
    if call.peer == "unix":
        named = call.headers.get("x-nubila-host")
        if named:
            return named
    raise Fault(404, "The resource could not be found.")


def _admit(row: Mapping[str, Any] | None, name: str, certificate: str) -> None:
    if row is None or row["state"] == "removed":
        raise forbidden(f"Host {name} is not (or no longer) part of this cloud.")
    if row["certificate"] != certificate:
        raise forbidden(f"The certificate of host {name} has been replaced.")


def on_host_listener(call: Call) -> None:
    """404 unless the call came over the Unix socket or TLS: the public port has no host API."""
    if call.peer != "unix" and not call.peer.startswith(("host:", "tls:")):
        raise Fault(404, "The resource could not be found.")


def fields(call: Call) -> Mapping[str, Any]:
    """The body as an object. Raises 400."""
    if not isinstance(call.body, dict):
        raise bad_request("The body must be a JSON object.")
    return call.body


def listed(call: Call, name: str) -> list[Any]:
    """A list in the body. Raises 400."""
    found = fields(call).get(name) or []
    if not isinstance(found, list):
        raise bad_request(f"{name} must be a list.")
    return found


def items(call: Call) -> dict[str, HostItem]:
    """All kinds of host items of all wired services."""
    return {kind: item for s in call.cloud.services for kind, item in s.host_items.items()}


def _spec(item: HostItem, call: Call, reader: Any, id: str, host: str) -> Any:
    return msgspec.to_builtins(item.describe(call.cloud, reader, id, host))


class _Hello(msgspec.Struct, kw_only=True):
    roles: list[str]
    tunnel_ip: str
    bridges: dict[str, str]
    capabilities: Capabilities


def _said(body: Mapping[str, Any]) -> _Hello:
    """A hello, checked: other hosts send packets to its address and Placement counts its room. Raises 400."""
    try:
        said = msgspec.convert(body, _Hello)
        address = ipaddress.ip_address(said.tunnel_ip)
        if address.is_unspecified or address.is_multicast or "%" in said.tunnel_ip:
            raise ValueError(f"{said.tunnel_ip} is not one host's address")
    except (msgspec.ValidationError, ValueError) as e:
        raise bad_request(f"hello needs roles, tunnel_ip (an address), bridges and capabilities: {e}") from None
    room = (said.capabilities.vcpus, said.capabilities.ram_mb, said.capabilities.disk_gb)
    if not all(0 <= n < 2**31 for n in room):
        raise bad_request(f"capabilities: vcpus, ram_mb and disk_gb are between 0 and {2**31 - 1}, not {room}.")
    return said


def hello(call: Call) -> Mapping[str, Any]:
    """An agent starts: take in what its host is, free its predecessor's leases, ask for everything once."""
    host, said = caller(call), _said(fields(call))
    roles, tunnel_ip = [r for r in ROLES if r in said.roles], str(ipaddress.ip_address(said.tunnel_ip))
    work.release_shard(call.cloud.store, host)
    with call.cloud.store.write() as tx:
        known = hosts.get(tx, host)
        if known is not None and call.peer != "unix":
            roles = known["roles"]  # a joined host has the roles its token gave it
        row = hosts.report(
            tx, host, roles=roles, tunnel_ip=tunnel_ip, bridges=said.bridges,
            capabilities=msgspec.to_builtins(said.capabilities),
        )  # fmt: skip
        for service in call.cloud.services:
            if service.on_host is not None:
                service.on_host(call.cloud, tx, row)
        _ask_all(call, tx, host)
    return {"cloud": call.cloud.name, "host": host, "id": row["id"], "state": row["state"], "roles": row["roles"]}


def _ask_all(call: Call, tx: Any, host: str) -> None:
    for kind, item in items(call).items():
        for id in item.every(call.cloud, tx, host):
            tx.ask(kind, id, host)
    for row in work_of(tx, host):  # what it still holds of things that are gone
        tx.ask(row["kind"], row["id"], host)


_WORK = sa.select(work.work.c.kind, work.work.c.id).where(work.work.c.shard == sa.bindparam("shard"))


def work_of(reader: Any, host: str) -> list[dict[str, Any]]:
    """Every work row of a host."""
    rows: list[dict[str, Any]] = reader.all(_WORK, {"shard": host})
    return rows


def sweep(call: Call) -> Mapping[str, Any]:
    """Ask for everything of the host once: the full compare that finds drift."""
    host = caller(call)
    _ask_all(call, call.tx, host)
    return {}


def changed(call: Call) -> Mapping[str, Any]:
    """Guests whose power changed by itself, routers whose delegated prefixes did: look at them."""
    host = caller(call)
    for kind in ("guest", "router"):
        told = listed(call, f"{kind}s")
        mine = set(items(call)[kind].every(call.cloud, call.tx, host)) if told else ()
        for id in told:
            if isinstance(id, str) and id in mine:
                call.tx.ask(kind, id, host)
    return {}


async def take(call: Call) -> Mapping[str, Any]:
    """Lease due work of the host, each with its complete desired state; waits up to ``wait_s`` for some.

    ``holding`` is all that the agent has on lease, [kind, id, token] each; whatever else is on lease was given to its
    dead predecessor, or in an answer that was lost, and is due again.
    """
    host = caller(call)
    body = fields(call) if call.body is not None else {}
    try:
        limit = max(1, min(int(body.get("max", 16)), 64))
        deadline = time.monotonic() + max(0.0, min(float(body.get("wait_s", 20.0)), 30.0))
    except (TypeError, ValueError, OverflowError):
        raise bad_request("max and wait_s are numbers.") from None
    known = items(call)
    store = call.cloud.store
    if body.get("holding") is not None:
        work.release_others(store, host, _holding(call))
    assert call.cloud.waiters is not None
    with call.cloud.waiters.listening(host) as nap:
        while True:
            _beat(call, host)
            taken = work.take(store, host, limit, LEASE_S)
            if taken:
                break
            left = deadline - time.monotonic()
            if left <= 0:
                return {"items": []}
            due = work.next_due(store, host)
            await nap(max(0.0, min(left, 1.0, due if due is not None else 1.0)))
    out = []
    with store.read() as reader:
        for item in taken:
            kind = known.get(item.kind)
            out.append({
                "kind": item.kind, "id": item.id, "gen": item.gen, "token": item.token, "tries": item.tries,
                "order": kind.order if kind else 0,
                "spec": _spec(kind, call, reader, item.id, host) if kind else None,
            })  # fmt: skip
    return {"items": out}


def _holding(call: Call) -> list[tuple[str, str, int]]:
    try:
        return [(str(kind), str(id), int(token)) for kind, id, token in listed(call, "holding")]
    except (TypeError, ValueError, OverflowError):
        raise bad_request("holding is a list of [kind, id, token].") from None


_BEAT = sa.update(hosts.TABLE).where(hosts.TABLE.c.name == sa.bindparam("b_name")).values(seen=sa.bindparam("b_seen"))


def _beat(call: Call, host: str) -> None:
    """Note that the host lives; one that was removed while it waited gets nothing more."""
    with call.cloud.store.read() as reader:
        row = hosts.get(reader, host)
    if call.peer != "unix":
        _admit(row, host, call.peer.partition("#")[2])
    if row is None:
        raise Fault(409, f"Host {host} has not said hello.")
    if time.time() - row["seen"] > BEAT_S:
        with call.cloud.store.write() as tx:
            tx.execute(_BEAT, {"b_name": host, "b_seen": time.time()})


def settle(call: Call) -> Mapping[str, Any]:
    """Take in outcomes: observed state and the end of each lease. A lost lease is told, nothing is written."""
    host, known = caller(call), items(call)
    results = []
    outcomes = [_outcome(one) for one in listed(call, "items")]
    for one in outcomes:
        item = Item(one.kind, one.id, host, one.gen, one.token, one.tries)
        kind = known.get(item.kind)
        try:
            call.cloud.store.transact(lambda tx, k=kind, o=one: _settle(call, tx, k, o, host), item=item)  # type: ignore[misc]
            results.append("ok")
        except LostLease:
            results.append("lost")
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as e:
            log.warning("%s reports %s %s in an unknown form", host, one.kind, one.id, exc_info=True)
            raise bad_request(f"What was observed of {one.kind} {one.id[:64]} has an unknown form: {e}") from None
    return {"results": results}


class _Outcome(msgspec.Struct, kw_only=True):
    kind: str
    id: str
    gen: int
    token: int
    tries: int = 0
    observed: dict[str, Any] | None = None
    note: str | None = None
    again_s: float | None = None
    failed: bool = False
    gone: bool = False


def _outcome(one: Any) -> _Outcome:
    try:
        found = msgspec.convert(one, _Outcome)
    except msgspec.ValidationError as e:
        raise bad_request(f"An item needs kind, id, gen and token: {e}") from None
    if found.again_s is not None and not (math.isfinite(found.again_s) and 0 <= found.again_s <= AGAIN_MOST_S):
        raise bad_request(f"again_s is between 0 and {AGAIN_MOST_S:g} seconds, not {found.again_s}.")
    if not all(0 <= n < 2**63 for n in (found.gen, found.token, found.tries)):
        raise bad_request("gen, token and tries are whole numbers from 0 on.")
    return found


def _settle(call: Call, tx: Any, kind: HostItem | None, one: _Outcome, host: str) -> None:
    note = one.note or ""
    if kind is not None and one.observed is not None:
        note = kind.observe(call.cloud, tx, one.id, host, one.observed) or note
    if one.gone:
        tx.drop()
    else:
        tx.settle(note[:250], again=one.again_s, failed=one.failed)


def every(call: Call) -> Mapping[str, Any]:
    """The ids of everything that belongs on the host, by kind: what prune may keep."""
    host = caller(call)
    return {"kinds": {kind: item.every(call.cloud, call.tx, host) for kind, item in items(call).items()}}


def image(call: Call) -> StreamReply:
    """The bytes of an image that a guest of this host boots from."""
    from nubila.services.image import lookup as images

    host, id = caller(call), call.params["id"]
    if call.peer != "unix":
        _only_needed(call, host, id)
    path: Path = images.path_of(call.cloud, id)
    if not path.exists():
        raise not_found("image", id)

    def chunks() -> Any:
        with path.open("rb") as f:
            while data := f.read(1 << 20):
                yield data

    return StreamReply(chunks(), path.stat().st_size)


def _only_needed(call: Call, host: str, image_id: str) -> None:
    """A joined host reads only images that a guest of its own boots from. Raises 404."""
    guest = items(call)["guest"]
    with call.cloud.store.read() as reader:
        for id in guest.every(call.cloud, reader, host):
            spec = guest.describe(call.cloud, reader, id, host)
            if spec is not None and any(disk.image_id == image_id for disk in spec.disks):
                return
    raise not_found("image", image_id)


def _only_here(call: Call, host: str, body: Mapping[str, Any]) -> None:
    """A joined host speaks only for guests on networks and routers that it has. Raises 404."""
    for kind in ("network", "router"):
        id = body.get(f"{kind}_id")
        if id is not None and items(call)[kind].describe(call.cloud, call.tx, str(id), host) is None:
            raise not_found(kind, str(id))


def metadata(call: Call) -> Mapping[str, Any]:
    """Answer a guest's metadata request that arrived on this host."""
    import base64

    from nubila.services.compute import metadata as guests

    host, b = caller(call), fields(call)
    if call.peer != "unix":
        _only_here(call, host, b)
    try:
        address, method, path = str(b["address"]), str(b["method"]), str(b["path"])
        sent = base64.b64decode(b.get("body") or "")
    except (KeyError, TypeError, ValueError) as e:
        raise bad_request(f"metadata needs address, method, path and body in base64: {e}") from None
    status, kind, data = guests.answer(
        call.cloud, call.tx, network_id=b.get("network_id"), router_id=b.get("router_id"), address=address,
        method=method, path=path, body=sent,
    )  # fmt: skip
    data = data.encode() if isinstance(data, str) else data
    return {"status": status, "content_type": kind, "body": base64.b64encode(data).decode()}


def routers(call: Call) -> Mapping[str, Any]:
    """A host claims, renews or gives back the leases of its highly available routers, all at once."""
    from nubila.services.network import ha_lease

    host, asked = caller(call), fields(call).get("routers")
    if not isinstance(asked, dict):
        raise bad_request("routers must be an object of claims by router id.")
    return {"routers": call.cloud.store.transact(lambda tx: ha_lease.claims(call.cloud, tx, host, asked))}


def authority(call: Call) -> pki.Authority:
    """The cloud's certificate authority."""
    return pki.Authority(call.cloud.state / "keys" / "pki", call.cloud.name)


def ca(call: Call) -> Reply:
    """The authority's certificate: for whoever can reach the listener."""
    on_host_listener(call)
    return Reply(authority(call).pem, content_type="application/x-pem-file")


def join(call: Call) -> Mapping[str, Any]:
    """A new machine shows its token and gets its certificate."""
    on_host_listener(call)
    b = call.body if isinstance(call.body, dict) else {}
    if not all(isinstance(b.get(k), str) for k in ("token", "host", "csr")):
        raise bad_request("join needs token, host and csr, each a string.")
    secret, _, print_ = b["token"].partition(".")
    ours = authority(call)
    if print_ != ours.fingerprint:
        raise forbidden("This join token belongs to another cloud.")
    certificate, roles = joining.join(call.tx, ours, secret=secret, host=b["host"], csr=b["csr"])
    return {"certificate": certificate, "ca": ours.pem.decode(), "cloud": call.cloud.name, "roles": roles}


def _route(method: str, path: str, handler: Any, doc: str, **options: Any) -> Route:
    options.setdefault("max_body", REPORT_BYTES)
    return Route(method=method, path=path, handler=handler, doc=doc, auth=False, **options)


ROUTES = (
    _route("POST", "/hello", hello, "An agent starts.", tx=""),
    _route("POST", "/take", take, "Lease due work.", tx=""),
    _route("POST", "/settle", settle, "Report outcomes.", tx=""),
    _route("POST", "/sweep", sweep, "Ask for everything once.", tx="write"),
    _route("POST", "/changed", changed, "Guests or routers changed by themselves.", tx="write"),
    _route("GET", "/every", every, "Ids of everything that belongs on the host."),
    _route("GET", "/images/{id}", image, "An image's bytes.", tx=""),
    _route("POST", "/metadata", metadata, "Answer a guest's metadata request.", tx="write"),
    _route("POST", "/routers", routers, "Claim, renew or give back leases of routers.", tx=""),
    _route("GET", "/ca", ca, "The authority's certificate.", tx="", max_body=JOIN_BYTES),
    _route("POST", "/join", join, "Turn a token into a certificate.", tx="write", max_body=JOIN_BYTES),
)
