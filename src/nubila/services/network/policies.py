"""Who may do what in networking: the rule names OpenStack publishes, with today's defaults.

Sub-attribute rules ("create_port:fixed_ips:ip_address") are enforced by the resource's own hooks.
"""

from __future__ import annotations

from nubila.core.policy import Rule

ADMIN = "rule:admin_only"
MEMBER = "(role:member and project_id:%(project_id)s)"
READER = "(role:reader and project_id:%(project_id)s)"
ADMIN_OR_MEMBER = f"({ADMIN}) or {MEMBER}"
ADMIN_OR_READER = f"({ADMIN}) or {READER}"
ADMIN_OR_SERVICE = f"({ADMIN}) or (role:service)"
SERVICE = "(role:service)"
NET_MEMBER = "(role:member and rule:network_owner)"
NET_READER = "(role:reader and rule:network_owner)"
ADVSVC = "rule:context_is_advsvc"

BASE: tuple[tuple[str, str], ...] = (
    ("context_is_admin", "role:admin"),
    ("context_is_advsvc", "role:advsvc"),
    ("service_api", "role:service"),
    ("owner", "project_id:%(project_id)s"),
    ("ext_parent_owner", "project_id:%(ext_parent:project_id)s"),
    ("admin_or_ext_parent_owner", "rule:context_is_admin or project_id:%(ext_parent:project_id)s"),
    ("admin_or_owner", "rule:context_is_admin or rule:owner"),
    ("admin_or_network_owner", "rule:context_is_admin or project_id:%(network:project_id)s"),
    ("admin_owner_or_network_owner", "rule:owner or rule:admin_or_network_owner"),
    ("network_owner", "project_id:%(network:project_id)s"),
    ("admin_only", "rule:context_is_admin"),
    ("regular_user", ""),
    ("shared", "field:networks:shared=True"),
    ("default", "rule:admin_or_owner"),
    ("sg_owner", "project_id:%(security_group:project_id)s"),
    ("external", "field:networks:router:external=True"),
    ("external_network", "field:subnets:router:external=True"),
    ("network_device", "field:port:device_owner=~^network:"),
    ("compute_device", "field:port:device_owner=~^compute:"),
    ("baremetal_device", "field:port:device_owner=~^baremetal:"),
    ("manila_device", "field:port:device_owner=~^manila:"),
    ("shared_security_group", "field:security_groups:shared=True"),
    ("rule_default_sg", "field:security_group_rules:belongs_to_default_sg=True"),
    ("shared_subnetpools", "field:subnetpools:shared=True"),
    ("shared_address_scopes", "field:address_scopes:shared=True"),
)
"""Rules other rules refer to."""

RULES_BY_TEXT: tuple[tuple[str, str], ...] = (
    (
        ADMIN_OR_MEMBER,
        "create_network:pvlan update_network:pvlan "
        "create_port:pvlan_type update_port:pvlan_type create_port:pvlan_community update_port:pvlan_community "
        "create_network create_network:port_security_enabled create_network:tags update_network "
        "update_network:port_security_enabled update_network:tags delete_network delete_network:tags "
        "create_router create_router:external_gateway_info create_router:external_gateway_info:network_id "
        "create_router:tags update_router update_router:external_gateway_info "
        "update_router:external_gateway_info:network_id update_router:tags delete_router delete_router:tags "
        "add_router_interface remove_router_interface add_extraroutes remove_extraroutes create_floatingip "
        "create_floatingip:tags update_floatingip update_floatingip:tags delete_floatingip "
        "delete_floatingip:tags create_security_group create_security_group:tags update_security_group "
        "update_security_group:tags delete_security_group delete_security_group:tags create_subnetpool "
        "create_subnetpool:tags update_subnetpool update_subnetpool:tags delete_subnetpool "
        "delete_subnetpool:tags create_address_scope update_address_scope delete_address_scope",
    ),
    (
        ADMIN,
        "create_network:shared create_network:router:external create_network:is_default "
        "create_network:provider:network_type create_network:provider:physical_network "
        "create_network:provider:segmentation_id get_network:provider:network_type "
        "get_network:provider:physical_network get_network:provider:segmentation_id update_network:shared "
        "get_port:hints create_port:hints update_port:hints "
        "get_port:trusted create_port:trusted update_port:trusted get_port:resource_request "
        "create_router:enable_default_route_ecmp update_router:enable_default_route_ecmp "
        "create_router:enable_default_route_bfd update_router:enable_default_route_bfd "
        "update_network:provider:network_type update_network:provider:physical_network "
        "update_network:provider:segmentation_id update_network:router:external update_network:is_default "
        "create_router:external_gateway_info:enable_snat "
        "create_router:external_gateway_info:external_fixed_ips "
        "update_router:external_gateway_info:enable_snat "
        "update_router:external_gateway_info:external_fixed_ips get_agent update_agent delete_agent "
        "create_dhcp-network get_dhcp-networks delete_dhcp-network create_l3-router get_l3-routers "
        "delete_l3-router get_dhcp-agents get_l3-agents create_subnetpool:shared create_subnetpool:is_default "
        "update_subnetpool:is_default create_address_scope:shared update_address_scope:shared update_quota "
        "delete_quota create_subnet:service_types update_subnet:service_types",
    ),
    (f"({ADMIN}) or {READER} or role:service or rule:shared or rule:external or {ADVSVC}", "get_network"),
    (f"({ADMIN}) or {READER} or rule:shared or rule:external or {ADVSVC}", "get_network:tags"),
    (f"({ADMIN}) or {NET_MEMBER}", "create_subnet"),
    (
        f"{MEMBER} or ({ADMIN}) or {NET_MEMBER}",
        "create_subnet:tags update_subnet update_subnet:tags delete_subnet delete_subnet:tags",
    ),
    (f"{READER} or rule:shared or rule:external_network or ({ADMIN}) or {NET_READER} or role:service", "get_subnet"),
    (f"{READER} or rule:shared or rule:external_network or ({ADMIN}) or {NET_READER}", "get_subnet:tags"),
    (
        f"({ADMIN}) or {SERVICE} or {NET_MEMBER} or rule:shared",
        "create_port create_port:fixed_ips create_port:fixed_ips:subnet_id update_port:fixed_ips:subnet_id",
    ),
    (
        f"({ADMIN}) or {MEMBER} or role:service",
        "create_port:device_id create_port:binding:vnic_type update_port:device_id",
    ),
    (
        f"(not rule:network_device) or ({ADMIN}) or {SERVICE} or {NET_MEMBER}",
        "create_port:device_owner update_port:device_owner",
    ),
    (
        f"({ADMIN}) or {SERVICE} or {NET_MEMBER}",
        "create_port:mac_address create_port:fixed_ips:ip_address create_port:port_security_enabled "
        "update_port:fixed_ips update_port:fixed_ips:ip_address update_port:port_security_enabled",
    ),
    (
        ADMIN_OR_SERVICE,
        "create_port:binding:host_id get_port:binding:vif_type get_port:binding:vif_details "
        "get_port:binding:host_id get_port:binding:profile update_port:binding:host_id "
        "get_network_ip_availability",
    ),
    ("role:service", "create_port:binding:profile update_port:binding:profile"),
    (
        f"({ADMIN}) or {NET_MEMBER} or role:service",
        "create_port:allowed_address_pairs create_port:allowed_address_pairs:mac_address "
        "create_port:allowed_address_pairs:ip_address update_port:allowed_address_pairs "
        "update_port:allowed_address_pairs:mac_address update_port:allowed_address_pairs:ip_address",
    ),
    (f"{ADMIN} or role:data_plane_integrator", "update_port:data_plane_status"),
    (f"({ADMIN}) or {MEMBER} or {ADVSVC}", "create_port:tags update_port:tags"),
    (f"({ADMIN}) or {SERVICE} or {NET_READER} or {READER}", "get_port"),
    (f"{ADVSVC} or ({ADMIN}) or {NET_READER} or {READER}", "get_port:tags"),
    (f"({ADMIN}) or {SERVICE} or {MEMBER}", "update_port update_port:binding:vnic_type"),
    (f"({ADMIN}) or {SERVICE} or (role:manager and rule:network_owner)", "update_port:mac_address"),
    (
        f"({ADMIN}) or {SERVICE} or (service_roles:service and ({NET_MEMBER} or {MEMBER})) or "
        "(not rule:compute_device and not rule:baremetal_device and not rule:manila_device and "
        f"({NET_MEMBER} or {MEMBER}))",
        "delete_port",
    ),
    (f"{ADVSVC} or {MEMBER} or ({ADMIN}) or {NET_MEMBER}", "delete_port:tags"),
    (
        ADMIN_OR_READER,
        "get_network:pvlan get_port:pvlan_type get_port:pvlan_community get_router get_router:tags get_floatingip "
        "get_floatingip:tags",
    ),
    (f"({ADMIN}) or (role:manager and project_id:%(project_id)s)", "create_floatingip:floating_ip_address get_quota"),
    (f"({ADMIN}) or {READER} or rule:shared_security_group", "get_security_group get_security_group:tags"),
    (f"({ADMIN}) or (role:member and rule:sg_owner)", "create_security_group_rule delete_security_group_rule"),
    (f"({ADMIN}) or (role:reader and rule:sg_owner)", "get_security_group_rule"),
    (f"({ADMIN}) or {READER} or rule:shared_subnetpools", "get_subnetpool get_subnetpool:tags"),
    (f"{ADMIN} or {READER} or rule:shared_address_scopes", "get_address_scope"),
    ("role:reader", "get_availability_zone get_service_provider"),
)
"""Check string, and the names it is the default of."""


def _doc(name: str) -> str:
    verb, _, what = name.partition("_")
    item, _, attr = what.partition(":")
    return f"{verb.capitalize()} {attr + ' of ' if attr else ''}{item.replace('_', ' ')}."


RULES = (
    *(Rule(name, text, "Used by other rules.") for name, text in BASE),
    *(Rule(name, text, _doc(name), scopes=("project",)) for text, names in RULES_BY_TEXT for name in names.split()),
)
