"""What Identity's handlers call before they change something, and logins: the directory decides first.

A change is made in the directory once per request, in its own threads; then the handler runs again, finds the result
and writes the copy. Whatever a directory's options do not allow is 403.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from nubila.core import clock
from nubila.core.call import Call
from nubila.core.faults import bad_request, forbidden
from nubila.services.identity import auth, lookup
from nubila.services.identity.kinds import Group, User
from nubila.services.identity.ldap import copies, reads
from nubila.services.identity.ldap.copies import mapping, public_id
from nubila.services.identity.ldap.directory import Directory, must_be_writable
from nubila.services.identity.ldap.reads import done, need, of_id
from nubila.services.identity.ldap.registry import directories
from nubila.services.identity.proof import Proof, domain_of

if TYPE_CHECKING:
    from nubila.core.cloud import Cloud
    from nubila.core.db import Reader

Row = dict[str, Any]
_U = User.table
_BY_NAME = sa.select(_U.c.id).where(_U.c.name == sa.bindparam("name"), _U.c.domain_id == sa.bindparam("domain_id"))


# --- login ---------------------------------------------------------------------------------------------------------


def password(cloud: Cloud, reader: Reader, part: Row, secret: str, proof: Proof) -> bool:
    """Prove a password by a bind; False when the user named is not a directory's (then nothing has been done)."""
    if "id" in part:
        found = of_id(cloud, reader, part["id"])
        if found is None or found[0] is None:
            return False
        d, m = found[0], found[1]
        need(cloud, [reads._user_question(cloud, d, m)])
        id: str | None = part["id"]
    else:
        domain = domain_of(reader, part.get("domain", {}))
        d_ = directories(cloud, reader).get(domain["id"]) if domain else None
        if domain is None or d_ is None or _own(reader, part["name"], domain["id"]):
            return False
        d, id = d_, _named(cloud, d_, part["name"])
    m_ = mapping(reader, id) if id else None
    row = lookup.user(reader, id) if id else None
    fine = m_ is not None and m_["present"] and row is not None and row["enabled"]
    if row is None or domain_of(reader, {"id": row["domain_id"]}) is None:
        fine = False
    dn = m_["dn"] if m_ is not None and fine else None
    proved = bool(secret) and done(proof.call, d, ("bind", id), lambda: d.check(dn, secret), changes=False)
    proof.users.append(id if fine else None)
    proof.check.append(lambda: proved)
    return True


def _own(reader: Reader, name: str, domain_id: str) -> bool:
    """Whether this database has a user of its own by that name: it comes before the directory's."""
    id = reader.scalar(_BY_NAME, {"name": name, "domain_id": domain_id})
    return id is not None and mapping(reader, id) is None


def _named(cloud: Cloud, d: Directory, name: str) -> str | None:
    """The public id of the directory's user of that name."""
    question = ("named", name)

    def work() -> None:
        someone = d.person_named(name)
        if len(d.named) > 10_000:
            d.named.clear()
        d.named[name] = None
        if someone is not None:
            reads.with_groups(cloud, d, someone)
            id = d.named[name] = public_id(d.domain_id, "user", someone.local_id)
            d.good_for["user", id] = clock.monotonic()

    need(cloud, [(d, question, work)])
    return d.named.get(name)


def change_password(call: Call, id: str, body: Row) -> bool:
    """A user's own new password, proved by the old one; False when the user is not a directory's."""
    with call.cloud.store.read() as reader:
        found = of_id(call.cloud, reader, id)
        user = lookup.user(reader, id)
        if found is None or user is None:
            return False
        d, m = found
        if d is None:
            raise auth.denied(call)
        need(call.cloud, [reads._user_question(call.cloud, d, m)])
        old, new = body["original_password"], body["password"]
        proved = bool(old) and done(call, d, ("bind", user["id"]), lambda: d.check(m["dn"], old), changes=False)
        if not proved or not m["present"] or not user["enabled"]:
            raise auth.denied(call)
        must_be_writable(d, "user", "update")
        if new == old or not new:
            raise bad_request("The new password must be different from the old one.", "PasswordValidationError")
        done(call, d, ("password", user["id"]), lambda: d.set_password(m["dn"], new))
    with call.cloud.store.write() as tx:
        auth.revoke(call.cloud, tx, user_id=user["id"])
    return True


# --- users ---------------------------------------------------------------------------------------------------------


def create_user(call: Call, values: Row, password: str | None) -> Row | None:
    """Create a user in the directory of its domain; its row, or None when the domain has no directory."""
    d = directories(call.cloud, call.tx).get(values["domain_id"])
    if d is None:
        return None
    must_be_writable(d, "user", "create")
    given = {**(values.get("extra") or {}), **values}
    person = done(call, d, ("create", "user"), lambda: d.create_person(given, password))
    copies.keep_in(call.cloud, call.tx, d, "user", [person])
    id = public_id(d.domain_id, "user", person.local_id)
    kept = {k: values[k] for k in ("default_project_id", "options") if values.get(k)}
    if kept:
        call.tx.execute(sa.update(_U).where(_U.c.id == id).values(**kept))
    return lookup.user(call.tx, id)


def update_user(call: Call, before: Row, values: Row, given: Row, password: str | None) -> None:
    """Change a directory's user: the directory first; ``values`` then says what the row must say."""
    found = of_id(call.cloud, call.tx, before["id"])
    if found is None:
        return
    d, m = _usable(found)
    for name in ("password", "password_expires_at"):
        values.pop(name, None)
    ours = {"extra", "options"}  # what stays in this database
    if not d.options["user_default_project_id_attribute"]:
        ours.add("default_project_id")
    wanted = {k: v for k, v in {**given, **values}.items() if k not in ours}
    if not wanted and not password:
        values["extra"] = dict(before["extra"])
        return
    must_be_writable(d, "user", "update")
    person = done(call, d, ("update", before["id"]), lambda: d.update_person(m["dn"], wanted, password))
    values |= {"name": person.name, "enabled": person.enabled, "extra": dict(person.extra)}
    copies.keep_in(call.cloud, call.tx, d, "user", [person])


def delete_user(call: Call, row: Row) -> None:
    """Delete a directory's user there too."""
    _delete(call, row, "user")


def _delete(call: Call, row: Row, kind: str) -> None:
    found = of_id(call.cloud, call.tx, row["id"])
    if found is None:
        return
    d, m = _usable(found)
    must_be_writable(d, kind, "delete")
    remove = d.delete_person if kind == "user" else d.delete_team
    done(call, d, ("delete", row["id"]), partial(remove, m["dn"]))
    copies.forget(call.tx, row["id"])


def _usable(found: tuple[Directory | None, Row]) -> tuple[Directory, Row]:
    d, m = found
    if d is None:
        raise forbidden("This belongs to a directory that the domain has no more.", "Forbidden")
    return d, m


# --- groups --------------------------------------------------------------------------------------------------------


def create_group(call: Call, values: Row) -> None:
    """Create a group in the directory of its domain, if that has one; the row gets the directory's id."""
    d = directories(call.cloud, call.tx).get(values["domain_id"])
    if d is None:
        return
    must_be_writable(d, "group", "create")
    team = done(call, d, ("create", "group"), lambda: d.create_team(values))
    id = public_id(d.domain_id, "group", team.local_id)
    call.tx.execute(sa.delete(Group.table).where(Group.table.c.id == id))  # one of that id that was gone
    copies.keep_in(call.cloud, call.tx, d, "group", [team])
    call.tx.execute(sa.delete(Group.table).where(Group.table.c.id == id))  # the caller inserts the row
    values |= {"id": id, "extra": {}}


def update_group(call: Call, before: Row, values: Row) -> None:
    """Change a directory's group there first."""
    found = of_id(call.cloud, call.tx, before["id"])
    if found is None:
        return
    d, m = _usable(found)
    must_be_writable(d, "group", "update")
    done(call, d, ("update", before["id"]), lambda: d.update_team(m["dn"], dict(values)))
    values["extra"] = dict(before["extra"])


def delete_group(call: Call, row: Row) -> None:
    """Delete a directory's group there too."""
    _delete(call, row, "group")


def change_member(call: Call, group_id: str, user_id: str, *, present: bool) -> None:
    """Put a user into a directory's group, or take it out. Groups never have users of another back end."""
    theirs, ours = of_id(call.cloud, call.tx, group_id), of_id(call.cloud, call.tx, user_id)
    if theirs is None and ours is None:
        return
    if theirs is None or ours is None or theirs[1]["domain_id"] != ours[1]["domain_id"]:
        raise forbidden("Group membership across back ends is not allowed.", "CrossBackendNotAllowed")
    d, m = _usable(theirs)
    must_be_writable(d, "group", "update")
    who = ours[1]
    done(
        call, d, ("member", present, group_id, user_id),
        lambda: d.change_member(m["dn"], who["dn"], who["local_id"], present=present),
    )  # fmt: skip
