"""The machines of a cloud, from the operator's side: tokens, list, drain, remove, join."""

from __future__ import annotations

import http.client
import json
import os
import socket
import ssl
import subprocess
import sys
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import msgspec

from nubila.apps import first
from nubila.apps.host import HostConfig, choose_gear, hostname
from nubila.apps.lifecycle import Cannot
from nubila.core import pki


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
    return f"host {name} takes nothing new; {rest}"


def enable(state: Path, name: str) -> str:
    """Let it take new things again."""
    _set_state(state, name, "enabled", None)
    return f"host {name} is enabled"


def remove(state: Path, name: str, *, force: bool) -> str:
    """Forget the host."""
    cloud = _cloud(state)
    with cloud.store.read() as reader:
        left = cloud.service("compute").host_items["guest"].every(cloud, reader, name)
    if left and not force:
        raise Cannot(f"{len(left)} guests are still on {name}; delete them first, or use --force to give them up")
    _set_state(state, name, "removed", "removed by the operator")
    return f"host {name} is removed; its certificate is no longer accepted"


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


def join(state: Path, url: str, token: str, *, name: str | None, gear: str, tunnel_ip: str) -> str:
    """Get a certificate for this machine and write its agent's configuration. Raises Cannot."""
    parts = urlsplit(url)
    if parts.scheme != "https" or not parts.hostname:
        raise Cannot(f"URL must be https://controller:port, not {url}")
    try:
        chosen = choose_gear(gear)
    except ValueError as e:
        raise Cannot(str(e)) from None
    host = name or hostname()
    blind = ssl.create_default_context()
    blind.check_hostname, blind.verify_mode = False, ssl.CERT_NONE  # only to fetch the CA, checked against the token
    status, ca = _request(blind, url, "GET", "/host/ca")
    try:
        matches = status == 200 and pki.fingerprint(ca) == token.strip().partition(".")[2]
    except ValueError:
        matches = False
    if not matches:
        raise Cannot(f"{url} is not the cloud this token was made for (its authority's fingerprint differs)")
    root = state / "hosts" / host
    root.mkdir(mode=0o700, parents=True, exist_ok=True)
    for part in ("run", "log"):
        (state / part).mkdir(mode=0o700, exist_ok=True)
    key = pki.new_key()
    trusted = ssl.create_default_context(cadata=ca.decode())
    body = {"token": token.strip(), "host": host, "csr": pki.request(key, host).decode()}
    status, data = _request(trusted, url, "POST", "/host/join", body)
    answer = json.loads(data)
    if status != 200:
        raise Cannot(answer.get("error", {}).get("message", f"the cloud refused: HTTP {status}"))
    pki.private_write(root / "host.key", pki.key_pem(key))
    pki.private_write(root / "host.pem", answer["certificate"].encode())
    pki.private_write(root / "ca.pem", answer["ca"].encode())
    if not tunnel_ip:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
            s.connect((parts.hostname, parts.port or 5443))
            tunnel_ip = s.getsockname()[0]
    cloud = answer["cloud"]
    bridges = {"physnet1": "br-ex" if cloud == "nubila" else f"br-ex-{cloud}"[:15]}
    config = HostConfig(
        host=host, cloud=cloud, gear=chosen.name, url=url, roles=answer["roles"], tunnel_ip=tunnel_ip,
        bridges=bridges if "network" in answer["roles"] else {},
        certificate=str(root / "host.pem"), key=str(root / "host.key"), ca=str(root / "ca.pem"),
    )  # fmt: skip
    first.write_private(root / "agent.json", msgspec.json.encode(config).decode())
    return f"joined cloud {cloud} as {host}; gear {chosen.name}: {chosen.why}"


def _plan(state: Path) -> None:
    plan = {"listen": {}, "children": [{"name": "agent", "role": "agent"}]}
    (state / "run" / "plan.json").write_text(json.dumps(plan))


def start_agent(state: Path) -> int:
    """Run this machine's agent in the background, restarted when it dies."""
    _plan(state)
    with (state / "log" / "supervisor.log").open("ab") as out:
        return subprocess.Popen(
            [sys.executable, "-m", "nubila.apps.supervisor", str(state)],
            stdin=subprocess.DEVNULL, stdout=out, stderr=out, start_new_session=True,
        ).pid  # fmt: skip


def run_agent(state: Path) -> None:
    """Become this machine's agent."""
    _plan(state)
    os.execv(sys.executable, [sys.executable, "-m", "nubila.apps.supervisor", str(state)])
