"""The parts of the LDAP back end that need no server: filters, ids, enabled, options, the circuit breaker."""

from __future__ import annotations

import asyncio
import threading
import uuid
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from ldap3.operation.search import MATCH_EQUAL, parse_filter
from ldap3.protocol.convert import prepare_filter_for_sending

from nubila.core import clock
from nubila.core.db import Busy
from nubila.core.elsewhere import Elsewhere, settled
from nubila.core.faults import Fault, unavailable
from nubila.services.identity.ldap import entries, guard
from nubila.services.identity.ldap.client import Entry, Unreachable, address
from nubila.services.identity.ldap.directory import Directory
from nubila.services.identity.ldap.options import parse


@given(st.text(min_size=1))
@example(")(uid=*").via("an injection")
@example(" padded ").via("spaces count")
def test_no_text_leaves_its_place_in_a_filter(text: str) -> None:
    made = parse_filter(f"(uid={entries.escaped(text)})", None, False, None, None, False)
    assert len(made.elements) == 1
    leaf = made.elements[0]
    assert leaf.tag == MATCH_EQUAL  # an equality match, not presence, substrings or several
    assert bytes(prepare_filter_for_sending(leaf.assertion["value"])) == text.encode(errors="surrogatepass")


@given(st.text(min_size=1).filter(lambda t: "\0" not in t))
def test_no_text_leaves_its_place_in_a_dn(text: str) -> None:
    from ldap3.utils.dn import parse_dn

    parsed = parse_dn(f"{entries.rdn('uid', text)},ou=Users,dc=x")
    assert [part[0] for part in parsed] == ["uid", "ou", "dc"]


def test_an_object_guid_is_a_uuid() -> None:
    o = parse({"user_id_attribute": "objectGUID", "user_name_attribute": "cn"})
    guid = uuid.UUID("6b3d2c1a-0001-4002-8003-aabbccddeeff")
    entry = Entry("cn=a,dc=x", {"objectguid": [guid.bytes_le], "cn": [b"a"]})
    one = entries.person(o, entry, None)
    assert one is not None
    assert one.local_id == str(guid)
    found = entries.id_filter("objectGUID", one.local_id)
    assert found == "(objectGUID=" + "".join(f"\\{b:02x}" for b in guid.bytes_le) + ")"


@pytest.mark.req("A/ID-35")
@pytest.mark.parametrize(("value", "enabled"), [(512, True), (514, False), (66048, True), (66050, False), (None, True)])
def test_the_mask(value: int | None, enabled: bool) -> None:
    o = parse({"user_enabled_attribute": "uac", "user_enabled_mask": 2, "user_enabled_default": 512,
               "user_id_attribute": "cn", "user_name_attribute": "cn"})  # fmt: skip
    more = {} if value is None else {"uac": [str(value).encode()]}
    one = entries.person(o, Entry("cn=a", {"cn": [b"a"], **more}), None)
    assert one is not None
    assert one.enabled is enabled
    before = None if value is None else str(value)
    text = entries.enabled_value(o, not enabled, before)
    assert int(text or 0) == (value or 512) ^ 2  # only that bit changes


def test_groups_in_groups_by_the_rule_of_active_directory(monkeypatch: pytest.MonkeyPatch) -> None:
    made = Directory("d", "corp", parse({"group_ad_nesting": True}))
    asked: list[str] = []
    monkeypatch.setattr(made, "teams", lambda *parts, **_: asked.extend(parts) or [])
    made.teams_of(entries.Person("a", "cn=a (b),dc=x", "a", True))
    assert asked == ["(member:1.2.840.113556.1.4.1941:=cn=a\\20\\28b\\29,dc=x)"]


def test_addresses() -> None:
    assert str(address("ldaps://h")) == "ldaps://h:636"
    assert str(address("ldap://[::1]:1389")) == "ldap://::1:1389"
    assert str(address("ldapi://%2Frun%2Fx")) == "ldapi:///run/x"


def test_the_old_forms_of_values() -> None:
    o = parse({"use_tls": "True", "page_size": "100", "user_attribute_ignore": "a, b", "connection_timeout": -1})
    assert (o["use_tls"], o["page_size"], o["user_attribute_ignore"]) == (True, 100, ("a", "b"))
    assert o["connection_timeout"] == 5  # no wait is for ever
    assert o.user_tree == "ou=Users,cn=example,cn=com"


# --- the guard -----------------------------------------------------------------------------------------------------


def fails() -> None:
    raise Unreachable("ldap://x", "no answer in time")


def outcome(made: guard.Guard, key: object, work: Any) -> str:
    try:
        made.start(key, work).result(10)
    except Fault as e:
        status, message = e.status, e.message
        return message if status == 503 else f"HTTP {status}"
    return ""


def test_the_breaker_opens_and_closes(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [1000.0]
    monkeypatch.setattr(clock, "monotonic", lambda: now[0])
    made = guard.Guard("corp", 5.0, lambda thread: None)
    ran: list[int] = []
    for i in range(5):
        assert "no answer in time" in outcome(made, i, lambda: (ran.append(1), fails()))
    assert len(ran) == guard.FAILURES  # afterwards nobody even tries
    with pytest.raises(Fault, match="domain corp"):
        made.check()
    now[0] += guard.PAUSE_S + 0.1
    made.check()
    outcome(made, "trial", lambda: (ran.append(1), fails()))
    assert len(ran) == guard.FAILURES + 1
    now[0] += guard.PAUSE_S + 0.1  # the pause has doubled
    assert outcome(made, "early", lambda: ran.append(1))
    now[0] += guard.PAUSE_S
    assert outcome(made, "late", lambda: ran.append(1)) == ""
    assert outcome(made, "after", lambda: ran.append(1)) == ""
    made.close()


def test_equal_questions_are_asked_once_and_the_queue_is_bounded() -> None:
    made = guard.Guard("corp", 30.0, lambda thread: None)
    gate, ran = threading.Event(), []

    def work() -> None:
        gate.wait(10)
        ran.append(1)

    same = [made.start("q", work) for _ in range(10)]
    assert all(future is same[0] for future in same)
    others = [made.start(i, work) for i in range(guard.WAITING - 1)]
    with pytest.raises(Fault, match="too many"):
        made.start("one more", work)
    gate.set()
    for future in [*same, *others]:
        future.result(10)
    assert len(ran) == guard.WAITING
    made.close()


def test_what_runs_too_long_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [1000.0]
    monkeypatch.setattr(clock, "monotonic", lambda: now[0])
    gate, begun = threading.Event(), threading.Event()
    made = guard.Guard("corp", 5.0, lambda thread: gate.set())

    def work() -> None:
        begun.set()
        if gate.wait(10):
            fails()

    future = made.start("q", work)
    begun.wait(10)
    now[0] += 6.0
    made.late()
    with pytest.raises(Fault):
        future.result(10)
    made.close()


def test_work_elsewhere_for_who_has_a_thread_and_for_who_has_a_loop() -> None:
    made = guard.Guard("corp", 5.0, lambda thread: None)
    there: list[int] = []

    def handler() -> str:
        if not there:
            raise Elsewhere(lambda: [made.start("q", lambda: there.append(1))], 5.0, made.late)
        return "done"

    assert settled(handler) == "done"
    gate = threading.Event()

    async def late() -> None:
        slow = Elsewhere(lambda: [made.start("s", lambda: gate.wait(10))], 0.05, lambda: unavailable("late"))
        with pytest.raises(Fault, match="late"):
            await slow.done()
        gate.set()

    asyncio.run(late())
    made.close()


def test_a_closed_guard_says_so() -> None:
    made = guard.Guard("corp", 5.0, lambda thread: None)
    made.close()
    assert "just changed" in outcome(made, "q", lambda: None)
    assert made.threads() == 0


def test_a_busy_database_is_asked_again() -> None:
    made = guard.Guard("corp", 5.0, lambda thread: None)
    tries: list[int] = []

    def work() -> None:
        tries.append(1)
        if len(tries) < 3:
            raise Busy("locked")

    assert outcome(made, "q", work) == ""
    assert len(tries) == 3

    def never() -> None:
        raise Busy("locked")

    assert "database is busy" in outcome(made, "r", never)
    assert made.breaker.failures == 0  # that is not the directory's fault
    made.close()
