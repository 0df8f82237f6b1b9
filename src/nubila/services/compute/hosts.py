"""What Compute does when a host reports: its room becomes a resource provider's inventory."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from nubila.core.cloud import Cloud
from nubila.core.db import Tx
from nubila.services.placement import claims


def on_host_report(cloud: Cloud, tx: Tx, host: Mapping[str, Any]) -> None:
    """Keep the provider and inventory of a compute host in step with what it has (``host``: its row)."""
    if "compute" not in host["roles"]:
        return
    s = cloud.settings
    claims.report_inventory(tx, host, {"VCPU": s.cpu_ratio, "MEMORY_MB": s.ram_ratio, "DISK_GB": s.disk_ratio})
