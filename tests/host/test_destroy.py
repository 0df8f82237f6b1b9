"""``nubila destroy`` leaves a machine as it was, and another cloud's things alone."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from machines import Controller, Machine, until

from nubila.apps.quickstart import cached_image

pytestmark = [pytest.mark.host, pytest.mark.req("B/NET-46")]
COUNTERS = re.compile(r"(count|_nr|cur|entropy|random|sockets_allocated|/dst_entries|fs_lock|table_)\b")


@pytest.fixture(scope="module")
def machine() -> Iterator[Machine]:
    made = Machine("bare")
    yield made
    made.switch_off()


def sysctls(machine: Machine) -> dict[str, str]:
    """What the machine's network namespace has set, without what counts by itself."""
    text = machine.run("sh", "-c", "grep -rs . /proc/sys/net || true").stdout
    pairs = (line.partition(":")[::2] for line in text.splitlines())
    return {name: value for name, value in pairs if not COUNTERS.search(name)}


def world(machine: Machine) -> dict[str, Any]:
    """Everything that a cloud changes on its machine."""

    def lines(*argv: str, check: bool = True) -> list[str]:
        return sorted(machine.run(*argv, check=check).stdout.splitlines())

    return {
        "ip netns": lines("ip", "netns"),
        "ip link": lines("ip", "-o", "-br", "link"),
        "ip addr": lines("ip", "-o", "-br", "addr"),
        "ip route": lines("ip", "route", "show", "table", "all"),
        "ip rule": lines("ip", "rule"),
        "nft list ruleset": lines("nft", "list", "ruleset"),
        "ovs-vsctl show": lines("ovs-vsctl", "--timeout=2", "show", check=False),
        "processes": sorted(machine.processes().values()),
        "mounts": lines("cat", "/proc/self/mounts"),
        "files": lines("find", "/run", "/etc/openvswitch", "/var/lib/nubila", "/var/lib/openvswitch", check=False),
        "sysctls": sysctls(machine),
    }


def differences(before: dict[str, Any], after: dict[str, Any]) -> dict[str, Any]:
    """What is not as it was, for the message."""
    out: dict[str, Any] = {}
    for name, was in before.items():
        now = after[name]
        if was == now:
            continue
        if isinstance(was, dict):
            out[name] = {k: (was.get(k), now.get(k)) for k in was.keys() | now.keys() if was.get(k) != now.get(k)}
        else:
            out[name] = {"gone": [x for x in was if x not in now], "new": [x for x in now if x not in was]}
    return out


def same(machine: Machine, before: dict[str, Any]) -> None:
    """The machine is as it was; the kernel takes a moment to free namespaces."""
    left: dict[str, Any] = {}

    def look() -> bool:
        left.clear()
        left.update(differences(before, world(machine)))
        return not left

    try:
        until(look, "nothing is left", 15, 0.5)
    except AssertionError:
        raise AssertionError(f"left behind: {left}") from None


def fill(cloud: Controller, cidr: str) -> tuple[str, str]:
    """A guest with a router and a floating IP: the server and the floating address."""
    network, subnet = cloud.network("n", cidr)
    cloud.router(subnet)
    image = cloud.upload(cached_image(lambda line: None))
    group = cloud.open_ping()
    server = cloud.server("s", image, network, security_groups=[{"name": "open"}], config_drive=True)
    assert group
    cloud.becomes(server, "ACTIVE")
    return server, cloud.floating(cloud.port(server)["id"])


def test_destroy_leaves_the_machine_as_it_was(machine: Machine, tmp_path: Path) -> None:
    before = world(machine)
    state = tmp_path / "state"
    cloud = Controller(machine, state)
    _, address = fill(cloud, "10.0.0.0/24")
    until(lambda: machine.pings(address), "the guest answers", 120)
    during = differences(before, world(machine))
    assert {"ip netns", "ip link", "ip addr", "nft list ruleset", "processes", "files", "sysctls"} <= during.keys()
    removed = cloud.nubila("destroy", "--yes")
    assert "removed guest" in removed
    assert f"removed state directory {state}" in removed
    assert not state.exists()
    same(machine, before)
    assert machine.nubila("destroy", "--yes", "--state", str(state)) == "", "again is no error"


def test_two_clouds_on_one_machine_do_not_touch_each_other(machine: Machine, tmp_path: Path) -> None:
    machine.run("ip", "netns", "add", "somebody-elses")
    machine.run("nft", "add table inet somebody-elses")
    before = world(machine)
    first = Controller(machine, tmp_path / "one", name="one")
    second = Controller(machine, tmp_path / "two", name="two")
    _, one = fill(first, "10.0.0.0/24")
    server, two = fill(second, "10.0.0.0/24")
    assert one != two, "each has external addresses of its own"
    for address in (one, two):
        until(lambda: machine.pings(address), f"{address} answers", 120)  # noqa: B023
    watch = machine.spawn("ping", "-i", "0.05", "-q", two)
    first.nubila("destroy", "--yes")
    until(lambda: not machine.pings(one, 1), "the first cloud's guest is gone", 10)
    machine.run("pkill", "-INT", "-x", "ping")  # of this machine: it has only its own processes
    said = watch.communicate(timeout=20)[0]
    sent = re.search(r"(\d+) packets transmitted, (\d+) received", said)
    assert sent is not None, said
    assert sent[1] == sent[2], said
    assert second.status(server) == "ACTIVE"
    second.call("POST", "compute", f"/servers/{server}/action", {"reboot": {"type": "HARD"}})
    until(lambda: machine.pings(two), "it still works after a reboot", 120)
    second.nubila("destroy", "--yes")
    same(machine, before)
