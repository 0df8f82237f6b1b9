"""Auto-allocated topology: a project's network, subnets and router with one request ("get me a network").

Everything is made in the request's transaction through the ordinary hooks, so it is whole or not there at all, and
counted against the project's quotas. The row keyed by the project makes a second topology impossible.
"""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa

from nubila.core import checks, clock, quota
from nubila.core.call import Call, Route
from nubila.core.declare import METADATA, Resource
from nubila.core.faults import bad_request, conflict, forbidden, over_quota
from nubila.core.gates import ALWAYS
from nubila.core.policy import Rule
from nubila.core.service import Hooks
from nubila.core.sql import upsert
from nubila.services.network import look, networks, pools, routers, subnets
from nubila.services.network.feature import Feature
from nubila.services.network.kinds import Network, Router, Subnet
from nubila.services.network.kinds_port import Port
from nubila.services.network.policies import ADMIN_OR_MEMBER, ADMIN_OR_READER
from nubila.services.network.tables import IP_ALLOCATION

Row = dict[str, Any]
ITEM = "auto_allocated_topology"
TOPOLOGY = sa.Table(
    "auto_allocated_topology",
    METADATA,
    sa.Column("project_id", sa.String(255), primary_key=True),
    sa.Column("network_id", sa.String(36), nullable=False),
    sa.Column("router_id", sa.String(36), nullable=False),
)
"""What was made for whom. Users may delete the parts one by one; a topology without its network is none."""
_T = TOPOLOGY.c
_OF = sa.select(TOPOLOGY).where(_T.project_id == sa.bindparam("project"))
_FORGET = sa.delete(TOPOLOGY).where(_T.project_id == sa.bindparam("b_project"))
_P, _A = Port.table.c, IP_ALLOCATION.c
_INTERFACE = (
    sa.select(_P.id)
    .join(IP_ALLOCATION, _A.port_id == _P.id)
    .where(_P.device_id == sa.bindparam("router"), _A.subnet_id == sa.bindparam("subnet"))
)
_EXTERNAL = sa.select(Network.table).where(Network.table.c.is_default.is_(True), Network.table.c.external.is_(True))


def _project(call: Call, rule: str) -> str:
    given = call.params["project_id"]
    project: str = (call.creds.project_id or "") if given in ("None", "null") else given
    if not 0 < len(project) <= 64:
        raise bad_request("A project id has 1 to 64 characters.", "HTTPBadRequest")
    if project != call.creds.project_id and not call.may("context_is_admin"):
        raise forbidden("Only administrators may ask for the topology of another project.", "NotAuthorized")
    call.enforce(rule, {"project_id": project, "tenant_id": project})
    return project


def _failure(why: str) -> Exception:
    return conflict(f"Deployment error: {why}.", "AutoAllocationFailure")


def _requirements(call: Call) -> tuple[str, list[Row]]:
    """The default external network and the default subnet pools; 409 when there are none."""
    external = call.tx.one(_EXTERNAL)
    if external is None:
        raise _failure("No default router:external network")
    found = [pool for version in (4, 6) if (pool := pools.default_of(call, version)) is not None]
    if not found:
        raise _failure("No default subnetpools defined")
    return external["id"], found


def show(call: Call) -> Row:
    """GET: the project's topology, made now when there is none; ``fields=dry-run`` only says whether it could be."""
    project = _project(call, f"get_{ITEM}")
    fields = {f for k, v in call.query if k == "fields" for f in v.split(",")}
    if "dry-run" in fields:
        _requirements(call)
        return _view("dry-run=pass", project)
    if fields:
        raise bad_request("Bad auto_allocate request: Unrecognized field.", "BadRequest")
    found = _standing(call, project)
    return _view(found["network_id"] if found else _make(call, project), project)


def _view(id: str, project: str) -> Row:
    return {ITEM: {"id": id, "project_id": project, "tenant_id": project}}


def _standing(call: Call, project: str) -> Row | None:
    found: Row | None = call.tx.one(_OF, {"project": project})
    if found is not None and look.row(call.tx, Network, found["network_id"]) is None:
        call.tx.execute(_FORGET, {"b_project": project})
        return None
    return found


def _make(call: Call, project: str) -> str:
    external, templates = _requirements(call)
    wish: Row = {"project_id": project, "network_id": clock.new_id(), "router_id": clock.new_id()}
    call.tx.execute(upsert(call.tx.dialect, TOPOLOGY, wish, {}))
    winner = call.tx.one(_OF, {"project": project})
    assert winner is not None
    if winner["network_id"] != wish["network_id"]:
        return str(winner["network_id"])  # somebody asked at the same time, and was faster
    _insert(call, Network, networks.HOOKS, id=wish["network_id"], project_id=project, name="auto_allocated_network")
    made = [
        _insert(
            call, Subnet, subnets.HOOKS, network_id=wish["network_id"], project_id=project,
            name=f"auto_allocated_subnet_v{pool['ip_version']}", ip_version=pool["ip_version"],
            subnetpool_id=pool["id"],
        )
        for pool in templates
    ]  # fmt: skip
    _insert(
        call, Router, routers.HOOKS, id=wish["router_id"], project_id=project, name="auto_allocated_router",
        external_gateway_info={"network_id": external},
    )  # fmt: skip
    for subnet in made:
        routers.add_interface(_inner(call, wish["router_id"], {"subnet_id": subnet["id"]}))
    return str(wish["network_id"])


def _inner(call: Call, router_id: str, body: Row) -> Call:
    """A call of ours to a route's handler, in the same transaction and with the same caller."""
    own = Call(call.cloud, call.service, "PUT", call.path)
    own.tx, own.creds, own.base, own.params, own.body = call.tx, call.creds, call.base, {"id": router_id}, body
    return own


def _insert(call: Call, cls: type[Resource], hooks: Hooks, **given: Any) -> Row:
    """What a POST does, for the cloud's own request."""
    row = checks.defaults(cls, dict(given), ALWAYS)
    if hooks.target:
        hooks.target(call, row)
    if hooks.prepare:
        hooks.prepare(call, row)
    try:
        quota.claim(call.tx, row["project_id"], {cls.quota: 1}, call.service.quotas)
    except quota.OverQuota as e:
        text = f"Quota exceeded for resources: ['{e.resource}']: {e.used} of {e.limit} in use."
        raise over_quota(text) from None
    call.tx.insert(cls.table, {c.name: row.get(c.name) for c in cls.table.columns})
    if hooks.created:
        hooks.created(call, row)
    return row


def _remove(call: Call, cls: type[Resource], hooks: Hooks, row: Row) -> None:
    """What a DELETE does."""
    if hooks.deleting:
        hooks.deleting(call, row)
    call.tx.execute(sa.delete(cls.table).where(cls.table.c.id == row["id"]))
    quota.release(call.tx, row["project_id"], {cls.quota: 1})
    if hooks.deleted:
        hooks.deleted(call, row)


def delete(call: Call) -> None:
    """DELETE: the topology with all its parts; 409, and nothing happens, while something uses the network."""
    project = _project(call, f"delete_{ITEM}")
    found = call.tx.one(_OF, {"project": project})
    if found is None:
        return
    router = look.row(call.tx, Router, found["router_id"])
    net = look.row(call.tx, Network, found["network_id"])
    if router is not None:
        for subnet in look.subnets(call.tx, found["network_id"]):
            if call.tx.one(_INTERFACE, {"router": router["id"], "subnet": subnet["id"]}) is not None:
                routers.remove_interface(_inner(call, router["id"], {"subnet_id": subnet["id"]}))
        _remove(call, Router, routers.HOOKS, router)
    if net is not None:
        _remove(call, Network, networks.HOOKS, net)
    call.tx.execute(_FORGET, {"b_project": project})


_PATH = "/v2.0/auto-allocated-topology/{project_id}"
FEATURE = Feature(
    routes=(
        Route(method="GET", path=_PATH, handler=show, tx="write",
              doc="Show a project's topology; make it first when there is none."),
        Route(method="DELETE", path=_PATH, handler=delete, doc="Delete a project's topology.", tx="write", status=204),
    ),
    rules=(
        Rule(f"get_{ITEM}", ADMIN_OR_READER, "Get, and make, a project's topology.", scopes=("project",)),
        Rule(f"delete_{ITEM}", ADMIN_OR_MEMBER, "Delete a project's topology.", scopes=("project",)),
    ),
    extensions={
        "auto-allocated-topology": (
            "Auto Allocated Topology Services", "A network, subnets and a router with one request.", "2016-01-01",
        ),
    },
)  # fmt: skip
