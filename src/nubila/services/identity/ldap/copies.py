"""The rows that this database keeps of a directory's users and groups.

A public id is the SHA-256 of domain, kind and the directory's own id, as Keystone makes them: the same in every cloud
and after every restart. Rows are written only where they differ. What has gone from the directory keeps its row
(others may refer to it), disabled and under a name nobody else wants, and is shown to nobody.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from nubila.core import checks
from nubila.core.db import Conflict
from nubila.core.gates import ALWAYS
from nubila.services.identity.kinds import MEMBERSHIP, Group, User
from nubila.services.identity.kinds_ldap import ID_MAPPING
from nubila.services.identity.ldap.entries import Person, Team
from nubila.services.identity.revision import bump

if TYPE_CHECKING:
    from nubila.core.cloud import Cloud
    from nubila.core.db import Reader, Tx
    from nubila.core.declare import Resource
    from nubila.services.identity.ldap.directory import Directory

Row = dict[str, Any]
log = logging.getLogger("nubila.ldap")
PUBLIC_ID = 64
"""Length of public ids; those of this database's own users have 32 characters."""
CHUNK = 500
LONGEST = {"user": 255, "group": 64}
_I, _M = ID_MAPPING.c, MEMBERSHIP.c
_BY_ID = sa.select(ID_MAPPING).where(_I.public_id == sa.bindparam("id"))
KINDS: dict[str, type[Resource]] = {"user": User, "group": Group}


def public_id(domain_id: str, kind: str, local_id: str) -> str:
    """The id that clients see."""
    return hashlib.sha256(f"{domain_id}{kind}{local_id}".encode()).hexdigest()


def mapping(reader: Reader, id: str) -> Row | None:
    """What a public id stands for, None for ids of this database's own."""
    return reader.one(_BY_ID, {"id": id}) if len(id) == PUBLIC_ID else None


def _values(directory: Directory, kind: str, one: Person | Team) -> Row:
    """The columns that the directory decides."""
    out: Row = {"name": one.name, "extra": dict(one.extra)}
    if isinstance(one, Person):
        out["enabled"] = one.enabled
        if directory.options["user_default_project_id_attribute"]:
            out["default_project_id"] = one.default_project_id
    else:
        out["description"] = one.description
    return out


def _differences(
    reader: Reader, directory: Directory, kind: str, things: Sequence[Person | Team]
) -> tuple[list[Row], list[Row], list[tuple[Row, Row]], list[Row]]:
    """(new mappings, mappings to correct, rows to change as (row, values), new rows)."""
    table = KINDS[kind].table
    by_id = {public_id(directory.domain_id, kind, t.local_id): t for t in things}
    ids = list(by_id)
    mapped = {r["public_id"]: r for r in reader.all(sa.select(ID_MAPPING).where(_I.public_id.in_(ids)))}
    rows = {r["id"]: r for r in reader.all(sa.select(table).where(table.c.id.in_(ids)))}
    maps, corrected, changed, made = [], [], [], []
    for id, one in by_id.items():
        wanted = {
            "public_id": id, "domain_id": directory.domain_id, "local_id": one.local_id, "entity_type": kind,
            "dn": one.dn, "present": True,
        }  # fmt: skip
        there = mapped.get(id)
        if there is None:
            maps.append(wanted)
        elif there["dn"] != one.dn or not there["present"]:
            corrected.append(wanted)
        values = _values(directory, kind, one)
        row = rows.get(id)
        if row is None:
            made.append({"id": id, "domain_id": directory.domain_id, **values})
        elif any(row[k] != v for k, v in values.items()):
            changed.append((row, values))
    return maps, corrected, changed, made


def keep(cloud: Cloud, directory: Directory, kind: str, things: Sequence[Person | Team]) -> None:
    """Make the rows of these users or groups say what the directory says."""
    fine = [t for t in things if len(t.name) <= LONGEST[kind] and len(t.local_id) <= 255]
    for odd in [t for t in things if t not in fine] if len(fine) < len(things) else ():
        log.warning("domain %s: name or id of %s is too long; it is left out", directory.name, odd.dn)
    for i in range(0, len(fine), CHUNK):
        part = fine[i : i + CHUNK]
        with cloud.store.read() as reader:
            if not any(_differences(reader, directory, kind, part)):
                continue
        try:
            with cloud.store.write() as tx:
                keep_in(cloud, tx, directory, kind, part)
        except Conflict:  # two names that the database takes for the same: find out which
            for one in part:
                try:
                    with cloud.store.write() as tx:
                        keep_in(cloud, tx, directory, kind, [one])
                except Conflict as e:
                    log.warning("domain %s: %s is left out: %s", directory.name, one.dn, e)


def keep_in(cloud: Cloud, tx: Tx, directory: Directory, kind: str, things: Sequence[Person | Team]) -> None:
    """The same for a few, in a transaction of the caller's."""
    table = KINDS[kind].table
    maps, corrected, changed, made = _differences(tx, directory, kind, things)
    taken = _names_taken(tx, directory, kind, [*made, *({"id": r["id"], **v} for r, v in changed)])
    for clash in taken:
        log.warning("domain %s: the name of %s %s is taken; it is left out", directory.name, kind, clash)
    skip = set(taken)
    if kept := [m for m in maps if m["public_id"] not in skip]:
        tx.execute(sa.insert(ID_MAPPING), kept)
    for m in corrected:
        tx.execute(sa.update(ID_MAPPING).where(_I.public_id == m["public_id"]).values(dn=m["dn"], present=True))
    for row, values in changed:
        if row["id"] not in skip:
            tx.execute(sa.update(table).where(table.c.id == row["id"]).values(**values))
    if new := [_whole(kind, r) for r in made if r["id"] not in skip]:
        tx.execute(sa.insert(table), new)
    if changed or corrected:
        bump(cloud, tx)


def _whole(kind: str, values: Row) -> Row:
    cls = KINDS[kind]
    full = checks.defaults(cls, dict(values), ALWAYS)
    return {c.name: full.get(c.name) for c in cls.table.columns}


def _names_taken(tx: Tx, directory: Directory, kind: str, rows: Iterable[Row]) -> list[str]:
    """Ids of rows whose name somebody else has. A copy that has it gives way until it is looked at anew."""
    t = KINDS[kind].table
    wanted: dict[str, str] = {}
    twice = [r["id"] for r in rows if wanted.setdefault(r["name"], r["id"]) != r["id"]]
    here = sa.select(t.c.id, t.c.name).where(t.c.domain_id == directory.domain_id, t.c.name.in_(list(wanted)))
    out = list(twice)
    for id, name in tx.rows(here):
        if id == wanted[name]:
            continue
        if mapping(tx, id) is not None:
            tx.execute(sa.update(t).where(t.c.id == id).values(name=id))
        else:
            out.append(wanted[name])
    return out


def gone(cloud: Cloud, directory: Directory, kind: str, ids: Iterable[str]) -> None:
    """These are not in the directory any more."""
    ids = list(ids)
    if not ids:
        return
    t = KINDS[kind].table
    with cloud.store.write() as tx:
        for i in range(0, len(ids), CHUNK):
            some = ids[i : i + CHUNK]
            there = sa.select(_I.public_id).where(_I.public_id.in_(some), _I.present.is_(True))
            lost = [id for (id,) in tx.rows(there)]
            if not lost:
                continue
            log.info("domain %s: %d %ss are gone from the directory", directory.name, len(lost), kind)
            tx.execute(sa.update(ID_MAPPING).where(_I.public_id.in_(lost)).values(present=False))
            off = {"enabled": False} if kind == "user" else {}
            tx.execute(sa.update(t).where(t.c.id.in_(lost)).values(name=t.c.id, **off))
            tx.execute(sa.delete(MEMBERSHIP).where((_M.user_id if kind == "user" else _M.group_id).in_(lost)))
            bump(cloud, tx)


def present_ids(reader: Reader, directory: Directory, kind: str) -> set[str]:
    """Public ids of all that this database believes to be in the directory."""
    found = sa.select(_I.public_id).where(
        _I.domain_id == directory.domain_id, _I.entity_type == kind, _I.present.is_(True)
    )
    return {id for (id,) in reader.rows(found)}


def local_ids(reader: Reader, ids: Iterable[str]) -> dict[str, str]:
    """public id -> the directory's own id."""
    out: dict[str, str] = {}
    ids = list(ids)
    for i in range(0, len(ids), CHUNK):
        found = sa.select(_I.public_id, _I.local_id).where(_I.public_id.in_(ids[i : i + CHUNK]))
        out.update(dict(reader.rows(found)))
    return out


def _set_memberships(
    cloud: Cloud, mine: sa.Column[Any], id: str, theirs: sa.Column[Any], wanted: set[str], row: Callable[[str], Row]
) -> None:
    def compare(reader: Reader) -> tuple[set[str], set[str]]:
        there = {other for (other,) in reader.rows(sa.select(theirs).where(mine == id))}
        return wanted - there, there - wanted

    with cloud.store.read() as reader:
        if not any(compare(reader)):
            return
    with cloud.store.write() as tx:
        more, less = compare(tx)
        if more:
            tx.execute(sa.insert(MEMBERSHIP), [row(other) for other in sorted(more)])
        some = sorted(less)
        for i in range(0, len(some), CHUNK):
            tx.execute(sa.delete(MEMBERSHIP).where(mine == id, theirs.in_(some[i : i + CHUNK])))
        bump(cloud, tx)


def groups_of_user(cloud: Cloud, user_id: str, group_ids: Iterable[str]) -> None:
    """Say in which groups a directory's user is."""
    _set_memberships(
        cloud, _M.user_id, user_id, _M.group_id, set(group_ids), lambda g: {"user_id": user_id, "group_id": g}
    )


def users_of_group(cloud: Cloud, group_id: str, user_ids: Iterable[str]) -> None:
    """Say who is in a directory's group."""
    _set_memberships(
        cloud, _M.group_id, group_id, _M.user_id, set(user_ids), lambda u: {"user_id": u, "group_id": group_id}
    )


def forget(tx: Tx, id: str) -> None:
    """Remove what an id stands for: the user or group was deleted through us."""
    tx.execute(sa.delete(ID_MAPPING).where(_I.public_id == id))
