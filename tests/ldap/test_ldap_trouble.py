"""A directory with TLS of every kind, with many users, one that is down, one that hangs, and two domains at once."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import slapd
from corp import PEOPLE, Corp, options, writable

from nubila.core.config import Sections
from nubila.services.identity.ldap import client
from nubila.services.identity.ldap.options import BadOption, parse
from nubila.testing.started import free_port

pytestmark = [pytest.mark.host, pytest.mark.skipif(not slapd.SLAPD, reason="slapd is not installed")]
Make = Callable[..., Corp]
MANY = 5000


# --- TLS -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory, authorities: dict[str, Any]) -> Iterator[dict[str, slapd.Slapd]]:
    """Servers with a good certificate, with one for another name, and without TLS."""
    root = tmp_path_factory.mktemp("tls")
    made = {
        "good": slapd.Slapd(root / "good", certificate=authorities["server"], ldif=PEOPLE),
        "other": slapd.Slapd(root / "other", certificate=authorities["other"], ldif=PEOPLE),
        "none": slapd.Slapd(root / "none", ldif=PEOPLE),
    }
    yield made
    for server in made.values():
        server.stop()


def attempt(server: slapd.Slapd, how: str, **more: Any) -> str:
    """ "" when a search as the service account works, else why it does not."""
    url = {"plain": server.url, "starttls": server.url, "ldaps": server.ldaps, "ldapi": server.ldapi}[how]
    given = parse(options(server, **more) | {"url": url, "use_tls": how == "starttls"})
    session = client.Session(given, client.address(url))
    try:
        session.open()
        assert session.bind(slapd.READER, slapd.READER_PASSWORD)
        assert session.search(f"ou=Users,{slapd.SUFFIX}", "one", "(uid=alice)", ["uid"])
        encrypted = hasattr(session._connection.socket, "getpeercert")
        assert encrypted == (how in ("starttls", "ldaps"))
    except client.Unreachable as e:
        return e.reason
    finally:
        session.close()
    return ""


@pytest.mark.req("A/ID-37")
@pytest.mark.parametrize("how", ["plain", "starttls", "ldaps"])
@pytest.mark.parametrize("mode", ["demand", "allow", "never"])
@pytest.mark.parametrize("ca", ["good", "bad"])
def test_transport_by_mode_by_authority(
    servers: dict[str, slapd.Slapd], authorities: dict[str, Any], how: str, mode: str, ca: str,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    why = attempt(servers["good"], how, tls_req_cert=mode, tls_cacertfile=str(authorities[ca]))
    assert ("CERTIFICATE_VERIFY_FAILED" in why) == (how != "plain" and mode == "demand" and ca == "bad"), why
    assert bool(why) == (how != "plain" and mode == "demand" and ca == "bad")
    warned = "certificate not verified" in caplog.text
    assert warned == (how != "plain" and mode == "allow" and ca == "bad"), caplog.text


@pytest.mark.req("A/ID-37")
@pytest.mark.parametrize("mode", ["demand", "allow", "never"])
@pytest.mark.parametrize("how", ["starttls", "ldaps"])
def test_names_and_servers_without_tls(
    servers: dict[str, slapd.Slapd], authorities: dict[str, Any], how: str, mode: str
) -> None:
    more = {"tls_req_cert": mode, "tls_cacertfile": str(authorities["good"])}
    assert bool(attempt(servers["other"], how, **more)) == (mode == "demand")
    assert attempt(servers["none"], how, **more)  # never in the clear when TLS is asked for


@pytest.mark.req("A/ID-37")
def test_a_folder_of_authorities_counts_without_a_file(
    servers: dict[str, slapd.Slapd], authorities: dict[str, Any], tmp_path: Path
) -> None:
    folder = tmp_path / "cas"
    folder.mkdir()
    (folder / "one.pem").write_bytes(authorities["good"].read_bytes())
    (folder / "two.pem").write_bytes(authorities["bad"].read_bytes())
    assert attempt(servers["good"], "ldaps", tls_cacertdir=str(folder)) == ""
    assert attempt(servers["good"], "ldaps", tls_cacertdir=str(folder), tls_cacertfile=str(authorities["bad"]))
    assert "cannot be read" in attempt(servers["good"], "ldaps", tls_cacertdir=str(tmp_path / "nowhere"))
    assert attempt(servers["good"], "ldapi") == ""


def test_an_empty_password_never_binds(servers: dict[str, slapd.Slapd]) -> None:
    """This server takes a name without a password for an anonymous bind, as many do, and says yes."""
    session = client.Session(given := parse(options(servers["none"])), client.address(given.urls[0])).open()
    assert session.bind(slapd.READER, "") is False
    assert session.bind(None, "") is True
    session.close()


def test_login_over_tls(servers: dict[str, slapd.Slapd], authorities: dict[str, Any], corp: Make) -> None:
    given = options(servers["good"], url=servers["good"].ldaps, tls_cacertfile=str(authorities["good"]))
    corp(given).login("alice", "alice-pw", scope=False)
    got = corp({**given, "tls_cacertfile": str(authorities["bad"])}).login("alice", "alice-pw", scope=False, status=503)
    assert "CERTIFICATE_VERIFY_FAILED" in got.json["error"]["message"]


# --- many ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Iterator[slapd.Slapd]:
    """5,000 users, all in one group."""
    names = [f"user{i:04}" for i in range(MANY)]
    people = "\n".join(slapd.person(n, password="pw" if n == "user4999" else "") for n in names)
    server = slapd.Slapd(tmp_path_factory.mktemp("many") / "slapd", ldif=people + "\n" + slapd.group("all", *names))
    yield server
    server.stop()


def test_paging_through_five_thousand_users(many: slapd.Slapd, corp: Make) -> None:
    c = corp(options(many, operation_timeout=20))
    started = time.monotonic()
    assert len(c.users()) == MANY
    assert time.monotonic() - started < 20
    assert c.users("&name=user4999") == ["user4999"]
    assert len(c.users("&name__startswith=user49")) == 100
    c.login("user4999", "pw", scope=False)
    seen: list[str] = []
    query = "&limit=1000&sort_key=name"
    while True:
        got = c.ask("GET", f"/v3/users?domain_id={c.domain}{query}").json["users"]
        seen += [u["name"] for u in got]
        if len(got) < 1000:
            break
        query = f"&limit=1000&sort_key=name&marker={got[-1]['id']}"
    assert seen == [f"user{i:04}" for i in range(MANY)]
    members = c.ask("GET", f"/v3/groups/{c.group('all')['id']}/users").json["users"]
    assert len(members) == MANY


def test_without_paging_the_limit_of_the_server_is_explained(many: slapd.Slapd, corp: Make) -> None:
    c = corp(options(many, page_size=0))
    assert "page_size" in c.users(status=503)["error"]["message"]
    assert c.users("&name=user0001") == ["user0001"]


# --- trouble -------------------------------------------------------------------------------------------------------


def test_two_domains_and_one_is_down(corp: Make, ldap: slapd.Slapd, servers: dict[str, slapd.Slapd]) -> None:
    c = corp(other=options(servers["good"]))
    c.grant("alice")
    c.grant("staff", "reader", "groups")
    c.login("bob", "bob-pw", domain="other", scope=False)
    token = c.token("alice", "alice-pw")
    ldap.stop()
    got = c.login("alice", "alice-pw", status=503)
    assert "domain corp" in got.json["error"]["message"]
    assert int(got.headers["retry-after"]) >= 1
    assert "refused" in c.users(status=503)["error"]["message"]
    c.login("bob", "bob-pw", domain="other", scope=False)
    assert c.users(domain=c.domains["other"]) == ["alice", "bob", "carol"]
    assert c.ask("GET", "/v3/users").json["users"]
    assert c.ask("GET", "/v3/role_assignments?effective").json["role_assignments"]
    c.cloud.login("admin", c.cloud.passwords["admin"], "admin")
    deadline = time.monotonic() + 10  # what is known of a token's user counts for cache_time only
    while c.cloud.request("GET", "/v3/auth/projects", token=token).status != 503:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    ldap.start()
    deadline = time.monotonic() + 20
    while (status := c.cloud.request("GET", "/v3/auth/projects", token=token).status) != 200:
        assert status == 503
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_a_restarted_server_is_not_noticed(corp: Make, ldap: slapd.Slapd) -> None:
    c = corp()
    c.login("alice", "alice-pw", scope=False)
    ldap.stop()
    ldap.start()
    c.login("bob", "bob-pw", scope=False)
    assert c.users() == ["alice", "bob", "carol"]


@pytest.mark.req("A/PAIN-20")
def test_the_second_server_answers_when_the_first_is_down(corp: Make, ldap: slapd.Slapd) -> None:
    dead = f"ldap://127.0.0.1:{free_port()}"
    c = corp(options(ldap, url=f"{dead},{ldap.url}"))
    c.login("alice", "alice-pw", scope=False)
    c = corp(options(ldap, url=f"{dead} {ldap.url}", randomize_urls=True))
    c.login("alice", "alice-pw", scope=False)


@pytest.mark.parametrize("how", ["mute", "frozen"])
def test_a_directory_that_hangs(corp: Make, ldap: slapd.Slapd, servers: dict[str, slapd.Slapd], how: str) -> None:
    """Every wait ends in time, most at once; other domains and this database's own users do not notice."""
    import contextlib

    with contextlib.ExitStack() as stack:
        if how == "mute":
            url = f"ldap://127.0.0.1:{stack.enter_context(slapd.pretender())}"
            c = corp(options(ldap, url=url, operation_timeout=1), other=options(servers["good"]))
        else:
            c = corp(options(ldap, operation_timeout=1), other=options(servers["good"]))
            c.login("alice", "alice-pw", scope=False)  # leaves connections in the pools
            ldap.freeze()
            stack.callback(ldap.thaw)
        before = threading.active_count()
        started, statuses, took = time.monotonic(), [], []

        def login() -> None:
            mine = time.monotonic()
            body = c.credentials(f"user{len(statuses)}", "x", scope=False)
            statuses.append(c.cloud.request("POST", "/v3/auth/tokens", body, token="").status)
            took.append(time.monotonic() - mine)

        threads = [threading.Thread(target=login) for _ in range(20)]
        for t in threads:
            t.start()
        fast = time.monotonic()
        c.login("bob", "bob-pw", domain="other", scope=False)
        c.cloud.login("admin", c.cloud.passwords["admin"], "admin")
        assert time.monotonic() - fast < 10, "behind the twenty it would be 20 s"
        for t in threads:
            t.join(30)
        assert statuses == [503] * 20
        assert time.monotonic() - started < 20, "one after the other"
        took.clear()
        for _ in range(3):  # the breaker is open by now and lets one through at most
            quick = time.monotonic()
            got = c.login("alice", "alice-pw", status=503)
            took.append(time.monotonic() - quick)
            assert "no answer in time" in got.json["error"]["message"]
        assert min(took) < 1.0, "one that asks the directory takes at least its timeout"
        assert threading.active_count() < before + 12
    if how == "frozen":
        deadline = time.monotonic() + 20
        body = c.credentials("alice", "alice-pw", scope=False)
        while c.cloud.request("POST", "/v3/auth/tokens", body, token="").status != 201:
            assert time.monotonic() < deadline
            time.sleep(0.1)


@pytest.mark.parametrize(("answer", "drip_s"), [
    (b"", 0), (b"HTTP/1.1 400 Bad Request\r\n\r\n", 0), (b"\xff" * 64, 0), (b"\x30\x84\x7f\xff\xff\xff", 0),
    (b"\x30\x05\x02\x01\x01\x61\x00", 0), (b"\x30\x03\x02\x01", 0), (b"\0" * 5000, 0),
    (b"\x30\x82\x10\x00" + b"\x02" * 1000, 0.2),
], ids=["hangs-up", "http", "ones", "huge", "empty-answer", "cut-short", "zeros", "drips"])  # fmt: skip
def test_something_that_is_no_directory(corp: Make, ldap: slapd.Slapd, answer: bytes, drip_s: float) -> None:
    with slapd.pretender(answer, drip_s=drip_s) as port:
        c = corp(options(ldap, url=f"ldap://127.0.0.1:{port}", operation_timeout=1))
        started = time.monotonic()
        assert "domain corp" in c.users(status=503)["error"]["message"]
        assert time.monotonic() - started < 20
        c.cloud.login("admin", c.cloud.passwords["admin"], "admin")
        directory = next(iter(c.cloud.cloud.memory["identity.ldap"].made.values()))[1]
        deadline = time.monotonic() + 10
        while directory.guard.threads():  # whoever waits is freed
            directory.available()
            assert time.monotonic() < deadline
            time.sleep(0.05)


def test_a_wrong_service_account_is_told(corp: Make, ldap: slapd.Slapd) -> None:
    c = corp(options(ldap, password="wrong"))
    assert "does not accept" in c.users(status=503)["error"]["message"]
    assert slapd.READER_PASSWORD not in str(c.users(status=503))


def test_the_password_of_the_service_account_from_a_file(corp: Make, ldap: slapd.Slapd, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    given = {k: v for k, v in options(ldap, password_file=str(secret)).items() if k != "password"}
    c = corp(given)
    assert "password_file" in c.users(status=503)["error"]["message"]
    secret.write_text(slapd.READER_PASSWORD + "\n")
    deadline = time.monotonic() + 20
    while c.cloud.request("GET", f"/v3/users?domain_id={c.domain}").status != 200:
        assert time.monotonic() < deadline
        time.sleep(0.1)


# --- configuration -------------------------------------------------------------------------------------------------


def test_the_api_configures_a_domain(corp: Make, ldap: slapd.Slapd) -> None:
    c = corp(options(ldap), plain={})
    del c.cloud.cloud.settings.ldap["plain"]
    domain = c.domains["plain"]
    given = {k: v for k, v in options(ldap).items() if "timeout" not in k and k != "cache_time"}
    body = {"config": {"identity": {"driver": "ldap"}, "ldap": given}}
    c.ask("PUT", f"/v3/domains/{domain}/config", body, 201)
    assert c.users(domain=domain) == ["alice", "bob", "carol"]
    c.login("alice", "alice-pw", domain="plain", scope=False)
    token = c.login("alice", "alice-pw", domain="plain", scope=False).headers["x-subject-token"]
    c.ask("PATCH", f"/v3/domains/{domain}/config/ldap", {"config": {"ldap": {"user_filter": "(uid=bob)"}}})
    assert c.users(domain=domain) == ["bob"]
    c.ask("DELETE", f"/v3/domains/{domain}/config", status=204)
    assert c.users(domain=domain) == []
    c.ask("GET", "/v3/auth/projects", token=token, status=401)
    c.login("alice", "alice-pw", domain="plain", scope=False, status=401)


def test_settings_that_are_read_again_hold_at_once(corp: Make, ldap: slapd.Slapd) -> None:
    c = corp()
    assert len(c.users()) == 3
    cloud = c.cloud.cloud
    cloud.settings = replace(cloud.settings, ldap=Sections(corp=options(ldap, user_filter="(uid=bob)")))
    assert c.users() == ["bob"]
    cloud.settings = replace(cloud.settings, ldap=Sections())
    assert c.users() == []
    c.login("bob", "bob-pw", scope=False, status=401)


def test_a_wrong_option_stops_that_domain_only(corp: Make, ldap: slapd.Slapd) -> None:
    c = corp(options(ldap, user_tree="x"))
    assert "user_tree_dn" in c.users(status=503)["error"]["message"]
    c.cloud.login("admin", c.cloud.passwords["admin"], "admin")


@pytest.mark.parametrize(("given", "word"), [
    ({"url": "http://x"}, "ldap://"), ({"tls_req_cert": "maybe"}, "demand"), ({"user_filter": "uid=*"}, "brackets"),
    ({"use_tls": True, "url": "ldaps://x"}, "exclude"), ({"page_size": "many"}, "int"),
    ({"query_scop": "sub"}, "query_scope"),
    ({"use_tls": "perhaps"}, "bool"), ({"cache_time": -1}, "cache_time"),
])  # fmt: skip
def test_options_are_checked(given: dict[str, Any], word: str) -> None:
    with pytest.raises(BadOption, match=word):
        parse(given)


def test_a_deleted_domain_takes_its_copies_along(corp: Make, ldap: slapd.Slapd) -> None:
    c = corp(writable(ldap))
    assert len(c.users()) == 3
    before = ldap.dump()
    c.ask("DELETE", f"/v3/projects/{c.project}", status=204)
    c.ask("PATCH", f"/v3/domains/{c.domain}", {"domain": {"enabled": False}})
    c.ask("DELETE", f"/v3/domains/{c.domain}", status=204)
    assert ldap.dump() == before  # the directory is somebody else's
    again = c.make_domain("corp")
    assert c.users(domain=again) == ["alice", "bob", "carol"]


def test_sections_are_read_from_the_file(tmp_path: Path) -> None:
    from nubila.core import config

    path = tmp_path / "nubila.toml"
    path.write_text('[ldap."My Corp"]\nurl = "ldap://ldap.example.org"\n')
    assert config.load(path, environ={}).ldap == Sections({"My Corp": {"url": "ldap://ldap.example.org"}})
