"""Runs `openstack` commands one after another in one process: importing the client takes longer than most commands.

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

from openstackclient.shell import OpenStackShell


def run(argv: list[str], env: dict[str, str], answers: list[str]) -> dict[str, object]:
    """One command, as `openstack ARGV` in a shell with `env` would be."""
    for name in [name for name in os.environ if name.startswith("OS_")]:
        del os.environ[name]
    os.environ.update(env)
    left: Iterator[str] = iter(answers)
    getpass.getpass = lambda prompt="", stream=None: next(left)  # type: ignore[assignment]
    out, err = io.StringIO(), io.StringIO()
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
        print(json.dumps(run(wish["argv"], wish["env"], wish.get("answers", []))), file=replies, flush=True)


if __name__ == "__main__":
    main()
