"""Which hosts get a new thing: pure, data in, data out."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any


def choose(
    hosts: Sequence[Mapping[str, Any]],
    load: Mapping[str, int],
    n: int,
    *,
    zones: Iterable[str] = (),
    have: Iterable[str] = (),
) -> list[str]:
    """Names of up to ``n`` hosts, least loaded first, spread over zones; names break ties.

    ``hosts`` have ``name`` and ``zone``; only those in ``zones`` (when given) and not in ``have`` are chosen.
    """
    allowed, taken = set(zones), set(have)
    left = [h for h in hosts if h["name"] not in taken and (not allowed or h["zone"] in allowed)]
    out: list[str] = []
    used: dict[str, int] = {}
    while left and len(out) < n:
        best = min(left, key=lambda h: (used.get(h["zone"], 0), load.get(h["name"], 0), h["name"]))
        left.remove(best)
        used[best["zone"]] = used.get(best["zone"], 0) + 1
        out.append(best["name"])
    return out
