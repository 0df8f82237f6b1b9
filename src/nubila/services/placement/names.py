"""Resource classes and traits: the standard ones, and the cloud's own (CUSTOM_...)."""

from __future__ import annotations

import re
from typing import Any

import os_resource_classes
import os_traits
import sqlalchemy as sa

from nubila.core.call import Call, Reply, Route, takes
from nubila.core.faults import Fault, bad_request
from nubila.core.gates import since
from nubila.core.sql import upsert
from nubila.services.placement.kinds import CUSTOM_CLASS, CUSTOM_TRAIT, INVENTORY, PROVIDER_TRAIT
from nubila.services.placement.providers import _prefix
from nubila.services.placement.wire import (
    CUSTOM,
    Row,
    answer,
    body,
    classes,
    known_class,
    obj,
    query,
    traits,
)

_NAMED = obj({"name": {"type": "string", "pattern": CUSTOM, "maxLength": 255}}, ["name"])


def _class(call: Call, name: str) -> Row:
    return {"name": name, "links": [{"rel": "self", "href": f"{_prefix(call)}/resource_classes/{name}"}]}


def list_classes(call: Call) -> Reply:
    """List resource classes."""
    return answer(call, {"resource_classes": [_class(call, n) for n in classes(call.tx)]})


def show_class(call: Call) -> Reply:
    """Show a resource class."""
    name = call.params["name"]
    if not known_class(call.tx, name):
        raise Fault(404, f"No such resource class {name}.")
    return answer(call, _class(call, name))


@takes(_NAMED)
def create_class(call: Call) -> Reply:
    """Create a resource class of the cloud's own."""
    name = body(call, _NAMED)["name"]
    if known_class(call.tx, name):
        raise Fault(409, f"Conflicting resource class already exists: {name}")
    call.tx.insert(CUSTOM_CLASS, {"name": name})
    return Reply(None, 201, {"Location": f"{call.base}/resource_classes/{name}"})


def put_class(call: Call) -> Reply:
    """Make sure that a resource class exists (before 1.7: rename it)."""
    name = call.params["name"]
    if call.version < (1, 7):
        return _rename(call, name)
    if not re.fullmatch(CUSTOM, name) or len(name) > 255:
        raise bad_request(f"'{name}' does not match CUSTOM_ followed by A-Z, 0-9 and _.")
    status = 204 if known_class(call.tx, name) else 201
    call.tx.execute(upsert(call.tx.dialect, CUSTOM_CLASS, {"name": name}, {}))
    return Reply(None, status, {"Location": f"{call.base}/resource_classes/{name}"})


@takes(_NAMED)
def _rename(call: Call, name: str) -> Reply:
    wanted = body(call, _NAMED)["name"]
    if not known_class(call.tx, name):
        raise Fault(404, f"No such resource class {name}.")
    if name in os_resource_classes.STANDARDS:
        raise bad_request(f"Cannot update standard resource class {name}")
    if known_class(call.tx, wanted):
        raise Fault(409, f"Resource class already exists: {wanted}")
    if _class_used(call, name):
        raise Fault(409, f"Resource class {name} is in use: its name cannot change.")
    call.tx.execute(sa.update(CUSTOM_CLASS).where(CUSTOM_CLASS.c.name == name).values(name=wanted))
    return Reply(_class(call, wanted), 200)


def _class_used(call: Call, name: str) -> bool:
    return call.tx.scalar(sa.select(INVENTORY.c.provider_id).where(INVENTORY.c.resource_class == name)) is not None


def delete_class(call: Call) -> Reply:
    """Delete a resource class of the cloud's own."""
    name = call.params["name"]
    if not known_class(call.tx, name):
        raise Fault(404, f"No such resource class {name}.")
    if name in os_resource_classes.STANDARDS:
        raise bad_request(f"Error in delete resource class: {name} is a standard one and cannot be deleted.")
    if _class_used(call, name):
        raise Fault(409, f"Error in delete resource class: {name} is in use in inventory.")
    call.tx.execute(sa.delete(CUSTOM_CLASS).where(CUSTOM_CLASS.c.name == name))
    return Reply(None, 204)


# --- traits -----------------------------------------------------------------------------------------------------------


def list_traits(call: Call) -> Reply:
    """List traits."""
    q = query(call, ("name", "associated"))
    found = sorted(traits(call.tx))
    if "name" in q:
        op, colon, value = q["name"].partition(":")
        if not colon or op not in ("in", "startswith"):
            raise bad_request(
                f"name: '{q['name']}' must be in:NAME,NAME or startswith:PREFIX."
            )  # fmt: skip
        wanted = set(value.split(","))
        found = [t for t in found if (t in wanted if op == "in" else t.startswith(value))]
    if "associated" in q:
        if q["associated"].lower() not in ("true", "false"):
            raise bad_request("associated must be true or false.")
        used = {t for (t,) in call.tx.rows(sa.select(PROVIDER_TRAIT.c.trait).distinct())}
        found = [t for t in found if (t in used) is (q["associated"].lower() == "true")]
    return answer(call, {"traits": found})


def check_trait(call: Call) -> Reply:
    """Say whether a trait exists."""
    if call.params["name"] not in traits(call.tx):
        raise Fault(404, f"No such trait(s): {call.params['name']}.")
    return answer(call, None, 204)


def put_trait(call: Call) -> Reply:
    """Make sure that a trait of the cloud's own exists."""
    name = call.params["name"]
    if not re.fullmatch(CUSTOM, name) or len(name) > 255:
        raise bad_request(
            "A trait of your own is CUSTOM_ and capital letters, digits or underscores, 255 characters at most."
        )
    status = 204 if name in traits(call.tx) else 201
    call.tx.execute(upsert(call.tx.dialect, CUSTOM_TRAIT, {"name": name}, {}))
    return answer(call, None, status, {"Location": f"{call.base}/traits/{name}"})


def delete_trait(call: Call) -> Reply:
    """Delete a trait of the cloud's own."""
    name = call.params["name"]
    if name not in traits(call.tx):
        raise Fault(404, f"No such trait(s): {name}.")
    if name in os_traits.get_traits():
        raise bad_request(f"Cannot delete standard trait {name}.")
    if call.tx.scalar(sa.select(PROVIDER_TRAIT.c.provider_id).where(PROVIDER_TRAIT.c.trait == name)) is not None:
        raise Fault(409, f"Resource providers have trait {name}: take it off them first.")
    call.tx.execute(sa.delete(CUSTOM_TRAIT).where(CUSTOM_TRAIT.c.name == name))
    return Reply(None, 204)


def _route(method: str, path: str, handler: Any, rule: str, minor: int) -> Route:
    return Route(
        method=method, path=path, handler=handler, doc=handler.__doc__ or "",
        tx="read" if method == "GET" else "write", rule=f"placement:{rule}", gate=since(1, minor),
    )  # fmt: skip


ROUTES = (
    _route("GET", "/resource_classes", list_classes, "resource_classes:list", 2),
    _route("POST", "/resource_classes", create_class, "resource_classes:create", 2),
    _route("GET", "/resource_classes/{name}", show_class, "resource_classes:show", 2),
    _route("PUT", "/resource_classes/{name}", put_class, "resource_classes:update", 2),
    _route("DELETE", "/resource_classes/{name}", delete_class, "resource_classes:delete", 2),
    _route("GET", "/traits", list_traits, "traits:list", 6),
    _route("GET", "/traits/{name}", check_trait, "traits:show", 6),
    _route("PUT", "/traits/{name}", put_trait, "traits:update", 6),
    _route("DELETE", "/traits/{name}", delete_trait, "traits:delete", 6),
)
