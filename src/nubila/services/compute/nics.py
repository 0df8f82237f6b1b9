"""A server's ports: checks before creation, making and plugging them once its host is known, giving them back."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa

from nubila.core.call import Call
from nubila.core.cloud import Cloud
from nubila.core.db import Reader, Tx
from nubila.core.faults import bad_request, conflict
from nubila.services.network import addresses, plug
from nubila.services.network.tables import IP_ALLOCATION

Row = dict[str, Any]
MANY = "There are several networks: say by id which ones the server is to be on."


def owner_of(zone: str | None) -> str:
    """device_owner of a server's ports."""
    return f"compute:{zone or 'nova'}"


def usable_port(call: Call, port_id: str) -> Row:
    """An existing port that a server of the caller may take. Raises 400 when unknown, 409 when in use."""
    row = plug.port_visible(call.cloud, call.tx, call.creds, port_id)
    if row is None:
        raise bad_request(f"There is no port {port_id}.")
    if row["device_id"]:
        raise conflict(f"Port {port_id} is still in use.")
    return row


_TAKEN = (
    sa.select(IP_ALLOCATION.c.port_id)
    .where(IP_ALLOCATION.c.network_id == sa.bindparam("network"), IP_ALLOCATION.c.ip_key == sa.bindparam("key"))
    .limit(1)
)


def free_address(reader: Reader, network_id: str, address: str) -> None:
    """Raises 400 when any port of the network has this address: told at once, not by a server in ERROR."""
    if reader.one(_TAKEN, {"network": network_id, "key": addresses.key(address)}) is not None:
        raise bad_request(f"fixed_ip: {address} is taken; give a free one, or none.")


def wanted(reader: Reader, server: Row) -> list[Row]:
    """The networks a server is to have, "auto" resolved to the project's only network.

    Raises a 409 Fault when "auto" is ambiguous.
    """
    asked = server["networks"]
    if asked == "none":
        return []
    if asked != "auto":
        return list(asked)
    usable = plug.networks_for(reader, server["project_id"])
    if len(usable) > 1:
        raise conflict(MANY)
    return [{"uuid": usable[0]["id"]}] if usable else []


def plug_all(cloud: Cloud, tx: Tx, server: Row, host: str, zone: str) -> list[Row]:
    """Make or take every port of a server on its host; returns the ``nics`` column. Raises Faults of Network."""
    nics: list[Row] = []
    for nic in wanted(tx, server):
        nics.append(plug_one(cloud, tx, server, nic, host, zone))
    return nics


def plug_one(cloud: Cloud, tx: Tx, server: Row, nic: Row, host: str, zone: str) -> Row:
    """Make or take one port; returns its entry of the ``nics`` column."""
    owner = owner_of(zone)
    if nic.get("port"):
        row = plug.attach_port(cloud, tx, nic["port"], device_id=server["id"], device_owner=owner, host=host)
        return {"port_id": row["id"], "tag": nic.get("tag"), "owned": False}
    row = plug.create_port(
        cloud, tx, project_id=server["project_id"], network_id=nic["uuid"], fixed_ip=nic.get("fixed_ip"),
        security_group_ids=server["security_groups"], device_id=server["id"], device_owner=owner, host=host,
        dns_name=str(server["hostname"] or "").partition(".")[0],
    )  # fmt: skip
    return {"port_id": row["id"], "tag": nic.get("tag"), "owned": True}


def unplug_all(cloud: Cloud, tx: Tx, server: Row) -> None:
    """Delete the ports that were made for the server, give the user's own back."""
    mine = {nic["port_id"] for nic in server["nics"] or [] if nic["owned"]}
    for port in plug.ports_of(tx, [server["id"]]).get(server["id"], []):
        unplug_one(cloud, tx, port["id"], owned=port["id"] in mine)


def unplug_one(cloud: Cloud, tx: Tx, port_id: str, *, owned: bool) -> None:
    """Delete or give back one port."""
    if owned:
        plug.delete_port(cloud, tx, port_id)
    else:
        plug.detach_port(cloud, tx, port_id)
