"""Bindings of a port to several hosts, one of them active: how a live migration prepares where it goes.

The active binding is the port's own row. The others are kept here and mean nothing on the wire until one of them is
activated, which moves the port in one transaction.
"""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa

from nubila.core import checks
from nubila.core.call import Call, Reply, Route
from nubila.core.db import Tx
from nubila.core.faults import Fault, bad_request, conflict
from nubila.core.policy import Rule
from nubila.services.network import look, network_segments, ports, qos_guarantees
from nubila.services.network.feature import Feature
from nubila.services.network.kinds_port import VNIC_TYPES, Port
from nubila.services.network.tables import PORT_BINDING

Row = dict[str, Any]
_B = PORT_BINDING.c
_OF = sa.select(PORT_BINDING).where(_B.port_id == sa.bindparam("port")).order_by(_B.host)
_DROP = sa.delete(PORT_BINDING).where(_B.port_id == sa.bindparam("b_port"), _B.host == sa.bindparam("b_host"))
MAX = 20
"""Bindings one port may have."""
_PROFILE = {"anyOf": [{"type": "object"}, {"type": "null"}]}
_VNIC = {"enum": list(VNIC_TYPES)}
_HOST = {"type": "string", "minLength": 1, "maxLength": 64}
_CREATE = {
    "type": "object", "required": ["host"], "additionalProperties": False,
    "properties": {"host": _HOST, "vnic_type": _VNIC, "profile": _PROFILE, "project_id": {}, "tenant_id": {}},
}  # fmt: skip
_UPDATE = {
    "type": "object", "additionalProperties": False, "minProperties": 1,
    "properties": {"host": _HOST, "vnic_type": _VNIC, "profile": _PROFILE},
}  # fmt: skip


def _port(call: Call, rule: str) -> Row:
    id = call.params["port_id"]
    look.lock(call.tx, Port, id)
    port = look.seen(call.cloud, call.tx, call.creds, Port, id)
    call.enforce(rule, look.wire(Port, port))
    if not port["device_owner"].startswith("compute:"):
        text = f"Port {id} of device_owner {port['device_owner']} can be bound once only: just compute ports take more."
        raise conflict(text, "UnsupportedPortDeviceOwner")
    return port


def _body(call: Call, schema: Row) -> Row:
    body = call.body
    if not isinstance(body, dict) or set(body) != {"binding"}:
        raise bad_request("The body must be an object with the key 'binding'.", "HTTPBadRequest")
    checks.checker(schema)(body["binding"])
    found: Row = body["binding"]
    return found


def _all(call: Call, port: Row) -> list[Row]:
    """Every binding, the active one first."""
    own = [{name: port[name] for name in ("vnic_type", "vif_type", "profile")}] if port["host_id"] else []
    if own and (held := qos_guarantees.allocations(call.tx, [port["id"]])):
        own[0]["profile"] = {**(port["profile"] or {}), "allocation": held[port["id"]]}
    out = [{**one, "host": port["host_id"], "status": "ACTIVE"} for one in own]
    out += [{**one, "status": "INACTIVE"} for one in call.tx.all(_OF, {"port": port["id"]})]
    return out


def _one(call: Call, port: Row) -> Row:
    host = call.params["host"]
    found = next((b for b in _all(call, port) if b["host"] == host), None)
    if found is None:
        raise Fault(404, f"Port {port['id']} has no binding on host {host}.", "PortBindingNotFound")
    return found


def _view(port: Row, one: Row) -> Row:
    return {
        "host": one["host"], "vif_type": one["vif_type"], "vif_details": ports.details(one["vif_type"]),
        "vnic_type": one["vnic_type"], "profile": one["profile"] or {}, "status": one["status"],
        "project_id": port["project_id"], "tenant_id": port["project_id"],
    }  # fmt: skip


def listing(call: Call) -> Row:
    """GET /v2.0/ports/{id}/bindings."""
    port = _port(call, "get_port_binding")
    found = [_view(port, b) for b in _all(call, port)]
    fields = {f for k, v in call.query if k == "fields" for f in v.split(",")}
    for key, value in call.query:
        if key in ("host", "status", "vif_type", "vnic_type"):
            found = [b for b in found if b[key] == value]
        elif key not in ("fields", "limit", "marker", "sort_key", "sort_dir", "page_reverse"):
            text = f"Bindings can not be filtered by '{key}'."
            raise bad_request(text, "HTTPBadRequest")
    return {"bindings": [{k: v for k, v in b.items() if not fields or k in fields} for b in found]}


def show(call: Call) -> Row:
    """GET /v2.0/ports/{id}/bindings/{host}."""
    port = _port(call, "get_port_binding")
    return {"binding": _view(port, _one(call, port))}


def _bound(call: Call, port: Row, wish: Row) -> Row:
    """The columns of a binding; 500 in the original's words when the host cannot wire it, which is the caller's 409."""
    values: Row = {}
    ports.bind_values(call.tx, values, wish["host"], port)
    if values["vif_type"] == "binding_failed":
        text = f"Port {port['id']} can not be bound on {wish['host']}: no such host, or none of its network."
        raise conflict(text, "PortBindingError")
    network_segments.check_host(call.tx, port, wish["host"])
    return {
        "port_id": port["id"], "host": wish["host"], "vnic_type": wish["vnic_type"], "vif_type": values["vif_type"],
        "profile": ports.host_facts(wish["profile"]),
    }  # fmt: skip


def create(call: Call) -> Reply:
    """POST /v2.0/ports/{id}/bindings: active when the port has none yet, else inactive."""
    port = _port(call, "create_port_binding")
    wish = {"vnic_type": "normal", "profile": {}, **_body(call, _CREATE)}
    known = _all(call, port)
    if any(b["host"] == wish["host"] for b in known):
        text = f"Binding for port {port['id']} on host {wish['host']} already exists."
        raise conflict(text, "PortBindingAlreadyExists")
    if len(known) >= MAX:
        raise conflict(f"Port {port['id']} has {MAX} bindings already: delete one of them.", "PortBindingError")
    row = _bound(call, port, wish)
    if known:
        call.tx.insert(PORT_BINDING, row)
        return Reply({"binding": _view(port, {**row, "status": "INACTIVE"})}, 201)
    after = ports.bind(call.tx, port, row["host"], vnic_type=row["vnic_type"], profile=row["profile"])
    return Reply({"binding": _view(after, {**row, "status": "ACTIVE"})}, 201)


def update(call: Call) -> Row:
    """PUT /v2.0/ports/{id}/bindings/{host}."""
    port = _port(call, "create_port_binding")
    before, wish = _one(call, port), _body(call, _UPDATE)
    if wish.get("host", before["host"]) != before["host"]:
        raise bad_request("Invalid input for host: a binding keeps its host; make another one.", "InvalidInput")
    row = _bound(call, port, {**before, **wish})
    if before["status"] == "ACTIVE":
        port = ports.bind(call.tx, port, row["host"], vnic_type=row["vnic_type"], profile=row["profile"])
    else:
        _drop(call.tx, port["id"], row["host"])
        call.tx.insert(PORT_BINDING, row)
    return {"binding": _view(port, {**row, "status": before["status"]})}


def delete(call: Call) -> None:
    """DELETE /v2.0/ports/{id}/bindings/{host}; deleting the active one leaves the port unbound."""
    port = _port(call, "delete_port_binding")
    one = _one(call, port)
    if one["status"] == "ACTIVE":
        ports.bind(call.tx, port, "")
    else:
        _drop(call.tx, port["id"], one["host"])


def activate(call: Call) -> Row:
    """PUT /v2.0/ports/{id}/bindings/{host}/activate: the port moves there; its old binding stays as an inactive one."""
    port = _port(call, "activate")
    chosen = _one(call, port)
    if chosen["status"] == "ACTIVE":
        text = f"Port {port['id']} is active on host {chosen['host']} already."
        raise conflict(text, "PortBindingAlreadyActive")
    _drop(call.tx, port["id"], chosen["host"])
    if port["host_id"]:
        call.tx.insert(PORT_BINDING, {
            "port_id": port["id"], "host": port["host_id"], "vnic_type": port["vnic_type"],
            "vif_type": port["vif_type"], "profile": port["profile"] or {},
        })  # fmt: skip
    after = ports.bind(
        call.tx, port, chosen["host"], vnic_type=chosen["vnic_type"], profile=chosen["profile"],
        revision_number=port["revision_number"] + 1,
    )  # fmt: skip
    return {"binding": _view(after, {**chosen, "vif_type": after["vif_type"], "status": "ACTIVE"})}


def _drop(tx: Tx, port_id: str, host: str) -> None:
    tx.execute(_DROP, {"b_port": port_id, "b_host": host})


_PATH = "/v2.0/ports/{port_id}/bindings"


def _route(method: str, path: str, handler: Any, doc: str, status: int = 200) -> Route:
    tx = "read" if method == "GET" else "write"
    return Route(method=method, path=_PATH + path, handler=handler, doc=doc, tx=tx, status=status)


_ADMIN_OR_SERVICE = "(rule:admin_only) or (rule:service_api)"
FEATURE = Feature(
    routes=(
        _route("GET", "", listing, "List the bindings of a port."),
        _route("POST", "", create, "Bind a port to one more host.", 201),
        _route("GET", "/{host}", show, "Show a port's binding to a host."),
        _route("PUT", "/{host}", update, "Update a port's binding to a host."),
        _route("DELETE", "/{host}", delete, "Delete a port's binding to a host.", 204),
        _route("PUT", "/{host}/activate", activate, "Activate a port's binding to a host."),
    ),
    rules=(
        Rule("get_port_binding", _ADMIN_OR_SERVICE, "See the bindings of a port.", scopes=("project",)),
        Rule("create_port_binding", "rule:service_api", "Bind a port to one more host.", scopes=("project",)),
        Rule("delete_port_binding", "rule:service_api", "Delete a binding of a port.", scopes=("project",)),
        Rule("activate", "rule:service_api", "Activate a binding of a port.", scopes=("project",)),
    ),
    extensions={
        "binding-extended": ("Port Bindings Extended", "A port can be prepared on further hosts.", "2017-07-17"),
    },
)  # fmt: skip
