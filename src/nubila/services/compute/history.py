"""What was asked of a server and how it went: instance actions and events, written in the asker's own transaction."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa

from nubila.core import clock
from nubila.core.call import Call
from nubila.core.db import Tx
from nubila.services.compute.kinds import ACTION, EVENT

EVENTS = {
    "create": "compute__do_build_and_run_instance",
    "delete": "compute_terminate_instance",
    "start": "compute_start_instance",
    "stop": "compute_stop_instance",
    "reboot": "compute_reboot_instance",
    "attach_interface": "compute_attach_interface",
    "detach_interface": "compute_detach_interface",
}
"""The event behind each action, under the names Nova's users know."""

_FINISH = (
    sa.update(EVENT)
    .where(EVENT.c.server_id == sa.bindparam("b_id"), EVENT.c.finish_time.is_(None))
    .values(
        finish_time=sa.bindparam("b_now"),
        result=sa.bindparam("b_result"),
        details=sa.bindparam("b_details"),
        host=sa.bindparam("b_host"),
    )
)
_OPEN = sa.select(EVENT.c.action_id).where(EVENT.c.server_id == sa.bindparam("b_id"), EVENT.c.finish_time.is_(None))


def record(call: Call, server_id: str, action: str, *, done: bool = False) -> None:
    """Note that the caller asked for ``action``; its event stays open until ``finish`` unless ``done``."""
    now = clock.now()
    row = {
        "id": clock.new_id(), "server_id": server_id, "action": action, "request_id": call.request_id,
        "project_id": call.creds.project_id or "", "user_id": call.creds.user_id or "", "start_time": now,
        "updated_at": now, "message": None,
    }  # fmt: skip
    call.tx.insert(ACTION, row)
    event = EVENTS.get(action)
    if event is not None:
        call.tx.insert(
            EVENT,
            {
                "id": clock.new_id(), "action_id": row["id"], "server_id": server_id, "event": event,
                "start_time": now, "finish_time": now if done else None, "result": "Success" if done else None,
                "details": None, "host": None,
            },
        )  # fmt: skip


def finish(tx: Tx, server: dict[str, Any], error: str = "") -> None:
    """End every open event of a server: with Success, or with Error and what went wrong."""
    open_ = [id for (id,) in tx.rows(_OPEN, {"b_id": server["id"]})]
    if not open_:
        return
    now = clock.now()
    tx.execute(
        _FINISH,
        {
            "b_id": server["id"], "b_now": now, "b_result": "Error" if error else "Success",
            "b_details": error[:1000] or None, "b_host": server["host"],
        },
    )  # fmt: skip
    changes: dict[str, Any] = {"updated_at": now}
    if error:
        changes["message"] = "Error"
    tx.execute(sa.update(ACTION).where(ACTION.c.id.in_(open_)).values(**changes))
