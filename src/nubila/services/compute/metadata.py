"""What a guest may learn about itself: at 169.254.169.254, and on its config drive.

Two formats: OpenStack's (``/openstack/<version>/meta_data.json``, ``user_data``, ``network_data.json``,
``vendor_data.json``, ``vendor_data2.json``, ``password``) and EC2's (``/<version>/meta-data/...``, ``user-data``).
A guest is known by its fixed address on the network, or on any network of the router, that its request came from.
"""

from __future__ import annotations

import base64
import binascii
import json
import os
from collections.abc import Mapping, Sequence
from typing import Any

import sqlalchemy as sa

from nubila.core.cloud import Cloud
from nubila.core.db import Reader, Tx
from nubila.services.compute import rows, views
from nubila.services.compute.kinds import SERVER
from nubila.services.network import plug
from nubila.services.network.kinds import Subnet

Row = dict[str, Any]
Answer = tuple[int, str, bytes]
TEXT, JSON = "text/plain; charset=UTF-8", "application/json"
FOLSOM, GRIZZLY, HAVANA, LIBERTY = "2012-08-10", "2013-04-04", "2013-10-17", "2015-10-15"
NEWTON_1, NEWTON_2, OCATA, ROCKY, VICTORIA = "2016-06-30", "2016-10-06", "2017-02-22", "2018-08-27", "2020-10-14"
VERSIONS = (FOLSOM, GRIZZLY, HAVANA, LIBERTY, NEWTON_1, NEWTON_2, OCATA, ROCKY, VICTORIA, "2025-04-04")
EC2_VERSIONS = (
    "1.0", "2007-01-19", "2007-03-01", "2007-08-29", "2007-10-10", "2007-12-15", "2008-02-01", "2008-09-01",
    "2009-04-04",
)  # fmt: skip
PASSWORD_MAX = 255
LATEST = "latest"
_SUBNETS = sa.select(Subnet.table).where(Subnet.table.c.id.in_(sa.bindparam("ids", expanding=True)))
_SET_PASSWORD = sa.update(SERVER).where(SERVER.c.id == sa.bindparam("b_id")).values(password=sa.bindparam("b_password"))


class _Absent(Exception):
    """No such path."""


# --- requests ---------------------------------------------------------------------------------------------------------


def answer(
    cloud: Cloud,
    reader: Reader,
    *,
    network_id: str | None,
    router_id: str | None,
    address: str,
    method: str,
    path: str,
    body: bytes = b"",
) -> Answer:
    """Answer one request of the guest at ``address``: (status, content type, body). Never raises for bad input."""
    try:
        port = plug.port_at(reader, network_id=network_id, router_id=router_id, address=address)
    except ValueError:
        return 400, TEXT, b"400 Bad Request: the address is not one"
    row = rows.get(reader, port["device_id"]) if port is not None and port["device_id"] else None
    if row is None or row["deleted"]:
        return 404, TEXT, b"404 Not Found: no server has this address"
    parts = [p for p in path.partition("?")[0].split("/") if p not in ("", ".")]
    if ".." in parts:
        return 404, TEXT, b"404 Not Found"
    if method == "POST" and len(parts) == 3 and parts[0] == "openstack" and parts[2] == "password":
        return _take_password(reader, row, parts[1], body)
    if method not in ("GET", "HEAD"):
        return 405, TEXT, b"405 Method Not Allowed"
    try:
        found = _find(cloud, reader, row, parts, address)
    except _Absent:
        return 404, TEXT, b"404 Not Found"
    kind, data = found
    return 200, kind, data


def _take_password(tx: Reader, row: Row, version: str, body: bytes) -> Answer:
    """A guest reports its password, encrypted with the user's key: once."""
    if version != LATEST and (version not in VERSIONS or version < GRIZZLY):
        return 404, TEXT, b"404 Not Found"
    if row["password"]:
        return 409, TEXT, b"409 Conflict: the password is set already"
    if len(body) > PASSWORD_MAX * 4:
        return 400, TEXT, b"400 Bad Request: the password is too long"
    if not isinstance(tx, Tx):
        return 503, TEXT, b"503 Service Unavailable"
    tx.execute(_SET_PASSWORD, {"b_id": row["id"], "b_password": body.decode("utf-8", "replace")})
    return 200, TEXT, b""


def _find(cloud: Cloud, reader: Reader, row: Row, parts: Sequence[str], address: str) -> tuple[str, bytes]:
    if parts[:1] == ["openstack"]:
        return _openstack(cloud, reader, row, parts[1:])
    if parts[:1] == ["ec2"]:
        parts = parts[1:]
    if not parts:
        return TEXT, "\n".join((*EC2_VERSIONS, LATEST)).encode()
    if parts[0] != LATEST and parts[0] not in EC2_VERSIONS:
        raise _Absent
    tree = ec2(reader, row, parts[0], address)
    value: Any = tree
    for part in parts[1:]:
        if not isinstance(value, dict) or part not in value:
            raise _Absent
        value = value[part]
    return TEXT, value if isinstance(value, bytes) else _printed(value).encode()


def _printed(value: Any) -> str:
    """EC2's way of printing a tree: a directory's names one a line, sub-directories with a slash."""
    if isinstance(value, list):
        return "\n".join(str(v) for v in value)
    if not isinstance(value, dict):
        return str(value)
    lines = []
    for key in sorted(k for k in value if k != "_name"):
        inner = value[key]
        if isinstance(inner, dict):
            lines.append(inner.get("_name", f"{key}/"))
        else:
            lines.append(key)
    return "\n".join(lines)


# --- EC2 --------------------------------------------------------------------------------------------------------------


def ec2_id(row: Mapping[str, Any]) -> str:
    """The server's EC2-style id, derived from its UUID."""
    return f"i-{row['id'][:8]}"


def ec2(reader: Reader, row: Row, version: str, address: str = "") -> Row:
    """EC2's tree: ``meta-data`` and, when there is any, ``user-data``."""
    since = EC2_VERSIONS[-1] if version == LATEST else version
    ports = _ports(reader, row)
    fixed = [ip["ip_address"] for p in ports for ip in p["fixed_ips"] if ip["version"] == 4]
    floating = [f["floating"] for p in ports for f in p["floating_ips"]]
    data: Row = {
        "ami-id": f"ami-{(row['image_id'] or '00000000')[:8]}", "ami-launch-index": row["launch_index"],
        "ami-manifest-path": "FIXME", "instance-id": ec2_id(row), "hostname": row["hostname"],
        "local-ipv4": address or (fixed[0] if fixed else ""), "reservation-id": row["reservation_id"],
        "security-groups": [g["name"] for g in views.security_groups(row, ports)],
    }  # fmt: skip
    key = row["keypair"]
    if key:
        data["public-keys"] = {"0": {"_name": f"0={key['name']}", "openssh-key": key["public_key"]}}
    if since >= "2007-01-19":
        data |= {
            "local-hostname": row["hostname"], "public-hostname": row["hostname"],
            "public-ipv4": floating[0] if floating else "",
        }  # fmt: skip
    if since >= "2007-08-29":
        data["instance-type"] = row["flavor"]["name"]
    if since >= "2007-12-15":
        data["block-device-mapping"] = {"ami": "vda", "root": "/dev/vda"}
    if since >= "2008-02-01":
        data["placement"] = {"availability-zone": row["zone"] or row["zone_wanted"] or "nova"}
    if since >= "2008-09-01":
        data["instance-action"] = "none"
    tree: Row = {"meta-data": data}
    if (user_data := _user_data(row)) is not None:
        tree["user-data"] = user_data
    return tree


# --- OpenStack --------------------------------------------------------------------------------------------------------


def _openstack(cloud: Cloud, reader: Reader, row: Row, parts: Sequence[str]) -> tuple[str, bytes]:
    if not parts:
        return TEXT, "\n".join((*VERSIONS, LATEST)).encode()
    if parts[0] == "content":
        return TEXT, _content(row, parts[1:])
    version = VERSIONS[-1] if parts[0] == LATEST else parts[0]
    if version not in VERSIONS:
        raise _Absent
    names = _names(row, version)
    if len(parts) == 1:
        return TEXT, "\n".join(names).encode()
    if len(parts) != 2 or parts[1] not in names:
        raise _Absent
    return _document(cloud, reader, row, version, parts[1])


def _names(row: Row, version: str) -> list[str]:
    """Documents this version has."""
    out = ["meta_data.json"]
    if row["user_data"]:
        out.append("user_data")
    for name, since in (
        ("password", GRIZZLY), ("vendor_data.json", HAVANA), ("network_data.json", LIBERTY),
        ("vendor_data2.json", NEWTON_2),
    ):  # fmt: skip
        if version >= since:
            out.append(name)
    return out


def _document(cloud: Cloud, reader: Reader, row: Row, version: str, name: str) -> tuple[str, bytes]:
    if name == "user_data":
        return TEXT, _user_data(row) or b""
    if name == "password":
        return TEXT, (row["password"] or "").encode()
    if name == "network_data.json":
        return JSON, json.dumps(network_data(reader, row)).encode()
    if name == "meta_data.json":
        return JSON, json.dumps(meta_data(reader, row, version)).encode()
    return JSON, b"{}" if name == "vendor_data.json" else json.dumps({"static": {}}).encode()


def meta_data(reader: Reader, row: Row, version: str = VERSIONS[-1]) -> Row:
    """The document most guests begin with."""
    out: Row = {"uuid": row["id"]}
    if row["metadata"]:
        out["meta"] = row["metadata"]
    if row["files"]:
        out["files"] = [
            {"path": f["path"], "content_path": f"/content/{n:04d}"} for n, f in enumerate(row["files"])
        ]  # fmt: skip
    key = row["keypair"]
    if key:
        out["public_keys"] = {key["name"]: key["public_key"]}
        out["keys"] = [{"name": key["name"], "type": key["type"], "data": key["public_key"]}]
    out |= {
        "hostname": row["hostname"], "name": row["name"], "launch_index": row["launch_index"],
        "availability_zone": row["zone"] or row["zone_wanted"] or "nova",
    }  # fmt: skip
    if version >= GRIZZLY:
        out["random_seed"] = base64.b64encode(os.urandom(512)).decode()
    if version >= LIBERTY:
        out["project_id"] = row["project_id"]
    if version >= NEWTON_1:
        out["devices"] = _devices(reader, row, version)
    if version >= VICTORIA:
        out["dedicated_cpus"] = []
    return out


def _devices(reader: Reader, row: Row, version: str) -> list[Row]:
    """NICs that carry a tag."""
    tags = {n["port_id"]: n.get("tag") for n in row["nics"] or []}
    out = []
    for port in _ports(reader, row):
        tag = tags.get(port["id"])
        if tag is None:
            continue
        device: Row = {"type": "nic", "bus": "none", "address": "none", "mac": port["mac_address"], "tags": [tag]}
        if version >= ROCKY:
            device["vf_trusted"] = False
        out.append(device)
    return out


def network_data(reader: Reader, row: Row) -> Row:
    """Links, networks and services, for guests that configure themselves without DHCP."""
    ports = _ports(reader, row)
    ids = sorted({f["subnet_id"] for p in ports for f in p["fixed_ips"]})
    subnets = {s["id"]: s for s in reader.all(_SUBNETS, {"ids": ids})} if ids else {}
    links: list[Row] = []
    networks: list[Row] = []
    servers: list[str] = []
    for port in ports:
        link = f"tap{port['id'][:11]}"
        links.append({
            "id": link, "vif_id": port["id"], "type": port["vif_type"] or "ovs", "mtu": port["mtu"],
            "ethernet_mac_address": port["mac_address"],
        })  # fmt: skip
        for ip in port["fixed_ips"]:
            subnet = subnets.get(ip["subnet_id"])
            if subnet is None:
                continue
            networks.append(_network(len(networks), link, port, ip, subnet))
            servers += [s for s in subnet["dns_nameservers"] or [] if s not in servers]
    return {"links": links, "networks": networks, "services": [{"type": "dns", "address": s} for s in servers]}


def _network(n: int, link: str, port: Row, ip: Row, subnet: Row) -> Row:
    import ipaddress

    net = ipaddress.ip_network(subnet["cidr"])
    version = net.version
    if subnet["enable_dhcp"]:
        kind = subnet.get("ipv6_address_mode") if version == 6 and subnet.get("ipv6_address_mode") else None
        return {
            "id": f"network{n}", "type": f"ipv6_{kind}" if kind else f"ipv{version}_dhcp", "link": link,
            "network_id": port["network_id"],
            **({"ip_address": ip["ip_address"], "netmask": str(net.netmask), "routes": _routes(subnet, net)}
               if version == 6 else {}),
        }  # fmt: skip
    return {
        "id": f"network{n}", "type": f"ipv{version}", "link": link, "network_id": port["network_id"],
        "ip_address": ip["ip_address"], "netmask": str(net.netmask), "routes": _routes(subnet, net),
        "services": [{"type": "dns", "address": s} for s in subnet["dns_nameservers"] or []],
    }  # fmt: skip


def _routes(subnet: Row, net: Any) -> list[Row]:
    out = []
    if subnet["gateway_ip"]:
        any_ = "0.0.0.0" if net.version == 4 else "::"  # a destination, not a listening address
        out.append({"network": any_, "netmask": any_, "gateway": subnet["gateway_ip"]})
    return out


def _ports(reader: Reader, row: Row) -> list[Row]:
    return views.in_order(row, plug.ports_of(reader, [row["id"]]).get(row["id"], []))


def _user_data(row: Row) -> bytes | None:
    if not row["user_data"]:
        return None
    try:
        return base64.b64decode(row["user_data"])
    except (binascii.Error, ValueError):
        return b""


def _content(row: Row, parts: Sequence[str]) -> bytes:
    files = row["files"] or []
    if len(parts) != 1 or not parts[0].isdigit() or int(parts[0]) >= len(files):
        raise _Absent
    return base64.b64decode(files[int(parts[0])]["contents"])


# --- config drive -----------------------------------------------------------------------------------------------------


def _stored(data: bytes) -> str:
    """File content as a spec carries it: text, or base64 with a prefix when it is not UTF-8."""
    try:
        text = data.decode()
    except UnicodeDecodeError:
        return "base64:" + base64.b64encode(data).decode()
    return "base64:" + base64.b64encode(data).decode() if text.startswith("base64:") else text


def config_drive_files(cloud: Cloud, reader: Reader, server: Row) -> dict[str, str]:
    """path -> content of the drive labelled config-2.

    The same server gives the same files as long as it is not changed, so ``random_seed`` is derived from its id.
    """
    out: dict[str, str] = {}
    for version in (*VERSIONS, LATEST):
        real = VERSIONS[-1] if version == LATEST else version
        for name in _names(server, real):
            if name == "password":
                continue
            if name == "meta_data.json":
                document = meta_data(reader, server, real)
                if "random_seed" in document:
                    document["random_seed"] = _seed(server["id"])
                data = json.dumps(document).encode()
            else:
                data = _document(cloud, reader, server, real, name)[1]
            out[f"openstack/{version}/{name}"] = _stored(data)
    for n, file in enumerate(server["files"] or []):
        out[f"openstack/content/{n:04d}"] = _stored(base64.b64decode(file["contents"]))
    for version in (EC2_VERSIONS[-1], LATEST):
        tree = ec2(reader, server, version)
        tree["meta-data"].get("public-keys", {}).get("0", {}).pop("_name", None)
        out[f"ec2/{version}/meta-data.json"] = json.dumps(tree["meta-data"])
        if "user-data" in tree:
            out[f"ec2/{version}/user-data"] = _stored(tree["user-data"])
    return out


def _seed(id: str) -> str:
    import hashlib

    parts = b"".join(hashlib.sha512(f"{id}{n}".encode()).digest() for n in range(8))
    return base64.b64encode(parts).decode()
