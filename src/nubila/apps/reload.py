"""What a running process does when it is told that settings or certificates changed (SIGHUP)."""

from __future__ import annotations

import dataclasses as dc
import logging
from pathlib import Path

from nubila.apps import first, tls, wiring
from nubila.core.cloud import Cloud
from nubila.core.config import Settings

log = logging.getLogger("nubila.reload")
AT_START = frozenset(
    {
        "name", "gear", "listen", "host_listen", "classic_ports", "database", "host", "api_workers", "controllers",
        "simulated_hosts", "simulated_boot_s", "tunnel_ip", "external_cidr", "token_provider",
        "switch", "physical_devices", "network_quotas",
    }
)  # fmt: skip
"""Settings that hold from one start to the next."""


def changed(before: Settings, after: Settings) -> tuple[Settings, list[str], list[str]]:
    """The settings to go on with, the names that changed, and those that a restart would change."""
    differ = [f.name for f in dc.fields(Settings) if getattr(before, f.name) != getattr(after, f.name)]
    later = [n for n in differ if n in AT_START or (n == "tls_cert" and not (before.tls_cert and after.tls_cert))]
    made = dc.replace(after, **{n: getattr(before, n) for n in later})
    return made, [n for n in differ if n not in later], later


def settings(cloud: Cloud, public: tls.Context | None = None) -> None:
    """Read settings and certificates again; what cannot be used is said in the log and changes nothing."""
    try:
        made, now, later = changed(cloud.settings, _read(cloud.state))
        secure = tls.context(made, cloud.state) if public is not None else None
    except (ValueError, OSError) as e:
        log.error("not reloaded, what was read before stays in use: %s", e)
        return
    if public is not None and secure is not None:
        public.now = secure
    cloud.settings = made
    log.info("reloaded; changed: %s", ", ".join(now) or "nothing")
    if later:
        log.warning("changed only by a restart: %s", ", ".join(later))


def _read(state: Path) -> Settings:
    return wiring.settings(state, first.overrides(state))
