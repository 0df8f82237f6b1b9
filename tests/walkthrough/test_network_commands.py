"""Networking commands of the documents as today's openstack client spells them, run against a running cloud."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from walk import Client, Result, clouds

from nubila.testing.started import Started, nubila, started


class Shell:
    """The administrator's shell."""

    def __init__(self, client: Client, cloud: Started) -> None:
        self.client, self.cloud = client, cloud

    def __call__(self, command: str, *, fails: bool = False) -> Result:
        done = self.client.run("walk-admin", command)
        assert (done.status != 0) is fails, f"$ openstack {command}\n{done.out}{done.err}"
        return done

    def data(self, command: str) -> Any:
        return self(f"{command} -f json").data


@pytest.fixture(scope="module")
def shell(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shell]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NUBILA_BCRYPT_ROUNDS", "4")  # every command logs in
        with started("simulated", "oscnet") as cloud, Client(clouds(cloud, tmp_path_factory.mktemp("osc"))) as client:
            yield Shell(client, cloud)


@pytest.mark.req("C/NET-31")
def test_networks_subnets_and_ports(shell: Shell) -> None:
    net = shell.data("network create net1")
    subnet = shell.data("subnet create --network net1 --subnet-range 10.0.0.0/24 sub1")
    assert (subnet["network_id"], subnet["cidr"], subnet["gateway_ip"]) == (net["id"], "10.0.0.0/24", "10.0.0.1")
    port = shell.data("port create --network net1 port1")
    listed = shell("port list --network net1 -f json")
    assert {"ID", "Name", "MAC Address", "Fixed IP Addresses", "Status"} <= listed.columns
    chosen = shell("port list --name port1 -c ID -c 'Fixed IP Addresses' -f json")
    assert chosen.columns == {"ID", "Fixed IP Addresses"}
    assert [row["ID"] for row in chosen.data] == [port["id"]]
    shown = shell.data(f"port show {port['id']} -c fixed_ips -c device_owner -c id")
    assert shown["id"] == port["id"]
    assert [ip["subnet_id"] for ip in shown["fixed_ips"]] == [subnet["id"]]
    refused = shell("network delete net1", fails=True)
    assert "Traceback" not in refused.err
    shell("port delete port1")
    shell("network delete net1")


@pytest.mark.req("C/SG-05")
def test_security_groups_and_rules(shell: Shell) -> None:
    group = shell.data("security group create webserver --description 'security group for webserver'")
    assert group["description"] == "security group for webserver"
    assert "webserver" in shell("security group list").out
    rule = shell.data("security group rule create --ingress --protocol tcp --dst-port 80:80 webserver")
    assert (rule["direction"], rule["protocol"], rule["port_range_min"], rule["port_range_max"]) == (
        "ingress", "tcp", 80, 80,
    )  # fmt: skip
    assert rule["security_group_id"] == group["id"]
    rules = shell("security group rule list webserver -f json")
    assert {"ID", "IP Protocol", "Ethertype", "IP Range", "Port Range", "Remote Security Group"} <= rules.columns
    assert rule["id"] in {row["ID"] for row in rules.data}
    shell(f"security group rule delete {rule['id']}")
    assert rule["id"] not in shell("security group rule list webserver").out
    shell("security group delete webserver")
    assert "webserver" not in shell("security group list").out


@pytest.mark.req("C/MTR-05")
def test_metering_labels_and_rules(shell: Shell) -> None:
    label = shell.data("network meter create label1 --description 'for the bill'")
    assert (label["name"], label["description"], label["shared"]) == ("label1", "for the bill", False)
    assert label["id"] in shell("network meter list").out
    assert shell.data("network meter show label1")["id"] == label["id"]
    rule = shell.data("network meter rule create label1 --remote-ip-prefix 10.0.0.0/24 --ingress --exclude")
    assert (rule["direction"], rule["metering_label_id"]) == ("ingress", label["id"])
    assert rule["id"] in shell("network meter rule list").out
    assert shell.data(f"network meter rule show {rule['id']}")["id"] == rule["id"]
    shell(f"network meter rule delete {rule['id']}")
    shell("network meter delete label1")
    assert shell.data("network meter list") == []


@pytest.mark.req("C/OVS-14", "C/L3HA-22")
def test_the_scenario_of_one_project(shell: Shell) -> None:
    """Two networks, a router between them and a public network without DHCP, as the document types it."""
    shell("network create --share --external --provider-network-type local public01")
    shell("subnet create --network public01 --subnet-range 10.64.201.0/24 --gateway 10.64.201.254 --no-dhcp public01_1")
    shell("router create router01")
    for number in (101, 102):
        segment = f"--provider-network-type vlan --provider-physical-network physnet1 --provider-segment {number}"
        made = shell.data(f"network create {segment} net{number}")
        assert made["provider:segmentation_id"] == number
        shell(f"subnet create --network net{number} --subnet-range 192.168.{number}.0/24 net{number}_1")
        shell(f"router add subnet router01 net{number}_1")
    shell("router set --external-gateway public01 router01")
    shown = shell.data("router show router01")
    addresses = {one["ip_address"] for one in shown["interfaces_info"]}
    assert addresses == {"192.168.101.1", "192.168.102.1"}
    (outside,) = shown["external_gateway_info"]["external_fixed_ips"]
    assert outside["ip_address"].startswith("10.64.201.")
    assert shell("router delete router01", fails=True).err.strip()


def test_the_state_directory_has_settings_and_logs_and_status_says_how_it_is(shell: Shell, tmp_path: Path) -> None:
    """C/OPS-01, C/OPS-02, C/ARCH-22: what /etc/neutron, /var/log/neutron and `service ... status` were for."""
    state = shell.cloud.state
    logs = {path.name for path in (state / "log").iterdir()}
    assert {"supervisor.log", "server.log", "agent.log"} <= logs
    assert nubila("status", "--state", str(state)).returncode == 0
    assert nubila("status", "--state", str(tmp_path)).returncode == 1
