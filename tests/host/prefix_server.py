"""The operator's DHCPv6 server: Kea, delegating /64s of a /48 on one device of some namespace."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Sequence
from pathlib import Path

NEAR = "2001:db8:ffff::"
"""The link that the server is on, a /64."""


class Kea:
    """``enter`` is the command line that runs a command where the device is."""

    def __init__(self, root: Path, enter: Sequence[str], device: str) -> None:
        self.folder, self.enter, self.device = root / "kea", enter, device
        self.folder.mkdir()
        self._child: subprocess.Popen[bytes] | None = None

    def serve(self, pool: str, *, lasts_s: int = 8) -> None:
        """Delegate from now on, knowing nothing of what was delegated before; ``lasts_s``: life of a prefix."""
        self.silence()
        listed = [{"prefix": pool, "prefix-len": 48, "delegated-len": 64}]
        settings = {
            "interfaces-config": {"interfaces": [self.device], "re-detect": True},
            "server-id": {"type": "EN", "enterprise-id": 2495, "identifier": "87ABEF7A5BB545", "persist": False},
            "lease-database": {"type": "memfile", "persist": False},
            "renew-timer": lasts_s // 4, "rebind-timer": lasts_s // 2,
            "preferred-lifetime": lasts_s, "valid-lifetime": lasts_s,
            "subnet6": [{"id": 1, "subnet": f"{NEAR}/64", "interface": self.device, "pd-pools": listed}],
            "loggers": [
                {"name": "kea-dhcp6", "severity": "INFO", "output_options": [{"output": str(self.folder / "log")}]}
            ],
        }  # fmt: skip
        path = self.folder / "kea.json"
        path.write_text(json.dumps({"Dhcp6": settings}))
        where = {"KEA_PIDFILE_DIR": str(self.folder), "KEA_LOCKFILE_DIR": str(self.folder)}
        with open(self.folder / "out", "ab") as out:
            argv = [*self.enter, "kea-dhcp6", "-c", str(path)]
            self._child = subprocess.Popen(argv, env={**os.environ, **where}, stdout=out, stderr=out)

    def log(self) -> str:
        """What it has logged."""
        path = self.folder / "log"
        return path.read_text() if path.exists() else ""

    def silence(self) -> None:
        """End it as a power cut would."""
        if self._child is not None:
            self._child.kill()
            self._child.wait(10)
            self._child = None
        for left in self.folder.glob("*.pid"):
            left.unlink()
