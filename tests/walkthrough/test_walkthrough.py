"""The walk-through of seed 001 with the unmodified command line client: fields, states, device and namespace names."""

from __future__ import annotations

import base64
import hashlib
import re

import pytest
from walk import Walk

UUID = r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}"
HEX = r"[0-9a-f]{32}"

host = pytest.mark.host


def matches(pattern: str, value: object) -> bool:
    return re.fullmatch(pattern, str(value)) is not None


# --- 6a: catalogue and accounts


@pytest.mark.req("B/WALK-01", "B/VC-045")
def test_the_administrator_gets_a_token(walk: Walk) -> None:
    assert {"expires", "id", "project_id", "user_id"} <= set(walk["WALK-01"].data)


@pytest.mark.req("B/WALK-02", "B/WALK-03", "B/VC-046", "B/VC-047")
@pytest.mark.parametrize(("step", "words"), [("WALK-02", "Service Project"), ("WALK-03", "Demo Project")])
def test_projects_are_created(walk: Walk, step: str, words: str) -> None:
    project = walk[step].data
    assert {"description", "domain_id", "enabled", "id", "is_domain", "name", "parent_id"} <= set(project)
    assert (project["description"], project["domain_id"], project["parent_id"]) == (words, "default", "default")
    assert (project["enabled"], project["is_domain"]) == (True, False)
    assert matches(HEX, project["id"])


@pytest.mark.req("B/WALK-04", "B/VC-048")
def test_the_user_is_created_with_a_prompted_password(walk: Walk) -> None:
    assert walk["WALK-04 mismatch"].status != 0
    user = walk["WALK-04"].data
    assert (user["name"], user["domain_id"], user["enabled"]) == ("walk-demo", "default", True)
    assert "password_expires_at" in user
    assert "password" not in user


@pytest.mark.req("B/WALK-05", "B/WALK-06", "B/WALK-07", "B/VC-049", "B/VC-050")
def test_a_role_lets_the_user_in(walk: Walk) -> None:
    assert {"id", "name", "domain_id"} <= set(walk["WALK-05"].data)
    assert (walk["WALK-06"].status, walk["WALK-06"].out) == (0, "")
    assert walk["WALK-07"].data["project_id"] == walk["WALK-03"].data["id"]


@pytest.mark.req(
    "B/WALK-08",
    "B/WALK-10",
    "B/WALK-11",
    "B/VC-057",
    "B/VC-058",
    "B/VC-059",
    "B/VC-083",
    "B/VC-084",
    "B/VC-085",
    "B/VC-089",
)
@pytest.mark.req("B/VC-090", "B/VC-091", "B/VC-111", "B/VC-112")
@pytest.mark.parametrize("step", ["WALK-08", "WALK-10", "WALK-11", "WALK-12"])
def test_services_are_created(walk: Walk, step: str) -> None:
    assert walk[f"{step} user"].data["domain_id"] == "default"
    assert (walk[f"{step} role"].status, walk[f"{step} role"].out) == (0, "")
    assert {"description", "enabled", "id", "name", "type"} <= set(walk[step].data)


@pytest.mark.req(
    "B/WALK-09",
    "B/WALK-10",
    "B/WALK-11",
    "B/WALK-12",
    "B/VC-060",
    "B/VC-061",
    "B/VC-062",
    "B/VC-086",
    "B/VC-087",
    "B/VC-088",
)
@pytest.mark.req("B/VC-092", "B/VC-093", "B/VC-094", "B/VC-113", "B/VC-114", "B/VC-115")
@pytest.mark.parametrize("step", ["WALK-08", "WALK-10", "WALK-11", "WALK-12"])
def test_endpoints_are_created_by_service_type(walk: Walk, step: str) -> None:
    for interface in ("public", "internal", "admin"):
        endpoint = walk[f"{step} {interface}"].data
        assert (endpoint["interface"], endpoint["region"], endpoint["enabled"]) == (interface, "RegionOne", True)
        assert (endpoint["service_id"], endpoint["service_name"]) == (walk[step].data["id"], walk[step].data["name"])


@pytest.mark.req("B/WALK-12")
def test_an_endpoint_of_a_missing_service_is_refused(walk: Walk) -> None:
    assert walk["WALK-12 too early"].status != 0


@pytest.mark.req("B/WALK-13", "B/VC-071")
def test_a_public_image_needs_the_administrator(walk: Walk) -> None:
    assert walk["WALK-13 demo"].status != 0
    image = walk["WALK-13"].data
    assert (image["status"], image["visibility"], image["disk_format"]) == ("active", "public", "qcow2")
    content = walk.image.read_bytes()
    assert image["size"] == len(content)
    assert image["checksum"] == hashlib.md5(content, usedforsecurity=False).hexdigest()


# --- 6b: health listing


@pytest.mark.req("B/WALK-15", "B/VC-159")
def test_hypervisors_are_listed(walk: Walk) -> None:
    assert {"ID", "Hypervisor Hostname", "Hypervisor Type", "Host IP", "State"} <= walk["WALK-15"].columns
    assert {row["State"] for row in walk["WALK-15"].data} == {"up"}


@pytest.mark.req("B/WALK-16", "B/VC-160", "C/AGT-04", "C/ARCH-05", "C/OVS-11", "C/L3A-01")
def test_network_agents_are_listed(walk: Walk) -> None:
    columns = {"ID", "Agent Type", "Host", "Availability Zone", "Alive", "State", "Binary"}
    assert columns <= walk["WALK-16"].columns
    agents = {row["Binary"]: row for row in walk["WALK-16"].data}
    assert {"neutron-l3-agent", "neutron-dhcp-agent", "neutron-metadata-agent", "neutron-openvswitch-agent"} <= set(
        agents
    )
    assert all(row["Alive"] is True and row["State"] is True for row in walk["WALK-16"].data)
    assert agents["neutron-l3-agent"]["Agent Type"] == "L3 agent"
    assert agents["neutron-dhcp-agent"]["Availability Zone"] == "nova"
    assert agents["neutron-metadata-agent"]["Availability Zone"] is None


@pytest.mark.req("B/WALK-17", "B/VC-161")
def test_compute_services_are_listed(walk: Walk) -> None:
    assert {"ID", "Binary", "Host", "Zone", "Status", "State", "Updated At"} <= walk["WALK-17"].columns
    zones = {row["Binary"]: row["Zone"] for row in walk["WALK-17"].data}
    assert zones["nova-compute"] == "nova"
    assert zones["nova-scheduler"] == zones["nova-conductor"] == "internal"
    for row in walk["WALK-17"].data:
        assert (row["Status"], row["State"]) == ("enabled", "up")
        assert matches(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}", row["Updated At"])


@pytest.mark.req("B/WALK-18", "B/VC-162", "B/VC-189")
def test_images_are_listed_for_both(walk: Walk) -> None:
    for step in ("WALK-18", "WALK-18 demo"):
        assert walk[step].columns == {"ID", "Name", "Status"}
        assert ("cirros", "active") in {(row["Name"], row["Status"]) for row in walk[step].data}


@pytest.mark.req("B/WALK-19", "B/VC-163")
def test_every_service_has_three_endpoints(walk: Walk) -> None:
    columns = {"ID", "Region", "Service Name", "Service Type", "Enabled", "Interface", "URL"}
    assert columns <= walk["WALK-19"].columns
    rows = walk["WALK-19"].data
    assert all(matches(HEX, row["ID"]) for row in rows)
    for service in ("identity", "image", "compute", "placement", "network"):
        interfaces = sorted(row["Interface"] for row in rows if row["Service Type"] == service)
        assert interfaces == ["admin", "internal", "public"], service
    wrapped, plain = (max(map(len, walk[step].out.splitlines())) for step in ("WALK-19 table", "WALK-19 wide"))
    assert wrapped < plain


# --- 6c: networks, router, namespaces


@pytest.mark.req("B/WALK-20", "B/VC-165")
def test_the_provider_network_is_external_flat_and_shared(walk: Walk) -> None:
    network = walk["WALK-20"].data
    assert (network["shared"], network["router:external"], network["mtu"]) == (True, True, 1500)
    assert network["provider:network_type"] == "flat"
    assert network["provider:physical_network"] == "physnet1"
    assert network["provider:segmentation_id"] is None


@pytest.mark.req("B/WALK-21", "B/VC-166")
def test_the_provider_subnet_has_the_wished_pool(walk: Walk) -> None:
    subnet = walk["WALK-21"].data
    assert subnet["allocation_pools"] == [{"start": "10.0.0.100", "end": "10.0.0.120"}]
    assert (subnet["cidr"], subnet["gateway_ip"]) == ("10.0.0.0/24", "10.0.0.1")
    assert (subnet["dns_nameservers"], subnet["enable_dhcp"]) == (["10.0.0.1"], True)


@pytest.mark.req("B/WALK-22", "B/VC-168")
def test_the_self_service_network_has_every_field(walk: Walk) -> None:
    listed = """admin_state_up availability_zone_hints availability_zones created_at description dns_domain id
        ipv4_address_scope ipv6_address_scope is_default mtu name port_security_enabled project_id provider:network_type
        provider:physical_network provider:segmentation_id qos_policy_id revision_number router:external segments
        shared status subnets updated_at"""
    network = walk["WALK-22"].data
    assert set(listed.split()) <= set(network)
    assert (network["admin_state_up"], network["mtu"], network["status"]) == (True, 1450, "ACTIVE")
    assert (network["port_security_enabled"], network["router:external"], network["shared"]) == (True, False, False)
    # The document ran this as a user who may see provider attributes; today only the administrator may.
    seen = walk["WALK-22 admin"].data
    assert (seen["provider:network_type"], seen["provider:physical_network"]) == ("vxlan", None)
    assert seen["provider:segmentation_id"] >= 1


@pytest.mark.req("B/WALK-23", "B/VC-169")
def test_the_self_service_subnet_gets_the_rest_as_pool(walk: Walk) -> None:
    subnet = walk["WALK-23"].data
    assert subnet["allocation_pools"] == [{"start": "172.16.1.2", "end": "172.16.1.254"}]
    assert (subnet["gateway_ip"], subnet["enable_dhcp"]) == ("172.16.1.1", True)


@pytest.mark.req("B/WALK-24", "B/VC-170")
def test_the_router_starts_without_a_gateway(walk: Walk) -> None:
    router = walk["WALK-24"].data
    assert (router["status"], router["admin_state_up"], router["external_gateway_info"]) == ("ACTIVE", True, None)


@pytest.mark.req("B/WALK-25", "B/WALK-26", "B/WALK-28", "B/VC-171", "B/VC-172", "B/VC-174", "C/L3-11")
def test_the_router_has_two_active_ports(walk: Walk) -> None:
    assert walk["WALK-25"].status == 0, walk["WALK-25"].err
    assert walk["WALK-26"].status == 0, walk["WALK-26"].err
    assert {"ID", "Name", "MAC Address", "Fixed IP Addresses", "Status"} <= walk["WALK-28"].columns
    ports = walk["WALK-28"].data
    assert {port["Status"] for port in ports} == {"ACTIVE"}
    assert all(port["MAC Address"].startswith("fa:16:3e:") for port in ports)
    addresses = sorted(ip["ip_address"] for port in ports for ip in port["Fixed IP Addresses"])
    assert addresses[1] == "172.16.1.1"
    assert matches(r"10\.0\.0\.(10\d|11\d|120)", addresses[0])


@pytest.mark.req("B/WALK-29", "B/VC-175", "B/VC-190")
def test_both_networks_are_listed(walk: Walk) -> None:
    assert walk["WALK-29"].columns == {"ID", "Name", "Subnets"}
    assert {"provider", "selfservice"} <= {row["Name"] for row in walk["WALK-29"].data}


@host
@pytest.mark.req("B/WALK-27", "B/VC-173", "B/VC-222", "C/L3A-05", "C/DHCP-06", "C/DHCP-05")
def test_namespaces_are_named_after_router_and_networks(real_walk: Walk) -> None:
    names = {line.split()[0] for line in real_walk["WALK-27"].out.splitlines()}
    assert f"qrouter-{real_walk.router}" in names
    for step in ("WALK-20", "WALK-22"):
        assert f"qdhcp-{real_walk[step].data['id']}" in names


@host
@pytest.mark.req("B/WALK-30", "B/WALK-31", "B/WALK-32", "B/VC-176", "B/VC-177", "B/VC-178", "B/VC-179")
def test_the_gateway_answers_from_the_host_and_from_the_router(real_walk: Walk) -> None:
    """The document's firewall accident (WALK-30) does not happen, so its cure (WALK-32) is not needed."""
    assert "2 received" in real_walk["WALK-32"].out
    assert "ttl=64" in real_walk["WALK-31"].out


# --- 6d: flavor, key, security group, instance


@pytest.mark.req("B/WALK-35", "B/VC-180")
def test_the_flavor_has_every_field(walk: Walk) -> None:
    flavor = walk["WALK-35"].data
    wished = {"disk": 1, "id": "0", "name": "m1.nano", "ram": 64, "vcpus": 1, "rxtx_factor": 1.0, "properties": {}}
    assert {key: flavor[key] for key in wished} == wished
    assert flavor["OS-FLV-DISABLED:disabled"] is False
    assert flavor["OS-FLV-EXT-DATA:ephemeral"] == 0
    assert flavor["os-flavor-access:is_public"] is True
    assert not flavor["swap"]


@pytest.mark.req("B/WALK-36", "B/WALK-37", "B/VC-182", "B/VC-183", "B/VC-184")
def test_the_key_pair_has_the_fingerprint_of_the_key(walk: Walk) -> None:
    blob = base64.b64decode((walk.key.parent / "id_rsa.pub").read_text().split()[1])
    digest = hashlib.md5(blob, usedforsecurity=False).hexdigest()
    fingerprint = ":".join(digest[i : i + 2] for i in range(0, 32, 2))
    assert {"fingerprint", "name", "user_id"} <= set(walk["WALK-36"].data)
    assert walk["WALK-36"].data["fingerprint"] == fingerprint
    assert {"Name", "Fingerprint"} <= walk["WALK-37"].columns
    assert walk["WALK-37"].data[0]["Fingerprint"] == fingerprint


@pytest.mark.req("B/WALK-38", "B/WALK-39", "B/VC-185", "B/VC-186")
@pytest.mark.parametrize(("step", "protocol", "port"), [("WALK-38", "icmp", None), ("WALK-39", "tcp", 22)])
def test_security_group_rules_have_every_field(walk: Walk, step: str, protocol: str, port: int | None) -> None:
    rule = walk[step].data
    fields = """created_at description direction ether_type id port_range_max port_range_min project_id protocol
        remote_group_id remote_ip_prefix revision_number security_group_id updated_at"""
    assert set(fields.split()) <= set(rule)
    assert (rule["direction"], rule["ether_type"], rule["protocol"]) == ("ingress", "IPv4", protocol)
    assert (rule["port_range_min"], rule["port_range_max"]) == (port, port)
    assert (rule["remote_ip_prefix"], rule["remote_group_id"]) == ("0.0.0.0/0", None)


@pytest.mark.req("B/WALK-40", "B/VC-188")
def test_flavors_are_listed(walk: Walk) -> None:
    assert {"ID", "Name", "RAM", "Disk", "Ephemeral", "VCPUs", "Is Public"} <= walk["WALK-40"].columns
    assert "m1.nano" in {row["Name"] for row in walk["WALK-40"].data}


@pytest.mark.req("B/WALK-41", "B/VC-191")
def test_the_default_security_group_is_there(walk: Walk) -> None:
    assert {"ID", "Name", "Description", "Project"} <= walk["WALK-41"].columns
    assert ("default", "Default security group") in {(r["Name"], r["Description"]) for r in walk["WALK-41"].data}


@pytest.mark.req("B/WALK-42", "B/VC-192")
def test_the_server_answers_with_every_field(walk: Walk) -> None:
    server = walk["WALK-42"].data
    fields = """OS-DCF:diskConfig OS-EXT-AZ:availability_zone OS-EXT-STS:power_state OS-EXT-STS:task_state
        OS-EXT-STS:vm_state OS-SRV-USG:launched_at OS-SRV-USG:terminated_at accessIPv4 accessIPv6 addresses adminPass
        config_drive created flavor hostId id image key_name name progress project_id properties security_groups status
        updated user_id volumes_attached"""
    assert set(fields.split()) <= set(server)
    assert (server["OS-DCF:diskConfig"], server["name"], server["key_name"]) == (
        "MANUAL",
        "selfservice-instance",
        "mykey",
    )
    assert server["status"] in ("BUILD", "ACTIVE")
    assert server["OS-SRV-USG:terminated_at"] is None
    assert matches(r"\w{12}", server["adminPass"])
    assert matches(rf"cirros \({UUID}\)", server["image"])
    # Until the guest runs, the original, too, repeats what the client wrote: the group's id.
    default = next(row["ID"] for row in walk["WALK-41"].data if row["Name"] == "default")
    assert server["security_groups"][0]["name"] in ("default", default)
    assert walk["WALK-43 show"].data["security_groups"] == [{"name": "default"}]


@pytest.mark.req("B/WALK-43", "B/VC-193", "C/ARCH-04")
def test_the_server_becomes_active(walk: Walk) -> None:
    assert {"ID", "Name", "Status", "Networks"} <= walk["WALK-43"].columns
    row = walk["WALK-43"].data[0]
    assert (row["Name"], row["Status"]) == ("selfservice-instance", "ACTIVE"), walk["WALK-43 show"].out
    assert row["Image"] == "cirros"
    assert matches(r"172\.16\.1\.\d+", row["Networks"]["selfservice"][0])


@pytest.mark.req("B/WALK-46", "B/VC-199")
def test_the_console_log_is_shown(walk: Walk) -> None:
    assert walk["WALK-46"].status == 0, walk["WALK-46"].err
    if walk.real:
        assert "login:" in walk["WALK-46"].out


@host
@pytest.mark.req("B/WALK-47", "B/VC-200")
def test_the_router_reaches_the_guest(real_walk: Walk) -> None:
    assert "1 received" in real_walk["WALK-47"].out
    assert "ttl=64" in real_walk["WALK-47"].out


# --- 6e: floating IP


@pytest.mark.req("B/WALK-50", "B/VC-202")
def test_the_floating_ip_has_every_field(walk: Walk) -> None:
    floating = walk["WALK-50"].data
    fields = """created_at description fixed_ip_address floating_ip_address floating_network_id id name port_id
        project_id revision_number router_id status updated_at"""
    assert set(fields.split()) <= set(floating)
    assert (floating["fixed_ip_address"], floating["port_id"], floating["router_id"]) == (None, None, None)
    assert floating["status"] == "DOWN"
    assert matches(r"10\.0\.0\.(10\d|11\d|120)", floating["floating_ip_address"])


@pytest.mark.req("B/WALK-51", "B/VC-203")
def test_floating_ips_are_listed(walk: Walk) -> None:
    columns = {"ID", "Floating IP Address", "Fixed IP Address", "Port", "Floating Network", "Project"}
    assert columns <= walk["WALK-51"].columns


@pytest.mark.req("B/WALK-52", "B/VC-204", "B/VC-205", "C/L3HA-42")
def test_the_server_shows_its_floating_ip(walk: Walk) -> None:
    assert (walk["WALK-52"].status, walk["WALK-52"].out) == (0, ""), walk["WALK-52"].err
    floating = walk["WALK-50"].data["floating_ip_address"]
    assert walk["WALK-52 list"].data[0]["Networks"]["selfservice"] == [walk.fixed, floating]


@host
@pytest.mark.req("B/WALK-53", "B/VC-206", "B/VC-207")
def test_the_guest_is_reached_from_outside(real_walk: Walk) -> None:
    assert "1 received" in real_walk["WALK-53 ping"].out
    assert real_walk["WALK-53"].status == 0, real_walk["WALK-53"].err
    assert real_walk["WALK-53"].out.strip() == "selfservice-instance"


@host
@pytest.mark.req("B/WALK-54", "B/VC-208", "B/VC-209", "C/L3-07")
def test_the_guest_has_its_address_and_reaches_outside(real_walk: Walk) -> None:
    """The document pings a name of the internet; a host without one proves the same path to the external gateway."""
    seen = real_walk["WALK-54"].out
    assert f"inet {real_walk.fixed}/24" in seen
    assert "mtu 1450" in seen
    assert "1 packets received" in seen or "1 received" in seen
