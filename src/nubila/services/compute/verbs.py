"""POST /servers/{id}/action: every verb is a change of what is wanted, an event, and an ask.

Only the console's output is different: it is a question to the host, answered when the host has answered.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Any

from nubila.core.call import Answer, Call, Reply
from nubila.core.db import Busy, Conflict, patiently
from nubila.core.faults import Fault, bad_request, conflict, forbidden, unavailable
from nubila.services.compute import history, rows, secgroups, views, wire
from nubila.services.compute.wire import Row, is_admin, obj
from nubila.services.hosts import queries

ANY: dict[str, Any] = {}
CONSOLE_LINES_MAX = 1 << 20


def _body(name: str, inner: Mapping[str, Any]) -> dict[str, Any]:
    return obj({name: inner}, [name])


def _ready(call: Call, row: Row, verb: str, *states: str) -> None:
    """Refuse while it is being built or deleted, or is not in one of these states."""
    rows.unlocked(call, row, f"'{verb}'")
    if row["want"] == "gone":
        raise rows.wrong_state(row, verb, "task_state", "deleting")
    if row["vm_state"] not in states:
        raise rows.wrong_state(row, verb, "vm_state", row["vm_state"])
    if row["host"] is None:
        raise conflict(f"Instance {row['id']} is not on any host: it can only be deleted.")


def _ask(call: Call, row: Row) -> None:
    call.tx.ask("guest", row["id"], row["host"])


def start(call: Call) -> Answer:
    """Start a stopped server."""
    wire.body(call, _body("os-start", ANY))
    row = rows.find(call, "os_compute_api:servers:start")
    _ready(call, row, "start", "stopped")
    if row["power"] == "on":
        raise rows.wrong_state(row, "start", "task_state", "powering-on")
    rows.change(call.tx, row, power="on")
    history.record(call, row["id"], "start")
    _ask(call, row)
    return Reply(None, 202)


def stop(call: Call) -> Answer:
    """Stop a running server."""
    wire.body(call, _body("os-stop", ANY))
    row = rows.find(call, "os_compute_api:servers:stop")
    _ready(call, row, "stop", "active", "error")
    if row["power"] == "off" and row["vm_state"] == "active":
        raise rows.wrong_state(row, "stop", "task_state", "powering-off")
    rows.change(call.tx, row, power="off")
    history.record(call, row["id"], "stop")
    _ask(call, row)
    return Reply(None, 202)


_KINDS = {"enum": ["HARD", "Hard", "hard", "SOFT", "Soft", "soft"]}


def reboot(call: Call) -> Answer:
    """Reboot a server: a soft one asks the guest, a hard one pulls the plug and also starts a stopped server."""
    kind = wire.body(call, _body("reboot", obj({"type": _KINDS}, ["type"])))["reboot"]["type"].upper()
    row = rows.find(call, "os_compute_api:servers:reboot")
    if kind == "SOFT":
        _ready(call, row, "reboot", "active")
        if views.task_state(row) not in (None, "rebooting"):
            raise rows.wrong_state(row, "reboot", "task_state", views.task_state(row))
    else:
        _ready(call, row, "reboot", "active", "stopped", "error")
    rows.change(
        call.tx, row, boots=row["boots"] + 1, hard=kind == "HARD", power="on",
        **({"vm_state": "active", "fault": None} if row["vm_state"] == "error" and row["launched_at"] else {}),
    )  # fmt: skip
    history.record(call, row["id"], "reboot")
    _ask(call, row)
    return Reply(None, 202)


def lock(call: Call) -> Answer:
    """Lock a server against changes by its project."""
    inner: Mapping[str, Any] = ANY
    if call.version >= (2, 73):
        reason = {"type": "string", "minLength": 1, "maxLength": 255}
        inner = {"anyOf": [{"type": "null"}, obj({"locked_reason": reason})]}
    given = wire.body(call, _body("lock", inner))["lock"]
    row = rows.find(call, "os_compute_api:os-lock-server:lock")
    by = "owner" if row["project_id"] == call.creds.project_id and not is_admin(call) else "admin"
    if row["locked_by"] == "admin" and by == "owner":
        raise forbidden(f"Instance {row['id']} has been locked by an administrator.")
    reason_text = given.get("locked_reason") if isinstance(given, dict) and call.version >= (2, 73) else None
    rows.change(call.tx, row, locked_by=by, locked_reason=reason_text)
    history.record(call, row["id"], "lock")
    return Reply(None, 202)


def unlock(call: Call) -> Answer:
    """Unlock a server; what an administrator locked needs an administrator."""
    wire.body(call, _body("unlock", ANY))
    row = rows.find(call, "os_compute_api:os-lock-server:unlock")
    if row["locked_by"] == "admin":
        call.enforce("os_compute_api:os-lock-server:unlock:unlock_override", row)
    rows.change(call.tx, row, locked_by=None, locked_reason=None)
    history.record(call, row["id"], "unlock")
    return Reply(None, 202)


def reset_state(call: Call) -> Answer:
    """Declare a server active or in error; its power is then compared anew."""
    states = obj({"state": {"enum": ["active", "error"]}}, ["state"])
    state = wire.body(call, _body("os-resetState", states))["os-resetState"]["state"]
    row = rows.find(call, "os_compute_api:os-admin-actions:reset_state")
    if state == "active" and row["host"] is None:
        raise conflict(f"Instance {row['id']} was never placed: it cannot be active.")
    rows.change(call.tx, row, vm_state=state, booted=row["boots"], **({"fault": None} if state == "active" else {}))
    history.record(call, row["id"], "resetState")
    if row["host"] and state == "active":
        _ask(call, row)
    return Reply(None, 202)


def inject_network_info(call: Call) -> Answer:
    """Have the host compare a server's ports and NICs anew."""
    wire.body(call, _body("injectNetworkInfo", ANY))
    row = rows.find(call, "os_compute_api:os-admin-actions:inject_network_info")
    if row["host"] is None:
        raise conflict(f"Instance {row['id']} is not on any host: it can only be deleted.")
    for nic in row["nics"] or []:
        call.tx.ask("port", nic["port_id"], row["host"])
    _ask(call, row)
    history.record(call, row["id"], "injectNetworkInfo")
    return Reply(None, 202)


# --- the console ------------------------------------------------------------------------------------------------------

_LENGTH = {"anyOf": [{"type": "null"}, {"type": "integer", "minimum": -1}, {"type": "string", "pattern": "^-?[0-9]+$"}]}


def _console_question(call: Call) -> str:
    """Check the request and put the question; returns its id, "" when there can be nothing to read."""
    given = wire.body(call, _body("os-getConsoleOutput", obj({"length": _LENGTH}, extra=True)))["os-getConsoleOutput"]
    row = rows.find(call, "os_compute_api:os-console-output")
    length = given.get("length")
    lines = None if length is None or int(length) < 0 else min(int(length), CONSOLE_LINES_MAX)
    if row["host"] is None or row["vm_state"] == "building":
        raise conflict(f"Instance {row['id']} is not ready: it has no console yet.")
    if lines == 0:
        return ""
    return queries.ask(call.tx, row["host"], {"kind": "console", "guest": row["id"], "lines": lines})


async def console_output(call: Call) -> Answer:
    """Show the end of the console log."""
    question = await _run(call, _console_question)
    if not question:
        return {"output": ""}
    answer = await queries.answer(call.cloud, str(question))
    return {"output": _printable(str(answer.get("output") or ""))}


def _printable(text: str) -> str:
    """Without control characters that JSON readers and terminals choke on; line ends and escapes of colours stay."""
    return "".join(ch for ch in text if ch in "\n\r\t\x1b" or ch >= " ")


# --- dispatch ---------------------------------------------------------------------------------------------------------

VERBS: Mapping[str, Callable[[Call], Answer]] = {
    "os-start": start,
    "os-stop": stop,
    "reboot": reboot,
    "lock": lock,
    "unlock": unlock,
    "os-resetState": reset_state,
    "injectNetworkInfo": inject_network_info,
    "addSecurityGroup": secgroups.add,
    "removeSecurityGroup": secgroups.remove,
}
BUSY_RETRIES = 6


async def action(call: Call) -> Answer:
    """Act on a server: start, stop, reboot, lock, unlock, read the console ..."""
    if not isinstance(call.body, dict) or len(call.body) != 1:
        raise bad_request("The body must hold exactly one action.")
    name = next(iter(call.body))
    if name == "os-getConsoleOutput":
        return await console_output(call)
    verb = VERBS.get(name)
    if verb is None:
        raise bad_request(f"There is no such action: {name}")
    result: Answer = await _run(call, verb)
    return result


async def _run(call: Call, verb: Callable[[Call], Any]) -> Any:
    """In one write transaction: inline on an embedded database, else in a worker thread."""
    if call.cloud.store.embedded:
        return _transact(call, verb)
    return await asyncio.to_thread(_transact, call, verb)


def _transact(call: Call, verb: Callable[[Call], Any]) -> Any:
    def once() -> Any:
        try:
            with call.cloud.store.write() as call.tx:
                return verb(call)
        except Busy:
            call.memo.clear()
            raise

    try:
        return patiently(once, BUSY_RETRIES - 1, blindly=True)
    except Busy:
        raise unavailable("The database is busy; try again.") from None
    except Conflict as e:
        raise Fault(409, f"This conflicts with something that exists: {e}.") from None
