"""A copy of the tables of the Open vSwitch database that the switch looks at all the time (RFC 7047 section 4.1.5).

Reading a thousand interfaces costs tens of milliseconds, and every verb of the driver begins with a look. The server
sends us changes instead; a look asks it for an echo, and what it sends before the echo comes back is everything that
was committed before the look. The copy is never trusted beyond that: when the connection is gone, it is made anew.
"""

from __future__ import annotations

import json
import socket
import threading
import time
from pathlib import Path
from typing import Any

from nubila.core.ports import TryAgain
from nubila.drivers import ovs_db
from nubila.drivers.ovs_db import Row

COLUMNS = {
    "Bridge": ["name", "external_ids"],
    "Interface": ["name", "ofport", "ofport_request", "error", "external_ids"],
    "Port": ["name"],
}
_DECODER = json.JSONDecoder()


class Replica:
    """The tables of COLUMNS as they are now. Rows are never changed in place: a changed row is another object."""

    def __init__(self, path: Path, timeout_s: float = 10.0) -> None:
        self.path, self.timeout_s = path, timeout_s
        self.tables: dict[str, dict[str, Row]] = {}  # table -> uuid -> row
        self.changes = 0  # grows whenever something is another
        self._connection: socket.socket | None = None
        self._text = ""
        self._number = 0
        self._lock = threading.Lock()

    def look(self) -> dict[str, dict[str, Row]]:
        """Every row as it is now at the latest. Raises TryAgain when the database does not answer."""
        with self._lock:
            for last in (False, True):
                try:
                    if self._connection is None:
                        self._connect()
                    else:
                        self._ask("echo", [])
                    return self.tables
                except (OSError, ValueError) as failure:
                    self._close()
                    if last:
                        raise TryAgain(f"Open vSwitch does not answer on {self.path.name}: {failure}.") from failure
            raise AssertionError("unreachable")

    def close(self) -> None:
        """Forget everything."""
        with self._lock:
            self._close()

    def _close(self) -> None:
        if self._connection is not None:
            self._connection.close()
        self._connection, self._text = None, ""

    def _connect(self) -> None:
        self._connection = ovs_db.connect(self.path, self.timeout_s)
        self.tables = {table: {} for table in COLUMNS}
        wanted = {table: {"columns": columns} for table, columns in COLUMNS.items()}
        self._apply(self._ask("monitor", ["Open_vSwitch", None, wanted]))

    def _ask(self, method: str, params: list[Any]) -> Any:
        """One request and its answer; what comes before it is taken in."""
        assert self._connection is not None
        self._number += 1
        self._send({"method": method, "params": params, "id": self._number})
        deadline = time.monotonic() + self.timeout_s
        while True:
            said = self._next(deadline)
            if said.get("method") == "update":
                self._apply(said["params"][1])
            elif said.get("method") == "echo":
                self._send({"result": said["params"], "error": None, "id": said["id"]})
            elif said.get("id") == self._number:
                if said.get("error"):
                    raise ValueError(str(said["error"]))
                return said["result"]

    def _send(self, message: dict[str, Any]) -> None:
        assert self._connection is not None
        self._connection.settimeout(self.timeout_s)
        self._connection.sendall(json.dumps(message).encode())

    def _next(self, deadline: float) -> dict[str, Any]:
        """The next message of the stream."""
        assert self._connection is not None
        chunks = [self._text]
        while True:
            text = "".join(chunks).lstrip()
            if text and (len(chunks) == 1 or text.endswith("}")):  # only then can one have become whole
                try:
                    value, end = _DECODER.raw_decode(text)
                except ValueError:
                    pass
                else:
                    self._text = text[end:]
                    return dict(value)
            chunks = [text]
            left = deadline - time.monotonic()
            if left <= 0:
                raise TimeoutError("timed out")
            self._connection.settimeout(left)
            data = self._connection.recv(1 << 20)
            if not data:
                raise ConnectionError("the connection was closed")
            while True:
                try:
                    chunks.append(data.decode())
                    break
                except UnicodeDecodeError:  # cut within a character
                    data += self._connection.recv(1)

    def _apply(self, updates: dict[str, Any]) -> None:
        self.changes += 1
        for table, rows in updates.items():
            mine = self.tables[table]
            for id, change in rows.items():
                new = change.get("new")
                if new is None:
                    mine.pop(id, None)
                else:
                    mine[id] = {"_uuid": id, **{name: ovs_db.plain(value) for name, value in new.items()}}
