"""POST /servers: from a body to rows of servers, or a refusal that names the field."""

from __future__ import annotations

import base64
import binascii
import functools
import re
import secrets
from collections.abc import Mapping
from typing import Any

import sqlalchemy as sa

from nubila.core import clock
from nubila.core.call import Call, Reply
from nubila.core.config import Settings
from nubila.core.faults import Fault, bad_request, conflict, forbidden, over_quota
from nubila.core.gates import Version
from nubila.core.types import boolean
from nubila.services.compute import flavors, history, nics, place, quotas, wire, zones
from nubila.services.compute.kinds import FLAVOR_ACCESS, GROUP, KEYPAIR, SERVER, SERVER_TAG, Server
from nubila.services.compute.wire import Row, mine, obj
from nubila.services.image import lookup as images
from nubila.services.network import plug

BUILD_S = 1800.0
"""How long a server may be building before it counts as failed."""
MAX_TAGS = 50
_PASSWORD = "23456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz"

_BDM = {
    "source_type": {"enum": ["volume", "image", "snapshot", "blank"]},
    "destination_type": {"enum": ["local", "volume"]},
    "uuid": {"type": "string", "minLength": 1, "maxLength": 255, "pattern": "^[a-zA-Z0-9._-]*$"},
    "image_id": wire.UUID,
    "volume_id": wire.UUID,
    "snapshot_id": wire.UUID,
    "volume_size": wire.whole(1),
    "guest_format": {"type": "string", "maxLength": 255},
    "device_type": {"type": "string", "maxLength": 255},
    "disk_bus": {"type": "string", "maxLength": 255},
    "device_name": {"type": "string", "minLength": 1, "maxLength": 255, "pattern": "^[a-zA-Z0-9._/-]*$"},
    "boot_index": {"type": ["integer", "string", "null"]},
    "delete_on_termination": wire.BOOL,
    "no_device": {},
    "virtual_name": {"type": "string", "maxLength": 255},
    "connection_info": {"type": "string"},
}


@functools.cache
def schema(version: Version) -> dict[str, Any]:
    """What a create body may hold in this version."""
    nic: dict[str, Any] = {
        "fixed_ip": wire.IP,
        "port": {"anyOf": [wire.UUID, {"type": "null"}]},
        "uuid": wire.UUID if version >= (2, 37) else {"type": "string"},
    }
    bdm: dict[str, Any] = dict(_BDM)
    if (2, 32) <= version < (2, 37) or version >= (2, 42):
        nic["tag"] = wire.TAG
    if (version < (2, 33) and version >= (2, 32)) or version >= (2, 42):
        bdm["tag"] = wire.TAG
    if version >= (2, 67):
        bdm["volume_type"] = {"type": ["string", "null"], "maxLength": 255}
    listed = {"type": "array", "items": obj(nic)}
    server: dict[str, Any] = {
        "name": wire.NAME,
        "imageRef": {"anyOf": [wire.UUID, {"const": ""}]},
        "flavorRef": {"type": ["string", "integer"], "minLength": 1},
        "adminPass": {"type": "string"},
        "metadata": wire.METADATA,
        "networks": listed if version < (2, 37) else {"anyOf": [listed, {"enum": ["none", "auto"]}]},
        "OS-DCF:diskConfig": {"enum": ["AUTO", "MANUAL"]},
        "accessIPv4": {"type": "string", "anyOf": [{"format": "ipv4"}, {"const": ""}]},
        "accessIPv6": {"type": "string", "anyOf": [{"format": "ipv6"}, {"const": ""}]},
        "availability_zone": wire.NAME,
        "block_device_mapping": {"type": "array", "items": obj(_BDM)},
        "block_device_mapping_v2": {"type": "array", "items": obj(bdm)},
        "config_drive": wire.BOOL,
        "key_name": wire.NAME,
        "min_count": wire.whole(1),
        "max_count": wire.whole(1),
        "return_reservation_id": wire.BOOL,
        "security_groups": {"type": "array", "items": obj({"name": wire.NAME})},
        "user_data": {"type": "string", "maxLength": 65535},
    }
    required = ["name", "flavorRef"]
    if version >= (2, 37):
        required.append("networks")
    if version < (2, 57):
        server["personality"] = {
            "type": "array",
            "items": obj({"path": {"type": "string"}, "contents": {"type": "string"}}),
        }
    if version >= (2, 19):
        server["description"] = wire.TEXT
    if version >= (2, 52):
        server["tags"] = {"type": "array", "items": wire.TAG, "maxItems": MAX_TAGS}
    if version >= (2, 63):
        server["trusted_image_certificates"] = {
            "type": ["array", "null"], "minItems": 1, "maxItems": 50, "uniqueItems": True,
            "items": {"type": "string", "minLength": 1},
        }  # fmt: skip
    if version >= (2, 74):
        server["host"] = server["hypervisor_hostname"] = wire.FQDN
    if version >= (2, 90):
        server["hostname"] = wire.HOSTNAME if version < (2, 94) else wire.FQDN
    one_or_many = {"anyOf": [wire.UUID, {"type": "array", "items": wire.UUID}]}
    hints = obj({"group": one_or_many, "same_host": one_or_many, "different_host": one_or_many}, extra=True)
    return obj(
        {
            "server": obj(server, required),
            "os:scheduler_hints": hints,
            "OS-SCH-HNT:scheduler_hints": hints,
        },
        ["server"],
    )


def hostname(name: str, id: str) -> str:
    """A host name made of a display name: small letters, digits and hyphens, at most 63 characters."""
    text = re.sub(r"[ _.]", "-", name.encode("ascii", "ignore").decode())
    text = re.sub(r"[^\w-]+", "", text).lower().strip("-")[:63].rstrip("-")
    return text or f"server-{id}"


def create(call: Call) -> Reply:
    """Create one server or several with everything they need looked up, counted and asked for."""
    whole = wire.body(call, schema)
    body = whole["server"]
    project = wire.project_of(call)
    call.enforce("os_compute_api:servers:create", mine(call))
    count = _count(body)
    flavor = _flavor(call, str(body["flavorRef"]))
    image_id, image = _image(call, body, flavor)
    networks = _networks(call, body)
    groups, names = _security_groups(call, project, body, networks)
    zone, host = _where(call, body)
    hints = dict(whole.get("os:scheduler_hints") or whole.get("OS-SCH-HNT:scheduler_hints") or {})
    user_data = _user_data(body)
    key = _key(call, body.get("key_name"))
    limits = quotas.limits(call.tx, project)
    metadata = body.get("metadata") or {}
    quotas.check_metadata(limits, metadata)
    files = _files(limits, body.get("personality") or [])
    if body.get("trusted_image_certificates"):
        call.enforce("os_compute_api:servers:create:trusted_certs", mine(call))
    group_id = _group(call, hints, limits, count)
    need = {"instances": count, "cores": count * flavor["vcpus"], "ram": count * flavor["ram"]}
    quotas.claim(call.tx, project, need)
    reservation = "r-" + "".join(secrets.choice("0123456789abcdefghijklmnopqrstuvwxyz") for _ in range(8))
    now = clock.now()
    disk_gb = place.amounts({**flavor, "extra_specs": {}}).get("DISK_GB", 0)
    tags = sorted(set(body.get("tags") or []))
    first = ""
    for n in range(count):
        id = clock.new_id()
        first = first or id
        name = body["name"] if count == 1 else f"{body['name']}-{n + 1}"
        given = body.get("hostname")
        row = {
            "id": id, "project_id": project, "user_id": call.creds.user_id, "created_at": now, "updated_at": now,
            "name": name,
            "hostname": (given if count == 1 else f"{given}-{n + 1}") if given else hostname(name, id),
            "description": body.get("description") if call.version >= (2, 19) else body["name"],
            "metadata": metadata, "tags": tags,
            "flavor": flavor, "flavor_id": flavor["id"], "vcpus": flavor["vcpus"], "ram": flavor["ram"],
            "disk": disk_gb, "image_id": image_id, "image": image, "key_name": key["name"] if key else None,
            "keypair": key, "user_data": user_data,
            "config_drive": boolean(body.get("config_drive", False)), "files": files,
            "access_ip_v4": wire.address(body.get("accessIPv4")), "access_ip_v6": wire.address(body.get("accessIPv6")),
            "auto_disk": body.get("OS-DCF:diskConfig") == "AUTO", "zone_wanted": zone, "host_wanted": host,
            "hints": hints, "group_id": group_id, "networks": networks, "security_groups": groups,
            "group_names": names, "trusted_certs": body.get("trusted_image_certificates"),
            "reservation_id": reservation, "launch_index": n, "deadline": _deadline(call.cloud.settings, now),
        }  # fmt: skip
        call.tx.insert(SERVER, {**_unset(), **row})
        for tag in tags:
            call.tx.insert(SERVER_TAG, {"server_id": id, "tag": tag})
        history.record(call, id, "create")
        call.tx.ask("server", id)
    return _answer(call, body, first, reservation, names)


@functools.cache
def _defaults() -> dict[str, Any]:
    return {a.name: a.default for a in Server.attrs.values() if not callable(a.default)}


def _unset() -> dict[str, Any]:
    return {name: None if value.__class__.__name__ == "Unset" else value for name, value in _defaults().items()} | {
        "nics": []
    }


def _deadline(settings: Settings, now: str) -> float:
    return clock.seconds(now) + BUILD_S


def _answer(call: Call, body: Row, id: str, reservation: str, names: list[str]) -> Reply:
    if boolean(body.get("return_reservation_id", False)):
        return Reply({"reservation_id": reservation}, 202)
    server: Row = {
        "id": id,
        "links": wire.links(call, "servers", id),
        "OS-DCF:diskConfig": body.get("OS-DCF:diskConfig", "MANUAL"),
        "security_groups": [{"name": g["name"]} for g in body.get("security_groups") or [{"name": "default"}]],
        "adminPass": body.get("adminPass") or "".join(secrets.choice(_PASSWORD) for _ in range(12)),
    }
    return Reply({"server": server}, 202, {"Location": f"{call.base}/v2.1/servers/{id}"})


# --- the parts of the body --------------------------------------------------------------------------------------------


def _count(body: Row) -> int:
    low = wire.number(body.get("min_count", 1), "min_count", 1)
    high = wire.number(body.get("max_count", low), "max_count", 1)
    if low > high:
        raise bad_request("min_count must be <= max_count")
    return high


_MAY_USE = sa.select(FLAVOR_ACCESS.c.project_id).where(
    FLAVOR_ACCESS.c.flavor_id == sa.bindparam("id"), FLAVOR_ACCESS.c.project_id == sa.bindparam("project")
)


def _flavor(call: Call, ref: str) -> Row:
    id = ref.rsplit("/", 1)[-1]
    row = flavors.visible(call, id)
    if row is None or row["disabled"]:
        raise bad_request(f"Flavor {id} could not be found.")
    keep = ("id", "name", "ram", "vcpus", "disk", "ephemeral", "swap", "rxtx_factor", "is_public", "extra_specs")
    return {k: row[k] for k in keep}


def _image(call: Call, body: Row, flavor: Row) -> tuple[str, Row]:
    id = str(body.get("imageRef") or "")
    mappings = body.get("block_device_mapping_v2") or []
    if mappings or body.get("block_device_mapping"):
        call.enforce("os_compute_api:servers:create:attach_volume", mine(call))
        id = _boot_mapping(mappings, bool(body.get("block_device_mapping")), id)
    if not id:
        raise bad_request("Invalid imageRef provided: give the UUID of an image to boot from.")
    row = images.visible(call.tx, call.creds, id)
    if row is None:
        raise bad_request("Can not find requested image")
    if row["status"] != "active":
        raise bad_request(f"Image {id} is not active.")
    if int(row["min_ram"] or 0) > flavor["ram"]:
        raise bad_request(f"The image needs {row['min_ram']} MiB of memory: choose a larger flavor.")
    gib, limit = 1 << 30, flavor["disk"]
    if limit == 0 and not call.may("os_compute_api:servers:create:zero_disk_flavor", mine(call)):
        raise forbidden("The flavor has no disk of its own: choose one that has.")
    if limit:
        size = max(int(row.get("virtual_size") or 0), int(row.get("size") or 0))
        if size > limit * gib:
            raise bad_request(
                f"The image takes {size} bytes, the flavor's disk only {limit * gib}: choose a larger flavor."
            )
        if int(row["min_disk"] or 0) > limit:
            raise bad_request(
                f"The size of flavor's disk {limit} GiB is smaller than the image's minimum, {row['min_disk']} GiB."
            )
    keep = ("disk_format", "os_hash_value", "name", "min_disk", "min_ram", "virtual_size", "size")
    return id, {**{k: row.get(k) for k in keep}, "properties": dict(row.get("properties") or {})}


def _boot_mapping(mappings: list[Row], old: bool, image_id: str) -> str:
    """The image of the one mapping we can make real; everything else needs volumes."""
    no_volumes = "This cloud has no block storage yet: only source_type image with destination_type local is possible."
    if old:
        raise bad_request(no_volumes)
    boot = image_id
    for m in mappings:
        if m.get("source_type") != "image" or m.get("destination_type", "local") != "local":
            raise bad_request(no_volumes)
        if str(m.get("boot_index", "0")) != "0":
            raise bad_request("boot_index: the image to boot from has 0.")
        boot = str(m.get("uuid") or m.get("image_id") or "")
        if image_id and boot != image_id:
            raise bad_request("block_device_mapping_v2 names another image than imageRef.")
    if len(mappings) > 1:
        raise bad_request("Block Device Mapping is Invalid: more than one device has boot index 0.")
    return boot


def _networks(call: Call, body: Row) -> list[Row] | str:
    """Requested NICs checked as far as they can be now, or "auto" / "none"."""
    asked = body.get("networks")
    if asked is None or asked == "auto" or asked == []:
        usable = plug.networks_for(call.tx, wire.project_of(call))
        if len(usable) > 1:
            raise conflict(nics.MANY)
        if asked == "auto" and not usable:
            raise bad_request("Unable to automatically allocate a network: create one, or say none.")
        return "auto"
    if asked == "none":
        return "none"
    call.enforce("os_compute_api:servers:create:attach_network", mine(call))
    out = [_nic(call, nic) for nic in asked]
    ports = [n["port"] for n in out if "port" in n]
    if call.version < (2, 72) and plug.guaranteed(call.tx, ports, ()):
        text = "Servers with ports that are guaranteed bandwidth or packet rate need version 2.72 or later."
        raise bad_request(text)
    if len(set(ports)) < len(ports):
        raise bad_request("A port is named twice.")
    if wire.number(body.get("max_count", body.get("min_count", 1)), "max_count", 1) > 1:
        if ports:
            raise bad_request("A port can be used by one server only: create one server at a time.")
        if any(n.get("fixed_ip") for n in out):
            raise bad_request("A fixed IP can be used by one server only: create one server at a time.")
    return out


def _nic(call: Call, nic: Row) -> Row:
    """One requested NIC: an existing port, or a network."""
    port, network, fixed = nic.get("port"), nic.get("uuid"), nic.get("fixed_ip")
    if port:
        if fixed and not network:
            raise bad_request(f"networks: port {port} has its addresses; leave fixed_ip {fixed} out.")
        row = nics.usable_port(call, port)
        return {"port": port, "uuid": row["network_id"], "tag": nic.get("tag")}
    if not network:
        raise bad_request("networks: each one names a uuid or a port.")
    if plug.network_visible(call.tx, call.creds, network, call.cloud) is None:
        raise bad_request(f"Network {network} could not be found.")
    if fixed:
        nics.free_address(call.tx, network, fixed)
    return {"uuid": network, "fixed_ip": fixed, "tag": nic.get("tag")}


def _security_groups(
    call: Call, project: str, body: Row, networks: list[Row] | str
) -> tuple[list[str] | None, list[str]]:
    asked = [g["name"] for g in body.get("security_groups") or [] if "name" in g]
    if not asked or asked == ["default"]:
        return None, ["default"]
    if networks == "none":
        return None, []
    return plug.security_group_ids(call.tx, project, list(dict.fromkeys(asked))), asked


def _where(call: Call, body: Row) -> tuple[str | None, str | None]:
    """Availability zone and host, from zone[:host[:node]] and from host/hypervisor_hostname."""
    zone, _, rest = (body.get("availability_zone") or "").partition(":")
    host, _, node = rest.partition(":")
    host = host or node
    if host:
        call.enforce("os_compute_api:servers:create:forced_host", {})
    asked = body.get("host") or body.get("hypervisor_hostname")
    if asked:
        call.enforce("compute:servers:create:requested_destination", mine(call))
        if host:
            raise bad_request("Give the host in availability_zone or in host, not in both.")
        host = asked
        if host not in {h["name"] for h in zones.compute_hosts(call.tx)}:
            raise bad_request(f"There is no compute host {host}.")
    if zone and not host and zone not in zones.available(call.tx):
        raise bad_request(f"availability_zone: {zone} has no host that works.")
    return zone or None, host or None


def _user_data(body: Row) -> str | None:
    text: str | None = body.get("user_data")
    if text is None:
        return None
    try:
        base64.b64decode(text.encode(), validate=False)
    except (binascii.Error, ValueError):
        raise bad_request("Invalid input for field/attribute user_data: it must be base64.") from None
    if not re.fullmatch(r"[A-Za-z0-9+/=\s_-]*", text):
        raise bad_request("Invalid input for field/attribute user_data: it must be base64.")
    return text


_KEY = sa.select(KEYPAIR).where(KEYPAIR.c.user_id == sa.bindparam("user"), KEYPAIR.c.name == sa.bindparam("name"))


def _key(call: Call, name: str | None) -> Row | None:
    if not name:
        return None
    row = call.tx.one(_KEY, {"user": call.creds.user_id, "name": name})
    if row is None:
        raise bad_request("Invalid key_name provided.")
    return {k: row[k] for k in ("name", "type", "public_key", "fingerprint")}


def _files(limits: Mapping[str, int], asked: list[Row]) -> list[Row]:
    if limits["injected_files"] >= 0 and len(asked) > limits["injected_files"]:
        raise over_quota("Personality file limit exceeded", status=403)
    out = []
    for one in asked:
        if "path" not in one or "contents" not in one:
            raise bad_request("Each personality file needs path and contents.")
        try:
            data = base64.b64decode(one["contents"], validate=True)
        except (binascii.Error, ValueError):
            raise bad_request(f"Personality content for {one['path']} cannot be decoded") from None
        if 0 <= limits["injected_file_path_bytes"] < len(one["path"]):
            raise over_quota("Personality file path exceeds maximum", status=403)
        if 0 <= limits["injected_file_content_bytes"] < len(data):
            raise over_quota("Personality file content exceeds maximum", status=403)
        out.append({"path": one["path"], "contents": one["contents"]})
    return out


_GROUP = sa.select(GROUP).where(GROUP.c.id == sa.bindparam("id"))
_MEMBERS = sa.select(sa.func.count()).where(SERVER.c.group_id == sa.bindparam("id"), SERVER.c.deleted.is_(False))


def _group(call: Call, hints: Row, limits: Mapping[str, int], count: int) -> str | None:
    asked = hints.get("group")
    if isinstance(asked, list):
        asked = asked[0] if asked else None
    if not asked:
        return None
    row = call.tx.one(_GROUP, {"id": asked})
    if row is None or (row["project_id"] != call.creds.project_id and not wire.is_admin(call)):
        raise bad_request(f"scheduler_hints: there is no server group {asked}.")
    most = limits["server_group_members"]
    if 0 <= most < int(call.tx.scalar(_MEMBERS, {"id": asked}) or 0) + count:
        raise Fault(403, f"Quota exceeded: a server group has {most} members at most.")
    return str(row["id"])
