"""Private VLANs: who reaches whom, on both switches and across hosts."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from contract_network import EGRESS, network, port, replace
from network_world import Guest, Host

from nubila.core.ports import PortSpec, Restricted, RuleSpec

pytestmark = pytest.mark.host
ANYTHING = (*EGRESS, RuleSpec(direction="ingress"), RuleSpec(direction="ingress", ethertype="IPv6"))


@pytest.fixture(params=["openvswitch", "linuxbridge"])
def host(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Host]:
    made = Host(tmp_path, switch=request.param)
    yield made
    made.close()


def role(spec: PortSpec, community: str = "") -> Restricted:
    return Restricted(device=spec.device, macs=(spec.mac,), community=community)


def test_isolated_and_community_ports_reach_only_whom_they_may(host: Host) -> None:
    spec = network()
    specs = {
        name: port(spec, 10 + n, rules=ANYTHING)
        for n, name in enumerate(("open", "alone", "apart", "red", "rose", "blue"))
    }
    roles = (
        role(specs["alone"]), role(specs["apart"]),
        role(specs["red"], "red"), role(specs["rose"], "red"), role(specs["blue"], "blue"),
    )  # fmt: skip
    host.driver.ensure_network(replace(spec, restricted=roles))
    guests: dict[str, Guest] = {name: host.guest(one).configure() for name, one in specs.items()}

    def reaches(name: str) -> set[str]:
        return {other for other, one in guests.items() if other != name and guests[name].pings(one.ip)}

    assert reaches("open") == {"alone", "apart", "red", "rose", "blue"}
    assert reaches("alone") == {"open"}
    assert reaches("red") == {"open", "rose"}
    assert reaches("blue") == {"open"}

    now = (role(specs["alone"], "blue"), *roles[1:])
    host.driver.ensure_network(replace(spec, restricted=now))
    assert reaches("alone") == {"open", "blue"}, "a role can be changed"
    host.driver.ensure_network(spec)
    assert reaches("apart") == set(specs) - {"apart"}, "no private VLAN any more"
