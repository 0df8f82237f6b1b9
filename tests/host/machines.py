"""Machines played by Linux namespaces: network, mounts, processes and host name of their own, one kernel.

A machine has nothing of its neighbours': no network but loopback, an empty /run, only its own processes. The command
``nubila`` runs on it as on any other. Switching it off ends all its processes and forgets /run, so a new machine on
the same state directory is the same one after a reboot.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import secrets
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import yaml

from nubila.apps.client import ApiError, Client
from nubila.testing.started import free_port

T = TypeVar("T")
_CLONE_NEWNET = 0x40000000
_INIT = """
hostname "$1"
umount -R -l /run/netns 2>/dev/null  # our copies of the real machine's namespaces
mount -t proc proc /proc && mount -t sysfs sysfs /sys && mount -t tmpfs -o mode=755 tmpfs /run && ip link set lo up
echo up
while :; do sleep 1000; done
"""


def until(look: Callable[[], T], what: str, patience_s: float = 60.0, every_s: float = 0.1) -> T:
    """Look until there is something; AssertionError says what was waited for and what was seen last."""
    deadline = time.monotonic() + patience_s
    last: Any = None
    while time.monotonic() < deadline:
        try:
            found = look()
            if found:
                return found
            last = found
        except (OSError, ApiError, subprocess.SubprocessError, AssertionError) as e:
            last = e
        time.sleep(every_s)
    raise AssertionError(f"not within {patience_s:g} s: {what} (last seen: {last})")


class Machine:
    """One machine. ``pid`` is its first process, seen from outside."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._own: list[subprocess.Popen[Any]] = []
        self._switch_on()

    def _switch_on(self) -> None:
        argv = ["unshare", "--mount", "--net", "--pid", "--uts", "--fork", "--kill-child", "--propagation", "private",
                "sh", "-c", _INIT, "init", self.name]  # fmt: skip
        self._outer = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True)
        assert self._outer.stdout is not None
        assert self._outer.stdout.readline() == "up\n", "a machine needs root and namespaces"
        self.pid = int(Path(f"/proc/{self._outer.pid}/task/{self._outer.pid}/children").read_text().split()[0])

    def switch_off(self) -> None:
        """Pull the plug: every process ends at once, the network and /run are gone."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)
        self._outer.wait(20)
        for child in self._own:
            child.wait(20)
            if child.stdout:
                child.stdout.close()
        self._own.clear()
        if self._outer.stdout:
            self._outer.stdout.close()

    def reboot(self) -> None:
        """Off and on again."""
        self.switch_off()
        self._switch_on()

    def argv(self, *argv: str) -> list[str]:
        """A command line that runs ``argv`` on this machine."""
        return ["nsenter", "-t", str(self.pid), "--mount", "--net", "--pid", "--uts", "--wd=/", *argv]

    def run(self, *argv: str, check: bool = True, patience_s: float = 60.0) -> subprocess.CompletedProcess[str]:
        """Run a command to its end."""
        done = subprocess.run(
            self.argv(*argv), capture_output=True, text=True, timeout=patience_s, stdin=subprocess.DEVNULL
        )
        assert not check or done.returncode == 0, f"{self.name}: {argv}: {done.stdout}{done.stderr}"
        return done

    def spawn(self, *argv: str, **options: Any) -> subprocess.Popen[str]:
        """Start a command that goes on; it ends with the machine at the latest."""
        options = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, **options}
        child = subprocess.Popen(self.argv(*argv), stdin=subprocess.DEVNULL, text=True, **options)
        self._own.append(child)
        return child

    def nubila(self, *arguments: str, check: bool = True, patience_s: float = 120.0) -> str:
        """Run the command ``nubila``; what it printed."""
        program = str(Path(sys.executable).with_name("nubila"))
        done = self.run(program, *arguments, check=check, patience_s=patience_s)
        return done.stdout + done.stderr

    def pings(self, address: str, patience_s: int = 3) -> bool:
        """Whether one echo is answered."""
        return self.run("ping", "-c", "1", "-W", str(patience_s), address, check=False).returncode == 0

    @contextlib.contextmanager
    def network(self) -> Iterator[None]:
        """Sockets that this thread opens meanwhile are this machine's."""
        libc = ctypes.CDLL(None, use_errno=True)
        with open("/proc/thread-self/ns/net", "rb") as home, open(f"/proc/{self.pid}/ns/net", "rb") as there:
            if libc.setns(there.fileno(), _CLONE_NEWNET):
                raise OSError(ctypes.get_errno(), "setns")
            try:
                yield
            finally:
                libc.setns(home.fileno(), _CLONE_NEWNET)

    def processes(self) -> dict[int, str]:
        """The processes of this machine by their pids there, with their command lines."""
        out = self.run("ps", "-eo", "pid=,ppid=,args=").stdout
        rows = [line.split(None, 2) for line in out.splitlines()]
        return {int(pid): args for pid, _, args in rows if args.partition(" ")[0] not in ("ps", "sh", "sleep")}


class Wire:
    """A switch that connects machines; each link can be cut."""

    def __init__(self) -> None:
        self.machine = Machine("wire")
        self.inside("ip", "link", "add", "br0", "type", "bridge")
        self.inside("ip", "link", "set", "br0", "up")

    def inside(self, *argv: str) -> None:
        """A command in the network namespace alone: process ids are those of the outside."""
        subprocess.run(["nsenter", "-t", str(self.machine.pid), "--net", *argv], check=True, timeout=20)

    def connect(self, machine: Machine, address: str, device: str = "eth0") -> None:
        """Give a machine a network card with this address ("198.18.0.1/24"; "" for none)."""
        port = f"to-{machine.name}"[:15]
        peer = ["peer", "name", device, "netns", str(machine.pid)]
        self.inside("ip", "link", "add", port, "type", "veth", *peer)
        self.inside("ip", "link", "set", port, "master", "br0", "up")
        if address:
            machine.run("ip", "addr", "add", address, "dev", device)
        machine.run("ip", "link", "set", device, "up")

    def cut(self, machine: Machine) -> None:
        """Unplug its cable."""
        self.inside("ip", "link", "set", f"to-{machine.name}"[:15], "down")

    def mend(self, machine: Machine) -> None:
        """Plug it in again."""
        self.inside("ip", "link", "set", f"to-{machine.name}"[:15], "up")


_PUMP = """
import fcntl, os, select, struct, sys
from nubila.drivers import links
def tap(name):
    handle = os.open("/dev/net/tun", os.O_RDWR)
    fcntl.ioctl(handle, 0x400454CA, struct.pack("16sH22x", name.encode(), 0x1002))
    return handle
outside = tap(sys.argv[1])
with links.opened(sys.argv[2]) as net:
    inside = tap("eth0")
    links.plain_frames("eth0")
    net.change(net.must("eth0"), mac=sys.argv[3], mtu=int(sys.argv[4]), up=True)
print("plugged", flush=True)
other = {outside: inside, inside: outside}
while True:
    for handle in select.select([outside, inside], [], [])[0]:
        try:
            os.write(other[handle], os.read(handle, 65536))
        except OSError:
            pass
"""


class Guest:
    """A guest without a hypervisor: a namespace whose eth0 is plugged into a port's tap as QEMU would plug it."""

    def __init__(self, machine: Machine, port: Mapping[str, Any], mtu: int = 1450) -> None:
        self.machine, self.namespace = machine, f"guest-{port['id'][:8]}"
        self.ip = str(port["fixed_ips"][0]["ip_address"])
        machine.run("ip", "netns", "add", self.namespace)
        device = f"tap{port['id'][:11]}"
        until(lambda: machine.run("ip", "link", "show", device), f"{device} on {machine.name}")
        pump = machine.spawn(sys.executable, "-c", _PUMP, device, self.namespace, port["mac_address"], str(mtu))
        assert pump.stdout is not None
        assert pump.stdout.readline() == "plugged\n", pump.stdout.read()

    def run(self, *argv: str, check: bool = True, patience_s: float = 60.0) -> subprocess.CompletedProcess[str]:
        """A command in the guest."""
        return self.machine.run("ip", "netns", "exec", self.namespace, *argv, check=check, patience_s=patience_s)

    def reads(self, url: str) -> str:
        """What a web server says; AssertionError when nothing comes within 5 s."""
        program = "import sys, urllib.request as r; print(r.urlopen(sys.argv[1], timeout=5).read().decode())"
        return self.run(sys.executable, "-c", program, url).stdout

    def lease(self) -> bool:
        """Configure eth0 by DHCP; AssertionError when no or another address comes."""
        script = Path(tempfile.gettempdir()) / f"lease-{secrets.token_hex(4)}"
        script.write_text(
            "#!/bin/sh\n[ $1 = bound ] || exit 0\necho leased $ip\nip addr replace $ip/$mask dev eth0\n"
            "[ -z $router ] || ip route replace default via $router\n"
            "set -- $staticroutes\nwhile [ $# -ge 2 ]; do ip route replace $1 via $2; shift 2; done\nexit 0\n"
        )
        script.chmod(0o755)
        try:
            argv = ["busybox", "udhcpc", "-i", "eth0", "-n", "-q", "-f", "-t", "5", "-T", "1", "-s", str(script)]
            got = self.run(*argv, "-O", "staticroutes", check=False)
        finally:
            script.unlink()
        assert f"leased {self.ip}\n" in got.stdout, got.stdout + got.stderr
        return True

    def pings(self, address: str, patience_s: int = 3) -> bool:
        """Whether one echo is answered."""
        return self.run("busybox", "ping", "-c", "1", "-W", str(patience_s), address, check=False).returncode == 0


class Controller:
    """A cloud that was brought up on a machine, and its API."""

    def __init__(self, machine: Machine, state: Path, *options: str, name: str = "nubila") -> None:
        self.machine, self.state, self._clients = machine, state, dict[str, Client]()
        self.listen = f"127.0.0.1:{free_port()}"
        self.up("--listen", self.listen, "--gear", "real", "--name", name, *options)

    def join(
        self, machine: Machine, state: Path, url: str, *options: str, roles: tuple[str, ...] = ("compute",)
    ) -> None:
        """Make another machine a host, as its operator would."""
        asked = [part for role in roles for part in ("--role", role)]
        token = self.nubila("host", "token", "create", *asked).strip()
        machine.nubila("join", url, "--token", token, "--state", str(state), "--gear", "real", *options, "-d")
        until(lambda: self.hosts()[machine.name]["alive"], f"{machine.name} has joined")

    def up(self, *options: str) -> None:
        """Bring it up (again) and wait until it is ready."""
        self.machine.nubila("up", "-d", "--state", str(self.state), *options)
        self.machine.nubila("wait", "--state", str(self.state), "--timeout", "120", patience_s=150)

    def nubila(self, *arguments: str, **options: Any) -> str:
        """A command about this cloud."""
        return self.machine.nubila(*arguments, "--state", str(self.state), **options)

    def client(self, who: str = "admin") -> Client:
        """A user's client."""
        if who not in self._clients:
            auth = yaml.safe_load((self.state / "clouds.yaml").read_text())["clouds"][f"nubila-{who}"]["auth"]
            with self.machine.network():
                self._clients[who] = Client(auth["auth_url"], who, auth["password"], auth["project_name"])
        return self._clients[who]

    def call(self, method: str, service: str, path: str, body: Any = None, *, who: str = "admin", **query: Any) -> Any:
        """One API call."""
        client = self.client(who)
        with self.machine.network():
            return client.call(method, service, path, body, **query)

    def upload(self, path: Path) -> str:
        """A public image of a file."""
        body = {"name": "tiny", "disk_format": "qcow2", "container_format": "bare", "visibility": "public"}
        id = str(self.call("POST", "image", "/images", body)["id"])
        with self.machine.network():
            self.client().upload(id, path)
        return id

    def network(self, name: str, cidr: str, who: str = "admin") -> tuple[str, str]:
        """A network with a subnet: their ids."""
        made = self.call("POST", "network", "/networks", {"network": {"name": name}}, who=who)["network"]["id"]
        subnet = {"network_id": made, "cidr": cidr, "ip_version": 4}
        return made, self.call("POST", "network", "/subnets", {"subnet": subnet}, who=who)["subnet"]["id"]

    def router(self, subnet: str, who: str = "admin") -> str:
        """A router from a subnet to the outside."""
        found = self.call("GET", "network", "/networks", who=who, **{"router:external": "true"})
        gateway = {"network_id": found["networks"][0]["id"]}
        body = {"router": {"name": "r", "external_gateway_info": gateway}}
        id = str(self.call("POST", "network", "/routers", body, who=who)["router"]["id"])
        self.call("PUT", "network", f"/routers/{id}/add_router_interface", {"subnet_id": subnet}, who=who)
        return id

    def open_ping(self, who: str = "admin") -> str:
        """A security group that lets pings and SSH in."""
        body = {"security_group": {"name": "open"}}
        group = str(self.call("POST", "network", "/security-groups", body, who=who)["security_group"]["id"])
        for more in ({"protocol": "icmp"}, {"protocol": "tcp", "port_range_min": 22, "port_range_max": 22}):
            rule = {"security_group_id": group, "direction": "ingress", "ethertype": "IPv4", **more}
            self.call("POST", "network", "/security-group-rules", {"security_group_rule": rule}, who=who)
        return group

    def server(self, name: str, image: str, network: str, *, host: str = "", who: str = "admin", **more: Any) -> str:
        """Ask for a server; its id."""
        flavors = self.call("GET", "compute", "/flavors/detail", who=who)["flavors"]
        flavor = min((f for f in flavors if f["ram"] >= 128), key=lambda f: (f["ram"], f["disk"]))["id"]
        body = {"name": name, "imageRef": image, "flavorRef": flavor, "networks": [{"uuid": network}], **more}
        if host:
            body["availability_zone"] = f"nova:{host}"
        return str(self.call("POST", "compute", "/servers", {"server": body}, who=who)["server"]["id"])

    def status(self, server: str) -> str:
        """A server's status; "" when there is none."""
        try:
            return str(self.call("GET", "compute", f"/servers/{server}")["server"]["status"])
        except ApiError as e:
            if e.status == 404:
                return ""
            raise

    def becomes(self, server: str, status: str, patience_s: float = 120.0) -> None:
        """Wait for a status."""
        until(lambda: self.status(server) == status, f"server {server} {status or 'gone'}", patience_s)

    def port(self, server: str) -> dict[str, Any]:
        """A server's first port."""
        found: dict[str, Any] = self.call("GET", "network", "/ports", device_id=server)["ports"][0]
        return found

    def floating(self, port: str) -> str:
        """A floating IP for a port: the address."""
        found = self.call("GET", "network", "/networks", **{"router:external": "true"})
        body = {"floatingip": {"floating_network_id": found["networks"][0]["id"], "port_id": port}}
        return str(self.call("POST", "network", "/floatingips", body)["floatingip"]["floating_ip_address"])

    def console(self, server: str) -> str:
        """What the guest has written to its console."""
        body: dict[str, Any] = {"os-getConsoleOutput": {}}
        return str(self.call("POST", "compute", f"/servers/{server}/action", body)["output"])

    def hosts(self) -> dict[str, dict[str, Any]]:
        """``nubila host list`` by name."""
        return {h["name"]: h for h in json.loads(self.nubila("host", "list", "--json"))}

    def pids(self) -> dict[str, int]:
        """Nubila's own processes on its machine, by name, as they are numbered there."""
        found: dict[str, int] = json.loads((self.state / "run" / "processes.json").read_text())
        return found
