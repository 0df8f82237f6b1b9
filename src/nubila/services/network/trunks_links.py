"""What ports have to know of trunks: whether they are part of one, and that subports go where their parent goes.

Ports and hosting call this module; the trunks themselves are trunks.py.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import sqlalchemy as sa

from nubila.core import hosts, quota
from nubila.core.db import Reader, Tx
from nubila.core.faults import conflict
from nubila.core.ports import TrunkPlace
from nubila.services.network import allocate
from nubila.services.network.kinds_port import Port
from nubila.services.network.kinds_trunk import SUBPORT, Trunk
from nubila.services.network.tables import TAG

Row = dict[str, Any]
OWNER = "trunk:subport"
_T, _S, _P = Trunk.table.c, SUBPORT.c, Port.table.c
_OF_PARENT = sa.select(Trunk.table).where(_T.port_id == sa.bindparam("port"))
_OF_SUBPORT = (
    sa.select(_S.trunk_id, _S.segmentation_id, _T.port_id.label("parent_id"))
    .join(Trunk.table, _T.id == _S.trunk_id)
    .where(_S.port_id == sa.bindparam("port"))
)
_SUBPORTS = (
    sa.select(SUBPORT).where(_S.trunk_id == sa.bindparam("trunk")).order_by(_S.segmentation_id, _S.port_id)
)  # fmt: skip
_SUB_ROWS = (
    sa.select(Port.table)
    .join(SUBPORT, _S.port_id == _P.id)
    .where(_S.trunk_id == sa.bindparam("trunk"))
    .order_by(_S.segmentation_id, _P.id)
)
_STATES = (
    sa.select(_P.bound_host, _P.status, hosts.TABLE.c.name)
    .join(hosts.TABLE, hosts.TABLE.c.name == _P.host_id, isouter=True)
    .where(sa.or_(_P.id == sa.bindparam("parent"), _P.id.in_(
        sa.select(_S.port_id).where(_S.trunk_id == sa.bindparam("trunk"))
    )))
)  # fmt: skip
_DETAILS = (
    sa.select(_T.port_id.label("parent_id"), _T.id.label("trunk_id"), _S.port_id, _S.segmentation_type,
              _S.segmentation_id, _P.mac_address)
    .select_from(Trunk.table.outerjoin(SUBPORT, _S.trunk_id == _T.id).outerjoin(Port.table, _P.id == _S.port_id))
    .where(_T.port_id.in_(sa.bindparam("ports", expanding=True)))
    .order_by(_T.id, _S.segmentation_id)
)  # fmt: skip
_DROP_SUBPORT = sa.delete(SUBPORT).where(_S.port_id == sa.bindparam("b_port"))
_DROP_SUBPORTS = sa.delete(SUBPORT).where(_S.trunk_id == sa.bindparam("b_trunk"))
_DROP = sa.delete(Trunk.table).where(_T.id == sa.bindparam("b_id"))
_DROP_TAGS = sa.delete(TAG).where(TAG.c.resource_id == sa.bindparam("b_id"))
Bind = Callable[..., Row]  # ports.bind


def of_parent(reader: Reader, port_id: str) -> Row | None:
    """The trunk a port is the parent of."""
    return reader.one(_OF_PARENT, {"port": port_id})


def of_subport(reader: Reader, port_id: str) -> Row | None:
    """``trunk_id``, ``segmentation_id`` and ``parent_id`` of a port that is a subport."""
    return reader.one(_OF_SUBPORT, {"port": port_id})


def subports(reader: Reader, trunk_id: str) -> list[Row]:
    """The subports of a trunk as the API shows them."""
    shown = ("port_id", "segmentation_type", "segmentation_id")
    return [{name: row[name] for name in shown} for row in reader.all(_SUBPORTS, {"trunk": trunk_id})]


def sub_rows(reader: Reader, trunk_id: str) -> list[Row]:
    """The rows of the ports that are subports of a trunk."""
    return reader.all(_SUB_ROWS, {"trunk": trunk_id})


def place(reader: Reader, port: Mapping[str, Any]) -> TrunkPlace | None:
    """Where in a trunk a port is, for its host; None when in none."""
    trunk = of_parent(reader, port["id"])
    if trunk is not None:
        return TrunkPlace(trunk_id=trunk["id"])
    if port["device_owner"] != OWNER:
        return None
    sub = of_subport(reader, port["id"])
    return TrunkPlace(trunk_id=sub["trunk_id"], vlan=sub["segmentation_id"]) if sub else None


def present_ports(reader: Reader, ports: list[Row]) -> None:
    """Fill in ``trunk_details`` of a page of ports, unless known: None for those that carry no others."""
    by_id = {p["id"]: p for p in ports if "trunk_details" not in p}
    for port in by_id.values():
        port["trunk_details"] = None
    ids = list(by_id)
    for i in range(0, len(ids), 500):
        for row in reader.all(_DETAILS, {"ports": ids[i : i + 500]}):
            port = by_id[row.pop("parent_id")]
            details = port["trunk_details"] or {"trunk_id": row["trunk_id"], "sub_ports": []}
            del row["trunk_id"]
            if row["port_id"]:
                details["sub_ports"].append(row)
            port["trunk_details"] = details


def guard(reader: Reader, port_id: str) -> None:
    """409 for deleting a port that is part of a trunk."""
    trunk = of_parent(reader, port_id)
    if trunk is not None:
        text = f"Trunk {trunk['id']} hangs on port {port_id}: delete the trunk first."
        raise conflict(text, "PortInUseAsTrunkParent")
    sub = of_subport(reader, port_id)
    if sub is not None:
        raise conflict(f"Trunk {sub['trunk_id']} has subport {port_id}: remove it there first.", "PortInUseAsSubPort")


def follow(tx: Tx, after: Mapping[str, Any], bind: Bind) -> None:
    """A port came to its host or left it: its subports go with it."""
    trunk = of_parent(tx, after["id"])
    if trunk is not None:
        for sub in sub_rows(tx, trunk["id"]):
            bind(tx, sub, after["host_id"] or "")
        settle(tx, trunk["id"], trunk["port_id"])


def port_gone(tx: Tx, port_id: str, bind: Bind) -> None:
    """A port is being deleted by the cloud itself (its server's end): its trunk goes too, its place in one is free."""
    trunk = of_parent(tx, port_id)
    if trunk is not None:
        dissolve(tx, trunk, bind)
        tx.execute(_DROP, {"b_id": trunk["id"]})
        if trunk["project_id"]:
            quota.release(tx, trunk["project_id"], {"trunk": 1})
    tx.execute(_DROP_SUBPORT, {"b_port": port_id})


def dissolve(tx: Tx, trunk: Mapping[str, Any], bind: Bind) -> None:
    """Give all subports of a trunk back, and forget its tags."""
    for sub in sub_rows(tx, trunk["id"]):
        bind(tx, sub, "", device_owner="")
    tx.execute(_DROP_SUBPORTS, {"b_trunk": trunk["id"]})
    tx.execute(_DROP_TAGS, {"b_id": trunk["id"]})


def settle(tx: Tx, trunk_id: str, parent_id: str) -> str:
    """Bring a trunk's status to what its ports' say; returns it."""
    states = tx.rows(_STATES, {"parent": parent_id, "trunk": trunk_id})
    failed = any(known and not host for host, _, known in states)  # binding_failed on a host of ours
    bound = any(host for host, *_ in states)
    up = all(status == "ACTIVE" for _, status, _ in states)
    status = "ERROR" if failed else "DOWN" if not bound else "ACTIVE" if up else "BUILD"
    allocate.set_columns(tx, Trunk, trunk_id, {"status": status})
    return status


def observed(tx: Tx, port_id: str) -> None:
    """A port's status changed: so may its trunk's."""
    trunk = of_parent(tx, port_id)
    if trunk is not None:
        settle(tx, trunk["id"], port_id)
        return
    sub = of_subport(tx, port_id)
    if sub is not None:
        settle(tx, sub["trunk_id"], sub["parent_id"])
