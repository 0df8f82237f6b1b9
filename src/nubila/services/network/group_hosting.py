"""Security groups and the addresses their rules refer to, as hosts are told: each once per host that needs it.

Host kinds "security_group" (the rules of a group with a port there) and "address_set" (the members of a security group,
or the addresses of an address group, that some rule there names; the id is the group's). Controller kinds with the
shard "": "security_group" tells the hosts of a group that its rules changed, "group_members" tells the hosts that need
a set that its addresses changed. Ports carry only the ids of their groups.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import sqlalchemy as sa

from nubila.core import clock
from nubila.core.cloud import Cloud
from nubila.core.db import Reader, Store, Tx
from nubila.core.ports import AddressSetSpec, RuleSpec, SecurityGroupSpec
from nubila.core.service import HostItem
from nubila.core.work import Item
from nubila.services.network import addresses, asks
from nubila.services.network.kinds_port import Port, SecurityGroupRule
from nubila.services.network.kinds_security import AddressGroup
from nubila.services.network.tables import IP_ALLOCATION, PORT_GROUP

Row = dict[str, Any]
SMALL_SET, PAUSE_PER_ADDRESS_S, MAX_PAUSE_S = 64, 0.001, 5.0
_P, _A, _G, _M = Port.table.c, IP_ALLOCATION.c, SecurityGroupRule.table.c, PORT_GROUP.c
_GUEST = _P.device_owner.not_like("network:%")
_HERE = (
    sa.select(_M.security_group_id)
    .join(Port.table, _P.id == _M.port_id)
    .where(_P.bound_host == sa.bindparam("host"), _GUEST)
)
_IS_HERE = _HERE.where(_M.security_group_id == sa.bindparam("group")).limit(1)
_ON_HOST = _HERE.distinct()
_RULES = (
    sa.select(SecurityGroupRule.table)
    .where(_G.security_group_id == sa.bindparam("group"))
    .order_by(_G.created_at, _G.id)
)
_NAMED_HERE = (
    sa.select(_G.direction)
    .where(
        sa.or_(_G.remote_group_id == sa.bindparam("set"), _G.remote_address_group_id == sa.bindparam("set")),
        _G.security_group_id.in_(_HERE),
    )
    .distinct()
)
_SETS_ON_HOST = sa.select(_G.remote_group_id, _G.remote_address_group_id).where(
    sa.or_(_G.remote_group_id.is_not(None), _G.remote_address_group_id.is_not(None)), _G.security_group_id.in_(_HERE)
)  # fmt: skip
_MEMBERS = (
    sa.select(_A.ip_address)
    .join(PORT_GROUP, _M.port_id == _A.port_id)
    .where(_M.security_group_id == sa.bindparam("set"))
)
_MEMBER_PAIRS = (
    sa.select(_P.allowed_address_pairs)
    .join(PORT_GROUP, _M.port_id == _P.id)
    .where(_M.security_group_id == sa.bindparam("set"))
)
_LISTED = sa.select(AddressGroup.table.c.addresses).where(AddressGroup.table.c.id == sa.bindparam("set"))
_SIZE = sa.select(sa.func.count()).where(_M.security_group_id == sa.bindparam("set"))


# --- groups -----------------------------------------------------------------------------------------------------------


def describe_group(cloud: Cloud, reader: Reader, id: str, host: str) -> SecurityGroupSpec | None:
    """The rules of a group that has a guest's port on the host."""
    if reader.one(_IS_HERE, {"group": id, "host": host}) is None:
        return None
    rules = dict.fromkeys(
        RuleSpec(
            direction=r["direction"],
            ethertype=r["ethertype"],
            protocol=r["protocol"],
            port_min=r["port_range_min"],
            port_max=r["port_range_max"],
            remote=(r["normalized_cidr"],) if r["normalized_cidr"] else None,
            remote_set=r["remote_group_id"] or r["remote_address_group_id"],
        )
        for r in reader.all(_RULES, {"group": id})
    )
    return SecurityGroupSpec(id=id, rules=tuple(rules))


def groups_on(cloud: Cloud, reader: Reader, host: str) -> list[str]:
    """Every group with a guest's port on the host."""
    return sorted(id for (id,) in reader.rows(_ON_HOST, {"host": host}))


def group_item(cloud: Cloud, store: Store, item: Item) -> None:
    """Reconciler "security_group": the rules of a group changed; its hosts look again, its ports need not."""
    with store.write(item) as tx:
        found = asks.group_hosts(tx, item.id)
        for host in found:
            asks.groups_at(tx, [item.id], host)
        tx.settle(f"{len(found)} hosts were told")


# --- sets -------------------------------------------------------------------------------------------------------------


def describe_set(cloud: Cloud, reader: Reader, id: str, host: str) -> AddressSetSpec | None:
    """The addresses behind a group's id, where a rule of some group on the host names it."""
    directions = sorted(direction for (direction,) in reader.rows(_NAMED_HERE, {"set": id, "host": host}))
    if not directions:
        return None
    return AddressSetSpec(id=id, addresses=tuple(_addresses(cloud, reader, id)), directions=tuple(directions))


def _addresses(cloud: Cloud, reader: Reader, id: str) -> list[str]:
    """An address group's addresses, or the addresses that a security group's ports have and may send from."""
    listed = reader.one(_LISTED, {"set": id})
    if listed is not None:
        return _compact(cloud, id, set(listed["addresses"] or ()))
    found = {ip for (ip,) in reader.rows(_MEMBERS, {"set": id})}
    for (pairs,) in reader.rows(_MEMBER_PAIRS, {"set": id}):
        found |= {pair["ip_address"] for pair in pairs or ()}
    return _compact(cloud, id, found)


def _compact(cloud: Cloud, id: str, cidrs: set[str]) -> list[str]:
    """The addresses in few CIDRs; worked out once for all the hosts that are told about one change."""
    known: dict[str, tuple[set[str], list[str]]] = cloud.memory.setdefault("network group members", {})
    have = known.get(id)
    if have is not None and have[0] == cidrs:
        return have[1]
    if len(known) > 1000:
        known.clear()
    done = addresses.compact(cidrs)
    known[id] = (cidrs, done)
    return done


def sets_on(cloud: Cloud, reader: Reader, host: str) -> list[str]:
    """Every set that a rule on the host names."""
    return sorted({one for pair in reader.rows(_SETS_ON_HOST, {"host": host}) for one in pair if one})


def members_item(cloud: Cloud, store: Store, item: Item) -> None:
    """Reconciler "group_members": the addresses behind a group's id changed; the hosts that need them look again.

    A large group that changes all the time (a project starting a thousand servers) is passed on once in a while, not at
    every change: each time all its addresses are collected again.
    """
    told: dict[str, float] = cloud.memory.setdefault("network groups told", {})
    with store.write(item) as tx:
        size = int(tx.scalar(_SIZE, {"set": item.id}) or 0)
        pause = min(size * PAUSE_PER_ADDRESS_S, MAX_PAUSE_S) if size > SMALL_SET else 0.0
        wait = told.get(item.id, -MAX_PAUSE_S) + pause - clock.monotonic()
        if wait > 0:
            tx.settle("changes of a large group are passed on together", again=wait)
            return
        found = asks.set_hosts(tx, item.id)
        for host in found:
            tx.ask("address_set", item.id, host)
        tx.settle(f"{len(found)} hosts were told")
    if pause:
        told[item.id] = clock.monotonic()
        if len(told) > 10_000:
            told.clear()


def _observe(cloud: Cloud, tx: Tx, id: str, host: str, observed: Mapping[str, Any]) -> str:
    """Nothing of a group shows what hosts made of it; only the note does."""
    return str(observed.get("fault") or "") or str(observed.get("status", ""))


HOST_ITEMS = {
    "address_set": HostItem(describe=describe_set, observe=_observe, every=sets_on, order=1),
    "security_group": HostItem(describe=describe_group, observe=_observe, every=groups_on, order=1),
}
RECONCILERS = {"security_group": group_item, "group_members": members_item}
