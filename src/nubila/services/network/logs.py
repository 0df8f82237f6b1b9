"""Which logs a port's packets go to, and who is told when that changes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import sqlalchemy as sa

from nubila.core import quota
from nubila.core.cloud import Cloud
from nubila.core.db import Reader, Store, Tx
from nubila.core.ports import LogSpec
from nubila.core.work import Item
from nubila.services.network.kinds_logging import Log
from nubila.services.network.kinds_port import Port
from nubila.services.network.tables import PORT_GROUP

Row = Mapping[str, Any]
_L, _P = Log.table.c, Port.table.c
_OF_PORT = (
    sa.select(_L.id, _L.event, _L.resource_id)
    .where(
        _L.enabled.is_(True),
        sa.or_(_L.target_id.is_(None), _L.target_id == sa.bindparam("port")),
        sa.or_(_L.resource_id.is_(None), _L.resource_id.in_(sa.bindparam("groups", expanding=True))),
        sa.or_(
            _L.target_id.is_not(None), _L.resource_id.is_not(None), _L.project_id == sa.bindparam("project")
        ),
    )
    .order_by(_L.id)
)  # fmt: skip
_ABOUT = sa.select(_L.id, _L.project_id).where(
    sa.or_(_L.resource_id == sa.bindparam("id"), _L.target_id == sa.bindparam("id"))
)
_DELETE = sa.delete(Log.table).where(_L.id == sa.bindparam("b_id"))
_GUESTS = sa.select(_P.id, _P.bound_host).where(_P.bound_host != "", _P.device_owner.not_like("network:%"))
_CONCERNED = {
    "port": _GUESTS.where(_P.id == sa.bindparam("id")),
    "group": _GUESTS.join(PORT_GROUP, PORT_GROUP.c.port_id == _P.id).where(
        PORT_GROUP.c.security_group_id == sa.bindparam("id")
    ),
    "project": _GUESTS.where(_P.project_id == sa.bindparam("id")),
}


def of_port(reader: Reader, port: Row, group_ids: Iterable[str]) -> tuple[LogSpec, ...]:
    """The logs that are written of a port in these groups."""
    where = {"port": port["id"], "groups": sorted(group_ids), "project": port["project_id"]}
    return tuple(LogSpec(id=id, event=event, group=group) for id, event, group in reader.rows(_OF_PORT, where))


def forget(tx: Tx, id: str) -> None:
    """The group or port is going, and the logs about it with it."""
    for log, project in tx.rows(_ABOUT, {"id": id}):
        tx.execute(_DELETE, {"b_id": log})
        if project:
            quota.release(tx, project, {"log": 1})


def ask(tx: Tx, log: Row) -> None:
    """The log was made, changed or taken away: a controller tells the ports it is about."""
    if log["target_id"]:
        tx.ask("log_ports", f"port:{log['target_id']}")
    elif log["resource_id"]:
        tx.ask("log_ports", f"group:{log['resource_id']}")
    else:
        tx.ask("log_ports", f"project:{log['project_id']}")


def ports_item(cloud: Cloud, store: Store, item: Item) -> None:
    """Reconciler "log_ports": the hosts of all ports that a log is about look at them again."""
    kind, _, id = item.id.partition(":")
    with store.write(item) as tx:
        found = tx.rows(_CONCERNED[kind], {"id": id})
        for port, host in found:
            tx.ask("port", port, host)
        tx.settle(f"{len(found)} ports were told")
