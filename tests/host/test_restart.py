"""Nubila stops, is killed, or is away: guests and their traffic go on (acceptance: no packet lost at 20 a second)."""

from __future__ import annotations

import contextlib
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from machines import Controller, Machine, until

from nubila.apps.quickstart import cached_image

pytestmark = pytest.mark.host
IN_FLIGHT = 4  # packets of 0.2 s


@dataclass(frozen=True)
class Scene:
    """A cloud on one machine, with one guest that is pinged by its floating IP."""

    machine: Machine
    cloud: Controller
    server: str
    address: str

    def engines(self) -> dict[str, list[int]]:
        """The processes that must outlive Nubila: their pids by program."""
        found: dict[str, list[int]] = {"qemu-system-x86_64": [], "dnsmasq": [], "ovs-vswitchd": [], "ovsdb-server": []}
        for pid, command in sorted(self.machine.processes().items()):
            name = Path(command.split()[0]).name
            if name in found:
                found[name].append(pid)
        return found

    def ours(self) -> list[str]:
        """Nubila's own processes."""
        return [command for command in self.machine.processes().values() if "-m nubila.apps." in command]

    def kill(self, name: str) -> None:
        """kill -9 one of Nubila's processes."""
        self.machine.run("kill", "-9", str(self.cloud.pids()[name]))

    def answers(self) -> bool:
        return self.machine.pings(self.address)


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    machine = Machine("alone")
    state = tmp_path_factory.mktemp("restart") / "state"
    state.mkdir(mode=0o700)
    (state / "nubila.toml").write_text("sweep_s = 4.0\n")
    try:
        cloud = Controller(machine, state)
        network, subnet = cloud.network("n", "10.0.0.0/24")
        cloud.router(subnet)
        image = cloud.upload(cached_image(lambda line: None))
        cloud.open_ping()
        server = cloud.server("s", image, network, security_groups=[{"name": "open"}])
        cloud.becomes(server, "ACTIVE")
        made = Scene(machine, cloud, server, cloud.floating(cloud.port(server)["id"]))
        until(made.answers, "the guest answers", 150)
        yield made
        cloud.nubila("destroy", "--yes")
    finally:
        machine.switch_off()


@contextlib.contextmanager
def no_packet_lost(scene: Scene) -> Iterator[None]:
    """Ping 20 times a second meanwhile; every packet must be answered."""
    heard = scene.cloud.state.with_name("ping.log")
    with heard.open("w") as out:
        ping = scene.machine.spawn("ping", "-i", "0.05", "-n", scene.address, stdout=out)
    until(lambda: "icmp_seq=1 " in heard.read_text(), "the first answer")
    try:
        yield
        after = heard.read_text().count("icmp_seq=") + 20
        until(lambda: heard.read_text().count("icmp_seq=") > after, "a second's answers afterwards")
    finally:
        scene.machine.run("pkill", "-INT", "-x", "ping")  # this machine's: it has only its own processes
        ping.wait(30)
    said = heard.read_text()
    answered = {int(n) for n in re.findall(r"icmp_seq=(\d+) ttl", said)}
    sent = re.search(r"(\d+) packets transmitted", said)
    assert sent is not None, said
    # answers to the last few may have been on their way when ping was told to end
    lost = set(range(1, int(sent[1]) + 1 - IN_FLIGHT)) - answered
    print(f"{sent[1]} packets, {len(lost)} lost")
    assert not lost, f"packets {sorted(lost)} of {sent[1]} were lost"


def healthy(scene: Scene) -> bool:
    scene.cloud.nubila("wait", "--timeout", "60")
    return scene.cloud.status(scene.server) == "ACTIVE" and scene.cloud.hosts()["alone"]["work"] == 0


def test_down_and_up_loses_no_packet(scene: Scene) -> None:
    engines = scene.engines()
    assert all(engines.values())
    with no_packet_lost(scene):
        scene.cloud.nubila("down")
        assert scene.engines() == engines
        scene.cloud.up()
        until(lambda: healthy(scene), "everything is adopted")
        scene.cloud.nubila("down")
        scene.cloud.up()
        until(lambda: healthy(scene), "everything is adopted")
    assert scene.engines() == engines


@pytest.mark.parametrize("name", ["server", "agent", "supervisor"])
def test_kill_9_loses_no_packet(scene: Scene, name: str) -> None:
    engines, before = scene.engines(), scene.cloud.pids()
    with no_packet_lost(scene):
        scene.kill(name)
        if name == "supervisor":
            until(lambda: not scene.ours(), "its children end with it")
            scene.cloud.up()
        until(lambda: scene.cloud.pids()[name] != before[name], f"{name} is started again")
        until(lambda: healthy(scene), "everything is adopted")
    assert scene.engines() == engines


def test_killing_everything_at_once_loses_no_packet(scene: Scene) -> None:
    engines = scene.engines()
    with no_packet_lost(scene):
        pids = [str(pid) for pid in scene.cloud.pids().values()]
        scene.machine.run("kill", "-9", *pids)
        until(lambda: not scene.ours(), "none is left")
        scene.cloud.up()
        until(lambda: healthy(scene), "everything is adopted")
    assert scene.engines() == engines


@contextlib.contextmanager
def agent_alone(scene: Scene) -> Iterator[None]:
    """Only the agent runs, and the control plane's socket does not even exist."""
    (scene.cloud.state / "run" / "host.sock").unlink(missing_ok=True)
    argv = [sys.executable, "-m", "nubila.apps.process", "agent", "--state", str(scene.cloud.state)]
    with (scene.cloud.state / "log" / "agent.log").open("a") as log:
        agent = scene.machine.spawn(*argv, stdout=log, stderr=log)
    try:
        yield
        assert agent.poll() is None, "it is still at work"
    finally:
        scene.machine.run("pkill", "-TERM", "-f", "nubila.apps.process agent", check=False)
        agent.wait(30)


@pytest.mark.req("C/ARCH-06", "C/DHCP-19")
def test_an_agent_without_control_plane_keeps_things_running(scene: Scene) -> None:
    engines = scene.engines()
    scene.cloud.nubila("down")
    with agent_alone(scene):
        for program in ("dnsmasq", "qemu-system-x86_64"):
            scene.machine.run("kill", "-9", *map(str, engines[program]))
        until(lambda: all(scene.engines().values()), "the engines are started again")
        until(scene.answers, "the guest answers again", 150)
    again = scene.engines()
    assert not set(again["qemu-system-x86_64"]) & set(engines["qemu-system-x86_64"])
    scene.cloud.up()
    until(lambda: healthy(scene), "everything is adopted")
    assert scene.engines() == again


def test_a_host_reboots_into_working_guests_without_control_plane(scene: Scene) -> None:
    scene.cloud.nubila("down")
    scene.machine.reboot()
    assert not any(scene.engines().values())
    assert scene.machine.run("ip", "netns").stdout == ""
    with agent_alone(scene):
        until(scene.answers, "the guest answers after the reboot", 180)
    engines = scene.engines()
    with no_packet_lost(scene):
        scene.cloud.up()
        until(lambda: healthy(scene), "everything is adopted")
    assert scene.engines() == engines, "by the control plane, untouched"
