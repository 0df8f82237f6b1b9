"""Flavors and service profiles: the kinds of router (and other services) that operators offer to users.

A flavor stands for service profiles, a profile for a driver; the drivers are those that service providers name. A
router made with a flavor becomes what the driver of the flavor's first profile says: single, distributed or highly
available. Source: Networking API reference, "Networking Flavors Framework".
"""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa

from nubila.core.call import Call, Route
from nubila.core.db import Reader
from nubila.core.declare import METADATA
from nubila.core.faults import Fault, bad_request, conflict, not_found
from nubila.core.policy import Rule
from nubila.core.query import ListQuery
from nubila.core.service import Hooks
from nubila.services.network import look, paging
from nubila.services.network.feature import Feature
from nubila.services.network.kinds import Router
from nubila.services.network.kinds_l3 import NetworkFlavor, ServiceProfile
from nubila.services.network.policies import ADMIN, ADMIN_OR_READER

Row = dict[str, Any]
ROUTERS = "L3_ROUTER_NAT"
TYPES = (
    "CORE", "DUMMY", "LOADBALANCER", "LOADBALANCERV2", "FIREWALL", "FIREWALL_V2", "VPN", "METERING", "FLAVORS", "QOS",
    ROUTERS, "LOCAL_IP", "PORTFORWARDING", "FLOATINGIPPOOL", "NETWORK_SEGMENT_RANGE", "CONNTRACKHELPER", "LOG_API",
)  # fmt: skip
"""Kinds of service a flavor can be of, as Neutron names them."""
_SPACE = "neutron.services.l3_router.service_providers"
PROVIDERS: dict[str, tuple[str, Row]] = {
    # name -> (driver, what a router with it is)
    "single_node": (f"{_SPACE}.single_node.SingleNodeDriver", {"ha": False, "distributed": False}),
    "dvr": (f"{_SPACE}.dvr.DvrDriver", {"ha": False, "distributed": True}),
    "ha": (f"{_SPACE}.ha.HaDriver", {"ha": True, "distributed": False}),
}
BINDING = sa.Table(
    "network_flavor_profile",
    METADATA,
    sa.Column("flavor_id", sa.String(36), sa.ForeignKey("network_flavor.id"), primary_key=True),
    sa.Column("service_profile_id", sa.String(36), sa.ForeignKey("network_service_profile.id"), primary_key=True,
              index=True),
    sa.Column("place", sa.Integer, nullable=False),
)  # fmt: skip
"""Which profiles a flavor stands for, in the order they were added."""
_B = BINDING.c
_PAIRS = sa.select(_B.flavor_id, _B.service_profile_id).order_by(_B.place)
_PROFILES = (
    sa.select(ServiceProfile.table)
    .join(BINDING, _B.service_profile_id == ServiceProfile.table.c.id)
    .where(_B.flavor_id == sa.bindparam("flavor"))
    .order_by(_B.place)
)
_USED = sa.select(Router.table.c.id).where(Router.table.c.flavor_id == sa.bindparam("flavor")).limit(1)


def providers() -> list[Row]:
    """The service providers, for GET /v2.0/service-providers."""
    return [{"service_type": ROUTERS, "name": n, "default": n == "single_node"} for n in sorted(PROVIDERS)]


def _driver(name: str) -> str:
    found = next((n for n, (driver, _) in PROVIDERS.items() if driver == name), None)
    if found is None:
        raise Fault(404, f"driver: there is no service provider {name}.", "ServiceProfileDriverNotFound")
    return found


def router_kind(reader: Reader, flavor_id: str) -> Row:
    """What a router with this flavor is: values of its own row; 404 or 503 when there can be none."""
    flavor = look.row(reader, NetworkFlavor, flavor_id)
    if flavor is None:
        raise not_found("flavor", flavor_id)
    if flavor["service_type"] != ROUTERS:
        text = f"Flavor {flavor_id} is of the service type {flavor['service_type']}, not {ROUTERS}."
        raise bad_request(text, "InvalidFlavor")
    return PROVIDERS[_next(reader, flavor)][1]


def _next(reader: Reader, flavor: Row) -> str:
    """The provider of a flavor's first profile."""
    if not flavor["enabled"]:
        raise Fault(503, "Flavor is not enabled.", "FlavorDisabled")
    profiles = reader.all(_PROFILES, {"flavor": flavor["id"]})
    if not profiles:
        raise _unbound("", flavor["id"])
    if not profiles[0]["enabled"]:
        raise Fault(503, "Service Profile is not enabled.", "ServiceProfileDisabled")
    return _driver(profiles[0]["driver"])


def _unbound(profile: str, flavor: str) -> Fault:
    text = f"Flavor {flavor} does not use service profile {profile}."
    return Fault(404, text, "FlavorServiceProfileBindingNotFound")


def _profile(call: Call, id: Any) -> str:
    look.uuid("service_profile", id)
    if look.row(call.tx, ServiceProfile, id) is None:
        raise Fault(404, f"There is no service profile {id}.", "ServiceProfileNotFound")
    return str(id)


def _bind(call: Call, flavor: str, profile: str) -> None:
    have = call.tx.rows(sa.select(_B.service_profile_id, _B.place).where(_B.flavor_id == flavor))
    if profile in [id for id, _ in have]:
        text = f"Flavor {flavor} uses service profile {profile} already."
        raise conflict(text, "FlavorServiceProfileBindingExists")
    place = max([place for _, place in have], default=0) + 1
    call.tx.insert(BINDING, {"flavor_id": flavor, "service_profile_id": profile, "place": place})


# --- flavors --------------------------------------------------------------------------------------------------------


def prepare(call: Call, values: Row) -> None:
    if values["service_type"] not in TYPES:
        text = f"service_type '{values['service_type']}' is unknown: use one of {', '.join(TYPES)}."
        raise bad_request(text, "InvalidServiceType")
    values["_profiles"] = [_profile(call, id) for id in dict.fromkeys(values.get("service_profiles") or ())]


def created(call: Call, row: Row) -> None:
    for id in row.pop("_profiles"):
        _bind(call, row["id"], id)


def deleting(call: Call, row: Row) -> None:
    if call.tx.scalar(_USED, {"flavor": row["id"]}) is not None:
        raise conflict(f"Flavor {row['id']} is in use: delete the routers made with it first.", "FlavorInUse")
    call.tx.execute(sa.delete(BINDING).where(_B.flavor_id == row["id"]))


def present(call: Call, rows: list[Row]) -> None:
    pairs = call.tx.rows(_PAIRS)
    for row in rows:
        row["service_profiles"] = [p for f, p in pairs if f == row["id"]]


# --- service profiles -----------------------------------------------------------------------------------------------


def prepare_profile(call: Call, values: Row) -> None:
    if values["driver"]:
        _driver(values["driver"])
    elif not values["metainfo"]:
        text = "A service profile without driver needs metainfo: give one of the two."
        raise bad_request(text, "ServiceProfileEmpty")


def _unused(call: Call, row: Row) -> None:
    if call.tx.rows(sa.select(_B.flavor_id).where(_B.service_profile_id == row["id"])):
        raise conflict(f"Service profile {row['id']} is in use: take it off its flavors first.", "ServiceProfileInUse")


def prepare_profile_update(call: Call, before: Row, values: Row) -> None:
    if values.get("driver"):
        _driver(values["driver"])
    _unused(call, before)


def present_profile(call: Call, rows: list[Row]) -> None:
    pairs = call.tx.rows(_PAIRS)
    for row in rows:
        row["flavors"] = [f for f, p in pairs if p == row["id"]]


# --- both -----------------------------------------------------------------------------------------------------------


def _flavor(call: Call, rule: str) -> Row:
    row = look.seen(call.cloud, call.tx, call.creds, NetworkFlavor, call.params["id"])
    call.enforce(rule, row)
    return row


def bind(call: Call) -> Row:
    """Add a service profile to a flavor."""
    row = _flavor(call, "create_flavor_service_profile")
    body = call.body.get("service_profile") if isinstance(call.body, dict) else None
    if not isinstance(body, dict) or set(body) - {"id", "project_id", "tenant_id"} or "id" not in body:
        raise bad_request('The body must be {"service_profile": {"id": ...}}.', "HTTPBadRequest")
    _bind(call, row["id"], _profile(call, body["id"]))
    return {"service_profile": {"id": row["id"]}}  # the flavor's, as Neutron answers


def unbind(call: Call) -> None:
    """Take a service profile from a flavor."""
    row = _flavor(call, "delete_flavor_service_profile")
    gone = sa.delete(BINDING).where(_B.flavor_id == row["id"], _B.service_profile_id == call.params["profile_id"])
    if not call.tx.execute(gone):
        raise _unbound(call.params["profile_id"], row["id"])


def bound(call: Call) -> Row:
    """One service profile of a flavor."""
    row = _flavor(call, "get_flavor_service_profile")
    present(call, [row])
    if call.params["profile_id"] not in row["service_profiles"]:
        raise _unbound(call.params["profile_id"], row["id"])
    return {"service_profile": {"service_profile_id": call.params["profile_id"], "flavor_id": row["id"]}}


def next_provider(call: Call) -> Row:
    """The provider that the next service with this flavor gets."""
    row = _flavor(call, "get_flavor")
    name = _next(call.tx, row)
    return {"next_providers": [{"provider": name, "driver": PROVIDERS[name][0]}]}


def _scope(cls: Any) -> Any:
    def scope(call: Call, q: ListQuery) -> list[Any]:
        return paging.adapt(call, cls, q)

    return scope


_ONE = "/v2.0/flavors/{id}/service_profiles"
FEATURE = Feature(
    kinds=(NetworkFlavor, ServiceProfile),
    hooks={
        NetworkFlavor: Hooks(prepare=prepare, created=created, deleting=deleting, present=present,
                             scope=_scope(NetworkFlavor)),
        ServiceProfile: Hooks(prepare=prepare_profile, prepare_update=prepare_profile_update, deleting=_unused,
                              present=present_profile, scope=_scope(ServiceProfile)),
    },
    routes=[
        Route(method="POST", path=_ONE, handler=bind, tx="write", status=201, doc="Add a service profile to a flavor."),
        Route(method="GET", path=_ONE + "/{profile_id}", handler=bound, doc="Show a service profile of a flavor."),
        Route(method="DELETE", path=_ONE + "/{profile_id}", handler=unbind, tx="write", status=204,
              doc="Take a service profile from a flavor."),
        Route(method="GET", path="/v2.0/flavors/{id}/next_providers", handler=next_provider,
              doc="Show the provider a flavor leads to."),
    ],
    rules=[
        *(Rule(f"{verb}_{item}", "role:reader" if (verb, item) == ("get", "flavor") else ADMIN,
               f"{verb.capitalize()} a {item.replace('_', ' ')}.", scopes=("project",))
          for item in ("flavor", "service_profile") for verb in ("create", "get", "update", "delete")),
        Rule("create_flavor_service_profile", ADMIN, "Add a service profile to a flavor.", scopes=("project",)),
        Rule("get_flavor_service_profile", ADMIN_OR_READER, "Show a service profile of a flavor.",
             scopes=("project",)),
        Rule("delete_flavor_service_profile", ADMIN, "Take a service profile from a flavor.", scopes=("project",)),
    ],
    resources={"flavors": "flavor", "service_profiles": "service_profile"},
    extensions={
        "flavors": ("Neutron Service Flavors", "Operators offer kinds of services.", "2015-09-17"),
        "l3-flavors": ("Router Flavor Extension", "Routers are made of flavors.", "2016-05-17"),
    },
)  # fmt: skip
