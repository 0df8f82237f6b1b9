"""What the tiny guest image's own programs do, run on a machine that stands for the guest."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from machines import Machine, Wire

from nubila.drivers import tiny_files

pytestmark = pytest.mark.host


@pytest.fixture
def guest() -> Iterator[Machine]:
    machine, wire = Machine("guest"), Wire()
    wire.connect(machine, "", "eth0")
    yield machine
    machine.switch_off()
    wire.machine.switch_off()


@pytest.mark.parametrize("kind", ["ipv4", "ipv4_dhcp"])
def test_a_card_without_dhcp_gets_its_address_from_the_config_drive(guest: Machine, tmp_path: Path, kind: str) -> None:
    mac = json.loads(guest.run("ip", "-j", "link", "show", "eth0").stdout)[0]["address"]
    told = {
        "links": [
            {"id": "tapother", "vif_id": "a", "type": "ovs", "mtu": 1400, "ethernet_mac_address": "fa:16:3e:00:00:99"},
            {"id": "tapmine", "vif_id": "b", "type": "ovs", "mtu": 1350, "ethernet_mac_address": mac},
        ],
        "networks": [
            {"id": "network0", "type": "ipv4", "link": "tapother", "network_id": "n", "ip_address": "10.9.9.9",
             "netmask": "255.255.255.0", "routes": [], "services": []},
            {"id": "network1", "type": kind, "link": "tapmine", "network_id": "m", "ip_address": "10.1.2.3",
             "netmask": "255.255.252.0", "services": [],
             "routes": [{"network": "0.0.0.0", "netmask": "0.0.0.0", "gateway": "10.1.0.1"},
                        {"network": "10.8.0.0", "netmask": "255.255.0.0", "gateway": "10.1.0.2"}]},
        ],
        "services": [],
    }  # fmt: skip
    program, data = tmp_path / "fixed-addresses", tmp_path / "network_data.json"
    program.write_text(tiny_files.FILES["bin/fixed-addresses"][1])
    data.write_text(json.dumps(told))
    guest.run("busybox", "sh", str(program), str(data))
    found = json.loads(guest.run("ip", "-j", "addr", "show", "eth0").stdout)[0]
    addresses = [f"{a['local']}/{a['prefixlen']}" for a in found["addr_info"] if a["family"] == "inet"]
    routes = guest.run("ip", "route").stdout
    if kind == "ipv4":
        assert (addresses, found["mtu"]) == (["10.1.2.3/22"], 1350)
        assert "default via 10.1.0.1 dev eth0" in routes
        assert "10.8.0.0/16 via 10.1.0.2 dev eth0" in routes
    else:
        assert addresses == []
        assert "default" not in routes
