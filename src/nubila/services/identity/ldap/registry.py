"""Which domain has which directory: nubila.toml's ``[ldap.<domain name>]`` and the domains' own configuration."""

from __future__ import annotations

import hashlib
import logging
import threading
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from nubila.core.faults import Fault
from nubila.services.identity import domain_config, lookup
from nubila.services.identity.kinds import Project
from nubila.services.identity.kinds_ldap import ID_MAPPING
from nubila.services.identity.ldap.directory import Directory
from nubila.services.identity.ldap.options import BadOption, Options, parse
from nubila.services.identity.revision import fresh

if TYPE_CHECKING:
    from nubila.core.cloud import Cloud
    from nubila.core.db import Reader

Row = dict[str, Any]
log = logging.getLogger("nubila.ldap")
_P = Project.table.c
_DOMAIN = sa.select(_P.id).where(_P.name == sa.bindparam("name"), _P.domain_id == "")


class Known:
    """The directories of one process; each lives as long as its options stay the same."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.made: dict[str, tuple[str, Directory]] = {}

    def end(self) -> None:
        """The process ends."""
        with self.lock:
            for _, directory in self.made.values():
                directory.close(now=True)


def directories(cloud: Cloud, reader: Reader) -> Mapping[str, Directory]:
    """domain id -> its directory; {} in most clouds. Found out again after every change of Identity or of settings."""
    facts = fresh(cloud, reader).facts
    settings, found = facts.get("directories", (None, {}))
    if settings is not cloud.settings:
        settings = cloud.settings
        found = _directories(cloud, reader)
        facts["directories"] = settings, found
    known: Mapping[str, Directory] = found
    return known


def mapped(cloud: Cloud, reader: Reader) -> bool:
    """Whether this database has copies of any directory's users or groups."""
    memory = cloud.memory
    if not memory.get("identity.ldap.mapped"):  # it never becomes false again
        memory["identity.ldap.mapped"] = reader.scalar(sa.select(ID_MAPPING.c.public_id).limit(1)) is not None
    return bool(memory["identity.ldap.mapped"])


def _wanted(cloud: Cloud, reader: Reader) -> dict[str, Row]:
    """domain id -> options as they were written."""
    out: dict[str, Row] = {}
    for name, options in cloud.settings.ldap.items():
        id = reader.scalar(_DOMAIN, {"name": name})
        if id is None:
            log.warning("nubila.toml: [ldap.%s]: there is no domain of that name yet", name)
        elif not isinstance(options, dict):
            out[id] = {"": f"[ldap.{name}] must be a table"}
        else:
            out[id] = dict(options)
    for id in domain_config.configured(reader):
        try:
            own = domain_config.read(cloud, reader, id)
        except Fault as e:
            out[id] = {"": e.message}
            continue
        driver = own.get("identity", {}).get("driver")
        if driver == "ldap" or (driver is None and id in out):
            out[id] = {**out.get(id, {}), **own.get("ldap", {})}
        elif driver is not None:
            out.pop(id, None)  # the API's word counts more than the file's
    return out


def _directories(cloud: Cloud, reader: Reader) -> dict[str, Directory]:
    wanted = _wanted(cloud, reader)
    if not wanted and "identity.ldap" not in cloud.memory:
        return {}
    known: Known = cloud.memory.setdefault("identity.ldap", Known())
    cloud.memory.setdefault("at_end", {})["identity.ldap"] = known.end
    names = {id: lookup.project_name(reader, id) or id for id in wanted}
    with known.lock:
        for id, given in wanted.items():
            print_ = hashlib.sha256(repr((names[id], sorted(given.items(), key=lambda kv: kv[0]))).encode()).hexdigest()
            old = known.made.get(id)
            if old is None or old[0] != print_:
                known.made[id] = (print_, _make(id, names[id], given))
                if old is not None:
                    old[1].close()
        for id in set(known.made) - set(wanted):
            known.made.pop(id)[1].close()
        return {id: made for id, (_, made) in known.made.items()}


def _make(id: str, name: str, given: Row) -> Directory:
    problem = str(given.get("", ""))
    options = parse({})
    if not problem:
        try:
            options = parse(given)
        except BadOption as e:
            problem = f"its configuration is wrong: {e}"
    if problem:
        log.error("directory of domain %s: %s", name, problem)
    made = Directory(id, name, options)
    made.problem = problem
    return made


def problems(settings: Mapping[str, Row]) -> list[str]:
    """What is wrong with ``[ldap.*]`` of nubila.toml, a sentence each (for a start and for doctor)."""
    out = []
    for name, given in settings.items():
        try:
            options: Options = parse(given)
            options.secret()
        except BadOption as e:
            out.append(f"[ldap.{name}]: {e}")
    return out
