"""A port's life inside one transaction: made, changed, moved between hosts, given up.

The API's hooks, the routers, DHCP placement and Compute (plug.py) all come through here, so that addresses, groups,
floating IPs and work rows always change together with the port.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Mapping, Sequence
from typing import Any

import sqlalchemy as sa

from nubila.core import checks, clock, hosts, quota
from nubila.core.cloud import Cloud
from nubila.core.db import Tx
from nubila.core.faults import bad_request, conflict, over_quota
from nubila.core.gates import ALWAYS
from nubila.services.network import (
    allocate,
    asks,
    bridged,
    fixed,
    floating_links,
    groups,
    l2pop,
    local_ips,
    logs,
    look,
    network_segments,
    pvlan,
    qos_guarantees,
    segments,
    tags,
    trunks_links,
)
from nubila.services.network.kinds import Network
from nubila.services.network.kinds_port import Port
from nubila.services.network.tables import DHCP_BINDING, PORT_BINDING, PORT_GROUP

Row = dict[str, Any]
MAX_PAIRS = 10
_COLUMNS = [c.name for c in Port.table.columns]
_DELETE = sa.delete(Port.table).where(Port.table.c.id == sa.bindparam("b_id"))
_LOSE_BINDINGS = sa.delete(PORT_BINDING).where(PORT_BINDING.c.port_id == sa.bindparam("b_port"))
_LOSE_DHCP = (
    sa.update(DHCP_BINDING).where(DHCP_BINDING.c.port_id == sa.bindparam("b_port")).values(port_id=sa.null())
)  # fmt: skip


# --- making ---------------------------------------------------------------------------------------------------------


def fill(cloud: Cloud, tx: Tx, values: Row, net: Mapping[str, Any], creds: Any) -> None:
    """Bring a create request to its final form; addresses and groups wished for stay in ``_wishes``, ``_groups``."""
    values["network_owner"] = net["project_id"]
    if values.get("port_security_enabled") is None:
        own = str(values["device_owner"]).startswith("network:")  # the cloud's own ports are not guests
        values["port_security_enabled"] = net["port_security_enabled"] and not own
    values["mac_address"] = allocate.mac(tx, net["id"], values.get("mac_address"))
    bind_values(tx, values, values.get("host_id") or "", values)
    values["profile"] = host_facts(values.get("profile"))
    values["_groups"] = groups.chosen(cloud, tx, values, values.get("security_groups"), creds)
    values["allowed_address_pairs"] = pairs(values.get("allowed_address_pairs") or [], values)
    values["extra_dhcp_opts"] = options([], values.get("extra_dhcp_opts") or [])
    values["dns_name"] = host_name(values.get("dns_name") or "")
    values["dns_domain"] = segments.domain(values.get("dns_domain"))
    values["tags"] = tags.clean(values.get("tags") or [])
    pvlan.settle(values, net)
    asked = values.get("fixed_ips")
    values["_wishes"] = fixed.wishes(tx, values, asked)
    values["ip_allocation"] = network_segments.allocation(tx, values, asked, values["_wishes"])


def made(cloud: Cloud, tx: Tx, row: Row) -> None:
    """What follows once the row is there: addresses, groups, tags, work for hosts. Completes ``row`` for the answer."""
    row["fixed_ips"] = fixed.claim(tx, row, row.pop("_wishes"))
    ids = row.pop("_groups")
    for id in ids:
        tx.insert(PORT_GROUP, {"port_id": row["id"], "security_group_id": id})
    row["security_groups"] = ids
    tags.store(tx, row["id"], row["tags"], fresh=True)
    if row["bound_host"]:
        asks.moved(tx, row, "", row["bound_host"])
        qos_guarantees.settle(tx, row, fresh=True)
    if row["fixed_ips"]:
        asks.dhcp(tx, row["network_id"])
        asks.members(tx, ids)
    pvlan.followed(tx, {}, row)


def check_move(tx: Tx, before: Row, asked: Sequence[Mapping[str, Any]]) -> None:
    """400 for new addresses that would strand a floating IP or a router."""
    left = {one.get("ip_address") for one in asked}
    for linked in floating_links.of_port(tx, before["id"]):
        if linked["fixed_ip_address"] not in left:
            text = f"fixed_ips: keep {linked['fixed_ip_address']} or take off the floating IP that leads to it."
            raise bad_request(f"Bad port request: {text}", "BadRequest")


def create(cloud: Cloud, tx: Tx, creds: Any = None, *, counted: str = "claim", **values: Any) -> Row:
    """Make a port for the cloud itself or another service; ``counted``: "claim" (409 over quota), "count", "no"."""
    net = look.seen(cloud, tx, creds, Network, values["network_id"])
    row = checks.defaults(Port, dict(values), ALWAYS)
    fill(cloud, tx, row, net, creds)
    project = row["project_id"]
    if project and counted == "claim":
        try:
            quota.claim(tx, project, {"port": 1}, cloud.service("network").quotas)
        except quota.OverQuota as e:
            text = f"Quota exceeded for resources: ['port']: {e.used} of {e.limit} in use."
            raise over_quota(text) from None
    elif project and counted == "count":
        quota.count(tx, project, {"port": 1})
    tx.insert(Port.table, {c: row.get(c) for c in _COLUMNS})
    made(cloud, tx, row)
    return row


# --- changing -------------------------------------------------------------------------------------------------------


def prepare_change(cloud: Cloud, tx: Tx, before: Row, values: Row, creds: Any) -> None:
    """Check and complete an update's values; changes nothing but ``values``."""
    after = {**before, **values}
    if "mac_address" in values:
        _change_mac(tx, before, values)
        after["mac_address"] = values["mac_address"]
    if "host_id" in values:
        _change_host(tx, before, values)
    if "profile" in values:
        values["profile"] = host_facts(values["profile"])
    if "port_security_enabled" in values and values["port_security_enabled"] is None:
        values["port_security_enabled"] = before["port_security_enabled"]
    if "security_groups" in values:
        values["_groups"] = groups.chosen(cloud, tx, {**before, **values}, values["security_groups"] or [], creds)
    elif values.get("port_security_enabled") is False and groups.of_port(tx, before["id"]):
        text = "Port security can not be switched off while the port is in security groups: take it out of them first."
        raise conflict(text, "PortSecurityPortHasSecurityGroup")
    if "allowed_address_pairs" in values or values.get("port_security_enabled") is False:
        asked = values.get("allowed_address_pairs", before["allowed_address_pairs"])
        values["allowed_address_pairs"] = pairs(asked or [], {**before, **values})
    if "extra_dhcp_opts" in values:
        values["extra_dhcp_opts"] = options(before["extra_dhcp_opts"], values["extra_dhcp_opts"] or [])
    if "dns_name" in values:
        values["dns_name"] = host_name(values["dns_name"] or "")
    if "dns_domain" in values:
        values["dns_domain"] = segments.domain(values["dns_domain"])
    pvlan.change(tx, before, values)


def _change_host(tx: Tx, before: Row, values: Row) -> None:
    if "fixed_ips" not in values and values["host_id"] != before["host_id"]:
        network_segments.check_host(tx, before, values["host_id"] or "")
    bind_values(tx, values, values["host_id"] or "", {**before, **values})
    if values["bound_host"] != before["bound_host"]:
        values["status"] = "DOWN"


def _change_mac(tx: Tx, before: Row, values: Row) -> None:
    wanted = values["mac_address"]
    if wanted == before["mac_address"]:
        return  # null asks for a new one (extension port-mac-address-regenerate)
    if before["bound_host"]:
        text = f"mac_address: unbind port {before['id']} from host {before['bound_host']} before it becomes {wanted}."
        raise conflict(text, "PortBound")
    values["mac_address"] = allocate.mac(tx, before["network_id"], wanted)


def changed(cloud: Cloud, tx: Tx, before: Row, after: Row) -> None:
    """What follows a changed row: addresses, groups, floating IPs, work for hosts. Completes ``after``."""
    id, old_ips = before["id"], look.addresses_of(tx, before["id"])
    old_groups = groups.of_port(tx, id)
    if "fixed_ips" in after:
        after["fixed_ips"] = fixed.replace(tx, after, after["fixed_ips"])
    elif before["mac_address"] != after["mac_address"]:
        autos = [s["id"] for s in look.subnets(tx, before["network_id"]) if fixed.is_auto(s)]
        kept = [i for i in old_ips if i["subnet_id"] not in autos]
        after["fixed_ips"] = fixed.replace(tx, after, kept) if len(kept) != len(old_ips) else old_ips
    else:
        after["fixed_ips"] = old_ips or _deferred(tx, before, after)
    new_groups = after.pop("_groups", None)
    if new_groups is not None and new_groups != old_groups:
        groups.join(tx, id, new_groups)
    after["security_groups"] = old_groups if new_groups is None else new_groups
    new_ips = after["fixed_ips"]
    if new_ips != old_ips:
        floating_links.addresses_changed(tx, id, [i["ip_address"] for i in new_ips])
    asks.moved(tx, after, before["bound_host"], after["bound_host"])
    if before["host_id"] != after["host_id"]:
        trunks_links.follow(tx, after, bind)
    moved = any(before[n] != after[n] for n in ("bound_host", "device_owner", "device_id"))
    if moved or before["qos_policy_id"] != after["qos_policy_id"]:
        qos_guarantees.settle(tx, after, fresh=moved)
    wiring = ("mac_address", "admin_state_up", "port_security_enabled", "allowed_address_pairs", "device_owner",
              "qos_policy_id", "hints")  # fmt: skip
    if new_ips != old_ips or after["security_groups"] != old_groups or any(before[n] != after[n] for n in wiring):
        asks.port(tx, after)
    if before["device_owner"] != after["device_owner"] or before["device_id"] != after["device_id"]:
        asks.port(tx, before)
    told = ("mac_address", "dns_name", "dns_domain", "extra_dhcp_opts")
    if new_ips != old_ips or any(before[n] != after[n] for n in told):
        asks.dhcp(tx, before["network_id"])
    pvlan.followed(tx, before, after)
    members = new_ips != old_ips or before["allowed_address_pairs"] != after["allowed_address_pairs"]
    concerned = set(old_groups) ^ set(after["security_groups"])
    asks.members(tx, concerned | set(old_groups) if members else concerned)
    if concerned and asks.is_guest(after):
        asks.groups_at(tx, concerned, after["bound_host"])


def _deferred(tx: Tx, before: Row, after: Row) -> list[dict[str, str]]:
    """The addresses of a port whose host has become known, when they waited for that."""
    waits = before["ip_allocation"] == network_segments.DEFERRED and not before["host_id"] and after["host_id"]
    if not waits or look.addresses_of(tx, before["id"]):
        return []
    return fixed.claim(tx, after, fixed.wishes(tx, after, None))


def host_facts(profile: Mapping[str, Any] | None) -> Row:
    """What is kept of a ``binding:profile``: not ``allocation``, which is read from what the port holds."""
    return {key: value for key, value in (profile or {}).items() if key != "allocation"}


def bind_values(tx: Tx, values: Row, host: str, port: Mapping[str, Any]) -> None:
    """Set the binding columns of a port, or of one that is being made (without ``id``).

    A host nobody knows, or that reaches no segment of the network or lacks what the port needs, leaves it unwired:
    ``binding_failed``.
    """
    where = hosts.get(tx, host) if host else None
    if where is not None and not network_segments.connected(tx, port["network_id"], where):
        where = None
    guest = not str(port.get("device_owner") or "").startswith("network:")
    if where is not None and bridged.lacks(tx, where, port["network_id"], port_id=port.get("id") or "", guest=guest):
        where = None
    known = where is not None
    values["host_id"] = host
    values["bound_host"] = host if known else ""
    values["vif_type"] = l2pop.vif_type(where) if where is not None else "binding_failed" if host else "unbound"


def details(vif_type: str) -> Row:
    """``binding:vif_details`` of a port that is wired so."""
    if vif_type == "bridge":
        return dict(l2pop.VIF_DETAILS)
    if vif_type != "ovs":
        return {}
    return {
        "port_filter": True, "connectivity": "l2", "bridge_name": "br-int", "datapath_type": "system",
        "ovs_hybrid_plug": False, "bound_drivers": {"0": "openvswitch"},
    }  # fmt: skip


def bind(tx: Tx, row: Row, host: str, **more: Any) -> Row:
    """Move a port to a host ("" = none) and change further columns with it; its subports go with it."""
    values: Row = dict(more)
    if values.get("device_id") and trunks_links.of_subport(tx, row["id"]):
        raise conflict(f"Port {row['id']} is a subport: take it out of its trunk first.", "PortInUse")
    bind_values(tx, values, host, {**row, **values})
    if values["bound_host"] != row["bound_host"]:
        values["status"] = "DOWN"
        look.lock(tx, Network, row["network_id"])
        if asks.is_guest(row):
            network_segments.check_host(tx, row, host)
    allocate.set_columns(tx, Port, row["id"], {**values, "updated_at": clock.now()})
    after = {**row, **values}
    if _deferred(tx, row, after):
        asks.dhcp(tx, row["network_id"])
        asks.members(tx, groups.of_port(tx, row["id"]))
    asks.moved(tx, after, row["bound_host"], after["bound_host"])
    asks.port(tx, after)
    if row["host_id"] != after["host_id"]:
        trunks_links.follow(tx, after, bind)
    if any(row[n] != after[n] for n in ("bound_host", "device_owner", "device_id")):
        qos_guarantees.settle(tx, after, fresh=True)
    if row["device_owner"] != after["device_owner"]:
        asks.dhcp(tx, row["network_id"])
    return after


# --- giving up ------------------------------------------------------------------------------------------------------


def let_go(tx: Tx, row: Row) -> None:
    """Undo all that hangs on a port, before its row is deleted."""
    id = row["id"]
    row["_groups"] = groups.of_port(tx, id)
    floating_links.port_gone(tx, id)
    trunks_links.port_gone(tx, id, bind)
    qos_guarantees.release(tx, id)
    allocate.release(tx, id)
    groups.join(tx, id, ())
    logs.forget(tx, id)
    local_ips.port_gone(tx, row)
    tx.execute(_LOSE_DHCP, {"b_port": id})
    tx.execute(_LOSE_BINDINGS, {"b_port": id})
    tags.forget(tx, id)


def gone(tx: Tx, row: Row) -> None:
    """What follows once the row is deleted."""
    if row["bound_host"]:
        asks.moved(tx, row, row["bound_host"], "")
        asks.port(tx, row)
    asks.dhcp(tx, row["network_id"])
    asks.members(tx, row.pop("_groups", ()))
    pvlan.followed(tx, row, {})


def delete(tx: Tx, row: Row) -> None:
    """Delete a port with everything that hangs on it."""
    let_go(tx, row)
    tx.execute(_DELETE, {"b_id": row["id"]})
    if row["project_id"]:
        quota.release(tx, row["project_id"], {"port": 1})
    gone(tx, row)


# --- checking -------------------------------------------------------------------------------------------------------


def pairs(asked: Sequence[Mapping[str, Any]], port: Mapping[str, Any]) -> list[Row]:
    """Allowed address pairs in their stored form; 400 or 409 for those that cannot be."""
    if asked and not port["port_security_enabled"]:
        text = "allowed_address_pairs: the port has port_security_enabled off; switch it on or give no pairs."
        raise conflict(text, "AddressPairAndPortSecurityRequired")
    if len(asked) > MAX_PAIRS:
        text = f"The number of allowed address pairs exceeds the maximum {MAX_PAIRS}."
        raise bad_request(text, "AllowedAddressPairExhausted")
    out: list[Row] = []
    for one in asked:
        ip = one["ip_address"]
        try:
            parsed = ipaddress.ip_network(ip, strict=False)
            mac = checks.loaded(Port.attrs["mac_address"].type.load, "allowed_address_pairs", one.get("mac_address"))
        except ValueError:
            text = f"allowed_address_pairs: '{ip}' is neither an IP address nor a CIDR."
            raise bad_request(text, "HTTPBadRequest") from None
        if parsed.is_multicast:
            text = f"allowed_address_pairs: {ip} is a multicast address, which nobody sends from."
            raise bad_request(text, "HTTPBadRequest")
        shown = str(parsed) if "/" in ip else str(parsed.network_address)
        pair = {"ip_address": shown, "mac_address": mac or port["mac_address"]}
        if pair in out:
            text = f"allowed_address_pairs: {pair['mac_address']} with {shown} is there twice."
            raise bad_request(text, "DuplicateAddressPairInRequest")
        out.append(pair)
    return out


def options(have: Sequence[Mapping[str, Any]], asked: Sequence[Mapping[str, Any]]) -> list[Row]:
    """Extra DHCP options after a request: given ones replace, those with a null value go."""
    out = {(o["opt_name"], o["ip_version"]): dict(o) for o in have}
    for one in asked:
        key = (one["opt_name"], int(one.get("ip_version") or 4))
        value = one["opt_value"]
        if value is None:
            out.pop(key, None)
            continue
        if not value.strip() or any(c in value or c in key[0] for c in "\r\n\0"):
            text = f"Invalid input for extra_dhcp_opts: '{key[0]}' needs a value without line breaks."
            raise bad_request(text, "InvalidInput")
        out[key] = {"opt_name": key[0], "opt_value": value, "ip_version": key[1]}
    return list(out.values())


def is_host_name(text: str) -> bool:
    """Whether it is one DNS label (RFC 1123)."""
    return re.fullmatch(r"[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?", text) is not None


def host_name(text: str) -> str:
    """A name usable as one DNS label; 400 otherwise."""
    if text and not is_host_name(text):
        raise bad_request(f"dns_name: '{text}' is no host name.", "InvalidInput")
    return text.lower()
