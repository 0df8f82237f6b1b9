"""Users and groups of a domain in a real OpenLDAP server, through the Identity API."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
import slapd
from corp import Corp, options, writable

from nubila.services.identity.ldap import client

pytestmark = [pytest.mark.host, pytest.mark.skipif(not slapd.SLAPD, reason="slapd is not installed")]
Make = Callable[..., Corp]


def until(condition: Callable[[], Any], seconds: float = 10.0) -> Any:
    """The condition's value once it is true."""
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, "it never became true"
        time.sleep(0.05)
    return found


# --- reading -------------------------------------------------------------------------------------------------------


@pytest.mark.req("A/ID-31")
def test_users_and_groups_are_shown(corp: Make) -> None:
    c = corp()
    assert c.users() == ["alice", "bob", "carol"]
    alice = c.user("alice")
    assert len(alice["id"]) == 64
    assert alice["email"] == "alice@example.org"
    assert alice["description"] == "the first"
    assert alice["enabled"] is True
    assert alice["domain_id"] == c.domain
    assert c.ask("GET", f"/v3/users/{alice['id']}").json["user"]["name"] == "alice"
    groups = c.ask("GET", f"/v3/groups?domain_id={c.domain}").json["groups"]
    assert sorted(g["name"] for g in groups) == ["empty", "staff"]
    staff = c.group("staff")
    assert sorted(u["name"] for u in c.ask("GET", f"/v3/groups/{staff['id']}/users").json["users"]) == ["alice", "bob"]
    mine = c.ask("GET", f"/v3/users/{alice['id']}/groups").json["groups"]
    assert [g["name"] for g in mine] == ["staff"]
    c.ask("HEAD", f"/v3/groups/{staff['id']}/users/{alice['id']}", status=204)
    c.ask("HEAD", f"/v3/groups/{staff['id']}/users/{c.user('carol')['id']}", status=404)


@pytest.mark.req("A/ID-31")
def test_public_ids_are_those_of_keystone_and_stay(corp: Make, ldap: slapd.Slapd) -> None:
    import hashlib

    c = corp()
    id = c.user("alice")["id"]
    assert id == hashlib.sha256(f"{c.domain}useralice".encode()).hexdigest()
    assert c.group("staff")["id"] == hashlib.sha256(f"{c.domain}groupstaff".encode()).hexdigest()
    ldap.change(f"dn: uid=alice,ou=Users,{slapd.SUFFIX}\nchangetype: modify\nreplace: mail\nmail: new@example.org\n")
    until(lambda: c.ask("GET", f"/v3/users/{id}").json["user"]["email"] == "new@example.org")
    assert c.user("alice")["id"] == id


def test_filters(corp: Make) -> None:
    c = corp()
    assert c.users("&name=bob") == ["bob"]
    assert c.users("&name=nobody") == []
    assert c.users("&name__contains=o") == ["bob", "carol"]
    assert c.users("&name__startswith=a") == ["alice"]
    assert c.users("&name__endswith=b") == ["bob"]
    assert c.users("&enabled=false") == []
    first = c.ask("GET", f"/v3/users?domain_id={c.domain}&limit=2&sort_key=name").json["users"]
    assert len(first) == 2


@pytest.mark.parametrize("name", ["*", "a*", "alice)(uid=*", "*)(objectClass=*", "\\2a", "bob\\", "(", ")"])
def test_a_name_is_never_part_of_the_filter(corp: Make, name: str) -> None:
    from urllib.parse import quote

    c = corp()
    assert c.users(f"&name={quote(name)}") == []
    assert c.users(f"&name__contains={quote(name)}") == []
    c.login(name, "alice-pw", status=401)


@pytest.mark.req("A/ID-34")
def test_who_the_filter_leaves_out_is_not_there(corp: Make, ldap: slapd.Slapd) -> None:
    c = corp(options(ldap, user_filter="(!(uid=bob))", group_filter="(cn=staff)"))
    assert c.users() == ["alice", "carol"]
    c.login("bob", "bob-pw", status=401, scope=False)
    assert [g["name"] for g in c.ask("GET", f"/v3/groups?domain_id={c.domain}").json["groups"]] == ["staff"]
    members = c.ask("GET", f"/v3/groups/{c.group('staff')['id']}/users").json["users"]
    assert [u["name"] for u in members] == ["alice"]


@pytest.mark.req("A/ID-32")
def test_trees_classes_and_attributes(corp: Make, ldap: slapd.Slapd) -> None:
    ldap.change(f"dn: ou=Other,{slapd.SUFFIX}\nobjectClass: organizationalUnit\nou: Other\n")
    ldap.change(
        f"dn: cn=dave,ou=Other,{slapd.SUFFIX}\nobjectClass: person\ncn: dave\nsn: Dave Doe\ndescription: d\n"
        "userPassword: dave-pw\n"
    )
    ldap.change(
        f"dn: cn=role,ou=Other,{slapd.SUFFIX}\nobjectClass: organizationalRole\ncn: role\ndescription: r\n"
        f"roleOccupant: cn=dave,ou=Other,{slapd.SUFFIX}\n"
    )
    c = corp(options(
        ldap, user_tree_dn=f"ou=Other,{slapd.SUFFIX}", user_objectclass="person", user_id_attribute="cn",
        user_name_attribute="sn", user_additional_attribute_mapping="description:about",
        user_attribute_ignore="description,email", group_tree_dn=f"ou=Other,{slapd.SUFFIX}",
        group_objectclass="organizationalRole", group_member_attribute="roleOccupant",
    ))  # fmt: skip
    assert c.users() == ["Dave Doe"]
    dave = c.user("Dave%20Doe")
    assert dave["about"] == "d"
    assert "description" not in dave
    groups = c.ask("GET", f"/v3/users/{dave['id']}/groups").json["groups"]
    assert [(g["name"], g["description"]) for g in groups] == [("role", "r")]
    c.login("Dave Doe", "dave-pw", scope=False)


def test_query_scope_sub_looks_deeper(corp: Make, ldap: slapd.Slapd) -> None:
    ldap.change(f"dn: ou=deep,ou=Users,{slapd.SUFFIX}\nobjectClass: organizationalUnit\nou: deep\n")
    ldap.change(slapd.person("erin").replace("ou=Users", "ou=deep,ou=Users"))
    assert corp(options(ldap)).users("&name=erin") == []
    assert corp(options(ldap, query_scope="sub")).users("&name=erin") == ["erin"]


@pytest.mark.req("A/ID-35")
def test_enabled_by_mask(corp: Make, ldap: slapd.Slapd) -> None:
    for uid, value in (("on", 512), ("off", 514)):
        more = f"objectClass: switched\nuserAccountControl: {value}\n"
        ldap.change(slapd.person(uid, password=f"pw-{uid}", more=more))
    given = writable(
        ldap, user_enabled_default=512, user_enabled_attribute="userAccountControl", user_enabled_mask=2
    )  # fmt: skip
    c = corp(given)
    assert c.user("on")["enabled"] is True
    assert c.user("off")["enabled"] is False
    c.login("on", "pw-on", scope=False)
    c.login("off", "pw-off", scope=False, status=401)
    c.ask("PATCH", f"/v3/users/{c.user('on')['id']}", {"user": {"enabled": False}})
    assert "userAccountControl: 514" in ldap.show("uid=on,ou=Users")
    c.ask("PATCH", f"/v3/users/{c.user('on')['id']}", {"user": {"enabled": True}})
    assert "userAccountControl: 512" in ldap.show("uid=on,ou=Users")


@pytest.mark.parametrize("invert", [False, True])
def test_enabled_by_attribute(corp: Make, ldap: slapd.Slapd, invert: bool) -> None:
    for uid, value in (("yes", "TRUE"), ("no", "FALSE")):
        ldap.change(slapd.person(uid, password=f"pw-{uid}", more=f"objectClass: switched\nenabled: {value}\n"))
    c = corp(writable(ldap, user_enabled_invert=invert, user_enabled_default=not invert))
    good, bad = ("no", "yes") if invert else ("yes", "no")
    assert {n: c.user(n)["enabled"] for n in (good, bad, "alice")} == {good: True, bad: False, "alice": True}
    c.login(bad, f"pw-{bad}", scope=False, status=401)
    c.ask("PATCH", f"/v3/users/{c.user(good)['id']}", {"user": {"enabled": False}})
    c.login(good, f"pw-{good}", scope=False, status=401)
    c.ask("PATCH", f"/v3/users/{c.user(good)['id']}", {"user": {"enabled": True}})
    c.login(good, f"pw-{good}", scope=False)


def test_enabled_by_membership(corp: Make, ldap: slapd.Slapd) -> None:
    enabled = f"cn=enabled_users,ou=Users,{slapd.SUFFIX}"
    ldap.change(
        f"dn: {enabled}\nobjectClass: groupOfNames\ncn: enabled_users\nmember: UID=alice, ou=users,{slapd.SUFFIX}\n"
    )
    c = corp(writable(ldap, user_enabled_emulation=True))
    assert {n: c.user(n)["enabled"] for n in ("alice", "bob")} == {"alice": True, "bob": False}
    c.login("bob", "bob-pw", scope=False, status=401)
    c.ask("PATCH", f"/v3/users/{c.user('bob')['id']}", {"user": {"enabled": True}})
    c.login("bob", "bob-pw", scope=False)
    for name in ("alice", "bob"):  # the last one takes the group along
        c.ask("PATCH", f"/v3/users/{c.user(name)['id']}", {"user": {"enabled": False}})
        c.login(name, f"{name}-pw", scope=False, status=401)
    c.ask("PATCH", f"/v3/users/{c.user('alice')['id']}", {"user": {"enabled": True}})
    assert f"uid=alice,ou=Users,{slapd.SUFFIX}" in ldap.show("cn=enabled_users,ou=Users")


def test_members_by_id_and_default_project(corp: Make, ldap: slapd.Slapd) -> None:
    ldap.change(f"dn: cn=posix,ou=UserGroups,{slapd.SUFFIX}\nobjectClass: posixGroup\ncn: posix\ngidNumber: 7\n"
                "memberUid: alice\nmemberUid: carol\n")  # fmt: skip
    c = corp(options(
        ldap, group_objectclass="posixGroup", group_member_attribute="memberUid", group_members_are_ids=True
    ))  # fmt: skip
    users = c.ask("GET", f"/v3/groups/{c.group('posix')['id']}/users").json["users"]
    assert sorted(u["name"] for u in users) == ["alice", "carol"]
    groups = c.ask("GET", f"/v3/users/{c.user('carol')['id']}/groups").json["groups"]
    assert [g["name"] for g in groups] == ["posix"]


def test_the_default_project_comes_from_the_directory(corp: Make, ldap: slapd.Slapd) -> None:
    c = corp(options(ldap, user_default_project_id_attribute="employeeNumber"))
    ldap.change(
        f"dn: uid=alice,ou=Users,{slapd.SUFFIX}\nchangetype: modify\nadd: employeeNumber\nemployeeNumber: {c.project}\n"
    )
    assert c.user("alice")["default_project_id"] == c.project
    c.grant("alice")
    assert c.login("alice", "alice-pw", scope=False).json["token"]["project"]["id"] == c.project


# --- login and tokens ----------------------------------------------------------------------------------------------


def test_nobody_waits_for_a_directory_on_the_event_loop(corp: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    where: set[str] = set()
    for name in ("_open", "_do"):
        true = getattr(client.Session, name)

        def spy(self: Any, *args: Any, _true: Any = true, **more: Any) -> Any:
            where.add(threading.current_thread().name.partition("_")[0])
            with pytest.raises(RuntimeError):
                asyncio.get_running_loop()
            return _true(self, *args, **more)

        monkeypatch.setattr(client.Session, name, spy)
    c = corp()
    c.grant("alice")
    token = c.token("alice", "alice-pw")
    c.ask("GET", "/v3/auth/projects", token=token)
    c.ask("GET", f"/v3/groups/{c.group('staff')['id']}/users")
    assert where == {"ldap"}


@pytest.mark.req("A/ID-31", "A/ID-36", "A/ID-61")
def test_login_and_roles_from_this_database(corp: Make) -> None:
    c = corp()
    c.login("alice", "alice-pw", status=401)  # no role yet
    c.grant("alice")
    c.grant("staff", "reader", "groups")
    got = c.login("alice", "alice-pw")
    assert {r["name"] for r in got.json["token"]["roles"]} == {"member", "reader"}
    assert got.json["token"]["user"]["domain"]["name"] == "corp"
    token = got.headers["x-subject-token"]
    assert c.ask("GET", "/v3/auth/projects", token=token).json["projects"][0]["id"] == c.project
    assert {r["name"] for r in c.login("bob", "bob-pw").json["token"]["roles"]} == {"reader"}
    c.login("", "alice-pw", id=c.user("alice")["id"])
    found = c.ask("GET", f"/v3/role_assignments?effective&include_names&scope.project.id={c.project}").json
    who = {(a["user"]["name"], a["role"]["name"]) for a in found["role_assignments"]}
    assert {("alice", "member"), ("alice", "reader"), ("bob", "reader")} <= who


def test_wrong_passwords_do_not_log_in(corp: Make) -> None:
    c = corp()
    c.grant("alice")
    for name, password in (("alice", "wrong"), ("alice", ""), ("carol", ""), ("carol", "x"), ("nobody", "alice-pw")):
        got = c.login(name, password, status=401)
        assert got.json["error"]["message"] == "Authentication is required: log in with valid credentials."
    body = {"auth": {"identity": {"methods": ["password"], "password": {"user": {
        "name": "alice", "domain": {"name": "corp"}}}}}}  # fmt: skip
    c.ask("POST", "/v3/auth/tokens", body, 401, token="")


def test_the_domain_of_the_file_only(corp: Make) -> None:
    c = corp()
    c.login("alice", "alice-pw", status=401, domain="Default")
    assert "alice" not in c.users(domain="default")
    assert c.cloud.token()  # admin of this database's own domain
    assert "alice" not in [u["name"] for u in c.ask("GET", "/v3/users").json["users"]]


def test_a_user_of_this_database_in_the_same_domain(corp: Make, ldap: slapd.Slapd) -> None:
    """Service users made before the domain got a directory go on working, and come first."""
    c = corp()
    with c.cloud.cloud.store.write() as tx:
        from nubila.core import checks
        from nubila.core.gates import ALWAYS
        from nubila.services.identity.hashing import passwords
        from nubila.services.identity.kinds import User

        row = checks.defaults(User, {"name": "bob", "domain_id": c.domain, "enabled": True}, ALWAYS)
        row["password"] = passwords(c.cloud.cloud).hash("local-pw")
        tx.insert(User.table, {col.name: row.get(col.name) for col in User.table.columns})
    assert c.users() == ["alice", "bob", "carol"]
    assert len(c.user("bob")["id"]) == 32
    c.login("bob", "local-pw", scope=False)
    c.login("bob", "bob-pw", scope=False, status=401)


def test_changes_in_the_directory_reach_tokens(corp: Make, ldap: slapd.Slapd) -> None:
    c = corp()
    c.grant("staff", "member", "groups")  # which implies reader
    c.grant("alice", "reader")
    token, bob = c.token("alice", "alice-pw"), c.token("bob", "bob-pw")

    def roles(t: str) -> set[str] | None:
        got = c.cloud.request("GET", "/v3/auth/tokens", token=t, headers={"X-Subject-Token": t})
        return {r["name"] for r in got.json["token"]["roles"]} if got.status == 200 else None

    assert roles(token) == {"member", "reader"}
    ldap.change(
        f"dn: cn=staff,ou=UserGroups,{slapd.SUFFIX}\nchangetype: modify\ndelete: member\n"
        f"member: uid=alice,ou=Users,{slapd.SUFFIX}\n"
    )
    until(lambda: roles(token) == {"reader"})
    assert roles(bob) == {"member", "reader"}
    ldap.change(f"dn: uid=bob,ou=Users,{slapd.SUFFIX}\nchangetype: delete\n")
    until(lambda: roles(bob) is None)
    assert c.users() == ["alice", "carol"]
    c.ask("GET", "/v3/users", token=bob, status=401)


def test_who_comes_back_is_the_same_user(corp: Make, ldap: slapd.Slapd) -> None:
    c = corp()
    c.grant("bob")
    id = c.user("bob")["id"]
    ldap.change(f"dn: uid=bob,ou=Users,{slapd.SUFFIX}\nchangetype: delete\n")
    until(lambda: c.users() == ["alice", "carol"])
    c.ask("GET", f"/v3/users/{id}", status=404)
    c.login("bob", "bob-pw", status=401)
    ldap.change(slapd.person("bob", password="bob-pw"))
    until(lambda: c.users("&name=bob"))
    assert c.user("bob")["id"] == id
    until(lambda: c.cloud.request("POST", "/v3/auth/tokens", c.credentials("bob", "bob-pw"), token="").status == 201)


# --- writing -------------------------------------------------------------------------------------------------------


@pytest.mark.req("A/ID-21", "A/ID-33")
@pytest.mark.parametrize("what", ["user", "group"])
@pytest.mark.parametrize("verb", ["create", "update", "delete"])
def test_each_switch_allows_and_refuses(corp: Make, ldap: slapd.Slapd, what: str, verb: str) -> None:
    tree = "ou=Users" if what == "user" else "ou=UserGroups"
    attribute = "uid" if what == "user" else "cn"
    there = "carol" if what == "user" else "empty"

    def attempt(c: Corp, status: int) -> Any:
        if verb == "create":
            body = {what: {"name": "zoe", "domain_id": c.domain, "description": "new"}}
            return c.ask("POST", f"/v3/{what}s", body, status)
        id = (c.user if what == "user" else c.group)(there)["id"]
        if verb == "update":
            return c.ask("PATCH", f"/v3/{what}s/{id}", {what: {"description": "changed"}}, status)
        return c.ask("DELETE", f"/v3/{what}s/{id}", None, status)

    before = ldap.dump()
    got = attempt(corp(writable(ldap) | {f"{what}_allow_{verb}": False}), 403)
    assert f"{what}_allow_{verb}" in got.json["error"]["message"]
    assert ldap.dump() == before
    attempt(corp(writable(ldap)), {"create": 201, "update": 200, "delete": 204}[verb])
    if verb == "create":
        assert "description: new" in ldap.show(f"{attribute}=zoe,{tree}")
    elif verb == "update":
        assert "description: changed" in ldap.show(f"{attribute}={there},{tree}")
    else:
        assert ldap.show(f"{attribute}={there},{tree}") == ""


@pytest.mark.req("A/ID-33")
def test_a_life_in_a_writable_directory(corp: Make, ldap: slapd.Slapd) -> None:
    c = corp(writable(ldap))
    body = {"user": {"name": "dan", "domain_id": c.domain, "password": "dan-pw", "email": "d@x.org"}}
    made = c.ask("POST", "/v3/users", body, 201).json["user"]
    assert made["email"] == "d@x.org"
    assert len(made["id"]) == 64
    c.ask("POST", "/v3/users", body, 409)
    assert "userPassword:: " in ldap.show("uid=dan,ou=Users")  # hashed by the server, shown in Base64
    c.grant("dan")
    token = c.token("dan", "dan-pw")
    c.ask("POST", f"/v3/users/{made['id']}/password", {"user": {"original_password": "no", "password": "x"}}, 401)
    new = {"user": {"original_password": "dan-pw", "password": "dan-pw-2"}}
    c.ask("POST", f"/v3/users/{made['id']}/password", new, 204, token="")
    c.ask("GET", "/v3/users", token=token, status=401)
    c.login("dan", "dan-pw", status=401)
    c.login("dan", "dan-pw-2")
    c.ask("PATCH", f"/v3/users/{made['id']}", {"user": {"password": "dan-pw-3", "email": "new@x.org"}})
    c.login("dan", "dan-pw-2", status=401)
    token = c.token("dan", "dan-pw-3")
    assert c.user("dan")["email"] == "new@x.org"
    group = c.ask("POST", "/v3/groups", {"group": {"name": "crew", "domain_id": c.domain}}, 201).json["group"]
    member = f"/v3/groups/{group['id']}/users/{made['id']}"
    c.ask("PUT", member, status=204)
    c.ask("HEAD", member, status=204)
    assert f"member: uid=dan,ou=Users,{slapd.SUFFIX}" in ldap.show("cn=crew,ou=UserGroups")
    assert [u["name"] for u in c.ask("GET", f"/v3/groups/{group['id']}/users").json["users"]] == ["dan"]
    c.ask("DELETE", member, status=204)
    c.ask("HEAD", member, status=404)
    assert c.ask("GET", f"/v3/groups/{group['id']}/users").json["users"] == []
    c.ask("DELETE", f"/v3/groups/{group['id']}", status=204)
    c.ask("DELETE", f"/v3/users/{made['id']}", status=204)
    c.ask("GET", "/v3/users", token=token, status=401)
    c.ask("GET", f"/v3/users/{made['id']}", status=404)
    assert ldap.show("uid=dan,ou=Users") == ""
    assert c.ask("POST", "/v3/users", body, 201).json["user"]["id"] == made["id"]


def test_users_of_two_back_ends_do_not_share_groups(corp: Make, ldap: slapd.Slapd) -> None:
    c = corp(writable(ldap))
    local = c.ask("POST", "/v3/users", {"user": {"name": "own"}}, 201).json["user"]["id"]
    group = c.ask("POST", "/v3/groups", {"group": {"name": "own"}}, 201).json["group"]["id"]
    c.ask("PUT", f"/v3/groups/{c.group('staff')['id']}/users/{local}", status=403)
    c.ask("PUT", f"/v3/groups/{group}/users/{c.user('alice')['id']}", status=403)


def test_what_the_directory_refuses_is_told(corp: Make, ldap: slapd.Slapd) -> None:
    c = corp({**writable(ldap), "use_dumb_member": False})
    got = c.ask("POST", "/v3/groups", {"group": {"name": "nobody", "domain_id": c.domain}}, 400)
    assert "member" in got.json["error"]["message"]  # a groupOfNames needs one
    c = corp({**writable(ldap), "user": slapd.READER, "password": slapd.READER_PASSWORD})
    got = c.ask("POST", "/v3/users", {"user": {"name": "dan", "domain_id": c.domain}}, 403)
    assert "corp" in got.json["error"]["message"]
