"""Local IPs and their port associations in the API (extension local_ip)."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa

from nubila.core import checks, clock, quota
from nubila.core.call import Call, Reply, Route, takes
from nubila.core.declare import body_schema
from nubila.core.faults import Fault, bad_request, conflict, over_quota
from nubila.core.gates import ALWAYS
from nubila.core.policy import Rule
from nubila.core.query import ListQuery
from nubila.core.service import Hooks
from nubila.services.network import local_ips, look, paging, ports
from nubila.services.network.feature import Feature
from nubila.services.network.kinds import Network
from nubila.services.network.kinds_local_ip import LocalIP, LocalIPAssociation
from nubila.services.network.kinds_port import Port
from nubila.services.network.policies import ADMIN, ADMIN_OR_MEMBER, ADMIN_OR_READER

Row = dict[str, Any]
OWNER = "network:local_ip"
_B = LocalIPAssociation.table.c
_OF = sa.select(LocalIPAssociation.table).where(_B.local_ip_id == sa.bindparam("local_ip")).order_by(_B.fixed_port_id)
_ONE = _OF.where(_B.fixed_port_id == sa.bindparam("port"))
_DELETE = sa.delete(LocalIPAssociation.table).where(_B.id == sa.bindparam("b_id"))


def _port(call: Call, resource: str, id: str) -> Row:
    row = look.row(call.tx, Port, id)
    if row is None or not look.visible(call.cloud, call.creds, Port, row, call.tx):
        raise bad_request(f"Bad {resource} request: Port {id} not found.", "BadRequest")
    return row


def _address(call: Call, port: Row, asked: str | None) -> str:
    """The address of the port that is meant; Neutron's refusals when that is not clear."""
    have = [ip["ip_address"] for ip in look.addresses_of(call.tx, port["id"])]
    if not have:
        raise bad_request(f"local_port_id: {port['id']} has no address.", "LocalIPNoIP")
    if asked is None and len(have) > 1:
        text = f"local_ip_address: say which address of port {port['id']} is meant, it has {len(have)}."
        raise bad_request(text, "LocalIPNoRequestedIP")
    if asked is not None and asked not in have:
        text = f"Port {port['id']} has no address {asked}: use one of its own."
        raise bad_request(text, "LocalIPRequestedIPNotFound")
    found = asked or have[0]
    if ":" in found:
        raise bad_request(f"Invalid input for a Local IP: {found} is not an IPv4 address.", "InvalidInput")
    return found


# --- local IPs --------------------------------------------------------------------------------------------------------


def prepare(call: Call, values: Row) -> None:
    values["id"] = values.get("id") or clock.new_id()
    if values["local_port_id"]:
        port = _port(call, "local_ip", values["local_port_id"])
        values["local_ip_address"] = _address(call, port, values["local_ip_address"])
        values["network_id"] = port["network_id"]
        return
    if not values["network_id"]:
        text = "A local IP needs a local_port_id or a network_id."
        raise bad_request(text, "LocalIPPortOrNetworkRequired")
    net = look.seen(call.cloud, call.tx, call.creds, Network, values["network_id"])
    four = [s for s in look.subnets(call.tx, net["id"]) if s["ip_version"] == 4]
    if not four:
        text = f"Bad local_ip request: network_id: {net['id']} needs an IPv4 subnet first."
        raise bad_request(text, "BadRequest")
    asked = values["local_ip_address"]
    port = ports.create(
        call.cloud, call.tx, counted="count", project_id=values["project_id"], network_id=net["id"], name="",
        device_id=values["id"], device_owner=OWNER, port_security_enabled=False, security_groups=[],
        fixed_ips=[{"ip_address": asked} if asked else {"subnet_id": four[0]["id"]}],
    )  # fmt: skip
    values["local_port_id"] = port["id"]
    values["local_ip_address"] = _address(call, port, None)


def prepare_update(call: Call, before: Row, values: Row) -> None:
    look.check_revision(call, before)


def deleting(call: Call, row: Row) -> None:
    look.lock(call.tx, LocalIP, row["id"])
    if call.tx.one(_OF, {"local_ip": row["id"]}) is not None:
        text = f"Ports use local IP {row['id']}: take them off first."
        raise conflict(text, "LocalIPInUse")


def deleted(call: Call, row: Row) -> None:
    port = look.row(call.tx, Port, row["local_port_id"])
    if port is not None and port["device_owner"] == OWNER:
        ports.delete(call.tx, port)


def scope(call: Call, q: ListQuery) -> list[Any]:
    return paging.adapt(call, LocalIP, q)


# --- associations -----------------------------------------------------------------------------------------------------


def _parent(call: Call) -> tuple[Row, Row]:
    """The local IP, and it as policy names it."""
    row = look.seen(call.cloud, call.tx, call.creds, LocalIP, call.params["local_ip_id"])
    return row, {"ext_parent:project_id": row["project_id"], "project_id": row["project_id"]}


def _view(call: Call, parent: Row, row: Row) -> Row:
    port = look.row(call.tx, Port, row["fixed_port_id"])
    return {
        "local_ip_id": parent["id"], "local_ip_address": parent["local_ip_address"],
        "fixed_port_id": row["fixed_port_id"], "fixed_ip": row["fixed_ip"], "host": port["host_id"] if port else "",
    }  # fmt: skip


def associations(call: Call) -> Row:
    parent, target = _parent(call)
    if not call.may("get_local_ip_port_association", target):
        return {"port_associations": []}
    asked = {k: v for k, v in call.query if k in ("fixed_port_id", "fixed_ip", "host", "local_ip_address")}
    found = [_view(call, parent, row) for row in call.tx.all(_OF, {"local_ip": parent["id"]})]
    return {"port_associations": [one for one in found if all(str(one[k]) == v for k, v in asked.items())]}


def _find(call: Call) -> tuple[Row, Row, Row]:
    parent, target = _parent(call)
    id = call.params["port_id"]
    row = call.tx.one(_ONE, {"local_ip": parent["id"], "port": id})
    if row is None or not call.may("get_local_ip_port_association", target):
        text = f"Port {id} does not use local IP {parent['id']}."
        raise Fault(404, text, "LocalIPAssociationNotFound")
    return parent, target, row


def show(call: Call) -> Row:
    parent, _, row = _find(call)
    return {"port_association": _view(call, parent, row)}


_SCHEMA = {
    "type": "object", "properties": {"port_association": body_schema(LocalIPAssociation, "create", ALWAYS)},
    "required": ["port_association"],
}  # fmt: skip


@takes(_SCHEMA)
def associate(call: Call) -> Reply:
    parent, target = _parent(call)
    look.lock(call.tx, LocalIP, parent["id"])
    body = call.body
    if (
        not isinstance(body, dict)
        or set(body) != {"port_association"}
        or not isinstance(body["port_association"], dict)
    ):
        raise bad_request("The body must be an object with the key 'port_association'.", "HTTPBadRequest")
    given = {k: v for k, v in body["port_association"].items() if k not in ("project_id", "tenant_id")}
    values = checks.accept(LocalIPAssociation, "create", given, call.version)
    checks.defaults(LocalIPAssociation, values, call.version)
    call.enforce("create_local_ip_port_association", target)
    port = _port(call, "local_ip_port_association", values["fixed_port_id"])
    values["fixed_ip"] = _address(call, port, values["fixed_ip"])
    if call.tx.one(_ONE, {"local_ip": parent["id"], "port": port["id"]}) is not None:
        text = f"Local IP {parent['id']} association with port {port['id']} already exists."
        raise conflict(text, "LocalIPAssociationExists")
    try:
        quota.claim(call.tx, parent["project_id"], {"local_ip_association": 1}, call.service.quotas)
    except quota.OverQuota as e:
        raise over_quota(f"Quota exceeded for resources: ['{e.resource}']: {e.used} of {e.limit} in use.") from None
    row = {
        "id": f"{parent['id']}/{port['id']}", "local_ip_id": parent["id"], "fixed_port_id": port["id"],
        "fixed_ip": values["fixed_ip"], "project_id": parent["project_id"],
    }  # fmt: skip
    call.tx.insert(LocalIPAssociation.table, row)
    local_ips.ask(call.tx, port, port["bound_host"])
    return Reply({"port_association": _view(call, parent, row)}, 201)


def dissociate(call: Call) -> Reply:
    _, target, row = _find(call)
    call.enforce("delete_local_ip_port_association", target)
    call.tx.execute(_DELETE, {"b_id": row["id"]})
    quota.release(call.tx, row["project_id"], {"local_ip_association": 1})
    port = look.need(call.tx, Port, row["fixed_port_id"])
    local_ips.ask(call.tx, port, port["bound_host"])
    return Reply(None, 204)


_PATH = "/v2.0/local_ips/{local_ip_id}/port_associations"


def _rule(name: str, text: str, doc: str) -> Rule:
    return Rule(name, text, doc, scopes=("project",))


FEATURE = Feature(
    kinds=(LocalIP, LocalIPAssociation),
    hooks={
        LocalIP: Hooks(
            target=look.own_project, prepare=prepare, prepare_update=prepare_update, deleting=deleting, deleted=deleted,
            scope=scope,
        )
    },
    routes=(
        Route(method="GET", path=_PATH, handler=associations, doc="List the ports behind a local IP."),
        Route(method="POST", path=_PATH, handler=associate, tx="write", status=201, doc="Put a port behind one."),
        Route(method="GET", path=f"{_PATH}/{{port_id}}", handler=show, doc="Show a port behind a local IP."),
        Route(method="DELETE", path=f"{_PATH}/{{port_id}}", handler=dissociate, tx="write", status=204,
              doc="Take a port from behind a local IP."),
    ),
    quotas={"local_ip": 50, "local_ip_association": 500},
    resources={"local_ips": "local_ip"},
    rules=(
        *(_rule(f"{verb}_local_ip", ADMIN_OR_READER if verb == "get" else ADMIN_OR_MEMBER,
                f"{verb.capitalize()} local IPs.") for verb in ("create", "get", "update", "delete")),
        *(_rule(f"{verb}_local_ip_port_association",
                f"({ADMIN}) or (role:{'reader' if verb == 'get' else 'member'} and rule:ext_parent_owner)",
                f"{verb.capitalize()} ports behind local IPs.") for verb in ("create", "get", "delete")),
    ),
    extensions={
        "local_ip": ("Local IP", "Addresses that each host answers with a port of its own.", "2021-07-26"),
    },
)  # fmt: skip
