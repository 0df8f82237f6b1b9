"""Compute's quotas: which there are, their defaults, and refusals in Nova's words."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import sqlalchemy as sa

from nubila.core import quota
from nubila.core.db import Reader, Tx
from nubila.core.faults import Fault, over_quota
from nubila.services.compute.kinds import QUOTA_CLASS

PREFIX = "compute:"
"""Before resource names in the shared quota tables that other services might use too."""

DEFAULTS: dict[str, int] = {
    "instances": 10, "cores": 20, "ram": 51200, "metadata_items": 128, "key_pairs": 100, "server_groups": 10,
    "server_group_members": 10, "injected_files": 5, "injected_file_content_bytes": 10240,
    "injected_file_path_bytes": 255,
}  # fmt: skip
NETWORK: dict[str, int] = {
    "fixed_ips": -1, "floating_ips": -1, "security_groups": -1, "security_group_rules": -1,
}  # fmt: skip
"""Kept and shown before 2.36 only, without effect: Network counts these itself."""
COUNTED = ("instances", "cores", "ram", "server_groups")
_CLASS = sa.select(QUOTA_CLASS.c.resource, QUOTA_CLASS.c.limit)


def defaults(reader: Reader) -> dict[str, int]:
    """The limits of projects without their own: the built-in ones under the operator's default class."""
    return {**NETWORK, **DEFAULTS, **{name: int(most) for name, most in reader.rows(_CLASS)}}


def _stored(limits: Mapping[str, int]) -> dict[str, int]:
    return {PREFIX + name: most for name, most in limits.items()}


def limits(reader: Reader, project_id: str) -> dict[str, int]:
    """The project's limits; -1 = unlimited."""
    found = quota.limits(reader, project_id, _stored(defaults(reader)))
    return {name[len(PREFIX) :]: most for name, most in found.items() if name.startswith(PREFIX)}


def used(reader: Reader, project_id: str) -> dict[str, int]:
    """What the project uses of what is counted."""
    found = quota.usage(reader, project_id)
    return {name: found.get(PREFIX + name, 0) for name in COUNTED}


def claim(tx: Tx, project_id: str, amounts: Mapping[str, int]) -> None:
    """Count ``amounts``; 403 in Nova's words when one does not fit."""
    try:
        quota.claim(tx, project_id, _stored(amounts), _stored(defaults(tx)))
    except quota.OverQuota as e:
        name = e.resource[len(PREFIX) :]
        raise over_quota(
            f"Quota exceeded for {name}: Requested {e.requested}, but already used {e.used} of {e.limit} {name}",
            status=403,
        ) from None


def release(tx: Tx, project_id: str, amounts: Mapping[str, int]) -> None:
    """Give back what was counted."""
    quota.release(tx, project_id, _stored(amounts))


def set_limit(tx: Tx, project_id: str, name: str, limit: int) -> None:
    """Set the project's own limit."""
    quota.set_limit(tx, project_id, PREFIX + name, limit)


def reset(tx: Tx, project_id: str) -> None:
    """Forget the project's own limits of Compute."""
    tx.execute(
        sa.delete(quota.quota_limit).where(
            quota.quota_limit.c.project_id == project_id, quota.quota_limit.c.resource.like(PREFIX + "%")
        )
    )


def check_metadata(most: Mapping[str, int], metadata: Mapping[str, Any]) -> None:
    """403 when a server would have too many metadata items."""
    if 0 <= most["metadata_items"] < len(metadata):
        raise Fault(403, f"Quota exceeded: a server has {most['metadata_items']} metadata items at most.")


def release_server(tx: Tx, row: Mapping[str, Any]) -> None:
    """Give back what a server counted."""
    release(tx, row["project_id"], {"instances": 1, "cores": row["vcpus"], "ram": row["ram"]})
