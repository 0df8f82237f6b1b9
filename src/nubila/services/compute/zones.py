"""Availability zones: a host's own, unless an aggregate with availability_zone metadata has it."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa

from nubila.core import hosts
from nubila.core.db import Reader
from nubila.services.compute.kinds import AGGREGATE, AGGREGATE_HOST, FORCED_DOWN

INTERNAL = "internal"
"""The zone in which controllers are listed."""

_MEMBERS = sa.select(AGGREGATE_HOST.c.host, AGGREGATE.c.metadata).join_from(AGGREGATE_HOST, AGGREGATE)
_FORCED = sa.select(FORCED_DOWN.c.host)


def of_hosts(reader: Reader, rows: list[dict[str, Any]]) -> dict[str, str]:
    """host name -> availability zone."""
    out = {h["name"]: h["zone"] for h in rows}
    for row in reader.all(_MEMBERS):
        zone = (row["metadata"] or {}).get("availability_zone")
        if zone and row["host"] in out:
            out[row["host"]] = zone
    return out


def compute_hosts(reader: Reader) -> list[dict[str, Any]]:
    """Compute hosts by name with ``alive``, ``forced_down``, ``up`` (alive and not forced down) and ``zone``."""
    rows = [h for h in hosts.every(reader) if "compute" in h["roles"]]
    zones = of_hosts(reader, rows)
    forced = {name for (name,) in reader.rows(_FORCED)}
    for row in rows:
        row["zone"] = zones[row["name"]]
        row["forced_down"] = row["name"] in forced
        row["up"] = row["alive"] and not row["forced_down"]
    return rows


def available(reader: Reader) -> set[str]:
    """Zones that have at least one enabled host that is up."""
    return {h["zone"] for h in compute_hosts(reader) if h["up"] and h["state"] == "enabled"}
