"""A small synchronous QMP client (QEMU's docs/interop/qmp-spec.txt): one socket, commands, events, deadlines.

QEMU serves one client at a time: whoever comes second waits for its greeting. So connections are short and every
wait has a limit.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

import msgspec

Message = dict[str, Any]


class QmpError(Exception):
    """QEMU refused a command; ``kind`` is its error class, e.g. DeviceNotFound."""

    def __init__(self, text: str, kind: str = "GenericError") -> None:
        super().__init__(text)
        self.kind = kind


class QmpSilent(QmpError):
    """QEMU is not there, or did not answer in time."""


class Qmp:
    """A connection, for use in a ``with`` statement; ``timeout_s`` bounds each command."""

    def __init__(self, path: Path, timeout_s: float = 3.0) -> None:
        self.timeout_s = timeout_s
        self.events: list[Message] = []
        self._buffer = b""
        self._socket = _connect(path, timeout_s)
        try:
            self._receive(time.monotonic() + timeout_s)  # the greeting
            self.execute("qmp_capabilities")
        except BaseException:
            self._socket.close()
            raise

    def __enter__(self) -> Qmp:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._socket.close()

    def execute(self, command: str, /, **arguments: object) -> Any:
        """Run one command and return its result; raises QmpError (QmpSilent without an answer)."""
        message: Message = {"execute": command}
        if arguments:
            message["arguments"] = arguments
        deadline = time.monotonic() + self.timeout_s
        try:
            self._socket.settimeout(self.timeout_s)
            self._socket.sendall(msgspec.json.encode(message) + b"\n")
        except OSError as error:
            raise QmpSilent(f"QEMU does not take the command {command}: {error}.") from None
        while True:
            answer = self._receive(deadline)
            if "event" in answer:
                self.events.append(answer)
            elif "error" in answer:
                raise QmpError(answer["error"]["desc"], answer["error"]["class"])
            elif "return" in answer:
                return answer["return"]

    def wait_event(self, wanted: Callable[[Message], bool], timeout_s: float) -> bool:
        """Wait for an event that ``wanted`` accepts, those already seen included; False when none came in time."""
        deadline = time.monotonic() + timeout_s
        while not any(wanted(event) for event in self.events):
            try:
                message = self._receive(deadline)
            except QmpSilent:
                return False
            if "event" in message:
                self.events.append(message)
        return True

    def _receive(self, deadline: float) -> Message:
        while b"\n" not in self._buffer:
            left_s = deadline - time.monotonic()
            if left_s <= 0:
                raise QmpSilent("QEMU does not answer on its control socket.")
            self._socket.settimeout(left_s)
            try:
                data = self._socket.recv(65536)
            except OSError as error:
                raise QmpSilent(f"QEMU does not answer on its control socket: {error}.") from None
            if not data:
                raise QmpSilent("QEMU closed its control socket.")
            self._buffer += data
        line, _, self._buffer = self._buffer.partition(b"\n")
        message: Message = msgspec.json.decode(line)
        return message


def _connect(path: Path, timeout_s: float) -> socket.socket:
    """Connect by way of the directory's descriptor: a Unix socket address holds only 107 bytes."""
    try:
        folder = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise QmpSilent(f"There is no control socket: {error.strerror}.") from None
    client = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    client.settimeout(timeout_s)
    try:
        client.connect(f"/proc/self/fd/{folder}/{path.name}")
    except OSError as error:
        client.close()
        raise QmpSilent(f"Nobody listens on the control socket: {error}.") from None
    finally:
        os.close(folder)
    return client
