"""``nubila identity`` and ``nubila key``: first things made again, and keys. Shells around apps/identity_ops.py."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import click

KINDS = ("fernet", "jws", "credential")
state_option = click.option(
    "--state", type=click.Path(path_type=Path, file_okay=False), help="State directory of the cloud."
)
kind_option = click.option(
    "--kind", type=click.Choice(KINDS), default="fernet", show_default=True,
    help="fernet and jws: tokens; credential: secrets in the database.",
)  # fmt: skip


def _state(value: Path | None) -> Path:
    from nubila.apps.lifecycle import default_state

    return (value or default_state()).absolute()


@click.group()
def identity() -> None:
    """Users, roles and the catalogue, when the API cannot help any more."""


@identity.command()
@state_option
@click.option("--user", "--bootstrap-username", default="admin", show_default=True)
@click.option("--project", "--bootstrap-project-name", default="admin", show_default=True)
@click.option("--role", "--bootstrap-role-name", default="admin", show_default=True)
@click.option("--service-name", "--bootstrap-service-name", default="keystone", show_default=True)
@click.option("--region-id", "--bootstrap-region-id", default="", help="Default: the cloud's own.")
@click.option("--public-url", "--bootstrap-public-url", default="", help="Identity's; default: as requested.")
@click.option("--internal-url", "--bootstrap-internal-url", default="")
@click.option("--admin-url", "--bootstrap-admin-url", default="")
@click.option(
    "--password-file", type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="File whose first line is the user's new password; else OS_BOOTSTRAP_PASSWORD, else you are asked.",
)  # fmt: skip
@click.option("--keep-password", is_flag=True, help="Leave an existing user's password as it is.")
def bootstrap(state: Path | None, password_file: Path | None, keep_password: bool, **options: Any) -> None:
    """Make sure that a user can administer the cloud: set its password, roles, and Identity's endpoints.

    May be repeated, with the cloud up or down; what is as it should be is left alone.
    """
    from nubila.apps import identity_ops

    password = None if keep_password else identity_ops.given_password(password_file) or _ask()
    for line in identity_ops.bootstrap(_state(state), password, **options):
        click.echo(line)


def _ask() -> str:
    from nubila.apps.lifecycle import Cannot

    if not sys.stdin.isatty():
        raise Cannot("no password was given: set OS_BOOTSTRAP_PASSWORD, or use --password-file or --keep-password")
    return str(click.prompt("New password", hide_input=True, confirmation_prompt=True))


@click.group()
def key() -> None:
    """Keys of tokens and of secrets in the database."""


@key.command(name="list")
@state_option
@click.option("--json", "as_json", is_flag=True)
def list_(state: Path | None, as_json: bool) -> None:
    """List the keys there are (never what they are), and what is wrong with them."""
    from nubila.apps import identity_ops

    found = identity_ops.keys(_state(state))
    click.echo(json.dumps(found, indent=2) if as_json else identity_ops.key_table(found))


@key.command()
@state_option
@kind_option
def setup(state: Path | None, kind: str) -> None:
    """Make the keys of a kind unless they are there."""
    from nubila.apps import identity_ops

    click.echo(identity_ops.setup_keys(_state(state), kind))


@key.command()
@state_option
@kind_option
@click.option("--max-active-keys", type=click.IntRange(min=2), default=3, show_default=True)
def rotate(state: Path | None, kind: str, max_active_keys: int) -> None:
    """Make the staged key the primary and stage a new one; running processes follow within a second.

    Tokens end with the key that made them: with N keys, rotate no more often than every (token lifetime) / (N - 2).
    """
    from nubila.apps import identity_ops

    for line in identity_ops.rotate(_state(state), kind, max_active_keys):
        click.echo(line)


@key.command()
@state_option
def migrate(state: Path | None) -> None:
    """Encrypt secrets in the database again with the primary credential key, so that older keys can go."""
    from nubila.apps import identity_ops

    click.echo(identity_ops.migrate(_state(state)))
