"""The mapping engine: what an identity provider says about somebody becomes a user, groups and projects."""

from __future__ import annotations

import re
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nubila.core.faults import Fault
from nubila.services.identity import mapping
from nubila.services.identity.mapping import NotMapped, check, evaluate

ANN = {"user": ["ann"], "first": ["Ann"], "last": ["Lee"], "groups": ["dev", "ops", "qa"], "kind": ["staff"]}
NAME = {"user": {"name": "{0}"}}


def rule(*local: Any, remote: list[dict[str, Any]]) -> dict[str, Any]:
    made = {"local": list(local), "remote": remote}
    check({"rules": [made], "schema_version": "3.0"})
    return made


def test_a_name_is_put_together() -> None:
    made = rule(
        {"user": {"name": "{1} {2}", "email": "{0}@x.example", "domain": {"name": "{0}"}}},
        remote=[{"type": "user"}, {"type": "kind", "any_one_of": ["staff"]}, {"type": "first"}, {"type": "last"}],
    )
    got = evaluate([made], ANN)
    assert got.user == {"name": "Ann Lee", "email": "ann@x.example", "domain": {"name": "ann"}, "type": "ephemeral"}


@pytest.mark.parametrize(
    ("condition", "applies"),
    [
        ({"any_one_of": ["staff", "guest"]}, True),
        ({"any_one_of": ["guest"]}, False),
        ({"any_one_of": ["st.*"]}, False),
        ({"any_one_of": ["^st"], "regex": True}, True),
        ({"any_one_of": ["^af"], "regex": True}, False),
        ({"not_any_of": ["guest"]}, True),
        ({"not_any_of": ["staff"]}, False),
        ({"not_any_of": ["f$"], "regex": True}, False),
    ],
)
def test_conditions_decide_whether_a_rule_applies(condition: dict[str, Any], applies: bool) -> None:
    made = rule(NAME, remote=[{"type": "user"}, {"type": "kind", **condition}])
    if applies:
        assert evaluate([made], ANN).user["name"] == "ann"
    else:
        with pytest.raises(NotMapped, match="no rule"):
            evaluate([made], ANN)


@pytest.mark.parametrize("what", ["missing", "empty"])
def test_a_rule_needs_what_it_asks_for(what: str) -> None:
    made = rule(NAME, remote=[{"type": "user"}, {"type": "phone"}])
    with pytest.raises(NotMapped):
        evaluate([made], {**ANN, "phone": []} if what == "empty" else ANN)


@pytest.mark.parametrize(
    ("condition", "names"),
    [
        ({}, ["dev", "ops", "qa"]),
        ({"whitelist": ["qa", "dev", "x"]}, ["dev", "qa"]),
        ({"blacklist": ["qa"]}, ["dev", "ops"]),
        ({"whitelist": ["^.{3}$"], "regex": True}, ["dev", "ops"]),
        ({"blacklist": ["o", "q"], "regex": True}, ["dev"]),
        ({"whitelist": []}, []),
        ({"blacklist": []}, ["dev", "ops", "qa"]),
    ],
)
def test_lists_of_groups_are_filtered(condition: dict[str, Any], names: list[str]) -> None:
    made = rule(
        NAME, {"groups": "{1}", "domain": {"id": "d"}}, {"group_ids": "{1}"},
        remote=[{"type": "user"}, {"type": "groups", **condition}],
    )  # fmt: skip
    got = evaluate([made], ANN)
    assert [name for name, domain in got.group_names if domain == {"id": "d"}] == names
    assert got.group_ids == names


def test_groups_are_named_in_every_way() -> None:
    made = rule(
        NAME, {"group": {"id": "g1"}}, {"group": {"name": "{0}s", "domain": {"name": "D"}}},
        {"group_ids": "['g2', 'g1', 'g3']"}, {"group_ids": "g4"},
        remote=[{"type": "user"}],
    )  # fmt: skip
    got = evaluate([made], ANN)
    assert got.group_ids == ["g1", "g2", "g3", "g4"]
    assert got.group_names == [("anns", {"name": "D"})]


def test_a_provider_may_name_domains_only_where_the_rule_does_not() -> None:
    remote = [{"type": "user"}, {"type": "groups"}]
    said = {**ANN, "groups": ['JSON:{"name": "root", "domain": {"name": "D"}}', "['a', 'b']"]}
    fixed = rule(NAME, {"groups": "{1}", "domain": {"id": "mine"}}, remote=remote)
    assert {domain["id"] for _, domain in evaluate([fixed], said).group_names} == {"mine"}
    assert [name for name, _ in evaluate([fixed], said).group_names][1] == "['a', 'b']"  # a name, not a list
    free = rule(NAME, {"groups": "{1}"}, remote=remote)
    assert evaluate([free], {**said, "groups": said["groups"][:1]}).group_names == [("root", {"name": "D"})]
    for bad in ("dev", "JSON:{", "JSON:[]", 'JSON:{"name": "x"}'):
        with pytest.raises(NotMapped):
            evaluate([free], {**said, "groups": [bad]})


def test_all_rules_that_apply_add_up_and_the_first_user_counts() -> None:
    rules = [
        rule({"user": {"name": "{0}"}}, remote=[{"type": "user"}]),
        rule({"user": {"name": "{0}"}, "group": {"id": "g"}}, remote=[{"type": "last"}]),
        rule({"group": {"id": "h"}}, remote=[{"type": "kind", "any_one_of": ["guest"]}]),
    ]
    got = evaluate(rules, ANN)
    assert (got.user["name"], got.group_ids) == ("ann", ["g"])


def test_domains_and_projects_by_version() -> None:
    projects = [{"name": "P {0}", "roles": [{"name": "member"}]}]
    made = rule({**NAME, "domain": {"id": "d"}, "projects": projects}, remote=[{"type": "user"}])
    one, two, three = (evaluate([made], ANN, v) for v in mapping.VERSIONS)
    assert "domain" not in one.user
    assert "domain" not in one.projects[0]
    assert two.user["domain"] == two.projects[0]["domain"] == {"id": "d"}
    assert two.projects[0]["name"] == "P ann"
    assert [one.sync_projects, two.sync_projects, three.sync_projects] == [False, False, True]


def test_braces_of_other_kinds_mean_nothing() -> None:
    said = {"user": ["{0.__class__} %s {1} ${x}"]}
    made = rule({"user": {"name": "<{0}>"}}, remote=[{"type": "user"}])
    assert evaluate([made], said).user["name"] == "<{0.__class__} %s {1} ${x}>"
    odd = rule({"user": {"name": "{0.__class__}{0!r}{}{0:>9}"}}, remote=[{"type": "user"}])
    assert evaluate([odd], ANN).user["name"] == "{0.__class__}{0!r}{}{0:>9}"


def test_expressions_look_at_values_of_bounded_length() -> None:
    made = rule(NAME, remote=[{"type": "user"}, {"type": "kind", "any_one_of": ["a"], "regex": True}])
    with pytest.raises(NotMapped):
        evaluate([made], {**ANN, "kind": ["a" * 5000]})


VALUES = st.dictionaries(st.sampled_from("abc"), st.lists(st.text(max_size=8), max_size=4), max_size=3)
WORDS = ("any_one_of", "not_any_of", "whitelist", "blacklist")
CONDITION = st.one_of(
    st.just({}),
    st.tuples(st.sampled_from(WORDS), st.lists(st.text(max_size=3), max_size=3)).map(lambda c: {c[0]: c[1]}),
)
REMOTE = st.tuples(st.sampled_from("abc"), CONDITION).map(lambda t: {"type": t[0], **t[1]})
REMOTES = st.lists(REMOTE, min_size=1, max_size=4)


@settings(max_examples=600, deadline=None)
@given(said=VALUES, remote=REMOTES, text=st.text(alphabet="x{}01", max_size=8))
def test_whatever_is_accepted_can_be_evaluated(said: dict[str, list[str]], remote: list[Any], text: str) -> None:
    """A mapping that passes the check never fails in another way than NotMapped; values stay what they were."""
    body = {"rules": [{"local": [{"user": {"name": text}}, {"group_ids": "{0}"}], "remote": remote}]}
    try:
        check(body)
    except Fault:
        return
    try:
        got = evaluate(body["rules"], said)
    except NotMapped:
        return
    everything = {v for values in said.values() for v in values}
    assert set(got.group_ids) <= everything
    assert isinstance(got.user.get("name", ""), str)


@settings(max_examples=400, deadline=None)
@given(said=VALUES, wanted=st.lists(st.text(max_size=3), max_size=3))
def test_white_and_black_split_a_list(said: dict[str, list[str]], wanted: list[str]) -> None:
    values = said.get("a", [])

    def kept(word: str) -> list[str]:
        made = rule({"group_ids": "{0}"}, remote=[{"type": "a", word: wanted}])
        try:
            return evaluate([made], said).group_ids
        except NotMapped:
            assert not values
            return []

    white, black = kept("whitelist"), kept("blacklist")
    assert set(white) | set(black) == set(values)
    assert not set(white) & set(black)
    exactly = [f"^{re.escape(w)}\\Z" for w in wanted]
    exact = rule({"group_ids": "{0}"}, remote=[{"type": "a", "whitelist": exactly, "regex": True}])
    if values:
        assert evaluate([exact], said).group_ids == white
