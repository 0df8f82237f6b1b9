"""The driver's process dies anywhere; the next one finishes the work, and nothing is left behind."""

from __future__ import annotations

import re
import subprocess
import sys
import time
from pathlib import Path

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


@pytest.mark.req("C/L3A-12", "C/DHCP-13")
def test_killed_anywhere_it_is_finished_by_the_next(tmp_path: Path) -> None:
    host = Host(tmp_path)
    try:
        net, outside = network(gateway="10.0.0.1"), external(masquerade=True)
        a, b = port(net, 3, PING), port(net, 4, PING)
        floating = FloatingSpec(id="1", floating_ip="172.24.4.101", fixed_ip="10.0.0.3")
        gate = router(net, outside=outside, floating_ips=(floating,))
        wishes = Wishes(host.place, [with_hosts(net, a, b), outside], [a, b], [gate])
        file = tmp_path / "wishes.json"
        file.write_bytes(msgspec.json.encode(wishes, enc_hook=str))
        whole = die(file, 60)
        host.driver.start()
        idle = links_of(host)
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

            until(lambda: links_of(host) == idle, "only the bridges are left")
            assert [name for name in links.namespaces() if name.endswith(f".{host.place.namespace}")] == []
            driver.start()
            counts = driver.switch.count_flows()
            assert len(counts) == 1, "only the common flows are left"
    finally:
        host.close()


def links_of(host: Host) -> list[str]:
    return sorted(re.findall(r"^[^\s@]+", host.run("ip", "-br", "link"), re.MULTILINE))
