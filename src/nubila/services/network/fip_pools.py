"""Floating IP pools: the IPv4 subnets of the external networks a project may use."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa

from nubila.core.call import Call, Route
from nubila.core.faults import bad_request
from nubila.core.policy import Rule
from nubila.services.network import rbac
from nubila.services.network.feature import Feature
from nubila.services.network.kinds import Network, Subnet
from nubila.services.network.policies import ADMIN_OR_READER

_S, _N = Subnet.table.c, Network.table.c
_FIELDS = ("subnet_id", "subnet_name", "project_id", "tenant_id", "network_id", "cidr")


def pools(call: Call) -> dict[str, Any]:
    """GET /v2.0/floatingip-pools."""
    project = call.creds.project_id or ""
    if not call.may("get_floatingip_pool", {"project_id": project, "tenant_id": project}):
        return {"floatingip_pools": []}
    statement = (
        sa.select(_S.id, _S.name, _S.network_id, _S.cidr)
        .join(Network.table, _N.id == _S.network_id)
        .where(_N.external.is_(True), _S.ip_version == 4)
        .order_by(_S.id)
    )
    if not call.may("context_is_admin"):
        usable = rbac.clause(Network, project, rbac.EXTERNAL)
        statement = statement.where(sa.or_(_N.project_id == project, usable))
    found = [
        {"subnet_id": id, "subnet_name": name, "project_id": project, "tenant_id": project, "network_id": network,
         "cidr": cidr}
        for id, name, network, cidr in call.tx.rows(statement)
    ]  # fmt: skip
    fields: set[str] = set()
    for key, value in call.query:
        if key == "fields":
            fields |= set(value.split(","))
        elif key in _FIELDS:
            wanted = {v for k, v in call.query if k == key}
            found = [one for one in found if one[key] in wanted]
        elif key not in ("limit", "marker", "sort_key", "sort_dir", "page_reverse"):
            text = f"Floating IP pools can not be filtered by '{key}'."
            raise bad_request(text, "HTTPBadRequest")
    return {"floatingip_pools": [{k: v for k, v in one.items() if not fields or k in fields} for one in found]}


FEATURE = Feature(
    routes=(
        Route(method="GET", path="/v2.0/floatingip-pools", handler=pools, doc="List the floating IP pools."),
    ),
    rules=(Rule("get_floatingip_pool", ADMIN_OR_READER, "List the floating IP pools.", scopes=("project",)),),
    resources={"floatingip-pools": "floatingip_pool"},
    extensions={
        "floatingip-pools": ("Floating IP Pools Extension", "Where floating IPs can be taken from.", "2018-03-21"),
    },
)  # fmt: skip
