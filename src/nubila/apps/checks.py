"""One question of ``nubila doctor`` and its answer."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Check:
    """One question and its answer; ``fix`` says what to do when it failed."""

    name: str
    ok: bool
    seen: str = ""
    fix: str = ""

    def as_dict(self) -> dict[str, Any]:
        """For --json."""
        return asdict(self)

    def line(self) -> str:
        """For people."""
        text = f"{'OK    ' if self.ok else 'FAILED'}  {self.name}" + (f": {self.seen}" if self.seen else "")
        return text if self.ok else f"{text}\n        fix: {self.fix}"
