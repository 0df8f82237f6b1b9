"""kill -9 any Nubila process about every second while users work; then everything must come to rest and agree.

``run`` plays init as well: it starts the supervisor again when that was the one killed. The judge is the same as
``nubila doctor``: rows, queue, usage, and every host's drivers against what the database wants there.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import random
import re
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import sqlalchemy as sa
import yaml

from nubila.apps import doctor, first, lifecycle, supervisor, wiring
from nubila.apps.client import ApiError, Client
from nubila.core.cloud import Cloud
from nubila.services.image.kinds import Image
from nubila.services.network.kinds import Network
from nubila.services.network.kinds_port import Port

FINAL = {"ACTIVE", "SHUTOFF", "ERROR"}


@dataclass
class Report:
    """What a run did and found."""

    kills: Counter[str] = field(default_factory=Counter)
    done: Counter[str] = field(default_factory=Counter)
    refused: Counter[str] = field(default_factory=Counter)
    internal: list[str] = field(default_factory=list)  # 5xx other than 503
    settled_s: float = -1.0
    wrong: list[str] = field(default_factory=list)
    course: list[tuple[float, int, str]] = field(default_factory=list)  # seconds after the storm, how much was wrong
    networks: set[str] = field(default_factory=set)  # all that ever were


def _client(state: Path) -> Client:
    auth = yaml.safe_load((state / "clouds.yaml").read_text())["clouds"]["nubila-admin"]["auth"]
    while True:
        try:
            return Client(auth["auth_url"], auth["username"], auth["password"], auth["project_name"])
        except (OSError, ApiError, http.client.HTTPException):
            time.sleep(0.2)


class User(threading.Thread):
    """Somebody who creates, changes and deletes things at random."""

    def __init__(
        self, state: Path, seed: int, shared: dict[str, str], report: Report, stop: threading.Event, most: int
    ) -> None:
        super().__init__(daemon=True, name=f"user{seed}")
        self.most = most
        self.c, self.random, self.shared, self.report, self.stopping = (
            _client(state), random.Random(seed), shared, report, stop,
        )  # fmt: skip
        self.servers: list[str] = []
        self.ports: list[str] = []
        self.floating: list[str] = []
        self.networks: list[str] = []

    def run(self) -> None:
        """Work until told to stop."""
        acts: list[tuple[int, Callable[[], None]]] = [
            (6, self.create), (2, lambda: self.action({"reboot": {"type": "SOFT"}})),
            (1, lambda: self.action({"reboot": {"type": "HARD"}})), (2, lambda: self.action({"os-stop": None})),
            (2, lambda: self.action({"os-start": None})), (4, self.delete), (3, self.port), (2, self.drop_port),
            (2, self.float), (2, self.sink), (1, self.network), (1, self.drop_network), (3, self.look),
        ]  # fmt: skip
        weights = [w for w, _ in acts]
        while not self.stopping.is_set():
            _, act = self.random.choices(acts, weights)[0]
            try:
                act()
            except ApiError as e:
                self.report.refused[f"{e.status}"] += 1
                if e.status >= 500 and e.status != 503:
                    self.report.internal.append(str(e))
                if e.status == 401:
                    with contextlib.suppress(Exception):
                        self.c.login()
            except (OSError, http.client.HTTPException) as e:
                self.report.refused[type(e).__name__] += 1
                time.sleep(0.02)

    def _did(self, what: str) -> None:
        self.report.done[what] += 1

    def create(self) -> None:
        """A server, with or without a network."""
        if len(self.servers) >= self.most:
            return self.delete()
        networks: Any = [{"uuid": self.shared["network"]}] if self.random.random() < 0.7 else "none"
        body = {"server": {"name": "chaos", "imageRef": self.shared["image"], "flavorRef": self.shared["flavor"],
                           "networks": networks}}  # fmt: skip
        self.servers.append(self.c.call("POST", "compute", "/servers", body)["server"]["id"])
        self._did("create server")

    def action(self, body: dict[str, Any]) -> None:
        """One action on one of the older servers."""
        if self.servers:
            id = self.random.choice(self.servers[: max(1, len(self.servers) // 2)])
            self.c.call("POST", "compute", f"/servers/{id}/action", body)
            self._did(next(iter(body)))

    def delete(self) -> None:
        """A server goes, whatever it is doing."""
        if self.servers:
            id = self.servers.pop(self.random.randrange(len(self.servers)))
            self.c.call("DELETE", "compute", f"/servers/{id}")
            self._did("delete server")

    def port(self) -> None:
        """A port of its own."""
        if len(self.ports) < 10:
            body = {"port": {"network_id": self.shared["network"]}}
            self.ports.append(self.c.call("POST", "network", "/ports", body)["port"]["id"])
            self._did("create port")

    def drop_port(self) -> None:
        """It goes again."""
        if self.ports:
            self.c.call("DELETE", "network", f"/ports/{self.ports.pop()}")
            self._did("delete port")

    def float(self) -> None:
        """A floating IP, on a port when there is one."""
        if len(self.floating) < 6:
            body: dict[str, Any] = {"floating_network_id": self.shared["external"]}
            if self.ports:
                body["port_id"] = self.random.choice(self.ports)
            made = self.c.call("POST", "network", "/floatingips", {"floatingip": body})["floatingip"]["id"]
            self.floating.append(made)
            self._did("create floating IP")

    def sink(self) -> None:
        """It goes again."""
        if self.floating:
            self.c.call("DELETE", "network", f"/floatingips/{self.floating.pop()}")
            self._did("delete floating IP")

    def network(self) -> None:
        """A network of its own, with DHCP."""
        if len(self.networks) < 3:
            id = self.c.call("POST", "network", "/networks", {"network": {"name": "chaos too"}})["network"]["id"]
            self.networks.append(id)
            self.report.networks.add(id)
            subnet = {"network_id": id, "cidr": "10.33.0.0/24", "ip_version": 4}
            self.c.call("POST", "network", "/subnets", {"subnet": subnet})
            self._did("create network")

    def drop_network(self) -> None:
        """It goes again, with its subnet."""
        if self.networks:
            self.c.call("DELETE", "network", f"/networks/{self.networks.pop()}")
            self._did("delete network")

    def look(self) -> None:
        """Lists."""
        self.c.call("GET", "compute", "/servers/detail")
        self._did("list servers")


def _shared(state: Path) -> dict[str, str]:
    c = _client(state)
    out: dict[str, str] = {}
    unlimited = dict.fromkeys(("port", "floatingip", "network", "subnet"), -1)
    c.call("PUT", "network", f"/quotas/{c.project_id}", {"quota": unlimited})
    c.call("PUT", "compute", f"/os-quota-sets/{c.project_id}", {"quota_set": {"instances": -1, "cores": -1, "ram": -1}})
    external = c.call("GET", "network", "/networks", **{"router:external": "true"})["networks"][0]["id"]
    out["external"] = external
    out["network"] = c.call("POST", "network", "/networks", {"network": {"name": "chaos"}})["network"]["id"]
    body = {"subnet": {"network_id": out["network"], "cidr": "10.32.0.0/16", "ip_version": 4}}
    subnet = c.call("POST", "network", "/subnets", body)["subnet"]["id"]
    router = c.call("POST", "network", "/routers", {"router": {"external_gateway_info": {"network_id": external}}})
    c.call("PUT", "network", f"/routers/{router['router']['id']}/add_router_interface", {"subnet_id": subnet})
    image = {"name": "chaos", "disk_format": "raw", "container_format": "bare"}
    out["image"] = c.call("POST", "image", "/images", image)["id"]
    blank = state / "chaos.raw"
    blank.write_bytes(bytes(1 << 16))
    c.upload(out["image"], blank)
    flavors = c.call("GET", "compute", "/flavors/detail")["flavors"]
    out["flavor"] = min(flavors, key=lambda f: (f["ram"], f["disk"]))["id"]
    return out


def _kill_one(state: Path, chance: random.Random, report: Report) -> None:
    try:
        processes = json.loads((state / "run" / "processes.json").read_text())
    except (OSError, ValueError):
        processes = {}
    if processes:
        name = chance.choice(sorted(processes))
        with contextlib.suppress(ProcessLookupError):
            os.kill(processes[name], signal.SIGKILL)
            report.kills[name.partition("-")[0]] += 1


def _keep_up(state: Path, stop: threading.Event) -> None:
    """Be init: a dead supervisor is started again."""
    while not stop.is_set():
        if supervisor.running(state) is None:
            pid = lifecycle.start_detached(state)
            for _ in range(100):
                if supervisor.running(state) is not None or stop.is_set():
                    break
                time.sleep(0.02)
            threading.Thread(target=_reap, args=(pid,), daemon=True).start()
        stop.wait(0.05)


def _reap(pid: int) -> None:
    with contextlib.suppress(ChildProcessError):
        os.waitpid(pid, 0)


_UUID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")


def leftovers(cloud: Cloud, state: Path, networks: Collection[str]) -> list[str]:
    """Files and processes below the hosts' directories that are about something nobody wants there, by their ids;
    namespaces of networks (of those that ever were) that are gone.
    """
    items = {kind: item for s in cloud.services for kind, item in s.host_items.items()}
    out: list[str] = []
    with cloud.store.read() as reader:
        known = {id for (id,) in reader.rows(sa.select(Image.table.c.id))}
        for root in (state / "hosts").iterdir():
            wanted = known | {id for item in items.values() for id in item.every(cloud, reader, root.name)}
            wanted |= {
                id for (id,) in reader.rows(sa.select(Port.table.c.id).where(Port.table.c.bound_host == root.name))
            }
            about = [str(path.relative_to(root)) for path in root.rglob("*")]
            for process in Path("/proc").glob("[0-9]*/cmdline"):
                with contextlib.suppress(OSError):
                    line = process.read_bytes().replace(b"\0", b" ").decode(errors="replace")
                    if f"{root}/" in line:
                        about.append(line)
            out += [f"left on {root.name}: {what[:200]}" for what in about if set(_UUID.findall(what)) - wanted]
        gone = set(networks) - {id for (id,) in reader.rows(sa.select(Network.table.c.id))}
    spaces = [path.name for path in Path("/run/netns").glob("*")]
    return out + [f"namespace {name} is left" for name in spaces if gone & set(_UUID.findall(name))]


def strays(state: Path) -> list[str]:
    """Processes of ours that no living supervisor has started."""
    ours = set(json.loads((state / "run" / "processes.json").read_text()).values())
    out = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            words = path.read_bytes().decode(errors="replace").split("\0")
            if "-m" in words and str(state) in words and int(path.parent.name) not in ours:
                out.append(f"process {path.parent.name} is nobody's: {' '.join(words)}")
    return out


def verdict(state: Path, networks: Collection[str] = ()) -> list[str]:
    """Everything that is not at rest or does not agree."""
    cloud = wiring.open_cloud(state, wiring.settings(state, first.overrides(state)))
    try:
        out = doctor.rows(cloud) + doctor.hosts_agree(cloud)
        out = out or [*leftovers(cloud, state, networks), *strays(state)]
    finally:
        cloud.store.close()
    c = _client(state)
    for server in c.call("GET", "compute", "/servers/detail", all_tenants="1")["servers"]:
        if server["status"] not in FINAL or server["OS-EXT-STS:task_state"]:
            out.append(f"server {server['id']} is {server['status']} ({server['OS-EXT-STS:task_state']})")
    return out


def run(
    state: Path, *, seconds: float, users: int = 4, seed: int = 1, every_s: float = 1.0, limit_s: float = 30.0,
    servers: int = 15,
) -> Report:  # fmt: skip
    """Chaos on a cloud that is up; returns the report (nothing wrong = ``wrong`` and ``internal`` are empty).

    ``servers`` is how many each user has at most.
    """
    report = Report()
    chance = random.Random(seed)
    shared = _shared(state)
    stop, rest = threading.Event(), threading.Event()
    keeper = threading.Thread(target=_keep_up, args=(state, rest), daemon=True)
    keeper.start()
    people = [User(state, seed * 100 + i, shared, report, stop, servers) for i in range(users)]
    for user in people:
        user.start()
    ends = time.monotonic() + seconds
    while time.monotonic() < ends:
        stop.wait(chance.uniform(0.5 * every_s, 1.5 * every_s))
        _kill_one(state, chance, report)
    stop.set()
    for user in people:
        user.join(70)
    start = time.monotonic()
    while True:
        with contextlib.suppress(OSError, ApiError, http.client.HTTPException, lifecycle.Cannot):
            lifecycle.wait(state, 10)
            report.wrong = verdict(state, report.networks)
            report.course.append((round(time.monotonic() - start, 1), len(report.wrong), (report.wrong or [""])[0]))
            if not report.wrong:
                break
        if time.monotonic() - start > limit_s:
            break
        time.sleep(0.2)
    report.settled_s = time.monotonic() - start
    rest.set()
    keeper.join(5)
    return report
