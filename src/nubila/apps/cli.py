"""The command ``nubila``. Each command is a thin shell around a function of a module of its own, imported on use."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import click

from nubila import __version__
from nubila.apps import identity_cli, net_cli, policy_cli


class _Main(click.Group):
    def invoke(self, ctx: click.Context) -> Any:
        from nubila.apps.lifecycle import Cannot

        try:
            return super().invoke(ctx)
        except Cannot as e:
            click.echo(f"nubila: {e}", err=True)
            ctx.exit(2)


def _state(value: Path | None) -> Path:
    from nubila.apps.lifecycle import default_state

    return (value or default_state()).absolute()


state_option = click.option(
    "--state", type=click.Path(path_type=Path, file_okay=False), help="State directory of the cloud."
)


@click.group(cls=_Main, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="nubila")
def main() -> None:
    """A cloud that speaks the OpenStack APIs: one program, one database, one agent per host."""


# --- life of a cloud --------------------------------------------------------------------------------------------------


@main.command()
@click.option("-d", "--detach", is_flag=True, help="Run in the background.")
@state_option
@click.option("--gear", type=click.Choice(["auto", "real", "simulated"]), help="Real guests, or simulated ones.")
@click.option("--listen", metavar="ADDR:PORT", help="Where the APIs listen (default 127.0.0.1:5000).")
@click.option("--host-listen", metavar="ADDR:PORT", help="Where other hosts reach the host API (mutual TLS).")
@click.option("--name", metavar="CLOUD", help="The cloud's name; several clouds can live on one machine.")
@click.option("--host", metavar="NAME", help="This host's name.")
@click.option("--database", metavar="URL", help="SQLAlchemy URL of a PostgreSQL or MariaDB database.")
@click.option("--tls-cert", metavar="FILE", help="Certificate of the APIs (PEM), or auto to have one made: https.")
@click.option("--tls-key", metavar="FILE", help="Its private key, when not in the same file.")
@click.option("--tls-ca", metavar="FILE", help="CA by which clients verify it, for clouds.yaml.")
@click.option("--tls-client-ca", metavar="FILE", help="Ask clients for a certificate of this CA (mutual TLS).")
@click.option("--tls-client-required", is_flag=True, default=None, help="Refuse clients without one.")
@click.option("--public-url", metavar="URL", help="Fixed base of the URLs in the catalogue.")
@click.option("--tunnel-ip", metavar="ADDR", help="This host's address for tunnels to other hosts.")
@click.option("--switch", type=click.Choice(["openvswitch", "linuxbridge"]), help="What joins guests to networks here.")
@click.option("--classic-ports", is_flag=True, default=None, help="Also listen on 8774, 8778, 9292, 9696.")
@click.option("--simulated-hosts", type=int, help="How many hosts the simulated gear shows.")
@click.option("--boot-s", "simulated_boot_s", type=float, help="Seconds a simulated guest takes to boot.")
@click.option("--api-workers", type=int, help="API server processes.")
@click.option("--merge-clouds", is_flag=True, help="Also put the clouds into ~/.config/openstack/clouds.yaml.")
def up(detach: bool, state: Path | None, merge_clouds: bool, **options: Any) -> None:
    """Bring the cloud up (made on first use)."""
    from nubila.apps import lifecycle

    where = _state(state)
    made = lifecycle.up(where, options)
    if detach:
        lifecycle.start_detached(where)
    click.echo(f"gear {made.gear}: {made.why}")
    click.echo(f"cloud at {made.url}, state in {where}")
    if detach:
        if made.joined:
            return
        if merge_clouds:
            lifecycle.wait(where, 60)
            lifecycle.merge_clouds(where)
        else:
            click.echo(f"use it: export OS_CLIENT_CONFIG_FILE={where}/clouds.yaml OS_CLOUD=nubila-admin")
            click.echo("or merge it into your own clouds.yaml: nubila up --merge-clouds, nubila openrc")
    else:
        os.execv(sys.executable, [sys.executable, "-m", "nubila.apps.supervisor", str(where)])


@main.command()
@state_option
@click.option("--timeout", type=float, default=60.0, show_default=True, help="Seconds.")
def wait(state: Path | None, timeout: float) -> None:
    """Wait until every API answers and a host has reported."""
    from nubila.apps import lifecycle

    lifecycle.wait(_state(state), timeout)


@main.command()
@state_option
@click.option("--json", "as_json", is_flag=True)
def status(state: Path | None, as_json: bool) -> None:
    """Show what runs."""
    from nubila.apps import lifecycle

    found = lifecycle.status(_state(state))
    if as_json:
        click.echo(json.dumps(found, indent=2))
    else:
        click.echo(f"cloud    {'up' if found['up'] else 'down'}   gear {found.get('gear', '?')}   {found['state']}")
        for name, pid in found.get("processes", {}).items() if found["up"] else ():
            click.echo(f"process  {name:14} {pid}")
        health = found["health"]
        click.echo(f"health   {health['status']}   hosts alive: {health.get('hosts', {}).get('alive', 0)}")
        for name, word in health.get("services", {}).items():
            click.echo(f"service  {name:14} {word}")
    sys.exit(0 if found["up"] and found["health"]["status"] == "ok" else 1)


@main.command()
@state_option
def reload(state: Path | None) -> None:
    """Read settings and certificates again and rotate full logs, without dropping a connection."""
    from nubila.apps import lifecycle

    lifecycle.reload(_state(state))
    click.echo("told; the server's log says what changed")


@main.command()
@state_option
def down(state: Path | None) -> None:
    """Stop Nubila's processes; guests and networks go on."""
    from nubila.apps import lifecycle

    stopped = lifecycle.down(_state(state))
    click.echo("stopped; guests and networks go on" if stopped else "it was not up")


@main.command()
@state_option
@click.option("--yes", is_flag=True, help="Do not ask.")
def destroy(state: Path | None, yes: bool) -> None:
    """Remove the cloud and every trace of it from this host."""
    from nubila.apps import lifecycle

    where = _state(state)
    if not yes:
        click.confirm(f"Remove all guests, networks, images and the database of {where}?", abort=True)
    for line in lifecycle.destroy(where):
        click.echo(f"removed {line}")


@main.command()
@state_option
@click.option("--project", default="admin", show_default=True, help="admin or demo.")
def openrc(state: Path | None, project: str) -> None:
    """Print shell exports for the openstack command line."""
    from nubila.apps import info

    click.echo(info.openrc(_state(state), project), nl=False)


@main.command(name="info")
@state_option
@click.option("--json", "as_json", is_flag=True)
def info_(state: Path | None, as_json: bool) -> None:
    """Show the cloud's addresses, versions and how to reach it."""
    from nubila.apps import info

    found = info.facts(_state(state))
    click.echo(json.dumps(found, indent=2) if as_json else info.text(found), nl=as_json)


@main.command()
@state_option
@click.option("--json", "as_json", is_flag=True)
def doctor(state: Path | None, as_json: bool) -> None:
    """Check the machine and the cloud; each failure comes with its fix."""
    from nubila.apps import doctor as checks

    found = checks.examine(_state(state))
    if as_json:
        click.echo(json.dumps([c.as_dict() for c in found], indent=2))
    else:
        for check in found:
            click.echo(check.line())
    sys.exit(0 if all(c.ok for c in found) else 1)


@main.command()
@state_option
@click.argument("id")
def why(state: Path | None, id: str) -> None:
    """Say what a thing (its id) waits for, or did last."""
    from nubila.apps import info

    for line in info.why(_state(state), id):
        click.echo(line)


# --- using it ---------------------------------------------------------------------------------------------------------


@main.command()
@state_option
@click.option("--keep", is_flag=True, help="Leave the cloud and everything made running.")
@click.option(
    "--image", type=click.Path(path_type=Path, dir_okay=False), help="A bootable image instead of the tiny one."
)
@click.option("--json", "as_json", type=click.Path(path_type=Path), help="Write the timings here.")
def quickstart(state: Path | None, keep: bool, image: Path | None, as_json: Path | None) -> None:
    """Build a small real cloud, prove it step by step, take it away again."""
    from nubila.apps import quickstart as story

    sys.exit(story.run(state.absolute() if state else None, keep=keep, image=image, report=as_json))


@main.command()
@click.argument("name")
@state_option
@click.option("--flavor", default="n1.nano", show_default=True)
@click.option("--project", default="demo", show_default=True)
def launch(name: str, state: Path | None, flavor: str, project: str) -> None:
    """Start a guest with a network, key and floating IP in one go, and say how to log in."""
    from nubila.apps import launching

    launching.launch(_state(state), name, flavor=flavor, project=project)


@main.group()
def image() -> None:
    """Guest images."""


@image.command(name="build-tiny")
@click.argument("out", type=click.Path(path_type=Path, dir_okay=False))
@click.option("--tools", is_flag=True, help="With bash, Python, tcpdump, nping, curl; the guest needs 384 MiB.")
def build_tiny(out: Path, tools: bool) -> None:
    """Build a bootable guest image from Debian packages."""
    from nubila.drivers import tiny_image

    tiny_image.build(out.absolute(), lambda line: click.echo(line), tools=tools)


@main.command()
@click.option("--quick", is_flag=True, help="Fewer seconds per case.")
def bench(quick: bool) -> None:
    """Measure this machine (see ./run bench for the full table)."""
    from nubila.apps import quickbench

    quickbench.run(quick=quick)


# --- hosts ------------------------------------------------------------------------------------------------------------


@main.group()
def host() -> None:
    """The machines of the cloud."""


@host.group()
def token() -> None:
    """Join tokens."""


@token.command(name="create")
@state_option
@click.option("--host", "name", help="Only for a host of this name.")
@click.option("--role", "roles", multiple=True, type=click.Choice(["compute", "network"]), help="Default: compute.")
@click.option("--ttl", type=float, default=3600.0, show_default=True, help="Seconds.")
def token_create(state: Path | None, name: str | None, roles: tuple[str, ...], ttl: float) -> None:
    """Print a token that lets one machine join."""
    from nubila.apps import hosting

    click.echo(hosting.create_token(_state(state), host=name, roles=list(roles) or ["compute"], ttl_s=ttl))


@host.command(name="list")
@state_option
@click.option("--json", "as_json", is_flag=True)
def host_list(state: Path | None, as_json: bool) -> None:
    """List hosts with their state and what they run."""
    from nubila.apps import hosting

    found = hosting.listing(_state(state))
    click.echo(json.dumps(found, indent=2) if as_json else hosting.table(found))


@host.command(name="drain")
@click.argument("name")
@state_option
def host_drain(name: str, state: Path | None) -> None:
    """Place nothing new on a host and move routers and DHCP away from it."""
    from nubila.apps import hosting

    click.echo(hosting.drain(_state(state), name))


@host.command(name="enable")
@click.argument("name")
@state_option
def host_enable(name: str, state: Path | None) -> None:
    """Let a drained host take new things again."""
    from nubila.apps import hosting

    click.echo(hosting.enable(_state(state), name))


@host.command(name="remove")
@click.argument("name")
@state_option
@click.option("--force", is_flag=True, help="Even if guests are still recorded on it.")
def host_remove(name: str, state: Path | None, force: bool) -> None:
    """Forget a host; its certificate is worthless from now on."""
    from nubila.apps import hosting

    click.echo(hosting.remove(_state(state), name, force=force))


@main.command()
@click.argument("url")
@click.option(
    "--token", required=True, envvar="NUBILA_TOKEN", help="From `nubila host token create` (or NUBILA_TOKEN)."
)
@state_option
@click.option("--host", "name", default=None, help="This host's name (default: the machine's).")
@click.option("--gear", type=click.Choice(["auto", "real", "simulated"]), default="auto", show_default=True)
@click.option("--tunnel-ip", default="", help="This host's address for tunnels (default: the one that reaches URL).")
@click.option(
    "--switch", type=click.Choice(["openvswitch", "linuxbridge"]), default="openvswitch", show_default=True,
    help="What joins guests to networks here.",
)  # fmt: skip
@click.option(
    "--physical", multiple=True, metavar="NETWORK=DEVICE",
    help="Device of a physical network: an Open vSwitch bridge, or with linuxbridge the network card. Repeatable.",
)  # fmt: skip
@click.option("--hypervisor", type=click.Choice(["simulated"]), default=None, hidden=True)
@click.option("-d", "--detach", is_flag=True, help="Run in the background.")
def join(url: str, token: str, state: Path | None, detach: bool, **options: Any) -> None:
    """Make this machine a host of the cloud at URL (https://controller:port). Later `nubila up` starts it again."""
    from nubila.apps import hosting, lifecycle

    where = _state(state)
    click.echo(hosting.join(where, url, token, **options))
    if detach:
        lifecycle.start_detached(where)
    else:
        os.execv(sys.executable, [sys.executable, "-m", "nubila.apps.supervisor", str(where)])


@main.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print the completion script of a shell."""
    from click.shell_completion import get_completion_class

    found = get_completion_class(shell)
    assert found is not None
    click.echo(found(main, {}, "nubila", "_NUBILA_COMPLETE").source())


main.add_command(identity_cli.identity)
main.add_command(identity_cli.key)
main.add_command(net_cli.net)
main.add_command(policy_cli.policy)

if __name__ == "__main__":
    main()
