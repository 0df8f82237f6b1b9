"""No source file over 600 lines without a reason: files named in ALLOWED say theirs."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

LIMIT = 600
ALLOWED: dict[str, str] = {}


def main() -> int:
    """Print offenders; exit status 1 when there are any."""
    names = subprocess.run(["git", "ls-files", "*.py"], capture_output=True, text=True, check=True, timeout=30).stdout
    bad = [
        (n, name)
        for name in names.split()
        if Path(name).exists() and (n := len(Path(name).read_text().splitlines())) > LIMIT and name not in ALLOWED
    ]
    for n, name in sorted(bad, reverse=True):
        print(f"{name}: {n} lines, at most {LIMIT}; split it")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
