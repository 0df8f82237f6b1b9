"""What Identity's handlers call before they read: the copies in this database are compared with the directory first.

Each question is asked in the directory's own threads while the handler waits elsewhere (core/elsewhere.py). An answer
counts for ``JUST_NOW_S``, long enough for the handler to run again and for bursts of equal questions; what a token
means is looked up again after the option ``cache_time``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any, TypeVar, cast

import sqlalchemy as sa

from nubila.core import clock
from nubila.core.call import Call
from nubila.core.declare import Resource
from nubila.core.elsewhere import Elsewhere
from nubila.core.query import PAGE_KEYS
from nubila.services.identity import lookup
from nubila.services.identity.kinds import Group
from nubila.services.identity.kinds_ldap import ID_MAPPING
from nubila.services.identity.ldap import copies, entries
from nubila.services.identity.ldap.copies import PUBLIC_ID, mapping, public_id
from nubila.services.identity.ldap.directory import Directory
from nubila.services.identity.ldap.entries import Person
from nubila.services.identity.ldap.registry import directories, mapped

if TYPE_CHECKING:
    from nubila.core.cloud import Cloud
    from nubila.core.db import Reader

Row = dict[str, Any]
T = TypeVar("T")
JUST_NOW_S = 2.0
PAGING_S = 60.0
MOST_ANSWERS = 10_000
Question = tuple[Any, ...]
Asked = tuple[Directory, Question, Callable[[], None]]
_I = ID_MAPPING.c
_ALL = sa.select(_I.public_id)


# --- asking --------------------------------------------------------------------------------------------------------


def _missing(directory: Directory, questions: Iterable[Question], window_s: float) -> list[Question]:
    now = clock.monotonic()
    return [q for q in questions if now - directory.good_for.get(q, -1e9) > window_s]


def need(
    cloud: Cloud,
    asked: Sequence[Asked],
    window_s: float = JUST_NOW_S,
    *,
    tolerant: bool = False,
) -> None:
    """Raise Elsewhere unless all these questions have been answered within the window; Fault 503 when it is no use.

    ``tolerant``: what cannot be answered now counts as answered, the copies are good enough.
    """
    todo = [(d, q, work) for d, q, work in asked if _missing(d, [q], window_s)]
    if tolerant:
        todo = [(d, q, work) for d, q, work in todo if d.available()]
    for directory, _, _ in todo:
        directory.usable()
    if not todo:
        return

    def answered(directory: Directory, question: Question, work: Callable[[], None]) -> Callable[[], None]:
        def run() -> None:
            work()
            if len(directory.good_for) > MOST_ANSWERS:
                directory.good_for.clear()
            directory.good_for[question] = clock.monotonic()

        return run

    def start() -> list[Future[Any]]:
        futures = [d.guard.start(q, answered(d, q, work)) for d, q, work in todo]
        if not tolerant:
            return futures
        return [_calmed(d, q, f) for (d, q, _), f in zip(todo, futures, strict=True)]

    raise Elsewhere(start, max(d.options.deadline_s for d, _, _ in todo) + 1.0, todo[0][0].guard.late)


def _calmed(directory: Directory, question: Question, future: Future[Any]) -> Future[Any]:
    """A future that is done when the other is, and never fails; a question that failed counts as answered."""
    out: Future[Any] = Future()

    def landed(f: Future[Any]) -> None:
        if f.cancelled() or f.exception() is not None:
            directory.good_for[question] = clock.monotonic()
        out.set_result(None)

    future.add_done_callback(landed)
    return out


def done(call: Call, directory: Directory, what: Question, work: Callable[[], T], *, changes: bool = True) -> T:
    """The result of something that is done once for this request: at the first call it is done elsewhere."""
    key = (call.request_id, *what)
    if key in directory.results:
        return cast(T, directory.results[key])
    directory.usable()

    def run() -> None:
        result = work()
        directory.remember(key, result)
        if changes:
            directory.remember((call.request_id, "changed"), True)
            directory.good_for.clear()

    def start() -> list[Any]:
        return [directory.guard.start(key, run)]

    raise Elsewhere(start, directory.options.deadline_s + 1.0, directory.guard.late)


def of_id(cloud: Cloud, reader: Reader, id: str) -> tuple[Directory | None, Row] | None:
    """(directory, mapping) of a directory's user or group; the directory is None when its domain has none any more."""
    found = mapping(reader, id)
    return None if found is None else (directories(cloud, reader).get(found["domain_id"]), found)


# --- questions -----------------------------------------------------------------------------------------------------


def _user_question(cloud: Cloud, d: Directory, m: Row) -> Asked:
    """The user and the groups it is in."""
    id, local = m["public_id"], m["local_id"]

    def work() -> None:
        found = d.people_of([local])
        if len(found) != 1:
            copies.gone(cloud, d, "user", [id])
            return
        with_groups(cloud, d, found[0])

    return d, ("user", id), work


def with_groups(cloud: Cloud, d: Directory, someone: Person) -> None:
    """Write down a user and the groups it is in."""
    teams = d.teams_of(someone)
    copies.keep(cloud, d, "user", [someone])
    copies.keep(cloud, d, "group", teams)
    groups = [public_id(d.domain_id, "group", t.local_id) for t in teams]
    with cloud.store.read() as reader:
        kept = copies.local_ids(reader, groups)  # those left out for their names have no row
    copies.groups_of_user(cloud, public_id(d.domain_id, "user", someone.local_id), kept)


def _group_question(cloud: Cloud, d: Directory, m: Row) -> Asked:
    """The group and who is in it."""
    id, local = m["public_id"], m["local_id"]

    def work() -> None:
        found = d.team_with_members(local)
        if found is None:
            copies.gone(cloud, d, "group", [id])
            return
        copies.keep(cloud, d, "group", [found[0]])
        copies.keep(cloud, d, "user", found[1])
        with cloud.store.read() as reader:
            kept = copies.local_ids(reader, [public_id(d.domain_id, "user", p.local_id) for p in found[1]])
        copies.users_of_group(cloud, id, kept)

    return d, ("group", id), work


def _question(cloud: Cloud, d: Directory, m: Row) -> Asked:
    return (_user_question if m["entity_type"] == "user" else _group_question)(cloud, d, m)


def _list_question(
    cloud: Cloud, d: Directory, cls: type[Resource], asked: list[tuple[str, str]], where: list[Any]
) -> Asked:
    """Users or groups, narrowed as the client narrows them."""
    kind = "group" if cls is Group else "user"
    part = entries.wanted(d.options, kind, asked)
    t = cls.table

    def work() -> None:
        things: Sequence[Any] = d.people(*([part] if part else [])) if kind == "user" else d.teams(part)
        copies.keep(cloud, d, kind, things)
        found = {public_id(d.domain_id, kind, x.local_id) for x in things}
        with cloud.store.read() as reader:
            there = copies.present_ids(reader, d, kind)
            if part:  # which of ours would be shown although the directory did not name them?
                rows = reader.rows(sa.select(t.c.id).where(t.c.domain_id == d.domain_id, *where))
                there &= {id for (id,) in rows}
            doubtful = copies.local_ids(reader, there - found)
        if part and doubtful:
            again = d.people_of(doubtful.values()) if kind == "user" else d.teams_of_ids(doubtful.values())
            copies.keep(cloud, d, kind, again)
            still = {public_id(d.domain_id, kind, x.local_id) for x in again}
            doubtful = {id: local for id, local in doubtful.items() if id not in still}
        copies.gone(cloud, d, kind, doubtful)

    return d, ("list", kind, part, tuple(sorted(map(str, asked))) if part else ()), work


# --- what handlers call --------------------------------------------------------------------------------------------


def listed(call: Call, cls: type[Resource], where: list[Any]) -> list[Any]:
    """Further clauses of a list of users or groups: those of a directory are shown to who asks for its domain.

    Without ``domain_id`` the caller's own domain counts: one directory that is down must not break every list.
    """
    cloud, reader = call.cloud, call.tx
    found = directories(cloud, reader)
    domain = call.arg("domain_id") or call.creds.domain_id or call.creds.project_domain_id
    d = found.get(domain) if domain else None
    if d is not None:
        window = PAGING_S if call.arg("marker") is not None else JUST_NOW_S  # further pages of the same list
        asked = [(k, v) for k, v in call.query if k not in PAGE_KEYS]
        need(cloud, [_list_question(cloud, d, cls, asked, list(where))], window)
    if d is None and not mapped(cloud, reader):
        return []
    t = cls.table
    mine = _ALL.where(_I.domain_id == (d.domain_id if d else ""), _I.present.is_(True))
    return [sa.or_(t.c.id.not_in(_ALL), t.c.id.in_(mine))]


def finder(base: Callable[[Call, str], Row | None]) -> Callable[[Call, str], Row | None]:
    """The hook that looks a user or group up by id, a directory's compared with the directory first."""

    def find(call: Call, id: str) -> Row | None:
        row = base(call, id)
        if row is None or len(id) != PUBLIC_ID:
            return row
        if not compared(call, id):
            return base(call, "")  # the same refusal as for one that never was
        return base(call, id)

    return find


def compared(call: Call, id: str) -> bool:
    """Compare a directory's user (and its groups) or group (and its users) first; False when it is gone."""
    found = of_id(call.cloud, call.tx, id)
    if found is None:
        return True
    d, m = found
    if d is None:
        return False
    if (call.request_id, "changed") in d.results:  # by this request: what it has deleted must not be gone for itself
        return True
    need(call.cloud, [_question(call.cloud, d, m)])
    return bool(m["present"])


def members(call: Call, group_ids: Iterable[str]) -> None:
    """Compare the members of all these groups that are a directory's."""
    asked = []
    for id in sorted(set(group_ids)):
        found = of_id(call.cloud, call.tx, id)
        if found is not None and found[0] is not None:
            asked.append(_question(call.cloud, found[0], found[1]))
    need(call.cloud, asked, tolerant=True)


def current(cloud: Cloud, reader: Reader, row: Row) -> Row | None:
    """The row of a token's user, at most ``cache_time`` seconds old; None when the directory has it no more."""
    if len(row["id"]) != PUBLIC_ID:
        return row
    found = of_id(cloud, reader, row["id"])
    if found is None:
        return row
    d, m = found
    if d is None:
        return None
    need(cloud, [_user_question(cloud, d, m)], max(float(d.options["cache_time"]), 1.0))
    return lookup.user(reader, row["id"]) if m["present"] else None


def good_s(cloud: Cloud, reader: Reader, user_ids: Iterable[str]) -> float:
    """For how many seconds what is known about these users counts: for ever, for users of this database's own."""
    out = float("inf")
    for id in user_ids:
        found = of_id(cloud, reader, id)
        if found is not None and found[0] is not None:
            d, now = found[0], clock.monotonic()
            age = now - d.good_for.get(("user", id), now)
            out = min(out, max(float(d.options["cache_time"]) - age, 0.5))
    return out
