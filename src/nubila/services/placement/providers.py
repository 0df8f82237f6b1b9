"""Resource providers and what belongs to one: inventories, usages, aggregates, traits, allocations."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from typing import Any

import sqlalchemy as sa

from nubila.core import clock
from nubila.core.call import Call, Reply, Route, takes
from nubila.core.db import Conflict, Reader
from nubila.core.faults import Fault, bad_request
from nubila.core.gates import OPEN, Gate, since
from nubila.core.types import is_uuid
from nubila.services.placement import claims, reading
from nubila.services.placement.claims import INT_MAX
from nubila.services.placement.kinds import (
    ALLOCATION,
    CONSUMER,
    INVENTORY,
    PROVIDER,
    PROVIDER_AGGREGATE,
    PROVIDER_TRAIT,
)
from nubila.services.placement.wire import (
    CONCURRENT,
    DUPLICATE,
    IN_USE,
    NAME,
    PARENT,
    PROVIDER_IN_USE,
    UUID,
    MemberWish,
    Row,
    TraitWish,
    answer,
    body,
    known_class,
    obj,
    provider,
    query,
    resources,
    same_generation,
    traits,
)

_AGGREGATES = sa.select(PROVIDER_AGGREGATE.c.provider_id, PROVIDER_AGGREGATE.c.aggregate_id)
_CHILDREN = sa.select(PROVIDER).where(PROVIDER.c.parent_id == sa.bindparam("id"))
_USED = (
    sa.select(ALLOCATION.c.resource_class, sa.func.sum(ALLOCATION.c.used))
    .where(ALLOCATION.c.provider_id == sa.bindparam("id"))
    .group_by(ALLOCATION.c.resource_class)
)


# --- the provider itself ----------------------------------------------------------------------------------------------


def view(call: Call, row: Mapping[str, Any]) -> Row:
    """A provider on the wire."""
    url = f"{_prefix(call)}/resource_providers/{row['id']}"
    rels = ["inventories", "usages"]
    rels += ["aggregates"] if call.version >= (1, 1) else []
    rels += ["traits"] if call.version >= (1, 6) else []
    rels += ["allocations"] if call.version >= (1, 11) else []
    out: Row = {
        "uuid": row["id"], "name": row["name"], "generation": row["generation"],
        "links": [{"rel": "self", "href": url}, *({"rel": r, "href": f"{url}/{r}"} for r in rels)],
    }  # fmt: skip
    if call.version >= (1, 14):
        out |= {"parent_provider_uuid": row["parent_id"], "root_provider_uuid": row["root_id"]}
    return out


def _prefix(call: Call) -> str:
    """The path of the service, as links in this API are without host."""
    return "/" + call.base.split("://", 1)[-1].partition("/")[2] if "/" in call.base.split("://", 1)[-1] else ""


def aggregates_by_provider(reader: Reader) -> dict[str, set[str]]:
    """provider id -> aggregates it is in."""
    out: dict[str, set[str]] = {}
    for id, aggregate in reader.rows(_AGGREGATES):
        out.setdefault(id, set()).add(aggregate)
    return out


def index(call: Call) -> Reply:
    """List resource providers."""
    v = call.version
    known = ["name", "uuid"] + (["member_of"] if v >= (1, 3) else []) + (["resources"] if v >= (1, 4) else [])
    known += (["in_tree"] if v >= (1, 14) else []) + (["required"] if v >= (1, 18) else [])
    repeated = (["member_of"] if v >= (1, 24) else []) + (["required"] if v >= (1, 39) else [])
    q = query(call, known, repeated)
    statement = sa.select(PROVIDER).order_by(PROVIDER.c.created_at, PROVIDER.c.id)
    if "name" in q:
        statement = statement.where(PROVIDER.c.name == q["name"])
    for key in ("uuid", "in_tree"):
        if key in q and not is_uuid(q[key]):
            raise bad_request(f"Invalid query string parameters: {key}: '{q[key]}' is not a UUID.")
    if "uuid" in q:
        statement = statement.where(PROVIDER.c.id == q["uuid"])
    if "in_tree" in q:
        root = call.tx.scalar(sa.select(PROVIDER.c.root_id).where(PROVIDER.c.id == q["in_tree"]))
        statement = statement.where(PROVIDER.c.root_id == (root or ""))
    found = call.tx.all(statement)
    found = _member_filter(call, found)
    if "resources" in q:
        need, room = resources(call.tx, q["resources"]), claims.rooms(call.tx)
        found = [
            p for p in found
            if all(n in room.get(p["id"], {}) and claims.fits(room[p["id"]][n], a) for n, a in need.items())
        ]  # fmt: skip
    return answer(call, {"resource_providers": [view(call, p) for p in found]})


def _member_filter(call: Call, found: list[Row]) -> list[Row]:
    members, wanted, known = MemberWish(), TraitWish(), set[str]()
    for key, value in call.query:
        if key == "member_of":
            members.add(call, value)
        elif key == "required":
            known = known or traits(call.tx)
            wanted.add(call, value, known)
    if members.groups or members.none:
        have = aggregates_by_provider(call.tx)
        found = [p for p in found if members.holds(have.get(p["id"], set()))]
    if known:
        have = reading.traits_by_provider(call.tx)
        found = [p for p in found if wanted.holds(have.get(p["id"], set()))]
    return found


def _schema(call: Call, create: bool) -> Row:
    inner: Row = {"name": {"type": "string", "minLength": 1, "maxLength": 200}}
    if create:
        inner["uuid"] = {"type": "string", "pattern": UUID}
    if call.version >= (1, 14):
        inner["parent_provider_uuid"] = {"anyOf": [{"type": "string", "pattern": UUID}, {"type": "null"}]}
    return obj(inner, ["name"])


def create(call: Call) -> Reply:
    """Create a resource provider."""
    given = body(call, _schema(call, True))
    id = _dashed(given.get("uuid") or clock.new_id())
    parent = given.get("parent_provider_uuid")
    if parent == id:
        raise bad_request("parent_provider_uuid: a provider is not its own parent.")
    above = _parent(call, parent)
    now = clock.now()
    row = {
        "id": id, "name": given["name"], "generation": 0, "parent_id": parent,
        "root_id": above["root_id"] if above else id,
        "created_at": now, "updated_at": now,
    }  # fmt: skip
    try:
        call.tx.insert(PROVIDER, row)
    except Conflict as e:
        what = f"name: {row['name']}" if "name" in e.constraint else f"uuid: {id}"
        raise Fault(409, f"Conflicting resource provider {what} already exists.", DUPLICATE) from None
    where = {"Location": f"{call.base}/resource_providers/{id}"}
    return answer(call, view(call, row), 200, where) if call.version >= (1, 20) else Reply(None, 201, where)


def _dashed(text: str) -> str:
    return str(uuid.UUID(text))


def _parent(call: Call, id: str | None) -> Row | None:
    if id is None:
        return None
    row = call.tx.one(sa.select(PROVIDER).where(PROVIDER.c.id == id))
    if row is None:
        raise bad_request(f"parent provider {id} does not exist: create it first.")
    return dict(row)


def show(call: Call) -> Reply:
    """Show a resource provider."""
    return answer(call, view(call, provider(call)))


def update(call: Call) -> Reply:
    """Rename a resource provider or put it below another."""
    row = provider(call)
    given = body(call, _schema(call, False))
    changes: Row = {"name": given["name"], "updated_at": clock.now()}
    if "parent_provider_uuid" in given and given["parent_provider_uuid"] != row["parent_id"]:
        if row["parent_id"] is not None and call.version < (1, 37):
            raise bad_request("Un-parenting or re-parenting a provider is not allowed before version 1.37.")
        changes |= _move(call, row, given["parent_provider_uuid"])
    try:
        call.tx.execute(sa.update(PROVIDER).where(PROVIDER.c.id == row["id"]).values(**changes))
    except Conflict:
        raise Fault(409, f"Conflicting resource provider {given['name']} already exists.", DUPLICATE) from None
    return answer(call, view(call, {**row, **changes}))


def _move(call: Call, row: Row, parent: str | None) -> Row:
    """Give the provider and everything below it a new root."""
    above = _parent(call, parent)
    below, todo = [row["id"]], [row["id"]]
    while todo:
        kids = [k["id"] for k in call.tx.all(_CHILDREN, {"id": todo.pop()})]
        below += kids
        todo += kids
    if parent in below:
        raise bad_request("parent_provider_uuid: the parent is below this provider already.")
    root = above["root_id"] if above else row["id"]
    call.tx.execute(sa.update(PROVIDER).where(PROVIDER.c.id.in_(below)).values(root_id=root))
    return {"parent_id": parent, "root_id": root}


def delete(call: Call) -> Reply:
    """Delete a resource provider that nobody uses."""
    row = provider(call)
    if call.tx.rows(_USED, {"id": row["id"]}):
        raise Fault(409, f"Unable to delete resource provider {row['id']}: it has allocations.", PROVIDER_IN_USE)
    if call.tx.one(_CHILDREN, {"id": row["id"]}):
        raise Fault(409, f"Resource provider {row['id']} has children: delete them first.", PARENT)
    for table in (INVENTORY, PROVIDER_TRAIT, PROVIDER_AGGREGATE):
        call.tx.execute(sa.delete(table).where(table.c.provider_id == row["id"]))
    call.tx.execute(sa.delete(PROVIDER).where(PROVIDER.c.id == row["id"]))
    return Reply(None, 204)


# --- inventories ------------------------------------------------------------------------------------------------------

_FIELDS = {
    "total": {"type": "integer", "minimum": 1, "maximum": INT_MAX},
    "reserved": {"type": "integer", "minimum": 0, "maximum": INT_MAX},
    "min_unit": {"type": "integer", "minimum": 1, "maximum": INT_MAX},
    "max_unit": {"type": "integer", "minimum": 1, "maximum": INT_MAX},
    "step_size": {"type": "integer", "minimum": 1, "maximum": INT_MAX},
    "allocation_ratio": {"type": "number", "minimum": 0, "maximum": 3.40282e38},
}
_GENERATION = {"resource_provider_generation": {"type": "integer"}}
_DEFAULTS = {"reserved": 0, "min_unit": 1, "max_unit": INT_MAX, "step_size": 1, "allocation_ratio": 1.0}
ONE = obj({**_GENERATION, **_FIELDS}, ["resource_provider_generation", "total"])
POST_ONE = obj(
    {**_GENERATION, **_FIELDS, "resource_class": {"type": "string", "pattern": NAME}}, ["resource_class", "total"]
)
ALL = obj(
    {
        **_GENERATION,
        "inventories": {
            "type": "object", "patternProperties": {NAME: obj(_FIELDS, ["total"])}, "additionalProperties": False,
        },
    },
    ["resource_provider_generation", "inventories"],
)  # fmt: skip


def _shown(row: Mapping[str, Any]) -> Row:
    return {name: row[name] for name in _FIELDS}


def _full(given: Mapping[str, Any]) -> Row:
    return {**_DEFAULTS, **{k: v for k, v in given.items() if k in _FIELDS}}


def _usable(call: Call, name: str, it: Mapping[str, Any]) -> None:
    """400 when nothing could ever be taken from the inventory."""
    if not known_class(call.tx, name):
        raise bad_request(f"Unknown resource class in inventory: No such resource class {name}.")
    left = claims.capacity(it)
    if left < 0 or (left == 0 and call.version < (1, 26)):
        raise bad_request(f"Inventory of {name}: reserved takes all of total or more.")


def inventories(call: Call) -> Reply:
    """List a provider's inventories."""
    row = provider(call)
    found = claims.room(call.tx, row["id"])
    return answer(call, {
        "resource_provider_generation": row["generation"], "inventories": {n: _shown(i) for n, i in found.items()},
    })  # fmt: skip


def _put(call: Call, row: Row, name: str, it: Row, known: bool) -> None:
    if known:
        call.tx.execute(
            sa.update(INVENTORY)
            .where(INVENTORY.c.provider_id == row["id"], INVENTORY.c.resource_class == name)
            .values(**it)
        )
    else:
        call.tx.insert(INVENTORY, {"provider_id": row["id"], "resource_class": name, **it})


def _begin(call: Call, row: Row, generation: int | None = None) -> Row:
    """Lock the provider, compare generations, raise its own by one."""
    if generation is not None:
        same_generation(row, generation)
    claims.bump(call.tx, row["id"])
    now = provider(call, row["id"])
    if now["generation"] != row["generation"] + 1:
        raise Fault(409, "Update conflict: another request changed this provider; read it and try again.", CONCURRENT)
    return now


@takes(ALL)
def set_inventories(call: Call) -> Reply:
    """Replace all inventories of a provider."""
    row, wanted = replace_inventories(call, call.params["uuid"], body(call, ALL))
    return answer(call, {"resource_provider_generation": row["generation"], "inventories": wanted})


def replace_inventories(call: Call, id: str, given: Mapping[str, Any]) -> tuple[Row, dict[str, Row]]:
    """Make a provider have exactly these inventories; returns its row and what they are now."""
    row = provider(call, id)
    row = _begin(call, row, given["resource_provider_generation"])
    have = claims.room(call.tx, row["id"])
    wanted = {name: _full(it) for name, it in given["inventories"].items()}
    for name, it in wanted.items():
        _usable(call, name, it)
    for name, it in have.items():
        if name not in wanted:
            if it["used"]:
                raise Fault(409, f"Inventory of {name}: allocations use it on provider {row['id']}.", IN_USE)
            _drop(call, row, name)
    for name, it in wanted.items():
        _put(call, row, name, it, name in have)
    return row, wanted


def _drop(call: Call, row: Row, name: str) -> None:
    call.tx.execute(
        sa.delete(INVENTORY).where(INVENTORY.c.provider_id == row["id"], INVENTORY.c.resource_class == name)
    )


@takes(POST_ONE)
def add_inventory(call: Call) -> Reply:
    """Add one inventory to a provider."""
    row = provider(call)
    given = body(call, POST_ONE)
    name, it = given["resource_class"], _full(given)
    _usable(call, name, it)
    if name in claims.room(call.tx, row["id"]):
        raise Fault(409, f"Update conflict: inventory of {name} exists already.", CONCURRENT)
    row = _begin(call, row, given.get("resource_provider_generation"))
    _put(call, row, name, it, False)
    where = {"Location": f"{call.base}/resource_providers/{row['id']}/inventories/{name}"}
    return answer(call, {**it, "resource_provider_generation": row["generation"]}, 201, where)


def delete_inventories(call: Call) -> Reply:
    """Delete all inventories of a provider."""
    row = provider(call)
    if call.tx.rows(_USED, {"id": row["id"]}):
        raise Fault(409, f"Allocations use the inventory of resource provider {row['id']}.", IN_USE)
    _begin(call, row)
    call.tx.execute(sa.delete(INVENTORY).where(INVENTORY.c.provider_id == row["id"]))
    return Reply(None, 204)


def _inventory(call: Call, row: Row) -> Row:
    it = claims.room(call.tx, row["id"]).get(call.params["resource_class"])
    if it is None:
        raise Fault(404, f"No inventory of class {call.params['resource_class']} for {row['id']}")
    return it


def inventory(call: Call) -> Reply:
    """Show one inventory of a provider."""
    row = provider(call)
    return answer(call, {**_shown(_inventory(call, row)), "resource_provider_generation": row["generation"]})


@takes(ONE)
def set_inventory(call: Call) -> Reply:
    """Replace one inventory of a provider."""
    row = provider(call)
    given = body(call, ONE)
    name, it = call.params["resource_class"], _full(given)
    _inventory_for_update(call, row)
    _usable(call, name, it)
    row = _begin(call, row, given["resource_provider_generation"])
    _put(call, row, name, it, True)
    return answer(call, {**it, "resource_provider_generation": row["generation"]})


def _inventory_for_update(call: Call, row: Row) -> None:
    try:
        _inventory(call, row)
    except Fault as e:
        raise bad_request(e.message) from None


def delete_inventory(call: Call) -> Reply:
    """Delete one inventory of a provider."""
    row = provider(call)
    if _inventory(call, row)["used"]:
        raise Fault(409, f"Allocations use the inventory of {call.params['resource_class']}.", CONCURRENT)
    _begin(call, row)
    _drop(call, row, call.params["resource_class"])
    return Reply(None, 204)


# --- usages, allocations ----------------------------------------------------------------------------------------------


def usages(call: Call) -> Reply:
    """Sum up what is used of a provider."""
    row = provider(call)
    used = {n: i["used"] for n, i in claims.room(call.tx, row["id"]).items()}
    return answer(call, {"resource_provider_generation": row["generation"], "usages": used})


_HELD = (
    sa.select(ALLOCATION.c.consumer_id, ALLOCATION.c.resource_class, ALLOCATION.c.used, CONSUMER.c.generation)
    .join(CONSUMER, CONSUMER.c.id == ALLOCATION.c.consumer_id)
    .where(ALLOCATION.c.provider_id == sa.bindparam("id"))
)


def allocations(call: Call) -> Reply:
    """List who uses a provider."""
    row = provider(call)
    out: Row = {}
    for consumer, name, used, generation in call.tx.rows(_HELD, {"id": row["id"]}):
        one = out.setdefault(consumer, {"resources": {}})
        one["resources"][name] = used
        if call.version >= (1, 28):
            one["consumer_generation"] = generation
    return answer(call, {"allocations": out, "resource_provider_generation": row["generation"]})


# --- aggregates, traits -----------------------------------------------------------------------------------------------

_LIST = {"type": "array", "items": {"type": "string", "pattern": UUID}, "uniqueItems": True}


def _aggregates(call: Call, row: Row) -> Reply:
    mine = sorted(aggregates_by_provider(call.tx).get(row["id"], set()))
    out: Row = {"aggregates": mine}
    if call.version >= (1, 19):
        out["resource_provider_generation"] = row["generation"]
    return answer(call, out)


def aggregates(call: Call) -> Reply:
    """List the aggregates a provider is in."""
    return _aggregates(call, provider(call))


def set_aggregates(call: Call) -> Reply:
    """Put a provider in exactly these aggregates."""
    row = provider(call)
    if call.version >= (1, 19):
        given = body(call, obj({**_GENERATION, "aggregates": _LIST}, ["resource_provider_generation", "aggregates"]))
        row = _begin(call, row, given["resource_provider_generation"])
        ids = given["aggregates"]
    else:
        ids = body(call, _LIST)
    call.tx.execute(sa.delete(PROVIDER_AGGREGATE).where(PROVIDER_AGGREGATE.c.provider_id == row["id"]))
    for id in ids:
        call.tx.insert(PROVIDER_AGGREGATE, {"provider_id": row["id"], "aggregate_id": id})
    return _aggregates(call, row)


def _traits(call: Call, row: Row) -> Reply:
    mine = sorted(reading.traits_by_provider(call.tx).get(row["id"], set()))
    return answer(call, {"traits": mine, "resource_provider_generation": row["generation"]})


def provider_traits(call: Call) -> Reply:
    """List a provider's traits."""
    return _traits(call, provider(call))


_TRAITS = obj(
    {**_GENERATION, "traits": {
        "type": "array", "uniqueItems": True, "items": {"type": "string", "pattern": NAME, "maxLength": 255},
    }},
    ["resource_provider_generation", "traits"],
)  # fmt: skip


@takes(_TRAITS)
def set_traits(call: Call) -> Reply:
    """Give a provider exactly these traits."""
    row = provider(call)
    given = body(call, _TRAITS)
    same_generation(row, given["resource_provider_generation"])
    if unknown := sorted(set(given["traits"]) - traits(call.tx)):
        raise bad_request(f"No such trait {', '.join(unknown)}")
    row = _begin(call, row)
    call.tx.execute(sa.delete(PROVIDER_TRAIT).where(PROVIDER_TRAIT.c.provider_id == row["id"]))
    for name in given["traits"]:
        call.tx.insert(PROVIDER_TRAIT, {"provider_id": row["id"], "trait": name})
    return _traits(call, row)


def delete_traits(call: Call) -> Reply:
    """Take all traits from a provider."""
    row = _begin(call, provider(call))
    call.tx.execute(sa.delete(PROVIDER_TRAIT).where(PROVIDER_TRAIT.c.provider_id == row["id"]))
    return Reply(None, 204)


def _route(method: str, path: str, handler: Any, rule: str, gate: Gate = OPEN) -> Route:
    return Route(
        method=method, path=f"/resource_providers{path}", handler=handler, doc=handler.__doc__ or "",
        tx="read" if method == "GET" else "write", rule=f"placement:resource_providers:{rule}", gate=gate,
    )  # fmt: skip


ROUTES = (
    _route("GET", "", index, "list"),
    _route("POST", "", create, "create"),
    _route("GET", "/{uuid}", show, "show"),
    _route("PUT", "/{uuid}", update, "update"),
    _route("DELETE", "/{uuid}", delete, "delete"),
    _route("GET", "/{uuid}/inventories", inventories, "inventories:list"),
    _route("POST", "/{uuid}/inventories", add_inventory, "inventories:create"),
    _route("PUT", "/{uuid}/inventories", set_inventories, "inventories:update"),
    _route("DELETE", "/{uuid}/inventories", delete_inventories, "inventories:delete", since(1, 5)),
    _route("GET", "/{uuid}/inventories/{resource_class}", inventory, "inventories:show"),
    _route("PUT", "/{uuid}/inventories/{resource_class}", set_inventory, "inventories:update"),
    _route("DELETE", "/{uuid}/inventories/{resource_class}", delete_inventory, "inventories:delete"),
    _route("GET", "/{uuid}/usages", usages, "usages"),
    _route("GET", "/{uuid}/allocations", allocations, "allocations:list"),
    _route("GET", "/{uuid}/aggregates", aggregates, "aggregates:list", since(1, 1)),
    _route("PUT", "/{uuid}/aggregates", set_aggregates, "aggregates:update", since(1, 1)),
    _route("GET", "/{uuid}/traits", provider_traits, "traits:list", since(1, 6)),
    _route("PUT", "/{uuid}/traits", set_traits, "traits:update", since(1, 6)),
    _route("DELETE", "/{uuid}/traits", delete_traits, "traits:delete", since(1, 6)),
)
