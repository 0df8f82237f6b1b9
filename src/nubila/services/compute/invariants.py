"""What must be true of Compute's rows whenever nothing is being changed; one sentence for each thing that is not.

``nubila doctor`` asks, and every crash test ends with it (DESIGN.md section 4). Only rows are read here; what hosts
really have is compared elsewhere.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import sqlalchemy as sa

from nubila.core import hosts, quota, work
from nubila.core.cloud import Cloud
from nubila.core.db import Reader
from nubila.services.compute import place, quotas, views
from nubila.services.compute.kinds import ACTION, EVENT, GROUP, SERVER, SERVER_TAG
from nubila.services.network import plug
from nubila.services.placement import reading

Row = Mapping[str, Any]
_ALL = sa.select(SERVER)
_TAGS = sa.select(SERVER_TAG.c.server_id, SERVER_TAG.c.tag)
_OPEN = (
    sa.select(EVENT.c.server_id, ACTION.c.action)
    .join(ACTION, ACTION.c.id == EVENT.c.action_id)
    .where(EVENT.c.finish_time.is_(None))
)
_USED = sa.select(quota.quota_usage.c.project_id, quota.quota_usage.c.resource, quota.quota_usage.c.used).where(
    quota.quota_usage.c.resource.like(quotas.PREFIX + "%"), quota.quota_usage.c.used != 0
)
_SUMS = (
    sa.select(SERVER.c.project_id, sa.func.count(), sa.func.sum(SERVER.c.vcpus), sa.func.sum(SERVER.c.ram))
    .where(SERVER.c.deleted.is_(False))
    .group_by(SERVER.c.project_id)
)
_GROUPS = sa.select(GROUP.c.project_id, sa.func.count()).group_by(GROUP.c.project_id)


def servers(cloud: Cloud, reader: Reader) -> list[str]:
    """States, hosts, ports, tags and events of servers."""
    rows = reader.all(_ALL)
    owed = work.owed(reader)
    known = {h["name"] for h in hosts.every(reader)}
    ports = plug.ports_of(reader, [r["id"] for r in rows])
    tags: dict[str, set[str]] = {}
    for id, tag in reader.rows(_TAGS):
        tags.setdefault(id, set()).add(tag)
    out = []
    for row in rows:
        check = _deleted(row) if row["deleted"] else _alive(row, owed, known)
        out += [f"server {row['id']} {what}" for what in (*check, *_ports(row, ports[row["id"]]))]
        if tags.get(row["id"], set()) != set(() if row["deleted"] else row["tags"] or ()):
            out.append(f"server {row['id']} has other tags in the index than in its row")
    moving = {r["id"] for r in rows if not r["deleted"] and views.task_state(r) is not None}
    out += [
        f"server {id}: the action {action} never ends"
        for id, action in reader.rows(_OPEN)
        if id not in moving and not any(o[1] == id for o in owed)
    ]
    return out


def _alive(row: Row, owed: set[tuple[str, str, str]], known: set[str]) -> Iterator[str]:
    task, host = views.task_state(row), row["host"]
    cares = ("server", row["id"], "") in owed or (host is not None and ("guest", row["id"], host) in owed)
    if task is not None and not cares:
        yield f"is {views.status(row)} ({task}) and nobody works on it"
    if row["vm_state"] == "building" and row["deadline"] is None:
        yield "is building without a deadline"
    if row["vm_state"] == "error" and not row["fault"] and task is None and not cares and row["launched_at"] is None:
        yield "is in error without a fault to read"
    if host is not None and host not in known:
        yield f"is on host {host}, which is not there"
    if host is None and (row["vm_state"] in ("active", "stopped") or row["nics"]):
        yield f"is {row['vm_state']} with {len(row['nics'] or ())} ports, but on no host"


def _deleted(row: Row) -> Iterator[str]:
    if row["vm_state"] != "deleted" or row["want"] != "gone":
        yield f"is deleted, but says {row['vm_state']} and wants to be {row['want']}"
    if row["nics"] or row["power_state"] or row["user_data"] or row["keypair"] or row["password"]:
        yield "is deleted, but keeps what it should have forgotten"


def _ports(row: Row, mine: list[dict[str, Any]]) -> Iterator[str]:
    """Ports that say they are plugged into the server, in Compute's way (users may write any device_id)."""
    for port in mine:
        if not str(port["device_owner"]).startswith("compute:"):
            continue
        if row["deleted"] or row["host"] is None:
            yield f"holds port {port['id']} without being anywhere"
        elif port["host_id"] != row["host"]:
            yield f"is on {row['host']}, its port {port['id']} on {port['host_id'] or 'no host'}"
        elif port["id"] not in {n["port_id"] for n in row["nics"] or ()}:
            yield f"does not know of its port {port['id']}"


def claims(cloud: Cloud, reader: Reader) -> list[str]:
    """Placement holds exactly what servers that are on a host need, there, and what their ports are guaranteed."""
    providers = {h["name"]: h["id"] for h in hosts.every(reader)}
    rows = {r["id"]: r for r in reader.all(_ALL)}
    held, guaranteed = reading.held(reader, "INSTANCE"), plug.held(reader)
    out = []
    for id, row in rows.items():
        here = not row["deleted"] and row["host"] is not None
        need = {providers.get(row["host"], "?"): dict(place.amounts(row["flavor"]))} if here else {}
        for provider, classes in guaranteed.get(id, {}).items():
            mine = need.setdefault(provider, {})
            mine.update({name: mine.get(name, 0) + n for name, n in classes.items()})
        have = held.pop(id, {})
        if have != need:
            out.append(f"server {id} on {row['host']} holds {have} in placement, needs {need}")
    return out + [f"consumer {id} holds {have} in placement and is no server" for id, have in held.items()]


def usage(cloud: Cloud, reader: Reader) -> list[str]:
    """What counts against quotas equals the sum of rows."""
    real: dict[tuple[str, str], int] = {}
    for project, n, cores, ram in reader.rows(_SUMS):
        real |= {(project, "instances"): n, (project, "cores"): int(cores), (project, "ram"): int(ram)}
    real |= {(project, "server_groups"): n for project, n in reader.rows(_GROUPS)}
    says = {(p, r[len(quotas.PREFIX) :]): int(n) for p, r, n in reader.rows(_USED)}
    return [
        f"usage of {key[1]} by {key[0]} says {says.get(key, 0)}, rows say {real.get(key, 0)}"
        for key in sorted(real.keys() | says.keys())
        if real.get(key, 0) != says.get(key, 0)
    ]


INVARIANTS = (servers, claims, usage)
