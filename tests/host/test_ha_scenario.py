"""The L3HA scenario of the documentation, replayed on five machines with real Open vSwitch, keepalived and packets."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from ha_stage import GATEWAY, Stage, Stream
from machines import until
from prefix_server import NEAR, Kea

from nubila.apps.quickstart import cached_image

pytestmark = [pytest.mark.host]


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    made = Stage(Path(tmp_path_factory.mktemp("l3ha")), settings="dhcp_agents_per_network = 2\n", real=("compute2",))
    try:
        made.build()
        until(made.active, "one host forwards")
        made.guest("compute1")
        until(lambda: made.pings(made.floating), "the floating IP answers")
        until(lambda: sorted(made.states_of().values()) == ["active", "standby"], "both are there")
        until(lambda: made.hears(made.active(), made.standby()), "they hear each other")
        yield made
    finally:
        made.close()


@pytest.mark.req("C/L3HA-07", "C/L3HA-09", "C/L3HA-10", "C/L3HA-08")
def test_agents(stage: Stage) -> None:
    agents = stage.call("GET", "/agents")["agents"]
    found = sorted((a["agent_type"], a["host"], a["alive"], a["admin_state_up"], a["binary"]) for a in agents)
    expected = [("Open vSwitch agent", f"{kind}{i}", True, True, "neutron-openvswitch-agent")
                for kind in ("compute", "network") for i in (1, 2)]  # fmt: skip
    for type_, binary in (("DHCP", "dhcp"), ("L3", "l3"), ("Metadata", "metadata")):
        expected += [(f"{type_} agent", f"network{i}", True, True, f"neutron-{binary}-agent") for i in (1, 2)]
    assert found == sorted(expected)


@pytest.mark.req("C/L3HA-16", "C/L3HA-17", "C/L3HA-23", "C/L3HA-24", "C/L3HA-25")
def test_networks_agents_and_ports_of_the_router(stage: Stage) -> None:
    project = stage.call("GET", f"/routers/{stage.router}")["router"]["project_id"]
    names = {n["name"]: n for n in stage.call("GET", "/networks")["networks"]}
    hidden = names[f"HA network tenant {project}"]
    cidrs = [s["cidr"] for s in stage.call("GET", "/subnets", network_id=hidden["id"])["subnets"]]
    assert cidrs == ["169.254.192.0/18"]
    assert {"ext-net", "demo-net"} <= set(names)
    seen = {n["name"] for n in stage.call("GET", "/networks", who="demo")["networks"]}
    assert not [name for name in seen if name.startswith("HA network")]
    assert sorted(stage.states_of().items()) in (
        [("network1", "active"), ("network2", "standby")],
        [("network1", "standby"), ("network2", "active")],
    )
    ports = stage.call("GET", "/ports", device_id=stage.router)["ports"]
    ha = [p for p in ports if p["name"] == f"HA port tenant {project}"]
    assert sorted(p["fixed_ips"][0]["ip_address"] for p in ha) == ["169.254.192.1", "169.254.192.2"]
    others = {p["fixed_ips"][0]["ip_address"] for p in ports if p not in ha}
    assert others == {"192.168.1.1", stage.outside}
    assert all(p["mac_address"].startswith("fa:16:3e:") for p in ports)


@pytest.mark.req("C/L3HA-26", "C/L3HA-27", "C/L3HA-28", "C/L3HA-29", "C/L3HA-41")
def test_namespaces_and_addresses_on_master_and_backup(stage: Stage) -> None:
    active, standby = stage.active(), stage.standby()
    for host in stage.network_hosts:
        assert f"qrouter-{stage.router}" in stage.machines[host].run("ip", "netns").stdout
        ha_id = next(
            p["id"]
            for p in stage.call("GET", "/ports", device_id=stage.router)["ports"]
            if p["name"].startswith("HA port") and p["binding:host_id"] == host
        )
        text = stage.inside(host, "ip", "addr", "show", f"ha-{ha_id[:11]}")
        assert re.search(r"inet 169\.254\.192\.[12]/18 brd 169\.254\.255\.255 scope global", text)
    master, backup = stage.addresses(active), stage.addresses(standby)
    name = {kind: next(d for d in master if d.startswith(kind)) for kind in ("qr-", "qg-")}
    assert {d for d in master if not d.startswith("ha-")} == {d for d in backup if not d.startswith("ha-")}
    assert "192.168.1.1/24" in master[name["qr-"]]
    assert f"{stage.outside}/24" in master[name["qg-"]]
    for device in name.values():
        assert not [a for a in backup[device] if "." in a]
        assert [a for a in backup[device] if a.startswith("fe80::f816:3eff:")]
        for host in (active, standby):
            line = stage.inside(host, "ip", "-o", "link", "show", device)
            assert "<BROADCAST,MULTICAST,UP,LOWER_UP>" in line
            assert "qdisc noqueue" in line
            assert "link/ether fa:16:3e:" in line
    text = stage.inside(active, "ip", "addr", "show", name["qg-"])
    assert f"inet {stage.outside}/24 scope global" in text, "as keepalived puts it there: no broadcast address"


@pytest.mark.req("C/L3HA-30", "C/L3HA-34")
def test_advertisements_come_from_the_master_alone(stage: Stage) -> None:
    active = stage.active()
    own = next(a for d, found in stage.addresses(active).items() if d.startswith("ha-") for a in found)
    for host in stage.network_hosts:
        device = next(d for d in stage.addresses(host) if d.startswith("ha-"))
        said = stage.inside(host, "timeout", "10", "tcpdump", "-lnpi", device, "-c", "5", "proto", "112", check=False)
        lines = [line for line in said.splitlines() if "Advertisement" in line]
        assert len(lines) == 5
        wanted = rf"IP {own.partition('/')[0]} > 224\.0\.0\.18: VRRPv3, Advertisement, vrid 1, prio 50, intvl 10cs"
        assert all(re.search(wanted, line) for line in lines), lines
        assert "keepalived" in " ".join(stage.machines[host].processes().values())


@pytest.mark.req("C/L3HA-35", "C/L3HA-37", "C/L3HA-43", "C/L3-22")
def test_gateway_and_floating_ip_answer(stage: Stage) -> None:
    for address, ttl in ((stage.outside, 64), (stage.floating, 63)):
        got = stage.from_outside("ping", "-c", "4", "-i", "0.2", address).stdout
        assert "4 received" in got
        assert f"ttl={ttl}" in got
    assert stage.guests["demo-instance1"].pings("192.168.1.1")
    assert stage.guests["demo-instance1"].pings("203.0.113.1")


@pytest.mark.req("C/L3HA-01", "C/L3HA-04", "C/L3HA-24", "C/L3HA-31", "C/L3HA-32", "C/L3HA-38")
def test_fail_over_both_ways_with_an_established_connection(stage: Stage) -> None:
    guest = stage.guests["demo-instance1"]
    server = "import socket\ns=socket.create_server(('',7000))\nc,_=s.accept()\nwhile d:=c.recv(99): c.sendall(d)"
    child = guest.machine.spawn("ip", "netns", "exec", guest.namespace, "python3", "-c", server)
    until(lambda: ":7000" in guest.run("busybox", "netstat", "-ltn").stdout, "the server listens")
    with stage.external.machine.network():
        import socket

        connection = socket.create_connection((stage.floating, 7000), timeout=5)
    connection.settimeout(5)

    def echo(text: bytes) -> bool:
        connection.sendall(text)
        return connection.recv(99) == text

    assert echo(b"before")
    for _ in range(2):
        first, second = stage.active(), stage.standby()
        stream = Stream(stage, stage.floating)
        until(lambda: stage.pings(stage.floating), "packets flow")
        stage.cut(first)
        until(lambda second=second: stage.active() == second, "the other host is active", 20)  # type: ignore[misc]
        _, _, hole = stream.stop(1.0)
        assert hole <= 1.5, f"{hole} s without an answer"
        assert echo(b"and after"), "the connection goes on"
        stage.mend(first)
        until(lambda: sorted(stage.states_of().values()) == ["active", "standby"], "both are there")
        until(lambda first=first: stage.cloud.hosts()[first]["alive"], f"{first} is back")  # type: ignore[misc]
        assert stage.active() == second, "who comes back does not take over"
    connection.close()
    child.kill()


@pytest.mark.req("C/L3HA-36", "C/L3HA-39")
def test_a_guest_is_served_before_and_after_a_fail_over(stage: Stage, tmp_path: Path) -> None:
    """Booted by Compute, with a key from the metadata; its gateway, names out there, metadata and its lease."""
    names = ["--conf-file=/dev/null", "--no-resolv", "--no-hosts", f"--listen-address={GATEWAY}", "--bind-interfaces"]
    upstream = stage.external.machine.spawn("dnsmasq", "-k", *names, f"--address=/example.org/{GATEWAY}", "--pid-file=")
    stage.call("PUT", f"/subnets/{stage.subnet}", {"subnet": {"dns_nameservers": [GATEWAY]}})
    key = tmp_path / "key"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(key)], check=True, timeout=30)
    pair = {"name": "key", "type": "ssh", "public_key": key.with_suffix(".pub").read_text()}
    cloud = stage.cloud
    cloud.call("POST", "compute", "/os-keypairs", {"keypair": pair})
    cloud.open_ping()
    server = cloud.server(
        "demo-instance2", cloud.upload(cached_image(lambda line: None)), stage.net, host="compute2", key_name="key",
        security_groups=[{"name": "open"}],
    )  # fmt: skip
    cloud.becomes(server, "ACTIVE")
    body = {"floatingip": {"floating_network_id": stage.ext_net, "port_id": cloud.port(server)["id"]}}
    address = stage.call("POST", "/floatingips", body)["floatingip"]["floating_ip_address"]
    options = [f"-o{o}" for o in ("StrictHostKeyChecking=no", "UserKnownHostsFile=/dev/null", "ConnectTimeout=5")]

    def says(command: str) -> str:
        return stage.from_outside("ssh", "-q", *options, "-i", str(key), f"cirros@{address}", command).stdout

    def served() -> None:
        for where in ("192.168.1.1", "example.org"):
            assert "1 packets received" in says(f"ping -c 1 -W 3 {where}"), where
        told = json.loads(says("timeout 9 wget -q -O - http://169.254.169.254/openstack/latest/meta_data.json"))
        assert told["uuid"] == server
        assert "lease of 192.168.1." in says("sudo udhcpc -i eth0 -n -q -t 9 -T 1 2>&1")

    until(lambda: says("echo here") == "here\n", "the guest lets us in", 180)
    served()
    first, second = stage.active(), stage.standby()
    stage.cut(first)
    until(lambda: stage.active() == second, "the other host is active", 20)
    served()
    stage.mend(first)
    until(lambda: cloud.hosts()[first]["alive"], f"{first} is back")
    cloud.call("DELETE", "compute", f"/servers/{server}")
    cloud.becomes(server, "")
    upstream.terminate()


def test_a_planned_move_loses_nothing(stage: Stage) -> None:
    first, second = stage.active(), stage.standby()
    until(lambda: stage.pings(stage.floating), "packets flow")
    stream = Stream(stage, stage.floating)
    stage.move_away(first)
    until(lambda: stage.states_of() == {second: "active"}, "it moved")
    sent, lost, hole = stream.stop(3.0)  # what is handed on comes late, and is not lost
    stage.give(first)
    until(lambda: sorted(stage.states_of().values()) == ["active", "standby"], "both are there")
    assert (lost, hole) == (0, 0.0), f"{lost} of {sent}: {stream.missing}; the slowest took {stream.slowest_ms} ms"


@pytest.mark.req("C/L3HA-03")
def test_agents_and_the_control_plane_may_die(stage: Stage) -> None:
    active = stage.active()
    stream = Stream(stage, stage.floating)
    until(lambda: stage.pings(stage.floating), "packets flow")
    until(lambda: stage.hears(active, stage.standby()), "the hosts can promise each other something")
    for host in stage.network_hosts:
        pids = [pid for pid, args in stage.machines[host].processes().items() if "apps.process agent" in args]
        stage.machines[host].run("kill", "-9", *map(str, pids))
    stage.management.cut(stage.machines["controller"])
    _, lost, hole = stream.stop(4.0)
    stage.management.mend(stage.machines["controller"])
    assert hole == 0.0, f"{lost} lost"
    until(lambda: all(stage.cloud.hosts()[h]["alive"] for h in stage.network_hosts), "they are back")
    assert stage.active() == active


def test_a_delegated_prefix_outlives_the_host_that_asked_for_it(stage: Stage, tmp_path: Path) -> None:
    stage.from_outside("ip", "addr", "add", f"{NEAR}1/64", "dev", "br0", "nodad", check=True)
    kea = Kea(tmp_path, ["nsenter", "-t", str(stage.external.machine.pid), "--net"], "br0")
    try:
        kea.serve("2001:db8:1000::", lasts_s=120)
        values = {"network_id": stage.net, "ip_version": 6, "subnetpool_id": "prefix_delegation",
                  "ipv6_ra_mode": "slaac", "ipv6_address_mode": "slaac"}  # fmt: skip
        subnet = stage.call("POST", "/subnets", {"subnet": values}, "demo")["subnet"]["id"]
        stage.call("PUT", f"/routers/{stage.router}/add_router_interface", {"subnet_id": subnet}, "demo")

        def cidr() -> str:
            return str(stage.call("GET", f"/subnets/{subnet}")["subnet"]["cidr"])

        until(lambda: cidr() != "::/64", "a prefix is delegated")
        until(lambda: sorted(stage.states_of().values()) == ["active", "standby"], "both are there")
        prefix, old, new = cidr(), stage.active(), stage.standby()
        assert ["dhcpcd" in stage.machines[host].run("ps", "ax").stdout for host in (old, new)] == [True, False]
        before = len(kea.log())
        stage.cut(old)
        until(lambda: stage.active() == new, "the other host forwards")
        until(lambda: "DHCP6_PD_LEASE_ALLOC" in kea.log()[before:], "it has asked, and got an answer")
        assert cidr() == prefix
        clients = set(re.findall(r"DHCP6_PD_LEASE_ALLOC duid=\[([0-9a-f:]+)\]", kea.log()))
        assert len(clients) == 1, "as the same client"
        gateway = prefix.removesuffix("/64") + "1/64"
        until(lambda: any(gateway in mine for mine in stage.addresses(new).values()), "the gateway's address is there")
        stage.mend(old)
        until(lambda: "dhcpcd" not in stage.machines[old].run("ps", "ax").stdout, "it asks no longer")
        assert cidr() == prefix
    finally:
        kea.silence()
