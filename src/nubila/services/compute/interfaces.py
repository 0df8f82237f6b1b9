"""Ports of running servers: os-interface, addresses, security groups."""

from __future__ import annotations

import functools
from typing import Any

from nubila.core.call import Call, Reply, Route, takes
from nubila.core.faults import Fault, bad_request, conflict
from nubila.core.gates import Version
from nubila.services.compute import history, nics, rows, views, wire
from nubila.services.compute.wire import Row, obj
from nubila.services.network import plug

RULE = "os_compute_api:os-attach-interfaces"


def ports_of(call: Call, row: Row) -> list[Row]:
    """The server's ports in order."""
    return views.in_order(row, plug.ports_of(call.tx, [row["id"]]).get(row["id"], []))


def _view(call: Call, row: Row, port: Row) -> Row:
    out: Row = {
        "net_id": port["network_id"], "port_id": port["id"], "mac_addr": port["mac_address"],
        "port_state": port["status"],
        "fixed_ips": [{"subnet_id": f["subnet_id"], "ip_address": f["ip_address"]} for f in port["fixed_ips"]],
    }  # fmt: skip
    if call.version >= (2, 70):
        out["tag"] = next((n.get("tag") for n in row["nics"] or [] if n["port_id"] == port["id"]), None)
    return out


def index(call: Call) -> Row:
    """List a server's ports."""
    row = rows.find(call, f"{RULE}:list")
    return {"interfaceAttachments": [_view(call, row, p) for p in ports_of(call, row)]}


def show(call: Call) -> Row:
    """Show one of a server's ports."""
    row = rows.find(call, f"{RULE}:show")
    port = next((p for p in ports_of(call, row) if p["id"] == call.params["port_id"]), None)
    if port is None:
        raise Fault(404, f"Port {call.params['port_id']} is not attached to instance {row['id']}.")
    return {"interfaceAttachment": _view(call, row, port)}


@functools.cache
def _schema(version: Version) -> dict[str, Any]:
    inner: Row = {
        "net_id": wire.UUID, "port_id": wire.UUID,
        "fixed_ips": {"type": "array", "minItems": 1, "maxItems": 1,
                      "items": obj({"ip_address": wire.IP}, ["ip_address"])},
    }  # fmt: skip
    if version >= (2, 49):
        inner["tag"] = wire.TAG
    return obj({"interfaceAttachment": obj(inner)})


@takes(_schema)
def attach(call: Call) -> Row:
    """Plug a port into a server: an existing one, or a new one on a network."""
    asked = wire.body(call, _schema).get("interfaceAttachment") or {}
    row = rows.find(call, f"{RULE}:create")
    rows.unlocked(call, row, "'attach_interface'")
    network, port, fixed = asked.get("net_id"), asked.get("port_id"), asked.get("fixed_ips")
    if network and port:
        raise bad_request("net_id, port_id: one of them is enough, leave the other out.")
    if fixed and not network:
        raise bad_request("fixed_ips needs a net_id beside it.")
    if row["want"] == "gone" or row["vm_state"] not in ("active", "stopped") or row["host"] is None:
        raise rows.wrong_state(row, "attach_interface", "vm_state", row["vm_state"])
    nic: Row = {"tag": asked.get("tag")}
    if port:
        _free_port(call, port)
        nic["port"] = port
    else:
        nic |= {"uuid": network or _only_network(call, row), "fixed_ip": fixed[0]["ip_address"] if fixed else None}
        if plug.network_visible(call.tx, call.creds, nic["uuid"], call.cloud) is None:
            raise bad_request(f"Network {nic['uuid']} could not be found.")
    try:
        entry = nics.plug_one(call.cloud, call.tx, {**row, "security_groups": None}, nic, row["host"], row["zone"])
    except Fault as e:
        if e.type != plug.NO_ROOM:
            raise
        text = f"Failed to allocate additional resources to {row['id']} during interface attach: {e.message}"
        raise bad_request(text) from None
    rows.change(call.tx, row, nics=[*(row["nics"] or []), entry])
    history.record(call, row["id"], "attach_interface", done=True)
    call.tx.ask("guest", row["id"], row["host"])
    made = next(p for p in ports_of(call, row) if p["id"] == entry["port_id"])
    return {"interfaceAttachment": _view(call, row, made)}


def _free_port(call: Call, port: str) -> None:
    try:
        nics.usable_port(call, port)
    except Fault as e:
        raise Fault(404 if e.status == 400 else e.status, e.message) from None


def _only_network(call: Call, row: Row) -> str:
    usable = plug.networks_for(call.tx, row["project_id"])
    if len(usable) > 1:
        raise conflict(nics.MANY)
    if not usable:
        raise bad_request("No network is usable: create one, or name one by net_id.")
    return str(usable[0]["id"])


def detach(call: Call) -> Reply:
    """Unplug a port from a server."""
    row = rows.find(call, f"{RULE}:delete")
    rows.unlocked(call, row, "'detach_interface'")
    id = call.params["port_id"]
    if id not in {p["id"] for p in ports_of(call, row)}:
        raise Fault(404, f"Port {id} is not attached to instance {row['id']}.")
    if row["want"] == "gone" or row["vm_state"] not in ("active", "stopped"):
        raise rows.wrong_state(row, "detach_interface", "vm_state", row["vm_state"])
    entry = next((n for n in row["nics"] or [] if n["port_id"] == id), {"owned": False})
    nics.unplug_one(call.cloud, call.tx, id, owned=bool(entry["owned"]))
    rows.change(call.tx, row, nics=[n for n in row["nics"] or [] if n["port_id"] != id])
    history.record(call, row["id"], "detach_interface", done=True)
    call.tx.ask("guest", row["id"], row["host"])
    return Reply(None, 202)


# --- addresses --------------------------------------------------------------------------------------------------------


def addresses(call: Call) -> Row:
    """List a server's addresses by network name."""
    row = rows.find(call, "os_compute_api:ips:index")
    return {"addresses": views.addresses(ports_of(call, row), extended=False)}


def addresses_on(call: Call) -> Row:
    """List a server's addresses on one network."""
    row = rows.find(call, "os_compute_api:ips:show")
    found = views.addresses(ports_of(call, row), extended=False)
    label = call.params["label"]
    if label not in found:
        raise Fault(404, f"The server has no address on a network called {label}.")
    return {label: found[label]}


def _route(method: str, path: str, handler: Any, **options: Any) -> Route:
    tx = "read" if method == "GET" else "write"
    return Route(method=method, path=f"/v2.1{path}", handler=handler, doc=handler.__doc__ or "", tx=tx, **options)


ROUTES = (
    _route("GET", "/servers/{server_id}/os-interface", index),
    _route("POST", "/servers/{server_id}/os-interface", attach),
    _route("GET", "/servers/{server_id}/os-interface/{port_id}", show),
    _route("DELETE", "/servers/{server_id}/os-interface/{port_id}", detach),
    _route("GET", "/servers/{server_id}/ips", addresses),
    _route("GET", "/servers/{server_id}/ips/{label}", addresses_on),
)
