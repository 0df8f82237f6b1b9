"""The driver's process dies anywhere; the next one finishes the work, and nothing is left behind."""

from __future__ import annotations

import re
import subprocess
import sys
import time
from collections.abc import Callable
from difflib import unified_diff
from pathlib import Path
from pprint import pformat

import msgspec
import pytest
from contract_network import PING, external, network, port, router, with_hosts
from network_world import Host, until

from nubila.core.ports import FloatingSpec, HostPlace, NetworkSpec, PortSpec, RouterSpec
from nubila.drivers import links
from nubila.drivers.network import RealNetwork

pytestmark = [pytest.mark.host, pytest.mark.slow]


class Wishes(msgspec.Struct):
    """Everything a victim has to make."""

    place: HostPlace
    networks: list[NetworkSpec]
    ports: list[PortSpec]
    routers: list[RouterSpec]


VICTIM = """
import sys
from test_network_deaths import Wishes, work
import msgspec
wishes = msgspec.json.decode(open(sys.argv[1]).read(), type=Wishes, dec_hook=lambda kind, text: kind(text))
print("go", flush=True)
work(wishes)
print("done", flush=True)
"""


def work(wishes: Wishes) -> None:
    """What an agent does: make everything, then remove everything."""
    driver = RealNetwork(wishes.place)
    driver.start()
    for net in wishes.networks:
        driver.ensure_network(net)
    for spec in wishes.ports:
        driver.ensure_port(spec)
    for gate in wishes.routers:
        driver.ensure_router(gate)
    driver.prune([], [], [])


def die(wishes: Path, after_s: float) -> float:
    """Run the work in a process of its own and kill it; returns how long it lived."""
    path = ":".join(entry for entry in sys.path if entry)
    victim = subprocess.Popen(
        [sys.executable, "-c", VICTIM, str(wishes)], stdout=subprocess.PIPE, text=True, env={"PYTHONPATH": path}
    )
    assert victim.stdout is not None
    assert victim.stdout.readline() == "go\n"
    started = time.monotonic()
    try:
        victim.wait(timeout=after_s)
    except subprocess.TimeoutExpired:
        victim.kill()
    victim.communicate()
    return time.monotonic() - started


def killed_anywhere(host: Host, tmp_path: Path, look: Callable[[RealNetwork], object]) -> None:
    """Kill the driver at twelve moments of its work; each time the next one finishes or removes it all.

    ``look`` says what is on the host that the driver made; it is the same after every death as before the first.
    """
    net, outside = network(gateway="10.0.0.1"), external(masquerade=True)
    a, b = port(net, 3, PING), port(net, 4, PING)
    floating = FloatingSpec(id="1", floating_ip="172.24.4.101", fixed_ip="10.0.0.3")
    gate = router(net, outside=outside, floating_ips=(floating,))
    wishes = Wishes(host.place, [with_hosts(net, a, b), outside], [a, b], [gate])
    file = tmp_path / "wishes.json"
    file.write_bytes(msgspec.json.encode(wishes, enc_hook=str))
    whole = die(file, 60)
    host.driver.start()
    idle = look(host.driver)
    deaths = 12
    for number in range(deaths):
        die(file, whole * (number + 0.5) / deaths)
        driver = RealNetwork(host.place)
        driver.start()
        if number % 2:
            for spec in wishes.networks:
                driver.ensure_network(spec)
            driver.ensure_router(gate)
            driver.remove_port(a.id)  # its tap; here the guest is a namespace
            guest = host.guest(a)
            assert guest.lease()["ip"] == "10.0.0.3"
            assert host.pings("172.24.4.101")
            guest.close()
            host.guests.remove(guest)
        driver.prune([], [], [])
        assert (driver.networks(), driver.ports(), driver.routers()) == ([], [], [])
        assert [name for name in links.namespaces() if name.endswith(f".{host.place.namespace}")] == []
        left: list[object] = []

        def gone(driver: RealNetwork = driver, left: list[object] = left) -> bool:
            driver.start()  # what the victim's last program changes after its death is gone with the next start
            left[:] = [look(driver)]
            return left == [idle]

        try:
            until(gone, "nothing is left")
        except AssertionError:
            before, now = pformat(idle).splitlines(), pformat(left[0]).splitlines()
            said = "\n".join(unified_diff(before, now, "before", "left", lineterm="", n=1))
            raise AssertionError(f"killed after {number + 0.5:g} of {deaths} parts:\n{said}") from None


@pytest.mark.req("C/L3A-12", "C/DHCP-13")
def test_killed_anywhere_it_is_finished_by_the_next(tmp_path: Path) -> None:
    host = Host(tmp_path)
    try:
        killed_anywhere(host, tmp_path, lambda driver: (links_of(host), len(driver.switch.count_flows())))
        assert len(host.driver.switch.count_flows()) == 1, "only the common flows are left"
    finally:
        host.close()


def links_of(host: Host) -> list[str]:
    return sorted(re.findall(r"^[^\s@]+", host.run("ip", "-br", "link"), re.MULTILINE))
