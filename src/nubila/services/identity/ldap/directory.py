"""What can be asked of one directory. All functions block and are called in the directory's own threads."""

from __future__ import annotations

import contextlib
import random
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

from nubila.core.clock import new_hex
from nubila.core.faults import Fault, bad_request, conflict, forbidden
from nubila.services.identity.ldap import client, entries
from nubila.services.identity.ldap.client import Entry, Rejected, Session, Unreachable
from nubila.services.identity.ldap.entries import Person, Team, escaped, id_filter, query, rdn, same_dn
from nubila.services.identity.ldap.guard import Guard
from nubila.services.identity.ldap.options import BadOption, Options

Row = dict[str, Any]
T = TypeVar("T")
CHUNK = 100
"""Ids per filter when many are asked for."""
PERSON_CLASSES = frozenset({"inetorgperson", "organizationalperson", "person"})


class Directory:
    """The directory of one domain: its options, connections and threads."""

    def __init__(self, domain_id: str, name: str, options: Options) -> None:
        self.domain_id, self.name, self.options = domain_id, name, options
        self.problem = ""  # what is wrong with its configuration
        self.guard = Guard(name, options.deadline_s, self._cut)
        self.good_for: dict[object, float] = {}  # question -> when its answer was written down (monotonic)
        self.results: dict[object, Any] = {}  # what single requests have had done
        self.named: dict[str, str | None] = {}  # user name -> public id, as of the last look
        self._lock = threading.Lock()
        self._pools: dict[str, list[Session]] = {"service": [], "auth": []}
        self._in_use: dict[int, Session] = {}
        self._first = 0  # the server that answered last

    # --- connections ----------------------------------------------------------------------------------------------

    def _cut(self, thread: int) -> None:
        with self._lock:
            session = self._in_use.get(thread)
        if session is not None:
            session.cut()

    def _open(self) -> Session:
        """A new connection to the first server that answers, beginning with the one that did last time."""
        urls = self.options.urls
        order = list(range(len(urls)))
        if self.options["randomize_urls"]:
            random.shuffle(order)
        else:
            order = order[self._first :] + order[: self._first]
        failed: Unreachable | None = None
        until = time.monotonic() + self.options.deadline_s
        for i in order:
            if failed is not None and time.monotonic() + self.options["connection_timeout"] > until:
                break
            try:
                made = Session(self.options, client.address(urls[i]))
                self._using(made)
                made.open()
                self._first = i
                return made
            except Unreachable as e:
                failed = e
        raise failed or Unreachable(self.options["url"], "no server is configured")

    def _using(self, session: Session | None) -> None:
        with self._lock:
            if session is None:
                self._in_use.pop(threading.get_ident(), None)
            else:
                session.deadline = time.monotonic() + self.options.deadline_s
                self._in_use[threading.get_ident()] = session

    def _take(self, pool: str) -> Session | None:
        life = self.options["pool_connection_lifetime" if pool == "service" else "auth_pool_connection_lifetime"]
        with self._lock:
            kept = self._pools[pool]
            while kept:
                session = kept.pop()
                if time.monotonic() - session.born < life:
                    return session
                session.close()
        return None

    def _give(self, pool: str, session: Session) -> None:
        prefix = "" if pool == "service" else "auth_"
        used = self.options["use_pool" if pool == "service" else "use_auth_pool"]
        with self._lock:
            if used and len(self._pools[pool]) < self.options[f"{prefix}pool_size"]:
                self._pools[pool].append(session)
                return
        session.close()

    @contextlib.contextmanager
    def _session(self, pool: str, *, fresh: bool = False) -> Iterator[tuple[Session, bool]]:
        """(a session, whether it was used before)."""
        kept = None if fresh else self._take(pool)
        session = kept or self._open()
        self._using(session)
        try:
            yield session, kept is not None
        except BaseException:
            session.close()
            raise
        else:
            self._give(pool, session)
        finally:
            self._using(None)

    def _as_service(self, session: Session) -> None:
        """Bind as the account of the options, unless the session is bound so already."""
        try:
            user, password = self.options["user"], self.options.secret()
        except BadOption as e:
            raise Unreachable(session.server, str(e)) from None
        if session.who == (user or "", password if user else ""):
            return
        if not session.bind(user, password if user else ""):
            raise Unreachable(session.server, f"it does not accept the name or password of {user}")
        session.who = (user or "", password if user else "")

    def _ask(self, work: Callable[[Session], T], *, write: bool = False) -> T:
        """Run something as the service account. A read on a connection that died in the pool is tried anew."""
        used = False
        try:
            with self._session("service", fresh=write) as (session, used):
                self._as_service(session)
                return work(session)
        except Unreachable:
            if write or not used:
                raise
        with self._session("service", fresh=True) as (session, _):
            self._as_service(session)
            return work(session)

    def remember(self, key: object, result: object) -> None:
        """Keep what a request had done until the request comes back for it (the oldest go)."""
        with self._lock:
            for old in list(self.results)[: max(0, len(self.results) - 512)]:
                del self.results[old]
            self.results[key] = result

    def available(self) -> bool:
        """Whether it makes sense to ask now."""
        try:
            self.usable()
        except Fault:
            return False
        return True

    def usable(self) -> None:
        """Raise the 503 at once when asking makes no sense now."""
        if self.problem:
            raise self.guard.fault(self.problem)
        self.guard.check()

    def close(self, *, now: bool = False) -> None:
        """Forget the connections. ``now``: the process ends and waits for nobody."""
        self.guard.close(now=now)
        with self._lock:
            sessions = [s for pool in self._pools.values() for s in pool]
            self._pools = {"service": [], "auth": []}
            busy = list(self._in_use.values()) if now else []
        for session in sessions:
            session.close()
        for session in busy:
            session.cut()

    # --- reading --------------------------------------------------------------------------------------------------

    def _find(self, session: Session, what: str, attributes: list[str], *parts: str) -> list[Entry]:
        o = self.options
        tree = o.user_tree if what == "user" else o.group_tree
        return session.search(
            tree, o["query_scope"], query(o, what, *parts), attributes, page_size=o["page_size"]
        )  # fmt: skip

    def _enabled_dns(self, session: Session) -> frozenset[str] | None:
        """Who is in the group of the enabled, None when that is not emulated."""
        o = self.options
        if not o["user_enabled_emulation"]:
            return None
        attribute = self._emulation_attribute()
        found = session.search(o.emulation_dn, "base", "(objectClass=*)", [attribute])
        return frozenset(same_dn(v) for e in found for v in e.all(attribute))

    def _emulation_attribute(self) -> str:
        by_config = self.options["user_enabled_emulation_use_group_config"]
        return str(self.options["group_member_attribute"] if by_config else "member")

    def _people(self, session: Session, *parts: str) -> list[Person]:
        o = self.options
        dns = self._enabled_dns(session)
        found = self._find(session, "user", entries.user_attributes(o), *parts)
        return [p for e in found if (p := entries.person(o, e, dns)) is not None]

    def people(self, *parts: str) -> list[Person]:
        """Users that match further filter parts; none = all."""
        return self._ask(lambda s: self._people(s, *parts))

    def people_of(self, local_ids: Iterable[str]) -> list[Person]:
        """The users that have these ids."""
        return self._ask(lambda s: self._people_of(s, list(dict.fromkeys(local_ids))))

    def _people_of(self, session: Session, ids: list[str]) -> list[Person]:
        attribute = self.options["user_id_attribute"]
        out: list[Person] = []
        for i in range(0, len(ids), CHUNK):
            either = "".join(id_filter(attribute, one) for one in ids[i : i + CHUNK])
            out += self._people(session, f"(|{either})")
        return out

    def person_named(self, name: str) -> Person | None:
        """The user of that name; None when there is none, or more than one."""
        found = self.people(f"({self.options['user_name_attribute']}={escaped(name)})")
        exact = [p for p in found if p.name == name] or found
        return exact[0] if len(exact) == 1 else None

    def teams(self, *parts: str, members: bool = False) -> list[Team]:
        """Groups that match."""
        return self._ask(lambda s: self._teams(s, *parts, members=members))

    def _teams(self, session: Session, *parts: str, members: bool = False) -> list[Team]:
        o = self.options
        found = self._find(session, "group", entries.group_attributes(o, members=members), *parts)
        return [t for e in found if (t := entries.team(o, e)) is not None]

    def teams_of_ids(self, local_ids: Iterable[str]) -> list[Team]:
        """The groups that have these ids."""
        attribute = self.options["group_id_attribute"]
        ids = list(dict.fromkeys(local_ids))

        def ask(session: Session) -> list[Team]:
            out: list[Team] = []
            for i in range(0, len(ids), CHUNK):
                either = "".join(id_filter(attribute, one) for one in ids[i : i + CHUNK])
                out += self._teams(session, f"(|{either})")
            return out

        return self._ask(ask)

    def teams_of(self, someone: Person) -> list[Team]:
        """The groups that a user is in."""
        o = self.options
        value = someone.local_id if o["group_members_are_ids"] else someone.dn
        rule = f":{entries.AD_CHAIN}:" if o["group_ad_nesting"] and not o["group_members_are_ids"] else ""
        return self.teams(f"({o['group_member_attribute']}{rule}={escaped(value)})")

    def team_with_members(self, local_id: str) -> tuple[Team, list[Person]] | None:
        """A group and the users in it; None when it is gone."""
        return self._ask(lambda s: self._team_with_members(s, local_id))

    def _team_with_members(self, session: Session, local_id: str) -> tuple[Team, list[Person]] | None:
        o = self.options
        nested = bool(o["group_ad_nesting"]) and not o["group_members_are_ids"]
        found = self._teams(session, id_filter(o["group_id_attribute"], local_id), members=not nested)
        if not found:
            return None
        group = found[0]
        if nested:
            return group, self._people(session, f"(memberOf:{entries.AD_CHAIN}:={escaped(group.dn)})")
        members = [m for m in group.members if m and same_dn(m) != same_dn(o["dumb_member"])]
        if o["group_members_are_ids"]:
            return group, self._people_of(session, members)
        ids = [entries.id_in_dn(dn, o["user_id_attribute"]) for dn in members]
        if all(i is not None for i in ids):
            people = self._people_of(session, [i for i in ids if i is not None])
        elif len(members) > CHUNK:
            people = self._people(session)
        else:
            people = self._people_at(session, members)
        wanted = {same_dn(dn) for dn in members}
        return group, [p for p in people if same_dn(p.dn) in wanted]

    def _people_at(self, session: Session, dns: Iterable[str]) -> list[Person]:
        """The users at these DNs, one by one."""
        o = self.options
        enabled = self._enabled_dns(session)
        out = []
        for dn in dns:
            found = session.search(dn, "base", query(o, "user"), entries.user_attributes(o))
            out += [p for e in found if (p := entries.person(o, e, enabled)) is not None]
        return out

    def check(self, dn: str | None, password: str) -> bool:
        """Whether the password is that of the entry. No entry: the time of a bind is spent and the answer is no."""
        if not password:
            return False
        name = dn or f"{rdn(self.options['user_id_attribute'], new_hex())},{self.options.user_tree}"
        used = False
        try:
            with self._session("auth") as (session, used):
                return session.bind(name, password) and dn is not None
        except Unreachable:
            if not used:
                raise
        with self._session("auth", fresh=True) as (session, _):
            return session.bind(name, password) and dn is not None

    # --- writing --------------------------------------------------------------------------------------------------

    def _write(self, what: str, verb: str, work: Callable[[Session], T]) -> T:
        """Change something, if that is allowed; what the directory refuses becomes the API's refusal."""
        must_be_writable(self, what, verb)
        try:
            return self._ask(work, write=True)
        except Rejected as e:
            if e.code == client.EXISTS:
                raise conflict(f"The directory of domain {self.name} has a {what} of that name already.") from None
            if e.code in (client.INSUFFICIENT_ACCESS, client.UNWILLING):
                raise forbidden(
                    f"The directory of domain {self.name} does not allow it: {e.text}", "Forbidden"
                ) from None
            raise bad_request(f"The directory of domain {self.name} refuses: {e}", "ValidationError") from None

    def create_person(self, values: Row, password: str | None) -> Person:
        """Create a user; its id is made up unless id and name are the same attribute."""
        o = self.options
        id_attribute, name_attribute = o["user_id_attribute"], o["user_name_attribute"]
        local_id = values["name"] if id_attribute.lower() == name_attribute.lower() else new_hex()
        dn = f"{rdn(id_attribute, local_id)},{o.user_tree}"
        attributes = self._user_values(values)
        attributes |= {name_attribute: [values["name"]], id_attribute: [local_id]}
        if o["user_objectclass"].lower() in PERSON_CLASSES:
            given = {k.lower() for k in attributes}
            attributes |= {k: [values["name"]] for k in ("cn", "sn") if k not in given}
        enabled = values.get("enabled", True) is not False
        if not o["user_enabled_emulation"] and "enabled" not in o["user_attribute_ignore"]:
            text = entries.enabled_value(o, enabled, None)
            if text is not None:
                attributes[o["user_enabled_attribute"]] = [text]

        def work(session: Session) -> Person:
            session.add(dn, self._classes("user"), attributes)
            if o["user_enabled_emulation"] and enabled:
                self._emulate(session, dn, True)
            if password and "password" not in o["user_attribute_ignore"]:
                session.set_password(dn, o["user_pass_attribute"], password)
            return self._read_back(session, dn)

        return self._write("user", "create", work)

    def _classes(self, what: str) -> list[str]:
        return ["top", self.options[f"{what}_objectclass"]]

    def _user_values(self, values: Row) -> dict[str, list[str]]:
        """Directory attributes of what an API body says, apart from name, password and enabled."""
        o = self.options
        named = {
            "email": o["user_mail_attribute"], "description": o["user_description_attribute"],
            "default_project_id": o["user_default_project_id_attribute"],
            **{api: a for a, api in entries._pairs(o["user_additional_attribute_mapping"])},
        }  # fmt: skip
        ignored = set(o["user_attribute_ignore"])
        return {
            attribute: [str(values[api])] if values[api] not in (None, "") else []
            for api, attribute in named.items()
            if attribute and api in values and (api not in ignored or api == "default_project_id")
        }

    def _read_back(self, session: Session, dn: str) -> Person:
        found = self._people_at(session, [dn])
        if not found:
            raise bad_request(
                f"The directory of domain {self.name} took the user, but user_filter or user_objectclass hides it.",
                "ValidationError",
            )
        return found[0]

    def update_person(self, dn: str, values: Row, password: str | None) -> Person:
        """Change a user; ``values`` has what the API body has."""
        o = self.options

        def work(session: Session) -> Person:
            changes = [("replace", k, v) for k, v in self._user_values(values).items()]
            where = dn
            if "name" in values:
                if same_dn(dn).startswith(o["user_name_attribute"].lower() + "="):
                    first = rdn(o["user_name_attribute"], values["name"])
                    session.rename(dn, first)
                    where = f"{first},{dn.partition(',')[2]}"
                else:
                    changes.append(("replace", o["user_name_attribute"], [values["name"]]))
            if "enabled" in values and "enabled" not in o["user_attribute_ignore"]:
                if o["user_enabled_emulation"]:
                    self._emulate(session, where, bool(values["enabled"]))
                else:
                    attribute = o["user_enabled_attribute"]
                    found = session.search(where, "base", "(objectClass=*)", [attribute])
                    before = found[0].first(attribute) if found else None
                    text = entries.enabled_value(o, bool(values["enabled"]), before)
                    changes += [("replace", attribute, [text])] if text is not None else []
            session.modify(where, changes)
            if password and "password" not in o["user_attribute_ignore"]:
                session.set_password(where, o["user_pass_attribute"], password)
            return self._read_back(session, where)

        return self._write("user", "update", work)

    def set_password(self, dn: str, password: str) -> None:
        """Change a user's password."""
        self._write("user", "update", lambda s: s.set_password(dn, self.options["user_pass_attribute"], password))

    def delete_person(self, dn: str) -> None:
        """Remove a user, and from the groups that it is in."""

        def work(session: Session) -> None:
            if self.options["user_enabled_emulation"]:
                self._emulate(session, dn, False)
            session.delete(dn, subtree=self.options["allow_subtree_delete"])

        self._write("user", "delete", work)

    def _emulate(self, session: Session, dn: str, enabled: bool) -> None:
        """Put a user into the group of the enabled, or take it out; the group comes and goes as needed."""
        where, attribute = self.options.emulation_dn, self._emulation_attribute()
        if enabled:
            try:
                session.modify(where, [("add", attribute, [dn])], (client.VALUE_EXISTS,))
            except Rejected as e:
                if e.code != client.NO_SUCH_OBJECT:
                    raise
                session.add(where, ["top", "groupOfNames"], {attribute: [dn]})
            return
        try:
            session.modify(
                where, [("delete", attribute, [dn])], (client.NO_SUCH_ATTRIBUTE, client.NO_SUCH_OBJECT)
            )  # fmt: skip
        except Rejected as e:
            if e.code != 65:  # object class violation: the last one cannot be taken out of a groupOfNames
                raise
            session.delete(where)

    # groups

    def create_team(self, values: Row) -> Team:
        """Create a group."""
        o = self.options
        id_attribute, name_attribute = o["group_id_attribute"], o["group_name_attribute"]
        local_id = values["name"] if id_attribute.lower() == name_attribute.lower() else new_hex()
        dn = f"{rdn(id_attribute, local_id)},{o.group_tree}"
        attributes: dict[str, list[str]] = {name_attribute: [values["name"]], id_attribute: [local_id]}
        if values.get("description") and "description" not in o["group_attribute_ignore"]:
            attributes[o["group_desc_attribute"]] = [values["description"]]
        if o["use_dumb_member"]:
            attributes[o["group_member_attribute"]] = [o["dumb_member"]]

        def work(session: Session) -> Team:
            session.add(dn, self._classes("group"), attributes)
            return Team(local_id, dn, values["name"], values.get("description") or "")

        return self._write("group", "create", work)

    def update_team(self, dn: str, values: Row) -> None:
        """Change a group's name or description."""
        o = self.options

        def work(session: Session) -> None:
            changes: list[tuple[str, str, list[str]]] = []
            if "description" in values and "description" not in o["group_attribute_ignore"]:
                text = values["description"]
                changes.append(("replace", o["group_desc_attribute"], [text] if text else []))
            where = dn
            if "name" in values:
                if same_dn(dn).startswith(o["group_name_attribute"].lower() + "="):
                    first = rdn(o["group_name_attribute"], values["name"])
                    session.rename(dn, first)
                    where = f"{first},{dn.partition(',')[2]}"
                else:
                    changes.append(("replace", o["group_name_attribute"], [values["name"]]))
            session.modify(where, changes)

        self._write("group", "update", work)

    def delete_team(self, dn: str) -> None:
        """Remove a group."""
        self._write("group", "delete", lambda s: s.delete(dn, subtree=self.options["allow_subtree_delete"]))

    def change_member(self, group_dn: str, user_dn: str, user_id: str, *, present: bool) -> None:
        """Put a user into a group or take it out."""
        o = self.options
        value = user_id if o["group_members_are_ids"] else user_dn
        verb = "add" if present else "delete"
        fine = (client.VALUE_EXISTS,) if present else (client.NO_SUCH_ATTRIBUTE,)
        change = [(verb, o["group_member_attribute"], [value])]
        self._write("group", "update", lambda s: s.modify(group_dn, change, fine))


def must_be_writable(directory: Directory, what: str, verb: str) -> None:
    """Raise 403 unless the options allow this change (``user_allow_create`` and so on)."""
    if not directory.options[f"{what}_allow_{verb}"]:
        raise forbidden(
            f"The directory of domain {directory.name} is read-only for this: {what}_allow_{verb} is false. "
            f"Change the {what} in the directory itself.", "Forbidden",
        )  # fmt: skip
