"""``nubila doctor``: is this machine able, is this cloud well, do host and database agree?

The invariants are the same that end every crash test: no transitional state without debt, no debt due never, every
child with its parent, usage equal to the sum of rows, every marked thing on a host with a row and every row its thing.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import msgspec
import sqlalchemy as sa

from nubila.agent.apply import Drivers
from nubila.apps import doctor_host, doctor_identity, first, lifecycle, supervisor
from nubila.apps.checks import Check
from nubila.apps.host import HostConfig, choose_gear, drivers, missing_engines
from nubila.core import work
from nubila.core.cloud import Cloud
from nubila.core.keyfiles import KeysError
from nubila.core.ports import HostPlace
from nubila.drivers.simulated_network import SimulatedNetwork


def examine(state: Path) -> list[Check]:
    """Every check, machine first. Never raises: what cannot be looked at is a failed check."""
    out = _machine(state)
    if not (state / "run" / "options.json").exists():
        return [*out, Check("a cloud in this directory", False, str(state), "nubila up, or name another --state")]
    out += _processes(state)
    if (joined := lifecycle.joined_to(state)) is not None:
        return [*out, doctor_identity.clock_of(joined.url)]
    from nubila.apps import wiring

    try:
        cloud = wiring.open_cloud(state, wiring.settings(state, first.overrides(state)))
    except KeysError:
        return [*out, *identity(state, None)]
    except Exception as e:
        return [*out, Check("database", False, f"{type(e).__name__}: {e}", "see the message; restore DIR/backups")]
    out.append(Check("database", True, cloud.store.dialect))
    out += identity(state, cloud)
    problem = cloud.policy.problem
    out.append(
        Check("policy files", problem is None, problem or "", "correct the file; the last good rules are in force")
    )
    for name, complaints in (("work queue and rows", rows(cloud)), ("host and database agree", hosts_agree(cloud))):
        out.append(
            Check(name, not complaints, "; ".join(complaints[:5]), "wait a minute for the sweep; then report it")
        )
    return out


def identity(state: Path, cloud: Cloud | None) -> list[Check]:
    """What there is to ask about Identity; without a cloud about its files alone."""
    from nubila.apps import wiring

    settings = cloud.settings if cloud is not None else wiring.settings(state, first.overrides(state))
    out = [*doctor_identity.keys(state, settings), *doctor_identity.certificate(state, settings)]
    if cloud is not None:
        up = supervisor.running(state) is not None
        out += [*doctor_identity.clocks(cloud), *doctor_identity.catalogue(cloud, up=up)]
        out += doctor_identity.directories(cloud)
    return out


def _machine(state: Path) -> list[Check]:
    missing = missing_engines()
    gear = choose_gear("auto")
    near = next(p for p in [state, *state.parents] if p.exists())
    free = shutil.disk_usage(near).free >> 20
    return [
        Check("gear", True, f"{gear.name} ({gear.why})"),
        Check("engines", not missing or os.geteuid() != 0, ", ".join(missing) or "all there", "./run engines"),
        Check("disk space", free > 1024, f"{free} MB free at {near}", "make room; images and guest disks live here"),
        *(doctor_host.able() if gear.name == "real" else ()),
    ]


def _processes(state: Path) -> list[Check]:
    pid = supervisor.running(state)
    out = [Check("processes", pid is not None, f"supervisor {pid}" if pid else "down", f"nubila up -d --state {state}")]
    if pid is not None:
        try:
            health = lifecycle.probe(state)
            bad = [f"{k}: {v}" for k, v in health["services"].items() if v != "ok"]
            out.append(Check("APIs answer", health["status"] == "ok", "; ".join(bad), f"look into {state / 'log'}"))
            alive = health["hosts"]["alive"]
            out.append(Check("hosts alive", alive > 0, str(alive), f"look into {state / 'log' / 'agent.log'}"))
        except (OSError, ValueError, KeyError) as e:
            out.append(Check("APIs answer", False, str(e), f"look into {state / 'log'}"))
    mode = (state / "clouds.yaml").stat().st_mode & 0o777 if (state / "clouds.yaml").exists() else 0o600
    out.append(Check("clouds.yaml is private", mode == 0o600, oct(mode), f"chmod 600 {state / 'clouds.yaml'}"))
    return out


# --- invariants -------------------------------------------------------------------------------------------------------


def rows(cloud: Cloud) -> list[str]:
    """What is wrong inside the database; empty when all is well (call it when nothing is being changed)."""
    out = list(work.invariants(cloud.store))
    out += [
        f"debt: {d['kind']} {d['id']} on {d['shard'] or 'controller'}: {d['note']}" for d in work.pending(cloud.store)
    ]
    with cloud.store.read() as reader:
        for service in cloud.services:
            for check in service.invariants:
                out += check(cloud, reader)
        out += _usage(cloud, reader)
    return out


def _usage(cloud: Cloud, reader: Any) -> list[str]:
    from nubila.core.quota import quota_usage

    used = {
        (r["project_id"], r["resource"]): r["used"] for r in reader.all(sa.select(quota_usage)) if r["used"]
    }  # fmt: skip
    out = []
    for service in cloud.services:
        for cls in service.kinds:
            if not cls.quota or not cls.owner:
                continue
            owner = cls.table.c[cls.owner]
            counted = sa.select(owner, sa.func.count()).group_by(owner)
            if cls.counted is not None:
                counted = counted.where(cls.counted(cls.table.c))
            real = {(p, cls.quota): n for p, n in reader.rows(counted) if p}
            mine = {k: v for k, v in used.items() if k[1] == cls.quota}
            for key in sorted(real.keys() | mine.keys()):
                if real.get(key, 0) != mine.get(key, 0):
                    out.append(f"usage of {key[1]} by {key[0]} says {mine.get(key, 0)}, rows say {real.get(key, 0)}")
    return out


def hosts_agree(cloud: Cloud) -> list[str]:
    """Compare each local host's drivers with what the database wants there."""
    out = []
    for path in sorted((cloud.state / "hosts").glob("*/agent.json")):
        made = msgspec.json.decode(path.read_bytes(), type=HostConfig)
        place = HostPlace(
            cloud=made.cloud, host=made.host, root=path.parent, tunnel_ip=made.tunnel_ip, namespace=made.namespace,
            bridges=made.bridges, switch=made.switch,
        )  # fmt: skip
        here = drivers(made, place, None)  # type: ignore[arg-type]  # looking needs no line to the control plane
        out += host_agrees(cloud, made.host, here)
    return out


def host_agrees(cloud: Cloud, host: str, here: Drivers) -> list[str]:
    """Compare what a host's drivers have with what the database wants there; guests also in what they do.

    The simulated network keeps what it was told: that is compared to the last field.
    """
    items = {kind: item for s in cloud.services for kind, item in s.host_items.items()}
    out = []
    with cloud.store.read() as reader:
        wanted = {
            kind: {id: items[kind].describe(cloud, reader, id, host) for id in items[kind].every(cloud, reader, host)}
            for kind in ("guest", "port", "network", "router")
        }
    guests = {g.id: g for g in here.hypervisor.list()} if here.hypervisor else {}
    found: dict[str, set[str]] = {
        "guest": set(guests),
        "port": set(here.network.ports()),
        "network": set(here.network.networks()),
        "router": set(here.network.routers()),
    }
    for kind, specs in wanted.items():
        ids = {id for id, spec in specs.items() if spec is not None}
        out += [f"{kind} {i} is on {host} and nobody wants it" for i in sorted(found[kind] - ids)]
        out += [f"{kind} {i} is missing on {host}" for i in sorted(ids - found[kind])]
        if isinstance(here.network, SimulatedNetwork) and kind != "guest":
            kept = getattr(here.network, kind)
            out += [f"{kind} {i} is not on {host} as it should be" for i in sorted(ids & found[kind])
                    if kept(i) != specs[i]]  # fmt: skip
    for id, guest in guests.items():
        spec = wanted["guest"].get(id)
        if spec is not None:
            is_, should = (guest.power, guest.nics), (spec.power, tuple(n.port_id for n in spec.nics))
            if is_ != should or (guest.power == "on" and guest.boots != spec.boots):
                out.append(f"guest {id} on {host} is {is_} at boot {guest.boots}, should be {should} at {spec.boots}")
    return out
