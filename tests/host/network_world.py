"""A stage for network tests: hosts and guests are network namespaces, packets and engines are real."""

from __future__ import annotations

import http.client
import subprocess
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import IO

from nubila.core.ports import HostPlace, PortSpec
from nubila.drivers import links
from nubila.drivers.network import RealNetwork


def until(claim: Callable[[], bool], what: str, patience_s: float = 10.0) -> None:
    """Wait for something to become true."""
    deadline = time.monotonic() + patience_s
    while not claim():
        assert time.monotonic() < deadline, f"not within {patience_s} s: {what}"
        time.sleep(0.02)


class Guest:
    """A namespace with eth0 whose other end is the port's device."""

    def __init__(self, host: Host, spec: PortSpec) -> None:
        self.host, self.spec = host, spec
        self.namespace = f"nbg-{uuid.uuid4().hex[:8]}"
        self._children: list[subprocess.Popen[str]] = []
        links.ensure_namespace(self.namespace, "nubila test guest")
        with links.opened(host.place.namespace) as net:
            net.add_veth(spec.device, self.namespace, spec.mac)
        with links.entered(self.namespace):
            links.sysctl("net/ipv6/conf/all/accept_dad", "0")
            links.sysctl(f"net/ipv6/conf/{spec.device}/accept_dad", "0")
        self.run("ip", "link", "set", spec.device, "name", "eth0")
        with links.entered(self.namespace):
            links.plain_frames("eth0")
        self.run("ip", "link", "set", "eth0", "mtu", str(spec.mtu), "up")

    @property
    def ip(self) -> str:
        return self.spec.fixed_ips[0].ip_address

    def configure(self, gateway: str | None = None) -> Guest:
        """Addresses as the port says, without DHCP."""
        for ip in self.spec.fixed_ips:
            self.run("ip", "addr", "add", f"{ip.ip_address}/{ip.prefixlen}", "dev", "eth0")
        if gateway:
            self.run("ip", "route", "add", "default", "via", gateway)
        return self

    def run(self, *argv: str, check: bool = True, patience_s: float = 20.0) -> subprocess.CompletedProcess[str]:
        with links.entered(self.namespace):
            done = subprocess.run(argv, capture_output=True, text=True, timeout=patience_s)
        assert not check or done.returncode == 0, f"{argv}: {done.stdout}{done.stderr}"
        return done

    def spawn(self, *argv: str) -> subprocess.Popen[str]:
        with links.entered(self.namespace):
            child = subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        self._children.append(child)
        return child

    def pings(self, address: str, patience_s: int = 3) -> bool:
        """Whether an echo is answered; 1 second is enough for who expects none, not for a lost ARP request."""
        argv = ["busybox", "ping", "-c", "1", "-W", str(patience_s), address]
        return self.run(*argv, check=False).returncode == 0

    def serve(self, port: int, text: str) -> None:
        """Answer TCP connections on a port with a line."""
        self.spawn("busybox", "nc", "-ll", "-p", str(port), "-e", "echo", text)
        until(lambda: f":{port}" in self.run("busybox", "netstat", "-ltn").stdout, f"port {port}")

    def reads(self, address: str, port: int, patience_s: int = 5) -> str:
        """What a TCP server says; "" when there is no connection."""
        argv = ["busybox", "nc", "-w", str(patience_s), address, str(port)]
        return self.run(*argv, check=False).stdout.strip()

    def lease(self) -> dict[str, str]:
        """A DHCP lease by udhcpc, applied to eth0; the variables it was given."""
        script = self.host.root / f"udhcpc-{self.namespace}"
        script.write_text(
            "#!/bin/sh\n[ $1 = bound ] || exit 0\nset\nip addr flush dev eth0 scope global\n"
            "ip addr add $ip/$mask dev eth0\n[ -z $router ] || ip route add default via $router\n"
            "set -- $staticroutes\nwhile [ $# -ge 2 ]; do ip route replace $1 via $2; shift 2; done\nexit 0\n"
        )
        script.chmod(0o755)
        options = [
            part
            for name in ("router", "mtu", "dns", "domain", "search", "staticroutes", "121")
            for part in ("-O", name)
        ]
        argv = ["busybox", "udhcpc", "-i", "eth0", "-n", "-q", "-f", "-t", "6", "-T", "1", "-s", str(script), *options]
        done = self.run(*argv, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        found = dict(line.split("=", 1) for line in done.stdout.splitlines() if "=" in line)
        return {name: value.strip("'") for name, value in found.items() if name.islower()}

    def close(self) -> None:
        for child in self._children:
            child.kill()
            child.wait()
            if child.stdout:
                child.stdout.close()
        links.remove_namespace(self.namespace)


class Host:
    """A host played by a namespace, with its driver."""

    def __init__(
        self, root: Path, cloud: str = "nubila", tunnel_ip: str = "127.0.0.1", switch: str = "openvswitch"
    ) -> None:
        self.root = root
        root.mkdir(parents=True, exist_ok=True)
        namespace = f"nbh-{uuid.uuid4().hex[:8]}"
        links.ensure_namespace(namespace, "nubila test host")
        self.place = HostPlace(
            cloud=cloud,
            host=namespace,
            root=root / "state",
            namespace=namespace,
            tunnel_ip=tunnel_ip,
            bridges={"physnet1": "br-ex"},
            switch=switch,  # type: ignore[arg-type]
        )
        self.driver = RealNetwork(self.place)
        self.driver.start()
        self.guests: list[Guest] = []

    def run(self, *argv: str, check: bool = True) -> str:
        with links.entered(self.place.namespace):
            done = subprocess.run(argv, capture_output=True, text=True, timeout=20)
        assert not check or done.returncode == 0, f"{argv}: {done.stdout}{done.stderr}"
        return done.stdout

    def inside(self, namespace: str, *argv: str) -> str:
        with links.entered(namespace):
            return subprocess.run(argv, capture_output=True, text=True, timeout=20).stdout

    def pings(self, address: str, patience_s: int = 3) -> bool:
        with links.entered(self.place.namespace):
            argv = ["busybox", "ping", "-c", "1", "-W", str(patience_s), address]
            return subprocess.run(argv, capture_output=True, timeout=10).returncode == 0

    def guest(self, spec: PortSpec) -> Guest:
        """A guest whose device exists first and is adopted."""
        guest = Guest(self, spec)
        self.guests.append(guest)
        self.driver.ensure_port(spec)
        return guest

    def close(self) -> None:
        for guest in self.guests:
            guest.close()
        self.driver.destroy()
        links.remove_namespace(self.place.namespace)


def ask_in(namespace: str, address: str, port: int, path: str) -> tuple[int, bytes]:
    """One HTTP request from inside a namespace: status and body."""
    with links.entered(namespace):
        connection = http.client.HTTPConnection(address, port, timeout=5)
        connection.request("GET", path)
        answer = connection.getresponse()
        return answer.status, answer.read()


def listen(guest: Guest, condition: str) -> subprocess.Popen[str]:
    """Start to capture what reaches a guest."""
    child = guest.spawn("tcpdump", "-i", "eth0", "-l", "-n", "-e", "-Q", "in", "--immediate-mode", condition)
    await_line(child.stdout, "listening on")
    return child


def await_line(stream: IO[str] | None, text: str) -> None:
    """Read lines until one has a text."""
    assert stream is not None
    for line in stream:
        if text in line:
            return
    raise AssertionError(f"never said: {text}")


def heard(listening: subprocess.Popen[str]) -> str:
    """What was captured until now."""
    time.sleep(0.2)  # there is nothing to wait for when nothing should arrive
    listening.terminate()
    return listening.communicate(timeout=10)[0]
