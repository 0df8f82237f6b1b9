"""Tools of the benchmarks: wrk, the floor (a server that answers a constant), memory, clouds, Markdown tables."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nubila.apps import lifecycle
from nubila.apps.client import Client, poll

ROOT = Path(__file__).resolve().parent.parent
FLOOR = """
import sys, uvicorn
BODY = b"x" * int(sys.argv[2])
async def app(scope, receive, send):
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"application/json"),
                (b"content-length", b"%d" % len(BODY))]})
    await send({"type": "http.response.body", "body": BODY})
uvicorn.run(app, port=int(sys.argv[1]), http="httptools", loop="uvloop", lifespan="off", access_log=False,
            log_level="error")
"""


@dataclass
class Case:
    """One measured request."""

    name: str
    url: str
    headers: dict[str, str]
    method: str = "GET"
    body: str = ""
    size: int = 0  # bytes of the answer
    script: str = ""  # Lua after the settings, such as a request function
    rates: dict[int, float] = field(default_factory=dict)
    floors: dict[int, float] = field(default_factory=dict)
    p99_ms: dict[int, float] = field(default_factory=dict)


def wrk(url: str, connections: int, seconds: float, case: Case | None = None) -> tuple[float, float, int]:
    """Requests per second, p99 in ms, answers that were not 2xx."""
    args = ["wrk", "-t1", f"-c{connections}", f"-d{max(1, round(seconds))}s", "--latency"]
    with tempfile.NamedTemporaryFile("w", suffix=".lua") as script:
        lines = []
        if case is not None:
            lines = [f'wrk.headers["{k}"] = "{v}"' for k, v in case.headers.items()]
            if case.method != "GET":
                lines += [f'wrk.method = "{case.method}"', f"wrk.body = [[{case.body}]]"]
            lines.append(case.script)
        script.write("\n".join(lines))
        script.flush()
        out = subprocess.run([*args, "-s", script.name, url], capture_output=True, text=True, timeout=120).stdout
    rate = re.search(r"Requests/sec:\s+([\d.]+)", out)
    p99 = re.search(r"99%\s+([\d.]+)(us|ms|s)", out)
    bad = re.search(r"Non-2xx or 3xx responses: (\d+)", out)
    scale = {"us": 0.001, "ms": 1.0, "s": 1000.0}
    return (
        float(rate[1]) if rate else 0.0,
        float(p99[1]) * scale[p99[2]] if p99 else 0.0,
        int(bad[1]) if bad else 0,
    )


class Floor:
    """The constant server."""

    def __init__(self, size: int) -> None:
        self.port = lifecycle.free_port(18081)
        self.process = subprocess.Popen([sys.executable, "-c", FLOOR, str(self.port), str(max(2, size))])
        poll("floor server", lambda: wrk_ready(self.port), 10, 0.05)

    def stop(self) -> None:
        """End it."""
        self.process.terminate()
        self.process.wait(10)


def wrk_ready(port: int) -> bool:
    """Whether something listens."""
    import socket

    with socket.socket() as s:
        return s.connect_ex(("127.0.0.1", port)) == 0


def pss_mb(state: Path) -> dict[str, float]:
    """Proportional memory of Nubila's own processes in MB."""
    pids = json.loads((state / "run" / "processes.json").read_text())
    out = {}
    for name, pid in pids.items():
        text = Path(f"/proc/{pid}/smaps_rollup").read_text()
        found = re.search(r"^Pss:\s+(\d+) kB", text, re.M)
        out[name] = int(found[1]) / 1024 if found else 0.0
    return out


def bring_up(gear: str, settings: str = "", **options: Any) -> tuple[Path, float, float]:
    """A fresh cloud; seconds from ``up`` to every API answering, first start and second start."""
    state = Path(tempfile.mkdtemp(prefix=f"nubila-bench-{gear}-"))
    given = {"gear": gear, "listen": f"127.0.0.1:{lifecycle.free_port(15000)}", "name": "bench", **options}
    (state / "nubila.toml").write_text("cpu_ratio = 100.0\n" + settings)  # room for every server of the run
    command = [str(Path(sys.executable).parent / "nubila"), "up", "-d", "--state", str(state), "--gear", gear,
               "--listen", given["listen"], "--name", "bench"]  # fmt: skip
    times = []
    for _ in range(2):
        start = time.monotonic()
        subprocess.run(command, check=True, timeout=60, stdout=subprocess.DEVNULL)
        lifecycle.wait(state, 60)
        times.append(time.monotonic() - start)
        if len(times) == 1:
            lifecycle.down(state)
    return state, times[0], times[1]


def admin(state: Path) -> Client:
    """The administrator of a cloud."""
    import yaml

    auth = yaml.safe_load((state / "clouds.yaml").read_text())["clouds"]["nubila-admin"]["auth"]
    return Client(auth["auth_url"], auth["username"], auth["password"], auth["project_name"])


def section(title: str, rows: list[tuple[str, ...]]) -> str:
    """A Markdown table."""
    head, *rest = rows
    lines = [f"## {title}", "", "| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    return "\n".join([*lines, *("| " + " | ".join(r) + " |" for r in rest), ""])
