"""Trunks in the API: made of ports, given and deprived of subports, deleted.

A trunk may be made of a port whose guest runs already, and taken away from under it: the host moves the port's tap.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import sqlalchemy as sa

from nubila.core import clock
from nubila.core.call import Call, Route, takes
from nubila.core.db import Reader
from nubila.core.faults import Fault, bad_request, conflict
from nubila.core.policy import Rule
from nubila.core.query import ListQuery
from nubila.core.service import Hooks
from nubila.services.network import allocate, asks, l2pop, look, paging, ports, tags, trunks_links
from nubila.services.network.feature import Feature
from nubila.services.network.kinds import Network
from nubila.services.network.kinds_port import Port
from nubila.services.network.kinds_trunk import SUB_PORT, SUBPORT, Trunk
from nubila.services.network.policies import ADMIN_OR_MEMBER, ADMIN_OR_READER

Row = dict[str, Any]
_S = SUBPORT.c
_BY_TRUNK = (
    sa.select(SUBPORT)
    .where(_S.trunk_id.in_(sa.bindparam("trunks", expanding=True)))
    .order_by(_S.trunk_id, _S.segmentation_id, _S.port_id)
)
_TAKEN = sa.select(_S.port_id).where(
    _S.trunk_id == sa.bindparam("trunk"), _S.segmentation_id == sa.bindparam("vlan"), _S.segmentation_type == "vlan"
)
_DELETE = sa.delete(SUBPORT).where(_S.port_id == sa.bindparam("b_port"))


def refuse(text: str) -> Exception:
    return bad_request(f"Invalid input for operation: {text}", "InvalidInput")


# --- checks -----------------------------------------------------------------------------------------------------------


def _read(asked: Any) -> list[Row]:
    """The subports of a request in checked form, ``inherit`` still to be resolved; 400 for what cannot be any."""
    if asked is None:
        return []
    if not isinstance(asked, list) or not all(isinstance(one, dict) for one in asked):
        raise refuse("sub_ports must be a list of objects.")
    out: list[Row] = []
    for one in asked:
        if strange := set(one) - {"port_id", "segmentation_type", "segmentation_id"}:
            raise refuse(f"a subport has no {', '.join(sorted(strange))}.")
        look.uuid("sub_ports.port_id", one.get("port_id"), "InvalidInput")
        kind = one.get("segmentation_type")
        if kind == "inherit":
            out.append({"port_id": one["port_id"], "segmentation_type": "inherit", "segmentation_id": None})
            continue
        if kind is None or one.get("segmentation_id") is None:
            raise refuse(f"sub_ports: {one} needs a segmentation_type and a segmentation_id.")
        out.append({"port_id": one["port_id"], "segmentation_type": kind, "segmentation_id": _vlan(kind, one)})
    for name, values in (
        ("port_id", [o["port_id"] for o in out]),
        ("segmentation_id", [o["segmentation_id"] for o in out if o["segmentation_id"] is not None]),
    ):
        if len(set(values)) != len(values):
            raise refuse(f"two subports have the same {name}.")
    return out


def _vlan(kind: Any, one: Row) -> int:
    value = one["segmentation_id"]
    if kind != "vlan":
        raise refuse(f"Unknown segmentation_type '{kind}'; use vlan, or inherit for a subport on a VLAN network.")
    if isinstance(value, bool) or not re.fullmatch(r"-?[0-9]{1,9}", str(value)):
        raise refuse(f"segmentation_id: '{value}' must be a whole number.")
    if not 1 <= int(value) <= 4094:
        raise refuse(f"segmentation_id: {value} must be 1 to 4094.")
    return int(value)


def _mine(call: Call, id: str) -> Row:
    """A port the caller may change, locked; what he may not change does not exist."""
    row = look.seen(call.cloud, call.tx, call.creds, Port, id)
    if not call.may("update_port", look.wire(Port, row)):
        raise look.missing(Port, id)
    look.lock(call.tx, Port, id)
    return look.need(call.tx, Port, id)


def _unused(reader: Reader, port_id: str) -> None:
    if trunks_links.of_subport(reader, port_id) is not None:
        raise conflict(f"Port {port_id} belongs to another trunk.", "TrunkPortInUse")
    if trunks_links.of_parent(reader, port_id) is not None:
        text = f"Port {port_id} is the parent of a trunk already."
        raise conflict(text, "ParentPortInUse")


def _parent(call: Call, id: str) -> Row:
    port = _mine(call, id)
    _unused(call.tx, id)
    if port["vif_type"] == l2pop.VIF_TYPES[l2pop.LINUX_BRIDGE]:
        text = f"Port {id} is on a host that switches with Linux bridges, which have no trunks: move it first."
        raise conflict(text, "ParentPortInUse")
    if str(port["device_owner"]).startswith(("network:", "neutron:")) or port["vnic_type"] != "normal":
        text = f"Port {id} can not carry a trunk: take one of vnic_type normal that is not the cloud's own."
        raise conflict(text, "ParentPortInUse")
    return port


def _subport(call: Call, parent: Row, trunk_id: str, wish: Row) -> tuple[Row, Row]:
    """(port, subport row) of one wish, checked."""
    tx, id = call.tx, wish["port_id"]
    if id == parent["id"]:
        text = f"Port {id} carries this trunk and can not be its subport too."
        raise conflict(text, "ParentPortInUse")
    port = _mine(call, id)
    net, own = look.need(tx, Network, port["network_id"]), look.need(tx, Network, parent["network_id"])
    if net["mtu"] > own["mtu"]:
        text = f"Subport {id} has MTU {net['mtu']}, trunk {trunk_id} only {own['mtu']}."
        raise conflict(text, "SubPortMtuGreaterThanTrunkPortMtu")
    row = {**wish, "trunk_id": trunk_id}
    if wish["segmentation_type"] == "inherit":
        kind = net["network_type"]
        row.update(segmentation_type=kind, segmentation_id=_vlan(kind, {"segmentation_id": net["segmentation_id"]}))
    _unused(tx, id)
    if port["device_id"] or str(port["device_owner"]).startswith(("network:", "neutron:", "compute:")):
        raise conflict(f"Port {id} serves device {port['device_id']}: choose another.", "PortInUse")
    taken = tx.one(_TAKEN, {"trunk": trunk_id, "vlan": row["segmentation_id"]})
    if taken is not None:
        text = f"segmentation_id {row['segmentation_id']} has a subport on trunk {trunk_id} already: choose another."
        raise conflict(text, "DuplicateSubPort")
    return port, row


def _plug(call: Call, parent: Row, trunk_id: str, wishes: Sequence[Row]) -> None:
    for wish in wishes:
        port, row = _subport(call, parent, trunk_id, wish)
        call.tx.insert(SUBPORT, row)
        ports.bind(call.tx, port, parent["host_id"] or "", device_owner=trunks_links.OWNER)


# --- the resource -----------------------------------------------------------------------------------------------------


def prepare(call: Call, values: Row) -> None:
    values["tags"] = tags.clean(values["tags"])
    values["_wishes"] = _read(values.get("sub_ports"))
    for wish in values["_wishes"]:
        look.uuid("sub_ports", wish["port_id"])
    values["_parent"] = _parent(call, look.uuid("port_id", values["port_id"]))


def created(call: Call, row: Row) -> None:
    tags.store(call.tx, row["id"], row["tags"], fresh=True)
    parent = row.pop("_parent")
    _plug(call, parent, row["id"], row.pop("_wishes"))
    asks.port(call.tx, parent)
    row["status"] = trunks_links.settle(call.tx, row["id"], row["port_id"])


def prepare_update(call: Call, before: Row, values: Row) -> None:
    look.check_revision(call, before)


def deleting(call: Call, row: Row) -> None:
    look.lock(call.tx, Trunk, row["id"])
    _enabled(look.need(call.tx, Trunk, row["id"]))
    trunks_links.dissolve(call.tx, row, ports.bind)


def deleted(call: Call, row: Row) -> None:
    asks.port(call.tx, look.need(call.tx, Port, row["port_id"]))


def _enabled(row: Row) -> None:
    if not row["admin_state_up"]:
        raise conflict(f"Trunk {row['id']} is currently disabled.", "TrunkDisabled")


def present(call: Call, rows: list[Row]) -> None:
    by_id = {r["id"]: r for r in rows}
    for row in rows:
        row["sub_ports"] = []
    ids = list(by_id)
    for i in range(0, len(ids), 500):
        for sub in call.tx.all(_BY_TRUNK, {"trunks": ids[i : i + 500]}):
            by_id[sub.pop("trunk_id")]["sub_ports"].append(sub)


def scope(call: Call, q: ListQuery) -> list[Any]:
    return paging.adapt(call, Trunk, q)


HOOKS = Hooks(
    target=look.own_project,
    prepare=prepare,
    created=created,
    prepare_update=prepare_update,
    deleting=deleting,
    deleted=deleted,
    present=present,
    scope=scope,
    own_filters=tags.FILTERS,
)


# --- its subports -----------------------------------------------------------------------------------------------------


def _trunk(call: Call, rule: str) -> Row:
    row = look.seen(call.cloud, call.tx, call.creds, Trunk, call.params["id"])
    call.enforce(rule, look.wire(Trunk, row))
    if call.method != "GET":
        look.lock(call.tx, Trunk, row["id"])
        row = look.need(call.tx, Trunk, row["id"])
    return row


def _asked(call: Call) -> list[Row]:
    body = call.body
    if not isinstance(body, dict) or set(body) != {"sub_ports"} or not isinstance(body["sub_ports"], list):
        raise refuse('the body must be {"sub_ports": [{"port_id": ...}]}.')
    found: list[Row] = body["sub_ports"]
    return found


def _answer(call: Call, id: str) -> Row:
    allocate.bump(call.tx, Trunk, [id], clock.now())
    row = look.need(call.tx, Trunk, id)
    present(call, [row])
    return {
        name: a.type.dump(row[a.name]) if a.type.dump and row[a.name] is not None else row[a.name]
        for a in Trunk.attrs.values()
        if not a.hidden
        for name in a.wire
    }


_MANY = {"type": "object", "properties": {"sub_ports": {"type": "array", "items": SUB_PORT}}, "required": ["sub_ports"]}


@takes(_MANY)
def add_subports(call: Call) -> Row:
    """Put further ports behind tags of the trunk."""
    row = _trunk(call, "add_subports")
    wishes = _read(_asked(call))
    _enabled(row)
    parent = look.need(call.tx, Port, row["port_id"])
    _plug(call, parent, row["id"], wishes)
    trunks_links.settle(call.tx, row["id"], row["port_id"])
    return _answer(call, row["id"])


@takes(_MANY)
def remove_subports(call: Call) -> Row:
    """Take ports out of the trunk; they stay as ports."""
    tx, row = call.tx, _trunk(call, "remove_subports")
    asked = _asked(call)
    if not all(isinstance(one, dict) and isinstance(one.get("port_id"), str) for one in asked):
        raise refuse("each of sub_ports needs a port_id.")
    _enabled(row)
    mine = {port["id"]: port for port in trunks_links.sub_rows(tx, row["id"])}
    for one in asked:
        port = mine.pop(one["port_id"], None)
        if port is None:
            text = f"Trunk {row['id']} has no subport {one['port_id']}."
            raise Fault(404, text, "SubPortNotFound")
        tx.execute(_DELETE, {"b_port": port["id"]})
        ports.bind(tx, port, "", device_owner="")
    trunks_links.settle(tx, row["id"], row["port_id"])
    return _answer(call, row["id"])


def get_subports(call: Call) -> Row:
    """List the trunk's subports."""
    return {"sub_ports": trunks_links.subports(call.tx, _trunk(call, "get_subports")["id"])}


def wrong(cloud: Any, reader: Reader) -> list[str]:
    """Invariant: subports are where their parents are, and nowhere else."""
    parent, sub = Port.table.alias("parent"), Port.table.alias("sub")
    strayed = (
        sa.select(sub.c.id, sub.c.host_id, parent.c.host_id)
        .select_from(SUBPORT)
        .join(Trunk.table, Trunk.table.c.id == _S.trunk_id)
        .join(parent, parent.c.id == Trunk.table.c.port_id)
        .join(sub, sub.c.id == _S.port_id)
        .where(sub.c.host_id != parent.c.host_id)
    )
    return [f"subport {id} is on '{mine}', its parent on '{its}'" for id, mine, its in reader.rows(strayed)]


_ONE = "/v2.0/trunks/{id}"
FEATURE = Feature(
    kinds=(Trunk,),
    hooks={Trunk: HOOKS},
    routes=(
        Route(method="PUT", path=f"{_ONE}/add_subports", handler=add_subports, tx="write", doc="Add subports."),
        Route(method="PUT", path=f"{_ONE}/remove_subports", handler=remove_subports, tx="write",
              doc="Remove subports."),
        Route(method="GET", path=f"{_ONE}/get_subports", handler=get_subports, doc="List the subports of a trunk."),
    ),
    rules=(
        *(Rule(name, ADMIN_OR_MEMBER, "Make and change trunks.", scopes=("project",)) for name in (
            "create_trunk", "create_trunk:tags", "update_trunk", "update_trunk:tags", "delete_trunk",
            "delete_trunk:tags", "add_subports", "remove_subports",
        )),
        *(Rule(name, ADMIN_OR_READER, "See trunks.", scopes=("project",)) for name in (
            "get_trunk", "get_trunk:tags", "get_subports",
        )),
    ),
    invariants=(wrong,),
    quotas={"trunk": -1},
    resources={"trunks": "trunk"},
    extensions={
        "trunk": ("Trunk Extension", "Ports that carry others by VLAN tags.", "2016-01-01"),
        "trunk-details": ("Trunk port details", "Ports show their trunk.", "2016-01-01"),
    },
)  # fmt: skip
