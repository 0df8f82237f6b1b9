"""The walk of seed 001, played once against a cloud with the unmodified python-openstackclient.

The document starts from an empty catalogue; a Nubila cloud is ready to use at once, so what the walk makes there
(projects, users, services) carries the prefix `walk-`, and the ready-made external network gives way to the walk's own
(`provider`): a flat network exists once per physical network. The old `neutron` commands are the `openstack` ones that
replaced them. Everything else is typed as printed.
"""

from __future__ import annotations

import json
import select
import shlex
import struct
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import yaml
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from nubila.drivers import links
from nubila.testing.started import Started

PHYSICAL_NETWORK = "physnet1"
PASSWORD = "walk secret"


@dataclass(frozen=True)
class Result:
    """What one command did."""

    command: str
    status: int
    out: str
    err: str

    @property
    def data(self) -> Any:
        """The output of a command run with `-f json`."""
        assert self.status == 0, f"$ {self.command}\nexit status {self.status}\n{self.out}{self.err}"
        return json.loads(self.out)

    @property
    def columns(self) -> set[str]:
        """Column names of a listing."""
        rows = self.data
        return set(rows[0]) if rows else set()


class Client:
    """python-openstackclient in a process of its own."""

    def __init__(self, config: Path) -> None:
        self.config = config
        worker = [sys.executable, str(Path(__file__).with_name("osc_worker.py"))]
        self._process = subprocess.Popen(worker, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait(10)

    def run(self, cloud: str, command: str, answers: list[str] | None = None, timeout_s: float = 180) -> Result:
        """`openstack COMMAND` as user of a cloud in our clouds.yaml."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        env = {"OS_CLOUD": cloud, "OS_CLIENT_CONFIG_FILE": str(self.config), "OS_IMAGE_API_VERSION": "2"}
        wish = {"argv": shlex.split(command), "env": env, "answers": answers or []}
        self._process.stdin.write(json.dumps(wish) + "\n")
        self._process.stdin.flush()
        ready, _, _ = select.select([self._process.stdout], [], [], timeout_s)
        assert ready, f"$ openstack {command}\nno answer within {timeout_s} s"
        reply = json.loads(self._process.stdout.readline())
        return Result(f"openstack {command}", reply["status"], reply["out"], reply["err"])


@dataclass
class Walk:
    """The walk and everything it saw; `results` by the identifiers of the requirement list."""

    cloud: Started
    client: Client
    folder: Path
    image: Path
    results: dict[str, Result] = field(default_factory=dict)
    key: Path = field(default_factory=Path)
    broken: list[str] = field(default_factory=list)

    def __getitem__(self, step: str) -> Result:
        assert step in self.results, f"the walk did not come to {step}: {'; '.join(self.broken)}"
        return self.results[step]

    @property
    def real(self) -> bool:
        """Are there packets?"""
        return self.cloud.gear == "real"

    def admin(self, step: str, command: str, answers: list[str] | None = None) -> Result:
        """The administrator types."""
        return self._run("walk-admin", step, command, answers)

    def demo(self, step: str, command: str) -> Result:
        """The demo user types."""
        return self._run("walk-demo", step, command)

    def host(self, step: str, *argv: str, timeout_s: float = 60) -> Result:
        """Somebody types on the host itself; only in the real gear."""
        done = subprocess.run(argv, capture_output=True, text=True, timeout=timeout_s, check=False)
        self.results[step] = Result(shlex.join(argv), done.returncode, done.stdout, done.stderr)
        return self.results[step]

    def _run(self, cloud: str, step: str, command: str, answers: list[str] | None = None) -> Result:
        self.results[step] = self.client.run(cloud, command, answers)
        return self.results[step]

    def until(self, step: str, action: Callable[[], Result], good: Callable[[Result], bool], limit_s: float) -> Result:
        """Repeat an action until its result is good or time is up; the last result is kept."""
        deadline = time.monotonic() + limit_s
        while True:
            result = action()
            if (result.status == 0 and good(result)) or time.monotonic() > deadline:
                self.results[step] = result
                return result
            time.sleep(0.2)

    def play(self) -> None:
        """All of it, in the order of the document."""
        for part in (self._accounts, self._catalogue, self._health, self._networks, self._guest, self._floating):
            try:
                part()
            except (AssertionError, LookupError, TypeError, StopIteration) as error:
                self.broken.append(f"{part.__name__}: {type(error).__name__} {error}")

    # --- 6a: catalogue and accounts

    def _accounts(self) -> None:
        self.admin("WALK-01", "token issue -f json")
        project = "project create --domain default --description"
        self.admin("WALK-02", f'{project} "Service Project" walk-service -f json')
        self.admin("WALK-03", f'{project} "Demo Project" walk-demo -f json')
        user = "user create --domain default --password-prompt"
        self.admin("WALK-04 mismatch", f"{user} walk-other -f json", [PASSWORD, "something else"] * 5)
        self.admin("WALK-04", f"{user} walk-demo -f json", [PASSWORD, PASSWORD])
        self.admin("WALK-05", "role create walk-user -f json")
        self.admin("WALK-06", "role add --project walk-demo --user walk-demo walk-user")
        self.demo("WALK-07", "token issue -f json")
        # Today's default rules let a `member` create things; a role that means nothing may only look at itself.
        self.admin("member", "role add --project walk-demo --user walk-demo member")

    def _catalogue(self) -> None:
        services = {
            "WALK-08": ("glance", "OpenStack Image", "image", "http://os-controller:9292"),
            "WALK-10": ("nova", "OpenStack Compute", "compute", "http://os-controller:8774/v2.1"),
            "WALK-11": ("placement", "Placement API", "placement", "http://os-controller:8778"),
            "WALK-12": ("neutron", "OpenStack Networking", "network", "http://os-controller:9696"),
        }
        for step, (name, words, type_, url) in services.items():
            user = f"user create --domain default --password-prompt walk-{name} -f json"
            self.admin(f"{step} user", user, [PASSWORD, PASSWORD])
            self.admin(f"{step} role", f"role add --project walk-service --user walk-{name} admin")
            endpoint = f"endpoint create --region RegionOne walk-{type_}"
            if step == "WALK-12":
                self.admin("WALK-12 too early", f"{endpoint} public {url} -f json")
            self.admin(step, f'service create --name walk-{name} --description "{words}" walk-{type_} -f json')
            for interface in ("public", "internal", "admin"):
                self.admin(f"{step} {interface}", f"{endpoint} {interface} {url} -f json")
        self.admin("WALK-09", "endpoint list --service walk-image -f json")
        image = f"image create cirros --file {self.image} --disk-format qcow2 --container-format bare"
        self.demo("WALK-13 demo", f"{image} --public -f json")
        self.admin("WALK-13", f"{image} --public -f json")

    # --- 6b: health listing

    def _health(self) -> None:
        self.admin("WALK-15", "hypervisor list -f json")
        self.admin("WALK-16", "network agent list -f json")
        self.admin("WALK-17", "compute service list -f json")
        self.admin("WALK-18", "image list -f json")
        self.demo("WALK-18 demo", "image list -f json")
        self.admin("WALK-19", "endpoint list -f json")
        self.admin("WALK-19 wide", "endpoint list")
        self.admin("WALK-19 table", "endpoint list --max-width 80")

    # --- 6c: networks, router, namespaces

    def _networks(self) -> None:
        for network in self.admin("ready-made", "network list --external -f json").data:
            self.admin(f"remove {network['Name']}", f"network delete {network['ID']}")
        create = f"--external --provider-physical-network {PHYSICAL_NETWORK} --provider-network-type flat provider"
        self.admin("WALK-20", f"network create --share {create} -f json")
        pool = "--allocation-pool start=10.0.0.100,end=10.0.0.120 --dns-nameserver 10.0.0.1 --gateway 10.0.0.1"
        self.admin("WALK-21", f"subnet create --network provider {pool} --subnet-range 10.0.0.0/24 provider -f json")
        self.demo("WALK-22", "network create selfservice -f json")
        self.admin("WALK-22 admin", "network show selfservice -f json")
        address = "--dns-nameserver 10.0.0.1 --gateway 172.16.1.1 --subnet-range 172.16.1.0/24"
        self.demo("WALK-23", f"subnet create --network selfservice {address} selfservice -f json")
        self.demo("WALK-24", "router create router -f json")
        self.demo("WALK-25", "router add subnet router selfservice")
        self.demo("WALK-26", "router set --external-gateway provider router")

        def ports() -> Result:
            return self.admin("WALK-28", "port list --router router -f json")

        self.until("WALK-28", ports, lambda r: len(r.data) == 2 and {p["Status"] for p in r.data} == {"ACTIVE"}, 30)
        self.demo("WALK-29", "network list -f json")
        if self.real:
            self._outside()
            router, gateway = self.router, self.gateway

            def names() -> Result:
                return self.host("WALK-27", "ip", "netns")

            self.until("WALK-27", names, lambda r: f"qrouter-{router}" in r.out, 30)

            def ping() -> Result:
                return self.host("WALK-32", "ping", "-c", "2", "-W", "1", gateway)

            self.until("WALK-32", ping, lambda r: r.status == 0, 30)
            inside = ("ip", "netns", "exec", f"qrouter-{router}")
            self.host("WALK-31", *inside, "ping", "-c", "1", "-W", "2", gateway)

    def _outside(self) -> None:
        """Be the world outside: the machine 10.0.0.1 on the physical network, which is the bridge's own port."""
        bridge = f"br-ex-{self.cloud.name}"
        self.until("outside", lambda: self.host("outside", "ip", "link", "show", bridge), lambda r: True, 20)
        self.host("outside address", "ip", "address", "add", "10.0.0.1/24", "dev", bridge)
        self.host("outside up", "ip", "link", "set", bridge, "up")
        links.plain_frames(bridge)
        assert self["outside address"].status == 0, self["outside address"].err

    @property
    def router(self) -> str:
        """The router's id."""
        return str(self["WALK-24"].data["id"])

    @property
    def gateway(self) -> str:
        """The router's address on the external network."""
        addresses = [ip["ip_address"] for port in self["WALK-28"].data for ip in port["Fixed IP Addresses"]]
        return str(next(address for address in addresses if address.startswith("10.0.0.")))

    # --- 6d: flavor, key, security group, instance

    def _guest(self) -> None:
        self.admin("old flavor", "flavor delete m1.nano")
        self.admin("WALK-35", "flavor create --id 0 --vcpus 1 --ram 64 --disk 1 m1.nano -f json")
        self.key = self._make_key()
        self.demo("WALK-36", f"keypair create --public-key {self.key}.pub mykey -f json")
        self.demo("WALK-37", "keypair list -f json")
        self.demo("WALK-38", "security group rule create --proto icmp default -f json")
        self.demo("WALK-39", "security group rule create --proto tcp --dst-port 22 default -f json")
        self.demo("WALK-40", "flavor list -f json")
        self.demo("WALK-41", "security group list -f json")
        network = self["WALK-22"].data["id"]
        flavor = "m1.nano"
        if self.real:
            # The guest image built from Debian packages wants more memory than the 64 MB of the document's CirrOS.
            self.admin("real flavor", "flavor create --id walk-1 --vcpus 1 --ram 256 --disk 1 m1.walk -f json")
            flavor = "m1.walk"
        with_ = f"--flavor {flavor} --image cirros --nic net-id={network} --security-group default --key-name mykey"
        self.demo("WALK-42", f"server create {with_} selfservice-instance -f json")

        def listing() -> Result:
            return self.demo("WALK-43", "server list -f json")

        self.until("WALK-43", listing, lambda r: r.data[0]["Status"] in ("ACTIVE", "ERROR"), 90)
        self.demo("WALK-43 show", "server show selfservice-instance -f json")

        def console() -> Result:
            return self.demo("WALK-46", "console log show selfservice-instance")

        self.until("WALK-46", console, lambda r: not self.real or "login:" in r.out, 120)
        if self.real:
            inside = ("ip", "netns", "exec", f"qrouter-{self.router}")
            self.host("WALK-47", *inside, "ping", "-c", "1", "-W", "2", self.fixed)

    def _make_key(self) -> Path:
        """The key pair of `ssh-keygen -q -N ""` (RSA, so that the document's fingerprint form applies)."""
        private = rsa.generate_private_key(public_exponent=65537, key_size=2048)
        path = self.folder / "id_rsa"
        form = serialization.PrivateFormat.OpenSSH
        path.touch(mode=0o600)
        path.write_bytes(private.private_bytes(serialization.Encoding.PEM, form, serialization.NoEncryption()))
        public = private.public_key().public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)
        path.with_name("id_rsa.pub").write_bytes(public + b" walk\n")
        return path

    @property
    def fixed(self) -> str:
        """The guest's address on its own network."""
        return str(self["WALK-43"].data[0]["Networks"]["selfservice"][0])

    # --- 6e: floating IP

    def _floating(self) -> None:
        address = self.demo("WALK-50", "floating ip create provider -f json").data["floating_ip_address"]
        self.demo("WALK-51", "floating ip list -f json")
        self.demo("WALK-52", f"server add floating ip selfservice-instance {address}")

        def listing() -> Result:
            return self.demo("WALK-52 list", "server list -f json")

        self.until("WALK-52 list", listing, lambda r: address in r.data[0]["Networks"]["selfservice"], 20)
        if not self.real:
            return

        def ping() -> Result:
            return self.host("WALK-53 ping", "ping", "-c", "1", "-W", "1", address)

        self.until("WALK-53 ping", ping, lambda r: r.status == 0, 30)

        def ssh() -> Result:
            return self._ssh("WALK-53", address, "hostname")

        self.until("WALK-53", ssh, lambda r: r.status == 0, 60)
        self._ssh("WALK-54", address, "ip -4 a; ip link; ip route; ping -c 1 -W 2 10.0.0.1")

    def _ssh(self, step: str, address: str, command: str) -> Result:
        options = ["StrictHostKeyChecking=no", "UserKnownHostsFile=/dev/null", "ConnectTimeout=5", "BatchMode=yes"]
        flags = [flag for option in options for flag in ("-o", option)]
        return self.host(step, "ssh", *flags, "-i", str(self.key), f"cirros@{address}", command)


def clouds(cloud: Started, folder: Path) -> Path:
    """clouds.yaml with the document's two shells: `. admin-setup` and `. demo-setup`."""
    common = {"region_name": "RegionOne", "identity_api_version": 3, "interface": "public"}
    admin = cloud.auth()
    demo = {**admin, "username": "walk-demo", "project_name": "walk-demo", "password": PASSWORD}
    path = folder / "clouds.yaml"
    path.touch(mode=0o600)
    path.write_text(
        yaml.safe_dump({"clouds": {"walk-admin": {"auth": admin, **common}, "walk-demo": {"auth": demo, **common}}})
    )
    return path


def empty_qcow2(path: Path, size: int = 1 << 20) -> Path:
    """A qcow2 image (version 2, 64 KB clusters) without data, as `qemu-img create` writes it."""
    cluster = 1 << 16
    header = struct.pack(">4sIQIIQIIQQIIQ", b"QFI\xfb", 2, 0, 0, 16, size, 0, 1, 3 * cluster, cluster, 1, 0, 0)
    table = struct.pack(">Q", 2 * cluster)
    counts = struct.pack(">4H", 1, 1, 1, 1)
    path.write_bytes(b"".join(part.ljust(cluster, b"\0") for part in (header, table, counts, b"")))
    return path
