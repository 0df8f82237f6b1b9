"""Minimum bandwidth and packet rate: room on the host's providers in Placement, held by what uses the ports.

What hosts have is in Placement (qos_offers.py puts it there). A server is placed where its ports' requests can be met,
and holds it all itself: Compute calls :func:`requests` and :func:`hold`. A port that is bound to a host without a
server of this cloud holds it in its own name. ``PORT_GUARANTEE`` says which part of a consumer's allocations is which
port's, so what is given back is what was taken, whatever its policy says by then. Everything changes together with the
port, in one transaction.

As in Neutron, a port of a server keeps what it was placed with: a policy that comes later changes how much of it, and
adds no new kind of guarantee, because nobody chooses a provider for that. Packets are not told apart by it: hosts only
limit (ovs_qos.py).
"""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from nubila.core import hosts
from nubila.core.db import Reader, Tx
from nubila.core.faults import conflict
from nubila.services.network import look, qos_use
from nubila.services.network.kinds import Network
from nubila.services.network.kinds_port import Port
from nubila.services.network.kinds_qos import QosPolicy
from nubila.services.network.tables import PORT_GUARANTEE
from nubila.services.placement import claims, reading, trees
from nubila.services.placement.combine import Group, Provider, candidates

Row = dict[str, Any]
Amounts = dict[str, dict[str, int]]  # provider id -> resource class -> how much
SERVER, PORT = "INSTANCE", "PORT"
"""Types of consumers: Compute's servers, and ports that are bound without one."""
NO_ROOM = "QosPlacementAllocationConflict"
"""Type of the fault when a port's host has not what it is guaranteed."""
CHOICES = 16
"""So many ways to serve all groups are tried on one host: they differ only when bridges share a physical network."""
_P, _N, _G = Port.table.c, Network.table.c, PORT_GUARANTEE.c
_NETWORK = sa.select(_N.qos_policy_id, _N.physical_network).where(_N.id == sa.bindparam("network"))
_MINE = sa.select(PORT_GUARANTEE).where(_G.port_id == sa.bindparam("port")).order_by(_G.resource_class)
_OF_PORTS = sa.select(_G.port_id, _G.group_id, _G.provider_id).where(
    _G.port_id.in_(sa.bindparam("ports", expanding=True))
)
_FORGET = sa.delete(PORT_GUARANTEE).where(_G.port_id == sa.bindparam("b_port"))
_SUMS = sa.select(_G.consumer_id, _G.provider_id, _G.resource_class, sa.func.sum(_G.used)).group_by(
    _G.consumer_id, _G.provider_id, _G.resource_class
)
_BOUND = sa.select(_P.id).where(_P.bound_host != "", _P.device_owner.startswith("compute:")).order_by(_P.id)
_ON_NETWORK = _BOUND.where(_P.network_id == sa.bindparam("network"), _P.qos_policy_id.is_(None))
_OF_POLICY = _BOUND.join(Network.table, _N.id == _P.network_id).where(
    sa.or_(
        _P.qos_policy_id == sa.bindparam("policy"),
        sa.and_(_P.qos_policy_id.is_(None), _N.qos_policy_id == sa.bindparam("policy")),
    )
)
_EVERY = (
    sa.select(Port.table, _N.qos_policy_id.label("network_policy"), _N.physical_network.label("physical"))
    .join(Network.table, _N.id == _P.network_id)
    .where(_P.bound_host != "", _P.device_owner.startswith("compute:"))
)
_ROOTS = sa.select(hosts.TABLE.c.name, hosts.TABLE.c.id)  # those given up by force too: guests may still be there


@dataclass(frozen=True, kw_only=True)
class Request:
    """What one port asks of its host. ``port_id`` "": the port is yet to be made on a network."""

    port_id: str
    groups: tuple[Row, ...]  # {id, required: [trait], resources: {class: amount}}


def kind_of(resource_class: str) -> str:
    """Which of a port's groups a resource class is of: bandwidth comes from a bridge, packet rate from the agent."""
    return "bandwidth" if resource_class.startswith("NET_BW_") else "packet rate"


# --- what ports ask for -----------------------------------------------------------------------------------------------


def _usable(groups: Iterable[Row]) -> tuple[Row, ...]:
    """Groups without what is guaranteed to be 0: nothing of that can be held."""
    out = []
    for group in groups:
        resources = {name: int(n) for name, n in group["resources"].items() if n}
        if resources:
            out.append({**group, "resources": resources})
    return tuple(out)


def asked(reader: Reader, port: Mapping[str, Any], network: tuple[str | None, str | None]) -> tuple[Row, ...]:
    """The groups of a port; ``network``: its network's policy and physical network."""
    policy = qos_use.effective(port, network[0])
    return _usable(qos_use.groups(port, network[1], qos_use.rules(reader, [policy])[policy])) if policy else ()


def _network(reader: Reader, id: str) -> tuple[str | None, str | None]:
    return next(iter((policy, physical) for policy, physical in reader.rows(_NETWORK, {"network": id})), (None, None))


def requests(reader: Reader, port_ids: Iterable[str], network_ids: Iterable[str]) -> list[Request]:
    """What a server's ports ask for: those it is given, and those to be made on networks; nothing for who asks none."""
    out = []
    for id in port_ids:
        port = look.row(reader, Port, id)
        if port is not None:
            groups = asked(reader, {**port, "device_owner": "compute:"}, _network(reader, port["network_id"]))
            out.append(Request(port_id=id, groups=groups))
    for id in network_ids:
        unborn = {"id": str(uuid.uuid4()), "qos_policy_id": None, "device_owner": "compute:", "vnic_type": "normal"}
        out.append(Request(port_id="", groups=asked(reader, unborn, _network(reader, id))))
    return [one for one in out if one.groups]


def choices(tree: Sequence[Provider], wanted: Sequence[Request]) -> list[dict[str, str]]:
    """The ways in which one host's tree can serve everything: group id -> provider id. Pure."""
    groups = [
        Group(
            suffix=one["id"], resources=one["resources"], traits=frozenset(one["required"]).issubset,
            forbids=lambda _: True, members=lambda _: True,
        )
        for request in wanted for one in request.groups
    ]  # fmt: skip
    together = [[g["id"] for g in request.groups] for request in wanted if len(request.groups) > 1]
    root = next((p.root for p in tree), "")
    found = candidates({root: tree}, groups, claims.fits, nested=True, subtrees=together, limit=CHOICES)
    return [{group: providers[0] for group, providers in one.mappings.items()} for one in found]


def shares(wanted: Iterable[Request], chosen: Mapping[str, str]) -> Amounts:
    """What existing ports take of the providers chosen; ports to be made take theirs when they are there."""
    rows = [row for one in wanted if one.port_id for row in _rows(one.port_id, "", one.groups, chosen)]
    return _sum(rows)


def _rows(port_id: str, consumer: str, groups: Iterable[Row], chosen: Mapping[str, str]) -> list[Row]:
    return [
        {"port_id": port_id, "resource_class": name, "group_id": group["id"], "provider_id": chosen[group["id"]],
         "consumer_id": consumer, "used": n}
        for group in groups for name, n in sorted(group["resources"].items())
    ]  # fmt: skip


def _sum(rows: Iterable[Mapping[str, Any]]) -> Amounts:
    out: Amounts = {}
    for row in rows:
        mine = out.setdefault(row["provider_id"], {})
        mine[row["resource_class"]] = mine.get(row["resource_class"], 0) + int(row["used"])
    return out


# --- taking and giving back -------------------------------------------------------------------------------------------


def hold(tx: Tx, server_id: str, wanted: Iterable[Request], chosen: Mapping[str, str]) -> None:
    """Note whose is what a server has just claimed for its existing ports, before they are bound."""
    for one in wanted:
        if one.port_id:
            release(tx, one.port_id)
            for row in _rows(one.port_id, server_id, one.groups, chosen):
                tx.insert(PORT_GUARANTEE, row)


def settle(tx: Tx, port: Mapping[str, Any], *, fresh: bool) -> None:
    """Have what a port holds be what it must.

    ``fresh``: its host or device changed, so providers are chosen anew. Otherwise its policy did. 409 when its host
    has not that much.
    """
    mine = tx.all(_MINE, {"port": port["id"]})
    if not port["bound_host"] or not str(port["device_owner"]).startswith("compute:"):
        if mine:
            release(tx, str(port["id"]))
        return
    network = _network(tx, port["network_id"])
    policy = qos_use.effective(port, network[0])
    if policy is None and not mine:
        return
    if policy is not None:
        look.lock(tx, QosPolicy, policy)  # who changes its rules now finds this port afterwards
    groups = asked(tx, port, network)
    server = _server(tx, port, mine, fresh)
    if server and not fresh:
        _adjust(tx, port, mine, groups, server)
    elif groups or mine:
        _choose(tx, port, mine, groups, server)


def _server(tx: Tx, port: Mapping[str, Any], mine: Sequence[Row], fresh: bool) -> str:
    """The server in whose name the port holds what it holds; "" = its own.

    Anybody may write any server's id into his port: only Compute (:func:`hold`) lets a port take room in the name of
    another project's server.
    """
    holder = str(mine[0]["consumer_id"]) if mine else ""
    if holder and not fresh:
        return "" if holder == port["id"] else holder
    device = str(port["device_id"] or "")
    if device and holder == device:
        return device
    return device if device and claims.owner(tx, device, SERVER) == port["project_id"] else ""


def _choose(tx: Tx, port: Mapping[str, Any], mine: Sequence[Row], groups: tuple[Row, ...], server: str) -> None:
    host = hosts.get(tx, port["bound_host"])
    assert host is not None  # bound_host is one of ours
    consumer = server or str(port["id"])
    tree = trees.one(tx, host["id"])
    held = {row["group_id"]: row["provider_id"] for row in mine}
    if {row["consumer_id"] for row in mine} <= {consumer} and set(held.values()) <= {p.id for p in tree}:
        same = set(held) == {g["id"] for g in groups}
        if same and _keys(mine) == _keys(_rows(str(port["id"]), consumer, groups, held)):
            return
    if mine:
        release(tx, str(port["id"]))
        tree = trees.one(tx, host["id"])
    if not groups:
        return
    found = choices(tree, [Request(port_id=str(port["id"]), groups=groups)])
    why = "its providers in Placement have not that much left, or none has the traits"
    for chosen in found:
        rows = _rows(str(port["id"]), consumer, groups, chosen)
        try:
            claims.shift(tx, consumer, port["project_id"], {}, _sum(rows), type=SERVER if server else PORT)
        except claims.NoRoom as e:
            why = str(e)
            continue
        for row in rows:
            tx.insert(PORT_GUARANTEE, row)
        return
    text = f"Host {port['bound_host']} of port {port['id']} can not guarantee what the policy asks for: {why}"
    raise conflict(text, NO_ROOM)


def _keys(rows: Iterable[Mapping[str, Any]]) -> set[tuple[Any, ...]]:
    return {(r["resource_class"], r["group_id"], r["provider_id"], int(r["used"])) for r in rows}


def _adjust(tx: Tx, port: Mapping[str, Any], mine: Sequence[Row], groups: Iterable[Row], server: str) -> None:
    """Another policy for a server's port: the providers stay, how much of them changes."""
    providers = {kind_of(row["resource_class"]): row["provider_id"] for row in mine}
    kept = [g for g in groups if kind_of(next(iter(g["resources"]))) in providers]
    chosen = {g["id"]: providers[kind_of(next(iter(g["resources"])))] for g in kept}
    rows = _rows(str(port["id"]), server, kept, chosen)
    if _keys(rows) == _keys(mine):
        return
    try:
        claims.shift(tx, server, port["project_id"], _sum(mine), _sum(rows))
    except claims.NoRoom as e:
        text = f"Host {port['bound_host']} of port {port['id']} can not guarantee what the policy asks for: {e}"
        raise conflict(text, "QosPlacementAllocationUpdateConflict") from None
    tx.execute(_FORGET, {"b_port": port["id"]})
    for row in rows:
        tx.insert(PORT_GUARANTEE, row)


def network(tx: Tx, network_id: str) -> None:
    """A network's policy changed: every server's port there; 409 when one does not fit."""
    _again(tx, [id for (id,) in tx.rows(_ON_NETWORK, {"network": network_id})])


def policy(tx: Tx, policy_id: str) -> None:
    """What a policy guarantees changed: every server's port that has it; 409 when one does not fit."""
    _again(tx, [id for (id,) in tx.rows(_OF_POLICY, {"policy": policy_id})])


def _again(tx: Tx, port_ids: Iterable[str]) -> None:
    for id in port_ids:
        look.lock(tx, Port, id)
        port = look.row(tx, Port, id)
        if port is not None:
            settle(tx, port, fresh=False)


def release(tx: Tx, port_id: str) -> None:
    """Give back what a port holds; nothing is fine."""
    mine = tx.all(_MINE, {"port": port_id})
    if mine:
        tx.execute(_FORGET, {"b_port": port_id})
        claims.shift(tx, mine[0]["consumer_id"], "", _sum(mine), {})


# --- showing and checking ---------------------------------------------------------------------------------------------


def allocations(reader: Reader, port_ids: Sequence[str]) -> dict[str, dict[str, str]]:
    """port id -> group id -> provider id, of the ports that hold something: ``allocation`` in ``binding:profile``."""
    out: dict[str, dict[str, str]] = {}
    for i in range(0, len(port_ids), 500):
        for port, group, provider in reader.rows(_OF_PORTS, {"ports": list(port_ids[i : i + 500])}):
            out.setdefault(port, {})[group] = provider
    return out


def present_ports(reader: Reader, ports: Iterable[Row]) -> None:
    """Add ``allocation`` to the ``profile`` of those ports of a page that hold something."""
    mine = [port for port in ports if port["resource_request"]]
    found = allocations(reader, [port["id"] for port in mine])
    for port in mine:
        if port["id"] in found:
            port["profile"] = {**(port["profile"] or {}), "allocation": found[port["id"]]}


def held(reader: Reader) -> dict[str, Amounts]:
    """consumer -> what ports say that it holds for them."""
    out: dict[str, Amounts] = {}
    for consumer, provider, name, used in reader.rows(_SUMS):
        out.setdefault(consumer, {}).setdefault(provider, {})[name] = int(used)
    return out


def wrong(cloud: Any, reader: Reader) -> list[str]:
    """Invariant: ports hold what their policies guarantee, where they are, and Placement says the same.

    What servers hold in all is Compute's invariant; it counts in what ports say here.
    """
    roots = dict(reader.rows(_ROOTS))
    root_of = {p.id: root for root, tree in trees.every(reader).items() for p in tree}
    servers = reading.held(reader, SERVER)
    kept: dict[str, list[Row]] = {}
    for row in reader.all(sa.select(PORT_GUARANTEE)):
        kept.setdefault(row["port_id"], []).append(row)
    out, owners = [], set()
    for port in reader.all(_EVERY):
        net = (port.pop("network_policy"), port.pop("physical"))
        mine, groups = kept.pop(port["id"], []), asked(reader, port, net)
        owners |= {row["consumer_id"] for row in mine}
        out += [f"port {port['id']} on {port['bound_host']} {what}" for what in _differ(port, mine, groups, servers)]
        if any(root_of.get(row["provider_id"]) != roots.get(port["bound_host"], "?") for row in mine):
            out.append(f"port {port['id']} holds room elsewhere than on {port['bound_host']}, where it is")
    out += [f"port {id} holds room in placement and is on no host" for id in kept]
    sums, alone = held(reader), reading.held(reader, PORT)
    for id in sorted((sums.keys() - servers.keys()) | alone.keys()):
        if alone.get(id, {}) != sums.get(id, {}):
            out.append(f"consumer {id} holds {alone.get(id, {})} in placement, its port says {sums.get(id, {})}")
    return out


def _differ(port: Row, mine: list[Row], groups: tuple[Row, ...], servers: Mapping[str, Any]) -> list[str]:
    own = all(row["consumer_id"] == port["id"] for row in mine) and str(port["device_id"]) not in servers
    have = {(r["group_id"], r["resource_class"], int(r["used"])) for r in mine}
    kinds = {kind_of(r["resource_class"]) for r in mine}
    need = {
        (g["id"], name, n) for g in groups for name, n in g["resources"].items() if own or kind_of(name) in kinds
    }  # fmt: skip
    out = [] if have == need else [f"holds {sorted(have)}, is guaranteed {sorted(need)}"]
    if len({row["consumer_id"] for row in mine}) > 1:
        out.append("holds room in several names")
    return out
