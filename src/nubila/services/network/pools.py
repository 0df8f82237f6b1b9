"""Subnet pools and address scopes: where subnets without a CIDR of their own get one."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa

from nubila.core import clock, quota
from nubila.core.call import Call
from nubila.core.db import Reader, Tx
from nubila.core.faults import bad_request, conflict
from nubila.core.query import ListQuery
from nubila.core.service import Hooks
from nubila.services.network import addresses, look, paging, rbac, tags
from nubila.services.network.kinds import AddressScope, Subnet, SubnetPool

Row = dict[str, Any]
_O, _S = SubnetPool.table.c, Subnet.table.c
_CUT = sa.select(_S.cidr, _S.project_id).where(_S.subnetpool_id == sa.bindparam("pool"))
_DEFAULTS = sa.select(SubnetPool.table).where(_O.is_default.is_(True), _O.ip_version == sa.bindparam("version"))
_SCOPED = sa.select(SubnetPool.table).where(_O.address_scope_id == sa.bindparam("scope"))
_POOLS = sa.select(SubnetPool.table).where(_O.id.in_(sa.bindparam("pools", expanding=True)))
_STRAYS = sa.select(_S.id).where(
    _S.network_id.in_(sa.select(_S.network_id).where(_S.subnetpool_id == sa.bindparam("pool"))),
    _S.ip_version == sa.bindparam("version"),
    sa.or_(_S.subnetpool_id.is_(None), _S.subnetpool_id != sa.bindparam("pool")),
).limit(1)  # fmt: skip
MIN_V4, MIN_V6, DEFAULT_V4, DEFAULT_V6 = 8, 64, 8, 64


def refuse(text: str, type: str = "InvalidInput") -> Exception:
    return bad_request(text, type)


def default_of(call: Call, version: int) -> Row | None:
    """The default pool of a family the caller can see."""
    for row in call.tx.all(_DEFAULTS, {"version": version}):
        if look.visible(call.cloud, call.creds, SubnetPool, row, call.tx):
            return dict(row)
    return None


def default(call: Call, version: int) -> Row:
    """The same; 400 when there is none."""
    found = default_of(call, version)
    if found is not None:
        return found
    raise refuse("Bad subnets request: no default subnetpool is defined.", "BadRequest")


def cut(call: Call, values: Row, pool_id: str) -> None:
    """Give a new subnet its CIDR from a pool: the one asked for, or the first free one of the length asked for."""
    look.lock(call.tx, SubnetPool, pool_id)
    pool = look.seen(call.cloud, call.tx, call.creds, SubnetPool, pool_id)
    given = values.get("ip_version")
    if given is not None and given != pool["ip_version"]:
        text = f"ip_version {given}: subnet pool {pool_id} holds IPv{pool['ip_version']}."
        raise refuse(f"Bad subnets request: {text}", "BadRequest")
    values["ip_version"], values["subnetpool_id"] = pool["ip_version"], pool_id
    rows = call.tx.rows(_CUT, {"pool": pool_id})
    used = [cidr for cidr, _ in rows]
    _check_affinity(call.tx, values["network_id"], pool)
    length = values.get("prefixlen")
    if values.get("cidr"):
        length = addresses.network(values["cidr"]).prefixlen
    length = pool["default_prefixlen"] if length is None else length
    if length < pool["min_prefixlen"]:
        text = f"prefixlen {length} is too short: pool {pool_id} gives /{pool['min_prefixlen']} at least."
        raise refuse(text, "MinPrefixSubnetAllocationError")
    if length > pool["max_prefixlen"]:
        text = f"prefixlen {length} is too long: pool {pool_id} gives /{pool['max_prefixlen']} at most."
        raise refuse(text, "MaxPrefixSubnetAllocationError")
    _check_quota(pool, values["project_id"], length, rows)
    if values.get("cidr"):
        inside = any(_within(values["cidr"], p) for p in pool["prefixes"])
        if not inside or any(addresses.overlap(values["cidr"], u) for u in used):
            text = f"cidr: subnet pool {pool_id} has not {values['cidr']} or gave it away; choose another."
            raise conflict(text, "SubnetAllocationError")
        return
    found = addresses.free_prefix(pool["prefixes"], used, length)
    if found is None:
        text = f"Subnet pool {pool_id} has no room for another /{length}: ask for a longer prefixlen or widen the pool."
        raise conflict(text, "SubnetAllocationError")
    values["cidr"] = found


def _check_affinity(reader: Reader, network_id: str, pool: Row | None, version: int = 0) -> None:
    """400 unless the network's subnets of that family come from the same pool, or the same address scope."""
    version = pool["ip_version"] if pool else version
    others = [s for s in look.subnets(reader, network_id) if s["ip_version"] == version]
    ids = sorted({s["subnetpool_id"] for s in others if s["subnetpool_id"]})
    if pool is None:
        if ids:
            raise _mixed_pools()
        return
    scopes = {p["address_scope_id"] for p in reader.all(_POOLS, {"pools": ids})} - {None} if ids else set()
    if scopes:
        if pool["address_scope_id"] not in scopes:
            raise _mixed_scopes()
    elif any(s["subnetpool_id"] != pool["id"] for s in others):
        raise _mixed_pools()


def without_pool(reader: Reader, network_id: str, version: int) -> None:
    """400 for a subnet of no pool on a network whose subnets of that family come from one."""
    _check_affinity(reader, network_id, None, version)


def with_delegation(reader: Reader, network_id: str, pool_id: str) -> None:
    """400 unless the prefixes of all the network's IPv6 subnets are delegated ones."""
    others = [s for s in look.subnets(reader, network_id) if s["ip_version"] == 6]
    ids = sorted({s["subnetpool_id"] for s in others if s["subnetpool_id"]})
    if ids and any(p["address_scope_id"] for p in reader.all(_POOLS, {"pools": ids})):
        raise _mixed_scopes()
    if any(s["subnetpool_id"] != pool_id for s in others):
        raise _mixed_pools()


def _mixed_pools() -> Exception:
    text = "subnetpool_id: the network's other subnets of this IP version have another pool or none; do as they do."
    return refuse(text, "NetworkSubnetPoolAffinityError")


def _mixed_scopes() -> Exception:
    text = "All subnets of a network within one address family must share the same address scope."
    return refuse(text, "NetworkAddressScopeAffinityError")


def _check_quota(pool: Row, project: str, length: int, rows: list[tuple[Any, ...]]) -> None:
    limit = pool["default_quota"]
    if limit is None or limit < 0:
        return
    unit = 32 if pool["ip_version"] == 4 else 64

    def size(prefixlen: int) -> int:
        return 1 << max(unit - prefixlen, 0)

    mine = sum(size(addresses.network(c).prefixlen) for c, owner in rows if owner == project)
    if mine + size(length) > limit:
        raise conflict("The pool's default_quota for this project is used up.", "SubnetPoolQuotaExceeded")


def _within(inner: str, outer: str) -> bool:
    a, b = addresses.network(inner), addresses.network(outer)
    return a.version == b.version and a.subnet_of(b)  # type: ignore[arg-type]  # same family checked


def _prefixes(given: Any) -> list[str]:
    texts = [given] if isinstance(given, str) else list(given)
    if not texts:
        raise refuse("Unspecified prefixes: a subnet pool needs at least one.", "SubnetPoolMissingPrefixes")
    try:
        parsed = [str(addresses.network(t)) for t in texts]
    except ValueError as e:
        raise refuse(f"Invalid input for prefixes: {e}.", "HTTPBadRequest") from None
    if len({addresses.network(p).version for p in parsed}) > 1:
        raise refuse("prefixes: a pool is either IPv4 or IPv6.", "PrefixVersionMismatch")
    return addresses.compact(parsed)


def _lengths(values: Row) -> None:
    four = values["ip_version"] == 4
    most = 32 if four else 128
    low = values.get("min_prefixlen")
    values["min_prefixlen"] = low = (MIN_V4 if four else MIN_V6) if low is None else low
    high = values.get("max_prefixlen")
    values["max_prefixlen"] = high = most if high is None else high
    length = values.get("default_prefixlen")
    values["default_prefixlen"] = length = low if length is None else length
    if low > most or high > most or length > most:
        raise refuse(
            f"Prefix lengths of an IPv{values['ip_version']} pool are at most {most}.", "IllegalSubnetPoolPrefixBounds"
        )
    if low > high or not low <= length <= high:
        text = f"Illegal prefix bounds: min_prefixlen={low}, default_prefixlen={length}, max_prefixlen={high}."
        raise refuse(text, "IllegalSubnetPoolPrefixBounds")


def _one_default(call: Call, row: Row) -> None:
    if row["is_default"]:
        for other in call.tx.all(_DEFAULTS, {"version": row["ip_version"]}):
            if other["id"] != row["id"]:
                text = f"is_default: subnet pool {other['id']} is the default of this IP version; change that first."
                raise refuse(text, "InvalidInput")


def _scope(call: Call, row: Row) -> None:
    scope_id = row.get("address_scope_id")
    if not scope_id:
        return
    scope = look.row(call.tx, AddressScope, scope_id)
    if scope is None or not look.visible(call.cloud, call.creds, AddressScope, scope, call.tx):
        raise look.missing(AddressScope, scope_id)
    if scope["ip_version"] != row["ip_version"]:
        text = f"Illegal subnetpool association: its IP version differs from address scope {scope_id}'s."
        raise refuse(text, "IllegalSubnetPoolIpVersionAssociationToAddressScope")
    if row["shared"] and not scope["shared"]:
        raise refuse("A shared subnetpool needs a shared address scope.", "IllegalSubnetPoolAssociationToAddressScope")
    if call.tx.one(_STRAYS, {"pool": row["id"], "version": row["ip_version"]}) is not None:
        raise _mixed_scopes()
    for other in call.tx.all(_SCOPED, {"scope": scope_id}):
        if other["id"] != row["id"] and any(
            addresses.overlap(a, b) for a in row["prefixes"] for b in other["prefixes"]
        ):
            text = f"Cannot associate with address scope {scope_id}: the prefixes overlap {other['id']}'s."
            raise conflict(text, "AddressScopePrefixConflict")


def prepare(call: Call, values: Row) -> None:
    values["prefixes"] = _prefixes(values["prefixes"])
    values["ip_version"] = addresses.network(values["prefixes"][0]).version
    _lengths(values)
    _scope(call, values)
    _one_default(call, values)
    values["tags"] = tags.clean(values["tags"])


def created(call: Call, row: Row) -> None:
    tags.store(call.tx, row["id"], row["tags"], fresh=True)


def _scope_owned(call: Call, before: Row) -> None:
    """400 for changes of a pool in an address scope of somebody else, who was asked when it was put there."""
    if not before["address_scope_id"] or call.may("context_is_admin"):
        return
    scope = look.row(call.tx, AddressScope, before["address_scope_id"])
    if scope is not None and scope["project_id"] != call.creds.project_id:
        text = f"Pool {before['id']} is in another project's address scope {scope['id']}: take it out first."
        raise refuse(text, "IllegalSubnetPoolUpdate")


def prepare_update(call: Call, before: Row, values: Row) -> None:
    look.check_revision(call, before)
    look.lock(call.tx, SubnetPool, before["id"])
    after = {**before, **values}
    _scope_owned(call, before)
    if "prefixes" in values:
        values["prefixes"] = after["prefixes"] = _prefixes(values["prefixes"])
        if addresses.network(after["prefixes"][0]).version != before["ip_version"]:
            raise refuse("The prefixes must keep the pool's IP version.", "PrefixVersionMismatch")
        for old in before["prefixes"]:
            if not any(_within(old, new) for new in after["prefixes"]):
                raise refuse(
                    f"prefixes: {old} is missing; a pool's prefixes only grow this way.",
                    "IllegalSubnetPoolPrefixUpdate",
                )
    _lengths(after)
    for name in ("min_prefixlen", "max_prefixlen", "default_prefixlen"):
        if name in values:
            values[name] = after[name]
    _scope(call, after)
    _one_default(call, after)


def deleting(call: Call, row: Row) -> None:
    look.lock(call.tx, SubnetPool, row["id"])
    if call.tx.rows(_CUT, {"pool": row["id"]}):
        raise refuse(
            f"Unable to delete subnet pool: Subnet pool {row['id']} has existing allocations.", "SubnetPoolDeleteError"
        )
    tags.forget(call.tx, row["id"])


def scope(call: Call, q: ListQuery) -> list[Any]:
    return paging.adapt(call, SubnetPool, q)


def _cut_by(reader: Reader, id: str) -> list[str]:
    return [project for _, project in reader.rows(_CUT, {"pool": id})]


HOOKS = rbac.shareable(SubnetPool, Hooks(
    target=look.own_project,
    prepare=prepare,
    created=created,
    prepare_update=prepare_update,
    deleting=deleting,
    scope=scope,
    own_filters=tags.FILTERS,
))  # fmt: skip


def _scope_closed(reader: Reader, pool: Row, target: str) -> str:
    scope = look.row(reader, AddressScope, pool["address_scope_id"]) if pool["address_scope_id"] else None
    open_ = scope is None or target == scope["project_id"] or rbac.may_use(reader, target, AddressScope, scope)
    return "" if open_ else "the target project does not have access to the associated address scope."


SHAREABLE = rbac.Shareable(kind=SubnetPool, uses={rbac.SHARED: _cut_by}, why_not=_scope_closed)


# --- address scopes ---------------------------------------------------------------------------------------------------


def scope_prepare(call: Call, values: Row) -> None:
    if values["ip_version"] not in (4, 6):
        raise refuse(f"Invalid input for ip_version: {values['ip_version']} is not one of 4 and 6.", "HTTPBadRequest")


def scope_update(call: Call, before: Row, values: Row) -> None:
    if before["shared"] and values.get("shared") is False:
        raise refuse(
            f"shared: address scope {before['id']} stays shared for good.",
            "AddressScopeUpdateError",
        )


def scope_deleting(call: Call, row: Row) -> None:
    if call.tx.all(_SCOPED, {"scope": row["id"]}):
        text = f"Subnet pools belong to address scope {row['id']}: take them out first."
        raise conflict(text, "AddressScopeInUse")


def scope_scope(call: Call, q: ListQuery) -> list[Any]:
    return paging.adapt(call, AddressScope, q)


def _scoped_by(reader: Reader, id: str) -> list[str]:
    return [pool["project_id"] for pool in reader.all(_SCOPED, {"scope": id})]


SCOPE_HOOKS = rbac.shareable(AddressScope, Hooks(
    scope=scope_scope,
    target=look.own_project,
    prepare=scope_prepare,
    prepare_update=scope_update,
    deleting=scope_deleting,
))  # fmt: skip
SCOPE_SHAREABLE = rbac.Shareable(kind=AddressScope, uses={rbac.SHARED: _scoped_by})


def insert(tx: Tx, values: Row) -> Row:
    """Make a pool for the cloud itself (bootstrap)."""
    now = clock.now()
    row: Row = {
        "id": clock.new_id(), "project_id": "", "description": "", "created_at": now, "updated_at": now,
        "revision_number": 1, "name": "", "min_prefixlen": None, "max_prefixlen": None, "default_prefixlen": None,
        "default_quota": None, "shared": False, "is_default": False, "address_scope_id": None, "tags": [], **values,
    }  # fmt: skip
    row["prefixes"] = _prefixes(row["prefixes"])
    row["ip_version"] = addresses.network(row["prefixes"][0]).version
    _lengths(row)
    if row["project_id"]:
        quota.count(tx, row["project_id"], {"subnetpool": 1})
    tx.insert(SubnetPool.table, row)
    if row["shared"]:
        rbac.grant(tx, SubnetPool, row, rbac.SHARED)
    return row
