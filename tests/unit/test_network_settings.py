"""Settings of Networking are checked when they are read: ranges, physical networks and devices."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from nubila.core.config import BadSetting, Settings, load


@pytest.mark.req("C/OVS-01", "C/OVS-02", "C/LBR-01", "C/ML2-05")
def test_ranges_networks_and_devices_are_read(tmp_path: Path) -> None:
    file = tmp_path / "nubila.toml"
    file.write_text(
        'switch = "linuxbridge"\nvlan_range = [1000, 2999]\nvni_range = [1, 1000]\n'
        'physical_networks = ["physnet1", "external"]\nphysical_devices = ["physnet1=eth0", "external=br-ex"]\n'
        'tunnel_ip = "10.0.1.11"\n'
    )
    made = load(file, environ={})
    assert (made.switch, made.vlan_range, made.vni_range) == ("linuxbridge", (1000, 2999), (1, 1000))
    assert made.physical_networks == ("physnet1", "external")
    assert made.physical_devices == ("physnet1=eth0", "external=br-ex")
    assert load(file, environ={"NUBILA_VLAN_RANGE": "5,6"}).vlan_range == (5, 6)


@pytest.mark.req("C/OVS-01", "C/OVS-02", "C/LBR-01")
@pytest.mark.parametrize(("line", "words"), [
    ("vlan_range = [1, 4095]", "from 1 to 4094"), ("vlan_range = [0, 9]", "from 1 to 4094"),
    ("vlan_range = [9, 8]", "in order"), ("vlan_range = [9]", "two numbers"), ('vlan_range = ["a"]', "two numbers"),
    ("vni_range = [1, 16777216]", "from 1 to 16777215"), ("vni_range = [5, 4]", "in order"),
    ('physical_networks = ["a", "a"]', "different names"), ('physical_networks = [""]', "different names"),
    ('physical_devices = ["physnet1"]', "is not NETWORK=DEVICE"), ('switch = "bridge"', "openvswitch, linuxbridge"),
    ("tenant_network_types = []", "some of vxlan"), ('tenant_network_types = ["flat"]', "some of vxlan"),
    ('tenant_network_types = ["gre", "gre"]', "each once"),
    ('tenant_network_types = ["vlan"]\nphysical_networks = ["*"]', "name a physical network"),
    ("[vlangs]\na = 1", "unknown setting 'vlangs'"), ("vlan_rang = [1, 2]", "did you mean vlan_range"),
])  # fmt: skip
def test_what_cannot_be_is_refused_at_start(tmp_path: Path, line: str, words: str) -> None:
    file = tmp_path / "nubila.toml"
    file.write_text(line)
    with pytest.raises(BadSetting, match=words):
        load(file, environ={})


def test_the_last_word_wins(tmp_path: Path) -> None:
    """The file, then the environment, then the command line."""
    file = tmp_path / "nubila.toml"
    file.write_text("global_mtu = 1400\n")
    told: dict[str, Any] = {"global_mtu": 9000}
    assert load(tmp_path / "none", environ={}).global_mtu == Settings().global_mtu
    assert load(file, environ={}).global_mtu == 1400
    assert load(file, environ={"NUBILA_GLOBAL_MTU": "1600"}).global_mtu == 1600
    assert load(file, told, environ={"NUBILA_GLOBAL_MTU": "1600"}).global_mtu == 9000
