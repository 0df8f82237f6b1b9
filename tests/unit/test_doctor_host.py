"""What the doctor says of a machine, by what its programs answer."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from nubila.apps import doctor_host


def machine(version: str = "ovs-vsctl (Open vSwitch) 3.1.0", broken: str = "") -> dict[str, str]:
    def run(argv: Sequence[str]) -> tuple[int, str]:
        if broken and broken in argv:
            return 1, "Operation not supported\nmore"
        return 0, version if argv[0] == "ovs-vsctl" else ""

    return {c.name: c.fix for c in doctor_host.able(run) if not c.ok}


@pytest.mark.req("C/OPS-04", "C/OVS-21")
def test_what_a_machine_lacks_is_named_with_its_cure() -> None:
    assert machine() == machine("ovs-vsctl (Open vSwitch) 3.10.2") == {}
    assert machine("ovs-vsctl (Open vSwitch) 2.17.9") == {"Open vSwitch": "install 3.1 or newer"}
    assert machine("") == {"Open vSwitch": "install 3.1 or newer"}
    assert list(machine(broken="nft")) == ["nftables"]
    assert list(machine(broken="veth")) == ["pairs of devices"]
    assert list(machine(broken="unshare")) == ["network namespaces", "pairs of devices", "nftables"]
