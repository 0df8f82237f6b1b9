"""``nubila net``: what operators ask about networks."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

state_option = click.option(
    "--state", type=click.Path(path_type=Path, file_okay=False), help="State directory of the cloud."
)
PATIENCE_S = 20.0


@click.group()
def net() -> None:
    """Networks: follow a packet, draw them."""


def _cloud(state: Path | None) -> Any:
    from nubila.apps import first, wiring
    from nubila.apps.lifecycle import Cannot, default_state

    where = (state or default_state()).absolute()
    if not (where / "run" / "options.json").exists():
        raise Cannot(f"there is no cloud in {where}; bring one up with `nubila up`, or name it with --state")
    return wiring.open_cloud(where, wiring.settings(where, first.overrides(where)))


def ask_host(cloud: Any, host: str, question: Mapping[str, Any], patience_s: float = PATIENCE_S) -> Mapping[str, Any]:
    """Put a question to a host's agent and wait for its answer; an error is an answer as well."""
    from nubila.services.hosts import queries

    id = cloud.store.transact(lambda tx: queries.ask(tx, host, question))
    deadline = time.monotonic() + patience_s
    while time.monotonic() < deadline:
        answer = queries.look(cloud, id)
        if answer is not None:
            return answer
        time.sleep(0.02)
    return {"error": f"no answer within {patience_s:g} s; is its agent running?"}


@net.command()
@click.argument("port")
@click.argument("destination")
@state_option
@click.option(
    "--protocol", type=click.Choice(["icmp", "tcp", "udp"]), default=None, help="Default: icmp, or tcp with --port."
)
@click.option("--port", "number", type=click.IntRange(1, 65535), help="Destination port of tcp or udp.")
@click.option("--brief", is_flag=True, help="Leave out the tables of the switch.")
@click.option("--json", "as_json", is_flag=True)
def trace(
    port: str,
    destination: str,
    state: Path | None,
    protocol: str | None,
    number: int | None,
    brief: bool,
    as_json: bool,
) -> None:
    """Follow a packet from PORT to DESTINATION and say where it stops and why. Nothing is sent.

    PORT is a port's id (or its beginning) or name, or "outside" for the world beyond an external network; DESTINATION
    an address, a port, or "dhcp". Exit status 1 means that the packet does not arrive.
    """
    from nubila.apps import net_trace
    from nubila.apps.lifecycle import Cannot

    cloud = _cloud(state)
    kind = protocol or ("tcp" if number else "icmp")
    try:
        report = net_trace.trace(
            cloud,
            lambda host, question: ask_host(cloud, host, question),
            port,
            destination,
            protocol=kind,
            number=number,
        )
    except net_trace.NotFound as e:
        raise Cannot(str(e)) from None
    if as_json:
        found = {"steps": [list(step) for step in report.steps], "stop": report.stop, "arrived": report.arrived}
        click.echo(json.dumps(found, indent=2))
    else:
        for line in report.lines(brief=brief):
            click.echo(line)
    raise SystemExit(1 if report.stop else 0)


@net.command()
@state_option
@click.option("--project", help="Only what belongs to this project (id or name).")
@click.option("--dot", is_flag=True, help="A graph for Graphviz: nubila net topology --dot | dot -Tsvg > net.svg")
def topology(state: Path | None, project: str | None, dot: bool) -> None:
    """Draw networks, subnets, routers, servers and floating IPs."""
    from nubila.apps import net_topology
    from nubila.apps.lifecycle import Cannot

    cloud = _cloud(state)
    try:
        lines = net_topology.dot(cloud, project) if dot else net_topology.tree(cloud, project)
    except net_topology.NoProject as e:
        raise Cannot(str(e)) from None
    for line in lines:
        click.echo(line)
