"""Allocations: who holds how much of what. Usages per project. Reshaping."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from typing import Any

import sqlalchemy as sa

from nubila.core.call import Call, Reply, Route
from nubila.core.faults import Fault, bad_request
from nubila.core.gates import OPEN, Gate, since
from nubila.core.types import is_uuid
from nubila.services.placement import claims
from nubila.services.placement.kinds import ALLOCATION, CONSUMER, PROVIDER
from nubila.services.placement.wire import CONCURRENT, NAME, UUID, Row, answer, body, known_class, obj, query

_HELD = (
    sa.select(ALLOCATION.c.provider_id, ALLOCATION.c.resource_class, ALLOCATION.c.used, PROVIDER.c.generation)
    .join(PROVIDER, PROVIDER.c.id == ALLOCATION.c.provider_id)
    .where(ALLOCATION.c.consumer_id == sa.bindparam("id"))
)
_CONSUMER = sa.select(CONSUMER).where(CONSUMER.c.id == sa.bindparam("id"))
_PROVIDER = sa.select(PROVIDER.c.id).where(PROVIDER.c.id == sa.bindparam("id"))
_RESOURCES = {
    "type": "object", "minProperties": 1, "additionalProperties": False,
    "patternProperties": {NAME: {"type": "integer", "minimum": 1, "maximum": claims.INT_MAX}},
}  # fmt: skip
_ID = {"type": "string", "minLength": 1, "maxLength": 255}
NOBODY = "00000000-0000-0000-0000-000000000000"
"""Project and user of consumers made before 1.8, which named none."""


def _schema(call: Call, *, deletable: bool) -> Row:
    """The body of one consumer in this version."""
    v = call.version
    if v < (1, 12):
        listed = obj({"resource_provider": obj({"uuid": {"type": "string", "pattern": UUID}}, ["uuid"]),
                      "resources": _RESOURCES}, ["resource_provider", "resources"])  # fmt: skip
        inner: Row = {"allocations": {"type": "array", "minItems": 1, "items": listed}}
    else:
        one = obj({"generation": {"type": "integer"}, "resources": _RESOURCES}, ["resources"])
        inner = {"allocations": {
            "type": "object", "patternProperties": {UUID: one}, "additionalProperties": False,
            "minProperties": 0 if deletable or v >= (1, 28) else 1,
        }}  # fmt: skip
    required = ["allocations"]
    if v >= (1, 8):
        inner |= {"project_id": _ID, "user_id": _ID}
        required += ["project_id", "user_id"]
    if v >= (1, 28):
        inner["consumer_generation"] = {"type": ["integer", "null"]}
        required.append("consumer_generation")
    if v >= (1, 34):
        inner["mappings"] = {"type": "object"}
    if v >= (1, 38):
        inner["consumer_type"] = {"type": "string", "pattern": NAME, "minLength": 1, "maxLength": 255}
        required.append("consumer_type")
    return obj(inner, required)


def show(call: Call) -> Reply:
    """Show what a consumer holds."""
    id = call.params["consumer_uuid"]
    held: Row = {}
    for provider, name, used, generation in call.tx.rows(_HELD, {"id": id}):
        one = held.setdefault(provider, {"resources": {}, "generation": generation})
        one["resources"][name] = used
    out: Row = {"allocations": held}
    consumer = call.tx.one(_CONSUMER, {"id": id}) if held else None
    if consumer is not None and call.version >= (1, 12):
        out |= {"project_id": consumer["project_id"], "user_id": consumer["user_id"]}
        if call.version >= (1, 28):
            out["consumer_generation"] = consumer["generation"]
        if call.version >= (1, 38):
            out["consumer_type"] = consumer["type"]
    return answer(call, out)


def _write(call: Call, id: str, given: Mapping[str, Any]) -> None:
    """Make a consumer hold exactly this. Raises 400 for unknown names, 409 for no room or another generation."""
    asked = given["allocations"]
    if isinstance(asked, list):
        asked = {a["resource_provider"]["uuid"]: {"resources": a["resources"]} for a in asked}
    wanted = {provider: dict(one["resources"]) for provider, one in asked.items()}
    consumer = call.tx.one(_CONSUMER, {"id": id})
    if call.version >= (1, 28):
        have = consumer["generation"] if consumer else None
        if given["consumer_generation"] != have:
            raise Fault(
                409, f"consumer_generation is {have} now, not {given['consumer_generation']}: read again.",
                CONCURRENT,
            )  # fmt: skip
    for provider, classes in wanted.items():
        if call.tx.scalar(_PROVIDER, {"id": provider}) is None:
            raise bad_request(f"allocations: there is no resource provider {provider}.")
        for name in classes:
            if not known_class(call.tx, name):
                raise bad_request(f"Unable to allocate: No such resource class {name}.")
    if not wanted:
        claims.release(call.tx, id)
        return
    project = given.get("project_id") or (consumer["project_id"] if consumer else NOBODY)
    user = given.get("user_id") or (consumer["user_id"] if consumer else NOBODY)
    kind = given.get("consumer_type") or (consumer["type"] if consumer else "unknown")
    try:
        claims.claim(call.tx, id, project, user, wanted, type=kind)
    except claims.NoRoom as e:
        raise Fault(409, f"Unable to allocate inventory: {e}") from None


def put(call: Call) -> Reply:
    """Replace what a consumer holds."""
    id = call.params["consumer_uuid"]
    if not is_uuid(id):
        raise bad_request(f"Malformed consumer_uuid: {id}")
    given = body(call, _schema(call, deletable=False))
    _write(call, str(uuid.UUID(id)), given)
    return Reply(None, 204)


def post(call: Call) -> Reply:
    """Replace what several consumers hold, all or none."""
    schema = {
        "type": "object", "minProperties": 1, "additionalProperties": False,
        "patternProperties": {UUID: _schema(call, deletable=True)},
    }  # fmt: skip
    given = body(call, schema)
    _write_all(call, given)
    return Reply(None, 204)


def _write_all(call: Call, given: Mapping[str, Mapping[str, Any]]) -> None:
    """First those that give back, then those that take: room may move from one to the other."""
    freed = {id for id, one in given.items() if not one["allocations"]}
    for id, one in given.items():
        if id in freed:
            _write(call, id, one)
    for id in given:
        if id not in freed:
            claims.release(call.tx, id, forget=False)
    for id, one in given.items():
        if id not in freed:
            _write(call, id, one)


def delete(call: Call) -> Reply:
    """Give back everything a consumer holds."""
    id = call.params["consumer_uuid"]
    if not call.tx.rows(_HELD, {"id": id}):
        raise Fault(404, f"Consumer {id} has no allocations.")
    claims.release(call.tx, id)
    return Reply(None, 204)


# --- usages -----------------------------------------------------------------------------------------------------------


def usages(call: Call) -> Reply:
    """Sum up what a project, or one of its users, holds."""
    known = ["project_id", "user_id"] + (["consumer_type"] if call.version >= (1, 38) else [])
    q = query(call, known)
    if not q.get("project_id"):
        raise bad_request("Invalid query string parameters: 'project_id' is a required property")
    call.enforce("placement:usages", {"project_id": q["project_id"]})
    statement = (
        sa.select(CONSUMER.c.type, ALLOCATION.c.resource_class, ALLOCATION.c.used, CONSUMER.c.id)
        .join(CONSUMER, CONSUMER.c.id == ALLOCATION.c.consumer_id)
        .where(CONSUMER.c.project_id == q["project_id"])
    )
    if "user_id" in q:
        statement = statement.where(CONSUMER.c.user_id == q["user_id"])
    wanted = q.get("consumer_type")
    if wanted not in (None, "all"):
        statement = statement.where(CONSUMER.c.type == wanted)
    grouped: dict[str, Row] = {}
    consumers: dict[str, set[str]] = {}
    for kind, name, used, consumer in call.tx.rows(statement):
        key = kind if call.version >= (1, 38) and wanted != "all" else "all"
        one = grouped.setdefault(key, {})
        one[name] = one.get(name, 0) + used
        consumers.setdefault(key, set()).add(consumer)
    if call.version < (1, 38):
        return answer(call, {"usages": grouped.get("all", {})})
    return answer(call, {"usages": {k: {**g, "consumer_count": len(consumers[k])} for k, g in grouped.items()}})


# --- reshaper ---------------------------------------------------------------------------------------------------------


def reshape(call: Call) -> Reply:
    """Change inventories of several providers and allocations that move with them, all or none."""
    from nubila.services.placement import providers

    inventories = {
        "type": "object", "minProperties": 1, "additionalProperties": False, "patternProperties": {UUID: providers.ALL},
    }  # fmt: skip
    held = {
        "type": "object", "additionalProperties": False, "patternProperties": {UUID: _schema(call, deletable=True)},
    }  # fmt: skip
    given = body(call, obj({"inventories": inventories, "allocations": held}, ["inventories", "allocations"]))
    for id in given["allocations"]:
        claims.release(call.tx, id, forget=False)
    for id, one in given["inventories"].items():
        providers.replace_inventories(call, id, one)
    _write_all(call, given["allocations"])
    return Reply(None, 204)


def _route(method: str, path: str, handler: Any, rule: str, gate: Gate = OPEN) -> Route:
    return Route(
        method=method, path=path, handler=handler, doc=handler.__doc__ or "",
        tx="read" if method == "GET" else "write", rule=f"placement:{rule}" if rule else "", gate=gate,
    )  # fmt: skip


ROUTES = (
    _route("POST", "/allocations", post, "allocations:manage", since(1, 13)),
    _route("GET", "/allocations/{consumer_uuid}", show, "allocations:list"),
    _route("PUT", "/allocations/{consumer_uuid}", put, "allocations:update"),
    _route("DELETE", "/allocations/{consumer_uuid}", delete, "allocations:delete"),
    _route("GET", "/usages", usages, "", since(1, 9)),
    _route("POST", "/reshaper", reshape, "reshaper:reshape", since(1, 30)),
)
