"""The machines of a cloud: one row each, kept alive by their agents' reports.

Compute, Network and Placement read it; only the host API and operators write it. What a host sees of the world is
data in this row, never a call to the host.
"""

from __future__ import annotations

import time
import uuid
from typing import Any

import sqlalchemy as sa

from nubila.core import clock
from nubila.core.db import Reader, Tx
from nubila.core.declare import METADATA

ALIVE_S = 20.0
"""A host that has not reported for so long counts as down."""

TABLE = sa.Table(
    "host",
    METADATA,
    sa.Column("name", sa.String(64), primary_key=True),
    sa.Column("id", sa.String(36), nullable=False, unique=True),  # hypervisor / resource provider UUID
    sa.Column("state", sa.String(16), nullable=False),  # enabled | disabled | draining | removed
    sa.Column("disabled_reason", sa.String(255)),
    sa.Column("zone", sa.String(255), nullable=False),  # availability zone
    sa.Column("roles", sa.JSON, nullable=False),  # ["compute", "network"]
    sa.Column("tunnel_ip", sa.String(64), nullable=False),
    sa.Column("bridges", sa.JSON, nullable=False),  # physical network -> bridge
    sa.Column("capabilities", sa.JSON, nullable=False),  # ports.Capabilities as a dict
    sa.Column("switch", sa.String(16), nullable=False, server_default="openvswitch"),  # or linuxbridge
    sa.Column("certificate", sa.String(128)),  # SHA-256 of the host's current certificate; NULL for the local host
    sa.Column("seen", sa.Double, nullable=False),  # Unix time of the last report
    sa.Column("created_at", sa.String(32), nullable=False),
    sa.Column("updated_at", sa.String(32), nullable=False),
)

_ALL = sa.select(TABLE).where(TABLE.c.state != "removed").order_by(TABLE.c.name)
_ONE = sa.select(TABLE).where(TABLE.c.name == sa.bindparam("name"))


def every(reader: Reader) -> list[dict[str, Any]]:
    """All hosts that have not been removed, by name, each with ``alive`` filled in."""
    return [_seen(h) for h in reader.all(_ALL)]


def get(reader: Reader, name: str) -> dict[str, Any] | None:
    """One host with ``alive``, or None."""
    row = reader.one(_ONE, {"name": name})
    return None if row is None else _seen(row)


def usable(reader: Reader, role: str) -> list[dict[str, Any]]:
    """Hosts that are up, enabled and have this role: where new things may be placed."""
    return [h for h in every(reader) if h["alive"] and h["state"] == "enabled" and role in h["roles"]]


def _seen(row: dict[str, Any]) -> dict[str, Any]:
    row["alive"] = time.time() - row["seen"] < ALIVE_S
    return row


def report(
    tx: Tx,
    name: str,
    *,
    roles: list[str],
    tunnel_ip: str,
    bridges: dict[str, str],
    capabilities: dict[str, Any],
    zone: str = "nova",
    certificate: str | None = None,
) -> dict[str, Any]:
    """Take in an agent's hello: insert or refresh the host's row and return it."""
    now = clock.now()
    seen = {
        "roles": roles, "tunnel_ip": tunnel_ip, "bridges": bridges, "capabilities": capabilities,
        "switch": capabilities.get("switch", "openvswitch"),
        "seen": time.time(), "updated_at": now,
    }  # fmt: skip
    if certificate is not None:
        seen["certificate"] = certificate
    if not tx.execute(sa.update(TABLE).where(TABLE.c.name == name).values(**seen)):
        tx.insert(TABLE, {
            "name": name, "id": str(uuid.uuid4()), "state": "enabled", "disabled_reason": None, "zone": zone,
            "certificate": certificate, "created_at": now, **seen,
        })  # fmt: skip
    row = get(tx, name)
    assert row is not None
    return row


def beat(tx: Tx, name: str) -> None:
    """Note that the host is alive."""
    tx.execute(sa.update(TABLE).where(TABLE.c.name == name).values(seen=time.time()))
