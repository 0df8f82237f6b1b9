"""Runs `openstack` commands, each in a fork of one process: importing the client takes longer than most commands.

Reads one JSON object a line from standard input, `{"argv": [...], "env": {...}, "answers": [...]}` (answers to password
prompts), and writes one a line: `{"status": n, "out": "...", "err": "..."}`. The client itself is unmodified.
"""

from __future__ import annotations

import contextlib
import getpass
import io
import json
import os
import sys
import traceback
from collections.abc import Iterator

import openstackclient.compute.client
import openstackclient.identity.client
import openstackclient.image.client
import openstackclient.network.client  # noqa: F401  # All imported once, before the forks.
from openstackclient.shell import OpenStackShell


class _Terminal(io.StringIO):
    """Standard input that says it is a terminal, since the client prompts for passwords only there."""

    def isatty(self) -> bool:
        return True


def run(argv: list[str], env: dict[str, str], answers: list[str]) -> dict[str, object]:
    """One command, as `openstack ARGV` in a shell with `env` would be."""
    for name in [name for name in os.environ if name.startswith("OS_")]:
        del os.environ[name]
    os.environ.update(env)
    left: Iterator[str] = iter(answers)
    getpass.getpass = lambda prompt="", stream=None: next(left)  # type: ignore[assignment]
    out, err = io.StringIO(), io.StringIO()
    sys.stdin = _Terminal()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            status = OpenStackShell().run(argv)
        except SystemExit as end:
            status = end.code if isinstance(end.code, int) else 1
        except BaseException:
            traceback.print_exc()
            status = 70
    return {"status": status or 0, "out": out.getvalue(), "err": err.getvalue()}


def main() -> None:
    """Serve until the other side closes the pipe."""
    replies = sys.stdout
    for line in sys.stdin:
        wish = json.loads(line)
        child = os.fork()  # The client keeps sessions of the first user it served.
        if child == 0:
            print(json.dumps(run(wish["argv"], wish["env"], wish.get("answers", []))), file=replies, flush=True)
            os._exit(0)
        os.waitpid(child, 0)


if __name__ == "__main__":
    main()
