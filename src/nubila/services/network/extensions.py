"""Which extensions of the Networking API are announced: those that are honoured whole, nothing else."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from nubila.core.call import Call, Route
from nubila.core.faults import Fault

EXTENSIONS: dict[str, tuple[str, str, str]] = {
    # alias: (name, what it promises, date of the published definition)
    "address-scope": ("Address scope", "Address scopes that keep subnet pools from overlapping.", "2015-07-26"),
    "agent-resources-synced": (
        "Agent's Resource View Synced to Placement",
        "Whether an agent's bandwidth and packet rate are in Placement; null for one that offers none.",
        "2018-12-19",
    ),
    "aap-reject-multicast": (
        "Allowed address pairs reject multicast extension",
        "Nobody is allowed to send from one.",
        "2026-04-01",
    ),
    "agent_sort_key": ("Agents Sort Key", "Agents can be sorted.", "2013-02-03"),
    "availability_zone_filter": (
        "Availability Zone Filter Extension",
        "Zones can be filtered.",
        "2018-06-22",
    ),
    "data-plane-status": (
        "Port data plane status extension",
        "Monitoring can say what it sees of ports.",
        "2017-01-24",
    ),
    "l3-port-ip-change-not-allowed": (
        "Prevent L3 router ports IP address change extension",
        "Routers' ports keep their addresses.",
        "2018-10-09",
    ),
    "port-hints": ("Port hints", "Wishes about how hosts switch a port.", "2023-01-01"),
    "port-hint-ovs-tx-steering": ("Port hint: Open vSwitch Tx steering", "One of them.", "2023-01-01"),
    "router-enable-snat": (
        'Exposes the router "enable_snat" read-only configuration flag',
        "Routers show it.",
        "2025-09-18",
    ),
    "security-groups-name-restrictions": (
        "Security group name restrictions",
        "Names print, without blanks at their ends.",
        "2026-07-29",
    ),
    "sort-key-validation": ("Sort keys validation", "Lists refuse unknown sort keys.", "2018-07-04"),
    "subnet-external-network": (
        "Subnet belongs to an external network",
        "Subnets say whether theirs is external.",
        "2024-02-05",
    ),
    "tag-creation": ("Tag creation extension", "Several tags can be added at once.", "2024-07-23"),
    "agent": ("agent", "Agents can be listed and switched off.", "2013-02-03"),
    "allowed-address-pairs": ("Allowed Address Pairs", "Further addresses a port may send from.", "2013-07-23"),
    "availability_zone": ("Availability Zone", "Zones of the network hosts.", "2015-01-01"),
    "binding": ("Port Binding", "Where and how ports are wired.", "2014-02-03"),
    "default-subnetpools": ("Default Subnetpools", "A default subnet pool per IP version.", "2016-02-18"),
    "dhcp_agent_scheduler": ("DHCP Agent Scheduler", "Networks can be put on DHCP agents.", "2013-02-07"),
    "ecmp_routes": ("Equal Cost Multipath Routing", "Extra routes may share a destination.", "2020-11-26"),
    "empty-string-filtering": ("Empty String Filtering Extension", "Filters accept the empty text.", "2018-04-09"),
    "ext-gw-mode": ("Neutron L3 Configurable external gateway mode", "Source NAT can be switched.", "2013-03-28"),
    "external-net": ("Neutron external network", "Networks can be external.", "2013-01-14"),
    "extra_dhcp_opt": ("Neutron Extra DHCP options", "DHCP options per port.", "2013-03-17"),
    "extraroute": ("Neutron Extra Route", "Extra routes of routers.", "2013-02-01"),
    "extraroute-atomic": ("Atomically add/remove extra routes", "Extra routes change one by one.", "2019-07-10"),
    "filter-validation": ("Filter parameters validation", "Unknown filters are refused.", "2018-03-21"),
    "fip-port-details": ("Floating IP Port Details Extension", "Facts about a floating IP's port.", "2018-04-09"),
    "port-device-profile": ("Port device profile", "The accelerator profile of ports is kept.", "2020-12-17"),
    "port-mac-address-regenerate": ("Port MAC address regenerate", "Ports can get a new MAC.", "2018-05-03"),
    "port-numa-affinity-policy": ("Port NUMA affinity policy", "The NUMA policy of ports is kept.", "2020-07-08"),
    "port-numa-affinity-policy-socket": ('Port NUMA affinity policy "socket"', "One more policy.", "2024-02-09"),
    "port-trusted-vif": ("Port trusted vif", "Ports can be trusted.", "2024-07-10"),
    "uplink-status-propagation": ("Uplink status propagation", "Ports can ask for the uplink's state.", "2018-05-31"),
    "uplink-status-propagation-updatable": ("Uplink status propagation updatable", "It can be changed.", "2024-09-03"),
    "dns-integration": ("DNS Integration", "Ports have names that the network's DNS knows.", "2015-08-15"),
    "dns-domain-ports": ("dns_domain for ports", "Ports can have a DNS domain of their own.", "2017-04-24"),
    "floating-ip-router-writable": (
        "Floating IP Router (writable)",
        "The router of a floating IP can be chosen.",
        "2026-08-05",
    ),
    "ip-substring-filtering": ("IP address substring filtering", "Ports by part of an address.", "2017-11-28"),
    "l3_agent_scheduler": ("L3 Agent Scheduler", "Routers can be put on L3 agents.", "2013-02-07"),
    "net-mtu": ("Network MTU", "The MTU of networks is shown.", "2015-03-25"),
    "net-mtu-writable": ("Network MTU (writable)", "The MTU of networks can be set.", "2017-07-12"),
    "network-ip-availability": ("Network IP Availability", "How many addresses are used.", "2015-09-24"),
    "network-ip-availability-details": (
        "Network IP Availability Details Extension",
        "Of subnets and of their pools.",
        "2025-10-31",
    ),
    "network_availability_zone": ("Network Availability Zone", "Zones of networks.", "2015-01-01"),
    "pagination": ("Pagination support", "Lists come in pages.", "2016-06-12"),
    "port-security": ("Port Security", "Protection can be switched per port.", "2012-07-23"),
    "project-id": ("project_id field enabled", "project_id besides tenant_id.", "2016-09-09"),
    "provider": ("Provider Network", "Segments can be chosen.", "2012-09-07"),
    "quota-check-limit": ("Quota engine limit check", "Limits are not set below what is used.", "2021-09-08"),
    "quota-check-limit-default": ("Quota engine limit check by default", "The same, unless forced.", "2024-08-21"),
    "quotas": ("Quota management support", "Quotas per project.", "2012-07-29"),
    "quota_details": ("Quota details management support", "Usage beside quotas.", "2017-02-10"),
    "revision-if-match": ("If-Match constraints based on revision_number", "Conditional changes.", "2016-12-11"),
    "router": ("Neutron L3 Router", "Routers and floating IPs.", "2012-07-20"),
    "router_availability_zone": ("Router Availability Zone", "Zones of routers.", "2015-01-01"),
    "security-group": ("security-group", "Security groups.", "2012-10-05"),
    "security-groups-normalized-cidr": (
        "Normalized CIDR field for security group rules",
        "Prefixes as used.",
        "2019-04-20",
    ),
    "service-type": ("Neutron Service Type Management", "Service providers.", "2013-01-20"),
    "sorting": ("Sorting support", "Lists are sorted as asked.", "2016-06-12"),
    "standard-attr-description": ("standard-attr-description", "Descriptions.", "2016-02-10"),
    "standard-attr-revisions": ("Resource revision numbers", "Revision numbers.", "2016-04-11"),
    "standard-attr-tag": ("Tag support for resources with standard attribute", "Tags.", "2017-01-01"),
    "standard-attr-timestamp": ("Resource timestamps", "Times of creation and change.", "2016-09-12"),
    "subnet-service-types": ("Subnet service types", "Subnets for some device owners only.", "2016-03-15"),
    "subnet_allocation": ("Subnet Allocation", "Subnets from pools.", "2015-03-30"),
    "tag": ("Tag support", "Tags of networks.", "2016-01-01"),
    "tag-ports-during-bulk-creation": ("Tag Ports During Bulk Creation", "Tags of ports made together.", "2019-12-29"),
}


def routes(more: Mapping[str, tuple[str, str, str]]) -> list[Route]:
    """List and show; ``more`` are the features' extensions."""
    known = dict(sorted({**EXTENSIONS, **more}.items()))

    def view(alias: str) -> dict[str, Any]:
        name, text, day = known[alias]
        return {"alias": alias, "name": name, "description": text, "updated": f"{day}T10:00:00-00:00", "links": []}

    def listing(call: Call) -> dict[str, Any]:
        return {"extensions": [view(alias) for alias in known]}

    def show(call: Call) -> dict[str, Any]:
        if call.params["alias"] not in known:
            text = f"There is no extension {call.params['alias']}."
            raise Fault(404, text, "HTTPNotFound")
        return {"extension": view(call.params["alias"])}

    return [
        Route(method="GET", path="/v2.0/extensions", handler=listing, doc="List the extensions that are honoured."),
        Route(method="GET", path="/v2.0/extensions/{alias}", handler=show, doc="Show an extension."),
    ]
