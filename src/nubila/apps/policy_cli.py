"""``nubila policy``: who may do what, and why. A shell around apps/policy_view.py."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import click

state_option = click.option(
    "--state", type=click.Path(path_type=Path, file_okay=False), help="State directory of the cloud."
)
service_option = click.option("--service", default="", help="Only this service.")


def _state(value: Path | None) -> Path:
    from nubila.apps.lifecycle import default_state

    return (value or default_state()).absolute()


@click.group()
def policy() -> None:
    """Who may do what, and why."""


@policy.command()
@click.argument("rule", required=False)
@state_option
@service_option
@click.option("--operation", metavar='"METHOD /path"', help="Instead of a rule: a request.")
@click.option("--cloud", "entry", help="The caller: an entry of the cloud's clouds.yaml.")
@click.option("--user", default="", help="The caller: a user's name or id.")
@click.option("--user-domain", default="default", show_default=True)
@click.option("--project", default="", help="Scope: a project's name or id.")
@click.option("--project-domain", default="default", show_default=True)
@click.option("--domain", default="", help="Scope: a domain's name or id.")
@click.option("--system", is_flag=True, help="Scope: the system.")
@click.option("--role", "roles", multiple=True, help="Roles instead of those the user has there.")
@click.option("--target", "pairs", multiple=True, metavar="NAME=VALUE", help="What the request is about.")
@click.option("--json", "as_json", is_flag=True)
def check(
    rule: str | None, state: Path | None, service: str, operation: str | None, entry: str | None, user: str,
    user_domain: str, project: str, project_domain: str, domain: str, system: bool, roles: tuple[str, ...],
    pairs: tuple[str, ...], as_json: bool,
) -> None:  # fmt: skip
    """Say whether a caller may do what RULE (or --operation) guards, and which part of the rule decided.

    Exit status: 0 allowed, 1 denied, 3 when it depends on the target (give it with --target).
    """
    from nubila.apps import policy_view as view
    from nubila.apps.lifecycle import Cannot

    if bool(rule) == bool(operation):
        raise click.UsageError("give either RULE or --operation")
    where = _state(state)
    target = {name: value for name, _, value in (pair.partition("=") for pair in pairs)}
    if bad := [pair for pair in pairs if "=" not in pair]:
        raise click.UsageError(f"--target takes NAME=VALUE, not {bad[0]!r}")
    if sum((bool(project), bool(domain), system)) > 1:
        raise click.UsageError("a token is for one of --project, --domain, --system")
    cloud = view.open_cloud(where)
    try:
        if entry:
            who = view.from_clouds(where, entry)
        else:
            who = view.Caller(user, user_domain, project, project_domain, domain, system, roles or None)
        if not who.user and who.roles is None:
            raise Cannot("say who asks: --cloud, --user, or --role")
        creds = view.credentials(cloud, who)
        asked = view.named(cloud, rule, service) if rule else view.governing(cloud, operation or "")
        found = [view.check(cloud, owner, name, creds, target) for owner, name in asked]
    finally:
        cloud.store.close()
    if as_json:
        click.echo(json.dumps([verdict.as_dict() for verdict in found], indent=2))
    else:
        for verdict in found:
            shown: dict[str, Any] = verdict.as_dict()
            click.echo(f"{shown['rule']} ({shown['service']}): {shown['answer']}")
            click.echo(f"  rule     {shown['text'] or 'everybody'}")
            for reason in shown["because"]:
                click.echo(f"  because  {reason}")
    answers = {verdict.answer for verdict in found}
    sys.exit(0 if answers == {True} else 1 if False in answers else 3)


@policy.command(name="list")
@click.argument("pattern", default="*")
@state_option
@service_option
@click.option("--json", "as_json", is_flag=True)
def list_(pattern: str, state: Path | None, service: str, as_json: bool) -> None:
    """List the rules in force; those that a policy file changed are marked with *."""
    from nubila.apps import policy_view as view

    where = _state(state)
    cloud = view.open_cloud(where)
    rows = [
        {
            "service": owner, "rule": rule.name, "text": cloud.policy.text(rule.name, owner) or "",
            "changed": cloud.policy.text(rule.name, owner) != rule.text, "scopes": list(rule.scopes),
            "operations": [" ".join(pair) for pair in rule.operations], "doc": rule.doc,
        }
        for owner, rule in view.rules(cloud, service, pattern)
    ]  # fmt: skip
    problem, unknown = cloud.policy.problem, cloud.policy.unknown
    cloud.store.close()
    if as_json:
        click.echo(json.dumps(rows, indent=2))
    else:
        for row in rows:
            mark, text = "*" if row["changed"] else " ", row["text"] or "everybody"
            click.echo(f"{mark} {row['service']:10} {row['rule']}: {text}")
    if problem:
        click.echo(f"nubila: {problem}", err=True)
    for name in unknown:
        click.echo(f"nubila: a policy file has {name!r}, which no service declares and no rule refers to", err=True)
    sys.exit(1 if problem else 0)


@policy.command()
@state_option
@service_option
def render(state: Path | None, service: str) -> None:
    """Print the whole policy in force as a policy file, with what each rule is for."""
    from nubila.apps import policy_view as view

    where = _state(state)
    cloud = view.open_cloud(where)
    click.echo(view.render(cloud, where, service), nl=False)
    cloud.store.close()
