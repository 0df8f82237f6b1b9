"""Identity: beside the floor and, where it is installed, beside the original service, taking turns in the same minutes.

The original is named by ``NUBILA_PEER_AUTH_URL`` and ``NUBILA_PEER_PASSWORD`` (user and project admin, domain default).
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import bcrypt
from measure import Case, Floor, admin, pss_mb, section, wrk

from nubila.apps.client import Client
from nubila.core.config import Settings

PROJECTS = 50
GOALS = {"validate a token": 20, "get a token by a token": 15, f"list {PROJECTS} projects": 30}
CONNECTIONS = (1, 16)


def peer() -> Client | None:
    """The administrator of the original service, None where there is none."""
    url = os.environ.get("NUBILA_PEER_AUTH_URL", "")
    return Client(url, "admin", os.environ["NUBILA_PEER_PASSWORD"], "admin") if url else None


def cases(c: Client) -> list[Case]:
    """The compared requests of one service."""
    have = c.call("GET", "identity", "/projects")["projects"]
    for n in range(len(have), PROJECTS):
        c.call("POST", "identity", "/projects", {"project": {"name": f"bench-{n}", "domain_id": "default"}})
    scope = {"project": {"id": c.project_id}}
    rescope = {"auth": {"identity": {"methods": ["token"], "token": {"id": c.token}}, "scope": scope}}
    token = {"X-Auth-Token": c.token}
    return [
        Case("validate a token", f"{c.auth_url}/auth/tokens", {**token, "X-Subject-Token": c.token}, size=2500),
        Case("get a token by a token", f"{c.auth_url}/auth/tokens", {"Content-Type": "application/json"}, "POST",
             json.dumps(rescope), size=2500),
        Case(f"list {PROJECTS} projects", f"{c.auth_url}/projects", token, size=16000),
    ]  # fmt: skip


def compared(state: Path, seconds: float, rounds: int) -> str:
    """Requests per second beside the floor (one process) and the original; for a fair race both have two processes."""
    other = peer()
    theirs = cases(other) if other is not None else []
    rows: list[tuple[str, ...]] = [
        ("request", "connections", "requests/s", "share of the floor", "original", "times", "goal")
    ]
    for i, case in enumerate(cases(admin(state))):
        floor = Floor(case.size)
        try:
            for _ in range(rounds):
                for n in CONNECTIONS:
                    rate, _, _ = wrk(f"http://127.0.0.1:{floor.port}/", n, seconds)
                    case.floors[n] = max(case.floors.get(n, 0.0), rate)
                    for one in (case, *theirs[i : i + 1]):
                        rate, _, bad = wrk(one.url, n, seconds, one)
                        if bad:
                            raise SystemExit(f"{one.name} at {one.url}: {bad} answers were not 2xx")
                        one.rates[n] = max(one.rates.get(n, 0.0), rate)
        finally:
            floor.stop()
        for n in CONNECTIONS:
            original = theirs[i].rates[n] if theirs else 0.0
            rows.append((
                case.name, str(n), f"{case.rates[n]:.0f}", f"{case.rates[n] / case.floors[n]:.0%}",
                f"{original:.1f}" if original else "not here", f"{case.rates[n] / original:.0f}x" if original else "",
                f"{GOALS[case.name]}x",
            ))  # fmt: skip
        print(*rows[-len(CONNECTIONS) :], sep="\n", flush=True)
    return section("Identity beside the original", rows)


def hash_ms(rounds: int, n: int) -> float:
    """Milliseconds that bcrypt itself needs for one password: the best of n."""
    hashed = bcrypt.hashpw(b"password", bcrypt.gensalt(rounds))
    best = 1e9
    for _ in range(n):
        start = time.perf_counter()
        bcrypt.checkpw(b"password", hashed)
        best = min(best, time.perf_counter() - start)
    return best * 1000


def login(state: Path) -> Case:
    """A password login of a user who may do little."""
    import yaml

    auth = yaml.safe_load((state / "clouds.yaml").read_text())["clouds"]["nubila-demo"]["auth"]
    user = {"name": auth["username"], "domain": {"id": "default"}, "password": auth["password"]}
    project = {"name": auth["project_name"], "domain": {"id": "default"}}
    body = {"auth": {"identity": {"methods": ["password"], "password": {"user": user}}, "scope": {"project": project}}}
    return Case("log in", f"{auth['auth_url']}/auth/tokens", {"Content-Type": "application/json"}, "POST",
                json.dumps(body))  # fmt: skip


def by_itself(state: Path, seconds: float, validations: int) -> str:
    """Logins beside bcrypt, validation under a login storm, memory after many validations."""
    c = admin(state)
    validate = Case("", f"{c.auth_url}/auth/tokens", {"X-Auth-Token": c.token, "X-Subject-Token": c.token})
    in_case = login(state)
    bare, rate = 1e9, 0.0
    for _ in range(4):  # taking turns: such machines change speed within seconds
        bare = min(bare, hash_ms(Settings().bcrypt_rounds, 4))
        rate = max(rate, wrk(in_case.url, 1, seconds, in_case)[0])
    on_top = 1000 / rate / bare - 1
    _, quiet, _ = wrk(validate.url, 1, seconds * 2, validate)
    storm = subprocess.Popen(
        [sys.executable, __file__, str(state), str(seconds * 2 + 4)], stdout=subprocess.PIPE, text=True
    )
    time.sleep(2)
    _, stormy, bad = wrk(validate.url, 1, seconds * 2, validate)
    said = storm.communicate(timeout=120)[0].strip()
    if bad:
        raise SystemExit(f"{bad} validations failed during the login storm")
    wrk(validate.url, 16, 2, validate)
    before, done = sum(pss_mb(state).values()), 0
    while done < validations:
        speed, _, _ = wrk(validate.url, 16, 10, validate)
        done += int(speed * 10)
    after = sum(pss_mb(state).values())
    return section("Identity by itself", [
        ("what", "measured", "goal"),
        ("bcrypt alone", f"{bare:.1f} ms", ""),
        ("password login", f"{1000 / rate:.1f} ms", ""),
        ("- on top of bcrypt", f"{on_top:.0%}", "15%"),
        ("p99 of validation, quiet", f"{quiet:.1f} ms", ""),
        (f"p99 of validation under a login storm ({said})", f"{stormy:.1f} ms", ""),
        ("- times the quiet one", f"{stormy / quiet:.1f}", "3"),
        (f"memory (PSS) before and after {done:,} validations", f"{before:.0f} and {after:.0f} MB", ""),
        ("- grown by", f"{after / before - 1:.0%}", "10%"),
    ])  # fmt: skip


def _storm() -> None:
    """The other process of the login storm."""
    case: Any = login(Path(sys.argv[1]))
    rate, _, bad = wrk(case.url, 8, float(sys.argv[2]), case)
    print(f"{rate:.1f} logins/s" + (f", {bad} refused" if bad else ""))


if __name__ == "__main__":
    _storm()
