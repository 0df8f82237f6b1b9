"""What says which endpoints a project sees, and which policy document is for which endpoints."""

from __future__ import annotations

import sqlalchemy as sa

from nubila.core.declare import METADATA, Attr
from nubila.core.types import Type
from nubila.services.identity.kinds import INTERFACES, Doc, Name255, _Own, rest

FILTERS = ("interface", "region_id", "service_id")
Filters = Type(
    lambda: sa.JSON,
    {
        "type": "object",
        "properties": {
            "interface": {"enum": list(INTERFACES)},
            "region_id": {"type": ["string", "null"], "maxLength": 255},
            "service_id": {"type": "string", "maxLength": 64},
        },
        "minProperties": 1,
        "additionalProperties": False,
    },
)


class EndpointGroup(_Own):
    """Endpoints that have some attributes in common; projects may be given it in place of the whole catalogue."""

    kind = "endpoint_group"
    name = Attr(Name255, "A name for people.", write="cu", filter="eq")
    description = Attr(Doc, "Free text.", write="cu", null=True)
    filters = Attr(Filters, "What its endpoints have in common: service_id, region_id, interface.", write="cu")
    rest = rest("OS-EP-FILTER/endpoint_groups", "endpoint_group", "endpoint_groups", extra_body=False)


def _pair(name: str, what: str) -> sa.Table:
    return sa.Table(
        name,
        METADATA,
        sa.Column("project_id", sa.String(64), primary_key=True),
        sa.Column(what, sa.String(64), primary_key=True, index=True),
    )


PROJECT_ENDPOINT = _pair("project_endpoint", "endpoint_id")
PROJECT_ENDPOINT_GROUP = _pair("project_endpoint_group", "endpoint_group_id")

POLICY_ASSOCIATION = sa.Table(
    "policy_association",
    METADATA,
    sa.Column("endpoint_id", sa.String(64), primary_key=True),  # "" unless it is for one endpoint
    sa.Column("service_id", sa.String(64), primary_key=True),  # "" or the service
    sa.Column("region_id", sa.String(255), primary_key=True),  # "" or where
    sa.Column("policy_id", sa.String(64), nullable=False, index=True),
)
