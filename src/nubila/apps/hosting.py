"""The machines of a cloud, from the operator's side: tokens, list, drain, remove, join."""

from __future__ import annotations

import http.client
import json
import re
import socket
import ssl
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, cast
from urllib.parse import urlsplit

import msgspec

from nubila.apps import first, supervisor
from nubila.apps.host import HostConfig, choose_gear, hostname
from nubila.apps.lifecycle import Cannot, joined_to, plan_agent
from nubila.core import pki

LEAVE_S = 30.0
"""How long ``remove`` waits for routers and DHCP to leave a host."""


def _cloud(state: Path) -> Any:
    from nubila.apps import wiring

    if not (state / "run" / "options.json").exists():
        raise Cannot(f"there is no cloud in {state}; bring one up with `nubila up`, or name it with --state")
    return wiring.open_cloud(state, wiring.settings(state, first.overrides(state)))


def create_token(state: Path, *, host: str | None, roles: list[str], ttl_s: float) -> str:
    """A join token."""
    from nubila.services.hosts import joining

    cloud = _cloud(state)
    if not cloud.settings.host_listen:
        raise Cannot("this cloud has no listener for other hosts; bring it up with --host-listen ADDR:PORT")
    authority = pki.Authority(state / "keys" / "pki", cloud.name)
    with cloud.store.write() as tx:
        return joining.make_token(tx, authority, host=host, roles=roles, ttl_s=ttl_s)


def listing(state: Path) -> list[dict[str, Any]]:
    """All hosts."""
    from nubila.core import hosts, work

    cloud = _cloud(state)
    with cloud.store.read() as reader:
        found = hosts.every(reader)
        items = cloud.service("compute").host_items["guest"]
        guests = {h["name"]: len(items.every(cloud, reader, h["name"])) for h in found}
    debts: dict[str, int] = {}
    for debt in work.pending(cloud.store):
        debts[debt["shard"]] = debts.get(debt["shard"], 0) + 1
    return [
        {
            "name": h["name"], "alive": h["alive"], "state": h["state"], "roles": h["roles"],
            "tunnel_ip": h["tunnel_ip"], "accel": h["capabilities"].get("accel"), "guests": guests[h["name"]],
            "work": debts.get(h["name"], 0),
        }
        for h in found
    ]  # fmt: skip


def table(found: list[dict[str, Any]]) -> str:
    """The list for people."""
    lines = [f"{'name':20} {'alive':6} {'state':10} {'roles':16} {'tunnel':16} {'accel':10} {'guests':>6} {'work':>5}"]
    lines += [
        f"{h['name']:20} {'yes' if h['alive'] else 'no':6} {h['state']:10} {','.join(h['roles']):16} "
        f"{h['tunnel_ip']:16} {h['accel'] or '':10} {h['guests']:6} {h['work']:5}"
        for h in found
    ]
    return "\n".join(lines)


def _set_state(state: Path, name: str, value: str, reason: str | None) -> Any:
    import sqlalchemy as sa

    from nubila.core import hosts

    cloud = _cloud(state)
    with cloud.store.write() as tx:
        if hosts.get(tx, name) is None:
            raise Cannot(f"there is no host {name}; `nubila host list` shows them")
        tx.execute(sa.update(hosts.TABLE).where(hosts.TABLE.c.name == name).values(state=value, disabled_reason=reason))
        row = hosts.get(tx, name)
        assert row is not None
        for service in cloud.services:
            if service.on_host is not None:
                service.on_host(cloud, tx, row)
    return cloud


def drain(state: Path, name: str) -> str:
    """Place nothing new on the host; routers and DHCP move to another."""
    cloud = _set_state(state, name, "draining", "drained by the operator")
    with cloud.store.read() as reader:
        left = cloud.service("compute").host_items["guest"].every(cloud, reader, name)
    rest = f"{len(left)} guests stay on it until they are deleted" if left else "no guest is left on it"
    return f"host {name} takes nothing new; routers and DHCP move to other hosts; {rest}"


def enable(state: Path, name: str) -> str:
    """Let it take new things again."""
    _set_state(state, name, "enabled", None)
    return f"host {name} is enabled"


def remove(state: Path, name: str, *, force: bool, patience_s: float = LEAVE_S) -> str:
    """Forget the host, once nothing is left on it. Raises Cannot."""
    cloud = _cloud(state)
    with cloud.store.read() as reader:
        left = cloud.service("compute").host_items["guest"].every(cloud, reader, name)
    if left and not force:
        raise Cannot(f"{len(left)} guests are still on {name}; delete them first, or use --force to give them up")
    if not force:
        _set_state(state, name, "draining", "removed by the operator")
        deadline = time.monotonic() + patience_s
        while holds := _holds(cloud, name):
            if time.monotonic() > deadline:
                raise Cannot(f"{name} still has {holds}; it stays drained: try again later, or use --force")
            time.sleep(0.1)
    _set_state(state, name, "removed", "removed by the operator")
    return f"host {name} is removed and its certificate no longer accepted; `nubila destroy` there cleans it up"


def _holds(cloud: Any, name: str) -> str:
    """What other hosts should have taken over from a drained host, in words; "" when that is done."""
    from nubila.core import hosts, work
    from nubila.services.network import placing

    with cloud.store.read() as reader:
        routers, networks = placing.served_by(reader, name)
        row = hosts.get(reader, name)
    if routers or networks:
        return f"{len(routers)} routers and DHCP for {len(networks)} networks, which no other network host takes"
    owed = [d for d in work.pending(cloud.store) if d["shard"] == name] if row and row["alive"] else []
    return f"{len(owed)} things to take away ({owed[0]['kind']} {owed[0]['id']}: {owed[0]['note']})" if owed else ""


# --- joining ----------------------------------------------------------------------------------------------------------


def _request(context: ssl.SSLContext, url: str, method: str, path: str, body: Any = None) -> tuple[int, bytes]:
    parts = urlsplit(url)
    connection = http.client.HTTPSConnection(parts.hostname or "", parts.port or 5443, timeout=15, context=context)
    data = None if body is None else json.dumps(body)
    try:
        connection.request(method, path, data, {"Content-Type": "application/json"} if data else {})
        answer = connection.getresponse()
        return answer.status, answer.read()
    except OSError as e:
        raise Cannot(f"cannot reach {url}: {e}") from None
    finally:
        connection.close()


def _check_join(state: Path, url: str, host: str) -> tuple[str, int]:
    """Address and port of the controller; Cannot when this machine can not join at all."""
    parts = urlsplit(url)
    try:
        port = parts.port or 5443
    except ValueError:
        port = 0
    if parts.scheme != "https" or not parts.hostname or not port:
        raise Cannot(f"URL must be https://controller:port, not {url}")
    if not re.fullmatch(r"[A-Za-z0-9]([A-Za-z0-9.-]{0,61}[A-Za-z0-9])?", host):
        raise Cannot(f"'{host}' is not a host name; choose another with --host")
    if supervisor.running(state):
        raise Cannot(f"Nubila runs in {state} already; stop it with `nubila down`, or choose another --state")
    mine = joined_to(state)
    if mine is None and (state / "run" / "options.json").exists():
        raise Cannot(f"{state} holds a cloud of its own; choose another --state directory to join with")
    if mine is not None and mine.host != host:
        raise Cannot(f"{state} belongs to host {mine.host}; join again by that name, or choose another --state")
    return parts.hostname, port


def _get_certificate(context: ssl.SSLContext, url: str, body: dict[str, Any]) -> dict[str, Any]:
    status, data = _request(context, url, "POST", "/host/join", body)
    try:
        answer: dict[str, Any] = json.loads(data)
    except ValueError:
        raise Cannot(f"{url} answered HTTP {status} and no JSON; is it the --host-listen address?") from None
    if status != 200:
        raise Cannot(answer.get("error", {}).get("message", f"the cloud refused: HTTP {status}"))
    return answer


def join(
    state: Path,
    url: str,
    token: str,
    *,
    name: str | None,
    gear: str,
    tunnel_ip: str,
    hypervisor: str | None = None,
    switch: str = "openvswitch",
    physical: Sequence[str] = (),
) -> str:
    """Get a certificate for this machine and write its agent's configuration. Raises Cannot; then nothing is changed.

    ``hypervisor``: "simulated" for guests that are simulated on real networks. ``switch``: openvswitch or linuxbridge.
    ``physical``: "NETWORK=BRIDGE" (Open vSwitch) or "NETWORK=CARD" (Linux bridge) for each physical network.
    """
    host = name or hostname()
    wrong = next((one for one in physical if not re.fullmatch(r"[^=\s]{1,64}=[^=\s/]{1,15}", one)), None)
    if wrong is not None:
        raise Cannot(f"--physical {wrong}: write NETWORK=DEVICE, e.g. physnet1=eth1")
    address, port = _check_join(state, url, host)
    try:
        chosen = choose_gear(gear)
    except ValueError as e:
        raise Cannot(str(e)) from None
    blind = ssl.create_default_context()
    blind.check_hostname, blind.verify_mode = False, ssl.CERT_NONE  # only to fetch the CA, checked against the token
    status, ca = _request(blind, url, "GET", "/host/ca")
    try:
        matches = status == 200 and pki.fingerprint(ca) == token.strip().partition(".")[2]
    except ValueError:
        matches = False
    if not matches:
        raise Cannot(f"{url} is not the cloud this token was made for (its authority's fingerprint differs)")
    key = pki.new_key()
    trusted = ssl.create_default_context(cadata=ca.decode())
    trusted.check_hostname = False  # the authority is this cloud's own: what it signed for servers is the controller
    body = {"token": token.strip(), "host": host, "csr": pki.request(key, host).decode()}
    answer = _get_certificate(trusted, url, body)
    root = state / "hosts" / host
    root.mkdir(mode=0o700, parents=True, exist_ok=True)
    for part in ("run", "log"):
        (state / part).mkdir(mode=0o700, exist_ok=True)
    pki.private_write(root / "host.key", pki.key_pem(key))
    pki.private_write(root / "host.pem", answer["certificate"].encode())
    pki.private_write(root / "ca.pem", answer["ca"].encode())
    if not tunnel_ip:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
            s.connect((address, port))
            tunnel_ip = s.getsockname()[0]
    cloud = answer["cloud"]
    usual = {"physnet1": "br-ex" if cloud == "nubila" else f"br-ex-{cloud}"[:15]}
    bridges = dict(one.split("=", 1) for one in physical) or usual
    config = HostConfig(
        host=host, cloud=cloud, gear=chosen.name, url=url, roles=answer["roles"], tunnel_ip=tunnel_ip,
        bridges=bridges if "network" in answer["roles"] or physical else {},
        switch=cast(Literal["openvswitch", "linuxbridge"], switch),  # the command takes no other word
        certificate=str(root / "host.pem"), key=str(root / "host.key"), ca=str(root / "ca.pem"),
        hypervisor=hypervisor or "",
    )  # fmt: skip
    first.write_private(root / "agent.json", msgspec.json.encode(config).decode())
    plan_agent(state)
    return f"joined cloud {cloud} as {host}; gear {chosen.name}: {chosen.why}"
