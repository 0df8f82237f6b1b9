"""The last complete desired state of this host, on its own disk.

With it a host reboots into working guests and networks while the control plane is away. One small file per thing,
replaced atomically; file modes 0600 because a spec may hold a guest's user data.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import msgspec


class Ledger:
    """Desired state by (kind, id)."""

    def __init__(self, root: Path) -> None:
        self._root = root
        root.mkdir(mode=0o700, parents=True, exist_ok=True)

    def _file(self, kind: str, id: str) -> Path:
        return self._root / kind / f"{id}.json"

    def put(self, kind: str, id: str, order: int, spec: Any) -> None:
        """Remember a spec; nothing is written when it is the same."""
        path = self._file(kind, id)
        data = msgspec.json.encode({"order": order, "spec": spec})
        try:
            if path.read_bytes() == data:
                return
        except FileNotFoundError:
            path.parent.mkdir(mode=0o700, exist_ok=True)
        temp = path.with_suffix(".new")
        fd = os.open(temp, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(fd, "wb") as f:
            f.write(data)
        temp.rename(path)

    def remove(self, kind: str, id: str) -> None:
        """Forget a spec; absent is success."""
        self._file(kind, id).unlink(missing_ok=True)

    def keep(self, kinds: dict[str, list[str]]) -> None:
        """Forget everything not named."""
        for kind in self.kinds():
            wanted = set(kinds.get(kind, ()))
            for path in (self._root / kind).glob("*.json"):
                if path.stem not in wanted:
                    path.unlink(missing_ok=True)

    def kinds(self) -> list[str]:
        """The kinds that have entries."""
        return [p.name for p in self._root.iterdir() if p.is_dir()]

    def ids(self) -> dict[str, set[str]]:
        """kind -> the ids that are remembered."""
        return {kind: {path.stem for path in (self._root / kind).glob("*.json")} for kind in self.kinds()}

    def some(self, items: Iterable[tuple[str, str]]) -> list[dict[str, Any]]:
        """These of the entries, first what is made first; what is not there is passed over."""
        out = []
        for kind, id in items:
            try:
                entry = msgspec.json.decode(self._file(kind, id).read_bytes())
                out.append({"kind": kind, "id": id, "order": entry["order"], "spec": entry["spec"]})
            except (OSError, msgspec.DecodeError, KeyError, TypeError):
                continue
        return sorted(out, key=lambda entry: entry["order"])

    def entries(self) -> list[dict[str, Any]]:
        """Everything remembered, as work items without a lease; files that cannot be read are passed over."""
        out = []
        for kind in self.kinds():
            for path in sorted((self._root / kind).glob("*.json")):
                try:
                    entry = msgspec.json.decode(path.read_bytes())
                    out.append({"kind": kind, "id": path.stem, "order": entry["order"], "spec": entry["spec"]})
                except (OSError, msgspec.DecodeError, KeyError, TypeError):
                    continue
        return out
