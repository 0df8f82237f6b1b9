"""Every Identity command of python-openstackclient, run as it is against a running cloud.

The table is played once from top to bottom; a test for each command looks at what it did. A command the client has and
the table has not is a failure: whoever installs a newer client learns what to add.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import pytest
from walk import Client, Result, clouds

from nubila.testing.started import Started, started

GROUP = "openstack.identity.v3"
RULES = [{"local": [{"user": {"name": "{0}"}}], "remote": [{"type": "REMOTE_USER"}]}]
ACCESS = [{"path": "/v2.1/servers", "method": "GET", "service": "compute"}]


@dataclass(frozen=True)
class Step:
    """One command: its name in the client, what is typed after it, what must be printed, what later steps use."""

    name: str
    typed: str = ""
    sees: tuple[str, ...] = ()
    keep: dict[str, str] = field(default_factory=dict)  # ours to the client's column
    own: str = ""  # options before the command: as somebody else


def s(name: str, typed: str = "", *sees: str, own: str = "", **keep: str) -> Step:
    return Step(name.replace(" ", "_"), typed, sees, keep, own)


# fmt: off
TABLE = (
    s("domain create", "--description D osc-domain", "osc-domain", domain="id"),
    s("domain list", "", "osc-domain", "Default"),
    s("domain set", "--description E --disable osc-domain"),
    s("domain show", "osc-domain", "osc-domain", "False"),
    s("project create", "--domain default --tag a --property k=v osc-project", "osc-project", project="id"),
    s("project list", "--tags a", "osc-project"),
    s("project set", "--description new --tag b osc-project"),
    s("project show", "osc-project", "new", "b"),
    s("user create", "--domain default --project osc-project --password first-secret --email a@b.example osc-user",
      "osc-user", user="id"),
    s("user list", "--long", "osc-user", "a@b.example"),
    s("user set", "--description D --email c@d.example osc-user"),
    s("user show", "osc-user", "c@d.example"),
    s("group create", "--description D osc-group", "osc-group"),
    s("group list", "", "osc-group"),
    s("group set", "--description E osc-group"),
    s("group show", "osc-group", "E"),
    s("group add user", "osc-group osc-user"),
    s("group contains user", "osc-group osc-user", "in group"),
    s("group remove user", "osc-group osc-user"),
    s("role create", "--description D osc-role", "osc-role", role="id"),
    s("role create", "osc-other", "osc-other"),
    s("role list", "", "osc-role", "reader"),
    s("role set", "--description E osc-role"),
    s("role show", "osc-role", "osc-role", "E"),
    s("implied role create", "osc-role --implied-role osc-other", "implies"),
    s("implied role list", "", "osc-other"),
    s("implied role delete", "osc-role --implied-role osc-other"),
    s("role add", "--project osc-project --user osc-user osc-role"),
    s("role add", "--system all --group osc-group osc-role"),
    s("role assignment list", "--names", "osc-role", "osc-user@Default", "osc-group@Default"),
    s("role remove", "--system all --group osc-group osc-role"),
    s("region create", "--description D osc-region", "osc-region"),
    s("region list", "", "osc-region", "RegionOne"),
    s("region set", "--description E osc-region"),
    s("region show", "osc-region", "E"),
    s("service create", "--name osc-service --description D osc-type", "osc-type"),
    s("service list", "--long", "osc-service"),
    s("service set", "--description E osc-service"),
    s("service show", "osc-service", "E"),
    s("endpoint create", "--region osc-region osc-service public http://h.example:1", "h.example", endpoint="id"),
    s("endpoint list", "--service osc-service", "http://h.example:1"),
    s("endpoint set", "--url http://h.example:2 {endpoint}"),
    s("endpoint show", "{endpoint}", "http://h.example:2"),
    s("endpoint add project", "{endpoint} osc-project"),
    s("endpoint remove project", "{endpoint} osc-project"),
    s("endpoint group create", "osc-endpoints {filters}", "osc-endpoints"),
    s("endpoint group list", "", "osc-endpoints"),
    s("endpoint group set", "--name osc-endpoints --filters {filters} --description E osc-endpoints"),
    s("endpoint group show", "osc-endpoints", "E"),
    s("endpoint group add project", "osc-endpoints osc-project"),
    s("endpoint group remove project", "osc-endpoints osc-project"),
    s("endpoint group delete", "osc-endpoints"),
    s("catalog list", "", "keystone", "/v3"),
    s("catalog show", "identity", "keystone"),
    s("policy create", "{policy}", policy_id="id"),
    s("policy list", "", "{policy_id}"),
    s("policy set", "--type application/x-osc {policy_id}"),
    s("policy show", "{policy_id}", "application/x-osc"),
    s("policy delete", "{policy_id}"),
    s("credential create", "--type cert osc-user blob-of-osc", "cert", credential="id"),
    s("credential list", "", "blob-of-osc"),
    s("credential set", "--user osc-user --type cert --data other-blob {credential}"),
    s("credential show", "{credential}", "other-blob"),
    s("credential delete", "{credential}"),
    s("ec2 credentials create", "", "secret", access="access"),
    s("ec2 credentials list", "", "{access}"),
    s("ec2 credentials show", "{access}", "{access}"),
    s("ec2 credentials delete", "{access}"),
    s("registered limit create", "--service osc-service --default-limit 10 osc-things", "osc-things", registered="id"),
    s("registered limit list", "", "osc-things"),
    s("registered limit set", "--default-limit 12 {registered}"),
    s("registered limit show", "{registered}", "12"),
    s("limit create", "--project osc-project --service osc-service --resource-limit 5 osc-things", "5", limit="id"),
    s("limit list", "", "osc-things"),
    s("limit set", "--resource-limit 7 {limit}"),
    s("limit show", "{limit}", "7"),
    s("limit delete", "{limit}"),
    s("registered limit delete", "{registered}"),
    s("application credential create", "--role admin --access-rules {access_rules} osc-app", "osc-app", "Secret"),
    s("application credential list", "", "osc-app"),
    s("application credential show", "osc-app", "osc-app"),
    s("access rule list", "", "/v2.1/servers", rule="ID"),
    s("access rule show", "{rule}", "GET"),
    s("application credential delete", "osc-app"),
    s("access rule delete", "{rule}"),
    s("trust create", "--project admin --role member admin osc-user", "{user}", trust="id"),
    s("trust list", "", "{trust}"),
    s("trust show", "{trust}", "{user}"),
    s("trust delete", "{trust}"),
    s("consumer create", "--description D", consumer="id", consumer_secret="secret"),
    s("consumer list", "", "{consumer}"),
    s("consumer set", "--description E {consumer}"),
    s("consumer show", "{consumer}", "E"),
    s("request token create", "--consumer-key {consumer} --consumer-secret {consumer_secret} --project admin",
      request="id", request_secret="secret"),
    s("request token authorize", "--request-key {request} --role member", verifier="oauth_verifier"),
    s("access token create", "--consumer-key {consumer} --consumer-secret {consumer_secret} --request-key {request} "
      "--request-secret {request_secret} --verifier {verifier}", "secret"),
    s("consumer delete", "{consumer}"),
    s("mapping create", "--rules {rules} osc-mapping", "osc-mapping"),
    s("mapping list", "", "osc-mapping"),
    s("mapping set", "--rules {rules} osc-mapping"),
    s("mapping show", "osc-mapping", "REMOTE_USER"),
    s("identity provider create", "--remote-id https://idp.example --description D osc-idp", "osc-idp"),
    s("identity provider list", "", "osc-idp"),
    s("identity provider set", "--description E osc-idp"),
    s("identity provider show", "osc-idp", "https://idp.example", "E"),
    s("federation protocol create", "--identity-provider osc-idp --mapping osc-mapping openid", "osc-mapping"),
    s("federation protocol list", "--identity-provider osc-idp", "openid"),
    s("federation protocol set", "--identity-provider osc-idp --mapping osc-mapping openid"),
    s("federation protocol show", "--identity-provider osc-idp openid", "osc-mapping"),
    s("federation protocol delete", "--identity-provider osc-idp openid"),
    s("federation domain list", "", "Default"),
    s("federation project list", "", "admin"),
    s("identity provider delete", "osc-idp"),
    s("mapping delete", "osc-mapping"),
    s("service provider create", "--auth-url https://sp.example/a --service-provider-url https://sp.example/s osc-sp",
      "osc-sp"),
    s("service provider list", "", "osc-sp"),
    s("service provider set", "--description E osc-sp"),
    s("service provider show", "osc-sp", "https://sp.example/a", "E"),
    s("service provider delete", "osc-sp"),
    s("user password set", "--original-password first-secret --password second-secret",
      own="--os-username osc-user --os-password first-secret --os-project-name osc-project"),
    s("token issue", "", "{user}", token="id",
      own="--os-username osc-user --os-password second-secret --os-project-name osc-project"),
    s("token revoke", "{token}"),
    s("role remove", "--project osc-project --user osc-user osc-role"),
    s("endpoint delete", "{endpoint}"),
    s("service delete", "osc-service"),
    s("region delete", "osc-region"),
    s("group delete", "osc-group"),
    s("user delete", "osc-user"),
    s("role delete", "osc-role osc-other"),
    s("project delete", "osc-project"),
    s("domain delete", "osc-domain"),
)
# fmt: on


EXTRA = {
    "=table": "user list --long",
    "=projects": "project list",
    "=roles": "role list",
    "=made": "project create osc-last",
    "=unmade": "project delete osc-last",
    "=missing": "user create --project osc-nothing-there osc-nobody",
}
"""Played after the table, for tests of their own."""


def commands() -> list[str]:
    """Every Identity command the installed client has."""
    return sorted(e.name for e in entry_points(group=GROUP))


@dataclass
class Played:
    """What each step did, and which steps could not be tried because an earlier one gave nothing."""

    results: dict[str, list[tuple[Step, Result]]] = field(default_factory=dict)
    known: dict[str, str] = field(default_factory=dict)

    def play(self, client: Client) -> None:
        for step in TABLE:
            try:
                typed = step.typed.format(**self.known)
                sees = tuple(word.format(**self.known) for word in step.sees)
            except KeyError as e:
                result = Result(step.name, 99, "", f"there is no {e}: an earlier command failed")
                self.results.setdefault(step.name, []).append((step, result))
                continue
            command = step.name.replace("_", " ")
            show = "-f json" if step.keep else ""
            result = client.run("walk-admin", f"{step.own} {command} {typed} {show}".strip())
            self.results.setdefault(step.name, []).append((Step(step.name, typed, sees), result))
            self._keep(step, result)
        for name, command in EXTRA.items():
            self.results.setdefault(name, []).append((Step(name), client.run("walk-admin", command)))

    def out(self, name: str) -> str:
        """What the last command of a name printed."""
        return self.results[name][-1][1].out

    def _keep(self, step: Step, result: Result) -> None:
        if result.status == 0 and step.keep:
            found: Any = json.loads(result.out)
            found = found[0] if isinstance(found, list) and found else found
            for ours, theirs in step.keep.items():
                if isinstance(found, dict) and theirs in found:
                    self.known[ours] = str(found[theirs])


def _play(cloud: Started, folder: Path) -> Played:
    played = Played()
    for name, content in (("rules", RULES), ("access_rules", ACCESS), ("policy", {"a": "b"}),
                          ("filters", {"interface": "public"})):  # fmt: skip
        path = folder / f"{name}.json"
        path.write_text(json.dumps(content))
        played.known[name] = str(path)
    with Client(clouds(cloud, folder)) as client:
        played.play(client)
    return played


@pytest.fixture(scope="module")
def played(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Played]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NUBILA_BCRYPT_ROUNDS", "4")  # every command logs in
        with started("simulated", "oscid") as cloud:
            yield _play(cloud, tmp_path_factory.mktemp("osc"))


def test_the_table_has_every_command() -> None:
    assert sorted({step.name for step in TABLE}) == commands()


@pytest.mark.parametrize("command", commands())
def test_a_command(played: Played, command: str) -> None:
    assert command in played.results, "add the command to the table"
    for step, result in played.results[command]:
        # where the client returns its table as the exit status (`federation protocol set`), the server did its part
        assert result.status == 0 or isinstance(result.status, list), f"$ {result.command}\n{result.out}{result.err}"
        for word in step.sees:
            assert word in result.out + result.err, f"$ {result.command}\n{result.out}"


def _columns(table: str) -> list[str]:
    return [cell.strip() for cell in table.splitlines()[1].strip("|").split("|")]


@pytest.mark.req("A/ID-04", "A/ID-05", "A/ID-06")
def test_lists_are_the_tables_of_the_document(played: Played) -> None:
    assert {"ID", "Name", "Email", "Enabled"} <= set(_columns(played.out("=table")))
    assert _columns(played.out("=projects")) == ["ID", "Name"]
    assert _columns(played.out("=roles")) == ["ID", "Name"]


@pytest.mark.req("C/IDN-01")
def test_the_id_can_be_cut_out_of_a_table(played: Played) -> None:
    """As installation guides do it: awk '/ id / {print $4}'."""
    found = [line.split()[3] for line in played.out("=made").splitlines() if " id " in line]
    assert len(found) == 1
    assert len(found[0]) == 32


@pytest.mark.req("C/IDN-02", "C/IDN-03")
def test_the_catalogue_has_three_addresses_of_each_service(played: Played) -> None:
    assert "osc-type" in played.out("service_list")
    shown = played.out("catalog_list")
    for interface in ("public", "internal", "admin"):
        assert shown.count(f"{interface}: http") >= 5


@pytest.mark.req("C/IDN-07")
def test_a_project_that_is_not_there_is_named(played: Played) -> None:
    _, result = played.results["=missing"][-1]
    assert result.status == 1
    assert "osc-nothing-there" in result.err
    assert "Traceback" not in result.err
