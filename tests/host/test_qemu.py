"""The QEMU driver with the tiny image, for real: the hypervisor contract, a guest on a network, hot-plug, timings."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import msgspec
import paramiko
import pytest
from contract_hypervisor import Bench, HypervisorContract, replace

from nubila.core.ports import DiskSpec, HostPlace, Impossible, NicSpec, TryAgain
from nubila.drivers import processes, qemu_command
from nubila.drivers.qemu import QemuHypervisor
from nubila.drivers.tiny_image import build

pytestmark = pytest.mark.host
PATIENCE_S = 90.0

SSH = """
import sys, paramiko
client = paramiko.SSHClient()
client.set_missing_host_key_policy(paramiko.AutoAddPolicy())
client.connect(sys.argv[1], username="cirros", key_filename=sys.argv[2], timeout=20, banner_timeout=60, auth_timeout=60)
_, out, err = client.exec_command("set -eu -o pipefail; PATH=$PATH:/sbin; " + sys.argv[3], timeout=60)
sys.stdout.write(out.read().decode())
sys.stderr.write(err.read().decode())
sys.exit(out.channel.recv_exit_status())
"""


@pytest.fixture(scope="session")
def tiny() -> Path:
    """The tiny image, built once per machine."""
    if os.geteuid() != 0 or shutil.which("qemu-system-x86_64") is None:
        pytest.skip("needs root and qemu-system-x86")
    folder = Path(os.environ.get("NUBILA_TEST_CACHE", str(Path.home() / ".cache/nubila/tests")))
    folder.mkdir(parents=True, exist_ok=True)
    build(folder / "tiny.qcow2", print)
    return folder / "tiny.qcow2"


def make_bench(root: Path, image: Path, namespace: str = "") -> Bench:
    place = HostPlace(cloud="test", host="h1", root=root, namespace=namespace)

    def source(image_id: str, into: Path) -> None:
        shutil.copyfile(image, into)

    def crash(id: str) -> None:
        pid = processes.alive("qemu", root / "guests" / id)
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        assert processes.wait("qemu", root / "guests" / id, 5.0)

    driver = QemuHypervisor(place, source)
    return Bench(driver, lambda: QemuHypervisor(place, source), crash, root, "tiny", PATIENCE_S)


@pytest.fixture
def bench(tmp_path: Path, tiny: Path) -> Iterator[Bench]:
    made = make_bench(tmp_path, tiny)
    yield made
    made.driver.prune(())


class TestQemu(HypervisorContract):
    """The contract."""


def test_time_from_ensure_to_login_beside_bare_qemu(bench: Bench, tiny: Path, tmp_path: Path) -> None:
    """A guest comes up as it does under QEMU alone; the times of both are printed (-s)."""
    spec = bench.spec(config_drive=None)
    bench.settle(bench.spec(power="off", id=str(uuid.uuid4())))  # fills the image cache
    began = time.monotonic()
    state = bench.settle(spec)
    ready = time.monotonic() - began
    bench.await_console(spec.id, "login:")
    ours = time.monotonic() - began
    assert state.pid is not None
    bench.driver.remove(spec.id)
    bare = tmp_path / "bare"
    bare.mkdir()
    shutil.copyfile(tiny, bare / "disk")
    bare_spec = replace(spec, disks=(DiskSpec(name="disk", size_gb=1),))
    argv = qemu_command.command("qemu-system-x86_64", "tcg", bare_spec, False)
    began = time.monotonic()
    processes.start("bare", argv, bare, log=bare / "log")
    try:
        while b"login:" not in ((bare / "console.log").read_bytes() if (bare / "console.log").exists() else b""):
            assert time.monotonic() - began < PATIENCE_S
            time.sleep(0.02)
        alone = time.monotonic() - began
    finally:
        processes.kill("bare", bare)
    print(f"ensure returned after {ready:.2f} s, login prompt after {ours:.2f} s; bare QEMU: {alone:.2f} s")


def test_an_unsafe_image_never_boots(tmp_path: Path, tiny: Path) -> None:
    evil = tmp_path / "evil.qcow2"
    subprocess.run(
        ["qemu-img", "create", "-q", "-f", "qcow2", "-b", "/etc/passwd", "-F", "raw", evil], check=True, timeout=30
    )
    bench = make_bench(tmp_path / "root", evil)
    with pytest.raises(Impossible, match="backing file"):
        bench.driver.ensure(bench.spec())
    liar = make_bench(tmp_path / "root2", tiny)
    with pytest.raises(Impossible, match="declared as raw, but the file is qcow2"):
        liar.driver.ensure(liar.spec(disks=(DiskSpec(name="disk", size_gb=1, image_id="x", image_format="raw"),)))
    small = make_bench(tmp_path / "root3", tiny)
    damaged = DiskSpec(name="disk", size_gb=1, image_id="x", image_format="qcow2", image_checksum="00")
    with pytest.raises(TryAgain, match="damaged"):
        small.driver.ensure(small.spec(disks=(damaged,)))
    for made in (bench, liar, small):
        made.driver.prune(())


def test_extra_disks_and_a_disk_that_grows(bench: Bench) -> None:
    root = DiskSpec(name="disk", size_gb=1, image_id="tiny", image_format="qcow2")
    extra = (DiskSpec(name="disk.eph0", size_gb=1), DiskSpec(name="disk.swap", size_gb=1))
    script = "#!/bin/sh\nlsblk -lbn --nodeps -o NAME,SIZE,TYPE\nblkid\necho script done\n"
    drive = {"openstack/latest/meta_data.json": '{"hostname": "web-1"}', "openstack/latest/user_data": script}
    spec = bench.spec(disks=(root, *extra), config_drive=drive)
    bench.settle(spec)
    log = bench.await_console(spec.id, "script done")
    assert f"vda  {1 << 30} disk" in log
    assert f"vdb  {1 << 30} disk" in log
    assert 'LABEL="ephemeral0"' in log
    assert 'TYPE="swap"' in log
    bench.settle(replace(spec, power="off"))
    bigger = replace(spec, disks=(replace(root, size_gb=2), *extra))
    bench.settle(bigger)
    assert f"vda  {2 << 30} disk" in bench.await_console(spec.id, "script done", 2)


def test_secrets_are_private(bench: Bench) -> None:
    spec = bench.spec(power="off", config_drive={"openstack/latest/meta_data.json": '{"admin_pass": "s3cret"}'})
    bench.settle(spec)
    home = bench.root / "guests" / spec.id
    assert home.stat().st_mode & 0o777 == 0o700
    assert {path.name: oct(path.stat().st_mode & 0o077) for path in home.iterdir() if path.stat().st_mode & 0o077} == {}


class Net:
    """A namespace with a bridge, DHCP and a metadata service: what the network driver makes, in small."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.name = f"nbq-{uuid.uuid4().hex[:8]}"
        self.key = folder / "key"

    def ip(self, *words: str) -> None:
        subprocess.run(["ip", *words], check=True, timeout=10)

    def run(self, *words: str, timeout_s: float = 120.0) -> subprocess.CompletedProcess[str]:
        command = ["ip", "netns", "exec", self.name, *words]
        return subprocess.run(command, capture_output=True, text=True, timeout=timeout_s)

    def start(self) -> None:
        self.ip("netns", "add", self.name)
        inside = ("-n", self.name)
        self.ip(*inside, "link", "set", "lo", "up")
        self.ip(*inside, "link", "add", "br0", "type", "bridge")
        self.ip(*inside, "address", "add", "10.77.0.1/24", "dev", "br0")
        self.ip(*inside, "address", "add", "169.254.169.254/32", "dev", "br0")
        self.ip(*inside, "link", "set", "br0", "up")
        dns = ["dnsmasq", "--keep-in-foreground", "--conf-file=/dev/null", "--port=0", "--leasefile-ro", "--no-ping"]
        dns += ["--interface=br0", "--bind-interfaces", "--dhcp-range=10.77.0.10,10.77.0.99,255.255.255.0,1h"]
        dns += ["--dhcp-option=option:mtu,1400", "--dhcp-option=option:dns-server,10.77.0.1", "--user=root"]
        dns += ["--dhcp-option=121,169.254.169.254/32,10.77.0.1,0.0.0.0/0,10.77.0.1"]
        processes.start("dnsmasq", dns, self.folder, log=self.folder / "dnsmasq.log", netns=self.name)
        self._make_key()
        public = self.key.with_suffix(".pub").read_text()
        tree = self.folder / "www/openstack/latest"
        tree.mkdir(parents=True)
        (tree / "meta_data.json").write_text(
            json.dumps({"uuid": "u-1", "hostname": "web-7.novalocal", "public_keys": {"mine": public}})
        )
        serve = [sys.executable, "-m", "http.server", "80", "--bind", "169.254.169.254", "-d", str(self.folder / "www")]
        processes.start("http", serve, self.folder, log=self.folder / "http.log", netns=self.name)

    def _make_key(self) -> None:
        key = paramiko.ECDSAKey.generate()
        key.write_private_key_file(str(self.key))
        self.key.with_suffix(".pub").write_text(f"{key.get_name()} {key.get_base64()} test\n")

    def tap(self, mtu: int = 1400) -> NicSpec:
        port = str(uuid.uuid4())
        nic = NicSpec(
            port_id=port, device=f"tap{port[:11]}", mac=f"fa:16:3e:{port[:2]}:{port[2:4]}:{port[4:6]}", mtu=mtu
        )
        self.ip("-n", self.name, "tuntap", "add", "dev", nic.device, "mode", "tap")
        self.ip("-n", self.name, "link", "set", nic.device, "master", "br0", "up")
        return nic

    def ssh(self, address: str, command: str) -> str:
        done = self.run(sys.executable, "-c", SSH, address, str(self.key), command)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def stop(self) -> None:
        processes.stop("http", self.folder)
        processes.stop("dnsmasq", self.folder)
        self.ip("netns", "del", self.name)


@pytest.fixture
def net(tmp_path: Path) -> Iterator[Net]:
    made = Net(tmp_path / "net")
    made.folder.mkdir()
    made.start()
    yield made
    made.stop()


def test_a_guest_on_a_network(net: Net, tiny: Path, tmp_path: Path) -> None:
    """DHCP with MTU and classless routes, key by metadata, SSH, what suites call, NIC hot-plug, adoption."""
    bench = make_bench(tmp_path / "root", tiny, net.name)
    nic = net.tap()
    spec = bench.spec(nics=(nic,), config_drive=None)
    began = time.monotonic()
    try:
        assert bench.settle(spec).nics == (nic.port_id,)
        log = bench.await_console(spec.id, "web-7 login:")
        print(f"login prompt with address and key after {time.monotonic() - began:.1f} s")
        print(log)
        address = next(line.split("lease of ")[1].split()[0] for line in log.splitlines() if "lease of" in line)
        assert "1 SSH key(s) installed" in log
        tell = net.ssh(
            address,
            "hostname; id -un; sudo id -u; cat /sys/class/net/eth0/mtu; ip route get 169.254.169.254;"
            " curl http://169.254.169.254/openstack/latest/meta_data.json; lsblk -lb --nodeps;"
            " cat /var/run/udhcpc.eth0.pid; sudo kill -USR1 $(cat /var/run/udhcpc.eth0.pid);"
            " dd if=/dev/zero of=/tmp/fs bs=1M count=8 2>/dev/null; sudo mkfs -t ext4 -q /tmp/fs;"
            " sudo mkfs -t vfat /tmp/fs;"
            " sudo mkdir -p /mnt/x; sudo mount -o loop /tmp/fs /mnt/x; df /mnt/x; cat /proc/uptime; sudo blkid /tmp/fs;"
            " sudo sh -c 'echo \"console marker\" >/dev/console'",
        )
        print(tell)
        assert tell.startswith("web-7\ncirros\n0\n1400\n")
        assert "via 10.77.0.1" in tell
        assert '"uuid": "u-1"' in tell
        assert "vda" in tell
        bench.await_console(spec.id, "console marker")

        net.ssh(
            address,
            "sudo nc -p 8080 -lk -e echo foolish >/dev/null 2>&1 & sudo nc -u -p 9090 -lk -e echo x >/dev/null 2>&1 &",
        )
        knock = "import socket; s = socket.create_connection(({!r}, 8080), 10); print(s.recv(99))"
        for _ in range(2):
            deadline = time.monotonic() + 10
            while "foolish" not in net.run(sys.executable, "-c", knock.format(address)).stdout:
                assert time.monotonic() < deadline

        ask = (
            "import socket; s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.settimeout(3);"
            " s.sendto(b'?', ({!r}, 9090)); print(s.recv(9))"
        )
        while "x" not in net.run(sys.executable, "-c", ask.format(address)).stdout:
            assert time.monotonic() < deadline + 20
        assert "0% packet loss" in net.ssh(address, "ping -c 1 10.77.0.1")

        second = net.tap()
        more = replace(spec, nics=(nic, second))
        assert set(bench.settle(more).nics) == {nic.port_id, second.port_id}
        bench.await_console(spec.id, "eth1: lease of")
        bench.driver = bench.rebuild()
        assert bench.settle(more).pid == bench.settle(spec).pid
        assert bench.seen(spec.id) == bench.settle(spec)
        deadline = time.monotonic() + 20
        while "eth1" in net.ssh(address, "ls /sys/class/net"):
            assert time.monotonic() < deadline
    finally:
        bench.driver.prune(())


def test_a_guest_that_switches_itself_off_is_off_and_not_crashed(bench: Bench) -> None:
    drive = {"openstack/latest/meta_data.json": "{}", "openstack/latest/user_data": "#!/bin/sh\npoweroff\n"}
    spec = bench.spec(config_drive=drive)
    bench.settle(spec)
    deadline = time.monotonic() + PATIENCE_S
    while (seen := bench.seen(spec.id)) is not None and seen.power == "on":
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert seen is not None
    assert (seen.power, seen.fault) == ("off", "The guest powered itself off.")
    assert bench.settle(replace(spec, power="off")).pid is None


def test_a_deaf_guest_is_switched_off_after_the_grace(tmp_path: Path) -> None:
    """An empty disk: the firmware ignores the power button."""
    place = HostPlace(cloud="test", host="h1", root=tmp_path)
    driver = QemuHypervisor(place, lambda image_id, into: None, stop_grace_s=3.0)
    bench = Bench(driver, lambda: driver, lambda id: None, tmp_path)
    spec = bench.spec(disks=(DiskSpec(name="disk", size_gb=1),), config_drive=None)
    bench.settle(spec)
    with pytest.raises(TryAgain, match="Waiting for the guest to shut down"):
        driver.ensure(replace(spec, power="off"))
    assert bench.settle(replace(spec, power="off")).power == "off"
    driver.prune(())


def test_msgspec_keeps_a_spec(bench: Bench) -> None:
    """spec.json reads back as what was asked."""
    spec = bench.spec(power="off")
    bench.settle(spec)
    kept = (bench.root / "guests" / spec.id / "spec.json").read_bytes()
    assert msgspec.json.decode(kept, type=type(spec)) == spec
