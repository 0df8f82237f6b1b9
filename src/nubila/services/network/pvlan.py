"""Private VLANs: ports of one network that must not reach each other (extension "pvlan").

A promiscuous port (routers and DHCP are that) reaches everybody, a community port its community and the promiscuous
ones, an isolated port the promiscuous ones alone. Hosts are told who is isolated or in a community with the network
(:class:`nubila.core.ports.Restricted`), so that a port's role costs each host a line and not each of its ports.
Source: Networking API reference, network attribute ``pvlan``, port attributes ``pvlan_type`` and ``pvlan_community``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import sqlalchemy as sa

from nubila.core.db import Reader, Tx
from nubila.core.faults import bad_request
from nubila.core.ports import Restricted
from nubila.services.network import asks, look
from nubila.services.network.feature import Feature
from nubila.services.network.kinds import Network
from nubila.services.network.kinds_port import Port

Row = dict[str, Any]
PROMISCUOUS, ISOLATED, COMMUNITY = "promiscuous", "isolated", "community"
_NAME = re.compile(r"[a-zA-Z_.][a-zA-Z_.0-9]{0,231}")
_P = Port.table.c
_RESTRICTED = (
    sa.select(_P.id, _P.mac_address, _P.allowed_address_pairs, _P.pvlan_community)
    .where(_P.network_id == sa.bindparam("network"), _P.pvlan_type.in_((ISOLATED, COMMUNITY)))
    .order_by(_P.id)
)
_OPEN = sa.select(_P.id).where(
    _P.network_id == sa.bindparam("network"), _P.port_security_enabled.is_(False),
    _P.device_owner.not_like("network:%"),
).limit(1)  # fmt: skip
_SET_ALL = (
    sa.update(Port.table)
    .where(_P.network_id == sa.bindparam("b_network"))
    .values(pvlan_type=sa.bindparam("b_type"), pvlan_community=sa.null())
)
_FIELDS = ("pvlan_type", "pvlan_community", "mac_address", "allowed_address_pairs")


def check_network(tx: Reader, net: Mapping[str, Any]) -> None:
    """400 when the network's ports could claim each other's addresses: then nobody could be kept apart."""
    if not net["pvlan"]:
        return
    open_port = tx.scalar(_OPEN, {"network": net["id"]})
    if not net["port_security_enabled"] or open_port:
        who = f"port {open_port}" if open_port else f"network {net['id']}"
        raise bad_request(f"pvlan needs port security, which {who} is without.", "PVLANNetworkPortSecurityDisabled")


def switched(tx: Tx, before: Row, after: Row) -> None:
    """The network became a private VLAN, or is one no more: every port is promiscuous, or nothing."""
    if bool(before["pvlan"]) != bool(after["pvlan"]):
        tx.execute(_SET_ALL, {"b_network": after["id"], "b_type": PROMISCUOUS if after["pvlan"] else None})
        asks.network(tx, after["id"])


def settle(values: Row, net: Mapping[str, Any], before: Mapping[str, Any] | None = None) -> None:
    """Bring the role in a port's new values to its final form; 400 for one that cannot be."""
    had: Mapping[str, Any] = before or {}
    after = {"pvlan_type": had.get("pvlan_type"), "pvlan_community": None, **values}
    kind, community = after["pvlan_type"], after["pvlan_community"]
    if not net["pvlan"]:
        if kind or community:
            text = f"pvlan_type and pvlan_community need a network with pvlan; network {net['id']} is without."
            raise bad_request(text, "PVLANNotEnabledOnNetwork")
        return
    guest = not str(after.get("device_owner", had.get("device_owner", ""))).startswith("network:")
    if guest and after.get("port_security_enabled", had.get("port_security_enabled")) is False:
        text = "A port of a network with pvlan cannot do without port security."
        raise bad_request(text, "PVLANPortSecurityDisabled")
    kind = kind or PROMISCUOUS
    if kind != COMMUNITY and community:
        text = f"pvlan_community is only for ports of pvlan_type community, not {kind}."
        raise bad_request(text, "PVLANCannotSetCommunityName")
    if kind == COMMUNITY:
        community = had.get("pvlan_community") if community is None else community
        if not community or not _NAME.fullmatch(community):
            text = "pvlan_community must be a name: a letter, '_' or '.', then up to 231 of these or digits."
            raise bad_request(f"Invalid input for {text}", "PVLANCommunityNameRequired")
    values["pvlan_type"], values["pvlan_community"] = kind, community


def change(tx: Reader, before: Mapping[str, Any], values: Row) -> None:
    """The same for a change, when it concerns the role."""
    asked = {"pvlan_type", "pvlan_community"} & values.keys()
    if asked or (before["pvlan_type"] and "port_security_enabled" in values):
        settle(values, look.need(tx, Network, before["network_id"]), before)


def followed(tx: Tx, before: Mapping[str, Any], after: Mapping[str, Any]) -> None:
    """A port came, changed or went ({} for what is not): its network's hosts learn who is kept apart."""
    roles = {before.get("pvlan_type"), after.get("pvlan_type")}
    if roles & {ISOLATED, COMMUNITY} and any(before.get(f) != after.get(f) for f in _FIELDS):
        asks.network(tx, str((after or before)["network_id"]))


def restricted(reader: Reader, net: Mapping[str, Any]) -> tuple[Restricted, ...]:
    """Who on a network is isolated or in a community."""
    if not net["pvlan"]:
        return ()
    return tuple(
        Restricted(
            device=f"tap{id[:11]}",
            macs=tuple(sorted({mac.lower(), *(p["mac_address"].lower() for p in pairs or () if p.get("mac_address"))})),
            community=community or "",
        )
        for id, mac, pairs, community in reader.rows(_RESTRICTED, {"network": net["id"]})
    )


FEATURE = Feature(extensions={"pvlan": ("Private VLAN", "Ports of one network kept apart.", "2026-02-03")})
