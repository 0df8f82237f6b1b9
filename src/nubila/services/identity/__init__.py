"""Identity v3: who you are, what you may be, where everything is."""

from __future__ import annotations

from nubila.core.service import Service
from nubila.services.identity import (
    application_credentials,
    audit,
    credentials,
    domain_config,
    ec2,
    endpoint_filter,
    federation,
    federation_auth,
    limits,
    oauth1,
    oauth2,
    people,
    places,
    policy_association,
    resources,
    role_list,
    roles,
    token_events,
    tokens,
    trusts,
    versions,
)
from nubila.services.identity.bootstrap import bootstrap
from nubila.services.identity.kinds import (
    CatalogService,
    Credential,
    Domain,
    Endpoint,
    Group,
    Limit,
    Policy,
    Project,
    Region,
    RegisteredLimit,
    Role,
    User,
)
from nubila.services.identity.kinds_filter import EndpointGroup
from nubila.services.identity.kinds_oauth1 import Consumer
from nubila.services.identity.policies import RULES
from nubila.services.identity.policies_config import RULES as CONFIG_RULES
from nubila.services.identity.policies_delegation import RULES as DELEGATION_RULES
from nubila.services.identity.policies_federation import RULES as FEDERATION_RULES
from nubila.services.identity.policies_filter import RULES as FILTER_RULES
from nubila.services.identity.policies_oauth1 import RULES as OAUTH1_RULES

SERVICE = Service(
    name="identity",
    type="identity",
    title="keystone",
    prefix="",
    catalog_path="/v3",
    classic_port=5000,
    kinds=(
        Domain,
        Project,
        User,
        Group,
        Role,
        Region,
        CatalogService,
        Endpoint,
        Policy,
        EndpointGroup,
        Consumer,
        Credential,
        RegisteredLimit,
        Limit,
    ),
    hooks={
        Domain: resources.DOMAIN_HOOKS,
        Project: resources.PROJECT_HOOKS,
        User: people.USER_HOOKS,
        Group: people.GROUP_HOOKS,
        Role: roles.HOOKS,
        Region: places.REGION_HOOKS,
        CatalogService: places.SERVICE_HOOKS,
        Endpoint: places.ENDPOINT_HOOKS,
        Policy: places.POLICY_HOOKS,
        EndpointGroup: endpoint_filter.HOOKS,
        Consumer: oauth1.HOOKS,
        Credential: credentials.HOOKS,
        RegisteredLimit: limits.REGISTERED_HOOKS,
        Limit: limits.HOOKS,
    },
    routes=(
        *versions.ROUTES,
        *federation.ROUTES,
        *federation_auth.ROUTES,
        *oauth2.ROUTES,
        *token_events.ROUTES,
        *tokens.ROUTES,
        *resources.ROUTES,
        *people.ROUTES,
        *roles.ROUTES,
        *role_list.ROUTES,
        *places.ROUTES,
        *limits.ROUTES,
        *application_credentials.ROUTES,
        *trusts.ROUTES,
        *domain_config.ROUTES,
        *ec2.ROUTES,
        *endpoint_filter.ROUTES,
        *oauth1.ROUTES,
        *policy_association.ROUTES,
    ),
    rules=(
        *RULES,
        *DELEGATION_RULES,
        *FEDERATION_RULES,
        *token_events.RULES,
        *CONFIG_RULES,
        *FILTER_RULES,
        *OAUTH1_RULES,
    ),
    bootstrap=bootstrap,
    observe=audit.observe,
)
