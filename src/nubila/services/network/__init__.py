"""Networking v2.0: networks, subnets, ports, routers, floating IPs, security groups.

Declarations: kinds.py, kinds_port.py, tables.py. One module per resource holds what follows from its changes
(networks, subnets, ports + port_api, routers, floating, groups + group_api, pools, agents + agent_api). What hosts must
do is computed in hosting.py; who is told about a change is written once, in asks.py. Other services use plug.py.
"""

from __future__ import annotations

from nubila.core.service import Service
from nubila.services.network import (
    address_groups,
    agent_api,
    auto_topology,
    bindings,
    bootstrap,
    conntrack_helpers,
    default_rules,
    dvr,
    extensions,
    fip_pools,
    flavors,
    floating,
    gateways,
    group_api,
    ha,
    hosting,
    invariants,
    local_ip_api,
    logging_api,
    metering,
    misc_api,
    ndp_proxies,
    networks,
    placing,
    pools,
    port_api,
    port_forwardings,
    prefix_delegation,
    prefix_ops,
    pvlan,
    qos,
    rbac_api,
    routers,
    segment_api,
    segment_ranges,
    subnets,
    tags,
    transparent,
    trunks,
)
from nubila.services.network.feature import Feature, joined, merged
from nubila.services.network.kinds import AddressScope, FloatingIP, Network, Router, Subnet, SubnetPool
from nubila.services.network.kinds_port import Port, SecurityGroup, SecurityGroupRule
from nubila.services.network.kinds_rbac import RbacPolicy
from nubila.services.network.policies import RULES

FEATURES: tuple[Feature, ...] = (
    rbac_api.FEATURE,
    port_forwardings.FEATURE,
    conntrack_helpers.FEATURE,
    ndp_proxies.FEATURE,
    gateways.FEATURE,
    flavors.FEATURE,
    dvr.FEATURE,
    prefix_ops.FEATURE,
    auto_topology.FEATURE,
    fip_pools.FEATURE,
    bindings.FEATURE,
    segment_ranges.FEATURE,
    segment_api.FEATURE,
    group_api.FEATURE,
    address_groups.FEATURE,
    default_rules.FEATURE,
    logging_api.FEATURE,
    local_ip_api.FEATURE,
    qos.FEATURE,
    trunks.FEATURE,
    metering.FEATURE,
    ha.FEATURE,
    pvlan.FEATURE,
    prefix_delegation.FEATURE,
    transparent.FEATURE,
)  # fmt: skip
SHAREABLE = (networks.SHAREABLE, pools.SHAREABLE, pools.SCOPE_SHAREABLE, *joined(FEATURES, "shareable"))

SERVICE = Service(
    name="network",
    type="network",
    title="neutron",
    prefix="/network",
    classic_port=9696,
    loose_paths=True,
    kinds=(
        Network,
        AddressScope,
        SubnetPool,
        Subnet,
        Port,
        Router,
        FloatingIP,
        SecurityGroup,
        SecurityGroupRule,
        *joined(FEATURES, "kinds"),
    ),
    hooks={
        Network: networks.HOOKS,
        AddressScope: pools.SCOPE_HOOKS,
        SubnetPool: pools.HOOKS,
        Subnet: subnets.HOOKS,
        Port: port_api.HOOKS,
        Router: routers.HOOKS,
        FloatingIP: floating.HOOKS,
        SecurityGroup: group_api.HOOKS,
        SecurityGroupRule: group_api.RULE_HOOKS,
        RbacPolicy: rbac_api.hooks(SHAREABLE),
        **merged(FEATURES, "hooks"),
    },
    routes=(
        *misc_api.routes(merged(FEATURES, "resources")),
        *extensions.routes(merged(FEATURES, "extensions")),
        *agent_api.ROUTES,
        *routers.ROUTES,
        *tags.routes(),
        *joined(FEATURES, "routes"),
    ),
    rules=(*RULES, *joined(FEATURES, "rules")),
    reconcilers={
        "dhcp": placing.dhcp_item,
        "router_place": placing.router_item,
        **merged(FEATURES, "reconcilers"),
    },
    host_items={**hosting.HOST_ITEMS, **merged(FEATURES, "host_items")},
    sweeps={
        "dhcp": placing.networks_with_dhcp,
        "router_place": placing.routers_with_ports,
        **merged(FEATURES, "sweeps"),
    },
    bootstrap=bootstrap.run,
    invariants=(
        *invariants.INVARIANTS,
        rbac_api.unsynced([s.kind for s in SHAREABLE]),
        *joined(FEATURES, "invariants"),
    ),
    on_host=placing.on_host,
    gauges=metering.gauges,
    quotas={**misc_api.QUOTAS, **merged(FEATURES, "quotas")},
    request_id_headers=("x-openstack-request-id",),
)
