"""Minimum bandwidth and packet rate: room on the host's own provider in Placement, taken by the ports that are there.

An operator who wants guarantees gives a compute host's provider inventories of NET_BW_EGR_KILOBIT_PER_SEC and the
like: what its uplinks carry. A server's port whose policy guarantees something takes that much as a consumer of its
own, when it is bound, and gives it back when it leaves; Compute puts servers only where their ports' room is. The sum
of guarantees on a host so never exceeds what it has. Packets are not told apart by it: hosts only limit (ovs_qos.py).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import sqlalchemy as sa

from nubila.core import hosts
from nubila.core.db import Reader, Tx
from nubila.core.faults import conflict
from nubila.services.network import qos_use
from nubila.services.network.kinds import Network
from nubila.services.network.kinds_port import Port
from nubila.services.placement import claims, reading
from nubila.services.placement.kinds import ALLOCATION

Row = dict[str, Any]
_P, _N = Port.table.c, Network.table.c
_POLICY = sa.select(_N.qos_policy_id).where(_N.id == sa.bindparam("network"))
_HELD = sa.select(ALLOCATION.c.consumer_id).where(ALLOCATION.c.consumer_id == sa.bindparam("port")).limit(1)
_PORTS = (
    sa.select(_P.qos_policy_id, _N.qos_policy_id.label("network_policy"))
    .join(Network.table, _N.id == _P.network_id)
    .where(_P.id.in_(sa.bindparam("ports", expanding=True)))
)
_BOUND = sa.select(Port.table).where(_P.bound_host != "", _P.device_owner.startswith("compute:")).order_by(_P.id)
_ON_NETWORK = _BOUND.where(_P.network_id == sa.bindparam("network"), _P.qos_policy_id.is_(None))
_OF_POLICY = _BOUND.join(Network.table, _N.id == _P.network_id).where(
    sa.or_(
        _P.qos_policy_id == sa.bindparam("policy"),
        sa.and_(_P.qos_policy_id.is_(None), _N.qos_policy_id == sa.bindparam("policy")),
    )
)
_EVERY = _BOUND.join(Network.table, _N.id == _P.network_id).add_columns(_N.qos_policy_id.label("network_policy"))


def amounts(reader: Reader, policy_ids: Iterable[str]) -> dict[str, int]:
    """What policies guarantee together, by resource class; one named twice counts twice."""
    wanted = list(policy_ids)
    said = qos_use.rules(reader, wanted)
    out: dict[str, int] = {}
    for id in wanted:
        for rule in said[id]:
            name = qos_use.RESOURCES.get((rule["type"], rule["direction"]))
            if name and rule["value"]:
                out[name] = out.get(name, 0) + int(rule["value"])
    return out


def needs(reader: Reader, port_ids: Iterable[str], network_ids: Iterable[str]) -> dict[str, int]:
    """What a server's ports will take of its host: those it is given, and those to be made on networks."""
    ports, networks = sorted(set(port_ids)), list(network_ids)
    policies = []
    if ports:
        policies += [own or net for own, net in reader.rows(_PORTS, {"ports": ports})]
    if networks:
        by_id = dict(reader.rows(sa.select(_N.id, _N.qos_policy_id).where(_N.id.in_(networks))))
        policies += [by_id.get(id) for id in networks]
    found = [id for id in policies if id]
    return amounts(reader, found) if found else {}


def settle(tx: Tx, port: Mapping[str, Any]) -> None:
    """Have the room a port holds be what its policy guarantees, where it is; 409 when its host has not that much."""
    wanted: dict[str, int] = {}
    if port["bound_host"] and str(port["device_owner"]).startswith("compute:"):
        policy = qos_use.effective(port, tx.scalar(_POLICY, {"network": port["network_id"]}))
        wanted = amounts(tx, [policy]) if policy else {}
    if not wanted:
        release(tx, str(port["id"]))
        return
    host = hosts.get(tx, port["bound_host"])
    assert host is not None  # bound_host is one of ours
    try:
        claims.claim(tx, port["id"], port["project_id"], "", {host["id"]: wanted}, type="PORT")
    except claims.NoRoom as e:
        text = f"Host {port['bound_host']} of port {port['id']} can not guarantee what the policy asks for: {e}"
        raise conflict(text, "QosPlacementAllocationConflict") from None


def network(tx: Tx, network_id: str) -> None:
    """A network's policy changed: every server's port there; 409 when one does not fit."""
    for port in tx.all(_ON_NETWORK, {"network": network_id}):
        settle(tx, port)


def policy(tx: Tx, policy_id: str) -> None:
    """What a policy guarantees changed: every server's port that has it; 409 when one does not fit."""
    for port in tx.all(_OF_POLICY, {"policy": policy_id}):
        settle(tx, port)


def release(tx: Tx, port_id: str) -> None:
    """Give back what a port holds; nothing is fine."""
    if tx.one(_HELD, {"port": port_id}) is not None:
        claims.release(tx, port_id)


def wrong(cloud: Any, reader: Reader) -> list[str]:
    """Invariant: ports hold exactly what their policies guarantee, where they are."""
    providers = {h["name"]: h["id"] for h in hosts.every(reader)}
    held = reading.held(reader, "PORT")
    out = []
    for port, network_policy in ((row, row.pop("network_policy")) for row in reader.all(_EVERY)):
        policy = qos_use.effective(port, network_policy)
        need = amounts(reader, [policy]) if policy else {}
        have = held.pop(port["id"], {})
        if have != ({providers.get(port["bound_host"], "?"): need} if need else {}):
            out.append(f"port {port['id']} on {port['bound_host']} holds {have} in placement, is guaranteed {need}")
    return out + [f"consumer {id} holds {have} in placement and is no bound port" for id, have in held.items()]
