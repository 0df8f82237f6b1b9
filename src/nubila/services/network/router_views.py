"""Routers as the API shows them: gateways, helpers, zones and whatever else is not in their own row."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import sqlalchemy as sa

from nubila.core import hosts
from nubila.core.call import Call
from nubila.core.db import Reader
from nubila.services.network import conntrack_helpers, look
from nubila.services.network.asks import GATEWAY
from nubila.services.network.kinds import Router
from nubila.services.network.kinds_port import Port
from nubila.services.network.tables import IP_ALLOCATION

Row = dict[str, Any]
_P, _A = Port.table.c, IP_ALLOCATION.c
_SHOWN = (
    sa.select(_P.device_id, _P.id, _P.network_id, _A.subnet_id, _A.ip_address)
    .select_from(Port.table.outerjoin(IP_ALLOCATION, _A.port_id == _P.id))
    .where(_P.device_id.in_(sa.bindparam("routers", expanding=True)), _P.device_owner == GATEWAY)
    .order_by(_P.created_at, _P.id, _A.place)
)

_ZONES = sa.select(hosts.TABLE.c.name, hosts.TABLE.c.zone)


def gateways(reader: Reader, rows: Sequence[Mapping[str, Any]]) -> dict[str, list[Row]]:
    """router -> its gateways as the API shows them, the first one first."""
    out: dict[str, dict[str, Row]] = {}
    ids = [r["id"] for r in rows if r["gw_port_id"]]
    facts = {r["id"]: r for r in rows}
    for i in range(0, len(ids), 500):
        for router, port, net, subnet, ip in reader.rows(_SHOWN, {"routers": ids[i : i + 500]}):
            info = out.setdefault(router, {}).setdefault(
                port,
                {
                    "network_id": net,
                    "external_fixed_ips": [],
                    "enable_snat": facts[router]["enable_snat"],
                    "qos_policy_id": facts[router]["gw_qos_policy_id"],
                },
            )
            if ip is not None:
                info["external_fixed_ips"].append({"subnet_id": subnet, "ip_address": ip})
    first = {id: facts[id]["gw_port_id"] for id in out}
    return {id: [found[p] for p in sorted(found, key=lambda p: p != first[id])] for id, found in out.items()}


def present(call: Call, rows: list[Row]) -> None:
    outside = gateways(call.tx, rows)
    helpers: dict[str, list[Row]] = {}
    for i in range(0, len(rows), 500):
        helpers.update(conntrack_helpers.of_routers(call.tx, [r["id"] for r in rows[i : i + 500]]))
    zones = dict(call.tx.rows(_ZONES)) if any(r["host"] for r in rows) else {}
    for row in rows:
        row["external_gateways"] = outside.get(row["id"], [])
        row["external_gateway_info"] = row["external_gateways"][0] if row["external_gateways"] else None
        row["conntrack_helpers"] = helpers.get(row["id"], [])
        row["availability_zones"] = [zones[row["host"]]] if row["host"] in zones else []
        row["routes"] = row["routes"] or []


def view(call: Call, row: Row) -> Row:
    """One router as the caller sees it, for answers of actions."""
    present(call, [row])
    target = look.wire(Router, row)
    return {
        name: a.type.dump(row[a.name]) if a.type.dump else row[a.name]
        for a in Router.attrs.values()
        if not a.hidden and (not a.see or call.may(f"get_router:{a.api}", target))
        for name in a.wire
    }
