"""External networks of clouds on one machine do not overlap."""

from __future__ import annotations

import ipaddress
from pathlib import Path

from nubila.apps import external


def test_each_cloud_gets_addresses_of_its_own(tmp_path: Path) -> None:
    claims, states = tmp_path / "run" / "external", [tmp_path / name for name in ("a", "b", "c")]
    for state in states:
        state.mkdir()
    taken = [ipaddress.IPv4Network("172.24.5.0/25"), ipaddress.IPv4Network("10.0.0.0/8")]
    assert external.claim(states[0], claims, taken) == "172.24.4.0/24"
    assert external.claim(states[0], claims, taken) == "172.24.4.0/24", "again"
    assert external.claim(states[1], claims, taken) == "172.24.6.0/24", "5 is routed elsewhere"
    states[0].rmdir()
    assert external.claim(states[2], claims, taken) == "172.24.4.0/24", "the first cloud is gone"
    assert external.claim(tmp_path, claims, external.CANDIDATES) == ""
    for state in states:
        external.release(state, claims)
        external.release(state, claims)
    assert not claims.parent.exists()


def test_routes_are_read_without_the_default_one(tmp_path: Path) -> None:
    table = tmp_path / "route"
    table.write_text(
        "Iface\tDestination\tGateway\tFlags\tRefCnt\tUse\tMetric\tMask\tMTU\tWindow\tIRTT\n"
        "eth0\t00000000\t010013AC\t0003\t0\t0\t0\t00000000\t0\t0\t0\n"
        "br-ex\t000418AC\t00000000\t0001\t0\t0\t0\t00FFFFFF\t0\t0\t0\n"
    )
    assert external.routes(table) == [ipaddress.IPv4Network("172.24.4.0/24")]
