"""Put a cloud together: which services, which drivers, which files. The only place where things are wired.

Everything here is called by a process at its start; nothing is global.
"""

from __future__ import annotations

import logging
import os
import re
import socket
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from nubila.core import config, migrate
from nubila.core.cloud import Cloud
from nubila.core.config import BadSetting, Settings
from nubila.core.db import Store
from nubila.core.declare import METADATA
from nubila.core.nudge import Nudger
from nubila.core.passwords import Passwords, generate_password
from nubila.core.policy import Policy, policy_files
from nubila.core.service import Service
from nubila.core.tokens import KeysError, open_keys

log = logging.getLogger("nubila")
STARTED = sa.Table("first_start", METADATA, sa.Column("done", sa.Integer, primary_key=True))


def services() -> tuple[Service, ...]:
    """The services of this program. Removing one = its folder and its line here."""
    from nubila.services import compute, hosts, identity, image, network, placement

    return (identity.SERVICE, image.SERVICE, placement.SERVICE, compute.SERVICE, network.SERVICE, hosts.SERVICE)


def settings(state: Path, overrides: Mapping[str, Any] | None = None) -> Settings:
    """The settings of a state directory, host name and database filled in."""
    found = config.load(state / "nubila.toml", overrides)
    return replace(
        found,
        host=found.host or socket.gethostname().split(".")[0],
        database=found.database or f"sqlite:///{state / 'nubila.db'}",
    )


def with_quotas(wired: tuple[Service, ...], found: Settings) -> tuple[Service, ...]:
    """The services with the operator's default limits in them.

    Raises BadSetting for a limit that is none and for a resource that has none: all that can be wrong with the setting
    ``network_quotas``, since only the services know the names.
    """
    given: dict[str, int] = {}
    known = {name for s in wired if s.name == "network" for name in s.quotas}
    for one in found.network_quotas:
        parts = re.fullmatch(r"([a-z_]{1,64})=(-1|[0-9]{1,9})", one)
        if parts is None:
            raise BadSetting(f"setting network_quotas: {one!r} is not RESOURCE=NUMBER (-1: unlimited), e.g. router=30")
        name = parts[1]
        if name not in known:
            near = ", ".join(get_close_matches(name, known, 1) or sorted(known))
            raise BadSetting(f"setting network_quotas: no resource {name!r} has a quota; there is {near}")
        given[name] = int(parts[2])
    if not given:
        return wired
    return tuple(replace(s, quotas={**s.quotas, **given}) if s.name == "network" else s for s in wired)


def rules(wired: tuple[Service, ...]) -> dict[str, list[Any]]:
    """Every service's policy rules, those of guarded attributes included."""
    from nubila.edge.views import attr_rules

    out: dict[str, list[Any]] = {}
    for service in wired:
        mine = {r.name: r for cls in service.kinds if cls.rest and cls.rest.attr_rules for r in attr_rules(cls)}
        mine.update({r.name: r for r in service.rules})
        out[service.name] = list(mine.values())
    return out


def open_cloud(state: Path, found: Settings, *, wired: tuple[Service, ...] | None = None) -> Cloud:
    """Open the database (made or migrated as needed) and everything a process needs around it."""
    for part in ("", "run", "log", "keys"):
        (state / part).mkdir(mode=0o700, parents=True, exist_ok=True)
    wired = with_quotas(wired if wired is not None else services(), found)
    nudger = Nudger(state / "run")
    store = Store(found.database, nudge=nudger.send)
    migrate.prepare(store, METADATA, backups=state / "backups")
    _refuse_new_keys(store, state / "keys" / "fernet")
    cloud = Cloud(
        name=found.name,
        settings=found,
        state=state,
        store=store,
        policy=Policy(rules(wired), policy_files(state, [s.name for s in wired])),
        keys=open_keys(state / "keys", found.token_provider),
        services=wired,
        region=found.region,
    )
    cloud.memory["nudger"] = nudger
    return cloud


def _refuse_new_keys(store: Store, directory: Path) -> None:
    """A cloud that has been started before must have its keys: new ones would end every token without a word."""
    if directory.is_dir() and any(name.isdigit() for name in os.listdir(directory)):
        return
    with store.read() as reader:
        if reader.scalar(sa.select(STARTED.c.done)) is None:
            return
    store.close()
    raise KeysError(
        f"token keys: {directory} holds no keys; restore them from a backup, or make new ones with "
        "`nubila key setup`: every token ends then"
    )


def first_start(
    cloud: Cloud, *, bcrypt_rounds: int | None = None, keep: Callable[[dict[str, str]], None] | None = None
) -> dict[str, str] | None:
    """Make what a new cloud begins with; returns the generated passwords, None when it has been done before.

    ``keep`` writes the passwords down before they come into force: a start that is killed never leaves a cloud whose
    passwords nobody knows.
    """
    with cloud.store.read() as reader:
        if reader.scalar(sa.select(STARTED.c.done)) is not None:
            return None
    passwords = {"admin": generate_password(), "demo": generate_password()}
    hasher = Passwords(rounds=bcrypt_rounds or cloud.settings.bcrypt_rounds)
    with ThreadPoolExecutor(2) as pool:  # bcrypt lets go of the interpreter lock
        hashed = dict(zip(passwords, pool.map(hasher.hash, passwords.values()), strict=True))
    cloud.admin_password, cloud.demo_password = passwords["admin"], passwords["demo"]
    cloud.bootstrap_ids.update({f"hash:{name}": value for name, value in hashed.items()})
    with cloud.store.write() as tx:
        if tx.scalar(sa.select(STARTED.c.done)) is not None:
            return None
        for service in cloud.services:
            if service.bootstrap is not None:
                service.bootstrap(cloud, tx)
        tx.insert(STARTED, {"done": 1})
        if keep is not None:
            keep(passwords)
    cloud.admin_password = cloud.demo_password = ""
    return passwords
