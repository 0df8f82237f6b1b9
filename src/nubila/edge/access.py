"""What the edge counts and writes down: Prometheus metrics and the structured access log."""

from __future__ import annotations

import threading
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import msgspec

BUCKETS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)

BATCH_BYTES = 1 << 16


class Metrics:
    """Counters of one process in Prometheus text form."""

    def __init__(self) -> None:
        self.requests: dict[tuple[str, str, int], int] = defaultdict(int)
        self.seconds: dict[str, list[float]] = {}
        self.started = time.time()

    def count(self, service: str, method: str, status: int, seconds: float) -> None:
        """One answered request."""
        self.requests[service, method, status] += 1
        slot = self.seconds.get(service)
        if slot is None:
            slot = self.seconds[service] = [0.0] * (len(BUCKETS_S) + 2)
        slot[-1] += seconds
        for i, edge in enumerate(BUCKETS_S):
            if seconds <= edge:
                slot[i] += 1
                return
        slot[-2] += 1

    def text(self, gauges: dict[str, float]) -> str:
        """The exposition of everything counted so far plus the gauges given."""
        lines = ["# TYPE nubila_http_requests_total counter"]
        for (service, method, status), count in sorted(self.requests.items()):
            labels = f'service="{service}",method="{method}",status="{status}"'
            lines.append(f"nubila_http_requests_total{{{labels}}} {count}")
        lines.append("# TYPE nubila_http_request_seconds histogram")
        for service, slot in sorted(self.seconds.items()):
            total = 0.0
            for edge, n in zip((*map(str, BUCKETS_S), "+Inf"), slot[:-1], strict=True):
                total += n
                lines.append(f'nubila_http_request_seconds_bucket{{service="{service}",le="{edge}"}} {total:g}')
            lines.append(f'nubila_http_request_seconds_sum{{service="{service}"}} {slot[-1]:.6f}')
            lines.append(f'nubila_http_request_seconds_count{{service="{service}"}} {total:g}')
        said = ""
        for name, value in {**gauges, "nubila_start_time_seconds": self.started}.items():
            plain = name.partition("{")[0]
            if plain != said:
                lines.append(f"# TYPE {plain} {'counter' if plain.endswith('_total') else 'gauge'}")
            said = plain
            lines.append(f"{name} {int(value) if float(value).is_integer() else format(value, 'g')}")
        return "\n".join(lines) + "\n"


class AccessLog:
    """One JSON line per request, written in batches so that it costs a few microseconds.

    Several processes may write one file: a batch is one append of whole lines.
    """

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._file = path.open("ab", buffering=0) if path else None
        self._lock = threading.Lock()
        self._encode = msgspec.json.Encoder().encode
        self._lines = bytearray()

    def write(self, **entry: Any) -> None:
        """Add one line; it reaches the file at the next flush or when enough have come together."""
        if self._file is not None:
            line = self._encode(entry) + b"\n"
            with self._lock:
                self._lines += line
                full = len(self._lines) >= BATCH_BYTES
            if full:
                self.flush()

    def flush(self) -> None:
        """Hand what is waiting to the kernel."""
        with self._lock:
            if self._file is not None and self._lines:
                self._file.write(self._lines)
                self._lines.clear()

    def reopen(self) -> None:
        """Go on in the file that has the name now: the old one was renamed (log rotation)."""
        self.flush()
        with self._lock:
            if self._file is not None and self._path is not None:
                self._file.close()
                self._file = self._path.open("ab", buffering=0)

    def close(self) -> None:
        """Flush and close; later lines are dropped."""
        self.flush()
        with self._lock:
            if self._file is not None:
                self._file.close()
                self._file = None
