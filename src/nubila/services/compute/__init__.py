"""Compute API v2.1: flavors, key pairs, servers and the hosts they run on."""

from __future__ import annotations

import sqlalchemy as sa

from nubila.core.cloud import Cloud
from nubila.core.db import Reader, Tx
from nubila.core.service import Service
from nubila.services.compute import (
    aggregates,
    flavors,
    groups,
    hosting,
    hosts,
    hypervisors,
    interfaces,
    invariants,
    keypairs,
    limits,
    old_hosts,
    quotas,
    reconcile,
    secgroup_proxy,
    secgroups,
    servers,
    versions,
    zones,
)
from nubila.services.compute.kinds import (
    FLAVOR,
    Aggregate,
    Flavor,
    InstanceAction,
    InstanceEvent,
    Keypair,
    Server,
    ServerGroup,
)
from nubila.services.compute.policies import RULES


def bootstrap(cloud: Cloud, tx: Tx) -> None:
    """Give a new cloud its flavors."""
    known = {id for (id,) in tx.rows(sa.select(FLAVOR.c.id))} | {name for (name,) in tx.rows(sa.select(FLAVOR.c.name))}
    for row in flavors.standard_rows():
        if row["id"] not in known and row["name"] not in known:
            tx.insert(FLAVOR, row)


def healthy(cloud: Cloud, reader: Reader) -> str:
    """Whether servers can be placed anywhere."""
    return "" if zones.available(reader) else "no compute host is up and enabled"


ROUTES = (
    *versions.ROUTES,
    *flavors.ROUTES,
    *keypairs.ROUTES,
    *servers.ROUTES,
    *interfaces.ROUTES,
    *secgroups.ROUTES,
    *secgroup_proxy.ROUTES,
    *groups.ROUTES,
    *limits.ROUTES,
    *hypervisors.ROUTES,
    *old_hosts.ROUTES,
    *aggregates.ROUTES,
)

SERVICE = Service(
    name="compute",
    type="compute",
    title="nova",
    prefix="/compute",
    catalog_path="/v2.1",
    project_after=("v2.1", "v2"),
    classic_port=8774,
    kinds=(Flavor, Keypair, Server, ServerGroup, Aggregate, InstanceAction, InstanceEvent),
    routes=(*ROUTES, *(versions.without_microversions(r) for r in ROUTES if r.path.startswith("/v2.1/"))),
    rules=RULES,
    reconcilers={"server": reconcile.server},
    host_items={"guest": hosting.ITEM},
    sweeps={"server": reconcile.every},
    bootstrap=bootstrap,
    on_host=hosts.on_host_report,
    invariants=invariants.INVARIANTS,
    quotas={quotas.PREFIX + name: limit for name, limit in quotas.DEFAULTS.items()},
    healthy=healthy,
    versions=(versions.LOWEST, versions.HIGHEST),
    version_headers=("openstack-api-version", "x-openstack-nova-api-version"),
    version_word="compute",
    request_id_headers=("x-openstack-request-id", "x-compute-request-id"),
)
