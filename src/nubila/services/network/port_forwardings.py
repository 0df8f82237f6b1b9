"""Port forwardings of floating IPs: one port, or a range of ports, leads to a port of the network.

Rules as in the Networking API reference ("Floating IPs port forwarding"): the floating IP must lead nowhere else; the
internal port must not have a floating IP of its own; ranges are of equal length, or many external ports lead to one;
no external port twice, no internal socket twice. The router is found when the first one is made and stays the floating
IP's until the last one is gone.
"""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa

from nubila.core.call import Call
from nubila.core.db import Tx
from nubila.core.faults import bad_request, conflict
from nubila.core.policy import Rule
from nubila.services.network import allocate, asks, floating, floating_links, look
from nubila.services.network.feature import Feature
from nubila.services.network.kinds import FloatingIP
from nubila.services.network.kinds_l3 import PortForwarding, bounds
from nubila.services.network.kinds_port import Port
from nubila.services.network.nested import Nested
from nubila.services.network.policies import ADMIN

Row = dict[str, Any]
_W = PortForwarding.table.c
_SAME_SOCKET = sa.select(_W.id, _W.internal_port_range).where(
    _W.internal_port_id == sa.bindparam("port"), _W.internal_ip_address == sa.bindparam("ip"),
    _W.protocol == sa.bindparam("protocol"),
)  # fmt: skip
_SAME_FLOATING = sa.select(_W.id, _W.external_port_range).where(
    _W.floatingip_id == sa.bindparam("floating"), _W.protocol == sa.bindparam("protocol")
)
_SIDES = ("internal", "external")


def refuse(text: str) -> Exception:
    return bad_request(f"Bad port_forwarding request: {text}", "BadRequest")


def _ports(values: Row, *, must: bool) -> None:
    """Bring each side's two ways of naming ports into agreement."""
    for side in _SIDES:
        one, many = f"{side}_port", f"{side}_port_range"
        port, span = values.get(one), values.get(many)
        if span is None and port is None:
            if must or one in values or many in values:
                raise refuse(f"{one} or {many} is required.")
            continue
        if port is not None and span is not None and bounds(span) != (port, port):
            raise refuse(f"{one} and {many} contradict each other; give one of them.")
        first, last = bounds(span) if span is not None else (int(port or 0), int(port or 0))
        values[many] = f"{first}:{last}"
        values[one] = first if first == last else None


def _check(tx: Tx, floating_id: str, row: Row, own: str = "") -> None:
    """Refuse what can not be or is taken."""
    inside, outside = bounds(row["internal_port_range"]), bounds(row["external_port_range"])
    if inside[0] != inside[1] and inside[1] - inside[0] != outside[1] - outside[0]:
        raise refuse("internal_port_range: as many ports as in external_port_range, or just one.")
    socket = {"port": row["internal_port_id"], "ip": row["internal_ip_address"], "protocol": row["protocol"]}
    for side, have in (
        ("internal", tx.rows(_SAME_SOCKET, socket)),
        ("external", tx.rows(_SAME_FLOATING, {"floating": floating_id, "protocol": row["protocol"]})),
    ):
        low, high = bounds(row[f"{side}_port_range"])
        for id, span in have:
            first, last = bounds(span)
            if id != own and low <= last and first <= high:
                raise refuse(f"{side}_port_range: {row[f'{side}_port_range']} meets {span} of another forwarding.")


def _lead(call: Call, parent: Row, values: Row) -> str:
    """Check the internal port and fill in its address; the router that can forward."""
    tx, id = call.tx, values["internal_port_id"]
    look.lock(tx, Port, id)  # it must not go, or lose its address, meanwhile
    port = look.seen(call.cloud, tx, call.creds, Port, id)
    if port["project_id"] not in ("", None, parent["project_id"]) and not call.may("context_is_admin"):
        raise refuse(f"Port {id} belongs to a different project than the floating IP.")
    taken = floating_links.of_port(tx, id)
    ips = [ip for ip in look.addresses_of(tx, id) if ":" not in ip["ip_address"]]
    if taken:
        one = taken[0]
        text = f"internal_port_id: floating IP {one['floating_ip_address']} leads to {id}: take it off first."
        raise conflict(text, "PortHasBindingFloatingIP")
    if not ips:
        raise refuse(f"internal_port_id: {id} has no IPv4 address.")
    wanted = values.get("internal_ip_address")
    chosen = next((ip for ip in ips if wanted in (None, ip["ip_address"])), None)
    if chosen is None:
        have = ", ".join(ip["ip_address"] for ip in ips)
        raise refuse(f"internal_ip_address: port {id} has no {wanted}, only {have}.")
    values["internal_ip_address"] = chosen["ip_address"]
    router = floating.router_for(tx, chosen["subnet_id"], parent["floating_network_id"])
    if router is None:
        network = parent["floating_network_id"]
        raise refuse(f"internal_port_id: no router leads from {id} to network {network}; connect one.")
    if parent["router_id"] and parent["router_id"] != router:
        raise refuse(f"internal_port_id: {id} is not behind router {parent['router_id']} of this floating IP.")
    return router


def prepare(call: Call, parent: Row, values: Row) -> None:
    _ports(values, must=True)
    if parent["port_id"]:
        text = f"Cannot associate floating IP {parent['floating_ip_address']} ({parent['id']}) with port "
        text += f"{values['internal_port_id']} using fixed IP {values.get('internal_ip_address')}, as that floating IP "
        raise conflict(f"{text}already leads to port {parent['port_id']}.", "FloatingIPPortAlreadyAssociated")
    router = _lead(call, parent, values)
    _check(call.tx, parent["id"], values)
    if parent["router_id"] != router:
        allocate.set_columns(call.tx, FloatingIP, parent["id"], {"router_id": router, "status": "DOWN"})
    parent["router_id"] = router


def prepare_update(call: Call, parent: Row, before: Row, values: Row) -> None:
    _ports(values, must=False)
    after = {**before, **values}
    if after["internal_port_id"] != before["internal_port_id"]:
        after["internal_ip_address"] = values.get("internal_ip_address")
    if any(after[n] != before[n] for n in ("internal_port_id", "internal_ip_address")):
        _lead(call, parent, after)
        values["internal_ip_address"] = after["internal_ip_address"]
    _check(call.tx, parent["id"], after, before["id"])


def changed(call: Call, parent: Row, *_: Row) -> None:
    if parent["router_id"]:
        asks.router(call.tx, parent["router_id"])


def deleted(call: Call, parent: Row, row: Row) -> None:
    floating_links.forwarding_gone(call.tx, row)


def view(shown: Row) -> Row:
    """A forwarding as shown: a single port where there is one."""
    return {k: v for k, v in shown.items() if v is not None or k not in ("external_port", "internal_port")}


NESTED = Nested(
    cls=PortForwarding, parent=FloatingIP, link="floatingip_id", item="port_forwarding", items="port_forwardings",
    rule="floatingip_port_forwarding", prepare=prepare, created=changed, prepare_update=prepare_update,
    updated=changed, deleted=deleted, view=view,
)  # fmt: skip


def parent_rules(item: str, what: str) -> list[Rule]:
    """The four published rules of what lives below a parent: readers see, members change."""
    return [
        Rule(f"{verb}_{item}", f"({ADMIN}) or (role:{'reader' if verb == 'get' else 'member'} and "
             "rule:ext_parent_owner)", f"{verb.capitalize()} a {what}.", scopes=("project",))
        for verb in ("create", "get", "update", "delete")
    ]  # fmt: skip


FEATURE = Feature(
    kinds=(PortForwarding,),
    routes=NESTED.routes(),
    rules=parent_rules("floatingip_port_forwarding", "port forwarding"),
    quotas={"port_forwarding": 500},
    extensions={
        "floating-ip-port-forwarding": ("Floating IP Port Forwarding", "Ports of it lead to ports of the network.",
                                        "2018-01-19"),
        "floating-ip-port-forwarding-description": ("Floating IP Port Forwarding new attribute description",
                                                    "Port forwardings have a description.", "2019-11-01"),
        "floating-ip-port-forwarding-detail": ("Floating IP port forwarding detail",
                                               "Floating IPs show whole port forwardings.", "2022-05-06"),
        "floating-ip-port-forwarding-port-ranges": ("Floating IP Port Forwarding support port ranges",
                                                    "Whole ranges of ports are forwarded.", "2020-07-01"),
        "expose-port-forwarding-in-fip": ("Expose Floating IP port forwardings",
                                          "Floating IPs show their port forwardings.", "2018-06-28"),
        "floatingip-autodelete-internal": ("Autodelete floating IPs of internal networks",
                                           "Unused floating IPs go when their network is external no longer.",
                                           "2019-01-24"),
        "router-interface-fip": ("Router interface floating IP",
                                 "Floating IPs of external networks that routers have interfaces on.", "2016-06-13"),
    },
)  # fmt: skip
