"""Bring one cloud up on this machine, look at it, take it down, remove every trace."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nubila.apps import external, first, supervisor
from nubila.core import config

if TYPE_CHECKING:
    from nubila.apps.host import HostConfig

CLASSIC = {"/identity": 5000, "/compute": 8774, "/placement": 8778, "/image": 9292, "/network": 9696}


class Cannot(Exception):
    """A command that cannot be carried out: one sentence with the fix; exit status 2."""


def default_state() -> Path:
    """Where a cloud lives unless told otherwise."""
    if os.geteuid() == 0:
        return Path("/var/lib/nubila")
    return Path(os.environ.get("XDG_DATA_HOME", str(Path.home() / ".local" / "share"))) / "nubila"


@dataclass(frozen=True)
class Up:
    """How a cloud was brought up."""

    url: str
    gear: str
    why: str
    state: Path
    joined: bool = False  # only an agent runs here: the APIs are the controller's


def up(state: Path, options: Mapping[str, Any]) -> Up:
    """Start the supervisor in the background. Raises Cannot before anything has been changed."""
    from nubila.apps import tls
    from nubila.apps.host import choose_gear, hostname

    if supervisor.running(state):
        raise Cannot(f"this cloud is up already; `nubila status --state {state}` shows it")
    if (config_of := joined_to(state)) is not None:
        plan_agent(state)
        return Up(config_of.url, config_of.gear, f"a host of cloud {config_of.cloud}", state, joined=True)
    given = tls.absolute({k: v for k, v in options.items() if v is not None})
    merged = {**first.overrides(state), **given}
    try:
        settings = config.load(state / "nubila.toml", merged)
        if settings.network_quotas:  # the services are not loaded without need
            from nubila.apps import wiring

            wiring.with_quotas(wiring.services(), settings)  # say now what a server could only say in its log
        gear = choose_gear(settings.gear)
    except ValueError as e:
        raise Cannot(str(e)) from None
    state = state.absolute()
    _check_keys(state)
    _check_schema(settings.database or f"sqlite:///{state / 'nubila.db'}")
    listening = {"main": settings.listen}
    _check_free(settings.listen)
    if settings.classic_ports:
        host = settings.listen.rpartition(":")[0]
        main_port = int(settings.listen.rpartition(":")[2])
        listening |= {p: f"{host}:{n}" for p, n in CLASSIC.items() if n != main_port}
    for address in listening.values():
        _check_free(address)
    if settings.tls_cert != tls.AUTO:
        secure(settings, state)
    _make_directories(state)
    if settings.tls_cert == tls.AUTO:
        secure(settings, state)
    if gear.name == "real" and not settings.external_cidr and not (state / "run" / "options.json").exists():
        merged["external_cidr"] = external.claim(state) or None
    (state / "run" / "options.json").write_text(json.dumps({**merged, "gear": gear.name}))
    name = settings.host or hostname()
    hosts = [name] if gear.name == "real" else [name, *(f"{name}-{i}" for i in range(2, settings.simulated_hosts + 1))]
    _write_agents(state, settings, gear.name, hosts)
    children: list[dict[str, Any]] = []
    for i in range(max(1, settings.api_workers)):
        args = ["--first"] if i == 0 else []
        args += ["--with-controller"] if i == 0 and not settings.controllers else []
        children.append({"name": f"server-{i}" if i else "server", "role": "server", "args": args})
    children += [{"name": f"controller-{i}", "role": "controller"} for i in range(settings.controllers)]
    children.append({"name": "agent", "role": "agent"})
    plan = {"listen": listening, "children": children, "tls": bool(settings.tls_cert),
            "log": [settings.log_max_bytes, settings.log_keep]}  # fmt: skip
    (state / "run" / "plan.json").write_text(json.dumps(plan))
    (state / "run" / "gear.json").write_text(json.dumps(asdict(gear)))
    return Up(first.auth_url(settings), gear.name, gear.why, state)


def secure(settings: config.Settings, state: Path) -> None:
    """Make the listeners' own certificate when it is ours to make, and see whether all can be used. Raises Cannot."""
    from nubila.apps import tls

    try:
        tls.make_own(settings, state, tls.listener_names)
        tls.context(settings, state)
    except (ValueError, OSError) as e:
        raise Cannot(str(e)) from None


def reload(state: Path) -> None:
    """Have a running cloud read its settings and certificates again, after seeing that it can. Raises Cannot."""
    pid = supervisor.running(state)
    if pid is None:
        raise Cannot(f"this cloud is not up; `nubila up -d --state {state}` starts it with the settings as they are")
    if joined_to(state) is None:
        try:
            settings = config.load(state / "nubila.toml", first.overrides(state))
        except ValueError as e:
            raise Cannot(f"{e}; nothing was changed") from None
        path = state / "run" / "plan.json"
        plan = json.loads(path.read_text())
        if plan.get("tls", False) == bool(settings.tls_cert):
            secure(settings, state)
        plan["log"] = [settings.log_max_bytes, settings.log_keep]
        first.write_private(path, json.dumps(plan))
    os.kill(pid, signal.SIGUSR2)


def joined_to(state: Path) -> HostConfig | None:
    """The agent's configuration when this machine has joined another one's cloud; None when it has not."""
    import msgspec

    from nubila.apps.host import HostConfig

    for path in sorted(state.glob("hosts/*/agent.json")):
        found = msgspec.json.decode(path.read_bytes(), type=HostConfig)
        if found.url.startswith("https:"):
            return found
    return None


def plan_agent(state: Path) -> None:
    """Have the supervisor run an agent and nothing else."""
    (state / "run" / "plan.json").write_text(
        json.dumps({"listen": {}, "children": [{"name": "agent", "role": "agent"}]})
    )


def start_detached(state: Path) -> int:
    """Start the supervisor in a session of its own; returns its pid."""
    with (state / "log" / "supervisor.log").open("ab") as out:
        process = subprocess.Popen(
            [sys.executable, "-m", "nubila.apps.supervisor", str(state)],
            stdin=subprocess.DEVNULL, stdout=out, stderr=out, start_new_session=True,
        )  # fmt: skip
    return process.pid


def _check_schema(url: str) -> None:
    if url.startswith("sqlite:///"):
        path = Path(url.removeprefix("sqlite:///"))
        free = shutil.disk_usage(next(p for p in [path, *path.parents] if p.exists())).free
        if free < 64 << 20:
            raise Cannot(f"only {free >> 20} MB are free at {path.parent}; a cloud needs at least 64 MB: make room")


def _check_keys(state: Path) -> None:
    """Refuse to start a cloud whose token keys cannot be used."""
    from nubila.core.tokens import KeysError, TokenKeys

    if (state / "clouds.yaml").exists():  # it has been started before
        try:
            TokenKeys(state / "keys" / "fernet")
        except KeysError as e:
            make = f"`nubila key setup --state {state}`: every token ends then"
            raise Cannot(f"{e}; restore {state / 'keys'} from a backup, or {make}") from None


def _check_free(address: str) -> None:
    _, _, port = address.rpartition(":")
    if not port.isdigit() or not 0 < int(port) < 65536:
        raise Cannot(f"--listen takes ADDRESS:PORT, not '{address}'")
    try:
        supervisor.listen(address).close()
    except OSError as e:
        raise Cannot(
            f"cannot listen on {address}: {e.strerror}; stop what uses it or choose another --listen"
        ) from None


def _make_directories(state: Path) -> None:
    try:
        for part in ("", "run", "log", "keys", "hosts"):
            (state / part).mkdir(mode=0o700, parents=True, exist_ok=True)
        (state / "run" / ".write").write_text("")
        (state / "run" / ".write").unlink()
    except OSError as e:
        raise Cannot(f"cannot write to {state}: {e.strerror}; choose another --state directory") from None


def tunnel_ip(settings: config.Settings) -> str:
    """This host's end of tunnels: where other hosts reach its host API, unless told otherwise."""
    address = settings.host_listen.rpartition(":")[0].strip("[]")
    if not settings.tunnel_ip.startswith("127.") or not address or address == "localhost":
        return settings.tunnel_ip
    if address not in ("0.0.0.0", "::"):
        return str(socket.getaddrinfo(address, None)[0][4][0])
    with contextlib.suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
        s.connect(("192.0.2.1", 9))  # sends nothing: asks the kernel for the address it would use
        return str(s.getsockname()[0])
    return settings.tunnel_ip


def _write_agents(state: Path, settings: config.Settings, gear: str, hosts: list[str]) -> None:
    import msgspec

    from nubila.apps.host import default_config

    for i, host in enumerate(hosts):
        root = state / "hosts" / host
        root.mkdir(mode=0o700, exist_ok=True)
        made = default_config(
            state, host, settings.name, gear, tunnel_ip(settings) if i == 0 else f"127.0.0.{i + 1}",
            sweep_s=settings.sweep_s, boot_s=settings.simulated_boot_s, switch=settings.switch,
            physical=settings.physical_devices,
        )  # fmt: skip
        first.write_private(root / "agent.json", msgspec.json.encode(made).decode())


def wait(state: Path, timeout_s: float) -> dict[str, Any]:
    """Wait until every API answers and the local host has reported; returns the health document. Raises Cannot."""
    deadline = time.monotonic() + timeout_s
    last = "it has not been started"
    while time.monotonic() < deadline:
        try:
            health = probe(state)
            if health["status"] == "ok" and health.get("hosts", {}).get("alive"):
                return health
            last = json.dumps(health)
        except (OSError, ValueError, KeyError) as e:
            last = f"{type(e).__name__}: {e}"
        time.sleep(0.02)
    raise Cannot(f"the cloud is not ready after {timeout_s:g} s ({last}); look into {state / 'log'}")


def probe(state: Path) -> dict[str, Any]:
    """One look at /healthz. Raises OSError when nobody answers."""
    plan = json.loads((state / "run" / "plan.json").read_text())
    host, _, port = plan["listen"]["main"].rpartition(":")
    if plan.get("tls"):  # whose certificate names other hosts, and who may want one of ours
        return _probe_locally(state / "run" / "host.sock")
    host = {"0.0.0.0": "127.0.0.1", "": "127.0.0.1", "[::]": "[::1]"}.get(host, host)
    try:
        with urllib.request.urlopen(f"http://{host}:{port}/healthz", timeout=2) as answer:
            found: dict[str, Any] = json.loads(answer.read())
    except urllib.error.HTTPError as e:
        found = json.loads(e.read())
    return found


def _probe_locally(path: Path) -> dict[str, Any]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as s:
        s.settimeout(2)
        directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)  # a socket's address is at most 107 bytes
        try:
            s.connect(f"/proc/self/fd/{directory}/{path.name}")
        finally:
            os.close(directory)
        s.sendall(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        data = b"".join(iter(lambda: s.recv(65536), b""))
    found: dict[str, Any] = json.loads(data.partition(b"\r\n\r\n")[2])
    return found


def merge_clouds(state: Path) -> Path:
    """Put our clouds into the user's own clouds.yaml, beside what is there; returns its path."""
    import yaml

    target = Path(os.environ.get("XDG_CONFIG_HOME", str(Path.home() / ".config"))) / "openstack" / "clouds.yaml"
    ours = yaml.safe_load((state / "clouds.yaml").read_text())["clouds"]
    merged = yaml.safe_load(target.read_text()) or {} if target.exists() else {}
    merged.setdefault("clouds", {}).update(ours)
    target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    first.write_private(target, yaml.safe_dump(merged, sort_keys=False))
    return target


def status(state: Path) -> dict[str, Any]:
    """What runs, for people and programs."""
    pid = supervisor.running(state)
    out: dict[str, Any] = {"state": str(state), "up": pid is not None, "supervisor": pid}
    with contextlib.suppress(OSError, ValueError):
        out["gear"] = json.loads((state / "run" / "gear.json").read_text())["name"]
    with contextlib.suppress(OSError, ValueError):
        out["processes"] = json.loads((state / "run" / "processes.json").read_text())
    try:
        out["health"] = probe(state)
    except KeyError:  # a joined host serves no API
        out["health"] = {"status": "an agent only; `nubila status` on the controller shows the cloud"}
    except (OSError, ValueError) as e:
        out["health"] = {"status": f"no answer: {e}"}
    return out


def down(state: Path, timeout_s: float = 15.0) -> bool:
    """Stop Nubila's processes; guests, networks and disks stay. False when it was not up."""
    pid = supervisor.running(state)
    if pid is None:
        return False
    os.kill(pid, signal.SIGTERM)
    deadline = time.monotonic() + timeout_s
    while supervisor.running(state) is not None:
        if time.monotonic() > deadline:
            raise Cannot(f"process {pid} does not end; look into {state / 'log' / 'supervisor.log'}")
        time.sleep(0.02)
    return True


def destroy(state: Path) -> list[str]:
    """Stop everything and remove every trace from the host; returns what was removed, line by line."""
    import msgspec

    from nubila.agent.client import HostApi
    from nubila.apps.host import HostConfig, drivers
    from nubila.core.ports import HostPlace

    if not state.exists():
        return []
    if not (state / "run").is_dir() or not (state / "hosts").is_dir():
        raise Cannot(f"{state} is not the state directory of a cloud; nothing was removed")
    down(state)
    removed = []
    for path in sorted(state.glob("hosts/*/agent.json")):
        made = msgspec.json.decode(path.read_bytes(), type=HostConfig)
        place = HostPlace(
            cloud=made.cloud, host=made.host, root=path.parent, tunnel_ip=made.tunnel_ip, namespace=made.namespace,
            bridges=made.bridges, switch=made.switch,
        )  # fmt: skip
        here = drivers(made, place, HostApi(f"unix:{state / 'run' / 'host.sock'}", made.host))  # asks nothing
        if here.hypervisor is not None:
            removed += [f"guest {g}" for g in here.hypervisor.prune([])]
        removed += here.network.prune([], [], [])
        here.network.destroy()
        removed.append(f"host {made.host} ({made.gear})")
    shutil.rmtree(state)
    external.release(state)
    return [*removed, f"state directory {state}"]


def free_port(preferred: int = 5000) -> int:
    """The preferred loopback port, or any free one."""
    for port in (preferred, 0):
        with contextlib.suppress(OSError), socket.socket() as s:
            s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            s.bind(("127.0.0.1", port))
            found: int = s.getsockname()[1]
            return found
    raise Cannot("no free port on 127.0.0.1")
