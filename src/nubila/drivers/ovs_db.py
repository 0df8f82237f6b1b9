"""A small client of the Open vSwitch database (OVSDB, RFC 7047) and of the daemons' control sockets.

One call is one connection to a unix socket, one JSON-RPC request and its reply (well under a millisecond), so there
is nothing to keep, share or reconnect. Rows come back as plain Python: sets as lists, maps as dicts, UUIDs as text.
"""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from nubila.core.ports import TryAgain

Operation = dict[str, Any]
Row = dict[str, Any]

_DECODER = json.JSONDecoder()


class OvsRefused(TryAgain):
    """The daemon answered, and the answer was an error."""


def call(path: Path, method: str, params: Sequence[Any], timeout_s: float = 10.0) -> Any:
    """One JSON-RPC request over a unix socket; raises TryAgain when nobody answers, OvsRefused on an error."""
    deadline = time.monotonic() + timeout_s
    request = json.dumps({"method": method, "params": params, "id": 1}).encode()
    try:
        with connect(path, timeout_s) as connection:
            connection.sendall(request)
            while True:
                reply = _receive(connection, deadline)
                if reply.get("id") == 1 and "method" not in reply:
                    break
    except OSError as failure:
        raise TryAgain(f"Open vSwitch does not answer on {path.name}: {failure}.") from failure
    if reply.get("error"):
        raise OvsRefused(f"Open vSwitch refused {method}: {_words(reply['error'])}.")
    return reply.get("result")


def connect(path: Path, timeout_s: float) -> socket.socket:
    """A connection to a unix socket, however long its path is."""
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        connection.settimeout(timeout_s)
        if len(os.fsencode(path)) < 108:
            connection.connect(str(path))
        else:  # sun_path is too short for it: go by the directory's file descriptor
            parent = os.open(path.parent, os.O_PATH | os.O_DIRECTORY)
            try:
                connection.connect(f"/proc/self/fd/{parent}/{path.name}")
            finally:
                os.close(parent)
    except BaseException:
        connection.close()
        raise
    return connection


def _receive(connection: socket.socket, deadline: float) -> dict[str, Any]:
    """The next whole JSON object from the stream."""
    chunks: list[bytes] = []
    while True:
        left = deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError("timed out")
        connection.settimeout(left)
        chunk = connection.recv(1 << 20)
        if not chunk:
            raise ConnectionError("the connection was closed")
        chunks.append(chunk)
        if chunk.rstrip().endswith(b"}"):  # only then can it be complete
            try:
                value, _ = _DECODER.raw_decode(b"".join(chunks).decode())
            except (ValueError, UnicodeDecodeError):
                continue
            if isinstance(value, dict):
                return value


def _words(error: Any) -> str:
    if isinstance(error, Mapping):
        return f"{error.get('error', '')} {error.get('details', '')}".strip()
    return str(error).strip()


# --- transactions -------------------------------------------------------------------------------------------------


class Database:
    """The Open_vSwitch database behind one socket."""

    def __init__(self, path: Path, timeout_s: float = 10.0) -> None:
        self.path = path
        self.timeout_s = timeout_s

    def transact(self, *operations: Operation) -> list[Any]:
        """Run all operations as one transaction; one result per operation."""
        results = call(self.path, "transact", ["Open_vSwitch", *operations], self.timeout_s)
        for result in results:
            if isinstance(result, Mapping) and result.get("error"):
                raise OvsRefused(f"Open vSwitch refused a change: {_words(result)}.")
        return list(results)

    def rows(self, *selects: Operation) -> list[list[Row]]:
        """Run selects as one transaction; one list of plain rows per select."""
        results = self.transact(*selects)
        return [[{name: plain(value) for name, value in row.items()} for row in r["rows"]] for r in results]


def plain(value: Any) -> Any:
    """An OVSDB value as plain Python."""
    if isinstance(value, list) and len(value) == 2 and isinstance(value[0], str):
        kind, content = value
        if kind == "map":
            return {plain(key): plain(item) for key, item in content}
        if kind == "set":
            return [plain(item) for item in content]
        if kind in ("uuid", "named-uuid"):
            return content
    return value


def one(value: Any) -> Any:
    """The element of an optional column (a set of at most one), None when empty."""
    if isinstance(value, list):
        return value[0] if value else None
    return value


def ovs_map(items: Mapping[str, str]) -> list[Any]:
    """A dict as an OVSDB map."""
    return ["map", [[key, value] for key, value in sorted(items.items())]]


def uuid(text: str) -> list[str]:
    """A reference to an existing row."""
    return ["uuid", text]


def named(text: str) -> list[str]:
    """A reference to a row inserted by the same transaction."""
    return ["named-uuid", text]


def select(table: str, columns: Sequence[str], where: Sequence[Any] = ()) -> Operation:
    """Read columns of the rows that match."""
    return {"op": "select", "table": table, "where": list(where), "columns": list(columns)}


def insert(table: str, name: str, row: Row) -> Operation:
    """Add a row, known to the rest of the transaction as ``named(name)``."""
    return {"op": "insert", "table": table, "row": row, "uuid-name": name}


def update(table: str, row_uuid: str, row: Row) -> Operation:
    """Overwrite columns of one row."""
    return {"op": "update", "table": table, "where": [["_uuid", "==", uuid(row_uuid)]], "row": row}


def mutate(table: str, row_uuid: str, *mutations: list[Any]) -> Operation:
    """Change sets, maps and numbers of one row in place."""
    where = [["_uuid", "==", uuid(row_uuid)]]
    return {"op": "mutate", "table": table, "where": where, "mutations": list(mutations)}


def put(column: str, items: Mapping[str, str]) -> list[list[Any]]:
    """Mutations that set keys of a map column, whatever they were."""
    return [[column, "delete", ["set", sorted(items)]], [column, "insert", ovs_map(items)]]


def wait_changed(table: str, where: Sequence[Any], columns: Sequence[str], row: Row, timeout_s: float) -> Operation:
    """Block the transaction until the columns differ from ``row``."""
    return {
        "op": "wait",
        "table": table,
        "where": list(where),
        "columns": list(columns),
        "until": "!=",
        "rows": [row],
        "timeout": int(timeout_s * 1000),
    }


def wait_for(table: str, where: Sequence[Any], timeout_s: float) -> Operation:
    """Block the transaction until a row matches."""
    return {
        "op": "wait",
        "table": table,
        "where": list(where),
        "columns": ["_uuid"],
        "until": "!=",
        "rows": [],
        "timeout": int(timeout_s * 1000),
    }
