"""The agent process: choose this host's drivers and run its loop until told to stop."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import msgspec

from nubila.agent.apply import Drivers
from nubila.agent.client import HostApi
from nubila.agent.loop import Agent
from nubila.core.ports import HostPlace

NEEDED = (
    "qemu-system-x86_64",
    "qemu-img",
    "ovs-vsctl",
    "ovs-ofctl",
    "ovs-vswitchd",
    "ovsdb-server",
    "dnsmasq",
    "nft",
    "ip",
)
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


@dataclass(frozen=True)
class Gear:
    """Which drivers are used here, and why."""

    name: str  # real | simulated
    why: str


def missing_engines() -> list[str]:
    """Programs that the real gear needs and this machine lacks."""
    return [
        n for n in NEEDED if shutil.which(n, path=PATH) is None and not Path(f"/usr/share/openvswitch/{n}").exists()
    ]


def choose_gear(asked: str) -> Gear:
    """``auto`` takes the real gear where it can work. Raises ValueError when ``real`` is asked and cannot."""
    missing = missing_engines()
    if asked == "simulated":
        return Gear("simulated", "asked for")
    if os.geteuid() != 0:
        reason = "not root"
    elif missing:
        reason = f"missing programs: {', '.join(missing)}"
    else:
        return Gear("real", "root, and every engine is installed" if asked == "auto" else "asked for")
    if asked == "real":
        fix = "run as root" if reason == "not root" else "run ./run engines (or apt-get install the packages in docs)"
        raise ValueError(f"the real gear cannot run here: {reason}; {fix}, or use --gear simulated")
    return Gear("simulated", reason)


class HostConfig(msgspec.Struct, kw_only=True):
    """What an agent process is told: ``DIR/hosts/<name>/agent.json``."""

    host: str
    cloud: str
    gear: str
    url: str
    roles: list[str] = msgspec.field(default_factory=lambda: ["compute", "network"])
    tunnel_ip: str = "127.0.0.1"
    bridges: dict[str, str] = msgspec.field(default_factory=dict)
    namespace: str = ""
    sweep_s: float = 60.0
    boot_s: float = 0.0
    switch: Literal["openvswitch", "linuxbridge"] = "openvswitch"
    hypervisor: str = ""  # "simulated": guests are simulated on real networks (tests); "" = as the gear says
    certificate: str = ""
    key: str = ""
    ca: str = ""


def drivers(config: HostConfig, place: HostPlace, api: HostApi) -> Drivers:
    """The drivers of the gear. Imported here so that the simulated gear needs no engine's library."""
    if config.gear == "real":
        from nubila.drivers.network import RealNetwork
        from nubila.drivers.qemu import QemuHypervisor

        if "compute" not in config.roles:
            return Drivers(None, RealNetwork(place))
        if config.hypervisor != "simulated":
            qemu = QemuHypervisor(place, lambda image, into: api.download(f"/images/{image}", into))
            return Drivers(qemu, RealNetwork(place))
        from nubila.drivers.simulated_hypervisor import SimulatedHypervisor

        return Drivers(SimulatedHypervisor(place), RealNetwork(place))
    from nubila.drivers.simulated_hypervisor import SimulatedHypervisor
    from nubila.drivers.simulated_network import SimulatedNetwork

    return Drivers(SimulatedHypervisor(place), SimulatedNetwork(place))


def make_agent(root: Path, config: HostConfig) -> Agent:
    """An agent ready to run on ``root``."""
    place = HostPlace(
        cloud=config.cloud, host=config.host, root=root, tunnel_ip=config.tunnel_ip, namespace=config.namespace,
        bridges=config.bridges, switch=config.switch,
    )  # fmt: skip
    api = HostApi(
        config.url, config.host,
        certificate=Path(config.certificate) if config.certificate else None,
        key=Path(config.key) if config.key else None, ca=Path(config.ca) if config.ca else None,
    )  # fmt: skip
    return Agent(api, place, drivers(config, place, api), roles=config.roles, sweep_s=config.sweep_s)


def default_config(
    state: Path, host: str, cloud: str, gear: str, tunnel_ip: str, *, physical: Sequence[str] = (), **more: Any
) -> HostConfig:
    """The configuration of the local host's agent."""
    bridge = "br-ex" if cloud == "nubila" else f"br-ex-{cloud}"[:15]
    return HostConfig(
        host=host, cloud=cloud, gear=gear, url=f"unix:{state / 'run' / 'host.sock'}", tunnel_ip=tunnel_ip,
        bridges=dict(one.split("=", 1) for one in physical) or {"physnet1": bridge}, **more,
    )  # fmt: skip


def run(root: Path) -> None:
    """The process: one agent for each ``agent.json`` below ``root`` (several only in the simulated gear)."""
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    agents = []
    for path in sorted(root.glob("*/agent.json")):
        agents.append(make_agent(path.parent, msgspec.json.decode(path.read_bytes(), type=HostConfig)))
    threads = [threading.Thread(target=a.run, args=(stop,), name=a.place.host, daemon=True) for a in agents]
    for thread in threads:
        thread.start()
    while all(t.is_alive() for t in threads) and not stop.is_set():
        stop.wait(0.5)
    stop.set()  # one that ended by itself ends the process, which is then started again
    for thread in threads:
        thread.join(5)


def hostname() -> str:
    """This machine's short name."""
    return socket.gethostname().split(".")[0]
